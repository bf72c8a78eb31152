//! Days: made ahead, and dropped whole.

use sqlx::Row as _;

use super::{Postgres, bodies::Progress, failed, lock_timed_out};
use crate::store::{Forgotten, Result};

/// Tables that are kept by day.
const BY_DAY: [&str; 3] = ["events", "done", "attempts"];

/// How many days share the buckets of idempotency keys.
const BUCKETS: i32 = 8;

/// Where the records of a day's UUIDv7 keys are.
pub(super) fn bucket_of_day(day: i32) -> i16 {
    1 + day.rem_euclid(BUCKETS) as i16
}

impl Postgres {
    pub(super) async fn prepare_day(&self, day: i32) -> Result<()> {
        // Of two that make the same day together the loser finds it made.
        let mut made = Ok(());
        for _ in 0..3 {
            made = sqlx::query("call prepare_day($1)")
                .bind(day)
                .execute(&self.pool)
                .await
                .map(drop)
                .map_err(failed);
            if made.is_ok() {
                break;
            }
        }
        made
    }

    pub(super) async fn prepare_days_ahead(&self) -> Result<()> {
        let today: i32 = sqlx::query_scalar("select today()")
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        for day in today - 1..=today + 3 {
            self.prepare_day(day).await?;
        }
        Ok(())
    }

    pub(super) async fn forget_before(&self, days: i32, limit: i64) -> Result<Forgotten> {
        let today: i32 = sqlx::query_scalar("select today()")
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        let oldest = today - days;
        let mut progress = self.forgetting.lock().await;
        // What fails keeps nothing else from going.
        let steps = [
            self.forget_days(&mut progress, oldest, limit).await,
            self.sweep_bodies(&mut progress, oldest, limit).await,
            self.forget_keys(today, limit).await,
        ];
        let mut left = Ok(Forgotten::All);
        for step in steps {
            match step {
                Ok(Forgotten::All) => {}
                Ok(Forgotten::Some) if left.is_err() => {}
                other => left = other,
            }
        }
        if !matches!(left, Ok(Forgotten::Some)) {
            progress.begin_anew();
        }
        left
    }

    async fn forget_days(
        &self,
        progress: &mut Progress,
        oldest: i32,
        limit: i64,
    ) -> Result<Forgotten> {
        let mut left = Forgotten::All;
        for table in BY_DAY {
            let mut days = self.days_of(table).await?;
            days.sort_unstable_by_key(|(day, _)| *day);
            for (day, stage) in days.into_iter().filter(|(day, _)| *day < oldest) {
                if !self.drop_day(progress, table, day, stage, limit).await? {
                    // The next call goes on with the same day.
                    left = Forgotten::Some;
                    break;
                }
            }
        }
        Ok(left)
    }

