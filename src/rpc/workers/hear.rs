//! What a worker says, and what it is answered.

use std::{collections::HashSet, time::Duration};

use super::{
    link::News,
    links::Word,
    opening::{self, LONGEST_LEASE},
    session::{Question, Session, echo},
};
use crate::{
    domain::{
        delivery::{Attempt, AttemptKind, Outcome, outcome_of_status},
        id::{Micros, wall_clock},
    },
    error::{Error, Result},
    pipeline::{Answer, Job, Told, dispatch::Completion},
    proto::v1::{
        server_message::{self as says, Message as Says},
        worker_message::{self as hears, Message as Hears},
    },
    store::Session as NodeSession,
};

/// The most items of one message.
const ITEMS: usize = 1000;
/// How much of a failure's answer is kept.
const KEEP_FAILURE: usize = 4096;
/// How much of a success' answer is kept.
const KEEP_SUCCESS: usize = 256;
/// The longest attempt that is believed, in milliseconds.
const LONGEST: i64 = 86_400_000;

/// What a worker says of a delivery, as it is recorded.
pub(super) struct Said {
    outcome: Outcome,
    reason: String,
    attempt: Option<Attempt>,
}

impl Session {
    pub(super) fn hear(&mut self, message: Hears) -> Result<()> {
        match message {
            Hears::Open(_) => Err(Error::field("open", "comes once, first")),
            Hears::Credit(credit) => {
                let (window, whole) = opening::credit(&self.caller, credit)?;
                self.window = window;
                self.context.dispatcher.resize(self.number, whole.max(1));
                Ok(())
            }
            Hears::Ack(ack) => self.ack(ack),
            Hears::Nack(nack) => self.nack(nack),
            Hears::Extend(extend) => self.extend(extend),
            Hears::Drain(hears::Drain {}) => {
                self.draining = true;
                Ok(())
            }
            Hears::Pong(hears::Pong {}) => Ok(()),
        }
    }

    fn ack(&mut self, ack: hears::Ack) -> Result<()> {
        let asking = self.question(&ack.request_id, ack.items.len())?;
        for mut item in ack.items {
            if let Some(outcome) = &mut item.outcome {
                outcome.response_body = beginning(&outcome.response_body, KEEP_FAILURE);
                outcome.error = text(&outcome.error);
            }
            let Some(job) = self.leased(&item.delivery_id, &item.lease_token) else {
                self.stale(asking, item.delivery_id);
                continue;
            };
            if let Some(node) = self.links.node_of(&item.delivery_id, &item.lease_token) {
                let id = item.delivery_id.clone();
                self.pass_on(asking, node, id, job, Word::Ack(item));
                continue;
            }
            let said = self.outcome(&job, &item.outcome.unwrap_or_default());
            self.settle(asking, item.delivery_id, job, said);
        }
        self.links.flush();
        self.answer_if_whole(asking);
        Ok(())
    }

    fn nack(&mut self, nack: hears::Nack) -> Result<()> {
        let asking = self.question(&nack.request_id, nack.items.len())?;
        for mut item in nack.items {
            item.reason = text(&item.reason);
            let Some(job) = self.leased(&item.delivery_id, &item.lease_token) else {
                self.stale(asking, item.delivery_id);
                continue;
            };
            if let Some(node) = self.links.node_of(&item.delivery_id, &item.lease_token) {
                let id = item.delivery_id.clone();
                self.pass_on(asking, node, id, job, Word::Nack(item));
                continue;
            }
            let said = self.not_done(&job, &item);
            self.settle(asking, item.delivery_id, job, said);
        }
        self.links.flush();
        self.answer_if_whole(asking);
        Ok(())
    }

    fn extend(&mut self, extend: hears::Extend) -> Result<()> {
        if !(1..=LONGEST_LEASE).contains(&extend.seconds) {
            let takes = format!("takes 1 to {LONGEST_LEASE}");
            return Err(Error::field("extend.seconds", takes));
        }
        let asking = self.question(&extend.request_id, extend.items.len())?;
        // What may be another node's by now is not the worker's for longer.
        self.fence();
        let by = Duration::from_secs(extend.seconds.unsigned_abs().into());
        for item in extend.items {
            let job = self.leased(&item.delivery_id, &item.lease_token);
            if let Some(node) = self.links.node_of(&item.delivery_id, &item.lease_token)
                && let Some(job) = job
            {
                let id = item.delivery_id.clone();
                let word = Word::Extend(item, extend.seconds);
                self.pass_on(asking, node, id, job, word);
                continue;
            }
            let held = job.is_some_and(|job| self.held.extend(job.id, job.token, by));
            match self.questions.get_mut(&asking) {
                Some(question) if held => question.result.ok.push(item.delivery_id),
                _ => self.stale(asking, item.delivery_id),
            }
        }
        self.links.flush();
        self.answer_if_whole(asking);
        Ok(())
    }

