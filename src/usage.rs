//! What keys called: admitted calls, calls refused for a limit, refused
//! credentials. Counted in memory, written to the store each second and read
//! back from it, so that every node's figures are of all nodes and outlive it;
//! a node that is killed loses its last second.
//!
//! The figures of 24 hours are sums of buckets in memory: minutes for each tier,
//! hours for each tenant and key. Sums of hours reach back to the beginning of
//! their first hour, so up to 25 hours.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    domain::id::{KeyId, Micros, TenantId, wall_clock},
    metrics::Metrics,
    store::{self, CallCount, Calls, Counted, Session, Store},
};

const MINUTE: Micros = 60_000_000;
const HOUR: Micros = 60 * MINUTE;
/// Minutes of a day.
const DAY_MINUTES: i64 = 1440;
/// Hours of a day.
const DAY_HOURS: i64 = 24;
/// How often counts are written and read.
const EVERY: Duration = Duration::from_secs(1);
/// How far before the last look the next one begins: a transaction may have been
/// under way for as long.
const OVERLAP: Micros = 10_000_000;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// It was admitted.
    Admitted,
    /// Its key's limit refused it.
    Limited,
    /// Its credential was refused.
    Unauthenticated,
}

/// Whose call it was, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Who {
    /// The key; none where none was proven.
    pub key: Option<KeyId>,
    /// Its tenant.
    pub tenant: Option<TenantId>,
    /// Its tier; empty where it has none.
    pub tier: String,
}

/// The figures of 24 hours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Refused credentials.
    pub auth_failures: i64,
    /// Calls refused for a limit.
    pub limit_hits: i64,
    /// Admitted calls and limit hits by tier.
    pub by_tier: BTreeMap<String, (i64, i64)>,
}

impl Figures {
    fn add(&mut self, tier: &str, calls: Calls) {
        self.auth_failures += calls.refused;
        self.limit_hits += calls.limited;
        if calls.admitted + calls.limited > 0 {
            let sums = self.by_tier.entry(tier.to_owned()).or_default();
            sums.0 += calls.admitted;
            sums.1 += calls.limited;
        }
    }
}

/// Counts by hour, the last hour last.
type Hours = Vec<(i64, Calls)>;

/// Counts calls.
pub struct Usage {
    /// Whose rows this node's are: a number of its own, never used again.
    session: Session,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The minute, and what was noted in it and not added yet.
    noted: (i64, HashMap<Who, Calls>),
    /// Of all nodes.
    sums: Sums,
    /// What this node counted in buckets that may still grow, and which of it is
    /// not written.
    own: HashMap<(Counted, i64), Calls>,
    unwritten: HashSet<(Counted, i64)>,
    /// What was last read of other sessions, and when, in buckets that may still
    /// grow or were just read.
    read: HashMap<(Session, Counted, i64), (Calls, Micros)>,
    /// The store's clock when it was last read.
    read_at: Micros,
}

#[derive(Default)]
struct Sums {
    tiers: BTreeMap<i64, BTreeMap<String, Calls>>,
    tenants: HashMap<TenantId, BTreeMap<String, Hours>>,
    keys: HashMap<KeyId, Hours>,
}

fn add(to: &mut Calls, calls: Calls) {
    to.admitted += calls.admitted;
    to.limited += calls.limited;
    to.refused += calls.refused;
}

fn add_hour(hours: &mut Hours, hour: i64, calls: Calls) {
    match hours.binary_search_by_key(&hour, |(h, _)| *h) {
        Ok(at) => add(&mut hours[at].1, calls),
        Err(at) => hours.insert(at, (hour, calls)),
    }
}

fn of_a_day(hours: &Hours, hour: i64) -> Calls {
    let mut sum = Calls::default();
    for (_, calls) in hours.iter().filter(|(h, _)| *h >= hour - DAY_HOURS) {
        add(&mut sum, *calls);
    }
    sum
}

