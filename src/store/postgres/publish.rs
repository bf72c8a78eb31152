//! Publishing: one statement commits a batch of events with their deliveries.

use std::collections::{HashMap, HashSet};

use sqlx::Row as _;
use uuid::Uuid;

use super::{Postgres, counters::counted, failed, history, is_deadlock, lacks_day};
use crate::{
    domain::{
        event::Idempotency,
        id::{EventId, day_of},
    },
    store::{Publish, Published, Result, Session, StoreError},
};

/// `fresh`: matched against the tenant's present revision. `seen`: took the
/// idempotency key, for the first time or after its window. `own`: partitions in
/// which this session may lease. Rows are inserted in the order of their keys,
/// as they come in the arrays, so that two nodes never wait for each other in a
/// circle. What has an ordering key is not leased. Whether one was
/// accepted is asked of `seen`, not joined with `accepted`: the planner takes each
/// for one row, and would compare all with all.
const PUBLISH: &str = concat!(
    "
with t as materialized (select now_us() as now),
input as materialized (
  select * from unnest($2::smallint[], $3::uuid[], $4::bigint[], $5::uuid[], $6::integer[], $7::text[],
                       $8::bytea[], $9::uuid[], $10::smallint[], $11::uuid[], $12::uuid[], $13::integer[],
                       $19::bytea[])
    with ordinality as i(part, tenant, rev, event, day, type, body, key, bucket, idem_key, content, n, trace, ord)
),
fresh as materialized (
  select i.* from input i join tenant_rev r on r.tenant = i.tenant and r.rev = i.rev
),
seen as (
  insert into idempotency as old (part, bucket, tenant, key_hash, content_hash, event, deliveries, at)
  select part, bucket, tenant, idem_key, content, event, n, t.now
  from fresh, t where idem_key is not null
  order by part, tenant, idem_key, bucket
  on conflict (part, tenant, key_hash, bucket) do update
    set content_hash = excluded.content_hash, event = excluded.event,
        deliveries = excluded.deliveries, at = excluded.at
    where old.at <= excluded.at - 86400000000
  returning event
),
accepted as materialized (
  select * from fresh where idem_key is null or event in (select event from seen)
),
own as materialized (
  select o.part, (n.sid is not null) as mine,
         t.now - o.held - case when o.held_since > 0 then t.now - o.held_since else 0 end as active
  from part_owner o cross join t
  left join nodes n on n.sid = o.sid and o.sid = $1 and n.expires_at > t.now
  where o.part in (select part from accepted)
),
stored as (
  insert into events (part, day, id, tenant, key, type, body, trace)
  select part, day, event, tenant, key, type, body, trace from accepted order by part, event
),
queued as (
  insert into queue (part, id, tenant, sub, event, event_day, due_at, dead_at, age_from,
                     lease_sid, token, state, attempts, replays, by_hand, status, reason, okey)
  select a.part, d.id, a.tenant, d.sub, a.event, a.day, t.now, 0, own.active - d.held,
         case when d.lease and own.mine then $1 else 0 end,
         case when d.lease and own.mine then 1 else 0 end, 1, 0, 0, false, 0, '', d.okey
  from unnest($14::integer[], $15::uuid[], $16::uuid[], $17::bigint[], $18::boolean[], $20::text[])
    with ordinality as d(ord, id, sub, held, lease, okey, place)
  join accepted a on a.ord = d.ord
  join own on own.part = a.part
  cross join t
  order by d.place
),
",
    counted!("$1", "accepted", "(case when x.n > 0 then 0 end, x.n)"),
    "
select f.ord, f.idem_key is null or f.event in (select event from seen) as accepted,
       coalesce(own.mine, false) as leased
from fresh f left join own on own.part = f.part"
);

const WINNERS: &str = "
select i.ord, w.event, w.deliveries, w.content_hash
from unnest($1::smallint[], $2::smallint[], $3::uuid[], $4::uuid[]) with ordinality as i(part, bucket, tenant, key, ord)
join idempotency w on w.part = i.part and w.bucket = i.bucket and w.tenant = i.tenant and w.key_hash = i.key";

