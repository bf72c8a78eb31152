//! Claiming, finishing and sweeping the queue.

use std::{borrow::Cow, collections::HashSet, time::Duration};

use async_trait::async_trait;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Postgres, counters::counted, failed, is_deadlock, lacks_day, shared::letters};
use crate::{
    domain::{
        delivery::Status,
        id::{DeliveryId, EventId, Part, SubscriptionId, TenantId},
        subscription::Ordering,
    },
    store::{
        Buried, Finish, Finished, Leased, Ordered, Publish, Published, QueueStore, Result, Session,
        Waiting, Want, claim_share,
        rows::{FinishRow, trace},
    },
};

/// One look-up for each subscription, so that a million rows of one can't hide
/// another's. Of a large body only its length is read before it is leased. The
/// rows that are too many are locked until the statement's end, and left as they
/// were. Sums run in the order in which rows come, which takes no sorting.
///
/// The planner guesses how many rows a limit lets through as a share of the table, and
/// would read a long one whole to join with it. So events are looked up one by one,
/// and rows are touched, here and below, by an array of their places.
const CLAIM: &str = "
with t as materialized (select now_us() as now),
own as materialized (
  select o.part, t.now - o.held - case when o.held_since > 0 then t.now - o.held_since else 0 end as active
  from part_owner o join nodes n on n.sid = o.sid cross join t
  where o.sid = $1 and n.expires_at > t.now
),
chosen as materialized (
  select q.place, q.part, q.id, q.type, q.body, q.trace, own.active
  from unnest($2::smallint[], $3::uuid[], $4::bigint[]) as w(part, sub, n)
  join own on own.part = w.part
  cross join t
  cross join lateral (
    select due.place, due.part, due.id, coalesce(e.type, k.type, '') as type, coalesce(e.body, k.body) as body,
           coalesce(e.trace, k.trace) as trace,
           sum(octet_length(coalesce(e.body, k.body))) over (rows unbounded preceding)
             - octet_length(coalesce(e.body, k.body)) as before
    from (
      select ctid as place, part, id, event, event_day from queue
      where part = w.part and sub = w.sub and lease_sid = 0 and due_at <= t.now
      order by due_at limit w.n for update skip locked
    ) due
    left join lateral (
      select type, body, trace from events
      where part = due.part and day = due.event_day and id = due.event limit 1) e on true
    left join lateral (
      select type, body, trace from kept_bodies where part = due.part and event = due.event limit 1) k on true
  ) q
  where q.before is null or q.before < $5
),
leased as (
  update queue q set lease_sid = $1, token = token + 1
  where q.ctid = any(array(select place from chosen))
  returning q.part, q.id, q.tenant, q.sub, q.event, q.token, q.attempts, q.replays, q.by_hand, q.age_from,
            q.due_at, q.okey
)
select id, l.tenant, l.sub, l.event, c.type, c.body, l.token, l.attempts, l.replays, l.by_hand,
       c.active - l.age_from, c.trace, l.okey
from leased l join chosen c using (part, id) order by l.due_at, id";

