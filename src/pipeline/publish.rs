//! Publishing. Callers wait while one writer commits what they brought, all
//! that came together in one statement: nothing waits while the writer is idle,
//! a batch forms while it is busy.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{dispatch::Dispatcher, filter::Payload, node::Node};
use crate::{
    directory::Directory,
    domain::{
        event::{self, Idempotency},
        id::{DeliveryId, EventId, KeyId, Micros, SubscriptionId, TenantId, day_of, wall_clock},
        subscription::{Ordering, Subscription},
        trace::Trace,
    },
    error::{Error, Reason, Result},
    metrics::Metrics,
    settings::Live,
    store::{NewDelivery, Publish, Published, Store, StoreError, Usage},
};

/// The most events of one commit.
const BATCH: usize = 256;
/// The most bytes of one commit.
const BATCH_BYTES: usize = 8 << 20;
/// How many calls may wait for the writer; more are refused at once.
const QUEUE: usize = 4096;
/// How many bytes of them may: what does not fit is refused too.
const QUEUE_BYTES: usize = 64 << 20;
/// How long one waits for the writer. A database that does not answer holds up
/// each batch for as long as a statement may take; those behind it are not to wait
/// for one batch after another.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// How often an event is matched again before its caller is told to try later.
const MATCHES: usize = 8;
/// With more jobs than this in memory that move, publishing waits for sending.
const CROWD: usize = 1024;

/// What a caller brings.
pub struct NewEvent {
    /// The tenant.
    pub tenant: TenantId,
    /// The key that publishes.
    pub key: Option<KeyId>,
    /// The event's type, checked.
    pub event_type: String,
    /// The payload as JSON text, checked.
    pub data: Bytes,
    /// The caller's own name for this publish, checked.
    pub idempotency_key: Option<String>,
    /// Whose deliveries go one at a time, where a subscription asks for that.
    pub ordering_key: Option<Arc<str>>,
    /// Deliver to this subscription alone, whatever it wants.
    pub only: Option<SubscriptionId>,
    /// Where it comes from.
    pub trace: Option<Arc<Trace>>,
}

/// What a caller is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The event.
    pub id: EventId,
    /// When it was accepted.
    pub time: Micros,
    /// How many deliveries it became.
    pub deliveries: i32,
    /// Whether this is the answer of an earlier time.
    pub repeated: bool,
    /// The first delivery.
    pub first: Option<DeliveryId>,
}

pub(super) struct Pending {
    publish: Publish,
    answer: oneshot::Sender<std::result::Result<Published, StoreError>>,
    since: Instant,
    /// Its share of the bytes that may wait, given back with the answer.
    room: OwnedSemaphorePermit,
}

impl Pending {
    /// What it takes of memory while it waits.
    fn bytes(publish: &Publish) -> usize {
        publish.body.len() + size_of_val(publish.deliveries.as_slice())
    }
}

/// Who gets an event, of those whose event types it fits.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Audience {
    /// Not this one.
    pub(super) but: Option<SubscriptionId>,
    /// Only those who name its type or a prefix of it, and not all types.
    pub(super) named: bool,
}

impl Audience {
    /// Whether a subscription gets it.
    pub(super) fn has(self, s: &Subscription, event_type: &str) -> bool {
        self.but != Some(s.id)
            && if self.named {
                s.names(event_type)
            } else {
                s.wants(event_type)
            }
    }
}

/// The way in.
pub struct Publisher {
    directory: Arc<Directory>,
    live: Arc<ArcSwap<Live>>,
    metrics: Arc<Metrics>,
    queue: mpsc::Sender<Pending>,
    room: Arc<Semaphore>,
    ledger: Arc<Ledger>,
}

impl Publisher {
    /// A way in, and the queue that the writer reads.
    pub(super) fn new(
        directory: Arc<Directory>,
        live: Arc<ArcSwap<Live>>,
        metrics: Arc<Metrics>,
        ledger: Arc<Ledger>,
    ) -> (Self, mpsc::Receiver<Pending>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let publisher = Self {
            directory,
            live,
            metrics,
            queue: sender,
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            ledger,
        };
        (publisher, queue)
    }

    /// Commits an event with a delivery for each matching subscription, and
    /// answers when that is done.
    ///
    /// # Errors
    /// `PAYLOAD_TOO_LARGE`, `QUOTA_EXCEEDED`, `IDEMPOTENCY_KEY_REUSED`,
    /// `STORE_UNAVAILABLE`.
    pub async fn publish(&self, new: NewEvent) -> Result<Receipt> {
        self.publish_to(new, Audience::default()).await
    }

