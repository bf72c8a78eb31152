//! The `onering` command. Exit codes: 0 done, 1 failed or not valid, 2 wrong use
//! or configuration, 3 server not reached.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

pub mod bench;
mod client;
mod dead_letters;
mod dev;
mod doctor;
mod flags;
mod hold;
mod http;
mod keys;
mod link;
mod listen;
mod serve;
pub mod sink;
mod smoke;
pub mod verify;
mod worker;

/// Wrong use or configuration.
const WRONG: u8 = 2;

/// Opens an API to outside consumers: issues and checks API keys, delivers
/// signed webhooks without losing one.
#[derive(Parser)]
#[command(name = "onering", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  onering dev                                   everything on, with a first delivery shown
  onering keys master > master.key              a key that seals secrets at rest
  ONERING_MASTER_KEY_FILE=master.key onering serve
  onering sink --port 9090 --secret whsec_test  a receiver to test with

The environment is documented by `onering serve --help`.";

#[derive(Subcommand)]
enum Command {
    /// Runs everything on embedded defaults and shows a first delivery
    #[command(after_help = dev::EXAMPLES)]
    Dev(dev::DevArgs),
    /// Runs a node; nothing is open until it is switched on
    #[command(after_help = serve::help())]
    Serve,
    /// Sends webhooks for a server, from another network or region
    #[command(after_help = worker::EXAMPLES)]
    Worker(worker::WorkerArgs),
    /// Forwards webhooks to a local URL while it runs
    #[command(after_help = listen::EXAMPLES)]
    Listen(listen::ListenArgs),
    /// Receives webhooks, verifies and keeps them, to test with
    Sink(sink::SinkArgs),
    /// Checks a running server from key to delivered webhook
    #[command(after_help = smoke::EXAMPLES)]
    Smoke(smoke::SmokeArgs),
    /// Checks a webhook's signature, or makes one
    Verify(verify::VerifyArgs),
    /// Makes and manages API keys
    Keys(keys::KeysArgs),
    /// Shows and sets switches, and stops everything
    Flags(flags::FlagsArgs),
    /// Finds dead letters, tries them again, removes them; replays past events
    DeadLetters(dead_letters::DeadLettersArgs),
    /// Checks a store from the inside
    Doctor(doctor::DoctorArgs),
    /// Measures a server, this machine, and one as a fraction of the other
    Bench(bench::BenchArgs),
    /// Prints a shell's completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => return failed(WRONG, &e),
    };
    runtime.block_on(async {
        match cli.command {
            Command::Dev(args) => dev::run(args).await,
            Command::Serve => serve::run().await,
            Command::Worker(args) => worker::run(args).await,
            Command::Listen(args) => listen::run(args).await,
            Command::Sink(args) => sink::run(&args).await,
            Command::Smoke(args) => smoke::run(args).await,
            Command::Verify(args) => verify::run(&args),
            Command::Keys(args) => keys::run(args).await,
            Command::Flags(args) => flags::run(args).await,
            Command::DeadLetters(args) => dead_letters::run(args).await,
            Command::Doctor(args) => doctor::run(args).await,
            Command::Bench(args) => bench::run(args).await,
            Command::Completions { shell } => {
                clap_complete::generate(
                    shell,
                    &mut Cli::command(),
                    "onering",
                    &mut std::io::stdout(),
                );
                ExitCode::SUCCESS
            }
        }
    })
}

/// Says what went wrong.
fn failed(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("onering: {error}");
    ExitCode::from(code)
}
