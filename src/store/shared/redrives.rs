use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use uuid::Uuid;

use super::{
    Engine, Row, Transaction, audit, broken, bump, failed,
    letters::{self, Chosen, Counted, listed},
};
use crate::{
    domain::{
        audit::{Chain, Entry},
        delivery::{Delivery, Status},
        id::{
            DAY, DeliveryId, EventId, Micros, Part, RedriveId, SubscriptionId, TenantId, day_of,
            first_uuid_at, next_uuid, same_instant, time_of,
        },
        redrive::{Change, Kind, Pace, Redrive, Selection, State},
    },
    store::{
        Author, Letters, Moved, Page, Past, PastEvent, RedriveStore, Result, Session, Standing,
        Step, StoreError,
    },
};

/// How many events of a partition one look passes over, of other tenants too.
const LOOKED_AT: i64 = 5000;
/// The most of a tenant's that it brings.
const EVENTS: i64 = 500;
/// The bytes of bodies with which it has enough.
const BYTES: i64 = 8 << 20;

const COLUMNS: &str =
    "id, tenant, kind, state, selection, rate, total, done, skipped, position, until,
  created_at, created_by, reason, finished_at, note, credit, credited_at";

/// What of a selection is kept as one JSON text.
#[derive(Serialize, Deserialize)]
struct Doc {
    subscription: Option<String>,
    event_type: String,
    reason: String,
    from: Option<Micros>,
    to: Option<Micros>,
}

fn written(s: &Selection) -> String {
    let doc = Doc {
        subscription: s.subscription.map(|s| s.to_string()),
        event_type: s.event_type.clone(),
        reason: s.reason.clone(),
        from: s.from,
        to: s.to,
    };
    serde_json::to_string(&doc).unwrap_or_default()
}

fn redrive(r: &Row) -> Result<Redrive> {
    let (id, tenant) = (RedriveId(r.get(0)), TenantId(r.get(1)));
    let doc: Doc = serde_json::from_str(r.get(4)).map_err(|e| broken(format!("{id}: {e}")))?;
    let subscription = doc.subscription.map(|s| s.parse()).transpose();
    let finished_at: Micros = r.get(14);
    Ok(Redrive {
        id,
        tenant,
        kind: Kind::from_i16(r.get(2)),
        state: State::from_i16(r.get(3)),
        selection: Selection {
            tenant: Some(tenant),
            subscription: subscription.map_err(|e| broken(format!("{id}: {e}")))?,
            event_type: doc.event_type,
            reason: doc.reason,
            from: doc.from,
            to: doc.to,
        },
        rate: r.get::<i32, _>(5).unsigned_abs(),
        total: r.get(6),
        done: r.get(7),
        skipped: r.get(8),
        position: r.get(9),
        end: r.get(10),
        created_at: r.get(11),
        created_by: r.get(12),
        reason: r.get(13),
        finished_at: (finished_at > 0).then_some(finished_at),
        note: r.get(15),
    })
}

fn pace(r: &Row) -> Pace {
    Pace {
        credit: r.get(16),
        at: r.get(17),
    }
}

/// What the audit log tells of a redrive.
fn told(r: &Redrive) -> String {
    let s = &r.selection;
    let time = crate::domain::event::rfc3339;
    let named = [
        ("tenant", Some(r.tenant.to_string())),
        ("subscription", s.subscription.map(|s| s.to_string())),
        ("event_type", Some(s.event_type.clone())),
        ("reason", Some(s.reason.clone())),
        ("from", s.from.map(time)),
        ("to", s.to.map(time)),
    ];
    let told: Vec<String> = named
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", value.filter(|v| !v.is_empty())?)))
        .collect();
    told.join(" ")
}

/// Reads a redrive that runs, and the clock once it is ours alone. None where it
/// does not run, or the session does not own its partition.
async fn lock_running(
    engine: &Engine,
    tx: &mut Transaction<'_>,
    session: Session,
    id: RedriveId,
    lock: &str,
) -> Result<Option<(Redrive, Pace, Micros)>> {
    let sql =
        format!("select {COLUMNS} from redrives where part = $1 and id = $2 and state = 1{lock}");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(id.part().get())
        .bind(id.0)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed)?;
    let Some(row) = row else { return Ok(None) };
    let now = engine.clock(tx).await?;
    let owner = sqlx::query(
        "select o.part from part_owner o join nodes n on n.sid = o.sid
         where o.part = $1 and o.sid = $2 and n.expires_at > $3",
    )
    .bind(id.part().get())
    .bind(session.0)
    .bind(now)
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed)?;
    if owner.is_none() {
        return Ok(None);
    }
    let redrive = redrive(&row)?;
    let pace = pace(&row).earn(redrive.rate, now);
    Ok(Some((redrive, pace, now)))
}

