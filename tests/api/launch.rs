//! The launch, rehearsed with what operators type: the runbook's command lines,
//! `onering smoke`, and the pages that are looked at on the way.

use std::collections::BTreeMap;

use onering::cli::sink::{RunningSink, Sink, SinkConfig};
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, eventually},
    command::{Done, ONERING, Running, onering, run},
    store::Db,
};

contract![
    the_runbooks_lines_work_as_they_stand,
    smoke_passes,
    smoke_skips_what_is_switched_off,
    smoke_says_what_failed,
    deep_health_looks_at_everything,
];

const LINES: &str = include_str!("launch.txt");

/// A sink that verifies with this secret.
async fn sink(secret: &str) -> RunningSink {
    Sink::start(SinkConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        keys: vec![onering::domain::signature::VerifyingKey::parse(secret).unwrap()],
        ..SinkConfig::default()
    })
    .await
    .unwrap()
}

/// A sink's address without the path that it takes webhooks at.
fn origin(url: &str) -> &str {
    url.trim_end_matches("/webhook").trim_end_matches('/')
}

async fn shell(line: &str) -> Done {
    let path = std::env::var("PATH").unwrap();
    let folder = std::path::Path::new(ONERING).parent().unwrap();
    // Progress is not what a person looks at.
    let line = line.replacen("curl ", "curl -sS ", 1);
    run(
        std::path::Path::new("/bin/bash"),
        &["-c", &line],
        &[("PATH", &format!("{}:{path}", folder.display()))],
    )
    .await
}

/// What is checked of the command before it.
enum Check<'a> {
    Has(&'a str),
    HasNot(&'a str),
    Names(&'a str, &'a str),
}

/// What a line does.
enum Step<'a> {
    /// A command, and what must hold of its output.
    Run(&'a str, Vec<Check<'a>>),
    /// A command that goes on.
    Begin(&'a str),
    /// A variable, with its value or to be taken away.
    Set(&'a str, Option<&'a str>),
}

fn steps() -> Vec<Step<'static>> {
    let mut found: Vec<Step<'_>> = Vec::new();
    for line in LINES.lines() {
        let step = match line.split_at_checked(2) {
            Some(("$ ", command)) => Some(Step::Run(command, Vec::new())),
            Some(("& ", command)) => Some(Step::Begin(command)),
            Some(("% ", text)) => {
                let variable = text.strip_prefix("ONERING_").unwrap();
                Some(match variable.split_once('=') {
                    Some((name, value)) => Step::Set(name, Some(value)),
                    None => Step::Set(variable, None),
                })
            }
            _ => None,
        };
        if let Some(step) = step {
            found.push(step);
            continue;
        }
        let check = match line.split_at_checked(2) {
            Some(("= ", text)) => Check::Has(text),
            Some(("! ", text)) => Check::HasNot(text),
            Some(("> ", text)) => {
                let (name, field) = text.split_once(' ').unwrap();
                Check::Names(name, field)
            }
            _ => {
                assert!(line.is_empty() || line.starts_with('#'), "{line}");
                continue;
            }
        };
        let Some(Step::Run(_, checks)) = found.last_mut() else {
            panic!("nothing to check: {line}")
        };
        checks.push(check);
    }
    assert!(found.len() > 10);
    found
}

fn fill(text: &str, values: &BTreeMap<String, String>) -> String {
    let mut filled = text.replace("\\n", "\n");
    for (name, value) in values {
        filled = filled.replace(name, value);
    }
    filled
}

