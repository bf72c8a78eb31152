//! Counters of deliveries: they say what a count of the rows would.

use std::time::Duration;

use onering::{
    domain::{
        counter::{ACCEPTED, Tally, WINDOW, minute_of},
        delivery::Status,
        id::{DeliveryId, EventId, Part, SubscriptionId, TenantId, day_of, wall_clock},
    },
    store::{Count, Finished, Forgotten, Load, Published, Recent, Settle},
};

use crate::support::{
    build::{DEFAULT, Ends as _, Tenancy},
    store::{Db, HOUR, Node, SECOND, page},
};

contract![
    each_change_is_counted,
    what_changes_nothing_counts_nothing,
    many_at_once_are_all_counted,
    latency_leaves_out_what_was_held,
    old_minutes_are_added_up,
    history_takes_its_counts_along,
    what_was_there_before_is_counted,
    counts_are_read_by_the_minute,
    the_oldest_unfinished_is_found,
    recent_ones_are_listed_by_status,
    recent_ones_of_a_tenant,
    recent_ones_are_paged_over_days,
    a_loaded_history_is_one,
];

const MINUTE: Duration = Duration::from_mins(1);

fn parts() -> Vec<Part> {
    Part::all().collect()
}

/// What is counted of all partitions, or of one tenant.
async fn tally_of(node: &Node, tenant: Option<TenantId>) -> Tally {
    let mut tally = Tally::default();
    for part in Part::all() {
        for count in node.counts(part, tenant, 0).await.unwrap() {
            tally.add(count.what, count.n, count.minute.is_some());
        }
    }
    tally
}

async fn tally(node: &Node) -> Tally {
    tally_of(node, None).await
}

fn now(tally: &Tally) -> [i64; 7] {
    [
        Status::Pending,
        Status::Retrying,
        Status::Failed,
        Status::Delivered,
        Status::Dead,
        Status::ReplayExpired,
        Status::Cancelled,
    ]
    .map(|s| tally.now(s))
}

async fn leased(node: &Node) -> onering::store::Leased {
    let sub = DEFAULT.sub();
    node.accept(&DEFAULT.event_to(sub)).await;
    node.claim_one(sub).await
}

