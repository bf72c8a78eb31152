//! PostgreSQL: for many nodes.

#![allow(
    clippy::cast_possible_truncation,
    reason = "a column is as wide as what it was written from, and batches are short"
)]

use std::{str::FromStr as _, time::Duration};

use async_trait::async_trait;
use sqlx::{
    Connection as _,
    migrate::MigrateError,
    postgres::{PgConnectOptions, PgSslMode},
};

use super::{Micros, Result, Store, StoreError};

mod bodies;
mod counters;
mod history;
mod limits;
mod load;
mod nodes;
mod pool;
mod publish;
mod queue;
#[path = "../shared/mod.rs"]
mod shared;

use pool::{Pool, Transaction};

type Db = sqlx::Postgres;
type Row = sqlx::postgres::PgRow;

/// This engine's name for what both share.
type Engine = Postgres;

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

/// The longest that a statement may take on which a caller, a delivery or the
/// session waits.
const HOT: Duration = Duration::from_secs(10);
/// The same for a sweep or a long list: longer than the server lets one run.
const LONG: Duration = Duration::from_secs(35);

/// How long a migration that found a table locked lets others pass, at first and at
/// most.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A PostgreSQL database, version 15 or later.
pub struct Postgres {
    pool: Pool,
    /// The same connections, for what must not take long.
    hot: Pool,
    /// One connection that publishes and one that finishes: their statements and
    /// the tables' metadata stay in one backend's caches.
    publishing: Pool,
    /// For what callers read of the history: slow lists must not keep the session
    /// or the configuration waiting.
    history: Pool,
    finishing: Pool,
    options: PgConnectOptions,
    /// Held while history is forgotten.
    forgetting: tokio::sync::Mutex<bodies::Progress>,
}

impl Postgres {
    /// Locks the rows that a read finds, until the commit.
    const FOR_UPDATE: &str = " for update";

    /// Connects, and applies the migrations that are missing.
    ///
    /// # Errors
    /// Where the database can't be reached, or is newer than this build.
    pub async fn open(url: &str) -> Result<Self> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|e| StoreError::Unfit(format!("not a PostgreSQL URL: {e}")))?
            .application_name("onering")
            .options([
                // A killed client leaves its statement running: bound it, and
                // notice dead connections while they wait.
                ("statement_timeout", "30s"),
                ("idle_in_transaction_session_timeout", "30s"),
                ("tcp_keepalives_idle", "5"),
                ("tcp_keepalives_interval", "5"),
                ("tcp_keepalives_count", "2"),
                ("jit", "off"),
                ("client_min_messages", "warning"),
            ]);
        let options = if url.contains("sslmode=") {
            options
        } else {
            options.ssl_mode(PgSslMode::Prefer)
        };
        let pool = Pool::new(options.clone(), 6, LONG);
        migrate(&pool).await?;
        // The server gives up before this side does: then it is known that
        // nothing was done.
        let hot = options.clone().options([
            ("statement_timeout", "8s"),
            // What is published or ends is found by its key, however few rows the
            // planner takes a table for.
            ("enable_seqscan", "off"),
        ]);
        Ok(Self {
            hot: pool.within(HOT),
            pool,
            history: Pool::new(options.clone(), 4, LONG),
            publishing: Pool::new(hot.clone(), 1, HOT),
            finishing: Pool::new(hot, 1, HOT),
            options,
            forgetting: tokio::sync::Mutex::default(),
        })
    }

    fn reader(&self) -> &Pool {
        &self.hot
    }

    fn history(&self) -> &Pool {
        &self.history
    }

    async fn begin(&self) -> Result<Transaction<'_>> {
        self.hot.begin().await.map_err(failed)
    }

    /// A transaction that sees one state of the database.
    async fn snapshot(&self) -> Result<Transaction<'_>> {
        self.pool
            .begin_with("begin isolation level repeatable read read only")
            .await
            .map_err(failed)
    }

    /// A read of the history that sees one state of the database.
    async fn history_snapshot(&self) -> Result<Transaction<'_>> {
        self.history
            .begin_with("begin isolation level repeatable read read only")
            .await
            .map_err(failed)
    }

    /// Tells the other nodes that the configuration changed. After the commit
    /// and on its own: `notify` inside a transaction serialises commits.
    async fn config_changed(&self) {
        if let Err(e) = sqlx::query("select pg_notify('onering_config', '')")
            .execute(&self.hot)
            .await
        {
            tracing::debug!(error.message = %e, "configuration hint not sent");
        }
    }

    /// A UUID as it is written in a statement.
    fn uuid_literal(uuid: uuid::Uuid) -> String {
        format!("'{uuid}'::uuid")
    }

    /// The server and the database: a copy has others, a standby the same. Empty
    /// where the server does not tell.
    async fn here(&self) -> String {
        sqlx::query_scalar(
            "select (select system_identifier from pg_control_system())::text || '/' || oid::text
             from pg_database where datname = current_database()",
        )
        .fetch_one(&self.hot)
        .await
        .unwrap_or_default()
    }

    async fn clock(&self, tx: &mut Transaction<'_>) -> Result<Micros> {
        sqlx::query_scalar("select now_us()")
            .fetch_one(&mut **tx)
            .await
            .map_err(failed)
    }
}

