//! The outside contract: REST, gRPC and the `onering` command, on both engines,
//! through nothing else than what users have.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
mod support;

#[path = "api/access.rs"]
mod access;
#[path = "api/audit.rs"]
mod audit;
#[path = "api/bad_input.rs"]
mod bad_input;
#[path = "api/client_certificates.rs"]
mod client_certificates;
#[path = "api/cloudevents.rs"]
mod cloudevents;
#[path = "api/commands.rs"]
mod commands;
#[path = "api/dead_letters.rs"]
mod dead_letters;
#[path = "api/docs.rs"]
mod docs;
#[path = "api/event_types.rs"]
mod event_types;
#[path = "api/keys.rs"]
mod keys;
#[path = "api/launch.rs"]
mod launch;
#[path = "api/limits.rs"]
mod limits;
#[path = "api/logs.rs"]
mod logs;
#[path = "api/monitoring.rs"]
mod monitoring;
#[path = "api/nodes.rs"]
mod nodes;
#[path = "api/refusals.rs"]
mod refusals;
#[path = "api/settings.rs"]
mod settings;
#[path = "api/silence.rs"]
mod silence;
#[path = "api/switches.rs"]
mod switches;
#[path = "api/tenants.rs"]
mod tenants;
#[path = "api/verify.rs"]
mod verify;
#[path = "api/wire.rs"]
mod wire;
