//! One port for everything: gRPC and gRPC-Web by their content type, else REST.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{body::Body, service::Routes};
use tower::{Layer as _, ServiceExt as _};

use crate::{
    directory::Freshness,
    error::{Error, Reason, Result},
    health::{Condition, Health},
    metrics::Metrics,
    proto::v1::PublishEventRequest,
    rest::{RequestId, Rest, cloudevent, docs, hot, openapi, problem, routes::Found, transcode},
    rpc::{
        Context, events,
        gate::{Gate, Method as Rpc, Passage},
        keys, trace,
    },
    settings::Tls,
};

/// The largest REST body but for batches.
const MAX_BODY: usize = 1 << 20;
/// What may stand around a payload in a publish's body.
const AROUND_PAYLOAD: usize = 64 << 10;
/// The largest body of a batch; also gRPC's limit of a message.
pub const MAX_BATCH: usize = 4 << 20;
/// How long a client may take to send a request's headers.
const HEADERS: Duration = Duration::from_secs(15);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Calls under way on one HTTP/2 connection.
const STREAMS: u32 = 1000;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Set on answers that were decided while the database could not be reached.
const STALE: HeaderName = HeaderName::from_static("x-onering-stale");

/// gRPC services of others, open to anybody.
const OPEN: [&str; 3] = [
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];

/// Paths that stand for no RPC.
const PLAIN: [&str; 3] = ["/health", "/openapi.json", "/metrics"];

/// What answers calls.
pub struct Front {
    /// What the services share.
    pub context: Context,
    /// The gate.
    pub gate: Arc<Gate>,
    /// The routes of REST.
    pub rest: Arc<Rest>,
    /// The gRPC services.
    pub grpc: Routes,
    /// `/openapi.json`.
    pub openapi: Bytes,
    /// `/metrics`.
    pub metrics: Arc<Metrics>,
    /// `/health?deep=true`.
    pub health: Health,
}

/// Where a call came from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

impl Front {
    /// Renders what is the same for every call.
    ///
    /// # Errors
    /// Where the protos' annotations can't be served.
    pub fn new(
        context: Context,
        gate: Arc<Gate>,
        rest: Arc<Rest>,
        grpc: Routes,
        metrics: Arc<Metrics>,
        health: Health,
    ) -> std::result::Result<Self, String> {
        let openapi =
            serde_json::to_vec_pretty(&openapi::document(&rest)).map_err(|e| e.to_string())?;
        Ok(Self {
            context,
            gate,
            rest,
            grpc,
            openapi: openapi.into(),
            metrics,
            health,
        })
    }

    /// Answers one call.
    pub async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let id = request_id(request.headers());
        request.extensions_mut().insert(RequestId(id.clone()));
        let content = request
            .headers()
            .get(header::CONTENT_TYPE)
            .map_or(&[][..], HeaderValue::as_bytes);
        let stale = self.context.directory.freshness() == Freshness::Stale;
        let mut response = if content.starts_with(b"application/grpc") {
            let web = content.starts_with(b"application/grpc-web");
            self.clone().grpc(request, web).await
        } else {
            self.rest(request, &id).await.map(Body::new)
        };
        if stale {
            response
                .headers_mut()
                .insert(STALE, HeaderValue::from_static("true"));
        }
        if let Ok(value) = HeaderValue::try_from(id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        response
    }

