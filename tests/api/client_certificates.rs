//! A subscription's client certificate: what is taken, what is shown, what is stored.

use base64::Engine as _;
use onering::proto::v1;
use serde_json::{Value, json};

use super::keys::dump;
use crate::support::{
    app::{TestApp, fields, reason},
    store::Db,
    tls::{Authority, Client},
};

contract![
    what_is_shown_of_a_client_certificate,
    only_by_its_name_is_it_taken_away,
    bad_client_certificates_are_named,
    a_private_key_is_nowhere_to_be_read,
];

const WEBHOOKS: &str = "/v1/external/webhooks";

fn hook(certificate: &Value) -> Value {
    json!({"url": "https://example.com/h", "client_certificate": certificate})
}

fn proto(client: &Client) -> v1::ClientCertificate {
    v1::ClientCertificate {
        certificate_chain: client.chain.clone(),
        private_key: client.key.clone(),
    }
}

// A10: subject, serial number, fingerprint and end; over REST and gRPC, in every
// answer that has a subscription.
async fn what_is_shown_of_a_client_certificate(db: Db) {
    let app = TestApp::start(&db).await;
    let client = Authority::new().client("us");
    let made = app
        .post(WEBHOOKS, &app.admin, hook(&client.json()))
        .await
        .ok();
    let info = made["subscription"]["client_certificate_info"].clone();
    assert!(info["subject"].as_str().unwrap().contains("CN=us"));
    assert_eq!(info["expire_time"], "2100-01-01T00:00:00Z");
    assert_eq!(info["fingerprint_sha256"].as_str().unwrap().len(), 64);
    assert_eq!(info["serial_number"].as_str().unwrap().len(), 40);
    let id = made["id"].as_str().unwrap();
    let path = format!("{WEBHOOKS}/{id}");
    let shown = app.get(&path, &app.admin).await.ok();
    let listed = app.get(WEBHOOKS, &app.admin).await.ok();
    let changed = app
        .patch(&path, &app.admin, json!({"description": "x"}))
        .await
        .ok();
    let rotated = app
        .post(&format!("{path}/rotate-secret"), &app.admin, json!({}))
        .await
        .ok();
    for answer in [
        &made["subscription"],
        &shown,
        &listed["subscriptions"][0],
        &changed,
        &rotated["subscription"],
    ] {
        assert_eq!(answer["client_certificate_info"], info);
        assert_eq!(answer.get("client_certificate"), None);
    }
    // The same one again is no change.
    let again = app
        .patch(
            &path,
            &app.admin,
            json!({"client_certificate": client.json()}),
        )
        .await
        .ok();
    assert_eq!(again["update_time"], rotated["subscription"]["update_time"]);
    // What was read can be written back.
    let back = app.patch(&path, &app.admin, again.clone()).await.ok();
    assert_eq!(back["client_certificate_info"], info);

    let mut subscriptions = app.grpc(&app.admin).subscriptions;
    let request = v1::CreateSubscriptionRequest {
        url: "https://example.com/h".into(),
        client_certificate: Some(proto(&client)),
        ..Default::default()
    };
    let made = subscriptions.create_subscription(request).await.unwrap();
    let made = made.into_inner().subscription.unwrap();
    assert_eq!(made.client_certificate, None);
    let over_grpc = made.client_certificate_info.unwrap();
    assert_eq!(
        json!(over_grpc.fingerprint_sha256),
        info["fingerprint_sha256"]
    );
    assert_eq!(over_grpc.expire_time.unwrap().seconds, 4_102_444_800);
    app.stop().await;
}

// A10: clearing goes through the mask; `*` can't be meant to take away what no
// answer has.
async fn only_by_its_name_is_it_taken_away(db: Db) {
    let app = TestApp::start(&db).await;
    let client = Authority::new().client("us");
    let made = app
        .post(WEBHOOKS, &app.admin, hook(&client.json()))
        .await
        .ok();
    let id = made["id"].as_str().unwrap();
    let mut subscriptions = app.grpc(&app.admin).subscriptions;
    let mut update = async |paths: &[&str], certificate| {
        let request = v1::UpdateSubscriptionRequest {
            id: id.to_owned(),
            subscription: Some(v1::Subscription {
                url: "https://example.com/other".into(),
                client_certificate: certificate,
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.iter().map(|p| (*p).to_owned()).collect(),
            }),
        };
        let changed = subscriptions.update_subscription(request).await.unwrap();
        let info = changed.into_inner().subscription.unwrap();
        info.client_certificate_info.is_some()
    };
    assert!(update(&["*"], None).await);
    assert!(update(&["url"], None).await);
    assert!(update(&[], None).await);
    assert!(!update(&["client_certificate"], None).await);
    assert!(update(&["client_certificate"], Some(proto(&client))).await);
    assert!(!update(&["*", "client_certificate"], None).await);
    assert!(update(&["*"], Some(proto(&client))).await);
    let path = format!("{WEBHOOKS}/{id}");
    let cleared = app
        .patch(&path, &app.admin, json!({"client_certificate": null}))
        .await
        .ok();
    assert_eq!(cleared.get("client_certificate_info"), None);
    app.stop().await;
}

