//! What is counted of deliveries, and what the counts say.
//!
//! A counter's code is a state's number where it tells how many more deliveries
//! are in that state than before. What is published has a code of its own, which
//! adds to `PENDING`, so that publishing and finishing never change one row.

use super::{delivery::Status, id::Micros};

/// Deliveries that were accepted: `PENDING`, as publishing counts them.
pub const ACCEPTED: i16 = 0;
/// Codes below this are states: they tell what is, as far as it is kept. Codes
/// from here on tell what happened, for 24 hours.
pub const HAPPENED: i16 = 20;
/// Deliveries that became `DEAD`.
pub const DIED: i16 = 20;
/// Deliveries that became `REPLAY_EXPIRED`.
pub const EXPIRED: i16 = 21;
/// Attempts beyond the first, of deliveries that were delivered or given up.
pub const RETRIES: i16 = 22;
/// Attempts that were not sent because their signature was too old.
pub const REPLAY_REJECTED: i16 = 23;
/// Breakers that opened.
pub const BREAKER_OPENED: i16 = 24;
/// Deliveries that were delivered with a latency of bucket 0; the other buckets
/// follow.
pub const LATENCY: i16 = 100;

/// Microseconds in a minute, the time that one row of counters covers.
pub const MINUTE: Micros = 60_000_000;
/// Minutes of the window that figures of 24 hours cover.
pub const WINDOW: i64 = 1440;
/// After so many minutes the rows of a minute are added up by the day.
pub const KEPT: i64 = 1500;

/// How many buckets a factor of ten has: the middle of one is within 15.5 % of
/// all that is in it.
const PER_DECADE: f64 = 8.0;
/// The last bucket: 4217 seconds and more.
const LAST: i16 = 54;

/// The minute of a time, counted from the Unix epoch.
#[must_use]
pub const fn minute_of(time: Micros) -> i64 {
    time.div_euclid(MINUTE)
}

/// The code of a latency's bucket: one below 1 ms, then 8 to a factor of ten.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "it is clamped before")]
pub fn latency_code(latency: Micros) -> i16 {
    let millis = latency.max(1) as f64 / 1000.0;
    let bucket = (1.0 + (PER_DECADE * millis.log10()).floor()).clamp(0.0, f64::from(LAST));
    LATENCY + bucket as i16
}

/// The middle of a latency's bucket, in seconds.
fn seconds(code: i16) -> f64 {
    10f64.powf((f64::from(code - LATENCY) - 0.5) / PER_DECADE) / 1000.0
}

/// What a finish counts: each code with how much is added to it.
pub struct Settled {
    /// The state before.
    pub before: i16,
    /// The state after.
    pub after: i16,
    /// Attempts charged, this one too.
    pub attempts: i64,
    /// Whether its signature was too old.
    pub rejected: bool,
    /// From publish to now, without what it was held.
    pub latency: Micros,
}

impl Settled {
    /// The codes and what is added to each.
    #[must_use]
    pub fn counts(&self) -> Vec<(i16, i64)> {
        let is = |status: Status| self.after == status.to_i16();
        let mut counts = Vec::with_capacity(4);
        if self.before != self.after {
            counts.extend([(self.before, -1), (self.after, 1)]);
            if is(Status::Dead) {
                counts.push((DIED, 1));
            }
            if is(Status::ReplayExpired) {
                counts.push((EXPIRED, 1));
            }
            if is(Status::Delivered) {
                counts.push((latency_code(self.latency), 1));
            }
            let over = is(Status::Delivered) || is(Status::Dead) || is(Status::ReplayExpired);
            if over && self.attempts > 1 {
                counts.push((RETRIES, self.attempts - 1));
            }
        }
        if self.rejected {
            counts.push((REPLAY_REJECTED, 1));
        }
        counts
    }
}

/// Counts by code: of all time for states, of 24 hours for what happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// By state.
    states: [i64; 11],
    /// Delivered in the window.
    delivered: i64,
    died: i64,
    expired: i64,
    retries: i64,
    replay_rejected: i64,
    breaker_opens: i64,
    latencies: Vec<i64>,
}

impl Tally {
    /// Adds a count. `recent`: it was counted within the last 24 hours.
    pub fn add(&mut self, code: i16, n: i64, recent: bool) {
        if let Some(state) = usize::try_from(code)
            .ok()
            .and_then(|code| self.states.get_mut(code))
        {
            *state += n;
        }
        if !recent {
            return;
        }
        match code {
            DIED => self.died += n,
            EXPIRED => self.expired += n,
            RETRIES => self.retries += n,
            REPLAY_REJECTED => self.replay_rejected += n,
            BREAKER_OPENED => self.breaker_opens += n,
            LATENCY.. => {
                let bucket = usize::try_from(code - LATENCY).unwrap_or_default();
                if self.latencies.len() <= bucket {
                    self.latencies.resize(bucket + 1, 0);
                }
                self.latencies[bucket] += n;
                self.delivered += n;
            }
            _ => {}
        }
    }

    /// How many deliveries are in that state, as far as they are kept. What is
    /// leased counts as what it was before.
    #[must_use]
    pub fn now(&self, status: Status) -> i64 {
        let of = |code: i16| {
            let at = usize::try_from(code).unwrap_or(usize::MAX);
            self.states.get(at).copied().unwrap_or_default()
        };
        let accepted = if status == Status::Pending {
            of(ACCEPTED)
        } else {
            0
        };
        accepted + of(status.to_i16())
    }

