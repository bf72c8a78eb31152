//! What a node knows of a key's limit, and decides from it. No I/O and no clock
//! of its own: times are the node's monotonic clock, unless they say otherwise.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{State, Undecided};
use crate::domain::{
    id::{KeyId, Micros},
    limit::{AHEAD, Answer, Ask, EXACT, HOUR, LEASED, Window},
};

/// The lenders' places.
pub(super) const STORE: usize = 0;
pub(super) const REDIS: usize = 1;

/// How old a lender's answer may be for a refusal to follow from it: others may
/// have given something back since.
const FRESH: Micros = 1_000_000;
const MINUTE: Micros = 60_000_000;

/// How a lender stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lender {
    /// Which part of the limit it lends.
    pub(super) part: i64,
    /// Whether it answers.
    pub(super) usable: bool,
    /// Whether this call waited for it long enough.
    pub(super) slow: bool,
    /// Whether nobody else borrows from it: what is known here is all there is.
    pub(super) sure: bool,
    /// Whether nobody else borrowed from it when it was looked at last: of a key of
    /// which nothing is known nothing was lent then.
    pub(super) alone: bool,
    /// How many nodes borrow from it, as far as is known; at least one.
    pub(super) nodes: i64,
}

impl Lender {
    pub(super) const fn can_be_asked(&self) -> bool {
        self.usable && !self.slow
    }
}

/// The parts of a limit that the lenders lend: the store all of it, or a
/// quarter where there is Redis. The parts don't overlap, so whichever lender
/// forgets or is away, the other can't lend too much.
pub(super) fn parts(limit: i64, redis: bool) -> [i64; 2] {
    let store = if redis { limit - limit / 4 * 3 } else { limit };
    [store, limit - store]
}

/// What follows from what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Decided.
    State(State),
    /// This lender may have what is missing.
    Ask(usize),
    /// Who could decide can't be asked.
    Unsure,
}

/// Units that may be spent until then.
#[derive(Debug, Clone, Copy)]
struct Held {
    lender: usize,
    /// The loan's end on the lender's clock.
    ends: Micros,
    until: Micros,
    left: i64,
}

/// A lender's last answer.
#[derive(Debug, Default)]
struct Known {
    window: Window,
    at: Option<Micros>,
    /// When the window was so.
    heard: Option<Micros>,
    /// What to add to this node's clock for the lender's, at the least.
    offset: Micros,
    /// Units spent without a loan: to be told, and being told.
    spent: i64,
    telling: i64,
    /// What is to be given back, by the loans' ends.
    back: Vec<(Micros, i64)>,
    /// Units that callers wait for.
    waiting: i64,
    asked: bool,
}

impl Known {
    fn room(&self, part: i64, now: Micros) -> i64 {
        part - self.window.used(now + self.offset) - self.spent - self.telling
    }

    /// Whether a refusal may follow from what is known.
    fn is_fresh(&self, lender: &Lender, now: Micros) -> bool {
        lender.part <= 0 || lender.sure || self.at.is_some_and(|at| at + FRESH > now)
    }
}

/// What a lender holds of a key, by the loans' ends and borrowers; for a Redis
/// that forgot it.
pub(super) type Copies = Vec<(Micros, i64, i64)>;

/// A key's limit as this node sees it.
#[derive(Debug)]
pub(super) struct KeyState {
    limit: i64,
    held: Vec<Held>,
    known: [Known; 2],
    /// What Redis holds.
    pub(super) copies: Copies,
    /// Units spent in the current minute and in the one before.
    minute: i64,
    this: i64,
    last: i64,
    used_at: Micros,
    /// Told of every answer.
    pub(super) changed: Arc<Notify>,
}

impl KeyState {
    /// A key of which nothing is known; `offset` leads from this node's monotonic
    /// clock to its wall clock, for want of a better one.
    pub(super) fn new(now: Micros, offset: Micros) -> Self {
        let known = || Known {
            offset,
            ..Known::default()
        };
        Self {
            limit: 0,
            held: Vec::new(),
            known: [known(), known()],
            copies: Vec::new(),
            minute: 0,
            this: 0,
            last: 0,
            used_at: now,
            changed: Arc::default(),
        }
    }

    /// What the store had when the node began, or was alone again. What it lent
    /// to this node meanwhile is newer.
    pub(super) fn loaded(&mut self, window: Window, sent: Micros, offset: Micros) {
        let known = &mut self.known[STORE];
        if known.at.is_none_or(|at| at < sent) {
            known.window = window;
            known.offset = offset;
            known.heard = Some(sent);
        }
    }

