//! Certificates that a test makes itself.

use std::{path::PathBuf, sync::Arc};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

/// A certificate that nobody else has signed.
pub struct SelfSigned {
    pub config: ServerConfig,
    /// The certificate, for who is to trust it.
    pub pem: PathBuf,
    _dir: tempfile::TempDir,
}

/// A certificate for these names, with these protocols on offer.
pub fn self_signed(names: &[&str], alpn: &[&str]) -> SelfSigned {
    let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("cert.pem");
    std::fs::write(&pem, cert.pem()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    SelfSigned {
        config,
        pem,
        _dir: dir,
    }
}
