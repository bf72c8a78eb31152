//! Tells a worker at the other end of a stream what became of what it said.

use tokio::sync::mpsc;

use crate::store::Finished;

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It is recorded, now or before.
    Recorded,
    /// The lease is another's by now.
    Stale,
    /// It is not known whether it is recorded.
    Unknown,
}

/// Somebody who waits to be told. Whoever drops it tells that nothing is known.
#[derive(Debug)]
pub struct Answer {
    /// Which of the questions this answers.
    question: u64,
    to: mpsc::UnboundedSender<(u64, Told)>,
    told: bool,
}

impl Answer {
    /// An answer to that question, which goes there.
    #[must_use]
    pub const fn to(question: u64, to: mpsc::UnboundedSender<(u64, Told)>) -> Self {
        Self {
            question,
            to,
            told: false,
        }
    }

    /// Tells what the store answered.
    pub(super) fn tell(mut self, finished: Finished) {
        self.send(match finished {
            Finished::Now | Finished::Before => Told::Recorded,
            Finished::Stale => Told::Stale,
        });
    }

    fn send(&mut self, told: Told) {
        self.told = true;
        // Its stream may have ended.
        let _ = self.to.send((self.question, told));
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.told {
            self.send(Told::Unknown);
        }
    }
}
