//! What both engines write in the same way.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Finish, Settle};
use crate::domain::{
    delivery::{Attempt, Schedule, Status},
    id::Micros,
    key::{Hashed, Key, Kind, Previous},
    signature::Scheme,
    subscription::{
        Disabled, Headers, Kind as Way, Lifetime, Ordering, PayloadFormat, PreviousSecret, Sealed,
        Subscription,
    },
    trace::Trace,
};

/// A [`Finish`] in the columns of the finishing statements.
pub(super) struct FinishRow<'a> {
    /// 0 done, 1 dead, 2 due again, 3 failed, 4 as before.
    pub action: i16,
    pub state: i16,
    pub wait: Micros,
    pub charge: i16,
    pub replay: i16,
    pub status: i16,
    /// When the attempt began, by its node's clock; 0: nothing was tried.
    pub started: Micros,
    pub took: Micros,
    pub error: &'a str,
    pub worker: &'a str,
    pub response: &'a [u8],
    /// How the attempt ended; 0 where it needs no row.
    pub kind: i16,
    pub number: i16,
}

impl<'a> FinishRow<'a> {
    pub(super) fn of(f: &'a Finish) -> Self {
        let micros =
            |d: std::time::Duration| Micros::try_from(d.as_micros()).unwrap_or(Micros::MAX / 4);
        let (action, status, wait, charge, replay) = match f.settle {
            Settle::Done(status) => (0, status, 0, status == Status::Delivered, false),
            Settle::Dead(status) => (
                1,
                status,
                0,
                f.attempt.is_some() && status == Status::Dead,
                false,
            ),
            Settle::Retry { after, charged } => {
                (2, Status::Retrying, micros(after), charged, !charged)
            }
            Settle::Failed(after) => (3, Status::Failed, micros(after), true, false),
            Settle::Release => (4, Status::Pending, 0, false, false),
        };
        let attempt = f.attempt.as_ref();
        Self {
            action,
            state: status.to_i16(),
            wait,
            charge: charge.into(),
            replay: replay.into(),
            status: attempt.map_or(0, |a| a.response_status as i16),
            started: attempt.map_or(0, |a| a.started_at),
            took: attempt.map_or(0, |a| a.took),
            error: attempt.map_or("", |a: &Attempt| &a.error),
            worker: attempt.map_or("", |a| &a.worker),
            response: attempt.map_or(&[], |a| &a.response),
            kind: if f.keeps_attempt() {
                attempt.map_or(0, |a| a.kind.to_i16())
            } else {
                0
            },
            number: attempt.map_or(0, |a| a.number as i16),
        }
    }
}

/// What of a key is kept as one JSON text.
#[derive(Serialize, Deserialize)]
pub(super) struct KeyDoc {
    name: String,
    tier: String,
    scopes: Vec<String>,
    canary: bool,
    rate_limit_per_hour: Option<i64>,
    expires_at: Option<Micros>,
    metadata: Vec<(String, String)>,
    whole_text: bool,
}

impl KeyDoc {
    pub(super) fn of(key: &Key) -> String {
        let doc = Self {
            name: key.name.clone(),
            tier: key.tier.clone(),
            scopes: key.scopes.clone(),
            canary: key.canary,
            rate_limit_per_hour: key.rate_limit_per_hour,
            expires_at: key.expires_at,
            metadata: key.metadata.clone(),
            whole_text: key.whole_text,
        };
        serde_json::to_string(&doc).unwrap_or_default()
    }
}

/// A key's columns.
pub(super) struct KeyRow {
    pub id: uuid::Uuid,
    pub tenant: Option<uuid::Uuid>,
    pub kind: i16,
    pub doc: String,
    pub status: i16,
    pub pepper: i32,
    pub digest: Vec<u8>,
    pub previous_pepper: i32,
    pub previous_digest: Vec<u8>,
    pub previous_until: Micros,
    pub updated_at: Micros,
    /// A column and not in `doc`, which nodes of the version before write anew.
    pub allowed_cidrs: Option<String>,
}

impl KeyRow {
    pub(super) fn of(key: &Key) -> Self {
        Self {
            id: key.id.0,
            tenant: key.tenant.map(|t| t.0),
            kind: key.kind.to_i16(),
            doc: KeyDoc::of(key),
            status: key.status.to_i16(),
            pepper: key.secret.pepper,
            digest: key.secret.digest.to_vec(),
            previous_pepper: key.previous.map_or(0, |p| p.hash.pepper),
            previous_digest: key
                .previous
                .map_or_else(Vec::new, |p| p.hash.digest.to_vec()),
            previous_until: key.previous.map_or(0, |p| p.until),
            updated_at: key.updated_at,
            allowed_cidrs: networks(&key.allowed_cidrs),
        }
    }

