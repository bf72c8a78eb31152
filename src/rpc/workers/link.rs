//! One worker's stream to another node, over the same protocol: what that node has
//! for the worker comes through here. It is opened again while the node lives.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use super::peers::{Health, Peers};
use crate::{
    domain::id::{KeyId, wall_clock},
    proto::v1::{
        ServerMessage, WorkerMessage,
        server_message::{Delivery, Message as Says, Result as Told},
        worker_message::{Drain, Lease, Message, Open, Pong},
        worker_service_client::WorkerServiceClient,
    },
    seal::Keyring,
    store::Session,
};

/// Without a word for so long the node is taken for gone.
const SILENCE: Duration = Duration::from_secs(12);
/// The first wait before another stream, and the longest.
const WAITS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];
/// What came over a stream that broke is the worker's for as long as the node keeps it.
const KEPT: Duration = Duration::from_secs(5);
/// How long the node may take to say its last.
const LAST: Duration = Duration::from_secs(2);

/// What a link tells its session.
pub(super) enum News {
    /// The node has answered: what it resumed.
    Opened(Vec<Lease>),
    /// A delivery.
    Delivery(Box<Delivery>),
    /// The result of what was asked.
    Result(Told),
    /// What the worker does not have any more, and why.
    Revoked(Vec<String>, i32),
    /// What was asked and not answered won't be.
    Broken,
    /// The worker has another stream: this link's session is not the worker's any
    /// more.
    Replaced,
}

/// A link, as its session has it. Dropped, its stream is cancelled.
pub(super) struct Link {
    pub(super) say: UnboundedSender<WorkerMessage>,
}

/// What a link needs.
pub(super) struct Far {
    pub(super) node: Session,
    pub(super) channel: Channel,
    pub(super) keyring: Arc<Keyring>,
    pub(super) peers: Arc<Peers>,
    pub(super) key: KeyId,
    /// How it opens its streams, with what the worker has already.
    pub(super) open: Open,
    pub(super) news: UnboundedSender<(Session, News)>,
}

/// Begins a link.
pub(super) fn begin(far: Far) -> Link {
    let (say, said) = mpsc::unbounded_channel();
    tokio::spawn(far.run(said));
    Link { say }
}

/// Why a stream ended.
enum End {
    /// The session has ended.
    Over,
    /// The node went away, or takes no stream, as it says here.
    Broken(String),
    /// The node stops, and has given back what the worker had.
    Gone,
    /// Another stream of the worker's has taken over.
    Replaced,
}

impl Far {
    async fn run(self, mut said: UnboundedReceiver<WorkerMessage>) {
        let mut holding: HashMap<String, Vec<u8>> = HashMap::new();
        let mut open = self.open.clone();
        let mut wait = WAITS[0];
        let mut broken_at: Option<Instant> = None;
        let mut health = Health::new(self.peers.clone());
        loop {
            let began = Instant::now();
            let end = self
                .stream(&mut open, &mut said, &mut holding, &mut health)
                .await;
            let why = match end {
                End::Over => return,
                // To come back would take the seat from that one.
                End::Replaced => return self.tell(News::Replaced),
                End::Broken(why) => Some(why),
                End::Gone => None,
            };
            if began.elapsed() > KEPT {
                (wait, broken_at) = (WAITS[0], None);
            }
            self.tell(News::Broken);
            let late = broken_at.get_or_insert_with(Instant::now).elapsed() > KEPT;
            if let Some(why) = why.as_ref().filter(|_| late) {
                health.fails(why);
            }
            if (why.is_none() || late) && !holding.is_empty() {
                let lost = holding.drain().map(|(id, _)| id).collect();
                self.revoked(lost);
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.news.closed() => return,
            }
            wait = (wait * 2).min(WAITS[1]);
            let mut unheard = false;
            while let Ok(message) = said.try_recv() {
                note(&message, &mut open, &mut holding);
                unheard = true;
            }
            if unheard {
                // It was said to nobody, and nobody else will answer it.
                self.tell(News::Broken);
            }
            if said.is_closed() {
                return;
            }
            open.resume = holding
                .iter()
                .map(|(id, token)| Lease {
                    delivery_id: id.clone(),
                    lease_token: token.clone(),
                })
                .collect();
        }
    }

    fn tell(&self, news: News) {
        // The session may have ended.
        let _ = self.news.send((self.node, news));
    }

    fn revoked(&self, ids: Vec<String>) {
        use crate::proto::v1::server_message::RevokeReason;
        self.tell(News::Revoked(ids, RevokeReason::Session.into()));
    }

