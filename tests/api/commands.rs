//! The `onering` command, as a child process.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::{Value, json};

use crate::support::{
    app::{Http, TestApp, database_url, variables},
    command::{Done, ONERING, Running, onering, run},
    store::Db,
    tls::Authority,
};

contract![
    dev_shows_a_delivery,
    serve_opens_nothing,
    keys_by_command,
    exit_codes,
    a_first_admin_key,
    another_master_key,
    secrets_are_sealed,
];

/// Variables for a child: borrowed pairs of a node's.
fn pairs(vars: &std::collections::BTreeMap<String, String>) -> Vec<(&str, &str)> {
    vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

fn vars_of<'a>(vars: &'a [(&str, String)]) -> Vec<(&'a str, &'a str)> {
    vars.iter().map(|(k, v)| (*k, v.as_str())).collect()
}

/// Calls over REST as users of a child do.
async fn get(url: &str, path: &str, key: &str) -> crate::support::app::Answer {
    let mut request = http::Request::get(format!("{url}{path}"));
    if !key.is_empty() {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    Http::new()
        .send(request.body(http_body_util::Full::default()).unwrap())
        .await
}

/// The word behind a label that `dev` prints.
fn word<'a>(text: &'a str, label: &str) -> &'a str {
    let line = text.lines().find_map(|l| l.trim().strip_prefix(label));
    line.unwrap_or_else(|| panic!("no {label}: {text}"))
        .split_whitespace()
        .next()
        .unwrap()
}

/// The commands that `dev` prints, continued lines joined.
fn printed_commands(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let commands = joined.lines().map(str::trim);
    commands
        .filter(|l| l.starts_with("curl ") || l.starts_with("grpcurl "))
        .map(str::to_owned)
        .collect()
}

async fn shell(command: &str) -> Done {
    let tool =
        std::env::var("ONERING_TEST_GRPCURL").expect("ONERING_TEST_GRPCURL: run `./test servers`");
    let folder = Path::new(&tool).parent().unwrap().display().to_string();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
    run(Path::new("/bin/sh"), &["-c", command], &[("PATH", &path)]).await
}

