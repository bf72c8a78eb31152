//! CloudEvents: published as such, and sent as such.

use http_body_util::Full;
use onering::{
    cli::sink::{Behaviour, Delivery, RunningSink, Sink, SinkConfig},
    domain::signature::VerifyingKey,
};
use serde_json::{Value, json};

use crate::support::{
    app::{Answer, Subscribed, Tenant, TestApp, eventually},
    store::Db,
};

contract![
    a_cloudevent_is_an_event_in_both_modes,
    a_repetition_is_told_by_source_and_id,
    an_explicit_key_wins,
    what_is_not_taken_is_refused,
    the_gate_is_before_a_cloudevent,
    a_subscription_chooses_its_form,
    every_scheme_signs_what_is_sent,
    every_attempt_sends_the_same,
];

const EVENTS: &str = "/v1/external/events";
const STRUCTURED: &str = "application/cloudevents+json";
/// Order, spelling of numbers and spaces that a detour would lose.
const DATA: &str = r#"{ "z":1.0, "a":12345678901234567890123, "t":"\u00fc\",\"data\":1" }"#;

async fn post(app: &TestApp, key: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = app.request("POST", EVENTS, key);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app.send(request.body(Full::from(body.to_owned())).unwrap())
        .await
}

async fn structured(app: &TestApp, key: &str, members: &str) -> Answer {
    let body = format!(r#"{{"specversion":"1.0",{members}}}"#);
    post(app, key, &[("content-type", STRUCTURED)], &body).await
}

async fn binary(app: &TestApp, key: &str, id: &str, data: &str) -> Answer {
    let headers = [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", id),
        ("ce-source", "/a"),
        ("ce-type", "invoice.paid"),
        ("ce-subject", "no%20matter"),
    ];
    post(app, key, &headers, data).await
}

/// A subscription whose deliveries arrive at a sink that has its secret.
async fn subscribed(app: &TestApp, tenant: &Tenant, mut with: Value) -> (Subscribed, RunningSink) {
    with["url"] = "http://127.0.0.1:9/webhook".into();
    with["retry_schedule"] = json!({"max_attempts": 2, "backoff_seconds": [1]});
    let made = app.subscribe(&tenant.key, with).await;
    let sink = Sink::start(SinkConfig {
        keys: vec![VerifyingKey::parse(&made.secret).unwrap()],
        ..SinkConfig::default()
    })
    .await
    .unwrap();
    let path = format!("/v1/external/webhooks/{}", made.id);
    let to = json!({ "url": sink.url() });
    app.patch(&path, &tenant.key, to).await.ok();
    (made, sink)
}

async fn received(sink: &RunningSink, count: usize) -> Vec<std::sync::Arc<Delivery>> {
    eventually("deliveries", || async {
        let got = sink.deliveries();
        (got.len() >= count).then_some(got)
    })
    .await
}

/// What of a delivery is the same at every attempt.
fn message(delivery: &Delivery) -> (String, Vec<(String, String)>) {
    let told = |name: &&String| name.starts_with("ce-") || *name == "content-type";
    let names = delivery.headers.keys().filter(told);
    let headers = names.map(|n| (n.clone(), delivery.headers[n].clone()));
    (delivery.body.clone(), headers.collect())
}

async fn stored(app: &TestApp, key: &str, id: &str) -> String {
    let answer = app.get(&format!("{EVENTS}/{id}"), key).await;
    assert_eq!(answer.status, 200);
    answer.text().to_owned()
}

// D5: structured or binary, its answer and its delivery are those of any event,
// and its data is kept byte for byte.
async fn a_cloudevent_is_an_event_in_both_modes(db: Db) {
    let app = TestApp::start(&db).await;
    let tenant = app.tenant("acme").await;
    let (_, sink) = subscribed(&app, &tenant, json!({})).await;
    let members = format!(
        r#""id":"1","source":"/a","type":"invoice.paid","comexample":7,"time":"2020-01-01T00:00:00Z","data": {DATA} "#
    );
    let body = format!(r#"{{"specversion":"1.0",{members}}}"#);
    let spelled = [(
        "content-type",
        "Application/CloudEvents+JSON; charset=UTF-8",
    )];
    let first = post(&app, &tenant.key, &spelled, &body).await;
    assert_eq!(first.status, 202, "{}", first.text());
    let second = binary(&app, &tenant.key, "2", DATA).await;
    assert_eq!(second.status, 202, "{}", second.text());
    for (n, answer) in [first, second].into_iter().enumerate() {
        let answer = answer.ok();
        assert_eq!(answer["event_type"], "invoice.paid");
        assert_eq!(answer["delivery_count"], 1);
        let members: Vec<&String> = answer.as_object().unwrap().keys().collect();
        assert_eq!(
            members,
            ["id", "event_type", "create_time", "delivery_count"]
        );
        let id = answer["id"].as_str().unwrap();
        let text = stored(&app, &tenant.key, id).await;
        assert!(text.contains(DATA), "{text}");
        assert!(!text.contains("comexample"), "{text}");
        let got = received(&sink, n + 1).await[n].clone();
        assert_eq!(got.verified, Some(true));
        assert!(
            got.body.starts_with(&format!(r#"{{"id":"{id}","#)),
            "{}",
            got.body
        );
        assert!(
            got.body.ends_with(&format!(r#","data":{DATA}}}"#)),
            "{}",
            got.body
        );
    }
    // No data, in either mode, is null.
    for answer in [
        structured(
            &app,
            &tenant.key,
            r#""id":"3","source":"/a","type":"invoice.paid""#,
        )
        .await,
        binary(&app, &tenant.key, "4", "").await,
    ] {
        let id = answer.ok()["id"].as_str().unwrap().to_owned();
        let text = stored(&app, &tenant.key, &id).await;
        assert!(text.contains(r#""data":null"#), "{text}");
    }
    app.stop().await;
}

// D5, D2: source and id identify an event, in whichever mode it comes.
async fn a_repetition_is_told_by_source_and_id(db: Db) {
    let app = TestApp::start(&db).await;
    let tenant = app.tenant("acme").await;
    let first = binary(&app, &tenant.key, "1", "7").await.ok();
    let same = r#""id":"1","source":"/a","type":"invoice.paid","data":7"#;
    let again = structured(&app, &tenant.key, same).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.ok(), first);
    let other = r#""id":"1","source":"/b","type":"invoice.paid","data":7"#;
    let other = structured(&app, &tenant.key, other).await.ok();
    assert_ne!(other["id"], first["id"]);
    binary(&app, &tenant.key, "1", "8")
        .await
        .refused(409, "IDEMPOTENCY_KEY_REUSED");
    app.stop().await;
}

// D5, D2
async fn an_explicit_key_wins(db: Db) {
    let app = TestApp::start(&db).await;
    let tenant = app.tenant("acme").await;
    let body = r#"{"specversion":"1.0","id":"1","source":"/a","type":"x","data":1}"#;
    let mut ids = Vec::new();
    for key in ["k1", "k2", "k1"] {
        let headers = [("content-type", STRUCTURED), ("idempotency-key", key)];
        let answer = post(&app, &tenant.key, &headers, body).await.ok();
        ids.push(answer["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids[0], ids[2]);
    assert_ne!(ids[0], ids[1]);
    app.stop().await;
}

// D5, E2: what is wrong is named as it was written.
async fn what_is_not_taken_is_refused(db: Db) {
    let app = TestApp::builder(&db)
        .set("EVENT_MAX_BYTES", 1024)
        .start()
        .await;
    let tenant = app.tenant("acme").await;
    let key = &tenant.key;
    let fields = |problem: &Value| -> Vec<String> {
        let errors = problem["errors"].as_array().unwrap().iter();
        errors
            .map(|e| e["field"].as_str().unwrap().to_owned())
            .collect()
    };
    let good = r#""id":"1","source":"/a","type":"x""#;
    for (members, named) in [
        (r#""id":"1","source":"/a","type":"a b""#, "type"),
        (r#""id":"1","source":"/a""#, "type"),
        (r#""id":"","source":"/a","type":"x""#, "id"),
        (r#""id":"1","type":"x""#, "source"),
        (&format!(r#"{good},"specversion":"1.0""#), "body"),
        (
            &format!(r#"{good},"data":{}1{}"#, "[".repeat(65), "]".repeat(65)),
            "data",
        ),
    ] {
        let refused = structured(&app, key, members).await;
        assert_eq!(
            fields(&refused.refused(400, "INVALID_ARGUMENT")),
            [named],
            "{members}"
        );
    }
    let json = ("content-type", "application/json");
    let refused = post(&app, key, &[json, ("ce-type", "a b")], "{}").await;
    let named = fields(&refused.refused(400, "INVALID_ARGUMENT"));
    assert_eq!(named, ["ce-specversion", "ce-id", "ce-source", "ce-type"]);
    let whole = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/a"),
        ("ce-type", "x"),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&whole[..], more].concat();
    let refused = post(&app, key, &with(&[json, ("ce-id", "2")]), "{}").await;
    assert_eq!(fields(&refused.refused(400, "INVALID_ARGUMENT")), ["ce-id"]);
    let refused = post(&app, key, &with(&[json]), "{").await;
    assert_eq!(fields(&refused.refused(400, "INVALID_ARGUMENT")), ["data"]);

    for unsupported in [
        structured(&app, key, &format!(r#"{good},"data_base64":"AA==""#)).await,
        structured(
            &app,
            key,
            &format!(r#"{good},"datacontenttype":"text/plain","data":"x""#),
        )
        .await,
        post(&app, key, &with(&[("content-type", "text/plain")]), "1").await,
        post(
            &app,
            key,
            &[("content-type", "application/cloudevents+avro")],
            "{}",
        )
        .await,
    ] {
        unsupported.refused(415, "UNSUPPORTED_MEDIA_TYPE");
    }
    let batch = [("content-type", "application/cloudevents-batch+json")];
    let refused = post(&app, key, &batch, "[]")
        .await
        .refused(415, "UNSUPPORTED_MEDIA_TYPE");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("/v1/external/events/batch"), "{detail}");
    let long = format!(r#"{good},"data":"{}""#, "x".repeat(1100));
    structured(&app, key, &long)
        .await
        .refused(413, "PAYLOAD_TOO_LARGE");
    app.stop().await;
}

// D5, K11: no key or a key without the scope is told so, whatever it sends.
async fn the_gate_is_before_a_cloudevent(db: Db) {
    let app = TestApp::start(&db).await;
    app.tenant("acme").await;
    let (_, reader) = app
        .key(json!({"tenant": "acme", "scopes": ["events:read"]}))
        .await;
    structured(&app, "", "").await.refused(401, "KEY_MISSING");
    structured(&app, &reader, "")
        .await
        .refused(403, "SCOPE_MISSING");
    app.stop().await;
}

// D5, D3: asked for at creation or by an update; the default is our own.
async fn a_subscription_chooses_its_form(db: Db) {
    let app = TestApp::start(&db).await;
    let tenant = app.tenant("acme").await;
    let (made, sink) = subscribed(
        &app,
        &tenant,
        json!({"payload_format": "CLOUDEVENTS_STRUCTURED", "headers": {"ce-comexample": "1"}}),
    )
    .await;
    let path = format!("/v1/external/webhooks/{}", made.id);
    let body = format!(r#"{{"event_type":"invoice.paid","data":{DATA}}}"#);
    let publish = async || {
        let json = [("content-type", "application/json")];
        let answer = post(&app, &tenant.key, &json, &body).await.ok();
        answer["id"].as_str().unwrap().to_owned()
    };
    let source = format!("urn:onering:tenant:{}", tenant.id);

    let id = publish().await;
    let got = received(&sink, 1).await[0].clone();
    let time = serde_json::from_str::<Value>(&got.body).unwrap()["time"].clone();
    let wanted = format!(
        r#"{{"specversion":"1.0","id":"{id}","source":"{source}","type":"invoice.paid","time":{time},"datacontenttype":"application/json","data":{DATA}}}"#
    );
    assert_eq!(got.body, wanted);
    assert_eq!(got.headers["content-type"], STRUCTURED);
    assert!(!got.headers.contains_key("ce-id"));
    assert_eq!(got.verified, Some(true), "{:?}", got.reason);

    let to = json!({"payload_format": "CLOUDEVENTS_BINARY"});
    let changed = app.patch(&path, &tenant.key, to).await.ok();
    assert_eq!(changed["payload_format"], "CLOUDEVENTS_BINARY");
    let id = publish().await;
    let got = received(&sink, 2).await[1].clone();
    assert_eq!(got.body, DATA);
    for (name, value) in [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", &id),
        ("ce-source", &source),
        ("ce-type", "invoice.paid"),
        ("ce-comexample", "1"),
        ("webhook-id", &id),
        ("x-webhook-event-id", &id),
        ("x-webhook-event", "invoice.paid"),
    ] {
        assert_eq!(got.headers[name], value, "{name}");
    }
    let event = app.get(&format!("{EVENTS}/{id}"), &tenant.key).await.ok();
    let micros = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_microsecond();
    assert_eq!(
        micros(&got.headers["ce-time"]),
        micros(event["create_time"].as_str().unwrap())
    );
    assert_eq!(got.verified, Some(true), "{:?}", got.reason);

    let to = json!({"payload_format": "STANDARD"});
    app.patch(&path, &tenant.key, to).await.ok();
    let id = publish().await;
    let got = received(&sink, 3).await[2].clone();
    assert!(got.body.starts_with(&format!(r#"{{"id":"{id}","type":"#)));
    assert!(!got.headers.contains_key("ce-id"));
    let shown = app.get(&path, &tenant.key).await.ok();
    assert_eq!(shown["payload_format"], "STANDARD");
    app.patch(&path, &tenant.key, json!({"payload_format": "XML"}))
        .await
        .refused(400, "INVALID_ARGUMENT");
    let reserved = json!({"headers": {"CE-Id": "1"}});
    app.patch(&path, &tenant.key, reserved)
        .await
        .refused(400, "INVALID_ARGUMENT");
    app.stop().await;
}

// D5, S1, S2, S3: signatures are over the body that is sent.
async fn every_scheme_signs_what_is_sent(db: Db) {
    let app = TestApp::start(&db).await;
    let tenant = app.tenant("acme").await;
    for scheme in ["V1", "PLAIN", "ED25519"] {
        for format in ["CLOUDEVENTS_STRUCTURED", "CLOUDEVENTS_BINARY"] {
            let with = json!({"payload_format": format, "signature_scheme": scheme});
            let (made, sink) = subscribed(&app, &tenant, with).await;
            app.publish(&tenant.key, "a.b", json!({"n": 1})).await;
            let got = received(&sink, 1).await[0].clone();
            assert_eq!(got.verified, Some(true), "{scheme} {format}: {got:?}");
            let path = format!("/v1/external/webhooks/{}", made.id);
            app.delete(&path, &tenant.key).await;
        }
    }
    app.stop().await;
}

// D5, S5: only the signature differs from one attempt to the next.
async fn every_attempt_sends_the_same(db: Db) {
    let app = TestApp::start(&db).await;
    let tenant = app.tenant("acme").await;
    for format in ["CLOUDEVENTS_STRUCTURED", "CLOUDEVENTS_BINARY"] {
        let (made, sink) = subscribed(&app, &tenant, json!({"payload_format": format})).await;
        sink.behave(Behaviour {
            fail_next: Some(1),
            ..Behaviour::default()
        });
        app.publish(&tenant.key, "a.b", json!({"n": 1})).await;
        let got = received(&sink, 2).await;
        assert_eq!(message(&got[0]), message(&got[1]));
        assert_eq!(got[1].headers["x-webhook-attempt"], "2");
        assert_eq!(
            [got[0].verified, got[1].verified],
            [Some(true); 2],
            "{format}"
        );
        let path = format!("/v1/external/webhooks/{}", made.id);
        app.delete(&path, &tenant.key).await;
    }
    app.stop().await;
}