    /// Decides on a call of that cost; 0 looks.
    pub(super) fn decide(
        &mut self,
        limit: i64,
        cost: i64,
        now: Micros,
        lenders: &[Lender],
        degraded: bool,
    ) -> Said {
        self.used_at = now;
        if limit != self.limit {
            // Loans for another limit are not this one's.
            self.limit = limit;
            self.give_up();
        }
        self.expire(now);
        let held: i64 = self.held.iter().map(|h| h.left).sum();
        if cost > 0 && cost <= held {
            self.spend(cost, now);
            return Said::State(self.state(true, 0, now, lenders, degraded));
        }
        if cost > limit {
            return Said::State(self.state(false, cost, now, lenders, degraded));
        }
        let missing = cost - held;
        let known = lenders.iter().zip(&self.known);
        let all_known = known
            .clone()
            .all(|(l, k)| !l.can_be_asked() || k.is_fresh(l, now) && (l.sure || k.at.is_some()));
        let room: i64 = known
            .filter(|(l, _)| l.can_be_asked())
            .map(|(l, k)| k.room(l.part, now).max(0))
            .sum();
        if cost == 0 && (all_known || !lenders.iter().any(Lender::can_be_asked)) {
            return Said::State(self.state(true, 0, now, lenders, degraded));
        }
        if !(all_known && room < missing) {
            // Redis first.
            for at in (0..lenders.len()).rev() {
                let (lender, known) = (&lenders[at], &self.known[at]);
                let least = if lenders.len() == 1 { missing } else { 1 };
                let may = known.room(lender.part, now) >= least.max(1);
                let unknown = !known.is_fresh(lender, now) || cost == 0 && known.at.is_none();
                if lender.can_be_asked() && lender.part > 0 && (may && cost > 0 || unknown) {
                    return Said::Ask(at);
                }
            }
        }
        if lenders.iter().all(Lender::can_be_asked) || cost == 0 {
            return Said::State(self.state(cost == 0, cost, now, lenders, degraded));
        }
        Said::Unsure
    }

    /// Decides where no lender answers in time: from what is known for sure, else
    /// as the tier has it.
    pub(super) fn decide_alone(
        &mut self,
        cost: i64,
        undecided: Undecided,
        now: Micros,
        lenders: &[Lender],
        degraded: bool,
    ) -> State {
        if cost == 0 {
            return self.state(true, 0, now, lenders, degraded);
        }
        let held: i64 = self.held.iter().map(|h| h.left).sum();
        let missing = (cost - held).max(0);
        let (store, known) = (&lenders[STORE], &self.known[STORE]);
        let sure = store.sure;
        let room = known.room(store.part, now);
        let passes = match undecided {
            Undecided::Refuse => false,
            Undecided::Share => {
                let own = known.spent + known.telling;
                // What was heard an hour ago says nothing of this one.
                let knows = store.alone || known.heard.is_some_and(|at| at + HOUR > now);
                !store.can_be_asked()
                    && knows
                    && (own + missing).saturating_mul(store.nodes) <= room + own
            }
            Undecided::Pass => degraded || !sure,
        };
        if sure && room >= missing || passes {
            self.spend(cost - missing, now);
            self.note(missing, now);
            self.known[STORE].spent += missing;
            return self.state(true, 0, now, lenders, degraded || !sure);
        }
        let mut state = self.state(false, cost, now, lenders, degraded || !sure);
        if !sure || degraded {
            // Not for want of quota: worth another try soon.
            state.undecided = true;
            state.retry_after = state
                .retry_after
                .clamp(Duration::ZERO, Duration::from_secs(1));
        }
        state
    }

    fn note(&mut self, cost: i64, now: Micros) {
        let minute = now.div_euclid(MINUTE);
        if minute != self.minute {
            self.last = if minute == self.minute + 1 {
                self.this
            } else {
                0
            };
            self.this = 0;
            self.minute = minute;
        }
        self.this += cost;
    }

    fn spend(&mut self, mut cost: i64, now: Micros) {
        self.note(cost, now);
        // What ends first goes first.
        self.held.sort_by_key(|h| h.until);
        for held in &mut self.held {
            let taken = cost.min(held.left);
            held.left -= taken;
            cost -= taken;
        }
        self.held.retain(|h| h.left > 0);
    }

