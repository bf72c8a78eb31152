//! `onering serve` as a process of its own, to be killed.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use onering::store::Database;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{
    book::Interruption,
    support::{app::database_url, wait::until},
};

pub(crate) const ADMIN_KEY: &str = "sk_admin_ledger-0123456789abcdef0123";
const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// What a server logs when its session has ended although it runs.
const ENDED: [&str; 2] = ["session is over", "session has ended"];

/// Where a server listens: another port each time that it starts.
pub(crate) type Address = Arc<Mutex<Option<String>>>;

/// What a server is started with.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    pub(crate) database: String,
    pub(crate) redis: Option<String>,
    /// A command that runs the one behind it.
    pub(crate) within: Vec<String>,
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
    name: String,
    setup: Setup,
    child: Option<Child>,
    address: Address,
    log: Arc<Mutex<Vec<Interruption>>>,
}

impl Server {
    pub(crate) async fn start(setup: Setup, name: &str) -> Self {
        let mut server = Self {
            name: name.to_owned(),
            setup,
            child: None,
            address: Arc::default(),
            log: Arc::default(),
        };
        server.start_again().await;
        server
    }

    pub(crate) async fn start_again(&mut self) {
        let mut words = self.setup.within.clone();
        words.extend([env!("CARGO_BIN_EXE_onering").to_owned(), "serve".to_owned()]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear();
        if let Some(redis) = &self.setup.redis {
            command.env("ONERING_REDIS_URL", redis);
        }
        let mut child = command
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("ONERING_DATABASE_URL", &self.setup.database)
            .env("ONERING_NODE_NAME", &self.name)
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
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (address, log, name) = (self.address.clone(), self.log.clone(), self.name.clone());
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
                    log.lock().unwrap().push(Interruption {
                        at: Instant::now(),
                        what: format!("{name}: {message}"),
                    });
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
            assert!(status.success(), "{}: {status}", self.name);
        }
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).expect("it runs")
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn address(&self) -> Address {
        self.address.clone()
    }

    pub(crate) fn url(&self) -> String {
        self.address.lock().unwrap().clone().expect("it runs")
    }

    /// Sessions that it lost without being killed: a machine that is too busy.
    pub(crate) fn interruptions(&self) -> Vec<Interruption> {
        self.log.lock().unwrap().clone()
    }
}
