//! Events: their types and the body that is sent.

use bytes::{BufMut as _, Bytes, BytesMut};
use sha2::{Digest as _, Sha256};

use super::id::{DAY, EventId, Micros, day_of, time_of};

/// Whether a text can be an event's type: 1 to 128 characters, words of letters,
/// digits, `_` and `-`, joined by dots. Such a text needs no escaping in JSON or
/// in a header.
#[must_use]
pub fn is_type(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.split('.').all(|word| {
            !word.is_empty()
                && word
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        })
}

/// What [`is_type`] takes, for those who gave something else.
pub const TYPE_TAKES: &str =
    "takes 1 to 128 characters: words of a-z, A-Z, 0-9, _ and -, joined by dots";

/// The types of events that tell a tenant how its own webhooks fare.
pub const OPERATIONAL: [&str; 6] = [
    BREAKER_OPENED,
    BREAKER_CLOSED,
    DELIVERY_DEAD,
    SECRET_ROTATED,
    SUBSCRIPTION_DISABLED,
    SUBSCRIPTION_FAILING,
];
/// The type of the event that tests one subscription and goes to it alone.
pub const TEST: &str = "webhook.test";
/// A receiver is left alone for a while.
pub const BREAKER_OPENED: &str = "breaker.opened";
/// It works again.
pub const BREAKER_CLOSED: &str = "breaker.closed";
/// Deliveries were given up.
pub const DELIVERY_DEAD: &str = "delivery.dead";
/// A subscription has a new secret.
pub const SECRET_ROTATED: &str = "secret.rotated";
/// The server switched a subscription off.
pub const SUBSCRIPTION_DISABLED: &str = "subscription.disabled";
/// It will do so soon.
pub const SUBSCRIPTION_FAILING: &str = "subscription.failing";

/// A time as RFC 3339 in UTC, to the microsecond.
#[must_use]
pub fn rfc3339(time: Micros) -> String {
    jiff::Timestamp::from_microsecond(time)
        .map_or_else(|_| "1970-01-01T00:00:00Z".to_owned(), |t| format!("{t:.6}"))
}

/// The body that every attempt sends: `{"id","type","timestamp","data"}`, with
/// `data` as its publisher wrote it.
#[must_use]
pub fn body(id: EventId, event_type: &str, time: Micros, data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + event_type.len() + 128);
    out.put_slice(br#"{"id":""#);
    out.put_slice(id.to_string().as_bytes());
    out.put_slice(br#"","type":""#);
    out.put_slice(event_type.as_bytes());
    out.put_slice(br#"","timestamp":""#);
    out.put_slice(rfc3339(time).as_bytes());
    out.put_slice(br#"","data":"#);
    out.put_slice(data);
    out.put_u8(b'}');
    out.freeze()
}

/// The `data` of a [`body`].
#[must_use]
pub fn data_of(body: &[u8]) -> &[u8] {
    const MARK: &[u8] = br#","data":"#;
    // The fields in front of it hold no quotes, so that the first mark is it.
    body.windows(MARK.len())
        .position(|w| w == MARK)
        .map_or(b"null", |at| &body[at + MARK.len()..body.len() - 1])
}

/// What a [`body`] is made of. All but the data are ASCII that needs no escaping
/// in JSON or in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'b> {
    /// The event's id.
    pub id: &'b str,
    /// Its type.
    pub event_type: &'b str,
    /// When it was accepted, RFC 3339.
    pub timestamp: &'b str,
    /// Its data's JSON text.
    pub data: &'b [u8],
}

/// The parts of a [`body`]; `None` of anything else.
#[must_use]
pub fn parts(body: &[u8]) -> Option<Parts<'_>> {
    // As far as the data no field holds a quote, so that each mark ends one.
    fn text<'b>(rest: &mut &'b [u8], mark: &[u8]) -> Option<&'b str> {
        let at = rest.windows(mark.len()).position(|w| w == mark)?;
        let found = std::str::from_utf8(&rest[..at]).ok()?;
        *rest = &rest[at + mark.len()..];
        Some(found)
    }
    let mut rest = body.strip_prefix(br#"{"id":""#)?.strip_suffix(b"}")?;
    Some(Parts {
        id: text(&mut rest, br#"","type":""#)?,
        event_type: text(&mut rest, br#"","timestamp":""#)?,
        timestamp: text(&mut rest, br#"","data":"#)?,
        data: rest,
    })
}

/// What tells two publishes with one idempotency key apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idempotency {
    /// The key's own day where it is a UUIDv7, else 0. It follows from the key
    /// alone: a record that is kept by it is found again whenever the key comes.
    pub day: i32,
    /// The key itself where it is a UUIDv7, else half a SHA-256 of it.
    pub key: [u8; 16],
    /// Half a SHA-256 of the type and the payload's bytes.
    pub content: [u8; 16],
}

impl Idempotency {
    /// How long a key is remembered at the least.
    pub const WINDOW: Micros = DAY;

    /// Of a publish with that key.
    #[must_use]
    pub fn new(key: &str, event_type: &str, data: &[u8]) -> Self {
        let content = Sha256::new()
            .chain_update(event_type.as_bytes())
            .chain_update([0])
            .chain_update(data)
            .finalize();
        // A UUIDv7 in its usual spelling stands for itself: such keys come in
        // order, and an index takes them at its end.
        let uuid = uuid::Uuid::try_parse(key)
            .ok()
            .filter(|u| u.get_version_num() == 7 && u.as_hyphenated().to_string() == key);
        Self {
            day: uuid.map_or(0, |u| day_of(time_of(u))),
            key: uuid.map_or_else(|| half(&Sha256::digest(key.as_bytes())), |u| *u.as_bytes()),
            content: half(&content),
        }
    }
}

fn half(digest: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&digest[..16]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::id::Part;

    proptest! {
        // D5: the payload's bytes are the publisher's.
        #[test]
        fn data_survives(data in "\\PC{0,200}", time in 0i64..4_000_000_000_000_000) {
            let json = serde_json::to_string(&data).unwrap();
            let body = body(EventId::new(time, Part::new(3)), "a.b", time, json.as_bytes());
            prop_assert_eq!(data_of(&body), json.as_bytes());
            prop_assert_eq!(parts(&body).unwrap().data, json.as_bytes());
            let parsed: serde_json::Value = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(parsed["data"].as_str(), Some(data.as_str()));
        }
    }

    #[test]
    fn types() {
        for good in ["a", "invoice.paid", "x-y_z.1.B"] {
            assert!(is_type(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a\"b",
            "ü",
            &"x".repeat(129),
        ] {
            assert!(!is_type(bad), "{bad}");
        }
    }

    #[test]
    fn a_time_reads_as_rfc_3339() {
        assert_eq!(
            rfc3339(1_700_000_000_000_001),
            "2023-11-14T22:13:20.000001Z"
        );
    }
}
