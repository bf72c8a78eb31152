//! What signs and what verifies.

use std::fmt;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use ed25519_dalek::SigningKey;
use hmac::KeyInit as _;
use zeroize::Zeroizing;

use super::{HmacSha256, Scheme};

const SYMMETRIC: &str = "whsec_";
const PRIVATE: &str = "whsk_";
const PUBLIC: &str = "whpk_";

/// Base64 as the public Standard Webhooks libraries read it: the standard
/// alphabet, padded; what stands in the unused bits of the last character does
/// not matter, since half of those libraries don't look at it.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Why a text is not a secret. Never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Too short or too long.
    #[error("a secret has 8 to 128 characters, this has {0}")]
    Length(usize),
    /// A character that a header or a shell would not carry faithfully.
    #[error("a secret has printable ASCII characters only")]
    NotPrintable,
    /// Not an Ed25519 private key.
    #[error(
        "an Ed25519 secret is `whsk_` and the base64 of 32 bytes (the seed) or 64 bytes (the seed and its public key)"
    )]
    NotEd25519,
    /// Not an Ed25519 public key.
    #[error("an Ed25519 public key is `whpk_` and the base64 of a 32-byte key")]
    NotPublicKey,
}

/// A subscription's secret. Zeroed when dropped, never shown by `Debug`.
#[derive(Clone)]
pub struct Secret {
    text: Zeroizing<String>,
    signing: Option<SigningKey>,
}

impl Secret {
    /// Takes a secret that a subscription's owner brought along.
    ///
    /// # Errors
    /// When it has not 8 to 128 printable ASCII characters, or, for
    /// [`Scheme::Ed25519`], when it is no such key.
    pub fn parse(text: &str, scheme: Scheme) -> Result<Self, SecretError> {
        check_text(text)?;
        let signing = match scheme {
            Scheme::V1 | Scheme::Plain => None,
            Scheme::Ed25519 => Some(private_key(text).ok_or(SecretError::NotEd25519)?),
        };
        Ok(Self {
            text: Zeroizing::new(text.to_owned()),
            signing,
        })
    }

    /// Takes a secret whose scheme is not known, such as the one before a
    /// rotation that also changed the scheme: a text that is an Ed25519 key is one.
    ///
    /// # Errors
    /// When it has not 8 to 128 printable ASCII characters.
    pub fn parse_any(text: &str) -> Result<Self, SecretError> {
        Self::parse(text, Scheme::Ed25519).or_else(|_| Self::parse(text, Scheme::V1))
    }

    /// A random secret: `whsec_` and the base64 of 32 bytes, or, for
    /// [`Scheme::Ed25519`], `whsk_` and the base64 of the seed and the public key.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate(scheme: Scheme) -> Result<Self, getrandom::Error> {
        let mut seed = Zeroizing::new([0_u8; 32]);
        getrandom::fill(seed.as_mut())?;
        let (text, signing) = match scheme {
            Scheme::V1 | Scheme::Plain => (encode(SYMMETRIC, seed.as_ref()), None),
            Scheme::Ed25519 => {
                let key = SigningKey::from_bytes(&seed);
                let pair = Zeroizing::new(key.to_keypair_bytes());
                (encode(PRIVATE, pair.as_ref()), Some(key))
            }
        };
        Ok(Self {
            text: Zeroizing::new(text),
            signing,
        })
    }

    /// The text, to be sealed and stored, or shown once.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// `whpk_…`, what a receiver needs to check an Ed25519 secret's signatures.
    #[must_use]
    pub fn public_key(&self) -> Option<String> {
        let key = self.signing.as_ref()?;
        Some(encode(PUBLIC, key.verifying_key().as_bytes()))
    }

    pub(super) fn signing(&self) -> Option<&SigningKey> {
        self.signing.as_ref()
    }

    /// The state keyed with the text as it stands.
    pub(super) fn text_hmac(&self) -> HmacSha256 {
        keyed(self.text.as_bytes())
    }

    /// The state keyed as Standard Webhooks does: with what the text after
    /// `whsec_` encodes, or, where it encodes nothing, with the whole text.
    pub(super) fn standard_hmac(&self) -> HmacSha256 {
        let encoded = self.text.strip_prefix(SYMMETRIC).unwrap_or(&self.text);
        match LENIENT.decode(encoded) {
            Ok(key) => keyed(&Zeroizing::new(key)),
            Err(_) => self.text_hmac(),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// What a receiver holds: a secret, or an Ed25519 public key alone.
#[derive(Clone, Debug)]
pub struct VerifyingKey {
    pub(super) secret: Option<Secret>,
    pub(super) public: Option<ed25519_dalek::VerifyingKey>,
}

impl VerifyingKey {
    /// Takes a secret or a `whpk_…` public key as a receiver has it.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        if text.starts_with(PUBLIC) {
            let key = public_key(text).ok_or(SecretError::NotPublicKey)?;
            return Ok(Self {
                secret: None,
                public: Some(key),
            });
        }
        Secret::parse_any(text).map(Self::from)
    }
}

