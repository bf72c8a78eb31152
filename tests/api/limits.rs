//! Limits at the gate: what is counted, what answers say of it, and the order in
//! which a call is decided.

use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use onering::domain::key::{self, Kind};
use serde_json::{Value, json};
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::StatusExt as _;

use crate::support::{
    app::{Answer, TestApp, eventually, reason},
    call::{Call, call},
    store::Db,
};

contract![
    answers_say_how_the_limit_stands,
    the_limit_in_force,
    a_denied_call_consumes_nothing,
    the_order_of_decisions,
    nothing_is_told_of_an_unknown_key,
    operators_have_no_limit,
    a_call_that_is_refused_later_is_counted,
    limits_hold_for_calls_at_the_same_time,
];

const ME: &str = "/v1/external/me";
const KEYS: &str = "/v1/admin/external/keys";

/// Names of what every answer says of a known key with a limit.
const LIMIT: [&str; 5] = [
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "ratelimit-policy",
    "ratelimit",
];

fn me() -> Call {
    call("KeyService/GetCaller", json!({}))
}

fn unix() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

/// A header, empty where it is not there.
fn text<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).map_or("", |v| v.to_str().unwrap())
}

/// For how many seconds a call counts at the most: until an hour after its loan's end,
/// which is the end of a minute and 20 seconds away at the least.
const LONGEST: i64 = 3600 + 60 + 20 + 1;

/// Checks the five headers: the limit, and how many calls are left.
#[track_caller]
fn says(headers: &HeaderMap, limit: i64, remaining: i64) {
    assert_eq!(text(headers, LIMIT[0]), limit.to_string(), "{headers:?}");
    assert_eq!(
        text(headers, LIMIT[1]),
        remaining.to_string(),
        "{headers:?}"
    );
    let reset: i64 = text(headers, LIMIT[2]).parse().unwrap();
    let now = unix();
    assert!(
        (now - 5..=now + LONGEST).contains(&reset),
        "{now}: {headers:?}"
    );
    assert_eq!(
        text(headers, LIMIT[3]),
        format!("\"hour\";q={limit};w=3600")
    );
    let state = text(headers, LIMIT[4]);
    let left = state.strip_prefix(&format!("\"hour\";r={remaining};t="));
    let left: i64 = left.unwrap_or_else(|| panic!("{state}")).parse().unwrap();
    assert!((0..=LONGEST).contains(&left), "{state}");
    assert!(!text(headers, "x-request-id").is_empty());
}

#[track_caller]
fn says_nothing(headers: &HeaderMap) {
    for name in LIMIT.into_iter().chain(["x-canary-mode"]) {
        assert_eq!(text(headers, name), "", "{name}: {headers:?}");
    }
    assert!(!text(headers, "x-request-id").is_empty());
}

/// gRPC's metadata as headers.
fn headers(metadata: &MetadataMap) -> HeaderMap {
    metadata.clone().into_headers()
}

/// What both faces answer: the reason, empty for a success, and the headers.
async fn both(app: &TestApp, call: &Call, key: &str) -> [(String, HeaderMap); 2] {
    let rest = call.rest(app, key).await;
    let code = if rest.status < 300 {
        String::new()
    } else {
        rest.code()
    };
    let grpc = match call.grpc(app, key).await {
        Ok((_, metadata)) => (String::new(), headers(&metadata)),
        Err(status) => (reason(&status), headers(status.metadata())),
    };
    [(code, rest.headers), grpc]
}

