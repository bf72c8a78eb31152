//! Records how attempts ended, in batches. An outcome is kept until it is
//! recorded, or until this node's session is over: then its row is somebody
//! else's to send, and is sent again.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    announce::{Death, is_announced},
    dispatch::{Dispatcher, Ended},
    node::Node,
};
use crate::{
    domain::{
        delivery::Outcome,
        id::{DeliveryId, Micros, SubscriptionId, micros, wall_clock},
    },
    metrics::Metrics,
    store::{Finish, Finished, Settle, Store, StoreError},
};

/// The most outcomes of one statement.
const BATCH: usize = 512;
/// How long a small batch waits for more: its rows are not waited for by anyone.
/// What a crash within this time leaves unrecorded is sent again.
const LINGER: Duration = Duration::from_millis(8);
/// A batch of this size does not wait.
const FULL: usize = 128;

/// The HTTP status by which a receiver says that it is gone for good.
const GONE: u16 = 410;

/// What of a batch was given back, where somebody waits for an answer.
fn released(batch: &[Ended]) -> HashSet<(DeliveryId, i32)> {
    if batch.iter().all(|ended| ended.answer.is_none()) {
        return HashSet::new();
    }
    let given_back = batch
        .iter()
        .filter(|ended| ended.finish.settle == Settle::Release);
    given_back
        .map(|ended| (ended.job.id, ended.job.token))
        .collect()
}

/// A subscription whose receiver is gone.
pub(super) struct Gone {
    pub(super) subscription: SubscriptionId,
    /// Since when its address was known that says so.
    pub(super) since: Micros,
}

pub(super) struct Finisher {
    pub(super) store: Arc<dyn Store>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) node: Arc<Node>,
    pub(super) metrics: Arc<Metrics>,
    /// Told of subscriptions whose receiver is gone.
    pub(super) gone: mpsc::UnboundedSender<Gone>,
    /// Told of deliveries that were given up.
    pub(super) deaths: mpsc::UnboundedSender<Death>,
}

