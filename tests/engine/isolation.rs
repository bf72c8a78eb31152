//! What one receiver does, others do not notice, and neither does the database.

use std::time::{Duration, Instant};

use onering::store::Database;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::support::{
    app::TestApp,
    faults::{Fault, Faults},
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

// N3: what comes while a statement is under way shares the next one, and none of a
// delivery's steps has a commit of its own. How much is shared depends on how long
// commits take beside all else, in a debug build on a busy machine on chance: so here
// they take long. Without that `onering bench suite` counts 0.05 statements a delivery,
// at full load in release (B1).
async fn deliveries_share_commits(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    for _ in 0..10 {
        app.webhook(&receiver.url(), json!({})).await;
    }
    let (idle, busy) = (app.again(), app.again());
    app.stop().await;
    let before = commits(&db).await;
    idle.start().await.stop().await;
    let between = commits(&db).await;

    let faults = Faults::none();
    for verb in ["publish", "finish"] {
        faults.always(verb, Fault::Slow);
    }
    let app = busy.faults(&faults).start().await;
    let events: Vec<_> = (0..100)
        .map(|n| json!({"event_type": "a.b", "data": n}))
        .collect();
    let path = "/v1/external/events/batch";
    app.post(path, &app.admin, json!({"events": events}))
        .await
        .ok();
    receiver.wait(1000).await;
    app.stop().await;
    let delivered = "select cast(count(*) as text) from done where state = 4";
    assert_eq!(db.texts(delivered).await, ["1000"]);

    let statements: usize = ["publish", "claim", "finish"]
        .into_iter()
        .map(|verb| faults.began(verb))
        .sum();
    assert!(statements <= 100, "{statements} for 1000 deliveries");
    // As many commits, and those of what a node does beside.
    let more = commits(&db).await - between - (between - before);
    assert!(more <= 300, "{more} commits for 1000 deliveries");
}

/// How long a statistic stays the same that is complete: before version 15 it takes the
/// server half a second to write down what it was told.
const SETTLED: Duration = Duration::from_millis(1200);

/// How many transactions were committed, once nobody works on the database: who does
/// tells the server of its commits now and then, and of all only when it leaves.
async fn commits(db: &Db) -> i64 {
    let Database::Postgres(url) = db.database() else {
        panic!("not on PostgreSQL")
    };
    let mut connection = PgConnection::connect(url).await.unwrap();
    // Within a transaction this connection adds nothing itself.
    sqlx::raw_sql("begin")
        .execute(&mut connection)
        .await
        .unwrap();
    let mut last = (0, Instant::now());
    let settled = until("the count of commits stays the same", async || {
        // What a transaction has read of statistics it would read again.
        sqlx::raw_sql("select pg_stat_clear_snapshot()")
            .execute(&mut connection)
            .await
            .unwrap();
        let sql = "select xact_commit from pg_stat_database where datname = current_database()";
        let now: i64 = sqlx::query_scalar(sql)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > SETTLED).then_some(now)
    })
    .await;
    connection.close().await.unwrap();
    settled
}
