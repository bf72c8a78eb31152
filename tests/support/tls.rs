//! Certificates that a test makes itself.

use std::{path::PathBuf, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CertifiedKey, DnType, IsCa, KeyPair,
    generate_simple_self_signed,
};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use serde_json::{Value, json};

/// A certificate that nobody else has signed.
pub struct SelfSigned {
    pub config: ServerConfig,
    /// The certificate, for who is to trust it.
    pub pem: PathBuf,
    _dir: tempfile::TempDir,
}

/// A certificate for these names, with these protocols on offer.
pub fn self_signed(names: &[&str], alpn: &[&str]) -> SelfSigned {
    built(names, alpn, rustls::ALL_VERSIONS, Arc::new(NoClientAuth))
}

/// As [`self_signed`], and it asks for a client certificate of this authority:
/// a `required` one, or one that may be missing.
pub fn asking(
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
    authority: &Authority,
    required: bool,
) -> SelfSigned {
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = if required {
        verifier
    } else {
        verifier.allow_unauthenticated()
    };
    built(&["127.0.0.1"], alpn, versions, verifier.build().unwrap())
}

fn built(
    names: &[&str],
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
    clients: Arc<dyn ClientCertVerifier>,
) -> SelfSigned {
    let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("cert.pem");
    std::fs::write(&pem, cert.pem()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    SelfSigned {
        config,
        pem,
        _dir: dir,
    }
}

/// An authority of a test's own, over an intermediate one that a chain must name.
pub struct Authority(
    CertifiedIssuer<'static, KeyPair>,
    CertifiedIssuer<'static, KeyPair>,
);

/// A client's certificate of an [`Authority`].
pub struct Client {
    pub chain: String,
    pub key: String,
}

impl Client {
    /// The field of a subscription.
    pub fn json(&self) -> Value {
        json!({"certificate_chain": self.chain, "private_key": self.key})
    }

    /// What in the key's text nothing else has: its lines.
    pub fn key_lines(&self) -> Vec<&str> {
        self.key.lines().filter(|l| !l.starts_with('-')).collect()
    }
}

impl Authority {
    pub fn new() -> Self {
        let params = |name| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(params("root"), key()).unwrap();
        let between = CertifiedIssuer::signed_by(params("intermediate"), key(), &root).unwrap();
        Self(root, between)
    }

    /// A client's certificate, good until the year 2100.
    pub fn client(&self, name: &str) -> Client {
        self.client_until(name, 2100)
    }

    /// A client's certificate, good until a year begins.
    pub fn client_until(&self, name: &str, year: i32) -> Client {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.1).unwrap();
        Client {
            chain: format!("{}{}", certificate.pem(), self.1.pem()),
            key: key.serialize_pem(),
        }
    }
}
