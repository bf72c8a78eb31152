//! One run: warm up, measure, drain, count.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::Serialize;

use super::{
    args::LoadArgs,
    error::{BenchError, Result},
    latency::{Latencies, Percentiles},
    ledger::{Count, Ledger},
    pacer::Schedule,
    postgres::{self, Scratch},
    process::{self, Cpu},
    progress::Progress,
    publisher::{Publishers, Tally},
    receiver::{Hub, Live, Receivers},
    setup::Route,
    stats::{nanos, real},
};

/// After the last delivery: a late duplicate still belongs to this run.
const SETTLE: Duration = Duration::from_secs(1);

/// What every run of an invocation shares.
#[derive(Debug)]
pub(super) struct Bench {
    /// Where deliveries arrive.
    pub receivers: Receivers,
    /// Where it is shown how it goes.
    pub progress: Progress,
    next_run: AtomicU64,
}

impl Bench {
    /// Starts the receivers.
    pub(super) async fn start(listen: std::net::SocketAddr) -> Result<Self> {
        Ok(Self {
            receivers: Receivers::start(listen).await?,
            progress: Progress::new(),
            next_run: AtomicU64::new(0),
        })
    }

    /// The number of the next run.
    pub(super) fn next_run(&self) -> u64 {
        self.next_run.fetch_add(1, Relaxed)
    }
}

/// How much is sent, and for how long.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// What is measured, in a few words.
    pub name: String,
    /// Publishers.
    pub connections: usize,
    /// Events per second; as fast as answers come where there is none.
    pub rate: Option<f64>,
    /// Before the window.
    pub warm_up: Duration,
    /// The window that counts.
    pub duration: Duration,
    /// Longest wait for what is still to come.
    pub drain: Duration,
}

impl Load {
    /// As the arguments say.
    #[must_use]
    pub(super) fn of(name: &str, args: &LoadArgs, rate: Option<f64>) -> Self {
        Self {
            name: name.to_owned(),
            connections: usize::from(args.connections),
            rate,
            warm_up: args.warm_up,
            duration: args.duration,
            drain: args.drain,
        }
    }
}

/// Whose CPU and memory are read; nobody's for a raw run.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Probes<'a> {
    /// The server's process.
    pub server: Option<u32>,
    /// The database that the server uses.
    pub scratch: Option<&'a Scratch>,
}

/// What one run showed.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Run {
    /// What was measured.
    pub name: String,
    /// Events accepted per second, within the window.
    pub events_per_s: f64,
    /// Deliveries that arrived per second, within the window, each counted once.
    pub deliveries_per_s: f64,
    /// From publish to arrival.
    pub latency: Percentiles,
    /// From publish to its answer.
    pub answer: Percentiles,
    /// Over the whole run, warm-up and drain included.
    pub count: Count,
    /// Answers by HTTP status.
    pub statuses: BTreeMap<u16, u64>,
    /// Calls without an answer.
    pub broken: BTreeMap<String, u64>,
    /// The first refusal.
    pub first_refusal: Option<String>,
    /// Arrivals that were not as they should be, or of a run that is over.
    pub malformed: u64,
    /// From the window's end until the last delivery was there.
    pub drain_s: f64,
    /// CPU per delivery.
    pub cpu: process::PerDelivery,
    /// The server's resident memory at its highest, in bytes.
    pub resident_max: Option<u64>,
    /// PostgreSQL's work per delivery.
    pub postgres: Option<postgres::PerDelivery>,
    /// Arrivals in each second since the start.
    pub seconds: Vec<u64>,
}

