//! Sessions and the partitions they own.

use std::{collections::HashSet, time::Duration};

use onering::{
    domain::id::{DAY, Part},
    store::{Finished, Hint, Session},
};

use crate::support::{
    build::{DEFAULT, Ends as _, set_switch},
    store::{Db, FOR_EVER, HOUR, Node, SECOND},
};

contract![
    a_session_lives_as_long_as_the_stores_clock_says,
    a_session_number_is_never_used_again,
    a_live_owner_keeps_its_partitions,
    a_dead_owners_partitions_and_rows_are_taken,
    racing_nodes_share_all_partitions,
    an_ended_session_leaves_everything,
    an_expired_session_takes_and_owns_nothing,
    a_nodes_own_clock_steals_nothing,
    leases_are_listed_with_their_tokens,
    hints_reach_another_node,
    nodes_confirm_what_they_have_in_force,
];

const MINUTE: Duration = Duration::from_mins(1);

fn all() -> Vec<Part> {
    Part::all().collect()
}

async fn take(node: &Node) -> Vec<Part> {
    let mut parts = node.take_all().await;
    parts.sort_unstable();
    parts
}

// N2: the database's clock decides.
async fn a_session_lives_as_long_as_the_stores_clock_says(db: Db) {
    let store = db.open().await;
    let node = Node::idle(&store, MINUTE).await;
    let renew = async || node.renew_session(node.session, MINUTE).await.unwrap();
    for _ in 0..3 {
        node.pass(50 * SECOND).await;
        assert!(renew().await);
    }
    node.pass(70 * SECOND).await;
    assert!(!renew().await, "expired");
    assert!(!renew().await, "for good");
    assert!(
        !node.renew_session(Session(987_654), MINUTE).await.unwrap(),
        "unknown"
    );
    let node = Node::idle(&store, FOR_EVER).await;
    node.end_session(node.session).await.unwrap();
    assert!(
        !node.renew_session(node.session, MINUTE).await.unwrap(),
        "ended"
    );
}

// N2
async fn a_session_number_is_never_used_again(db: Db) {
    let mut seen = HashSet::new();
    for _ in 0..3 {
        let store = db.open().await;
        for _ in 0..3 {
            let node = Node::idle(&store, MINUTE).await;
            assert!(node.session.0 > 0);
            assert!(seen.insert(node.session));
            node.end_session(node.session).await.unwrap();
        }
        store.shift_clock(3 * DAY).await.unwrap();
        db.close().await;
    }
}

// N2
async fn a_live_owner_keeps_its_partitions(db: Db) {
    let store = db.open().await;
    let owner = Node::idle(&store, MINUTE).await;
    assert_eq!(take(&owner).await, all());
    let other = Node::idle(&db.another().await, FOR_EVER).await;
    assert_eq!(take(&other).await, []);
    owner.pass(50 * SECOND).await;
    assert!(owner.renew_session(owner.session, MINUTE).await.unwrap());
    owner.pass(50 * SECOND).await;
    assert_eq!(take(&other).await, [], "renewed");
    assert_eq!(take(&owner).await, all());
}

// N2, W4
async fn a_dead_owners_partitions_and_rows_are_taken(db: Db) {
    let store = db.open().await;
    let dead = Node::idle(&store, MINUTE).await;
    take(&dead).await;
    let sub = DEFAULT.sub();
    for _ in 0..3 {
        dead.accept(&DEFAULT.event_to(sub)).await;
    }
    let held = dead.claim(sub, 2).await;
    dead.pass(HOUR).await;
    let heir = Node::idle(&db.another().await, FOR_EVER).await;
    assert_eq!(take(&heir).await, all());
    assert_eq!(dead.held().await, []);
    let leased = heir.claim(sub, 10).await;
    assert_eq!(leased.len(), 3);
    for old in &held {
        let new = leased.iter().find(|l| l.id == old.id).unwrap();
        assert!(new.token > old.token);
        assert_eq!(new.attempts, 0, "no attempt is charged");
        assert_eq!(dead.finish(&old.delivered()).await, Finished::Stale);
    }
}

// N2
async fn racing_nodes_share_all_partitions(db: Db) {
    let (one, two) = (db.open().await, db.another().await);
    let all = all();
    for _ in 0..10 {
        let a = Node::idle(&one, FOR_EVER).await;
        let b = Node::idle(&two, FOR_EVER).await;
        let (x, y) = tokio::join!(
            one.take_partitions(a.session, &all),
            two.take_partitions(b.session, &all)
        );
        let (x, y) = (x.unwrap(), y.unwrap());
        let both: HashSet<_> = x.iter().chain(&y).collect();
        assert_eq!(both.len(), 64);
        assert_eq!(x.len() + y.len(), 64, "no partition has two owners");
        a.end_session(a.session).await.unwrap();
        b.end_session(b.session).await.unwrap();
    }
}

