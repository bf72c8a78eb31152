//! The store: one contract, two engines. Each doc comment here is a promise
//! that the contract suite (`tests/store.rs`) checks on both.
//!
//! Verbs are atomic. What they are told of time is a duration; the points in
//! time that leases, sessions and due times hang on are the database's own.
//! No transaction is open between two verbs.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::domain::{
    audit::{Chain, Hash, Head, Record},
    delivery::{Attempt, AttemptKind, Delivery, Status},
    event::Idempotency,
    event_type::EventType,
    id::{DeliveryId, EventId, EventTypeId, KeyId, Micros, Part, SubscriptionId, TenantId},
    key::Key,
    limit::{Answer, Ask, Window},
    subscription::{Ordering, Subscription},
    switch::{Change, Stored},
    tenant::Tenant,
    timeline::Timeline,
    trace::Trace,
};

mod connect;
pub mod postgres;
pub mod sqlite;

mod migrations;
mod redrives;
mod rows;

pub use connect::{Database, connect};
pub use redrives::{COUNTED, Letters, Moved, Past, PastEvent, RedriveStore, Standing, Step};

/// Why a verb failed. Nothing of what it was to do is done, unless it says so.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database can't be reached, or gave up on the statement. It is not
    /// known whether the statement was carried out.
    #[error("the database can't be reached: {0}")]
    Unavailable(String),
    /// A row of that name or id exists.
    #[error("{0} exists")]
    Exists(&'static str),
    /// The row was changed since it was read, or is gone.
    #[error("changed since it was read")]
    Conflict,
    /// A quota does not allow another row.
    #[error("the quota of {0} is used up")]
    Quota(i64),
    /// The database refused a value.
    #[error("the database refused a value: {0}")]
    Data(String),
    /// The database is not one of ours, or of another version.
    #[error("{0}")]
    Unfit(String),
}

/// What a verb answers.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A running node, by the number of its session. Numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Session(pub i64);

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One page of a list, newest first.
#[derive(Debug, Clone, Copy)]
pub struct Page<Id> {
    /// Only rows older than this one.
    pub before: Option<Id>,
    /// How many rows at the most.
    pub limit: i64,
}

/// What changed in the configuration since a revision.
#[derive(Debug, Default)]
pub struct Changes {
    /// The revision that this brings its reader to.
    pub revision: i64,
    /// Every tenant that was made.
    pub tenants: Vec<Tenant>,
    /// Every key that was made or changed.
    pub keys: Vec<Key>,
    /// The ids of every key and event type that was deleted.
    pub deleted: Vec<uuid::Uuid>,
    /// Every event type that was made or changed.
    pub event_types: Vec<EventType>,
    /// The whole list of subscriptions of each tenant in which one changed.
    pub subscriptions: Vec<TenantSubscriptions>,
    /// Every stored switch.
    pub switches: Vec<Stored>,
}

/// A tenant's subscriptions at one revision.
#[derive(Debug, Default, Clone)]
pub struct TenantSubscriptions {
    /// The tenant.
    pub tenant: Option<TenantId>,
    /// The revision of this list: a publish that was matched against an older
    /// one is refused as stale.
    pub revision: i64,
    /// The subscriptions.
    pub subscriptions: Vec<Subscription>,
}

/// A key that the store keeps sealed with the master key: peppers, and the key
/// that subscriptions' secrets are sealed with.
#[derive(Debug, Clone)]
pub struct SealedKey {
    /// `pepper`, `data` or `audit`.
    pub purpose: String,
    /// Counts up with each new key of the purpose.
    pub version: i32,
    /// The key, sealed.
    pub sealed: Vec<u8>,
}

/// What a node reads its configuration from. Every change of a tenant, a key, a
/// subscription, an event type or a switch increments the one configuration revision in its
/// own transaction, and tells the other nodes ([`Hint::Config`]).
#[async_trait]
pub trait ConfigStore: Send + Sync {
    /// The configuration's revision.
    async fn revision(&self) -> Result<i64>;

    /// What changed after `since`, as of one revision; everything for 0.
    async fn changes(&self, since: i64) -> Result<Changes>;

    /// Every sealed key.
    async fn sealed_keys(&self) -> Result<Vec<SealedKey>>;

    /// Adds a sealed key. [`StoreError::Exists`] where another node was faster.
    async fn add_sealed_key(&self, key: &SealedKey) -> Result<()>;

