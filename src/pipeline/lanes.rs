//! Who is next: a lane for each subscription, taken in turns, first among
//! tenants and then among the subscriptions of one tenant, within each one's
//! `max_in_flight`. Plain data under one lock: nothing here waits.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use self::ring::Ring;
use super::job::{Fetch, Job};
use crate::{
    domain::{
        breaker::Sign,
        id::{DeliveryId, Micros, Part, SubscriptionId, TenantId, micros},
    },
    store::ReceiverState,
};

mod hosts;
mod receiver;

use hosts::Hosts;
use receiver::Receiver;
pub(super) use receiver::{Bad, Changed, Clock, Patience, Terms, Way};

mod ring;
mod taker;

pub(super) use taker::Served;
pub use taker::{Class, Taker, Whose};

/// The most jobs in memory.
const MOST_JOBS: usize = 16_384;
/// The most bytes of bodies in memory, those under way too.
const MOST_BYTES: usize = 128 << 20;
/// A lane with fewer waiting jobs than this fetches more from the store.
const LOW: usize = 128;
/// The most that one lane fetches at a time.
const FETCH: usize = 256;
/// How many jobs stay in memory for an ill receiver: the next probe. Ill receivers by
/// the hundred leave room for the others.
const ILL: usize = 1;

/// Looks at one lane within this time are one.
const TICK: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Lane {
    tenant: Option<TenantId>,
    /// Published just now.
    fresh: VecDeque<Job>,
    /// Fetched from the store.
    stored: VecDeque<Job>,
    /// Whose turn it is: both get half of the sends while both wait.
    fresh_turn: bool,
    /// Leases asked for in a publish that is under way.
    planned: usize,
    in_flight: u32,
    terms: Terms,
    in_ring: bool,
    receiver: Receiver,
    /// Nothing is sent before that time.
    resumes: Option<Micros>,
    /// Whether the store may have due rows of this lane; counts up with each
    /// sign of it, so that a fetch under way can't hide a later one.
    signs: u64,
    seen: u64,
    fetching: bool,
    wants_fetch: bool,
    /// When it is looked at again, in ticks.
    wakes: BTreeSet<u64>,
}

impl Lane {
    fn waiting(&self) -> usize {
        self.fresh.len() + self.stored.len()
    }

    fn may_send(&self) -> bool {
        self.waiting() > 0
            && self.in_flight < self.terms.in_flight
            && self.resumes.is_none()
            && self.receiver.may_send()
    }

    fn next(&mut self) -> Option<Job> {
        self.fresh_turn = !self.fresh_turn;
        let (first, second) = if self.fresh_turn {
            (&mut self.fresh, &mut self.stored)
        } else {
            (&mut self.stored, &mut self.fresh)
        };
        first.pop_front().or_else(|| second.pop_front())
    }

    /// The size of what [`next`](Self::next) would give.
    fn next_bytes(&self) -> usize {
        let (first, second) = if self.fresh_turn {
            (&self.stored, &self.fresh)
        } else {
            (&self.fresh, &self.stored)
        };
        let next = first.front().or_else(|| second.front());
        next.map_or(0, |job| job.body.len())
    }

    fn is_idle(&self) -> bool {
        self.waiting() == 0
            && self.in_flight == 0
            && self.planned == 0
            && self.signs == self.seen
            && !self.fetching
            && self.wakes.is_empty()
            && self.resumes.is_none()
            && self.receiver.is_plain()
    }
}

/// A row that this node has leased.
struct Held {
    token: i32,
    /// Of its body, as long as that is in memory.
    bytes: usize,
}

/// What follows from an attempt's end, or from changed terms.
#[derive(Default)]
pub(super) struct After {
    /// What is known of receivers changed.
    pub(super) changed: Vec<Changed>,
    /// Jobs to give back.
    pub(super) back: Vec<Job>,
}

