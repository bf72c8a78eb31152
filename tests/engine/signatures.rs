//! Signatures as they arrive, verified by our own verifier and by one in Python
//! that shares no code with it.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use onering::{
    cli::sink::{Sink, SinkConfig},
    domain::{id::wall_clock, signature::VerifyingKey},
};
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, eventually},
    receiver::{Received, Receiver},
    store::Db,
};

contract![
    every_scheme_is_verified_by_others,
    own_secrets_sign_as_they_stand,
    bad_secrets_are_refused,
    a_rotation_signs_with_both,
    the_plain_scheme_rotates,
    a_rotation_without_overlap,
    a_sink_verifies_every_scheme,
];

/// What holds of a delivery with each of these secrets, says Python.
fn python(received: &Received, secrets: &[&str]) -> Vec<Vec<String>> {
    let headers: serde_json::Map<String, Value> = received
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap())))
        .collect();
    let body = std::str::from_utf8(&received.body).unwrap();
    let each: Vec<Value> = secrets
        .iter()
        .map(|secret| json!({"secret": secret, "headers": headers, "body": body}))
        .collect();
    let mut child = Command::new("python3")
        .args(["-c", include_str!("verify.py")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(json!(each).to_string().as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn next(app: &TestApp, receiver: &Receiver) -> Received {
    let before = receiver.count();
    app.publish(&app.admin, "a.b", json!({"text": "ü😀", "n": before}))
        .await;
    receiver.wait(before + 1).await.pop().unwrap()
}

// S1, S2, S3
async fn every_scheme_is_verified_by_others(db: Db) {
    let app = TestApp::start(&db).await;
    for (scheme, holds) in [("V1", ["v1", "standard"]), ("PLAIN", ["plain", "standard"])] {
        let receiver = Receiver::start().await;
        let sub = app
            .webhook(&receiver.url(), json!({"signature_scheme": scheme}))
            .await;
        assert!(sub.secret.starts_with("whsec_"));
        let received = next(&app, &receiver).await;
        let found = python(&received, &[&sub.secret, "another secret"]);
        assert_eq!(
            found,
            [holds.map(str::to_owned).to_vec(), vec![]],
            "{scheme}"
        );
        let event = received.event();
        assert_eq!(received.header("webhook-id"), event);
        assert_eq!(received.header("x-webhook-event"), "a.b");
        assert_eq!(received.attempt(), 1);
        let id = received.header("x-webhook-id");
        let delivery = app.delivery(id).await;
        assert_eq!(
            (&delivery["event_id"], &delivery["subscription_id"]),
            (&json!(event), &json!(sub.id))
        );
        let t: i64 = received.header("x-webhook-timestamp").parse().unwrap();
        assert_eq!(received.header("webhook-timestamp"), t.to_string());
        assert!((wall_clock() / 1_000_000 - t).abs() <= 60);
        let signature = received.header("x-webhook-signature");
        if scheme == "V1" {
            assert!(
                signature.starts_with(&format!("t={t},e={event},v1=")),
                "{signature}"
            );
        } else {
            assert!(signature.len() == 64 && signature.bytes().all(|b| b.is_ascii_hexdigit()));
        }
        app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
            .await
            .ok();
    }
    app.stop().await;
}

// D7: as it stands for S1 and S3; for S2 what it is the base64 of, else itself.
async fn own_secrets_sign_as_they_stand(db: Db) {
    let app = TestApp::start(&db).await;
    let long = "~".repeat(128);
    let encoded = STANDARD.encode([7; 24]);
    let prefixed = format!("whsec_{encoded}");
    for secret in [
        "12345678",
        &long,
        "with spaces, ok",
        &encoded,
        &prefixed,
        "whsec_not base64",
    ] {
        for scheme in ["V1", "PLAIN"] {
            let receiver = Receiver::start().await;
            let fields = json!({"secret": secret, "signature_scheme": scheme});
            let sub = app.webhook(&receiver.url(), fields).await;
            assert_eq!(sub.secret, secret);
            let received = next(&app, &receiver).await;
            let holds = [scheme.to_lowercase(), "standard".into()];
            assert_eq!(python(&received, &[secret]), [holds], "{secret} {scheme}");
            app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
                .await
                .ok();
        }
    }
    app.stop().await;
}

// D7
async fn bad_secrets_are_refused(db: Db) {
    let app = TestApp::start(&db).await;
    let sub = app.webhook("http://127.0.0.1:9/", json!({})).await;
    let long = "x".repeat(129);
    for secret in [
        "1234567",
        &long,
        "tab\there",
        "line\nhere",
        "schlüssel",
        "nul\0byte",
    ] {
        let fields = json!({"url": "http://127.0.0.1:9/", "secret": secret});
        let rotate = format!("/v1/external/webhooks/{}/rotate-secret", sub.id);
        for (path, body) in [
            ("/v1/external/webhooks", fields),
            (rotate.as_str(), json!({"secret": secret})),
        ] {
            let problem = app
                .post(path, &app.admin, body)
                .await
                .refused(400, "INVALID_ARGUMENT");
            assert_eq!(problem["errors"][0]["field"], "secret");
            assert!(!problem.to_string().contains(secret), "it is not repeated");
        }
    }
    app.stop().await;
}

async fn rotate(app: &TestApp, id: &str, body: Value) -> String {
    let path = format!("/v1/external/webhooks/{id}/rotate-secret");
    let made = app.post(&path, &app.admin, body).await.ok();
    made["secret"].as_str().unwrap().to_owned()
}

// S4: the old one last, so that a receiver which cuts at `v1=` goes on working.
async fn a_rotation_signs_with_both(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    let fresh = rotate(&app, &sub.id, json!({"overlap_seconds": 3600})).await;
    assert_ne!(fresh, sub.secret);
    let shown = app.subscription(&sub.id).await;
    assert!(shown["previous_secret_expire_time"].is_string());

    let received = next(&app, &receiver).await;
    let signature = received.header("x-webhook-signature");
    let names: Vec<_> = signature
        .split(',')
        .map(|part| part.split_once('=').unwrap().0)
        .collect();
    assert_eq!(names, ["t", "e", "v1n", "v1"]);
    let (old, new) = (["v1", "standard"], ["v1n", "standard"]);
    assert_eq!(python(&received, &[&sub.secret, &fresh]), [old, new]);
    assert_eq!(received.header("webhook-signature").split(' ').count(), 2);

    let end = format!("/v1/external/webhooks/{}/end-overlap", sub.id);
    let shown = app.post(&end, &app.admin, json!({})).await.ok();
    assert!(shown["previous_secret_expire_time"].is_null());
    let received = next(&app, &receiver).await;
    assert_eq!(
        python(&received, &[&sub.secret, &fresh]),
        [vec![], old.to_vec()]
    );
    assert!(!received.header("x-webhook-signature").contains("v1n="));
    app.post(&end, &app.admin, json!({}))
        .await
        .refused(409, "FAILED_PRECONDITION");
    app.stop().await;
}

// S3, S4: a lone digest is the old secret's until the overlap ends.
async fn the_plain_scheme_rotates(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app
        .webhook(&receiver.url(), json!({"signature_scheme": "PLAIN"}))
        .await;
    let fresh = rotate(&app, &sub.id, json!({"secret": "my own next secret"})).await;
    assert_eq!(fresh, "my own next secret");
    let received = next(&app, &receiver).await;
    let found = python(&received, &[&sub.secret, &fresh]);
    assert_eq!(found, [vec!["plain", "standard"], vec!["standard"]]);
    let end = format!("/v1/external/webhooks/{}/end-overlap", sub.id);
    app.post(&end, &app.admin, json!({})).await.ok();
    let received = next(&app, &receiver).await;
    let found = python(&received, &[&sub.secret, &fresh]);
    assert_eq!(found, [vec![], vec!["plain", "standard"]]);
    app.stop().await;
}

// S4: an overlap that is over by itself, and none at all.
async fn a_rotation_without_overlap(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    let second = rotate(&app, &sub.id, json!({"overlap_seconds": 0})).await;
    let received = next(&app, &receiver).await;
    let found = python(&received, &[&sub.secret, &second]);
    assert_eq!(found, [vec![], vec!["v1", "standard"]]);
    let third = rotate(&app, &sub.id, json!({"overlap_seconds": 1})).await;
    eventually("the overlap is over", || async {
        let received = next(&app, &receiver).await;
        let found = python(&received, &[&second, &third]);
        (found == [vec![], vec!["v1".to_owned(), "standard".to_owned()]]).then_some(())
    })
    .await;
    app.stop().await;
}

// S1, S2, S3, S6: with a public key alone for Ed25519.
async fn a_sink_verifies_every_scheme(db: Db) {
    let app = TestApp::start(&db).await;
    for scheme in ["V1", "PLAIN", "ED25519"] {
        let secret = match scheme {
            "ED25519" => format!("whsk_{}", STANDARD.encode([9; 32])),
            _ => "a secret brought along".to_owned(),
        };
        let key = onering::domain::signature::Secret::parse_any(&secret).unwrap();
        let key = key.public_key().unwrap_or(secret.clone());
        let config = SinkConfig {
            keys: vec![VerifyingKey::parse(&key).unwrap()],
            scheme: Some(scheme.to_lowercase().parse().unwrap()),
            strict: true,
            ..SinkConfig::default()
        };
        let sink = Sink::start(config).await.unwrap();
        let fields = json!({"secret": secret, "signature_scheme": scheme});
        let sub = app.webhook(&sink.url(), fields).await;
        if scheme == "ED25519" {
            assert_eq!(app.subscription(&sub.id).await["public_key"], key);
        }
        app.event("a.b").await;
        app.wait_for(&sub.id, "DELIVERED", 1).await;
        let kept = &sink.deliveries()[0];
        assert_eq!(
            (kept.verified, kept.reason.as_deref()),
            (Some(true), None),
            "{scheme}"
        );
        app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
            .await
            .ok();
        sink.stop().await;
    }
    app.stop().await;
}
