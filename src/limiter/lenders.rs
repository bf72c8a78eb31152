//! What runs in the background: asking the lenders, seeing how they stand, and
//! tidying up.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Limiter,
    key::{Copies, REDIS, STORE, parts},
    redis::{Generation, Redis, RedisError},
};
use crate::{
    domain::{
        id::{KeyId, Micros, micros},
        limit::{Answer, Ask, HOUR},
    },
    store,
};

/// The most keys that are asked for together.
const BATCH: usize = 256;
/// How often the lenders are looked at.
const EVERY: Duration = Duration::from_millis(500);
/// How long one look may take.
const LOOK: Duration = Duration::from_secs(1);
/// How long reading all that the store lent may take.
const READ: Duration = Duration::from_secs(30);
/// How long a node is certain to be alone after it looked: a node that begins
/// waits for so long.
pub(super) const SURE: Duration = Duration::from_millis(1200);
/// How long a node whose session has ended has to tell Redis what it forgot, before
/// it decides again: for the others it is waited.
const GRACE: Duration = Duration::from_secs(3);
/// How long what was lent before a generation may count. Then there is nothing left
/// to be told.
const OVER: Micros = HOUR + 2 * 60_000_000;
/// The pauses between attempts to reach Redis. With a look's length the longest
/// stays below [`GRACE`].
const BACK_OFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// How long giving back at the end may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// A lender's answer, with what Redis holds of the key.
pub(super) struct Lent {
    pub(super) answer: Answer,
    pub(super) copies: Copies,
}

impl Limiter {
    fn say(&self, at: usize, usable: bool, why: &str) {
        if self.usable[at].swap(usable, Ordering::AcqRel) != usable {
            let lender = if at == REDIS { "redis" } else { "store" };
            if usable {
                tracing::info!(limiter.lender = lender, "rate limits are kept by it again");
            } else {
                tracing::warn!(
                    alert = "rate_limiter_degraded", limiter.lender = lender, error.message = %why,
                    "rate limits are decided without it"
                );
            }
        }
        let degraded = if self.is_degraded() { 1.0 } else { 0.0 };
        self.metrics.limiter_degraded.set(degraded);
    }