/// Where a key's record is.
fn bucket_of(k: Idempotency) -> i16 {
    match k.day {
        0 => 0,
        day => history::bucket_of_day(day),
    }
}

impl Postgres {
    pub(super) async fn publish_batch(
        &self,
        session: Session,
        batch: &[Publish],
    ) -> Result<Vec<Published>> {
        let mut results = vec![Published::Stale; batch.len()];
        // One statement can't see its own repetitions: the second of a pair goes
        // in a statement after the first.
        let mut rest: Vec<usize> = (0..batch.len()).collect();
        while !rest.is_empty() {
            let mut keys = HashSet::new();
            let (now, later): (Vec<_>, Vec<_>) = rest.into_iter().partition(|i| {
                batch[*i]
                    .idempotency
                    .is_none_or(|k| keys.insert((batch[*i].tenant, k.key)))
            });
            self.publish_distinct(session, batch, &now, &mut results)
                .await?;
            rest = later;
        }
        Ok(results)
    }

    async fn publish_distinct(
        &self,
        session: Session,
        batch: &[Publish],
        chosen: &[usize],
        results: &mut [Published],
    ) -> Result<()> {
        let rows = match self.insert(session, batch, chosen).await {
            Err(e) if lacks_day(&e) => {
                self.prepare_days_of(batch, chosen).await?;
                self.insert(session, batch, chosen).await
            }
            // Rolled back for sure.
            Err(e) if is_deadlock(&e) => self.insert(session, batch, chosen).await,
            other => other,
        };
        let rows = match rows.map_err(failed) {
            // One event's bad value must not refuse the others: halve until it
            // stands alone.
            Err(StoreError::Data(_)) if chosen.len() > 1 => {
                let (left, right) = chosen.split_at(chosen.len() / 2);
                Box::pin(self.publish_distinct(session, batch, left, results)).await?;
                return Box::pin(self.publish_distinct(session, batch, right, results)).await;
            }
            Err(StoreError::Data(e)) => {
                tracing::warn!(error.message = %e, "event refused by the database");
                for i in chosen {
                    results[*i] = Published::Refused;
                }
                return Ok(());
            }
            other => other?,
        };
        let mut repeated = Vec::new();
        for row in rows {
            let i = chosen[(row.get::<i64, _>(0) - 1) as usize];
            if row.get(1) {
                results[i] = Published::Accepted { leased: row.get(2) };
            } else {
                repeated.push(i);
            }
        }
        if !repeated.is_empty() {
            self.read_winners(batch, &repeated, results).await?;
        }
        Ok(())
    }

