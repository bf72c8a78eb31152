//! TLS over checked connections, with a client certificate or without.

use std::{
    collections::HashMap,
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Uri, uri::Authority};
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, client::WantsClientCert, sign::SingleCertAndKey,
};
use tokio::net::TcpStream;

use super::{BoxError, Connector, read_certificates};
use crate::{domain::certificate::ClientCertificate, settings::Settings};

/// How long it is remembered that a connection ended by TLS: longer than any
/// attempt may take.
const REMEMBER: Duration = Duration::from_secs(120);

/// Makes connectors with TLS. Certificates are verified against the public
/// authorities, and those of the configured file.
pub struct Tls {
    connector: Connector,
    verified: ConfigBuilder<ClientConfig, WantsClientCert>,
}

impl Tls {
    /// Reads whom to trust.
    ///
    /// # Errors
    /// Where the file can't be read.
    pub fn new(settings: &Settings, connector: Connector) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if let Some(path) = &settings.endpoint_ca {
            for cert in read_certificates(path)? {
                roots
                    .add(cert)
                    .map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verified = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots);
        Ok(Self {
            connector,
            verified,
        })
    }

    /// A connector that shows this certificate to receivers that ask for one; it
    /// resumes no session of another.
    #[must_use]
    pub fn connector(&self, certificate: Option<&ClientCertificate>) -> Https {
        let config = self.verified.clone();
        let config = match certificate {
            None => config.with_no_client_auth(),
            Some(c) => {
                let resolver = SingleCertAndKey::from(c.key.clone());
                config.with_client_cert_resolver(Arc::new(resolver))
            }
        };
        let inner = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(self.connector.clone());
        Https {
            inner,
            ended: Arc::default(),
        }
    }
}

/// When a connection to a receiver last ended by TLS, and why.
type Ended = Mutex<HashMap<Authority, (Instant, String)>>;

fn held(ended: &Ended) -> MutexGuard<'_, HashMap<Authority, (Instant, String)>> {
    ended.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens connections with TLS, and without it for `http`.
///
/// With TLS 1.3 a receiver that refuses the client's certificate says so after
/// the handshake is over (RFC 8446, 4.4.2.4), when HTTP has begun; HTTP tells its
/// caller that the connection is gone, and not why. So the connection notes it.
#[derive(Clone)]
pub struct Https {
    inner: HttpsConnector<Connector>,
    ended: Arc<Ended>,
}

impl Https {
    /// Why a connection to that receiver was ended by TLS, if one was since then.
    #[must_use]
    pub fn ended_since(&self, receiver: &Uri, since: Instant) -> Option<String> {
        let ended = held(&self.ended);
        let (at, why) = ended.get(receiver.authority()?)?;
        (*at >= since).then(|| why.clone())
    }
}

impl tower_service::Service<Uri> for Https {
    type Response = Noting;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Noting, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let receiver = uri.authority().cloned();
        let ended = self.ended.clone();
        let opening = self.inner.call(uri);
        Box::pin(async move {
            Ok(Noting {
                stream: opening.await?,
                receiver,
                ended,
                early: Bytes::new(),
                broken: None,
                closing: false,
            })
        })
    }
}

/// A connection that notes where TLS ends it.
pub struct Noting {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    receiver: Option<Authority>,
    ended: Arc<Ended>,
    /// What was read ahead.
    early: Bytes,
    /// How writing failed, while it is not told yet.
    broken: Option<io::Error>,
    /// Whether this side has closed.
    closing: bool,
}

impl Noting {
    /// Whoever closes with something unread resets the connection: then writing
    /// fails while the reason waits to be read. So it is read before the failure is
    /// told; other bytes are kept for the reader.
    fn written<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(e)) if self.may_say_why(&e) => {
                let mut room = [0; 4096];
                let mut room = ReadBuf::new(&mut room);
                match Pin::new(&mut self.stream).poll_read(context, room.unfilled()) {
                    // A connection that was reset can be read, as soon as the
                    // runtime has heard of it: that wakes this task.
                    Poll::Pending => {
                        self.broken = Some(e);
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(why)) => self.note(&why),
                    Poll::Ready(Ok(())) => self.early = Bytes::copy_from_slice(room.filled()),
                }
                Poll::Ready(Err(e))
            }
            other => other,
        }
    }

    fn may_say_why(&self, error: &io::Error) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        matches!(self.stream, MaybeHttpsStream::Https(_))
            && !self.closing
            && self.early.is_empty()
            && matches!(error.kind(), BrokenPipe | ConnectionReset)
    }

    fn note(&self, error: &io::Error) {
        let tls = error.get_ref().filter(|e| e.is::<rustls::Error>());
        if let (Some(tls), Some(receiver)) = (tls, &self.receiver) {
            let now = Instant::now();
            let mut ended = held(&self.ended);
            ended.retain(|_, (at, _)| now.duration_since(*at) < REMEMBER);
            ended.insert(receiver.clone(), (now, tls.to_string()));
        }
    }
}

impl Connection for Noting {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

impl Read for Noting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let n = self.early.len().min(buffer.remaining());
            buffer.put_slice(&self.early.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Err(e)) = &read {
            self.note(e);
        }
        read
    }
}

impl Write for Noting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match self.broken.take() {
            Some(e) => Poll::Ready(Err(e)),
            None => Pin::new(&mut self.stream).poll_write(context, data),
        };
        self.written(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match self.broken.take() {
            Some(e) => Poll::Ready(Err(e)),
            None => Pin::new(&mut self.stream).poll_flush(context),
        };
        self.written(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closing = true;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match self.broken.take() {
            Some(e) => Poll::Ready(Err(e)),
            None => Pin::new(&mut self.stream).poll_write_vectored(context, slices),
        };
        self.written(context, written)
    }
}
