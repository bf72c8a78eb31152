//! How many deliveries a second go out over streams, to workers that ack at once.
//! The deliveries are there before: what is measured is leasing, handing out and
//! recording them, not publishing.

use std::{
    fmt::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use futures_util::{FutureExt as _, future::try_join_all, stream};
use serde::Serialize;
use tokio::sync::mpsc;
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use super::{
    args::{OutputArgs, TargetArgs, is_postgres},
    error::{BenchError, Result},
    postgres::Scratch,
    process::Cpu,
    progress::Progress,
    report::{Row, spread},
    server::{Folder, Server, random},
    stats::{Spread, real},
};
use crate::proto::v1::{
    CreateSubscriptionRequest, PublishEventRequest, PublishEventsRequest, SubscriptionKind,
    WorkerMessage,
    event_service_client::EventServiceClient,
    publish_event_request::Payload,
    server_message::Message as Says,
    subscription_service_client::SubscriptionServiceClient,
    worker_message::{Ack, AckItem, Message, Open, Pong},
    worker_service_client::WorkerServiceClient,
};

/// Deliveries a second that are to be reached. // B9
const TARGET: f64 = 15_000.0;
/// Events of one batch.
const BATCH: usize = 500;
/// Batches under way at once.
const PUBLISHERS: usize = 8;
/// Without a delivery for so long they don't come any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// Arguments of `bench workers`.
#[derive(Debug, Clone, Args)]
pub struct WorkersArgs {
    /// Workers, each with a connection of its own.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub workers: u16,
    /// Deliveries of each run.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub deliveries: u32,
    /// Subscriptions that each event goes to.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub subscriptions: u16,
    /// How many deliveries each worker has at once.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub window: u16,
    /// Size of each event's payload, in bytes.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(..=200_000))]
    pub body_bytes: u32,
    /// Runs; medians are shown with the lowest and the highest.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub runs: u16,
    /// `sqlite`, or a `postgres://` URL whose role may create databases.
    #[arg(long, default_value = "sqlite")]
    pub database: String,
    /// More environment for the server: NAME=VALUE.
    #[arg(long, value_name = "NAME=VALUE")]
    pub server_env: Vec<String>,
    /// Where the server's data is kept during the run.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Run {
    /// Deliveries whose ack was recorded, a second.
    pub deliveries_per_s: f64,
    /// From the first delivery to the last result.
    pub seconds: f64,
    /// Deliveries that came again.
    pub repeated: u64,
    /// The server's CPU time per delivery, in microseconds.
    pub server_us: Option<f64>,
    /// The workers': this process.
    pub workers_us: Option<f64>,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    /// The machine's cores, shared by workers, server and database.
    pub cores: usize,
    /// Workers.
    pub workers: u16,
    /// Their windows.
    pub window: u16,
    /// Deliveries of each run.
    pub deliveries: u32,
    /// The database.
    pub database: &'static str,
    /// The runs.
    pub runs: Vec<Run>,
    /// The table.
    pub rows: Vec<Row>,
}

/// Measures.
pub(super) async fn measure(args: &WorkersArgs) -> Result<Measured> {
    TargetArgs::check_own(&args.database, &args.server_env)?;
    let tag = hex::encode(random::<4>()?);
    let scratch = if is_postgres(&args.database) {
        Some(Scratch::create(&args.database, &tag).await?)
    } else {
        None
    };
    let measured = tokio::select! {
        measured = on_a_server(args, scratch.as_ref(), &tag) => measured,
        stop = super::interrupted() => Err(stop),
    };
    if let Some(scratch) = scratch {
        scratch.drop().await?;
    }
    measured
}

async fn on_a_server(args: &WorkersArgs, scratch: Option<&Scratch>, tag: &str) -> Result<Measured> {
    let progress = Progress::new();
    let folder = Folder::create(args.data_dir.as_deref(), tag)?;
    let mut server = Server::prepare(scratch.map(|s| s.url.as_str()), &args.server_env, folder)?;
    server.start().await?;
    let done = runs(args, &server, &progress).await;
    server.stop().await?;
    let runs = done?;
    let rates = Spread::of(runs.iter().map(|run| run.deliveries_per_s));
    let rows = rates.map(|rates| Row {
        id: "B9".into(),
        what: format!("stream to {} workers that ack at once", args.workers),
        figure: format!("{} deliveries/s", spread(rates, 0)),
        of_raw: None,
        target: format!("{TARGET:.0}"),
        reached: Some(rates.median >= TARGET),
    });
    Ok(Measured {
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        workers: args.workers,
        window: args.window,
        deliveries: args.deliveries,
        database: scratch.map_or("SQLite", |_| "PostgreSQL"),
        runs,
        rows: rows.into_iter().collect(),
    })
}

/// A connection with a key.
#[derive(Clone)]
struct Caller {
    channel: Channel,
    key: MetadataValue<Ascii>,
}

impl Caller {
    async fn connect(server: &Server) -> Result<Self> {
        let url = format!("http://{}", server.authority);
        let failed = |e: &dyn std::fmt::Display| BenchError::NotReached(format!("{url}: {e}"));
        let channel = Channel::from_shared(url.clone()).map_err(|e| failed(&e))?;
        Ok(Self {
            channel: channel.connect().await.map_err(|e| failed(&e))?,
            key: format!("Bearer {}", server.admin_key)
                .parse()
                .map_err(|e| failed(&e))?,
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.key.clone());
        request
    }
}

fn refused(status: &tonic::Status) -> BenchError {
    BenchError::Failed(format!("the server answered: {}", status.message()))
}

async fn runs(args: &WorkersArgs, server: &Server, progress: &Progress) -> Result<Vec<Run>> {
    let caller = Caller::connect(server).await?;
    for _ in 0..args.subscriptions {
        let request = caller.request(CreateSubscriptionRequest {
            kind: SubscriptionKind::Stream.into(),
            max_in_flight: 1000,
            ..CreateSubscriptionRequest::default()
        });
        SubscriptionServiceClient::new(caller.channel.clone())
            .create_subscription(request)
            .await
            .map_err(|e| refused(&e))?;
    }
    let mut runs = Vec::new();
    for n in 1..=args.runs {
        let events = args.deliveries.div_ceil(args.subscriptions.into());
        progress.say(&format!("{n}/{} publishing {events} events", args.runs));
        publish(args, &caller, events as usize).await?;
        let expected = u64::from(events) * u64::from(args.subscriptions);
        let run = run(args, server, expected).await?;
        progress.say(&format!(
            "{n}/{} {:.0} deliveries/s",
            args.runs, run.deliveries_per_s
        ));
        runs.push(run);
    }
    Ok(runs)
}

async fn publish(args: &WorkersArgs, caller: &Caller, events: usize) -> Result<()> {
    let data = format!("{{\"x\":\"{}\"}}", "x".repeat(args.body_bytes as usize));
    let event = PublishEventRequest {
        event_type: "bench.worker".into(),
        payload: Some(Payload::DataJson(data.into())),
        ..PublishEventRequest::default()
    };
    let batches: Vec<usize> = (0..events)
        .step_by(BATCH)
        .map(|at| BATCH.min(events - at))
        .collect();
    let share = batches.len().div_ceil(PUBLISHERS).max(1);
    let event = &event;
    let publishers = batches.chunks(share).map(|batches| async move {
        let mut client = EventServiceClient::new(caller.channel.clone());
        for count in batches {
            let request = PublishEventsRequest {
                events: vec![event.clone(); *count],
            };
            let answer = client.publish_events(caller.request(request)).await;
            answer.map_err(|e| refused(&e))?;
        }
        Ok::<_, BenchError>(())
    });
    try_join_all(publishers).await.map(drop)
}

async fn run(args: &WorkersArgs, server: &Server, expected: u64) -> Result<Run> {
    let (done, mut told) = mpsc::unbounded_channel();
    let mut workers = tokio::task::JoinSet::new();
    let before = Cpu::now(server.pid(), None);
    for n in 0..args.workers {
        let caller = Caller::connect(server).await?;
        let open = Open {
            worker_id: format!("bench-{n}"),
            max_messages: args.window.into(),
            lease_seconds: 600,
            ..Open::default()
        };
        workers.spawn(work(caller, open, done.clone()));
    }
    drop(done);
    let (mut began, mut recorded, mut repeated) = (None, 0, 0);
    let mut ended = Instant::now();
    while recorded < expected {
        let news = tokio::time::timeout(PATIENCE, told.recv()).await;
        match news {
            Ok(Some(Ok(Progressed::Came))) => {
                began.get_or_insert_with(Instant::now);
            }
            Ok(Some(Ok(Progressed::Recorded { ok, stale }))) => {
                recorded += ok;
                repeated += stale;
                ended = Instant::now();
            }
            Ok(Some(Err(e))) => return Err(e),
            Ok(None) | Err(_) => {
                return Err(BenchError::Failed(format!(
                    "{recorded} of {expected} deliveries came"
                )));
            }
        }
    }
    let cpu = Cpu::now(server.pid(), None).since(&before, expected);
    let seconds = began.map_or(0.0, |began| ended.duration_since(began).as_secs_f64());
    Ok(Run {
        deliveries_per_s: real(expected) / seconds.max(f64::EPSILON),
        seconds,
        repeated,
        server_us: cpu.server_us,
        workers_us: cpu.publisher_us,
    })
}

/// What a worker tells of its work.
enum Progressed {
    /// Its first delivery came.
    Came,
    /// So many acks have their results.
    Recorded { ok: u64, stale: u64 },
}

/// Acks whatever has come, at once.
async fn work(caller: Caller, open: Open, done: mpsc::UnboundedSender<Result<Progressed>>) {
    let worked = take(caller, open, &done).await;
    if let Err(status) = worked {
        done.send(Err(refused(&status))).ok();
    }
}

async fn take(
    caller: Caller,
    open: Open,
    done: &mpsc::UnboundedSender<Result<Progressed>>,
) -> std::result::Result<(), tonic::Status> {
    let (say, said) = mpsc::unbounded_channel();
    // A stream that has ended is heard of where it is read.
    let tell = |message| {
        let message = Some(message);
        say.send(WorkerMessage { message }).ok();
    };
    tell(Message::Open(open));
    let messages = stream::unfold(said, |mut said| async move {
        let next: WorkerMessage = said.recv().await?;
        Some((next, said))
    });
    let mut client = WorkerServiceClient::new(caller.channel.clone());
    let mut hear = client
        .stream_deliveries(caller.request(messages))
        .await?
        .into_inner();
    let mut first = true;
    while let Some(message) = hear.message().await? {
        let mut items = Vec::new();
        let mut next = Some(message);
        while let Some(message) = next {
            match message.message {
                Some(Says::Delivery(delivery)) => items.push(AckItem {
                    delivery_id: delivery.delivery_id,
                    lease_token: delivery.lease_token,
                    outcome: None,
                }),
                Some(Says::Result(told)) => {
                    let (ok, stale) = (told.ok.len() as u64, told.stale.len() as u64);
                    done.send(Ok(Progressed::Recorded { ok, stale })).ok();
                }
                Some(Says::Ping(_)) => {
                    tell(Message::Pong(Pong {}));
                }
                _ => {}
            }
            next = match hear.message().now_or_never() {
                Some(more) if items.len() < 500 => more?,
                Some(more) => {
                    // Acked with what follows.
                    let more = more?;
                    acked(std::mem::take(&mut items), tell);
                    more
                }
                None => None,
            };
        }
        if !items.is_empty() && std::mem::take(&mut first) {
            done.send(Ok(Progressed::Came)).ok();
        }
        acked(items, tell);
    }
    Ok(())
}

fn acked(items: Vec<AckItem>, tell: impl Fn(Message)) {
    if !items.is_empty() {
        let request_id = String::new();
        tell(Message::Ack(Ack { request_id, items }));
    }
}

impl Measured {
    /// As Markdown.
    pub(super) fn markdown(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).ok();
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{} cores shared by workers, server and database; {}; {} workers with windows of {}, {} deliveries a run\n",
            self.cores, self.database, self.workers, self.window, self.deliveries
        )?;
        writeln!(
            out,
            "| | what | figure | to reach | |\n|---|---|---|---|---|"
        )?;
        for row in &self.rows {
            let reached = match row.reached {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            let Row {
                id,
                what,
                figure,
                target,
                ..
            } = row;
            writeln!(out, "| {id} | {what} | {figure} | {target} | {reached} |")?;
        }
        writeln!(
            out,
            "\n| deliveries/s | seconds | stale | CPU µs per delivery: server, workers |\n|---|---|---|---|"
        )?;
        for run in &self.runs {
            let us = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.1}"));
            writeln!(
                out,
                "| {:.0} | {:.2} | {} | {}, {} |",
                run.deliveries_per_s,
                run.seconds,
                run.repeated,
                us(run.server_us),
                us(run.workers_us)
            )?;
        }
        Ok(())
    }
}