    /// Replaces the seals of all these keys together.
    async fn reseal(&self, keys: &[SealedKey]) -> Result<()>;
}

/// Switches, and the audit log of what was changed.
#[async_trait]
pub trait SwitchStore: Send + Sync {
    /// Changes these switches together, with a record for each in the audit log,
    /// in the order in which they are named. [`StoreError::Conflict`] where
    /// [`Change::Lift`] finds one that is not stopped.
    async fn change_switches(
        &self,
        names: &[&str],
        change: Change,
        by: Author<'_>,
        chain: &Chain,
    ) -> Result<Changed>;

    /// Records of the audit log whose action begins so, newest first; of one
    /// target where one is named.
    async fn audit(
        &self,
        action: &str,
        target: Option<&str>,
        page: Page<i64>,
    ) -> Result<Vec<Record>>;

    /// Reads the whole audit log from its first record on, all of it as of one
    /// moment, and what there is to compare it with.
    async fn read_audit(&self, each: &mut (dyn FnMut(Record) + Send)) -> Result<AuditEnd>;
}

/// Who changes something, and why.
#[derive(Debug, Clone, Copy)]
pub struct Author<'a> {
    /// A key's id.
    pub actor: &'a str,
    /// The reason that was given.
    pub reason: &'a str,
}

/// Switches that were changed.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The configuration's revision from which on it holds.
    pub revision: i64,
    /// The switches as they are now, in the order in which they were named.
    pub switches: Vec<Stored>,
    /// The number of the last record that tells of it.
    pub sequence: i64,
    /// That record's hash.
    pub hash: Hash,
}

/// What the audit log is compared with, as of the moment that it was read.
#[derive(Debug, Clone)]
pub struct AuditEnd {
    /// What tells which record is the last one; none in an empty log.
    pub head: Option<Head>,
    /// Every stored switch.
    pub switches: Vec<Stored>,
}

/// Tenants.
#[async_trait]
pub trait TenantStore: Send + Sync {
    /// Makes a tenant. [`StoreError::Exists`] where its name is taken.
    async fn create_tenant(&self, tenant: &Tenant) -> Result<()>;

    /// Lists tenants, newest first.
    async fn list_tenants(&self, page: Page<TenantId>) -> Result<Vec<Tenant>>;
}

/// API keys.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// Makes a key.
    async fn create_key(&self, key: &Key) -> Result<()>;

    /// Makes these keys together, or none of them.
    async fn create_keys(&self, keys: &[Key]) -> Result<()>;

    /// Makes the first admin key. [`StoreError::Exists`] where there is an
    /// admin key already, also when two nodes try at the same time.
    async fn create_first_admin_key(&self, key: &Key) -> Result<()>;

    /// Reads a key.
    async fn get_key(&self, id: KeyId) -> Result<Option<Key>>;

    /// Lists keys, newest first; of one tenant where one is named.
    async fn list_keys(&self, tenant: Option<TenantId>, page: Page<KeyId>) -> Result<Vec<Key>>;

    /// Writes a key that was read with `updated_at`.
    /// [`StoreError::Conflict`] where it was changed since.
    async fn update_key(&self, key: &Key, updated_at: Micros) -> Result<()>;

    /// Deletes a key; whether there was one.
    async fn delete_key(&self, id: KeyId) -> Result<bool>;

    /// Notes when keys were last used, and when a rotation's new secret was
    /// first used. Apart from the keys' rows: it changes no revision.
    async fn note_key_use(&self, used: &[KeyUse]) -> Result<()>;

    /// When a key was last used.
    async fn key_use(&self, id: KeyId) -> Result<Option<KeyUse>>;
}

/// Registered event types.
#[async_trait]
pub trait EventTypeStore: Send + Sync {
    /// Registers an event type, unless its tenant has one of that name
    /// ([`StoreError::Exists`]) or `quota` of them ([`StoreError::Quota`]).
    async fn create_event_type(&self, event_type: &EventType, quota: i64) -> Result<()>;

    /// Reads an event type by its name.
    async fn get_event_type(&self, tenant: TenantId, name: &str) -> Result<Option<EventType>>;

    /// Reads an event type.
    async fn event_type_by_id(&self, id: EventTypeId) -> Result<Option<EventType>>;

