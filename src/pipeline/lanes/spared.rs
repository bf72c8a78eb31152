//! Tests of how receivers are spared: breakers, paces, hosts, isolation.

use super::{
    tests::{ids, job},
    *,
};
use crate::domain::breaker::{Settings, Turn};

const SECOND: Duration = Duration::from_secs(1);

fn terms() -> Terms {
    Terms {
        in_flight: 10,
        class: Class::Webhook,
        rate: 0,
        breaker: Settings {
            failures_to_open: 5,
            open_seconds: 60,
        },
        host: 1,
        url: 1,
    }
}

/// Lanes with one that has so many jobs, and what it takes to use it.
struct Scene {
    lanes: Lanes,
    tenant: TenantId,
    sub: SubscriptionId,
}

impl Scene {
    fn new(jobs: usize, terms: Terms) -> Self {
        let (tenant, sub) = ids(1);
        let mut lanes = Lanes::new(1000);
        for _ in 0..jobs {
            let mut job = job(tenant, sub);
            job.since = lanes.started;
            lanes.push(job, terms, true);
        }
        Self { lanes, tenant, sub }
    }

    /// One more comes from the store.
    fn push(&mut self) {
        let mut job = job(self.tenant, self.sub);
        job.since = self.lanes.started;
        self.lanes.push(job, terms(), false);
    }

    fn at(&self, after: Duration) -> Instant {
        self.lanes.started + after
    }

    fn take(&mut self, after: Duration) -> Option<Job> {
        let at = self.at(after);
        self.lanes.take_at(&Taker::EMBEDDED, usize::MAX, at)
    }

    /// Takes one and ends it.
    fn one(&mut self, sign: Sign, after: Duration) -> After {
        let job = self.take(after).expect("a job");
        self.end(&job, sign, after)
    }

    fn end(&mut self, job: &Job, sign: Sign, after: Duration) -> After {
        let at = self.at(after);
        self.lanes.ended(job, sign, false, at)
    }

    fn open(&mut self) -> After {
        for _ in 0..4 {
            assert!(self.one(Sign::Ill, Duration::ZERO).changed.is_empty());
        }
        self.one(Sign::Ill, Duration::ZERO)
    }
}

fn turns(after: &After) -> Vec<Option<Turn>> {
    after.changed.iter().map(|c| c.turn).collect()
}

// A6: five failures, a minute's rest in which nothing is sent or fetched, one probe;
// then everything again.
#[test]
fn an_open_breaker_holds_the_lane_and_a_probe_frees_it() {
    let mut s = Scene::new(20, terms());
    let after = s.open();
    assert_eq!(turns(&after), [Some(Turn::Opened)]);
    s.lanes.sign(s.sub);
    assert!(s.lanes.fetches(1000, |_| true).is_empty());
    assert!(!s.lanes.plan(s.sub), "what is new waits in the store");
    assert!(s.take(59 * SECOND).is_none());
    assert_eq!(s.lanes.next_resume(), Some(s.at(60 * SECOND)));
    let probe = s.take(60 * SECOND).unwrap();
    assert!(s.take(60 * SECOND).is_none(), "one alone");
    let after = s.end(&probe, Sign::Ill, 61 * SECOND);
    assert_eq!(turns(&after), [Some(Turn::Reopened)]);
    assert!(s.take(120 * SECOND).is_none());
    s.push();
    let probe = s.take(121 * SECOND).unwrap();
    let after = s.end(&probe, Sign::Well, 121 * SECOND);
    assert_eq!(turns(&after), [Some(Turn::Closed)]);
    s.push();
    assert!(s.take(121 * SECOND).is_some());
    assert_eq!(s.lanes.fetches(1000, |_| true).len(), 1);
    assert!(s.lanes.plan(s.sub));
}

// A6: one that says nothing leaves the question open, as does one that was given back.
#[test]
fn a_probe_that_says_nothing_is_followed_by_another() {
    let mut s = Scene::new(20, terms());
    s.open();
    for sign in [Sign::Refused, Sign::Nothing] {
        let after = s.one(sign, 60 * SECOND);
        assert!(after.changed.iter().all(|c| c.turn.is_none()));
        s.push();
    }
    s.push();
    let probe = s.take(60 * SECOND).unwrap();
    assert!(s.take(60 * SECOND).is_none());
    assert_eq!(
        turns(&s.end(&probe, Sign::Well, 60 * SECOND)),
        [Some(Turn::Closed)]
    );
}

