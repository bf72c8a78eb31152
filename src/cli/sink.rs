//! stub
#[derive(clap::Args)]
pub struct SinkArgs {}
/// x
pub async fn run(_: SinkArgs) -> std::process::ExitCode { std::process::ExitCode::SUCCESS }
