//! Deliveries with an ordering key: one at a time, in the order of publishing.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use onering::{
    domain::{
        delivery::Status,
        id::{DAY, DeliveryId, Part, SubscriptionId},
        subscription::{Ordering, Subscription},
    },
    store::{Finish, Leased, Publish, Published},
};
use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence, TestRunner},
};

use crate::support::{
    build::{DEFAULT, Ends as _, Tenancy, a_subscription},
    store::{Db, HOUR, Node},
};

contract![
    one_at_a_time_in_the_order_of_publishing,
    what_is_not_of_the_key_does_not_wait,
    a_head_that_is_tried_again_is_waited_for,
    a_dead_one_blocks_until_it_is_delivered,
    a_dead_one_is_skipped,
    a_dead_one_parks_its_key,
    what_failed_decides_when_it_is_buried,
    a_blocking_one_is_skipped_by_hand,
    a_waiting_one_can_not_be_hurried,
    a_skipped_one_that_is_retried_lines_up,
    a_closing_breaker_frees_heads_alone,
    switched_off_everything_is_free,
    a_changed_ordering_holds_for_what_is_blocked,
    a_blocked_key_of_a_deleted_subscription_is_cancelled,
    an_ended_session_frees_the_head_alone,
    two_nodes_make_one_head,
    keys_locked_in_any_order_do_not_deadlock,
    any_sequence_keeps_the_order,
];

const MONTH: Duration = Duration::from_hours(24 * 30);

/// How many keys are published to by both nodes, and how often.
const KEYS: usize = 12;
const ROUNDS: usize = 25;

/// A subscription with that ordering.
async fn subscribed(node: &Node, ordering: Ordering) -> (Tenancy, Subscription) {
    let wanted = Subscription {
        ordering,
        ..a_subscription(DEFAULT.id)
    };
    node.create_subscription(&wanted, 1000).await.unwrap();
    let changes = node.changes(0).await.unwrap();
    let of_tenant = changes
        .subscriptions
        .iter()
        .find(|s| s.tenant == Some(DEFAULT.id));
    (DEFAULT.at_revision(of_tenant.unwrap().revision), wanted)
}

async fn change(node: &Node, s: &mut Subscription, ordering: Ordering) -> Tenancy {
    let before = s.updated_at;
    s.ordering = ordering;
    s.updated_at += 1;
    node.update_subscription(s, before).await.unwrap();
    let changes = node.changes(0).await.unwrap();
    let list = changes
        .subscriptions
        .iter()
        .find(|l| l.tenant == Some(DEFAULT.id));
    DEFAULT.at_revision(list.unwrap().revision)
}

fn event(tenancy: Tenancy, sub: SubscriptionId, key: &str) -> Publish {
    tenancy.event().to(&[sub]).in_order(key).build()
}

/// Publishes one after the other: their ids.
async fn published(
    node: &Node,
    tenancy: Tenancy,
    sub: SubscriptionId,
    keys: &[&str],
) -> Vec<DeliveryId> {
    let mut ids = Vec::new();
    for key in keys {
        ids.extend(node.accept(&event(tenancy, sub, key)).await);
    }
    ids
}

fn ids(leased: &[Leased]) -> Vec<DeliveryId> {
    leased.iter().map(|l| l.id).collect()
}

/// How many keys there are still rows of.
async fn keys_left(db: &Db) -> usize {
    db.texts("select okey from order_keys").await.len()
}

// A9: in one batch, and one after the other; a lease that is asked for is not given.
async fn one_at_a_time_in_the_order_of_publishing(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let batch: Vec<Publish> = (0..5)
        .map(|_| DEFAULT.event().to(&[sub]).in_order("k").leased().build())
        .collect();
    let answers = node.publish(&batch).await;
    assert!(
        answers
            .iter()
            .all(|a| matches!(a, Published::Accepted { .. }))
    );
    assert_eq!(node.held().await, []);
    let mut expected: Vec<_> = batch.iter().map(|p| p.deliveries[0].id).collect();
    expected.extend(published(&node, DEFAULT, sub, &["k", "k"]).await);
    for id in expected {
        let lease = node.claim_one(sub).await;
        assert_eq!(lease.id, id);
        assert_eq!(lease.ordering_key.as_deref(), Some("k"));
        assert!(node.claim(sub, 10).await.is_empty(), "one at a time");
        node.finish_now(&lease.delivered()).await;
    }
    assert!(node.claim(sub, 10).await.is_empty());
    assert_eq!(keys_left(&db).await, 0);
    db.counts_agree().await;
}

