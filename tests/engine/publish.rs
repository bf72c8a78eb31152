//! Publishing: what an answer promises, and what is refused.

use futures_util::future::join_all;
use onering::domain::id::{DeliveryId, EventId, SubscriptionId, TenantId};
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, eventually},
    receiver::Receiver,
    store::Db,
};

contract![
    what_is_answered_is_committed,
    each_event_of_a_batch_is_answered_by_itself,
    a_subscription_answered_before_is_matched,
    the_fan_out_has_a_cap,
    a_payload_has_a_limit,
    stored_bytes_have_a_quota,
    ids_carry_their_tenants_partition,
];
on_postgres_alone![a_subscription_of_another_node_is_matched];

const EVENTS: &str = "/v1/external/events";

// D1: at the answer the event and its deliveries are there to be read, before
// anything is sent.
async fn what_is_answered_is_committed(db: Db) {
    let app = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_ENABLED", 0)
        .start()
        .await;
    let url = "http://127.0.0.1:9/webhook";
    let mut wanted = Vec::new();
    for types in [
        json!(["invoice.paid"]),
        json!(["invoice.*"]),
        json!(["order.*"]),
    ] {
        wanted.push(app.webhook(url, json!({"event_types": types})).await.id);
    }
    let made = app
        .post(
            EVENTS,
            &app.admin,
            json!({"event_type": "invoice.paid", "data": {"a": 1}}),
        )
        .await;
    assert_eq!(made.status, 202);
    let made = made.ok();
    assert_eq!(made["delivery_count"], 2);
    let event = made["id"].as_str().unwrap();
    let deliveries = app.deliveries_of(&app.admin, event).await;
    let mut to: Vec<_> = deliveries
        .iter()
        .map(|d| d["subscription_id"].as_str().unwrap())
        .collect();
    to.sort_unstable();
    wanted.truncate(2);
    wanted.sort_unstable();
    assert_eq!(to, wanted);
    assert!(
        deliveries
            .iter()
            .all(|d| d["status"] == "PENDING" && d["event_id"] == event)
    );
    let read = app.get(&format!("{EVENTS}/{event}"), &app.admin).await.ok();
    assert_eq!(
        (&read["id"], &read["data"]),
        (&made["id"], &json!({"a": 1}))
    );
    app.stop().await;
}

// D1
async fn each_event_of_a_batch_is_answered_by_itself(db: Db) {
    let app = TestApp::builder(&db)
        .set("EVENT_MAX_BYTES", 100)
        .start()
        .await;
    let big = "x".repeat(200);
    let events = json!([
        {"event_type": "a.b", "data": 1, "idempotency_key": "k"},
        {"event_type": "not a type", "data": 1},
        {"event_type": "a.b", "data": big},
        {"event_type": "a.c", "data": 2},
        {"event_type": "a.b", "tenant": "nobody", "data": 2},
    ]);
    let batch = app
        .post(
            &format!("{EVENTS}/batch"),
            &app.admin,
            json!({"events": events}),
        )
        .await;
    assert_eq!(batch.status, 202);
    let batch = batch.ok();
    let results = batch["results"].as_array().unwrap();
    let told: Vec<_> = results
        .iter()
        .map(|r| {
            r["error"]["reason"]
                .as_str()
                .or(r["accepted"]["event_type"].as_str())
                .unwrap()
        })
        .collect();
    assert_eq!(
        told,
        [
            "a.b",
            "INVALID_ARGUMENT",
            "PAYLOAD_TOO_LARGE",
            "a.c",
            "NOT_FOUND"
        ]
    );
    for n in [0, 3] {
        let id = results[n]["accepted"]["id"].as_str().unwrap();
        assert_eq!(
            app.get(&format!("{EVENTS}/{id}"), &app.admin).await.status,
            200
        );
    }
    app.stop().await;
}

/// Makes a subscription on one node and, once that is answered, publishes on
/// another; many pairs at once.
async fn subscribe_then_publish(first: &TestApp, second: &TestApp) {
    let pairs = (0..30).map(|n| async move {
        let event_type = format!("pair.{n}");
        let wanted = json!({"event_types": [event_type]});
        first.webhook("http://127.0.0.1:9/webhook", wanted).await;
        let body = json!({"event_type": event_type, "data": n});
        let made = second.post(EVENTS, &second.admin, body).await.ok();
        assert_eq!(made["delivery_count"], 1, "{event_type}");
    });
    join_all(pairs).await;
}

