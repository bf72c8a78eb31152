//! Tenants.

use super::id::{Micros, Part, TenantId};

/// The name of the tenant that exists from the start.
pub const DEFAULT: &str = "default";

/// A customer of the company.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// The name by which requests address it.
    pub name: String,
    /// A name for people.
    pub display_name: String,
    /// When it was made.
    pub created_at: Micros,
}

/// A new tenant's id. Its partition is random, so that tenants spread over all.
#[must_use]
pub fn new_id(now: Micros) -> TenantId {
    let random = super::id::uuid_at(now, Part::new(0)).as_u128() >> 6;
    TenantId::new(now, Part::new((random & 0x3f) as u8))
}

/// Whether a text can be a tenant's name: 1 to 63 of `a-z`, `0-9` and `-`,
/// beginning with a letter.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
