//! Making signatures.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::Mac as _;

use super::{HmacSha256, Scheme, Secret};

/// The values of the two headers that carry signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Of `x-webhook-signature`.
    pub x_webhook_signature: String,
    /// Of `webhook-signature`.
    pub webhook_signature: String,
}

/// Signs a subscription's attempts. Holds keyed states, so that a signature
/// costs no key schedule: make one per subscription and keep it.
#[derive(Clone)]
pub struct Signer {
    scheme: Scheme,
    current: Keys,
    previous: Option<Keys>,
}

#[derive(Clone)]
struct Keys {
    text: HmacSha256,
    standard: Standard,
}

#[derive(Clone)]
enum Standard {
    Hmac(HmacSha256),
    Ed25519(Box<SigningKey>),
}

impl Signer {
    /// A signer with the secret in force and, during the overlap of a rotation,
    /// the one before it.
    ///
    /// Whether `webhook-signature` is an HMAC or Ed25519 follows from each
    /// secret, so that a rotation may also change the scheme.
    #[must_use]
    pub fn new(scheme: Scheme, current: &Secret, previous: Option<&Secret>) -> Self {
        Self {
            scheme,
            current: Keys::of(current),
            previous: previous.map(Keys::of),
        }
    }

    /// Signs one attempt at `timestamp_s` (Unix seconds).
    #[must_use]
    pub fn sign(&self, timestamp_s: i64, event_id: &str, body: &[u8]) -> Signed {
        let t = timestamp_s.to_string();
        Signed {
            x_webhook_signature: self.x_header(&t, event_id, body),
            webhook_signature: self.standard_header(&t, event_id, body),
        }
    }

    fn x_header(&self, t: &str, event_id: &str, body: &[u8]) -> String {
        if self.scheme == Scheme::Plain {
            // A lone digest has room for one secret: receivers have the old one
            // until the overlap is ended.
            let keys = self.previous.as_ref().unwrap_or(&self.current);
            return hex::encode(plain_mac(&keys.text, t, body));
        }
        let mut out = String::with_capacity(12 + t.len() + event_id.len() + 2 * 68);
        out.push_str("t=");
        out.push_str(t);
        out.push_str(",e=");
        out.push_str(event_id);
        if let Some(previous) = &self.previous {
            push_hex(
                &mut out,
                ",v1n=",
                v1_mac(&self.current.text, t, event_id, body),
            );
            // Last, and the only `v1=`: receivers that cut there keep working.
            push_hex(&mut out, ",v1=", v1_mac(&previous.text, t, event_id, body));
        } else {
            push_hex(
                &mut out,
                ",v1=",
                v1_mac(&self.current.text, t, event_id, body),
            );
        }
        out
    }

    fn standard_header(&self, t: &str, event_id: &str, body: &[u8]) -> String {
        let mut out = String::with_capacity(if self.previous.is_some() { 96 } else { 48 });
        self.current.standard.push(&mut out, t, event_id, body);
        if let Some(previous) = &self.previous {
            out.push(' ');
            previous.standard.push(&mut out, t, event_id, body);
        }
        out
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("scheme", &self.scheme)
            .field("overlap", &self.previous.is_some())
            .finish_non_exhaustive()
    }
}

impl Keys {
    fn of(secret: &Secret) -> Self {
        Self {
            text: secret.text_hmac(),
            standard: match secret.signing() {
                Some(key) => Standard::Ed25519(Box::new(key.clone())),
                None => Standard::Hmac(secret.standard_hmac()),
            },
        }
    }
}

impl Standard {
    fn push(&self, out: &mut String, t: &str, event_id: &str, body: &[u8]) {
        match self {
            Self::Hmac(state) => {
                out.push_str("v1,");
                STANDARD.encode_string(standard_mac(state, t, event_id, body), out);
            }
            Self::Ed25519(key) => {
                out.push_str("v1a,");
                let signature = key.sign(&standard_content(t, event_id, body));
                STANDARD.encode_string(signature.to_bytes(), out);
            }
        }
    }
}

/// Over `<t>.<event id>.<body>`.
pub(super) fn v1_mac(state: &HmacSha256, t: &str, event_id: &str, body: &[u8]) -> [u8; 32] {
    mac(state, &[t.as_bytes(), event_id.as_bytes()], body)
}

/// Over `<t>.<body>`.
pub(super) fn plain_mac(state: &HmacSha256, t: &str, body: &[u8]) -> [u8; 32] {
    mac(state, &[t.as_bytes()], body)
}

/// Over `<event id>.<t>.<body>`.
pub(super) fn standard_mac(state: &HmacSha256, t: &str, event_id: &str, body: &[u8]) -> [u8; 32] {
    mac(state, &[event_id.as_bytes(), t.as_bytes()], body)
}

/// `<event id>.<t>.<body>` in one piece, as Ed25519 reads it twice.
pub(super) fn standard_content(t: &str, event_id: &str, body: &[u8]) -> Vec<u8> {
    [event_id.as_bytes(), t.as_bytes(), body].join(&b'.')
}

fn mac(state: &HmacSha256, parts: &[&[u8]], body: &[u8]) -> [u8; 32] {
    let mut mac = state.clone();
    for part in parts {
        mac.update(part);
        mac.update(b".");
    }
    mac.update(body);
    mac.finalize().into_bytes().into()
}

fn push_hex(out: &mut String, name: &str, digest: [u8; 32]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push_str(name);
    for byte in digest {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}
