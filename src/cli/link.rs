//! A worker's connection to a server, which is opened again whenever it breaks:
//! what the commands that take deliveries share.

use std::{
    collections::HashMap,
    future::Future,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{
    client::{CallError, Connection},
    failed,
    hold::{Hold, Line},
};
use crate::{
    error::Reason,
    proto::v1::{
        ServerMessage, WorkerMessage,
        server_message::{Delivery, Message as Says, Opened, Result as Told},
        worker_message::{
            Ack, AckItem, Action, Credit, Drain, Filter, Lease, Message, Nack, NackItem, Open,
            Outcome, Pong,
        },
        worker_service_client::WorkerServiceClient,
    },
};

/// Without a word from the server for so long, the connection is taken for broken:
/// three pings.
const SILENCE: Duration = Duration::from_secs(15);
/// The first wait before another connection.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long what is under way may take when the command is to stop.
const LAST: Duration = Duration::from_secs(20);
/// The most items of one ack.
const ITEMS: usize = 500;
/// The most that a stream resumes.
const RESUMED: usize = 4096;
/// When to say again what could not be recorded.
const AGAIN: Duration = Duration::from_millis(500);

/// What a worker does with a delivery.
pub(super) trait Handle: Send + Sync + 'static {
    /// Does it, if it is not too late for that when it is begun: what became of it.
    /// None: it was not begun.
    fn handle(
        &self,
        delivery: Delivery,
        hold: Arc<Hold>,
    ) -> impl Future<Output = Option<Outcome>> + Send;
}

/// Which deliveries a worker takes, from where.
#[derive(Clone)]
pub(super) struct Link {
    /// The server.
    pub(super) url: String,
    /// The key to call it with.
    pub(super) key: String,
    /// The worker's name.
    pub(super) worker_id: String,
    /// Which deliveries.
    pub(super) filter: Filter,
    /// How many at once.
    pub(super) concurrency: u16,
    /// How long each may take, in seconds.
    pub(super) lease_seconds: i32,
}

/// Why a connection ended.
enum Ended {
    /// All is done that was to be done.
    Done,
    /// It broke, or could not be opened.
    Broken(String),
    /// The server is about to stop; it says when to come back.
    SentAway(Duration),
    /// The server does not want this worker.
    Refused(CallError),
}

/// A delivery that is being done.
struct Doing {
    token: Vec<u8>,
    hold: Arc<Hold>,
}

/// A delivery that is done, or was not begun.
#[derive(Clone)]
struct Finished {
    id: String,
    token: Vec<u8>,
    outcome: Option<Outcome>,
}

/// A worker between and during its connections.
struct Worker<H> {
    link: Link,
    epoch: i64,
    handler: Arc<H>,
    line: Arc<Line>,
    doing: HashMap<String, Doing>,
    /// What is done, and not known to be recorded.
    unacked: HashMap<String, Finished>,
    tasks: JoinSet<()>,
    done: UnboundedSender<Finished>,
    finished: UnboundedReceiver<Finished>,
    stop: CancellationToken,
}

impl Link {
    /// Works until it is told to stop; then what is under way ends. The command's
    /// exit code.
    pub(super) async fn run<H: Handle>(self, handler: Arc<H>, stop: CancellationToken) -> ExitCode {
        let (done, finished) = mpsc::unbounded_channel();
        let worker = Worker {
            epoch: crate::domain::id::wall_clock(),
            link: self,
            handler,
            line: Line::opening(),
            doing: HashMap::new(),
            unacked: HashMap::new(),
            tasks: JoinSet::new(),
            done,
            finished,
            stop,
        };
        match worker.run().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => e.tell(),
        }
    }
}

