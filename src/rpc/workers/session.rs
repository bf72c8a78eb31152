//! One worker's stream, from `open` to its end. Nothing here waits for the worker:
//! what it does not take waits in a queue that its window bounds.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use super::{
    PATH,
    hear::Said,
    held::{Held, HeldJob},
    lease::{self, Holder},
    link::{self, Far, News},
    links::Links,
    opening::{Opening, Window},
    pace::Pace,
    peers::Others,
    queue::Queue,
    roster::{HandOver, Roster, Seated},
};
use crate::{
    caller::Caller,
    domain::{
        delivery::Outcome,
        id::{DeliveryId, Micros},
    },
    error::{Error, Reason},
    pipeline::{Job, Taker, Told, dispatch::Completion, is_too_old, sender::Envelope},
    proto::v1::{
        ServerMessage, WorkerMessage,
        server_message::{self as says, Message},
        worker_message,
    },
    rpc::Context,
    store::Session as NodeSession,
    target::Target,
};

/// How often a worker is asked whether it lives.
const PING: Duration = Duration::from_secs(5);
/// How long it has to answer.
const PONG: Duration = Duration::from_secs(10);
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How often the key is looked at, as it ends by itself too.
const LOOK_AT_KEY: Duration = Duration::from_secs(1);
/// How long other nodes may take to say what they resume.
const OTHERS: Duration = Duration::from_millis(1500);
/// Messages that wait for the connection.
const AHEAD: usize = 32;
/// Items whose results are not known yet, beyond which no more are heard.
const UNKNOWN: usize = 8192;
/// How long after a worker's last word its connection must still be there for that
/// to have been one.
const HANG_UP: Duration = Duration::from_millis(200);
/// How long results are waited for after the worker has said its last.
const LAST_RESULTS: Duration = Duration::from_secs(10);
/// The longest that a stop waits for a worker.
const LONGEST_DRAIN: Duration = Duration::from_secs(30);

/// What goes to the worker.
pub(super) type Outbound = mpsc::Sender<Result<ServerMessage, Status>>;

/// An ack, a nack or an extension whose result is not whole yet.
pub(super) struct Question {
    pub(super) result: says::Result,
    pub(super) waiting: usize,
}

/// Why a stream ends.
enum End {
    /// The worker has said its last, or the node stops: what it has is given back.
    Over,
    /// It does what it may not, its key is gone, or it is silent.
    Refused(Error),
    /// The connection broke: it may come back.
    Broken(Option<Error>),
    /// Another stream of the worker's has what it had.
    Replaced,
}

/// A worker's stream.
pub(super) struct Session {
    pub(super) context: Context,
    pub(super) roster: Arc<Roster>,
    pub(super) caller: Caller,
    pub(super) holder: Holder,
    taker: Taker,
    pub(super) number: u64,
    pub(super) held: Held,
    /// What it has of other nodes.
    pub(super) links: Links,
    news: mpsc::UnboundedSender<(NodeSession, News)>,
    /// What its `open` said, for other nodes.
    pub(super) asked_for: worker_message::Open,
    pub(super) window: Window,
    pub(super) lease: Duration,
    queue: Queue,
    pace: Pace,
    pub(super) questions: HashMap<u64, Question>,
    /// Which item of which question is asked under that number.
    pub(super) asked: HashMap<u64, (u64, String)>,
    /// What was passed on to other nodes, as it would be recorded here.
    pub(super) passed_on: HashMap<u64, (Job, Said)>,
    pub(super) next_number: u64,
    pub(super) answers: mpsc::UnboundedSender<(u64, Told)>,
    pub(super) draining: bool,
    heard: Instant,
    pinged: Option<Instant>,
    next_ping: Instant,
    next_look: Instant,
    /// How much of what it has is in the metrics.
    shown: usize,
    /// When it is told to go, and when what it has left is given back.
    going: Option<(Instant, Instant)>,
    told_to_go: bool,
    /// When the worker said its last.
    said_last: Option<Instant>,
    /// Whether another stream of the worker's is open, at another node.
    pub(super) replaced: bool,
}