    /// Lists a tenant's event types, newest first.
    async fn list_event_types(
        &self,
        tenant: TenantId,
        page: Page<EventTypeId>,
    ) -> Result<Vec<EventType>>;

    /// Writes the description and the schema of an event type that was read with
    /// `updated_at`. [`StoreError::Conflict`] where it was changed since.
    async fn update_event_type(&self, event_type: &EventType, updated_at: Micros) -> Result<()>;

    /// Deletes an event type; whether there was one.
    async fn delete_event_type(&self, id: EventTypeId) -> Result<bool>;
}

/// Webhook subscriptions. Every change also increments its tenant's revision.
#[async_trait]
pub trait SubscriptionStore: Send + Sync {
    /// Makes a subscription, unless its tenant has `quota` of them
    /// ([`StoreError::Quota`]). Its lifetime begins.
    async fn create_subscription(&self, subscription: &Subscription, quota: i64) -> Result<()>;

    /// Reads a subscription.
    async fn get_subscription(&self, id: SubscriptionId) -> Result<Option<Subscription>>;

    /// Lists a tenant's subscriptions, newest first.
    async fn list_subscriptions(
        &self,
        tenant: TenantId,
        page: Page<SubscriptionId>,
    ) -> Result<Vec<Subscription>>;

    /// Writes a subscription that was read with `updated_at`.
    /// [`StoreError::Conflict`] where it was changed since.
    async fn update_subscription(&self, s: &Subscription, updated_at: Micros) -> Result<()>;

    /// Deletes a subscription; whether there was one. Its queued deliveries are
    /// left to [`QueueStore::cancel`].
    async fn delete_subscription(&self, id: SubscriptionId) -> Result<bool>;

    /// Begins the lifetimes of these subscriptions anew, of those that have one
    /// which is not over. Changes no revision.
    async fn prolong_subscriptions(&self, ids: &[SubscriptionId]) -> Result<()>;

    /// Deletes subscriptions whose lifetime is over, at most `limit`; which.
    async fn end_subscriptions(&self, limit: i64) -> Result<Vec<SubscriptionId>>;
}

/// When a key was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUse {
    /// The key.
    pub id: KeyId,
    /// When it was last used.
    pub last_used: Micros,
    /// When the secret of the last rotation was first used; 0: not as far as this
    /// node knows. Of what several nodes note the first counts; a negative number
    /// forgets it, for the next rotation.
    pub new_secret_first_used: Micros,
}

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
    fn order_of(&self, d: &NewDelivery) -> Option<(SubscriptionId, &str)> {
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

/// A delivery that is leased to the asking session.
#[derive(Debug, Clone)]
pub struct Leased {
    /// Its id.
    pub id: DeliveryId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its subscription.
    pub subscription: SubscriptionId,
    /// Its event.
    pub event: EventId,
    /// The event's type.
    pub event_type: String,
    /// The body to send; empty where it is gone, which is never so unless rows were
    /// deleted by hand.
    pub body: Bytes,
    /// Where the event came from.
    pub trace: Option<Trace>,
    /// The fence: every lease of the row increments it, every completion checks it.
    pub token: i32,
    /// Attempts charged so far.
    pub attempts: u16,
    /// How often its signature was too old.
    pub replays: u16,
    /// Whether this is a retry by hand.
    pub by_hand: bool,
    /// Its age without what its partition was held, in microseconds; its
    /// subscription's held time is still in it.
    pub age: Micros,
    /// The key whose deliveries go in order; none where it goes for itself.
    pub ordering_key: Option<Arc<str>>,
}

/// The bytes of bodies that a claim brings, but for what the last of each
/// subscription has beyond.
const CLAIM_BYTES: i64 = 16 << 20;

/// The bytes of bodies with which each subscription of a claim has enough.
#[must_use]
pub fn claim_share(wants: &[Want]) -> i64 {
    CLAIM_BYTES / i64::try_from(wants.len().max(1)).unwrap_or(i64::MAX)
}

/// A subscription that has deliveries which go in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ordered {
    /// The partition.
    pub part: Part,
    /// The subscription.
    pub subscription: SubscriptionId,
    /// Whether a dead one blocks some key.
    pub blocks: bool,
    /// Whether some key is parked.
    pub parks: bool,
}

