//! `VerifyKey`: the decision for the company's own services.

use futures_util::future::join_all;
use onering::{
    domain::key::{self, Kind},
    proto::v1::{self, ErrorReason, VerifyKeyRequest, VerifyKeyResponse},
};
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{
    app::{Grpc, Http, PATIENCE, TestApp, eventually, fields, reason, variables},
    call::call,
    command::Running,
    proxy::Proxy,
    store::Db,
};

contract![
    a_good_key_is_described,
    it_decides_as_the_gate_does,
    nothing_is_told_before_the_secret_is_proven,
    a_cost_is_taken_whole,
    one_limit_for_both_ways,
    admin_keys_are_verified,
    the_caller_needs_its_scope,
    a_bound_caller_finds_its_tenants_keys,
    wrong_requests_are_refused,
    a_named_address_that_guesses_is_slowed,
    a_revision_that_is_not_there_is_not_waited_for_long,
    canary_calls_are_logged,
    uses_are_counted,
];

const ME: &str = "/v1/external/me";
const KEYS: &str = "/v1/admin/external/keys";
const VERIFY: &str = "/v1/admin/external/keys/verify";

async fn verifier(app: &TestApp) -> String {
    let body = json!({"kind": "ADMIN", "scopes": ["keys:verify"]});
    app.key(body).await.1
}

/// Asks over gRPC.
async fn ask(app: &TestApp, caller: &str, request: VerifyKeyRequest) -> VerifyKeyResponse {
    let answer = app.grpc(caller).keys.verify_key(request).await;
    answer.unwrap().into_inner()
}

fn about(key: &str) -> VerifyKeyRequest {
    VerifyKeyRequest {
        key: key.to_owned(),
        ..VerifyKeyRequest::default()
    }
}

fn reason_of(answer: &VerifyKeyResponse) -> String {
    let name = ErrorReason::try_from(answer.reason).unwrap().as_str_name();
    let name = name.trim_start_matches("ERROR_REASON_");
    if name == "UNSPECIFIED" {
        String::new()
    } else {
        name.to_owned()
    }
}

// K4: one call, one answer: over gRPC and REST.
async fn a_good_key_is_described(db: Db) {
    let app = TestApp::start(&db).await;
    let tenant = app.tenant("acme").await;
    let body = json!({
        "tenant": tenant.name, "tier": "pro", "scopes": ["read:rings", "read:drafts"],
    });
    let (id, key) = app.key(body).await;
    let verifier = verifier(&app).await;
    let answer = ask(&app, &verifier, about(&key)).await;
    assert!(answer.valid && !answer.stale && answer.revision > 0);
    assert_eq!(
        (reason_of(&answer), answer.detail),
        (String::new(), String::new())
    );
    assert_eq!(
        (answer.key_id, answer.tenant),
        (id.clone(), "acme".to_owned())
    );
    assert_eq!(
        (answer.tier.as_str(), answer.canary_enabled),
        ("pro", false)
    );
    assert_eq!(answer.scopes, ["read:rings", "read:drafts"]);
    let limit = answer.rate_limit.unwrap();
    assert_eq!((limit.limit, limit.remaining), (1000, 999));
    assert_eq!((limit.retry_after_seconds, limit.degraded), (0, false));
    let mut on: Vec<_> = answer.switches.into_iter().filter(|(_, on)| *on).collect();
    on.sort();
    let on: Vec<&str> = on.iter().map(|(name, _)| name.as_str()).collect();
    let all = [
        "external_api.enabled",
        "webhooks.delivery.enabled",
        "webhooks.enabled",
    ];
    assert_eq!(on, all);

    let body = json!({"key": key, "scope": "read:rings"});
    let answer = app.post(VERIFY, &verifier, body).await;
    assert_eq!(
        answer.header("x-ratelimit-limit"),
        "",
        "not the caller's own"
    );
    let answer = answer.ok();
    assert_eq!(
        (&answer["valid"], &answer["key_id"]),
        (&json!(true), &json!(id))
    );
    assert_eq!(answer.get("reason"), None);
    assert_eq!(answer["rate_limit"]["remaining"], 998);
    assert_eq!(answer["switches"]["external_api.canary_only"], false);

    let (_, canary) = app.key(json!({"canary_enabled": true})).await;
    let answer = ask(&app, &verifier, about(&canary)).await;
    assert!(answer.valid && answer.canary_enabled);
    assert_eq!(answer.rate_limit.unwrap().limit, 10);
    app.stop().await;
}

