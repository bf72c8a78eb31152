//! What moves deliveries in bulk, each partition for itself.

use std::time::Duration;

use onering::domain::{
    delivery::Status,
    id::{DAY, DeliveryId, Part, SubscriptionId},
};

use crate::support::{
    build::{DEFAULT, Ends as _, Tenancy},
    store::{Db, FOR_EVER, HOUR, Node},
};

contract![
    burying_moves_what_failed_in_time,
    cancelling_ends_what_waits_for_a_subscription,
    cancelling_works_on_any_day,
    giving_up_ends_what_waited_too_long,
    freeing_takes_from_ended_sessions_alone,
    freeing_comes_to_every_row,
    statements_keep_to_the_partitions_they_are_given,
];

const MINUTE: Duration = Duration::from_mins(1);

async fn queued(node: &Node, sub: SubscriptionId, count: usize) -> Vec<DeliveryId> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.extend(node.accept(&DEFAULT.event_to(sub)).await);
    }
    ids
}

async fn with_status(node: &Node, ids: &[DeliveryId], status: Status) -> usize {
    let mut count = 0;
    for id in ids {
        count += usize::from(node.status(*id).await == status);
    }
    count
}

// A1, A2
async fn burying_moves_what_failed_in_time(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let parts = [sub.part()];
    queued(&node, sub, 5).await;
    let leased = node.claim(sub, 5).await;
    for (n, lease) in leased.iter().enumerate() {
        let after = if n == 0 { FOR_EVER } else { MINUTE };
        node.finish_now(&lease.failed(after)).await;
    }
    assert_eq!(node.bury(&parts, 10).await.unwrap(), 0, "too early");
    node.pass(HOUR).await;
    let shown = node.delivery(leased[1].id).await;
    assert_eq!(
        node.bury(&parts, 3).await.unwrap(),
        3,
        "no more than the limit"
    );
    assert_eq!(node.bury(&parts, 3).await.unwrap(), 1);
    assert_eq!(node.bury(&parts, 3).await.unwrap(), 0);
    assert_eq!(
        node.delivery(leased[1].id).await,
        shown,
        "what was shown is what is kept"
    );
    assert_eq!(node.status(leased[0].id).await, Status::Failed);
}

// A1
async fn cancelling_ends_what_waits_for_a_subscription(db: Db) {
    let node = db.node().await;
    let (gone, other) = (DEFAULT.sub(), DEFAULT.sub());
    let mut ids = queued(&node, gone, 6).await;
    let others = queued(&node, other, 2).await;
    let lease = node.claim(gone, 2).await;
    node.finish_now(&lease[0].retried(FOR_EVER)).await;
    let cancel = async |limit| node.cancel(gone.part(), gone, limit).await.unwrap();
    assert_eq!(cancel(3).await, 3, "no more than the limit");
    assert_eq!(cancel(100).await, 2, "what is leased is left");
    assert_eq!(cancel(100).await, 0);
    ids.retain(|id| *id != lease[1].id);
    assert_eq!(with_status(&node, &ids, Status::Cancelled).await, 5);
    assert_eq!(with_status(&node, &others, Status::Pending).await, 2);
    let found = node.delivery(ids[0]).await;
    assert!(found.finished_at.is_some() && found.due_at.is_none());
    assert_eq!(node.delivery(lease[0].id).await.attempts, 1);
    node.finish_now(&lease[1].delivered()).await;
}

// N4: days are made when they are needed.
async fn cancelling_works_on_any_day(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    queued(&node, sub, 1).await;
    node.pass_days(10).await;
    assert_eq!(node.cancel(sub.part(), sub, 10).await.unwrap(), 1);
}

