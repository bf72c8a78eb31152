//! Repeated publishes.

use onering::{
    domain::id::{DAY, Part, uuid_at, wall_clock},
    store::{Publish, Published},
};

use crate::support::{
    build::{DEFAULT, Event, Tenancy},
    store::{Db, HOUR, Node, SECOND},
};

contract![
    the_same_again_gets_the_first_answer,
    another_body_or_type_is_told_apart,
    two_in_one_batch,
    two_that_arrive_together,
    keys_are_remembered_for_a_day,
    the_day_begins_again_with_the_next_use,
    a_day_is_kept_for_a_uuidv7_of_any_age,
    forgetting_keeps_the_last_day,
    tenants_do_not_share_keys,
    a_stale_publish_takes_no_key,
    keys_survive_a_restart,
];

/// A key as an SDK makes it, that long ago.
fn uuidv7(age: i64) -> String {
    uuid_at(wall_clock() - age, Part::new(0)).to_string()
}

fn order(key: &str) -> Event {
    DEFAULT
        .event()
        .body("one")
        .to(&[DEFAULT.sub()])
        .idempotency_key(key)
}

fn duplicate(of: &Publish) -> Published {
    Published::Duplicate {
        event: of.event,
        deliveries: i32::try_from(of.deliveries.len()).unwrap(),
        same: true,
    }
}

async fn repeats(node: &Node, first: &Publish, key: &str) -> bool {
    let answer = node.publish_one(&order(key).build()).await;
    let accepted = matches!(answer, Published::Accepted { .. });
    assert!(accepted || answer == duplicate(first), "{answer:?}");
    !accepted
}

// D2
async fn the_same_again_gets_the_first_answer(db: Db) {
    let node = db.node().await;
    for key in ["plain", &uuidv7(0)] {
        let first = DEFAULT
            .event()
            .body("one")
            .to(&[DEFAULT.sub(), DEFAULT.sub()])
            .idempotency_key(key)
            .build();
        node.accept(&first).await;
        for _ in 0..2 {
            let again = order(key).build();
            assert_eq!(node.publish_one(&again).await, duplicate(&first), "{key}");
            assert_eq!(node.get_event(again.event).await.unwrap(), None);
            assert_eq!(
                node.get_delivery(again.deliveries[0].id).await.unwrap(),
                None
            );
        }
    }
}

// D2
async fn another_body_or_type_is_told_apart(db: Db) {
    let node = db.node().await;
    for key in ["plain", &uuidv7(0)] {
        let first = order(key).build();
        node.accept(&first).await;
        for other in [order(key).body("two"), order(key).of_type("other.type")] {
            let told = Published::Duplicate {
                event: first.event,
                deliveries: 1,
                same: false,
            };
            assert_eq!(node.publish_one(&other.build()).await, told);
        }
    }
}

// D2
async fn two_in_one_batch(db: Db) {
    let node = db.node().await;
    let key = uuidv7(0);
    let batch = [
        order("other").build(),
        order(&key).build(),
        order(&key).build(),
        order(&key).body("two").build(),
        order("other").build(),
    ];
    let told_apart = Published::Duplicate {
        event: batch[1].event,
        deliveries: 1,
        same: false,
    };
    let accepted = Published::Accepted { leased: false };
    assert_eq!(
        node.publish(&batch).await,
        [
            accepted,
            accepted,
            duplicate(&batch[1]),
            told_apart,
            duplicate(&batch[0])
        ]
    );
}

