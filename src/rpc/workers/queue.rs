//! What waits for a worker's connection, so much that its memory is bounded.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::proto::v1::server_message::Message;

/// Messages that may wait before no more is heard.
const MOST: usize = 256;
/// Items of results that may.
const MOST_ITEMS: usize = 8192;

/// Messages in the order in which they leave.
pub(super) struct Queue {
    messages: VecDeque<Message>,
    items: usize,
    /// Since when the first one waits.
    since: Instant,
}

/// How much of what is bounded a message has.
fn items(message: &Message) -> usize {
    match message {
        Message::Result(told) => told.ok.len() + told.stale.len() + told.temporary.len(),
        _ => 0,
    }
}

impl Queue {
    /// Nothing waits.
    pub(super) fn new() -> Self {
        Self {
            messages: VecDeque::new(),
            items: 0,
            since: Instant::now(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether so much waits that nothing is to be heard that would be answered.
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() >= MOST || self.items >= MOST_ITEMS
    }

    /// How long the first one has waited.
    pub(super) fn stands(&self, now: Instant) -> Duration {
        if self.is_empty() {
            return Duration::ZERO;
        }
        now.saturating_duration_since(self.since)
    }

    pub(super) fn push(&mut self, message: Message) {
        if self.messages.is_empty() {
            self.since = Instant::now();
        }
        self.items += items(&message);
        self.messages.push_back(message);
    }

    pub(super) fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.items = self.items.saturating_sub(items(&message));
        self.since = Instant::now();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::server_message::{Ping, Result as Told};

    // W3: results count by their items, and the time from the last that left.
    #[test]
    fn what_waits_is_bounded() {
        let mut queue = Queue::new();
        let told = Told {
            ok: vec![String::new(); 500],
            stale: vec![String::new(); 500],
            ..Told::default()
        };
        for _ in 0..9 {
            assert!(!queue.is_full());
            queue.push(Message::Result(told.clone()));
        }
        assert!(queue.is_full());
        let later = Instant::now() + Duration::from_secs(10);
        assert!(queue.stands(later) >= Duration::from_secs(10));
        queue.pop();
        assert!(!queue.is_full());
        while queue.pop().is_some() {}
        assert_eq!(queue.stands(later), Duration::ZERO);
        for _ in 0..256 {
            assert!(!queue.is_full());
            queue.push(Message::Ping(Ping {}));
        }
        assert!(queue.is_full());
    }
}
