//! Connections to receivers: to checked addresses only, over verified TLS, or
//! through the configured proxy.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{HeaderValue, Version};
use onering::app::Outside;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use super::scene::quick;
use crate::support::{
    app::TestApp,
    gate::Gate,
    proxy::Proxy,
    receiver::{Receiver, status},
    store::Db,
    tls::self_signed,
};

contract![
    names_of_private_addresses_are_refused,
    names_are_looked_up_before_they_are_taken,
    a_name_with_both_goes_to_the_public_one,
    a_rebound_name_leads_nowhere,
    plain_http_is_refused_at_the_connect_too,
    certificates_are_verified,
    http_2_where_it_is_offered,
    a_dead_http_2_connection_is_found_out,
    an_egress_proxy_gets_the_address,
    an_egress_proxy_is_told_who_asks,
    a_proxy_that_refuses,
];

/// A name of which nobody ever says where it leads.
const SILENT: &str = "silent.example.com";

/// The names of a test, each with the answers that are given in turn; the last
/// one again and again.
#[derive(Clone, Default)]
struct Names {
    answers: Arc<Mutex<HashMap<String, Vec<Vec<IpAddr>>>>>,
    asked: Arc<AtomicUsize>,
}

impl Names {
    fn set(&self, name: &str, answers: &[&[&str]]) {
        let parse = |a: &&[&str]| a.iter().map(|ip| ip.parse().unwrap()).collect();
        let answers = answers.iter().map(parse).collect();
        self.answers
            .lock()
            .unwrap()
            .insert(name.to_owned(), answers);
    }

    fn outside(&self) -> Outside {
        let names = self.clone();
        Outside {
            resolver: Arc::new(move |host| {
                names.asked.fetch_add(1, Ordering::SeqCst);
                let mut all = names.answers.lock().unwrap();
                let answer = match all.get_mut(&host) {
                    Some(answers) if answers.len() > 1 => answers.remove(0),
                    Some(answers) => answers[0].clone(),
                    None => Vec::new(),
                };
                let silent = host == SILENT;
                Box::pin(async move {
                    if silent {
                        std::future::pending::<()>().await;
                    }
                    Ok(answer)
                })
            }),
            ..Outside::default()
        }
    }
}

// A10, Z3: a subscription from a time when it was allowed fails, and is tried again.
async fn plain_http_is_refused_at_the_connect_too(db: Db) {
    let mut app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let fields = json!({"retry_schedule": {"max_attempts": 9, "backoff_seconds": [3]}});
    app.webhook(&receiver.url(), fields).await;
    app.reload(&[("ALLOW_HTTP_ENDPOINTS", "0")]);
    let delivery = app.one_delivery("a.b").await;
    let shown = app.is(&delivery, "RETRYING").await;
    assert_eq!(
        (&shown["reason"], &shown["attempt_count"]),
        (&json!("endpoint_not_allowed"), &json!(1))
    );
    assert_eq!(receiver.count(), 0);
    app.reload(&[("ALLOW_HTTP_ENDPOINTS", "1")]);
    let shown = app.is(&delivery, "DELIVERED").await;
    assert!(shown["attempt_count"].as_u64() > Some(1), "{shown}");
    assert_eq!(receiver.count(), 1);
    app.stop().await;
}

async fn reason(app: &TestApp) -> Value {
    let delivery = app.one_delivery("a.b").await;
    app.is(&delivery, "RETRYING").await["reason"].clone()
}

// A10, Z3: at the connect it counts as a failed attempt.
async fn names_of_private_addresses_are_refused(db: Db) {
    let names = Names::default();
    let app = TestApp::builder(&db)
        .unset("ALLOWED_ENDPOINT_CIDRS")
        .outside(names.outside())
        .start()
        .await;
    let receiver = Receiver::start().await;
    for address in [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "::1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "fd00:ec2::254",
        "0.0.0.0",
    ] {
        // It leads there only later.
        names.set("hooks.example.com", &[&[], &[address]]);
        let sub = app
            .webhook(&receiver.url_by("hooks.example.com"), json!({}))
            .await;
        let delivery = app.one_delivery("a.b").await;
        let shown = app.is(&delivery, "RETRYING").await;
        assert_eq!(
            (&shown["reason"], &shown["attempt_count"]),
            (&json!("endpoint_not_allowed"), &json!(1))
        );
        app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
            .await
            .ok();
    }
    app.webhook("http://nobody.example.com/", json!({})).await;
    assert_eq!(reason(&app).await, "dns_failed");
    assert_eq!(receiver.count(), 0);
    app.stop().await;
}

