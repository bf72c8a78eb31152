//! This node's session and the partitions that it owns.
//!
//! The session's end is set by the database's clock. The node fences itself on
//! its own monotonic clock, counted from when it *sent* the heartbeat: it stops
//! before the database lets another take over, however long the answer took and
//! wherever its wall clock jumps.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;

use super::timeline::{Hold, Watch};
use crate::{
    domain::{id::Part, partition},
    metrics::Metrics,
    store::{Session, Store},
};

/// The part of a session's life that is kept as a margin for scheduling.
const MARGIN: u32 = 5;
/// How often a session is renewed, and looked around, in its life.
const BEATS: u32 = 6;

/// A session's hold on what it leased.
#[derive(Clone)]
pub struct Lease {
    node: Arc<Node>,
    session: Session,
}

impl Lease {
    /// Whether no other node can have taken it over yet.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.node.is_alive() && self.node.session() == self.session
    }
}

/// This node, as the others see it.
pub struct Node {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    name: String,
    ttl: Duration,
    started: Instant,
    session: AtomicI64,
    /// Microseconds after `started` until which the session surely lives.
    valid_until: AtomicU64,
    owned: AtomicU64,
    /// Partitions that it owns and is about to hand over: nothing of them is leased
    /// any more.
    giving: AtomicU64,
    /// Whether it hands all of them over, and takes none.
    leaving: AtomicBool,
    /// Why nothing is sent, as [`Node::hold`] reads it.
    hold: AtomicU8,
    /// The partitions that had no owner at the last look.
    stranded: Mutex<u64>,
    look_again: Notify,
    changed: watch::Sender<u64>,
}

/// Partitions as bits.
fn mask(parts: impl IntoIterator<Item = Part>) -> u64 {
    parts.into_iter().fold(0, |m, p| m | 1 << p.get())
}

