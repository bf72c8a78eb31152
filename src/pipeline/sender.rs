//! One attempt over HTTP: signed as it leaves, to an address that was checked,
//! without redirects, with an end to its patience.

use std::{
    error::Error as StdError,
    fmt, io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{clients::Clients, job::Job, node::Lease};
use crate::{
    connector::RefusedEndpoint,
    domain::{
        certificate::ClientCertificate,
        cloudevent::{self, Message},
        delivery::{Outcome, outcome_of_status},
        id::Micros,
        signature::Signed,
        trace::Trace,
    },
    settings::Live,
    target::Target,
};

mod challenge;

pub use challenge::Unproven;

/// The names of our headers, made once.
mod name {
    use http::HeaderName;

    use crate::domain::{signature, trace};

    pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static(trace::TRACEPARENT);
    pub(super) const TRACESTATE: HeaderName = HeaderName::from_static(trace::TRACESTATE);
    pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

    pub(super) const WEBHOOK_ID: HeaderName = HeaderName::from_static(signature::WEBHOOK_ID);
    pub(super) const WEBHOOK_TIMESTAMP: HeaderName =
        HeaderName::from_static(signature::WEBHOOK_TIMESTAMP);
    pub(super) const WEBHOOK_SIGNATURE: HeaderName =
        HeaderName::from_static(signature::WEBHOOK_SIGNATURE);
    pub(super) const SIGNATURE: HeaderName =
        HeaderName::from_static(signature::X_WEBHOOK_SIGNATURE);
    pub(super) const TIMESTAMP: HeaderName =
        HeaderName::from_static(signature::X_WEBHOOK_TIMESTAMP);
    pub(super) const EVENT_ID: HeaderName = HeaderName::from_static(signature::X_WEBHOOK_EVENT_ID);
    pub(super) const EVENT: HeaderName = HeaderName::from_static(signature::X_WEBHOOK_EVENT);
    pub(super) const ID: HeaderName = HeaderName::from_static(signature::X_WEBHOOK_ID);
    pub(super) const ATTEMPT: HeaderName = HeaderName::from_static(signature::X_WEBHOOK_ATTEMPT);
}

/// How much of a failure's answer is kept.
const KEEP_FAILURE: usize = 4096;
/// How much of a success' answer is kept.
const KEEP_SUCCESS: usize = 256;
/// How much of an answer is read so that its connection can be used again.
const DRAIN: usize = 65_536;
/// How long that may take: an attempt whose result is known takes nobody's place.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Reads the wall clock, in microseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> Micros + Send + Sync>;

/// How an attempt went.
#[derive(Debug)]
pub struct Sent {
    /// What it means.
    pub outcome: Outcome,
    /// The receiver's status; 0: none.
    pub status: u16,
    /// Why it failed: `http_503`, `timeout`, `connection_refused`.
    pub error: String,
    /// The beginning of the receiver's answer.
    pub response: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Sent {
    fn without_answer(error: &str, outcome: Outcome, began: Instant) -> Self {
        Self {
            outcome,
            status: 0,
            error: error.to_owned(),
            response: Vec::new(),
            took: began.elapsed(),
        }
    }
}

/// What an attempt sends: its headers, signatures among them, and its body.
pub struct Envelope {
    /// The headers, but for those that the connection adds.
    pub headers: HeaderMap,
    /// The body, which the signatures are over.
    pub body: Bytes,
    /// The signatures.
    pub signed: Signed,
}

impl Envelope {
    /// Signs an attempt at that time.
    ///
    /// # Errors
    /// Where what is stored is not an event's, which is never so unless rows were
    /// changed by hand.
    pub fn seal(job: &Job, target: &Target, signed_at: Micros) -> Result<Self, String> {
        let message = cloudevent::message(
            target.subscription.format,
            job.tenant,
            &job.body,
            job.trace.as_deref(),
        );
        let message = message.ok_or("what is stored is not an event's body")?;
        let signed = target.sign(signed_at, &job.event.to_string(), &message.body);
        let headers = headers(job, target, signed_at, &message, &signed);
        Ok(Self {
            headers: headers.map_err(|e| e.to_string())?,
            body: message.body,
            signed,
        })
    }
}

fn headers(
    job: &Job,
    target: &Target,
    signed_at: Micros,
    message: &Message,
    signed: &Signed,
) -> Result<HeaderMap, http::Error> {
    let mut headers = HeaderMap::with_capacity(16 + target.headers.len());
    headers.extend(target.headers.clone());
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(message.content_type),
    );
    for (name, value) in &message.headers {
        headers.insert(*name, HeaderValue::try_from(value)?);
    }
    let seconds: HeaderValue = signed_at.div_euclid(1_000_000).into();
    let id = HeaderValue::try_from(job.event.to_string())?;
    headers.insert(name::WEBHOOK_ID, id.clone());
    headers.insert(name::WEBHOOK_TIMESTAMP, seconds.clone());
    headers.insert(
        name::WEBHOOK_SIGNATURE,
        HeaderValue::try_from(&signed.webhook_signature)?,
    );
    headers.insert(
        name::SIGNATURE,
        HeaderValue::try_from(&signed.x_webhook_signature)?,
    );
    headers.insert(name::TIMESTAMP, seconds);
    headers.insert(name::EVENT_ID, id);
    headers.insert(name::EVENT, HeaderValue::try_from(&*job.event_type)?);
    headers.insert(name::ID, HeaderValue::try_from(job.id.to_string())?);
    headers.insert(
        name::ATTEMPT,
        HeaderValue::from(u32::from(job.attempts) + 1),
    );
    if let Some(trace) = &job.trace {
        carry(&mut headers, job, trace)?;
    }
    Ok(headers)
}

/// A request that is ready to leave.
pub struct Post<'a> {
    /// For the log.
    pub delivery: &'a (dyn fmt::Display + Sync),
    /// Where it goes.
    pub uri: &'a Uri,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// When it was signed, by the clock that the sender reads.
    pub signed_at: Micros,
    /// The greatest age of a signature that leaves.
    pub window: Duration,
    /// How long the attempt may take.
    pub patience: Duration,
    /// What it shows to its receiver.
    pub certificate: Option<&'a Arc<ClientCertificate>>,
    /// What it is sent under.
    pub fence: Arc<dyn Fence>,
}

