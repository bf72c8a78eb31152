//! Deliveries that are held on purpose, and what becomes of them.

use serde_json::json;

use super::scene::gated;
use crate::support::{
    app::{TestApp, eventually},
    faults::Faults,
    receiver::Receiver,
    store::{Db, SECOND},
};

contract![
    what_queued_up_goes_out,
    old_and_new_are_mixed,
    time_held_is_not_age,
    webhooks_off_stops_the_way_in_alone,
];

const ON: [(&str, &str); 1] = [("WEBHOOKS_DELIVERY_ENABLED", "1")];

/// Switches delivery off, and waits until the switch is in force.
async fn switch_off(app: &mut TestApp) {
    app.reload(&[("WEBHOOKS_DELIVERY_ENABLED", "0")]);
    eventually("nothing is sent any more", || async {
        (!app.app().context.dispatcher.is_delivering()).then_some(())
    })
    .await;
}

// D6: also over a restart.
async fn what_queued_up_goes_out(db: Db) {
    let mut app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    switch_off(&mut app).await;
    for _ in 0..20 {
        let delivery = app.one_delivery("a.b").await;
        assert_eq!(app.delivery(&delivery).await["status"], "PENDING");
    }
    let again = app.again();
    app.stop().await;
    let mut app = again.start().await;
    for _ in 0..20 {
        app.event("a.b").await;
    }
    assert_eq!(app.with_status(&sub.id, "PENDING").await.len(), 40);
    assert_eq!(receiver.count(), 0);
    app.reload(&ON);
    app.wait_for(&sub.id, "DELIVERED", 40).await;
    assert_eq!(receiver.count(), 40);
    app.stop().await;
}

// D6: each gets at least a quarter of the sends, while both wait.
async fn old_and_new_are_mixed(db: Db) {
    let mut app = TestApp::start(&db).await;
    let (receiver, permits) = gated().await;
    let sub = app
        .webhook(&receiver.url(), json!({"max_in_flight": 1}))
        .await;
    switch_off(&mut app).await;
    let mut old = Vec::new();
    for _ in 0..40 {
        old.push(app.event("a.b").await);
    }
    app.reload(&ON);
    receiver.wait(1).await;
    for _ in 0..40 {
        app.event("a.b").await;
    }
    permits.add_permits(80);
    app.wait_for(&sub.id, "DELIVERED", 80).await;
    let received = receiver.received();
    let early = received[..40]
        .iter()
        .filter(|r| old.contains(&r.event().to_owned()))
        .count();
    assert!(
        (10..=30).contains(&early),
        "{early} of the first 40 are old"
    );
    app.stop().await;
}

// D3, D6: neither the switch nor a disabled subscription makes a delivery old.
async fn time_held_is_not_age(db: Db) {
    let faults = Faults::none();
    let mut app = TestApp::builder(&db)
        .set("SESSION_SECONDS", 20)
        .faults(&faults)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let by_switch = app
        .webhook(&receiver.url(), json!({"max_age_seconds": 2}))
        .await;
    let by_owner = app
        .webhook(
            &receiver.url(),
            json!({"max_age_seconds": 2, "enabled": false}),
        )
        .await;
    let noted = faults.answered("hold");
    switch_off(&mut app).await;
    faults.wait("hold", noted + 1).await;
    for _ in 0..3 {
        app.event("a.b").await;
    }
    // Within the session's life, and more than the deliveries'.
    let store = &app.app().context.store;
    store.shift_clock(14 * SECOND).await.unwrap();
    app.reload(&ON);
    app.wait_for(&by_switch.id, "DELIVERED", 3).await;
    assert_eq!(app.with_status(&by_owner.id, "PARKED").await.len(), 3);
    app.change(&by_owner.id, json!({"enabled": true})).await;
    app.wait_for(&by_owner.id, "DELIVERED", 3).await;
    app.stop().await;
}

// D6
async fn webhooks_off_stops_the_way_in_alone(db: Db) {
    let mut app = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_ENABLED", 0)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    app.event("a.b").await;
    app.reload(&[("WEBHOOKS_ENABLED", "0"), ON[0]]);
    app.wait_for(&sub.id, "DELIVERED", 1).await;
    let event = json!({"event_type": "a.b", "data": 1});
    app.post("/v1/external/events", &app.admin, event)
        .await
        .refused(503, "WEBHOOKS_DISABLED");
    let webhook = json!({"url": receiver.url()});
    app.post("/v1/external/webhooks", &app.admin, webhook)
        .await
        .refused(503, "WEBHOOKS_DISABLED");
    let path = format!("/v1/external/webhooks/{}", sub.id);
    app.delete(&path, &app.admin)
        .await
        .refused(503, "WEBHOOKS_DISABLED");
    assert_eq!(
        app.get(&path, &app.admin).await.status,
        200,
        "reading goes on"
    );
    app.reload(&[("WEBHOOKS_ENABLED", "1")]);
    app.event("a.b").await;
    app.wait_for(&sub.id, "DELIVERED", 2).await;
    app.stop().await;
}
