use async_trait::async_trait;
use sqlx::Row as _;

use super::{
    Engine, Row, failed,
    history::{DEAD, DONE, QUEUED, delivery},
};
use crate::{
    domain::{
        counter::{self, KEPT},
        delivery::{Delivery, Status},
        id::{DAY, DeliveryId, Micros, Part, TenantId, day_of, first_uuid_at},
    },
    store::{Count, CounterStore, Page, Recent, Result},
};

/// Numbers as they are listed in a statement.
fn listed<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    items.join(",")
}

fn every_part() -> String {
    listed(Part::all().map(Part::get))
}

fn uuids(ids: impl IntoIterator<Item = uuid::Uuid>) -> String {
    listed(ids.into_iter().map(Engine::uuid_literal))
}

/// Rows as `values` lists them.
fn rows(items: &str) -> String {
    format!("({})", items.replace(',', "),("))
}

fn counts(found: &[Row]) -> Vec<Count> {
    let count = |r: &Row| Count {
        minute: r.get(0),
        what: r.get::<i32, _>(1) as i16,
        n: r.get(2),
    };
    found.iter().map(count).collect()
}

/// What waits behind a dead delivery that parks its ordering key.
const WITH_ITS_KEY: &str = "(okey is not null and due_at = 9223372036854775807 and exists (
  select 1 from order_keys k
  where k.part = queue.part and k.sub = queue.sub and k.okey = queue.okey and k.blocked = 3))";

/// What of a tenant's deliveries, or of all, may be in the queue and have that
/// status. What waits for a subscription that is off is parked.
fn queued(recent: &Recent, now: Micros) -> Option<String> {
    let parked = uuids(recent.parked.iter().map(|s| s.0));
    let waits = |state: i16| {
        let on = format!("state = {state} and lease_sid = 0 and not {WITH_ITS_KEY}");
        if parked.is_empty() {
            on
        } else {
            format!("{on} and sub not in ({parked})")
        }
    };
    Some(match recent.status {
        None => "1 = 1".to_owned(),
        Some(Status::Sending) => "lease_sid <> 0".to_owned(),
        Some(Status::Failed) => format!("state = 5 and lease_sid = 0 and dead_at > {now}"),
        Some(Status::Dead) => format!("state = 5 and lease_sid = 0 and dead_at <= {now}"),
        Some(Status::Parked) if parked.is_empty() => {
            format!("state in (1, 3) and lease_sid = 0 and {WITH_ITS_KEY}")
        }
        Some(Status::Parked) => {
            format!("state in (1, 3) and lease_sid = 0 and (sub in ({parked}) or {WITH_ITS_KEY})")
        }
        Some(waiting @ (Status::Pending | Status::Retrying)) => waits(waiting.to_i16()),
        Some(_) => return None,
    })
}

/// The conditions of finished rows: of delivered ones, and of all others.
fn finished(status: Option<Status>) -> (Option<&'static str>, Option<String>) {
    match status {
        None => (Some("state = 4"), Some("state <> 4".to_owned())),
        Some(Status::Delivered) => (Some("state = 4"), None),
        Some(other @ (Status::Cancelled | Status::Skipped)) => (
            None,
            Some(format!("state <> 4 and state = {}", other.to_i16())),
        ),
        Some(_) => (None, None),
    }
}

/// The reads whose rows together hold the page.
fn reads(recent: &Recent, page: Page<DeliveryId>, now: Micros, day: i32) -> Vec<String> {
    let below = page.before.map_or(String::new(), |id| {
        format!(" and id < {}", Engine::uuid_literal(id.0))
    });
    let tenant = recent.tenant.map_or(String::new(), |t| {
        format!(" and tenant = {}", Engine::uuid_literal(t.0))
    });
    let by_day = if Engine::BY_DAY {
        format!(" and day >= {day}")
    } else {
        String::new()
    };
    let parts = rows(&listed(recent.parts.iter().map(|p| p.get())));
    let queued_now = QUEUED.replace("{now}", &now.to_string());
    let by_part = |select: &str, table: &str, condition: &str| {
        let condition = format!("{condition}{below}{tenant}");
        Engine::newest(select, table, "part", &parts, &condition, page.limit)
    };
    let mut reads = Vec::new();
    if let Some(condition) = queued(recent, now) {
        reads.push(by_part(&queued_now, "queue", &condition));
    }
    match recent.status {
        None => reads.push(by_part(DEAD, "dead", "1 = 1")),
        Some(Status::Dead) => reads.push(by_part(DEAD, "dead", "state = 6")),
        Some(Status::ReplayExpired) => {
            reads.push(by_part(DEAD, "dead", "state <> 6 and state = 9"));
        }
        Some(_) => {}
    }
    let (delivered, others) = finished(recent.status);
    if recent.tenant.is_none() && recent.status.is_none() {
        reads.push(by_part(DONE, "done", &format!("1 = 1{by_day}")));
        return reads;
    }
    if let Some(condition) = delivered {
        if recent.tenant.is_none() {
            reads.push(by_part(DONE, "done", &format!("{condition}{by_day}")));
        } else if !recent.subscriptions.is_empty() {
            // Another tenant's rows in the same partition would be passed over
            // one by one: a subscription's are found at once.
            let subs = rows(&uuids(recent.subscriptions.iter().map(|s| s.0)));
            let parts = listed(recent.parts.iter().map(|p| p.get()));
            let condition = format!("part in ({parts}) and {condition}{below}{by_day}");
            reads.push(Engine::newest(
                DONE, "done", "sub", &subs, &condition, page.limit,
            ));
        }
    }
    if let Some(condition) = others {
        reads.push(by_part(DONE, "done", &format!("{condition}{by_day}")));
    }
    reads
}

