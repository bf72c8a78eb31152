//! Brings partitions to where they belong while nodes come and go, a few at a
//! time: nothing of them is leased any more, what waits is given back, and then
//! one statement makes them another's. What is under way by then ends under the
//! lease that it has: the fence, not the owner, keeps it from being sent twice.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{dispatch::Dispatcher, node::Node};
use crate::{
    domain::id::Part,
    metrics::Metrics,
    store::{Result, Session, Store},
};

/// The most partitions that are handed over together.
const STEP: usize = 8;
/// How long a step waits for what is under way in its partitions. New deliveries of
/// these wait meanwhile; what takes longer ends while another node goes on.
const GRACE: Duration = Duration::from_secs(1);
/// The longest that a leave may take.
pub(super) const LEAVE: Duration = Duration::from_secs(2);
/// How long a node keeps sending from what it could not hand over, before it tries
/// again.
const PAUSE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);

pub(super) struct Balancer {
    pub(super) store: Arc<dyn Store>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) node: Arc<Node>,
    pub(super) metrics: Arc<Metrics>,
    /// Whoever hands partitions over, or looks what there is to hand over.
    pub(super) turn: Mutex<()>,
}

impl Balancer {
    /// Runs until it is cancelled. A look that fails is repeated at its next time.
    pub(super) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let mut announced = Session(0);
        let mut resting = None;
        loop {
            let result = self.balance(&mut announced, &mut resting, &cancel).await;
            self.metrics.troubles.note(
                "partitions",
                &result,
                "partitions can't be looked at",
                "partitions are looked at again",
            );
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.node.wait_to_look() => {}
            }
        }
    }

    async fn balance(
        &self,
        announced: &mut Session,
        resting: &mut Option<Instant>,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let session = self.node.session();
        if session.0 == 0 {
            return Ok(());
        }
        if *announced != session {
            self.store.set_ready(session, true).await?;
            *announced = session;
        }
        while !cancel.is_cancelled() {
            let _turn = self.turn.lock().await;
            let mut give = self.node.look().await?;
            if give.is_empty() || resting.is_some_and(|since| since.elapsed() < PAUSE) {
                return Ok(());
            }
            give.truncate(STEP);
            *resting = Some(Instant::now());
            self.give(session, give, GRACE).await?;
            *resting = None;
        }
        Ok(())
    }

    /// Hands over all that this node owns, where there is somebody to take it.
    pub(super) async fn leave(&self) -> Result<()> {
        self.node.begin_leaving();
        let session = self.node.session();
        if session.0 == 0 {
            return Ok(());
        }
        self.store.set_ready(session, false).await?;
        let _turn = self.turn.lock().await;
        let give = self.node.look().await?;
        if give.is_empty() {
            return Ok(());
        }
        self.give(session, give, Duration::ZERO).await
    }

    async fn give(
        &self,
        session: Session,
        give: Vec<(Part, Session)>,
        grace: Duration,
    ) -> Result<()> {
        let parts: Vec<Part> = give.iter().map(|(part, _)| *part).collect();
        self.node.begin_giving(&parts);
        let given = self.give_up(session, &give, &parts, grace).await;
        self.node.end_giving();
        given
    }

    async fn give_up(
        &self,
        session: Session,
        give: &[(Part, Session)],
        parts: &[Part],
        grace: Duration,
    ) -> Result<()> {
        self.dispatcher.withdraw();
        let began = Instant::now();
        while began.elapsed() < grace && self.dispatcher.holds_any(|p| parts.contains(&p)) {
            tokio::time::sleep(POLL).await;
        }
        let mut by_heir: BTreeMap<Session, Vec<Part>> = BTreeMap::new();
        for (part, to) in give {
            by_heir.entry(*to).or_default().push(*part);
        }
        for (to, parts) in by_heir {
            let given = self.store.hand_over(session, to, &parts).await?;
            tracing::info!(
                node.session = %to, node.partitions = given.len(), "partitions handed over"
            );
        }
        Ok(())
    }
}
