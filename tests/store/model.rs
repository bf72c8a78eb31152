//! Random sequences of verbs by two nodes, against a plain model of what the
//! contract says.

use std::{collections::HashMap, time::Duration};

use onering::{
    domain::{
        counter::Tally,
        delivery::Status,
        id::{DeliveryId, Part, SubscriptionId},
    },
    store::{Finish, Finished, Published, Session, Store},
};
use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence, TestRunner},
};

use crate::support::{
    build::{DEFAULT, Ends as _},
    store::{Db, Node, SECOND, everything},
};

contract![nothing_is_lost_and_nothing_is_leased_twice];

const NODES: usize = 2;
const SUBS: usize = 2;
const CASES: u32 = 100;

/// The model counts minutes. Whatever waits, waits for an hour, and the clock
/// is shifted by an hour and a half, so that the time that the test itself
/// takes decides nothing.
const HOUR: i64 = 60;
const SHIFT: i64 = 90;

#[derive(Debug, Clone, Copy)]
enum Verb {
    Publish {
        node: usize,
        sub: usize,
        lease: bool,
    },
    Claim {
        node: usize,
        sub: usize,
        limit: i64,
    },
    Finish {
        node: usize,
        which: usize,
        end: End,
    },
    Repeat {
        which: usize,
    },
    RetryByHand {
        which: usize,
    },
    Renew {
        node: usize,
    },
    Restart {
        node: usize,
    },
    EndSession {
        node: usize,
    },
    Take {
        node: usize,
    },
    FreeLost,
    Bury,
    Shift,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Delivered,
    Dead,
    Retry,
    SignAgain,
    Failed,
    Release,
}

