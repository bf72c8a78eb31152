//! What the sink keeps.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde::Serialize;

/// Most bytes of headers and bodies that are kept, whatever their number.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// A delivery that was received.
#[derive(Debug, Clone, Serialize)]
pub struct Delivery {
    /// When, RFC 3339 in UTC.
    pub received_at: String,
    /// The path that it was posted to.
    pub path: String,
    /// Its headers by lower-case name; repeated ones joined with `, `.
    pub headers: BTreeMap<String, String>,
    /// The raw body; where it is not UTF-8, with replacement characters.
    pub body: String,
    /// The raw body in base64, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// Whether its signature holds; nothing where the sink has no secret.
    pub verified: Option<bool>,
    /// Why not.
    pub reason: Option<String>,
    /// The event's id, where the signature holds.
    pub event_id: Option<String>,
    /// Whether the event was answered with a 2xx within the last 15 minutes.
    pub duplicate: bool,
    /// The status that it was answered with; nothing where it was left hanging.
    pub status: Option<u16>,
}

impl Delivery {
    fn size(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(n, v)| n.len() + v.len() + 48)
            .sum();
        let base64 = self.body_base64.as_ref().map_or(0, String::len);
        256 + headers + self.path.len() + self.body.len() + base64
    }
}

/// The last deliveries, limited in number and in bytes.
#[derive(Debug)]
pub(super) struct Kept {
    limit: usize,
    bytes: usize,
    /// Since the start or the last clearing, also those no longer kept.
    pub(super) total: u64,
    deliveries: VecDeque<Arc<Delivery>>,
}

impl Kept {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: 0,
            total: 0,
            deliveries: VecDeque::new(),
        }
    }

    pub(super) fn push(&mut self, delivery: Delivery) {
        self.bytes += delivery.size();
        self.deliveries.push_back(Arc::new(delivery));
        while self.deliveries.len() > self.limit || self.bytes > MAX_KEPT_BYTES {
            let Some(oldest) = self.deliveries.pop_front() else {
                break;
            };
            self.bytes -= oldest.size();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.limit);
    }

    pub(super) fn all(&self) -> Vec<Arc<Delivery>> {
        self.deliveries.iter().cloned().collect()
    }
}
