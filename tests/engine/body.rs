//! The body that is sent.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use http_body_util::Full;
use onering::proto::v1::{PublishEventRequest, publish_event_request::Payload};
use prost_types::{ListValue, Struct, value::Kind};
use serde_json::{Value, json};

use super::scene::{micros, quick};
use crate::support::{
    app::TestApp,
    receiver::{Receiver, status},
    store::Db,
};

contract![
    data_is_kept_as_it_was_written,
    data_over_grpc,
    what_is_not_json_is_refused,
    each_attempt_has_the_same_bytes,
];

/// Payloads that a detour through doubles, maps or escapes would change.
const PAYLOADS: [&str; 12] = [
    r#"{"z":1,"a":2,"m":{"b":[],"a":{}}}"#,
    "9007199254740993",
    "123456789012345678901234567890",
    "[1.0,1.50,-0,-0.0,1e400,1E+2,0.1e-7]",
    r#"{"a":1,"a":2}"#,
    r#""\u00fc\u0041\/\ud83d\ude00 ü😀""#,
    r#"{ "spaces" :  [ 1 ,2 ] }"#,
    "{\n\t\"lines\": true\r\n}",
    "null",
    "\"\\u0000\"",
    "\"\"",
    "[[[[[[[[]]]]]]]]",
];

async fn publish(app: &TestApp, data: &[u8]) -> crate::support::app::Answer {
    let body = [br#"{"event_type":"a.b","data":"#, data, b"}"].concat();
    let request = app
        .request("POST", "/v1/external/events", &app.admin)
        .header("content-type", "application/json");
    app.send(request.body(Full::new(Bytes::from(body))).unwrap())
        .await
}

// D5
async fn data_is_kept_as_it_was_written(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    app.webhook(&receiver.url(), json!({})).await;
    for (n, data) in PAYLOADS.iter().enumerate() {
        let made = publish(&app, data.as_bytes()).await.ok();
        let received = &receiver.wait(n + 1).await[n];
        assert_eq!(received.data(), *data);
        let whole = std::str::from_utf8(&received.body).unwrap();
        let (id, time) = (made["id"].as_str().unwrap(), envelope_time(whole));
        let beginning = format!(r#"{{"id":"{id}","type":"a.b","timestamp":"{time}","data":"#);
        assert!(whole.starts_with(&beginning), "{whole}");
        assert_eq!(micros(&json!(time)), micros(&made["create_time"]));
        // It reads back as it was written, too.
        let read = app
            .get(&format!("/v1/external/events/{id}"), &app.admin)
            .await;
        assert!(read.text().contains(data), "{}", read.text());
    }
    app.stop().await;
}

fn envelope_time(body: &str) -> &str {
    let (_, rest) = body.split_once(r#""timestamp":""#).unwrap();
    rest.split_once('"').unwrap().0
}

async fn publish_grpc(app: &TestApp, payload: Payload) -> tonic::Result<()> {
    let request = PublishEventRequest {
        event_type: "a.b".into(),
        payload: Some(payload),
        ..Default::default()
    };
    app.grpc(&app.admin)
        .events
        .publish_event(request)
        .await
        .map(|_| ())
}

// D5: as bytes it is kept; as a `Value` its numbers are doubles.
async fn data_over_grpc(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    app.webhook(&receiver.url(), json!({})).await;
    for (n, data) in PAYLOADS.iter().enumerate() {
        let payload = Payload::DataJson(Bytes::from_static(data.as_bytes()));
        publish_grpc(&app, payload).await.unwrap();
        assert_eq!(receiver.wait(n + 1).await[n].data(), *data);
    }
    let value = |kind| prost_types::Value { kind: Some(kind) };
    let list = ListValue {
        values: vec![value(Kind::NumberValue(1.5)), value(Kind::NullValue(0))],
    };
    let fields = BTreeMap::from([
        ("list".to_owned(), value(Kind::ListValue(list))),
        ("text".to_owned(), value(Kind::StringValue("a\"b".into()))),
        ("whole".to_owned(), value(Kind::NumberValue(42.0))),
        ("yes".to_owned(), value(Kind::BoolValue(true))),
    ]);
    publish_grpc(
        &app,
        Payload::Data(value(Kind::StructValue(Struct { fields }))),
    )
    .await
    .unwrap();
    let received = receiver.wait(PAYLOADS.len() + 1).await;
    let data: Value = serde_json::from_str(&received[PAYLOADS.len()].data()).unwrap();
    assert_eq!(
        data,
        json!({"list": [1.5, null], "text": "a\"b", "whole": 42, "yes": true})
    );
    app.stop().await;
}

// D5
async fn what_is_not_json_is_refused(db: Db) {
    let app = TestApp::start(&db).await;
    for bad in [
        "",
        "{",
        "NaN",
        "'a'",
        "01",
        "{\"a\":1,}",
        "\"\u{1}\"",
        "[1 2]",
    ] {
        let answer = publish(&app, bad.as_bytes()).await;
        answer.refused(400, "INVALID_ARGUMENT");
        let payload = Payload::DataJson(Bytes::from_static(bad.as_bytes()));
        let refused = publish_grpc(&app, payload).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{bad}");
    }
    publish(&app, b"\"\xff\"")
        .await
        .refused(400, "INVALID_ARGUMENT");
    app.stop().await;
}

// D5, S5: the same bytes, each time with a signature of its own.
async fn each_attempt_has_the_same_bytes(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::answering(|r| status(if r.attempt() < 4 { 503 } else { 200 })).await;
    app.webhook(&receiver.url(), json!({"retry_schedule": quick(5)}))
        .await;
    publish(&app, PAYLOADS[3].as_bytes()).await.ok();
    let received = receiver.wait(4).await;
    let same = |what: &dyn Fn(&crate::support::receiver::Received) -> Vec<u8>| {
        received.iter().map(what).collect::<HashSet<_>>().len()
    };
    assert_eq!(same(&|r| r.body.to_vec()), 1);
    assert_eq!(same(&|r| r.header("x-webhook-id").into()), 1);
    assert_eq!(same(&|r| r.header("webhook-id").into()), 1);
    assert_eq!(same(&|r| r.header("webhook-timestamp").into()), 4);
    assert_eq!(same(&|r| r.header("webhook-signature").into()), 4);
    let numbers: Vec<u32> = received
        .iter()
        .map(crate::support::receiver::Received::attempt)
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    app.stop().await;
}
