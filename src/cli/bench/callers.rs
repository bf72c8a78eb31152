//! Callers that call as fast as they are answered.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf as _, BufMut as _, Bytes};
use hdrhistogram::Histogram;
use http_body_util::Full;
use hyper::{
    Request, Uri,
    header::{AUTHORIZATION, HOST, HeaderValue},
};
use serde::Serialize;
use tokio::task::JoinSet;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{
    client::Connection,
    error::{BenchError, Result},
    latency::{Percentiles, histogram},
    process::Cpu,
    publisher::CALL_TIMEOUT,
    stats::real,
};

/// What is called.
pub(super) enum Target {
    /// A unary call; each caller goes through the requests.
    Grpc {
        authority: String,
        path: &'static str,
        bearer: Option<String>,
        requests: Vec<Bytes>,
        answers: Answers,
    },
    /// A GET; each caller goes through the keys.
    Http {
        authority: String,
        path: &'static str,
        bearers: Vec<String>,
    },
}

/// What an answer must be to count.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answers {
    /// Anything that is no error.
    Any,
    /// A message with these bytes in front.
    BeginWith(&'static [u8]),
}

/// How it is called.
pub(super) struct Callers {
    /// What.
    pub target: Target,
    /// Calls under way.
    pub count: usize,
    /// HTTP/2 connections of gRPC.
    pub connections: usize,
    /// Before the window.
    pub warm_up: Duration,
    /// The window.
    pub duration: Duration,
    /// The process that answers.
    pub pid: Option<u32>,
}

/// What one run showed.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CallRun {
    /// Answers a second.
    pub calls_per_s: f64,
    /// From a call to its answer.
    pub latency: Percentiles,
    /// The answering process' CPU for a call, in microseconds.
    pub server_us: Option<f64>,
    /// The callers' CPU for a call, in microseconds.
    pub client_us: Option<f64>,
}

impl CallRun {
    /// The result in one line.
    pub(super) fn line(&self) -> String {
        let us = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.1}"));
        format!(
            "{:.0} calls/s, p50 {:.2} ms, p99 {:.2} ms, CPU µs per call: server {}, callers {}",
            self.calls_per_s,
            self.latency.p50_ms,
            self.latency.p99_ms,
            us(self.server_us),
            us(self.client_us),
        )
    }
}

/// One way to call, of one caller.
enum Line {
    Grpc {
        grpc: Box<tonic::client::Grpc<Channel>>,
        path: http::uri::PathAndQuery,
        bearer: Option<MetadataValue<Ascii>>,
        requests: Arc<Vec<Bytes>>,
        answers: Answers,
    },
    Http {
        connection: Box<Connection>,
        host: HeaderValue,
        path: Uri,
        bearers: Arc<Vec<HeaderValue>>,
    },
}

