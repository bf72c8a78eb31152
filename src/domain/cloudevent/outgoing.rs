//! CloudEvents that go out.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{STRUCTURED_JSON, VERSION, header};
use crate::domain::{
    event::{Parts, parts},
    id::TenantId,
    subscription::PayloadFormat,
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
pub fn message(format: PayloadFormat, tenant: TenantId, body: &Bytes) -> Option<Message> {
    const JSON: &str = "application/json";
    match format {
        PayloadFormat::Standard => Some(Message {
            body: body.clone(),
            content_type: JSON,
            headers: Vec::new(),
        }),
        PayloadFormat::CloudEventsStructured => Some(Message {
            body: structured(tenant, &parts(body)?),
            content_type: STRUCTURED_JSON,
            headers: Vec::new(),
        }),
        PayloadFormat::CloudEventsBinary => {
            let parts = parts(body)?;
            Some(Message {
                body: body.slice_ref(parts.data),
                content_type: JSON,
                headers: vec![
                    (header::SPECVERSION, VERSION.to_owned()),
                    (header::ID, parts.id.to_owned()),
                    (header::SOURCE, source(tenant)),
                    (header::TYPE, parts.event_type.to_owned()),
                    (header::TIME, parts.timestamp.to_owned()),
                ],
            })
        }
    }
}

fn source(tenant: TenantId) -> String {
    format!("urn:onering:tenant:{tenant}")
}

/// None of the attributes needs escaping: see [`parts`].
fn structured(tenant: TenantId, event: &Parts<'_>) -> Bytes {
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
    out.put_slice(br#"","datacontenttype":"application/json","data":"#);
    out.put_slice(event.data);
    out.put_u8(b'}');
    out.freeze()
}
