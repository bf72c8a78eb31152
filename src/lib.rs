//! OneRing.
pub mod cli;
pub mod error;
pub mod proto;
