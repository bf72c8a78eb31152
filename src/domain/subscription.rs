//! Webhook subscriptions: which events they want and how they are sent.

use super::{
    delivery::Schedule,
    id::{Micros, SubscriptionId, TenantId},
    signature::Scheme,
};

/// How long an attempt may take, in seconds, where a subscription does not say.
pub const DEFAULT_TIMEOUT: u32 = 15;
/// How many deliveries may be under way, where a subscription does not say.
pub const DEFAULT_IN_FLIGHT: u32 = 100;
/// How long a delivery waits for a disabled subscription before it is dead.
pub const PARKED_LIFETIME: Micros = 30 * super::id::DAY;

/// How its deliveries reach their receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// They are POSTed to its URL.
    #[default]
    Webhook,
    /// Whoever opens a stream for them takes them.
    Stream,
}

/// For how long a subscription lives while nobody takes its deliveries, and until
/// when that is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// In seconds.
    pub seconds: i64,
    /// By the store's clock, which sets it. What is given here is not written.
    pub ends_at: Micros,
}

/// A sealed secret: only the master key's holder can read it.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

/// The secret from before a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousSecret {
    /// The secret.
    pub secret: Sealed,
    /// Until when it signs too.
    pub until: Micros,
}

/// Since when and why a subscription is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disabled {
    /// Since when.
    pub at: Micros,
    /// Why; empty where its owner switched it off.
    pub reason: String,
}

/// In which form events are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PayloadFormat {
    /// `{"id","type","timestamp","data"}`.
    #[default]
    Standard,
    /// A CloudEvent that is the body.
    CloudEventsStructured,
    /// A CloudEvent whose attributes are headers and whose data is the body.
    CloudEventsBinary,
}

/// Whether deliveries with the same ordering key go one at a time, and what follows
/// when one of them dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ordering {
    /// They go as they come.
    #[default]
    Off,
    /// Those behind it wait until it is retried, skipped or gone.
    Block,
    /// Those behind it go on.
    Skip,
    /// Those behind it are parked, and die like those of a subscription that is off.
    Park,
}

impl Ordering {
    /// The number that it is stored as.
    #[must_use]
    pub const fn to_i16(self) -> i16 {
        match self {
            Self::Off => 0,
            Self::Block => 1,
            Self::Skip => 2,
            Self::Park => 3,
        }
    }

    /// The inverse of [`to_i16`](Self::to_i16).
    #[must_use]
    pub const fn from_i16(n: i16) -> Self {
        match n {
            1 => Self::Block,
            2 => Self::Skip,
            3 => Self::Park,
            _ => Self::Off,
        }
    }
}

/// Names and values of headers.
pub type Headers = Vec<(String, String)>;

/// A subscription as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscription {
    /// Its id.
    pub id: SubscriptionId,
    /// Its tenant.
    pub tenant: TenantId,
    /// How deliveries reach their receiver. Never changes.
    pub kind: Kind,
    /// Set where it is removed when nobody has taken its deliveries for long.
    /// Never changes.
    pub lifetime: Option<Lifetime>,
    /// Where deliveries go; empty for a stream.
    pub url: String,
    /// Which events it wants.
    pub event_types: Vec<String>,
    /// Headers of its own, which often let the sender in somewhere; empty where
    /// there are none.
    pub headers: Sealed,
    /// A note for people.
    pub description: String,
    /// Set while it is off.
    pub disabled: Option<Disabled>,
    /// For how long it was off in all, in microseconds: a delivery's age does
    /// not count it.
    pub held: Micros,
    /// Which payloads it wants, as JSONLogic; every one where there is none.
    pub filter: Option<String>,
    /// Whether deliveries with the same key go one at a time.
    pub ordering: Ordering,
    /// In which form events are sent.
    pub format: PayloadFormat,
    /// How deliveries are signed.
    pub scheme: Scheme,
    /// When failed attempts are repeated; none: as the server is configured.
    pub schedule: Option<Schedule>,
    /// How long an attempt may take, in seconds.
    pub timeout: u32,
    /// How many deliveries may be under way.
    pub max_in_flight: u32,
    /// The age at which a delivery is dead, in seconds; 0: never.
    pub max_age: i64,
    /// The owner's notes.
    pub metadata: Vec<(String, String)>,
    /// What it signs with.
    pub secret: Sealed,
    /// What signs too for a while after a rotation.
    pub previous: Option<PreviousSecret>,
    /// The certificate that its attempts show to the receiver, with its key.
    pub client_certificate: Option<Sealed>,
    /// The key that verifies Ed25519 signatures.
    pub public_key: String,
    /// When it was made.
    pub created_at: Micros,
    /// When it was last changed.
    pub updated_at: Micros,
}

impl Subscription {
    /// Whether it wants events of that type.
    #[must_use]
    pub fn wants(&self, event_type: &str) -> bool {
        self.event_types.iter().any(|p| matches(p, event_type))
    }
}

/// Whether a pattern is one: an event type, `prefix.*` or `*`.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text == "*" || super::event::is_type(text.strip_suffix(".*").unwrap_or(text))
}

/// Whether an event type fits a pattern. `invoice.*` fits `invoice.paid` and
/// `invoice.paid.late`, not `invoice`.
#[must_use]
pub fn matches(pattern: &str, event_type: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some("") => true,
        Some(prefix) => event_type.len() > prefix.len() && event_type.starts_with(prefix),
        None => pattern == event_type,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // D3: exact, by prefix, all.
    #[test]
    fn patterns() {
        for (pattern, event_type, fits) in [
            ("invoice.paid", "invoice.paid", true),
            ("invoice.paid", "invoice.paid.late", false),
            ("invoice.*", "invoice.paid", true),
            ("invoice.*", "invoice.paid.late", true),
            ("invoice.*", "invoice", false),
            ("invoice.*", "invoices.paid", false),
            ("*", "x", true),
        ] {
            assert_eq!(matches(pattern, event_type), fits, "{pattern} {event_type}");
        }
        for bad in ["", "a*", "a.*.b", "**", "*.a", ".*", "a b"] {
            assert!(!is_pattern(bad), "{bad}");
        }
    }
}
