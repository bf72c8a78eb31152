//! Sealing secrets at rest: XChaCha20-Poly1305 (RFC 8439, extended nonce). The
//! master key seals three kinds of keys, which the store keeps: peppers, under
//! which API keys' secrets are hashed, data keys, which seal subscriptions'
//! secrets, headers and client certificates, and the key of the audit log's
//! chain. Changing the master key seals those few again and nothing else.

use std::collections::HashMap;

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{
    domain::{
        audit::Chain,
        certificate::Pem,
        id::{KeyId, Micros, SubscriptionId},
        key::Hashed,
        subscription::{Headers, Sealed},
    },
    settings::MasterKey,
    store::{ConfigStore, SealedKey, StoreError},
};

const NONCE: usize = 24;
const PEPPER: &str = "pepper";
const DATA: &str = "data";
const AUDIT: &str = "audit";
/// How a node's credential begins. Leases' seals are over texts that begin
/// otherwise.
const NODE_PREFIX: &str = "node_";
/// What the key of leases' seals is derived for.
const LEASES: &[u8] = b"onering lease tokens";

/// A sealed text that can't be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SealError {
    /// It was sealed with another key, or changed since.
    #[error("{0} can't be opened with this ONERING_MASTER_KEY")]
    WrongKey(String),
    /// The operating system gives no random bytes.
    #[error("no random bytes: {0}")]
    NoRandom(getrandom::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Key = Zeroizing<[u8; 32]>;

fn random_key() -> Result<Key, SealError> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(key.as_mut_slice()).map_err(SealError::NoRandom)?;
    Ok(key)
}

/// Seals a text for one place: it opens nowhere else.
fn seal(key: &Key, place: &str, text: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(SealError::NoRandom)?;
    let payload = Payload {
        msg: text,
        aad: place.as_bytes(),
    };
    let sealed = XChaCha20Poly1305::new((&**key).into())
        .encrypt(&XNonce::from(nonce), payload)
        .map_err(|_| SealError::WrongKey(place.to_owned()))?;
    Ok([nonce.as_slice(), &sealed].concat())
}

fn open(key: &Key, place: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let wrong = || SealError::WrongKey(place.to_owned());
    let (nonce, text) = sealed.split_first_chunk::<NONCE>().ok_or_else(wrong)?;
    let payload = Payload {
        msg: text,
        aad: place.as_bytes(),
    };
    XChaCha20Poly1305::new((&**key).into())
        .decrypt(&XNonce::from(*nonce), payload)
        .map(Zeroizing::new)
        .map_err(|_| wrong())
}

/// A new random master key, in base64.
///
/// # Errors
/// Where the operating system gives no random bytes.
pub fn new_master_key() -> Result<Zeroizing<String>, SealError> {
    use base64::Engine as _;
    let key = random_key()?;
    Ok(Zeroizing::new(
        base64::engine::general_purpose::STANDARD.encode(key.as_slice()),
    ))
}

/// The opened keys of a store.
pub struct Keyring {
    peppers: HashMap<i32, Hmac<Sha256>>,
    data: HashMap<i32, Key>,
    pepper: i32,
    newest_data: i32,
    audit: Chain,
    leases: Hmac<Sha256>,
}

fn place(purpose: &str, version: i32) -> String {
    format!("{purpose} {version}")
}

