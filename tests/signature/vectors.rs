//! What is in `clients/vectors/*.json`.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use onering::domain::signature::{Scheme, Secret, Signer};
use serde::Serialize;

#[path = "vectors/refused.rs"]
mod refused;

#[derive(Serialize)]
pub(crate) struct Signatures {
    about: &'static str,
    pub vectors: Vec<Vector>,
}

#[derive(Serialize, Clone)]
pub(crate) struct Vector {
    pub name: String,
    /// What the receiver insists on; absent: whatever the headers show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// What the receiver holds: secrets, or public keys.
    pub keys: Vec<String>,
    pub headers: BTreeMap<String, String>,
    #[serde(flatten)]
    pub body: Body,
    pub now: i64,
    pub expect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Said>,
    /// What an implementation that signs makes the two signature headers from;
    /// absent where the headers are not what a sender makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_with: Option<SignedWith>,
}

#[derive(Serialize, Clone)]
pub(crate) struct Said {
    pub event_id: String,
    pub timestamp: i64,
}

#[derive(Serialize, Clone)]
pub(crate) struct SignedWith {
    scheme: &'static str,
    secret: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_secret: Option<String>,
    timestamp: i64,
    event_id: String,
}

#[derive(Serialize, Clone)]
pub(crate) enum Body {
    #[serde(rename = "body")]
    Text(String),
    #[serde(rename = "body_base64")]
    Base64(String),
}

impl Body {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Base64(text) => STANDARD.decode(text).unwrap(),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct Duplicates {
    about: &'static str,
    pub sequences: Vec<Sequence>,
}

#[derive(Serialize)]
pub(crate) struct Sequence {
    pub name: &'static str,
    pub steps: Vec<Step>,
}

#[derive(Serialize)]
pub(crate) struct Step {
    pub at: i64,
    pub event_id: String,
    pub handler: &'static str,
    pub expect: &'static str,
}

const T: i64 = 1_790_000_000;
const EVENT: &str = "evt_01k2x3v4w5e6r7t8y9a0b1c2d3";
const JSON: &str = r#"{"id":"evt_01k2x3v4w5e6r7t8y9a0b1c2d3","type":"invoice.paid","timestamp":"2026-09-21T14:13:20Z","data":{"amount":4200}}"#;
const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwEpvGj0qaTDk=";
const WHSEC_NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDRHDNhbzvxfE=";
const NO_PREFIX: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwEpvGj0qaTDk=";
const TEXT: &str = "not base64: a secret of one's own!";
const WHSEC_TEXT: &str = "whsec_not-base64-either";
/// The seed of RFC 8032's first test, alone and with its public key.
const SEED: &str = "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
const PAIR: &str =
    "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2DXWpgBgrEKt9VL/tPJZAc6DuFy89qmIyWvAhpo9wdRGg==";
const PUBLIC: &str = "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
/// The seed of RFC 8032's second test.
const SEED_NEW: &str = "whsk_TM0Imyj/ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U+4pvs=";

/// What a sender does.
struct Send<'a> {
    scheme: Scheme,
    secret: &'a str,
    previous: Option<&'a str>,
    body: Body,
}

impl Send<'_> {
    /// The vector of a receiver with `key` who gets this in time.
    fn to(&self, name: &str, key: &str) -> Vector {
        let current = Secret::parse(self.secret, self.scheme).unwrap();
        let previous = self.previous.map(|text| Secret::parse_any(text).unwrap());
        let signed = Signer::new(self.scheme, &current, previous.as_ref()).sign(
            T,
            EVENT,
            &self.body.bytes(),
        );
        let headers = [
            ("X-Webhook-Signature", signed.x_webhook_signature),
            ("X-Webhook-Timestamp", T.to_string()),
            ("X-Webhook-Event-ID", EVENT.to_owned()),
            ("X-Webhook-Event", "invoice.paid".to_owned()),
            ("X-Webhook-ID", "dlv_01k2x3v4w5e6r7t8y9a0b1c2d4".to_owned()),
            ("X-Webhook-Attempt", "1".to_owned()),
            ("webhook-id", EVENT.to_owned()),
            ("webhook-timestamp", T.to_string()),
            ("webhook-signature", signed.webhook_signature),
        ];
        Vector {
            name: name.to_owned(),
            scheme: None,
            keys: vec![key.to_owned()],
            headers: headers.map(|(n, v)| (n.to_owned(), v)).into(),
            body: self.body.clone(),
            now: T,
            expect: "ok".to_owned(),
            verified: Some(Said {
                event_id: EVENT.to_owned(),
                timestamp: T,
            }),
            signed_with: Some(SignedWith {
                scheme: self.scheme.name(),
                secret: self.secret.to_owned(),
                previous_secret: self.previous.map(str::to_owned),
                timestamp: T,
                event_id: EVENT.to_owned(),
            }),
        }
    }
}

