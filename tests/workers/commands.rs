//! The commands that take deliveries.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::{
    app::{TestApp, eventually},
    command::{Running, onering},
    receiver::{Receiver, status},
    store::Db,
};

contract![
    a_relay_sends_what_the_server_signed,
    a_relay_goes_where_it_may,
    a_killed_relays_deliveries_go_to_another,
    a_relay_outlives_its_server,
    listening_forwards_and_tidies_up,
    commands_say_what_is_wrong,
];

async fn without_embedded(db: &Db) -> TestApp {
    TestApp::builder(db).set("EMBEDDED_WORKER", 0).start().await
}

fn relay(app: &TestApp, id: &str, more: &[(&str, &str)]) -> Running {
    let url = app.url("");
    let mut vars = vec![
        ("ONERING_URL", url.as_str()),
        ("ONERING_ADMIN_KEY", app.admin.as_str()),
        ("ONERING_ALLOWED_ENDPOINT_CIDRS", "127.0.0.0/8"),
        ("ONERING_ALLOW_HTTP_ENDPOINTS", "1"),
    ];
    vars.extend(more);
    let args = [
        "worker",
        "--connect",
        &url,
        "--id",
        id,
        "--concurrency",
        "4",
    ];
    Running::onering(&args, &vars)
}

async fn connected(relay: &Running) {
    relay.logged("connected").await;
}

// W6, S1: what a relay sends is what the server would have sent, and what comes of
// it is what would have come of it.
async fn a_relay_sends_what_the_server_signed(db: Db) {
    let app = without_embedded(&db).await;
    let receiver = Receiver::answering(|r| status(if r.attempt() == 1 { 503 } else { 200 })).await;
    let schedule = json!({"max_attempts": 3, "backoff_seconds": [1]});
    let wanted = json!({"url": receiver.url(), "retry_schedule": schedule});
    let sub = app.subscribe(&app.admin, wanted).await;
    let relay = relay(&app, "relay-1", &[]);
    connected(&relay).await;
    // Fewer than open a breaker.
    let events = app.events("a.b", 4).await;
    let received = receiver.wait(8).await;
    for r in &received {
        assert!(events.iter().any(|e| e == r.header("x-webhook-event-id")));
        assert!(r.header("user-agent").starts_with("onering/"));
        assert_eq!(r.header("content-type"), "application/json");
    }
    let body = String::from_utf8(received[0].body.to_vec()).unwrap();
    let mut args = vec!["verify", "--secret", &sub.secret, "--body", &body];
    let headers: Vec<String> = received[0]
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    for header in &headers {
        args.extend(["--header", header]);
    }
    onering(&args, &[]).await.exits(0);
    for event in &events {
        let deliveries = app.deliveries_of(&app.admin, event).await;
        let id = deliveries[0]["id"].as_str().unwrap();
        app.delivery_is(&app.admin, id, "DELIVERED").await;
        let attempts = app.attempts_of(id).await;
        assert_eq!(attempts.len(), 2);
        assert!(attempts.iter().all(|a| a["worker"] == "relay-1"));
    }
    relay.stop().await;
    db.counts_agree().await;
    app.stop().await;
}

// Z3, W6: a relay checks addresses itself: what its own settings do not allow it
// does not connect to, whatever the server's allow.
async fn a_relay_goes_where_it_may(db: Db) {
    let app = without_embedded(&db).await;
    let receiver = Receiver::start().await;
    app.subscribe(&app.admin, json!({"url": receiver.url()}))
        .await;
    let relay = relay(
        &app,
        "relay",
        &[("ONERING_ALLOWED_ENDPOINT_CIDRS", "10.9.8.7/32")],
    );
    connected(&relay).await;
    let events = app.events("a.b", 1).await;
    let deliveries = app.deliveries_of(&app.admin, &events[0]).await;
    let id = deliveries[0]["id"].as_str().unwrap();
    let shown = app.delivery_is(&app.admin, id, "RETRYING").await;
    assert_eq!(shown["reason"], "endpoint_not_allowed");
    assert_eq!(receiver.count(), 0);
    relay.stop().await;
    app.stop().await;
}

