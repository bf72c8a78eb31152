//! Decisions, as pure functions: no I/O, no clock of their own.

pub mod address;
pub mod cloudevent;
pub mod delivery;
pub mod event;
pub mod id;
pub mod key;
pub mod limit;
pub mod signature;
pub mod subscription;
pub mod tenant;
