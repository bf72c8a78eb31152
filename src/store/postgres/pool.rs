//! Connections, and a time limit on everything that is asked over one.
//!
//! Not the driver's pool: a host that goes silent, without a word that it is
//! gone, keeps its statements waiting until the kernel gives up, many minutes
//! later; and the driver asks a connection whether it still works each time it
//! comes back, without a limit, so that one silent connection would keep its place
//! for as long. Here a connection that did not answer in time, or broke, is dropped,
//! and with it all that were idle: what happened to one happened to them. One that
//! answered comes back without being asked again.

use std::{
    io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{TryFutureExt as _, TryStreamExt as _, future::BoxFuture, stream};
use sqlx::{
    ConnectOptions as _, Connection as _, Either, Error, Execute, Executor, SqlStr,
    postgres::{
        PgConnectOptions, PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo, Postgres,
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

type BoxStream<'e, T> = stream::BoxStream<'e, T>;

/// How long a caller waits for a connection, and that for its server.
const ACQUIRE: Duration = Duration::from_secs(5);
/// How long a connection is kept that nobody uses.
const IDLE: Duration = Duration::from_mins(10);
/// How long a connection is used: what its backend caches grows.
const LIFETIME: Duration = Duration::from_mins(30);
/// How long saying goodbye may take.
const CLOSE: Duration = Duration::from_secs(5);
/// When a server that refuses connections is asked again.
const REFUSED_WAIT: Duration = Duration::from_millis(100);

/// Connections to one database; whoever takes one out gives it back by dropping it.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    /// The longest that a statement may take.
    limit: Duration,
}

#[derive(Debug)]
struct Shared {
    options: PgConnectOptions,
    most: u32,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Kept>>,
    /// Counts up whenever a connection was found broken: older ones are not kept.
    generation: AtomicU64,
    closed: AtomicBool,
}

/// A connection that waits for its next use.
#[derive(Debug)]
struct Kept {
    connection: PgConnection,
    made: Instant,
    since: Instant,
    generation: u64,
}

impl Shared {
    fn idle(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that was used last, where one waits that is good.
    fn take(&self) -> Option<Kept> {
        let now = Instant::now();
        let mut idle = self.idle();
        while let Some(kept) = idle.pop() {
            if now - kept.since < IDLE && now - kept.made < LIFETIME {
                return Some(kept);
            }
            tokio::spawn(say_goodbye(kept.connection));
        }
        None
    }

    fn keep(&self, kept: Kept) {
        let mut idle = self.idle();
        let current = self.generation.load(Ordering::Acquire) == kept.generation;
        if current && !self.closed.load(Ordering::Acquire) {
            idle.push(kept);
        }
    }

    fn found_broken(&self) {
        let mut idle = self.idle();
        self.generation.fetch_add(1, Ordering::AcqRel);
        idle.clear();
    }

    async fn connect(&self) -> Result<PgConnection, Error> {
        loop {
            match self.options.connect().await {
                Err(e) if is_starting(&e) => {}
                Ok(mut connection) => match is_writable(&mut connection).await {
                    Ok(true) => return Ok(connection),
                    Ok(false) => {
                        tracing::debug!("the server is a standby: connecting again");
                        drop(connection.close().await);
                    }
                    Err(e) => return Err(e),
                },
                Err(e) => return Err(e),
            }
            tokio::time::sleep(REFUSED_WAIT).await;
        }
    }
}

/// A standby answers, and takes no writes: what stands before the servers has not
/// followed the primary yet.
async fn is_writable(connection: &mut PgConnection) -> Result<bool, Error> {
    sqlx::query_scalar("select not pg_is_in_recovery()")
        .fetch_one(connection)
        .await
}

/// Whether a server has refused to write because it is a standby, or only lets
/// itself be read.
fn is_read_only(error: &Error) -> bool {
    matches!(error, Error::Database(e) if e.code().as_deref() == Some("25006"))
}

/// Whether the server has ended the connection, with a word or without.
fn is_ended(error: &Error) -> bool {
    match error {
        Error::Io(_) => true,
        // "admin shutdown", "crash shutdown"
        Error::Database(e) => matches!(e.code().as_deref(), Some("57P01" | "57P02")),
        _ => false,
    }
}

/// Whether a server that refuses a connection may take it in a moment.
fn is_starting(error: &Error) -> bool {
    match error {
        Error::Io(e) => e.kind() == io::ErrorKind::ConnectionRefused,
        // "cannot connect now"
        Error::Database(e) => e.code().as_deref() == Some("57P03"),
        _ => false,
    }
}

async fn say_goodbye(connection: PgConnection) {
    match timeout(CLOSE, connection.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::debug!(error.message = %e, "a connection was not closed properly"),
        Err(_) => tracing::debug!("a connection was not closed in time"),
    }
}

impl Pool {
    /// A pool of at most so many connections; none is made yet.
    pub(super) fn new(options: PgConnectOptions, most: u32, limit: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                options,
                most,
                permits: Arc::new(Semaphore::new(most as usize)),
                idle: Mutex::default(),
                generation: AtomicU64::new(0),
                closed: AtomicBool::new(false),
            }),
            limit,
        }
    }

    /// The same connections with another limit.
    pub(super) fn within(&self, limit: Duration) -> Self {
        Self {
            shared: self.shared.clone(),
            limit,
        }
    }

    /// Takes a connection out, or makes one.
    pub(super) async fn acquire(&self) -> Result<Held, Error> {
        let until = Instant::now() + ACQUIRE.min(self.limit);
        let permits = self.shared.permits.clone();
        let permit = timeout_at(until, permits.acquire_owned())
            .await
            .map_err(|_| Error::PoolTimedOut)?
            .map_err(|_| Error::PoolClosed)?;
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Error::PoolClosed);
        }
        let kept = if let Some(kept) = self.shared.take() {
            kept
        } else {
            let generation = self.shared.generation.load(Ordering::Acquire);
            let connection = timeout_at(until, self.shared.connect())
                .await
                .map_err(|_| silent("no connection in time"))??;
            let now = Instant::now();
            Kept {
                connection,
                made: now,
                since: now,
                generation,
            }
        };
        Ok(Held {
            kept: Some(kept),
            permit: Some(permit),
            pool: self.clone(),
            busy: false,
            open: false,
        })
    }

    /// A connection for one statement: with the wait for it, it has the limit.
    async fn once(&self) -> Result<Held, Error> {
        let began = Instant::now();
        let mut held = self.acquire().await?;
        held.pool.limit = self.limit.saturating_sub(began.elapsed());
        Ok(held)
    }

    /// A connection outside the pool, without a limit on what it is asked.
    pub(super) async fn connect(&self) -> Result<PgConnection, Error> {
        timeout(ACQUIRE, self.shared.connect())
            .await
            .map_err(|_| silent("no connection in time"))?
    }

    pub(super) async fn begin(&self) -> Result<Transaction<'static>, Error> {
        self.begin_with("begin").await
    }

    pub(super) async fn begin_with(
        &self,
        begin: &'static str,
    ) -> Result<Transaction<'static>, Error> {
        let mut held = self.acquire().await?;
        held.open = true;
        sqlx::raw_sql(begin).execute(&mut held).await?;
        Ok(Transaction(held, PhantomData))
    }

    /// Closes every connection, once those that are out have come back or had
    /// time to. Nothing is taken out after this.
    pub(super) async fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let all = self.shared.permits.acquire_many(self.shared.most);
        if timeout(CLOSE, all).await.is_err() {
            tracing::debug!("statements are still under way while the database is closed");
        }
        self.shared.permits.close();
        let idle = std::mem::take(&mut *self.shared.idle());
        futures_util::future::join_all(idle.into_iter().map(|k| say_goodbye(k.connection))).await;
    }
}

