//! What a node tells its operators: logs and metrics, and what it never tells.

use std::collections::BTreeSet;

use http_body_util::Full;
use onering::cli::sink::{Behaviour, Sink, SinkConfig};
use serde_json::{Value, json};

use crate::support::{
    app::{Answer, Grpc, Http, TestApp, eventually, variables},
    command::Running,
    store::Db,
};

contract![
    metrics_have_their_documented_names,
    metrics_need_a_key,
    logs_say_what_is_looked_for,
    nothing_secret_is_ever_logged,
];

/// The names in the documentation's table.
fn documented() -> BTreeSet<String> {
    let text = include_str!("../../docs/operations.md");
    text.lines()
        .filter_map(|line| line.strip_prefix("| `onering_"))
        .map(|rest| format!("onering_{}", rest.split('`').next().unwrap()))
        .collect()
}

/// The names of what is exposed.
fn exposed(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}

// O1: /metrics is Prometheus' text format, and has the documented names and no
// others.
async fn metrics_have_their_documented_names(db: Db) {
    let app = TestApp::builder(&db)
        .set("MONITORING_OPEN", 1)
        .start()
        .await;
    let sink = Sink::start(SinkConfig::default()).await.unwrap();
    let (_, key) = app.key(json!({})).await;
    app.get("/v1/external/me", "")
        .await
        .refused(401, "KEY_MISSING");
    app.subscribe(&key, json!({"url": sink.url(), "event_types": ["*"]}))
        .await;
    app.publish(&key, "a.b", json!(1)).await;
    let text = eventually("the delivery is counted", || async {
        let answer = app.get("/metrics", "").await;
        let counted = "\nonering_deliveries_total{outcome=\"delivered\"} 1\n";
        answer.text().contains(counted).then_some(answer)
    })
    .await;
    assert_eq!(
        text.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = text.text();
    assert_eq!(exposed(text), documented());
    for line in [
        "\nonering_events_total{outcome=\"accepted\"} 1\n",
        "\nonering_refused_total{reason=\"KEY_MISSING\"} 1\n",
        "\nonering_partitions_owned 64\n",
        "\nonering_config_stale 0\n",
        "\nonering_delivery_seconds_count 1\n",
    ] {
        assert!(text.contains(line), "no {line}: {text}");
    }
    for name in documented() {
        assert!(
            text.contains(&format!("# HELP {name} ")),
            "{name} is not explained"
        );
    }
    app.stop().await;
}

// O1: monitoring takes `monitoring:read` or `external:admin`, unless it is open;
// the 401 names both ways.
async fn metrics_need_a_key(db: Db) {
    let mut app = TestApp::start(&db).await;
    let admin = async |scope: &str| app.key(json!({"kind": "ADMIN", "scopes": [scope]})).await.1;
    let (reader, other) = (admin("monitoring:read").await, admin("events:write").await);
    let (_, consumer) = app.key(json!({"scopes": ["monitoring:read"]})).await;
    let problem = app.get("/metrics", "").await.refused(401, "KEY_MISSING");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("monitoring:read") && detail.contains("ONERING_MONITORING_OPEN=1"));
    for key in [&reader, &app.admin] {
        assert_eq!(app.get("/metrics", key).await.status, 200);
    }
    for key in [&other, &consumer] {
        app.get("/metrics", key).await.refused(403, "SCOPE_MISSING");
    }
    // T1: they are of all tenants.
    app.tenant("acme").await;
    let bound = json!({"tenant": "acme", "kind": "ADMIN", "scopes": ["monitoring:read"]});
    let (_, bound) = app.key(bound).await;
    app.get("/metrics", &bound)
        .await
        .refused(403, "TENANT_MISMATCH");
    app.reload(&[("MONITORING_OPEN", "1")]);
    assert_eq!(app.get("/metrics", "").await.status, 200);
    app.stop().await;
}

async fn send(url: &str, method: &str, path: &str, key: &str, body: &Value) -> Answer {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let request = http::Request::builder()
        .method(method)
        .uri(format!("{url}{path}"))
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(Full::from(body));
    Http::new().send(request.unwrap()).await
}

async fn make(url: &str, path: &str, key: &str, body: Value) -> Value {
    send(url, "POST", path, key, &body).await.ok()
}

const KEYS: &str = "/v1/admin/external/keys";
const HOOKS: &str = "/v1/external/webhooks";
const EVENTS: &str = "/v1/external/events";

