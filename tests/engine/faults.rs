//! Statements that fail, and statements whose answers are lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use onering::{app::Outside, domain::id::wall_clock};
use serde_json::json;

use super::scene::quick;
use crate::support::{
    app::{TestApp, eventually},
    faults::{Fault, Faults},
    receiver::{Received, Receiver, status},
    store::{Db, SECOND},
    wait::until_after,
};

contract![
    a_publish_whose_answer_was_lost_is_found,
    a_claim_whose_answer_was_lost_is_found,
    a_finish_whose_answer_was_lost_is_no_second_attempt,
    a_slow_statement_makes_no_retry_late,
    held_time_is_noted_in_the_end,
    usage_is_written_where_it_changed,
    an_attempt_that_panics_is_retried,
    nothing_is_lost_in_a_bad_hour,
];

const EVENTS: &str = "/v1/external/events";

/// Longer than a lost lease takes to be found: it is looked for every 5 seconds,
/// and must be seen twice.
const LONG: Duration = Duration::from_mins(1);

async fn start(db: &Db, faults: &Arc<Faults>) -> TestApp {
    TestApp::builder(db).faults(faults).start().await
}

/// Waits for what an unknown lease delays.
async fn delivered(app: &TestApp, subscription: &str, count: usize) {
    until_after(LONG, "the lease is found", async || {
        (app.with_status(subscription, "DELIVERED").await.len() == count).then_some(())
    })
    .await;
}

// N2: rows that a publish leased are freed though its answer was lost, and though
// the first looks for them fail, and the first attempt to free them.
async fn a_publish_whose_answer_was_lost_is_found(db: Db) {
    let faults = Faults::none();
    let app = start(&db, &faults).await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    faults.next("publish", Fault::Lost, 1);
    faults.next("leases", Fault::Fails, 1);
    let event = json!({"event_type": "a.b", "data": 1, "idempotency_key": "k"});
    let answer = app.post(EVENTS, &app.admin, event.clone()).await;
    answer.refused(503, "STORE_UNAVAILABLE");
    // Its caller repeats it, and is told of what became of the first time.
    let again = app.post(EVENTS, &app.admin, event).await.ok();
    let delivery = app.only_delivery_of(again["id"].as_str().unwrap()).await;
    assert_eq!(app.delivery(&delivery).await["status"], "SENDING");
    faults.wait("leases", 1).await;
    faults.next("finish", Fault::Fails, 1);
    delivered(&app, &sub.id, 1).await;
    assert_eq!(receiver.count(), 1);
    assert!(faults.began("leases") >= 4, "{}", faults.began("leases"));
    app.stop().await;
}

// N2: the same of rows that a claim leased.
async fn a_claim_whose_answer_was_lost_is_found(db: Db) {
    let faults = Faults::none();
    let app = start(&db, &faults).await;
    let receiver = Receiver::answering(|r: Received| match r.attempt() {
        1 => status(503),
        _ => status(200),
    })
    .await;
    let schedule = json!({"max_attempts": 3, "backoff_seconds": [3]});
    let fields = json!({"retry_schedule": schedule});
    let sub = app.webhook(&receiver.url(), fields).await;
    faults.next("leases", Fault::Fails, 1);
    let delivery = app.one_delivery("a.b").await;
    app.is(&delivery, "RETRYING").await;
    faults.always("claim", Fault::Lost);
    app.is(&delivery, "SENDING").await;
    faults.mend("claim");
    delivered(&app, &sub.id, 1).await;
    assert_eq!(receiver.count(), 2);
    assert_eq!(app.delivery(&delivery).await["attempt_count"], 2);
    app.stop().await;
}

// W2: the same outcome again is known by its token.
async fn a_finish_whose_answer_was_lost_is_no_second_attempt(db: Db) {
    let faults = Faults::none();
    let app = start(&db, &faults).await;
    let receiver = Receiver::answering(|r: Received| match r.attempt() {
        1 => status(503),
        _ => status(200),
    })
    .await;
    let fields = json!({"retry_schedule": quick(3)});
    app.webhook(&receiver.url(), fields).await;
    faults.next("finish", Fault::Lost, 1);
    let delivery = app.one_delivery("a.b").await;
    receiver.wait(1).await;
    faults.wait("finish", 1).await;
    faults.next("finish", Fault::Lost, 3);
    let shown = app.is(&delivery, "DELIVERED").await;
    assert_eq!(shown["attempt_count"], 2);
    faults.wait("finish", 2).await;
    let numbers: Vec<_> = app.attempts(&delivery).await;
    let numbers: Vec<_> = numbers.iter().map(|a| a["number"].clone()).collect();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(receiver.count(), 2);
    app.stop().await;
}

// A2: a retry's time is the store's; a node that counts it by its own clock is not
// to look too early, and then not until the next poll.
async fn a_slow_statement_makes_no_retry_late(db: Db) {
    let faults = Faults::none();
    let app = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_LOOP_SECONDS", 3600)
        .faults(&faults)
        .start()
        .await;
    let receiver = Receiver::answering(|r: Received| match r.attempt() {
        1 | 2 => status(503),
        _ => status(200),
    })
    .await;
    let schedule = json!({"max_attempts": 3, "backoff_seconds": [1, 4]});
    let fields = json!({"retry_schedule": schedule});
    app.webhook(&receiver.url(), fields).await;
    faults.always("finish", Fault::Slow);
    let delivery = app.one_delivery("a.b").await;
    receiver.wait(2).await;
    app.is(&delivery, "RETRYING").await;

    // The same of what the next process finds.
    faults.always("waiting", Fault::Slow);
    let again = app.again();
    app.stop().await;
    let app = again.faults(&faults).start().await;
    app.is(&delivery, "DELIVERED").await;
    assert_eq!(receiver.count(), 3);
    app.stop().await;
}

