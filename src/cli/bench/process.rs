//! CPU and memory of processes, as Linux shows them under `/proc`. Elsewhere
//! there is nothing to read, and the figures are left out.

use std::{fs, path::Path};

use super::receiver::THREADS;

/// Microseconds in the clock tick that `/proc` counts in: `USER_HZ` is 100 on
/// every Linux that this runs on.
const TICK_MICROS: u64 = 10_000;

/// What a line of `/proc/<pid>/stat` says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: u32,
    /// Ticks of its own.
    ticks: u64,
    /// Ticks of its children that have ended.
    ended_children: u64,
}

impl Stat {
    /// proc(5): `pid (comm) state ppid …`, utime to cstime are fields 14 to 17.
    /// The name may hold blanks and brackets, so fields count from its end.
    fn parse(text: &str) -> Option<Self> {
        let (start, end) = (text.find('(')?, text.rfind(')')?);
        let fields: Vec<&str> = text.get(end + 1..)?.split_ascii_whitespace().collect();
        let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
        Some(Self {
            name: text.get(start + 1..end)?.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            ticks: number(11)? + number(12)?,
            ended_children: number(13)? + number(14)?,
        })
    }

    fn read(path: impl AsRef<Path>) -> Option<Self> {
        Self::parse(&fs::read_to_string(path).ok()?)
    }
}

/// CPU used so far, in microseconds, by who used it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cpu {
    /// The server, if its process is known.
    pub server: Option<u64>,
    /// All processes of PostgreSQL, if it is on this machine.
    pub postgres: Option<u64>,
    /// The publishers: this process without the receivers.
    pub publisher: Option<u64>,
    /// The receivers' threads.
    pub receiver: Option<u64>,
}

impl Cpu {
    /// Reads it now. `postgres` is the port that PostgreSQL listens on.
    #[must_use]
    pub(super) fn now(server: Option<u32>, postgres: Option<u16>) -> Self {
        let own = Stat::read("/proc/self/stat").map(|s| s.ticks * TICK_MICROS);
        let receiver = receiver_micros();
        Self {
            server: server
                .and_then(|pid| Stat::read(format!("/proc/{pid}/stat")))
                .map(|s| (s.ticks + s.ended_children) * TICK_MICROS),
            postgres: postgres.and_then(postgres_micros),
            publisher: own.zip(receiver).map(|(all, r)| all.saturating_sub(r)),
            receiver,
        }
    }

    /// What was used since an earlier reading, in microseconds for each of `n`.
    #[must_use]
    pub(super) fn since(&self, earlier: &Self, n: u64) -> PerDelivery {
        let per = |now: Option<u64>, then: Option<u64>| {
            let used = now?.saturating_sub(then?);
            super::stats::ratio(super::stats::real(used), super::stats::real(n))
        };
        PerDelivery {
            server_us: per(self.server, earlier.server),
            postgres_us: per(self.postgres, earlier.postgres),
            publisher_us: per(self.publisher, earlier.publisher),
            receiver_us: per(self.receiver, earlier.receiver),
        }
    }
}

/// CPU for one delivery, in microseconds, by process.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
#[allow(clippy::struct_field_names, reason = "JSON has units in its names")]
pub(super) struct PerDelivery {
    /// The server's.
    pub server_us: Option<f64>,
    /// PostgreSQL's.
    pub postgres_us: Option<f64>,
    /// The publishers'.
    pub publisher_us: Option<f64>,
    /// The receivers'.
    pub receiver_us: Option<f64>,
}

/// Resident memory of a process, in bytes. // B13
#[must_use]
pub(super) fn resident(pid: u32) -> Option<u64> {
    parse_resident(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn receiver_micros() -> Option<u64> {
    let ticks = fs::read_dir("/proc/self/task")
        .ok()?
        .flatten()
        .filter_map(|task| Stat::read(task.path().join("stat")))
        .filter(|s| s.name == THREADS)
        .map(|s| s.ticks)
        .sum::<u64>();
    Some(ticks * TICK_MICROS)
}

/// All processes of the cluster at `port`: the postmaster, what it started, and
/// what of that has ended.
fn postgres_micros(port: u16) -> Option<u64> {
    let processes: Vec<(u32, Stat)> = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = Stat::read(entry.path().join("stat"))?;
            (stat.name == "postgres").then_some((pid, stat))
        })
        .collect();
    let postmasters: Vec<u32> = postmasters(&processes);
    let ours = match postmasters.as_slice() {
        [] => return None,
        [only] => *only,
        several => *several.iter().find(|pid| listens_on(**pid, port))?,
    };
    let ticks = processes
        .iter()
        .map(|(pid, s)| match (*pid == ours, s.parent == ours) {
            (true, _) => s.ticks + s.ended_children,
            (_, true) => s.ticks,
            _ => 0,
        })
        .sum::<u64>();
    Some(ticks * TICK_MICROS)
}

/// Those whose parent isn't PostgreSQL itself.
fn postmasters(processes: &[(u32, Stat)]) -> Vec<u32> {
    let is_postgres = |pid: u32| processes.iter().any(|(p, _)| *p == pid);
    processes
        .iter()
        .filter(|(_, s)| !is_postgres(s.parent))
        .map(|(pid, _)| *pid)
        .collect()
}

/// `postmaster.pid` in the cluster's folder has the port in its fourth line.
fn listens_on(pid: u32, port: u16) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cwd/postmaster.pid"))
        .is_ok_and(|text| text.lines().nth(3).and_then(|l| l.trim().parse().ok()) == Some(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "42 (tokio (x) rt) S 7 42 42 0 -1 4194560 1 2 3 4 100 50 20 5 20 0 9 0 1 2 3";

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let s = Stat::parse(LINE).unwrap();
        assert_eq!((s.name.as_str(), s.parent), ("tokio (x) rt", 7));
        assert_eq!((s.ticks, s.ended_children), (150, 25));
        assert_eq!(Stat::parse("nonsense"), None);
    }

    #[test]
    fn a_postmaster_is_a_postgres_that_no_postgres_started() {
        let stat = |parent| Stat {
            name: "postgres".into(),
            parent,
            ticks: 1,
            ended_children: 0,
        };
        let all = [(10, stat(1)), (11, stat(10)), (20, stat(1)), (21, stat(20))];
        assert_eq!(postmasters(&all), [10, 20]);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(
            parse_resident("Name:\tx\nVmRSS:\t   20480 kB\n"),
            Some(20 << 20)
        );
        assert_eq!(parse_resident("Name:\tx\n"), None);
    }

    #[test]
    fn cpu_per_delivery_is_left_out_where_it_is_unknown() {
        let then = Cpu {
            server: Some(100),
            ..Cpu::default()
        };
        let now = Cpu {
            server: Some(400),
            postgres: Some(1),
            ..Cpu::default()
        };
        let per = now.since(&then, 10);
        assert_eq!((per.server_us, per.postgres_us), (Some(30.0), None));
        assert_eq!(now.since(&then, 0).server_us, None);
    }
}
