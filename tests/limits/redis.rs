//! Limits that Redis lends most of.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use onering::domain::id::wall_clock;

use super::scene::{MINUTE, OwnRedis, Scene, calls_of, key, policy};
use crate::support::{
    proxy::Proxy,
    store::{Db, HOUR, SECOND},
    wait::{until, until_after},
};

contract![
    redis_and_the_store_lend_the_whole_limit,
    a_stop_gives_back_to_redis,
    without_redis_a_share_is_left,
    a_redis_that_forgot_is_told,
    what_ended_nodes_were_lent_is_told_too,
    a_redis_that_went_back_in_time_is_not_trusted,
    loans_of_a_clock_that_was_ahead_are_over_in_time,
];

on_postgres_alone![nodes_share_a_limit_in_redis, redis_lends_when_all_have_told,];

// K6
async fn redis_and_the_store_lend_the_whole_limit(db: Db) {
    let scene = Scene::on_redis(db);
    let node = scene.node().await;
    scene.until_well(&node).await;
    let policies = [1, 2, 10, 100, 1000, 2000].map(policy);
    for _ in 0..2 {
        for policy in policies {
            assert!(scene.take_surely(&node, policy, 1).await.allowed);
            let left = scene.look(&node, policy).await.remaining;
            assert_eq!(left, policy.limit - 1);
            assert_eq!(scene.exhaust(&node, policy).await, policy.limit - 1);
            let refused = scene.take_surely(&node, policy, 1).await;
            assert!(refused.retry_after > Duration::from_mins(50), "{refused:?}");
        }
        scene.pass(HOUR + 2 * MINUTE).await;
    }
    let big = policy(10);
    assert!(scene.take_surely(&node, big, 10).await.allowed, "of both");
    scene.check(&policies);
    node.stop().await;
}

async fn a_stop_gives_back_to_redis(db: Db) {
    let scene = Scene::on_redis(db);
    let node = scene.node().await;
    scene.until_well(&node).await;
    let policy = policy(4000);
    for _ in 0..500 {
        assert!(scene.take_surely(&node, policy, 1).await.allowed);
    }
    node.stop().await;
    let node = scene.node().await;
    scene.until_well(&node).await;
    assert_eq!(scene.exhaust(&node, policy).await, 3500);
    scene.check(&[policy]);
    node.stop().await;
}

