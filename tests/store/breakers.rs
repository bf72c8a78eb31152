//! What is known of receivers, and what follows when one works again.

use std::time::Duration;

use onering::{
    domain::{
        counter::Tally,
        delivery::Status,
        id::{Micros, Part, SubscriptionId, micros},
        subscription::{BreakerChoice, Subscription},
    },
    store::{Finish, Leased, Opening, Outage, ReceiverState, Session, Settle},
};

use crate::support::{
    build::{DEFAULT, Ends as _, a_subscription},
    store::{Db, HOUR, Node, SECOND},
};

contract![
    a_state_is_written_once_and_in_order,
    only_the_owner_writes,
    times_are_the_stores,
    openings_are_counted_once,
    a_deleted_subscription_takes_it_along,
    what_failed_gets_one_more_attempt,
    what_waits_is_due,
    reviving_keeps_to_its_subscription_and_its_limit,
    limits_beside_the_version_before,
];

const MINUTE: Duration = Duration::from_mins(1);
const A_SECOND: Duration = Duration::from_secs(1);

async fn made(node: &Node) -> Subscription {
    let s = a_subscription(DEFAULT.id);
    node.create_subscription(&s, 1000).await.unwrap();
    s
}

fn open(s: &Subscription, generation: i64) -> ReceiverState {
    ReceiverState {
        subscription: s.id,
        tenant: s.tenant,
        generation,
        failures: 5,
        open: Some(Opening {
            ago: Duration::ZERO,
            left: MINUTE,
        }),
        outages: vec![Outage {
            began: 3 * MINUTE,
            ended: 2 * MINUTE,
        }],
        outage: Some(Duration::ZERO),
        failing: Some(MINUTE),
        warned: true,
        asked: true,
    }
}

fn closed(s: &Subscription, generation: i64) -> ReceiverState {
    ReceiverState {
        failures: 0,
        open: None,
        outages: Vec::new(),
        outage: None,
        failing: None,
        warned: false,
        asked: false,
        ..open(s, generation)
    }
}

async fn save(node: &Node, state: &ReceiverState) -> bool {
    node.save_receiver(node.session, state, false)
        .await
        .unwrap()
}

async fn state(node: &Node, id: SubscriptionId) -> Option<ReceiverState> {
    let mut found = node.receivers(&[id]).await.unwrap();
    assert!(found.len() <= 1);
    found.pop()
}

// A6: compare and set. The same write again, whose answer was lost, is written; one
// from before is not.
async fn a_state_is_written_once_and_in_order(db: Db) {
    let node = db.node().await;
    let s = made(&node).await;
    assert_eq!(state(&node, s.id).await, None);
    assert!(!save(&node, &open(&s, 2)).await, "there is no first one");
    assert!(save(&node, &open(&s, 1)).await);
    assert!(save(&node, &open(&s, 1)).await, "again");
    assert!(save(&node, &closed(&s, 2)).await);
    assert!(!save(&node, &open(&s, 1)).await, "an older one");
    assert!(!save(&node, &open(&s, 4)).await, "one is missing");
    let found = state(&node, s.id).await.unwrap();
    assert_eq!(found, closed(&s, 2));
    let part = s.id.part();
    assert_eq!(node.receivers_in(&[part]).await.unwrap(), [found]);
    let other = Part::new(u8::try_from(part.get()).unwrap() + 1);
    assert_eq!(node.receivers_in(&[other]).await.unwrap(), []);
    assert_eq!(node.receivers_in(&[]).await.unwrap(), []);
}

// A6, N2: nobody else, and nobody whose session is over.
async fn only_the_owner_writes(db: Db) {
    let node = db.node().await;
    let s = made(&node).await;
    let other = Node::idle(&node.store, MINUTE).await;
    assert!(!save(&other, &open(&s, 1)).await);
    let first = open(&s, 1);
    let nobody = node.save_receiver(Session(0), &first, false);
    assert!(!nobody.await.unwrap());
    node.end_session(node.session).await.unwrap();
    assert!(!save(&node, &open(&s, 1)).await);
    let unknown = a_subscription(DEFAULT.id);
    let node = Node::begin(&node.store).await;
    assert!(save(&node, &open(&s, 1)).await);
    assert!(!save(&node, &open(&unknown, 1)).await, "no subscription");
}

fn near(found: Duration, wanted: Micros) {
    let off = micros(found) - wanted;
    assert!((0..60 * SECOND).contains(&off), "{found:?} for {wanted}");
}

// A6, A7, N2: durations come and go, and the store's clock counts in between; neither
// an outage nor failing counts time in which its partition is held.
async fn times_are_the_stores(db: Db) {
    let node = db.node().await;
    let s = made(&node).await;
    assert!(save(&node, &open(&s, 1)).await);
    node.pass(10 * SECOND).await;
    let found = state(&node, s.id).await.unwrap();
    let left = found.open.unwrap().left;
    assert!(left <= 50 * A_SECOND && left > 10 * A_SECOND, "{left:?}");
    node.hold(node.session, &[s.id.part()], true).await.unwrap();
    node.pass(10 * HOUR).await;
    node.hold(node.session, &[s.id.part()], false)
        .await
        .unwrap();
    let found = state(&node, s.id).await.unwrap();
    let opening = found.open.unwrap();
    assert_eq!(opening.left, Duration::ZERO);
    near(opening.ago, 10 * HOUR + 10 * SECOND);
    near(found.failing.unwrap(), 70 * SECOND);
    near(found.outage.unwrap(), 10 * SECOND);
    near(found.outages[0].began, 190 * SECOND);
    near(found.outages[0].ended, 130 * SECOND);
    assert!(found.warned && found.asked);
}

