//! Slows addresses that guess.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Failures an address has free in a window.
const FREE: u32 = 20;
/// The window.
const WINDOW: Duration = Duration::from_secs(60);
/// The most addresses that are remembered.
const ADDRESSES: usize = 100_000;
/// The longest that an answer is held back.
const SLOWEST: Duration = Duration::from_secs(2);

/// Slows addresses that guess.
#[derive(Default)]
pub(super) struct Guard {
    failures: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

impl Guard {
    /// Counts a failure; how long its answer is to wait.
    pub(super) fn failed(&self, peer: IpAddr) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if failures.len() >= ADDRESSES {
            failures.retain(|_, (_, since)| now - *since < WINDOW);
        }
        if failures.len() >= ADDRESSES && !failures.contains_key(&peer) {
            return SLOWEST;
        }
        let (count, since) = failures.entry(peer).or_insert((0, now));
        if now - *since >= WINDOW {
            (*count, *since) = (0, now);
        }
        *count += 1;
        let over = count.saturating_sub(FREE);
        (Duration::from_millis(10) * over).min(SLOWEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Z6: the first mistakes are free, then each takes longer; others are not held up.
    #[test]
    fn guessing_is_slowed() {
        let guard = Guard::default();
        let guesser: IpAddr = "203.0.113.1".parse().unwrap();
        for _ in 0..FREE {
            assert_eq!(guard.failed(guesser), Duration::ZERO);
        }
        assert_eq!(guard.failed(guesser), Duration::from_millis(10));
        assert_eq!(guard.failed(guesser), Duration::from_millis(20));
        assert_eq!(guard.failed("203.0.113.2".parse().unwrap()), Duration::ZERO);
        for _ in 0..1000 {
            guard.failed(guesser);
        }
        assert_eq!(guard.failed(guesser), SLOWEST);
    }
}
