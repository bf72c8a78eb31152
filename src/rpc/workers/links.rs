//! What a worker has of other nodes, and how much more those may send it. Each
//! node's window is part of the worker's: it grows where much comes and shrinks
//! where nothing does. What comes beyond the worker's own window waits here for a
//! moment, and goes back.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedReceiver;

use super::{
    link::{Link, News},
    opening::Window,
    peers::Term,
};
use crate::{
    proto::v1::{
        WorkerMessage,
        server_message::Delivery,
        worker_message::{
            Ack, AckItem, Action, Credit, Drain, Extend, Lease, Message, Nack, NackItem,
        },
    },
    store::Session,
};

/// How long a delivery waits for room in the worker's window.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is asked without an answer being waited for.
pub(super) const UNASKED: &str = "";

/// What is told to a node of one delivery.
pub(super) enum Word {
    Ack(AckItem),
    Nack(NackItem),
    Extend(Lease, i32),
}

/// A delivery of another node's that the worker has.
struct Far {
    node: Session,
    token: Vec<u8>,
    bytes: usize,
}

/// A link, with its window.
struct Line {
    link: Link,
    term: Arc<Term>,
    /// How many it may have under way to the worker beyond what that has of it.
    ahead: usize,
    /// What it brought since its window was last looked at.
    came: usize,
    /// The window as it was last told.
    told: Option<Credit>,
    answered: bool,
}

/// All of a worker's links.
pub(super) struct Links {
    lines: HashMap<Session, Line>,
    pub(super) news: UnboundedReceiver<(Session, News)>,
    has: HashMap<String, Far>,
    bytes: usize,
    waiting: VecDeque<(Instant, Session, Delivery)>,
    /// Items that were told to a node, by the message's id: their numbers and ids.
    asked: HashMap<(Session, String), Vec<(u64, String)>>,
    words: Vec<(Session, u64, String, Word)>,
    last: u64,
}

impl Links {
    pub(super) fn new(news: UnboundedReceiver<(Session, News)>) -> Self {
        Self {
            lines: HashMap::new(),
            news,
            has: HashMap::new(),
            bytes: 0,
            waiting: VecDeque::new(),
            asked: HashMap::new(),
            words: Vec::new(),
            last: 0,
        }
    }

