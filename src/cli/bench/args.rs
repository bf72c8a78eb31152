//! The arguments of `onering bench`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::{
    empty::EmptyArgs,
    error::{BenchError, Result},
    gate::GateArgs,
    ledger::MAX_FAN_OUT,
    workers::WorkersArgs,
};

const EXAMPLES: &str = "\
Examples:
  onering bench raw
  onering bench publish --duration 60s --connections 64
  onering bench publish --database postgres://localhost/postgres --endpoints 10 --fan-out 10
  onering bench publish --rate 2000 --json result.json --svg result.svg
  onering bench latency --b5-rate 5000
  onering bench overload --duration 20s --database postgres://localhost/postgres
  onering bench load --database sqlite:///var/tmp/onering.db --deliveries 1000000
  onering bench monitoring --database postgres://localhost/postgres --deliveries 10000000
  onering bench suite --database postgres://localhost/postgres --database sqlite
  onering bench switch --database postgres://localhost/postgres --nodes 3
  onering bench backlog --database postgres://localhost/postgres --pending 1000000
  onering bench isolation --database postgres://localhost/postgres
  onering bench publish --stored 10000000 --database postgres://localhost/postgres
  onering bench verify --keys 100000 --callers 64
  onering bench me --output json
  onering bench workers --workers 4 --database postgres://localhost/postgres
  onering bench publish --url http://127.0.0.1:8000 --admin-key sk_admin_...

Without --url it starts a server of its own on a free port of this machine, with a
database that is made for the run and removed after it. Everything shares the
machine's cores, so compare figures as fractions of `raw`, measured in the same run.
Exit code 1 if an accepted event was lost.";

/// Measures this server: how many events it takes, how soon they arrive, and
/// that none is lost.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub mode: Mode,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Mode {
    /// Posts the same bodies straight at the receivers: what this machine can do at most.
    Raw(RawArgs),
    /// Durable publish until delivered: events per second, deliveries per second, latencies.
    Publish(PublishArgs),
    /// Latency from publish to arrival, at 100 events/s and at half of full speed.
    Latency(LatencyArgs),
    /// Ten times what the server takes: how it refuses, its memory, and how it is after that.
    Overload(OverloadArgs),
    /// From a changed switch or a revoked key until the last node acts on it.
    Switch(SwitchArgs),
    /// Everything, as a table in Markdown.
    Suite(SuiteArgs),
    /// `VerifyKey` beside an empty unary gRPC call.
    Verify(GateArgs),
    /// `GET /v1/external/me` beside an empty HTTP handler.
    Me(GateArgs),
    /// How soon a long backlog is delivered once its receiver is back, and with how much memory.
    Backlog(BacklogArgs),
    /// What endpoints that hang cost the others.
    Isolation(IsolationArgs),
    /// Deliveries a second to workers at the other ends of streams.
    Workers(WorkersArgs),
    /// What `verify` and `me` are compared with.
    #[command(hide = true)]
    Empty(EmptyArgs),
    /// Writes finished deliveries into a database, as if they had been made over the last days.
    Load(LoadHistoryArgs),
    /// How soon monitoring answers with many deliveries stored.
    Monitoring(MonitoringArgs),
}