/// How many due deliveries of a subscription to claim.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// The partition.
    pub part: Part,
    /// The subscription.
    pub subscription: SubscriptionId,
    /// How many at the most.
    pub limit: i64,
}

/// A subscription that has queued deliveries which nobody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The partition.
    pub part: Part,
    /// The subscription.
    pub subscription: SubscriptionId,
    /// How long until the first of them is due.
    pub due_in: Duration,
}

/// What becomes of a delivery's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// It is finished with that status: to the history.
    Done(Status),
    /// It is given up, with that status: to the dead letters.
    Dead(Status),
    /// Due again after that time.
    Retry {
        /// How long.
        after: Duration,
        /// Whether the attempt counts.
        charged: bool,
    },
    /// The last attempt failed; dead after that time.
    Failed(Duration),
    /// Unleased, and as before.
    Release,
}

/// An attempt's end, to be recorded.
#[derive(Debug, Clone)]
pub struct Finish {
    /// The delivery.
    pub id: DeliveryId,
    /// The token that it was leased under.
    pub token: i32,
    /// What becomes of it.
    pub settle: Settle,
    /// Why it is not delivered; empty where it is.
    pub reason: String,
    /// The attempt; none where nothing was tried. Its times are its node's, and
    /// for people to read; nothing is decided by them.
    pub attempt: Option<Attempt>,
    /// What of its age is no latency, beside the time that its partition was
    /// held: for how long its subscription was off, and the time since the
    /// attempt's end.
    pub held: Micros,
    /// Whether it has an ordering key, which its end may free for the next one. To
    /// say so without need costs time; not to say so, that this may have to be
    /// repeated where others wait for the same keys.
    pub ordered: bool,
}

impl Finish {
    /// Whether the attempt needs a row of its own: a first attempt that
    /// succeeded is told by the delivery's own row.
    #[must_use]
    pub fn keeps_attempt(&self) -> bool {
        self.attempt
            .as_ref()
            .is_some_and(|a| a.number > 1 || a.kind != AttemptKind::Delivered)
    }
}

/// Whether a finish took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// Now.
    Now,
    /// Already, under the same token: its answer was lost.
    Before,
    /// No: the lease is another's by now.
    Stale,
}

/// The queue: what is accepted and not finished.
#[async_trait]
pub trait QueueStore: Send + Sync {
    /// Commits events together with their deliveries, each event for itself; all
    /// in one commit. A repetition of an idempotency key within 24 hours commits
    /// nothing, also when both come together, in one batch or from two nodes.
    ///
    /// Of a subscription's ordered deliveries with the same key one is the head, and
    /// the only one that can be claimed: first the one that was published first, by
    /// the order of the batch and of the commits, whichever nodes publish. Once
    /// the head is delivered or cancelled the next one is. When it dies, what follows
    /// is as its subscription's [`Ordering`] says at that moment.
    async fn publish(&self, session: Session, batch: &[Publish]) -> Result<Vec<Published>>;

    /// Leases due deliveries of these subscriptions to the session, earliest
    /// first. Gives nothing of a partition that the session does not own, and
    /// nothing to a session that has ended. Of a subscription it gives no more
    /// once the bodies have [`claim_share`] bytes: fewer than wanted mean that no
    /// more are due only where there are fewer bytes.
    async fn claim(&self, session: Session, wants: &[Want]) -> Result<Vec<Leased>>;

    /// Records attempts' ends. A row whose token differs is left alone.
    async fn finish(&self, batch: &[Finish]) -> Result<Vec<Finished>>;

    /// Which subscriptions of these partitions have deliveries that nobody holds
    /// and that will be due.
    async fn waiting(&self, parts: &[Part]) -> Result<Vec<Waiting>>;

    /// Everything that is leased to the session, with its token.
    async fn leases(&self, session: Session) -> Result<Vec<(DeliveryId, i32)>>;

    /// Frees what is leased to sessions that have ended, in these partitions;
    /// how many rows. Their old tokens are good for nothing any more.
    async fn free_lost(&self, parts: &[Part]) -> Result<u64>;

    /// Moves to the dead letters what `FAILED` and was not saved in time, at most
    /// `limit` rows; which.
    async fn bury(&self, parts: &[Part], limit: i64) -> Result<Vec<Buried>>;

    /// Finishes as `CANCELLED` what is queued for a subscription and not leased;
    /// how many rows, at most `limit`.
    async fn cancel(&self, part: Part, subscription: SubscriptionId, limit: i64) -> Result<u64>;

