//! Webhook signatures: making them, checking them, and recognising repetitions.
//!
//! Two headers carry a signature, always both:
//!
//! - `x-webhook-signature`: `t=<unix>,e=<event id>,v1=<hex>`, an HMAC-SHA-256
//!   (RFC 2104) keyed with the secret's text over `<t>.<event id>.<body>`. With
//!   [`Scheme::Plain`] it is the hex digest alone, over `<t>.<body>`.
//! - `webhook-signature`: `v1,<base64>` over `<event id>.<t>.<body>`, as the
//!   Standard Webhooks specification has it, or `v1a,<base64>`, an Ed25519
//!   signature (RFC 8032).
//!
//! While a secret is being rotated both secrets sign. `clients/vectors/` holds
//! the test vectors that every implementation is checked with.

mod error;
mod header;
mod secret;
mod seen;
mod sign;
mod verify;

pub use error::VerifyError;
pub use secret::{Secret, SecretError, VerifyingKey};
pub use seen::{Accepted, MemorySeen, REMEMBER_S, Seen, accept};
pub use sign::{Signed, Signer};
pub use verify::{Verified, Verifier};

/// `X-Webhook-Signature`, in the lower case that HTTP/2 and `HeaderName` want.
pub const X_WEBHOOK_SIGNATURE: &str = "x-webhook-signature";
/// `X-Webhook-Timestamp`: when the attempt was signed, Unix seconds.
pub const X_WEBHOOK_TIMESTAMP: &str = "x-webhook-timestamp";
/// `X-Webhook-Event-ID`: the event's id, the same at every attempt.
pub const X_WEBHOOK_EVENT_ID: &str = "x-webhook-event-id";
/// `X-Webhook-Event`: the event's type.
pub const X_WEBHOOK_EVENT: &str = "x-webhook-event";
/// `X-Webhook-ID`: the delivery's id.
pub const X_WEBHOOK_ID: &str = "x-webhook-id";
/// `X-Webhook-Attempt`: 1 for the first attempt.
pub const X_WEBHOOK_ATTEMPT: &str = "x-webhook-attempt";
/// What an endpoint must answer with, to prove that it wants webhooks.
pub const X_WEBHOOK_CHALLENGE: &str = "x-webhook-challenge";
/// Standard Webhooks: the event's id.
pub const WEBHOOK_ID: &str = "webhook-id";
/// Standard Webhooks: when the attempt was signed, Unix seconds.
pub const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
/// Standard Webhooks: the signatures, separated by spaces.
pub const WEBHOOK_SIGNATURE: &str = "webhook-signature";

/// The oldest signature that is accepted, in seconds.
pub const MAX_AGE_S: i64 = 300;
/// How far a sender's clock may be ahead, in seconds.
pub const MAX_AHEAD_S: i64 = 30;

/// How a subscription's deliveries are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scheme {
    /// `x-webhook-signature: t=…,e=…,v1=…` and `webhook-signature: v1,…`.
    #[default]
    V1,
    /// As `V1`, but `x-webhook-signature` is a hex digest alone.
    Plain,
    /// As `V1`, but `webhook-signature` is `v1a,…`, made with an Ed25519 key.
    Ed25519,
}

impl Scheme {
    /// The scheme's name on the command line and in the test vectors.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::Plain => "plain",
            Self::Ed25519 => "ed25519",
        }
    }
}

impl std::str::FromStr for Scheme {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "v1" => Ok(Self::V1),
            "plain" => Ok(Self::Plain),
            "ed25519" => Ok(Self::Ed25519),
            _ => Err(format!("`{name}` is none of v1, plain, ed25519")),
        }
    }
}

type HmacSha256 = hmac::Hmac<sha2::Sha256>;
