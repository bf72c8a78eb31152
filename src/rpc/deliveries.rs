//! `DeliveryService`.

use tonic::{Request, Response};

use super::{Answer, Context, caller, check, convert::timestamp, page};
use crate::{
    caller::Caller,
    domain::{
        delivery::{Attempt, AttemptKind, Delivery, Status},
        id::{DeliveryId, EventId, Part, SubscriptionId},
        trace::Trace,
    },
    error::{Error, Reason, Result},
    pipeline::publish::unavailable,
    proto::v1::{
        self, AttemptOutcome, DeliveryStatus, GetDeliveryRequest, GetDeliveryResponse,
        ListAttemptsRequest, ListAttemptsResponse, ListDeliveriesRequest, ListDeliveriesResponse,
        RetryDeliveryRequest, RetryDeliveryResponse, SkipDeliveryRequest, SkipDeliveryResponse,
        delivery_service_server::DeliveryService,
    },
    store::{self, Page},
};

/// The log of deliveries.
pub struct Deliveries(pub Context);

/// Whose deliveries are listed.
#[derive(Clone, Copy)]
enum Of {
    Subscription(SubscriptionId),
    Event(EventId),
}

impl Of {
    fn read(given: &ListDeliveriesRequest) -> Result<Self> {
        match (given.subscription_id.as_str(), given.event_id.as_str()) {
            ("", "") => Err(Error::field(
                "subscription_id",
                "is required, or event_id in its place",
            )),
            (id, "") => check::id("subscription_id", id).map(Self::Subscription),
            ("", id) => check::id("event_id", id).map(Self::Event),
            _ => Err(Error::field(
                "event_id",
                "is not for use together with subscription_id",
            )),
        }
    }
}

/// What a delivery is shown as: what waits for a disabled subscription is parked, as
/// is, by the store's word, what is parked with its ordering key.
const fn shown(status: Status, disabled: bool) -> Status {
    match status {
        Status::Pending | Status::Retrying if disabled => Status::Parked,
        other => other,
    }
}

/// What is stored of deliveries that are shown with that status; none: anything.
fn stored_as(status: Option<Status>) -> Vec<Option<Status>> {
    match status {
        Some(Status::Parked) => vec![
            Some(Status::Pending),
            Some(Status::Retrying),
            Some(Status::Parked),
        ],
        other => vec![other],
    }
}

/// Whether any delivery to such a subscription can be shown with that status.
fn possible(status: Option<Status>, disabled: bool) -> bool {
    stored_as(status)
        .into_iter()
        .any(|s| s.is_none() || s.map(|s| shown(s, disabled)) == status)
}

pub(super) const fn status(status: Status) -> DeliveryStatus {
    match status {
        Status::Pending => DeliveryStatus::Pending,
        Status::Sending => DeliveryStatus::Sending,
        Status::Retrying => DeliveryStatus::Retrying,
        Status::Delivered => DeliveryStatus::Delivered,
        Status::Failed => DeliveryStatus::Failed,
        Status::Dead => DeliveryStatus::Dead,
        Status::Parked => DeliveryStatus::Parked,
        Status::Skipped => DeliveryStatus::Skipped,
        Status::ReplayExpired => DeliveryStatus::ReplayExpired,
        Status::Cancelled => DeliveryStatus::Cancelled,
    }
}

/// The status that a list is narrowed to.
pub(super) fn filter(number: i32) -> Result<Option<Status>> {
    Ok(Some(match DeliveryStatus::try_from(number) {
        Ok(DeliveryStatus::Unspecified) => return Ok(None),
        Ok(DeliveryStatus::Pending) => Status::Pending,
        Ok(DeliveryStatus::Sending) => Status::Sending,
        Ok(DeliveryStatus::Retrying) => Status::Retrying,
        Ok(DeliveryStatus::Delivered) => Status::Delivered,
        Ok(DeliveryStatus::Failed) => Status::Failed,
        Ok(DeliveryStatus::Dead) => Status::Dead,
        Ok(DeliveryStatus::Parked) => Status::Parked,
        Ok(DeliveryStatus::Skipped) => Status::Skipped,
        Ok(DeliveryStatus::ReplayExpired) => Status::ReplayExpired,
        Ok(DeliveryStatus::Cancelled) => Status::Cancelled,
        Err(_) => return Err(Error::field("status", "is not a delivery's status")),
    }))
}

