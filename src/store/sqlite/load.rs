//! Finished deliveries by the million, for benchmarks.

use super::{Sqlite, failed};
use crate::store::{Load, Result};

/// The rows, the same each time they are computed.
const ROWS: &str = "
with recursive n(i) as (select 0 union all select i + 1 from n where i < $6 - 1),
s as (select i, $4 + i * $5 as at, $7 > 0 and i % $7 = 0 as is_dead from n),
r as (
  select s.*, at / 86400000000 as day,
         unhex(printf('%012x7%03x8%013x%02x', at / 1000, at % 1000 * 4096 / 1000,
                      (i * 2654435761 + at) % 4503599627370496, $1 | (i % 4 * 64))) as event,
         unhex(printf('%012x7%03x8%013x%02x', at / 1000, at % 1000 * 4096 / 1000,
                      (i * 2654435761 + at + 40503) % 4503599627370496, $1 | (i % 4 * 64))) as id
  from s
)";

const INSERTS: [&str; 4] = [
    "insert into events (part, day, id, tenant, key, type, body)
     select $1, day, event, $2, null, 'load.finished', cast('{\"n\":' || i || '}' as blob) from r",
    "insert into done (part, day, id, tenant, sub, event, finished_at, took, token, state, attempts, status, reason,
                       worker, response)
     select $1, day, id, $2, $3, event, at, 1500, 1, 4, 1, 200, '', 'load', x'' from r where not is_dead",
    "insert into dead (part, id, tenant, sub, event, event_day, dead_at, age_from, token, state, attempts, status,
                       reason)
     select $1, id, $2, $3, event, day, at, at, 1, 6, 1, 400, 'status_400' from r where is_dead",
    "insert into counters as c (part, tenant, minute, sid, what, n)
     select $1, $2, minute, 0, what, sum(n) from (
       select at / 60000000 as minute, 0 as what, 1 as n from r
       union all select at / 60000000, 1, -1 from r
       union all select at / 60000000, case when is_dead then 6 else 4 end, 1 from r
       union all select at / 60000000, case when is_dead then 20 else 103 + i % 8 end, 1 from r)
     where true group by minute, what
     on conflict (part, tenant, minute, sid, what) do update set n = c.n + excluded.n",
];

impl Sqlite {
    pub(super) async fn write_finished(&self, load: &Load) -> Result<()> {
        let mut tx = self.begin().await?;
        for insert in INSERTS {
            sqlx::query(sqlx::AssertSqlSafe(format!("{ROWS} {insert}")))
                .bind(load.tenant.part().get())
                .bind(load.tenant.0)
                .bind(load.subscription.0)
                .bind(load.from)
                .bind(load.step)
                .bind(load.count)
                .bind(load.dead_every)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    /// SQLite does not by itself.
    #[expect(clippy::unused_async, reason = "called as the other engine's is")]
    pub(super) async fn gather_statistics(&self) -> Result<()> {
        Ok(())
    }
}
