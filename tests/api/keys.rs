//! API keys: their text, their fields, their life.

use base64::Engine as _;
use onering::proto::v1;
use serde_json::{Value, json};

use crate::support::{
    app::{Answer, TestApp, eventually, fields, reason},
    store::Db,
};

contract![
    a_key_is_made_and_used,
    a_secret_is_shown_once,
    nothing_stored_opens_a_door,
    headers_are_stored_sealed,
    a_typo_is_malformed,
    a_bootstrap_key_keeps_its_text,
    a_new_key_has_defaults,
    every_field_is_kept,
    bad_fields_are_named,
    a_canary_key_has_ten_calls,
    an_expired_key_says_so,
    uses_are_shown_at_once,
    keys_are_listed_in_pages,
    an_update_changes_what_it_names,
    a_disabled_key_is_refused_until_enabled,
    a_rotation_overlaps,
    a_rotation_without_overlap,
    a_revoked_key_never_comes_back,
    a_deleted_key_is_gone,
    both_faces_decide_alike,
    own_scopes,
    admin_scopes,
];

const KEYS: &str = "/v1/admin/external/keys";
const ME: &str = "/v1/external/me";

fn of(key_id: &str) -> String {
    format!("{KEYS}/{key_id}")
}

async fn me(app: &TestApp, key: &str) -> Answer {
    app.get(ME, key).await
}

/// The text with its last character exchanged.
fn mistyped(key: &str) -> String {
    let (rest, last) = key.split_at(key.len() - 1);
    format!("{rest}{}", if last == "x" { "y" } else { "x" })
}

// K1, K11: what `create` shows is what a caller sends, over REST and gRPC.
async fn a_key_is_made_and_used(db: Db) {
    let app = TestApp::start(&db).await;
    let made = app.post(KEYS, &app.admin, json!({"name": "acme"})).await;
    assert_eq!(made.status, 201);
    let made = made.ok();
    let secret = made["secret"].as_str().unwrap();
    let id = made["key_id"].as_str().unwrap();
    let part = id.strip_prefix("key_").unwrap();
    assert!(secret.starts_with(&format!("osk_{part}_")), "{secret}");
    assert_eq!(secret.len(), "osk_".len() + 26 + 1 + 32 + 6);
    assert_eq!(made["key"]["key_id"], id);

    assert_eq!(me(&app, secret).await.ok()["key_id"], id);
    let mut grpc = app.grpc(secret);
    let caller = grpc.keys.get_caller(v1::GetCallerRequest {}).await.unwrap();
    assert_eq!(caller.into_inner().key_id, id);

    let admin = json!({"kind": "ADMIN", "scopes": ["external:admin"]});
    let (id, admin) = app.key(admin).await;
    let part = id.strip_prefix("key_").unwrap();
    assert!(admin.starts_with(&format!("sk_admin_{part}_")));
    app.get(KEYS, &admin).await.ok();
    app.stop().await;
}

// K1: the secret is in the answers to create and rotate, and in no other one.
async fn a_secret_is_shown_once(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, first) = app.key(json!({"name": "acme"})).await;
    let path = of(&id);
    let second = app
        .post(&format!("{path}/rotate"), &app.admin, json!({}))
        .await
        .ok();
    let second = second["secret"].as_str().unwrap();
    assert_ne!(first, second);
    for answer in [
        app.get(&path, &app.admin).await,
        app.get(KEYS, &app.admin).await,
        app.patch(&path, &app.admin, json!({"name": "x"})).await,
        app.patch(&format!("{path}/disable"), &app.admin, json!({}))
            .await,
        app.patch(&format!("{path}/enable"), &app.admin, json!({}))
            .await,
        app.get(ME, second).await,
        app.post(&format!("{path}/revoke"), &app.admin, json!({}))
            .await,
    ] {
        assert_eq!(answer.status, 200);
        for text in [first.as_str(), second] {
            let secret = &text[text.len() - 38..];
            assert!(!answer.text().contains(secret), "{}", answer.text());
        }
    }
    app.stop().await;
}

