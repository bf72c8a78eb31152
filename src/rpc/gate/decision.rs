//! The decision on one call, and its order.

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::{Gate, Method};
use crate::{
    caller::Caller,
    directory::{KeyEntry, Switches, no_such_key},
    domain::{
        id::{Micros, TenantId, wall_clock},
        key::{ADMIN_PREFIX, CONSUMER_PREFIX, Key, Kind, SCOPE_ADMIN},
    },
    error::{Error, Reason, Result, meaning},
    limiter::{Policy, State},
    proto::v1::Audience,
    rpc::keys::effective_limit,
    settings::Live,
    usage::{Call, Who},
};

/// A call that is to be decided on.
pub(super) struct Ask<'a> {
    /// The credential, or why there is none.
    pub credential: Result<&'a str>,
    /// What the credential must be good for.
    pub need: Need<'a>,
    /// Where the call came from, where that is known.
    pub address: Option<IpAddr>,
    /// How many calls it counts as; 0 looks.
    pub cost: i64,
    /// The tenant whose keys can be found; any where there is none.
    pub within: Option<TenantId>,
}

/// What a credential must be good for.
pub(super) enum Need<'a> {
    /// A method of ours.
    Method(&'a Method),
    /// A call to the company's own API, with that scope; none where it is empty.
    Scope(&'a str),
}

/// What was decided.
pub struct Decision {
    /// The key, where its secret was proven.
    pub entry: Option<Arc<KeyEntry>>,
    /// How its limit stands after the call; none where it has none.
    pub limit: Option<State>,
    /// The switches that it was decided with.
    pub switches: Switches,
    /// Why the call is refused; none where it is admitted.
    pub refusal: Option<Error>,
}

impl Gate {
    /// Decides, counts the call into its key's limit where it is admitted, and
    /// notes it.
    pub(super) async fn decide(&self, ask: Ask<'_>) -> Decision {
        let cost = ask.cost;
        let mut decision = Decision {
            entry: None,
            limit: None,
            switches: self.directory.switches(),
            refusal: None,
        };
        let policy = {
            let live = self.live.load();
            decision.refusal = self
                .look(
                    ask,
                    &live,
                    wall_clock(),
                    &mut decision.entry,
                    decision.switches,
                )
                .err();
            decision.entry.as_deref().and_then(|e| policy(e, &live))
        };
        if let Some(policy) = policy {
            let refused = decision.refusal.is_some();
            // Of a refused call the answer says how the limit stands.
            let state = self
                .limiter
                .take(policy, if refused { 0 } else { cost })
                .await;
            if !refused && !state.allowed {
                decision.refusal = Some(used_up(&state));
            }
            decision.limit = Some(state);
        }
        self.count(&decision, cost);
        decision
    }

    /// All of the decision but the limit, in its order.
    fn look(
        &self,
        ask: Ask<'_>,
        live: &Live,
        now: Micros,
        entry: &mut Option<Arc<KeyEntry>>,
        switches: Switches,
    ) -> Result<()> {
        let text = ask.credential.as_deref().unwrap_or_default();
        let consumer = text.starts_with(CONSUMER_PREFIX)
            || (ask.need.is_for_consumers() && !text.starts_with(ADMIN_PREFIX));
        if consumer && !switches.api {
            return Err(Error::new(
                Reason::ExternalApiDisabled,
                "the outside API is switched off",
            ));
        }
        if ask.need.is_about_webhooks() && !switches.webhooks {
            return Err(Error::new(
                Reason::WebhooksDisabled,
                "webhooks are switched off (webhooks.enabled)",
            ));
        }
        let found = self.directory.authenticate(ask.credential?, now)?;
        if ask.within.is_some() && found.key.tenant != ask.within {
            return Err(no_such_key());
        }
        let found = entry.insert(found);
        found.works_at(now)?;
        if ask.cost > 0 {
            found.used(now);
        }
        let key = &found.key;
        admits(key, ask.address)?;
        if key.kind == Kind::Consumer && switches.canary_only && !key.canary {
            return Err(Error::new(
                Reason::CanaryOnlyMode,
                "only canary keys are admitted at the moment",
            ));
        }
        ask.need.met_by(found, live.require_own_scopes)
    }

    /// Decides again on a call under way, but for its key's limit. Of one that comes
    /// through another node that one knows where it came from.
    pub(super) fn still(&self, method: &Method, caller: &Caller) -> Result<()> {
        let switches = self.directory.switches();
        let entry = self
            .directory
            .key(caller.key().id)
            .filter(|e| e.key.tenant == caller.key().tenant)
            .ok_or_else(no_such_key)?;
        entry.works_at(wall_clock())?;
        if !caller.is_through_node() {
            admits(&entry.key, caller.address())?;
        }
        if entry.key.kind == Kind::Consumer {
            if !switches.api {
                return Err(Error::new(
                    Reason::ExternalApiDisabled,
                    "the outside API is switched off",
                ));
            }
            if switches.canary_only && !entry.key.canary {
                return Err(Error::new(
                    Reason::CanaryOnlyMode,
                    "only canary keys are admitted at the moment",
                ));
            }
        }
        Need::Method(method).met_by(&entry, self.live.load().require_own_scopes)
    }

    /// Admin keys have no tier and no limit: of theirs only failures are counted.
    fn count(&self, decision: &Decision, cost: i64) {
        let call = match decision.refusal.as_ref().map(|e| e.reason) {
            None if cost > 0 && decision.limit.is_some() => Call::Admitted,
            // Nobody called too often.
            Some(Reason::RateLimited) if decision.limit.is_some_and(|s| s.undecided) => return,
            Some(Reason::RateLimited) => Call::Limited,
            Some(reason) if meaning(reason).http == 401 => Call::Unauthenticated,
            _ => return,
        };
        match &decision.entry {
            Some(entry) => self.usage.note(&entry.who, call),
            None => self.usage.note(&Who::default(), call),
        }
    }
}

fn admits(key: &Key, address: Option<IpAddr>) -> Result<()> {
    if key.admits(address) {
        return Ok(());
    }
    let from = match address {
        Some(ip) => format!("the key may not be used from {ip}"),
        None => "the key has an allow list, and where the call came from is not known".to_owned(),
    };
    Err(Error::new(Reason::IpNotAllowed, from))
}

fn policy(entry: &KeyEntry, live: &Live) -> Option<Policy> {
    Some(Policy {
        key: entry.key.id,
        limit: effective_limit(&entry.key, live)?,
        undecided: live.undecided(&entry.key.tier),
    })
}

fn used_up(state: &State) -> Error {
    let limit = state.limit;
    let detail = if state.undecided {
        format!(
            "the limit of {limit} calls in any hour can't be decided at the moment: \
             what keeps count of it does not answer"
        )
    } else {
        format!("the limit of {limit} calls in any hour is used up")
    };
    let wait = state.retry_after.max(Duration::from_secs(1));
    Error::new(Reason::RateLimited, detail).retry_after(wait)
}

impl Need<'_> {
    /// Whether a call without an admin key's credential is an outside one.
    fn is_for_consumers(&self) -> bool {
        match self {
            Need::Method(m) => m.audience == Audience::Consumer,
            Need::Scope(_) => true,
        }
    }

    fn is_about_webhooks(&self) -> bool {
        match self {
            Need::Method(m) => m.webhooks,
            Need::Scope(_) => false,
        }
    }

    fn met_by(&self, entry: &KeyEntry, strict: bool) -> Result<()> {
        let key = &entry.key;
        let scope = match self {
            Need::Scope("") => return Ok(()),
            Need::Scope(scope) => scope,
            Need::Method(m) => {
                let admins = matches!(m.audience, Audience::Admin | Audience::Monitoring);
                if admins && key.kind != Kind::Admin {
                    return Err(Error::new(
                        Reason::ScopeMissing,
                        "this call takes an admin key (sk_admin_…)",
                    ));
                }
                m.scope_of(key.kind)
            }
        };
        if key.holds(scope, strict) {
            return Ok(());
        }
        let scope = if scope.is_empty() { SCOPE_ADMIN } else { scope };
        Err(Error::new(
            Reason::ScopeMissing,
            format!("the key does not hold the scope {scope}"),
        ))
    }
}
