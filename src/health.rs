//! Deep health: whether what the node depends on is well. `GET /health?deep=true`
//! asks it; without `deep` the answer only says that the process lives.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    directory::{Directory, Freshness},
    domain::id::wall_clock,
    limiter::Limiter,
    metrics::Metrics,
    pipeline::{node::Node, timeline::Hold},
    store::Store,
};

/// How long a check may take before what it asks counts as away.
const PATIENCE: Duration = Duration::from_secs(2);
/// Anybody may ask: however many do, the store is asked once in this time.
const KEEP: Duration = Duration::from_millis(500);

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// As it should be.
    Healthy,
    /// Calls are answered, but not all is as it should be.
    Degraded,
    /// Calls can't be answered, or deliveries not sent.
    Unhealthy,
}

/// The database.
#[derive(Debug, Clone, Serialize)]
pub struct DatabaseHealth {
    /// How well it is.
    pub status: Condition,
    /// How long a question took, in milliseconds; none where there was no answer.
    pub latency_ms: Option<f64>,
    /// Whether this node can't renew its configuration and goes on with what it has.
    pub config_stale: bool,
}

/// The database's migrations.
#[derive(Debug, Clone, Serialize)]
pub struct MigrationHealth {
    /// How well they are.
    pub status: Condition,
    /// The last one that is applied; none where the database can't be reached.
    pub applied: Option<i64>,
    /// The last one that this build knows.
    pub expected: i64,
}

/// How Redis stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RedisHealth {
    /// It is not configured: the store alone lends limits.
    NotConfigured,
    /// It answers.
    Reachable,
    /// It does not answer, or has only just come back.
    Unreachable,
}

/// What decides on limits.
#[derive(Debug, Clone, Serialize)]
pub struct LimiterHealth {
    /// How well it is.
    pub status: Condition,
    /// Whether Redis, where it is configured, or the store can't be asked.
    pub degraded: bool,
    /// Redis.
    pub redis: RedisHealth,
}

/// The queue of deliveries.
#[derive(Debug, Clone, Serialize)]
pub struct QueueHealth {
    /// Unhealthy where it can't be read; its age is a figure and no verdict.
    pub status: Condition,
    /// The age of the oldest delivery that is not finished, in seconds; 0 where
    /// there is none.
    pub oldest_age_seconds: Option<f64>,
}

/// The worker that sends deliveries.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerHealth {
    /// How well it is.
    pub status: Condition,
    /// Partitions of the queue that this node sends from, of 64.
    pub partitions: usize,
    /// Whether it sends: `webhooks.delivery.enabled` is on, and nothing holds it.
    pub sending: bool,
    /// Whether deliveries are held because the database went back in time
    /// (`onering doctor restored`).
    pub restored: bool,
    /// Why deliveries are held: `restored`, or `witness_unreachable` while what tells
    /// whether the database went back in time does not answer. None where they are not.
    pub held: Option<&'static str>,
}

/// The background tasks.
#[derive(Debug, Clone, Serialize)]
pub struct TaskHealth {
    /// Degraded while one fails: it goes on trying.
    pub status: Condition,
    /// Those that fail.
    pub failing: Vec<&'static str>,
}

/// Everything that was checked.
#[derive(Debug, Clone, Serialize)]
pub struct Checks {
    /// The database.
    pub database: DatabaseHealth,
    /// Its migrations.
    pub migrations: MigrationHealth,
    /// The limiter.
    pub limiter: LimiterHealth,
    /// The worker.
    pub worker: WorkerHealth,
    /// The queue.
    pub queue: QueueHealth,
    /// The background tasks.
    pub tasks: TaskHealth,
}

/// What deep health answers.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The worst of all.
    pub status: Condition,
    /// Whether the node stops.
    pub stopping: bool,
    /// Each one.
    pub checks: Checks,
}

/// Looks, and keeps what it saw for a moment.
pub struct Health {
    store: Arc<dyn Store>,
    directory: Arc<Directory>,
    node: Arc<Node>,
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
    leaving: CancellationToken,
    seen: Mutex<Option<(Instant, Report)>>,
}

