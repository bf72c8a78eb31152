//! Opens connections to receivers, to allowed addresses only. A name is resolved
//! once for a connection; the addresses that come back are checked and one of
//! them is connected to, so that no second answer can lead elsewhere.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{domain::address::Policy, rest::percent, settings::Live};

mod tls;

pub use tls::{Https, Tls};

/// How long it may take to look where a subscription's name leads before it is made.
const LOOK_UP: Duration = Duration::from_secs(2);
/// How long opening one TCP connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Why a connection was not opened.
#[derive(Debug, thiserror::Error)]
pub enum RefusedEndpoint {
    /// Every address that the name has is one that deliveries may not go to.
    #[error("{0}")]
    NotAllowed(String),
    /// The name has no address.
    #[error("{0} can't be resolved")]
    NoAddress(String),
    /// No connection within the time.
    #[error("no connection to {0} within {CONNECT:?}")]
    Timeout(SocketAddr),
    /// The egress proxy refused.
    #[error("the egress proxy answered: {0}")]
    Proxy(String),
}

impl RefusedEndpoint {
    /// The word for it in an attempt's record.
    #[must_use]
    pub const fn class(&self) -> &'static str {
        match self {
            Self::NotAllowed(_) => "endpoint_not_allowed",
            Self::NoAddress(_) => "dns_failed",
            Self::Timeout(_) => "timeout",
            Self::Proxy(_) => "proxy_refused",
        }
    }
}

type Resolved = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Resolves a host's name. The operating system's resolver, but for tests.
pub type Resolver = Arc<dyn Fn(String) -> Resolved + Send + Sync>;

/// The operating system's resolver.
#[must_use]
pub fn system_resolver() -> Resolver {
    Arc::new(|host| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|a| a.ip()).collect())
        })
    })
}

/// Opens checked connections.
#[derive(Clone)]
pub struct Connector {
    live: Arc<ArcSwap<Live>>,
    resolver: Resolver,
    proxy: Option<Arc<url::Url>>,
}

impl Connector {
    /// A connector that allows what the live settings allow at each connection.
    #[must_use]
    pub fn new(live: Arc<ArcSwap<Live>>, resolver: Resolver, proxy: Option<url::Url>) -> Self {
        Self {
            live,
            resolver,
            proxy: proxy.map(Arc::new),
        }
    }

    async fn connect(
        self,
        uri: Uri,
    ) -> Result<TcpStream, Box<dyn std::error::Error + Send + Sync>> {
        let host = host_of(&uri);
        let https = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        if !https && !self.live.load().allow_http {
            let why = "plain http is not allowed".to_owned();
            return Err(RefusedEndpoint::NotAllowed(why).into());
        }
        let addresses = self.allowed(&host).await?;
        let mut last = None;
        for ip in addresses {
            let address = SocketAddr::new(ip, port);
            let opened = match &self.proxy {
                Some(proxy) => through(proxy, address).await,
                None => direct(address).await,
            };
            match opened {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| RefusedEndpoint::NoAddress(host).into()))
    }

    /// Whether nothing may be sent to a URL by the addresses that its host has now. One
    /// that has none yet, or is looked up for too long, is looked at when it is
    /// connected to.
    pub async fn is_forbidden(&self, uri: &Uri) -> bool {
        let host = host_of(uri);
        let looked = tokio::time::timeout(LOOK_UP, self.allowed(&host)).await;
        matches!(looked, Ok(Err(RefusedEndpoint::NotAllowed(_))))
    }

    /// The addresses of a host that may be connected to.
    async fn allowed(&self, host: &str) -> Result<Vec<IpAddr>, RefusedEndpoint> {
        let found = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => (self.resolver)(host.to_owned())
                .await
                .map_err(|_| RefusedEndpoint::NoAddress(host.to_owned()))?,
        };
        if found.is_empty() {
            return Err(RefusedEndpoint::NoAddress(host.to_owned()));
        }
        let policy = policy(&self.live.load());
        let mut why = String::new();
        let mut allowed = Vec::with_capacity(found.len());
        for ip in found {
            match policy.check_ip(ip) {
                Ok(()) => allowed.push(ip),
                Err(e) => why = e,
            }
        }
        if allowed.is_empty() {
            return Err(RefusedEndpoint::NotAllowed(why));
        }
        Ok(allowed)
    }
}

/// The host of a URL, an IPv6 address without its brackets.
fn host_of(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.to_owned()
}

/// What receivers may be, as configured.
#[must_use]
pub fn policy(live: &Live) -> Policy {
    Policy {
        allowed: live.allowed_endpoints.clone(),
        allow_http: live.allow_http,
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn direct(address: SocketAddr) -> Result<TcpStream, BoxError> {
    match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(stream) => Ok(stream?),
        Err(_) => Err(RefusedEndpoint::Timeout(address).into()),
    }
}

/// Who the proxy is told that this is (RFC 9110, 11.7.2; RFC 7617).
fn credentials(proxy: &url::Url) -> String {
    let part = |text| percent::decode(text).unwrap_or_default();
    let (user, password) = (
        part(proxy.username()),
        part(proxy.password().unwrap_or_default()),
    );
    if user.is_empty() && password.is_empty() {
        return String::new();
    }
    let text = BASE64_STANDARD.encode(format!("{user}:{password}"));
    format!("Proxy-Authorization: Basic {text}\r\n")
}

/// A tunnel (RFC 9110, 9.3.6) to an address, not to a name: the proxy has
/// nothing to resolve.
async fn through(proxy: &url::Url, address: SocketAddr) -> Result<TcpStream, BoxError> {
    let host = proxy.host_str().unwrap_or_default();
    let port = proxy.port_or_known_default().unwrap_or(80);
    let tunnel = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        let credentials = credentials(proxy);
        let request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{credentials}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(256);
        // Byte by byte: what follows the empty line belongs to the tunnel.
        while !answer.ends_with(b"\r\n\r\n") && answer.len() < 4096 {
            answer.push(stream.read_u8().await?);
        }
        let line = String::from_utf8_lossy(&answer);
        let line = line.lines().next().unwrap_or_default();
        if line.split(' ').nth(1) == Some("200") {
            Ok::<_, BoxError>(stream)
        } else {
            Err(RefusedEndpoint::Proxy(line.to_owned()).into())
        }
    };
    match tokio::time::timeout(CONNECT, tunnel).await {
        Ok(result) => result,
        Err(_) => Err(RefusedEndpoint::Timeout(address).into()),
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { Ok(TokioIo::new(connector.connect(uri).await?)) })
    }
}

/// The certificates of a PEM file.
///
/// # Errors
/// Where it can't be read or holds none.
pub fn read_certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, String> {
    use rustls::pki_types::pem::PemObject as _;
    let bad = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let certs = CertificateDer::pem_file_iter(path)
        .map_err(|e| bad(&e))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(&e))?;
    if certs.is_empty() {
        return Err(bad(&"holds no certificate"));
    }
    Ok(certs)
}