// K4, K8: what the gate refuses is not valid, for the same reason.
async fn it_decides_as_the_gate_does(db: Db) {
    let mut app = TestApp::start(&db).await;
    let verifier = verifier(&app).await;
    let (id, good) = app.key(json!({})).await;
    let (_, canary) = app.key(json!({"canary": true})).await;
    let (disabled, disabled_key) = app.key(json!({})).await;
    let path = format!("{KEYS}/{disabled}/disable");
    app.patch(&path, &app.admin, json!({})).await.ok();
    let (revoked, revoked_key) = app.key(json!({})).await;
    let path = format!("{KEYS}/{revoked}/revoke");
    app.post(&path, &app.admin, json!({})).await.ok();
    let soon = onering::domain::event::rfc3339(onering::domain::id::wall_clock() + 300_000);
    let (_, expired) = app.key(json!({"expire_time": soon})).await;
    eventually("the key expires", || async {
        (app.get(ME, &expired).await.status == 401).then_some(())
    })
    .await;
    let (_, local) = app.key(json!({"allowed_cidrs": ["127.0.0.1"]})).await;
    let (_, elsewhere) = app.key(json!({"allowed_cidrs": ["203.0.113.0/24"]})).await;
    let (_, spent) = app.key(json!({"rate_limit_per_hour": 1})).await;
    app.get(ME, &spent).await.ok();
    let guess = key::format(Kind::Consumer, id.parse().unwrap(), &"x".repeat(32)).to_string();

    let check = async |app: &TestApp, key: &str, expected: &str| {
        let gate = app.get(ME, key).await;
        let gate = if gate.status == 200 {
            String::new()
        } else {
            gate.code()
        };
        assert_eq!(gate, expected, "at the gate");
        let request = VerifyKeyRequest {
            client_address: "127.0.0.1".into(),
            ..about(key)
        };
        let answer = ask(app, &verifier, request).await;
        assert_eq!(reason_of(&answer), expected);
        assert_eq!(answer.valid, expected.is_empty());
        assert_eq!(answer.detail.is_empty(), expected.is_empty());
        let rest = json!({"key": key, "client_address": "::ffff:127.0.0.1"});
        let rest = app.post(VERIFY, &verifier, rest).await.ok();
        assert_eq!(rest["reason"].as_str().unwrap_or_default(), expected);
        answer
    };
    for (key, expected) in [
        (good.as_str(), ""),
        (&canary, ""),
        (&local, ""),
        ("", "KEY_MISSING"),
        ("osk_1", "KEY_MALFORMED"),
        ("password", "KEY_MALFORMED"),
        (&guess, "KEY_INVALID"),
        (&disabled_key, "KEY_DISABLED"),
        (&revoked_key, "KEY_REVOKED"),
        (&expired, "KEY_EXPIRED"),
        (&elsewhere, "IP_NOT_ALLOWED"),
    ] {
        check(&app, key, expected).await;
    }
    let limited = check(&app, &spent, "RATE_LIMITED").await;
    let limit = limited.rate_limit.unwrap();
    assert_eq!((limit.limit, limit.remaining), (1, 0));
    assert!(limit.retry_after_seconds > 0);
    // Where the call came from is not known.
    for key in [&local, &elsewhere] {
        let answer = ask(&app, &verifier, about(key)).await;
        assert_eq!(reason_of(&answer), "IP_NOT_ALLOWED");
    }
    let request = VerifyKeyRequest {
        client_address: "203.0.113.200".into(),
        ..about(&elsewhere)
    };
    assert!(ask(&app, &verifier, request).await.valid);

    app.reload(&[("EXTERNAL_API_CANARY_ONLY", "1")]);
    let answer = check(&app, &good, "CANARY_ONLY_MODE").await;
    assert!(answer.switches["external_api.canary_only"]);
    check(&app, &canary, "").await;
    app.reload(&[("EXTERNAL_API_ENABLED", "0")]);
    for key in [good.as_str(), &guess, "", "osk_1"] {
        let answer = check(&app, key, "EXTERNAL_API_DISABLED").await;
        assert_eq!(answer.key_id, "");
        assert!(!answer.switches["external_api.enabled"]);
    }
    app.stop().await;
}

