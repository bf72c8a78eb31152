//! Replays of past events: which there are, how they stand, and that a step is
//! taken once.

use std::time::Duration;

use onering::{
    domain::{
        delivery::Status,
        id::{DAY, DeliveryId, EventId, SubscriptionId, wall_clock},
        redrive::{Change, Kind, Redrive, Selection, State},
    },
    store::{NewDelivery, Past, Standing, Step},
};

use super::redrives::{FAST, begin, die, redrive, subscribed};
use crate::support::{
    build::{DEFAULT, Ends as _, Tenancy},
    store::{Db, HOUR, Node, SECOND, everything},
};

contract![
    a_replay_makes_new_deliveries,
    a_step_is_taken_once,
    events_of_one_tenant_over_days,
    bodies_come_where_they_are_asked_for,
    what_retention_takes_is_passed_over,
    events_stand_as_their_deliveries,
    a_step_tries_letters_once_more,
    where_a_delivery_came_from_is_forgotten_with_it,
];

const HALF_HOUR: i64 = HOUR / 2;

async fn replay_of(node: &Node, of: Tenancy, sub: SubscriptionId, from: i64) -> Redrive {
    let selection = Selection {
        subscription: Some(sub),
        from: Some(from),
        ..Selection::default()
    };
    let job = begin(node, &redrive(Kind::Recover, of, selection, FAST)).await;
    node.pass(SECOND).await;
    job
}

async fn past(node: &Node, job: &Redrive, bodies: bool) -> Option<Past> {
    let past = node.past_events(node.session, job.id, bodies, 30).await;
    past.unwrap()
}

fn to(event: EventId, subscription: SubscriptionId) -> (EventId, NewDelivery) {
    let id = DeliveryId::of(event);
    (
        event,
        NewDelivery {
            id,
            subscription,
            held: 0,
            lease: false,
            ordered: false,
        },
    )
}

/// The step that delivers all of these.
fn all(past: &Past, sub: SubscriptionId) -> Step {
    Step {
        from: past.from,
        to: past.to,
        deliveries: past.events.iter().map(|e| to(e.id, sub)).collect(),
        letters: Vec::new(),
        skipped: 0,
        note: String::new(),
        end: None,
    }
}

/// Takes steps that deliver all there is until the replay is over: what each had.
async fn to_its_end(node: &Node, job: &Redrive, sub: SubscriptionId, bodies: bool) -> Vec<Past> {
    let mut seen = Vec::new();
    for _ in 0..1000 {
        let Some(found) = past(node, job, bodies).await else {
            return seen;
        };
        if found.due > 0 {
            node.replay(node.session, job.id, &all(&found, sub))
                .await
                .unwrap();
            seen.push(found);
        }
        node.pass(SECOND).await;
    }
    panic!("{} has no end", job.id)
}

// A5: a new id, the same event, a full set of attempts; and it shows where it
// came from.
async fn a_replay_makes_new_deliveries(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    let began = wall_clock() - SECOND;
    let event = of.event_to(sub);
    let first = node.accept(&event).await[0];
    let lease = node.claim_one(sub).await;
    node.finish_now(&lease.delivered()).await;
    let job = replay_of(&node, of, sub, began).await;
    assert_eq!(job.total, None);
    let found = past(&node, &job, false).await.unwrap();
    assert_eq!(found.events.len(), 1);
    assert_eq!(found.events[0].event_type, "invoice.paid");
    let step = all(&found, sub);
    let moved = node
        .replay(node.session, job.id, &step)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((moved.count, moved.subscriptions), (1, vec![sub]));
    let lease = node.claim_one(sub).await;
    assert_eq!((lease.event, lease.body.clone()), (event.event, event.body));
    assert_ne!(lease.id, first);
    assert_eq!((lease.attempts, lease.by_hand), (0, false));
    assert!(lease.age < 60 * SECOND, "its age begins with the replay");
    db.counts_agree().await;
    node.finish_now(&lease.failed(Duration::from_mins(1))).await;
    for (id, from) in [(first, None), (lease.id, Some(job.id))] {
        assert_eq!(node.delivery(id).await.replay, from);
    }
    node.pass(HOUR).await;
    node.bury(&[sub.part()], 10).await.unwrap();
    let letter = node.get_letter(lease.id).await.unwrap().unwrap();
    assert_eq!(letter.replay, Some(job.id));
    let listed = node
        .deliveries_of_event(event.event, None, everything())
        .await;
    assert_eq!(listed.unwrap().len(), 2);
    db.counts_agree().await;
}