impl Vector {
    fn insisting(mut self, scheme: Scheme) -> Self {
        self.scheme = Some(scheme.name().to_owned());
        self
    }

    fn at(mut self, now: i64) -> Self {
        self.now = now;
        self
    }

    fn fails(mut self, code: &str) -> Self {
        code.clone_into(&mut self.expect);
        self.verified = None;
        self
    }

    fn keys(mut self, keys: &[&str]) -> Self {
        self.keys = keys.iter().map(|&k| k.to_owned()).collect();
        self
    }

    /// Only the headers that start so.
    fn only(mut self, prefix: &str) -> Self {
        self.headers.retain(|name, _| name.starts_with(prefix));
        self.signed_with = None;
        self
    }

    fn without(mut self, header: &str) -> Self {
        self.headers.remove(header).unwrap();
        self.signed_with = None;
        self
    }

    fn with(mut self, header: &str, value: impl Into<String>) -> Self {
        self.headers.insert(header.to_owned(), value.into());
        self.signed_with = None;
        self
    }

    fn edit(self, header: &str, from: &str, to: &str) -> Self {
        let value = self.headers[header].clone();
        assert!(value.contains(from), "{header}: {value}");
        self.with(header, value.replacen(from, to, 1))
    }

    fn body(mut self, body: &str) -> Self {
        self.body = Body::Text(body.to_owned());
        self.signed_with = None;
        self
    }
}

fn send(scheme: Scheme, secret: &str) -> Send<'_> {
    Send {
        scheme,
        secret,
        previous: None,
        body: Body::Text(JSON.to_owned()),
    }
}

fn rotating<'a>(scheme: Scheme, secret: &'a str, previous: &'a str) -> Send<'a> {
    Send {
        previous: Some(previous),
        ..send(scheme, secret)
    }
}

const X: &str = "X-Webhook-Signature";
const S: &str = "webhook-signature";

pub(crate) fn signatures() -> Signatures {
    let mut vectors = valid();
    vectors.extend(rotation());
    vectors.extend(times());
    vectors.extend(refused::tampered());
    vectors.extend(refused::unreadable());
    Signatures {
        about: "Signatures of OneRing's webhooks; README.md says how to read them.",
        vectors,
    }
}

