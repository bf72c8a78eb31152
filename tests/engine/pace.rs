//! How fast receivers are sent to, and how much at once to one host.

use std::time::Duration;

use serde_json::json;

use crate::support::{app::TestApp, receiver::Receiver, store::Db, wait::until};

contract![
    a_rate_is_held_and_charges_nothing,
    a_rate_can_be_changed,
    a_host_has_a_cap_over_all_subscriptions,
];

// D3: so many attempts a second; those that wait for that are not charged.
async fn a_rate_is_held_and_charges_nothing(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app
        .webhook(&receiver.url(), json!({"rate_limit_per_second": 10}))
        .await;
    assert_eq!(app.subscription(&sub.id).await["rate_limit_per_second"], 10);
    for _ in 0..25 {
        app.event("a.b").await;
    }
    let received = receiver.wait(25).await;
    let took = received[24].at - received[0].at;
    assert!(took > Duration::from_millis(2100), "{took:?}");
    for (i, first) in received.iter().enumerate() {
        // What a send waits for on a busy machine is not the lane's to even out.
        let second = first.at + Duration::from_millis(800);
        let n = received[i..].iter().take_while(|r| r.at < second).count();
        assert!(n <= 12, "{n} within a second");
    }
    app.wait_for(&sub.id, "DELIVERED", 25).await;
    for d in app.with_status(&sub.id, "DELIVERED").await {
        assert_eq!(d["attempt_count"], 1);
    }
    app.stop().await;
}

// D3
async fn a_rate_can_be_changed(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app
        .webhook(&receiver.url(), json!({"rate_limit_per_second": 1}))
        .await;
    for _ in 0..100 {
        app.event("a.b").await;
    }
    receiver.wait(1).await;
    let path = format!("/v1/external/webhooks/{}", sub.id);
    let bad = json!({"rate_limit_per_second": 10_001});
    app.patch(&path, &app.admin, bad)
        .await
        .refused(400, "INVALID_ARGUMENT");
    // At the first one's rate they would take longer than this waits.
    app.change(&sub.id, json!({"rate_limit_per_second": 0}))
        .await;
    app.wait_for(&sub.id, "DELIVERED", 100).await;
    app.stop().await;
}

// D3: over subscriptions and tenants; other hosts are not held up.
async fn a_host_has_a_cap_over_all_subscriptions(db: Db) {
    let app = TestApp::builder(&db)
        .set("HOST_MAX_IN_FLIGHT", 8)
        .start()
        .await;
    let hanging = Receiver::hanging().await;
    let other = app.tenant("other").await;
    let fields = json!({"timeout_seconds": 60});
    app.webhook(&hanging.url(), fields.clone()).await;
    app.webhook(&hanging.url(), fields).await;
    let body = json!({"url": hanging.url(), "timeout_seconds": 60});
    app.subscribe(&other.key, body).await;
    let well = Receiver::start().await;
    app.webhook(&well.url(), json!({})).await;
    for n in 1..=20 {
        app.event("a.b").await;
        app.publish(&other.key, "a.b", json!(1)).await;
        well.wait(n).await;
    }
    // Each of the three leaves as much free as it has.
    until("the host has its share", async || {
        (hanging.under_way() >= 6).then_some(())
    })
    .await;
    for n in 21..=40 {
        app.event("a.b").await;
        well.wait(n).await;
    }
    assert!(hanging.count() <= 8, "{}", hanging.count());
}
