//! What was promised, what was done, and what explains the difference.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A delivery whose receiver's answer came this long before a node was killed
/// may not have been recorded: outcomes are written in batches, behind a queue
/// on a busy machine.
const UNRECORDED: Duration = Duration::from_secs(3);

/// A node may say so much later that its session has ended: when it next looks.
const TOLD_LATE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Book(Mutex<Pages>);

impl Pages {
    /// Whether an interruption is why a delivery that was answered came again: it came
    /// between, before the outcome can have been recorded.
    fn explains(&self, c: &Interruption, first: Answered, again: Answered) -> bool {
        let between = first.began <= c.at && c.at <= again.at + TOLD_LATE;
        let unrecorded = c.at.saturating_duration_since(first.at);
        between && unrecorded.saturating_sub(self.troubled(first.at, c.at)) <= UNRECORDED
    }

    /// For how long of that time a database was in trouble.
    fn troubled(&self, from: Instant, to: Instant) -> Duration {
        let overlap = |(since, until): &(Instant, Instant)| {
            to.min(*until).saturating_duration_since(from.max(*since))
        };
        self.troubles.iter().map(overlap).sum()
    }
}

/// What a cause is, without which node it befell.
fn kind(what: &str) -> String {
    match what.split_once(": ") {
        Some((_, message)) => message.to_owned(),
        None => "a node was killed".to_owned(),
    }
}

#[derive(Default)]
struct Pages {
    /// By the number that the publisher gave.
    accepted: HashMap<u64, Accepted>,
    /// When each event was answered with 200, by subscription.
    delivered: HashMap<(String, String), Vec<Answered>>,
    /// Attempts that a receiver works on, by delivery.
    under_way: HashMap<String, Vec<Instant>>,
    /// Deliveries of which an attempt began while another was under way.
    overlaps: Vec<Overlap>,
    /// When the database was away from a node, or was slow to answer.
    troubles: Vec<(Instant, Instant)>,
    /// Every event that carried a number.
    carriers: HashMap<u64, HashSet<String>>,
    kills: Vec<Interruption>,
}

/// A request that was answered with 200.
#[derive(Debug, Clone, Copy)]
struct Answered {
    began: Instant,
    at: Instant,
}

#[derive(Debug)]
struct Overlap {
    #[expect(dead_code, reason = "shown where it is one too many")]
    delivery: String,
    first: Instant,
    second: Instant,
}

/// A request that a receiver works on, until it is dropped: also where its sender
/// hung up.
pub(crate) struct UnderWay {
    book: Arc<Book>,
    delivery: String,
    began: Instant,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut pages = self.book.pages();
        if let Some(attempts) = pages.under_way.get_mut(&self.delivery) {
            attempts.retain(|began| *began != self.began);
            if attempts.is_empty() {
                pages.under_way.remove(&self.delivery);
            }
        }
    }
}

struct Accepted {
    event: String,
    subscriptions: Vec<String>,
}

/// What may make a node's work be done again.
#[derive(Debug, Clone)]
pub(crate) struct Interruption {
    pub(crate) at: Instant,
    pub(crate) what: String,
}

/// What the book says at the end.
pub(crate) struct Summary {
    pub(crate) accepted: usize,
    pub(crate) delivered: usize,
    pub(crate) kills: usize,
    /// Each with its cause.
    pub(crate) duplicates: Vec<String>,
    /// How many of them have a cause of which kind.
    pub(crate) by_cause: BTreeMap<String, usize>,
    /// Attempts that began while another was under way whose session had ended.
    pub(crate) overlaps: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} events accepted, {} deliveries, {} kills, 0 lost, {} duplicates",
            self.accepted,
            self.delivered,
            self.kills,
            self.duplicates.len()
        )?;
        for (cause, count) in &self.by_cause {
            writeln!(f, "  {count} duplicates: {cause}")?;
        }
        writeln!(
            f,
            "  {} attempts beside one of an ended session, 0 under two live leases",
            self.overlaps
        )
    }
}

impl Book {
    /// Also after a check failed while it was open.
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn accepted(&self, number: u64, event: &str, subscriptions: &[&str]) {
        let accepted = Accepted {
            event: event.to_owned(),
            subscriptions: subscriptions.iter().map(|&s| s.to_owned()).collect(),
        };
        self.pages().accepted.insert(number, accepted);
    }

