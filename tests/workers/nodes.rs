//! Workers of a node that owns nothing: what the others have comes through it.

use std::{net::TcpListener, sync::Arc, time::Duration};

use onering::{
    domain::id::TenantId,
    proto::v1::{
        SubscriptionKind,
        server_message::Message as Says,
        worker_message::{Action, Filter, Open},
    },
};
use serde_json::json;

use super::client::{Worker, ids, lease, open};
use crate::support::{
    app::{PATIENCE, TestApp, eventually, reason},
    faults::{Fault, Faults},
    proxy::Proxy,
    store::Db,
};

on_postgres_alone![
    a_worker_has_work_of_all_nodes,
    a_worker_moves_between_nodes,
    an_owner_that_stops_leaves_nothing_behind,
    what_nobody_answers_is_recorded_here,
    a_nodes_credential_is_for_this_alone,
    acks_count_while_a_link_is_broken,
    what_is_resumed_too_late_is_given_back,
    what_an_owner_leaves_is_taken_back_at_once,
    what_an_owner_loses_is_taken_back_before_it_comes_again,
    a_relays_window_counts_at_every_node,
    links_take_nobodys_place,
    a_link_that_fails_is_told,
];

/// A node that the others reach.
async fn node(first: Option<&TestApp>, db: &Db) -> TestApp {
    with(first, db, &Faults::none(), &[]).await
}

/// As [`node`], with these variables too.
async fn with(
    first: Option<&TestApp>,
    db: &Db,
    faults: &Arc<Faults>,
    more: &[(&str, u64)],
) -> TestApp {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let builder = match first {
        None => TestApp::builder(db),
        Some(first) => first.again(),
    };
    let builder = more
        .iter()
        .fold(builder, |builder, (name, value)| builder.set(name, value));
    builder
        .set("LISTEN", address)
        .set("ADVERTISE_URL", format!("http://{address}"))
        .set("SESSION_SECONDS", 4)
        .faults(faults)
        .start()
        .await
}

/// The node that owns what the tenant `default` has, and one beside it.
async fn two(db: &Db) -> (TestApp, TestApp) {
    let (owner, beside, _) = two_with(db, &[]).await;
    (owner, beside)
}

/// As [`two`] with these variables, and the faults of the one beside the owner.
async fn two_with(db: &Db, more: &[(&str, u64)]) -> (TestApp, TestApp, Arc<Faults>) {
    let (owner, beside, [_, faults]) = two_with_faults(db, more).await;
    (owner, beside, faults)
}

/// As [`two`] with these variables, and the faults of both.
async fn two_with_faults(db: &Db, more: &[(&str, u64)]) -> (TestApp, TestApp, [Arc<Faults>; 2]) {
    let faults = [Faults::none(), Faults::none()];
    let first = with(None, db, &faults[0], more).await;
    let second = with(Some(&first), db, &faults[1], more).await;
    let owned = |app: &TestApp| app.app().context.node.owned().len();
    // They move a few at a time: shared is what has not moved for a while.
    let mut same = (0, 0);
    eventually("the partitions are shared", || {
        let now = owned(&first);
        let whole = now > 0 && now + owned(&second) == 64 && now == same.0;
        same = (now, if whole { same.1 + 1 } else { 0 });
        let long = same.1 > 200 && owned(&second) > 0;
        async move { long.then_some(()) }
    })
    .await;
    let [of_first, of_second] = faults;
    if first.app().context.node.owns(TenantId::DEFAULT.part()) {
        (first, second, [of_first, of_second])
    } else {
        (second, first, [of_second, of_first])
    }
}

/// Stands before the owner for the other node, whose faults these are.
async fn before(owner: &TestApp, faults: &Faults) -> Proxy {
    let proxy = Proxy::to(owner.address.to_string()).await;
    // The other node knows the owner by the proxy's address.
    let context = &owner.app().context;
    let url = format!("http://{}", proxy.address);
    eventually("both have advertised themselves", || async {
        let peers = context.store.peers().await.unwrap();
        (peers.len() == 2).then_some(())
    })
    .await;
    let session = context.node.session();
    context.store.advertise(session, &url).await.unwrap();
    faults.wait("peers", faults.answered("peers") + 2).await;
    proxy
}