    /// Deliveries that are not finished.
    #[must_use]
    pub fn unfinished(&self) -> i64 {
        [Status::Pending, Status::Retrying, Status::Failed]
            .map(|s| self.now(s))
            .iter()
            .sum()
    }

    /// Dead letters of the last 24 hours, those that were retried since too.
    #[must_use]
    pub const fn dead_letters(&self) -> i64 {
        self.died
    }

    /// Attempts of the last 24 hours whose signature was too old.
    #[must_use]
    pub const fn replay_rejected(&self) -> i64 {
        self.replay_rejected
    }

    /// Breakers that opened in the last 24 hours.
    #[must_use]
    pub const fn breaker_opens(&self) -> i64 {
        self.breaker_opens
    }

    /// Attempts beyond the first, per delivery that was delivered or given up.
    #[must_use]
    pub fn average_retries(&self) -> f64 {
        match self.delivered + self.died + self.expired {
            0 => 0.0,
            n => self.retries as f64 / n as f64,
        }
    }

    /// Delivered of what was delivered or given up, 0 to 1; 1 where nothing was.
    #[must_use]
    pub fn success_rate(&self) -> f64 {
        match self.delivered + self.died + self.expired {
            0 => 1.0,
            n => self.delivered as f64 / n as f64,
        }
    }

    /// A percentile of the latency in seconds, `share` from 0 to 1; 0 where
    /// nothing was delivered. It is the middle of a bucket: off by 15.5 % at the
    /// most, between 1 ms and an hour.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "buckets are few")]
    pub fn latency(&self, share: f64) -> f64 {
        let rank = (self.delivered as f64 * share).ceil().max(1.0);
        let mut seen = 0;
        for (bucket, n) in self.latencies.iter().enumerate() {
            seen += n;
            if seen as f64 >= rank {
                return seconds(LATENCY + bucket as i16);
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // contract.md: percentiles are within 15.5 % of the truth.
    #[test]
    fn a_buckets_middle_is_near_all_that_is_in_it() {
        let mut latency = 1000.0;
        while latency < 3.6e9 {
            #[expect(clippy::cast_possible_truncation, reason = "a test's numbers")]
            let code = latency_code(latency as Micros);
            let off = seconds(code) * 1e6 / latency;
            assert!((0.86..1.16).contains(&off), "{latency}: {off}");
            latency *= 1.01;
        }
        assert_eq!(latency_code(0), LATENCY);
        assert_eq!(latency_code(-5), LATENCY);
        assert_eq!(latency_code(999), LATENCY);
        assert_eq!(latency_code(1000), LATENCY + 1);
        assert_eq!(latency_code(Micros::MAX), LATENCY + LAST);
    }

    #[test]
    fn percentiles() {
        let mut tally = Tally::default();
        assert!(tally.latency(0.5).abs() < f64::EPSILON);
        tally.add(latency_code(2_000), 90, true);
        tally.add(latency_code(900_000), 9, true);
        tally.add(latency_code(8_000_000), 1, true);
        let near = |share, seconds: f64| {
            let told = tally.latency(share);
            assert!((told / seconds - 1.0).abs() < 0.16, "{share}: {told}");
        };
        near(0.5, 0.002);
        near(0.9, 0.002);
        near(0.95, 0.9);
        near(0.99, 0.9);
        near(1.0, 8.0);
        // What was delivered before the window is delivered, and no latency.
        tally.add(Status::Delivered.to_i16(), 100, true);
        tally.add(Status::Delivered.to_i16(), 5, false);
        tally.add(latency_code(3_000_000_000), 1000, false);
        assert_eq!(tally.now(Status::Delivered), 105);
        assert!((tally.latency(0.5) / 0.002 - 1.0).abs() < 0.16);
    }

    #[test]
    fn rates() {
        let mut tally = Tally::default();
        assert!((tally.success_rate() - 1.0).abs() < f64::EPSILON);
        assert!(tally.average_retries().abs() < f64::EPSILON);
        tally.add(latency_code(1), 6, true);
        tally.add(DIED, 1, true);
        tally.add(EXPIRED, 1, true);
        tally.add(RETRIES, 4, true);
        tally.add(DIED, 100, false);
        assert!((tally.success_rate() - 0.75).abs() < f64::EPSILON);
        assert!((tally.average_retries() - 0.5).abs() < f64::EPSILON);
        assert_eq!(tally.dead_letters(), 1);
    }

    // A1: each change of state takes from one and adds to another.
    #[test]
    fn what_a_finish_counts() {
        let settled = |before: Status, after: Status, attempts, rejected| {
            let mut counts = Settled {
                before: before.to_i16(),
                after: after.to_i16(),
                attempts,
                rejected,
                latency: 1500,
            }
            .counts();
            counts.sort_unstable();
            counts
        };
        assert_eq!(
            settled(Status::Pending, Status::Delivered, 1, false),
            [(1, -1), (4, 1), (LATENCY + 2, 1)]
        );
        assert_eq!(
            settled(Status::Retrying, Status::Dead, 3, false),
            [(3, -1), (6, 1), (DIED, 1), (RETRIES, 2)]
        );
        assert_eq!(
            settled(Status::Retrying, Status::Retrying, 0, true),
            [(REPLAY_REJECTED, 1)]
        );
        assert_eq!(
            settled(Status::Pending, Status::ReplayExpired, 0, true),
            [(1, -1), (9, 1), (EXPIRED, 1), (REPLAY_REJECTED, 1)]
        );
        assert_eq!(settled(Status::Pending, Status::Pending, 0, false), []);
    }
}
