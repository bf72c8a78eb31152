use std::collections::BTreeMap;

use async_trait::async_trait;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Engine, Row, failed, redrives};
use crate::{
    domain::{
        delivery::{Attempt, AttemptKind, Delivery, Status},
        id::{DeliveryId, EventId, RedriveId, SubscriptionId, TenantId, same_instant},
    },
    store::{Forgotten, HistoryStore, Page, Result, Session, StoredEvent, Usage, rows::trace},
};

/// What each of the three places of a delivery shows: the queue (0), the dead
/// letters (1) and the history (2), as
/// `id, tenant, sub, event, state, attempts, due_at, finished_at, status, reason`.
/// `FAILED` turns into `DEAD` as time passes, without a write. What waits behind
/// another of its key is due at no time, and `PARKED` where the key is parked.
pub(super) const QUEUED: &str = "select id, tenant, sub, event,
  case when lease_sid <> 0 then 2 when state = 5 and dead_at <= {now} then 6
       when okey is not null and due_at = 9223372036854775807 and state <> 5 and exists (
         select 1 from order_keys k
         where k.part = queue.part and k.sub = queue.sub and k.okey = queue.okey and k.blocked = 3) then 7
       else state end as state,
  attempts, case when due_at = 9223372036854775807 then 0 else due_at end as due_at,
  case when state = 5 and dead_at <= {now} then dead_at else 0 end as finished_at, status, reason, part
  from queue";
pub(super) const DEAD: &str =
    "select id, tenant, sub, event, state, attempts, cast(0 as bigint) as due_at,
  dead_at as finished_at, status, reason, part from dead";
pub(super) const DONE: &str =
    "select id, tenant, sub, event, state, attempts, cast(0 as bigint) as due_at,
  finished_at, status, reason, part from done";

pub(super) fn delivery(r: &Row) -> Delivery {
    let time = |n: i64| (n > 0).then_some(n);
    Delivery {
        id: DeliveryId(r.get(0)),
        tenant: TenantId(r.get(1)),
        subscription: SubscriptionId(r.get(2)),
        event: EventId(r.get(3)),
        status: Status::from_i16(r.get::<i32, _>(4) as i16),
        attempts: r.get::<i16, _>(5) as u16,
        due_at: time(r.get(6)),
        finished_at: time(r.get(7)),
        response_status: r.get::<i16, _>(8) as u16,
        reason: r.get(9),
        event_type: r.get::<Option<String>, _>(10).unwrap_or_default(),
        trace: trace(r.get(11)),
        replay: r.get::<Option<Uuid>, _>(12).map(RedriveId),
    }
}

/// A read over the three places, with each one's rows chosen and limited by the
/// same condition, newest first.
fn over_all(condition: &str, now: i64, status: Option<Status>) -> String {
    let arm = |select: &str| {
        format!(
            "select * from ({} where {condition} order by id desc) x where ($5 = 0 or state = $5) order by id desc limit $4",
            select.replace("{now}", &now.to_string())
        )
    };
    let places: Vec<String> = [QUEUED, DEAD, DONE]
        .into_iter()
        .zip([in_queue(status), in_dead(status), in_done(status)])
        .filter(|(_, may_be)| *may_be)
        .map(|(select, _)| format!("select * from ({}) y", arm(select)))
        .collect();
    format!(
        "select d.id, d.tenant, d.sub, d.event, cast(d.state as integer), d.attempts, d.due_at, d.finished_at,
                d.status, d.reason, coalesce(e.type, k.type), coalesce(e.trace, k.trace), o.redrive
         from ({}) d
         left join events e on e.part = d.part and e.id = d.event
         left join kept_bodies k on k.part = d.part and k.event = d.event
         left join replayed o on o.part = d.part and o.id = d.id
         order by d.id desc limit $4",
        places.join(" union all ")
    )
}

/// Whether a delivery of that status may be in the queue.
const fn in_queue(status: Option<Status>) -> bool {
    !matches!(
        status,
        Some(Status::Delivered | Status::Skipped | Status::Cancelled | Status::ReplayExpired)
    )
}

/// Whether it may be among the dead letters.
const fn in_dead(status: Option<Status>) -> bool {
    matches!(status, None | Some(Status::Dead | Status::ReplayExpired))
}

/// Whether it may be in the history.
const fn in_done(status: Option<Status>) -> bool {
    matches!(
        status,
        None | Some(Status::Delivered | Status::Skipped | Status::Cancelled)
    )
}

/// The day under which `usage` has what bodies take that are kept past their day:
/// one that no event is of.
const KEPT: i32 = i32::MAX;