// K4, K12: the scope that a call needs, by what the key names.
async fn nothing_is_told_before_the_secret_is_proven(db: Db) {
    let mut app = TestApp::start(&db).await;
    let verifier = verifier(&app).await;
    let body = json!({"tier": "pro", "scopes": ["read:rings"]});
    let (id, key) = app.key(body).await;
    let scope = async |app: &TestApp, scope: &str| {
        let request = VerifyKeyRequest {
            scope: scope.into(),
            ..about(&key)
        };
        reason_of(&ask(app, &verifier, request).await)
    };
    for (needed, expected) in [
        ("", ""),
        ("read:rings", ""),
        ("read:drafts", "SCOPE_MISSING"),
        ("external:admin", "SCOPE_MISSING"),
        ("events:write", ""),
    ] {
        assert_eq!(scope(&app, needed).await, expected, "{needed}");
    }
    app.reload(&[("REQUIRE_OWN_SCOPES", "1")]);
    assert_eq!(scope(&app, "events:write").await, "SCOPE_MISSING");
    assert_eq!(scope(&app, "read:rings").await, "");

    let path = format!("{KEYS}/{id}/disable");
    app.patch(&path, &app.admin, json!({})).await.ok();
    let known = ask(&app, &verifier, about(&key)).await;
    assert_eq!(
        (known.key_id.as_str(), known.tier.as_str()),
        (id.as_str(), "pro")
    );
    assert_eq!((known.tenant.as_str(), known.scopes.len()), ("default", 1));
    let guess = key::format(Kind::Consumer, id.parse().unwrap(), &"x".repeat(32)).to_string();
    let answer = ask(&app, &verifier, about(&guess)).await;
    assert_eq!(reason_of(&answer), "KEY_INVALID");
    assert_eq!(
        answer,
        VerifyKeyResponse {
            reason: answer.reason,
            detail: answer.detail.clone(),
            switches: answer.switches.clone(),
            revision: answer.revision,
            ..VerifyKeyResponse::default()
        }
    );
    app.stop().await;
}

// K4, K6: a call counts as what it costs, all or nothing; 0 looks.
async fn a_cost_is_taken_whole(db: Db) {
    let app = TestApp::start(&db).await;
    let verifier = verifier(&app).await;
    let (_, key) = app.key(json!({"rate_limit_per_hour": 10})).await;
    let left = async |cost: Option<i32>| {
        let request = VerifyKeyRequest {
            cost,
            ..about(&key)
        };
        let answer = ask(&app, &verifier, request).await;
        (answer.valid, answer.rate_limit.unwrap().remaining)
    };
    assert_eq!(left(Some(0)).await, (true, 10));
    assert_eq!(left(None).await, (true, 9));
    assert_eq!(left(Some(4)).await, (true, 5));
    assert_eq!(left(Some(6)).await, (false, 5));
    assert_eq!(left(Some(5)).await, (true, 0));
    assert_eq!(left(Some(0)).await, (true, 0));
    assert_eq!(left(Some(1)).await, (false, 0));
    // What can never be admitted is not either.
    let (_, key) = app.key(json!({"rate_limit_per_hour": 10})).await;
    let request = VerifyKeyRequest {
        cost: Some(11),
        ..about(&key)
    };
    let answer = ask(&app, &verifier, request).await;
    assert_eq!(reason_of(&answer), "RATE_LIMITED");
    assert_eq!(answer.rate_limit.unwrap().remaining, 10);
    // A look is no use of the key.
    let (id, key) = app.key(json!({})).await;
    for (cost, used) in [(0, false), (1, true)] {
        let request = VerifyKeyRequest {
            cost: Some(cost),
            ..about(&key)
        };
        ask(&app, &verifier, request).await;
        let shown = app.get(&format!("{KEYS}/{id}"), &app.admin).await.ok();
        assert_eq!(shown["last_used_time"].is_string(), used, "{shown}");
    }
    app.stop().await;
}

