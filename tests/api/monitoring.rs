//! Monitoring: the figures, who sees whose, and the lists.

use std::collections::BTreeSet;

use onering::{
    domain::id::KeyId,
    proto::v1,
    usage::{Call, Who},
};
use serde_json::{Value, json};

use crate::support::{
    app::{PATIENCE, TestApp, eventually, reason},
    receiver::{Receiver, status},
    store::Db,
};

contract![
    what_is_held_is_pending_and_no_latency,
    every_figure_is_there_from_the_start,
    figures_of_deliveries,
    figures_of_keys,
    alerts_are_raised_and_fall,
    keys_are_listed_with_their_use,
    recent_deliveries_are_listed,
    a_tenant_sees_its_own,
    monitoring_takes_a_key_unless_it_is_open,
    figures_are_watched,
    whoever_watches_is_decided_on_again,
    figures_survive_a_restart,
];

const EXTERNAL: &str = "/v1/monitoring/external/metrics";
const API_KEYS: &str = "/v1/monitoring/external/api-keys";
const WEBHOOKS: &str = "/v1/monitoring/webhooks/metrics";
const RECENT: &str = "/v1/monitoring/webhooks/recent";

async fn hook(app: &TestApp, key: &str, url: &str) -> String {
    let wanted = json!({"url": url, "event_types": ["*"]});
    app.subscribe(key, wanted).await.id
}

async fn events(app: &TestApp, key: &str, count: usize) {
    for from in (0..count).step_by(500) {
        let events: Vec<Value> = (from..count.min(from + 500))
            .map(|n| json!({"event_type": "a.b", "data": n}))
            .collect();
        let body = json!({ "events": events });
        let made = app.post("/v1/external/events/batch", key, body).await.ok();
        for result in made["results"].as_array().unwrap() {
            assert!(result["accepted"].is_object(), "{result}");
        }
    }
}

/// Waits until the figures have that value.
async fn figure(app: &TestApp, path: &str, name: &str, value: &Value) -> Value {
    eventually(&format!("{name} is {value}"), || async {
        let figures = app.get(path, &app.admin).await.ok();
        (figures[name] == *value).then_some(figures)
    })
    .await
}

/// The next answer of a stream.
async fn next(
    stream: &mut tonic::Streaming<v1::WatchMetricsResponse>,
) -> Result<Option<v1::WatchMetricsResponse>, tonic::Status> {
    tokio::time::timeout(PATIENCE, stream.message())
        .await
        .expect("an answer in time")
}

fn names(object: &Value) -> BTreeSet<&str> {
    let members = object.as_object().unwrap();
    members.keys().map(String::as_str).collect()
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name}: {figures}"))
}

// D6
async fn what_is_held_is_pending_and_no_latency(db: Db) {
    let mut app = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_ENABLED", 0)
        .start()
        .await;
    let receiver = Receiver::start().await;
    hook(&app, &app.admin, &receiver.url()).await;
    events(&app, &app.admin, 1000).await;
    let held = figure(&app, WEBHOOKS, "pending", &json!(1000)).await;
    assert_eq!(held["delivered"], 0);
    eventually("it was held for so long that it would show", || async {
        let held = app.get(WEBHOOKS, &app.admin).await.ok();
        (number(&held, "oldest_pending_age_sec") > 4.0).then_some(())
    })
    .await;
    app.reload(&[("WEBHOOKS_DELIVERY_ENABLED", "1")]);
    let on = std::time::Instant::now();
    let done = figure(&app, WEBHOOKS, "delivered", &json!(1000)).await;
    assert_eq!(done["pending"], 0);
    assert!(number(&done, "oldest_pending_age_sec").abs() < 1e-9);
    assert!((number(&done, "success_rate_24h") - 1.0).abs() < 1e-9);
    // None took longer than delivery was on, but for the bucket's width and the
    // moment until the store had noted the switch.
    let most = on.elapsed().as_secs_f64() * 1.16 + 0.5;
    let slowest = number(&done, "delivery_latency_p99_sec");
    assert!(slowest < most, "{slowest}, {most}");
    app.stop().await;
}

