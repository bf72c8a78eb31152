//! `onering sink` over HTTP, and `onering verify` as a command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::SocketAddr,
    process::{Command, Output},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use onering::{
    cli::sink::{Behaviour, RunningSink, Sink, SinkConfig},
    domain::signature::{Scheme, Secret, Signer, VerifyingKey},
};
use serde_json::{Value, json};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwEpvGj0qaTDk=";

struct Fixture {
    sink: RunningSink,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Fixture {
    async fn start(config: SinkConfig) -> Self {
        Self {
            sink: Sink::start(config).await.unwrap(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    async fn verifying(strict: bool) -> Self {
        Self::start(SinkConfig {
            keys: vec![VerifyingKey::parse(SECRET).unwrap()],
            strict,
            ..SinkConfig::default()
        })
        .await
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: impl Into<Bytes>,
    ) -> (StatusCode, Bytes) {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.sink.addr));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let response = self.client.request(request).await.unwrap();
        let status = response.status();
        (
            status,
            response.into_body().collect().await.unwrap().to_bytes(),
        )
    }

    async fn post(&self, headers: &[(&str, String)], body: &'static str) -> StatusCode {
        self.call("POST", "/webhook", headers, body).await.0
    }

    async fn deliveries(&self) -> Value {
        let (status, body) = self.call("GET", "/deliveries", &[], "").await;
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice(&body).unwrap()
    }

    async fn behave(&self, behaviour: Value) -> StatusCode {
        self.call("POST", "/behave", &[], behaviour.to_string())
            .await
            .0
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs().try_into().unwrap()
}

fn signed(secret: &str, event_id: &str, t: i64, body: &str) -> Vec<(&'static str, String)> {
    let secret = Secret::parse(secret, Scheme::V1).unwrap();
    let signed = Signer::new(Scheme::V1, &secret, None).sign(t, event_id, body.as_bytes());
    vec![
        ("X-Webhook-Signature", signed.x_webhook_signature),
        ("X-Webhook-Event-ID", event_id.into()),
        ("X-Webhook-Timestamp", t.to_string()),
        ("webhook-id", event_id.into()),
        ("webhook-timestamp", t.to_string()),
        ("webhook-signature", signed.webhook_signature),
    ]
}

// S6
#[tokio::test]
async fn keeps_what_came_and_whether_it_is_verified() {
    let f = Fixture::verifying(false).await;
    let body = r#"{ "kept":  "as it came" }"#;
    assert_eq!(
        f.post(&signed(SECRET, "evt_1", now(), body), body).await,
        200
    );
    assert_eq!(
        f.post(&signed("another-secret", "evt_2", now(), body), body)
            .await,
        200
    );
    assert_eq!(
        f.post(&signed(SECRET, "evt_3", now() - 400, body), body)
            .await,
        200
    );
    assert_eq!(f.call("POST", "/webhook/a", &[], body).await.0, 200);

    let found = f.deliveries().await;
    assert_eq!(found["count"], 4);
    let all = &found["deliveries"];
    assert_eq!(all[0]["verified"], true);
    assert_eq!(all[0]["reason"], Value::Null);
    assert_eq!(all[0]["body"], body);
    assert_eq!(all[0]["headers"]["x-webhook-event-id"], "evt_1");
    assert!(all[0]["received_at"].as_str().unwrap().ends_with('Z'));
    for (i, why) in [(1, "no signature"), (2, "s old"), (3, "missing")] {
        assert_eq!(all[i]["verified"], false);
        let reason = all[i]["reason"].as_str().unwrap();
        assert!(reason.contains(why), "{reason}");
    }
    assert_eq!(f.sink.deliveries().len(), 4);

    assert_eq!(f.call("DELETE", "/delete", &[], "").await.0, 200);
    assert_eq!(f.deliveries().await["count"], 0);
}

#[tokio::test]
async fn without_a_secret_nothing_is_verified() {
    let f = Fixture::start(SinkConfig::default()).await;
    assert_eq!(
        f.call("POST", "/webhook", &[], &[0xff_u8, 0][..]).await.0,
        200
    );
    let kept = &f.deliveries().await["deliveries"][0];
    assert_eq!(kept["verified"], Value::Null);
    assert_eq!(kept["reason"], "no secret");
    assert_eq!(kept["body_base64"], "/wA=");
}

// S6
#[tokio::test]
async fn only_a_strict_sink_refuses() {
    let f = Fixture::verifying(true).await;
    assert_eq!(
        f.post(&signed(SECRET, "evt_1", now(), "{}"), "{}").await,
        200
    );
    assert_eq!(
        f.post(&signed(SECRET, "evt_1", now(), "{}"), "{ }").await,
        401
    );
    assert_eq!(f.post(&[], "{}").await, 401);
    assert_eq!(f.deliveries().await["count"], 3);
}

// S6
#[tokio::test]
async fn a_repetition_is_a_duplicate_once_the_first_was_answered_well() {
    let f = Fixture::verifying(false).await;
    let delivery = signed(SECRET, "evt_1", now(), "{}");
    f.behave(json!({"fail_next": 1})).await;
    assert_eq!(f.post(&delivery, "{}").await, 503);
    assert_eq!(f.post(&delivery, "{}").await, 200);
    assert_eq!(f.post(&delivery, "{}").await, 200);
    let duplicates: Vec<bool> = f.sink.deliveries().iter().map(|d| d.duplicate).collect();
    assert_eq!(duplicates, [false, false, true]);
}

#[tokio::test]
async fn fails_and_delays_as_told() {
    let f = Fixture::start(SinkConfig {
        behaviour: Behaviour {
            fail_next: Some(2),
            ..Behaviour::default()
        },
        ..SinkConfig::default()
    })
    .await;
    for status in [503, 503, 200] {
        assert_eq!(f.post(&[], "{}").await, status);
    }
    assert_eq!(f.behave(json!({"status": 410})).await, 200);
    assert_eq!(f.post(&[], "{}").await, 410);
    assert_eq!(
        f.behave(json!({"status": 429, "fail_next": 1, "delay_ms": 1}))
            .await,
        200
    );
    for status in [429, 200] {
        assert_eq!(f.post(&[], "{}").await, status);
    }
    assert_eq!(f.behave(json!({})).await, 200);
    assert_eq!(f.post(&[], "{}").await, 200);
    for wrong in [json!({"status": 99}), json!({"staus": 500}), json!([1])] {
        assert_eq!(f.behave(wrong).await, 400);
    }
}

#[tokio::test]
async fn hangs_until_it_is_stopped() {
    let f = Fixture::start(SinkConfig::default()).await;
    f.behave(json!({"hang": true})).await;
    let (client, addr) = (f.client.clone(), f.sink.addr);
    let hanging = tokio::spawn(async move {
        let request = Request::post(format!("http://{addr}/webhook"));
        client.request(request.body(Full::default()).unwrap()).await
    });
    while f.sink.total() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!hanging.is_finished());
    assert_eq!(f.sink.deliveries()[0].status, None);
    f.sink.stop().await;
    // Answered or cut off: not left waiting.
    let _ = hanging.await.unwrap();
}

// E3
#[tokio::test]
async fn what_it_keeps_and_takes_is_limited() {
    let f = Fixture::start(SinkConfig {
        keep: 3,
        ..SinkConfig::default()
    })
    .await;
    for _ in 0..5 {
        f.post(&[], "{}").await;
    }
    let found = f.deliveries().await;
    assert_eq!((&found["count"], &found["total"]), (&json!(3), &json!(5)));
    let (status, _) = f
        .call("POST", "/webhook", &[], vec![b'x'; (1 << 20) + 1])
        .await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(f.call("GET", "/webhook", &[], "").await.0, 405);
    assert_eq!(f.call("GET", "/nothing", &[], "").await.0, 404);
    assert_eq!(f.call("GET", "/", &[], "").await.0, 200);
}

#[tokio::test]
async fn http_2_is_served_too() {
    let sink = Sink::start(SinkConfig::default()).await.unwrap();
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let request = Request::post(sink.url()).body(Full::default()).unwrap();
    assert_eq!(client.request(request).await.unwrap().status(), 200);
}

fn verify(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_onering"))
        .arg("verify")
        .args(args)
        .output()
        .unwrap()
}

// S6
#[test]
fn verify_says_why_and_exits_so() {
    let signed = verify(&[
        "--sign",
        "--secret",
        SECRET,
        "--event-id",
        "evt_1",
        "--body",
        "{}",
        "--timestamp",
        "1000",
        "--output",
        "json",
    ]);
    assert_eq!(signed.status.code(), Some(0));
    let headers: Value = serde_json::from_slice(&signed.stdout).unwrap();
    let x = headers["headers"]["X-Webhook-Signature"].as_str().unwrap();

    for (body, now, code, why) in [
        ("{}", "1300", 0, ""),
        ("{}", "1301", 1, "301 s old"),
        ("{}", "969", 1, "31 s in the future"),
        ("{}\n", "1000", 1, "without the line break"),
        (
            "{ }",
            "1000",
            1,
            "no signature in x-webhook-signature matches",
        ),
    ] {
        let out = verify(&[
            "--secret", SECRET, "--header", x, "--body", body, "--now", now,
        ]);
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(code), "{said}");
        assert!(said.contains(why), "{said}");
    }
    let out = verify(&[
        "--secret", SECRET, "--header", x, "--body", "", "--now", "1", "--output", "json",
    ]);
    let said: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        (&said["valid"], &said["code"]),
        (&json!(false), &json!("in_future"))
    );
}

