//! Partitions that are taken and handed over.

use std::time::Duration;

use onering::{
    domain::id::Part,
    store::{Finished, Hint, Session},
};

use crate::support::{
    build::{DEFAULT, Ends as _},
    store::{Db, FOR_EVER, HOUR, Node, SECOND},
};

contract![
    of_what_is_free_only_what_is_named_is_taken,
    what_is_handed_over_is_the_others,
    nothing_is_handed_over_by_or_to_who_has_ended,
    what_is_under_way_ends_under_its_lease,
    a_node_is_ready_once_it_says_so,
    who_is_concerned_is_told,
];

const MINUTE: Duration = Duration::from_mins(1);

fn parts(range: std::ops::Range<u8>) -> Vec<Part> {
    range.map(Part::new).collect()
}

async fn two(db: &Db) -> (Node, Node) {
    let one = db.node().await;
    let two = Node::idle(&db.another().await, FOR_EVER).await;
    (one, two)
}

/// How many partitions each of these sessions owns, and how many nobody.
async fn owned<const N: usize>(node: &Node, sessions: [Session; N]) -> ([usize; N], usize) {
    let owners = node.partitions().await.unwrap();
    assert!(owners.iter().map(|(p, _)| *p).eq(Part::all()), "{owners:?}");
    let of = |s: Session| owners.iter().filter(|(_, o)| *o == s).count();
    (sessions.map(of), of(Session(0)))
}

// N2, N5
async fn of_what_is_free_only_what_is_named_is_taken(db: Db) {
    let store = db.open().await;
    let one = Node::idle(&store, MINUTE).await;
    let two = Node::idle(&db.another().await, FOR_EVER).await;
    let sessions = [one.session, two.session];
    assert_eq!(owned(&one, sessions).await, ([0, 0], 64));
    let some = parts(0..10);
    let taken = one.take_partitions(one.session, &some).await.unwrap();
    assert_eq!(taken, some);
    let taken = two.take_partitions(two.session, &parts(5..15)).await;
    assert_eq!(taken.unwrap(), parts(10..15), "the others are taken");
    assert_eq!(owned(&one, sessions).await, ([10, 5], 49));
    one.pass(90 * SECOND).await;
    assert_eq!(owned(&two, sessions).await, ([0, 5], 59), "one has ended");
    let taken = two.take_partitions(two.session, &parts(0..2)).await;
    assert_eq!(taken.unwrap(), [parts(0..2), parts(10..15)].concat());
}

// N2, N5
async fn what_is_handed_over_is_the_others(db: Db) {
    let (one, two) = two(&db).await;
    let sub = DEFAULT.sub();
    one.accept(&DEFAULT.event_to(sub)).await;
    let part = DEFAULT.id.part();
    let given = one.hand_over(one.session, two.session, &[part]).await;
    assert_eq!(given.unwrap(), [part]);
    let sessions = [one.session, two.session];
    assert_eq!(owned(&one, sessions).await, ([63, 1], 0));
    assert!(one.claim(sub, 9).await.is_empty(), "no longer its own");
    two.finish_now(&two.claim_one(sub).await.delivered()).await;
    let event = DEFAULT.event().to(&[sub]).leased().build();
    one.publish_one(&event).await;
    assert_eq!(one.held().await, [], "nor is it leased to it");
    two.claim_one(sub).await;
    let again = one.hand_over(one.session, two.session, &[part]).await;
    assert_eq!(again.unwrap(), [], "it is not its own to give");
    let other = Part::new(u8::try_from(part.get()).unwrap() + 1);
    let stolen = two.hand_over(two.session, two.session, &[other]).await;
    assert_eq!(stolen.unwrap(), []);
    assert_eq!(owned(&one, sessions).await, ([63, 1], 0));
}

// N2
async fn nothing_is_handed_over_by_or_to_who_has_ended(db: Db) {
    let store = db.open().await;
    let one = Node::idle(&store, 3 * MINUTE).await;
    one.take_all().await;
    let two = Node::idle(&db.another().await, MINUTE).await;
    one.pass(90 * SECOND).await;
    let to_dead = one.hand_over(one.session, two.session, &parts(0..9)).await;
    assert_eq!(to_dead.unwrap(), []);
    let three = Node::idle(&db.another().await, FOR_EVER).await;
    one.pass(HOUR).await;
    let from_dead = one
        .hand_over(one.session, three.session, &parts(0..9))
        .await;
    assert_eq!(from_dead.unwrap(), []);
    let unknown = three
        .hand_over(three.session, Session(987_654), &parts(0..9))
        .await;
    assert_eq!(unknown.unwrap(), []);
    assert_eq!(
        owned(&three, [one.session, three.session]).await,
        ([0, 0], 64)
    );
}

// N2, W2: nobody else may send it meanwhile, and its outcome counts.
async fn what_is_under_way_ends_under_its_lease(db: Db) {
    let (one, two) = two(&db).await;
    let sub = DEFAULT.sub();
    one.accept(&DEFAULT.event().to(&[sub; 3]).build()).await;
    let (done, retried, dies) = {
        let mut leased = one.claim(sub, 9).await;
        assert_eq!(leased.len(), 3);
        (leased.remove(0), leased.remove(0), leased.remove(0))
    };
    let part = DEFAULT.id.part();
    let given = one.hand_over(one.session, two.session, &[part]).await;
    assert_eq!(given.unwrap(), [part]);
    assert!(two.claim(sub, 9).await.is_empty(), "all are leased");
    assert_eq!(
        two.free_lost(&[part]).await.unwrap(),
        0,
        "to one that lives"
    );
    one.finish_now(&done.delivered()).await;
    one.finish_now(&retried.released()).await;
    two.claim_one(sub).await;
    one.end_session(one.session).await.unwrap();
    two.free_lost(&[part]).await.unwrap();
    let freed = two.claim_one(sub).await;
    assert_eq!(freed.id, dies.id);
    assert_eq!(one.finish(&dies.delivered()).await, Finished::Stale);
    db.counts_agree().await;
}

// N2
async fn a_node_is_ready_once_it_says_so(db: Db) {
    let (one, two) = two(&db).await;
    let ready = async || {
        let nodes = one.nodes().await.unwrap();
        nodes.iter().map(|n| n.ready).collect::<Vec<_>>()
    };
    assert_eq!(ready().await, [false, false]);
    two.set_ready(two.session, true).await.unwrap();
    assert_eq!(ready().await, [false, true]);
    two.set_ready(two.session, false).await.unwrap();
    one.set_ready(one.session, true).await.unwrap();
    assert_eq!(ready().await, [true, false]);
}

// N2: a hint for each change that another node is to act upon.
async fn who_is_concerned_is_told(db: Db) {
    let (one, two) = two(&db).await;
    let mut hints = two.listen().await.unwrap();
    let mut told = async |what: &str| {
        let next = async { while hints.next().await.unwrap() != Hint::Partitions {} };
        let in_time = tokio::time::timeout(Duration::from_secs(10), next).await;
        assert!(in_time.is_ok(), "no word of it: {what}");
    };
    one.set_ready(one.session, true).await.unwrap();
    told("one is ready").await;
    let given = one.hand_over(one.session, two.session, &parts(3..5)).await;
    assert_eq!(given.unwrap(), parts(3..5));
    told("two has more").await;
    one.end_session(one.session).await.unwrap();
    told("one has ended").await;
}
