//! The gate: one decision for every call, over REST and gRPC alike. In order:
//! the switch (503), the key and its state (401), canary-only (403), the scope
//! (403).

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{HeaderMap, header};

use crate::{
    caller::Caller,
    directory::{Directory, Freshness},
    domain::{
        id::wall_clock,
        key::{ADMIN_PREFIX, Kind, SCOPE_ADMIN},
    },
    error::{Error, Reason, Result},
    metrics::Metrics,
    proto::v1::Audience,
    rest::{Rest, annotations::Access},
    settings::Live,
};

/// Scopes that a monitoring call may come with.
const SCOPE_MONITORING: &str = "monitoring:read";

/// Decides on calls.
pub struct Gate {
    directory: Arc<Directory>,
    live: Arc<ArcSwap<Live>>,
    metrics: Arc<Metrics>,
    methods: HashMap<String, Access>,
    guard: Guard,
}

/// An admitted call.
pub struct Admitted {
    /// Who makes it; none for a public method.
    pub caller: Option<Caller>,
}

impl Gate {
    /// A gate for every method of the protos.
    #[must_use]
    pub fn new(
        directory: Arc<Directory>,
        live: Arc<ArcSwap<Live>>,
        metrics: Arc<Metrics>,
        rest: &Rest,
    ) -> Self {
        let methods = rest.methods().unwrap_or_default().into_iter().collect();
        Self {
            directory,
            live,
            metrics,
            methods,
            guard: Guard::default(),
        }
    }

    /// Who may call the method of that gRPC path; none for a path that is not a
    /// method of ours.
    #[must_use]
    pub fn access(&self, path: &str) -> Option<&Access> {
        self.methods.get(path)
    }

    /// Decides on a call. A refusal for a credential that does not hold takes
    /// longer, the more of them came from the same address.
    ///
    /// # Errors
    /// The reason for which the call is refused.
    pub async fn admit(
        &self,
        access: &Access,
        headers: &HeaderMap,
        peer: IpAddr,
    ) -> Result<Admitted> {
        let mut result = self.decide(access, headers);
        if let Err(e) = &mut result {
            let monitoring = access.audience == Audience::Monitoring as i32;
            if monitoring && e.reason == Reason::KeyMissing {
                e.detail.push_str(
                    "; monitoring takes a key with monitoring:read, or ONERING_MONITORING_OPEN=1 opens it",
                );
            }
            self.metrics.refused(e.reason);
            if matches!(e.reason, Reason::KeyInvalid | Reason::KeyMalformed) {
                tokio::time::sleep(self.guard.failed(peer)).await;
            }
        }
        result
    }

    /// Decides on a call for monitoring.
    ///
    /// # Errors
    /// The reason for which the call is refused.
    pub async fn admit_monitoring(&self, headers: &HeaderMap, peer: IpAddr) -> Result<()> {
        let access = Access {
            audience: Audience::Monitoring as i32,
            scope: SCOPE_MONITORING.into(),
        };
        self.admit(&access, headers, peer).await.map(drop)
    }

    fn decide(&self, access: &Access, headers: &HeaderMap) -> Result<Admitted> {
        if self.directory.freshness() == Freshness::TooOld {
            return Err(Error::new(
                Reason::StoreUnavailable,
                "the database has been away for too long to decide on keys",
            )
            .retry_after(Duration::from_secs(1)));
        }
        let audience = Audience::try_from(access.audience).unwrap_or(Audience::Unspecified);
        let open =
            audience == Audience::Monitoring && self.live.load().monitoring_open == Some(true);
        if audience == Audience::Public || open {
            return Ok(Admitted { caller: None });
        }
        let credential = bearer(headers);
        let switches = self.directory.switches();
        let outside = !credential
            .as_ref()
            .is_ok_and(|c| c.starts_with(ADMIN_PREFIX));
        if outside && audience == Audience::Consumer && !switches.api {
            return Err(Error::new(
                Reason::ExternalApiDisabled,
                "the outside API is switched off",
            ));
        }
        let entry = self.directory.authenticate(credential?, wall_clock())?;
        let key = &entry.key;
        if key.kind == Kind::Consumer && switches.canary_only && !key.canary {
            return Err(Error::new(
                Reason::CanaryOnlyMode,
                "only canary keys are admitted at the moment",
            ));
        }
        let strict = self.live.load().require_own_scopes;
        let admins = matches!(audience, Audience::Admin | Audience::Monitoring);
        if admins && key.kind != Kind::Admin {
            return Err(Error::new(
                Reason::ScopeMissing,
                "this call takes an admin key (sk_admin_…)",
            ));
        }
        if !key.holds(&access.scope, strict) {
            let scope = if access.scope.is_empty() {
                SCOPE_ADMIN
            } else {
                &access.scope
            };
            return Err(Error::new(
                Reason::ScopeMissing,
                format!("the key does not hold the scope {scope}"),
            ));
        }
        Ok(Admitted {
            caller: Some(Caller::new(entry)),
        })
    }
}

