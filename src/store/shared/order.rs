//! Deliveries in order: what the triggers of the tables do not do by themselves.

use sqlx::Row as _;
use uuid::Uuid;

use super::{Engine, failed};
use crate::{
    domain::{
        id::{DeliveryId, Part, SubscriptionId},
        subscription::Ordering,
    },
    store::{Ordered, Result},
};

/// Frees what waits, but for what is leased: that is freed with its end.
const FREE: &str = "
update queue set okey = null, oseq = null,
  due_at = case when due_at = 9223372036854775807 and state <> 5 then oseq else due_at end
where lease_sid = 0 and (part, id) in (
  select part, id from queue where part = $1 and sub = $2 and okey is not null and lease_sid = 0 limit $3)";

const DROP_KEYS: &str = "
delete from order_keys
where part = $1 and sub = $2 and not exists (
  select 1 from queue q
  where q.part = order_keys.part and q.sub = order_keys.sub and q.okey = order_keys.okey)";

const BLOCKED: &str = "update order_keys set blocked = $3
where part = $1 and sub = $2 and blocked > 0 and blocked <> $3";

const SKIP: &str = "update order_keys set head = null, blocked = 0
where part = $1 and sub = (select sub from dead where part = $1 and id = $2)
  and okey = (select okey from dead where part = $1 and id = $2) and head = $2 and blocked > 0";

impl Engine {
    /// Steps from one subscription to the next, so that the cost is that of the
    /// subscriptions, not of the keys.
    pub(in crate::store) async fn subscriptions_in_order(
        &self,
        parts: &[Part],
    ) -> Result<Vec<Ordered>> {
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let parts: Vec<String> = parts.iter().map(|p| format!("({})", p.get())).collect();
        let first = "(select sub from order_keys where part =";
        let sql = format!(
            "with recursive step(part, sub) as (
               select w.column1, {first} w.column1 order by sub limit 1) from (values {}) w
               union all
               select s.part, {first} s.part and sub > s.sub order by sub limit 1)
               from step s where s.sub is not null)
             select cast(part as integer), sub,
               exists (select 1 from order_keys k where k.part = s.part and k.sub = s.sub and k.blocked = 1),
               exists (select 1 from order_keys k where k.part = s.part and k.sub = s.sub and k.blocked = 3)
             from step s where sub is not null",
            parts.join(",")
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_all(self.reader())
            .await
            .map_err(failed)?;
        Ok(rows
            .iter()
            .map(|r| Ordered {
                part: Part::new(r.get::<i32, _>(0) as u8),
                subscription: SubscriptionId(r.get::<Uuid, _>(1)),
                blocks: r.get(2),
                parks: r.get(3),
            })
            .collect())
    }

    pub(in crate::store) async fn bring_in_order(
        &self,
        part: Part,
        subscription: SubscriptionId,
        ordering: Ordering,
        limit: i64,
    ) -> Result<u64> {
        let mut tx = self.begin().await?;
        let release = format!(
            "update order_keys set head = null, blocked = 0
             where part = $1 and sub = $2 and okey in (
               select okey from order_keys where part = $1 and sub = $2 and blocked > 0
               order by okey limit $3{})",
            Self::FOR_UPDATE
        );
        let (sql, number) = match ordering {
            Ordering::Off => (FREE, limit),
            Ordering::Skip => (release.as_str(), limit),
            Ordering::Block | Ordering::Park => (BLOCKED, ordering.to_i16().into()),
        };
        let query = |sql: &str, number| {
            sqlx::query(sqlx::AssertSqlSafe(sql.to_owned()))
                .bind(part.get())
                .bind(subscription.0)
                .bind::<i64>(number)
        };
        let changed = query(sql, number).execute(&mut *tx).await.map_err(failed)?;
        let changed = changed.rows_affected();
        if ordering == Ordering::Off && changed < limit.unsigned_abs() {
            // What another publishes while it is about to learn of the change is
            // waited for first, and seen by the statement that follows.
            let lock = format!(
                "select okey from order_keys where part = $1 and sub = $2 order by okey{}",
                Self::FOR_UPDATE
            );
            for sql in [lock.as_str(), DROP_KEYS] {
                sqlx::query(sqlx::AssertSqlSafe(sql.to_owned()))
                    .bind(part.get())
                    .bind(subscription.0)
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
            }
        }
        tx.commit().await.map_err(failed)?;
        Ok(changed)
    }

    pub(in crate::store) async fn skip_dead(&self, id: DeliveryId) -> Result<bool> {
        let mut tx = self.begin().await?;
        let done = sqlx::query(SKIP)
            .bind(id.part().get())
            .bind(id.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(done.rows_affected() > 0)
    }
}