// K1, Z1: everything stored, as text and as bytes, has no key, no secret and no
// pepper in it that works.
async fn nothing_stored_opens_a_door(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, first) = app.key(json!({"name": "dumped-key"})).await;
    let (_, internal) = app
        .key(json!({"kind": "ADMIN", "scopes": ["keys:verify"]}))
        .await;
    let rotated = app
        .post(&format!("{}/rotate", of(&id)), &app.admin, json!({}))
        .await
        .ok();
    let second = rotated["secret"].as_str().unwrap();
    let own = "a secret of my own";
    let subscription = app
        .subscribe(
            second,
            json!({"url": "https://example.com/h", "event_types": ["*"]}),
        )
        .await;
    app.subscribe(
        second,
        json!({"url": "https://example.com/h", "event_types": ["*"], "secret": own}),
    )
    .await;
    me(&app, second).await.ok();
    app.get(KEYS, &app.admin).await.ok();
    let admin = app.admin.clone();
    app.stop().await;

    let dump = dump(&db).await;
    let has = |needle: &[u8]| dump.windows(needle.len()).any(|w| w == needle);
    assert!(has(b"dumped-key"), "the dump has what is stored");
    let secrets = [
        &first[first.len() - 38..first.len() - 6],
        &second[second.len() - 38..second.len() - 6],
        &internal[internal.len() - 38..internal.len() - 6],
        &admin["sk_admin_".len()..],
        &subscription.secret["whsec_".len()..],
        own,
    ];
    for secret in secrets {
        assert!(!has(secret.as_bytes()), "{secret} is stored");
        assert!(!has(hex::encode(secret).as_bytes()), "{secret} is stored");
    }
    let key = base64::engine::general_purpose::STANDARD
        .decode(&subscription.secret["whsec_".len()..])
        .unwrap();
    assert!(!has(&key));
    assert!(!has(hex::encode(&key).as_bytes()));
}

// Z1: a subscription's headers are sent, and shown to their owner, and are
// nowhere in what is stored, before a change and after it.
async fn headers_are_stored_sealed(db: Db) {
    use base64::Engine as _;
    use onering::cli::sink::{Sink, SinkConfig};
    let app = TestApp::start(&db).await;
    let (_, key) = app.key(json!({})).await;
    let sink = Sink::start(SinkConfig::default()).await.unwrap();
    let values = ["Bearer the-first-token-of-all", "Bearer the-second-token"];
    let hook = json!({"url": sink.url(), "event_types": ["*"], "description": "dumped-hook",
        "headers": {"Authorization": values[0]}});
    let made = app.subscribe(&key, hook).await;
    let path = format!("/v1/external/webhooks/{}", made.id);
    for (n, value) in values.into_iter().enumerate() {
        let headers = json!({"headers": {"Authorization": value}});
        let changed = app.patch(&path, &key, headers.clone()).await.ok();
        assert_eq!(changed["headers"], headers["headers"]);
        // The same ones again are no change.
        let again = app.patch(&path, &key, headers.clone()).await.ok();
        assert_eq!(again, changed);
        let note = json!({"description": format!("dumped-hook-{n}")});
        app.patch(&path, &key, note).await.ok();
        let shown = app.get(&path, &key).await.ok();
        assert_eq!(shown["headers"], headers["headers"]);
        let event = app.publish(&key, "a.b", json!({"n": n})).await;
        let deliveries = app.deliveries_of(&key, &event).await;
        app.delivery_is(&key, deliveries[0]["id"].as_str().unwrap(), "DELIVERED")
            .await;
        assert_eq!(sink.deliveries()[n].headers["authorization"], value);
    }
    app.stop().await;

    let dump = dump(&db).await;
    let has = |needle: &[u8]| dump.windows(needle.len()).any(|w| w == needle);
    assert!(has(b"dumped-hook-1"), "the dump has what is stored");
    for value in values {
        let token = &value["Bearer ".len()..];
        assert!(!has(token.as_bytes()), "{token} is stored");
        assert!(!has(hex::encode(token).as_bytes()), "{token} is stored");
        // In base64 wherever in a longer text it begins.
        for at in 0..3 {
            let text = &token.as_bytes()[at..];
            let text = &text[..text.len() / 3 * 3];
            let text = base64::engine::general_purpose::STANDARD.encode(text);
            assert!(!has(text.as_bytes()), "{token} is stored");
        }
    }
}