// S2
// S3
#[test]
fn verify_takes_every_scheme() {
    let made = Secret::generate(Scheme::Ed25519).unwrap();
    let public = made.public_key().unwrap();
    for (scheme, secret, key) in [
        ("v1", SECRET, SECRET),
        ("plain", "my-own-secret", "my-own-secret"),
        ("ed25519", made.expose(), public.as_str()),
    ] {
        let signed = verify(&[
            "--sign",
            "--scheme",
            scheme,
            "--secret",
            secret,
            "--body",
            r#"{"id":"evt_9"}"#,
        ]);
        let text = String::from_utf8(signed.stdout).unwrap();
        let mut args = vec!["--secret", key, "--body", r#"{"id":"evt_9"}"#];
        for line in text.lines() {
            args.extend(["--header", line]);
        }
        let out = verify(&args);
        assert_eq!(out.status.code(), Some(0), "{scheme}: {out:?}");
        assert!(String::from_utf8(out.stdout).unwrap().contains("evt_9"));
    }
    // A digest alone, as a receiver of the plain scheme has it.
    let digest = "6c8d4a7c0e5f";
    let out = verify(&[
        "--secret",
        SECRET,
        "--header",
        digest,
        "--timestamp",
        "1",
        "--body",
        "x",
    ]);
    assert_eq!(out.status.code(), Some(1));
}

#[test]
fn wrong_use_exits_2() {
    for args in [
        &["--secret", "short", "--header", "x", "--body", ""][..],
        &["--secret", SECRET, "--header", "x"],
        &["--secret", SECRET, "--body", ""],
        &[
            "--secret",
            SECRET,
            "--header",
            "x",
            "--body",
            "@/does/not/exist",
        ],
        &["--secret", SECRET, "--sign", "--body", "no json"],
        &["--header", "x", "--body", ""],
    ] {
        assert_eq!(verify(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn the_command_prints_where_it_listens() {
    use std::io::{BufRead as _, BufReader};
    let mut child = Command::new(env!("CARGO_BIN_EXE_onering"))
        .args(["sink", "--port", "0"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let addr = line
        .trim()
        .strip_prefix("listening on http://")
        .and_then(|rest| rest.strip_suffix("/webhook"))
        .unwrap();
    assert_ne!(addr.parse::<SocketAddr>().unwrap().port(), 0);
    let stopped = Command::new("kill").arg(child.id().to_string()).status();
    assert!(stopped.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