fn valid() -> Vec<Vector> {
    use Scheme::{Ed25519, Plain, V1};
    let with_body = |scheme, secret, body| Send {
        body,
        ..send(scheme, secret)
    };
    let text = |text: &str| Body::Text(text.to_owned());
    let v1 = send(V1, WHSEC);
    let plain = send(Plain, WHSEC);
    let ed = send(Ed25519, SEED);
    let unicode = r#"{"data":{"name":"Zoë – 指輪 💍"}}"#;
    let binary = Body::Base64(STANDARD.encode([0, 1, 2, 0xff, 0xfe, b'\r', b'\n', 0]));
    vec![
        v1.to("v1", WHSEC),
        v1.to("v1, insisted on", WHSEC).insisting(V1),
        v1.to("v1, X-Webhook-Signature alone", WHSEC).only(X),
        v1.to("v1, Standard Webhooks headers alone", WHSEC)
            .only("webhook-"),
        v1.to(
            "v1, Standard Webhooks: the secret without its prefix is the same key",
            NO_PREFIX,
        )
        .only("webhook-"),
        send(V1, NO_PREFIX).to("v1, secret without whsec_", NO_PREFIX),
        send(V1, TEXT).to("v1, secret that is not base64", TEXT),
        send(V1, WHSEC_TEXT).to("v1, secret with whsec_ that is not base64", WHSEC_TEXT),
        send(V1, "abcdefgh").to("v1, shortest secret", "abcdefgh"),
        with_body(V1, WHSEC, text("")).to("v1, empty body", WHSEC),
        with_body(V1, WHSEC, text(unicode)).to("v1, body in Unicode", WHSEC),
        with_body(V1, WHSEC, binary.clone()).to("v1, body that is not UTF-8", WHSEC),
        v1.to("v1, receiver holds several secrets", WHSEC)
            .keys(&[TEXT, WHSEC_NEW, WHSEC]),
        v1.to(
            "v1, items in another order, with spaces and one that is not known",
            WHSEC,
        )
        .only(X)
        .edit(X, "t=1790000000,e=", "x=1, e=")
        .edit(X, ",v1=", ", t=1790000000, v1="),
        v1.to("v1, hex digits in upper case", WHSEC)
            .only(X)
            .with(X, {
                let header = v1.to("", WHSEC).headers[X].clone();
                let (head, digest) = header.split_once("v1=").unwrap();
                format!("{head}v1={}", digest.to_uppercase())
            }),
        v1.to(
            "v1, an entry of a version that is not known beside it",
            WHSEC,
        )
        .edit(S, "v1,", "v9,AAAA v1,")
        .edit(X, ",v1=", ",v9=00,v1="),
        plain.to("plain", WHSEC),
        plain.to("plain, insisted on", WHSEC).insisting(Plain),
        plain.to("plain, X-Webhook headers alone", WHSEC).only("X-"),
        with_body(Plain, TEXT, text("")).to("plain, empty body", TEXT),
        with_body(Plain, TEXT, text(unicode)).to("plain, body in Unicode", TEXT),
        ed.to("ed25519, the secret's holder", SEED),
        send(Ed25519, PAIR).to("ed25519, the secret with its public key", PAIR),
        ed.to("ed25519, insisted on, the public key's holder", PUBLIC)
            .insisting(Ed25519),
        ed.to("ed25519, the public key's holder", PUBLIC),
        ed.to("ed25519, Standard Webhooks headers alone", PUBLIC)
            .only("webhook-"),
        ed.to(
            "ed25519, X-Webhook-Signature alone, the secret's holder",
            SEED,
        )
        .only(X),
        with_body(Ed25519, SEED, text("")).to("ed25519, empty body", PUBLIC),
        with_body(Ed25519, SEED, binary).to("ed25519, body that is not UTF-8", PUBLIC),
    ]
}

fn rotation() -> Vec<Vector> {
    use Scheme::{Ed25519, Plain, V1};
    let v1 = rotating(V1, WHSEC_NEW, WHSEC);
    let plain = rotating(Plain, WHSEC_NEW, WHSEC);
    let ed = rotating(Ed25519, SEED_NEW, SEED);
    let change = rotating(Ed25519, SEED, WHSEC);
    let public_new = Secret::parse(SEED_NEW, Ed25519)
        .unwrap()
        .public_key()
        .unwrap();
    vec![
        v1.to("rotation, v1, old secret", WHSEC),
        v1.to("rotation, v1, new secret", WHSEC_NEW),
        v1.to("rotation, v1, old secret, X-Webhook-Signature alone", WHSEC)
            .only(X),
        v1.to(
            "rotation, v1, new secret, X-Webhook-Signature alone",
            WHSEC_NEW,
        )
        .only(X),
        v1.to(
            "rotation, v1, old secret, Standard Webhooks headers alone",
            WHSEC,
        )
        .only("webhook-"),
        v1.to(
            "rotation, v1, new secret, Standard Webhooks headers alone",
            WHSEC_NEW,
        )
        .only("webhook-"),
        v1.to("rotation, v1, another secret", TEXT)
            .fails("no_matching_signature"),
        send(V1, WHSEC_NEW)
            .to("rotation ended, v1, old secret", WHSEC)
            .fails("no_matching_signature"),
        plain.to("rotation, plain, old secret", WHSEC),
        plain
            .to(
                "rotation, plain, old secret, X-Webhook headers alone",
                WHSEC,
            )
            .only("X-"),
        plain.to(
            "rotation, plain, new secret: webhook-signature holds",
            WHSEC_NEW,
        ),
        plain
            .to(
                "rotation, plain, new secret, X-Webhook headers alone",
                WHSEC_NEW,
            )
            .only("X-")
            .fails("no_matching_signature"),
        ed.to("rotation, ed25519, old public key", PUBLIC),
        ed.to("rotation, ed25519, new public key", &public_new),
        ed.to("rotation, ed25519, old secret", SEED),
        change.to("rotation from v1 to ed25519, old secret", WHSEC),
        change.to("rotation from v1 to ed25519, new public key", PUBLIC),
    ]
}

