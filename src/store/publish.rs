//! Events to be published.

use std::sync::Arc;

use bytes::Bytes;

use crate::domain::{
    event::Idempotency,
    id::{DeliveryId, EventId, KeyId, Micros, SubscriptionId, TenantId},
    trace::Trace,
};

/// An event to be published, with its deliveries.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The tenant; its partition is the event id's.
    pub tenant: TenantId,
    /// The revision of the tenant's subscriptions that it was matched against.
    pub revision: i64,
    /// The event.
    pub event: EventId,
    /// Its type.
    pub event_type: String,
    /// The body that every attempt sends.
    pub body: Bytes,
    /// The key that published it.
    pub key: Option<KeyId>,
    /// Which repetition it may be.
    pub idempotency: Option<Idempotency>,
    /// Where it came from.
    pub trace: Option<Arc<Trace>>,
    /// A delivery for each subscription that it matched.
    pub deliveries: Vec<NewDelivery>,
    /// Whose deliveries go one at a time, where a subscription asks for that.
    pub ordering_key: Option<Arc<str>>,
}

impl Publish {
    /// What one of its deliveries goes in order with: its subscription's others with
    /// the same key. None where it goes for itself.
    pub(super) fn order_of(&self, d: &NewDelivery) -> Option<(SubscriptionId, &str)> {
        let key = self.ordering_key.as_deref()?;
        d.ordered.then_some((d.subscription, key))
    }
}

/// A delivery to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewDelivery {
    /// Its id, beside its event's.
    pub id: DeliveryId,
    /// Its subscription.
    pub subscription: SubscriptionId,
    /// For how long the subscription was off until now.
    pub held: Micros,
    /// Whether the publishing node wants it leased to itself.
    pub lease: bool,
    /// Whether its subscription wants deliveries in the order of their keys. Such a
    /// one is not leased where its event has a key.
    pub ordered: bool,
}

/// How a publish fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The event and its deliveries are committed.
    Accepted {
        /// Whether the leases that were asked for were given: the session is
        /// alive and owns the partition. Their token is 1.
        leased: bool,
    },
    /// The idempotency key came before.
    Duplicate {
        /// The event of the first time.
        event: EventId,
        /// How many deliveries it became.
        deliveries: i32,
        /// Whether its content was the same.
        same: bool,
    },
    /// The tenant's subscriptions changed since it was matched.
    Stale,
    /// The database can't hold one of its values, such as a NUL in its type.
    Refused,
}
