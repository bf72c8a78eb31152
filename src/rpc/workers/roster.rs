//! Which workers are connected to this node, and what those had that lost their
//! connection a moment ago.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{held::Held, lease::Holder};
use crate::{
    domain::id::TenantId,
    error::{Error, Reason, Result},
    metrics::Metrics,
    pipeline::{dispatch::Dispatcher, sender::Clock},
};

/// How long what a worker had is kept for it after its connection broke.
const GRACE: Duration = Duration::from_secs(5);
/// How long a stream is waited for that is to hand over what it has.
const HAND_OVER: Duration = Duration::from_secs(2);
/// The most streams of one node.
const MOST: usize = 1000;
/// The most streams of workers of other nodes, which have their own limits.
const MOST_LINKS: usize = 16_000;
/// The most streams of one tenant's consumers on one node.
const MOST_OF_TENANT: usize = 50;

/// The workers of this node.
pub struct Roster {
    dispatcher: Arc<Dispatcher>,
    pub(super) metrics: Arc<Metrics>,
    /// How long the node's stop waits for what is under way.
    pub(super) shutdown: Duration,
    /// The clock that signatures are made with.
    pub(super) clock: Clock,
    seats: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    by_holder: HashMap<Holder, Seat>,
    /// Streams of consumers, by tenant.
    consumers: HashMap<TenantId, usize>,
    streams: usize,
    /// Those of workers of other nodes.
    links: usize,
    last: u64,
}

/// One worker.
struct Seat {
    epoch: i64,
    /// Of the stream that it belongs to; no two are the same.
    number: u64,
    state: State,
}

enum State {
    /// A stream is open.
    Here(mpsc::Sender<HandOver>),
    /// The connection broke; this is what it had.
    Away(Held),
}

/// Asks a stream to give what it has to another one, and to end.
pub(super) struct HandOver(oneshot::Sender<Held>);

/// Counts a stream while it lives.
pub(super) struct Ticket {
    roster: Arc<Roster>,
    consumer: Option<TenantId>,
    through_node: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let metrics = &self.roster.metrics;
        let mut seats = self.roster.seats();
        if self.through_node {
            seats.links = seats.links.saturating_sub(1);
            metrics.worker_links.set(seats.links as f64);
            return;
        }
        seats.streams = seats.streams.saturating_sub(1);
        metrics.worker_streams.set(seats.streams as f64);
        if let Some(tenant) = self.consumer
            && let Some(count) = seats.consumers.get_mut(&tenant)
        {
            *count -= 1;
            if *count == 0 {
                seats.consumers.remove(&tenant);
            }
        }
    }
}

/// A stream's seat.
pub(super) struct Seated {
    pub(super) number: u64,
    /// What the worker had when its last stream ended.
    pub(super) held: Held,
    pub(super) hand_over: mpsc::Receiver<HandOver>,
}

