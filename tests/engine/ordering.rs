//! Ordering keys as publishers, owners of subscriptions and receivers see them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::Full;
use onering::proto::v1::{PublishEventRequest, publish_event_request::Payload};
use serde_json::{Value, json};

use super::scene::quick;
use crate::support::{
    app::TestApp,
    receiver::{Receiver, status},
    store::Db,
};

contract![
    a_failing_receiver_gets_them_in_order,
    a_dead_one_blocks_until_it_is_retried_or_skipped,
    a_parked_key_is_shown_and_freed,
    skipping_goes_on,
    a_purge_frees_keys_and_a_redrive_keeps_their_order,
    an_ordering_is_changed_with_a_backlog,
    every_way_of_publishing_has_a_key,
    what_is_wrong_is_named,
];
on_postgres_alone![two_nodes_keep_one_order];

/// Publishes to the tenant `default`: the event's id.
async fn publish(app: &TestApp, key: &str, n: usize) -> String {
    let body = json!({"event_type": "a.b", "ordering_key": key, "data": {"key": key, "n": n}});
    let made = app.post("/v1/external/events", &app.admin, body).await;
    made.ok()["id"].as_str().unwrap().to_owned()
}

/// What was received and answered with 200, by key, in its order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<HashMap<String, Vec<usize>>>>);

impl Log {
    fn add(&self, data: &str) {
        let data: Value = serde_json::from_str(data).unwrap();
        let key = data["key"].as_str().unwrap().to_owned();
        let n = usize::try_from(data["n"].as_u64().unwrap()).unwrap();
        self.0.lock().unwrap().entry(key).or_default().push(n);
    }

    fn of(&self, key: &str) -> Vec<usize> {
        let log = self.0.lock().unwrap();
        log.get(key).cloned().unwrap_or_default()
    }

    async fn wait(&self, key: &str, wanted: &[usize]) {
        crate::support::wait::until(&format!("{wanted:?} of {key}"), async || {
            let got = self.of(key);
            assert!(wanted.starts_with(&got), "{got:?} of {key}");
            (got == wanted).then_some(())
        })
        .await;
    }
}

// A9: key `a` fails on the way and its followers wait; the others go on meanwhile.
async fn a_failing_receiver_gets_them_in_order(db: Db) {
    let app = TestApp::start(&db).await;
    let log = Log::default();
    let (noted, up) = (log.clone(), Arc::new(AtomicBool::new(false)));
    let is_up = up.clone();
    let receiver = Receiver::answering(move |r| {
        let data = r.data();
        if data.contains(r#""a""#) && data.contains(r#""n":1"#) && !is_up.load(Ordering::SeqCst) {
            return status(503);
        }
        noted.add(&data);
        status(200)
    })
    .await;
    app.webhook(
        &receiver.url(),
        json!({"ordering": "BLOCK", "retry_schedule": quick(20)}),
    )
    .await;
    for n in 0..6 {
        for key in ["a", "b", "c"] {
            publish(&app, key, n).await;
        }
    }
    let all: Vec<usize> = (0..6).collect();
    log.wait("b", &all).await;
    log.wait("c", &all).await;
    assert_eq!(log.of("a"), [0]);
    up.store(true, Ordering::SeqCst);
    log.wait("a", &all).await;
    app.stop().await;
}

/// A receiver that refuses `n` = 0 for good, and notes the others.
async fn refusing_first() -> (Receiver, Log, Arc<AtomicBool>) {
    let (log, well) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let (noted, is_well) = (log.clone(), well.clone());
    let receiver = Receiver::answering(move |r| {
        if r.data().contains(r#""n":0"#) && !is_well.load(Ordering::SeqCst) {
            return status(400);
        }
        noted.add(&r.data());
        status(200)
    })
    .await;
    (receiver, log, well)
}

/// Publishes 0 and 1 of a key, the first of which dies: their deliveries.
async fn blocked(app: &TestApp, key: &str) -> [String; 2] {
    let (dead, behind) = (publish(app, key, 0).await, publish(app, key, 1).await);
    let dead = app.only_delivery_of(&dead).await;
    app.is(&dead, "DEAD").await;
    [dead, app.only_delivery_of(&behind).await]
}

async fn skip(app: &TestApp, delivery: &str) -> crate::support::app::Answer {
    let path = format!("/v1/external/deliveries/{delivery}/skip");
    app.post(&path, &app.admin, json!({})).await
}

