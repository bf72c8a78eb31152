//! Sessions that are renewed late, and sessions that end, under what is in memory.

use std::sync::Arc;

use onering::store::Store;
use serde_json::json;
use tokio::sync::Semaphore;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::scene::{gated, idle};
use crate::support::{
    app::{TestApp, eventually},
    faults::{Fault, Faults},
    receiver::Receiver,
    store::{Db, HOUR},
};

contract![
    what_waits_outlasts_a_late_session,
    jobs_of_an_ended_session_are_dropped,
    a_publish_that_outlasts_its_session_is_sent_once,
];

fn store(app: &TestApp) -> &dyn Store {
    &*app.app().context.store
}

async fn is_serving(app: &TestApp) -> bool {
    let mut client = HealthClient::new(app.channel());
    let request = HealthCheckRequest::default();
    let answer = client.check(request).await.unwrap().into_inner();
    answer.status() == ServingStatus::Serving
}

/// A delivery that is under way, and one that waits for it in memory.
async fn one_behind_the_other(app: &TestApp) -> (Receiver, Arc<Semaphore>, [String; 2]) {
    let (receiver, permits) = gated().await;
    let fields = json!({"max_in_flight": 1, "timeout_seconds": 60});
    app.webhook(&receiver.url(), fields).await;
    let first = app.one_delivery("a.b").await;
    receiver.wait(1).await;
    let second = app.one_delivery("a.b").await;
    eventually("the second waits in memory", || async {
        (app.app().context.dispatcher.waiting() == 1).then_some(())
    })
    .await;
    (receiver, permits, [first, second])
}

/// How often a delivery was received.
fn times(receiver: &Receiver, delivery: &str) -> usize {
    let received = receiver.received();
    let of = received
        .iter()
        .filter(|r| r.header("x-webhook-id") == delivery);
    of.count()
}

// N2: while a node does not know whether its session lives it sends nothing, and
// keeps what it has leased: a late renewal is one all the same.
async fn what_waits_outlasts_a_late_session(db: Db) {
    let faults = Faults::none();
    faults.always("renew_session", Fault::Late);
    let app = TestApp::builder(&db)
        .set("SESSION_SECONDS", 8)
        .faults(&faults)
        .start()
        .await;
    let (receiver, permits, [first, second]) = one_behind_the_other(&app).await;
    eventually("the session is late", || async {
        (!is_serving(&app).await).then_some(())
    })
    .await;
    permits.add_permits(2);
    app.is(&first, "DELIVERED").await;
    // Its worker has asked for the next job before the first's end was recorded.
    assert_eq!(receiver.count(), 1, "nothing is sent");
    assert_eq!(
        app.app().context.dispatcher.waiting(),
        1,
        "nothing is dropped"
    );
    assert_eq!(app.delivery(&second).await["status"], "SENDING");

    faults.mend("renew_session");
    app.is(&second, "DELIVERED").await;
    assert_eq!(receiver.count(), 2);
    assert_eq!(faults.began("begin_session"), 1, "it is the same session");
    app.stop().await;
}

// N2, W4: what was leased to a session that has ended is sent under the next
// one's lease, and not under its own.
async fn jobs_of_an_ended_session_are_dropped(db: Db) {
    let faults = Faults::none();
    let app = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_LOOP_SECONDS", 1)
        .faults(&faults)
        .start()
        .await;
    let (receiver, permits, [first, second]) = one_behind_the_other(&app).await;
    store(&app).shift_clock(HOUR).await.unwrap();
    faults.wait("begin_session", 2).await;
    eventually("both are leased again", || async {
        (app.app().context.dispatcher.waiting() == 2).then_some(())
    })
    .await;
    permits.add_permits(10);
    app.is(&first, "DELIVERED").await;
    app.is(&second, "DELIVERED").await;
    idle(&receiver).await;
    assert_eq!(times(&receiver, &first), 2, "it was under way already");
    assert_eq!(times(&receiver, &second), 1);
    app.stop().await;
}

// N2: the rows were free by the time that the publish was answered.
async fn a_publish_that_outlasts_its_session_is_sent_once(db: Db) {
    let faults = Faults::none();
    let app = TestApp::builder(&db)
        .set("WEBHOOKS_DELIVERY_LOOP_SECONDS", 1)
        .faults(&faults)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    faults.always("publish", Fault::Late);
    let publish = app.event("a.b");
    let end = async {
        eventually("it is committed", || async {
            (app.with_status(&sub.id, "SENDING").await.len() == 1).then_some(())
        })
        .await;
        store(&app).shift_clock(HOUR).await.unwrap();
        faults.wait("begin_session", 2).await;
        app.wait_for(&sub.id, "DELIVERED", 1).await;
        faults.mend("publish");
    };
    let (event, ()) = tokio::join!(publish, end);
    let delivery = app.only_delivery_of(&event).await;
    // The one that follows shows that the late answer was looked at.
    app.one_delivery("a.b").await;
    app.wait_for(&sub.id, "DELIVERED", 2).await;
    assert_eq!(times(&receiver, &delivery), 1);
    app.stop().await;
}
