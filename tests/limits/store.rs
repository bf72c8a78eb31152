//! Limits that the store lends.

use std::time::Duration;

use futures_util::future::join_all;
use onering::{
    domain::{
        id::{KeyId, Micros, micros, wall_clock},
        limit::Window,
    },
    limiter::Undecided,
};

use super::scene::{MINUTE, Scene, calls_of, key, policy};
use crate::support::{
    proxy::Proxy,
    store::{Db, Engine, HOUR, SECOND},
    wait::until,
};

contract![
    a_small_limit_is_exact,
    a_refused_call_consumes_nothing,
    a_killed_node_takes_its_loans_with_it_and_no_more,
    a_stop_gives_back_what_was_not_used,
    a_busy_key_has_all_of_its_limit,
    another_limit_holds_at_once,
    unused_keys_are_forgotten,
    loans_of_a_clock_that_was_ahead_are_over_in_time,
];

on_postgres_alone![
    nodes_share_a_limit,
    without_the_store_the_tier_says_what_happens,
    a_share_is_of_what_was_known,
    a_store_whose_loans_take_long_to_read_is_not_away,
];

// K6
async fn a_small_limit_is_exact(db: Db) {
    let scene = Scene::new(db, None);
    let node = scene.node().await;
    let small = policy(10);
    let look = scene.take(&node, small, 0).await;
    assert!(look.allowed && look.remaining == 10, "{look:?}");
    for left in (0..10).rev() {
        let state = scene.take_surely(&node, small, 1).await;
        assert!(state.allowed, "{state:?}");
        assert_eq!((state.limit, state.remaining), (10, left));
        scene.pass(MINUTE).await;
    }
    let refused = scene.take_surely(&node, small, 1).await;
    assert!(!refused.allowed && refused.remaining == 0);
    let wait = refused.retry_after.as_secs_f64();
    assert!((2990.0..3004.0).contains(&wait), "{wait} s: 50 minutes");
    scene.pass(micros(refused.retry_after) - 4 * SECOND).await;
    assert!(
        !scene.take_surely(&node, small, 1).await.allowed,
        "too early"
    );
    scene.pass(4 * SECOND).await;
    assert!(scene.take_surely(&node, small, 1).await.allowed);
    assert!(!scene.take_surely(&node, small, 1).await.allowed);
    scene.check(&[small]);
    node.stop().await;
}

// K6: a denied call consumes nothing, and a look neither.
async fn a_refused_call_consumes_nothing(db: Db) {
    let scene = Scene::new(db, None);
    let node = scene.node().await;
    for limit in [20, 200] {
        let policy = policy(limit);
        assert!(scene.take_surely(&node, policy, limit - 5).await.allowed);
        for _ in 0..3 {
            let refused = scene.take_surely(&node, policy, 6).await;
            assert!(!refused.allowed && refused.remaining == 5, "{refused:?}");
            assert_eq!(scene.take(&node, policy, 0).await.remaining, 5);
        }
        let never = scene.take_surely(&node, policy, limit + 1).await;
        assert!(!never.allowed);
        assert!(scene.take_surely(&node, policy, 5).await.allowed);
    }
    node.stop().await;
}

// K6: what was reserved counts as used after a kill.
async fn a_killed_node_takes_its_loans_with_it_and_no_more(db: Db) {
    let scene = Scene::new(db, None);
    let policies = [10, 60, 100, 2000].map(policy);
    for policy in policies {
        let node = scene.node().await;
        for _ in 0..policy.limit / 2 {
            assert!(scene.take_surely(&node, policy, 1).await.allowed);
        }
        node.kill().await;
        let node = scene.node().await;
        let left = scene.exhaust(&node, policy).await;
        assert!(left <= policy.limit / 2);
        let lost = policy.limit / 2 - left;
        assert!(lost <= policy.limit / 10, "{lost} of {}", policy.limit);
        node.kill().await;
    }
    scene.check(&policies);
}

async fn a_stop_gives_back_what_was_not_used(db: Db) {
    let scene = Scene::new(db, None);
    let policy = policy(2000);
    let node = scene.node().await;
    for _ in 0..300 {
        assert!(scene.take_surely(&node, policy, 1).await.allowed);
    }
    node.stop().await;
    let node = scene.node().await;
    assert_eq!(scene.exhaust(&node, policy).await, 1700);
    scene.check(&[policy]);
    node.stop().await;
}

