//! Who makes a call, and on which tenant.

use std::{net::IpAddr, sync::Arc};

use crate::{
    directory::{Directory, KeyEntry},
    domain::{
        id::TenantId,
        key::{Key, Kind},
        tenant::{DEFAULT, Tenant},
    },
    error::{Error, Reason, Result},
};

/// The key that makes a call. Calls that passed the gate carry one in their
/// extensions.
#[derive(Clone)]
pub struct Caller {
    entry: Arc<KeyEntry>,
    through_node: bool,
    address: Option<IpAddr>,
}

impl Caller {
    /// The holder of a proven key, and where it calls from as far as that is known.
    #[must_use]
    pub const fn new(entry: Arc<KeyEntry>, address: Option<IpAddr>) -> Self {
        Self {
            entry,
            through_node: false,
            address,
        }
    }

    /// The holder of a key that another node has proven, for which it calls.
    #[must_use]
    pub const fn through_node(entry: Arc<KeyEntry>) -> Self {
        Self {
            entry,
            through_node: true,
            address: None,
        }
    }

    /// Whether another node calls for it.
    #[must_use]
    pub const fn is_through_node(&self) -> bool {
        self.through_node
    }

    /// Where it calls from as far as that is known.
    #[must_use]
    pub const fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.entry.key
    }

    /// The tenant that a call acts on: the caller's own, or for an admin key
    /// that is bound to none the one that the call names, `default` where it
    /// names none.
    ///
    /// # Errors
    /// `TENANT_MISMATCH` where a bound key names another one, `NOT_FOUND` where
    /// there is no such tenant.
    pub fn tenant(&self, directory: &Directory, named: &str) -> Result<Arc<Tenant>> {
        let Some(own) = self.key().tenant else {
            let named = if named.is_empty() { DEFAULT } else { named };
            return directory
                .tenant(named)
                .ok_or_else(|| Error::not_found(format_args!("tenant {named}")));
        };
        let own = directory
            .tenant_by_id(own)
            .ok_or_else(|| Error::not_found("tenant of this key"))?;
        if named.is_empty() || named == own.name || named == own.id.to_string() {
            Ok(own)
        } else {
            Err(Error::new(
                Reason::TenantMismatch,
                format!("the key is bound to the tenant {}", own.name),
            ))
        }
    }

    /// Whether it may see what belongs to a tenant. What it may not see does not
    /// exist for it.
    #[must_use]
    pub fn sees(&self, tenant: TenantId) -> bool {
        self.key().tenant.is_none_or(|own| own == tenant)
    }

    /// Whether it is an admin key.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.key().kind == Kind::Admin
    }
}
