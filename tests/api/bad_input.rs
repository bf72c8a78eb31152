//! Bad input of every kind gets a refusal: no panic, no hang, no 5xx.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use onering::rest::Rest;
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngSeed, TestRunner},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    app::{Answer, PATIENCE, TestApp, reason},
    call::unary,
    store::Db,
};

contract![
    bodies_that_are_not_what_is_asked_for,
    unknown_routes_and_methods,
    bodies_that_are_too_large,
    bytes_that_are_no_protobuf,
    garbage_on_the_port,
    any_request_gets_an_answer,
];

const KEYS: &str = "/v1/admin/external/keys";
const EVENTS: &str = "/v1/external/events";

async fn raw(app: &TestApp, path: &str, content: &str, body: &[u8]) -> Answer {
    let mut request = app.request("POST", path, &app.admin);
    if !content.is_empty() {
        request = request.header("content-type", content);
    }
    let body = Full::from(Bytes::copy_from_slice(body));
    app.send(request.body(body).unwrap()).await
}

// E3: what is not JSON, or not of the right type, is named.
async fn bodies_that_are_not_what_is_asked_for(db: Db) {
    let app = TestApp::start(&db).await;
    let deep = format!(
        "{{\"event_type\":\"a.b\",\"data\":{}1{}}}",
        "[".repeat(5000),
        "]".repeat(5000)
    );
    for (path, body, field) in [
        (KEYS, &b"{"[..], "body"),
        (KEYS, b"nonsense", "body"),
        (KEYS, b"[]", "body"),
        (KEYS, b"null", "body"),
        (KEYS, b"\"text\"", "body"),
        (KEYS, b"{} {}", "body"),
        (KEYS, b"{\"name\":\"\xff\"}", "body"),
        (KEYS, b"{\"name\":\"\\ud800\"}", "name"),
        (KEYS, b"{\"name\":1}", "name"),
        (KEYS, b"{\"name\":[\"a\"]}", "name"),
        (KEYS, b"{\"scopes\":\"read:rings\"}", "scopes"),
        (KEYS, b"{\"scopes\":[1]}", "scopes[0]"),
        (KEYS, b"{\"canary_enabled\":\"yes\"}", "canary_enabled"),
        (
            KEYS,
            b"{\"rate_limit_per_hour\":1.5}",
            "rate_limit_per_hour",
        ),
        (
            KEYS,
            b"{\"rate_limit_per_hour\":1e400}",
            "rate_limit_per_hour",
        ),
        (
            KEYS,
            b"{\"rate_limit_per_hour\":99999999999999999999}",
            "rate_limit_per_hour",
        ),
        (KEYS, b"{\"kind\":\"ROOT\"}", "kind"),
        (KEYS, b"{\"kind\":2}", "kind"),
        (KEYS, b"{\"metadata\":[]}", "metadata"),
        (KEYS, b"{\"metadata\":{\"a\":1}}", "metadata[\"a\"]"),
        (KEYS, b"{\"nmae\":\"x\"}", "nmae"),
        (KEYS, b"{\"keyId\":\"x\"}", "keyId"),
        (KEYS, b"{\"name\":\"a\",\"name\":\"b\"}", "name"),
        (EVENTS, b"{", "body"),
        (EVENTS, b"[\"a.b\",{}]", "body"),
        (
            EVENTS,
            b"{\"event_type\":\"a.b\",\"data\":\"\xff\"}",
            "body",
        ),
        (
            EVENTS,
            b"{\"event_type\":\"a.b\",\"data\":{},\"dta\":1}",
            "dta",
        ),
        (EVENTS, b"{\"event_type\":5,\"data\":{}}", "event_type"),
        (EVENTS, b"{\"data\":{}}", "event_type"),
        (
            EVENTS,
            b"{\"event_type\":\"a b\",\"data\":{}}",
            "event_type",
        ),
        (EVENTS, b"{\"event_type\":\"a.b\"}", "data"),
        (EVENTS, deep.as_bytes(), "body"),
    ] {
        let what = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let problem = raw(&app, path, "application/json", body).await;
        let problem = problem.refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], field, "{what}: {problem}");
    }
    // An enum is named in both ways, and what it takes is said.
    for kind in ["ADMIN", "KEY_KIND_ADMIN"] {
        app.post(KEYS, &app.admin, json!({"kind": kind})).await.ok();
    }
    let problem = app.post(KEYS, &app.admin, json!({"kind": "admin"})).await;
    let message = problem.refused(400, "INVALID_ARGUMENT")["errors"][0]["message"].clone();
    assert!(
        message.as_str().unwrap().contains("CONSUMER, ADMIN"),
        "{message}"
    );
    for content in [
        "text/plain",
        "application/xml",
        "multipart/form-data",
        "",
        "application/json; charset=latin1",
    ] {
        let answer = raw(&app, KEYS, content, b"{}").await;
        if content.is_empty() {
            answer.ok();
        } else {
            answer.refused(415, "UNSUPPORTED_MEDIA_TYPE");
        }
    }
    let packed = app
        .request("POST", KEYS, &app.admin)
        .header("content-encoding", "gzip")
        .body("{}".into());
    app.send(packed.unwrap())
        .await
        .refused(415, "UNSUPPORTED_MEDIA_TYPE");
    app.stop().await;
}

