//! OneRing.
pub mod caller;
pub mod cli;
pub mod connector;
pub mod directory;
pub mod domain;
pub mod error;
pub mod metrics;
pub mod pipeline;
pub mod proto;
pub mod rest;
pub mod rpc;
pub mod seal;
pub mod settings;
pub mod store;
pub mod target;