// A6: a half open lane with nothing in memory fetches one row, not hundreds.
#[test]
fn a_probe_is_fetched_alone() {
    let mut s = Scene::new(5, terms());
    s.open();
    s.lanes.sign(s.sub);
    let at = s.at(60 * SECOND);
    s.lanes.resume(at);
    let fetches = s.lanes.fetches(1000, |_| true);
    assert_eq!(fetches.len(), 1);
    assert_eq!(fetches[0].limit, 1);
    s.lanes.fetched(fetches[0], Some(1));
}

// A6, A8: of what is in memory when it opens a few stay for the probes; the rest goes
// back together, and makes room.
#[test]
fn what_waits_for_an_ill_receiver_leaves_the_memory() {
    let mut s = Scene::new(2000, terms());
    let after = s.open();
    assert_eq!(after.back.len(), 2000 - 5 - 1);
    assert_eq!(s.lanes.waiting(), 1);
}

// A8, B6: a hundred ill receivers leave the memory to the others.
#[test]
fn many_ill_receivers_leave_the_memory() {
    let mut lanes = Lanes::new(1000);
    let start = lanes.started;
    for n in 0..100 {
        let tenant = TenantId::new(n, Part::new(1));
        let sub = SubscriptionId::new(n, Part::new(1));
        for _ in 0..150 {
            lanes.push(job(tenant, sub), terms(), true);
        }
        for _ in 0..5 {
            let job = lanes.take_at(&Taker::EMBEDDED, usize::MAX, start).unwrap();
            let after = lanes.ended(&job, Sign::Ill, false, start);
            lanes.let_go(job.id, job.token);
            for job in after.back {
                lanes.let_go(job.id, job.token);
            }
        }
    }
    assert_eq!((lanes.waiting(), lanes.room()), (100, 2048));
}

// A6: after an outage it starts slowly: so many in the first second, twice as many in
// the next.
#[test]
fn what_waited_starts_slowly() {
    let mut s = Scene::new(
        1000,
        Terms {
            in_flight: 100,
            ..terms()
        },
    );
    s.open();
    for _ in 0..900 {
        let job = job(s.tenant, s.sub);
        s.lanes.push(
            job,
            Terms {
                in_flight: 100,
                ..terms()
            },
            true,
        );
    }
    s.one(Sign::Well, 60 * SECOND);
    let mut sent = [0; 4];
    for tick in 0..400 {
        let after = 60 * SECOND + Duration::from_millis(10) * tick;
        while let Some(job) = s.take(after) {
            sent[tick as usize / 100] += 1;
            s.end(&job, Sign::Well, after);
        }
    }
    for (n, expected) in sent.iter().zip([5, 10, 20, 40]) {
        assert!((expected - 3..=expected + 4).contains(n), "{sent:?}");
    }
}

// A6, D3: the time that it held a delivery back is none of its age, wherever it
// waited, and is counted once.
#[test]
fn time_in_an_outage_is_not_age() {
    let mut s = Scene::new(6, terms());
    s.open();
    let probe = s.take(70 * SECOND).unwrap();
    assert_eq!((probe.age, probe.deferred), (-70_000_000, 70_000_000));
    s.end(&probe, Sign::Well, 80 * SECOND);
    // Fetched 20 seconds later, when it was 90 seconds old; delivery was off for a
    // while in between, which is not in its age already.
    let at = s.at(80 * SECOND);
    s.lanes.switched(false, at);
    let at = s.at(1000 * SECOND);
    s.lanes.switched(true, at);
    let clock = s.lanes.clock(s.at(1020 * SECOND));
    let lane = &s.lanes.by_id[&s.sub];
    let mut old = job(s.tenant, s.sub);
    old.age = 90_000_000;
    lane.receiver.fetched(&mut old, 90_000_000, clock);
    assert_eq!((old.age, old.deferred), (20_000_000, 70_000_000));
    let mut new = job(s.tenant, s.sub);
    lane.receiver.fetched(&mut new, 15_000_000, clock);
    assert_eq!(new.deferred, 0);
}

