//! Tenants with receivers, and publishers that go on whatever happens.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::MissedTickBehavior};

use crate::{
    book::Book,
    egress::Sender,
    number,
    server::{ADMIN_KEY, Address},
    support::{
        receiver::{Received, Receiver, Reply, status},
        rest::Rest,
        wait::until,
    },
};

/// Tenants, spread over the partitions.
const TENANTS: usize = 8;
const PUBLISHERS: u64 = 4;
/// One in so many events fails at its first attempt.
const FAILS: u64 = 5;

/// A tenant, and where its events go.
struct Tenant {
    name: String,
    subscriptions: Vec<Subscription>,
}

struct Subscription {
    id: String,
    /// What the receiver knows it by.
    name: String,
}

/// Everything that load is put on.
pub(crate) struct Place {
    pub(crate) book: Arc<Book>,
    tenants: Arc<Vec<Tenant>>,
    rest: Rest,
    mood: Arc<Mutex<Mood>>,
    _receiver: Receiver,
}

fn number_of(received: &Received) -> u64 {
    let data: Value = serde_json::from_str(&received.data()).unwrap();
    data["number"].as_u64().unwrap()
}

/// How the receivers are for the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Well,
    Failing,
    Slow,
    /// For longer than an attempt may take.
    Hanging,
}

const SLOW: Duration = Duration::from_millis(300);
const HANGS: Duration = Duration::from_secs(4);
/// How long an attempt may take.
const TIMEOUT_SECONDS: u64 = 2;

async fn answer(book: Arc<Book>, mood: Mood, received: Received) -> Reply {
    let began = Instant::now();
    let sender = Sender::at(received.peer);
    let _under_way = book.begins(received.header("x-webhook-id"), sender);
    let number = number_of(&received);
    match mood {
        Mood::Well => {}
        Mood::Failing => return status(503),
        Mood::Slow => tokio::time::sleep(SLOW).await,
        Mood::Hanging => {
            tokio::time::sleep(HANGS).await;
            return status(503);
        }
    }
    if number.is_multiple_of(FAILS) && received.attempt() == 1 {
        return status(503);
    }
    let subscription = received.header("x-subscription");
    book.delivered(received.event(), subscription, number, sender, began);
    status(200)
}

impl Place {
    /// Makes tenants with two subscriptions each.
    pub(crate) async fn prepare(url: &str, book: Arc<Book>) -> Self {
        let rest = Rest::new(ADMIN_KEY);
        let mood = Arc::new(Mutex::new(Mood::Well));
        let (noted, now) = (book.clone(), mood.clone());
        let receiver = Receiver::forgetting(move |received| {
            let mood = *now.lock().unwrap();
            answer(noted.clone(), mood, received)
        })
        .await;
        let mut tenants = Vec::new();
        for n in 0..TENANTS {
            let name = format!("tenant-{n}");
            let tenant = json!({"name": name}).to_string();
            let made = rest
                .call("POST", &format!("{url}/v1/admin/tenants"), &[], tenant)
                .await;
            made.unwrap().expect(201);
            let mut subscriptions = Vec::new();
            for n in 0..2 {
                let own = format!("{name}/{n}");
                let wanted = json!({
                    "tenant": name, "url": receiver.url(), "headers": {"x-subscription": own},
                    "retry_schedule": {"max_attempts": 20, "backoff_seconds": [1]},
                    "timeout_seconds": TIMEOUT_SECONDS,
                });
                let webhooks = format!("{url}/v1/external/webhooks");
                let made = rest.call("POST", &webhooks, &[], wanted.to_string()).await;
                let made = made.unwrap().expect(201);
                subscriptions.push(Subscription {
                    id: made["id"].as_str().unwrap().to_owned(),
                    name: own,
                });
            }
            tenants.push(Tenant {
                name,
                subscriptions,
            });
        }
        Self {
            book,
            tenants: Arc::new(tenants),
            rest,
            mood,
            _receiver: receiver,
        }
    }

