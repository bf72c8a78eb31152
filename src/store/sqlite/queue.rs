//! Claiming from and sweeping the queue.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{Row as _, sqlite::SqliteArguments};

use super::{
    Db, Row, Sqlite, Transaction,
    batch::{Batch, pieces},
    counters::{Counts, count_moved},
    failed,
    nodes::numbers,
    publish::{Own, owned},
    shared::letters,
};
use crate::{
    domain::{
        delivery::Status,
        id::{DeliveryId, EventId, Micros, Part, SubscriptionId, TenantId, day_of, first_uuid_at},
        subscription::Ordering,
    },
    store::{
        Buried, Finish, Finished, HistoryStore as _, Leased, Ordered, Publish, Published,
        QueueStore, Result, Session, Waiting, Want, claim_share, rows::trace,
    },
};

/// One look-up for each subscription, so that a million rows of one can't hide
/// another's. Of bodies only their lengths, which are read without them.
static DUE: Batch = Batch::joined(
    "with c(part, id) as (",
    "select part, id from (select part, id from queue
       where part = ? and sub = ? and lease_sid = 0 and due_at <= ? order by due_at limit ?)",
    " union all ",
    ") select q.id, q.sub, coalesce(length(e.body), length(k.body), 0)
       from c cross join queue q on q.part = c.part and q.id = c.id
       left join events e on e.part = q.part and e.id = q.event and e.day = q.event_day
       left join kept_bodies k on k.part = q.part and k.event = q.event
       order by q.due_at",
);

static LEASE: Batch = Batch::new(
    "update queue set token = token + 1, lease_sid = ? where (part, id) in (values ",
    "(?,?)",
    ") returning id, tenant, sub, event,
       coalesce((select type from events e where e.part = queue.part and e.id = queue.event and e.day = queue.event_day),
                (select type from kept_bodies k where k.part = queue.part and k.event = queue.event), ''),
       coalesce((select body from events e where e.part = queue.part and e.id = queue.event and e.day = queue.event_day),
                (select body from kept_bodies k where k.part = queue.part and k.event = queue.event)),
       token, attempts, replays, by_hand, age_from, due_at,
       coalesce((select trace from events e where e.part = queue.part and e.id = queue.event and e.day = queue.event_day),
                (select trace from kept_bodies k where k.part = queue.part and k.event = queue.event)),
       okey",
);

/// Steps from one subscription to the next through the index, so that the cost
/// is that of the subscriptions, not of the rows.
const WAITING: &str = "
with recursive step(part, sub) as (
  select w.value, (select sub from queue where part = w.value and lease_sid = 0 order by sub limit 1)
  from json_each($1) w
  union all
  select s.part, (select sub from queue where part = s.part and lease_sid = 0 and sub > s.sub order by sub limit 1)
  from step s where s.sub is not null
),
first as materialized (
  select part, sub, (select due_at from queue where part = s.part and sub = s.sub and lease_sid = 0
                     order by due_at limit 1) as due_at
  from step s where sub is not null
)
select part, sub, due_at - $2 from first where due_at < 9223372036854775807";

pub(super) const FREE_LOST: &str = "
update queue set lease_sid = 0, token = token + 1
where part in (select value from json_each($1)) and lease_sid <> 0
  and lease_sid not in (select sid from nodes where expires_at > $2)";

/// What the sweeps move, chosen twice in one transaction: to be copied, and to
/// be deleted.
const LATE: &str =
    "where part in (select value from json_each($1)) and dead_at > 0 and dead_at <= $2
  and lease_sid = 0 order by part, dead_at, id limit $3";
const OF_SUBSCRIPTION: &str =
    "where part = $1 and sub = $2 and lease_sid = 0 and id < $3 order by due_at, id limit $4";

/// Of keys that have been parked for long what waits there for long.
const PARKED: &str = "where part = $1 and sub = $2 and lease_sid = 0 and id < $3 and okey in (
    select okey from order_keys where part = $1 and sub = $2 and blocked = 3 and at <= $5)
  order by due_at, id limit $4";

const TO_DEAD: &str = "
insert into dead (part, id, tenant, sub, event, event_day, okey, oseq, dead_at, age_from, token, state, attempts,
                  status, reason)
select part, id, tenant, sub, event, event_day, okey, oseq";

/// What rows count that are given up, and rows that are cancelled.
const GIVEN_UP: [(&str, &str); 4] = [
    ("state", "-1"),
    ("6", "1"),
    ("20", "1"),
    ("case when attempts > 1 then 22 end", "attempts - 1"),
];
const CANCELLED: [(&str, &str); 2] = [("state", "-1"), ("10", "1")];

