//! A delivery's state machine: one pure function decides what follows from an
//! attempt's outcome.
//!
//! ```text
//! PENDING ─► SENDING ─► DELIVERED
//!              │  ▲
//!              ▼  │ due again
//!           RETRYING ··· the last one failed ─► FAILED ─► DEAD
//! ```

use std::time::Duration;

use super::{
    id::{DeliveryId, EventId, Micros, RedriveId, SubscriptionId, TenantId},
    trace::Trace,
};

/// How far a delivery is. `Sending` and `Parked` follow from a lease and from
/// the subscription, and are never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Not tried yet.
    Pending,
    /// Leased to a worker.
    Sending,
    /// To be tried again.
    Retrying,
    /// The receiver answered 2xx.
    Delivered,
    /// The last attempt failed; dead soon.
    Failed,
    /// Given up, and kept.
    Dead,
    /// Held.
    Parked,
    /// Not sent, on purpose.
    Skipped,
    /// Its signatures kept getting too old before they could leave.
    ReplayExpired,
    /// Its subscription was deleted.
    Cancelled,
}

impl Status {
    /// The number that it is stored as.
    #[must_use]
    pub const fn to_i16(self) -> i16 {
        match self {
            Self::Pending => 1,
            Self::Sending => 2,
            Self::Retrying => 3,
            Self::Delivered => 4,
            Self::Failed => 5,
            Self::Dead => 6,
            Self::Parked => 7,
            Self::Skipped => 8,
            Self::ReplayExpired => 9,
            Self::Cancelled => 10,
        }
    }

    /// The inverse of [`to_i16`](Self::to_i16).
    #[must_use]
    pub const fn from_i16(n: i16) -> Self {
        match n {
            2 => Self::Sending,
            3 => Self::Retrying,
            4 => Self::Delivered,
            5 => Self::Failed,
            6 => Self::Dead,
            7 => Self::Parked,
            8 => Self::Skipped,
            9 => Self::ReplayExpired,
            10 => Self::Cancelled,
            _ => Self::Pending,
        }
    }
}

/// When failed attempts are repeated.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Schedule {
    /// How many attempts are made.
    pub max_attempts: u16,
    /// Seconds to wait after each failed attempt. A list too short for the
    /// attempts repeats its last entry; an entry after the last attempt is the
    /// wait before the delivery is dead.
    pub backoff: Vec<u32>,
}

impl Schedule {
    /// Three attempts, 60 and 300 seconds apart, then 900 until dead.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            max_attempts: 3,
            backoff: vec![60, 300, 900],
        }
    }

    /// Three attempts, 2 and 4 seconds apart, then dead.
    #[must_use]
    pub fn burst() -> Self {
        Self {
            max_attempts: 3,
            backoff: vec![2, 4],
        }
    }

    /// The wait after the attempt of that number failed, if another follows.
    fn wait_after(&self, attempt: u16) -> Option<u32> {
        if attempt >= self.max_attempts {
            return None;
        }
        let entry = usize::from(attempt.max(1)) - 1;
        Some(
            self.backoff
                .get(entry)
                .or(self.backoff.last())
                .copied()
                .unwrap_or(0),
        )
    }

    /// The wait between the last attempt's failure and the delivery's death.
    fn wait_before_dead(&self) -> Option<u32> {
        self.backoff
            .get(usize::from(self.max_attempts) - 1)
            .copied()
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver answered 2xx.
    Delivered,
    /// It failed in a way that passes: 408, 425, 429, 5xx, no answer.
    Retryable {
        /// What `Retry-After` asked for.
        retry_after: Option<Duration>,
    },
    /// The receiver refused it for good: any other status.
    Permanent,
    /// It was not sent: its signature had become older than the replay window.
    ReplayExpired,
    /// It was not sent: the delivery is older than its subscription wants.
    TooOld,
    /// It was not sent: its subscription is gone.
    SubscriptionGone,
    /// It was not sent and nothing was tried: give it back.
    Released,
}

