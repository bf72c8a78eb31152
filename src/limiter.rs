//! Rate limits: in no trailing hour are more calls of a key admitted than its
//! limit. Minutes are counted: the current one and the 60 before it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::domain::id::{KeyId, Micros, wall_clock};

/// Minutes that count: the current one, and as many before it as an hour has.
const MINUTES: i64 = 61;
const MINUTE: Micros = 60_000_000;

/// A limit to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Whose calls are counted.
    pub key: KeyId,
    /// Calls in any trailing hour.
    pub limit: i64,
    /// Whether calls pass while it can't be decided at all.
    pub fail_open: bool,
}

/// What the limit said of a call, and how it stands after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Whether the call is admitted; a refused one consumed nothing.
    pub allowed: bool,
    /// Calls in any trailing hour.
    pub limit: i64,
    /// Calls left.
    pub remaining: i64,
    /// When the oldest counted minute leaves the window, in Unix seconds.
    pub reset: i64,
    /// How long until a call of this cost can be admitted; zero where it is now.
    pub retry_after: Duration,
    /// Whether it was decided without Redis, which is configured.
    pub degraded: bool,
}

/// Counts calls.
#[derive(Default)]
pub struct Limiter {
    keys: Mutex<HashMap<KeyId, VecDeque<(i64, i64)>>>,
}

impl Limiter {
    /// Decides on a call that counts as `cost`; 0 looks and consumes nothing.
    pub async fn take(&self, policy: Policy, cost: i64) -> State {
        self.take_at(policy, cost, wall_clock())
    }

    fn take_at(&self, policy: Policy, cost: i64, now: Micros) -> State {
        let minute = now.div_euclid(MINUTE);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = keys.entry(policy.key).or_default();
        while counted.front().is_some_and(|(m, _)| *m <= minute - MINUTES) {
            counted.pop_front();
        }
        let used: i64 = counted.iter().map(|(_, n)| n).sum();
        let allowed = used + cost <= policy.limit;
        if allowed && cost > 0 {
            match counted.back_mut() {
                Some((m, n)) if *m == minute => *n += cost,
                _ => counted.push_back((minute, cost)),
            }
        }
        let used = if allowed { used + cost } else { used };
        let leaves = |m: i64| (m + MINUTES) * MINUTE;
        let mut freed = policy.limit - used;
        let enough = counted.iter().find_map(|(m, n)| {
            freed += n;
            (freed >= cost.max(1)).then(|| leaves(*m))
        });
        let wait = if policy.limit - used >= cost.max(1) {
            0
        } else {
            enough.unwrap_or_else(|| leaves(minute)) - now
        };
        State {
            allowed,
            limit: policy.limit,
            remaining: (policy.limit - used).max(0),
            reset: counted.front().map_or(now, |(m, _)| leaves(*m)) / 1_000_000,
            retry_after: Duration::from_micros(wait.max(0) as u64),
            degraded: false,
        }
    }

    /// Whether limits are decided without Redis, which is configured.
    pub fn is_degraded(&self) -> bool {
        false
    }
}