    /// A receiver has got a request.
    pub(crate) fn begins(self: &Arc<Self>, delivery: &str) -> UnderWay {
        let began = Instant::now();
        let mut pages = self.pages();
        let attempts = pages.under_way.entry(delivery.to_owned()).or_default();
        let first = attempts.first().copied();
        attempts.push(began);
        if let Some(first) = first {
            pages.overlaps.push(Overlap {
                delivery: delivery.to_owned(),
                first,
                second: began,
            });
        }
        UnderWay {
            book: self.clone(),
            delivery: delivery.to_owned(),
            began,
        }
    }

    /// The database was away from a node, or slow, from then until now; what the node
    /// had asked it before may have had to wait for so much longer.
    pub(crate) fn troubled(&self, since: Instant, longer: Duration) {
        let until = Instant::now() + longer;
        self.pages().troubles.push((since, until));
    }

    /// A receiver answered 200 to a request that began then.
    pub(crate) fn delivered(&self, event: &str, subscription: &str, number: u64, began: Instant) {
        let mut pages = self.pages();
        let key = (event.to_owned(), subscription.to_owned());
        let at = Instant::now();
        let answered = Answered { began, at };
        pages.delivered.entry(key).or_default().push(answered);
        pages
            .carriers
            .entry(number)
            .or_default()
            .insert(event.to_owned());
    }

    pub(crate) fn killed(&self, node: &str) {
        self.pages().kills.push(Interruption {
            at: Instant::now(),
            what: format!("{node} was killed"),
        });
    }

    /// How many deliveries were answered with 200.
    pub(crate) fn count(&self) -> usize {
        self.pages().delivered.values().map(Vec::len).sum()
    }

    /// Every pair of an accepted event and one of its subscriptions.
    pub(crate) fn promised(&self) -> HashSet<(String, String)> {
        let pages = self.pages();
        let pairs = |a: &Accepted| -> Vec<_> {
            a.subscriptions
                .iter()
                .map(|s| (a.event.clone(), s.clone()))
                .collect()
        };
        pages.accepted.values().flat_map(pairs).collect()
    }

    /// Fails where an event was lost, was made twice of one publish, or was
    /// delivered again for no reason.
    pub(crate) fn close(&self, interruptions: &[Interruption]) -> Summary {
        let promised = self.promised();
        let pages = self.pages();
        let lost: Vec<_> = promised
            .iter()
            .filter(|p| !pages.delivered.contains_key(*p))
            .collect();
        let split: Vec<_> = pages
            .carriers
            .iter()
            .filter(|(_, events)| events.len() > 1)
            .collect();
        let causes: Vec<_> = pages.kills.iter().chain(interruptions).collect();
        let mut duplicates = Vec::new();
        let mut unexplained = Vec::new();
        for (delivery, answers) in &pages.delivered {
            for pair in answers.windows(2) {
                let [first, again] = pair else { unreachable!() };
                let cause = causes.iter().find(|c| pages.explains(c, *first, *again));
                match cause {
                    Some(c) => {
                        duplicates.push((kind(&c.what), format!("{delivery:?}: {}", c.what)));
                    }
                    None => unexplained.push((delivery, again.at - first.at)),
                }
            }
        }
        // Two at a time, only where the lease of the first had ended with its session.
        let (explained, at_once): (Vec<_>, Vec<_>) = pages.overlaps.iter().partition(|o| {
            let ended = |c: &&Interruption| o.first <= c.at && c.at <= o.second + TOLD_LATE;
            causes.iter().any(ended)
        });
        assert!(at_once.is_empty(), "under two live leases: {at_once:?}");
        assert!(lost.is_empty(), "lost: {lost:?}");
        assert!(split.is_empty(), "several events of one publish: {split:?}");
        assert!(
            unexplained.is_empty(),
            "delivered again for no reason: {unexplained:?}"
        );
        duplicates.sort_unstable();
        let mut by_cause = BTreeMap::new();
        for (kind, _) in &duplicates {
            *by_cause.entry(kind.clone()).or_insert(0) += 1;
        }
        Summary {
            by_cause,
            overlaps: explained.len(),
            accepted: pages.accepted.len(),
            delivered: pages.delivered.values().map(Vec::len).sum(),
            kills: pages.kills.len(),
            duplicates: duplicates.into_iter().map(|(_, text)| text).collect(),
        }
    }

    /// Whether something that was published after that time was delivered.
    pub(crate) fn delivered_since(&self, subscription: &str, since: Option<Instant>) -> bool {
        let pages = self.pages();
        pages.delivered.iter().any(|((_, s), answers)| {
            s == subscription && since.is_none_or(|since| answers[0].at > since)
        })
    }
}