impl Finisher {
    /// Runs until it is cancelled and everything that came is recorded.
    pub(super) async fn run(
        self,
        mut ended: mpsc::UnboundedReceiver<Ended>,
        cancel: CancellationToken,
    ) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                n = ended.recv_many(&mut batch, BATCH) => if n == 0 { return },
                () = cancel.cancelled() => return,
            }
            if batch.len() < FULL && !cancel.is_cancelled() {
                tokio::time::sleep(LINGER).await;
                while batch.len() < BATCH
                    && let Ok(more) = ended.try_recv()
                {
                    batch.push(more);
                }
            }
            self.metrics.finish_batch.record(batch.len() as f64);
            self.record(&mut batch).await;
            self.dispatcher.recorded(&batch);
            batch.clear();
        }
    }

    async fn record(&self, batch: &mut [Ended]) {
        let mut wait = Duration::from_millis(50);
        loop {
            let finishes: Vec<Finish> = batch.iter().map(Ended::as_of_now).collect();
            let result = self.store.finish(&finishes).await;
            let recorded = result.as_ref().map(drop).or_else(|e| match e {
                StoreError::Unavailable(_) => Err(e),
                _ => Ok(()),
            });
            self.metrics.troubles.note(
                "finish",
                &recorded,
                "outcomes not recorded yet",
                "outcomes are recorded again",
            );
            match result {
                Ok(results) => {
                    let released = released(batch);
                    for (ended, result) in batch.iter_mut().zip(results) {
                        // What was given back just before is as another's.
                        let late = result == Finished::Before
                            && ended.finish.settle != Settle::Release
                            && released.contains(&(ended.job.id, ended.job.token));
                        let result = if late { Finished::Stale } else { result };
                        self.account(ended, result);
                        if let Some(answer) = ended.answer.take() {
                            answer.tell(result);
                        }
                    }
                    return;
                }
                Err(e @ StoreError::Unavailable(_)) => {
                    tracing::debug!(error.message = %e, batch.size = batch.len(), retry_in = ?wait);
                    // It is tried again; who asked may ask again too.
                    for ended in batch.iter_mut() {
                        drop(ended.answer.take());
                    }
                    if !self.node.is_alive() && self.node.session().0 == 0 {
                        // The rows are another's by now, or free.
                        return;
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(2));
                }
                // It would be answered the same each time.
                Err(e) => {
                    self.divide(batch, &e.to_string()).await;
                    return;
                }
            }
        }
    }

    /// Halves a batch until what the database refuses stands alone,
    /// and records that one without what its receiver sent.
    async fn divide(&self, batch: &mut [Ended], why: &str) {
        if let [one] = batch {
            tracing::error!(delivery.id = %one.job.id, error.message = why, "outcome cut down to be recorded");
            one.finish.reason = "unrecordable".into();
            let cut = one.finish.attempt.as_mut().is_some_and(|a| {
                let had = !a.response.is_empty() || !a.error.is_empty();
                a.response.clear();
                a.error.clear();
                had
            });
            if cut {
                Box::pin(self.record(batch)).await;
            } else {
                // It stays leased to nobody who knows of it: it is found, and sent again.
                self.dispatcher.suspect();
            }
            return;
        }
        let (left, right) = batch.split_at_mut(batch.len() / 2);
        Box::pin(self.record(left)).await;
        Box::pin(self.record(right)).await;
    }

    fn account(&self, ended: &Ended, result: Finished) {
        match result {
            Finished::Stale => return self.metrics.leases_stale.increment(1),
            // Said again by a worker whose job this was: it is accounted for.
            Finished::Before if ended.job.session.0 == 0 => return,
            // Recorded by the statement whose answer was lost: what follows of it
            // was not done yet.
            Finished::Before | Finished::Now => {}
        }
        let job = &ended.job;
        match ended.outcome {
            Outcome::Delivered => {
                self.metrics.attempts_delivered.increment(1);
                self.metrics.deliveries_delivered.increment(1);
                let micros = (wall_clock() - job.event.time()).max(0);
                self.metrics.delivery_seconds.record(micros as f64 / 1e6);
                tracing::debug!(
                    delivery.id = %job.id, subscription.id = %job.subscription,
                    "Webhook delivered successfully"
                );
            }
            Outcome::Retryable { .. } => self.metrics.attempts_retryable.increment(1),
            Outcome::Permanent => self.metrics.attempts_permanent.increment(1),
            Outcome::ReplayExpired => self.metrics.attempts_replay_expired.increment(1),
            Outcome::TooOld | Outcome::SubscriptionGone | Outcome::Released => {}
        }
        let dead = matches!(ended.finish.settle, Settle::Dead(_));
        if dead {
            self.metrics.deliveries_dead.increment(1);
            if is_announced(&job.event_type) {
                let _ = self.deaths.send(Death {
                    tenant: job.tenant,
                    subscription: job.subscription,
                    delivery: Some(job.id),
                    count: 1,
                    reason: ended.finish.reason.clone(),
                });
            }
        }
        if dead || matches!(ended.finish.settle, Settle::Failed(_)) {
            let sent = matches!(
                ended.outcome,
                Outcome::Retryable { .. } | Outcome::Permanent
            );
            let attempts = job.attempts + u16::from(sent);
            tracing::warn!(
                delivery.id = %job.id, subscription.id = %job.subscription,
                delivery.attempts = attempts, delivery.reason = ended.finish.reason, delivery.dead = dead,
                "Webhook delivery failed after {attempts} attempts"
            );
        }
        let attempt = ended.finish.attempt.as_ref();
        if attempt.is_some_and(|a| a.response_status == GONE) {
            let _ = self.gone.send(Gone {
                subscription: job.subscription,
                since: wall_clock() - micros(job.since.elapsed()),
            });
        }
    }
}