impl<H: Handle> Worker<H> {
    async fn run(mut self) -> Result<(), CallError> {
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let ended = self.connected().await;
            // What the server does with it now the next stream tells.
            self.end_holds();
            let wait = match ended {
                Ended::Done => return Ok(()),
                Ended::Refused(e) => return Err(e),
                Ended::SentAway(wait) => wait,
                Ended::Broken(why) => {
                    if began.elapsed() > LONGEST_WAIT {
                        failures = 0;
                    }
                    failures += 1;
                    let wait = backoff(failures);
                    tracing::warn!(
                        server.url = self.link.url, error.message = why, retry_in = ?wait,
                        "connection lost"
                    );
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // What is under way may yet be told to another node.
                () = self.stop.cancelled(), if self.is_idle() => return Ok(()),
            }
            if self.stop.is_cancelled() && (self.is_idle() || failures > 5) {
                return Ok(());
            }
        }
    }

    fn end_holds(&self) {
        self.doing.values().for_each(|doing| doing.hold.end());
    }

    fn is_idle(&self) -> bool {
        self.doing.is_empty() && self.unacked.is_empty()
    }

    /// One connection, from its opening to its end.
    async fn connected(&mut self) -> Ended {
        let (say, said) = mpsc::unbounded_channel();
        let mut hear = match self.connect(&say, said).await {
            Ok(hear) => hear,
            Err(ended) => return ended,
        };
        let mut say = Some(say);
        let mut again = tokio::time::interval(AGAIN);
        let mut away: Option<(Duration, Instant)> = None;
        let mut draining = false;
        let mut leave_by: Option<Instant> = None;
        let mut repeat = true;
        loop {
            let leaving = away.is_some() || draining;
            let late = leave_by.is_some_and(|at| Instant::now() >= at);
            if leaving && (self.is_idle() || late) {
                // Half-closed: the server says its last. What is left it gives back.
                self.end_holds();
                say = None;
            }
            tokio::select! {
                heard = tokio::time::timeout(SILENCE, hear.message()) => match heard {
                    Err(_) => return Ended::Broken("the server is silent".into()),
                    Ok(Ok(Some(message))) => {
                        let Some(since) = self.line.hears(Instant::now()) else {
                            return Ended::Broken("the stream stood still".into());
                        };
                        if let Some(say) = &say {
                            let go = self.hear(message, say, since, &mut repeat);
                            away = go.map(|(wait, by)| (wait, Instant::now() + by)).or(away);
                            leave_by = away.map(|(_, by)| by).or(leave_by);
                        }
                    }
                    Ok(ended) => {
                        if let Some((wait, _)) = away {
                            return Ended::SentAway(wait);
                        }
                        if draining && say.is_none() {
                            return Ended::Done;
                        }
                        return match ended {
                            Ok(_) => Ended::Broken("the server ended the stream".into()),
                            Err(status) => refused(status),
                        };
                    }
                },
                Some(item) = self.finished.recv() => {
                    let mut items = vec![item];
                    while items.len() < ITEMS && let Ok(more) = self.finished.try_recv() {
                        items.push(more);
                    }
                    for item in &items {
                        self.finish(item);
                    }
                    tell_all(say.as_ref(), items);
                }
                _ = again.tick(), if repeat => {
                    repeat = false;
                    tell_all(say.as_ref(), self.unacked.values().cloned().collect());
                }
                () = self.stop.cancelled(), if !draining => {
                    draining = true;
                    leave_by = leave_by.or(Some(Instant::now() + LAST));
                    tell(say.as_ref(), Message::Drain(Drain {}));
                }
                // What is waited for ends by itself.
                () = until(leave_by), if say.is_some() && leaving => {}
                Some(_) = self.tasks.join_next() => {}
            }
        }
    }

