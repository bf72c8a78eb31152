//! What a subscription asks for is what it gets.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::scene::{gated, idle, quick};
use crate::support::{
    app::{TestApp, eventually},
    receiver::{Receiver, status},
    store::{Db, Engine},
};

contract![
    event_types_choose,
    own_headers_are_sent,
    a_timeout_is_honoured,
    never_more_in_flight_than_asked_for,
    too_old_is_dead,
    subscriptions_have_a_quota,
    disabled_ones_park,
    deleted_ones_cancel,
    a_test_event_goes_to_one,
    consumers_see_their_own,
    what_this_node_cannot_sign_waits,
];
on_postgres_alone![max_in_flight_holds_over_both_nodes];

// D3
async fn event_types_choose(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    for (name, types) in [
        ("exact", json!(["invoice.paid"])),
        ("prefix", json!(["invoice.*"])),
        ("all", json!(["*"])),
        ("two", json!(["order.made", "invoice.sent"])),
        ("none", json!([])),
    ] {
        let headers = json!({"x-name": name});
        app.webhook(
            &receiver.url(),
            json!({"event_types": types, "headers": headers}),
        )
        .await;
    }
    for (event_type, wanted) in [
        ("invoice.paid", vec!["all", "exact", "none", "prefix"]),
        ("invoice.sent", vec!["all", "none", "prefix", "two"]),
        ("invoice.paid.late", vec!["all", "none", "prefix"]),
        ("invoice", vec!["all", "none"]),
        ("invoices.paid", vec!["all", "none"]),
        ("order.made", vec!["all", "none", "two"]),
    ] {
        let before = receiver.count();
        app.event(event_type).await;
        let received = receiver.wait(before + wanted.len()).await;
        let mut names: Vec<_> = received[before..]
            .iter()
            .map(|r| r.header("x-name"))
            .collect();
        names.sort_unstable();
        assert_eq!(names, wanted, "{event_type}");
        assert!(
            received[before..]
                .iter()
                .all(|r| r.header("x-webhook-event") == event_type)
        );
    }
    app.stop().await;
}

// D3
async fn own_headers_are_sent(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let fields = json!({
        "headers": {"Authorization": "Basic abc", "X-Tenant": "acme"},
        "metadata": {"team": "billing"}, "description": "the accountants'",
    });
    let sub = app.webhook(&receiver.url(), fields.clone()).await;
    let shown = app.subscription(&sub.id).await;
    for name in ["headers", "metadata", "description"] {
        assert_eq!(shown[name], fields[name]);
    }
    app.event("a.b").await;
    let received = &receiver.wait(1).await[0];
    assert_eq!(received.header("authorization"), "Basic abc");
    assert_eq!(received.header("x-tenant"), "acme");
    assert_eq!(received.header("content-type"), "application/json");
    for ours in ["X-Webhook-ID", "webhook-signature", "Content-Type", "Host"] {
        let wanted = json!({"url": receiver.url(), "headers": {ours: "mine"}});
        let answer = app.post("/v1/external/webhooks", &app.admin, wanted).await;
        answer.refused(400, "INVALID_ARGUMENT");
    }
    app.stop().await;
}

// D3, A3: the attempt ends although the receiver does not.
async fn a_timeout_is_honoured(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::hanging().await;
    app.webhook(&receiver.url(), json!({"timeout_seconds": 1}))
        .await;
    let delivery = app.one_delivery("a.b").await;
    app.is(&delivery, "RETRYING").await;
    let attempt = &app.attempts(&delivery).await[0];
    assert_eq!(attempt["error"], "timeout");
    let took: i64 = attempt["duration_ms"].as_i64().unwrap();
    assert!((1000..5000).contains(&took), "{took} ms");
    app.stop().await;
}

async fn under_way(receiver: &Receiver, count: usize) {
    eventually(&format!("{count} are under way"), || async {
        (receiver.under_way() == count).then_some(())
    })
    .await;
}

/// Publishes 24 events in turns to these nodes, and lets them through by and by.
async fn never_more_than_three(apps: &[&TestApp]) {
    let (receiver, permits) = gated().await;
    let sub = apps[0]
        .webhook(&receiver.url(), json!({"max_in_flight": 3}))
        .await;
    for n in 0..24 {
        apps[n % apps.len()].event("a.b").await;
    }
    for done in 0..21 {
        under_way(&receiver, 3).await;
        assert_eq!(receiver.count(), done + 3);
        permits.add_permits(1);
        receiver.wait(done + 4).await;
    }
    permits.add_permits(3);
    apps[0].wait_for(&sub.id, "DELIVERED", 24).await;
    assert_eq!(receiver.most_under_way(), 3);
}