    /// As [`publish`](Self::publish), to those of whom the audience is.
    ///
    /// # Errors
    /// The same.
    pub(super) async fn publish_to(&self, new: NewEvent, to: Audience) -> Result<Receipt> {
        let live = self.live.load_full();
        if new.data.len() > live.event_max_bytes {
            return Err(Error::new(
                Reason::PayloadTooLarge,
                format!(
                    "the payload has {} bytes, at most {} are allowed",
                    new.data.len(),
                    live.event_max_bytes
                ),
            ));
        }
        self.ledger.check(new.tenant, new.data.len(), &live)?;
        let time = wall_clock();
        let id = EventId::new(time, new.tenant.part());
        let payload = Payload::new(&new.data);
        let body = event::body(id, &new.event_type, time, &new.data);
        let idempotency = new
            .idempotency_key
            .as_deref()
            .map(|key| Idempotency::new(key, &new.event_type, &new.data));
        for _ in 0..MATCHES {
            let (revision, deliveries) =
                self.match_up(&new, to, &payload, id, time, live.fan_out_max)?;
            let count = i32::try_from(deliveries.len()).unwrap_or(i32::MAX);
            let first = deliveries.first().map(|d| d.id);
            let publish = Publish {
                tenant: new.tenant,
                revision,
                event: id,
                event_type: new.event_type.clone(),
                body: body.clone(),
                key: new.key,
                idempotency,
                trace: new.trace.clone(),
                deliveries,
                ordering_key: new.ordering_key.clone(),
            };
            match self.commit(publish).await? {
                Published::Accepted { .. } => {
                    self.metrics.events_accepted.increment(1);
                    return Ok(Receipt {
                        id,
                        time: id.time(),
                        deliveries: count,
                        repeated: false,
                        first,
                    });
                }
                Published::Duplicate { same: false, .. } => {
                    return Err(Error::new(
                        Reason::IdempotencyKeyReused,
                        "this idempotency key came before with another type or payload",
                    ));
                }
                Published::Duplicate {
                    event, deliveries, ..
                } => {
                    self.metrics.events_repeated.increment(1);
                    return Ok(Receipt {
                        id: event,
                        time: event.time(),
                        deliveries,
                        repeated: true,
                        first: None,
                    });
                }
                Published::Refused => {
                    return Err(Error::new(
                        Reason::InvalidArgument,
                        "the database can't store one of the event's values",
                    ));
                }
                Published::Stale => self.directory.refresh().await.map_err(unavailable)?,
            }
        }
        Err(Error::new(
            Reason::StoreUnavailable,
            "the tenant's subscriptions change faster than the event could be matched",
        )
        .retry_after(Duration::from_secs(1)))
    }

    fn match_up(
        &self,
        new: &NewEvent,
        to: Audience,
        payload: &Payload<'_>,
        id: EventId,
        now: Micros,
        most: usize,
    ) -> Result<(i64, Vec<NewDelivery>)> {
        let subscriptions = self.directory.subscriptions(new.tenant);
        let targets = subscriptions.targets.iter();
        // What can't be used yet gets all of its events: they wait for it.
        let unusable = subscriptions.unusable.iter().map(|s| (s, None));
        let deliveries: Vec<NewDelivery> = targets
            .map(|t| (&t.subscription, t.filter.as_ref()))
            .chain(unusable)
            .filter(|(s, filter)| match new.only {
                Some(only) => s.id == only,
                None => {
                    to.has(s, &new.event_type) && filter.is_none_or(|f| payload.passes(f, s.id))
                }
            })
            .map(|(s, _)| NewDelivery {
                id: DeliveryId::of(id),
                subscription: s.id,
                held: s.held + s.disabled.as_ref().map_or(0, |d| (now - d.at).max(0)),
                lease: false,
                ordered: new.ordering_key.is_some() && s.ordering != Ordering::Off,
            })
            .collect();
        if deliveries.len() > most {
            return Err(Error::new(
                Reason::QuotaExceeded,
                format!(
                    "the event matches {} subscriptions, at most {most} are allowed",
                    deliveries.len()
                ),
            ));
        }
        Ok((subscriptions.revision, deliveries))
    }

    async fn commit(&self, publish: Publish) -> Result<Published> {
        let full = || {
            Error::new(Reason::Overloaded, "too many events wait for the database")
                .retry_after(Duration::from_secs(1))
        };
        let bytes = u32::try_from(Pending::bytes(&publish)).unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(bytes);
        let (answer, answered) = oneshot::channel();
        let pending = Pending {
            publish,
            answer,
            since: Instant::now(),
            room: room.map_err(|_| full())?,
        };
        self.queue.try_send(pending).map_err(|_| full())?;
        answered
            .await
            .map_err(|_| Error::new(Reason::StoreUnavailable, "the server is stopping"))?
            .map_err(unavailable)
    }
}

