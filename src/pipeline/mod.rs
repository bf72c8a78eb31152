//! From an accepted event to a delivered one, in the order in which data flows:
//!
//! [`publish`] commits events with their deliveries and hands what it leased to
//! [`dispatch`], which decides whose turn it is; `worker` takes jobs from it
//! and sends them with [`sender`], or a worker at the other end of a stream does;
//! `finish` records how that went. [`node`]
//! keeps this node's session and partitions, `balance` brings partitions to where
//! they belong, [`timeline`] watches that the database does not go back in
//! time, `claim` fetches from the store
//! what is due and not in memory, `receivers` what is known of receivers, [`announce`]
//! tells owners of it, `follow` passes on what other nodes and the configuration say,
//! `redrive` works redrives and replays, `upkeep` sweeps.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub mod announce;
mod answer;
mod balance;
mod claim;
pub mod clients;
pub mod dispatch;
mod filter;
mod finish;
mod follow;
mod job;
mod lanes;
pub mod node;
pub mod publish;
mod receivers;
mod redrive;
pub mod sender;
pub mod timeline;
mod upkeep;
mod worker;

pub use answer::{Answer, Told};
pub use job::Job;
pub use lanes::{Class, Taker, Whose};
pub use worker::is_too_old;

use crate::{directory::Directory, metrics::Metrics, settings::Live, store::Store, tasks::Tasks};

/// What the pipeline is built over.
pub struct Parts {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The node's configuration.
    pub directory: Arc<Directory>,
    /// Live settings.
    pub live: Arc<ArcSwap<Live>>,
    /// This node, with its session begun.
    pub node: Arc<node::Node>,
    /// Watches that the store does not go back in time.
    pub watch: Arc<timeline::Watch>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The HTTP client of attempts.
    pub sender: Arc<sender::Sender>,
    /// Upper bound of the poll.
    pub poll: Duration,
    /// Attempts under way at once.
    pub concurrency: usize,
    /// Whether this process sends what goes over HTTP itself.
    pub embedded: bool,
}

/// The running pipeline.
pub struct Pipeline {
    /// The way in.
    pub publisher: Arc<publish::Publisher>,
    /// What is under way.
    pub dispatcher: Arc<dispatch::Dispatcher>,
    node: Arc<node::Node>,
    balancer: Arc<balance::Balancer>,
    /// Stops what brings work: claims, sends, sweeps.
    sending: CancellationToken,
    /// Stops what records it.
    recording: CancellationToken,
    attempts: TaskTracker,
}

