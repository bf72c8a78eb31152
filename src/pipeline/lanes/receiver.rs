//! What a lane knows of its receiver: how it is to be spared. Times are
//! microseconds since the lanes were made, on this node's monotonic clock; what is
//! older than that is negative.

use std::time::{Duration, Instant};

use crate::{
    domain::{
        breaker::{self, Breaker, Sign, Turn},
        id::{DeliveryId, Micros, SubscriptionId, TenantId, micros},
        outage::Outages,
        pace::Pace,
    },
    pipeline::{job::Job, lanes::Class},
    store::{Opening, Outage, ReceiverState},
};

/// So many attempts in a row that did not deliver are a beginning of failing.
const FAILING: u32 = 5;

/// How a subscription is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::pipeline) struct Terms {
    /// Deliveries under way at once.
    pub(in crate::pipeline) in_flight: u32,
    /// By what way they leave.
    pub(in crate::pipeline) class: Class,
    /// Attempts a second; 0: any number.
    pub(in crate::pipeline) rate: u32,
    /// When its breaker opens.
    pub(in crate::pipeline) breaker: breaker::Settings,
    /// Which host it is sent to; 0: none.
    pub(in crate::pipeline) host: u64,
    /// Which URL: with another one it is another receiver.
    pub(in crate::pipeline) url: u64,
}

impl From<u32> for Terms {
    fn from(in_flight: u32) -> Self {
        Self {
            in_flight,
            ..Self::default()
        }
    }
}

/// What is to become of a lane.
#[derive(Debug, Clone, Copy)]
pub(in crate::pipeline) enum Way {
    /// It goes on.
    Send(Terms),
    /// It waits, as all do.
    Hold {
        /// Which URL it is for.
        url: u64,
    },
    /// Its subscription is off or gone. Once it is on again its receiver is taken
    /// for well.
    Off,
}

/// Two readings of the clock.
#[derive(Debug, Clone, Copy)]
pub(in crate::pipeline) struct Clock {
    /// Since the lanes were made.
    pub(super) now: Micros,
    /// The same without the time in which delivery was off.
    pub(super) active: Micros,
}

/// For how long nothing was delivered of what was tried, without the time in which
/// delivery was off.
#[derive(Debug, Clone, Copy)]
struct Failing {
    /// Later than it was where its owner was told late: what is left after that is
    /// always the same.
    since: Micros,
    /// Its owner was told.
    warned: bool,
    /// Its subscription is to be disabled.
    over: bool,
}

/// After which times of failing an owner is told, and the subscription disabled; none:
/// never.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::pipeline) struct Patience {
    pub(in crate::pipeline) warn: Micros,
    pub(in crate::pipeline) disable: Micros,
}

/// A receiver that delivers nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pipeline) enum Bad {
    /// For so long that its owner is to know.
    Failing {
        /// How long, in microseconds.
        long: Micros,
        /// How much longer it may, in microseconds.
        left: Micros,
    },
    /// For too long, also since its owner was told.
    Failed,
}

/// A change in what is known of a receiver, to be stored.
#[derive(Debug, Clone)]
pub(in crate::pipeline) struct Changed {
    pub(in crate::pipeline) subscription: SubscriptionId,
    pub(in crate::pipeline) tenant: TenantId,
    /// What its breaker did.
    pub(in crate::pipeline) turn: Option<Turn>,
    /// That it delivers nothing, where that is to be told.
    pub(in crate::pipeline) bad: Option<Bad>,
    /// How long an outage was that is over now.
    pub(in crate::pipeline) outage: Micros,
    known: Known,
}

#[cfg(test)]
impl Changed {
    /// Of which nothing is known.
    pub(in crate::pipeline) fn of(subscription: SubscriptionId) -> Self {
        Self {
            subscription,
            tenant: TenantId::new(1, subscription.part()),
            turn: None,
            bad: None,
            outage: 0,
            known: Known::default(),
        }
    }
}

/// A subscription and its tenant.
struct Whose(SubscriptionId, TenantId);

impl From<&Job> for Whose {
    fn from(job: &Job) -> Self {
        Self(job.subscription, job.tenant)
    }
}

#[derive(Debug, Clone, Default)]
struct Known {
    generation: i64,
    breaker: Breaker,
    opened_at: Micros,
    outages: Outages,
    failing: Option<Failing>,
    asked: bool,
}

impl Changed {
    pub(in crate::pipeline) fn asked(&self) -> bool {
        self.known.asked
    }