// D6: where the switch's time can't be noted at once it is noted later.
async fn held_time_is_noted_in_the_end(db: Db) {
    let faults = Faults::none();
    let mut app = TestApp::builder(&db)
        .set("SESSION_SECONDS", 20)
        .faults(&faults)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let fields = json!({"max_age_seconds": 8});
    let sub = app.webhook(&receiver.url(), fields).await;
    let dispatcher = app.app().context.dispatcher.clone();
    let mut switch = async |value: &str| {
        let noted = faults.answered("hold");
        faults.next("hold", Fault::Fails, 1);
        app.reload(&[("WEBHOOKS_DELIVERY_ENABLED", value)]);
        eventually("the switch is in force", || async {
            (dispatcher.is_delivering() == (value == "1")).then_some(())
        })
        .await;
        if value == "0" {
            app.event("a.b").await;
        }
        faults.wait("hold", noted + 1).await;
        // Within a session's life, and more than the delivery's.
        let store = &app.app().context.store;
        store.shift_clock(14 * SECOND).await.unwrap();
    };
    switch("0").await;
    switch("1").await;
    app.wait_for(&sub.id, "DELIVERED", 1).await;
    app.stop().await;
}

// T3: what did not change since it was written is not written again; what could
// not be written is.
async fn usage_is_written_where_it_changed(db: Db) {
    let faults = Faults::none();
    let app = start(&db, &faults).await;
    let looks = async |more: usize| {
        let before = faults.answered("stored_bytes");
        faults.wait("stored_bytes", before + more).await;
    };
    looks(1).await;
    assert_eq!(faults.began("note_usage"), 0, "nothing was published");
    app.event("a.b").await;
    faults.wait("note_usage", 1).await;
    looks(2).await;
    assert_eq!(faults.began("note_usage"), 1);
    faults.next("note_usage", Fault::Fails, 2);
    app.event("a.b").await;
    faults.wait("note_usage", 2).await;
    assert_eq!(faults.began("note_usage"), 4);
    let store = &app.app().context.store;
    let (_, stored) = store.stored_bytes().await.unwrap()[0];
    app.event("a.b").await;
    faults.wait("note_usage", 3).await;
    let (_, more) = store.stored_bytes().await.unwrap()[0];
    assert_eq!(more, stored / 2 * 3, "each counts once");
    app.stop().await;
}

// A3: it costs one attempt, and neither the delivery nor its worker's slot.
async fn an_attempt_that_panics_is_retried(db: Db) {
    let panics = Arc::new(AtomicBool::new(true));
    let armed = panics.clone();
    let outside = Outside {
        clock: Arc::new(move || {
            assert!(!armed.swap(false, Ordering::SeqCst), "as the test wants it");
            wall_clock()
        }),
        ..Outside::default()
    };
    let app = TestApp::builder(&db)
        .set("WEBHOOKS_CONCURRENCY", 1)
        .outside(outside)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let schedule = json!({"max_attempts": 3, "backoff_seconds": [3]});
    let fields = json!({"retry_schedule": schedule});
    app.webhook(&receiver.url(), fields).await;
    let first = app.one_delivery("a.b").await;
    let shown = app.is(&first, "RETRYING").await;
    assert_eq!(
        (&shown["reason"], &shown["attempt_count"]),
        (&json!("internal"), &json!(1))
    );
    let second = app.one_delivery("a.b").await;
    app.is(&second, "DELIVERED").await;
    app.is(&first, "DELIVERED").await;
    assert_eq!(receiver.count(), 2);
    app.stop().await;
}

// H1: with a third of all statements of the queue failing, or losing their
// answers, whatever was accepted is delivered, and every outcome is recorded.
async fn nothing_is_lost_in_a_bad_hour(db: Db) {
    const EVENTS_SENT: usize = 60;
    let faults = Faults::none();
    let app = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_LOOP_SECONDS", 1)
        .set("BREAKER_FAILURES_TO_OPEN", 0)
        .faults(&faults)
        .start()
        .await;
    let receiver = Receiver::answering(|r: Received| match r.attempt() {
        1 if r.body.len().is_multiple_of(2) => status(503),
        _ => status(200),
    })
    .await;
    let fields = json!({"retry_schedule": quick(9)});
    let sub = app.webhook(&receiver.url(), fields).await;
    let seed = u64::try_from(wall_clock()).unwrap();
    eprintln!("seed {seed}");
    faults.one_in(3, seed);
    for n in 0..EVENTS_SENT {
        let data = "x".repeat(n);
        let event = json!({"event_type": "a.b", "data": data, "idempotency_key": n.to_string()});
        eventually("it is accepted", || async {
            let answer = app.post(EVENTS, &app.admin, event.clone()).await;
            (answer.status == 202).then_some(())
        })
        .await;
    }
    faults.one_in(0, 0);
    delivered(&app, &sub.id, EVENTS_SENT).await;
    let received = receiver.received();
    let mut events: Vec<&str> = received.iter().map(Received::event).collect();
    events.sort_unstable();
    events.dedup();
    assert_eq!(events.len(), EVENTS_SENT, "each key is one event");
    app.stop().await;
}
