//! Decisions, as pure functions: no I/O, no clock of their own.

pub mod address;
pub mod audit;
pub mod certificate;
pub mod cloudevent;
pub mod counter;
pub mod delivery;
pub mod event;
pub mod event_type;
pub mod id;
pub mod jsonlogic;
pub mod key;
pub mod limit;
pub mod network;
pub mod partition;
pub mod redrive;
pub mod signature;
pub mod subscription;
pub mod switch;
pub mod tenant;
pub mod timeline;
pub mod trace;
