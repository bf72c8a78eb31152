//! Tests that hold on both engines, each on a database of its own.
#![allow(unused_macros, reason = "a test binary may use none of them")]

use super::store::{Db, Engine, run};

/// Makes of each of these functions a test on PostgreSQL and one on SQLite.
macro_rules! contract {
    ($($name:ident),+ $(,)?) => {
        mod postgres {
            $(#[test] fn $name() { crate::support::contract::on_postgres(super::$name); })+
        }
        mod sqlite { $(#[test] fn $name() { crate::support::contract::on_sqlite(super::$name); })+ }
    };
}

/// Makes of each of these functions a test on PostgreSQL: of what SQLite does not
/// have, such as two nodes.
macro_rules! on_postgres_alone {
    ($($name:ident),+ $(,)?) => {
        mod postgres_alone {
            $(#[test] fn $name() { crate::support::contract::on_postgres(super::$name); })+
        }
    };
}

pub fn on_postgres<F: Future<Output = ()>>(test: impl FnOnce(Db) -> F) {
    run(Engine::Postgres, test);
}

/// Runs what brings its own servers.
pub fn run_alone(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(test);
}

pub fn on_sqlite<F: Future<Output = ()>>(test: impl FnOnce(Db) -> F) {
    run(Engine::Sqlite, test);
}