    async fn grpc(self: Arc<Self>, request: Request<Incoming>, web: bool) -> Response<Body> {
        let request = request.map(Body::new);
        let gated = tower::service_fn(move |request: Request<Body>| self.clone().gated(request));
        let answered = if web {
            tonic_web::GrpcWebLayer::new()
                .layer(gated)
                .oneshot(request)
                .await
        } else {
            gated.oneshot(request).await
        };
        match answered {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// A gRPC call behind the gate. Health and reflection are not methods of
    /// ours and open to anybody. Nothing else passes that the gate does not know.
    async fn gated(
        self: Arc<Self>,
        mut request: Request<Body>,
    ) -> std::result::Result<Response<Body>, Infallible> {
        let path = request.uri().path();
        if OPEN.iter().any(|service| path.starts_with(service)) {
            return self.grpc.clone().oneshot(request).await;
        }
        let Some(method) = self.gate.method(path) else {
            return Ok(no_such_method("there is no such method").into_http());
        };
        let mut passage = Passage::begin();
        let peer = peer(request.extensions());
        let admitted = self
            .gate
            .admit(method, request.headers(), peer, &mut passage)
            .await;
        let mut response = match admitted {
            Ok(caller) => {
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                let mut response = self.grpc.clone().oneshot(request).await?;
                explain(&mut response);
                response
            }
            Err(e) => tonic::Status::from(e).into_http(),
        };
        passage.end(response.headers_mut());
        Ok(response)
    }

    async fn rest(&self, request: Request<Incoming>, id: &str) -> Response<Full<Bytes>> {
        let mut passage = Passage::begin();
        let mut response = self
            .routed(request, id, &mut passage)
            .await
            .unwrap_or_else(|e| problem::response(&e, Some(id)));
        passage.end(response.headers_mut());
        response
    }

    async fn routed<'a>(
        &'a self,
        mut request: Request<Incoming>,
        id: &str,
        passage: &mut Passage<'a>,
    ) -> Result<Response<Full<Bytes>>> {
        // What is called most goes the short way.
        let (method, path) = (request.method(), request.uri().path());
        if method == Method::POST && path == "/v1/external/events" {
            return self.publish(request, passage).await;
        }
        if PLAIN.contains(&path) || docs::PATHS.contains(&path) {
            return match *method {
                Method::GET | Method::HEAD => self.plain(&request, passage).await,
                _ => Ok(transcode::wrong_method(method, "GET, HEAD, OPTIONS", id)),
            };
        }
        if let Found::Route(route, _) = self.rest.routes.find(method, path) {
            let method = self.method(route.grpc_path.as_str())?;
            let peer = peer(request.extensions());
            let caller = self
                .gate
                .admit(method, request.headers(), peer, passage)
                .await?;
            let limit = if route.template.ends_with("/batch") {
                MAX_BATCH
            } else {
                MAX_BODY
            };
            if route.template == "/v1/external/me" && request.uri().query().is_none() {
                let caller = caller.ok_or_else(|| Error::internal("no caller"))?;
                let answer = keys::describe(&self.context, &caller);
                return Ok(transcode::json_response(
                    StatusCode::OK,
                    hot::write_caller(&answer)?,
                    HeaderMap::new(),
                ));
            }
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            return Ok(transcode::answer(&self.rest, self.grpc.clone(), request, limit).await);
        }
        // No such route or method: nobody's call, and no key is looked at.
        let mut response =
            transcode::answer(&self.rest, self.grpc.clone(), request, MAX_BODY).await;
        problem::set_request_id(response.headers_mut(), Some(id));
        Ok(response)
    }

    fn method(&self, path: &str) -> Result<&Rpc> {
        let method = self.gate.method(path);
        method.ok_or_else(|| Error::internal(format_args!("{path} is no method")))
    }

    /// What is no method of ours.
    async fn plain<'a>(
        &'a self,
        request: &Request<Incoming>,
        passage: &mut Passage<'a>,
    ) -> Result<Response<Full<Bytes>>> {
        let path = request.uri().path();
        let of_docs = if docs::PATHS.contains(&path) {
            "/docs"
        } else {
            path
        };
        self.gate.admit_plain(&format!("GET {of_docs}"))?;
        match path {
            "/metrics" => self.scrape(request, passage).await,
            "/openapi.json" => Ok(transcode::json_response(
                StatusCode::OK,
                self.openapi.clone(),
                HeaderMap::new(),
            )),
            "/health" => self.health(request.uri().query()).await,
            path => Ok(docs::answer(path)),
        }
    }