// A9: other keys, other subscriptions' same key, and what has no key.
async fn what_is_not_of_the_key_does_not_wait(db: Db) {
    let node = db.node().await;
    let (one, two) = (DEFAULT.sub(), DEFAULT.sub());
    let first = published(&node, DEFAULT, one, &["a", "a", "b"]).await;
    let both = DEFAULT.event().to(&[one, two]).in_order("a").build();
    node.accept(&both).await;
    let plain = node.accept(&DEFAULT.event_to(one)).await;
    let due: HashSet<_> = ids(&node.claim(one, 10).await).into_iter().collect();
    assert_eq!(due, HashSet::from([first[0], first[2], plain[0]]));
    assert_eq!(ids(&node.claim(two, 10).await), [both.deliveries[1].id]);
}

// A9: also where nothing was tried.
async fn a_head_that_is_tried_again_is_waited_for(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let made = published(&node, DEFAULT, sub, &["k", "k"]).await;
    let lease = node.claim_one(sub).await;
    node.finish_now(&lease.retried(Duration::from_mins(1)))
        .await;
    assert!(node.claim(sub, 10).await.is_empty());
    node.pass(HOUR).await;
    let again = node.claim_one(sub).await;
    assert_eq!(again.id, made[0]);
    node.finish_now(&again.released()).await;
    let again = node.claim_one(sub).await;
    assert_eq!(again.id, made[0]);
    node.finish_now(&again.delivered()).await;
    assert_eq!(node.claim_one(sub).await.id, made[1]);
}

// A9
async fn a_dead_one_blocks_until_it_is_delivered(db: Db) {
    let node = db.node().await;
    let (tenancy, s) = subscribed(&node, Ordering::Block).await;
    let made = published(&node, tenancy, s.id, &["k", "k", "k"]).await;
    for _ in 0..2 {
        let lease = node.claim_one(s.id).await;
        assert_eq!(lease.id, made[0]);
        node.finish_now(&lease.dead()).await;
        assert!(node.claim(s.id, 10).await.is_empty());
        let waits = node.delivery(made[1]).await;
        assert_eq!((waits.status, waits.due_at), (Status::Pending, None));
        let listed = node.ordered(&[s.id.part()]).await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].blocks, listed[0].parks), (true, false));
        node.retry_by_hand(made[0]).await.unwrap();
    }
    let lease = node.claim_one(s.id).await;
    node.finish_now(&lease.delivered()).await;
    assert_eq!(node.claim_one(s.id).await.id, made[1]);
    db.counts_agree().await;
}

// A9
async fn a_dead_one_is_skipped(db: Db) {
    let node = db.node().await;
    let (tenancy, s) = subscribed(&node, Ordering::Skip).await;
    let made = published(&node, tenancy, s.id, &["k", "k"]).await;
    let lease = node.claim_one(s.id).await;
    node.finish_now(&lease.dead()).await;
    assert_eq!(node.status(made[0]).await, Status::Dead);
    assert_eq!(node.claim_one(s.id).await.id, made[1]);
}

// A9, A1: shown as parked, and dead after 30 days of it; what came later lives on.
async fn a_dead_one_parks_its_key(db: Db) {
    let node = db.node().await;
    let (tenancy, s) = subscribed(&node, Ordering::Park).await;
    let made = published(&node, tenancy, s.id, &["k", "k"]).await;
    let lease = node.claim_one(s.id).await;
    node.finish_now(&lease.dead()).await;
    assert_eq!(node.status(made[1]).await, Status::Parked);
    let parked = node
        .deliveries_of_subscription(
            s.id,
            Some(Status::Parked),
            crate::support::store::everything(),
        )
        .await
        .unwrap();
    assert_eq!(parked.iter().map(|d| d.id).collect::<Vec<_>>(), [made[1]]);
    let part = s.id.part();
    let give_up = async || node.give_up_parked(part, s.id, MONTH, 10).await.unwrap();
    node.pass(29 * DAY).await;
    assert_eq!(give_up().await, 0);
    node.pass(2 * DAY).await;
    let late = tenancy.event_at(onering::domain::id::wall_clock() + 31 * DAY);
    let late = node.accept(&late.to(&[s.id]).in_order("k").build()).await;
    assert_eq!(give_up().await, 1);
    assert_eq!(node.status(made[1]).await, Status::Dead);
    assert_eq!(node.delivery(made[1]).await.reason, "parked_too_long");
    assert_eq!(node.status(late[0]).await, Status::Parked);
    node.retry_by_hand(made[0]).await.unwrap();
    let lease = node.claim_one(s.id).await;
    node.finish_now(&lease.delivered()).await;
    assert_eq!(node.claim_one(s.id).await.id, late[0]);
    db.counts_agree().await;
}

