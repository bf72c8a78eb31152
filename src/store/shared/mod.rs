//! The SQL that both engines speak. These files are compiled once in each
//! engine's module, which gives them its `Engine`, `Db`, `Row` and `Transaction`.
//!
//! An engine also provides `reader()` and `history()` (where to read), `begin()` (a transaction
//! that writes), `snapshot()` (one that sees one state), `clock()`,
//! `config_changed()`, `here()` (the server), `windows()`, `write_windows()`,
//! `write_calls()` and `FOR_UPDATE`.

mod audit;
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
