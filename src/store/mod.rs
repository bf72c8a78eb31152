//! The store: one contract, two engines. Each doc comment here is a promise
//! that the contract suite (`tests/store.rs`) checks on both.
//!
//! Verbs are atomic. What they are told of time is a duration; the points in
//! time that leases, sessions and due times hang on are the database's own.
//! No transaction is open between two verbs.

use std::fmt;

use async_trait::async_trait;

use crate::domain::id::Micros;

mod breakers;
mod config;
mod connect;
mod counters;
mod history;
mod limits;
mod migrations;
mod nodes;
pub mod postgres;
mod publish;
mod queue;
mod redrives;
mod rows;
pub mod sqlite;
mod switches;

pub use breakers::{BreakerStore, Opening, Outage, ReceiverState};
pub use config::{
    Changes, ConfigStore, EventTypeStore, KeyStore, KeyUse, SealedKey, SubscriptionStore,
    TenantStore, TenantSubscriptions,
};
pub use connect::{Database, connect};
pub use counters::{Count, CounterStore, Load, LoadStore, Recent};
pub use history::{Forgotten, HistoryStore, StoredEvent, Usage};
pub use limits::{CallCount, CallStore, Calls, Counted, LimitStore};
pub use nodes::{Hint, Hints, LiveNode, NodeStore, Peer, PeerStore, TimelineStore};
pub use publish::{NewDelivery, Publish, Published};
pub use queue::{
    Buried, Finish, Finished, Leased, Ordered, QueueStore, Settle, Waiting, Want, claim_share,
};
pub use redrives::{COUNTED, Letters, Moved, Past, PastEvent, RedriveStore, Standing, Step};
pub use switches::{AuditEnd, Author, Changed, SwitchStore};

/// Why a verb failed. Nothing of what it was to do is done, unless it says so.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database can't be reached, or gave up on the statement. It is not
    /// known whether the statement was carried out.
    #[error("the database can't be reached: {0}")]
    Unavailable(String),
    /// A row of that name or id exists.
    #[error("{0} exists")]
    Exists(&'static str),
    /// The row was changed since it was read, or is gone.
    #[error("changed since it was read")]
    Conflict,
    /// A quota does not allow another row.
    #[error("the quota of {0} is used up")]
    Quota(i64),
    /// The database refused a value.
    #[error("the database refused a value: {0}")]
    Data(String),
    /// The database is not one of ours, or of another version.
    #[error("{0}")]
    Unfit(String),
}

/// What a verb answers.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A running node, by the number of its session. Numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Session(pub i64);

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One page of a list, newest first.
#[derive(Debug, Clone, Copy)]
pub struct Page<Id> {
    /// Only rows older than this one.
    pub before: Option<Id>,
    /// How many rows at the most.
    pub limit: i64,
}

/// The whole contract.
#[async_trait]
pub trait Store:
    ConfigStore
    + SwitchStore
    + TenantStore
    + KeyStore
    + SubscriptionStore
    + EventTypeStore
    + QueueStore
    + BreakerStore
    + NodeStore
    + TimelineStore
    + PeerStore
    + HistoryStore
    + LimitStore
    + CallStore
    + CounterStore
    + LoadStore
    + RedriveStore
{
    /// The number of the last migration that is applied; asks the database.
    async fn applied_migration(&self) -> Result<i64>;

    /// The number of the last migration that this build knows.
    fn expected_migration(&self) -> i64;

    /// Whether other processes may work on the same database.
    fn is_shared(&self) -> bool;

    /// Closes every connection.
    async fn close(&self);

    /// For tests: moves the store's clock by that much from where it is.
    async fn shift_clock(&self, by: Micros) -> Result<()>;
}
