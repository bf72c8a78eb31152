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
    witness::{Seen, Witness},
};

/// How often the mark is moved on, and noted.
const EVERY: Duration = Duration::from_secs(5);

/// Why nothing is sent, though it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// The database went back in time.
    Restored,
    /// Whether it did is not known: where that is noted does not answer.
    Unknown,
}

/// The watch of one node.
pub struct Watch {
    store: Arc<dyn Store>,
    node: Arc<Node>,
    witness: Witness,
    metrics: Arc<Metrics>,
    /// As it was last seen; none until it was compared with what is noted.
    last: Mutex<Option<Timeline>>,
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
        let watch = Self {
            store,
            node,
            witness,
            metrics,
            last: Mutex::default(),
        };
        watch.look().await?;
        Ok(watch)
    }

    /// Holds deliveries where they are to be held, and notes the mark.
    async fn follow(&self, now: &Timeline) {
        let why = now.restored.as_str();
        let held = !why.is_empty();
        self.metrics.restored.set(f64::from(u8::from(held)));
        let before = self.node.hold();
        if held && before != Some(Hold::Restored) {
            tracing::error!(
                alert = "database_restored",
                delivery.held = why,
                "the database looks like a backup that was restored: deliveries are held, \
                 for most of what it has queued was delivered since; events are accepted. \
                 See `onering doctor restored`"
            );
        } else if !held && before == Some(Hold::Restored) {
            tracing::warn!("the restored database is accepted: deliveries go out");
        } else if !held && before == Some(Hold::Unknown) {
            tracing::info!("the database is where it was left: deliveries go out");
        }
        self.node.set_hold(held.then_some(Hold::Restored));
        self.witness.note(now.id, now.mark).await;
    }

    /// Holds deliveries, and moves no mark on, which would pass for what was noted.
    fn doubt(&self, why: &str) {
        self.metrics.restored.set(1.0);
        if self.node.hold() != Some(Hold::Unknown) {
            tracing::error!(
                alert = "database_restored",
                delivery.held = why,
                "whether the database went back in time is not known: deliveries are held until \
                 it is; events are accepted. See `onering doctor restored`"
            );
        }
        self.node.set_hold(Some(Hold::Unknown));
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

    /// Compares the database with how it was last seen; at first with what is noted.
    pub(super) async fn look(&self) -> Result<()> {
        let mut last = self.last.lock().await;
        let found = self.store.timeline().await?;
        let (here, seen) = match &*last {
            None => (
                self.store.server().await?,
                self.witness.seen(found.id).await,
            ),
            // Restored beneath a node that runs.
            Some(last) => {
                let mark = (found.id == last.id).then_some(last.mark);
                let seen = Seen { mark, silent: None };
                (String::new(), seen)
            }
        };
        if let Some(why) = timeline::restored(&found, &here, seen.mark) {
            self.store.note_restored(&why).await?;
        } else if let Some(why) = &seen.silent
            && found.restored.is_empty()
            && !timeline::is_fresh(&found, self.store.now().await?)
        {
            self.doubt(why);
            return Ok(());
        }
        let now = self.store.advance_timeline().await?;
        self.follow(&now).await;
        *last = Some(now);
        Ok(())
    }
}