/// Each row is looked up by its key and then touched by its place: a plan made
/// while the queue is empty would otherwise scan it whole once it is long. It is
/// not locked in between, which would be a write more; the fence is checked again
/// where it is touched, and a row that moved meanwhile is another's.
const FINISH: &str = concat!(
    "
with t as materialized (select now_us() as now, today() as today),
input as materialized (
  select * from unnest($1::smallint[], $2::uuid[], $3::integer[], $4::smallint[], $5::smallint[], $6::bigint[],
                       $7::smallint[], $8::smallint[], $9::smallint[], $10::bigint[], $11::text[], $12::text[],
                       $13::bytea[], $14::text[], $15::smallint[], $16::smallint[], $17::bigint[], $18::bigint[])
    as i(part, id, token, action, state, wait, charge, replay, status, took, error, worker, response, reason, kind, number, started, less)
),
found as materialized (
  select q.*, i.* from input i cross join lateral (
    select ctid as place, tenant as owner, lease_sid as sid, state as before, attempts as tried, age_from as began
    from queue where part = i.part and id = i.id and token = i.token and lease_sid <> 0 limit 1
  ) q
),
gone as (
  delete from queue q using found f
  where q.ctid = f.place and q.token = f.token and q.lease_sid <> 0 and f.action < 2
  returning q.tenant, q.sub, q.event, q.event_day, q.age_from, q.attempts as was, q.okey, q.oseq, f.*
),
kept as (
  update queue q set
    lease_sid = 0, token = q.token + 1,
    due_at = case f.action when 2 then t.now + f.wait when 3 then 9223372036854775807 else q.due_at end,
    dead_at = case f.action when 3 then t.now + f.wait else 0 end,
    state = case f.action when 4 then q.state else f.state end,
    attempts = q.attempts + f.charge, replays = q.replays + f.replay,
    status = case f.action when 4 then q.status else f.status end,
    reason = case f.action when 4 then q.reason else f.reason end
  from found f, t
  where q.ctid = f.place and q.token = f.token and q.lease_sid <> 0 and f.action >= 2
  returning f.*
),
history as (
  insert into done (part, day, id, tenant, sub, event, finished_at, took, token, state, attempts,
                    status, reason, worker, response)
  select part, t.today, id, tenant, sub, event, case when started > 0 then started + took else t.now end, took,
         token, state, was + charge,
         status, reason, worker, response
  from gone, t where action = 0
),
letters as (
  insert into dead (part, id, tenant, sub, event, event_day, dead_at, age_from, token, state, attempts,
                    status, reason, okey, oseq)
  select part, id, tenant, sub, event, event_day, t.now, age_from, token, state, was + charge, status, reason,
         okey, oseq
  from gone, t where action = 1
),
own as materialized (
  select o.part, t.now - o.held - case when o.held_since > 0 then t.now - o.held_since else 0 end as active
  from part_owner o cross join t where o.part in (select part from input)
),
moved as (
  select m.part, m.owner as tenant, m.sid, m.before, m.state, m.kind,
         case m.state when 4 then 100 + least(54, greatest(0, 1 + floor(8 * log(
           greatest(own.active - m.began - m.less, 1)::double precision / 1000))))::integer end as bucket,
         count(*) as n, sum(greatest(m.tried + m.charge - 1, 0)) as again
  from (select part, owner, sid, before, state, kind, tried, charge, began, less from gone
        union all
        select part, owner, sid, before, state, kind, tried, charge, began, less from kept where action < 4) m
  join own on own.part = m.part
  group by 1, 2, 3, 4, 5, 6, 7
),
",
    counted!(
        "x.sid",
        "moved",
        "(case when x.before <> x.state then x.before end, -x.n),
         (case when x.before <> x.state then x.state end, x.n),
         (case x.state when 6 then 20 when 9 then 21 end, x.n),
         (case when x.state in (4, 6, 9) and x.again > 0 then 22 end, x.again),
         (case x.kind when 4 then 23 end, x.n),
         (x.bucket, x.n)"
    ),
    ",
ended as (
  select id, part, token, number, started, took, kind, status, error, worker, response from gone
  union all select id, part, token, number, started, took, kind, status, error, worker, response from kept
),
tries as (
  insert into attempts (part, day, delivery, token, number, started_at, took, kind, status, error, worker, response)
  select part, t.today, id, token, number,
         case when started > 0 then started else t.now - took end, took, kind, status, error, worker, response
  from ended, t where kind > 0
)
select id, token from ended"
);

/// The same for a batch of which everything was delivered and nothing needs a row of
/// its own attempt: what starting a statement takes grows with its steps.
const FINISH_DELIVERED: &str = concat!(
    "
with t as materialized (select now_us() as now, today() as today),
input as materialized (
  select * from unnest($1::smallint[], $2::uuid[], $3::integer[], $4::smallint[], $5::bigint[], $6::text[],
                       $7::bytea[], $8::text[], $9::bigint[], $10::bigint[])
    as i(part, id, token, status, took, worker, response, reason, started, less)
),
gone as (
  delete from queue q using (
    select q.place, i.* from input i cross join lateral (
      select ctid as place from queue
      where part = i.part and id = i.id and token = i.token and lease_sid <> 0 limit 1) q
  ) f
  where q.ctid = f.place and q.token = f.token and q.lease_sid <> 0
  returning q.tenant, q.sub, q.event, q.age_from, q.attempts, q.lease_sid, q.state, f.*
),
history as (
  insert into done (part, day, id, tenant, sub, event, finished_at, took, token, state, attempts,
                    status, reason, worker, response)
  select part, t.today, id, tenant, sub, event, case when started > 0 then started + took else t.now end, took,
         token, 4, attempts + 1, status, reason, worker, response
  from gone, t
),
own as materialized (
  select o.part, t.now - o.held - case when o.held_since > 0 then t.now - o.held_since else 0 end as active
  from part_owner o cross join t where o.part in (select part from input)
),
moved as (
  select m.part, m.tenant, m.lease_sid as sid, m.state as before,
         100 + least(54, greatest(0, 1 + floor(8 * log(
           greatest(own.active - m.age_from - m.less, 1)::double precision / 1000))))::integer as bucket,
         count(*) as n, sum(m.attempts) as again
  from gone m join own on own.part = m.part
  group by 1, 2, 3, 4, 5
),
",
    counted!(
        "x.sid",
        "moved",
        "(x.before, -x.n), (4::smallint, x.n), (case when x.again > 0 then 22 end, x.again), (x.bucket, x.n)"
    ),
    "
select id, token from gone"
);