    async fn connect(
        &mut self,
        say: &UnboundedSender<WorkerMessage>,
        said: UnboundedReceiver<WorkerMessage>,
    ) -> Result<Streaming<ServerMessage>, Ended> {
        let stop = self.stop.clone();
        let unreached = |e| match e {
            CallError::Unreached(why) => Ended::Broken(why),
            e => Ended::Refused(e),
        };
        let connection = tokio::select! {
            opened = Connection::open(&self.link.url, &self.link.key) => opened.map_err(unreached)?,
            () = stop.cancelled(), if self.is_idle() => return Err(Ended::Done),
        };
        let messages = stream::unfold(said, |mut said| async move {
            let next: WorkerMessage = said.recv().await?;
            Some((next, said))
        });
        let open = Open {
            worker_id: self.link.worker_id.clone(),
            instance_epoch: self.epoch,
            filter: Some(self.link.filter.clone()),
            max_messages: if stop.is_cancelled() {
                0
            } else {
                self.link.concurrency.into()
            },
            max_bytes: 0,
            lease_seconds: self.link.lease_seconds,
            // Also what is done: the server keeps it until it hears of that.
            resume: {
                let doing = self.doing.iter().map(|(id, doing)| (id, &doing.token));
                let done = self.unacked.iter().map(|(id, item)| (id, &item.token));
                let all = doing.chain(done).take(RESUMED).map(|(id, token)| Lease {
                    delivery_id: id.clone(),
                    lease_token: token.clone(),
                });
                all.collect()
            },
        };
        self.line.opens(Instant::now());
        tell(Some(say), Message::Open(open));
        let call = connection.request(messages);
        let answer = WorkerServiceClient::new(connection.channel)
            .stream_deliveries(call)
            .await;
        answer.map(tonic::Response::into_inner).map_err(refused)
    }

    /// Acts on what the server has said since then; when to come back and when to be
    /// gone, where it says that.
    fn hear(
        &mut self,
        message: ServerMessage,
        say: &UnboundedSender<WorkerMessage>,
        since: Instant,
        repeat: &mut bool,
    ) -> Option<(Duration, Duration)> {
        match message.message {
            Some(Says::Opened(opened)) => {
                tracing::info!(
                    server.url = self.link.url,
                    worker.id = self.link.worker_id,
                    worker.session = opened.session_id,
                    deliveries.resumed = opened.resumed.len(),
                    deliveries.lost = opened.lost.len(),
                    "connected"
                );
                self.opened(&opened, since);
            }
            Some(Says::Delivery(delivery)) => self.begin(delivery, since),
            Some(Says::Result(told)) => self.told(&told, repeat),
            // What has left can't be called back; its ack is stale then.
            Some(Says::Revoke(revoke)) => {
                for id in &revoke.delivery_ids {
                    if let Some(doing) = self.doing.get(id) {
                        doing.hold.end();
                    }
                }
                tracing::info!(
                    deliveries.count = revoke.delivery_ids.len(),
                    revoke.reason = revoke.reason().as_str_name(),
                    "deliveries revoked"
                );
            }
            Some(Says::GoAway(go)) => {
                tell(Some(say), Message::Credit(Credit::default()));
                let drain_by = millis(go.drain_by_ms);
                for doing in self.doing.values() {
                    doing.hold.shorten(since + drain_by);
                }
                return Some((millis(go.reconnect_after_ms), drain_by));
            }
            Some(Says::Ping(_)) => tell(Some(say), Message::Pong(Pong {})),
            None => {}
        }
        None
    }

    /// What it still has is the worker's again, where the server says so.
    fn opened(&self, opened: &Opened, since: Instant) {
        let lease = u64::try_from(opened.lease_seconds).unwrap_or_default();
        for id in &opened.resumed {
            if let Some(doing) = self.doing.get(id) {
                doing.hold.resume(since + Duration::from_secs(lease));
            }
        }
    }

    fn begin(&mut self, delivery: Delivery, since: Instant) {
        let (id, token) = (delivery.delivery_id.clone(), delivery.lease_token.clone());
        let hold = Hold::new(self.line.clone(), since + millis(delivery.deadline_in_ms));
        self.unacked.remove(&id);
        let doing = Doing {
            token: token.clone(),
            hold: hold.clone(),
        };
        if let Some(before) = self.doing.insert(id.clone(), doing) {
            before.hold.end();
        }
        let (handler, done) = (self.handler.clone(), self.done.clone());
        self.tasks.spawn(async move {
            let outcome = handler.handle(delivery, hold).await;
            // Nobody hears it where the command ends.
            let _ = done.send(Finished { id, token, outcome });
        });
    }

    /// Notes what became of a delivery: it is told until its result comes.
    fn finish(&mut self, item: &Finished) {
        let own = self.doing.get(&item.id);
        // It may have come again meanwhile, under another lease.
        if own.is_some_and(|doing| doing.token == item.token) {
            self.doing.remove(&item.id);
            self.unacked.insert(item.id.clone(), item.clone());
        }
    }