// B12: names as contract.md has them; nothing is left out for being 0 or false.
async fn every_figure_is_there_from_the_start(db: Db) {
    let app = TestApp::start(&db).await;
    let webhooks = app.get(WEBHOOKS, &app.admin).await.ok();
    let expected = [
        "delivered",
        "failed",
        "dead",
        "dead_letter",
        "pending",
        "retrying",
        "replay_expired",
        "replay_rejected_24h",
        "avg_retry_count",
        "delivery_latency_p50_sec",
        "delivery_latency_p90_sec",
        "delivery_latency_p95_sec",
        "delivery_latency_p99_sec",
        "success_rate_24h",
        "dead_letter_24h",
        "breaker_opens_24h",
        "oldest_pending_age_sec",
        "alerts",
    ];
    assert_eq!(names(&webhooks), BTreeSet::from(expected));
    for name in expected.iter().filter(|n| **n != "alerts") {
        let nothing = if *name == "success_rate_24h" {
            1.0
        } else {
            0.0
        };
        assert!((number(&webhooks, name) - nothing).abs() < 1e-9, "{name}");
    }
    let alerts = json!({
        "dead_letter_exceeded": false, "replay_rejected_exceeded": false, "latency_p90_exceeded": false,
    });
    assert_eq!(webhooks["alerts"], alerts);

    let external = app.get(EXTERNAL, &app.admin).await.ok();
    let expected = [
        "active_keys",
        "auth_failures_24h",
        "rate_limit_hits_24h",
        "by_tier",
        "key_metrics_by_tier",
        "alerts",
        "thresholds",
    ];
    assert_eq!(names(&external), BTreeSet::from(expected));
    let none = json!({"active": 0, "usage": 0, "rate_limit_hits_24h": 0});
    let tiers = json!({"free": none, "pro": none, "enterprise": none});
    assert_eq!(external["by_tier"], tiers);
    assert_eq!(external["key_metrics_by_tier"], tiers);
    let alerts = json!({
        "dead_letter": false, "auth_failures": false, "rate_limits": false, "replay_rejected": false,
        "latency_p90": false, "rate_limiter_degraded": false, "config_stale": false,
    });
    assert_eq!(external["alerts"], alerts);
    let thresholds = json!({
        "dead_letter_24h": 10, "auth_failures_24h": 50, "rate_limit_hits_24h": 100,
        "replay_rejected_24h": 20, "latency_p90_seconds": 5.0,
    });
    assert_eq!(external["thresholds"], thresholds);
    assert_eq!(app.get(API_KEYS, &app.admin).await.ok()["keys"], json!([]));
    assert_eq!(
        app.get(RECENT, &app.admin).await.ok(),
        json!({"deliveries": [], "next_page_token": ""})
    );
    app.stop().await;
}

// A1, B12
async fn figures_of_deliveries(db: Db) {
    let app = TestApp::start(&db).await;
    let good = Receiver::start().await;
    let bad = Receiver::answering(|_| status(400)).await;
    let busy = Receiver::answering(|_| status(503)).await;
    hook(&app, &app.admin, &good.url()).await;
    hook(&app, &app.admin, &bad.url()).await;
    hook(&app, &app.admin, &busy.url()).await;
    events(&app, &app.admin, 5).await;
    let figures = eventually("all were tried", || async {
        let f = app.get(WEBHOOKS, &app.admin).await.ok();
        (f["delivered"] == 5 && f["dead"] == 5 && f["retrying"] == 5).then_some(f)
    })
    .await;
    assert_eq!(figures["pending"], 0);
    assert_eq!(figures["dead_letter"], 5);
    assert_eq!(figures["dead_letter_24h"], 5);
    assert!((number(&figures, "success_rate_24h") - 0.5).abs() < 1e-9);
    assert!(number(&figures, "delivery_latency_p50_sec") > 0.0);
    assert!(number(&figures, "delivery_latency_p99_sec") < PATIENCE.as_secs_f64());
    assert!(number(&figures, "oldest_pending_age_sec") > 0.0);
    // The same over gRPC.
    let mut grpc = app.grpc(&app.admin).metrics;
    let told = grpc.get_webhook_metrics(v1::GetWebhookMetricsRequest::default());
    let told = told.await.unwrap().into_inner();
    assert_eq!((told.delivered, told.dead, told.retrying), (5, 5, 5));
    app.stop().await;
}

