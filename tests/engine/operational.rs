//! Operational events: what owners are told of their own webhooks, by webhooks.

use serde_json::{Value, json};

use super::scene::quick;
use crate::support::{
    app::{TestApp, eventually},
    receiver::{Receiver, status},
    store::{Db, HOUR},
};

contract![
    a_breaker_is_announced_to_others,
    the_dead_are_announced_together,
    an_announcement_is_not_announced,
    a_rotation_is_announced,
    a_failing_receiver_is_disabled,
];

/// The payloads of that type that came.
fn told(receiver: &Receiver, event_type: &str) -> Vec<Value> {
    let received = receiver.received();
    let of = received
        .iter()
        .filter(|r| r.header("x-webhook-event") == event_type);
    of.map(|r| serde_json::from_str(&r.data()).unwrap())
        .collect()
}

async fn wait_told(receiver: &Receiver, event_type: &str) -> Value {
    eventually(&format!("{event_type} is told"), || async {
        told(receiver, event_type).pop()
    })
    .await
}

// A7: to those who subscribe, not to the subscription itself.
async fn a_breaker_is_announced_to_others(db: Db) {
    let app = TestApp::start(&db).await;
    let ill = Receiver::answering(|r| status(if r.attempt() == 1 { 500 } else { 200 })).await;
    let sub = app
        .webhook(
            &ill.url(),
            json!({"breaker": {"open_seconds": 1}, "retry_schedule": quick(5), "max_in_flight": 1}),
        )
        .await;
    let owner = Receiver::start().await;
    app.webhook(&owner.url(), json!({"event_types": ["breaker.*"]}))
        .await;
    let stranger = app.tenant("stranger").await;
    let elsewhere = Receiver::start().await;
    app.subscribe(&stranger.key, json!({"url": elsewhere.url()}))
        .await;
    for _ in 0..5 {
        app.event("a.b").await;
    }
    let opened = wait_told(&owner, "breaker.opened").await;
    assert_eq!(opened["subscription_id"], sub.id);
    assert_eq!(opened["url"], ill.url());
    assert_eq!(opened["failures_in_a_row"], 5);
    let closed = wait_told(&owner, "breaker.closed").await;
    assert_eq!(closed["subscription_id"], sub.id);
    assert!(closed["open_seconds"].as_i64() >= Some(1), "{closed}");
    app.wait_for(&sub.id, "DELIVERED", 5).await;
    assert_eq!(told(&ill, "breaker.opened").len(), 0);
    assert_eq!((owner.count(), elsewhere.count()), (2, 0));
    app.stop().await;
}

// A7: those that died at once and those that were buried, in one event.
async fn the_dead_are_announced_together(db: Db) {
    let app = TestApp::start(&db).await;
    let refusing = Receiver::answering(|r| status(if r.data() == "1" { 400 } else { 500 })).await;
    let fields = json!({
        "event_types": ["a.*"], "breaker": {"disabled": true},
        "retry_schedule": {"max_attempts": 1, "backoff_seconds": [1]},
    });
    let sub = app.webhook(&refusing.url(), fields).await;
    let owner = Receiver::start().await;
    app.webhook(&owner.url(), json!({"event_types": ["delivery.dead"]}))
        .await;
    let mut events = Vec::new();
    for n in 0..6 {
        events.push(json!({"event_type": "a.b", "data": n % 2}));
    }
    let path = "/v1/external/events/batch";
    app.post(path, &app.admin, json!({"events": events}))
        .await
        .ok();
    app.wait_for(&sub.id, "DEAD", 6).await;
    let dead = wait_told(&owner, "delivery.dead").await;
    assert_eq!(dead["subscription_id"], sub.id);
    assert_eq!(dead["url"], refusing.url());
    let n = dead["count"].as_u64().unwrap();
    assert!((3..=6).contains(&n), "{dead}");
    assert_eq!(dead["delivery_ids"].as_array().unwrap().len() as u64, n);
    assert_eq!(dead["reasons"]["http_400"], 3);
    assert_eq!(owner.count(), 1, "one for all of them");
    app.stop().await;
}