// D1: whatever else changes at the same time.
async fn a_subscription_answered_before_is_matched(db: Db) {
    let app = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_ENABLED", 0)
        .start()
        .await;
    subscribe_then_publish(&app, &app).await;
    app.stop().await;
}

// D1: on whichever node each happened.
async fn a_subscription_of_another_node_is_matched(db: Db) {
    let one = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_ENABLED", 0)
        .start()
        .await;
    let other = one.again().start().await;
    subscribe_then_publish(&one, &other).await;
    other.stop().await;
    one.stop().await;
}

// D1
async fn the_fan_out_has_a_cap(db: Db) {
    let app = TestApp::builder(&db).set("FAN_OUT_MAX", 2).start().await;
    let receiver = Receiver::start().await;
    for types in [json!(["a.*"]), json!(["a.*"]), json!(["a.b"])] {
        app.webhook(&receiver.url(), json!({"event_types": types}))
            .await;
    }
    let over = app
        .post(EVENTS, &app.admin, json!({"event_type": "a.b", "data": 1}))
        .await;
    assert_eq!(over.code(), "QUOTA_EXCEEDED");
    let made = app
        .post(EVENTS, &app.admin, json!({"event_type": "a.c", "data": 1}))
        .await
        .ok();
    assert_eq!(made["delivery_count"], 2);
    app.stop().await;
}

fn payload(length: usize) -> Value {
    json!({"event_type": "a.b", "data": "x".repeat(length - 2)})
}

// D5: 256 KiB by default.
async fn a_payload_has_a_limit(db: Db) {
    let app = TestApp::start(&db).await;
    let fits = app.post(EVENTS, &app.admin, payload(262_144)).await;
    assert_eq!(fits.status, 202, "{}", fits.text());
    let over = app.post(EVENTS, &app.admin, payload(262_145)).await;
    over.refused(413, "PAYLOAD_TOO_LARGE");
    app.stop().await;
}

// D3: also after a restart.
async fn stored_bytes_have_a_quota(db: Db) {
    let app = TestApp::builder(&db)
        .set("QUOTA_STORED_BYTES", 5000)
        .start()
        .await;
    let mut accepted = 0;
    let refused = loop {
        let answer = app.post(EVENTS, &app.admin, payload(500)).await;
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 10, "ten of these are more than the quota");
    };
    assert_eq!(refused.code(), "QUOTA_EXCEEDED");
    assert!(accepted >= 7, "{accepted}");
    let other = app.tenant("other").await;
    let answer = app.post(EVENTS, &other.key, payload(500)).await;
    assert_eq!(answer.status, 202, "each tenant has its own");

    let again = app.again();
    app.stop().await;
    let app = again.start().await;
    eventually("the quota is remembered", || async {
        let answer = app.post(EVENTS, &app.admin, payload(500)).await;
        (answer.status != 202 && answer.code() == "QUOTA_EXCEEDED").then_some(())
    })
    .await;
    app.stop().await;
}

// N5: six random bits of each id are the tenant's partition.
async fn ids_carry_their_tenants_partition(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let mut parts = std::collections::HashSet::new();
    for n in 0..6 {
        let tenant = app.tenant(&format!("tenant-{n}")).await;
        let sub = app
            .subscribe(&tenant.key, json!({"url": receiver.url()}))
            .await;
        let event = app.publish(&tenant.key, "a.b", json!(n)).await;
        let delivery = &app.deliveries_of(&tenant.key, &event).await[0];
        let part = tenant.id.parse::<TenantId>().unwrap().part();
        assert_eq!(sub.id.parse::<SubscriptionId>().unwrap().part(), part);
        assert_eq!(event.parse::<EventId>().unwrap().part(), part);
        let delivery = delivery["id"].as_str().unwrap();
        assert_eq!(delivery.parse::<DeliveryId>().unwrap().part(), part);
        parts.insert(part);
    }
    assert!(parts.len() > 1, "tenants spread: {parts:?}");
    app.stop().await;
}
