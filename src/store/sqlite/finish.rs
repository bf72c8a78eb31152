//! Finishing: which leases still hold is found first; what follows touches only
//! those, in the same transaction.

use std::collections::{BTreeSet, HashMap, HashSet};

use sqlx::Row as _;

use super::{
    Row, Sqlite, Transaction,
    batch::{Batch, pieces},
    counters::Counts,
    failed,
};
use crate::{
    domain::{
        counter::Settled,
        delivery::AttemptKind,
        id::{Micros, TenantId, day_of},
    },
    store::{Finish, Finished, Result, Session, rows::FinishRow},
};

/// What of these is leased under these very tokens, and what it is.
static LEASED: Batch = Batch::new(
    "with i(at, part, id, token) as (values ",
    "(?,?,?,?)",
    ") select i.at, q.tenant, q.lease_sid, q.state, q.attempts, q.age_from, o.held, o.held_since
       from i cross join queue q on q.part = i.part and q.id = i.id and q.token = i.token
       cross join part_owner o on o.part = q.part
       where q.lease_sid <> 0",
);

/// Rows that were finished under these very tokens already.
static BEFORE: Batch = Batch::new(
    "with i(at, part, id, token) as (values ",
    "(?,?,?,?)",
    ") select at from i
       where exists (select 1 from done d where d.part = i.part and d.id = i.id and d.token = i.token)
          or exists (select 1 from dead d where d.part = i.part and d.id = i.id and d.token = i.token)
          or exists (select 1 from attempts a where a.part = i.part and a.delivery = i.id and a.token = i.token)",
);

static TRIES: Batch = Batch::new(
    "insert into attempts (part, day, delivery, token, number, started_at, took, kind, status,
                           error, worker, response) values ",
    "(?,?,?,?,?,?,?,?,?,?,?,?)",
    "",
);

static DONE: Batch = Batch::new(
    "with i(part, id, token, state, charge, finished_at, took, status, reason, worker, response) as (values ",
    "(?,?,?,?,?,?,?,?,?,?,?)",
    ") insert into done (part, day, id, tenant, sub, event, finished_at, took, token, state, attempts,
                         status, reason, worker, response)
       select q.part, ?, q.id, q.tenant, q.sub, q.event, i.finished_at, i.took, q.token, i.state, q.attempts + i.charge,
              i.status, i.reason, i.worker, i.response
       from i cross join queue q on q.part = i.part and q.id = i.id and q.token = i.token",
);

static DEAD: Batch = Batch::new(
    "with i(part, id, token, state, charge, status, reason) as (values ",
    "(?,?,?,?,?,?,?)",
    ") insert into dead (part, id, tenant, sub, event, event_day, dead_at, age_from, token, state, attempts,
                         status, reason, okey, oseq)
       select q.part, q.id, q.tenant, q.sub, q.event, q.event_day, ?, q.age_from, q.token, i.state,
              q.attempts + i.charge, i.status, i.reason, q.okey, q.oseq
       from i cross join queue q on q.part = i.part and q.id = i.id and q.token = i.token",
);

static GONE: Batch = Batch::new(
    "delete from queue where (part, id) in (values ",
    "(?,?)",
    ")",
);

static AGAIN: Batch = Batch::new(
    "with i(part, id, due_at, dead_at, state, charge, replay, status, reason) as (values ",
    "(?,?,?,?,?,?,?,?,?)",
    ") update queue set lease_sid = 0, token = token + 1, due_at = i.due_at, dead_at = i.dead_at,
              state = i.state, attempts = attempts + i.charge, replays = replays + i.replay,
              status = i.status, reason = i.reason
       from i where queue.part = i.part and queue.id = i.id",
);

static RELEASED: Batch = Batch::new(
    "update queue set lease_sid = 0, token = token + 1, dead_at = 0 where (part, id) in (values ",
    "(?,?)",
    ")",
);

type Item<'a> = (&'a Finish, FinishRow<'a>);

