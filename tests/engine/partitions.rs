//! Partitions that move between nodes as these come and go.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use onering::domain::id::SubscriptionId;
use serde_json::json;

use super::scene::gated;
use crate::support::{
    app::{TestApp, eventually},
    faults::{Fault, Faults},
    receiver::Receiver,
    store::Db,
};

on_postgres_alone![
    nodes_that_come_get_their_share,
    a_node_that_stops_leaves_its_partitions_before_it_ends,
    what_is_under_way_while_its_partition_moves_is_sent_once,
    a_node_whose_partitions_can_not_be_handed_over_goes_on,
];

/// Which partitions each of these nodes owns, where each has exactly one owner.
async fn shares(nodes: &[&TestApp]) -> Option<Vec<usize>> {
    let store = &nodes[0].app().context.store;
    let mut owners: HashMap<_, usize> = HashMap::new();
    for (_, owner) in store.partitions().await.unwrap() {
        *owners.entry(owner).or_default() += 1;
    }
    let node = |n: &&TestApp| n.app().context.node.clone();
    let of = |n: &&TestApp| {
        let stored = owners.get(&node(n).session()).copied().unwrap_or(0);
        (stored == node(n).owned().len()).then_some(stored)
    };
    let shares: Option<Vec<usize>> = nodes.iter().map(of).collect();
    shares.filter(|s| s.iter().sum::<usize>() == 64)
}

async fn all_have_a_share(nodes: &[&TestApp]) -> Vec<usize> {
    eventually("each node has its share, and knows it", || async {
        let shares = shares(nodes).await?;
        shares.iter().all(|n| *n >= 6).then_some(shares)
    })
    .await
}

/// A tenant with a subscription.
struct Customer {
    key: String,
    subscription: String,
}

async fn customers(app: &TestApp, receiver: &Receiver, count: usize) -> Vec<Customer> {
    let made = (0..count).map(|n| async move {
        let tenant = app.tenant(&format!("customer-{n}")).await;
        let hook = json!({"url": receiver.url(), "timeout_seconds": 60});
        let subscription = app.subscribe(&tenant.key, hook).await.id;
        Customer {
            key: tenant.key,
            subscription,
        }
    });
    join_all(made).await
}

/// One whose partition a node owns.
fn of_node<'a>(app: &TestApp, customers: &'a [Customer]) -> &'a Customer {
    let node = &app.app().context.node;
    let owned = |c: &&Customer| {
        let id: SubscriptionId = c.subscription.parse().unwrap();
        node.owns(id.part())
    };
    customers
        .iter()
        .find(owned)
        .expect("a customer of each node")
}

/// How often each delivery was received.
fn times(receiver: &Receiver) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for r in receiver.received() {
        *times
            .entry(r.header("x-webhook-id").to_owned())
            .or_default() += 1;
    }
    times
}