/// All lanes.
pub(super) struct Lanes {
    /// Attempts that the embedded worker and relays make at once.
    capacity: usize,
    /// Lanes that had their share of the capacity when their turn came.
    sated: VecDeque<SubscriptionId>,
    by_id: HashMap<SubscriptionId, Lane>,
    /// Those that may send, by class.
    rings: [Ring; Class::COUNT],
    /// Where the next take begins, among the classes or subscriptions of its taker.
    turn: usize,
    /// Every row that this node has leased.
    held: HashMap<DeliveryId, Held>,
    /// Of the bodies that are in memory.
    bytes: usize,
    waiting: usize,
    planned: usize,
    /// Of the attempts that share the capacity.
    in_flight: usize,
    /// Of the others.
    streamed: usize,
    fetches: VecDeque<SubscriptionId>,
    timers: BinaryHeap<Reverse<(u64, SubscriptionId)>>,
    started: Instant,
    /// When lanes that wait for their receivers' sake go on.
    resumes: BinaryHeap<Reverse<(Micros, SubscriptionId)>>,
    /// A lane goes on earlier than all others that wait.
    sooner: bool,
    hosts: Hosts,
    patience: Patience,
    /// Of which partitions it is known how their receivers are, a bit each. In the
    /// others nothing is sent.
    known: u64,
    /// For how long delivery was off, and since when it is.
    off: Micros,
    off_since: Option<Micros>,
}

