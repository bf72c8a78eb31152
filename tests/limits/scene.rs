//! Nodes' limiters on one store, with clocks that the test moves.

use std::{
    collections::HashMap,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use onering::{
    domain::id::{KeyId, Micros, Part, micros, wall_clock},
    limiter::{Clock, Limiter, Outside, Parts, Policy, State, Undecided},
    metrics::Metrics,
    store::{Session, Store},
    tasks::Tasks,
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    store::{Db, FOR_EVER, HOUR, SECOND},
    wait::until,
};

/// The variable that names the Redis that tests share.
const REDIS: &str = "ONERING_TEST_REDIS_URL";

pub(crate) fn key() -> KeyId {
    KeyId::new(wall_clock(), Part::new(3))
}

/// A node's limiter.
pub(crate) struct Node {
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) store: Arc<dyn Store>,
    session: Session,
    tasks: Tasks,
    cancel: CancellationToken,
}

/// A call that was admitted: no earlier and no later than these, and its cost.
type Admitted = (Micros, Micros, i64);

pub(crate) struct Scene {
    pub(crate) db: Db,
    shift: Arc<AtomicI64>,
    clock: Clock,
    redis: Option<String>,
    prefix: String,
    admitted: std::sync::Mutex<HashMap<KeyId, Vec<Admitted>>>,
}

impl Scene {
    pub(crate) fn new(db: Db, redis: Option<String>) -> Self {
        let shift = Arc::new(AtomicI64::new(0));
        let (start, moved) = (Instant::now(), shift.clone());
        Self {
            db,
            shift,
            clock: Arc::new(move || micros(start.elapsed()) + moved.load(Ordering::SeqCst)),
            redis,
            prefix: format!("test:{{{}}}", key()),
            admitted: std::sync::Mutex::default(),
        }
    }

    /// On the Redis that tests share.
    pub(crate) fn on_redis(db: Db) -> Self {
        let url = std::env::var(REDIS).unwrap_or_else(|_| {
            panic!("{REDIS} is not set: run `./test servers`, and export what it prints")
        });
        Self::new(db, Some(url))
    }

    pub(crate) async fn node(&self) -> Node {
        self.node_with(self.db.another().await, self.redis.clone())
            .await
    }

    /// A node with a store and a way to Redis of its own.
    pub(crate) async fn node_with(&self, store: Arc<dyn Store>, redis: Option<String>) -> Node {
        let session = store.begin_session("test", FOR_EVER).await.unwrap();
        let (tasks, cancel) = (Tasks::new(), CancellationToken::new());
        let metrics = Arc::new(Metrics::new());
        let moved = self.shift.clone();
        let parts = Parts {
            store: store.clone(),
            session: Arc::new(move || session),
            redis,
            metrics: metrics.clone(),
            outside: Outside {
                clock: self.clock.clone(),
                redis_clock: Some(Arc::new(move || {
                    wall_clock() + moved.load(Ordering::SeqCst)
                })),
                prefix: self.prefix.clone(),
            },
        };
        let limiter = Limiter::start(parts, &tasks, &cancel).await.unwrap();
        Node {
            limiter,
            metrics,
            store,
            session,
            tasks,
            cancel,
        }
    }

    /// Some time passes for everyone.
    pub(crate) async fn pass(&self, time: Micros) {
        self.db.another().await.shift_clock(time).await.unwrap();
        self.shift.fetch_add(time, Ordering::SeqCst);
    }

    pub(crate) async fn take(&self, node: &Node, policy: Policy, cost: i64) -> State {
        let before = (self.clock)();
        let state = node.limiter.take(policy, cost).await;
        if state.allowed && cost > 0 {
            let call = (before, (self.clock)(), cost);
            let mut admitted = self.admitted.lock().unwrap();
            admitted.entry(policy.key).or_default().push(call);
        }
        state
    }