/// What a session begins with.
pub(super) struct Beginning {
    pub(super) context: Context,
    pub(super) roster: Arc<Roster>,
    pub(super) caller: Caller,
    pub(super) opening: Opening,
    pub(super) seated: Seated,
}

/// Serves a worker until its stream ends.
pub(super) async fn serve(
    beginning: Beginning,
    mut inbound: Streaming<WorkerMessage>,
    outbound: Outbound,
) {
    let Beginning {
        context,
        roster,
        caller,
        opening,
        seated,
    } = beginning;
    let Seated {
        number,
        held,
        mut hand_over,
    } = seated;
    let (answers, mut answered) = mpsc::unbounded_channel();
    let (news, from_links) = mpsc::unbounded_channel();
    let now = Instant::now();
    let mut session = Session {
        context: context.clone(),
        roster: roster.clone(),
        caller,
        holder: opening.holder,
        taker: opening.taker,
        number,
        held,
        links: Links::new(from_links),
        news,
        asked_for: opening.open,
        window: opening.window,
        lease: opening.lease,
        queue: Queue::new(),
        pace: Pace::new(now),
        questions: HashMap::new(),
        asked: HashMap::new(),
        passed_on: HashMap::new(),
        next_number: 0,
        answers,
        draining: false,
        heard: now,
        pinged: None,
        next_ping: now + PING,
        next_look: now + LOOK_AT_KEY,
        shown: 0,
        going: None,
        told_to_go: false,
        said_last: None,
        replaced: false,
    };
    let mut others = context.peers.watch();
    session.begin(opening.resume, &mut others).await;
    let end = session
        .run(
            &mut inbound,
            &outbound,
            &mut answered,
            &mut hand_over,
            &mut others,
        )
        .await;
    session.end(end, &outbound, hand_over);
}

impl Session {
    async fn begin(
        &mut self,
        resume: Vec<worker_message::Lease>,
        others: &mut watch::Receiver<Others>,
    ) {
        let (mut resumed, mut elsewhere) = (Vec::new(), Vec::new());
        let mut before = std::mem::take(&mut self.held);
        for item in resume {
            let Some(job) = self.leased(&item.delivery_id, &item.lease_token) else {
                elsewhere.push((item, false));
                continue;
            };
            match before.remove(job.id, job.token) {
                Some(mut held) => {
                    held.deadline = Instant::now() + self.lease;
                    self.held.insert(held);
                    resumed.push(item.delivery_id);
                }
                None => elsewhere.push((item, true)),
            }
        }
        self.asked_for.resume = elsewhere
            .iter()
            .filter(|(_, sound)| *sound)
            .map(|(item, _)| item.clone())
            .collect();
        self.follow(others);
        let found = self.found_elsewhere().await;
        let lost = elsewhere
            .into_iter()
            .map(|(item, _)| echo(item.delivery_id))
            .filter(|id| !found.contains(id))
            .collect::<Vec<_>>();
        resumed.extend(found);
        self.asked_for.resume.clear();
        // What it does not name it does not know of.
        self.roster.give_back(&mut before);
        let most = self.window.messages.max(1);
        let taker = self.taker.clone();
        self.context
            .dispatcher
            .serve(self.number, Some((taker, most)));
        tracing::info!(
            worker.id = self.holder.worker, worker.session = self.number, key.id = %self.holder.key,
            deliveries.resumed = resumed.len(), deliveries.lost = lost.len(),
            "worker connected"
        );
        self.say(Message::Opened(says::Opened {
            session_id: format!("{}-{}", self.context.node.session(), self.number),
            lease_seconds: i32::try_from(self.lease.as_secs()).unwrap_or(i32::MAX),
            resumed,
            lost,
        }));
    }

