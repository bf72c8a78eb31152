//! `SubscriptionService`.

use tonic::{Request, Response};

use super::{
    Answer, Context, caller,
    change::Changes,
    check::{self, Faults},
    page, trace,
};
use crate::{
    caller::Caller,
    domain::{
        certificate::{Facts, Pem},
        event::{SECRET_ROTATED, TEST, rfc3339},
        id::{Micros, SubscriptionId, TenantId, wall_clock},
        signature::{Scheme, Secret},
        subscription::{
            BreakerChoice, DEFAULT_IN_FLIGHT, DEFAULT_TIMEOUT, Headers, Kind, Ordering,
            PayloadFormat, PreviousSecret, Sealed, Subscription,
        },
    },
    error::{Error, Reason, Result},
    pipeline::{
        announce::Announcer,
        publish::{NewEvent, unavailable},
        sender::Unproven,
    },
    proto::v1::{
        self, CreateSubscriptionRequest, CreateSubscriptionResponse, DeleteSubscriptionRequest,
        DeleteSubscriptionResponse, EndSubscriptionSecretOverlapRequest,
        EndSubscriptionSecretOverlapResponse, GetSubscriptionRequest, GetSubscriptionResponse,
        ListSubscriptionsRequest, ListSubscriptionsResponse, RotateSubscriptionSecretRequest,
        RotateSubscriptionSecretResponse, TestSubscriptionRequest, TestSubscriptionResponse,
        UpdateSubscriptionRequest, UpdateSubscriptionResponse,
        subscription_service_server::SubscriptionService,
    },
    seal,
    store::{self, ReceiverState, StoreError},
    target::Target,
};

mod fields;
mod filter;
mod view;

use fields::Opened;

/// What a test publishes.
const TEST_DATA: &[u8] = br#"{"message":"This is a test of your webhook subscription."}"#;

/// Manages webhook subscriptions.
pub struct Subscriptions(pub Context);

#[tonic::async_trait]
impl Changes for Subscriptions {
    type Id = SubscriptionId;
    type Row = Subscription;

    async fn load(&self, caller: &Caller, id: SubscriptionId) -> Result<Subscription> {
        let found = self.0.store.get_subscription(id).await;
        found
            .map_err(unavailable)?
            .filter(|s| caller.sees(s.tenant))
            .ok_or_else(|| not_found(id))
    }

    async fn write(&self, s: &Subscription, updated_at: Micros) -> store::Result<()> {
        self.0.store.update_subscription(s, updated_at).await
    }

    fn updated_at(s: &mut Subscription) -> &mut Micros {
        &mut s.updated_at
    }

    async fn written(&self) {
        self.0.catch_up().await;
    }
}

impl Subscriptions {
    /// Changes a subscription, and seals its headers where they are not sealed
    /// yet. Answers it as it was and as it is.
    async fn change_sealed(
        &self,
        caller: &Caller,
        id: SubscriptionId,
        mut change: impl FnMut(&mut Subscription, Micros) -> Result<()> + Send,
    ) -> Result<(Subscription, Subscription)> {
        self.change(caller, id, |s, now| {
            if seal::in_clear(&s.headers) {
                s.headers = self.seal_headers(id, &self.headers(s)?)?;
            }
            change(s, now)
        })
        .await
    }

    /// Looks where a subscription's URL leads, and where it is configured so asks it
    /// whether it wants webhooks, before any goes there.
    async fn prove(&self, s: &Subscription, challenge: bool, field: &str) -> Result<()> {
        if s.kind == Kind::Stream {
            return Ok(());
        }
        let target = Target::new(s.clone(), &self.0.keyring).map_err(Error::internal)?;
        let unproven = if self.0.connector.is_forbidden(&target.uri).await {
            Unproven::NotAllowed
        } else if challenge && let Err(unproven) = self.0.sender.challenge(&target).await {
            unproven
        } else {
            return Ok(());
        };
        let (reason, message) = match unproven {
            // Not which: what names lead to in there is nobody's business out here.
            Unproven::NotAllowed => (
                Reason::EndpointNotAllowed,
                "its host has an address that deliveries may not go to".to_owned(),
            ),
            Unproven::Got(got) => (
                Reason::EndpointNotVerified,
                format!(
                    "a POST with the header X-Webhook-Challenge must be answered with 2xx and \
                     the header's value as the body; what came was {got}"
                ),
            ),
        };
        let mut error = Error::field(field, message);
        error.reason = reason;
        Err(error)
    }

