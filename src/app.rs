//! The composition root: the one place that knows every module. Builds a node
//! from its settings, and takes it down again in order.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use zeroize::Zeroizing;

use crate::{
    connector::{self, Connector},
    directory::{Directory, Freshness},
    domain::{
        id::{KeyId, Part, wall_clock},
        key::{self, ADMIN_PREFIX, Key, Kind, NotAKey, SCOPE_ADMIN, Status},
    },
    health::Health,
    limiter::{self, Limiter},
    metrics::Metrics,
    monitor::Monitor,
    pipeline::{
        self, Pipeline,
        clients::Clients,
        node::Node,
        sender::{Clock, Sender},
        timeline,
    },
    rest::Rest,
    rpc::{
        self, Context,
        gate::{self, Gate},
        workers::{Peers, Roster},
    },
    seal::Keyring,
    server::{self, Front},
    settings::{Live, Settings},
    store::{self, Database, Store, StoreError},
    tasks::Tasks,
    usage::Usage,
    witness::Witness,
};

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is missing or can't be used.
    #[error("{0}")]
    Settings(String),
    /// The store can't be used.
    #[error("the store can't be opened: {0}")]
    Store(#[from] StoreError),
    /// The master key is another's.
    #[error(transparent)]
    Seal(#[from] crate::seal::SealError),
    /// The address is taken.
    #[error("can't listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
}

/// Puts something between a node and its store.
pub type Around = Arc<dyn Fn(Arc<dyn Store>) -> Arc<dyn Store> + Send + Sync>;

/// What tests replace.
pub struct Outside {
    /// The wall clock that signatures are made and checked with.
    pub clock: Clock,
    /// Resolves receivers' names.
    pub resolver: connector::Resolver,
    /// What the node takes for its store, given the one that it opened.
    pub store: Around,
}

impl Default for Outside {
    fn default() -> Self {
        Self {
            clock: Arc::new(wall_clock),
            resolver: connector::system_resolver(),
            store: Arc::new(|store| store),
        }
    }
}

/// A running node.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    /// What its services share.
    pub context: Context,
    pipeline: Pipeline,
    server: Tasks,
    tasks: Tasks,
    stop: server::Stop,
    background: CancellationToken,
    drain: Duration,
    shutdown: Duration,
}

/// The database of these settings: the one that is named, else a file in the
/// data folder.
#[must_use]
pub fn database(settings: &Settings) -> Database {
    settings
        .database
        .clone()
        .unwrap_or_else(|| Database::Sqlite(data_dir(settings).join("onering.db")))
}

/// The data folder: the one that is named, else the user's.
#[must_use]
pub fn data_dir(settings: &Settings) -> PathBuf {
    settings.data_dir.clone().unwrap_or_else(|| {
        let base = std::env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| {
                let home = std::env::var_os("HOME")?;
                Some(PathBuf::from(home).join(".local/share"))
            });
        base.unwrap_or_else(|| PathBuf::from(".")).join("onering")
    })
}

/// Where it is noted how far the database has come: beside SQLite's file, else in
/// the data folder that is named, and in Redis.
#[must_use]
pub fn witness(settings: &Settings) -> Witness {
    let folder = match database(settings) {
        Database::Sqlite(path) => path.parent().map(PathBuf::from),
        Database::Postgres(_) => settings.data_dir.clone(),
    };
    Witness::new(folder, settings.redis.as_deref())
}

impl App {
    /// Starts a node; it answers calls when this returns.
    ///
    /// # Errors
    /// Where a setting, the store or the address can't be used.
    pub async fn start(settings: Settings, outside: Outside) -> Result<Self, StartError> {
        let master = settings.master_key.as_ref().ok_or_else(|| {
            StartError::Settings(
                "ONERING_MASTER_KEY is not set: it seals secrets at rest (`onering keys master` prints one)"
                    .into(),
            )
        })?;
        let acceptor = settings.tls.as_ref().map(server::tls).transpose();
        let acceptor = acceptor.map_err(StartError::Settings)?;
        let store = (outside.store)(store::connect(&database(&settings)).await?);
        store.prepare_days().await?;
        let keyring = Arc::new(Keyring::open(&*store, master).await?);
        let metrics = Arc::new(Metrics::new());
        let live = Arc::new(ArcSwap::from_pointee(settings.live.clone()));
        bootstrap(&settings, &*store, &keyring).await?;
        let directory = Directory::load(
            store.clone(),
            keyring.clone(),
            live.clone(),
            metrics.clone(),
        )
        .await?;
        let connector = Connector::new(
            live.clone(),
            outside.resolver,
            settings.egress_proxy.clone(),
        );
        let tls =
            connector::Tls::new(&settings, connector.clone()).map_err(StartError::Settings)?;
        let clock = outside.clock.clone();
        let sender = Arc::new(Sender::new(Clients::new(tls), live.clone(), outside.clock));
        // The address is taken before the session is begun: of two nodes with
        // one address the second must not take partitions and die.
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|e| StartError::Listen(settings.listen, e))?;
        let address = listener
            .local_addr()
            .map_err(|e| StartError::Listen(settings.listen, e))?;
        let node = Arc::new(Node::new(
            store.clone(),
            metrics.clone(),
            settings.node_name.clone(),
            settings.session,
        ));
        let witness = witness(&settings);
        if witness.is_none() {
            tracing::warn!(
                "nothing outside the database notes how far it has come: a backup that is \
                 restored on the same server would send what it has queued. Set \
                 ONERING_DATA_DIR to a folder that lasts, or ONERING_REDIS_URL"
            );
        }
        let watch =
            timeline::Watch::begin(store.clone(), node.clone(), witness, metrics.clone()).await?;
        let watch = Arc::new(watch);
        node.begin().await?;