// B12
async fn figures_of_keys(db: Db) {
    let app = TestApp::start(&db).await;
    let (pro, _) = app.key(json!({"tier": "pro"})).await;
    app.key(json!({"tier": "pro"})).await;
    app.key(json!({"tier": "free"})).await;
    let (off, _) = app.key(json!({"tier": "enterprise"})).await;
    let path = format!("/v1/admin/external/keys/{off}/disable");
    app.patch(&path, &app.admin, json!({})).await.ok();
    let usage = &app.app().context.usage;
    let who = Who {
        key: Some(pro.parse::<KeyId>().unwrap()),
        tenant: Some(onering::domain::id::TenantId::DEFAULT),
        tier: "pro".into(),
    };
    for call in [Call::Admitted, Call::Admitted, Call::Limited] {
        usage.note(&who, call);
    }
    let figures = app.get(EXTERNAL, &app.admin).await.ok();
    assert_eq!(figures["active_keys"], 3);
    assert_eq!(figures["rate_limit_hits_24h"], 1);
    let tiers = json!({
        "free": {"active": 1, "usage": 0, "rate_limit_hits_24h": 0},
        "pro": {"active": 2, "usage": 2, "rate_limit_hits_24h": 1},
        "enterprise": {"active": 0, "usage": 0, "rate_limit_hits_24h": 0},
    });
    assert_eq!(figures["by_tier"], tiers);
    assert_eq!(figures["key_metrics_by_tier"], tiers);
    app.stop().await;
}

// B12: an alert is raised when its figure exceeds its threshold.
async fn alerts_are_raised_and_fall(db: Db) {
    let mut app = TestApp::builder(&db)
        .set("ALERT_DEAD_LETTER_24H", 2)
        .set("ALERT_LATENCY_P90_SECONDS", "0.000001")
        .start()
        .await;
    let good = Receiver::start().await;
    let bad = Receiver::answering(|_| status(400)).await;
    let of_good = hook(&app, &app.admin, &good.url()).await;
    events(&app, &app.admin, 1).await;
    let figures = figure(&app, WEBHOOKS, "delivered", &json!(1)).await;
    assert_eq!(figures["alerts"]["latency_p90_exceeded"], true);
    assert_eq!(figures["alerts"]["dead_letter_exceeded"], false);
    app.delete(&format!("/v1/external/webhooks/{of_good}"), &app.admin)
        .await
        .ok();
    hook(&app, &app.admin, &bad.url()).await;
    events(&app, &app.admin, 2).await;
    let figures = figure(&app, WEBHOOKS, "dead", &json!(2)).await;
    assert_eq!(figures["alerts"]["dead_letter_exceeded"], false);
    events(&app, &app.admin, 1).await;
    let figures = figure(&app, WEBHOOKS, "dead", &json!(3)).await;
    assert_eq!(figures["alerts"]["dead_letter_exceeded"], true);
    let external = app.get(EXTERNAL, &app.admin).await.ok();
    assert_eq!(external["alerts"]["dead_letter"], true);
    assert_eq!(external["alerts"]["latency_p90"], true);
    assert_eq!(external["thresholds"]["dead_letter_24h"], 2);
    app.reload(&[("ALERT_DEAD_LETTER_24H", "3")]);
    let external = app.get(EXTERNAL, &app.admin).await.ok();
    assert_eq!(external["alerts"]["dead_letter"], false);
    app.stop().await;
}