fn statement(recent: &Recent, page: Page<DeliveryId>, now: Micros, day: i32) -> Option<String> {
    let reads: Vec<String> = reads(recent, page, now, day)
        .iter()
        .map(|read| format!("select * from ({read}) y"))
        .collect();
    if reads.is_empty() || recent.parts.is_empty() {
        return None;
    }
    Some(format!(
        "select id, tenant, sub, event, cast(state as integer), attempts, due_at, finished_at, status, reason,
                cast(null as text), cast(null as text), cast(null as uuid)
         from ({}) z order by id desc limit {}",
        reads.join(" union all "),
        page.limit,
    ))
}

#[async_trait]
impl CounterStore for Engine {
    async fn counts(&self, part: Part, tenant: Option<TenantId>, from: i64) -> Result<Vec<Count>> {
        let whose = tenant.map_or(String::new(), |t| {
            format!(" and tenant = {}", Self::uuid_literal(t.0))
        });
        let sql = format!(
            "select cast(null as bigint), cast(what as integer), cast(sum(n) as bigint) from (
               select what, n from counter_days where part = $1{whose}
               union all select what, n from counters where part = $1{whose} and minute < $2) x
             group by what
             union all
             select minute, cast(what as integer), cast(sum(n) as bigint) from counters
             where part = $1{whose} and minute >= $2 group by minute, what"
        );
        let found = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(part.get())
            .bind(from)
            .fetch_all(self.history())
            .await
            .map_err(failed)?;
        Ok(counts(&found))
    }

    async fn counts_since(&self, from: i64) -> Result<(Micros, Vec<Count>)> {
        let mut tx = self.history_snapshot().await?;
        let now = self.clock(&mut tx).await?;
        let sql = format!(
            "select minute, cast(what as integer), cast(sum(n) as bigint) from counters
             where part in ({}) and minute >= $1 group by minute, what",
            every_part()
        );
        let found = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(from)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok((now, counts(&found)))
    }

    async fn add_up(&self, parts: &[Part], limit: i64) -> Result<u64> {
        self.add_up_minutes(parts, limit).await
    }

    async fn oldest_unfinished(&self, tenant: Option<TenantId>) -> Result<Option<DeliveryId>> {
        let sql = match tenant {
            // The first of each partition, and of these the first.
            None => {
                let firsts: Vec<String> = Part::all()
                    .map(|p| {
                        format!(
                            "select (select id from queue where part = {} order by id limit 1) as id",
                            p.get()
                        )
                    })
                    .collect();
                format!(
                    "select id from ({}) x where id is not null order by id limit 1",
                    firsts.join(" union all ")
                )
            }
            Some(tenant) => format!(
                "select id from queue where part = {} and tenant = {} order by id limit 1",
                tenant.part().get(),
                Self::uuid_literal(tenant.0)
            ),
        };
        let found = sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_optional(self.history())
            .await
            .map_err(failed)?;
        Ok(found.map(|r| DeliveryId(r.get(0))))
    }

    async fn recent_deliveries(
        &self,
        recent: &Recent,
        page: Page<DeliveryId>,
    ) -> Result<Vec<Delivery>> {
        let mut tx = self.history_snapshot().await?;
        self.read_in_order(&mut tx).await?;
        let now = self.clock(&mut tx).await?;
        // What is finished is so after it was published: newer rows than those of
        // a day are in no day before. Only if they are too few are all days read.
        // Rows of a status that few have are read of all days at once.
        let day = day_of(page.before.map_or(now, DeliveryId::time).min(now)) - 1;
        let floor = first_uuid_at(Micros::from(day) * DAY);
        let mut found = Vec::new();
        let many = matches!(recent.status, None | Some(Status::Delivered));
        let narrow = Engine::BY_DAY && many;
        for day in [day, i32::MIN].into_iter().skip(usize::from(!narrow)) {
            let Some(sql) = statement(recent, page, now, day) else {
                break;
            };
            let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
                .persistent(false)
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
            found = rows.iter().map(delivery).collect::<Vec<_>>();
            let full = found.len() as i64 >= page.limit;
            if full && found.last().is_some_and(|d| d.id.0 >= floor) {
                break;
            }
        }
        self.read_types(&mut tx, &mut found).await?;
        tx.commit().await.map_err(failed)?;
        Ok(found)
    }
}

const _: () = assert!(KEPT > counter::WINDOW);
