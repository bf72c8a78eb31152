//! Events and deliveries from the outside: what publishers, owners of
//! subscriptions and receivers see, on both engines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

/// Makes of each of these functions a test on PostgreSQL and one on SQLite.
macro_rules! contract {
    ($($name:ident),+ $(,)?) => {
        mod postgres {
            $(#[test] fn $name() { crate::on_postgres(super::$name); })+
        }
        mod sqlite { $(#[test] fn $name() { crate::on_sqlite(super::$name); })+ }
    };
}

/// Makes of each of these functions a test on PostgreSQL: of what SQLite does not
/// have, such as two nodes.
macro_rules! on_postgres_alone {
    ($($name:ident),+ $(,)?) => {
        mod postgres_alone {
            $(#[test] fn $name() { crate::on_postgres(super::$name); })+
        }
    };
}

fn on_postgres<F: Future<Output = ()>>(test: impl FnOnce(support::store::Db) -> F) {
    support::store::run(support::store::Engine::Postgres, test);
}

fn on_sqlite<F: Future<Output = ()>>(test: impl FnOnce(support::store::Db) -> F) {
    support::store::run(support::store::Engine::Sqlite, test);
}

#[path = "engine/attempts.rs"]
mod attempts;
#[path = "engine/body.rs"]
mod body;
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
#[path = "engine/publish.rs"]
mod publish;
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
#[path = "engine/traces.rs"]
mod traces;
