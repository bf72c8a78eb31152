//! The stream is the liveness.

use std::time::{Duration, Instant};

use onering::proto::v1::worker_message::{Ack, AckItem, Message, Open};
use serde_json::json;

use super::client::{Worker, ids, lease, open};
use crate::support::{
    app::{PATIENCE, TestApp, reason},
    proxy::Proxy,
    store::Db,
};

contract![
    what_a_broken_connection_held_goes_to_others,
    a_worker_that_comes_back_goes_on,
    a_silent_worker_loses_what_it_has,
    who_reads_nothing_is_cut_off,
    an_earlier_life_is_fenced,
    what_is_not_resumed_is_given_back,
];

async fn through(proxy: &Proxy, app: &TestApp, open: Open) -> Worker {
    let url = format!("http://{}", proxy.address);
    Worker::open_at(&url, &app.admin, open).await.unwrap()
}

// W4: 5 seconds after its connection broke another worker has what it held, and
// no attempt is charged. What it acks then is stale.
async fn what_a_broken_connection_held_goes_to_others(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let proxy = Proxy::to(app.address.to_string()).await;
    let mut lost = through(&proxy, &app, open("lost", 2)).await;
    app.events("a.b", 2).await;
    let held = lost.deliveries(2).await;
    let mut other = Worker::start(&app, "other", 10).await;
    assert!(other.everything_until_now().await.is_empty());
    let began = Instant::now();
    proxy.cut();
    let taken = other.deliveries(2).await;
    assert!(
        began.elapsed() >= Duration::from_secs(4),
        "it may come back"
    );
    assert_eq!(ids(&taken), ids(&held));
    assert!(taken.iter().all(|d| d.attempt == 1));
    assert!(lost.ended().await.is_err());
    let mut back = Worker::start(&app, "lost", 0).await;
    let old: Vec<_> = held.iter().collect();
    assert_eq!(back.ack(&old).await.stale.len(), 2);
    let taken: Vec<_> = taken.iter().collect();
    assert_eq!(other.ack(&taken).await.ok.len(), 2);
    db.counts_agree().await;
    app.stop().await;
}

// W4, W5: who comes back in time keeps what it names, under the same fence; an
// ack whose result was lost is good.
async fn a_worker_that_comes_back_goes_on(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let proxy = Proxy::to(app.address.to_string()).await;
    let mut worker = through(&proxy, &app, open("w", 3)).await;
    app.events("a.b", 3).await;
    let held = worker.deliveries(3).await;
    assert_eq!(worker.ack(&[&held[0]]).await.ok.len(), 1);
    proxy.cut();
    assert!(worker.ended().await.is_err());
    let mut foreign = held[1].clone();
    foreign.lease_token[5] ^= 1;
    let asked = Open {
        resume: vec![
            lease(&held[0]),
            lease(&held[1]),
            lease(&held[2]),
            lease(&foreign),
        ],
        ..open("w", 2)
    };
    let mut back = Worker::open(&app, &app.admin, asked).await.unwrap();
    let mut resumed = back.opened.resumed.clone();
    resumed.sort_unstable();
    assert_eq!(resumed, ids(&held[1..]));
    let mut lost = back.opened.lost.clone();
    lost.sort_unstable();
    let mut wanted = vec![held[0].delivery_id.clone(), held[1].delivery_id.clone()];
    wanted.sort_unstable();
    assert_eq!(lost, wanted, "done, and made up");
    // They fill the window as before.
    app.events("a.b", 1).await;
    assert!(back.everything_until_now().await.is_empty());
    let all: Vec<_> = held.iter().collect();
    assert_eq!(back.ack(&all).await.ok.len(), 3);
    for d in &held {
        assert_eq!(app.attempts_of(&d.delivery_id).await.len(), 1);
    }
    back.delivery().await;
    db.counts_agree().await;
    app.stop().await;
}

// W4: who does not answer pings for 10 seconds is gone, however open its
// connection looks.
async fn a_silent_worker_loses_what_it_has(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let mut silent = Worker::start(&app, "silent", 1).await;
    silent.ponging = false;
    app.events("a.b", 1).await;
    let held = silent.delivery().await;
    let mut other = Worker::start(&app, "other", 1).await;
    let (ended, taken) = tokio::join!(silent.ended(), other.delivery());
    assert_eq!(reason(&ended.unwrap_err()), "WORKER_SILENT");
    assert_eq!(taken.delivery_id, held.delivery_id);
    assert_eq!(taken.attempt, 1);
    // The other one has answered all the while.
    assert_eq!(other.ack(&[&taken]).await.ok.len(), 1);
    app.stop().await;
}

// W3, W4: who goes on writing and reads nothing of what it is answered is gone too.
async fn who_reads_nothing_is_cut_off(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let long = Open {
        lease_seconds: 3600,
        ..open("deaf", 1)
    };
    let mut deaf = Worker::open(&app, &app.admin, long).await.unwrap();
    app.events("a.b", 1).await;
    let held = deaf.delivery().await;
    let mut other = Worker::start(&app, "other", 1).await;
    let junk = AckItem {
        delivery_id: "x".repeat(64),
        ..AckItem::default()
    };
    let ack = Ack {
        items: vec![junk; 1000],
        ..Ack::default()
    };
    for _ in 0..600 {
        deaf.say(Message::Ack(ack.clone()));
    }
    let taken = tokio::time::timeout(PATIENCE, other.delivery()).await;
    let taken = taken.expect("it is cut off");
    assert_eq!((taken.delivery_id, taken.attempt), (held.delivery_id, 1));
    app.stop().await;
}

// W5: a later life of a worker takes over from an earlier one that still seems to
// be there; the earlier one does not come back.
async fn an_earlier_life_is_fenced(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let life = |epoch, resume| Open {
        instance_epoch: epoch,
        resume,
        ..open("w", 2)
    };
    let key = &app.admin;
    let mut first = Worker::open(&app, key, life(5, Vec::new())).await.unwrap();
    app.events("a.b", 2).await;
    let held = first.deliveries(2).await;
    let resume = vec![lease(&held[0])];
    let mut second = Worker::open(&app, key, life(6, resume)).await.unwrap();
    assert_eq!(second.opened.resumed, [held[0].delivery_id.clone()]);
    first.told_to_go().await;
    let ended = first.ended().await.unwrap_err();
    assert_eq!(reason(&ended), "FAILED_PRECONDITION");
    let refused = Worker::open(&app, key, life(5, vec![lease(&held[0])])).await;
    assert_eq!(reason(&refused.err().unwrap()), "FAILED_PRECONDITION");
    // What it did not name has come anew.
    let again = second.delivery().await;
    assert_eq!(again.delivery_id, held[1].delivery_id);
    let told = second.ack(&[&held[0], &held[1], &again]).await;
    assert_eq!((told.ok.len(), told.stale.len()), (2, 1));
    app.stop().await;
}

// W5: a worker that comes back without a word of what it had does not have it.
async fn what_is_not_resumed_is_given_back(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let proxy = Proxy::to(app.address.to_string()).await;
    let mut worker = through(&proxy, &app, open("w", 2)).await;
    app.events("a.b", 2).await;
    let held = worker.deliveries(2).await;
    proxy.cut();
    assert!(worker.ended().await.is_err());
    let mut back = Worker::start(&app, "w", 2).await;
    assert!(back.opened.resumed.is_empty() && back.opened.lost.is_empty());
    let again = back.deliveries(2).await;
    assert_eq!(ids(&again), ids(&held));
    let old: Vec<_> = held.iter().collect();
    assert_eq!(back.ack(&old).await.stale.len(), 2);
    app.stop().await;
}
