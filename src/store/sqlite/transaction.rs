//! The one writing connection.
//!
//! Not a pool of one: a pool pings a connection each time it comes back, in a
//! task of its own, which doubles the pause between two transactions; and the
//! driver's own transactions lose count where SQLite rolls back by itself, as it
//! does when the disk is full.

use std::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicBool, Ordering},
};

use sqlx::{
    ConnectOptions as _,
    sqlite::{SqliteConnectOptions, SqliteConnection},
};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};

use super::{Db, failed};
use crate::store::{Result, StoreError};

pub(super) struct Writer {
    options: SqliteConnectOptions,
    /// None where it has failed and is to be opened again.
    connection: Mutex<Option<SqliteConnection>>,
    /// Whether the last transaction was given up without a word.
    open: AtomicBool,
    closed: AtomicBool,
}

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions, connection: SqliteConnection) -> Self {
        Self {
            options,
            connection: Mutex::new(Some(connection)),
            open: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// Waits for its turn, and begins.
    pub(super) async fn begin(&self) -> Result<Transaction<'_>> {
        let mut slot = self.connection.lock().await;
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("the store is closed".into()));
        }
        // Taken out while it is not known to be good: a failure, or a caller
        // that stops waiting, leaves an empty slot and not a broken connection.
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => self.options.connect().await.map_err(failed)?,
        };
        if self.open.swap(true, Ordering::Relaxed) {
            // Fails where SQLite rolled back by itself; `begin` tells.
            let _ = sqlx::query("rollback").execute(&mut connection).await;
        }
        sqlx::query("begin immediate")
            .execute(&mut connection)
            .await
            .map_err(failed)?;
        let guard = MutexGuard::try_map(slot, |s| Some(s.insert(connection)))
            .map_err(|_| StoreError::Unavailable("no connection".into()))?;
        Ok(Transaction(Kind::Write(guard, &self.open)))
    }

    /// The connection, to be closed. Nothing begins after this.
    pub(super) async fn close(&self) -> Option<SqliteConnection> {
        self.closed.store(true, Ordering::Relaxed);
        self.connection.lock().await.take()
    }
}

/// A transaction. Dropped without a commit it is rolled back, at the latest
/// before the next one begins; nobody sees it until then.
pub(super) struct Transaction<'a>(Kind<'a>);

enum Kind<'a> {
    Write(MappedMutexGuard<'a, SqliteConnection>, &'a AtomicBool),
    Read(sqlx::Transaction<'a, Db>),
}

impl<'a> Transaction<'a> {
    pub(super) fn read(tx: sqlx::Transaction<'a, Db>) -> Self {
        Self(Kind::Read(tx))
    }

    pub(super) async fn commit(self) -> std::result::Result<(), sqlx::Error> {
        match self.0 {
            Kind::Write(mut connection, open) => {
                sqlx::query("commit").execute(&mut *connection).await?;
                open.store(false, Ordering::Relaxed);
                Ok(())
            }
            Kind::Read(tx) => tx.commit().await,
        }
    }
}

impl Deref for Transaction<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        match &self.0 {
            Kind::Write(connection, _) => connection,
            Kind::Read(tx) => tx,
        }
    }
}

impl DerefMut for Transaction<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        match &mut self.0 {
            Kind::Write(connection, _) => connection,
            Kind::Read(tx) => tx,
        }
    }
}