async fn streams(app: &TestApp, count: usize) {
    eventually(&format!("{count} streams are open"), || async {
        (app.app().context.workers.streams() == count).then_some(())
    })
    .await;
}

async fn in_flight(app: &TestApp, count: usize) {
    eventually(&format!("{count} are under way"), || async {
        (app.app().context.dispatcher.in_flight() == count).then_some(())
    })
    .await;
}

// W8, W3: one connection, to a node that owns nothing: what the owner has comes,
// within the window, and all that is said of it counts at its owner.
async fn a_worker_has_work_of_all_nodes(db: Db) {
    let (owner, beside) = two(&db).await;
    let schedule = json!({"max_attempts": 3, "backoff_seconds": [1]});
    owner.stream(json!({"retry_schedule": schedule})).await;
    let mut worker = Worker::start(&beside, "w", 3).await;
    owner.events("a.b", 10).await;
    let mut held = worker.deliveries(3).await;
    assert!(worker.everything_until_now().await.is_empty());
    let mut seen = ids(&held);
    while let Some(d) = held.pop() {
        assert_eq!(worker.ack(&[&d, &d]).await.ok.len(), 2);
        assert_eq!(owner.state_of(&d.delivery_id).await["status"], "DELIVERED");
        if seen.len() < 10 {
            let next = worker.delivery().await;
            seen.push(next.delivery_id.clone());
            held.push(next);
        }
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 10);
    in_flight(&owner, 0).await;

    owner.events("a.b", 1).await;
    let d = worker.delivery().await;
    assert_eq!(worker.extend(&d, 600).await.ok.len(), 1);
    assert_eq!(worker.nack(&d, Action::Retry, "again", 0).await.ok.len(), 1);
    let again = worker.delivery().await;
    assert_eq!((again.attempt, &again.delivery_id), (2, &d.delivery_id));
    assert_eq!(worker.extend(&d, 600).await.stale.len(), 1);
    let told = worker.ack(&[&d, &again]).await;
    assert_eq!(
        (told.ok.len(), told.stale.len()),
        (2, 0),
        "what was said first was recorded"
    );
    worker.drain();
    worker.half_close();
    worker.ended().await.unwrap();
    streams(&owner, 0).await;
    db.counts_agree().await;
    beside.stop().await;
    owner.stop().await;
}

// W5, W8: a worker whose connection broke resumes what it has over any node.
async fn a_worker_moves_between_nodes(db: Db) {
    let (owner, beside) = two(&db).await;
    owner.stream(json!({})).await;
    let proxy = Proxy::to(beside.address.to_string()).await;
    let url = format!("http://{}", proxy.address);
    let mut first = Worker::open_at(&url, &owner.admin, open("w", 2))
        .await
        .unwrap();
    owner.events("a.b", 2).await;
    let held = first.deliveries(2).await;
    let resume = || Open {
        resume: held.iter().map(lease).collect(),
        ..open("w", 2)
    };
    proxy.cut();
    assert!(first.ended().await.is_err());
    let mut second = Worker::open(&owner, &owner.admin, resume()).await.unwrap();
    let mut resumed = second.opened.resumed.clone();
    resumed.sort_unstable();
    assert_eq!(resumed, ids(&held), "at the owner");
    drop(first);

    let third = Worker::open(&beside, &owner.admin, resume()).await.unwrap();
    let mut resumed = third.opened.resumed.clone();
    resumed.sort_unstable();
    assert_eq!(resumed, ids(&held), "beside the owner");
    let ended = second.ended().await;
    assert_eq!(reason(&ended.unwrap_err()), "FAILED_PRECONDITION");
    let mut third = third;
    assert!(third.everything_until_now().await.is_empty());
    let both: Vec<_> = held.iter().collect();
    assert_eq!(third.ack(&both).await.ok.len(), 2);
    for d in &held {
        assert_eq!(owner.attempts_of(&d.delivery_id).await.len(), 1);
    }
    in_flight(&owner, 0).await;
    db.counts_agree().await;
    beside.stop().await;
    owner.stop().await;
}