    pub(super) fn into_key(self) -> Result<Key, String> {
        use crate::domain::id::{KeyId, TenantId};
        let doc: KeyDoc =
            serde_json::from_str(&self.doc).map_err(|e| format!("key {}: {e}", KeyId(self.id)))?;
        let digest = |bytes: &[u8]| {
            <[u8; 32]>::try_from(bytes).map_err(|_| format!("key {}: bad digest", KeyId(self.id)))
        };
        let allowed_cidrs = read_networks(self.allowed_cidrs.as_deref())
            .ok_or_else(|| format!("key {}: bad networks", KeyId(self.id)))?;
        let previous = if self.previous_until > 0 {
            Some(Previous {
                hash: Hashed {
                    pepper: self.previous_pepper,
                    digest: digest(&self.previous_digest)?,
                },
                until: self.previous_until,
            })
        } else {
            None
        };
        Ok(Key {
            id: KeyId(self.id),
            tenant: self.tenant.map(TenantId),
            kind: Kind::from_i16(self.kind),
            name: doc.name,
            tier: doc.tier,
            scopes: doc.scopes,
            canary: doc.canary,
            rate_limit_per_hour: doc.rate_limit_per_hour,
            allowed_cidrs,
            expires_at: doc.expires_at,
            metadata: doc.metadata,
            status: crate::domain::key::Status::from_i16(self.status),
            secret: Hashed {
                pepper: self.pepper,
                digest: digest(&self.digest)?,
            },
            previous,
            whole_text: doc.whole_text,
            created_at: KeyId(self.id).time(),
            updated_at: self.updated_at,
        })
    }
}

fn networks(list: &[IpNet]) -> Option<String> {
    let texts: Vec<String> = list.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(","))
}

fn read_networks(text: Option<&str>) -> Option<Vec<IpNet>> {
    text.map_or(Some(Vec::new()), |text| {
        text.split(',').map(|n| n.parse().ok()).collect()
    })
}

/// Where an event came from, as its column has it.
pub(super) fn trace(stored: Option<Vec<u8>>) -> Option<Trace> {
    Trace::decode(&stored?)
}

/// What of a subscription is kept as one JSON text.
#[derive(Serialize, Deserialize)]
pub(super) struct SubscriptionDoc {
    url: String,
    event_types: Vec<String>,
    /// As they stand, in rows from before they were sealed. Empty otherwise.
    headers: Headers,
    /// In base64.
    #[serde(default)]
    sealed_headers: String,
    description: String,
    disabled: Option<(Micros, String)>,
    held: Micros,
    /// 0 in rows from before there was a choice.
    #[serde(default)]
    format: i16,
    scheme: i16,
    schedule: Option<Schedule>,
    timeout: u32,
    max_in_flight: u32,
    max_age: i64,
    metadata: Vec<(String, String)>,
    public_key: String,
}

/// A subscription's columns.
pub(super) struct SubscriptionRow {
    pub id: uuid::Uuid,
    pub tenant: uuid::Uuid,
    pub doc: String,
    pub secret: Vec<u8>,
    pub previous_secret: Vec<u8>,
    pub previous_until: Micros,
    pub updated_at: Micros,
    /// A column and not in `doc`, which nodes of the version before write anew.
    pub client_certificate: Option<Vec<u8>>,
    /// The same.
    pub filter: Option<String>,
    /// The same.
    pub ordering: i16,
    /// The same. Null for a webhook.
    pub kind: Option<i16>,
    /// The same, in microseconds.
    pub lifetime: Option<Micros>,
    /// Set by the store's clock.
    pub ends_at: Option<Micros>,
}

impl SubscriptionRow {
    pub(super) fn of(s: &Subscription) -> Self {
        let doc = SubscriptionDoc {
            url: s.url.clone(),
            event_types: s.event_types.clone(),
            headers: Vec::new(),
            sealed_headers: BASE64.encode(&s.headers.0),
            description: s.description.clone(),
            disabled: s.disabled.as_ref().map(|d| (d.at, d.reason.clone())),
            held: s.held,
            format: format_number(s.format),
            scheme: scheme_number(s.scheme),
            schedule: s.schedule.clone(),
            timeout: s.timeout,
            max_in_flight: s.max_in_flight,
            max_age: s.max_age,
            metadata: s.metadata.clone(),
            public_key: s.public_key.clone(),
        };
        Self {
            id: s.id.0,
            tenant: s.tenant.0,
            doc: serde_json::to_string(&doc).unwrap_or_default(),
            secret: s.secret.0.clone(),
            previous_secret: s
                .previous
                .as_ref()
                .map_or_else(Vec::new, |p| p.secret.0.clone()),
            previous_until: s.previous.as_ref().map_or(0, |p| p.until),
            updated_at: s.updated_at,
            client_certificate: s.client_certificate.as_ref().map(|c| c.0.clone()),
            filter: s.filter.clone(),
            ordering: s.ordering.to_i16(),
            kind: (s.kind == Way::Stream).then_some(STREAM),
            lifetime: s.lifetime.map(|l| l.seconds.saturating_mul(1_000_000)),
            ends_at: None,
        }
    }

