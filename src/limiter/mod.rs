//! Rate limits: in no trailing hour are more calls of a key admitted than its
//! limit.
//!
//! Calls are paid for with units that a lender lent before: the store, and Redis
//! where there is one. Each lends its own part of the limit, on its own clock, to
//! all nodes ([`crate::domain::limit`]). What a node holds it may spend without
//! asking anybody; busy keys are lent ahead of their calls. What was lent and
//! lost, by a killed node or a lost answer, counts like what was spent.

mod key;
mod lenders;
mod redis;

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    key::{KeyState, Lender, REDIS, STORE, Said, parts},
    redis::Redis,
};
use crate::{
    domain::id::{KeyId, Micros, wall_clock},
    metrics::Metrics,
    store::{self, Session, Store},
    tasks::Tasks,
};

/// The longest that a caller waits for the lenders together.
const PATIENCE: Duration = Duration::from_millis(20);
const SHARDS: usize = 16;

/// What becomes of a call whose limit can't be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecided {
    /// It is refused.
    Refuse,
    /// It passes where the store does not answer, up to this node's part of what it
    /// knew to be left of the limit: the last known share. Of a key that the node
    /// knows nothing about none passes.
    Share,
    /// It passes.
    Pass,
}

/// A limit to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Whose calls are counted.
    pub key: KeyId,
    /// Calls in any trailing hour.
    pub limit: i64,
    /// What becomes of a call while it can't be decided.
    pub undecided: Undecided,
}

/// What the limit said of a call, and how it stands after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Whether the call is admitted; a refused one consumed nothing.
    pub allowed: bool,
    /// Calls in any trailing hour.
    pub limit: i64,
    /// Calls left.
    pub remaining: i64,
    /// When the oldest that counts leaves the window, in Unix seconds.
    pub reset: i64,
    /// How long until a call of this cost can be admitted; zero where it is now.
    pub retry_after: Duration,
    /// Whether it was decided without one that should have been asked: Redis,
    /// which is configured, or the store.
    pub degraded: bool,
    /// Whether it is refused for want of an answer, and not of quota.
    pub undecided: bool,
}

/// A clock, in microseconds.
pub type Clock = Arc<dyn Fn() -> Micros + Send + Sync>;

/// What a limiter is made of.
pub struct Parts {
    /// Lends the limits, or their rest.
    pub store: Arc<dyn Store>,
    /// The node's session at the moment, by which other nodes know that it lives.
    pub session: Arc<dyn Fn() -> Session + Send + Sync>,
    /// Where Redis is; lends the most of each limit.
    pub redis: Option<String>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What tests replace.
    pub outside: Outside,
}

/// What tests replace.
pub struct Outside {
    /// A clock that never goes back.
    pub clock: Clock,
    /// Redis' clock for loans; none: its own.
    pub redis_clock: Option<Clock>,
    /// What Redis' keys begin with, with a hash tag that keeps them together.
    pub prefix: String,
}

impl Default for Outside {
    fn default() -> Self {
        let start = Instant::now();
        Self {
            clock: Arc::new(move || crate::domain::id::micros(start.elapsed())),
            redis_clock: None,
            prefix: "onering:{limits}".into(),
        }
    }
}

/// Decides on calls.
pub struct Limiter {
    shards: [Mutex<HashMap<KeyId, KeyState>>; SHARDS],
    hasher: RandomState,
    store: Arc<dyn Store>,
    session: Arc<dyn Fn() -> Session + Send + Sync>,
    redis: Option<Redis>,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// Whether each lender can be asked.
    usable: [AtomicBool; 2],
    /// What leads from this node's monotonic clock to the store's.
    offset: AtomicI64,
    /// Until when it is certain that no other node borrows from the store.
    alone_until: AtomicI64,
    /// Since when it has been so without a gap; never where others do.
    alone_since: AtomicI64,
    /// When all that the store had lent was read last.
    read_at: AtomicI64,
    /// How many nodes lived at the last look.
    nodes: AtomicI64,
    /// Keys to ask each lender about.
    queues: [mpsc::UnboundedSender<KeyId>; 2],
}

