//! Rate limits and counted calls, through what callers of them see: on both
//! stores, with Redis and without.
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

#[path = "limits/chance.rs"]
mod chance;
#[path = "limits/redis.rs"]
mod redis;
#[path = "limits/scene.rs"]
mod scene;
#[path = "limits/store.rs"]
mod store;
#[path = "limits/usage.rs"]
mod usage;