    /// `GET /health`: the process lives; `deep=true`: what it depends on, too.
    async fn health(&self, query: Option<&str>) -> Result<Response<Full<Bytes>>> {
        let deep = match query.map(|q| q.split('&').collect::<Vec<_>>()).as_deref() {
            None | Some(["" | "deep=false" | "deep=0"]) => false,
            Some(["deep" | "deep=true" | "deep=1"]) => true,
            Some(_) => {
                return Err(Error::new(
                    Reason::InvalidArgument,
                    "/health takes `deep=true` and nothing else",
                ));
            }
        };
        if !deep {
            return Ok(json(StatusCode::OK, br#"{"status":"healthy"}"#));
        }
        let report = self.health.report().await;
        let status = match report.status {
            Condition::Healthy | Condition::Degraded => StatusCode::OK,
            Condition::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
        };
        let body = serde_json::to_vec(&report).map_err(|e| Error::internal(e.to_string()))?;
        Ok(transcode::json_response(
            status,
            body.into(),
            HeaderMap::new(),
        ))
    }

    /// `POST /v1/external/events`: the payload's bytes are taken as they came.
    async fn publish<'a>(
        &'a self,
        request: Request<Incoming>,
        passage: &mut Passage<'a>,
    ) -> Result<Response<Full<Bytes>>> {
        let method = self.method("/onering.v1.EventService/PublishEvent")?;
        let (parts, body) = request.into_parts();
        let caller = self
            .gate
            .admit(method, &parts.headers, peer(&parts.extensions), passage)
            .await?
            .ok_or_else(|| Error::internal("no caller"))?;
        let most = self.context.live.load().event_max_bytes + AROUND_PAYLOAD;
        let bytes = transcode::collect(&parts.headers, body, most).await?;
        let query = parts.uri.query();
        let new = if cloudevent::is_one(&parts.headers) {
            cloudevent::parse_publish(query, &parts.headers, &bytes)?
        } else {
            hot::parse_publish(&self.rest, query, &parts.headers, &bytes)?
        };
        let trace = trace::read(&parts.headers, &parts.extensions);
        let trace = trace::or_attribute(trace, new.context, new.state);
        let request = PublishEventRequest {
            tenant: new.tenant.unwrap_or_default(),
            event_type: new.event_type,
            idempotency_key: new.idempotency_key.unwrap_or_default(),
            ordering_key: new.ordering_key.unwrap_or_default(),
            payload: new
                .data
                .map(crate::proto::v1::publish_event_request::Payload::DataJson),
        };
        let (answer, repeated) = events::publish(&self.context, &caller, request, trace).await?;
        let mut headers = HeaderMap::new();
        if repeated {
            headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
        }
        Ok(transcode::json_response(
            StatusCode::ACCEPTED,
            hot::write_publish_response(&answer)?,
            headers,
        ))
    }

    async fn scrape<'a>(
        &'a self,
        request: &Request<Incoming>,
        passage: &mut Passage<'a>,
    ) -> Result<Response<Full<Bytes>>> {
        self.gate
            .admit_monitoring(request.headers(), peer(request.extensions()), passage)
            .await?;
        // As of now: the poll that sets it may be waiting for the database.
        let stale = self.context.directory.freshness() != Freshness::Fresh;
        self.metrics.config_stale.set(f64::from(u8::from(stale)));
        let mut response = Response::new(Full::new(Bytes::from(self.metrics.render())));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        Ok(response)
    }
}

/// Gives a refusal of tonic's own, which is about the form of a request, the
/// details that ours have. What refuses in a handler carries them already.
fn explain(response: &mut Response<Body>) {
    use tonic::{Code, Status};
    if response.headers().contains_key("grpc-status-details-bin") {
        return;
    }
    let Some(status) = Status::from_header_map(response.headers()) else {
        return;
    };
    let told: Status = match status.code() {
        Code::Ok => return,
        // No such method, or a compression that we do not speak.
        Code::Unimplemented => match status.message() {
            "" => no_such_method("this server does not answer this method"),
            why => unimplemented(Error::new(Reason::UnsupportedMediaType, why)),
        },
        Code::Internal => Error::new(
            Reason::InvalidArgument,
            format!("not a request: {}", status.message()),
        )
        .into(),
        _ => Error::from(&status).into(),
    };
    if let Err(e) = told.add_header(response.headers_mut()) {
        tracing::debug!(error.message = %e, "refusal without details");
    }
}

fn no_such_method(detail: &str) -> tonic::Status {
    unimplemented(Error::new(Reason::NotFound, detail))
}

/// An error with the code that gRPC has for calls to nothing.
fn unimplemented(error: Error) -> tonic::Status {
    let told = tonic::Status::from(error);
    let details = told.details().to_vec().into();
    tonic::Status::with_details(tonic::Code::Unimplemented, told.message(), details)
}

fn json(status: StatusCode, body: &'static [u8]) -> Response<Full<Bytes>> {
    transcode::json_response(status, Bytes::from_static(body), HeaderMap::new())
}

