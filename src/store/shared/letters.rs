//! Dead letters. Here alone one is taken back into the queue ([`revive`]), and
//! here alone one is removed ([`purge`]).

use std::collections::BTreeMap;

use sqlx::Row as _;
use uuid::Uuid;

use super::{
    Engine, Row, Transaction, failed,
    history::{DEAD, delivery},
};
use crate::{
    domain::{
        counter::minute_of,
        delivery::{Delivery, Status},
        id::{DeliveryId, EventId, Micros, Part, SubscriptionId, TenantId, same_instant},
        redrive::Selection,
    },
    store::{COUNTED, Letters, Page, Result},
};

/// How many letters a list looks at in all partitions together, where some of
/// them may not fit.
const LOOKED_AT: usize = 20_000;
/// And in each partition at the least.
const LOOKED_AT_EACH: usize = 500;

/// A letter that was taken out.
pub(in super::super) struct Taken {
    pub(in super::super) id: DeliveryId,
    pub(in super::super) tenant: TenantId,
    pub(in super::super) subscription: SubscriptionId,
    pub(in super::super) event: EventId,
    pub(in super::super) state: Status,
}

/// Ids as a statement lists them.
pub(super) fn listed(ids: impl IntoIterator<Item = Uuid>) -> String {
    let literals: Vec<String> = ids.into_iter().map(Engine::uuid_literal).collect();
    literals.join(",")
}

/// Those of these letters that are still there, which stay so for this
/// transaction.
async fn lock(tx: &mut Transaction<'_>, part: Part, ids: &[DeliveryId]) -> Result<Vec<Taken>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "select id, tenant, sub, event, state from dead where part = {} and id in ({}) order by id{}",
        part.get(),
        listed(ids.iter().map(|id| id.0)),
        Engine::FOR_UPDATE,
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .persistent(false)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    Ok(rows
        .iter()
        .map(|r| Taken {
            id: DeliveryId(r.get(0)),
            tenant: TenantId(r.get(1)),
            subscription: SubscriptionId(r.get(2)),
            event: EventId(r.get(3)),
            state: Status::from_i16(r.get(4)),
        })
        .collect())
}

async fn carry_out(tx: &mut Transaction<'_>, sql: String) -> Result<()> {
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .persistent(false)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(failed)
}

async fn remove(tx: &mut Transaction<'_>, part: Part, letters: &[Taken]) -> Result<()> {
    let sql = format!(
        "delete from dead where part = {} and id in ({})",
        part.get(),
        listed(letters.iter().map(|l| l.id.0))
    );
    carry_out(tx, sql).await
}

/// A partition's clock: the store's, without the time that it was held.
pub(super) async fn active(tx: &mut Transaction<'_>, part: Part, now: Micros) -> Result<Micros> {
    let r = sqlx::query("select held, held_since from part_owner where part = $1")
        .bind(part.get())
        .fetch_one(&mut **tx)
        .await
        .map_err(failed)?;
    let (held, since): (i64, i64) = (r.get(0), r.get(1));
    Ok(now - held - if since > 0 { now - since } else { 0 })
}

/// What is counted of tenants, by code.
pub(super) type Counted = BTreeMap<(Uuid, i16), i64>;

/// Adds to the counters, last of all in a transaction and in the order of their
/// keys: whoever holds one waits for nothing else.
pub(super) async fn count(
    tx: &mut Transaction<'_>,
    part: Part,
    now: Micros,
    counted: &Counted,
) -> Result<()> {
    let minute = minute_of(now);
    let rows: Vec<String> = counted
        .iter()
        .filter(|(_, n)| **n != 0)
        .map(|((tenant, what), n)| {
            let tenant = Engine::uuid_literal(*tenant);
            format!("({}, {tenant}, {minute}, 0, {what}, {n})", part.get())
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "insert into counters as c (part, tenant, minute, sid, what, n) values {}
         on conflict (part, tenant, minute, sid, what) do update set n = c.n + excluded.n",
        rows.join(",")
    );
    carry_out(tx, sql).await
}

/// Takes these letters back into the queue, due now and for one attempt; those
/// that are there. Their age begins again. Before any is taken out, and in the order
/// of their ordering keys: one that blocks its key is its head again.
pub(in super::super) async fn revive(
    tx: &mut Transaction<'_>,
    part: Part,
    ids: &[DeliveryId],
    now: Micros,
) -> Result<Vec<Taken>> {
    let letters = lock(tx, part, ids).await?;
    if letters.is_empty() {
        return Ok(letters);
    }
    let active = active(tx, part, now).await?;
    let sql = format!(
        "insert into queue (part, id, tenant, sub, event, event_day, due_at, dead_at, age_from, lease_sid, token,
                            state, attempts, replays, by_hand, status, reason, okey, oseq)
         select part, id, tenant, sub, event, event_day, {now}, 0, {active}, 0, token + 1, 3, attempts, 0, true,
                status, reason, okey, oseq
         from dead where part = {} and id in ({}) order by sub, okey, oseq",
        part.get(),
        listed(letters.iter().map(|l| l.id.0))
    );
    carry_out(tx, sql).await?;
    remove(tx, part, &letters).await?;
    let mut counted = Counted::new();
    for l in &letters {
        *counted.entry((l.tenant.0, l.state.to_i16())).or_default() -= 1;
        *counted
            .entry((l.tenant.0, Status::Retrying.to_i16()))
            .or_default() += 1;
    }
    count(tx, part, now, &counted).await?;
    Ok(letters)
}

