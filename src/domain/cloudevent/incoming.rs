//! CloudEvents that come in.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{VERSION, header, is_json};
use crate::domain::{
    event::{TYPE_TAKES, is_type},
    trace::{self, Context},
};

/// A CloudEvent, as far as it becomes an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudEvent {
    /// Its `type`.
    pub event_type: String,
    /// Its data's JSON text as it was written; `null` where it has none.
    pub data: Bytes,
    /// Stands for its `source` and `id`, which together identify it.
    pub idempotency_key: String,
    /// The trace in which it happened (distributed tracing extension); one that
    /// is none is ignored.
    pub context: Option<Context>,
    /// What vendors added to that.
    pub state: String,
    /// What it goes in order with (partitioning extension).
    pub partition_key: Option<String>,
}

/// Why a CloudEvent is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Its data is in a form that is not taken; says which is.
    Unsupported(&'static str),
    /// Which attributes or headers are wrong, and what they take.
    Invalid(Vec<(&'static str, String)>),
}

impl Refused {
    fn body(message: impl Into<String>) -> Self {
        Self::Invalid(vec![("body", message.into())])
    }
}

/// The members that mean something here. Others are extensions, or attributes
/// that are not kept. `null` is a member that is not there (JSON event format).
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, default)]
    specversion: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    source: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "type")]
    event_type: Option<&'a RawValue>,
    #[serde(borrow, default)]
    datacontenttype: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data_base64: Option<&'a RawValue>,
    #[serde(borrow, default)]
    traceparent: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tracestate: Option<&'a RawValue>,
    #[serde(borrow, default)]
    partitionkey: Option<&'a RawValue>,
}

/// Reads a CloudEvent in structured mode. Its data is a slice of the body, not
/// a copy; how deep it nests is for its publisher to check.
///
/// # Errors
/// Names each attribute that is missing or wrong.
pub fn structured(body: &Bytes) -> Result<CloudEvent, Refused> {
    // Derived readers take arrays for structs too.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refused::body("must be a CloudEvent, a JSON object"));
    }
    let members: Members<'_> =
        serde_json::from_slice(body).map_err(|e| Refused::body(format!("must be JSON: {e}")))?;
    if members.data_base64.is_some() {
        return Err(Refused::Unsupported(
            "`data_base64` is not taken: the data must be JSON, in `data`",
        ));
    }
    match text(members.datacontenttype) {
        Ok(None) => {}
        Ok(Some(media_type)) if is_json(&media_type) => {}
        Ok(Some(_)) => {
            return Err(Refused::Unsupported(
                "the data must be JSON: `datacontenttype` says otherwise",
            ));
        }
        Err(why) => return Err(Refused::Invalid(vec![("datacontenttype", why.into())])),
    }
    let data = match members.data {
        // The text was borrowed from this very body.
        Some(raw) => body.slice_ref(raw.get().as_bytes()),
        None => Bytes::from_static(b"null"),
    };
    event(
        data,
        [
            ("specversion", text(members.specversion)),
            ("id", text(members.id)),
            ("source", text(members.source)),
            ("type", text(members.event_type)),
        ],
    )
    .map(|event| traced(event, text(members.traceparent), text(members.tracestate)))
    .and_then(|event| ordered(event, "partitionkey", text(members.partitionkey)))
}

/// Adds where an event happened.
fn traced<E>(
    event: CloudEvent,
    parent: Result<Option<String>, E>,
    state: Result<Option<String>, E>,
) -> CloudEvent {
    let context = parent.ok().flatten().and_then(|p| Context::parse(&p));
    let state = state.ok().flatten().filter(|_| context.is_some());
    CloudEvent {
        context,
        state: trace::state(state.as_deref().into_iter()),
        ..event
    }
}

/// Adds what an event goes in order with. One that is wrong is refused and not
/// ignored: its publisher counts on the order.
fn ordered(
    event: CloudEvent,
    name: &'static str,
    key: Result<Option<String>, &'static str>,
) -> Result<CloudEvent, Refused> {
    let refused = |why: &str| Refused::Invalid(vec![(name, why.to_owned())]);
    let partition_key = key.map_err(refused)?;
    if partition_key.as_deref() == Some("") {
        return Err(refused("must not be empty"));
    }
    Ok(CloudEvent {
        partition_key,
        ..event
    })
}