    /// From now on receivers are like this.
    pub(crate) fn receivers_are(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Whether something arrived for each tenant after that time.
    pub(crate) fn each_tenant_since(&self, since: Option<Instant>) -> bool {
        self.subscriptions()
            .all(|s| self.book.delivered_since(&s.name, since))
    }

    /// Whether changes are refused for now.
    pub(crate) async fn is_refused(&self, url: &str, turn: usize) -> bool {
        let tenant = json!({"name": format!("question-{turn}")}).to_string();
        let path = format!("{url}/v1/admin/tenants");
        let answer = self.rest.call("POST", &path, &[], tenant).await;
        answer.is_ok_and(|a| a.status == 503)
    }

    /// Deliveries that are neither delivered nor given up.
    pub(crate) async fn unfinished(&self, url: &str) -> Vec<Value> {
        let mut all = Vec::new();
        for status in ["PENDING", "SENDING", "RETRYING", "FAILED", "PARKED"] {
            for s in self.subscriptions() {
                all.extend(self.list(url, &s.id, status).await);
            }
        }
        all
    }

    fn subscriptions(&self) -> impl Iterator<Item = &Subscription> {
        self.tenants.iter().flat_map(|t| &t.subscriptions)
    }

    /// The log of deliveries holds what was promised, as delivered, and nothing
    /// is in it twice.
    pub(crate) async fn compare_log(&self, url: &str) {
        let mut logged = HashSet::new();
        for s in self.subscriptions() {
            for d in self.list(url, &s.id, "DELIVERED").await {
                let event = d["event_id"].as_str().unwrap().to_owned();
                assert!(
                    logged.insert((event, s.name.clone())),
                    "twice in the log: {d}"
                );
            }
            let dead = self.list(url, &s.id, "DEAD").await;
            assert!(dead.is_empty(), "dead: {dead:?}");
        }
        let promised = self.book.promised();
        let missing: Vec<_> = promised.difference(&logged).collect();
        assert!(
            missing.is_empty(),
            "accepted and not in the log as delivered: {missing:?}"
        );
        let unasked: Vec<_> = logged.difference(&promised).collect();
        assert!(
            unasked.is_empty(),
            "in the log and never answered: {unasked:?}"
        );
    }

    async fn list(&self, url: &str, id: &str, status: &str) -> Vec<Value> {
        let mut all = Vec::new();
        let mut token = String::new();
        loop {
            let page = format!(
                "{url}/v1/external/webhooks/{id}/deliveries?status={status}&page_size=1000&page_token={token}"
            );
            // A fault may have ended just now.
            let page = until("a page of deliveries", async || {
                let answer = self.rest.call("GET", &page, &[], "").await.unwrap();
                (answer.status != 503).then(|| answer.expect(200))
            })
            .await;
            all.extend(page["deliveries"].as_array().unwrap().iter().cloned());
            page["next_page_token"]
                .as_str()
                .unwrap()
                .clone_into(&mut token);
            if token.is_empty() {
                return all;
            }
        }
    }
}

/// Publishers at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    publishers: JoinSet<()>,
}

struct Publisher {
    nodes: Vec<Address>,
    rest: Rest,
    book: Arc<Book>,
    tenants: Arc<Vec<Tenant>>,
}

impl Load {
    pub(crate) fn start(place: &Place, nodes: &[Address]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let rate = number("ONERING_LEDGER_RATE", 150);
        let every = Duration::from_micros(1_000_000 * PUBLISHERS / rate);
        let mut publishers = JoinSet::new();
        for _ in 0..PUBLISHERS {
            let publisher = Publisher {
                nodes: nodes.to_vec(),
                rest: place.rest.clone(),
                book: place.book.clone(),
                tenants: place.tenants.clone(),
            };
            let (stop, count) = (stop.clone(), count.clone());
            publishers.spawn(async move {
                let mut pace = tokio::time::interval(every);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !stop.load(Ordering::Relaxed) {
                    pace.tick().await;
                    publisher
                        .publish(count.fetch_add(1, Ordering::Relaxed))
                        .await;
                }
            });
        }
        Self { stop, publishers }
    }

    /// Ends once every publish that was begun is answered.
    pub(crate) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.publishers.join_next().await {
            ended.unwrap();
        }
    }
}

impl Publisher {
    /// Publishes until it is accepted, under one idempotency key. A lost answer
    /// is asked for again, of any node; so is one that was heard, now and then.
    async fn publish(&self, number: u64) {
        let tenant = &self.tenants[usize::try_from(number).unwrap() % TENANTS];
        let key = format!("ledger-{number}");
        let body = json!({
            "tenant": tenant.name, "event_type": "ledger.entry", "data": {"number": number},
        });
        let body = body.to_string();
        let event = self.insist(&key, &body, number).await;
        if number.is_multiple_of(7) {
            assert_eq!(
                self.insist(&key, &body, number + 1).await,
                event,
                "one key, two events"
            );
        }
        let names: Vec<&str> = tenant
            .subscriptions
            .iter()
            .map(|s| s.name.as_str())
            .collect();
        self.book.accepted(number, &event, &names);
    }

    async fn insist(&self, key: &str, body: &str, turn: u64) -> String {
        let began = Instant::now();
        for turn in usize::try_from(turn).unwrap().. {
            let node = self.nodes[turn % self.nodes.len()].lock().unwrap().clone();
            let mut why = "no node".to_owned();
            if let Some(url) = node {
                let headers = [("idempotency-key", key)];
                let url = format!("{url}/v1/external/events");
                match self
                    .rest
                    .call("POST", &url, &headers, body.to_owned())
                    .await
                {
                    Ok(answer) if answer.status == StatusCode::ACCEPTED => {
                        return answer.json()["id"].as_str().unwrap().to_owned();
                    }
                    Ok(answer) => {
                        assert!(answer.status >= 500, "{answer:?}");
                        why = format!("{answer:?}");
                    }
                    Err(e) => why = e,
                }
            }
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "not accepted within a minute: {why}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unreachable!("the turns have no end")
    }
}
