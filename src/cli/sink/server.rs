//! The sink's HTTP server.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
};
use serde::Serialize;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    behaviour::{Answer, Behaviour},
    record::{Delivery, Kept},
};
use crate::domain::signature::{
    MemorySeen, Scheme, Seen as _, Verified, Verifier, VerifyError, VerifyingKey,
    X_WEBHOOK_ATTEMPT, X_WEBHOOK_CHALLENGE, X_WEBHOOK_EVENT,
};

/// Largest body that is taken, in bytes.
const MAX_BODY: usize = 1 << 20;
/// How long a stop waits for answers under way.
const STOP_GRACE: Duration = Duration::from_secs(1);

const HELP: &str = "\
OneRing's webhook sink: a receiver to test with.

POST   /webhook     receives a delivery (any path below it, too), and answers a challenge
GET    /deliveries  what was received: {\"count\", \"total\", \"deliveries\": [...]}
DELETE /delete      forgets it
POST   /behave      how to answer: {\"status\": 503, \"fail_next\": 2, \"delay_ms\": 100,
                    \"hang\": false, \"retry_after\": 5}; {} is a receiver that works
GET    /behave      how it answers now
";

/// What a sink is started with.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// What to verify with; nothing is verified without one.
    pub keys: Vec<VerifyingKey>,
    /// A scheme to insist on.
    pub scheme: Option<Scheme>,
    /// Whether a signature that does not hold is answered with 401.
    pub strict: bool,
    /// How many deliveries to keep.
    pub keep: usize,
    /// Whether to print a line for each delivery.
    pub print: bool,
    /// How to answer at first.
    pub behaviour: Behaviour,
}

impl Default for SinkConfig {
    /// A quiet one on a free port of 127.0.0.1 that keeps 1000.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            keys: Vec::new(),
            scheme: None,
            strict: false,
            keep: 1000,
            print: false,
            behaviour: Behaviour::default(),
        }
    }
}

/// A webhook receiver to test with.
pub struct Sink {
    verifier: Option<Verifier>,
    strict: bool,
    keep: usize,
    print: bool,
    seen: MemorySeen,
    state: Mutex<State>,
    stop: CancellationToken,
}

struct State {
    kept: Kept,
    behaviour: Behaviour,
}

/// The answer of `GET /deliveries`.
#[derive(Serialize)]
struct Page<'a> {
    count: usize,
    total: u64,
    deliveries: Vec<&'a Delivery>,
}

/// A sink that was started; stops when dropped.
pub struct RunningSink {
    /// Where it listens.
    pub addr: SocketAddr,
    sink: Arc<Sink>,
    task: Option<JoinHandle<()>>,
}