/// What of a delivery its next state depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Attempts that were charged before this one.
    pub attempts: u16,
    /// How often its signature had become too old before this time.
    pub replays: u16,
    /// Whether this attempt is a retry by hand of a failed or dead delivery.
    pub by_hand: bool,
    /// How long it may still live, if its subscription limits its age.
    pub life_left: Option<Duration>,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Finished: delivered.
    Delivered,
    /// Due again after that time; an attempt was charged.
    Retry(Duration),
    /// The last attempt failed; dead after that time.
    Failed(Duration),
    /// Dead.
    Dead,
    /// Due again at once, with a new signature; no attempt was charged.
    SignAgain,
    /// Finished: its signatures kept getting too old.
    ReplayExpired,
    /// Finished: cancelled.
    Cancelled,
    /// As before: nothing was tried.
    Released,
}

/// The longest that `Retry-After` is honoured.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Decides what follows from an attempt's outcome. `jitter`, 0 to 1, stretches
/// waits of more than 10 seconds by up to a tenth, so that what failed together
/// does not come back together.
#[must_use]
pub fn decide(progress: Progress, outcome: Outcome, schedule: &Schedule, jitter: f64) -> Next {
    match outcome {
        Outcome::Delivered => Next::Delivered,
        Outcome::Permanent | Outcome::TooOld => Next::Dead,
        Outcome::SubscriptionGone => Next::Cancelled,
        Outcome::Released => Next::Released,
        Outcome::ReplayExpired if progress.replays + 1 >= schedule.max_attempts => {
            Next::ReplayExpired
        }
        Outcome::ReplayExpired => Next::SignAgain,
        Outcome::Retryable { .. } if progress.by_hand => Next::Dead,
        Outcome::Retryable { retry_after } => {
            match schedule.wait_after(progress.attempts.saturating_add(1)) {
                Some(seconds) => {
                    let wait = stretched(seconds, jitter)
                        .max(retry_after.unwrap_or_default().min(MAX_RETRY_AFTER));
                    match progress.life_left {
                        Some(left) if left < wait => Next::Dead,
                        _ => Next::Retry(wait),
                    }
                }
                None => schedule
                    .wait_before_dead()
                    .map_or(Next::Dead, |s| Next::Failed(stretched(s, jitter))),
            }
        }
    }
}

fn stretched(seconds: u32, jitter: f64) -> Duration {
    let wait = Duration::from_secs(seconds.into());
    if seconds > 10 {
        wait.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 10.0)
    } else {
        wait
    }
}

/// What a receiver's HTTP status means.
#[must_use]
pub fn outcome_of_status(status: u16, retry_after: Option<Duration>) -> Outcome {
    match status {
        200..=299 => Outcome::Delivered,
        429 | 503 => Outcome::Retryable { retry_after },
        408 | 425 | 500..=599 => Outcome::Retryable { retry_after: None },
        _ => Outcome::Permanent,
    }
}

/// A delivery as its log shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its id.
    pub id: DeliveryId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its subscription.
    pub subscription: SubscriptionId,
    /// Its event.
    pub event: EventId,
    /// Its event's type; empty where the event is past its retention.
    pub event_type: String,
    /// How far it is.
    pub status: Status,
    /// How many attempts were charged.
    pub attempts: u16,
    /// When it is tried next.
    pub due_at: Option<Micros>,
    /// When it was finished.
    pub finished_at: Option<Micros>,
    /// The receiver's last HTTP status; 0: none.
    pub response_status: u16,
    /// Why it is not delivered.
    pub reason: String,
    /// Where its event came from.
    pub trace: Option<Trace>,
    /// The replay that made it; none: its event's publish did. Lists over many
    /// subscriptions leave it out.
    pub replay: Option<RedriveId>,
}