// A1, B12: pending, retrying, failed, delivered, dead, expired, cancelled.
async fn each_change_is_counted(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    node.accept(&DEFAULT.event().to(&[sub, DEFAULT.sub()]).build())
        .await;
    let lease = node.claim_one(sub).await;
    assert_eq!(now(&tally(&node).await), [2, 0, 0, 0, 0, 0, 0]);
    node.finish_now(&lease.released()).await;
    assert_eq!(now(&tally(&node).await), [2, 0, 0, 0, 0, 0, 0]);
    let lease = node.claim_one(sub).await;
    node.finish_now(&lease.sign_again()).await;
    assert_eq!(now(&tally(&node).await), [1, 1, 0, 0, 0, 0, 0]);
    let lease = node.claim_one(sub).await;
    node.finish_now(&lease.retried(Duration::ZERO)).await;
    let lease = node.claim_one(sub).await;
    node.finish_now(&lease.failed(MINUTE)).await;
    assert_eq!(now(&tally(&node).await), [1, 0, 1, 0, 0, 0, 0]);
    db.counts_agree().await;

    node.pass(HOUR).await;
    assert_eq!(node.bury(&parts(), 10).await.unwrap().len(), 1);
    let counted = tally(&node).await;
    assert_eq!(now(&counted), [1, 0, 0, 0, 1, 0, 0]);
    assert_eq!((counted.dead_letters(), counted.replay_rejected()), (1, 1));
    assert!(
        (counted.average_retries() - 1.0).abs() < 1e-9,
        "two were charged"
    );
    node.retry_by_hand(lease.id).await.unwrap();
    let counted = tally(&node).await;
    assert_eq!(now(&counted), [1, 1, 0, 0, 0, 0, 0]);
    assert_eq!(counted.dead_letters(), 1, "it did become one");
    let lease = node.claim_one(sub).await;
    node.finish_now(&lease.delivered()).await;
    let counted = tally(&node).await;
    assert_eq!(now(&counted), [1, 0, 0, 1, 0, 0, 0]);
    assert!(
        (counted.average_retries() - 1.5).abs() < 1e-9,
        "two attempts, then three, of two ends"
    );
    db.counts_agree().await;

    // FAILED is saved by hand; what waits is only made due.
    let lease = leased(&node).await;
    node.finish_now(&lease.failed(MINUTE)).await;
    node.retry_by_hand(lease.id).await.unwrap();
    node.retry_by_hand(lease.id).await.unwrap();
    assert_eq!(now(&tally(&node).await), [1, 1, 0, 1, 0, 0, 0]);
    let lease = node.claim_one(lease.subscription).await;
    let mut expired = lease.sign_again();
    expired.settle = Settle::Dead(Status::ReplayExpired);
    node.finish_now(&expired).await;
    let counted = tally(&node).await;
    assert_eq!(now(&counted), [1, 0, 0, 1, 0, 1, 0]);
    assert_eq!(counted.replay_rejected(), 2);
    assert!((counted.success_rate() - 1.0 / 3.0).abs() < 1e-9);
    node.retry_by_hand(lease.id).await.unwrap();
    assert_eq!(now(&tally(&node).await), [1, 1, 0, 1, 0, 0, 0]);

    let waits = lease.subscription;
    assert_eq!(node.cancel(waits.part(), waits, 10).await.unwrap(), 1);
    assert_eq!(now(&tally(&node).await), [1, 0, 0, 1, 0, 0, 1]);
    let lease = leased(&node).await;
    let mut cancelled = lease.released();
    cancelled.settle = Settle::Done(Status::Cancelled);
    node.finish_now(&cancelled).await;
    assert_eq!(now(&tally(&node).await), [1, 0, 0, 1, 0, 0, 2]);
    let sub = DEFAULT.sub();
    node.accept(&DEFAULT.event_to(sub)).await;
    let given_up = node.give_up(sub.part(), sub, Duration::ZERO, 10);
    assert_eq!(given_up.await.unwrap(), 1);
    let counted = tally(&node).await;
    assert_eq!(now(&counted), [1, 0, 0, 1, 1, 0, 2]);
    assert_eq!(counted.dead_letters(), 2);
    let lease = leased(&node).await;
    node.finish_now(&lease.dead()).await;
    assert_eq!(now(&tally(&node).await), [1, 0, 0, 1, 2, 0, 2]);
    db.counts_agree().await;
}

// W2: an end counts once, under the lease that holds.
async fn what_changes_nothing_counts_nothing(db: Db) {
    let node = db.node().await;
    let sub = DEFAULT.sub();
    let event = DEFAULT.event().to(&[sub]).idempotency_key("once").build();
    node.accept(&event).await;
    let again = DEFAULT.event().to(&[sub]).idempotency_key("once").build();
    assert!(matches!(
        node.publish_one(&again).await,
        Published::Duplicate { .. }
    ));
    let stale = DEFAULT.at_revision(99).event_to(sub);
    assert_eq!(node.publish_one(&stale).await, Published::Stale);
    node.accept(&DEFAULT.event().build()).await;
    assert_eq!(now(&tally(&node).await), [1, 0, 0, 0, 0, 0, 0]);
    let lease = node.claim_one(sub).await;
    let batch = [lease.delivered(), lease.delivered()];
    node.store.finish(&batch).await.unwrap();
    assert_eq!(node.finish(&lease.delivered()).await, Finished::Before);
    assert_eq!(node.finish(&lease.dead()).await, Finished::Before);
    node.retry_by_hand(lease.id).await.unwrap();
    assert_eq!(now(&tally(&node).await), [0, 0, 0, 1, 0, 0, 0]);
    db.counts_agree().await;
}

