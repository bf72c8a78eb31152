//! What the dispatcher hands out and what it asks the store for.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;

use crate::{
    domain::{
        id::{DeliveryId, EventId, Micros, SubscriptionId, TenantId},
        trace::Trace,
    },
    store::{Leased, Session},
};

/// A delivery that is leased to this node.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its id.
    pub id: DeliveryId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its subscription.
    pub subscription: SubscriptionId,
    /// Its event.
    pub event: EventId,
    /// The event's type.
    pub event_type: Arc<str>,
    /// What to send.
    pub body: Bytes,
    /// Where the event came from.
    pub trace: Option<Arc<Trace>>,
    /// The fence.
    pub token: i32,
    /// Attempts charged so far.
    pub attempts: u16,
    /// How often its signature was too old.
    pub replays: u16,
    /// Whether this is a retry by hand.
    pub by_hand: bool,
    /// Its age when it was leased, without what it was held.
    pub age: Micros,
    /// The key whose deliveries go in order.
    pub ordering_key: Option<Arc<str>>,
    /// When it was leased.
    pub since: Instant,
    /// The session that it is leased to: with that its token ends.
    pub session: Session,
}

impl Job {
    /// A job of a claimed row. The row's age still counts the time in which its
    /// subscription was off, `held`.
    #[must_use]
    pub fn of(row: Leased, held: Micros, session: Session) -> Self {
        Self {
            id: row.id,
            tenant: row.tenant,
            subscription: row.subscription,
            event: row.event,
            event_type: row.event_type.into(),
            body: row.body,
            trace: row.trace.map(Arc::new),
            token: row.token,
            attempts: row.attempts,
            replays: row.replays,
            by_hand: row.by_hand,
            age: row.age - held,
            ordering_key: row.ordering_key,
            since: Instant::now(),
            session,
        }
    }
}

/// A fetch of due rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetch {
    /// Whose rows.
    pub(super) subscription: SubscriptionId,
    /// How many at the most.
    pub(super) limit: usize,
    /// The lane's count of signs when it began: later ones are not answered by it.
    pub(super) signs: u64,
}
