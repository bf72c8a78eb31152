//! Sweeps and bookkeeping, each on its own timer. A sweep that fails is said
//! once and tried again at its next time.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    announce::{Death, is_announced},
    dispatch::Dispatcher,
    node::Node,
    publish::Ledger,
};
use crate::{
    domain::id::DeliveryId,
    metrics::Metrics,
    settings::Live,
    store::{Finish, Forgotten, Session, Settle, Store},
};

/// The most rows that a sweep touches at a time.
const SLICE: i64 = 1000;

pub(super) struct Upkeep {
    pub(super) store: Arc<dyn Store>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) node: Arc<Node>,
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) ledger: Arc<Ledger>,
    /// Told of deliveries that were given up.
    pub(super) deaths: mpsc::UnboundedSender<Death>,
}

/// A sweep's timer.
struct Timer {
    every: Duration,
    next: Instant,
}

impl Timer {
    fn new(every: Duration) -> Self {
        Self {
            every,
            next: Instant::now() + every,
        }
    }

    /// Due after that time, as what failed is tried again sooner.
    fn again_in(&mut self, wait: Duration) {
        self.next = Instant::now() + wait;
    }

    fn is_due(&mut self) -> bool {
        let due = Instant::now() >= self.next;
        if due {
            self.next = Instant::now() + self.every;
        }
        due
    }
}

impl Upkeep {
    pub(super) async fn run(self, cancel: CancellationToken) {
        let mut often = Timer::new(Duration::from_secs(1));
        let mut sometimes = Timer::new(Duration::from_secs(5));
        let mut seldom = Timer::new(Duration::from_secs(20));
        let mut minutely = Timer::new(Duration::from_secs(60));
        let mut hourly = Timer::new(Duration::from_secs(3600));
        let mut unknown = HashMap::new();
        let mut session = self.node.session();
        let (mut more_to_forget, mut forgetting_failed) = (true, false);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(Duration::from_millis(250)) => {}
            }
            self.dispatcher.tidy();
            if self.node.session() != session {
                session = self.node.session();
                self.ledger.new_session();
                unknown.clear();
            }
            if often.is_due() {
                self.told("stored bytes", self.count(session).await);
                self.told("bury", self.bury().await);
            }
            if seldom.is_due() {
                self.told("free lost leases", self.free_lost().await);
            }
            if sometimes.is_due() {
                let look = self.dispatcher.take_suspicion() || !unknown.is_empty();
                if look {
                    let looked = self.reconcile(session, &mut unknown).await;
                    if self.told("reconcile leases", looked).is_none() {
                        self.dispatcher.suspect();
                    }
                }
                self.told("lifetimes", self.end_lifetimes().await);
                self.metrics.settle();
            }
            if minutely.is_due() {
                self.told("add up counters", self.add_up().await);
                more_to_forget |= forgetting_failed;
            }
            if more_to_forget {
                let forgotten = self.told("retention", self.forget().await);
                more_to_forget = forgotten == Some(Forgotten::Some);
                forgetting_failed = forgotten.is_none();
            }
            if hourly.is_due() {
                more_to_forget = true;
                let days = self.told("days ahead", self.store.prepare_days().await);
                let calls = self.told("counted calls", self.store.forget_calls().await);
                let limits = self.told("limits", self.store.forget_limit_windows().await);
                if days.is_none() || calls.is_none() || limits.is_none() {
                    hourly.again_in(Duration::from_secs(60));
                }
                self.dispatcher.suspect();
            }
        }
        self.told("stored bytes", self.count(session).await);
    }

    fn told<T>(&self, what: &'static str, result: crate::store::Result<T>) -> Option<T> {
        self.metrics.troubles.note(
            what,
            &result,
            "upkeep fails; it is tried again",
            "upkeep works again",
        );
        result.ok()
    }

    async fn count(&self, session: Session) -> crate::store::Result<()> {
        if session.0 == 0 {
            return Ok(());
        }
        let usage = self.ledger.usage();
        if !usage.is_empty() {
            self.store
                .note_usage(session, &usage)
                .await
                .inspect_err(|_| self.ledger.not_written(&usage))?;
        }
        self.ledger.set_totals(self.store.stored_bytes().await?);
        Ok(())
    }

    async fn bury(&self) -> crate::store::Result<()> {
        let owned = self.node.owned();
        while !owned.is_empty() {
            let dead = self.store.bury(&owned, SLICE).await?;
            let count = dead.len() as u64;
            self.metrics.deliveries_dead.increment(count);
            for d in dead.into_iter().filter(|d| is_announced(&d.event_type)) {
                let _ = self.deaths.send(Death {
                    tenant: d.tenant,
                    subscription: d.subscription,
                    delivery: Some(d.id),
                    count: 1,
                    reason: d.reason,
                });
            }
            if count > 0 {
                // What waited behind one of them may be due.
                self.dispatcher.look_around();
            }
            if count < SLICE as u64 {
                break;
            }
        }
        Ok(())
    }

    /// Deletes subscriptions that nobody has taken from for as long as they live
    /// then. Whoever takes from one on this node keeps it.
    async fn end_lifetimes(&self) -> crate::store::Result<()> {
        let (all, open) = self.dispatcher.mortal();
        if all == 0 {
            return Ok(());
        }
        for some in open.chunks(500) {
            self.store.prolong_subscriptions(some).await?;
        }
        let ended = self.store.end_subscriptions(SLICE).await?;
        for id in &ended {
            tracing::info!(subscription.id = %id, "subscription deleted: nobody takes from it");
        }
        if !ended.is_empty() {
            self.dispatcher.look_around();
        }
        Ok(())
    }

    async fn add_up(&self) -> crate::store::Result<()> {
        let owned = self.node.owned();
        while !owned.is_empty() && self.store.add_up(&owned, SLICE).await? == SLICE as u64 {}
        Ok(())
    }

    async fn free_lost(&self) -> crate::store::Result<()> {
        let owned = self.node.owned();
        if !owned.is_empty() && self.store.free_lost(&owned).await? > 0 {
            self.dispatcher.look_around();
        }
        Ok(())
    }

    /// A statement whose answer was lost may have leased rows to this node that
    /// it does not know of: nobody would send them while its session lives. What
    /// is unknown at two looks in a row is freed.
    async fn reconcile(
        &self,
        session: Session,
        unknown: &mut HashMap<DeliveryId, i32>,
    ) -> crate::store::Result<()> {
        if session.0 == 0 {
            unknown.clear();
            return Ok(());
        }
        let now: HashMap<DeliveryId, i32> = self
            .store
            .leases(session)
            .await?
            .into_iter()
            .filter(|(id, _)| self.dispatcher.is_unknown(*id))
            .collect();
        let twice: Vec<Finish> = now
            .iter()
            .filter(|(id, token)| unknown.get(id) == Some(token))
            .map(|(id, token)| Finish {
                id: *id,
                token: *token,
                settle: Settle::Release,
                reason: String::new(),
                attempt: None,
                held: 0,
                ordered: false,
            })
            .collect();
        *unknown = now;
        for slice in twice.chunks(500) {
            self.store.finish(slice).await?;
        }
        if !twice.is_empty() {
            tracing::warn!(
                leases.count = twice.len(),
                "leases freed whose statement's answer was lost"
            );
            self.dispatcher.look_around();
        }
        Ok(())
    }

    async fn forget(&self) -> crate::store::Result<Forgotten> {
        let days = self.live.load().retention_days;
        self.store.forget(days, SLICE).await
    }
}