/// Removes these letters; those that are there. Bodies that are kept for them
/// alone go too.
pub(in super::super) async fn purge(
    tx: &mut Transaction<'_>,
    part: Part,
    ids: &[DeliveryId],
    now: Micros,
) -> Result<Vec<Taken>> {
    let letters = lock(tx, part, ids).await?;
    if letters.is_empty() {
        return Ok(letters);
    }
    remove(tx, part, &letters).await?;
    let events: Vec<String> = letters
        .iter()
        .map(|l| {
            let (low, high) = same_instant(l.event.0);
            format!("({})", listed([l.event.0, low, high]))
        })
        .collect();
    let part_no = part.get();
    let needed = |table: &str| {
        format!(
            "exists (select 1 from {table} x where x.part = {part_no} and x.id >= v.column2 and x.id <= v.column3
                     and x.event = v.column1)"
        )
    };
    let sql = format!(
        "delete from kept_bodies where part = {part_no} and event in (
           select v.column1 from (values {}) v where not {} and not {})",
        events.join(","),
        needed("queue"),
        needed("dead")
    );
    carry_out(tx, sql).await?;
    let mut counted = Counted::new();
    for l in &letters {
        *counted.entry((l.tenant.0, l.state.to_i16())).or_default() -= 1;
    }
    count(tx, part, now, &counted).await?;
    Ok(letters)
}

/// A selection as conditions on rows of `dead`.
pub(super) struct Chosen {
    /// What an index narrows to.
    indexed: String,
    /// What each row is then looked at for; empty where all of them fit.
    looked_at: String,
    /// What `$1` and those that follow stand for.
    args: Vec<String>,
}

impl Chosen {
    pub(super) fn new(selection: &Selection) -> Self {
        let (low, high) = selection.range();
        let tenant = selection.tenant.map(|t| Engine::uuid_literal(t.0));
        let whose = match (selection.subscription, tenant) {
            // In this form the tenant's index is of no use, and the subscription's
            // the better one in any case.
            (Some(s), Some(t)) => format!(
                " and sub = {} and (tenant = {t}) is true",
                Engine::uuid_literal(s.0)
            ),
            (Some(s), None) => format!(" and sub = {}", Engine::uuid_literal(s.0)),
            (None, Some(t)) => format!(" and tenant = {t}"),
            (None, None) => String::new(),
        };
        let indexed = format!(
            "id >= {} and id < {}{whose}",
            Engine::uuid_literal(low),
            Engine::uuid_literal(high)
        );
        let (mut looked_at, mut args) = (String::new(), Vec::new());
        if !selection.reason.is_empty() {
            args.push(selection.reason.clone());
            looked_at = format!(" and dead.reason = ${}", args.len());
        }
        let prefix = selection.event_type.strip_suffix('*');
        if !selection.event_type.is_empty() && prefix != Some("") {
            args.push(prefix.unwrap_or(&selection.event_type).to_owned());
            let n = args.len();
            let fits = |table: &str| match prefix {
                Some(p) => format!(
                    "substr({table}.type, 1, {}) = ${n} and length({table}.type) > {}",
                    p.len(),
                    p.len()
                ),
                None => format!("{table}.type = ${n}"),
            };
            looked_at = format!(
                "{looked_at} and (exists (select 1 from events e where e.part = dead.part and e.day = dead.event_day
                                 and e.id = dead.event and {})
                    or exists (select 1 from kept_bodies k where k.part = dead.part and k.event = dead.event and {}))",
                fits("e"),
                fits("k")
            );
        }
        Self {
            indexed,
            looked_at,
            args,
        }
    }

    async fn rows(&self, tx: &mut Transaction<'_>, sql: String) -> Result<Vec<Row>> {
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
        for arg in &self.args {
            query = query.bind(arg.clone());
        }
        query.fetch_all(&mut **tx).await.map_err(failed)
    }

    /// The letter at which so many that an index finds lie behind: from `from` on.
    async fn horizon(
        &self,
        tx: &mut Transaction<'_>,
        part: Part,
        from: Uuid,
        count: i64,
    ) -> Result<Option<Uuid>> {
        if self.looked_at.is_empty() {
            return Ok(None);
        }
        let sql = format!(
            "select id from dead where part = {} and {} and id >= {} order by id limit 1 offset {count}",
            part.get(),
            self.indexed,
            Engine::uuid_literal(from)
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .persistent(false)
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed)?;
        Ok(row.map(|r| r.get(0)))
    }

    /// The next letters from `from` on that were dead by `dead_by`, each with
    /// whether its subscription is there; and where the next look begins, none
    /// where nothing lies beyond them.
    pub(super) async fn next(
        &self,
        tx: &mut Transaction<'_>,
        part: Part,
        from: Uuid,
        dead_by: Micros,
        limit: i64,
    ) -> Result<(Vec<(DeliveryId, bool)>, Option<Uuid>)> {
        let horizon = self.horizon(tx, part, from, LOOKED_AT as i64).await?;
        let below = horizon.map_or(String::new(), |id| {
            format!(" and id < {}", Engine::uuid_literal(id))
        });
        let sql = format!(
            "select id, exists (select 1 from subscriptions s where s.id = dead.sub) from dead
             where part = {} and {} and id >= {}{below} and dead_at <= {dead_by}{} order by id limit {limit}",
            part.get(),
            self.indexed,
            Engine::uuid_literal(from),
            self.looked_at
        );
        let rows = self.rows(tx, sql).await?;
        let found: Vec<_> = rows
            .iter()
            .map(|r| (DeliveryId(r.get(0)), r.get::<bool, _>(1)))
            .collect();
        let full = found.len() as i64 >= limit;
        let next = match found.last() {
            Some((last, _)) if full => Some(crate::domain::id::next_uuid(last.0)),
            _ => horizon,
        };
        Ok((found, next))
    }

    /// How many there are, unless that takes a look at too many.
    pub(super) async fn count(&self, tx: &mut Transaction<'_>, part: Part) -> Result<Option<i64>> {
        let sql = format!(
            "select cast(count(*) as bigint), cast(count(case when 1 = 1{} then 1 end) as bigint)
             from (select * from dead where part = {} and {} order by id limit {}) dead",
            self.looked_at,
            part.get(),
            self.indexed,
            COUNTED + 1
        );
        let rows = self.rows(tx, sql).await?;
        let Some(r) = rows.first() else {
            return Ok(None);
        };
        Ok((r.get::<i64, _>(0) <= COUNTED).then(|| r.get(1)))
    }
}