// D2: across nodes, also for those that arrive together.
async fn two_that_arrive_together(db: Db) {
    let one = db.node().await;
    let two = Node::begin(&db.another().await).await;
    for round in 0..40 {
        let key = if round % 2 == 0 {
            uuidv7(0)
        } else {
            format!("plain {round}")
        };
        let tasks: Vec<_> = (0..8)
            .map(|n| {
                let node = if n % 2 == 0 { one.clone() } else { two.clone() };
                let body = ["one", "two"][n / 2 % 2];
                // Beside others, and in another order.
                let keys = [key.clone(), format!("{key} too")];
                let mut batch = keys.map(|k| order(&k).body(body).build());
                if n > 3 {
                    batch.reverse();
                }
                tokio::spawn(async move {
                    let answers = node.publish(&batch).await;
                    batch.into_iter().zip(answers).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.extend(task.await.unwrap());
        }
        let first: Vec<_> = answers
            .iter()
            .filter(|(_, a)| matches!(a, Published::Accepted { .. }))
            .map(|(p, _)| p)
            .collect();
        assert_eq!(first.len(), 2, "round {round}: {answers:?}");
        for (publish, answer) in &answers {
            let winner = first
                .iter()
                .find(|w| w.idempotency.unwrap().key == publish.idempotency.unwrap().key)
                .unwrap();
            if winner.event != publish.event {
                let content = |p: &Publish| p.idempotency.unwrap().content;
                let told = Published::Duplicate {
                    event: winner.event,
                    deliveries: 1,
                    same: content(winner) == content(publish),
                };
                assert_eq!(*answer, told, "round {round}");
            }
        }
    }
}

// D2
async fn keys_are_remembered_for_a_day(db: Db) {
    let node = db.node().await;
    for key in ["plain", &uuidv7(0)] {
        let first = order(key).build();
        node.accept(&first).await;
        node.pass(DAY - 60 * SECOND).await;
        assert!(repeats(&node, &first, key).await, "{key} within 24 hours");
        node.pass(120 * SECOND).await;
        assert!(!repeats(&node, &first, key).await, "{key} after 24 hours");
    }
}

// D2
async fn the_day_begins_again_with_the_next_use(db: Db) {
    let node = db.node().await;
    node.accept(&order("k").build()).await;
    node.pass(25 * HOUR).await;
    let second = order("k").build();
    node.accept(&second).await;
    node.pass(23 * HOUR).await;
    assert!(repeats(&node, &second, "k").await);
}

// D2: a publisher may have made its key long before it first gets through, and
// clocks differ.
async fn a_day_is_kept_for_a_uuidv7_of_any_age(db: Db) {
    let node = db.node().await;
    for hours in [-400, -60, -13, -1, 11, 23, 47, 80, 24 * 40] {
        let key = uuidv7(hours * HOUR);
        let first = order(&key).build();
        node.accept(&first).await;
        node.pass(23 * HOUR).await;
        let repeat = order(&key).build();
        assert_eq!(
            node.publish_one(&repeat).await,
            duplicate(&first),
            "{hours} hours old"
        );
    }
}

// D2
async fn forgetting_keeps_the_last_day(db: Db) {
    let node = db.node().await;
    let keys: Vec<String> = [-60, -13, 0, 13, 47, 80, 24 * 40]
        .iter()
        .map(|hours| uuidv7(hours * HOUR))
        .chain(["plain".to_owned()])
        .collect();
    let mut first = Vec::new();
    for key in &keys {
        let event = order(key).build();
        node.accept(&event).await;
        first.push(event);
    }
    for (hours, kept) in [(0, true), (23, true), (2, false)] {
        node.pass(hours * HOUR).await;
        node.forget(30, 1000).await.unwrap();
        for (key, event) in keys.iter().zip(&first) {
            assert_eq!(
                repeats(&node, event, key).await,
                kept,
                "{key} after {hours} more hours"
            );
        }
    }
}

// D2, T1
async fn tenants_do_not_share_keys(db: Db) {
    let node = db.node().await;
    // In one partition, so that nothing but the tenant tells them apart.
    let one = Tenancy::create(&*node, "one", 20).await;
    let two = Tenancy::create(&*node, "two", 20).await;
    for key in ["k", &uuidv7(0)] {
        let event = |t: Tenancy| t.event().idempotency_key(key).build();
        let accepted = Published::Accepted { leased: false };
        assert_eq!(node.publish(&[event(one), event(two)]).await, [accepted; 2]);
    }
}

// D1, D2: what is matched again must not be its own repetition.
async fn a_stale_publish_takes_no_key(db: Db) {
    let node = db.node().await;
    let mut event = order("k").build();
    event.revision = 9;
    assert_eq!(node.publish_one(&event).await, Published::Stale);
    event.revision = DEFAULT.revision;
    node.accept(&event).await;
}

// D2
async fn keys_survive_a_restart(db: Db) {
    let key = uuidv7(0);
    let (first, second) = (order(&key).build(), order("plain").build());
    let node = db.node().await;
    node.accept(&first).await;
    node.accept(&second).await;
    db.close().await;
    let node = db.node().await;
    assert!(repeats(&node, &first, &key).await);
    assert!(repeats(&node, &second, "plain").await);
}