        let tasks = Tasks::new();
        let (stop, background) = (server::Stop::default(), CancellationToken::new());
        tasks.spawn("directory", directory.clone().run(background.clone()));
        tasks.spawn("timeline", watch.clone().run(background.clone()));
        tasks.spawn("key uses", directory.clone().keep_uses(background.clone()));
        let pipeline = Pipeline::start(
            pipeline::Parts {
                store: store.clone(),
                directory: directory.clone(),
                live: live.clone(),
                node: node.clone(),
                watch,
                metrics: metrics.clone(),
                sender: sender.clone(),
                poll: settings.delivery_loop,
                concurrency: settings.concurrency,
                embedded: settings.embedded_worker,
            },
            &tasks,
        );
        let of_limiter = node.clone();
        let limiter = Limiter::start(
            limiter::Parts {
                store: store.clone(),
                session: Arc::new(move || of_limiter.session()),
                redis: settings.redis.clone(),
                metrics: metrics.clone(),
                outside: limiter::Outside::default(),
            },
            &tasks,
            &background,
        )
        .await?;
        let usage = Arc::new(Usage::load(&*store).await?);
        tasks.spawn(
            "usage",
            usage
                .clone()
                .run(store.clone(), metrics.clone(), background.clone()),
        );
        let rest = Rest::new().map_err(|e| StartError::Settings(e.to_string()))?;
        let parts = gate::Parts {
            directory: directory.clone(),
            live: live.clone(),
            metrics: metrics.clone(),
            limiter: limiter.clone(),
            usage: usage.clone(),
        };
        let gate = Arc::new(Gate::new(parts, &rest).map_err(StartError::Settings)?);
        let rest = Arc::new(rest);
        let monitor = Monitor::new(store.clone(), stop.serving.clone());
        tasks.spawn(
            "monitor",
            monitor.clone().run(metrics.clone(), background.clone()),
        );
        let peers = Peers::new(
            store.clone(),
            node.clone(),
            metrics.clone(),
            settings.advertise_url.clone(),
        );
        tasks.spawn("peers", peers.clone().run(background.clone()));
        let context = Context {
            connector,
            peers,
            store,
            directory: directory.clone(),
            keyring,
            live: live.clone(),
            limiter,
            usage,
            gate: gate.clone(),
            monitor,
            publisher: pipeline.publisher.clone(),
            sender,
            dispatcher: pipeline.dispatcher.clone(),
            workers: Roster::new(
                pipeline.dispatcher.clone(),
                metrics.clone(),
                settings.shutdown,
                clock,
            ),
            node: node.clone(),
            rest: rest.clone(),
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        let grpc = rpc::routes(&context, health).map_err(StartError::Settings)?;
        tasks.spawn(
            "health",
            report_health(
                reporter,
                directory.clone(),
                node.clone(),
                background.clone(),
                stop.leaving.clone(),
            ),
        );
        let deep = Health::new(
            context.store.clone(),
            directory.clone(),
            node.clone(),
            context.limiter.clone(),
            metrics.clone(),
            stop.leaving.clone(),
        );
        let front = Front::new(context.clone(), gate, rest, grpc, metrics, deep)
            .map_err(StartError::Settings)?;
        let server = tasks.beside();
        server.spawn(
            "server",
            server::serve(
                Arc::new(front),
                listener,
                acceptor,
                settings.shutdown,
                stop.clone(),
            ),
        );
        tracing::info!(
            server.address = %address, server.tls = settings.tls.is_some(),
            store.database = ?database(&settings), "serving"
        );
        Ok(Self {
            address,
            context,
            pipeline,
            server,
            tasks,
            stop,
            background,
            drain: settings.drain,
            shutdown: settings.shutdown,
        })
    }

