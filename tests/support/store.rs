//! A fresh database for each test, on either engine, and a node that works on it.

use std::{
    ops::Deref,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use onering::{
    domain::{
        delivery::{Delivery, Status},
        id::{DAY, DeliveryId, Micros, Part, SubscriptionId},
    },
    store::{
        Database, Finish, Finished, Leased, Page, Publish, Published, Session, Store, StoreError,
        Want, connect,
    },
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, SqliteConnection};

/// The variable that names the server on which tests make their databases.
const SERVER: &str = "ONERING_TEST_POSTGRES_URL";

pub const SECOND: Micros = 1_000_000;
pub const HOUR: Micros = 3600 * SECOND;

/// Longer than any test shifts its clock.
pub const FOR_EVER: Duration = Duration::from_hours(24_000);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Postgres,
    Sqlite,
}

/// Runs a test on a database of its own, which is gone afterwards, also where
/// the test panics.
pub fn run<F: Future<Output = ()>>(engine: Engine, test: impl FnOnce(Db) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let db = Db::create(engine).await;
        let ended = AssertUnwindSafe(test(db.clone())).catch_unwind().await;
        db.destroy().await;
        if let Err(panic) = ended {
            resume_unwind(panic);
        }
    });
}

/// A test's database.
#[derive(Clone)]
pub struct Db(Arc<Inner>);

struct Inner {
    engine: Engine,
    database: Database,
    name: String,
    /// Holds a SQLite file until the test's end.
    _dir: tempfile::TempDir,
    open: Mutex<Vec<Arc<dyn Store>>>,
}

fn server() -> String {
    std::env::var(SERVER).unwrap_or_else(|_| {
        panic!("{SERVER} is not set: run `./test servers`, and export what it prints")
    })
}

/// The server's URL with another database.
fn url_of(name: &str) -> String {
    let mut url = url::Url::parse(&server()).expect("a URL");
    url.set_path(name);
    url.into()
}

async fn on_server(sql: String) {
    let mut connection = PgConnection::connect(&server()).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

impl Db {
    /// An empty database, not yet opened.
    pub async fn create(engine: Engine) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "t{}_{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = tempfile::tempdir().unwrap();
        let database = match engine {
            Engine::Postgres => {
                on_server(format!("create database {name}")).await;
                Database::Postgres(url_of(&name))
            }
            Engine::Sqlite => Database::Sqlite(dir.path().join("onering.db")),
        };
        Self(Arc::new(Inner {
            engine,
            database,
            name,
            _dir: dir,
            open: Mutex::default(),
        }))
    }

    /// A database that is there already, on a server of the test's own.
    pub fn at(url: &str) -> Self {
        Self(Arc::new(Inner {
            engine: Engine::Postgres,
            database: Database::Postgres(url.to_owned()),
            name: String::new(),
            _dir: tempfile::tempdir().unwrap(),
            open: Mutex::default(),
        }))
    }

    /// Another database with the same contents, on PostgreSQL. Nobody may work on
    /// this one meanwhile.
    pub async fn copy(&self) -> Self {
        let name = format!("{}_copy", self.0.name);
        on_server(format!("create database {name} template {}", self.0.name)).await;
        Self(Arc::new(Inner {
            engine: Engine::Postgres,
            database: Database::Postgres(url_of(&name)),
            name,
            _dir: tempfile::tempdir().unwrap(),
            open: Mutex::default(),
        }))
    }

    pub fn engine(&self) -> Engine {
        self.0.engine
    }

    /// Where it is, for a server's configuration.
    pub fn database(&self) -> &Database {
        &self.0.database
    }

    /// Opens a store, which is closed at the test's end.
    pub async fn try_open(&self) -> Result<Arc<dyn Store>, StoreError> {
        let store = connect(&self.0.database).await?;
        self.0.open.lock().unwrap().push(store.clone());
        Ok(store)
    }

    pub async fn open(&self) -> Arc<dyn Store> {
        self.try_open().await.unwrap()
    }

    /// What a second node opens. SQLite is for one process: there it is the
    /// store that is open already.
    pub async fn another(&self) -> Arc<dyn Store> {
        if self.0.engine == Engine::Sqlite
            && let Some(open) = self.0.open.lock().unwrap().last()
        {
            return open.clone();
        }
        self.open().await
    }

    /// Closes every store, as a process that ends does.
    pub async fn close(&self) {
        let open = std::mem::take(&mut *self.0.open.lock().unwrap());
        for store in open {
            store.close().await;
        }
    }

    pub async fn destroy(&self) {
        self.close().await;
        if self.0.engine == Engine::Postgres && !self.0.name.is_empty() {
            on_server(format!("drop database {} with (force)", self.0.name)).await;
        }
    }

    /// Carries out a statement behind the store's back.
    pub async fn tamper(&self, sql: &str) {
        self.texts(sql).await;
    }

    /// As [`tamper`](Self::tamper); what the database said where it refused.
    pub async fn try_tamper(&self, sql: &str) -> Result<(), String> {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.0.database {
            Database::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                let done = sqlx::query(sql).execute(&mut connection).await;
                done.map(drop).map_err(|e| e.to_string())
            }
            Database::Sqlite(path) => {
                let url = format!("sqlite://{}", path.display());
                let mut connection = SqliteConnection::connect(&url).await.unwrap();
                let done = sqlx::query(sql).execute(&mut connection).await;
                done.map(drop).map_err(|e| e.to_string())
            }
        }
    }

    /// The first column, a text, of what a statement behind the store's back answers.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.0.database {
            Database::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows.iter().map(|r| r.get(0)).collect()
            }
            Database::Sqlite(path) => {
                let url = format!("sqlite://{}", path.display());
                let mut connection = SqliteConnection::connect(&url).await.unwrap();
                let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows.iter().map(|r| r.get(0)).collect()
            }
        }
    }

    /// Keeps all others from a table, until what this answers is dropped. Of
    /// PostgreSQL alone: SQLite's readers wait for nobody.
    pub async fn lock_table(&self, table: &str) -> PgConnection {
        let Database::Postgres(url) = &self.0.database else {
            panic!("not on PostgreSQL")
        };
        let mut connection = PgConnection::connect(url).await.unwrap();
        let sql = format!("begin; lock table {table} in access exclusive mode");
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .unwrap();
        connection
    }

    /// Checks that the counters say what a count of the rows does.
    pub async fn counts_agree(&self) {
        let counted = "select cast(part as text) || ' ' || cast(state as text) || ' ' || cast(sum(n) as text)
            from (select part, case what when 0 then 1 else what end as state, n from counters where what < 20
                  union all select part, what as state, n from counter_days) x
            group by part, state having sum(n) <> 0 order by part, state";
        let found = "select cast(part as text) || ' ' || cast(state as text) || ' ' || cast(count(*) as text)
            from (select part, state from queue union all select part, state from dead
                  union all select part, state from done) x
            group by part, state order by part, state";
        assert_eq!(self.texts(counted).await, self.texts(found).await);
    }

    /// A node that owns every partition, on a store of its own.
    pub async fn node(&self) -> Node {
        let store = self.open().await;
        Node::begin(&store).await
    }
}

