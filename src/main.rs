//! The `onering` command.
use std::process::ExitCode;

use clap::Parser;
use onering::cli::{sink, verify};

#[derive(Parser)]
#[command(name = "onering", version)]
enum Command {
    /// A receiver to test with
    Sink(sink::SinkArgs),
    /// Checks a webhook's signature and says why it fails
    Verify(verify::VerifyArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    match Command::parse() {
        Command::Sink(args) => sink::run(&args).await,
        Command::Verify(args) => verify::run(&args),
    }
}