/// Every row of every table (bytes in hexadecimal), or the whole file with its log.
async fn dump(db: &Db) -> Vec<u8> {
    use onering::store::Database;
    match db.database() {
        Database::Sqlite(path) => {
            let mut bytes = Vec::new();
            for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
                bytes.extend(std::fs::read(entry.unwrap().path()).unwrap());
            }
            bytes
        }
        Database::Postgres(_) => {
            let tables = "select format('%I.%I', schemaname, tablename) from pg_tables \
                          where schemaname not in ('pg_catalog', 'information_schema')";
            let mut bytes = Vec::new();
            let tables = db.texts(tables).await;
            assert!(tables.len() > 5, "{tables:?}");
            for table in tables {
                let rows = format!("select row_to_json(t)::text from {table} t");
                for row in db.texts(&rows).await {
                    bytes.extend(row.into_bytes());
                }
            }
            bytes
        }
    }
}

// K1: one wrong character is told apart from a wrong key.
async fn a_typo_is_malformed(db: Db) {
    let app = TestApp::start(&db).await;
    let (_, key) = app.key(json!({})).await;
    let (_, admin) = app
        .key(json!({"kind": "ADMIN", "scopes": ["external:admin"]}))
        .await;
    for text in [
        mistyped(&key),
        mistyped(&admin),
        key[..key.len() - 1].to_owned(),
        key.replacen("osk_", "osk_x", 1),
        "nonsense".to_owned(),
        "osk_".to_owned(),
    ] {
        me(&app, &text).await.refused(401, "KEY_MALFORMED");
        let mut keys = app.grpc(&text).keys;
        let status = keys.get_caller(v1::GetCallerRequest {}).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert_eq!(reason(&status), "KEY_MALFORMED");
    }
    app.stop().await;
}

// K1: a bootstrap key is good as the text that it was given, and only the whole
// of it; one of the usual form too.
async fn a_bootstrap_key_keeps_its_text(db: Db) {
    let text = "sk_admin_for-the-deployment-of-2031";
    let app = TestApp::builder(&db).set("BOOTSTRAP_ADMIN_KEY", text);
    let app = app.start().await;
    app.get(KEYS, text).await.ok();
    let cut = &text[..text.len() - 1];
    app.get(KEYS, cut).await.refused(401, "KEY_INVALID");
    let list = app.get(KEYS, text).await.ok();
    let id = list["keys"][0]["key_id"].as_str().unwrap().to_owned();

    // The first store keeps its first key, whatever the next start says.
    let again = app
        .again()
        .set("BOOTSTRAP_ADMIN_KEY", "sk_admin_another-one-of-the-kind");
    app.stop().await;
    let app = again.start().await;
    app.get(KEYS, text).await.ok();
    let other = app.admin.clone();
    app.get(KEYS, &other).await.refused(401, "KEY_INVALID");

    // A rotation makes a key of the usual form of it.
    let rotate = format!("{}/rotate", of(&id));
    app.post(&rotate, text, json!({"overlap_seconds": 60}))
        .await
        .refused(409, "FAILED_PRECONDITION");
    let made = app.post(&rotate, text, json!({})).await.ok();
    app.get(KEYS, made["secret"].as_str().unwrap()).await.ok();
    app.get(KEYS, text).await.refused(401, "KEY_INVALID");
    app.stop().await;
}