// A9: retried to success, or skipped by hand; a retry of one behind changes nothing.
async fn a_dead_one_blocks_until_it_is_retried_or_skipped(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, log, well) = refusing_first().await;
    let sub = app
        .webhook(&receiver.url(), json!({"ordering": "BLOCK"}))
        .await;
    assert_eq!(app.subscription(&sub.id).await["ordering"], "BLOCK");
    let [dead, behind] = blocked(&app, "skipped").await;
    let waits = app.delivery(&behind).await;
    assert_eq!(waits["status"], "PENDING");
    assert!(waits["next_attempt_time"].is_null(), "{waits}");
    app.retry(&behind).await.ok();
    skip(&app, &behind)
        .await
        .refused(409, "FAILED_PRECONDITION");
    // Another key's whole way shows that nothing of this one moves.
    let other = publish(&app, "other", 7).await;
    app.is(&app.only_delivery_of(&other).await, "DELIVERED")
        .await;
    assert_eq!(app.delivery(&behind).await["status"], "PENDING");
    assert_eq!(skip(&app, &dead).await.ok()["status"], "DEAD");
    app.is(&behind, "DELIVERED").await;

    let [dead, behind] = blocked(&app, "retried").await;
    well.store(true, Ordering::SeqCst);
    app.retry(&dead).await.ok();
    app.is(&dead, "DELIVERED").await;
    app.is(&behind, "DELIVERED").await;
    assert_eq!(log.of("skipped"), [1]);
    assert_eq!(log.of("retried"), [0, 1]);
    app.stop().await;
}

// A9, A1
async fn a_parked_key_is_shown_and_freed(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, log, _) = refusing_first().await;
    let sub = app
        .webhook(&receiver.url(), json!({"ordering": "PARK"}))
        .await;
    let [dead, behind] = blocked(&app, "k").await;
    assert_eq!(app.delivery(&behind).await["status"], "PARKED");
    let parked = app.with_status(&sub.id, "PARKED").await;
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0]["id"], behind);
    assert_eq!(app.with_status(&sub.id, "PENDING").await.len(), 0);
    skip(&app, &dead).await.ok();
    app.is(&behind, "DELIVERED").await;
    assert_eq!(log.of("k"), [1]);
    app.stop().await;
}

// A9
async fn skipping_goes_on(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, log, _) = refusing_first().await;
    app.webhook(&receiver.url(), json!({"ordering": "SKIP"}))
        .await;
    for n in 0..4 {
        publish(&app, "k", n).await;
    }
    log.wait("k", &[1, 2, 3]).await;
    app.stop().await;
}

// A9, A5: what is purged holds nobody up; what is redriven goes before those behind it.
async fn a_purge_frees_keys_and_a_redrive_keeps_their_order(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, log, well) = refusing_first().await;
    let sub = app
        .webhook(&receiver.url(), json!({"ordering": "BLOCK"}))
        .await;
    let filter = json!({"subscription_id": sub.id});
    let [_, behind] = blocked(&app, "purged").await;
    let body = json!({"filter": filter, "all": true, "reason": "a test"});
    let path = "/v1/admin/dead-letters/purge";
    app.post(path, &app.admin, body).await.ok();
    app.is(&behind, "DELIVERED").await;
    assert_eq!(log.of("purged"), [1]);

    let [dead, behind] = blocked(&app, "redriven").await;
    well.store(true, Ordering::SeqCst);
    let body = json!({"filter": filter, "reason": "a test"});
    let path = "/v1/admin/dead-letters/redrive";
    app.post(path, &app.admin, body).await.ok();
    app.is(&dead, "DELIVERED").await;
    app.is(&behind, "DELIVERED").await;
    assert_eq!(log.of("redriven"), [0, 1]);
    app.stop().await;
}

// A9: switched on it holds for what is published then; switched off, or to another
// mode, what is blocked goes on.
async fn an_ordering_is_changed_with_a_backlog(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, _, _) = refusing_first().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    assert_eq!(app.subscription(&sub.id).await["ordering"], "OFF");
    let [_, behind] = blocked(&app, "k").await;
    app.is(&behind, "DELIVERED").await;
    for to in ["SKIP", "OFF"] {
        app.change(&sub.id, json!({"ordering": "BLOCK"})).await;
        let [_, behind] = blocked(&app, to).await;
        assert_eq!(app.delivery(&behind).await["status"], "PENDING");
        let changed = app.change(&sub.id, json!({"ordering": to})).await;
        assert_eq!(changed["ordering"], to);
        app.is(&behind, "DELIVERED").await;
    }
    app.change(&sub.id, json!({"ordering": "BLOCK"})).await;
    let [_, behind] = blocked(&app, "gone").await;
    let path = format!("/v1/external/webhooks/{}", sub.id);
    app.delete(&path, &app.admin).await.ok();
    app.is(&behind, "CANCELLED").await;
    app.stop().await;
}

