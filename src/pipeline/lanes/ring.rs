//! Turns: first among tenants, then among the subscriptions of one tenant.

use std::collections::{HashMap, VecDeque};

use crate::domain::id::{SubscriptionId, TenantId};

/// The lanes of one class that may send, in the order of their turns.
#[derive(Default)]
pub(super) struct Ring {
    tenants: VecDeque<TenantId>,
    turns: HashMap<TenantId, Turns>,
}

#[derive(Default)]
struct Turns {
    subscriptions: VecDeque<SubscriptionId>,
    /// Whether its tenant is in the ring: one that a taker of its own has emptied
    /// leaves it at its next turn.
    listed: bool,
}

impl Ring {
    /// Adds a lane behind all others.
    pub(super) fn enter(&mut self, tenant: TenantId, subscription: SubscriptionId) {
        let turns = self.turns.entry(tenant).or_default();
        turns.subscriptions.push_back(subscription);
        if !turns.listed {
            turns.listed = true;
            self.tenants.push_back(tenant);
        }
    }

    /// Takes the next lane out, of any tenant.
    pub(super) fn next(&mut self) -> Option<SubscriptionId> {
        loop {
            let tenant = self.tenants.pop_front()?;
            let Some(turns) = self.turns.get_mut(&tenant) else {
                continue;
            };
            let subscription = turns.subscriptions.pop_front();
            if turns.subscriptions.is_empty() {
                self.turns.remove(&tenant);
            } else {
                self.tenants.push_back(tenant);
            }
            if subscription.is_some() {
                return subscription;
            }
        }
    }

    /// Takes the next lane of one tenant out.
    pub(super) fn next_of(&mut self, tenant: TenantId) -> Option<SubscriptionId> {
        self.turns.get_mut(&tenant)?.subscriptions.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Part;

    // W8, A8: who takes of one tenant alone neither gives that tenant more turns
    // nor takes away those of others.
    #[test]
    fn a_taker_of_one_tenant_leaves_the_turns_as_they_are() {
        let part = Part::new(1);
        let (a, b) = (TenantId::new(1, part), TenantId::new(2_000, part));
        let subs: Vec<_> = (0..6).map(|n| SubscriptionId::new(n, part)).collect();
        let mut ring = Ring::default();
        for _ in 0..100 {
            ring.enter(a, subs[0]);
            assert_eq!(ring.next_of(a), Some(subs[0]));
            assert_eq!(ring.next_of(a), None);
        }
        assert_eq!(ring.tenants.len(), 1);
        for s in &subs[..3] {
            ring.enter(a, *s);
        }
        for s in &subs[3..] {
            ring.enter(b, *s);
        }
        let order: Vec<_> = std::iter::from_fn(|| ring.next()).collect();
        let turns = [0, 3, 1, 4, 2, 5].map(|n: usize| subs[n]);
        assert_eq!(order, turns);
        assert!(ring.turns.is_empty());
    }
}