    /// The buckets of about today are left to fill; of the others each is emptied
    /// at once, or swept as long as keys of an odd age keep it in use.
    async fn forget_keys(&self, today: i32, limit: i64) -> Result<Forgotten> {
        let filling = [today - 1, today, today + 1].map(bucket_of_day);
        let mut left = Forgotten::All;
        for bucket in (0..=BUCKETS as i16).filter(|b| !filling.contains(b)) {
            if bucket > 0 && self.empty_bucket(bucket).await? {
                continue;
            }
            let table = format!("idempotency_{bucket}");
            let swept = sqlx::query(sqlx::AssertSqlSafe(format!(
                "delete from {table} where ctid = any(array(
                   select ctid from {table} where at <= now_us() - 86400000000 limit $1 for update skip locked))"
            )))
            .bind(limit)
            .execute(&self.pool)
            .await
            .map_err(failed)?
            .rows_affected();
            if swept >= limit as u64 {
                left = Forgotten::Some;
            }
        }
        Ok(left)
    }

    /// Empties a bucket, unless it has a record that still counts, or somebody is at
    /// it for long (a backup): whoever publishes would wait behind this one.
    async fn empty_bucket(&self, bucket: i16) -> Result<bool> {
        let table = format!("idempotency_{bucket}");
        let in_use = format!(
            "select exists (select from {table} where at > now_us() - 86400000000) or not exists (select from {table})"
        );
        let mut tx = self.pool.begin().await.map_err(failed)?;
        // Once before the lock, so that a bucket in use is not locked in vain.
        for lock in [false, true] {
            if lock {
                let sql = format!("set local lock_timeout = '1s'; lock table {table}");
                match sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                    .execute(&mut *tx)
                    .await
                {
                    Err(e) if lock_timed_out(&e) => return Ok(false),
                    other => other.map_err(failed)?,
                };
            }
            let in_use: bool = sqlx::query_scalar(sqlx::AssertSqlSafe(in_use.clone()))
                .fetch_one(&mut *tx)
                .await
                .map_err(failed)?;
            if in_use {
                return Ok(false);
            }
        }
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("truncate {table}")))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    /// Every day's table, also one that a sweep left half dropped.
    async fn days_of(&self, table: &str) -> Result<Vec<(i32, Stage)>> {
        let rows = sqlx::query(
            "select substring(c.relname from '[0-9]+$')::integer, i.inhdetachpending
             from pg_class c left join pg_inherits i on i.inhrelid = c.oid
             where c.relkind = 'r' and c.relname ~ ('^' || $1 || '_[0-9]+$')
               and c.relnamespace = (select relnamespace from pg_class where oid = to_regclass($1))",
        )
        .bind(table)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        Ok(rows
            .iter()
            .map(|r| {
                let stage = match r.get(1) {
                    None => Stage::Detached,
                    Some(true) => Stage::Detaching,
                    Some(false) => Stage::Attached,
                };
                (r.get(0), stage)
            })
            .collect())
    }

    /// Detached first: dropping an attached partition would lock its parent.
    /// False where another node's sweep is at it, or not all of its bodies that are
    /// needed were copied yet.
    async fn drop_day(
        &self,
        progress: &mut Progress,
        table: &str,
        day: i32,
        stage: Stage,
        limit: i64,
    ) -> Result<bool> {
        let child = format!("{table}_{day}");
        let detach = match stage {
            Stage::Attached => Some("concurrently"),
            Stage::Detaching => Some("finalize"),
            Stage::Detached => None,
        }
        .map(|how| format!("alter table {table} detach partition {child} {how}"));
        let drop = format!("drop table {child}");
        for (sql, last) in detach.map(|s| (s, false)).into_iter().chain([(drop, true)]) {
            // Once more when nothing can be added to it any longer: a node whose clock
            // is days behind may have published into it after the first time.
            let kept = match table {
                "events" if last => self.keep_bodies(progress, &child, day, limit).await,
                "events" if stage == Stage::Attached => {
                    self.keep_bodies(progress, table, day, limit).await
                }
                _ => Ok(true),
            };
            let done = match kept {
                Ok(true) => {
                    self.alter(sql, (table == "done" && last).then_some(day))
                        .await
                }
                Ok(false) => return Ok(false),
                Err(e) => Err(e),
            };
            match done {
                Err(e) if is_gone(&e) => return Ok(false),
                other => other.map_err(failed)?,
            }
        }
        Ok(true)
    }

    /// Carries out a statement about a table. What was counted into a day goes in
    /// one transaction with it.
    async fn alter(
        &self,
        sql: String,
        counted: Option<i32>,
    ) -> std::result::Result<(), sqlx::Error> {
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        let Some(day) = counted else {
            return sql.execute(&self.pool).await.map(drop);
        };
        let mut tx = self.pool.begin().await?;
        sql.execute(&mut *tx).await?;
        Self::forget_counted(&mut tx, day).await?;
        tx.commit().await
    }
}

/// How far a day's table is from being dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Attached,
    Detaching,
    Detached,
}

/// Whether a statement came too late: another node detached or dropped the table.
fn is_gone(error: &sqlx::Error) -> bool {
    // Undefined table, not in the prerequisite state, concurrently changed.
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    matches!(code.as_deref(), Some("42P01" | "55000" | "XX000"))
}
