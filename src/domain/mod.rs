//! Decisions as pure functions: no I/O and no clock.

pub mod address;
pub mod signature;
