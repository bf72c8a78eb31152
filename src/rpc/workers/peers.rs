//! The other nodes, and how to reach them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use crate::{
    metrics::Metrics,
    pipeline::node::Node,
    store::{Peer, Session, Store},
};

/// How often the nodes are read, at least; it is a session's beat where that is shorter.
const POLL: Duration = Duration::from_secs(2);
/// In so many of them the nodes that can't be reached are looked for once.
const POLLS: usize = 8;
/// How long a connection to one may take.
const CONNECT: Duration = Duration::from_secs(3);

/// The other nodes that live, by their sessions.
pub(super) type Others = Arc<HashMap<Session, Other>>;

/// Another node.
#[derive(Clone)]
pub(super) struct Other {
    pub(super) channel: Channel,
    pub(super) term: Arc<Term>,
}

/// How long another node's session surely lasts: what that has leased is nobody
/// else's until then, whether it answers or not.
pub(super) struct Term {
    base: Instant,
    /// Microseconds after `base`.
    until: AtomicU64,
}

impl Term {
    pub(super) fn until(end: Instant) -> Self {
        let term = Self {
            base: Instant::now(),
            until: AtomicU64::new(0),
        };
        term.prolong(end);
        term
    }

    pub(super) fn prolong(&self, end: Instant) {
        let until = end.saturating_duration_since(self.base).as_micros();
        let until = u64::try_from(until).unwrap_or(u64::MAX);
        self.until.store(until, Ordering::Release);
    }

    pub(super) fn stands(&self) -> bool {
        self.base.elapsed() < Duration::from_micros(self.until.load(Ordering::Acquire))
    }
}

/// Follows the other nodes.
pub struct Peers {
    store: Arc<dyn Store>,
    node: Arc<Node>,
    metrics: Arc<Metrics>,
    /// Where this one is reached.
    url: Option<String>,
    others: watch::Sender<Others>,
    /// How many links have failed for a while.
    failing: Mutex<usize>,
}

/// Whether one link works. It counts as working once it is gone.
pub(super) struct Health {
    peers: Arc<Peers>,
    fails: bool,
}

impl Health {
    pub(super) const fn new(peers: Arc<Peers>) -> Self {
        Self {
            peers,
            fails: false,
        }
    }

    pub(super) fn works(&mut self) {
        if std::mem::replace(&mut self.fails, false) {
            self.peers.count(None);
        }
    }

    pub(super) fn fails(&mut self, why: &str) {
        if !std::mem::replace(&mut self.fails, true) {
            self.peers.count(Some(why));
        }
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.works();
    }
}

impl Peers {
    /// None known yet.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        node: Arc<Node>,
        metrics: Arc<Metrics>,
        url: Option<String>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            node,
            metrics,
            url,
            others: watch::Sender::default(),
            failing: Mutex::default(),
        })
    }

    /// Counts a link that fails, or one that does so no more.
    fn count(&self, fails: Option<&str>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let result = if let Some(why) = fails {
            *failing += 1;
            Err(why)
        } else {
            *failing = failing.saturating_sub(1);
            if *failing > 0 {
                return;
            }
            Ok(())
        };
        self.metrics.troubles.note(
            "links",
            &result,
            "workers here get nothing of another node: no stream to it for 5 seconds",
            "workers here have streams to the other nodes again",
        );
    }

    pub(super) fn watch(&self) -> watch::Receiver<Others> {
        self.others.subscribe()
    }

    /// Follows them until it is cancelled.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        if !self.store.is_shared() {
            return;
        }
        let mut told = None;
        let mut open: HashMap<Session, (String, Other)> = HashMap::new();
        let every = POLL.min(self.node.heartbeat());
        let mut hidden = HashMap::new();
        for poll in 1.. {
            let mut result = self.look(&mut told, &mut open).await;
            if result.is_ok() && poll % POLLS == 0 {
                result = self.name_hidden(&open, &mut hidden).await;
            }
            self.metrics.troubles.note(
                "peers",
                &result,
                "the other nodes can't be read",
                "the other nodes are read again",
            );
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
        }
    }

    /// Says once of each other node that workers here can't be linked to it, and at
    /// the second look: one that has begun just now may yet say where it is.
    async fn name_hidden(
        &self,
        open: &HashMap<Session, (String, Other)>,
        hidden: &mut HashMap<Session, usize>,
    ) -> crate::store::Result<()> {
        let own = self.node.session();
        let nodes = self.store.nodes().await?;
        hidden.retain(|session, _| nodes.iter().any(|n| n.session == *session));
        for node in nodes {
            let is_own = node.session == own || node.name == self.node.name();
            if is_own || open.contains_key(&node.session) {
                continue;
            }
            let looks = hidden.entry(node.session).or_default();
            *looks += 1;
            if *looks == 2 {
                tracing::warn!(
                    node.name = node.name, node.session = %node.session,
                    "a node says of no URL: workers here get nothing of it; it takes ONERING_ADVERTISE_URL"
                );
            }
        }
        Ok(())
    }

    async fn look(
        &self,
        told: &mut Option<Session>,
        open: &mut HashMap<Session, (String, Other)>,
    ) -> crate::store::Result<()> {
        let own = self.node.session();
        if let Some(url) = &self.url
            && own.0 != 0
            && *told != Some(own)
        {
            self.store.advertise(own, url).await?;
            *told = Some(own);
        }
        // What the database answers was so at this moment or later.
        let asked = Instant::now();
        let live = self.store.peers().await?;
        let before = open.len();
        open.retain(|session, (url, _)| {
            live.iter().any(|p| p.session == *session && p.url == *url)
        });
        let mut changed = open.len() != before;
        for Peer {
            session,
            url,
            lasts,
        } in live
        {
            // A node that began another session is not its own peer meanwhile.
            if session == own || self.url.as_ref() == Some(&url) {
                continue;
            }
            let end = asked + lasts.saturating_sub(self.node.margin());
            if let Some((_, other)) = open.get(&session) {
                other.term.prolong(end);
                continue;
            }
            match channel(&url) {
                Ok(channel) => {
                    let term = Arc::new(Term::until(end));
                    open.insert(session, (url, Other { channel, term }));
                    changed = true;
                }
                Err(e) => {
                    tracing::warn!(node.url = url, error.message = %e, "a node's URL can't be used");
                }
            }
        }
        if changed {
            let others = open.iter().map(|(s, (_, other))| (*s, other.clone()));
            self.others.send_replace(Arc::new(others.collect()));
        }
        Ok(())
    }
}

fn channel(url: &str) -> Result<Channel, tonic::transport::Error> {
    let mut endpoint = Endpoint::from_shared(url.to_owned())?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5));
    if url.starts_with("https://") {
        endpoint = endpoint.tls_config(ClientTlsConfig::new().with_webpki_roots())?;
    }
    Ok(endpoint.connect_lazy())
}
