//! Chances that can be repeated.

use std::time::Duration;

/// Numbers that look random (xorshift64*).
pub(crate) struct Chance(u64);

/// A seed of its own for each run, which is printed.
pub(crate) fn any_seed() -> u64 {
    u64::try_from(onering::domain::id::wall_clock()).unwrap()
}

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        eprintln!("ONERING_LEDGER_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub(crate) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = u64::try_from(most.checked_sub(least).unwrap().as_millis()).unwrap();
        least + Duration::from_millis(self.next() % (span + 1))
    }
}