const RETRY_WAITING: &str = "
update queue set dead_at = 0, token = token + 1,
  due_at = case when due_at = 9223372036854775807 and state <> 5 then due_at else $3 end,
  by_hand = by_hand or state = 5, state = case when state = 5 then 3 else state end,
  age_from = case when state = 5 then $4 else age_from end
where part = $1 and id = $2";

/// A delivery that is due.
struct Due {
    id: DeliveryId,
    subscription: SubscriptionId,
    /// The bytes of its body.
    size: i64,
}

/// Those that fit into one claim: of each subscription until it has its share.
fn enough(due: &[Due], share: i64) -> Vec<DeliveryId> {
    let mut bytes: HashMap<SubscriptionId, i64> = HashMap::new();
    let fits = due.iter().filter(|d| {
        let before = bytes.entry(d.subscription).or_default();
        *before += d.size;
        *before - d.size < share
    });
    fits.map(|d| d.id).collect()
}

#[async_trait]
impl QueueStore for Sqlite {
    async fn publish(&self, session: Session, batch: &[Publish]) -> Result<Vec<Published>> {
        self.publish_batch(session, batch).await
    }

    async fn claim(&self, session: Session, wants: &[Want]) -> Result<Vec<Leased>> {
        let share = claim_share(wants);
        let mut limits: BTreeMap<_, i64> = BTreeMap::new();
        for w in wants.iter().filter(|w| w.limit > 0) {
            let limit = limits.entry((w.part, w.subscription)).or_default();
            *limit = limit.saturating_add(w.limit);
        }
        let mut tx = self.begin().await?;
        let now = self.now();
        let own = owned(&mut tx, session, limits.keys().map(|(part, _)| *part), now).await?;
        let wants: Vec<_> = limits
            .into_iter()
            .filter(|((part, _), _)| own.get(&part.get()).is_some_and(|o| o.mine))
            .collect();
        let mut due = Vec::new();
        for piece in pieces(wants.len()) {
            let mut query = sqlx::query(DUE.text(&piece));
            for ((part, subscription), limit) in &wants[piece] {
                query = query
                    .bind(part.get())
                    .bind(subscription.0)
                    .bind(now)
                    .bind(*limit);
            }
            for r in query.fetch_all(&mut *tx).await.map_err(failed)? {
                due.push(Due {
                    id: DeliveryId(r.get(0)),
                    subscription: SubscriptionId(r.get(1)),
                    size: r.get(2),
                });
            }
        }
        let chosen = enough(&due, share);
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let mut rows = Vec::with_capacity(chosen.len());
        for piece in pieces(chosen.len()) {
            let mut query = sqlx::query(LEASE.text(&piece)).bind(session.0);
            for id in &chosen[piece] {
                query = query.bind(id.part().get()).bind(id.0);
            }
            for r in query.fetch_all(&mut *tx).await.map_err(failed)? {
                rows.push((r.get::<i64, _>(11), leased(&r, &own)));
            }
        }
        tx.commit().await.map_err(failed)?;
        rows.sort_unstable_by_key(|(due_at, l)| (*due_at, l.id));
        Ok(rows.into_iter().map(|(_, l)| l).collect())
    }

    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>> {
        self.finish_batch(batch).await
    }

    async fn waiting(&self, parts: &[Part]) -> Result<Vec<Waiting>> {
        let rows = sqlx::query(WAITING)
            .bind(numbers(parts.iter().copied()))
            .bind(self.now())
            .fetch_all(self.reader())
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
        let rows = sqlx::query(
            "select id, token from queue
             where part in (select value from json_each($1)) and lease_sid = $2 and lease_sid <> 0",
        )
        .bind(numbers(Part::all()))
        .bind(session.0)
        .fetch_all(self.reader())
        .await
        .map_err(failed)?;
        Ok(rows
            .iter()
            .map(|r| (DeliveryId(r.get(0)), r.get(1)))
            .collect())
    }

    async fn free_lost(&self, parts: &[Part]) -> Result<u64> {
        let mut tx = self.begin().await?;
        let query = sqlx::query(FREE_LOST)
            .bind(numbers(parts.iter().copied()))
            .bind(self.now());
        let freed = changed(&mut tx, query).await?;
        tx.commit().await.map_err(failed)?;
        Ok(freed)
    }

