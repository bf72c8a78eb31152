//! What is leased to this node: by publishes, and by fetches from the store.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::{Completion, Dispatcher};
use crate::{
    domain::delivery::Outcome,
    pipeline::job::{Fetch, Job},
    store::{Leased, Session},
};

impl Dispatcher {
    /// Chooses which rows a publish should lease to this node: those of
    /// partitions that it owns, of subscriptions that are on, as far as there is
    /// room in memory. What goes in order is fetched: whether it is its key's turn
    /// only the store knows.
    pub(in crate::pipeline) fn plan(&self, batch: &mut [crate::store::Publish]) {
        if !self.is_delivering() || !self.node.is_alive() {
            return;
        }
        let mut lanes = self.lanes();
        for p in batch {
            if !self.node.owns(p.event.part()) {
                continue;
            }
            for d in &mut p.deliveries {
                d.lease = !d.ordered
                    && self.terms(d.subscription).is_some()
                    && lanes.plan(d.subscription);
            }
        }
    }

    /// Takes in what a publish leased to that session. `leased` says of each event
    /// whether its leases were given; none: the publish failed.
    pub(in crate::pipeline) fn published(
        &self,
        session: Session,
        batch: &[crate::store::Publish],
        leased: &[Option<bool>],
    ) {
        let current = session == self.node.session();
        let mut back = Vec::new();
        let mut lanes = self.lanes();
        let mut fetch = false;
        for (p, leased) in batch.iter().zip(leased) {
            let event_type: Arc<str> = p.event_type.as_str().into();
            for d in &p.deliveries {
                if d.lease {
                    lanes.unplan(d.subscription);
                }
                match leased {
                    // Of a session that has ended meanwhile: its rows are free.
                    Some(true) if d.lease && !current => {}
                    Some(true) if d.lease => {
                        let job = Job {
                            id: d.id,
                            tenant: p.tenant,
                            subscription: d.subscription,
                            event: p.event,
                            event_type: event_type.clone(),
                            body: p.body.clone(),
                            trace: p.trace.clone(),
                            token: 1,
                            attempts: 0,
                            replays: 0,
                            by_hand: false,
                            age: 0,
                            deferred: 0,
                            ordering_key: None,
                            since: Instant::now(),
                            session,
                        };
                        match self.terms(d.subscription) {
                            Some(terms) if self.node.owns(p.event.part()) => {
                                lanes.push(job, terms, true);
                            }
                            // Switched off while the publish was under way, or the
                            // partition is another node's by now.
                            _ => back.push(lanes.hold(job)),
                        }
                    }
                    Some(_) if self.node.owns(p.event.part()) => {
                        lanes.sign(d.subscription);
                        fetch = true;
                    }
                    _ => {}
                }
            }
        }
        drop(lanes);
        self.release(back);
        self.wake_takers();
        if fetch {
            self.fetch.notify_one();
        }
    }

    /// What to fetch. What waits for a subscription that is off stays where it
    /// is: once that is on again everything is looked at.
    pub(in crate::pipeline) fn fetches(&self, most: usize) -> Vec<Fetch> {
        let mut lanes = self.lanes();
        lanes.wake(Instant::now());
        if !self.is_delivering() {
            return Vec::new();
        }
        lanes.fetches(most, |s| self.terms(s).is_some())
    }

    pub(in crate::pipeline) fn fetched(
        &self,
        session: Session,
        fetches: &[Fetch],
        rows: Option<Vec<Leased>>,
    ) {
        let current = session == self.node.session();
        let (mut back, mut missing) = (Vec::new(), Vec::new());
        let mut lanes = self.lanes();
        match rows {
            None => fetches.iter().for_each(|f| lanes.fetched(*f, None)),
            Some(rows) => {
                let mut counts = HashMap::new();
                for row in rows {
                    *counts.entry(row.subscription).or_insert(0) += 1;
                    if !current {
                        continue;
                    }
                    let target = self.directory.target(row.subscription);
                    let held = target.map_or(0, |t| t.subscription.held);
                    let age = row.age;
                    let mut job = Job::of(row, held, session);
                    lanes.fetched_at(&mut job, age);
                    match self.terms(job.subscription) {
                        _ if job.body.is_empty() => missing.push(job),
                        Some(terms) if self.node.owns(job.id.part()) => {
                            lanes.push(job, terms, false);
                        }
                        _ => back.push(lanes.hold(job)),
                    }
                }
                for f in fetches {
                    let n = counts.get(&f.subscription).copied().unwrap_or(0);
                    lanes.fetched(*f, Some(n));
                }
            }
        }
        drop(lanes);
        self.release(back);
        for job in missing {
            self.end(Completion {
                job,
                outcome: Outcome::Permanent,
                reason: "body_missing".into(),
                attempt: None,
            });
        }
        self.wake_takers();
    }
}
