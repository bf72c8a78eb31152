//! Watches that the database does not go back in time. A backup that was restored
//! has what was queued when it was made, most of it delivered since: deliveries are
//! held until somebody says that they are to go out.

use std::{sync::Arc, time::Duration};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use crate::{
    domain::timeline::{self, Timeline},
    metrics::Metrics,
    store::{Result, Store},
    witness::Witness,
};

/// How often the mark is moved on, and noted.
const EVERY: Duration = Duration::from_secs(5);

/// The watch of one node.
pub struct Watch {
    store: Arc<dyn Store>,
    node: Arc<Node>,
    witness: Witness,
    metrics: Arc<Metrics>,
    /// As it was last seen.
    last: Mutex<Timeline>,
}

impl Watch {
    /// Compares the database with what is noted of it. Nothing may be sent before.
    ///
    /// # Errors
    /// Where the store can't be reached.
    pub async fn begin(
        store: Arc<dyn Store>,
        node: Arc<Node>,
        witness: Witness,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let found = store.timeline().await?;
        let here = store.server().await?;
        let seen = witness.seen(found.id).await;
        if let Some(why) = timeline::restored(&found, &here, seen) {
            store.note_restored(&why).await?;
        }
        let last = store.advance_timeline().await?;
        let watch = Self {
            store,
            node,
            witness,
            metrics,
            last: Mutex::new(last.clone()),
        };
        watch.follow(&last).await;
        Ok(watch)
    }

    /// Holds deliveries where they are to be held, and notes the mark.
    async fn follow(&self, now: &Timeline) {
        let why = now.restored.as_str();
        let held = !why.is_empty();
        self.metrics.restored.set(f64::from(u8::from(held)));
        if held && !self.node.is_restored() {
            tracing::error!(
                alert = "database_restored",
                delivery.held = why,
                "the database looks like a backup that was restored: deliveries are held, \
                 for most of what it has queued was delivered since; events are accepted. \
                 See `onering doctor restored`"
            );
        } else if !held && self.node.is_restored() {
            tracing::warn!("the restored database is accepted: deliveries go out");
        }
        self.node.set_restored(held);
        self.witness.note(now.id, now.mark).await;
    }

    /// Runs until it is cancelled. A look that fails is repeated at its next time.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            self.metrics.troubles.note(
                "timeline",
                &self.look().await,
                "the timeline can't be followed",
                "the timeline is followed again",
            );
        }
    }

    /// Compares the database with how it was last seen.
    pub(super) async fn look(&self) -> Result<()> {
        let mut last = self.last.lock().await;
        let found = self.store.timeline().await?;
        // Restored beneath a node that runs.
        let seen = (found.id == last.id).then_some(last.mark);
        if let Some(why) = timeline::restored(&found, "", seen) {
            self.store.note_restored(&why).await?;
        }
        *last = self.store.advance_timeline().await?;
        self.follow(&last).await;
        Ok(())
    }
}
