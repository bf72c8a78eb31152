//! Publishing: a few statements in one transaction commit a batch of events
//! with their deliveries.

use std::collections::{HashMap, HashSet};

use sqlx::Row as _;
use uuid::Uuid;

use super::{
    Sqlite, Transaction,
    batch::{Batch, pieces},
    counters::Counts,
    failed,
};
use crate::{
    domain::{
        counter::ACCEPTED,
        id::{EventId, Micros, Part, TenantId, day_of},
    },
    store::{NewDelivery, Publish, Published, Result, Session, StoreError},
};

static OWNED: Batch = Batch::new(
    "with i(part) as (values ",
    "(?)",
    ") select o.part, n.sid is not null, o.held, o.held_since
       from i cross join part_owner o on o.part = i.part
       left join nodes n on n.sid = o.sid and o.sid = ? and n.expires_at > ?",
);

static REVISIONS: Batch = Batch::new(
    "select tenant, rev from tenant_rev where tenant in (values ",
    "(?)",
    ")",
);

/// A record older than the window gives way.
static SEEN: Batch = Batch::new(
    "insert into idempotency as old (part, day, tenant, key_hash, content_hash, event, deliveries, at) values ",
    "(?,?,?,?,?,?,?,?)",
    " on conflict (part, tenant, key_hash, day) do update
        set content_hash = excluded.content_hash, event = excluded.event,
            deliveries = excluded.deliveries, at = excluded.at
        where old.at <= excluded.at - 86400000000",
);

/// Which of these events hold their keys.
static HOLDERS: Batch = Batch::new(
    "with i(part, day, tenant, key_hash, event) as (values ",
    "(?,?,?,?,?)",
    ") select i.event from i cross join idempotency o
       on o.part = i.part and o.tenant = i.tenant and o.key_hash = i.key_hash and o.day = i.day
       where o.event = i.event",
);

static EVENTS: Batch = Batch::new(
    "insert into events (part, day, id, tenant, key, type, body, trace) values ",
    "(?,?,?,?,?,?,?,?)",
    "",
);

/// With ordering keys: apart, so that all others are inserted without.
static ORDERED: Batch = Batch::new(
    "insert into queue (part, id, tenant, sub, event, event_day, due_at, age_from, lease_sid, token, okey,
                        dead_at, state, attempts, replays, by_hand, status, reason) values ",
    "(?,?,?,?,?,?,?,?,?,?,?,0,1,0,0,0,0,'')",
    "",
);

static QUEUE: Batch = Batch::new(
    "insert into queue (part, id, tenant, sub, event, event_day, due_at, age_from, lease_sid, token,
                        dead_at, state, attempts, replays, by_hand, status, reason) values ",
    "(?,?,?,?,?,?,?,?,?,?,0,1,0,0,0,0,'')",
    "",
);

const WINNER: &str = "
select event, deliveries, content_hash from idempotency
where part = $1 and tenant = $2 and key_hash = $3 and day = $4";

/// What a session has of a partition.
#[derive(Clone, Copy)]
pub(super) struct Own {
    /// Whether it may lease in it: it owns it, and is alive.
    pub mine: bool,
    /// The partition's clock: the store's, without the time that it was held.
    pub active: Micros,
}

/// What the session has of these partitions.
pub(super) async fn owned(
    tx: &mut Transaction<'_>,
    session: Session,
    parts: impl Iterator<Item = Part>,
    now: Micros,
) -> Result<HashMap<i16, Own>> {
    let parts: HashSet<i16> = parts.map(Part::get).collect();
    let parts: Vec<i16> = parts.into_iter().collect();
    let mut owned = HashMap::with_capacity(parts.len());
    for piece in pieces(parts.len()) {
        let mut query = sqlx::query(OWNED.text(&piece));
        for part in &parts[piece] {
            query = query.bind(*part);
        }
        let rows = query
            .bind(session.0)
            .bind(now)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
        for r in rows {
            let (held, since): (i64, i64) = (r.get(2), r.get(3));
            let holding = if since > 0 { now - since } else { 0 };
            let own = Own {
                mine: r.get(1),
                active: now - held - holding,
            };
            owned.insert(r.get(0), own);
        }
    }
    Ok(owned)
}

