//! Filters of subscriptions: which payloads go where.

use bytes::Bytes;
use http_body_util::Full;
use onering::proto::v1::{
    self, CreateSubscriptionRequest, GetSubscriptionRequest, PublishEventRequest,
    UpdateSubscriptionRequest, publish_event_request::Payload,
};
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, fields, reason},
    receiver::Receiver,
    store::Db,
};

contract![
    only_what_passes_is_delivered,
    a_filter_is_kept_as_it_was_written,
    a_filter_is_changed_and_taken_away,
    what_is_no_filter_is_refused_by_its_place,
    a_test_passes_every_filter,
    any_payload_can_be_filtered,
    filters_outlive_a_restart,
];
on_postgres_alone![a_changed_filter_holds_on_every_node];

const WEBHOOKS: &str = "/v1/external/webhooks";
const EVENTS: &str = "/v1/external/events";

/// How many deliveries an event with that payload becomes.
async fn deliveries(app: &TestApp, event_type: &str, data: &str) -> Value {
    let body = format!(r#"{{"event_type":"{event_type}","data":{data}}}"#);
    let request = app
        .request("POST", EVENTS, &app.admin)
        .header("content-type", "application/json");
    let answer = app.send(request.body(Full::from(body)).unwrap()).await;
    answer.ok()["delivery_count"].clone()
}

// D3: the payload is what `var` looks into; with the event's type both must fit.
async fn only_what_passes_is_delivered(db: Db) {
    let app = TestApp::start(&db).await;
    let (large, all) = (Receiver::start().await, Receiver::start().await);
    let filter = json!({"and": [
        {">": [{"var": "amount"}, 100]},
        {"in": [{"var": "customer.country"}, ["NO", "SE"]]},
    ]});
    let wanted = json!({"filter": filter, "event_types": ["invoice.*"]});
    app.webhook(&large.url(), wanted).await;
    app.webhook(&all.url(), json!({})).await;
    for (event_type, amount, country, count) in [
        ("invoice.paid", json!(101), "NO", 2),
        ("invoice.paid", json!("250.5"), "SE", 2),
        ("invoice.paid", json!(100), "NO", 1),
        ("invoice.paid", json!(101), "DK", 1),
        ("order.paid", json!(101), "NO", 1),
    ] {
        let data = json!({"amount": amount, "customer": {"country": country}});
        let made = deliveries(&app, event_type, &data.to_string()).await;
        assert_eq!(made, count, "{event_type} {data}");
    }
    assert_eq!(deliveries(&app, "invoice.paid", "null").await, 1);
    // The same in a batch and over gRPC, as bytes and as a `Value`.
    let one = |amount| json!({"event_type": "invoice.paid", "data": {"amount": amount, "customer": {"country": "NO"}}});
    let batch = json!({"events": [one(1), one(1000)]});
    let results = app
        .post(&format!("{EVENTS}/batch"), &app.admin, batch)
        .await;
    let results = results.ok()["results"].clone();
    assert_eq!(results[0]["accepted"]["delivery_count"], 1);
    assert_eq!(results[1]["accepted"]["delivery_count"], 2);
    let payload = Payload::DataJson(Bytes::from(one(1000)["data"].to_string()));
    let request = PublishEventRequest {
        event_type: "invoice.paid".into(),
        payload: Some(payload),
        ..Default::default()
    };
    let answer = app.grpc(&app.admin).events.publish_event(request).await;
    assert_eq!(answer.unwrap().into_inner().delivery_count, 2);
    all.wait(9).await;
    let got = large.wait(4).await;
    assert!(
        got.iter()
            .all(|r| r.header("x-webhook-event") == "invoice.paid")
    );
    assert_eq!(large.count(), 4);
    app.stop().await;
}

/// Spaces, order and digits that a detour would lose.
const SPELLED: &str = r#"{ "==" : [ {"var":"id"}, 12345678901234567891 ] }"#;

async fn create(app: &TestApp, filter: &str) -> crate::support::app::Answer {
    let body = format!(r#"{{"url":"http://127.0.0.1:9/","filter":{filter}}}"#);
    let request = app
        .request("POST", WEBHOOKS, &app.admin)
        .header("content-type", "application/json");
    app.send(request.body(Full::from(body)).unwrap()).await
}

// D3
async fn a_filter_is_kept_as_it_was_written(db: Db) {
    let app = TestApp::start(&db).await;
    let made = create(&app, SPELLED).await;
    let shown = format!(r#""filter":{SPELLED}"#);
    assert!(made.text().contains(&shown), "{}", made.text());
    let id = made.ok()["id"].as_str().unwrap().to_owned();
    for path in [format!("{WEBHOOKS}/{id}"), WEBHOOKS.to_owned()] {
        let read = app.get(&path, &app.admin).await;
        assert!(read.text().contains(&shown), "{}", read.text());
    }
    let mut grpc = app.grpc(&app.admin).subscriptions;
    let read = grpc.get_subscription(GetSubscriptionRequest { id }).await;
    let read = read.unwrap().into_inner().subscription.unwrap();
    assert_eq!(read.filter.as_deref(), Some(SPELLED.as_bytes()));
    // By all of its digits.
    for (id, count) in [("12345678901234567891", 1), ("12345678901234567890", 0)] {
        let made = deliveries(&app, "a.b", &format!(r#"{{"id":{id}}}"#)).await;
        assert_eq!(made, count);
    }
    for none in ["null", "null "] {
        let made = create(&app, none).await.ok();
        assert_eq!(made["subscription"]["filter"], Value::Null);
    }
    app.stop().await;
}

// D3
async fn a_filter_is_changed_and_taken_away(db: Db) {
    let app = TestApp::start(&db).await;
    let id = create(&app, r#"{"var":"a"}"#).await.ok()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let passing = async |n: i64| {
        assert_eq!(deliveries(&app, "a.b", r#"{"a":1}"#).await, n & 1);
        assert_eq!(deliveries(&app, "a.b", r#"{"b":1}"#).await, n >> 1);
    };
    passing(1).await;
    app.change(&id, json!({"description": "another"})).await;
    passing(1).await;
    let changed = app.change(&id, json!({"filter": {"var": "b"}})).await;
    assert_eq!(changed["filter"], json!({"var": "b"}));
    passing(2).await;
    let cleared = app.change(&id, json!({"filter": null})).await;
    assert_eq!(cleared["filter"], Value::Null);
    passing(3).await;
    let mut grpc = app.grpc(&app.admin).subscriptions;
    let mut update = async |filter: &'static str, paths: &[&str]| {
        let request = UpdateSubscriptionRequest {
            id: id.clone(),
            subscription: Some(v1::Subscription {
                filter: (!filter.is_empty()).then(|| filter.into()),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.iter().map(|p| (*p).to_owned()).collect(),
            }),
        };
        grpc.update_subscription(request).await.unwrap();
    };
    update(r#"{"var":"a"}"#, &[]).await;
    passing(1).await;
    update("", &[]).await;
    passing(1).await;
    update(r#"{"var":"b"}"#, &["filter"]).await;
    passing(2).await;
    update("", &["filter"]).await;
    passing(3).await;
    app.stop().await;
}

// D3, E3
async fn what_is_no_filter_is_refused_by_its_place(db: Db) {
    let app = TestApp::start(&db).await;
    let nested = format!("{}1{}", r#"{"!":["#.repeat(40), "]}".repeat(40));
    let long = format!(r#"{{"cat":["{}"]}}"#, "x".repeat(9000));
    let kept = create(&app, r#"{"var":"a"}"#).await.ok()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for (filter, field, message) in [
        ("true", "filter", "must be a JSONLogic operation"),
        ("[]", "filter", "must be a JSONLogic operation"),
        (r#""x""#, "filter", "must be a JSONLogic operation"),
        ("{}", "filter", "an object with one member"),
        (
            r#"{"regex":["a","b"]}"#,
            r#"filter["regex"]"#,
            "is no operator; there are",
        ),
        (
            r#"{"and":[1,{"==":[1]}]}"#,
            r#"filter["and"][1]["=="]"#,
            "takes 2 arguments, not 1",
        ),
        (&nested, "filter", "64 deep"),
        (&long, "filter", "at most 8192 bytes"),
    ] {
        let patch = format!(r#"{{"filter":{filter}}}"#);
        let path = format!("{WEBHOOKS}/{kept}");
        let request = app
            .request("PATCH", &path, &app.admin)
            .header("content-type", "application/json");
        let patched = app.send(request.body(Full::from(patch)).unwrap()).await;
        for answer in [create(&app, filter).await, patched] {
            let problem = answer.refused(400, "INVALID_ARGUMENT");
            let error = &problem["errors"][0];
            // What nests too deep for any body is refused as such.
            let field = if filter == nested && error["field"] == "body" {
                "body"
            } else {
                field
            };
            assert_eq!(error["field"], field, "{problem}");
            assert!(
                error["message"].as_str().unwrap().contains(message),
                "{problem}"
            );
        }
        let request = CreateSubscriptionRequest {
            url: "http://127.0.0.1:9/".into(),
            filter: Some(filter.into()),
            ..Default::default()
        };
        let refused = app
            .grpc(&app.admin)
            .subscriptions
            .create_subscription(request)
            .await;
        let refused = refused.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_ARGUMENT");
        assert_eq!(fields(&refused), [field]);
    }
    assert_eq!(app.subscription(&kept).await["filter"], json!({"var": "a"}));
    app.stop().await;
}

// D3
async fn a_test_passes_every_filter(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app
        .webhook(&receiver.url(), json!({"filter": {"!": [true]}}))
        .await;
    assert_eq!(deliveries(&app, "a.b", "1").await, 0);
    let path = format!("{WEBHOOKS}/{}/test", sub.id);
    app.post(&path, &app.admin, json!({})).await.ok();
    assert_eq!(
        receiver.wait(1).await[0].header("x-webhook-event"),
        "webhook.test"
    );
    app.stop().await;
}

// D3, D5, E3: whatever JSON allows, and what would take too long is sent.
async fn any_payload_can_be_filtered(db: Db) {
    let app = TestApp::start(&db).await;
    create(&app, r#"{"!":[{"==":[{"var":"x"},1]}]}"#).await.ok();
    for data in [
        "null",
        "[]",
        "\"x\"",
        "1e400",
        r#"{"x":1e400}"#,
        r#""\ud800""#,
        r#"{"x":2,"x":3}"#,
        "123456789012345678901234567890123456789012345678901234567890",
        "{\"\":{}}",
    ] {
        assert_eq!(deliveries(&app, "a.b", data).await, 1, "{data}");
    }
    assert_eq!(deliveries(&app, "a.b", r#"{"x":1}"#).await, 0);
    let double = r#"{"!":{"reduce":[{"var":""},{"merge":[{"var":"accumulator"},{"var":"accumulator"}]},[1]]}}"#;
    create(&app, double).await.ok();
    let list = |n: usize| format!("[{}]", vec!["1"; n].join(","));
    assert_eq!(deliveries(&app, "a.b", &list(3)).await, 1);
    assert_eq!(deliveries(&app, "a.b", &list(100)).await, 2);
    app.stop().await;
}

// D3, N6
async fn filters_outlive_a_restart(db: Db) {
    let app = TestApp::start(&db).await;
    create(&app, r#"{"var":"a"}"#).await.ok();
    let again = app.again();
    app.stop().await;
    // The version before writes the rows anew, without what it does not know.
    db.tamper("update subscriptions set doc = doc, updated_at = updated_at + 1")
        .await;
    let app = again.start().await;
    assert_eq!(deliveries(&app, "a.b", r#"{"a":1}"#).await, 1);
    assert_eq!(deliveries(&app, "a.b", r#"{"a":0}"#).await, 0);
    app.stop().await;
}

// D1, D3: what was answered on one node holds on the other at once.
async fn a_changed_filter_holds_on_every_node(db: Db) {
    let one = TestApp::start(&db).await;
    let two = one.again().start().await;
    let id = create(&one, r#"{"var":"a"}"#).await.ok()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for n in 0..20 {
        let (by, at) = if n % 2 == 0 {
            (&one, &two)
        } else {
            (&two, &one)
        };
        by.change(&id, json!({"filter": {"==": [{"var": "n"}, n]}}))
            .await;
        assert_eq!(deliveries(at, "a.b", &format!(r#"{{"n":{n}}}"#)).await, 1);
        assert_eq!(deliveries(at, "a.b", r#"{"n":-1}"#).await, 0);
    }
    two.stop().await;
    one.stop().await;
}
