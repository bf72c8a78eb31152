//! The queue's statements beside a long queue.

use std::time::{Duration, Instant};

use onering::{
    domain::{
        delivery::Status,
        id::{DeliveryId, SubscriptionId},
    },
    store::Database,
};
use sqlx::{Connection as _, PgConnection};

use crate::support::{
    build::{DEFAULT, Ends},
    store::{Db, Engine, Node},
    wait::until,
};

contract![
    a_long_queue_slows_no_statement,
    leases_are_found_in_a_long_queue,
];

on_postgres_alone![
    ending_a_session_holds_no_lock_for_long,
    slices_of_a_long_queue_are_found_by_index,
];

/// So many that reading them all for each batch takes many times as long as the
/// batch.
const BACKLOG: usize = 100_000;
const BATCH: usize = 50;
const ROUNDS: usize = 12;

/// The time of the fastest of some rounds of publish, claim and finish.
async fn fastest(node: &Node, sub: SubscriptionId) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let batch: Vec<_> = (0..BATCH).map(|_| DEFAULT.event_to(sub)).collect();
        let begin = Instant::now();
        node.publish(&batch).await;
        let leased = node.claim(sub, BATCH as i64).await;
        assert_eq!(leased.len(), BATCH);
        let (now, later) = leased.split_at(BATCH / 2);
        let ends: Vec<_> = now
            .iter()
            .map(Ends::delivered)
            .chain(later.iter().map(|l| l.retried(Duration::ZERO)))
            .collect();
        node.store.finish(&ends).await.unwrap();
        let leased = node.claim(sub, BATCH as i64).await;
        let ends: Vec<_> = leased.iter().map(Ends::dead).collect();
        node.store.finish(&ends).await.unwrap();
        best = best.min(begin.elapsed());
    }
    best
}

/// Keeps changing tokens of a subscription's rows.
async fn churn(node: Node, sub: SubscriptionId) {
    loop {
        let leased = node.claim(sub, 20).await;
        let ends: Vec<_> = leased.iter().map(Ends::released).collect();
        node.store.finish(&ends).await.unwrap();
        tokio::task::yield_now().await;
    }
}

// N4: also with plans that were made while the queue was empty, and while
// tokens change beside it.
async fn a_long_queue_slows_no_statement(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let others: Vec<_> = (0..100).map(|_| DEFAULT.sub()).collect();
    for _ in 0..20 {
        node.accept(&DEFAULT.event_to(others[0])).await;
    }
    let beside = tokio::spawn(churn(node.clone(), others[0]));
    let empty = fastest(&node, sub).await;
    for _ in 0..BACKLOG / others.len() / 20 {
        let batch: Vec<_> = (0..20)
            .map(|_| DEFAULT.event().to(&others).build())
            .collect();
        node.publish(&batch).await;
    }
    let long = fastest(&node, sub).await;
    beside.abort();
    assert!(
        beside.await.unwrap_err().is_cancelled(),
        "the other node's statements failed"
    );
    assert!(
        long < empty * 5 + Duration::from_millis(20),
        "{long:?} beside a backlog, {empty:?} without"
    );
}

/// Rows that nobody holds, behind the store's back: the event of each is the
/// given one.
async fn pad(db: &Db, like: DeliveryId, rows: u32) {
    let more = match db.engine() {
        Engine::Postgres => format!(
            "insert into queue select q.part, gen_random_uuid(), q.tenant, q.sub, q.event, q.event_day,
               q.due_at, 0, q.age_from, 0, 1, 1, 0, 0, false, 0, ''
             from queue q, generate_series(1, {rows}) where q.id = '{}'",
            like.0
        ),
        Engine::Sqlite => format!(
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < {rows})
             insert into queue (part, id, tenant, sub, event, event_day, due_at, dead_at, age_from, lease_sid,
               token, state, attempts, replays, by_hand, status, reason)
             select q.part, randomblob(16), q.tenant, q.sub, q.event, q.event_day,
               q.due_at, 0, q.age_from, 0, 1, 1, 0, 0, 0, 0, ''
             from queue q, n where q.id = x'{}'",
            like.0.simple()
        ),
    };
    db.tamper(&more).await;
}

/// Deliveries that a node holds, with a long queue between them.
async fn held_apart(db: &Db, node: &Node) -> Vec<DeliveryId> {
    let sub = DEFAULT.sub();
    let mut held = Vec::new();
    for n in 0..3 {
        if n > 0 {
            pad(db, held[0], 60_000).await;
        }
        let event = DEFAULT.event().to(&[sub]).leased().build();
        held.extend(node.accept(&event).await);
    }
    held
}

