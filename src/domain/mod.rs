//! Decisions, as pure functions: no I/O, no clock of their own.

pub mod address;
pub mod cloudevent;
pub mod counter;
pub mod delivery;
pub mod event;
pub mod id;
pub mod key;
pub mod signature;
pub mod subscription;
pub mod tenant;
