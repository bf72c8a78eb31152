//! One port for everything: gRPC, gRPC-Web and REST, over HTTP/1.1 and HTTP/2,
//! plain and over TLS; reflection, health and the API's description.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use onering::{proto::v1, rest::Rest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::json;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::{
    app::{Grpc, TestApp, eventually},
    call::every_rpc,
    command::run,
    store::Db,
};

contract![
    rest_speaks_both_versions_of_http,
    grpc_web_over_http_1,
    health_of_each_service,
    reflection_of_both_versions,
    grpcurl_drives_an_event_to_its_receiver,
    the_description_has_every_route,
    tls_for_grpc_and_rest,
    clients_show_a_certificate,
];

const ME: &str = "/v1/external/me";

async fn rest_speaks_both_versions_of_http(db: Db) {
    let app = TestApp::start(&db).await;
    for http2 in [false, true] {
        let client = Client::builder(TokioExecutor::new())
            .http2_only(http2)
            .build_http::<Full<Bytes>>();
        let request = app
            .request("GET", ME, &app.admin)
            .body(Full::default())
            .unwrap();
        let answer = client.request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.version() == http::Version::HTTP_2, http2);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let me: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(me["kind"], "ADMIN");
    }
    app.stop().await;
}

// K11: a browser's gRPC passes the same gate.
async fn grpc_web_over_http_1(db: Db) {
    let app = TestApp::start(&db).await;
    let (id, key) = app.key(json!({})).await;
    let path = "/onering.v1.KeyService/GetCaller";
    for (key, status, holds) in [
        (key.as_str(), "grpc-status:0", id.as_str()),
        ("", "16", "KEY_MISSING"),
    ] {
        for content in ["application/grpc-web+proto", "application/grpc-web"] {
            let request = app
                .request("POST", path, key)
                .header(header::CONTENT_TYPE, content)
                .body(Full::from(&b"\0\0\0\0\0"[..]))
                .unwrap();
            let answer = app.send(request).await;
            assert_eq!(answer.status, 200);
            assert!(
                answer
                    .header("content-type")
                    .starts_with("application/grpc-web")
            );
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            let all = format!("{body} {:?}", answer.headers);
            assert!(all.contains(status), "{all}");
            if status.starts_with("grpc") {
                assert!(body.contains(holds), "{body}");
            }
            assert!(!answer.header("x-request-id").is_empty());
        }
    }
    app.stop().await;
}

async fn health_of_each_service(db: Db) {
    let app = TestApp::start(&db).await;
    let mut client = HealthClient::new(app.channel());
    let services: BTreeSet<String> = every_rpc()
        .iter()
        .map(|rpc| format!("onering.v1.{}", rpc.split_once('/').unwrap().0))
        .collect();
    for service in services.into_iter().chain([String::new()]) {
        let serving = || {
            let mut client = client.clone();
            let service = service.clone();
            async move {
                let answer = client.check(HealthCheckRequest { service }).await.unwrap();
                (answer.into_inner().status == 1).then_some(())
            }
        };
        eventually(&format!("{service:?} serves"), serving).await;
    }
    let service = "onering.v1.Nothing".to_owned();
    let status = client
        .check(HealthCheckRequest { service })
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
    let answer = app.get("/health", "").await;
    assert_eq!(
        (answer.status, answer.text()),
        (200, r#"{"status":"healthy"}"#)
    );
    app.stop().await;
}

/// The services that reflection lists; a request and its answer in one version.
macro_rules! listed {
    ($version:ident, $app:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new($app.channel());
        let requests = futures_util::stream::iter([request]);
        let answers = client.server_reflection_info(requests).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}");
        };
        list.service
            .into_iter()
            .map(|s| s.name)
            .collect::<BTreeSet<_>>()
    }};
}

async fn reflection_of_both_versions(db: Db) {
    let app = TestApp::start(&db).await;
    for names in [listed!(v1, app), listed!(v1alpha, app)] {
        for service in onering::rpc::SERVICES
            .into_iter()
            .chain(["grpc.health.v1.Health"])
        {
            assert!(names.contains(service), "{names:?}");
        }
    }
    app.stop().await;
}

/// The tool that runbooks use.
fn grpcurl() -> String {
    std::env::var("ONERING_TEST_GRPCURL")
        .expect("ONERING_TEST_GRPCURL is not set: run `./test servers`, and export what it prints")
}

