//! The ledger: servers are killed under load, and at the end each accepted event
//! is shown to have been delivered to each of its subscriptions.
//!
//! `ONERING_LEDGER_SECONDS` says how long each scenario publishes,
//! `ONERING_LEDGER_RATE` how many events a second, and `ONERING_LEDGER_SEED`
//! repeats the same chances. `ONERING_LEDGER_COMMAND` is the command that runs, where
//! it is not the one that was built.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "ledger/book.rs"]
mod book;
#[path = "ledger/chance.rs"]
mod chance;
#[path = "ledger/chaos.rs"]
mod chaos;
#[path = "ledger/disk.rs"]
mod disk;
#[path = "ledger/egress.rs"]
mod egress;
#[path = "ledger/failover.rs"]
mod failover;
#[path = "ledger/load.rs"]
mod load;
#[path = "ledger/remote.rs"]
mod remote;
#[path = "ledger/server.rs"]
mod server;
mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use book::{Book, Interruption, Of, Summary};
use chance::{Chance, any_seed};
use egress::Sender;
use load::{Load, Place};
use server::{Server, Setup};
use support::{
    store::{Db, Engine, run},
    wait::until,
};

/// A node's life without the database, as short as can be set.
const SESSION: Duration = Duration::from_secs(2);
/// W4: within this time a killed node's leases are another's.
const TAKEOVER: Duration = Duration::from_secs(30);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn length() -> Duration {
    Duration::from_secs(number("ONERING_LEDGER_SECONDS", 15))
}

// H1
#[test]
fn sqlite_one_node_is_killed_again_and_again() {
    run(Engine::Sqlite, |db| async move {
        killed_again_and_again(&db, 1).await;
    });
}

// H1
#[test]
fn postgres_one_node_is_killed_again_and_again() {
    run(Engine::Postgres, |db| async move {
        killed_again_and_again(&db, 1).await;
    });
}

// H1, D2: publishers talk to both nodes; one of them is killed at random.
#[test]
fn postgres_one_of_two_nodes_is_killed_again_and_again() {
    run(Engine::Postgres, |db| async move {
        killed_again_and_again(&db, 2).await;
    });
}

// H1, N5: what a killed node had is another's, although it never comes back.
#[test]
fn postgres_a_killed_nodes_partitions_are_taken_over() {
    run(Engine::Postgres, |db| async move {
        let mut nodes = start(&db, 2).await;
        let place = Place::prepare(&nodes[0].url(), Arc::default()).await;
        let load = Load::start(
            &place,
            &nodes.iter().map(Server::address).collect::<Vec<_>>(),
        );
        until("every tenant is delivered to", async || {
            place.each_tenant_since(None).then_some(())
        })
        .await;

        let killed = Instant::now();
        nodes[0].kill().await;
        place.book.killed(nodes[0].sender());
        support::wait::until_after(
            TAKEOVER,
            "every tenant is delivered to by the other node",
            async || place.each_tenant_since(Some(killed)).then_some(()),
        )
        .await;
        load.stop().await;
        settle(&place, &nodes[1].url()).await;
        end(Some(&db), &place, &nodes).await;
    });
}

async fn killed_again_and_again(db: &Db, count: usize) {
    let mut chance = Chance::new(number("ONERING_LEDGER_SEED", any_seed()));
    let mut nodes = start(db, count).await;
    let place = Place::prepare(&nodes[0].url(), Arc::default()).await;
    let load = Load::start(
        &place,
        &nodes.iter().map(Server::address).collect::<Vec<_>>(),
    );
    let end_of_load = Instant::now() + length();
    while Instant::now() < end_of_load {
        // Not to wait for anything: these are the times between faults.
        tokio::time::sleep(chance.between(Duration::from_millis(800), Duration::from_secs(3)))
            .await;
        let node = &mut nodes[chance.below(count)];
        node.kill().await;
        place.book.killed(node.sender());
        // Now and then for longer than its session lives.
        tokio::time::sleep(chance.between(Duration::ZERO, SESSION * 2)).await;
        node.start_again().await;
    }
    load.stop().await;
    settle(&place, &nodes[0].url()).await;
    end(Some(db), &place, &nodes).await;
}

async fn start(db: &Db, count: usize) -> Vec<Server> {
    let mut nodes = Vec::new();
    for n in 0..count {
        nodes.push(Server::start(Setup::of(db.database()), n.try_into().unwrap()).await);
    }
    nodes
}

