//! Redrives: selections of dead letters, or of past events, that are worked one
//! after another at a chosen rate.

use uuid::Uuid;

use super::id::{Micros, RedriveId, SubscriptionId, TenantId, first_uuid_at};

/// What is done with each of the selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Dead letters get one more attempt.
    Redrive,
    /// Dead letters are removed.
    Purge,
    /// Events are delivered to a subscription, again where they were before.
    Recover,
    /// Events are delivered to a subscription that never were.
    Missing,
}

impl Kind {
    /// The number that it is stored as.
    #[must_use]
    pub const fn to_i16(self) -> i16 {
        match self {
            Self::Redrive => 1,
            Self::Purge => 2,
            Self::Recover => 3,
            Self::Missing => 4,
        }
    }

    /// The inverse of [`to_i16`](Self::to_i16).
    #[must_use]
    pub const fn from_i16(n: i16) -> Self {
        match n {
            2 => Self::Purge,
            3 => Self::Recover,
            4 => Self::Missing,
            _ => Self::Redrive,
        }
    }

    /// What its beginning is called in the audit log.
    #[must_use]
    pub const fn action(self) -> &'static str {
        match self {
            Self::Redrive => "dead_letters.redrive",
            Self::Purge => "dead_letters.purge",
            Self::Recover => "events.recover",
            Self::Missing => "events.replay_missing",
        }
    }

    /// Whether it works on events, and not on dead letters.
    #[must_use]
    pub const fn is_replay(self) -> bool {
        matches!(self, Self::Recover | Self::Missing)
    }
}

/// How far a redrive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Under way.
    Running,
    /// Held, until it is resumed.
    Paused,
    /// Nothing is left to do.
    Done,
    /// Ended before that, by hand.
    Cancelled,
    /// Ended before that: its subscription was deleted.
    Failed,
}

impl State {
    /// The number that it is stored as.
    #[must_use]
    pub const fn to_i16(self) -> i16 {
        match self {
            Self::Running => 1,
            Self::Paused => 2,
            Self::Done => 3,
            Self::Cancelled => 4,
            Self::Failed => 5,
        }
    }

    /// The inverse of [`to_i16`](Self::to_i16).
    #[must_use]
    pub const fn from_i16(n: i16) -> Self {
        match n {
            2 => Self::Paused,
            3 => Self::Done,
            4 => Self::Cancelled,
            5 => Self::Failed,
            _ => Self::Running,
        }
    }

    /// Whether it is over for good.
    #[must_use]
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Running | Self::Paused)
    }
}

/// What somebody does to a redrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Holds it.
    Pause,
    /// Lets it go on, at another rate where one is named.
    Resume(Option<u32>),
    /// Ends it.
    Cancel,
}

impl Change {
    /// What follows from it; none of one that is over. What is so already stays.
    #[must_use]
    pub const fn make(self, state: State) -> Option<State> {
        match self {
            Self::Cancel if matches!(state, State::Cancelled) => Some(state),
            _ if state.is_over() => None,
            Self::Pause => Some(State::Paused),
            Self::Resume(_) => Some(State::Running),
            Self::Cancel => Some(State::Cancelled),
        }
    }
}

/// Which dead letters, or which events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Of this tenant; of all where there is none, which a redrive never has.
    pub tenant: Option<TenantId>,
    /// To this subscription.
    pub subscription: Option<SubscriptionId>,
    /// Of this type, or with this prefix where it ends in `*`; empty: of any.
    pub event_type: String,
    /// Dead for this reason; empty: for any.
    pub reason: String,
    /// Of events that were accepted then or later.
    pub from: Option<Micros>,
    /// Of events that were accepted before.
    pub to: Option<Micros>,
}

impl Selection {
    /// The ids that it is about: from the first to below the second. Of an event
    /// and of its deliveries alike, for they are made at the same instant.
    #[must_use]
    pub fn range(&self) -> (Uuid, Uuid) {
        (
            self.from.map_or(Uuid::nil(), first_uuid_at),
            self.to.map_or(Uuid::max(), first_uuid_at),
        )
    }

    /// Whether it names nothing that narrows it, beside its tenant.
    #[must_use]
    pub const fn is_everything(&self) -> bool {
        self.subscription.is_none()
            && self.event_type.is_empty()
            && self.reason.is_empty()
            && self.from.is_none()
            && self.to.is_none()
    }
}

