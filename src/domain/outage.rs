//! When a subscription's breaker was open: time that does not count into its
//! deliveries' ages. Times are microseconds on a clock that stands still while
//! delivery is switched off, so that no time is left out twice.

use super::id::Micros;

/// How many past outages are kept; the ages of what has waited since before the
/// first of them count what came earlier.
const KEPT: usize = 16;

/// Outages, the last one perhaps not over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outages {
    over: Vec<(Micros, Micros)>,
    since: Option<Micros>,
}

impl Outages {
    /// Outages that are over, oldest first, and since when there is one now.
    #[must_use]
    pub fn new(mut over: Vec<(Micros, Micros)>, since: Option<Micros>) -> Self {
        over.drain(..over.len().saturating_sub(KEPT));
        Self { over, since }
    }

    /// Outages that are over, oldest first.
    #[must_use]
    pub fn over(&self) -> &[(Micros, Micros)] {
        &self.over
    }

    /// Since when there is one now.
    #[must_use]
    pub const fn since(&self) -> Option<Micros> {
        self.since
    }

    /// Whether there was none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.over.is_empty() && self.since.is_none()
    }

    /// One begins, unless there is one.
    pub fn begin(&mut self, now: Micros) {
        self.since.get_or_insert(now);
    }

    /// It is over; how long it was.
    pub fn end(&mut self, now: Micros) -> Micros {
        let Some(since) = self.since.take() else {
            return 0;
        };
        if self.over.len() >= KEPT {
            self.over.remove(0);
        }
        self.over.push((since, now.max(since)));
        now.max(since) - since
    }

    /// How much of that time was an outage.
    #[must_use]
    pub fn within(&self, from: Micros, to: Micros) -> Micros {
        let current = self.since.map(|since| (since, to));
        let all = self.over.iter().copied().chain(current);
        all.map(|(a, b)| (b.min(to) - a.max(from)).max(0)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A6: what an open breaker held back is counted once, and only for as long as it
    // waited.
    #[test]
    fn time_within_outages() {
        let mut o = Outages::default();
        assert!(o.is_empty());
        o.begin(10);
        o.begin(15);
        assert_eq!(
            (o.within(0, 20), o.within(12, 20), o.within(0, 5)),
            (10, 8, 0)
        );
        assert_eq!(o.end(20), 10);
        assert_eq!(o.end(30), 0);
        o.begin(40);
        assert_eq!(
            (o.within(0, 50), o.within(15, 45), o.within(20, 40)),
            (20, 10, 0)
        );
        for n in 0..100 {
            o.end(50 + n * 10);
            o.begin(55 + n * 10);
        }
        assert_eq!(o.over().len(), KEPT);
    }
}
