//! `DeadLetterService`: dead letters, redrives, replays.

use prost_types::Timestamp;
use tonic::{Request, Response};

use super::{
    Answer, Context, caller,
    check::{self, Faults},
    convert::{self, known, timestamp},
    deliveries::{Deliveries, status},
    page,
};
use crate::{
    caller::Caller,
    domain::{
        delivery::Delivery,
        event::rfc3339,
        id::{
            DAY, DeliveryId, Micros, Part, RedriveId, SubscriptionId, TenantId, day_of, time_of,
            wall_clock,
        },
        redrive::{Change, Kind, Redrive, Selection, State},
        subscription::is_pattern,
    },
    error::{Error, Reason, Result},
    pipeline::publish::unavailable,
    proto::v1::{
        self, CancelRedriveRequest, CancelRedriveResponse, DeadLetter, DeadLetterFilter,
        GetDeadLetterRequest, GetDeadLetterResponse, GetRedriveRequest, GetRedriveResponse,
        ListDeadLettersRequest, ListDeadLettersResponse, ListRedrivesRequest, ListRedrivesResponse,
        PauseRedriveRequest, PauseRedriveResponse, PurgeDeadLettersRequest,
        PurgeDeadLettersResponse, RedriveDeadLettersRequest, RedriveDeadLettersResponse,
        RedriveKind, RedriveState, ReplayEventsRequest, ReplayEventsResponse, ResumeRedriveRequest,
        ResumeRedriveResponse, RetryDeadLetterRequest, RetryDeadLetterResponse,
        dead_letter_service_server::DeadLetterService,
    },
    store::{Author, StoreError},
};

/// How many redrives of a tenant there are at the most that are not over.
const OPEN: i64 = 20;
/// The highest rate, a second.
const FASTEST: i32 = 10_000;
/// The rate where none is named.
const RATE: i32 = 50;

/// Dead letters.
pub struct DeadLetters(pub Context);

/// Reads all of a filter but whose it is.
fn selection(given: &DeadLetterFilter, faults: &mut Faults) -> Selection {
    let mut read = Selection::default();
    if !given.subscription_id.is_empty() {
        match given.subscription_id.parse::<SubscriptionId>() {
            Ok(id) => read.subscription = Some(id),
            Err(e) => faults.add("subscription_id", e.to_string()),
        }
    }
    if !given.event_type.is_empty() && !is_pattern(&given.event_type) {
        faults.add("event_type", "takes an event type, `prefix.*` or `*`");
    }
    read.event_type.clone_from(&given.event_type);
    read.reason = faults.text("reason", &given.reason, 200, false);
    read.from = time("start_time", given.start_time.as_ref(), faults);
    read.to = time("end_time", given.end_time.as_ref(), faults);
    ordered(&read, faults);
    read
}

fn ordered(read: &Selection, faults: &mut Faults) {
    if let (Some(from), Some(to)) = (read.from, read.to)
        && from >= to
    {
        faults.add("end_time", "must be after start_time");
    }
}

/// A time that events can have been accepted at.
fn time(field: &str, given: Option<&Timestamp>, faults: &mut Faults) -> Option<Micros> {
    let given = given?;
    let time = convert::micros(given).filter(|t| *t >= 0);
    if time.is_none() {
        faults.add(field, "takes a time from 1970 to 9999");
    }
    time
}

fn rate(given: i32, default: i32, faults: &mut Faults) -> u32 {
    faults
        .number("rate_per_second", given, 1, FASTEST, default)
        .unsigned_abs()
}

fn reason(given: &str, required: bool, faults: &mut Faults) -> String {
    let text = given.trim();
    if required && text.is_empty() {
        faults.add(
            "reason",
            "is required: 1 to 500 characters for the audit log",
        );
    }
    faults.text("reason", text, 500, false)
}

const fn kind(kind: Kind) -> RedriveKind {
    match kind {
        Kind::Redrive => RedriveKind::Redrive,
        Kind::Purge => RedriveKind::Purge,
        Kind::Recover => RedriveKind::Recover,
        Kind::Missing => RedriveKind::ReplayMissing,
    }
}

