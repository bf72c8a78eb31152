//! Retries that somebody asked for.

use std::time::Duration;

use onering::{
    domain::{
        delivery::Status,
        id::{DeliveryId, SubscriptionId},
    },
    store::{Finished, Leased},
};

use crate::support::{
    build::{DEFAULT, Ends as _},
    store::{Db, HOUR, Node},
};

contract![
    a_pending_one_stays_pending,
    a_waiting_one_is_due_and_keeps_its_attempts,
    a_failed_one_gets_one_more,
    one_shown_dead_gets_one_more,
    a_buried_one_gets_one_more,
    a_dead_one_gets_one_more,
    a_dead_ones_age_begins_again,
    a_finished_one_stays_so,
    a_leased_one_stays_leased,
    an_unknown_one_is_told_so,
    a_dead_one_is_retried_once_by_two,
];

const MINUTE: Duration = Duration::from_mins(1);

async fn queued(node: &Node) -> (SubscriptionId, DeliveryId) {
    let sub = DEFAULT.sub();
    (sub, node.accept(&DEFAULT.event_to(sub)).await[0])
}

async fn leased(node: &Node) -> Leased {
    let (sub, _) = queued(node).await;
    node.claim_one(sub).await
}

async fn retry(node: &Node, id: DeliveryId) -> Option<Status> {
    node.retry_by_hand(id).await.unwrap()
}

/// What a retry of a failed or dead delivery leads to.
async fn one_more(node: &Node, before: &Leased) {
    let found = node.delivery(before.id).await;
    assert_eq!(found.status, Status::Retrying);
    assert_eq!(found.attempts, 1);
    assert_eq!(found.finished_at, None);
    let again = node.claim_one(before.subscription).await;
    assert!(again.by_hand);
    assert_eq!(again.attempts, 1);
    assert!(again.token > before.token);
    node.finish_now(&again.delivered()).await;
    assert_eq!(node.status(before.id).await, Status::Delivered);
}

// A2
async fn a_pending_one_stays_pending(db: Db) {
    let node = db.node().await;
    let (sub, id) = queued(&node).await;
    assert_eq!(retry(&node, id).await, Some(Status::Pending));
    let lease = node.claim_one(sub).await;
    assert_eq!((lease.attempts, lease.by_hand), (0, false));
}

// A2
async fn a_waiting_one_is_due_and_keeps_its_attempts(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.retried(MINUTE)).await;
    assert!(node.claim(lease.subscription, 1).await.is_empty());
    assert_eq!(retry(&node, lease.id).await, Some(Status::Retrying));
    let again = node.claim_one(lease.subscription).await;
    assert_eq!((again.attempts, again.by_hand), (1, false));
}

// A2: what it is saved by until it is dead.
async fn a_failed_one_gets_one_more(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.failed(MINUTE)).await;
    assert_eq!(retry(&node, lease.id).await, Some(Status::Failed));
    node.pass(HOUR).await;
    assert_eq!(node.bury(&[lease.id.part()], 10).await.unwrap().len(), 0);
    one_more(&node, &lease).await;
}

// A2
async fn one_shown_dead_gets_one_more(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.failed(MINUTE)).await;
    node.pass(HOUR).await;
    assert_eq!(retry(&node, lease.id).await, Some(Status::Dead));
    one_more(&node, &lease).await;
}

// A2
async fn a_buried_one_gets_one_more(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.failed(MINUTE)).await;
    node.pass(HOUR).await;
    assert_eq!(node.bury(&[lease.id.part()], 10).await.unwrap().len(), 1);
    assert_eq!(retry(&node, lease.id).await, Some(Status::Dead));
    one_more(&node, &lease).await;
}

// A2, A5
async fn a_dead_one_gets_one_more(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.dead()).await;
    assert_eq!(retry(&node, lease.id).await, Some(Status::Dead));
    one_more(&node, &lease).await;
}

// D3: else its greatest age would end it before it is sent.
async fn a_dead_ones_age_begins_again(db: Db) {
    let node = db.node().await;
    let parts = [DEFAULT.id.part()];
    node.store.hold(node.session, &parts, true).await.unwrap();
    node.pass(50 * HOUR).await;
    node.store.hold(node.session, &parts, false).await.unwrap();
    let (dead, failed) = (leased(&node).await, leased(&node).await);
    node.finish_now(&dead.dead()).await;
    node.finish_now(&failed.failed(MINUTE)).await;
    node.pass(50 * HOUR).await;
    for lease in [dead, failed] {
        retry(&node, lease.id).await;
        node.pass(2 * HOUR).await;
        let age = node.claim_one(lease.subscription).await.age;
        assert_eq!(age.div_euclid(HOUR), 2);
    }
}

// A2
async fn a_finished_one_stays_so(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    node.finish_now(&lease.delivered()).await;
    let (sub, cancelled) = queued(&node).await;
    node.cancel(sub.part(), sub, 10).await.unwrap();
    for (id, status) in [
        (lease.id, Status::Delivered),
        (cancelled, Status::Cancelled),
    ] {
        let before = node.delivery(id).await;
        assert_eq!(retry(&node, id).await, Some(status));
        assert_eq!(node.delivery(id).await, before);
    }
}

// A2
async fn a_leased_one_stays_leased(db: Db) {
    let node = db.node().await;
    let lease = leased(&node).await;
    assert_eq!(retry(&node, lease.id).await, Some(Status::Sending));
    assert_eq!(node.held().await, [(lease.id, lease.token)]);
    assert_eq!(node.finish(&lease.delivered()).await, Finished::Now);
}

// A5
async fn an_unknown_one_is_told_so(db: Db) {
    let node = db.node().await;
    let event = DEFAULT.event().build();
    assert_eq!(retry(&node, DeliveryId::of(event.event)).await, None);
}

// A5
async fn a_dead_one_is_retried_once_by_two(db: Db) {
    let node = db.node().await;
    let other = db.another().await;
    for _ in 0..10 {
        let lease = leased(&node).await;
        node.finish_now(&lease.dead()).await;
        let (one, two) = tokio::join!(node.retry_by_hand(lease.id), other.retry_by_hand(lease.id));
        let answers = [one.unwrap(), two.unwrap()];
        assert!(answers.contains(&Some(Status::Dead)), "{answers:?}");
        assert!(!answers.contains(&None), "{answers:?}");
        assert_eq!(node.claim(lease.subscription, 10).await.len(), 1);
    }
}