// K2: what is not said has a default.
async fn a_new_key_has_defaults(db: Db) {
    let app = TestApp::start(&db).await;
    let made = app.post(KEYS, &app.admin, json!({})).await.ok();
    let key = &made["key"];
    let expected = json!({
        "key_id": made["key_id"], "tenant": "default", "name": "", "kind": "CONSUMER",
        "tier": "free", "scopes": [], "canary_enabled": false, "metadata": {},
        "allowed_cidrs": [], "status": "ACTIVE", "effective_rate_limit_per_hour": 100,
        "create_time": key["create_time"], "update_time": key["update_time"],
    });
    assert_eq!(*key, expected);
    let read = app
        .get(&of(made["key_id"].as_str().unwrap()), &app.admin)
        .await;
    assert_eq!(read.ok(), expected);

    let made = app
        .post(KEYS, &app.admin, json!({"kind": "ADMIN"}))
        .await
        .ok();
    assert_eq!(made["key"]["tenant"], "");
    assert_eq!(made["key"]["tier"], "");
    assert!(made["key"].get("effective_rate_limit_per_hour").is_none());
    app.stop().await;
}

// K2: every field is read back as it was given.
async fn every_field_is_kept(db: Db) {
    let app = TestApp::start(&db).await;
    app.tenant("acme").await;
    let given = json!({
        "tenant": "acme", "name": "Müller 送り状", "kind": "CONSUMER", "tier": "enterprise",
        "scopes": ["read:rings", "read:drafts"], "canary_enabled": false,
        "rate_limit_per_hour": 1_000_000_000, "expire_time": "2199-12-31T23:59:59Z",
        "metadata": {"team": "billing", "ü": "ö"},
    });
    let made = app.post(KEYS, &app.admin, given.clone()).await.ok();
    let key = app
        .get(&of(made["key_id"].as_str().unwrap()), &app.admin)
        .await
        .ok();
    assert_eq!(key, made["key"]);
    for (name, value) in given.as_object().unwrap() {
        assert_eq!(key[name], *value, "{name}");
    }
    assert_eq!(key["effective_rate_limit_per_hour"], 1_000_000_000);
    let caller = me(&app, made["secret"].as_str().unwrap()).await.ok();
    for name in ["tenant", "name", "kind", "tier", "scopes", "expire_time"] {
        assert_eq!(caller[name], given[name], "{name}");
    }
    assert_eq!(caller["rate_limit_per_hour"], 1_000_000_000);

    // The tiers' numbers, and the old name of canary_enabled.
    for (tier, limit) in [("free", 100), ("pro", 1000), ("enterprise", 10_000)] {
        let made = app.post(KEYS, &app.admin, json!({"tier": tier})).await.ok();
        assert_eq!(made["key"]["effective_rate_limit_per_hour"], limit);
    }
    let made = app.post(KEYS, &app.admin, json!({"canary": true})).await;
    assert_eq!(made.ok()["key"]["canary_enabled"], true);
    app.stop().await;
}

