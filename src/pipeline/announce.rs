//! Operational events: a tenant is told how its own webhooks fare, by webhooks, where
//! one of its subscriptions wants such events.
//!
//! None of them leads to another without end: what becomes of an operational event's
//! own delivery is not announced, a breaker is announced to all but its own
//! subscription, and neither more often than the limits here say.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::publish::{Audience, NewEvent, Publisher};
use crate::{
    directory::Directory,
    domain::{
        event::{
            BREAKER_CLOSED, BREAKER_OPENED, DELIVERY_DEAD, OPERATIONAL, SECRET_ROTATED,
            SUBSCRIPTION_DISABLED, TEST,
        },
        id::{DeliveryId, Micros, SubscriptionId, TenantId},
        subscription::{Disabled, Subscription},
    },
    store::{Store, StoreError},
};

/// For how long deaths of one subscription's deliveries are gathered.
const GATHER: Duration = Duration::from_secs(1);
/// The least time between two announcements of them.
const QUIET: Duration = Duration::from_secs(60);
/// The most deliveries that one of them names.
const NAMED: usize = 20;
/// The most reasons that one of them counts apart.
const REASONS: usize = 20;

/// Those that an owner of `*` did not ask for: it wants all of its business' events, and
/// would count and pay for these beside them. That one of its subscriptions is switched
/// off it is told all the same.
const MUST_BE_NAMED: [&str; 4] = [
    BREAKER_OPENED,
    BREAKER_CLOSED,
    DELIVERY_DEAD,
    SECRET_ROTATED,
];

/// Those of which a subscription is not told itself: its receiver is the one that is ill.
const NOT_TO_ITSELF: [&str; 2] = [BREAKER_OPENED, BREAKER_CLOSED];

/// Who gets an event of that type about that subscription.
fn audience(event_type: &str, about: Option<SubscriptionId>) -> Audience {
    Audience {
        but: about.filter(|_| NOT_TO_ITSELF.contains(&event_type)),
        named: MUST_BE_NAMED.contains(&event_type),
    }
}

/// Whether it takes a look into events' bodies to know which of them that subscription
/// gets again.
pub(super) fn looks_inside(s: &Subscription) -> bool {
    NOT_TO_ITSELF.into_iter().any(|t| s.names(t))
}

/// Whether a subscription gets an event again that was published once, with that
/// payload where [it takes a look](looks_inside): who could not have got it at first
/// does not get it later.
pub(super) fn gets_again(s: &Subscription, event_type: &str, data: &[u8]) -> bool {
    // A test is one subscription's, and over with it.
    event_type != TEST && audience(event_type, about(event_type, data)).has(s, event_type)
}

/// Whom an event is about that not everybody is told of.
fn about(event_type: &str, data: &[u8]) -> Option<SubscriptionId> {
    if !NOT_TO_ITSELF.contains(&event_type) {
        return None;
    }
    let data: Value = serde_json::from_slice(data).ok()?;
    data["subscription_id"].as_str()?.parse().ok()
}

/// Why the server switches a subscription off.
#[derive(Debug, Clone, Copy)]
pub(super) enum Why {
    /// Its receiver answered 410 at an address that was read then.
    Gone(Micros),
    /// Nothing was delivered for days.
    Failing,
}

impl Why {
    const fn reason(self) -> &'static str {
        match self {
            Self::Gone(_) => "gone",
            Self::Failing => "failing",
        }
    }
}

/// Tells tenants how their webhooks fare.
#[derive(Clone)]
pub struct Announcer {
    store: Arc<dyn Store>,
    directory: Arc<Directory>,
    publisher: Arc<Publisher>,
}

impl Announcer {
    /// One that publishes like that.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        directory: Arc<Directory>,
        publisher: Arc<Publisher>,
    ) -> Self {
        Self {
            store,
            directory,
            publisher,
        }
    }

    /// Publishes an operational event about a subscription, whose id and URL are added
    /// to the data, where one of the tenant's wants it.
    pub async fn tell(
        &self,
        tenant: TenantId,
        about: SubscriptionId,
        event_type: &str,
        mut data: Value,
    ) {
        let all = self.directory.subscriptions(tenant);
        let targets = all.targets.iter().map(|t| &t.subscription);
        let to = audience(event_type, Some(about));
        if !targets.chain(&all.unusable).any(|s| to.has(s, event_type)) {
            return;
        }
        data["subscription_id"] = json!(about.to_string());
        if let Some(target) = self.directory.target(about) {
            data["url"] = json!(target.subscription.url);
        }
        let told = self.publisher.publish_to(
            NewEvent {
                tenant,
                key: None,
                event_type: event_type.to_owned(),
                data: data.to_string().into(),
                idempotency_key: None,
                ordering_key: None,
                only: None,
                trace: None,
            },
            to,
        );
        if let Err(e) = told.await {
            tracing::warn!(
                subscription.id = %about, event.kind = event_type, error.message = %e,
                "owner not told"
            );
        }
    }

    /// Switches a subscription off, and tells its owner; called again with the same
    /// time until it has said that it is done.
    pub(super) async fn disable(
        &self,
        id: SubscriptionId,
        why: Why,
        at: Micros,
    ) -> Result<(), StoreError> {
        let off = Disabled {
            at,
            reason: why.reason().into(),
        };
        loop {
            let Some(mut s) = self.store.get_subscription(id).await? else {
                return Ok(());
            };
            match &s.disabled {
                // By a call whose answer was lost.
                Some(by) if *by == off => {}
                Some(_) => return Ok(()),
                // What answered may not be what it leads to by now.
                None if matches!(why, Why::Gone(since) if since < s.updated_at) => return Ok(()),
                None => {
                    let before = s.updated_at;
                    s.disabled = Some(off.clone());
                    s.updated_at = at.max(before + 1);
                    match self.store.update_subscription(&s, before).await {
                        Ok(()) => {}
                        Err(StoreError::Conflict) => continue,
                        Err(e) => return Err(e),
                    }
                }
            }
            match why {
                Why::Gone(_) => {
                    tracing::warn!(subscription.id = %id, "receiver is gone (410): subscription disabled");
                }
                Why::Failing => {
                    tracing::warn!(subscription.id = %id, "receiver fails for too long: subscription disabled");
                }
            }
            // Read again sooner or later; its owner is told in any case.
            if self.directory.refresh().await.is_err() {
                self.directory.nudge();
            }
            let data = json!({"reason": why.reason()});
            self.tell(s.tenant, id, SUBSCRIPTION_DISABLED, data).await;
            return Ok(());
        }
    }
}