impl Engine {
    /// Notes how many bytes of bodies each tenant has that are kept past their day,
    /// in place of what their days, before `oldest`, counted of them.
    pub(in super::super) async fn note_kept(
        &self,
        oldest: i32,
        kept: &BTreeMap<Uuid, i64>,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("delete from usage where day < $1 or day = $2")
            .bind(oldest)
            .bind(KEPT)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        for (tenant, bytes) in kept.iter().filter(|(_, bytes)| **bytes > 0) {
            sqlx::query(
                "insert into usage (tenant, day, sid, events, bytes) values ($1, $2, 0, 0, $3)
                 on conflict (tenant, day, sid) do update set bytes = excluded.bytes",
            )
            .bind(*tenant)
            .bind(KEPT)
            .bind(*bytes)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    async fn list(
        &self,
        condition: &str,
        part: i16,
        id: Uuid,
        before: Uuid,
        limit: i64,
        status: Option<Status>,
    ) -> Result<Vec<Delivery>> {
        let mut tx = self.history_snapshot().await?;
        let now = self.clock(&mut tx).await?;
        let rows = sqlx::query(sqlx::AssertSqlSafe(over_all(condition, now, status)))
            .bind(part)
            .bind(id)
            .bind(before)
            .bind(limit)
            .bind(status.map_or(0, |s| i32::from(s.to_i16())))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(rows.iter().map(delivery).collect())
    }
}

#[async_trait]
impl HistoryStore for Engine {
    async fn get_event(&self, id: EventId) -> Result<Option<StoredEvent>> {
        let row = sqlx::query(
            "select tenant, type, body from events where part = $1 and id = $2
             union all
             select tenant, type, body from kept_bodies where part = $1 and event = $2
             limit 1",
        )
        .bind(id.part().get())
        .bind(id.0)
        .fetch_optional(self.history())
        .await
        .map_err(failed)?;
        Ok(row.map(|r| StoredEvent {
            id,
            tenant: TenantId(r.get(0)),
            event_type: r.get(1),
            body: r.get::<Vec<u8>, _>(2).into(),
        }))
    }

    async fn get_delivery(&self, id: DeliveryId) -> Result<Option<Delivery>> {
        let found = self
            .list(
                "part = $1 and id = $2 and id < $3",
                id.part().get(),
                id.0,
                Uuid::max(),
                1,
                None,
            )
            .await?;
        Ok(found.into_iter().next())
    }

    async fn deliveries_of_subscription(
        &self,
        id: SubscriptionId,
        status: Option<Status>,
        page: Page<DeliveryId>,
    ) -> Result<Vec<Delivery>> {
        let before = page.before.map_or(Uuid::max(), |d| d.0);
        self.list(
            "part = $1 and sub = $2 and id < $3",
            id.part().get(),
            id.0,
            before,
            page.limit,
            status,
        )
        .await
    }

    async fn deliveries_of_event(
        &self,
        id: EventId,
        status: Option<Status>,
        page: Page<DeliveryId>,
    ) -> Result<Vec<Delivery>> {
        // A delivery's id lies at its event's instant: a short range of the
        // primary key, and no index on the event.
        let (low, high) = same_instant(id.0);
        let before = page.before.map_or(high, |d| d.0);
        let condition = format!(
            "part = $1 and event = $2 and id < $3 and id >= {}",
            Self::uuid_literal(low)
        );
        self.list(
            &condition,
            id.part().get(),
            id.0,
            before,
            page.limit,
            status,
        )
        .await
    }

    async fn attempts(&self, id: DeliveryId) -> Result<Vec<Attempt>> {
        let kept = sqlx::query(
            "select number, started_at, took, kind, status, error, response, worker, token
             from attempts where part = $1 and delivery = $2 order by started_at, number",
        )
        .bind(id.part().get())
        .bind(id.0)
        .fetch_all(self.history())
        .await
        .map_err(failed)?;
        let mut attempts: Vec<Attempt> = kept
            .iter()
            .map(|r| Attempt {
                number: r.get::<i16, _>(0) as u16,
                started_at: r.get(1),
                took: r.get(2),
                kind: AttemptKind::from_i16(r.get(3)),
                response_status: r.get::<i16, _>(4) as u16,
                error: r.get(5),
                response: r.get(6),
                worker: r.get(7),
                token: r.get(8),
            })
            .collect();
        // A first attempt that succeeded has no row of its own, unless signatures
        // that were too old came before it.
        let first = sqlx::query(
            "select finished_at, took, status, response, worker, token from done
             where part = $1 and id = $2 and state = 4 and attempts = 1
               and not exists (select 1 from attempts a
                               where a.part = $1 and a.delivery = $2 and a.token = done.token)",
        )
        .bind(id.part().get())
        .bind(id.0)
        .fetch_optional(self.history())
        .await
        .map_err(failed)?;
        if let Some(r) = first {
            let took: i64 = r.get(1);
            attempts.push(Attempt {
                number: 1,
                started_at: r.get::<i64, _>(0) - took,
                took,
                kind: AttemptKind::Delivered,
                response_status: r.get::<i16, _>(2) as u16,
                error: String::new(),
                response: r.get(3),
                worker: r.get(4),
                token: r.get(5),
            });
        }
        Ok(attempts)
    }

    async fn prepare_days(&self) -> Result<()> {
        self.prepare_days_ahead().await
    }

    async fn forget(&self, days: i32, limit: i64) -> Result<Forgotten> {
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        sqlx::query("delete from tombstones where at < $1")
            .bind(now - crate::domain::id::DAY)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        redrives::forget(&mut tx, now, days, limit).await?;
        tx.commit().await.map_err(failed)?;
        self.forget_before(days, limit).await
    }

    async fn note_usage(&self, session: Session, usage: &[Usage]) -> Result<()> {
        let mut tx = self.begin().await?;
        for u in usage {
            sqlx::query(
                "insert into usage (tenant, day, sid, events, bytes) values ($1, $2, $3, $4, $5)
                 on conflict (tenant, day, sid) do update
                   set events = excluded.events, bytes = excluded.bytes",
            )
            .bind(u.tenant.0)
            .bind(u.day)
            .bind(session.0)
            .bind(u.events)
            .bind(u.bytes)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    async fn stored_bytes(&self) -> Result<Vec<(TenantId, i64)>> {
        let rows = sqlx::query(
            "select tenant, cast(sum(bytes) as bigint) from usage group by tenant order by tenant",
        )
        .fetch_all(self.reader())
        .await
        .map_err(failed)?;
        Ok(rows
            .iter()
            .map(|r| (TenantId(r.get(0)), r.get(1)))
            .collect())
    }
}
