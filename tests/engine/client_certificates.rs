//! Receivers that ask who is calling: a subscription's client certificate.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use onering::{app::Outside, domain::id::wall_clock};
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};

use super::connect::proxy;
use crate::support::{
    app::TestApp,
    receiver::{Receiver, status},
    store::Db,
    tls::{Authority, Client, asking},
};

contract![
    a_receiver_that_asks_who_is_calling,
    connections_belong_to_one_certificate,
    another_certificate_from_the_next_attempt_on,
    a_certificate_through_the_egress_proxy,
    an_expired_certificate_is_not_shown,
    after_a_restart_it_is_shown_again,
];

const LATER: &str = r#"{"max_attempts": 2, "backoff_seconds": [3600]}"#;

/// A subscription of one event type, with a certificate or without.
fn fields(event_type: &str, certificate: Option<&Client>) -> Value {
    let mut fields = json!({
        "event_types": [event_type],
        "retry_schedule": serde_json::from_str::<Value>(LATER).unwrap(),
    });
    if let Some(certificate) = certificate {
        fields["client_certificate"] = certificate.json();
    }
    fields
}

async fn fingerprint(app: &TestApp, subscription: &str) -> Value {
    app.subscription(subscription).await["client_certificate_info"]["fingerprint_sha256"].clone()
}