/// Waits until nothing is queued any more.
async fn settle(place: &Place, url: &str) {
    let patience = Duration::from_secs(90);
    support::wait::until_after(patience, "the queue is empty", async || {
        place.unfinished(url).await.is_empty().then_some(())
    })
    .await;
}

/// Compares what was promised with what was done.
async fn end(db: Option<&Db>, place: &Place, nodes: &[Server]) -> Summary {
    let log: Vec<_> = nodes.iter().flat_map(Server::interruptions).collect();
    let url = nodes.iter().rev().find(|n| n.is_running()).unwrap().url();
    place.compare_log(&url).await;
    compare_counters(db, place.book.promised().len(), &url).await;
    let summary = place.book.close(&log);
    eprintln!("{summary}");
    summary
}

/// Whatever was killed when: the counters say what a count of the rows does, and
/// monitoring shows it.
async fn compare_counters(db: Option<&Db>, delivered: usize, url: &str) {
    if let Some(db) = db {
        db.counts_agree().await;
        let rows = "select cast(count(*) as text) from done where state = 4";
        assert_eq!(db.texts(rows).await, [delivered.to_string()]);
    }
    let http = support::app::Http::new();
    until("monitoring shows what was delivered", async || {
        let request = http::Request::get(format!("{url}/v1/monitoring/webhooks/metrics"))
            .header("authorization", format!("Bearer {}", server::ADMIN_KEY))
            .body(http_body_util::Full::default())
            .unwrap();
        let figures = http.send(request).await.ok();
        let unfinished = ["pending", "retrying", "failed"].map(|name| figures[name] == 0);
        (figures["delivered"] == delivered && unfinished == [true; 3]).then_some(())
    })
    .await;
}

/// What the harness would call lost, twice or unexplained, it does.
#[test]
fn the_book_finds_what_is_wrong() {
    let fails = |book: &Book, why: &str| {
        let closed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| book.close(&[])));
        assert!(closed.is_err(), "{why}");
    };
    let [one, two, worker] = [Sender::Node(1), Sender::Node(2), Sender::Worker(1)];
    let delivered = |book: &Book, event: &str, by: Sender| {
        book.delivered(event, "sub_1", 1, by, Instant::now());
    };
    let book = Book::default();
    book.accepted(1, "evt_1", &["sub_1"]);
    fails(&book, "lost");
    delivered(&book, "evt_1", one);
    book.close(&[]);
    delivered(&book, "evt_1", two);
    fails(&book, "twice, nobody was killed");
    // What one of them had left behind would have come after that.
    book.killed(two);
    book.killed(worker);
    fails(&book, "twice, others were killed");
    let links = |what: &str| Interruption::now(Of::Workers, what);
    book.interrupted(links("links cut"));
    fails(&book, "twice, of no worker");

    for (first, cause) in [
        (one, Interruption::now(Of::One(one), "killed")),
        (worker, Interruption::now(Of::One(worker), "killed")),
        (worker, Interruption::now(Of::One(two), "killed")),
        (worker, links("links cut")),
    ] {
        let book = Book::default();
        book.accepted(1, "evt_1", &["sub_1"]);
        delivered(&book, "evt_1", first);
        book.interrupted(cause);
        delivered(&book, "evt_1", two);
        assert_eq!(book.close(&[]).duplicates.len(), 1, "twice, with a reason");
    }

    let book = Book::default();
    book.accepted(1, "evt_1", &["sub_1"]);
    delivered(&book, "evt_1", one);
    book.interrupted(Interruption::now(Of::One(worker), "deliveries revoked"));
    delivered(&book, "evt_1", worker);
    assert_eq!(book.close(&[]).duplicates.len(), 1, "passed on its way");

    let book = Arc::new(Book::default());
    let first = book.begins("dlv_1", one);
    drop(book.begins("dlv_2", one));
    book.close(&[]);
    let second = book.begins("dlv_1", worker);
    fails(&book, "two at a time");
    drop((first, second));
    book.killed(worker);
    fails(&book, "two at a time, the second was killed");
    book.killed(one);
    assert_eq!(book.close(&[]).overlaps, 1, "two at a time, with a reason");
    let book = Book::default();
    book.accepted(1, "evt_1", &["sub_1"]);
    delivered(&book, "evt_1", one);
    delivered(&book, "evt_2", one);
    fails(&book, "one publish, two events");
}
