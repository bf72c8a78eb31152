//! The queue: what is leased from it, and how that ends.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Publish, Published, Result, Session};
use crate::domain::{
    delivery::{Attempt, AttemptKind, Status},
    id::{DeliveryId, EventId, Micros, Part, SubscriptionId, TenantId},
    subscription::Ordering,
    trace::Trace,
};

/// A delivery that is leased to the asking session.
#[derive(Debug, Clone)]
pub struct Leased {
    /// Its id.
    pub id: DeliveryId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its subscription.
    pub subscription: SubscriptionId,
    /// Its event.
    pub event: EventId,
    /// The event's type.
    pub event_type: String,
    /// The body to send; empty where it is gone, which is never so unless rows were
    /// deleted by hand.
    pub body: Bytes,
    /// Where the event came from.
    pub trace: Option<Trace>,
    /// The fence: every lease of the row increments it, every completion checks it.
    pub token: i32,
    /// Attempts charged so far.
    pub attempts: u16,
    /// How often its signature was too old.
    pub replays: u16,
    /// Whether this is a retry by hand.
    pub by_hand: bool,
    /// Its age without what its partition was held, in microseconds; its
    /// subscription's held time is still in it.
    pub age: Micros,
    /// The key whose deliveries go in order; none where it goes for itself.
    pub ordering_key: Option<Arc<str>>,
}

/// The bytes of bodies that a claim brings, but for what the last of each
/// subscription has beyond.
const CLAIM_BYTES: i64 = 16 << 20;

/// The bytes of bodies with which each subscription of a claim has enough.
#[must_use]
pub fn claim_share(wants: &[Want]) -> i64 {
    CLAIM_BYTES / i64::try_from(wants.len().max(1)).unwrap_or(i64::MAX)
}

/// A subscription that has deliveries which go in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ordered {
    /// The partition.
    pub part: Part,
    /// The subscription.
    pub subscription: SubscriptionId,
    /// Whether a dead one blocks some key.
    pub blocks: bool,
    /// Whether some key is parked.
    pub parks: bool,
}

/// How many due deliveries of a subscription to claim.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// The partition.
    pub part: Part,
    /// The subscription.
    pub subscription: SubscriptionId,
    /// How many at the most.
    pub limit: i64,
}

/// A subscription that has queued deliveries which nobody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The partition.
    pub part: Part,
    /// The subscription.
    pub subscription: SubscriptionId,
    /// How long until the first of them is due.
    pub due_in: Duration,
}

/// What becomes of a delivery's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// It is finished with that status: to the history.
    Done(Status),
    /// It is given up, with that status: to the dead letters.
    Dead(Status),
    /// Due again after that time.
    Retry {
        /// How long.
        after: Duration,
        /// Whether the attempt counts.
        charged: bool,
    },
    /// The last attempt failed; dead after that time.
    Failed(Duration),
    /// Unleased, and as before.
    Release,
}

/// An attempt's end, to be recorded.
#[derive(Debug, Clone)]
pub struct Finish {
    /// The delivery.
    pub id: DeliveryId,
    /// The token that it was leased under.
    pub token: i32,
    /// What becomes of it.
    pub settle: Settle,
    /// Why it is not delivered; empty where it is.
    pub reason: String,
    /// The attempt; none where nothing was tried. Its times are its node's, and
    /// for people to read; nothing is decided by them.
    pub attempt: Option<Attempt>,
    /// What of its age is no latency, beside the time that its partition was
    /// held: for how long its subscription was off, and the time since the
    /// attempt's end.
    pub held: Micros,
    /// Whether it has an ordering key, which its end may free for the next one. To
    /// say so without need costs time; not to say so, that this may have to be
    /// repeated where others wait for the same keys.
    pub ordered: bool,
}

impl Finish {
    /// Whether the attempt needs a row of its own: a first attempt that
    /// succeeded is told by the delivery's own row.
    #[must_use]
    pub fn keeps_attempt(&self) -> bool {
        self.attempt
            .as_ref()
            .is_some_and(|a| a.number > 1 || a.kind != AttemptKind::Delivered)
    }
}

/// Whether a finish took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// Now.
    Now,
    /// Already, under the same token: its answer was lost.
    Before,
    /// No: the lease is another's by now.
    Stale,
}