// B12
async fn keys_are_listed_with_their_use(db: Db) {
    let app = TestApp::start(&db).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let body = json!({"name": format!("k{n}"), "tier": "pro", "canary_enabled": n == 4});
        ids.push(app.key(body).await);
    }
    ids.reverse();
    let used = app.get("/v1/external/me", &ids[0].1).await;
    assert_eq!(used.status, 200);
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!("{API_KEYS}?page_size=2&page_token={token}");
        let list = app.get(&path, &app.admin).await.ok();
        seen.extend(list["keys"].as_array().unwrap().clone());
        list["next_page_token"]
            .as_str()
            .unwrap()
            .clone_into(&mut token);
        if token.is_empty() {
            break;
        }
    }
    let listed: Vec<_> = seen.iter().map(|k| k["key_id"].as_str().unwrap()).collect();
    let made: Vec<_> = ids.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(listed, made, "newest first, no admin key");
    let newest = &seen[0];
    let tenant = newest["tenant"].as_str().unwrap();
    assert_eq!((newest["name"].as_str(), tenant), (Some("k4"), "default"));
    assert_eq!(newest["tier"], "pro");
    assert_eq!(newest["canary_enabled"], true);
    assert_eq!(newest["status"], "ACTIVE");
    assert!(newest["usage_24h"].is_i64());
    assert_eq!(newest["rate_limit_hits_24h"], 0);
    assert!(newest["last_used_time"].is_string(), "{newest}");
    assert!(seen[1]["last_used_time"].is_null(), "{}", seen[1]);
    app.stop().await;
}

// B12, A5
async fn recent_deliveries_are_listed(db: Db) {
    let app = TestApp::start(&db).await;
    let good = Receiver::start().await;
    let bad = Receiver::answering(|_| status(400)).await;
    let off = json!({"url": good.url(), "event_types": ["*"], "enabled": false});
    app.subscribe(&app.admin, off).await;
    hook(&app, &app.admin, &good.url()).await;
    hook(&app, &app.admin, &bad.url()).await;
    events(&app, &app.admin, 3).await;
    figure(&app, WEBHOOKS, "dead", &json!(3)).await;
    figure(&app, WEBHOOKS, "delivered", &json!(3)).await;
    let list = async |query: &str| {
        let answer = app.get(&format!("{RECENT}{query}"), &app.admin).await;
        answer.ok()["deliveries"].as_array().unwrap().clone()
    };
    let all = list("").await;
    assert_eq!(all.len(), 9);
    let ids: Vec<_> = all.iter().map(|d| d["id"].as_str().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a > b), "newest first");
    for (query, status, count) in [
        ("?status=DEAD", "DEAD", 3),
        ("?status=DELIVERED", "DELIVERED", 3),
        ("?status=PARKED", "PARKED", 3),
        ("?status=PENDING", "PENDING", 0),
        ("?status=DEAD&page_size=2", "DEAD", 2),
        ("?status=DEAD&tenant=default", "DEAD", 3),
        ("?status=DELIVERED&tenant=default", "DELIVERED", 3),
    ] {
        let found = list(query).await;
        assert_eq!(found.len(), count, "{query}");
        for d in found {
            assert_eq!(d["status"], status);
            assert_eq!(d["event_type"], "a.b");
        }
    }
    app.get(&format!("{RECENT}?status=GONE"), &app.admin)
        .await
        .refused(400, "INVALID_ARGUMENT");
    app.stop().await;
}