    fn state(
        &self,
        allowed: bool,
        cost: i64,
        now: Micros,
        lenders: &[Lender],
        degraded: bool,
    ) -> State {
        let held: i64 = self.held.iter().map(|h| h.left).sum();
        let usable = || lenders.iter().zip(&self.known).filter(|(l, _)| l.usable);
        let mut free: i64 = held + usable().map(|(l, k)| k.room(l.part, now)).sum::<i64>();
        let remaining = free.clamp(0, self.limit);
        let mut wait = 0;
        if !allowed {
            // When which units come back.
            let mut coming: Vec<(Micros, i64)> = usable()
                .flat_map(|(_, k)| {
                    let at = now + k.offset;
                    k.window.counted(at).map(move |(e, n)| (e + HOUR - at, n))
                })
                .collect();
            coming.sort_unstable();
            let mut coming = coming.iter();
            wait = loop {
                let Some((at, units)) = coming.next() else {
                    break HOUR;
                };
                free += units;
                if free >= cost {
                    break *at;
                }
            };
        }
        let oldest = lenders.iter().zip(&self.known).filter_map(|(_, k)| {
            let first = k.window.counted(now + k.offset).next()?;
            Some(first.0 + HOUR)
        });
        let clock = self.known.iter().map(|k| k.offset).max().unwrap_or(0) + now;
        State {
            allowed,
            limit: self.limit,
            remaining,
            reset: (oldest.min().unwrap_or(clock) + 999_999) / 1_000_000,
            retry_after: Duration::from_micros(wait.max(0) as u64),
            degraded,
            undecided: false,
        }
    }

    /// Moves what can't be spent any more to what is given back.
    pub(super) fn expire(&mut self, now: Micros) {
        for held in self.held.extract_if(.., |h| h.until <= now) {
            self.known[held.lender].back.push((held.ends, held.left));
        }
    }

    /// Gives everything back.
    pub(super) fn give_up(&mut self) {
        self.expire(Micros::MAX);
    }

    /// How much of a lender's part to hold ahead.
    fn ahead(&self, lender: usize, part: i64, now: Micros) -> i64 {
        let leased = match lender {
            REDIS => self.limit >= LEASED,
            _ => self.limit > EXACT,
        };
        let gone = now.div_euclid(MINUTE) - self.minute;
        let recent = match gone {
            0 => self.this.max(self.last),
            1 => self.this,
            _ => 0,
        };
        if leased && recent > 1 {
            recent.min((part / 20).max(1))
        } else {
            0
        }
    }

    /// Whether a lender should be asked ahead of the next calls.
    pub(super) fn runs_low(&self, now: Micros, lenders: &[Lender]) -> Option<usize> {
        let useful = self.held.iter().filter(|h| h.until > now + AHEAD / 2);
        let left: i64 = useful.map(|h| h.left).sum();
        (0..lenders.len()).rev().find(|at| {
            let lender = &lenders[*at];
            let ahead = self.ahead(*at, lender.part, now);
            lender.usable && left * 2 < ahead && self.known[*at].room(lender.part, now) > 0
        })
    }

    /// Marks a lender as asked; false where it is already. What is missing is
    /// asked for. Nobody waits for a lender that is not asked: what waited before
    /// has asked anew, or has gone.
    pub(super) fn ask(&mut self, lender: usize, missing: i64) -> bool {
        let known = &mut self.known[lender];
        let newly = !std::mem::replace(&mut known.asked, true);
        if newly {
            known.waiting = 0;
        }
        known.waiting += missing.max(0);
        newly
    }

    /// What callers miss of that cost.
    pub(super) fn missing(&self, cost: i64) -> i64 {
        cost - self.held.iter().map(|h| h.left).sum::<i64>()
    }

    /// Whether nothing is held, to be told, or being told.
    pub(super) fn is_settled(&self) -> bool {
        let known = || self.known.iter();
        self.held.is_empty()
            && known().all(|k| !k.asked && k.spent == 0 && k.telling == 0 && k.back.is_empty())
    }

    /// The limit that was last decided by.
    pub(super) const fn limit(&self) -> i64 {
        self.limit
    }

    /// Whether something is to be told to a lender.
    pub(super) fn has_news(&self, lender: usize) -> bool {
        self.known[lender].spent > 0 || !self.known[lender].back.is_empty()
    }

