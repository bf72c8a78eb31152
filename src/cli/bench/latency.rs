//! Latencies, in microseconds, from many tasks at once.

use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    error::{BenchError, Result},
    stats::real,
};

/// Ten minutes: what takes longer is counted as this.
const HIGHEST_MICROS: u64 = 600_000_000;
const SHARDS: usize = 16;

/// An empty histogram of microseconds, exact to three digits.
pub(super) fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, HIGHEST_MICROS, 3)
        .map_err(|e| BenchError::failed("no histogram", e))
}

/// A histogram that many tasks write to; those of different shards don't wait
/// for each other.
#[derive(Debug)]
pub(super) struct Latencies {
    shards: Vec<Mutex<Histogram<u64>>>,
}

impl Latencies {
    /// An empty one.
    pub(super) fn new() -> Result<Self> {
        let shards = (0..SHARDS)
            .map(|_| histogram().map(Mutex::new))
            .collect::<Result<_>>()?;
        Ok(Self { shards })
    }

    /// Adds one latency, in nanoseconds.
    pub(super) fn record(&self, shard: usize, nanos: u64) {
        if let Some(shard) = self.shards.get(shard % SHARDS) {
            shard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .saturating_record(nanos / 1_000);
        }
    }

    /// All shards together.
    pub(super) fn merged(&self) -> Result<Histogram<u64>> {
        let mut all = histogram()?;
        for shard in &self.shards {
            all.add(&*shard.lock().unwrap_or_else(PoisonError::into_inner))
                .map_err(|e| BenchError::failed("histograms don't add up", e))?;
        }
        Ok(all)
    }
}

/// Percentiles, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Percentiles {
    /// How many latencies there were.
    pub count: u64,
    /// Half were faster.
    pub p50_ms: f64,
    /// 9 of 10 were faster.
    pub p90_ms: f64,
    /// 99 of 100 were faster.
    pub p99_ms: f64,
    /// 999 of 1,000 were faster.
    pub p999_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

impl Percentiles {
    /// Of a histogram of microseconds.
    #[must_use]
    pub(super) fn of(h: &Histogram<u64>) -> Self {
        let at = |q: f64| real(h.value_at_quantile(q)) / 1_000.0;
        Self {
            count: h.len(),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: real(h.max()) / 1_000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_over_all_shards() {
        let latencies = Latencies::new().unwrap();
        for i in 1..=1_000_u64 {
            latencies.record(usize::try_from(i).unwrap(), i * 1_000_000);
        }
        let p = Percentiles::of(&latencies.merged().unwrap());
        assert_eq!(p.count, 1_000);
        assert!((p.p50_ms - 500.0).abs() < 1.0, "{p:?}");
        assert!((p.p99_ms - 990.0).abs() < 1.0, "{p:?}");
        assert!((p.max_ms - 1_000.0).abs() < 1.0, "{p:?}");
    }

    #[test]
    fn what_takes_longer_than_the_scale_is_kept_at_its_end() {
        let latencies = Latencies::new().unwrap();
        latencies.record(0, u64::MAX);
        let p = Percentiles::of(&latencies.merged().unwrap());
        assert_eq!(p.count, 1);
        assert!(p.max_ms >= 600_000.0);
    }

    #[test]
    fn of_nothing_they_are_zero() {
        let p = Percentiles::of(&histogram().unwrap());
        assert_eq!(p, Percentiles::default());
    }
}