pub(super) async fn get(engine: &Engine, id: DeliveryId) -> Result<Option<Delivery>> {
    let sql = format!(
        "select d.id, d.tenant, d.sub, d.event, cast(d.state as integer), d.attempts, d.due_at, d.finished_at,
                d.status, d.reason, coalesce(e.type, k.type), coalesce(e.trace, k.trace), o.redrive
         from ({DEAD} where part = $1 and id = $2) d
         left join events e on e.part = d.part and e.id = d.event
         left join kept_bodies k on k.part = d.part and k.event = d.event
         left join replayed o on o.part = d.part and o.id = d.id"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(id.part().get())
        .bind(id.0)
        .fetch_optional(engine.history())
        .await
        .map_err(failed)?;
    Ok(row.map(|r| delivery(&r)))
}

pub(super) async fn list(
    engine: &Engine,
    selection: &Selection,
    parts: &[Part],
    page: Page<DeliveryId>,
) -> Result<Letters> {
    let chosen = Chosen::new(selection);
    let below = page.before.map_or(String::new(), |id| {
        format!(" and id < {}", Engine::uuid_literal(id.0))
    });
    let mut tx = engine.history_snapshot().await?;
    engine.read_in_order(&mut tx).await?;
    let horizon = if chosen.looked_at.is_empty() {
        None
    } else {
        let each = (LOOKED_AT / parts.len().max(1)).max(LOOKED_AT_EACH) - 1;
        let arms: Vec<String> = parts
            .iter()
            .map(|p| {
                format!(
                    "select * from (select id from dead where part = {} and {}{below}
                                    order by id desc limit 1 offset {each}) p{}",
                    p.get(),
                    chosen.indexed,
                    p.get()
                )
            })
            .collect();
        let rows = sqlx::query(sqlx::AssertSqlSafe(arms.join(" union all ")))
            .persistent(false)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        rows.iter().map(|r| r.get::<Uuid, _>(0)).max()
    };
    let above = horizon.map_or(String::new(), |id| {
        format!(" and id >= {}", Engine::uuid_literal(id))
    });
    let values: Vec<String> = parts.iter().map(|p| format!("({})", p.get())).collect();
    let condition = format!("{}{below}{above}{}", chosen.indexed, chosen.looked_at);
    let read = Engine::newest(
        DEAD,
        "dead",
        "part",
        &values.join(","),
        &condition,
        page.limit,
    );
    let sql = format!(
        "select z.id, z.tenant, z.sub, z.event, cast(z.state as integer), z.attempts, z.due_at, z.finished_at,
                z.status, z.reason, cast(null as text), cast(null as text), o.redrive
         from (select * from ({read}) y order by id desc limit {}) z
         left join replayed o on o.part = z.part and o.id = z.id order by z.id desc",
        page.limit
    );
    let rows = chosen.rows(&mut tx, sql).await?;
    let mut letters: Vec<Delivery> = rows.iter().map(delivery).collect();
    engine.read_types(&mut tx, &mut letters).await?;
    tx.commit().await.map_err(failed)?;
    let full = letters.len() as i64 >= page.limit;
    let next = match letters.last() {
        Some(last) if full => Some(last.id),
        _ => horizon.map(DeliveryId),
    };
    Ok(Letters { letters, next })
}