    fn seal(&self, id: SubscriptionId, secret: &Secret) -> Result<Sealed> {
        self.0
            .keyring
            .seal(&id.to_string(), secret.expose())
            .map_err(Error::internal)
    }

    fn seal_headers(&self, id: SubscriptionId, headers: &Headers) -> Result<Sealed> {
        self.0
            .keyring
            .seal_headers(id, headers)
            .map_err(Error::internal)
    }

    fn seal_certificate(&self, id: SubscriptionId, pem: Option<&Pem>) -> Result<Option<Sealed>> {
        pem.map(|pem| self.0.keyring.seal_certificate(id, pem))
            .transpose()
            .map_err(Error::internal)
    }

    fn headers(&self, s: &Subscription) -> Result<Headers> {
        self.0
            .keyring
            .open_headers(s.id, &s.headers)
            .map_err(Error::internal)
    }

    fn certificate(&self, s: &Subscription) -> Result<Option<Pem>> {
        let open = |sealed| self.0.keyring.open_certificate(s.id, sealed);
        let opened = s.client_certificate.as_ref().map(open).transpose();
        opened.map_err(Error::internal)
    }

    fn opened(&self, s: &Subscription) -> Result<Opened> {
        Ok(Opened {
            headers: self.headers(s)?,
            certificate: self.certificate(s)?,
        })
    }

    /// Shows a subscription, with how its receiver is.
    async fn show(&self, s: &Subscription) -> Result<v1::Subscription> {
        let states = self.0.store.receivers(&[s.id]).await.map_err(unavailable)?;
        self.view(s, states.first())
    }

    fn view(&self, s: &Subscription, state: Option<&ReceiverState>) -> Result<v1::Subscription> {
        self.view_opened(s, &self.opened(s)?, state)
    }

    fn view_opened(
        &self,
        s: &Subscription,
        opened: &Opened,
        state: Option<&ReceiverState>,
    ) -> Result<v1::Subscription> {
        let certificate = opened.certificate.as_ref();
        let facts = certificate.map(|pem| Facts::of(&pem.chain)).transpose();
        let info = facts.map_err(Error::internal)?.map(view::certificate);
        let headers = opened.headers.clone();
        let directory = &self.0.directory;
        Ok(view::view(s, headers, info, state, directory, wall_clock()))
    }
}

impl Subscriptions {
    async fn tell_of_rotation(&self, s: &Subscription) {
        let context = &self.0;
        let announcer = Announcer::new(
            context.store.clone(),
            context.directory.clone(),
            context.publisher.clone(),
        );
        let until = s.previous.as_ref().map(|p| rfc3339(p.until));
        let data = serde_json::json!({ "previous_secret_expire_time": until });
        announcer.tell(s.tenant, s.id, SECRET_ROTATED, data).await;
    }
}

fn not_found(id: SubscriptionId) -> Error {
    Error::not_found(format_args!("subscription {id}"))
}

/// The secret that its owner brings along, or a new one.
fn secret(text: &str, scheme: Scheme) -> Result<Secret> {
    if text.is_empty() {
        return Secret::generate(scheme).map_err(Error::internal);
    }
    Secret::parse(text, scheme).map_err(|e| Error::field("secret", e.to_string()))
}

/// A subscription of which nothing is set yet.
fn blank(id: SubscriptionId, tenant: TenantId, scheme: Scheme) -> Subscription {
    Subscription {
        id,
        tenant,
        kind: Kind::Webhook,
        lifetime: None,
        url: String::new(),
        event_types: Vec::new(),
        headers: Sealed(Vec::new()),
        description: String::new(),
        disabled: None,
        held: 0,
        filter: None,
        ordering: Ordering::Off,
        format: PayloadFormat::Standard,
        scheme,
        schedule: None,
        timeout: DEFAULT_TIMEOUT,
        max_in_flight: DEFAULT_IN_FLIGHT,
        rate_limit: 0,
        breaker: BreakerChoice::default(),
        max_age: 0,
        metadata: Vec::new(),
        secret: Sealed(Vec::new()),
        previous: None,
        client_certificate: None,
        public_key: String::new(),
        created_at: id.time(),
        updated_at: id.time(),
    }
}