impl Roster {
    /// Nobody yet.
    #[must_use]
    pub fn new(
        dispatcher: Arc<Dispatcher>,
        metrics: Arc<Metrics>,
        shutdown: Duration,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            dispatcher,
            metrics,
            shutdown,
            clock,
            seats: Mutex::default(),
        })
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Streams that are open, those of other nodes' workers too.
    #[must_use]
    pub fn streams(&self) -> usize {
        let seats = self.seats();
        seats.streams + seats.links
    }

    /// Lets another stream in; a consumer's is counted for its tenant. One that comes
    /// through another node was counted there.
    pub(super) fn enter(
        self: &Arc<Self>,
        consumer: Option<TenantId>,
        through_node: bool,
    ) -> Result<Ticket> {
        let mut seats = self.seats();
        let own = consumer.map_or(0, |t| seats.consumers.get(&t).copied().unwrap_or(0));
        let is_full = if through_node {
            seats.links >= MOST_LINKS
        } else {
            seats.streams >= MOST || own >= MOST_OF_TENANT
        };
        if is_full {
            return Err(Error::new(
                Reason::QuotaExceeded,
                "as many streams are open as there may be",
            ));
        }
        if through_node {
            seats.links += 1;
            self.metrics.worker_links.set(seats.links as f64);
        } else {
            seats.streams += 1;
            self.metrics.worker_streams.set(seats.streams as f64);
            if let Some(tenant) = consumer {
                *seats.consumers.entry(tenant).or_default() += 1;
            }
        }
        drop(seats);
        Ok(Ticket {
            roster: self.clone(),
            consumer,
            through_node,
        })
    }

    /// Gives a worker its seat. Whoever sat there for it hands over what it has.
    pub(super) async fn sit(&self, holder: &Holder, epoch: i64) -> Result<Seated> {
        let (ask, hand_over) = mpsc::channel(1);
        let (number, before) = {
            let mut seats = self.seats();
            if let Some(seat) = seats.by_holder.get(holder)
                && epoch < seat.epoch
            {
                return Err(Error::new(
                    Reason::FailedPrecondition,
                    "a later instance of this worker has connected: its `instance_epoch` is greater",
                ));
            }
            seats.last += 1;
            let number = seats.last;
            let seat = Seat {
                epoch,
                number,
                state: State::Here(ask),
            };
            let before = seats.by_holder.insert(holder.clone(), seat);
            (number, before.map(|seat| seat.state))
        };
        let held = match before {
            None => Held::default(),
            Some(State::Away(held)) => held,
            Some(State::Here(stream)) => {
                let (give, given) = oneshot::channel();
                let asked = stream.send(HandOver(give)).await;
                match tokio::time::timeout(HAND_OVER, given).await {
                    Ok(Ok(held)) if asked.is_ok() => held,
                    _ => Held::default(),
                }
            }
        };
        Ok(Seated {
            number,
            held,
            hand_over,
        })
    }

    /// Ends a stream for good: what its worker has is given back.
    pub(super) fn leave(&self, holder: &Holder, seated: Seated) {
        let mut held = seated.held;
        let mut seats = self.seats();
        if seats
            .by_holder
            .get(holder)
            .is_some_and(|seat| seat.number == seated.number)
        {
            seats.by_holder.remove(holder);
            drop(seats);
            self.give_back(&mut held);
        } else {
            drop(seats);
            self.hand_over(seated.hand_over, held);
        }
    }

    /// Ends a stream whose connection broke: what its worker has is kept for it
    /// for a while.
    pub(super) fn lose(self: &Arc<Self>, holder: &Holder, seated: Seated) {
        let Seated {
            number,
            held,
            hand_over,
        } = seated;
        let mut seats = self.seats();
        match seats.by_holder.get_mut(holder) {
            Some(seat) if seat.number == number => seat.state = State::Away(held),
            _ => {
                drop(seats);
                self.hand_over(hand_over, held);
                return;
            }
        }
        drop(seats);
        let (roster, holder) = (self.clone(), holder.clone());
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            roster.forget(&holder, number);
        });
    }

    /// Another stream has the seat: it is waiting for what this one has, unless it
    /// gave up.
    fn hand_over(&self, mut waiting: mpsc::Receiver<HandOver>, mut held: Held) {
        match waiting.try_recv() {
            Ok(next) => self.give(next, held),
            Err(_) => self.give_back(&mut held),
        }
    }

    /// Gives another stream what this one has.
    pub(super) fn give(&self, next: HandOver, held: Held) {
        if let Err(mut held) = next.0.send(held) {
            self.give_back(&mut held);
        }
    }

    fn forget(&self, holder: &Holder, number: u64) {
        let mut seats = self.seats();
        let is_away = seats
            .by_holder
            .get(holder)
            .is_some_and(|seat| seat.number == number && matches!(seat.state, State::Away(_)));
        if !is_away {
            return;
        }
        let seat = seats.by_holder.remove(holder);
        drop(seats);
        if let Some(State::Away(mut held)) = seat.map(|seat| seat.state) {
            tracing::info!(
                worker.id = holder.worker,
                deliveries.count = held.len(),
                "worker has not come back; what it had is given back"
            );
            self.give_back(&mut held);
        }
    }

    /// Gives back what a worker has.
    pub(super) fn give_back(&self, held: &mut Held) {
        for job in held.take_all() {
            self.dispatcher.give_back(job);
        }
    }
}
