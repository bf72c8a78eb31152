//! Finished deliveries by the million, for benchmarks.

use sqlx::Connection as _;

use super::{Postgres, counters::counted, failed};
use crate::{
    domain::id::day_of,
    store::{Load, Result},
};

const LOAD: &str = concat!(
    "
with s as materialized (
  select i, $4::bigint + i * $5::bigint as at, $7::bigint > 0 and i % $7::bigint = 0 as is_dead
  from generate_series(0, $6::bigint - 1) i
),
r as materialized (
  select s.*, $1::smallint as part, $2::uuid as tenant, (at / 86400000000)::integer as day,
         (head || '8' || substr(md5('e' || i || at), 1, 13) || tail)::uuid as event,
         (head || '8' || substr(md5('d' || i || at), 1, 13) || tail)::uuid as id
  from s cross join lateral (select
    lpad(to_hex(at / 1000), 12, '0') || '7' || lpad(to_hex(at % 1000 * 4096 / 1000), 3, '0') as head,
    lpad(to_hex($1::integer | (i % 4 * 64)::integer), 2, '0') as tail) u
),
published as (
  insert into events (part, day, id, tenant, key, type, body)
  select part, day, event, tenant, null, 'load.finished', convert_to('{\"n\":' || i || '}', 'UTF8') from r
),
finished as (
  insert into done (part, day, id, tenant, sub, event, finished_at, took, token, state, attempts, status, reason,
                    worker, response)
  select part, day, id, tenant, $3::uuid, event, at, 1500, 1, 4, 1, 200, '', 'load', '' from r where not is_dead
),
letters as (
  insert into dead (part, id, tenant, sub, event, event_day, dead_at, age_from, token, state, attempts, status, reason)
  select part, id, tenant, $3::uuid, event, day, at, at, 1, 6, 1, 400, 'status_400' from r where is_dead
),
",
    counted!(
        "r",
        "x.at / 60000000",
        "0::bigint",
        "(0, 1), (1, -1), (case when x.is_dead then 6 else 4 end, 1), (case when x.is_dead then 20 end, 1),
         (case when not x.is_dead then 103 + (x.i % 8)::integer end, 1)"
    ),
    "
select count(*) from r"
);

impl Postgres {
    pub(super) async fn write_finished(&self, load: &Load) -> Result<()> {
        let end = load.from + load.step * load.count;
        for day in day_of(load.from)..=day_of(end) {
            self.prepare_day(day).await?;
        }
        sqlx::query(LOAD)
            .bind(load.tenant.part().get())
            .bind(load.tenant.0)
            .bind(load.subscription.0)
            .bind(load.from)
            .bind(load.step)
            .bind(load.count)
            .bind(load.dead_every)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(())
    }

    /// On a connection outside the pools: it may take longer than any statement of ours.
    pub(super) async fn gather_statistics(&self) -> Result<()> {
        let mut connection = self.pool.connect().await.map_err(failed)?;
        sqlx::raw_sql(
            "set statement_timeout = 0; analyze events; analyze done; analyze dead; analyze counters",
        )
        .execute(&mut connection)
        .await
        .map_err(failed)?;
        connection.close().await.map_err(failed)
    }
}
