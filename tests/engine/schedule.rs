//! When attempts are made, and what a delivery is in between.

use std::sync::Arc;

use onering::domain::id::Micros;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::scene::{micros, quick};
use crate::support::{
    app::{TestApp, eventually},
    receiver::{Receiver, status},
    store::{Db, SECOND},
};

contract![
    every_status_along_the_way,
    the_standard_schedule,
    the_burst_schedule,
    a_retry_by_hand_is_one_attempt,
    a_retry_by_hand_of_what_waits,
];

// A1, A2
async fn every_status_along_the_way(db: Db) {
    let mut app = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_ENABLED", 0)
        .start()
        .await;
    let permits = Arc::new(Semaphore::new(0));
    let gate = permits.clone();
    let receiver = Receiver::with(move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            status(503)
        }
    })
    .await;
    let schedule = json!({"max_attempts": 3, "backoff_seconds": [1, 1, 2]});
    app.webhook(
        &receiver.url(),
        json!({"retry_schedule": schedule, "timeout_seconds": 60}),
    )
    .await;
    let delivery = app.one_delivery("a.b").await;
    let shown = app.delivery(&delivery).await;
    assert_eq!(
        (&shown["status"], &shown["attempt_count"]),
        (&json!("PENDING"), &json!(0))
    );
    app.reload(&[("WEBHOOKS_DELIVERY_ENABLED", "1")]);
    for attempt in 1..=2 {
        app.is(&delivery, "SENDING").await;
        receiver.wait(attempt).await;
        permits.add_permits(1);
        let shown = app.is(&delivery, "RETRYING").await;
        assert_eq!(shown["attempt_count"], attempt);
        assert_eq!(
            (&shown["response_status"], &shown["reason"]),
            (&json!(503), &json!("http_503"))
        );
        assert!(shown["next_attempt_time"].is_string() && shown["finish_time"].is_null());
    }
    receiver.wait(3).await;
    permits.add_permits(1);
    let shown = app.is(&delivery, "FAILED").await;
    assert_eq!(shown["attempt_count"], 3);
    assert!(shown["next_attempt_time"].is_null());
    let dead = app.is(&delivery, "DEAD").await;
    assert!(dead["finish_time"].is_string());
    assert_eq!(
        (&dead["attempt_count"], &dead["reason"]),
        (&json!(3), &json!("http_503"))
    );
    assert_eq!(receiver.count(), 3);
    app.stop().await;
}

/// Lets time pass for the database.
async fn pass(app: &TestApp, time: Micros) {
    app.app().context.store.shift_clock(time).await.unwrap();
}

/// From the end of the last attempt to the next one, in seconds, on a database
/// whose clock is `ahead`.
async fn wait_after(app: &TestApp, delivery: &str, attempt: usize, ahead: Micros) -> f64 {
    let shown = eventually(&format!("attempt {attempt} has failed"), || async {
        let shown = app.delivery(delivery).await;
        (shown["status"] == "RETRYING" && shown["attempt_count"] == attempt).then_some(shown)
    })
    .await;
    let last = &app.attempts(delivery).await[attempt - 1];
    let took = last["duration_ms"].as_i64().unwrap();
    let end = micros(&last["start_time"]) + took * 1000;
    (micros(&shown["next_attempt_time"]) - ahead - end) as f64 / 1e6
}

async fn failing(db: &Db, schedule: Value) -> (TestApp, Receiver, String) {
    let app = TestApp::builder(db)
        .set("WEBHOOKS_DELIVERY_LOOP_SECONDS", 1)
        .start()
        .await;
    let receiver = Receiver::answering(|_| status(500)).await;
    let mut fields = json!({});
    if !schedule.is_null() {
        fields["retry_schedule"] = schedule;
    }
    app.webhook(&receiver.url(), fields).await;
    let delivery = app.one_delivery("a.b").await;
    (app, receiver, delivery)
}

