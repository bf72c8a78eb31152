//! Publishing a CloudEvent: HTTP around [`cloudevent`].

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};

use super::{hot::PublishBody, percent, request};
use crate::{
    domain::cloudevent::{self, BATCH_JSON, MEDIA_PREFIX, Refused, STRUCTURED_JSON},
    error::{Error, Reason, Violation},
};

const SPECVERSION: HeaderName = HeaderName::from_static(cloudevent::header::SPECVERSION);
const TYPE: HeaderName = HeaderName::from_static(cloudevent::header::TYPE);

/// Whether a request is a CloudEvent, in whatever mode.
#[must_use]
pub fn is_one(headers: &HeaderMap) -> bool {
    let prefix = MEDIA_PREFIX.as_bytes();
    let media = headers
        .get(header::CONTENT_TYPE)
        .map(http::HeaderValue::as_bytes);
    media.is_some_and(|m| {
        m.get(..prefix.len())
            .is_some_and(|m| m.eq_ignore_ascii_case(prefix))
    }) || headers.contains_key(SPECVERSION)
        || headers.contains_key(TYPE)
}

/// Reads a request that [`is_one`] as an event to publish.
///
/// # Errors
/// `INVALID_ARGUMENT` that names attributes or headers, and
/// `UNSUPPORTED_MEDIA_TYPE`.
pub fn parse_publish(
    query: Option<&str>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<PublishBody, Error> {
    request::check_media(headers)?;
    if let Some(query) = query.filter(|q| !q.is_empty()) {
        let name = query.split(['&', '=']).next().unwrap_or_default();
        let name = percent::decode_query(name).unwrap_or_default();
        let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
        return Err(Error::field(
            name,
            "is not a query parameter: this route has none",
        ));
    }
    let media = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok());
    let media = media
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default();
    let media = media.trim().to_ascii_lowercase();
    let event = match media.as_str() {
        STRUCTURED_JSON => cloudevent::structured(body),
        BATCH_JSON => {
            return Err(Error::new(
                Reason::UnsupportedMediaType,
                "one CloudEvent at a time: for many events use POST /v1/external/events/batch, \
                 whose body is application/json",
            ));
        }
        media if media.starts_with(MEDIA_PREFIX) => {
            return Err(Error::new(
                Reason::UnsupportedMediaType,
                "a CloudEvent in structured mode must be application/cloudevents+json",
            ));
        }
        _ => cloudevent::binary(|name| single(headers, name), body.clone()),
    };
    let event = event.map_err(refused)?;
    let explicit =
        request::idempotency_key(headers).map_err(|why| Error::field("Idempotency-Key", why))?;
    Ok(PublishBody {
        tenant: None,
        event_type: event.event_type,
        data: Some(event.data),
        idempotency_key: Some(explicit.map_or(event.idempotency_key, str::to_owned)),
        ordering_key: event.partition_key,
        context: event.context,
        state: event.state,
    })
}

fn single<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<Option<&'h str>, &'static str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err("stands here more than once");
    }
    first
        .map(|v| {
            v.to_str()
                .map_err(|_| "must be printable ASCII, all else percent-encoded")
        })
        .transpose()
}

fn refused(refused: Refused) -> Error {
    match refused {
        Refused::Unsupported(what) => Error::new(Reason::UnsupportedMediaType, what),
        Refused::Invalid(faults) => {
            let named = faults.into_iter().map(|(field, message)| Violation {
                field: field.to_owned(),
                message,
            });
            Error::fields(named.collect())
        }
    }
}