// W4, H1: what a relay was killed over is sent by another, with the same id, and
// only what was under way is sent twice.
async fn a_killed_relays_deliveries_go_to_another(db: Db) {
    let app = without_embedded(&db).await;
    let permits = Arc::new(Semaphore::new(0));
    let gate = permits.clone();
    let receiver = Receiver::with(move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            status(200)
        }
    })
    .await;
    let wanted = json!({"url": receiver.url(), "timeout_seconds": 60});
    app.subscribe(&app.admin, wanted).await;
    let killed = relay(&app, "killed", &[]);
    connected(&killed).await;
    let events = app.events("a.b", 6).await;
    receiver.wait(2).await;
    let other = relay(&app, "other", &[]);
    connected(&other).await;
    killed.signal("KILL");
    permits.add_permits(100);
    for event in &events {
        let deliveries = app.deliveries_of(&app.admin, event).await;
        let id = deliveries[0]["id"].as_str().unwrap();
        app.delivery_is(&app.admin, id, "DELIVERED").await;
    }
    let received = receiver.received();
    for event in &events {
        let times = received.iter().filter(|r| r.event() == event).count();
        assert!((1..=2).contains(&times), "{event}: {times}");
    }
    assert!(
        received.len() <= 6 + 4,
        "what was under way: {}",
        received.len()
    );
    killed.ended().await;
    other.stop().await;
    db.counts_agree().await;
    app.stop().await;
}

// W5: a relay connects again to a server that comes back, and goes on.
async fn a_relay_outlives_its_server(db: Db) {
    let app = without_embedded(&db).await;
    let receiver = Receiver::start().await;
    app.subscribe(&app.admin, json!({"url": receiver.url()}))
        .await;
    let relay = relay(&app, "relay", &[]);
    connected(&relay).await;
    app.events("a.b", 2).await;
    receiver.wait(2).await;
    let (again, address) = (app.again(), app.address);
    app.stop().await;
    let app = again.set("LISTEN", address).start().await;
    app.events("a.b", 2).await;
    receiver.wait(4).await;
    assert_eq!(receiver.count(), 4);
    relay.stop().await;
    app.stop().await;
}

// W9: `onering listen` makes a subscription, forwards what comes to it with its
// signatures, shows it, and takes the subscription away.
async fn listening_forwards_and_tidies_up(db: Db) {
    let app = TestApp::start(&db).await;
    let acme = app.tenant("acme").await;
    let receiver = Receiver::start().await;
    let url = app.url("");
    let to = receiver.url();
    let args = [
        "listen",
        "--url",
        &url,
        "--forward-to",
        &to,
        "--events",
        "a.*,b",
    ];
    let listening = Running::onering(&args, &[("ONERING_ADMIN_KEY", &acme.key)]);
    listening.told("Forwarding to").await;
    let list = app.get("/v1/external/webhooks", &acme.key).await.ok();
    let sub = &list["subscriptions"][0];
    assert_eq!(
        (&sub["kind"], &sub["event_types"]),
        (&json!("STREAM"), &json!(["a.*", "b"]))
    );
    assert_eq!(sub["expire_after_seconds"], 300);
    eventually("it listens", || async {
        (app.app().context.workers.streams() == 1).then_some(())
    })
    .await;
    app.publish(&acme.key, "c", json!({})).await;
    let event = app.publish(&acme.key, "a.b", json!({"n": 1})).await;
    let received = receiver.wait(1).await;
    assert_eq!(received[0].event(), event);
    assert!(!received[0].header("webhook-signature").is_empty());
    let line = listening.told("a.b").await;
    assert!(
        line.contains("dlv_") && line.contains("200") && line.ends_with("ms"),
        "{line}"
    );
    let secret = listening.told("Signing secret: ").await;
    assert!(secret.contains("whsec_"), "{secret}");
    let done = listening.stop().await;
    assert!(done.stdout.contains("Subscription deleted"), "{done:?}");
    let list = app.get("/v1/external/webhooks", &acme.key).await.ok();
    assert_eq!(list["subscriptions"], json!([]));
    app.stop().await;
}

// Wrong use is 2, a refusal 1 and a server that is not there 3, with a word on
// what to do.
async fn commands_say_what_is_wrong(db: Db) {
    let app = TestApp::start(&db).await;
    let url = app.url("");
    let (_, unfit) = app
        .key(json!({"kind": "ADMIN", "scopes": ["webhooks:read"]}))
        .await;
    let done = onering(&["worker", "--connect", &url, "--key", &unfit], &[]).await;
    let done = done.exits(1);
    assert!(done.stderr.contains("deliveries:work"), "{done:?}");
    let none = [("ONERING_ADMIN_KEY", "sk_admin_x")];
    let args = ["listen", "--url", &url, "--forward-to", "localhost:3000"];
    onering(&args, &none).await.exits(2);
    let args = [
        "listen",
        "--url",
        &url,
        "--forward-to",
        "http://localhost:1/",
    ];
    onering(&args, &none).await.exits(1);
    let args = [
        "listen",
        "--url",
        "http://127.0.0.1:1",
        "--forward-to",
        "http://localhost:1/",
    ];
    onering(&args, &none).await.exits(3);
    app.stop().await;
}
