//! Tenants are kept apart.

use std::collections::BTreeSet;

use onering::{domain::id::wall_clock, proto::v1};
use serde_json::{Value, json};

use super::dead_letters::a_dead_letter;
use crate::support::{
    app::{Subscribed, Tenant, TestApp, eventually, reason},
    call::{Call, call, every_rpc},
    store::Db,
};

contract![
    tenants_are_made_and_listed,
    no_call_reaches_another_tenant,
    an_admin_key_acts_on_any_tenant,
    keys_of_every_tenant_are_not_for_bound_ones,
];

/// What becomes of a call about another tenant's things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// They do not exist for the caller.
    NotFound,
    /// The call names the tenant.
    Mismatch,
    /// As above, in the result of each entry.
    MismatchInBatch,
    /// It is about the caller's own tenant, whatever it says.
    OwnOnly,
    /// It is told that there is no such key.
    NoSuchKey,
}

/// A tenant with one of everything.
struct Household {
    tenant: Tenant,
    /// An admin key that is bound to it.
    admin: String,
    subscription: Subscribed,
    event: String,
    delivery: String,
    /// Of the same subscription.
    letter: String,
    /// One that is over.
    redrive: String,
}

async fn household(app: &TestApp, name: &str) -> Household {
    let tenant = app.tenant(name).await;
    let body = json!({"tenant": name, "kind": "ADMIN", "scopes": ["external:admin"]});
    let (_, admin) = app.key(body).await;
    let body = json!({"url": "http://127.0.0.1:9/", "event_types": ["*"]});
    let subscription = app.subscribe(&tenant.key, body).await;
    let event = app.publish(&tenant.key, "invoice.paid", json!({})).await;
    let deliveries = app.deliveries_of(&tenant.key, &event).await;
    let delivery = deliveries[0]["id"].as_str().unwrap().to_owned();
    let letter = a_dead_letter(app, &tenant.id, &subscription.id).await;
    let body = json!({"filter": {"tenant": name, "reason": "nothing"}});
    let begun = app.post("/v1/admin/dead-letters/redrive", &admin, body);
    let redrive = begun.await.ok()["id"].as_str().unwrap().to_owned();
    eventually("the redrive is over", || async {
        let now = app
            .get(&format!("/v1/admin/redrives/{redrive}"), &admin)
            .await;
        (now.ok()["state"] == "DONE").then_some(())
    })
    .await;
    Household {
        tenant,
        admin,
        subscription,
        event,
        delivery,
        letter,
        redrive,
    }
}

