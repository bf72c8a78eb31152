//! `onering sink`: a webhook receiver to test with.
//!
//! Also a library: `onering dev` and tests start one in their own process.

mod behaviour;
mod record;
mod server;

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use clap::Args;

pub use behaviour::Behaviour;
pub use record::Delivery;
pub use server::{RunningSink, Sink, SinkConfig};

use crate::domain::signature::{Scheme, VerifyingKey};

const EXAMPLES: &str = "\
Examples:
  Verify what comes and print a line for each delivery:
    onering sink --port 9090 --secret whsec_…
  Look at what came, and clear it:
    curl -s localhost:9090/deliveries | jq '.count'
    curl -s -X DELETE localhost:9090/delete
  Fail twice, then succeed (to see retries):
    onering sink --fail-first 2
  Change what it does while it runs; what is not named goes back to its default:
    curl -s localhost:9090/behave -d '{\"status\":503,\"fail_next\":2,\"delay_ms\":100}'
    curl -s localhost:9090/behave -d '{\"hang\":true}'
    curl -s localhost:9090/behave -d '{}'";

/// Arguments of `onering sink`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SinkArgs {
    /// Port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 9090)]
    port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    listen: IpAddr,
    /// The subscription's secret, or its public key (`whpk_…`), to verify with. Repeatable
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,
    /// Insist on a scheme: v1, plain or ed25519 (default: what the headers show)
    #[arg(long, value_name = "SCHEME")]
    scheme: Option<Scheme>,
    /// Answer 401 when a signature does not hold
    #[arg(long)]
    strict: bool,
    /// How many deliveries to keep; the oldest is forgotten first
    #[arg(long, default_value_t = 1000, value_name = "N")]
    keep: usize,
    /// Status to answer with (200 to 599); with --fail-first, to the first N only
    #[arg(long, value_name = "STATUS")]
    status: Option<u16>,
    /// Fail the first N deliveries (503, or --status), then answer 200
    #[arg(long, value_name = "N")]
    fail_first: Option<u64>,
    /// Wait so long before answering
    #[arg(long, default_value_t = 0, value_name = "MILLISECONDS")]
    delay_ms: u64,
    /// Never answer
    #[arg(long)]
    hang: bool,
    /// Print no line for each delivery
    #[arg(long)]
    quiet: bool,
}

/// Runs `onering sink` until Ctrl-C or SIGTERM.
pub async fn run(args: &SinkArgs) -> ExitCode {
    let config = match config(args) {
        Ok(config) => config,
        Err(wrong) => {
            eprintln!("error: {wrong}");
            return ExitCode::from(2);
        }
    };
    let listen = config.listen;
    let sink = match Sink::start(config).await {
        Ok(sink) => sink,
        Err(e) => {
            eprintln!("error: can't listen on {listen}: {e}");
            return ExitCode::FAILURE;
        }
    };
    // Before the line that scripts wait for: from then on a signal stops it cleanly.
    let stop = stop_signal();
    // Whoever closed the pipe does not want to know.
    let _ = writeln!(std::io::stdout(), "listening on {}", sink.url());
    stop.await;
    sink.stop().await;
    ExitCode::SUCCESS
}

fn config(args: &SinkArgs) -> Result<SinkConfig, String> {
    let keys = args
        .secret
        .iter()
        .map(|text| VerifyingKey::parse(text).map_err(|e| format!("--secret: {e}")))
        .collect::<Result<_, _>>()?;
    let behaviour = Behaviour {
        status: args.status.unwrap_or(200),
        fail_next: args.fail_first,
        delay_ms: args.delay_ms,
        hang: args.hang,
        retry_after: None,
    };
    behaviour.check()?;
    Ok(SinkConfig {
        listen: SocketAddr::new(args.listen, args.port),
        keys,
        scheme: args.scheme,
        strict: args.strict,
        keep: args.keep,
        print: !args.quiet,
        behaviour,
    })
}

/// A future that ends at Ctrl-C or SIGTERM. The signals are caught from the call
/// on; where one can't be, the process ends by it anyway.
#[cfg(unix)]
fn stop_signal() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let interrupt = signal(SignalKind::interrupt());
    let terminate = signal(SignalKind::terminate());
    async move {
        match (interrupt, terminate) {
            (Ok(mut interrupt), Ok(mut terminate)) => {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            }
            _ => std::future::pending().await,
        }
    }
}

#[cfg(not(unix))]
async fn stop_signal() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}