// A5: a step whose answer was lost is not taken again; nor one of a replay that
// was paused, or by another session.
async fn a_step_is_taken_once(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    let began = wall_clock() - SECOND;
    for _ in 0..3 {
        node.accept(&of.event().build()).await;
    }
    let job = replay_of(&node, of, sub, began).await;
    let found = past(&node, &job, false).await.unwrap();
    let mut step = all(&found, sub);
    step.deliveries.truncate(2);
    step.to = found.events[2].id;
    let take = async |step: &Step| node.replay(node.session, job.id, step).await.unwrap();
    assert_eq!(take(&step).await.unwrap().count, 2);
    assert!(take(&step).await.is_none(), "it is further by now");
    let found = past(&node, &job, false).await.unwrap();
    assert_eq!(found.events.len(), 1);
    let step = all(&found, sub);
    let other = Node::idle(&node.store, Duration::from_mins(1)).await;
    let none = other.replay(other.session, job.id, &step).await.unwrap();
    assert!(none.is_none(), "it does not own the partition");
    assert!(
        other
            .past_events(other.session, job.id, false, 30)
            .await
            .unwrap()
            .is_none()
    );
    node.change_redrive(job.id, Change::Pause).await.unwrap();
    assert!(take(&step).await.is_none(), "it is paused");
    assert!(past(&node, &job, false).await.is_none());
    node.change_redrive(job.id, Change::Resume(None))
        .await
        .unwrap();
    let moved = take(&step).await.unwrap();
    assert_eq!(moved.count, 1);
    // Its range ends where it began.
    for found in to_its_end(&node, &job, sub, false).await {
        assert_eq!(found.events.len(), 0);
    }
    let over = node.get_redrive(job.id).await.unwrap().unwrap();
    assert_eq!((over.state, over.done), (State::Done, 3));
    assert_eq!(node.claim(sub, 10).await.len(), 3);
    db.counts_agree().await;
}

// A5, T1: each event of the tenant once, whatever its day, and nobody else's.
async fn events_of_one_tenant_over_days(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node.store, "acme", 7).await;
    let other = Tenancy::create(&*node.store, "other", 7).await;
    let (sub, of) = subscribed(&node, acme).await;
    let from = wall_clock() - 3 * DAY;
    let mut ours = Vec::new();
    for n in 0..140 {
        let time = from + n * HALF_HOUR;
        let event = if n % 3 == 0 { other } else { of }.event_at(time).build();
        node.accept(&event).await;
        if n % 3 > 0 && n >= 10 {
            ours.push(event.event);
        }
    }
    let job = replay_of(&node, of, sub, from + 10 * HALF_HOUR).await;
    let steps = to_its_end(&node, &job, sub, false).await;
    let seen = steps.iter().flat_map(|s| s.events.iter().map(|e| e.id));
    let seen: Vec<EventId> = seen.collect();
    assert_eq!(seen, ours);
}

// A5, D3: for filters; large ones in slices.
async fn bodies_come_where_they_are_asked_for(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    let began = wall_clock() - SECOND;
    for n in 0..5 {
        let body = vec![b'0' + n; 3 << 20];
        node.accept(&of.event().body(body).build()).await;
    }
    let job = replay_of(&node, of, sub, began).await;
    assert_eq!(past(&node, &job, false).await.unwrap().events.len(), 5);
    let mut seen = Vec::new();
    let mut slices = 0;
    for found in to_its_end(&node, &job, sub, true).await {
        slices += usize::from(!found.events.is_empty());
        assert!(found.events.len() <= 3, "no more than it takes");
        seen.extend(found.events.iter().map(|e| e.body[0]));
    }
    assert_eq!((seen.as_slice(), slices), (&b"01234"[..], 2));
}

