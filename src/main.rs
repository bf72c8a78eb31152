//! The `onering` command.
use clap::Parser;
use onering::cli::bench;

#[derive(Parser)]
enum Cli {
    Bench(bench::BenchArgs),
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let Cli::Bench(args) = Cli::parse();
    bench::run(args).await
}
