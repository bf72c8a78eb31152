//! What the gate's figures are fractions of: a unary gRPC call of tonic's and a
//! handler of axum's that do nothing, with nothing around them. They run in a
//! process of their own, as the server does that they are compared with.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use clap::Args;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
    transport::{Server, server::TcpIncoming},
};
use tonic_prost::ProstCodec;

use super::error::{BenchError, Result};

/// The path of the empty call.
pub(super) const CALL: &str = "/bench.Empty/Call";
/// The path of the empty handler.
pub(super) const HANDLER: &str = "/empty";

/// Arguments of `bench empty`.
#[derive(Debug, Args)]
pub struct EmptyArgs {
    /// Where gRPC is answered.
    #[arg(long)]
    pub grpc: SocketAddr,
    /// Where HTTP is answered.
    #[arg(long)]
    pub http: SocketAddr,
}

/// Serves both until the process is ended.
pub(super) async fn serve(args: &EmptyArgs) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| BenchError::Failed(format!("can't serve: {e}"));
    let grpc = TcpListener::bind(args.grpc).await.map_err(|e| failed(&e))?;
    let http = TcpListener::bind(args.http).await.map_err(|e| failed(&e))?;
    let grpc = Server::builder()
        .add_service(Empty)
        .serve_with_incoming(TcpIncoming::from(grpc).with_nodelay(Some(true)));
    tokio::select! {
        done = grpc => done.map_err(|e| failed(&e)),
        done = handler(http) => done.map_err(|e| failed(&e)),
    }
}

/// As `axum::serve` does it.
async fn handler(listener: TcpListener) -> std::io::Result<()> {
    let router = axum::Router::new().route(HANDLER, axum::routing::get(async || ()));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
            if let Err(e) = served.await {
                tracing::debug!(error.message = %e, "connection ended");
            }
        });
    }
}

/// What tonic generates for a service, and answers nothing.
#[derive(Clone)]
struct Empty;

impl NamedService for Empty {
    const NAME: &'static str = "bench.Empty";
}

impl UnaryService<()> for Empty {
    type Response = ();
    type Future = Ready<std::result::Result<Response<()>, Status>>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(())))
    }
}

type Answer = std::result::Result<http::Response<Body>, Infallible>;

impl tower_service::Service<http::Request<Body>> for Empty {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::<(), ()>::default());
            Ok(grpc.unary(Self, request).await)
        })
    }
}
