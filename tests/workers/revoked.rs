//! What is taken back from a worker that has it.

use onering::proto::v1::server_message::RevokeReason;
use serde_json::json;

use super::client::Worker;
use crate::support::{app::TestApp, store::Db};

contract![
    a_disabled_subscriptions_deliveries_are_revoked,
    a_deleted_subscriptions_deliveries_are_revoked,
    the_switch_revokes_all,
];

// W1: a subscription that is switched off, and on again.
async fn a_disabled_subscriptions_deliveries_are_revoked(db: Db) {
    let app = TestApp::start(&db).await;
    let off = app.stream(json!({"event_types": ["off"]})).await;
    app.stream(json!({"event_types": ["on"]})).await;
    let mut worker = Worker::start(&app, "w", 10).await;
    app.events("off", 1).await;
    let revoked = worker.delivery().await;
    app.events("on", 1).await;
    let stays = worker.delivery().await;
    let path = format!("/v1/external/webhooks/{}", off.id);
    app.patch(&path, &app.admin, json!({"enabled": false}))
        .await
        .ok();
    let told = worker.revoked().await;
    assert_eq!(
        told.delivery_ids,
        std::slice::from_ref(&revoked.delivery_id)
    );
    assert_eq!(told.reason(), RevokeReason::Subscription);
    let result = worker.ack(&[&revoked, &stays]).await;
    assert_eq!(result.stale, std::slice::from_ref(&revoked.delivery_id));
    assert_eq!(result.ok, std::slice::from_ref(&stays.delivery_id));
    assert_eq!(app.state_of(&revoked.delivery_id).await["status"], "PARKED");
    app.patch(&path, &app.admin, json!({"enabled": true}))
        .await
        .ok();
    let again = worker.delivery().await;
    assert_eq!((again.delivery_id, again.attempt), (revoked.delivery_id, 1));
    app.stop().await;
}

// W1: a subscription that is gone.
async fn a_deleted_subscriptions_deliveries_are_revoked(db: Db) {
    let app = TestApp::start(&db).await;
    let sub = app.stream(json!({})).await;
    let mut worker = Worker::start(&app, "w", 10).await;
    app.events("a.b", 1).await;
    let d = worker.delivery().await;
    let path = format!("/v1/external/webhooks/{}", sub.id);
    app.delete(&path, &app.admin).await.ok();
    let told = worker.revoked().await;
    assert_eq!(told.delivery_ids, std::slice::from_ref(&d.delivery_id));
    assert_eq!(told.reason(), RevokeReason::Subscription);
    app.delivery_is(&app.admin, &d.delivery_id, "CANCELLED")
        .await;
    assert_eq!(worker.ack(&[&d]).await.stale.len(), 1);
    db.counts_agree().await;
    app.stop().await;
}

// W1, D6: the delivery switch holds streams too.
async fn the_switch_revokes_all(db: Db) {
    let app = TestApp::builder(&db).unpinned().start().await;
    for switch in ["webhooks.enabled", "webhooks.delivery.enabled"] {
        app.switch(switch, true).await;
    }
    app.stream(json!({})).await;
    let mut worker = Worker::start(&app, "w", 10).await;
    app.events("a.b", 1).await;
    let d = worker.delivery().await;
    app.switch("webhooks.delivery.enabled", false).await;
    let told = worker.revoked().await;
    assert_eq!(told.reason(), RevokeReason::SwitchedOff);
    app.events("a.b", 1).await;
    assert!(worker.everything_until_now().await.is_empty());
    app.switch("webhooks.delivery.enabled", true).await;
    let both = worker.deliveries(2).await;
    assert!(both.iter().any(|b| b.delivery_id == d.delivery_id));
    app.stop().await;
}
