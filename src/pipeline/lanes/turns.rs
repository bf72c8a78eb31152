//! Whose turn it is: the lanes of a taker one after the other, each as far as its own
//! limits, its receiver, its host and the capacity of the node let it.

use std::time::Instant;

use super::{Class, Lanes, Taker, Whose};
use crate::{domain::id::SubscriptionId, pipeline::job::Job};

impl Lanes {
    pub(super) fn enter_ring(&mut self, subscription: SubscriptionId) {
        if !self.knows(subscription.part()) {
            return;
        }
        let Some(lane) = self.by_id.get_mut(&subscription) else {
            return;
        };
        let Some(tenant) = lane.tenant.filter(|_| lane.may_send() && !lane.in_ring) else {
            return;
        };
        lane.in_ring = true;
        self.rings[lane.terms.class.index()].enter(tenant, subscription);
    }

    /// The next job of the lanes that the taker may take from, with a body of at
    /// most so many bytes. It is in flight from now on.
    pub(in crate::pipeline) fn take(&mut self, taker: &Taker, most: usize) -> Option<Job> {
        let job = self.take_at(taker, most, Instant::now())?;
        // What streams hold is bounded by their windows.
        if *taker != Taker::EMBEDDED {
            self.drop_body(&job);
        }
        Some(job)
    }

    pub(super) fn take_at(&mut self, taker: &Taker, most: usize, at: Instant) -> Option<Job> {
        self.resume(at);
        self.turn = self.turn.wrapping_add(1);
        let first = self.turn;
        if let Whose::Only(only) = &taker.whose {
            let turns = (0..only.len()).map(|n| only[(first + n) % only.len()]);
            for subscription in turns {
                let wanted = self.knows(subscription.part())
                    && self.by_id.get(&subscription).is_some_and(|lane| {
                        taker.classes.contains(&lane.terms.class)
                            && lane.may_send()
                            && lane.next_bytes() <= most
                            && self.hosts.is_free(lane.terms.host, lane.in_flight)
                    });
                // It stays in its ring: whoever comes to it there looks again.
                if wanted && let Some(job) = self.take_from(subscription, at) {
                    return Some(job);
                }
            }
            return None;
        }
        let classes = taker.classes.len();
        (0..classes).find_map(|n| {
            let class = taker.classes[(first + n) % classes];
            self.take_turn(class, &taker.whose, most, at)
        })
    }

    fn take_turn(&mut self, class: Class, whose: &Whose, most: usize, at: Instant) -> Option<Job> {
        loop {
            let ring = &mut self.rings[class.index()];
            let subscription = match whose {
                Whose::Tenant(tenant) => ring.next_of(*tenant)?,
                Whose::All | Whose::Only(_) => ring.next()?,
            };
            let Some(lane) = self.by_id.get_mut(&subscription) else {
                continue;
            };
            let known = self.known >> subscription.part().get() & 1 == 1;
            if !lane.may_send() || !known {
                lane.in_ring = false;
                continue;
            }
            if lane.terms.class != class {
                lane.in_ring = false;
                self.enter_ring(subscription);
                continue;
            }
            // A lane never has more than is left over for all others: with ten
            // receivers that hang, each holds an eleventh of the capacity at
            // most, and an eleventh stays free.
            let free = self.capacity.saturating_sub(self.in_flight);
            if class.shares_capacity() && lane.in_flight > 0 && lane.in_flight as usize >= free {
                self.sated.push_back(subscription);
                continue;
            }
            if !self
                .hosts
                .has_room(lane.terms.host, subscription, lane.in_flight)
            {
                continue;
            }
            lane.in_ring = false;
            if lane.next_bytes() > most {
                self.enter_ring(subscription);
                return None;
            }
            if let Some(job) = self.take_from(subscription, at) {
                return Some(job);
            }
        }
    }

    /// The next job of a lane, unless its receiver is to be spared for a while.
    fn take_from(&mut self, subscription: SubscriptionId, at: Instant) -> Option<Job> {
        let clock = self.clock(at);
        let lane = self.by_id.get_mut(&subscription)?;
        if let Err(wait) = lane.receiver.pace(lane.terms.rate, clock.now) {
            self.resume_at(clock.now + wait, subscription);
            return None;
        }
        let mut job = lane.next()?;
        lane.receiver.sends(&mut job, clock, at);
        self.hosts.sent(lane.terms.host);
        lane.in_flight += 1;
        if lane.terms.class.shares_capacity() {
            self.in_flight += 1;
        } else {
            self.streamed += 1;
        }
        self.waiting -= 1;
        self.enter_ring(subscription);
        self.want_fetch(subscription);
        Some(job)
    }
}