// K6: calls of the company's own API and of OneRing's routes count together.
async fn one_limit_for_both_ways(db: Db) {
    let app = TestApp::start(&db).await;
    let verifier = verifier(&app).await;
    let (_, key) = app.key(json!({"rate_limit_per_hour": 2})).await;
    assert!(ask(&app, &verifier, about(&key)).await.valid);
    let answer = app.get(ME, &key).await;
    assert_eq!(answer.header("x-ratelimit-remaining"), "0");
    assert_eq!(
        reason_of(&ask(&app, &verifier, about(&key)).await),
        "RATE_LIMITED"
    );
    app.get(ME, &key).await.refused(429, "RATE_LIMITED");
    app.stop().await;
}

// K4, K13: an admin key is valid for its scopes, and has no limit.
async fn admin_keys_are_verified(db: Db) {
    let mut app = TestApp::start(&db).await;
    let verifier = verifier(&app).await;
    let body = json!({"kind": "ADMIN", "scopes": ["events:write", "jobs:run"]});
    let (id, narrow) = app.key(body).await;
    app.reload(&[("EXTERNAL_API_ENABLED", "0")]);
    let admin = app.admin.clone();
    for (key, scope, expected) in [
        (&narrow, "", ""),
        (&narrow, "jobs:run", ""),
        (&narrow, "jobs:stop", "SCOPE_MISSING"),
        (&admin, "jobs:stop", ""),
        (&admin, "", ""),
    ] {
        let request = VerifyKeyRequest {
            scope: scope.into(),
            ..about(key)
        };
        let answer = ask(&app, &verifier, request).await;
        assert_eq!(reason_of(&answer), expected, "{scope}");
        assert_eq!((answer.rate_limit, answer.tier), (None, String::new()));
        if key == &narrow {
            assert_eq!(answer.key_id, id);
            assert_eq!(answer.scopes, ["events:write", "jobs:run"]);
        }
    }
    app.stop().await;
}

// K13: `keys:verify` or `external:admin`, and nothing else.
async fn the_caller_needs_its_scope(db: Db) {
    let app = TestApp::start(&db).await;
    let (_, key) = app.key(json!({"scopes": ["keys:verify"]})).await;
    let body = json!({"kind": "ADMIN", "scopes": ["events:write", "flags:read"]});
    let (_, other) = app.key(body).await;
    let verify = call("KeyService/VerifyKey", json!({"key": key}));
    for (caller, code) in [
        ("", "KEY_MISSING"),
        (&key, "SCOPE_MISSING"),
        (&other, "SCOPE_MISSING"),
    ] {
        assert_eq!(verify.rest(&app, caller).await.code(), code);
        let status = verify.grpc(&app, caller).await.unwrap_err();
        assert_eq!(reason(&status), code);
    }
    for caller in [&app.admin, &verifier(&app).await] {
        verify.rest(&app, caller).await.ok();
        verify.grpc(&app, caller).await.unwrap();
    }
    app.stop().await;
}