// K2, E2: a field out of its bounds is named, over both faces.
async fn bad_fields_are_named(db: Db) {
    let app = TestApp::start(&db).await;
    for (body, field) in [
        (json!({"name": "x".repeat(201)}), "name"),
        (json!({"name": "a\nb"}), "name"),
        (json!({"tier": "gold"}), "tier"),
        (json!({"rate_limit_per_hour": 0}), "rate_limit_per_hour"),
        (json!({"rate_limit_per_hour": -1}), "rate_limit_per_hour"),
        (
            json!({"rate_limit_per_hour": 1_000_000_001}),
            "rate_limit_per_hour",
        ),
        (json!({"scopes": ["rings"]}), "scopes[0]"),
        (json!({"scopes": ["read:rings", "read:rings"]}), "scopes[1]"),
        (json!({"scopes": vec!["read:rings"; 65]}), "scopes"),
        (
            json!({"expire_time": "2001-01-01T00:00:00Z"}),
            "expire_time",
        ),
        (json!({"expire_time": "tomorrow"}), "expire_time"),
        (json!({"metadata": {"": "x"}}), "metadata[\"\"]"),
        (
            json!({"metadata": {"x": "y".repeat(513)}}),
            "metadata[\"x\"]",
        ),
        (json!({"canary": true, "canary_enabled": false}), "canary"),
        (json!({"kind": "ADMIN", "tier": "pro"}), "tier"),
        (
            json!({"kind": "ADMIN", "canary_enabled": true}),
            "canary_enabled",
        ),
        (
            json!({"kind": "ADMIN", "rate_limit_per_hour": 5}),
            "rate_limit_per_hour",
        ),
    ] {
        let answer = app.post(KEYS, &app.admin, body).await;
        let problem = answer.refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    let mut keys = app.grpc(&app.admin).keys;
    let request = v1::CreateKeyRequest {
        tier: "gold".into(),
        rate_limit_per_hour: Some(0),
        kind: 9,
        ..Default::default()
    };
    let status = keys.create_key(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert_eq!(fields(&status), ["kind", "tier", "rate_limit_per_hour"]);
    app.post(KEYS, &app.admin, json!({"tenant": "nobody"}))
        .await
        .refused(404, "NOT_FOUND");
    app.stop().await;
}

// K2, K6: a canary key never has more than 10 calls an hour.
async fn a_canary_key_has_ten_calls(db: Db) {
    let app = TestApp::start(&db).await;
    for (body, limit) in [
        (json!({"canary_enabled": true, "tier": "pro"}), 10),
        (
            json!({"canary_enabled": true, "rate_limit_per_hour": 5000}),
            10,
        ),
        (json!({"canary_enabled": true, "rate_limit_per_hour": 3}), 3),
        (json!({"rate_limit_per_hour": 5000}), 5000),
    ] {
        let made = app.post(KEYS, &app.admin, body).await.ok();
        assert_eq!(made["key"]["effective_rate_limit_per_hour"], limit);
    }
    app.stop().await;
}

// K2: an expiry that has passed is told to who proves the secret; a later one
// makes the key work again.
async fn an_expired_key_says_so(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, key) = app.key(json!({})).await;
    me(&app, &key).await.ok();
    // Soon, and then waited for: there is no way to make a key that is over.
    let now = onering::domain::id::wall_clock();
    let soon = onering::domain::event::rfc3339(now + 1_500_000);
    app.patch(&of(&id), &app.admin, json!({"expire_time": soon}))
        .await
        .ok();
    eventually("the key expires", || async {
        (me(&app, &key).await.status == 401).then_some(())
    })
    .await;
    me(&app, &key).await.refused(401, "KEY_EXPIRED");
    let read = app.get(&of(&id), &app.admin).await.ok();
    assert_eq!(read["status"], "EXPIRED");
    app.patch(&of(&id), &app.admin, json!({"expire_time": null}))
        .await
        .ok();
    me(&app, &key).await.ok();
    app.stop().await;
}

// K2: when a key was last used shows at once, and survives the node.
async fn uses_are_shown_at_once(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, key) = app.key(json!({})).await;
    let read = app.get(&of(&id), &app.admin).await.ok();
    assert!(read.get("last_used_time").is_none());
    me(&app, &key).await.ok();
    let used = app.get(&of(&id), &app.admin).await.ok();
    let time = used["last_used_time"].as_str().unwrap().to_owned();
    // Not a change of the key itself.
    assert_eq!(used["update_time"], read["update_time"]);
    let again = app.again();
    app.stop().await;
    let app = again.start().await;
    let read = app.get(&of(&id), &app.admin).await.ok();
    assert_eq!(read["last_used_time"], time);
    app.stop().await;
}

// K3: newest first, in pages that neither repeat nor leave out.
async fn keys_are_listed_in_pages(db: Db) {
    let app = TestApp::start(&db).await;
    let acme = app.tenant("acme").await;
    let mut made = vec![acme.key_id.clone()];
    for i in 0..6 {
        let key = json!({"tenant": "acme", "name": format!("key {i}")});
        made.push(app.key(key).await.0);
    }
    made.reverse();
    let (mut found, mut token) = (Vec::new(), String::new());
    let mut pages = 0;
    loop {
        let path = format!("{KEYS}?tenant=acme&page_size=3&page_token={token}");
        let page = app.get(&path, &app.admin).await.ok();
        let keys = page["keys"].as_array().unwrap();
        assert!(keys.len() <= 3);
        found.extend(
            keys.iter()
                .map(|k| k["key_id"].as_str().unwrap().to_owned()),
        );
        pages += 1;
        page["next_page_token"]
            .as_str()
            .unwrap()
            .clone_into(&mut token);
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, 3);
    assert_eq!(found, made);
    // Without a tenant: all of them.
    let all = app.get(KEYS, &app.admin).await.ok();
    assert_eq!(all["keys"].as_array().unwrap().len(), 8);
    for query in ["page_size=-1", "page_token=x", "page_size=x", "pagesize=1"] {
        app.get(&format!("{KEYS}?{query}"), &app.admin)
            .await
            .refused(400, "INVALID_ARGUMENT");
    }
    app.stop().await;
}