// O1: logs are JSON with dotted names, and have the texts that launch scripts
// look for: the two per delivery only at the level that turns them on.
async fn logs_say_what_is_looked_for(db: Db) {
    let sink = Sink::start(SinkConfig::default()).await.unwrap();
    let per_delivery = ["processing delivery", "Webhook delivered successfully"];
    let vars = variables(&db);
    let admin = &vars["ONERING_BOOTSTRAP_ADMIN_KEY"];
    for levels in ["info", "info,onering=debug"] {
        let mut all: Vec<(&str, &str)> =
            vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        all.push(("ONERING_LOG", levels));
        let (serve, url) = Running::serve(&all).await;
        serve.logged("Webhook delivery worker started").await;
        let hook = json!({"url": sink.url(), "event_types": ["*"]});
        make(&url, HOOKS, admin, hook).await;
        let event = make(&url, EVENTS, admin, json!({"event_type": "a.b", "data": 1})).await;
        let path = format!("{EVENTS}/{}/deliveries", event["id"].as_str().unwrap());
        eventually("it is delivered", || async {
            let list = send(&url, "GET", &path, admin, &Value::Null).await.json();
            (list["deliveries"][0]["status"] == "DELIVERED").then_some(())
        })
        .await;
        let done = serve.stop().await;
        for text in per_delivery {
            assert_eq!(
                done.stderr.contains(text),
                levels != "info",
                "{text}: {}",
                done.stderr
            );
        }
        for line in done.stderr.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert!(
                line["timestamp"].is_string() && line["level"].is_string(),
                "{line}"
            );
            assert!(line["message"].is_string(), "{line}");
        }
    }
}

// P2, Z1: everything that a full run logs at the loudest level has no payload,
// no secret and no key in it.
async fn nothing_secret_is_ever_logged(db: Db) {
    let vars = variables(&db);
    let admin = vars["ONERING_BOOTSTRAP_ADMIN_KEY"].clone();
    let mut all: Vec<(&str, &str)> = vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    all.extend([
        ("ONERING_LOG", "trace"),
        ("ONERING_WEBHOOKS_BACKOFF_SECONDS", "1"),
    ]);
    let (serve, url) = Running::serve(&all).await;
    let sink = Sink::start(SinkConfig::default()).await.unwrap();
    let own = "a-secret-of-my-own-0123456789";
    let payload = "personal-data-of-Frodo-Baggins";

    let body = json!({"name": "acme", "tier": "enterprise"});
    let made = make(&url, KEYS, &admin, body).await;
    let key = made["secret"].as_str().unwrap().to_owned();
    let path = format!("{KEYS}/{}/rotate", made["key_id"].as_str().unwrap());
    let rotated = make(&url, &path, &admin, json!({})).await;
    let rotated = rotated["secret"].as_str().unwrap().to_owned();
    let hook = make(
        &url,
        HOOKS,
        &key,
        json!({"url": sink.url(), "event_types": ["*"], "headers": {"x-token": "header-secret-77"}}),
    )
    .await;
    let made = hook["secret"].as_str().unwrap().to_owned();
    let path = format!("{HOOKS}/{}/rotate-secret", hook["id"].as_str().unwrap());
    make(&url, &path, &rotated, json!({"secret": own})).await;
    // One that fails first, with an answer of its own, over each face.
    sink.behave(Behaviour {
        fail_next: Some(1),
        status: 503,
        ..Behaviour::default()
    });
    let event =
        json!({"event_type": "a.b", "data": {"name": payload}, "idempotency_key": "once-only-key"});
    let event = make(&url, EVENTS, &key, event).await;
    let channel = tonic::transport::Endpoint::from_shared(url.clone())
        .unwrap()
        .connect_lazy();
    let mut events = Grpc::new(channel, &rotated).events;
    let request = onering::proto::v1::PublishEventRequest {
        event_type: "a.c".into(),
        payload: Some(
            onering::proto::v1::publish_event_request::Payload::DataJson(
                json!({ "name": payload }).to_string().into(),
            ),
        ),
        ..Default::default()
    };
    events.publish_event(request).await.unwrap();
    let path = format!("{EVENTS}/{}/deliveries", event["id"].as_str().unwrap());
    eventually("it is delivered", || async {
        let list = send(&url, "GET", &path, &key, &Value::Null).await.json();
        (list["deliveries"][0]["status"] == "DELIVERED").then_some(())
    })
    .await;
    // Refusals and bad input repeat nothing either.
    let typo = format!("{}x", &key[..key.len() - 1]);
    send(&url, "GET", "/v1/external/me", &typo, &Value::Null).await;
    send(
        &url,
        "POST",
        EVENTS,
        &key,
        &json!({"event_type": "no type", "data": payload}),
    )
    .await;
    send(
        &url,
        "POST",
        EVENTS,
        &key,
        &json!({"event_type": "a.b", "data": 1, "typo": payload}),
    )
    .await;
    send(
        &url,
        "POST",
        HOOKS,
        &key,
        &json!({"url": "x", "secret": "short77"}),
    )
    .await;

    let done = serve.stop().await;
    assert!(done.stderr.contains("TRACE"), "the level is the loudest");
    assert!(done.stderr.contains("Webhook delivered successfully"));
    let digits = |text: &str| text[text.len() - 38..text.len() - 6].to_owned();
    for secret in [
        digits(&key),
        digits(&rotated),
        admin["sk_admin_".len()..].to_owned(),
        vars["ONERING_MASTER_KEY"].clone(),
        made["whsec_".len()..].to_owned(),
        own.to_owned(),
        payload.to_owned(),
        "header-secret-77".to_owned(),
        "short77".to_owned(),
    ] {
        let line = done
            .stderr
            .lines()
            .chain(done.stdout.lines())
            .find(|l| l.contains(&secret));
        assert!(line.is_none(), "{secret} is logged: {line:?}");
    }
}