// A9, A2: what failed is its key's head until it is dead.
async fn what_failed_decides_when_it_is_buried(db: Db) {
    let node = db.node().await;
    for (ordering, goes_on) in [(Ordering::Skip, true), (Ordering::Block, false)] {
        let (tenancy, s) = subscribed(&node, ordering).await;
        let made = published(&node, tenancy, s.id, &["k", "k"]).await;
        let lease = node.claim_one(s.id).await;
        node.finish_now(&lease.failed(Duration::from_mins(1))).await;
        assert!(node.claim(s.id, 10).await.is_empty());
        node.pass(HOUR).await;
        assert!(node.claim(s.id, 10).await.is_empty(), "not buried yet");
        node.bury(&[s.id.part()], 10).await.unwrap();
        let next = node.claim(s.id, 10).await;
        assert_eq!(ids(&next), made[1..][..usize::from(goes_on)]);
    }
    db.counts_agree().await;
}

// A9: the dead one stays dead.
async fn a_blocking_one_is_skipped_by_hand(db: Db) {
    let node = db.node().await;
    let (tenancy, s) = subscribed(&node, Ordering::Block).await;
    let made = published(&node, tenancy, s.id, &["k", "k"]).await;
    let lease = node.claim_one(s.id).await;
    assert!(!node.skip(made[0]).await.unwrap(), "it is not dead");
    node.finish_now(&lease.dead()).await;
    assert!(!node.skip(made[1]).await.unwrap());
    assert!(node.skip(made[0]).await.unwrap());
    assert!(!node.skip(made[0]).await.unwrap(), "once is enough");
    assert_eq!(node.status(made[0]).await, Status::Dead);
    assert_eq!(node.claim_one(s.id).await.id, made[1]);
}

// A9, A2: a retry by hand does not overtake.
async fn a_waiting_one_can_not_be_hurried(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let made = published(&node, DEFAULT, sub, &["k", "k", "k"]).await;
    node.retry_by_hand(made[2]).await.unwrap();
    node.retry_by_hand(made[0]).await.unwrap();
    for id in made {
        let lease = node.claim_one(sub).await;
        assert_eq!(lease.id, id);
        node.finish_now(&lease.delivered()).await;
    }
}

// A9: one at a time also then, and before what was published after it.
async fn a_skipped_one_that_is_retried_lines_up(db: Db) {
    let node = db.node().await;
    let (tenancy, s) = subscribed(&node, Ordering::Skip).await;
    let made = published(&node, tenancy, s.id, &["k", "k", "k"]).await;
    let dead = node.claim_one(s.id).await;
    node.finish_now(&dead.dead()).await;
    let second = node.claim_one(s.id).await;
    node.retry_by_hand(made[0]).await.unwrap();
    assert!(node.claim(s.id, 10).await.is_empty());
    node.finish_now(&second.delivered()).await;
    for id in [made[0], made[2]] {
        let lease = node.claim_one(s.id).await;
        assert_eq!(lease.id, id);
        node.finish_now(&lease.delivered()).await;
    }
    // Of a key that is idle it is due at once.
    let lone = published(&node, tenancy, s.id, &["other"]).await;
    let lease = node.claim_one(s.id).await;
    node.finish_now(&lease.dead()).await;
    assert_eq!(keys_left(&db).await, 0);
    node.retry_by_hand(lone[0]).await.unwrap();
    assert_eq!(node.claim_one(s.id).await.id, lone[0]);
}