/// The fields of a subscription that a new one can have.
fn wanted(given: CreateSubscriptionRequest) -> v1::Subscription {
    v1::Subscription {
        url: given.url,
        event_types: given.event_types,
        headers: given.headers,
        description: given.description,
        enabled: given.enabled,
        signature_scheme: given.signature_scheme,
        retry_schedule: given.retry_schedule,
        timeout_seconds: given.timeout_seconds,
        max_in_flight: given.max_in_flight,
        max_age_seconds: given.max_age_seconds,
        metadata: given.metadata,
        payload_format: given.payload_format,
        client_certificate: given.client_certificate,
        filter: given.filter,
        breaker: given.breaker,
        rate_limit_per_second: given.rate_limit_per_second,
        ordering: given.ordering,
        kind: given.kind,
        expire_after_seconds: given.expire_after_seconds,
        ..v1::Subscription::default()
    }
}

#[tonic::async_trait]
impl SubscriptionService for Subscriptions {
    async fn create_subscription(
        &self,
        request: Request<CreateSubscriptionRequest>,
    ) -> Answer<CreateSubscriptionResponse> {
        let caller = caller(&request)?;
        let mut given = request.into_inner();
        let tenant = self.0.tenant(&caller, &given.tenant).await?;
        let brought = zeroize::Zeroizing::new(std::mem::take(&mut given.secret));
        let mut faults = Faults::default();
        let scheme = fields::scheme(given.signature_scheme, &mut faults);
        let wanted = wanted(given);
        let now = wall_clock();
        let id = SubscriptionId::new(now, tenant.id.part());
        let mut new = blank(id, tenant.id, scheme);
        let live = self.0.live.load_full();
        fields::set_kind(&mut new, &wanted, now, &mut faults);
        let names = fields::CHANGEABLE.map(|n| if n == "signature_scheme" { "" } else { n });
        let mut own = Opened::default();
        fields::apply(&mut new, &mut own, &wanted, &names, &live, now, &mut faults);
        let secret = secret(&brought, scheme);
        if let Err(e) = &secret {
            for v in &e.violations {
                faults.add(&v.field, v.message.clone());
            }
        }
        faults.done()?;
        let secret = secret?;
        new.secret = self.seal(id, &secret)?;
        new.headers = self.seal_headers(id, &own.headers)?;
        new.client_certificate = self.seal_certificate(id, own.certificate.as_ref())?;
        new.public_key = secret.public_key().unwrap_or_default();
        self.prove(&new, live.endpoint_challenge, "url").await?;
        let quota = live.quota_subscriptions;
        self.0
            .store
            .create_subscription(&new, quota)
            .await
            .map_err(|e| match e {
                StoreError::Quota(n) => Error::new(
                    Reason::QuotaExceeded,
                    format!("the tenant has {n} subscriptions, which is its quota"),
                ),
                e => unavailable(e),
            })?;
        self.0.catch_up().await;
        Ok(Response::new(CreateSubscriptionResponse {
            id: id.to_string(),
            secret: secret.expose().to_owned(),
            subscription: Some(self.view(&new, None)?),
        }))
    }

    async fn get_subscription(
        &self,
        request: Request<GetSubscriptionRequest>,
    ) -> Answer<GetSubscriptionResponse> {
        let caller = caller(&request)?;
        let id = check::id("id", &request.get_ref().id)?;
        let found = self.load(&caller, id).await?;
        Ok(Response::new(GetSubscriptionResponse {
            subscription: Some(self.show(&found).await?),
        }))
    }

