//! Where webhooks may not go, as it is told when a subscription is made.

use serde_json::json;

use crate::support::{app::TestApp, store::Db};

contract![
    private_addresses_are_refused,
    configured_networks_are_allowed,
    a_change_is_checked_too,
];

const WEBHOOKS: &str = "/v1/external/webhooks";

/// URLs that lead, or may lead, to what is not public.
const REFUSED: [&str; 56] = [
    // As they are.
    "https://127.0.0.1/",
    "https://127.255.255.254:8443/x",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://172.31.255.255/",
    "https://192.168.1.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.64.0.1/",
    "https://100.100.100.200/",
    "https://0.0.0.0/",
    "https://0.1.2.3/",
    "https://192.0.0.192/",
    "https://198.18.0.1/",
    "https://224.0.0.1/",
    "https://240.0.0.1/",
    "https://255.255.255.255/",
    // In decimal, octal, hexadecimal, and cut short.
    "https://2130706433/",
    "https://3232235777/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://0177.0.1/",
    "https://0x7f.0.0.1/",
    "https://0x7f000001/",
    "https://0xA9FEA9FE/",
    "https://127.1/",
    "https://127.0.1/",
    "https://0/",
    "https://10.1/",
    "https://127.0.0.1./",
    // With digits and dots of other scripts, and escaped.
    "https://１２７.0.0.1/",
    "https://127。0。0。1/",
    "https://①②⑦.0.0.1/",
    "https://%31%32%37.0.0.1/",
    // IPv6, and IPv4 inside it.
    "https://[::1]/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[::]/",
    "https://[::127.0.0.1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::ffff:10.0.0.1]/",
    "https://[::ffff:a9fe:a9fe]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b:1::1]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:7f00:1::]/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/",
    "https://[fe80::1]/",
    "https://[ff02::1]/",
    // Names.
    "https://localhost/",
    "https://LOCALHOST./",
    "https://api.localhost/",
    "https://metadata.google.internal/",
    "https://db.internal/",
    "https://printer.local/",
    "https://intranet/",
];

// A10, Z3
async fn private_addresses_are_refused(db: Db) {
    let builder = TestApp::builder(&db);
    let app = builder
        .unset("ALLOWED_ENDPOINT_CIDRS")
        .unset("ALLOW_HTTP_ENDPOINTS")
        .start()
        .await;
    for url in REFUSED {
        let answer = app.post(WEBHOOKS, &app.admin, json!({"url": url})).await;
        assert_eq!(answer.code(), "ENDPOINT_NOT_ALLOWED", "{url}");
    }
    for url in [
        "http://example.com/",
        "ftp://example.com/",
        "https://user:password@example.com/",
        "https://example.com/#fragment",
        "https://example.com:0/",
    ] {
        let answer = app.post(WEBHOOKS, &app.admin, json!({"url": url})).await;
        assert_eq!(answer.code(), "ENDPOINT_NOT_ALLOWED", "{url}");
    }
    for url in ["", "example.com", "https://", "https://[::1/"] {
        let answer = app.post(WEBHOOKS, &app.admin, json!({"url": url})).await;
        answer.refused(400, "INVALID_ARGUMENT");
    }
    for url in [
        "https://example.com/",
        "https://8.8.8.8:8443/x?y=z",
        "https://[2606:4700::1111]/",
    ] {
        let answer = app.post(WEBHOOKS, &app.admin, json!({"url": url})).await;
        assert_eq!(answer.status, 201, "{url}: {}", answer.text());
    }
    let list = app.get(WEBHOOKS, &app.admin).await.ok();
    assert_eq!(list["subscriptions"].as_array().unwrap().len(), 3);
    app.stop().await;
}

// A10
async fn configured_networks_are_allowed(db: Db) {
    let app = TestApp::builder(&db)
        .set("ALLOWED_ENDPOINT_CIDRS", "10.1.0.0/16")
        .start()
        .await;
    for (url, allowed) in [
        ("https://10.1.2.3/", true),
        ("https://[::ffff:10.1.2.3]/", true),
        ("http://10.1.2.3/", true),
        ("https://10.2.0.1/", false),
        ("https://127.0.0.1/", false),
        ("https://localhost/", false),
    ] {
        let answer = app.post(WEBHOOKS, &app.admin, json!({"url": url})).await;
        assert_eq!(answer.status == 201, allowed, "{url}: {}", answer.text());
    }
    app.stop().await;
}

// A10, Z3
async fn a_change_is_checked_too(db: Db) {
    let app = TestApp::builder(&db)
        .unset("ALLOWED_ENDPOINT_CIDRS")
        .start()
        .await;
    let sub = app.webhook("https://example.com/", json!({})).await;
    let path = format!("{WEBHOOKS}/{}", sub.id);
    let answer = app
        .patch(
            &path,
            &app.admin,
            json!({"url": "https://[::ffff:10.0.0.1]/"}),
        )
        .await;
    assert_eq!(answer.code(), "ENDPOINT_NOT_ALLOWED");
    assert_eq!(
        app.subscription(&sub.id).await["url"],
        "https://example.com/"
    );
    app.stop().await;
}