// K3: an update changes the fields that it names, and no other.
async fn an_update_changes_what_it_names(db: Db) {
    let app = TestApp::start(&db).await;
    let given = json!({"name": "acme", "tier": "pro", "scopes": ["read:rings"],
        "rate_limit_per_hour": 7, "metadata": {"a": "b"}});
    let (id, key) = app.key(given).await;
    let path = of(&id);
    let before = app.get(&path, &app.admin).await.ok();
    let changed = app
        .patch(&path, &app.admin, json!({"tier": "enterprise"}))
        .await
        .ok();
    let mut expected = before.clone();
    expected["tier"] = json!("enterprise");
    expected["update_time"] = changed["update_time"].clone();
    assert_eq!(changed, expected);
    assert_ne!(changed["update_time"], before["update_time"]);

    // Named and empty: cleared.
    let cleared = json!({"rate_limit_per_hour": null, "metadata": {}, "scopes": []});
    let cleared = app.patch(&path, &app.admin, cleared).await.ok();
    assert_eq!(cleared["effective_rate_limit_per_hour"], 10_000);
    assert_eq!(cleared["metadata"], json!({}));
    assert_eq!(cleared["scopes"], json!([]));
    assert_eq!(cleared["name"], "acme");

    // The whole key, as it was read, can be written back.
    let mut whole = app.get(&path, &app.admin).await.ok();
    whole["canary_enabled"] = json!(true);
    let back = app.patch(&path, &app.admin, whole).await.ok();
    assert_eq!(back["canary_enabled"], true);
    assert_eq!(me(&app, &key).await.ok()["rate_limit_per_hour"], 10);

    // Over gRPC the mask says what.
    let mut keys = app.grpc(&app.admin).keys;
    let update = |paths: &[&str]| v1::UpdateKeyRequest {
        key_id: id.clone(),
        key: Some(v1::Key {
            name: "other".into(),
            tier: "free".into(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: paths.iter().map(|p| (*p).to_owned()).collect(),
        }),
    };
    let key = keys.update_key(update(&["name"])).await.unwrap();
    let key = key.into_inner().key.unwrap();
    assert_eq!(
        (key.name.as_str(), key.tier.as_str()),
        ("other", "enterprise")
    );
    let status = keys.update_key(update(&["nam"])).await.unwrap_err();
    assert_eq!(fields(&status), ["update_mask"]);

    for (body, field) in [
        (json!({"status": "DISABLED"}), "status"),
        (json!({"tenant": "acme"}), "tenant"),
        (json!({"tier": "gold"}), "tier"),
        (json!({"teir": "pro"}), "teir"),
    ] {
        let problem = app.patch(&path, &app.admin, body).await;
        let problem = problem.refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    app.stop().await;
}

// K3: a key's switch.
async fn a_disabled_key_is_refused_until_enabled(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, key) = app.key(json!({})).await;
    let switch = async |verb: &str| {
        let path = format!("{}/{verb}", of(&id));
        app.patch(&path, &app.admin, json!({})).await.ok()
    };
    for _ in 0..2 {
        assert_eq!(switch("disable").await["status"], "DISABLED");
        me(&app, &key).await.refused(401, "KEY_DISABLED");
    }
    for _ in 0..2 {
        assert_eq!(switch("enable").await["status"], "ACTIVE");
        me(&app, &key).await.ok();
    }
    app.stop().await;
}

// K3: the old secret stays good for the overlap, and `get` shows when the new
// one was first used.
async fn a_rotation_overlaps(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, first) = app.key(json!({})).await;
    let rotate = format!("{}/rotate", of(&id));
    let answer = app
        .post(&rotate, &app.admin, json!({"overlap_seconds": 3600}))
        .await
        .ok();
    assert_eq!(answer["key_id"], id);
    let second = answer["secret"].as_str().unwrap().to_owned();
    let key = async || app.get(&of(&id), &app.admin).await.ok();
    me(&app, &first).await.ok();
    assert!(key().await["previous_secret_expire_time"].is_string());
    assert!(key().await.get("new_secret_first_used_time").is_none());
    me(&app, &second).await.ok();
    let used = key().await["new_secret_first_used_time"].clone();
    assert!(used.is_string());
    me(&app, &first).await.ok();
    me(&app, &second).await.ok();
    assert_eq!(key().await["new_secret_first_used_time"], used);

    // Of three secrets the last two are good, and the new one is unused again.
    let answer = app.post(&rotate, &app.admin, json!({})).await.ok();
    let third = answer["secret"].as_str().unwrap();
    assert!(key().await.get("new_secret_first_used_time").is_none());
    me(&app, &first).await.refused(401, "KEY_INVALID");
    me(&app, &second).await.ok();
    me(&app, third).await.ok();
    for seconds in [-1, 2_592_001] {
        let body = json!({"overlap_seconds": seconds});
        let problem = app.post(&rotate, &app.admin, body).await;
        let problem = problem.refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], "overlap_seconds");
    }
    app.stop().await;
}

