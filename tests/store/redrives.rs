//! Dead letters: found, redriven and purged, each once, at a rate.

use std::time::{Duration, Instant};

use onering::{
    domain::{
        delivery::Status,
        id::{DeliveryId, Part, RedriveId, SubscriptionId, wall_clock},
        redrive::{Change, Kind, Redrive, Selection, State},
    },
    store::{Author, Load, StoreError},
};

use crate::support::{
    build::{DEFAULT, Ends as _, Tenancy, a_chain, a_subscription},
    store::{Db, Node, SECOND, everything, page},
};

contract![
    letters_are_found,
    a_list_is_bounded,
    letters_are_paged_over_partitions,
    a_redrive_gives_each_one_attempt,
    a_redrive_keeps_its_rate,
    what_dies_later_is_not_of_it,
    a_redrive_outlasts_its_owner,
    a_paused_redrive_moves_nothing,
    a_cancelled_redrive_is_over,
    a_redrive_and_a_retry_move_a_letter_once,
    letters_without_a_subscription_stay,
    a_selection_is_kept_to,
    a_purge_removes_letters,
    a_purge_lets_bodies_go,
    redrives_are_few_at_a_time,
    redrives_are_told_of,
    redrives_are_forgotten,
];

pub(crate) const BY: Author<'static> = Author {
    actor: "key_test",
    reason: "a test",
};
/// Faster than any test.
pub(crate) const FAST: u32 = 1_000_000;

/// A tenant's subscription that is stored, and what to publish to it with.
pub(crate) async fn subscribed(node: &Node, of: Tenancy) -> (SubscriptionId, Tenancy) {
    let s = a_subscription(of.id);
    node.create_subscription(&s, 100).await.unwrap();
    let lists = node.changes(0).await.unwrap().subscriptions;
    let list = lists.into_iter().find(|l| l.tenant == Some(of.id));
    (s.id, of.at_revision(list.unwrap().revision))
}

/// Makes a dead letter of an event of that type.
pub(crate) async fn die(
    node: &Node,
    of: Tenancy,
    sub: SubscriptionId,
    event_type: &str,
    reason: &str,
) -> DeliveryId {
    let event = of.event().of_type(event_type).to(&[sub]).build();
    node.accept(&event).await;
    let lease = node.claim_one(sub).await;
    let mut end = lease.dead();
    reason.clone_into(&mut end.reason);
    node.finish_now(&end).await;
    lease.id
}

async fn letters(node: &Node, of: Tenancy, sub: SubscriptionId, n: usize) -> Vec<DeliveryId> {
    let mut ids = Vec::with_capacity(n);
    for _ in 0..n {
        ids.push(die(node, of, sub, "invoice.paid", "status_400").await);
    }
    ids
}

pub(crate) fn redrive(kind: Kind, of: Tenancy, selection: Selection, rate: u32) -> Redrive {
    let (position, end) = selection.range();
    Redrive {
        id: RedriveId::new(wall_clock(), of.id.part()),
        tenant: of.id,
        kind,
        state: State::Running,
        selection: Selection {
            tenant: Some(of.id),
            ..selection
        },
        rate,
        total: None,
        done: 0,
        skipped: 0,
        position,
        end,
        created_at: 0,
        created_by: String::new(),
        reason: String::new(),
        finished_at: None,
        note: String::new(),
    }
}

pub(crate) async fn begin(node: &Node, redrive: &Redrive) -> Redrive {
    let made = node.create_redrive(redrive, 10, BY, &a_chain()).await;
    made.unwrap()
}

async fn all_of(node: &Node, kind: Kind, of: Tenancy, rate: u32) -> Redrive {
    begin(node, &redrive(kind, of, Selection::default(), rate)).await
}

/// Takes steps until it is over: how many it moved.
async fn work(node: &Node, id: RedriveId) -> i64 {
    let mut moved = 0;
    for _ in 0..1000 {
        let step = node.move_letters(node.session, id, 1000).await.unwrap();
        let Some(step) = step else { return moved };
        moved += step.count;
        let Some(wait) = step.next else { return moved };
        let wait = i64::try_from(wait.as_micros()).unwrap();
        node.pass(wait + 1).await;
    }
    panic!("{id} has no end")
}