// N2: publishes and finishes of two nodes together, with sweeps between them.
async fn many_at_once_are_all_counted(db: Db) {
    let (one, two) = (db.open().await, db.another().await);
    let one = Node::begin(&one).await;
    let two = Node::begin(&two).await;
    let acme = Tenancy::create(&*one.store, "acme", 7).await;
    let run = |node: Node, tenancy: Tenancy| async move {
        for n in 0..30 {
            let sub = tenancy.sub();
            let batch: Vec<_> = (0..5)
                .map(|_| tenancy.event().to(&[sub]).leased().build())
                .collect();
            node.publish(&batch).await;
            let leases = node.claim(sub, 10).await;
            let ends: Vec<_> = leases
                .iter()
                .map(|l| match n % 3 {
                    0 => l.delivered(),
                    1 => l.failed(Duration::ZERO),
                    _ => l.retried(Duration::ZERO),
                })
                .collect();
            node.store.finish(&ends).await.unwrap();
            node.bury(&parts(), 100).await.unwrap();
            for l in &leases {
                node.retry_by_hand(l.id).await.unwrap();
            }
            node.cancel(sub.part(), sub, 2).await.unwrap();
            node.add_up(&parts(), 100).await.unwrap();
        }
    };
    tokio::join!(
        run(one.clone(), DEFAULT),
        run(two.clone(), DEFAULT),
        run(one.clone(), acme),
        run(two.clone(), acme),
    );
    let all = tally(&one).await;
    assert_eq!(now(&all).iter().sum::<i64>(), 4 * 150);
    let ours = tally_of(&one, Some(acme.id)).await;
    assert_eq!(now(&ours).iter().sum::<i64>(), 2 * 150);
    db.counts_agree().await;
}

// D6: latency is publish to delivered, less what was held on purpose.
async fn latency_leaves_out_what_was_held(db: Db) {
    let node = db.node().await;
    let slowest = async || tally(&node).await.latency(1.0);
    let lease = leased(&node).await;
    node.hold(node.session, &[lease.id.part()], true)
        .await
        .unwrap();
    node.pass(10 * HOUR).await;
    node.finish_now(&lease.delivered()).await;
    assert!(slowest().await < 60.0, "while it is held");
    let lease = leased(&node).await;
    node.pass(10 * HOUR).await;
    node.hold(node.session, &[lease.id.part()], false)
        .await
        .unwrap();
    node.finish_now(&lease.delivered()).await;
    assert!(slowest().await < 60.0, "after it was held");
    let lease = leased(&node).await;
    node.pass(HOUR / 10).await;
    let mut end = lease.delivered();
    end.held = HOUR / 10;
    node.finish_now(&end).await;
    assert!(slowest().await < 60.0, "its subscription was off");
    let lease = leased(&node).await;
    node.pass(360 * SECOND).await;
    node.finish_now(&lease.delivered()).await;
    let slow = slowest().await;
    assert!((slow / 360.0 - 1.0).abs() < 0.17, "{slow}");
    assert_eq!(now(&tally(&node).await)[3], 4);
}

/// Rows of counters, and of what is added up.
async fn rows(db: &Db) -> [usize; 2] {
    let count = async |table: &str| {
        db.texts(&format!("select cast(what as text) from {table}"))
            .await
            .len()
    };
    [count("counters").await, count("counter_days").await]
}

// B12, N4: counters don't grow with what was delivered.
async fn old_minutes_are_added_up(db: Db) {
    let node = db.node().await;
    for n in 0..6 {
        let lease = leased(&node).await;
        if n > 3 {
            node.finish_now(&lease.retried(MINUTE)).await;
        } else if n > 0 {
            node.finish_now(&lease.delivered()).await;
        }
        node.pass(61 * SECOND).await;
    }
    let before = now(&tally(&node).await);
    assert_eq!(before, [1, 2, 0, 3, 0, 0, 0]);
    assert_eq!(node.add_up(&parts(), 1000).await.unwrap(), 0, "too early");
    node.pass(24 * HOUR).await;
    assert_eq!(node.add_up(&parts(), 1000).await.unwrap(), 0, "too early");
    node.pass(2 * HOUR).await;
    let lease = leased(&node).await;
    node.finish_now(&lease.delivered()).await;
    assert_eq!(node.add_up(&parts(), 2).await.unwrap(), 2, "in slices");
    while node.add_up(&parts(), 3).await.unwrap() == 3 {}
    assert_eq!(node.add_up(&parts(), 1000).await.unwrap(), 0);
    let after = tally(&node).await;
    assert_eq!(now(&after), [1, 2, 0, 4, 0, 0, 0]);
    let [minutes, days] = rows(&db).await;
    assert!(minutes <= 5, "{minutes}");
    assert!(days <= 4, "{days}");
    db.counts_agree().await;
}

