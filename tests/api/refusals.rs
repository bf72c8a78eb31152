//! Every reason for which a call is refused, and its form on both faces.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use onering::{
    domain::{
        id::KeyId,
        key::{self, Kind},
    },
    error::{Reason, code},
    proto::v1,
};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{
    app::{TestApp, eventually, fields, reason},
    call::{Call, call},
    store::Db,
};

contract![
    each_reason_has_its_status,
    a_problem_says_what_to_do,
    a_grpc_refusal_has_details,
    every_answer_has_a_request_id,
    guesses_are_told_nothing,
    guessing_is_slowed,
    guesses_at_once_are_refused,
];

/// Reasons that one face alone has: they are about HTTP.
const REST_ONLY: [&str; 2] = ["METHOD_NOT_ALLOWED", "UNSUPPORTED_MEDIA_TYPE"];

/// Reasons of issues that are not built, and those that are a fault of ours.
/// STORE_UNAVAILABLE is provoked with the nodes' tests, OVERLOADED with a silent
/// database.
const ELSEWHERE: [&str; 8] = [
    "UNSPECIFIED",
    "INTERNAL",
    "STORE_UNAVAILABLE",
    "OVERLOADED",
    "TOKEN_EXPIRED",
    "SCHEMA_MISMATCH",
    "PII_DETECTED",
    "DEGRADED",
];

const KEYS: &str = "/v1/admin/external/keys";

struct Row {
    reason: &'static str,
    http: u16,
    grpc: Code,
    key: String,
    call: Call,
}

fn row(reason: &'static str, http: u16, grpc: Code, key: &str, call: Call) -> Row {
    Row {
        reason,
        http,
        grpc,
        key: key.to_owned(),
        call,
    }
}

async fn check(app: &TestApp, row: &Row) {
    let rest = row.call.rest(app, &row.key).await;
    rest.refused(row.http, row.reason);
    let status = row.call.grpc(app, &row.key).await.unwrap_err();
    assert_eq!(status.code(), row.grpc, "{}: {status:?}", row.reason);
    assert_eq!(reason(&status), row.reason);
    // Both say the same.
    let detail = rest.problem()["detail"].as_str().unwrap().to_owned();
    assert_eq!(status.message(), detail);
}