async fn read(node: &Node, id: RedriveId) -> Redrive {
    node.get_redrive(id).await.unwrap().unwrap()
}

async fn found(node: &Node, selection: &Selection) -> Vec<DeliveryId> {
    let parts: Vec<Part> = match selection.tenant {
        Some(tenant) => vec![tenant.part()],
        None => Part::all().collect(),
    };
    let list = node.list_letters(selection, &parts, everything()).await;
    let list = list.unwrap();
    assert_eq!(list.next, None);
    list.letters.iter().map(|d| d.id).collect()
}

async fn waiting(node: &Node, sub: SubscriptionId) -> usize {
    let status = Some(Status::Retrying);
    let list = node.deliveries_of_subscription(sub, status, everything());
    list.await.unwrap().len()
}

// A5, T1: by tenant, subscription, type, reason and time.
async fn letters_are_found(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node.store, "acme", 7).await;
    let other = Tenancy::create(&*node.store, "other", 7).await;
    let (one, two) = (acme.sub(), acme.sub());
    let theirs = other.sub();
    let a = die(&node, acme, one, "invoice.paid", "http_400").await;
    let b = die(&node, acme, two, "invoice.late.again", "timeout").await;
    let between = wall_clock() + 1000;
    while wall_clock() < between + 1000 {
        tokio::task::yield_now().await;
    }
    let c = die(&node, acme, one, "invoices", "timeout").await;
    let d = die(&node, other, theirs, "invoice.paid", "timeout").await;
    let of = || Selection {
        tenant: Some(acme.id),
        ..Selection::default()
    };
    let typed = |event_type: &str| Selection {
        event_type: event_type.into(),
        ..of()
    };
    for (selection, ids) in [
        (Selection::default(), vec![d, c, b, a]),
        (of(), vec![c, b, a]),
        (
            Selection {
                subscription: Some(one),
                ..of()
            },
            vec![c, a],
        ),
        (
            Selection {
                subscription: Some(theirs),
                ..of()
            },
            vec![],
        ),
        (
            Selection {
                subscription: Some(theirs),
                ..Selection::default()
            },
            vec![d],
        ),
        (
            Selection {
                reason: "timeout".into(),
                ..of()
            },
            vec![c, b],
        ),
        (
            Selection {
                reason: "'".into(),
                ..of()
            },
            vec![],
        ),
        (typed("invoice.paid"), vec![a]),
        (typed("invoice.*"), vec![b, a]),
        (typed("*"), vec![c, b, a]),
        (typed("invoice"), vec![]),
        (
            Selection {
                reason: "timeout".into(),
                ..typed("invoice.*")
            },
            vec![b],
        ),
        (
            Selection {
                from: Some(between),
                ..of()
            },
            vec![c],
        ),
        (
            Selection {
                to: Some(between),
                ..of()
            },
            vec![b, a],
        ),
    ] {
        assert_eq!(found(&node, &selection).await, ids, "{selection:?}");
    }
    let letter = node.get_letter(a).await.unwrap().unwrap();
    assert_eq!((letter.status, letter.attempts), (Status::Dead, 1));
    assert_eq!(
        (letter.event_type.as_str(), letter.reason.as_str()),
        ("invoice.paid", "http_400")
    );
    assert_eq!((letter.tenant, letter.subscription), (acme.id, one));
    assert!(letter.finished_at.is_some());
    // What is not dead is no letter.
    node.retry_by_hand(a).await.unwrap();
    assert_eq!(node.get_letter(a).await.unwrap(), None);
    assert_eq!(found(&node, &of()).await, [c, b]);
}

fn load(of: Tenancy, sub: SubscriptionId, count: i64) -> Load {
    Load {
        tenant: of.id,
        subscription: sub,
        from: wall_clock() - 3600 * SECOND,
        step: 1000,
        count,
        dead_every: 1,
    }
}

