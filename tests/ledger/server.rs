//! `onering serve` as a process of its own, to be killed.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::Instant,
};

use onering::store::Database;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{book::Interruption, support::wait::until};

pub(crate) const ADMIN_KEY: &str = "sk_admin_ledger-0123456789abcdef0123";
const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Where a server listens: another port each time that it starts.
pub(crate) type Address = Arc<Mutex<Option<String>>>;

pub(crate) struct Server {
    name: String,
    database: String,
    child: Option<Child>,
    address: Address,
    log: Arc<Mutex<Vec<Interruption>>>,
}

impl Server {
    pub(crate) async fn start(database: &Database, name: &str) -> Self {
        let database = match database {
            Database::Postgres(url) => url.clone(),
            Database::Sqlite(path) => format!("sqlite://{}", path.display()),
        };
        let mut server = Self {
            name: name.to_owned(),
            database,
            child: None,
            address: Arc::default(),
            log: Arc::default(),
        };
        server.start_again().await;
        server
    }

    pub(crate) async fn start_again(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onering"));
        let mut child = command
            .arg("serve")
            .env_clear()
            .env("ONERING_DATABASE_URL", &self.database)
            .env("ONERING_NODE_NAME", &self.name)
            .env("ONERING_MASTER_KEY", MASTER_KEY)
            .env("ONERING_BOOTSTRAP_ADMIN_KEY", ADMIN_KEY)
            .env("ONERING_LISTEN", "127.0.0.1:0")
            .env("ONERING_EXTERNAL_API_ENABLED", "1")
            .env("ONERING_WEBHOOKS_ENABLED", "1")
            .env("ONERING_WEBHOOKS_DELIVERY_ENABLED", "1")
            .env("ONERING_SESSION_SECONDS", "2")
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
                } else if message.starts_with("session") && entry["level"] == "WARN" {
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
