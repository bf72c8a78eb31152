//! Counting in the transactions that change deliveries.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{
    Sqlite, Transaction,
    batch::{Batch, pieces},
    failed,
    nodes::numbers,
};
use crate::{
    domain::{
        counter::{HAPPENED, KEPT, minute_of},
        delivery::Delivery,
        id::{Micros, Part, TenantId},
    },
    store::{Result, Session},
};

static ADD: Batch = Batch::new(
    "insert into counters as c (part, tenant, minute, sid, what, n) values ",
    "(?,?,?,?,?,?)",
    " on conflict (part, tenant, minute, sid, what) do update set n = c.n + excluded.n",
);

const TYPE: &str = "
select type from events where part = $1 and id = $2
union all select type from kept_bodies where part = $1 and event = $2 limit 1";

/// Minutes that are over for long, chosen twice in one transaction: to be added
/// up, and to be deleted.
const OLD: &str = "from counters where part in (select value from json_each($1)) and minute < $2
  order by part, minute, tenant, sid, what limit $3";

/// Counts that go together into the store.
#[derive(Default)]
pub(super) struct Counts(BTreeMap<(i16, Uuid, i64, i16), i64>);

impl Counts {
    pub(super) fn add(&mut self, part: Part, tenant: TenantId, by: Session, what: i16, n: i64) {
        *self
            .0
            .entry((part.get(), tenant.0, by.0, what))
            .or_default() += n;
    }

    pub(super) async fn write(self, tx: &mut Transaction<'_>, now: Micros) -> Result<()> {
        let minute = minute_of(now);
        let rows: Vec<_> = self.0.into_iter().filter(|(_, n)| *n != 0).collect();
        for piece in pieces(rows.len()) {
            let mut query = sqlx::query(ADD.text(&piece));
            for ((part, tenant, sid, what), n) in &rows[piece] {
                query = query
                    .bind(*part)
                    .bind(*tenant)
                    .bind(minute)
                    .bind(*sid)
                    .bind(*what)
                    .bind(*n);
            }
            query.execute(&mut **tx).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// A statement that counts what rows of the queue are before they are moved.
/// `counts` are what each of its rows counts: codes with how much is added.
pub(super) fn count_moved(condition: &str, counts: &[(&str, &str)], now: Micros) -> String {
    let minute = minute_of(now);
    let counts: Vec<String> = counts
        .iter()
        .map(|(what, n)| {
            format!("select part, tenant, {what} as what, {n} as n from x where {what} is not null")
        })
        .collect();
    format!(
        "with x as materialized (select part, tenant, state, attempts from queue {condition})
         insert into counters as c (part, tenant, minute, sid, what, n)
         select part, tenant, {minute}, 0, what, sum(n) from ({}) where true
         group by part, tenant, what having sum(n) <> 0
         on conflict (part, tenant, minute, sid, what) do update set n = c.n + excluded.n",
        counts.join(" union all ")
    )
}

impl Sqlite {
    /// Whether the history is kept in a partition for each day.
    pub(super) const BY_DAY: bool = false;

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
        let from = format!("from {table}");
        let select = select.replace(
            &from,
            &format!("from (values {values}) w cross join {table}"),
        );
        format!(
            "{select} where {group} = w.column1 and id in (
               select id from {table} where {group} = w.column1 and {condition} order by id desc limit {limit})"
        )
    }

    /// Statements are written so that SQLite reads in order.
    #[expect(clippy::unused_async, reason = "called as the other engine's is")]
    pub(super) async fn read_in_order(&self, _: &mut Transaction<'_>) -> Result<()> {
        Ok(())
    }

    /// Reads the deliveries' event types.
    pub(super) async fn read_types(
        &self,
        tx: &mut Transaction<'_>,
        deliveries: &mut [Delivery],
    ) -> Result<()> {
        for d in deliveries {
            let found: Option<String> = sqlx::query_scalar(TYPE)
                .bind(d.event.part().get())
                .bind(d.event.0)
                .fetch_optional(&mut **tx)
                .await
                .map_err(failed)?;
            d.event_type = found.unwrap_or_default();
        }
        Ok(())
    }

    pub(super) async fn add_up_minutes(&self, parts: &[Part], limit: i64) -> Result<u64> {
        let mut tx = self.begin().await?;
        let before = minute_of(self.now()) - KEPT;
        let add = format!(
            "insert into counter_days as d (part, tenant, day, what, n)
             select part, tenant, case when what in (4, 8, 10) then minute / 1440 else 0 end as day,
                    case what when 0 then 1 else what end as state, sum(n)
             from (select * {OLD}) where what < {HAPPENED}
             group by part, tenant, day, state having sum(n) <> 0
             on conflict (part, tenant, day, what) do update set n = d.n + excluded.n"
        );
        let delete = format!(
            "delete from counters where (part, tenant, minute, sid, what) in (
               select part, tenant, minute, sid, what {OLD})"
        );
        let mut rows = 0;
        for sql in [add, delete] {
            rows = sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(numbers(parts.iter().copied()))
                .bind(before)
                .bind(limit)
                .execute(&mut *tx)
                .await
                .map_err(failed)?
                .rows_affected();
        }
        tx.commit().await.map_err(failed)?;
        Ok(rows)
    }
}
