//! API keys: their text here, their fields, their life and their scopes in files
//! of their own.

use base64::Engine as _;
use onering::proto::v1;
use serde_json::json;

use crate::support::{
    app::{Answer, TestApp, reason},
    store::Db,
};

#[path = "keys/fields.rs"]
mod fields;
#[path = "keys/life.rs"]
mod life;
#[path = "keys/scopes.rs"]
mod scopes;

contract![
    a_key_is_made_and_used,
    a_secret_is_shown_once,
    nothing_stored_opens_a_door,
    headers_are_stored_sealed,
    a_typo_is_malformed,
    a_bootstrap_key_keeps_its_text,
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
pub(crate) async fn dump(db: &Db) -> Vec<u8> {
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
