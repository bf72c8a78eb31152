//! Redrives and replays from the outside, with a receiver that keeps account.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use onering::{
    domain::{
        id::{Part, wall_clock},
        redrive::Selection,
    },
    store::{Load, Page},
};
use serde_json::{Value, json};

use crate::support::{
    app::{Subscribed, TestApp, eventually},
    command::Running,
    receiver::{Receiver, status},
    rest::Rest,
    store::Db,
    wait::until_after,
};

contract![
    a_redrive_sends_each_letter_once,
    a_replay_delivers_what_the_subscription_wants,
    a_replay_of_what_is_missing,
    a_replay_sends_nothing_that_was_for_others,
    a_redrive_outlives_killed_nodes,
];

const REDRIVE: &str = "/v1/admin/dead-letters/redrive";
const REPLAY: &str = "/v1/admin/dead-letters/replay";

/// A receiver whose answer a test changes.
async fn fickle(first: u16) -> (Receiver, Arc<AtomicU16>) {
    let answer = Arc::new(AtomicU16::new(first));
    let now = answer.clone();
    let receiver = Receiver::answering(move |_| status(now.load(Ordering::SeqCst))).await;
    (receiver, answer)
}

/// How often each event came.
fn times(receiver: &Receiver) -> HashMap<String, usize> {
    let mut times = HashMap::new();
    for r in receiver.received() {
        *times.entry(r.event().to_owned()).or_default() += 1;
    }
    times
}

async fn begin(app: &TestApp, path: &str, body: Value) -> String {
    let begun = app.post(path, &app.admin, body).await.ok();
    begun["id"].as_str().unwrap().to_owned()
}

async fn over(app: &TestApp, id: &str) -> Value {
    eventually("the redrive is over", || async {
        let path = format!("/v1/admin/redrives/{id}");
        let now = app.get(&path, &app.admin).await.ok();
        now["finish_time"].is_string().then_some(now)
    })
    .await
}

fn ago(seconds: i64) -> String {
    onering::domain::event::rfc3339(wall_clock() - seconds * 1_000_000)
}

// A5, A2: a list, then a redrive of one reason; each letter is sent once more, and
// is dead again where that fails.
async fn a_redrive_sends_each_letter_once(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, answer) = fickle(400).await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    for _ in 0..6 {
        app.event("a.b").await;
    }
    app.wait_for(&sub.id, "DEAD", 6).await;
    answer.store(404, Ordering::SeqCst);
    let other = app.one_delivery("a.c").await;
    app.is(&other, "DEAD").await;

    answer.store(403, Ordering::SeqCst);
    let body = json!({"filter": {"subscription_id": sub.id, "reason": "http_400"}, "rate_per_second": 1000});
    let again = over(&app, &begin(&app, REDRIVE, body).await).await;
    assert_eq!(
        (&again["state"], &again["done"]),
        (&json!("DONE"), &json!(6))
    );
    app.wait_for(&sub.id, "DEAD", 7).await;
    answer.store(200, Ordering::SeqCst);
    let body =
        json!({"filter": {"event_type": "a.b", "reason": "http_403"}, "rate_per_second": 1000});
    let last = over(&app, &begin(&app, REDRIVE, body).await).await;
    assert_eq!(last["done"], 6);
    app.wait_for(&sub.id, "DELIVERED", 6).await;
    for delivery in app.with_status(&sub.id, "DELIVERED").await {
        assert_eq!(delivery["attempt_count"], 3);
        assert_eq!(delivery["replay_id"], "");
    }
    assert_eq!(app.delivery(&other).await["status"], "DEAD");
    let mut counts: Vec<usize> = times(&receiver).into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 3, 3, 3, 3, 3, 3]);
    db.counts_agree().await;
    app.stop().await;
}