impl Keyring {
    /// Opens a store's keys, and makes the first ones in an empty store.
    ///
    /// # Errors
    /// Where the master key is not the one that sealed them.
    pub async fn open(store: &dyn ConfigStore, master: &MasterKey) -> Result<Self, SealError> {
        let mut sealed = store.sealed_keys().await?;
        for purpose in [PEPPER, DATA, AUDIT] {
            if !sealed.iter().any(|k| k.purpose == purpose) {
                let key = SealedKey {
                    purpose: purpose.to_owned(),
                    version: 1,
                    sealed: seal(&master.0, &place(purpose, 1), random_key()?.as_slice())?,
                };
                match store.add_sealed_key(&key).await {
                    // Another node made it: its key is the one that counts.
                    Ok(()) | Err(StoreError::Exists(_)) => {}
                    Err(e) => return Err(e.into()),
                }
                sealed = store.sealed_keys().await?;
            }
        }
        let (mut peppers, mut data, mut audit) = (HashMap::new(), HashMap::new(), None);
        for k in sealed {
            let name = place(&k.purpose, k.version);
            let text = open(&master.0, &name, &k.sealed)?;
            let bytes = <[u8; 32]>::try_from(text.as_slice())
                .map_err(|_| SealError::WrongKey(name.clone()))?;
            match k.purpose.as_str() {
                PEPPER => {
                    let mac = Hmac::<Sha256>::new_from_slice(&bytes)
                        .map_err(|_| SealError::WrongKey(name))?;
                    peppers.insert(k.version, mac);
                }
                DATA => {
                    data.insert(k.version, Zeroizing::new(bytes));
                }
                AUDIT => {
                    let chain = Chain::new(&bytes).map_err(|_| SealError::WrongKey(name))?;
                    audit = Some(chain);
                }
                // A later version's.
                _ => {}
            }
        }
        // Of the first data key: every node has it, also while a newer is made.
        let first = data.iter().min_by_key(|(version, _)| **version);
        let (_, first) = first.ok_or_else(|| SealError::WrongKey(place(DATA, 1)))?;
        let mac = |key: &[u8]| {
            Hmac::<Sha256>::new_from_slice(key).map_err(|_| SealError::WrongKey(place(DATA, 1)))
        };
        let derived = mac(first.as_slice())?.chain_update(LEASES).finalize();
        Ok(Self {
            leases: mac(&derived.into_bytes())?,
            pepper: peppers.keys().copied().max().unwrap_or_default(),
            newest_data: data.keys().copied().max().unwrap_or_default(),
            audit: audit.ok_or_else(|| SealError::WrongKey(place(AUDIT, 1)))?,
            peppers,
            data,
        })
    }

    /// What proves that this text is of some node with these keys, for leases.
    #[must_use]
    pub fn lease_mac(&self) -> Hmac<Sha256> {
        self.leases.clone()
    }

    /// What a node of these keys calls another one with for a worker that has come
    /// to it with that key. Good for a minute.
    #[must_use]
    pub fn node_credential(&self, key: KeyId, now: Micros) -> String {
        let text = format!("{NODE_PREFIX}{}_{key}", now.div_euclid(1_000_000));
        let seal = self.lease_mac().chain_update(&text).finalize();
        format!("{text}_{}", hex::encode(seal.into_bytes()))
    }

    /// The key that such a credential names; none where it is not one.
    #[must_use]
    pub fn read_node_credential(&self, text: &str, now: Micros) -> Option<KeyId> {
        let (text, seal) = text.rsplit_once('_')?;
        let (seconds, key) = text.strip_prefix(NODE_PREFIX)?.split_once('_')?;
        let seal = hex::decode(seal).ok()?;
        self.lease_mac()
            .chain_update(text)
            .verify_slice(&seal)
            .ok()?;
        let age = now.div_euclid(1_000_000) - seconds.parse::<i64>().ok()?;
        (-60..=60).contains(&age).then(|| key.parse().ok())?
    }

    /// What the audit log's records are chained with.
    #[must_use]
    pub fn audit(&self) -> &Chain {
        &self.audit
    }

    /// The digest of an API key's secret under the newest pepper.
    #[must_use]
    pub fn hash(&self, secret: &str) -> Hashed {
        Hashed {
            pepper: self.pepper,
            digest: self.digest(self.pepper, secret),
        }
    }

    /// The digest of an API key's secret under that pepper. One that is not known
    /// costs the same and matches nothing.
    #[must_use]
    pub fn digest(&self, pepper: i32, secret: &str) -> [u8; 32] {
        let Some(mac) = self
            .peppers
            .get(&pepper)
            .or_else(|| self.peppers.values().next())
        else {
            return [0; 32];
        };
        mac.clone()
            .chain_update(secret.as_bytes())
            .finalize()
            .into_bytes()
            .into()
    }

    /// Seals a subscription's secret; `place` is its id.
    ///
    /// # Errors
    /// Where the operating system gives no random bytes.
    pub fn seal(&self, place: &str, secret: &str) -> Result<Sealed, SealError> {
        let key = self
            .data
            .get(&self.newest_data)
            .ok_or_else(|| SealError::WrongKey(place.to_owned()))?;
        let mut out = self.newest_data.to_be_bytes().to_vec();
        out.extend(seal(key, place, secret.as_bytes())?);
        Ok(Sealed(out))
    }

