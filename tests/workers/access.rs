//! Who may open which stream.

use onering::proto::v1::{
    SubscriptionKind,
    worker_message::{Extend, Filter, Message, Open},
};
use serde_json::json;

use super::client::{Worker, open};
use crate::support::{
    app::{TestApp, reason},
    store::Db,
};

contract![
    a_consumer_takes_its_own_streams_alone,
    keys_need_their_scope,
    a_key_that_is_revoked_ends_its_stream,
    a_revoked_keys_streams_do_no_more,
    streams_have_rules_of_their_own,
    what_is_no_message_ends_the_stream,
    filters_choose,
];

fn filtered(filter: Filter) -> Open {
    Open {
        filter: Some(filter),
        ..open("w", 10)
    }
}

fn kinds(kinds: &[SubscriptionKind]) -> Filter {
    Filter {
        kinds: kinds.iter().map(|k| i32::from(*k)).collect(),
        ..Filter::default()
    }
}

// W6, T1: a partner takes what goes to its own tenant's streams; what goes to
// others, and what is to be POSTed, is not for it.
async fn a_consumer_takes_its_own_streams_alone(db: Db) {
    let app = TestApp::start(&db).await;
    let acme = app.tenant("acme").await;
    let own = app.stream_of(&acme.key, json!({})).await;
    let others = app.stream(json!({})).await;
    let mut worker = Worker::open(&app, &acme.key, open("w", 10)).await.unwrap();
    app.events("a.b", 2).await;
    let event = app.publish(&acme.key, "a.b", json!({})).await;
    let d = worker.delivery().await;
    assert_eq!((&d.event_id, &d.subscription_id), (&event, &own.id));
    assert_eq!(d.tenant_id, acme.id);
    assert!(worker.everything_until_now().await.is_empty());
    assert_eq!(worker.ack(&[&d]).await.ok.len(), 1);

    let named = |id: &str| Filter {
        subscription_ids: vec![id.to_owned()],
        ..Filter::default()
    };
    for (filter, code) in [
        (named(&others.id), "NOT_FOUND"),
        (named("sub_x"), "INVALID_ARGUMENT"),
        (kinds(&[SubscriptionKind::Webhook]), "SCOPE_MISSING"),
        (kinds(&[SubscriptionKind::Unspecified]), "INVALID_ARGUMENT"),
        (
            Filter {
                tenant: "default".to_owned(),
                ..Filter::default()
            },
            "TENANT_MISMATCH",
        ),
    ] {
        let refused = Worker::open(&app, &acme.key, filtered(filter)).await;
        assert_eq!(reason(&refused.err().unwrap()), code);
    }
    app.stop().await;
}

// W1, K13: `deliveries:work` for an admin key, `webhooks:read` for a consumer's.
async fn keys_need_their_scope(db: Db) {
    let app = TestApp::start(&db).await;
    let mut keys = Vec::new();
    for (body, opens) in [
        (
            json!({"kind": "ADMIN", "scopes": ["deliveries:work"]}),
            true,
        ),
        (json!({"kind": "ADMIN", "scopes": ["webhooks:read"]}), false),
        (json!({"scopes": ["webhooks:read"]}), true),
        (json!({"scopes": ["webhooks:write"]}), false),
        (json!({}), true),
    ] {
        keys.push((app.key(body).await.1, opens));
    }
    for (key, opens) in keys {
        match Worker::open(&app, &key, open("w", 1)).await {
            Ok(_) => assert!(opens),
            Err(e) => assert_eq!((reason(&e).as_str(), opens), ("SCOPE_MISSING", false)),
        }
    }
    let refused = Worker::open(&app, "", open("w", 1)).await.err().unwrap();
    assert_eq!(reason(&refused), "KEY_MISSING");
    app.stop().await;
}

// K3, W1: a stream lives no longer than its key, and what it had is free.
async fn a_key_that_is_revoked_ends_its_stream(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let (id, key) = app
        .key(json!({"kind": "ADMIN", "scopes": ["deliveries:work"]}))
        .await;
    let mut worker = Worker::open(&app, &key, open("w", 1)).await.unwrap();
    app.events("a.b", 1).await;
    let held = worker.delivery().await;
    let path = format!("/v1/admin/external/keys/{id}/revoke");
    app.post(&path, &app.admin, json!({})).await.ok();
    let ended = worker.ended().await.unwrap_err();
    assert_eq!(reason(&ended), "KEY_REVOKED");
    let mut other = Worker::start(&app, "other", 1).await;
    assert_eq!(other.delivery().await.delivery_id, held.delivery_id);
    app.stop().await;
}

