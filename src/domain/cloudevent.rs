//! CloudEvents 1.0: reads an event that comes as one, and writes an event as
//! one. JSON event format 1.0.2, HTTP protocol binding 1.0.2, in structured and
//! in binary mode.
//!
//! What comes in becomes an event like any other: `type` and `data` are taken
//! over, `id` and `source` tell a repetition, `traceparent` and `tracestate` tell where it
//! happened, `partitionkey` what it goes in order with; other attributes are not kept.

mod incoming;
mod outgoing;

pub use incoming::{CloudEvent, Refused, binary, structured};
pub use outgoing::{Message, message};

/// The version that is read and written.
const VERSION: &str = "1.0";
/// The media type of a CloudEvent in the JSON event format.
pub const STRUCTURED_JSON: &str = "application/cloudevents+json";
/// What the media type of anything but a binary CloudEvent begins with.
pub const MEDIA_PREFIX: &str = "application/cloudevents";
/// The media type of a list of CloudEvents in the JSON event format.
pub const BATCH_JSON: &str = "application/cloudevents-batch+json";

/// The headers that carry a binary CloudEvent's attributes.
pub mod header {
    /// The version of CloudEvents.
    pub const SPECVERSION: &str = "ce-specversion";
    /// The event's id, unique within its source.
    pub const ID: &str = "ce-id";
    /// Where the event comes from, a URI reference.
    pub const SOURCE: &str = "ce-source";
    /// The event's type.
    pub const TYPE: &str = "ce-type";
    /// When it happened, RFC 3339.
    pub const TIME: &str = "ce-time";
    /// The trace in which it happened (distributed tracing extension).
    pub const TRACEPARENT: &str = "ce-traceparent";
    /// Whose events belong together (partitioning extension).
    pub const PARTITIONKEY: &str = "ce-partitionkey";
    /// What vendors added to that.
    pub const TRACESTATE: &str = "ce-tracestate";
}

/// Whether a media type says JSON, with or without parameters.
#[must_use]
pub fn is_json(media_type: &str) -> bool {
    let media = media_type.split(';').next().unwrap_or_default().trim();
    let Some((kind, subtype)) = media.split_once('/') else {
        return false;
    };
    let subtype = subtype.to_ascii_lowercase();
    !kind.is_empty() && (subtype == "json" || subtype.ends_with("+json"))
}

#[cfg(test)]
mod tests;
