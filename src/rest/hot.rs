//! The short way for what is called most: typed, without descriptors. Whatever
//! is out of the ordinary goes the long way, so that both answer alike.

use std::io::Write as _;

use bytes::Bytes;
use http::{HeaderMap, Method};
use prost_reflect::DynamicMessage;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{
    Rest,
    json::{MAX_DEPTH, Text, depth, write_text, write_timestamp},
    request,
    routes::Found,
};
use crate::{
    domain::trace::Context,
    error::Error,
    proto::v1::{GetCallerResponse, KeyKind, PublishEventResponse},
};

/// The route of `EventService.PublishEvent`.
pub const PUBLISH: &str = "/v1/external/events";

/// `PublishEventRequest` as REST has it. An empty string is one that is not set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishBody {
    /// The tenant, where it was named.
    pub tenant: Option<String>,
    /// The event's type; may be empty, which is for the handler to refuse.
    pub event_type: String,
    /// The text of `data` as it was written, `null` too; `None` where there was
    /// no `data`. A slice of the body, not a copy.
    pub data: Option<Bytes>,
    /// From the body, else from the header `Idempotency-Key`.
    pub idempotency_key: Option<String>,
    /// Whose deliveries go in order.
    pub ordering_key: Option<String>,
    /// Of a CloudEvent: the trace in which it happened.
    pub context: Option<Context>,
    /// What vendors added to that.
    pub state: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fast<'a> {
    #[serde(borrow, default)]
    tenant: Option<Text<'a>>,
    #[serde(borrow, default)]
    event_type: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    idempotency_key: Option<Text<'a>>,
    #[serde(borrow, default)]
    ordering_key: Option<Text<'a>>,
}

/// A raw value, `null` too, which an `Option` would swallow.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reads a call of [`PUBLISH`] exactly as the transcoder does: the same
/// results, the same errors.
///
/// # Errors
/// `INVALID_ARGUMENT` and `UNSUPPORTED_MEDIA_TYPE`. The caller limits the
/// body's size.
pub fn parse_publish(
    rest: &Rest,
    query: Option<&str>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<PublishBody, Error> {
    request::check_content(headers, body)?;
    let plain = query.is_none_or(str::is_empty);
    if let Some(publish) = fast(headers, body).filter(|_| plain) {
        return Ok(publish);
    }
    let Found::Route(route, _) = rest.routes.find(&Method::POST, PUBLISH) else {
        return Err(Error::internal("publishing has no route"));
    };
    let parts = request::Parts {
        variables: &[],
        query,
        headers,
        body,
    };
    request::build(&rest.schema, route, parts).map(|message| from_message(&message))
}

/// `None` for anything that is not a good request.
fn fast(headers: &HeaderMap, body: &Bytes) -> Option<PublishBody> {
    // Derived readers take arrays for structs too.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let read: Fast<'_> = serde_json::from_slice(body).ok()?;
    if depth(body) > MAX_DEPTH {
        return None;
    }
    let set = |text: Option<Text<'_>>| {
        let text = text.map(|Text(text)| text.into_owned());
        text.filter(|text| !text.is_empty())
    };
    let idempotency_key = match set(read.idempotency_key) {
        None => request::idempotency_key(headers).ok()?.map(str::to_owned),
        some => some,
    };
    Some(PublishBody {
        tenant: set(read.tenant),
        event_type: set(read.event_type).unwrap_or_default(),
        // The text was borrowed from this very body.
        data: read.data.map(|raw| body.slice_ref(raw.get().as_bytes())),
        idempotency_key,
        ordering_key: set(read.ordering_key),
        ..PublishBody::default()
    })
}

/// What the long way has read.
fn from_message(message: &DynamicMessage) -> PublishBody {
    let text = |name| {
        let value = message.get_field_by_name(name);
        let text = value.and_then(|v| v.as_str().map(str::to_owned));
        text.filter(|text| !text.is_empty())
    };
    let data = message
        .has_field_by_name("data_json")
        .then(|| message.get_field_by_name("data_json"))
        .flatten();
    PublishBody {
        tenant: text("tenant"),
        event_type: text("event_type").unwrap_or_default(),
        data: data.and_then(|v| v.as_bytes().cloned()),
        idempotency_key: text("idempotency_key"),
        ordering_key: text("ordering_key"),
        ..PublishBody::default()
    }
}

/// Writes the answer to [`PUBLISH`], the same bytes as the transcoder does.
///
/// # Errors
/// `INTERNAL` for a time that has no form.
pub fn write_publish_response(response: &PublishEventResponse) -> Result<Bytes, Error> {
    let mut out = Vec::with_capacity(160);
    out.extend_from_slice(b"{\"id\":");
    write_text(&mut out, &response.id);
    out.extend_from_slice(b",\"event_type\":");
    write_text(&mut out, &response.event_type);
    time(&mut out, "create_time", response.create_time.as_ref())?;
    // Writing to a Vec can't fail.
    let _ = write!(out, ",\"delivery_count\":{}}}", response.delivery_count);
    Ok(out.into())
}

/// Writes the answer to `GET /v1/external/me`, the same bytes as the
/// transcoder does.
///
/// # Errors
/// `INTERNAL` for a time that has no form.
pub fn write_caller(caller: &GetCallerResponse) -> Result<Bytes, Error> {
    let mut out = Vec::with_capacity(320);
    out.extend_from_slice(b"{\"key_id\":");
    write_text(&mut out, &caller.key_id);
    out.extend_from_slice(b",\"tenant\":");
    write_text(&mut out, &caller.tenant);
    out.extend_from_slice(b",\"name\":");
    write_text(&mut out, &caller.name);
    match KeyKind::try_from(caller.kind) {
        Ok(KeyKind::Unspecified) => {}
        Ok(KeyKind::Consumer) => out.extend_from_slice(b",\"kind\":\"CONSUMER\""),
        Ok(KeyKind::Admin) => out.extend_from_slice(b",\"kind\":\"ADMIN\""),
        Err(_) => {
            let _ = write!(out, ",\"kind\":{}", caller.kind);
        }
    }
    out.extend_from_slice(b",\"tier\":");
    write_text(&mut out, &caller.tier);
    out.extend_from_slice(b",\"scopes\":[");
    for (i, scope) in caller.scopes.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_text(&mut out, scope);
    }
    let _ = write!(out, "],\"canary_enabled\":{}", caller.canary_enabled);
    if let Some(limit) = caller.rate_limit_per_hour {
        let _ = write!(out, ",\"rate_limit_per_hour\":{limit}");
    }
    time(&mut out, "expire_time", caller.expire_time.as_ref())?;
    time(&mut out, "create_time", caller.create_time.as_ref())?;
    out.push(b'}');
    Ok(out.into())
}

fn time(out: &mut Vec<u8>, name: &str, time: Option<&prost_types::Timestamp>) -> Result<(), Error> {
    let Some(time) = time else {
        return Ok(());
    };
    let _ = write!(out, ",\"{name}\":");
    write_timestamp(out, time.seconds, time.nanos)
}
