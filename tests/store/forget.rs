//! Retention.

use std::time::Duration;

use onering::{
    domain::{
        delivery::Status,
        id::{DeliveryId, SubscriptionId},
        trace::{Context, Trace},
    },
    store::{Forgotten, Leased, Publish, Usage},
};

use crate::support::{
    build::{DEFAULT, Ends as _},
    store::{Db, Node},
};

contract![
    what_is_old_is_forgotten,
    what_is_young_is_kept,
    a_queued_body_outlives_its_day,
    a_dead_ones_body_outlives_its_day,
    a_finished_ones_kept_body_goes,
    old_usage_is_forgotten,
    forgetting_goes_on_in_slices,
    two_nodes_forget_at_once,
    days_are_made_ahead,
];

on_postgres_alone![what_came_late_into_a_day_keeps_its_body];

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
    let today = onering::domain::id::day_of(onering::domain::id::wall_clock());
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