/// Shows an attempt of a delivery whose event came from there.
fn attempt(delivery: DeliveryId, trace: &Trace, a: Attempt) -> v1::Attempt {
    let context = trace.context.map(|c| c.of_attempt(delivery, a.token));
    let outcome = match a.kind {
        AttemptKind::Delivered => AttemptOutcome::Delivered,
        AttemptKind::Retryable => AttemptOutcome::Retryable,
        AttemptKind::Permanent => AttemptOutcome::Permanent,
        AttemptKind::ReplayExpired => AttemptOutcome::ReplayExpired,
    };
    v1::Attempt {
        number: a.number.into(),
        start_time: Some(timestamp(a.started_at)),
        duration_ms: a.took / 1000,
        outcome: outcome.into(),
        response_status: a.response_status.into(),
        error: a.error,
        response_body: String::from_utf8_lossy(&a.response).into_owned(),
        worker: a.worker,
        traceparent: context.map(|c| c.to_string()).unwrap_or_default(),
        request_id: trace.request_id.clone(),
    }
}

impl Deliveries {
    async fn load(&self, caller: &Caller, id: DeliveryId) -> Result<Delivery> {
        let found = self.0.store.get_delivery(id).await.map_err(unavailable)?;
        found
            .filter(|d| caller.sees(d.tenant))
            .ok_or_else(|| Error::not_found(format_args!("delivery {id}")))
    }

    /// Something of a subscription is due now, on this node or another.
    async fn tell_owner(&self, part: Part, subscription: SubscriptionId) {
        if self.0.dispatcher.owns(part) {
            self.0.dispatcher.sign(part, subscription);
        } else if let Err(e) = self.0.store.hint(&[(part, subscription)]).await {
            tracing::debug!(error.message = %e, "hint not sent; the owner's poll finds the delivery");
        }
    }

    /// Makes a delivery due now that the caller may see.
    pub(super) async fn retry(&self, caller: &Caller, id: DeliveryId) -> Result<v1::Delivery> {
        let store = &self.0.store;
        let subscription = self.load(caller, id).await?.subscription;
        let there = store.get_subscription(subscription).await;
        if there.map_err(unavailable)?.is_none() {
            return Err(Error::new(
                Reason::FailedPrecondition,
                "its subscription was deleted",
            ));
        }
        let before = store.retry_by_hand(id).await.map_err(unavailable)?;
        let before = before.ok_or_else(|| Error::not_found(format_args!("delivery {id}")))?;
        retried(before)?;
        self.tell_owner(id.part(), subscription).await;
        Ok(self.view(self.load(caller, id).await?))
    }

    fn is_disabled(&self, id: SubscriptionId) -> bool {
        let target = self.0.directory.target(id);
        target.is_some_and(|t| t.subscription.disabled.is_some())
    }

    pub(super) fn view(&self, d: Delivery) -> v1::Delivery {
        let now = shown(d.status, self.is_disabled(d.subscription));
        v1::Delivery {
            id: d.id.to_string(),
            tenant: self.0.directory.tenant_name(d.tenant),
            event_id: d.event.to_string(),
            event_type: d.event_type,
            subscription_id: d.subscription.to_string(),
            status: status(now).into(),
            attempt_count: d.attempts.into(),
            create_time: Some(timestamp(d.event.time())),
            next_attempt_time: d
                .due_at
                .filter(|_| matches!(now, Status::Pending | Status::Retrying))
                .map(timestamp),
            finish_time: d.finished_at.map(timestamp),
            response_status: d.response_status.into(),
            reason: d.reason,
            replay_id: d.replay.map(|id| id.to_string()).unwrap_or_default(),
        }
    }

    /// Whether the caller may see what it wants the deliveries of.
    async fn check(&self, caller: &Caller, of: Of) -> Result<()> {
        let (tenant, missing) = match of {
            Of::Subscription(id) => {
                let found = self
                    .0
                    .store
                    .get_subscription(id)
                    .await
                    .map_err(unavailable)?;
                (found.map(|s| s.tenant), format!("subscription {id}"))
            }
            Of::Event(id) => {
                let found = self.0.store.get_event(id).await.map_err(unavailable)?;
                (found.map(|e| e.tenant), format!("event {id}"))
            }
        };
        match tenant {
            Some(tenant) if caller.sees(tenant) => Ok(()),
            _ => Err(Error::not_found(missing)),
        }
    }