// A5: a list that finds little looks at a bounded number and says where it is.
async fn a_list_is_bounded(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    node.load_finished(&load(DEFAULT, sub, 41_000))
        .await
        .unwrap();
    let rare = die(&node, DEFAULT, sub, "a.b", "rare").await;
    let old = Selection {
        tenant: Some(DEFAULT.id),
        reason: "rare".into(),
        to: Some(wall_clock() - 60 * SECOND),
        ..Selection::default()
    };
    let parts = [DEFAULT.id.part()];
    let (mut pages, mut before) = (0, None);
    loop {
        let list = node
            .list_letters(&old, &parts, page(before, 10))
            .await
            .unwrap();
        assert_eq!(list.letters, []);
        pages += 1;
        before = list.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(pages, 3, "of 20,000 letters each");
    let any = Selection { to: None, ..old };
    let list = node
        .list_letters(&any, &parts, page(None, 10))
        .await
        .unwrap();
    assert_eq!(list.letters.len(), 1);
    assert_eq!(list.letters[0].id, rare);
    assert!(list.next.is_some(), "there is more to look at");
    // A redrive passes over what does not fit, in slices too.
    let job = redrive(Kind::Purge, DEFAULT, any, FAST);
    let job = begin(&node, &job).await;
    assert_eq!(job.total, Some(1));
    assert_eq!(work(&node, job.id).await, 1);
    assert_eq!(read(&node, job.id).await.state, State::Done);
    db.counts_agree().await;
}

// A5: every letter is on one page, whatever its partition.
async fn letters_are_paged_over_partitions(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node.store, "acme", 7).await;
    let mut ids = Vec::new();
    for n in 0..9 {
        let of = if n % 2 == 0 { acme } else { DEFAULT };
        ids.push(die(&node, of, of.sub(), "a.b", "x").await);
    }
    ids.sort_unstable();
    ids.reverse();
    let parts: Vec<Part> = Part::all().collect();
    for reason in ["", "x"] {
        let selection = Selection {
            reason: reason.into(),
            ..Selection::default()
        };
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let list = node.list_letters(&selection, &parts, page(before, 2)).await;
            let list = list.unwrap();
            seen.extend(list.letters.iter().map(|d| d.id));
            before = list.next;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(seen, ids);
    }
}

// A5, A2: each letter is due now, for one attempt, and counted as what it is.
async fn a_redrive_gives_each_one_attempt(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    let ids = letters(&node, of, sub, 5).await;
    let job = all_of(&node, Kind::Redrive, of, FAST).await;
    assert_eq!(
        (job.total, job.done, job.state),
        (Some(5), 0, State::Running)
    );
    node.pass(SECOND).await;
    let step = node
        .move_letters(node.session, job.id, 3)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((step.count, step.subscriptions), (3, vec![sub]));
    assert_eq!(read(&node, job.id).await.done, 3);
    db.counts_agree().await;
    assert_eq!(work(&node, job.id).await, 2);
    let over = read(&node, job.id).await;
    assert_eq!((over.state, over.done, over.skipped), (State::Done, 5, 0));
    assert!(over.finished_at >= Some(over.created_at));
    assert_eq!(found(&node, &Selection::default()).await, []);
    let leases = node.claim(sub, 10).await;
    assert_eq!(leases.len(), ids.len());
    for lease in &leases {
        assert!(ids.contains(&lease.id));
        assert_eq!((lease.by_hand, lease.attempts, lease.replays), (true, 1, 0));
        assert!(lease.age < 60 * SECOND);
        node.finish_now(&lease.dead()).await;
    }
    db.counts_agree().await;
    // A second one has them again; the first is over.
    assert!(
        node.move_letters(node.session, job.id, 9)
            .await
            .unwrap()
            .is_none()
    );
    let again = all_of(&node, Kind::Redrive, of, FAST).await;
    assert_eq!(work(&node, again.id).await, 5);
}

// A5: neither faster nor slower than its rate, by the store's clock; what nobody
// worked for is not made up for.
async fn a_redrive_keeps_its_rate(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    node.load_finished(&load(of, sub, 2000)).await.unwrap();
    let job = all_of(&node, Kind::Redrive, of, 100).await;
    let began = Instant::now();
    let mut moved = 0;
    for tenths in 1..=30 {
        node.pass(SECOND / 10).await;
        let step = node.move_letters(node.session, job.id, 1000).await;
        moved += step.unwrap().unwrap().count;
        let most = tenths * 10 + i64::try_from(began.elapsed().as_millis()).unwrap() / 10 + 1;
        assert!((tenths * 10..=most).contains(&moved), "{moved} of {most}");
    }
    node.pass(3600 * SECOND).await;
    let step = node.move_letters(node.session, job.id, 1000).await;
    assert_eq!(step.unwrap().unwrap().count, 100);
    let changed = node.change_redrive(job.id, Change::Resume(Some(1))).await;
    assert_eq!(changed.unwrap().unwrap().rate, 1);
    let step = node.move_letters(node.session, job.id, 1000).await;
    let step = step.unwrap().unwrap();
    assert!(
        step.count <= 1 && step.next.unwrap() <= Duration::from_secs(1),
        "{step:?}"
    );
}