const fn state(state: State) -> RedriveState {
    match state {
        State::Running => RedriveState::Running,
        State::Paused => RedriveState::Paused,
        State::Done => RedriveState::Done,
        State::Cancelled => RedriveState::Cancelled,
        State::Failed => RedriveState::Failed,
    }
}

/// The first time of which events can be replayed: a day after what history
/// forgets next.
fn earliest(now: Micros, retention_days: i32) -> Micros {
    Micros::from(day_of(now) - retention_days + 1) * DAY
}

impl DeadLetters {
    fn letter(&self, d: Delivery) -> DeadLetter {
        DeadLetter {
            id: d.id.to_string(),
            tenant: self.0.directory.tenant_name(d.tenant),
            subscription_id: d.subscription.to_string(),
            event_id: d.event.to_string(),
            event_type: d.event_type,
            status: status(d.status).into(),
            reason: d.reason,
            response_status: d.response_status.into(),
            attempt_count: d.attempts.into(),
            create_time: Some(timestamp(d.event.time())),
            dead_time: d.finished_at.map(timestamp),
            replay_id: d.replay.map(|id| id.to_string()).unwrap_or_default(),
        }
    }

    fn view(&self, r: Redrive) -> v1::Redrive {
        let s = r.selection;
        let over = r.position >= r.end;
        let position = time_of(r.position);
        v1::Redrive {
            id: r.id.to_string(),
            tenant: self.0.directory.tenant_name(r.tenant),
            kind: kind(r.kind).into(),
            state: state(r.state).into(),
            filter: Some(DeadLetterFilter {
                tenant: self.0.directory.tenant_name(r.tenant),
                subscription_id: s.subscription.map(|s| s.to_string()).unwrap_or_default(),
                event_type: s.event_type,
                reason: s.reason,
                start_time: s.from.map(timestamp),
                end_time: s.to.map(timestamp),
            }),
            rate_per_second: i32::try_from(r.rate).unwrap_or(i32::MAX),
            total: r.total,
            done: r.done,
            skipped: r.skipped,
            position_time: if over { None } else { known(position) },
            create_time: Some(timestamp(r.created_at)),
            created_by: r.created_by,
            reason: r.reason,
            finish_time: r.finished_at.map(timestamp),
            note: r.note,
        }
    }

    async fn load(&self, caller: &Caller, id: DeliveryId) -> Result<Delivery> {
        let found = self.0.store.get_letter(id).await.map_err(unavailable)?;
        found
            .filter(|d| caller.sees(d.tenant))
            .ok_or_else(|| Error::not_found(format_args!("dead letter {id}")))
    }

    async fn load_redrive(&self, caller: &Caller, id: RedriveId) -> Result<Redrive> {
        let found = self.0.store.get_redrive(id).await.map_err(unavailable)?;
        found
            .filter(|r| caller.sees(r.tenant))
            .ok_or_else(|| Error::not_found(format_args!("redrive {id}")))
    }

    /// The tenant of a subscription that the caller may see; none where there is no
    /// such subscription, or not any more.
    async fn owner_of(&self, caller: &Caller, id: SubscriptionId) -> Result<Option<TenantId>> {
        let found = self.0.store.get_subscription(id).await;
        match found.map_err(unavailable)? {
            Some(s) if !caller.sees(s.tenant) => {
                Err(Error::not_found(format_args!("subscription {id}")))
            }
            found => Ok(found.map(|s| s.tenant)),
        }
    }

    /// Whose letters a selection has.
    async fn whose(
        &self,
        caller: &Caller,
        named: &str,
        subscription: Option<SubscriptionId>,
    ) -> Result<TenantId> {
        let owner = match subscription {
            Some(id) => self.owner_of(caller, id).await?,
            None => None,
        };
        let tenant = match owner {
            Some(owner) if named.is_empty() => owner,
            None if named.is_empty() && caller.key().tenant.is_none() && subscription.is_some() => {
                return Err(Error::not_found(
                    "such subscription; of one that was deleted name the tenant too",
                ));
            }
            _ => self.0.tenant(caller, named).await?.id,
        };
        match (subscription, owner) {
            (Some(id), Some(owner)) if owner != tenant => {
                Err(Error::not_found(format_args!("subscription {id}")))
            }
            _ => Ok(tenant),
        }
    }