// W5, W8, N2: a worker beside an owner that stops: what it acks until then counts,
// what comes then comes from whoever owns it.
async fn an_owner_that_stops_leaves_nothing_behind(db: Db) {
    let (owner, beside) = two(&db).await;
    owner.stream(json!({})).await;
    let mut worker = Worker::start(&beside, "w", 2).await;
    owner.events("a.b", 2).await;
    let held = worker.deliveries(2).await;
    let stopping = tokio::spawn(owner.stop());
    assert_eq!(worker.ack(&[&held[0]]).await.ok.len(), 1);
    stopping.await.unwrap();
    let again = loop {
        match worker.next().await {
            Ok(Some(Says::Delivery(delivery))) => break delivery,
            // Where the owner's end is known before the next lease is there.
            Ok(Some(Says::Revoke(revoke))) => {
                assert_eq!(revoke.delivery_ids, [held[1].delivery_id.clone()]);
            }
            other => panic!("not a delivery: {other:?}"),
        }
    };
    assert_eq!(
        (again.delivery_id.clone(), again.attempt),
        (held[1].delivery_id.clone(), 1)
    );
    assert_eq!(worker.ack(&[&held[1]]).await.stale.len(), 1);
    assert_eq!(worker.ack(&[&again]).await.ok.len(), 1);
    let another = beside.events("a.b", 1).await;
    let next = worker.delivery().await;
    assert_eq!(next.event_id, another[0]);
    worker.ack(&[&next]).await;
    db.counts_agree().await;
    beside.stop().await;
}

// W2, W8: an ack whose owner does not answer is recorded by the node that it came
// to: the fence is in the store.
async fn what_nobody_answers_is_recorded_here(db: Db) {
    let (owner, beside, faults) = two_with(&db, &[]).await;
    let proxy = before(&owner, &faults).await;
    owner.stream(json!({})).await;
    let mut worker = Worker::start(&beside, "w", 1).await;
    owner.events("a.b", 1).await;
    let d = worker.delivery().await;
    proxy.silence();
    let told = worker.ack(&[&d]).await;
    assert_eq!(told.ok, std::slice::from_ref(&d.delivery_id));
    assert_eq!(owner.state_of(&d.delivery_id).await["status"], "DELIVERED");
    in_flight(&owner, 0).await;
    db.counts_agree().await;
    beside.stop().await;
    owner.stop().await;
}

// W8, K8: what nodes call each other with opens this one method, for a key that works.
async fn a_nodes_credential_is_for_this_alone(db: Db) {
    use onering::domain::id::wall_clock;
    let app = node(None, &db).await;
    let (id, _) = app
        .key(json!({"kind": "ADMIN", "scopes": ["deliveries:work"]}))
        .await;
    let keyring = app.app().context.keyring.clone();
    let credential = keyring.node_credential(id.parse().unwrap(), wall_clock());
    Worker::open(&app, &credential, open("w", 1)).await.unwrap();
    app.get("/v1/external/webhooks", &credential)
        .await
        .refused(401, "KEY_MALFORMED");
    let old = keyring.node_credential(id.parse().unwrap(), wall_clock() - 120_000_000);
    let refused = Worker::open(&app, &old, open("w", 1)).await.err().unwrap();
    assert_eq!(reason(&refused), "KEY_MALFORMED");
    let path = format!("/v1/admin/external/keys/{id}/revoke");
    app.post(&path, &app.admin, json!({})).await.ok();
    let refused = Worker::open(&app, &credential, open("w", 1))
        .await
        .err()
        .unwrap();
    assert_eq!(reason(&refused), "KEY_REVOKED");
    app.stop().await;
}

