//! Retention.

use std::time::Duration;

use onering::{
    domain::{
        delivery::Status,
        id::{DeliveryId, Part, SubscriptionId, day_of, uuid_at, wall_clock},
        trace::{Context, Trace},
    },
    store::{Database, Forgotten, Leased, Publish, Usage},
};
use sqlx::{Connection as _, PgConnection};

use crate::support::{
    build::{DEFAULT, Ends as _},
    store::{Db, Node},
    wait::until,
};

contract![
    what_is_old_is_forgotten,
    what_is_young_is_kept,
    a_queued_body_outlives_its_day,
    a_dead_ones_body_outlives_its_day,
    a_finished_ones_kept_body_goes,
    old_usage_is_forgotten,
    kept_bodies_count_as_stored,
    forgetting_goes_on_in_slices,
    two_nodes_forget_at_once,
    days_are_made_ahead,
];

on_postgres_alone![
    what_came_late_into_a_day_keeps_its_body,
    many_bodies_are_kept_and_dropped_in_slices,
    a_bucket_that_is_read_for_long_keeps_nobody_waiting,
    a_key_that_is_used_again_is_not_forgotten,
];

/// Until nothing is left to forget.
async fn forget(node: &Node, days: i32) {
    for _ in 0..1000 {
        if node.forget(days, 100).await.unwrap() == Forgotten::All {
            return;
        }
    }
    panic!("there is always something left to forget");
}

fn where_from() -> Trace {
    Trace {
        context: Context::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        state: "a=1".to_owned(),
        request_id: "req-7".to_owned(),
    }
}

fn event(sub: SubscriptionId) -> Publish {
    let mut event = DEFAULT
        .event()
        .body("kept")
        .of_type("kept.type")
        .to(&[sub])
        .build();
    event.trace = Some(where_from().into());
    event
}

async fn leased(node: &Node) -> Leased {
    let sub = DEFAULT.sub();
    node.accept(&event(sub)).await;
    node.claim_one(sub).await
}

async fn exists(node: &Node, id: DeliveryId) -> bool {
    node.get_delivery(id).await.unwrap().is_some()
}

// A4
async fn what_is_old_is_forgotten(db: Db) {
    let node = db.node().await;
    let first = leased(&node).await;
    node.finish_now(&first.delivered()).await;
    let second = leased(&node).await;
    node.finish_now(&second.retried(Duration::ZERO)).await;
    let again = node.claim_one(second.subscription).await;
    node.finish_now(&again.delivered()).await;
    assert_eq!(node.attempts(second.id).await.unwrap().len(), 2);
    node.pass_days(32).await;
    forget(&node, 30).await;
    for lease in [first, second] {
        assert!(!exists(&node, lease.id).await);
        assert_eq!(node.get_event(lease.event).await.unwrap(), None);
        assert_eq!(node.attempts(lease.id).await.unwrap(), []);
    }
    // And it goes on.
    leased(&node).await;
}

// A4
async fn what_is_young_is_kept(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.retried(Duration::ZERO)).await;
    let lease = node.claim_one(lease.subscription).await;
    node.finish_now(&lease.delivered()).await;
    for _ in 0..2 {
        node.pass_days(14).await;
        forget(&node, 30).await;
        assert_eq!(node.status(lease.id).await, Status::Delivered);
        assert_eq!(node.attempts(lease.id).await.unwrap().len(), 2);
        assert!(node.get_event(lease.event).await.unwrap().is_some());
    }
}

// A4: what a node whose clock is far behind published into a day that is just being
// dropped keeps its body, in whatever step the drop is.
async fn what_came_late_into_a_day_keeps_its_body(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let late = event(sub);
    node.accept(&late).await;
    let day = late.event.time() / 86_400_000_000;
    // As between the steps of a drop: bodies were copied before this one came.
    db.tamper(&format!("alter table events detach partition events_{day}"))
        .await;
    node.pass_days(32).await;
    forget(&node, 30).await;
    let lease = node.claim_one(sub).await;
    assert_eq!(lease.body, late.body);
    assert_eq!(lease.trace, Some(where_from()));
}

// A4: nothing that is still queued loses its body.
async fn a_queued_body_outlives_its_day(db: Db) {
    let node = db.node().await;
    let (sub, retried) = (DEFAULT.sub(), leased(&node).await);
    node.accept(&event(sub)).await;
    node.finish_now(&retried.retried(Duration::ZERO)).await;
    for _ in 0..3 {
        node.pass_days(40).await;
        forget(&node, 30).await;
    }
    for sub in [sub, retried.subscription] {
        let lease = node.claim_one(sub).await;
        assert_eq!(lease.body, "kept");
        assert_eq!(lease.event_type, "kept.type");
        // D8
        assert_eq!(lease.trace.as_ref(), Some(&where_from()));
        let shown = node.get_delivery(lease.id).await.unwrap().unwrap();
        assert_eq!(shown.trace, lease.trace);
        let stored = node.get_event(lease.event).await.unwrap().unwrap();
        assert_eq!(stored.body, "kept");
        assert_eq!(node.delivery(lease.id).await.event_type, "kept.type");
    }
}

