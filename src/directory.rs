//! What this node decides with: tenants, keys, subscriptions and switches in
//! memory, as of one revision. The revision is read every 200 ms and on a hint;
//! what changed is loaded. Nothing on a caller's path waits for the database.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use subtle::ConstantTimeEq as _;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        event_type::{EventType, Schema},
        id::{EventTypeId, KeyId, Micros, Part, SubscriptionId, TenantId},
        key::{self, Key, NotAKey, Status},
        subscription::Subscription,
        switch::{Stored, Switch},
        tenant::Tenant,
    },
    error::{Error, Reason, Result},
    metrics::Metrics,
    seal::Keyring,
    settings::Live,
    store::{Changes, KeyUse, Store, StoreError, TenantSubscriptions},
    target::Target,
    usage::Who,
};

/// How often the revision is read.
const POLL: Duration = Duration::from_millis(200);
/// How often it is noted when keys were used.
const KEEP_USES: Duration = Duration::from_secs(60);
/// Without news for this long everything is loaded again: the records of
/// deletions are kept for a day only.
const RELOAD: Duration = Duration::from_secs(3600);

/// A key in memory, with its uses.
pub struct KeyEntry {
    /// The key.
    pub key: Key,
    /// Under which its calls are counted.
    pub who: Who,
    uses: Arc<Uses>,
}

impl KeyEntry {
    fn new(key: Key, uses: Arc<Uses>) -> Self {
        let who = Who {
            key: Some(key.id),
            tenant: key.tenant,
            tier: key.tier.clone(),
        };
        Self { key, who, uses }
    }

    /// Whether the key works. To be told to a caller who proved its secret alone.
    ///
    /// # Errors
    /// `KEY_DISABLED`, `KEY_REVOKED`, `KEY_EXPIRED`.
    pub fn works_at(&self, now: Micros) -> Result<()> {
        let (reason, detail) = match self.key.status_at(now) {
            Status::Active => return Ok(()),
            Status::Disabled => (Reason::KeyDisabled, "the key is switched off"),
            Status::Revoked => (Reason::KeyRevoked, "the key was revoked"),
            Status::Expired => (Reason::KeyExpired, "the key has expired"),
        };
        Err(Error::new(reason, detail))
    }

    /// Notes a use.
    pub fn used(&self, now: Micros) {
        self.uses.last.fetch_max(now, Ordering::Relaxed);
    }
}

/// The refusal of a credential that nothing is known of.
#[must_use]
pub fn no_such_key() -> Error {
    Error::new(
        Reason::KeyInvalid,
        "there is no such key, or its secret is wrong",
    )
}

#[derive(Default)]
struct Uses {
    last: AtomicI64,
    new_secret_first: AtomicI64,
    stored: AtomicI64,
}

/// A tenant's subscriptions as of one revision.
#[derive(Default)]
pub struct Subscriptions {
    /// The revision that a publish names.
    pub revision: i64,
    /// The subscriptions.
    pub targets: Vec<Arc<Target>>,
    /// Those whose secrets this node can't open. They are matched all the same:
    /// their deliveries wait.
    pub unusable: Vec<Subscription>,
}

/// The switches in force on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Switches {
    /// `external_api.enabled`
    pub api: bool,
    /// `external_api.canary_only`
    pub canary_only: bool,
    /// `webhooks.enabled`
    pub webhooks: bool,
    /// `webhooks.delivery.enabled`
    pub delivery: bool,
}

/// Everything of switches that is in force on this node, read by each call.
#[derive(Debug, Default)]
pub struct InForce {
    /// The four.
    pub switches: Switches,
    /// The methods that are switched off, by their full names.
    pub off: HashSet<String>,
    /// The revision of the last change of a switch.
    pub revision: i64,
}

/// A registered event type, ready to be checked against.
pub struct Registered {
    /// As it is stored.
    pub event_type: EventType,
    /// What payloads must fit; none: any does.
    pub schema: Option<Schema>,
}

impl Registered {
    fn new(event_type: EventType) -> Self {
        let text = event_type.schema.as_deref();
        let schema = text.map(Schema::parse).transpose();
        let schema = schema.unwrap_or_else(|wrong| {
            // Of another version, which took it.
            tracing::error!(
                event_type.name = event_type.name,
                error.message = wrong.message,
                "schema can't be used: payloads are not checked against it"
            );
            None
        });
        Self { event_type, schema }
    }
}

/// How old the configuration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// As new as the poll.
    Fresh,
    /// The database can't be reached; the node goes on with what it has.
    Stale,
    /// For longer than it may.
    TooOld,
}

