//! What a subscription's fields may hold, and which of them an update changes.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue, Uri};
use url::Url;
use zeroize::Zeroizing;

use crate::{
    connector,
    domain::{
        address::MAX_URL_LENGTH,
        certificate::{CertificateError, ClientCertificate, Pem},
        cloudevent,
        delivery::Schedule,
        id::Micros,
        signature::Scheme,
        subscription::{
            DEFAULT_IN_FLIGHT, DEFAULT_TIMEOUT, Disabled, Headers, Kind, Lifetime, Ordering,
            PayloadFormat, Subscription, is_pattern,
        },
        trace,
    },
    error::{Error, Reason},
    proto::v1::{self, RetryPreset, RetrySchedule, SignatureScheme, SubscriptionKind},
    rpc::{
        check::{Faults, echo, entry, sorted},
        mask::{self, Fixed},
    },
    settings::Live,
};

/// What can be changed of a subscription.
pub(super) const CHANGEABLE: [&str; 15] = [
    "url",
    "event_types",
    "headers",
    "description",
    "enabled",
    "signature_scheme",
    "retry_schedule",
    "timeout_seconds",
    "max_in_flight",
    "max_age_seconds",
    "metadata",
    "payload_format",
    CLIENT_CERTIFICATE,
    "filter",
    "ordering",
];

const CLIENT_CERTIFICATE: &str = "client_certificate";

/// What of a subscription is stored sealed, opened, beside its secrets.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Opened {
    /// Its own headers.
    pub headers: Headers,
    /// What it shows to its receiver.
    pub certificate: Option<Pem>,
}

/// Headers that are of the connection, of the message or of ours.
const NOT_THEIRS: [&str; 22] = [
    cloudevent::header::ID,
    cloudevent::header::SOURCE,
    cloudevent::header::SPECVERSION,
    cloudevent::header::TIME,
    cloudevent::header::TYPE,
    cloudevent::header::TRACEPARENT,
    cloudevent::header::TRACESTATE,
    trace::TRACEPARENT,
    trace::TRACESTATE,
    "x-request-id",
    "connection",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// The fields that an update names, or where it names none, those that it sets.
pub(super) fn named(
    given: &v1::Subscription,
    now: &v1::Subscription,
    update_mask: Option<&prost_types::FieldMask>,
    faults: &mut Faults,
) -> Vec<&'static str> {
    let fixed = [
        Fixed::new("id", &given.id, &now.id),
        Fixed::new("tenant", &given.tenant, &now.tenant),
        Fixed::new("public_key", &given.public_key, &now.public_key),
        Fixed::new("create_time", &given.create_time, &now.create_time),
        Fixed::new("update_time", &given.update_time, &now.update_time),
        Fixed::new(
            "disabled_reason",
            &given.disabled_reason,
            &now.disabled_reason,
        ),
        Fixed::new("disable_time", &given.disable_time, &now.disable_time),
        Fixed::new("kind", &given.kind, &now.kind),
        Fixed::new(
            "expire_after_seconds",
            &given.expire_after_seconds,
            &now.expire_after_seconds,
        ),
        Fixed::moving("expire_time"),
        Fixed::moving("previous_secret_expire_time"),
        Fixed::new(
            "client_certificate_info",
            &given.client_certificate_info,
            &now.client_certificate_info,
        ),
    ];
    let set = |name: &str| match name {
        "url" => !given.url.is_empty(),
        "event_types" => !given.event_types.is_empty(),
        "headers" => !given.headers.is_empty(),
        "description" => !given.description.is_empty(),
        "enabled" => given.enabled.is_some(),
        "signature_scheme" => given.signature_scheme != 0,
        "retry_schedule" => given.retry_schedule.is_some(),
        "timeout_seconds" => given.timeout_seconds != 0,
        "max_in_flight" => given.max_in_flight != 0,
        "max_age_seconds" => given.max_age_seconds != 0,
        "metadata" => !given.metadata.is_empty(),
        "payload_format" => given.payload_format != 0,
        CLIENT_CERTIFICATE => given.client_certificate.is_some(),
        "filter" => given.filter.is_some(),
        "ordering" => given.ordering != 0,
        _ => false,
    };
    let mut names = mask::changed(update_mask, &CHANGEABLE, set, &fixed, faults);
    let by_name = update_mask.is_some_and(|m| m.paths.iter().any(|p| p == CLIENT_CERTIFICATE));
    // Among all of them, one that is not shown is missing and not taken away.
    if given.client_certificate.is_none() && !by_name {
        names.retain(|name| *name != CLIENT_CERTIFICATE);
    }
    names
}