    /// What a nack comes to.
    fn not_done(&self, job: &Job, item: &hears::NackItem) -> Said {
        let reason = match text(&item.reason) {
            reason if reason.is_empty() => "nacked".to_owned(),
            reason => reason,
        };
        let nothing = hears::Outcome::default();
        match item.action() {
            hears::Action::Unspecified | hears::Action::Release => Said {
                outcome: Outcome::Released,
                reason: String::new(),
                attempt: None,
            },
            hears::Action::Retry => {
                let outcome = Outcome::Retryable {
                    retry_after: seconds(item.retry_after_seconds),
                };
                self.tried(job, outcome, reason, &nothing)
            }
            hears::Action::Dead => self.tried(job, Outcome::Permanent, reason, &nothing),
        }
    }

    /// Has another node record it, which counts what it has handed out.
    fn pass_on(&mut self, asking: u64, node: NodeSession, id: String, job: Job, word: Word) {
        let number = self.number();
        if let Some(question) = self.questions.get_mut(&asking) {
            question.waiting += 1;
        }
        self.asked.insert(number, (asking, id.clone()));
        // Should that node not answer, it is recorded here.
        let said = match &word {
            Word::Ack(item) => {
                let outcome = item.outcome.clone().unwrap_or_default();
                Some(self.outcome(&job, &outcome))
            }
            Word::Nack(item) => Some(self.not_done(&job, item)),
            Word::Extend(..) => None,
        };
        if let Some(said) = said {
            self.passed_on.insert(number, (job, said));
        }
        self.links.tell(node, number, id, word);
    }

    /// What another node was told and did not answer.
    pub(super) fn not_answered(&mut self, items: Vec<(u64, String)>) {
        for (number, _) in items {
            let Some((job, said)) = self.passed_on.remove(&number) else {
                // An extension: it is known where the lease is alone.
                self.told(number, Told::Unknown);
                continue;
            };
            let answer = Answer::to(number, self.answers.clone());
            let end = Completion {
                job,
                outcome: said.outcome,
                reason: said.reason,
                attempt: said.attempt,
            };
            self.context.dispatcher.record(end, Some(answer));
        }
    }

    /// What a link tells.
    pub(super) fn learn(&mut self, node: NodeSession, news: News) {
        match news {
            News::Opened(resumed) => {
                let named: HashSet<&[u8]> = self
                    .asked_for
                    .resume
                    .iter()
                    .map(|lease| &*lease.lease_token)
                    .collect();
                for lease in resumed {
                    if named.contains(&*lease.lease_token) {
                        self.links
                            .insert(node, lease.delivery_id, lease.lease_token, 0);
                    } else if !self.links.knows(node, &lease) {
                        // The worker was told that it is lost, or has acked it.
                        self.links.release(node, lease);
                    }
                }
                self.links.answered(node);
            }
            News::Delivery(delivery) => self.links.came(node, *delivery),
            News::Result(told) => {
                for (number, id) in self.links.answer(node, &told.request_id) {
                    self.passed_on.remove(&number);
                    let what = if told.ok.contains(&id) {
                        Told::Recorded
                    } else if told.stale.contains(&id) {
                        Told::Stale
                    } else {
                        Told::Unknown
                    };
                    self.told(number, what);
                }
            }
            News::Revoked(ids, reason) => {
                let had = ids.into_iter();
                let had = had.filter(|id| self.links.forget_of(node, id)).collect();
                self.taken_back(had, reason);
            }
            News::Replaced => self.replaced = true,
            News::Broken => {
                let unanswered = self.links.broken(node);
                self.not_answered(unanswered);
            }
        }
    }

    /// Tells the worker what it does not have any more.
    pub(super) fn taken_back(&mut self, delivery_ids: Vec<String>, reason: i32) {
        if !delivery_ids.is_empty() {
            self.say(Says::Revoke(says::Revoke {
                delivery_ids,
                reason,
            }));
        }
    }