// N4
async fn leases_are_found_in_a_long_queue(db: Db) {
    let node = db.node().await;
    let held = held_apart(&db, &node).await;
    let found: Vec<_> = node.held().await;
    assert_eq!(found, held.iter().map(|id| (*id, 1)).collect::<Vec<_>>());
    node.end_session(node.session).await.unwrap();
    assert_eq!(node.held().await, []);
    for id in held {
        assert_eq!(node.status(id).await, Status::Pending);
    }
}

/// How often the index of the queue or of the events was used, whichever less, and how
/// many rows were read without one.
async fn scans(db: &Db) -> (i64, i64) {
    let figures = "select min(used) || ' ' || sum(rows) from (
        select sum(idx_scan) as used, sum(seq_tup_read) as rows from pg_stat_user_tables
        where relname = 'queue' or relname like 'events%' group by relname = 'queue') x";
    let text = db.texts(figures).await.remove(0);
    let (index, rows) = text.split_once(' ').unwrap();
    (index.parse().unwrap(), rows.parse().unwrap())
}

// B6, N4: also with plans for any arguments, made by a planner that knows how long the
// queue is.
async fn slices_of_a_long_queue_are_found_by_index(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let first = node.accept(&DEFAULT.event_to(sub)).await[0];
    pad(&db, first, 50_000).await;
    db.tamper(
        "insert into events (part, day, id, tenant, key, type, body)
         select e.part, e.day, gen_random_uuid(), e.tenant, e.key, e.type, e.body
         from events e, generate_series(1, 50000)",
    )
    .await;
    db.tamper("analyze queue").await;
    db.tamper("analyze events").await;
    // What made the rows read some, too, and tells of it once it has ended.
    until("it is told what was inserted", async || {
        let all = "select count(*)::text from pg_stat_user_tables
            where n_tup_ins >= 50000 and (relname = 'queue' or relname like 'events%')";
        (db.texts(all).await == ["2"]).then_some(())
    })
    .await;
    let before = scans(&db).await.1;
    let part = sub.part();
    let store = &node.store;
    for _ in 0..10 {
        let leased = node.claim(sub, 256).await;
        assert_eq!(leased.len(), 256);
        let ends: Vec<_> = leased.iter().map(Ends::delivered).collect();
        store.finish(&ends).await.unwrap();
        assert_eq!(node.claim(sub, 256).await.len(), 256);
        store.revive(part, sub, false, 256).await.unwrap();
        store.bury(&[part], 256).await.unwrap();
        assert_eq!(store.cancel(part, sub, 256).await.unwrap(), 256);
    }
    // A backend tells what it did once a second, when it ends something.
    until("it is told how the queue was read", async || {
        node.claim(sub, 1).await;
        store.cancel(part, sub, 1).await.unwrap();
        (scans(&db).await.0 >= 50).then_some(())
    })
    .await;
    let rows = scans(&db).await.1 - before;
    assert!(
        rows < 100_000,
        "{rows} rows were read to find 256 at a time"
    );
}

// N4: partitions can be taken while what their last owner held is still being
// freed, and that is freed a little at a time.
async fn ending_a_session_holds_no_lock_for_long(db: Db) {
    let node = db.node().await;
    let held = held_apart(&db, &node).await;
    let Database::Postgres(url) = db.database() else {
        panic!("PostgreSQL alone")
    };
    let mut other = PgConnection::connect(url).await.unwrap();
    let mut lock = other.begin().await.unwrap();
    sqlx::query("select from queue where id = $1 for update")
        .bind(held[2].0)
        .execute(&mut *lock)
        .await
        .unwrap();
    let ending = tokio::spawn({
        let node = node.clone();
        async move { node.end_session(node.session).await.unwrap() }
    });
    until("the partitions and the first rows are free", async || {
        let owned = db
            .texts("select part::text from part_owner where sid <> 0")
            .await;
        let leased = db
            .texts("select id::text from queue where lease_sid <> 0")
            .await;
        (owned.is_empty() && leased == [held[2].0.to_string()]).then_some(())
    })
    .await;
    assert!(!ending.is_finished());
    lock.rollback().await.unwrap();
    other.close().await.unwrap();
    ending.await.unwrap();
    assert_eq!(node.held().await, []);
}
