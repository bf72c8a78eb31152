//! The scratch database of a run on PostgreSQL, and what the run cost there.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use url::Url;

use super::{
    error::{BenchError, Result},
    stats::{ratio, real},
};

/// A database of our own beside the one that was named: made empty, because the
/// server that we start has a master key of its own, and dropped at the end, so
/// that nobody's data is touched.
#[derive(Debug)]
pub(super) struct Scratch {
    server: Url,
    name: String,
    /// The scratch database's own URL.
    pub url: Url,
}

impl Scratch {
    /// Makes it. The role in `url` needs `CREATEDB`.
    pub(super) async fn create(url: &str, tag: &str) -> Result<Self> {
        let server = Url::parse(url).map_err(|e| BenchError::Usage(format!("--database: {e}")))?;
        let name = format!("onering_bench_{tag}");
        let mut connection = connect(&server).await?;
        sqlx::query(AssertSqlSafe(format!("create database {name}")))
            .execute(&mut connection)
            .await
            .map_err(|e| BenchError::failed(&format!("can't create the database {name}"), e))?;
        let mut url = server.clone();
        url.set_path(&format!("/{name}"));
        Ok(Self { server, name, url })
    }

    /// Drops it, also while the server is still connected.
    pub(super) async fn drop(self) -> Result<()> {
        let mut connection = connect(&self.server).await?;
        sqlx::query(AssertSqlSafe(format!(
            "drop database if exists {} with (force)",
            self.name
        )))
        .execute(&mut connection)
        .await
        .map_err(|e| {
            BenchError::failed(&format!("the database {} is left behind", self.name), e)
        })?;
        Ok(())
    }

    /// The cluster's port, where it is on this machine and its CPU can be read.
    #[must_use]
    pub(super) fn local_port(&self) -> Option<u16> {
        let local = match self.server.host_str() {
            None | Some("" | "localhost" | "127.0.0.1" | "[::1]") => true,
            // A socket's folder, percent-encoded.
            Some(host) => host.starts_with("%2F") || host.starts_with("%2f"),
        };
        local.then(|| self.server.port().unwrap_or(5432))
    }

    /// Reads the counters. The statistics may be a second behind.
    pub(super) async fn counters(&self) -> Result<Counters> {
        let mut connection = connect(&self.server).await?;
        let (commits, wal): (i64, i64) = sqlx::query_as(
            "select coalesce((select xact_commit from pg_stat_database where datname = $1), 0), \
             (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint",
        )
        .bind(&self.name)
        .fetch_one(&mut connection)
        .await
        .map_err(|e| BenchError::failed("no statistics from PostgreSQL", e))?;
        // Only there where the extension is loaded.
        let statements: Option<i64> = sqlx::query_scalar(
            "select sum(calls)::bigint from pg_stat_statements s join pg_database d on d.oid = s.dbid \
             where d.datname = $1",
        )
        .bind(&self.name)
        .fetch_one(&mut connection)
        .await
        .ok()
        .flatten();
        Ok(Counters {
            commits: u64::try_from(commits).unwrap_or(0),
            wal_bytes: u64::try_from(wal).unwrap_or(0),
            statements: statements.and_then(|n| u64::try_from(n).ok()),
        })
    }
}

async fn connect(url: &Url) -> Result<PgConnection> {
    PgConnection::connect(url.as_str())
        .await
        .map_err(|e| BenchError::NotReached(format!("PostgreSQL: {e}")))
}

/// What PostgreSQL has done so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counters {
    commits: u64,
    /// Of the whole cluster.
    wal_bytes: u64,
    statements: Option<u64>,
}

/// What PostgreSQL did for one delivery.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(super) struct PerDelivery {
    /// Transactions.
    pub commits: f64,
    /// Bytes of write-ahead log.
    pub wal_bytes: f64,
    /// Statements, where `pg_stat_statements` is loaded.
    pub statements: Option<f64>,
}

impl Counters {
    /// What was done since an earlier reading, for each of `n`.
    #[must_use]
    pub(super) fn since(&self, earlier: &Self, n: u64) -> Option<PerDelivery> {
        let per = |now: u64, then: u64| ratio(real(now.saturating_sub(then)), real(n));
        Some(PerDelivery {
            commits: per(self.commits, earlier.commits)?,
            wal_bytes: per(self.wal_bytes, earlier.wal_bytes)?,
            statements: match (self.statements, earlier.statements) {
                (Some(now), Some(then)) => per(now, then),
                _ => None,
            },
        })
    }
}
