//! The environment and the file, as `onering serve` reads them.

use std::collections::BTreeMap;

use crate::support::{
    app::{Answer, Http, eventually, variables},
    command::{Running, onering},
    store::Db,
};

contract![
    a_bad_value_stops_the_start,
    no_master_key_no_server,
    an_unknown_variable_is_warned_of,
    a_file_is_read_and_read_again,
    a_taken_address_is_told,
];

fn pairs(vars: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

async fn me(url: &str) -> Answer {
    let request = http::Request::get(format!("{url}/v1/external/me"));
    Http::new()
        .send(request.body(http_body_util::Full::default()).unwrap())
        .await
}

/// A value of each kind of variable that is not one, and a part of what the
/// message says is allowed.
const BAD: &[(&str, &str, &str)] = &[
    ("EXTERNAL_API_ENABLED", "yes", "0, 1, true or false"),
    ("EXTERNAL_API_CANARY_ONLY", "on", "0, 1, true or false"),
    ("WEBHOOKS_ENABLED", "2", "0, 1, true or false"),
    ("WEBHOOKS_DELIVERY_ENABLED", "TRUE!", "0, 1, true or false"),
    ("WEBHOOKS_MAX_ATTEMPTS", "0", "1 to 20"),
    ("WEBHOOKS_BACKOFF_SECONDS", "60,,300", "numbers"),
    ("WEBHOOKS_REPLAY_WINDOW_SECONDS", "-1", "1 to 86400"),
    ("WEBHOOKS_DELIVERY_LOOP_SECONDS", "soon", "1 to 3600"),
    ("DATABASE_URL", "mysql://x", "postgres://"),
    ("LISTEN", "8000", "127.0.0.1:8000"),
    ("STALE_SECONDS", "1.5", "0 to 86400"),
    ("MONITORING_OPEN", "open", "0, 1, true or false"),
    ("REQUIRE_OWN_SCOPES", "x", "0, 1, true or false"),
    ("ALLOWED_ENDPOINT_CIDRS", "10.0.0.0/99", "10.0.0.0/8"),
    ("ALLOW_HTTP_ENDPOINTS", "x", "0, 1, true or false"),
    ("TIERS", "free", "free=100"),
    ("EVENT_MAX_BYTES", "1e6", "1 to"),
    ("LOG_FORMAT", "xml", "text or json"),
    ("LOG", "onering=louder", "info"),
    ("MASTER_KEY", "c2hvcnQ=", "base64 of 32 bytes"),
    ("MASTER_KEY_FILE", "/nowhere/key", "readable file"),
    ("BOOTSTRAP_ADMIN_KEY", "sk_admin_short", "24"),
    (
        "BOOTSTRAP_ADMIN_KEY",
        "sk_admin_01k00000000000000000000000_0123456789abcdefghijklmnopqrstuvwx",
        "checksum",
    ),
    ("EGRESS_PROXY", "https://proxy:3128", "http://"),
    ("TLS_CERT", "/nowhere/cert.pem", "ONERING_TLS_"),
    ("CONFIG", "/nowhere/onering.toml", "readable file"),
];

// A bad value stops the start with the variable's name, what was read (unless it
// is a secret) and what is allowed.
async fn a_bad_value_stops_the_start(db: Db) {
    for (name, value, allowed) in BAD.iter().copied() {
        let mut vars = variables(&db);
        vars.insert(format!("ONERING_{name}"), value.to_owned());
        if name == "MASTER_KEY_FILE" {
            vars.remove("ONERING_MASTER_KEY");
        }
        let done = onering(&["serve"], &pairs(&vars)).await.exits(2);
        let text = &done.stderr;
        assert!(text.contains(&format!("ONERING_{name}")), "{name}: {text}");
        assert!(text.contains(allowed), "{name}: {text}");
        let secret = matches!(name, "MASTER_KEY" | "BOOTSTRAP_ADMIN_KEY");
        // Of a pair it is the missing one that was read as nothing.
        if name != "TLS_CERT" {
            assert_eq!(text.contains(value), !secret, "{name}: {text}");
        }
        assert_eq!(done.stdout, "");
    }
}

async fn no_master_key_no_server(db: Db) {
    let mut vars = variables(&db);
    vars.remove("ONERING_MASTER_KEY");
    let done = onering(&["serve"], &pairs(&vars)).await.exits(2);
    assert!(
        done.stderr.contains("ONERING_MASTER_KEY is not set"),
        "{done:?}"
    );
    assert!(done.stderr.contains("onering keys master"), "{done:?}");
}

async fn an_unknown_variable_is_warned_of(db: Db) {
    let mut vars = variables(&db);
    vars.insert("ONERING_WEBHOOK_ENABLED".into(), "1".into());
    let (serve, _) = Running::serve(&pairs(&vars)).await;
    let line = serve.logged("ONERING_WEBHOOK_ENABLED").await;
    assert!(line.contains("WARN"), "{line}");
    serve.stop().await;
}

// Switches can be pinned in a file while the server runs; the environment wins.
async fn a_file_is_read_and_read_again(db: Db) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("onering.toml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write("external_api_enabled = false\nexternal_api_canary_only = true\n");
    let mut vars = variables(&db);
    vars.remove("ONERING_EXTERNAL_API_ENABLED");
    vars.insert("ONERING_CONFIG".into(), path.display().to_string());
    let (serve, url) = Running::serve(&pairs(&vars)).await;
    me(&url).await.refused(503, "EXTERNAL_API_DISABLED");

    write("external_api_enabled = true\n");
    serve.signal("HUP");
    eventually("the switch is on", || async {
        (me(&url).await.status == 401).then_some(())
    })
    .await;
    // What can't be read changes nothing, and is told.
    write("external_api_enabled = \"perhaps\"\n");
    serve.signal("HUP");
    let line = serve.logged("perhaps").await;
    assert!(line.contains("EXTERNAL_API_ENABLED"), "{line}");
    me(&url).await.refused(401, "KEY_MISSING");
    // Without a signal too.
    write("external_api_enabled = false\n");
    eventually("the switch is off", || async {
        (me(&url).await.status == 503).then_some(())
    })
    .await;
    serve.stop().await;

    vars.insert("ONERING_EXTERNAL_API_ENABLED".into(), "1".into());
    let (serve, url) = Running::serve(&pairs(&vars)).await;
    me(&url).await.refused(401, "KEY_MISSING");
    serve.stop().await;

    write("external_api_enable = true\n");
    let done = onering(&["serve"], &pairs(&vars)).await.exits(2);
    assert!(done.stderr.contains("external_api_enable`"), "{done:?}");
}

async fn a_taken_address_is_told(db: Db) {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut vars = variables(&db);
    vars.insert("ONERING_LISTEN".into(), address.clone());
    let done = onering(&["serve"], &pairs(&vars)).await.exits(2);
    assert!(done.stderr.contains(&address), "{done:?}");
}