fn text(raw: Option<&RawValue>) -> Result<Option<String>, &'static str> {
    raw.map(|raw| serde_json::from_str(raw.get()))
        .transpose()
        .map_err(|_| "must be a string")
}

/// Reads a CloudEvent in binary mode. `get` gives a header's value, or what is
/// wrong with it; the body is the data, and its media type was checked.
///
/// # Errors
/// Names each header that is missing or wrong.
pub fn binary<'h>(
    get: impl Fn(&'static str) -> Result<Option<&'h str>, &'static str>,
    body: Bytes,
) -> Result<CloudEvent, Refused> {
    let text = |name| match get(name) {
        Ok(Some(value)) => decode(value)
            .map(Some)
            .ok_or("must be percent-encoded UTF-8"),
        Ok(None) => Ok(None),
        Err(why) => Err(why),
    };
    let data = if body.is_empty() {
        Bytes::from_static(b"null")
    } else {
        body
    };
    let names = [
        header::SPECVERSION,
        header::ID,
        header::SOURCE,
        header::TYPE,
    ];
    event(data, names.map(|name| (name, text(name))))
        .map(|event| traced(event, text(header::TRACEPARENT), text(header::TRACESTATE)))
        .and_then(|event| ordered(event, header::PARTITIONKEY, text(header::PARTITIONKEY)))
}

/// An attribute: its name as the caller wrote it, and its value if it has one.
type Attribute = (&'static str, Result<Option<String>, &'static str>);

/// Of `specversion`, `id`, `source` and `type`, in this order.
fn event(data: Bytes, attributes: [Attribute; 4]) -> Result<CloudEvent, Refused> {
    let names = [0, 1, 2, 3].map(|i: usize| attributes[i].0);
    let mut faults: Vec<(&'static str, String)> = Vec::new();
    let [version, id, source, event_type] = attributes.map(|(name, value)| match value {
        Ok(Some(text)) if !text.is_empty() => text,
        Ok(_) => {
            faults.push((name, "is required".to_owned()));
            String::new()
        }
        Err(why) => {
            faults.push((name, why.to_owned()));
            String::new()
        }
    });
    if !version.is_empty() && version != VERSION {
        faults.push((names[0], format!("must be {VERSION}")));
    }
    for (name, text) in [(names[1], &id), (names[2], &source)] {
        if text.chars().any(char::is_control) {
            faults.push((name, "must have no control characters".to_owned()));
        }
    }
    if !event_type.is_empty() && !is_type(&event_type) {
        faults.push((names[3], TYPE_TAKES.to_owned()));
    }
    if !faults.is_empty() {
        return Err(Refused::Invalid(faults));
    }
    Ok(CloudEvent {
        event_type,
        data,
        idempotency_key: idempotency_key(&source, &id),
        context: None,
        state: String::new(),
        partition_key: None,
    })
}

/// Of fixed length, whatever the source's. NUL, a control character, is in
/// neither of them.
fn idempotency_key(source: &str, id: &str) -> String {
    let digest = Sha256::new()
        .chain_update(source)
        .chain_update([0])
        .chain_update(id)
        .finalize();
    format!("ce:{}", hex::encode(digest))
}

/// Decodes a header's value (HTTP protocol binding, 3.1.3.2): a quoted string is
/// unescaped first, as older versions of the binding wrote them, then there is
/// one round of percent-decoding.
fn decode(value: &str) -> Option<String> {
    let unquoted;
    let value = match value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) {
        Some(quoted) => {
            let mut out = String::with_capacity(quoted.len());
            let mut chars = quoted.chars();
            while let Some(c) = chars.next() {
                out.push(if c == '\\' { chars.next()? } else { c });
            }
            unquoted = out;
            &unquoted
        }
        None => value,
    };
    let mut bytes = value.bytes();
    let mut out = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        out.push(if byte == b'%' {
            let mut pair = [0];
            hex::decode_to_slice([bytes.next()?, bytes.next()?], &mut pair).ok()?;
            pair[0]
        } else {
            byte
        });
    }
    String::from_utf8(out).ok()
}