    /// The newest rows of these stored statuses together.
    async fn fetch(
        &self,
        of: Of,
        stored: &[Option<Status>],
        page: Page<DeliveryId>,
    ) -> store::Result<Vec<Delivery>> {
        let mut rows = Vec::new();
        for status in stored {
            rows.extend(match of {
                Of::Subscription(id) => {
                    self.0
                        .store
                        .deliveries_of_subscription(id, *status, page)
                        .await?
                }
                Of::Event(id) => self.0.store.deliveries_of_event(id, *status, page).await?,
            });
        }
        rows.sort_unstable_by_key(|d| std::cmp::Reverse(d.id));
        // It may have gone from one status to the other between the reads.
        rows.dedup_by_key(|d| d.id);
        rows.truncate(usize::try_from(page.limit).unwrap_or_default());
        Ok(rows)
    }

    /// The newest rows that are shown with that status. What is shown depends on
    /// each row's subscription: of an event, whose deliveries are few, rows are
    /// read until enough of them fit; of a subscription all fit or none.
    async fn list(
        &self,
        of: Of,
        wanted: Option<Status>,
        page: Page<DeliveryId>,
    ) -> Result<Vec<Delivery>> {
        let one = match of {
            Of::Subscription(id) => Some(self.is_disabled(id)),
            Of::Event(_) => None,
        };
        if one.is_some_and(|disabled| !possible(wanted, disabled)) {
            return Ok(Vec::new());
        }
        let stored = stored_as(wanted);
        let size = usize::try_from(page.limit).unwrap_or_default();
        let mut found = Vec::new();
        let mut next = page;
        loop {
            let rows = self.fetch(of, &stored, next).await.map_err(unavailable)?;
            let last = rows.last().map(|d| d.id).filter(|_| rows.len() == size);
            found.extend(rows.into_iter().filter(|d| {
                let disabled = one.unwrap_or_else(|| self.is_disabled(d.subscription));
                wanted.is_none_or(|w| shown(d.status, disabled) == w)
            }));
            if last.is_none() || found.len() >= size {
                found.truncate(size);
                return Ok(found);
            }
            next.before = last;
        }
    }
}

/// Whether a delivery with that status was made due by a retry.
fn retried(before: Status) -> Result<()> {
    let why = match before {
        Status::Delivered => "it is delivered already",
        Status::Cancelled => "it was cancelled: its subscription was deleted",
        Status::Skipped => "it was skipped on purpose",
        Status::Sending => "it is being sent now",
        _ => return Ok(()),
    };
    Err(Error::new(Reason::FailedPrecondition, why))
}

#[tonic::async_trait]
impl DeliveryService for Deliveries {
    async fn get_delivery(
        &self,
        request: Request<GetDeliveryRequest>,
    ) -> Answer<GetDeliveryResponse> {
        let caller = caller(&request)?;
        let id = check::id("id", &request.get_ref().id)?;
        let found = self.load(&caller, id).await?;
        Ok(Response::new(GetDeliveryResponse {
            delivery: Some(self.view(found)),
        }))
    }