    /// Deliveries of other nodes that the worker has.
    pub(super) fn len(&self) -> usize {
        self.has.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn nodes(&self) -> Vec<Session> {
        self.lines.keys().copied().collect()
    }

    /// Whether some node but these has not said yet what it resumes.
    pub(super) fn is_waited_for(&self, but: &HashSet<Session>) -> bool {
        self.lines
            .iter()
            .any(|(node, line)| !line.answered && !but.contains(node))
    }

    pub(super) fn add(&mut self, node: Session, link: Link, term: Arc<Term>) {
        let line = Line {
            link,
            term,
            ahead: 1,
            came: 0,
            told: None,
            answered: false,
        };
        self.lines.insert(node, line);
    }

    /// A node has said what it resumes.
    pub(super) fn answered(&mut self, node: Session) {
        if let Some(line) = self.lines.get_mut(&node) {
            line.answered = true;
            line.told = None;
        }
    }

    /// Ends a link to a node that is gone: what the worker had of it, and what was
    /// asked and not answered.
    pub(super) fn remove(&mut self, node: Session) -> (Vec<String>, Vec<(u64, String)>) {
        self.lines.remove(&node);
        self.waiting.retain(|(_, of, _)| *of != node);
        let gone: Vec<String> = self
            .has
            .iter()
            .filter(|(_, far)| far.node == node)
            .map(|(id, _)| id.clone())
            .collect();
        for id in &gone {
            self.forget(id);
        }
        (gone, self.unanswered(node))
    }

    /// A node's stream broke: what was asked and won't be answered. What came and the
    /// worker has not seen it won't: its node may be gone, and is told if it is not.
    pub(super) fn broken(&mut self, node: Session) -> Vec<(u64, String)> {
        self.waiting.retain(|(_, of, _)| *of != node);
        self.unanswered(node)
    }

    /// Takes from the worker what nodes may have lost with their sessions, and gives
    /// it back to those that have not.
    pub(super) fn take_lapsed(&mut self) -> Vec<String> {
        let over = |node: &Session| self.lines.get(node).is_some_and(|l| !l.term.stands());
        let over: Vec<(Session, Lease)> = self
            .has
            .iter()
            .filter(|(_, far)| over(&far.node))
            .map(|(id, far)| {
                let lease = Lease {
                    delivery_id: id.clone(),
                    lease_token: far.token.clone(),
                };
                (far.node, lease)
            })
            .collect();
        let mut ids = Vec::with_capacity(over.len());
        for (node, lease) in over {
            self.forget(&lease.delivery_id);
            ids.push(lease.delivery_id.clone());
            self.release(node, lease);
        }
        ids
    }

    /// What was asked of a node and won't be answered.
    fn unanswered(&mut self, node: Session) -> Vec<(u64, String)> {
        let asked = self.asked.extract_if(|(of, _), _| *of == node);
        asked.flat_map(|(_, items)| items).collect()
    }

    /// The worker has it.
    pub(super) fn insert(&mut self, node: Session, id: String, token: Vec<u8>, bytes: usize) {
        self.bytes += bytes;
        let far = Far { node, token, bytes };
        if let Some(old) = self.has.insert(id, far) {
            self.bytes = self.bytes.saturating_sub(old.bytes);
        }
    }

    /// The worker does not have it any more; whether it did.
    pub(super) fn forget(&mut self, id: &str) -> bool {
        self.waiting.retain(|(_, _, d)| d.delivery_id != id);
        match self.has.remove(id) {
            Some(far) => {
                self.bytes = self.bytes.saturating_sub(far.bytes);
                true
            }
            None => false,
        }
    }

    /// A node has taken a delivery back; whether the worker had it of that node.
    pub(super) fn forget_of(&mut self, node: Session, id: &str) -> bool {
        if self.has.get(id).is_some_and(|far| far.node == node) {
            return self.forget(id);
        }
        self.waiting
            .retain(|(_, of, d)| *of != node || d.delivery_id != id);
        false
    }

    /// Whether the worker has a node's delivery, or is to have it, under that token.
    pub(super) fn knows(&self, node: Session, lease: &Lease) -> bool {
        let (id, token) = (&lease.delivery_id, &lease.lease_token);
        let has = self.has.get(id);
        has.is_some_and(|far| far.node == node && far.token == *token)
            || self
                .waiting
                .iter()
                .any(|(_, of, d)| *of == node && d.delivery_id == *id && d.lease_token == *token)
    }

    /// Gives back what a node takes for the worker's.
    pub(super) fn release(&self, node: Session, lease: Lease) {
        let item = NackItem {
            delivery_id: lease.delivery_id,
            lease_token: lease.lease_token,
            action: Action::Release.into(),
            ..NackItem::default()
        };
        let request_id = UNASKED.to_owned();
        let items = vec![item];
        self.send(node, Message::Nack(Nack { request_id, items }));
    }

    /// The node of a delivery that the worker has under that token.
    pub(super) fn node_of(&self, id: &str, token: &[u8]) -> Option<Session> {
        let far = self.has.get(id)?;
        (far.token == token && self.lines.contains_key(&far.node)).then_some(far.node)
    }

    /// A delivery has come.
    pub(super) fn came(&mut self, node: Session, delivery: Delivery) {
        if let Some(line) = self.lines.get_mut(&node) {
            line.came += 1;
        }
        self.waiting.push_back((Instant::now(), node, delivery));
    }

    /// The next that came, where there is room for it and nobody else can have it.
    pub(super) fn next(&mut self, room: Option<usize>) -> Option<Delivery> {
        let (_, node, next) = self.waiting.front()?;
        if next.body.len() > room? || !self.lines.get(node)?.term.stands() {
            return None;
        }
        let (_, node, delivery) = self.waiting.pop_front()?;
        let (id, token) = (delivery.delivery_id.clone(), delivery.lease_token.clone());
        self.insert(node, id, token, delivery.body.len());
        Some(delivery)
    }

    /// Tells a node of one item; what is told together goes with [`flush`](Self::flush).
    pub(super) fn tell(&mut self, node: Session, number: u64, id: String, word: Word) {
        if !matches!(word, Word::Extend(..)) {
            self.forget(&id);
        }
        self.words.push((node, number, id, word));
    }

    /// Sends what was told.
    pub(super) fn flush(&mut self) {
        type Words = (Vec<AckItem>, Vec<NackItem>, Vec<Lease>, i32);
        let mut by_node: HashMap<Session, (Words, Vec<(u64, String)>)> = HashMap::new();
        for (node, number, id, word) in self.words.drain(..) {
            let ((acks, nacks, leases, by), items) = by_node.entry(node).or_default();
            items.push((number, id));
            match word {
                Word::Ack(item) => acks.push(item),
                Word::Nack(item) => nacks.push(item),
                Word::Extend(lease, seconds) => {
                    leases.push(lease);
                    *by = seconds;
                }
            }
        }
        // What comes together is of one message of the worker's, and so of one kind.
        for (node, ((acks, nacks, leases, seconds), items)) in by_node {
            self.last += 1;
            let request_id = self.last.to_string();
            self.asked.insert((node, request_id.clone()), items);
            let message = if !acks.is_empty() {
                let items = acks;
                Message::Ack(Ack { request_id, items })
            } else if !nacks.is_empty() {
                let items = nacks;
                Message::Nack(Nack { request_id, items })
            } else {
                Message::Extend(Extend {
                    request_id,
                    items: leases,
                    seconds,
                })
            };
            self.send(node, message);
        }
    }

    /// The items that a result is about.
    pub(super) fn answer(&mut self, node: Session, request_id: &str) -> Vec<(u64, String)> {
        let key = (node, request_id.to_owned());
        self.asked.remove(&key).unwrap_or_default()
    }

    fn send(&self, node: Session, message: Message) {
        let message = Some(message);
        if let Some(line) = self.lines.get(&node) {
            // A link that has ended tells so.
            let _ = line.link.say.send(WorkerMessage { message });
        }
    }

    /// Gives back what has waited for too long, or all of it.
    pub(super) fn return_late(&mut self, all: bool) {
        let late = |(at, _, _): &(Instant, Session, Delivery)| all || at.elapsed() >= PATIENCE;
        while self.waiting.front().is_some_and(late) {
            let Some((_, node, delivery)) = self.waiting.pop_front() else {
                return;
            };
            let lease = Lease {
                delivery_id: delivery.delivery_id,
                lease_token: delivery.lease_token,
            };
            self.release(node, lease);
        }
    }

    /// Looks at what came since the last time: who filled its part gets twice of it.
    pub(super) fn look(&mut self, most: usize) {
        let share = (most / 2).max(1);
        for line in self.lines.values_mut() {
            line.ahead = if line.came >= line.ahead {
                (line.ahead * 2).min(share)
            } else if line.came == 0 {
                (line.ahead / 2).max(1)
            } else {
                line.ahead
            };
            line.came = 0;
        }
    }

    /// Tells each node its window, where it has changed. `room` is what the worker
    /// can have beyond what it has; none: nothing more.
    pub(super) fn lend(&mut self, room: Option<(usize, usize)>, window: Window) {
        let (mut free, bytes) = room.unwrap_or_default();
        free = free.saturating_sub(self.waiting.len());
        let mut by_node: HashMap<Session, (usize, usize)> = HashMap::new();
        for far in self.has.values() {
            let has = by_node.entry(far.node).or_default();
            (has.0, has.1) = (has.0 + 1, has.1 + far.bytes);
        }
        for (_, node, delivery) in &self.waiting {
            let has = by_node.entry(*node).or_default();
            (has.0, has.1) = (has.0 + 1, has.1 + delivery.body.len());
        }
        let mut changed = Vec::new();
        for (node, line) in &mut self.lines {
            let (has, has_bytes) = by_node.get(node).copied().unwrap_or_default();
            let ahead = if free == 0 || bytes == 0 || !line.term.stands() {
                0
            } else {
                line.ahead.min(free)
            };
            let most = (has + ahead).min(window.messages.max(1) + 1);
            let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
            let credit = Credit {
                messages: number(most),
                bytes: i64::try_from((has_bytes + bytes).clamp(1, window.bytes))
                    .unwrap_or(i64::MAX),
                whole_messages: number(window.messages),
            };
            // Of bytes only what matters: each delivery changes them.
            let told = line.told.map(|c| (c.messages, c.whole_messages));
            if told != Some((credit.messages, credit.whole_messages)) {
                line.told = Some(credit);
                changed.push((*node, credit));
            }
        }
        for (node, credit) in changed {
            self.send(node, Message::Credit(credit));
        }
    }

    /// Leaves in order: what the worker has of other nodes is given back at once.
    pub(super) fn leave(&mut self) {
        self.return_late(true);
        for node in self.nodes() {
            self.send(node, Message::Drain(Drain {}));
        }
        self.lines.clear();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    // W8: a node takes back what it handed out, and nothing of another's; what it
    // resumes is known by its token.
    #[test]
    fn a_nodes_word_is_of_its_own_deliveries() {
        let (_news, from_links) = mpsc::unbounded_channel();
        let mut links = Links::new(from_links);
        let (owner, other) = (Session(1), Session(2));
        let lease = |token: u8| Lease {
            delivery_id: "d".to_owned(),
            lease_token: vec![token],
        };
        links.insert(owner, "d".to_owned(), vec![7], 10);
        assert!(links.knows(owner, &lease(7)));
        assert!(!links.knows(owner, &lease(8)) && !links.knows(other, &lease(7)));
        assert!(!links.forget_of(other, "d"));
        assert_eq!((links.len(), links.bytes()), (1, 10));
        assert!(links.forget_of(owner, "d"));
        assert_eq!((links.len(), links.bytes()), (0, 0));
        let delivery = Delivery {
            delivery_id: "d".to_owned(),
            lease_token: vec![9],
            ..Delivery::default()
        };
        links.came(owner, delivery);
        assert!(links.knows(owner, &lease(9)));
        assert!(!links.forget_of(other, "d") && links.knows(owner, &lease(9)));
        assert!(!links.forget_of(owner, "d") && !links.knows(owner, &lease(9)));
    }

    // N2, W8: what came from a node whose session may be over, or over a stream that
    // is broken, does not go on to the worker; what that has is taken back.
    #[tokio::test]
    async fn what_may_be_anothers_goes_to_no_worker() {
        let (_news, from_links) = mpsc::unbounded_channel();
        let mut links = Links::new(from_links);
        let node = Session(1);
        let (say, mut said) = mpsc::unbounded_channel();
        let term = Arc::new(Term::until(Instant::now() + Duration::from_secs(60)));
        links.add(node, Link { say }, term.clone());
        let delivery = |id: &str| Delivery {
            delivery_id: id.to_owned(),
            lease_token: vec![1],
            ..Delivery::default()
        };
        links.came(node, delivery("a"));
        assert_eq!(links.next(Some(10)).unwrap().delivery_id, "a");
        links.came(node, delivery("b"));
        assert!(links.broken(node).is_empty());
        assert!(links.next(Some(10)).is_none() && links.take_lapsed().is_empty());
        links.came(node, delivery("c"));
        term.prolong(Instant::now());
        assert!(links.next(Some(10)).is_none());
        assert_eq!(links.take_lapsed(), ["a"]);
        assert!(links.take_lapsed().is_empty() && links.len() == 0);
        let Some(Message::Nack(nack)) = said.try_recv().unwrap().message else {
            panic!("it is not given back");
        };
        assert_eq!(nack.items[0].delivery_id, "a");
        term.prolong(Instant::now() + Duration::from_secs(60));
        assert_eq!(links.next(Some(10)).unwrap().delivery_id, "c");
    }
}
