//! Calls that are counted, K10.

use std::time::{Duration, Instant};

use onering::{
    domain::id::{KeyId, Part, TenantId, wall_clock},
    store::{CallCount, Calls, Counted, Session},
    usage::{Call, Figures, Usage, Who},
};

use super::scene::key;
use crate::support::store::Db;

contract![
    figures_are_of_all_nodes,
    figures_outlive_their_node,
    figures_are_of_a_day,
    figures_are_quick,
];

const HOUR: i64 = 3_600_000_000;

fn who(key: KeyId, tenant: TenantId, tier: &str) -> Who {
    Who {
        key: Some(key),
        tenant: Some(tenant),
        tier: tier.to_owned(),
    }
}

fn figures(auth_failures: i64, by_tier: &[(&str, i64, i64)]) -> Figures {
    Figures {
        auth_failures,
        limit_hits: by_tier.iter().map(|t| t.2).sum(),
        by_tier: by_tier
            .iter()
            .map(|(tier, used, hits)| ((*tier).to_owned(), (*used, *hits)))
            .collect(),
    }
}

// K10
async fn figures_are_of_all_nodes(db: Db) {
    let (one, other) = (db.open().await, db.another().await);
    let (a, b) = (
        Usage::load(&*one).await.unwrap(),
        Usage::load(&*other).await.unwrap(),
    );
    let elsewhere = TenantId::new(wall_clock(), Part::new(7));
    let (free, pro) = (
        who(key(), TenantId::DEFAULT, "free"),
        who(key(), elsewhere, "pro"),
    );
    for round in 1..=3 {
        a.note(&free, Call::Admitted);
        a.note(&free, Call::Limited);
        b.note(&pro, Call::Admitted);
        b.note(&free, Call::Admitted);
        b.note(&Who::default(), Call::Unauthenticated);
        for usage in [&a, &b] {
            usage.write(&*one).await.unwrap();
            // To write the same again changes nothing.
            usage.write(&*one).await.unwrap();
        }
        for usage in [&a, &b] {
            usage.read(&*other).await.unwrap();
            usage.read(&*other).await.unwrap();
            let all = figures(round, &[("free", 2 * round, round), ("pro", round, 0)]);
            assert_eq!(usage.figures(None), all);
            let of = figures(0, &[("pro", round, 0)]);
            assert_eq!(usage.figures(Some(elsewhere)), of);
            let keys = [pro.key.unwrap(), key(), free.key.unwrap()];
            let of_keys = usage.of_keys(&keys).await;
            assert_eq!(of_keys, [(round, 0), (0, 0), (2 * round, round)]);
        }
    }
}

// K10
async fn figures_outlive_their_node(db: Db) {
    let store = db.open().await;
    let usage = Usage::load(&*store).await.unwrap();
    let free = who(key(), TenantId::DEFAULT, "free");
    usage.note(&free, Call::Admitted);
    usage.write(&*store).await.unwrap();
    usage.note(&free, Call::Admitted);
    // Not written yet: lost with the node.
    drop(usage);
    db.close().await;
    let store = db.open().await;
    for n in 1..=2 {
        let usage = Usage::load(&*store).await.unwrap();
        assert_eq!(usage.figures(None), figures(0, &[("free", n, 0)]));
        usage.note(&free, Call::Admitted);
        usage.write(&*store).await.unwrap();
    }
}

fn counted(counted: Counted, bucket: i64, admitted: i64) -> CallCount {
    CallCount {
        counted,
        bucket,
        calls: Calls {
            admitted,
            ..Calls::default()
        },
    }
}

// K10
async fn figures_are_of_a_day(db: Db) {
    let store = db.open().await;
    let (minute, hour) = (wall_clock() / (HOUR / 60), wall_clock() / HOUR);
    let (key, tier) = (key(), || Counted::Tier("free".into()));
    let counts = [
        counted(tier(), minute - 1430, 1),
        counted(tier(), minute - 1442, 100),
        counted(Counted::Key(key), hour - 23, 2),
        counted(Counted::Key(key), hour - 26, 200),
    ];
    store.note_calls(Session(5), &counts).await.unwrap();
    let usage = Usage::load(&*store).await.unwrap();
    assert_eq!(usage.figures(None), figures(0, &[("free", 1, 0)]));
    assert_eq!(usage.of_keys(&[key]).await, [(2, 0)]);
}

// K10: from counters, however many keys there are.
async fn figures_are_quick(db: Db) {
    let store = db.open().await;
    let (minute, hour) = (wall_clock() / (HOUR / 60), wall_clock() / HOUR);
    let keys: Vec<KeyId> = (0..100_000).map(|_| key()).collect();
    let tiers = ["free", "pro", "enterprise"];
    let of_tiers = (0..1430 * 3).map(|n| {
        let tier = Counted::Tier(tiers[n % 3].into());
        counted(tier, minute - n as i64 / 3, 1)
    });
    let of_keys = keys.iter().map(|k| counted(Counted::Key(*k), hour - 3, 1));
    let mut counts: Vec<CallCount> = of_tiers.chain(of_keys).collect();
    counts.extend((0..24).map(|n| counted(Counted::Key(keys[0]), hour - n, 1)));
    for counts in counts.chunks(10_000) {
        // The first key's hour again: absolute.
        store.note_calls(Session(5), counts).await.unwrap();
    }
    let usage = Usage::load(&*store).await.unwrap();
    // The quickest of some: others work on this machine too.
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let began = Instant::now();
        let all = usage.figures(None);
        let of_keys = usage.of_keys(&keys[..1000]).await;
        best = best.min(began.elapsed());
        assert_eq!(all.by_tier["pro"], (1430, 0));
        assert_eq!(of_keys[..2], [(24, 0), (1, 0)]);
    }
    assert!(best < Duration::from_millis(10), "{best:?}");
}