/// Arguments of `bench load`.
#[derive(Debug, Clone, Args)]
pub struct LoadHistoryArgs {
    /// Where: `sqlite://path` or a `postgres://` URL; of `bench monitoring` also `sqlite`,
    /// and a database of its own beside the named one, removed after the run.
    #[arg(long, default_value = "sqlite")]
    pub database: String,
    /// How many deliveries.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub deliveries: u64,
    /// How many tenants they are spread over.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub tenants: u32,
    /// How many days they are spread over.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=365))]
    pub days: u16,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `bench monitoring`.
#[derive(Debug, Clone, Args)]
pub struct MonitoringArgs {
    /// A running server, `http://host:port`. Without it, one is started on a history of its own.
    #[arg(long, requires = "admin_key")]
    pub url: Option<String>,
    /// An admin key of that server.
    #[arg(long, env = "ONERING_ADMIN_KEY", hide_env_values = true)]
    pub admin_key: Option<String>,
    /// Requests of each route that are counted.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests: u32,
    /// Where the data of a server of our own is kept during the run.
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub history: LoadHistoryArgs,
}

/// Arguments of `bench raw`.
#[derive(Debug, Args)]
pub struct RawArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `bench publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Publish this many events a second, whether or not the server keeps up;
    /// latencies count from when an event was due. Without it each connection
    /// sends its next event when the last one is answered.
    #[arg(long, value_name = "EVENTS_PER_SECOND", value_parser = rate)]
    pub rate: Option<f64>,
    /// Subscriptions, each with an endpoint of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub endpoints: u64,
    /// Subscriptions that each event goes to; a divisor of the endpoints.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=MAX_FAN_OUT))]
    pub fan_out: u64,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `bench latency`.
#[derive(Debug, Args)]
pub struct LatencyArgs {
    /// The low rate.
    #[arg(long, default_value = "100", value_name = "EVENTS_PER_SECOND", value_parser = rate)]
    pub rate: f64,
    /// The high rate. Without it: half of what the server takes, measured first.
    #[arg(long, value_name = "EVENTS_PER_SECOND", value_parser = rate)]
    pub b5_rate: Option<f64>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `bench overload`.
#[derive(Debug, Args)]
pub struct OverloadArgs {
    /// Publishers during the overload: each waits for its answer, so that few can't overload.
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    pub overload_connections: u16,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `bench switch`.
#[derive(Debug, Args)]
pub struct SwitchArgs {
    /// Nodes on one database.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
    /// How many times a switch is set, and how many keys are revoked.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub changes: u32,
    /// `sqlite`, for one node, or a `postgres://` URL whose role may create databases.
    #[arg(long, default_value = "sqlite")]
    pub database: String,
    /// More environment for each node: NAME=VALUE.
    #[arg(long, value_name = "NAME=VALUE")]
    pub server_env: Vec<String>,
    /// Where the nodes' data is kept during the run.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl SwitchArgs {
    /// Checks what clap can't.
    pub fn check(&self) -> Result<()> {
        let usage = |why: &str| Err(BenchError::Usage(why.into()));
        if is_postgres(&self.database) {
            return Ok(());
        }
        if self.database != "sqlite" {
            return usage("--database: `sqlite` or a postgres:// URL is needed");
        }
        if self.nodes > 1 {
            return usage("SQLite is for one node: --nodes 1, or --database postgres://…");
        }
        Ok(())
    }
}

/// Arguments of `bench backlog`.
#[derive(Debug, Args)]
pub struct BacklogArgs {
    /// How many deliveries wait.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub pending: u64,
    /// Subscriptions that they wait for, each with an endpoint of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub endpoints: u64,
    /// Let them wait because `webhooks.delivery.enabled` is off, instead of for a
    /// receiver that is out of order until all are published.
    #[arg(long)]
    pub switched_off: bool,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `bench isolation`.
#[derive(Debug, Args)]
pub struct IsolationArgs {
    /// Subscriptions, each with an endpoint of its own.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    pub endpoints: u64,
    /// How many of them hang until an attempt's limit, 15 seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=50_000))]
    pub hanging: u64,
    /// Events per second to all of them. Without it: half of what the server takes with
    /// one endpoint, measured first.
    #[arg(long, value_name = "EVENTS_PER_SECOND", value_parser = rate)]
    pub rate: Option<f64>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `bench suite`.
#[derive(Debug, Args)]
pub struct SuiteArgs {
    #[command(flatten)]
    pub run: RunArgs,
}

/// What every run against a server is told.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How much, and for how long.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Publishers, each with one HTTP/1.1 connection.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub connections: u16,
    /// Size of each request's body, in bytes.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub body_bytes: u32,
    /// How long each run is measured.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub duration: Duration,
    /// How long it runs before that, not counted.
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub warm_up: Duration,
    /// Runs; medians are shown with the lowest and the highest.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub runs: u16,
    /// How long each raw run is measured, before and after the others.
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub raw_duration: Duration,
    /// How long to wait after a run for deliveries that are still to come; then they are lost.
    #[arg(long, default_value = "120s", value_parser = duration)]
    pub drain: Duration,
    /// Where the receivers listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
}

/// Which server.
#[derive(Debug, Clone, Args)]
pub struct TargetArgs {
    /// A running server, `http://host:port`. Without it, one is started.
    #[arg(long)]
    pub url: Option<String>,
    /// A consumer's key (`osk_…`) of that server.
    #[arg(long, requires = "url")]
    pub key: Option<String>,
    /// An admin key of that server; a consumer's key is made with it and revoked at the end.
    #[arg(long, env = "ONERING_ADMIN_KEY", hide_env_values = true)]
    pub admin_key: Option<String>,
    /// The base URL of the receivers as the server sees them, if not their own address.
    #[arg(long, requires = "url")]
    pub advertise: Option<String>,
    /// For a server of our own: `sqlite`, or a `postgres://` URL whose role may create
    /// databases. The suite takes it twice.
    #[arg(long, default_value = "sqlite", conflicts_with = "url")]
    pub database: Vec<String>,
    /// More environment for a server of our own: NAME=VALUE; an empty value takes a
    /// variable away.
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "url")]
    pub server_env: Vec<String>,
    /// Where the data of a server of our own is kept during the run. A folder in
    /// memory (tmpfs) would make durability look free.
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub data_dir: Option<PathBuf>,
    /// Finished deliveries that the database of a server of our own has before it starts,
    /// over the last 30 days: what is stored must not slow what is new.
    #[arg(long, default_value_t = 0, conflicts_with = "url", value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    pub stored: u64,
    /// Whether each event has an `Idempotency-Key`, as SDKs send.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub idempotency: bool,
}