fn peer(extensions: &http::Extensions) -> IpAddr {
    extensions
        .get::<Peer>()
        .map_or(IpAddr::from([0, 0, 0, 0]), |p| p.0)
}

/// The caller's own id of the call where it is a usable one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID)
        .and_then(|v| v.to_str().ok())
        .filter(|v| (1..=128).contains(&v.len()) && v.bytes().all(|b| b.is_ascii_graphic()))
        .map_or_else(
            || {
                use crate::domain::id;
                let part = id::Part::new(0);
                format!("req_{}", id::encode(id::uuid_at(id::wall_clock(), part)))
            },
            str::to_owned,
        )
}

/// How a node stops.
#[derive(Clone, Default)]
pub struct Stop {
    /// Calls are still taken, and connections told to go elsewhere: HTTP/2 with
    /// `GOAWAY`, HTTP/1 with `Connection: close` in their next answer. Nothing is
    /// closed of which a client does not know yet.
    pub leaving: CancellationToken,
    /// No more calls are taken.
    pub serving: CancellationToken,
}

/// Serves until it is stopped; calls under way then have until the deadline.
pub async fn serve(
    front: Arc<Front>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    deadline: Duration,
    stop: Stop,
) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.serving.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of file descriptors, as a rule: others will close.
                tracing::warn!(error.message = %e, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(e) = stream.set_nodelay(true) {
            tracing::debug!(error.message = %e, "no TCP_NODELAY");
        }
        let (front, tls, stop) = (front.clone(), tls.clone(), stop.clone());
        connections.spawn(async move {
            match tls {
                None => connection(front, TokioIo::new(stream), address, stop).await,
                Some(tls) => {
                    if let Some(stream) = handshake(&tls, stream).await {
                        connection(front, TokioIo::new(stream), address, stop).await;
                    }
                }
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(deadline, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!("connections did not end in time");
    }
}

async fn handshake(
    tls: &TlsAcceptor,
    stream: TcpStream,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(e)) => {
            tracing::debug!(error.message = %e, "TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

async fn connection<I>(front: Arc<Front>, io: I, address: SocketAddr, stop: Stop)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let multiplexed = Arc::new(AtomicBool::new(false));
    let (noted, leaving) = (multiplexed.clone(), stop.leaving.clone());
    let service = tower::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(address.ip()));
        let alone = request.version() < Version::HTTP_2;
        noted.store(!alone, Ordering::Relaxed);
        let (front, leaving) = (front.clone(), leaving.clone());
        async move {
            let mut response = front.answer(request).await;
            if alone && leaving.is_cancelled() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(response)
        }
    });
    // A panic is a bug; its caller still gets an answer.
    let service = tower_http::catch_panic::CatchPanicLayer::custom(panicked).layer(service);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(32 << 10)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .adaptive_window(true);
    let served = builder.serve_connection_with_upgrades(io, TowerToHyperService::new(service));
    let mut served = pin!(served.into_owned());
    let (mut told, mut closing) = (false, false);
    let ended = loop {
        tokio::select! {
            ended = served.as_mut() => break ended,
            () = stop.serving.cancelled(), if !closing => {
                closing = true;
                served.as_mut().graceful_shutdown();
            }
            // An idle connection of HTTP/1 stays: its next call may be on its way.
            () = stop.leaving.cancelled(), if !told && !closing => {
                told = true;
                if multiplexed.load(Ordering::Relaxed) {
                    served.as_mut().graceful_shutdown();
                }
            }
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error.message = %e, "connection ended");
    }
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response<Full<Bytes>> {
    let id = request_id(&HeaderMap::new());
    problem::response(&Error::internal("a handler panicked"), Some(&id))
}

/// TLS for the listener, HTTP/2 and HTTP/1.1 by ALPN.
///
/// # Errors
/// Where a file can't be read or used.
pub fn tls(tls: &Tls) -> std::result::Result<TlsAcceptor, String> {
    use rustls::{
        RootCertStore, ServerConfig,
        pki_types::{PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certs = crate::connector::read_certificates(&tls.cert)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|e| format!("{}: {e}", tls.key.display()))?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for cert in crate::connector::read_certificates(path)? {
                roots
                    .add(cert)
                    .map_err(|e| format!("{}: {e}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|e| e.to_string())?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(certs, key)
        .map_err(|e| format!("{} and {}: {e}", tls.cert.display(), tls.key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
