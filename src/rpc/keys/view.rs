//! A key as answers show it.

use crate::{
    directory::Directory,
    domain::{
        id::Micros,
        key::{CANARY_LIMIT, Key, Kind, Status},
    },
    proto::v1::{self, GetCallerResponse, KeyKind, KeyStatus},
    rpc::convert::{known, timestamp},
    settings::Live,
    store::KeyUse,
};

/// A key as answers show it.
pub(super) struct View(pub(super) v1::Key);

const fn kind(kind: Kind) -> KeyKind {
    match kind {
        Kind::Consumer => KeyKind::Consumer,
        Kind::Admin => KeyKind::Admin,
    }
}

/// The limit in force, in calls an hour; none for an admin key (K6, K13). A key
/// whose tier is not configured any more gets what the lowest one does.
#[must_use]
pub fn effective_limit(key: &Key, live: &Live) -> Option<i64> {
    if key.kind == Kind::Admin {
        return None;
    }
    let lowest = || live.tiers.values().min().copied().unwrap_or(1);
    let limit = key
        .rate_limit_per_hour
        .or_else(|| live.tiers.get(&key.tier).copied())
        .unwrap_or_else(lowest);
    Some(if key.canary {
        limit.min(CANARY_LIMIT)
    } else {
        limit
    })
}

/// When a key was last used, and when its new secret first was: what this node
/// knows and what is stored, together.
pub(super) fn uses(here: (Micros, Micros), stored: Option<KeyUse>) -> (Micros, Micros) {
    let stored = stored.map_or((0, 0), |u| (u.last_used, u.new_secret_first_used));
    let first = match (here.1, stored.1) {
        (0, other) | (other, 0) => other,
        (a, b) => a.min(b),
    };
    (here.0.max(stored.0), first)
}

impl View {
    /// Shows a key.
    pub(super) fn new(
        key: &Key,
        (last_used, new_secret_first_used): (Micros, Micros),
        directory: &Directory,
        live: &Live,
        now: Micros,
    ) -> Self {
        let status = match key.status_at(now) {
            Status::Active => KeyStatus::Active,
            Status::Disabled => KeyStatus::Disabled,
            Status::Revoked => KeyStatus::Revoked,
            Status::Expired => KeyStatus::Expired,
        };
        Self(v1::Key {
            key_id: key.id.to_string(),
            tenant: tenant(key, directory),
            name: key.name.clone(),
            kind: kind(key.kind).into(),
            tier: tier(key),
            scopes: key.scopes.clone(),
            canary_enabled: key.canary,
            rate_limit_per_hour: key.rate_limit_per_hour,
            allowed_cidrs: key.allowed_cidrs.iter().map(ToString::to_string).collect(),
            expire_time: key.expires_at.map(timestamp),
            metadata: key.metadata.iter().cloned().collect(),
            status: status.into(),
            effective_rate_limit_per_hour: effective_limit(key, live),
            create_time: Some(timestamp(key.created_at)),
            update_time: Some(timestamp(key.updated_at)),
            last_used_time: known(last_used),
            previous_secret_expire_time: key
                .previous
                .filter(|p| p.until > now)
                .map(|p| timestamp(p.until)),
            new_secret_first_used_time: key.previous.and_then(|_| known(new_secret_first_used)),
        })
    }
}

/// The name of its tenant; empty where it acts on every one.
pub(super) fn tenant(key: &Key, directory: &Directory) -> String {
    key.tenant
        .map(|t| directory.tenant_name(t))
        .unwrap_or_default()
}

/// Its tier; empty for an admin key.
pub(super) fn tier(key: &Key) -> String {
    match key.kind {
        Kind::Consumer => key.tier.clone(),
        Kind::Admin => String::new(),
    }
}

/// What a caller is told of itself.
pub(super) fn caller(key: &Key, directory: &Directory, live: &Live) -> GetCallerResponse {
    GetCallerResponse {
        key_id: key.id.to_string(),
        tenant: tenant(key, directory),
        name: key.name.clone(),
        kind: kind(key.kind).into(),
        tier: tier(key),
        scopes: key.scopes.clone(),
        canary_enabled: key.canary,
        rate_limit_per_hour: effective_limit(key, live),
        expire_time: key.expires_at.map(timestamp),
        create_time: Some(timestamp(key.created_at)),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fields::tests::*, *};

    // K6: its own limit, else its tier's; a canary never more than 10.
    #[test]
    fn the_limit_in_force() {
        let mut k = key(Kind::Consumer);
        let live = live();
        k.rate_limit_per_hour = None;
        for (tier, own, canary, limit) in [
            ("pro", None, false, 1000),
            ("pro", Some(5000), false, 5000),
            ("pro", Some(5000), true, 10),
            ("pro", Some(3), true, 3),
            ("gone", None, false, 100),
        ] {
            k.tier = tier.into();
            k.rate_limit_per_hour = own;
            k.canary = canary;
            assert_eq!(
                effective_limit(&k, &live),
                Some(limit),
                "{tier} {own:?} {canary}"
            );
        }
        assert_eq!(effective_limit(&key(Kind::Admin), &live), None);
    }

    #[test]
    fn uses_of_all_nodes_are_taken_together() {
        let stored = |last_used, new_secret_first_used| {
            Some(KeyUse {
                id: key(Kind::Admin).id,
                last_used,
                new_secret_first_used,
            })
        };
        assert_eq!(uses((5, 0), stored(3, 2)), (5, 2));
        assert_eq!(uses((3, 4), stored(5, 2)), (5, 2));
        assert_eq!(uses((3, 4), stored(5, 0)), (5, 4));
        assert_eq!(uses((0, 0), None), (0, 0));
    }
}