    /// Makes dead what has waited for a subscription for longer than `age`; how
    /// many rows, at most `limit`.
    async fn give_up(
        &self,
        part: Part,
        subscription: SubscriptionId,
        age: Duration,
        limit: i64,
    ) -> Result<u64>;

    /// Which subscriptions of these partitions have deliveries that go in order.
    async fn ordered(&self, parts: &[Part]) -> Result<Vec<Ordered>>;

    /// Brings what waits for a subscription in line with its ordering: off frees
    /// all of it, skip lets the keys go on that a dead one blocks, and the others
    /// say how those are blocked. How many rows or keys were changed, at most
    /// `limit`; fewer mean that nothing is left to do.
    async fn reorder(
        &self,
        part: Part,
        subscription: SubscriptionId,
        ordering: Ordering,
        limit: i64,
    ) -> Result<u64>;

    /// Makes dead what was published, and has been parked with its key, more than
    /// `age` ago; how many rows, at most `limit`.
    async fn give_up_parked(
        &self,
        part: Part,
        subscription: SubscriptionId,
        age: Duration,
        limit: i64,
    ) -> Result<u64>;

    /// Lets the deliveries behind a dead one, which blocks its ordering key, go on
    /// without it; whether it did block.
    async fn skip(&self, id: DeliveryId) -> Result<bool>;

    /// Makes a delivery due now: one that waits keeps its attempts, one that is
    /// failed or dead gets one more, and its age begins again. One that waits behind
    /// another of its ordering key still waits for its turn; a dead one that
    /// blocks its key is the next to be sent. None where there is no such delivery;
    /// otherwise its status from before, which is unchanged where it is neither
    /// waiting nor dead.
    async fn retry_by_hand(&self, id: DeliveryId) -> Result<Option<Status>>;
}

/// A delivery that became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buried {
    /// The delivery.
    pub id: DeliveryId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its subscription.
    pub subscription: SubscriptionId,
    /// Its event's type; empty where that is gone.
    pub event_type: String,
    /// Why it is dead.
    pub reason: String,
}

/// What is known of a subscription's receiver. Durations count back from when it was
/// read, or is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverState {
    /// The subscription.
    pub subscription: SubscriptionId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Counts up with each write; the first has 1.
    pub generation: i64,
    /// Failures in a row.
    pub failures: u32,
    /// Set while its breaker is not closed.
    pub open: Option<Opening>,
    /// The last times in which its breaker was not closed, oldest first, on a clock
    /// that stands still while the partition is held.
    pub outages: Vec<Outage>,
    /// For how long there has been one now, on the same clock.
    pub outage: Option<Duration>,
    /// For how long nothing was delivered of what was tried, on the same clock.
    pub failing: Option<Duration>,
    /// Whether its owner was told of that.
    pub warned: bool,
    /// Whether the receiver asked for patience with a 503 in this outage.
    pub asked: bool,
}

/// A breaker that is not closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// How long ago it opened.
    pub ago: Duration,
    /// How long until the receiver is asked again; 0: it may be asked.
    pub left: Duration,
}

/// An outage that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// How long ago it began.
    pub began: Duration,
    /// How long ago it ended.
    pub ended: Duration,
}

/// What is known of receivers: breakers that are open, and since when nothing was
/// delivered. What belongs to a deleted subscription goes with it.
#[async_trait]
pub trait BreakerStore: Send + Sync {
    /// Writes a state in place of the one whose generation is one less; none for the
    /// first. Whether it is written: not where the session does not own the
    /// partition, another generation is stored, or there is no such subscription. The
    /// same generation again is written already and changes nothing. `opened` counts a
    /// breaker that opened, in the same commit.
    async fn save_receiver(
        &self,
        session: Session,
        state: &ReceiverState,
        opened: bool,
    ) -> Result<bool>;

    /// What is known of all receivers in these partitions.
    async fn receivers_in(&self, parts: &[Part]) -> Result<Vec<ReceiverState>>;

    /// What is known of these subscriptions' receivers.
    async fn receivers(&self, subscriptions: &[SubscriptionId]) -> Result<Vec<ReceiverState>>;