// D3: deliveries of a disabled subscription wait, and die after 30 days.
async fn giving_up_ends_what_waited_too_long(db: Db) {
    let node = db.node().await;
    let (off, other) = (DEFAULT.sub(), DEFAULT.sub());
    let ids = queued(&node, off, 4).await;
    let others = queued(&node, other, 1).await;
    let lease = node.claim(off, 1).await;
    let month = Duration::from_micros(30 * DAY as u64);
    let give_up = async |limit| node.give_up(off.part(), off, month, limit).await.unwrap();
    assert_eq!(give_up(10).await, 0, "too early");
    node.pass(30 * DAY + HOUR).await;
    assert_eq!(give_up(2).await, 2, "no more than the limit");
    assert_eq!(give_up(10).await, 1, "what is leased is left");
    assert_eq!(with_status(&node, &ids, Status::Dead).await, 3);
    assert_eq!(with_status(&node, &others, Status::Pending).await, 1);
    let dead = ids.iter().find(|id| **id != lease[0].id).unwrap();
    let found = node.delivery(*dead).await;
    assert_eq!(found.attempts, 0);
    assert!(!found.reason.is_empty());
    assert_eq!(node.retry_by_hand(*dead).await.unwrap(), Some(Status::Dead));
    assert_eq!(node.claim_one(off).await.id, *dead);
}

// N2
async fn freeing_takes_from_ended_sessions_alone(db: Db) {
    let store = db.open().await;
    let part = DEFAULT.id.part();
    let short = Node::idle(&store, MINUTE).await;
    short.take_all().await;
    let sub = DEFAULT.sub();
    queued(&short, sub, 3).await;
    let leased = short.claim(sub, 2).await;
    assert_eq!(store.free_lost(&[part]).await.unwrap(), 0, "it is alive");
    short.pass(HOUR).await;
    assert_eq!(store.free_lost(&[part]).await.unwrap(), 2);
    assert_eq!(store.free_lost(&[part]).await.unwrap(), 0);
    let node = Node::begin(&store).await;
    let again = node.claim(sub, 10).await;
    assert_eq!(again.len(), 3);
    for old in leased {
        let new = again.iter().find(|l| l.id == old.id).unwrap();
        assert!(new.token > old.token);
    }
    assert_eq!(store.free_lost(&[part]).await.unwrap(), 0, "it is alive");
}

// N2: however many rows there are, and however many that nobody holds come first.
async fn freeing_comes_to_every_row(db: Db) {
    const EACH: usize = 6000;
    let store = db.open().await;
    let short = Node::idle(&store, MINUTE).await;
    short.take_all().await;
    let sub = DEFAULT.sub();
    let free = DEFAULT.event().to(&vec![sub; EACH]).build();
    short.accept(&free).await;
    let held = DEFAULT.event().to(&vec![sub; EACH]).leased().build();
    short.accept(&held).await;
    assert_eq!(short.held().await.len(), EACH);
    short.pass(HOUR).await;
    let freed = store.free_lost(&[sub.part()]).await.unwrap();
    assert_eq!(freed, EACH as u64);
    assert_eq!(short.held().await.len(), 0);
}

// N5
async fn statements_keep_to_the_partitions_they_are_given(db: Db) {
    let node = db.node().await;
    let here = Tenancy::create(&*node, "here", 10).await;
    let there = Tenancy::create(&*node, "there", 11).await;
    let one_of = async |tenant: Tenancy, failed: bool| {
        let sub = tenant.sub();
        node.accept(&tenant.event_to(sub)).await;
        let lease = node.claim_one(sub).await;
        if failed {
            node.finish_now(&lease.failed(MINUTE)).await;
        }
    };
    for tenant in [here, there] {
        one_of(tenant, true).await;
        one_of(tenant, false).await;
        node.accept(&tenant.event_to(tenant.sub())).await;
    }
    node.pass(HOUR).await;
    for part in [10, 11].map(Part::new) {
        assert_eq!(node.bury(&[part], 10).await.unwrap(), 1);
        let waiting = node.waiting(&[part]).await.unwrap();
        assert_eq!(waiting.iter().map(|w| w.part).collect::<Vec<_>>(), [part]);
    }
    // A row of another partition than the subscription's is nobody's.
    let sub = here.sub();
    node.accept(&here.event_to(sub)).await;
    assert_eq!(node.cancel(Part::new(11), sub, 10).await.unwrap(), 0);
    let age = Duration::ZERO;
    assert_eq!(node.give_up(Part::new(11), sub, age, 10).await.unwrap(), 0);
    node.shift_clock(2000 * DAY).await.unwrap();
    for part in [10, 11].map(Part::new) {
        assert_eq!(node.free_lost(&[part]).await.unwrap(), 1, "{part:?}");
    }
}
