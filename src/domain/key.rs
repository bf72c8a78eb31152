//! API keys: their text, their state, and what they may do.

use std::net::IpAddr;

use ipnet::IpNet;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::id::{KeyId, Micros, TenantId, decode, encode};

/// What stands in front of a consumer's key.
pub const CONSUMER_PREFIX: &str = "osk_";
/// What stands in front of an admin key.
pub const ADMIN_PREFIX: &str = "sk_admin_";

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const SECRET_LEN: usize = 32;
const CHECKSUM_LEN: usize = 6;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An outside consumer's.
    Consumer,
    /// An operator's or an internal service's.
    Admin,
}

impl Kind {
    /// What stands in front of the key's text.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Consumer => CONSUMER_PREFIX,
            Self::Admin => ADMIN_PREFIX,
        }
    }

    /// The number that it is stored as.
    #[must_use]
    pub const fn to_i16(self) -> i16 {
        match self {
            Self::Consumer => 1,
            Self::Admin => 2,
        }
    }

    /// The inverse of [`to_i16`](Self::to_i16).
    #[must_use]
    pub const fn from_i16(n: i16) -> Self {
        if n == 2 { Self::Admin } else { Self::Consumer }
    }
}

/// Whether a key works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It works.
    Active,
    /// Switched off.
    Disabled,
    /// Withdrawn for good.
    Revoked,
    /// Past its expiry.
    Expired,
}

impl Status {
    /// The number that it is stored as. `Expired` follows from the expiry and is
    /// never stored.
    #[must_use]
    pub const fn to_i16(self) -> i16 {
        match self {
            Self::Active | Self::Expired => 1,
            Self::Disabled => 2,
            Self::Revoked => 3,
        }
    }

    /// The inverse of [`to_i16`](Self::to_i16).
    #[must_use]
    pub const fn from_i16(n: i16) -> Self {
        match n {
            2 => Self::Disabled,
            3 => Self::Revoked,
            _ => Self::Active,
        }
    }
}

/// What is stored of a secret: its HMAC-SHA-256 under a pepper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashed {
    /// Which version of the pepper.
    pub pepper: i32,
    /// The digest.
    pub digest: [u8; 32],
}

impl Hashed {
    /// Whether another digest under the same pepper is the same, in constant time.
    #[must_use]
    pub fn matches(&self, digest: &[u8; 32]) -> bool {
        self.digest.ct_eq(digest).into()
    }
}

/// The secret from before a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Previous {
    /// Its digest.
    pub hash: Hashed,
    /// Until when it is good.
    pub until: Micros,
}

/// A key as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// Its tenant; none for an admin key that acts on every tenant.
    pub tenant: Option<TenantId>,
    /// What it is for.
    pub kind: Kind,
    /// A name for people.
    pub name: String,
    /// Its tier's name.
    pub tier: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Whether it is a canary key.
    pub canary: bool,
    /// Its own limit, in calls an hour.
    pub rate_limit_per_hour: Option<i64>,
    /// Where it may be used from; anywhere where this is empty.
    pub allowed_cidrs: Vec<IpNet>,
    /// When it stops working.
    pub expires_at: Option<Micros>,
    /// The operator's notes.
    pub metadata: Vec<(String, String)>,
    /// Its stored status, without the expiry.
    pub status: Status,
    /// Its secret's digest.
    pub secret: Hashed,
    /// The secret from before the last rotation.
    pub previous: Option<Previous>,
    /// Whether the digest is of the whole text, as for a bootstrap key, whose
    /// text carries no id.
    pub whole_text: bool,
    /// When it was made.
    pub created_at: Micros,
    /// When it was last changed.
    pub updated_at: Micros,
}

/// The scope that holds all of an admin key's.
pub const SCOPE_ADMIN: &str = "external:admin";

/// The scopes that OneRing's own outside routes know.
const OWN_SCOPES: [&str; 4] = [
    "webhooks:read",
    "webhooks:write",
    "events:read",
    "events:write",
];

/// The most calls an hour that a canary key ever gets.
pub const CANARY_LIMIT: i64 = 10;

impl Key {
    /// Whether it works at that time.
    #[must_use]
    pub fn status_at(&self, now: Micros) -> Status {
        match self.status {
            Status::Active if self.expires_at.is_some_and(|at| at <= now) => Status::Expired,
            status => status,
        }
    }

    /// Whether it may be used from that address. One that is not known is in no
    /// list.
    #[must_use]
    pub fn admits(&self, address: Option<IpAddr>) -> bool {
        self.allowed_cidrs.is_empty()
            || address.is_some_and(|ip| self.allowed_cidrs.iter().any(|net| net.contains(&ip)))
    }

    /// Whether it may do what that scope stands for. A consumer's key that names
    /// none of OneRing's own scopes has them all, unless `strict`.
    #[must_use]
    pub fn holds(&self, scope: &str, strict: bool) -> bool {
        let named = |s: &str| self.scopes.iter().any(|own| own == s);
        match self.kind {
            Kind::Admin => named(SCOPE_ADMIN) || (!scope.is_empty() && named(scope)),
            Kind::Consumer => {
                scope.is_empty()
                    || named(scope)
                    || (!strict
                        && OWN_SCOPES.contains(&scope)
                        && !OWN_SCOPES.iter().any(|own| named(own)))
            }
        }
    }
}