impl Sqlite {
    pub(super) async fn finish_batch(&self, batch: &[Finish]) -> Result<Vec<Finished>> {
        // Of repetitions within the batch the first takes effect.
        let mut first = HashMap::with_capacity(batch.len());
        let mut distinct = Vec::with_capacity(batch.len());
        for (at, f) in batch.iter().enumerate() {
            first.entry((f.id, f.token)).or_insert_with(|| {
                distinct.push(at);
                at
            });
        }
        let mut tx = self.begin().await?;
        let now = self.now();
        let (hit, counts) = leased(&mut tx, batch, &distinct, now).await?;
        let missed: Vec<usize> = distinct
            .into_iter()
            .filter(|at| !hit.contains(at))
            .collect();
        let before: HashSet<usize> = which(&mut tx, &BEFORE, batch, &missed)
            .await?
            .iter()
            .map(at)
            .collect();
        if !hit.is_empty() {
            let rows: Vec<Item<'_>> = hit
                .iter()
                .map(|at| (&batch[*at], FinishRow::of(&batch[*at])))
                .collect();
            settle(&mut tx, &rows, now).await?;
            counts.write(&mut tx, now).await?;
            tx.commit().await.map_err(failed)?;
        }
        Ok(batch
            .iter()
            .enumerate()
            .map(|(at, f)| {
                let original = first.get(&(f.id, f.token)).copied().unwrap_or(at);
                if hit.contains(&at) {
                    Finished::Now
                } else if hit.contains(&original) || before.contains(&original) {
                    Finished::Before
                } else {
                    Finished::Stale
                }
            })
            .collect())
    }
}

fn at(row: &Row) -> usize {
    row.get::<i64, _>(0) as usize
}

/// Which of these are leased under their tokens, in their order, and what their
/// ends count.
async fn leased(
    tx: &mut Transaction<'_>,
    batch: &[Finish],
    chosen: &[usize],
    now: Micros,
) -> Result<(BTreeSet<usize>, Counts)> {
    let mut hit = BTreeSet::new();
    let mut counts = Counts::default();
    for r in which(tx, &LEASED, batch, chosen).await? {
        let f = &batch[at(&r)];
        let row = FinishRow::of(f);
        hit.insert(at(&r));
        let (before, attempts): (i16, i64) = (r.get(3), r.get(4));
        let (began, held, since): (Micros, Micros, Micros) = (r.get(5), r.get(6), r.get(7));
        let holding = if since > 0 { now - since } else { 0 };
        let settled = Settled {
            before,
            after: if row.action == 4 { before } else { row.state },
            attempts: attempts + i64::from(row.charge),
            rejected: row.kind == AttemptKind::ReplayExpired.to_i16(),
            latency: now - held - holding - began - f.held,
        };
        for (what, n) in settled.counts() {
            let (tenant, session) = (TenantId(r.get(1)), Session(r.get(2)));
            counts.add(f.id.part(), tenant, session, what, n);
        }
    }
    Ok((hit, counts))
}

/// What the statement answers about these.
async fn which(
    tx: &mut Transaction<'_>,
    statement: &'static Batch,
    batch: &[Finish],
    chosen: &[usize],
) -> Result<Vec<Row>> {
    let mut found = Vec::with_capacity(chosen.len());
    for piece in pieces(chosen.len()) {
        let mut query = sqlx::query(statement.text(&piece));
        for at in &chosen[piece] {
            let f = &batch[*at];
            query = query
                .bind(*at as i64)
                .bind(f.id.part().get())
                .bind(f.id.0)
                .bind(f.token);
        }
        found.extend(query.fetch_all(&mut **tx).await.map_err(failed)?);
    }
    Ok(found)
}

