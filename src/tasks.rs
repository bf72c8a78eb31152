//! Background tasks: each has a name, is waited for with a deadline, and takes
//! the node down with it should it panic, so that another node takes over what a
//! half-working one would hold.

use std::{
    collections::BTreeSet,
    fmt::Display,
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use metrics::{Counter, Gauge};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Which background tasks fail at the moment. A task goes on trying, at its own pace;
/// that it fails is said once, and once that it works again.
pub struct Troubles {
    failing: Mutex<BTreeSet<&'static str>>,
    gauge: Gauge,
    errors: Counter,
}

impl Troubles {
    /// None yet: how many tasks fail is shown there, and each failure that is said
    /// counted.
    #[must_use]
    pub fn new(gauge: Gauge, errors: Counter) -> Self {
        Self {
            failing: Mutex::default(),
            gauge,
            errors,
        }
    }

    fn set(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how a task's last step went, and says so in these words where that
    /// changed.
    pub fn note<T, E: Display>(
        &self,
        task: &'static str,
        result: &Result<T, E>,
        fails: &str,
        works: &str,
    ) {
        let mut failing = self.set();
        let changed = match result {
            Ok(_) => failing.remove(task),
            Err(_) => failing.insert(task),
        };
        self.gauge.set(failing.len() as f64);
        drop(failing);
        match result {
            Ok(_) if changed => tracing::info!(task.name = task, "{works}"),
            Err(e) if changed => {
                self.errors.increment(1);
                tracing::warn!(task.name = task, error.message = %e, "{fails}");
            }
            _ => {}
        }
    }

    /// The tasks that fail.
    #[must_use]
    pub fn failing(&self) -> Vec<&'static str> {
        self.set().iter().copied().collect()
    }
}

/// The tasks of one node.
pub struct Tasks {
    /// Cancelled where a task panicked.
    broken: CancellationToken,
    running: Mutex<Vec<(&'static str, JoinHandle<()>)>>,
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            broken: CancellationToken::new(),
            running: Mutex::default(),
        }
    }

    /// Another group, which takes the same node down.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self {
            broken: self.broken.clone(),
            running: Mutex::default(),
        }
    }

    /// Runs a task.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let broken = self.broken.clone();
        let guarded = async move {
            if std::panic::AssertUnwindSafe(task)
                .catch_unwind()
                .await
                .is_err()
            {
                tracing::error!(task.name = name, "task panicked; the node stops");
                broken.cancel();
            }
        };
        self.running
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push((name, tokio::spawn(guarded)));
    }

    /// The tasks that have ended.
    #[must_use]
    pub fn ended(&self) -> Vec<&'static str> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = running.iter().filter(|(_, task)| task.is_finished());
        ended.map(|(name, _)| *name).collect()
    }

    /// Cancelled where a task panicked.
    #[must_use]
    pub fn broken(&self) -> CancellationToken {
        self.broken.clone()
    }

    /// Waits for every task; those that are late are named and stopped.
    pub async fn join(&self, deadline: Duration) {
        let running = std::mem::take(
            &mut *self
                .running
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        let end = tokio::time::Instant::now() + deadline;
        for (name, mut task) in running {
            if tokio::time::timeout_at(end, &mut task).await.is_err() {
                tracing::warn!(task.name = name, "task did not end in time");
                task.abort();
            }
        }
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}