// A10: each is 400 and named, at creation and at a change, over REST and gRPC.
async fn bad_client_certificates_are_named(db: Db) {
    let app = TestApp::start(&db).await;
    let authority = Authority::new();
    let (good, other) = (authority.client("good"), authority.client("other"));
    let expired = authority.client_until("expired", 2020);
    let made = app
        .post(WEBHOOKS, &app.admin, hook(&good.json()))
        .await
        .ok();
    let id = made["id"].as_str().unwrap();
    let mut subscriptions = app.grpc(&app.admin).subscriptions;
    let given = |chain: &str, key: &str| Client {
        chain: chain.to_owned(),
        key: key.to_owned(),
    };
    let long = "x".repeat(40_000);
    for (certificate, field) in [
        (given("", ""), "certificate_chain"),
        (given("no pem", &good.key), "certificate_chain"),
        (given(&long, &good.key), "certificate_chain"),
        (given(&expired.chain, &expired.key), "certificate_chain"),
        (given(&good.chain, ""), "private_key"),
        (given(&good.chain, "a-secret-that-is-no-key"), "private_key"),
        (given(&good.chain, &long), "private_key"),
        (given(&good.chain, &other.key), "private_key"),
    ] {
        let named = format!("client_certificate.{field}");
        let json = certificate.json();
        let created = app.post(WEBHOOKS, &app.admin, hook(&json)).await;
        let changed = app
            .patch(
                &format!("{WEBHOOKS}/{id}"),
                &app.admin,
                json!({"client_certificate": json}),
            )
            .await;
        for answer in [created, changed] {
            let text = answer.text().to_owned();
            assert!(!text.contains("a-secret-that"), "{text}");
            assert!(!other.key_lines().iter().any(|l| text.contains(l)));
            let problem = answer.refused(400, "INVALID_ARGUMENT");
            let told = problem["errors"][0]["field"].as_str().unwrap();
            assert!(told.ends_with(&named), "{problem}");
        }
        let create = subscriptions
            .create_subscription(v1::CreateSubscriptionRequest {
                url: "https://example.com/h".into(),
                client_certificate: Some(proto(&certificate)),
                ..Default::default()
            })
            .await
            .unwrap_err();
        let update = subscriptions
            .update_subscription(v1::UpdateSubscriptionRequest {
                id: id.to_owned(),
                subscription: Some(v1::Subscription {
                    client_certificate: Some(proto(&certificate)),
                    ..Default::default()
                }),
                update_mask: None,
            })
            .await
            .unwrap_err();
        for (status, under) in [(create, ""), (update, "subscription.")] {
            assert_eq!(reason(&status), "INVALID_ARGUMENT");
            assert_eq!(fields(&status), [format!("{under}{named}")]);
        }
    }
    // What the server sets is not for callers.
    let info = json!({"client_certificate_info": {"subject": "CN=me"}});
    app.patch(&format!("{WEBHOOKS}/{id}"), &app.admin, info)
        .await
        .refused(400, "INVALID_ARGUMENT");
    let listed = app.get(WEBHOOKS, &app.admin).await.ok();
    assert_eq!(listed["subscriptions"].as_array().unwrap().len(), 1);
    app.stop().await;
}

// Z1, A10: no answer and no row has a private key, as text or as bytes, before a
// change and after it.
async fn a_private_key_is_nowhere_to_be_read(db: Db) {
    let app = TestApp::start(&db).await;
    let authority = Authority::new();
    let (first, second) = (authority.client("first"), authority.client("second"));
    let mut wanted = hook(&first.json());
    wanted["description"] = json!("dumped-hook");
    let made = app.post(WEBHOOKS, &app.admin, wanted).await;
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let path = format!("{WEBHOOKS}/{id}");
    let changed = app
        .patch(
            &path,
            &app.admin,
            json!({"client_certificate": second.json()}),
        )
        .await;
    let shown = app.get(&path, &app.admin).await;
    for answer in [&made, &changed, &shown] {
        for line in [first.key_lines(), second.key_lines()].concat() {
            assert!(!answer.text().contains(line), "{}", answer.text());
        }
    }
    app.stop().await;

    let dump = dump(&db).await;
    let has = |needle: &[u8]| dump.windows(needle.len()).any(|w| w == needle);
    assert!(has(b"dumped-hook"), "the dump has what is stored");
    assert!(!has(b"PRIVATE KEY"));
    let base64 = base64::engine::general_purpose::STANDARD;
    for client in [first, second] {
        let lines = client.key_lines();
        for line in &lines {
            assert!(!has(line.as_bytes()), "a key's text is stored");
            assert!(!has(hex::encode(line).as_bytes()));
            for at in 0..3 {
                let text = &line.as_bytes()[at..];
                let text = base64.encode(&text[..text.len() / 3 * 3]);
                assert!(!has(text.as_bytes()), "a key's text is stored");
            }
        }
        // The numbers of the key itself: past the head that all keys of its kind have.
        let der = base64.decode(lines.concat()).unwrap();
        let secret = &der[36..68];
        assert!(!has(secret) && !has(hex::encode(secret).as_bytes()));
    }
}
