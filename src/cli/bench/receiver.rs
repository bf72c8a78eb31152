//! The endpoints that deliveries and raw posts arrive at: `POST /e/<endpoint>`, and
//! those that can be made to hang: `POST /h/<endpoint>`.
//!
//! They run on threads of their own, named [`THREADS`], so that their CPU can be
//! told from the publishers' in the same process.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::{
    body::Mark,
    error::{BenchError, Result},
    latency::Latencies,
    ledger::{Arrival, Ledger},
    stats::nanos,
};

/// The name of the receivers' threads.
pub(super) const THREADS: &str = "bench-recv";

/// How often one that hangs looks whether it should go on.
const HANG_STEP: Duration = Duration::from_millis(200);

/// The run that is going on.
#[derive(Debug)]
pub(super) struct Live {
    /// Its number, as the marks carry it.
    pub run: u64,
    /// Its events.
    pub ledger: Ledger,
    /// From sending to arrival, of events sent within the window.
    pub latencies: Latencies,
    /// When it began, in nanoseconds of the hub's clock.
    pub start: u64,
    /// What counts, in nanoseconds of the hub's clock: warm-up and drain don't.
    pub window: std::ops::Range<u64>,
    /// Arrivals within the window.
    pub in_window: AtomicU64,
    /// Arrivals in each second since the start.
    pub seconds: Vec<AtomicU64>,
}

/// Where all arrivals go.
#[derive(Debug)]
pub(super) struct Hub {
    epoch: Instant,
    live: ArcSwapOption<Live>,
    hint: AtomicUsize,
    /// Arrivals that belong to no run or to one that is over.
    pub strays: AtomicU64,
    /// Arrivals whose body or headers are not what was asked for.
    pub malformed: AtomicU64,
    /// Whether endpoints under `/h/` answer nothing. Their arrivals are not counted.
    pub hang: AtomicBool,
    /// Whether those under `/e/` are out of order: they answer 503.
    pub refuse: AtomicBool,
    /// Arrivals that were refused so.
    pub refused: AtomicU64,
}

impl Hub {
    /// Its clock starts now.
    #[must_use]
    pub(super) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            live: ArcSwapOption::empty(),
            hint: AtomicUsize::new(0),
            strays: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            hang: AtomicBool::new(false),
            refuse: AtomicBool::new(false),
            refused: AtomicU64::new(0),
        }
    }

    /// Nanoseconds since the benchmark began: the one clock of all latencies.
    #[must_use]
    pub(super) fn now(&self) -> u64 {
        nanos(self.epoch.elapsed())
    }

    /// Makes `live` the run that arrivals belong to.
    pub(super) fn begin(&self, live: Arc<Live>) {
        self.live.store(Some(live));
    }

    fn arrived(&self, shard: usize, path: &str, event_id: Option<&[u8]>, body: &[u8]) {
        let now = self.now();
        let endpoint = path.strip_prefix("/e/").and_then(|e| e.parse().ok());
        let mark = Mark::read(body, &self.hint);
        let (Some(endpoint), Some(mark), Some(id)) = (endpoint, mark, event_id) else {
            self.malformed.fetch_add(1, Relaxed);
            return;
        };
        // The header and the body must speak of the same event.
        if body
            .strip_prefix(b"{\"id\":\"")
            .is_none_or(|rest| !rest.starts_with(id))
        {
            self.malformed.fetch_add(1, Relaxed);
        }
        let live = self.live.load();
        let Some(live) = live.as_ref().filter(|l| l.run == mark.run) else {
            self.strays.fetch_add(1, Relaxed);
            return;
        };
        let Arrival::First { origin } = live.ledger.arrived(mark.seq, endpoint) else {
            return;
        };
        if live.window.contains(&now) {
            live.in_window.fetch_add(1, Relaxed);
        }
        if live.window.contains(&origin) {
            live.latencies.record(shard, now.saturating_sub(origin));
        }
        let second =
            usize::try_from(now.saturating_sub(live.start) / 1_000_000_000).unwrap_or(usize::MAX);
        if let Some(bin) = live.seconds.get(second) {
            bin.fetch_add(1, Relaxed);
        }
    }
}

