//! The bodies that are posted, and the mark in them by which the receiver knows
//! an event again.
//!
//! An event's id is known only after the answer, and a delivery may be faster
//! than the answer. So each body carries a number of ours, `data.seq`, of always
//! the same width: rendering overwrites 16 digits, and reading them looks at one
//! place.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;

/// Makes every mark 16 digits wide; all of them stay below 2^53, the largest
/// whole number that every JSON reader keeps.
const BASE: u64 = 1_000_000_000_000_000;
/// Sequence numbers in a run.
const PER_RUN: u64 = 1_000_000_000_000;
/// Runs that the remaining digits can tell apart.
const RUNS: u64 = 8_000;
const DIGITS: usize = 16;
const KEY: &[u8] = b"\"seq\":";

/// Says which run and which event a body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// The run; counted modulo 8,000.
    pub run: u64,
    /// The event within the run.
    pub seq: u64,
}

impl Mark {
    fn number(self) -> u64 {
        BASE + (self.run % RUNS) * PER_RUN + self.seq % PER_RUN
    }

    fn of(number: u64) -> Option<Self> {
        let rest = number.checked_sub(BASE)?;
        Some(Self {
            run: rest / PER_RUN,
            seq: rest % PER_RUN,
        })
    }

    /// Finds the mark in a delivered body. `hint` remembers where the last one
    /// was: in one run it is nearly always the same place.
    #[must_use]
    pub(super) fn read(body: &[u8], hint: &AtomicUsize) -> Option<Self> {
        let at = hint.load(Relaxed);
        let at = if at >= KEY.len() && body.get(at - KEY.len()..at) == Some(KEY) {
            at
        } else {
            let found = body.windows(KEY.len()).position(|w| w == KEY)? + KEY.len();
            hint.store(found, Relaxed);
            found
        };
        body.get(at..at + DIGITS)?
            .iter()
            .try_fold(0_u64, |n, c| {
                c.is_ascii_digit().then(|| n * 10 + u64::from(c - b'0'))
            })
            .and_then(Self::of)
    }
}

/// A body with a place for the mark.
#[derive(Debug, Clone)]
pub(super) struct Template {
    bytes: Vec<u8>,
    at: usize,
}

impl Template {
    /// What a publisher posts: exactly `size` bytes, or as few as it takes.
    #[must_use]
    pub(super) fn publish(event_type: &str, size: usize) -> Self {
        Self::padded(
            &format!("{{\"event_type\":\"{event_type}\",\"data\":{{"),
            size,
        )
    }

    /// A body such as a delivery carries, for the raw mode.
    #[must_use]
    pub(super) fn envelope(event_id: &str, event_type: &str, size: usize) -> Self {
        Self::padded(
            &format!(
                "{{\"id\":\"{event_id}\",\"type\":\"{event_type}\",\"timestamp\":\"2026-01-01T00:00:00.000Z\",\"data\":{{"
            ),
            size,
        )
    }

    fn padded(head: &str, size: usize) -> Self {
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend_from_slice(KEY);
        let at = bytes.len();
        bytes.extend_from_slice(BASE.to_string().as_bytes());
        bytes.extend_from_slice(b",\"pad\":\"");
        let tail = b"\"}}";
        let pad = size.saturating_sub(bytes.len() + tail.len());
        bytes.extend((b'a'..=b'z').cycle().take(pad));
        bytes.extend_from_slice(tail);
        Self { bytes, at }
    }

    /// The body of one event.
    #[must_use]
    pub(super) fn render(&self, mark: Mark) -> Bytes {
        let mut body = self.bytes.clone();
        let mut n = mark.number();
        for digit in body.iter_mut().skip(self.at).take(DIGITS).rev() {
            *digit = b'0' + u8::try_from(n % 10).unwrap_or(0);
            n /= 10;
        }
        Bytes::from(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_the_way_through_a_body_and_the_body_is_json_of_the_size_asked_for() {
        for (run, seq) in [(0, 0), (1, 123), (7_999, PER_RUN - 1)] {
            for template in [
                Template::publish("bench.x.e0", 500),
                Template::envelope("evt_00000000000000000000000000", "bench.x.e0", 500),
            ] {
                let body = template.render(Mark { run, seq });
                assert_eq!(body.len(), 500);
                let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert!(json["data"]["seq"].is_u64());
                let hint = AtomicUsize::new(0);
                assert_eq!(Mark::read(&body, &hint), Some(Mark { run, seq }));
                assert_eq!(Mark::read(&body, &hint), Some(Mark { run, seq }));
            }
        }
    }

    #[test]
    fn a_stale_hint_and_a_strange_body_do_no_harm() {
        let hint = AtomicUsize::new(3);
        let body = Template::publish("t", 0).render(Mark { run: 2, seq: 9 });
        assert_eq!(Mark::read(&body, &hint), Some(Mark { run: 2, seq: 9 }));
        assert_eq!(Mark::read(b"{}", &hint), None);
        assert_eq!(Mark::read(b"{\"seq\":12}", &hint), None);
        assert_eq!(Mark::read(b"{\"seq\":\"12345678901234567\"}", &hint), None);
    }
}