    pub(in crate::pipeline) fn failures(&self) -> u32 {
        self.known.breaker.failures()
    }

    /// As it is written at that time.
    pub(in crate::pipeline) fn state(&self, clock: Clock) -> ReceiverState {
        let ago =
            |then: Micros, now: Micros| Duration::from_micros((now - then).max(0).unsigned_abs());
        let k = &self.known;
        let open = |until| Opening {
            ago: ago(k.opened_at, clock.now),
            left: ago(clock.now, until),
        };
        ReceiverState {
            subscription: self.subscription,
            tenant: self.tenant,
            generation: k.generation,
            failures: k.breaker.failures(),
            open: match k.breaker {
                Breaker::Closed { .. } => None,
                Breaker::Open { until, .. } => Some(open(until)),
                Breaker::HalfOpen { .. } => Some(open(clock.now)),
            },
            outages: k
                .outages
                .over()
                .iter()
                .map(|(from, to)| Outage {
                    began: ago(*from, clock.active),
                    ended: ago(*to, clock.active),
                })
                .collect(),
            outage: k.outages.since().map(|since| ago(since, clock.active)),
            failing: k.failing.map(|f| ago(f.since, clock.active)),
            warned: k.failing.is_some_and(|f| f.warned),
            asked: k.asked,
        }
    }
}

/// What a lane knows of its receiver.
#[derive(Default)]
pub(super) struct Receiver {
    known: Known,
    /// What was sent to ask whether it works again.
    probe: Option<(DeliveryId, i32)>,
    /// Attempts in a row that did not deliver.
    missed: u32,
    pace: Option<Box<Pace>>,
}

impl Receiver {
    /// Whether there is nothing to remember of it.
    pub(super) fn is_plain(&self) -> bool {
        self.known.breaker == Breaker::default()
            && self.known.generation == 0
            && self.missed == 0
            && self.pace.as_ref().is_none_or(|p| p.is_free())
    }

    /// Whether everything may be sent, as fast as it may.
    pub(super) const fn is_well(&self) -> bool {
        self.known.breaker.is_closed()
    }

    /// Whether its breaker lets a delivery through.
    pub(super) const fn may_send(&self) -> bool {
        match self.known.breaker {
            Breaker::Closed { .. } => true,
            Breaker::Open { .. } => false,
            Breaker::HalfOpen { .. } => self.probe.is_none(),
        }
    }

