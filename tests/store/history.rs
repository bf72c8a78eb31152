//! Lists of deliveries, and usage.

use onering::{
    domain::{
        delivery::{Delivery, Status},
        id::{DeliveryId, EventId, SubscriptionId, wall_clock},
    },
    store::Usage,
};

use crate::support::{
    build::{DEFAULT, Ends as _, Tenancy},
    store::{Db, FOR_EVER, HOUR, Node, everything, page},
    wait::until,
};

contract![
    a_subscriptions_deliveries_are_listed_newest_first,
    pages_have_no_gaps_and_no_repetitions,
    a_status_filters_a_list,
    an_events_deliveries_are_listed,
    unknown_ids_have_nothing,
    usage_is_absolute,
];

on_postgres_alone![reads_that_hang_stop_nothing_else,];

/// Deliveries in every place and state, oldest first.
async fn of_every_kind(node: &Node, sub: SubscriptionId) -> Vec<(DeliveryId, Status)> {
    let kinds = [
        Status::Delivered,
        Status::Dead,
        Status::Failed,
        Status::Dead,
        Status::Retrying,
        Status::Delivered,
        Status::Sending,
        Status::Pending,
    ];
    let mut made = Vec::new();
    for (n, kind) in kinds.into_iter().enumerate() {
        let id = node.accept(&DEFAULT.event_to(sub)).await[0];
        made.push((id, kind));
        if kind == Status::Pending {
            continue;
        }
        let lease = node.claim_one(sub).await;
        assert_eq!(lease.id, id);
        let end = match kind {
            Status::Delivered => lease.delivered(),
            // One is buried, one is dead in time, without a write.
            Status::Dead if n == 1 => lease.dead(),
            Status::Dead => lease.failed(std::time::Duration::from_mins(1)),
            Status::Failed => lease.failed(FOR_EVER),
            Status::Retrying => lease.retried(FOR_EVER),
            _ => continue,
        };
        node.finish_now(&end).await;
    }
    node.pass(HOUR).await;
    made
}

fn what(list: &[Delivery]) -> Vec<(DeliveryId, Status)> {
    list.iter().map(|d| (d.id, d.status)).collect()
}

// A5
async fn a_subscriptions_deliveries_are_listed_newest_first(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let mut made = of_every_kind(&node, sub).await;
    node.accept(&DEFAULT.event_to(DEFAULT.sub())).await;
    made.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(*id));
    let list = node
        .deliveries_of_subscription(sub, None, everything())
        .await
        .unwrap();
    assert_eq!(what(&list), made);
    for found in list {
        assert_eq!(found, node.delivery(found.id).await);
    }
}

async fn paged(
    node: &Node,
    sub: SubscriptionId,
    status: Option<Status>,
    limit: i64,
) -> Vec<Delivery> {
    let mut all: Vec<Delivery> = Vec::new();
    loop {
        let before = all.last().map(|d| d.id);
        let next = node
            .deliveries_of_subscription(sub, status, page(before, limit))
            .await
            .unwrap();
        assert!(next.len() as i64 <= limit);
        if next.is_empty() {
            return all;
        }
        all.extend(next);
    }
}

// A5
async fn pages_have_no_gaps_and_no_repetitions(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    of_every_kind(&node, sub).await;
    let whole = node
        .deliveries_of_subscription(sub, None, everything())
        .await
        .unwrap();
    for limit in 1..=9 {
        assert_eq!(paged(&node, sub, None, limit).await, whole, "by {limit}");
    }
}

// A5
async fn a_status_filters_a_list(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let mut made = of_every_kind(&node, sub).await;
    made.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(*id));
    for status in (1..=10).map(Status::from_i16) {
        let expected: Vec<_> = made.iter().copied().filter(|(_, s)| *s == status).collect();
        for limit in [1, 10] {
            let found = paged(&node, sub, Some(status), limit).await;
            assert_eq!(what(&found), expected, "{status:?} by {limit}");
        }
    }
}

