//! What the gate knows of a call's key, for the call's answer and the log.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::Decision;
use crate::{
    directory::KeyEntry,
    domain::{id::wall_clock, trace::Trace},
    error::{Reason, code, whole_seconds},
    limiter::State,
};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const CANARY: HeaderName = HeaderName::from_static("x-canary-mode");

/// One call's way through the gate.
pub struct Passage<'a> {
    began: Instant,
    route: &'a str,
    entry: Option<Arc<KeyEntry>>,
    limit: Option<State>,
    refused: Option<(Reason, Option<Duration>)>,
}

impl<'a> Passage<'a> {
    /// A call that has just come.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            began: Instant::now(),
            route: "",
            entry: None,
            limit: None,
            refused: None,
        }
    }

    /// Keeps what was decided.
    pub fn note(&mut self, route: &'a str, decision: &Decision) {
        self.route = route;
        self.entry.clone_from(&decision.entry);
        self.limit = decision.limit;
        let refusal = decision.refusal.as_ref();
        self.refused = refusal.map(|e| (e.reason, e.retry_after));
    }

    /// Ends it: the answer's headers say how the key's limit stands, and a canary
    /// key's call is logged.
    pub fn end(self, headers: &mut HeaderMap) {
        if let Some(state) = &self.limit {
            rate_limit(state, headers);
        }
        if let Some((Reason::RateLimited, Some(wait))) = self.refused {
            headers.insert(header::RETRY_AFTER, whole_seconds(wait).into());
        }
        if self.is_canary() {
            headers.insert(CANARY, HeaderValue::from_static("true"));
        }
        self.log(None);
    }

    fn is_canary(&self) -> bool {
        self.entry.as_ref().is_some_and(|e| e.key.canary)
    }

    /// The line of a canary key's call, with where that came from if it is known.
    pub fn log(&self, trace: Option<&Trace>) {
        let Some(entry) = self.entry.as_ref().filter(|e| e.key.canary) else {
            return;
        };
        let decision = self.refused.map_or("ADMITTED", |(reason, _)| code(reason));
        let context = trace.and_then(|t| t.context);
        tracing::info!(
            key.id = %entry.key.id,
            trace.id = context.map(|c| hex::encode(c.trace)),
            call.request_id = trace.map(|t| t.request_id.as_str()),
            call.route = self.route,
            call.decision = decision,
            call.latency_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX),
            "canary call"
        );
    }
}

/// Says how a limit stands, in the older names and as
/// draft-ietf-httpapi-ratelimit-headers has it: `q` calls in any `w` seconds; `r`
/// of them left, `t` seconds until the first that counts is free again.
fn rate_limit(state: &State, headers: &mut HeaderMap) {
    // All in one allocation.
    let mut text = BytesMut::with_capacity(128);
    let mut set = |name, args: std::fmt::Arguments<'_>| {
        // Writing to a buffer can't fail, and digits are good in a header.
        let _ = text.write_fmt(args);
        let value: Bytes = text.split().freeze();
        if let Ok(value) = HeaderValue::from_maybe_shared(value) {
            headers.insert(name, value);
        }
    };
    let State {
        limit,
        remaining,
        reset,
        ..
    } = state;
    let left = (reset - wall_clock() / 1_000_000).max(0);
    set(LIMIT, format_args!("{limit}"));
    set(REMAINING, format_args!("{remaining}"));
    set(RESET, format_args!("{reset}"));
    set(POLICY, format_args!("\"hour\";q={limit};w=3600"));
    set(RATE_LIMIT, format_args!("\"hour\";r={remaining};t={left}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    // K8: the headers' form.
    #[test]
    fn a_limit_in_headers() {
        let state = State {
            allowed: true,
            limit: 10,
            remaining: 3,
            reset: wall_clock() / 1_000_000 - 5,
            retry_after: Duration::ZERO,
            degraded: false,
            undecided: false,
        };
        let mut headers = HeaderMap::new();
        rate_limit(&state, &mut headers);
        let all: Vec<(&str, &str)> = headers
            .iter()
            .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
            .collect();
        let reset = state.reset.to_string();
        assert_eq!(
            all,
            [
                ("x-ratelimit-limit", "10"),
                ("x-ratelimit-remaining", "3"),
                ("x-ratelimit-reset", reset.as_str()),
                ("ratelimit-policy", "\"hour\";q=10;w=3600"),
                ("ratelimit", "\"hour\";r=3;t=0"),
            ]
        );
    }
}
