//! CloudEvents that go out.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{STRUCTURED_JSON, VERSION, header};
use crate::domain::{
    event::{Parts, parts},
    id::TenantId,
    subscription::PayloadFormat,
    trace::Trace,
};

/// An event in the form in which a subscription wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The body; signatures are over it.
    pub body: Bytes,
    /// Its media type.
    pub content_type: &'static str,
    /// Headers that are part of the form.
    pub headers: Vec<(&'static str, String)>,
}

/// Writes an event's stored body in a form. It follows from its arguments
/// alone, so that it is the same at every attempt. `None` where what is stored
/// is not an event's body.
#[must_use]
pub fn message(
    format: PayloadFormat,
    tenant: TenantId,
    body: &Bytes,
    trace: Option<&Trace>,
) -> Option<Message> {
    const JSON: &str = "application/json";
    match format {
        PayloadFormat::Standard => Some(Message {
            body: body.clone(),
            content_type: JSON,
            headers: Vec::new(),
        }),
        PayloadFormat::CloudEventsStructured => Some(Message {
            body: structured(tenant, &parts(body)?, trace),
            content_type: STRUCTURED_JSON,
            headers: Vec::new(),
        }),
        PayloadFormat::CloudEventsBinary => {
            let parts = parts(body)?;
            let mut headers = vec![
                (header::SPECVERSION, VERSION.to_owned()),
                (header::ID, parts.id.to_owned()),
                (header::SOURCE, source(tenant)),
                (header::TYPE, parts.event_type.to_owned()),
                (header::TIME, parts.timestamp.to_owned()),
            ];
            if let Some((context, state)) = context(trace) {
                headers.push((header::TRACEPARENT, context));
                if !state.is_empty() {
                    headers.push((header::TRACESTATE, encode(state)));
                }
            }
            Some(Message {
                body: body.slice_ref(parts.data),
                content_type: JSON,
                headers,
            })
        }
    }
}

fn source(tenant: TenantId) -> String {
    format!("urn:onering:tenant:{tenant}")
}

/// The distributed tracing extension: the publisher's own context, the same at
/// every attempt. The attempt's span is in the header `traceparent`.
fn context(trace: Option<&Trace>) -> Option<(String, &str)> {
    let trace = trace?;
    Some((trace.context?.to_string(), &trace.state))
}

/// A header's value (HTTP protocol binding, 3.1.3.2), of printable ASCII.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' ' => out.push_str("%20"),
            '"' => out.push_str("%22"),
            '%' => out.push_str("%25"),
            c => out.push(c),
        }
    }
    out
}

/// None of the attributes needs escaping, see [`parts`], but a trace's state.
fn structured(tenant: TenantId, event: &Parts<'_>, trace: Option<&Trace>) -> Bytes {
    let mut out = BytesMut::with_capacity(event.data.len() + event.event_type.len() + 256);
    out.put_slice(br#"{"specversion":""#);
    out.put_slice(VERSION.as_bytes());
    out.put_slice(br#"","id":""#);
    out.put_slice(event.id.as_bytes());
    out.put_slice(br#"","source":""#);
    out.put_slice(source(tenant).as_bytes());
    out.put_slice(br#"","type":""#);
    out.put_slice(event.event_type.as_bytes());
    out.put_slice(br#"","time":""#);
    out.put_slice(event.timestamp.as_bytes());
    if let Some((context, state)) = context(trace) {
        out.put_slice(br#"","traceparent":""#);
        out.put_slice(context.as_bytes());
        if !state.is_empty() {
            out.put_slice(br#"","tracestate":""#);
            // Of what it may hold only these two need escaping.
            let escaped = state.replace('\\', r"\\").replace('"', r#"\""#);
            out.put_slice(escaped.as_bytes());
        }
    }
    out.put_slice(br#"","datacontenttype":"application/json","data":"#);
    out.put_slice(event.data);
    out.put_u8(b'}');
    out.freeze()
}
