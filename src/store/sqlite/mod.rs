//! SQLite: one file of one process' own.

#![allow(
    clippy::cast_possible_truncation,
    reason = "a column is as wide as what it was written from, and batches are short"
)]

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, Connection as _,
    sqlite::{
        SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
        SqliteSynchronous,
    },
};
use tokio::sync::broadcast;

use super::{Hint, Micros, Result, Store, StoreError};
use crate::domain::id::wall_clock;

mod batch;
mod counters;
mod finish;
mod history;
mod limits;
mod load;
mod nodes;
mod publish;
mod queue;
#[path = "../shared/mod.rs"]
mod shared;
#[cfg(test)]
mod tests;
mod transaction;

use transaction::{Transaction, Writer};

type Db = sqlx::Sqlite;
type Row = sqlx::sqlite::SqliteRow;

/// This engine's name for what both share.
type Engine = Sqlite;

const MIGRATIONS: [(&str, &str); 13] = [
    ("base", include_str!("migrations/0001_base.sql")),
    (
        "client certificates",
        include_str!("migrations/0002_client_certificates.sql"),
    ),
    ("switches", include_str!("migrations/0003_switches.sql")),
    ("limits", include_str!("migrations/0004_limits.sql")),
    ("counters", include_str!("migrations/0005_counters.sql")),
    (
        "filters and traces",
        include_str!("migrations/0006_filters_and_traces.sql"),
    ),
    (
        "allowed addresses",
        include_str!("migrations/0007_allowed_addresses.sql"),
    ),
    ("redrives", include_str!("migrations/0008_redrives.sql")),
    ("ordering", include_str!("migrations/0009_ordering.sql")),
    (
        "event types",
        include_str!("migrations/0010_event_types.sql"),
    ),
    ("nodes", include_str!("migrations/0011_nodes.sql")),
    ("streams", include_str!("migrations/0012_streams.sql")),
    ("breakers", include_str!("migrations/0013_breakers.sql")),
];

/// A SQLite database. One process at a time: its clock is the store's.
pub struct Sqlite {
    readers: SqlitePool,
    /// For what callers read of the history: slow lists must not keep the
    /// configuration waiting.
    history: SqlitePool,
    writer: Writer,
    /// How far the store's clock is from this machine's; tests move it.
    shift: AtomicI64,
    hints: broadcast::Sender<Hint>,
    /// Held until the store is closed.
    lock: Mutex<Option<File>>,
}

impl Sqlite {
    /// There is one writer: what it reads stays so until it commits.
    const FOR_UPDATE: &str = "";

    /// Opens the file, makes it where there is none, and applies the migrations
    /// that are missing.
    ///
    /// # Errors
    /// Where the file can't be opened, is not one of ours, is newer than this
    /// build, or is open in another process.
    pub async fn open(path: &Path) -> Result<Self> {
        let lock = create(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(Duration::from_secs(5))
            .foreign_keys(false)
            .statement_cache_capacity(256)
            .row_buffer_size(512)
            .pragma("temp_store", "memory")
            .disable_statement_logging();
        let writing = options
            .clone()
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", "-32768")
            // The writer itself copies the log back into the file, once it holds
            // so many pages: it can't outgrow a slow checkpoint then.
            .pragma("wal_autocheckpoint", "4000")
            .pragma("journal_size_limit", "67108864");
        let mut connection = writing.connect().await.map_err(unfit)?;
        migrate(&mut connection).await?;
        // Nobody else can have the file open: whatever session it tells of is over.
        sqlx::raw_sql(
            "update part_owner set sid = 0; delete from nodes;
             update queue set lease_sid = 0, token = token + 1 where lease_sid <> 0;",
        )
        .execute(&mut connection)
        .await
        .map_err(failed)?;
        let reading = options.read_only(true).pragma("cache_size", "-4096");
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(Duration::from_secs(5))
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
                .connect_lazy_with(reading.clone())
        };
        Ok(Self {
            readers: pool(2),
            history: pool(3),
            writer: Writer::new(writing, connection),
            shift: AtomicI64::new(0),
            hints: broadcast::channel(1024).0,
            lock: Mutex::new(Some(lock)),
        })
    }

    fn reader(&self) -> &SqlitePool {
        &self.readers
    }

    fn history(&self) -> &SqlitePool {
        &self.history
    }