impl Sqlite {
    pub(super) async fn publish_batch(
        &self,
        session: Session,
        batch: &[Publish],
    ) -> Result<Vec<Published>> {
        let mut results = vec![Published::Stale; batch.len()];
        let mut tx = self.begin().await?;
        let now = self.now();
        let mut accepted = fresh(&mut tx, batch).await?;
        recognise(&mut tx, batch, &mut accepted, now, &mut results).await?;
        if accepted.is_empty() {
            // Also where keys were recognised: that wrote nothing.
            return Ok(results);
        }
        let parts = accepted.iter().map(|i| batch[*i].event.part());
        let owned = owned(&mut tx, session, parts, now).await?;
        insert_events(&mut tx, batch, &accepted).await?;
        insert_deliveries(&mut tx, batch, &accepted, &owned, session, now).await?;
        let mut counts = Counts::default();
        for p in accepted.iter().map(|i| &batch[*i]) {
            let n = p.deliveries.len() as i64;
            counts.add(p.event.part(), p.tenant, session, ACCEPTED, n);
        }
        counts.write(&mut tx, now).await?;
        tx.commit().await.map_err(failed)?;
        for i in accepted {
            let own = owned.get(&batch[i].event.part().get());
            results[i] = Published::Accepted {
                leased: own.is_some_and(|o| o.mine),
            };
        }
        Ok(results)
    }
}

/// Those that were matched against their tenant's present revision.
async fn fresh(tx: &mut Transaction<'_>, batch: &[Publish]) -> Result<Vec<usize>> {
    let tenants: HashSet<Uuid> = batch.iter().map(|p| p.tenant.0).collect();
    let tenants: Vec<Uuid> = tenants.into_iter().collect();
    let mut revisions = HashMap::with_capacity(tenants.len());
    for piece in pieces(tenants.len()) {
        let mut query = sqlx::query(REVISIONS.text(&piece));
        for tenant in &tenants[piece] {
            query = query.bind(*tenant);
        }
        for r in query.fetch_all(&mut **tx).await.map_err(failed)? {
            revisions.insert(TenantId(r.get(0)), r.get::<i64, _>(1));
        }
    }
    let is_fresh = |i: &usize| revisions.get(&batch[*i].tenant) == Some(&batch[*i].revision);
    Ok((0..batch.len()).filter(is_fresh).collect())
}

