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

/// A lane of webhooks with that limit.
fn http(in_flight: u32) -> Terms {
    in_flight.into()
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
        lanes.push(job(t, s), http(2), true);
    }
    assert!(
        lanes.take(&Taker::EMBEDDED, usize::MAX).is_some()
            && lanes.take(&Taker::EMBEDDED, usize::MAX).is_some()
    );
    assert!(lanes.take(&Taker::EMBEDDED, usize::MAX).is_none());
    lanes.landed(s);
    assert!(lanes.take(&Taker::EMBEDDED, usize::MAX).is_some());
    assert!(lanes.take(&Taker::EMBEDDED, usize::MAX).is_none());
    assert_eq!((lanes.waiting(), lanes.in_flight()), (2, 2));
}

// A8: lanes that do not move leave room for those that do, whatever their
// limits are, and one lane alone can use half of the capacity.
#[test]
fn lanes_leave_room_for_others() {
    let (t, first) = ids(1);
    let mut lanes = Lanes::new(64);
    for _ in 0..100 {
        lanes.push(job(t, first), http(100), true);
    }
    assert_eq!(
        std::iter::from_fn(|| lanes.take(&Taker::EMBEDDED, usize::MAX)).count(),
        32
    );
    for n in 2..12 {
        let lane = SubscriptionId::new(n, Part::new(1));
        for _ in 0..100 {
            lanes.push(job(t, lane), http(100), true);
        }
    }
    while lanes.take(&Taker::EMBEDDED, usize::MAX).is_some() {}
    assert!(lanes.in_flight() < 64, "{}", lanes.in_flight());
    let (other, late) = ids(2);
    lanes.push(job(other, late), http(100), true);
    assert_eq!(
        lanes
            .take(&Taker::EMBEDDED, usize::MAX)
            .unwrap()
            .subscription,
        late
    );
    for _ in 0..32 {
        lanes.landed(first);
    }
    let next: Vec<_> = std::iter::from_fn(|| lanes.take(&Taker::EMBEDDED, usize::MAX)).collect();
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
        lanes.push(job(a, s), http(100), true);
    }
    for _ in 0..9 {
        lanes.push(job(b, lone), http(100), true);
    }
    let order: Vec<TenantId> = std::iter::from_fn(|| lanes.take(&Taker::EMBEDDED, usize::MAX))
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
        lanes.push(j, http(100), n >= 20);
    }
    let first: Vec<u16> = (0..20)
        .filter_map(|_| lanes.take(&Taker::EMBEDDED, usize::MAX))
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
        lanes.push(job(t, stuck), http(1), true);
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

fn streamed(in_flight: u32) -> Terms {
    Terms {
        in_flight,
        class: Class::Stream,
        ..Terms::default()
    }
}

fn stream(whose: Whose) -> Taker {
    Taker {
        classes: &[Class::Stream],
        whose,
    }
}

// W1, W6: who takes gets what leaves by its way, of those whom it serves, and
// nothing else.
#[test]
fn takers_get_what_is_theirs() {
    let ((a, http_lane), (b, other)) = (ids(1), ids(2));
    let consumed = SubscriptionId::new(3, Part::new(1));
    let mut lanes = Lanes::new(100);
    for _ in 0..4 {
        lanes.push(job(a, http_lane), http(100), true);
        lanes.push(job(a, consumed), streamed(100), true);
        lanes.push(job(b, other), streamed(100), true);
    }
    let mut taken = |taker: &Taker| {
        let job = lanes.take(taker, usize::MAX);
        job.map(|job| job.subscription)
    };
    let only = stream(Whose::Only([http_lane, other].into()));
    assert_eq!(taken(&only), Some(other));
    let own = stream(Whose::Tenant(a));
    for _ in 0..4 {
        assert_eq!(taken(&own), Some(consumed));
    }
    assert_eq!(taken(&own), None);
    for _ in 0..3 {
        assert_eq!(taken(&stream(Whose::All)), Some(other));
    }
    assert_eq!(taken(&stream(Whose::All)), None);
    assert_eq!(taken(&only), None);
    for _ in 0..4 {
        assert_eq!(taken(&Taker::EMBEDDED), Some(http_lane));
    }
    assert_eq!(taken(&Taker::EMBEDDED), None);
}

