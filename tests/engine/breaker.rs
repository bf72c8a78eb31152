//! Circuit breakers, as owners of subscriptions and their receivers see them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use super::scene::quick;
use crate::support::{
    app::{Subscribed, TestApp, eventually},
    faults::{Fault, Faults},
    receiver::{Receiver, reply, status},
    store::Db,
};

contract![
    failures_open_it_and_a_probe_closes_it,
    what_failed_meanwhile_gets_one_more_attempt,
    what_waits_for_its_next_attempt_is_woken,
    refusals_say_nothing,
    it_outlasts_a_restart,
    time_behind_it_is_not_age,
    an_owner_can_reset_it,
    an_owner_can_reset_it_after_a_restart,
    its_numbers_are_the_owners,
    a_turn_is_stored_once_whatever_becomes_of_its_answers,
];

on_postgres_alone![it_holds_for_all_nodes];

/// A receiver that answers as it is told to last.
async fn switchable(first: u16) -> (Receiver, Arc<AtomicU16>) {
    let answer = Arc::new(AtomicU16::new(first));
    let told = answer.clone();
    let receiver = Receiver::answering(move |_| status(told.load(Ordering::SeqCst))).await;
    (receiver, answer)
}

fn told(answer: &AtomicU16, status: u16) {
    answer.store(status, Ordering::SeqCst);
}

async fn state_is(app: &TestApp, id: &str, state: &str) -> Value {
    eventually(&format!("the breaker is {state}"), || async {
        let shown = app.subscription(id).await;
        (shown["breaker"]["state"] == state).then(|| shown["breaker"].clone())
    })
    .await
}

/// A subscription whose breaker has opened after five deliveries.
async fn opened(
    app: &TestApp,
    receiver: &Receiver,
    open_seconds: u32,
    schedule: Value,
) -> Subscribed {
    let fields = json!({
        "breaker": {"open_seconds": open_seconds},
        "retry_schedule": schedule,
        "max_in_flight": 1,
        "event_types": ["a.*"],
    });
    let sub = app.webhook(&receiver.url(), fields).await;
    assert_eq!(
        app.subscription(&sub.id).await["breaker"]["state"],
        "CLOSED"
    );
    for _ in 0..5 {
        app.event("a.first").await;
    }
    state_is(app, &sub.id, "OPEN").await;
    sub
}

/// Something else was sent since: what was not is not going to be.
async fn others_go_on(app: &TestApp) {
    let well = Receiver::start().await;
    let fields = json!({"event_types": ["other"]});
    app.webhook(&well.url(), fields).await;
    for n in 1..=3 {
        app.event("other").await;
        well.wait(n).await;
    }
}

// A6: five failures open it; while it is open nothing is sent but one probe at a time,
// and no attempt is charged; the first probe that is delivered closes it.
async fn failures_open_it_and_a_probe_closes_it(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, answer) = switchable(500).await;
    let sub = opened(&app, &receiver, 1, quick(20)).await;
    assert_eq!(receiver.count(), 5);
    let shown = app.subscription(&sub.id).await["breaker"].clone();
    assert!(shown["open_time"].is_string(), "{shown}");
    assert!(shown["failures_in_a_row"].as_i64() >= Some(5), "{shown}");
    let mut later = Vec::new();
    for _ in 0..20 {
        later.push(app.one_delivery("a.later").await);
    }
    let received = receiver.wait(8).await;
    for pair in received[4..8].windows(2) {
        let between = pair[1].at - pair[0].at;
        assert!(between > Duration::from_millis(950), "{between:?}");
    }
    let mut waiting = 0;
    for id in &later {
        waiting += usize::from(app.delivery(id).await["attempt_count"] == 0);
    }
    assert!(
        waiting >= 17,
        "only what was probed with was charged: {waiting}"
    );
    told(&answer, 200);
    state_is(&app, &sub.id, "CLOSED").await;
    app.wait_for(&sub.id, "DELIVERED", 25).await;
    let closed = app.subscription(&sub.id).await["breaker"].clone();
    assert!(
        closed["open_time"].is_null() && closed["open_until"].is_null(),
        "{closed}"
    );
    eventually("one opening is counted", || async {
        let path = "/v1/monitoring/webhooks/metrics";
        let metrics = app.get(path, &app.admin).await.ok();
        (metrics["breaker_opens_24h"] == 1).then_some(())
    })
    .await;
    app.stop().await;
}

