//! Counters of deliveries, and lists of recent ones.

use async_trait::async_trait;

use super::{Page, Result};
use crate::domain::{
    delivery::{Delivery, Status},
    id::{DeliveryId, Micros, Part, SubscriptionId, TenantId},
};

/// Counters of deliveries. Every verb that changes deliveries adds to them in
/// its own transaction, by the rows that it really changed: at any time they
/// say the same as a count of the rows, and for the last 24 hours what happened.
/// The codes are those of [`counter`](crate::domain::counter).
#[async_trait]
pub trait CounterStore: Send + Sync {
    /// What was counted in a partition, of one tenant or of all: each minute
    /// since `from` apart, what was before and is still kept as one. All of it as
    /// of one state of the store.
    async fn counts(&self, part: Part, tenant: Option<TenantId>, from: i64) -> Result<Vec<Count>>;

    /// What was counted in each minute since `from`, over all partitions, and the
    /// store's clock.
    async fn counts_since(&self, from: i64) -> Result<(Micros, Vec<Count>)>;

    /// Adds up what was counted in minutes that no figure needs any more by
    /// itself, in these partitions; how many rows it took up, at most `limit`.
    async fn add_up(&self, parts: &[Part], limit: i64) -> Result<u64>;

    /// The delivery published first of all that are not finished.
    async fn oldest_unfinished(&self, tenant: Option<TenantId>) -> Result<Option<DeliveryId>>;

    /// Deliveries over many subscriptions, newest first.
    async fn recent_deliveries(
        &self,
        recent: &Recent,
        page: Page<DeliveryId>,
    ) -> Result<Vec<Delivery>>;
}

/// A count of one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count {
    /// The minute that it was counted in, from the Unix epoch; none: some time
    /// before.
    pub minute: Option<i64>,
    /// The code.
    pub what: i16,
    /// How much.
    pub n: i64,
}

/// Which deliveries are listed.
#[derive(Debug, Clone, Default)]
pub struct Recent {
    /// In these partitions; a tenant's own where one is named.
    pub parts: Vec<Part>,
    /// Of this tenant only.
    pub tenant: Option<TenantId>,
    /// The subscriptions of that tenant: what was delivered to others is left out.
    pub subscriptions: Vec<SubscriptionId>,
    /// With this status only.
    pub status: Option<Status>,
    /// Subscriptions that are off: what waits for them is `PARKED`.
    pub parked: Vec<SubscriptionId>,
}

/// For benchmarks: a history without the time that it takes to make one.
#[async_trait]
pub trait LoadStore: Send + Sync {
    /// Writes events that became one finished delivery each, with their counters.
    async fn load_finished(&self, load: &Load) -> Result<()>;

    /// What the database does by itself in time: gathers what it plans with.
    async fn analyze(&self) -> Result<()>;
}

/// Finished deliveries to be written.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Their tenant.
    pub tenant: TenantId,
    /// Their subscription.
    pub subscription: SubscriptionId,
    /// When the first was published, and delivered.
    pub from: Micros,
    /// How long after each the next was.
    pub step: Micros,
    /// How many.
    pub count: i64,
    /// Every so many of them is a dead letter; 0: none.
    pub dead_every: i64,
}