// A10, Z3: a private address behind a name is refused with the field's name, when a
// subscription is made and when its URL changes. A name that leads nowhere yet, or of
// which nobody says where it leads, is taken.
async fn names_are_looked_up_before_they_are_taken(db: Db) {
    let names = Names::default();
    let app = TestApp::builder(&db)
        .unset("ALLOWED_ENDPOINT_CIDRS")
        .outside(names.outside())
        .start()
        .await;
    names.set("public.example.com", &[&["93.184.216.34"]]);
    names.set("both.example.com", &[&["10.0.0.1", "93.184.216.34"]]);
    let url = |name: &str| format!("https://{name}/hook");
    let sub = app.webhook(&url("public.example.com"), json!({})).await;
    for name in ["both.example.com", "nobody.example.com", SILENT] {
        app.webhook(&url(name), json!({})).await;
    }
    let path = format!("/v1/external/webhooks/{}", sub.id);
    for address in [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "::ffff:10.0.0.1",
    ] {
        names.set("inside.example.com", &[&[address]]);
        let body = json!({"url": url("inside.example.com")});
        for refused in [
            app.post("/v1/external/webhooks", &app.admin, body.clone())
                .await,
            app.patch(&path, &app.admin, body).await,
        ] {
            let problem = refused.refused(422, "ENDPOINT_NOT_ALLOWED");
            assert_eq!(problem["errors"][0]["field"], "url");
            assert!(!problem.to_string().contains(address), "{problem}");
        }
    }
    assert_eq!(
        app.subscription(&sub.id).await["url"],
        url("public.example.com")
    );
    // What does not change the URL asks nobody.
    let asked = names.asked.load(Ordering::SeqCst);
    app.change(&sub.id, json!({"description": "x"})).await;
    assert_eq!(names.asked.load(Ordering::SeqCst), asked);
    app.stop().await;
}

// A10, Z3
async fn a_name_with_both_goes_to_the_public_one(db: Db) {
    let names = Names::default();
    let app = TestApp::builder(&db)
        .set("ALLOWED_ENDPOINT_CIDRS", "127.0.0.1/32")
        .outside(names.outside())
        .start()
        .await;
    let receiver = Receiver::start().await;
    let forbidden = Gate::at(
        &format!("127.0.0.2:{}", receiver.address.port()),
        receiver.address,
    )
    .await;
    names.set(
        "hooks.example.com",
        &[&["127.0.0.2", "10.0.0.1", "127.0.0.1"]],
    );
    let sub = app
        .webhook(&receiver.url_by("hooks.example.com"), json!({}))
        .await;
    app.event("a.b").await;
    app.wait_for(&sub.id, "DELIVERED", 1).await;
    assert_eq!(forbidden.arrived(), 0);
    let host = receiver.received()[0].header("host").to_owned();
    assert_eq!(
        host,
        format!("hooks.example.com:{}", receiver.address.port())
    );
    app.stop().await;
}

// A10, Z3: the address that was checked is the one that is connected to; a name
// is not asked for twice in between, and another answer is checked again.
async fn a_rebound_name_leads_nowhere(db: Db) {
    let names = Names::default();
    let app = TestApp::builder(&db)
        .set("ALLOWED_ENDPOINT_CIDRS", "127.0.0.1/32")
        .outside(names.outside())
        .start()
        .await;
    // It closes each connection, so that each attempt needs one of its own.
    let receiver = Receiver::answering(|_| {
        let mut reply = status(503);
        reply
            .headers_mut()
            .insert("connection", HeaderValue::from_static("close"));
        reply
    })
    .await;
    let private = Gate::at(
        &format!("127.0.0.2:{}", receiver.address.port()),
        receiver.address,
    )
    .await;
    let here = &["127.0.0.1"][..];
    names.set("rebind.example.com", &[here, here, &["127.0.0.2"]]);
    let url = receiver.url_by("rebind.example.com");
    app.webhook(&url, json!({"retry_schedule": quick(2)})).await;
    let delivery = app.one_delivery("a.b").await;
    app.is(&delivery, "DEAD").await;
    let errors: Vec<_> = app
        .attempts(&delivery)
        .await
        .iter()
        .map(|a| a["error"].clone())
        .collect();
    assert_eq!(errors, ["http_503", "endpoint_not_allowed"]);
    assert_eq!((receiver.count(), private.arrived()), (1, 0));
    assert_eq!(
        names.asked.load(Ordering::SeqCst),
        3,
        "once for the subscription, and once for each connection"
    );
    app.stop().await;
}