impl Sums {
    fn add(&mut self, counted: &Counted, bucket: i64, calls: Calls) {
        match counted {
            Counted::Tier(tier) => {
                let tiers = self.tiers.entry(bucket).or_default();
                match tiers.get_mut(tier) {
                    Some(sum) => add(sum, calls),
                    None => drop(tiers.insert(tier.clone(), calls)),
                }
            }
            Counted::Tenant(tenant, tier) => {
                let tiers = self.tenants.entry(*tenant).or_default();
                match tiers.get_mut(tier) {
                    Some(hours) => add_hour(hours, bucket, calls),
                    None => drop(tiers.insert(tier.clone(), vec![(bucket, calls)])),
                }
            }
            Counted::Key(key) => add_hour(self.keys.entry(*key).or_default(), bucket, calls),
        }
    }

    /// Drops what is older than a day.
    fn forget(&mut self, now: Micros) {
        let (minute, hour) = (now.div_euclid(MINUTE), now.div_euclid(HOUR));
        self.tiers = self.tiers.split_off(&(minute - DAY_MINUTES + 1));
        let keep = |hours: &mut Hours| {
            hours.retain(|(h, _)| *h >= hour - DAY_HOURS);
            !hours.is_empty()
        };
        self.keys.retain(|_, hours| keep(hours));
        self.tenants.retain(|_, tiers| {
            tiers.retain(|_, hours| keep(hours));
            !tiers.is_empty()
        });
    }
}

fn hour_of(counted: &Counted, bucket: i64) -> i64 {
    match counted {
        Counted::Tier(_) => bucket.div_euclid(60),
        Counted::Tenant(..) | Counted::Key(_) => bucket,
    }
}

impl State {
    /// Adds what was noted to the sums, and to what is to be written.
    fn gather(&mut self, now: Micros) {
        let (minute, noted) = std::mem::take(&mut self.noted);
        self.noted.0 = now.div_euclid(MINUTE);
        let hour = minute.div_euclid(60);
        for (who, calls) in noted {
            let tenant = who.tenant.map(|t| Counted::Tenant(t, who.tier.clone()));
            let counted = [
                Some((Counted::Tier(who.tier), minute)),
                tenant.map(|t| (t, hour)),
                who.key.map(|k| (Counted::Key(k), hour)),
            ];
            for (counted, bucket) in counted.into_iter().flatten() {
                self.sums.add(&counted, bucket, calls);
                let row = (counted, bucket);
                add(self.own.entry(row.clone()).or_default(), calls);
                self.unwritten.insert(row);
            }
        }
    }

    /// Takes what another session wrote; only what is new of it is added.
    fn take(&mut self, session: Session, count: CallCount, now: Micros) {
        let CallCount {
            counted,
            bucket,
            calls,
        } = count;
        let hour = now.div_euclid(HOUR);
        if hour_of(&counted, bucket) < hour - DAY_HOURS {
            return;
        }
        let (old, _) = self
            .read
            .insert((session, counted.clone(), bucket), (calls, now))
            .unwrap_or_default();
        let new = Calls {
            admitted: calls.admitted - old.admitted,
            limited: calls.limited - old.limited,
            refused: calls.refused - old.refused,
        };
        if new != Calls::default() {
            self.sums.add(&counted, bucket, new);
        }
    }

    /// Drops what can't change any more, and what is older than a day.
    fn forget(&mut self, now: Micros) {
        let hour = now.div_euclid(HOUR);
        let grows = |counted: &Counted, bucket| hour_of(counted, bucket) >= hour - 1;
        self.own
            .retain(|row, _| grows(&row.0, row.1) || self.unwritten.contains(row));
        self.read
            .retain(|(_, c, b), (_, at)| grows(c, *b) || *at > now - MINUTE);
        self.sums.forget(now);
    }
}

impl Default for Usage {
    fn default() -> Self {
        let mut bytes = [0; 8];
        // Without a random source the time tells sessions apart.
        let id = match getrandom::fill(&mut bytes) {
            Ok(()) => i64::from_le_bytes(bytes),
            Err(_) => wall_clock(),
        };
        Self {
            session: Session(id & i64::MAX),
            state: Mutex::default(),
        }
    }
}

