//! What is counted against a limit: in no trailing hour more than so many calls.
//!
//! Calls are paid for with units that were lent before. A loan has an end, by the
//! lender's clock: until then its units may be spent, and for an hour after it
//! they count. So whenever a unit was spent, it counts for a full hour at the
//! least, and what was lent and lost counts like what was spent.

use super::id::{KeyId, Micros};

/// How long a unit counts after its loan's end.
pub const HOUR: Micros = 3_600_000_000;

/// Limits up to this are kept to the second: each call is asked for.
pub const EXACT: i64 = 60;

/// From this limit on quota is leased ahead from Redis.
pub const LEASED: i64 = 1000;

const SECOND: Micros = 1_000_000;
const MINUTE: Micros = 60 * SECOND;

/// The least life of a loan of whole minutes, so that a busy key has its next
/// one before the last is over.
pub const AHEAD: Micros = 20 * SECOND;

/// The longest life of a loan.
pub const LONGEST: Micros = AHEAD + MINUTE;

/// When a loan that is made now ends: with the minute; for small limits with the
/// second after this one.
#[must_use]
pub fn end_of_loan(limit: i64, now: Micros) -> Micros {
    let (unit, ahead) = grain(limit);
    ((now + ahead).div_euclid(unit) + 1) * unit
}

/// The grain of a limit's loans, and the least life of one.
#[must_use]
pub const fn grain(limit: i64) -> (Micros, Micros) {
    if limit <= EXACT {
        (SECOND, SECOND)
    } else {
        (MINUTE, AHEAD)
    }
}

/// What a key was lent, by the loans' ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window(Vec<(Micros, i64)>);

impl Window {
    /// Units that count at that time.
    #[must_use]
    pub fn used(&self, now: Micros) -> i64 {
        self.counted(now).map(|(_, n)| n).sum()
    }

    /// What counts at that time, the earliest end first.
    pub fn counted(&self, now: Micros) -> impl Iterator<Item = (Micros, i64)> {
        self.0
            .iter()
            .copied()
            .filter(move |(ends, _)| ends + HOUR > now)
    }

    /// Counts units more.
    pub fn add(&mut self, ends: Micros, amount: i64) {
        if amount <= 0 {
            return;
        }
        match self.0.binary_search_by_key(&ends, |(e, _)| *e) {
            Ok(at) => self.0[at].1 += amount,
            Err(at) => self.0.insert(at, (ends, amount)),
        }
    }

    /// Takes back what was not spent of a loan.
    pub fn give_back(&mut self, ends: Micros, amount: i64) {
        if let Ok(at) = self.0.binary_search_by_key(&ends, |(e, _)| *e) {
            self.0[at].1 -= amount.max(0);
            if self.0[at].1 <= 0 {
                self.0.remove(at);
            }
        }
    }

    /// Drops what does not count any more.
    pub fn forget(&mut self, now: Micros) {
        self.0.retain(|(ends, _)| ends + HOUR > now);
    }

    /// Has loans end no later than one that is made now lives at the longest. Those
    /// that would were made when the clock was ahead, and are over by then. Answers
    /// whether there were any.
    pub fn pull_in(&mut self, now: Micros) -> bool {
        let latest = now + LONGEST;
        let first = self.0.partition_point(|(ends, _)| *ends <= latest);
        let beyond = self.0.split_off(first);
        for (_, amount) in &beyond {
            self.add(latest, *amount);
        }
        !beyond.is_empty()
    }

    /// The end of the latest loan; 0 where there is none.
    #[must_use]
    pub fn last(&self) -> Micros {
        self.0.last().map_or(0, |(ends, _)| *ends)
    }

    /// Whether nothing was lent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Decides on what is asked for, and counts what is lent.
    pub fn lend(&mut self, ask: &Ask, now: Micros) -> Answer {
        self.forget(now);
        for (ends, amount) in &ask.back {
            self.give_back(*ends, *amount);
        }
        self.pull_in(now);
        let ends = end_of_loan(ask.whole, now);
        self.add(ends, ask.spent);
        let room = ask.limit - self.used(now);
        let lent = if room >= ask.need.max(1) {
            ask.want.min(room)
        } else {
            0
        };
        self.add(ends, lent);
        Answer {
            lent,
            ends,
            now,
            window: self.clone(),
        }
    }

    /// As it is stored: pairs of 64-bit numbers, little-endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|(ends, n)| [ends.to_le_bytes(), n.to_le_bytes()])
            .flatten()
            .collect()
    }

    /// The inverse of [`encode`](Self::encode); nothing for other bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |b: &[u8]| b.try_into().ok().map(i64::from_le_bytes);
        let pairs = bytes.chunks(16);
        let pairs: Option<Vec<(Micros, i64)>> = pairs
            .map(|p| Some((number(p.get(..8)?)?, number(p.get(8..)?)?)))
            .collect();
        pairs.filter(|p| p.is_sorted_by(|a, b| a.0 < b.0)).map(Self)
    }
}