/// Takes these fields over into a subscription, and what is to be sealed once all
/// is right into `own`.
pub(super) fn apply(
    s: &mut Subscription,
    own: &mut Opened,
    given: &v1::Subscription,
    names: &[&str],
    live: &Live,
    now: Micros,
    faults: &mut Faults,
) {
    let whole = |n: i32| u32::try_from(n).unwrap_or_default();
    for name in names {
        match *name {
            "url" if s.kind == Kind::Stream => without("url", given.url.is_empty(), faults),
            // One that stays is not checked again: what is allowed may have
            // changed since, and each connection is checked anyway.
            "url" if given.url != s.url || s.url.is_empty() => {
                s.url = url(&given.url, live, faults);
            }
            "event_types" => s.event_types = event_types(&given.event_types, faults),
            "headers" => own.headers = headers(&given.headers, faults),
            "description" => {
                s.description = faults.text("description", &given.description, 500, true);
            }
            "enabled" => enable(s, given.enabled.unwrap_or(true), now),
            "signature_scheme" => change_scheme(s, given.signature_scheme, faults),
            "retry_schedule" => s.schedule = schedule(given.retry_schedule.as_ref(), faults),
            "timeout_seconds" => {
                let n = given.timeout_seconds;
                let n = faults.number("timeout_seconds", n, 1, 60, DEFAULT_TIMEOUT.cast_signed());
                s.timeout = whole(n);
            }
            "max_in_flight" => {
                let n = given.max_in_flight;
                let n = faults.number("max_in_flight", n, 1, 1000, DEFAULT_IN_FLIGHT.cast_signed());
                s.max_in_flight = whole(n);
            }
            "max_age_seconds" => {
                s.max_age =
                    faults.number("max_age_seconds", given.max_age_seconds, 0, 2_592_000, 0);
            }
            "metadata" => s.metadata = faults.metadata(&given.metadata),
            "payload_format" => s.format = format(given.payload_format, faults),
            "filter" => {
                s.filter = super::filter::read(given.filter.as_deref().unwrap_or_default(), faults);
            }
            "ordering" => s.ordering = ordering(given.ordering, faults),
            CLIENT_CERTIFICATE if s.kind == Kind::Stream => {
                without(
                    CLIENT_CERTIFICATE,
                    given.client_certificate.is_none(),
                    faults,
                );
            }
            CLIENT_CERTIFICATE => {
                own.certificate = certificate(given.client_certificate.as_ref(), now, faults);
            }
            _ => {}
        }
    }
}

/// A field that a stream does not have.
fn without(field: &str, is_unset: bool, faults: &mut Faults) {
    if !is_unset {
        faults.add(field, "a STREAM has none");
    }
}

/// How a new subscription's deliveries reach their receiver, and for how long it
/// lives without one.
pub(super) fn set_kind(
    s: &mut Subscription,
    given: &v1::Subscription,
    now: Micros,
    faults: &mut Faults,
) {
    s.kind = match SubscriptionKind::try_from(given.kind) {
        Ok(SubscriptionKind::Unspecified | SubscriptionKind::Webhook) => Kind::Webhook,
        Ok(SubscriptionKind::Stream) => Kind::Stream,
        Err(_) => {
            faults.add("kind", "takes WEBHOOK or STREAM");
            Kind::Webhook
        }
    };
    let seconds = given.expire_after_seconds;
    if seconds == 0 {
        return;
    }
    let field = "expire_after_seconds";
    if s.kind == Kind::Webhook {
        faults.add(field, "is for a STREAM");
    }
    let seconds = faults.number(field, seconds, 60, 604_800, 60);
    s.lifetime = Some(Lifetime {
        seconds,
        ends_at: now.saturating_add(seconds.saturating_mul(1_000_000)),
    });
}

