//! Rate limits and counted calls, through what callers of them see: on both
//! stores, with Redis and without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
mod support;

#[path = "limits/callers.rs"]
mod callers;
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