    /// A receiver works again. What `FAILED` gets one more attempt, due now; what waits
    /// to be tried again after a 5xx, a timeout or a connection that failed is due
    /// now, with its attempts as they are; but not after a 503 where `asked`. How
    /// many rows, at most `limit`.
    async fn revive(
        &self,
        part: Part,
        subscription: SubscriptionId,
        asked: bool,
        limit: i64,
    ) -> Result<u64>;
}

/// Nodes and which partitions they own.
#[async_trait]
pub trait NodeStore: Send + Sync {
    /// Begins a session that lives for `ttl` unless it is renewed.
    async fn begin_session(&self, name: &str, ttl: Duration) -> Result<Session>;

    /// Renews a session; false where it has ended already.
    async fn renew_session(&self, session: Session, ttl: Duration) -> Result<bool>;

    /// Ends a session: its partitions are without an owner, and then its leases
    /// free.
    async fn end_session(&self, session: Session) -> Result<()>;

    /// Notes whether partitions may be handed over to a session; not at its
    /// beginning. Tells the other nodes ([`Hint::Partitions`]).
    async fn set_ready(&self, session: Session, ready: bool) -> Result<()>;

    /// Every partition, with the live session that owns it; session 0 where
    /// there is none.
    async fn partitions(&self) -> Result<Vec<(Part, Session)>>;

    /// Takes those of these partitions that no live session owns, and frees what
    /// their last owners held. Answers all that the session owns now.
    async fn take_partitions(&self, session: Session, among: &[Part]) -> Result<Vec<Part>>;

    /// Hands partitions that the session owns over to another one, and tells it
    /// ([`Hint::Partitions`]); which ones: none where either of them has ended.
    /// What is leased in them stays leased to whom it is.
    async fn hand_over(&self, session: Session, to: Session, parts: &[Part]) -> Result<Vec<Part>>;

    /// Begins or ends the time in which deliveries of these partitions are held
    /// on purpose. Doing it twice changes nothing.
    async fn hold(&self, session: Session, parts: &[Part], held: bool) -> Result<()>;

    /// Notes which revision of the configuration a node has in force, and which
    /// switches its environment pins, with commas between them. Nothing of a
    /// session that has ended.
    async fn confirm(&self, session: Session, revision: i64, pins: &str) -> Result<()>;

    /// Every session that lives, in the order in which they began.
    async fn nodes(&self) -> Result<Vec<LiveNode>>;

    /// Tells the owners of partitions that subscriptions have something due. A
    /// hint: it may be lost.
    async fn hint(&self, hints: &[(Part, SubscriptionId)]) -> Result<()>;

    /// Waits for hints. [`Hint::Reconnected`] means that some may be lost.
    async fn listen(&self) -> Result<Box<dyn Hints>>;
}

/// How far the database has come, so that one that went back in time is known.
#[async_trait]
pub trait TimelineStore: Send + Sync {
    /// How far it has come.
    async fn timeline(&self) -> Result<Timeline>;

    /// The database's clock.
    async fn now(&self) -> Result<Micros>;

    /// The server that it runs on, as far as that tells it from a copy; empty where
    /// nothing tells.
    async fn server(&self) -> Result<String>;

    /// Moves the mark on: to the database's clock where that is later, else by one.
    /// Notes the server where none is noted.
    async fn advance_timeline(&self) -> Result<Timeline>;

    /// Notes why deliveries are held, unless something is noted already.
    async fn note_restored(&self, why: &str) -> Result<()>;

    /// Begins another timeline, now and on the server that it runs on: deliveries are
    /// no longer held.
    async fn accept_restored(&self) -> Result<Timeline>;
}

/// A session that lives, and what its node noted last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveNode {
    /// The session.
    pub session: Session,
    /// The node's name.
    pub name: String,
    /// The revision that it has in force; 0 where it noted none.
    pub revision: i64,
    /// The switches that its environment pins, with commas between them.
    pub pins: String,
    /// Whether partitions may be handed over to it.
    pub ready: bool,
}

/// Where nodes reach each other.
#[async_trait]
pub trait PeerStore: Send + Sync {
    /// Notes under which URL other nodes reach that session's node. Nothing of a
    /// session that has ended.
    async fn advertise(&self, session: Session, url: &str) -> Result<()>;

    /// Every session that lives and has a URL, in the order in which they began.
    async fn peers(&self) -> Result<Vec<(Session, String)>>;
}

