//! Times between the protos and the domain.

use prost_types::Timestamp;

use crate::domain::id::Micros;

/// Years 1 to 9999, in unix seconds: what RFC 3339 can write.
const WRITABLE: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// A time for an answer.
pub(super) fn timestamp(time: Micros) -> Timestamp {
    Timestamp {
        seconds: time.div_euclid(1_000_000),
        nanos: i32::try_from(time.rem_euclid(1_000_000) * 1000).unwrap_or_default(),
    }
}

/// A time for an answer; none where it is 0.
pub(super) fn known(time: Micros) -> Option<Timestamp> {
    (time > 0).then(|| timestamp(time))
}

/// A request's time; none where there is no such time.
pub(super) fn micros(time: &Timestamp) -> Option<Micros> {
    let nanos = i64::from(time.nanos);
    (WRITABLE.contains(&time.seconds) && (0..1_000_000_000).contains(&nanos))
        .then(|| time.seconds * 1_000_000 + nanos / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip() {
        for time in [0, 1, -1, 1_700_000_000_000_001, 253_402_300_799_999_999] {
            assert_eq!(micros(&timestamp(time)), Some(time));
        }
        for (seconds, nanos) in [
            (i64::MAX, 0),
            (253_402_300_800, 0),
            (0, -1),
            (0, 1_000_000_000),
        ] {
            assert_eq!(micros(&Timestamp { seconds, nanos }), None);
        }
    }
}