// A2: FAILED ones get one attempt more when it closes; what fails again is dead.
async fn what_failed_meanwhile_gets_one_more_attempt(db: Db) {
    let app = TestApp::start(&db).await;
    let answer = Arc::new(AtomicU16::new(500));
    let told_to = answer.clone();
    let receiver = Receiver::answering(move |r| {
        if r.data().contains("bad") {
            return status(500);
        }
        status(told_to.load(Ordering::SeqCst))
    })
    .await;
    let schedule = json!({"max_attempts": 1, "backoff_seconds": [3600]});
    let sub = opened(&app, &receiver, 1, schedule).await;
    let bad = app.publish(&app.admin, "a.bad", json!("bad")).await;
    let bad = app.only_delivery_of(&bad).await;
    app.wait_for(&sub.id, "FAILED", 6).await;
    told(&answer, 200);
    // Asks whether it works again.
    app.event("a.probe").await;
    app.wait_for(&sub.id, "DELIVERED", 6).await;
    let dead = app.is(&bad, "DEAD").await;
    assert_eq!(dead["attempt_count"], 2);
    for d in app.with_status(&sub.id, "DELIVERED").await {
        let probe = d["event_type"] == "a.probe";
        assert_eq!(d["attempt_count"], if probe { 1 } else { 2 });
    }
    app.stop().await;
}

// A6: retries that have an hour to wait are woken when the receiver works again.
async fn what_waits_for_its_next_attempt_is_woken(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, answer) = switchable(503).await;
    let schedule = json!({"max_attempts": 3, "backoff_seconds": [3600]});
    let sub = opened(&app, &receiver, 1, schedule).await;
    app.wait_for(&sub.id, "RETRYING", 5).await;
    told(&answer, 200);
    app.event("a.probe").await;
    app.wait_for(&sub.id, "DELIVERED", 6).await;
    assert_eq!(receiver.count(), 11);
    app.stop().await;
}

// A6, A3: 4xx say nothing of health, a 429 neither.
async fn refusals_say_nothing(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::answering(|r| {
        let mut answer = reply(if r.data() == "1" { 429 } else { 400 }, "");
        answer.headers_mut().insert("retry-after", 3600.into());
        answer
    })
    .await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    for n in 0..20 {
        app.publish(&app.admin, "a.b", json!(n % 2)).await;
    }
    app.wait_for(&sub.id, "DEAD", 10).await;
    app.wait_for(&sub.id, "RETRYING", 10).await;
    let shown = app.subscription(&sub.id).await["breaker"].clone();
    assert_eq!(shown["state"], "CLOSED");
    app.stop().await;
}

// A6: whoever takes over after a stop keeps to it.
async fn it_outlasts_a_restart(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, answer) = switchable(500).await;
    let sub = opened(&app, &receiver, 3600, quick(20)).await;
    let again = app.again();
    app.stop().await;
    told(&answer, 200);
    let app = again.start().await;
    app.event("a.later").await;
    others_go_on(&app).await;
    assert_eq!(receiver.count(), 5);
    let shown = app.subscription(&sub.id).await["breaker"].clone();
    assert_eq!(shown["state"], "OPEN");
    assert_eq!(shown["failures_in_a_row"], 5);
    // A shorter one from now on is none for the present rest; a reset is.
    app.change(&sub.id, json!({"enabled": false})).await;
    app.change(&sub.id, json!({"enabled": true})).await;
    app.wait_for(&sub.id, "DELIVERED", 6).await;
    app.stop().await;
}

// A6: on any node it is shown; the node that takes over keeps to it.
async fn it_holds_for_all_nodes(db: Db) {
    let one = TestApp::start(&db).await;
    let (receiver, _) = switchable(500).await;
    let sub = opened(&one, &receiver, 3600, quick(20)).await;
    let two = one.again().start().await;
    state_is(&two, &sub.id, "OPEN").await;
    two.event("a.later").await;
    one.stop().await;
    others_go_on(&two).await;
    assert_eq!(receiver.count(), 5);
    state_is(&two, &sub.id, "OPEN").await;
    two.stop().await;
}

// A6, D3: time in which it held deliveries back counts neither into their greatest
// age nor into the latency that is shown.
async fn time_behind_it_is_not_age(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, answer) = switchable(500).await;
    let fields = json!({
        "breaker": {"open_seconds": 4},
        "retry_schedule": {"max_attempts": 1},
        "max_in_flight": 1,
        "max_age_seconds": 2,
    });
    let sub = app.webhook(&receiver.url(), fields).await;
    for _ in 0..5 {
        app.event("a.b").await;
    }
    state_is(&app, &sub.id, "OPEN").await;
    for _ in 0..5 {
        app.event("a.b").await;
    }
    app.wait_for(&sub.id, "PENDING", 5).await;
    told(&answer, 200);
    app.wait_for(&sub.id, "DELIVERED", 5).await;
    eventually("a latency is shown", || async {
        let path = "/v1/monitoring/webhooks/metrics";
        let metrics = app.get(path, &app.admin).await.ok();
        let latency = metrics["delivery_latency_p99_sec"].as_f64().unwrap();
        (latency > 0.0).then(|| assert!(latency < 3.0, "{latency}"))
    })
    .await;
    app.stop().await;
}

