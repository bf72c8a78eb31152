//! What a key may do: one decision on both faces, and scopes.

use onering::proto::v1;
use serde_json::{Value, json};

use super::{KEYS, ME, me, mistyped, of};
use crate::support::{
    app::{TestApp, reason},
    store::Db,
};

contract![both_faces_decide_alike, own_scopes, admin_scopes,];

// K8, K11: one decision for REST and gRPC: each state of a key, each switch.
async fn both_faces_decide_alike(db: Db) {
    let mut app = TestApp::start(&db).await;
    let (_, plain) = app.key(json!({})).await;
    let (_, canary) = app.key(json!({"canary_enabled": true})).await;
    let (disabled_id, disabled) = app.key(json!({})).await;
    let (revoked_id, revoked) = app.key(json!({})).await;
    let path = format!("{}/disable", of(&disabled_id));
    app.patch(&path, &app.admin, json!({})).await.ok();
    let path = format!("{}/revoke", of(&revoked_id));
    app.post(&path, &app.admin, json!({})).await.ok();
    let admin = app.admin.clone();
    let wrong = mistyped(&plain);

    let check = async |app: &TestApp, key: &str, expected: &str| {
        let rest = me(app, key).await;
        let rest = match rest.status {
            200 => String::new(),
            _ => rest.code(),
        };
        assert_eq!(rest, expected, "over REST: {key}");
        let answer = app.grpc(key).keys.get_caller(v1::GetCallerRequest {}).await;
        let grpc = answer.err().map_or_else(String::new, |s| reason(&s));
        assert_eq!(grpc, expected, "over gRPC: {key}");
    };
    for (key, expected) in [
        ("", "KEY_MISSING"),
        (wrong.as_str(), "KEY_MALFORMED"),
        (&disabled, "KEY_DISABLED"),
        (&revoked, "KEY_REVOKED"),
        (&plain, ""),
        (&canary, ""),
        (&admin, ""),
    ] {
        check(&app, key, expected).await;
    }
    app.reload(&[("EXTERNAL_API_CANARY_ONLY", "1")]);
    check(&app, &plain, "CANARY_ONLY_MODE").await;
    check(&app, &disabled, "KEY_DISABLED").await;
    check(&app, &canary, "").await;
    check(&app, &admin, "").await;
    // The switch comes before the key.
    app.reload(&[("EXTERNAL_API_ENABLED", "0")]);
    for key in ["", &wrong, &disabled, &plain, &canary] {
        check(&app, key, "EXTERNAL_API_DISABLED").await;
    }
    check(&app, &admin, "").await;

    // The header's form.
    app.reload(&[
        ("EXTERNAL_API_ENABLED", "1"),
        ("EXTERNAL_API_CANARY_ONLY", "0"),
    ]);
    for (value, status) in [
        (format!("bearer {plain}"), 200),
        (format!("BEARER {plain}"), 200),
        (format!("Basic {plain}"), 401),
        (plain.clone(), 401),
        ("Bearer ".to_owned(), 401),
    ] {
        let request = app.request("GET", ME, "").header("authorization", &value);
        let answer = app
            .send(request.body(http_body_util::Full::default()).unwrap())
            .await;
        assert_eq!(answer.status, status, "{value}");
        if status == 401 {
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    app.stop().await;
}

/// What each scope of OneRing's own opens.
const OWN: [(&str, &str, &str); 5] = [
    ("webhooks:read", "GET", "/v1/external/webhooks"),
    ("webhooks:write", "POST", "/v1/external/webhooks"),
    ("events:write", "POST", "/v1/external/events"),
    ("events:write", "POST", "/v1/external/events/batch"),
    (
        "events:read",
        "GET",
        "/v1/external/events/evt_01h455vb4pex5vsknk084sn02q",
    ),
];

// K12: a key that names none of OneRing's own scopes has them all, one that
// names any has just those; ONERING_REQUIRE_OWN_SCOPES ends the default.
async fn own_scopes(db: Db) {
    let mut app = TestApp::start(&db).await;
    let (_, none) = app.key(json!({})).await;
    let (_, others) = app.key(json!({"scopes": ["read:rings"]})).await;
    let opens = async |app: &TestApp, key: &str, method: &str, path: &str| {
        let body = if method == "GET" {
            Value::Null
        } else {
            json!({})
        };
        let answer = app.rest(method, path, key, &body).await;
        assert_ne!(answer.status, 401);
        // What came past the gate is refused for what it asks for, or answered.
        answer.status != 403
    };
    for (_, method, path) in OWN {
        assert!(opens(&app, &none, method, path).await, "{path}");
        assert!(opens(&app, &others, method, path).await, "{path}");
    }
    for (scope, ..) in OWN {
        let (_, key) = app.key(json!({"scopes": ["read:rings", scope]})).await;
        for (needed, method, path) in OWN {
            let open = opens(&app, &key, method, path).await;
            assert_eq!(open, needed == scope, "{scope}: {method} {path}");
        }
        me(&app, &key).await.ok();
    }
    app.reload(&[("REQUIRE_OWN_SCOPES", "1")]);
    for (scope, method, path) in OWN {
        assert!(!opens(&app, &others, method, path).await, "{path}");
        let (_, key) = app.key(json!({"scopes": [scope]})).await;
        assert!(opens(&app, &key, method, path).await, "{path}");
    }
    let refused = app.get("/v1/external/webhooks", &others).await;
    let problem = refused.refused(403, "SCOPE_MISSING");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("webhooks:read")
    );
    app.stop().await;
}

// K13: internal services' keys open what their scopes name; `external:admin` is
// all of them; a consumer's key opens nothing of an operator's.
async fn admin_scopes(db: Db) {
    let app = TestApp::start(&db).await;
    let admin = async |scopes: Value| {
        let body = json!({"kind": "ADMIN", "scopes": scopes});
        app.key(body).await.1
    };
    let publisher = admin(json!(["events:write"])).await;
    let nothing = admin(json!([])).await;
    let consumer = app.key(json!({"scopes": ["external:admin"]})).await.1;
    let event = json!({"event_type": "a.b", "data": 1});
    let published = app.post("/v1/external/events", &publisher, event.clone());
    assert_eq!(published.await.status, 202);
    for key in [&publisher, &nothing] {
        for path in [
            "/v1/external/webhooks",
            KEYS,
            "/v1/admin/tenants",
            "/metrics",
        ] {
            app.get(path, key).await.refused(403, "SCOPE_MISSING");
        }
    }
    app.post("/v1/external/events", &nothing, event)
        .await
        .refused(403, "SCOPE_MISSING");
    for path in [KEYS, "/v1/admin/tenants", "/metrics"] {
        app.get(path, &consumer).await.refused(403, "SCOPE_MISSING");
    }
    app.stop().await;
}