impl Limiter {
    /// A limiter that works in the background until it is cancelled, and then
    /// gives back what was not spent. The node's session must have begun: it is
    /// how other nodes know of it.
    ///
    /// # Errors
    /// Where the store can't be read, or the address of Redis is none.
    pub async fn start(
        parts: Parts,
        tasks: &Tasks,
        cancel: &CancellationToken,
    ) -> Result<Arc<Self>, store::StoreError> {
        let redis = parts
            .redis
            .as_deref()
            .map(|url| Redis::new(url, &parts.outside))
            .transpose()
            .map_err(|e| store::StoreError::Unfit(format!("ONERING_REDIS_URL: {e}")))?;
        let (store_queue, store_asked) = mpsc::unbounded_channel();
        let (redis_queue, redis_asked) = mpsc::unbounded_channel();
        let offset = wall_clock() - (parts.outside.clock)();
        let limiter = Arc::new(Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            store: parts.store,
            session: parts.session,
            redis,
            metrics: parts.metrics,
            clock: parts.outside.clock,
            usable: [AtomicBool::new(true), AtomicBool::new(false)],
            offset: AtomicI64::new(offset),
            alone_until: AtomicI64::new(Micros::MIN),
            alone_since: AtomicI64::new(Micros::MAX),
            read_at: AtomicI64::new(Micros::MIN),
            nodes: AtomicI64::new(1),
            queues: [store_queue, redis_queue],
        });
        if limiter.store.is_shared() && limiter.store.live_sessions().await? > 1 {
            // A node that was alone until now may believe it for so long.
            tokio::time::sleep(lenders::SURE).await;
        }
        limiter.look_at_store().await?;
        // While it reads it must not lose sight of who else begins.
        tasks.spawn(
            "limits in the store",
            limiter.clone().follow_store(cancel.clone()),
        );
        limiter.read_loans().await;
        if limiter.redis.is_some() {
            limiter.look_at_redis().await;
            tasks.spawn(
                "limits in Redis",
                limiter.clone().follow_redis(cancel.clone()),
            );
            let lend = limiter.clone().lend(REDIS, redis_asked, cancel.clone());
            tasks.spawn("limits lent by Redis", lend);
        }
        tasks.spawn(
            "limits read from the store",
            limiter.clone().keep_sure(cancel.clone()),
        );
        let lend = limiter.clone().lend(STORE, store_asked, cancel.clone());
        tasks.spawn("limits lent by the store", lend);
        tasks.spawn("limits tidied", limiter.clone().tidy(cancel.clone()));
        Ok(limiter)
    }

    /// Decides on a call that counts as `cost`; 0 looks and consumes nothing.
    /// Answers within 20 ms.
    pub async fn take(&self, policy: Policy, cost: i64) -> State {
        let start = tokio::time::Instant::now();
        // The one who is asked first leaves the other some time.
        let mut skipped = [false; 2];
        loop {
            // Made under the lock: no answer is missed.
            let (changed, at) = {
                let now = (self.clock)();
                let mut lenders = self.lenders(policy.limit, now);
                let count = if self.redis.is_some() { 2 } else { 1 };
                let lenders = &mut lenders[..count];
                for (lender, skipped) in lenders.iter_mut().zip(skipped) {
                    lender.slow = skipped;
                }
                let redis = lenders.get(REDIS);
                let degraded = redis.is_some_and(|l| !l.can_be_asked()) || !self.is_usable(STORE);
                let mut shard = self.shard(policy.key);
                let key = self.entry(&mut shard, policy.key, now);
                match key.decide(policy.limit, cost, now, lenders, degraded) {
                    Said::State(state) => {
                        if let Some(at) = key.runs_low(now, lenders) {
                            self.ask(key, policy.key, at, 0);
                        }
                        return state;
                    }
                    Said::Unsure => {
                        self.metrics.limiter_unsure.increment(1);
                        let state =
                            key.decide_alone(cost, policy.undecided, now, lenders, degraded);
                        if key.has_news(STORE) && self.is_usable(STORE) {
                            self.ask(key, policy.key, STORE, 0);
                        }
                        return state;
                    }
                    Said::Ask(at) => {
                        let missing = key.missing(cost);
                        self.ask(key, policy.key, at, missing);
                        (key.changed.clone().notified_owned(), at)
                    }
                }
            };
            let patience = if at == REDIS { PATIENCE / 2 } else { PATIENCE };
            let answer = tokio::time::timeout_at(start + patience, changed).await;
            skipped[at] |= answer.is_err();
        }
    }

    /// Whether limits are decided without one that should be asked: Redis, which
    /// is configured, or the store.
    pub fn is_degraded(&self) -> bool {
        let redis = self.redis.is_some() && !self.is_usable(REDIS);
        redis || !self.is_usable(STORE)
    }

    /// Whether Redis can be asked; none where it is not configured.
    pub fn redis_answers(&self) -> Option<bool> {
        self.redis.is_some().then(|| self.is_usable(REDIS))
    }

    /// How many keys it remembers something of.
    pub fn keys(&self) -> usize {
        let count = |shard: &Mutex<HashMap<_, _>>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).len()
        };
        self.shards.iter().map(count).sum()
    }

    /// Whether it holds nothing that was lent, and everything that was spent is
    /// told.
    pub fn is_settled(&self) -> bool {
        self.shards.iter().all(|shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.values().all(KeyState::is_settled)
        })
    }

    fn is_usable(&self, at: usize) -> bool {
        self.usable[at].load(Ordering::Acquire)
    }

    /// Whether no other node borrows from the store, and all that it lent is known.
    fn is_sure(&self, now: Micros) -> bool {
        now < self.alone_until.load(Ordering::Acquire) && self.was_sure()
    }

    /// Whether it was so when the store was looked at last.
    fn was_sure(&self) -> bool {
        self.read_at.load(Ordering::Acquire) >= self.alone_since.load(Ordering::Acquire)
    }

    fn lenders(&self, limit: i64, now: Micros) -> [Lender; 2] {
        let parts = parts(limit, self.redis.is_some());
        let lender = |at: usize| Lender {
            part: parts[at],
            usable: self.is_usable(at),
            slow: false,
            sure: at == STORE && self.is_sure(now),
            alone: at == STORE && self.was_sure(),
            nodes: self.nodes.load(Ordering::Relaxed),
        };
        [lender(STORE), lender(REDIS)]
    }

    fn shard(&self, key: KeyId) -> MutexGuard<'_, HashMap<KeyId, KeyState>> {
        let bytes = self.hasher.hash_one(key).to_le_bytes();
        self.shards[usize::from(bytes[0]) % SHARDS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn entry<'a>(
        &self,
        shard: &'a mut HashMap<KeyId, KeyState>,
        key: KeyId,
        now: Micros,
    ) -> &'a mut KeyState {
        shard
            .entry(key)
            .or_insert_with(|| KeyState::new(now, self.offset()))
    }

    fn offset(&self) -> Micros {
        self.offset.load(Ordering::Relaxed)
    }

    fn set_offset(&self, store: Micros) {
        let offset = store - (self.clock)();
        self.offset.store(offset, Ordering::Relaxed);
    }

    fn ask(&self, state: &mut KeyState, key: KeyId, at: usize, missing: i64) {
        if state.ask(at, missing) {
            // Nobody listens only where the node has stopped.
            let _ = self.queues[at].send(key);
        }
    }
}
