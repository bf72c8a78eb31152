//! Works the redrives of this node's partitions: a step of each, again and again,
//! as its rate allows. A step moves rows and notes how far it came in one
//! transaction, so that whoever goes on after this node repeats nothing.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::{announce, dispatch::Dispatcher, filter::Payload, node::Node};
use crate::{
    directory::Directory,
    domain::{
        event::data_of,
        id::{DeliveryId, EventId, RedriveId, wall_clock},
        redrive::{Kind, Redrive, State},
    },
    metrics::Metrics,
    settings::Live,
    store::{Moved, NewDelivery, Past, PastEvent, Result, Standing, Step, Store},
    target::Target,
};

/// How often this node looks which redrives run.
const LOOK: Duration = Duration::from_millis(500);
/// The least time between two steps of a redrive: more often would be more
/// transactions for the same rate.
const TICK: Duration = Duration::from_millis(50);
/// When to take a step again that failed, or that could not be taken yet.
const AGAIN: Duration = Duration::from_secs(1);
/// The most that one step moves.
const STEP: i64 = 1000;
/// The most events of which one step asks how they stand.
const ASKED: usize = 200;
/// With more jobs than this in memory a step waits: what is new goes first.
const CROWD: usize = 1024;

pub(super) struct Redriver {
    pub(super) store: Arc<dyn Store>,
    pub(super) directory: Arc<Directory>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) node: Arc<Node>,
    pub(super) live: Arc<ArcSwap<Live>>,
    pub(super) metrics: Arc<Metrics>,
}

/// A redrive that runs, and when its next step is due.
struct Running {
    redrive: Redrive,
    due: Instant,
}