fn verb() -> impl Strategy<Value = Verb> {
    let (node, sub, which) = (0..NODES, 0..SUBS, 0..64usize);
    let end = prop_oneof![
        2 => Just(End::Delivered),
        2 => Just(End::Dead),
        3 => Just(End::Retry),
        1 => Just(End::SignAgain),
        3 => Just(End::Failed),
        1 => Just(End::Release),
    ];
    prop_oneof![
        6 => (node.clone(), sub.clone(), any::<bool>())
            .prop_map(|(node, sub, lease)| Verb::Publish { node, sub, lease }),
        8 => (node.clone(), sub, 1..4i64)
            .prop_map(|(node, sub, limit)| Verb::Claim { node, sub, limit }),
        10 => (node.clone(), which.clone(), end)
            .prop_map(|(node, which, end)| Verb::Finish { node, which, end }),
        2 => which.clone().prop_map(|which| Verb::Repeat { which }),
        3 => which.prop_map(|which| Verb::RetryByHand { which }),
        3 => node.clone().prop_map(|node| Verb::Renew { node }),
        2 => node.clone().prop_map(|node| Verb::Restart { node }),
        1 => node.clone().prop_map(|node| Verb::EndSession { node }),
        4 => node.prop_map(|node| Verb::Take { node }),
        1 => Just(Verb::FreeLost),
        2 => Just(Verb::Bury),
        3 => Just(Verb::Shift),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// Waiting until that minute.
    Due(i64),
    /// Dead at that minute.
    Failed(i64),
    Dead,
    Delivered,
}

#[derive(Debug, Clone)]
struct Row {
    sub: SubscriptionId,
    place: Place,
    /// The session that holds it, and the state that it goes back to.
    lease: Option<Session>,
    /// The highest token that was seen.
    token: i32,
    attempts: u16,
    replays: u16,
    by_hand: bool,
    tried: bool,
}

/// The nodes under test, with what the contract says that they should see.
struct Run {
    nodes: [Node; NODES],
    /// When each node's session ends.
    ends: [i64; NODES],
    owner: Option<usize>,
    now: i64,
    subs: [SubscriptionId; SUBS],
    rows: HashMap<DeliveryId, Row>,
    /// In the order of their publishing.
    ids: Vec<DeliveryId>,
    /// Every lease that a node was ever given: it may think that it holds it.
    given: Vec<(usize, Box<onering::store::Leased>)>,
    /// What took effect.
    finished: Vec<Finish>,
    /// What was counted before this run, by state.
    counted: [i64; STATES.len()],
}

/// The states that are counted.
const STATES: [Status; 5] = [
    Status::Pending,
    Status::Retrying,
    Status::Failed,
    Status::Dead,
    Status::Delivered,
];

async fn counted(node: &Node) -> [i64; STATES.len()] {
    let mut tally = Tally::default();
    for count in node
        .counts(DEFAULT.id.part(), None, i64::MAX)
        .await
        .unwrap()
    {
        tally.add(count.what, count.n, false);
    }
    STATES.map(|s| tally.now(s))
}

const TTL: Duration = Duration::from_hours(1);

impl Run {
    async fn begin(stores: &[std::sync::Arc<dyn Store>; NODES]) -> Self {
        let nodes = [
            Node::idle(&stores[0], TTL).await,
            Node::idle(&stores[1], TTL).await,
        ];
        Self {
            counted: counted(&nodes[0]).await,
            nodes,
            ends: [HOUR; NODES],
            owner: None,
            now: 0,
            subs: [DEFAULT.sub(), DEFAULT.sub()],
            rows: HashMap::new(),
            ids: Vec::new(),
            given: Vec::new(),
            finished: Vec::new(),
        }
    }

    fn alive(&self, node: usize) -> bool {
        self.ends[node] > self.now
    }

    fn holds(&self, session: Session) -> bool {
        (0..NODES).any(|n| self.nodes[n].session == session && self.alive(n))
    }

    fn owns(&self, node: usize) -> bool {
        self.owner == Some(node) && self.alive(node)
    }

    /// What a node that died held; how many rows.
    fn free_lost(&mut self) -> u64 {
        let lost: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, r)| r.lease.is_some_and(|s| !self.holds(s)))
            .map(|(id, _)| *id)
            .collect();
        for id in &lost {
            self.rows.get_mut(id).unwrap().lease = None;
        }
        lost.len() as u64
    }

    fn status(&self, id: DeliveryId) -> Status {
        let row = &self.rows[&id];
        match row.place {
            _ if row.lease.is_some() => Status::Sending,
            Place::Due(_) if row.tried => Status::Retrying,
            Place::Due(_) => Status::Pending,
            Place::Failed(at) if at > self.now => Status::Failed,
            Place::Failed(_) | Place::Dead => Status::Dead,
            Place::Delivered => Status::Delivered,
        }
    }

    async fn carry_out(&mut self, verb: Verb) {
        match verb {
            Verb::Publish { node, sub, lease } => self.publish(node, sub, lease).await,
            Verb::Claim { node, sub, limit } => self.claim(node, sub, limit).await,
            Verb::Finish { node, which, end } => {
                let own: Vec<_> = self.given.iter().filter(|(n, _)| *n == node).collect();
                if let Some((_, leased)) = own.get(which % own.len().max(1)) {
                    let finish = match end {
                        End::Delivered => leased.delivered(),
                        End::Dead => leased.dead(),
                        End::Retry => leased.retried(TTL),
                        End::SignAgain => leased.sign_again(),
                        End::Failed => leased.failed(TTL),
                        End::Release => leased.released(),
                    };
                    self.finish(node, &finish, end).await;
                }
            }
            Verb::Repeat { which } => {
                if let Some(finish) = self.finished.get(which % self.finished.len().max(1)) {
                    assert_eq!(self.nodes[0].finish(finish).await, Finished::Before);
                }
            }
            Verb::RetryByHand { which } => self.retry_by_hand(which).await,
            Verb::Renew { node } => {
                let n = &self.nodes[node];
                let renewed = n.renew_session(n.session, TTL).await.unwrap();
                assert_eq!(renewed, self.alive(node));
                if renewed {
                    self.ends[node] = self.now + HOUR;
                }
            }
            Verb::Restart { node } => {
                // The old session is left to expire, as one that was killed.
                if !self.alive(node) {
                    if self.owner == Some(node) {
                        self.owner = None;
                    }
                    self.nodes[node] = Node::idle(&self.nodes[node].store, TTL).await;
                    self.ends[node] = self.now + HOUR;
                }
            }
            Verb::EndSession { node } => {
                let n = &self.nodes[node];
                n.end_session(n.session).await.unwrap();
                self.ends[node] = i64::MIN;
                if self.owner == Some(node) {
                    self.owner = None;
                }
                let session = n.session;
                for row in self.rows.values_mut() {
                    row.lease = row.lease.filter(|s| *s != session);
                }
            }
            Verb::Take { node } => {
                let n = &self.nodes[node];
                let parts = n.take_all().await;
                if self.alive(node) && self.owner.is_none_or(|o| !self.alive(o)) {
                    self.owner = Some(node);
                    self.free_lost();
                }
                let expected = if self.owns(node) { 64 } else { 0 };
                assert_eq!(parts.len(), expected);
            }
            Verb::FreeLost => {
                let parts: Vec<Part> = Part::all().collect();
                let freed = self.nodes[0].free_lost(&parts).await.unwrap();
                assert_eq!(freed, self.free_lost());
            }
            Verb::Bury => {
                let part = DEFAULT.id.part();
                let buried = self.nodes[0].bury(&[part], 1000).await.unwrap();
                let mut expected = 0;
                for row in self.rows.values_mut() {
                    if matches!(row.place, Place::Failed(at) if at <= self.now) {
                        row.place = Place::Dead;
                        expected += 1;
                    }
                }
                assert_eq!(buried, expected);
            }
            Verb::Shift => {
                self.nodes[0].pass(SHIFT * 60 * SECOND).await;
                self.now += SHIFT;
            }
        }
        self.compare_leases().await;
        self.compare_counts().await;
    }

    /// The counters say how many are in each state. A lease is none, and what
    /// failed is not dead before it is buried.
    async fn compare_counts(&self) {
        let mut expected = self.counted;
        for row in self.rows.values() {
            let state = match row.place {
                Place::Due(_) => usize::from(row.tried),
                Place::Failed(_) => 2,
                Place::Dead => 3,
                Place::Delivered => 4,
            };
            expected[state] += 1;
        }
        assert_eq!(counted(&self.nodes[0]).await, expected);
    }

    async fn publish(&mut self, node: usize, sub: usize, lease: bool) {
        let sub = self.subs[sub];
        let event = DEFAULT.event().to(&[sub]);
        let event = if lease { event.leased() } else { event }.build();
        let leased = lease && self.owns(node);
        match self.nodes[node].publish_one(&event).await {
            Published::Accepted { leased: answer } => assert_eq!(answer, leased),
            other => panic!("{other:?}"),
        }
        let id = event.deliveries[0].id;
        self.ids.push(id);
        let row = Row {
            sub,
            place: Place::Due(self.now),
            lease: leased.then_some(self.nodes[node].session),
            token: i32::from(leased),
            attempts: 0,
            replays: 0,
            by_hand: false,
            tried: false,
        };
        self.rows.insert(id, row);
        if leased {
            let leased = onering::store::Leased {
                id,
                tenant: event.tenant,
                subscription: sub,
                event: event.event,
                event_type: event.event_type,
                body: event.body,
                trace: None,
                token: 1,
                attempts: 0,
                replays: 0,
                by_hand: false,
                age: 0,
                ordering_key: None,
            };
            self.given.push((node, Box::new(leased)));
        }
    }

    async fn claim(&mut self, node: usize, sub: usize, limit: i64) {
        let sub = self.subs[sub];
        let mut due: Vec<(i64, DeliveryId)> = Vec::new();
        if self.owns(node) {
            due.extend(self.rows.iter().filter_map(|(id, r)| match r.place {
                Place::Due(at) if at <= self.now && r.lease.is_none() && r.sub == sub => {
                    Some((at, *id))
                }
                _ => None,
            }));
        }
        due.sort_unstable();
        let leased = self.nodes[node].claim(sub, limit).await;
        assert_eq!(
            leased.len() as i64,
            limit.min(due.len() as i64),
            "of {due:?}"
        );
        for (leased, (at, _)) in leased.into_iter().zip(due) {
            let row = self.rows.get_mut(&leased.id).unwrap();
            assert_eq!(row.lease, None, "leased twice");
            assert_eq!(row.place, Place::Due(at), "the earliest first");
            assert!(
                leased.token > row.token,
                "{} after {}",
                leased.token,
                row.token
            );
            assert_eq!(
                (leased.attempts, leased.replays, leased.by_hand),
                (row.attempts, row.replays, row.by_hand)
            );
            row.token = leased.token;
            row.lease = Some(self.nodes[node].session);
            self.given.push((node, Box::new(leased)));
        }
    }

    async fn finish(&mut self, node: usize, finish: &Finish, end: End) {
        let answer = self.nodes[node].finish(finish).await;
        let before = self
            .finished
            .iter()
            .any(|f| f.id == finish.id && f.token == finish.token);
        let row = self.rows.get_mut(&finish.id).unwrap();
        // The fence: the row is leased, and under this very token.
        if row.lease.is_none() || row.token != finish.token {
            let expected = if before {
                Finished::Before
            } else {
                Finished::Stale
            };
            assert_eq!(answer, expected);
            return;
        }
        assert_eq!(answer, Finished::Now);
        row.lease = None;
        match end {
            End::Release => return,
            End::Delivered => row.place = Place::Delivered,
            End::Dead => row.place = Place::Dead,
            End::Retry => row.place = Place::Due(self.now + HOUR),
            End::SignAgain => row.place = Place::Due(self.now),
            End::Failed => row.place = Place::Failed(self.now + HOUR),
        }
        row.tried = true;
        if matches!(end, End::SignAgain) {
            row.replays += 1;
        } else {
            row.attempts += 1;
        }
        self.finished.push(finish.clone());
    }

    async fn retry_by_hand(&mut self, which: usize) {
        let Some(id) = self.ids.get(which % self.ids.len().max(1)).copied() else {
            return;
        };
        let before = self.nodes[0].retry_by_hand(id).await.unwrap();
        assert_eq!(before, Some(self.status(id)));
        let row = self.rows.get_mut(&id).unwrap();
        if row.lease.is_some() || row.place == Place::Delivered {
            return;
        }
        match row.place {
            Place::Due(_) => {}
            Place::Failed(_) => row.by_hand = true,
            Place::Dead => {
                row.by_hand = true;
                row.replays = 0;
            }
            Place::Delivered => unreachable!(),
        }
        row.place = Place::Due(self.now);
        row.tried |= row.by_hand;
    }

    /// Each session holds what it should, under the right token.
    async fn compare_leases(&self) {
        for node in &self.nodes {
            let mut expected: Vec<_> = self
                .rows
                .iter()
                .filter(|(_, r)| r.lease == Some(node.session))
                .map(|(id, r)| (*id, r.token))
                .collect();
            expected.sort_unstable();
            assert_eq!(node.held().await, expected);
        }
    }

    /// Every accepted delivery is in exactly one place.
    async fn compare_all(&self) {
        for sub in self.subs {
            let found = self.nodes[0]
                .deliveries_of_subscription(sub, None, everything())
                .await
                .unwrap();
            let mut found: Vec<_> = found.iter().map(|d| (d.id, d.status, d.attempts)).collect();
            found.sort_unstable_by_key(|f| f.0);
            let mut expected: Vec<_> = self
                .rows
                .iter()
                .filter(|(_, r)| r.sub == sub)
                .map(|(id, r)| (*id, self.status(*id), r.attempts))
                .collect();
            expected.sort_unstable_by_key(|e| e.0);
            assert_eq!(found, expected);
        }
    }

    /// Leaves nothing to the next run: its rows are of other subscriptions.
    async fn end(self) {
        for sub in self.subs {
            self.nodes[0].cancel(sub.part(), sub, 1000).await.unwrap();
        }
        for node in &self.nodes {
            node.end_session(node.session).await.unwrap();
        }
        let parts: Vec<Part> = Part::all().collect();
        self.nodes[0].free_lost(&parts).await.unwrap();
        for sub in self.subs {
            self.nodes[0].cancel(sub.part(), sub, 1000).await.unwrap();
        }
    }
}

// A1, N2, W2
async fn nothing_is_lost_and_nothing_is_leased_twice(db: Db) {
    let stores = [db.open().await, db.another().await];
    let config = Config {
        cases: CASES,
        max_shrink_iters: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    };
    let runtime = tokio::runtime::Handle::current();
    let ran = tokio::task::block_in_place(|| {
        TestRunner::new(config).run(&prop::collection::vec(verb(), 1..60), |verbs| {
            runtime.block_on(async {
                let mut run = Run::begin(&stores).await;
                let tested = std::panic::AssertUnwindSafe(async {
                    // Most sequences begin with an owner.
                    run.carry_out(Verb::Take { node: 0 }).await;
                    for verb in verbs {
                        run.carry_out(verb).await;
                    }
                    run.compare_all().await;
                });
                let tested = futures_util::FutureExt::catch_unwind(tested).await;
                run.end().await;
                tested.map_err(|panic| {
                    let text = panic.downcast_ref::<String>().cloned();
                    TestCaseError::fail(text.unwrap_or_else(|| "panicked".to_owned()))
                })
            })
        })
    });
    if let Err(e) = ran {
        panic!("{e}");
    }
}