impl Sink {
    /// Starts a sink.
    ///
    /// # Errors
    /// When it can't listen.
    pub async fn start(config: SinkConfig) -> io::Result<RunningSink> {
        let listener = TcpListener::bind(config.listen).await?;
        let addr = listener.local_addr()?;
        let verifier = (!config.keys.is_empty()).then(|| {
            let verifier = Verifier::new(&config.keys);
            match config.scheme {
                Some(scheme) => verifier.scheme(scheme),
                None => verifier,
            }
        });
        let sink = Arc::new(Self {
            verifier,
            strict: config.strict,
            keep: config.keep,
            print: config.print,
            seen: MemorySeen::default(),
            state: Mutex::new(State {
                kept: Kept::new(config.keep),
                behaviour: config.behaviour,
            }),
            stop: CancellationToken::new(),
        });
        let task = Some(tokio::spawn(Arc::clone(&sink).serve(listener)));
        Ok(RunningSink { addr, sink, task })
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http1().pipeline_flush(true);
        let connections = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => break,
            };
            let Ok((stream, _)) = accepted else {
                // Out of file descriptors, most likely: some are freed with time.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            // Only delays of small answers are at stake.
            let _ = stream.set_nodelay(true);
            let sink = Arc::clone(&self);
            let service = service_fn(move |request| Arc::clone(&sink).answer(request));
            let connection = server
                .serve_connection(TokioIo::new(stream), service)
                .into_owned();
            let connection = connections.watch(connection);
            let stop = self.stop.clone();
            tokio::spawn(async move {
                let killed = async {
                    stop.cancelled().await;
                    tokio::time::sleep(STOP_GRACE).await;
                };
                tokio::select! {
                    // A connection that breaks is the sender's to report.
                    _ = connection => {}
                    () = killed => {}
                }
            });
        }
        drop(listener);
        let _ = tokio::time::timeout(STOP_GRACE, connections.shutdown()).await;
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path();
        let webhook = path == "/webhook" || path.starts_with("/webhook/");
        Ok(match (request.method(), path) {
            (&Method::POST, _) if webhook => self.receive(request).await,
            (&Method::GET, "/deliveries") => self.deliveries(),
            (&Method::DELETE, "/delete" | "/deliveries") => {
                self.clear();
                json_response(StatusCode::OK, &json!({}))
            }
            (&Method::GET, "/behave") => behaviour_response(&self.lock().behaviour),
            (&Method::POST, "/behave") => self.behave(request).await,
            (&Method::GET, "/") => text(StatusCode::OK, HELP),
            (_, "/deliveries" | "/delete" | "/behave" | "/") => not_allowed(),
            _ if webhook => not_allowed(),
            _ => text(StatusCode::NOT_FOUND, HELP),
        })
    }

    async fn receive(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = match read(body).await {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        // Whoever makes a subscription may have to prove that this wants webhooks.
        if let Some(challenge) = head.headers.get(X_WEBHOOK_CHALLENGE) {
            let challenge = Bytes::copy_from_slice(challenge.as_bytes());
            return with_type(StatusCode::OK, "text/plain; charset=utf-8", challenge);
        }
        let now_s = jiff::Timestamp::now().as_second();
        let checked = self.verifier.as_ref().map(|verifier| {
            let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
            verifier.verify(header, &body, now_s)
        });
        let event_id = match &checked {
            Some(Ok(Verified { event_id, .. })) => Some(event_id.as_str()),
            _ => None,
        };
        let duplicate = event_id.is_some_and(|id| self.seen.contains(id, now_s));
        let answer = self.record(&head, &body, checked.as_ref(), duplicate);

        if answer.hang {
            self.stop.cancelled().await;
        } else if answer.delay_ms > 0 {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(answer.delay_ms)) => {}
                () = self.stop.cancelled() => {}
            }
        }
        let well = !answer.hang && (200..300).contains(&answer.status);
        if let (Some(id), true, false) = (event_id, well, duplicate) {
            self.seen.remember(id, now_s);
        }
        respond(&answer, checked.as_ref(), duplicate)
    }

    /// Decides on the answer and keeps the delivery, in one step, so that what
    /// is kept stands in the order of the answers.
    fn record(
        &self,
        head: &http::request::Parts,
        body: &Bytes,
        checked: Option<&Result<Verified, VerifyError>>,
        duplicate: bool,
    ) -> Answer {
        let delivery = (self.keep > 0).then(|| delivery(head, body, checked, duplicate));
        let refused = self.strict && matches!(checked, Some(Err(_)));
        let answer = {
            let mut state = self.lock();
            let answer = if refused {
                Answer {
                    status: 401,
                    delay_ms: 0,
                    hang: false,
                    retry_after: None,
                }
            } else {
                state.behaviour.next()
            };
            state.kept.total += 1;
            if let Some(mut delivery) = delivery {
                delivery.status = (!answer.hang).then_some(answer.status);
                state.kept.push(delivery);
            }
            answer
        };
        if self.print {
            print_line(head, &answer, checked, duplicate);
        }
        answer
    }

    fn deliveries(&self) -> Response<Full<Bytes>> {
        let (total, deliveries) = {
            let state = self.lock();
            (state.kept.total, state.kept.all())
        };
        let deliveries: Vec<&Delivery> = deliveries.iter().map(AsRef::as_ref).collect();
        // Not by way of a `Value`, which would hold everything once more.
        let found = serde_json::to_vec(&Page {
            count: deliveries.len(),
            total,
            deliveries,
        });
        with_type(
            StatusCode::OK,
            "application/json",
            found.unwrap_or_default().into(),
        )
    }

    async fn behave(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let body = match read(request.into_body()).await {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        let wanted = serde_json::from_slice::<Behaviour>(&body)
            .map_err(|e| e.to_string())
            .and_then(|wanted| wanted.check().map(|()| wanted));
        match wanted {
            Ok(wanted) => {
                let response = behaviour_response(&wanted);
                self.lock().behaviour = wanted;
                response
            }
            Err(wrong) => json_response(StatusCode::BAD_REQUEST, &json!({ "error": wrong })),
        }
    }

    fn clear(&self) {
        self.seen.clear();
        self.lock().kept.clear();
    }

    // Each change leaves the state usable, also when a holder of the lock died.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RunningSink {
    /// The URL to subscribe with.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/webhook", self.addr)
    }

    /// What is kept, oldest first.
    #[must_use]
    pub fn deliveries(&self) -> Vec<Arc<Delivery>> {
        self.sink.lock().kept.all()
    }

    /// How many came since the start or the last clearing, kept or not.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.sink.lock().kept.total
    }

    /// Forgets what is kept, and which events were seen.
    pub fn clear(&self) {
        self.sink.clear();
    }

    /// Answers like this from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.sink.lock().behaviour = behaviour;
    }

    /// Stops: answers under way get a second to finish.
    pub async fn stop(mut self) {
        self.sink.stop.cancel();
        if let Some(task) = self.task.take() {
            // It can only fail by a panic, which has been reported by then.
            let _ = task.await;
        }
    }
}