/// Deliveries that were given up.
#[derive(Debug)]
pub(super) struct Death {
    pub(super) tenant: TenantId,
    pub(super) subscription: SubscriptionId,
    /// The delivery; none of those that are only counted.
    pub(super) delivery: Option<DeliveryId>,
    pub(super) count: u64,
    pub(super) reason: String,
}

/// Whether the death of a delivery is announced: not of one that announces something
/// itself.
pub(super) fn is_announced(event_type: &str) -> bool {
    !OPERATIONAL.contains(&event_type)
}

/// What is to be told of one subscription.
struct Gathered {
    tenant: TenantId,
    due: Instant,
    count: u64,
    named: Vec<DeliveryId>,
    reasons: BTreeMap<String, u64>,
}

/// Deaths, gathered by subscription.
#[derive(Default)]
struct Obituaries {
    gathered: HashMap<SubscriptionId, Gathered>,
    /// Until when nothing is told of a subscription.
    quiet: HashMap<SubscriptionId, Instant>,
}

impl Obituaries {
    fn add(&mut self, death: Death, now: Instant) {
        let quiet = self.quiet.get(&death.subscription).copied();
        let g = self
            .gathered
            .entry(death.subscription)
            .or_insert_with(|| Gathered {
                tenant: death.tenant,
                due: quiet.map_or(now + GATHER, |until| until.max(now + GATHER)),
                count: 0,
                named: Vec::new(),
                reasons: BTreeMap::new(),
            });
        g.count += death.count;
        if g.named.len() < NAMED {
            g.named.extend(death.delivery);
        }
        let reason = if g.reasons.len() < REASONS || g.reasons.contains_key(&death.reason) {
            death.reason
        } else {
            "other".to_owned()
        };
        *g.reasons.entry(reason).or_default() += death.count;
    }

    /// When the next are to be told.
    fn next(&self) -> Option<Instant> {
        self.gathered.values().map(|g| g.due).min()
    }

    /// What is to be told now.
    fn due(&mut self, now: Instant) -> Vec<(SubscriptionId, TenantId, Value)> {
        self.quiet.retain(|_, until| *until > now);
        let due = self.gathered.extract_if(|_, g| g.due <= now);
        let due: Vec<_> = due
            .map(|(subscription, g)| {
                let named: Vec<String> = g.named.iter().map(ToString::to_string).collect();
                let data = json!({
                    "count": g.count, "delivery_ids": named, "reasons": g.reasons,
                });
                (subscription, g.tenant, data)
            })
            .collect();
        for (subscription, ..) in &due {
            self.quiet.insert(*subscription, now + QUIET);
        }
        due
    }
}

impl Announcer {
    /// Tells of deaths until it is cancelled.
    pub(super) async fn tell_of_deaths(
        self,
        mut deaths: mpsc::UnboundedReceiver<Death>,
        cancel: CancellationToken,
    ) {
        let mut all = Obituaries::default();
        loop {
            let time = async {
                match all.next() {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                death = deaths.recv() => match death {
                    Some(death) => all.add(death, Instant::now()),
                    None => return,
                },
                () = time => {}
            }
            for (subscription, tenant, data) in all.due(Instant::now()) {
                self.tell(tenant, subscription, DELIVERY_DEAD, data).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{EventId, Part};

    // A7: many deaths are one event, and the next comes a minute later.
    #[test]
    fn deaths_are_gathered() {
        let subscription = SubscriptionId::new(1, Part::new(1));
        let death = |n: u32| Death {
            tenant: TenantId::DEFAULT,
            subscription,
            delivery: Some(DeliveryId::of(EventId::new(1, Part::new(1)))),
            count: 1,
            reason: format!("http_{n}"),
        };
        let mut all = Obituaries::default();
        let start = Instant::now();
        for n in 0..100 {
            all.add(death(500 + n), start);
        }
        assert!(all.due(start).is_empty());
        assert_eq!(all.next(), Some(start + GATHER));
        let told = all.due(start + GATHER);
        let data = &told[0].2;
        assert_eq!((told.len(), &data["count"]), (1, &json!(100)));
        assert_eq!(data["delivery_ids"].as_array().unwrap().len(), NAMED);
        assert_eq!(data["reasons"]["http_500"], 1);
        assert_eq!(data["reasons"]["other"], 80);
        all.add(death(500), start + 2 * GATHER);
        assert_eq!(all.next(), Some(start + GATHER + QUIET));
        assert_eq!(all.due(start + GATHER + QUIET).len(), 1);
        assert_eq!(all.next(), None);
    }

    // A7: an announcement's own death is not announced.
    #[test]
    fn announcements_die_in_silence() {
        assert!(is_announced("invoice.paid"));
        assert!(!is_announced("delivery.dead") && !is_announced("breaker.opened"));
    }
}