    fn told(&mut self, told: &Told, repeat: &mut bool) {
        for id in &told.ok {
            self.unacked.remove(id);
        }
        let mut late = 0;
        for id in &told.stale {
            // What was not begun is nobody's loss.
            late += usize::from(self.unacked.remove(id).is_some_and(|i| i.outcome.is_some()));
        }
        if late > 0 {
            tracing::warn!(
                deliveries.count = late,
                "outcomes came too late: these deliveries are somebody else's by now"
            );
        }
        *repeat |= !told.temporary.is_empty();
    }
}

fn tell(say: Option<&UnboundedSender<WorkerMessage>>, message: Message) {
    let message = WorkerMessage {
        message: Some(message),
    };
    if let Some(say) = say {
        // A stream that has ended is heard of where it is read.
        let _ = say.send(message);
    }
}

/// Tells what became of deliveries.
fn tell_all(say: Option<&UnboundedSender<WorkerMessage>>, items: Vec<Finished>) {
    let (mut acks, mut nacks) = (Vec::new(), Vec::new());
    for item in items {
        let (delivery_id, lease_token) = (item.id, item.token);
        match item.outcome {
            Some(outcome) => acks.push(AckItem {
                delivery_id,
                lease_token,
                outcome: Some(outcome),
            }),
            None => nacks.push(NackItem {
                delivery_id,
                lease_token,
                action: Action::Release.into(),
                ..NackItem::default()
            }),
        }
    }
    for items in acks.chunks(ITEMS) {
        let (request_id, items) = (String::new(), items.to_vec());
        tell(say, Message::Ack(Ack { request_id, items }));
    }
    for items in nacks.chunks(ITEMS) {
        let (request_id, items) = (String::new(), items.to_vec());
        tell(say, Message::Nack(Nack { request_id, items }));
    }
}

fn millis(n: i64) -> Duration {
    Duration::from_millis(u64::try_from(n).unwrap_or_default())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Whether the server will ever want this worker.
fn refused(status: Status) -> Ended {
    let for_good = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::NotFound
            | Code::Unimplemented
    );
    let error = crate::error::Error::from(&status);
    // That mode ends, and then the worker is wanted.
    if for_good && error.reason != Reason::CanaryOnlyMode {
        Ended::Refused(status.into())
    } else {
        Ended::Broken(status.message().to_owned())
    }
}

/// The wait before another connection: doubled each time, and half of it by chance,
/// so that many workers don't come back together.
fn backoff(failures: u32) -> Duration {
    let most = FIRST_WAIT
        .saturating_mul(2u32.saturating_pow(failures.min(16) - 1))
        .min(LONGEST_WAIT);
    let mut chance = [0; 2];
    // Without chance all wait as long.
    let _ = getrandom::fill(&mut chance);
    let part = f64::from(u16::from_le_bytes(chance)) / f64::from(u16::MAX);
    most / 2 + (most / 2).mul_f64(part)
}

/// Cancelled at the first SIGINT or SIGTERM; at the second the process ends.
///
/// # Errors
/// Where signals can't be taken over.
pub(super) fn until_signal() -> Result<CancellationToken, ExitCode> {
    let mut signals = super::serve::Signals::listen().map_err(|e| failed(1, &e))?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        signals.stop().await;
        told.cancel();
        signals.stop().await;
        std::process::exit(1);
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    // W5: workers come back with jitter, soon at first, and never wait for long.
    #[test]
    fn waits_grow_and_differ() {
        for (failures, least, most) in [(1, 50, 100), (3, 200, 400), (40, 5000, 10_000)] {
            let waits: Vec<Duration> = (0..50).map(|_| backoff(failures)).collect();
            let range = Duration::from_millis(least)..=Duration::from_millis(most);
            assert!(waits.iter().all(|w| range.contains(w)), "{waits:?}");
            assert!(waits.iter().any(|w| *w != waits[0]));
        }
    }
}
