//! Slows addresses that guess keys, and bounds how many of one address's guesses
//! are held back at a time.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Failures an address has free in a window.
const FREE: u32 = 20;
/// The window.
const WINDOW: Duration = Duration::from_secs(60);
/// The most addresses that are remembered; the others count as one.
const ADDRESSES: usize = 100_000;
/// The longest that an answer is held back.
const SLOWEST: Duration = Duration::from_secs(2);
/// The most answers to one address that are held back at a time: each is a call
/// that takes memory while it waits.
const WAITING: u32 = 16;

/// The guesses of every address.
#[derive(Default)]
pub(super) struct Guard(Arc<Mutex<Guesses>>);

#[derive(Default)]
struct Guesses {
    by_source: HashMap<Source, Count>,
    /// Of addresses that come while as many as can be are remembered.
    others: Option<Count>,
}

struct Count {
    failures: u32,
    since: Instant,
    waiting: u32,
}

impl Count {
    fn new(now: Instant) -> Self {
        Self {
            failures: 0,
            since: now,
            waiting: 0,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.waiting == 0 && now.saturating_duration_since(self.since) >= WINDOW
    }
}

/// Whose guesses are counted together: an address, or a network of version 6 that
/// one host has for itself (RFC 6177).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Source(IpAddr);

impl Source {
    fn of(peer: IpAddr) -> Self {
        Self(match peer.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// What becomes of an answer to a guess.
pub(super) enum Verdict {
    /// It is given at once.
    Answer,
    /// It is held back for so long, with this kept until then.
    Wait(Duration, Waiting),
    /// As many of its address wait already: to be refused at once.
    Refuse,
}

/// An answer that is held back.
pub(super) struct Waiting {
    guesses: Arc<Mutex<Guesses>>,
    /// None: one of those that are too many to be remembered.
    source: Option<Source>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut guesses = lock(&self.guesses);
        let count = match self.source {
            Some(source) => guesses.by_source.get_mut(&source),
            None => guesses.others.as_mut(),
        };
        if let Some(count) = count {
            count.waiting = count.waiting.saturating_sub(1);
        }
    }
}

fn lock(guesses: &Mutex<Guesses>) -> MutexGuard<'_, Guesses> {
    guesses.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guard {
    /// Counts a failure, and decides on its answer.
    pub(super) fn failed(&self, peer: IpAddr) -> Verdict {
        let now = Instant::now();
        let mut guesses = lock(&self.0);
        if guesses.by_source.len() >= ADDRESSES {
            guesses.by_source.retain(|_, count| !count.is_over(now));
        }
        let source = Source::of(peer);
        let known = guesses.by_source.contains_key(&source);
        let (count, source) = if known || guesses.by_source.len() < ADDRESSES {
            let count = guesses.by_source.entry(source);
            (count.or_insert_with(|| Count::new(now)), Some(source))
        } else {
            (guesses.others.get_or_insert_with(|| Count::new(now)), None)
        };
        if now.saturating_duration_since(count.since) >= WINDOW {
            (count.failures, count.since) = (0, now);
        }
        count.failures = count.failures.saturating_add(1);
        let wait = match source {
            Some(_) => Duration::from_millis(10) * count.failures.saturating_sub(FREE),
            None => SLOWEST,
        };
        if wait.is_zero() {
            return Verdict::Answer;
        }
        if count.waiting >= WAITING {
            return Verdict::Refuse;
        }
        count.waiting += 1;
        let waiting = Waiting {
            guesses: self.0.clone(),
            source,
        };
        Verdict::Wait(wait.min(SLOWEST), waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// How long a guess waits, as if it had waited by now; none where it is refused.
    fn wait(guard: &Guard, peer: &str) -> Option<Duration> {
        match guard.failed(address(peer)) {
            Verdict::Answer => Some(Duration::ZERO),
            Verdict::Wait(wait, _) => Some(wait),
            Verdict::Refuse => None,
        }
    }

    // Z6: the first mistakes are free, then each takes longer; others are not held up.
    #[test]
    fn guessing_is_slowed() {
        let guard = Guard::default();
        let guesser = "203.0.113.1";
        for _ in 0..FREE {
            assert_eq!(wait(&guard, guesser), Some(Duration::ZERO));
        }
        assert_eq!(wait(&guard, guesser), Some(Duration::from_millis(10)));
        assert_eq!(wait(&guard, guesser), Some(Duration::from_millis(20)));
        assert_eq!(wait(&guard, "203.0.113.2"), Some(Duration::ZERO));
        for _ in 0..1000 {
            wait(&guard, guesser);
        }
        assert_eq!(wait(&guard, guesser), Some(SLOWEST));
        assert_eq!(wait(&guard, "::ffff:203.0.113.1"), Some(SLOWEST));
    }

    // Z6: who has a network of version 6 has 2^64 addresses.
    #[test]
    fn a_network_of_version_6_guesses_as_one() {
        let guard = Guard::default();
        for n in 0..FREE {
            assert_eq!(
                wait(&guard, &format!("2001:db8:1:2::{n:x}")),
                Some(Duration::ZERO)
            );
        }
        let slowed = wait(&guard, "2001:db8:1:2:ffff::1").unwrap();
        assert!(slowed > Duration::ZERO);
        assert_eq!(wait(&guard, "2001:db8:1:3::1"), Some(Duration::ZERO));
    }

    // Z6: guesses beside each other don't add up.
    #[test]
    fn few_answers_are_held_back_at_a_time() {
        let guard = Guard::default();
        let guesser = address("203.0.113.1");
        for _ in 0..FREE {
            assert!(matches!(guard.failed(guesser), Verdict::Answer));
        }
        let held: Vec<_> = (0..WAITING)
            .map(|_| guard.failed(guesser))
            .inspect(|verdict| assert!(matches!(verdict, Verdict::Wait(..))))
            .collect();
        for _ in 0..100 {
            assert!(matches!(guard.failed(guesser), Verdict::Refuse));
        }
        assert!(wait(&guard, "203.0.113.2").is_some());
        drop(held);
        // Those that were refused count as well.
        assert_eq!(
            wait(&guard, "203.0.113.1"),
            Some(Duration::from_millis(1170))
        );
    }

    // Z6: from more addresses than are remembered guessing is slow for all of them.
    #[test]
    fn too_many_addresses_are_as_one() {
        let guard = Guard::default();
        for n in 0..ADDRESSES {
            let peer = IpAddr::V4(u32::try_from(n).unwrap().into());
            guard.failed(peer);
        }
        let held: Vec<_> = (0..WAITING)
            .map(|n| guard.failed(IpAddr::V4((0xCB00_7100 + n).into())))
            .inspect(|v| assert!(matches!(v, Verdict::Wait(wait, _) if *wait == SLOWEST)))
            .collect();
        assert_eq!(wait(&guard, "203.0.113.77"), None);
        assert_eq!(wait(&guard, "0.0.0.1"), Some(Duration::ZERO));
        drop(held);
        assert_eq!(wait(&guard, "203.0.113.77"), Some(SLOWEST));
    }
}