    async fn list_deliveries(
        &self,
        request: Request<ListDeliveriesRequest>,
    ) -> Answer<ListDeliveriesResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let of = Of::read(&given)?;
        let wanted = filter(given.status)?;
        let page = page::read::<DeliveryId>(given.page_size, &given.page_token)?;
        self.check(&caller, of).await?;
        let mut rows = self.list(of, wanted, page).await?;
        let next_page_token = page::cut(&page, &mut rows, |d| d.id);
        Ok(Response::new(ListDeliveriesResponse {
            deliveries: rows.into_iter().map(|d| self.view(d)).collect(),
            next_page_token,
        }))
    }

    async fn list_attempts(
        &self,
        request: Request<ListAttemptsRequest>,
    ) -> Answer<ListAttemptsResponse> {
        let caller = caller(&request)?;
        let id = check::id("delivery_id", &request.get_ref().delivery_id)?;
        let trace = self.load(&caller, id).await?.trace.unwrap_or_default();
        let rows = self.0.store.attempts(id).await.map_err(unavailable)?;
        Ok(Response::new(ListAttemptsResponse {
            attempts: rows.into_iter().map(|a| attempt(id, &trace, a)).collect(),
        }))
    }

    async fn retry_delivery(
        &self,
        request: Request<RetryDeliveryRequest>,
    ) -> Answer<RetryDeliveryResponse> {
        let caller = caller(&request)?;
        let id = check::id("id", &request.get_ref().id)?;
        let now = self.retry(&caller, id).await?;
        Ok(Response::new(RetryDeliveryResponse {
            delivery: Some(now),
        }))
    }

    async fn skip_delivery(
        &self,
        request: Request<SkipDeliveryRequest>,
    ) -> Answer<SkipDeliveryResponse> {
        let caller = caller(&request)?;
        let id = check::id("id", &request.get_ref().id)?;
        let found = self.load(&caller, id).await?;
        if !self.0.store.skip(id).await.map_err(unavailable)? {
            return Err(Error::new(
                Reason::FailedPrecondition,
                "no delivery waits for it: it is not a dead one that blocks its ordering key",
            )
            .into());
        }
        self.tell_owner(id.part(), found.subscription).await;
        Ok(Response::new(SkipDeliveryResponse {
            delivery: Some(self.view(found)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A1: what waits for a disabled subscription is parked.
    #[test]
    fn parked_is_what_waits_for_a_disabled_subscription() {
        for (stored, disabled, is) in [
            (Status::Pending, true, Status::Parked),
            (Status::Retrying, true, Status::Parked),
            (Status::Pending, false, Status::Pending),
            (Status::Parked, false, Status::Parked),
            (Status::Sending, true, Status::Sending),
            (Status::Dead, true, Status::Dead),
        ] {
            assert_eq!(shown(stored, disabled), is);
        }
        for (wanted, disabled, can) in [
            (None, true, true),
            (Some(Status::Parked), true, true),
            (Some(Status::Parked), false, true),
            (Some(Status::Pending), true, false),
            (Some(Status::Retrying), false, true),
            (Some(Status::Dead), true, true),
        ] {
            assert_eq!(possible(wanted, disabled), can, "{wanted:?} {disabled}");
        }
    }

    // Every status of the protos can be asked for, and is told as it is stored.
    #[test]
    fn statuses_round_trip() {
        for n in 1..=10 {
            let wanted = filter(n).unwrap().unwrap();
            assert_eq!(i32::from(status(wanted)), n);
            assert_eq!(i32::from(wanted.to_i16()), n);
        }
        assert_eq!(filter(0).unwrap(), None);
        assert!(filter(11).is_err());
    }

    // E2: a delivered delivery is not retried.
    #[test]
    fn what_can_be_retried() {
        for status in [
            Status::Pending,
            Status::Retrying,
            Status::Failed,
            Status::Dead,
            Status::ReplayExpired,
        ] {
            assert!(retried(status).is_ok());
        }
        for status in [
            Status::Delivered,
            Status::Cancelled,
            Status::Skipped,
            Status::Sending,
        ] {
            assert_eq!(
                retried(status).unwrap_err().reason,
                Reason::FailedPrecondition
            );
        }
    }

    #[test]
    fn deliveries_of_one_thing_only() {
        let of = |subscription_id: &str, event_id: &str| {
            Of::read(&ListDeliveriesRequest {
                subscription_id: subscription_id.into(),
                event_id: event_id.into(),
                ..ListDeliveriesRequest::default()
            })
        };
        let (sub, evt) = (
            "sub_01h455vb4pex5vsknk084sn02q",
            "evt_01h455vb4pex5vsknk084sn02q",
        );
        assert!(matches!(of(sub, ""), Ok(Of::Subscription(_))));
        assert!(matches!(of("", evt), Ok(Of::Event(_))));
        for (a, b, field) in [
            ("", "", "subscription_id"),
            (sub, evt, "event_id"),
            (evt, "", "subscription_id"),
        ] {
            assert_eq!(of(a, b).err().unwrap().violations[0].field, field);
        }
    }
}