/// What a node is told by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// A subscription has something due.
    Due(Part, SubscriptionId),
    /// The configuration changed.
    Config,
    /// Nodes or the partitions that they own changed.
    Partitions,
    /// The connection was lost in between.
    Reconnected,
}

/// A stream of hints.
#[async_trait]
pub trait Hints: Send {
    /// The next hint.
    async fn next(&mut self) -> Result<Hint>;
}

/// What was accepted, finished and given up.
#[async_trait]
pub trait HistoryStore: Send + Sync {
    /// An event with its tenant, type and body.
    async fn get_event(&self, id: EventId) -> Result<Option<StoredEvent>>;

    /// A delivery, wherever it is.
    async fn get_delivery(&self, id: DeliveryId) -> Result<Option<Delivery>>;

    /// A subscription's deliveries, newest first.
    async fn deliveries_of_subscription(
        &self,
        id: SubscriptionId,
        status: Option<Status>,
        page: Page<DeliveryId>,
    ) -> Result<Vec<Delivery>>;

    /// An event's deliveries, newest first.
    async fn deliveries_of_event(
        &self,
        id: EventId,
        status: Option<Status>,
        page: Page<DeliveryId>,
    ) -> Result<Vec<Delivery>>;

    /// A delivery's attempts, first one first.
    async fn attempts(&self, id: DeliveryId) -> Result<Vec<Attempt>>;

    /// Makes room for the days around now, so that no publish finds none.
    async fn prepare_days(&self) -> Result<()>;

    /// Forgets what is older than `days` days: events, finished deliveries,
    /// attempts, idempotency keys. Bodies that something queued or dead still
    /// needs are kept. At most about `limit` rows at a time where rows are
    /// deleted one by one; how many more there may be.
    async fn forget(&self, days: i32, limit: i64) -> Result<Forgotten>;

    /// Writes how much the session accepted, absolute for a tenant and a day.
    async fn note_usage(&self, session: Session, usage: &[Usage]) -> Result<()>;

    /// Bytes stored of each tenant, over all sessions and days that are kept.
    async fn stored_bytes(&self) -> Result<Vec<(TenantId, i64)>>;
}

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its id.
    pub id: EventId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its type.
    pub event_type: String,
    /// The body that every attempt sends.
    pub body: Bytes,
}

/// How far [`HistoryStore::forget`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgotten {
    /// Nothing is left to forget.
    All,
    /// There may be more.
    Some,
}

/// What a session accepted of a tenant on one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The tenant.
    pub tenant: TenantId,
    /// The day, counted from the Unix epoch.
    pub day: i32,
    /// How many events.
    pub events: i64,
    /// How many bytes of bodies.
    pub bytes: i64,
}

/// Counters of deliveries. Every verb that changes deliveries adds to them in
/// its own transaction, by the rows that it really changed: at any time they
/// say the same as a count of the rows, and for the last 24 hours what happened.
/// The codes are those of [`counter`](crate::domain::counter).
#[async_trait]
pub trait CounterStore: Send + Sync {
    /// What was counted in a partition, of one tenant or of all: each minute
    /// since `from` apart, what was before and is still kept as one. All of it as
    /// of one state of the store.
    async fn counts(&self, part: Part, tenant: Option<TenantId>, from: i64) -> Result<Vec<Count>>;

    /// What was counted in each minute since `from`, over all partitions, and the
    /// store's clock.
    async fn counts_since(&self, from: i64) -> Result<(Micros, Vec<Count>)>;

    /// Adds up what was counted in minutes that no figure needs any more by
    /// itself, in these partitions; how many rows it took up, at most `limit`.
    async fn add_up(&self, parts: &[Part], limit: i64) -> Result<u64>;

    /// The delivery published first of all that are not finished.
    async fn oldest_unfinished(&self, tenant: Option<TenantId>) -> Result<Option<DeliveryId>>;

    /// Deliveries over many subscriptions, newest first.
    async fn recent_deliveries(
        &self,
        recent: &Recent,
        page: Page<DeliveryId>,
    ) -> Result<Vec<Delivery>>;
}

/// A count of one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count {
    /// The minute that it was counted in, from the Unix epoch; none: some time
    /// before.
    pub minute: Option<i64>,
    /// The code.
    pub what: i16,
    /// How much.
    pub n: i64,
}