// A6, N2: whoever takes a partition over sends nothing before it knows, and then
// keeps to what it finds.
#[test]
fn a_partition_that_is_taken_over_waits_for_what_is_known() {
    let mut s = Scene::new(10, terms());
    let opened = s.open().changed.remove(0);
    let stored = opened.state(s.lanes.clock(s.at(10 * SECOND)));
    assert_eq!(stored.open.unwrap().left, 50 * SECOND);
    assert_eq!(stored.failures, 5);

    let mut other = Scene::new(10, terms());
    other.lanes.unknown_but(|_| false);
    let ill = Scene::new(0, terms());
    assert!(other.take(Duration::ZERO).is_none());
    other.lanes.sign(other.sub);
    assert!(other.lanes.fetches(1000, |_| true).is_empty());
    let at = other.at(Duration::ZERO);
    let part = ill.sub.part();
    let stored = ReceiverState {
        subscription: other.sub,
        ..stored
    };
    other.lanes.load(&[part], std::iter::once(&stored), at);
    assert!(other.take(49 * SECOND).is_none());
    let probe = other.take(50 * SECOND).unwrap();
    let after = other.end(&probe, Sign::Well, 50 * SECOND);
    assert_eq!(turns(&after), [Some(Turn::Closed)]);
    let generation = after.changed[0].state(other.lanes.clock(at)).generation;
    assert_eq!(generation, stored.generation + 1);
    let at = other.at(60 * SECOND);
    other.lanes.unknown_but(|_| true);
    other.lanes.load(&[part], std::iter::empty(), at);
    assert!(other.take(60 * SECOND).is_some());
}

// A6: an owner who switches it off and on, or names another URL, begins anew.
#[test]
fn another_receiver_is_taken_for_well() {
    for way in [
        Way::Off,
        Way::Hold { url: 2 },
        Way::Send(Terms { url: 2, ..terms() }),
    ] {
        let mut s = Scene::new(10, terms());
        s.open();
        let after = s.lanes.adjust(|_| way);
        assert_eq!(turns(&after), [None]);
        let clock = s.lanes.clock(s.at(SECOND));
        assert_eq!(after.changed[0].state(clock).open, None);
        let job = job(s.tenant, s.sub);
        s.lanes.push(job, terms(), true);
        assert!(s.take(SECOND).is_some());
    }
    let mut s = Scene::new(10, terms());
    s.open();
    assert!(s.lanes.adjust(|_| Way::Hold { url: 1 }).changed.is_empty());
    assert!(s.lanes.adjust(|_| Way::Send(terms())).changed.is_empty());
    assert!(s.take(SECOND).is_none(), "the same one is as ill as before");
}

// A6: a lane of which nothing was sent since its partition was taken over knows its URL
// all the same.
#[test]
fn another_receiver_is_known_after_a_restart() {
    let mut s = Scene::new(5, terms());
    let opened = s.open().changed.remove(0);
    let stored = opened.state(s.lanes.clock(s.at(SECOND)));
    let mut lanes = Lanes::new(1000);
    let at = lanes.started;
    lanes.load(&[s.sub.part()], std::iter::once(&stored), at);
    assert!(lanes.adjust(|_| Way::Send(terms())).changed.is_empty());
    let after = lanes.adjust(|_| Way::Send(Terms { url: 2, ..terms() }));
    assert_eq!(turns(&after), [None]);
}

// A7: after days without a delivery its owner is told, then the subscription is to be
// disabled, each once; one delivery ends it.
#[test]
fn a_receiver_that_fails_for_days() {
    let disabled = Settings {
        failures_to_open: 0,
        open_seconds: 60,
    };
    let mut s = Scene::new(
        100,
        Terms {
            breaker: disabled,
            ..terms()
        },
    );
    let day = 86_400 * SECOND;
    s.lanes.be_patient(Patience {
        warn: micros(4 * day),
        disable: micros(5 * day),
    });
    let bad = |after: &After| after.changed.first().and_then(|c| c.bad);
    for _ in 0..5 {
        s.one(Sign::Refused, Duration::ZERO);
    }
    assert_eq!(bad(&s.one(Sign::Ill, 3 * day)), None);
    let told = s.one(Sign::Ill, 4 * day);
    let (long, left) = (micros(4 * day), micros(day));
    assert_eq!(bad(&told), Some(Bad::Failing { long, left }));
    assert!(s.one(Sign::Ill, 4 * day).changed.is_empty());
    let over = s.one(Sign::Refused, 5 * day);
    assert_eq!(bad(&over), Some(Bad::Failed));
    assert!(s.one(Sign::Ill, 6 * day).changed.is_empty());
    let well = s.one(Sign::Well, 6 * day);
    let clock = s.lanes.clock(s.at(6 * day));
    assert_eq!(well.changed[0].state(clock).failing, None);
    assert_eq!(bad(&s.one(Sign::Ill, 7 * day)), None);
    assert!(s.one(Sign::Well, 7 * day).changed.is_empty(), "not stored");
}