// The way that a runbook goes: list, describe, a key, a subscription, an event,
// its delivery.
async fn grpcurl_drives_an_event_to_its_receiver(db: Db) {
    use onering::cli::sink::{Sink, SinkConfig};
    let app = TestApp::start(&db).await;
    let sink = Sink::start(SinkConfig::default()).await.unwrap();
    let (tool, address, admin) = (grpcurl(), app.address.to_string(), app.admin.clone());
    let ask = async |args: &[&str]| {
        let mut all = vec!["-plaintext"];
        all.extend(args);
        let done = run(Path::new(&tool), &all, &[]).await;
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout
    };
    let call = async |key: &str, method: &str, data: serde_json::Value| {
        let (header, data) = (format!("authorization: Bearer {key}"), data.to_string());
        let method = format!("onering.v1.{method}");
        let text = ask(&["-H", &header, "-d", &data, &address, &method]).await;
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let list = ask(&[&address, "list"]).await;
    for service in onering::rpc::SERVICES {
        assert!(list.lines().any(|l| l == service), "{list}");
        let described = ask(&[&address, "describe", service]).await;
        assert!(described.contains("rpc "), "{described}");
    }
    for rpc in every_rpc() {
        let symbol = format!("onering.v1.{}", rpc.replace('/', "."));
        let described = ask(&[&address, "describe", &symbol]).await;
        assert!(described.contains("rpc "), "{described}");
    }
    let key = call(&admin, "KeyService/CreateKey", json!({"name": "acme"})).await;
    let key = key["secret"].as_str().unwrap().to_owned();
    let hook = json!({"url": sink.url(), "event_types": ["ring.*"]});
    let hook = call(&key, "SubscriptionService/CreateSubscription", hook).await;
    let event = json!({"event_type": "ring.forged", "data": {"bearer": "Frodo"}});
    let event = call(&key, "EventService/PublishEvent", event).await;
    assert_eq!(event["deliveryCount"], 1);
    let of = json!({"event_id": event["id"]});
    let deliveries = call(&key, "DeliveryService/ListDeliveries", of).await;
    let delivery = &deliveries["deliveries"][0];
    assert_eq!(delivery["subscriptionId"], hook["id"]);
    app.delivery_is(&key, delivery["id"].as_str().unwrap(), "DELIVERED")
        .await;
    assert!(sink.deliveries()[0].body.contains("Frodo"));
    app.stop().await;
}

async fn the_description_has_every_route(db: Db) {
    let app = TestApp::start(&db).await;
    let document = app.get("/openapi.json", "").await.ok();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let rest = Rest::new().unwrap();
    let mut count = 0;
    for route in rest.routes.iter() {
        let method = route.method.as_str().to_lowercase();
        let operation = &document["paths"][&route.template][&method];
        let answers = operation["responses"].as_object();
        let answers = answers.unwrap_or_else(|| panic!("no {method} {}", route.template));
        assert!(answers.contains_key(route.status.as_str()), "{operation}");
        count += 1;
    }
    assert!(count >= every_rpc().len());
    for path in ["/health", "/metrics", "/openapi.json"] {
        assert!(document["paths"][path]["get"].is_object(), "{path}");
    }
    app.stop().await;
}

/// A certificate authority, and a server's and a client's certificate of it.
struct Pki {
    dir: tempfile::TempDir,
    ca: String,
    client: (String, String),
    stranger: (String, String),
}

fn pki() -> Pki {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let authority = || {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        (cert.pem(), Issuer::new(params, key))
    };
    let issue = |issuer: &Issuer<'_, KeyPair>| {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        (
            params.signed_by(&key, issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    };
    let (ca, issuer) = authority();
    let (_, other) = authority();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = issue(&issuer);
    for (name, pem) in [("cert.pem", &cert), ("key.pem", &key), ("ca.pem", &ca)] {
        std::fs::write(dir.path().join(name), pem).unwrap();
    }
    Pki {
        dir,
        ca,
        client: issue(&issuer),
        stranger: issue(&other),
    }
}

impl Pki {
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn channel(&self, app: &TestApp, identity: Option<&(String, String)>) -> Channel {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .domain_name("localhost");
        if let Some((cert, key)) = identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        Endpoint::from_shared(format!("https://localhost:{}", app.address.port()))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect_lazy()
    }

    /// The status of a REST call; none where there is no connection.
    async fn rest(
        &self,
        app: &TestApp,
        identity: Option<&(String, String)>,
        http2: bool,
    ) -> Option<u16> {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only();
        let connector = if http2 {
            connector.enable_http2().build()
        } else {
            connector.enable_http1().build()
        };
        let client = Client::builder(TokioExecutor::new())
            .http2_only(http2)
            .build::<_, Full<Bytes>>(connector);
        let request = Request::get(format!("https://localhost:{}{ME}", app.address.port()))
            .header(header::AUTHORIZATION, format!("Bearer {}", app.admin))
            .body(Full::default())
            .unwrap();
        let answer = tokio::time::timeout(REFUSED, client.request(request)).await;
        Some(answer.ok()?.ok()?.status().as_u16())
    }
}

/// A client that is refused in the middle of its handshake (TLS 1.3 lets it think
/// that it is through) may wait for a connection that is gone already.
const REFUSED: std::time::Duration = std::time::Duration::from_secs(10);

async fn grpc_works(app: &TestApp, channel: Channel) -> bool {
    let mut keys = Grpc::new(channel, &app.admin).keys;
    let call = keys.get_caller(v1::GetCallerRequest {});
    let answer = tokio::time::timeout(REFUSED, call).await;
    answer.is_ok_and(|answer| answer.is_ok())
}

// TLS, with both protocols on the one port.
async fn tls_for_grpc_and_rest(db: Db) {
    let pki = pki();
    let app = TestApp::builder(&db)
        .set("TLS_CERT", pki.path("cert.pem"))
        .set("TLS_KEY", pki.path("key.pem"));
    let app = app.start().await;
    assert!(grpc_works(&app, pki.channel(&app, None)).await);
    assert!(!grpc_works(&app, app.channel()).await, "without TLS");
    for http2 in [false, true] {
        assert_eq!(pki.rest(&app, None, http2).await, Some(200));
    }
    app.stop().await;
}

// mTLS: a certificate of the authority's, or no connection.
async fn clients_show_a_certificate(db: Db) {
    let pki = pki();
    let app = TestApp::builder(&db)
        .set("TLS_CERT", pki.path("cert.pem"))
        .set("TLS_KEY", pki.path("key.pem"))
        .set("TLS_CLIENT_CA", pki.path("ca.pem"));
    let app = app.start().await;
    for (identity, works) in [
        (Some(&pki.client), true),
        (Some(&pki.stranger), false),
        (None, false),
    ] {
        assert_eq!(grpc_works(&app, pki.channel(&app, identity)).await, works);
        for http2 in [false, true] {
            let status = pki.rest(&app, identity, http2).await;
            assert_eq!(status, works.then_some(200));
        }
    }
    app.stop().await;
}
