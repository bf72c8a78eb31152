//! What is known of receivers: found when a partition is taken over, stored when it
//! changes, told to those who want to know, and followed: a receiver that works again
//! gets what failed meanwhile, one that fails for days is switched off.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    announce::{Announcer, Why},
    dispatch::Dispatcher,
    lanes::{Bad, Changed},
    node::Node,
};
use crate::{
    domain::{
        breaker::Turn,
        event::{BREAKER_CLOSED, BREAKER_OPENED, SUBSCRIPTION_FAILING, rfc3339},
        id::{SubscriptionId, wall_clock},
    },
    metrics::Metrics,
    settings::Live,
    store::{Result, Store},
};

/// The most rows that a statement revives.
const SLICE: i64 = 1000;
/// How often it is looked how many nodes share the hosts.
const EVERY: Duration = Duration::from_secs(5);
/// The least time between two breakers of one subscription that are announced.
const AGAIN: Duration = Duration::from_secs(600);
/// How many subscriptions are remembered for that.
const REMEMBERED: usize = 10_000;

#[derive(Clone)]
pub(super) struct Receivers {
    pub(super) store: Arc<dyn Store>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) node: Arc<Node>,
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) announcer: Announcer,
}

/// Which breakers were announced.
#[derive(Default)]
struct Told(HashMap<SubscriptionId, (Instant, bool)>);

impl Told {
    /// Whether a breaker that turned is announced. One that flaps is not, each time.
    fn announces(&mut self, subscription: SubscriptionId, turn: Turn, now: Instant) -> bool {
        match turn {
            Turn::Opened => {
                if self.0.len() >= REMEMBERED {
                    self.0
                        .retain(|_, (at, _)| now.saturating_duration_since(*at) < AGAIN);
                }
                let known = self.0.get_mut(&subscription);
                if let Some((at, announced)) = known
                    && now.saturating_duration_since(*at) < AGAIN
                {
                    *announced = false;
                    return false;
                }
                self.0.insert(subscription, (now, true));
                true
            }
            Turn::Closed => self
                .0
                .get(&subscription)
                .is_none_or(|(_, announced)| *announced),
            Turn::Reopened => false,
        }
    }
}

/// What is to be stored, in turns.
#[derive(Default)]
struct Queue(VecDeque<Changed>);

impl Queue {
    /// It takes one more turn, after all others; those of its own subscription that came
    /// later stay behind it.
    fn again(&mut self, changed: Changed) {
        let subscription = changed.subscription;
        let (later, others) = std::mem::take(&mut self.0)
            .into_iter()
            .partition::<VecDeque<_>, _>(|c| c.subscription == subscription);
        self.0 = others;
        self.0.push_back(changed);
        self.0.extend(later);
    }
}

/// What became of a change that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Stored,
    /// Somebody else knows better.
    NotOurs,
    /// There is more to do before it is stored.
    NotYet,
}