// E3: no such route is 404, another method of it 405 with `Allow`.
async fn unknown_routes_and_methods(db: Db) {
    let app = TestApp::start(&db).await;
    for path in [
        "/",
        "/v1",
        "/nowhere",
        "/v1/external",
        "/v1/external/me/",
        "//v1/external/me",
        "/v1/external/webhooks/x/y/z",
        "/V1/EXTERNAL/ME",
        "/v1/external/%6de",
        "/health/",
    ] {
        app.get(path, &app.admin).await.refused(404, "NOT_FOUND");
    }
    for (method, path, allow) in [
        ("PUT", "/v1/external/me", "GET, HEAD, OPTIONS"),
        ("DELETE", EVENTS, "OPTIONS, POST"),
        ("PUT", KEYS, "GET, HEAD, OPTIONS, POST"),
        ("TRACE", KEYS, "GET, HEAD, OPTIONS, POST"),
        ("NONSENSE", KEYS, "GET, HEAD, OPTIONS, POST"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("DELETE", "/openapi.json", "GET, HEAD, OPTIONS"),
        ("POST", "/metrics", "GET, HEAD, OPTIONS"),
    ] {
        let answer = app.rest(method, path, &app.admin, &Value::Null).await;
        answer.refused(405, "METHOD_NOT_ALLOWED");
        assert_eq!(answer.header("allow"), allow, "{method} {path}");
    }
    for path in ["/v1/external/me", "/health", "/openapi.json", "/metrics"] {
        let answer = app.rest("HEAD", path, &app.admin, &Value::Null).await;
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{path}");
        let answer = app.rest("OPTIONS", path, "", &Value::Null).await;
        assert_eq!(answer.status, 204, "{path}");
        assert!(!answer.header("allow").is_empty(), "{path}");
    }
    for path in ["/v1/external/me?x=1", "/v1/external/webhooks?page_size=%ff"] {
        app.get(path, &app.admin)
            .await
            .refused(400, "INVALID_ARGUMENT");
    }
    app.stop().await;
}

// E3: a body that is too large is refused without being kept, whatever its head
// claims.
async fn bodies_that_are_too_large(db: Db) {
    let app = TestApp::start(&db).await;
    let big = vec![b' '; (1 << 20) + 1];
    for path in [KEYS, EVENTS, "/v1/external/webhooks"] {
        raw(&app, path, "application/json", &big)
            .await
            .refused(413, "PAYLOAD_TOO_LARGE");
    }
    let big = vec![b' '; (4 << 20) + 1];
    let batch = format!("{EVENTS}/batch");
    raw(&app, &batch, "application/json", &big)
        .await
        .refused(413, "PAYLOAD_TOO_LARGE");
    // A payload at the limit, and one byte over it.
    for (bytes, status) in [(262_144, 202), (262_145, 413)] {
        let data = "x".repeat(bytes - 2);
        let answer = app.post(
            EVENTS,
            &app.admin,
            json!({"event_type": "a.b", "data": data}),
        );
        assert_eq!(answer.await.status, status);
    }
    // The head claims more than ever comes.
    let head = format!(
        "POST {KEYS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 99999999999\r\n\r\n",
        app.admin
    );
    let answer = on_the_port(&app, head.as_bytes(), false).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let status = unary(
        &app,
        "/onering.v1.KeyService/CreateKey",
        &app.admin,
        vec![0; 5 << 20].into(),
    )
    .await
    .unwrap_err();
    assert_eq!(reason(&status), "PAYLOAD_TOO_LARGE");
    app.stop().await;
}

// E1, E3: over gRPC too: bytes that are no message, and methods that are none.
async fn bytes_that_are_no_protobuf(db: Db) {
    let app = TestApp::start(&db).await;
    for message in [&b"\xff\xff\xff"[..], b"\x0a\x05ab", b"\x12\x01\xff"] {
        let message = Bytes::copy_from_slice(message);
        let refused = unary(
            &app,
            "/onering.v1.KeyService/CreateKey",
            &app.admin,
            message,
        );
        let status = refused.await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        assert_eq!(reason(&status), "INVALID_ARGUMENT");
    }
    for path in [
        "/onering.v1.KeyService/Nothing",
        "/onering.v1.Nothing/GetKey",
        "/x/y",
    ] {
        let status = unary(&app, path, &app.admin, Bytes::new())
            .await
            .unwrap_err();
        assert_eq!(
            status.code(),
            tonic::Code::Unimplemented,
            "{path}: {status:?}"
        );
        assert_eq!(reason(&status), "NOT_FOUND");
    }
    app.stop().await;
}

/// Writes bytes to the port, and reads what comes back until the server closes.
async fn on_the_port(app: &TestApp, bytes: &[u8], end: bool) -> String {
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    // The server may have closed before it has read all.
    let _ = stream.write_all(bytes).await;
    if end {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    let read = async {
        while let Ok(n @ 1..) = stream.read(&mut chunk).await {
            answer.extend_from_slice(&chunk[..n]);
            if !end && answer.windows(4).any(|w| w == b"\r\n\r\n") {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("the server hangs");
    String::from_utf8_lossy(&answer).into_owned()
}

// E3: what is no HTTP at all ends its own connection and nothing else.
async fn garbage_on_the_port(db: Db) {
    let app = TestApp::start(&db).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let with = |frame: &[u8]| [preface, frame].concat();
    let garbage: Vec<Vec<u8>> = vec![
        b"\0\0\0\0\0\0\0\0".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
        vec![b'x'; 1 << 20],
        with(b"garbage that is no frame at all"),
        // A frame of 16 MiB; a SETTINGS frame on a stream; DATA on an idle one;
        // HEADERS with a broken block; an endless PING.
        with(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"),
        with(b"\x00\x00\x00\x04\x00\x00\x00\x00\x01"),
        with(b"\x00\x00\x01\x00\x01\x00\x00\x00\x01x"),
        with(b"\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff"),
        with(b"\x00\x00\x01\x06\x00\x00\x00\x00\x00x"),
    ];
    for bytes in garbage {
        let answer = on_the_port(&app, &bytes, true).await;
        assert!(!answer.contains("HTTP/1.1 5"), "{answer}");
        assert_eq!(app.get("/health", "").await.status, 200);
    }
    // A head that is far too large.
    for (name, value) in [
        ("x-big", "x".repeat(200_000)),
        ("cookie", "y".repeat(65_000)),
    ] {
        let head = format!("GET /health HTTP/1.1\r\nHost: x\r\n{name}: {value}\r\n\r\n");
        let answer = on_the_port(&app, head.as_bytes(), false).await;
        let refused = answer.starts_with("HTTP/1.1 431") || answer.is_empty();
        assert!(refused || answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let many: String = (0..1000).fold(String::new(), |all, i| all + &format!("x-{i}: 1\r\n"));
    let head = format!("GET /health HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    let answer = on_the_port(&app, head.as_bytes(), false).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(app.get("/health", "").await.status, 200);
    app.stop().await;
}

#[derive(Debug, Clone)]
struct Random {
    method: String,
    path: String,
    query: Option<String>,
    key: u8,
    content: Option<&'static str>,
    body: Vec<u8>,
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        ".{0,20}".prop_map(Value::from),
        Just(json!("https://example.com/h")),
        Just(json!("invoice.paid")),
        Just(json!("2031-01-01T00:00:00Z")),
    ];
    let name = prop_oneof![
        8 => prop::sample::select(vec![
            "name", "tenant", "tier", "scopes", "kind", "canary", "canary_enabled", "metadata",
            "rate_limit_per_hour", "expire_time", "url", "event_types", "headers", "enabled",
            "signature_scheme", "retry_schedule", "timeout_seconds", "max_in_flight", "secret",
            "event_type", "data", "idempotency_key", "events", "overlap_seconds", "preset",
            "backoff_seconds", "description", "display_name", "status", "update_mask",
        ]).prop_map(str::to_owned),
        1 => ".{0,8}",
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn requests() -> impl Strategy<Value = Random> {
    let rest = Rest::new().unwrap();
    let mut templates: Vec<String> = rest.routes.iter().map(|r| r.template.clone()).collect();
    templates.extend(["/health", "/metrics", "/openapi.json", "/nowhere/{id}"].map(str::to_owned));
    let segment = prop_oneof![
        4 => prop::sample::select(vec![
            "key_01h455vb4pex5vsknk084sn02q", "sub_01h455vb4pex5vsknk084sn02q",
            "evt_01h455vb4pex5vsknk084sn02q", "dlv_01h455vb4pex5vsknk084sn02q",
            "tnt_01h455vb4pex5vsknk084sn02q", "default",
        ]).prop_map(str::to_owned),
        2 => "[a-zA-Z0-9_.~:-]{1,40}",
        1 => prop::collection::vec(any::<u8>(), 0..6)
            .prop_map(|b| b.iter().fold(String::new(), |all, b| all + &format!("%{b:02X}"))),
    ];
    let method = prop_oneof![
        9 => prop::sample::select(vec!["GET", "POST", "PATCH", "DELETE", "HEAD", "PUT", "OPTIONS"])
            .prop_map(str::to_owned),
        1 => "[A-Z]{1,9}".prop_filter("CONNECT is not for paths", |m| m != "CONNECT"),
    ];
    let body = prop_oneof![
        6 => any_json().prop_map(|v| v.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..60),
        2 => Just(Vec::new()),
    ];
    let content = prop::option::weighted(
        0.8,
        prop::sample::select(vec![
            "application/json",
            "application/json",
            "application/json",
            "text/plain",
            "application/x",
        ]),
    );
    let path = (prop::sample::select(templates), segment);
    let query = prop::option::weighted(
        0.3,
        "(page_size|page_token|tenant|status|x|)=?[a-zA-Z0-9%&=+_-]{0,20}",
    );
    (method, path, query, 0..10u8, content, body).prop_map(
        |(method, (template, segment), query, key, content, body)| {
            let path = template
                .split('/')
                .map(|part| {
                    if part.starts_with('{') {
                        segment.as_str()
                    } else {
                        part
                    }
                })
                .collect::<Vec<_>>()
                .join("/");
            Random {
                method,
                path,
                query,
                key,
                content,
                body,
            }
        },
    )
}

// E3: whatever is asked, the answer is a success or a problem+json, no 5xx.
async fn any_request_gets_an_answer(db: Db) {
    let app = TestApp::builder(&db).set("WEBHOOKS_DELIVERY_ENABLED", 0);
    let app = app.start().await;
    let (_, consumer) = app.key(json!({})).await;
    let config = Config {
        rng_seed: RngSeed::Fixed(42),
        ..Config::default()
    };
    let (mut runner, requests) = (TestRunner::new(config), requests());
    let (mut successes, mut refusals) = (0, 0);
    for _ in 0..800 {
        let random = requests.new_tree(&mut runner).unwrap().current();
        let query = random
            .query
            .as_ref()
            .map_or(String::new(), |q| format!("?{q}"));
        let key = match random.key {
            0 => "",
            1..4 => &consumer,
            _ => &app.admin,
        };
        let mut request = app.request(&random.method, &format!("{}{query}", random.path), key);
        if let Some(content) = random.content {
            request = request.header("content-type", content);
        }
        let Ok(request) = request.body(Full::from(random.body.clone())) else {
            continue;
        };
        let answer = tokio::time::timeout(Duration::from_secs(20), app.send(request)).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer to {random:?}"));
        assert!(
            answer.status < 500,
            "{random:?}: {} {:?}",
            answer.status,
            answer.body
        );
        assert!(!answer.header("x-request-id").is_empty(), "{random:?}");
        if answer.status < 400 {
            successes += 1;
            continue;
        }
        refusals += 1;
        if random.method != "HEAD" {
            answer.problem();
        }
    }
    assert!(successes > 50 && refusals > 200, "{successes} {refusals}");
    app.stop().await;
}