/// Whether a wait is this one, up to a tenth longer; recording takes a moment.
#[track_caller]
fn about(wait: f64, seconds: f64) {
    let most = if seconds > 10.0 {
        seconds * 1.1
    } else {
        seconds
    };
    assert!(
        (seconds - 0.1..most + 2.0).contains(&wait),
        "{wait} for {seconds}"
    );
}

// A2: 60 and 300 lie between three attempts, 900 before it is dead. It is what
// the server does by itself, too.
async fn the_standard_schedule(db: Db) {
    let (app, receiver, delivery) = failing(&db, Value::Null).await;
    about(wait_after(&app, &delivery, 1, 0).await, 60.0);
    pass(&app, 67 * SECOND).await;
    about(wait_after(&app, &delivery, 2, 67 * SECOND).await, 300.0);
    pass(&app, 331 * SECOND).await;
    app.is(&delivery, "FAILED").await;
    pass(&app, 890 * SECOND).await;
    assert_eq!(app.delivery(&delivery).await["status"], "FAILED");
    pass(&app, 110 * SECOND).await;
    app.is(&delivery, "DEAD").await;
    assert_eq!(receiver.count(), 3);
    app.stop().await;
}

// A2: 2 and 4 seconds, and no wait before it is dead.
async fn the_burst_schedule(db: Db) {
    let (app, receiver, delivery) = failing(&db, json!({"preset": "BURST"})).await;
    about(wait_after(&app, &delivery, 1, 0).await, 2.0);
    about(wait_after(&app, &delivery, 2, 0).await, 4.0);
    app.is(&delivery, "DEAD").await;
    assert_eq!(receiver.count(), 3);
    app.stop().await;
}

// A2: then it is dead again; what is delivered is not sent again.
async fn a_retry_by_hand_is_one_attempt(db: Db) {
    let (app, receiver, delivery) = failing(&db, json!({"max_attempts": 1})).await;
    app.is(&delivery, "DEAD").await;
    app.retry(&delivery).await.ok();
    receiver.wait(2).await;
    let dead = app.is(&delivery, "DEAD").await;
    assert_eq!((&dead["attempt_count"], receiver.count()), (&json!(2), 2));
    assert_eq!(receiver.received()[1].attempt(), 2);

    let well = Receiver::start().await;
    let sub = dead["subscription_id"].as_str().unwrap();
    app.change(sub, json!({"url": well.url()})).await;
    app.retry(&delivery).await.ok();
    let delivered = app.is(&delivery, "DELIVERED").await;
    assert_eq!(delivered["attempt_count"], 3);
    app.retry(&delivery)
        .await
        .refused(409, "FAILED_PRECONDITION");
    let outcomes: Vec<_> = app
        .attempts(&delivery)
        .await
        .iter()
        .map(|a| a["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["RETRYABLE", "RETRYABLE", "DELIVERED"]);
    let missing = "dlv_01h455vb4pex5vsknk084sn02q";
    app.retry(missing).await.refused(404, "NOT_FOUND");
    app.stop().await;
}

// A2: what waits for its next attempt is due now, within its schedule; what has
// failed for good is saved by it.
async fn a_retry_by_hand_of_what_waits(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::answering(|r| status(if r.attempt() < 3 { 503 } else { 200 })).await;
    let schedule = json!({"max_attempts": 2, "backoff_seconds": [3600, 3600]});
    app.webhook(&receiver.url(), json!({"retry_schedule": schedule}))
        .await;
    let delivery = app.one_delivery("a.b").await;
    app.is(&delivery, "RETRYING").await;
    app.retry(&delivery).await.ok();
    let failed = app.is(&delivery, "FAILED").await;
    assert_eq!(failed["attempt_count"], 2);
    app.retry(&delivery).await.ok();
    app.is(&delivery, "DELIVERED").await;

    let hanging = Receiver::hanging().await;
    app.webhook(
        &hanging.url(),
        json!({"event_types": ["c.d"], "retry_schedule": quick(2)}),
    )
    .await;
    app.event("c.d").await;
    let sending = hanging.wait(1).await[0].header("x-webhook-id").to_owned();
    app.retry(&sending)
        .await
        .refused(409, "FAILED_PRECONDITION");
    app.stop().await;
}
