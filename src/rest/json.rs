//! JSON text to messages and back: proto3 JSON, as the contract bends it.
//!
//! - Names are the proto's own, in `snake_case`; no other spelling is taken.
//! - 64-bit integers are written as numbers, and read as numbers or strings.
//! - Enum values are written without their type's prefix and read with or
//!   without it; never as numbers.
//! - A `bytes` field with `raw_json` is its JSON text itself, byte for byte,
//!   `null` too.
//! - `null` elsewhere means that the field is not set.
//! - Read: unknown and repeated names, wrong types and two members of a oneof
//!   are errors; up to 20 are named at once.
//! - Written: whatever is set, and every scalar, list and map without presence
//!   even if it is empty (so that `jq .pending` says `0`). Left out: optional
//!   fields and messages that are not set, and enums that are `UNSPECIFIED`.

mod faults;
mod read;
mod scalar;
mod text;
mod well_known;
mod write;

pub use faults::{Faults, Path};
pub use read::{Reader, read};
pub use text::{Json, MAX_DEPTH, Text, check, depth, take};
pub use well_known::write_timestamp;
pub use write::{write, write_field, write_text};
