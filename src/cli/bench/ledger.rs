//! Which events were sent, how each was answered, and where it arrived.
//!
//! One slot an event, indexed by its sequence number: an arrival costs one
//! atomic operation and no lock, so that counting doesn't slow what is counted.

use std::sync::{
    OnceLock,
    atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
};

use serde::Serialize;

const SEGMENT: usize = 1 << 16;
const SEGMENTS: usize = 1 << 12;
/// The arrivals of an event at its endpoints are the bits of one word.
pub(super) const MAX_FAN_OUT: u64 = 64;

/// How a publish ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered with the status hoped for: from here on it must arrive.
    Accepted = 2,
    /// Answered with another status: it must not arrive.
    Refused = 3,
    /// Not answered: it may arrive or not.
    Unanswered = 4,
}

const SENT: u8 = 1;

#[derive(Debug, Default)]
struct Slot {
    /// When it was sent, or was meant to be, in nanoseconds of the hub's clock.
    origin: AtomicU64,
    /// One bit for each endpoint that it arrived at.
    seen: AtomicU64,
    outcome: AtomicU8,
}

/// What an arrival turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The first at this endpoint.
    First {
        /// When the event was sent, in nanoseconds of the hub's clock.
        origin: u64,
    },
    /// It was there before.
    Duplicate,
    /// No such event was sent, or not to this endpoint.
    Stray,
}

/// The totals of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Count {
    /// Events sent.
    pub sent: u64,
    /// Events accepted.
    pub accepted: u64,
    /// Events refused with an answer.
    pub refused: u64,
    /// Events whose answer never came.
    pub unanswered: u64,
    /// Deliveries that accepted events owe.
    pub expected: u64,
    /// Deliveries of accepted events that came, each counted once.
    pub delivered: u64,
    /// Deliveries of accepted events that didn't come.
    pub lost: u64,
    /// Deliveries that came again.
    pub duplicates: u64,
    /// Deliveries of events that were refused.
    pub refused_but_delivered: u64,
    /// Deliveries of events that nobody sent or to the wrong endpoint.
    pub strays: u64,
}

/// The events of one run.
#[derive(Debug)]
pub(super) struct Ledger {
    types: u64,
    fan_out: u64,
    next: AtomicU64,
    duplicates: AtomicU64,
    strays: AtomicU64,
    segments: Box<[OnceLock<Box<[Slot]>>]>,
}