/// Applies the migrations that are missing. One that waits for a table that another
/// reads for long (a backup) holds up whoever comes after it: it gives up soon, and
/// lets these pass before it tries again.
async fn migrate(pool: &Pool) -> Result<()> {
    let mut pause = FIRST_PAUSE;
    loop {
        // On a connection of its own without the statement timeout: a migration may
        // take longer than any statement of ours.
        let mut connection = pool.connect().await.map_err(failed)?;
        sqlx::raw_sql(
            "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0;
             set lock_timeout = '3s'",
        )
        .execute(&mut connection)
        .await
        .map_err(failed)?;
        let applied = super::migrations::migrator(&MIGRATIONS)
            .run(&mut connection)
            .await;
        if let Err(e) = connection.close().await {
            tracing::debug!(error.message = %e, "closing the migration's connection failed");
        }
        let error = match applied {
            Err(MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _))
                if lock_timed_out(&e) =>
            {
                e
            }
            other => return other.map_err(super::migrations::failed),
        };
        if pause == FIRST_PAUSE {
            tracing::warn!(
                error.message = %error,
                "a migration waits for a table that another reads, or for another node's: it is tried again"
            );
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[async_trait]
impl Store for Postgres {
    async fn applied_migration(&self) -> Result<i64> {
        sqlx::query_scalar(super::migrations::APPLIED)
            .fetch_one(&self.hot)
            .await
            .map_err(failed)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn expected_migration(&self) -> i64 {
        MIGRATIONS.len() as i64
    }

    async fn close(&self) {
        for pool in [&self.publishing, &self.finishing, &self.history, &self.pool] {
            pool.close().await;
        }
    }

    async fn shift_clock(&self, by: Micros) -> Result<()> {
        let at: Micros = sqlx::query_scalar(
            "select now_us() - (extract(epoch from statement_timestamp()) * 1000000)::bigint",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(failed)?;
        let by = at + by;
        let sql = format!(
            "create or replace function now_us() returns bigint language sql stable parallel safe
             as $$ select (extract(epoch from statement_timestamp()) * 1000000)::bigint + ({by}) $$"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(())
    }
}

/// What an error of the driver's means for the caller.
#[expect(clippy::needless_pass_by_value, reason = "used in map_err")]
fn failed(error: sqlx::Error) -> StoreError {
    use sqlx::error::ErrorKind;
    match &error {
        sqlx::Error::Database(e) => {
            let code = e.code().unwrap_or_default();
            match e.kind() {
                ErrorKind::UniqueViolation => match e.constraint() {
                    Some("tenants_name") => StoreError::Exists("a tenant of that name"),
                    _ => StoreError::Exists("a row of that id"),
                },
                // A day can be made: it is no fault of the row's.
                _ if lacks_day(&error) => StoreError::Unavailable(e.message().to_owned()),
                // Class 22: a value that does not fit; 23: one that a constraint refuses;
                // 54: too large.
                _ if ["22", "23", "54"].iter().any(|c| code.starts_with(c)) => {
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

/// Whether the database has no partition for a row's day.
fn lacks_day(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|e| {
        e.code().as_deref() == Some("23514") && e.message().contains("no partition")
    })
}

/// Whether a statement waited for a lock as long as it may. Nothing of it was done.
fn lock_timed_out(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|e| e.code().as_deref() == Some("55P03"))
}

/// Whether the database gave up one of several transactions that waited for each
/// other. Nothing of it was done.
fn is_deadlock(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|e| e.code().as_deref() == Some("40P01"))
}