/// Running receivers; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Receivers {
    /// Where arrivals go.
    pub hub: Arc<Hub>,
    /// The address that they listen on.
    pub address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Receivers {
    /// Listens on `address`; port 0 takes a free one.
    pub(super) async fn start(address: SocketAddr) -> Result<Self> {
        let workers = thread::available_parallelism()
            .map_or(2, std::num::NonZero::get)
            .min(4);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name(THREADS)
            .enable_all()
            .build()
            .map_err(|e| BenchError::failed("no threads for the receivers", e))?;
        let hub = Arc::new(Hub::new());
        let bound = runtime
            .spawn(listen(address))
            .await
            .map_err(|e| BenchError::failed("the receivers stopped", e))?;
        let (listener, address) =
            bound.map_err(|e| BenchError::failed(&format!("can't listen on {address}"), e))?;
        runtime.spawn(accept(listener, Arc::clone(&hub)));
        Ok(Self {
            hub,
            address,
            runtime: Some(runtime),
        })
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        // A runtime can't be waited for inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn accept(listener: TcpListener, hub: Arc<Hub>) {
    let mut connections = 0_usize;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, or a peer that went away: neither ends the benchmark.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        stream.set_nodelay(true).ok();
        connections = connections.wrapping_add(1);
        let (hub, shard) = (Arc::clone(&hub), connections);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(&hub, shard, request));
            http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await
                .ok();
        });
    }
}

async fn answer(
    hub: &Hub,
    shard: usize,
    request: Request<Incoming>,
) -> std::result::Result<Response<Empty<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let mut response = Response::new(Empty::new());
    if head.uri.path().starts_with("/h/") {
        body.collect().await.ok();
        while hub.hang.load(Relaxed) {
            tokio::time::sleep(HANG_STEP).await;
        }
        return Ok(response);
    }
    let body = body.collect().await;
    if hub.refuse.load(Relaxed) {
        hub.refused.fetch_add(1, Relaxed);
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return Ok(response);
    }
    match body {
        Ok(body) => {
            let id = head
                .headers
                .get("x-webhook-event-id")
                .map(http::HeaderValue::as_bytes);
            hub.arrived(shard, head.uri.path(), id, &body.to_bytes());
        }
        // Not received, so it must not look so: the sender repeats it.
        Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::body::Template;

    fn live() -> Arc<Live> {
        Arc::new(Live {
            run: 3,
            ledger: Ledger::new(1, 1),
            latencies: Latencies::new().unwrap(),
            start: 0,
            window: 0..u64::MAX,
            in_window: AtomicU64::new(0),
            seconds: (0..5).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    #[test]
    fn an_arrival_is_counted_where_it_belongs() {
        let (hub, live) = (Hub::new(), live());
        hub.begin(Arc::clone(&live));
        live.ledger.sent(0, hub.now());
        let template = Template::envelope("evt_1", "t", 200);
        let body = |run| template.render(Mark { run, seq: 0 });
        hub.arrived(0, "/e/0", Some(b"evt_1"), &body(3));
        assert_eq!(live.in_window.load(Relaxed), 1);
        hub.arrived(0, "/e/0", Some(b"evt_1"), &body(3));
        assert_eq!(
            (live.in_window.load(Relaxed), live.ledger.count().duplicates),
            (1, 1)
        );
        hub.arrived(0, "/e/0", Some(b"evt_1"), &body(2));
        assert_eq!(hub.strays.load(Relaxed), 1);
        hub.arrived(0, "/e/0", None, &body(3));
        hub.arrived(0, "/e/x", Some(b"evt_1"), &body(3));
        hub.arrived(0, "/e/0", Some(b"evt_2"), &body(3));
        assert_eq!(hub.malformed.load(Relaxed), 3);
    }
}
