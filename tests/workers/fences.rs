//! What a worker gets, and what its acks are worth.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use onering::{
    domain::{
        id::wall_clock,
        signature::{Verifier, VerifyingKey},
    },
    proto::v1::{
        server_message::Message as Says,
        server_message::RevokeReason,
        worker_message::{Ack, AckItem, Action, Extend, Filter, Message},
    },
};
use serde_json::json;

use super::client::{Worker, lease, open};
use crate::support::{
    app::{TestApp, eventually},
    faults::{Fault, Faults},
    store::Db,
};

contract![
    a_delivery_is_consumed,
    an_ack_is_effective_once,
    a_lease_that_is_over_is_stale,
    a_lease_is_extended,
    nacks_do_what_they_say,
    nobody_acks_what_is_anothers,
    an_outcome_that_is_not_recorded_is_temporary,
    what_may_be_another_nodes_is_taken_back,
];

// W1, W7: a delivery has all that its worker needs, signed; its ack ends it.
async fn a_delivery_is_consumed(db: Db) {
    let app = TestApp::start(&db).await;
    let sub = app.stream(json!({"headers": {"X-Own": "1"}})).await;
    let mut worker = Worker::start(&app, "consumer-1", 10).await;
    assert_eq!(worker.opened.lease_seconds, 60);
    let event = app.publish(&app.admin, "a.b", json!({"n": 1})).await;
    let d = worker.delivery().await;
    assert_eq!((&d.event_id, &d.subscription_id), (&event, &sub.id));
    assert_eq!(
        (d.attempt, d.event_type.as_str(), d.url.as_str()),
        (1, "a.b", "")
    );
    assert!((1..=60_000).contains(&d.deadline_in_ms));
    assert_eq!(d.headers["x-own"], "1");
    assert_eq!(d.headers["content-type"], "application/json");
    let body: serde_json::Value = serde_json::from_slice(&d.body).unwrap();
    assert_eq!(
        (&body["id"], &body["data"]),
        (&json!(event), &json!({"n": 1}))
    );
    let key = VerifyingKey::parse(&sub.secret).unwrap();
    let headers: HashMap<_, _> = d
        .headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    let verified = Verifier::new(&[key]).verify(
        |name| headers.get(name).copied(),
        &d.body,
        wall_clock() / 1_000_000,
    );
    assert!(verified.is_ok(), "{:?}", verified.err());
    let signature = d.signature.as_ref().unwrap();
    assert_eq!(signature.webhook_signature, d.headers["webhook-signature"]);
    assert_eq!(signature.expires_in_ms, 300_000);
    assert_eq!(app.state_of(&d.delivery_id).await["status"], "SENDING");

    let told = worker.ack(&[&d]).await;
    assert_eq!(told.ok, std::slice::from_ref(&d.delivery_id));
    assert_eq!(app.state_of(&d.delivery_id).await["status"], "DELIVERED");
    let attempts = app.attempts_of(&d.delivery_id).await;
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0]["worker"], "consumer-1");
    db.counts_agree().await;
    app.stop().await;
}

// W2, W7: a result comes after the commit, and the same ack again is good again:
// in one message, after it, and from another stream of the same worker.
async fn an_ack_is_effective_once(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let mut worker = Worker::start(&app, "w", 10).await;
    app.events("a.b", 1).await;
    let d = worker.delivery().await;
    for _ in 0..3 {
        let told = worker.ack(&[&d, &d]).await;
        assert_eq!(told.ok, [d.delivery_id.clone(), d.delivery_id.clone()]);
        assert_eq!(app.state_of(&d.delivery_id).await["status"], "DELIVERED");
    }
    let mut again = Worker::start(&app, "w", 10).await;
    assert_eq!(again.ack(&[&d]).await.ok.len(), 1);
    // What it was is what counts.
    let told = again.nack(&d, Action::Dead, "late", 0).await;
    assert_eq!(told.ok.len(), 1);
    assert_eq!(app.state_of(&d.delivery_id).await["status"], "DELIVERED");
    assert_eq!(app.attempts_of(&d.delivery_id).await.len(), 1);
    db.counts_agree().await;
    app.stop().await;
}

