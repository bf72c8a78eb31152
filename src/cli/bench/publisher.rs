//! The publishers: each has one connection and sends one event after another.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hdrhistogram::Histogram;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    header::{HeaderName, HeaderValue},
};
use tokio::task::JoinSet;

use super::{
    body::{Mark, Template},
    client::{Caller, Connection, Pool},
    error::{BenchError, Result},
    latency::histogram,
    ledger::Outcome,
    pacer::Schedule,
    receiver::{Hub, Live},
};

/// How long a publisher waits after a refusal, so that a server which refuses
/// everything isn't asked a hundred thousand times a second.
const AFTER_REFUSAL: Duration = Duration::from_millis(5);
/// After this a call counts as unanswered.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What is posted, and where.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// `host:port`.
    pub authority: String,
    /// Paths; event `n` goes to path `n % len`.
    pub paths: Vec<Uri>,
    /// Bodies; event `n` has template `n % len`.
    pub bodies: Vec<Template>,
    /// Headers of every request.
    pub headers: HeaderMap,
    /// Where set, each event has an `Idempotency-Key` (a UUIDv7) with these bits in it.
    pub idempotency: Option<u16>,
    /// The status that means accepted.
    pub accepted: StatusCode,
    /// The pool that all publishers share; each has a connection of its own
    /// where there is none.
    pub pool: Option<Pool>,
}

impl Target {
    fn request(&self, mark: Mark, now: u64) -> Option<Request<Full<bytes::Bytes>>> {
        let pick = |len: usize| usize::try_from(mark.seq).ok()?.checked_rem(len);
        let path = self.paths.get(pick(self.paths.len())?)?;
        let body = self.bodies.get(pick(self.bodies.len())?)?;
        let mut request = Request::new(Full::new(body.render(mark)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(tag) = self.idempotency {
            let key = idempotency_key(tag, mark, now);
            request
                .headers_mut()
                .insert(HeaderName::from_static("idempotency-key"), key);
        }
        Some(request)
    }
}

/// A UUIDv7, as SDKs send: unique by run and sequence number, its time the
/// wall clock's.
fn idempotency_key(tag: u16, mark: Mark, now: u64) -> HeaderValue {
    let mut unique = [0; 10];
    let (head, tail) = unique.split_at_mut(2);
    head.copy_from_slice(&tag.to_be_bytes());
    let bits = ((mark.run & 0xffff) << 44) | (mark.seq & 0x0fff_ffff_ffff);
    tail.copy_from_slice(&bits.to_be_bytes());
    let uuid = uuid::Builder::from_unix_timestamp_millis(now, &unique).into_uuid();
    let mut text = uuid::Uuid::encode_buffer();
    HeaderValue::from_str(uuid.hyphenated().encode_lower(&mut text))
        .unwrap_or_else(|_| HeaderValue::from_static("bench"))
}

/// What one publisher saw.
#[derive(Debug)]
pub(super) struct Tally {
    /// Answers by status, over the whole run.
    pub statuses: BTreeMap<u16, u64>,
    /// Calls without an answer, by what happened.
    pub broken: BTreeMap<String, u64>,
    /// Events accepted within the window.
    pub accepted_in_window: u64,
    /// From sending (or when it was meant) to the answer, of events sent within the window.
    pub answers: Histogram<u64>,
    /// The first refusal's body, to show.
    pub first_refusal: Option<String>,
}

impl Tally {
    /// An empty one.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            statuses: BTreeMap::new(),
            broken: BTreeMap::new(),
            accepted_in_window: 0,
            answers: histogram()?,
            first_refusal: None,
        })
    }

    /// Adds another publisher's.
    pub(super) fn add(&mut self, other: Self) {
        for (status, n) in other.statuses {
            *self.statuses.entry(status).or_default() += n;
        }
        for (what, n) in other.broken {
            *self.broken.entry(what).or_default() += n;
        }
        self.accepted_in_window += other.accepted_in_window;
        // Both have the same bounds, so they add up.
        self.answers.add(&other.answers).ok();
        self.first_refusal = self.first_refusal.take().or(other.first_refusal);
    }
}