// K4, T1: another tenant's key does not exist for a caller that is bound to one,
// and is not counted.
async fn a_bound_caller_finds_its_tenants_keys(db: Db) {
    let app = TestApp::start(&db).await;
    let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
    let body = json!({"kind": "ADMIN", "tenant": "acme", "scopes": ["keys:verify"]});
    let (_, bound) = app.key(body).await;
    assert!(ask(&app, &bound, about(&acme.key)).await.valid);
    for key in [&other.key, &app.admin] {
        let answer = ask(&app, &bound, about(key)).await;
        assert_eq!(reason_of(&answer), "KEY_INVALID");
        assert_eq!((answer.key_id, answer.rate_limit), (String::new(), None));
    }
    let answer = app.get(ME, &other.key).await;
    assert_eq!(answer.header("x-ratelimit-remaining"), "999999");
    app.stop().await;
}

// E3: each field that is wrong is named, on both faces.
async fn wrong_requests_are_refused(db: Db) {
    let app = TestApp::start(&db).await;
    let verifier = verifier(&app).await;
    let (_, key) = app.key(json!({"rate_limit_per_hour": 5})).await;
    for (field, value) in [
        ("cost", json!(-1)),
        ("cost", json!(1_000_001)),
        ("scope", json!("rings")),
        ("client_address", json!("127.0.0.1:80")),
        ("client_address", json!("localhost")),
        ("min_revision", json!(-1)),
    ] {
        let mut request = json!({ "key": key });
        request[field] = value;
        let verify = call("KeyService/VerifyKey", request);
        let problem = verify.rest(&app, &verifier).await;
        let problem = problem.refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], field);
        let status = verify.grpc(&app, &verifier).await.unwrap_err();
        assert_eq!(fields(&status), [field]);
    }
    let long = "x".repeat(100_000);
    let answer = ask(&app, &verifier, about(&long)).await;
    assert_eq!(reason_of(&answer), "KEY_MALFORMED");
    assert!(answer.detail.len() < 200);
    let answer = ask(&app, &verifier, about(&key)).await;
    assert_eq!(answer.rate_limit.unwrap().remaining, 4);
    app.stop().await;
}

// Z6: an address that is named and guesses is slowed; the caller is not.
async fn a_named_address_that_guesses_is_slowed(db: Db) {
    let app = TestApp::start(&db).await;
    let verifier = verifier(&app).await;
    let id = "key_01h455vb4pex5vsknk084sn02q".parse().unwrap();
    let text = key::format(Kind::Consumer, id, &"x".repeat(32)).to_string();
    let asked = async |from: &str| {
        let request = VerifyKeyRequest {
            client_address: from.into(),
            ..about(&text)
        };
        reason_of(&ask(&app, &verifier, request).await)
    };
    let guess = async |from: &str| assert_eq!(asked(from).await, "KEY_INVALID");
    // Of so many at a time most are told that they are too many.
    join_all((0..120).map(|_| asked("203.0.113.9"))).await;
    // A bound from below: no fast machine can fail it, nor a slow one.
    let began = std::time::Instant::now();
    guess("::ffff:203.0.113.9").await;
    assert!(began.elapsed().as_millis() >= 1000, "{:?}", began.elapsed());
    for from in ["", "203.0.113.10"] {
        tokio::select! {
            biased;
            () = async { for _ in 0..3 { guess(from).await; } } => {}
            () = guess("203.0.113.9") => panic!("held up"),
        }
    }
    app.stop().await;
}

// K4: at least as fresh as a revision; one that is not there is refused.
async fn a_revision_that_is_not_there_is_not_waited_for_long(db: Db) {
    let app = TestApp::start(&db).await;
    let verifier = verifier(&app).await;
    let (_, key) = app.key(json!({"rate_limit_per_hour": 5})).await;
    let now = ask(&app, &verifier, about(&key)).await.revision;
    let at = |min_revision| VerifyKeyRequest {
        min_revision,
        ..about(&key)
    };
    let answer = ask(&app, &verifier, at(now)).await;
    assert!(answer.valid && answer.revision >= now);
    let mut keys = app.grpc(&verifier).keys;
    let asked = keys.verify_key(at(now + 1_000_000));
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    let status = asked.expect("an answer in time").unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), "STORE_UNAVAILABLE");
    assert!(status.get_error_details().retry_info().is_some());
    let answer = ask(&app, &verifier, at(0)).await;
    assert_eq!(
        answer.rate_limit.unwrap().remaining,
        2,
        "the refused one took nothing"
    );
    app.stop().await;
}