/// A receiver's URL, as it stands where it can be called like that: a name with
/// letters beyond ASCII is stored as the one that is looked up.
fn url(given: &str, live: &Live, faults: &mut Faults) -> String {
    if given.is_empty() {
        faults.add("url", "is required");
        return String::new();
    }
    if given.chars().count() > MAX_URL_LENGTH {
        faults.add("url", format!("has at most {MAX_URL_LENGTH} characters"));
        return String::new();
    }
    if let Err(e) = Url::parse(given) {
        faults.add("url", format!("is not a URL: {e}"));
        return String::new();
    }
    match connector::policy(live).check_url(given) {
        Ok(url) => {
            let callable = |text: &&str| text.parse::<Uri>().is_ok();
            let found = [given, url.as_str()].into_iter().find(callable);
            if found.is_none() {
                faults.add("url", "has characters that must be percent-encoded");
            }
            found.unwrap_or_default().to_owned()
        }
        Err(why) => {
            faults.refuse_field(Reason::EndpointNotAllowed, "url", why);
            String::new()
        }
    }
}

/// A client certificate that can be used, as it stands.
fn certificate(
    given: Option<&v1::ClientCertificate>,
    now: Micros,
    faults: &mut Faults,
) -> Option<Pem> {
    let given = given?;
    let pem = Pem {
        chain: given.certificate_chain.clone(),
        private_key: Zeroizing::new(given.private_key.clone()),
    };
    let chain = "client_certificate.certificate_chain";
    match ClientCertificate::parse(&pem) {
        Ok(read) if read.has_expired(now) => faults.add(chain, "has expired"),
        Ok(_) => {}
        Err(CertificateError::Chain(why)) => faults.add(chain, why),
        Err(CertificateError::PrivateKey(why)) => {
            faults.add("client_certificate.private_key", why);
        }
    }
    Some(pem)
}

fn event_types(given: &[String], faults: &mut Faults) -> Vec<String> {
    if given.is_empty() {
        return vec!["*".to_owned()];
    }
    if given.len() > 100 {
        faults.add("event_types", "has at most 100 entries");
    }
    for (i, pattern) in given.iter().enumerate() {
        if !is_pattern(pattern) {
            faults.add(
                format!("event_types[{i}]"),
                "takes an event type (`invoice.paid`), a prefix (`invoice.*`) or `*`",
            );
        } else if given[..i].contains(pattern) {
            faults.add(
                format!("event_types[{i}]"),
                format!("{} stands here twice", echo(pattern)),
            );
        }
    }
    given.to_vec()
}

fn headers(given: &HashMap<String, String>, faults: &mut Faults) -> Headers {
    if given.len() > 20 {
        faults.add("headers", "has at most 20 entries");
    }
    let sorted = sorted(given);
    let mut seen: Vec<String> = Vec::with_capacity(sorted.len());
    for (name, value) in &sorted {
        let field = entry("headers", name);
        let lower = name.to_ascii_lowercase();
        if name.len() > 128 || name.parse::<HeaderName>().is_err() {
            faults.add(&field, "is not the name of a header");
        } else if is_ours(&lower) {
            faults.add(&field, "is a header that is not for subscriptions to set");
        } else if seen.contains(&lower) {
            faults.add(&field, "stands here twice: case does not matter");
        }
        seen.push(lower);
        let visible = value.bytes().all(|b| (b' '..=b'~').contains(&b));
        let right = visible && value.trim() == value && value.parse::<HeaderValue>().is_ok();
        if value.len() > 1024 || !right {
            faults.add(
                &field,
                "has at most 1024 visible ASCII characters, no spaces around them",
            );
        }
    }
    sorted
}

fn is_ours(name: &str) -> bool {
    NOT_THEIRS.contains(&name)
        || ["x-webhook-", "webhook-", "content-"]
            .iter()
            .any(|p| name.starts_with(p))
}

/// Switches a subscription on or off. The time for which it was off is kept: it
/// does not count into its deliveries' ages.
fn enable(s: &mut Subscription, on: bool, now: Micros) {
    match (&s.disabled, on) {
        (Some(disabled), true) => {
            s.held += (now - disabled.at).max(0);
            s.disabled = None;
        }
        (None, false) => {
            s.disabled = Some(Disabled {
                at: now,
                reason: String::new(),
            });
        }
        _ => {}
    }
}