// D3
async fn never_more_in_flight_than_asked_for(db: Db) {
    let app = TestApp::start(&db).await;
    never_more_than_three(&[&app]).await;

    // A change is followed at once.
    let (receiver, permits) = gated().await;
    let sub = app
        .webhook(
            &receiver.url(),
            json!({"max_in_flight": 1, "event_types": ["c.d"]}),
        )
        .await;
    for _ in 0..6 {
        app.event("c.d").await;
    }
    under_way(&receiver, 1).await;
    app.change(&sub.id, json!({"max_in_flight": 4})).await;
    under_way(&receiver, 4).await;
    permits.add_permits(6);
    app.wait_for(&sub.id, "DELIVERED", 6).await;
    assert_eq!(receiver.most_under_way(), 4);
    app.stop().await;
}

// D3, A8: a limit holds over all nodes together.
async fn max_in_flight_holds_over_both_nodes(db: Db) {
    let one = TestApp::start(&db).await;
    let other = one.again().start().await;
    never_more_than_three(&[&one, &other]).await;
    other.stop().await;
    one.stop().await;
}

// D3: what waits for longer than its subscription wants is not sent.
async fn too_old_is_dead(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, permits) = gated().await;
    let fields = json!({"max_in_flight": 1, "max_age_seconds": 2, "timeout_seconds": 60});
    app.webhook(&receiver.url(), fields).await;
    let first = app.one_delivery("a.b").await;
    app.is(&first, "SENDING").await;
    let second = app.one_delivery("a.b").await;
    let published = Instant::now();
    eventually("the second is too old", || async {
        (published.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .await;
    permits.add_permits(10);
    let dead = app.is(&second, "DEAD").await;
    assert_eq!(
        (&dead["reason"], &dead["attempt_count"]),
        (&json!("max_age_exceeded"), &json!(0))
    );
    app.is(&first, "DELIVERED").await;

    // Nor is it tried again where that would be too late.
    let failing = Receiver::answering(|_| status(503)).await;
    let fields = json!({
        "max_age_seconds": 2, "event_types": ["c.d"],
        "retry_schedule": {"max_attempts": 9, "backoff_seconds": [3]},
    });
    app.webhook(&failing.url(), fields).await;
    let event = app.event("c.d").await;
    let deliveries = app.deliveries_of(&app.admin, &event).await;
    for d in deliveries {
        if d["subscription_id"] != app.delivery(&first).await["subscription_id"] {
            let dead = app.is(d["id"].as_str().unwrap(), "DEAD").await;
            assert_eq!(dead["attempt_count"], 1);
        }
    }
    assert_eq!(
        receiver
            .received()
            .iter()
            .filter(|r| r.header("x-webhook-id") == second)
            .count(),
        0
    );
    app.stop().await;
}

// D3
async fn subscriptions_have_a_quota(db: Db) {
    let app = TestApp::builder(&db)
        .set("QUOTA_SUBSCRIPTIONS", 2)
        .start()
        .await;
    let tenant = app.tenant("acme").await;
    let wanted = json!({"url": "http://127.0.0.1:9/"});
    let first = app.subscribe(&tenant.key, wanted.clone()).await;
    app.subscribe(&tenant.key, wanted.clone()).await;
    let over = app
        .post("/v1/external/webhooks", &tenant.key, wanted.clone())
        .await;
    assert_eq!(over.code(), "QUOTA_EXCEEDED");
    app.webhook("http://127.0.0.1:9/", json!({})).await;
    app.delete(&format!("/v1/external/webhooks/{}", first.id), &tenant.key)
        .await
        .ok();
    app.subscribe(&tenant.key, wanted).await;
    app.stop().await;
}

// D3, A1: deliveries of a disabled subscription wait, and go out once, later.
async fn disabled_ones_park(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app
        .webhook(&receiver.url(), json!({"enabled": false}))
        .await;
    for _ in 0..10 {
        let delivery = app.one_delivery("a.b").await;
        assert_eq!(app.delivery(&delivery).await["status"], "PARKED");
    }
    assert_eq!(app.with_status(&sub.id, "PARKED").await.len(), 10);
    assert!(app.with_status(&sub.id, "PENDING").await.is_empty());
    assert_eq!(receiver.count(), 0);
    app.change(&sub.id, json!({"enabled": true})).await;
    app.wait_for(&sub.id, "DELIVERED", 10).await;
    idle(&receiver).await;
    assert_eq!(receiver.count(), 10);

    // Switched off while something waits for its next attempt.
    let failing = Receiver::answering(|r| status(if r.attempt() == 1 { 503 } else { 200 })).await;
    let fields = json!({"event_types": ["c.d"], "retry_schedule": quick(3)});
    let sub = app.webhook(&failing.url(), fields).await;
    let event = app.event("c.d").await;
    failing.wait(1).await;
    app.change(&sub.id, json!({"enabled": false})).await;
    let all = app.deliveries_of(&app.admin, &event).await;
    let one = all
        .iter()
        .find(|d| d["subscription_id"] == *sub.id)
        .unwrap();
    let id = one["id"].as_str().unwrap();
    app.is(id, "PARKED").await;
    app.change(&sub.id, json!({"enabled": true})).await;
    let delivered = app.is(id, "DELIVERED").await;
    assert_eq!(delivered["attempt_count"], 2);
    app.stop().await;
}

// A1: its subscription was deleted.
async fn deleted_ones_cancel(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app
        .webhook(&receiver.url(), json!({"enabled": false}))
        .await;
    let waiting = app.one_delivery("a.b").await;
    app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
        .await
        .ok();
    let cancelled = app.is(&waiting, "CANCELLED").await;
    assert!(cancelled["finish_time"].is_string());
    app.retry(&waiting)
        .await
        .refused(409, "FAILED_PRECONDITION");
    assert_eq!(receiver.count(), 0);
    app.stop().await;
}

// D3: whatever the subscription wants otherwise.
async fn a_test_event_goes_to_one(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app
        .webhook(&receiver.url(), json!({"event_types": ["a.b"]}))
        .await;
    app.webhook(&receiver.url(), json!({})).await;
    let path = format!("/v1/external/webhooks/{}/test", sub.id);
    let made = app.post(&path, &app.admin, json!({})).await;
    assert_eq!(made.status, 202);
    let made = made.ok();
    app.is(made["delivery_id"].as_str().unwrap(), "DELIVERED")
        .await;
    let received = receiver.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].header("x-webhook-event"), "webhook.test");
    assert_eq!(received[0].event(), made["event_id"]);
    app.stop().await;
}