// K8: each answer says how the limit stands, also the one that is refused for it;
// over gRPC as metadata.
async fn answers_say_how_the_limit_stands(db: Db) {
    let app = TestApp::start(&db).await;
    let (_, key) = app.key(json!({"rate_limit_per_hour": 3})).await;
    let answer = app.get(ME, &key).await;
    says(&answer.headers, 3, 2);
    answer.ok();
    let (_, metadata) = me().grpc(&app, &key).await.unwrap();
    says(&headers(&metadata), 3, 1);
    // A browser's gRPC too.
    let request = app
        .request("POST", "/onering.v1.KeyService/GetCaller", &key)
        .header("content-type", "application/grpc-web+proto")
        .body(http_body_util::Full::from(&b"\0\0\0\0\0"[..]))
        .unwrap();
    says(&app.send(request).await.headers, 3, 0);

    let wait = |headers: &HeaderMap| {
        let wait: i64 = text(headers, "retry-after").parse().unwrap();
        assert!((1..=3661).contains(&wait), "{wait}");
        wait
    };
    let answer = app.get(ME, &key).await;
    says(&answer.headers, 3, 0);
    let rest = wait(&answer.headers);
    let problem = answer.refused(429, "RATE_LIMITED");
    assert!(problem["hint"].as_str().unwrap().contains("Retry-After"));
    let status = me().grpc(&app, &key).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "RATE_LIMITED");
    says(&headers(status.metadata()), 3, 0);
    assert!((wait(&headers(status.metadata())) - rest).abs() <= 5);
    let details = status.get_error_details();
    let told = details.retry_info().unwrap().retry_delay.unwrap();
    assert!(told.as_secs() > 0);
    let quota = &details.quota_failure().unwrap().violations;
    assert_eq!(quota[0].subject, "key");

    let (_, canary) = app.key(json!({"canary": true})).await;
    let [rest, grpc] = both(&app, &me(), &canary).await;
    for (i, (code, headers)) in [rest, grpc].iter().enumerate() {
        assert_eq!(code, "");
        says(headers, 10, 9 - i64::try_from(i).unwrap());
        assert_eq!(text(headers, "x-canary-mode"), "true");
    }
    let plain = app.key(json!({})).await.1;
    assert_eq!(app.get(ME, &plain).await.header("x-canary-mode"), "");
    app.stop().await;
}

// K6: the key's own limit, else its tier's; a canary key's is never above 10.
// Changed while the node runs, it is in force at once.
async fn the_limit_in_force(db: Db) {
    let mut app = TestApp::start(&db).await;
    for (body, limit) in [
        (json!({"tier": "free"}), 100),
        (json!({"tier": "pro"}), 1000),
        (json!({"tier": "enterprise"}), 10_000),
        (json!({"tier": "free", "rate_limit_per_hour": 7}), 7),
        (json!({"tier": "pro", "canary_enabled": true}), 10),
        (json!({"rate_limit_per_hour": 5000, "canary": true}), 10),
        (json!({"rate_limit_per_hour": 4, "canary": true}), 4),
    ] {
        let (_, key) = app.key(body.clone()).await;
        says(&app.get(ME, &key).await.headers, limit, limit - 1);
    }
    let (id, key) = app.key(json!({"tier": "free"})).await;
    says(&app.get(ME, &key).await.headers, 100, 99);
    app.reload(&[("TIERS", "free=2,pro=1000")]);
    says(&app.get(ME, &key).await.headers, 2, 0);
    app.get(ME, &key).await.refused(429, "RATE_LIMITED");
    let path = format!("{KEYS}/{id}");
    app.patch(&path, &app.admin, json!({"rate_limit_per_hour": 5}))
        .await
        .ok();
    says(&app.get(ME, &key).await.headers, 5, 2);
    app.stop().await;
}

// K8: what is denied, for whatever reason, consumes nothing; its answer says how
// the limit stands all the same.
async fn a_denied_call_consumes_nothing(db: Db) {
    let mut app = TestApp::start(&db).await;
    let body = json!({"rate_limit_per_hour": 2, "scopes": ["webhooks:read"]});
    let (id, key) = app.key(body).await;
    let path = format!("{KEYS}/{id}");
    let event = json!({"event_type": "a.b", "data": 1});
    let publish = call("EventService/PublishEvent", event);
    let denied = async |app: &TestApp, call: &Call, code: &str, remaining: i64| {
        for _ in 0..3 {
            for (told, headers) in both(app, call, &key).await {
                assert_eq!(told, code);
                says(&headers, 2, remaining);
            }
        }
    };
    denied(&app, &publish, "SCOPE_MISSING", 2).await;
    app.reload(&[("EXTERNAL_API_CANARY_ONLY", "1")]);
    denied(&app, &me(), "CANARY_ONLY_MODE", 2).await;
    app.reload(&[("EXTERNAL_API_CANARY_ONLY", "0")]);
    app.patch(&path, &app.admin, json!({"allowed_cidrs": ["203.0.113.1"]}))
        .await
        .ok();
    denied(&app, &me(), "IP_NOT_ALLOWED", 2).await;
    app.patch(&path, &app.admin, json!({"allowed_cidrs": []}))
        .await
        .ok();
    for (step, code) in [("disable", "KEY_DISABLED"), ("enable", "")] {
        let path = format!("{path}/{step}");
        app.patch(&path, &app.admin, json!({})).await.ok();
        if !code.is_empty() {
            denied(&app, &me(), code, 2).await;
        }
    }
    // A switch is decided on before the key is looked at.
    app.reload(&[("EXTERNAL_API_ENABLED", "0")]);
    for (told, headers) in both(&app, &me(), &key).await {
        assert_eq!(told, "EXTERNAL_API_DISABLED");
        says_nothing(&headers);
    }
    app.reload(&[("EXTERNAL_API_ENABLED", "1")]);
    for (told, headers) in both(&app, &me(), &key).await {
        assert_eq!(told, "");
        assert_eq!(text(&headers, LIMIT[0]), "2");
    }
    denied(&app, &me(), "RATE_LIMITED", 0).await;
    // A refusal for the scope comes before one for the limit.
    denied(&app, &publish, "SCOPE_MISSING", 0).await;
    app.stop().await;
}

