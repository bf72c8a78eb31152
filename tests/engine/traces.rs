//! Trace contexts and request ids, from the publisher to the receiver.

use http_body_util::Full;
use onering::proto::v1::{
    PublishEventRequest, PublishEventsRequest, TestSubscriptionRequest,
    publish_event_request::Payload,
};
use serde_json::{Value, json};

use super::scene::quick;
use crate::support::{
    app::{Answer, TestApp, eventually},
    receiver::{Received, Receiver, status},
    store::Db,
};

contract![
    what_the_publisher_sends_arrives,
    grpc_metadata_is_the_same,
    without_a_context_there_is_none,
    each_attempt_is_a_span,
    what_was_stored_is_sent,
    a_cloudevent_carries_its_trace,
    a_repetition_keeps_the_first_trace,
    they_are_not_for_subscriptions_to_set,
];

const EVENTS: &str = "/v1/external/events";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const OTHER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
const EVENT: &str = r#"{"event_type":"a.b","data":{}}"#;

async fn post(app: &TestApp, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = app.request("POST", path, &app.admin);
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = app
        .send(request.body(Full::from(body.to_owned())).unwrap())
        .await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer
}

/// The span that a delivery came in, of that trace.
#[track_caller]
fn span_of(received: &Received, trace: &str) -> String {
    let parent = received.header("traceparent");
    let fields: Vec<&str> = parent.split('-').collect();
    assert_eq!(
        (fields.len(), fields[0], fields[1]),
        (4, "00", trace),
        "{parent}"
    );
    assert!(
        fields[2].len() == 16 && fields[2] != "0000000000000000",
        "{parent}"
    );
    assert_ne!(fields[2], "b7ad6b7169203331", "the caller's own span");
    fields[2].to_owned()
}

// D8: single and in a batch, also with headers that only resemble a context.
async fn what_the_publisher_sends_arrives(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    let headers = [
        ("traceparent", PARENT),
        ("tracestate", "a=1, b@x=two words"),
        ("tracestate", "c=3"),
        ("x-request-id", "from/the-caller"),
    ];
    post(&app, EVENTS, &headers, EVENT).await;
    let batch = format!(r#"{{"events":[{EVENT},{EVENT}]}}"#);
    post(&app, "/v1/external/events/batch", &headers, &batch).await;
    let test = format!("/v1/external/webhooks/{}/test", sub.id);
    post(&app, &test, &headers, "{}").await;
    let mut spans = Vec::new();
    for received in receiver.wait(4).await {
        spans.push(span_of(&received, TRACE));
        assert!(received.header("traceparent").ends_with("-01"));
        assert_eq!(received.header("tracestate"), "a=1,b@x=two words,c=3");
        assert_eq!(received.header("x-request-id"), "from/the-caller");
    }
    spans.sort_unstable();
    spans.dedup();
    assert_eq!(spans.len(), 4);
    // What is none is ignored, with its state; nobody is refused for it.
    let good = ("x-request-id", "id");
    for (n, headers) in [
        vec![("traceparent", "00-1"), ("tracestate", "a=1"), good],
        vec![("traceparent", PARENT), ("traceparent", OTHER), good],
        vec![("tracestate", "a=1"), good],
    ]
    .iter()
    .enumerate()
    {
        post(&app, EVENTS, headers, EVENT).await;
        let received = &receiver.wait(5 + n).await[4 + n];
        for name in ["traceparent", "tracestate"] {
            assert!(!received.headers.contains_key(name), "{headers:?}");
        }
        assert_eq!(received.header("x-request-id"), "id");
    }
    let headers = [("traceparent", PARENT), ("tracestate", "a=1,=")];
    post(&app, EVENTS, &headers, EVENT).await;
    let received = &receiver.wait(8).await[7];
    span_of(received, TRACE);
    assert!(!received.headers.contains_key("tracestate"));
    app.stop().await;
}

fn traced<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    for (name, value) in [
        ("traceparent", PARENT),
        ("tracestate", "a=1"),
        ("x-request-id", "over-grpc"),
    ] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    request
}