/// Dead after its last attempt, which its receiver was too ill to take.
fn dead_of_illness(lease: &Leased) -> Finish {
    let mut end = lease.dead();
    end.attempt.as_mut().unwrap().response_status = 503;
    end
}

// A9, A6: a head that waits for its next attempt is due; what lines up behind it is not,
// though it failed like it once.
async fn a_closing_breaker_frees_heads_alone(db: Db) {
    let node = db.node().await;
    let (tenancy, s) = subscribed(&node, Ordering::Skip).await;
    let made = published(&node, tenancy, s.id, &["k", "k", "k"]).await;
    let first = node.claim_one(s.id).await;
    node.finish_now(&dead_of_illness(&first)).await;
    let second = node.claim_one(s.id).await;
    node.retry_by_hand(made[0]).await.unwrap();
    let revive = async || node.revive(s.id.part(), s.id, false, 10).await.unwrap();
    assert_eq!(revive().await, 0);
    assert!(node.claim(s.id, 10).await.is_empty());
    node.finish_now(&second.retried(MONTH)).await;
    assert_eq!(revive().await, 1);
    for id in [made[1], made[0], made[2]] {
        let lease = node.claim_one(s.id).await;
        assert_eq!(lease.id, id);
        node.finish_now(&lease.delivered()).await;
    }
    db.counts_agree().await;
}

// A9: what waits, and what is blocked; what is leased ends as it is.
async fn switched_off_everything_is_free(db: Db) {
    let node = db.node().await;
    let (tenancy, mut s) = subscribed(&node, Ordering::Block).await;
    let made = published(&node, tenancy, s.id, &["a", "a", "b", "b", "b"]).await;
    let heads = node.claim(s.id, 10).await;
    let dead = heads.iter().find(|l| l.id == made[0]).unwrap();
    node.finish_now(&dead.dead()).await;
    change(&node, &mut s, Ordering::Off).await;
    let (part, off) = (s.id.part(), Ordering::Off);
    assert_eq!(node.reorder(part, s.id, off, 2).await.unwrap(), 2);
    assert_eq!(node.reorder(part, s.id, off, 2).await.unwrap(), 1);
    let free: HashSet<_> = ids(&node.claim(s.id, 10).await).into_iter().collect();
    assert_eq!(free, HashSet::from([made[1], made[3], made[4]]));
    let leased = heads.iter().find(|l| l.id == made[2]).unwrap();
    node.finish_now(&leased.delivered()).await;
    node.reorder(part, s.id, off, 2).await.unwrap();
    assert_eq!(keys_left(&db).await, 0);
    assert_eq!(node.ordered(&[part]).await.unwrap(), []);
}

// A9
async fn a_changed_ordering_holds_for_what_is_blocked(db: Db) {
    let node = db.node().await;
    let (tenancy, s) = subscribed(&node, Ordering::Block).await;
    let made = published(&node, tenancy, s.id, &["k", "k"]).await;
    let lease = node.claim_one(s.id).await;
    node.finish_now(&lease.dead()).await;
    let reorder = async |to| node.reorder(s.id.part(), s.id, to, 10).await.unwrap();
    assert_eq!(reorder(Ordering::Park).await, 1);
    assert_eq!(node.status(made[1]).await, Status::Parked);
    assert_eq!(reorder(Ordering::Park).await, 0);
    assert_eq!(reorder(Ordering::Block).await, 1);
    assert_eq!(node.status(made[1]).await, Status::Pending);
    assert_eq!(reorder(Ordering::Skip).await, 1);
    assert_eq!(node.claim_one(s.id).await.id, made[1]);
}

// A9, A1: nothing of it is due, and it is found all the same.
async fn a_blocked_key_of_a_deleted_subscription_is_cancelled(db: Db) {
    let node = db.node().await;
    let (tenancy, s) = subscribed(&node, Ordering::Block).await;
    let made = published(&node, tenancy, s.id, &["k", "k", "k"]).await;
    let lease = node.claim_one(s.id).await;
    node.finish_now(&lease.dead()).await;
    node.delete_subscription(s.id).await.unwrap();
    let part = s.id.part();
    assert_eq!(node.waiting(&[part]).await.unwrap(), []);
    assert_eq!(node.ordered(&[part]).await.unwrap()[0].subscription, s.id);
    assert_eq!(node.cancel(part, s.id, 10).await.unwrap(), 2);
    assert_eq!(node.status(made[2]).await, Status::Cancelled);
    db.counts_agree().await;
}