/// What is wrong with a call, in the order in which it is looked for.
const ORDER: [&str; 7] = [
    "EXTERNAL_API_DISABLED",
    "WEBHOOKS_DISABLED",
    "KEY_DISABLED",
    "IP_NOT_ALLOWED",
    "CANARY_ONLY_MODE",
    "SCOPE_MISSING",
    "RATE_LIMITED",
];

// K8: of each two things that are wrong at once the earlier one is answered, and
// of all at once the first.
async fn the_order_of_decisions(db: Db) {
    let mut app = TestApp::start(&db).await;
    let pairs = (0..ORDER.len()).flat_map(|a| (a + 1..ORDER.len()).map(move |b| vec![a, b]));
    let all = vec![(0..ORDER.len()).collect()];
    let alone = (0..ORDER.len()).map(|a| vec![a]);
    for wrong in pairs.chain(all).chain(alone).collect::<Vec<Vec<usize>>>() {
        let is = |reason: &str| wrong.iter().any(|i| ORDER[*i] == reason);
        let mut body = json!({"rate_limit_per_hour": 1});
        if is("SCOPE_MISSING") {
            body["scopes"] = json!(["events:read"]);
        }
        let (id, key) = app.key(body).await;
        let path = format!("{KEYS}/{id}");
        if is("RATE_LIMITED") {
            app.get(ME, &key).await.ok();
        }
        if is("IP_NOT_ALLOWED") {
            let list = json!({"allowed_cidrs": ["203.0.113.0/24"]});
            app.patch(&path, &app.admin, list).await.ok();
        }
        if is("KEY_DISABLED") {
            let path = format!("{path}/disable");
            app.patch(&path, &app.admin, json!({})).await.ok();
        }
        let switch = |on: bool| if on { "1" } else { "0" };
        app.reload(&[
            ("EXTERNAL_API_ENABLED", switch(!is("EXTERNAL_API_DISABLED"))),
            ("EXTERNAL_API_CANARY_ONLY", switch(is("CANARY_ONLY_MODE"))),
            ("WEBHOOKS_ENABLED", switch(!is("WEBHOOKS_DISABLED"))),
        ]);
        let publish = call(
            "EventService/PublishEvent",
            json!({"event_type": "a.b", "data": 1}),
        );
        for (told, headers) in both(&app, &publish, &key).await {
            assert_eq!(told, ORDER[wrong[0]], "{wrong:?}");
            if wrong[0] < 2 {
                says_nothing(&headers);
            } else {
                says(&headers, 1, i64::from(!is("RATE_LIMITED")));
            }
        }
        app.reload(&[
            ("EXTERNAL_API_ENABLED", "1"),
            ("EXTERNAL_API_CANARY_ONLY", "0"),
            ("WEBHOOKS_ENABLED", "1"),
        ]);
    }
    // A consumer's key is held by the API's switch on whatever route; an admin's
    // and none at all are answered by the route.
    let (_, key) = app.key(json!({})).await;
    app.reload(&[("EXTERNAL_API_ENABLED", "0")]);
    let list = call("KeyService/ListKeys", json!({}));
    for (told, _) in both(&app, &list, &key).await {
        assert_eq!(told, "EXTERNAL_API_DISABLED");
    }
    for (told, _) in both(&app, &list, "").await {
        assert_eq!(told, "KEY_MISSING");
    }
    for (told, _) in both(&app, &list, &app.admin).await {
        assert_eq!(told, "");
    }
    app.stop().await;
}

