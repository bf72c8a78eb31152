//! Leasing what is due.

use std::{collections::HashSet, time::Duration};

use onering::{
    domain::{delivery::Status, id::SubscriptionId},
    store::{Finished, Leased, Waiting, Want, claim_share},
};

use crate::support::{
    build::{DEFAULT, Ends as _, Tenancy},
    store::{Db, FOR_EVER, HOUR, Node, SECOND},
};

contract![
    a_lease_tells_all_that_is_sent,
    the_earliest_due_come_first,
    no_more_than_wanted_of_each_subscription,
    a_long_queue_hides_no_other,
    a_claim_is_bounded_in_bytes,
    one_row_is_leased_once_at_a_time,
    nodes_that_take_turns_never_share_a_row,
    nothing_is_claimed_before_it_is_due,
    only_its_owner_claims_of_a_partition,
    an_expired_session_claims_nothing,
    every_lease_has_a_higher_token,
    an_age_leaves_out_what_was_held,
    holding_twice_changes_nothing,
    only_an_owner_holds,
    a_subscriptions_held_time_is_in_the_age,
    waiting_names_what_will_be_due,
];

async fn publish_many(node: &Node, sub: SubscriptionId, count: usize) {
    let batch: Vec<_> = (0..count).map(|_| DEFAULT.event_to(sub)).collect();
    for chunk in batch.chunks(500) {
        node.publish(chunk).await;
    }
}

// N1
async fn a_lease_tells_all_that_is_sent(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node, "acme", 33).await;
    let sub = acme.sub();
    let event = acme.event().of_type("a.b").body("body").to(&[sub]).build();
    node.accept(&event).await;
    let leased = node.claim_one(sub).await;
    assert_eq!(leased.id, event.deliveries[0].id);
    assert_eq!(leased.tenant, acme.id);
    assert_eq!(leased.subscription, sub);
    assert_eq!(leased.event, event.event);
    assert_eq!(leased.event_type, "a.b");
    assert_eq!(leased.body, "body");
    assert_eq!(
        (leased.attempts, leased.replays, leased.by_hand),
        (0, 0, false)
    );
    assert!((0..60 * SECOND).contains(&leased.age), "{}", leased.age);
    assert_eq!(node.status(leased.id).await, Status::Sending);
}

// N1
async fn the_earliest_due_come_first(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    // Due in another order than they were made in.
    for minutes in [3, 1, 2] {
        node.accept(&DEFAULT.event_to(sub)).await;
        let leased = node.claim_one(sub).await;
        node.finish_now(&leased.retried(Duration::from_secs(minutes * 60)))
            .await;
    }
    let due: Vec<_> = node.waiting(&[sub.part()]).await.unwrap();
    assert_eq!(due.len(), 1);
    node.pass(HOUR).await;
    node.accept(&DEFAULT.event_to(sub)).await;
    let mut order = Vec::new();
    for _ in 0..2 {
        for leased in node.claim(sub, 2).await {
            order.push(leased.id);
        }
    }
    let mut times = Vec::new();
    for id in &order {
        times.push(node.delivery(*id).await.due_at.unwrap());
    }
    assert_eq!(times.len(), 4);
    assert!(times.is_sorted(), "{times:?}");
}

// N3: large bodies don't fill the memory, none of them is forgotten, and a
// subscription with large ones does not keep another's out.
async fn a_claim_is_bounded_in_bytes(db: Db) {
    let node = db.node().await;
    let (large, small) = (DEFAULT.sub(), DEFAULT.sub());
    let event = |bytes| DEFAULT.event().body(vec![b'x'; bytes]).to(&[large]).build();
    for _ in 0..8 {
        node.accept(&event(3 << 20)).await;
    }
    publish_many(&node, small, 3).await;
    let wants = [large, small].map(|subscription| Want {
        part: subscription.part(),
        subscription,
        limit: 256,
    });
    let claim = async || node.store.claim(node.session, &wants).await.unwrap();
    let count = |rows: &[Leased], sub| rows.iter().filter(|l| l.subscription == sub).count();
    let first = claim().await;
    // The third is that with which it has half of 16 MiB.
    assert_eq!((count(&first, large), count(&first, small)), (3, 3));
    let bytes: usize = first.iter().map(|l| l.body.len()).sum();
    assert!(bytes as i64 >= claim_share(&wants));
    assert!(first.iter().all(|l| l.token == 1));
    let mut ids: HashSet<_> = first.iter().map(|l| l.id).collect();
    for rest in [3, 2] {
        let more = claim().await;
        assert_eq!((count(&more, large), count(&more, small)), (rest, 0));
        ids.extend(more.iter().map(|l| l.id));
    }
    assert_eq!(ids.len(), 11);
    assert!(claim().await.is_empty());
    // One that alone is more than enough is given.
    node.accept(&event(17 << 20)).await;
    let last = claim().await;
    assert_eq!(last.len(), 1);
    assert_eq!(last[0].body.len(), 17 << 20);
}

