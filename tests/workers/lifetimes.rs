//! Subscriptions that live as long as somebody takes from them.

use onering::proto::v1::worker_message::{Filter, Open};
use serde_json::json;

use super::client::{Worker, open};
use crate::support::{
    app::{TestApp, eventually},
    store::{Db, SECOND},
};

contract![a_temporary_subscription_ends_with_its_streams];

// W9: a temporary subscription stays while a stream is open that names it, and is
// deleted when nobody has opened one for as long as it was to live; others stay. Who
// takes everything gets nothing of it, and does not keep it.
async fn a_temporary_subscription_ends_with_its_streams(db: Db) {
    let app = TestApp::start(&db).await;
    let store = app.app().context.store.clone();
    let stays = app.stream(json!({"event_types": ["stays"]})).await;
    let temporary = json!({"event_types": ["a.b"], "expire_after_seconds": 60});
    let sub = app.stream(temporary).await;
    let path = format!("/v1/external/webhooks/{}", sub.id);
    let ends = async || {
        let shown = app.get(&path, &app.admin).await.ok();
        let at: jiff::Timestamp = shown["expire_time"].as_str().unwrap().parse().unwrap();
        at.as_microsecond()
    };
    let first = ends().await;
    let mut other = Worker::start(&app, "other", 10).await;
    let anything = tokio::spawn(async move { other.delivery().await });
    let named = Open {
        filter: Some(Filter {
            subscription_ids: vec![sub.id.clone()],
            ..Filter::default()
        }),
        ..open("w", 1)
    };
    let mut worker = Worker::open(&app, &app.admin, named).await.unwrap();
    app.events("a.b", 1).await;
    let d = worker.delivery().await;
    assert_eq!(worker.ack(&[&d]).await.ok.len(), 1);
    for _ in 0..2 {
        store.shift_clock(40 * SECOND).await.unwrap();
        let before = ends().await;
        eventually("it lives longer", || async {
            (ends().await > before + 30 * SECOND).then_some(())
        })
        .await;
    }
    assert!(ends().await > first + 60 * SECOND);
    drop(worker);
    eventually("nobody has it open", || async {
        (app.app().context.workers.streams() == 1).then_some(())
    })
    .await;
    let event = app.events("a.b", 1).await.remove(0);
    let deliveries = app.deliveries_of(&app.admin, &event).await;
    let delivery = deliveries[0]["id"].as_str().unwrap().to_owned();
    store.shift_clock(61 * SECOND).await.unwrap();
    eventually("it is deleted", || async {
        (app.get(&path, &app.admin).await.status == 404).then_some(())
    })
    .await;
    assert!(!anything.is_finished());
    anything.abort();
    let other = format!("/v1/external/webhooks/{}", stays.id);
    app.get(&other, &app.admin).await.ok();
    eventually("what it had is cancelled", || async {
        (app.state_of(&delivery).await["status"] == "CANCELLED").then_some(())
    })
    .await;
    db.counts_agree().await;
    app.stop().await;
}
