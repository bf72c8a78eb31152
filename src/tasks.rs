//! Background tasks: each has a name, is waited for with a deadline, and takes
//! the node down with it should it panic, so that another node takes over what a
//! half-working one would hold.

use std::{future::Future, sync::Mutex, time::Duration};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

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