    async fn begin(
        &self,
        caller: &Caller,
        kind: Kind,
        tenant: TenantId,
        selection: Selection,
        rate: u32,
        reason: &str,
    ) -> Result<v1::Redrive> {
        let actor = caller.key().id.to_string();
        let (position, end) = selection.range();
        let redrive = Redrive {
            id: RedriveId::new(wall_clock(), tenant.part()),
            tenant,
            kind,
            state: State::Running,
            selection: Selection {
                tenant: Some(tenant),
                ..selection
            },
            rate,
            total: None,
            done: 0,
            skipped: 0,
            position,
            end,
            created_at: 0,
            created_by: actor.clone(),
            reason: reason.to_owned(),
            finished_at: None,
            note: String::new(),
        };
        let by = Author {
            actor: &actor,
            reason,
        };
        let chain = self.0.keyring.audit();
        let made = self.0.store.create_redrive(&redrive, OPEN, by, chain).await;
        let made = made.map_err(|e| match e {
            StoreError::Quota(n) => Error::new(
                Reason::QuotaExceeded,
                format!("the tenant has {n} redrives that are not over"),
            ),
            e => unavailable(e),
        })?;
        tracing::warn!(
            redrive.id = %made.id, redrive.kind = ?kind, redrive.total = made.total, key.id = actor,
            "redrive begun"
        );
        Ok(self.view(made))
    }

    async fn change(&self, caller: &Caller, id: &str, change: Change) -> Result<v1::Redrive> {
        let id: RedriveId = check::id("id", id)?;
        let before = self.load_redrive(caller, id).await?;
        let changed = self.0.store.change_redrive(id, change).await;
        let changed = changed.map_err(|e| match e {
            StoreError::Conflict => {
                Error::new(Reason::FailedPrecondition, format!("redrive {id} is over"))
            }
            e => unavailable(e),
        })?;
        Ok(self.view(changed.unwrap_or(before)))
    }
}

#[tonic::async_trait]
impl DeadLetterService for DeadLetters {
    async fn list_dead_letters(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> Answer<ListDeadLettersResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let mut page = page::read::<DeliveryId>(given.page_size, &given.page_token)?;
        // The answer itself says whether there is more.
        page.limit -= 1;
        let filter = DeadLetterFilter {
            tenant: given.tenant,
            subscription_id: given.subscription_id,
            event_type: given.event_type,
            reason: given.reason,
            start_time: given.start_time,
            end_time: given.end_time,
        };
        let mut faults = Faults::default();
        let mut chosen = selection(&filter, &mut faults);
        faults.done()?;
        // Of a key that is bound to no tenant, and names none, all are shown.
        let every = filter.tenant.is_empty() && caller.key().tenant.is_none();
        if !every {
            let whose = self.whose(&caller, &filter.tenant, chosen.subscription);
            chosen.tenant = Some(whose.await?);
        }
        let part = chosen.tenant.map(TenantId::part);
        let part = part.or(chosen.subscription.map(SubscriptionId::part));
        let parts: Vec<Part> = part.map_or_else(|| Part::all().collect(), |part| vec![part]);
        let found = self.0.store.list_letters(&chosen, &parts, page).await;
        let found = found.map_err(unavailable)?;
        Ok(Response::new(ListDeadLettersResponse {
            dead_letters: found.letters.into_iter().map(|d| self.letter(d)).collect(),
            next_page_token: found.next.map(|id| id.to_string()).unwrap_or_default(),
        }))
    }

    async fn get_dead_letter(
        &self,
        request: Request<GetDeadLetterRequest>,
    ) -> Answer<GetDeadLetterResponse> {
        let caller = caller(&request)?;
        let id = check::id("id", &request.get_ref().id)?;
        let found = self.load(&caller, id).await?;
        Ok(Response::new(GetDeadLetterResponse {
            dead_letter: Some(self.letter(found)),
        }))
    }