// K5: once a revocation is answered its node's streams are over, at their next word
// and not with their next look at the key.
async fn a_revoked_keys_streams_do_no_more(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, key) = app
        .key(json!({"kind": "ADMIN", "scopes": ["deliveries:work"]}))
        .await;
    let mut workers = Vec::new();
    for n in 0..8 {
        let open = open(&format!("w{n}"), 1);
        workers.push(Worker::open(&app, &key, open).await.unwrap());
    }
    let path = format!("/v1/admin/external/keys/{id}/revoke");
    app.post(&path, &app.admin, json!({})).await.ok();
    for worker in &mut workers {
        let mut answered = 0;
        let ended = loop {
            worker.say(Message::Extend(Extend {
                seconds: 1,
                ..Extend::default()
            }));
            match worker.next().await {
                Ok(Some(_)) if answered < 20 => answered += 1,
                Err(e) => break e,
                other => panic!("not over: {other:?}"),
            }
        };
        assert_eq!(reason(&ended), "KEY_REVOKED");
    }
    app.stop().await;
}

// W6: a stream's subscription has no URL, and stays what it is.
async fn streams_have_rules_of_their_own(db: Db) {
    let app = TestApp::start(&db).await;
    let key = &app.admin;
    for (body, field) in [
        (
            json!({"kind": "STREAM", "url": "https://example.com/"}),
            "url",
        ),
        (json!({"kind": "WEBHOOK"}), "url"),
        (json!({"kind": 7, "url": "https://example.com/"}), "kind"),
        (
            json!({"kind": "STREAM", "expire_after_seconds": 59}),
            "expire_after_seconds",
        ),
        (
            json!({"url": "https://example.com/", "expire_after_seconds": 60}),
            "expire_after_seconds",
        ),
        (
            json!({"kind": "STREAM", "client_certificate": {"certificate_chain": "x"}}),
            "client_certificate",
        ),
    ] {
        let problem = app
            .post("/v1/external/webhooks", key, body.clone())
            .await
            .refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], field, "{body}: {problem}");
    }
    let sub = app.stream(json!({"description": "x"})).await;
    let path = format!("/v1/external/webhooks/{}", sub.id);
    let shown = app.get(&path, key).await.ok();
    assert_eq!(
        (&shown["kind"], &shown["url"]),
        (&json!("STREAM"), &json!(""))
    );
    for (change, field) in [
        (json!({"kind": "WEBHOOK"}), "kind"),
        (json!({"url": "https://example.com/"}), "url"),
    ] {
        let problem = app
            .patch(&path, key, change)
            .await
            .refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    let changed = app
        .patch(&path, key, json!({"description": "y"}))
        .await
        .ok();
    assert_eq!(
        (&changed["kind"], &changed["description"]),
        (&json!("STREAM"), &json!("y"))
    );
    let webhook = app
        .subscribe(key, json!({"url": "https://example.com/"}))
        .await;
    let path = format!("/v1/external/webhooks/{}", webhook.id);
    assert_eq!(app.get(&path, key).await.ok()["kind"], "WEBHOOK");
    app.stop().await;
}

// W1: a second `open`, and another first message, end the stream with what is
// wrong; a message that is not known changes nothing.
async fn what_is_no_message_ends_the_stream(db: Db) {
    use bytes::Bytes;

    use crate::support::{app::fields, call::unary};
    let app = TestApp::start(&db).await;
    let path = "/onering.v1.WorkerService/StreamDeliveries";
    let refused = unary(&app, path, &app.admin, Bytes::new()).await;
    assert_eq!(fields(&refused.unwrap_err()), ["open"]);
    let refused = unary(&app, path, &app.admin, Bytes::from_static(b"\xff\xff")).await;
    assert_eq!(reason(&refused.unwrap_err()), "INVALID_ARGUMENT");
    let mut worker = Worker::start(&app, "w", 1).await;
    worker.say(Message::Open(open("w", 1)));
    let ended = worker.ended().await.unwrap_err();
    assert_eq!(fields(&ended), ["open"]);
    app.stop().await;
}

// W1: a worker gets what its filter names.
async fn filters_choose(db: Db) {
    let app = TestApp::builder(&db)
        .set("EMBEDDED_WORKER", 0)
        .start()
        .await;
    let first = app.stream(json!({})).await;
    let second = app.stream(json!({})).await;
    let url = json!({"url": "http://127.0.0.1:9/"});
    let webhook = app.subscribe(&app.admin, url).await;
    let only = |id: &str| {
        filtered(Filter {
            subscription_ids: vec![id.to_owned()],
            kinds: vec![
                SubscriptionKind::Webhook.into(),
                SubscriptionKind::Stream.into(),
            ],
            ..Filter::default()
        })
    };
    for sub in [&first, &second, &webhook] {
        let mut worker = Worker::open(&app, &app.admin, only(&sub.id)).await.unwrap();
        app.events("a.b", 1).await;
        let d = worker.delivery().await;
        assert_eq!(d.subscription_id, sub.id);
        for d in worker.everything_until_now().await {
            assert_eq!(d.subscription_id, sub.id);
        }
        worker.half_close();
        worker.ended().await.unwrap();
    }
    app.stop().await;
}
