//! OneRing.
pub mod domain;
pub mod error;
pub mod proto;
pub mod store;
