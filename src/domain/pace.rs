//! How fast a receiver is sent to: its subscription's limit a second, and a slow
//! start after an outage. Times are microseconds on one clock of the caller's.

use super::id::Micros;

const SECOND: f64 = 1_000_000.0;
/// Sends in the first second after an outage; each second after it twice as many.
pub const FIRST: f64 = 5.0;
/// A slow start is over when it would let pass so many in a second for each delivery
/// that may be under way: then it is these that rule.
const ENOUGH: f64 = 16.0;
/// The part of a second's sends that may come at once.
const BURST: f64 = 0.1;

/// A token bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    /// Sends a second; 0: as many as there are.
    limit: u32,
    /// Since when it starts slowly, and the rate at which that is over.
    start: Option<(Micros, f64)>,
    tokens: f64,
    at: Micros,
}

impl Pace {
    /// So many sends a second; 0: as many as there are.
    #[must_use]
    pub const fn new(limit: u32, now: Micros) -> Self {
        Self {
            limit,
            start: None,
            tokens: 1.0,
            at: now,
        }
    }

    /// Changes the limit.
    pub const fn limit_to(&mut self, limit: u32) {
        self.limit = limit;
    }

    /// Starts slowly from now on, until `in_flight` rules again.
    pub fn start_slowly(&mut self, in_flight: u32, now: Micros) {
        self.start = Some((now, f64::from(in_flight) * ENOUGH));
        self.tokens = 1.0;
        self.at = now;
    }

    /// Whether it holds nothing up any more.
    #[must_use]
    pub const fn is_free(&self) -> bool {
        self.limit == 0 && self.start.is_none()
    }

    /// Sends a second, now.
    fn rate(&mut self, now: Micros) -> Option<f64> {
        let slow = self.start.and_then(|(since, enough)| {
            let seconds = (now - since).max(0) / 1_000_000;
            let rate = FIRST * 2f64.powi(i32::try_from(seconds).unwrap_or(i32::MAX).min(60));
            (rate < enough).then_some(rate)
        });
        if slow.is_none() {
            self.start = None;
        }
        let limit = (self.limit > 0).then(|| f64::from(self.limit));
        match (slow, limit) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Lets one send pass.
    ///
    /// # Errors
    /// For how long to wait before the next may.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a token takes a second at the most"
    )]
    pub fn take(&mut self, now: Micros) -> Result<(), Micros> {
        let Some(rate) = self.rate(now) else {
            return Ok(());
        };
        let passed = (now - self.at).max(0) as f64 / SECOND;
        self.tokens = (self.tokens + passed * rate).min((rate * BURST).max(1.0));
        self.at = self.at.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(((1.0 - self.tokens) / rate * SECOND).ceil() as Micros + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// When sends pass, of one who asks again whenever it may.
    fn sends(pace: &mut Pace, from: Micros, to: Micros) -> Vec<Micros> {
        let (mut now, mut at) = (from, Vec::new());
        while now < to {
            match pace.take(now) {
                Ok(()) => at.push(now),
                Err(wait) => now += wait,
            }
            if at.len() > 200_000 {
                break;
            }
        }
        at
    }

    // A6: the rate doubles each second, and is none once those under way rule.
    #[test]
    fn a_slow_start_doubles() {
        let mut pace = Pace::new(0, 0);
        pace.start_slowly(100, 0);
        let at = sends(&mut pace, 0, 8_000_000);
        for second in 0..8 {
            let n = at.iter().filter(|t| **t / 1_000_000 == second).count();
            let expected = 5.0 * 2f64.powi(i32::try_from(second).unwrap());
            let off = n as f64 / expected;
            assert!((0.7..1.4).contains(&off), "{second}: {n} of {expected}");
        }
        assert!(!pace.is_free());
        assert_eq!(pace.take(9_000_000), Ok(()));
        assert!(pace.is_free());
    }

    proptest! {
        // D3: in no second more than the limit and its burst, however its time is
        // asked for; and what may be sent is.
        #[test]
        fn no_second_has_more(limit in 1u32..2000, first in 0i64..5_000_000) {
            let mut pace = Pace::new(limit, 0);
            let at = sends(&mut pace, first, first + 3_000_000);
            let most = f64::from(limit) + (f64::from(limit) * BURST).max(1.0);
            for (i, from) in at.iter().enumerate() {
                let n = at[i..].iter().take_while(|t| **t < from + 1_000_000).count();
                prop_assert!(n as f64 <= most + 1.0, "{n} of {limit}");
            }
            prop_assert!(at.len() as f64 >= f64::from(limit) * 2.9 - 1.0, "{} of {limit}", at.len());
        }
    }
}