/// Locks the ordering keys of these deliveries before any of them is touched, in the
/// order in which publishing locks them. Their rows are looked up as in `FINISH`.
const LOCK_KEYS: &str = "
select k.part from unnest($1::smallint[], $2::uuid[]) as i(part, id)
cross join lateral (
  select sub, okey from queue where part = i.part and id = i.id and okey is not null limit 1) q
join order_keys k on k.part = i.part and k.sub = q.sub and k.okey = q.okey
order by k.part, k.sub, k.okey for update of k";

/// Rows that were finished under these very tokens already.
const BEFORE: &str = "
select i.id, i.token from unnest($1::smallint[], $2::uuid[], $3::integer[]) as i(part, id, token)
where exists (select from done d where d.part = i.part and d.id = i.id and d.token = i.token)
   or exists (select from dead d where d.part = i.part and d.id = i.id and d.token = i.token)
   or exists (select from attempts a where a.part = i.part and a.delivery = i.id and a.token = i.token)";

/// Steps from one subscription to the next through the index, so that the cost
/// is that of the subscriptions, not of the rows.
const WAITING: &str = "
with recursive step as (
  (select w.part, q.sub from unnest($1::smallint[]) as w(part) cross join lateral (
     select sub from queue where part = w.part and lease_sid = 0 order by sub limit 1) q)
  union all
  (select s.part, q.sub from step s cross join lateral (
     select sub from queue where part = s.part and lease_sid = 0 and sub > s.sub order by sub limit 1) q)
)
select s.part, s.sub, q.due_at - now_us()
from step s cross join lateral (
  select due_at from queue where part = s.part and sub = s.sub and lease_sid = 0 order by due_at limit 1) q
where q.due_at < 9223372036854775807";

/// There is no index on the lease: every delivery would pay two writes for it.
/// What is leased is found by reading the table in the order of its pages, a slice
/// in each statement, so that none is long and none holds locks for long, however
/// long the queue is. A row that stays leased stays where it is: none is missed.
const FREE_LOST: &str = "
update queue set lease_sid = 0, token = token + 1
where ctid >= $1::text::tid and ctid < $2::text::tid and part = any($3::smallint[])
  and lease_sid <> 0 and lease_sid not in (select sid from nodes where expires_at > now_us())";

const LEASES: &str = "
select id, token from queue
where ctid >= $1::text::tid and ctid < $2::text::tid and lease_sid = $3 and lease_sid <> 0";

/// Pages that are read in one statement.
const SLICE: i64 = 2048;
/// Behind every page.
const END: i64 = u32::MAX as i64 - 1;

/// What a row that is given up counts.
macro_rules! gives_up {
    () => {
        counted!(
            "0::bigint",
            "late",
            "(x.state, -1), (6, 1), (20, 1), (case when x.attempts > 1 then 22 end, x.attempts - 1)"
        )
    };
}

const BURY: &str = concat!(
    "
with late as (
  delete from queue where ctid = any(array(
    select ctid from queue where part = any($1::smallint[]) and dead_at > 0 and dead_at <= now_us() and lease_sid = 0
    order by dead_at limit $2 for update skip locked))
  returning *),
",
    gives_up!(),
    "
insert into dead (part, id, tenant, sub, event, event_day, dead_at, age_from, token, state, attempts, status, reason,
                  okey, oseq)
select part, id, tenant, sub, event, event_day, dead_at, age_from, token, 6, attempts, status, reason, okey, oseq
from late order by part, sub, okey
returning id, tenant, sub,
  coalesce((select e.type from events e where e.part = dead.part and e.id = dead.event and e.day = dead.event_day),
           (select k.type from kept_bodies k where k.part = dead.part and k.event = dead.event), ''),
  reason"
);

