//! `onering bench`: how many events the server takes, how soon they arrive, and
//! that none is lost.
//!
//! Publishers and receivers live in this process and share one clock. Each event
//! carries a sequence number, so an arrival is matched with its sending even
//! where it comes before the answer to the publish.

mod args;
mod backlog;
mod body;
mod callers;
mod calls;
mod client;
mod deployment;
mod empty;
mod error;
mod gate;
mod isolation;
mod keys;
mod latency;
mod ledger;
mod monitoring;
mod overload;
mod pacer;
mod plot;
mod postgres;
mod process;
mod progress;
mod publisher;
mod raw;
mod receiver;
mod report;
mod scenario;
mod server;
mod setup;
mod stats;
mod suite;
mod switch;
mod workers;

use std::{io::Write as _, process::ExitCode};

pub use args::BenchArgs;
use args::{
    BacklogArgs, Format, IsolationArgs, LatencyArgs, LoadArgs, Mode, OutputArgs, PublishArgs,
    RawArgs, SuiteArgs, TargetArgs,
};
use deployment::Deployment;
use error::{BenchError, Result};
use gate::What;
use report::{Report, Row, Series, spread};
use scenario::Bench;

/// Runs a benchmark and prints its result. 1 where an accepted event was lost or
/// something failed on the way, 2 for wrong use, 3 where no server was reached.
pub async fn run(args: BenchArgs) -> ExitCode {
    let (outcome, output) = match args.mode {
        Mode::Raw(args) => (raw_mode(&args).await, args.output),
        Mode::Publish(args) => (publish_mode(&args).await, args.run.output),
        Mode::Latency(args) => (latency_mode(&args).await, args.run.output),
        Mode::Suite(args) => (suite_mode(&args).await, args.run.output),
        Mode::Overload(args) => (overload::measure(&args).await, args.run.output),
        Mode::Backlog(args) => (backlog_mode(&args).await, args.run.output),
        Mode::Isolation(args) => (isolation_mode(&args).await, args.run.output),
        Mode::Switch(args) => (switch::measure(&args).await, args.output),
        Mode::Verify(args) => return decisions(What::Verify, &args).await,
        Mode::Me(args) => return decisions(What::Me, &args).await,
        Mode::Workers(args) => return streams(&args).await,
        Mode::Empty(args) => return ended(empty::serve(&args).await.map(|()| None)),
        Mode::Load(args) => (monitoring::load(&args).await, args.output),
        Mode::Monitoring(args) => (monitoring::measure(&args).await, args.history.output),
    };
    ended(outcome.and_then(|report| {
        let svg = output.svg.is_some().then(|| plot::svg(&report));
        write(&report, &report.markdown(), svg, &output).map(|()| report.failure())
    }))
}

/// `bench verify` and `bench me`.
async fn decisions(what: What, args: &gate::GateArgs) -> ExitCode {
    let outcome = gate::measure(what, args).await;
    ended(outcome.and_then(|calls| {
        if args.output.svg.is_some() {
            return Err(BenchError::Usage(
                "there is nothing to draw here: no --svg".into(),
            ));
        }
        write(&calls, &calls.markdown(), None, &args.output).map(|()| None)
    }))
}

/// `bench workers`.
async fn streams(args: &workers::WorkersArgs) -> ExitCode {
    let outcome = workers::measure(args).await;
    ended(outcome.and_then(|measured| {
        if args.output.svg.is_some() {
            return Err(BenchError::Usage(
                "there is nothing to draw here: no --svg".into(),
            ));
        }
        write(&measured, &measured.markdown(), None, &args.output).map(|()| None)
    }))
}

/// The exit code; the string is why a benchmark that ran to its end failed.
fn ended(written: Result<Option<String>>) -> ExitCode {
    match written {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(failure)) => {
            complain(&failure);
            ExitCode::FAILURE
        }
        Err(e) => {
            complain(&e.to_string());
            e.exit_code()
        }
    }
}

fn complain(what: &str) {
    writeln!(std::io::stderr(), "onering bench: {what}").ok();
}

/// Resolves on SIGINT and SIGTERM, so that what was started is stopped in order.
async fn interrupted() -> BenchError {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        },
        Err(_) => {
            tokio::signal::ctrl_c().await.ok();
        }
    }
    BenchError::Failed("interrupted".into())
}

async fn begin(load: &LoadArgs) -> Result<(Bench, Report)> {
    let bench = Bench::start(load.listen).await?;
    let raw_before = raw::measure(&bench, load, "raw").await?;
    let report = Report {
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        connections: load.connections,
        body_bytes: load.body_bytes,
        raw_before,
        ..Report::default()
    };
    Ok((bench, report))
}

async fn raw_mode(args: &RawArgs) -> Result<Report> {
    // Here raw is not beside something, but what was asked for.
    let load = LoadArgs {
        raw_duration: args.load.duration,
        ..args.load.clone()
    };
    let (_, mut report) = begin(&load).await?;
    report.series = vec![Series {
        name: "raw".into(),
        database: "none".into(),
        runs: report.raw_before.clone(),
    }];
    Ok(report)
}