async fn opens(node: &Node) -> i64 {
    let mut tally = Tally::default();
    for count in node
        .counts(DEFAULT.id.part(), Some(DEFAULT.id), 0)
        .await
        .unwrap()
    {
        tally.add(count.what, count.n, count.minute.is_some());
    }
    tally.breaker_opens()
}

// A6: in the same commit, whatever is repeated or refused.
async fn openings_are_counted_once(db: Db) {
    let node = db.node().await;
    let s = made(&node).await;
    let save =
        async |state: &ReceiverState| node.save_receiver(node.session, state, true).await.unwrap();
    assert!(save(&open(&s, 1)).await && save(&open(&s, 1)).await);
    assert!(!save(&open(&s, 3)).await);
    assert_eq!(opens(&node).await, 1);
    assert!(save(&open(&s, 2)).await);
    assert_eq!(opens(&node).await, 2);
    node.pass(26 * HOUR).await;
    let parts: Vec<Part> = Part::all().collect();
    node.add_up(&parts, 1000).await.unwrap();
    assert_eq!(opens(&node).await, 0, "of 24 hours");
    db.counts_agree().await;
}

async fn a_deleted_subscription_takes_it_along(db: Db) {
    let node = db.node().await;
    let s = made(&node).await;
    assert!(save(&node, &open(&s, 1)).await);
    node.delete_subscription(s.id).await.unwrap();
    assert_eq!(state(&node, s.id).await, None);
    assert!(!save(&node, &open(&s, 2)).await);
}

async fn leased(node: &Node, sub: SubscriptionId) -> Leased {
    node.accept(&DEFAULT.event_to(sub)).await;
    node.claim_one(sub).await
}

async fn revive(node: &Node, sub: SubscriptionId, asked: bool) -> u64 {
    node.revive(sub.part(), sub, asked, 100).await.unwrap()
}

// A2: a breaker that closes gives its FAILED ones one more attempt, and then they are
// dead. One whose time is over is dead, and stays so.
async fn what_failed_gets_one_more_attempt(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let late = leased(&node, sub).await;
    node.finish_now(&late.failed(MINUTE)).await;
    node.pass(HOUR).await;
    let lease = leased(&node, sub).await;
    node.finish_now(&lease.failed(MINUTE)).await;
    assert_eq!(revive(&node, sub, false).await, 1);
    db.counts_agree().await;
    assert_eq!(node.status(late.id).await, Status::Dead);
    assert_eq!(node.status(lease.id).await, Status::Retrying);
    let again = node.claim_one(sub).await;
    assert_eq!((again.id, again.attempts), (lease.id, 1));
    assert!(again.by_hand, "one attempt, then dead");
    assert_eq!(revive(&node, sub, false).await, 0, "it is under way");
    node.finish_now(&again.delivered()).await;
    db.counts_agree().await;
}

fn retried(lease: &Leased, status: u16) -> Finish {
    let mut end = lease.retried(60 * MINUTE);
    assert!(matches!(end.settle, Settle::Retry { charged: true, .. }));
    end.attempt.as_mut().unwrap().response_status = status;
    end
}

// A6, A3: what waits after a 5xx or no answer at all is due; what the receiver asked
// to come later is not.
async fn what_waits_is_due(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let mut waits = Vec::new();
    for status in [0, 500, 599, 503, 429, 408] {
        let lease = leased(&node, sub).await;
        node.finish_now(&retried(&lease, status)).await;
        waits.push(lease.id);
    }
    assert_eq!(revive(&node, sub, true).await, 3);
    let due = node.claim(sub, 10).await;
    let ids: Vec<_> = due.iter().map(|l| l.id).collect();
    assert!(waits[..3].iter().all(|id| ids.contains(id)), "{ids:?}");
    assert_eq!(ids.len(), 3);
    assert!(due.iter().all(|l| l.attempts == 1 && !l.by_hand));
    assert_eq!(revive(&node, sub, false).await, 1);
    assert_eq!(node.claim_one(sub).await.id, waits[3]);
    assert_eq!(revive(&node, sub, false).await, 0);
    db.counts_agree().await;
}

async fn reviving_keeps_to_its_subscription_and_its_limit(db: Db) {
    let node = db.node().await;
    let (sub, other) = (DEFAULT.sub(), DEFAULT.sub());
    for _ in 0..5 {
        let lease = leased(&node, sub).await;
        node.finish_now(&lease.failed(MINUTE)).await;
    }
    let theirs = leased(&node, other).await;
    node.finish_now(&theirs.failed(MINUTE)).await;
    assert_eq!(node.revive(sub.part(), sub, false, 3).await.unwrap(), 3);
    assert_eq!(node.revive(sub.part(), sub, false, 3).await.unwrap(), 2);
    assert_eq!(node.status(theirs.id).await, Status::Failed);
    db.counts_agree().await;
}

// N6: what the version before has stored is read, and has no limits of its own.
async fn limits_beside_the_version_before(db: Db) {
    let node = db.node().await;
    let s = made(&node).await;
    db.close().await;
    for sql in [
        "alter table subscriptions drop column limits",
        "drop table subscription_state",
        "delete from _sqlx_migrations where description = 'breakers'",
    ] {
        db.tamper(sql).await;
    }
    let store = db.open().await;
    let read = store.get_subscription(s.id).await.unwrap().unwrap();
    assert_eq!(
        (read.rate_limit, read.breaker),
        (0, BreakerChoice::default())
    );
    store.update_subscription(&s, s.updated_at).await.unwrap();
    // As the version before updates a row.
    db.tamper("update subscriptions set doc = doc, secret = secret, filter = filter")
        .await;
    let read = store.get_subscription(s.id).await.unwrap();
    assert_eq!(read, Some(s));
}
