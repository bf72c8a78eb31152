//! Nodes, their partitions and what they tell each other; how far the database has come.

use std::time::Duration;

use async_trait::async_trait;

use super::{Result, Session};
use crate::domain::{
    id::{Micros, Part, SubscriptionId},
    timeline::Timeline,
};

/// Nodes and which partitions they own.
#[async_trait]
pub trait NodeStore: Send + Sync {
    /// Begins a session that lives for `ttl` unless it is renewed.
    async fn begin_session(&self, name: &str, ttl: Duration) -> Result<Session>;

    /// Renews a session; false where it has ended already.
    async fn renew_session(&self, session: Session, ttl: Duration) -> Result<bool>;

    /// Ends a session: its partitions are without an owner, and then its leases
    /// free.
    async fn end_session(&self, session: Session) -> Result<()>;

    /// Notes whether partitions may be handed over to a session; not at its
    /// beginning. Tells the other nodes ([`Hint::Partitions`]).
    async fn set_ready(&self, session: Session, ready: bool) -> Result<()>;

    /// Every partition, with the live session that owns it; session 0 where
    /// there is none.
    async fn partitions(&self) -> Result<Vec<(Part, Session)>>;

    /// Takes those of these partitions that no live session owns, and frees what
    /// their last owners held. Answers all that the session owns now.
    async fn take_partitions(&self, session: Session, among: &[Part]) -> Result<Vec<Part>>;

    /// Hands partitions that the session owns over to another one, and tells it
    /// ([`Hint::Partitions`]); which ones: none where either of them has ended.
    /// What is leased in them stays leased to whom it is.
    async fn hand_over(&self, session: Session, to: Session, parts: &[Part]) -> Result<Vec<Part>>;

    /// Begins or ends the time in which deliveries of these partitions are held
    /// on purpose. Doing it twice changes nothing.
    async fn hold(&self, session: Session, parts: &[Part], held: bool) -> Result<()>;

    /// Notes which revision of the configuration a node has in force, and which
    /// switches its environment pins, with commas between them. Nothing of a
    /// session that has ended.
    async fn confirm(&self, session: Session, revision: i64, pins: &str) -> Result<()>;

    /// Every session that lives, in the order in which they began.
    async fn nodes(&self) -> Result<Vec<LiveNode>>;

    /// Tells the owners of partitions that subscriptions have something due. A
    /// hint: it may be lost.
    async fn hint(&self, hints: &[(Part, SubscriptionId)]) -> Result<()>;

    /// Waits for hints. [`Hint::Reconnected`] means that some may be lost.
    async fn listen(&self) -> Result<Box<dyn Hints>>;
}

/// How far the database has come, so that one that went back in time is known.
#[async_trait]
pub trait TimelineStore: Send + Sync {
    /// How far it has come.
    async fn timeline(&self) -> Result<Timeline>;

    /// The database's clock.
    async fn now(&self) -> Result<Micros>;

    /// The server that it runs on, as far as that tells it from a copy; empty where
    /// nothing tells.
    async fn server(&self) -> Result<String>;

    /// Moves the mark on: to the database's clock where that is later, else by one.
    /// Notes the server where none is noted.
    async fn advance_timeline(&self) -> Result<Timeline>;

    /// Notes why deliveries are held, unless something is noted already.
    async fn note_restored(&self, why: &str) -> Result<()>;

    /// Begins another timeline, now and on the server that it runs on: deliveries are
    /// no longer held.
    async fn accept_restored(&self) -> Result<Timeline>;
}

/// A session that lives, and what its node noted last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveNode {
    /// The session.
    pub session: Session,
    /// The node's name.
    pub name: String,
    /// The revision that it has in force; 0 where it noted none.
    pub revision: i64,
    /// The switches that its environment pins, with commas between them.
    pub pins: String,
    /// Whether partitions may be handed over to it.
    pub ready: bool,
}

/// A node that lives, as the others reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its session.
    pub session: Session,
    /// Its URL.
    pub url: String,
    /// How long the session lasts unless it is renewed.
    pub lasts: Duration,
}

/// Where nodes reach each other.
#[async_trait]
pub trait PeerStore: Send + Sync {
    /// Notes under which URL other nodes reach that session's node. Nothing of a
    /// session that has ended.
    async fn advertise(&self, session: Session, url: &str) -> Result<()>;

    /// Every session that lives and has a URL, in the order in which they began.
    async fn peers(&self) -> Result<Vec<Peer>>;
}

/// What a node is told by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// A subscription has something due.
    Due(Part, SubscriptionId),
    /// The configuration changed.
    Config,
    /// Nodes or the partitions that they own changed.
    Partitions,
    /// The connection was lost in between.
    Reconnected,
}

/// A stream of hints.
#[async_trait]
pub trait Hints: Send {
    /// The next hint.
    async fn next(&mut self) -> Result<Hint>;
}
