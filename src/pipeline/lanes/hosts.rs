//! Attempts under way to one host, over all subscriptions and tenants: no host gets
//! more than its share of this node.

use std::collections::{HashMap, VecDeque};

use crate::domain::id::SubscriptionId;

#[derive(Default)]
struct Host {
    in_flight: usize,
    /// Lanes whose turn came while it had its share.
    waiting: VecDeque<SubscriptionId>,
}

/// The hosts that something is under way to.
#[derive(Default)]
pub(super) struct Hosts {
    /// 0: any number; then nothing is counted.
    most: usize,
    by_id: HashMap<u64, Host>,
}

impl Hosts {
    /// Sets how many attempts may be under way to one host. Answers the lanes that
    /// may try again.
    pub(super) fn share(
        &mut self,
        most: usize,
        counts: impl Iterator<Item = (u64, u32)>,
    ) -> Vec<SubscriptionId> {
        if most == self.most {
            return Vec::new();
        }
        let freed = self
            .by_id
            .values_mut()
            .flat_map(|h| h.waiting.drain(..))
            .collect();
        self.by_id.clear();
        self.most = most;
        if most > 0 {
            for (host, n) in counts.filter(|(host, n)| *host != 0 && *n > 0) {
                self.by_id.entry(host).or_default().in_flight += n as usize;
            }
        }
        freed
    }

    const fn counts(&self, host: u64) -> bool {
        self.most > 0 && host != 0
    }

    /// Whether a lane with so many under way may send one more to its host; one that
    /// may not waits for it. As with the node's capacity none has more than is left over
    /// for all others: some that hang must not keep the host's share from the rest.
    pub(super) fn has_room(&mut self, host: u64, lane: SubscriptionId, in_flight: u32) -> bool {
        let room = self.is_free(host, in_flight);
        if !room && let Some(found) = self.by_id.get_mut(&host) {
            found.waiting.push_back(lane);
        }
        room
    }

    /// Whether a lane with so many under way may send one more to its host.
    pub(super) fn is_free(&self, host: u64, in_flight: u32) -> bool {
        if !self.counts(host) {
            return true;
        }
        self.by_id.get(&host).is_none_or(|found| {
            let free = self.most.saturating_sub(found.in_flight);
            free > 0 && (in_flight == 0 || (in_flight as usize) < free)
        })
    }

    /// One more is under way.
    pub(super) fn sent(&mut self, host: u64) {
        if self.counts(host) {
            self.by_id.entry(host).or_default().in_flight += 1;
        }
    }

    /// One less is under way; the lanes that may try now.
    pub(super) fn landed(&mut self, host: u64) -> VecDeque<SubscriptionId> {
        self.left(host, 1)
    }

    /// What a lane has under way counts for another host from now on; the lanes that
    /// may try now.
    pub(super) fn moved(&mut self, from: u64, to: u64, n: u32) -> VecDeque<SubscriptionId> {
        if self.counts(to) && n > 0 {
            self.by_id.entry(to).or_default().in_flight += n as usize;
        }
        self.left(from, n as usize)
    }

    /// Two may try for each that left; all, once nothing is under way: then none would
    /// be told later.
    fn left(&mut self, host: u64, n: usize) -> VecDeque<SubscriptionId> {
        if !self.counts(host) {
            return VecDeque::new();
        }
        let Some(found) = self.by_id.get_mut(&host) else {
            return VecDeque::new();
        };
        found.in_flight = found.in_flight.saturating_sub(n);
        if found.in_flight == 0 {
            return self.by_id.remove(&host).unwrap_or_default().waiting;
        }
        let n = (2 * n).min(found.waiting.len());
        found.waiting.drain(..n).collect()
    }
}