/// Does one run.
pub(super) async fn run(
    bench: &Bench,
    route: &Route,
    load: &Load,
    probes: Probes<'_>,
) -> Result<Run> {
    let hub = &bench.receivers.hub;
    let live = Arc::new(begin_live(hub, bench.next_run(), route, load)?);
    hub.begin(Arc::clone(&live));
    let odd_before = odd(hub);

    let schedule = load
        .rate
        .map(|rate| Schedule::begin(hub, rate, load.warm_up + load.duration, load.connections))
        .transpose()?;
    let publishers = Publishers::begin(
        hub,
        &live,
        &route.target,
        schedule.as_ref(),
        load.connections,
    );
    let measured = measure(bench, &live, load, probes).await?;
    let tally = publishers.join().await?;
    conclude(bench, &live, load, measured, tally, odd_before).await
}

/// Waits for what is still to come, and adds a run up. `odd_before`: how many odd
/// arrivals there were when it began.
pub(super) async fn conclude(
    bench: &Bench,
    live: &Live,
    load: &Load,
    measured: Measured,
    tally: Tally,
    odd_before: u64,
) -> Result<Run> {
    let drained = drain(bench, live, load).await;
    let seconds_measured = load.duration.as_secs_f64();
    let in_window = live.in_window.load(Relaxed);
    let mut seconds: Vec<u64> = live.seconds.iter().map(|s| s.load(Relaxed)).collect();
    while seconds.last() == Some(&0) {
        seconds.pop();
    }
    Ok(Run {
        name: load.name.clone(),
        events_per_s: real(tally.accepted_in_window) / seconds_measured,
        deliveries_per_s: real(in_window) / seconds_measured,
        latency: Percentiles::of(&live.latencies.merged()?),
        answer: Percentiles::of(&tally.answers),
        count: live.ledger.count(),
        statuses: tally.statuses,
        broken: tally.broken,
        first_refusal: tally.first_refusal,
        malformed: odd(&bench.receivers.hub) - odd_before,
        drain_s: drained.as_secs_f64(),
        cpu: measured.cpu,
        resident_max: measured.resident_max,
        postgres: measured.postgres,
        seconds,
    })
}

/// Arrivals so far that were not as they should be.
pub(super) fn odd(hub: &Hub) -> u64 {
    hub.malformed.load(Relaxed) + hub.strays.load(Relaxed)
}

/// A run that begins now.
pub(super) fn begin_live(hub: &Hub, run: u64, route: &Route, load: &Load) -> Result<Live> {
    let start = hub.now();
    let from = start + nanos(load.warm_up);
    let longest = load.warm_up + load.duration + load.drain;
    Ok(Live {
        run,
        ledger: Ledger::new(route.types, route.fan_out),
        latencies: Latencies::new()?,
        start,
        window: from..from + nanos(load.duration),
        in_window: AtomicU64::new(0),
        seconds: (0..longest.as_secs() + 10)
            .map(|_| AtomicU64::new(0))
            .collect(),
    })
}

/// What a run took of the machine.
#[derive(Debug)]
pub(super) struct Measured {
    cpu: process::PerDelivery,
    resident_max: Option<u64>,
    postgres: Option<postgres::PerDelivery>,
}