/// The example of W3C Trace Context.
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

// K9, D8, P2: each call of a canary key is one line, with its key's id, route,
// decision and latency; the key's text is in none. Other keys' calls are not
// logged.
async fn canary_calls_are_logged(db: Db) {
    let vars = variables(&db);
    let admin = vars["ONERING_BOOTSTRAP_ADMIN_KEY"].clone();
    let all: Vec<(&str, &str)> = vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let (serve, url) = Running::serve(&all).await;
    let http = Http::new();
    let send = async |method: &str, path: &str, key: &str, body: Value| {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("{url}{path}"))
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", "application/json")
            .header("traceparent", PARENT)
            .body(http_body_util::Full::from(if body.is_null() {
                String::new()
            } else {
                body.to_string()
            }));
        http.send(request.unwrap()).await
    };
    let body = json!({"canary": true, "rate_limit_per_hour": 4, "scopes": ["events:write"]});
    let made = send("POST", KEYS, &admin, body).await.ok();
    let (id, canary) = (
        made["key_id"].as_str().unwrap(),
        made["secret"].as_str().unwrap(),
    );
    let other = send("POST", KEYS, &admin, json!({})).await.ok();
    let other = other["secret"].as_str().unwrap();
    let channel = tonic::transport::Endpoint::from_shared(url.clone()).unwrap();
    let mut grpc = Grpc::new(channel.connect_lazy(), canary).keys;

    let event = json!({"event_type": "a.b", "data": 1});
    send("POST", "/v1/external/events", canary, event)
        .await
        .ok();
    send("GET", ME, canary, Value::Null).await.ok();
    grpc.get_caller(v1::GetCallerRequest {}).await.unwrap();
    let hooks = send("GET", "/v1/external/webhooks", canary, Value::Null).await;
    assert_eq!(hooks.status, 403);
    send("POST", VERIFY, &admin, json!({"key": canary}))
        .await
        .ok();
    send("POST", VERIFY, &admin, json!({"key": canary, "cost": 0}))
        .await
        .ok();
    assert_eq!(send("GET", ME, canary, Value::Null).await.status, 429);
    for key in [other, &admin] {
        send("GET", ME, key, Value::Null).await.ok();
    }

    let done = serve.stop().await;
    assert!(!done.stderr.contains(&canary[31..]), "{}", done.stderr);
    let lines = done.stderr.lines().filter(|l| l.contains("canary call"));
    let lines: Vec<Value> = lines.map(|l| serde_json::from_str(l).unwrap()).collect();
    let told: Vec<(&str, &str)> = lines
        .iter()
        .map(|l| {
            assert_eq!(l["key.id"], id, "{l}");
            assert_eq!(l["level"], "INFO");
            assert!(l["call.latency_us"].as_u64().is_some(), "{l}");
            let route = l["call.route"].as_str().unwrap();
            if route.ends_with("VerifyKey") {
                assert_eq!(l["trace.id"], "0af7651916cd43dd8448eb211c80319c", "{l}");
                let request = l["call.request_id"].as_str().unwrap();
                assert!(request.starts_with("req_"), "{l}");
            }
            (
                route.rsplit('/').next().unwrap(),
                l["call.decision"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("PublishEvent", "ADMITTED"),
            ("GetCaller", "ADMITTED"),
            ("GetCaller", "ADMITTED"),
            ("ListSubscriptions", "SCOPE_MISSING"),
            ("VerifyKey", "ADMITTED"),
            ("GetCaller", "RATE_LIMITED"),
        ]
    );
}

// K10: admitted calls, calls refused for a limit and refused credentials are
// counted, by key and tier; a look and a missing scope are not.
async fn uses_are_counted(db: Db) {
    let app = TestApp::start(&db).await;
    let verifier = verifier(&app).await;
    let body = json!({"tier": "pro", "rate_limit_per_hour": 3, "scopes": ["webhooks:read"]});
    let (id, key) = app.key(body).await;
    let usage = &app.app().context.usage;
    let before = usage.figures(None);
    assert_eq!((before.auth_failures, before.limit_hits), (0, 0));
    app.get(ME, &key).await.ok();
    app.post("/v1/external/events", &key, json!({}))
        .await
        .refused(403, "SCOPE_MISSING");
    for cost in [0, 1, 1, 1] {
        let request = VerifyKeyRequest {
            cost: Some(cost),
            ..about(&key)
        };
        ask(&app, &verifier, request).await;
    }
    app.get(ME, &key).await.refused(429, "RATE_LIMITED");
    app.get(ME, "").await.refused(401, "KEY_MISSING");
    ask(&app, &verifier, about("osk_1")).await;
    app.patch(&format!("{KEYS}/{id}/disable"), &app.admin, json!({}))
        .await
        .ok();
    app.get(ME, &key).await.refused(401, "KEY_DISABLED");
    let figures = usage.figures(None);
    assert_eq!((figures.auth_failures, figures.limit_hits), (3, 2));
    assert_eq!(figures.by_tier["pro"], (3, 2));
    assert_eq!(usage.of_keys(&[id.parse().unwrap()]).await, [(3, 2)]);
    // Of those the one whose key was proven is its tenant's.
    let tenant = Some(onering::domain::id::TenantId::DEFAULT);
    assert_eq!(usage.figures(tenant).auth_failures, 1);
    app.stop().await;
}

/// One process has a SQLite file for itself, and nothing can come between.
mod nodes {
    use super::*;

    on_postgres_alone![
        a_change_is_seen_from_its_revision_on,
        it_goes_on_without_the_database,
    ];

    // K4, K5: another node's change is in force in an answer that was asked for
    // at its revision, however soon.
    async fn a_change_is_seen_from_its_revision_on(db: Db) {
        let one = TestApp::start(&db).await;
        let two = one.again().start().await;
        let verifier = verifier(&one).await;
        let (id, key) = one.key(json!({})).await;
        for (step, expected) in [("disable", "KEY_DISABLED"), ("enable", "")].repeat(5) {
            let path = format!("{KEYS}/{id}/{step}");
            one.patch(&path, &one.admin, json!({})).await.ok();
            let changed = ask(&one, &verifier, about(&key)).await;
            assert_eq!(reason_of(&changed), expected);
            let request = VerifyKeyRequest {
                min_revision: changed.revision,
                ..about(&key)
            };
            let seen = ask(&two, &verifier, request).await;
            assert_eq!(reason_of(&seen), expected);
            assert!(seen.revision >= changed.revision);
        }
        one.stop().await;
        two.stop().await;
    }

    // K4, K5: no answer takes the database; one without it says so.
    async fn it_goes_on_without_the_database(db: Db) {
        let (proxy, url) = Proxy::before(&db).await;
        let app = TestApp::builder(&db)
            .set("DATABASE_URL", url)
            .set("STALE_SECONDS", 60);
        let app = app.start().await;
        let verifier = verifier(&app).await;
        let (id, key) = app.key(json!({})).await;
        assert!(!ask(&app, &verifier, about(&key)).await.stale);
        proxy.cut();
        let answer = eventually("answers are stale", || async {
            let answer = ask(&app, &verifier, about(&key)).await;
            answer.stale.then_some(answer)
        })
        .await;
        assert!(answer.valid);
        assert_eq!(answer.key_id, id);
        let newer = VerifyKeyRequest {
            min_revision: answer.revision + 1,
            ..about(&key)
        };
        let refused = app.grpc(&verifier).keys.verify_key(newer).await;
        assert_eq!(reason(&refused.unwrap_err()), "STORE_UNAVAILABLE");
        proxy.mend();
        eventually("answers are fresh", || async {
            (!ask(&app, &verifier, about(&key)).await.stale).then_some(())
        })
        .await;
        app.stop().await;
    }
}