fn silent(what: &'static str) -> Error {
    Error::Io(io::Error::new(io::ErrorKind::TimedOut, what))
}

/// A connection that is out. Dropped in the middle of something it is brought to
/// the end of that first, keeping its place.
#[derive(Debug)]
pub(super) struct Held {
    /// None where it is broken.
    kept: Option<Kept>,
    permit: Option<OwnedSemaphorePermit>,
    pool: Pool,
    /// A statement is under way, or was when its caller stopped waiting.
    busy: bool,
    /// A transaction is open.
    open: bool,
}

impl Held {
    fn start(&mut self) -> Result<&mut PgConnection, Error> {
        self.busy = true;
        match &mut self.kept {
            Some(kept) => Ok(&mut kept.connection),
            None => Err(silent("the connection is broken")),
        }
    }

    /// Notes how a statement ended.
    fn end<T>(
        &mut self,
        ended: Result<Result<T, Error>, tokio::time::error::Elapsed>,
    ) -> Result<T, Error> {
        self.busy = false;
        let result = ended.unwrap_or_else(|_| {
            self.pool.shared.found_broken();
            Err(silent("no answer in time"))
        });
        match &result {
            // A primary that is elsewhere by now, or a server that went: so it is
            // with all the others.
            Err(e) if is_read_only(e) || is_ended(e) => {
                self.pool.shared.found_broken();
                self.kept = None;
            }
            // After an error of another kind it is not known what comes next.
            Err(e) if !matches!(e, Error::Database(_) | Error::RowNotFound) => self.kept = None,
            _ => {}
        }
        result
    }

