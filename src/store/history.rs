//! What was accepted and finished, and for how long it is kept.

use async_trait::async_trait;
use bytes::Bytes;

use super::{Page, Result, Session};
use crate::domain::{
    delivery::{Attempt, Delivery, Status},
    id::{DeliveryId, EventId, SubscriptionId, TenantId},
};

/// What was accepted, finished and given up.
#[async_trait]
pub trait HistoryStore: Send + Sync {
    /// An event with its tenant, type and body.
    async fn get_event(&self, id: EventId) -> Result<Option<StoredEvent>>;

    /// A delivery, wherever it is.
    async fn get_delivery(&self, id: DeliveryId) -> Result<Option<Delivery>>;

    /// A subscription's deliveries, newest first.
    async fn deliveries_of_subscription(
        &self,
        id: SubscriptionId,
        status: Option<Status>,
        page: Page<DeliveryId>,
    ) -> Result<Vec<Delivery>>;

    /// An event's deliveries, newest first.
    async fn deliveries_of_event(
        &self,
        id: EventId,
        status: Option<Status>,
        page: Page<DeliveryId>,
    ) -> Result<Vec<Delivery>>;

    /// A delivery's attempts, first one first.
    async fn attempts(&self, id: DeliveryId) -> Result<Vec<Attempt>>;

    /// Makes room for the days around now, so that no publish finds none.
    async fn prepare_days(&self) -> Result<()>;

    /// Forgets what is older than `days` days: events, finished deliveries,
    /// attempts, idempotency keys. Bodies that something queued or dead still
    /// needs are kept. At most about `limit` rows at a time where rows are
    /// deleted one by one; how many more there may be.
    async fn forget(&self, days: i32, limit: i64) -> Result<Forgotten>;

    /// Writes how much the session accepted, absolute for a tenant and a day.
    async fn note_usage(&self, session: Session, usage: &[Usage]) -> Result<()>;

    /// Bytes stored of each tenant, over all sessions and days that are kept.
    async fn stored_bytes(&self) -> Result<Vec<(TenantId, i64)>>;
}

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its id.
    pub id: EventId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its type.
    pub event_type: String,
    /// The body that every attempt sends.
    pub body: Bytes,
}

/// How far [`HistoryStore::forget`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgotten {
    /// Nothing is left to forget.
    All,
    /// There may be more.
    Some,
}

/// What a session accepted of a tenant on one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The tenant.
    pub tenant: TenantId,
    /// The day, counted from the Unix epoch.
    pub day: i32,
    /// How many events.
    pub events: i64,
    /// How many bytes of bodies.
    pub bytes: i64,
}
