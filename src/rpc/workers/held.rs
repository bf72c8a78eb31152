//! What a worker has: deliveries that were handed to it and have not ended.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{domain::id::DeliveryId, pipeline::Job};

/// A delivery that a worker has.
pub(super) struct HeldJob {
    /// The job, without its body.
    pub(super) job: Job,
    /// When it is taken back.
    pub(super) deadline: Instant,
    /// The size of its body.
    pub(super) bytes: usize,
}

/// All that a worker has.
#[derive(Default)]
pub(super) struct Held {
    by_id: HashMap<DeliveryId, HeldJob>,
    bytes: usize,
}

impl Held {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn insert(&mut self, held: HeldJob) {
        self.bytes += held.bytes;
        if let Some(old) = self.by_id.insert(held.job.id, held) {
            self.bytes = self.bytes.saturating_sub(old.bytes);
        }
    }

    /// Takes out a delivery that is held under that token.
    pub(super) fn remove(&mut self, id: DeliveryId, token: i32) -> Option<HeldJob> {
        if self.by_id.get(&id)?.job.token != token {
            return None;
        }
        let held = self.by_id.remove(&id)?;
        self.bytes = self.bytes.saturating_sub(held.bytes);
        Some(held)
    }

    /// Moves the deadline of a delivery that is held under that token; whether
    /// there is one.
    pub(super) fn extend(&mut self, id: DeliveryId, token: i32, by: Duration) -> bool {
        match self.by_id.get_mut(&id) {
            Some(held) if held.job.token == token => {
                held.deadline = Instant::now() + by;
                true
            }
            _ => false,
        }
    }

    /// Takes out what is as asked for.
    pub(super) fn take_if(&mut self, wanted: impl Fn(&HeldJob) -> bool) -> Vec<Job> {
        let taken = self.by_id.extract_if(|_, held| wanted(held));
        let taken: Vec<HeldJob> = taken.map(|(_, held)| held).collect();
        let bytes: usize = taken.iter().map(|held| held.bytes).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
        taken.into_iter().map(|held| held.job).collect()
    }

    /// Takes everything out.
    pub(super) fn take_all(&mut self) -> Vec<Job> {
        self.bytes = 0;
        let all = self.by_id.drain();
        all.map(|(_, held)| held.job).collect()
    }
}