// A10
async fn certificates_are_verified(db: Db) {
    let names = Names::default();
    names.set("hooks.example.com", &[&["127.0.0.1"]]);
    names.set("other.example.com", &[&["127.0.0.1"]]);
    let tls = self_signed(&["hooks.example.com"], &["http/1.1"]);
    let receiver = Receiver::over(Some(tls.config.clone()), |_| async { status(200) }).await;
    let app = TestApp::builder(&db).outside(names.outside()).start().await;
    let fields = json!({"retry_schedule": {"max_attempts": 2, "backoff_seconds": [3600]}});
    app.webhook(&receiver.url_by("hooks.example.com"), fields)
        .await;
    let delivery = app.one_delivery("a.b").await;
    assert_eq!(app.is(&delivery, "RETRYING").await["reason"], "tls_failed");

    let again = app.again();
    app.stop().await;
    let app = again
        .set("ENDPOINT_CA_FILE", tls.pem.display())
        .outside(names.outside())
        .start()
        .await;
    app.retry(&delivery).await.ok();
    app.is(&delivery, "DELIVERED").await;
    let other = json!({"event_types": ["c.d"]});
    let sub = app
        .webhook(&receiver.url_by("other.example.com"), other)
        .await;
    app.event("c.d").await;
    app.wait_for(&sub.id, "RETRYING", 1).await;
    assert_eq!(
        app.with_status(&sub.id, "RETRYING").await[0]["reason"],
        "tls_failed"
    );
    app.stop().await;
}

// A10
async fn http_2_where_it_is_offered(db: Db) {
    for (offered, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
    ] {
        let tls = self_signed(&["127.0.0.1"], offered);
        let receiver = Receiver::over(Some(tls.config.clone()), |_| async { status(200) }).await;
        let app = TestApp::builder(&db).set("ENDPOINT_CA_FILE", tls.pem.display());
        let app = app.set(
            "BOOTSTRAP_ADMIN_KEY",
            "sk_admin_the-same-one-for-both-of-them",
        );
        let app = app
            .set("MASTER_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
            .start()
            .await;
        let event_type = format!("over.{}", offered.len());
        let sub = app
            .webhook(&receiver.url(), json!({"event_types": [event_type]}))
            .await;
        for _ in 0..10 {
            app.event(&event_type).await;
        }
        app.wait_for(&sub.id, "DELIVERED", 10).await;
        let received = receiver.received();
        assert_eq!(received.len(), 10);
        assert!(
            received.iter().all(|r| r.version == version),
            "{:?}",
            received[0].version
        );
        app.stop().await;
    }
}

// A10: a receiver that is gone without a word is not asked over the same
// connection until its attempts' time is over.
async fn a_dead_http_2_connection_is_found_out(db: Db) {
    let tls = self_signed(&["127.0.0.1"], &["h2"]);
    let receiver = Receiver::over(Some(tls.config.clone()), |_| async { status(200) }).await;
    let between = Proxy::to(receiver.address.to_string()).await;
    let app = TestApp::builder(&db)
        .set("ENDPOINT_CA_FILE", tls.pem.display())
        .start()
        .await;
    let url = format!("https://{}/webhook", between.address);
    let patient = json!({"timeout_seconds": 30, "retry_schedule": quick(3)});
    let sub = app.webhook(&url, patient).await;
    app.event("a.b").await;
    app.wait_for(&sub.id, "DELIVERED", 1).await;
    between.silence();
    let delivery = app.one_delivery("a.b").await;
    app.is(&delivery, "RETRYING").await;
    between.mend();
    app.is(&delivery, "DELIVERED").await;
    let attempts = app.attempts(&delivery).await;
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_ne!(attempts[0]["error"], "timeout", "{attempts:?}");
    app.stop().await;
}

/// A proxy that knows CONNECT and nothing else; what it was asked for.
pub(crate) async fn proxy(allow: bool) -> (String, Arc<Mutex<Vec<String>>>) {
    proxy_for("", allow).await
}

/// As [`proxy`], for those alone whose request has that header.
async fn proxy_for(header: &'static str, allow: bool) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let lines = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let lines = lines.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let line = request.lines().next().unwrap().to_owned();
                lines.lock().unwrap().push(line.clone());
                let known = header.is_empty() || request.lines().any(|line| line == header);
                if !allow || !known {
                    stream
                        .write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                        .await
                        .unwrap();
                    return;
                }
                let mut target = TcpStream::connect(line.split(' ').nth(1).unwrap())
                    .await
                    .unwrap();
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\n")
                    .await
                    .unwrap();
                // Either side may hang up.
                let _ = copy_bidirectional(&mut stream, &mut target).await;
            });
        }
    });
    (url, asked)
}

