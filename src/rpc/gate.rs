//! The gate: one decision for every call, over REST and gRPC alike, and for the
//! calls that `VerifyKey` is asked about. In order: the switches (503), the key and
//! its state (401), the address (403), canary-only (403), the scope (403), the
//! limit (429).

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{
    caller::Caller,
    directory::{Directory, Freshness},
    domain::{id::wall_clock, key::Kind, network},
    error::{Error, Reason, Result},
    limiter::Limiter,
    metrics::Metrics,
    proto::v1::Audience,
    rest::{Rest, annotations::Access},
    settings::Live,
    usage::Usage,
};

mod decision;
mod guard;
mod passage;

pub use decision::Decision;
use decision::{Ask, Need};
use guard::{Guard, Verdict};
pub use passage::Passage;

/// What a consumer needs to take what goes to its own streams.
const SCOPE_CONSUMING: &str = "webhooks:read";
/// Scopes that a monitoring call may come with.
const SCOPE_MONITORING: &str = "monitoring:read";

/// What each proxy adds the address to that it was called from.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Longest credential, in bytes.
const MAX_CREDENTIAL: usize = 512;

/// Decides on calls.
pub struct Gate {
    directory: Arc<Directory>,
    live: Arc<ArcSwap<Live>>,
    metrics: Arc<Metrics>,
    limiter: Arc<Limiter>,
    usage: Arc<Usage>,
    methods: HashMap<String, Method>,
    monitoring: Method,
    guard: Guard,
}

/// A method of ours, and who may call it.
#[derive(Debug)]
pub struct Method {
    /// Its gRPC path.
    path: String,
    audience: Audience,
    scope: String,
    /// Whether it is refused while `webhooks.enabled` is off.
    webhooks: bool,
}

impl Method {
    fn new(path: String, access: &Access) -> std::result::Result<Self, String> {
        match Audience::try_from(access.audience) {
            Ok(audience) if audience != Audience::Unspecified => Ok(Self {
                path,
                audience,
                scope: access.scope.clone(),
                webhooks: access.webhooks,
            }),
            _ => Err(format!("{path}: its protos don't say who may call it")),
        }
    }

    /// The scope that a key of that kind needs.
    fn scope_of(&self, kind: Kind) -> &str {
        if self.audience == Audience::Worker && kind == Kind::Consumer {
            SCOPE_CONSUMING
        } else {
            &self.scope
        }
    }
}

/// What a gate decides with.
pub struct Parts {
    /// Keys and switches.
    pub directory: Arc<Directory>,
    /// The live settings.
    pub live: Arc<ArcSwap<Live>>,
    /// Counts refusals.
    pub metrics: Arc<Metrics>,
    /// Decides whether a key's limit admits a call.
    pub limiter: Arc<Limiter>,
    /// Counts keys' calls.
    pub usage: Arc<Usage>,
}

impl Gate {
    /// A gate for every method of the protos.
    ///
    /// # Errors
    /// Names a method that does not say who may call it.
    pub fn new(parts: Parts, rest: &Rest) -> std::result::Result<Self, String> {
        let methods = rest
            .routes
            .methods()
            .map(|access| {
                let path = format!("/{}", access.rpc);
                Ok((path.clone(), Method::new(path, access)?))
            })
            .collect::<std::result::Result<_, String>>()?;
        Ok(Self {
            directory: parts.directory,
            live: parts.live,
            metrics: parts.metrics,
            limiter: parts.limiter,
            usage: parts.usage,
            methods,
            monitoring: Method {
                path: "/metrics".to_owned(),
                audience: Audience::Monitoring,
                scope: SCOPE_MONITORING.to_owned(),
                webhooks: false,
            },
            guard: Guard::default(),
        })
    }

    /// The method of that gRPC path; none for a path that is not a method of
    /// ours.
    #[must_use]
    pub fn method(&self, path: &str) -> Option<&Method> {
        self.methods.get(path)
    }

