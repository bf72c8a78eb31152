//! Public ids: a typed prefix and the 26 characters of TypeID's base32 for a
//! UUIDv7 (RFC 9562), so that ids sort by time. The lowest six bits carry the
//! tenant's partition: a call with nothing but an id touches one partition.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use uuid::Uuid;

/// Microseconds since the Unix epoch.
pub type Micros = i64;

/// Microseconds in a day.
pub const DAY: Micros = 86_400_000_000;

/// A duration in microseconds.
#[must_use]
pub fn micros(duration: std::time::Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX / 2)
}

/// A logical partition, 0 to 63. Every tenant is in one, and all that belongs
/// to the tenant with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part(u8);

impl Part {
    /// How many there are. Fixed for the life of a store.
    pub const COUNT: u8 = 64;

    /// The partition of that number; only its lowest six bits count.
    #[must_use]
    pub const fn new(n: u8) -> Self {
        Self(n & (Self::COUNT - 1))
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> i16 {
        self.0 as i16
    }

    /// Every partition.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }
}

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A UUID in TypeID's base32: 26 characters, the first of them 0 to 7.
#[must_use]
pub fn encode(uuid: Uuid) -> String {
    let n = uuid.as_u128();
    (0..26)
        .rev()
        .map(|i| char::from(ALPHABET[(n >> (5 * i)) as usize & 31]))
        .collect()
}

/// The inverse of [`encode`]; nothing for any other text.
#[must_use]
pub fn decode(text: &str) -> Option<Uuid> {
    let bytes = text.as_bytes();
    if bytes.len() != 26 || bytes[0] > b'7' {
        return None;
    }
    let mut n = 0u128;
    for b in bytes {
        let digit = ALPHABET.iter().position(|a| a == b)?;
        n = n << 5 | digit as u128;
    }
    Some(Uuid::from_u128(n))
}

/// The time on this machine's clock.
#[must_use]
pub fn wall_clock() -> Micros {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| {
        Micros::try_from(d.as_micros()).unwrap_or(Micros::MAX)
    })
}

/// Random bytes from the operating system, buffered so that an id costs no
/// system call.
fn random_u64() -> u64 {
    use std::cell::RefCell;
    thread_local! {
        static POOL: RefCell<([u8; 1024], usize)> = const { RefCell::new(([0; 1024], 1024)) };
    }
    POOL.with_borrow_mut(|(bytes, next)| {
        if *next + 8 > bytes.len() {
            if getrandom::fill(bytes).is_err() {
                // Ids stay unique within the process even on a system without
                // a random source; secrets are never made from this.
                static FALLBACK: AtomicU64 = AtomicU64::new(0);
                return FALLBACK.fetch_add(1, Ordering::Relaxed);
            }
            *next = 0;
        }
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[*next..*next + 8]);
        *next += 8;
        u64::from_le_bytes(word)
    })
}

/// A UUIDv7 of that time in that partition. The 12 bits after the milliseconds
/// are its fraction (RFC 9562, 6.2, method 3).
#[must_use]
pub fn uuid_at(time: Micros, part: Part) -> Uuid {
    let (millis, rest) = (time.max(0) / 1000, time.max(0) % 1000);
    let fraction = (rest as u128 * 4096) / 1000;
    let random = u128::from(random_u64()) & 0x3fff_ffff_ffff_ffc0;
    Uuid::from_u128(
        (millis as u128 & 0xffff_ffff_ffff) << 80
            | 7 << 76
            | fraction << 64
            | 2 << 62
            | random
            | u128::from(part.0),
    )
}

/// The time that a UUIDv7 of ours was made at, to the millisecond and a bit
/// less than its fraction.
#[must_use]
pub fn time_of(uuid: Uuid) -> Micros {
    let n = uuid.as_u128();
    let millis = (n >> 80) as i64;
    let fraction = ((n >> 64) & 0xfff) as i64;
    millis * 1000 + (fraction * 1000 + 4095) / 4096
}

/// The day of a time, counted from the Unix epoch.
#[must_use]
pub fn day_of(time: Micros) -> i32 {
    i32::try_from(time.div_euclid(DAY)).unwrap_or(i32::MAX)
}

/// The smallest and the largest UUID that share a UUID's 60 bits of time: the
/// deliveries of an event are made to lie between them.
#[must_use]
pub fn same_instant(uuid: Uuid) -> (Uuid, Uuid) {
    let n = uuid.as_u128();
    let low = n >> 64 << 64;
    (
        Uuid::from_u128(low),
        Uuid::from_u128(low | u128::from(u64::MAX)),
    )
}