impl Lanes {
    /// No lanes yet, for a node that makes so many attempts at once.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            sated: VecDeque::new(),
            by_id: HashMap::new(),
            rings: Default::default(),
            turn: 0,
            held: HashMap::new(),
            bytes: 0,
            waiting: 0,
            planned: 0,
            in_flight: 0,
            streamed: 0,
            fetches: VecDeque::new(),
            timers: BinaryHeap::new(),
            started: Instant::now(),
            resumes: BinaryHeap::new(),
            sooner: false,
            hosts: Hosts::default(),
            patience: Patience::default(),
            known: u64::MAX,
            off: 0,
            off_since: None,
        }
    }

    fn now(&self, at: Instant) -> Micros {
        micros(at.saturating_duration_since(self.started))
    }

    /// Reads the clock.
    pub(super) fn clock(&self, at: Instant) -> Clock {
        let now = self.now(at);
        let off = self.off + self.off_since.map_or(0, |since| now - since);
        Clock {
            now,
            active: now - off,
        }
    }

    /// Delivery was switched on or off.
    pub(super) fn switched(&mut self, on: bool, at: Instant) {
        let now = self.now(at);
        match (self.off_since, on) {
            (None, false) => self.off_since = Some(now),
            (Some(since), true) => {
                self.off += now - since;
                self.off_since = None;
            }
            _ => {}
        }
    }

    /// After which times of failing what is done.
    pub(super) const fn be_patient(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// How many attempts may be under way to one host; 0: any number.
    pub(super) fn share_hosts(&mut self, most: usize) {
        let counts = self.by_id.values().map(|l| (l.terms.host, l.in_flight));
        for freed in self.hosts.share(most, counts) {
            self.leave_queue(freed);
        }
    }

    const fn knows(&self, part: Part) -> bool {
        self.known >> part.get() & 1 == 1
    }

    /// It is not known any more how receivers are, but in these partitions.
    pub(super) fn unknown_but(&mut self, kept: impl Fn(Part) -> bool) {
        for part in Part::all().filter(|p| !kept(*p)) {
            self.known &= !(1 << part.get());
        }
        for (subscription, lane) in &mut self.by_id {
            if !kept(subscription.part()) {
                lane.receiver = Receiver::default();
                lane.resumes = None;
            }
        }
    }

    /// Partitions of which it is not known how their receivers are.
    pub(super) fn unknown(&self) -> Vec<Part> {
        Part::all().filter(|p| !self.knows(*p)).collect()
    }

    /// Takes in what is known of the receivers in these partitions, which is to be
    /// found before anything is sent to them.
    pub(super) fn load<'s>(
        &mut self,
        parts: &[Part],
        states: impl Iterator<Item = &'s ReceiverState>,
        at: Instant,
    ) {
        let clock = self.clock(at);
        for state in states {
            let lane = self.by_id.entry(state.subscription).or_default();
            lane.tenant = Some(state.tenant);
            lane.receiver = Receiver::load(state, clock);
            if let Some(until) = lane.receiver.open_until() {
                self.resume_at(until, state.subscription);
            }
        }
        for part in parts {
            self.known |= 1 << part.get();
        }
        let lanes: Vec<SubscriptionId> = self.by_id.keys().copied().collect();
        for subscription in lanes.into_iter().filter(|s| parts.contains(&s.part())) {
            self.enter_ring(subscription);
            self.want_fetch(subscription);
        }
    }

    /// A lane waits until that time.
    fn resume_at(&mut self, at: Micros, subscription: SubscriptionId) {
        if let Some(lane) = self.by_id.get_mut(&subscription) {
            lane.resumes = Some(at);
            let first = self.resumes.peek().map(|Reverse((at, _))| *at);
            self.sooner |= first.is_none_or(|first| at < first);
            self.resumes.push(Reverse((at, subscription)));
        }
    }

    /// When the next lane goes on.
    pub(super) fn next_resume(&self) -> Option<Instant> {
        let Reverse((at, _)) = self.resumes.peek()?;
        let after = Duration::from_micros(at.max(&0).unsigned_abs());
        self.started.checked_add(after)
    }

    /// Whether that is earlier than when it was asked last.
    pub(super) const fn is_sooner(&mut self) -> bool {
        std::mem::replace(&mut self.sooner, false)
    }

    /// Lanes whose time has come go on.
    pub(super) fn resume(&mut self, at: Instant) {
        let now = self.now(at);
        while let Some(Reverse((at, subscription))) = self.resumes.peek().copied()
            && at <= now
        {
            self.resumes.pop();
            if let Some(lane) = self.by_id.get_mut(&subscription)
                && lane.resumes == Some(at)
            {
                lane.resumes = None;
                lane.receiver.pass(now);
                self.enter_ring(subscription);
                self.want_fetch(subscription);
            }
        }
    }

    /// How many jobs may wait in one lane: fewer, the fuller the memory is, so
    /// that lanes which do not move leave room for those that do.
    fn room(&self) -> usize {
        let jobs = (self.held.len() + self.planned) * 4 / MOST_JOBS;
        let bytes = self.bytes * 4 / MOST_BYTES;
        match jobs.max(bytes) {
            0 => 2048,
            1 => FETCH,
            2 | 3 => 16,
            _ => 0,
        }
    }

    /// Whether a publish may lease one more row of this lane.
    pub(super) fn plan(&mut self, subscription: SubscriptionId) -> bool {
        let room = self.room();
        let lane = self.by_id.entry(subscription).or_default();
        // What waits for a receiver that is ill does so in the store.
        let fits = lane.waiting() + lane.planned < room && lane.receiver.is_well();
        if fits {
            lane.planned += 1;
            self.planned += 1;
        }
        fits
    }

    /// Takes a plan back.
    pub(super) fn unplan(&mut self, subscription: SubscriptionId) {
        if let Some(lane) = self.by_id.get_mut(&subscription) {
            lane.planned = lane.planned.saturating_sub(1);
            self.planned = self.planned.saturating_sub(1);
        }
    }

    /// Takes a leased job in.
    pub(super) fn push(&mut self, job: Job, terms: impl Into<Terms>, fresh: bool) {
        self.keep(&job, job.body.len());
        self.waiting += 1;
        let (tenant, subscription) = (job.tenant, job.subscription);
        let lane = self.by_id.entry(subscription).or_default();
        lane.tenant = Some(tenant);
        let mut terms: Terms = terms.into();
        if lane.terms.url != 0 {
            // That it is another one by now is noticed where the lanes are adjusted.
            terms.url = lane.terms.url;
        }
        let host = std::mem::replace(&mut lane.terms, terms).host;
        let moved = lane.in_flight;
        if fresh {
            lane.fresh.push_back(job);
        } else {
            lane.stored.push_back(job);
        }
        self.enter_ring(subscription);
        self.move_host(host, terms.host, moved);
    }

    fn move_host(&mut self, from: u64, to: u64, in_flight: u32) {
        if from != to {
            for freed in self.hosts.moved(from, to, in_flight) {
                self.leave_queue(freed);
            }
        }
    }

    /// A job that was fetched at that age: it counts no time in which its breaker was
    /// open.
    pub(super) fn fetched_at(&self, job: &mut Job, age: Micros) {
        if let Some(lane) = self.by_id.get(&job.subscription) {
            lane.receiver.fetched(job, age, self.clock(Instant::now()));
        }
    }

    /// Notes the lease of a job that does not wait here: it is given back.
    pub(super) fn hold(&mut self, job: Job) -> Job {
        self.keep(&job, 0);
        job
    }

    fn keep(&mut self, job: &Job, bytes: usize) {
        let token = job.token;
        self.bytes += bytes;
        if let Some(before) = self.held.insert(job.id, Held { token, bytes }) {
            self.bytes -= before.bytes;
        }
    }

    /// A job's body leaves the memory.
    fn drop_body(&mut self, job: &Job) {
        if let Some(held) = self.held.get_mut(&job.id)
            && held.token == job.token
        {
            self.bytes -= std::mem::take(&mut held.bytes);
        }
    }

    fn enter_ring(&mut self, subscription: SubscriptionId) {
        if !self.knows(subscription.part()) {
            return;
        }
        let Some(lane) = self.by_id.get_mut(&subscription) else {
            return;
        };
        let Some(tenant) = lane.tenant.filter(|_| lane.may_send() && !lane.in_ring) else {
            return;
        };
        lane.in_ring = true;
        self.rings[lane.terms.class.index()].enter(tenant, subscription);
    }

    /// The next job of the lanes that the taker may take from, with a body of at
    /// most so many bytes. It is in flight from now on.
    pub(super) fn take(&mut self, taker: &Taker, most: usize) -> Option<Job> {
        let job = self.take_at(taker, most, Instant::now())?;
        // What streams hold is bounded by their windows.
        if *taker != Taker::EMBEDDED {
            self.drop_body(&job);
        }
        Some(job)
    }

    fn take_at(&mut self, taker: &Taker, most: usize, at: Instant) -> Option<Job> {
        self.resume(at);
        self.turn = self.turn.wrapping_add(1);
        let first = self.turn;
        if let Whose::Only(only) = &taker.whose {
            let turns = (0..only.len()).map(|n| only[(first + n) % only.len()]);
            for subscription in turns {
                let wanted = self.knows(subscription.part())
                    && self.by_id.get(&subscription).is_some_and(|lane| {
                        taker.classes.contains(&lane.terms.class)
                            && lane.may_send()
                            && lane.next_bytes() <= most
                            && self.hosts.is_free(lane.terms.host, lane.in_flight)
                    });
                // It stays in its ring: whoever comes to it there looks again.
                if wanted && let Some(job) = self.take_from(subscription, at) {
                    return Some(job);
                }
            }
            return None;
        }
        let classes = taker.classes.len();
        (0..classes).find_map(|n| {
            let class = taker.classes[(first + n) % classes];
            self.take_turn(class, &taker.whose, most, at)
        })
    }

    fn take_turn(&mut self, class: Class, whose: &Whose, most: usize, at: Instant) -> Option<Job> {
        loop {
            let ring = &mut self.rings[class.index()];
            let subscription = match whose {
                Whose::Tenant(tenant) => ring.next_of(*tenant)?,
                Whose::All | Whose::Only(_) => ring.next()?,
            };
            let Some(lane) = self.by_id.get_mut(&subscription) else {
                continue;
            };
            let known = self.known >> subscription.part().get() & 1 == 1;
            if !lane.may_send() || !known {
                lane.in_ring = false;
                continue;
            }
            if lane.terms.class != class {
                lane.in_ring = false;
                self.enter_ring(subscription);
                continue;
            }
            // A lane never has more than is left over for all others: with ten
            // receivers that hang, each holds an eleventh of the capacity at
            // most, and an eleventh stays free.
            let free = self.capacity.saturating_sub(self.in_flight);
            if class.shares_capacity() && lane.in_flight > 0 && lane.in_flight as usize >= free {
                self.sated.push_back(subscription);
                continue;
            }
            if !self
                .hosts
                .has_room(lane.terms.host, subscription, lane.in_flight)
            {
                continue;
            }
            lane.in_ring = false;
            if lane.next_bytes() > most {
                self.enter_ring(subscription);
                return None;
            }
            if let Some(job) = self.take_from(subscription, at) {
                return Some(job);
            }
        }
    }

    /// The next job of a lane, unless its receiver is to be spared for a while.
    fn take_from(&mut self, subscription: SubscriptionId, at: Instant) -> Option<Job> {
        let clock = self.clock(at);
        let lane = self.by_id.get_mut(&subscription)?;
        if let Err(wait) = lane.receiver.pace(lane.terms.rate, clock.now) {
            self.resume_at(clock.now + wait, subscription);
            return None;
        }
        let mut job = lane.next()?;
        lane.receiver.sends(&mut job, clock, at);
        self.hosts.sent(lane.terms.host);
        lane.in_flight += 1;
        if lane.terms.class.shares_capacity() {
            self.in_flight += 1;
        } else {
            self.streamed += 1;
        }
        self.waiting -= 1;
        self.enter_ring(subscription);
        self.want_fetch(subscription);
        Some(job)
    }

    /// Changes how many attempts can be made at once.
    pub(super) fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
        for subscription in std::mem::take(&mut self.sated) {
            self.leave_queue(subscription);
        }
    }

    /// Whether half of the attempts that can be made at once are under way.
    pub(super) const fn is_half_busy(&self) -> bool {
        self.in_flight * 2 >= self.capacity
    }

    /// A job is no longer in flight; its row stays held until its outcome is
    /// recorded. What it says of its receiver, and whether that asked for patience.
    pub(super) fn ended(&mut self, job: &Job, sign: Sign, asked: bool, at: Instant) -> After {
        let clock = self.clock(at);
        let mut after = After::default();
        let subscription = job.subscription;
        self.drop_body(job);
        if let Some(lane) = self.by_id.get_mut(&subscription) {
            let (terms, patience) = (lane.terms, self.patience);
            // Whoever takes over a stream says itself how much it takes.
            let sign = match terms.class {
                Class::Stream | Class::Temporary => Sign::Nothing,
                Class::Webhook | Class::Certified => sign,
            };
            let changed = lane
                .receiver
                .ended(job, sign, asked, terms, patience, clock);
            let until = lane.receiver.open_until();
            if let Some(changed) = changed {
                if changed.turn.is_some()
                    && let Some(until) = until
                {
                    self.resume_at(until, subscription);
                    after.back = self.give_back(subscription, ILL);
                }
                after.changed.push(changed);
            }
        }
        self.landed(subscription);
        self.want_fetch(subscription);
        after
    }

    /// Takes out what waits in a lane beyond so many.
    fn give_back(&mut self, subscription: SubscriptionId, keep: usize) -> Vec<Job> {
        let Some(lane) = self.by_id.get_mut(&subscription) else {
            return Vec::new();
        };
        let stored = lane.stored.len().min(keep);
        let fresh = lane.fresh.len().min(keep - stored);
        let mut back: Vec<Job> = lane.stored.drain(stored..).collect();
        back.extend(lane.fresh.drain(fresh..));
        for job in &back {
            self.waiting -= 1;
            self.drop_body(job);
        }
        back
    }

    /// A lane may queue up for its turn again.
    fn leave_queue(&mut self, subscription: SubscriptionId) {
        if let Some(lane) = self.by_id.get_mut(&subscription) {
            lane.in_ring = false;
        }
        self.enter_ring(subscription);
    }

    /// A job is no longer in flight.
    fn landed(&mut self, subscription: SubscriptionId) {
        if let Some(lane) = self.by_id.get_mut(&subscription) {
            lane.in_flight = lane.in_flight.saturating_sub(1);
            let all = if lane.terms.class.shares_capacity() {
                &mut self.in_flight
            } else {
                &mut self.streamed
            };
            *all = all.saturating_sub(1);
            let freed = self.hosts.landed(lane.terms.host);
            self.enter_ring(subscription);
            for freed in freed {
                self.leave_queue(freed);
            }
        }
        // Two for each that ends, and all with the last: they come to their turns
        // again at a cost that does not grow with their number.
        let most = if self.in_flight == 0 {
            self.sated.len()
        } else {
            2
        };
        for _ in 0..most {
            if let Some(subscription) = self.sated.pop_front() {
                self.leave_queue(subscription);
            }
        }
    }

    /// A row is no longer leased to this node.
    pub(super) fn let_go(&mut self, id: DeliveryId, token: i32) {
        if self.held.get(&id).is_some_and(|held| held.token == token)
            && let Some(held) = self.held.remove(&id)
        {
            self.bytes -= held.bytes;
        }
    }

    /// Whether this node knows of a lease.
    pub(super) fn holds(&self, id: DeliveryId) -> bool {
        self.held.contains_key(&id)
    }

    /// The store has or may have due rows of this lane.
    pub(super) fn sign(&mut self, subscription: SubscriptionId) {
        self.by_id.entry(subscription).or_default().signs += 1;
        self.want_fetch(subscription);
    }

    fn want_fetch(&mut self, subscription: SubscriptionId) {
        let Some(lane) = self.by_id.get_mut(&subscription) else {
            return;
        };
        // Of what waits only the stored ones count: fresh ones must not keep older
        // rows out. One that is not well is asked with one.
        let hungry = if lane.receiver.is_well() {
            lane.stored.len() < LOW
        } else {
            lane.receiver.may_send() && lane.waiting() == 0
        };
        let hungry = hungry && self.known >> subscription.part().get() & 1 == 1;
        if lane.signs != lane.seen && !lane.fetching && !lane.wants_fetch && hungry {
            lane.wants_fetch = true;
            self.fetches.push_back(subscription);
        }
    }

    /// What to fetch now, of lanes that may send. The others are signed again when
    /// they may.
    pub(super) fn fetches(
        &mut self,
        most: usize,
        may_send: impl Fn(SubscriptionId) -> bool,
    ) -> Vec<Fetch> {
        let mut out = Vec::new();
        let mut left = self.room().min(most);
        while left > 0 && out.len() < 64 {
            let Some(subscription) = self.fetches.pop_front() else {
                break;
            };
            let Some(lane) = self.by_id.get_mut(&subscription) else {
                continue;
            };
            lane.wants_fetch = false;
            if !may_send(subscription) {
                lane.seen = lane.signs;
                continue;
            }
            // Since it queued up it may have been found ill. It is fetched for once
            // it may be asked.
            if !lane.receiver.may_send() {
                continue;
            }
            lane.fetching = true;
            let limit = if lane.receiver.is_well() {
                FETCH.min(left)
            } else {
                1
            };
            left -= limit;
            out.push(Fetch {
                subscription,
                limit,
                signs: lane.signs,
            });
        }
        out
    }

    /// A fetch ended with so many rows; fewer than asked for means that the
    /// store has no more for now.
    pub(super) fn fetched(&mut self, fetch: Fetch, rows: Option<usize>) {
        if let Some(lane) = self.by_id.get_mut(&fetch.subscription) {
            lane.fetching = false;
            if rows.is_some_and(|n| n < fetch.limit) {
                lane.seen = fetch.signs;
            }
            self.want_fetch(fetch.subscription);
        }
    }

    /// Looks at a lane again at that time.
    pub(super) fn wake_at(&mut self, at: Instant, subscription: SubscriptionId) {
        let tick = self.tick_of(at);
        let lane = self.by_id.entry(subscription).or_default();
        if lane.wakes.insert(tick) {
            self.timers.push(Reverse((tick, subscription)));
        }
    }

    /// The tick that ends at that time or just after it.
    fn tick_of(&self, at: Instant) -> u64 {
        let millis = at.saturating_duration_since(self.started).as_millis();
        u64::try_from(millis.div_ceil(TICK.as_millis())).unwrap_or(u64::MAX)
    }

    /// When the next lane is to be looked at.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let Reverse((tick, _)) = self.timers.peek()?;
        self.started
            .checked_add(TICK * u32::try_from(*tick).unwrap_or(u32::MAX))
    }

    /// Looks at every lane whose time has come.
    pub(super) fn wake(&mut self, now: Instant) {
        while self.next_wake().is_some_and(|at| at <= now) {
            let Some(Reverse((tick, subscription))) = self.timers.pop() else {
                return;
            };
            if let Some(lane) = self.by_id.get_mut(&subscription)
                && lane.wakes.remove(&tick)
            {
                self.sign(subscription);
            }
        }
    }

    /// Brings the lanes to their terms, and takes back what waits in those that are to
    /// be stopped.
    pub(super) fn adjust(&mut self, way: impl Fn(SubscriptionId) -> Way) -> After {
        let clock = self.clock(Instant::now());
        let mut after = After::default();
        let all: Vec<SubscriptionId> = self.by_id.keys().copied().collect();
        for subscription in all {
            let way = way(subscription);
            let Some(lane) = self.by_id.get_mut(&subscription) else {
                continue;
            };
            let (terms, url) = match way {
                Way::Send(terms) => (Some(terms), Some(terms.url)),
                Way::Hold { url } => (None, Some(url)),
                Way::Off => (None, None),
            };
            let before = lane.terms.url;
            lane.terms.url = url.unwrap_or(before);
            let another = before != 0 && lane.terms.url != before;
            if (another || matches!(way, Way::Off)) && !lane.receiver.is_plain() {
                if let Some(tenant) = lane.tenant {
                    let changed = lane.receiver.reset(subscription, tenant, clock);
                    after.changed.extend(changed);
                }
                lane.resumes = None;
            }
            if let Some(terms) = terms {
                let host = std::mem::replace(&mut lane.terms, terms).host;
                let moved = lane.in_flight;
                self.move_host(host, terms.host, moved);
                self.enter_ring(subscription);
                self.want_fetch(subscription);
            } else {
                after.back.extend(self.give_back(subscription, 0));
            }
        }
        after
    }

    /// Takes the jobs out that wait and are not to stay. What is under way goes on:
    /// its lease is this node's until its outcome is recorded.
    pub(super) fn withdraw(&mut self, stays: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut out = Vec::new();
        for lane in self.by_id.values_mut() {
            for jobs in [&mut lane.fresh, &mut lane.stored] {
                if jobs.iter().all(&stays) {
                    continue;
                }
                for job in std::mem::take(jobs) {
                    if stays(&job) {
                        jobs.push_back(job);
                    } else {
                        out.push(job);
                    }
                }
            }
        }
        self.waiting -= out.len();
        for job in &out {
            self.drop_body(job);
        }
        self.by_id.retain(|_, lane| !lane.is_idle() || lane.in_ring);
        out
    }

    /// Whether this node has leases in any of these partitions.
    pub(super) fn holds_any(&self, of: impl Fn(Part) -> bool) -> bool {
        self.held.keys().any(|id| of(id.part()))
    }

    /// Jobs that wait.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Attempts under way.
    pub(super) const fn in_flight(&self) -> usize {
        self.in_flight + self.streamed
    }

    /// Drops lanes with nothing in them.
    pub(super) fn tidy(&mut self) {
        self.by_id
            .retain(|_, lane| !lane.is_idle() || lane.in_ring || lane.wants_fetch);
    }
}

#[cfg(test)]
mod spared;
#[cfg(test)]
mod tests;