/// A redrive as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redrive {
    /// Its id; its partition is the tenant's.
    pub id: RedriveId,
    /// Its tenant.
    pub tenant: TenantId,
    /// What is done.
    pub kind: Kind,
    /// How far it is.
    pub state: State,
    /// With which.
    pub selection: Selection,
    /// How many in a second at the most.
    pub rate: u32,
    /// How many there were when it began, where they were few enough to be
    /// counted.
    pub total: Option<i64>,
    /// How many it has worked.
    pub done: i64,
    /// How many it has passed over.
    pub skipped: i64,
    /// Whatever lies below is worked: an id of a delivery, or of an event.
    pub position: Uuid,
    /// The end of its range.
    pub end: Uuid,
    /// When it was made, on the store's clock.
    pub created_at: Micros,
    /// By whom: a key's id.
    pub created_by: String,
    /// Why.
    pub reason: String,
    /// When it was over.
    pub finished_at: Option<Micros>,
    /// What there is to be said of it; empty where there is nothing.
    pub note: String,
}

/// How much is still allowed of a rate. Time earns it, up to what a second
/// earns: what was not used while nobody worked is not made up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    /// Millionths of one.
    pub credit: i64,
    /// Up to when it is earned.
    pub at: Micros,
}

/// Millionths in one.
const ONE: i64 = 1_000_000;

impl Pace {
    /// What is allowed at that time.
    #[must_use]
    pub fn earn(self, rate: u32, now: Micros) -> Self {
        let rate = i64::from(rate.max(1));
        let passed = (now - self.at).clamp(0, ONE);
        Self {
            credit: (self.credit + passed * rate).min(rate * ONE),
            // A clock that was set back earns from there on.
            at: now,
        }
    }

    /// How many are allowed.
    #[must_use]
    pub const fn due(self) -> i64 {
        self.credit / ONE
    }

    /// What is left after so many.
    #[must_use]
    pub const fn spend(self, n: i64) -> Self {
        Self {
            credit: self.credit - n * ONE,
            at: self.at,
        }
    }

    /// How long until the next one is allowed.
    #[must_use]
    pub fn wait(self, rate: u32) -> std::time::Duration {
        let missing = (ONE - self.credit).max(0).unsigned_abs();
        std::time::Duration::from_micros(missing.div_ceil(rate.max(1).into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // A5: however often it is looked at, no more than the rate's is allowed in
        // any time, and beyond the first second hardly less.
        #[test]
        fn a_pace_is_the_rates(
            rate in 1u32..20_000,
            steps in prop::collection::vec(1i64..400_000, 1..200),
        ) {
            let mut pace = Pace::default();
            let (mut now, mut sent) = (0, 0);
            for step in steps {
                now += step;
                pace = pace.earn(rate, now);
                let due = pace.due();
                pace = pace.spend(due);
                sent += due;
                let exact = now * i64::from(rate) / ONE;
                prop_assert_eq!(sent, exact);
                let wait = i64::try_from(pace.wait(rate).as_micros()).unwrap();
                prop_assert!(pace.earn(rate, now + wait).due() >= 1);
                if wait > 1 {
                    prop_assert_eq!(pace.earn(rate, now + wait - 1).due(), 0);
                }
            }
        }

        // A5: a redrive that nobody worked for a while does not make up for it.
        #[test]
        fn what_was_missed_is_not_made_up_for(rate in 1u32..20_000, gap in 1_000_000i64..4_000_000_000_000) {
            let pace = Pace::default().earn(rate, gap);
            prop_assert_eq!(pace.due(), i64::from(rate));
            prop_assert_eq!(pace.spend(pace.due()).earn(rate, gap - 5).due(), 0);
        }
    }

    // A5: what can be done to a redrive, and when.
    #[test]
    fn what_is_over_stays_so() {
        use State::{Cancelled, Done, Failed, Paused, Running};
        for (change, state, then) in [
            (Change::Pause, Running, Some(Paused)),
            (Change::Pause, Paused, Some(Paused)),
            (Change::Pause, Done, None),
            (Change::Resume(None), Paused, Some(Running)),
            (Change::Resume(Some(9)), Running, Some(Running)),
            (Change::Resume(None), Cancelled, None),
            (Change::Cancel, Running, Some(Cancelled)),
            (Change::Cancel, Paused, Some(Cancelled)),
            (Change::Cancel, Cancelled, Some(Cancelled)),
            (Change::Cancel, Done, None),
            (Change::Cancel, Failed, None),
        ] {
            assert_eq!(change.make(state), then, "{change:?} {state:?}");
        }
    }

    #[test]
    fn numbers_round_trip() {
        for n in 1..=4 {
            assert_eq!(Kind::from_i16(n).to_i16(), n);
        }
        for n in 1..=5 {
            assert_eq!(State::from_i16(n).to_i16(), n);
        }
    }
}