// A4: nor what is dead.
async fn a_dead_ones_body_outlives_its_day(db: Db) {
    let node = db.node().await;
    let dead = leased(&node).await;
    node.finish_now(&dead.dead()).await;
    let failed = leased(&node).await;
    node.finish_now(&failed.failed(Duration::from_mins(1)))
        .await;
    for _ in 0..3 {
        node.pass_days(40).await;
        forget(&node, 30).await;
    }
    for lease in [dead, failed] {
        assert_eq!(node.status(lease.id).await, Status::Dead);
        assert_eq!(
            node.retry_by_hand(lease.id).await.unwrap(),
            Some(Status::Dead)
        );
        let again = node.claim_one(lease.subscription).await;
        assert_eq!(again.body, "kept");
        node.finish_now(&again.dead()).await;
        forget(&node, 30).await;
        assert!(
            node.get_event(lease.event).await.unwrap().is_some(),
            "dead again"
        );
    }
}

// A4
async fn a_finished_ones_kept_body_goes(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let event = event(sub);
    node.accept(&event).await;
    node.pass_days(40).await;
    forget(&node, 30).await;
    let lease = node.claim_one(sub).await;
    node.finish_now(&lease.delivered()).await;
    forget(&node, 30).await;
    assert_eq!(node.get_event(event.event).await.unwrap(), None);
    assert_eq!(
        node.delivery(lease.id).await.event_type,
        "",
        "past its retention"
    );
}

// T3
async fn old_usage_is_forgotten(db: Db) {
    let node = db.node().await;
    let today = day_of(wall_clock());
    let usage = |day, bytes| Usage {
        tenant: DEFAULT.id,
        day,
        events: 1,
        bytes,
    };
    let rows = [
        usage(today - 40, 1),
        usage(today - 20, 10),
        usage(today, 100),
    ];
    node.note_usage(node.session, &rows).await.unwrap();
    forget(&node, 30).await;
    assert_eq!(node.stored_bytes().await.unwrap(), [(DEFAULT.id, 110)]);
}

/// What is stored of the default tenant, once everything old is forgotten.
async fn stored(node: &Node) -> i64 {
    forget(node, 30).await;
    let stored = node.stored_bytes().await.unwrap();
    stored.iter().map(|(_, bytes)| bytes).sum()
}

// D3, T3: what is kept past its day takes as much room as before.
async fn kept_bodies_count_as_stored(db: Db) {
    let node = db.node().await;
    let (dead, done) = (leased(&node).await, leased(&node).await);
    node.finish_now(&dead.dead()).await;
    node.finish_now(&done.delivered()).await;
    let usage = Usage {
        tenant: DEFAULT.id,
        day: day_of(dead.event.time()),
        events: 2,
        bytes: 8,
    };
    node.note_usage(node.session, &[usage]).await.unwrap();
    let body = "kept".len() as i64;
    assert_eq!(stored(&node).await, 2 * body, "its day is not over");
    for _ in 0..3 {
        node.pass_days(40).await;
        assert_eq!(stored(&node).await, body);
    }
    node.retry_by_hand(dead.id).await.unwrap();
    assert_eq!(stored(&node).await, body, "it is queued");
    let again = node.claim_one(dead.subscription).await;
    node.finish_now(&again.delivered()).await;
    assert_eq!(stored(&node).await, 0);
}

/// Makes many more of a dead letter and its event, behind the store's back: each at
/// an instant of its own of the same day.
async fn multiply(db: &Db, like: DeliveryId, letters: u32) {
    let id = |which: &str| {
        format!(
            "(lpad(to_hex(day::bigint * 86400000 + n), 12, '0') || '70008000{which}' || lpad(to_hex(part::integer), 2, '0'))::uuid"
        )
    };
    let (event, letter) = (id("0000000000"), id("0000000001"));
    let id = like.0;
    for sql in [
        format!(
            "insert into events (part, day, id, tenant, key, type, body)
             select part, day, {event}, tenant, key, type, body
             from (select e.* from events e join dead d on d.part = e.part and d.event = e.id where d.id = '{id}') x,
                  generate_series(1, {letters}) n"
        ),
        format!(
            "insert into dead (part, id, tenant, sub, event, event_day, dead_at, age_from, token, state, attempts, status, reason)
             select part, {letter}, tenant, sub, {event}, day, dead_at, age_from, token, state, attempts, status, reason
             from (select d.*, event_day as day from dead d where id = '{id}') x, generate_series(1, {letters}) n"
        ),
    ] {
        db.tamper(&sql).await;
    }
}

/// How often an index of the dead letters was used, and how many of them were read
/// without one.
async fn scans(db: &Db) -> (i64, i64) {
    let figures =
        "select idx_scan || ' ' || seq_tup_read from pg_stat_user_tables where relname = 'dead'";
    let text = db.texts(figures).await.remove(0);
    let (index, rows) = text.split_once(' ').unwrap();
    (index.parse().unwrap(), rows.parse().unwrap())
}