    /// Until when its breaker is open.
    pub(super) const fn open_until(&self) -> Option<Micros> {
        match self.known.breaker {
            Breaker::Open { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Follows the time.
    pub(super) fn pass(&mut self, now: Micros) {
        self.known.breaker.pass(now);
    }

    /// Lets one pass, as fast as it may.
    ///
    /// # Errors
    /// For how long to wait.
    pub(super) fn pace(&mut self, rate: u32, now: Micros) -> Result<(), Micros> {
        if rate == 0 && self.pace.is_none() {
            return Ok(());
        }
        let pace = self
            .pace
            .get_or_insert_with(|| Box::new(Pace::new(rate, now)));
        pace.limit_to(rate);
        let passed = pace.take(now);
        if pace.is_free() {
            self.pace = None;
        }
        passed
    }

    /// A delivery is about to be sent: its age counts no time in which the breaker was
    /// open.
    pub(super) fn sends(&mut self, job: &mut Job, clock: Clock, at: Instant) {
        if matches!(self.known.breaker, Breaker::HalfOpen { .. }) {
            self.probe = Some((job.id, job.token));
        }
        let waited = micros(at.saturating_duration_since(job.since));
        self.leave_out(job, clock.active - waited, clock.active);
    }

    /// Leaves out of a delivery's age what of that time was an outage.
    fn leave_out(&self, job: &mut Job, from: Micros, to: Micros) {
        if !self.known.outages.is_empty() {
            let deferred = self.known.outages.within(from, to);
            job.age -= deferred;
            job.deferred += deferred;
        }
    }

    /// The same for one that was fetched at that age, before what was held of it was
    /// left out.
    pub(super) fn fetched(&self, job: &mut Job, age: Micros, clock: Clock) {
        self.leave_out(job, clock.active - age, clock.active);
    }

    /// An attempt has ended. `asked`: the receiver asked for patience.
    pub(super) fn ended(
        &mut self,
        job: &Job,
        sign: Sign,
        asked: bool,
        terms: Terms,
        patience: Patience,
        clock: Clock,
    ) -> Option<Changed> {
        let probe = self.probe == Some((job.id, job.token));
        if probe {
            self.probe = None;
        }
        if sign == Sign::Nothing {
            return None;
        }
        let k = &mut self.known;
        k.asked |= asked && sign == Sign::Ill;
        let turn = k.breaker.ended(probe, sign, terms.breaker, clock.now);
        let mut outage = 0;
        match turn {
            Some(Turn::Opened) => {
                k.opened_at = clock.now;
                k.asked = asked;
                k.outages.begin(clock.active);
            }
            Some(Turn::Closed) => {
                outage = k.outages.end(clock.active);
                let mut pace = Pace::new(terms.rate, clock.now);
                pace.start_slowly(terms.in_flight, clock.now);
                self.pace = Some(Box::new(pace));
            }
            Some(Turn::Reopened) | None => {}
        }
        let (began_or_ended, bad) = self.misses(sign == Sign::Well, patience, clock.active);
        (turn.is_some() || began_or_ended || bad.is_some())
            .then(|| self.changed(job, turn, bad, outage))
    }

    /// Whether it began or ceased to fail, and what is to be told.
    fn misses(&mut self, well: bool, patience: Patience, now: Micros) -> (bool, Option<Bad>) {
        let failing = &mut self.known.failing;
        if well {
            self.missed = 0;
            return (failing.take().is_some(), None);
        }
        self.missed = self.missed.saturating_add(1);
        let Some(f) = failing else {
            let begins = self.missed >= FAILING;
            *failing = begins.then_some(Failing {
                since: now,
                warned: false,
                over: false,
            });
            return (begins, None);
        };
        let long = now - f.since;
        let after = |limit: Micros| patience.disable > 0 && long >= limit;
        if !f.warned && after(patience.warn) {
            // Attempts may be rare: whoever is told has time to do something about it.
            f.warned = true;
            f.since = now - patience.warn;
            let left = patience.disable - patience.warn;
            return (false, Some(Bad::Failing { long, left }));
        }
        if f.warned && after(patience.disable) && !f.over {
            f.over = true;
            return (false, Some(Bad::Failed));
        }
        (false, None)
    }

    fn changed(
        &mut self,
        whose: impl Into<Whose>,
        turn: Option<Turn>,
        bad: Option<Bad>,
        outage: Micros,
    ) -> Changed {
        let Whose(subscription, tenant) = whose.into();
        self.known.generation += 1;
        let changed = Changed {
            subscription,
            tenant,
            turn,
            bad,
            outage,
            known: self.known.clone(),
        };
        if turn == Some(Turn::Closed) {
            self.known.asked = false;
        }
        changed
    }

    /// Forgets whatever speaks against the receiver: it is another one, or was
    /// switched off. What of it was stored is to be told.
    pub(super) fn reset(
        &mut self,
        subscription: SubscriptionId,
        tenant: TenantId,
        clock: Clock,
    ) -> Option<Changed> {
        let k = &mut self.known;
        let stored = !k.breaker.is_closed() || k.failing.is_some();
        let outage = k.outages.end(clock.active);
        k.breaker = Breaker::default();
        k.failing = None;
        k.asked = false;
        (self.missed, self.probe, self.pace) = (0, None, None);
        stored.then(|| self.changed(Whose(subscription, tenant), None, None, outage))
    }

    /// What the store knows of a receiver.
    pub(super) fn load(state: &ReceiverState, clock: Clock) -> Self {
        let since = |d| micros(d);
        let over = state
            .outages
            .iter()
            .map(|o| (clock.active - since(o.began), clock.active - since(o.ended)));
        let outage = state.outage.map(|d| clock.active - since(d));
        let breaker = match state.open {
            None => Breaker::default(),
            Some(open) => Breaker::Open {
                failures: state.failures,
                until: clock.now + since(open.left),
            },
        };
        Self {
            known: Known {
                generation: state.generation,
                breaker,
                opened_at: clock.now - state.open.map_or(0, |o| since(o.ago)),
                outages: Outages::new(over.collect(), outage),
                failing: state.failing.map(|d| Failing {
                    since: clock.active - since(d),
                    warned: state.warned,
                    over: false,
                }),
                asked: state.asked,
            },
            missed: if state.failing.is_some() { FAILING } else { 0 },
            ..Self::default()
        }
    }
}
