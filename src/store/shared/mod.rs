//! The SQL that both engines speak. These files are compiled once in each
//! engine's module, which gives them its `Engine`, `Db`, `Row` and `Transaction`.
//!
//! An engine also provides `reader()` and `history()` (where to read), `begin()` (a transaction
//! that writes), `snapshot()` (one that sees one state), `clock()`,
//! `revive_failed()`, `config_changed()`, `here()` (the server), `windows()`,
//! `write_windows()`, `write_calls()` and `FOR_UPDATE`.

mod audit;
mod breakers;
mod calls;
mod config;
mod counters;
mod event_types;
mod history;
mod keys;
pub(super) mod letters;
mod limits;
mod load;
mod order;
mod peers;
mod redrives;
mod subscriptions;
mod switches;
mod tenants;
mod timeline;

pub(super) use calls::subject;
pub(super) use limits::window;

use uuid::Uuid;

use super::{Engine, Row, Transaction, failed};
use crate::store::{Result, StoreError};

/// Increments the configuration's revision. The row stays locked until the
/// commit, so that revisions are in the order of commits.
async fn bump(tx: &mut Transaction<'_>) -> Result<i64> {
    sqlx::query_scalar("update config_rev set rev = rev + 1 returning rev")
        .fetch_one(&mut **tx)
        .await
        .map_err(failed)
}

fn broken(message: String) -> StoreError {
    StoreError::Data(message)
}

/// Of a statement that changes a row as it was read: fails where the row was changed
/// since, or is gone.
const fn must_be_there(rows: u64) -> Result<()> {
    if rows == 0 {
        return Err(StoreError::Conflict);
    }
    Ok(())
}

impl Engine {
    /// Commits a change of the configuration, and tells the other nodes of it.
    async fn commit_change(&self, tx: Transaction<'_>) -> Result<()> {
        tx.commit().await.map_err(failed)?;
        self.config_changed().await;
        Ok(())
    }

    /// Notes that a row of the configuration is gone, for nodes that have it.
    async fn note_gone(&self, tx: &mut Transaction<'_>, id: Uuid, rev: i64) -> Result<()> {
        let now = self.clock(tx).await?;
        sqlx::query("insert into tombstones (id, rev, at) values ($1, $2, $3)")
            .bind(id)
            .bind(rev)
            .bind(now)
            .execute(&mut **tx)
            .await
            .map(drop)
            .map_err(failed)
    }
}