impl FromIterator<(Micros, i64)> for Window {
    fn from_iter<T: IntoIterator<Item = (Micros, i64)>>(loans: T) -> Self {
        let mut window = Self::default();
        for (ends, amount) in loans {
            window.add(ends, amount);
        }
        window
    }
}

/// What is asked of a lender for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The key.
    pub key: KeyId,
    /// The key's whole limit, which loans' grain follows from.
    pub whole: i64,
    /// Units that this lender lends in any trailing hour: the limit or its part
    /// of it.
    pub limit: i64,
    /// With less than so many nothing is lent.
    pub need: i64,
    /// How many to lend at the most; with 0 the window is told and nothing lent.
    pub want: i64,
    /// Units that were spent without a loan, and count whatever the limit is.
    pub spent: i64,
    /// What was not spent of earlier loans, by their ends.
    pub back: Vec<(Micros, i64)>,
}

/// What a lender answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Units that are lent.
    pub lent: i64,
    /// When they can't be spent any more.
    pub ends: Micros,
    /// The lender's clock.
    pub now: Micros,
    /// All that the key was lent, by anyone, with this.
    pub window: Window,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::id::Part;

    fn ask(limit: i64, want: i64) -> Ask {
        Ask {
            key: KeyId::new(0, Part::new(0)),
            whole: limit,
            limit,
            need: want,
            want,
            spent: 0,
            back: Vec::new(),
        }
    }

    proptest! {
        // K6: whenever within their loans' lives units are spent, no trailing hour
        // holds more than the limit.
        #[test]
        fn no_hour_holds_more_than_the_limit(
            limit in prop_oneof![1i64..70, 900i64..1100],
            steps in prop::collection::vec((0i64..600, 1i64..200, 0i64..1000, 0i64..3), 1..200),
        ) {
            let mut window = Window::default();
            let mut now = 1_700_000_000 * SECOND;
            let mut spent: Vec<(Micros, i64)> = Vec::new();
            for (pass, want, when, kept) in steps {
                now += pass * SECOND / 4;
                let want = want.min(limit);
                let got = window.lend(&ask(limit, want), now);
                prop_assert!(got.lent == 0 || got.lent == want);
                // All but what is given back is spent, somewhen in the loan's life.
                let back = if kept == 0 { got.lent / 2 } else { 0 };
                window.give_back(got.ends, back);
                let at = now + (got.ends - 1 - now) * when / 1000;
                spent.push((at, got.lent - back));
            }
            spent.sort_unstable();
            for (from, _) in &spent {
                let hour: i64 = spent.iter()
                    .filter(|(at, _)| at >= from && *at < from + HOUR).map(|(_, n)| n).sum();
                prop_assert!(hour <= limit, "{hour} of {limit}");
            }
        }

        #[test]
        fn a_window_is_read_as_it_was_written(loans in prop::collection::vec((0i64..99, 1i64..9), 0..20)) {
            let window: Window = loans.into_iter().collect();
            prop_assert_eq!(Window::decode(&window.encode()), Some(window));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Window::decode(&bytes);
        }
    }

    // K6: the clock was ahead and is put back: what was lent counts as long as it
    // could be spent, and for an hour after that.
    #[test]
    fn loans_of_a_clock_that_was_ahead_end_with_their_lives() {
        let mut window = Window::default();
        let (ahead, now) = (1_800_000_000 * SECOND, 1_700_000_000 * SECOND);
        assert_eq!(window.lend(&ask(100, 60), ahead).lent, 60);
        assert_eq!(window.lend(&ask(100, 41), now).lent, 0);
        let ends = now + LONGEST;
        assert_eq!(window.last(), ends);
        assert_eq!(window.lend(&ask(100, 41), ends + HOUR - 1).lent, 0);
        assert_eq!(window.lend(&ask(100, 41), ends + HOUR).lent, 41);
    }

    // K6
    #[test]
    fn all_of_the_limit_comes_back_after_an_hour() {
        let mut window = Window::default();
        let start = 1_700_000_000 * SECOND;
        for limit in [10, 100] {
            assert_eq!(window.lend(&ask(limit, limit), start).lent, limit);
            let refused = window.lend(&ask(limit, 1), start + HOUR - 1);
            assert_eq!(refused.lent, 0, "within the hour");
            let (unit, ahead) = grain(limit);
            let later = start + HOUR + unit + ahead;
            assert_eq!(window.lend(&ask(limit, limit), later).lent, limit);
            window = Window::default();
        }
    }
}