// A5: what dies again, or after it began, is not of its selection.
async fn what_dies_later_is_not_of_it(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    letters(&node, of, sub, 2).await;
    let job = all_of(&node, Kind::Redrive, of, FAST).await;
    node.pass(SECOND).await;
    node.move_letters(node.session, job.id, 1).await.unwrap();
    let lease = node.claim_one(sub).await;
    node.finish_now(&lease.dead()).await;
    let later = letters(&node, of, sub, 1).await;
    assert_eq!(work(&node, job.id).await, 1);
    assert_eq!(
        found(&node, &Selection::default()).await,
        [later[0], lease.id]
    );
    assert_eq!(read(&node, job.id).await.done, 2);
}

// A5, N2: a node that is killed in the middle loses and repeats nothing; the one
// that was thought dead moves nothing any more.
async fn a_redrive_outlasts_its_owner(db: Db) {
    let store = db.open().await;
    let one = Node::idle(&store, Duration::from_mins(1)).await;
    one.take_all().await;
    let (sub, of) = subscribed(&one, DEFAULT).await;
    one.load_finished(&load(of, sub, 300)).await.unwrap();
    let job = all_of(&one, Kind::Redrive, of, 100).await;
    one.pass(SECOND).await;
    let first = one
        .move_letters(one.session, job.id, 1000)
        .await
        .unwrap()
        .unwrap();
    assert!((100..300).contains(&first.count), "{first:?}");
    let two = Node::begin(&db.another().await).await;
    let none = two.move_letters(two.session, job.id, 1000).await.unwrap();
    assert!(none.is_none(), "it does not own the partition");
    one.pass(120 * SECOND).await;
    let none = one.move_letters(one.session, job.id, 1000).await.unwrap();
    assert!(none.is_none(), "its session is over");
    two.take_all().await;
    let running = two.running_redrives(&[of.id.part()]).await.unwrap();
    assert_eq!(running.iter().map(|r| r.id).collect::<Vec<_>>(), [job.id]);
    let rest = work(&two, job.id).await;
    assert_eq!(first.count + rest, 300);
    assert_eq!(read(&two, job.id).await.done, 300);
    assert_eq!(waiting(&two, sub).await, 300);
    db.counts_agree().await;
}

// A5: once a pause is answered nothing moves; resumed it goes on where it was.
async fn a_paused_redrive_moves_nothing(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    letters(&node, of, sub, 4).await;
    let job = all_of(&node, Kind::Redrive, of, FAST).await;
    node.pass(SECOND).await;
    node.move_letters(node.session, job.id, 2).await.unwrap();
    let paused = node.change_redrive(job.id, Change::Pause).await.unwrap();
    assert_eq!(paused.unwrap().state, State::Paused);
    node.pass(SECOND).await;
    let none = node.move_letters(node.session, job.id, 9).await.unwrap();
    assert!(none.is_none());
    assert_eq!(node.running_redrives(&[of.id.part()]).await.unwrap(), []);
    assert_eq!(waiting(&node, sub).await, 2);
    let resumed = node.change_redrive(job.id, Change::Resume(None)).await;
    assert_eq!(resumed.unwrap().unwrap().state, State::Running);
    assert_eq!(work(&node, job.id).await, 2);
    assert_eq!(read(&node, job.id).await.done, 4);
}

