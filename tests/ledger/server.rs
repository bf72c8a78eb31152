//! `onering serve` as a process of its own, to be killed.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use onering::store::Database;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{
    book::{Interruption, Of},
    egress::{Egress, Sender},
    support::{app::database_url, proxy::Proxy, wait::until},
};

pub(crate) const ADMIN_KEY: &str = "sk_admin_ledger-0123456789abcdef0123";
const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// What a server logs when its session has ended although it runs.
const ENDED: [&str; 2] = ["session is over", "session has ended"];

/// What it logs when it has taken back what a worker had.
const WORKER_GONE: &str = "worker has not come back";
const WORKER_LEFT: &str = "worker disconnected";
const WORKER_FENCED: &str = "worker's deliveries may be another node's";
/// A stream's ends at which its worker keeps what it has, for a while at least.
const KEPT: [&str; 2] = ["connection broken", "replaced"];

/// The command that runs: the one that was built, unless a long run is to keep its own.
pub(crate) fn onering() -> String {
    std::env::var("ONERING_LEDGER_COMMAND")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_onering").to_owned())
}

/// Where a server listens: another port each time that it starts.
pub(crate) type Address = Arc<Mutex<Option<String>>>;

/// What a server is started with.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    pub(crate) database: String,
    pub(crate) redis: Option<String>,
    /// A command that runs the one behind it.
    pub(crate) within: Vec<String>,
    /// What else is set.
    pub(crate) more: Vec<(String, String)>,
}

impl Setup {
    pub(crate) fn of(database: &Database) -> Self {
        Self {
            database: database_url(database),
            ..Self::default()
        }
    }
}

pub(crate) struct Server {
    sender: Sender,
    egress: Egress,
    /// How other nodes reach it.
    pub(crate) way: Proxy,
    setup: Setup,
    child: Option<Child>,
    address: Address,
    log: Arc<Mutex<Vec<Interruption>>>,
}

/// A worker of whom a node has taken back what it had.
fn left(message: &str, entry: &Value) -> Option<Interruption> {
    let worker = Sender::named(entry["worker.id"].as_str()?)?;
    let end = entry["worker.end"].as_str().unwrap_or_default();
    let is_over = message.starts_with(WORKER_GONE)
        || message.starts_with(WORKER_FENCED)
        || message.starts_with(WORKER_LEFT) && !KEPT.contains(&end);
    is_over.then(|| Interruption::now(Of::One(worker), format!("{message} ({end})")))
}

/// A proxy in front of a server, wherever it listens.
pub(crate) async fn way_to(address: &Address) -> Proxy {
    let address = address.clone();
    Proxy::towards(move || {
        let url = address.lock().unwrap().clone()?;
        url.strip_prefix("http://").map(str::to_owned)
    })
    .await
}

impl Server {
    pub(crate) async fn start(setup: Setup, number: u8) -> Self {
        let sender = Sender::Node(number);
        let address = Address::default();
        let mut server = Self {
            sender,
            egress: Egress::of(sender, Duration::ZERO).await,
            way: way_to(&address).await,
            setup,
            child: None,
            address,
            log: Arc::default(),
        };
        server.start_again().await;
        server
    }

    pub(crate) async fn start_again(&mut self) {
        let mut words = self.setup.within.clone();
        words.extend([onering(), "serve".to_owned()]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear();
        if let Some(redis) = &self.setup.redis {
            command.env("ONERING_REDIS_URL", redis);
        }
        let mut child = command
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("ONERING_DATABASE_URL", &self.setup.database)
            .env("ONERING_NODE_NAME", self.sender.name())
            .env("ONERING_EGRESS_PROXY", &self.egress.url)
            .env(
                "ONERING_ADVERTISE_URL",
                format!("http://{}", self.way.address),
            )
            .env("ONERING_MASTER_KEY", MASTER_KEY)
            .env("ONERING_BOOTSTRAP_ADMIN_KEY", ADMIN_KEY)
            .env("ONERING_LISTEN", "127.0.0.1:0")
            .env("ONERING_EXTERNAL_API_ENABLED", "1")
            .env("ONERING_WEBHOOKS_ENABLED", "1")
            .env("ONERING_WEBHOOKS_DELIVERY_ENABLED", "1")
            .env("ONERING_SESSION_SECONDS", "2")
            .env("ONERING_DRAIN_SECONDS", "0")
            // So that what fails for a while does not wait for long.
            .env("ONERING_BREAKER_OPEN_SECONDS", "1")
            .env("ONERING_WEBHOOKS_DELIVERY_LOOP_SECONDS", "1")
            .env("ONERING_ALLOW_HTTP_ENDPOINTS", "1")
            .env("ONERING_ALLOWED_ENDPOINT_CIDRS", "127.0.0.0/8")
            .env("ONERING_LOG", "info")
            .env("ONERING_LOG_FORMAT", "json")
            .envs(self.setup.more.iter().cloned())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (address, log, sender) = (self.address.clone(), self.log.clone(), self.sender);
        let name = sender.name();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(entry) = serde_json::from_str::<Value>(&line) else {
                    eprintln!("{name}: {line}");
                    continue;
                };
                let message = entry["message"].as_str().unwrap_or_default();
                if let Some(at) = entry["server.address"].as_str() {
                    *address.lock().unwrap() = Some(format!("http://{at}"));
                } else if ENDED.iter().any(|m| message.starts_with(m)) {
                    let ended = Interruption::now(Of::One(sender), message);
                    log.lock().unwrap().push(ended);
                } else if let Some(left) = left(message, &entry) {
                    log.lock().unwrap().push(left);
                } else if matches!(entry["level"].as_str(), Some("ERROR")) {
                    eprintln!("{name}: {line}");
                }
            }
        });
        self.child = Some(child);
        until("the server answers", async || {
            self.address.lock().unwrap().clone()
        })
        .await;
    }

    /// Ends it as a power failure would.
    pub(crate) async fn kill(&mut self) {
        *self.address.lock().unwrap() = None;
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
    }

    /// Ends it as a service manager does.
    pub(crate) async fn stop(&mut self) {
        *self.address.lock().unwrap() = None;
        if let Some(mut child) = self.child.take() {
            let id = child.id().unwrap().to_string();
            let asked = Command::new("kill")
                .args(["-s", "TERM", &id])
                .status()
                .await;
            assert!(asked.unwrap().success());
            let ended = tokio::time::timeout(Duration::from_secs(60), child.wait()).await;
            let status = ended.expect("it ends").unwrap();
            assert!(status.success(), "{}: {status}", self.sender.name());
        }
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).expect("it runs")
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) const fn sender(&self) -> Sender {
        self.sender
    }

    pub(crate) fn address(&self) -> Address {
        self.address.clone()
    }

    pub(crate) fn url(&self) -> String {
        self.address.lock().unwrap().clone().expect("it runs")
    }

    /// Sessions that it lost without being killed, such as when the machine is too
    /// busy, and workers of whom it has taken back what they had.
    pub(crate) fn interruptions(&self) -> Vec<Interruption> {
        self.log.lock().unwrap().clone()
    }
}