// A newcomer's first minute: `dev` prints keys and a delivery with a verified
// signature, its lines work as printed, it stops at Ctrl-C, and its data is there
// at the next start.
async fn dev_shows_a_delivery(db: Db) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("onering-data").display().to_string();
    let url = database_url(db.database());
    let vars = [
        ("ONERING_DATA_DIR", data.as_str()),
        ("ONERING_DATABASE_URL", &url),
        ("ONERING_LISTEN", "127.0.0.1:0"),
    ];
    let mut before: Option<String> = None;
    for _ in 0..2 {
        let dev = Running::onering(&["dev"], &vars);
        dev.told("Ctrl-C stops.").await;
        let text = dev.stdout();
        assert!(text.contains("✅ its signature holds"), "{text}");
        assert!(
            text.contains(r#"{"id":"evt_"#) || text.contains("inv_1"),
            "{text}"
        );
        assert!(word(&text, "admin key").starts_with("sk_admin_"));
        assert!(word(&text, "consumer key").starts_with("osk_"));
        assert!(word(&text, "canary key").starts_with("osk_"));
        assert!(word(&text, "its secret").starts_with("whsec_"));
        let commands = printed_commands(&text);
        assert_eq!(commands.len(), 5, "{commands:?}");
        for command in &commands {
            let done = shell(command).await.exits(0);
            assert!(
                !done.stdout.contains("\"code\""),
                "{command}: {}",
                done.stdout
            );
            assert!(!done.stdout.is_empty(), "{command}");
        }
        let address = word(&text, "OneRing is running at")
            .trim_end_matches(',')
            .to_owned();
        let me = get(&address, "/v1/external/me", word(&text, "canary key"))
            .await
            .ok();
        assert_eq!(me["canary_enabled"], true);
        // Open in dev, so that runbooks that call it without a key work.
        assert_eq!(get(&address, "/metrics", "").await.status, 200);

        let kept = [
            "admin key",
            "consumer key",
            "canary key",
            "subscription",
            "its secret",
        ];
        let kept = kept.map(|label| word(&text, label)).join(" ");
        if let Some(before) = &before {
            assert_eq!(*before, kept, "a second start makes nothing anew");
        }
        before = Some(kept);
        dev.signal("INT");
        let done = dev.ended().await.exits(0);
        assert!(done.stdout.ends_with("Stopped.\n"), "{}", done.stdout);
        assert_eq!(done.stderr, "");
    }
    let file = std::fs::metadata(dir.path().join("onering-data/dev.json")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
}

// In production nothing is open until it is switched on; an admin is let in.
async fn serve_opens_nothing(db: Db) {
    let mut vars = variables(&db);
    vars.retain(|name, _| !name.ends_with("_ENABLED") && !name.ends_with("_CANARY_ONLY"));
    let (serve, url) = Running::serve(&pairs(&vars)).await;
    let admin = vars["ONERING_BOOTSTRAP_ADMIN_KEY"].as_str();
    get(&url, "/v1/external/me", "")
        .await
        .refused(503, "EXTERNAL_API_DISABLED");
    get(&url, "/v1/external/webhooks", "osk_x")
        .await
        .refused(503, "EXTERNAL_API_DISABLED");
    get(&url, "/metrics", "").await.refused(401, "KEY_MISSING");
    get(&url, "/v1/admin/external/keys", "")
        .await
        .refused(401, "KEY_MISSING");
    assert_eq!(
        get(&url, "/v1/external/me", admin).await.ok()["kind"],
        "ADMIN"
    );
    let event = http::Request::post(format!("{url}/v1/external/events"))
        .header("authorization", format!("Bearer {admin}"))
        .body(http_body_util::Full::from(
            r#"{"event_type":"a.b","data":1}"#,
        ));
    let answer = Http::new().send(event.unwrap()).await;
    answer.refused(503, "WEBHOOKS_DISABLED");
    serve.stop().await;
}

// K1, K3: everything of keys, by command, for people and for programs.
async fn keys_by_command(db: Db) {
    let app = TestApp::start(&db).await;
    let vars = [
        ("ONERING_URL", app.url("")),
        ("ONERING_ADMIN_KEY", app.admin.clone()),
    ];
    let vars = vars_of(&vars);
    let keys = async |args: &[&str]| {
        let mut all = vec!["keys", "--output", "json"];
        all.extend(args);
        onering(&all, &vars).await.exits(0).json()
    };
    let made = keys(&[
        "create",
        "--name",
        "acme",
        "--tier",
        "pro",
        "--scope",
        "read:rings",
        "--canary",
        "--rate-limit-per-hour",
        "7",
    ])
    .await;
    let (id, secret) = (
        made["key_id"].as_str().unwrap(),
        made["secret"].as_str().unwrap(),
    );
    let me = app.get("/v1/external/me", secret).await.ok();
    for (name, value) in [
        ("name", json!("acme")),
        ("tier", json!("pro")),
        ("scopes", json!(["read:rings"])),
        ("canary_enabled", json!(true)),
        ("rate_limit_per_hour", json!(7)),
    ] {
        assert_eq!(me[name], value);
        assert_eq!(made["key"][name], value);
    }
    assert_eq!(keys(&["get", id]).await["key_id"], id);
    assert_eq!(keys(&["disable", id]).await["status"], "DISABLED");
    app.get("/v1/external/me", secret)
        .await
        .refused(401, "KEY_DISABLED");
    assert_eq!(keys(&["enable", id]).await["status"], "ACTIVE");
    let rotated = keys(&["rotate", id, "--overlap-seconds", "0"]).await;
    app.get("/v1/external/me", secret)
        .await
        .refused(401, "KEY_INVALID");
    let secret = rotated["secret"].as_str().unwrap();
    app.get("/v1/external/me", secret).await.ok();
    assert_eq!(keys(&["revoke", id]).await["status"], "REVOKED");
    app.get("/v1/external/me", secret)
        .await
        .refused(401, "KEY_REVOKED");
    let admin = keys(&["create", "--admin", "--scope", "external:admin"]).await;
    app.get("/v1/admin/tenants", admin["secret"].as_str().unwrap())
        .await
        .ok();
    let list = keys(&["list"]).await;
    let ids: Vec<&Value> = list["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| &k["key_id"])
        .collect();
    assert_eq!(ids.len(), 3);
    assert_eq!(ids[..2], [&admin["key_id"], &made["key_id"]]);
    keys(&["delete", id]).await;
    assert_eq!(keys(&["list"]).await["keys"].as_array().unwrap().len(), 2);

    // For people: a table, and the secret once.
    let table = onering(&["keys", "list"], &vars).await.exits(0).stdout;
    assert!(table.starts_with("KEY "), "{table}");
    assert_eq!(table.lines().count(), 3);
    let text = onering(&["keys", "create", "--name", "for people"], &vars)
        .await
        .exits(0)
        .stdout;
    assert_eq!(text.matches("osk_").count(), 1, "{text}");
    app.stop().await;
}

// Exit codes: 0 done, 1 failed, 2 wrong use or configuration, 3 not reached.
async fn exit_codes(db: Db) {
    let app = TestApp::start(&db).await;
    let (url, admin) = (app.url(""), app.admin.clone());
    let good = [("ONERING_URL", url.as_str()), ("ONERING_ADMIN_KEY", &admin)];
    onering(&["keys", "list"], &good).await.exits(0);
    let refused = onering(&["keys", "get", "key_01h455vb4pex5vsknk084sn02q"], &good)
        .await
        .exits(1);
    assert!(refused.stderr.contains("NOT_FOUND"), "{refused:?}");
    assert_eq!(refused.stdout, "");
    let wrong = [
        ("ONERING_URL", url.as_str()),
        ("ONERING_ADMIN_KEY", "sk_admin_nobody"),
    ];
    let refused = onering(&["keys", "list"], &wrong).await.exits(1);
    assert!(refused.stderr.contains("KEY_INVALID"), "{refused:?}");
    for args in [
        &["keys"][..],
        &["keys", "get"],
        &["nothing"],
        &["keys", "list", "--nothing"],
    ] {
        onering(args, &good).await.exits(2);
    }
    let nobody = onering(&["keys", "list"], &[("ONERING_URL", url.as_str())])
        .await
        .exits(2);
    assert!(nobody.stderr.contains("ONERING_ADMIN_KEY"), "{nobody:?}");
    let away = [
        ("ONERING_URL", "http://127.0.0.1:9"),
        ("ONERING_ADMIN_KEY", &admin),
    ];
    let away = onering(&["keys", "list"], &away).await.exits(3);
    assert!(away.stderr.contains("127.0.0.1:9"), "{away:?}");
    app.stop().await;

    for args in [
        &["--help"][..],
        &["keys", "--help"],
        &["dev", "--help"],
        &["serve", "--help"],
    ] {
        let help = onering(args, &[]).await.exits(0).stdout;
        assert!(
            help.contains("Examples:") || help.contains("Environment"),
            "{help}"
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = onering(&["completions", shell], &[]).await.exits(0).stdout;
        assert!(script.contains("onering") && script.len() > 1000);
    }
    let version = onering(&["--version"], &[]).await.exits(0).stdout;
    assert_eq!(version, format!("onering {}\n", env!("CARGO_PKG_VERSION")));
    assert!(Path::new(ONERING).is_file());
}

// K1: an empty store's first admin key, made once.
async fn a_first_admin_key(db: Db) {
    let mut vars = variables(&db);
    vars.remove("ONERING_BOOTSTRAP_ADMIN_KEY");
    let vars = pairs(&vars);
    let made = onering(&["keys", "bootstrap"], &vars).await.exits(0);
    let admin = made.stdout.trim();
    assert!(admin.starts_with("sk_admin_"), "{made:?}");
    let again = onering(&["keys", "bootstrap"], &vars).await.exits(1);
    assert!(again.stderr.contains("already"), "{again:?}");
    let (serve, url) = Running::serve(&vars).await;
    get(&url, "/v1/admin/external/keys", admin).await.ok();
    serve.stop().await;
    let url = database_url(db.database());
    let none = [("ONERING_DATABASE_URL", url.as_str())];
    let none = onering(&["keys", "bootstrap"], &none).await.exits(2);
    assert!(none.stderr.contains("ONERING_MASTER_KEY"), "{none:?}");
}

// Z1: after `rewrap` the old master key opens nothing, the new one everything:
// keys go on, and so do subscriptions, with their secrets.
async fn another_master_key(db: Db) {
    use onering::{
        cli::sink::{Sink, SinkConfig},
        domain::signature::VerifyingKey,
    };
    let app = TestApp::start(&db).await;
    let (_, key) = app.key(json!({})).await;
    let secret = "a secret of my own";
    let sink = Sink::start(SinkConfig {
        keys: vec![VerifyingKey::parse(secret).unwrap()],
        ..SinkConfig::default()
    });
    let sink = sink.await.unwrap();
    let certificate = Authority::new().client("us").json();
    let hook = json!({"url": sink.url(), "event_types": ["*"], "secret": secret,
        "client_certificate": certificate});
    app.subscribe(&key, hook).await;
    let again = app.again();
    let vars = app.vars().clone();
    app.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("master.key").display().to_string();
    let new = onering(&["keys", "master"], &[]).await.exits(0).stdout;
    std::fs::write(&file, &new).unwrap();
    let rewrap = ["keys", "rewrap", "--new-key-file", &file];
    let done = onering(&rewrap, &pairs(&vars)).await.exits(0);
    assert!(done.stdout.contains("2 keys"), "{done:?}");
    // The old one is not good for anything any more.
    let done = onering(&rewrap, &pairs(&vars)).await.exits(1);
    assert!(done.stderr.contains("can't be opened"), "{done:?}");
    let done = onering(&["serve"], &pairs(&vars)).await.exits(2);
    assert!(done.stderr.contains("ONERING_MASTER_KEY"), "{done:?}");

    let app = again
        .unset("MASTER_KEY")
        .set("MASTER_KEY_FILE", &file)
        .start()
        .await;
    app.get("/v1/admin/external/keys", &app.admin).await.ok();
    let event = app.publish(&key, "a.b", json!({"n": 1})).await;
    let deliveries = app.deliveries_of(&key, &event).await;
    app.delivery_is(&key, deliveries[0]["id"].as_str().unwrap(), "DELIVERED")
        .await;
    assert_eq!(sink.deliveries()[0].verified, Some(true));
    let vars = app.vars().clone();
    app.stop().await;
    let done = onering(&["doctor", "secrets"], &pairs(&vars)).await;
    let done = done.exits(0);
    assert!(done.stdout.contains("1 of 1 client cert"), "{done:?}");
}

// Z1: `doctor secrets` proves that what is stored is sealed.
async fn secrets_are_sealed(db: Db) {
    let app = TestApp::start(&db).await;
    let (_, key) = app.key(json!({})).await;
    app.subscribe(
        &key,
        json!({"url": "https://example.com", "event_types": ["*"], "headers": {"x-a": "b"},
            "client_certificate": Authority::new().client("us").json()}),
    )
    .await;
    let vars = app.vars().clone();
    app.stop().await;
    let done = onering(&["doctor", "secrets"], &pairs(&vars))
        .await
        .exits(0);
    assert!(
        done.stdout.contains("1 of 1 subscription secrets"),
        "{done:?}"
    );
    assert!(
        done.stdout.contains("1 of 1 subscriptions' headers"),
        "{done:?}"
    );
    assert!(
        done.stdout
            .contains("1 of 1 client certificates' private keys"),
        "{done:?}"
    );
    let other = onering(&["keys", "master"], &[]).await.stdout;
    let mut wrong = vars.clone();
    wrong.insert("ONERING_MASTER_KEY".into(), other.trim().to_owned());
    let done = onering(&["doctor", "secrets"], &pairs(&wrong)).await;
    assert_ne!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("can't be opened"), "{done:?}");
    // Headers that lie there as they are, are found.
    let clear = r#"update subscriptions
        set doc = replace(doc, '"headers":[]', '"headers":[["x-a","b"]]')"#;
    db.tamper(clear).await;
    let done = onering(&["doctor", "secrets"], &pairs(&vars))
        .await
        .exits(1);
    assert!(done.stdout.contains("0 of 1 subscriptions'"), "{done:?}");
    // So is a private key.
    let plain = match db.engine() {
        crate::support::store::Engine::Sqlite => "cast('plain' as blob)",
        crate::support::store::Engine::Postgres => "'plain'::bytea",
    };
    db.tamper(&format!(
        "update subscriptions set client_certificate = {plain}"
    ))
    .await;
    let done = onering(&["doctor", "secrets"], &pairs(&vars))
        .await
        .exits(1);
    assert!(done.stdout.contains("0 of 1 client cert"), "{done:?}");
    // So is a secret that lies there as it is.
    if db.engine() == crate::support::store::Engine::Sqlite {
        db.tamper("update subscriptions set secret = cast('whsec_plain' as blob)")
            .await;
    } else {
        db.tamper("update subscriptions set secret = 'whsec_plain'::bytea")
            .await;
    }
    let done = onering(&["doctor", "secrets"], &pairs(&vars))
        .await
        .exits(1);
    assert!(
        done.stdout.contains("0 of 1 subscription secrets"),
        "{done:?}"
    );
}