/// A row for every RPC: what it asks for of a household, and what becomes of
/// that when another one asks. What deletes comes last.
fn table(of: &Household) -> Vec<(Call, Fate)> {
    use Fate::{Mismatch, MismatchInBatch, NoSuchKey, NotFound, OwnOnly};
    let key = |rpc| (call(rpc, json!({"key_id": of.tenant.key_id})), NotFound);
    let subscription = |rpc| (call(rpc, json!({"id": of.subscription.id})), NotFound);
    let tenant = &of.tenant.name;
    let monitoring = |rpc| (call(rpc, json!({"tenant": of.tenant.name})), Mismatch);
    let event_type = |rpc| {
        let mut request = json!({"tenant": of.tenant.name, "name": "a.b"});
        if rpc == "EventTypeService/ListEventTypes" {
            request = json!({"tenant": of.tenant.name});
        }
        (call(rpc, request), Mismatch)
    };
    let delivery = &of.delivery;
    let letter = |rpc| (call(rpc, json!({"id": of.letter})), NotFound);
    let redrive = |rpc| (call(rpc, json!({"id": of.redrive})), NotFound);
    vec![
        (
            call("KeyService/CreateKey", json!({"tenant": tenant})),
            Mismatch,
        ),
        (
            call("KeyService/ListKeys", json!({"tenant": tenant})),
            Mismatch,
        ),
        (call("KeyService/GetCaller", json!({})), OwnOnly),
        (
            call("KeyService/VerifyKey", json!({"key": of.tenant.key})),
            NoSuchKey,
        ),
        key("KeyService/GetKey"),
        (
            call(
                "KeyService/UpdateKey",
                json!({"key_id": of.tenant.key_id, "key": {"name": "taken"}}),
            ),
            NotFound,
        ),
        key("KeyService/DisableKey"),
        key("KeyService/EnableKey"),
        key("KeyService/RotateKey"),
        (
            call("TenantService/CreateTenant", json!({"name": "new"})),
            Mismatch,
        ),
        (
            call("TenantService/GetTenant", json!({"tenant": tenant})),
            NotFound,
        ),
        (call("TenantService/ListTenants", json!({})), OwnOnly),
        (
            call(
                "SubscriptionService/CreateSubscription",
                json!({"tenant": tenant, "url": "https://example.com", "event_types": ["*"]}),
            ),
            Mismatch,
        ),
        (
            call(
                "SubscriptionService/ListSubscriptions",
                json!({"tenant": tenant}),
            ),
            Mismatch,
        ),
        subscription("SubscriptionService/GetSubscription"),
        (
            call(
                "SubscriptionService/UpdateSubscription",
                json!({"id": of.subscription.id, "subscription": {"description": "taken"}}),
            ),
            NotFound,
        ),
        subscription("SubscriptionService/RotateSubscriptionSecret"),
        subscription("SubscriptionService/EndSubscriptionSecretOverlap"),
        subscription("SubscriptionService/TestSubscription"),
        (
            call(
                "EventService/PublishEvent",
                json!({"tenant": tenant, "event_type": "a.b", "data": {}}),
            ),
            Mismatch,
        ),
        (
            call(
                "EventService/PublishEvents",
                json!({"events": [{"tenant": tenant, "event_type": "a.b", "data": {}}]}),
            ),
            MismatchInBatch,
        ),
        (
            call("EventService/GetEvent", json!({"id": of.event})),
            NotFound,
        ),
        (
            call("DeliveryService/GetDelivery", json!({"id": delivery})),
            NotFound,
        ),
        (
            call(
                "DeliveryService/ListDeliveries",
                json!({"subscription_id": of.subscription.id}),
            ),
            NotFound,
        ),
        (
            call(
                "DeliveryService/ListDeliveries",
                json!({"event_id": of.event}),
            ),
            NotFound,
        ),
        (
            call(
                "DeliveryService/ListAttempts",
                json!({"delivery_id": delivery}),
            ),
            NotFound,
        ),
        (
            call("DeliveryService/RetryDelivery", json!({"id": delivery})),
            NotFound,
        ),
        (
            call(
                "DeadLetterService/ListDeadLetters",
                json!({"tenant": tenant}),
            ),
            Mismatch,
        ),
        letter("DeadLetterService/GetDeadLetter"),
        letter("DeadLetterService/RetryDeadLetter"),
        (
            call(
                "DeadLetterService/RedriveDeadLetters",
                json!({"filter": {"subscription_id": of.subscription.id}}),
            ),
            NotFound,
        ),
        (
            call(
                "DeadLetterService/PurgeDeadLetters",
                json!({"filter": {"tenant": tenant}, "all": true, "reason": "x"}),
            ),
            Mismatch,
        ),
        (
            call(
                "DeadLetterService/ReplayEvents",
                json!({"subscription_id": of.subscription.id,
                       "start_time": onering::domain::event::rfc3339(wall_clock() - 3_600_000_000)}),
            ),
            NotFound,
        ),
        (
            call("DeadLetterService/ListRedrives", json!({"tenant": tenant})),
            Mismatch,
        ),
        redrive("DeadLetterService/GetRedrive"),
        redrive("DeadLetterService/PauseRedrive"),
        redrive("DeadLetterService/ResumeRedrive"),
        redrive("DeadLetterService/CancelRedrive"),
        (
            call("DeliveryService/SkipDelivery", json!({"id": delivery})),
            NotFound,
        ),
        event_type("EventTypeService/CreateEventType"),
        event_type("EventTypeService/GetEventType"),
        event_type("EventTypeService/ListEventTypes"),
        (
            call(
                "EventTypeService/UpdateEventType",
                json!({"tenant": tenant, "name": "a.b", "event_type": {"description": "taken"}}),
            ),
            Mismatch,
        ),
        event_type("EventTypeService/DeleteEventType"),
        (call("FlagService/GetSwitches", json!({})), Mismatch),
        (
            call(
                "FlagService/SetSwitch",
                json!({"name": "webhooks.enabled", "enabled": false, "reason": "x"}),
            ),
            Mismatch,
        ),
        (
            call("FlagService/StopAll", json!({"reason": "x"})),
            Mismatch,
        ),
        (
            call(
                "FlagService/LiftStop",
                json!({"name": "webhooks.enabled", "reason": "x"}),
            ),
            Mismatch,
        ),
        (call("FlagService/ListSwitchChanges", json!({})), Mismatch),
        monitoring("MetricsService/GetExternalMetrics"),
        monitoring("MetricsService/GetWebhookMetrics"),
        monitoring("MetricsService/ListKeyUsage"),
        monitoring("MetricsService/ListRecentDeliveries"),
        monitoring("MetricsService/WatchMetrics"),
        (
            call(
                "WorkerService/StreamDeliveries",
                json!({"open": {"worker_id": "w", "filter": {"subscription_ids": [of.subscription.id]}}}),
            ),
            NotFound,
        ),
        subscription("SubscriptionService/DeleteSubscription"),
        key("KeyService/RevokeKey"),
        key("KeyService/DeleteKey"),
    ]
}