/// Says whether the delivery is still whose attempt this is.
pub trait Fence: Send + Sync {
    /// Whether nobody else can have it yet.
    fn stands(&self) -> bool;
}

impl Fence for Lease {
    fn stands(&self) -> bool {
        Self::stands(self)
    }
}

/// Under which conditions a body leaves.
struct Leave {
    signed_at: Micros,
    window: Duration,
    fence: Option<Arc<dyn Fence>>,
    kept: Kept,
}

/// Why a body did not leave.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<OnceLock<NotSent>>);

/// The HTTP client of this node's attempts.
pub struct Sender {
    clients: Clients<SignedBody>,
    live: Arc<ArcSwap<Live>>,
    clock: Clock,
    agent: HeaderValue,
}

/// A body that leaves only while its signature is fresh and its lease stands. It is
/// first read when the request is about to be written: a connection that took long to
/// open, a stalled process or a clock that jumped shows here.
pub struct SignedBody {
    data: Option<Bytes>,
    leave: Leave,
    clock: Clock,
}

/// A body was kept back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum NotSent {
    #[error("the signature is older than the replay window")]
    Expired,
    #[error("another may have taken the delivery over")]
    Fenced,
}

impl Leave {
    fn refusal(&self, now: Micros) -> Option<NotSent> {
        let window = Micros::try_from(self.window.as_micros()).unwrap_or(Micros::MAX);
        if self.fence.as_ref().is_some_and(|fence| !fence.stands()) {
            Some(NotSent::Fenced)
        } else if now - self.signed_at > window {
            Some(NotSent::Expired)
        } else {
            None
        }
    }
}

impl Body for SignedBody {
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(data) = self.data.take() else {
            return Poll::Ready(None);
        };
        if let Some(why) = self.leave.refusal((self.clock)()) {
            let _ = self.leave.kept.0.set(why);
            return Poll::Ready(Some(Err(Box::new(why))));
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |d| d.len() as u64))
    }
}

