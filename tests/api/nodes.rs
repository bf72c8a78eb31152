//! Several nodes, and nodes whose database is gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use onering::domain::id::TenantId;
use serde_json::json;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::support::{
    app::{TestApp, eventually, reason},
    call::call,
    faults::{Fault, Faults},
    proxy::Proxy,
    receiver::{Receiver, status},
    store::Db,
    wait::until_after,
};

on_postgres_alone![
    a_change_reaches_every_node,
    a_change_reaches_a_node_that_hears_of_none,
    what_one_node_makes_the_other_knows,
    a_retry_on_another_node_reaches_the_owner,
    an_owner_that_hears_of_no_publish_finds_it,
    a_node_goes_on_without_its_database,
    a_node_without_patience_refuses,
];

const ME: &str = "/v1/external/me";

/// By then a timer of a second or less has come round, on a busy machine too; one of
/// many seconds has not, each time that it is waited for.
const SOON: Duration = Duration::from_secs(5);

/// Faults of a node to which no notification gets through, while it reaches the
/// database.
fn deaf() -> Arc<Faults> {
    let faults = Faults::none();
    faults.always("listen", Fault::Fails);
    faults
}

/// Fails where a node has heard notifications after all.
fn heard_nothing(faults: &Faults) {
    let [began, answered] = [faults.began("listen"), faults.answered("listen")];
    assert!(began > 0 && answered == 0, "{answered} of {began}");
}

// K5: a key that one node disables, revokes or deletes stops working on another
// one, and one that is enabled works again.
async fn a_change_reaches_every_node(db: Db) {
    let one = TestApp::start(&db).await;
    let two = one.again().start().await;
    changes_reach(&one, &two).await;
    one.stop().await;
    two.stop().await;
}

// K5: the same of a node that lost its notifications: its poll is enough.
async fn a_change_reaches_a_node_that_hears_of_none(db: Db) {
    let one = TestApp::start(&db).await;
    let deaf = deaf();
    let two = one.again().faults(&deaf).start().await;
    changes_reach(&one, &two).await;
    heard_nothing(&deaf);
    one.stop().await;
    two.stop().await;
}

/// Changes a key on one node: soon each change is in force on the other.
async fn changes_reach(one: &TestApp, two: &TestApp) {
    let (id, key) = one.key(json!({})).await;
    let path = format!("/v1/admin/external/keys/{id}");
    let told = async |code: &str| {
        until_after(SOON, &format!("{code} on the other node"), async || {
            let answer = two.get(ME, &key).await;
            let now = match answer.status {
                200 => String::new(),
                _ => answer.code(),
            };
            (now == code).then_some(())
        })
        .await;
    };
    told("").await;
    one.patch(&format!("{path}/disable"), &one.admin, json!({}))
        .await
        .ok();
    told("KEY_DISABLED").await;
    one.patch(&format!("{path}/enable"), &one.admin, json!({}))
        .await
        .ok();
    told("").await;
    one.post(&format!("{path}/revoke"), &one.admin, json!({}))
        .await
        .ok();
    told("KEY_REVOKED").await;
    one.delete(&path, &one.admin).await.ok();
    told("KEY_INVALID").await;
}

// K5: the other way round: what is new is known everywhere.
async fn what_one_node_makes_the_other_knows(db: Db) {
    let one = TestApp::start(&db).await;
    let two = one.again().start().await;
    let acme = one.tenant("acme").await;
    // Named on the other node at once: it looks before it refuses.
    let list = two
        .get("/v1/external/webhooks?tenant=acme", &two.admin)
        .await;
    list.ok();
    eventually("the key works there", || async {
        (two.get(ME, &acme.key).await.status == 200).then_some(())
    })
    .await;
    let hook = json!({"url": "https://example.com", "event_types": ["*"]});
    let made = two.subscribe(&acme.key, hook).await;
    let path = format!("/v1/external/webhooks/{}/test", made.id);
    assert_eq!(one.post(&path, &acme.key, json!({})).await.status, 202);
    one.stop().await;
    two.stop().await;
}

// A2: a retry by hand begins at once, whatever node it was asked of.
async fn a_retry_on_another_node_reaches_the_owner(db: Db) {
    let owner = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_LOOP_SECONDS", 3600)
        .start()
        .await;
    let other = owner.again().start().await;
    let fixed = Arc::new(AtomicBool::new(false));
    let now = fixed.clone();
    let receiver =
        Receiver::answering(move |_| status(if now.load(Ordering::SeqCst) { 200 } else { 400 }))
            .await;
    let hook = json!({"url": receiver.url(), "event_types": ["*"]});
    owner.subscribe(&owner.admin, hook).await;
    let event = owner.publish(&owner.admin, "a.b", json!({})).await;
    let deliveries = owner.deliveries_of(&owner.admin, &event).await;
    let id = deliveries[0]["id"].as_str().unwrap();
    owner.delivery_is(&owner.admin, id, "DEAD").await;
    fixed.store(true, Ordering::SeqCst);
    let path = format!("/v1/external/deliveries/{id}/retry");
    other.post(&path, &other.admin, json!({})).await.ok();
    owner.delivery_is(&owner.admin, id, "DELIVERED").await;
    assert_eq!(receiver.count(), 2);
    owner.stop().await;
    other.stop().await;
}