// A9, N2
async fn an_ended_session_frees_the_head_alone(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let made = published(&node, DEFAULT, sub, &["k", "k"]).await;
    let lease = node.claim_one(sub).await;
    node.end_session(node.session).await.unwrap();
    let next = Node::begin(&node.store).await;
    let again = next.claim_one(sub).await;
    assert_eq!(again.id, made[0]);
    assert_eq!(
        next.finish(&lease.delivered()).await,
        onering::store::Finished::Stale
    );
    assert!(next.claim(sub, 10).await.is_empty());
    next.finish_now(&again.delivered()).await;
    assert_eq!(next.claim_one(sub).await.id, made[1]);
}

// A9, N2: also where both come together, again and again.
async fn two_nodes_make_one_head(db: Db) {
    let node = db.node().await;
    let other = Node::idle(&db.another().await, crate::support::store::FOR_EVER).await;
    let sub = DEFAULT.sub();
    for round in 0..20 {
        let key = format!("k{round}");
        let (one, two) = (event(DEFAULT, sub, &key), event(DEFAULT, sub, &key));
        let (a, b) = tokio::join!(node.accept(&one), other.accept(&two));
        let first = node.claim_one(sub).await;
        node.finish_now(&first.delivered()).await;
        let second = node.claim_one(sub).await;
        node.finish_now(&second.delivered()).await;
        let both: HashSet<_> = [first.id, second.id].into();
        assert_eq!(both, HashSet::from([a[0], b[0]]));
    }
    assert_eq!(keys_left(&db).await, 0);
}

// A9: two nodes publish to the same keys, in opposite orders, while their heads end
// in batches; nothing fails, and each key's order holds.
async fn keys_locked_in_any_order_do_not_deadlock(db: Db) {
    let node = db.node().await;
    let other = Node::idle(&db.another().await, crate::support::store::FOR_EVER).await;
    let (tenancy, s) = subscribed(&node, Ordering::Skip).await;
    let sub = s.id;
    let publish = async |node: &Node, backwards: bool| {
        let mut order = Vec::new();
        for round in 0..ROUNDS {
            let mut keys: Vec<usize> = (0..KEYS).collect();
            keys.rotate_left(round % KEYS);
            if backwards {
                keys.reverse();
            }
            let batch: Vec<Publish> = keys
                .iter()
                .map(|k| event(tenancy, sub, &format!("k{k}")))
                .collect();
            for answer in node.publish(&batch).await {
                assert!(matches!(answer, Published::Accepted { .. }), "{answer:?}");
            }
            order.extend(
                keys.iter()
                    .zip(&batch)
                    .map(|(k, p)| (*k, p.deliveries[0].id)),
            );
        }
        order
    };
    let total = 2 * ROUNDS * KEYS;
    let deliver = async {
        let mut done: Vec<(usize, DeliveryId)> = Vec::new();
        while done.len() < total {
            let leased = node.claim(sub, 64).await;
            let keys: HashSet<_> = leased.iter().map(|l| l.ordering_key.clone()).collect();
            assert_eq!(keys.len(), leased.len(), "one of each key");
            let ends: Vec<_> = leased
                .iter()
                .enumerate()
                .map(|(i, l)| if i % 5 == 0 { l.dead() } else { l.delivered() })
                .collect();
            let answers = node.store.finish(&ends).await.unwrap();
            assert!(answers.iter().all(|a| *a == onering::store::Finished::Now));
            done.extend(leased.iter().map(|l| {
                let key = l.ordering_key.as_deref().unwrap()[1..].parse().unwrap();
                (key, l.id)
            }));
        }
        done
    };
    let (one, two, done) = tokio::join!(publish(&node, false), publish(&other, true), deliver);
    for published in [one, two] {
        for key in 0..KEYS {
            let of = |list: &[(usize, DeliveryId)]| -> Vec<DeliveryId> {
                let those = list.iter().filter(|(k, _)| *k == key);
                those.map(|(_, id)| *id).collect()
            };
            let published = of(&published);
            let mut ended = of(&done);
            ended.retain(|id| published.contains(id));
            assert_eq!(ended, published, "of key {key}");
        }
    }
    db.counts_agree().await;
}

