//! Signatures that a receiver refuses.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use onering::domain::signature::{Scheme, Secret};

use super::{
    EVENT, JSON, NO_PREFIX, PUBLIC, S, SEED, SEED_NEW, T, TEXT, Vector, WHSEC, WHSEC_NEW, X, send,
};

pub(super) fn tampered() -> Vec<Vector> {
    use Scheme::{Ed25519, Plain, V1};
    let v1 = send(V1, WHSEC);
    let plain = send(Plain, WHSEC);
    let ed = send(Ed25519, SEED);
    let other = JSON.replace("4200", "4201");
    let no_match = "no_matching_signature";
    let later = (T + 1).to_string();
    vec![
        v1.to("v1, another body", WHSEC)
            .body(&other)
            .fails(no_match),
        v1.to("v1, body with a line break added", WHSEC)
            .body(&format!("{JSON}\n"))
            .fails(no_match),
        v1.to("v1, another secret", WHSEC_NEW).fails(no_match),
        v1.to("v1, no secret matches", WHSEC)
            .keys(&[WHSEC_NEW, TEXT])
            .fails(no_match),
        v1.to(
            "v1, X-Webhook-Signature: the secret without its prefix is another key",
            NO_PREFIX,
        )
        .only(X)
        .fails(no_match),
        v1.to("v1, timestamp changed", WHSEC)
            .only(X)
            .edit(X, "t=1790000000", "t=1790000001")
            .fails(no_match),
        v1.to("v1, event id changed", WHSEC)
            .only(X)
            .edit(X, "e=evt_01", "e=evt_02")
            .fails(no_match),
        v1.to("v1, digest changed, webhook-signature as it was", WHSEC)
            .with(X, format!("t={T},e={EVENT},v1={}", "00".repeat(32)))
            .fails(no_match),
        v1.to(
            "v1, webhook-signature changed, X-Webhook-Signature as it was",
            WHSEC,
        )
        .with(S, format!("v1,{}", STANDARD.encode([0; 32])))
        .fails(no_match),
        v1.to("v1, Standard Webhooks: id changed", WHSEC)
            .only("webhook-")
            .edit("webhook-id", "evt_01", "evt_02")
            .fails(no_match),
        v1.to("v1, Standard Webhooks: timestamp changed", WHSEC)
            .only("webhook-")
            .with("webhook-timestamp", &later)
            .fails(no_match),
        v1.to("v1, X-Webhook-Event-ID changed", WHSEC)
            .edit("X-Webhook-Event-ID", "evt_01", "evt_02")
            .fails("event_id_mismatch"),
        v1.to("v1, webhook-id changed", WHSEC)
            .edit("webhook-id", "evt_01", "evt_02")
            .fails("event_id_mismatch"),
        v1.to("v1, X-Webhook-Timestamp changed", WHSEC)
            .with("X-Webhook-Timestamp", &later)
            .fails("timestamp_mismatch"),
        v1.to("v1, webhook-timestamp changed", WHSEC)
            .with("webhook-timestamp", &later)
            .fails("timestamp_mismatch"),
        plain
            .to("plain, another body", WHSEC)
            .body(&other)
            .fails(no_match),
        plain.to("plain, another secret", WHSEC_NEW).fails(no_match),
        plain
            .to("plain, X-Webhook headers alone, timestamp changed", WHSEC)
            .only("X-")
            .with("X-Webhook-Timestamp", &later)
            .fails(no_match),
        plain
            .to("plain, both ids changed", WHSEC)
            .edit("X-Webhook-Event-ID", "evt_01", "evt_02")
            .edit("webhook-id", "evt_01", "evt_02")
            .fails(no_match),
        ed.to("ed25519, another body", PUBLIC)
            .body(&other)
            .fails(no_match),
        ed.to(
            "ed25519, another public key",
            &Secret::parse(SEED_NEW, Ed25519)
                .unwrap()
                .public_key()
                .unwrap(),
        )
        .fails(no_match),
        ed.to("ed25519, id changed", PUBLIC)
            .only("webhook-")
            .edit("webhook-id", "evt_01", "evt_02")
            .fails(no_match),
        ed.to("ed25519, signature of zeros", PUBLIC)
            .with(S, format!("v1a,{}", STANDARD.encode([0; 64])))
            .fails(no_match),
        v1.to("v1, a public key's holder", PUBLIC).fails(no_match),
    ]
}

