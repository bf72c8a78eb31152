//! Events and deliveries from the outside: what publishers, owners of
//! subscriptions and receivers see, on both engines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
mod support;

#[path = "engine/attempts.rs"]
mod attempts;
#[path = "engine/body.rs"]
mod body;
#[path = "engine/breaker.rs"]
mod breaker;
#[path = "engine/challenge.rs"]
mod challenge;
#[path = "engine/client_certificates.rs"]
mod client_certificates;
#[path = "engine/connect.rs"]
mod connect;
#[path = "engine/endpoints.rs"]
mod endpoints;
#[path = "engine/faults.rs"]
mod faults;
#[path = "engine/filters.rs"]
mod filters;
#[path = "engine/held.rs"]
mod held;
#[path = "engine/idempotency.rs"]
mod idempotency;
#[path = "engine/isolation.rs"]
mod isolation;
#[path = "engine/launch.rs"]
mod launch;
#[path = "engine/libraries.rs"]
mod libraries;
#[path = "engine/operational.rs"]
mod operational;
#[path = "engine/ordering.rs"]
mod ordering;
#[path = "engine/pace.rs"]
mod pace;
#[path = "engine/partitions.rs"]
mod partitions;
#[path = "engine/publish.rs"]
mod publish;
#[path = "engine/redrives.rs"]
mod redrives;
#[path = "engine/replay.rs"]
mod replay;
#[path = "engine/scene.rs"]
mod scene;
#[path = "engine/schedule.rs"]
mod schedule;
#[path = "engine/sessions.rs"]
mod sessions;
#[path = "engine/signatures.rs"]
mod signatures;
#[path = "engine/subscriptions.rs"]
mod subscriptions;
#[path = "engine/tasks.rs"]
mod tasks;
#[path = "engine/traces.rs"]
mod traces;