#[derive(Debug, Clone, Copy)]
enum Verb {
    Publish { key: usize, node: usize },
    Claim { limit: i64 },
    End { which: usize, end: usize },
    RetryByHand { which: usize },
    Skip { which: usize },
    Kill,
    Bury,
    Revive,
}

fn verb() -> impl Strategy<Value = Verb> {
    prop_oneof![
        6 => (0..3usize, 0..2usize).prop_map(|(key, node)| Verb::Publish { key, node }),
        6 => (1..5i64).prop_map(|limit| Verb::Claim { limit }),
        8 => (0..64usize, 0..8usize).prop_map(|(which, end)| Verb::End { which, end }),
        3 => (0..64usize).prop_map(|which| Verb::RetryByHand { which }),
        1 => (0..64usize).prop_map(|which| Verb::Skip { which }),
        1 => Just(Verb::Kill),
        1 => Just(Verb::Bury),
        3 => Just(Verb::Revive),
    ]
}

/// A key as it should be.
#[derive(Default)]
struct Key {
    /// What waits, the head first.
    queue: Vec<DeliveryId>,
    /// The head, which is dead, holds the others up.
    blocked: bool,
}

struct Run {
    node: Node,
    other: Node,
    tenancy: Tenancy,
    sub: Subscription,
    keys: HashMap<String, Key>,
    dead: HashMap<DeliveryId, (String, bool)>,
    leased: Vec<Leased>,
    all: Vec<(DeliveryId, String)>,
    failed: HashSet<DeliveryId>,
    /// Heads that are due only later.
    later: HashSet<DeliveryId>,
}

impl Run {
    fn ended(&mut self, key: &str) {
        self.keys.get_mut(key).unwrap().queue.remove(0);
    }

    fn died(&mut self, id: DeliveryId, key: &str) {
        let blocks = matches!(self.sub.ordering, Ordering::Block | Ordering::Park);
        if blocks {
            self.keys.get_mut(key).unwrap().blocked = true;
        } else {
            self.ended(key);
        }
        self.dead.insert(id, (key.to_owned(), blocks));
    }