    async fn list_subscriptions(
        &self,
        request: Request<ListSubscriptionsRequest>,
    ) -> Answer<ListSubscriptionsResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let page = page::read::<SubscriptionId>(given.page_size, &given.page_token)?;
        let tenant = self.0.tenant(&caller, &given.tenant).await?;
        let rows = self.0.store.list_subscriptions(tenant.id, page).await;
        let mut rows = rows.map_err(unavailable)?;
        let next_page_token = page::cut(&page, &mut rows, |s| s.id);
        let ids: Vec<SubscriptionId> = rows.iter().map(|s| s.id).collect();
        let states = self.0.store.receivers(&ids).await.map_err(unavailable)?;
        Ok(Response::new(ListSubscriptionsResponse {
            subscriptions: rows
                .iter()
                .map(|s| self.view(s, states.iter().find(|r| r.subscription == s.id)))
                .collect::<Result<_>>()?,
            next_page_token,
        }))
    }

    async fn update_subscription(
        &self,
        request: Request<UpdateSubscriptionRequest>,
    ) -> Answer<UpdateSubscriptionResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let id = check::id("id", &given.id)?;
        let Some(wanted) = given.subscription else {
            return Err(Error::field("subscription", "is required").into());
        };
        let live = self.0.live.load_full();
        let alter = |s: &mut Subscription, now| -> Result<()> {
            let mut faults = Faults::under("subscription.");
            let before = self.opened(s)?;
            let mut own = before.clone();
            let shown = self.view_opened(s, &before, None)?;
            let names = fields::named(&wanted, &shown, given.update_mask.as_ref(), &mut faults);
            fields::apply(s, &mut own, &wanted, &names, &live, now, &mut faults);
            faults.done()?;
            // The same ones sealed again would look like a change.
            if own.headers != before.headers {
                s.headers = self.seal_headers(id, &own.headers)?;
            }
            if own.certificate != before.certificate {
                s.client_certificate = self.seal_certificate(id, own.certificate.as_ref())?;
            }
            Ok(())
        };
        let mut s = self.load(&caller, id).await?;
        let mut proven = s.url.clone();
        alter(&mut s, wall_clock())?;
        if s.url != proven {
            self.prove(&s, live.endpoint_challenge, "subscription.url")
                .await?;
            proven = s.url;
        }
        let (old, new) = self
            .change_sealed(&caller, id, |s, now| {
                let before = s.url.clone();
                alter(s, now)?;
                if s.url != before && s.url != proven {
                    return Err(unavailable(StoreError::Conflict));
                }
                Ok(())
            })
            .await?;
        if old.disabled.is_some() && new.disabled.is_none() {
            self.0.dispatcher.look_around();
        }
        Ok(Response::new(UpdateSubscriptionResponse {
            subscription: Some(self.show(&new).await?),
        }))
    }

    async fn delete_subscription(
        &self,
        request: Request<DeleteSubscriptionRequest>,
    ) -> Answer<DeleteSubscriptionResponse> {
        let caller = caller(&request)?;
        let id = check::id("id", &request.get_ref().id)?;
        self.load(&caller, id).await?;
        let there = self.0.store.delete_subscription(id).await;
        if !there.map_err(unavailable)? {
            return Err(not_found(id).into());
        }
        self.0.catch_up().await;
        // Whoever claims finds that it is gone, and cancels what is queued.
        self.0.dispatcher.look_around();
        Ok(Response::new(DeleteSubscriptionResponse {}))
    }

    async fn rotate_subscription_secret(
        &self,
        request: Request<RotateSubscriptionSecretRequest>,
    ) -> Answer<RotateSubscriptionSecretResponse> {
        let caller = caller(&request)?;
        let mut given = request.into_inner();
        let id = check::id("id", &given.id)?;
        let overlap = check::overlap(given.overlap_seconds)?;
        let brought = zeroize::Zeroizing::new(std::mem::take(&mut given.secret));
        // The scheme never changes its side, so that the secret fits later too.
        let scheme = self.load(&caller, id).await?.scheme;
        let secret = secret(&brought, scheme)?;
        let sealed = self.seal(id, &secret)?;
        let (_, new) = self
            .change_sealed(&caller, id, |s, now| {
                rotate(s, sealed.clone(), overlap, now);
                s.public_key = secret.public_key().unwrap_or_default();
                Ok(())
            })
            .await?;
        self.tell_of_rotation(&new).await;
        Ok(Response::new(RotateSubscriptionSecretResponse {
            id: id.to_string(),
            secret: secret.expose().to_owned(),
            subscription: Some(self.show(&new).await?),
        }))
    }

    async fn end_subscription_secret_overlap(
        &self,
        request: Request<EndSubscriptionSecretOverlapRequest>,
    ) -> Answer<EndSubscriptionSecretOverlapResponse> {
        let caller = caller(&request)?;
        let id = check::id("id", &request.get_ref().id)?;
        let (_, new) = self.change_sealed(&caller, id, end_overlap).await?;
        Ok(Response::new(EndSubscriptionSecretOverlapResponse {
            subscription: Some(self.show(&new).await?),
        }))
    }

    async fn test_subscription(
        &self,
        request: Request<TestSubscriptionRequest>,
    ) -> Answer<TestSubscriptionResponse> {
        let caller = caller(&request)?;
        let trace = trace::of_call(&request);
        let id = check::id("id", &request.get_ref().id)?;
        let found = self.load(&caller, id).await?;
        if self.0.directory.target(id).is_none() {
            // Another node has just made it.
            self.0.catch_up().await;
        }
        let receipt = self
            .0
            .publisher
            .publish(NewEvent {
                tenant: found.tenant,
                key: Some(caller.key().id),
                event_type: TEST.to_owned(),
                data: TEST_DATA.into(),
                idempotency_key: None,
                ordering_key: None,
                only: Some(id),
                trace,
            })
            .await?;
        // Without a delivery: it was deleted at the same time.
        let delivery = receipt.first.ok_or_else(|| not_found(id))?;
        Ok(Response::new(TestSubscriptionResponse {
            event_id: receipt.id.to_string(),
            delivery_id: delivery.to_string(),
        }))
    }
}