// A10: without a certificate, or with one of another authority, the handshake
// fails; with the right one it is delivered, whatever of TLS and HTTP is spoken.
async fn a_receiver_that_asks_who_is_calling(db: Db) {
    let (ours, theirs) = (Authority::new(), Authority::new());
    for (alpn, version) in [("h2", &TLS13), ("http/1.1", &TLS13), ("http/1.1", &TLS12)] {
        let tls = asking(&[alpn], &[version], &ours, true);
        let receiver = Receiver::over(Some(tls.config.clone()), |_| async { status(200) }).await;
        let app = TestApp::builder(&db)
            .set("ENDPOINT_CA_FILE", tls.pem.display())
            .set(
                "BOOTSTRAP_ADMIN_KEY",
                "sk_admin_the-same-one-for-all-of-them",
            )
            .set("MASTER_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
            .start()
            .await;
        for (event_type, certificate) in [
            ("without.one", None),
            ("a.wrong.one", Some(theirs.client("stranger"))),
        ] {
            let sub = app
                .webhook(&receiver.url(), fields(event_type, certificate.as_ref()))
                .await;
            let delivery = app.one_delivery(event_type).await;
            let shown = app.is(&delivery, "RETRYING").await;
            assert_eq!(shown["reason"], "tls_failed", "{alpn} {event_type}");
            app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
                .await
                .ok();
        }
        assert_eq!(receiver.count(), 0);
        let sub = app
            .webhook(
                &receiver.url(),
                fields("the.right", Some(&ours.client("us"))),
            )
            .await;
        let delivery = app.one_delivery("the.right").await;
        app.is(&delivery, "DELIVERED").await;
        let received = receiver.received();
        let presented = json!(received[0].certificate);
        assert_eq!(presented, fingerprint(&app, &sub.id).await);
        app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
            .await
            .ok();
        app.stop().await;
    }
}

// A10: two subscriptions of one receiver never use each other's connections, and
// each goes on using its own.
async fn connections_belong_to_one_certificate(db: Db) {
    let authority = Authority::new();
    let tls = asking(&["http/1.1"], &[&TLS13], &authority, false);
    let receiver = Receiver::over(Some(tls.config.clone()), |_| async { status(200) }).await;
    let app = TestApp::builder(&db)
        .set("ENDPOINT_CA_FILE", tls.pem.display())
        .start()
        .await;
    let (one, two) = (authority.client("one"), authority.client("two"));
    let mut expected = Vec::new();
    for (event_type, certificate) in [("x.1", Some(&one)), ("x.2", Some(&two)), ("x.3", None)] {
        let sub = app
            .webhook(&receiver.url(), fields(event_type, certificate))
            .await;
        expected.push((event_type, fingerprint(&app, &sub.id).await));
    }
    assert_ne!(expected[0].1, expected[1].1);
    assert_eq!(expected[2].1, Value::Null);
    for _ in 0..3 {
        for (event_type, _) in &expected {
            let delivery = app.one_delivery(event_type).await;
            app.is(&delivery, "DELIVERED").await;
        }
    }
    let received = receiver.received();
    let mut connections = Vec::new();
    for (event_type, fingerprint) in &expected {
        let mut own: Vec<_> = received
            .iter()
            .filter(|r| r.header("x-webhook-event") == *event_type)
            .collect();
        assert_eq!(own.len(), 3);
        assert!(own.iter().all(|r| json!(r.certificate) == *fingerprint));
        own.dedup_by_key(|r| r.connection);
        connections.extend(own.iter().map(|r| r.connection));
    }
    connections.sort_unstable();
    assert_eq!(connections, [0, 1, 2], "one each, again and again");
    app.stop().await;
}

// A10: a changed certificate is shown from the next attempt on, also where a
// connection with the one before is still open; so is none, once it is cleared.
async fn another_certificate_from_the_next_attempt_on(db: Db) {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let tls = asking(&["http/1.1"], &[&TLS13], &ours, false);
    let receiver = Receiver::over(Some(tls.config.clone()), |_| async { status(200) }).await;
    let app = TestApp::builder(&db)
        .set("ENDPOINT_CA_FILE", tls.pem.display())
        .start()
        .await;
    let stranger = theirs.client("stranger");
    let sub = app
        .webhook(&receiver.url(), fields("a.b", Some(&stranger)))
        .await;
    let delivery = app.one_delivery("a.b").await;
    assert_eq!(app.is(&delivery, "RETRYING").await["reason"], "tls_failed");

    let mut shown = Vec::new();
    for name in ["first", "second"] {
        let certificate = ours.client(name).json();
        app.change(&sub.id, json!({"client_certificate": certificate}))
            .await;
        shown.push(fingerprint(&app, &sub.id).await);
        if name == "first" {
            app.retry(&delivery).await.ok();
            app.is(&delivery, "DELIVERED").await;
        } else {
            let delivery = app.one_delivery("a.b").await;
            app.is(&delivery, "DELIVERED").await;
        }
    }
    // What does not name it leaves it as it is.
    app.change(&sub.id, json!({"description": "still the second"}))
        .await;
    shown.push(fingerprint(&app, &sub.id).await);
    assert_eq!(shown[1], shown[2]);
    let delivery = app.one_delivery("a.b").await;
    app.is(&delivery, "DELIVERED").await;
    app.change(&sub.id, json!({"client_certificate": null}))
        .await;
    shown.push(fingerprint(&app, &sub.id).await);
    assert_eq!(shown[3], Value::Null);
    let delivery = app.one_delivery("a.b").await;
    app.is(&delivery, "DELIVERED").await;
    let received = receiver.received();
    let presented: Vec<_> = received.iter().map(|r| json!(r.certificate)).collect();
    assert_eq!(presented, shown);
    app.stop().await;
}

// A10
async fn a_certificate_through_the_egress_proxy(db: Db) {
    let authority = Authority::new();
    let tls = asking(&["h2"], &[&TLS13], &authority, true);
    let receiver = Receiver::over(Some(tls.config.clone()), |_| async { status(200) }).await;
    let (url, asked) = proxy(true).await;
    let app = TestApp::builder(&db)
        .set("EGRESS_PROXY", &url)
        .set("ENDPOINT_CA_FILE", tls.pem.display())
        .start()
        .await;
    let client = authority.client("us");
    let sub = app
        .webhook(&receiver.url(), fields("a.b", Some(&client)))
        .await;
    let delivery = app.one_delivery("a.b").await;
    app.is(&delivery, "DELIVERED").await;
    let line = format!("CONNECT {} HTTP/1.1", receiver.address);
    assert_eq!(*asked.lock().unwrap(), [line]);
    let presented = json!(receiver.received()[0].certificate);
    assert_eq!(presented, fingerprint(&app, &sub.id).await);
    app.stop().await;
}

// A10: the attempt fails and says why; another certificate saves the delivery.
async fn an_expired_certificate_is_not_shown(db: Db) {
    let jumped = Arc::new(AtomicI64::new(0));
    let offset = jumped.clone();
    let outside = Outside {
        clock: Arc::new(move || wall_clock() + offset.load(Ordering::SeqCst)),
        ..Outside::default()
    };
    let authority = Authority::new();
    let tls = asking(&["http/1.1"], &[&TLS13], &authority, true);
    let receiver = Receiver::over(Some(tls.config.clone()), |_| async { status(200) }).await;
    let app = TestApp::builder(&db)
        .set("ENDPOINT_CA_FILE", tls.pem.display())
        .outside(outside)
        .start()
        .await;
    let client = authority.client_until("us", 2100);
    let sub = app
        .webhook(&receiver.url(), fields("a.b", Some(&client)))
        .await;
    let first = app.one_delivery("a.b").await;
    app.is(&first, "DELIVERED").await;
    let info = app.subscription(&sub.id).await["client_certificate_info"].clone();
    assert_eq!(info["expire_time"], "2100-01-01T00:00:00Z");

    // To the year 2126 or later, by the clock that attempts go by.
    jumped.store(100 * 366 * 86_400 * 1_000_000, Ordering::SeqCst);
    let delivery = app.one_delivery("a.b").await;
    let shown = app.is(&delivery, "RETRYING").await;
    assert_eq!(
        (&shown["reason"], &shown["attempt_count"]),
        (&json!("client_certificate_expired"), &json!(1))
    );
    assert_eq!(receiver.count(), 1);
    let later = authority.client_until("us", 3000);
    app.change(&sub.id, json!({"client_certificate": later.json()}))
        .await;
    app.retry(&delivery).await.ok();
    app.is(&delivery, "DELIVERED").await;
    app.stop().await;
}

// A10
async fn after_a_restart_it_is_shown_again(db: Db) {
    let authority = Authority::new();
    let tls = asking(&["http/1.1"], &[&TLS13], &authority, true);
    let receiver = Receiver::over(Some(tls.config.clone()), |_| async { status(200) }).await;
    let app = TestApp::builder(&db)
        .set("ENDPOINT_CA_FILE", tls.pem.display())
        .start()
        .await;
    let client = authority.client("us");
    let sub = app
        .webhook(&receiver.url(), fields("a.b", Some(&client)))
        .await;
    let before = fingerprint(&app, &sub.id).await;
    let again = app.again();
    app.stop().await;
    let app = again
        .set("ENDPOINT_CA_FILE", tls.pem.display())
        .start()
        .await;
    let delivery = app.one_delivery("a.b").await;
    app.is(&delivery, "DELIVERED").await;
    assert_eq!(json!(receiver.received()[0].certificate), before);
    app.stop().await;
}