/// Which deliveries are listed.
#[derive(Debug, Clone, Default)]
pub struct Recent {
    /// In these partitions; a tenant's own where one is named.
    pub parts: Vec<Part>,
    /// Of this tenant only.
    pub tenant: Option<TenantId>,
    /// The subscriptions of that tenant: what was delivered to others is left out.
    pub subscriptions: Vec<SubscriptionId>,
    /// With this status only.
    pub status: Option<Status>,
    /// Subscriptions that are off: what waits for them is `PARKED`.
    pub parked: Vec<SubscriptionId>,
}

/// For benchmarks: a history without the time that it takes to make one.
#[async_trait]
pub trait LoadStore: Send + Sync {
    /// Writes events that became one finished delivery each, with their counters.
    async fn load_finished(&self, load: &Load) -> Result<()>;

    /// What the database does by itself in time: gathers what it plans with.
    async fn analyze(&self) -> Result<()>;
}

/// Finished deliveries to be written.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Their tenant.
    pub tenant: TenantId,
    /// Their subscription.
    pub subscription: SubscriptionId,
    /// When the first was published, and delivered.
    pub from: Micros,
    /// How long after each the next was.
    pub step: Micros,
    /// How many.
    pub count: i64,
    /// Every so many of them is a dead letter; 0: none.
    pub dead_every: i64,
}

/// What keys were lent of their limits.
#[async_trait]
pub trait LimitStore: Send + Sync {
    /// Decides on each of these asks, each of another key, and keeps what is
    /// lent before it answers. However many nodes ask at once, no trailing hour
    /// holds more than a key's limit, on the database's clock
    /// ([`Window::lend`]). All are in one commit.
    async fn lend(&self, asks: &[Ask]) -> Result<Vec<Answer>>;

    /// All that still counts, of every key, and the store's clock.
    async fn limit_windows(&self) -> Result<(Micros, Vec<(KeyId, Window)>)>;

    /// Drops the windows in which nothing counts any more; how many.
    async fn forget_limit_windows(&self) -> Result<u64>;

    /// How many sessions live.
    async fn live_sessions(&self) -> Result<i64>;
}

/// What calls are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counted {
    /// A tier, in minutes.
    Tier(String),
    /// A tenant's tier, in hours.
    Tenant(TenantId, String),
    /// A key, in hours.
    Key(KeyId),
}

/// How many calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    /// Admitted.
    pub admitted: i64,
    /// Refused for a limit.
    pub limited: i64,
    /// Refused for their credential.
    pub refused: i64,
}

/// What a session counted in a minute or an hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallCount {
    /// What was counted.
    pub counted: Counted,
    /// The minute or hour, counted from the Unix epoch.
    pub bucket: i64,
    /// How many, from the bucket's beginning on.
    pub calls: Calls,
}

/// What was called, for figures.
#[async_trait]
pub trait CallStore: Send + Sync {
    /// Writes what the session counted. The numbers are absolute: to write them
    /// twice changes nothing.
    async fn note_calls(&self, session: Session, counts: &[CallCount]) -> Result<()>;

    /// What sessions other than `but` wrote at `since` or later on the store's
    /// clock, and that clock. What was counted more than 25 hours ago may be
    /// left out.
    async fn calls(
        &self,
        since: Micros,
        but: Session,
    ) -> Result<(Micros, Vec<(Session, CallCount)>)>;

    /// Drops what was counted more than 25 hours ago; how many rows.
    async fn forget_calls(&self) -> Result<u64>;
}

/// The whole contract.
#[async_trait]
pub trait Store:
    ConfigStore
    + SwitchStore
    + TenantStore
    + KeyStore
    + SubscriptionStore
    + EventTypeStore
    + QueueStore
    + BreakerStore
    + NodeStore
    + TimelineStore
    + PeerStore
    + HistoryStore
    + LimitStore
    + CallStore
    + CounterStore
    + LoadStore
    + RedriveStore
{
    /// The number of the last migration that is applied; asks the database.
    async fn applied_migration(&self) -> Result<i64>;

    /// The number of the last migration that this build knows.
    fn expected_migration(&self) -> i64;

    /// Whether other processes may work on the same database.
    fn is_shared(&self) -> bool;

    /// Closes every connection.
    async fn close(&self);

    /// For tests: moves the store's clock by that much from where it is.
    async fn shift_clock(&self, by: Micros) -> Result<()>;
}