// A5
async fn an_events_deliveries_are_listed(db: Db) {
    let node = db.node().await;
    let subs: Vec<_> = (0..5).map(|_| DEFAULT.sub()).collect();
    let event = DEFAULT.event().to(&subs).build();
    let mut ids = node.accept(&event).await;
    // At the same instant, so that their deliveries' ids lie among each other.
    let twin = EventId(onering::domain::id::beside(event.event.0));
    let mut other = DEFAULT.event().to(&subs).build();
    other.event = twin;
    for d in &mut other.deliveries {
        d.id = DeliveryId::of(twin);
    }
    node.accept(&other).await;
    for sub in &subs[..2] {
        for lease in node.claim(*sub, 2).await {
            node.finish_now(&lease.delivered()).await;
        }
    }
    ids.sort_unstable_by_key(|id| std::cmp::Reverse(*id));
    let list = async |status, page| {
        let found = node
            .deliveries_of_event(event.event, status, page)
            .await
            .unwrap();
        assert!(found.iter().all(|d| d.event == event.event));
        found.iter().map(|d| d.id).collect::<Vec<_>>()
    };
    assert_eq!(list(None, everything()).await, ids);
    assert_eq!(list(None, page(None, 2)).await, ids[..2]);
    assert_eq!(list(None, page(Some(ids[1]), 2)).await, ids[2..4]);
    assert_eq!(list(None, page(Some(ids[4]), 2)).await, []);
    assert_eq!(list(Some(Status::Delivered), everything()).await.len(), 2);
    assert_eq!(list(Some(Status::Dead), everything()).await, []);
}

// A5
async fn unknown_ids_have_nothing(db: Db) {
    let node = db.node().await;
    let event = EventId::new(wall_clock(), DEFAULT.id.part());
    assert_eq!(node.get_event(event).await.unwrap(), None);
    assert_eq!(
        node.get_delivery(DeliveryId::of(event)).await.unwrap(),
        None
    );
    assert_eq!(node.attempts(DeliveryId::of(event)).await.unwrap(), []);
    let of_event = node
        .deliveries_of_event(event, None, everything())
        .await
        .unwrap();
    assert_eq!(of_event, []);
    let sub = DEFAULT.sub();
    let of_sub = node
        .deliveries_of_subscription(sub, None, everything())
        .await
        .unwrap();
    assert_eq!(of_sub, []);
}

// T3
async fn usage_is_absolute(db: Db) {
    let node = db.node().await;
    let other = Node::idle(&db.another().await, FOR_EVER).await;
    let acme = Tenancy::create(&*node, "acme", 3).await;
    let usage = |tenant: Tenancy, day, bytes| Usage {
        tenant: tenant.id,
        day,
        events: 1,
        bytes,
    };
    let note =
        async |node: &Node, rows: &[Usage]| node.note_usage(node.session, rows).await.unwrap();
    assert_eq!(node.stored_bytes().await.unwrap(), []);
    note(&node, &[usage(DEFAULT, 20_000, 10), usage(acme, 20_000, 7)]).await;
    note(&node, &[usage(DEFAULT, 20_000, 25)]).await;
    note(&node, &[usage(DEFAULT, 20_001, 100)]).await;
    note(&other, &[usage(DEFAULT, 20_000, 1000)]).await;
    note(&other, &[]).await;
    let mut bytes = node.stored_bytes().await.unwrap();
    bytes.sort_unstable();
    assert_eq!(bytes, [(DEFAULT.id, 1125), (acme.id, 7)]);
}

// N3: what callers read waits for connections of its own, not for those by which
// the node publishes, finishes, keeps its session and its configuration.
async fn reads_that_hang_stop_nothing_else(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let id = node.accept(&DEFAULT.event_to(sub)).await[0];
    let lease = node.claim_one(sub).await;
    let lock = db.lock_table("kept_bodies").await;
    let mut reads = tokio::task::JoinSet::new();
    for n in 0..24 {
        let (store, event) = (node.store.clone(), lease.event);
        reads.spawn(async move {
            match n % 3 {
                0 => store.get_event(event).await.map(drop),
                1 => store.get_delivery(id).await.map(drop),
                _ => {
                    let list = store.deliveries_of_event(event, None, everything());
                    list.await.map(drop)
                }
            }
        });
    }
    until("reads hang", async || {
        let waiting = "select count(*)::text from pg_locks
            where not granted and relation = 'kept_bodies'::regclass";
        let count: usize = db.texts(waiting).await[0].parse().unwrap();
        (count >= 4).then_some(())
    })
    .await;
    // For want of a connection each of these would fail after some seconds.
    node.renew_session(node.session, FOR_EVER).await.unwrap();
    node.revision().await.unwrap();
    node.waiting(&[sub.part()]).await.unwrap();
    node.accept(&DEFAULT.event_to(sub)).await;
    node.finish_now(&lease.delivered()).await;
    drop(lock);
    // Of those that got no connection in time nothing is promised.
    reads.shutdown().await;
}
