//! A store that does as a test says: verbs that fail, whose answers are lost or
//! come late.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use onering::{
    app::Around,
    domain::{
        audit::{Chain, Record},
        delivery::{Attempt, Delivery, Status},
        event_type::EventType,
        id::{
            DeliveryId, EventId, EventTypeId, KeyId, Micros, Part, RedriveId, SubscriptionId,
            TenantId,
        },
        key::Key,
        limit::{Answer, Ask, Window},
        redrive::{self, Redrive, Selection},
        subscription::{Ordering, Subscription},
        switch::Change,
        tenant::Tenant,
        timeline::Timeline,
    },
    store::{
        AuditEnd, Author, BreakerStore, Buried, CallCount, CallStore, Changed, Changes,
        ConfigStore, Count, CounterStore, EventTypeStore, Finish, Finished, Forgotten, Hints,
        HistoryStore, KeyStore, KeyUse, Leased, Letters, LimitStore, LiveNode, Load, LoadStore,
        Moved, NodeStore, Ordered, Page, Past, Peer, PeerStore, Publish, Published, QueueStore,
        ReceiverState, Recent, RedriveStore, Result, SealedKey, Session, Standing, Step, Store,
        StoreError, StoredEvent, SubscriptionStore, SwitchStore, TenantStore, TimelineStore, Usage,
        Waiting, Want,
    },
};
use tokio::sync::watch;

use super::wait::until;

/// What befalls a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and nothing is done.
    Fails,
    /// It is done, and its answer is lost.
    Lost,
    /// It is done, and its answer comes once the verb is mended.
    Late,
    /// It is done a fifth of a second later.
    Slow,
}

const SLOW: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Verb {
    /// What befalls it next, and how often yet.
    planned: Option<(Fault, usize)>,
    began: usize,
    answered: usize,
}

#[derive(Default)]
struct State {
    verbs: HashMap<&'static str, Verb>,
    /// Whether every verb fails.
    all: bool,
    /// One call in so many of any verb of the queue goes wrong; 0: none does.
    one_in: u64,
    chance: u64,
}

/// The faults of a store, and a count of what was asked of it.
pub struct Faults {
    state: Mutex<State>,
    mended: watch::Sender<u64>,
}