fn times() -> Vec<Vector> {
    let v1 = send(Scheme::V1, WHSEC);
    let plain = send(Scheme::Plain, WHSEC);
    let ed = send(Scheme::Ed25519, SEED);
    vec![
        v1.to("300 seconds old", WHSEC).at(T + 300),
        v1.to("301 seconds old", WHSEC).at(T + 301).fails("too_old"),
        v1.to("30 seconds ahead", WHSEC).at(T - 30),
        v1.to("31 seconds ahead", WHSEC)
            .at(T - 31)
            .fails("in_future"),
        v1.to("a day old, X-Webhook-Signature alone", WHSEC)
            .only(X)
            .at(T + 86_400)
            .fails("too_old"),
        v1.to("301 seconds old, Standard Webhooks headers alone", WHSEC)
            .only("webhook-")
            .at(T + 301)
            .fails("too_old"),
        v1.to("31 seconds ahead, Standard Webhooks headers alone", WHSEC)
            .only("webhook-")
            .at(T - 31)
            .fails("in_future"),
        plain
            .to("plain, 301 seconds old", WHSEC)
            .at(T + 301)
            .fails("too_old"),
        plain
            .to("plain, 31 seconds ahead", WHSEC)
            .at(T - 31)
            .fails("in_future"),
        ed.to("ed25519, 301 seconds old", PUBLIC)
            .at(T + 301)
            .fails("too_old"),
        ed.to("ed25519, 31 seconds ahead", PUBLIC)
            .at(T - 31)
            .fails("in_future"),
        v1.to("too old and another secret: the age is said first", TEXT)
            .at(T + 301)
            .fails("too_old"),
    ]
}

pub(crate) fn duplicates() -> Duplicates {
    let step = |at, event_id: &str, handler, expect| Step {
        at: T + at,
        event_id: event_id.to_owned(),
        handler,
        expect,
    };
    Duplicates {
        about: "Which verified deliveries run the handler; README.md says how to read them.",
        sequences: vec![
            Sequence {
                name: "a repetition is a duplicate for 15 minutes",
                steps: vec![
                    step(0, "evt_1", "succeeds", "handled"),
                    step(1, "evt_1", "succeeds", "duplicate"),
                    step(2, "evt_2", "succeeds", "handled"),
                    step(900, "evt_1", "succeeds", "duplicate"),
                    step(901, "evt_1", "succeeds", "handled"),
                ],
            },
            Sequence {
                name: "an id is remembered only once its handler has succeeded",
                steps: vec![
                    step(0, "evt_1", "fails", "failed"),
                    step(60, "evt_1", "fails", "failed"),
                    step(360, "evt_1", "succeeds", "handled"),
                    step(361, "evt_1", "succeeds", "duplicate"),
                ],
            },
            Sequence {
                name: "a duplicate does not lengthen the time",
                steps: vec![
                    step(0, "evt_1", "succeeds", "handled"),
                    step(800, "evt_1", "succeeds", "duplicate"),
                    step(1000, "evt_1", "succeeds", "handled"),
                ],
            },
        ],
    }
}