pub(super) fn unreadable() -> Vec<Vector> {
    use Scheme::{Ed25519, Plain, V1};
    let v1 = send(V1, WHSEC);
    let plain = send(Plain, WHSEC);
    let ed = send(Ed25519, SEED);
    let bad = "malformed_header";
    let x = |name: &str, value: &str| v1.to(name, WHSEC).only(X).with(X, value).fails(bad);
    let s = |name: &str, value: &str| {
        v1.to(name, WHSEC)
            .only("webhook-")
            .with(S, value)
            .fails(bad)
    };
    let digest = "00".repeat(32);
    vec![
        v1.to("no signature at all", WHSEC)
            .without(X)
            .without(S)
            .fails("missing_header"),
        v1.to("v1 insisted on, Standard Webhooks headers alone", WHSEC)
            .only("webhook-")
            .insisting(V1)
            .fails("missing_header"),
        v1.to("Standard Webhooks without webhook-id", WHSEC)
            .only("webhook-")
            .without("webhook-id")
            .fails("missing_header"),
        v1.to("Standard Webhooks without webhook-timestamp", WHSEC)
            .only("webhook-")
            .without("webhook-timestamp")
            .fails("missing_header"),
        plain
            .to("plain without X-Webhook-Timestamp", WHSEC)
            .only("X-")
            .without("X-Webhook-Timestamp")
            .fails("missing_header"),
        plain
            .to("plain without X-Webhook-Event-ID", WHSEC)
            .only("X-")
            .without("X-Webhook-Event-ID")
            .fails("missing_header"),
        ed.to(
            "ed25519, a public key's holder, X-Webhook headers alone",
            PUBLIC,
        )
        .only("X-")
        .fails("missing_header"),
        plain
            .to("v1 insisted on, plain sent", WHSEC)
            .insisting(V1)
            .fails(bad),
        v1.to("plain insisted on, v1 sent", WHSEC)
            .insisting(Plain)
            .fails(bad),
        v1.to("ed25519 insisted on, v1 sent", PUBLIC)
            .insisting(Ed25519)
            .fails("unknown_version"),
        x("X-Webhook-Signature empty", ""),
        x("X-Webhook-Signature of another form", "sha256:abc"),
        x(
            "X-Webhook-Signature without t",
            &format!("e={EVENT},v1={digest}"),
        ),
        x(
            "X-Webhook-Signature without e",
            &format!("t={T},v1={digest}"),
        ),
        x(
            "X-Webhook-Signature without v1",
            &format!("t={T},e={EVENT}"),
        ),
        x(
            "X-Webhook-Signature with t twice",
            &format!("t={T},t={T},e={EVENT},v1={digest}"),
        ),
        x(
            "X-Webhook-Signature with e twice",
            &format!("t={T},e={EVENT},e={EVENT},v1={digest}"),
        ),
        x(
            "X-Webhook-Signature with a short digest",
            &format!("t={T},e={EVENT},v1=00"),
        ),
        x(
            "X-Webhook-Signature with a digest that is not hex",
            &format!("t={T},e={EVENT},v1={}", "zz".repeat(32)),
        ),
        x(
            "X-Webhook-Signature with a negative t",
            &format!("t=-1,e={EVENT},v1={digest}"),
        ),
        x(
            "X-Webhook-Signature with a t that is no number",
            &format!("t=now,e={EVENT},v1={digest}"),
        ),
        x(
            "X-Webhook-Signature with a huge t",
            &format!("t={},e={EVENT},v1={digest}", "9".repeat(40)),
        ),
        x(
            "X-Webhook-Signature with a full stop in the event id",
            &format!("t={T},e=evt.1,v1={digest}"),
        ),
        x(
            "X-Webhook-Signature with an empty event id",
            &format!("t={T},e=,v1={digest}"),
        ),
        x(
            "X-Webhook-Signature of a version that is not known",
            &format!("t={T},e={EVENT},v9={digest}"),
        )
        .fails("unknown_version"),
        s("webhook-signature empty", ""),
        s("webhook-signature without a version", "AAAA"),
        s("webhook-signature that is not base64", "v1,!!!!"),
        s("webhook-signature that is too short", "v1,AAAA"),
        s(
            "webhook-signature of a version that is not known",
            "v9,AAAA",
        )
        .fails("unknown_version"),
        v1.to("webhook-timestamp that is no number", WHSEC)
            .only("webhook-")
            .with("webhook-timestamp", "soon")
            .fails(bad),
    ]
}