    async fn carry_out(&mut self, verb: Verb) {
        match verb {
            Verb::Publish { key, node } => {
                let key = format!("k{key}");
                let event = event(self.tenancy, self.sub.id, &key);
                let node = if node == 0 { &self.node } else { &self.other };
                let id = node.accept(&event).await[0];
                self.all.push((id, key.clone()));
                self.keys.entry(key).or_default().queue.push(id);
            }
            Verb::Claim { limit } => {
                let due: HashSet<DeliveryId> = self
                    .keys
                    .values()
                    .filter(|k| !k.blocked)
                    .filter_map(|k| k.queue.first().copied())
                    .filter(|id| {
                        !self.later.contains(id)
                            && !self.failed.contains(id)
                            && self.leased.iter().all(|l| l.id != *id)
                    })
                    .collect();
                let leased = self.node.claim(self.sub.id, limit).await;
                assert_eq!(leased.len() as i64, limit.min(due.len() as i64), "{due:?}");
                assert!(leased.iter().all(|l| due.contains(&l.id)), "{leased:?}");
                self.leased.extend(leased);
            }
            Verb::End { which, end } => {
                if self.leased.is_empty() {
                    return;
                }
                let lease = self.leased.remove(which % self.leased.len());
                let key = lease.ordering_key.clone().unwrap();
                let finish = match end {
                    0 => dead_of_illness(&lease),
                    1 => lease.retried(MONTH),
                    2 => lease.failed(Duration::ZERO),
                    3 => lease.released(),
                    4 => lease.sign_again(),
                    _ => lease.delivered(),
                };
                self.node.finish_now(&finish).await;
                match end {
                    0 => self.died(lease.id, &key),
                    1 => drop(self.later.insert(lease.id)),
                    2 => drop(self.failed.insert(lease.id)),
                    3 | 4 => {}
                    _ => self.ended(&key),
                }
            }
            Verb::RetryByHand { which } => {
                let Some((id, key)) = self.all.get(which % self.all.len().max(1)).cloned() else {
                    return;
                };
                self.node.retry_by_hand(id).await.unwrap();
                if self.leased.iter().any(|l| l.id == id) {
                    return;
                }
                self.later.remove(&id);
                self.failed.remove(&id);
                if let Some((_, blocks)) = self.dead.remove(&id) {
                    let key = self.keys.entry(key).or_default();
                    if blocks {
                        key.blocked = false;
                    } else {
                        // At its old place, behind a head that is another.
                        let place = |id: &DeliveryId| self.all.iter().position(|(a, _)| a == id);
                        let own = place(&id);
                        let from = usize::from(!key.queue.is_empty());
                        let at = key.queue[from..].iter().position(|i| place(i) > own);
                        let at = at.map_or(key.queue.len(), |at| at + from);
                        key.queue.insert(at, id);
                    }
                }
            }
            Verb::Skip { which } => {
                let Some((id, key)) = self.all.get(which % self.all.len().max(1)).cloned() else {
                    return;
                };
                let blocks = self.dead.get(&id).is_some_and(|(_, blocks)| *blocks);
                assert_eq!(self.node.skip(id).await.unwrap(), blocks);
                if blocks {
                    self.dead.get_mut(&id).unwrap().1 = false;
                    self.keys.get_mut(&key).unwrap().blocked = false;
                    self.ended(&key);
                }
            }
            Verb::Kill => {
                self.node.end_session(self.node.session).await.unwrap();
                self.node = Node::begin(&self.node.store).await;
                self.leased.clear();
            }
            Verb::Bury => {
                let parts: Vec<Part> = vec![self.sub.id.part()];
                let buried = self.node.bury(&parts, 1000).await.unwrap();
                assert_eq!(buried.len(), self.failed.len());
                for id in std::mem::take(&mut self.failed) {
                    let (_, key) = self.all.iter().find(|(a, _)| *a == id).unwrap().clone();
                    self.died(id, &key);
                }
            }
            Verb::Revive => {
                let (part, sub) = (self.sub.id.part(), self.sub.id);
                let revived = self.node.revive(part, sub, false, 1000).await.unwrap();
                assert_eq!(revived, self.later.len() as u64);
                self.later.clear();
            }
        }
    }
}

// A9: heads alone are ever leased, each key's in its order, whatever happens.
async fn any_sequence_keeps_the_order(db: Db) {
    let stores = [db.open().await, db.another().await];
    let config = Config {
        cases: 60,
        max_shrink_iters: 100,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    };
    let runtime = tokio::runtime::Handle::current();
    let orderings = prop_oneof![
        Just(Ordering::Block),
        Just(Ordering::Skip),
        Just(Ordering::Park)
    ];
    let sequences = (orderings, prop::collection::vec(verb(), 1..60));
    let ran = tokio::task::block_in_place(|| {
        TestRunner::new(config).run(&sequences, |(ordering, verbs)| {
            runtime.block_on(async {
                let node = Node::begin(&stores[0]).await;
                let other = Node::idle(&stores[1], crate::support::store::FOR_EVER).await;
                let (tenancy, sub) = subscribed(&node, ordering).await;
                let mut run = Run {
                    node,
                    other,
                    tenancy,
                    sub,
                    keys: HashMap::new(),
                    dead: HashMap::new(),
                    leased: Vec::new(),
                    all: Vec::new(),
                    failed: HashSet::new(),
                    later: HashSet::new(),
                };
                let tested = std::panic::AssertUnwindSafe(async {
                    for verb in verbs {
                        run.carry_out(verb).await;
                    }
                });
                let tested = futures_util::FutureExt::catch_unwind(tested).await;
                let node = &run.node;
                node.end_session(node.session).await.unwrap();
                node.end_session(run.other.session).await.unwrap();
                node.delete_subscription(run.sub.id).await.unwrap();
                node.cancel(run.sub.id.part(), run.sub.id, 10_000)
                    .await
                    .unwrap();
                tested.map_err(|panic| {
                    let text = panic.downcast_ref::<String>().cloned();
                    TestCaseError::fail(text.unwrap_or_else(|| "panicked".to_owned()))
                })
            })
        })
    });
    if let Err(e) = ran {
        panic!("{e}");
    }
    db.counts_agree().await;
}