impl Node {
    /// A node that has no session yet.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>, name: String, ttl: Duration) -> Self {
        Self {
            store,
            metrics,
            name,
            ttl,
            started: Instant::now(),
            session: AtomicI64::new(0),
            valid_until: AtomicU64::new(0),
            owned: AtomicU64::new(0),
            giving: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            hold: AtomicU8::new(0),
            stranded: Mutex::new(0),
            look_again: Notify::new(),
            changed: watch::Sender::new(0),
        }
    }

    /// The session; 0 while there is none.
    #[must_use]
    pub fn session(&self) -> Session {
        Session(self.session.load(Ordering::Acquire))
    }

    /// This node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether no other node can have taken over yet.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.started.elapsed() < self.valid_until()
    }

    fn valid_until(&self) -> Duration {
        Duration::from_micros(self.valid_until.load(Ordering::Acquire))
    }

    /// How often sessions are renewed and looked at.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        self.ttl / BEATS
    }

    /// How long before its end a session is not relied on any more.
    #[must_use]
    pub fn margin(&self) -> Duration {
        self.ttl / MARGIN
    }

    /// How long a beat may take: from the session's end on it is another's to say
    /// who owns what.
    fn patience(&self) -> Duration {
        let most = self.ttl / 2;
        if self.session().0 == 0 {
            return most;
        }
        let end = self.valid_until() + self.margin();
        most.min(end.saturating_sub(self.started.elapsed()))
    }

    /// Whether nothing is sent because the database went back in time.
    #[must_use]
    pub fn is_restored(&self) -> bool {
        self.hold() == Some(Hold::Restored)
    }

    /// Why nothing is sent, though it may be; none where nothing holds it.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        match self.hold.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Hold::Restored),
            _ => Some(Hold::Unknown),
        }
    }

    /// Follows from a look at the timeline.
    pub(crate) fn set_hold(&self, hold: Option<Hold>) {
        let code = match hold {
            None => 0,
            Some(Hold::Restored) => 1,
            Some(Hold::Unknown) => 2,
        };
        if self.hold.swap(code, Ordering::AcqRel) != code {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// The hold of one of its sessions on what was leased to that.
    #[must_use]
    pub fn lease(self: &Arc<Self>, session: Session) -> Lease {
        Lease {
            node: self.clone(),
            session,
        }
    }

    /// Whether this node owns a partition, as far as it knows.
    #[must_use]
    pub fn owns(&self, part: Part) -> bool {
        self.owned.load(Ordering::Acquire) >> part.get() & 1 == 1
    }

    /// The partitions that it owns.
    #[must_use]
    pub fn owned(&self) -> Vec<Part> {
        Part::all().filter(|p| self.owns(*p)).collect()
    }

    /// Told when the session or its partitions change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Begins a session and takes what is free and its own.
    ///
    /// # Errors
    /// Where the store can't be reached.
    pub async fn begin(&self) -> crate::store::Result<()> {
        let sent = self.started.elapsed();
        let session = self.store.begin_session(&self.name, self.ttl).await?;
        self.session.store(session.0, Ordering::Release);
        self.lives_from(sent);
        self.look().await?;
        tracing::info!(node.session = %session, node.partitions = self.owned().len(), "session begun");
        Ok(())
    }

    fn lives_from(&self, sent: Duration) {
        let until = sent + self.ttl.saturating_sub(self.margin());
        self.valid_until.store(
            u64::try_from(until.as_micros()).unwrap_or(u64::MAX),
            Ordering::Release,
        );
    }

    /// Looks who lives and who owns what, and takes what is this node's to take.
    /// Answers what it is to hand over, each with the session that it belongs to.
    pub(super) async fn look(&self) -> crate::store::Result<Vec<(Part, Session)>> {
        let mut stranded = self.stranded.lock().await;
        let session = self.session();
        let nodes = self.store.nodes().await?;
        if !nodes.iter().any(|n| n.session == session) {
            // It has ended, which the heartbeat will find.
            return Ok(Vec::new());
        }
        let leaving = self.leaving.load(Ordering::Acquire);
        let sessions: Vec<i64> = nodes
            .iter()
            .filter(|n| {
                if n.session == session {
                    !leaving
                } else {
                    n.ready
                }
            })
            .map(|n| n.session.0)
            .collect();
        let owners = self.store.partitions().await?;
        let owners: Vec<(Part, i64)> = owners.into_iter().map(|(p, s)| (p, s.0)).collect();
        let before = *stranded;
        let plan = partition::plan(session.0, &owners, &sessions, |p| before & mask([p]) != 0);
        let of = |owner: i64| {
            owners
                .iter()
                .filter(move |(_, o)| *o == owner)
                .map(|(p, _)| *p)
        };
        let owned = if plan.take.is_empty() {
            mask(of(session.0))
        } else {
            mask(self.store.take_partitions(session, &plan.take).await?)
        };
        *stranded = mask(of(0)) & !owned;
        if session == self.session() {
            self.owns_now(owned & !self.giving.load(Ordering::Acquire));
        }
        let give = plan.give.into_iter();
        Ok(give.map(|(part, to)| (part, Session(to))).collect())
    }

    fn owns_now(&self, mask: u64) {
        if self.owned.swap(mask, Ordering::AcqRel) != mask {
            self.metrics
                .partitions_owned
                .set(f64::from(mask.count_ones()));
            tracing::info!(node.partitions = mask.count_ones(), "partitions owned");
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// From now on nothing of these partitions is leased to this node.
    pub(super) fn begin_giving(&self, parts: &[Part]) {
        let giving = mask(parts.iter().copied());
        self.giving.store(giving, Ordering::Release);
        self.owns_now(self.owned.load(Ordering::Acquire) & !giving);
    }

    /// They are another's, or were kept: the next look tells.
    pub(super) fn end_giving(&self) {
        self.giving.store(0, Ordering::Release);
    }

    /// From now on it takes no partitions, and is to hand over all that it has.
    pub(super) fn begin_leaving(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Has it look who lives and who owns what.
    pub(super) fn nudge(&self) {
        self.look_again.notify_one();
    }

    /// Waits for the time of the next look.
    pub(super) async fn wait_to_look(&self) {
        tokio::select! {
            () = self.look_again.notified() => {}
            () = tokio::time::sleep(self.heartbeat()) => {}
        }
    }

    fn lost(&self) {
        self.session.store(0, Ordering::Release);
        self.giving.store(0, Ordering::Release);
        self.owned.store(0, Ordering::Release);
        self.valid_until.store(0, Ordering::Release);
        self.metrics.partitions_owned.set(0.0);
        self.changed.send_modify(|n| *n += 1);
    }

    async fn beat(&self, watch: &Watch) -> crate::store::Result<()> {
        if self.session().0 == 0 {
            return self.begin_again(watch).await;
        }
        let sent = self.started.elapsed();
        if self.store.renew_session(self.session(), self.ttl).await? {
            self.lives_from(sent);
            Ok(())
        } else {
            tracing::warn!(node.session = %self.session(), "session has ended; beginning another");
            self.lost();
            self.begin_again(watch).await
        }
    }

    /// A session may have ended because the database is another by now.
    async fn begin_again(&self, watch: &Watch) -> crate::store::Result<()> {
        watch.look().await?;
        self.begin().await
    }

    /// Renews the session until it is cancelled. Says once that it fails, and
    /// once that it works again.
    pub async fn run(self: Arc<Self>, watch: Arc<Watch>, cancel: CancellationToken) {
        let every = self.heartbeat();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            let result = match tokio::time::timeout(self.patience(), self.beat(&watch)).await {
                Ok(result) => result.map_err(|e| e.to_string()),
                Err(_) => Err("no answer in time".to_owned()),
            };
            self.metrics.troubles.note(
                "session",
                &result,
                "session can't be renewed",
                "session is renewed again",
            );
            if result.is_err() && !self.is_alive() && self.session().0 != 0 {
                tracing::warn!("session is over on this node's own clock: deliveries stop");
                self.lost();
            }
        }
    }

    /// Ends the session: its leases are free at once.
    pub async fn end(&self) {
        let session = self.session();
        self.lost();
        if session.0 != 0
            && let Err(e) = self.store.end_session(session).await
        {
            tracing::warn!(error.message = %e, "session not ended; it runs out by itself");
        }
    }
}