/// The credential of a call (RFC 6750).
fn bearer(headers: &HeaderMap) -> Result<&str> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Err(Error::new(
            Reason::KeyMissing,
            "the call came without a credential",
        ));
    };
    let malformed = || {
        Error::new(
            Reason::KeyMalformed,
            "`Authorization` takes `Bearer` and a key",
        )
    };
    let text = value.to_str().map_err(|_| malformed())?;
    let (scheme, key) = text.split_once(' ').ok_or_else(malformed)?;
    if !scheme.eq_ignore_ascii_case("bearer") || key.len() > 512 {
        return Err(malformed());
    }
    Ok(key.trim())
}

/// Slows addresses that guess.
#[derive(Default)]
struct Guard {
    failures: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

/// Failures an address has free in a window.
const FREE: u32 = 20;
/// The window.
const WINDOW: Duration = Duration::from_secs(60);
/// The most addresses that are remembered.
const ADDRESSES: usize = 100_000;
/// The longest that an answer is held back.
const SLOWEST: Duration = Duration::from_secs(2);

impl Guard {
    /// Counts a failure; how long its answer is to wait.
    fn failed(&self, peer: IpAddr) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if failures.len() >= ADDRESSES {
            failures.retain(|_, (_, since)| now - *since < WINDOW);
        }
        if failures.len() >= ADDRESSES && !failures.contains_key(&peer) {
            return SLOWEST;
        }
        let (count, since) = failures.entry(peer).or_insert((0, now));
        if now - *since >= WINDOW {
            (*count, *since) = (0, now);
        }
        *count += 1;
        let over = count.saturating_sub(FREE);
        (Duration::from_millis(10) * over).min(SLOWEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Z6: the first mistakes are free, then each takes longer; others are not held up.
    #[test]
    fn guessing_is_slowed() {
        let guard = Guard::default();
        let guesser: IpAddr = "203.0.113.1".parse().unwrap();
        for _ in 0..FREE {
            assert_eq!(guard.failed(guesser), Duration::ZERO);
        }
        assert_eq!(guard.failed(guesser), Duration::from_millis(10));
        assert_eq!(guard.failed(guesser), Duration::from_millis(20));
        assert_eq!(guard.failed("203.0.113.2".parse().unwrap()), Duration::ZERO);
        for _ in 0..1000 {
            guard.failed(guesser);
        }
        assert_eq!(guard.failed(guesser), SLOWEST);
    }

    #[test]
    fn credentials() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, text.parse().unwrap());
            bearer(&headers).map(str::to_owned).map_err(|e| e.reason)
        };
        assert_eq!(read("Bearer osk_1"), Ok("osk_1".into()));
        assert_eq!(read("bearer osk_1"), Ok("osk_1".into()));
        assert_eq!(read("Basic x"), Err(Reason::KeyMalformed));
        assert_eq!(read("osk_1"), Err(Reason::KeyMalformed));
        assert_eq!(
            bearer(&HeaderMap::new()).unwrap_err().reason,
            Reason::KeyMissing
        );
    }
}