impl Health {
    /// Of a node.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        directory: Arc<Directory>,
        node: Arc<Node>,
        limiter: Arc<Limiter>,
        metrics: Arc<Metrics>,
        leaving: CancellationToken,
    ) -> Self {
        Self {
            store,
            directory,
            node,
            limiter,
            metrics,
            leaving,
            seen: Mutex::new(None),
        }
    }

    /// What it looks like now, or half a second ago. Of a node that stops it is
    /// known at once: no more calls are to be sent to it.
    pub async fn report(&self) -> Report {
        let mut report = self.recent().await;
        if self.leaving.is_cancelled() {
            report.status = Condition::Unhealthy;
            report.stopping = true;
        }
        report
    }

    async fn recent(&self) -> Report {
        let mut seen = self.seen.lock().await;
        if let Some((at, report)) = &*seen
            && at.elapsed() < KEEP
        {
            return report.clone();
        }
        let report = self.look().await;
        *seen = Some((Instant::now(), report.clone()));
        report
    }

    async fn look(&self) -> Report {
        let asked = Instant::now();
        let migration = async {
            let answer = tokio::time::timeout(PATIENCE, self.store.applied_migration()).await;
            (answer, asked.elapsed())
        };
        let oldest = tokio::time::timeout(PATIENCE, self.store.oldest_unfinished(None));
        let ((answer, took), oldest) = tokio::join!(migration, oldest);
        let applied = answer.ok().and_then(std::result::Result::ok);
        let expected = self.store.expected_migration();
        let stale = self.directory.freshness() != Freshness::Fresh;
        let database = DatabaseHealth {
            status: match (applied, stale) {
                (None, _) => Condition::Unhealthy,
                (Some(_), true) => Condition::Degraded,
                (Some(_), false) => Condition::Healthy,
            },
            latency_ms: applied.map(|_| (took.as_secs_f64() * 1e6).round() / 1e3),
            config_stale: stale,
        };
        let migrations = MigrationHealth {
            status: match applied {
                Some(n) if n == expected => Condition::Healthy,
                // A newer node has migrated: this version still works beside it.
                Some(n) if n > expected => Condition::Degraded,
                _ => Condition::Unhealthy,
            },
            applied,
            expected,
        };
        let hold = self.node.hold();
        let worker = WorkerHealth {
            status: match (self.node.is_alive(), hold.is_some()) {
                (false, _) => Condition::Unhealthy,
                // Calls are answered: a balancer is to leave the node in.
                (true, true) => Condition::Degraded,
                (true, false) => Condition::Healthy,
            },
            partitions: self.node.owned().len(),
            sending: self.directory.switches().delivery && hold.is_none(),
            restored: hold == Some(Hold::Restored),
            held: hold.map(|hold| match hold {
                Hold::Restored => "restored",
                Hold::Unknown => "witness_unreachable",
            }),
        };
        let degraded = self.limiter.is_degraded();
        let limiter = LimiterHealth {
            status: if degraded {
                Condition::Degraded
            } else {
                Condition::Healthy
            },
            degraded,
            redis: match self.limiter.redis_answers() {
                None => RedisHealth::NotConfigured,
                Some(true) => RedisHealth::Reachable,
                Some(false) => RedisHealth::Unreachable,
            },
        };
        let age = oldest.ok().and_then(std::result::Result::ok).map(|id| {
            let age = id.map_or(0, |id| (wall_clock() - id.time()).max(0));
            (age / 1000) as f64 / 1e3
        });
        let queue = QueueHealth {
            status: if age.is_some() {
                Condition::Healthy
            } else {
                Condition::Unhealthy
            },
            oldest_age_seconds: age,
        };
        let failing = self.metrics.troubles.failing();
        let tasks = TaskHealth {
            status: if failing.is_empty() {
                Condition::Healthy
            } else {
                Condition::Degraded
            },
            failing,
        };
        let status = [
            tasks.status,
            database.status,
            migrations.status,
            limiter.status,
            worker.status,
            queue.status,
        ];
        Report {
            status: status.into_iter().max().unwrap_or(Condition::Healthy),
            stopping: false,
            checks: Checks {
                database,
                migrations,
                limiter,
                worker,
                queue,
                tasks,
            },
        }
    }
}