// N2: what another node publishes is sent although its owner hears of none of it: the
// owner's poll finds it.
async fn an_owner_that_hears_of_no_publish_finds_it(db: Db) {
    let deaf = deaf();
    let owner = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_LOOP_SECONDS", 1)
        .faults(&deaf)
        .start()
        .await;
    // One that is never ready is given no partitions.
    let idle = Faults::none();
    idle.always("set_ready", Fault::Fails);
    let other = owner.again().faults(&idle).start().await;
    let receiver = Receiver::start().await;
    let hook = json!({"url": receiver.url(), "event_types": ["*"]});
    owner.subscribe(&owner.admin, hook).await;
    for n in 1..=3 {
        other.publish(&other.admin, "a.b", json!({})).await;
        until_after(SOON, &format!("delivery {n}"), async || {
            (receiver.count() == n).then_some(())
        })
        .await;
    }
    let part = TenantId::DEFAULT.part();
    let owns = [&owner, &other].map(|app| app.app().context.node.owns(part));
    assert_eq!(owns, [true, false]);
    heard_nothing(&deaf);
    owner.stop().await;
    other.stop().await;
}

async fn health(app: &TestApp) -> Vec<ServingStatus> {
    let mut client = HealthClient::new(app.channel());
    let mut all = Vec::new();
    for service in std::iter::once("").chain(onering::rpc::SERVICES) {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = client.check(request).await.unwrap().into_inner();
        all.push(answer.status());
    }
    all
}

async fn all_are(app: &TestApp, status: ServingStatus) {
    eventually(&format!("health is {status:?}"), || async {
        let all = health(app).await;
        all.iter().all(|s| *s == status).then_some(())
    })
    .await;
}

// K5: a node whose database is gone goes on for ONERING_STALE_SECONDS and says
// so, then refuses with STORE_UNAVAILABLE; and it comes back by itself.
async fn a_node_goes_on_without_its_database(db: Db) {
    let (proxy, url) = Proxy::before(&db).await;
    let app = TestApp::builder(&db)
        .set("DATABASE_URL", url)
        .set("STALE_SECONDS", 3)
        .set("MONITORING_OPEN", 1);
    let app = app.start().await;
    let (_, key) = app.key(json!({})).await;
    let answer = app.get(ME, &key).await;
    assert_eq!(answer.header("x-onering-stale"), "");
    answer.ok();
    all_are(&app, ServingStatus::Serving).await;
    let me = call("KeyService/GetCaller", json!({}));

    proxy.cut();
    eventually("answers are stale", || async {
        let answer = app.get(ME, &key).await;
        let stale = answer.header("x-onering-stale") == "true";
        answer.ok();
        stale.then_some(())
    })
    .await;
    // Each answer says so, the denied ones and those of gRPC too.
    let (_, metadata) = me.grpc(&app, &key).await.unwrap();
    assert_eq!(metadata.get("x-onering-stale").unwrap(), "true");
    let denied = app.get(ME, "").await;
    denied.refused(401, "KEY_MISSING");
    assert_eq!(denied.header("x-onering-stale"), "true");
    let denied = me.grpc(&app, "").await.unwrap_err();
    assert_eq!(reason(&denied), "KEY_MISSING");
    assert_eq!(denied.metadata().get("x-onering-stale").unwrap(), "true");
    let metrics = app.get("/metrics", "").await;
    assert!(
        metrics.text().contains("\nonering_config_stale 1"),
        "{}",
        metrics.text()
    );
    // What needs the database is refused, and nothing was accepted.
    let event = json!({"event_type": "a.b", "data": 1});
    app.post("/v1/external/events", &key, event.clone())
        .await
        .refused(503, "STORE_UNAVAILABLE");
    all_are(&app, ServingStatus::NotServing).await;

    eventually("it refuses", || async {
        (app.get(ME, &key).await.status == 503).then_some(())
    })
    .await;
    for key in [&key, &app.admin] {
        let answer = app.get(ME, key).await;
        answer.refused(503, "STORE_UNAVAILABLE");
        assert_eq!(answer.header("retry-after"), "1");
        let status = me.grpc(&app, key).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(reason(&status), "STORE_UNAVAILABLE");
        let details = status.get_error_details();
        assert!(details.retry_info().unwrap().retry_delay.is_some());
    }
    assert_eq!(app.get("/health", "").await.status, 200, "it is alive");

    proxy.mend();
    all_are(&app, ServingStatus::Serving).await;
    let answer = app.get(ME, &key).await;
    assert_eq!(answer.header("x-onering-stale"), "");
    answer.ok();
    eventually("it takes events again", || async {
        let answer = app.post("/v1/external/events", &key, event.clone()).await;
        (answer.status == 202).then_some(())
    })
    .await;
    app.stop().await;
}

// K5: with ONERING_STALE_SECONDS=0 no answer is ever a stale one.
async fn a_node_without_patience_refuses(db: Db) {
    let (proxy, url) = Proxy::before(&db).await;
    let app = TestApp::builder(&db)
        .set("DATABASE_URL", url)
        .set("STALE_SECONDS", 0);
    let app = app.start().await;
    let (_, key) = app.key(json!({})).await;
    app.get(ME, &key).await.ok();
    proxy.cut();
    eventually("it refuses", || async {
        let answer = app.get(ME, &key).await;
        assert_eq!(answer.header("x-onering-stale"), "");
        (answer.status == 503).then(|| answer.code())
    })
    .await;
    app.get(ME, &key).await.refused(503, "STORE_UNAVAILABLE");
    proxy.mend();
    eventually("it is back", || async {
        (app.get(ME, &key).await.status == 200).then_some(())
    })
    .await;
    app.stop().await;
}
