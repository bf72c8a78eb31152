//! The `onering` command.
pub mod bench;
