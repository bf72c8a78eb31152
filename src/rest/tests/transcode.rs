//! Whole calls.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body, Frame};

use super::{call, errors, json, service::RAW, text};

#[tokio::test]
async fn create_answers_with_its_own_status_and_all_fields() {
    let body = r#"{"name":"a","tier":"pro","scopes":["read:rings"],"canary":true,
        "rate_limit_per_hour":9007199254740993,"expire_time":"2026-01-01T01:00:00.5+01:00",
        "kind":"KEY_KIND_ADMIN","metadata":{"b":"2","a":"1"}}"#;
    let response = call("POST", "/v1/admin/external/keys", &[], body).await;
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["x-request-id"], "req_1");
    assert_eq!(
        text(response).await,
        r#"{"key_id":"key_1","secret":"osk_1","key":{"key_id":"","tenant":"","name":"a","kind":"ADMIN","tier":"pro","scopes":["read:rings"],"canary_enabled":true,"rate_limit_per_hour":9007199254740993,"expire_time":"2026-01-01T00:00:00.500Z","metadata":{"a":"1","b":"2"},"status":"ACTIVE"}}"#
    );
}

#[tokio::test]
async fn an_empty_body_is_an_empty_request() {
    let (status, answer) = json("POST", "/v1/admin/external/keys", "").await;
    assert_eq!((status, &answer["key_id"]), (201, &"key_1".into()));
    let (status, answer) = json("PATCH", "/v1/admin/external/keys/key_9/disable", "").await;
    assert_eq!((status, &answer["key_id"]), (200, &"key_9".into()));
    let (status, answer) = json("DELETE", "/v1/admin/external/keys/key_9", "").await;
    assert_eq!((status, answer), (200, serde_json::json!({})));
}

#[tokio::test]
async fn the_query_fills_what_the_path_does_not() {
    let keys = "/v1/admin/external/keys";
    let (status, answer) = json("GET", &format!("{keys}?tenant=a%20b+c&page_size=7"), "").await;
    assert_eq!(
        (status, &answer["next_page_token"]),
        (200, &"a b c|7|".into())
    );
    assert_eq!(answer["keys"], serde_json::json!([]));
    let query = format!("{keys}?page_sise=7&page_size=x&tenant=%ff&page_token=1&page_token=2");
    let (status, problem) = json("GET", &query, "").await;
    assert_eq!(status, 400);
    assert_eq!(
        errors(&problem),
        [
            "page_sise: is not a query parameter; there are tenant, page_size, page_token",
            "page_size: must be an integer from -2147483648 to 2147483647",
            "tenant: is not percent-encoded UTF-8",
            "page_token: stands here more than once",
        ]
    );
    let (_, problem) = json("GET", &format!("{keys}/key_1?x=1"), "").await;
    assert_eq!(
        errors(&problem),
        ["x: is not a query parameter: this route has none"]
    );
}

