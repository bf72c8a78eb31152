//! `VerifyKey`: one call of the company's own API, decided at the gate.

use std::time::Duration;

use crate::{
    caller::Caller,
    directory::{Freshness, Switches},
    domain::{network, trace::Trace},
    error::{Error, Reason, Result, whole_seconds},
    limiter::State,
    proto::v1::{RateLimit, VerifyKeyRequest, VerifyKeyResponse},
    rpc::{
        Context,
        check::Faults,
        gate::{Decision, Passage},
    },
};

/// How long a revision is waited for that this node has not reached.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most that one call counts as.
const MAX_COST: i32 = 1_000_000;
/// Under which a canary key's call is logged.
const ROUTE: &str = "/onering.v1.KeyService/VerifyKey";

/// Decides on a call. Nothing is read from the store.
pub(super) async fn verify(
    context: &Context,
    caller: &Caller,
    given: &VerifyKeyRequest,
    trace: Option<&Trace>,
) -> Result<VerifyKeyResponse> {
    let mut passage = Passage::begin();
    let mut faults = Faults::default();
    let cost = given.cost.unwrap_or(1);
    if !(0..=MAX_COST).contains(&cost) {
        faults.add("cost", format!("takes 0 to {MAX_COST}"));
    }
    if given.min_revision < 0 {
        faults.add("min_revision", "takes 0 or more");
    }
    if !given.scope.is_empty() && !super::fields::is_scope(&given.scope) {
        faults.add("scope", "takes `verb:noun`, such as read:rings");
    }
    let address = network::parse_address(&given.client_address);
    if address.is_none() && !given.client_address.is_empty() {
        faults.add("client_address", "takes an IPv4 or IPv6 address");
    }
    faults.done()?;

    let directory = &context.directory;
    // Read before the decision: that one is at least as new.
    let mut revision = directory.revision();
    if revision < given.min_revision {
        if !directory.reaches(given.min_revision, PATIENCE).await {
            return Err(not_reached(given.min_revision, directory.revision()));
        }
        revision = directory.revision();
    }
    let stale = directory.freshness() != Freshness::Fresh;
    let decision = context
        .gate
        .verify(caller, &given.key, &given.scope, address, cost.into())
        .await;
    if cost > 0 {
        passage.note(ROUTE, &decision);
        passage.log(trace);
    }
    Ok(answer(context, decision, revision, stale))
}

fn not_reached(wanted: i64, has: i64) -> Error {
    let detail = format!("this node decides with revision {has} and did not reach {wanted}");
    Error::new(Reason::StoreUnavailable, detail).retry_after(PATIENCE)
}

fn answer(context: &Context, decision: Decision, revision: i64, stale: bool) -> VerifyKeyResponse {
    let mut answer = VerifyKeyResponse {
        valid: decision.refusal.is_none(),
        rate_limit: decision.limit.as_ref().map(rate_limit),
        switches: switches(decision.switches),
        revision,
        stale,
        ..VerifyKeyResponse::default()
    };
    if let Some(e) = decision.refusal {
        answer.reason = e.reason.into();
        answer.detail = e.detail;
    }
    if let Some(entry) = &decision.entry {
        let key = &entry.key;
        answer.key_id = key.id.to_string();
        answer.tenant = super::view::tenant(key, &context.directory);
        answer.tier = super::view::tier(key);
        answer.scopes.clone_from(&key.scopes);
        answer.canary_enabled = key.canary;
    }
    answer
}

fn rate_limit(state: &State) -> RateLimit {
    RateLimit {
        limit: state.limit,
        remaining: state.remaining,
        reset: state.reset,
        retry_after_seconds: i64::try_from(whole_seconds(state.retry_after)).unwrap_or(i64::MAX),
        degraded: state.degraded,
    }
}

fn switches(now: Switches) -> std::collections::HashMap<String, bool> {
    [
        ("external_api.enabled", now.api),
        ("external_api.canary_only", now.canary_only),
        ("webhooks.enabled", now.webhooks),
        ("webhooks.delivery.enabled", now.delivery),
    ]
    .map(|(name, on)| (name.to_owned(), on))
    .into()
}
