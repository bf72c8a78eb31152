//! Workers that send the HTTP themselves.

use onering::proto::v1::{
    SubscriptionKind,
    worker_message::{Filter, Open, Outcome, Result as What},
};
use serde_json::{Value, json};

use super::client::{Worker, open};
use crate::support::{
    app::{Subscribed, TestApp},
    store::Db,
};

contract![
    a_relays_outcomes_are_as_if_sent_here,
    a_signature_that_is_too_old_is_made_again,
    without_relays_webhooks_wait,
    a_window_may_come_later,
];

fn relay(max_messages: i32) -> Open {
    Open {
        filter: Some(Filter {
            kinds: vec![SubscriptionKind::Webhook.into()],
            ..Filter::default()
        }),
        ..open("relay", max_messages)
    }
}

async fn without_embedded(db: &Db) -> TestApp {
    TestApp::builder(db).set("EMBEDDED_WORKER", 0).start().await
}

async fn webhook(app: &TestApp, more: Value) -> Subscribed {
    let mut wanted = json!({"url": "http://127.0.0.1:9/hook?a=1"});
    let fields = wanted.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    app.subscribe(&app.admin, wanted).await
}

#[allow(clippy::unnecessary_wraps, reason = "as an ack has it")]
fn answered(status: i32, body: &[u8]) -> Option<Outcome> {
    Some(Outcome {
        result: What::Answered.into(),
        response_status: status,
        duration_ms: 17,
        response_body: body.to_vec(),
        ..Outcome::default()
    })
}

// W6: what a relay saw is decided on, and kept, as if the node had sent it.
async fn a_relays_outcomes_are_as_if_sent_here(db: Db) {
    let app = without_embedded(&db).await;
    let schedule = json!({"max_attempts": 9, "backoff_seconds": [1]});
    let sub = webhook(
        &app,
        json!({"retry_schedule": schedule, "timeout_seconds": 7}),
    )
    .await;
    let mut worker = Worker::open(&app, &app.admin, relay(1)).await.unwrap();
    app.events("a.b", 1).await;
    let d = worker.delivery().await;
    assert_eq!(d.url, "http://127.0.0.1:9/hook?a=1");
    assert_eq!(
        (d.timeout_seconds, d.headers["x-webhook-attempt"].as_str()),
        (7, "1")
    );
    let long = vec![b'x'; 10_000];
    assert_eq!(
        worker.ack_with(&[&d], answered(503, &long)).await.ok.len(),
        1
    );
    let second = worker.delivery().await;
    assert_eq!((second.attempt, &second.delivery_id), (2, &d.delivery_id));
    assert_ne!(second.headers["x-webhook-signature"], "");
    let failed = Some(Outcome {
        result: What::Failed.into(),
        error: "connection_refused".to_owned(),
        ..Outcome::default()
    });
    worker.ack_with(&[&second], failed).await;
    let third = worker.delivery().await;
    worker.ack_with(&[&third], answered(0, b"")).await;
    let fourth = worker.delivery().await;
    worker.ack_with(&[&fourth], answered(204, &long)).await;
    let shown = app.state_of(&d.delivery_id).await;
    assert_eq!(
        (&shown["status"], &shown["response_status"]),
        (&json!("DELIVERED"), &json!(204))
    );
    let attempts = app.attempts_of(&d.delivery_id).await;
    let kept: Vec<_> = attempts
        .iter()
        .map(|a| {
            let body = a["response_body"].as_str().unwrap().len();
            (
                a["error"].as_str().unwrap(),
                a["duration_ms"].as_i64().unwrap(),
                body,
            )
        })
        .collect();
    assert_eq!(
        kept,
        [
            ("http_503", 17, 4096),
            ("connection_refused", 0, 0),
            ("no_status", 17, 0),
            ("", 17, 256)
        ]
    );
    assert!(attempts.iter().all(|a| a["worker"] == "relay"));
    db.counts_agree().await;

    app.events("a.b", 1).await;
    let gone = worker.delivery().await;
    worker.ack_with(&[&gone], answered(410, b"gone")).await;
    assert_eq!(app.state_of(&gone.delivery_id).await["status"], "DEAD");
    let path = format!("/v1/external/webhooks/{}", sub.id);
    crate::support::app::eventually("it is switched off", || async {
        let shown = app.get(&path, &app.admin).await.ok();
        (shown["disabled_reason"] == "gone").then_some(())
    })
    .await;
    app.stop().await;
}

// S5, W6: a relay that could not send in time says so: it comes again at once,
// signed anew, and no attempt is charged.
async fn a_signature_that_is_too_old_is_made_again(db: Db) {
    let app = without_embedded(&db).await;
    webhook(&app, json!({})).await;
    let mut worker = Worker::open(&app, &app.admin, relay(1)).await.unwrap();
    app.events("a.b", 1).await;
    let expired = Some(Outcome {
        result: What::ReplayExpired.into(),
        ..Outcome::default()
    });
    for _ in 0..2 {
        let d = worker.delivery().await;
        assert_eq!(d.attempt, 1);
        assert_eq!(worker.ack_with(&[&d], expired.clone()).await.ok.len(), 1);
    }
    let last = worker.delivery().await;
    worker.ack_with(&[&last], expired).await;
    let shown = app.state_of(&last.delivery_id).await;
    assert_eq!(shown["status"], "REPLAY_EXPIRED");
    db.counts_agree().await;
    app.stop().await;
}

// W6: with the embedded worker off, and no relay, deliveries are kept; consumers
// of streams do not get them.
async fn without_relays_webhooks_wait(db: Db) {
    let app = without_embedded(&db).await;
    webhook(&app, json!({})).await;
    let mut consumer = Worker::start(&app, "consumer", 10).await;
    let events = app.events("a.b", 3).await;
    assert!(consumer.everything_until_now().await.is_empty());
    let waiting = app.deliveries_of(&app.admin, &events[0]).await;
    assert_eq!(waiting[0]["status"], "PENDING");
    let mut worker = Worker::open(&app, &app.admin, relay(10)).await.unwrap();
    let all = worker.deliveries(3).await;
    let all: Vec<_> = all.iter().collect();
    assert_eq!(worker.ack_with(&all, answered(200, b"")).await.ok.len(), 3);
    app.stop().await;
}

// W1, W6: who opens with no window at all has as much at once later as who opens
// with it.
async fn a_window_may_come_later(db: Db) {
    let app = without_embedded(&db).await;
    webhook(&app, json!({"max_in_flight": 20})).await;
    let mut worker = Worker::open(&app, &app.admin, relay(0)).await.unwrap();
    app.events("a.b", 12).await;
    assert!(worker.everything_until_now().await.is_empty());
    worker.credit(64, 0);
    let held = worker.deliveries(12).await;
    let all: Vec<_> = held.iter().collect();
    assert_eq!(worker.ack_with(&all, answered(200, b"")).await.ok.len(), 12);
    app.stop().await;
}