// D8
async fn grpc_metadata_is_the_same(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    let one = PublishEventRequest {
        event_type: "a.b".into(),
        payload: Some(Payload::DataJson("{}".into())),
        ..Default::default()
    };
    let mut grpc = app.grpc(&app.admin);
    grpc.events
        .publish_event(traced(one.clone()))
        .await
        .unwrap();
    let batch = PublishEventsRequest { events: vec![one] };
    grpc.events.publish_events(traced(batch)).await.unwrap();
    let test = TestSubscriptionRequest { id: sub.id };
    grpc.subscriptions
        .test_subscription(traced(test))
        .await
        .unwrap();
    for received in receiver.wait(3).await {
        span_of(&received, TRACE);
        assert_eq!(received.header("tracestate"), "a=1");
        assert_eq!(received.header("x-request-id"), "over-grpc");
    }
    app.stop().await;
}

// D8: no trace is made up; the id of the call is what its answer had.
async fn without_a_context_there_is_none(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    app.webhook(&receiver.url(), json!({})).await;
    let answer = post(&app, EVENTS, &[], EVENT).await;
    let received = &receiver.wait(1).await[0];
    assert!(!received.headers.contains_key("traceparent"));
    assert!(received.header("x-request-id").starts_with("req_"));
    assert_eq!(
        received.header("x-request-id"),
        answer.header("x-request-id")
    );
    let delivery = app
        .only_delivery_of(answer.json()["id"].as_str().unwrap())
        .await;
    app.is(&delivery, "DELIVERED").await;
    let attempt = &app.attempts(&delivery).await[0];
    assert_eq!(attempt["traceparent"], "");
    assert_eq!(attempt["request_id"], answer.header("x-request-id"));
    app.stop().await;
}

/// What the log says of a delivery's attempts, beside what the receiver got.
async fn logged_as_received(app: &TestApp, delivery: &str, received: &[Received]) {
    let attempts = app.attempts(delivery).await;
    let logged: Vec<(&Value, &Value)> = attempts
        .iter()
        .map(|a| (&a["traceparent"], &a["request_id"]))
        .collect();
    let got: Vec<(Value, Value)> = received
        .iter()
        .map(|r| {
            (
                json!(r.header("traceparent")),
                json!(r.header("x-request-id")),
            )
        })
        .collect();
    assert_eq!(logged, got.iter().map(|(a, b)| (a, b)).collect::<Vec<_>>());
}

// D8: the same trace, a span for each attempt, and the log tells which.
async fn each_attempt_is_a_span(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::answering(|r| status(if r.attempt() < 3 { 503 } else { 400 })).await;
    app.webhook(&receiver.url(), json!({"retry_schedule": quick(3)}))
        .await;
    let headers = [
        ("traceparent", PARENT),
        ("tracestate", "a=1"),
        ("x-request-id", "mine"),
    ];
    let event = post(&app, EVENTS, &headers, EVENT).await.json();
    let delivery = app.only_delivery_of(event["id"].as_str().unwrap()).await;
    app.is(&delivery, "DEAD").await;
    // By hand, too.
    app.retry(&delivery).await.ok();
    let received = receiver.wait(4).await;
    let mut spans: Vec<String> = received.iter().map(|r| span_of(r, TRACE)).collect();
    spans.sort_unstable();
    spans.dedup();
    assert_eq!(spans.len(), 4);
    assert!(received.iter().all(|r| r.header("tracestate") == "a=1"));
    eventually("four attempts are logged", || async {
        (app.attempts(&delivery).await.len() == 4).then_some(())
    })
    .await;
    logged_as_received(&app, &delivery, &received).await;
    app.stop().await;
}

// D8: from the store, after a restart, and where nothing was leased in memory.
async fn what_was_stored_is_sent(db: Db) {
    let app = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_ENABLED", 0)
        .start()
        .await;
    let receiver = Receiver::answering(|r| status(if r.attempt() < 2 { 503 } else { 200 })).await;
    app.webhook(&receiver.url(), json!({"retry_schedule": quick(3)}))
        .await;
    let headers = [
        ("traceparent", OTHER),
        ("tracestate", "a=1"),
        ("x-request-id", "kept"),
    ];
    let event = post(&app, EVENTS, &headers, EVENT).await.json();
    let delivery = app.only_delivery_of(event["id"].as_str().unwrap()).await;
    let again = app.again().set("WEBHOOKS_DELIVERY_ENABLED", 1);
    app.stop().await;
    let app = again.start().await;
    app.is(&delivery, "DELIVERED").await;
    let received = receiver.wait(2).await;
    let trace = &OTHER[3..35];
    assert_ne!(span_of(&received[0], trace), span_of(&received[1], trace));
    for one in &received {
        assert!(one.header("traceparent").ends_with("-00"));
        assert_eq!(one.header("tracestate"), "a=1");
        assert_eq!(one.header("x-request-id"), "kept");
    }
    logged_as_received(&app, &delivery, &received).await;
    app.stop().await;
}