    /// Decides on a call; who makes it, none where that is nobody's business.
    /// What is to be told of its key is left in `passage`. A refusal for a
    /// credential that does not hold takes longer, the more of them came from the
    /// same address.
    ///
    /// # Errors
    /// The reason for which the call is refused.
    pub async fn admit<'a>(
        &'a self,
        method: &'a Method,
        headers: &HeaderMap,
        peer: IpAddr,
        passage: &mut Passage<'a>,
    ) -> Result<Option<Caller>> {
        if self.directory.freshness() == Freshness::TooOld {
            let error = Error::new(
                Reason::StoreUnavailable,
                "the database has been away for too long to decide on keys",
            );
            self.metrics.refused(error.reason);
            return Err(error.retry_after(Duration::from_secs(1)));
        }
        if let Some(error) = self.switched_off(&method.path) {
            self.metrics.refused(error.reason);
            return Err(error);
        }
        if self.is_open(method) {
            return Ok(None);
        }
        let hops = self.live.load().trusted_proxy_hops;
        let credential = bearer(headers);
        if method.audience == Audience::Worker
            && let Ok(text) = &credential
            && let Some(entry) = self.directory.key_through_node(text, wall_clock())
        {
            let caller = Caller::through_node(entry);
            self.still(method, &caller)?;
            return Ok(Some(caller));
        }
        let address = client_address(headers, peer, hops);
        let decision = self
            .decide(Ask {
                credential,
                need: Need::Method(method),
                address,
                cost: 1,
                within: None,
            })
            .await;
        passage.note(&method.path, &decision);
        match decision.refusal {
            None => Ok(decision.entry.map(|e| Caller::new(e, address))),
            Some(mut e) => {
                if method.audience == Audience::Monitoring && e.reason == Reason::KeyMissing {
                    e.detail.push_str(
                        "; monitoring takes a key with monitoring:read, or ONERING_MONITORING_OPEN=1 opens it",
                    );
                }
                self.metrics.refused(e.reason);
                Err(self.slow(e, Some(address.unwrap_or(peer))).await)
            }
        }
    }

    /// Decides on a call for monitoring.
    ///
    /// # Errors
    /// The reason for which the call is refused.
    pub async fn admit_monitoring<'a>(
        &'a self,
        headers: &HeaderMap,
        peer: IpAddr,
        passage: &mut Passage<'a>,
    ) -> Result<()> {
        let caller = self.admit(&self.monitoring, headers, peer, passage).await?;
        match caller.and_then(|c| c.key().tenant) {
            None => Ok(()),
            Some(_) => Err(Error::new(
                Reason::TenantMismatch,
                "this key is bound to a tenant, and these figures are of all tenants",
            )),
        }
    }

    /// Decides on a call to the company's own API that `caller` asks about, as it
    /// would be decided here. An empty `scope` asks for none; `cost` 0 consumes
    /// nothing.
    pub async fn verify(
        &self,
        caller: &Caller,
        credential: &str,
        scope: &str,
        address: Option<IpAddr>,
        cost: i64,
    ) -> Decision {
        let mut decision = self
            .decide(Ask {
                credential: credential_of(credential),
                need: Need::Scope(scope),
                address,
                cost,
                within: caller.key().tenant,
            })
            .await;
        if let Some(e) = decision.refusal.take() {
            decision.refusal = Some(self.slow(e, address).await);
        }
        decision
    }

    /// Whether a call of that method that was admitted may go on, with the switches and
    /// the key as they are now; none: it takes no key.
    ///
    /// # Errors
    /// The reason for which it would be refused by now.
    pub fn may_go_on<'c>(&self, path: &str, caller: impl Into<Option<&'c Caller>>) -> Result<()> {
        let method = self
            .method(path)
            .ok_or_else(|| Error::internal(format_args!("{path} is no method")))?;
        if let Some(error) = self.switched_off(&method.path) {
            return Err(error);
        }
        match caller.into() {
            Some(caller) => self.still(method, caller),
            None if self.is_open(method) => Ok(()),
            None => Err(Error::new(
                Reason::KeyMissing,
                "monitoring is no longer open",
            )),
        }
    }

    /// Whether a route that stands for no method may be called.
    ///
    /// # Errors
    /// `ENDPOINT_DISABLED`.
    pub fn admit_plain(&self, route: &str) -> Result<()> {
        match self.switched_off(route) {
            None => Ok(()),
            Some(error) => {
                self.metrics.refused(error.reason);
                Err(error)
            }
        }
    }

    /// Whether a method takes no key at the moment.
    fn is_open(&self, method: &Method) -> bool {
        let monitoring = || self.live.load().monitoring_open == Some(true);
        match method.audience {
            Audience::Public => true,
            Audience::Monitoring => monitoring(),
            _ => false,
        }
    }

    /// Why a method or plain route is refused to anybody; none where it is not
    /// switched off.
    fn switched_off(&self, path: &str) -> Option<Error> {
        let in_force = self.directory.in_force();
        let name = path.trim_start_matches('/');
        in_force
            .off
            .contains(name)
            .then(|| Error::new(Reason::EndpointDisabled, format!("{name} is switched off")))
    }

    /// Holds an address up whose credential does not hold; what it is told, which
    /// is less where too many of its calls are held up already.
    async fn slow(&self, e: Error, address: Option<IpAddr>) -> Error {
        let guessed = matches!(e.reason, Reason::KeyInvalid | Reason::KeyMalformed);
        let (true, Some(address)) = (guessed, address) else {
            return e;
        };
        match self.guard.failed(address) {
            Verdict::Answer => e,
            Verdict::Wait(wait, _waiting) => {
                tokio::time::sleep(wait).await;
                e
            }
            Verdict::Refuse => too_many_guesses(),
        }
    }
}

