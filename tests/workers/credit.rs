//! Windows.

use std::time::{Duration, Instant};

use onering::proto::v1::worker_message::{Ack, AckItem, Message, Open};
use serde_json::json;

use super::client::{Worker, ids, open};
use crate::support::{
    app::{TestApp, eventually},
    store::Db,
};

contract![
    nothing_comes_beyond_the_window,
    bytes_count_too,
    a_slow_worker_holds_nobody_back,
    windows_that_make_no_sense_are_refused,
    a_worker_is_heard_at_a_rate,
];

// W3: no more than the window comes, and what is done makes room; a smaller
// window, and none, hold from then on.
async fn nothing_comes_beyond_the_window(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let mut worker = Worker::start(&app, "w", 0).await;
    app.events("a.b", 10).await;
    assert!(worker.everything_until_now().await.is_empty());
    worker.credit(3, 0);
    let first = worker.deliveries(3).await;
    assert!(worker.everything_until_now().await.is_empty());
    worker.credit(3, 0);
    assert!(
        worker.everything_until_now().await.is_empty(),
        "it is absolute"
    );
    assert_eq!(worker.ack(&[&first[0]]).await.ok.len(), 1);
    let next = worker.delivery().await;
    assert!(worker.everything_until_now().await.is_empty());
    worker.credit(1, 0);
    worker.ack(&[&first[1], &first[2]]).await;
    assert!(worker.everything_until_now().await.is_empty());
    // O1: what workers have is shown.
    eventually("one is shown", || async {
        let shown = app.get("/metrics", &app.admin).await;
        let mut lines = shown.text().lines();
        lines
            .any(|l| l == "onering_worker_deliveries 1")
            .then_some(())
    })
    .await;
    worker.credit(100, 0);
    let rest = worker.deliveries(6).await;
    let all = [&first[..], &[next], &rest[..]].concat();
    assert_eq!(ids(&all).len(), 10);
    app.stop().await;
}

// W3: a window of bytes; one delivery larger than it comes alone.
async fn bytes_count_too(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let large = json!({"text": "x".repeat(2000)});
    for _ in 0..5 {
        app.publish(&app.admin, "a.b", large.clone()).await;
    }
    let asked = Open {
        max_bytes: 5000,
        ..open("w", 100)
    };
    let mut worker = Worker::open(&app, &app.admin, asked).await.unwrap();
    let two = worker.deliveries(2).await;
    assert!(worker.everything_until_now().await.is_empty());
    worker.credit(100, 100);
    worker.ack(&[&two[0]]).await;
    assert!(worker.everything_until_now().await.is_empty());
    worker.ack(&[&two[1]]).await;
    let alone = worker.delivery().await;
    assert!(alone.body.len() > 100);
    assert!(worker.everything_until_now().await.is_empty());
    app.stop().await;
}

// W3: a worker that takes and does nothing has its window and no more; another
// one gets all the rest.
async fn a_slow_worker_holds_nobody_back(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({"max_in_flight": 1000})).await;
    let mut slow = Worker::start(&app, "slow", 4).await;
    app.events("a.b", 4).await;
    let held = slow.deliveries(4).await;
    let mut quick = Worker::start(&app, "quick", 8).await;
    let events = app.events("a.b", 60).await;
    let mut seen = Vec::new();
    while seen.len() < events.len() {
        let d = quick.delivery().await;
        assert_eq!(quick.ack(&[&d]).await.ok.len(), 1);
        seen.push(d.event_id);
    }
    seen.sort_unstable();
    let mut wanted = events;
    wanted.sort_unstable();
    assert_eq!(seen, wanted);
    assert!(slow.everything_until_now().await.is_empty());
    let held: Vec<_> = held.iter().collect();
    assert_eq!(slow.ack(&held).await.ok.len(), 4);
    app.stop().await;
}

// W1, W3: every number has its limits.
async fn windows_that_make_no_sense_are_refused(db: Db) {
    use crate::support::app::{fields, reason};
    let app = TestApp::start(&db).await;
    let bad = |open: Open| async {
        let refused = Worker::open(&app, &app.admin, open).await.err().unwrap();
        assert_eq!(reason(&refused), "INVALID_ARGUMENT");
        fields(&refused)
    };
    let all = Open {
        max_messages: 4097,
        max_bytes: -1,
        lease_seconds: 3601,
        instance_epoch: -1,
        ..open("", 0)
    };
    assert_eq!(
        bad(all).await,
        [
            "open.worker_id",
            "open.instance_epoch",
            "open.max_messages",
            "open.max_bytes",
            "open.lease_seconds"
        ]
    );
    assert_eq!(bad(open(&"w".repeat(129), 1)).await, ["open.worker_id"]);
    let mut worker = Worker::start(&app, "w", 1).await;
    worker.credit(-1, 0);
    let refused = worker.ended().await.unwrap_err();
    assert_eq!(fields(&refused), ["credit.messages"]);
    app.stop().await;
}

// Z5: of what a worker says a second's worth is heard at once, and the rest in its
// time; all of it is answered.
async fn a_worker_is_heard_at_a_rate(db: Db) {
    let app = TestApp::start(&db).await;
    let mut worker = Worker::start(&app, "w", 0).await;
    let began = Instant::now();
    for n in 0..60 {
        worker.say(Message::Ack(Ack {
            request_id: n.to_string(),
            items: vec![AckItem::default(); 1000],
        }));
    }
    for n in 0..60 {
        let told = worker.result(&n.to_string()).await;
        assert_eq!(told.stale.len(), 1000);
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(1900), "{took:?}");
    app.stop().await;
}