// A8
async fn no_more_than_wanted_of_each_subscription(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node, "acme", 8).await;
    let subs = [DEFAULT.sub(), DEFAULT.sub(), acme.sub()];
    for _ in 0..5 {
        node.accept(&DEFAULT.event().to(&subs[..2]).build()).await;
        node.accept(&acme.event_to(subs[2])).await;
    }
    let wants: Vec<Want> = subs
        .iter()
        .zip([2, 0, 9])
        .map(|(s, limit)| Want {
            part: s.part(),
            subscription: *s,
            limit,
        })
        .collect();
    let leased = node.store.claim(node.session, &wants).await.unwrap();
    let count = |sub| {
        leased
            .iter()
            .filter(|l: &&Leased| l.subscription == sub)
            .count()
    };
    assert_eq!(subs.map(count), [2, 0, 5]);
    assert!(
        node.store
            .claim(node.session, &[])
            .await
            .unwrap()
            .is_empty()
    );
}

// A8
async fn a_long_queue_hides_no_other(db: Db) {
    let node = db.node().await;
    let (long, short) = (DEFAULT.sub(), DEFAULT.sub());
    publish_many(&node, long, 2000).await;
    node.accept(&DEFAULT.event_to(short)).await;
    let wants = [long, short].map(|subscription| Want {
        part: subscription.part(),
        subscription,
        limit: 10,
    });
    let leased = node.store.claim(node.session, &wants).await.unwrap();
    assert_eq!(leased.len(), 11);
    assert!(leased.iter().any(|l| l.subscription == short));
}