// D3: another tenant's are not there.
async fn consumers_see_their_own(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::answering(|_| status(400)).await;
    let (owner, other) = (app.tenant("owner").await, app.tenant("other").await);
    let sub = app
        .subscribe(&owner.key, json!({"url": receiver.url()}))
        .await;
    let event = app.publish(&owner.key, "a.b", json!(1)).await;
    let delivery = app.deliveries_of(&owner.key, &event).await[0]["id"].clone();
    let delivery = delivery.as_str().unwrap();
    app.delivery_is(&owner.key, delivery, "DEAD").await;
    let webhook = format!("/v1/external/webhooks/{}", sub.id);
    for (method, path, body) in [
        ("GET", webhook.clone(), Value::Null),
        ("PATCH", webhook.clone(), json!({"description": "mine now"})),
        ("DELETE", webhook.clone(), Value::Null),
        ("POST", format!("{webhook}/rotate-secret"), json!({})),
        ("POST", format!("{webhook}/test"), json!({})),
        ("GET", format!("{webhook}/deliveries"), Value::Null),
        ("GET", format!("/v1/external/events/{event}"), Value::Null),
        (
            "GET",
            format!("/v1/external/events/{event}/deliveries"),
            Value::Null,
        ),
        (
            "GET",
            format!("/v1/external/deliveries/{delivery}"),
            Value::Null,
        ),
        (
            "GET",
            format!("/v1/external/deliveries/{delivery}/attempts"),
            Value::Null,
        ),
        (
            "POST",
            format!("/v1/external/deliveries/{delivery}/retry"),
            json!({}),
        ),
    ] {
        let answer = app.rest(method, &path, &other.key, &body).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "NOT_FOUND"),
            "{method} {path}"
        );
    }
    let list = app.get("/v1/external/webhooks", &other.key).await.ok();
    assert_eq!(list["subscriptions"], json!([]));
    app.publish(&other.key, "a.b", json!(2)).await;
    assert_eq!(receiver.count(), 1);
    app.stop().await;
}

/// Has the secrets of all subscriptions be sealed with that data key, as far as
/// they say.
async fn name_data_key(db: &Db, version: u8) {
    let sql = match db.engine() {
        Engine::Postgres => {
            format!(
                r"update subscriptions set secret = '\x{version:08x}'::bytea || substr(secret, 5)"
            )
        }
        Engine::Sqlite => format!(
            "update subscriptions set secret = cast(x'{version:08x}' || substr(secret, 5) as blob)"
        ),
    };
    db.tamper(&sql).await;
}

// D1, Z1: a subscription whose secret this node can't open, such as one that is
// sealed with a data key which it does not have, misses nothing.
async fn what_this_node_cannot_sign_waits(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    app.one_delivery("a.b").await;
    receiver.wait(1).await;
    name_data_key(&db, 99).await;
    // With this the node reads the tenant's subscriptions again.
    let other = Receiver::start().await;
    let known = app.webhook(&other.url(), json!({})).await;
    for _ in 0..3 {
        let event = app.event("a.b").await;
        assert_eq!(app.deliveries_of(&app.admin, &event).await.len(), 2);
    }
    app.wait_for(&known.id, "DELIVERED", 3).await;
    assert_eq!(app.with_status(&sub.id, "PENDING").await.len(), 3);
    assert_eq!(receiver.count(), 1);

    name_data_key(&db, 1).await;
    app.change(&known.id, json!({"description": "x"})).await;
    app.wait_for(&sub.id, "DELIVERED", 4).await;
    assert_eq!(receiver.count(), 4);
    app.stop().await;
}