    async fn insert(
        &self,
        session: Session,
        batch: &[Publish],
        chosen: &[usize],
    ) -> std::result::Result<Vec<super::Row>, sqlx::Error> {
        let n = chosen.len();
        let mut part = Vec::with_capacity(n);
        let mut tenant = Vec::with_capacity(n);
        let mut rev = Vec::with_capacity(n);
        let mut event = Vec::with_capacity(n);
        let mut day = Vec::with_capacity(n);
        let mut kind = Vec::with_capacity(n);
        let mut body: Vec<&[u8]> = Vec::with_capacity(n);
        let mut key = Vec::with_capacity(n);
        let mut bucket = Vec::with_capacity(n);
        let mut idem_key = Vec::with_capacity(n);
        let mut content = Vec::with_capacity(n);
        let mut count = Vec::with_capacity(n);
        let mut trace = Vec::with_capacity(n);
        let mut deliveries = Vec::with_capacity(n);
        for (ord, i) in chosen.iter().enumerate() {
            let p = &batch[*i];
            part.push(p.event.part().get());
            tenant.push(p.tenant.0);
            rev.push(p.revision);
            event.push(p.event.0);
            day.push(day_of(p.event.time()));
            kind.push(p.event_type.as_str());
            body.push(&p.body);
            key.push(p.key.map(|k| k.0));
            bucket.push(p.idempotency.map(bucket_of));
            idem_key.push(p.idempotency.map(|k| Uuid::from_bytes(k.key)));
            content.push(p.idempotency.map(|k| Uuid::from_bytes(k.content)));
            count.push(p.deliveries.len() as i32);
            trace.push(p.trace.as_ref().and_then(|t| t.encode()));
            deliveries.extend(
                p.deliveries
                    .iter()
                    .map(|d| (ord as i32 + 1, p.order_of(d), d)),
            );
        }
        // Of one ordering key in the order in which they came.
        deliveries.sort_unstable_by_key(|(ord, order, d)| match order {
            None => (d.id.part(), None, 0, d.id),
            Some(_) => (d.id.part(), *order, *ord, d.id),
        });
        let each = || deliveries.iter().map(|(_, _, d)| d);
        sqlx::query(PUBLISH)
            .bind(session.0)
            .bind(part)
            .bind(tenant)
            .bind(rev)
            .bind(event)
            .bind(day)
            .bind(kind)
            .bind(body)
            .bind(key)
            .bind(bucket)
            .bind(idem_key)
            .bind(content)
            .bind(count)
            .bind(
                deliveries
                    .iter()
                    .map(|(ord, _, _)| *ord)
                    .collect::<Vec<_>>(),
            )
            .bind(each().map(|d| d.id.0).collect::<Vec<_>>())
            .bind(each().map(|d| d.subscription.0).collect::<Vec<_>>())
            .bind(each().map(|d| d.held).collect::<Vec<_>>())
            .bind(each().map(|d| d.lease && !d.ordered).collect::<Vec<_>>())
            .bind(trace)
            .bind(
                deliveries
                    .iter()
                    .map(|(_, order, _)| order.map(|(_, key)| key))
                    .collect::<Vec<_>>(),
            )
            .fetch_all(&self.publishing)
            .await
    }

    /// The losers of a race for a key can't see its winner in their own
    /// statement's snapshot: read it in the next one.
    async fn read_winners(
        &self,
        batch: &[Publish],
        repeated: &[usize],
        results: &mut [Published],
    ) -> Result<()> {
        let idempotency = |i: &usize| batch[*i].idempotency;
        let keys: Vec<_> = repeated.iter().filter_map(idempotency).collect();
        let rows = sqlx::query(WINNERS)
            .bind(
                repeated
                    .iter()
                    .map(|i| batch[*i].event.part().get())
                    .collect::<Vec<_>>(),
            )
            .bind(keys.iter().map(|k| bucket_of(*k)).collect::<Vec<_>>())
            .bind(
                repeated
                    .iter()
                    .map(|i| batch[*i].tenant.0)
                    .collect::<Vec<_>>(),
            )
            .bind(
                keys.iter()
                    .map(|k| Uuid::from_bytes(k.key))
                    .collect::<Vec<_>>(),
            )
            .fetch_all(&self.publishing)
            .await
            .map_err(failed)?;
        let winners: HashMap<i64, _> = rows.iter().map(|r| (r.get::<i64, _>(0), r)).collect();
        for (n, i) in repeated.iter().enumerate() {
            let row = winners.get(&(n as i64 + 1)).ok_or_else(|| {
                StoreError::Unavailable("an idempotency key's first use is gone".into())
            })?;
            results[*i] = Published::Duplicate {
                event: EventId(row.get(1)),
                deliveries: row.get(2),
                same: row.get::<Uuid, _>(3).as_bytes() == &keys[n].content,
            };
        }
        Ok(())
    }

    /// Makes the days that a batch needs: this node's clock may be ahead of what
    /// was prepared.
    async fn prepare_days_of(&self, batch: &[Publish], chosen: &[usize]) -> Result<()> {
        let mut days: Vec<i32> = chosen
            .iter()
            .map(|i| day_of(batch[*i].event.time()))
            .collect();
        days.sort_unstable();
        days.dedup();
        for day in days {
            self.prepare_day(day).await?;
        }
        Ok(())
    }
}