// W1, W2, W8: what is said while the link to its owner is broken, and whole again
// a moment later, is answered and counts once.
async fn acks_count_while_a_link_is_broken(db: Db) {
    let (owner, beside, faults) = two_with(&db, &[]).await;
    let proxy = before(&owner, &faults).await;
    owner.stream(json!({})).await;
    let mut worker = Worker::start(&beside, "w", 1).await;
    owner.events("a.b", 1).await;
    let d = worker.delivery().await;
    proxy.cut();
    streams(&owner, 0).await;
    proxy.mend();
    let told = worker.ack(&[&d]).await;
    let ok = std::slice::from_ref(&d.delivery_id);
    assert_eq!(told.ok, ok, "{told:?}");
    assert_eq!(owner.state_of(&d.delivery_id).await["status"], "DELIVERED");
    assert_eq!(owner.attempts_of(&d.delivery_id).await.len(), 1);
    owner.events("a.b", 1).await;
    let next = worker.delivery().await;
    assert_ne!(next.delivery_id, d.delivery_id);
    assert_eq!(worker.ack(&[&next]).await.ok.len(), 1);
    in_flight(&owner, 0).await;
    db.counts_agree().await;
    beside.stop().await;
    owner.stop().await;
}

// W5, W8: a worker was told that a delivery is lost, since its owner was slow to
// say that it is resumed: it is another's at once, not when its time is over.
async fn what_is_resumed_too_late_is_given_back(db: Db) {
    let (owner, beside, faults) = two_with(&db, &[]).await;
    let between = before(&owner, &faults).await;
    owner.stream(json!({})).await;
    let front = Proxy::to(owner.address.to_string()).await;
    let url = format!("http://{}", front.address);
    let long = Open {
        lease_seconds: 3600,
        ..open("w", 1)
    };
    let mut first = Worker::open_at(&url, &owner.admin, long.clone())
        .await
        .unwrap();
    owner.events("a.b", 1).await;
    let held = first.delivery().await;
    between.slow_down(Duration::from_secs(2));
    front.cut();
    assert!(first.ended().await.is_err());
    let resume = Open {
        resume: vec![lease(&held)],
        max_messages: 0,
        ..long
    };
    let mut second = Worker::open(&beside, &beside.admin, resume).await.unwrap();
    assert_eq!(second.opened.lost, std::slice::from_ref(&held.delivery_id));
    let stays = tokio::spawn(async move { second.ended().await });
    let mut other = Worker::start(&owner, "other", 1).await;
    let again = tokio::time::timeout(PATIENCE, other.delivery()).await;
    let again = again.expect("it is given back");
    assert_eq!((&again.delivery_id, again.attempt), (&held.delivery_id, 1));
    assert_eq!(other.ack(&[&again]).await.ok.len(), 1);
    assert!(!stays.is_finished());
    stays.abort();
    between.mend();
    beside.stop().await;
    owner.stop().await;
}

// W5, W8: what a node that stops did not get back from another node's worker in
// time is not that worker's any more, and it is told so before it comes again.
async fn what_an_owner_leaves_is_taken_back_at_once(db: Db) {
    let (owner, beside, faults) = two_with(&db, &[]).await;
    owner.stream(json!({})).await;
    let mut worker = Worker::start(&beside, "w", 2).await;
    owner.events("a.b", 1).await;
    let held = worker.delivery().await;
    faults.always("peers", Fault::Fails);
    owner.stop().await;
    let revoked = worker.revoked().await;
    assert_eq!(
        revoked.delivery_ids,
        std::slice::from_ref(&held.delivery_id)
    );
    assert!(worker.early.is_empty(), "it has come again before");
    faults.mend("peers");
    let again = worker.delivery().await;
    assert_eq!((&again.delivery_id, again.attempt), (&held.delivery_id, 1));
    assert_eq!(worker.ack(&[&again]).await.ok.len(), 1);
    db.counts_agree().await;
    beside.stop().await;
}

