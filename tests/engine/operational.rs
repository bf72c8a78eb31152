//! Operational events: what owners are told of their own webhooks, by webhooks.

use serde_json::{Value, json};

use super::scene::quick;
use crate::support::{
    app::{Subscribed, TestApp, eventually},
    receiver::{Receiver, status},
    store::{Db, HOUR},
};

contract![
    a_breaker_is_announced_to_others,
    the_dead_are_announced_together,
    an_announcement_is_not_announced,
    a_rotation_is_announced,
    a_failing_receiver_is_disabled,
    whoever_fails_has_a_day_after_being_told,
    time_without_delivery_is_not_failing,
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

/// A subscription that was tried five times for nothing, and its owner.
struct Failing {
    app: TestApp,
    sub: Subscribed,
    owner: Receiver,
    dead: usize,
    _refusing: Receiver,
}

impl Failing {
    async fn since_now(app: TestApp) -> Self {
        let refusing = Receiver::answering(|_| status(404)).await;
        let fields = json!({"event_types": ["a.*"]});
        let sub = app.webhook(&refusing.url(), fields).await;
        let owner = Receiver::start().await;
        app.webhook(&owner.url(), json!({"event_types": ["subscription.*"]}))
            .await;
        let mut failing = Self {
            app,
            sub,
            owner,
            dead: 0,
            _refusing: refusing,
        };
        for _ in 0..5 {
            failing.tried().await;
        }
        let (app, id) = (&failing.app, failing.sub.id.parse().unwrap());
        eventually("that is stored", || async {
            let found = app.app().context.store.receivers(&[id]).await.unwrap();
            found
                .first()
                .is_some_and(|s| s.failing.is_some())
                .then_some(())
        })
        .await;
        failing
    }

    async fn tried(&mut self) {
        self.app.event("a.b").await;
        self.dead += 1;
        self.app.wait_for(&self.sub.id, "DEAD", self.dead).await;
    }

    /// The session ends with each shift; the next one finds for how long it fails.
    async fn pass(&self, hours: i64) {
        let context = &self.app.app().context;
        let before = context.node.session();
        context.store.shift_clock(hours * HOUR).await.unwrap();
        eventually("a session of that time", || async {
            let now = context.node.session();
            (now != before && now.0 != 0).then_some(())
        })
        .await;
    }

    async fn tried_after(&mut self, hours: i64) {
        self.pass(hours).await;
        self.tried().await;
    }

    async fn is_enabled(&self) -> bool {
        self.app.subscription(&self.sub.id).await["enabled"] == true
    }
}

// A7: nothing delivered for four days: its owner is told; for five: it is disabled,
// and its owner told again. A receiver that refuses everything delivers nothing either.
async fn a_failing_receiver_is_disabled(db: Db) {
    let mut f = Failing::since_now(TestApp::start(&db).await).await;
    f.tried_after(90).await;
    assert_eq!(f.owner.count(), 0);
    f.tried_after(7).await;
    let failing = wait_told(&f.owner, "subscription.failing").await;
    assert_eq!(failing["subscription_id"], f.sub.id);
    assert!(failing["failing_since"].is_string() && failing["disable_time"].is_string());
    assert!(f.is_enabled().await);
    f.tried_after(24).await;
    let disabled = wait_told(&f.owner, "subscription.disabled").await;
    assert_eq!(disabled["reason"], "failing");
    let shown = f.app.subscription(&f.sub.id).await;
    assert_eq!(
        (&shown["enabled"], &shown["disabled_reason"]),
        (&json!(false), &json!("failing"))
    );
    assert_eq!(f.owner.count(), 2);
    // Switched on again it is taken for well.
    f.app.change(&f.sub.id, json!({"enabled": true})).await;
    f.tried().await;
    assert!(f.is_enabled().await);
    f.app.stop().await;
}

// A7: told before, however rare its events are.
async fn whoever_fails_has_a_day_after_being_told(db: Db) {
    let mut f = Failing::since_now(TestApp::start(&db).await).await;
    f.tried_after(24 * 20).await;
    let failing = wait_told(&f.owner, "subscription.failing").await;
    let time = |name: &str| {
        let text = failing[name].as_str().unwrap();
        text.parse::<jiff::Timestamp>().unwrap().as_second()
    };
    let told = time("disable_time") - 24 * 3600;
    assert!((told - time("failing_since") - 20 * 24 * 3600).abs() < 600);
    f.tried_after(23).await;
    assert!(f.is_enabled().await);
    assert_eq!(f.owner.count(), 1);
    f.tried_after(1).await;
    wait_told(&f.owner, "subscription.disabled").await;
    f.app.stop().await;
}

// A7, D6: days in which delivery is switched off are not days of failing.
async fn time_without_delivery_is_not_failing(db: Db) {
    let app = TestApp::builder(&db).unpinned().start().await;
    for switch in ["external_api.enabled", "webhooks.enabled"] {
        app.switch(switch, true).await;
    }
    app.switch("webhooks.delivery.enabled", true).await;
    let mut f = Failing::since_now(app).await;
    f.app.switch("webhooks.delivery.enabled", false).await;
    f.pass(24 * 20).await;
    f.app.switch("webhooks.delivery.enabled", true).await;
    f.tried().await;
    f.tried_after(48).await;
    assert_eq!(f.owner.count(), 0);
    f.tried_after(49).await;
    wait_told(&f.owner, "subscription.failing").await;
    f.app.stop().await;
}