// E1, E2: each reason that this build can answer, over REST and gRPC, with its
// HTTP status and its gRPC code. A reason of the list without a row fails.
async fn each_reason_has_its_status(db: Db) {
    let mut app = TestApp::builder(&db)
        .set("QUOTA_SUBSCRIPTIONS", 1)
        .start()
        .await;
    let me = || call("KeyService/GetCaller", json!({}));
    let (id, good) = app.key(json!({})).await;
    let (_, other_tenant) = app
        .key(json!({"tenant": app.tenant("full").await.name}))
        .await;
    let (revoked, revoked_key) = app.key(json!({})).await;
    app.post(&format!("{KEYS}/{revoked}/revoke"), &app.admin, json!({}))
        .await
        .ok();
    let (disabled, disabled_key) = app.key(json!({})).await;
    app.patch(&format!("{KEYS}/{disabled}/disable"), &app.admin, json!({}))
        .await
        .ok();
    let soon = onering::domain::event::rfc3339(onering::domain::id::wall_clock() + 300_000);
    let (_, expired) = app.key(json!({"expire_time": soon})).await;
    eventually("the key expires", || async {
        (app.get("/v1/external/me", &expired).await.status == 401).then_some(())
    })
    .await;
    let (_, elsewhere) = app.key(json!({"allowed_cidrs": ["203.0.113.0/24"]})).await;
    let (_, spent) = app.key(json!({"rate_limit_per_hour": 1})).await;
    app.get("/v1/external/me", &spent).await.ok();
    let (_, reader) = app.key(json!({"scopes": ["webhooks:read"]})).await;
    let hook = json!({"url": "https://example.com/h", "event_types": ["*"]});
    app.subscribe(&other_tenant, hook.clone()).await;
    let event = |data: serde_json::Value| {
        let request = json!({"event_type": "a.b", "data": data, "idempotency_key": "once"});
        call("EventService/PublishEvent", request)
    };
    event(json!(1)).rest(&app, &good).await.ok();
    let guess = key::format(Kind::Consumer, id.parse().unwrap(), &"x".repeat(32));
    let admin = app.admin.clone();
    let big = "x".repeat(300_000);

    let mut rows = vec![
        row(
            "INVALID_ARGUMENT",
            400,
            Code::InvalidArgument,
            &admin,
            call("KeyService/GetKey", json!({"key_id": "key_1"})),
        ),
        row("KEY_MISSING", 401, Code::Unauthenticated, "", me()),
        row("KEY_MALFORMED", 401, Code::Unauthenticated, "osk_1", me()),
        row("KEY_INVALID", 401, Code::Unauthenticated, &guess, me()),
        row("KEY_EXPIRED", 401, Code::Unauthenticated, &expired, me()),
        row(
            "KEY_DISABLED",
            401,
            Code::Unauthenticated,
            &disabled_key,
            me(),
        ),
        row(
            "KEY_REVOKED",
            401,
            Code::Unauthenticated,
            &revoked_key,
            me(),
        ),
        row(
            "SCOPE_MISSING",
            403,
            Code::PermissionDenied,
            &reader,
            event(json!(1)),
        ),
        row(
            "IP_NOT_ALLOWED",
            403,
            Code::PermissionDenied,
            &elsewhere,
            me(),
        ),
        row("RATE_LIMITED", 429, Code::ResourceExhausted, &spent, me()),
        row(
            "TENANT_MISMATCH",
            403,
            Code::PermissionDenied,
            &good,
            call(
                "SubscriptionService/ListSubscriptions",
                json!({"tenant": "full"}),
            ),
        ),
        row(
            "NOT_FOUND",
            404,
            Code::NotFound,
            &good,
            call(
                "EventService/GetEvent",
                json!({"id": "evt_01h455vb4pex5vsknk084sn02q"}),
            ),
        ),
        row(
            "ALREADY_EXISTS",
            409,
            Code::AlreadyExists,
            &admin,
            call("TenantService/CreateTenant", json!({"name": "default"})),
        ),
        row(
            "IDEMPOTENCY_KEY_REUSED",
            409,
            Code::AlreadyExists,
            &good,
            event(json!(2)),
        ),
        row(
            "FAILED_PRECONDITION",
            409,
            Code::FailedPrecondition,
            &admin,
            call("KeyService/EnableKey", json!({"key_id": revoked})),
        ),
        row(
            "PAYLOAD_TOO_LARGE",
            413,
            Code::InvalidArgument,
            &good,
            event(json!(big)),
        ),
        row(
            "ENDPOINT_NOT_ALLOWED",
            422,
            Code::InvalidArgument,
            &good,
            call(
                "SubscriptionService/CreateSubscription",
                json!({"url": "https://10.0.0.1/", "event_types": ["*"]}),
            ),
        ),
        row(
            "QUOTA_EXCEEDED",
            429,
            Code::ResourceExhausted,
            &other_tenant,
            call("SubscriptionService/CreateSubscription", hook),
        ),
    ];
    for row in &rows {
        check(&app, row).await;
    }
    for (switches, row) in [
        (
            [
                ("EXTERNAL_API_CANARY_ONLY", "1"),
                ("EXTERNAL_API_ENABLED", "1"),
                ("WEBHOOKS_ENABLED", "1"),
            ],
            row("CANARY_ONLY_MODE", 403, Code::PermissionDenied, &good, me()),
        ),
        (
            [
                ("EXTERNAL_API_CANARY_ONLY", "0"),
                ("EXTERNAL_API_ENABLED", "0"),
                ("WEBHOOKS_ENABLED", "1"),
            ],
            row("EXTERNAL_API_DISABLED", 503, Code::Unavailable, &good, me()),
        ),
        (
            [
                ("EXTERNAL_API_CANARY_ONLY", "0"),
                ("EXTERNAL_API_ENABLED", "1"),
                ("WEBHOOKS_ENABLED", "0"),
            ],
            row(
                "WEBHOOKS_DISABLED",
                503,
                Code::Unavailable,
                &admin,
                event(json!(1)),
            ),
        ),
    ] {
        app.reload(&switches);
        check(&app, &row).await;
        rows.push(row);
    }

    app.reload(&[("WEBHOOKS_ENABLED", "1")]);
    let off = json!({"name": "GET /v1/external/me", "enabled": false, "reason": "a test"});
    app.post("/v1/admin/switches", &admin, off).await.ok();
    // To whoever calls, and whatever he calls with.
    for key in ["", "osk_1", &admin, &good] {
        let row = row("ENDPOINT_DISABLED", 503, Code::Unavailable, key, me());
        check(&app, &row).await;
        rows.push(row);
    }

    let answer = app.rest("PUT", "/v1/external/me", &good, &json!({})).await;
    answer.refused(405, "METHOD_NOT_ALLOWED");
    assert_eq!(answer.header("allow"), "GET, HEAD, OPTIONS");
    let request = app.request("POST", "/v1/external/events", &admin);
    let request = request
        .header("content-type", "text/plain")
        .body("{}".into());
    app.send(request.unwrap())
        .await
        .refused(415, "UNSUPPORTED_MEDIA_TYPE");

    let shown: BTreeSet<&str> = rows
        .iter()
        .map(|r| r.reason)
        .chain(REST_ONLY)
        .chain(ELSEWHERE)
        .collect();
    for n in 0.. {
        let Ok(reason) = Reason::try_from(n) else {
            break;
        };
        assert!(shown.contains(code(reason)), "{} has no row", code(reason));
    }
    app.stop().await;
}

