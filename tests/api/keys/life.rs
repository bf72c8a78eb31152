//! A key from its expiry to its end: use, switch, rotation, revocation, deletion.

use serde_json::json;

use super::{me, of};
use crate::support::{
    app::{TestApp, eventually},
    store::Db,
};

contract![
    an_expired_key_says_so,
    uses_are_shown_at_once,
    a_disabled_key_is_refused_until_enabled,
    a_rotation_overlaps,
    a_rotation_without_overlap,
    a_revoked_key_never_comes_back,
    a_deleted_key_is_gone,
];

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