/// What failed while its receiver was ill. What the receiver itself asked to come
/// later does, and what waits for another of its key.
const REVIVE: &str = concat!(
    "
with ill as materialized (
  select ctid as place, part, tenant, state from queue
  where part = $1 and sub = $2 and lease_sid = 0 and due_at > now_us()
    and (state = 3 and due_at < 9223372036854775807 and (status = 0 or status >= 500) and (status <> 503 or not $3)
         or state = 5 and dead_at > now_us())
  order by due_at limit $4 for update skip locked
),
touched as (
  update queue set due_at = now_us(), dead_at = 0, by_hand = by_hand or state = 5, state = 3
  where ctid = any(array(select place from ill))
),
again as (select part, tenant, state from ill),
",
    counted!(
        "0::bigint",
        "again",
        "(case x.state when 5 then 5 end, -1), (case x.state when 5 then 3 end, 1)"
    ),
    "
select count(*) from again"
);

const CANCEL: &str = concat!(
    "
with cancelled as (
  delete from queue where ctid = any(array(
    select ctid from queue where part = $1 and sub = $2 and lease_sid = 0 limit $3 for update skip locked))
  returning *),
",
    counted!("0::bigint", "cancelled", "(x.state, -1), (10, 1)"),
    "
insert into done (part, day, id, tenant, sub, event, finished_at, took, token, state, attempts, status, reason,
                  worker, response)
select part, today(), id, tenant, sub, event, now_us(), 0, token, 10, attempts, status, 'subscription_deleted', '', ''
from cancelled"
);

const GIVE_UP: &str = concat!(
    "
with late as (
  delete from queue where ctid = any(array(
    select ctid from queue where part = $1 and sub = $2 and lease_sid = 0 and id < $3
    limit $4 for update skip locked))
  returning *),
",
    gives_up!(),
    "
insert into dead (part, id, tenant, sub, event, event_day, dead_at, age_from, token, state, attempts, status, reason,
                  okey, oseq)
select part, id, tenant, sub, event, event_day, now_us(), age_from, token, 6, attempts, status, 'parked_too_long',
       okey, oseq
from late order by part, sub, okey"
);

/// Of keys that have been parked for long what waits there for long. A head that is
/// dead is not in the queue.
const GIVE_UP_PARKED: &str = concat!(
    "
with late as (
  delete from queue where ctid = any(array(
    select w.place from order_keys k cross join lateral (
      select ctid as place from queue
      where part = k.part and sub = k.sub and okey = k.okey and lease_sid = 0 and id < $3
      order by oseq limit $4 for update skip locked) w
    where k.part = $1 and k.sub = $2 and k.blocked = 3 and k.at <= $5 limit $4))
  returning *),
",
    gives_up!(),
    "
insert into dead (part, id, tenant, sub, event, event_day, dead_at, age_from, token, state, attempts, status, reason,
                  okey, oseq)
select part, id, tenant, sub, event, event_day, now_us(), age_from, token, 6, attempts, status, 'parked_too_long',
       okey, oseq
from late order by part, sub, okey"
);

const RETRY_WAITING: &str = concat!(
    "
with old as (
  select part, tenant, id, state, dead_at, lease_sid from queue where part = $1 and id = $2 for update
),
own as (
  select now_us() - held - case when held_since > 0 then now_us() - held_since else 0 end as active
  from part_owner where part = $1
),
again as (
  update queue q set dead_at = 0, token = q.token + 1,
    due_at = case when q.due_at = 9223372036854775807 and q.state <> 5 then q.due_at else now_us() end,
    by_hand = q.by_hand or old.state = 5, state = case when old.state = 5 then 3 else q.state end,
    age_from = case when old.state = 5 then own.active else q.age_from end
  from old, own
  where q.part = old.part and q.id = old.id and old.lease_sid = 0
  returning old.part, old.tenant, old.state, old.dead_at
),
",
    counted!(
        "0::bigint",
        "again",
        "(case x.state when 5 then 5 end, -1), (case x.state when 5 then 3 end, 1)"
    ),
    "
select case when state = 5 and dead_at <= now_us() then 6::smallint else state end from again"
);

