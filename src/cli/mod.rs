//! The `onering` command.

pub mod sink;
pub mod verify;