// W2: what is not acked in time is taken back, and comes again under another
// fence; the old one is good for nothing, and no attempt is charged.
async fn a_lease_that_is_over_is_stale(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let mut worker = Worker::open(
        &app,
        &app.admin,
        onering::proto::v1::worker_message::Open {
            lease_seconds: 1,
            ..open("w", 10)
        },
    )
    .await
    .unwrap();
    app.events("a.b", 1).await;
    let first = worker.delivery().await;
    let revoked = worker.revoked().await;
    assert_eq!(
        revoked.delivery_ids,
        std::slice::from_ref(&first.delivery_id)
    );
    assert_eq!(revoked.reason(), RevokeReason::Deadline);
    let second = worker.delivery().await;
    assert_eq!(second.delivery_id, first.delivery_id);
    assert_eq!(second.attempt, 1, "no attempt is charged");
    assert_ne!(second.lease_token, first.lease_token);
    let told = worker.ack(&[&first, &second]).await;
    assert_eq!(told.stale, std::slice::from_ref(&first.delivery_id));
    assert_eq!(told.ok, std::slice::from_ref(&first.delivery_id));
    assert_eq!(app.attempts_of(&first.delivery_id).await.len(), 1);
    db.counts_agree().await;
    app.stop().await;
}

// W1: a worker that needs longer says so.
async fn a_lease_is_extended(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let short = onering::proto::v1::worker_message::Open {
        lease_seconds: 2,
        ..open("w", 10)
    };
    let mut worker = Worker::open(&app, &app.admin, short).await.unwrap();
    app.events("a.b", 2).await;
    let both = worker.deliveries(2).await;
    assert_eq!(worker.extend(&both[0], 600).await.ok.len(), 1);
    let revoked = worker.revoked().await;
    assert_eq!(revoked.delivery_ids, [both[1].delivery_id.clone()]);
    assert_eq!(worker.extend(&both[1], 600).await.stale.len(), 1);
    assert_eq!(worker.ack(&[&both[0]]).await.ok.len(), 1);
    app.stop().await;
}