// K6: not absurdly too few.
async fn a_busy_key_has_all_of_its_limit(db: Db) {
    let scene = Scene::new(db, None);
    let node = scene.node().await;
    let policies = [1, 60, 61, 1000].map(policy);
    for _ in 0..3 {
        for policy in policies {
            assert_eq!(scene.exhaust(&node, policy).await, policy.limit);
        }
        scene.pass(HOUR + 2 * MINUTE).await;
    }
    scene.check(&policies);
    node.stop().await;
}

// K6: an own limit or a canary's counts from when it is set.
async fn another_limit_holds_at_once(db: Db) {
    let scene = Scene::new(db, None);
    let node = scene.node().await;
    let mut policy = policy(1000);
    for _ in 0..100 {
        assert!(scene.take_surely(&node, policy, 1).await.allowed);
    }
    policy.limit = 10;
    let refused = scene.take_surely(&node, policy, 1).await;
    assert!(!refused.allowed && refused.limit == 10 && refused.remaining == 0);
    policy.limit = 1000;
    assert!(scene.take_surely(&node, policy, 1).await.allowed);
    node.stop().await;
}

async fn unused_keys_are_forgotten(db: Db) {
    let scene = Scene::new(db, None);
    let node = scene.node().await;
    for _ in 0..20 {
        assert!(scene.take_surely(&node, policy(100), 1).await.allowed);
    }
    assert!(node.limiter.keys() >= 20);
    scene.pass(2 * HOUR).await;
    until("unused keys are forgotten", async || {
        (node.limiter.keys() == 0).then_some(())
    })
    .await;
    scene.pass(HOUR).await;
    assert!(node.store.forget_limit_windows().await.unwrap() >= 20);
    node.stop().await;
}

// K6: the database's clock and conditional loans hold it over all nodes.
async fn nodes_share_a_limit(db: Db) {
    let scene = Scene::new(db, None);
    let nodes = join_all((0..3).map(|_| scene.node())).await;
    let policies = [10, 100, 1000].map(policy);
    for policy in policies {
        let calls = nodes.iter().cycle().take(calls_of(policy) * 2);
        let calls: Vec<_> = calls.collect();
        let mut admitted = 0;
        for calls in calls.chunks(30) {
            let calls = calls.iter().map(|node| scene.take_surely(node, policy, 1));
            let states = join_all(calls).await;
            admitted += states.iter().filter(|s| s.allowed).count() as i64;
        }
        assert!(admitted <= policy.limit, "{admitted}");
        assert!(admitted >= policy.limit * 4 / 5, "{admitted}");
    }
    scene.check(&policies);
    for node in nodes {
        node.stop().await;
    }
}

// K7, without Redis: nobody waits for the store for longer than 20 ms.
async fn without_the_store_the_tier_says_what_happens(db: Db) {
    let scene = Scene::new(db, None);
    let (node, _other) = (scene.node().await, scene.node().await);
    let known = policy(2000);
    for _ in 0..200 {
        assert!(scene.take_surely(&node, known, 1).await.allowed);
    }
    node.store.close().await;
    // What is held is spent, whatever the tier says.
    let held = scene.take(&node, known, 1).await;
    assert!(held.allowed, "{held:?}");
    let mut cold = policy(2000);
    let began = std::time::Instant::now();
    let refused = scene.take(&node, cold, 1).await;
    assert!(!refused.allowed && refused.degraded, "{refused:?}");
    assert!(refused.retry_after <= Duration::from_secs(1));
    assert!(began.elapsed() < Duration::from_millis(500), "it waited");
    assert!(node.limiter.is_degraded());
    let shown = node.metrics.render();
    assert!(shown.contains("onering_rate_limiter_degraded 1"), "{shown}");
    cold.undecided = Undecided::Pass;
    let open = scene.take(&node, cold, 1).await;
    assert!(open.allowed && open.degraded, "{open:?}");
    node.kill_without_a_store().await;
}