// D8, D5: the extension's attributes come in and go out, the same at every attempt.
async fn a_cloudevent_carries_its_trace(db: Db) {
    const STRUCTURED: &str = "application/cloudevents+json";
    let app = TestApp::start(&db).await;
    let answering = || Receiver::answering(|r| status(if r.attempt() < 2 { 503 } else { 200 }));
    let (whole, binary, plain) = (answering().await, answering().await, answering().await);
    let with = |format: &str| json!({"payload_format": format, "retry_schedule": quick(2)});
    app.webhook(&whole.url(), with("CLOUDEVENTS_STRUCTURED"))
        .await;
    app.webhook(&binary.url(), with("CLOUDEVENTS_BINARY")).await;
    app.webhook(&plain.url(), with("STANDARD")).await;
    let state = r#"a=say \"x\\,b=2 %"#;
    let body = format!(
        r#"{{"specversion":"1.0","id":"1","source":"/a","type":"a.b","traceparent":"{PARENT}","tracestate":"{state}"}}"#
    );
    post(&app, EVENTS, &[("content-type", STRUCTURED)], &body).await;
    for received in plain.wait(2).await {
        span_of(&received, TRACE);
        assert_eq!(received.header("tracestate"), r#"a=say "x\,b=2 %"#);
    }
    for received in whole.wait(2).await {
        span_of(&received, TRACE);
        let event: Value = serde_json::from_slice(&received.body).unwrap();
        assert_eq!(event["traceparent"], PARENT);
        assert_eq!(event["tracestate"], r#"a=say "x\,b=2 %"#);
        assert_eq!(event["data"], Value::Null);
    }
    for received in binary.wait(2).await {
        span_of(&received, TRACE);
        assert_eq!(received.header("ce-traceparent"), PARENT);
        assert_eq!(received.header("ce-tracestate"), "a=say%20%22x\\,b=2%20%25");
    }
    // The call's own context is nearer than the attribute; one that is none is not.
    let binary_mode = |id: &'static str| {
        vec![
            ("ce-specversion", "1.0"),
            ("ce-id", id),
            ("ce-source", "/a"),
            ("ce-type", "a.b"),
            ("ce-traceparent", OTHER),
            ("ce-tracestate", "a=%31"),
        ]
    };
    let both = [
        binary_mode("2"),
        vec![("traceparent", PARENT), ("tracestate", "b=2")],
    ]
    .concat();
    post(&app, EVENTS, &both, "1").await;
    let received = &plain.wait(4).await[2];
    span_of(received, TRACE);
    assert_eq!(received.header("tracestate"), "b=2");
    let bad = [binary_mode("3"), vec![("traceparent", "none")]].concat();
    post(&app, EVENTS, &bad, "1").await;
    let received = &plain.wait(6).await[4];
    span_of(received, &OTHER[3..35]);
    assert_eq!(received.header("tracestate"), "a=1");
    // An attribute of another kind is no reason to refuse an event.
    let body = r#"{"specversion":"1.0","id":"4","source":"/a","type":"a.b","traceparent":7}"#;
    post(&app, EVENTS, &[("content-type", STRUCTURED)], body).await;
    assert!(!plain.wait(8).await[6].headers.contains_key("traceparent"));
    app.stop().await;
}

// D2, D8
async fn a_repetition_keeps_the_first_trace(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    app.webhook(&receiver.url(), json!({})).await;
    for parent in [PARENT, OTHER] {
        let headers = [("traceparent", parent), ("idempotency-key", "k")];
        post(&app, EVENTS, &headers, EVENT).await;
    }
    span_of(&receiver.wait(1).await[0], TRACE);
    app.stop().await;
    assert_eq!(receiver.count(), 1);
}

// D3, D8
async fn they_are_not_for_subscriptions_to_set(db: Db) {
    let app = TestApp::start(&db).await;
    for name in [
        "Traceparent",
        "tracestate",
        "X-Request-Id",
        "ce-traceparent",
        "CE-Tracestate",
    ] {
        let body = json!({"url": "http://127.0.0.1:9/", "headers": {name: "x"}});
        let refused = app.post("/v1/external/webhooks", &app.admin, body).await;
        let problem = refused.refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], format!("headers[{name:?}]"));
    }
    app.stop().await;
}