// K6
async fn nodes_share_a_limit_in_redis(db: Db) {
    let scene = Scene::on_redis(db);
    let nodes = join_all((0..3).map(|_| scene.node())).await;
    for node in &nodes {
        scene.until_well(node).await;
    }
    let policies = [10, 100, 2000].map(policy);
    for policy in policies {
        let calls = nodes.iter().cycle().take(calls_of(policy) * 3 / 2);
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

// K6: after nodes were replaced in order, those that came know what those that
// went were lent.
async fn what_ended_nodes_were_lent_is_told_too(db: Db) {
    let redis = OwnRedis::start().await;
    let scene = Scene::new(db, Some(redis.url()));
    let node = scene.node().await;
    scene.until_well(&node).await;
    let policies = [12, 400, 4000].map(policy);
    for policy in policies {
        assert_eq!(scene.exhaust(&node, policy).await, policy.limit);
    }
    node.stop().await;
    // Of this one the store knows nothing.
    redis.has_lent(&scene, &[key()], 1, wall_clock()).await;
    let node = scene.node().await;
    scene.until_well(&node).await;
    let knows = async || (node.limiter.keys() > policies.len()).then_some(());
    until("the new node knows", knows).await;
    redis.flush().await;
    until("it is noticed, and told", async || {
        redis.has_something().await.then_some(())
    })
    .await;
    scene.until_well(&node).await;
    for policy in policies {
        assert_eq!(scene.exhaust(&node, policy).await, 0, "{}", policy.limit);
    }
    scene.check(&policies);
    node.stop().await;
}

// K7, N2
async fn without_redis_a_share_is_left(db: Db) {
    let mut redis = OwnRedis::start().await;
    let scene = Scene::new(db, Some(redis.url()));
    let node = scene.node().await;
    scene.until_well(&node).await;
    let policies = [12, 400, 4000].map(policy);
    for policy in policies {
        assert!(scene.take_surely(&node, policy, 1).await.allowed);
        scene.look(&node, policy).await;
    }
    redis.stop().await;
    // The first call finds out.
    let began = Instant::now();
    let first = scene.take(&node, policies[0], 1).await;
    assert!(began.elapsed() < Duration::from_millis(500), "it waited");
    assert!(first.degraded, "{first:?}");
    until("it is noticed", async || {
        node.limiter.is_degraded().then_some(())
    })
    .await;
    let shown = node.metrics.render();
    assert!(shown.contains("onering_rate_limiter_degraded 1"), "{shown}");
    for policy in policies {
        let mut admitted = i64::from(first.allowed && policy.limit == 12);
        while admitted < policy.limit {
            let state = scene.take(&node, policy, 1).await;
            assert!(state.degraded);
            if !state.allowed {
                break;
            }
            admitted += 1;
        }
        assert!(
            admitted >= policy.limit / 4 - 1,
            "{admitted} of {}",
            policy.limit
        );
        assert!(
            admitted <= policy.limit / 3,
            "{admitted} of {}",
            policy.limit
        );
        let mut open = policy;
        open.undecided = onering::limiter::Undecided::Pass;
        assert!(node.limiter.take(open, 1).await.allowed);
    }
    redis.run().await;
    scene.until_well(&node).await;
    let back = scene.look(&node, policies[2]).await;
    assert!(back.remaining > policies[2].limit / 2, "{back:?}");
    scene.check(&policies);
    node.stop().await;
}

// K6: after a flush the nodes seed it again from their copies.
async fn a_redis_that_forgot_is_told(db: Db) {
    let redis = OwnRedis::start().await;
    let scene = Scene::new(db, Some(redis.url()));
    let node = scene.node().await;
    scene.until_well(&node).await;
    let policies = [10, 100, 2000].map(policy);
    for policy in policies {
        assert_eq!(scene.exhaust(&node, policy).await, policy.limit);
    }
    redis.flush().await;
    for policy in policies {
        assert!(!scene.take(&node, policy, 1).await.allowed);
    }
    let noticed = async || redis.has_something().await.then_some(());
    until("the flush is noticed", noticed).await;
    scene.until_well(&node).await;
    // What was heard before the flush is too old to refuse by.
    scene.pass(2 * SECOND).await;
    for policy in policies {
        assert_eq!(scene.exhaust(&node, policy).await, 0);
    }
    scene.pass(HOUR + 2 * MINUTE).await;
    for policy in policies {
        assert_eq!(scene.exhaust(&node, policy).await, policy.limit);
    }
    scene.check(&policies);
    node.stop().await;
}

// K6: a restarted Redis may hold what was so earlier.
async fn a_redis_that_went_back_in_time_is_not_trusted(db: Db) {
    let mut redis = OwnRedis::start().await;
    let scene = Scene::new(db, Some(redis.url()));
    let node = scene.node().await;
    scene.until_well(&node).await;
    let policy = policy(100);
    scene.take_surely(&node, policy, 1).await;
    let earlier = redis.dump().await;
    assert_eq!(scene.exhaust(&node, policy).await, 99);
    redis.stop().await;
    redis.run_with(&earlier).await;
    assert!(!scene.take(&node, policy, 1).await.allowed);
    // What was heard before is too old to refuse by: Redis is asked, or found gone.
    scene.pass(2 * SECOND).await;
    scene.take(&node, policy, 1).await;
    scene.until_well(&node).await;
    assert_eq!(scene.exhaust(&node, policy).await, 0);
    scene.check(&[policy]);
    node.stop().await;
}

// K6, K7: however many keys there are and however slow Redis is, and not before
// the last node has told it what it knows.
async fn redis_lends_when_all_have_told(db: Db) {
    let redis = OwnRedis::start().await;
    let slow = Proxy::to(redis.url().replace("redis://", "")).await;
    let scene = Scene::new(db, Some(redis.url()));
    let policies: Vec<_> = (0..20_000).map(|_| policy(100)).collect();
    let keys: Vec<_> = policies.iter().map(|p| p.key).collect();
    let other = scene.node().await;
    scene.until_well(&other).await;
    redis.has_lent(&scene, &keys, 75, wall_clock()).await;
    let old = key();
    let ends = wall_clock() - HOUR - SECOND;
    redis.has_lent(&scene, &[old], 75, ends).await;
    let url = format!("redis://{}", slow.address);
    let node = scene.node_with(scene.db.another().await, Some(url)).await;
    until("the node knows them", async || {
        (node.limiter.keys() > keys.len()).then_some(())
    })
    .await;
    slow.slow_down(Duration::from_millis(60));
    redis.flush().await;
    for one in [&other, &node] {
        let noticed = async || one.limiter.is_degraded().then_some(());
        until("it is noticed", noticed).await;
    }
    let begun = async || redis.has_many(1000).await.then_some(());
    until("some is told", begun).await;
    // No answer comes in time: it has not told all for as long as that.
    slow.slow_down(Duration::from_millis(700));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        assert!(other.limiter.is_degraded(), "the other has not told all");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    slow.slow_down(Duration::from_millis(20));
    let well = async || (!other.limiter.is_degraded()).then_some(());
    until_after(Duration::from_secs(60), "Redis lends again", well).await;
    for policy in policies.iter().step_by(100) {
        // The store's part alone.
        let left = scene.look(&other, *policy).await.remaining;
        assert_eq!(left, 25, "Redis was told");
    }
    scene.until_well(&node).await;
    assert!(
        !redis.holds(&scene, old).await,
        "it does not count any more"
    );
    for node in [other, node] {
        node.stop().await;
    }
}

// K6: Redis' clock was a day ahead and is put back.
async fn loans_of_a_clock_that_was_ahead_are_over_in_time(db: Db) {
    let redis = OwnRedis::start().await;
    let scene = Scene::new(db, Some(redis.url()));
    let node = scene.node().await;
    scene.until_well(&node).await;
    let policy = policy(100);
    let ahead = wall_clock() + 24 * HOUR;
    redis.has_lent(&scene, &[policy.key], 75, ahead).await;
    assert_eq!(scene.exhaust(&node, policy).await, 25);
    scene.pass(HOUR + 2 * MINUTE).await;
    assert_eq!(scene.exhaust(&node, policy).await, 100);
    node.stop().await;
}