// A10: what needs a client certificate is for the embedded worker alone, also
// where the subscription got one while its deliveries waited.
#[test]
fn certificates_stay_on_the_node() {
    let (t, s) = ids(1);
    let mut lanes = Lanes::new(100);
    let relay = Taker {
        classes: &[Class::Webhook],
        whose: Whose::All,
    };
    lanes.push(job(t, s), http(10), true);
    lanes.push(job(t, s), http(10), true);
    assert!(lanes.take(&relay, usize::MAX).is_some());
    lanes.adjust(|_| {
        Way::Send(Terms {
            in_flight: 10,
            class: Class::Certified,
            ..Terms::default()
        })
    });
    assert!(lanes.take(&relay, usize::MAX).is_none());
    assert!(lanes.take(&Taker::EMBEDDED, usize::MAX).is_some());
}

// W3: what does not fit into a window stays where it is, and goes with a larger one.
#[test]
fn a_body_waits_for_room() {
    let (t, s) = ids(1);
    let mut lanes = Lanes::new(100);
    lanes.push(job(t, s), streamed(10), true);
    for taker in [stream(Whose::All), stream(Whose::Only([s].into()))] {
        assert!(lanes.take(&taker, 1).is_none());
    }
    assert_eq!(lanes.waiting(), 1);
    assert!(lanes.take(&stream(Whose::All), 2).is_some());
}

// A8: what streams hold takes nothing from the attempts that this node makes.
#[test]
fn streams_have_no_part_in_the_capacity() {
    let ((a, consumed), (b, lane)) = (ids(1), ids(2));
    let mut lanes = Lanes::new(4);
    for _ in 0..50 {
        lanes.push(job(a, consumed), streamed(100), true);
        lanes.push(job(b, lane), http(100), true);
    }
    let all = stream(Whose::All);
    let held = std::iter::from_fn(|| lanes.take(&all, usize::MAX)).count();
    assert_eq!(held, 50);
    assert!(lanes.take(&Taker::EMBEDDED, usize::MAX).is_some());
    assert!(lanes.take(&Taker::EMBEDDED, usize::MAX).is_some());
    for _ in 0..50 {
        lanes.landed(consumed);
    }
    assert_eq!(lanes.in_flight(), 2);
}

// H2: bodies under way are in memory like those that wait, and those that streams took
// are in theirs.
#[test]
fn bodies_under_way_are_counted() {
    let ((t, s), (other, lane)) = (ids(1), ids(2));
    let mut lanes = Lanes::new(1000);
    let large = Bytes::from(vec![b' '; 1 << 20]);
    for _ in 0..128 {
        let body = large.clone();
        lanes.push(Job { body, ..job(t, s) }, http(1000), true);
    }
    let under_way: Vec<Job> =
        std::iter::from_fn(|| lanes.take(&Taker::EMBEDDED, usize::MAX)).collect();
    assert_eq!((under_way.len(), lanes.waiting()), (128, 0));
    assert!(!lanes.plan(lane));
    for job in &under_way {
        let at = lanes.started;
        lanes.ended(job, Sign::Well, false, at);
    }
    assert_eq!(lanes.bytes, 0);
    assert!(
        lanes.plan(lane),
        "what is to be recorded is so without its body"
    );

    lanes.push(
        Job {
            body: large,
            ..job(other, lane)
        },
        streamed(9),
        true,
    );
    assert_eq!(lanes.bytes, 1 << 20);
    let taken = lanes.take(&stream(Whose::All), usize::MAX).unwrap();
    assert_eq!(lanes.bytes, 0);
    lanes.let_go(taken.id, taken.token);
    lanes.unplan(lane);
}

// However a job leaves, its body is counted once.
#[test]
fn bodies_are_counted_once() {
    let (t, s) = ids(1);
    let mut lanes = Lanes::new(1000);
    let again = job(t, s);
    lanes.push(again.clone(), http(1), true);
    lanes.push(
        Job {
            token: 2,
            ..again.clone()
        },
        http(1),
        false,
    );
    assert_eq!(lanes.bytes, 2);
    lanes.let_go(again.id, 1);
    assert_eq!(lanes.bytes, 2);
    for job in lanes.withdraw(|_| false) {
        lanes.let_go(job.id, job.token);
    }
    assert_eq!((lanes.bytes, lanes.waiting()), (0, 0));
    let given_back = job(t, s);
    lanes.push(given_back.clone(), http(1), true);
    assert_eq!(lanes.adjust(|_| Way::Off).back.len(), 1);
    assert_eq!(lanes.bytes, 0);
    lanes.let_go(given_back.id, 1);
    assert!(lanes.held.is_empty());
}