// E1: problem+json has all of its members; `errors` names each field.
async fn a_problem_says_what_to_do(db: Db) {
    let app = TestApp::start(&db).await;
    let answer = app
        .post(
            KEYS,
            &app.admin,
            json!({"tier": "gold", "rate_limit_per_hour": 0}),
        )
        .await;
    let problem = answer.refused(400, "INVALID_ARGUMENT");
    let members: Vec<&str> = problem
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        members,
        [
            "type",
            "title",
            "status",
            "code",
            "detail",
            "request_id",
            "hint",
            "errors"
        ]
    );
    assert_eq!(problem["type"], "urn:onering:error:INVALID_ARGUMENT");
    let errors = problem["errors"].as_array().unwrap();
    let named: Vec<_> = errors
        .iter()
        .map(|e| e["field"].as_str().unwrap())
        .collect();
    assert_eq!(named, ["tier", "rate_limit_per_hour"]);
    assert_eq!(answer.header("cache-control"), "no-store");
    app.stop().await;
}

// E1: gRPC refusals carry ErrorInfo, and BadRequest and QuotaFailure where they
// apply.
async fn a_grpc_refusal_has_details(db: Db) {
    let app = TestApp::builder(&db)
        .set("QUOTA_SUBSCRIPTIONS", 1)
        .start()
        .await;
    let mut keys = app.grpc(&app.admin).keys;
    let status = keys
        .create_key(v1::CreateKeyRequest {
            tier: "gold".into(),
            ..Default::default()
        })
        .await
        .unwrap_err();
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(
        (info.reason.as_str(), info.domain.as_str()),
        ("INVALID_ARGUMENT", "onering")
    );
    let violation = &details.bad_request().unwrap().field_violations[0];
    assert_eq!(violation.field, "tier");
    assert!(violation.description.contains("enterprise, free, pro"));

    // The field of an update is named with where it lies.
    let (id, key) = app.key(json!({})).await;
    let status = keys
        .update_key(v1::UpdateKeyRequest {
            key_id: id,
            key: Some(v1::Key {
                tier: "gold".into(),
                ..Default::default()
            }),
            update_mask: None,
        })
        .await
        .unwrap_err();
    assert_eq!(fields(&status), ["key.tier"]);

    let hook = json!({"url": "https://example.com/h", "event_types": ["*"]});
    let subscribe = call("SubscriptionService/CreateSubscription", hook);
    subscribe.grpc(&app, &key).await.unwrap();
    let status = subscribe.grpc(&app, &key).await.unwrap_err();
    assert!(status.get_error_details().quota_failure().is_some());
    app.stop().await;
}

// K8: every answer has X-Request-Id; a usable one of the caller's is kept.
async fn every_answer_has_a_request_id(db: Db) {
    let app = TestApp::start(&db).await;
    for (method, path) in [
        ("GET", "/health"),
        ("GET", "/openapi.json"),
        ("GET", "/metrics"),
        ("GET", "/v1/external/me"),
        ("OPTIONS", "/v1/external/me"),
        ("HEAD", "/v1/external/me"),
        ("POST", "/v1/external/me"),
        ("POST", "/v1/external/events"),
        ("GET", "/nowhere"),
    ] {
        let send = async |id: Option<&str>| {
            let mut request = app.request(method, path, &app.admin);
            if let Some(id) = id {
                request = request.header("x-request-id", id);
            }
            let answer = app
                .send(request.body(http_body_util::Full::default()).unwrap())
                .await;
            answer.header("x-request-id").to_owned()
        };
        assert_eq!(send(Some("my-own.id/1")).await, "my-own.id/1", "{path}");
        let (one, two) = (send(None).await, send(None).await);
        assert!(one.starts_with("req_") && one != two, "{path}: {one}");
        for unusable in ["", "a b", &"x".repeat(129)] {
            let id = send(Some(unusable)).await;
            assert!(id.starts_with("req_"), "{path}: {id}");
        }
    }
    let mut request = tonic::Request::new(v1::GetCallerRequest {});
    request
        .metadata_mut()
        .insert("x-request-id", "mine".parse().unwrap());
    let answer = app.grpc(&app.admin).keys.get_caller(request).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "mine");
    let status = app.grpc("").keys.get_caller(v1::GetCallerRequest {}).await;
    let status = status.unwrap_err();
    let id = status.metadata().get("x-request-id").unwrap();
    assert!(id.to_str().unwrap().starts_with("req_"));
    app.stop().await;
}

