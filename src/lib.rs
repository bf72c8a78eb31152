//! OneRing.
#![forbid(unsafe_code)]
pub mod cli;
pub mod domain;
pub mod error;
pub mod proto;