#[async_trait]
impl QueueStore for Postgres {
    async fn publish(&self, session: Session, batch: &[Publish]) -> Result<Vec<Published>> {
        self.publish_batch(session, batch).await
    }

    async fn claim(&self, session: Session, wants: &[Want]) -> Result<Vec<Leased>> {
        let rows = sqlx::query(CLAIM)
            .bind(session.0)
            .bind(wants.iter().map(|w| w.part.get()).collect::<Vec<_>>())
            .bind(wants.iter().map(|w| w.subscription.0).collect::<Vec<_>>())
            .bind(wants.iter().map(|w| w.limit).collect::<Vec<_>>())
            .bind(claim_share(wants))
            .fetch_all(&self.hot)
            .await
            .map_err(failed)?;
        Ok(rows
            .iter()
            .map(|r| Leased {
                id: DeliveryId(r.get(0)),
                tenant: TenantId(r.get(1)),
                subscription: SubscriptionId(r.get(2)),
                event: EventId(r.get(3)),
                event_type: r.get(4),
                body: r.get::<Option<Vec<u8>>, _>(5).unwrap_or_default().into(),
                token: r.get(6),
                attempts: r.get::<i16, _>(7) as u16,
                replays: r.get::<i16, _>(8) as u16,
                by_hand: r.get(9),
                age: r.get(10),
                trace: trace(r.get(11)),
                ordering_key: r.get::<Option<String>, _>(12).map(Into::into),
            })
            .collect())
    }

    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>> {
        let rows = match self.finish_batch(batch).await {
            Err(e) if lacks_day(&e) => {
                crate::store::HistoryStore::prepare_days(self).await?;
                self.finish_batch(batch).await
            }
            // Rolled back for sure.
            Err(e) if is_deadlock(&e) => self.finish_batch(batch).await,
            other => other,
        };
        let mut now: HashSet<(Uuid, i32)> = rows
            .map_err(failed)?
            .iter()
            .map(|r| (r.get(0), r.get(1)))
            .collect();
        let mut answers = vec![Finished::Stale; batch.len()];
        let mut missed = Vec::new();
        for (i, f) in batch.iter().enumerate() {
            if now.remove(&(f.id.0, f.token)) {
                answers[i] = Finished::Now;
            } else {
                missed.push(i);
            }
        }
        if !missed.is_empty() {
            let before: HashSet<(Uuid, i32)> = sqlx::query(BEFORE)
                .bind(
                    missed
                        .iter()
                        .map(|i| batch[*i].id.part().get())
                        .collect::<Vec<_>>(),
                )
                .bind(missed.iter().map(|i| batch[*i].id.0).collect::<Vec<_>>())
                .bind(missed.iter().map(|i| batch[*i].token).collect::<Vec<_>>())
                .fetch_all(&self.finishing)
                .await
                .map_err(failed)?
                .iter()
                .map(|r| (r.get(0), r.get(1)))
                .collect();
            for i in missed {
                if before.contains(&(batch[i].id.0, batch[i].token)) {
                    answers[i] = Finished::Before;
                }
            }
        }
        Ok(answers)
    }

    async fn waiting(&self, parts: &[Part]) -> Result<Vec<Waiting>> {
        let rows = sqlx::query(WAITING)
            .bind(numbers(parts))
            .fetch_all(&self.hot)
            .await
            .map_err(failed)?;
        Ok(rows
            .iter()
            .map(|r| Waiting {
                part: Part::new(r.get::<i16, _>(0) as u8),
                subscription: SubscriptionId(r.get(1)),
                due_in: Duration::from_micros(r.get::<i64, _>(2).max(0) as u64),
            })
            .collect())
    }

    async fn leases(&self, session: Session) -> Result<Vec<(DeliveryId, i32)>> {
        let mut leases = Vec::new();
        for (from, to) in self.slices().await? {
            let rows = sqlx::query(LEASES)
                .persistent(false)
                .bind(from)
                .bind(to)
                .bind(session.0)
                .fetch_all(&self.pool)
                .await
                .map_err(failed)?;
            leases.extend(rows.iter().map(|r| (DeliveryId(r.get(0)), r.get(1))));
        }
        Ok(leases)
    }

