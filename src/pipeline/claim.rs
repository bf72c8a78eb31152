//! Fetches from the store what is due and not in memory: retries, what another
//! node published, and what did not fit. Woken by hints and by timers; a look at
//! everything that waits comes with every poll, so that a lost hint costs time
//! and nothing else.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{dispatch::Dispatcher, node::Node};
use crate::{
    directory::Directory,
    domain::{
        id::{Micros, Part, SubscriptionId, wall_clock},
        subscription::{Ordering, PARKED_LIFETIME},
    },
    metrics::Metrics,
    store::{Leased, Ordered, Store, Waiting, Want, claim_share},
};

/// The most rows of one statement.
const BATCH: usize = 1024;
/// The most rows that a sweep touches at a time.
const SLICE: i64 = 1000;

pub(super) struct Claimer {
    pub(super) store: Arc<dyn Store>,
    pub(super) directory: Arc<Directory>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) node: Arc<Node>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) poll: Duration,
}

impl Claimer {
    pub(super) async fn run(self, cancel: CancellationToken) {
        let mut looked: Option<Instant> = None;
        while !cancel.is_cancelled() {
            let overdue = looked.is_none_or(|at| at.elapsed() >= self.poll);
            let result = if self.dispatcher.wants_discovery() || overdue {
                looked = Some(Instant::now());
                self.discover().await
            } else {
                Ok(())
            };
            // What is known to be due does not wait for a look that failed.
            let result = self.claim().await.and(result);
            self.metrics.troubles.note(
                "claim",
                &result,
                "due deliveries can't be fetched",
                "due deliveries are fetched again",
            );
            let failing = result.is_err();
            let most = if failing {
                looked = None;
                Duration::from_millis(500)
            } else {
                self.poll
                    .saturating_sub(looked.map_or(Duration::ZERO, |at| at.elapsed()))
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                () = async {
                    if failing {
                        tokio::time::sleep(most).await;
                    } else {
                        self.dispatcher.wait_for_fetch(most).await;
                    }
                } => {}
            }
        }
    }

    async fn claim(&self) -> crate::store::Result<()> {
        loop {
            let fetches = self.dispatcher.fetches(BATCH);
            let session = self.node.session();
            if fetches.is_empty() || !self.node.is_alive() {
                self.dispatcher.fetched(session, &fetches, None);
                return Ok(());
            }
            let wants: Vec<Want> = fetches
                .iter()
                .map(|f| Want {
                    part: f.subscription.part(),
                    subscription: f.subscription,
                    limit: f.limit as i64,
                })
                .collect();
            match self.store.claim(session, &wants).await {
                Ok(rows) => {
                    let cut = cut_short(&wants, &rows);
                    self.dispatcher.fetched(session, &fetches, Some(rows));
                    for w in cut {
                        self.dispatcher.sign(w.part, w.subscription);
                    }
                }
                Err(e) => {
                    self.dispatcher.suspect();
                    self.dispatcher.fetched(session, &fetches, None);
                    return Err(e);
                }
            }
        }
    }

    async fn discover(&self) -> crate::store::Result<()> {
        let waiting = self.store.waiting(&self.node.owned()).await?;
        // What the store counts from is not later than its answer: a look at what
        // is not due yet would find nothing, and leave it to the next poll.
        let now = Instant::now();
        for w in waiting {
            match self.directory.target(w.subscription) {
                Some(target) => match &target.subscription.disabled {
                    None if w.due_in.is_zero() => self.dispatcher.sign(w.part, w.subscription),
                    None => self.dispatcher.wake_at(now + w.due_in, w.subscription),
                    Some(off) => self.give_up(w, off.at).await?,
                },
                None => self.without_subscription(w.part, w.subscription).await?,
            }
        }
        for o in self.store.ordered(&self.node.owned()).await? {
            self.keep_order(o).await?;
        }
        Ok(())
    }

    /// What waits for its turn follows its subscription's ordering, which may have
    /// changed since; that of a key without a head is found by no other look.
    async fn keep_order(&self, o: Ordered) -> crate::store::Result<()> {
        let Some(target) = self.directory.target(o.subscription) else {
            return self.without_subscription(o.part, o.subscription).await;
        };
        let ordering = target.subscription.ordering;
        let differs = match ordering {
            Ordering::Off => true,
            Ordering::Skip => o.blocks || o.parks,
            Ordering::Block => o.parks,
            Ordering::Park => o.blocks,
        };
        let mut changed = 0;
        if differs {
            let store = &self.store;
            changed = store
                .reorder(o.part, o.subscription, ordering, SLICE)
                .await?;
            if changed > 0 && target.subscription.disabled.is_none() {
                self.dispatcher.sign(o.part, o.subscription);
            }
        }
        if ordering == Ordering::Park && o.parks {
            let age = Duration::from_micros(PARKED_LIFETIME as u64);
            let dead = self
                .store
                .give_up_parked(o.part, o.subscription, age, SLICE)
                .await?;
            self.metrics.deliveries_dead.increment(dead);
            changed = changed.max(dead);
        }
        if changed == SLICE as u64 {
            self.dispatcher.look_around();
        }
        Ok(())
    }

    /// What waited too long for a disabled subscription is dead.
    async fn give_up(&self, w: Waiting, disabled_at: Micros) -> crate::store::Result<()> {
        if wall_clock() - disabled_at < PARKED_LIFETIME {
            return Ok(());
        }
        let age = Duration::from_micros(PARKED_LIFETIME as u64);
        let dead = self
            .store
            .give_up(w.part, w.subscription, age, SLICE)
            .await?;
        self.metrics.deliveries_dead.increment(dead);
        if dead == SLICE as u64 {
            self.dispatcher.look_around();
        }
        Ok(())
    }

    /// Deleted, unless this node's configuration is behind: the store knows.
    async fn without_subscription(
        &self,
        part: Part,
        subscription: SubscriptionId,
    ) -> crate::store::Result<()> {
        if self.store.get_subscription(subscription).await?.is_some() {
            self.directory.nudge();
            return Ok(());
        }
        // One slice a look: others are not to wait for a million rows.
        if self.store.cancel(part, subscription, SLICE).await? == SLICE as u64 {
            self.dispatcher.look_around();
        }
        Ok(())
    }
}

/// Of which subscriptions there may be more than their share of bytes let in.
fn cut_short<'a>(wants: &'a [Want], rows: &[Leased]) -> Vec<&'a Want> {
    let mut bytes: HashMap<SubscriptionId, i64> = HashMap::new();
    for row in rows {
        *bytes.entry(row.subscription).or_default() += row.body.len() as i64;
    }
    let share = claim_share(wants);
    let reached = |w: &&Want| bytes.get(&w.subscription).is_some_and(|n| *n >= share);
    wants.iter().filter(reached).collect()
}
