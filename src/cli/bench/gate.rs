//! How much a decision costs: `VerifyKey` beside an empty unary call, and `me`
//! beside an empty handler. The same callers call both in turns, so that a
//! machine that changes meanwhile changes for both.

use std::{path::PathBuf, process::Stdio, time::Duration};

use clap::Args;
use prost::Message as _;
use tokio::process::{Child, Command};

use super::{
    args::{OutputArgs, TargetArgs, duration, is_postgres},
    callers::{Answers, Callers, Target},
    calls::{Calls, Pair},
    empty,
    error::{BenchError, Result},
    keys::{self, Loaded},
    postgres::Scratch,
    progress::Progress,
    server::{Folder, Server, free_port, random},
};
use crate::proto::v1::VerifyKeyRequest;

/// How long what was started may take to answer.
const START: Duration = Duration::from_secs(20);

/// Arguments of `bench verify` and `bench me`.
#[derive(Debug, Args)]
pub struct GateArgs {
    /// Callers, each with one call under way.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub callers: u16,
    /// HTTP/2 connections that gRPC callers share; over REST each has its own.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub connections: u16,
    /// Keys in the store, which are called with in turns. Written straight into
    /// the database before the server starts.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub keys: u32,
    /// How long each run is measured.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// How long it runs before that, not counted.
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub warm_up: Duration,
    /// Pairs of runs; medians are shown with the lowest and the highest.
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

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// `VerifyKey` over gRPC.
    Verify,
    /// `GET /v1/external/me`.
    Me,
}

/// Measures one of them.
pub(super) async fn measure(what: What, args: &GateArgs) -> Result<Calls> {
    TargetArgs::check_own(&args.database, &args.server_env)?;
    let tag = hex::encode(random::<4>()?);
    let scratch = if is_postgres(&args.database) {
        Some(Scratch::create(&args.database, &tag).await?)
    } else {
        None
    };
    let measured = tokio::select! {
        measured = on_a_server(what, args, scratch.as_ref(), &tag) => measured,
        stop = super::interrupted() => Err(stop),
    };
    if let Some(scratch) = scratch {
        scratch.drop().await?;
    }
    measured
}

async fn on_a_server(
    what: What,
    args: &GateArgs,
    scratch: Option<&Scratch>,
    tag: &str,
) -> Result<Calls> {
    let progress = Progress::new();
    let folder = Folder::create(args.data_dir.as_deref(), tag)?;
    let mut server = Server::prepare(scratch.map(|s| s.url.as_str()), &args.server_env, folder)?;
    progress.say(&format!("writing {} keys", args.keys));
    let loaded = keys::load(&server, args.keys).await?;
    server.start().await?;
    let done = both(what, args, &server, loaded, &progress).await;
    server.stop().await?;
    done
}

async fn both(
    what: What,
    args: &GateArgs,
    server: &Server,
    loaded: Loaded,
    progress: &Progress,
) -> Result<Calls> {
    let (grpc, http) = (authority()?, authority()?);
    let mut baseline = start_empty(&grpc, &http)?;
    let empty_pid = baseline.id();
    let (ours, none) = match what {
        What::Verify => (verify(server, loaded), empty_call(grpc)),
        What::Me => (me(server, loaded), empty_handler(http)),
    };
    let load = |target, pid| Callers {
        target,
        count: usize::from(args.callers),
        connections: usize::from(args.connections),
        warm_up: args.warm_up,
        duration: args.duration,
        pid,
    };
    let (ours, none) = (load(ours, server.pid()), load(none, empty_pid));
    none.wait_for(START).await?;
    let mut pairs = Vec::new();
    for n in 1..=args.runs {
        let empty = none.run().await?;
        progress.say(&format!("{n}/{} empty: {}", args.runs, empty.line()));
        let measured = ours.run().await?;
        progress.say(&format!(
            "{n}/{} {}: {}",
            args.runs,
            what.name(),
            measured.line()
        ));
        pairs.push(Pair { empty, measured });
    }
    baseline.kill().await.ok();
    Ok(Calls::new(what, args, pairs))
}

impl What {
    /// The mode's name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Me => "me",
        }
    }
}

fn authority() -> Result<String> {
    let port = free_port().map_err(|e| BenchError::failed("no free port", e))?;
    Ok(format!("127.0.0.1:{port}"))
}

fn start_empty(grpc: &str, http: &str) -> Result<Child> {
    let failed = |e| BenchError::failed("can't start the empty server", e);
    Command::new(std::env::current_exe().map_err(failed)?)
        .args(["bench", "empty", "--grpc", grpc, "--http", http])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)
}

/// Each request is made before it is measured, and an answer is looked at no
/// further than that it says `valid`: that is its first field.
fn verify(server: &Server, loaded: Loaded) -> Target {
    let requests = loaded.keys.into_iter().map(|key| {
        let request = VerifyKeyRequest {
            key,
            scope: "read:rings".into(),
            client_address: "203.0.113.9".into(),
            ..VerifyKeyRequest::default()
        };
        request.encode_to_vec().into()
    });
    Target::Grpc {
        authority: server.authority.clone(),
        path: "/onering.v1.KeyService/VerifyKey",
        bearer: Some(loaded.verifier),
        requests: requests.collect(),
        answers: Answers::BeginWith(&[0x08, 0x01]),
    }
}

fn empty_call(authority: String) -> Target {
    Target::Grpc {
        authority,
        path: empty::CALL,
        bearer: None,
        requests: vec![bytes::Bytes::new()],
        answers: Answers::Any,
    }
}

fn me(server: &Server, loaded: Loaded) -> Target {
    Target::Http {
        authority: server.authority.clone(),
        path: "/v1/external/me",
        bearers: loaded.keys,
    }
}

fn empty_handler(authority: String) -> Target {
    Target::Http {
        authority,
        path: empty::HANDLER,
        bearers: Vec::new(),
    }
}