#[tokio::test]
async fn a_patch_changes_what_its_body_names() {
    let path = "/v1/admin/external/keys/key_1";
    let (_, key) = json("PATCH", path, r#"{"tier":"pro","expire_time":null}"#).await;
    assert_eq!(
        (&key["key_id"], &key["name"]),
        (&"key_1".into(), &"tier+expire_time".into())
    );
    let masked = format!("{path}?update_mask=tier,scopes");
    let (_, key) = json("PATCH", &masked, r#"{"tier":"pro"}"#).await;
    assert_eq!(key["name"], "tier+scopes");
    // E1: the handler's `key.tier` is the caller's `tier`.
    let (status, problem) = json("PATCH", path, r#"{"tier":"gold"}"#).await;
    assert_eq!(
        (status, &problem["detail"]),
        (400, &"tier: is not a tier".into())
    );
    assert_eq!(errors(&problem), ["tier: is not a tier"]);
}

#[tokio::test]
async fn a_body_may_repeat_the_path_but_not_contradict_it() {
    let path = "/v1/admin/external/keys/key_1/rotate";
    let (status, answer) = json("POST", path, r#"{"key_id":"key_1","overlap_seconds":"5"}"#).await;
    assert_eq!(
        (status, &answer["key"]["rate_limit_per_hour"]),
        (200, &5.into())
    );
    let (_, problem) = json("POST", path, r#"{"key_id":"key_2"}"#).await;
    assert_eq!(
        errors(&problem),
        ["key_id: differs from the one in the path"]
    );
}

// K11, K8
#[tokio::test]
async fn headers_go_in_as_metadata_and_come_out_of_it() {
    let headers = [
        ("authorization", "Bearer osk_1"),
        ("traceparent", "00-1"),
        ("grpc-timeout", "1n"),
        ("grpc-encoding", "gzip"),
    ];
    let response = call("GET", "/v1/external/me", &headers, "").await;
    assert_eq!(response.status(), 200);
    let me: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(me["key_id"], "Bearer osk_1");
    assert_eq!(
        (&me["tenant"], &me["name"]),
        (&"00-1".into(), &"req_1".into())
    );
    assert_eq!(
        me["tier"], "",
        "what is gRPC's own is not the caller's to set"
    );

    let response = call("POST", "/v1/external/events", &[], r#"{"event_type":"a"}"#).await;
    assert_eq!(response.headers()["x-ratelimit-remaining"], "9");
    assert!(!response.headers().contains_key("grpc-status"));
}

// E1, E2
#[tokio::test]
async fn refusals_are_problems() {
    let response = call("GET", "/v1/external/me", &[], "").await;
    assert_eq!(response.status(), 401);
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    let problem: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(
        problem,
        serde_json::json!({
            "type": "urn:onering:error:KEY_MISSING",
            "title": "API key missing",
            "status": 401,
            "code": "KEY_MISSING",
            "detail": "no key",
            "request_id": "req_1",
            "hint": "Send `Authorization: Bearer <key>`.",
        })
    );
    let response = call(
        "POST",
        "/v1/external/events",
        &[],
        r#"{"event_type":"limited"}"#,
    )
    .await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(response.headers()["x-ratelimit-remaining"], "0");
    let (status, problem) = json("POST", "/v1/admin/external/keys/k/revoke", "").await;
    assert_eq!((status, &problem["code"]), (500, &"INTERNAL".into()));
    // A service that is described and not served.
    let (status, problem) = json("GET", "/v1/admin/tenants", "").await;
    assert_eq!((status, &problem["code"]), (404, &"NOT_FOUND".into()));
}

// D5
#[tokio::test]
async fn raw_data_survives_byte_for_byte() {
    let response = call("GET", "/v1/external/events/evt_1", &[], "").await;
    let event = text(response).await;
    assert_eq!(
        event,
        format!(r#"{{"id":"evt_1","tenant":"","event_type":"","data":{RAW}}}"#)
    );
    let body = format!(
        r#"{{"events":[{{"data": {RAW} ,"event_type":"a"}},{{"data":null}},{{"data":"x"}},{{}}]}}"#
    );
    let (status, answer) = json("POST", "/v1/external/events/batch", &body).await;
    assert_eq!(status, 202);
    let data: Vec<_> = answer["results"].as_array().unwrap().iter().collect();
    assert_eq!(data[0]["error"]["message"], RAW);
    assert_eq!(data[1]["error"]["message"], "null");
    assert_eq!(data[2]["error"]["message"], "\"x\"");
    assert_eq!(data[3]["error"]["message"], "none");
    // Stored text that is none must not spoil the answer.
    let (status, problem) = json("GET", "/v1/external/events/evt_broken", "").await;
    assert_eq!((status, &problem["code"]), (500, &"INTERNAL".into()));
}

// D2
#[tokio::test]
async fn the_idempotency_header_fills_the_field() {
    let path = "/v1/external/events";
    let id = async |headers: &[(&str, &str)], body| {
        let answer = text(call("POST", path, headers, body).await).await;
        serde_json::from_str::<serde_json::Value>(&answer).unwrap()
    };
    let key = [("idempotency-key", "k1")];
    assert_eq!(id(&key, "{}").await["id"], "k1");
    assert_eq!(id(&key, r#"{"idempotency_key":""}"#).await["id"], "k1");
    assert_eq!(id(&key, r#"{"idempotency_key":"k2"}"#).await["id"], "k2");
    let twice = [("idempotency-key", "k1"), ("idempotency-key", "k2")];
    assert_eq!(
        errors(&id(&twice, "{}").await),
        ["Idempotency-Key: stands here more than once"]
    );
}

// E3
#[tokio::test]
async fn bad_bodies_are_refused() {
    let path = "/v1/external/events";
    let large = format!(r#"{{"event_type":"{}"}}"#, "a".repeat(super::MAX_BODY));
    let deep = format!(r#"{{"data":{}{}}}"#, "[".repeat(64), "]".repeat(64));
    for (body, status, code) in [
        ("{", 400, "INVALID_ARGUMENT"),
        ("[]", 400, "INVALID_ARGUMENT"),
        ("null", 400, "INVALID_ARGUMENT"),
        ("\u{feff}{}", 400, "INVALID_ARGUMENT"),
        (" ", 400, "INVALID_ARGUMENT"),
        (r#"{"event_type":"\ud800"}"#, 400, "INVALID_ARGUMENT"),
        (&deep, 400, "INVALID_ARGUMENT"),
        (&large, 413, "PAYLOAD_TOO_LARGE"),
    ] {
        let (got, problem) = json("POST", path, body).await;
        assert_eq!((got, &problem["code"]), (status, &code.into()), "{body}");
    }
    let (status, problem) = json("GET", "/v1/external/events/e", "{\"a\":1}").await;
    assert_eq!(status, 400);
    assert_eq!(
        errors(&problem),
        ["body: must be empty: this route takes none"]
    );
}

// E3
#[tokio::test]
async fn a_length_that_lies_is_refused_too() {
    let path = "/v1/external/events";
    let response = call(
        "POST",
        path,
        &[("content-length", "99999999999999999999")],
        "{}",
    )
    .await;
    assert_eq!(
        response.status(),
        202,
        "no number: the body itself is counted"
    );
    let response = call("POST", path, &[("content-length", "4097")], "{}").await;
    assert_eq!(response.status(), 413);
    let large = " ".repeat(5000);
    let response = call("POST", path, &[("content-length", "2")], &large).await;
    assert_eq!(response.status(), 413);
}

// E3
#[tokio::test]
async fn only_json_is_read() {
    let path = "/v1/external/events";
    for (name, value, status) in [
        ("content-type", "application/json; charset=\"UTF-8\"", 202),
        ("content-type", "Application/Merge-Patch+JSON", 202),
        ("content-type", "application/json; charset=latin1", 415),
        ("content-type", "application/x-www-form-urlencoded", 415),
        ("content-type", "text/json", 415),
        ("content-type", "", 415),
        ("content-encoding", "gzip", 415),
        ("content-encoding", "identity", 202),
    ] {
        let response = call("POST", path, &[(name, value)], "{}").await;
        assert_eq!(response.status(), status, "{name}: {value}");
    }
}

// E3
#[tokio::test]
async fn other_methods_and_paths() {
    let keys = "/v1/admin/external/keys";
    let response = call("PUT", keys, &[], "").await;
    assert_eq!(response.status(), 405);
    assert_eq!(response.headers()["allow"], "GET, HEAD, OPTIONS, POST");
    assert!(text(response).await.contains("METHOD_NOT_ALLOWED"));
    let response = call("OPTIONS", keys, &[], "").await;
    assert_eq!(response.status(), 204);
    assert_eq!(response.headers()["allow"], "GET, HEAD, OPTIONS, POST");
    assert_eq!(response.headers()["x-request-id"], "req_1");
    for path in [
        "/",
        "/v1",
        "/v1/admin/external/keys/",
        "//",
        "/v1/admin/external/keys/a/b",
    ] {
        let (status, problem) = json("GET", path, "").await;
        assert_eq!(
            (status, &problem["code"]),
            (404, &"NOT_FOUND".into()),
            "{path}"
        );
    }
    let get = call("GET", keys, &[], "").await;
    let length = text(get).await.len().to_string();
    let head = call("HEAD", keys, &[], "").await;
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["content-length"], *length);
    assert_eq!(text(head).await, "");
}

/// A body of which one piece comes, and then nothing, and no end.
struct Stalled(Option<Bytes>);

impl Body for Stalled {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None => Poll::Pending,
        }
    }
}

// E3: who sends half a body and stays is refused in the end, also where the body
// was too large already.
#[tokio::test]
async fn a_body_that_does_not_end_is_refused() {
    let limit = 100;
    for (sent, claimed, code) in [
        (10, None, "INVALID_ARGUMENT"),
        (10, Some(20), "INVALID_ARGUMENT"),
        (0, None, "INVALID_ARGUMENT"),
        (200, None, "PAYLOAD_TOO_LARGE"),
        (10, Some(200), "PAYLOAD_TOO_LARGE"),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(length) = claimed {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        let body = Stalled(Some(Bytes::from(vec![b' '; sent])));
        let patience = Duration::from_millis(50);
        let collecting = crate::rest::transcode::collect_within(patience, &headers, body, limit);
        let ended = tokio::time::timeout(Duration::from_secs(20), collecting).await;
        let refused = ended
            .unwrap_or_else(|_| panic!("{sent} of {claimed:?}: no end"))
            .unwrap_err();
        assert_eq!(
            crate::error::code(refused.reason),
            code,
            "{sent} of {claimed:?}"
        );
    }
}