impl From<Secret> for VerifyingKey {
    fn from(secret: Secret) -> Self {
        Self {
            public: secret.signing().map(SigningKey::verifying_key),
            secret: Some(secret),
        }
    }
}

fn check_text(text: &str) -> Result<(), SecretError> {
    if !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(SecretError::NotPrintable);
    }
    match text.len() {
        8..=128 => Ok(()),
        n => Err(SecretError::Length(n)),
    }
}

/// HMAC takes keys of any length, so the error branch can't be reached; a
/// state keyed with nothing there would sign nothing that verifies.
fn keyed(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key)
        .unwrap_or_else(|_| HmacSha256::new(&hmac::digest::Key::<HmacSha256>::default()))
}

fn private_key(text: &str) -> Option<SigningKey> {
    let bytes = Zeroizing::new(LENIENT.decode(text.strip_prefix(PRIVATE)?).ok()?);
    if let Ok(seed) = <&[u8; 32]>::try_from(bytes.as_slice()) {
        return Some(SigningKey::from_bytes(seed));
    }
    // Checks that the second half is the public key of the first.
    SigningKey::from_keypair_bytes(bytes.as_slice().try_into().ok()?).ok()
}

fn public_key(text: &str) -> Option<ed25519_dalek::VerifyingKey> {
    let bytes = LENIENT.decode(text.strip_prefix(PUBLIC)?).ok()?;
    let key = ed25519_dalek::VerifyingKey::from_bytes(bytes.as_slice().try_into().ok()?).ok()?;
    // With a key of small order anyone can sign.
    (!key.is_weak()).then_some(key)
}

fn encode(prefix: &str, bytes: &[u8]) -> String {
    let mut text = String::with_capacity(prefix.len() + bytes.len().div_ceil(3) * 4);
    text.push_str(prefix);
    STANDARD.encode_string(bytes, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    // D7
    #[test]
    fn takes_8_to_128_printable_characters() {
        let refused = |text: &str| Secret::parse(text, Scheme::V1).err();
        assert_eq!(refused("1234567"), Some(SecretError::Length(7)));
        assert_eq!(refused("12345678"), None);
        assert_eq!(refused(&"x".repeat(128)), None);
        assert_eq!(refused(&"x".repeat(129)), Some(SecretError::Length(129)));
        assert_eq!(refused("with space ok"), None);
        assert_eq!(refused("tab\there!"), Some(SecretError::NotPrintable));
        assert_eq!(refused("schlüssel"), Some(SecretError::NotPrintable));
    }

    // D7
    #[test]
    fn generated_secrets_parse_again() {
        for scheme in [Scheme::V1, Scheme::Plain, Scheme::Ed25519] {
            let secret = Secret::generate(scheme).unwrap();
            let again = Secret::parse(secret.expose(), scheme).unwrap();
            assert_eq!(secret.public_key(), again.public_key());
            assert_eq!(scheme == Scheme::Ed25519, again.public_key().is_some());
        }
        let secret = Secret::generate(Scheme::V1).unwrap();
        assert!(secret.expose().starts_with("whsec_"));
        assert_eq!(secret.expose().len(), 6 + 44);
    }

    #[test]
    fn seed_and_pair_are_the_same_key() {
        let pair = Secret::generate(Scheme::Ed25519).unwrap();
        let bytes = LENIENT.decode(&pair.expose()[5..]).unwrap();
        let seed = Secret::parse(&encode(PRIVATE, &bytes[..32]), Scheme::Ed25519).unwrap();
        assert_eq!(seed.public_key(), pair.public_key());
        let public = pair.public_key().unwrap();
        assert!(VerifyingKey::parse(&public).unwrap().secret.is_none());

        let mut other = bytes.clone();
        other[40] ^= 1;
        for wrong in [&bytes[..31], &bytes[..33], &other[..]] {
            assert_eq!(
                Secret::parse(&encode(PRIVATE, wrong), Scheme::Ed25519).err(),
                Some(SecretError::NotEd25519)
            );
        }
        assert!(VerifyingKey::parse("whpk_AAAA").is_err());
        assert!(VerifyingKey::parse(&encode(PUBLIC, &[0; 32])).is_err());
    }

    #[test]
    fn debug_shows_nothing() {
        let secret = Secret::parse("whsec_topsecret", Scheme::V1).unwrap();
        assert!(!format!("{secret:?}").contains("top"));
        assert!(!format!("{:?}", VerifyingKey::from(secret)).contains("top"));
    }
}
