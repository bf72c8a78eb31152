//! The two HTTP clients of a benchmark.
//!
//! Publishers have a [`Connection`] each, driven by the task that uses it: the
//! connection's own future is polled beside the call instead of in a task of its
//! own, so that what only drives the load costs little. Raw posts go through a
//! [`Pool`]: the client that deliveries are sent with.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::poll;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, StatusCode,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::net::TcpStream;

type Driver = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// Why a call got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// No connection was made.
    #[error("not connected")]
    NotConnected,
    /// The connection ended before the answer.
    #[error("connection lost")]
    Lost,
    /// No answer within the time allowed.
    #[error("timed out")]
    TimedOut,
}

/// How calls are made.
#[derive(Debug)]
pub(super) enum Caller {
    /// Over a connection of the caller's own.
    Own(Connection),
    /// Over any connection of a pool.
    Pooled(Pool),
}

impl Caller {
    /// Connects, where that can be done ahead.
    pub(super) async fn connect(&mut self) {
        if let Self::Own(connection) = self {
            connection.connect().await.ok();
        }
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn call(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), CallError> {
        match self {
            Self::Own(connection) => connection.call(request).await,
            Self::Pooled(pool) => pool.call(request).await,
        }
    }
}

/// Connections shared by all callers, set up as a node's sender sets its own up.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    client: Client<HttpConnector, Full<Bytes>>,
    timeout: Duration,
}

impl Pool {
    /// With no connection yet.
    #[must_use]
    pub(super) fn new(timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(usize::MAX)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .build(connector);
        Self { client, timeout }
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), CallError> {
        let exchange = async {
            let response = self.client.request(request).await.map_err(|e| {
                if e.is_connect() {
                    CallError::NotConnected
                } else {
                    CallError::Lost
                }
            })?;
            let status = response.status();
            let body = response.into_body().collect().await;
            Ok((status, body.map_err(|_| CallError::Lost)?.to_bytes()))
        };
        let answer = tokio::time::timeout(self.timeout, exchange).await;
        answer.unwrap_or(Err(CallError::TimedOut))
    }
}

/// A connection that opens itself, and again after it was lost.
#[derive(Debug)]
pub(super) struct Connection {
    authority: String,
    timeout: Duration,
    open: Option<(SendRequest<Full<Bytes>>, Driver)>,
}

impl Connection {
    /// To `host:port`; nothing is sent before the first call.
    #[must_use]
    pub(super) fn new(authority: impl Into<String>, timeout: Duration) -> Self {
        Self {
            authority: authority.into(),
            timeout,
            open: None,
        }
    }

    /// Opens the connection, unless it is open.
    pub(super) async fn connect(&mut self) -> Result<(), CallError> {
        // A server may close an idle connection: that is no failed call.
        if let Some((_, driver)) = &mut self.open
            && poll!(driver).is_ready()
        {
            self.open = None;
        }
        if self.open.is_none() {
            let stream = tokio::time::timeout(self.timeout, TcpStream::connect(&self.authority))
                .await
                .map_err(|_| CallError::TimedOut)?
                .map_err(|_| CallError::NotConnected)?;
            stream.set_nodelay(true).ok();
            self.open = Some(
                http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|_| CallError::NotConnected)?,
            );
        }
        Ok(())
    }

    /// Sends a request and reads the whole answer. After an error the connection
    /// is opened anew by the next call.
    pub(super) async fn call(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), CallError> {
        self.connect().await?;
        let answer = tokio::time::timeout(self.timeout, self.exchange(request)).await;
        let answer = answer.unwrap_or(Err(CallError::TimedOut));
        if answer.is_err() {
            self.open = None;
        }
        answer
    }

    async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let (mut sender, mut driver) = self.open.take().ok_or(CallError::NotConnected)?;
        let (answer, driver) = {
            let mut answer = pin!(async {
                let response = sender.send_request(request).await?;
                let status = response.status();
                let body = response.into_body().collect().await?.to_bytes();
                Ok::<_, hyper::Error>((status, body))
            });
            let first = tokio::select! {
                biased;
                answer = &mut answer => Some(answer),
                _ = &mut driver => None,
            };
            if let Some(answer) = first {
                (answer, Some(driver))
            } else {
                // The server closed after its answer: what was read is still to be
                // had, and what was not read fails once the driver is gone.
                drop(driver);
                (answer.await, None)
            }
        };
        self.open = driver.map(|driver| (sender, driver));
        answer.map_err(|_| CallError::Lost)
    }
}