// A10: the proxy has no name to resolve, and no private address to reach.
async fn an_egress_proxy_gets_the_address(db: Db) {
    let names = Names::default();
    names.set("hooks.example.com", &[&["127.0.0.1"]]);
    names.set("inside.example.com", &[&[], &["10.0.0.1"]]);
    let tls = self_signed(&["hooks.example.com"], &["h2"]);
    let secure = Receiver::over(Some(tls.config.clone()), |_| async { status(200) }).await;
    let plain = Receiver::start().await;
    let (url, asked) = proxy(true).await;
    let app = TestApp::builder(&db)
        .set("EGRESS_PROXY", &url)
        .set("ENDPOINT_CA_FILE", tls.pem.display())
        .outside(names.outside())
        .start()
        .await;
    for receiver in [&secure, &plain] {
        let sub = app
            .webhook(&receiver.url_by("hooks.example.com"), json!({}))
            .await;
        app.event("a.b").await;
        app.wait_for(&sub.id, "DELIVERED", 1).await;
        let line = format!("CONNECT {} HTTP/1.1", receiver.address);
        assert_eq!(asked.lock().unwrap().last(), Some(&line));
        app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
            .await
            .ok();
    }
    let before = asked.lock().unwrap().len();
    app.webhook("https://inside.example.com/", json!({})).await;
    assert_eq!(reason(&app).await, "endpoint_not_allowed");
    assert_eq!(asked.lock().unwrap().len(), before);
    app.stop().await;
}

// A10: RFC 7617's own example, and a password with what a URL must escape.
async fn an_egress_proxy_is_told_who_asks(db: Db) {
    let receiver = Receiver::start().await;
    for (user, header) in [
        (
            "Aladdin:open%20sesame",
            "Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
        ),
        ("u:p%40%3A", "Proxy-Authorization: Basic dTpwQDo="),
    ] {
        let (url, asked) = proxy_for(header, true).await;
        let url = url.replace("http://", &format!("http://{user}@"));
        let app = TestApp::builder(&db).set("EGRESS_PROXY", &url);
        let app = app
            .set(
                "BOOTSTRAP_ADMIN_KEY",
                "sk_admin_the-same-one-for-both-of-them",
            )
            .set("MASTER_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
            .start()
            .await;
        let sub = app.webhook(&receiver.url(), json!({})).await;
        app.event("a.b").await;
        app.wait_for(&sub.id, "DELIVERED", 1).await;
        assert_eq!(asked.lock().unwrap().len(), 1);
        app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
            .await
            .ok();
        app.stop().await;
    }
}

// A10
async fn a_proxy_that_refuses(db: Db) {
    let (url, asked) = proxy(false).await;
    let receiver = Receiver::start().await;
    let app = TestApp::builder(&db)
        .set("EGRESS_PROXY", &url)
        .start()
        .await;
    app.webhook(&receiver.url(), json!({})).await;
    assert_eq!(reason(&app).await, "proxy_refused");
    assert_eq!((receiver.count(), asked.lock().unwrap().len()), (0, 1));
    app.stop().await;
}