// T1: a bound key sees its tenant's figures; another one all, or the named one's.
async fn a_tenant_sees_its_own(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let mut admins = Vec::new();
    for (name, count) in [("acme", 3), ("other", 4)] {
        let tenant = app.tenant(name).await;
        hook(&app, &tenant.key, &receiver.url()).await;
        events(&app, &tenant.key, count).await;
        let admin = json!({"tenant": name, "kind": "ADMIN", "scopes": ["monitoring:read"]});
        admins.push(app.key(admin).await.1);
    }
    figure(&app, WEBHOOKS, "delivered", &json!(7)).await;
    let read = async |path: &str, key: &str| app.get(path, key).await.ok();
    for (key, tenant, count) in [(&admins[0], "acme", 3), (&admins[1], "other", 4)] {
        for path in [WEBHOOKS.to_owned(), format!("{WEBHOOKS}?tenant={tenant}")] {
            eventually("the tenant's figures", || async {
                (read(&path, key).await["delivered"] == count).then_some(())
            })
            .await;
        }
        let external = read(EXTERNAL, key).await;
        assert_eq!(external["active_keys"], 1);
        assert_eq!(external["by_tier"]["free"]["active"], 1);
        let keys = read(API_KEYS, key).await["keys"]
            .as_array()
            .unwrap()
            .clone();
        assert_eq!(keys.len(), 1);
        assert_eq!(keys[0]["tenant"], tenant);
        let recent = read(RECENT, key).await["deliveries"]
            .as_array()
            .unwrap()
            .clone();
        assert_eq!(recent.len(), count);
        assert!(recent.iter().all(|d| d["tenant"] == tenant));
        // The same for an unbound key that names the tenant.
        let named = read(&format!("{RECENT}?tenant={tenant}"), &app.admin).await;
        assert_eq!(named["deliveries"].as_array().unwrap().len(), count);
    }
    for path in [EXTERNAL, WEBHOOKS, API_KEYS, RECENT] {
        app.get(&format!("{path}?tenant=other"), &admins[0])
            .await
            .refused(403, "TENANT_MISMATCH");
        app.get(&format!("{path}?tenant=nobody"), &app.admin)
            .await
            .refused(404, "NOT_FOUND");
    }
    app.stop().await;
}

// K13: the refusal names both ways in.
async fn monitoring_takes_a_key_unless_it_is_open(db: Db) {
    let mut app = TestApp::start(&db).await;
    let (_, consumer) = app.key(json!({})).await;
    let narrow = json!({"kind": "ADMIN", "scopes": ["keys:verify"]});
    let (_, narrow) = app.key(narrow).await;
    let wide = json!({"kind": "ADMIN", "scopes": ["monitoring:read"]});
    let (_, wide) = app.key(wide).await;
    let paths = [EXTERNAL, WEBHOOKS, API_KEYS, RECENT];
    for path in paths {
        let problem = app.get(path, "").await.refused(401, "KEY_MISSING");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("monitoring:read"), "{detail}");
        assert!(detail.contains("ONERING_MONITORING_OPEN=1"), "{detail}");
        for key in [&consumer, &narrow] {
            app.get(path, key).await.refused(403, "SCOPE_MISSING");
        }
        app.get(path, &wide).await.ok();
    }
    let watch = v1::WatchMetricsRequest::default();
    let refused = app.grpc("").metrics.watch_metrics(watch.clone()).await;
    assert_eq!(reason(&refused.err().unwrap()), "KEY_MISSING");
    app.reload(&[("MONITORING_OPEN", "1")]);
    for path in paths {
        app.get(path, "").await.ok();
        app.get(&format!("{path}?tenant=default"), "").await.ok();
    }
    app.grpc("").metrics.watch_metrics(watch).await.unwrap();
    app.stop().await;
}

