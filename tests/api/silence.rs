//! A database whose host goes silent: connections stay open, and nothing answers;
//! or whose answers are lost.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::{
    app::{TestApp, eventually},
    proxy::Proxy,
    receiver::{Receiver, status},
    store::Db,
};

on_postgres_alone![
    a_silent_database_is_given_up_on_in_time,
    what_waits_for_a_silent_database_is_bounded,
    an_outcome_whose_answer_was_lost_has_its_consequences,
];

const EVENTS: &str = "/v1/external/events";
/// What a statement may take, and what a busy machine adds.
const LIMIT: Duration = Duration::from_secs(15);

// D1: callers are told within the limit; once the host is back everything
// that was accepted is delivered, with no connection stuck.
async fn a_silent_database_is_given_up_on_in_time(db: Db) {
    let (proxy, url) = Proxy::before(&db).await;
    let app = TestApp::builder(&db)
        .set("DATABASE_URL", url)
        .set("STALE_SECONDS", 600);
    let app = app.start().await;
    let receiver = Receiver::with(|_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        status(200)
    })
    .await;
    let hook = json!({"url": receiver.url(), "event_types": ["*"]});
    app.subscribe(&app.admin, hook).await;

    let publish = async |n: u32| {
        let event = json!({"event_type": "a.b", "data": n});
        let began = Instant::now();
        let answer = app.post(EVENTS, &app.admin, event).await;
        (answer, began.elapsed())
    };
    let mut accepted = Vec::new();
    // In the middle of it, so that outcomes are on their way too.
    let (answers, ()) = futures_util::join!(join_all((0..200).map(publish)), async {
        receiver.wait(20).await;
        proxy.silence();
    });
    let late = join_all((200..210).map(publish)).await;
    for (answer, took) in answers.into_iter().chain(late.clone()) {
        assert!(took < LIMIT, "answered after {took:?}");
        if answer.status == 202 {
            accepted.push(answer.ok()["id"].as_str().unwrap().to_owned());
        } else {
            answer.refused(503, "STORE_UNAVAILABLE");
        }
    }
    assert!(late.iter().all(|(answer, _)| answer.status == 503));

    proxy.mend();
    let last = eventually("it takes events again", || async {
        let (answer, _) = publish(210).await;
        (answer.status == 202).then(|| answer.ok()["id"].as_str().unwrap().to_owned())
    })
    .await;
    accepted.push(last);
    eventually("everything accepted is delivered", || async {
        let received = receiver.received();
        let came = |id: &String| received.iter().any(|r| r.event() == id);
        accepted.iter().all(came).then_some(())
    })
    .await;
    for event in &accepted {
        for delivery in app.deliveries_of(&app.admin, event).await {
            let id = delivery["id"].as_str().unwrap();
            app.delivery_is(&app.admin, id, "DELIVERED").await;
        }
    }
    app.stop().await;
}

// D1, H2: events that wait for the database take a bounded part of the memory, however
// large each is.
async fn what_waits_for_a_silent_database_is_bounded(db: Db) {
    let (proxy, url) = Proxy::before(&db).await;
    let app = TestApp::builder(&db)
        .set("DATABASE_URL", url)
        .set("STALE_SECONDS", 600);
    let app = app.start().await;
    proxy.silence();
    let data = "x".repeat(250 << 10);
    let event = json!({"event_type": "a.b", "data": data});
    let answers = join_all((0..300).map(|_| async {
        let began = Instant::now();
        let answer = app.post(EVENTS, &app.admin, event.clone()).await;
        (answer, began.elapsed())
    }))
    .await;
    let (full, waited): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|(answer, _)| answer.json()["code"] == "OVERLOADED");
    for (answer, _) in &full {
        answer.refused(503, "OVERLOADED");
        assert_eq!(answer.header("retry-after"), "1");
    }
    for (answer, _) in &waited {
        answer.refused(503, "STORE_UNAVAILABLE");
    }
    // 64 MiB are 262 of them.
    assert!((30..60).contains(&full.len()), "{} refused", full.len());
    assert!(waited.iter().all(|(_, took)| *took < LIMIT * 2));
    proxy.mend();
    eventually("it takes events again", || async {
        let answer = app.post(EVENTS, &app.admin, event.clone()).await;
        (answer.status == 202).then_some(())
    })
    .await;
    app.stop().await;
}

// A3: a receiver that is gone is switched off, also where its delivery's end was
// recorded by a statement whose answer was lost.
async fn an_outcome_whose_answer_was_lost_has_its_consequences(db: Db) {
    let (proxy, url) = Proxy::before(&db).await;
    let app = TestApp::builder(&db)
        .set("DATABASE_URL", url)
        .set("STALE_SECONDS", 600);
    let app = app.start().await;
    let gone = Arc::new(Semaphore::new(0));
    let gate = gone.clone();
    let receiver = Receiver::with(move |received| {
        let gate = gate.clone();
        async move {
            if received.header("x-webhook-event") == "a.first" {
                return status(400);
            }
            gate.acquire().await.unwrap().forget();
            status(410)
        }
    })
    .await;
    let hook = json!({"url": receiver.url(), "event_types": ["a.*"]});
    let sub = app.subscribe(&app.admin, hook).await;
    // So that there is a connection that has recorded such an end: its statement is known
    // there, and its answer is all that is lost.
    let first = app.publish(&app.admin, "a.first", json!({})).await;
    let first = app.deliveries_of(&app.admin, &first).await;
    app.delivery_is(&app.admin, first[0]["id"].as_str().unwrap(), "DEAD")
        .await;
    app.publish(&app.admin, "a.second", json!({})).await;
    receiver.wait(2).await;

    proxy.deafen();
    gone.add_permits(1);
    eventually("its end is recorded", || async {
        let dead = db.texts("select sub::text from dead").await;
        (dead.len() == 2).then_some(())
    })
    .await;
    proxy.cut();
    proxy.mend();
    eventually("the subscription is switched off", || async {
        let path = format!("/v1/external/webhooks/{}", sub.id);
        let answer = app.get(&path, &app.admin).await;
        (answer.status == 200 && answer.json()["disabled_reason"] == "gone").then_some(())
    })
    .await;
    let metrics = app.get("/metrics", &app.admin).await;
    let dead = "onering_deliveries_total{outcome=\"dead\"} 2";
    assert!(metrics.text().contains(dead), "{}", metrics.text());
    app.stop().await;
}