    async fn bury(&self, parts: &[Part], limit: i64) -> Result<Vec<Buried>> {
        let mut tx = self.begin().await?;
        let now = self.now();
        let bind = |sql: String| {
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(numbers(parts.iter().copied()))
                .bind(now)
                .bind(limit)
        };
        let copy = format!(
            "{TO_DEAD}, dead_at, age_from, token, 6, attempts, status, reason from queue {LATE} {BURIED}"
        );
        let rows = bind(copy).fetch_all(&mut *tx).await.map_err(failed)?;
        if !rows.is_empty() {
            let count = count_moved(LATE, &GIVEN_UP, now);
            changed(&mut tx, bind(count)).await?;
            changed(&mut tx, bind(delete_moved(LATE))).await?;
        }
        tx.commit().await.map_err(failed)?;
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
        let mut tx = self.begin().await?;
        let now = self.now();
        let copy = format!(
            "insert into done (part, day, id, tenant, sub, event, finished_at, took, token, state, attempts, status,
                               reason, worker, response)
             select part, $5, id, tenant, sub, event, $6, 0, token, 10, attempts, status, 'subscription_deleted',
                    '', x'' from queue {OF_SUBSCRIPTION}"
        );
        let count = count_moved(OF_SUBSCRIPTION, &CANCELLED, now);
        let moved = move_rows(&mut tx, count, copy, OF_SUBSCRIPTION, |q| {
            q.bind(part.get())
                .bind(subscription.0)
                .bind(uuid::Uuid::max())
                .bind(limit)
                .bind(day_of(now))
                .bind(now)
        })
        .await?;
        tx.commit().await.map_err(failed)?;
        Ok(moved)
    }

    async fn give_up(
        &self,
        part: Part,
        subscription: SubscriptionId,
        age: Duration,
        limit: i64,
    ) -> Result<u64> {
        let mut tx = self.begin().await?;
        let now = self.now();
        let copy = format!(
            "{TO_DEAD}, $5, age_from, token, 6, attempts, status, 'parked_too_long' from queue {OF_SUBSCRIPTION}"
        );
        let count = count_moved(OF_SUBSCRIPTION, &GIVEN_UP, now);
        let moved = move_rows(&mut tx, count, copy, OF_SUBSCRIPTION, |q| {
            q.bind(part.get())
                .bind(subscription.0)
                .bind(first_uuid_at(now - age.as_micros() as Micros))
                .bind(limit)
                .bind(now)
        })
        .await?;
        tx.commit().await.map_err(failed)?;
        Ok(moved)
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
        let now = self.now();
        let since = now - age.as_micros() as Micros;
        let copy = format!(
            "{TO_DEAD}, $6, age_from, token, 6, attempts, status, 'parked_too_long' from queue {PARKED}"
        );
        let count = count_moved(PARKED, &GIVEN_UP, now);
        let moved = move_rows(&mut tx, count, copy, PARKED, |q| {
            q.bind(part.get())
                .bind(subscription.0)
                .bind(first_uuid_at(since))
                .bind(limit)
                .bind(since)
                .bind(now)
        })
        .await?;
        tx.commit().await.map_err(failed)?;
        Ok(moved)
    }

    async fn skip(&self, id: DeliveryId) -> Result<bool> {
        self.skip_dead(id).await
    }

    async fn retry_by_hand(&self, id: DeliveryId) -> Result<Option<Status>> {
        let mut tx = self.begin().await?;
        let now = self.now();
        // Its age begins again, on the clock that leaves out what is held.
        let own = owned(&mut tx, Session(0), std::iter::once(id.part()), now).await?;
        let active = own.get(&id.part().get()).map_or(now, |o| o.active);
        let found = sqlx::query(
            "select case when state = 5 and dead_at <= $3 then 6 else state end, state, tenant
             from queue where part = $1 and id = $2 and lease_sid = 0",
        )
        .bind(id.part().get())
        .bind(id.0)
        .bind(now)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        if let Some(found) = found {
            let (state, stored): (i16, i16) = (found.get(0), found.get(1));
            let query = sqlx::query(RETRY_WAITING)
                .bind(id.part().get())
                .bind(id.0)
                .bind(now)
                .bind(active);
            changed(&mut tx, query).await?;
            if stored == Status::Failed.to_i16() {
                let mut counts = Counts::default();
                for (what, n) in [(stored, -1), (Status::Retrying.to_i16(), 1)] {
                    counts.add(id.part(), TenantId(found.get(2)), Session(0), what, n);
                }
                counts.write(&mut tx, now).await?;
            }
            tx.commit().await.map_err(failed)?;
            return Ok(Some(Status::from_i16(state)));
        }
        let revived = letters::revive(&mut tx, id.part(), &[id], now).await?;
        if let Some(letter) = revived.first() {
            let state = letter.state;
            tx.commit().await.map_err(failed)?;
            return Ok(Some(state));
        }
        drop(tx);
        Ok(self.get_delivery(id).await?.map(|d| d.status))
    }
}

