//! Real deliveries, verified by code that is not ours: the public libraries of
//! Standard Webhooks from PyPI and npm, and what a consumer's guide shows.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    app::TestApp,
    receiver::{Received, Receiver},
    store::Db,
};

contract![public_libraries_verify_what_is_sent];

/// What a program answers to this input.
fn answer(mut command: Command, input: &Value) -> Value {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn installed(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `./test servers`, and export what it prints")
    })
}

/// Whether each of these secrets verifies a delivery: by the library in Python,
/// by the guide's lines in Python, by the library in JavaScript.
fn verdicts(received: &Received, secrets: &[&str]) -> Vec<[bool; 3]> {
    let headers: serde_json::Map<String, Value> = received
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap())))
        .collect();
    let body = std::str::from_utf8(&received.body).unwrap();
    let cases: Vec<Value> = secrets
        .iter()
        .map(|secret| json!({"secret": secret, "headers": headers, "body": body}))
        .collect();
    let cases = json!(cases);
    let mut python = Command::new("python3");
    python.args(["-c", include_str!("libraries.py")]).env(
        "PYTHONPATH",
        installed("ONERING_TEST_STANDARDWEBHOOKS_PYPI"),
    );
    let python = answer(python, &cases);
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("libraries.mjs");
    std::fs::write(&script, include_str!("libraries.mjs")).unwrap();
    let mut node = Command::new("node");
    node.arg(&script)
        .arg(Path::new(&installed("ONERING_TEST_STANDARDWEBHOOKS_NPM")));
    let node = answer(node, &cases);
    (0..secrets.len())
        .map(|i| [&python[i][0], &python[i][1], &node[i]].map(|v| v.as_bool().unwrap()))
        .collect()
}

// S1, S2, S4: also while a secret is being rotated, when the old one holds in
// the guide's lines and both do in the libraries.
async fn public_libraries_verify_what_is_sent(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    app.publish(&app.admin, "a.b", json!({"text": "ü😀", "n": 1}))
        .await;
    let received = receiver.wait(1).await.pop().unwrap();
    let another = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
    let found = verdicts(&received, &[&sub.secret, another]);
    assert_eq!(found, [[true; 3], [false; 3]]);

    let path = format!("/v1/external/webhooks/{}/rotate-secret", sub.id);
    let rotated = app
        .post(&path, &app.admin, json!({"overlap_seconds": 600}))
        .await
        .ok();
    let new = rotated["secret"].as_str().unwrap();
    app.publish(&app.admin, "a.b", json!({"n": 2})).await;
    let received = receiver.wait(2).await.pop().unwrap();
    let found = verdicts(&received, &[&sub.secret, new, another]);
    assert_eq!(found, [[true; 3], [true, false, true], [false; 3]]);
    app.stop().await;
}
