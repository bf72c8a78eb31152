//! Builders for what a store takes.

use std::time::Duration;

use bytes::Bytes;
use onering::{
    domain::{
        audit::Chain,
        delivery::{Attempt, AttemptKind, Schedule, Status},
        event::Idempotency,
        id::{DeliveryId, EventId, KeyId, Micros, Part, SubscriptionId, TenantId, wall_clock},
        key::{self, Hashed, Key, Kind as KeyKind},
        signature::Scheme,
        subscription::{
            DEFAULT_IN_FLIGHT, DEFAULT_TIMEOUT, Kind, Ordering, PayloadFormat, Sealed, Subscription,
        },
        switch::Change,
        tenant::Tenant,
    },
    store::{Author, Changed, Finish, Leased, NewDelivery, Publish, Settle, Store, StoreError},
};

/// Sets a stored switch.
pub async fn set_switch(store: &dyn Store, name: &str, on: bool) -> Changed {
    change_switches(store, &[name], Change::Set(on))
        .await
        .unwrap()
}

/// Changes switches as `key_test`, under the key that [`a_chain`] has.
pub async fn change_switches(
    store: &dyn Store,
    names: &[&str],
    change: Change,
) -> Result<Changed, StoreError> {
    let by = Author {
        actor: "key_test",
        reason: "a test",
    };
    store.change_switches(names, change, by, &a_chain()).await
}

/// What records of the audit log are chained with.
pub fn a_chain() -> Chain {
    Chain::new(&[7; 32]).unwrap()
}

/// A tenant, and the revision of its subscriptions that publishes are matched
/// against.
#[derive(Debug, Clone, Copy)]
pub struct Tenancy {
    pub id: TenantId,
    pub revision: i64,
}

/// The tenant that exists from the start.
pub const DEFAULT: Tenancy = Tenancy {
    id: TenantId::DEFAULT,
    revision: 1,
};

impl Tenancy {
    /// Makes a tenant in that partition.
    pub async fn create(store: &dyn Store, name: &str, part: u8) -> Self {
        let tenant = a_tenant(name, part);
        store.create_tenant(&tenant).await.unwrap();
        Self {
            id: tenant.id,
            revision: 1,
        }
    }

    /// A subscription's id of this tenant. The queue needs no more of it.
    pub fn sub(self) -> SubscriptionId {
        SubscriptionId::new(wall_clock(), self.id.part())
    }

    pub fn at_revision(self, revision: i64) -> Self {
        Self { revision, ..self }
    }

    /// An event without deliveries.
    pub fn event(self) -> Event {
        self.event_at(wall_clock())
    }

    /// An event that a node with another clock made.
    pub fn event_at(self, time: Micros) -> Event {
        Event {
            publish: Publish {
                tenant: self.id,
                revision: self.revision,
                event: EventId::new(time, self.id.part()),
                event_type: "invoice.paid".to_owned(),
                body: Bytes::from_static(b"{}"),
                key: None,
                idempotency: None,
                trace: None,
                deliveries: Vec::new(),
                ordering_key: None,
            },
            idempotency_key: None,
        }
    }

    /// An event with one delivery.
    pub fn event_to(self, subscription: SubscriptionId) -> Publish {
        self.event().to(&[subscription]).build()
    }
}

pub fn a_tenant(name: &str, part: u8) -> Tenant {
    let now = wall_clock();
    Tenant {
        id: TenantId::new(now, Part::new(part)),
        name: name.to_owned(),
        display_name: format!("The tenant {name}"),
        created_at: now,
    }
}

/// Builds a [`Publish`].
#[derive(Clone)]
pub struct Event {
    publish: Publish,
    idempotency_key: Option<String>,
}

impl Event {
    /// Adds a delivery to each of these subscriptions.
    pub fn to(mut self, subscriptions: &[SubscriptionId]) -> Self {
        let event = self.publish.event;
        self.publish
            .deliveries
            .extend(subscriptions.iter().map(|s| NewDelivery {
                id: DeliveryId::of(event),
                subscription: *s,
                held: 0,
                lease: false,
                ordered: false,
            }));
        self
    }

    /// Asks for its deliveries to be leased to the publishing session.
    pub fn leased(mut self) -> Self {
        for d in &mut self.publish.deliveries {
            d.lease = true;
        }
        self
    }

    /// Its deliveries go in order with those that have the same key.
    pub fn in_order(mut self, key: &str) -> Self {
        self.publish.ordering_key = Some(key.into());
        for d in &mut self.publish.deliveries {
            d.ordered = true;
        }
        self
    }

    /// Its subscriptions were off for that long until now.
    pub fn held(mut self, held: Micros) -> Self {
        for d in &mut self.publish.deliveries {
            d.held = held;
        }
        self
    }

    pub fn of_type(mut self, event_type: &str) -> Self {
        event_type.clone_into(&mut self.publish.event_type);
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.publish.body = body.into();
        self
    }

    pub fn idempotency_key(mut self, key: &str) -> Self {
        self.idempotency_key = Some(key.to_owned());
        self
    }

    pub fn build(mut self) -> Publish {
        let p = &mut self.publish;
        p.idempotency = self
            .idempotency_key
            .map(|key| Idempotency::new(&key, &p.event_type, &p.body));
        self.publish
    }
}

