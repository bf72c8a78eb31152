//! Counting in the statements that change deliveries.

use super::{Postgres, failed};
use crate::{
    domain::{
        counter::{HAPPENED, KEPT, MINUTE},
        id::Part,
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

const ADD_UP: &str = "
with old as (
  delete from counters c using (
    select ctid from counters where part = any($1::smallint[]) and minute < now_us() / $2 - $3
    limit $4 for update skip locked) x
  where c.ctid = x.ctid returning c.*),
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
    /// The condition under which an event joins a row `d` of the history, beside
    /// its key: its day, by the milliseconds in its id, so that one partition is
    /// looked into.
    pub(super) const EVENT_DAY: &str = " and e.day = (('x' || replace(left(d.event::text, 13), '-', ''))::bit(48)::bigint / 86400000)::integer";

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