// K8: headers are for a caller who proved a key, whatever its state.
async fn nothing_is_told_of_an_unknown_key(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, key) = app.key(json!({"rate_limit_per_hour": 5})).await;
    let guess = key::format(Kind::Consumer, id.parse().unwrap(), &"x".repeat(32)).to_string();
    for (key, code) in [
        ("", "KEY_MISSING"),
        ("osk_1", "KEY_MALFORMED"),
        (&guess, "KEY_INVALID"),
    ] {
        for (told, headers) in both(&app, &me(), key).await {
            assert_eq!(told, code);
            says_nothing(&headers);
        }
    }
    for (method, path, status) in [("GET", "/nowhere", 404), ("PUT", ME, 405)] {
        let answer = app.rest(method, path, &key, &Value::Null).await;
        assert_eq!(answer.status, status);
        says_nothing(&answer.headers);
    }
    app.post(&format!("{KEYS}/{id}/revoke"), &app.admin, json!({}))
        .await
        .ok();
    for (told, headers) in both(&app, &me(), &key).await {
        assert_eq!(told, "KEY_REVOKED");
        says(&headers, 5, 5);
    }
    let soon = onering::domain::event::rfc3339(onering::domain::id::wall_clock() + 300_000);
    let (_, key) = app.key(json!({"expire_time": soon})).await;
    let answer: Answer = eventually("the key expires", || async {
        let answer = app.get(ME, &key).await;
        (answer.status == 401).then_some(answer)
    })
    .await;
    assert_eq!(answer.header(LIMIT[0]), "1000000");
    answer.refused(401, "KEY_EXPIRED");
    app.stop().await;
}

// K13: admin keys are not limited, and nothing is said of a limit.
async fn operators_have_no_limit(db: Db) {
    let app = TestApp::builder(&db)
        .set("TIERS", "free=1,pro=1,enterprise=1")
        .start()
        .await;
    let body = json!({"kind": "ADMIN", "scopes": ["external:admin"]});
    let (_, admin) = app.key(body).await;
    for _ in 0..5 {
        for (told, headers) in both(&app, &me(), &admin).await {
            assert_eq!(told, "");
            says_nothing(&headers);
        }
    }
    app.stop().await;
}

// K8: what passed the gate counts, whatever becomes of it.
async fn a_call_that_is_refused_later_is_counted(db: Db) {
    let app = TestApp::start(&db).await;
    let (_, key) = app.key(json!({"rate_limit_per_hour": 9})).await;
    let bad = call("EventService/PublishEvent", json!({"event_type": "a b"}));
    let [rest, grpc] = both(&app, &bad, &key).await;
    assert_eq!(
        (rest.0.as_str(), grpc.0.as_str()),
        ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    );
    says(&rest.1, 9, 8);
    says(&grpc.1, 9, 7);
    let answer = app
        .send(
            app.request("POST", "/v1/external/events", &key)
                .body("not JSON".into())
                .unwrap(),
        )
        .await;
    assert_eq!(answer.status, 400);
    says(&answer.headers, 9, 6);
    app.stop().await;
}

// K6: of many calls at once no more pass than the limit says.
async fn limits_hold_for_calls_at_the_same_time(db: Db) {
    let app = TestApp::start(&db).await;
    let (_, key) = app.key(json!({"rate_limit_per_hour": 20})).await;
    let rest = futures_util::future::join_all((0..30).map(|_| app.get(ME, &key)));
    let me = me();
    let grpc = futures_util::future::join_all((0..30).map(|_| me.grpc(&app, &key)));
    let (rest, grpc) = tokio::join!(rest, grpc);
    let passed = rest.iter().filter(|a| a.status == 200).count();
    let passed = passed + grpc.iter().filter(|a| a.is_ok()).count();
    assert_eq!(passed, 20);
    let limited = |s: &Status| reason(s) == "RATE_LIMITED";
    assert!(grpc.iter().filter_map(|a| a.as_ref().err()).all(limited));
    assert!(rest.iter().all(|a| matches!(a.status, 200 | 429)));
    app.stop().await;
}
