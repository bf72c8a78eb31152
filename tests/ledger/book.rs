//! What was promised, what was done, and what explains the difference.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A delivery whose receiver's answer came this long before a node was killed
/// may not have been recorded: outcomes are written in batches, behind a queue
/// on a busy machine.
const UNRECORDED: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(crate) struct Book(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    /// By the number that the publisher gave.
    accepted: HashMap<u64, Accepted>,
    /// When each event was answered with 200, by subscription.
    delivered: HashMap<(String, String), Vec<Instant>>,
    /// Every event that carried a number.
    carriers: HashMap<u64, HashSet<String>>,
    kills: Vec<Interruption>,
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
        self.duplicates
            .iter()
            .try_for_each(|d| writeln!(f, "  {d}"))
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

    /// A receiver answered 200.
    pub(crate) fn delivered(&self, event: &str, subscription: &str, number: u64) {
        let mut pages = self.pages();
        let key = (event.to_owned(), subscription.to_owned());
        pages.delivered.entry(key).or_default().push(Instant::now());
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
        for (delivery, times) in &pages.delivered {
            for pair in times.windows(2) {
                let [first, again] = pair else { unreachable!() };
                let cause = causes
                    .iter()
                    .find(|c| *first <= c.at && c.at <= *again && c.at - *first <= UNRECORDED);
                match cause {
                    Some(c) => duplicates.push(format!("{delivery:?}: {}", c.what)),
                    None => unexplained.push((delivery, *again - *first)),
                }
            }
        }
        assert!(lost.is_empty(), "lost: {lost:?}");
        assert!(split.is_empty(), "several events of one publish: {split:?}");
        assert!(
            unexplained.is_empty(),
            "delivered again for no reason: {unexplained:?}"
        );
        duplicates.sort_unstable();
        Summary {
            accepted: pages.accepted.len(),
            delivered: pages.delivered.values().map(Vec::len).sum(),
            kills: pages.kills.len(),
            duplicates,
        }
    }

    /// Whether something that was published after that time was delivered.
    pub(crate) fn delivered_since(&self, subscription: &str, since: Option<Instant>) -> bool {
        let pages = self.pages();
        pages
            .delivered
            .iter()
            .any(|((_, s), times)| s == subscription && since.is_none_or(|since| times[0] > since))
    }
}