    async fn connect(
        &self,
        say: UnboundedReceiver<WorkerMessage>,
    ) -> Result<Streaming<ServerMessage>, Status> {
        let messages = stream::unfold(say, |mut said| async move {
            let next: WorkerMessage = said.recv().await?;
            Some((next, said))
        });
        let credential = self.keyring.node_credential(self.key, wall_clock());
        let mut request = Request::new(messages);
        let value = format!("Bearer {credential}")
            .parse()
            .map_err(|_| Status::internal("no credential"))?;
        request.metadata_mut().insert("authorization", value);
        let answer = WorkerServiceClient::new(self.channel.clone())
            .stream_deliveries(request)
            .await?;
        Ok(answer.into_inner())
    }

    async fn stream(
        &self,
        open: &mut Open,
        said: &mut UnboundedReceiver<WorkerMessage>,
        holding: &mut HashMap<String, Vec<u8>>,
        health: &mut Health,
    ) -> End {
        let (say, saying) = mpsc::unbounded_channel();
        let tell = |message| {
            let message = Some(message);
            let _ = say.send(WorkerMessage { message });
        };
        tell(Message::Open(open.clone()));
        let connected = tokio::select! {
            connected = tokio::time::timeout(SILENCE, self.connect(saying)) => connected,
            // To go on would take the seat from the worker's next stream.
            () = self.news.closed() => return End::Over,
        };
        let mut hear = match connected {
            Ok(Ok(hear)) => hear,
            Ok(Err(e)) => {
                tracing::debug!(node.session = %self.node, error.message = e.message(), "no stream to a node");
                return End::Broken(e.message().to_owned());
            }
            Err(_) => return End::Broken("no answer".to_owned()),
        };
        let (mut leaving, mut going) = (false, false);
        loop {
            tokio::select! {
                heard = tokio::time::timeout(SILENCE, hear.message()) => {
                    let message = match heard {
                        Ok(Ok(Some(message))) => message,
                        Ok(Err(e)) if e.code() == Code::FailedPrecondition => return End::Replaced,
                        _ if going => return End::Gone,
                        Ok(Err(e)) => return End::Broken(e.message().to_owned()),
                        Ok(Ok(None)) => return End::Broken("it has ended".to_owned()),
                        Err(_) => return End::Broken("no answer".to_owned()),
                    };
                    if matches!(message.message, Some(Says::Opened(_))) {
                        health.works();
                    }
                    match message.message {
                        Some(Says::Ping(_)) => tell(Message::Pong(Pong {})),
                        // Its stream ends soon; what is left then is not the worker's.
                        Some(Says::GoAway(_)) => going = true,
                        Some(message) => self.hear(message, open, holding),
                        None => {}
                    }
                }
                message = said.recv() => {
                    let Some(message) = message else { break };
                    leaving |= matches!(message.message, Some(Message::Drain(_)));
                    note(&message, open, holding);
                    let _ = say.send(message);
                }
            }
        }
        // Without this the node keeps what the worker had, for another stream.
        if leaving {
            tell(Message::Drain(Drain {}));
            drop(say);
            let last = async { while let Ok(Some(_)) = hear.message().await {} };
            // The node gives everything back without a word too.
            let _ = tokio::time::timeout(LAST, last).await;
        }
        End::Over
    }

    fn hear(&self, message: Says, open: &Open, holding: &mut HashMap<String, Vec<u8>>) {
        match message {
            Says::Opened(opened) => {
                let ids: HashSet<String> = opened.resumed.into_iter().collect();
                let named = open.resume.iter();
                let resumed: Vec<Lease> = named
                    .filter(|lease| ids.contains(&lease.delivery_id))
                    .cloned()
                    .collect();
                for lease in &resumed {
                    holding.insert(lease.delivery_id.clone(), lease.lease_token.clone());
                }
                let lost: Vec<String> = opened
                    .lost
                    .into_iter()
                    .filter(|id| holding.remove(id).is_some())
                    .collect();
                if !lost.is_empty() {
                    self.revoked(lost);
                }
                self.tell(News::Opened(resumed));
            }
            Says::Delivery(delivery) => {
                holding.insert(delivery.delivery_id.clone(), delivery.lease_token.clone());
                self.tell(News::Delivery(Box::new(delivery)));
            }
            Says::Result(told) => self.tell(News::Result(told)),
            Says::Revoke(revoke) => {
                for id in &revoke.delivery_ids {
                    holding.remove(id);
                }
                self.tell(News::Revoked(revoke.delivery_ids, revoke.reason));
            }
            Says::GoAway(_) | Says::Ping(_) => {}
        }
    }
}

/// Keeps what another stream would be opened with.
fn note(message: &WorkerMessage, open: &mut Open, holding: &mut HashMap<String, Vec<u8>>) {
    match &message.message {
        Some(Message::Credit(credit)) => {
            (open.max_messages, open.max_bytes) = (credit.messages, credit.bytes);
        }
        Some(Message::Ack(ack)) => {
            for item in &ack.items {
                holding.remove(&item.delivery_id);
            }
        }
        Some(Message::Nack(nack)) => {
            for item in &nack.items {
                holding.remove(&item.delivery_id);
            }
        }
        _ => {}
    }
}