// A9: REST, batch, gRPC, CloudEvents in both modes.
async fn every_way_of_publishing_has_a_key(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, log, well) = refusing_first().await;
    app.webhook(&receiver.url(), json!({"ordering": "BLOCK"}))
        .await;
    let [dead, _] = blocked(&app, "k").await;
    let one =
        |n: usize| json!({"event_type": "a.b", "ordering_key": "k", "data": {"key": "k", "n": n}});
    let batch = json!({"events": (2..30).map(one).collect::<Vec<_>>()});
    let path = "/v1/external/events/batch";
    app.post(path, &app.admin, batch).await.ok();
    let request = PublishEventRequest {
        event_type: "a.b".into(),
        ordering_key: "k".into(),
        payload: Some(Payload::DataJson(Bytes::from_static(
            br#"{"key":"k","n":30}"#,
        ))),
        ..Default::default()
    };
    let published = app.grpc(&app.admin).events.publish_event(request).await;
    published.unwrap();
    let structured = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "a.b",
        "partitionkey": "k", "data": {"key": "k", "n": 31}});
    let request = app
        .request("POST", "/v1/external/events", &app.admin)
        .header("content-type", "application/cloudevents+json");
    let body = Full::from(structured.to_string());
    app.send(request.body(body).unwrap()).await.ok();
    let request = app
        .request("POST", "/v1/external/events", &app.admin)
        .header("content-type", "application/json")
        .header("ce-specversion", "1.0")
        .header("ce-id", "2")
        .header("ce-source", "/s")
        .header("ce-type", "a.b")
        .header("ce-partitionkey", "%6b");
    let body = Full::from(r#"{"key":"k","n":32}"#);
    app.send(request.body(body).unwrap()).await.ok();
    // Without a key it waits for nothing.
    let body = json!({"event_type": "a.b", "data": {"key": "none", "n": 1}});
    app.post("/v1/external/events", &app.admin, body).await.ok();
    log.wait("none", &[1]).await;
    assert_eq!(log.of("k"), [0; 0]);
    well.store(true, Ordering::SeqCst);
    app.retry(&dead).await.ok();
    let all: Vec<usize> = (0..33).collect();
    log.wait("k", &all).await;
    app.stop().await;
}

// A9, E1
async fn what_is_wrong_is_named(db: Db) {
    let app = TestApp::start(&db).await;
    for key in ["x".repeat(129), "a\nb".to_owned()] {
        let body = json!({"event_type": "a.b", "ordering_key": key, "data": {}});
        let answer = app.post("/v1/external/events", &app.admin, body).await;
        let problem = answer.refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], "ordering_key");
    }
    let body = json!({"url": "http://127.0.0.1:9/", "ordering": 9});
    let answer = app.post("/v1/external/webhooks", &app.admin, body).await;
    let problem = answer.refused(400, "INVALID_ARGUMENT");
    assert_eq!(problem["errors"][0]["field"], "ordering");
    for (wrong, field) in [(json!(""), "partitionkey"), (json!(5), "partitionkey")] {
        let event = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "a.b",
            "partitionkey": wrong, "data": {}});
        let request = app
            .request("POST", "/v1/external/events", &app.admin)
            .header("content-type", "application/cloudevents+json");
        let answer = app.send(request.body(Full::from(event.to_string())).unwrap());
        let problem = answer.await.refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], field);
    }
    app.stop().await;
}

// A9, N2: published to both, in turns; whichever sends.
async fn two_nodes_keep_one_order(db: Db) {
    let one = TestApp::start(&db).await;
    let two = one.again().start().await;
    let log = Log::default();
    let noted = log.clone();
    let receiver = Receiver::answering(move |r| {
        noted.add(&r.data());
        status(200)
    })
    .await;
    one.webhook(&receiver.url(), json!({"ordering": "BLOCK"}))
        .await;
    for n in 0..20 {
        publish(if n % 2 == 0 { &one } else { &two }, "k", n).await;
    }
    let all: Vec<usize> = (0..20).collect();
    log.wait("k", &all).await;
    one.stop().await;
    two.stop().await;
}