impl Faults {
    /// None yet.
    pub fn none() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            mended: watch::Sender::new(0),
        })
    }

    /// Puts itself between a node and its store.
    pub fn around(self: &Arc<Self>) -> Around {
        let faults = self.clone();
        Arc::new(move |inner| {
            Arc::new(Faulty {
                inner,
                faults: faults.clone(),
            })
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next so many calls of a verb end like this; late ones all until it is mended.
    pub fn next(&self, verb: &'static str, fault: Fault, times: usize) {
        self.state().verbs.entry(verb).or_default().planned = Some((fault, times));
    }

    /// Every call of a verb ends like this until it is mended.
    pub fn always(&self, verb: &'static str, fault: Fault) {
        self.next(verb, fault, usize::MAX);
    }

    /// The verb works again; late answers come now.
    pub fn mend(&self, verb: &'static str) {
        self.state().verbs.entry(verb).or_default().planned = None;
        self.mended.send_modify(|n| *n += 1);
    }

    /// Every verb fails from now on, or works again.
    pub fn all_fail(&self, fail: bool) {
        self.state().all = fail;
    }

    /// The verbs that were begun so far, and how often.
    pub fn all_begun(&self) -> HashMap<&'static str, usize> {
        let state = self.state();
        state.verbs.iter().map(|(v, s)| (*v, s.began)).collect()
    }

    /// The verbs that succeeded so far, and how often.
    pub fn all_answered(&self) -> HashMap<&'static str, usize> {
        let state = self.state();
        state.verbs.iter().map(|(v, s)| (*v, s.answered)).collect()
    }

    /// From now on one in so many calls of the queue's verbs, by chance, fails or
    /// loses its answer; with 0 none does. The seed repeats the chances.
    pub fn one_in(&self, n: u64, seed: u64) {
        let mut state = self.state();
        state.one_in = n;
        state.chance = seed | 1;
    }

    /// How often a verb was begun.
    pub fn began(&self, verb: &'static str) -> usize {
        self.state().verbs.get(verb).map_or(0, |v| v.began)
    }

    /// How often a verb succeeded, and its caller was told.
    pub fn answered(&self, verb: &'static str) -> usize {
        self.state().verbs.get(verb).map_or(0, |v| v.answered)
    }

    /// Waits until a verb has succeeded so often.
    pub async fn wait(&self, verb: &'static str, count: usize) {
        until(&format!("{count} times {verb}"), async || {
            (self.answered(verb) >= count).then_some(())
        })
        .await;
    }

    fn begin(&self, verb: &'static str, at_risk: bool) -> Option<Fault> {
        let mut state = self.state();
        let all = state.all;
        let known = state.verbs.entry(verb).or_default();
        known.began += 1;
        if all {
            return Some(Fault::Fails);
        }
        if let Some((fault, left)) = &mut known.planned {
            let fault = *fault;
            *left = left.saturating_sub(1);
            if *left == 0 && fault != Fault::Late {
                known.planned = None;
            }
            return Some(fault);
        }
        if state.one_in == 0 || !at_risk {
            return None;
        }
        // xorshift64*
        state.chance ^= state.chance >> 12;
        state.chance ^= state.chance << 25;
        state.chance ^= state.chance >> 27;
        let drawn = state.chance.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        match drawn % (2 * state.one_in) {
            0 => Some(Fault::Fails),
            1 => Some(Fault::Lost),
            _ => None,
        }
    }

    async fn late(&self, verb: &'static str) {
        let mut mended = self.mended.subscribe();
        while self
            .state()
            .verbs
            .get(verb)
            .is_some_and(|v| v.planned.is_some())
        {
            // The sender lives as long as this.
            let _ = mended.changed().await;
        }
    }
}

struct Faulty {
    inner: Arc<dyn Store>,
    faults: Arc<Faults>,
}

fn away() -> StoreError {
    StoreError::Unavailable("as the test wants it".into())
}

impl Faulty {
    async fn pass<T>(
        &self,
        verb: &'static str,
        at_risk: bool,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let answer = match self.faults.begin(verb, at_risk) {
            None => call.await?,
            Some(Fault::Fails) => return Err(away()),
            Some(Fault::Lost) => {
                call.await?;
                return Err(away());
            }
            Some(Fault::Slow) => {
                tokio::time::sleep(SLOW).await;
                call.await?
            }
            Some(Fault::Late) => {
                let answer = call.await?;
                self.faults.late(verb).await;
                answer
            }
        };
        let mut state = self.faults.state();
        state.verbs.entry(verb).or_default().answered += 1;
        Ok(answer)
    }
}

/// Passes these verbs on; `at_risk` are those that chance befalls.
macro_rules! passed_on {
    ($trait:ident, $at_risk:expr, { $($verb:ident($($arg:ident: $type:ty),*) -> $answer:ty;)+ }) => {
        #[async_trait]
        impl $trait for Faulty {
            $(async fn $verb(&self, $($arg: $type),*) -> Result<$answer> {
                let call = self.inner.$verb($($arg),*);
                self.pass(stringify!($verb), $at_risk, call).await
            })+
        }
    };
}

passed_on!(ConfigStore, false, {
    revision() -> i64;
    changes(since: i64) -> Changes;
    sealed_keys() -> Vec<SealedKey>;
    add_sealed_key(key: &SealedKey) -> ();
    reseal(keys: &[SealedKey]) -> ();
});