async fn settle(tx: &mut Transaction<'_>, rows: &[Item<'_>], now: Micros) -> Result<()> {
    let of = |wanted: fn(&FinishRow<'_>) -> bool| -> Vec<&Item<'_>> {
        rows.iter().filter(|(_, row)| wanted(row)).collect()
    };
    record_attempts(tx, &of(|r| r.kind > 0), now).await?;
    record_done(tx, &of(|r| r.action == 0), now).await?;
    record_dead(tx, &of(|r| r.action == 1), now).await?;
    by_id(tx, &GONE, &of(|r| r.action < 2)).await?;
    queue_again(tx, &of(|r| r.action == 2 || r.action == 3), now).await?;
    by_id(tx, &RELEASED, &of(|r| r.action == 4)).await
}

async fn by_id(
    tx: &mut Transaction<'_>,
    statement: &'static Batch,
    rows: &[&Item<'_>],
) -> Result<()> {
    for piece in pieces(rows.len()) {
        let mut query = sqlx::query(statement.text(&piece));
        for (f, _) in &rows[piece] {
            query = query.bind(f.id.part().get()).bind(f.id.0);
        }
        query.execute(&mut **tx).await.map_err(failed)?;
    }
    Ok(())
}

async fn record_attempts(tx: &mut Transaction<'_>, rows: &[&Item<'_>], now: Micros) -> Result<()> {
    for piece in pieces(rows.len()) {
        let mut query = sqlx::query(TRIES.text(&piece));
        for (f, row) in &rows[piece] {
            query = query
                .bind(f.id.part().get())
                .bind(day_of(now))
                .bind(f.id.0)
                .bind(f.token)
                .bind(row.number)
                .bind(if row.started > 0 {
                    row.started
                } else {
                    now - row.took
                })
                .bind(row.took)
                .bind(row.kind)
                .bind(row.status)
                .bind(row.error)
                .bind(row.worker)
                .bind(row.response);
        }
        query.execute(&mut **tx).await.map_err(failed)?;
    }
    Ok(())
}

async fn record_done(tx: &mut Transaction<'_>, rows: &[&Item<'_>], now: Micros) -> Result<()> {
    for piece in pieces(rows.len()) {
        let mut query = sqlx::query(DONE.text(&piece));
        for (f, row) in &rows[piece] {
            query = query
                .bind(f.id.part().get())
                .bind(f.id.0)
                .bind(f.token)
                .bind(row.state)
                .bind(row.charge)
                .bind(if row.started > 0 {
                    row.started + row.took
                } else {
                    now
                })
                .bind(row.took)
                .bind(row.status)
                .bind(f.reason.as_str())
                .bind(row.worker)
                .bind(row.response);
        }
        query
            .bind(day_of(now))
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
    }
    Ok(())
}

async fn record_dead(tx: &mut Transaction<'_>, rows: &[&Item<'_>], now: Micros) -> Result<()> {
    for piece in pieces(rows.len()) {
        let mut query = sqlx::query(DEAD.text(&piece));
        for (f, row) in &rows[piece] {
            query = query
                .bind(f.id.part().get())
                .bind(f.id.0)
                .bind(f.token)
                .bind(row.state)
                .bind(row.charge)
                .bind(row.status)
                .bind(f.reason.as_str());
        }
        query.bind(now).execute(&mut **tx).await.map_err(failed)?;
    }
    Ok(())
}

async fn queue_again(tx: &mut Transaction<'_>, rows: &[&Item<'_>], now: Micros) -> Result<()> {
    for piece in pieces(rows.len()) {
        let mut query = sqlx::query(AGAIN.text(&piece));
        for (f, row) in &rows[piece] {
            let then = now.saturating_add(row.wait);
            // What has failed is never due: it is buried, or saved by hand.
            let (due_at, dead_at) = if row.action == 3 {
                (Micros::MAX, then)
            } else {
                (then, 0)
            };
            query = query
                .bind(f.id.part().get())
                .bind(f.id.0)
                .bind(due_at)
                .bind(dead_at)
                .bind(row.state)
                .bind(row.charge)
                .bind(row.replay)
                .bind(row.status)
                .bind(f.reason.as_str());
        }
        query.execute(&mut **tx).await.map_err(failed)?;
    }
    Ok(())
}
