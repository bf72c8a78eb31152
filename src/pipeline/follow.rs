//! Follows what other nodes and the configuration say: hints, changed switches
//! and subscriptions, partitions that come and go, receivers that are gone.

use std::{collections::HashSet, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    announce::{Announcer, Why},
    dispatch::Dispatcher,
    finish::Gone,
    node::Node,
};
use crate::{
    directory::Directory,
    domain::id::{SubscriptionId, wall_clock},
    metrics::Metrics,
    settings::Live,
    store::{Hint, Store, StoreError},
    tasks::Tasks,
};

/// Hints that come within this time are sent together.
const COALESCE: Duration = Duration::from_millis(10);
/// When to note held time again that could not be noted.
const HOLD_AGAIN: Duration = Duration::from_secs(1);
/// When to tell again what could not be told, or while there is no session.
const CONFIRM_AGAIN: Duration = Duration::from_millis(100);
/// The most hints that are sent together.
const HINTS: usize = 1000;

#[derive(Clone)]
pub(super) struct Follower {
    pub(super) store: Arc<dyn Store>,
    pub(super) directory: Arc<Directory>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) node: Arc<Node>,
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) announcer: Announcer,
    pub(super) metrics: Arc<Metrics>,
}

impl Follower {
    pub(super) fn spawn(
        self,
        tasks: &Tasks,
        hinted: mpsc::UnboundedReceiver<SubscriptionId>,
        gone: mpsc::UnboundedReceiver<Gone>,
        cancel: &CancellationToken,
    ) {
        tasks.spawn("hints out", self.clone().send_hints(hinted, cancel.clone()));
        tasks.spawn("hints in", self.clone().hear_hints(cancel.clone()));
        tasks.spawn(
            "gone receivers",
            self.clone().disable_gone(gone, cancel.clone()),
        );
        let (applied, in_force) = watch::channel(0);
        tasks.spawn(
            "confirmations",
            self.clone().confirm(in_force, cancel.clone()),
        );
        let switched = Arc::new(Notify::new());
        tasks.spawn(
            "held time",
            self.clone().keep_held(switched.clone(), cancel.clone()),
        );
        tasks.spawn(
            "configuration",
            self.follow_configuration(applied, switched, cancel.clone()),
        );
    }

    async fn send_hints(
        self,
        mut hinted: mpsc::UnboundedReceiver<SubscriptionId>,
        cancel: CancellationToken,
    ) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                n = hinted.recv_many(&mut batch, HINTS) => if n == 0 { return },
            }
            tokio::time::sleep(COALESCE).await;
            while let Ok(more) = hinted.try_recv() {
                batch.push(more);
            }
            let distinct: HashSet<SubscriptionId> = batch.drain(..).collect();
            let hints: Vec<_> = distinct.into_iter().map(|s| (s.part(), s)).collect();
            // No trouble that lasts: there may be no other hint for long.
            if let Err(e) = self.store.hint(&hints).await {
                tracing::debug!(error.message = %e, "hints not sent; the owners' polls find the rows");
            }
        }
    }

    async fn hear_hints(self, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                result = self.listen() => self.metrics.troubles.note(
                    "hints in",
                    &result,
                    "hints are not heard; polls go on",
                    "hints are heard again",
                ),
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    async fn listen(&self) -> Result<(), StoreError> {
        let mut hints = self.store.listen().await?;
        self.metrics.troubles.note(
            "hints in",
            &Ok::<(), StoreError>(()),
            "",
            "hints are heard again",
        );
        // What was said before this is found by looking.
        self.directory.nudge();
        self.dispatcher.look_around();
        loop {
            match hints.next().await? {
                Hint::Due(part, subscription) => self.dispatcher.sign(part, subscription),
                Hint::Config => self.directory.nudge(),
                Hint::Partitions => self.node.nudge(),
                Hint::Reconnected => {
                    self.node.nudge();
                    self.directory.nudge();
                    self.dispatcher.look_around();
                }
            }
        }
    }

    /// Never waits for the store: a switch must take effect while that is away.
    async fn follow_configuration(
        self,
        applied: watch::Sender<i64>,
        switched: Arc<Notify>,
        cancel: CancellationToken,
    ) {
        let mut configuration = self.directory.watch();
        let mut partitions = self.node.watch();
        loop {
            let revision = *configuration.borrow_and_update();
            if self.dispatcher.reconfigured() {
                switched.notify_one();
            }
            // Also where it is the same one: pins may have changed.
            applied.send_replace(revision);
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = configuration.changed() => if changed.is_err() { return },
                changed = partitions.changed() => {
                    if changed.is_err() { return }
                    self.dispatcher.repartitioned();
                    switched.notify_one();
                }
            }
        }
    }

    /// Tells the other nodes which revision is in force here, and what is pinned,
    /// where a switch or a pin has changed: those who changed one wait for it.
    async fn confirm(self, mut applied: watch::Receiver<i64>, cancel: CancellationToken) {
        let mut sessions = self.node.watch();
        let mut told = None;
        loop {
            let revision = *applied.borrow_and_update();
            let session = self.node.session();
            let pins = self.live.load().pins;
            let known = told.is_some_and(|(s, r, p)| {
                (s, p) == (session, pins) && r >= self.directory.in_force().revision
            });
            let mut wait = session.0 == 0;
            if !known && !wait {
                let confirmed = self.store.confirm(session, revision, &pins.names()).await;
                self.metrics.troubles.note(
                    "confirmations",
                    &confirmed,
                    "configuration not confirmed yet",
                    "configuration is confirmed again",
                );
                match confirmed {
                    Ok(()) => told = Some((session, revision, pins)),
                    Err(_) => wait = true,
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = applied.changed() => if changed.is_err() { return },
                changed = sessions.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(CONFIRM_AGAIN), if wait => {}
            }
        }
    }

    async fn keep_held(self, switched: Arc<Notify>, cancel: CancellationToken) {
        loop {
            let noted = self.hold().await;
            tokio::select! {
                () = cancel.cancelled() => return,
                () = switched.notified() => {}
                () = tokio::time::sleep(HOLD_AGAIN), if !noted => {}
            }
        }
    }

    /// Keeps the count of time in which deliveries are held on purpose; whether
    /// the store has noted it.
    async fn hold(&self) -> bool {
        let held = !self.dispatcher.is_delivering();
        let parts = self.node.owned();
        if parts.is_empty() {
            return true;
        }
        let noted = self.store.hold(self.node.session(), &parts, held).await;
        self.metrics.troubles.note(
            "held time",
            &noted,
            "held time not noted yet",
            "held time is noted again",
        );
        noted.is_ok()
    }

    /// A receiver that answered 410 wants no more: its subscription is switched
    /// off and its owner told.
    async fn disable_gone(
        self,
        mut gone: mpsc::UnboundedReceiver<Gone>,
        cancel: CancellationToken,
    ) {
        loop {
            let Gone {
                subscription,
                since,
            } = tokio::select! {
                () = cancel.cancelled() => return,
                gone = gone.recv() => match gone { Some(gone) => gone, None => return },
            };
            let (mut wait, at) = (Duration::from_millis(100), wall_clock());
            loop {
                let disabled = self
                    .announcer
                    .disable(subscription, Why::Gone(since), at)
                    .await;
                self.metrics.troubles.note(
                    "gone receivers",
                    &disabled,
                    "gone receiver's subscription not disabled yet",
                    "gone receivers' subscriptions are disabled again",
                );
                if disabled.is_ok() {
                    break;
                }
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
                wait = (wait * 2).min(Duration::from_secs(5));
            }
        }
    }
}