// D3: a rate is held however many may be under way, and waits in memory.
#[test]
fn a_lane_keeps_to_its_rate() {
    let mut s = Scene::new(
        100,
        Terms {
            rate: 10,
            ..terms()
        },
    );
    let mut sent = 0;
    for tick in 0..300 {
        let after = Duration::from_millis(10) * tick;
        while let Some(job) = s.take(after) {
            sent += 1;
            s.end(&job, Sign::Well, after);
        }
    }
    assert!((28..=31).contains(&sent), "{sent}");
    assert!(s.lanes.next_resume().is_some());
}

// D3: one host, many subscriptions of many tenants: together no more than its share,
// others are not held up, and each of them has a turn.
#[test]
fn a_host_has_its_share() {
    let mut lanes = Lanes::new(1000);
    lanes.share_hosts(8);
    let start = lanes.started;
    for part in 1..21 {
        let (tenant, sub) = ids(part);
        for _ in 0..10 {
            let host = if part == 20 { 2 } else { 1 };
            lanes.push(job(tenant, sub), Terms { host, ..terms() }, true);
        }
    }
    let mut under_way: VecDeque<Job> = VecDeque::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..500 {
        while let Some(job) = lanes.take_at(&Taker::EMBEDDED, usize::MAX, start) {
            seen.insert(job.subscription);
            under_way.push_back(job);
        }
        let other = ids(20).1.part();
        let to_host = under_way.iter().filter(|j| j.id.part() != other).count();
        assert!(to_host <= 8, "{to_host}");
        match under_way.pop_front() {
            Some(job) => lanes.ended(&job, Sign::Well, false, start),
            None => break,
        };
    }
    assert_eq!((seen.len(), lanes.waiting(), lanes.in_flight()), (20, 0, 0));
}

// A8: ten of a hundred hang. They never have all slots, nor the memory, and once
// their breakers are open hardly any: the others' deliveries wait for nobody.
#[test]
fn hanging_receivers_leave_the_others_alone() {
    const HANG: Duration = Duration::from_secs(15);
    let mut lanes = Lanes::new(512);
    lanes.share_hosts(1000);
    let start = lanes.started;
    let subs: Vec<(TenantId, SubscriptionId)> = (0..100)
        .map(|n| {
            let part = Part::new(u8::try_from(n % 64).unwrap());
            (TenantId::new(n, part), SubscriptionId::new(n, part))
        })
        .collect();
    let hangs = |s: SubscriptionId| subs[..10].iter().any(|(_, h)| *h == s);
    let of_hanging = Terms {
        in_flight: 100,
        ..terms()
    };
    let mut under_way: Vec<(Duration, Job)> = Vec::new();
    let mut late_hanging = 0;
    for tick in 0u32..600 {
        let now = Duration::from_millis(50) * tick;
        let (ended, still): (Vec<_>, Vec<_>) =
            under_way.into_iter().partition(|(until, _)| *until <= now);
        under_way = still;
        for (_, job) in ended {
            let sign = if hangs(job.subscription) {
                Sign::Ill
            } else {
                Sign::Well
            };
            let after = lanes.ended(&job, sign, false, start + now);
            lanes.let_go(job.id, job.token);
            for job in after.back {
                lanes.let_go(job.id, job.token);
            }
        }
        // Each has three deliveries a tick, as far as there is room for them.
        for (tenant, sub) in &subs {
            for _ in 0..3 {
                let fits = lanes.plan(*sub);
                assert!(fits || hangs(*sub), "no memory for the others at {now:?}");
                if fits {
                    lanes.unplan(*sub);
                    lanes.push(job(*tenant, *sub), of_hanging, true);
                }
            }
        }
        // As many workers as there is capacity.
        while under_way.len() < 512 {
            let Some(job) = lanes.take_at(&Taker::EMBEDDED, usize::MAX, start + now) else {
                break;
            };
            let hanging = hangs(job.subscription);
            if hanging && now > HANG + SECOND {
                late_hanging += 1;
            }
            let takes = if hanging {
                HANG
            } else {
                Duration::from_millis(5)
            };
            under_way.push((now + takes, job));
            // The others answer at once: their slot is free for the next.
            if !hanging {
                let (_, job) = under_way.pop().expect("it was pushed");
                lanes.ended(&job, Sign::Well, false, start + now);
                lanes.let_go(job.id, job.token);
            }
        }
        let waiting: usize = subs[10..]
            .iter()
            .map(|(_, s)| lanes.by_id.get(s).map_or(0, Lane::waiting))
            .sum();
        assert_eq!(waiting, 0, "the others wait at {now:?}");
    }
    assert!(late_hanging <= 10, "only their probes: {late_hanging}");
}