    /// Opens a stream to each other node that lives, and ends those to nodes that
    /// are gone. Who comes through a node is that node's to serve.
    fn follow(&mut self, others: &mut watch::Receiver<Others>) {
        if self.caller.is_through_node() {
            return;
        }
        let live = others.borrow_and_update().clone();
        for node in self.links.nodes() {
            if !live.contains_key(&node) {
                let (gone, unanswered) = self.links.remove(node);
                self.not_answered(unanswered);
                self.taken_back(gone, says::RevokeReason::Session.into());
            }
        }
        let known = self.links.nodes();
        for (node, other) in live.iter().filter(|(node, _)| !known.contains(node)) {
            let open = worker_message::Open {
                max_messages: 0,
                ..self.asked_for.clone()
            };
            let link = link::begin(Far {
                node: *node,
                channel: other.channel.clone(),
                keyring: self.context.keyring.clone(),
                peers: self.context.peers.clone(),
                key: self.holder.key,
                open,
                news: self.news.clone(),
            });
            self.links.add(*node, link, other.term.clone());
        }
    }

    /// What other nodes resume of what the worker has. They are waited for also where
    /// it has nothing: a stream of this session's to one of them that opened later
    /// would take the seat there from the worker's next one.
    async fn found_elsewhere(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let resumes = !self.asked_for.resume.is_empty();
        let mut away = HashSet::new();
        let end = tokio::time::Instant::now() + OTHERS;
        while self.links.is_waited_for(&away)
            && let Ok(Some((node, news))) =
                tokio::time::timeout_at(end, self.links.news.recv()).await
        {
            match &news {
                News::Opened(resumed) => {
                    found.extend(resumed.iter().map(|lease| lease.delivery_id.clone()));
                }
                News::Broken if !resumes => {
                    away.insert(node);
                }
                _ => {}
            }
            self.learn(node, news);
        }
        found
    }

