//! The figures of deliveries. Counters of all tenants are followed in memory:
//! everything at the start, then each second the last minutes, which alone can
//! still change. One tenant's are read from the store when they are asked for,
//! so that memory does not grow with tenants.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        counter::{Tally, WINDOW, minute_of},
        id::{Micros, Part, TenantId, wall_clock},
    },
    metrics::Metrics,
    store::{Count, Store, StoreError},
};

/// How often the last minutes are read.
const EVERY: Duration = Duration::from_secs(1);
/// After this time everything is read again: history that was forgotten is in
/// what is kept of long ago.
const RELOAD: Duration = Duration::from_secs(3600);
/// How long one tenant's figures are answered without reading them again.
const FRESH: Duration = Duration::from_secs(1);
/// How many tenants' figures are remembered.
const TENANTS: usize = 1000;
/// Minutes before the last that may still change: a statement counts into the
/// minute in which it began, and none takes so long.
const OPEN: i64 = 2;
/// How long a caller waits for the first reading.
const PATIENCE: Duration = Duration::from_secs(5);

/// Figures at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// What was counted.
    pub tally: Tally,
    /// The age of the oldest delivery that is not finished; none: there is none.
    pub oldest: Option<Duration>,
}

/// What was counted, by the minute.
struct Memory {
    loaded: Instant,
    /// The minute of the last reading.
    minute: i64,
    before: BTreeMap<i16, i64>,
    minutes: BTreeMap<i64, Vec<(i16, i64)>>,
}

impl Memory {
    fn add(&mut self, counts: Vec<Count>) {
        for count in counts {
            match count.minute {
                None => *self.before.entry(count.what).or_default() += count.n,
                Some(minute) => self
                    .minutes
                    .entry(minute)
                    .or_default()
                    .push((count.what, count.n)),
            }
        }
    }

    /// Takes in the minutes since `from`, in place of what it has of them.
    fn renew(&mut self, from: i64, minute: i64, counts: Vec<Count>) {
        self.minutes.split_off(&from);
        self.add(counts);
        self.minute = minute;
        let kept = self.minutes.split_off(&first_minute(minute));
        for (what, n) in std::mem::replace(&mut self.minutes, kept)
            .into_values()
            .flatten()
        {
            *self.before.entry(what).or_default() += n;
        }
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for (what, n) in &self.before {
            tally.add(*what, *n, false);
        }
        for (what, n) in self.minutes.values().flatten() {
            tally.add(*what, *n, true);
        }
        tally
    }
}

/// The first minute of the window that ends with this one.
const fn first_minute(minute: i64) -> i64 {
    minute - WINDOW
}

/// Reads the counters.
pub struct Monitor {
    store: Arc<dyn Store>,
    all: watch::Sender<Option<Arc<Reading>>>,
    tenants: Mutex<HashMap<TenantId, (Instant, Arc<Reading>)>>,
    /// How far the store's clock is ahead of this node's.
    ahead: AtomicI64,
    stopping: CancellationToken,
}