/// A UUID below every UUIDv7 of that time or later.
#[must_use]
pub fn first_uuid_at(time: Micros) -> Uuid {
    Uuid::from_u128(((time.max(0) / 1000) as u128 & 0xffff_ffff_ffff) << 80)
}

/// The UUID that follows; the last one is followed by itself.
#[must_use]
pub fn next_uuid(uuid: Uuid) -> Uuid {
    Uuid::from_u128(uuid.as_u128().saturating_add(1))
}

/// A UUIDv7 at the same instant as another one, in the same partition.
#[must_use]
pub fn beside(uuid: Uuid) -> Uuid {
    let n = uuid.as_u128();
    let random = u128::from(random_u64()) & 0x3fff_ffff_ffff_ffc0;
    Uuid::from_u128(n >> 64 << 64 | 2 << 62 | random | n & 0x3f)
}

macro_rules! typed_id {
    ($name:ident, $prefix:literal, $what:literal) => {
        #[doc = concat!("The id of ", $what, ": `", $prefix, "_…`.")]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Uuid);

        impl $name {
            #[doc = concat!("`", $prefix, "`")]
            pub const PREFIX: &'static str = $prefix;

            /// A new id of that time in that partition.
            #[must_use]
            pub fn new(time: Micros, part: Part) -> Self {
                Self(uuid_at(time, part))
            }

            /// The partition that it carries.
            #[must_use]
            pub const fn part(self) -> Part {
                Part::new(self.0.as_bytes()[15])
            }

            /// When it was made.
            #[must_use]
            pub fn time(self) -> Micros {
                time_of(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!($prefix, "_"))?;
                f.write_str(&encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = MalformedId;

            fn from_str(text: &str) -> Result<Self, MalformedId> {
                text.strip_prefix(concat!($prefix, "_"))
                    .and_then(decode)
                    .map(Self)
                    .ok_or(MalformedId {
                        prefix: Self::PREFIX,
                    })
            }
        }
    };
}

typed_id!(TenantId, "tnt", "a tenant");
typed_id!(KeyId, "key", "an API key");
typed_id!(SubscriptionId, "sub", "a webhook subscription");
typed_id!(EventId, "evt", "an event");
typed_id!(EventTypeId, "ety", "a registered event type");
typed_id!(DeliveryId, "dlv", "a delivery");
typed_id!(RedriveId, "rdv", "a redrive");

impl TenantId {
    /// The tenant that exists from the start.
    pub const DEFAULT: Self = Self(Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0000));
}

impl DeliveryId {
    /// A delivery of that event: made at the same instant, so that the ids of an
    /// event's deliveries lie together.
    #[must_use]
    pub fn of(event: EventId) -> Self {
        Self(beside(event.0))
    }
}

/// A text that is not an id of the kind asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("takes `{prefix}_` and 26 characters of 0-9 and a-z without i, l, o and u")]
pub struct MalformedId {
    prefix: &'static str,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // N5: the partition travels in every id.
        #[test]
        fn ids_carry_time_and_partition(time in 0i64..4_000_000_000_000_000, part in 0u8..64) {
            let id = EventId::new(time, Part::new(part));
            prop_assert_eq!(id.part(), Part::new(part));
            prop_assert!((id.time() - time).abs() <= 1, "{} is not {}", id.time(), time);
            prop_assert_eq!(id.0.get_version_num(), 7);
            prop_assert_eq!(id.to_string().parse::<EventId>(), Ok(id));
            let (low, high) = same_instant(id.0);
            let delivery = DeliveryId::of(id);
            prop_assert!(low <= delivery.0 && delivery.0 <= high);
            prop_assert_eq!(delivery.part(), id.part());
        }

        #[test]
        fn ids_sort_by_time(a in 0i64..4_000_000_000_000_000, b in 0i64..4_000_000_000_000_000) {
            prop_assume!(a / 1000 != b / 1000);
            let (x, y) = (EventId::new(a, Part::new(1)), EventId::new(b, Part::new(2)));
            prop_assert_eq!(a < b, x.to_string() < y.to_string());
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<KeyId>();
        }
    }

    #[test]
    fn matches_the_published_typeid_example() {
        // From the TypeID specification, 0.3.0.
        let uuid: Uuid = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        assert_eq!(encode(uuid), "01h455vb4pex5vsknk084sn02q");
        assert_eq!(decode("01h455vb4pex5vsknk084sn02q"), Some(uuid));
        assert_eq!(decode("81h455vb4pex5vsknk084sn02q"), None);
        assert!("evt_01h455vb4pex5vsknk084sn02q".parse::<KeyId>().is_err());
    }
}
