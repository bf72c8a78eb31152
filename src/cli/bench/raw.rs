//! The raw mode: the HTTP client that deliveries are sent with, straight at the
//! receivers. What it reaches is what this machine can do for HTTP delivery, and
//! all other figures are given as fractions of it.

use super::{
    args::LoadArgs,
    error::Result,
    scenario::{Bench, Load, Probes, Run, runs},
    setup::Route,
};

/// Does the raw runs that frame an invocation: once before the others and once
/// after them, so that a machine that changed meanwhile is noticed.
pub(super) async fn measure(bench: &Bench, args: &LoadArgs, name: &str) -> Result<Vec<Run>> {
    let address = bench.receivers.address;
    // Receivers on all addresses are reached on this machine's own.
    let ip = if address.ip().is_unspecified() {
        std::net::Ipv4Addr::LOCALHOST.into()
    } else {
        address.ip()
    };
    let authority = std::net::SocketAddr::new(ip, address.port()).to_string();
    let route = Route::raw(
        &authority,
        usize::try_from(args.body_bytes).unwrap_or(usize::MAX),
    )?;
    let load = Load {
        warm_up: args.warm_up.min(args.raw_duration / 4),
        duration: args.raw_duration,
        ..Load::of(name, args, None)
    };
    runs(bench, &route, &load, Probes::default(), args.runs).await
}
