//! What nodes decide by: tenants, keys, event types, subscriptions.

use async_trait::async_trait;

use super::{Page, Result};
use crate::domain::{
    event_type::EventType,
    id::{EventTypeId, KeyId, Micros, SubscriptionId, TenantId},
    key::Key,
    subscription::Subscription,
    switch::Stored,
    tenant::Tenant,
};

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
/// own transaction, and tells the other nodes (`Hint::Config`).
#[async_trait]
pub trait ConfigStore: Send + Sync {
    /// The configuration's revision.
    async fn revision(&self) -> Result<i64>;

    /// What changed after `since`, as of one revision; everything for 0.
    async fn changes(&self, since: i64) -> Result<Changes>;

    /// Every sealed key.
    async fn sealed_keys(&self) -> Result<Vec<SealedKey>>;

    /// Adds a sealed key. `StoreError::Exists` where another node was faster.
    async fn add_sealed_key(&self, key: &SealedKey) -> Result<()>;

    /// Replaces the seals of all these keys together.
    async fn reseal(&self, keys: &[SealedKey]) -> Result<()>;
}

/// Tenants.
#[async_trait]
pub trait TenantStore: Send + Sync {
    /// Makes a tenant. `StoreError::Exists` where its name is taken.
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

    /// Makes the first admin key. `StoreError::Exists` where there is an
    /// admin key already, also when two nodes try at the same time.
    async fn create_first_admin_key(&self, key: &Key) -> Result<()>;

    /// Reads a key.
    async fn get_key(&self, id: KeyId) -> Result<Option<Key>>;

    /// Lists keys, newest first; of one tenant where one is named.
    async fn list_keys(&self, tenant: Option<TenantId>, page: Page<KeyId>) -> Result<Vec<Key>>;

    /// Writes a key that was read with `updated_at`.
    /// `StoreError::Conflict` where it was changed since.
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
    /// (`StoreError::Exists`) or `quota` of them (`StoreError::Quota`).
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
    /// `updated_at`. `StoreError::Conflict` where it was changed since.
    async fn update_event_type(&self, event_type: &EventType, updated_at: Micros) -> Result<()>;

    /// Deletes an event type; whether there was one.
    async fn delete_event_type(&self, id: EventTypeId) -> Result<bool>;
}

/// Webhook subscriptions. Every change also increments its tenant's revision.
#[async_trait]
pub trait SubscriptionStore: Send + Sync {
    /// Makes a subscription, unless its tenant has `quota` of them
    /// (`StoreError::Quota`). Its lifetime begins.
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
    /// `StoreError::Conflict` where it was changed since.
    async fn update_subscription(&self, s: &Subscription, updated_at: Micros) -> Result<()>;

    /// Deletes a subscription; whether there was one. Its queued deliveries are
    /// left to `QueueStore::cancel`.
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
