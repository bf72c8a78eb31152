//! Migrations: embedded, forward only, each safe beside the version before it.

use std::borrow::Cow;

use sqlx::{
    SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
};

use super::StoreError;

/// Reads the number of the last migration that is applied.
pub(super) const APPLIED: &str =
    "select coalesce(max(version), 0) from _sqlx_migrations where success";

/// A migrator over these files, the first of which is version 1.
pub(super) fn migrator(files: &[(&'static str, &'static str)]) -> Migrator {
    let migrations = (1..)
        .zip(files)
        .map(|(version, (name, sql))| {
            Migration::new(
                version,
                Cow::Borrowed(*name),
                MigrationType::Simple,
                sql.into_sql_str(),
                false,
            )
        })
        .collect();
    Migrator::with_migrations(migrations)
}

/// What a failed migration means.
pub(super) fn failed(error: sqlx::migrate::MigrateError) -> StoreError {
    StoreError::Unfit(match error {
        sqlx::migrate::MigrateError::VersionMissing(v) => {
            format!(
                "the database has migration {v}, which this build does not know: run a newer one"
            )
        }
        other => format!("the database's migration failed: {other}"),
    })
}
