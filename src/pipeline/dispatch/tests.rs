use bytes::Bytes;
use zeroize::Zeroizing;

use super::*;
use crate::{
    domain::id::{EventId, TenantId},
    seal::Keyring,
    settings::{MasterKey, Settings},
    store::{Session, Store, sqlite::Sqlite},
};

/// A dispatcher over an empty store, where its jobs' ends arrive, and the store's folder.
async fn dispatcher(
    poll: Duration,
) -> (
    Arc<Dispatcher>,
    mpsc::UnboundedReceiver<Ended>,
    tempfile::TempDir,
) {
    let folder = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&folder.path().join("o.db")).await.unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    let settings = Settings::from_vars(std::iter::empty()).unwrap();
    let live = Arc::new(ArcSwap::from_pointee(settings.live));
    let metrics = Arc::new(Metrics::new());
    let master = MasterKey(Zeroizing::new([7; 32]));
    let keyring = Keyring::open(&*store, &master).await.unwrap();
    let (live, metrics) = (live.clone(), metrics.clone());
    let directory = Directory::load(
        store.clone(),
        Arc::new(keyring),
        live.clone(),
        metrics.clone(),
    )
    .await
    .unwrap();
    let ttl = Duration::from_secs(60);
    let node = Arc::new(Node::new(store, metrics.clone(), "n".into(), ttl));
    let (hints, _) = mpsc::unbounded_channel();
    let (changed, _) = mpsc::unbounded_channel();
    let (dispatcher, ended) = Dispatcher::new(
        directory,
        live,
        node,
        metrics,
        poll,
        Some(10),
        (changed, hints),
    );
    (dispatcher, ended, folder)
}

/// The end of an attempt that is to be repeated after that time.
fn retried(subscription: SubscriptionId, after: Duration) -> Ended {
    let tenant = TenantId::new(1, subscription.part());
    let event = EventId::new(1, subscription.part());
    let job = Job {
        id: DeliveryId::of(event),
        tenant,
        subscription,
        event,
        event_type: "a".into(),
        body: Bytes::from_static(b"{}"),
        trace: None,
        token: 1,
        attempts: 0,
        replays: 0,
        by_hand: false,
        age: 0,
        deferred: 0,
        ordering_key: None,
        since: Instant::now(),
        session: Session(1),
    };
    let settle = Settle::Retry {
        after,
        charged: true,
    };
    Ended {
        finish: Finish {
            held: 0,
            ordered: false,
            id: job.id,
            token: job.token,
            settle,
            reason: String::new(),
            attempt: None,
        },
        job,
        outcome: Outcome::Retryable { retry_after: None },
        at: Instant::now(),
        answer: None,
        given: Cell::new(Instant::now()),
    }
}

// N4: memory does not grow with what is due some day. What is due after the poll
// that comes in time for it has no timer; what is due before that has one.
#[tokio::test]
async fn timers_do_not_reach_beyond_the_polls() {
    let subscription = SubscriptionId::new(1, Part::new(1));
    for (poll, horizon) in [(5, 60), (600, 1200)] {
        let (dispatcher, _ended, _folder) = dispatcher(Duration::from_secs(poll)).await;
        let wake = |after: u64| {
            let after = Duration::from_secs(after);
            dispatcher.recorded(&[retried(subscription, after)]);
            dispatcher.wake_at(Instant::now() + after, subscription);
            dispatcher.lanes().next_wake()
        };
        assert_eq!(wake(horizon + 10), None, "poll {poll}");
        assert!(wake(horizon - 10).is_some(), "poll {poll}");
    }
}

// H2: what waits to be recorded, for as long as the database may take, has no body.
#[tokio::test]
async fn what_is_to_be_recorded_has_no_body() {
    let (dispatcher, mut ended, _folder) = dispatcher(Duration::from_secs(5)).await;
    let subscription = SubscriptionId::new(1, Part::new(1));
    let Ended { job, outcome, .. } = retried(subscription, Duration::from_secs(1));
    assert!(!job.body.is_empty());
    dispatcher.complete(Completion {
        job,
        outcome,
        reason: String::new(),
        attempt: None,
    });
    assert!(ended.recv().await.unwrap().job.body.is_empty());
}
