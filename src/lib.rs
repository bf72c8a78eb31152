//! OneRing: a control plane for opening an API to outside consumers.
//!
//! The modules in the order in which a call passes them:
//!
//! 1. [`server`] takes a connection and tells gRPC from REST. [`rest`] turns a
//!    REST call into the gRPC call that it stands for, by the descriptors of
//!    [`proto`].
//! 2. [`rpc`] decides on the call at its gate and answers it. Who calls is a
//!    [`caller`]; what the node decides with is in memory, in the [`directory`].
//!    How often a key may call is the [`limiter`]'s to say; what it called is
//!    counted in [`usage`].
//! 3. [`pipeline`] commits an event with its deliveries, then sends them: to a
//!    [`target`], through the [`connector`].
//! 4. [`store`] keeps it all: one contract, two engines. [`seal`] seals what is
//!    secret in it.
//!    What is counted in it, [`monitor`] reads.
//! 5. [`domain`] decides: pure functions without I/O or a clock, which all of
//!    the above call.
//!
//! [`app`] puts a node together from its [`settings`]; [`cli`] is the command.
//! What a [`witness`] notes outside the store tells whether that went back in time.
//! [`error`], [`health`], [`metrics`], [`tasks`] and [`telemetry`] serve all of them.

pub mod app;
pub mod caller;
pub mod cli;
pub mod connector;
pub mod directory;
pub mod domain;
pub mod error;
pub mod health;
pub mod limiter;
pub mod metrics;
pub mod monitor;
pub mod pipeline;
pub mod proto;
pub mod rest;
pub mod rpc;
pub mod seal;
pub mod server;
pub mod settings;
pub mod store;
pub mod target;
pub mod tasks;
pub mod telemetry;
pub mod usage;
pub mod witness;