/// Publishers that are at it.
#[derive(Debug)]
pub(super) struct Publishers(JoinSet<Result<Tally>>);

impl Publishers {
    /// So many, by the schedule where there is one.
    pub(super) fn begin(
        hub: &Arc<Hub>,
        live: &Arc<Live>,
        target: &Arc<Target>,
        schedule: Option<&Schedule>,
        how_many: usize,
    ) -> Self {
        let mut set = JoinSet::new();
        for _ in 0..how_many {
            set.spawn(publish(
                Arc::clone(hub),
                Arc::clone(live),
                Arc::clone(target),
                schedule.cloned(),
            ));
        }
        Self(set)
    }

    /// What all of them saw, once they are done.
    pub(super) async fn join(mut self) -> Result<Tally> {
        let mut tally = Tally::new()?;
        while let Some(one) = self.0.join_next().await {
            tally.add(one.map_err(|e| BenchError::failed("a publisher stopped", e))??);
        }
        Ok(tally)
    }
}

/// Publishes until the window ends (closed loop) or the schedule does (open loop).
async fn publish(
    hub: Arc<Hub>,
    live: Arc<Live>,
    target: Arc<Target>,
    schedule: Option<Schedule>,
) -> Result<Tally> {
    let mut tally = Tally::new()?;
    let mut caller = match &target.pool {
        Some(pool) => Caller::Pooled(pool.clone()),
        None => Caller::Own(Box::new(Connection::new(
            target.authority.clone(),
            CALL_TIMEOUT,
        ))),
    };
    // Connecting is not what is measured.
    caller.connect().await;
    let wall = unix_millis().saturating_sub(hub.now() / 1_000_000);
    loop {
        let (seq, origin) = if let Some(schedule) = &schedule {
            schedule.wait().await;
            let seq = live.ledger.take();
            if seq >= schedule.total || hub.now() > schedule.until {
                break;
            }
            (seq, schedule.due(seq))
        } else {
            let now = hub.now();
            if now >= live.window.end {
                break;
            }
            (live.ledger.take(), now)
        };
        let mark = Mark { run: live.run, seq };
        let Some(request) = target.request(mark, wall + origin / 1_000_000) else {
            break;
        };
        if !live.ledger.sent(seq, origin) {
            break;
        }
        let answer = caller.call(request).await;
        let done = hub.now();
        match answer {
            Ok((status, body)) => {
                *tally.statuses.entry(status.as_u16()).or_default() += 1;
                let ok = status == target.accepted;
                live.ledger.answered(
                    seq,
                    if ok {
                        Outcome::Accepted
                    } else {
                        Outcome::Refused
                    },
                );
                if !ok {
                    tally.first_refusal.get_or_insert_with(|| shown(&body));
                    if schedule.is_none() {
                        tokio::time::sleep(AFTER_REFUSAL).await;
                    }
                    continue;
                }
                if live.window.contains(&done) {
                    tally.accepted_in_window += 1;
                }
                if live.window.contains(&origin) {
                    tally
                        .answers
                        .saturating_record(done.saturating_sub(origin) / 1_000);
                }
            }
            Err(e) => {
                *tally.broken.entry(e.to_string()).or_default() += 1;
                live.ledger.answered(seq, Outcome::Unanswered);
                tokio::time::sleep(AFTER_REFUSAL).await;
            }
        }
    }
    Ok(tally)
}

fn unix_millis() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| super::stats::nanos(d) / 1_000_000)
}

/// The beginning of an answer's body, for people.
pub(super) fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_keys_differ_by_run_and_event_and_are_uuid_v7() {
        let key = |run, seq| idempotency_key(7, Mark { run, seq }, 1_800_000_000_000);
        let text = key(1, 1).to_str().unwrap().to_owned();
        assert_eq!(text.as_bytes().get(14), Some(&b'7'), "{text}");
        let mut keys: Vec<_> = (0..10)
            .flat_map(|run| (0..300).map(move |seq| (run, seq)))
            .map(|(run, seq)| key(run, seq).to_str().unwrap().to_owned())
            .collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 3_000);
    }
}
