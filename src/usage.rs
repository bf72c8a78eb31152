//! What keys called: admitted calls, calls refused for a limit, refused
//! credentials; by key and tier in minutes, for the figures of 24 hours.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use crate::domain::id::{KeyId, Micros, TenantId, wall_clock};

const MINUTE: Micros = 60_000_000;
/// Minutes of a day.
const DAY: i64 = 1440;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// It was admitted.
    Admitted,
    /// Its key's limit refused it.
    Limited,
    /// Its credential was refused.
    Unauthenticated,
}

/// Whose call it was, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Who {
    /// The key; none where none was proven.
    pub key: Option<KeyId>,
    /// Its tenant.
    pub tenant: Option<TenantId>,
    /// Its tier; empty where it has none.
    pub tier: String,
}

/// The figures of 24 hours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Refused credentials.
    pub auth_failures: i64,
    /// Calls refused for a limit.
    pub limit_hits: i64,
    /// Admitted calls and limit hits by tier.
    pub by_tier: BTreeMap<String, (i64, i64)>,
}

type Counts = HashMap<(Who, Call), i64>;

/// Counts calls.
#[derive(Default)]
pub struct Usage {
    minutes: Mutex<BTreeMap<i64, Counts>>,
}

impl Usage {
    /// Counts a call.
    pub fn note(&self, who: &Who, call: Call) {
        let minute = wall_clock().div_euclid(MINUTE);
        let mut minutes = self.minutes.lock().unwrap_or_else(PoisonError::into_inner);
        minutes.retain(|m, _| *m > minute - DAY);
        *minutes
            .entry(minute)
            .or_default()
            .entry((who.clone(), call))
            .or_default() += 1;
    }

    /// The figures of the last 24 hours, of one tenant or of all.
    pub fn figures(&self, tenant: Option<TenantId>) -> Figures {
        let mut figures = Figures::default();
        let minutes = self.minutes.lock().unwrap_or_else(PoisonError::into_inner);
        for ((who, call), n) in minutes.values().flatten() {
            if tenant.is_some() && who.tenant != tenant {
                continue;
            }
            let tier = figures.by_tier.entry(who.tier.clone()).or_default();
            match call {
                Call::Admitted => tier.0 += n,
                Call::Limited => {
                    tier.1 += n;
                    figures.limit_hits += n;
                }
                Call::Unauthenticated => figures.auth_failures += n,
            }
        }
        figures
    }

    /// Admitted calls and limit hits of these keys in the last 24 hours, in the
    /// same order.
    pub async fn of_keys(&self, keys: &[KeyId]) -> Vec<(i64, i64)> {
        let mut found: HashMap<KeyId, (i64, i64)> = HashMap::new();
        let minutes = self.minutes.lock().unwrap_or_else(PoisonError::into_inner);
        for ((who, call), n) in minutes.values().flatten() {
            let Some(key) = who.key else { continue };
            let counts = found.entry(key).or_default();
            match call {
                Call::Admitted => counts.0 += n,
                Call::Limited => counts.1 += n,
                Call::Unauthenticated => {}
            }
        }
        keys.iter()
            .map(|k| found.get(k).copied().unwrap_or_default())
            .collect()
    }
}
