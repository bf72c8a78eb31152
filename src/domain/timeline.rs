//! Whether a database went back in time. It carries a mark that only grows; what
//! was seen of the mark is noted outside of it too. A backup that was restored is
//! behind what was noted, or finds itself on another server than the one that it
//! ran on last.

use uuid::Uuid;

use super::id::Micros;

/// How far a database may be behind what was seen of it: what a crash can take
/// along where commits don't wait for the disk or a standby.
pub const SLACK: Micros = 30_000_000;

/// How far a database has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// The line that it is on. A restore that was accepted begins another one.
    pub id: Uuid,
    /// How far it is on it, on the database's clock.
    pub mark: Micros,
    /// The server that it ran on; empty where that is not known.
    pub server: String,
    /// Why deliveries are held; empty where they are not.
    pub restored: String,
}

/// Why a database is taken for a backup that was restored; none where it is not.
/// `here` is the server that it runs on now, `seen` the greatest mark of its line
/// that was noted.
#[must_use]
pub fn restored(timeline: &Timeline, here: &str, seen: Option<Micros>) -> Option<String> {
    let known = !timeline.server.is_empty() && !here.is_empty();
    if known && timeline.server != here {
        return Some("it is a copy: it ran on another server, or as another database".to_owned());
    }
    let behind = seen.map_or(0, |seen| seen - timeline.mark);
    (behind > SLACK).then(|| {
        format!(
            "it went back in time: it is {} s behind what was seen of it",
            behind / 1_000_000
        )
    })
}

/// Whether a database is where it was left, whatever is noted of it: its mark was
/// moved on just now, on its own clock.
#[must_use]
pub const fn is_fresh(timeline: &Timeline, now: Micros) -> bool {
    now - timeline.mark <= SLACK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mark: Micros, server: &str) -> Timeline {
        Timeline {
            id: Uuid::nil(),
            mark,
            server: server.to_owned(),
            restored: String::new(),
        }
    }

    // N2
    #[test]
    fn what_is_behind_or_elsewhere_was_restored() {
        let hour = 3_600_000_000;
        for (timeline, here, seen, is) in [
            (at(hour, "a"), "a", None, false),
            (at(hour, "a"), "a", Some(hour), false),
            (at(hour, "a"), "a", Some(hour - 1), false),
            (at(hour, "a"), "a", Some(hour + SLACK), false),
            (at(hour, "a"), "a", Some(hour + SLACK + 1), true),
            (at(hour, ""), "", Some(2 * hour), true),
            (at(hour, "a"), "b", None, true),
            (at(hour, ""), "b", None, false),
            (at(hour, "a"), "", None, false),
        ] {
            let why = restored(&timeline, here, seen);
            assert_eq!(why.is_some(), is, "{timeline:?} {here} {seen:?}: {why:?}");
        }
    }
}
