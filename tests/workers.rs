//! Workers at the other ends of streams: the protocol from the outside, on both
//! engines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
mod support;

#[path = "workers/access.rs"]
mod access;
#[path = "workers/client.rs"]
mod client;
#[path = "workers/commands.rs"]
mod commands;
#[path = "workers/conformance.rs"]
mod conformance;
#[path = "workers/credit.rs"]
mod credit;
#[path = "workers/fences.rs"]
mod fences;
#[path = "workers/late.rs"]
mod late;
#[path = "workers/leaving.rs"]
mod leaving;
#[path = "workers/lifetimes.rs"]
mod lifetimes;
#[path = "workers/liveness.rs"]
mod liveness;
#[path = "workers/nodes.rs"]
mod nodes;
#[path = "workers/relays.rs"]
mod relays;
#[path = "workers/revoked.rs"]
mod revoked;
