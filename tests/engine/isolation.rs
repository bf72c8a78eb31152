//! What one receiver does, others do not notice, and neither does the database.

use serde_json::{Value, json};

use crate::support::{
    app::TestApp,
    receiver::Receiver,
    store::{Db, Engine},
    wait::until,
};

contract![
    hanging_receivers_hold_up_nobody,
    streams_take_no_hosts_share,
];

on_postgres_alone![
    nothing_is_open_while_a_receiver_hangs,
    deliveries_share_commits,
];

// A8: ten receivers that hang have more deliveries waiting than this node sends
// at once, for longer than this test waits; all others get theirs.
async fn hanging_receivers_hold_up_nobody(db: Db) {
    let app = TestApp::builder(&db)
        .set("WEBHOOKS_CONCURRENCY", 64)
        .start()
        .await;
    let hanging = Receiver::hanging().await;
    for _ in 0..10 {
        let fields = json!({"timeout_seconds": 60, "max_in_flight": 100});
        app.webhook(&hanging.url(), fields).await;
    }
    let well = Receiver::start().await;
    for _ in 0..5 {
        app.webhook(&well.url(), json!({})).await;
    }
    let other = app.tenant("other").await;
    app.subscribe(&other.key, json!({"url": well.url()})).await;
    for _ in 0..40 {
        app.event("a.b").await;
        app.publish(&other.key, "a.b", json!(1)).await;
    }
    let received = well.wait(240).await;
    assert_eq!(received.len(), 240);
    assert!(
        hanging.under_way() >= 20,
        "the others' share is theirs: {}",
        hanging.under_way()
    );
}

// A8, D3: what is streamed goes to no host; what is posted goes to one, by any port.
async fn streams_take_no_hosts_share(db: Db) {
    let app = TestApp::start(&db).await;
    let (one, two) = (Receiver::start().await, Receiver::start().await);
    let host = async |fields: Value| {
        let made = app.subscribe(&app.admin, fields).await;
        let target = app.app().context.directory.target(made.id.parse().unwrap());
        target.unwrap().host
    };
    let stream = json!({"kind": "STREAM", "event_types": ["a.*"]});
    assert_eq!(host(stream).await, 0);
    let posted = host(json!({"url": one.url()})).await;
    assert_ne!(posted, 0);
    assert_eq!(host(json!({"url": two.url()})).await, posted);
}

// N3
async fn nothing_is_open_while_a_receiver_hangs(db: Db) {
    assert_eq!(db.engine(), Engine::Postgres);
    let app = TestApp::start(&db).await;
    let receiver = Receiver::hanging().await;
    app.webhook(&receiver.url(), json!({"timeout_seconds": 60}))
        .await;
    for _ in 0..20 {
        app.event("a.b").await;
    }
    receiver.wait(20).await;
    let mut looks = 0;
    until("ten looks", async || {
        // One that was open for a moment is not one that waits for a receiver.
        let open = db
            .texts(
                "select query from pg_stat_activity where datname = current_database() \
                 and state like 'idle in transaction%' \
                 and state_change < clock_timestamp() - interval '500 ms'",
            )
            .await;
        assert_eq!(open, [""; 0]);
        looks += 1;
        (looks == 10).then_some(())
    })
    .await;
    assert_eq!(receiver.under_way(), 20);
}

// N3: a commit for each delivery, let alone for each of its steps, would be
// more than these. What is reached under load, benchmarks show.
async fn deliveries_share_commits(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let mut subs = Vec::new();
    for _ in 0..10 {
        subs.push(app.webhook(&receiver.url(), json!({})).await);
    }
    let before = commits(&db).await;
    let events: Vec<_> = (0..100)
        .map(|n| json!({"event_type": "a.b", "data": n}))
        .collect();
    let path = "/v1/external/events/batch";
    app.post(path, &app.admin, json!({"events": events}))
        .await
        .ok();
    receiver.wait(1000).await;
    for sub in subs {
        app.wait_for(&sub.id, "DELIVERED", 100).await;
    }
    let after = commits(&db).await;
    assert!(
        after - before < 500,
        "{} commits for 1000 deliveries",
        after - before
    );
}

async fn commits(db: &Db) -> i64 {
    let sql = "select xact_commit::text from pg_stat_database where datname = current_database()";
    db.texts(sql).await[0].parse().unwrap()
}