    pub(super) fn into_subscription(self) -> Result<Subscription, String> {
        use crate::domain::id::{SubscriptionId, TenantId};
        let id = SubscriptionId(self.id);
        let doc: SubscriptionDoc =
            serde_json::from_str(&self.doc).map_err(|e| format!("subscription {id}: {e}"))?;
        let headers = if doc.headers.is_empty() {
            BASE64
                .decode(&doc.sealed_headers)
                .map_err(|e| e.to_string())
        } else {
            serde_json::to_vec(&doc.headers).map_err(|e| e.to_string())
        };
        let headers = headers.map_err(|e| format!("subscription {id}: headers: {e}"))?;
        Ok(Subscription {
            id,
            tenant: TenantId(self.tenant),
            kind: match self.kind {
                Some(STREAM) => Way::Stream,
                _ => Way::Webhook,
            },
            lifetime: self.lifetime.map(|life| Lifetime {
                seconds: life / 1_000_000,
                ends_at: self.ends_at.unwrap_or_default(),
            }),
            url: doc.url,
            event_types: doc.event_types,
            headers: Sealed(headers),
            description: doc.description,
            disabled: doc.disabled.map(|(at, reason)| Disabled { at, reason }),
            held: doc.held,
            filter: self.filter,
            ordering: Ordering::from_i16(self.ordering),
            format: format_of(doc.format),
            scheme: scheme_of(doc.scheme),
            schedule: doc.schedule,
            timeout: doc.timeout,
            max_in_flight: doc.max_in_flight,
            max_age: doc.max_age,
            metadata: doc.metadata,
            secret: Sealed(self.secret),
            previous: (self.previous_until > 0).then_some(PreviousSecret {
                secret: Sealed(self.previous_secret),
                until: self.previous_until,
            }),
            client_certificate: self.client_certificate.map(Sealed),
            public_key: doc.public_key,
            created_at: id.time(),
            updated_at: self.updated_at,
        })
    }
}

/// A stream's kind as it is stored.
const STREAM: i16 = 2;

const fn format_number(format: PayloadFormat) -> i16 {
    match format {
        PayloadFormat::Standard => 1,
        PayloadFormat::CloudEventsStructured => 2,
        PayloadFormat::CloudEventsBinary => 3,
    }
}

const fn format_of(n: i16) -> PayloadFormat {
    match n {
        2 => PayloadFormat::CloudEventsStructured,
        3 => PayloadFormat::CloudEventsBinary,
        _ => PayloadFormat::Standard,
    }
}

const fn scheme_number(scheme: Scheme) -> i16 {
    match scheme {
        Scheme::V1 => 1,
        Scheme::Plain => 2,
        Scheme::Ed25519 => 3,
    }
}

const fn scheme_of(n: i16) -> Scheme {
    match n {
        2 => Scheme::Plain,
        3 => Scheme::Ed25519,
        _ => Scheme::V1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // N6: a row of the version before, without what it did not know.
    #[test]
    fn a_row_without_a_format_is_read() {
        let row = |doc: &str| SubscriptionRow {
            id: uuid::Uuid::nil(),
            tenant: uuid::Uuid::nil(),
            doc: doc.to_owned(),
            secret: vec![1],
            previous_secret: Vec::new(),
            previous_until: 0,
            updated_at: 1,
            client_certificate: None,
            filter: None,
            ordering: 0,
            kind: None,
            lifetime: None,
            ends_at: None,
        };
        let doc = r#"{"url":"https://a.example/","event_types":["*"],"headers":[],
            "description":"","disabled":null,"held":0,"scheme":1,"schedule":null,"timeout":15,
            "max_in_flight":100,"max_age":0,"metadata":[],"public_key":""}"#;
        let read = row(doc).into_subscription().unwrap();
        assert_eq!(read.format, PayloadFormat::Standard);
        assert_eq!(read.headers, Sealed(Vec::new()));
        let clear = doc.replace(r#""headers":[]"#, r#""headers":[["x-a","b"]]"#);
        let clear = row(&clear).into_subscription().unwrap();
        assert_eq!(clear.headers, Sealed(br#"[["x-a","b"]]"#.to_vec()));
        let again = SubscriptionRow::of(&clear).into_subscription().unwrap();
        assert_eq!(again, clear);
        for format in [
            PayloadFormat::Standard,
            PayloadFormat::CloudEventsStructured,
            PayloadFormat::CloudEventsBinary,
        ] {
            let kept = Subscription {
                format,
                ..read.clone()
            };
            let again = SubscriptionRow::of(&kept).into_subscription().unwrap();
            assert_eq!(again, kept);
        }
    }
}
