//! A subscription's circuit breaker: after failures in a row its receiver is left
//! alone for a while, then asked with one delivery whether it works again.
//!
//! ```text
//! CLOSED ── failures in a row ──► OPEN ── time ──► HALF_OPEN ── the probe is delivered ──► CLOSED
//!                                  ▲                   │
//!                                  └── the probe fails ┘
//! ```
//!
//! Times are microseconds on one clock of the caller's that never goes back.

use super::{delivery::Outcome, id::Micros};

/// Failures in a row that open a breaker, where nothing else is said.
pub const DEFAULT_FAILURES: u32 = 5;
/// For how many seconds it is open, where nothing else is said.
pub const DEFAULT_OPEN: u32 = 60;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row that open it; 0: it never opens.
    pub failures_to_open: u32,
    /// Seconds until the first probe, and between two.
    pub open_seconds: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            failures_to_open: DEFAULT_FAILURES,
            open_seconds: DEFAULT_OPEN,
        }
    }
}

/// What an attempt's end says of its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It took the delivery.
    Well,
    /// It failed: 5xx, no answer in time, no connection.
    Ill,
    /// It refused this delivery, or asked for patience: 3xx, 4xx. That says nothing
    /// of its health.
    Refused,
    /// Nothing reached it.
    Nothing,
}

impl Sign {
    /// What an attempt says that ended so, with the receiver's HTTP status (0:
    /// none) and why it failed.
    #[must_use]
    pub fn of(outcome: Outcome, status: u16, reason: &str) -> Self {
        match outcome {
            Outcome::Delivered => Self::Well,
            Outcome::Permanent if status == 0 => Self::Nothing,
            // Ours, not the receiver's.
            Outcome::Retryable { .. } if OURS.contains(&reason) => Self::Nothing,
            Outcome::Retryable { .. } if status == 0 || status >= 500 => Self::Ill,
            Outcome::Permanent | Outcome::Retryable { .. } => Self::Refused,
            Outcome::ReplayExpired
            | Outcome::TooOld
            | Outcome::SubscriptionGone
            | Outcome::Released => Self::Nothing,
        }
    }
}

/// Failures for which the receiver was not asked.
const OURS: [&str; 2] = ["internal", "client_certificate_expired"];

/// What a breaker did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It opened.
    Opened,
    /// The probe failed: it is open again.
    Reopened,
    /// The probe was delivered: it is closed.
    Closed,
}

/// A breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breaker {
    /// Everything is sent.
    Closed {
        /// Failures in a row.
        failures: u32,
    },
    /// Nothing is sent.
    Open {
        /// Failures in a row, the probes' too.
        failures: u32,
        /// When the receiver is asked again.
        until: Micros,
    },
    /// One delivery is sent.
    HalfOpen {
        /// Failures in a row, the probes' too.
        failures: u32,
    },
}

