//! Bodies that outlive their day, because something queued or dead still needs
//! them: copied before the day goes, dropped when nothing needs them any longer.
//! Both in slices, however much is dead: a statement over all of it would be cut
//! off by its time limit, each time anew.

use std::collections::BTreeMap;

use sqlx::Row as _;
use uuid::Uuid;

use super::{Postgres, failed};
use crate::{
    domain::id::{DAY, Part, first_uuid_at, next_uuid},
    store::{Forgotten, Result},
};

/// The most bodies that a statement copies: each may be as large as an event may be.
const COPIED: i64 = 200;

/// The bodies that a slice of what is queued or dead needs, from a day's events in
/// this table. Deliveries of a day's events have ids of that day. Queue and dead
/// letters are seen in one statement, and by their ids, which stay: what moves from
/// one to the other meanwhile is in either.
fn keep(table: &str) -> String {
    format!(
        "with needed as materialized (
           select id, event from (
             (select id, event from queue where part = $1 and id >= $2 and id < $3 order by id limit $4)
             union all
             (select id, event from dead where part = $1 and id >= $2 and id < $3 order by id limit $4)
           ) x order by id limit $4
         ),
         kept as (
           insert into kept_bodies (part, event, tenant, type, body, trace)
           select e.part, e.id, e.tenant, e.type, e.body, e.trace
           from {table} e
           where e.part = $1 and e.day = $5 and e.id = any(array(select event from needed))
           on conflict do nothing
           returning 1
         )
         select (select count(*) from needed), (select count(*) from kept),
                (select id from needed order by id desc limit 1)"
    )
}

/// Drops of a slice of bodies those that nothing needs; answers by tenant how many
/// were looked at, and how many bytes stay. A delivery's id lies at its event's
/// instant (the same first 8 bytes), so that those of an event are a short range of
/// the primary key; a subquery of its own for each, which the planner does not turn
/// into a join with all that is queued.
const SWEEP: &str = "
with seen as materialized (
  select k.event, k.tenant, octet_length(k.body)::bigint as bytes,
         coalesce((select true from queue x where x.part = $1 and x.event = k.event
                     and x.id >= (left(k.event::text, 18) || '-0000-000000000000')::uuid
                     and x.id <= (left(k.event::text, 18) || '-ffff-ffffffffffff')::uuid limit 1),
                  (select true from dead x where x.part = $1 and x.event = k.event
                     and x.id >= (left(k.event::text, 18) || '-0000-000000000000')::uuid
                     and x.id <= (left(k.event::text, 18) || '-ffff-ffffffffffff')::uuid limit 1),
                  false) as needed
  from kept_bodies k where k.part = $1 and k.event >= $2 order by k.event limit $3
),
dropped as (
  delete from kept_bodies
  where part = $1 and event = any(array(select event from seen where not needed))
)
select tenant, count(*), coalesce(sum(bytes) filter (where needed), 0)::bigint,
       (select event from seen order by event desc limit 1)
from seen group by tenant";

/// How far a walk through all partitions has come.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    part: i16,
    from: Uuid,
}

impl Place {
    fn is_end(self) -> bool {
        self.part >= i16::from(Part::COUNT)
    }

    /// Goes on behind a slice of at most `limit` rows, which ended with `last`.
    fn pass(&mut self, rows: i64, limit: i64, last: Option<Uuid>) {
        *self = match last {
            Some(last) if rows >= limit => Self {
                from: next_uuid(last),
                ..*self
            },
            _ => Self {
                part: self.part + 1,
                from: Uuid::nil(),
            },
        };
    }
}

/// How far a node has come with what outlives its day. After a restart it begins
/// anew: all of it can be done twice.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Of which table bodies are being copied, and how far.
    copying: Option<(String, Place)>,
    sweep: Sweep,
}

#[derive(Debug, Default)]
struct Sweep {
    place: Place,
    /// The bytes that stay, by tenant.
    kept: BTreeMap<Uuid, i64>,
    /// Whether it has come through since it was last begun anew.
    done: bool,
}

impl Progress {
    /// The next sweep looks at everything again.
    pub(super) fn begin_anew(&mut self) {
        if self.sweep.done {
            self.sweep = Sweep::default();
        }
    }
}

impl Postgres {
    /// Copies what is needed of a day's events in this table; whether that is all
    /// of it. Looks at about so many rows.
    pub(super) async fn keep_bodies(
        &self,
        progress: &mut Progress,
        table: &str,
        day: i32,
        limit: i64,
    ) -> std::result::Result<bool, sqlx::Error> {
        let (low, high) = (i64::from(day) * DAY, (i64::from(day) + 1) * DAY);
        let (low, high) = (first_uuid_at(low), first_uuid_at(high));
        let sql = keep(table);
        let slice = COPIED.min(limit);
        let what = format!("{table} {day}");
        let mut place = match progress.copying.take() {
            Some((at, place)) if at == what => place,
            _ => Place::default(),
        };
        let mut left = limit;
        while !place.is_end() {
            if left <= 0 {
                progress.copying = Some((what, place));
                return Ok(false);
            }
            let row = sqlx::query(sqlx::AssertSqlSafe(sql.clone()))
                .persistent(false)
                .bind(place.part)
                .bind(place.from.max(low))
                .bind(high)
                .bind(slice)
                .bind(day)
                .fetch_one(&self.pool)
                .await?;
            let (needed, kept): (i64, i64) = (row.get(0), row.get(1));
            if kept > 0 {
                progress.sweep = Sweep::default();
            }
            left -= needed;
            place.pass(needed, slice, row.get(2));
        }
        Ok(true)
    }

    /// Drops bodies that nothing needs, and notes how much the others take once all
    /// were looked at: usage from before `oldest` is forgotten then.
    pub(super) async fn sweep_bodies(
        &self,
        progress: &mut Progress,
        oldest: i32,
        limit: i64,
    ) -> Result<Forgotten> {
        let sweep = &mut progress.sweep;
        let mut left = limit;
        while !sweep.place.is_end() {
            if left <= 0 {
                return Ok(Forgotten::Some);
            }
            let rows = sqlx::query(SWEEP)
                .persistent(false)
                .bind(sweep.place.part)
                .bind(sweep.place.from)
                .bind(limit)
                .fetch_all(&self.pool)
                .await
                .map_err(failed)?;
            let seen = rows.iter().map(|r| r.get::<i64, _>(1)).sum();
            for row in &rows {
                *sweep.kept.entry(row.get(0)).or_default() += row.get::<i64, _>(2);
            }
            left -= seen;
            sweep
                .place
                .pass(seen, limit, rows.first().and_then(|r| r.get(3)));
        }
        if !sweep.done {
            self.note_kept(oldest, &sweep.kept).await?;
            sweep.done = true;
        }
        Ok(Forgotten::All)
    }
}