impl Drop for RunningSink {
    fn drop(&mut self) {
        self.sink.stop.cancel();
    }
}

async fn read(body: Incoming) -> Result<Bytes, Response<Full<Bytes>>> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(text(
            StatusCode::PAYLOAD_TOO_LARGE,
            "a body has at most 1 MiB\n",
        )),
        Err(_) => Err(text(StatusCode::BAD_REQUEST, "the body ended early\n")),
    }
}

fn delivery(
    head: &http::request::Parts,
    body: &Bytes,
    checked: Option<&Result<Verified, VerifyError>>,
    duplicate: bool,
) -> Delivery {
    let (verified, reason, event_id) = match checked {
        None => (None, Some("no secret".to_owned()), None),
        Some(Ok(verified)) => (Some(true), None, Some(verified.event_id.clone())),
        Some(Err(e)) => (Some(false), Some(e.to_string()), None),
    };
    let (text, base64) = match std::str::from_utf8(body) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (
            String::from_utf8_lossy(body).into_owned(),
            Some(STANDARD.encode(body)),
        ),
    };
    Delivery {
        received_at: jiff::Timestamp::now().to_string(),
        path: head.uri.path().to_owned(),
        headers: joined(&head.headers),
        body: text,
        body_base64: base64,
        verified,
        reason,
        event_id,
        duplicate,
        status: None,
    }
}

fn joined(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut all = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        all.entry(name.as_str().to_owned())
            .and_modify(|before| {
                before.push_str(", ");
                before.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    all
}

fn print_line(
    head: &http::request::Parts,
    answer: &Answer,
    checked: Option<&Result<Verified, VerifyError>>,
    duplicate: bool,
) {
    use std::io::Write as _;
    let header = |name| {
        let value = head.headers.get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or("-")
    };
    let status = if answer.hang {
        "hangs".to_owned()
    } else {
        answer.status.to_string()
    };
    let verdict = match checked {
        None => "no secret".to_owned(),
        Some(Ok(verified)) => format!("verified {}", verified.event_id),
        Some(Err(e)) => format!("NOT VERIFIED: {e}"),
    };
    // Whoever closed the pipe does not want the lines; the sink goes on.
    let _ = writeln!(
        std::io::stdout(),
        "{} {} {status} {} attempt {} {verdict}{}",
        jiff::Timestamp::now(),
        head.uri.path(),
        header(X_WEBHOOK_EVENT),
        header(X_WEBHOOK_ATTEMPT),
        if duplicate { " (duplicate)" } else { "" },
    );
}

fn respond(
    answer: &Answer,
    checked: Option<&Result<Verified, VerifyError>>,
    duplicate: bool,
) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = match checked {
        Some(Err(e)) if status == StatusCode::UNAUTHORIZED => {
            json_response(status, &json!({"error": e.code(), "reason": e.to_string()}))
        }
        _ if duplicate => json_response(status, &json!({"duplicate": true})),
        _ => Response::new(Full::new(Bytes::from_static(b"{}"))),
    };
    *response.status_mut() = status;
    if let Some(seconds) = answer.retry_after {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn behaviour_response(behaviour: &Behaviour) -> Response<Full<Bytes>> {
    json_response(StatusCode::OK, &json!(behaviour))
}

fn not_allowed() -> Response<Full<Bytes>> {
    text(StatusCode::METHOD_NOT_ALLOWED, HELP)
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    with_type(
        status,
        "text/plain; charset=utf-8",
        Bytes::from_static(text.as_bytes()),
    )
}

fn json_response(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    with_type(status, "application/json", Bytes::from(value.to_string()))
}

fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
