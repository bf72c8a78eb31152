//! Dead letters, and redrives of them and of past events.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Author, NewDelivery, Page, Result, Session};
use crate::domain::{
    audit::Chain,
    delivery::Delivery,
    id::{DeliveryId, EventId, Part, RedriveId, SubscriptionId, TenantId},
    redrive::{Change, Redrive, Selection, State},
};

/// Dead letters, and redrives. What a redrive does with letters or events, how far
/// it is and what is counted are written in one transaction: whoever goes on with
/// it neither repeats nor leaves out.
#[async_trait]
pub trait RedriveStore: Send + Sync {
    /// A dead letter.
    async fn get_letter(&self, id: DeliveryId) -> Result<Option<Delivery>>;

    /// Dead letters, newest first, of these partitions, one at the least. Looks at
    /// a bounded number of them: a page may be short, or empty, and is the last one
    /// where it says so.
    async fn list_letters(
        &self,
        selection: &Selection,
        parts: &[Part],
        page: Page<DeliveryId>,
    ) -> Result<Letters>;

    /// Begins a redrive, with a record in the audit log. Of dead letters it has
    /// those that are dead by now. Its total is counted here, where no more than
    /// [`COUNTED`] have to be looked at. [`StoreError::Quota`](super::StoreError::Quota)
    /// where the tenant has so many that are not over.
    async fn create_redrive(
        &self,
        redrive: &Redrive,
        quota: i64,
        by: Author<'_>,
        chain: &Chain,
    ) -> Result<Redrive>;

    /// Reads a redrive.
    async fn get_redrive(&self, id: RedriveId) -> Result<Option<Redrive>>;

    /// Redrives, newest first; of one tenant where one is named.
    async fn list_redrives(
        &self,
        tenant: Option<TenantId>,
        page: Page<RedriveId>,
    ) -> Result<Vec<Redrive>>;

    /// Pauses, resumes or cancels a redrive. Once this answers, nothing more is
    /// moved under what was before. [`StoreError::Conflict`](super::StoreError::Conflict)
    /// where it is over.
    async fn change_redrive(&self, id: RedriveId, change: Change) -> Result<Option<Redrive>>;

    /// The redrives that run in these partitions.
    async fn running_redrives(&self, parts: &[Part]) -> Result<Vec<Redrive>>;

    /// Works the next letters of a redrive or a purge, at most `most` and what its
    /// rate allows. A letter that is redriven is due now, for one attempt; its age
    /// begins again. One whose subscription is deleted stays. Of a letter that is
    /// purged the body goes too, unless another delivery needs it. None where the
    /// redrive does not run, or the session does not own its partition.
    async fn move_letters(
        &self,
        session: Session,
        id: RedriveId,
        most: i64,
    ) -> Result<Option<Moved>>;

    /// The next events of the tenant that a replay is to look at, with their bodies
    /// where they are asked for; in slices of bounded number and bytes. Events of
    /// which history keeps less than a day more are passed over. None as for
    /// [`move_letters`](Self::move_letters).
    async fn past_events(
        &self,
        session: Session,
        id: RedriveId,
        bodies: bool,
        retention_days: i32,
    ) -> Result<Option<Past>>;

    /// How each of these events stands with a subscription, in their order.
    async fn standing(
        &self,
        subscription: SubscriptionId,
        events: &[EventId],
    ) -> Result<Vec<Standing>>;

    /// Takes one step of a replay: makes these deliveries, which are due now, and
    /// gives these dead letters one more attempt. None as for
    /// [`move_letters`](Self::move_letters), and where it is not at the step's
    /// beginning any more.
    async fn replay(&self, session: Session, id: RedriveId, step: &Step) -> Result<Option<Moved>>;
}

/// The most letters that are looked at to count a selection.
pub const COUNTED: i64 = 100_000;

/// One page of dead letters.
#[derive(Debug, Clone, Default)]
pub struct Letters {
    /// The letters.
    pub letters: Vec<Delivery>,
    /// Where the next page begins; none after the last one.
    pub next: Option<DeliveryId>,
}

/// What a step moved.
#[derive(Debug, Clone, Default)]
pub struct Moved {
    /// How many.
    pub count: i64,
    /// Subscriptions that have, or may have, something due by it.
    pub subscriptions: Vec<SubscriptionId>,
    /// When there is more to do; none where it is over.
    pub next: Option<Duration>,
}

/// Events that a replay is to look at.
#[derive(Debug, Clone)]
pub struct Past {
    /// Where it is.
    pub from: EventId,
    /// How many deliveries its rate allows now.
    pub due: i64,
    /// When it allows one, where it allows none.
    pub wait: Duration,
    /// The events, in order.
    pub events: Vec<PastEvent>,
    /// Where it is once all of these are done with.
    pub to: EventId,
    /// Whether events were passed over that history will not keep.
    pub late: bool,
}

/// A past event.
#[derive(Debug, Clone)]
pub struct PastEvent {
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub event_type: String,
    /// Its body, where it was asked for.
    pub body: Bytes,
}

/// How an event stands with a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There is no delivery of it, or none that was tried to its end.
    Missing,
    /// It was delivered, or is on its way.
    There,
    /// It is a dead letter.
    Dead(DeliveryId),
}

/// A step of a replay.
#[derive(Debug, Clone)]
pub struct Step {
    /// Where the replay is.
    pub from: EventId,
    /// Where it is afterwards.
    pub to: EventId,
    /// Deliveries to be made, each with its event.
    pub deliveries: Vec<(EventId, NewDelivery)>,
    /// Dead letters to be tried once more.
    pub letters: Vec<DeliveryId>,
    /// How many events of the subscription's types it passed over.
    pub skipped: i64,
    /// What there is to be said of it from now on; empty: nothing new.
    pub note: String,
    /// Set where this is its end, before its time.
    pub end: Option<State>,
}