    /// As [`take`](Self::take), again where it was not decided for want of an
    /// answer in time.
    pub(crate) async fn take_surely(&self, node: &Node, policy: Policy, cost: i64) -> State {
        for _ in 0..200 {
            let state = self.take(node, policy, cost).await;
            if state.allowed || !state.degraded {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not decided");
    }

    /// Looks until everyone answers in time.
    pub(crate) async fn look(&self, node: &Node, policy: Policy) -> State {
        until("everyone answers in time", async || {
            let state = self.take(node, policy, 0).await;
            (!state.degraded).then_some(state)
        })
        .await
    }

    /// Calls until one is refused; how many were not.
    pub(crate) async fn exhaust(&self, node: &Node, policy: Policy) -> i64 {
        let mut admitted = 0;
        while self.take_surely(node, policy, 1).await.allowed {
            admitted += 1;
            assert!(admitted <= policy.limit, "more than the limit");
        }
        admitted
    }

    /// In no trailing hour were more calls admitted than the limit.
    pub(crate) fn check(&self, limits: &[Policy]) {
        let admitted = self.admitted.lock().unwrap();
        for policy in limits {
            let calls = admitted.get(&policy.key).map_or(&[][..], Vec::as_slice);
            let most = most_in_an_hour(calls);
            assert!(
                most <= policy.limit,
                "{most} calls in some hour, of {}",
                policy.limit
            );
        }
    }

    pub(crate) async fn until_well(&self, node: &Node) {
        let look = async || (!node.limiter.is_degraded()).then_some(());
        until("limits are decided by all again", look).await;
    }
}

/// The most calls that surely lay within one trailing hour.
fn most_in_an_hour(calls: &[Admitted]) -> i64 {
    let hour = calls.iter().enumerate().map(|(n, (from, _, cost))| {
        // Of calls that began at once the first is the earliest.
        let after = calls.iter().enumerate();
        let after = after.filter(|(m, (b, e, _))| (b, *m) > (from, n) && e - from < HOUR);
        cost + after.map(|(_, call)| call.2).sum::<i64>()
    });
    hour.max().unwrap_or_default()
}

// K6
#[test]
fn calls_at_once_are_of_one_hour() {
    let burst = vec![(0, SECOND, 1); 30];
    assert_eq!(most_in_an_hour(&burst), 30);
    let spread = [(0, SECOND, 1), (HOUR - 1, HOUR, 5), (2, 3, 1)];
    assert_eq!(most_in_an_hour(&spread), 6);
}

impl Node {
    /// Ends in order.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        self.tasks.join(Duration::from_secs(5)).await;
        self.store.end_session(self.session).await.unwrap();
    }

    /// Is gone at once, where its store is gone too.
    pub(crate) async fn kill_without_a_store(self) {
        self.tasks.join(Duration::ZERO).await;
    }

    /// Is gone at once, as after SIGKILL; its session is known to be over.
    pub(crate) async fn kill(self) {
        self.tasks.join(Duration::ZERO).await;
        self.store.end_session(self.session).await.unwrap();
    }
}

pub(crate) fn policy(limit: i64) -> Policy {
    Policy {
        key: key(),
        limit,
        undecided: Undecided::Refuse,
    }
}

/// As many calls as the limit admits.
pub(crate) fn calls_of(policy: Policy) -> usize {
    usize::try_from(policy.limit).unwrap()
}

/// A Redis of the test's own.
pub(crate) struct OwnRedis {
    port: u16,
    dir: tempfile::TempDir,
    child: Option<tokio::process::Child>,
}

impl OwnRedis {
    pub(crate) async fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let mut redis = Self {
            port,
            dir: tempfile::tempdir().unwrap(),
            child: None,
        };
        redis.run().await;
        redis
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts it, empty.
    pub(crate) async fn run(&mut self) {
        let old = std::fs::remove_file(self.dump_file());
        drop(old);
        self.spawn().await;
    }

    /// Starts it with what it once knew.
    pub(crate) async fn run_with(&mut self, dump: &[u8]) {
        std::fs::write(self.dump_file(), dump).unwrap();
        self.spawn().await;
    }

    /// What it knows now.
    pub(crate) async fn dump(&self) -> Vec<u8> {
        self.command("SAVE").await.unwrap();
        std::fs::read(self.dump_file()).unwrap()
    }

    fn dump_file(&self) -> std::path::PathBuf {
        self.dir.path().join("dump.rdb")
    }

    pub(crate) fn is_up(&self) -> bool {
        self.child.is_some()
    }

    async fn spawn(&mut self) {
        let port = self.port.to_string();
        let child = tokio::process::Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--port", &port, "--dir"])
            .arg(self.dir.path())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        self.child = Some(child.expect("redis-server runs: `./test` installs it"));
        until("Redis answers", async || self.command("PING").await.ok()).await;
    }

    /// Kills it.
    pub(crate) async fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().await.unwrap();
    }

    async fn command(&self, name: &str) -> ::redis::RedisResult<()> {
        let client = ::redis::Client::open(self.url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        ::redis::cmd(name).query_async(&mut connection).await
    }

    pub(crate) async fn flush(&self) {
        self.command("FLUSHALL").await.unwrap();
    }

    /// Holds that so much of each of these keys was lent to someone, until that time.
    pub(crate) async fn has_lent(&self, scene: &Scene, keys: &[KeyId], amount: i64, ends: Micros) {
        let client = ::redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        for keys in keys.chunks(1000) {
            let mut pipe = ::redis::pipe();
            for key in keys {
                let window = format!("{}:{key}", scene.prefix);
                pipe.hset(window, format!("{ends}:7"), amount).ignore();
            }
            pipe.query_async::<()>(&mut connection).await.unwrap();
        }
    }

    /// Whether it holds something of that key.
    pub(crate) async fn holds(&self, scene: &Scene, key: KeyId) -> bool {
        let client = ::redis::Client::open(self.url()).unwrap();
        let connection = client.get_multiplexed_async_connection().await;
        let exists = ::redis::cmd("EXISTS")
            .arg(format!("{}:{key}", scene.prefix))
            .query_async(&mut connection.unwrap())
            .await;
        exists.unwrap()
    }

    /// Whether it holds anything.
    pub(crate) async fn has_something(&self) -> bool {
        self.has_many(1).await
    }

    /// Whether it holds so many windows or more.
    pub(crate) async fn has_many(&self, least: i64) -> bool {
        let client = ::redis::Client::open(self.url()).unwrap();
        let connection = client.get_multiplexed_async_connection().await;
        let size = ::redis::cmd("DBSIZE");
        let size: i64 = size.query_async(&mut connection.unwrap()).await.unwrap();
        size >= least
    }
}

pub(crate) const MINUTE: Micros = 60 * SECOND;