impl Sender {
    /// A sender over these clients.
    #[must_use]
    pub fn new(clients: Clients<SignedBody>, live: Arc<ArcSwap<Live>>, clock: Clock) -> Self {
        Self {
            clients,
            live,
            clock,
            agent: HeaderValue::from_static(concat!("onering/", env!("CARGO_PKG_VERSION"))),
        }
    }

    /// Sends one attempt, as long as its lease stands.
    pub async fn send(&self, job: &Job, target: &Target, lease: Lease) -> Sent {
        let signed_at = (self.clock)();
        let certificate = target.client_certificate.as_ref();
        if certificate.is_some_and(|c| c.has_expired(signed_at)) {
            // Its owner may yet give the subscription another one.
            let retryable = Outcome::Retryable { retry_after: None };
            return Sent::without_answer("client_certificate_expired", retryable, Instant::now());
        }
        let envelope = match Envelope::seal(job, target, signed_at) {
            Ok(envelope) => envelope,
            Err(e) => {
                tracing::error!(delivery.id = %job.id, error.message = e, "request can't be built");
                return Sent::without_answer("bad_request", Outcome::Permanent, Instant::now());
            }
        };
        self.post(Post {
            delivery: &job.id,
            uri: &target.uri,
            headers: envelope.headers,
            body: envelope.body,
            signed_at,
            window: self.live.load().replay_window,
            patience: Duration::from_secs(target.subscription.timeout.into()),
            certificate,
            fence: Arc::new(lease),
        })
        .await
    }

    /// Sends what is signed already.
    pub async fn post(&self, post: Post<'_>) -> Sent {
        let began = Instant::now();
        let kept = Kept::default();
        let retryable = Outcome::Retryable { retry_after: None };
        let leave = Leave {
            signed_at: post.signed_at,
            window: post.window,
            fence: Some(post.fence),
            kept: kept.clone(),
        };
        let mut headers = post.headers;
        headers.insert(header::USER_AGENT, self.agent.clone());
        let request = self.request(post.uri.clone(), headers, post.body, leave);
        let client = self.clients.of(post.certificate);
        match tokio::time::timeout(post.patience, client.request(request)).await {
            Ok(Ok(response)) => self.answered(response, began, post.patience).await,
            Ok(Err(e)) => {
                match kept.0.get() {
                    Some(NotSent::Expired) => {
                        return Sent::without_answer(
                            "replay_expired",
                            Outcome::ReplayExpired,
                            began,
                        );
                    }
                    Some(NotSent::Fenced) => {
                        return Sent::without_answer("", Outcome::Released, began);
                    }
                    None => {}
                }
                let ended = || client.tls_ended_since(post.uri, began);
                let failure = Failure::of(&e).or_tls(ended);
                // For the operator: it may say what an internal name resolves to.
                tracing::debug!(delivery.id = %post.delivery, error.message = failure.detail, "attempt failed");
                Sent::without_answer(failure.error, retryable, began)
            }
            Err(_) => Sent::without_answer("timeout", retryable, began),
        }
    }

    fn request(
        &self,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
        leave: Leave,
    ) -> Request<SignedBody> {
        let mut request = Request::new(SignedBody {
            data: Some(body),
            leave,
            clock: self.clock.clone(),
        });
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        *request.version_mut() = Version::HTTP_11;
        request
    }

    /// The status decides; what follows it, or does not follow in time, can't
    /// change what it said.
    async fn answered(
        &self,
        response: Response<Incoming>,
        began: Instant,
        patience: Duration,
    ) -> Sent {
        let status = response.status();
        let outcome = outcome_of_status(
            status.as_u16(),
            retry_after(response.headers(), (self.clock)()),
        );
        let keep = if status.is_success() {
            KEEP_SUCCESS
        } else {
            KEEP_FAILURE
        };
        let took = began.elapsed();
        let mut incoming = response.into_body();
        let mut kept = Vec::new();
        let drain = async {
            let mut read = 0;
            while read < DRAIN
                && let Some(Ok(frame)) = incoming.frame().await
            {
                if let Some(data) = frame.data_ref() {
                    read += data.len();
                    let room = keep - kept.len();
                    kept.extend_from_slice(&data[..data.len().min(room)]);
                }
            }
        };
        // Late: what came of it is kept, and the connection closed.
        let left = patience.saturating_sub(took).min(DRAIN_TIME);
        let _ = tokio::time::timeout(left, drain).await;
        Sent {
            outcome,
            error: if status.is_success() {
                String::new()
            } else {
                format!("http_{}", status.as_u16())
            },
            status: status.as_u16(),
            response: kept,
            took,
        }
    }
}

