//! Permits to send, at a fixed rate.
//!
//! On a thread of its own: the runtime's timer counts in milliseconds, as much as
//! the latencies to be measured (B4).

use std::{sync::Arc, thread, time::Duration};

use tokio::sync::Semaphore;

use super::{
    error::{BenchError, Result},
    receiver::Hub,
    stats::{nanos, real},
};

/// From making a schedule to its first event, in nanoseconds.
const LEAD: u64 = 100_000_000;
/// Above this rate events are due in bursts, all those of one [`BURST`] at its
/// end: a wake-up for each would cost more than the publish itself.
const BURSTS_FROM: f64 = 2_000.0;
/// In nanoseconds; small beside the latencies that are measured at such rates (B5).
const BURST: u64 = 500_000;
/// How long past its end a schedule that is behind is still followed, in nanoseconds.
const BEHIND: u64 = 5_000_000_000;

/// An open loop: event `n` is meant to be sent at `start + n / rate`, whether or
/// not the server keeps up. Latencies count from there, so a slow server can't
/// hide its slowness by being asked less often.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    /// When the first event is due, in nanoseconds of the hub's clock.
    pub start: u64,
    /// Events per second.
    pub rate: f64,
    /// Events in all.
    pub total: u64,
    /// When it is followed no longer, however far behind, in nanoseconds of the hub's clock.
    pub until: u64,
    permits: Arc<Semaphore>,
}

impl Schedule {
    /// Starts handing out permits, one an event, over `length`, after a moment in
    /// which the publishers connect.
    pub(super) fn begin(
        hub: &Arc<Hub>,
        rate: f64,
        length: Duration,
        publishers: usize,
    ) -> Result<Self> {
        let start = hub.now() + LEAD;
        let schedule = Self {
            start,
            rate,
            total: events(rate, length),
            until: start + nanos(length) + BEHIND,
            permits: Arc::new(Semaphore::new(0)),
        };
        let (hub, pace) = (Arc::clone(hub), schedule.clone());
        let pace = move || {
            let mut n = 0;
            while n < pace.total {
                let due = pace.due(n);
                let wait = due.saturating_sub(hub.now());
                if wait > 0 {
                    thread::sleep(Duration::from_nanos(wait));
                }
                // All that are due by now, with one wake-up.
                let now = hub.now().max(due);
                let from = n;
                while n < pace.total && pace.due(n) <= now {
                    n += 1;
                }
                pace.permits
                    .add_permits(usize::try_from(n - from).unwrap_or(0));
            }
            // One more for each publisher, to find out that it is over.
            pace.permits.add_permits(publishers);
        };
        thread::Builder::new()
            .name("bench-pace".into())
            .spawn(pace)
            .map_err(|e| BenchError::failed("no thread for the schedule", e))?;
        Ok(schedule)
    }

    /// All events at once: as many as `total`, as fast as answers come.
    pub(super) fn at_once(hub: &Hub, total: u64, publishers: usize) -> Self {
        let permits = usize::try_from(total).unwrap_or(Semaphore::MAX_PERMITS);
        let permits = permits
            .saturating_add(publishers)
            .min(Semaphore::MAX_PERMITS);
        Self {
            start: hub.now(),
            rate: f64::INFINITY,
            total,
            until: u64::MAX,
            permits: Arc::new(Semaphore::new(permits)),
        }
    }

    /// Waits until one more event is due.
    pub(super) async fn wait(&self) {
        if let Ok(permit) = self.permits.acquire().await {
            permit.forget();
        }
    }

    /// When event `n` is meant to be sent, in nanoseconds of the hub's clock.
    #[must_use]
    pub(super) fn due(&self, n: u64) -> u64 {
        let exact = nanos(Duration::from_secs_f64(real(n) / self.rate));
        let after = if self.rate > BURSTS_FROM {
            exact.next_multiple_of(BURST)
        } else {
            exact
        };
        self.start + after
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is positive, and the cast saturates"
)]
fn events(rate: f64, length: Duration) -> u64 {
    (rate * length.as_secs_f64()).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_schedules_come_in_bursts_and_none_too_early() {
        let hub = Arc::new(Hub::new());
        let s = Schedule::begin(&hub, 10_000.0, Duration::from_millis(1), 1).unwrap();
        let due: Vec<u64> = (0..10).map(|n| s.due(n) - s.start).collect();
        assert_eq!(due.first(), Some(&0));
        assert!(due.iter().skip(1).take(5).all(|d| *d == BURST), "{due:?}");
        assert!(due.iter().skip(6).all(|d| *d == 2 * BURST), "{due:?}");
    }

    #[tokio::test]
    async fn every_event_has_its_time_and_every_publisher_learns_of_the_end() {
        let hub = Arc::new(Hub::new());
        let s = Schedule::begin(&hub, 2_000.0, Duration::from_millis(5), 3).unwrap();
        assert_eq!(s.total, 10);
        assert_eq!((s.due(0), s.due(4)), (s.start, s.start + 2_000_000));
        for _ in 0..10 {
            s.wait().await;
        }
        assert!(hub.now() >= s.due(9), "the last event came before its time");
        for _ in 0..3 {
            s.wait().await;
        }
        assert_eq!(s.permits.available_permits(), 0);
    }
}
