//! What keys were lent of their limits, and what was called.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use onering::{
    domain::{
        id::{KeyId, Part, TenantId, wall_clock},
        limit::Ask,
    },
    store::{CallCount, Calls, Counted, Session, Store},
};

use crate::support::store::{Db, FOR_EVER, HOUR, SECOND};

contract![
    what_was_lent_counts_for_an_hour_after_its_end,
    what_was_lent_outlives_the_store,
    stores_lend_no_more_than_the_limit_together,
    windows_are_forgotten_when_nothing_counts,
    live_sessions_are_counted,
    calls_are_absolute_for_a_session,
    calls_are_forgotten_after_a_day,
];

fn ask(key: KeyId, limit: i64, want: i64) -> Ask {
    Ask {
        key,
        whole: limit,
        limit,
        need: 1,
        want,
        spent: 0,
        back: Vec::new(),
    }
}

fn key() -> KeyId {
    KeyId::new(wall_clock(), Part::new(1))
}

async fn lend(store: &dyn Store, ask: Ask) -> i64 {
    store.lend(&[ask]).await.unwrap()[0].lent
}

// K6
async fn what_was_lent_counts_for_an_hour_after_its_end(db: Db) {
    let store = db.open().await;
    for limit in [10, 100] {
        let key = key();
        let first = store.lend(&[ask(key, limit, 6)]).await.unwrap().remove(0);
        assert_eq!((first.lent, first.window.used(first.now)), (6, 6));
        assert!(first.ends > first.now && first.ends < first.now + 81 * SECOND);
        assert_eq!(lend(&*store, ask(key, limit, limit)).await, limit - 6);
        assert_eq!(lend(&*store, ask(key, limit, 1)).await, 0);
        let mut back = ask(key, limit, 5);
        back.back = vec![(first.ends, 2)];
        assert_eq!(lend(&*store, back).await, 2);
        store.shift_clock(HOUR - 5 * SECOND).await.unwrap();
        assert_eq!(lend(&*store, ask(key, limit, 1)).await, 0, "too early");
        store.shift_clock(90 * SECOND).await.unwrap();
        assert_eq!(lend(&*store, ask(key, limit, limit + 1)).await, limit);
        let mut spent = ask(key, limit, 0);
        spent.spent = 3;
        let over = store.lend(&[spent]).await.unwrap().remove(0);
        assert_eq!(over.window.used(over.now), limit + 3);
    }
}

// K6: SIGKILL too.
async fn what_was_lent_outlives_the_store(db: Db) {
    let store = db.open().await;
    let (one, other) = (key(), key());
    let asks = [ask(one, 10, 4), ask(other, 1000, 300)];
    let lent = store.lend(&asks).await.unwrap();
    assert_eq!(lent.iter().map(|a| a.lent).collect::<Vec<_>>(), [4, 300]);
    db.close().await;
    let store = db.open().await;
    let (_, mut windows) = store.limit_windows().await.unwrap();
    windows.sort_unstable_by_key(|(key, _)| *key != one);
    assert_eq!(windows.len(), 2);
    for ((key, window), lent) in windows.iter().zip(&lent) {
        assert_eq!(window, &lent.window, "{key}");
    }
    assert_eq!(lend(&*store, ask(one, 10, 10)).await, 6);
    assert_eq!(lend(&*store, ask(other, 1000, 1000)).await, 700);
}

// K6: reserved by a conditional statement, whoever asks.
async fn stores_lend_no_more_than_the_limit_together(db: Db) {
    let stores = [db.open().await, db.another().await, db.another().await];
    let keys: Vec<KeyId> = (0..5).map(|_| key()).collect();
    let many = stores
        .iter()
        .cycle()
        .take(60)
        .enumerate()
        .map(|(n, store)| {
            // In different orders: no two wait for each other.
            let mut asks: Vec<Ask> = keys.iter().map(|k| ask(*k, 100, 3)).collect();
            asks.rotate_left(n % 5);
            async move { store.lend(&asks).await.unwrap() }
        });
    let answers = join_all(many).await;
    let lent: i64 = answers.iter().flatten().map(|a| a.lent).sum();
    assert_eq!(lent, 500);
    for (_, window) in stores[0].limit_windows().await.unwrap().1 {
        assert_eq!(window.used(0), 100);
    }
}