/// Hands on where the event came from: this attempt is a span in the publisher's
/// trace.
fn carry(headers: &mut HeaderMap, job: &Job, trace: &Trace) -> Result<(), http::Error> {
    if let Some(context) = &trace.context {
        let span = context.of_attempt(job.id, job.token);
        headers.insert(name::TRACEPARENT, HeaderValue::try_from(span.to_string())?);
        if !trace.state.is_empty() {
            headers.insert(name::TRACESTATE, HeaderValue::try_from(&trace.state)?);
        }
    }
    if !trace.request_id.is_empty() {
        headers.insert(name::REQUEST_ID, HeaderValue::try_from(&trace.request_id)?);
    }
    Ok(())
}

struct Failure {
    error: &'static str,
    detail: String,
}

impl Failure {
    fn of(error: &hyper_util::client::legacy::Error) -> Self {
        let mut class = if error.is_connect() {
            "connection_failed"
        } else {
            "connection_lost"
        };
        let mut source: Option<&(dyn StdError + 'static)> = Some(error);
        let mut detail = String::new();
        while let Some(e) = source {
            detail = e.to_string();
            if let Some(refused) = e.downcast_ref::<RefusedEndpoint>() {
                class = refused.class();
            } else if e.downcast_ref::<rustls::Error>().is_some() {
                class = "tls_failed";
            } else if let Some(e) = e.downcast_ref::<io::Error>() {
                class = match e.kind() {
                    io::ErrorKind::ConnectionRefused => "connection_refused",
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                        "connection_reset"
                    }
                    io::ErrorKind::TimedOut => "timeout",
                    _ => class,
                };
            }
            // An I/O error may wrap the one that says more.
            source = match e.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => e.source(),
            };
        }
        Self {
            error: class,
            detail,
        }
    }

    /// Where the connection was lost after its handshake: it may be TLS that
    /// ended it.
    fn or_tls(self, ended: impl FnOnce() -> Option<String>) -> Self {
        if !matches!(self.error, "connection_lost" | "connection_reset") {
            return self;
        }
        match ended() {
            None => self,
            Some(detail) => Self {
                error: "tls_failed",
                detail,
            },
        }
    }
}

/// `Retry-After` (RFC 9110, 10.2.3): seconds or a date.
fn retry_after(headers: &HeaderMap, now: Micros) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text)
        .ok()?
        .timestamp()
        .as_microsecond();
    Some(Duration::from_micros(
        u64::try_from(date - now).unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metrics::Metrics, pipeline::node::Node, store::Store, store::sqlite::Sqlite};

    // N2, S5: a body that comes to be written after its session ended, or after its
    // signature's time, does not leave.
    #[tokio::test]
    async fn a_body_leaves_while_its_lease_stands() {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("o.db")).await.unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let ttl = Duration::from_secs(60);
        let metrics = Arc::new(Metrics::new());
        let node = Arc::new(Node::new(store, metrics, "n".into(), ttl));
        node.begin().await.unwrap();
        let fence: Arc<dyn Fence> = Arc::new(node.lease(node.session()));
        let leave = Leave {
            signed_at: 0,
            window: Duration::from_secs(1),
            fence: Some(fence),
            kept: Kept::default(),
        };
        assert_eq!(leave.refusal(1_000_000), None);
        assert_eq!(leave.refusal(1_000_001), Some(NotSent::Expired));
        node.end().await;
        assert_eq!(leave.refusal(0), Some(NotSent::Fenced));
        // With another session it is another lease.
        node.begin().await.unwrap();
        assert_eq!(leave.refusal(0), Some(NotSent::Fenced));
    }

    // A3: both forms of Retry-After.
    #[test]
    fn retry_after_is_read() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, 1_700_000_000_000_000)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(
            read("Tue, 14 Nov 2023 22:14:20 GMT"),
            Some(Duration::from_secs(60))
        );
        assert_eq!(read("Tue, 14 Nov 2023 22:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-5"), None);
    }
}
