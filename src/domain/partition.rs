//! Which session is to own which partition. Every node comes to the same answer
//! by itself: the session whose hash with the partition is the greatest
//! (rendezvous hashing). A session that comes draws its share from all others
//! evenly; one that goes leaves behind its own and nothing else moves.

use super::id::Part;

/// What a node is to do so that partitions get to where they belong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be taken: nobody has them.
    pub take: Vec<Part>,
    /// To be handed over, each with the session that it belongs to.
    pub give: Vec<(Part, i64)>,
}

/// The session that a partition belongs to; none where there are no sessions.
#[must_use]
pub fn belongs_to(part: Part, sessions: &[i64]) -> Option<i64> {
    sessions
        .iter()
        .copied()
        .max_by_key(|s| (weight(part, *s), *s))
}

/// What session `own` is to do, where `owners` has each partition's live owner, 0
/// for none, and `sessions` are those that take partitions. Partitions without an
/// owner are left to whom they belong to, unless they are `stranded`: nobody took
/// them for a while.
#[must_use]
pub fn plan(
    own: i64,
    owners: &[(Part, i64)],
    sessions: &[i64],
    stranded: impl Fn(Part) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    let takes = sessions.contains(&own);
    for (part, owner) in owners {
        match belongs_to(*part, sessions) {
            Some(to) if *owner == own && to != own => plan.give.push((*part, to)),
            Some(to) if *owner == 0 && takes && (to == own || stranded(*part)) => {
                plan.take.push(*part);
            }
            _ => {}
        }
    }
    plan
}

/// SplitMix64 over both numbers: sessions are counted up, and their neighbours
/// must not have neighbouring weights.
fn weight(part: Part, session: i64) -> u64 {
    let mixed = mix(session.cast_unsigned().wrapping_add(0x9e37_79b9_7f4a_7c15));
    mix(mixed ^ u64::from(part.get().unsigned_abs()).wrapping_mul(0xd1b5_4a32_d192_ed03))
}

fn mix(mut n: u64) -> u64 {
    n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::*;

    fn sessions() -> impl Strategy<Value = Vec<i64>> {
        prop::collection::btree_set(1..1_000_000i64, 1..12).prop_map(Vec::from_iter)
    }

    fn owners(sessions: &[i64]) -> Vec<(Part, i64)> {
        Part::all()
            .map(|p| (p, belongs_to(p, sessions).unwrap()))
            .collect()
    }

    proptest! {
        // N2: every partition belongs to exactly one session, in whatever order
        // a node has read them.
        #[test]
        fn every_node_says_the_same(sessions in sessions()) {
            let backwards: Vec<i64> = sessions.iter().rev().copied().collect();
            for part in Part::all() {
                let owner = belongs_to(part, &sessions).unwrap();
                prop_assert!(sessions.contains(&owner));
                prop_assert_eq!(belongs_to(part, &backwards), Some(owner));
            }
            let taking: usize = sessions.iter()
                .map(|s| plan(*s, &Part::all().map(|p| (p, 0)).collect::<Vec<_>>(), &sessions, |_| false).take.len())
                .sum();
            prop_assert_eq!(taking, 64);
        }

        // N2: a session that comes gets partitions, and none moves between others;
        // one that goes leaves its own, and nothing else moves.
        #[test]
        fn only_the_share_of_who_comes_or_goes_moves(sessions in sessions(), more in 1_000_001..2_000_000i64) {
            let before = owners(&sessions);
            let mut with = sessions.clone();
            with.push(more);
            let after: HashMap<Part, i64> = owners(&with).into_iter().collect();
            for (part, owner) in &before {
                prop_assert!(after[part] == *owner || after[part] == more);
            }
            let given: BTreeSet<(Part, i64)> = sessions.iter()
                .flat_map(|s| plan(*s, &before, &with, |_| false).give)
                .collect();
            prop_assert!(given.iter().all(|(_, to)| *to == more));
            prop_assert_eq!(given.len(), after.values().filter(|o| **o == more).count());
        }

        // N2: nobody takes what another has, nor gives what it has not.
        #[test]
        fn a_plan_touches_what_is_free_or_its_own(
            sessions in sessions(), had in prop::collection::vec(0..12usize, 64), stranded: u64,
        ) {
            let owners: Vec<(Part, i64)> = Part::all().zip(&had)
                .map(|(p, n)| (p, sessions.get(*n).copied().unwrap_or(0)))
                .collect();
            let own = sessions[0];
            let plan = plan(own, &owners, &sessions, |p| stranded >> p.get() & 1 == 1);
            for (part, owner) in &owners {
                let mine = belongs_to(*part, &sessions) == Some(own);
                let free = *owner == 0 && (mine || stranded >> part.get() & 1 == 1);
                prop_assert_eq!(plan.take.contains(part), free);
                let leaves = *owner == own && !mine;
                prop_assert_eq!(plan.give.iter().any(|(p, _)| p == part), leaves);
            }
        }
    }

    // N2: a join moves about its share.
    #[test]
    fn shares_are_about_even() {
        for n in 2..9i64 {
            let mut total = 0;
            for first in 1..201 {
                let sessions: Vec<i64> = (first..first + n).collect();
                let own = owners(&sessions)
                    .iter()
                    .filter(|(_, o)| *o == first)
                    .count();
                assert!(own > 0, "{n} sessions from {first}");
                total += own;
            }
            let share = f64::from(u32::try_from(total).unwrap()) / 200.0;
            let even = 64.0 / f64::from(u32::try_from(n).unwrap());
            assert!((share - even).abs() < even / 8.0, "{n} sessions: {share}");
        }
    }

    // N2: who goes, or is not ready, takes nothing and gives away all it has.
    #[test]
    fn who_leaves_gives_everything() {
        let all: Vec<(Part, i64)> = Part::all().map(|p| (p, 7)).collect();
        let plan = plan(7, &all, &[8, 9], |_| true);
        assert_eq!(plan.take, []);
        assert_eq!(plan.give.len(), 64);
        assert_eq!(super::plan(7, &all, &[], |_| true), Plan::default());
    }
}