impl Default for Breaker {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Breaker {
    /// Whether everything is sent.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    /// Whether nothing is sent.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// Failures in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        match self {
            Self::Closed { failures }
            | Self::Open { failures, .. }
            | Self::HalfOpen { failures } => *failures,
        }
    }

    /// Follows the time: an open one is half open once its time is over.
    pub fn pass(&mut self, now: Micros) {
        if let Self::Open { failures, until } = *self
            && until <= now
        {
            *self = Self::HalfOpen { failures };
        }
    }

    /// An attempt has ended. `probe`: it was sent while this was half open, to ask
    /// the receiver. What was sent before it opened says nothing any more.
    pub fn ended(&mut self, probe: bool, sign: Sign, s: Settings, now: Micros) -> Option<Turn> {
        let open = |failures| Self::Open {
            failures,
            until: now.saturating_add(Micros::from(s.open_seconds) * 1_000_000),
        };
        match (*self, sign) {
            (Self::Closed { .. }, Sign::Well) => {
                *self = Self::default();
                None
            }
            (Self::Closed { failures }, Sign::Ill) => {
                let failures = failures.saturating_add(1);
                if s.failures_to_open == 0 || failures < s.failures_to_open {
                    *self = Self::Closed { failures };
                    return None;
                }
                *self = open(failures);
                Some(Turn::Opened)
            }
            (Self::HalfOpen { .. }, Sign::Well) if probe => {
                *self = Self::default();
                Some(Turn::Closed)
            }
            (Self::HalfOpen { failures }, Sign::Ill) if probe => {
                *self = open(failures.saturating_add(1));
                Some(Turn::Reopened)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Settings = Settings {
        failures_to_open: 5,
        open_seconds: 60,
    };
    const OPEN: Micros = 60_000_000;

    fn failed(n: u32) -> Breaker {
        let mut b = Breaker::default();
        for _ in 0..n {
            b.ended(false, Sign::Ill, S, 0);
        }
        b
    }

    // A6: five failures in a row open it, a success in between begins anew, and a
    // 400 neither counts nor begins anew.
    #[test]
    fn failures_in_a_row_open_it() {
        let mut b = failed(4);
        assert_eq!(b, Breaker::Closed { failures: 4 });
        assert_eq!(b.ended(false, Sign::Refused, S, 0), None);
        assert_eq!(b, Breaker::Closed { failures: 4 });
        b.ended(false, Sign::Well, S, 0);
        for n in 1..5 {
            assert_eq!(b.ended(false, Sign::Ill, S, 7), None);
            assert_eq!(b.failures(), n);
        }
        assert_eq!(b.ended(false, Sign::Ill, S, 7), Some(Turn::Opened));
        let until = OPEN + 7;
        assert_eq!(b, Breaker::Open { failures: 5, until });
    }

    // A6: OPEN for its time, then one probe decides; what was sent before it opened
    // decides nothing.
    #[test]
    fn a_probe_decides() {
        let mut b = failed(5);
        b.pass(OPEN - 1);
        assert!(b.is_open());
        assert_eq!(b.ended(false, Sign::Well, S, 1), None);
        b.pass(OPEN);
        assert_eq!(b, Breaker::HalfOpen { failures: 5 });
        for late in [Sign::Well, Sign::Ill] {
            assert_eq!(b.ended(false, late, S, OPEN), None);
        }
        for silent in [Sign::Refused, Sign::Nothing] {
            assert_eq!(b.ended(true, silent, S, OPEN), None);
        }
        assert_eq!(b.ended(true, Sign::Ill, S, OPEN), Some(Turn::Reopened));
        let until = 2 * OPEN;
        assert_eq!(b, Breaker::Open { failures: 6, until });
        b.pass(until);
        assert_eq!(b.ended(true, Sign::Well, S, until), Some(Turn::Closed));
        assert_eq!(b, Breaker::default());
    }

    // A6: 5xx, timeouts and connections; 429 and other 4xx say nothing.
    #[test]
    fn what_speaks_of_health() {
        let retryable = Outcome::Retryable { retry_after: None };
        for (status, sign) in [
            (0, Sign::Ill),
            (500, Sign::Ill),
            (503, Sign::Ill),
            (408, Sign::Refused),
            (429, Sign::Refused),
        ] {
            assert_eq!(Sign::of(retryable, status, "x"), sign, "{status}");
        }
        assert_eq!(Sign::of(retryable, 0, "internal"), Sign::Nothing);
        assert_eq!(Sign::of(Outcome::Permanent, 400, ""), Sign::Refused);
        assert_eq!(Sign::of(Outcome::Delivered, 200, ""), Sign::Well);
        assert_eq!(Sign::of(Outcome::Released, 0, ""), Sign::Nothing);
    }

    fn any_sign() -> impl Strategy<Value = Sign> {
        prop_oneof![
            2 => Just(Sign::Well),
            4 => Just(Sign::Ill),
            1 => Just(Sign::Refused),
            1 => Just(Sign::Nothing),
        ]
    }

    proptest! {
        // A6: it opens only after so many failures without a success between them,
        // is never left before its time, and closes by a probe alone.
        #[test]
        fn it_keeps_its_promises(
            failures_to_open in 0u32..6,
            open_seconds in 1u32..100,
            steps in prop::collection::vec((any_sign(), any::<bool>(), 0i64..80_000_000), 0..200),
        ) {
            let s = Settings { failures_to_open, open_seconds };
            let (mut b, mut now, mut row) = (Breaker::default(), 0, 0);
            for (sign, probe, passed) in steps {
                now += passed;
                let before = b;
                b.pass(now);
                if let Breaker::Open { until, .. } = before {
                    prop_assert_eq!(b.is_open(), now < until);
                }
                let asked = b;
                let turn = b.ended(probe, sign, s, now);
                match sign {
                    Sign::Well => row = 0,
                    Sign::Ill => row += 1,
                    Sign::Refused | Sign::Nothing => prop_assert_eq!((turn, b), (None, asked)),
                }
                match turn {
                    Some(Turn::Opened) => {
                        prop_assert!(asked.is_closed() && failures_to_open > 0);
                        prop_assert!(row >= failures_to_open);
                        row = 0;
                    }
                    Some(Turn::Reopened | Turn::Closed) => {
                        let half_open = !asked.is_closed() && !asked.is_open();
                        prop_assert!(probe && half_open);
                        row = 0;
                    }
                    None => prop_assert_eq!(b.is_closed(), asked.is_closed()),
                }
                if let (Some(Turn::Opened | Turn::Reopened), Breaker::Open { until, .. }) = (turn, b) {
                    prop_assert_eq!(until, now + i64::from(open_seconds) * 1_000_000);
                }
            }
        }
    }
}