    async fn free_lost(&self, parts: &[Part]) -> Result<u64> {
        let mut freed = 0;
        for (from, to) in self.slices().await? {
            // Planned anew: a plan for any place may be one that reads the whole
            // table.
            let free = sqlx::query(FREE_LOST).persistent(false).bind(from).bind(to);
            freed += self.changed(free.bind(numbers(parts))).await?;
        }
        Ok(freed)
    }

    async fn bury(&self, parts: &[Part], limit: i64) -> Result<Vec<Buried>> {
        let rows = sqlx::query(BURY)
            .bind(numbers(parts))
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        Ok(rows
            .iter()
            .map(|r| Buried {
                id: DeliveryId(r.get(0)),
                tenant: TenantId(r.get(1)),
                subscription: SubscriptionId(r.get(2)),
                event_type: r.get(3),
                reason: r.get(4),
            })
            .collect())
    }

    async fn cancel(&self, part: Part, subscription: SubscriptionId, limit: i64) -> Result<u64> {
        let cancel = || {
            sqlx::query(CANCEL)
                .bind(part.get())
                .bind(subscription.0)
                .bind(limit)
                .execute(&self.pool)
        };
        let done = match cancel().await {
            Err(e) if lacks_day(&e) => {
                crate::store::HistoryStore::prepare_days(self).await?;
                cancel().await
            }
            other => other,
        };
        Ok(done.map_err(failed)?.rows_affected())
    }

    async fn give_up(
        &self,
        part: Part,
        subscription: SubscriptionId,
        age: Duration,
        limit: i64,
    ) -> Result<u64> {
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        let oldest = crate::domain::id::first_uuid_at(now - crate::domain::id::micros(age));
        let done = sqlx::query(GIVE_UP)
            .bind(part.get())
            .bind(subscription.0)
            .bind(oldest)
            .bind(limit)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(done.rows_affected())
    }

    async fn ordered(&self, parts: &[Part]) -> Result<Vec<Ordered>> {
        self.subscriptions_in_order(parts).await
    }

    async fn reorder(
        &self,
        part: Part,
        subscription: SubscriptionId,
        ordering: Ordering,
        limit: i64,
    ) -> Result<u64> {
        self.bring_in_order(part, subscription, ordering, limit)
            .await
    }

    async fn give_up_parked(
        &self,
        part: Part,
        subscription: SubscriptionId,
        age: Duration,
        limit: i64,
    ) -> Result<u64> {
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        let since = now - crate::domain::id::micros(age);
        let done = sqlx::query(GIVE_UP_PARKED)
            .bind(part.get())
            .bind(subscription.0)
            .bind(crate::domain::id::first_uuid_at(since))
            .bind(limit)
            .bind(since)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(done.rows_affected())
    }

    async fn skip(&self, id: DeliveryId) -> Result<bool> {
        self.skip_dead(id).await
    }

    async fn retry_by_hand(&self, id: DeliveryId) -> Result<Option<Status>> {
        let row = sqlx::query(RETRY_WAITING)
            .bind(id.part().get())
            .bind(id.0)
            .fetch_optional(&self.hot)
            .await
            .map_err(failed)?;
        if let Some(row) = row {
            return Ok(Some(Status::from_i16(row.get(0))));
        }
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        let revived = letters::revive(&mut tx, id.part(), &[id], now).await?;
        tx.commit().await.map_err(failed)?;
        if let Some(letter) = revived.first() {
            return Ok(Some(letter.state));
        }
        let found = crate::store::HistoryStore::get_delivery(self, id).await?;
        Ok(found.map(|d| d.status))
    }
}

type Query<'q> = sqlx::query::Query<'q, super::Db, sqlx::postgres::PgArguments>;

impl Postgres {
    pub(super) async fn revive_failed(
        &self,
        part: Part,
        subscription: SubscriptionId,
        asked: bool,
        limit: i64,
    ) -> Result<u64> {
        let rows: i64 = sqlx::query_scalar(REVIVE)
            .bind(part.get())
            .bind(subscription.0)
            .bind(asked)
            .bind(limit)
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        Ok(rows.unsigned_abs())
    }

    /// Slices of the queue's table, the last with all that it grows by.
    async fn slices(&self) -> Result<Vec<(String, String)>> {
        let pages: i64 = sqlx::query_scalar(
            "select pg_relation_size('queue') / current_setting('block_size')::bigint",
        )
        .fetch_one(&self.hot)
        .await
        .map_err(failed)?;
        let starts = (0..=pages / SLICE).map(|n| n * SLICE);
        let ends = starts.clone().skip(1).chain([END]);
        let place = |page| format!("({page},0)");
        Ok(starts.map(place).zip(ends.map(place)).collect())
    }

