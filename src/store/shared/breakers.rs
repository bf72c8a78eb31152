use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;

use super::{Engine, Row, Transaction, broken, counters::listed, failed};
use crate::{
    domain::{
        counter::{BREAKER_OPENED, minute_of},
        id::{Micros, Part, SubscriptionId, TenantId, micros},
    },
    store::{BreakerStore, Opening, Outage, ReceiverState, Result, Session},
};

const STATE: &str = "
select s.sub, s.tenant, s.gen, cast(s.breaker as integer), s.failures, s.opened_at, s.until, s.outage_since, s.outages,
       s.failing_since, cast(s.warned as integer), cast(s.asked as integer), o.held, o.held_since
from subscription_state s join part_owner o on o.part = s.part";

/// The partition's running time.
const fn active(now: Micros, held: Micros, since: Micros) -> Micros {
    now - held - if since > 0 { now - since } else { 0 }
}

fn span(n: Micros) -> Duration {
    Duration::from_micros(n.max(0).unsigned_abs())
}

fn state(r: &Row, now: Micros) -> Result<ReceiverState> {
    let active = active(now, r.get(12), r.get(13));
    let since = |time: Micros, now: Micros| (time > 0).then(|| span(now - time));
    let outages: Vec<(Micros, Micros)> = serde_json::from_str(r.get(8))
        .map_err(|e| broken(format!("a subscription's outages: {e}")))?;
    let open = r.get::<i32, _>(3) != 0;
    Ok(ReceiverState {
        subscription: SubscriptionId(r.get(0)),
        tenant: TenantId(r.get(1)),
        generation: r.get(2),
        failures: u32::try_from(r.get::<i32, _>(4)).unwrap_or_default(),
        open: open.then(|| Opening {
            ago: span(now - r.get::<Micros, _>(5)),
            left: span(r.get::<Micros, _>(6) - now),
        }),
        outages: outages
            .into_iter()
            .map(|(from, to)| Outage {
                began: span(active - from),
                ended: span(active - to),
            })
            .collect(),
        outage: since(r.get(7), active),
        failing: since(r.get(9), active),
        warned: r.get::<i32, _>(10) != 0,
        asked: r.get::<i32, _>(11) != 0,
    })
}

#[async_trait]
impl BreakerStore for Engine {
    async fn save_receiver(
        &self,
        session: Session,
        state: &ReceiverState,
        opened: bool,
    ) -> Result<bool> {
        let part = state.subscription.part();
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        let own = sqlx::query(
            "select o.held, o.held_since from part_owner o join nodes n on n.sid = o.sid
             where o.part = $1 and o.sid = $2 and n.expires_at > $3",
        )
        .bind(part.get())
        .bind(session.0)
        .bind(now)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(own) = own else { return Ok(false) };
        let active = active(now, own.get(0), own.get(1));
        if !write(&mut tx, state, now, active).await? {
            let known: Option<i64> = sqlx::query_scalar(
                "select gen from subscription_state where part = $1 and sub = $2",
            )
            .bind(part.get())
            .bind(state.subscription.0)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
            return Ok(known == Some(state.generation));
        }
        if opened {
            sqlx::query(
                "insert into counters as c (part, tenant, minute, sid, what, n) values ($1, $2, $3, 0, $4, 1)
                 on conflict (part, tenant, minute, sid, what) do update set n = c.n + excluded.n",
            )
            .bind(part.get())
            .bind(state.tenant.0)
            .bind(minute_of(now))
            .bind(BREAKER_OPENED)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn receivers_in(&self, parts: &[Part]) -> Result<Vec<ReceiverState>> {
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let parts = listed(parts.iter().map(|p| p.get()));
        self.read_states(&format!("{STATE} where s.part in ({parts})"))
            .await
    }

    async fn receivers(&self, subscriptions: &[SubscriptionId]) -> Result<Vec<ReceiverState>> {
        if subscriptions.is_empty() {
            return Ok(Vec::new());
        }
        let pairs = subscriptions
            .iter()
            .map(|s| format!("({},{})", s.part().get(), Self::uuid_literal(s.0)));
        let pairs = listed(pairs);
        self.read_states(&format!(
            "{STATE} where (s.part, s.sub) in (values {pairs})"
        ))
        .await
    }

    async fn revive(
        &self,
        part: Part,
        subscription: SubscriptionId,
        asked: bool,
        limit: i64,
    ) -> Result<u64> {
        self.revive_failed(part, subscription, asked, limit).await
    }
}

impl Engine {
    async fn read_states(&self, sql: &str) -> Result<Vec<ReceiverState>> {
        let mut tx = self.snapshot().await?;
        let now = self.clock(&mut tx).await?;
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned()))
            .persistent(false)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        rows.iter().map(|r| state(r, now)).collect()
    }
}

/// Writes a state in place of the one before; whether that was there.
async fn write(
    tx: &mut Transaction<'_>,
    s: &ReceiverState,
    now: Micros,
    active: Micros,
) -> Result<bool> {
    let at = |ago: Option<Duration>, now: Micros| ago.map_or(0, |d| now - micros(d));
    let outages: Vec<(Micros, Micros)> = s
        .outages
        .iter()
        .map(|o| (active - micros(o.began), active - micros(o.ended)))
        .collect();
    let outages = serde_json::to_string(&outages).map_err(|e| broken(e.to_string()))?;
    // The first one of a subscription that is there.
    let sql = if s.generation == 1 {
        "insert into subscription_state (part, sub, tenant, gen, breaker, failures, opened_at, until, outage_since,
                                         outages, failing_since, warned, asked)
         select $1, id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13 from subscriptions where id = $2
         on conflict (part, sub) do nothing"
    } else {
        "update subscription_state set tenant = $3, gen = $4, breaker = $5, failures = $6, opened_at = $7, until = $8,
                outage_since = $9, outages = $10, failing_since = $11, warned = $12, asked = $13
         where part = $1 and sub = $2 and gen = $4 - 1"
    };
    let done = sqlx::query(sql)
        .bind(s.subscription.part().get())
        .bind(s.subscription.0)
        .bind(s.tenant.0)
        .bind(s.generation)
        .bind(i16::from(s.open.is_some()))
        .bind(i32::try_from(s.failures).unwrap_or(i32::MAX))
        .bind(at(s.open.map(|o| o.ago), now))
        .bind(s.open.map_or(0, |o| now + micros(o.left)))
        .bind(at(s.outage, active))
        .bind(outages)
        .bind(at(s.failing, active))
        .bind(i16::from(s.warned))
        .bind(i16::from(s.asked))
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    Ok(done.rows_affected() > 0)
}
