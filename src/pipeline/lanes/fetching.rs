//! What the store has for lanes: which of them ask it for more, and when they are
//! looked at again.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use super::{FETCH, LOW, Lanes};
use crate::{domain::id::SubscriptionId, pipeline::job::Fetch};

/// Looks at one lane within this time are one.
const TICK: Duration = Duration::from_millis(20);

impl Lanes {
    /// The store has or may have due rows of this lane.
    pub(in crate::pipeline) fn sign(&mut self, subscription: SubscriptionId) {
        self.by_id.entry(subscription).or_default().signs += 1;
        self.want_fetch(subscription);
    }

    pub(super) fn want_fetch(&mut self, subscription: SubscriptionId) {
        let Some(lane) = self.by_id.get_mut(&subscription) else {
            return;
        };
        // Of what waits only the stored ones count: fresh ones must not keep older
        // rows out. One that is not well is asked with one.
        let hungry = if lane.receiver.is_well() {
            lane.stored.len() < LOW
        } else {
            lane.receiver.may_send() && lane.waiting() == 0
        };
        let hungry = hungry && self.known >> subscription.part().get() & 1 == 1;
        if lane.signs != lane.seen && !lane.fetching && !lane.wants_fetch && hungry {
            lane.wants_fetch = true;
            self.fetches.push_back(subscription);
        }
    }

    /// What to fetch now, of lanes that may send. The others are signed again when
    /// they may.
    pub(in crate::pipeline) fn fetches(
        &mut self,
        most: usize,
        may_send: impl Fn(SubscriptionId) -> bool,
    ) -> Vec<Fetch> {
        let mut out = Vec::new();
        let mut left = self.room().min(most);
        while left > 0 && out.len() < 64 {
            let Some(subscription) = self.fetches.pop_front() else {
                break;
            };
            let Some(lane) = self.by_id.get_mut(&subscription) else {
                continue;
            };
            lane.wants_fetch = false;
            if !may_send(subscription) {
                lane.seen = lane.signs;
                continue;
            }
            // Since it queued up it may have been found ill. It is fetched for once
            // it may be asked.
            if !lane.receiver.may_send() {
                continue;
            }
            lane.fetching = true;
            let limit = if lane.receiver.is_well() {
                FETCH.min(left)
            } else {
                1
            };
            left -= limit;
            out.push(Fetch {
                subscription,
                limit,
                signs: lane.signs,
            });
        }
        out
    }

    /// A fetch ended with so many rows; fewer than asked for means that the
    /// store has no more for now.
    pub(in crate::pipeline) fn fetched(&mut self, fetch: Fetch, rows: Option<usize>) {
        if let Some(lane) = self.by_id.get_mut(&fetch.subscription) {
            lane.fetching = false;
            if rows.is_some_and(|n| n < fetch.limit) {
                lane.seen = fetch.signs;
            }
            self.want_fetch(fetch.subscription);
        }
    }

    /// Looks at a lane again at that time.
    pub(in crate::pipeline) fn wake_at(&mut self, at: Instant, subscription: SubscriptionId) {
        let tick = self.tick_of(at);
        let lane = self.by_id.entry(subscription).or_default();
        if lane.wakes.insert(tick) {
            self.timers.push(Reverse((tick, subscription)));
        }
    }

    /// The tick that ends at that time or just after it.
    fn tick_of(&self, at: Instant) -> u64 {
        let millis = at.saturating_duration_since(self.started).as_millis();
        u64::try_from(millis.div_ceil(TICK.as_millis())).unwrap_or(u64::MAX)
    }

    /// When the next lane is to be looked at.
    pub(in crate::pipeline) fn next_wake(&self) -> Option<Instant> {
        let Reverse((tick, _)) = self.timers.peek()?;
        self.started
            .checked_add(TICK * u32::try_from(*tick).unwrap_or(u32::MAX))
    }

    /// Looks at every lane whose time has come.
    pub(in crate::pipeline) fn wake(&mut self, now: Instant) {
        while self.next_wake().is_some_and(|at| at <= now) {
            let Some(Reverse((tick, subscription))) = self.timers.pop() else {
                return;
            };
            if let Some(lane) = self.by_id.get_mut(&subscription)
                && lane.wakes.remove(&tick)
            {
                self.sign(subscription);
            }
        }
    }
}