// K5: figures come at once and after each interval; a stream ends with its key
// and with its server.
async fn figures_are_watched(db: Db) {
    let app = TestApp::start(&db).await;
    let admin = json!({"kind": "ADMIN", "scopes": ["monitoring:read"]});
    let (id, key) = app.key(admin).await;
    let watch = |key: &str, interval_seconds| {
        let mut client = app.grpc(key).metrics;
        async move {
            let request = v1::WatchMetricsRequest {
                interval_seconds,
                ..Default::default()
            };
            client.watch_metrics(request).await
        }
    };
    let mut bound = watch(&key, 0).await.unwrap().into_inner();
    let first = next(&mut bound).await.unwrap().unwrap();
    assert_eq!(first.webhooks.unwrap().delivered, 0);
    assert_eq!(first.external.unwrap().active_keys, 0);
    app.key(json!({})).await;
    loop {
        let figures = next(&mut bound).await.unwrap().unwrap();
        if figures.external.unwrap().active_keys == 1 {
            break;
        }
    }
    let path = format!("/v1/admin/external/keys/{id}/disable");
    app.patch(&path, &app.admin, json!({})).await.ok();
    let ended = loop {
        match next(&mut bound).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no reason"),
            Err(e) => break e,
        }
    };
    assert_eq!(reason(&ended), "KEY_DISABLED");

    for wrong in [-1, 3601] {
        let refused = watch(&app.admin, wrong).await.err().unwrap();
        assert_eq!(reason(&refused), "INVALID_ARGUMENT");
    }
    let mut long = watch(&app.admin, 3600).await.unwrap().into_inner();
    next(&mut long).await.unwrap().unwrap();
    let began = std::time::Instant::now();
    app.stop().await;
    assert!(began.elapsed() < PATIENCE, "the stream held the server up");
    let end = next(&mut long).await;
    assert!(matches!(end, Ok(None) | Err(_)), "{end:?}");
}

// K8, K2, X5: as its first call was decided, so each of its answers is.
async fn whoever_watches_is_decided_on_again(db: Db) {
    let mut app = TestApp::start(&db).await;
    let admin = app.admin.clone();
    let watching = async |app: &TestApp, key: &str| {
        let mut client = app.grpc(key).metrics;
        let request = v1::WatchMetricsRequest::default();
        let mut stream = client.watch_metrics(request).await.unwrap().into_inner();
        next(&mut stream).await.unwrap().unwrap();
        stream
    };
    let ends = async |mut stream: tonic::Streaming<v1::WatchMetricsResponse>| {
        let ended = async {
            loop {
                match next(&mut stream).await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("no reason"),
                    Err(e) => break reason(&e),
                }
            }
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        ended.expect("it ends")
    };
    for (change, why) in [
        (json!({"scopes": ["keys:verify"]}), "SCOPE_MISSING"),
        (
            json!({"allowed_cidrs": ["203.0.113.0/24"]}),
            "IP_NOT_ALLOWED",
        ),
    ] {
        let key = json!({"kind": "ADMIN", "scopes": ["monitoring:read"]});
        let (id, key) = app.key(key).await;
        let stream = watching(&app, &key).await;
        let path = format!("/v1/admin/external/keys/{id}");
        app.patch(&path, &admin, change).await.ok();
        assert_eq!(ends(stream).await, why);
    }
    app.reload(&[("MONITORING_OPEN", "1")]);
    let stream = watching(&app, "").await;
    app.reload(&[("MONITORING_OPEN", "0")]);
    assert_eq!(ends(stream).await, "KEY_MISSING");
    let stream = watching(&app, &admin).await;
    app.switch("onering.v1.MetricsService/WatchMetrics", false)
        .await;
    assert_eq!(ends(stream).await, "ENDPOINT_DISABLED");
    app.stop().await;
}

// H1
async fn figures_survive_a_restart(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    hook(&app, &app.admin, &receiver.url()).await;
    events(&app, &app.admin, 20).await;
    let before = figure(&app, WEBHOOKS, "delivered", &json!(20)).await;
    let again = app.again();
    app.stop().await;
    let app = again.start().await;
    let after = app.get(WEBHOOKS, &app.admin).await.ok();
    assert_eq!(after, before);
    app.stop().await;
    db.counts_agree().await;
}