// A5: what is cancelled or done stays so.
async fn a_cancelled_redrive_is_over(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    letters(&node, of, sub, 2).await;
    let job = all_of(&node, Kind::Redrive, of, FAST).await;
    let over = node
        .change_redrive(job.id, Change::Cancel)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(over.state, State::Cancelled);
    assert!(over.finished_at.is_some());
    for change in [Change::Pause, Change::Resume(None)] {
        let refused = node.change_redrive(job.id, change).await;
        assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
    }
    assert!(
        node.move_letters(node.session, job.id, 9)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(found(&node, &Selection::default()).await.len(), 2);
    let nobody = RedriveId::new(wall_clock(), of.id.part());
    assert_eq!(
        node.change_redrive(nobody, Change::Pause).await.unwrap(),
        None
    );
    assert_eq!(node.get_redrive(nobody).await.unwrap(), None);
}

// A5: whoever comes first has it.
async fn a_redrive_and_a_retry_move_a_letter_once(db: Db) {
    let node = db.node().await;
    let other = db.another().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    for _ in 0..8 {
        let ids = letters(&node, of, sub, 2).await;
        let job = all_of(&node, Kind::Redrive, of, FAST).await;
        node.pass(SECOND).await;
        let (moved, a, b) = tokio::join!(
            work(&node, job.id),
            other.retry_by_hand(ids[0]),
            other.retry_by_hand(ids[1])
        );
        a.unwrap();
        b.unwrap();
        assert!(moved <= 2);
        let leases = node.claim(sub, 10).await;
        assert_eq!(leases.len(), 2);
        for lease in leases {
            node.finish_now(&lease.delivered()).await;
        }
    }
    db.counts_agree().await;
}

// A5: there is nobody to send them to.
async fn letters_without_a_subscription_stay(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    let gone = letters(&node, of, of.sub(), 2).await;
    letters(&node, of, sub, 1).await;
    let job = all_of(&node, Kind::Redrive, of, FAST).await;
    assert_eq!(work(&node, job.id).await, 1);
    let over = read(&node, job.id).await;
    assert_eq!((over.done, over.skipped), (1, 2));
    assert_eq!(found(&node, &Selection::default()).await.len(), gone.len());
    // They can be purged.
    let job = all_of(&node, Kind::Purge, of, FAST).await;
    assert_eq!(work(&node, job.id).await, 2);
}

// A5, T1: nothing beyond the selection moves, of another tenant least of all.
async fn a_selection_is_kept_to(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node.store, "acme", 7).await;
    let other = Tenancy::create(&*node.store, "other", 7).await;
    let (sub, of) = subscribed(&node, acme).await;
    let (theirs, their) = subscribed(&node, other).await;
    let a = die(&node, of, sub, "invoice.paid", "timeout").await;
    let b = die(&node, of, sub, "invoice.late", "timeout").await;
    let c = die(&node, of, sub, "invoice.paid", "http_400").await;
    let d = die(&node, their, theirs, "invoice.paid", "timeout").await;
    let selection = Selection {
        event_type: "invoice.paid".into(),
        reason: "timeout".into(),
        ..Selection::default()
    };
    let job = begin(&node, &redrive(Kind::Redrive, of, selection, FAST)).await;
    assert_eq!(job.total, Some(1));
    assert_eq!(work(&node, job.id).await, 1);
    assert_eq!(found(&node, &Selection::default()).await, [d, c, b]);
    assert_eq!(node.status(a).await, Status::Retrying);
    // A subscription of another tenant is an empty selection.
    let theirs = Selection {
        subscription: Some(theirs),
        ..Selection::default()
    };
    let job = begin(&node, &redrive(Kind::Purge, of, theirs, FAST)).await;
    assert_eq!((job.total, work(&node, job.id).await), (Some(0), 0));
    let job = all_of(&node, Kind::Purge, of, FAST).await;
    assert_eq!(work(&node, job.id).await, 2);
    assert_eq!(found(&node, &Selection::default()).await, [d]);
    db.counts_agree().await;
}

// A5: what is purged is gone, and not counted any more.
async fn a_purge_removes_letters(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    let ids = letters(&node, of, sub, 3).await;
    let lease = {
        node.accept(&of.event_to(sub)).await;
        node.claim_one(sub).await
    };
    let mut expired = lease.sign_again();
    expired.settle = onering::store::Settle::Dead(Status::ReplayExpired);
    node.finish_now(&expired).await;
    let job = all_of(&node, Kind::Purge, of, FAST).await;
    assert_eq!(job.total, Some(4));
    assert_eq!(work(&node, job.id).await, 4);
    for id in ids.iter().chain([&lease.id]) {
        assert_eq!(node.get_delivery(*id).await.unwrap(), None);
        assert_eq!(node.retry_by_hand(*id).await.unwrap(), None);
    }
    db.counts_agree().await;
}