// A4: what retention drops is not counted any more; what is dead still is.
async fn history_takes_its_counts_along(db: Db) {
    let node = db.node().await;
    let end = async |added_up: bool| {
        for n in 0..4 {
            let lease = leased(&node).await;
            let end = if n == 0 {
                lease.dead()
            } else {
                lease.delivered()
            };
            node.finish_now(&end).await;
        }
        if added_up {
            node.pass_days(2).await;
            node.add_up(&parts(), 1000).await.unwrap();
        }
    };
    end(true).await;
    end(false).await;
    node.accept(&DEFAULT.event_to(DEFAULT.sub())).await;
    assert_eq!(now(&tally(&node).await), [1, 0, 0, 6, 2, 0, 0]);
    for (days, kept) in [(28, 6), (2, 3), (3, 0)] {
        node.pass_days(days).await;
        while node.forget(30, 2).await.unwrap() == Forgotten::Some {}
        assert_eq!(now(&tally(&node).await), [1, 0, 0, kept, 2, 0, 0]);
        db.counts_agree().await;
    }
    while node.add_up(&parts(), 10).await.unwrap() == 10 {}
    assert_eq!(now(&tally(&node).await), [1, 0, 0, 0, 2, 0, 0]);
    db.counts_agree().await;
}

// N6: a database from before there were counters.
async fn what_was_there_before_is_counted(db: Db) {
    let node = db.node().await;
    for n in 0..5 {
        let lease = leased(&node).await;
        node.finish_now(&match n {
            0 => lease.dead(),
            1 => lease.retried(MINUTE),
            2 => lease.released(),
            _ => lease.delivered(),
        })
        .await;
    }
    let before = now(&tally(&node).await);
    db.close().await;
    for sql in [
        "drop table counters",
        "drop table counter_days",
        "drop index done_undelivered",
        "drop index dead_expired",
        "drop index queue_retrying",
        "drop index queue_failed",
        "delete from _sqlx_migrations where description = 'counters'",
    ] {
        db.tamper(sql).await;
    }
    let node = db.node().await;
    let after = tally(&node).await;
    assert_eq!(now(&after), before);
    assert_eq!(before, [1, 1, 0, 2, 1, 0, 0]);
    node.pass_days(40).await;
    while node.forget(30, 10).await.unwrap() == Forgotten::Some {}
    assert_eq!(now(&tally(&node).await), [1, 1, 0, 0, 1, 0, 0]);
    db.counts_agree().await;
}

async fn counts_are_read_by_the_minute(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node.store, "acme", 7).await;
    let (start, none) = node.counts_since(0).await.unwrap();
    assert_eq!(none, []);
    node.accept(&DEFAULT.event_to(DEFAULT.sub())).await;
    node.accept(&acme.event_to(acme.sub())).await;
    node.pass(10 * 60 * SECOND).await;
    node.accept(&acme.event_to(acme.sub())).await;
    let (end, all) = node.counts_since(0).await.unwrap();
    assert!(end - start >= 10 * 60 * SECOND, "{start} {end}");
    let accepted: i64 = all.iter().map(|c| c.n).sum();
    assert_eq!((all.len(), accepted), (2, 3), "{all:?}");
    let minute = minute_of(end);
    let last = Count {
        minute: Some(minute),
        what: ACCEPTED,
        n: 1,
    };
    // The minute may be over by now.
    let (_, late) = node.counts_since(minute - 1).await.unwrap();
    assert_eq!(late.len(), 1, "{late:?}");
    assert!(late[0].minute >= Some(minute - 1));
    assert_eq!(
        Count {
            minute: last.minute,
            ..late[0]
        },
        last
    );
    // Of one tenant, what is before as one.
    let (part, whose) = (acme.id.part(), Some(acme.id));
    let split = node.counts(part, whose, minute - 1).await.unwrap();
    let mut split: Vec<_> = split.iter().map(|c| (c.minute.is_some(), c.n)).collect();
    split.sort_unstable();
    assert_eq!(split, [(false, 1), (true, 1)]);
    let nobody = node.counts(part, Some(TenantId::DEFAULT), 0).await.unwrap();
    assert_eq!(nobody, []);
    assert!(minute - WINDOW > 0);
}