/// The queue: what is accepted and not finished.
#[async_trait]
pub trait QueueStore: Send + Sync {
    /// Commits events together with their deliveries, each event for itself; all
    /// in one commit. A repetition of an idempotency key within 24 hours commits
    /// nothing, also when both come together, in one batch or from two nodes.
    ///
    /// Of a subscription's ordered deliveries with the same key one is the head, and
    /// the only one that can be claimed: first the one that was published first, by
    /// the order of the batch and of the commits, whichever nodes publish. Once
    /// the head is delivered or cancelled the next one is. When it dies, what follows
    /// is as its subscription's [`Ordering`] says at that moment.
    async fn publish(&self, session: Session, batch: &[Publish]) -> Result<Vec<Published>>;

    /// Leases due deliveries of these subscriptions to the session, earliest
    /// first. Gives nothing of a partition that the session does not own, and
    /// nothing to a session that has ended. Of a subscription it gives no more
    /// once the bodies have [`claim_share`] bytes: fewer than wanted mean that no
    /// more are due only where there are fewer bytes.
    async fn claim(&self, session: Session, wants: &[Want]) -> Result<Vec<Leased>>;

    /// Records attempts' ends. A row whose token differs is left alone.
    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>>;

    /// Which subscriptions of these partitions have deliveries that nobody holds
    /// and that will be due.
    async fn waiting(&self, parts: &[Part]) -> Result<Vec<Waiting>>;

    /// Everything that is leased to the session, with its token.
    async fn leases(&self, session: Session) -> Result<Vec<(DeliveryId, i32)>>;

    /// Frees what is leased to sessions that have ended, in these partitions;
    /// how many rows. Their old tokens are good for nothing any more.
    async fn free_lost(&self, parts: &[Part]) -> Result<u64>;

    /// Moves to the dead letters what `FAILED` and was not saved in time, at most
    /// `limit` rows; which.
    async fn bury(&self, parts: &[Part], limit: i64) -> Result<Vec<Buried>>;

    /// Finishes as `CANCELLED` what is queued for a subscription and not leased;
    /// how many rows, at most `limit`.
    async fn cancel(&self, part: Part, subscription: SubscriptionId, limit: i64) -> Result<u64>;

    /// Makes dead what has waited for a subscription for longer than `age`; how
    /// many rows, at most `limit`.
    async fn give_up(
        &self,
        part: Part,
        subscription: SubscriptionId,
        age: Duration,
        limit: i64,
    ) -> Result<u64>;

    /// Which subscriptions of these partitions have deliveries that go in order.
    async fn ordered(&self, parts: &[Part]) -> Result<Vec<Ordered>>;

    /// Brings what waits for a subscription in line with its ordering: off frees
    /// all of it, skip lets the keys go on that a dead one blocks, and the others
    /// say how those are blocked. How many rows or keys were changed, at most
    /// `limit`; fewer mean that nothing is left to do.
    async fn reorder(
        &self,
        part: Part,
        subscription: SubscriptionId,
        ordering: Ordering,
        limit: i64,
    ) -> Result<u64>;

    /// Makes dead what was published, and has been parked with its key, more than
    /// `age` ago; how many rows, at most `limit`.
    async fn give_up_parked(
        &self,
        part: Part,
        subscription: SubscriptionId,
        age: Duration,
        limit: i64,
    ) -> Result<u64>;

    /// Lets the deliveries behind a dead one, which blocks its ordering key, go on
    /// without it; whether it did block.
    async fn skip(&self, id: DeliveryId) -> Result<bool>;

    /// Makes a delivery due now: one that waits keeps its attempts, one that is
    /// failed or dead gets one more, and its age begins again. One that waits behind
    /// another of its ordering key still waits for its turn; a dead one that
    /// blocks its key is the next to be sent. None where there is no such delivery;
    /// otherwise its status from before, which is unchanged where it is neither
    /// waiting nor dead.
    async fn retry_by_hand(&self, id: DeliveryId) -> Result<Option<Status>>;
}

/// A delivery that became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buried {
    /// The delivery.
    pub id: DeliveryId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its subscription.
    pub subscription: SubscriptionId,
    /// Its event's type; empty where that is gone.
    pub event_type: String,
    /// Why it is dead.
    pub reason: String,
}