fn leased(r: &Row, own: &HashMap<i16, Own>) -> Leased {
    let id = DeliveryId(r.get(0));
    let active = own.get(&id.part().get()).map_or(0, |o| o.active);
    Leased {
        id,
        tenant: TenantId(r.get(1)),
        subscription: SubscriptionId(r.get(2)),
        event: EventId(r.get(3)),
        event_type: r.get(4),
        body: r.get::<Option<Vec<u8>>, _>(5).unwrap_or_default().into(),
        token: r.get(6),
        attempts: r.get::<i16, _>(7) as u16,
        replays: r.get::<i16, _>(8) as u16,
        by_hand: r.get(9),
        age: active - r.get::<i64, _>(10),
        trace: trace(r.get(12)),
        ordering_key: r.get::<Option<String>, _>(13).map(Into::into),
    }
}

type Query = sqlx::query::Query<'static, Db, SqliteArguments>;

/// What tells which rows were buried.
const BURIED: &str = "
returning id, tenant, sub,
  coalesce((select type from events e where e.part = dead.part and e.id = dead.event and e.day = dead.event_day),
           (select type from kept_bodies k where k.part = dead.part and k.event = dead.event), ''),
  reason";

/// What failed while its receiver was ill, chosen twice in one transaction. What the
/// receiver itself asked to come later does, and what waits for another of its key.
const ILL: &str = "where part = $1 and sub = $2 and lease_sid = 0 and due_at > $3
  and (state = 3 and due_at < 9223372036854775807 and (status = 0 or status >= 500) and (status <> 503 or not $4) or state = 5 and dead_at > $3)
  order by due_at, id limit $5";

async fn changed(tx: &mut Transaction<'_>, query: Query) -> Result<u64> {
    Ok(query
        .execute(&mut **tx)
        .await
        .map_err(failed)?
        .rows_affected())
}

impl Sqlite {
    pub(super) async fn revive_failed(
        &self,
        part: Part,
        subscription: SubscriptionId,
        asked: bool,
        limit: i64,
    ) -> Result<u64> {
        let mut tx = self.begin().await?;
        let now = self.now();
        let bind = |sql: String| {
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(part.get())
                .bind(subscription.0)
                .bind(now)
                .bind(asked)
                .bind(limit)
        };
        let found = bind(format!("select tenant, state from queue {ILL}"))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        if found.is_empty() {
            return Ok(0);
        }
        let again = format!(
            "update queue set due_at = $3, dead_at = 0, by_hand = by_hand or state = 5, state = 3
             where (part, id) in (select part, id from queue {ILL})"
        );
        let revived = changed(&mut tx, bind(again)).await?;
        let mut counts = Counts::default();
        let failed_before = Status::Failed.to_i16();
        for r in found.iter().filter(|r| r.get::<i16, _>(1) == failed_before) {
            for (what, n) in [(failed_before, -1), (Status::Retrying.to_i16(), 1)] {
                counts.add(part, TenantId(r.get(0)), Session(0), what, n);
            }
        }
        counts.write(&mut tx, now).await?;
        tx.commit().await.map_err(failed)?;
        Ok(revived)
    }
}

/// Deletes rows of the queue that were copied.
fn delete_moved(condition: &str) -> String {
    format!("delete from queue where (part, id) in (select part, id from queue {condition})")
}

/// Counts rows of the queue, copies them and then deletes the same ones.
async fn move_rows(
    tx: &mut Transaction<'_>,
    count: String,
    copy: String,
    condition: &str,
    bind: impl Fn(Query) -> Query,
) -> Result<u64> {
    let moved = changed(tx, bind(sqlx::query(sqlx::AssertSqlSafe(copy)))).await?;
    if moved > 0 {
        changed(tx, bind(sqlx::query(sqlx::AssertSqlSafe(count)))).await?;
        let delete = delete_moved(condition);
        changed(tx, bind(sqlx::query(sqlx::AssertSqlSafe(delete)))).await?;
    }
    Ok(moved)
}