    async fn changed(&self, query: Query<'_>) -> Result<u64> {
        Ok(query
            .execute(&self.pool)
            .await
            .map_err(failed)?
            .rows_affected())
    }

    async fn finish_batch(
        &self,
        batch: &[Finish],
    ) -> std::result::Result<Vec<super::Row>, sqlx::Error> {
        let n = batch.len();
        let mut part = Vec::with_capacity(n);
        let mut id = Vec::with_capacity(n);
        let mut token = Vec::with_capacity(n);
        let mut action = Vec::with_capacity(n);
        let mut state = Vec::with_capacity(n);
        let mut wait = Vec::with_capacity(n);
        let mut charge = Vec::with_capacity(n);
        let mut replay = Vec::with_capacity(n);
        let mut status = Vec::with_capacity(n);
        let mut took = Vec::with_capacity(n);
        let mut error = Vec::with_capacity(n);
        let mut worker = Vec::with_capacity(n);
        let mut response: Vec<&[u8]> = Vec::with_capacity(n);
        let mut reason = Vec::with_capacity(n);
        let mut kind = Vec::with_capacity(n);
        let mut number = Vec::with_capacity(n);
        let mut started = Vec::with_capacity(n);
        let mut less = Vec::with_capacity(n);
        // Sorted, so that two nodes lock rows in the same order; and each once,
        // for a statement would carry out both of a pair.
        let mut order: Vec<&Finish> = batch.iter().collect();
        order.sort_by_key(|f| (f.id.part(), f.id, f.token));
        order.dedup_by_key(|f| (f.id, f.token));
        for f in order {
            let row = FinishRow::of(f);
            part.push(f.id.part().get());
            id.push(f.id.0);
            token.push(f.token);
            action.push(row.action);
            state.push(row.state);
            wait.push(row.wait);
            charge.push(row.charge);
            replay.push(row.replay);
            status.push(row.status);
            took.push(row.took);
            error.push(text(row.error));
            worker.push(text(row.worker));
            response.push(row.response);
            reason.push(text(&f.reason));
            kind.push(row.kind);
            number.push(row.number);
            started.push(row.started);
            less.push(f.held);
        }
        let ordered: Vec<&Finish> = batch.iter().filter(|f| f.ordered).collect();
        let delivered = Status::Delivered.to_i16();
        let fast = action.iter().all(|a| *a == 0)
            && state.iter().all(|s| *s == delivered)
            && kind.iter().all(|k| *k == 0);
        if fast && ordered.is_empty() {
            return sqlx::query(FINISH_DELIVERED)
                .bind(part)
                .bind(id)
                .bind(token)
                .bind(status)
                .bind(took)
                .bind(worker)
                .bind(response)
                .bind(reason)
                .bind(started)
                .bind(less)
                .fetch_all(&self.finishing)
                .await;
        }
        let query = sqlx::query(FINISH)
            .bind(part)
            .bind(id)
            .bind(token)
            .bind(action)
            .bind(state)
            .bind(wait)
            .bind(charge)
            .bind(replay)
            .bind(status)
            .bind(took)
            .bind(error)
            .bind(worker)
            .bind(response)
            .bind(reason)
            .bind(kind)
            .bind(number)
            .bind(started)
            .bind(less);
        if ordered.is_empty() {
            return query.fetch_all(&self.finishing).await;
        }
        let mut tx = self.finishing.begin().await?;
        sqlx::query(LOCK_KEYS)
            .bind(
                ordered
                    .iter()
                    .map(|f| f.id.part().get())
                    .collect::<Vec<_>>(),
            )
            .bind(ordered.iter().map(|f| f.id.0).collect::<Vec<_>>())
            .execute(&mut *tx)
            .await?;
        let rows = query.fetch_all(&mut *tx).await?;
        tx.commit().await?;
        Ok(rows)
    }
}

/// A text as PostgreSQL can hold it: an attempt's end must be recorded, whatever
/// its worker says of it.
fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

pub(super) fn numbers(parts: &[Part]) -> Vec<i16> {
    parts.iter().map(|p| p.get()).collect()
}