/// Gives a subscription a new secret. The one before signs too until the
/// overlap ends; one from before that stops now.
fn rotate(s: &mut Subscription, secret: Sealed, overlap: Micros, now: Micros) {
    let before = std::mem::replace(&mut s.secret, secret);
    s.previous = (overlap > 0).then_some(PreviousSecret {
        secret: before,
        until: now + overlap,
    });
}

fn end_overlap(s: &mut Subscription, now: Micros) -> Result<()> {
    match s.previous.take() {
        Some(p) if p.until > now => Ok(()),
        _ => Err(Error::new(
            Reason::FailedPrecondition,
            "there is no overlap to end: only one secret signs",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription() -> Subscription {
        let id = SubscriptionId::new(1_700_000_000_000_000, TenantId::DEFAULT.part());
        Subscription {
            secret: Sealed(vec![1]),
            ..blank(id, TenantId::DEFAULT, Scheme::V1)
        }
    }

    // S4: both sign for the overlap, and it can be ended early, once.
    #[test]
    fn a_rotation_and_its_end() {
        let mut s = subscription();
        rotate(&mut s, Sealed(vec![2]), 100, 5);
        rotate(&mut s, Sealed(vec![3]), 100, 6);
        let previous = s.previous.clone().unwrap();
        assert_eq!(
            (s.secret.clone(), previous.secret),
            (Sealed(vec![3]), Sealed(vec![2]))
        );
        assert_eq!(previous.until, 106);
        let mut over = s.clone();
        assert!(end_overlap(&mut over, 106).is_err());
        end_overlap(&mut s, 50).unwrap();
        assert_eq!(s.previous, None);
        let error = end_overlap(&mut s, 50).unwrap_err();
        assert_eq!(error.reason, Reason::FailedPrecondition);
        rotate(&mut s, Sealed(vec![4]), 0, 60);
        assert_eq!(s.previous, None);
    }

    // D7: a secret of its owner's own, or a made one; for Ed25519 a key.
    #[test]
    fn secrets() {
        assert_eq!(
            secret("my own secret", Scheme::V1).unwrap().expose(),
            "my own secret"
        );
        assert!(
            secret("", Scheme::V1)
                .unwrap()
                .expose()
                .starts_with("whsec_")
        );
        assert!(secret("", Scheme::Ed25519).unwrap().public_key().is_some());
        for (text, scheme) in [("short", Scheme::V1), ("whsec_abcdefgh", Scheme::Ed25519)] {
            let error = secret(text, scheme).unwrap_err();
            assert_eq!(error.violations[0].field, "secret");
            assert!(!error.detail.contains(text));
        }
    }
}
