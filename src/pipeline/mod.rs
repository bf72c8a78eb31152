//! From an accepted event to a delivered one, in the order in which data flows:
//!
//! [`publish`] commits events with their deliveries and hands what it leased to
//! [`dispatch`], which decides whose turn it is; [`worker`] takes jobs from it
//! and sends them with [`sender`]; [`finish`] records how that went. [`node`]
//! keeps this node's session and partitions, [`claim`] fetches from the store
//! what is due and not in memory, [`upkeep`] sweeps.

pub mod claim;
pub mod dispatch;
pub mod finish;
mod lanes;
pub mod node;
pub mod publish;
pub mod sender;
pub mod upkeep;
pub mod worker;
