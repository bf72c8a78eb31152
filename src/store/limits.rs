//! Limits of keys, and what was called.

use async_trait::async_trait;

use super::{Result, Session};
use crate::domain::{
    id::{KeyId, Micros, TenantId},
    limit::{Answer, Ask, Window},
};

/// What keys were lent of their limits.
#[async_trait]
pub trait LimitStore: Send + Sync {
    /// Decides on each of these asks, each of another key, and keeps what is
    /// lent before it answers. However many nodes ask at once, no trailing hour
    /// holds more than a key's limit, on the database's clock
    /// ([`Window::lend`]). All are in one commit.
    async fn lend(&self, asks: &[Ask]) -> Result<Vec<Answer>>;

    /// All that still counts, of every key, and the store's clock.
    async fn limit_windows(&self) -> Result<(Micros, Vec<(KeyId, Window)>)>;

    /// Drops the windows in which nothing counts any more; how many.
    async fn forget_limit_windows(&self) -> Result<u64>;

    /// How many sessions live.
    async fn live_sessions(&self) -> Result<i64>;
}

/// What calls are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counted {
    /// A tier, in minutes.
    Tier(String),
    /// A tenant's tier, in hours.
    Tenant(TenantId, String),
    /// A key, in hours.
    Key(KeyId),
}

/// How many calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    /// Admitted.
    pub admitted: i64,
    /// Refused for a limit.
    pub limited: i64,
    /// Refused for their credential.
    pub refused: i64,
}

/// What a session counted in a minute or an hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallCount {
    /// What was counted.
    pub counted: Counted,
    /// The minute or hour, counted from the Unix epoch.
    pub bucket: i64,
    /// How many, from the bucket's beginning on.
    pub calls: Calls,
}

/// What was called, for figures.
#[async_trait]
pub trait CallStore: Send + Sync {
    /// Writes what the session counted. The numbers are absolute: to write them
    /// twice changes nothing.
    async fn note_calls(&self, session: Session, counts: &[CallCount]) -> Result<()>;

    /// What sessions other than `but` wrote at `since` or later on the store's
    /// clock, and that clock. What was counted more than 25 hours ago may be
    /// left out.
    async fn calls(
        &self,
        since: Micros,
        but: Session,
    ) -> Result<(Micros, Vec<(Session, CallCount)>)>;

    /// Drops what was counted more than 25 hours ago; how many rows.
    async fn forget_calls(&self) -> Result<u64>;
}
