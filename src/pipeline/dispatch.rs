//! The dispatcher: what is leased to this node and whose turn it is. Workers
//! take jobs and complete them; the publisher and the claimer bring them.

use std::{
    cell::Cell,
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::job::Job;
use super::{
    answer::Answer,
    job::Fetch,
    lanes::{After, Changed, Class, Clock, Lanes, Patience, Served, Taker, Terms, Way},
    node::{Lease, Node},
};
use crate::{
    directory::Directory,
    domain::{
        breaker::Sign,
        delivery::{self, Attempt, Next, Outcome, Progress, Status},
        id::{DAY, DeliveryId, Part, SubscriptionId, micros},
    },
    metrics::Metrics,
    settings::Live,
    store::{Finish, Leased, ReceiverState, Session, Settle},
    target::Target,
};

/// A job's end.
#[derive(Debug)]
pub struct Completion {
    /// The job.
    pub job: Job,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it is not delivered.
    pub reason: String,
    /// What was tried, if anything was.
    pub attempt: Option<Attempt>,
}

/// A recorded end on its way to the store.
pub(super) struct Ended {
    pub(super) finish: Finish,
    pub(super) job: Job,
    pub(super) outcome: Outcome,
    pub(super) at: Instant,
    /// Who waits to hear that it is recorded.
    pub(super) answer: Option<Answer>,
    /// When it was last given to the store.
    given: Cell<Instant>,
}

impl Ended {
    /// What is to be recorded now: waits and latencies count from the attempt's
    /// end.
    pub(super) fn as_of_now(&self) -> Finish {
        self.given.set(Instant::now());
        let mut finish = self.finish.clone();
        if let Settle::Retry { after, .. } | Settle::Failed(after) = &mut finish.settle {
            *after = after.saturating_sub(self.given.get().duration_since(self.at));
        }
        finish.held += micros(self.at.elapsed());
        finish
    }

    /// When a row that was recorded just now is surely due: the store began to
    /// count at some time between the question and its answer.
    fn due_by(&self, after: Duration, now: Instant) -> Instant {
        let given = self.given.get();
        given.max(self.at + after) + now.saturating_duration_since(given)
    }
}

/// The dispatcher.
pub struct Dispatcher {
    lanes: Mutex<Lanes>,
    directory: Arc<Directory>,
    live: Arc<ArcSwap<Live>>,
    node: Arc<Node>,
    metrics: Arc<Metrics>,
    delivering: AtomicBool,
    work: Notify,
    /// Tells streams that there may be a job.
    streams: watch::Sender<()>,
    /// Whether this process sends what goes over HTTP itself.
    embedded: bool,
    /// Those at the other ends of streams, each with the most that it can have at
    /// once.
    takers: Mutex<HashMap<u64, (Taker, usize)>>,
    served: ArcSwap<Served>,
    fetch: Notify,
    /// A lane that waits goes on earlier than those before it.
    sooner: Notify,
    /// Partitions were taken over: how their receivers are is to be found.
    taken: Notify,
    /// What is known of receivers changed.
    changed: mpsc::UnboundedSender<Changed>,
    discover: AtomicBool,
    suspect: AtomicBool,
    /// How far ahead timers are kept: longer than two polls.
    horizon: Duration,
    concurrency: usize,
    completed: AtomicU64,
    /// The session whose partitions' receivers are known.
    session: AtomicI64,
    ended: mpsc::UnboundedSender<Ended>,
    /// Told of subscriptions with something due in another node's partition.
    hints: mpsc::UnboundedSender<SubscriptionId>,
}

impl Dispatcher {
    /// A dispatcher with nothing in it, and where the ends of its jobs arrive.
    pub(super) fn new(
        directory: Arc<Directory>,
        live: Arc<ArcSwap<Live>>,
        node: Arc<Node>,
        metrics: Arc<Metrics>,
        poll: Duration,
        // None: this process sends nothing itself.
        embedded: Option<usize>,
        (changed, hints): (
            mpsc::UnboundedSender<Changed>,
            mpsc::UnboundedSender<SubscriptionId>,
        ),
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Ended>) {
        let (concurrency, embedded) = (embedded.unwrap_or(0), embedded.is_some());
        let (ended, receiver) = mpsc::unbounded_channel();
        let mut lanes = Lanes::new(concurrency);
        lanes.unknown_but(|_| false);
        let delivering = directory.switches().delivery && node.hold().is_none();
        let delivering = AtomicBool::new(delivering);
        let session = AtomicI64::new(node.session().0);
        let dispatcher = Arc::new(Self {
            lanes: Mutex::new(lanes),
            directory,
            live,
            node,
            metrics,
            delivering,
            work: Notify::new(),
            streams: watch::Sender::new(()),
            embedded,
            takers: Mutex::default(),
            served: ArcSwap::default(),
            fetch: Notify::new(),
            sooner: Notify::new(),
            taken: Notify::new(),
            changed,
            discover: AtomicBool::new(true),
            suspect: AtomicBool::new(false),
            horizon: Duration::from_secs(60).max(poll * 2),
            concurrency,
            completed: AtomicU64::new(0),
            session,
            ended,
            hints,
        });
        (dispatcher, receiver)
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a subscription is sent to; none where nobody may send what is for it now.
    fn terms(&self, subscription: SubscriptionId) -> Option<Terms> {
        match self.way(subscription) {
            Way::Send(terms) => Some(terms),
            Way::Hold { .. } | Way::Off => None,
        }
    }

    fn way(&self, subscription: SubscriptionId) -> Way {
        let Some(target) = self.directory.target(subscription) else {
            return Way::Off;
        };
        let s = &target.subscription;
        if s.disabled.is_some() {
            return Way::Off;
        }
        let class = Class::of(&target);
        let taken =
            || (self.embedded && !class.is_consumed()) || self.served.load().reaches(&target);
        if !self.is_delivering() || !taken() {
            return Way::Hold { url: target.url };
        }
        Way::Send(Terms {
            in_flight: s.max_in_flight,
            class,
            rate: s.rate_limit,
            breaker: s.breaker.settings(self.live.load().breaker),
            host: target.host,
            url: target.url,
        })
    }

    /// Tells whoever takes that there may be a job.
    fn wake_takers(&self) {
        self.work.notify_one();
        if self.streams.receiver_count() > 0 {
            self.streams.send_replace(());
        }
    }

    /// Whether this node hands out jobs at all.
    #[must_use]
    pub fn is_delivering(&self) -> bool {
        self.delivering.load(Ordering::Acquire)
    }

    /// Chooses which rows a publish should lease to this node: those of
    /// partitions that it owns, of subscriptions that are on, as far as there is
    /// room in memory. What goes in order is fetched: whether it is its key's turn
    /// only the store knows.
    pub(super) fn plan(&self, batch: &mut [crate::store::Publish]) {
        if !self.is_delivering() || !self.node.is_alive() {
            return;
        }
        let mut lanes = self.lanes();
        for p in batch {
            if !self.node.owns(p.event.part()) {
                continue;
            }
            for d in &mut p.deliveries {
                d.lease = !d.ordered
                    && self.terms(d.subscription).is_some()
                    && lanes.plan(d.subscription);
            }
        }
    }

    /// Takes in what a publish leased to that session. `leased` says of each event
    /// whether its leases were given; none: the publish failed.
    pub(super) fn published(
        &self,
        session: Session,
        batch: &[crate::store::Publish],
        leased: &[Option<bool>],
    ) {
        let current = session == self.node.session();
        let mut back = Vec::new();
        let mut lanes = self.lanes();
        let mut fetch = false;
        for (p, leased) in batch.iter().zip(leased) {
            let event_type: Arc<str> = p.event_type.as_str().into();
            for d in &p.deliveries {
                if d.lease {
                    lanes.unplan(d.subscription);
                }
                match leased {
                    // Of a session that has ended meanwhile: its rows are free.
                    Some(true) if d.lease && !current => {}
                    Some(true) if d.lease => {
                        let job = Job {
                            id: d.id,
                            tenant: p.tenant,
                            subscription: d.subscription,
                            event: p.event,
                            event_type: event_type.clone(),
                            body: p.body.clone(),
                            trace: p.trace.clone(),
                            token: 1,
                            attempts: 0,
                            replays: 0,
                            by_hand: false,
                            age: 0,
                            deferred: 0,
                            ordering_key: None,
                            since: Instant::now(),
                            session,
                        };
                        match self.terms(d.subscription) {
                            Some(terms) if self.node.owns(p.event.part()) => {
                                lanes.push(job, terms, true);
                            }
                            // Switched off while the publish was under way, or the
                            // partition is another node's by now.
                            _ => back.push(lanes.hold(job)),
                        }
                    }
                    Some(_) if self.node.owns(p.event.part()) => {
                        lanes.sign(d.subscription);
                        fetch = true;
                    }
                    _ => {}
                }
            }
        }
        drop(lanes);
        self.release(back);
        self.wake_takers();
        if fetch {
            self.fetch.notify_one();
        }
    }

    /// Gives jobs back that were not taken.
    fn release(&self, jobs: Vec<Job>) {
        for job in jobs {
            self.end(Completion {
                job,
                outcome: Outcome::Released,
                reason: String::new(),
                attempt: None,
            });
        }
    }

    /// The next job with its subscription, of those that the taker may take, with
    /// a body of at most so many bytes. What can't be sent is given back.
    pub fn take(&self, taker: &Taker, most: usize) -> Option<(Job, Arc<Target>)> {
        loop {
            // What waits stays where it is: the session may yet be renewed.
            if !self.node.is_alive() {
                return None;
            }
            let mut lanes = self.lanes();
            let job = lanes.take(taker, most);
            if lanes.is_sooner() {
                self.sooner.notify_one();
            }
            let job = job?;
            if job.session != self.node.session() {
                // Leased to a session that has ended: the row is free, or leased
                // again under another token.
                lanes.ended(&job, Sign::Nothing, false, Instant::now());
                lanes.let_go(job.id, job.token);
                continue;
            }
            drop(lanes);
            match self.directory.target(job.subscription) {
                Some(target) if target.subscription.disabled.is_none() && self.is_delivering() => {
                    return Some((job, target));
                }
                known => {
                    if known.is_none() {
                        // Deleted, or made on another node just now.
                        self.directory.nudge();
                    }
                    self.give_back(job);
                }
            }
        }
    }

    /// The hold that this node has on a job.
    #[must_use]
    pub fn lease(&self, job: &Job) -> Lease {
        self.node.lease(job.session)
    }

    /// Gives a job back that was taken and not tried.
    pub fn give_back(&self, job: Job) {
        self.complete(Completion {
            job,
            outcome: Outcome::Released,
            reason: String::new(),
            attempt: None,
        });
    }

    /// Ends a job: decides what follows and passes it on to be recorded.
    pub fn complete(&self, completion: Completion) {
        self.complete_for(completion, None);
    }

    /// Ends a job as [`complete`](Self::complete) does, and answers whoever waits
    /// for it to be recorded.
    pub fn complete_for(&self, completion: Completion, answer: Option<Answer>) {
        let status = completion.attempt.as_ref().map_or(0, |a| a.response_status);
        let sign = Sign::of(completion.outcome, status, &completion.reason);
        let asked = matches!(
            completion.outcome,
            Outcome::Retryable { retry_after: Some(after) } if !after.is_zero()
        );
        let mut lanes = self.lanes();
        let after = lanes.ended(&completion.job, sign, asked, Instant::now());
        let sooner = lanes.is_sooner();
        drop(lanes);
        if sooner {
            self.sooner.notify_one();
        }
        self.completed.fetch_add(1, Ordering::Relaxed);
        self.record(completion, answer);
        self.follow(after);
    }

    /// Does what follows from what is known of receivers.
    fn follow(&self, after: After) {
        for changed in after.changed {
            // Fails once nobody stores it any more: then the process is about to end.
            let _ = self.changed.send(changed);
        }
        self.release(after.back);
    }

    /// Wakes workers when a lane that waited may go on.
    pub(super) async fn resume(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let next = self.lanes().next_resume();
            let time = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.sooner.notified() => continue,
                () = time => {}
            }
            self.lanes().resume(Instant::now());
            self.wake_takers();
            self.fetch.notify_one();
        }
    }

    /// Waits until partitions were taken over.
    pub(super) async fn taken(&self) {
        self.taken.notified().await;
    }

    /// The partitions of this node's of which it is not known how their receivers are,
    /// and the session that owns them.
    pub(super) fn unknown(&self) -> (Session, Vec<Part>) {
        let session = self.node.session();
        let mut parts = self.lanes().unknown();
        parts.retain(|p| self.node.owns(*p));
        (session, parts)
    }

    /// Takes in how the receivers in these partitions are.
    pub(super) fn load(&self, session: Session, parts: &[Part], states: &[ReceiverState]) {
        if session != self.node.session() {
            return;
        }
        let mut lanes = self.lanes();
        // What was lost meanwhile is not known any more.
        let parts: Vec<Part> = parts
            .iter()
            .copied()
            .filter(|p| self.node.owns(*p))
            .collect();
        let mine = states
            .iter()
            .filter(|s| parts.contains(&s.subscription.part()));
        lanes.load(&parts, mine, Instant::now());
        // From now on it is known when one of them becomes another.
        let after = lanes.adjust(|s| self.way(s));
        lanes.is_sooner();
        drop(lanes);
        self.follow(after);
        self.sooner.notify_one();
        self.wake_takers();
        self.look_around();
    }

    /// Reads the clock by which lanes count.
    pub(super) fn clock(&self) -> Clock {
        self.lanes().clock(Instant::now())
    }

    /// How many attempts of this node may be under way to one host; 0: any number.
    pub(super) fn share_hosts(&self, most: usize) {
        self.lanes().share_hosts(most);
        self.wake_takers();
    }

    fn end(&self, completion: Completion) {
        self.record(completion, None);
    }

    /// Passes on to be recorded how a job ended that this node need not have: its
    /// token alone says whether it still counts.
    pub fn record(&self, completion: Completion, answer: Option<Answer>) {
        let Completion {
            mut job,
            outcome,
            reason,
            attempt,
        } = completion;
        let target = self.directory.target(job.subscription);
        let live = self.live.load();
        let subscription = target.as_ref().map(|t| &t.subscription);
        let schedule = subscription
            .and_then(|s| s.schedule.as_ref())
            .unwrap_or(&live.schedule);
        let age = job.age + micros(job.since.elapsed());
        let life_left = subscription.filter(|s| s.max_age > 0).map(|s| {
            let left = s.max_age.saturating_mul(1_000_000).saturating_sub(age);
            Duration::from_micros(u64::try_from(left).unwrap_or(0))
        });
        let progress = Progress {
            attempts: job.attempts,
            replays: job.replays,
            by_hand: job.by_hand,
            life_left,
        };
        let next = delivery::decide(progress, outcome, schedule, jitter(job.id));
        let finish = Finish {
            id: job.id,
            token: job.token,
            settle: match next {
                Next::Delivered => Settle::Done(Status::Delivered),
                Next::Retry(after) => Settle::Retry {
                    after,
                    charged: true,
                },
                Next::Failed(after) => Settle::Failed(after),
                Next::Dead => Settle::Dead(Status::Dead),
                Next::SignAgain => Settle::Retry {
                    after: Duration::ZERO,
                    charged: false,
                },
                Next::ReplayExpired => Settle::Dead(Status::ReplayExpired),
                Next::Cancelled => Settle::Done(Status::Cancelled),
                Next::Released => Settle::Release,
            },
            reason,
            attempt,
            held: subscription.map_or(0, |s| s.held) + job.deferred,
            ordered: job.ordering_key.is_some(),
        };
        let now = Instant::now();
        // What waits for the database does so without its body.
        job.body = Bytes::new();
        // Fails once the finisher has stopped: then the process is about to end
        // and the lease with it.
        let _ = self.ended.send(Ended {
            finish,
            job,
            outcome,
            at: now,
            answer,
            given: Cell::new(now),
        });
        self.wake_takers();
    }

    /// Outcomes were recorded, or their leases are another's.
    pub(super) fn recorded(&self, ended: &[Ended]) {
        let mut lanes = self.lanes();
        let now = Instant::now();
        for e in ended {
            lanes.let_go(e.job.id, e.job.token);
            match e.finish.settle {
                // Its owner would find it with its next poll all the same.
                Settle::Retry { .. } | Settle::Release if !self.node.owns(e.job.id.part()) => {
                    let _ = self.hints.send(e.job.subscription);
                }
                Settle::Retry { after, .. } => {
                    let at = e.due_by(after, now);
                    if at.saturating_duration_since(now) < self.horizon {
                        lanes.wake_at(at, e.job.subscription);
                    }
                }
                Settle::Release => lanes.wake_at(e.at + Duration::from_secs(1), e.job.subscription),
                // The next one of its key may be due.
                _ if e.finish.ordered => lanes.sign(e.job.subscription),
                _ => {}
            }
        }
        drop(lanes);
        self.fetch.notify_one();
    }

    /// Waits until there may be a job.
    pub async fn work(&self) {
        self.work.notified().await;
    }

    /// Wakes one more worker.
    pub fn more_work(&self) {
        self.wake_takers();
    }

    /// Told when there may be a job for a stream.
    #[must_use]
    pub fn stream_work(&self) -> watch::Receiver<()> {
        self.streams.subscribe()
    }

    /// Lets a taker at the other end of a stream, by its number, have at most so
    /// many deliveries at once from now on; none: it is gone.
    pub fn serve(&self, number: u64, taker: Option<(Taker, usize)>) {
        let mut takers = self.takers();
        match taker {
            Some(taker) => {
                takers.insert(number, taker);
            }
            None => {
                takers.remove(&number);
            }
        }
        self.share_capacity(&takers);
        let served = Served::by(takers.values().map(|(taker, _)| taker));
        if **self.served.load() == served {
            drop(takers);
            return self.wake_takers();
        }
        self.served.store(Arc::new(served));
        drop(takers);
        let mut lanes = self.lanes();
        // What waits for somebody who is gone is free for another node.
        let after = lanes.adjust(|s| self.way(s));
        drop(lanes);
        self.follow(after);
        self.look_around();
        self.wake_takers();
    }

    /// A taker can have at most so many deliveries at once from now on.
    pub fn resize(&self, number: u64, most: usize) {
        let mut takers = self.takers();
        let Some((taker, before)) = takers.get_mut(&number) else {
            return;
        };
        if std::mem::replace(before, most) == most || !taker.relays() {
            return;
        }
        self.share_capacity(&takers);
        drop(takers);
        self.wake_takers();
    }

    fn takers(&self) -> MutexGuard<'_, HashMap<u64, (Taker, usize)>> {
        self.takers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As many attempts can be under way as this process makes, and relays can have.
    fn share_capacity(&self, takers: &HashMap<u64, (Taker, usize)>) {
        let relays = takers.values().filter(|(taker, _)| taker.relays());
        let relayed = relays.fold(self.concurrency, |sum, (_, most)| sum.saturating_add(*most));
        self.lanes().set_capacity(relayed);
    }

    /// Which subscriptions live for a while only, and those of them that an open
    /// stream takes from.
    pub(super) fn mortal(&self) -> (usize, Vec<SubscriptionId>) {
        let (mut all, mut open) = (0, Vec::new());
        let served = self.served.load();
        self.directory.each_target(|target| {
            if target.subscription.lifetime.is_some() {
                all += 1;
                if served.reaches(target) {
                    open.push(target.subscription.id);
                }
            }
        });
        (all, open)
    }

    /// A subscription has or may have something due in the store.
    pub fn sign(&self, part: Part, subscription: SubscriptionId) {
        if self.node.owns(part) {
            self.lanes().sign(subscription);
            self.fetch.notify_one();
        }
    }

    /// Whether this node sends what is due in a partition.
    #[must_use]
    pub fn owns(&self, part: Part) -> bool {
        self.node.owns(part)
    }

    /// Asks for a look at everything that waits in the store.
    pub fn look_around(&self) {
        self.discover.store(true, Ordering::Release);
        self.fetch.notify_one();
    }

    /// It is not known whether a statement took effect: rows may be leased to
    /// this node that it does not know of.
    pub(super) fn suspect(&self) {
        self.suspect.store(true, Ordering::Release);
    }

    pub(super) fn take_suspicion(&self) -> bool {
        self.suspect.swap(false, Ordering::AcqRel)
    }

    pub(super) fn is_unknown(&self, id: DeliveryId) -> bool {
        !self.lanes().holds(id)
    }

    pub(super) fn wants_discovery(&self) -> bool {
        self.discover.swap(false, Ordering::AcqRel)
    }

    pub(super) async fn wait_for_fetch(&self, most: Duration) {
        let due = self.lanes().next_wake();
        let wait = due.map_or(most, |at| {
            at.saturating_duration_since(Instant::now()).min(most)
        });
        tokio::select! {
            () = self.fetch.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// What to fetch. What waits for a subscription that is off stays where it
    /// is: once that is on again everything is looked at.
    pub(super) fn fetches(&self, most: usize) -> Vec<Fetch> {
        let mut lanes = self.lanes();
        lanes.wake(Instant::now());
        if !self.is_delivering() {
            return Vec::new();
        }
        lanes.fetches(most, |s| self.terms(s).is_some())
    }

    pub(super) fn fetched(&self, session: Session, fetches: &[Fetch], rows: Option<Vec<Leased>>) {
        let current = session == self.node.session();
        let (mut back, mut missing) = (Vec::new(), Vec::new());
        let mut lanes = self.lanes();
        match rows {
            None => fetches.iter().for_each(|f| lanes.fetched(*f, None)),
            Some(rows) => {
                let mut counts = std::collections::HashMap::new();
                for row in rows {
                    *counts.entry(row.subscription).or_insert(0) += 1;
                    if !current {
                        continue;
                    }
                    let target = self.directory.target(row.subscription);
                    let held = target.map_or(0, |t| t.subscription.held);
                    let age = row.age;
                    let mut job = Job::of(row, held, session);
                    lanes.fetched_at(&mut job, age);
                    match self.terms(job.subscription) {
                        _ if job.body.is_empty() => missing.push(job),
                        Some(terms) if self.node.owns(job.id.part()) => {
                            lanes.push(job, terms, false);
                        }
                        _ => back.push(lanes.hold(job)),
                    }
                }
                for f in fetches {
                    let n = counts.get(&f.subscription).copied().unwrap_or(0);
                    lanes.fetched(*f, Some(n));
                }
            }
        }
        drop(lanes);
        self.release(back);
        for job in missing {
            self.end(Completion {
                job,
                outcome: Outcome::Permanent,
                reason: "body_missing".into(),
                attempt: None,
            });
        }
        self.wake_takers();
    }

    /// Looks at a subscription again at that time. What is far away is left to
    /// the polls that come before it.
    pub(super) fn wake_at(&self, at: Instant, subscription: SubscriptionId) {
        if at.saturating_duration_since(Instant::now()) < self.horizon {
            self.lanes().wake_at(at, subscription);
        }
    }

    /// Follows a change of switches and subscriptions: what may not be sent any
    /// more is given back to the store. True where delivery was switched.
    pub(super) fn reconfigured(&self) -> bool {
        let delivering = self.directory.switches().delivery && self.node.hold().is_none();
        let switched = self.delivering.swap(delivering, Ordering::AcqRel) != delivering;
        let days = self.live.load().endpoint_disable_after;
        let disable = micros(days);
        let mut lanes = self.lanes();
        lanes.switched(delivering, Instant::now());
        lanes.be_patient(Patience {
            warn: disable - (disable / 2).min(DAY),
            disable,
        });
        let after = lanes.adjust(|s| self.way(s));
        drop(lanes);
        self.follow(after);
        self.look_around();
        self.wake_takers();
        switched
    }

    /// Follows a change of the session or of its partitions.
    pub(super) fn repartitioned(&self) {
        self.withdraw();
        let session = self.node.session();
        let mut lanes = self.lanes();
        // What another session's owner learned in between is not known here.
        let same = self.session.swap(session.0, Ordering::AcqRel) == session.0;
        lanes.unknown_but(|part| same && self.node.owns(part));
        drop(lanes);
        self.taken.notify_one();
        self.look_around();
    }

    /// Gives back what waits here in partitions that are no longer this node's, and
    /// drops what was leased to a session that has ended: its rows are free.
    pub(super) fn withdraw(&self) {
        let session = self.node.session();
        let mut lanes = self.lanes();
        let out = lanes.withdraw(|job| job.session == session && self.node.owns(job.id.part()));
        let (back, gone): (Vec<_>, Vec<_>) = out.into_iter().partition(|j| j.session == session);
        for job in gone {
            lanes.let_go(job.id, job.token);
        }
        drop(lanes);
        self.release(back);
    }

    /// Whether anything in these partitions is leased to this node that it knows of.
    pub(super) fn holds_any(&self, of: impl Fn(Part) -> bool) -> bool {
        self.lanes().holds_any(of)
    }

    pub(super) fn tidy(&self) {
        let mut lanes = self.lanes();
        lanes.tidy();
        self.metrics.jobs_waiting.set(lanes.waiting() as f64);
        self.metrics.jobs_in_flight.set(lanes.in_flight() as f64);
    }

    /// Whether more waits than the workers can take at the moment. Where they are
    /// not half busy, what waits does so for its own slow receiver. One lane alone
    /// takes half of them.
    #[must_use]
    pub fn is_crowded(&self, most: usize) -> bool {
        let lanes = self.lanes();
        lanes.waiting() >= most && lanes.is_half_busy()
    }

    /// Jobs that wait for a worker.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lanes().waiting()
    }

    /// Attempts under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lanes().in_flight()
    }

    /// How many jobs were completed since the start.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }
}

/// A number from 0 to 1 that differs between deliveries.
fn jitter(id: DeliveryId) -> f64 {
    let [.., a, b, _] = id.0.into_bytes();
    f64::from(u16::from_be_bytes([a, b])) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests;