    /// Brings it back to where a statement can begin.
    async fn settle(connection: &mut PgConnection, open: bool) -> Result<(), Error> {
        connection.ping().await?;
        if open {
            sqlx::raw_sql("rollback").execute(connection).await?;
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(mut kept) = self.kept.take() else {
            return;
        };
        kept.since = Instant::now();
        if !self.busy && !self.open {
            self.pool.shared.keep(kept);
            return;
        }
        let (Some(permit), open, pool) = (self.permit.take(), self.open, self.pool.clone()) else {
            return;
        };
        // Without a runtime the process ends, and the connection with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let settled = Self::settle(&mut kept.connection, open);
                match timeout(pool.limit, settled).await {
                    Ok(Ok(())) => pool.shared.keep(kept),
                    Ok(Err(_)) => {}
                    Err(_) => pool.shared.found_broken(),
                }
                drop(permit);
            });
        }
    }
}

/// A transaction; dropped without a commit it is rolled back.
#[derive(Debug)]
pub(super) struct Transaction<'a>(Held, PhantomData<&'a ()>);

impl Transaction<'_> {
    pub(super) async fn commit(mut self) -> Result<(), Error> {
        sqlx::raw_sql("commit").execute(&mut self.0).await?;
        self.0.open = false;
        Ok(())
    }
}

impl Deref for Transaction<'_> {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.0
    }
}

impl DerefMut for Transaction<'_> {
    fn deref_mut(&mut self) -> &mut Held {
        &mut self.0
    }
}

/// What a statement answers, in order.
type Step = Either<PgQueryResult, PgRow>;

/// Rows are gathered before any is given out: the limit is one on all of them, and
/// every caller gathers them anyway.
async fn all<'q>(
    held: &mut Held,
    query: impl Execute<'q, Postgres> + 'q,
) -> Result<Vec<Step>, Error> {
    let limit = held.pool.limit;
    let steps = held.start()?.fetch_many(query).try_collect();
    let ended = timeout(limit, steps).await;
    held.end(ended)
}

fn each<'e>(
    steps: impl Future<Output = Result<Vec<Step>, Error>> + Send + 'e,
) -> BoxStream<'e, Result<Step, Error>> {
    Box::pin(
        steps
            .map_ok(|steps| stream::iter(steps.into_iter().map(Ok)))
            .try_flatten_stream(),
    )
}

impl<'c> Executor<'c> for &'c mut Held {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        each(all(self, query))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let limit = self.pool.limit;
            let row = self.start()?.fetch_optional(query);
            let ended = timeout(limit, row).await;
            self.end(ended)
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let limit = self.pool.limit;
            let statement = self.start()?.prepare_with(sql, parameters);
            let ended = timeout(limit, statement).await;
            self.end(ended)
        })
    }
}

impl<'p> Executor<'p> for &'p Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        each(async move { all(&mut self.once().await?, query).await })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move { self.once().await?.fetch_optional(query).await })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        Box::pin(async move { self.once().await?.prepare_with(sql, parameters).await })
    }
}