// A6: to name another URL is to name another receiver.
async fn an_owner_can_reset_it(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, _) = switchable(500).await;
    let sub = opened(&app, &receiver, 3600, quick(20)).await;
    let well = Receiver::start().await;
    app.change(&sub.id, json!({"description": "still the same"}))
        .await;
    others_go_on(&app).await;
    state_is(&app, &sub.id, "OPEN").await;
    app.change(&sub.id, json!({"url": well.url()})).await;
    app.wait_for(&sub.id, "DELIVERED", 5).await;
    state_is(&app, &sub.id, "CLOSED").await;
    assert_eq!(receiver.count(), 5);
    app.stop().await;
}

// A6: also while delivery is off, on a node that has sent nothing to the one before.
async fn an_owner_can_reset_it_after_a_restart(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, _) = switchable(500).await;
    let sub = opened(&app, &receiver, 3600, quick(20)).await;
    let again = app.again();
    app.stop().await;
    let mut app = again.set("WEBHOOKS_DELIVERY_ENABLED", 0).start().await;
    let well = Receiver::start().await;
    app.change(&sub.id, json!({"url": well.url()})).await;
    state_is(&app, &sub.id, "CLOSED").await;
    app.reload(&[("WEBHOOKS_DELIVERY_ENABLED", "1")]);
    app.wait_for(&sub.id, "DELIVERED", 5).await;
    app.stop().await;
}

// A6: the numbers of a breaker can be chosen, for one subscription and for all; what
// was read can be written back.
async fn its_numbers_are_the_owners(db: Db) {
    let app = TestApp::builder(&db)
        .set("BREAKER_FAILURES_TO_OPEN", 2)
        .set("BREAKER_OPEN_SECONDS", 3600)
        .start()
        .await;
    let (receiver, _) = switchable(500).await;
    let hook = async |breaker: Value| {
        let fields = json!({
            "breaker": breaker, "retry_schedule": {"max_attempts": 1}, "max_in_flight": 1,
            "event_types": ["a.b"],
        });
        app.webhook(&receiver.url(), fields).await
    };
    let by_server = hook(json!({})).await;
    let own = hook(json!({"failures_to_open": 3})).await;
    let off = hook(json!({"disabled": true})).await;
    for _ in 0..6 {
        app.event("a.b").await;
    }
    app.wait_for(&off.id, "DEAD", 6).await;
    app.wait_for(&by_server.id, "DEAD", 2).await;
    app.wait_for(&own.id, "DEAD", 3).await;
    state_is(&app, &by_server.id, "OPEN").await;
    let shown = state_is(&app, &own.id, "OPEN").await;
    assert_eq!(shown["failures_to_open"], 3);
    state_is(&app, &off.id, "CLOSED").await;

    let read = app.subscription(&own.id).await;
    let breaker = json!({"breaker": read["breaker"]});
    assert_eq!(
        app.change(&own.id, breaker).await["breaker"]["failures_to_open"],
        3
    );
    let path = format!("/v1/external/webhooks/{}", own.id);
    let bad = json!({"breaker": {"open_seconds": 3601}});
    let refused = app.patch(&path, &app.admin, bad).await;
    let problem = refused.refused(400, "INVALID_ARGUMENT");
    assert_eq!(problem["errors"][0]["field"], "breaker.open_seconds");
    let gone = app.change(&own.id, json!({"breaker": null})).await;
    assert!(
        gone["breaker"]["failures_to_open"]
            .as_i64()
            .is_none_or(|n| n == 0)
    );
    app.stop().await;
}

// A6, N2: while the store fails and loses answers the breaker holds, and is stored
// and counted once.
async fn a_turn_is_stored_once_whatever_becomes_of_its_answers(db: Db) {
    let faults = Faults::none();
    let app = TestApp::builder(&db).faults(&faults).start().await;
    faults.next("save_receiver", Fault::Fails, 2);
    let (receiver, answer) = switchable(500).await;
    let sub = opened(&app, &receiver, 2, quick(20)).await;
    faults.next("save_receiver", Fault::Lost, 2);
    faults.next("revive", Fault::Lost, 1);
    told(&answer, 200);
    app.wait_for(&sub.id, "DELIVERED", 5).await;
    state_is(&app, &sub.id, "CLOSED").await;
    eventually("one opening is counted", || async {
        let path = "/v1/monitoring/webhooks/metrics";
        let metrics = app.get(path, &app.admin).await.ok();
        (metrics["breaker_opens_24h"] == 1).then_some(())
    })
    .await;
    db.counts_agree().await;
    app.stop().await;
}
