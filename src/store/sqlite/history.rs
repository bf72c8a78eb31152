//! History goes in slices: each its own transaction, so that no publish waits
//! for a day to go.

use std::collections::BTreeMap;

use sqlx::Row as _;
use uuid::Uuid;

use super::{Sqlite, Transaction, failed};
use crate::{
    domain::id::{DAY, Micros, day_of},
    store::{Forgotten, Result},
};

/// Rows of the queue and the dead letters that need an event's body. A delivery's
/// id lies at its event's instant (the same first 8 bytes), so that they are a
/// short range of the primary key.
macro_rules! needed {
    ($event:literal) => {
        concat!(
            "(exists (select 1 from queue x where x.part = e.part and x.event = e.",
            $event,
            " and x.id >= substr(e.",
            $event,
            ", 1, 8)",
            " and x.id < cast(substr(e.",
            $event,
            ", 1, 8) || x'ffffffffffffffffff' as blob))",
            " or exists (select 1 from dead x where x.part = e.part and x.event = e.",
            $event,
            " and x.id >= substr(e.",
            $event,
            ", 1, 8)",
            " and x.id < cast(substr(e.",
            $event,
            ", 1, 8) || x'ffffffffffffffffff' as blob)))"
        )
    };
}

/// The bodies of a slice of events that something queued or dead still needs.
const KEEP: &str = concat!(
    "insert into kept_bodies (part, event, tenant, type, body, trace)
     select part, id, tenant, type, body, trace from events e
     where rowid in (select rowid from events where day < $1 order by day limit $2) and ",
    needed!("id"),
    " on conflict do nothing"
);

const FORGET_EVENTS: &str = "delete from events where rowid in (select rowid from events where day < $1 order by day limit $2)";
const FORGET_DONE: &str =
    "delete from done where rowid in (select rowid from done where day < $1 order by day limit $2)";
/// What history takes along.
const UNCOUNT: &str = "
insert into counter_days as c (part, tenant, day, what, n)
select part, tenant, day, state, -count(*) from done
where rowid in (select rowid from done where day < $1 order by day limit $2)
group by part, tenant, day, state
on conflict (part, tenant, day, what) do update set n = c.n + excluded.n";
const FORGET_COUNTED: &str = "delete from counter_days where day > 0 and day < $1 and n = 0";
const FORGET_ATTEMPTS: &str = "delete from attempts where rowid in (select rowid from attempts where day < $1 order by day limit $2)";
const FORGET_KEYS: &str = "
delete from idempotency where (part, tenant, key_hash, day) in (
  select part, tenant, key_hash, day from idempotency where at <= $1 order by at limit $2)";

/// Looked for by a reader: the search passes over all that are still needed.
const UNNEEDED: &str = concat!(
    "select rowid from kept_bodies e where not ",
    needed!("event"),
    " limit $1"
);
const FORGET_BODY: &str = concat!(
    "delete from kept_bodies as e where rowid = $1 and not ",
    needed!("event")
);

impl Sqlite {
    /// A day is a column here: there is nothing to prepare.
    #[expect(clippy::unused_async, reason = "called as the other engine's is")]
    pub(super) async fn prepare_days_ahead(&self) -> Result<()> {
        Ok(())
    }

    pub(super) async fn forget_before(&self, days: i32, limit: i64) -> Result<Forgotten> {
        let now = self.now();
        let oldest = i64::from(day_of(now) - days);
        let mut all = true;
        let mut tx = self.begin().await?;
        slice(&mut tx, KEEP, oldest, limit).await?;
        all &= slice(&mut tx, FORGET_EVENTS, oldest, limit).await? < limit as u64;
        tx.commit().await.map_err(failed)?;
        for (sql, before) in [
            (FORGET_DONE, oldest),
            (FORGET_ATTEMPTS, oldest),
            (FORGET_KEYS, now - DAY),
        ] {
            let mut tx = self.begin().await?;
            if sql == FORGET_DONE {
                slice(&mut tx, UNCOUNT, before, limit).await?;
            }
            all &= slice(&mut tx, sql, before, limit).await? < limit as u64;
            tx.commit().await.map_err(failed)?;
        }
        all &= self.forget_bodies(limit).await?;
        let mut tx = self.begin().await?;
        sqlx::query(FORGET_COUNTED)
            .bind(oldest)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        if !all {
            return Ok(Forgotten::Some);
        }
        self.note_kept(oldest as i32, &self.kept().await?).await?;
        Ok(Forgotten::All)
    }

    /// How many bytes of bodies each tenant has that are kept past their day.
    async fn kept(&self) -> Result<BTreeMap<Uuid, i64>> {
        let rows = sqlx::query("select tenant, sum(length(body)) from kept_bodies group by tenant")
            .fetch_all(self.reader())
            .await
            .map_err(failed)?;
        Ok(rows.iter().map(|r| (r.get(0), r.get(1))).collect())
    }

    /// Whether none may be left.
    async fn forget_bodies(&self, limit: i64) -> Result<bool> {
        let unneeded: Vec<i64> = sqlx::query_scalar(UNNEEDED)
            .bind(limit)
            .fetch_all(self.reader())
            .await
            .map_err(failed)?;
        if !unneeded.is_empty() {
            let mut tx = self.begin().await?;
            for row in &unneeded {
                sqlx::query(FORGET_BODY)
                    .bind(row)
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
            }
            tx.commit().await.map_err(failed)?;
        }
        Ok((unneeded.len() as i64) < limit)
    }
}

async fn slice(
    tx: &mut Transaction<'_>,
    sql: &'static str,
    before: Micros,
    limit: i64,
) -> Result<u64> {
    Ok(sqlx::query(sql)
        .bind(before)
        .bind(limit)
        .execute(&mut **tx)
        .await
        .map_err(failed)?
        .rows_affected())
}
