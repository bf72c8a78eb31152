use bytes::Bytes;

use super::*;
use crate::domain::id::EventId;

pub(super) fn job(tenant: TenantId, subscription: SubscriptionId) -> Job {
    let event = EventId::new(1_700_000_000_000_000, tenant.part());
    Job {
        id: DeliveryId::of(event),
        tenant,
        subscription,
        event,
        event_type: "a".into(),
        body: Bytes::from_static(b"{}"),
        trace: None,
        token: 1,
        attempts: 0,
        replays: 0,
        by_hand: false,
        age: 0,
        deferred: 0,
        ordering_key: None,
        since: Instant::now(),
        session: crate::store::Session(1),
    }
}

pub(super) fn ids(part: u8) -> (TenantId, SubscriptionId) {
    let part = Part::new(part);
    (TenantId::new(1, part), SubscriptionId::new(1, part))
}

// D3: never more under way than the subscription allows.
#[test]
fn a_lane_stays_within_its_limit() {
    let (t, s) = ids(1);
    let mut lanes = Lanes::new(1000);
    for _ in 0..5 {
        lanes.push(job(t, s), 2, true);
    }
    assert!(lanes.take().is_some() && lanes.take().is_some());
    assert!(lanes.take().is_none());
    lanes.landed(s);
    assert!(lanes.take().is_some());
    assert!(lanes.take().is_none());
    assert_eq!((lanes.waiting(), lanes.in_flight()), (2, 2));
}

// A8: lanes that do not move leave room for those that do, whatever their
// limits are, and one lane alone can use half of the capacity.
#[test]
fn lanes_leave_room_for_others() {
    let (t, first) = ids(1);
    let mut lanes = Lanes::new(64);
    for _ in 0..100 {
        lanes.push(job(t, first), 100, true);
    }
    assert_eq!(std::iter::from_fn(|| lanes.take()).count(), 32);
    for n in 2..12 {
        let lane = SubscriptionId::new(n, Part::new(1));
        for _ in 0..100 {
            lanes.push(job(t, lane), 100, true);
        }
    }
    while lanes.take().is_some() {}
    assert!(lanes.in_flight() < 64, "{}", lanes.in_flight());
    let (other, late) = ids(2);
    lanes.push(job(other, late), 100, true);
    assert_eq!(lanes.take().unwrap().subscription, late);
    for _ in 0..32 {
        lanes.landed(first);
    }
    let next: Vec<_> = std::iter::from_fn(|| lanes.take()).collect();
    assert!(
        next.iter().any(|j| j.subscription == first),
        "its turn comes again"
    );
    assert!(next.iter().any(|j| j.subscription != first));
}

// One tenant with many subscriptions does not get more turns than another.
#[test]
fn tenants_take_turns() {
    let (a, first) = ids(1);
    let (b, lone) = ids(2);
    let mut lanes = Lanes::new(1000);
    for n in 0..9 {
        let s = if n % 3 == 0 {
            first
        } else {
            SubscriptionId::new(n, Part::new(1))
        };
        lanes.push(job(a, s), 100, true);
    }
    for _ in 0..9 {
        lanes.push(job(b, lone), 100, true);
    }
    let order: Vec<TenantId> = std::iter::from_fn(|| lanes.take())
        .map(|j| j.tenant)
        .collect();
    let early = order[..10].iter().filter(|t| **t == b).count();
    assert_eq!((order.len(), early), (18, 5));
}

// D6: what queued up and what is new share the sends.
#[test]
fn old_and_new_are_mixed() {
    let (t, s) = ids(1);
    let mut lanes = Lanes::new(1000);
    for n in 0..40 {
        let mut j = job(t, s);
        j.attempts = u16::from(n < 20);
        lanes.push(j, 100, n >= 20);
    }
    let first: Vec<u16> = (0..20)
        .filter_map(|_| lanes.take())
        .map(|j| j.attempts)
        .collect();
    assert_eq!(first.iter().filter(|a| **a == 1).count(), 10);
}

#[test]
fn a_sign_during_a_fetch_is_not_lost() {
    let (_, s) = ids(1);
    let mut lanes = Lanes::new(1000);
    lanes.sign(s);
    let fetch = lanes.fetches(1000, |_| true)[0];
    lanes.sign(s);
    assert!(
        lanes.fetches(1000, |_| true).is_empty(),
        "one fetch at a time"
    );
    lanes.fetched(fetch, Some(0));
    assert_eq!(
        lanes.fetches(1000, |_| true).len(),
        1,
        "the later sign is followed"
    );
}

#[test]
fn a_failed_fetch_is_repeated() {
    let (_, s) = ids(1);
    let mut lanes = Lanes::new(1000);
    lanes.sign(s);
    let fetch = lanes.fetches(1000, |_| true)[0];
    lanes.fetched(fetch, None);
    assert_eq!(lanes.fetches(1000, |_| true).len(), 1);
}

// Lanes that do not move leave room for others.
#[test]
fn a_stuck_lane_does_not_fill_the_memory() {
    let (t, stuck) = ids(1);
    let mut lanes = Lanes::new(1000);
    while lanes.plan(stuck) {
        lanes.unplan(stuck);
        lanes.push(job(t, stuck), 1, true);
    }
    assert!(lanes.waiting() <= 2048);
    assert!(lanes.plan(SubscriptionId::new(2, Part::new(1))));
}

// N4: however many rows of one lane are due at about one time, they are one timer.
#[test]
fn timers_of_one_moment_are_one() {
    let (_, s) = ids(1);
    let (_, other) = ids(2);
    let mut lanes = Lanes::new(1000);
    let soon = lanes.started + Duration::from_millis(1000);
    for n in 0..1000 {
        let at = lanes.started + Duration::from_millis(990) + Duration::from_micros(n);
        lanes.wake_at(at, s);
    }
    assert_eq!(lanes.timers.len(), 1);
    lanes.wake_at(soon, other);
    lanes.wake_at(soon + Duration::from_secs(1), s);
    assert_eq!(lanes.timers.len(), 3);
    assert_eq!(lanes.next_wake(), Some(soon));
    lanes.wake(soon);
    let woken = lanes.fetches(1000, |_| true);
    assert_eq!(woken.len(), 2);
    lanes.fetched(woken[0], Some(0));
    lanes.fetched(woken[1], Some(0));
    // The moment is over: a row that is due then once more is not forgotten.
    lanes.wake_at(soon, s);
    assert_eq!(lanes.timers.len(), 2);
    lanes.wake(soon);
    assert_eq!(lanes.fetches(1000, |_| true).len(), 1);
}