/// A key's text that the server never made.
fn guess(id: KeyId, kind: Kind) -> String {
    let secret = key::generate_secret().unwrap();
    key::format(kind, id, &secret).to_string()
}

// Z6: of a known and of an unknown id a guesser is told the same. (That both
// cost the same is by construction: one digest and one comparison either way.)
async fn guesses_are_told_nothing(db: Db) {
    let app = TestApp::start(&db).await;
    let (known, _) = app.key(json!({})).await;
    let (revoked, _) = app.key(json!({})).await;
    app.post(&format!("{KEYS}/{revoked}/revoke"), &app.admin, json!({}))
        .await
        .ok();
    let unknown = "key_01h455vb4pex5vsknk084sn02q";
    let mut told = BTreeSet::new();
    for id in [known.as_str(), &revoked, unknown] {
        for kind in [Kind::Consumer, Kind::Admin] {
            let text = guess(id.parse().unwrap(), kind);
            let answer = app.get("/v1/external/me", &text).await;
            let mut problem = answer.refused(401, "KEY_INVALID");
            problem["request_id"].take();
            told.insert(problem.to_string());
            let grpc = app
                .grpc(&text)
                .keys
                .get_caller(v1::GetCallerRequest {})
                .await;
            assert_eq!(reason(&grpc.unwrap_err()), "KEY_INVALID");
        }
    }
    assert_eq!(told.len(), 1, "{told:?}");
    app.stop().await;
}

// Z6: an address that keeps guessing waits longer for each answer; who holds a
// key does not wait for it.
async fn guessing_is_slowed(db: Db) {
    let app = TestApp::start(&db).await;
    let id: KeyId = "key_01h455vb4pex5vsknk084sn02q".parse().unwrap();
    let text = guess(id, Kind::Consumer);
    let guess = async || {
        app.get("/v1/external/me", &text)
            .await
            .refused(401, "KEY_INVALID")
    };
    for _ in 0..30 {
        guess().await;
    }
    // A bound from below: no fast machine can fail it, nor a slow one.
    let began = std::time::Instant::now();
    guess().await;
    assert!(began.elapsed().as_millis() >= 100, "{:?}", began.elapsed());
    tokio::select! {
        biased;
        me = app.get("/v1/external/me", &app.admin) => { me.ok(); }
        () = async { for _ in 0..20 { guess().await; } } => panic!("held up by guesses"),
    }
    app.stop().await;
}

// Z6: guesses beside each other are refused at once, so that they don't gather
// here; from the same address a key that holds is taken.
async fn guesses_at_once_are_refused(db: Db) {
    let app = TestApp::start(&db).await;
    let id: KeyId = "key_01h455vb4pex5vsknk084sn02q".parse().unwrap();
    let text = guess(id, Kind::Consumer);
    let guess = || app.get("/v1/external/me", &text);
    let guesses = join_all((0..300).map(|_| guess()));
    let (guesses, ()) = tokio::join!(guesses, async {
        for _ in 0..20 {
            app.get("/v1/external/me", &app.admin).await.ok();
        }
    });
    let mut refused = 0;
    for answer in guesses {
        if answer.status == 429 {
            answer.refused(429, "RATE_LIMITED");
            assert_eq!(answer.header("retry-after"), "2");
            refused += 1;
        } else {
            answer.refused(401, "KEY_INVALID");
        }
    }
    // Some end early enough to leave their place to another.
    assert!(refused >= 150, "{refused} refused");
    let late = || app.grpc(&text);
    let late = join_all((0..40).map(|_| async move {
        let mut client = late().keys;
        let refused = client
            .get_caller(v1::GetCallerRequest {})
            .await
            .unwrap_err();
        (reason(&refused), refused.code())
    }))
    .await;
    assert!(late.contains(&("RATE_LIMITED".to_owned(), Code::ResourceExhausted)));
    app.stop().await;
}
