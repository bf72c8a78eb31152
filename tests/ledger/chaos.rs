//! Three nodes on one PostgreSQL and one Redis, four workers, each connected to one of
//! the nodes, and whatever may befall any of them, by chance.

use std::{
    collections::BTreeMap,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::process::{Child, Command};

use super::{Chance, Load, Place, SESSION, Server, Setup, any_seed, end, number, settle};
use crate::{
    book::{Interruption, Of},
    egress::Sender,
    load::Mood,
    remote::Remote,
    support::{
        cluster::{Cluster, free_port, url},
        contract::run_alone,
        proxy::Proxy,
        store::Db,
        wait::until,
    },
};

const NODES: u8 = 3;
/// The node of each worker, and whether that one is slow. Nodes but for the first send
/// nothing themselves.
const WORKERS: [(usize, bool); 4] = [(0, false), (1, false), (2, false), (1, true)];
const SENDS_ITSELF: usize = 0;

/// What may go wrong.
const FAULTS: [Fault; 18] = [
    Fault::NodeKilled,
    Fault::NodeKilled,
    Fault::NodeRestarted,
    Fault::PostgresCrashed,
    Fault::PostgresRestarted,
    Fault::ConnectionsTerminated,
    Fault::RedisKilled,
    Fault::RedisFlushed,
    Fault::ConnectionsCut,
    Fault::ConnectionsSlow,
    Fault::ConnectionsSilent,
    Fault::AnswersLost,
    Fault::ReceiversBad,
    Fault::ClockJumps,
    Fault::WorkerKilled,
    Fault::WorkerStopped,
    Fault::StreamCut,
    Fault::LinksCut,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    NodeKilled,
    NodeRestarted,
    PostgresCrashed,
    PostgresRestarted,
    ConnectionsTerminated,
    RedisKilled,
    RedisFlushed,
    ConnectionsCut,
    ConnectionsSlow,
    ConnectionsSilent,
    AnswersLost,
    ReceiversBad,
    ClockJumps,
    WorkerKilled,
    WorkerStopped,
    StreamCut,
    LinksCut,
}

/// What ends later, while other things go wrong.
enum Ends {
    Stop(usize),
    StreamCut(usize, Instant, Duration),
    LinksCut(usize, Instant, Duration),
}

struct Redis {
    port: u16,
    process: Option<Child>,
}

impl Redis {
    async fn start() -> Self {
        let mut redis = Self {
            port: free_port(),
            process: None,
        };
        redis.resume().await;
        redis
    }

    async fn resume(&mut self) {
        let port = self.port.to_string();
        let child = Command::new("redis-server")
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &port,
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        self.process = Some(child.unwrap());
        until("Redis answers", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", self.port))
                .await
                .ok()
        })
        .await;
    }

    async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await.unwrap();
        }
    }

    async fn flush(&self) {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd("FLUSHALL")
            .query_async::<()>(&mut connection)
            .await
            .unwrap();
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

struct World {
    chance: Chance,
    cluster: Cluster,
    redis: Redis,
    db: Db,
    /// Each node's way to the database.
    ways: Vec<Proxy>,
    nodes: Vec<Server>,
    workers: Vec<Remote>,
    later: Vec<(Instant, Ends)>,
    place: Place,
    befell: BTreeMap<Fault, usize>,
}

/// How long statements may wait behind a connection that has gone silent.
const SILENT: Duration = Duration::from_secs(12);
const SOON: Duration = Duration::from_secs(2);
/// How long a connection may be used that was silent and stays so for good: until one
/// of its ends has found that.
const FOUND_SILENT: Duration = Duration::from_secs(15);
/// How long a worker is stopped, in milliseconds: longer than its node waits for it.
const STOPPED: [u64; 2] = [16_000, 20_000];

impl World {
    async fn begin(seed: u64) -> Self {
        let cluster = Cluster::start().await;
        cluster.sql("create database ledger").await;
        let redis = Redis::start().await;
        let (mut ways, mut nodes) = (Vec::new(), Vec::new());
        for n in 0..NODES {
            let way = Proxy::to(format!("127.0.0.1:{}", cluster.port)).await;
            let embedded = u8::from(usize::from(n) == SENDS_ITSELF).to_string();
            let setup = Setup {
                database: url(way.address.port(), "ledger"),
                redis: Some(redis.url()),
                more: vec![("ONERING_EMBEDDED_WORKER".to_owned(), embedded)],
                ..Setup::default()
            };
            nodes.push(Server::start(setup, n).await);
            ways.push(way);
        }
        let mut workers = Vec::new();
        for (number, (node, slow)) in (0..).zip(WORKERS) {
            workers.push(Remote::start(&nodes[node], number, slow).await);
        }
        let place = Place::prepare(&nodes[0].url(), Arc::default()).await;
        Self {
            chance: Chance::new(seed),
            db: Db::at(&cluster.url("ledger")),
            cluster,
            redis,
            ways,
            nodes,
            workers,
            later: Vec::new(),
            place,
            befell: BTreeMap::new(),
        }
    }

    async fn pass(&mut self, least: u64, most: u64) {
        let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
        tokio::time::sleep(self.chance.between(least, most)).await;
    }

    async fn kill(&mut self, n: usize) {
        self.nodes[n].kill().await;
        self.place.book.killed(self.nodes[n].sender());
    }

    /// Ends what has lasted for long enough, or all of it.
    fn end_faults(&mut self, all: bool) {
        let now = Instant::now();
        let due = self.later.extract_if(.., |(at, _)| all || *at <= now);
        for (_, ends) in due {
            let by = match ends {
                Ends::Stop(w) => {
                    self.workers[w].signal("CONT");
                    continue;
                }
                Ends::StreamCut(w, since, longer) => {
                    self.workers[w].way.mend();
                    let of = Of::One(self.workers[w].sender());
                    Interruption::since(of, "its stream was cut", since).lasting(longer)
                }
                Ends::LinksCut(n, since, longer) => {
                    self.nodes[n].way.mend();
                    Interruption::since(Of::Workers, "a link between nodes was cut", since)
                        .lasting(longer)
                }
            };
            self.place.book.interrupted(by);
        }
    }

    /// Whether a worker is stopped, or its stream cut.
    fn is_away(&self, worker: usize) -> bool {
        self.later.iter().any(|(_, ends)| match ends {
            Ends::Stop(w) | Ends::StreamCut(w, ..) => *w == worker,
            Ends::LinksCut(..) => false,
        })
    }

    fn later(&mut self, least: u64, most: u64, ends: Ends) {
        let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
        let at = Instant::now() + self.chance.between(least, most);
        self.later.push((at, ends));
    }

    /// What befalls workers, and the ways to them. Most of it lasts while other things
    /// go wrong.
    async fn befall_worker(&mut self, fault: Fault) {
        let silent = self.chance.below(2) == 0;
        let (cut, longer) = if silent {
            (Proxy::silence as fn(&Proxy), FOUND_SILENT)
        } else {
            (Proxy::cut as fn(&Proxy), Duration::ZERO)
        };
        let began = Instant::now();
        let n = self.chance.below(NODES.into());
        if fault == Fault::LinksCut {
            cut(&self.nodes[n].way);
            return self.later(100, 8000, Ends::LinksCut(n, began, longer));
        }
        let all = 0..WORKERS.len();
        let here: Vec<usize> = all.filter(|w| !self.is_away(*w)).collect();
        // At least one is left.
        if here.len() < 2 {
            return;
        }
        let w = here[self.chance.below(here.len())];
        let sender = self.workers[w].sender();
        match fault {
            Fault::WorkerKilled => {
                self.workers[w].kill().await;
                self.place.book.killed(sender);
                self.pass(0, 3000).await;
                self.workers[w].start_again();
            }
            Fault::WorkerStopped => {
                self.workers[w].signal("STOP");
                let by = Interruption::now(Of::One(sender), "stopped");
                self.place.book.interrupted(by);
                self.later(STOPPED[0], STOPPED[1], Ends::Stop(w));
            }
            _ => {
                cut(&self.workers[w].way);
                self.later(100, 8000, Ends::StreamCut(w, began, longer));
            }
        }
    }

    async fn befall(&mut self, fault: Fault) {
        *self.befell.entry(fault).or_default() += 1;
        let n = self.chance.below(NODES.into());
        let began = Instant::now();
        match fault {
            Fault::NodeKilled => {
                self.kill(n).await;
                // Now and then for longer than its session lives.
                let longest = u64::try_from(2 * SESSION.as_millis()).unwrap();
                self.pass(0, longest).await;
                self.nodes[n].start_again().await;
            }
            Fault::NodeRestarted => {
                self.nodes[n].stop().await;
                self.nodes[n].start_again().await;
            }
            Fault::PostgresCrashed | Fault::PostgresRestarted => {
                if fault == Fault::PostgresCrashed {
                    self.cluster.crash().await;
                } else {
                    self.cluster.stop().await;
                }
                self.pass(0, 3000).await;
                let both = self.chance.below(3) == 0;
                if both {
                    self.kill(n).await;
                    *self.befell.entry(Fault::NodeKilled).or_default() += 1;
                }
                self.cluster.resume().await;
                self.place.book.troubled(began, SOON);
                if both {
                    self.nodes[n].start_again().await;
                }
            }
            Fault::ConnectionsTerminated => {
                let all = "select pg_terminate_backend(pid)::text from pg_stat_activity
                           where application_name = 'onering'";
                self.cluster.sql(all).await;
                self.place.book.troubled(began, SOON);
            }
            Fault::RedisKilled => {
                self.redis.kill().await;
                self.pass(0, 3000).await;
                self.redis.resume().await;
            }
            Fault::RedisFlushed => self.redis.flush().await,
            Fault::ConnectionsCut
            | Fault::ConnectionsSlow
            | Fault::ConnectionsSilent
            | Fault::AnswersLost => {
                let all = self.chance.below(3) == 0;
                let late = self
                    .chance
                    .between(Duration::from_millis(20), Duration::from_millis(300));
                let chosen = |i: usize| all || i == n;
                for (_, way) in self.ways.iter().enumerate().filter(|(i, _)| chosen(*i)) {
                    match fault {
                        Fault::ConnectionsCut => way.cut(),
                        Fault::ConnectionsSlow => way.slow_down(late),
                        Fault::ConnectionsSilent => way.silence(),
                        _ => way.deafen(),
                    }
                }
                self.pass(100, 3000).await;
                self.ways.iter().for_each(Proxy::mend);
                let quick = matches!(fault, Fault::ConnectionsCut | Fault::ConnectionsSlow);
                self.place
                    .book
                    .troubled(began, if quick { SOON } else { SILENT });
            }
            Fault::ReceiversBad => {
                let mood = [Mood::Failing, Mood::Slow, Mood::Hanging][self.chance.below(3)];
                self.place.receivers_are(mood);
                self.pass(500, 4000).await;
                self.place.receivers_are(Mood::Well);
            }
            Fault::ClockJumps => {
                // Forward, past sessions, or not as far as that. Backward a little: what
                // is due waits for as long.
                let by = [3, 60, 1, -1][self.chance.below(4)] * 1_000_000;
                self.db.open().await.shift_clock(by).await.unwrap();
                self.db.close().await;
            }
            Fault::WorkerKilled | Fault::WorkerStopped | Fault::StreamCut | Fault::LinksCut => {
                self.befall_worker(fault).await;
            }
        }
    }
}

// H1, N2, W4, W8: three nodes and four workers, any fault, by chance: nothing is lost,
// nothing is sent under two live leases, and each duplicate has a cause.
#[test]
fn postgres_three_nodes_and_everything_that_may_befall_them() {
    run_alone(async {
        let seed = number("ONERING_LEDGER_SEED", any_seed());
        let length = Duration::from_secs(number("ONERING_LEDGER_SECONDS", 120));
        let mut world = World::begin(seed).await;
        let addresses: Vec<_> = world.nodes.iter().map(Server::address).collect();
        let load = Load::start(&world.place, &addresses);
        let ends = Instant::now() + length;
        // Each once, and then by chance.
        let mut first: Vec<Fault> = FAULTS.to_vec();
        while Instant::now() < ends {
            world.pass(300, 2000).await;
            world.end_faults(false);
            let fault = if first.is_empty() {
                FAULTS[world.chance.below(FAULTS.len())]
            } else {
                first.swap_remove(world.chance.below(first.len()))
            };
            world.befall(fault).await;
        }
        world.end_faults(true);
        load.stop().await;
        settle(&world.place, &world.nodes[0].url()).await;
        for worker in &mut world.workers {
            worker.still_runs();
            for by in worker.interruptions() {
                world.place.book.interrupted(by);
            }
        }
        let summary = end(Some(&world.db), &world.place, &world.nodes).await;
        let mut senders = vec![Sender::Node(0)];
        senders.extend(world.workers.iter().map(Remote::sender));
        assert!(
            summary.by_sender.keys().eq(&senders),
            "all of them send, and nobody else: {:?}",
            summary.by_sender
        );
        eprintln!("  seed {seed}, {} s, faults:", length.as_secs());
        for (fault, count) in &world.befell {
            eprintln!("  {count} × {fault:?}");
        }
    });
}