/// Takes the idempotency keys. Where one came before, also in this very batch,
/// its event is not accepted.
async fn recognise(
    tx: &mut Transaction<'_>,
    batch: &[Publish],
    accepted: &mut Vec<usize>,
    now: Micros,
    results: &mut [Published],
) -> Result<()> {
    let keyed: Vec<_> = accepted
        .iter()
        .filter_map(|i| Some((*i, batch[*i].idempotency?)))
        .collect();
    let mut taken = 0;
    for piece in pieces(keyed.len()) {
        let mut query = sqlx::query(SEEN.text(&piece));
        for (i, key) in &keyed[piece] {
            let p = &batch[*i];
            query = query
                .bind(p.event.part().get())
                .bind(key.day)
                .bind(p.tenant.0)
                .bind(Uuid::from_bytes(key.key))
                .bind(Uuid::from_bytes(key.content))
                .bind(p.event.0)
                .bind(p.deliveries.len() as i32)
                .bind(now);
        }
        taken += query
            .execute(&mut **tx)
            .await
            .map_err(failed)?
            .rows_affected();
    }
    if taken == keyed.len() as u64 {
        return Ok(());
    }
    let mut first = HashSet::with_capacity(keyed.len());
    for piece in pieces(keyed.len()) {
        let mut query = sqlx::query(HOLDERS.text(&piece));
        for (i, key) in &keyed[piece] {
            let p = &batch[*i];
            query = query
                .bind(p.event.part().get())
                .bind(key.day)
                .bind(p.tenant.0)
                .bind(Uuid::from_bytes(key.key))
                .bind(p.event.0);
        }
        for r in query.fetch_all(&mut **tx).await.map_err(failed)? {
            first.insert(EventId(r.get(0)));
        }
    }
    for (i, key) in keyed
        .iter()
        .filter(|(i, _)| !first.contains(&batch[*i].event))
    {
        let p = &batch[*i];
        let r = sqlx::query(WINNER)
            .bind(p.event.part().get())
            .bind(p.tenant.0)
            .bind(Uuid::from_bytes(key.key))
            .bind(key.day)
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed)?
            .ok_or_else(|| {
                StoreError::Unavailable("an idempotency key's first use is gone".into())
            })?;
        results[*i] = Published::Duplicate {
            event: EventId(r.get(0)),
            deliveries: r.get(1),
            same: r.get::<Uuid, _>(2).as_bytes() == &key.content,
        };
    }
    accepted.retain(|i| batch[*i].idempotency.is_none() || first.contains(&batch[*i].event));
    Ok(())
}

async fn insert_events(
    tx: &mut Transaction<'_>,
    batch: &[Publish],
    accepted: &[usize],
) -> Result<()> {
    for piece in pieces(accepted.len()) {
        let mut query = sqlx::query(EVENTS.text(&piece));
        for i in &accepted[piece] {
            let p = &batch[*i];
            query = query
                .bind(p.event.part().get())
                .bind(day_of(p.event.time()))
                .bind(p.event.0)
                .bind(p.tenant.0)
                .bind(p.key.map(|k| k.0))
                .bind(p.event_type.as_str())
                .bind(&p.body[..])
                .bind(p.trace.as_ref().and_then(|t| t.encode()));
        }
        query.execute(&mut **tx).await.map_err(failed)?;
    }
    Ok(())
}

async fn insert_deliveries(
    tx: &mut Transaction<'_>,
    batch: &[Publish],
    accepted: &[usize],
    owned: &HashMap<i16, Own>,
    session: Session,
    now: Micros,
) -> Result<()> {
    let (ordered, rows): (Vec<_>, Vec<_>) = accepted
        .iter()
        .flat_map(|i| batch[*i].deliveries.iter().map(|d| (&batch[*i], d)))
        .partition(|(p, d)| p.order_of(d).is_some());
    insert_rows(tx, &QUEUE, &rows, owned, session, now).await?;
    insert_rows(tx, &ORDERED, &ordered, owned, session, now).await
}

async fn insert_rows(
    tx: &mut Transaction<'_>,
    statement: &'static Batch,
    rows: &[(&Publish, &NewDelivery)],
    owned: &HashMap<i16, Own>,
    session: Session,
    now: Micros,
) -> Result<()> {
    for piece in pieces(rows.len()) {
        let mut query = sqlx::query(statement.text(&piece));
        for (p, d) in &rows[piece] {
            let part = p.event.part().get();
            let own = owned
                .get(&part)
                .copied()
                .ok_or_else(|| StoreError::Unfit(format!("partition {part} is missing")))?;
            let order = p.order_of(d);
            let leased = d.lease && own.mine && order.is_none();
            query = query
                .bind(part)
                .bind(d.id.0)
                .bind(p.tenant.0)
                .bind(d.subscription.0)
                .bind(p.event.0)
                .bind(day_of(p.event.time()))
                .bind(now)
                .bind(own.active - d.held)
                .bind(if leased { session.0 } else { 0 })
                .bind(i32::from(leased));
            if let Some((_, key)) = order {
                query = query.bind(key);
            }
        }
        query.execute(&mut **tx).await.map_err(failed)?;
    }
    Ok(())
}