impl Ledger {
    /// Event `seq` goes to the `fan_out` endpoints of type `seq % types`.
    #[must_use]
    pub(super) fn new(types: u64, fan_out: u64) -> Self {
        Self {
            types: types.max(1),
            fan_out: fan_out.clamp(1, MAX_FAN_OUT),
            next: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            strays: AtomicU64::new(0),
            segments: (0..SEGMENTS).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The next sequence number. Nothing is owed for it before [`Self::sent`].
    pub(super) fn take(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// Notes an event that is about to be sent; false where the ledger is full
    /// (after 268 million events).
    pub(super) fn sent(&self, seq: u64, origin: u64) -> bool {
        let Some((segment, at)) = place(seq) else {
            return false;
        };
        let Some(cell) = self.segments.get(segment) else {
            return false;
        };
        let slots = cell.get_or_init(|| (0..SEGMENT).map(|_| Slot::default()).collect());
        let Some(slot) = slots.get(at) else {
            return false;
        };
        slot.origin.store(origin, Relaxed);
        slot.outcome.store(SENT, Relaxed);
        true
    }

    /// Notes how it was answered.
    pub(super) fn answered(&self, seq: u64, outcome: Outcome) {
        if let Some(slot) = self.slot(seq) {
            slot.outcome.store(outcome as u8, Relaxed);
        }
    }

    /// Notes that an event came to an endpoint.
    pub(super) fn arrived(&self, seq: u64, endpoint: u64) -> Arrival {
        let slot = self.slot(seq).filter(|s| {
            s.outcome.load(Relaxed) != 0 && endpoint / self.fan_out == seq % self.types
        });
        let Some(slot) = slot else {
            self.strays.fetch_add(1, Relaxed);
            return Arrival::Stray;
        };
        let bit = 1_u64 << (endpoint % self.fan_out);
        if slot.seen.fetch_or(bit, Relaxed) & bit == 0 {
            Arrival::First {
                origin: slot.origin.load(Relaxed),
            }
        } else {
            self.duplicates.fetch_add(1, Relaxed);
            Arrival::Duplicate
        }
    }

    /// Adds everything up. Reads every slot: a few milliseconds for a million.
    #[must_use]
    pub(super) fn count(&self) -> Count {
        let mut count = Count {
            duplicates: self.duplicates.load(Relaxed),
            strays: self.strays.load(Relaxed),
            ..Count::default()
        };
        for slot in self.segments.iter().filter_map(OnceLock::get).flatten() {
            let outcome = slot.outcome.load(Relaxed);
            if outcome == 0 {
                continue;
            }
            let seen = u64::from(slot.seen.load(Relaxed).count_ones());
            count.sent += 1;
            if outcome == Outcome::Accepted as u8 {
                count.accepted += 1;
                count.delivered += seen;
            } else if outcome == Outcome::Refused as u8 {
                count.refused += 1;
                count.refused_but_delivered += seen;
            } else {
                count.unanswered += 1;
            }
        }
        count.expected = count.accepted * self.fan_out;
        count.lost = count.expected.saturating_sub(count.delivered);
        count
    }

    fn slot(&self, seq: u64) -> Option<&Slot> {
        let (segment, at) = place(seq)?;
        self.segments.get(segment)?.get()?.get(at)
    }
}

fn place(seq: u64) -> Option<(usize, usize)> {
    let seq = usize::try_from(seq).ok()?;
    Some((seq / SEGMENT, seq % SEGMENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_that_never_came_is_lost_and_one_that_came_twice_is_doubled() {
        let ledger = Ledger::new(1, 2);
        for origin in [10, 20] {
            let seq = ledger.take();
            assert!(ledger.sent(seq, origin));
            ledger.answered(seq, Outcome::Accepted);
        }
        assert_eq!(ledger.arrived(0, 0), Arrival::First { origin: 10 });
        assert_eq!(ledger.arrived(0, 1), Arrival::First { origin: 10 });
        assert_eq!(ledger.arrived(1, 0), Arrival::First { origin: 20 });
        assert_eq!(ledger.arrived(1, 0), Arrival::Duplicate);
        let count = ledger.count();
        assert_eq!((count.expected, count.delivered), (4, 3));
        assert_eq!((count.lost, count.duplicates), (1, 1));
    }

    #[test]
    fn an_arrival_before_the_answer_counts() {
        let ledger = Ledger::new(1, 1);
        let seq = ledger.take();
        ledger.sent(seq, 5);
        assert_eq!(ledger.arrived(seq, 0), Arrival::First { origin: 5 });
        ledger.answered(seq, Outcome::Accepted);
        assert_eq!(ledger.count().lost, 0);
    }

    #[test]
    fn refused_and_unanswered_events_owe_nothing_but_a_refused_one_that_comes_is_told() {
        let ledger = Ledger::new(1, 1);
        ledger.sent(0, 1);
        ledger.answered(0, Outcome::Refused);
        ledger.sent(1, 1);
        ledger.answered(1, Outcome::Unanswered);
        ledger.arrived(0, 0);
        ledger.arrived(1, 0);
        let count = ledger.count();
        assert_eq!((count.refused, count.unanswered), (1, 1));
        assert_eq!((count.expected, count.lost), (0, 0));
        assert_eq!(count.refused_but_delivered, 1);
    }

    #[test]
    fn an_event_that_was_not_sent_or_comes_to_a_foreign_endpoint_is_a_stray() {
        let ledger = Ledger::new(2, 2);
        ledger.sent(1, 1);
        assert_eq!(ledger.arrived(0, 0), Arrival::Stray);
        assert_eq!(ledger.arrived(1, 1), Arrival::Stray);
        assert_eq!(ledger.arrived(u64::MAX, 1), Arrival::Stray);
        assert_eq!(ledger.arrived(1, 3), Arrival::First { origin: 1 });
        assert_eq!(ledger.count().strays, 3);
    }

    #[test]
    fn a_full_ledger_says_so() {
        assert!(!Ledger::new(1, 1).sent((SEGMENT * SEGMENTS) as u64, 0));
    }
}
