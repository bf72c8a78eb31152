//! The embedded worker: takes jobs from the dispatcher, sends them, completes
//! them. One task a send, which goes on with the next job where there is one.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    dispatch::{Completion, Dispatcher},
    job::Job,
    lanes::Taker,
    sender::{Sender, Sent},
};
use crate::{
    domain::{
        delivery::{Attempt, AttemptKind, Outcome},
        id::{Micros, wall_clock},
    },
    metrics::Metrics,
    target::Target,
};

/// What every send of this worker shares.
pub(super) struct Worker {
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) sender: Arc<Sender>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) name: String,
    pub(super) concurrency: usize,
}

impl Worker {
    /// Works until it is cancelled; what is under way then finishes in `tasks`.
    pub(super) async fn run(self, tasks: TaskTracker, cancel: CancellationToken) {
        tracing::info!(worker.name = self.name, "Webhook delivery worker started");
        let slots = Arc::new(Semaphore::new(self.concurrency));
        let worker = Arc::new(self);
        loop {
            let slot = tokio::select! {
                () = cancel.cancelled() => return,
                slot = slots.clone().acquire_owned() => slot,
            };
            let Ok(slot) = slot else { return };
            let (job, target) = loop {
                if let Some(taken) = worker.dispatcher.take(&Taker::EMBEDDED, usize::MAX) {
                    break taken;
                }
                // Now and then without being told: a session that was renewed late
                // has jobs that nobody announces again.
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = worker.dispatcher.work() => {}
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
            };
            let (worker, cancel) = (worker.clone(), cancel.clone());
            tasks.spawn(async move {
                let _slot = slot;
                let mut next = Some((job, target));
                while let Some((job, target)) = next {
                    worker.send_guarded(job, &target).await;
                    next = if cancel.is_cancelled() {
                        None
                    } else {
                        worker.dispatcher.take(&Taker::EMBEDDED, usize::MAX)
                    };
                }
            });
        }
    }

    /// A send that panics is a failed attempt: its slot and its lease must not be
    /// lost with it.
    async fn send_guarded(&self, job: Job, target: &Target) {
        let spare = job.clone();
        let sent = AssertUnwindSafe(self.send(job, target)).catch_unwind();
        if sent.await.is_err() {
            tracing::error!(delivery.id = %spare.id, "attempt panicked");
            self.dispatcher.complete(Completion {
                job: spare,
                outcome: Outcome::Retryable { retry_after: None },
                reason: "internal".into(),
                attempt: None,
            });
        }
    }

    async fn send(&self, job: Job, target: &Target) {
        if is_too_old(&job, target) {
            return self.dispatcher.complete(Completion {
                job,
                outcome: Outcome::TooOld,
                reason: "max_age_exceeded".into(),
                attempt: None,
            });
        }
        tracing::debug!(
            delivery.id = %job.id, event.id = %job.event, subscription.id = %job.subscription,
            delivery.attempt = job.attempts + 1, "processing delivery"
        );
        let began = wall_clock();
        let lease = self.dispatcher.lease(&job);
        let sent = self.sender.send(&job, target, lease).await;
        if sent.outcome == Outcome::Released {
            return self.dispatcher.give_back(job);
        }
        self.dispatcher.complete(self.completion(job, sent, began));
    }

    fn completion(&self, job: Job, sent: Sent, began: Micros) -> Completion {
        self.metrics.attempt_seconds.record(sent.took.as_secs_f64());
        let (number, token) = (job.attempts + 1, job.token);
        Completion {
            job,
            outcome: sent.outcome,
            attempt: Some(Attempt {
                number,
                token,
                started_at: began,
                took: micros(sent.took),
                kind: match sent.outcome {
                    Outcome::Delivered => AttemptKind::Delivered,
                    Outcome::ReplayExpired => AttemptKind::ReplayExpired,
                    Outcome::Retryable { .. } => AttemptKind::Retryable,
                    _ => AttemptKind::Permanent,
                },
                response_status: sent.status,
                error: sent.error.clone(),
                response: sent.response,
                worker: self.name.clone(),
            }),
            reason: sent.error,
        }
    }
}

/// Whether a delivery is older than its subscription wants, not counting the
/// time in which it was held.
#[must_use]
pub fn is_too_old(job: &Job, target: &Target) -> bool {
    let most = target.subscription.max_age;
    most > 0 && job.age + micros(job.since.elapsed()) > most.saturating_mul(1_000_000)
}

fn micros(d: Duration) -> Micros {
    Micros::try_from(d.as_micros()).unwrap_or(Micros::MAX / 2)
}
