//! Publishing the same thing again.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Full;
use serde_json::json;

use crate::support::{
    app::{Answer, TestApp},
    receiver::Receiver,
    store::Db,
};

contract![
    the_first_answer_is_given_again,
    another_body_is_refused,
    many_at_once_are_one_event,
    it_survives_a_restart,
];
on_postgres_alone![two_nodes_know_each_others_keys];

async fn publish(app: &TestApp, caller: &str, key: &str, body: &str) -> Answer {
    let request = app
        .request("POST", "/v1/external/events", caller)
        .header("content-type", "application/json")
        .header("idempotency-key", key);
    app.send(
        request
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap(),
    )
    .await
}

const BODY: &str = r#"{"event_type":"a.b","data":{"n":1}}"#;
const ANOTHER: &str = r#"{"event_type":"a.b","data":{"n":2}}"#;

// D2
async fn the_first_answer_is_given_again(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    app.webhook(&receiver.url(), json!({})).await;
    let first = publish(&app, &app.admin, "order-1", BODY).await;
    assert_eq!(
        (first.status, first.header("idempotent-replayed")),
        (202, "")
    );
    let again = publish(&app, &app.admin, "order-1", BODY).await;
    assert_eq!(
        (again.status, again.header("idempotent-replayed")),
        (202, "true")
    );
    assert_eq!(first.body, again.body);
    let other = publish(&app, &app.admin, "order-2", BODY).await;
    assert_ne!(other.json()["id"], first.json()["id"]);
    // Over gRPC it is the same key.
    let request = onering::proto::v1::PublishEventRequest {
        event_type: "a.b".into(),
        idempotency_key: "order-1".into(),
        payload: Some(
            onering::proto::v1::publish_event_request::Payload::DataJson(
                br#"{"n":1}"#.to_vec().into(),
            ),
        ),
        ..Default::default()
    };
    let over_grpc = app
        .grpc(&app.admin)
        .events
        .publish_event(request)
        .await
        .unwrap();
    assert_eq!(
        over_grpc.metadata().get("idempotent-replayed").unwrap(),
        "true"
    );
    assert_eq!(over_grpc.get_ref().id, first.json()["id"].as_str().unwrap());
    // Keys are the tenant's own.
    let tenant = app.tenant("other").await;
    let elsewhere = publish(&app, &tenant.key, "order-1", BODY).await;
    assert_eq!(elsewhere.header("idempotent-replayed"), "");
    assert_ne!(elsewhere.json()["id"], first.json()["id"]);
    let received = receiver.wait(2).await;
    assert_eq!(received.len(), 2, "one delivery for each event");
    app.stop().await;
}

// D2
async fn another_body_is_refused(db: Db) {
    let app = TestApp::start(&db).await;
    publish(&app, &app.admin, "k", BODY).await.ok();
    for other in [
        ANOTHER,
        r#"{"event_type":"a.b","data":{"n":1.0}}"#,
        r#"{"event_type":"a.c","data":{"n":1}}"#,
    ] {
        let answer = publish(&app, &app.admin, "k", other).await;
        answer.refused(409, "IDEMPOTENCY_KEY_REUSED");
    }
    app.stop().await;
}

/// Publishes two bodies under one key, each from all sides: one of the two is the
/// event of all who brought it, and the other one is refused.
async fn race(apps: &[&TestApp], key: &str) {
    let bodies = [BODY, ANOTHER];
    let calls = (0..24).map(|n| {
        let app = apps[n / 2 % apps.len()];
        publish(app, &apps[0].admin, key, bodies[n % 2])
    });
    let answers = join_all(calls).await;
    let won = answers.iter().position(|a| a.status == 202);
    let won = won.expect("one of them made it") % 2;
    for refused in answers.iter().skip(1 - won).step_by(2) {
        refused.refused(409, "IDEMPOTENCY_KEY_REUSED");
    }
    let accepted: Vec<&Answer> = answers.iter().skip(won).step_by(2).collect();
    assert!(accepted.iter().all(|a| a.status == 202), "{accepted:?}");
    let ids: HashSet<String> = accepted
        .iter()
        .map(|a| a.json()["id"].to_string())
        .collect();
    assert_eq!(ids.len(), 1);
    let first = accepted
        .iter()
        .filter(|a| a.header("idempotent-replayed").is_empty());
    assert_eq!(first.count(), 1, "one of them made it");
}

// D2
async fn many_at_once_are_one_event(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    for n in 0..5 {
        race(&[&app], &format!("race-{n}")).await;
        race(&[&app], &format!("018f4e5a-7c3b-7000-8000-00000000000{n}")).await;
    }
    app.wait_for(&sub.id, "DELIVERED", 10).await;
    app.stop().await;
}

// D2
async fn two_nodes_know_each_others_keys(db: Db) {
    let one = TestApp::start(&db).await;
    let other = one.again().start().await;
    for n in 0..5 {
        race(&[&one, &other], &format!("race-{n}")).await;
    }
    publish(&one, &one.admin, "k", BODY).await.ok();
    let different = r#"{"event_type":"a.b","data":0}"#;
    let answer = publish(&other, &one.admin, "k", different).await;
    answer.refused(409, "IDEMPOTENCY_KEY_REUSED");
    other.stop().await;
    one.stop().await;
}

// D2
async fn it_survives_a_restart(db: Db) {
    let app = TestApp::start(&db).await;
    let first = publish(&app, &app.admin, "k", BODY).await.ok();
    let again = app.again();
    app.stop().await;
    let app = again.start().await;
    let answer = publish(&app, &app.admin, "k", BODY).await;
    assert_eq!(answer.header("idempotent-replayed"), "true");
    assert_eq!(answer.ok(), first);
    app.stop().await;
}
