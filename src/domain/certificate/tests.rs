use rcgen::{CertificateParams, DnType, KeyPair};

use super::*;

struct Made {
    certificate: String,
    key: String,
}

fn made(name: &str) -> Made {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(vec![1, 0xab].into());
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    let key = KeyPair::generate().unwrap();
    Made {
        certificate: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

fn pem(chain: &str, key: &str) -> Pem {
    Pem {
        chain: chain.to_owned(),
        private_key: Zeroizing::new(key.to_owned()),
    }
}

// A10
#[test]
fn a_chain_and_its_key() {
    let (one, other) = (made("client one"), made("an authority"));
    let chain = format!("{}{}", one.certificate, other.certificate);
    let read = ClientCertificate::parse(&pem(&chain, &one.key)).unwrap();
    assert_eq!(read.key.cert.len(), 2);
    assert!(read.facts.subject.contains("CN=client one"));
    assert_eq!(read.facts.serial_number, "01ab");
    assert_eq!(
        read.facts.fingerprint,
        hex::encode(Sha256::digest(&read.key.cert[0]))
    );
    assert_eq!(read.facts, Facts::of(&chain).unwrap());
    let end = 1_893_456_000_000_000;
    assert_eq!(read.facts.expires_at, end);
    assert!(!read.has_expired(end) && read.has_expired(end + 1));
}

// A10: each is refused for what it is, and nothing of a key is repeated.
#[test]
fn what_can_not_be_used() {
    let (one, other) = (made("one"), made("other"));
    let chain = |text: &str| match ClientCertificate::parse(&pem(text, &one.key)) {
        Err(CertificateError::Chain(why)) => why,
        other => panic!("{:?}", other.err()),
    };
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (text, why) in [
        (String::new(), "required"),
        ("x".repeat(MAX_CHAIN + 1), "at most 32768 bytes"),
        ("no pem".into(), "holds no"),
        (one.key.clone(), "holds no"),
        ("-----BEGIN CERTIFICATE-----\nAAAA".into(), "not PEM"),
        (broken.into(), "number 1"),
        (format!("{}{broken}", one.certificate), "number 2"),
        (one.certificate.repeat(11), "at most 10 certificates"),
    ] {
        let told = chain(&text);
        assert!(told.contains(why), "{told}");
    }
    let key = |text: &str| match ClientCertificate::parse(&pem(&one.certificate, text)) {
        Err(CertificateError::PrivateKey(why)) => why,
        other => panic!("{:?}", other.err()),
    };
    let encrypted = one.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let cut = one.key.lines().take(2).collect::<Vec<_>>().join("\n");
    let empty = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (text, why) in [
        (String::new(), "required"),
        ("x".repeat(MAX_KEY + 1), "at most 8192 bytes"),
        (one.certificate.clone(), "holds no"),
        (encrypted, "encrypted"),
        (cut, "not PEM"),
        (empty.into(), "not one that is supported"),
        (format!("{}{}", one.key, other.key), "more than one"),
        (other.key.clone(), "not that of the chain's first"),
    ] {
        let told = key(&text);
        assert!(told.contains(why), "{told}");
    }
    assert!(!format!("{:?}", pem(&one.certificate, &one.key)).contains("KEY"));
}
