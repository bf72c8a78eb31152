//! Accepting events.

use onering::{
    domain::{
        delivery::Status,
        id::{EventId, wall_clock},
    },
    store::Published,
};

use crate::support::{
    build::{DEFAULT, Ends as _, Tenancy, a_subscription},
    store::{Db, FOR_EVER, HOUR, Node, everything},
};

contract![
    an_event_is_committed_with_its_deliveries,
    nothing_is_kept_of_an_event_that_is_refused,
    a_batch_answers_for_each_event,
    a_match_from_before_a_subscription_changed_is_stale,
    another_tenants_subscriptions_change_nothing,
    bodies_are_any_bytes,
    a_refused_value_refuses_its_event_alone,
    an_owner_gets_its_deliveries_leased,
    a_node_that_owns_nothing_gets_no_lease,
    an_expired_session_gets_no_lease,
    an_ended_session_gets_no_lease,
    an_event_of_another_clocks_day_is_accepted,
    many_nodes_accept_on_an_empty_database,
];

const ACCEPTED: Published = Published::Accepted { leased: false };

// D1
async fn an_event_is_committed_with_its_deliveries(db: Db) {
    let node = db.node().await;
    let tenant = Tenancy::create(&*node, "acme", 9).await;
    let subs = [tenant.sub(), tenant.sub(), tenant.sub()];
    let event = tenant
        .event()
        .of_type("order.made")
        .body("{\"a\":1}")
        .to(&subs)
        .build();
    assert_eq!(node.publish_one(&event).await, ACCEPTED);

    let stored = node.get_event(event.event).await.unwrap().unwrap();
    assert_eq!(stored.tenant, tenant.id);
    assert_eq!(stored.event_type, "order.made");
    assert_eq!(stored.body, event.body);
    for d in &event.deliveries {
        let found = node.delivery(d.id).await;
        assert_eq!(found.tenant, tenant.id);
        assert_eq!(found.event, event.event);
        assert_eq!(found.subscription, d.subscription);
        assert_eq!(found.event_type, "order.made");
        assert_eq!(found.status, Status::Pending);
        assert_eq!(found.attempts, 0);
        assert!(found.due_at.is_some());
        assert_eq!(found.finished_at, None);
    }
}

// D1
async fn nothing_is_kept_of_an_event_that_is_refused(db: Db) {
    let node = db.node().await;
    let stale = DEFAULT.at_revision(0).event_to(DEFAULT.sub());
    assert_eq!(node.publish_one(&stale).await, Published::Stale);
    assert_eq!(node.get_event(stale.event).await.unwrap(), None);
    assert_eq!(
        node.get_delivery(stale.deliveries[0].id).await.unwrap(),
        None
    );
}

// D1
async fn a_batch_answers_for_each_event(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node, "acme", 63).await;
    let sub = DEFAULT.sub();
    let first = DEFAULT.event().to(&[sub]).idempotency_key("k").build();
    let again = DEFAULT.event().to(&[sub]).idempotency_key("k").build();
    let batch = [
        acme.event_to(acme.sub()),
        DEFAULT.at_revision(7).event_to(sub),
        first.clone(),
        DEFAULT.event().build(),
        again,
        DEFAULT.event().to(&[sub]).leased().build(),
    ];
    let duplicate = Published::Duplicate {
        event: first.event,
        deliveries: 1,
        same: true,
    };
    let leased = Published::Accepted { leased: true };
    assert_eq!(
        node.publish(&batch).await,
        [
            ACCEPTED,
            Published::Stale,
            ACCEPTED,
            ACCEPTED,
            duplicate,
            leased
        ]
    );
    assert_eq!(node.publish(&[]).await, []);
}

// D1: what was answered before the publish began is matched.
async fn a_match_from_before_a_subscription_changed_is_stale(db: Db) {
    let node = db.node().await;
    let other = db.another().await;
    let subscription = a_subscription(DEFAULT.id);
    let mut revision = DEFAULT.revision;
    for change in ["create", "update", "delete"] {
        let old = DEFAULT.at_revision(revision);
        assert!(
            matches!(
                node.publish_one(&old.event().build()).await,
                Published::Accepted { .. }
            ),
            "before {change}"
        );
        match change {
            "create" => other.create_subscription(&subscription, 10).await.unwrap(),
            "update" => {
                let read = subscription.updated_at;
                other
                    .update_subscription(&subscription, read)
                    .await
                    .unwrap();
            }
            _ => assert!(other.delete_subscription(subscription.id).await.unwrap()),
        }
        assert_eq!(
            node.publish_one(&old.event().build()).await,
            Published::Stale,
            "after {change}"
        );
        revision = node.changes(0).await.unwrap().subscriptions[0].revision;
    }
}