// N2, W8: what a node can't keep, since its session ends, is not the worker's of
// another node any more before it can be anybody's, whatever that node hears of it.
async fn what_an_owner_loses_is_taken_back_before_it_comes_again(db: Db) {
    let (owner, beside, [of_owner, of_beside]) = two_with_faults(&db, &[]).await;
    let proxy = before(&owner, &of_beside).await;
    owner.stream(json!({})).await;
    let mut worker = Worker::start(&beside, "w", 2).await;
    owner.events("a.b", 1).await;
    let held = worker.delivery().await;
    proxy.silence();
    of_beside.always("peers", Fault::Fails);
    of_owner.always("renew_session", Fault::Fails);
    let revoked = worker.revoked().await;
    let ids = std::slice::from_ref(&held.delivery_id);
    assert_eq!(revoked.delivery_ids, ids);
    assert!(worker.early.is_empty(), "it has come again before");
    of_beside.mend("peers");
    let again = worker.delivery().await;
    assert_eq!((&again.delivery_id, again.attempt), (&held.delivery_id, 1));
    assert_eq!(worker.ack(&[&again]).await.ok.len(), 1);
    beside.stop().await;
    owner.stop().await;
}

// W6, W8: a relay has as much of one subscription as its window and
// `max_in_flight` allow, also of a node that it is not connected to.
async fn a_relays_window_counts_at_every_node(db: Db) {
    let (owner, beside, _) = two_with(&db, &[("EMBEDDED_WORKER", 0)]).await;
    let hook = json!({"url": "http://127.0.0.1:9/", "max_in_flight": 20});
    owner.subscribe(&owner.admin, hook).await;
    let relay = Open {
        filter: Some(Filter {
            kinds: vec![SubscriptionKind::Webhook.into()],
            ..Filter::default()
        }),
        ..open("relay", 0)
    };
    let mut relay = Worker::open(&beside, &beside.admin, relay).await.unwrap();
    relay.credit(64, 0);
    owner.events("a.b", 12).await;
    let held = relay.deliveries(12).await;
    let all: Vec<_> = held.iter().collect();
    assert_eq!(relay.ack(&all).await.ok.len(), 12);
    beside.stop().await;
    owner.stop().await;
}

// W8: workers of other nodes do not count where their work comes from.
async fn links_take_nobodys_place(db: Db) {
    let (owner, beside) = two(&db).await;
    let acme = owner.tenant("acme").await;
    eventually("the key is known beside", || async {
        let listed = beside.get("/v1/external/webhooks", &acme.key).await;
        (listed.status == 200).then_some(())
    })
    .await;
    let mut workers = Vec::new();
    for n in 0..50 {
        let id = format!("w{n}");
        workers.push(
            Worker::open(&beside, &acme.key, open(&id, 1))
                .await
                .unwrap(),
        );
    }
    streams(&owner, 50).await;
    Worker::open(&owner, &acme.key, open("own", 1))
        .await
        .unwrap();
    let refused = Worker::open(&beside, &acme.key, open("one", 1)).await;
    assert_eq!(reason(&refused.err().unwrap()), "QUOTA_EXCEEDED");
    drop(workers);
    beside.stop().await;
    owner.stop().await;
}

// W8, O1: a node that workers here get nothing of, since no stream to it comes about,
// is a trouble until one does; so are the streams and links that are open shown.
async fn a_link_that_fails_is_told(db: Db) {
    let (owner, beside, faults) = two_with(&db, &[]).await;
    let proxy = before(&owner, &faults).await;
    let mut worker = Worker::start(&beside, "w", 1).await;
    let shows = async |app: &TestApp, line: &str| {
        eventually(line, || async {
            let shown = app.get("/metrics", &app.admin).await;
            shown.text().lines().any(|l| l == line).then_some(())
        })
        .await;
    };
    shows(&owner, "onering_worker_links 1").await;
    shows(&owner, "onering_worker_streams 0").await;
    shows(&beside, "onering_worker_streams 1").await;
    shows(&beside, "onering_worker_links 0").await;
    let stays = tokio::spawn(async move { worker.ended().await });
    proxy.cut();
    shows(&beside, "onering_tasks_failing 1").await;
    proxy.mend();
    shows(&beside, "onering_tasks_failing 0").await;
    assert!(!stays.is_finished());
    stays.abort();
    beside.stop().await;
    owner.stop().await;
}
