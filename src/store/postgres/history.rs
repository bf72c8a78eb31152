//! Days: made ahead, and dropped whole.

use sqlx::Row as _;

use super::{Postgres, failed};
use crate::store::{Forgotten, Result};

/// Tables that are kept by day.
const BY_DAY: [&str; 3] = ["events", "done", "attempts"];

/// How many days share the buckets of idempotency keys.
const BUCKETS: i32 = 8;

/// Where the records of a day's UUIDv7 keys are.
pub(super) fn bucket_of_day(day: i32) -> i16 {
    1 + day.rem_euclid(BUCKETS) as i16
}

/// The bodies of a day's events that something queued or dead still needs.
const KEEP: &str = "
insert into kept_bodies (part, event, tenant, type, body)
select e.part, e.id, e.tenant, e.type, e.body
from (select part, event from queue where event_day = $1
      union select part, event from dead where event_day = $1) x
join events e on e.part = x.part and e.id = x.event and e.day = $1
on conflict do nothing";

const DROP_BODIES: &str = "
delete from kept_bodies k
where not exists (select from queue q where q.part = k.part and q.event = k.event)
  and not exists (select from dead d where d.part = k.part and d.event = k.event)";

impl Postgres {
    pub(super) async fn prepare_day(&self, day: i32) -> Result<()> {
        sqlx::query("call prepare_day($1)")
            .bind(day)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(())
    }

    pub(super) async fn prepare_days_ahead(&self) -> Result<()> {
        let today: i32 = sqlx::query_scalar("select today()")
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        for day in today - 1..=today + 3 {
            // Two nodes may make the same day together: the loser finds it made.
            if self.prepare_day(day).await.is_err() {
                self.prepare_day(day).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn forget_before(&self, days: i32, limit: i64) -> Result<Forgotten> {
        let today: i32 = sqlx::query_scalar("select today()")
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        for table in BY_DAY {
            for day in self.days_of(table).await? {
                if day < today - days {
                    self.drop_day(table, day).await?;
                }
            }
        }
        sqlx::query("delete from usage where day < $1")
            .bind(today - days)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        sqlx::query(DROP_BODIES)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        self.forget_keys(today, limit).await
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
                "delete from {table} i using (
                   select ctid from {table} where at <= now_us() - 86400000000 limit $1) x
                 where i.ctid = x.ctid"
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

    /// Empties a bucket, unless it has a record that still counts.
    async fn empty_bucket(&self, bucket: i16) -> Result<bool> {
        let table = format!("idempotency_{bucket}");
        let in_use = format!(
            "select exists (select from {table} where at > now_us() - 86400000000) or not exists (select from {table})"
        );
        let mut tx = self.begin().await?;
        // Once before the lock, so that a bucket in use is not locked in vain.
        for lock in [false, true] {
            if lock {
                sqlx::raw_sql(sqlx::AssertSqlSafe(format!("lock table {table}")))
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
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

    async fn days_of(&self, table: &str) -> Result<Vec<i32>> {
        let rows = sqlx::query(
            "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
             where i.inhparent = to_regclass($1)",
        )
        .bind(table)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        Ok(rows
            .iter()
            .filter_map(|r| {
                let name: &str = r.get(0);
                name.rsplit_once('_')?.1.parse().ok()
            })
            .collect())
    }

    /// Detached first: dropping an attached partition would lock its parent.
    async fn drop_day(&self, table: &str, day: i32) -> Result<()> {
        let child = format!("{table}_{day}");
        if table == "events" {
            sqlx::query(KEEP)
                .bind(day)
                .execute(&self.pool)
                .await
                .map_err(failed)?;
        }
        for sql in [
            format!("alter table {table} detach partition {child} concurrently"),
            format!("drop table {child}"),
        ] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&self.pool)
                .await
                .map_err(failed)?;
        }
        Ok(())
    }
}
