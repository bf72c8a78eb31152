//! The queue's statements beside a long queue.

use std::time::{Duration, Instant};

use onering::domain::id::SubscriptionId;

use crate::support::{
    build::{DEFAULT, Ends},
    store::{Db, Node},
};

contract![a_long_queue_slows_no_statement];

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