    /// What to ask a lender.
    pub(super) fn question(&mut self, key: KeyId, lender: usize, part: i64, now: Micros) -> Ask {
        let ahead = self.ahead(lender, part, now);
        let known = &mut self.known[lender];
        let waiting = std::mem::take(&mut known.waiting);
        known.telling += std::mem::take(&mut known.spent);
        Ask {
            key,
            whole: self.limit,
            limit: part,
            need: 1,
            want: waiting + ahead,
            spent: known.telling,
            back: std::mem::take(&mut known.back),
        }
    }

    /// Takes a lender's answer to what was sent then.
    pub(super) fn answered(&mut self, lender: usize, sent: Micros, now: Micros, answer: Answer) {
        let known = &mut self.known[lender];
        known.asked = false;
        known.telling = 0;
        known.at = Some(now);
        known.heard = Some(now);
        known.offset = answer.now - now;
        known.window = answer.window;
        // The lender's clock may have been read as early as the question was sent.
        let until = sent + (answer.ends - answer.now);
        let mut left = answer.lent;
        if until > now {
            let repaid = left.min(known.spent);
            known.spent -= repaid;
            left -= repaid;
        }
        if left > 0 {
            self.held.push(Held {
                lender,
                ends: answer.ends,
                until,
                left,
            });
        }
        self.changed.notify_waiters();
    }

    /// A lender did not answer: what it was to be given back may be given back or
    /// not, and is not repeated; what was spent is, rather twice than not at all.
    pub(super) fn failed(&mut self, lender: usize) {
        let known = &mut self.known[lender];
        known.asked = false;
        known.spent += std::mem::take(&mut known.telling);
        self.changed.notify_waiters();
    }

