//! Nodes and what they stand on, from the outside: restarts behind a balancer,
//! databases that were restored, more load than they can take.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
mod support;

#[path = "nodes/restored.rs"]
mod restored;
#[path = "nodes/rolling.rs"]
mod rolling;