    async fn retry_dead_letter(
        &self,
        request: Request<RetryDeadLetterRequest>,
    ) -> Answer<RetryDeadLetterResponse> {
        let caller = caller(&request)?;
        let id = check::id("id", &request.get_ref().id)?;
        self.load(&caller, id).await?;
        let now = Deliveries(self.0.clone()).retry(&caller, id).await?;
        Ok(Response::new(RetryDeadLetterResponse {
            delivery: Some(now),
        }))
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<RedriveDeadLettersRequest>,
    ) -> Answer<RedriveDeadLettersResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let filter = given.filter.unwrap_or_default();
        let mut faults = Faults::under("filter.");
        let chosen = selection(&filter, &mut faults);
        let mut outside = Faults::default();
        let rate = rate(given.rate_per_second, RATE, &mut outside);
        let why = reason(&given.reason, false, &mut outside);
        faults.and(outside).done()?;
        let tenant = self.whose(&caller, &filter.tenant, chosen.subscription);
        let tenant = tenant.await?;
        let made = self.begin(&caller, Kind::Redrive, tenant, chosen, rate, &why);
        Ok(Response::new(RedriveDeadLettersResponse {
            redrive: Some(made.await?),
        }))
    }

    async fn purge_dead_letters(
        &self,
        request: Request<PurgeDeadLettersRequest>,
    ) -> Answer<PurgeDeadLettersResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let filter = given.filter.unwrap_or_default();
        let mut faults = Faults::under("filter.");
        let chosen = selection(&filter, &mut faults);
        let mut outside = Faults::default();
        let rate = rate(given.rate_per_second, FASTEST, &mut outside);
        let why = reason(&given.reason, true, &mut outside);
        if chosen.is_everything() && !given.all {
            outside.add(
                "all",
                "must be true to remove all of a tenant's dead letters: the filter names nothing",
            );
        }
        faults.and(outside).done()?;
        let tenant = self.whose(&caller, &filter.tenant, chosen.subscription);
        let tenant = tenant.await?;
        let made = self.begin(&caller, Kind::Purge, tenant, chosen, rate, &why);
        Ok(Response::new(PurgeDeadLettersResponse {
            redrive: Some(made.await?),
        }))
    }

    async fn replay_events(
        &self,
        request: Request<ReplayEventsRequest>,
    ) -> Answer<ReplayEventsResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let mut faults = Faults::default();
        let subscription = given.subscription_id.parse::<SubscriptionId>();
        if let Err(e) = &subscription {
            let why = if given.subscription_id.is_empty() {
                "is required".to_owned()
            } else {
                e.to_string()
            };
            faults.add("subscription_id", why);
        }
        if given.start_time.is_none() {
            faults.add("start_time", "is required");
        }
        let mut chosen = Selection {
            subscription: subscription.ok(),
            from: time("start_time", given.start_time.as_ref(), &mut faults),
            to: time("end_time", given.end_time.as_ref(), &mut faults),
            ..Selection::default()
        };
        ordered(&chosen, &mut faults);
        let days = self.0.live.load().retention_days;
        let first = earliest(wall_clock(), days);
        if chosen.from.is_some_and(|from| from < first) {
            faults.add(
                "start_time",
                format!(
                    "is past retention: events from before {} are gone, or go within a day",
                    rfc3339(first)
                ),
            );
        }
        let rate = rate(given.rate_per_second, RATE, &mut faults);
        let why = reason(&given.reason, false, &mut faults);
        faults.done()?;
        let id = chosen
            .subscription
            .unwrap_or(SubscriptionId(uuid::Uuid::nil()));
        let tenant = self.owner_of(&caller, id).await?;
        let tenant = tenant.ok_or_else(|| Error::not_found(format_args!("subscription {id}")))?;
        chosen.tenant = Some(tenant);
        let kind = if given.missing_only {
            Kind::Missing
        } else {
            Kind::Recover
        };
        let made = self.begin(&caller, kind, tenant, chosen, rate, &why);
        Ok(Response::new(ReplayEventsResponse {
            redrive: Some(made.await?),
        }))
    }

    async fn list_redrives(
        &self,
        request: Request<ListRedrivesRequest>,
    ) -> Answer<ListRedrivesResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let page = page::read::<RedriveId>(given.page_size, &given.page_token)?;
        let tenant = if given.tenant.is_empty() {
            caller.key().tenant
        } else {
            Some(self.0.tenant(&caller, &given.tenant).await?.id)
        };
        let rows = self.0.store.list_redrives(tenant, page).await;
        let mut rows = rows.map_err(unavailable)?;
        let next_page_token = page::cut(&page, &mut rows, |r| r.id);
        Ok(Response::new(ListRedrivesResponse {
            redrives: rows.into_iter().map(|r| self.view(r)).collect(),
            next_page_token,
        }))
    }

    async fn get_redrive(&self, request: Request<GetRedriveRequest>) -> Answer<GetRedriveResponse> {
        let caller = caller(&request)?;
        let id = check::id("id", &request.get_ref().id)?;
        let found = self.load_redrive(&caller, id).await?;
        Ok(Response::new(GetRedriveResponse {
            redrive: Some(self.view(found)),
        }))
    }

    async fn pause_redrive(
        &self,
        request: Request<PauseRedriveRequest>,
    ) -> Answer<PauseRedriveResponse> {
        let caller = caller(&request)?;
        let id = &request.get_ref().id;
        let redrive = Some(self.change(&caller, id, Change::Pause).await?);
        Ok(Response::new(PauseRedriveResponse { redrive }))
    }

    async fn resume_redrive(
        &self,
        request: Request<ResumeRedriveRequest>,
    ) -> Answer<ResumeRedriveResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let mut faults = Faults::default();
        let rate =
            (given.rate_per_second != 0).then(|| rate(given.rate_per_second, RATE, &mut faults));
        faults.done()?;
        let redrive = Some(
            self.change(&caller, &given.id, Change::Resume(rate))
                .await?,
        );
        Ok(Response::new(ResumeRedriveResponse { redrive }))
    }

    async fn cancel_redrive(
        &self,
        request: Request<CancelRedriveRequest>,
    ) -> Answer<CancelRedriveResponse> {
        let caller = caller(&request)?;
        let id = &request.get_ref().id;
        let redrive = Some(self.change(&caller, id, Change::Cancel).await?);
        Ok(Response::new(CancelRedriveResponse { redrive }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    // A5, E3: each field of a filter that is wrong is named.
    #[test]
    fn filters_are_checked() {
        let wrong = |filter: DeadLetterFilter| -> Vec<String> {
            let mut faults = Faults::under("filter.");
            selection(&filter, &mut faults);
            let error = faults.done().err();
            let violations = error.map(|e| e.violations).unwrap_or_default();
            violations.into_iter().map(|v| v.field).collect()
        };
        assert_eq!(wrong(DeadLetterFilter::default()), [""; 0]);
        let all = DeadLetterFilter {
            tenant: String::new(),
            subscription_id: "sub_x".into(),
            event_type: "a b".into(),
            reason: "x".repeat(201),
            start_time: Some(at(-1)),
            end_time: Some(at(i64::MAX)),
        };
        let fields = [
            "filter.subscription_id",
            "filter.event_type",
            "filter.reason",
            "filter.start_time",
            "filter.end_time",
        ];
        assert_eq!(wrong(all), fields);
        let turned = DeadLetterFilter {
            start_time: Some(at(5)),
            end_time: Some(at(5)),
            ..DeadLetterFilter::default()
        };
        assert_eq!(wrong(turned), ["filter.end_time"]);
    }

    // A5, A4: what can be replayed keeps a day's distance from what is forgotten.
    #[test]
    fn a_replay_begins_within_retention() {
        let day = 20_000 * DAY;
        assert_eq!(earliest(day, 30), day - 29 * DAY);
        assert_eq!(earliest(day + DAY - 1, 1), day);
    }
}
