//! The HTTP clients of attempts: one that shows no certificate, for most, and one
//! for each client certificate. Each has its connections to itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use http::Request;
use http_body::Body;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, ResponseFuture},
    rt::{TokioExecutor, TokioTimer},
};

use crate::{
    connector::{Connector, Tls},
    domain::certificate::ClientCertificate,
};

type HttpClient<B> = Client<HttpsConnector<Connector>, B>;

/// The clients of this node.
pub struct Clients<B> {
    tls: Tls,
    anonymous: HttpClient<B>,
    /// By the address of their certificate, which nothing else has while it is
    /// referred to.
    own: Mutex<HashMap<usize, (Weak<ClientCertificate>, HttpClient<B>)>>,
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
            anonymous: client(tls.connector(None)),
            own: Mutex::default(),
            tls,
        }
    }

    /// Sends a request, showing this certificate or none.
    pub(super) fn request(
        &self,
        certificate: Option<&Arc<ClientCertificate>>,
        request: Request<B>,
    ) -> ResponseFuture {
        match certificate {
            None => self.anonymous.request(request),
            Some(certificate) => self.showing(certificate).request(request),
        }
    }

    /// The client of a certificate: made at the first request.
    fn showing(&self, certificate: &Arc<ClientCertificate>) -> HttpClient<B> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Arc::as_ptr(certificate).addr();
        if let Some((_, client)) = own.get(&at) {
            return client.clone();
        }
        // Those whose subscription was changed or deleted since.
        own.retain(|_, (certificate, _)| certificate.strong_count() > 0);
        let client = client(self.tls.connector(Some(certificate)));
        own.insert(at, (Arc::downgrade(certificate), client.clone()));
        client
    }
}

fn client<B>(connector: HttpsConnector<Connector>) -> HttpClient<B>
where
    B: Body + Send,
    B::Data: Send,
{
    Client::builder(TokioExecutor::new())
        // As many as there are attempts at once: a lower bound would close
        // connections that the next attempts open again.
        .pool_max_idle_per_host(usize::MAX)
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http2_adaptive_window(true)
        .build(connector)
}