/// In which form events are sent; `STANDARD` where it is not said.
fn format(number: i32, faults: &mut Faults) -> PayloadFormat {
    match v1::PayloadFormat::try_from(number) {
        Ok(v1::PayloadFormat::Standard | v1::PayloadFormat::Unspecified) => PayloadFormat::Standard,
        Ok(v1::PayloadFormat::CloudeventsStructured) => PayloadFormat::CloudEventsStructured,
        Ok(v1::PayloadFormat::CloudeventsBinary) => PayloadFormat::CloudEventsBinary,
        Err(_) => {
            faults.add(
                "payload_format",
                "takes STANDARD, CLOUDEVENTS_STRUCTURED or CLOUDEVENTS_BINARY",
            );
            PayloadFormat::Standard
        }
    }
}

/// Whether deliveries go in order; not where it is not said.
fn ordering(number: i32, faults: &mut Faults) -> Ordering {
    match v1::Ordering::try_from(number) {
        Ok(v1::Ordering::Off | v1::Ordering::Unspecified) => Ordering::Off,
        Ok(v1::Ordering::Block) => Ordering::Block,
        Ok(v1::Ordering::Skip) => Ordering::Skip,
        Ok(v1::Ordering::Park) => Ordering::Park,
        Err(_) => {
            faults.add("ordering", "takes OFF, BLOCK, SKIP or PARK");
            Ordering::Off
        }
    }
}

/// How deliveries are signed; `V1` where it is not said.
pub(super) fn scheme(number: i32, faults: &mut Faults) -> Scheme {
    match SignatureScheme::try_from(number) {
        Ok(SignatureScheme::V1 | SignatureScheme::Unspecified) => Scheme::V1,
        Ok(SignatureScheme::Plain) => Scheme::Plain,
        Ok(SignatureScheme::Ed25519) => Scheme::Ed25519,
        Err(_) => {
            faults.add("signature_scheme", "takes V1, PLAIN or ED25519");
            Scheme::V1
        }
    }
}

/// An Ed25519 key signs nothing else, and nothing else signs like it: such a
/// change would be one of the secret too.
fn change_scheme(s: &mut Subscription, number: i32, faults: &mut Faults) {
    let next = scheme(number, faults);
    if (s.scheme == Scheme::Ed25519) != (next == Scheme::Ed25519) {
        faults.refuse(Error::new(
            Reason::FailedPrecondition,
            "ED25519 takes a secret of another kind: make a new subscription with it, and delete this one",
        ));
    }
    s.scheme = next;
}

fn schedule(given: Option<&RetrySchedule>, faults: &mut Faults) -> Option<Schedule> {
    let given = given?;
    let numbers = given.max_attempts != 0 || !given.backoff_seconds.is_empty();
    let preset = match RetryPreset::try_from(given.preset) {
        Ok(RetryPreset::Unspecified) if !numbers => return None,
        Ok(RetryPreset::Unspecified) => None,
        Ok(RetryPreset::Standard) => Some(Schedule::standard()),
        Ok(RetryPreset::Burst) => Some(Schedule::burst()),
        Err(_) => {
            faults.add("retry_schedule.preset", "takes STANDARD or BURST");
            return None;
        }
    };
    if preset.is_some() {
        if numbers {
            faults.add(
                "retry_schedule.preset",
                "is not for use together with numbers",
            );
        }
        return preset;
    }
    let attempts = u16::try_from(given.max_attempts).ok();
    let attempts = attempts.filter(|n| (1..=20).contains(n));
    if attempts.is_none() {
        faults.add("retry_schedule.max_attempts", "takes 1 to 20");
    }
    let waits = &given.backoff_seconds;
    if waits.len() > 20 {
        faults.add("retry_schedule.backoff_seconds", "has at most 20 entries");
    } else if waits.is_empty() && given.max_attempts > 1 {
        faults.add(
            "retry_schedule.backoff_seconds",
            "has at least one entry where there is more than one attempt",
        );
    }
    for (i, wait) in waits.iter().enumerate() {
        if !(1..=86_400).contains(wait) {
            faults.add(
                format!("retry_schedule.backoff_seconds[{i}]"),
                "takes 1 to 86400",
            );
        }
    }
    Some(Schedule {
        max_attempts: attempts.unwrap_or(1),
        backoff: waits
            .iter()
            .map(|w| u32::try_from(*w).unwrap_or(1))
            .collect(),
    })
}

#[cfg(test)]
mod tests;
