//! What is known of receivers.

use std::time::Duration;

use async_trait::async_trait;

use super::{Result, Session};
use crate::domain::id::{Part, SubscriptionId, TenantId};

/// What is known of a subscription's receiver. Durations count back from when it was
/// read, or is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverState {
    /// The subscription.
    pub subscription: SubscriptionId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Counts up with each write; the first has 1.
    pub generation: i64,
    /// Failures in a row.
    pub failures: u32,
    /// Set while its breaker is not closed.
    pub open: Option<Opening>,
    /// The last times in which its breaker was not closed, oldest first, on a clock
    /// that stands still while the partition is held.
    pub outages: Vec<Outage>,
    /// For how long there has been one now, on the same clock.
    pub outage: Option<Duration>,
    /// For how long nothing was delivered of what was tried, on the same clock.
    pub failing: Option<Duration>,
    /// Whether its owner was told of that.
    pub warned: bool,
    /// Whether the receiver asked for patience with a 503 in this outage.
    pub asked: bool,
}

/// A breaker that is not closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// How long ago it opened.
    pub ago: Duration,
    /// How long until the receiver is asked again; 0: it may be asked.
    pub left: Duration,
}

/// An outage that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// How long ago it began.
    pub began: Duration,
    /// How long ago it ended.
    pub ended: Duration,
}

/// What is known of receivers: breakers that are open, and since when nothing was
/// delivered. What belongs to a deleted subscription goes with it.
#[async_trait]
pub trait BreakerStore: Send + Sync {
    /// Writes a state in place of the one whose generation is one less; none for the
    /// first. Whether it is written: not where the session does not own the
    /// partition, another generation is stored, or there is no such subscription. The
    /// same generation again is written already and changes nothing. `opened` counts a
    /// breaker that opened, in the same commit.
    async fn save_receiver(
        &self,
        session: Session,
        state: &ReceiverState,
        opened: bool,
    ) -> Result<bool>;

    /// What is known of all receivers in these partitions.
    async fn receivers_in(&self, parts: &[Part]) -> Result<Vec<ReceiverState>>;

    /// What is known of these subscriptions' receivers.
    async fn receivers(&self, subscriptions: &[SubscriptionId]) -> Result<Vec<ReceiverState>>;

    /// A receiver works again. What `FAILED` gets one more attempt, due now; what waits
    /// to be tried again after a 5xx, a timeout or a connection that failed is due
    /// now, with its attempts as they are; but not after a 503 where `asked`. How
    /// many rows, at most `limit`.
    async fn revive(
        &self,
        part: Part,
        subscription: SubscriptionId,
        asked: bool,
        limit: i64,
    ) -> Result<u64>;
}
