//! `onering worker` as a process of its own, connected to one node through a proxy.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{
    book::{Interruption, Of},
    egress::{Egress, Sender},
    server::{ADMIN_KEY, Server, onering, way_to},
    support::proxy::Proxy,
};

/// What a worker logs when its stream has ended, or deliveries were taken back.
const ENDED: [&str; 2] = ["connection lost", "deliveries revoked"];

pub(crate) struct Remote {
    sender: Sender,
    egress: Egress,
    /// Between it and its node.
    pub(crate) way: Proxy,
    concurrency: usize,
    child: Option<Child>,
    log: Arc<Mutex<Vec<Interruption>>>,
}

impl Remote {
    /// One of a node. What a slow one sends takes its time.
    pub(crate) async fn start(node: &Server, number: u8, slow: bool) -> Self {
        let sender = Sender::Worker(number);
        let (concurrency, late) = if slow {
            (2, Duration::from_millis(200))
        } else {
            (20, Duration::ZERO)
        };
        let mut remote = Self {
            sender,
            egress: Egress::of(sender, late).await,
            way: way_to(&node.address()).await,
            concurrency,
            child: None,
            log: Arc::default(),
        };
        remote.start_again();
        remote
    }

    pub(crate) fn start_again(&mut self) {
        let mut child = Command::new(onering())
            .args(["worker", "--id", &self.sender.name()])
            .args(["--connect", &format!("http://{}", self.way.address)])
            .args(["--concurrency", &self.concurrency.to_string()])
            .env_clear()
            .env("ONERING_ADMIN_KEY", ADMIN_KEY)
            .env("ONERING_EGRESS_PROXY", &self.egress.url)
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
        let (sender, log) = (self.sender, self.log.clone());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let entry: Value = serde_json::from_str(&line).unwrap_or_default();
                let message = entry["message"].as_str().unwrap_or(&line);
                if ENDED.contains(&message) {
                    let why = ["error.message", "revoke.reason"].map(|k| entry[k].as_str());
                    let why = why.into_iter().flatten().next().unwrap_or_default();
                    let ended = Interruption::now(Of::One(sender), format!("{message}: {why}"));
                    log.lock().unwrap().push(ended);
                } else if !matches!(entry["level"].as_str(), Some("INFO" | "WARN")) {
                    eprintln!("{}: {line}", sender.name());
                }
            }
        });
        self.child = Some(child);
    }

    pub(crate) async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
    }

    /// Stops it, or has it go on.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.as_ref().and_then(Child::id).expect("it runs");
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &id.to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Fails where it has ended by itself.
    pub(crate) fn still_runs(&mut self) {
        if let Some(child) = &mut self.child {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{}: {ended:?}", self.sender.name());
        }
    }

    pub(crate) const fn sender(&self) -> Sender {
        self.sender
    }

    /// When its stream was lost, or what it had.
    pub(crate) fn interruptions(&self) -> Vec<Interruption> {
        self.log.lock().unwrap().clone()
    }
}