passed_on!(SwitchStore, false, {
    change_switches(names: &[&str], change: Change, by: Author<'_>, chain: &Chain) -> Changed;
    audit(action: &str, target: Option<&str>, page: Page<i64>) -> Vec<Record>;
    read_audit(each: &mut (dyn FnMut(Record) + Send)) -> AuditEnd;
});

passed_on!(TenantStore, false, {
    create_tenant(tenant: &Tenant) -> ();
    list_tenants(page: Page<TenantId>) -> Vec<Tenant>;
});

passed_on!(KeyStore, false, {
    create_key(key: &Key) -> ();
    create_keys(keys: &[Key]) -> ();
    create_first_admin_key(key: &Key) -> ();
    get_key(id: KeyId) -> Option<Key>;
    list_keys(tenant: Option<TenantId>, page: Page<KeyId>) -> Vec<Key>;
    update_key(key: &Key, updated_at: Micros) -> ();
    delete_key(id: KeyId) -> bool;
    note_key_use(used: &[KeyUse]) -> ();
    key_use(id: KeyId) -> Option<KeyUse>;
});

passed_on!(EventTypeStore, false, {
    create_event_type(event_type: &EventType, quota: i64) -> ();
    get_event_type(tenant: TenantId, name: &str) -> Option<EventType>;
    event_type_by_id(id: EventTypeId) -> Option<EventType>;
    list_event_types(tenant: TenantId, page: Page<EventTypeId>) -> Vec<EventType>;
    update_event_type(event_type: &EventType, updated_at: Micros) -> ();
    delete_event_type(id: EventTypeId) -> bool;
});

passed_on!(SubscriptionStore, false, {
    create_subscription(subscription: &Subscription, quota: i64) -> ();
    get_subscription(id: SubscriptionId) -> Option<Subscription>;
    list_subscriptions(tenant: TenantId, page: Page<SubscriptionId>) -> Vec<Subscription>;
    update_subscription(s: &Subscription, updated_at: Micros) -> ();
    delete_subscription(id: SubscriptionId) -> bool;
    prolong_subscriptions(ids: &[SubscriptionId]) -> ();
    end_subscriptions(limit: i64) -> Vec<SubscriptionId>;
});

passed_on!(PeerStore, false, {
    advertise(session: Session, url: &str) -> ();
    peers() -> Vec<Peer>;
});

passed_on!(QueueStore, true, {
    publish(session: Session, batch: &[Publish]) -> Vec<Published>;
    claim(session: Session, wants: &[Want]) -> Vec<Leased>;
    finish(batch: &[Finish]) -> Vec<Finished>;
    waiting(parts: &[Part]) -> Vec<Waiting>;
    leases(session: Session) -> Vec<(DeliveryId, i32)>;
    free_lost(parts: &[Part]) -> u64;
    bury(parts: &[Part], limit: i64) -> Vec<Buried>;
    cancel(part: Part, subscription: SubscriptionId, limit: i64) -> u64;
    give_up(part: Part, subscription: SubscriptionId, age: Duration, limit: i64) -> u64;
    ordered(parts: &[Part]) -> Vec<Ordered>;
    reorder(part: Part, subscription: SubscriptionId, ordering: Ordering, limit: i64) -> u64;
    give_up_parked(part: Part, subscription: SubscriptionId, age: Duration, limit: i64) -> u64;
    skip(id: DeliveryId) -> bool;
    retry_by_hand(id: DeliveryId) -> Option<Status>;
});

passed_on!(BreakerStore, true, {
    save_receiver(session: Session, state: &ReceiverState, opened: bool) -> bool;
    receivers_in(parts: &[Part]) -> Vec<ReceiverState>;
    receivers(subscriptions: &[SubscriptionId]) -> Vec<ReceiverState>;
    revive(part: Part, subscription: SubscriptionId, asked: bool, limit: i64) -> u64;
});

passed_on!(NodeStore, false, {
    begin_session(name: &str, ttl: Duration) -> Session;
    renew_session(session: Session, ttl: Duration) -> bool;
    end_session(session: Session) -> ();
    set_ready(session: Session, ready: bool) -> ();
    partitions() -> Vec<(Part, Session)>;
    take_partitions(session: Session, among: &[Part]) -> Vec<Part>;
    hand_over(session: Session, to: Session, parts: &[Part]) -> Vec<Part>;
    hold(session: Session, parts: &[Part], held: bool) -> ();
    confirm(session: Session, revision: i64, pins: &str) -> ();
    nodes() -> Vec<LiveNode>;
    hint(hints: &[(Part, SubscriptionId)]) -> ();
    listen() -> Box<dyn Hints>;
});

passed_on!(TimelineStore, false, {
    timeline() -> Timeline;
    now() -> Micros;
    server() -> String;
    advance_timeline() -> Timeline;
    note_restored(why: &str) -> ();
    accept_restored() -> Timeline;
});

passed_on!(HistoryStore, false, {
    get_event(id: EventId) -> Option<StoredEvent>;
    get_delivery(id: DeliveryId) -> Option<Delivery>;
    deliveries_of_subscription(
        id: SubscriptionId, status: Option<Status>, page: Page<DeliveryId>) -> Vec<Delivery>;
    deliveries_of_event(
        id: EventId, status: Option<Status>, page: Page<DeliveryId>) -> Vec<Delivery>;
    attempts(id: DeliveryId) -> Vec<Attempt>;
    prepare_days() -> ();
    forget(days: i32, limit: i64) -> Forgotten;
    note_usage(session: Session, usage: &[Usage]) -> ();
    stored_bytes() -> Vec<(TenantId, i64)>;
});

passed_on!(LimitStore, false, {
    lend(asks: &[Ask]) -> Vec<Answer>;
    limit_windows() -> (Micros, Vec<(KeyId, Window)>);
    forget_limit_windows() -> u64;
    live_sessions() -> i64;
});

passed_on!(CallStore, false, {
    note_calls(session: Session, counts: &[CallCount]) -> ();
    calls(since: Micros, but: Session) -> (Micros, Vec<(Session, CallCount)>);
    forget_calls() -> u64;
});

passed_on!(CounterStore, false, {
    counts(part: Part, tenant: Option<TenantId>, from: i64) -> Vec<Count>;
    counts_since(from: i64) -> (Micros, Vec<Count>);
    add_up(parts: &[Part], limit: i64) -> u64;
    oldest_unfinished(tenant: Option<TenantId>) -> Option<DeliveryId>;
    recent_deliveries(recent: &Recent, page: Page<DeliveryId>) -> Vec<Delivery>;
});

passed_on!(LoadStore, false, {
    load_finished(load: &Load) -> ();
    analyze() -> ();
});

passed_on!(RedriveStore, false, {
    get_letter(id: DeliveryId) -> Option<Delivery>;
    list_letters(selection: &Selection, parts: &[Part], page: Page<DeliveryId>) -> Letters;
    create_redrive(redrive: &Redrive, quota: i64, by: Author<'_>, chain: &Chain) -> Redrive;
    get_redrive(id: RedriveId) -> Option<Redrive>;
    list_redrives(tenant: Option<TenantId>, page: Page<RedriveId>) -> Vec<Redrive>;
    change_redrive(id: RedriveId, change: redrive::Change) -> Option<Redrive>;
    running_redrives(parts: &[Part]) -> Vec<Redrive>;
    move_letters(session: Session, id: RedriveId, most: i64) -> Option<Moved>;
    past_events(session: Session, id: RedriveId, bodies: bool, retention_days: i32) -> Option<Past>;
    standing(subscription: SubscriptionId, events: &[EventId]) -> Vec<Standing>;
    replay(session: Session, id: RedriveId, step: &Step) -> Option<Moved>;
});

#[async_trait]
impl Store for Faulty {
    async fn applied_migration(&self) -> Result<i64> {
        self.pass("applied_migration", false, self.inner.applied_migration())
            .await
    }

    fn expected_migration(&self) -> i64 {
        self.inner.expected_migration()
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    async fn close(&self) {
        self.inner.close().await;
    }

    async fn shift_clock(&self, by: Micros) -> Result<()> {
        self.inner.shift_clock(by).await
    }
}