// A7: no end of announcements: what becomes of one is not announced, also where it is
// the first thing that an owner's endpoint refuses.
async fn an_announcement_is_not_announced(db: Db) {
    let app = TestApp::start(&db).await;
    let refusing = Receiver::answering(|_| status(400)).await;
    let deaf = app
        .webhook(&refusing.url(), json!({"event_types": ["delivery.dead"]}))
        .await;
    let owner = Receiver::start().await;
    app.webhook(&owner.url(), json!({"event_types": ["delivery.dead"]}))
        .await;
    let mut dying = Vec::new();
    for (n, event_type) in ["a.b", "c.d"].into_iter().enumerate() {
        let sub = app
            .webhook(&refusing.url(), json!({"event_types": [event_type]}))
            .await;
        app.event(event_type).await;
        // The second is told later than the first one's announcement, which died
        // before, would be.
        app.wait_for(&deaf.id, "DEAD", n + 1).await;
        dying.push(sub.id);
    }
    eventually("the second is told", || async {
        (told(&owner, "delivery.dead").len() >= 2).then_some(())
    })
    .await;
    let about: Vec<Value> = told(&owner, "delivery.dead")
        .iter()
        .map(|data| data["subscription_id"].clone())
        .collect();
    assert_eq!(about, dying);
    app.stop().await;
}

// A7, S4
async fn a_rotation_is_announced(db: Db) {
    let app = TestApp::start(&db).await;
    let owner = Receiver::start().await;
    let sub = app
        .webhook(&owner.url(), json!({"event_types": ["secret.rotated"]}))
        .await;
    // Whoever wants all events wants its own: these are to be named.
    let all = Receiver::start().await;
    app.webhook(&all.url(), json!({"event_types": ["*"]})).await;
    let path = format!("/v1/external/webhooks/{}/rotate-secret", sub.id);
    let rotated = app.post(&path, &app.admin, json!({})).await.ok();
    let data = wait_told(&owner, "secret.rotated").await;
    assert_eq!(data["subscription_id"], sub.id);
    assert!(data["previous_secret_expire_time"].is_string(), "{data}");
    let secret = rotated["secret"].as_str().unwrap();
    let shown = data.to_string();
    assert!(!shown.contains(secret) && !shown.contains(&sub.secret));
    app.event("a.b").await;
    let received = all.wait(1).await;
    assert_eq!(received[0].header("x-webhook-event"), "a.b");
    app.stop().await;
}

// A7: nothing delivered for four days: its owner is told; for five: it is disabled,
// and its owner told again. A receiver that refuses everything delivers nothing either.
async fn a_failing_receiver_is_disabled(db: Db) {
    let app = TestApp::start(&db).await;
    let refusing = Receiver::answering(|_| status(404)).await;
    let fields = json!({"event_types": ["a.*"]});
    let sub = app.webhook(&refusing.url(), fields).await;
    let owner = Receiver::start().await;
    app.webhook(&owner.url(), json!({"event_types": ["subscription.*"]}))
        .await;
    for n in 1..=5 {
        app.event("a.b").await;
        app.wait_for(&sub.id, "DEAD", n).await;
    }
    let store = &app.app().context.store;
    eventually("that is stored", || async {
        let id = sub.id.parse().unwrap();
        let found = store.receivers(&[id]).await.unwrap();
        found
            .first()
            .is_some_and(|s| s.failing.is_some())
            .then_some(())
    })
    .await;
    let mut dead = 5;
    // The session ends with each shift; the next one finds for how long it fails.
    let mut tried_after = async |hours: i64| {
        let before = app.app().context.node.session();
        store.shift_clock(hours * HOUR).await.unwrap();
        eventually("a session of that time", || async {
            let now = app.app().context.node.session();
            (now != before && now.0 != 0).then_some(())
        })
        .await;
        app.event("a.b").await;
        dead += 1;
        app.wait_for(&sub.id, "DEAD", dead).await;
    };
    tried_after(90).await;
    assert_eq!(owner.count(), 0);
    tried_after(7).await;
    let failing = wait_told(&owner, "subscription.failing").await;
    assert_eq!(failing["subscription_id"], sub.id);
    assert!(failing["failing_since"].is_string() && failing["disable_time"].is_string());
    assert_eq!(app.subscription(&sub.id).await["enabled"], true);
    tried_after(24).await;
    let disabled = wait_told(&owner, "subscription.disabled").await;
    assert_eq!(disabled["reason"], "failing");
    let shown = app.subscription(&sub.id).await;
    assert_eq!(
        (&shown["enabled"], &shown["disabled_reason"]),
        (&json!(false), &json!("failing"))
    );
    assert_eq!(owner.count(), 2);
    // Switched on again it is taken for well.
    app.change(&sub.id, json!({"enabled": true})).await;
    app.event("a.b").await;
    app.wait_for(&sub.id, "DEAD", dead + 1).await;
    assert_eq!(app.subscription(&sub.id).await["enabled"], true);
    app.stop().await;
}