/// Whether only admin keys may make the call.
fn is_for_admins(rpc: &str) -> bool {
    let services = [
        "Key",
        "Tenant",
        "Flag",
        "Metrics",
        "EventType",
        "DeadLetter",
    ];
    let outside = [
        "KeyService/GetCaller",
        "DeadLetterService/ListDeadLetters",
        "DeadLetterService/GetDeadLetter",
        "DeadLetterService/RetryDeadLetter",
    ];
    !outside.contains(&rpc) && services.iter().any(|s| rpc.starts_with(s))
}

async fn tenants_are_made_and_listed(db: Db) {
    let app = TestApp::start(&db).await;
    let made = app
        .post(
            "/v1/admin/tenants",
            &app.admin,
            json!({"name": "acme", "display_name": "Acme & Söhne"}),
        )
        .await;
    assert_eq!(made.status, 201);
    let acme = made.ok();
    for named in ["acme", acme["tenant_id"].as_str().unwrap()] {
        let path = format!("/v1/admin/tenants/{named}");
        assert_eq!(app.get(&path, &app.admin).await.ok(), acme);
    }
    let list = app.get("/v1/admin/tenants", &app.admin).await.ok();
    let names: Vec<_> = list["tenants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["acme", "default"]);
    let again = json!({"name": "acme"});
    app.post("/v1/admin/tenants", &app.admin, again)
        .await
        .refused(409, "ALREADY_EXISTS");
    for name in ["", "Acme", "9acme", "a c", &"a".repeat(64)] {
        let problem = app
            .post("/v1/admin/tenants", &app.admin, json!({"name": name}))
            .await
            .refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], "name");
    }
    app.stop().await;
}

// T1: every RPC, over both faces, with another tenant's consumer key and with an
// admin key that is bound to another tenant. An RPC without a row fails.
async fn no_call_reaches_another_tenant(db: Db) {
    let app = TestApp::builder(&db).set("WEBHOOKS_DELIVERY_ENABLED", 0);
    let app = app.start().await;
    let acme = household(&app, "acme").await;
    let other = household(&app, "other").await;
    let rows = table(&acme);
    let in_table: BTreeSet<&str> = rows.iter().map(|(call, _)| call.rpc).collect();
    for rpc in every_rpc() {
        assert!(in_table.contains(rpc.as_str()), "{rpc} has no row");
    }

    for (call, fate) in &rows {
        for key in [&other.tenant.key, &other.admin] {
            let for_admins = is_for_admins(call.rpc) && *key == other.tenant.key;
            let expected = match fate {
                _ if for_admins => "SCOPE_MISSING",
                Fate::NotFound => "NOT_FOUND",
                Fate::Mismatch | Fate::MismatchInBatch => "TENANT_MISMATCH",
                Fate::OwnOnly => "",
                Fate::NoSuchKey => "KEY_INVALID",
            };
            let grpc = call.grpc(&app, key).await;
            if !call.is_on_rest() {
                assert_eq!(reason(&grpc.unwrap_err()), expected, "over gRPC: {call:?}");
                continue;
            }
            let rest = call.rest(&app, key).await;
            if *fate == Fate::MismatchInBatch {
                let error = &rest.ok()["results"][0]["error"];
                assert_eq!(error["reason"], expected, "{call:?}");
                let (bytes, _) = grpc.unwrap();
                let text = String::from_utf8_lossy(&bytes);
                assert!(text.contains(expected), "{call:?}: {text}");
                continue;
            }
            if *fate == Fate::NoSuchKey && !for_admins {
                let answer = rest.ok();
                assert_eq!(
                    (&answer["reason"], &answer["valid"]),
                    (&json!(expected), &json!(false))
                );
                assert!(!answer.to_string().contains("acme"), "{answer}");
                let (bytes, _) = grpc.unwrap();
                assert!(!String::from_utf8_lossy(&bytes).contains("acme"));
                continue;
            }
            if expected.is_empty() {
                let text = rest.ok().to_string();
                assert!(text.contains("other"), "{call:?}: {text}");
                assert!(!text.contains("acme"), "{call:?}: {text}");
                let (bytes, _) = grpc.unwrap();
                let text = String::from_utf8_lossy(&bytes);
                assert!(!text.contains("acme"), "{call:?}: {text}");
                continue;
            }
            assert_eq!(rest.code(), expected, "over REST: {call:?}");
            assert_eq!(reason(&grpc.unwrap_err()), expected, "over gRPC: {call:?}");
        }
    }

    // Nothing came of it, and to its own tenant each row does exist.
    let name = app.get("/v1/external/me", &acme.tenant.key).await.ok();
    assert_eq!(name["name"], "");
    let path = format!("/v1/external/webhooks/{}", acme.subscription.id);
    let subscription = app.get(&path, &acme.tenant.key).await.ok();
    assert_eq!(subscription["description"], "");
    for (call, fate) in rows.iter().filter(|(call, _)| call.is_on_rest()) {
        let rest = call.rest(&app, &acme.admin).await;
        if *fate == Fate::NotFound && rest.status >= 300 {
            assert_eq!(rest.code(), "FAILED_PRECONDITION", "{call:?}");
        }
    }
    app.stop().await;
}

