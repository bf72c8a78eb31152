//! Counting in the statements that change deliveries.

use std::collections::HashMap;

use sqlx::Row as _;
use uuid::Uuid;

use super::{Postgres, failed};
use crate::{
    domain::{
        counter::{HAPPENED, KEPT, MINUTE},
        delivery::Delivery,
        id::{Part, day_of},
    },
    store::Result,
};

/// A CTE that adds up what the rows of another one count. `$values` are codes of
/// a row `x` with how much is added to each; a code may be null. Rows are written
/// in the order of their keys, so that two statements never wait for each other
/// in a circle; those of a session are written by its publishes (one code) and its
/// finishes (the others), so that these two never wait for each other at all.
macro_rules! counted {
    ($session:literal, $from:literal, $values:literal) => {
        counted!($from, "(select now_us()) / 60000000", $session, $values)
    };
    ($from:literal, $minute:literal, $session:literal, $values:literal) => {
        concat!(
            "counted as (
  insert into counters as c (part, tenant, minute, sid, what, n)
  select x.part, x.tenant, ",
            $minute,
            ", ",
            $session,
            ", w.what, sum(w.n)::bigint
  from ",
            $from,
            " x cross join lateral (values ",
            $values,
            ") as w(what, n)
  where w.what is not null
  group by 1, 2, 3, 4, 5 having sum(w.n) <> 0
  order by 1, 2, 3, 4, 5
  on conflict (part, tenant, minute, sid, what) do update set n = c.n + excluded.n
)"
        )
    };
}
pub(super) use counted;

const TYPES: &str = "
select i.id, e.type from unnest($1::smallint[], $2::uuid[], $3::integer[]) as i(part, id, day)
join events e on e.part = i.part and e.id = i.id and e.day = i.day
union all
select i.id, k.type from unnest($1::smallint[], $2::uuid[]) as i(part, id)
join kept_bodies k on k.part = i.part and k.event = i.id";

const ADD_UP: &str = "
with old as (
  delete from counters where ctid = any(array(
    select ctid from counters where part = any($1::smallint[]) and minute < now_us() / $2 - $3
    limit $4 for update skip locked))
  returning *),
kept as (
  insert into counter_days as d (part, tenant, day, what, n)
  select part, tenant, case when what in (4, 8, 10) then (minute / 1440)::integer else 0 end,
         case what when 0 then 1 else what end, sum(n)::bigint
  from old where what < $5
  group by 1, 2, 3, 4 having sum(n) <> 0
  order by 1, 2, 3, 4
  on conflict (part, tenant, day, what) do update set n = d.n + excluded.n)
select count(*) from old";

/// What history took along with a day.
const FORGET_DAY: &str = "
with minutes as (
  delete from counters
  where part = any($1::smallint[]) and minute >= $2::bigint * 1440 and minute < ($2::bigint + 1) * 1440
    and what in (4, 8, 10))
delete from counter_days where part = any($1::smallint[]) and day = $2 and day > 0";

impl Postgres {
    /// Whether the history is kept in a partition for each day.
    pub(super) const BY_DAY: bool = true;

    /// A read of the newest rows of each group: `select` reads `table`, whose
    /// column `group` is one of `values`.
    pub(super) fn newest(
        select: &str,
        table: &str,
        group: &str,
        values: &str,
        condition: &str,
        limit: i64,
    ) -> String {
        let _ = table;
        format!(
            "select x.* from (values {values}) w cross join lateral (
               {select} where {group} = w.column1 and {condition} order by id desc limit {limit}) x"
        )
    }

    /// For this transaction: rows are read in the order of their index, also while
    /// the planner takes a table for short that has grown since it looked.
    pub(super) async fn read_in_order(&self, tx: &mut super::Transaction<'_>) -> Result<()> {
        sqlx::raw_sql(
            "set local enable_sort = off; set local enable_bitmapscan = off; set local enable_seqscan = off",
        )
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    /// Reads the deliveries' event types. By the day of each event, in a statement
    /// of its own whose plan is kept: planning over every day takes longer than reading.
    pub(super) async fn read_types(
        &self,
        tx: &mut super::Transaction<'_>,
        deliveries: &mut [Delivery],
    ) -> Result<()> {
        let found = sqlx::query(TYPES)
            .bind(
                deliveries
                    .iter()
                    .map(|d| d.event.part().get())
                    .collect::<Vec<_>>(),
            )
            .bind(deliveries.iter().map(|d| d.event.0).collect::<Vec<_>>())
            .bind(
                deliveries
                    .iter()
                    .map(|d| day_of(d.event.time()))
                    .collect::<Vec<_>>(),
            )
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
        let types: HashMap<Uuid, String> = found.iter().map(|r| (r.get(0), r.get(1))).collect();
        for d in deliveries {
            d.event_type = types.get(&d.event.0).cloned().unwrap_or_default();
        }
        Ok(())
    }

    pub(super) async fn add_up_minutes(&self, parts: &[Part], limit: i64) -> Result<u64> {
        let rows: i64 = sqlx::query_scalar(ADD_UP)
            .bind(super::queue::numbers(parts))
            .bind(MINUTE)
            .bind(KEPT)
            .bind(limit)
            .bind(HAPPENED)
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        Ok(rows.unsigned_abs())
    }

    /// Forgets what was counted into a day's history.
    pub(super) async fn forget_counted(
        tx: &mut super::Transaction<'_>,
        day: i32,
    ) -> std::result::Result<(), sqlx::Error> {
        let parts: Vec<Part> = Part::all().collect();
        sqlx::query(FORGET_DAY)
            .bind(super::queue::numbers(&parts))
            .bind(day)
            .execute(&mut **tx)
            .await
            .map(drop)
    }
}