async fn the_oldest_unfinished_is_found(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node.store, "acme", 7).await;
    assert_eq!(node.oldest_unfinished(None).await.unwrap(), None);
    let (sub, other) = (DEFAULT.sub(), acme.sub());
    let first = node.accept(&DEFAULT.event_to(sub)).await[0];
    let second = node.accept(&acme.event_to(other)).await[0];
    node.accept(&acme.event_to(other)).await;
    let oldest = async |tenant| node.oldest_unfinished(tenant).await.unwrap();
    assert_eq!(oldest(None).await, Some(first));
    assert_eq!(oldest(Some(acme.id)).await, Some(second));
    let lease = node.claim_one(sub).await;
    node.finish_now(&lease.delivered()).await;
    assert_eq!(oldest(None).await, Some(second));
    assert_eq!(oldest(Some(TenantId::DEFAULT)).await, None);
}

fn all(status: Option<Status>) -> Recent {
    Recent {
        parts: parts(),
        status,
        ..Recent::default()
    }
}

async fn listed(node: &Node, recent: &Recent) -> Vec<(DeliveryId, Status)> {
    let found = node
        .recent_deliveries(recent, page(None, 100))
        .await
        .unwrap();
    for d in &found {
        assert_eq!(d.event_type, "invoice.paid");
    }
    found.iter().map(|d| (d.id, d.status)).collect()
}

async fn recent_ones_are_listed_by_status(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node.store, "acme", 7).await;
    let mut made = Vec::new();
    let mut end = async |of: Tenancy, status: Status| {
        let sub = of.sub();
        let id = node.accept(&of.event_to(sub)).await[0];
        made.push((id, status));
        if status == Status::Pending {
            return sub;
        }
        let lease = node.claim_one(sub).await;
        let end = match status {
            Status::Sending => return sub,
            Status::Retrying => lease.retried(MINUTE),
            Status::Failed => lease.failed(2 * MINUTE),
            Status::Delivered => lease.delivered(),
            status @ Status::Cancelled => {
                let mut end = lease.released();
                end.settle = Settle::Done(status);
                end
            }
            status => {
                let mut end = lease.dead();
                end.settle = Settle::Dead(status);
                end
            }
        };
        node.finish_now(&end).await;
        sub
    };
    let mut waiting = Vec::new();
    for of in [DEFAULT, acme] {
        for status in [
            Status::Pending,
            Status::Delivered,
            Status::Sending,
            Status::Retrying,
            Status::Dead,
            Status::Failed,
            Status::Delivered,
            Status::ReplayExpired,
            Status::Cancelled,
        ] {
            waiting.push(end(of, status).await);
        }
    }
    made.reverse();
    let with =
        |status: Status| -> Vec<_> { made.iter().filter(|(_, s)| *s == status).copied().collect() };
    assert_eq!(listed(&node, &all(None)).await, made);
    for status in [
        Status::Pending,
        Status::Sending,
        Status::Retrying,
        Status::Failed,
        Status::Delivered,
        Status::Dead,
        Status::ReplayExpired,
        Status::Cancelled,
    ] {
        let found = listed(&node, &all(Some(status))).await;
        assert_eq!(found, with(status), "{status:?}");
    }
    for status in [Status::Parked, Status::Skipped] {
        assert_eq!(listed(&node, &all(Some(status))).await, []);
    }
    // What waits for a subscription that is off is parked.
    let off = |status| Recent {
        parked: vec![waiting[0], waiting[3]],
        ..all(Some(status))
    };
    let parked: Vec<_> = [made[14], made[17]].to_vec();
    assert_eq!(listed(&node, &off(Status::Parked)).await, parked);
    assert_eq!(listed(&node, &off(Status::Pending)).await, [made[8]]);
    assert_eq!(listed(&node, &off(Status::Retrying)).await, [made[5]]);
    // FAILED is read as DEAD once its wait is over.
    node.pass(HOUR).await;
    assert_eq!(listed(&node, &all(Some(Status::Failed))).await, []);
    assert_eq!(listed(&node, &all(Some(Status::Dead))).await.len(), 4);
}