/// Writes how far a redrive is.
async fn write(tx: &mut Transaction<'_>, r: &Redrive, pace: Pace) -> Result<()> {
    sqlx::query(
        "update redrives set state = $3, rate = $4, done = $5, skipped = $6, position = $7, credit = $8,
                             credited_at = $9, finished_at = $10, note = $11
         where part = $1 and id = $2",
    )
    .bind(r.id.part().get())
    .bind(r.id.0)
    .bind(r.state.to_i16())
    .bind(i32::try_from(r.rate).unwrap_or(i32::MAX))
    .bind(r.done)
    .bind(r.skipped)
    .bind(r.position)
    .bind(pace.credit)
    .bind(pace.at)
    .bind(r.finished_at.unwrap_or(0))
    .bind(r.note.as_str())
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(failed)
}

fn distinct(subscriptions: impl Iterator<Item = SubscriptionId>) -> Vec<SubscriptionId> {
    let mut all: Vec<SubscriptionId> = subscriptions.collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Makes a replay's deliveries.
async fn insert(tx: &mut Transaction<'_>, r: &Redrive, step: &Step, now: Micros) -> Result<()> {
    if step.deliveries.is_empty() {
        return Ok(());
    }
    let part = r.id.part();
    let active = letters::active(tx, part, now).await?;
    let mut rows = Vec::with_capacity(step.deliveries.len());
    for (event, d) in &step.deliveries {
        let ids = listed([d.id.0, d.subscription.0, event.0]);
        rows.push(format!(
            "({ids}, {}, {})",
            day_of(event.time()),
            active - d.held
        ));
    }
    let (values, part_no) = (rows.join(","), part.get());
    let tenant = Engine::uuid_literal(r.tenant.0);
    for sql in [
        format!(
            "insert into queue (part, id, tenant, sub, event, event_day, due_at, dead_at, age_from, lease_sid, token,
                                state, attempts, replays, by_hand, status, reason)
             select {part_no}, v.column1, {tenant}, v.column2, v.column3, v.column4, {now}, 0, v.column5, 0, 0, 1, 0,
                    0, false, 0, ''
             from (values {values}) v"
        ),
        format!(
            "insert into replayed (part, id, redrive)
             select {part_no}, v.column1, {} from (values {values}) v",
            Engine::uuid_literal(r.id.0)
        ),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .persistent(false)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
    }
    let made = i64::try_from(step.deliveries.len()).unwrap_or(i64::MAX);
    let counted = Counted::from([((r.tenant.0, Status::Pending.to_i16()), made)]);
    letters::count(tx, part, now, &counted).await
}

/// The tenant's events of one day from there on, to below `stop`; and where the
/// next look begins.
async fn events(
    tx: &mut Transaction<'_>,
    r: &Redrive,
    from: Uuid,
    bodies: bool,
) -> Result<(Vec<PastEvent>, Uuid)> {
    let day = day_of(time_of(from));
    let midnight = first_uuid_at((Micros::from(day) + 1) * DAY);
    let mut stop = r.end.min(midnight);
    let literal = Engine::uuid_literal;
    let all = |stop: Uuid| {
        format!(
            "part = {} and day = {day} and id >= {} and id < {}",
            r.id.part().get(),
            literal(from),
            literal(stop)
        )
    };
    let beyond = format!(
        "select id from events where {} order by id limit 1 offset {LOOKED_AT}",
        all(stop)
    );
    let beyond = sqlx::query(sqlx::AssertSqlSafe(beyond))
        .persistent(false)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed)?;
    if let Some(r) = beyond {
        stop = r.get(0);
    }
    let ours = format!("{} and tenant = {}", all(stop), literal(r.tenant.0));
    let sql = if bodies {
        format!(
            "select id, type, body from (
               select id, type, body,
                      sum(length(body)) over (order by id rows unbounded preceding) - length(body) as before
               from (select id, type, body from events where {ours} order by id limit {EVENTS}) y) x
             where before < {BYTES} order by id"
        )
    } else {
        format!("select id, type from events where {ours} order by id limit {EVENTS}")
    };
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .persistent(false)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    let found: Vec<PastEvent> = rows
        .iter()
        .map(|r| PastEvent {
            id: EventId(r.get(0)),
            event_type: r.get(1),
            body: if bodies {
                r.get::<Vec<u8>, _>(2).into()
            } else {
                bytes::Bytes::new()
            },
        })
        .collect();
    let bytes: i64 = found.iter().map(|e| e.body.len() as i64).sum();
    let cut = found.len() as i64 >= EVENTS || bytes >= BYTES;
    let next = match found.last() {
        Some(last) if cut => next_uuid(last.id.0),
        _ => stop,
    };
    Ok((found, next))
}