    /// Whether nothing of it counts any more.
    pub(super) fn is_over(&self, now: Micros) -> bool {
        self.used_at + HOUR + 3 * MINUTE < now
            && self.held.is_empty()
            && self.known.iter().all(|k| !k.asked && k.spent == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Part;

    const SECOND: Micros = 1_000_000;
    const NOW: Micros = 1_700_000_000 * SECOND;

    fn store(part: i64, sure: bool) -> [Lender; 1] {
        [Lender {
            part,
            usable: true,
            slow: false,
            sure,
            alone: sure,
            nodes: 1,
        }]
    }

    fn question(key: &mut KeyState, lender: &Lender, missing: i64) -> Ask {
        assert!(key.ask(STORE, missing), "nobody asks yet");
        let id = KeyId::new(NOW, Part::new(0));
        key.question(id, STORE, lender.part, NOW)
    }

    fn decide(key: &mut KeyState, limit: i64, cost: i64, lenders: &[Lender]) -> Said {
        key.decide(limit, cost, NOW, lenders, false)
    }

    fn allowed(said: Said) -> bool {
        match said {
            Said::State(state) => state.allowed,
            other => panic!("{other:?}"),
        }
    }

    // K6: what was spent while the answer was under way is not lent twice.
    #[test]
    fn a_credit_is_repaid_by_the_loan_that_was_under_way() {
        let lenders = store(10, true);
        let mut window = Window::default();
        window.add(NOW + SECOND, 9);
        let mut key = KeyState::new(NOW, 0);
        key.loaded(window.clone(), NOW, 0);
        assert_eq!(decide(&mut key, 10, 1, &lenders), Said::Ask(STORE));
        let ask = question(&mut key, &lenders[0], 1);
        let alone = key.decide_alone(1, Undecided::Refuse, NOW, &lenders, false);
        assert!(alone.allowed && alone.remaining == 0, "{alone:?}");
        let again = key.decide_alone(1, Undecided::Refuse, NOW, &lenders, false);
        assert!(!again.allowed, "{again:?}");
        key.answered(STORE, NOW, NOW, window.lend(&ask, NOW));
        assert!(!allowed(decide(&mut key, 10, 1, &lenders)));
        assert!(!key.has_news(STORE), "the loan paid for it");
    }

    // K6
    #[test]
    fn a_credit_without_a_loan_is_told() {
        let lenders = store(10, true);
        let mut window = Window::default();
        let mut key = KeyState::new(NOW, 0);
        assert_eq!(decide(&mut key, 10, 4, &lenders), Said::Ask(STORE));
        let alone = key.decide_alone(4, Undecided::Refuse, NOW, &lenders, false);
        assert!(alone.allowed && alone.remaining == 6, "{alone:?}");
        let lost = question(&mut key, &lenders[0], 0);
        assert_eq!(lost.spent, 4);
        key.failed(STORE);
        let ask = question(&mut key, &lenders[0], 0);
        assert_eq!(ask.spent, 4, "told again");
        key.answered(STORE, NOW, NOW, window.lend(&ask, NOW));
        assert_eq!(window.used(NOW), 4);
        let look = decide(&mut key, 10, 0, &lenders);
        assert!(
            matches!(look, Said::State(s) if s.remaining == 6),
            "{look:?}"
        );
    }

    // K7
    #[test]
    fn one_of_several_nodes_has_no_credit() {
        let lenders = store(10, false);
        let mut key = KeyState::new(NOW, 0);
        assert_eq!(decide(&mut key, 10, 1, &lenders), Said::Ask(STORE));
        assert!(
            !key.decide_alone(1, Undecided::Refuse, NOW, &lenders, false)
                .allowed
        );
        let open = key.decide_alone(1, Undecided::Pass, NOW, &lenders, false);
        assert!(open.allowed && open.degraded);
        assert!(key.has_news(STORE), "it counts later");
    }

    // K5, K7: without the store a node's part passes of what was known to be left.
    #[test]
    fn a_share_passes_without_the_store() {
        let mut lenders = store(10, false);
        lenders[STORE].nodes = 3;
        let share = |key: &mut KeyState, now, lenders: &[Lender]| {
            key.decide_alone(1, Undecided::Share, now, lenders, true)
        };
        let mut key = KeyState::new(NOW, 0);
        assert_eq!(decide(&mut key, 10, 1, &lenders), Said::Ask(STORE));
        let asked = share(&mut key, NOW, &lenders);
        assert!(!asked.allowed, "the store can still be asked");
        lenders[STORE].slow = true;
        let unknown = share(&mut key, NOW, &lenders);
        assert!(!unknown.allowed && unknown.undecided, "{unknown:?}");
        lenders[STORE].alone = true;
        assert!(share(&mut key, NOW, &lenders).allowed, "nobody had called");
        lenders[STORE].alone = false;
        let mut window = Window::default();
        window.add(NOW + SECOND, 3);
        let ask = question(&mut key, &lenders[0], 0);
        assert_eq!(ask.spent, 1);
        key.answered(STORE, NOW, NOW, window.lend(&ask, NOW));
        let late = NOW + SECOND + HOUR;
        assert!(!share(&mut key, late, &lenders).allowed, "too long ago");
        let mut passed = 0;
        while share(&mut key, NOW, &lenders).allowed {
            passed += 1;
            assert!(passed <= 10);
        }
        assert_eq!(passed, 2, "a third of six");
    }

    #[test]
    fn a_refused_key_is_not_asked_for_again_at_once() {
        let lenders = store(100, false);
        let mut window = Window::default();
        window.add(NOW + SECOND, 100);
        let mut key = KeyState::new(NOW, 0);
        assert_eq!(decide(&mut key, 100, 1, &lenders), Said::Ask(STORE));
        let ask = question(&mut key, &lenders[0], 1);
        key.answered(STORE, NOW, NOW, window.lend(&ask, NOW));
        assert!(!allowed(decide(&mut key, 100, 1, &lenders)));
        let later = key.decide(100, 1, NOW + FRESH, &lenders, false);
        assert_eq!(later, Said::Ask(STORE));
    }

    // K6: a loan lives from when it was asked for, not from when it was answered.
    #[test]
    fn a_late_answer_is_of_less_use() {
        let lenders = store(100, false);
        let mut key = KeyState::new(NOW, 0);
        assert_eq!(decide(&mut key, 100, 1, &lenders), Said::Ask(STORE));
        let ask = question(&mut key, &lenders[0], 1);
        let answer = Window::default().lend(&ask, NOW);
        let life = answer.ends - answer.now;
        key.answered(STORE, NOW, NOW + life, answer);
        let late = key.decide(100, 1, NOW + life, &lenders, false);
        assert_eq!(late, Said::Ask(STORE), "its end has come");
    }

    proptest::proptest! {
        #[test]
        fn the_parts_are_the_whole(limit in 1i64..1_000_000_000) {
            let [store, redis] = parts(limit, true);
            assert!(store > 0 && redis >= 0 && store + redis == limit);
            assert_eq!(parts(limit, false), [limit, 0]);
        }
    }
}