    async fn run(
        &mut self,
        inbound: &mut Streaming<WorkerMessage>,
        outbound: &Outbound,
        answered: &mut mpsc::UnboundedReceiver<(u64, Told)>,
        hand_over: &mut mpsc::Receiver<HandOver>,
        others: &mut watch::Receiver<Others>,
    ) -> End {
        let mut work = self.context.dispatcher.stream_work();
        let mut configuration = self.context.directory.watch();
        let stopping = self.context.monitor.stopping();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.fill(&mut work);
            if self.is_done() {
                return End::Over;
            }
            if self.replaced {
                // That one may yet ask for what this one has.
                return End::Broken(Some(taken_over()));
            }
            let now = Instant::now();
            let later = self.pace.next(now);
            let hears = self.said_last.is_none() && !self.is_full() && later.is_none();
            tokio::select! {
                next = hand_over.recv() => {
                    if let Some(next) = next {
                        self.go_away(Duration::ZERO, Duration::ZERO);
                        let held = std::mem::take(&mut self.held);
                        self.roster.give(next, held);
                        return End::Replaced;
                    }
                }
                room = outbound.reserve(), if !self.queue.is_empty() => match room {
                    Ok(room) => if let Some(message) = self.queue.pop() {
                        self.roster.metrics.worker_messages_out.increment(1);
                        room.send(Ok(ServerMessage { message: Some(message) }));
                    },
                    Err(_) => return self.broken(None),
                },
                message = inbound.message(), if hears => match message {
                    Ok(Some(message)) => {
                        self.heard = Instant::now();
                        self.roster.metrics.worker_messages_in.increment(1);
                        if let Some(message) = message.message {
                            self.pace.hear(&message, self.heard);
                            if let Err(e) = self.hear(message) {
                                return End::Refused(e);
                            }
                        }
                    }
                    Ok(None) => {
                        self.said_last = Some(Instant::now());
                        if self.draining {
                            self.roster.give_back(&mut self.held);
                        }
                    }
                    Err(status) => return self.broken(Some(unreadable(&status))),
                },
                Some((number, told)) = answered.recv() => self.told(number, told),
                Some((node, news)) = self.links.news.recv() => self.learn(node, news),
                Ok(()) = others.changed() => self.follow(others),
                _ = work.changed(), if self.wants_more() => {}
                () = tokio::time::sleep_until(later.unwrap_or(now).into()), if later.is_some() => {}
                _ = configuration.changed() => {
                    self.look_at_held();
                    if let Err(e) = self.look_at_key() {
                        return End::Refused(e);
                    }
                }
                _ = ticks.tick() => if let Err(e) = self.tick() {
                    return End::Refused(e);
                },
                () = stopping.cancelled(), if self.going.is_none() => self.stop(),
                () = outbound.closed() => return self.broken(None),
            }
        }
    }

    /// After its last word a worker may hang up. A call that is cancelled looks like
    /// a last word at first: unless it said that it would go it may come back.
    fn broken(&self, error: Option<Error>) -> End {
        if self.said_last.is_some() && self.held.is_empty() {
            End::Over
        } else {
            End::Broken(error)
        }
    }

    fn end(mut self, end: End, outbound: &Outbound, hand_over: mpsc::Receiver<HandOver>) {
        self.context.dispatcher.serve(self.number, None);
        let held = std::mem::take(&mut self.held);
        self.show();
        if matches!(end, End::Over | End::Refused(_)) {
            self.links.leave();
        }
        let why = match &end {
            End::Over => "over".to_owned(),
            End::Refused(e) => e.to_string(),
            End::Broken(_) => "connection broken".to_owned(),
            End::Replaced => "replaced".to_owned(),
        };
        tracing::info!(
            worker.id = self.holder.worker,
            worker.session = self.number,
            deliveries.held = held.len(),
            worker.end = why,
            "worker disconnected"
        );
        let seated = Seated {
            number: self.number,
            held,
            hand_over,
        };
        let error = match end {
            End::Over => {
                self.roster.leave(&self.holder, seated);
                None
            }
            End::Refused(e) => {
                self.roster.leave(&self.holder, seated);
                Some(e)
            }
            End::Broken(e) => {
                self.roster.lose(&self.holder, seated);
                e
            }
            End::Replaced => Some(taken_over()),
        };
        // What was still to be said goes as far as there is room.
        while let Some(message) = self.queue.pop() {
            let message = Some(message);
            if outbound.try_send(Ok(ServerMessage { message })).is_err() {
                break;
            }
        }
        if let Some(e) = error {
            let _ = outbound.try_send(Err(e.into()));
        }
    }

    pub(super) fn say(&mut self, message: Message) {
        self.queue.push(message);
    }

    fn is_full(&self) -> bool {
        self.asked.len() >= UNKNOWN || self.queue.is_full()
    }

    fn wants_more(&self) -> bool {
        self.room().is_some()
    }

    /// How many deliveries and bytes the worker can have beyond what it has; none:
    /// nothing more.
    fn room(&self) -> Option<(usize, usize)> {
        if self.draining || self.going.is_some() || self.said_last.is_some() {
            return None;
        }
        let has = self.held.len() + self.links.len();
        let bytes = self.held.bytes() + self.links.bytes();
        let messages = self.window.messages.checked_sub(has).filter(|n| *n > 0)?;
        // One that is larger than the window comes alone.
        if has == 0 {
            return Some((messages, usize::MAX));
        }
        let bytes = self.window.bytes.checked_sub(bytes).filter(|n| *n > 0)?;
        Some((messages, bytes))
    }

    fn is_done(&self) -> bool {
        let nothing_left = self.queue.is_empty() && self.asked.is_empty();
        if let Some(at) = self.said_last {
            return self.held.is_empty() && (nothing_left || at.elapsed() > LAST_RESULTS);
        }
        match self.going {
            Some((_, end)) if Instant::now() >= end => true,
            Some(_) => {
                self.told_to_go && nothing_left && self.held.is_empty() && self.links.len() == 0
            }
            None => false,
        }
    }

    /// Hands out as much as the window and the connection take.
    fn fill(&mut self, work: &mut watch::Receiver<()>) {
        // What is told from now on is heard.
        work.borrow_and_update();
        while self.queue.len() < AHEAD {
            let Some((_, most)) = self.room() else { break };
            // What other nodes have sent is leased already.
            if let Some(delivery) = self.links.next(Some(most)) {
                self.say(Message::Delivery(delivery));
                continue;
            }
            let Some((job, target)) = self.context.dispatcher.take(&self.taker, most) else {
                break;
            };
            self.hand_out(job, &target);
        }
        let room = self
            .room()
            .map(|(messages, bytes)| (messages, bytes.min(self.window.bytes)));
        self.links.lend(room, self.window);
    }

    fn hand_out(&mut self, mut job: Job, target: &Target) {
        let not_sent = |job, outcome, reason: &str| Completion {
            job,
            outcome,
            reason: reason.into(),
            attempt: None,
        };
        if is_too_old(&job, target) {
            let end = not_sent(job, Outcome::TooOld, "max_age_exceeded");
            return self.context.dispatcher.complete(end);
        }
        let signed_at = (self.roster.clock)();
        let envelope = match Envelope::seal(&job, target, signed_at) {
            Ok(envelope) => envelope,
            Err(e) => {
                tracing::error!(delivery.id = %job.id, error.message = e, "delivery can't be built");
                let end = not_sent(job, Outcome::Permanent, "bad_request");
                return self.context.dispatcher.complete(end);
            }
        };
        let delivery = self.delivery(&job, target, envelope, signed_at);
        // It may have come from another node before.
        self.links.forget(&delivery.delivery_id);
        let bytes = job.body.len();
        // It is in the message, and not needed any more.
        job.body = bytes::Bytes::new();
        self.held.insert(HeldJob {
            job,
            deadline: Instant::now() + self.lease,
            bytes,
        });
        self.say(Message::Delivery(delivery));
    }

    fn delivery(
        &self,
        job: &Job,
        target: &Target,
        envelope: Envelope,
        signed_at: Micros,
    ) -> says::Delivery {
        let s = &target.subscription;
        let millis = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let headers = envelope.headers.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            (name.as_str().to_owned(), value.into_owned())
        });
        let trace = job.trace.as_ref();
        let span = trace.and_then(|t| t.context.as_ref());
        says::Delivery {
            delivery_id: job.id.to_string(),
            event_id: job.event.to_string(),
            lease_token: lease::seal(&self.context.keyring, &self.holder, job).to_vec(),
            attempt: i32::from(job.attempts) + 1,
            deadline_in_ms: millis(self.lease),
            ordering_key: job.ordering_key.as_deref().unwrap_or_default().to_owned(),
            url: s.url.clone(),
            headers: headers.collect(),
            body: envelope.body,
            signature: Some(says::Signature {
                timestamp: signed_at.div_euclid(1_000_000),
                x_webhook_signature: envelope.signed.x_webhook_signature,
                webhook_signature: envelope.signed.webhook_signature,
                expires_in_ms: millis(self.context.live.load().replay_window),
            }),
            tenant_id: job.tenant.to_string(),
            traceparent: span
                .map_or_else(String::new, |c| c.of_attempt(job.id, job.token).to_string()),
            tracestate: trace.map_or_else(String::new, |t| t.state.clone()),
            subscription_id: job.subscription.to_string(),
            event_type: job.event_type.to_string(),
            timeout_seconds: number(s.timeout),
        }
    }

    /// What a lease's token says, where it was given to this worker.
    pub(super) fn leased(&self, id: &str, token: &[u8]) -> Option<Job> {
        let id: DeliveryId = id.parse().ok()?;
        lease::open(&self.context.keyring, &self.holder, id, token)
    }

    fn tick(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let late = self.held.take_if(|held| held.deadline <= now);
        self.revoke(late, says::RevokeReason::Deadline);
        if self.said_last.is_some_and(|at| now >= at + HANG_UP) {
            self.roster.give_back(&mut self.held);
        }
        self.fence();
        self.show();
        if now >= self.next_look {
            self.look_at_key()?;
        }
        self.links.look(self.window.messages);
        self.links
            .return_late(self.room().is_none() && self.draining);
        if let Some((at, end)) = self.going
            && now >= at
            && !self.told_to_go
        {
            self.told_to_go = true;
            // Each has another time: they don't all come at once to the next node.
            let spread = Duration::from_millis(self.number.wrapping_mul(397) % 2000);
            self.go_away(spread, end.saturating_duration_since(now));
        }
        self.ping(now)
    }

    /// Brings the metrics to what it has.
    fn show(&mut self) {
        let has = self.held.len();
        let gauge = &self.roster.metrics.worker_deliveries;
        gauge.increment(has as f64 - std::mem::replace(&mut self.shown, has) as f64);
    }

    /// Takes back what may be another node's by now, its own and what came from others.
    pub(super) fn fence(&mut self) {
        let lapsed = self.links.take_lapsed();
        self.taken_back(lapsed, says::RevokeReason::Session.into());
        let node = &self.context.node;
        let (session, is_alive) = (node.session(), node.is_alive());
        let lost = self
            .held
            .take_if(|held| !is_alive || held.job.session != session);
        if !lost.is_empty() {
            tracing::warn!(
                worker.id = self.holder.worker,
                deliveries.count = lost.len(),
                "worker's deliveries may be another node's and are taken back"
            );
        }
        self.revoke(lost, says::RevokeReason::Session);
    }

    /// Whether the worker may still do what it does.
    fn look_at_key(&mut self) -> Result<(), Error> {
        self.next_look = Instant::now() + LOOK_AT_KEY;
        self.context.gate.may_go_on(PATH, &self.caller)
    }

    fn ping(&mut self, now: Instant) -> Result<(), Error> {
        if self.said_last.is_some() {
            return Ok(());
        }
        // While it is not listened to, its silence means nothing.
        if self.is_full() || self.pinged.is_some_and(|at| self.heard >= at) {
            self.pinged = None;
        }
        if self.pinged.is_some_and(|at| now >= at + PONG) {
            return Err(silent("no pong within 10 seconds"));
        }
        if self.queue.is_full() && self.queue.stands(now) >= PONG {
            return Err(silent("nothing was read for 10 seconds"));
        }
        if now >= self.next_ping {
            self.next_ping = now + PING;
            self.pinged.get_or_insert(now);
            self.say(Message::Ping(says::Ping {}));
        }
        Ok(())
    }

    /// Takes back what may not be sent any more.
    fn look_at_held(&mut self) {
        let directory = &self.context.directory;
        if !directory.switches().delivery {
            let all = self.held.take_all();
            return self.revoke(all, says::RevokeReason::SwitchedOff);
        }
        let off = self.held.take_if(|held| {
            directory
                .target(held.job.subscription)
                .is_none_or(|t| t.subscription.disabled.is_some())
        });
        self.revoke(off, says::RevokeReason::Subscription);
    }

    fn revoke(&mut self, jobs: Vec<Job>, reason: says::RevokeReason) {
        if jobs.is_empty() {
            return;
        }
        self.say(Message::Revoke(says::Revoke {
            delivery_ids: jobs.iter().map(|job| job.id.to_string()).collect(),
            reason: reason.into(),
        }));
        for job in jobs {
            self.context.dispatcher.give_back(job);
        }
    }

    /// The node stops: nothing more is handed out, and the worker is told to go,
    /// one worker after the other.
    fn stop(&mut self) {
        let now = Instant::now();
        let patience = (self.roster.shutdown * 3 / 4).min(LONGEST_DRAIN);
        let stagger = Duration::from_millis(self.number % 20 * 50).min(patience / 4);
        self.going = Some((now + stagger, now + patience));
    }

    fn go_away(&mut self, reconnect_after: Duration, drain_by: Duration) {
        let millis = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        self.say(Message::GoAway(says::GoAway {
            reconnect_after_ms: millis(reconnect_after),
            drain_by_ms: millis(drain_by),
        }));
    }
}

/// Not how a stream ends that was replaced: who is cut off may come back.
fn silent(why: &str) -> Error {
    Error::new(Reason::WorkerSilent, why)
}

fn taken_over() -> Error {
    Error::new(
        Reason::FailedPrecondition,
        "another stream of this worker has taken over",
    )
}

/// As much of what the worker sent as is repeated.
pub(super) fn echo(mut id: String) -> String {
    if id.len() > 64 {
        id = id.chars().take(64).collect();
    }
    id
}

/// What is told of a message that can't be read.
fn unreadable(status: &Status) -> Error {
    let error = Error::new(
        Reason::InvalidArgument,
        format!("not a message: {}", status.message()),
    );
    tracing::debug!(error.message = status.message(), "worker's stream broke");
    error
}