async fn recent_ones_of_a_tenant(db: Db) {
    let node = db.node().await;
    let (acme, other) = (
        Tenancy::create(&*node.store, "acme", 7).await,
        Tenancy::create(&*node.store, "other", 7).await,
    );
    let mut ids: Vec<DeliveryId> = Vec::new();
    let mut subs: Vec<SubscriptionId> = Vec::new();
    for n in 0..8 {
        let of = if n % 2 == 0 { acme } else { other };
        let sub = of.sub();
        let id = node.accept(&of.event_to(sub)).await[0];
        let lease = node.claim_one(sub).await;
        let mut end = lease.delivered();
        end.settle = match n / 2 {
            0 => Settle::Done(Status::Delivered),
            1 => Settle::Done(Status::Cancelled),
            2 => Settle::Dead(Status::Dead),
            _ => Settle::Release,
        };
        node.finish_now(&end).await;
        if of.id == acme.id {
            ids.push(id);
            subs.push(sub);
        }
    }
    ids.reverse();
    let of = |status, subscriptions: Vec<SubscriptionId>| Recent {
        parts: vec![acme.id.part()],
        tenant: Some(acme.id),
        subscriptions,
        status,
        parked: Vec::new(),
    };
    let found = async |recent: Recent| -> Vec<DeliveryId> {
        let found = listed(&node, &recent).await;
        found.iter().map(|(id, _)| *id).collect()
    };
    assert_eq!(found(of(None, subs.clone())).await, ids);
    assert_eq!(
        found(of(None, Vec::new())).await,
        ids[..3],
        "as its promise says"
    );
    for (status, id) in [
        (Status::Delivered, ids[3]),
        (Status::Cancelled, ids[2]),
        (Status::Dead, ids[1]),
        (Status::Pending, ids[0]),
    ] {
        assert_eq!(found(of(Some(status), subs.clone())).await, [id]);
    }
}

async fn recent_ones_are_paged_over_days(db: Db) {
    let node = db.node().await;
    // Published now; finished in the days that follow.
    let mut ids = Vec::new();
    for n in 0..9 {
        let lease = leased(&node).await;
        ids.push(lease.id);
        if n % 3 == 2 {
            node.finish_now(&lease.dead()).await;
        } else {
            node.finish_now(&lease.delivered()).await;
        }
        node.pass_days(1).await;
        node.prepare_days().await.unwrap();
    }
    ids.reverse();
    for recent in [
        all(None),
        Recent {
            parts: vec![DEFAULT.id.part(), Part::new(9)],
            ..Recent::default()
        },
    ] {
        let mut seen = Vec::new();
        let mut before = None;
        loop {
            let found = node.recent_deliveries(&recent, page(before, 2)).await;
            let found = found.unwrap();
            before = found.last().map(|d| d.id);
            seen.extend(found.iter().map(|d| d.id));
            if found.len() < 2 {
                break;
            }
        }
        assert_eq!(seen, ids);
    }
}

// B12: what benchmarks are measured on is what deliveries would have left.
async fn a_loaded_history_is_one(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node.store, "acme", 7).await;
    let sub = acme.sub();
    let load = Load {
        tenant: acme.id,
        subscription: sub,
        from: wall_clock() - 50 * HOUR,
        step: HOUR / 2,
        count: 100,
        dead_every: 10,
    };
    node.load_finished(&load).await.unwrap();
    let counted = tally_of(&node, Some(acme.id)).await;
    assert_eq!(now(&counted), [0, 0, 0, 90, 10, 0, 0]);
    db.counts_agree().await;
    let found = node.recent_deliveries(&all(None), page(None, 200)).await;
    let found = found.unwrap();
    assert_eq!(found.len(), 100);
    for d in &found {
        assert_eq!((d.tenant, d.subscription), (acme.id, sub));
        assert_eq!(d.event_type, "load.finished");
        assert_eq!(
            (d.id.part(), d.event.part()),
            (acme.id.part(), acme.id.part())
        );
        assert_eq!(d.id.time() / 1000, d.event.time() / 1000);
        let event = node.get_event(d.event).await.unwrap().unwrap();
        assert_eq!(event.tenant, acme.id);
        assert_eq!(
            day_of(EventId::time(d.event)),
            day_of(d.finished_at.unwrap())
        );
    }
    let oldest = found.last().unwrap().id.time();
    assert!((oldest - load.from).abs() < 1000, "{oldest} {}", load.from);
}