/// Builds [`Finish`]es of a lease, each with the attempt that leads to it.
pub trait Ends {
    fn delivered(&self) -> Finish;
    /// Due again after that time; the attempt counts.
    fn retried(&self, after: Duration) -> Finish;
    /// Its signature was too old: due again at once; no attempt counts.
    fn sign_again(&self) -> Finish;
    /// The last attempt failed; dead after that time.
    fn failed(&self, dead_after: Duration) -> Finish;
    fn dead(&self) -> Finish;
    /// Given back; nothing was tried.
    fn released(&self) -> Finish;
}

impl Ends for Leased {
    fn delivered(&self) -> Finish {
        let attempt = attempt(self, AttemptKind::Delivered, 200);
        finish(self, Settle::Done(Status::Delivered), "", Some(attempt))
    }

    fn retried(&self, after: Duration) -> Finish {
        let settle = Settle::Retry {
            after,
            charged: true,
        };
        let attempt = attempt(self, AttemptKind::Retryable, 503);
        finish(self, settle, "status_503", Some(attempt))
    }

    fn sign_again(&self) -> Finish {
        let settle = Settle::Retry {
            after: Duration::ZERO,
            charged: false,
        };
        let attempt = attempt(self, AttemptKind::ReplayExpired, 0);
        finish(self, settle, "replay_expired", Some(attempt))
    }

    fn failed(&self, dead_after: Duration) -> Finish {
        let attempt = attempt(self, AttemptKind::Retryable, 503);
        finish(
            self,
            Settle::Failed(dead_after),
            "status_503",
            Some(attempt),
        )
    }

    fn dead(&self) -> Finish {
        let attempt = attempt(self, AttemptKind::Permanent, 400);
        finish(
            self,
            Settle::Dead(Status::Dead),
            "status_400",
            Some(attempt),
        )
    }

    fn released(&self) -> Finish {
        finish(self, Settle::Release, "", None)
    }
}

fn finish(leased: &Leased, settle: Settle, reason: &str, attempt: Option<Attempt>) -> Finish {
    Finish {
        id: leased.id,
        token: leased.token,
        settle,
        reason: reason.to_owned(),
        attempt,
        held: 0,
        ordered: leased.ordering_key.is_some(),
    }
}

fn attempt(leased: &Leased, kind: AttemptKind, status: u16) -> Attempt {
    Attempt {
        number: leased.attempts + 1,
        token: leased.token,
        started_at: 0,
        took: 1500,
        kind,
        response_status: status,
        error: match kind {
            AttemptKind::Delivered => String::new(),
            _ => "refused".to_owned(),
        },
        response: b"answer".to_vec(),
        worker: "worker-1".to_owned(),
    }
}

pub fn a_subscription(tenant: TenantId) -> Subscription {
    let id = SubscriptionId::new(wall_clock(), tenant.part());
    Subscription {
        id,
        tenant,
        kind: Kind::Webhook,
        lifetime: None,
        url: "https://example.com/hook".to_owned(),
        event_types: vec!["invoice.*".to_owned(), "*".to_owned()],
        headers: Sealed(vec![0, 7, 255]),
        description: "Faktura – 送り状".to_owned(),
        disabled: None,
        held: 17,
        filter: Some(r#"{"==":[{"var":"a"}, 1]}"#.to_owned()),
        ordering: Ordering::Skip,
        format: PayloadFormat::CloudEventsBinary,
        scheme: Scheme::Plain,
        schedule: Some(Schedule::burst()),
        timeout: DEFAULT_TIMEOUT,
        max_in_flight: DEFAULT_IN_FLIGHT,
        max_age: 3600,
        metadata: vec![
            ("b".to_owned(), "1".to_owned()),
            ("a".to_owned(), "2".to_owned()),
        ],
        secret: Sealed(vec![0, 1, 255]),
        previous: None,
        client_certificate: Some(Sealed(vec![9, 0, 254])),
        public_key: "whpk_x".to_owned(),
        created_at: id.time(),
        updated_at: id.time(),
    }
}

pub fn a_key(tenant: Option<TenantId>) -> Key {
    let id = KeyId::new(wall_clock(), tenant.map_or(Part::new(0), TenantId::part));
    Key {
        id,
        tenant,
        kind: KeyKind::Consumer,
        name: "Müller".to_owned(),
        tier: "standard".to_owned(),
        scopes: vec!["webhooks:read".to_owned(), "orders:write".to_owned()],
        canary: true,
        rate_limit_per_hour: Some(1000),
        allowed_cidrs: ["203.0.113.0/24", "2001:db8::/32"]
            .map(|n| n.parse().unwrap())
            .to_vec(),
        expires_at: Some(wall_clock() + 1),
        metadata: vec![
            ("z".to_owned(), "1".to_owned()),
            ("a".to_owned(), "2".to_owned()),
        ],
        status: key::Status::Active,
        secret: Hashed {
            pepper: 3,
            digest: [7; 32],
        },
        previous: None,
        whole_text: false,
        created_at: id.time(),
        updated_at: id.time(),
    }
}

pub fn an_admin_key() -> Key {
    Key {
        kind: KeyKind::Admin,
        ..a_key(None)
    }
}
