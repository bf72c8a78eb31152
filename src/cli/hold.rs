//! Until when a worker may begin what it has. The server gives a delivery to
//! another when its deadline is over, or a while after it has heard nothing of
//! the worker; of that the worker may learn late, such as after its process stood
//! still. So what it has is to be begun only while it is sure.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::pipeline::sender::Fence;

/// How long after the server's last word the stream is taken to stand: a ping
/// comes every 5 seconds, and without a pong the server waits for 10.
const QUIET: Duration = Duration::from_secs(7);
/// How long the answer to `open` may take. What is resumed is the worker's for
/// longer.
const OPENING: Duration = Duration::from_secs(10);

/// A worker's stream, as far as it is heard of.
pub(super) struct Line(Mutex<Heard>);

struct Heard {
    at: Instant,
    /// For how long that stands for the stream.
    good_for: Duration,
}

/// A worker's right to begin one delivery.
pub(super) struct Hold {
    line: Arc<Line>,
    /// None: it has none, unless another stream resumes it.
    until: Mutex<Option<Instant>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    /// One whose stream is about to be opened.
    pub(super) fn opening() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Heard {
            at: Instant::now(),
            good_for: OPENING,
        })))
    }

    /// The stream is opened (again) at that time.
    pub(super) fn opens(&self, now: Instant) {
        *lock(&self.0) = Heard {
            at: now,
            good_for: OPENING,
        };
    }

    /// A message has come: the time after which it was said, which is when the one
    /// before it came. None after too long a silence: what comes then may have been
    /// on its way for as long.
    pub(super) fn hears(&self, now: Instant) -> Option<Instant> {
        let mut heard = lock(&self.0);
        let since = heard.at;
        if !heard.stands_at(now) {
            return None;
        }
        *heard = Heard {
            at: now,
            good_for: QUIET,
        };
        Some(since)
    }
}

impl Heard {
    fn stands_at(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) <= self.good_for
    }
}

impl Hold {
    /// The right to begin until then, while the stream stands.
    pub(super) fn new(line: Arc<Line>, until: Instant) -> Arc<Self> {
        Arc::new(Self {
            line,
            until: Mutex::new(Some(until)),
        })
    }

    /// The delivery is not the worker's, or not surely.
    pub(super) fn end(&self) {
        *lock(&self.until) = None;
    }

    /// It is the worker's until then.
    pub(super) fn resume(&self, until: Instant) {
        *lock(&self.until) = Some(until);
    }

    /// It is the worker's for so long at the most.
    pub(super) fn shorten(&self, until: Instant) {
        let mut own = lock(&self.until);
        *own = own.map(|own| own.min(until));
    }

    fn stands_at(&self, now: Instant) -> bool {
        lock(&self.until).is_some_and(|until| now < until) && lock(&self.line.0).stands_at(now)
    }
}

impl Fence for Hold {
    fn stands(&self) -> bool {
        self.stands_at(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn line(now: Instant) -> Arc<Line> {
        let line = Line::opening();
        line.opens(now);
        line
    }

    // W1: nothing is begun past its deadline, or once it was taken back.
    #[test]
    fn a_hold_ends() {
        let now = Instant::now();
        let hold = Hold::new(line(now), now + seconds(2));
        assert!(hold.stands_at(now + seconds(1)));
        assert!(!hold.stands_at(now + seconds(2)));
        hold.shorten(now + seconds(3));
        assert!(!hold.stands_at(now + seconds(2)));
        hold.shorten(now + seconds(1));
        assert!(!hold.stands_at(now + seconds(1)));
        hold.end();
        assert!(!hold.stands_at(now));
        hold.shorten(now + seconds(9));
        assert!(!hold.stands_at(now));
        hold.resume(now + seconds(9));
        assert!(hold.stands_at(now + seconds(8)));
    }

    // W4: nothing is begun while the server is silent for longer than it ever is.
    #[test]
    fn a_silent_server_may_have_given_it_to_another() {
        let now = Instant::now();
        let line = line(now);
        let hold = Hold::new(line.clone(), now + seconds(600));
        assert!(line.hears(now + seconds(1)).is_some());
        assert!(hold.stands_at(now + seconds(8)));
        assert!(!hold.stands_at(now + seconds(9)));
        line.hears(now + seconds(6));
        assert!(hold.stands_at(now + seconds(13)));
    }

    // W4: what a process finds that stood still is as old as that took.
    #[test]
    fn what_comes_after_a_silence_is_not_believed() {
        let now = Instant::now();
        let line = line(now);
        let at = |n| now + seconds(n);
        assert_eq!(line.hears(at(9)), Some(now), "the answer to `open`");
        assert_eq!(line.hears(at(15)), Some(at(9)));
        assert_eq!(line.hears(at(60)), None);
        assert_eq!(line.hears(at(60)), None);
        line.opens(at(60));
        assert_eq!(line.hears(at(61)), Some(at(60)));
    }
}