// K1, K2, K3, D2, X1, X2, K8: the lines that people have in their runbooks.
async fn the_runbooks_lines_work_as_they_stand(db: Db) {
    let mut app = TestApp::builder(&db)
        .unpinned()
        .set("MONITORING_OPEN", 1)
        .start()
        .await;
    // What is stored is in force again once its variable is taken away.
    for name in [
        "external_api.enabled",
        "webhooks.enabled",
        "webhooks.delivery.enabled",
    ] {
        app.switch(name, true).await;
    }
    let mut values: BTreeMap<String, String> = [
        ("localhost:8000", app.address.to_string()),
        ("<admin_key>", app.admin.clone()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let mut sink = None;
    for step in steps() {
        let (line, checks) = match step {
            Step::Run(line, checks) => (line, checks),
            Step::Begin(line) => {
                let free = line.replace("--port 9090", "--port 0");
                let args: Vec<&str> = free.split(' ').collect();
                assert_eq!(args[..2], ["onering", "sink"]);
                let running = Running::onering(&args[1..], &[]);
                let said = running.told("listening on ").await;
                let url = origin(said.split_whitespace().last().unwrap());
                let address = url.replace("http://", "");
                values.insert("localhost:9090".into(), address);
                sink = Some(running);
                continue;
            }
            Step::Set(name, value) => {
                match value {
                    Some(value) => app.reload(&[(name, value)]),
                    None => app.reload_without(name),
                }
                continue;
            }
        };
        let line = fill(line, &values);
        assert!(!line.contains(['<', '…']), "nothing is left open: {line}");
        // A figure may take a moment: a delivery is on its way, counters follow.
        let done = eventually(&line, || async {
            let done = shell(&line).await;
            let holds = checks.iter().all(|check| match check {
                Check::Has(text) => done.stdout.contains(&fill(text, &values)),
                Check::HasNot(text) => !done.stdout.contains(&fill(text, &values)),
                Check::Names(..) => true,
            });
            let once = ["-X POST", "-i ", "onering "]
                .iter()
                .any(|s| line.contains(s));
            assert!(holds || !once, "{line}\n{done:?}");
            holds.then_some(done)
        })
        .await;
        for check in &checks {
            if let Check::Names(name, field) = check {
                let value = done.json()[*field].as_str().unwrap().to_owned();
                values.insert(format!("<{name}>"), value);
            }
        }
    }
    sink.unwrap().stop().await;
    app.stop().await;
}

async fn smoke(app: &TestApp, sink: &str, more: &[&str]) -> Done {
    let url = app.url("");
    let hook = format!("{}/webhook", origin(sink));
    let mut args = vec![
        "smoke",
        "--backend-url",
        &url,
        "--admin-key",
        &app.admin,
        "--webhook-sink",
        &hook,
    ];
    args.extend(more);
    onering(&args, &[]).await
}

/// Everything that a smoke run could leave behind.
async fn left_behind(app: &TestApp) -> (Value, Value, Value) {
    let keys = app.get("/v1/admin/external/keys", &app.admin).await.ok();
    let names: Vec<&Value> = keys["keys"].as_array().unwrap().iter().collect();
    let names: Vec<&str> = names.iter().filter_map(|k| k["name"].as_str()).collect();
    let hooks = app.get("/v1/external/webhooks", &app.admin).await.ok();
    let letters = app.get("/v1/admin/dead-letters", &app.admin).await.ok();
    (
        json!(names),
        hooks["subscriptions"].clone(),
        letters["dead_letters"].clone(),
    )
}

// K8, D1, S1: five phases in the words of the launch documents; the sink
// verifies too, and nothing is left behind.
async fn smoke_passes(db: Db) {
    let app = TestApp::start(&db).await;
    let before = left_behind(&app).await;
    let sink = Running::onering(
        &["sink", "--port", "0", "--secret", "whsec_test", "--quiet"],
        &[],
    );
    let said = sink.told("listening on ").await;
    let url = said.split_whitespace().last().unwrap().to_owned();
    let done = smoke(&app, &url, &[]).await.exits(0);
    let wanted = [
        "✅ Backend health: PASSED",
        "✅ API key creation: PASSED",
        "✅ Rate limit headers: PASSED",
        "✅ Webhook subscription: PASSED",
        "✅ Webhook delivery: PASSED",
        "Total: 5/5 PASSED ✅",
    ];
    assert_eq!(done.stdout.lines().collect::<Vec<_>>(), wanted);
    assert_eq!(left_behind(&app).await, before);
    // A1, A3, A6: a 503 is tried again, a 400 is not; five failures open the breaker.
    let done = smoke(&app, &url, &["--sink-secret", "whsec_test", "--scenarios"])
        .await
        .exits(0);
    let breaker = "✅ Scenario breaker opens, probes, closes: PASSED";
    assert!(done.stdout.contains(breaker), "{done:?}");
    assert!(done.stdout.contains("Total: 9/9 PASSED ✅"), "{done:?}");
    assert_eq!(left_behind(&app).await, before);
    sink.stop().await;
    app.stop().await;
}

// X1: a phase behind a switch that is off is skipped and fails nothing.
async fn smoke_skips_what_is_switched_off(db: Db) {
    let mut app = TestApp::start(&db).await;
    let sink = sink("whsec_test").await;
    app.reload(&[("WEBHOOKS_DELIVERY_ENABLED", "0")]);
    let done = smoke(&app, &sink.url(), &[]).await.exits(0);
    let line = "⏳ Webhook delivery: SKIPPED (webhooks.delivery.enabled is off)";
    assert!(done.stdout.contains(line), "{done:?}");
    app.reload(&[("WEBHOOKS_ENABLED", "0")]);
    let done = smoke(&app, &sink.url(), &[]).await.exits(0);
    let line = "⏳ Webhook subscription: SKIPPED (webhooks.enabled is off)";
    assert!(done.stdout.contains(line), "{done:?}");
    app.reload(&[("EXTERNAL_API_ENABLED", "0")]);
    let done = smoke(&app, &sink.url(), &[]).await.exits(0);
    let line = "⏳ Rate limit headers: SKIPPED (external_api.enabled is off)";
    assert!(done.stdout.contains(line), "{done:?}");
    assert!(
        done.stdout.contains("Total: 2/5 PASSED, 3 SKIPPED ⏳"),
        "{done:?}"
    );
    sink.stop().await;
    app.stop().await;
}

async fn smoke_says_what_failed(db: Db) {
    let app = TestApp::start(&db).await;
    // Nobody listens there: a port that was free a moment ago.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let done = smoke(&app, &url, &["--timeout", "1"]).await.exits(1);
    assert!(
        done.stdout.contains("❌ Webhook delivery: FAILED: "),
        "{done:?}"
    );
    assert!(done.stdout.contains("Total: 4/5 PASSED ❌"), "{done:?}");
    let wrong = [
        "smoke",
        "--backend-url",
        &app.url(""),
        "--admin-key",
        "sk_admin_nobodys",
    ];
    let done = onering(&wrong, &[]).await.exits(1);
    let line = "❌ API key creation: FAILED: HTTP 401: KEY_INVALID";
    assert!(done.stdout.contains(line), "{done:?}");
    app.stop().await;
}

// N6: deep health names what was checked; migrations applied are the ones that
// this build expects.
async fn deep_health_looks_at_everything(db: Db) {
    let app = TestApp::start(&db).await;
    let plain = app.get("/health", "").await.ok();
    assert_eq!(plain, json!({"status": "healthy"}));
    let deep = app.get("/health?deep=true", "").await.ok();
    assert_eq!(deep["status"], "healthy", "{deep}");
    let checks = &deep["checks"];
    assert!(checks["database"]["latency_ms"].is_f64(), "{deep}");
    let migrations = &checks["migrations"];
    assert_eq!(migrations["applied"], migrations["expected"], "{deep}");
    assert!(migrations["applied"].as_i64().unwrap() > 0, "{deep}");
    assert_eq!(checks["worker"]["partitions"], 64, "{deep}");
    assert_eq!(checks["worker"]["sending"], true, "{deep}");
    assert_eq!(checks["limiter"]["degraded"], false, "{deep}");
    assert_eq!(checks["limiter"]["redis"], "not_configured", "{deep}");
    assert_eq!(checks["queue"]["oldest_age_seconds"], 0.0, "{deep}");
    let sink = sink("whsec_test").await;
    let hook = json!({"url": sink.url(), "event_types": ["*"]});
    let mut app = app;
    app.subscribe(&app.admin, hook).await;
    app.reload(&[("WEBHOOKS_DELIVERY_ENABLED", "0")]);
    app.publish(&app.admin, "a.b", json!({})).await;
    eventually("what waits is seen", || async {
        let deep = app.get("/health?deep=true", "").await.ok();
        assert_eq!(
            deep["status"], "healthy",
            "what is held is no fault: {deep}"
        );
        let age = deep["checks"]["queue"]["oldest_age_seconds"].as_f64();
        (age.unwrap() > 0.0).then_some(())
    })
    .await;
    app.get("/health?deeep=true", "")
        .await
        .refused(400, "INVALID_ARGUMENT");
    app.stop().await;
}
