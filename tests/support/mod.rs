//! What the tests share: databases that live for one test, and builders.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part of it"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod app;
pub mod build;
pub mod call;
pub mod cluster;
pub mod command;
#[macro_use]
pub mod contract;
pub mod faults;
pub mod gate;
pub mod proxy;
pub mod receiver;
pub mod rest;
pub mod store;
pub mod tls;
pub mod wait;