// K3: an overlap ends: at once where it is 0, else when its time is over.
async fn a_rotation_without_overlap(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, first) = app.key(json!({})).await;
    let rotate = format!("{}/rotate", of(&id));
    let answer = app
        .post(&rotate, &app.admin, json!({"overlap_seconds": 0}))
        .await
        .ok();
    me(&app, &first).await.refused(401, "KEY_INVALID");
    let second = answer["secret"].as_str().unwrap();
    me(&app, second).await.ok();
    let answer = app
        .post(&rotate, &app.admin, json!({"overlap_seconds": 1}))
        .await
        .ok();
    eventually("the overlap ends", || async {
        (me(&app, second).await.status == 401).then_some(())
    })
    .await;
    me(&app, answer["secret"].as_str().unwrap()).await.ok();
    app.stop().await;
}

// K3: revoked is final.
async fn a_revoked_key_never_comes_back(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, key) = app.key(json!({})).await;
    let path = of(&id);
    let revoke = format!("{path}/revoke");
    for _ in 0..2 {
        let revoked = app.post(&revoke, &app.admin, json!({})).await.ok();
        assert_eq!(revoked["status"], "REVOKED");
        me(&app, &key).await.refused(401, "KEY_REVOKED");
    }
    for answer in [
        app.patch(&format!("{path}/enable"), &app.admin, json!({}))
            .await,
        app.patch(&format!("{path}/disable"), &app.admin, json!({}))
            .await,
        app.patch(&path, &app.admin, json!({"name": "x"})).await,
        app.post(&format!("{path}/rotate"), &app.admin, json!({}))
            .await,
    ] {
        answer.refused(409, "FAILED_PRECONDITION");
    }
    me(&app, &key).await.refused(401, "KEY_REVOKED");
    let again = app.again();
    app.stop().await;
    let app = again.start().await;
    me(&app, &key).await.refused(401, "KEY_REVOKED");
    app.stop().await;
}

// K3: a deleted key is gone with its record.
async fn a_deleted_key_is_gone(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, key) = app.key(json!({})).await;
    me(&app, &key).await.ok();
    let answer = app.delete(&of(&id), &app.admin).await;
    assert_eq!((answer.status, answer.text()), (200, "{}"));
    me(&app, &key).await.refused(401, "KEY_INVALID");
    app.get(&of(&id), &app.admin)
        .await
        .refused(404, "NOT_FOUND");
    app.delete(&of(&id), &app.admin)
        .await
        .refused(404, "NOT_FOUND");
    app.stop().await;
}

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