// K7: of a key that a node knows nothing about nothing is known to be left.
async fn a_share_is_of_what_was_known(db: Db) {
    let scene = Scene::new(db, None);
    let (slow, url) = Proxy::before(&scene.db).await;
    let other = scene.node().await;
    let behind = Db::at(&url);
    let node = scene.node_with(behind.open().await, None).await;
    let [mut known, mut unknown] = [100, 100].map(policy);
    for policy in [&mut known, &mut unknown] {
        policy.undecided = Undecided::Share;
        assert!(scene.take_surely(&other, *policy, 60).await.allowed);
    }
    assert!(scene.take_surely(&node, known, 1).await.allowed);
    slow.slow_down(Duration::from_millis(100));
    let refused = scene.take(&node, unknown, 1).await;
    assert!(!refused.allowed && refused.undecided, "{refused:?}");
    assert!(refused.retry_after <= Duration::from_secs(1), "{refused:?}");
    let (mut passed, mut quickest) = (0, Duration::MAX);
    loop {
        let began = std::time::Instant::now();
        let state = scene.take(&node, known, 1).await;
        quickest = quickest.min(began.elapsed());
        if !state.allowed {
            break;
        }
        passed += 1;
        assert!(passed < 40, "more than was left");
    }
    assert!(passed > 0, "some of what was left");
    // The quickest of some: others work on this machine too.
    assert!(quickest < Duration::from_millis(40), "{quickest:?}");
    slow.mend();
    scene.check(&[known, unknown]);
    for node in [node, other] {
        node.stop().await;
    }
    behind.close().await;
}

/// Loans as if the store had made them.
async fn has_lent(db: &Db, key: KeyId, amount: i64, ends: Micros) {
    let loans = hex::encode(Window::from_iter([(ends, amount)]).encode());
    let (key, loans) = match db.engine() {
        Engine::Postgres => (format!("'{}'", key.0), format!("'\\x{loans}'")),
        Engine::Sqlite => (format!("x'{}'", key.0.simple()), format!("x'{loans}'")),
    };
    let sql =
        format!("insert into limit_windows (key, ends, loans) values ({key}, {ends}, {loans})");
    db.tamper(&sql).await;
}

// K6: the database's clock was a day ahead and is put back.
async fn loans_of_a_clock_that_was_ahead_are_over_in_time(db: Db) {
    let scene = Scene::new(db, None);
    let policy = policy(100);
    // The schema is there from here on.
    scene.db.open().await;
    has_lent(&scene.db, policy.key, 100, wall_clock() + 24 * HOUR).await;
    let node = scene.node().await;
    assert_eq!(scene.exhaust(&node, policy).await, 0);
    until("the store has moved the end", async || {
        node.limiter.is_settled().then_some(())
    })
    .await;
    scene.pass(30 * MINUTE).await;
    assert_eq!(scene.exhaust(&node, policy).await, 0);
    scene.pass(32 * MINUTE).await;
    assert_eq!(scene.exhaust(&node, policy).await, 100);
    node.stop().await;
}

// K7
async fn a_store_whose_loans_take_long_to_read_is_not_away(db: Db) {
    let scene = Scene::new(db, None);
    scene.db.open().await;
    for _ in 0..10 {
        has_lent(&scene.db, key(), 1, wall_clock() + MINUTE).await;
    }
    for sql in [
        "alter table limit_windows rename to windows",
        "create function late() returns bool language plpgsql volatile cost 1000000
         as 'begin perform pg_sleep(0.25); return true; end'",
        "create view limit_windows as select key, ends, loans from windows where late()",
    ] {
        scene.db.tamper(sql).await;
    }
    let (slow, url) = Proxy::before(&scene.db).await;
    let behind = Db::at(&url);
    let node = scene.node_with(behind.open().await, None).await;
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert!(!node.limiter.is_degraded(), "the store answers");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // What is decided before it answers is known for sure.
    slow.slow_down(Duration::from_millis(40));
    let policy = until("all loans are known", async || {
        let policy = policy(100);
        let state = scene.take(&node, policy, 100).await;
        state.allowed.then_some(policy)
    })
    .await;
    assert!(!scene.take(&node, policy, 1).await.allowed);
    slow.mend();
    node.stop().await;
    behind.close().await;
}