impl Callers {
    /// Waits until the target answers.
    pub(super) async fn wait_for(&self, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        loop {
            let tried = match self.lines(1).await {
                Ok(mut lines) => match lines.pop() {
                    Some(mut line) => line.call(0).await,
                    None => Ok(()),
                },
                Err(e) => Err(e),
            };
            match tried {
                Ok(()) => return Ok(()),
                Err(e) if Instant::now() > end => return Err(e),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Does one run.
    pub(super) async fn run(&self) -> Result<CallRun> {
        let lines = self.lines(self.count).await?;
        let from = Instant::now() + self.warm_up;
        let until = from + self.duration;
        let mut callers = JoinSet::new();
        for (n, line) in lines.into_iter().enumerate() {
            // Each begins elsewhere, so that all keys are used.
            callers.spawn(keep_calling(line, n * 7919, from, until));
        }
        tokio::time::sleep_until(from.into()).await;
        let before = Cpu::now(self.pid, None);
        tokio::time::sleep_until(until.into()).await;
        let after = Cpu::now(self.pid, None);
        let mut all = histogram()?;
        while let Some(one) = callers.join_next().await {
            let one = one.map_err(|e| BenchError::failed("a caller stopped", e))??;
            all.add(&one)
                .map_err(|e| BenchError::failed("histograms don't add up", e))?;
        }
        if all.is_empty() {
            return Err(BenchError::Failed("no call was answered in time".into()));
        }
        let cpu = after.since(&before, all.len());
        Ok(CallRun {
            calls_per_s: real(all.len()) / self.duration.as_secs_f64(),
            latency: Percentiles::of(&all),
            server_us: cpu.server_us,
            client_us: cpu.publisher_us,
        })
    }

    async fn lines(&self, count: usize) -> Result<Vec<Line>> {
        match &self.target {
            Target::Grpc {
                authority,
                path,
                bearer,
                requests,
                answers,
            } => {
                let bearer = bearer.as_deref().map(|b| format!("Bearer {b}").parse());
                let bearer = bearer
                    .transpose()
                    .map_err(|_| BenchError::Usage("a key is no header".into()))?;
                let requests = Arc::new(requests.clone());
                let mut channels = Vec::new();
                for _ in 0..self.connections.min(count) {
                    channels.push(channel(authority).await?);
                }
                Ok(channels
                    .into_iter()
                    .cycle()
                    .take(count)
                    .map(|channel| Line::Grpc {
                        grpc: Box::new(tonic::client::Grpc::new(channel)),
                        path: http::uri::PathAndQuery::from_static(path),
                        bearer: bearer.clone(),
                        requests: Arc::clone(&requests),
                        answers: *answers,
                    })
                    .collect())
            }
            Target::Http {
                authority,
                path,
                bearers,
            } => {
                let value = |text: &str| {
                    HeaderValue::from_str(text)
                        .map_err(|e| BenchError::failed("a key is no header", e))
                };
                let host = value(authority)?;
                let bearers = bearers.iter().map(|b| value(&format!("Bearer {b}")));
                let bearers = Arc::new(bearers.collect::<Result<Vec<_>>>()?);
                Ok((0..count)
                    .map(|_| Line::Http {
                        connection: Box::new(Connection::new(authority.clone(), CALL_TIMEOUT)),
                        host: host.clone(),
                        path: Uri::from_static(path),
                        bearers: Arc::clone(&bearers),
                    })
                    .collect())
            }
        }
    }
}

async fn channel(authority: &str) -> Result<Channel> {
    let unreached = |e: tonic::transport::Error| {
        BenchError::NotReached(format!("{authority} can't be reached: {e}"))
    };
    Endpoint::from_shared(format!("http://{authority}"))
        .map_err(unreached)?
        .tcp_nodelay(true)
        .connect()
        .await
        .map_err(unreached)
}

/// Latencies, in microseconds, of the calls that were answered in the window.
async fn keep_calling(
    mut line: Line,
    first: usize,
    from: Instant,
    until: Instant,
) -> Result<Histogram<u64>> {
    let mut latencies = histogram()?;
    let mut n = first;
    loop {
        let began = Instant::now();
        if began >= until {
            return Ok(latencies);
        }
        line.call(n).await?;
        n = n.wrapping_add(1);
        let done = Instant::now();
        if done >= from && done < until {
            let micros = u64::try_from((done - began).as_micros()).unwrap_or(u64::MAX);
            latencies.saturating_record(micros);
        }
    }
}

fn pick<T>(list: &[T], n: usize) -> Option<&T> {
    list.get(n.checked_rem(list.len())?)
}

impl Line {
    /// Calls once. Any answer but the one that is expected ends the benchmark.
    async fn call(&mut self, n: usize) -> Result<()> {
        match self {
            Self::Grpc {
                grpc,
                path,
                bearer,
                requests,
                answers,
            } => {
                let message = pick(requests, n).cloned().unwrap_or_default();
                let mut request = tonic::Request::new(message);
                if let Some(bearer) = bearer {
                    request
                        .metadata_mut()
                        .insert("authorization", bearer.clone());
                }
                grpc.ready()
                    .await
                    .map_err(|e| BenchError::failed("connection lost", e))?;
                let answer = grpc.unary(request, path.clone(), Raw).await;
                let answer = answer
                    .map_err(|e| BenchError::failed(path.as_str(), e))?
                    .into_inner();
                match answers {
                    Answers::BeginWith(bytes) if !answer.starts_with(bytes) => {
                        Err(BenchError::Failed(format!(
                            "{path}: an answer that is not the one expected"
                        )))
                    }
                    _ => Ok(()),
                }
            }
            Self::Http {
                connection,
                host,
                path,
                bearers,
            } => {
                let mut request = Request::new(Full::new(Bytes::new()));
                *request.uri_mut() = path.clone();
                request.headers_mut().insert(HOST, host.clone());
                if let Some(bearer) = pick(bearers, n) {
                    request.headers_mut().insert(AUTHORIZATION, bearer.clone());
                }
                let (status, body) = connection
                    .call(request)
                    .await
                    .map_err(|e| BenchError::failed(path.path(), e))?;
                if status.is_success() {
                    Ok(())
                } else {
                    let body = super::publisher::shown(&body);
                    Err(BenchError::Failed(format!("{path}: {status}: {body}")))
                }
            }
        }
    }
}

/// Messages as their bytes.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> std::result::Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> std::result::Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