// W1: retry, dead and release.
async fn nacks_do_what_they_say(db: Db) {
    let app = TestApp::start(&db).await;
    let schedule = json!({"max_attempts": 3, "backoff_seconds": [1]});
    app.stream(json!({"retry_schedule": schedule})).await;
    let mut worker = Worker::start(&app, "w", 10).await;
    app.events("a.b", 1).await;
    let first = worker.delivery().await;
    assert_eq!(
        worker.nack(&first, Action::Release, "", 0).await.ok.len(),
        1
    );
    let again = worker.delivery().await;
    assert_eq!((&again.delivery_id, again.attempt), (&first.delivery_id, 1));
    assert!(app.attempts_of(&first.delivery_id).await.is_empty());

    assert_eq!(
        worker
            .nack(&again, Action::Retry, "no\nstock", 0)
            .await
            .ok
            .len(),
        1
    );
    let retried = worker.delivery().await;
    assert_eq!(
        (&retried.delivery_id, retried.attempt),
        (&first.delivery_id, 2)
    );
    let told = worker.nack(&retried, Action::Dead, "poison", 0).await;
    assert_eq!(told.ok.len(), 1);
    let dead = app.state_of(&first.delivery_id).await;
    assert_eq!(
        (&dead["status"], &dead["reason"]),
        (&json!("DEAD"), &json!("poison"))
    );
    let attempts = app.attempts_of(&first.delivery_id).await;
    let errors: Vec<_> = attempts
        .iter()
        .map(|a| a["error"].as_str().unwrap())
        .collect();
    assert_eq!(errors, ["nostock", "poison"]);

    app.events("a.b", 1).await;
    let later = worker.delivery().await;
    worker.nack(&later, Action::Retry, "later", 600).await;
    let waits = app.state_of(&later.delivery_id).await;
    assert_eq!(waits["status"], "RETRYING");
    let at: jiff::Timestamp = waits["next_attempt_time"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(at.as_microsecond() - wall_clock() > 500_000_000, "{waits}");
    db.counts_agree().await;
    app.stop().await;
}

// W2, T1: what was handed to another worker, or to another key's worker of the
// same name, or is made up, is refused for that item, and changes nothing.
async fn nobody_acks_what_is_anothers(db: Db) {
    let app = TestApp::start(&db).await;
    app.stream(json!({})).await;
    let acme = app.tenant("acme").await;
    app.stream_of(&acme.key, json!({})).await;
    let own = onering::proto::v1::worker_message::Open {
        filter: Some(Filter {
            tenant: "default".to_owned(),
            ..Filter::default()
        }),
        ..open("w", 10)
    };
    let mut owner = Worker::open(&app, &app.admin, own).await.unwrap();
    app.events("a.b", 1).await;
    let d = owner.delivery().await;
    let mut other_name = Worker::start(&app, "v", 0).await;
    let mut other_tenant = Worker::open(&app, &acme.key, open("w", 10)).await.unwrap();
    for thief in [&mut other_name, &mut other_tenant] {
        assert_eq!(
            thief.ack(&[&d]).await.stale,
            std::slice::from_ref(&d.delivery_id)
        );
        assert_eq!(thief.nack(&d, Action::Dead, "", 0).await.stale.len(), 1);
        assert_eq!(thief.extend(&d, 60).await.stale.len(), 1);
    }
    // Of a delivery of its own it can't have another's token.
    app.publish(&acme.key, "a.b", json!({})).await;
    let theirs = other_tenant.delivery().await;
    let mut forged = theirs.clone();
    forged.lease_token = d.lease_token.clone();
    let mut short = theirs.clone();
    short.lease_token.truncate(3);
    let mut nonsense = theirs.clone();
    nonsense.delivery_id = "x".repeat(100_000);
    let told = other_tenant
        .ack(&[&forged, &short, &nonsense, &theirs])
        .await;
    assert_eq!((told.ok.len(), told.stale.len()), (1, 3));
    assert!(told.stale.iter().all(|id| id.len() <= 64));
    assert_eq!(app.state_of(&d.delivery_id).await["status"], "SENDING");
    assert_eq!(owner.ack(&[&d]).await.ok.len(), 1);
    app.stop().await;
}

// W2: while the store is away nobody is told that an ack is recorded. It is kept
// and recorded later; the ack that is sent again is good.
async fn an_outcome_that_is_not_recorded_is_temporary(db: Db) {
    let faults = Faults::none();
    let app = TestApp::builder(&db).faults(&faults).start().await;
    app.stream(json!({})).await;
    let mut worker = Worker::start(&app, "w", 10).await;
    app.events("a.b", 1).await;
    let d = worker.delivery().await;
    for fault in [Fault::Fails, Fault::Lost] {
        faults.always("finish", fault);
        assert_eq!(
            worker.ack(&[&d]).await.temporary,
            std::slice::from_ref(&d.delivery_id)
        );
        faults.mend("finish");
        let item = AckItem {
            delivery_id: d.delivery_id.clone(),
            lease_token: d.lease_token.clone(),
            outcome: None,
        };
        worker.say(Message::Ack(Ack {
            request_id: "again".to_owned(),
            items: vec![item],
        }));
        assert_eq!(
            worker.result("again").await.ok,
            std::slice::from_ref(&d.delivery_id)
        );
    }
    eventually("it is delivered", || async {
        (app.state_of(&d.delivery_id).await["status"] == "DELIVERED").then_some(())
    })
    .await;
    assert_eq!(app.attempts_of(&d.delivery_id).await.len(), 1);
    db.counts_agree().await;
    app.stop().await;
}

// N2, W4: once another node may take over by this one's own clock its workers have
// nothing of it any more, however long an answer is waited for; nothing is extended,
// and the session is given up in time.
async fn what_may_be_another_nodes_is_taken_back(db: Db) {
    let faults = Faults::none();
    let app = TestApp::builder(&db)
        .set("SESSION_SECONDS", 6)
        .faults(&faults)
        .start()
        .await;
    app.stream(json!({})).await;
    let mut worker = Worker::start(&app, "w", 1).await;
    app.events("a.b", 1).await;
    let d = worker.delivery().await;
    let node = app.app().context.node.clone();
    let session = node.session();
    faults.always("renew_session", Fault::Late);
    eventually("another may take over", || async {
        (!node.is_alive()).then_some(())
    })
    .await;
    let fenced = Instant::now();
    worker.say(Message::Extend(Extend {
        items: vec![lease(&d)],
        seconds: 600,
        ..Extend::default()
    }));
    let revoked = worker.revoked().await;
    assert_eq!(revoked.delivery_ids, std::slice::from_ref(&d.delivery_id));
    assert_eq!(revoked.reason(), RevokeReason::Session);
    match worker.next().await {
        Ok(Some(Says::Result(told))) => assert_eq!(told.stale, revoked.delivery_ids),
        other => panic!("not a result: {other:?}"),
    }
    eventually("the session is given up", || async {
        (node.session() != session).then_some(())
    })
    .await;
    let late = fenced.elapsed();
    assert!(late < Duration::from_millis(2400), "{late:?}");
    faults.mend("renew_session");
    let again = worker.delivery().await;
    assert_eq!((&again.delivery_id, again.attempt), (&d.delivery_id, 1));
    assert_eq!(worker.ack(&[&again]).await.ok.len(), 1);
    db.counts_agree().await;
    app.stop().await;
}
