//! K6 against a plain model: whatever happens, in no trailing hour are more
//! calls admitted than the limit.

use futures_util::future::join_all;
use onering::{
    domain::id::wall_clock,
    limiter::{Policy, Undecided},
};

use super::scene::{MINUTE, Node, OwnRedis, Scene, policy};
use crate::support::{
    store::{Db, Engine, HOUR, SECOND},
    wait::until,
};

contract![
    no_hour_holds_more_than_the_limit,
    no_hour_holds_more_than_the_limit_in_redis,
];

/// A reproducible sequence (xorshift64*).
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: i64) -> i64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as i64 % most
    }

    fn one_of<T>(&mut self, of: &[T]) -> usize {
        usize::try_from(self.below(of.len() as i64)).unwrap()
    }

    /// `ONERING_TEST_SEED` repeats one.
    fn new() -> Self {
        let seed = std::env::var("ONERING_TEST_SEED").ok();
        let seed = seed.map_or_else(|| wall_clock() as u64 | 1, |s| s.parse().unwrap());
        eprintln!("ONERING_TEST_SEED={seed}");
        Self(seed)
    }
}

/// A node that is alone knows all that was lent: its share is no more than that.
/// One of several may admit more.
fn limits(scene: &Scene) -> [Policy; 5] {
    let alone = scene.db.engine() == Engine::Sqlite;
    [3, 10, 60, 100, 1200].map(|limit| Policy {
        undecided: if alone {
            Undecided::Share
        } else {
            Undecided::Refuse
        },
        ..policy(limit)
    })
}

async fn some_node(scene: &Scene, chance: &mut Chance, nodes: &mut Vec<Node>) {
    let most = if scene.db.engine() == Engine::Postgres {
        3
    } else {
        1
    };
    if nodes.len() >= most {
        let old = nodes.swap_remove(chance.one_of(nodes));
        if chance.below(2) == 0 {
            old.kill().await;
        } else {
            old.stop().await;
        }
    }
    nodes.push(scene.node().await);
}

async fn calls(scene: &Scene, chance: &mut Chance, nodes: &[Node], limits: &[Policy]) {
    let policy = limits[chance.one_of(limits)];
    let at_once = 1 + chance.below(12);
    for _ in 0..=chance.below(policy.limit.min(200)) / at_once {
        let calls = (0..at_once).map(|_| {
            let node = &nodes[chance.one_of(nodes)];
            let cost = match chance.below(10) {
                0 => 0,
                1 => 1 + chance.below(policy.limit / 2 + 1),
                _ => 1,
            };
            scene.take(node, policy, cost)
        });
        join_all(calls).await;
    }
}

async fn some_time(scene: &Scene, chance: &mut Chance) {
    let time = match chance.below(4) {
        0 => chance.below(5_000_000),
        1 => chance.below(60) * SECOND,
        2 => chance.below(10) * MINUTE,
        _ => chance.below(40) * MINUTE,
    };
    scene.pass(time).await;
}

/// Afterwards all of each limit is there again.
async fn at_the_end(scene: &Scene, nodes: Vec<Node>, limits: &[Policy]) {
    for node in &nodes {
        scene.until_well(node).await;
    }
    // What is told late counts from then on: told first, over then.
    scene.pass(HOUR + 2 * MINUTE).await;
    for node in &nodes {
        let settled = async || node.limiter.is_settled().then_some(());
        until("everything is told", settled).await;
    }
    scene.pass(HOUR + 2 * MINUTE).await;
    for policy in limits {
        let admitted = scene.exhaust(&nodes[0], *policy).await;
        assert!(
            admitted * 10 >= policy.limit * 9,
            "{admitted} of {}",
            policy.limit
        );
    }
    scene.check(limits);
    for node in nodes {
        node.stop().await;
    }
}

// K6
async fn no_hour_holds_more_than_the_limit(db: Db) {
    let mut chance = Chance::new();
    let scene = Scene::new(db, None);
    let limits = limits(&scene);
    let mut nodes = vec![scene.node().await];
    for _ in 0..150 {
        match chance.below(20) {
            0 => some_node(&scene, &mut chance, &mut nodes).await,
            1..6 => some_time(&scene, &mut chance).await,
            _ => calls(&scene, &mut chance, &nodes, &limits).await,
        }
    }
    at_the_end(&scene, nodes, &limits).await;
}

// K6, K7
async fn no_hour_holds_more_than_the_limit_in_redis(db: Db) {
    let mut chance = Chance::new();
    let mut redis = OwnRedis::start().await;
    let scene = Scene::new(db, Some(redis.url()));
    let limits = limits(&scene);
    let mut nodes = vec![scene.node().await];
    // A flush and an outage, at some time.
    let (flushed, gone) = (chance.below(100), chance.below(100));
    for step in 0..150 {
        if step == flushed && redis.is_up() {
            redis.flush().await;
        }
        if step == gone {
            redis.stop().await;
        }
        if step == gone + 15 {
            redis.run().await;
        }
        match chance.below(20) {
            // What a killed node was lent goes with a Redis that forgets: no node
            // ends within the hour before.
            0 if step > flushed.max(gone + 15) => {
                for node in &nodes {
                    scene.until_well(node).await;
                }
                some_node(&scene, &mut chance, &mut nodes).await;
            }
            0 if nodes.len() < 3 && scene.db.engine() == Engine::Postgres => {
                nodes.push(scene.node().await);
            }
            1..6 => some_time(&scene, &mut chance).await,
            _ => calls(&scene, &mut chance, &nodes, &limits).await,
        }
    }
    at_the_end(&scene, nodes, &limits).await;
}