impl Monitor {
    /// A monitor that has read nothing. `stopping` is cancelled when the node
    /// takes no more calls.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, stopping: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            store,
            all: watch::Sender::new(None),
            tenants: Mutex::default(),
            ahead: AtomicI64::new(0),
            stopping,
        })
    }

    /// Cancelled when the node takes no more calls.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Reads until it is cancelled. Says once that it can't, and once that it can
    /// again; what it has stays in use.
    pub async fn run(self: Arc<Self>, metrics: Arc<Metrics>, cancel: CancellationToken) {
        let mut memory = None;
        loop {
            let read = tokio::select! {
                () = cancel.cancelled() => return,
                read = self.read(&mut memory) => read,
            };
            metrics.troubles.note(
                "monitor",
                &read,
                "counters can't be read",
                "counters are read again",
            );
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    async fn read(&self, memory: &mut Option<Memory>) -> Result<(), StoreError> {
        let now = match memory {
            Some(m) if m.loaded.elapsed() < RELOAD => {
                let from = m.minute - OPEN;
                let (now, counts) = self.store.counts_since(from).await?;
                let minute = minute_of(now);
                // A clock that went back is past what this reading asked for.
                if minute < from {
                    *memory = None;
                    return Ok(());
                }
                m.renew(from, minute, counts);
                now
            }
            _ => {
                let (now, loaded) = self.load().await?;
                *memory = Some(loaded);
                now
            }
        };
        self.ahead.store(now - wall_clock(), Ordering::Relaxed);
        if let Some(m) = memory {
            let reading = Reading {
                tally: m.tally(),
                oldest: self.oldest(None, now).await?,
            };
            self.all.send_replace(Some(Arc::new(reading)));
        }
        Ok(())
    }

    async fn load(&self) -> Result<(Micros, Memory), StoreError> {
        let (now, _) = self.store.counts_since(i64::MAX).await?;
        let mut memory = Memory {
            loaded: Instant::now(),
            minute: minute_of(now),
            before: BTreeMap::new(),
            minutes: BTreeMap::new(),
        };
        for part in Part::all() {
            let from = first_minute(memory.minute);
            memory.add(self.store.counts(part, None, from).await?);
        }
        // What was counted while the first partitions were read already.
        let from = memory.minute - OPEN;
        let (now, counts) = self.store.counts_since(from).await?;
        memory.renew(from, minute_of(now), counts);
        Ok((now, memory))
    }

    async fn oldest(
        &self,
        tenant: Option<TenantId>,
        now: Micros,
    ) -> Result<Option<Duration>, StoreError> {
        let oldest = self.store.oldest_unfinished(tenant).await?;
        Ok(oldest.map(|id| {
            let age = (now - id.time()).max(0);
            Duration::from_micros(age.unsigned_abs())
        }))
    }

    /// The figures of one tenant or of all.
    ///
    /// # Errors
    /// Where the store can't be read, and there is nothing to answer with.
    pub async fn reading(&self, tenant: Option<TenantId>) -> Result<Arc<Reading>, StoreError> {
        match tenant {
            None => self.of_all().await,
            Some(tenant) => self.of_tenant(tenant).await,
        }
    }

    async fn of_all(&self) -> Result<Arc<Reading>, StoreError> {
        let mut all = self.all.subscribe();
        let read = tokio::time::timeout(PATIENCE, all.wait_for(Option::is_some)).await;
        let read = read.ok().and_then(Result::ok).and_then(|r| r.clone());
        read.ok_or_else(|| StoreError::Unavailable("counters were not read yet".into()))
    }

    async fn of_tenant(&self, tenant: TenantId) -> Result<Arc<Reading>, StoreError> {
        let tenants = || self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, reading)) = tenants().get(&tenant)
            && at.elapsed() < FRESH
        {
            return Ok(reading.clone());
        }
        let now = wall_clock() + self.ahead.load(Ordering::Relaxed);
        let from = first_minute(minute_of(now));
        let mut tally = Tally::default();
        let counts = self.store.counts(tenant.part(), Some(tenant), from).await?;
        for count in counts {
            tally.add(count.what, count.n, count.minute.is_some());
        }
        // Looked for only where there is one: the search would pass over all
        // that others wait for.
        let oldest = match tally.unfinished() {
            0 => None,
            _ => self.oldest(Some(tenant), now).await?,
        };
        let reading = Arc::new(Reading { tally, oldest });
        let mut tenants = tenants();
        if tenants.len() >= TENANTS {
            tenants.retain(|_, (at, _)| at.elapsed() < FRESH);
        }
        if tenants.len() < TENANTS {
            tenants.insert(tenant, (Instant::now(), reading.clone()));
        }
        Ok(reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{counter::DIED, delivery::Status};

    fn count(minute: Option<i64>, what: i16, n: i64) -> Count {
        Count { minute, what, n }
    }

    // The minutes that may still change are replaced, not added; what leaves the
    // window is no longer recent, and is still there.
    #[test]
    fn minutes_are_renewed_and_leave_the_window() {
        let delivered = Status::Delivered.to_i16();
        let mut memory = Memory {
            loaded: Instant::now(),
            minute: 2000,
            before: BTreeMap::new(),
            minutes: BTreeMap::new(),
        };
        memory.add(vec![
            count(None, delivered, 5),
            count(Some(1000), delivered, 3),
            count(Some(1000), DIED, 2),
            count(Some(1999), delivered, 1),
        ]);
        memory.renew(1998, 2001, vec![count(Some(1999), delivered, 4)]);
        assert_eq!(memory.tally().now(Status::Delivered), 12);
        assert_eq!(memory.tally().dead_letters(), 2);
        memory.renew(1999, 1000 + WINDOW, vec![count(Some(1999), delivered, 4)]);
        assert_eq!(memory.tally().dead_letters(), 2, "24 hours, to the minute");
        memory.renew(
            998 + WINDOW,
            1001 + WINDOW,
            vec![count(Some(1001 + WINDOW), DIED, 1)],
        );
        assert_eq!(memory.tally().dead_letters(), 1);
        assert_eq!(memory.tally().now(Status::Delivered), 12);
        assert_eq!(memory.minutes.len(), 2);
    }
}