/// Waits for the window's end and reads the processes at both its ends.
pub(super) async fn measure(
    bench: &Bench,
    live: &Live,
    load: &Load,
    probes: Probes<'_>,
) -> Result<Measured> {
    let hub = &bench.receivers.hub;
    let port = probes.scratch.and_then(Scratch::local_port);
    let mut first = None;
    let mut resident_max = None;
    let mut before = 0;
    loop {
        let now = hub.now();
        if first.is_none() && now >= live.window.start {
            let counters = match probes.scratch {
                Some(s) => Some(s.counters().await?),
                None => None,
            };
            first = Some((
                Cpu::now(probes.server, port),
                counters,
                live.in_window.load(Relaxed),
            ));
        }
        if now >= live.window.end {
            break;
        }
        // B13
        resident_max = resident_max.max(probes.server.and_then(process::resident));
        let elapsed = now.saturating_sub(live.start) / 1_000_000_000;
        let total: u64 = live.seconds.iter().map(|s| s.load(Relaxed)).sum();
        if elapsed > 0 {
            let phase = if first.is_some() { "" } else { " (warm-up)" };
            bench.progress.tick(&format!(
                "{}: {elapsed:>3} s  {:>7} delivered/s  {total:>9} in all{phase}",
                load.name,
                total - before
            ));
        }
        before = total;
        let edge = if first.is_none() {
            live.window.start
        } else {
            live.window.end
        };
        let second = live.start + (elapsed + 1) * 1_000_000_000;
        let until = edge.min(second).saturating_sub(hub.now());
        tokio::time::sleep(Duration::from_nanos(until)).await;
    }
    let Some((cpu, counters, delivered)) = first else {
        return Err(BenchError::Failed(
            "the run was over before it was measured".into(),
        ));
    };
    let n = live.in_window.load(Relaxed) - delivered;
    let cpu = Cpu::now(probes.server, port).since(&cpu, n);
    let postgres = match (probes.scratch, counters) {
        (Some(s), Some(earlier)) => s.counters().await?.since(&earlier, n),
        _ => None,
    };
    Ok(Measured {
        cpu,
        resident_max,
        postgres,
    })
}

/// Waits until everything accepted has arrived, or for as long as is allowed.
/// Returns how long that took since the window's end.
async fn drain(bench: &Bench, live: &Live, load: &Load) -> Duration {
    let hub = &bench.receivers.hub;
    let mut told = 0;
    let took = loop {
        let count = live.ledger.count();
        let took = Duration::from_nanos(hub.now().saturating_sub(live.window.end));
        if count.lost == 0 || took > load.drain {
            break took;
        }
        if took.as_secs() > told {
            told = took.as_secs();
            let line = format!("{}: draining, {told} s, {} to come", load.name, count.lost);
            bench.progress.tick(&line);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    tokio::time::sleep(SETTLE).await;
    took
}

/// Does several runs and shows each result.
pub(super) async fn runs(
    bench: &Bench,
    route: &Route,
    load: &Load,
    probes: Probes<'_>,
    how_many: u16,
) -> Result<Vec<Run>> {
    let mut done = Vec::new();
    for n in 1..=how_many {
        let run = run(bench, route, load, probes).await?;
        bench
            .progress
            .say(&format!("{} {n}/{how_many}: {}", load.name, run.line()));
        done.push(run);
    }
    Ok(done)
}

impl Run {
    /// The result in one line. What went wrong is always in it.
    #[must_use]
    pub(super) fn line(&self) -> String {
        let mut line = format!(
            "{:.0} events/s, {:.0} deliveries/s, p50 {:.2} ms, p99 {:.2} ms, drained in {:.1} s; lost {}, doubled {}",
            self.events_per_s,
            self.deliveries_per_s,
            self.latency.p50_ms,
            self.latency.p99_ms,
            self.drain_s,
            self.count.lost,
            self.count.duplicates,
        );
        if let Some(troubles) = self.troubles() {
            line.push_str("; ");
            line.push_str(&troubles);
        }
        line
    }

    /// Refusals, broken calls and odd arrivals, or nothing where there are none.
    #[must_use]
    pub(super) fn troubles(&self) -> Option<String> {
        let count = self.count;
        let mut parts = Vec::new();
        if count.refused > 0 {
            let codes: Vec<String> = self
                .statuses
                .iter()
                .map(|(s, n)| format!("{s}: {n}"))
                .collect();
            parts.push(format!("answers {}", codes.join(", ")));
        }
        parts.extend(
            self.first_refusal
                .as_ref()
                .map(|r| format!("the first refusal: {r}")),
        );
        parts.extend(self.broken.iter().map(|(what, n)| format!("{what}: {n}")));
        for (what, n) in [
            ("refused but delivered", count.refused_but_delivered),
            ("strays", count.strays),
            ("malformed or late", self.malformed),
        ] {
            if n > 0 {
                parts.push(format!("{what}: {n}"));
            }
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}