async fn publish_mode(args: &PublishArgs) -> Result<Report> {
    args.run.target.check(1)?;
    args::check_fan_out(args.endpoints, args.fan_out)?;
    let (bench, mut report) = begin(&args.run.load).await?;
    let mut deployment =
        Deployment::start(&bench, &args.run.target, database(&args.run.target)).await?;
    let series = tokio::select! {
        series = suite::at_rate(
            &bench, &args.run.load, &mut deployment, "publish", args.rate, args.endpoints, args.fan_out,
        ) => series,
        stop = interrupted() => Err(stop),
    };
    deployment.stop().await?;
    let series = series?;
    report.raw_after = raw::measure(&bench, &args.run.load, "raw").await?;
    let rate = series.rate();
    report.rows.push(Row {
        id: String::new(),
        what: format!(
            "durable publish → delivered, {} endpoint(s), fan-out {}, {}",
            args.endpoints, args.fan_out, series.database
        ),
        figure: format!("{} deliveries/s", spread(rate, 0)),
        of_raw: report.of_raw(rate.median),
        target: String::new(),
        reached: None,
    });
    report.series.push(series);
    Ok(report)
}

async fn latency_mode(args: &LatencyArgs) -> Result<Report> {
    args.run.target.check(1)?;
    let (bench, mut report) = begin(&args.run.load).await?;
    let mut deployment =
        Deployment::start(&bench, &args.run.target, database(&args.run.target)).await?;
    let found = tokio::select! {
        found = latency_series(&bench, args, &mut deployment) => found,
        stop = interrupted() => Err(stop),
    };
    deployment.stop().await?;
    let (full, latencies) = found?;
    report.raw_after = raw::measure(&bench, &args.run.load, "raw").await?;
    report.rows = suite::latency_rows(&report, &latencies);
    report.series = full.into_iter().chain(latencies).collect();
    Ok(report)
}

/// B4 and B5, with the B1 that B5's rate is half of, unless that is given.
async fn latency_series(
    bench: &Bench,
    args: &LatencyArgs,
    deployment: &mut Deployment,
) -> Result<(Option<Series>, Vec<Series>)> {
    let (full, half) = if let Some(rate) = args.b5_rate {
        (None, rate)
    } else {
        let full = suite::throughput(bench, &args.run.load, deployment, "B1", 1, 1).await?;
        let half = full.spread(|r| r.events_per_s).median / 2.0;
        (Some(full), half)
    };
    let latencies = suite::latency(bench, &args.run.load, deployment, args.rate, half).await?;
    Ok((full, latencies))
}

async fn suite_mode(args: &SuiteArgs) -> Result<Report> {
    args.run.target.check(2)?;
    let (bench, mut report) = begin(&args.run.load).await?;
    suite::measure(&bench, &args.run.load, &args.run.target, &mut report).await?;
    Ok(report)
}

async fn backlog_mode(args: &BacklogArgs) -> Result<Report> {
    args.run.target.check(1)?;
    let mut target = args.run.target.clone();
    if args.switched_off {
        target.server_env.push(backlog::UNPINNED.into());
    }
    let (bench, mut report) = begin(&args.run.load).await?;
    let mut deployment = Deployment::start(&bench, &target, database(&target)).await?;
    let done = tokio::select! {
        done = backlog::measure(&bench, args, &mut deployment, &mut report) => done,
        stop = interrupted() => Err(stop),
    };
    deployment.stop().await?;
    done.map(|()| report)
}

async fn isolation_mode(args: &IsolationArgs) -> Result<Report> {
    args.run.target.check(1)?;
    if args.hanging >= args.endpoints {
        return Err(BenchError::Usage(
            "--hanging: fewer than --endpoints".into(),
        ));
    }
    let (bench, mut report) = begin(&args.run.load).await?;
    let mut deployment =
        Deployment::start(&bench, &args.run.target, database(&args.run.target)).await?;
    let done = tokio::select! {
        done = isolation::measure(&bench, args, &mut deployment, &mut report) => done,
        stop = interrupted() => Err(stop),
    };
    deployment.stop().await?;
    done.map(|()| report)
}

/// The one database of a mode that takes no more.
fn database(target: &TargetArgs) -> &str {
    target.database.first().map_or("sqlite", String::as_str)
}

fn write(
    report: &impl serde::Serialize,
    markdown: &str,
    svg: Option<String>,
    output: &OutputArgs,
) -> Result<()> {
    let json =
        || serde_json::to_string_pretty(report).map_err(|e| BenchError::failed("no JSON", e));
    let save = |path: &std::path::Path, text: String| {
        std::fs::write(path, text).map_err(|e| BenchError::failed(&path.display().to_string(), e))
    };
    if let Some(path) = &output.json {
        save(path, json()?)?;
    }
    if let (Some(path), Some(svg)) = (&output.svg, svg) {
        save(path, svg)?;
    }
    let text = match output.output {
        Format::Text => markdown.to_owned(),
        Format::Json => json()?,
    };
    writeln!(std::io::stdout(), "{}", text.trim_end())
        .map_err(|e| BenchError::failed("standard output", e))
}
