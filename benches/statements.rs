//! The hot statements alone, through the store's contract, on both engines:
//! `cargo bench --bench statements -- [--seconds N] [--engine sqlite|postgres] [--backlog ROWS]`.
//!
//! Finishing must cost the same with a long queue as with an empty one: a plan
//! that scans the queue shows as a collapse of the last rows of the table.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark may stop on an error"
)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Parser;
use onering::{
    domain::{
        delivery::{Attempt, AttemptKind, Status},
        id::{DeliveryId, EventId, Part, SubscriptionId, TenantId, wall_clock},
    },
    store::{
        Database, Finish, Finished, NewDelivery, Publish, Published, Session, Settle, Store, Want,
        connect,
    },
};
use sqlx::Connection as _;

const BATCHES: [usize; 4] = [1, 20, 100, 500];

#[derive(Parser)]
struct Args {
    /// How long each cell of the table is measured.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only that engine: sqlite or postgres.
    #[arg(long)]
    engine: Option<String>,
    /// How many rows the long queue has.
    #[arg(long, default_value_t = 250_000)]
    backlog: usize,
    /// Bytes of an event's body.
    #[arg(long, default_value_t = 500)]
    body: usize,
    /// `cargo bench` passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Bench {
    store: Arc<dyn Store>,
    session: Session,
    subscription: SubscriptionId,
    body: Bytes,
    seconds: f64,
}

/// Rows and the time that they took.
#[derive(Default)]
struct Rate {
    rows: usize,
    time: Duration,
}

impl Rate {
    fn add(&mut self, rows: usize, since: Instant) {
        self.rows += rows;
        self.time += since.elapsed();
    }

    fn shown(&self) -> String {
        format!("{:>10.0}", self.rows as f64 / self.time.as_secs_f64())
    }
}

impl Bench {
    fn new_event(&self, subscription: SubscriptionId, lease: bool) -> Publish {
        let event = EventId::new(wall_clock(), subscription.part());
        Publish {
            tenant: TenantId::DEFAULT,
            revision: 1,
            event,
            event_type: "invoice.paid".into(),
            body: self.body.clone(),
            key: None,
            idempotency: None,
            trace: None,
            deliveries: vec![NewDelivery {
                id: DeliveryId::of(event),
                subscription,
                held: 0,
                lease,
                ordered: false,
            }],
            ordering_key: None,
        }
    }

    async fn publish(&self, rows: usize, lease: bool, rate: &mut Rate) -> Vec<Finish> {
        let batch: Vec<Publish> = (0..rows)
            .map(|_| self.new_event(self.subscription, lease))
            .collect();
        let since = Instant::now();
        let answers = self.store.publish(self.session, &batch).await.unwrap();
        rate.add(rows, since);
        assert!(
            answers
                .iter()
                .all(|a| matches!(a, Published::Accepted { leased: true }))
        );
        batch
            .iter()
            .map(|p| delivered(p.deliveries[0].id, 1))
            .collect()
    }

    async fn claim(&self, rows: usize, rate: &mut Rate) -> Vec<Finish> {
        let want = Want {
            part: self.subscription.part(),
            subscription: self.subscription,
            limit: rows as i64,
        };
        let since = Instant::now();
        let leased = self.store.claim(self.session, &[want]).await.unwrap();
        rate.add(rows, since);
        assert_eq!(leased.len(), rows);
        leased.iter().map(|l| delivered(l.id, l.token)).collect()
    }

    async fn finish(&self, batch: &[Finish], rate: &mut Rate) {
        let since = Instant::now();
        let answers = self.store.finish(batch).await.unwrap();
        rate.add(batch.len(), since);
        assert_eq!(answers, vec![Finished::Now; batch.len()]);
    }