/// The node's configuration.
pub struct Directory {
    store: Arc<dyn Store>,
    keyring: Arc<Keyring>,
    live: Arc<ArcSwap<Live>>,
    metrics: Arc<Metrics>,
    keys: RwLock<HashMap<KeyId, Arc<KeyEntry>>>,
    whole_texts: RwLock<HashMap<[u8; 32], KeyId>>,
    tenants: RwLock<HashMap<TenantId, Arc<Tenant>>>,
    tenant_names: RwLock<HashMap<String, TenantId>>,
    subscriptions: RwLock<HashMap<TenantId, Arc<Subscriptions>>>,
    targets: RwLock<HashMap<SubscriptionId, Arc<Target>>>,
    event_types: RwLock<HashMap<TenantId, HashMap<String, Arc<Registered>>>>,
    stored_switches: RwLock<HashMap<String, Stored>>,
    in_force: ArcSwap<InForce>,
    started: Instant,
    /// Microseconds after `started` of the last poll that succeeded, counted
    /// from when it was sent.
    fresh_at: AtomicU64,
    refreshing: tokio::sync::Mutex<()>,
    hint: Notify,
    revision: watch::Sender<i64>,
}

/// What a database has, all of it.
struct There {
    keys: HashSet<KeyId>,
    tenants: HashSet<TenantId>,
    with_subscriptions: HashSet<TenantId>,
    event_types: HashSet<EventTypeId>,
}

impl There {
    fn of(all: &Changes) -> Self {
        Self {
            keys: all.keys.iter().map(|k| k.id).collect(),
            tenants: all.tenants.iter().map(|t| t.id).collect(),
            with_subscriptions: all.subscriptions.iter().filter_map(|s| s.tenant).collect(),
            event_types: all.event_types.iter().map(|t| t.id).collect(),
        }
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Directory {
    /// Loads everything.
    ///
    /// # Errors
    /// Where the store can't be read.
    pub async fn load(
        store: Arc<dyn Store>,
        keyring: Arc<Keyring>,
        live: Arc<ArcSwap<Live>>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, StoreError> {
        let directory = Arc::new(Self {
            store,
            keyring,
            live,
            metrics,
            keys: RwLock::default(),
            whole_texts: RwLock::default(),
            tenants: RwLock::default(),
            tenant_names: RwLock::default(),
            subscriptions: RwLock::default(),
            targets: RwLock::default(),
            event_types: RwLock::default(),
            stored_switches: RwLock::default(),
            in_force: ArcSwap::default(),
            started: Instant::now(),
            fresh_at: AtomicU64::new(0),
            refreshing: tokio::sync::Mutex::new(()),
            hint: Notify::new(),
            revision: watch::Sender::new(0),
        });
        directory.refresh().await?;
        Ok(directory)
    }

    /// Brings the node to the store's present revision; what a caller was
    /// answered before this call began is then in force here.
    ///
    /// # Errors
    /// Where the store can't be read.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let _one = self.refreshing.lock().await;
        let sent = self.started.elapsed();
        let lost = sent.saturating_sub(self.fresh_for()) > RELOAD;
        let have = if lost { 0 } else { *self.revision.borrow() };
        if lost || self.store.revision().await? != have {
            let mut changes = self.store.changes(have).await?;
            // A database that was put back: what was changed since is not so any more.
            let back = changes.revision < have;
            if back {
                tracing::warn!(
                    config.revision = changes.revision,
                    config.before = have,
                    "the database's configuration is older than this node's: all of it is read again"
                );
                changes = self.store.changes(0).await?;
            }
            self.apply(changes, lost || back);
        }
        self.fresh_at.store(
            u64::try_from(sent.as_micros()).unwrap_or(u64::MAX),
            Ordering::Release,
        );
        Ok(())
    }

    fn fresh_for(&self) -> Duration {
        Duration::from_micros(self.fresh_at.load(Ordering::Acquire))
    }

    /// Asks for a refresh soon.
    pub fn nudge(&self) {
        self.hint.notify_one();
    }

    /// The revision that this node decides with, at the least.
    #[must_use]
    pub fn revision(&self) -> i64 {
        *self.revision.borrow()
    }

    /// Waits until this node decides with that revision; whether it does.
    pub async fn reaches(&self, revision: i64, patience: Duration) -> bool {
        let mut revisions = self.revision.subscribe();
        if *revisions.borrow_and_update() >= revision {
            return true;
        }
        self.nudge();
        let reached = revisions.wait_for(|now| *now >= revision);
        matches!(tokio::time::timeout(patience, reached).await, Ok(Ok(_)))
    }

    /// Told of each new revision.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<i64> {
        self.revision.subscribe()
    }

    /// Applies new live settings: pins may have changed.
    pub fn settings_changed(&self) {
        self.renew_switches(None);
        self.revision.send_modify(|_| {});
    }

    /// How old the configuration is.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        let age = self.started.elapsed().saturating_sub(self.fresh_for());
        if age < Duration::from_secs(1) {
            Freshness::Fresh
        } else if age < Duration::from_secs(1) + self.live.load().stale {
            Freshness::Stale
        } else {
            Freshness::TooOld
        }
    }