    /// Asks a lender about the keys of its queue, many at a time, until it is
    /// cancelled; gives back then what was not spent.
    pub(super) async fn lend(
        self: Arc<Self>,
        at: usize,
        mut asked: mpsc::UnboundedReceiver<KeyId>,
        cancel: CancellationToken,
    ) {
        let mut keys = Vec::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                n = asked.recv_many(&mut keys, BATCH) => if n == 0 { break },
            }
            self.ask_about(at, &std::mem::take(&mut keys), false).await;
        }
        let farewell = tokio::time::timeout(FAREWELL, self.give_all_back(at));
        if farewell.await.is_err() {
            tracing::warn!("lent calls were not given back: they count for an hour");
        }
    }

    /// Asks a lender about keys; only gives back where the node is `leaving`.
    async fn ask_about(&self, at: usize, keys: &[KeyId], leaving: bool) {
        let sent = (self.clock)();
        let asks: Vec<Ask> = keys
            .iter()
            .filter_map(|id| {
                let mut shard = self.shard(*id);
                let key = shard.get_mut(id)?;
                let part = parts(key.limit(), self.redis.is_some())[at];
                let mut ask = key.question(*id, at, part, sent);
                ask.want = if leaving { 0 } else { ask.want };
                Some(ask)
            })
            .collect();
        let generation = self.redis.as_ref().map(Redis::generation);
        let answers = self.lent(at, &asks).await;
        let now = (self.clock)();
        if let (STORE, Some(Some(lent))) = (at, answers.first()) {
            self.set_offset(lent.answer.now);
        }
        let mut answers = answers.into_iter();
        for ask in &asks {
            let mut shard = self.shard(ask.key);
            let Some(key) = shard.get_mut(&ask.key) else {
                continue;
            };
            // What a Redis lent that has forgotten since is not counted there.
            let stands = at == STORE || self.redis.as_ref().map(Redis::generation) == generation;
            match answers.next().flatten().filter(|_| stands) {
                Some(lent) => {
                    if at == REDIS {
                        key.copies = lent.copies;
                    }
                    key.answered(at, sent, now, lent.answer);
                }
                None => key.failed(at),
            }
            if key.has_news(at) && self.is_usable(at) && !leaving {
                self.ask(key, ask.key, at, 0);
            }
        }
    }

    /// A lender's answers; none for what it did not answer.
    async fn lent(&self, at: usize, asks: &[Ask]) -> Vec<Option<Lent>> {
        if at == REDIS {
            // Not before it was looked whether it still knows what it lent.
            let Some(redis) = self.redis.as_ref().filter(|_| self.is_usable(REDIS)) else {
                return Vec::new();
            };
            return match redis.lend(asks).await {
                Ok(lent) => lent.into_iter().map(Some).collect(),
                Err(e) => {
                    self.say(REDIS, false, &e.to_string());
                    redis.look.notify_one();
                    Vec::new()
                }
            };
        }
        match self.store.lend(asks).await {
            Ok(answers) => {
                let plain = |answer| Lent {
                    answer,
                    copies: Copies::new(),
                };
                answers.into_iter().map(|a| Some(plain(a))).collect()
            }
            // Swept away in between: it is there the next time.
            Err(store::StoreError::Conflict) => Vec::new(),
            Err(e) => {
                self.metrics.store_errors.increment(1);
                self.say(STORE, false, &e.to_string());
                Vec::new()
            }
        }
    }

    /// Looks whether the store answers, and whether this node is alone.
    pub(super) async fn look_at_store(&self) -> store::Result<()> {
        let sent = (self.clock)();
        let nodes = if self.store.is_shared() {
            self.store.live_sessions().await?.max(1)
        } else {
            1
        };
        self.nodes.store(nodes, Ordering::Relaxed);
        if nodes == 1 {
            if sent >= self.alone_until.load(Ordering::Acquire) {
                // Until now others may have borrowed what is not known here.
                self.alone_since.store((self.clock)(), Ordering::Release);
            }
            let until = if self.store.is_shared() {
                sent + micros(SURE)
            } else {
                Micros::MAX
            };
            self.alone_until.store(until, Ordering::Release);
        } else {
            self.alone_until.store(Micros::MIN, Ordering::Release);
            self.alone_since.store(Micros::MAX, Ordering::Release);
        }
        self.say(STORE, true, "");
        Ok(())
    }

    /// Reads all that the store lent, where this node is alone and does not know it.
    pub(super) async fn read_loans(&self) {
        let sent = (self.clock)();
        if sent >= self.alone_until.load(Ordering::Acquire) || self.was_sure() {
            return;
        }
        let (clock, windows) = match tokio::time::timeout(READ, self.store.limit_windows()).await {
            Ok(Ok(read)) => read,
            Ok(Err(e)) => {
                tracing::debug!(error.message = %e, "what the store lent is not known yet");
                return;
            }
            Err(_) => {
                tracing::debug!("what the store lent is not read in time");
                return;
            }
        };
        self.set_offset(clock);
        for (id, mut window) in windows {
            let moved = window.pull_in(clock);
            let mut shard = self.shard(id);
            let key = self.entry(&mut shard, id, sent);
            key.loaded(window, sent, self.offset());
            if moved {
                // So that the store moves the ends too: from now on, not from when
                // this node needs to ask.
                self.ask(key, id, STORE, 0);
            }
        }
        self.read_at.store(sent, Ordering::Release);
    }

    /// Reads what the store lent whenever the node is alone anew, however long that
    /// takes: the store is looked at meanwhile.
    pub(super) async fn keep_sure(self: Arc<Self>, cancel: CancellationToken) {
        let read = async {
            loop {
                tokio::time::sleep(EVERY).await;
                self.read_loans().await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = read => {}
        }
    }

    pub(super) async fn follow_store(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            // As a loan is made, but for nobody: a store that answers may still not
            // take anything.
            let look = async {
                self.store.lend(&[]).await?;
                self.look_at_store().await
            };
            match tokio::time::timeout(LOOK, look).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => self.say(STORE, false, &e.to_string()),
                Err(_) => self.say(STORE, false, "no answer in time"),
            }
        }
    }

    /// Looks whether Redis answers and still knows what it lent.
    ///
    /// Its memory may be gone, or be that of an earlier time: then it has no
    /// generation, or one of another process of Redis. A new generation begins;
    /// every node tells what it knows of the last hour, however long it takes, and
    /// decides by Redis again when all that live have done so.
    pub(super) async fn look_at_redis(&self) -> bool {
        let renewed = match tokio::time::timeout(LOOK, self.generation()).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(generation))) => self.renew(generation).await,
            Ok(Err(e)) => Err(e),
            Err(_) => Err(RedisError::Late),
        };
        match renewed {
            Ok(()) => self.say(REDIS, true, ""),
            Err(ref e) => self.say(REDIS, false, &e.to_string()),
        }
        renewed.is_ok()
    }

    /// Redis' generation where it is another than the one that is decided by.
    async fn generation(&self) -> Result<Option<Generation>, RedisError> {
        let Some(redis) = &self.redis else {
            return Ok(None);
        };
        let found = redis.look().await?;
        Ok((redis.generation() != found.name).then_some(found))
    }

    async fn renew(&self, generation: Generation) -> Result<(), RedisError> {
        let Some(redis) = &self.redis else {
            return Ok(());
        };
        let Generation { name, age, now } = generation;
        self.say(REDIS, false, "it has forgotten what it lent");
        // From here on no answer of the last generation is taken: all that was is
        // among the copies.
        redis.set_generation("".into());
        let known = |id: KeyId| {
            let shard = self.shard(id);
            let copies = shard.get(&id).map_or(&[][..], |k| &k.copies);
            let counted = copies.iter().filter(|(ends, ..)| ends + HOUR > now);
            counted.copied().collect()
        };
        redis.seed(&name, || self.keys_in_redis(), known).await?;
        let told = redis.note_told(&name, (self.session)()).await?;
        if !told.by_all() {
            if age < micros(GRACE) && !self.is_sure((self.clock)()) {
                return Err(RedisError::Seeding);
            }
            if age < OVER {
                let live = tokio::time::timeout(LOOK, self.store.nodes()).await;
                let live = live.map_err(|_| RedisError::Late)??;
                if !live.iter().all(|node| told.by(node.session)) {
                    return Err(RedisError::Seeding);
                }
            }
            redis.note_all_told(&name).await?;
        }
        redis.set_generation(name);
        Ok(())
    }

    /// Keys of which Redis lent something, as far as is known.
    fn keys_in_redis(&self) -> Vec<KeyId> {
        let mut keys = Vec::new();
        for shard in &self.shards {
            let shard = shard
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let known = shard.iter().filter(|(_, k)| !k.copies.is_empty());
            keys.extend(known.map(|(id, _)| *id));
        }
        keys
    }

    /// Takes in what Redis knows, so that it can be told again what was lent to
    /// nodes that have ended since.
    async fn recall(&self, redis: &Redis) -> Result<(), RedisError> {
        let now = (self.clock)();
        for (id, copies) in redis.recall().await? {
            let mut shard = self.shard(id);
            let key = self.entry(&mut shard, id, now);
            if key.copies.is_empty() {
                key.copies = copies;
            }
        }
        Ok(())
    }

    pub(super) async fn follow_redis(self: Arc<Self>, cancel: CancellationToken) {
        let Some(redis) = &self.redis else { return };
        let mut pause = BACK_OFF[0];
        let mut well = self.is_usable(REDIS);
        let mut recalled: Arc<str> = "".into();
        loop {
            let generation = redis.generation();
            if well && generation != recalled {
                // However long it takes: limits are decided meanwhile.
                let done = tokio::select! {
                    () = cancel.cancelled() => return,
                    done = self.recall(redis) => done,
                };
                match done {
                    Ok(()) => recalled = generation,
                    Err(e) => {
                        tracing::debug!(error.message = %e, "what Redis lent is not known yet");
                    }
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = redis.look.notified(), if well => {}
                () = tokio::time::sleep(if well { EVERY } else { pause }) => {}
            }
            well = tokio::select! {
                () = cancel.cancelled() => return,
                well = self.look_at_redis() => well,
            };
            pause = if well {
                BACK_OFF[0]
            } else {
                (pause * 2).min(BACK_OFF[1])
            };
        }
    }

    /// Gives back what was not spent in time, and forgets keys that nobody uses.
    pub(super) async fn tidy(self: Arc<Self>, cancel: CancellationToken) {
        for shard in self.shards.iter().cycle() {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(300)) => {}
            }
            let now = (self.clock)();
            let mut shard = shard
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            shard.retain(|id, key| {
                key.expire(now);
                for at in [STORE, REDIS] {
                    if key.has_news(at) && self.is_usable(at) {
                        self.ask(key, *id, at, 0);
                    }
                }
                !key.is_over(now)
            });
        }
    }

    async fn give_all_back(&self, at: usize) {
        let mut keys = Vec::new();
        for shard in &self.shards {
            let mut shard = shard
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let with_news = shard.iter_mut().filter_map(|(id, key)| {
                key.give_up();
                key.has_news(at).then_some(*id)
            });
            keys.extend(with_news);
        }
        for keys in keys.chunks(BATCH) {
            self.ask_about(at, keys, true).await;
        }
    }
}