    /// One line of the table for each size of batches.
    async fn measure(&self, engine: &str, queued: usize) {
        for rows in BATCHES {
            let (mut leased, mut settled) = (Rate::default(), Rate::default());
            let until = Instant::now() + Duration::from_secs_f64(self.seconds);
            while Instant::now() < until {
                let batch = self.publish(rows, true, &mut leased).await;
                self.finish(&batch, &mut settled).await;
            }
            let (mut unleased, mut claimed, mut finished) =
                (Rate::default(), Rate::default(), Rate::default());
            let until = Instant::now() + Duration::from_secs_f64(self.seconds);
            while Instant::now() < until {
                self.publish(rows, false, &mut unleased).await;
                let batch = self.claim(rows, &mut claimed).await;
                self.finish(&batch, &mut finished).await;
            }
            println!(
                "{engine:<9}{queued:>8}{rows:>7} {}{} |{}{}{}",
                leased.shown(),
                settled.shown(),
                unleased.shown(),
                claimed.shown(),
                finished.shown(),
            );
        }
    }

    /// Rows of a hundred other subscriptions.
    async fn fill(&self, rows: usize) {
        let part = self.subscription.part();
        let others: Vec<_> = (0..100)
            .map(|_| SubscriptionId::new(wall_clock(), part))
            .collect();
        for from in (0..rows).step_by(500) {
            let batch: Vec<Publish> = (from..rows.min(from + 500))
                .map(|i| self.new_event(others[i % others.len()], false))
                .collect();
            self.store.publish(self.session, &batch).await.unwrap();
        }
    }
}

fn delivered(id: DeliveryId, token: i32) -> Finish {
    Finish {
        id,
        token,
        settle: Settle::Done(Status::Delivered),
        reason: String::new(),
        attempt: Some(Attempt {
            number: 1,
            token,
            started_at: 0,
            took: 1500,
            kind: AttemptKind::Delivered,
            response_status: 200,
            error: String::new(),
            response: b"ok".to_vec(),
            worker: "node-1".into(),
        }),
        held: 0,
        ordered: false,
    }
}

async fn run(database: &Database, engine: &str, args: &Args) {
    let store = connect(database).await.unwrap();
    store.prepare_days().await.unwrap();
    let session = store
        .begin_session("bench", Duration::from_secs(3600))
        .await
        .unwrap();
    let parts: Vec<Part> = Part::all().collect();
    store.take_partitions(session, &parts).await.unwrap();
    let part: Part = TenantId::DEFAULT.part();
    let bench = Bench {
        store,
        session,
        subscription: SubscriptionId::new(wall_clock(), part),
        body: vec![b'x'; args.body].into(),
        seconds: args.seconds,
    };
    bench.measure(engine, 0).await;
    bench.fill(args.backlog).await;
    bench.measure(engine, args.backlog).await;
    bench.store.close().await;
}

/// A database of its own on the test server, dropped afterwards.
async fn on_postgres(args: &Args) {
    let server = std::env::var("ONERING_TEST_POSTGRES_URL").expect(
        "ONERING_TEST_POSTGRES_URL is not set: run `./test servers` and evaluate what it prints",
    );
    let mut admin = sqlx::PgConnection::connect(&server).await.unwrap();
    let name = format!("onering_bench_{}", std::process::id());
    let execute = async |admin: &mut sqlx::PgConnection, sql: String| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(admin)
            .await
            .unwrap();
    };
    execute(&mut admin, format!("create database {name}")).await;
    let mut url = url::Url::parse(&server).unwrap();
    url.set_path(&name);
    run(&url.as_str().parse().unwrap(), "postgres", args).await;
    execute(&mut admin, format!("drop database {name} with (force)")).await;
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let wanted = |engine: &str| args.engine.as_deref().is_none_or(|e| e == engine);
    println!("rows/s         queued  batch    publish    finish |   publish     claim    finish");
    println!("                               (leased)           | (unleased)");
    if wanted("sqlite") {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bench.db");
        run(&Database::Sqlite(file), "sqlite", &args).await;
    }
    if wanted("postgres") {
        on_postgres(&args).await;
    }
}
