//! What a key has: its fields, their defaults and bounds, and lists of keys.

use onering::proto::v1;
use serde_json::json;

use super::{KEYS, me, of};
use crate::support::{
    app::{TestApp, fields},
    store::Db,
};

contract![
    a_new_key_has_defaults,
    every_field_is_kept,
    bad_fields_are_named,
    a_canary_key_has_ten_calls,
    keys_are_listed_in_pages,
    an_update_changes_what_it_names,
];

// K2: what is not said has a default.
async fn a_new_key_has_defaults(db: Db) {
    let app = TestApp::start(&db).await;
    let made = app.post(KEYS, &app.admin, json!({})).await.ok();
    let key = &made["key"];
    let expected = json!({
        "key_id": made["key_id"], "tenant": "default", "name": "", "kind": "CONSUMER",
        "tier": "free", "scopes": [], "canary_enabled": false, "metadata": {},
        "status": "ACTIVE", "effective_rate_limit_per_hour": 100,
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