/// One try, as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attempt {
    /// 1 for the first.
    pub number: u16,
    /// The fence that it was sent under.
    pub token: i32,
    /// When it began.
    pub started_at: Micros,
    /// How long it took, in microseconds.
    pub took: Micros,
    /// How it ended.
    pub kind: AttemptKind,
    /// The receiver's HTTP status; 0: none.
    pub response_status: u16,
    /// Why it failed.
    pub error: String,
    /// The beginning of the receiver's answer.
    pub response: Vec<u8>,
    /// Which worker sent it.
    pub worker: String,
}

/// How an attempt ended, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttemptKind {
    /// 2xx.
    #[default]
    Delivered,
    /// To be repeated.
    Retryable,
    /// Not to be repeated.
    Permanent,
    /// Not sent: the signature was too old.
    ReplayExpired,
}

impl AttemptKind {
    /// The number that it is stored as.
    #[must_use]
    pub const fn to_i16(self) -> i16 {
        match self {
            Self::Delivered => 1,
            Self::Retryable => 2,
            Self::Permanent => 3,
            Self::ReplayExpired => 4,
        }
    }

    /// The inverse of [`to_i16`](Self::to_i16).
    #[must_use]
    pub const fn from_i16(n: i16) -> Self {
        match n {
            2 => Self::Retryable,
            3 => Self::Permanent,
            4 => Self::ReplayExpired,
            _ => Self::Delivered,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRESH: Progress = Progress {
        attempts: 0,
        replays: 0,
        by_hand: false,
        life_left: None,
    };

    fn failed(attempts: u16, schedule: &Schedule) -> Next {
        let progress = Progress { attempts, ..FRESH };
        decide(
            progress,
            Outcome::Retryable { retry_after: None },
            schedule,
            0.0,
        )
    }

    // A2: 60 and 300 lie between three attempts, 900 before DEAD.
    #[test]
    fn the_standard_schedule() {
        let s = Schedule::standard();
        assert_eq!(failed(0, &s), Next::Retry(Duration::from_secs(60)));
        assert_eq!(failed(1, &s), Next::Retry(Duration::from_secs(300)));
        assert_eq!(failed(2, &s), Next::Failed(Duration::from_secs(900)));
    }

    // A2: burst has no wait before DEAD.
    #[test]
    fn the_burst_schedule() {
        let s = Schedule::burst();
        assert_eq!(failed(0, &s), Next::Retry(Duration::from_secs(2)));
        assert_eq!(failed(1, &s), Next::Retry(Duration::from_secs(4)));
        assert_eq!(failed(2, &s), Next::Dead);
    }

    // A2: a list too short repeats its last entry and has no wait before DEAD.
    #[test]
    fn a_short_list_repeats_its_last_entry() {
        let s = Schedule {
            max_attempts: 4,
            backoff: vec![1, 7],
        };
        let waits: Vec<_> = (0..4).map(|n| failed(n, &s)).collect();
        let retry = |s| Next::Retry(Duration::from_secs(s));
        assert_eq!(waits, [retry(1), retry(7), retry(7), Next::Dead]);
    }

    // A2: a retry by hand is one attempt, then DEAD again.
    #[test]
    fn a_retry_by_hand_is_one_attempt() {
        let progress = Progress {
            by_hand: true,
            attempts: 3,
            ..FRESH
        };
        let outcome = Outcome::Retryable { retry_after: None };
        assert_eq!(
            decide(progress, outcome, &Schedule::standard(), 0.0),
            Next::Dead
        );
    }

    // A3: which statuses are retried, and Retry-After on 429 and 503 alone.
    #[test]
    fn statuses() {
        let wait = Some(Duration::from_secs(120));
        for status in [200, 201, 204, 299] {
            assert_eq!(outcome_of_status(status, wait), Outcome::Delivered);
        }
        for status in [429, 503] {
            assert_eq!(
                outcome_of_status(status, wait),
                Outcome::Retryable { retry_after: wait }
            );
        }
        for status in [408, 425, 500, 502, 504, 599] {
            assert_eq!(
                outcome_of_status(status, wait),
                Outcome::Retryable { retry_after: None }
            );
        }
        for status in [100, 301, 302, 307, 308, 400, 401, 404, 410, 422] {
            assert_eq!(outcome_of_status(status, wait), Outcome::Permanent);
        }
    }

    // S5: due again at once, and only after MAX_ATTEMPTS times the end.
    #[test]
    fn a_stale_signature_charges_no_attempt() {
        let s = Schedule::standard();
        for (replays, next) in [
            (0, Next::SignAgain),
            (1, Next::SignAgain),
            (2, Next::ReplayExpired),
        ] {
            let progress = Progress { replays, ..FRESH };
            assert_eq!(decide(progress, Outcome::ReplayExpired, &s, 0.5), next);
        }
    }

    // D3: an attempt that would come after the delivery's greatest age.
    #[test]
    fn a_delivery_does_not_outlive_its_greatest_age() {
        let outcome = Outcome::Retryable { retry_after: None };
        for (left, next) in [(59, Next::Dead), (60, Next::Retry(Duration::from_secs(60)))] {
            let life_left = Some(Duration::from_secs(left));
            let progress = Progress { life_left, ..FRESH };
            assert_eq!(decide(progress, outcome, &Schedule::standard(), 0.0), next);
        }
    }

    fn any_schedule() -> impl Strategy<Value = Schedule> {
        (1u16..=20, prop::collection::vec(1u32..=86_400, 0..20)).prop_map(
            |(max_attempts, backoff)| Schedule {
                max_attempts,
                backoff,
            },
        )
    }

    proptest! {
        // A1: whatever the receiver does, a delivery ends, and never after more
        // attempts than its schedule allows.
        #[test]
        fn every_delivery_ends(
            schedule in any_schedule(),
            statuses in prop::collection::vec(prop_oneof![Just(0u16), 100u16..600], 64),
            jitter in 0.0f64..1.0,
        ) {
            let mut progress = FRESH;
            let mut sent = 0u16;
            for status in statuses {
                let outcome = if status == 0 {
                    Outcome::ReplayExpired
                } else {
                    sent += 1;
                    outcome_of_status(status, None)
                };
                match decide(progress, outcome, &schedule, jitter) {
                    Next::Retry(_) => progress.attempts += 1,
                    Next::SignAgain => progress.replays += 1,
                    Next::Delivered => { prop_assert!((200..300).contains(&status)); break; }
                    _ => { prop_assert!(!(200..300).contains(&status)); break; }
                }
                prop_assert!(sent < schedule.max_attempts || outcome == Outcome::ReplayExpired);
                prop_assert!(progress.replays < schedule.max_attempts);
            }
            prop_assert!(sent <= schedule.max_attempts);
        }

        // A2, A3: never earlier than the schedule, at most a tenth later, and
        // Retry-After is honoured up to an hour.
        #[test]
        fn waits_are_the_schedules(
            schedule in any_schedule(),
            attempts in 0u16..20,
            asked in prop::option::of(0u64..10_000),
            jitter in 0.0f64..1.0,
        ) {
            let retry_after = asked.map(Duration::from_secs);
            let next = decide(Progress { attempts, ..FRESH }, Outcome::Retryable { retry_after }, &schedule, jitter);
            if let Next::Retry(wait) = next {
                let base = schedule.wait_after(attempts + 1).unwrap();
                let least = Duration::from_secs(base.into());
                prop_assert!(wait >= least);
                let honoured = retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
                prop_assert!(wait >= honoured);
                let most = if base > 10 { least.mul_f64(1.1) } else { least };
                prop_assert!(wait <= most.max(honoured) + Duration::from_millis(1));
            } else {
                prop_assert!(attempts + 1 >= schedule.max_attempts);
            }
        }
    }
}