impl Receivers {
    /// Finds how the receivers are of partitions that are taken over, before anything
    /// is sent to them.
    pub(super) async fn find(self, cancel: CancellationToken) {
        loop {
            let found = self.load().await;
            self.metrics.troubles.note(
                "receivers found",
                &found,
                "how receivers are can't be read",
                "how receivers are is read again",
            );
            let wait = if found.is_err() {
                Duration::from_millis(500)
            } else {
                EVERY
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.dispatcher.taken() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn load(&self) -> Result<()> {
        let most = self.live.load().host_max_in_flight;
        if most > 0 {
            let nodes = usize::try_from(self.store.live_sessions().await?).unwrap_or(1);
            self.dispatcher.share_hosts((most / nodes.max(1)).max(1));
        } else {
            self.dispatcher.share_hosts(0);
        }
        let (session, parts) = self.dispatcher.unknown();
        if session.0 != 0 && !parts.is_empty() {
            let states = self.store.receivers_in(&parts).await?;
            self.dispatcher.load(session, &parts, &states);
        }
        Ok(())
    }

    /// Stores what changes, each subscription's in its order, until it is cancelled and
    /// all is stored.
    pub(super) async fn keep(
        self,
        mut changed: mpsc::UnboundedReceiver<Changed>,
        cancel: CancellationToken,
    ) {
        let mut told = Told::default();
        let mut queue = Queue::default();
        loop {
            if queue.0.is_empty() {
                let next = tokio::select! {
                    biased;
                    next = changed.recv() => next,
                    () = cancel.cancelled() => return,
                };
                let Some(next) = next else { return };
                queue.0.push_back(next);
            }
            while let Ok(next) = changed.try_recv() {
                queue.0.push_back(next);
            }
            let Some(next) = queue.0.pop_front() else {
                continue;
            };
            match self.stored(&next, &cancel).await {
                _ if cancel.is_cancelled() => {}
                Kept::Stored => self.announce(&next, &mut told, &cancel).await,
                Kept::NotYet => queue.again(next),
                Kept::NotOurs => {}
            }
        }
    }

    /// Stores it, or takes a step towards that.
    async fn stored(&self, changed: &Changed, cancel: &CancellationToken) -> Kept {
        let mut wait = Duration::from_millis(50);
        while self.node.owns(changed.subscription.part()) {
            let stored = self.store_once(changed).await;
            self.metrics.troubles.note(
                "receivers kept",
                &stored,
                "how receivers are can't be stored yet",
                "how receivers are is stored again",
            );
            if let Ok(stored) = stored {
                return stored;
            }
            if cancel.is_cancelled() {
                return Kept::NotOurs;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
        // Another node's by now.
        self.metrics.troubles.note(
            "receivers kept",
            &Ok::<(), crate::store::StoreError>(()),
            "",
            "how receivers are is another node's to store",
        );
        Kept::NotOurs
    }

    /// A closed breaker is stored after what follows of it: whoever takes over in
    /// between asks the receiver once more and does it again. Of what waits for it one
    /// slice is revived at a time: no other receiver's change waits for a million rows.
    async fn store_once(&self, changed: &Changed) -> Result<Kept> {
        let subscription = changed.subscription;
        let part = subscription.part();
        if changed.turn == Some(Turn::Closed) {
            let asked = changed.asked();
            let revived = self.store.revive(part, subscription, asked, SLICE).await?;
            self.dispatcher.sign(part, subscription);
            if revived >= SLICE as u64 {
                return Ok(Kept::NotYet);
            }
        }
        let state = changed.state(self.dispatcher.clock());
        let opened = changed.turn == Some(Turn::Opened);
        let stored = self
            .store
            .save_receiver(self.node.session(), &state, opened)
            .await?;
        Ok(if stored { Kept::Stored } else { Kept::NotOurs })
    }

    async fn announce(&self, changed: &Changed, told: &mut Told, cancel: &CancellationToken) {
        let (tenant, id) = (changed.tenant, changed.subscription);
        if let Some(turn) = changed.turn {
            self.log(changed, turn);
            let event = match turn {
                Turn::Opened => Some((
                    BREAKER_OPENED,
                    json!({"failures_in_a_row": changed.failures()}),
                )),
                Turn::Closed => Some((
                    BREAKER_CLOSED,
                    json!({"open_seconds": changed.outage / 1_000_000}),
                )),
                Turn::Reopened => None,
            };
            if let Some((event_type, data)) = event
                && told.announces(id, turn, Instant::now())
            {
                self.announcer.tell(tenant, id, event_type, data).await;
            }
        }
        match changed.bad {
            Some(Bad::Failing { long, left }) => {
                let now = wall_clock();
                let data = json!({
                    "failing_since": rfc3339(now - long), "disable_time": rfc3339(now + left),
                });
                self.announcer
                    .tell(tenant, id, SUBSCRIPTION_FAILING, data)
                    .await;
            }
            Some(Bad::Failed) => self.disable(id, cancel).await,
            None => {}
        }
    }

    fn log(&self, changed: &Changed, turn: Turn) {
        let (id, failures) = (changed.subscription, changed.failures());
        match turn {
            Turn::Opened => {
                self.metrics.breakers_opened.increment(1);
                tracing::warn!(
                    subscription.id = %id, breaker.failures = failures,
                    "breaker opened: the receiver is left alone"
                );
            }
            Turn::Reopened => {
                tracing::debug!(subscription.id = %id, breaker.failures = failures, "probe failed");
            }
            Turn::Closed => {
                tracing::info!(
                    subscription.id = %id, breaker.open_s = changed.outage / 1_000_000,
                    "breaker closed: the receiver works again"
                );
            }
        }
    }

    async fn disable(&self, id: SubscriptionId, cancel: &CancellationToken) {
        let (mut wait, at) = (Duration::from_millis(100), wall_clock());
        loop {
            let disabled = self.announcer.disable(id, Why::Failing, at).await;
            self.metrics.troubles.note(
                "failing receivers",
                &disabled,
                "failing receiver's subscription not disabled yet",
                "failing receivers' subscriptions are disabled again",
            );
            if disabled.is_ok() || cancel.is_cancelled() {
                return;
            }
            if !self.node.owns(id.part()) {
                self.metrics.troubles.note(
                    "failing receivers",
                    &Ok::<(), crate::store::StoreError>(()),
                    "",
                    "failing receivers are another node's to disable",
                );
                return;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Part;

    // A6: one that takes many turns holds up nobody but what came later of its own.
    #[test]
    fn changes_take_turns() {
        let ids = [1, 2, 3].map(|n| SubscriptionId::new(n, Part::new(1)));
        let order = |queue: &Queue| -> Vec<usize> {
            let place = |c: &Changed| ids.iter().position(|id| *id == c.subscription).unwrap();
            queue.0.iter().map(place).collect()
        };
        let mut queue = Queue::default();
        for n in [0, 1, 0, 2] {
            queue.0.push_back(Changed::of(ids[n]));
        }
        let first = queue.0.pop_front().unwrap();
        queue.again(first);
        assert_eq!(order(&queue), [1, 2, 0, 0]);
    }

    // A7: a breaker that flaps is not announced each time, and its closing only
    // where its opening was.
    #[test]
    fn flapping_is_told_once() {
        let id = SubscriptionId::new(1, Part::new(1));
        let mut told = Told::default();
        let start = Instant::now();
        assert!(told.announces(id, Turn::Opened, start));
        assert!(!told.announces(id, Turn::Reopened, start));
        assert!(told.announces(id, Turn::Closed, start));
        let soon = start + AGAIN / 2;
        assert!(!told.announces(id, Turn::Opened, soon));
        assert!(!told.announces(id, Turn::Closed, soon));
        assert!(told.announces(id, Turn::Opened, start + AGAIN));
        assert!(told.announces(id, Turn::Closed, start + AGAIN));
    }
}