// N4, A4, A5: no statement grows with what is dead.
async fn many_bodies_are_kept_and_dropped_in_slices(db: Db) {
    const LETTERS: u32 = 20_000;
    const SLICE: i64 = 1000;
    let node = db.node().await;
    let dead = leased(&node).await;
    node.finish_now(&dead.dead()).await;
    multiply(&db, dead.id, LETTERS).await;
    node.pass_days(40).await;
    let (_, read) = scans(&db).await;
    let forget = async || {
        let mut slices = 1;
        while node.forget(30, SLICE).await.unwrap() == Forgotten::Some {
            slices += 1;
            assert!(slices < 1000, "there is always something left to forget");
        }
        slices
    };
    let kept = async || db.texts("select count(*)::text from kept_bodies").await;
    let slices = forget().await;
    assert!(slices >= i64::from(LETTERS) / SLICE, "in {slices} slices");
    assert_eq!(kept().await, [(LETTERS + 1).to_string()]);
    db.tamper(&format!("delete from dead where id <> '{}'", dead.id.0))
        .await;
    let slices = forget().await;
    assert!(slices >= i64::from(LETTERS) / SLICE, "in {slices} slices");
    assert_eq!(kept().await, ["1"]);
    assert_eq!(
        node.retry_by_hand(dead.id).await.unwrap(),
        Some(Status::Dead)
    );
    assert_eq!(node.claim_one(dead.subscription).await.body, "kept");
    // A backend tells what it did when it ends.
    db.close().await;
    until("it is told how the dead letters were read", async || {
        (scans(&db).await.0 >= i64::from(LETTERS)).then_some(())
    })
    .await;
    let (_, now) = scans(&db).await;
    // The statement above that deletes reads each once.
    let mine = i64::from(LETTERS) + 1;
    assert!(now - read <= mine, "{} read without an index", now - read);
}

// N4: whoever publishes looks for its key in every bucket.
async fn a_bucket_that_is_read_for_long_keeps_nobody_waiting(db: Db) {
    let node = db.node().await;
    let key = uuid_at(wall_clock(), Part::new(0)).to_string();
    let event = DEFAULT.event().idempotency_key(&key).build();
    node.accept(&event).await;
    let Database::Postgres(url) = db.database() else {
        panic!("PostgreSQL alone")
    };
    let mut backup = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql("begin; select from idempotency")
        .execute(&mut backup)
        .await
        .unwrap();
    // Another one of the eight is filled then.
    node.pass_days(36).await;
    let left = node.forget(30, 1000).await;
    assert!(left.is_ok(), "{left:?}");
    let rows = "select count(*)::text from idempotency";
    forget(&node, 30).await;
    assert_eq!(db.texts(rows).await, ["0"]);
    backup.close().await.unwrap();
}

// D2: a key whose day is over is used again while it is being forgotten.
async fn a_key_that_is_used_again_is_not_forgotten(db: Db) {
    let node = db.node().await;
    node.accept(&DEFAULT.event().idempotency_key("plain").build())
        .await;
    node.pass_days(2).await;
    let Database::Postgres(url) = db.database() else {
        panic!("PostgreSQL alone")
    };
    let mut other = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql("begin; update idempotency set at = now_us()")
        .execute(&mut other)
        .await
        .unwrap();
    // It passes over what another is at.
    node.forget(30, 1000).await.unwrap();
    sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
    let rows = "select count(*)::text from idempotency";
    assert_eq!(db.texts(rows).await, ["1"]);
    other.close().await.unwrap();
}

// A4
async fn forgetting_goes_on_in_slices(db: Db) {
    let node = db.node().await;
    let batch: Vec<_> = (0..25)
        .map(|n| DEFAULT.event().idempotency_key(&format!("key {n}")).build())
        .collect();
    node.publish(&batch).await;
    node.pass_days(40).await;
    let mut slices = 0;
    while node.forget(30, 10).await.unwrap() == Forgotten::Some {
        slices += 1;
        assert!(slices < 1000);
    }
    assert!(slices >= 2, "25 keys by 10 in {slices} slices");
    assert_eq!(node.get_event(batch[0].event).await.unwrap(), None);
}

// N2: each node runs the sweep.
async fn two_nodes_forget_at_once(db: Db) {
    let node = db.node().await;
    let other = db.another().await;
    let kept = DEFAULT.sub();
    node.accept(&event(kept)).await;
    let lease = leased(&node).await;
    node.finish_now(&lease.delivered()).await;
    node.pass_days(40).await;
    let (one, two) = tokio::join!(node.forget(30, 1000), other.forget(30, 1000));
    assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    forget(&node, 30).await;
    assert!(!exists(&node, lease.id).await);
    assert_eq!(node.claim_one(kept).await.body, "kept");
}

// N4: by several nodes, again and again.
async fn days_are_made_ahead(db: Db) {
    let (one, two) = (db.node().await, db.another().await);
    for _ in 0..3 {
        let (a, b) = tokio::join!(one.prepare_days(), two.prepare_days());
        assert!(a.is_ok() && b.is_ok(), "{a:?} {b:?}");
        one.pass_days(2).await;
    }
    leased(&one).await;
}
