//! The HTTP clients of attempts: one that shows no certificate, for most, and one
//! for each client certificate. Each has its connections to itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use http::{Request, Uri};
use http_body::Body;
use hyper_util::{
    client::legacy::{Client, ResponseFuture},
    rt::{TokioExecutor, TokioTimer},
};

use crate::{
    connector::{Https, Tls},
    domain::certificate::ClientCertificate,
};

/// How often a receiver's HTTP/2 connection is asked whether it lives while requests
/// wait on it, and how long it has to answer.
const PING: Duration = Duration::from_secs(5);

/// A client with its pool of connections.
pub(super) struct HttpClient<B> {
    pool: Client<Https, B>,
    https: Https,
}

impl<B> HttpClient<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn new(https: Https) -> Self {
        let pool = Client::builder(TokioExecutor::new())
            // As many as there are attempts at once: a lower bound would close
            // connections that the next attempts open again.
            .pool_max_idle_per_host(usize::MAX)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_adaptive_window(true)
            // A peer that is gone without a word would have each attempt on its
            // connection fail, which others keep from being idle.
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PING)
            .build(https.clone());
        Self { pool, https }
    }

    pub(super) fn request(&self, request: Request<B>) -> ResponseFuture {
        self.pool.request(request)
    }

    /// Why a connection of this client's to that receiver was ended by TLS, if
    /// one was since then.
    pub(super) fn tls_ended_since(&self, receiver: &Uri, since: Instant) -> Option<String> {
        self.https.ended_since(receiver, since)
    }
}

/// A certificate while some subscription has it, and its client.
type Showing<B> = (Weak<ClientCertificate>, Arc<HttpClient<B>>);

/// The clients of this node.
pub struct Clients<B> {
    tls: Tls,
    anonymous: Arc<HttpClient<B>>,
    /// By the address of their certificate, which nothing else has while it is
    /// referred to.
    showing: Mutex<HashMap<usize, Showing<B>>>,
}

impl<B> Clients<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Clients that connect like this.
    #[must_use]
    pub fn new(tls: Tls) -> Self {
        Self {
            anonymous: Arc::new(HttpClient::new(tls.connector(None))),
            showing: Mutex::default(),
            tls,
        }
    }

    /// The client that shows this certificate, or none. Made when it is first
    /// asked for.
    pub(super) fn of(&self, certificate: Option<&Arc<ClientCertificate>>) -> Arc<HttpClient<B>> {
        let Some(certificate) = certificate else {
            return self.anonymous.clone();
        };
        let mut showing = self.showing.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Arc::as_ptr(certificate).addr();
        if let Some((_, client)) = showing.get(&at) {
            return client.clone();
        }
        // Those whose subscriptions were changed or deleted since.
        showing.retain(|_, (certificate, _)| certificate.strong_count() > 0);
        let client = Arc::new(HttpClient::new(self.tls.connector(Some(certificate))));
        showing.insert(at, (Arc::downgrade(certificate), client.clone()));
        client
    }
}