    /// Opens a subscription's secret.
    ///
    /// # Errors
    /// Where it was sealed with another key or for another subscription.
    pub fn open_secret(
        &self,
        place: &str,
        sealed: &Sealed,
    ) -> Result<Zeroizing<String>, SealError> {
        let wrong = || SealError::WrongKey(place.to_owned());
        let (version, text) = sealed.0.split_first_chunk::<4>().ok_or_else(wrong)?;
        let key = self
            .data
            .get(&i32::from_be_bytes(*version))
            .ok_or_else(wrong)?;
        let text = open(key, place, text)?;
        String::from_utf8(text.to_vec())
            .map(Zeroizing::new)
            .map_err(|_| wrong())
    }

    /// Seals a subscription's headers; where there are none, there is no seal.
    ///
    /// # Errors
    /// Where the operating system gives no random bytes.
    pub fn seal_headers(
        &self,
        id: SubscriptionId,
        headers: &[(String, String)],
    ) -> Result<Sealed, SealError> {
        if headers.is_empty() {
            return Ok(Sealed(Vec::new()));
        }
        let place = headers_place(id);
        let text = serde_json::to_string(headers)
            .map(Zeroizing::new)
            .map_err(|_| SealError::WrongKey(place.clone()))?;
        self.seal(&place, &text)
    }

    /// Opens a subscription's headers.
    ///
    /// # Errors
    /// Where they were sealed with another key or for another subscription.
    pub fn open_headers(&self, id: SubscriptionId, sealed: &Sealed) -> Result<Headers, SealError> {
        if sealed.0.is_empty() {
            return Ok(Vec::new());
        }
        let place = headers_place(id);
        let text = if in_clear(sealed) {
            Zeroizing::new(String::from_utf8_lossy(&sealed.0).into_owned())
        } else {
            self.open_secret(&place, sealed)?
        };
        serde_json::from_str(&text).map_err(|_| SealError::WrongKey(place))
    }

    /// Seals a subscription's client certificate with its private key.
    ///
    /// # Errors
    /// Where the operating system gives no random bytes.
    pub fn seal_certificate(&self, id: SubscriptionId, pem: &Pem) -> Result<Sealed, SealError> {
        let place = certificate_place(id);
        let text = serde_json::to_string(&(&pem.chain, &*pem.private_key))
            .map(Zeroizing::new)
            .map_err(|_| SealError::WrongKey(place.clone()))?;
        self.seal(&place, &text)
    }

    /// Opens a subscription's client certificate.
    ///
    /// # Errors
    /// Where it was sealed with another key or for another subscription.
    pub fn open_certificate(&self, id: SubscriptionId, sealed: &Sealed) -> Result<Pem, SealError> {
        let place = certificate_place(id);
        let text = self.open_secret(&place, sealed)?;
        let (chain, private_key): (String, String) =
            serde_json::from_str(&text).map_err(|_| SealError::WrongKey(place))?;
        Ok(Pem {
            chain,
            private_key: Zeroizing::new(private_key),
        })
    }
}

fn headers_place(id: SubscriptionId) -> String {
    format!("{id} headers")
}

fn certificate_place(id: SubscriptionId) -> String {
    format!("{id} client certificate")
}

/// Whether these headers are a JSON list as it stands, from before they were
/// sealed. A seal begins with a key's version, which is never that high.
#[must_use]
pub fn in_clear(headers: &Sealed) -> bool {
    headers.0.first() == Some(&b'[')
}

