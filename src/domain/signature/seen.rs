//! Recognising repetitions.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use super::Verified;

/// How long an event's id is remembered, in seconds.
pub const REMEMBER_S: i64 = 15 * 60;

/// A store of the event ids whose handler has succeeded. A receiver that runs
/// in several processes brings one that they share.
pub trait Seen {
    /// Whether `event_id` was remembered within [`REMEMBER_S`] before `now_s`.
    fn contains(&self, event_id: &str, now_s: i64) -> bool;
    /// Remembers `event_id`.
    fn remember(&self, event_id: &str, now_s: i64);
}

/// What became of a verified delivery. Both are answered with a 2xx status: a
/// duplicate that is refused would be sent again until it is a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted<T> {
    /// The handler ran and succeeded.
    Handled(T),
    /// It succeeded before; it did not run again.
    Duplicate,
}

/// Runs `handler` unless it already succeeded for this event.
///
/// Two copies that arrive at the same moment may both run it: deliveries are at
/// least once, and only the handler's own transaction can make that exact.
///
/// # Errors
/// With the handler's error; the event is then not remembered, so that the
/// sender's retry runs the handler again.
pub fn accept<T, E>(
    seen: &impl Seen,
    verified: &Verified,
    now_s: i64,
    handler: impl FnOnce(&Verified) -> Result<T, E>,
) -> Result<Accepted<T>, E> {
    if seen.contains(&verified.event_id, now_s) {
        return Ok(Accepted::Duplicate);
    }
    let done = handler(verified)?;
    seen.remember(&verified.event_id, now_s);
    Ok(Accepted::Handled(done))
}

/// A store in memory that holds a limited number of ids; past that the oldest
/// is forgotten before its time.
#[derive(Debug)]
pub struct MemorySeen {
    capacity: usize,
    ids: Mutex<Ids>,
}

#[derive(Debug, Default)]
struct Ids {
    at: HashMap<Box<str>, i64>,
    order: VecDeque<(i64, Box<str>)>,
}

impl MemorySeen {
    /// A store of at most `capacity` ids, each about 100 bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            ids: Mutex::default(),
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        *self.lock() = Ids::default();
    }

    // Each change leaves the maps usable, also when a holder of the lock died.
    fn lock(&self) -> std::sync::MutexGuard<'_, Ids> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemorySeen {
    /// Room for 100,000 ids.
    fn default() -> Self {
        Self::new(100_000)
    }
}

impl Seen for MemorySeen {
    fn contains(&self, event_id: &str, now_s: i64) -> bool {
        let ids = self.lock();
        ids.at
            .get(event_id)
            .is_some_and(|at| now_s.saturating_sub(*at) <= REMEMBER_S)
    }

    fn remember(&self, event_id: &str, now_s: i64) {
        let mut ids = self.lock();
        while let Some((at, _)) = ids.order.front() {
            if now_s.saturating_sub(*at) <= REMEMBER_S && ids.order.len() < self.capacity {
                break;
            }
            if let Some((at, id)) = ids.order.pop_front() {
                // An id that was remembered again has a later entry in the queue.
                if ids.at.get(&id) == Some(&at) {
                    ids.at.remove(&id);
                }
            }
        }
        if ids.at.insert(event_id.into(), now_s) != Some(now_s) {
            ids.order.push_back((now_s, event_id.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(id: &str) -> Verified {
        Verified {
            event_id: id.into(),
            timestamp: 0,
        }
    }

    // S6
    #[test]
    fn remembers_only_what_succeeded() {
        let seen = MemorySeen::default();
        let event = verified("evt_1");
        assert_eq!(accept(&seen, &event, 0, |_| Err::<(), _>("no")), Err("no"));
        assert_eq!(
            accept(&seen, &event, 1, |_| Ok::<_, ()>(7)),
            Ok(Accepted::Handled(7))
        );
        assert_eq!(
            accept(&seen, &event, 2, |_| Ok::<_, ()>(8)),
            Ok(Accepted::Duplicate)
        );
        assert_eq!(
            accept(&seen, &event, 2 + REMEMBER_S, |_| Ok::<_, ()>(9)),
            Ok(Accepted::Handled(9))
        );
    }

    // S6
    #[test]
    fn remembers_for_15_minutes() {
        let seen = MemorySeen::default();
        seen.remember("a", 100);
        assert!(seen.contains("a", 100 + 900));
        assert!(!seen.contains("a", 100 + 901));
    }

    #[test]
    fn holds_no_more_than_its_capacity() {
        let seen = MemorySeen::new(10);
        for i in 0..1000 {
            seen.remember(&format!("evt_{i}"), i);
            seen.remember("again", i);
            let ids = seen.lock();
            assert!(ids.at.len() <= 10 && ids.order.len() <= 10);
        }
        assert!(seen.contains("again", 1000) && seen.contains("evt_999", 1000));
        assert!(!seen.contains("evt_5", 1000));
    }
}