impl Pipeline {
    /// Starts every task.
    #[must_use]
    pub fn start(parts: Parts, tasks: &Tasks) -> Self {
        let Parts {
            store,
            directory,
            live,
            node,
            watch,
            metrics,
            sender,
            poll,
            concurrency,
            embedded,
        } = parts;
        let (sending, recording) = (CancellationToken::new(), CancellationToken::new());
        let ledger = Arc::new(publish::Ledger::default());
        let (hints, hinted) = mpsc::unbounded_channel();
        let (gone, gone_subscriptions) = mpsc::unbounded_channel();
        let (deaths, dead) = mpsc::unbounded_channel();
        let (changed, changes) = mpsc::unbounded_channel();
        let (dispatcher, ended) = dispatch::Dispatcher::new(
            directory.clone(),
            live.clone(),
            node.clone(),
            metrics.clone(),
            poll,
            embedded.then_some(concurrency),
            (changed, hints.clone()),
        );
        let writer = publish::Writer {
            store: store.clone(),
            dispatcher: dispatcher.clone(),
            node: node.clone(),
            metrics: metrics.clone(),
            ledger: ledger.clone(),
            hints,
        };
        let (publisher, queue) = publish::Publisher::new(
            directory.clone(),
            live.clone(),
            metrics.clone(),
            ledger.clone(),
        );
        let publisher = Arc::new(publisher);
        tasks.spawn("publish", writer.run(queue, recording.clone()));

        let finisher = finish::Finisher {
            store: store.clone(),
            dispatcher: dispatcher.clone(),
            node: node.clone(),
            metrics: metrics.clone(),
            gone,
            deaths: deaths.clone(),
        };
        tasks.spawn("finish", finisher.run(ended, recording.clone()));

        let claimer = claim::Claimer {
            store: store.clone(),
            directory: directory.clone(),
            dispatcher: dispatcher.clone(),
            node: node.clone(),
            metrics: metrics.clone(),
            deaths: deaths.clone(),
            poll,
        };
        tasks.spawn("claim", claimer.run(sending.clone()));

        let attempts = TaskTracker::new();
        let worker = worker::Worker {
            dispatcher: dispatcher.clone(),
            sender,
            metrics: metrics.clone(),
            name: node.name().to_owned(),
            concurrency,
        };
        if embedded {
            tasks.spawn("worker", worker.run(attempts.clone(), sending.clone()));
        }

        let announcer =
            announce::Announcer::new(store.clone(), directory.clone(), publisher.clone());
        tasks.spawn(
            "dead letters told",
            announcer.clone().tell_of_deaths(dead, sending.clone()),
        );
        let receivers = receivers::Receivers {
            store: store.clone(),
            dispatcher: dispatcher.clone(),
            node: node.clone(),
            live: live.clone(),
            metrics: metrics.clone(),
            announcer: announcer.clone(),
        };
        tasks.spawn("receivers found", receivers.clone().find(sending.clone()));
        tasks.spawn("receivers kept", receivers.keep(changes, recording.clone()));
        tasks.spawn("lanes resumed", dispatcher.clone().resume(sending.clone()));

        let redriver = redrive::Redriver {
            store: store.clone(),
            directory: directory.clone(),
            dispatcher: dispatcher.clone(),
            node: node.clone(),
            live: live.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn("redrive", redriver.run(sending.clone()));

        let follower = follow::Follower {
            store: store.clone(),
            directory,
            dispatcher: dispatcher.clone(),
            node: node.clone(),
            live: live.clone(),
            announcer,
            metrics: metrics.clone(),
        };
        follower.spawn(tasks, hinted, gone_subscriptions, &sending);

        let balancer = Arc::new(balance::Balancer {
            store: store.clone(),
            dispatcher: dispatcher.clone(),
            node: node.clone(),
            metrics: metrics.clone(),
            turn: tokio::sync::Mutex::default(),
        });
        tasks.spawn("partitions", balancer.clone().run(sending.clone()));

        let upkeep = upkeep::Upkeep {
            store,
            dispatcher: dispatcher.clone(),
            node: node.clone(),
            live,
            metrics,
            ledger,
            deaths,
        };
        tasks.spawn("upkeep", upkeep.run(sending.clone()));
        tasks.spawn("session", node.clone().run(watch, recording.clone()));
        Self {
            publisher,
            dispatcher,
            node,
            balancer,
            sending,
            recording,
            attempts,
        }
    }

    /// Stops in order: nothing new is begun, what is under way finishes or is
    /// left to whoever is next, and outcomes are recorded. The tasks end by
    /// themselves after this.
    pub async fn drain(&self, deadline: Duration) {
        self.sending.cancel();
        self.attempts.close();
        if tokio::time::timeout(deadline, self.attempts.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                jobs.in_flight = self.dispatcher.in_flight(),
                "attempts did not end in time; they are sent again by whoever is next"
            );
        }
        self.recording.cancel();
    }

    /// Hands the partitions over while what is under way ends: nothing is to wait
    /// for that.
    pub async fn leave(&self) {
        match tokio::time::timeout(balance::LEAVE, self.balancer.leave()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!(error.message = %e, "partitions not handed over"),
            Err(_) => tracing::debug!("partitions not handed over in time"),
        }
    }

    /// Ends the session: what it still leases is free at once.
    pub async fn end_session(&self) {
        self.node.end().await;
    }
}