// N2, W5
async fn an_ended_session_leaves_everything(db: Db) {
    let node = db.node().await;
    let other = Node::idle(&db.another().await, FOR_EVER).await;
    let sub = DEFAULT.sub();
    node.accept(&DEFAULT.event_to(sub)).await;
    let lease = node.claim_one(sub).await;
    node.end_session(node.session).await.unwrap();
    assert_eq!(node.held().await, []);
    assert_eq!(take(&other).await, all());
    assert_eq!(node.finish(&lease.delivered()).await, Finished::Stale);
    let again = other.claim_one(sub).await;
    assert!(again.token > lease.token);
    node.end_session(node.session).await.unwrap();
    assert_eq!(
        other.held().await,
        [(again.id, again.token)],
        "ending it again"
    );
}

// N2
async fn an_expired_session_takes_and_owns_nothing(db: Db) {
    let store = db.open().await;
    let never = Node::idle(&store, MINUTE).await;
    let owner = Node::idle(&store, Duration::from_mins(2)).await;
    never.pass(90 * SECOND).await;
    assert_eq!(take(&never).await, []);
    assert_eq!(take(&owner).await, all());
    owner.pass(90 * SECOND).await;
    assert_eq!(take(&owner).await, [], "what it owned is no longer its own");
}

// N2: a clock that jumps steals nothing; only durations travel.
async fn a_nodes_own_clock_steals_nothing(db: Db) {
    let owner = db.node().await;
    let sub = DEFAULT.sub();
    owner.accept(&DEFAULT.event_to(sub)).await;
    let lease = owner.claim_one(sub).await;
    for days in [-400, 400] {
        // All that a node says of time by its own clock: the ids it makes.
        let node = Node::idle(&db.another().await, MINUTE).await;
        let skewed = DEFAULT.event_at(lease.event.time() + days * DAY);
        let other = DEFAULT.sub();
        node.accept(&skewed.to(&[other]).build()).await;
        assert_eq!(take(&node).await, []);
        assert_eq!(node.free_lost(&all()).await.unwrap(), 0);
        let found = owner.claim_one(other).await;
        assert!(found.age < HOUR, "aged by the store's clock: {}", found.age);
        owner.finish_now(&found.delivered()).await;
    }
    assert_eq!(owner.held().await, [(lease.id, lease.token)]);
    owner.finish_now(&lease.delivered()).await;
}

// N2
async fn leases_are_listed_with_their_tokens(db: Db) {
    let node = db.node().await;
    let (sub, other) = (DEFAULT.sub(), Node::idle(&node.store, FOR_EVER).await);
    node.accept(&DEFAULT.event().to(&[sub, DEFAULT.sub()]).build())
        .await;
    let published = DEFAULT.event().to(&[sub]).leased().build();
    node.publish_one(&published).await;
    let lease = node.claim_one(sub).await;
    let mut expected = vec![(lease.id, lease.token), (published.deliveries[0].id, 1)];
    expected.sort_unstable();
    assert_eq!(node.held().await, expected);
    assert_eq!(other.held().await, []);
    assert_eq!(node.leases(Session(0)).await.unwrap(), []);
}

// N2: wake-ups by notification.
async fn hints_reach_another_node(db: Db) {
    let (one, two) = (db.open().await, db.another().await);
    let mut hints = two.listen().await.unwrap();
    let (a, b) = (DEFAULT.sub(), DEFAULT.sub());
    one.hint(&[(a.part(), a), (Part::new(9), b)]).await.unwrap();
    set_switch(&*one, "s", true).await;
    let mut missing = vec![
        Hint::Due(a.part(), a),
        Hint::Due(Part::new(9), b),
        Hint::Config,
    ];
    let all = async {
        while !missing.is_empty() {
            let hint = hints.next().await.unwrap();
            missing.retain(|m| *m != hint);
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), all).await;
    assert!(in_time.is_ok(), "no word of {missing:?}");
}

// X2: who lives, and what each has noted; nothing of a session that has ended.
async fn nodes_confirm_what_they_have_in_force(db: Db) {
    let store = db.open().await;
    let seen = async || {
        let nodes = store.nodes().await.unwrap();
        let seen = nodes.into_iter().map(|n| (n.session, n.revision, n.pins));
        seen.collect::<Vec<_>>()
    };
    assert_eq!(seen().await, []);
    let one = Node::idle(&store, MINUTE).await;
    let two = Node::idle(&db.another().await, 3 * MINUTE).await;
    let (a, b) = (one.session, two.session);
    let none = String::new;
    assert_eq!(seen().await, [(a, 0, none()), (b, 0, none())]);
    let before = store.revision().await.unwrap();
    two.confirm(b, 7, "webhooks.enabled").await.unwrap();
    one.confirm(a, 5, "").await.unwrap();
    assert_eq!(
        store.revision().await.unwrap(),
        before,
        "it changes nothing"
    );
    let pinned = "webhooks.enabled".to_owned();
    assert_eq!(seen().await, [(a, 5, none()), (b, 7, pinned)]);
    two.confirm(b, 8, "").await.unwrap();
    store.shift_clock(90 * SECOND).await.unwrap();
    one.confirm(a, 9, "").await.unwrap();
    assert_eq!(seen().await, [(b, 8, none())], "one has run out");
    two.end_session(b).await.unwrap();
    two.confirm(b, 9, "").await.unwrap();
    assert_eq!(seen().await, []);
}
