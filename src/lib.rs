//! OneRing.
pub mod error;
pub mod proto;
