//! A webhook receiver that answers as a test tells it to.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinHandle,
};

/// What came.
#[derive(Debug, Clone)]
pub struct Received {
    pub at: Instant,
    pub version: Version,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Its connection: the first one is 0.
    pub connection: usize,
    /// Where that came from.
    pub peer: IpAddr,
    /// The SHA-256 of the client certificate that it came with, in hexadecimal.
    pub certificate: Option<String>,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .unwrap_or_else(|| panic!("no header {name}: {:?}", self.headers))
            .to_str()
            .unwrap()
    }

    pub fn event(&self) -> &str {
        self.header("x-webhook-event-id")
    }

    pub fn attempt(&self) -> u32 {
        self.header("x-webhook-attempt").parse().unwrap()
    }

    /// The payload's text.
    pub fn data(&self) -> String {
        let text = std::str::from_utf8(&self.body).unwrap();
        let (_, data) = text.split_once(r#","data":"#).unwrap();
        data.strip_suffix('}').unwrap().to_owned()
    }
}

pub type Reply = Response<Full<Bytes>>;
type Replying = Pin<Box<dyn Future<Output = Reply> + Send>>;
type Handler = dyn Fn(Received) -> Replying + Send + Sync;

/// An answer with nothing but a status.
pub fn status(status: u16) -> Reply {
    reply(status, "")
}

pub fn reply(status: u16, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status.try_into().unwrap();
    reply
}

struct Shared {
    handler: Box<Handler>,
    /// Whether what came is kept: not where a test runs for hours.
    keeps: bool,
    received: Mutex<Vec<Received>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

/// A running receiver; gone when it is dropped.
pub struct Receiver {
    pub address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct UnderWay<'a>(&'a Shared);

impl<'a> UnderWay<'a> {
    fn new(shared: &'a Shared) -> Self {
        let now = shared.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most_under_way.fetch_max(now, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Receiver {
    /// One that answers 200.
    pub async fn start() -> Self {
        Self::answering(|_| status(200)).await
    }

    /// One that answers at once.
    pub async fn answering(handler: impl Fn(Received) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(move |received| {
            let reply = handler(received);
            async move { reply }
        })
        .await
    }

    /// One that never answers.
    pub async fn hanging() -> Self {
        Self::with(|_| std::future::pending()).await
    }

    pub async fn with<F: Future<Output = Reply> + Send + 'static>(
        handler: impl Fn(Received) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::over(None, handler).await
    }

    /// One that takes TLS, where there is a configuration for it.
    pub async fn over<F: Future<Output = Reply> + Send + 'static>(
        tls: Option<rustls::ServerConfig>,
        handler: impl Fn(Received) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::build(tls, true, handler).await
    }

    /// One that keeps nothing of what came.
    pub async fn forgetting<F: Future<Output = Reply> + Send + 'static>(
        handler: impl Fn(Received) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::build(None, false, handler).await
    }

    async fn build<F: Future<Output = Reply> + Send + 'static>(
        tls: Option<rustls::ServerConfig>,
        keeps: bool,
        handler: impl Fn(Received) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            handler: Box::new(move |received| Box::pin(handler(received))),
            keeps,
            received: Mutex::default(),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        });
        let scheme = if tls.is_some() { "https" } else { "http" };
        let acceptor = tls.map(|config| tokio_rustls::TlsAcceptor::from(Arc::new(config)));
        let task = tokio::spawn(serve(listener, acceptor, shared.clone()));
        Self {
            address,
            scheme,
            shared,
            task,
        }
    }

    pub fn url(&self) -> String {
        format!("{}://{}/webhook", self.scheme, self.address)
    }

    /// The URL by a name in place of the address.
    pub fn url_by(&self, name: &str) -> String {
        format!("{}://{name}:{}/webhook", self.scheme, self.address.port())
    }

    /// What came so far, in the order of its arrival.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.shared.received.lock().unwrap().len()
    }

    /// What came, once it is this many at least.
    pub async fn wait(&self, count: usize) -> Vec<Received> {
        super::wait::until(&format!("{count} deliveries"), async || {
            (self.count() >= count).then(|| self.received())
        })
        .await
    }

    pub fn under_way(&self) -> usize {
        self.shared.under_way.load(Ordering::SeqCst)
    }

    pub fn most_under_way(&self) -> usize {
        self.shared.most_under_way.load(Ordering::SeqCst)
    }
}

async fn serve(listener: TcpListener, tls: Option<tokio_rustls::TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    let mut accepted_before = 0;
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted.unwrap(),
            Some(_) = connections.join_next() => continue,
        };
        let number = accepted_before;
        accepted_before += 1;
        stream.set_nodelay(true).unwrap();
        let (tls, shared, number) = (tls.clone(), shared.clone(), (number, peer.ip()));
        connections.spawn(async move {
            match tls {
                None => connection(stream, shared, number, None).await,
                Some(tls) => {
                    // A client that does not trust us hangs up.
                    if let Ok(stream) = tls.accept(stream).await {
                        let certificate = stream.get_ref().1.peer_certificates();
                        let certificate = certificate.map(|c| hex::encode(Sha256::digest(&c[0])));
                        connection(stream, shared, number, certificate).await;
                    }
                }
            }
        });
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    shared: Arc<Shared>,
    number: (usize, IpAddr),
    certificate: Option<String>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, certificate) = (shared.clone(), certificate.clone());
        async move { answer(&shared, request, number, certificate).await }
    });
    // However the connection ends, what came on it was noted.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    shared: &Shared,
    request: Request<Incoming>,
    (connection, peer): (usize, IpAddr),
    certificate: Option<String>,
) -> Result<Reply, Infallible> {
    let under_way = UnderWay::new(shared);
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return Ok(status(400));
    };
    let received = Received {
        at: Instant::now(),
        version: head.version,
        path: head.uri.path().to_owned(),
        headers: head.headers,
        body: body.to_bytes(),
        connection,
        peer,
        certificate,
    };
    if shared.keeps {
        shared.received.lock().unwrap().push(received.clone());
    }
    let reply = (shared.handler)(received).await;
    drop(under_way);
    Ok(reply)
}
