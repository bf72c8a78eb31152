//! How much a worker may say: a second's worth at once, and then as much as comes
//! after it. What is beyond that waits in its connection.

use std::time::{Duration, Instant};

use crate::proto::v1::worker_message::Message;

/// Items of acks, nacks and extensions, and other messages, that are heard of one
/// stream in a second.
const A_SECOND: u32 = 20_000;
/// As much as may come at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What one stream has said, as time.
pub(super) struct Pace {
    /// When all that was said would have been, at the rate.
    done: Instant,
}

impl Pace {
    /// Nothing was said.
    pub(super) const fn new(now: Instant) -> Self {
        Self { done: now }
    }

    /// Counts a message.
    pub(super) fn hear(&mut self, message: &Message, now: Instant) {
        let items = match message {
            Message::Ack(ack) => ack.items.len(),
            Message::Nack(nack) => nack.items.len(),
            Message::Extend(extend) => extend.items.len(),
            _ => 1,
        };
        let items = u32::try_from(items.max(1)).unwrap_or(u32::MAX);
        self.done = self.done.max(now) + Duration::from_secs(1) / A_SECOND * items;
    }

    /// When the next message is heard; none: now.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let ahead = self.done.saturating_duration_since(now);
        let beyond = ahead.checked_sub(AT_ONCE).filter(|b| !b.is_zero())?;
        Some(now + beyond)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::worker_message::{Ack, AckItem, Pong};

    // Z5: a second's worth is heard at once, the next when its time has come.
    #[test]
    fn a_stream_is_heard_at_a_rate() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let ack = Message::Ack(Ack {
            items: vec![AckItem::default(); 1000],
            ..Ack::default()
        });
        for _ in 0..20 {
            assert_eq!(pace.next(now), None);
            pace.hear(&ack, now);
        }
        assert_eq!(pace.next(now), None);
        pace.hear(&ack, now);
        let next = pace.next(now).unwrap();
        assert_eq!(next - now, Duration::from_millis(50));
        assert_eq!(pace.next(next), None);
        // A message without items counts as one.
        pace.hear(&Message::Pong(Pong {}), next);
        assert_eq!(pace.next(next), Some(next + Duration::from_micros(50)));
        assert_eq!(pace.next(next + Duration::from_secs(1)), None);
    }
}