// A5, A4: history keeps a day's distance, so that nothing is put into the queue
// whose body goes; and it says so.
async fn what_retention_takes_is_passed_over(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    let now = wall_clock();
    for days in [40, 29, 0] {
        let event = of.event_at(now - days * DAY).build();
        node.accept(&event).await;
    }
    let job = replay_of(&node, of, sub, now - 50 * DAY).await;
    let steps = to_its_end(&node, &job, sub, false).await;
    let seen: usize = steps.iter().map(|s| s.events.len()).sum();
    let late = steps.iter().any(|s| s.late);
    assert_eq!((seen, late), (2, true));
}

// A5: delivered or on its way; dead; none of these.
async fn events_stand_as_their_deliveries(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    let (other, of) = subscribed(&node, of).await;
    let mut events = Vec::new();
    let mut publish = async |to: &[SubscriptionId]| {
        let event = of.event().to(to).build();
        node.accept(&event).await;
        events.push(event.event);
    };
    publish(&[]).await;
    publish(&[other]).await;
    publish(&[sub]).await;
    let delivered = node.claim_one(sub).await;
    node.finish_now(&delivered.delivered()).await;
    publish(&[sub]).await;
    let cancelled = node.claim_one(sub).await;
    let mut end = cancelled.released();
    end.settle = onering::store::Settle::Done(Status::Cancelled);
    node.finish_now(&end).await;
    publish(&[sub]).await;
    let letter = node.claim_one(sub).await;
    node.finish_now(&letter.dead()).await;
    publish(&[sub]).await;
    let stand = node.standing(sub, &events).await.unwrap();
    assert_eq!(
        stand,
        [
            Standing::Missing,
            Standing::Missing,
            Standing::There,
            Standing::Missing,
            Standing::Dead(letter.id),
            Standing::There,
        ]
    );
    assert_eq!(node.standing(sub, &[]).await.unwrap(), []);
}

// A5: with the step that passes their events.
async fn a_step_tries_letters_once_more(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    let began = wall_clock() - SECOND;
    let letter = die(&node, of, sub, "a.b", "x").await;
    let saved = die(&node, of, sub, "a.b", "x").await;
    let job = replay_of(&node, of, sub, began).await;
    node.retry_by_hand(saved).await.unwrap();
    let found = past(&node, &job, false).await.unwrap();
    let step = Step {
        deliveries: Vec::new(),
        letters: vec![letter, saved],
        skipped: 4,
        note: "as it is".into(),
        to: found.events[1].id,
        ..all(&found, sub)
    };
    let moved = node
        .replay(node.session, job.id, &step)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((moved.count, moved.subscriptions), (1, vec![sub]));
    let now = node.get_redrive(job.id).await.unwrap().unwrap();
    assert_eq!(
        (now.done, now.skipped, now.note.as_str()),
        (1, 4, "as it is")
    );
    assert_eq!(node.claim(sub, 10).await.len(), 2);
    let end = Step {
        end: Some(State::Failed),
        from: step.to,
        letters: Vec::new(),
        ..step
    };
    node.replay(node.session, job.id, &end).await.unwrap();
    let over = node.get_redrive(job.id).await.unwrap().unwrap();
    assert_eq!(over.state, State::Failed);
    db.counts_agree().await;
}

// A4
async fn where_a_delivery_came_from_is_forgotten_with_it(db: Db) {
    let node = db.node().await;
    let (sub, of) = subscribed(&node, DEFAULT).await;
    let began = wall_clock() - SECOND;
    node.accept(&of.event().build()).await;
    let job = replay_of(&node, of, sub, began).await;
    let found = past(&node, &job, false).await.unwrap();
    node.replay(node.session, job.id, &all(&found, sub))
        .await
        .unwrap();
    for (days, left) in [(59, 1), (2, 0)] {
        node.pass_days(days).await;
        while node.forget(30, 10).await.unwrap() == onering::store::Forgotten::Some {}
        let rows = db.texts("select cast(part as text) from replayed").await;
        assert_eq!(rows.len(), left);
    }
}
