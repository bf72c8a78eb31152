//! The store's contract: each test runs on both engines, through the traits
//! alone, on a database of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
mod support;

#[path = "store/backlog.rs"]
mod backlog;
#[path = "store/breakers.rs"]
mod breakers;
#[path = "store/by_hand.rs"]
mod by_hand;
#[path = "store/claim.rs"]
mod claim;
#[path = "store/configuration.rs"]
mod configuration;
#[path = "store/connections.rs"]
mod connections;
#[path = "store/counters.rs"]
mod counters;
#[path = "store/event_types.rs"]
mod event_types;
#[path = "store/finish.rs"]
mod finish;
#[path = "store/forget.rs"]
mod forget;
#[path = "store/history.rs"]
mod history;
#[path = "store/idempotency.rs"]
mod idempotency;
#[path = "store/keys.rs"]
mod keys;
#[path = "store/limits.rs"]
mod limits;
#[path = "store/model.rs"]
mod model;
#[path = "store/ordering.rs"]
mod ordering;
#[path = "store/partitions.rs"]
mod partitions;
#[path = "store/publish.rs"]
mod publish;
#[path = "store/redrives.rs"]
mod redrives;
#[path = "store/replays.rs"]
mod replays;
#[path = "store/schema.rs"]
mod schema;
#[path = "store/sessions.rs"]
mod sessions;
#[path = "store/sweeps.rs"]
mod sweeps;
#[path = "store/switches.rs"]
mod switches;
#[path = "store/timeline.rs"]
mod timeline;