/// Seals every key of a store with another master key; how many there are.
///
/// # Errors
/// Where the old master key is not the one that sealed them. Then nothing is changed.
pub async fn reseal(
    store: &dyn ConfigStore,
    old: &MasterKey,
    new: &MasterKey,
) -> Result<usize, SealError> {
    let mut keys = store.sealed_keys().await?;
    for k in &mut keys {
        let name = place(&k.purpose, k.version);
        let text = open(&old.0, &name, &k.sealed)?;
        k.sealed = seal(&new.0, &name, &text)?;
    }
    store.reseal(&keys).await?;
    Ok(keys.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Z1: what is sealed opens with its key, at its place, unchanged, and not otherwise.
    #[test]
    fn a_seal_holds() {
        let (key, other) = (random_key().unwrap(), random_key().unwrap());
        let sealed = seal(&key, "sub_1", b"whsec_secret").unwrap();
        assert_eq!(
            open(&key, "sub_1", &sealed).unwrap().as_slice(),
            b"whsec_secret"
        );
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert!(open(&other, "sub_1", &sealed).is_err());
        assert!(open(&key, "sub_2", &sealed).is_err());
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(open(&key, "sub_1", &changed).is_err(), "byte {i}");
        }
        assert!(open(&key, "sub_1", &sealed[..10]).is_err());
    }

    // W8: a node's credential is good for its key and its time alone.
    #[test]
    fn node_credentials() {
        let ring = Keyring {
            leases: Hmac::new_from_slice(&[1]).unwrap(),
            peppers: HashMap::new(),
            data: HashMap::new(),
            pepper: 0,
            newest_data: 1,
            audit: Chain::new(&[0; 32]).unwrap(),
        };
        let part = crate::domain::id::Part::new(0);
        let (key, now) = (KeyId::new(1, part), 1_700_000_000_000_000);
        let text = ring.node_credential(key, now);
        let read = |text: &str, at| ring.read_node_credential(text, at);
        assert_eq!(read(&text, now), Some(key));
        assert_eq!(read(&text, now + 60_000_000), Some(key));
        assert_eq!(read(&text, now + 61_000_000), None);
        assert_eq!(read(&text, now - 61_000_000), None);
        let other = KeyId::new(2, part).to_string();
        assert_eq!(read(&text.replace(&key.to_string(), &other), now), None);
        for at in 0..text.len() {
            assert_eq!(read(&text[..at], now), None);
        }
        assert_eq!(read("sk_admin_x", now), None);
    }

    // Z1: a client certificate opens for its subscription only.
    #[test]
    fn client_certificates_are_sealed() {
        let ring = Keyring {
            leases: Hmac::new_from_slice(&[1]).unwrap(),
            peppers: HashMap::new(),
            data: HashMap::from([(1, random_key().unwrap())]),
            pepper: 0,
            newest_data: 1,
            audit: Chain::new(&[0; 32]).unwrap(),
        };
        let part = crate::domain::id::Part::new(0);
        let [id, other] = [1, 2].map(|n| SubscriptionId::new(n, part));
        let pem = Pem {
            chain: "a chain\n".into(),
            private_key: Zeroizing::new("abcdef".into()),
        };
        let sealed = ring.seal_certificate(id, &pem).unwrap();
        assert!(!sealed.0.windows(6).any(|w| w == b"abcdef"));
        assert_eq!(ring.open_certificate(id, &sealed).unwrap(), pem);
        assert!(ring.open_certificate(other, &sealed).is_err());
        assert!(ring.open_headers(id, &sealed).is_err());
        assert!(ring.open_secret(&id.to_string(), &sealed).is_err());
    }

    // Z1: headers open for their subscription only, and not as its secret.
    #[test]
    fn headers_are_sealed() {
        let ring = Keyring {
            leases: Hmac::new_from_slice(&[1]).unwrap(),
            peppers: HashMap::new(),
            data: HashMap::from([(1, random_key().unwrap())]),
            pepper: 0,
            newest_data: 1,
            audit: Chain::new(&[0; 32]).unwrap(),
        };
        let part = crate::domain::id::Part::new(0);
        let [id, other] = [1, 2].map(|n| SubscriptionId::new(n, part));
        let headers = vec![("authorization".to_owned(), "Bearer abcdef".to_owned())];
        let sealed = ring.seal_headers(id, &headers).unwrap();
        assert!(!in_clear(&sealed));
        assert!(!sealed.0.windows(6).any(|w| w == b"abcdef"));
        assert_eq!(ring.open_headers(id, &sealed).unwrap(), headers);
        assert!(ring.open_headers(other, &sealed).is_err());
        assert!(ring.open_secret(&id.to_string(), &sealed).is_err());
        let secret = ring.seal(&id.to_string(), "[]").unwrap();
        assert!(ring.open_headers(id, &secret).is_err());
        let none = ring.seal_headers(id, &[]).unwrap();
        assert_eq!(none, Sealed(Vec::new()));
        assert_eq!(ring.open_headers(id, &none).unwrap(), []);
    }
}