/// What a caller is told of the store's failures.
pub(crate) fn unavailable(error: StoreError) -> Error {
    match error {
        StoreError::Unavailable(_) => {
            tracing::debug!(error.message = %error, "store unavailable");
            Error::new(Reason::StoreUnavailable, "the database can't be reached")
                .retry_after(Duration::from_secs(1))
        }
        StoreError::Exists(what) => {
            Error::new(Reason::AlreadyExists, format!("there is {what} already"))
        }
        StoreError::Conflict => Error::new(
            Reason::FailedPrecondition,
            "it was changed by another call at the same time: read it and try again",
        ),
        StoreError::Quota(n) => {
            Error::new(Reason::QuotaExceeded, format!("at most {n} are allowed"))
        }
        StoreError::Data(e) => {
            tracing::warn!(error.message = e, "the database refused a value");
            Error::new(
                Reason::InvalidArgument,
                "the database can't store one of the values",
            )
        }
        StoreError::Unfit(e) => Error::internal(e),
    }
}

/// Answers those that waited too long. Nothing was tried with them.
fn refuse_stale(waiting: &mut Vec<Pending>) {
    for p in waiting.extract_if(.., |p| p.since.elapsed() >= QUEUE_WAIT) {
        let late = StoreError::Unavailable("no answer in time to what came before".into());
        let _ = p.answer.send(Err(late));
    }
}

/// How many jobs in memory wait for receivers that don't answer: to wait for them
/// would have the events of all others wait.
#[derive(Default)]
struct Crowd {
    standing: usize,
}

impl Crowd {
    /// With how many jobs in memory publishing waits for sending, where there are so
    /// many now.
    fn most(&mut self, waiting: usize) -> usize {
        self.standing = self.standing.min(waiting);
        self.standing + CROWD
    }

    /// So many are left where nothing is completed any more.
    const fn stands(&mut self, waiting: usize) {
        self.standing = waiting;
    }
}

/// The one writer.
pub(super) struct Writer {
    pub(super) store: Arc<dyn Store>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) node: Arc<Node>,
    pub(super) metrics: Arc<Metrics>,
    /// Counts what was accepted, whether or not its caller still listens.
    pub(super) ledger: Arc<Ledger>,
    pub(super) hints: mpsc::UnboundedSender<SubscriptionId>,
}

impl Writer {
    /// Runs until it is cancelled and everything that came is answered.
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Pending>, cancel: CancellationToken) {
        let mut waiting: Vec<Pending> = Vec::new();
        let mut crowd = Crowd::default();
        loop {
            if waiting.is_empty() {
                tokio::select! {
                    biased;
                    n = queue.recv_many(&mut waiting, BATCH) => if n == 0 { return },
                    () = cancel.cancelled() => return,
                }
            }
            refuse_stale(&mut waiting);
            if waiting.is_empty() {
                continue;
            }
            self.let_sending_catch_up(&mut crowd).await;
            let mut bytes = 0;
            let fits = waiting
                .iter()
                .take_while(|p| {
                    bytes += p.publish.body.len();
                    bytes <= BATCH_BYTES
                })
                .count();
            let later = waiting.split_off(fits.max(1));
            self.write(std::mem::replace(&mut waiting, later)).await;
        }
    }

    /// While publishers outrun sending, memory fills and rows have to be fetched
    /// again later, at twice the cost: better to let sending catch up. Never for
    /// long, and not at all where sending stands still.
    async fn let_sending_catch_up(&self, crowd: &mut Crowd) {
        for _ in 0..20 {
            let most = crowd.most(self.dispatcher.waiting());
            if !self.dispatcher.is_crowded(most) {
                return;
            }
            let before = self.dispatcher.completed();
            tokio::time::sleep(Duration::from_millis(2)).await;
            if self.dispatcher.completed() - before < 4 {
                return crowd.stands(self.dispatcher.waiting());
            }
        }
    }

    async fn write(&self, pending: Vec<Pending>) {
        let (mut batch, answers): (Vec<Publish>, Vec<_>) = pending
            .into_iter()
            .map(|p| (p.publish, (p.answer, p.room)))
            .unzip();
        self.metrics.publish_batch.record(batch.len() as f64);
        self.dispatcher.plan(&mut batch);
        let session = self.node.session();
        match self.store.publish(session, &batch).await {
            Ok(results) => {
                for (p, result) in batch.iter().zip(&results) {
                    if matches!(result, Published::Accepted { .. }) {
                        self.ledger.add(p.tenant, p.event.time(), p.body.len());
                    }
                }
                let leased: Vec<Option<bool>> = results
                    .iter()
                    .map(|r| match r {
                        Published::Accepted { leased } => Some(*leased),
                        _ => None,
                    })
                    .collect();
                self.dispatcher.published(session, &batch, &leased);
                self.hint(&batch, &leased);
                for ((answer, _), result) in answers.into_iter().zip(results) {
                    // The caller may have gone; the event stays accepted.
                    let _ = answer.send(Ok(result));
                }
            }
            Err(e) => {
                self.metrics.store_errors.increment(1);
                self.dispatcher.suspect();
                self.dispatcher
                    .published(session, &batch, &vec![None; batch.len()]);
                for (answer, _) in answers {
                    let _ = answer.send(Err(e.clone()));
                }
            }
        }
    }

    /// Tells other nodes of what is theirs to send.
    fn hint(&self, batch: &[Publish], leased: &[Option<bool>]) {
        for (p, leased) in batch.iter().zip(leased) {
            if leased.is_some() && !self.node.owns(p.event.part()) {
                for d in &p.deliveries {
                    let _ = self.hints.send(d.subscription);
                }
            }
        }
    }
}