    /// A read of the history that sees one state of the database.
    async fn history_snapshot(&self) -> Result<Transaction<'_>> {
        Ok(Transaction::read(
            self.history.begin().await.map_err(failed)?,
        ))
    }

    async fn begin(&self) -> Result<Transaction<'_>> {
        self.writer.begin().await
    }

    /// A transaction that sees one state of the database.
    async fn snapshot(&self) -> Result<Transaction<'_>> {
        Ok(Transaction::read(
            self.readers.begin().await.map_err(failed)?,
        ))
    }

    /// Tells the listeners that the configuration changed.
    #[expect(clippy::unused_async, reason = "called as the other engine's is")]
    async fn config_changed(&self) {
        self.tell(Hint::Config);
    }

    /// Where nobody listens, nobody needs the hint.
    fn tell(&self, hint: Hint) {
        let _ = self.hints.send(hint);
    }

    /// A UUID as it is written in a statement.
    fn uuid_literal(uuid: uuid::Uuid) -> String {
        format!("x'{}'", uuid.simple())
    }

    fn now(&self) -> Micros {
        wall_clock() + self.shift.load(Ordering::Relaxed)
    }

    /// A file is the same wherever it lies.
    #[expect(clippy::unused_async, reason = "called as the other engine's is")]
    async fn here(&self) -> String {
        String::new()
    }

    #[expect(clippy::unused_async, reason = "called as the other engine's is")]
    async fn clock(&self, _: &mut Transaction<'_>) -> Result<Micros> {
        Ok(self.now())
    }
}

/// Makes the file and its directory, for the owner's eyes only, and takes the
/// lock that keeps another process out.
fn create(path: &Path) -> Result<File> {
    let shown = path.display();
    let refused = |e: std::io::Error| StoreError::Unfit(format!("{shown} can't be opened: {e}"));
    if let Some(directory) = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty() && !p.exists())
    {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(directory).map_err(refused)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock = options.open(PathBuf::from(name)).map_err(refused)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StoreError::Unfit(format!(
                "{shown} is open in another process: a SQLite database has one; nodes share a PostgreSQL one"
            )));
        }
        Err(TryLockError::Error(e)) => return Err(refused(e)),
    }
    options.open(path).map_err(refused)?;
    Ok(lock)
}

async fn migrate(connection: &mut SqliteConnection) -> Result<()> {
    super::migrations::migrator(&MIGRATIONS)
        .run(connection)
        .await
        .map_err(super::migrations::failed)
}

#[async_trait]
impl Store for Sqlite {
    async fn applied_migration(&self) -> Result<i64> {
        sqlx::query_scalar(super::migrations::APPLIED)
            .fetch_one(&self.readers)
            .await
            .map_err(failed)
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn expected_migration(&self) -> i64 {
        MIGRATIONS.len() as i64
    }

    async fn close(&self) {
        // The writer last: it copies the log back and removes it.
        self.history.close().await;
        self.readers.close().await;
        if let Some(connection) = self.writer.close().await
            && let Err(e) = connection.close().await
        {
            tracing::debug!(error.message = %e, "closing the database failed");
        }
        if let Ok(mut lock) = self.lock.lock() {
            lock.take();
        }
    }

    async fn shift_clock(&self, by: Micros) -> Result<()> {
        self.shift.fetch_add(by, Ordering::Relaxed);
        Ok(())
    }
}

/// What a failure to open the file means.
fn unfit(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(e) if e.code().as_deref() == Some(NOT_A_DATABASE) => {
            StoreError::Unfit("the file is not a SQLite database".into())
        }
        _ => failed(error),
    }
}

// Result codes, from https://sqlite.org/rescode.html
const TOO_BIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
const NOT_A_DATABASE: &str = "26";

/// What an error of the driver's means for the caller.
#[expect(clippy::needless_pass_by_value, reason = "used in map_err")]
fn failed(error: sqlx::Error) -> StoreError {
    use sqlx::error::ErrorKind;
    match &error {
        sqlx::Error::Database(e) => {
            let code: i32 = e.code().and_then(|c| c.parse().ok()).unwrap_or_default();
            match e.kind() {
                ErrorKind::UniqueViolation if e.message().contains("tenants.name") => {
                    StoreError::Exists("a tenant of that name")
                }
                ErrorKind::UniqueViolation => StoreError::Exists("a row of that id"),
                // The lowest byte is the primary code.
                _ if matches!(code & 0xff, TOO_BIG | CONSTRAINT | MISMATCH) => {
                    StoreError::Data(e.message().to_owned())
                }
                _ => StoreError::Unavailable(format!("{} ({code})", e.message())),
            }
        }
        sqlx::Error::RowNotFound => StoreError::Conflict,
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Encode(_) => {
            StoreError::Data(error.to_string())
        }
        _ => StoreError::Unavailable(error.to_string()),
    }
}