// A5, D3: events of the range that it wants as it is now, delivered ones too: by
// type and by filter, each as a new delivery that shows where it came from.
async fn a_replay_delivers_what_the_subscription_wants(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app
        .webhook(&receiver.url(), json!({"event_types": ["a.*"]}))
        .await;
    let mut events = Vec::new();
    for n in 0..4 {
        events.push(app.publish(&app.admin, "a.b", json!({ "n": n })).await);
    }
    app.publish(&app.admin, "b.a", json!({"n": 2})).await;
    app.wait_for(&sub.id, "DELIVERED", 4).await;
    let wanted = json!({"filter": {">=": [{"var": "n"}, 2]}});
    app.change(&sub.id, wanted).await;
    let body = json!({"subscription_id": sub.id, "start_time": ago(600), "rate_per_second": 1000,
        "reason": "they lost a day"});
    let id = begin(&app, REPLAY, body).await;
    let done = over(&app, &id).await;
    assert_eq!(
        (&done["kind"], &done["done"]),
        (&json!("RECOVER"), &json!(2))
    );
    app.wait_for(&sub.id, "DELIVERED", 6).await;
    let replayed: Vec<Value> = app
        .with_status(&sub.id, "DELIVERED")
        .await
        .into_iter()
        .filter(|d| d["replay_id"] == json!(id))
        .collect();
    let mut of: Vec<_> = replayed
        .iter()
        .map(|d| d["event_id"].as_str().unwrap())
        .collect();
    of.sort_unstable();
    assert_eq!(of, events[2..]);
    let read = app.delivery(replayed[0]["id"].as_str().unwrap()).await;
    assert_eq!(read["replay_id"], json!(id));
    let times = times(&receiver);
    for (n, event) in events.iter().enumerate() {
        assert_eq!(times[event], if n < 2 { 1 } else { 2 });
    }
    // The same bytes as at first.
    for event in &events[2..] {
        let bodies: Vec<_> = receiver
            .received()
            .into_iter()
            .filter(|r| r.event() == event)
            .collect();
        assert_eq!(bodies[0].body, bodies[1].body);
    }
    db.counts_agree().await;
    app.stop().await;
}

// A5: what came before the subscription, and what is dead; nothing twice.
async fn a_replay_of_what_is_missing(db: Db) {
    let app = TestApp::start(&db).await;
    let (receiver, answer) = fickle(200).await;
    let early = app.event("a.b").await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    let delivered = app.event("a.b").await;
    app.wait_for(&sub.id, "DELIVERED", 1).await;
    answer.store(400, Ordering::SeqCst);
    let letter = app.one_delivery("a.b").await;
    app.is(&letter, "DEAD").await;
    answer.store(200, Ordering::SeqCst);
    let body = json!({"subscription_id": sub.id, "start_time": ago(600), "missing_only": true});
    for (done, skipped) in [(2, 1), (0, 3)] {
        let over = over(&app, &begin(&app, REPLAY, body.clone()).await).await;
        assert_eq!(
            (&over["done"], &over["skipped"]),
            (&json!(done), &json!(skipped))
        );
        app.wait_for(&sub.id, "DELIVERED", 3).await;
    }
    let times = times(&receiver);
    assert_eq!((times[&early], times[&delivered]), (1, 1));
    assert_eq!(app.delivery(&letter).await["attempt_count"], 2);
    // Of a subscription that is deleted in the middle nothing more is made.
    for _ in 0..3 {
        app.event("a.b").await;
    }
    app.wait_for(&sub.id, "DELIVERED", 6).await;
    let body = json!({"subscription_id": sub.id, "start_time": ago(600), "rate_per_second": 1});
    let id = begin(&app, REPLAY, body).await;
    app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
        .await;
    let failed = over(&app, &id).await;
    assert_eq!(
        (&failed["state"], &failed["note"]),
        (&json!("FAILED"), &json!("its subscription was deleted"))
    );
    app.stop().await;
}

// A5, A7: not what is to be named, not what is about itself, and no test.
async fn a_replay_sends_nothing_that_was_for_others(db: Db) {
    let app = TestApp::start(&db).await;
    let (ill, _) = fickle(500).await;
    let fields = json!({
        "event_types": ["a.*", "breaker.*"], "max_in_flight": 1,
        "retry_schedule": {"max_attempts": 9, "backoff_seconds": [3600]},
    });
    let broken = app.webhook(&ill.url(), fields).await;
    let owner = Receiver::start().await;
    let named = json!({"event_types": ["breaker.*", "secret.*", "webhook.*"]});
    let owners = app.webhook(&owner.url(), named.clone()).await;
    for _ in 0..5 {
        app.event("a.b").await;
    }
    owner.wait(1).await;
    for act in ["test", "rotate-secret"] {
        let path = format!("/v1/external/webhooks/{}/{act}", owners.id);
        app.post(&path, &app.admin, json!({})).await;
    }
    owner.wait(3).await;

    let well = Receiver::start().await;
    let all = app.webhook(&well.url(), json!({})).await;
    let late = app.webhook(&well.url(), named).await;
    let missing = async |sub: &Subscribed| {
        let body = json!({"subscription_id": sub.id, "start_time": ago(600), "missing_only": true});
        let over = over(&app, &begin(&app, REPLAY, body).await).await;
        (over["done"].clone(), over["skipped"].clone())
    };
    assert_eq!(missing(&all).await, (json!(5), json!(0)));
    assert_eq!(missing(&broken).await, (json!(0), json!(5)));
    assert_eq!(missing(&late).await, (json!(2), json!(0)));
    well.wait(7).await;
    app.stop().await;
}

/// How many letters; `ONERING_TEST_LETTERS=100000` for the whole of it.
fn letters() -> i64 {
    let set = std::env::var("ONERING_TEST_LETTERS").ok();
    set.map_or(2000, |n| n.parse().unwrap())
}