// T1: a key without a tenant acts on the one that it names, else on `default`.
async fn an_admin_key_acts_on_any_tenant(db: Db) {
    let app = TestApp::start(&db).await;
    let acme = app.tenant("acme").await;
    let hook = json!({"url": "https://example.com", "event_types": ["*"]});
    for (named, tenant) in [
        (Value::Null, "default"),
        (json!("acme"), "acme"),
        (json!(acme.id), "acme"),
    ] {
        let mut body = hook.clone();
        body["tenant"] = named;
        let made = app.post("/v1/external/webhooks", &app.admin, body).await;
        assert_eq!(made.ok()["subscription"]["tenant"], tenant);
    }
    let list = app.get("/v1/external/webhooks?tenant=acme", &app.admin);
    let list = list.await.ok();
    assert_eq!(list["subscriptions"].as_array().unwrap().len(), 2);
    // Its holder may name its own tenant, by name or id.
    for named in ["acme", &acme.id, ""] {
        let path = format!("/v1/external/webhooks?tenant={named}");
        let list = app.get(&path, &acme.key).await.ok();
        assert_eq!(list["subscriptions"].as_array().unwrap().len(), 2);
    }
    // An event reaches its own tenant's subscriptions alone.
    let mut events = app.grpc(&acme.key).events;
    let published = events.publish_event(v1::PublishEventRequest {
        event_type: "a.b".into(),
        payload: Some(v1::publish_event_request::Payload::DataJson("1".into())),
        ..Default::default()
    });
    assert_eq!(published.await.unwrap().into_inner().delivery_count, 2);
    let nobody = json!({"tenant": "nobody", "event_type": "a.b", "data": 1});
    app.post("/v1/external/events", &app.admin, nobody)
        .await
        .refused(404, "NOT_FOUND");
    app.stop().await;
}

// T1: a bound admin key neither sees nor makes keys that act on every tenant.
async fn keys_of_every_tenant_are_not_for_bound_ones(db: Db) {
    let app = TestApp::start(&db).await;
    app.tenant("acme").await;
    let admin = json!({"tenant": "acme", "kind": "ADMIN", "scopes": ["external:admin"]});
    let (_, bound) = app.key(admin).await;
    let (free, _) = app.key(json!({"kind": "ADMIN"})).await;
    let path = format!("/v1/admin/external/keys/{free}");
    app.get(&path, &bound).await.refused(404, "NOT_FOUND");
    app.delete(&path, &bound).await.refused(404, "NOT_FOUND");
    let body = json!({"kind": "ADMIN", "scopes": ["external:admin"]});
    let made = app.post("/v1/admin/external/keys", &bound, body).await.ok();
    assert_eq!(made["key"]["tenant"], "acme");
    let list = app.get("/v1/admin/external/keys", &bound).await.ok();
    for key in list["keys"].as_array().unwrap() {
        assert_eq!(key["tenant"], "acme");
    }
    app.stop().await;
}