/// Where a call came from: the peer, or with proxies in front what the outermost
/// of those that are trusted says. Not known where the call did not come through
/// all of them.
fn client_address(headers: &HeaderMap, peer: IpAddr, hops: usize) -> Option<IpAddr> {
    if hops == 0 {
        return Some(peer.to_canonical());
    }
    let lines = headers.get_all(FORWARDED_FOR).iter();
    network::forwarded(lines.map(HeaderValue::as_bytes), hops)
}

/// The credential of a call (RFC 6750).
fn bearer(headers: &HeaderMap) -> Result<&str> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return credential_of("");
    };
    let malformed = || {
        Error::new(
            Reason::KeyMalformed,
            "`Authorization` takes `Bearer` and a key",
        )
    };
    let text = value.to_str().map_err(|_| malformed())?;
    let (scheme, key) = text.split_once(' ').ok_or_else(malformed)?;
    if !scheme.eq_ignore_ascii_case("bearer") || key.len() > MAX_CREDENTIAL {
        return Err(malformed());
    }
    Ok(key.trim())
}

fn too_many_guesses() -> Error {
    Error::new(
        Reason::RateLimited,
        "too many calls of this address came without a key that holds",
    )
    .retry_after(Duration::from_secs(2))
}

/// A credential that came without its header.
fn credential_of(text: &str) -> Result<&str> {
    if text.is_empty() {
        return Err(Error::new(
            Reason::KeyMissing,
            "the call came without a credential",
        ));
    }
    if text.len() > MAX_CREDENTIAL {
        return Err(Error::new(
            Reason::KeyMalformed,
            format!("a credential has at most {MAX_CREDENTIAL} characters"),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let long = format!("Bearer {}", "x".repeat(MAX_CREDENTIAL + 1));
        assert_eq!(read(&long), Err(Reason::KeyMalformed));
        assert_eq!(
            bearer(&HeaderMap::new()).unwrap_err().reason,
            Reason::KeyMissing
        );
    }

    // K8: a method that says nothing of who may call it stops the start.
    #[test]
    fn every_method_says_who_may_call_it() {
        let method = |audience: i32| {
            let access = Access {
                audience,
                ..Access::default()
            };
            Method::new("/onering.v1.X/Y".into(), &access)
        };
        assert!(method(Audience::Admin as i32).is_ok());
        for bad in [Audience::Unspecified as i32, 99] {
            assert!(method(bad).unwrap_err().contains("/onering.v1.X/Y"));
        }
    }

    // K2: the peer where no proxy is trusted; nobody where they say nothing.
    #[test]
    fn where_a_call_came_from() {
        let peer: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        let mut headers = HeaderMap::new();
        let at = |headers: &HeaderMap, hops| {
            client_address(headers, peer, hops).map(|ip| ip.to_string())
        };
        assert_eq!(at(&headers, 0).as_deref(), Some("192.0.2.1"));
        assert_eq!(at(&headers, 1), None);
        headers.append(FORWARDED_FOR, "6.6.6.6".parse().unwrap());
        headers.append(FORWARDED_FOR, "203.0.113.9".parse().unwrap());
        assert_eq!(at(&headers, 0).as_deref(), Some("192.0.2.1"));
        assert_eq!(at(&headers, 1).as_deref(), Some("203.0.113.9"));
        assert_eq!(at(&headers, 2).as_deref(), Some("6.6.6.6"));
        assert_eq!(at(&headers, 3), None);
    }
}