impl Usage {
    /// With what the store has of the last 24 hours.
    ///
    /// # Errors
    /// Where the store can't be read.
    pub async fn load(store: &dyn Store) -> store::Result<Self> {
        let usage = Self::default();
        usage.read(store).await?;
        Ok(usage)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call.
    pub fn note(&self, who: &Who, call: Call) {
        let now = wall_clock();
        let mut state = self.state();
        if state.noted.0 != now.div_euclid(MINUTE) {
            state.gather(now);
        }
        let one = match call {
            Call::Admitted => Calls {
                admitted: 1,
                ..Calls::default()
            },
            Call::Limited => Calls {
                limited: 1,
                ..Calls::default()
            },
            Call::Unauthenticated => Calls {
                refused: 1,
                ..Calls::default()
            },
        };
        match state.noted.1.get_mut(who) {
            Some(calls) => add(calls, one),
            None => drop(state.noted.1.insert(who.clone(), one)),
        }
    }

    /// The figures of the last 24 hours, of one tenant or of all.
    pub fn figures(&self, tenant: Option<TenantId>) -> Figures {
        let now = wall_clock();
        let mut state = self.state();
        state.gather(now);
        let mut figures = Figures::default();
        match tenant {
            None => {
                let first = now.div_euclid(MINUTE) - DAY_MINUTES + 1;
                let minutes = state.sums.tiers.range(first..);
                for (tier, calls) in minutes.flat_map(|(_, tiers)| tiers) {
                    figures.add(tier, *calls);
                }
            }
            Some(tenant) => {
                let hour = now.div_euclid(HOUR);
                for (tier, hours) in state.sums.tenants.get(&tenant).into_iter().flatten() {
                    figures.add(tier, of_a_day(hours, hour));
                }
            }
        }
        figures
    }

    /// Admitted calls and limit hits of these keys in the last 24 hours, in the
    /// same order.
    #[expect(
        clippy::unused_async,
        reason = "callers need not know where counts are"
    )]
    pub async fn of_keys(&self, keys: &[KeyId]) -> Vec<(i64, i64)> {
        let now = wall_clock();
        let mut state = self.state();
        state.gather(now);
        keys.iter()
            .map(|key| {
                let hours = state.sums.keys.get(key);
                let calls = hours.map(|h| of_a_day(h, now.div_euclid(HOUR)));
                let calls = calls.unwrap_or_default();
                (calls.admitted, calls.limited)
            })
            .collect()
    }

    /// Reads what other sessions wrote since the last time.
    ///
    /// # Errors
    /// Where the store can't be read.
    pub async fn read(&self, store: &dyn Store) -> store::Result<()> {
        let since = self.state().read_at - OVERLAP;
        let (at, counts) = store.calls(since, self.session).await?;
        let now = wall_clock();
        let mut state = self.state();
        state.read_at = at;
        for (session, count) in counts {
            state.take(session, count, now);
        }
        Ok(())
    }

    /// Writes what is not written yet.
    ///
    /// # Errors
    /// Where it can't be written: it is kept for the next time.
    pub async fn write(&self, store: &dyn Store) -> store::Result<()> {
        let now = wall_clock();
        let counts: Vec<CallCount> = {
            let mut state = self.state();
            state.gather(now);
            let rows = std::mem::take(&mut state.unwritten);
            let counts = rows.into_iter().map(|(counted, bucket)| CallCount {
                calls: state
                    .own
                    .get(&(counted.clone(), bucket))
                    .copied()
                    .unwrap_or_default(),
                counted,
                bucket,
            });
            counts.collect()
        };
        if counts.is_empty() {
            return Ok(());
        }
        store
            .note_calls(self.session, &counts)
            .await
            .inspect_err(|_| {
                let rows = counts.iter().map(|c| (c.counted.clone(), c.bucket));
                self.state().unwritten.extend(rows);
            })
    }

    /// Writes and reads each second until it is cancelled, and writes once more
    /// then. Says once that it fails, and once that it works again.
    pub async fn run(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        cancel: CancellationToken,
    ) {
        let mut minute = 0;
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(EVERY) => {}
            }
            let done = match self.write(&*store).await {
                Ok(()) => self.read(&*store).await,
                failed => failed,
            };
            metrics.troubles.note(
                "usage",
                &done,
                "calls' counts can't be stored",
                "calls' counts are stored again",
            );
            let now = wall_clock();
            if now.div_euclid(MINUTE) != minute {
                minute = now.div_euclid(MINUTE);
                self.state().forget(now);
            }
        }
        if let Err(e) = self.write(&*store).await {
            tracing::warn!(error.message = %e, "the last calls' counts are not stored");
        }
    }
}
