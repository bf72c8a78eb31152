//! The API reference, in a real browser.

use std::path::Path;

use serde_json::Value;

use crate::support::{app::TestApp, command::run, store::Db};

contract![the_reference_shows_every_operation];

/// Chromium without a display, on a page; what it made of it.
async fn browse(url: &str, more: &[&str]) -> String {
    let chromium = std::env::var("ONERING_TEST_CHROMIUM").expect(
        "ONERING_TEST_CHROMIUM is not set: run `./test servers`, and export what it prints",
    );
    let profile = tempfile::tempdir().unwrap();
    let folder = format!("--user-data-dir={}", profile.path().display());
    let mut args = vec![
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        // Whatever is not on this machine is not reached.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--virtual-time-budget=10000",
        &folder,
    ];
    args.extend(more);
    args.push(url);
    let path = std::env::var("PATH").unwrap();
    run(Path::new(&chromium), &args, &[("PATH", &path)])
        .await
        .exits(0)
        .stdout
}

// E1: the page needs nothing from elsewhere and shows each operation of the
// document that it is drawn from.
async fn the_reference_shows_every_operation(db: Db) {
    let app = TestApp::start(&db).await;
    let page = app.get("/docs", "").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(
        page.header("content-security-policy")
            .contains("default-src 'none'")
    );
    for part in ["", "docs.css", "docs.js"] {
        let text = app.get(&format!("/docs/{part}"), "").await;
        assert_eq!(text.status, 200, "{part}");
        assert!(!text.text().contains("//cdn"), "{part}");
    }
    app.post("/docs", "", Value::Null)
        .await
        .refused(405, "METHOD_NOT_ALLOWED");

    let dom = browse(&app.url("/docs"), &["--dump-dom"]).await;
    let api = app.get("/openapi.json", "").await.ok();
    let mut operations = 0;
    for (path, item) in api["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values() {
            let Some(id) = operation["operationId"].as_str() else {
                continue;
            };
            operations += 1;
            assert!(
                dom.contains(&format!(r#"<article id="{id}">"#)),
                "{id} of {path}"
            );
            assert!(dom.contains(&format!("href=\"#{id}\"")), "{id} of {path}");
        }
    }
    assert!(operations > 20, "{operations}");
    assert_eq!(dom.matches("<article ").count(), operations);
    // Fields of messages, errors, and something to try are there.
    for text in [
        "Idempotency-Key",
        "event_types",
        "Errors: 400, 401",
        "Try it",
        "curl -s -X POST",
    ] {
        assert!(dom.contains(text), "{text}");
    }
    app.stop().await;
}