    /// Polls until it is cancelled. Says once that the store is away, and once
    /// that it is back.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = self.hint.notified() => {}
                () = tokio::time::sleep(POLL) => {}
            }
            let done = tokio::time::timeout(Duration::from_secs(5), self.refresh()).await;
            let renewed = match done {
                Ok(done) => done.map_err(|e| e.to_string()),
                Err(_) => Err("no answer within 5 seconds".to_owned()),
            };
            self.metrics.troubles.note(
                "directory",
                &renewed,
                "configuration can't be renewed",
                "configuration is renewed again",
            );
            let stale = self.freshness() != Freshness::Fresh;
            self.metrics.config_stale.set(f64::from(u8::from(stale)));
        }
    }

    /// Notes every minute when keys were used, until it is cancelled, and then once
    /// more. Apart from the poll, which must not wait for it.
    pub async fn keep_uses(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(KEEP_USES) => self.flush_uses().await,
            }
        }
        self.flush_uses().await;
    }

    fn apply(&self, changes: Changes, all: bool) {
        let there = all.then(|| There::of(&changes));
        for tenant in changes.tenants {
            write(&self.tenant_names).insert(tenant.name.clone(), tenant.id);
            write(&self.tenants).insert(tenant.id, Arc::new(tenant));
        }
        for key in changes.keys {
            let mut keys = write(&self.keys);
            let uses = keys.get(&key.id).map_or_else(Arc::default, |e| {
                if e.key.secret != key.secret {
                    e.uses.new_secret_first.store(0, Ordering::Relaxed);
                }
                e.uses.clone()
            });
            if key.whole_text {
                write(&self.whole_texts).insert(key.secret.digest, key.id);
            }
            keys.insert(key.id, Arc::new(KeyEntry::new(key, uses)));
        }
        for id in changes.deleted {
            write(&self.keys).remove(&KeyId(id));
            for of_tenant in write(&self.event_types).values_mut() {
                of_tenant.retain(|_, t| t.event_type.id != EventTypeId(id));
            }
        }
        for event_type in changes.event_types {
            let registered = Arc::new(Registered::new(event_type));
            let (tenant, name) = (registered.event_type.tenant, &registered.event_type.name);
            let mut event_types = write(&self.event_types);
            let of_tenant = event_types.entry(tenant).or_default();
            of_tenant.insert(name.clone(), registered.clone());
        }
        for list in changes.subscriptions {
            self.apply_subscriptions(list);
        }
        if let Some(there) = there {
            self.keep(&there);
        }
        self.renew_switches(Some(changes.switches));
        self.metrics.config_revision.set(changes.revision as f64);
        self.revision.send_replace(changes.revision);
    }

    /// Forgets what is not there any more. Not before the rest is known: callers are
    /// decided on meanwhile.
    fn keep(&self, there: &There) {
        write(&self.keys).retain(|id, _| there.keys.contains(id));
        write(&self.whole_texts).retain(|_, id| there.keys.contains(id));
        write(&self.tenants).retain(|id, _| there.tenants.contains(id));
        write(&self.tenant_names).retain(|_, id| there.tenants.contains(id));
        let mut subscriptions = write(&self.subscriptions);
        subscriptions.retain(|tenant, _| there.with_subscriptions.contains(tenant));
        let targets: HashSet<SubscriptionId> = subscriptions
            .values()
            .flat_map(|s| s.targets.iter().map(|t| t.subscription.id))
            .collect();
        drop(subscriptions);
        write(&self.targets).retain(|id, _| targets.contains(id));
        for of_tenant in write(&self.event_types).values_mut() {
            of_tenant.retain(|_, t| there.event_types.contains(&t.event_type.id));
        }
    }

    fn apply_subscriptions(&self, list: TenantSubscriptions) {
        let Some(tenant) = list.tenant else { return };
        let mut targets = Vec::with_capacity(list.subscriptions.len());
        let mut unusable = Vec::new();
        for s in list.subscriptions {
            let id = s.id;
            let known = read(&self.targets).get(&id).cloned();
            match known.filter(|t| t.subscription == s) {
                Some(same) => targets.push(same),
                None => match Target::new(s.clone(), &self.keyring) {
                    Ok(target) => targets.push(Arc::new(target)),
                    Err(e) => {
                        tracing::error!(
                            subscription.id = %id, error.message = %e,
                            "subscription can't be used"
                        );
                        unusable.push(s);
                    }
                },
            }
        }
        let mut by_id = write(&self.targets);
        if let Some(before) = read(&self.subscriptions).get(&tenant) {
            for t in &before.targets {
                by_id.remove(&t.subscription.id);
            }
        }
        for t in &targets {
            by_id.insert(t.subscription.id, t.clone());
        }
        drop(by_id);
        let revision = list.revision;
        write(&self.subscriptions).insert(
            tenant,
            Arc::new(Subscriptions {
                revision,
                targets,
                unusable,
            }),
        );
    }

    /// Computes what is in force anew. The lock makes the last one to do so see
    /// both the last stored switches and the last pins.
    fn renew_switches(&self, changed: Option<Vec<Stored>>) {
        let mut stored = write(&self.stored_switches);
        if let Some(changed) = changed {
            *stored = changed.into_iter().map(|s| (s.name.clone(), s)).collect();
        }
        let pins = self.live.load().pins;
        let switch = |switch: Switch| {
            let pin = pins.of(switch);
            stored
                .get(switch.name())
                .map_or(pin.unwrap_or(false), |s| s.in_force(pin))
        };
        let off = stored
            .values()
            .filter(|s| Switch::find(&s.name).is_none() && !s.in_force(None));
        self.in_force.store(Arc::new(InForce {
            switches: Switches {
                api: switch(Switch::Api),
                canary_only: switch(Switch::CanaryOnly),
                webhooks: switch(Switch::Webhooks),
                delivery: switch(Switch::Delivery),
            },
            off: off.map(|s| s.name.clone()).collect(),
            revision: stored.values().map(|s| s.rev).max().unwrap_or(0),
        }));
    }

    /// What is in force on this node: the emergency stop, else a pin, else what
    /// is stored, else the default.
    #[must_use]
    pub fn in_force(&self) -> arc_swap::Guard<Arc<InForce>> {
        self.in_force.load()
    }

    /// The four switches in force.
    #[must_use]
    pub fn switches(&self) -> Switches {
        self.in_force.load().switches
    }

    /// The stored switches, and the revision that they are of.
    #[must_use]
    pub fn stored_switches(&self) -> (HashMap<String, Stored>, i64) {
        let stored = read(&self.stored_switches).clone();
        (stored, *self.revision.borrow())
    }

    /// The key that a caller's text proves, whatever its state. An unknown id
    /// costs the same as a known one.
    ///
    /// # Errors
    /// `KEY_MALFORMED`, `KEY_INVALID`.
    pub fn authenticate(&self, text: &str, now: Micros) -> Result<Arc<KeyEntry>> {
        let entry = match key::parse(text) {
            Ok(parsed) => self.prove(parsed.id, parsed.kind, &parsed.secret, now),
            Err(NotAKey::Malformed) => {
                return Err(Error::new(
                    Reason::KeyMalformed,
                    "the credential is not of a key's form, or its checksum does not match",
                ));
            }
            Err(NotAKey::WholeText) => {
                let digest = self.keyring.hash(text).digest;
                let id = read(&self.whole_texts).get(&digest).copied();
                id.and_then(|id| self.key(id)).filter(|e| e.key.whole_text)
            }
        };
        entry.ok_or_else(no_such_key)
    }

    fn prove(
        &self,
        id: KeyId,
        kind: key::Kind,
        secret: &str,
        now: Micros,
    ) -> Option<Arc<KeyEntry>> {
        let entry = self.key(id);
        // Of an unknown key a digest is computed and compared all the same.
        let nothing = key::Hashed {
            pepper: 0,
            digest: [0; 32],
        };
        let stored = entry.as_ref().map_or(nothing, |e| e.key.secret);
        let digest = self.keyring.digest(stored.pepper, secret);
        let current = digest.ct_eq(&stored.digest);
        let previous = entry
            .as_ref()
            .and_then(|e| e.key.previous)
            .is_some_and(|p| {
                let digest = if p.hash.pepper == stored.pepper {
                    digest
                } else {
                    self.keyring.digest(p.hash.pepper, secret)
                };
                p.hash.matches(&digest) && now < p.until
            });
        let entry = entry.filter(|e| e.key.kind == kind && !e.key.whole_text)?;
        if bool::from(current) {
            if entry.key.previous.is_some() {
                let _ = entry.uses.new_secret_first.compare_exchange(
                    0,
                    now,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            }
            Some(entry)
        } else {
            previous.then_some(entry)
        }
    }

    /// The key for which another node calls, if that credential is a node's.
    #[must_use]
    pub fn key_through_node(&self, text: &str, now: Micros) -> Option<Arc<KeyEntry>> {
        self.key(self.keyring.read_node_credential(text, now)?)
    }

    /// A key by its id.
    #[must_use]
    pub fn key(&self, id: KeyId) -> Option<Arc<KeyEntry>> {
        read(&self.keys).get(&id).cloned()
    }

    /// When a key was last used, and when its rotation's new secret first was;
    /// as this node knows it, 0 where it does not.
    #[must_use]
    pub fn uses(&self, id: KeyId) -> (Micros, Micros) {
        self.key(id).map_or((0, 0), |e| {
            (
                e.uses.last.load(Ordering::Relaxed),
                e.uses.new_secret_first.load(Ordering::Relaxed),
            )
        })
    }

    async fn flush_uses(&self) {
        let used: Vec<(Arc<Uses>, KeyUse)> = read(&self.keys)
            .values()
            .filter(|e| e.uses.last.load(Ordering::Relaxed) > e.uses.stored.load(Ordering::Relaxed))
            .map(|e| {
                let u = KeyUse {
                    id: e.key.id,
                    last_used: e.uses.last.load(Ordering::Relaxed),
                    new_secret_first_used: e.uses.new_secret_first.load(Ordering::Relaxed),
                };
                (e.uses.clone(), u)
            })
            .collect();
        for chunk in used.chunks(1000) {
            let rows: Vec<KeyUse> = chunk.iter().map(|(_, u)| *u).collect();
            if let Err(e) = self.store.note_key_use(&rows).await {
                tracing::debug!(error.message = %e, "key uses not stored");
                return;
            }
            for (uses, u) in chunk {
                uses.stored.store(u.last_used, Ordering::Relaxed);
            }
        }
    }

    /// A tenant by its name or its id.
    #[must_use]
    pub fn tenant(&self, text: &str) -> Option<Arc<Tenant>> {
        let id = match text.parse() {
            Ok(id) => id,
            Err(_) => *read(&self.tenant_names).get(text)?,
        };
        self.tenant_by_id(id)
    }

    /// A tenant by its id.
    #[must_use]
    pub fn tenant_by_id(&self, id: TenantId) -> Option<Arc<Tenant>> {
        read(&self.tenants).get(&id).cloned()
    }

    /// A tenant's name, for answers.
    #[must_use]
    pub fn tenant_name(&self, id: TenantId) -> String {
        self.tenant_by_id(id)
            .map_or_else(|| id.to_string(), |t| t.name.clone())
    }

    /// A tenant's subscriptions.
    #[must_use]
    pub fn subscriptions(&self, tenant: TenantId) -> Arc<Subscriptions> {
        read(&self.subscriptions)
            .get(&tenant)
            .cloned()
            .unwrap_or_default()
    }

    /// A tenant's registered event type.
    #[must_use]
    pub fn event_type(&self, tenant: TenantId, name: &str) -> Option<Arc<Registered>> {
        read(&self.event_types).get(&tenant)?.get(name).cloned()
    }

    /// Shows every key to `see`.
    pub fn each_key(&self, mut see: impl FnMut(&Key)) {
        read(&self.keys).values().for_each(|e| see(&e.key));
    }

    /// Shows every subscription to `see`.
    pub fn each_target(&self, mut see: impl FnMut(&Target)) {
        read(&self.targets).values().for_each(|t| see(t));
    }

    /// The partitions that tenants are in.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let parts: BTreeSet<Part> = read(&self.tenants).keys().map(|t| t.part()).collect();
        parts.into_iter().collect()
    }

    /// A subscription, ready to be sent to.
    #[must_use]
    pub fn target(&self, id: SubscriptionId) -> Option<Arc<Target>> {
        read(&self.targets).get(&id).cloned()
    }
}