/// What is written.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// Write the result as JSON to this file, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the result into this file.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// How the result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table in Markdown, for people.
    Text,
    /// JSON, for programs.
    Json,
}

impl TargetArgs {
    /// Checks what clap can't, before the first run: so that a mistake doesn't
    /// show only after a minute. `databases` is how many may be named.
    pub fn check(&self, databases: usize) -> Result<()> {
        let usage = |why: String| Err(BenchError::Usage(why));
        if let Some(url) = &self.url {
            super::setup::authority(url)?;
            if self.key.is_none() && self.admin_key.is_none() {
                return usage("--url needs --key or --admin-key".into());
            }
        }
        if self.database.len() > databases {
            return usage("only `bench suite` takes --database more than once".into());
        }
        self.database
            .iter()
            .try_for_each(|database| Self::check_own(database, &self.server_env))
    }

    /// Checks what a server of our own is started with.
    pub(super) fn check_own(database: &str, server_env: &[String]) -> Result<()> {
        let usage = |why: String| Err(BenchError::Usage(why));
        if database != "sqlite" && !is_postgres(database) {
            return usage("--database: `sqlite` or a postgres:// URL is needed".into());
        }
        if let Some(pair) = server_env.iter().find(|pair| !pair.contains('=')) {
            return usage(format!("--server-env {pair}: NAME=VALUE is needed"));
        }
        Ok(())
    }
}

/// Whether a database is named by a URL of PostgreSQL's.
pub(super) fn is_postgres(database: &str) -> bool {
    database.starts_with("postgres://") || database.starts_with("postgresql://")
}

/// Whether every event type gets as many endpoints.
pub(super) fn check_fan_out(endpoints: u64, fan_out: u64) -> Result<()> {
    if endpoints.is_multiple_of(fan_out) {
        Ok(())
    } else {
        Err(BenchError::Usage(format!(
            "--endpoints {endpoints} must be a multiple of --fan-out {fan_out}"
        )))
    }
}

/// Reads `500ms`, `60s`, `2m` or `1h`; more than nothing.
pub(super) fn duration(text: &str) -> std::result::Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a number with its unit: 500ms, 60s, 2m, 1h".into()),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(millis))
        .filter(|n| (1..=86_400_000).contains(n))
        .map(Duration::from_millis)
        .ok_or_else(|| "from 1ms to 24h".into())
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    text.parse()
        .ok()
        .filter(|r: &f64| (0.01..=1e6).contains(r))
        .ok_or_else(|| "events per second, 0.01 to 1000000".into())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    #[test]
    fn the_arguments_are_consistent_and_the_examples_parse() {
        Cli::command().debug_assert();
        for line in EXAMPLES
            .lines()
            .filter_map(|l| l.trim().strip_prefix("onering "))
        {
            Cli::try_parse_from(line.split(' ')).unwrap();
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for bad in ["", "5", "s", "-1s", "0s", "25h", "1d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_target_is_told_before_anything_runs() {
        let check = |line: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            match cli.bench.mode {
                Mode::Publish(args) => args.run.target.check(1),
                Mode::Suite(args) => args.run.target.check(2),
                _ => Ok(()),
            }
        };
        assert!(check("bench publish").is_ok());
        assert!(check("bench publish --url http://h --key osk_x").is_ok());
        assert!(check("bench suite --database sqlite --database postgres://h/x").is_ok());
        for bad in [
            "bench publish --url http://h",
            "bench publish --url ftp://h --key k",
            "bench publish --database mysql://h/x",
            "bench publish --database sqlite --database sqlite",
            "bench publish --server-env A",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn several_nodes_need_postgresql() {
        let check = |line: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            match cli.bench.mode {
                Mode::Switch(args) => args.check().is_ok(),
                _ => false,
            }
        };
        assert!(check("bench switch --database postgres://h/x"));
        assert!(check("bench switch --nodes 1"));
        assert!(!check("bench switch"));
        assert!(!check("bench switch --nodes 1 --database mysql://h/x"));
    }

    #[test]
    fn fan_out_divides_the_endpoints() {
        assert!(check_fan_out(20, 10).is_ok());
        assert!(check_fan_out(15, 10).is_err());
    }
}
