//! The `onering` command.

pub mod bench;
pub mod sink;
pub mod verify;
