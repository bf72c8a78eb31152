//! Switches, and who changed what.

use async_trait::async_trait;

use super::{Page, Result};
use crate::domain::{
    audit::{Chain, Hash, Head, Record},
    switch::{Change, Stored},
};

/// Switches, and the audit log of what was changed.
#[async_trait]
pub trait SwitchStore: Send + Sync {
    /// Changes these switches together, with a record for each in the audit log,
    /// in the order in which they are named. `StoreError::Conflict` where
    /// [`Change::Lift`] finds one that is not stopped.
    async fn change_switches(
        &self,
        names: &[&str],
        change: Change,
        by: Author<'_>,
        chain: &Chain,
    ) -> Result<Changed>;

    /// Records of the audit log whose action begins so, newest first; of one
    /// target where one is named.
    async fn audit(
        &self,
        action: &str,
        target: Option<&str>,
        page: Page<i64>,
    ) -> Result<Vec<Record>>;

    /// Reads the whole audit log from its first record on, all of it as of one
    /// moment, and what there is to compare it with.
    async fn read_audit(&self, each: &mut (dyn FnMut(Record) + Send)) -> Result<AuditEnd>;
}

/// Who changes something, and why.
#[derive(Debug, Clone, Copy)]
pub struct Author<'a> {
    /// A key's id.
    pub actor: &'a str,
    /// The reason that was given.
    pub reason: &'a str,
}

/// Switches that were changed.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The configuration's revision from which on it holds.
    pub revision: i64,
    /// The switches as they are now, in the order in which they were named.
    pub switches: Vec<Stored>,
    /// The number of the last record that tells of it.
    pub sequence: i64,
    /// That record's hash.
    pub hash: Hash,
}

/// What the audit log is compared with, as of the moment that it was read.
#[derive(Debug, Clone)]
pub struct AuditEnd {
    /// What tells which record is the last one; none in an empty log.
    pub head: Option<Head>,
    /// Every stored switch.
    pub switches: Vec<Stored>,
}