// N2, N5: a second and a third node get their share of the partitions while events
// are published and delivered, and each delivery is sent once.
async fn nodes_that_come_get_their_share(db: Db) {
    let one = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let customers = customers(&one, &receiver, 16).await;
    assert_eq!(shares(&[&one]).await, Some(vec![64]));
    let (stop, published) = (AtomicBool::new(false), AtomicUsize::new(0));
    let publish = async |app: &TestApp| {
        while !stop.load(Ordering::SeqCst) {
            for customer in &customers {
                app.publish(&customer.key, "a.b", json!({})).await;
                published.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    let join = async {
        let two = one.again().start().await;
        let shares = all_have_a_share(&[&one, &two]).await;
        assert_eq!(shares.iter().sum::<usize>(), 64);
        let three = one.again().start().await;
        all_have_a_share(&[&one, &two, &three]).await;
        stop.store(true, Ordering::SeqCst);
        (two, three)
    };
    let ((), (), (two, three)) = tokio::join!(publish(&one), publish(&one), join);
    let published = published.load(Ordering::SeqCst);
    eventually("everything is delivered", || async {
        (times(&receiver).len() == published).then_some(())
    })
    .await;
    // Whichever node a subscription's tenant belongs to by now sends to it.
    for customer in &customers {
        for app in [&one, &two, &three] {
            app.publish(&customer.key, "a.b", json!({})).await;
        }
    }
    let all = published + 3 * customers.len();
    eventually("so is what comes after that", || async {
        (times(&receiver).len() == all).then_some(())
    })
    .await;
    let more: Vec<_> = times(&receiver)
        .into_iter()
        .filter(|(_, n)| *n > 1)
        .collect();
    assert_eq!(more, [], "sent again");
    for node in [one, two, three] {
        node.stop().await;
    }
}

// N2, H4: a node that stops hands over what it owns while its attempts end, and
// what it leaves goes on at once, not when its session is over.
async fn a_node_that_stops_leaves_its_partitions_before_it_ends(db: Db) {
    let one = TestApp::start(&db).await;
    let two = one.again().start().await;
    let (receiver, permits) = gated().await;
    let customers = customers(&one, &receiver, 24).await;
    let before = all_have_a_share(&[&one, &two]).await;
    let held = of_node(&one, &customers);
    one.publish(&held.key, "a.b", json!({})).await;
    receiver.wait(1).await;

    let stopped = async {
        one.stop().await;
    };
    let goes_on = async {
        // The attempt under way keeps the node from ending.
        eventually("the other one has them all", || async {
            (two.app().context.node.owned().len() == 64).then_some(())
        })
        .await;
        assert_eq!(receiver.under_way(), 1);
        for customer in &customers {
            two.publish(&customer.key, "a.b", json!({})).await;
        }
        receiver.wait(1 + customers.len()).await;
        permits.add_permits(100);
    };
    tokio::join!(stopped, goes_on);
    assert_eq!(before.len(), 2);
    eventually("nothing is left", || async {
        let page = two.with_status(&held.subscription, "DELIVERED").await;
        (page.len() == 2).then_some(())
    })
    .await;
    assert!(times(&receiver).values().all(|n| *n == 1), "sent again");
    two.stop().await;
}

// N2: an attempt that is under way while its partition moves is not sent by the new
// owner, nor freed by the one that sends it, and its outcome counts.
async fn what_is_under_way_while_its_partition_moves_is_sent_once(db: Db) {
    let faults = Faults::none();
    let one = TestApp::builder(&db).faults(&faults).start().await;
    let (receiver, permits) = gated().await;
    let customers = customers(&one, &receiver, 12).await;
    for customer in &customers {
        one.publish(&customer.key, "a.b", json!({})).await;
    }
    receiver.wait(customers.len()).await;
    let two = one.again().start().await;
    all_have_a_share(&[&one, &two]).await;
    // Has it compare what is leased to it with what it knows.
    faults.next("publish", Fault::Lost, 1);
    let lost = json!({"event_type": "a.b", "data": 1});
    let events = "/v1/external/events";
    one.post(events, &of_node(&one, &customers).key, lost)
        .await
        .refused(503, "STORE_UNAVAILABLE");
    faults.wait("leases", 3).await;
    permits.add_permits(100);
    eventually("all are delivered", || async {
        let mut delivered = 0;
        for customer in &customers {
            delivered += two
                .with_status(&customer.subscription, "DELIVERED")
                .await
                .len();
        }
        // The one whose answer was lost, too.
        (delivered == customers.len() + 1).then_some(())
    })
    .await;
    assert!(times(&receiver).values().all(|n| *n == 1), "sent again");
    one.stop().await;
    two.stop().await;
}

// N2: partitions that can't be handed over stay, and are sent from.
async fn a_node_whose_partitions_can_not_be_handed_over_goes_on(db: Db) {
    let faults = Faults::none();
    faults.always("hand_over", Fault::Fails);
    let one = TestApp::builder(&db)
        .set("SESSION_SECONDS", 2)
        .faults(&faults)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let customers = customers(&one, &receiver, 12).await;
    let two = one.again().set("SESSION_SECONDS", 2).start().await;
    eventually("it tries again", || async {
        (faults.began("hand_over") >= 3).then_some(())
    })
    .await;
    for customer in &customers {
        two.publish(&customer.key, "a.b", json!({})).await;
    }
    receiver.wait(customers.len()).await;
    faults.always("hand_over", Fault::Lost);
    all_have_a_share(&[&one, &two]).await;
    for customer in &customers {
        one.publish(&customer.key, "a.b", json!({})).await;
    }
    receiver.wait(2 * customers.len()).await;
    faults.mend("hand_over");
    one.stop().await;
    two.stop().await;
}
