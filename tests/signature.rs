//! The shared test vectors of `clients/vectors/`, made and checked here.
//!
//! `ONERING_WRITE_VECTORS=1 cargo test --test signature` writes them; without
//! it the test fails where the committed files are not what the code makes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "signature/vectors.rs"]
mod vectors;

use std::{collections::BTreeMap, path::PathBuf};

use onering::domain::signature::{
    Accepted, MemorySeen, Scheme, Secret, Signer, Verified, Verifier, VerifyingKey, accept,
};
use proptest::prelude::*;
use vectors::{Duplicates, Signatures, Vector};

fn committed(file: &str, made: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("clients/vectors")
        .join(file);
    if std::env::var_os("ONERING_WRITE_VECTORS").is_some() {
        std::fs::write(&path, made).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == made,
        "{} is not what this code makes; write it with ONERING_WRITE_VECTORS=1",
        path.display()
    );
}

fn verify(vector: &Vector) -> Result<Verified, String> {
    let keys: Vec<_> = vector
        .keys
        .iter()
        .map(|key| VerifyingKey::parse(key).unwrap())
        .collect();
    let mut verifier = Verifier::new(&keys);
    if let Some(scheme) = &vector.scheme {
        verifier = verifier.scheme(scheme.parse().unwrap());
    }
    let headers: BTreeMap<_, _> = vector
        .headers
        .iter()
        .map(|(name, value)| (name.to_lowercase(), value))
        .collect();
    verifier
        .verify(
            |name| headers.get(name).map(|value| value.as_str()),
            &vector.body.bytes(),
            vector.now,
        )
        .map_err(|e| e.code().to_owned())
}

// S1
// S2
// S3
// S4
#[test]
fn vectors_are_what_the_code_makes() {
    let made = serde_json::to_string_pretty(&vectors::signatures()).unwrap() + "\n";
    committed("signatures.json", &made);
    let made = serde_json::to_string_pretty(&vectors::duplicates()).unwrap() + "\n";
    committed("duplicates.json", &made);
}

// S1
// S2
// S3
// S4
// S6
#[test]
fn every_vector_is_judged_as_it_says() {
    let file: Signatures = vectors::signatures();
    for vector in &file.vectors {
        let name = &vector.name;
        match verify(vector) {
            Ok(verified) => {
                assert_eq!(vector.expect, "ok", "{name}");
                let said = vector.verified.as_ref().unwrap();
                assert_eq!(verified.event_id, said.event_id, "{name}");
                assert_eq!(verified.timestamp, said.timestamp, "{name}");
            }
            Err(code) => assert_eq!(vector.expect, code, "{name}"),
        }
    }
}

// S6
#[test]
fn repetitions_are_recognised_as_the_vectors_say() {
    let file: Duplicates = vectors::duplicates();
    for sequence in &file.sequences {
        let seen = MemorySeen::default();
        for step in &sequence.steps {
            let verified = Verified {
                event_id: step.event_id.clone(),
                timestamp: step.at,
            };
            let became = match accept(&seen, &verified, step.at, |_| {
                if step.handler == "succeeds" {
                    Ok(())
                } else {
                    Err(())
                }
            }) {
                Ok(Accepted::Handled(())) => "handled",
                Ok(Accepted::Duplicate) => "duplicate",
                Err(()) => "failed",
            };
            assert_eq!(became, step.expect, "{} at {}", sequence.name, step.at);
        }
    }
}

// S4
#[test]
fn a_receiver_that_cuts_at_v1_finds_the_old_secret() {
    let old = Secret::parse("the-old-secret", Scheme::V1).unwrap();
    let new = Secret::parse("the-new-secret", Scheme::V1).unwrap();
    let alone = Signer::new(Scheme::V1, &old, None).sign(1, "evt_1", b"{}");
    let both = Signer::new(Scheme::V1, &new, Some(&old)).sign(1, "evt_1", b"{}");
    let cut = |header: &str| header.split("v1=").nth(1).unwrap().to_owned();
    assert_eq!(
        cut(&both.x_webhook_signature),
        cut(&alone.x_webhook_signature)
    );
    assert_eq!(both.x_webhook_signature.matches("v1=").count(), 1);
    assert!(both.x_webhook_signature.starts_with("t=1,e=evt_1,v1n="));
}

fn scheme() -> impl Strategy<Value = Scheme> {
    prop_oneof![Just(Scheme::V1), Just(Scheme::Plain), Just(Scheme::Ed25519)]
}

proptest! {
    // S4
    #[test]
    fn both_holders_verify_during_an_overlap(
        scheme in scheme(),
        body in proptest::collection::vec(any::<u8>(), 0..600),
        t in 0_i64..4_000_000_000,
        age in -30_i64..=300,
        named: bool,
    ) {
        let (old, new) = (Secret::generate(scheme).unwrap(), Secret::generate(scheme).unwrap());
        let signed = Signer::new(scheme, &new, Some(&old)).sign(t, "evt_01", &body);
        let t_text = t.to_string();
        for key in [old, new] {
            let mut verifier = Verifier::new(&[key.into()]);
            if named {
                verifier = verifier.scheme(scheme);
            }
            let get = |name: &str| Some(match name {
                "x-webhook-signature" => signed.x_webhook_signature.as_str(),
                "webhook-signature" => signed.webhook_signature.as_str(),
                "x-webhook-timestamp" | "webhook-timestamp" => t_text.as_str(),
                "x-webhook-event-id" | "webhook-id" => "evt_01",
                _ => return None,
            });
            prop_assert!(verifier.verify(get, &body, t + age).is_ok());
            let mut other = body.clone();
            other.push(b'!');
            prop_assert_eq!(
                verifier.verify(get, &other, t + age).unwrap_err().code(),
                "no_matching_signature"
            );
        }
    }

    // S6
    #[test]
    fn any_header_text_is_answered(
        x in "[ -~]{0,200}|t=[0-9]{0,20},e=[a-z_.]{0,9},v[0-9]=[0-9a-f]{0,70}|(v1=[0-9a-f]{64},?){0,40}",
        standard in ".{0,200}|(v1a?,[A-Za-z0-9+/=]{0,90} ?){0,20}",
        t in "[0-9-]{0,25}",
        id in ".{0,40}",
        now: i64,
        with_x: bool,
    ) {
        let verifier = Verifier::new(&[VerifyingKey::parse("whsec_AAAAAAAAAAAA").unwrap()]);
        let get = |name: &str| match name {
            "x-webhook-signature" => with_x.then_some(x.as_str()),
            "webhook-signature" => Some(standard.as_str()),
            "webhook-timestamp" | "x-webhook-timestamp" => Some(t.as_str()),
            _ => Some(id.as_str()),
        };
        prop_assert!(verifier.verify(get, b"", now).is_err());
    }

    // D7
    #[test]
    fn any_secret_text_is_answered(text in ".{0,140}|whsk_[A-Za-z0-9+/=]{0,100}|whpk_[A-Za-z0-9+/=]{44}") {
        let _ = VerifyingKey::parse(&text);
        for scheme in [Scheme::V1, Scheme::Plain, Scheme::Ed25519] {
            let _ = Secret::parse(&text, scheme);
        }
    }
}