/// Redrives that are over for long, and what tells which deliveries replays made:
/// each is kept for as long as history may still show such a delivery.
pub(super) async fn forget(
    tx: &mut Transaction<'_>,
    now: Micros,
    days: i32,
    limit: i64,
) -> Result<()> {
    let parts: Vec<String> = Part::all().map(|p| p.get().to_string()).collect();
    let parts = parts.join(",");
    let oldest = now - 2 * Micros::from(days) * DAY;
    let old = Engine::uuid_literal(first_uuid_at(oldest));
    for sql in [
        format!(
            "delete from replayed where (part, id) in (
               select part, id from replayed where part in ({parts}) and id < {old} limit {limit})"
        ),
        format!("delete from redrives where finished_at > 0 and finished_at < {oldest}"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .persistent(false)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
    }
    Ok(())
}

#[async_trait]
impl RedriveStore for Engine {
    async fn get_letter(&self, id: DeliveryId) -> Result<Option<Delivery>> {
        letters::get(self, id).await
    }

    async fn list_letters(
        &self,
        selection: &Selection,
        parts: &[Part],
        page: Page<DeliveryId>,
    ) -> Result<Letters> {
        letters::list(self, selection, parts, page).await
    }

    async fn create_redrive(
        &self,
        redrive: &Redrive,
        quota: i64,
        by: Author<'_>,
        chain: &Chain,
    ) -> Result<Redrive> {
        let mut redrive = redrive.clone();
        (redrive.position, redrive.end) = redrive.selection.range();
        let part = redrive.id.part();
        if !redrive.kind.is_replay() {
            let mut tx = self.history_snapshot().await?;
            self.read_in_order(&mut tx).await?;
            redrive.total = Chosen::new(&redrive.selection).count(&mut tx, part).await?;
            tx.commit().await.map_err(failed)?;
        }
        let mut tx = self.begin().await?;
        bump(&mut tx).await?;
        let open: i64 = sqlx::query_scalar(
            "select count(*) from redrives where part = $1 and tenant = $2 and state < 3",
        )
        .bind(part.get())
        .bind(redrive.tenant.0)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        if open >= quota {
            return Err(StoreError::Quota(quota));
        }
        redrive.created_at = self.clock(&mut tx).await?;
        by.actor.clone_into(&mut redrive.created_by);
        by.reason.clone_into(&mut redrive.reason);
        if redrive.kind.is_replay() {
            redrive.end = redrive.end.min(first_uuid_at(redrive.created_at));
        }
        sqlx::query(
            "insert into redrives (part, id, tenant, kind, state, selection, rate, total, done, skipped, position,
                                   until, credit, credited_at, created_at, created_by, reason, finished_at, note)
             values ($1, $2, $3, $4, $5, $6, $7, $8, 0, 0, $9, $10, 0, $11, $11, $12, $13, 0, '')",
        )
        .bind(part.get())
        .bind(redrive.id.0)
        .bind(redrive.tenant.0)
        .bind(redrive.kind.to_i16())
        .bind(redrive.state.to_i16())
        .bind(written(&redrive.selection))
        .bind(i32::try_from(redrive.rate).unwrap_or(i32::MAX))
        .bind(redrive.total)
        .bind(redrive.position)
        .bind(redrive.end)
        .bind(redrive.created_at)
        .bind(by.actor)
        .bind(by.reason)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        let entry = Entry {
            at: redrive.created_at,
            actor: by.actor.to_owned(),
            action: redrive.kind.action().to_owned(),
            target: redrive.id.to_string(),
            old: String::new(),
            new: told(&redrive),
            reason: by.reason.to_owned(),
        };
        audit::append(&mut tx, chain, entry).await?;
        self.commit_change(tx).await?;
        Ok(redrive)
    }

    async fn get_redrive(&self, id: RedriveId) -> Result<Option<Redrive>> {
        let sql = format!("select {COLUMNS} from redrives where part = $1 and id = $2");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.part().get())
            .bind(id.0)
            .fetch_optional(self.history())
            .await
            .map_err(failed)?;
        row.as_ref().map(redrive).transpose()
    }

    async fn list_redrives(
        &self,
        tenant: Option<TenantId>,
        page: Page<RedriveId>,
    ) -> Result<Vec<Redrive>> {
        let sql = format!(
            "select {COLUMNS} from redrives where ($1 or tenant = $2) and id < $3 order by id desc limit $4"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.is_none())
            .bind(tenant.map_or(Uuid::nil(), |t| t.0))
            .bind(page.before.map_or(Uuid::max(), |id| id.0))
            .bind(page.limit)
            .fetch_all(self.history())
            .await
            .map_err(failed)?;
        rows.iter().map(redrive).collect()
    }

    async fn change_redrive(&self, id: RedriveId, change: Change) -> Result<Option<Redrive>> {
        let mut tx = self.begin().await?;
        let sql = format!(
            "select {COLUMNS} from redrives where part = $1 and id = $2{}",
            Self::FOR_UPDATE
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.part().get())
            .bind(id.0)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        let now = self.clock(&mut tx).await?;
        let (mut changed, mut pace) = (redrive(&row)?, pace(&row));
        let before = changed.state;
        changed.state = change.make(before).ok_or(StoreError::Conflict)?;
        if let Change::Resume(Some(rate)) = change {
            changed.rate = rate;
        }
        if changed.state != before {
            // It goes on at its rate, and makes up for nothing.
            pace = Pace { credit: 0, at: now };
            changed.finished_at = changed.state.is_over().then_some(now);
        }
        write(&mut tx, &changed, pace).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Some(changed))
    }

    async fn running_redrives(&self, parts: &[Part]) -> Result<Vec<Redrive>> {
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let parts: Vec<String> = parts.iter().map(|p| p.get().to_string()).collect();
        let sql = format!(
            "select {COLUMNS} from redrives where state = 1 and part in ({}) order by part, id",
            parts.join(",")
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_all(self.reader())
            .await
            .map_err(failed)?;
        rows.iter().map(redrive).collect()
    }

    async fn move_letters(
        &self,
        session: Session,
        id: RedriveId,
        most: i64,
    ) -> Result<Option<Moved>> {
        let mut tx = self.begin().await?;
        let locked = lock_running(self, &mut tx, session, id, Self::FOR_UPDATE).await?;
        let Some((mut r, pace, now)) = locked else {
            return Ok(None);
        };
        let due = pace.due().min(most);
        if due <= 0 {
            return Ok(Some(Moved {
                next: Some(pace.wait(r.rate)),
                ..Moved::default()
            }));
        }
        self.read_in_order(&mut tx).await?;
        let (found, next) = Chosen::new(&r.selection)
            .next(&mut tx, id.part(), r.position, r.created_at, due)
            .await?;
        let chosen: Vec<DeliveryId> = found
            .iter()
            .filter(|(_, there)| *there || r.kind == Kind::Purge)
            .map(|(id, _)| *id)
            .collect();
        let taken = if r.kind == Kind::Purge {
            letters::purge(&mut tx, id.part(), &chosen, now).await?
        } else {
            letters::revive(&mut tx, id.part(), &chosen, now).await?
        };
        let count = taken.len() as i64;
        let pace = pace.spend(count);
        r.done += count;
        r.skipped += (found.len() - chosen.len()) as i64;
        r.position = next.unwrap_or(r.end);
        if next.is_none() {
            r.state = State::Done;
            r.finished_at = Some(now);
        }
        write(&mut tx, &r, pace).await?;
        tx.commit().await.map_err(failed)?;
        // Of what is purged too: what waited behind it may be due.
        Ok(Some(Moved {
            count,
            subscriptions: distinct(taken.iter().map(|l| l.subscription)),
            next: next.map(|_| pace.wait(r.rate)),
        }))
    }

    async fn past_events(
        &self,
        session: Session,
        id: RedriveId,
        bodies: bool,
        retention_days: i32,
    ) -> Result<Option<Past>> {
        let mut tx = self.history_snapshot().await?;
        let Some((r, pace, now)) = lock_running(self, &mut tx, session, id, "").await? else {
            return Ok(None);
        };
        let mut past = Past {
            from: EventId(r.position),
            due: pace.due(),
            wait: pace.wait(r.rate),
            events: Vec::new(),
            to: EventId(r.position),
            late: false,
        };
        if past.due <= 0 {
            return Ok(Some(past));
        }
        // A day's distance from what is forgotten next: what is put into the queue
        // from there is seen when its day goes.
        let edge = first_uuid_at(Micros::from(day_of(now) - retention_days + 1) * DAY);
        past.late = r.position < edge && r.position < r.end;
        let begin = r.position.max(edge);
        if begin >= r.end {
            past.to = EventId(r.end);
        } else {
            self.read_in_order(&mut tx).await?;
            let (events, to) = events(&mut tx, &r, begin, bodies).await?;
            (past.events, past.to) = (events, EventId(to));
        }
        tx.commit().await.map_err(failed)?;
        Ok(Some(past))
    }

    async fn standing(
        &self,
        subscription: SubscriptionId,
        events: &[EventId],
    ) -> Result<Vec<Standing>> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<String> = events
            .iter()
            .map(|e| {
                let (low, high) = same_instant(e.0);
                format!("({}, {})", listed([e.0, low, high]), day_of(e.time()))
            })
            .collect();
        let of = |table: &str| {
            format!(
                "from {table} x where x.part = {} and x.id >= v.column2 and x.id <= v.column3
                   and x.event = v.column1 and x.sub = {}",
                subscription.part().get(),
                Self::uuid_literal(subscription.0)
            )
        };
        let sql = format!(
            "select v.column1,
                    exists (select 1 {}) or exists (select 1 {} and x.state = 4 and x.day >= v.column4),
                    (select x.id {} limit 1)
             from (values {}) v",
            of("queue"),
            of("done"),
            of("dead"),
            rows.join(",")
        );
        let found = sqlx::query(sqlx::AssertSqlSafe(sql))
            .persistent(false)
            .fetch_all(self.history())
            .await
            .map_err(failed)?;
        let stand: std::collections::HashMap<Uuid, Standing> = found
            .iter()
            .map(|r| {
                let standing = match (r.get::<bool, _>(1), r.get::<Option<Uuid>, _>(2)) {
                    (true, _) => Standing::There,
                    (false, Some(letter)) => Standing::Dead(DeliveryId(letter)),
                    (false, None) => Standing::Missing,
                };
                (r.get(0), standing)
            })
            .collect();
        let of = |e: &EventId| stand.get(&e.0).copied().unwrap_or(Standing::Missing);
        Ok(events.iter().map(of).collect())
    }

    async fn replay(&self, session: Session, id: RedriveId, step: &Step) -> Result<Option<Moved>> {
        let mut tx = self.begin().await?;
        let locked = lock_running(self, &mut tx, session, id, Self::FOR_UPDATE).await?;
        let Some((mut r, pace, now)) = locked.filter(|(r, ..)| r.position == step.from.0) else {
            return Ok(None);
        };
        insert(&mut tx, &r, step, now).await?;
        let revived = letters::revive(&mut tx, id.part(), &step.letters, now).await?;
        let count = (step.deliveries.len() + revived.len()) as i64;
        let pace = pace.spend(count);
        r.done += count;
        r.skipped += step.skipped;
        r.position = step.to.0;
        if !step.note.is_empty() {
            r.note.clone_from(&step.note);
        }
        let over = step.end.or((step.to.0 >= r.end).then_some(State::Done));
        if let Some(state) = over {
            r.state = state;
            r.finished_at = Some(now);
        }
        write(&mut tx, &r, pace).await?;
        tx.commit().await.map_err(failed)?;
        let made = step.deliveries.iter().map(|(_, d)| d.subscription);
        Ok(Some(Moved {
            count,
            subscriptions: distinct(made.chain(revived.iter().map(|l| l.subscription))),
            next: over.is_none().then(|| pace.wait(r.rate)),
        }))
    }
}