/// A node's process on these variables, and its REST.
struct Process {
    running: Running,
    url: String,
    rest: Rest,
}

impl Process {
    async fn start(vars: &[(&str, &str)], key: &str) -> Self {
        let (running, url) = Running::serve(vars).await;
        let rest = Rest::new(key);
        Self { running, url, rest }
    }

    /// Ends it as a power failure would.
    async fn kill(self) {
        self.running.signal("KILL");
        self.running.ended().await;
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Value {
        let url = format!("{}{path}", self.url);
        let answer = self.rest.call(method, &url, &[], body.to_string()).await;
        let answer = answer.unwrap();
        assert!(answer.status < 300, "{path}: {:?}", answer.body);
        answer.json()
    }

    async fn redrive(&self, id: &str) -> Value {
        let url = format!("{}/v1/admin/redrives/{id}", self.url);
        self.rest
            .call("GET", &url, &[], "")
            .await
            .unwrap()
            .expect(200)
    }

    async fn act(&self, id: &str, action: &str) -> Value {
        let path = format!("/v1/admin/redrives/{id}/{action}");
        self.call("POST", &path, json!({})).await
    }

    async fn has_done(&self, id: &str, least: i64) -> i64 {
        until_after(Duration::from_mins(10), "letters are moved", async || {
            let done = done(&self.redrive(id).await);
            (done >= least).then_some(done)
        })
        .await
    }
}

fn done(redrive: &Value) -> i64 {
    redrive["done"].as_i64().unwrap()
}

// A5, H1: thousands of letters at 1,000 a second: paused, its node killed, resumed,
// killed again while it runs. Each is redriven exactly once: its ledger has one
// more attempt, which failed as the receiver wanted it, so that it is dead again.
async fn a_redrive_outlives_killed_nodes(db: Db) {
    let receiver = Receiver::answering(|_| status(400)).await;
    let all = letters();
    let app = TestApp::start(&db).await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    let tenant = app.get("/v1/admin/tenants/default", &app.admin).await.ok();
    let tenant = tenant["tenant_id"].as_str().unwrap().parse().unwrap();
    let load = Load {
        tenant,
        subscription: sub.id.parse().unwrap(),
        from: wall_clock() - all * 1000 - 60_000_000,
        step: 1000,
        count: all,
        dead_every: 1,
    };
    app.app().context.store.load_finished(&load).await.unwrap();
    let mut vars = app.vars().clone();
    app.stop().await;
    vars.insert("ONERING_SESSION_SECONDS".into(), "2".into());
    let vars: Vec<_> = vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let key = vars
        .iter()
        .find(|(k, _)| *k == "ONERING_BOOTSTRAP_ADMIN_KEY")
        .unwrap()
        .1;

    let node = Process::start(&vars, key).await;
    let body = json!({"filter": {"subscription_id": sub.id}, "rate_per_second": 1000});
    let begun = node.call("POST", REDRIVE, body).await;
    assert_eq!(begun["total"], json!(all));
    let id = begun["id"].as_str().unwrap();
    node.has_done(id, all / 8).await;
    let paused = done(&node.act(id, "pause").await);
    assert!(paused < all);
    node.kill().await;
    let node = Process::start(&vars, key).await;
    let now = node.redrive(id).await;
    assert_eq!((&now["state"], done(&now)), (&json!("PAUSED"), paused));
    node.act(id, "resume").await;
    let moved = node.has_done(id, all / 2).await;
    node.kill().await;
    let node = Process::start(&vars, key).await;
    assert!(done(&node.redrive(id).await) >= moved);
    assert_eq!(node.has_done(id, all).await, all);
    let figures = format!("{}/v1/monitoring/webhooks/metrics?tenant=default", node.url);
    until_after(Duration::from_mins(5), "all are dead again", async || {
        let told = node.rest.call("GET", &figures, &[], "").await;
        let figures = told.unwrap().expect(200);
        (figures["dead"] == json!(all)).then_some(())
    })
    .await;
    assert_eq!(node.redrive(id).await["state"], "DONE");
    node.running.stop().await;

    let store = db.open().await;
    let parts: Vec<Part> = Part::all().collect();
    let (mut seen, mut before) = (0, None);
    loop {
        let page = Page {
            before,
            limit: 1000,
        };
        let list = store
            .list_letters(&Selection::default(), &parts, page)
            .await;
        let list = list.unwrap();
        for letter in &list.letters {
            assert_eq!(letter.attempts, 2, "{letter:?}");
            seen += 1;
        }
        before = list.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(seen, all);
    // What was under way at a kill came twice, and nothing else did.
    let came = times(&receiver);
    assert_eq!(i64::try_from(came.len()).unwrap(), all);
    db.counts_agree().await;
}