/// A store with a session.
#[derive(Clone)]
pub struct Node {
    pub store: Arc<dyn Store>,
    pub session: Session,
}

impl Deref for Node {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}

impl Node {
    /// Begins a session without an end, and takes what partitions are free.
    pub async fn begin(store: &Arc<dyn Store>) -> Self {
        let node = Self::idle(store, FOR_EVER).await;
        node.take_all().await;
        node
    }

    /// Takes every partition that is free; all that it owns now.
    pub async fn take_all(&self) -> Vec<Part> {
        let all: Vec<Part> = Part::all().collect();
        self.take_partitions(self.session, &all).await.unwrap()
    }

    /// Begins a session that owns nothing.
    pub async fn idle(store: &Arc<dyn Store>, ttl: Duration) -> Self {
        Self {
            store: store.clone(),
            session: store.begin_session("test", ttl).await.unwrap(),
        }
    }

    /// Publishes. Where an event asks for no lease, what its answer says of one
    /// means nothing, and is false here.
    pub async fn publish(&self, batch: &[Publish]) -> Vec<Published> {
        let mut answers = self.store.publish(self.session, batch).await.unwrap();
        for (event, answer) in batch.iter().zip(&mut answers) {
            if let Published::Accepted { leased } = answer {
                *leased &= event.deliveries.iter().any(|d| d.lease);
            }
        }
        answers
    }

    pub async fn publish_one(&self, event: &Publish) -> Published {
        self.publish(std::slice::from_ref(event)).await[0]
    }

    /// Publishes what must be accepted; the ids of its deliveries.
    pub async fn accept(&self, event: &Publish) -> Vec<DeliveryId> {
        let published = self.publish_one(event).await;
        assert!(
            matches!(published, Published::Accepted { .. }),
            "{published:?}"
        );
        event.deliveries.iter().map(|d| d.id).collect()
    }

    pub async fn claim(&self, subscription: SubscriptionId, limit: i64) -> Vec<Leased> {
        let want = Want {
            part: subscription.part(),
            subscription,
            limit,
        };
        self.store.claim(self.session, &[want]).await.unwrap()
    }

    /// Claims what must be exactly one delivery.
    pub async fn claim_one(&self, subscription: SubscriptionId) -> Leased {
        let mut leased = self.claim(subscription, 10).await;
        assert_eq!(leased.len(), 1, "{leased:?}");
        leased.remove(0)
    }

    pub async fn finish(&self, finish: &Finish) -> Finished {
        self.store
            .finish(std::slice::from_ref(finish))
            .await
            .unwrap()[0]
    }

    /// Finishes under a lease that must hold.
    pub async fn finish_now(&self, finish: &Finish) {
        assert_eq!(self.finish(finish).await, Finished::Now, "{finish:?}");
    }

    pub async fn delivery(&self, id: DeliveryId) -> Delivery {
        let found = self.get_delivery(id).await.unwrap();
        found.unwrap_or_else(|| panic!("{id} is lost"))
    }

    pub async fn status(&self, id: DeliveryId) -> Status {
        self.delivery(id).await.status
    }

    /// Ids and tokens that the session holds, in order.
    pub async fn held(&self) -> Vec<(DeliveryId, i32)> {
        let mut held = self.leases(self.session).await.unwrap();
        held.sort_unstable();
        held
    }

    pub async fn pass(&self, time: Micros) {
        self.shift_clock(time).await.unwrap();
    }

    pub async fn pass_days(&self, days: i64) {
        self.pass(days * DAY).await;
    }
}

/// The newest rows, all that a test can have made.
pub fn everything<Id>() -> Page<Id> {
    Page {
        before: None,
        limit: 10_000,
    }
}

pub fn page<Id>(before: Option<Id>, limit: i64) -> Page<Id> {
    Page { before, limit }
}