impl Redriver {
    pub(super) async fn run(self, cancel: CancellationToken) {
        let mut running: HashMap<RedriveId, Running> = HashMap::new();
        let mut look = Instant::now();
        loop {
            let next = running
                .values()
                .map(|r| r.due)
                .min()
                .map_or(look, |due| due.min(look));
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep_until(next.into()) => {}
            }
            let (mut tried, mut failure) = (false, None);
            if Instant::now() >= look {
                look = Instant::now() + LOOK;
                tried = true;
                failure = self.look(&mut running).await.err();
            }
            let due: Vec<RedriveId> = running
                .iter()
                .filter(|(_, r)| r.due <= Instant::now())
                .map(|(id, _)| *id)
                .collect();
            for id in due {
                let Some(entry) = running.get_mut(&id) else {
                    continue;
                };
                tried = true;
                match self.step(&entry.redrive).await {
                    Ok(Some(wait)) => entry.due = Instant::now() + wait,
                    Ok(None) => drop(running.remove(&id)),
                    Err(e) => {
                        entry.due = Instant::now() + AGAIN;
                        failure = Some(e);
                    }
                }
            }
            if tried {
                self.metrics.troubles.note(
                    "redrives",
                    &failure.map_or(Ok(()), Err),
                    "redrives can't go on",
                    "redrives go on",
                );
            }
        }
    }

    async fn look(&self, running: &mut HashMap<RedriveId, Running>) -> Result<()> {
        let found = if self.node.is_alive() {
            self.store.running_redrives(&self.node.owned()).await?
        } else {
            Vec::new()
        };
        let mut before = std::mem::take(running);
        for redrive in found {
            let due = before
                .remove(&redrive.id)
                .map_or_else(Instant::now, |r| r.due);
            running.insert(redrive.id, Running { redrive, due });
        }
        Ok(())
    }

    /// Takes a step, where there is room; when the next one is due, none where
    /// there is none.
    async fn step(&self, redrive: &Redrive) -> Result<Option<Duration>> {
        if !self.node.is_alive() {
            return Ok(None);
        }
        let sends = redrive.kind != Kind::Purge;
        if sends && self.dispatcher.is_crowded(CROWD) {
            return Ok(Some(TICK));
        }
        let moved = if redrive.kind.is_replay() {
            self.replay(redrive).await?
        } else {
            let session = self.node.session();
            self.store.move_letters(session, redrive.id, STEP).await?
        };
        let Some(moved) = moved else { return Ok(None) };
        self.metrics.redriven(redrive.kind, moved.count);
        for subscription in moved.subscriptions {
            self.dispatcher.sign(subscription.part(), subscription);
        }
        if moved.next.is_none() {
            tracing::info!(redrive.id = %redrive.id, redrive.kind = ?redrive.kind, "redrive is over");
        }
        // Where nothing fitted the rate is not what it waits for.
        let least = if moved.count > 0 {
            TICK
        } else {
            Duration::from_millis(5)
        };
        Ok(moved.next.map(|wait| wait.max(least)))
    }

    async fn replay(&self, redrive: &Redrive) -> Result<Option<Moved>> {
        let session = self.node.session();
        let Some(subscription) = redrive.selection.subscription else {
            return Ok(None);
        };
        let target = self.directory.target(subscription);
        let bodies = target
            .as_ref()
            .is_some_and(|t| t.filter.is_some() || announce::looks_inside(&t.subscription));
        let days = self.live.load().retention_days;
        let past = self.store.past_events(session, redrive.id, bodies, days);
        let Some(past) = past.await? else {
            return Ok(None);
        };
        if past.due <= 0 {
            return Ok(Some(Moved {
                next: Some(past.wait),
                ..Moved::default()
            }));
        }
        let Some(target) = target else {
            if self.store.get_subscription(subscription).await?.is_some() {
                // Made on another node just now, or not to be used for the moment.
                self.directory.nudge();
                return Ok(Some(Moved {
                    next: Some(AGAIN),
                    ..Moved::default()
                }));
            }
            let end = Step {
                note: "its subscription was deleted".into(),
                end: Some(State::Failed),
                ..nothing(&past)
            };
            return self.store.replay(session, redrive.id, &end).await;
        };
        let step = self.next_step(redrive, &past, &target).await?;
        self.store.replay(session, redrive.id, &step).await
    }

    /// What becomes of these events.
    async fn next_step(&self, redrive: &Redrive, past: &Past, target: &Target) -> Result<Step> {
        let subscription = target.subscription.id;
        let due = usize::try_from(past.due.min(STEP)).unwrap_or_default();
        let most = if redrive.kind == Kind::Missing {
            due.max(ASKED)
        } else {
            due
        };
        let mut step = nothing(past);
        if past.late {
            step.note = "events of its range went by retention before it came to them".into();
        }
        let mut wanted: Vec<EventId> = Vec::new();
        let mut behind = None;
        for event in &past.events {
            if wanted.len() == most {
                behind = Some(event.id);
                break;
            }
            if wants(target, event) {
                wanted.push(event.id);
            }
        }
        let standing = if redrive.kind == Kind::Missing {
            self.store.standing(subscription, &wanted).await?
        } else {
            vec![Standing::Missing; wanted.len()]
        };
        for (event, standing) in wanted.into_iter().zip(standing) {
            if step.deliveries.len() + step.letters.len() == due {
                behind = Some(event);
                break;
            }
            match standing {
                Standing::Missing => step.deliveries.push((event, delivery(event, target))),
                Standing::Dead(letter) => step.letters.push(letter),
                Standing::There => step.skipped += 1,
            }
        }
        step.to = behind.unwrap_or(past.to);
        Ok(step)
    }
}

/// A step that does nothing.
fn nothing(past: &Past) -> Step {
    Step {
        from: past.from,
        to: past.from,
        deliveries: Vec::new(),
        letters: Vec::new(),
        skipped: 0,
        note: String::new(),
        end: None,
    }
}

/// Whether a subscription wants an event, as it is now.
fn wants(target: &Target, event: &PastEvent) -> bool {
    let s = &target.subscription;
    let data = data_of(&event.body);
    announce::gets_again(s, &event.event_type, data)
        && target
            .filter
            .as_ref()
            .is_none_or(|filter| Payload::new(data).passes(filter, s.id))
}

fn delivery(event: EventId, target: &Target) -> NewDelivery {
    let s = &target.subscription;
    let off = s.disabled.as_ref();
    NewDelivery {
        id: DeliveryId::of(event),
        subscription: s.id,
        held: s.held + off.map_or(0, |d| (wall_clock() - d.at).max(0)),
        lease: false,
        // What is replayed was published before: it has no place among what is new.
        ordered: false,
    }
}
