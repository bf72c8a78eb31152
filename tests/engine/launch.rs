//! A launch in its four stages: the outside API for canaries, webhooks without
//! delivery, delivery, everybody.

use serde_json::json;

use crate::support::{
    app::{Subscribed, TestApp},
    receiver::Receiver,
    store::Db,
};

contract![
    by_the_environment,
    by_switches_that_are_set,
    a_stop_holds_what_queues_up,
];

const EVENTS: usize = 1000;
const ME: &str = "/v1/external/me";

/// A consumer's key that is a canary's, and one that is not.
struct Consumers {
    canary: String,
    other: String,
}

async fn consumers(app: &TestApp) -> Consumers {
    Consumers {
        canary: app.key(json!({"canary_enabled": true})).await.1,
        other: app.key(json!({})).await.1,
    }
}

/// Publishes so many events at once.
async fn publish(app: &TestApp, count: usize) {
    let event = json!({"event_type": "ring.forged", "data": {"n": 1}});
    let events = json!({"events": vec![event; count]});
    let made = app
        .post("/v1/external/events/batch", &app.admin, events)
        .await
        .ok();
    let results = made["results"].as_array().unwrap();
    assert_eq!(results.len(), count);
    assert!(results.iter().all(|r| r["accepted"].is_object()));
}

// X1: before anything is switched on.
async fn nothing_is_open(app: &TestApp, keys: &Consumers) {
    for key in [&keys.canary, &keys.other] {
        app.get(ME, key).await.refused(503, "EXTERNAL_API_DISABLED");
    }
}

// X1: the first stage.
async fn canaries_alone(app: &TestApp, keys: &Consumers) {
    app.get(ME, &keys.canary).await.ok();
    app.get(ME, &keys.other)
        .await
        .refused(403, "CANARY_ONLY_MODE");
    let event = json!({"event_type": "a.b", "data": 1});
    app.post("/v1/external/events", &app.admin, event)
        .await
        .refused(503, "WEBHOOKS_DISABLED");
}

// D6: the second one.
async fn events_queue_up(app: &TestApp, receiver: &Receiver) -> Subscribed {
    let subscription = app.webhook(&receiver.url(), json!({})).await;
    publish(app, EVENTS).await;
    assert_eq!(
        app.with_status(&subscription.id, "PENDING").await.len(),
        EVENTS
    );
    assert_eq!(receiver.count(), 0);
    subscription
}

// D6: the third one.
async fn all_arrive(app: &TestApp, subscription: &Subscribed, receiver: &Receiver) {
    app.wait_for(&subscription.id, "DELIVERED", EVENTS).await;
    assert_eq!(app.with_status(&subscription.id, "PENDING").await.len(), 0);
    let mut events: Vec<_> = receiver
        .received()
        .iter()
        .map(|r| r.event().to_owned())
        .collect();
    events.sort_unstable();
    events.dedup();
    assert_eq!((events.len(), receiver.count()), (EVENTS, EVENTS));
}

// X1, D6: each stage is a start with other variables, the third one a reload.
async fn by_the_environment(db: Db) {
    let app = TestApp::builder(&db).unpinned().start().await;
    let receiver = Receiver::start().await;
    let keys = consumers(&app).await;
    nothing_is_open(&app, &keys).await;
    let stage = async |app: TestApp, name: &str, value| {
        let again = app.again().set(name, value);
        app.stop().await;
        again.start().await
    };
    let app = stage(app, "EXTERNAL_API_CANARY_ONLY", 1).await;
    nothing_is_open(&app, &keys).await;
    let app = stage(app, "EXTERNAL_API_ENABLED", 1).await;
    canaries_alone(&app, &keys).await;
    let app = stage(app, "WEBHOOKS_DELIVERY_ENABLED", 0).await;
    let mut app = stage(app, "WEBHOOKS_ENABLED", 1).await;
    let subscription = events_queue_up(&app, &receiver).await;
    app.get(ME, &keys.other)
        .await
        .refused(403, "CANARY_ONLY_MODE");
    app.reload(&[("WEBHOOKS_DELIVERY_ENABLED", "1")]);
    all_arrive(&app, &subscription, &receiver).await;
    app.reload(&[("EXTERNAL_API_CANARY_ONLY", "0")]);
    app.get(ME, &keys.other).await.ok();
    app.get(ME, &keys.canary).await.ok();
    app.stop().await;
}

// X1, X2, D6: the same without a restart.
async fn by_switches_that_are_set(db: Db) {
    let app = TestApp::builder(&db).unpinned().start().await;
    let receiver = Receiver::start().await;
    let keys = consumers(&app).await;
    nothing_is_open(&app, &keys).await;
    app.switch("external_api.canary_only", true).await;
    app.switch("external_api.enabled", true).await;
    canaries_alone(&app, &keys).await;
    app.switch("webhooks.enabled", true).await;
    let subscription = events_queue_up(&app, &receiver).await;
    app.get(ME, &keys.other)
        .await
        .refused(403, "CANARY_ONLY_MODE");
    app.switch("webhooks.delivery.enabled", true).await;
    all_arrive(&app, &subscription, &receiver).await;
    app.switch("external_api.canary_only", false).await;
    app.get(ME, &keys.other).await.ok();
    app.stop().await;
}

// X4, D6: the emergency stop holds deliveries back at once, pinned or not; none
// is lost, and when it is lifted all of them go out.
async fn a_stop_holds_what_queues_up(db: Db) {
    let mut app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let subscription = app.webhook(&receiver.url(), json!({})).await;
    publish(&app, 1).await;
    app.wait_for(&subscription.id, "DELIVERED", 1).await;
    app.reload(&[("WEBHOOKS_DELIVERY_ENABLED", "0")]);
    publish(&app, 50).await;
    let post = async |app: &TestApp, path: &str, body| {
        let path = format!("/v1/admin/switches/{path}");
        app.post(&path, &app.admin, body).await.ok()
    };
    let stop = json!({"reason": "incident 42"});
    crate::support::app::confirmed(&post(&app, "stop-all", stop).await);
    app.reload(&[("WEBHOOKS_DELIVERY_ENABLED", "1")]);
    for name in ["external_api.enabled", "webhooks.enabled"] {
        post(&app, "lift-stop", json!({"name": name, "reason": "over"})).await;
    }
    // The way in is open again, the way out not yet.
    publish(&app, 50).await;
    assert!(!app.app().context.dispatcher.is_delivering());
    assert_eq!(
        app.with_status(&subscription.id, "PENDING").await.len(),
        100
    );
    assert_eq!(receiver.count(), 1);
    let lift = json!({"name": "webhooks.delivery.enabled", "reason": "over"});
    post(&app, "lift-stop", lift).await;
    app.wait_for(&subscription.id, "DELIVERED", 101).await;
    app.stop().await;
}