    /// Begins a result.
    fn question(&mut self, request_id: &str, items: usize) -> Result<u64> {
        opening::request_id(request_id)?;
        if items > ITEMS {
            return Err(Error::field(
                "items",
                format!("has at most {ITEMS} entries"),
            ));
        }
        let asking = self.number();
        let result = says::Result {
            request_id: request_id.to_owned(),
            ..says::Result::default()
        };
        self.questions
            .insert(asking, Question { result, waiting: 0 });
        Ok(asking)
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn stale(&mut self, asking: u64, id: String) {
        if let Some(question) = self.questions.get_mut(&asking) {
            question.result.stale.push(echo(id));
        }
    }

    /// Has it recorded. What this stream does not have may have been acked before,
    /// or handed out by another node: the token says whether it still counts.
    fn settle(&mut self, asking: u64, id: String, job: Job, said: Said) {
        let number = self.number();
        if let Some(question) = self.questions.get_mut(&asking) {
            question.waiting += 1;
        }
        self.asked.insert(number, (asking, id));
        let answer = Some(Answer::to(number, self.answers.clone()));
        let Said {
            outcome,
            reason,
            attempt,
        } = said;
        let end = |job| Completion {
            job,
            outcome,
            reason,
            attempt,
        };
        let dispatcher = &self.context.dispatcher;
        match self.held.remove(job.id, job.token) {
            Some(held) => dispatcher.complete_for(end(held.job), answer),
            None => dispatcher.record(end(job), answer),
        }
    }

    /// An item's result is known.
    pub(super) fn told(&mut self, number: u64, told: Told) {
        let Some((asking, id)) = self.asked.remove(&number) else {
            return;
        };
        if let Some(question) = self.questions.get_mut(&asking) {
            question.waiting -= 1;
            let list = match told {
                Told::Recorded => &mut question.result.ok,
                Told::Stale => &mut question.result.stale,
                Told::Unknown => &mut question.result.temporary,
            };
            list.push(id);
        }
        self.answer_if_whole(asking);
    }

    fn answer_if_whole(&mut self, asking: u64) {
        if self.questions.get(&asking).is_some_and(|q| q.waiting == 0)
            && let Some(question) = self.questions.remove(&asking)
        {
            self.say(Says::Result(question.result));
        }
    }

    fn outcome(&self, job: &Job, outcome: &hears::Outcome) -> Said {
        match outcome.result() {
            hears::Result::Unspecified | hears::Result::Delivered => {
                self.tried(job, Outcome::Delivered, String::new(), outcome)
            }
            hears::Result::Answered => {
                let status = u16::try_from(outcome.response_status)
                    .ok()
                    .filter(|s| (100..=999).contains(s));
                let Some(status) = status else {
                    let retryable = Outcome::Retryable { retry_after: None };
                    return self.tried(job, retryable, "no_status".to_owned(), outcome);
                };
                let means = outcome_of_status(status, seconds(outcome.retry_after_seconds));
                let reason = match means {
                    Outcome::Delivered => String::new(),
                    _ => format!("http_{status}"),
                };
                self.tried(job, means, reason, outcome)
            }
            hears::Result::Failed => {
                let reason = match text(&outcome.error) {
                    reason if reason.is_empty() => "failed".to_owned(),
                    reason => reason,
                };
                let retryable = Outcome::Retryable { retry_after: None };
                self.tried(job, retryable, reason, outcome)
            }
            hears::Result::ReplayExpired => {
                let reason = "replay_expired".to_owned();
                self.tried(job, Outcome::ReplayExpired, reason, outcome)
            }
        }
    }

    fn tried(&self, job: &Job, means: Outcome, reason: String, said: &hears::Outcome) -> Said {
        let took: Micros = said.duration_ms.clamp(0, LONGEST) * 1000;
        let keep = match means {
            Outcome::Delivered => KEEP_SUCCESS,
            _ => KEEP_FAILURE,
        };
        let response = beginning(&said.response_body, keep);
        let attempt = Attempt {
            number: job.attempts + 1,
            token: job.token,
            started_at: wall_clock() - took,
            took,
            kind: match means {
                Outcome::Delivered => AttemptKind::Delivered,
                Outcome::ReplayExpired => AttemptKind::ReplayExpired,
                Outcome::Retryable { .. } => AttemptKind::Retryable,
                _ => AttemptKind::Permanent,
            },
            response_status: u16::try_from(said.response_status).unwrap_or_default(),
            error: reason.clone(),
            response,
            worker: self.holder.worker.clone(),
        };
        Said {
            outcome: means,
            reason,
            attempt: Some(attempt),
        }
    }
}

/// A wait of at least a second, as far as one is named.
fn seconds(n: i64) -> Option<Duration> {
    let n = u64::try_from(n).ok().filter(|n| *n > 0)?;
    Some(Duration::from_secs(n))
}

/// The beginning of a body, in no more memory than that takes.
fn beginning(body: &[u8], most: usize) -> Vec<u8> {
    body[..body.len().min(most)].to_vec()
}

/// A reason as it can be stored and shown: a line of at most 200 characters.
fn text(given: &str) -> String {
    given
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // W3: of a large answer only the part that is kept takes memory.
    #[test]
    fn a_large_answer_is_not_kept_whole() {
        let body = vec![b'x'; 8 << 20];
        let kept = beginning(&body, KEEP_FAILURE);
        assert_eq!((kept.len(), kept.capacity()), (KEEP_FAILURE, KEEP_FAILURE));
        assert_eq!(beginning(b"ab", KEEP_SUCCESS), b"ab");
    }
}