// A5, A4: a body that retention kept for a letter goes with it, unless another
// delivery needs it.
async fn a_purge_lets_bodies_go(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    let (second, of) = subscribed(&node, of).await;
    letters(&node, of, sub, 2).await;
    let shared = of.event().to(&[sub, second]).build();
    node.accept(&shared).await;
    let lease = node.claim_one(sub).await;
    node.finish_now(&lease.dead()).await;
    node.pass_days(40).await;
    while node.forget(30, 100).await.unwrap() == onering::store::Forgotten::Some {}
    let bodies = async || db.texts("select type from kept_bodies").await.len();
    assert_eq!(bodies().await, 3);
    let job = all_of(&node, Kind::Purge, of, FAST).await;
    assert_eq!(work(&node, job.id).await, 3);
    assert_eq!(bodies().await, 1);
    let lease = node.claim_one(second).await;
    assert_eq!(lease.body, shared.body);
}

// A5: bounded, over all that are not over.
async fn redrives_are_few_at_a_time(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(
        &*node.store,
        "acme",
        DEFAULT.id.part().get().try_into().unwrap(),
    )
    .await;
    let make = |of: Tenancy| {
        let job = redrive(Kind::Redrive, of, Selection::default(), 1);
        let node = node.clone();
        async move { node.create_redrive(&job, 2, BY, &a_chain()).await }
    };
    let first = make(DEFAULT).await.unwrap();
    make(DEFAULT).await.unwrap();
    node.change_redrive(first.id, Change::Pause).await.unwrap();
    let refused = make(DEFAULT).await;
    assert!(matches!(refused, Err(StoreError::Quota(2))), "{refused:?}");
    make(acme).await.unwrap();
    node.change_redrive(first.id, Change::Cancel).await.unwrap();
    make(DEFAULT).await.unwrap();
}

// A5, X3: who began it, why, and with what, in the chain of the audit log.
async fn redrives_are_told_of(db: Db) {
    let node = db.node().await;
    let selection = Selection {
        reason: "timeout".into(),
        from: Some(1_700_000_000_000_000),
        ..Selection::default()
    };
    let job = begin(&node, &redrive(Kind::Purge, DEFAULT, selection.clone(), 7)).await;
    assert_eq!(
        (job.created_by.as_str(), job.reason.as_str()),
        (BY.actor, BY.reason)
    );
    let log = node
        .audit("dead_letters.", None, everything())
        .await
        .unwrap();
    assert_eq!(log.len(), 1);
    let told = &log[0].entry;
    assert_eq!(
        (
            told.action.as_str(),
            told.target.clone(),
            told.reason.as_str()
        ),
        ("dead_letters.purge", job.id.to_string(), BY.reason)
    );
    assert!(
        told.new.contains("reason=timeout from=2023-11-14T22:13:20"),
        "{told:?}"
    );
    let mut verifier = onering::domain::audit::Verifier::new(a_chain());
    let end = node
        .read_audit(&mut |record| verifier.read(record))
        .await
        .unwrap();
    assert_eq!(verifier.end(end.head, &end.switches).unwrap().0, 1);
    // As it was stored.
    let read = read(&node, job.id).await;
    assert_eq!(read, job);
    assert_eq!(
        read.selection,
        Selection {
            tenant: Some(DEFAULT.id),
            ..selection
        }
    );
    assert_eq!(
        node.list_redrives(None, everything()).await.unwrap(),
        [read]
    );
}

// A4: for as long as history may show what they did.
async fn redrives_are_forgotten(db: Db) {
    let node = db.node().await;
    let done = all_of(&node, Kind::Redrive, DEFAULT, 1).await;
    work(&node, done.id).await;
    let paused = all_of(&node, Kind::Redrive, DEFAULT, 1).await;
    node.change_redrive(paused.id, Change::Pause).await.unwrap();
    for (days, left) in [(59, 2), (2, 1)] {
        node.pass_days(days).await;
        while node.forget(30, 10).await.unwrap() == onering::store::Forgotten::Some {}
        assert_eq!(
            node.list_redrives(None, everything()).await.unwrap().len(),
            left
        );
    }
    assert!(node.get_redrive(paused.id).await.unwrap().is_some());
}