// D1
async fn another_tenants_subscriptions_change_nothing(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node, "acme", 5).await;
    node.create_subscription(&a_subscription(DEFAULT.id), 10)
        .await
        .unwrap();
    node.accept(&acme.event().build()).await;
}

// D5
async fn bodies_are_any_bytes(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let large = vec![b'x'; 3 << 20];
    for body in [&b""[..], b"\0", b"a\0b\xff\xfe\x80", b"\\x00", &large] {
        let event = DEFAULT.event().body(body.to_vec()).to(&[sub]).build();
        node.accept(&event).await;
        let leased = node.claim_one(sub).await;
        assert!(leased.body == body, "{} bytes claimed", body.len());
        let stored = node.get_event(event.event).await.unwrap().unwrap();
        assert!(stored.body == body, "{} bytes read", body.len());
        node.finish_now(&leased.delivered()).await;
    }
}

// D1: an engine may take a NUL in a text, or refuse that event; the others are
// accepted either way.
async fn a_refused_value_refuses_its_event_alone(db: Db) {
    let node = db.node().await;
    for bad in [0, 3, 6] {
        let batch: Vec<_> = (0..7)
            .map(|n| {
                let event = DEFAULT.event().to(&[DEFAULT.sub()]);
                if n == bad {
                    event.of_type("a\0b")
                } else {
                    event
                }
                .build()
            })
            .collect();
        for (n, (event, answer)) in batch.iter().zip(node.publish(&batch).await).enumerate() {
            let stored = node.get_event(event.event).await.unwrap().is_some();
            if n == bad && answer == Published::Refused {
                assert!(!stored, "{n} of {bad} is stored");
            } else {
                assert_eq!(answer, ACCEPTED, "{n} of {bad}");
                assert!(stored, "{n} of {bad} is not stored");
            }
        }
    }
}

// N2
async fn an_owner_gets_its_deliveries_leased(db: Db) {
    let node = db.node().await;
    let event = DEFAULT.event().to(&[DEFAULT.sub()]).leased().build();
    assert_eq!(
        node.publish_one(&event).await,
        Published::Accepted { leased: true }
    );
    assert_eq!(node.held().await, [(event.deliveries[0].id, 1)]);
    assert_eq!(node.status(event.deliveries[0].id).await, Status::Sending);
}

/// A publish that asks for leases in vain: the partition's owner gets the rows.
async fn leases_nothing(node: &Node, owner: &Node) {
    let sub = DEFAULT.sub();
    let event = DEFAULT.event().to(&[sub]).leased().build();
    assert_eq!(node.publish_one(&event).await, ACCEPTED);
    assert_eq!(node.held().await, []);
    assert_eq!(owner.claim_one(sub).await.id, event.deliveries[0].id);
}

// N2
async fn a_node_that_owns_nothing_gets_no_lease(db: Db) {
    let owner = db.node().await;
    let other = Node::idle(&db.another().await, FOR_EVER).await;
    leases_nothing(&other, &owner).await;
}

// N2
async fn an_expired_session_gets_no_lease(db: Db) {
    let store = db.open().await;
    let node = Node::idle(&store, std::time::Duration::from_secs(30)).await;
    node.take_all().await;
    node.pass(HOUR).await;
    let event = DEFAULT.event().to(&[DEFAULT.sub()]).leased().build();
    assert_eq!(node.publish_one(&event).await, ACCEPTED);
    assert_eq!(node.held().await, []);
}

// N2
async fn an_ended_session_gets_no_lease(db: Db) {
    let node = db.node().await;
    node.end_session(node.session).await.unwrap();
    let owner = Node::begin(&node.store).await;
    leases_nothing(&node, &owner).await;
}

// N4: days are made when they are needed.
async fn an_event_of_another_clocks_day_is_accepted(db: Db) {
    let node = db.node().await;
    for days in [-5, 12] {
        let sub = DEFAULT.sub();
        let event = DEFAULT
            .event_at(wall_clock() + days * 24 * HOUR)
            .to(&[sub])
            .build();
        node.accept(&event).await;
        assert_eq!(node.claim_one(sub).await.event, event.event);
    }
}

// N2, N6
async fn many_nodes_accept_on_an_empty_database(db: Db) {
    let node = db.node().await;
    let nodes = [
        node.clone(),
        Node::idle(&db.another().await, FOR_EVER).await,
    ];
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let node = nodes[n % 2].clone();
            let event = DEFAULT.event().to(&[DEFAULT.sub()]).build();
            tokio::spawn(async move { node.publish_one(&event).await })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), ACCEPTED);
    }
    let unknown = EventId::new(wall_clock(), DEFAULT.id.part());
    assert!(
        node.deliveries_of_event(unknown, None, everything())
            .await
            .unwrap()
            .is_empty()
    );
}