async fn windows_are_forgotten_when_nothing_counts(db: Db) {
    let store = db.open().await;
    assert_eq!(lend(&*store, ask(key(), 100, 1)).await, 1);
    store.shift_clock(HOUR - SECOND).await.unwrap();
    assert_eq!(store.limit_windows().await.unwrap().1.len(), 1);
    assert_eq!(store.forget_limit_windows().await.unwrap(), 0);
    store.shift_clock(2 * HOUR).await.unwrap();
    assert!(store.limit_windows().await.unwrap().1.is_empty());
    assert_eq!(store.forget_limit_windows().await.unwrap(), 1);
}

async fn live_sessions_are_counted(db: Db) {
    let store = db.open().await;
    assert_eq!(store.live_sessions().await.unwrap(), 0);
    store
        .begin_session("short", Duration::from_mins(1))
        .await
        .unwrap();
    let long = store.begin_session("long", FOR_EVER).await.unwrap();
    assert_eq!(store.live_sessions().await.unwrap(), 2);
    store.shift_clock(HOUR).await.unwrap();
    assert_eq!(store.live_sessions().await.unwrap(), 1);
    store.end_session(long).await.unwrap();
    assert_eq!(store.live_sessions().await.unwrap(), 0);
}

fn count(counted: Counted, bucket: i64, calls: [i64; 3]) -> CallCount {
    let [admitted, limited, refused] = calls;
    CallCount {
        counted,
        bucket,
        calls: Calls {
            admitted,
            limited,
            refused,
        },
    }
}

async fn read(store: &Arc<dyn Store>, since: i64, but: i64) -> (i64, Vec<(Session, CallCount)>) {
    let (at, mut counts) = store.calls(since, Session(but)).await.unwrap();
    counts.sort_by_key(|(s, c)| (s.0, c.bucket, c.counted.clone()));
    (at, counts)
}

// K10
async fn calls_are_absolute_for_a_session(db: Db) {
    let store = db.open().await;
    let hour = wall_clock() / HOUR;
    let (tier, key) = (Counted::Tier("free".into()), Counted::Key(key()));
    let tenant = Counted::Tenant(TenantId::DEFAULT, "pro".into());
    let counts = [
        count(tier.clone(), hour * 60, [1, 2, 3]),
        count(key, hour, [4, 0, 0]),
        count(tenant, hour, [0, 5, 0]),
    ];
    for _ in 0..2 {
        store.note_calls(Session(1), &counts).await.unwrap();
    }
    let mut expected: Vec<_> = counts.iter().map(|c| (Session(1), c.clone())).collect();
    expected.sort_by_key(|(_, c)| (c.bucket, c.counted.clone()));
    let (at, found) = read(&store, 0, 2).await;
    assert_eq!(found, expected);
    assert!(
        read(&store, 0, 1).await.1.is_empty(),
        "one's own are left out"
    );
    store.shift_clock(HOUR).await.unwrap();
    let more = count(tier, hour * 60, [7, 2, 3]);
    store
        .note_calls(Session(1), std::slice::from_ref(&more))
        .await
        .unwrap();
    let (later, found) = read(&store, at + 1, 2).await;
    assert!(later >= at + HOUR);
    assert_eq!(found, [(Session(1), more)], "only what is new");
    store.note_calls(Session(3), &[]).await.unwrap();
}

async fn calls_are_forgotten_after_a_day(db: Db) {
    let store = db.open().await;
    let hour = wall_clock() / HOUR;
    let counts = [
        count(Counted::Tier("free".into()), hour * 60, [1, 0, 0]),
        count(Counted::Key(key()), hour, [1, 0, 0]),
    ];
    store.note_calls(Session(1), &counts).await.unwrap();
    store.shift_clock(24 * HOUR).await.unwrap();
    assert_eq!(store.forget_calls().await.unwrap(), 0);
    assert_eq!(read(&store, 0, 2).await.1.len(), 2);
    store.shift_clock(3 * HOUR).await.unwrap();
    assert_eq!(store.forget_calls().await.unwrap(), 2);
    assert!(read(&store, 0, 2).await.1.is_empty());
}