// N2
async fn one_row_is_leased_once_at_a_time(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    publish_many(&node, sub, 300).await;
    let other = db.another().await;
    let tasks: Vec<_> = (0..6)
        .map(|n| {
            let node = Node {
                store: if n % 2 == 0 {
                    node.store.clone()
                } else {
                    other.clone()
                },
                session: node.session,
            };
            tokio::spawn(async move {
                let mut ids = Vec::new();
                for _ in 0..30 {
                    ids.extend(node.claim(sub, 7).await.iter().map(|l| l.id));
                }
                ids
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    assert_eq!(all.len(), 300);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 300);
}

// N2
async fn nodes_that_take_turns_never_share_a_row(db: Db) {
    let one = db.node().await;
    let sub = DEFAULT.sub();
    publish_many(&one, sub, 60).await;
    let two = Node::idle(&db.another().await, FOR_EVER).await;
    let first = one.claim(sub, 20).await;
    assert_eq!(first.len(), 20);
    assert!(two.claim(sub, 20).await.is_empty());
    one.end_session(one.session).await.unwrap();
    two.take_all().await;
    assert!(one.claim(sub, 20).await.is_empty());
    // The ended session's leases are good for nothing; its rows are two's.
    assert_eq!(two.claim(sub, 100).await.len(), 60);
    for leased in &first {
        assert_eq!(one.finish(&leased.delivered()).await, Finished::Stale);
    }
}

// A2
async fn nothing_is_claimed_before_it_is_due(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    node.accept(&DEFAULT.event_to(sub)).await;
    let leased = node.claim_one(sub).await;
    node.finish_now(&leased.retried(Duration::from_hours(1)))
        .await;
    assert!(node.claim(sub, 1).await.is_empty());
    node.pass(HOUR - 60 * SECOND).await;
    assert!(node.claim(sub, 1).await.is_empty());
    node.pass(120 * SECOND).await;
    assert_eq!(node.claim_one(sub).await.id, leased.id);
}

// N2
async fn only_its_owner_claims_of_a_partition(db: Db) {
    let owner = db.node().await;
    let other = Node::idle(&db.another().await, FOR_EVER).await;
    let sub = DEFAULT.sub();
    owner.accept(&DEFAULT.event_to(sub)).await;
    assert!(other.claim(sub, 1).await.is_empty());
    assert_eq!(owner.claim(sub, 1).await.len(), 1);
}

// N2
async fn an_expired_session_claims_nothing(db: Db) {
    let store = db.open().await;
    let node = Node::idle(&store, Duration::from_mins(1)).await;
    node.take_all().await;
    let sub = DEFAULT.sub();
    node.accept(&DEFAULT.event_to(sub)).await;
    node.pass(120 * SECOND).await;
    assert!(node.claim(sub, 1).await.is_empty());
}

// N2
async fn every_lease_has_a_higher_token(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    node.accept(&DEFAULT.event_to(sub)).await;
    let mut last = 0;
    for n in 0..8 {
        let leased = node.claim_one(sub).await;
        assert!(leased.token > last, "{} after {last}", leased.token);
        last = leased.token;
        let end = match n % 4 {
            0 => leased.released(),
            1 => leased.sign_again(),
            2 => leased.retried(Duration::ZERO),
            _ => leased.dead(),
        };
        node.finish_now(&end).await;
        if n % 4 == 3 {
            node.retry_by_hand(leased.id).await.unwrap();
        }
    }
}

async fn hold(node: &Node, held: bool) {
    let parts = [DEFAULT.id.part()];
    node.store.hold(node.session, &parts, held).await.unwrap();
}

/// The age of the one delivery of a subscription, in whole hours.
async fn age(node: &Node, sub: SubscriptionId) -> i64 {
    let leased = node.claim_one(sub).await;
    node.finish_now(&leased.released()).await;
    leased.age.div_euclid(HOUR)
}

// D3: time held on purpose does not count.
async fn an_age_leaves_out_what_was_held(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    node.accept(&DEFAULT.event_to(sub)).await;
    node.pass(2 * HOUR).await;
    hold(&node, true).await;
    node.pass(100 * HOUR).await;
    assert_eq!(age(&node, sub).await, 2, "while it is held");
    let during = DEFAULT.sub();
    node.accept(&DEFAULT.event_to(during)).await;
    node.pass(10 * HOUR).await;
    hold(&node, false).await;
    node.pass(HOUR).await;
    assert_eq!(age(&node, sub).await, 3, "afterwards");
    assert_eq!(age(&node, during).await, 1, "published while it was held");
}

// D6
async fn holding_twice_changes_nothing(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    hold(&node, false).await;
    node.accept(&DEFAULT.event_to(sub)).await;
    hold(&node, true).await;
    node.pass(10 * HOUR).await;
    hold(&node, true).await;
    node.pass(10 * HOUR).await;
    hold(&node, false).await;
    node.pass(3 * HOUR).await;
    hold(&node, false).await;
    assert_eq!(age(&node, sub).await, 3);
}

// N2
async fn only_an_owner_holds(db: Db) {
    let node = db.node().await;
    let other = Node::idle(&node.store, FOR_EVER).await;
    let sub = DEFAULT.sub();
    node.accept(&DEFAULT.event_to(sub)).await;
    hold(&other, true).await;
    node.pass(5 * HOUR).await;
    assert_eq!(age(&node, sub).await, 5);
}

// D3
async fn a_subscriptions_held_time_is_in_the_age(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    node.accept(&DEFAULT.event().to(&[sub]).held(7 * HOUR).build())
        .await;
    node.pass(HOUR).await;
    assert_eq!(age(&node, sub).await, 8);
}

// N2: what the timer looks for.
async fn waiting_names_what_will_be_due(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node, "acme", 40).await;
    let elsewhere = Tenancy::create(&*node, "elsewhere", 41).await;
    let [due, later, leased, failed] = [(); 4].map(|()| DEFAULT.sub());
    let far = acme.sub();
    node.accept(&DEFAULT.event().to(&[due, later, leased, failed]).build())
        .await;
    node.accept(&acme.event_to(far)).await;
    node.accept(&elsewhere.event_to(elsewhere.sub())).await;
    let lease = node.claim_one(later).await;
    node.finish_now(&lease.retried(Duration::from_hours(1)))
        .await;
    let lease = node.claim_one(failed).await;
    node.finish_now(&lease.failed(Duration::from_mins(1))).await;
    node.claim_one(leased).await;

    let mut found = node
        .waiting(&[DEFAULT.id.part(), acme.id.part()])
        .await
        .unwrap();
    found.sort_by_key(|w| (w.due_in, w.part));
    let what: Vec<_> = found.iter().map(|w| (w.part, w.subscription)).collect();
    let expected = [due, far, later].map(|s| (s.part(), s));
    assert_eq!(what, expected);
    let due_in = |w: &Waiting| w.due_in.as_secs();
    assert_eq!(due_in(&found[0]), 0);
    assert!((3540..=3600).contains(&due_in(&found[2])), "{found:?}");
    assert_eq!(node.waiting(&[]).await.unwrap(), []);
    // The first that will be due counts.
    node.accept(&DEFAULT.event_to(later)).await;
    let found = node.waiting(&[DEFAULT.id.part()]).await.unwrap();
    let again = found.iter().find(|w| w.subscription == later).unwrap();
    assert_eq!(due_in(again), 0);
}
