//! Workers that leave, and nodes that stop.

use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{Worker, ids, open};
use crate::support::{
    app::{TestApp, reason},
    store::Db,
};

contract![
    a_worker_that_drains_gets_nothing_more,
    what_it_leaves_is_free_at_once,
    a_node_that_stops_tells_its_workers,
    what_is_left_at_the_stop_is_given_back,
];

// W5: after `drain` nothing comes; what it has it can still ack, and the end is
// in order.
async fn a_worker_that_drains_gets_nothing_more(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let mut worker = Worker::start(&app, "w", 2).await;
    app.events("a.b", 6).await;
    let held = worker.deliveries(2).await;
    worker.drain();
    worker.credit(10, 0);
    let both: Vec<_> = held.iter().collect();
    assert_eq!(worker.ack(&both).await.ok.len(), 2);
    assert!(worker.everything_until_now().await.is_empty());
    worker.half_close();
    worker.ended().await.unwrap();
    app.stop().await;
}

// W5: what a worker has when it says its last is not kept for it.
async fn what_it_leaves_is_free_at_once(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let mut worker = Worker::start(&app, "w", 2).await;
    app.events("a.b", 2).await;
    let held = worker.deliveries(2).await;
    let mut other = Worker::start(&app, "other", 2).await;
    let began = Instant::now();
    worker.drain();
    worker.half_close();
    worker.ended().await.unwrap();
    let taken = other.deliveries(2).await;
    assert_eq!(ids(&taken), ids(&held));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert!(taken.iter().all(|d| d.attempt == 1));
    app.stop().await;
}

// W5: a node that stops hands out nothing more, says when to come back and by
// when to be done, each to another time, and takes the acks that come until then.
async fn a_node_that_stops_tells_its_workers(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let mut workers = Vec::new();
    for n in 0..3 {
        workers.push(Worker::start(&app, &format!("w{n}"), 1).await);
    }
    app.events("a.b", 3).await;
    let mut held = Vec::new();
    for worker in &mut workers {
        held.push(worker.delivery().await);
    }
    let again = app.again();
    let (url, key) = (app.url(""), app.admin.clone());
    let stopping = tokio::spawn(app.stop());
    let mut times = Vec::new();
    for (worker, d) in workers.iter_mut().zip(&held) {
        let go = worker.told_to_go().await;
        assert!((1..=4000).contains(&go.drain_by_ms), "{go:?}");
        times.push(go.reconnect_after_ms);
        assert!(Worker::open_at(&url, &key, open("late", 1)).await.is_err());
        assert_eq!(worker.ack(&[d]).await.ok.len(), 1);
        worker.half_close();
        worker.ended().await.unwrap();
    }
    times.sort_unstable();
    times.dedup();
    assert_eq!(times.len(), 3, "they don't come back together");
    stopping.await.unwrap();
    let app = again.start().await;
    for d in &held {
        assert_eq!(app.state_of(&d.delivery_id).await["status"], "DELIVERED");
    }
    app.stop().await;
}

// W5: a worker that does not go is not waited for; what it has is free.
async fn what_is_left_at_the_stop_is_given_back(db: Db) {
    let app = TestApp::builder(&db)
        .set("SHUTDOWN_SECONDS", 2)
        .start()
        .await;
    app.stream(json!({})).await;
    let mut stays = Worker::start(&app, "stays", 1).await;
    app.events("a.b", 1).await;
    let held = stays.delivery().await;
    let again = app.again();
    let began = Instant::now();
    let (ended, ()) = tokio::join!(stays.ended(), app.stop());
    assert!(began.elapsed() < Duration::from_secs(20));
    if let Err(e) = ended {
        // The connection may go before the last word.
        assert!(
            e.code() != tonic::Code::FailedPrecondition,
            "{}",
            reason(&e)
        );
    }
    let app = again.start().await;
    let shown = app.state_of(&held.delivery_id).await;
    assert_eq!(
        (&shown["status"], &shown["attempt_count"]),
        (&json!("PENDING"), &json!(0))
    );
    let mut next = Worker::start(&app, "next", 1).await;
    assert_eq!(next.delivery().await.attempt, 1);
    assert_eq!(next.ack(&[&held]).await.stale.len(), 1);
    app.stop().await;
}
