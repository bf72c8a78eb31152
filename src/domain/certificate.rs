//! Client certificates: what proves to a receiver, during the TLS handshake, who
//! is calling it.

use std::sync::Arc;

use rustls::{
    Error as TlsError, InconsistentKeys,
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};
use zeroize::Zeroizing;

use super::id::Micros;

/// How long a chain may be, in bytes of its PEM text.
pub const MAX_CHAIN: usize = 32_768;
/// How many certificates a chain may have.
pub const MAX_CERTIFICATES: usize = 10;
/// How long a private key may be, in bytes of its PEM text: RSA with 4096 bits
/// needs 3300.
pub const MAX_KEY: usize = 8192;

/// A certificate chain and its private key as their owner gave them, in PEM (RFC 7468).
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// The client's certificate, then those that lead to an authority.
    pub chain: String,
    /// The private key of the first one, not encrypted.
    pub private_key: Zeroizing<String>,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pem")
    }
}

/// Why a chain and a key can't be used. Never has anything of the key in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// What is wrong with the chain.
    #[error("the certificate chain {0}")]
    Chain(String),
    /// What is wrong with the key.
    #[error("the private key {0}")]
    PrivateKey(&'static str),
}

fn bad_chain(why: impl Into<String>) -> CertificateError {
    CertificateError::Chain(why.into())
}

/// What may be shown of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Whom it names, such as `CN=onering, O=Example`.
    pub subject: String,
    /// Its serial number, in hexadecimal.
    pub serial_number: String,
    /// The SHA-256 of its DER, in hexadecimal.
    pub fingerprint: String,
    /// The last moment at which it is good (RFC 5280, 4.1.2.5).
    pub expires_at: Micros,
}

impl Facts {
    /// Of the first certificate of a chain in PEM.
    ///
    /// # Errors
    /// Where the chain is none.
    pub fn of(chain: &str) -> Result<Self, CertificateError> {
        Self::of_first(&read_chain(chain)?)
    }

    fn of_first(chain: &[CertificateDer<'static>]) -> Result<Self, CertificateError> {
        let der = chain
            .first()
            .ok_or_else(|| bad_chain("holds no certificate"))?;
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|_| bad_chain("does not begin with an X.509 certificate"))?;
        Ok(Self {
            subject: certificate.subject().to_string(),
            serial_number: hex::encode(certificate.raw_serial()),
            fingerprint: hex::encode(Sha256::digest(der)),
            expires_at: certificate
                .validity()
                .not_after
                .timestamp()
                .saturating_mul(1_000_000),
        })
    }
}

/// A client certificate with its key, ready for handshakes.
pub struct ClientCertificate {
    /// What may be shown of it.
    pub facts: Facts,
    /// The chain, and what signs with its key.
    pub key: Arc<CertifiedKey>,
}

impl ClientCertificate {
    /// Reads a chain and its key, and checks that they belong together. Whether
    /// the certificate has expired is for the caller to ask.
    ///
    /// # Errors
    /// Where one of them can't be read, is too large or of an unknown kind, or
    /// the key is another certificate's.
    pub fn parse(pem: &Pem) -> Result<Self, CertificateError> {
        let chain = read_chain(&pem.chain)?;
        let facts = Facts::of_first(&chain)?;
        let key = read_key(&pem.private_key)?;
        let signing = any_supported_type(&key).map_err(|_| {
            CertificateError::PrivateKey(
                "is not one that is supported: RSA with 2048 to 4096 bits, ECDSA over P-256 or \
                 P-384, Ed25519",
            )
        })?;
        let key = CertifiedKey::new(chain, signing);
        key.keys_match().map_err(|e| match e {
            TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                CertificateError::PrivateKey("is not that of the chain's first certificate")
            }
            e => bad_chain(format!("can't be used: {e}")),
        })?;
        Ok(Self {
            facts,
            key: Arc::new(key),
        })
    }

    /// Whether it is no longer good at that time.
    #[must_use]
    pub const fn has_expired(&self, now: Micros) -> bool {
        now > self.facts.expires_at
    }
}

fn read_chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    if pem.is_empty() {
        return Err(bad_chain("is required"));
    }
    if pem.len() > MAX_CHAIN {
        return Err(bad_chain(format!("has at most {MAX_CHAIN} bytes")));
    }
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| bad_chain("is not PEM"))?;
    if chain.is_empty() {
        return Err(bad_chain("holds no `-----BEGIN CERTIFICATE-----`"));
    }
    if chain.len() > MAX_CERTIFICATES {
        return Err(bad_chain(format!(
            "has at most {MAX_CERTIFICATES} certificates"
        )));
    }
    for (i, der) in chain.iter().enumerate() {
        let whole = X509Certificate::from_der(der).is_ok_and(|(rest, _)| rest.is_empty());
        if !whole {
            let n = i + 1;
            return Err(bad_chain(format!(
                "has as its number {n} what is no X.509 certificate"
            )));
        }
    }
    Ok(chain)
}

fn read_key(pem: &str) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let bad = |why| Err(CertificateError::PrivateKey(why));
    if pem.is_empty() {
        return bad("is required");
    }
    if pem.len() > MAX_KEY {
        return bad("has at most 8192 bytes");
    }
    let mut keys = PrivateKeyDer::pem_slice_iter(pem.as_bytes());
    match (keys.next(), keys.next()) {
        (Some(Ok(key)), None) => Ok(key),
        (Some(_), Some(_)) => bad("has more than one key in it"),
        (Some(Err(_)), None) => bad("is not PEM"),
        (None, _) => bad(
            "holds no `-----BEGIN PRIVATE KEY-----` (PKCS #8), `RSA PRIVATE KEY` or \
             `EC PRIVATE KEY`; an encrypted one can't be used",
        ),
    }
}

#[cfg(test)]
mod tests;