#[derive(Default)]
struct Count {
    events: i64,
    bytes: i64,
    changed: bool,
}

/// How many bytes tenants have stored. Counted here, written and read back by
/// the upkeep: the limit is exact to about the events of a second.
#[derive(Default)]
pub struct Ledger {
    own: Mutex<HashMap<(TenantId, i32), Count>>,
    /// What was stored at the last look, and what this node has added since.
    total: Mutex<HashMap<TenantId, (i64, i64)>>,
}

impl Ledger {
    fn check(&self, tenant: TenantId, more: usize, live: &Live) -> Result<()> {
        let total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        let (stored, added) = total.get(&tenant).copied().unwrap_or_default();
        if stored + added + more as i64 > live.quota_stored_bytes {
            return Err(Error::new(
                Reason::QuotaExceeded,
                format!(
                    "the tenant's events take {} bytes, at most {} are kept",
                    stored + added,
                    live.quota_stored_bytes
                ),
            ));
        }
        Ok(())
    }

    fn add(&self, tenant: TenantId, time: Micros, bytes: usize) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let count = own.entry((tenant, day_of(time))).or_default();
        count.events += 1;
        count.bytes += bytes as i64;
        count.changed = true;
        drop(own);
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        total.entry(tenant).or_default().1 += bytes as i64;
    }

    /// What this session accepted, absolute, where it changed since the last time.
    /// Days that are over and written are forgotten.
    pub(super) fn usage(&self) -> Vec<Usage> {
        let today = day_of(wall_clock());
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.retain(|(_, day), count| count.changed || *day >= today - 1);
        own.iter_mut()
            .filter_map(|((tenant, day), count)| {
                std::mem::take(&mut count.changed).then_some(Usage {
                    tenant: *tenant,
                    day: *day,
                    events: count.events,
                    bytes: count.bytes,
                })
            })
            .collect()
    }

    /// What could not be written is to be written again.
    pub(super) fn not_written(&self, usage: &[Usage]) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        for u in usage {
            if let Some(count) = own.get_mut(&(u.tenant, u.day)) {
                count.changed = true;
            }
        }
    }

    /// A new session counts from nothing; what the one before counted is stored.
    pub(super) fn new_session(&self) {
        self.own
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// What is stored by all sessions, with this one's included.
    pub(super) fn set_totals(&self, stored: Vec<(TenantId, i64)>) {
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        total.clear();
        total.extend(stored.into_iter().map(|(t, bytes)| (t, (bytes, 0))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A8: what waits for receivers that don't answer holds nobody up; what moves
    // does, beyond that.
    #[test]
    fn a_crowd_that_stands_is_not_waited_for() {
        let mut crowd = Crowd::default();
        assert_eq!(crowd.most(CROWD), CROWD);
        crowd.stands(CROWD + 100);
        assert_eq!(crowd.most(CROWD + 200), 2 * CROWD + 100);
        assert_eq!(crowd.most(2 * CROWD + 100), 2 * CROWD + 100);
        // Most of it went; from then on the rest counts again.
        assert_eq!(crowd.most(10), CROWD + 10);
        assert_eq!(crowd.most(CROWD + 10), CROWD + 10);
    }
}