    /// Applies what of new settings can change while the server runs.
    pub fn reload(&self, live: Live) {
        self.context.live.store(Arc::new(live));
        self.context.directory.settings_changed();
    }

    /// Background tasks that have ended: those that had nothing to do.
    #[must_use]
    pub fn ended_tasks(&self) -> Vec<&'static str> {
        [self.tasks.ended(), self.server.ended()].concat()
    }

    /// Cancelled where a task of the node's broke: it must be stopped.
    #[must_use]
    pub fn broken(&self) -> CancellationToken {
        self.tasks.broken()
    }

    /// Stops in order: health says so, connections are told, and partitions handed
    /// over; no new calls; calls under way end; attempts under way end or are given
    /// back; outcomes are recorded; the session ends.
    pub async fn stop(self) {
        self.stop.leaving.cancel();
        tokio::join!(tokio::time::sleep(self.drain), self.pipeline.leave());
        self.stop.serving.cancel();
        self.server
            .join(self.shutdown + Duration::from_secs(1))
            .await;
        self.pipeline.drain(self.shutdown).await;
        self.background.cancel();
        self.tasks.join(Duration::from_secs(5)).await;
        self.pipeline.end_session().await;
        self.context.store.close().await;
        tracing::info!("stopped");
    }
}

/// Makes the first admin key of an empty store, if the settings name one.
async fn bootstrap(
    settings: &Settings,
    store: &dyn Store,
    keyring: &Keyring,
) -> Result<(), StartError> {
    let Some(text) = &settings.bootstrap_key else {
        return Ok(());
    };
    let key = first_admin_key(text, keyring);
    match store.create_first_admin_key(&key).await {
        Ok(()) => tracing::info!(key.id = %key.id, "first admin key made"),
        Err(StoreError::Exists(_)) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

/// An unbound admin key that keeps the text it was given.
#[must_use]
pub fn first_admin_key(text: &str, keyring: &Keyring) -> Key {
    let now = wall_clock();
    let (id, secret, whole_text) = match key::parse(text) {
        Ok(parsed) if parsed.kind == Kind::Admin => (parsed.id, parsed.secret, false),
        _ => (
            KeyId::new(now, Part::new(0)),
            Zeroizing::new(text.to_owned()),
            true,
        ),
    };
    Key {
        id,
        tenant: None,
        kind: Kind::Admin,
        name: "bootstrap".into(),
        tier: String::new(),
        scopes: vec![SCOPE_ADMIN.into()],
        canary: false,
        rate_limit_per_hour: None,
        allowed_cidrs: Vec::new(),
        expires_at: None,
        metadata: Vec::new(),
        status: Status::Active,
        secret: keyring.hash(&secret),
        previous: None,
        whole_text,
        created_at: now,
        updated_at: now,
    }
}

/// Checks a bootstrap key's text: `sk_admin_` and at least 24 more characters. One
/// of the form of a made key must be one.
///
/// # Errors
/// With what it takes.
pub fn check_bootstrap_key(text: &str) -> Result<(), String> {
    let fits = text.strip_prefix(ADMIN_PREFIX).is_some_and(|rest| {
        (24..=256).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_graphic())
    });
    if !fits {
        return Err(
            "ONERING_BOOTSTRAP_ADMIN_KEY: takes `sk_admin_` and 24 to 256 more characters".into(),
        );
    }
    // No caller could be told apart from one with a mistyped key.
    if matches!(key::parse(text), Err(NotAKey::Malformed)) {
        return Err(
            "ONERING_BOOTSTRAP_ADMIN_KEY: begins like a key that OneRing has made, and is not one: \
             its checksum or its length is wrong"
                .into(),
        );
    }
    Ok(())
}

/// Says over `grpc.health.v1` whether calls are answered: not while the store is
/// gone, and not while the node stops.
async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    directory: Arc<Directory>,
    node: Arc<Node>,
    background: CancellationToken,
    leaving: CancellationToken,
) {
    let mut told = None;
    loop {
        let well =
            !leaving.is_cancelled() && directory.freshness() == Freshness::Fresh && node.is_alive();
        if told != Some(well) {
            told = Some(well);
            let status = if well {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            for service in std::iter::once("").chain(rpc::SERVICES) {
                reporter.set_service_status(service, status).await;
            }
            tracing::info!(health.serving = well, "health changed");
        }
        tokio::select! {
            () = background.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}