/// The parts of a key's text.
pub struct Parsed {
    /// What the key is for.
    pub kind: Kind,
    /// The key's id.
    pub id: KeyId,
    /// The secret.
    pub secret: Zeroizing<String>,
}

/// Why a text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAKey {
    /// It is not of a key's form or its checksum does not match.
    Malformed,
    /// It is an admin key's, and carries no id: a bootstrap key.
    WholeText,
}

fn checksum(text: &str) -> [u8; CHECKSUM_LEN] {
    let mut n = crc32fast::hash(text.as_bytes());
    let mut out = [b'0'; CHECKSUM_LEN];
    for digit in out.iter_mut().rev() {
        *digit = BASE62[(n % 62) as usize];
        n /= 62;
    }
    out
}

/// The text of a key: prefix, id, secret and a CRC-32/ISO-HDLC of all of it in
/// base62, which rejects typos and lets scanners recognise a key.
#[must_use]
pub fn format(kind: Kind, id: KeyId, secret: &str) -> Zeroizing<String> {
    let mut text = Zeroizing::new(format!("{}{}_{secret}", kind.prefix(), encode(id.0)));
    let sum = checksum(&text);
    text.extend(sum.iter().map(|b| char::from(*b)));
    text
}

/// Takes a key's text apart.
///
/// # Errors
/// Where it is not a key of the usual form.
pub fn parse(text: &str) -> Result<Parsed, NotAKey> {
    let (kind, rest) = if let Some(rest) = text.strip_prefix(CONSUMER_PREFIX) {
        (Kind::Consumer, rest)
    } else if let Some(rest) = text.strip_prefix(ADMIN_PREFIX) {
        (Kind::Admin, rest)
    } else {
        return Err(NotAKey::Malformed);
    };
    let malformed = match kind {
        Kind::Consumer => NotAKey::Malformed,
        Kind::Admin => NotAKey::WholeText,
    };
    let (Some((id, rest)), true) = (rest.split_once('_'), text.is_ascii()) else {
        return Err(malformed);
    };
    let Some(id) = decode(id).map(KeyId) else {
        return Err(malformed);
    };
    if rest.len() != SECRET_LEN + CHECKSUM_LEN || !rest.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(NotAKey::Malformed);
    }
    let (body, sum) = text.split_at(text.len() - CHECKSUM_LEN);
    if checksum(body) != sum.as_bytes() {
        return Err(NotAKey::Malformed);
    }
    Ok(Parsed {
        kind,
        id,
        secret: Zeroizing::new(rest[..SECRET_LEN].to_owned()),
    })
}

/// A new secret: 32 base62 characters, 190 bits.
///
/// # Errors
/// Where the operating system gives no random bytes.
pub fn generate_secret() -> Result<Zeroizing<String>, getrandom::Error> {
    let mut secret = Zeroizing::new(String::with_capacity(SECRET_LEN));
    let mut bytes = Zeroizing::new([0u8; 64]);
    while secret.len() < SECRET_LEN {
        getrandom::fill(bytes.as_mut_slice())?;
        // 248 is the largest multiple of 62 in a byte: above it digits would
        // not be equally likely.
        let missing = SECRET_LEN - secret.len();
        secret.extend(
            bytes
                .iter()
                .filter(|b| **b < 248)
                .map(|b| char::from(BASE62[usize::from(*b % 62)]))
                .take(missing),
        );
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::id::Part;

    // K1: the text's form, and a checksum that any reader can compute.
    #[test]
    fn a_key_round_trips() {
        let id = KeyId::new(1_700_000_000_000_000, Part::new(5));
        let secret = generate_secret().unwrap();
        for kind in [Kind::Consumer, Kind::Admin] {
            let text = format(kind, id, &secret);
            let parsed = parse(&text).ok().unwrap();
            assert_eq!((parsed.kind, parsed.id), (kind, id));
            assert_eq!(*parsed.secret, *secret);
            assert_eq!(text.len(), kind.prefix().len() + 26 + 1 + 32 + 6);
        }
    }

    // K1: the published check value of CRC-32/ISO-HDLC, in base62.
    #[test]
    fn the_checksum_is_crc_32_iso_hdlc() {
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
        assert_eq!(&checksum("123456789"), b"3jZRME");
        let mut n: u64 = 0;
        for b in checksum("123456789") {
            n = n * 62 + BASE62.iter().position(|x| *x == b).unwrap() as u64;
        }
        assert_eq!(n, 0xcbf4_3926);
    }

    proptest! {
        // K1: one wrong character is always noticed.
        #[test]
        fn a_typo_is_rejected(at in 4usize..69, with in "[0-9A-Za-z]") {
            let id = KeyId::new(1_700_000_000_000_000, Part::new(5));
            let text = format(Kind::Consumer, id, &"a1B2c3D4e5F6g7H8".repeat(2)).to_string();
            let mut typo = text.clone();
            typo.replace_range(at..=at, &with);
            prop_assert_eq!(parse(&typo).is_ok(), typo == text);
        }

        #[test]
        fn no_text_panics(text in "(osk_|sk_admin_)?.{0,90}") {
            let _ = parse(&text);
        }
    }
}
