//! The result, as a table for people and as JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    latency::Percentiles,
    scenario::Run,
    stats::{Spread, ratio},
};

/// One line of the result.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    /// The requirement, such as `B1`, or nothing.
    pub id: String,
    /// What was measured.
    pub what: String,
    /// The figure, with its unit.
    pub figure: String,
    /// As a fraction of raw.
    pub of_raw: Option<f64>,
    /// What is to be reached.
    pub target: String,
    /// Whether it was.
    pub reached: Option<bool>,
}

/// Several runs of one thing.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Series {
    /// What was measured.
    pub name: String,
    /// The database.
    pub database: String,
    /// The runs.
    pub runs: Vec<Run>,
}

impl Series {
    /// A figure over the runs.
    #[must_use]
    pub(super) fn spread(&self, figure: impl Fn(&Run) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(figure)).unwrap_or(Spread {
            median: 0.0,
            min: 0.0,
            max: 0.0,
        })
    }

    /// Deliveries per second.
    #[must_use]
    pub(super) fn rate(&self) -> Spread {
        self.spread(|r| r.deliveries_per_s)
    }
}

/// Everything that an invocation measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// The machine's cores, shared by everything.
    pub cores: usize,
    /// Publishers.
    pub connections: u16,
    /// Size of each published body.
    pub body_bytes: u32,
    /// Raw runs before the others.
    pub raw_before: Vec<Run>,
    /// Raw runs after them.
    pub raw_after: Vec<Run>,
    /// The runs.
    pub series: Vec<Series>,
    /// How soon changes took effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub effects: Vec<Effect>,
    /// The table.
    pub rows: Vec<Row>,
}

/// How soon changes of one kind took effect on every node.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Effect {
    /// What was changed.
    pub what: String,
    /// On so many nodes.
    pub nodes: u16,
    /// The database.
    pub database: String,
    /// From the sending of the change to its answer.
    pub answer: Percentiles,
    /// From the sending of the change until the last node answered by it.
    pub from_sending: Percentiles,
    /// From the answer of the change; 0 where all nodes were first.
    pub from_answer: Percentiles,
    /// Changes that a node had not confirmed when they were answered.
    pub unconfirmed: u64,
}

impl Report {
    /// Posts per second of all raw runs, before and after.
    #[must_use]
    pub(super) fn raw(&self) -> Option<Spread> {
        let all = self.raw_before.iter().chain(&self.raw_after);
        Spread::of(all.map(|r| r.deliveries_per_s))
    }

    /// A rate as a fraction of raw.
    #[must_use]
    pub(super) fn of_raw(&self, rate: f64) -> Option<f64> {
        ratio(rate, self.raw()?.median)
    }

    /// Accepted deliveries that never came, over all runs.
    #[must_use]
    pub(super) fn lost(&self) -> u64 {
        self.series
            .iter()
            .flat_map(|s| &s.runs)
            .map(|r| r.count.lost)
            .sum()
    }

    /// Why the benchmark failed although it ran to its end.
    #[must_use]
    pub(super) fn failure(&self) -> Option<String> {
        if self.lost() > 0 {
            return Some(format!(
                "{} deliveries of accepted events never came",
                self.lost()
            ));
        }
        let nothing = |run: &&Run| run.count.accepted == 0;
        let run = self.series.iter().flat_map(|s| &s.runs).find(nothing)?;
        Some(format!("{}: no event was accepted", run.name))
    }

    /// As Markdown.
    #[must_use]
    pub(super) fn markdown(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).ok();
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        if let Some(raw) = self.raw() {
            let middle = |runs: &[Run]| Spread::of(runs.iter().map(|r| r.deliveries_per_s));
            write!(out, "raw: {} posts/s", spread(raw, 0))?;
            if let (Some(before), Some(after)) = (middle(&self.raw_before), middle(&self.raw_after))
            {
                write!(
                    out,
                    " (before {:.0}, after {:.0})",
                    before.median, after.median
                )?;
            }
            writeln!(
                out,
                "; {} cores shared by publishers, server, database and receivers; {} connections, {}-byte bodies\n",
                self.cores, self.connections, self.body_bytes
            )?;
        }
        if !self.rows.is_empty() {
            writeln!(
                out,
                "| | what | figure | of raw | to reach | |\n|---|---|---|---|---|---|"
            )?;
        }
        for row in &self.rows {
            let of_raw = row.of_raw.map_or(String::new(), |f| format!("{f:.3}"));
            let reached = match row.reached {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            let Row {
                id,
                what,
                figure,
                target,
                ..
            } = row;
            writeln!(
                out,
                "| {id} | {what} | {figure} | {of_raw} | {target} | {reached} |"
            )?;
        }
        if !self.effects.is_empty() {
            writeln!(
                out,
                "\n| change | nodes | database | changes | answered, p50 / p99 / max ms | in force everywhere after sending, p50 / p99 / max ms | after the answer, p50 / p99 / max ms | not confirmed |\n\
                 |---|---|---|---|---|---|---|---|"
            )?;
        }
        for e in &self.effects {
            let times =
                |p: &Percentiles| format!("{:.2} / {:.2} / {:.2}", p.p50_ms, p.p99_ms, p.max_ms);
            writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                e.what,
                e.nodes,
                e.database,
                e.answer.count,
                times(&e.answer),
                times(&e.from_sending),
                times(&e.from_answer),
                e.unconfirmed
            )?;
        }
        if !self.series.is_empty() {
            writeln!(
                out,
                "\n| run | database | events/s | deliveries/s | of raw | p50 / p90 / p99 / p99.9 ms | answer p50 / p99 ms | \
                 lost | doubled | refused | unanswered | CPU µs per delivery: server, PostgreSQL, publisher, receiver | \
                 commits, WAL bytes, statements per delivery | memory MiB |\n\
                 |---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
            )?;
        }
        for series in &self.series {
            for run in &series.runs {
                self.write_run(out, series, run)?;
            }
        }
        for run in self.series.iter().flat_map(|s| &s.runs) {
            if let Some(troubles) = run.troubles() {
                writeln!(out, "\n{}: {troubles}", run.name)?;
            }
        }
        if !self.series.is_empty() {
            let doubled: u64 = self
                .series
                .iter()
                .flat_map(|s| &s.runs)
                .map(|r| r.count.duplicates)
                .sum();
            writeln!(out, "\nlost: {}, doubled: {doubled}", self.lost())?;
        }
        Ok(())
    }

    fn write_run(&self, out: &mut String, series: &Series, run: &Run) -> std::fmt::Result {
        let (l, a, c) = (&run.latency, &run.answer, &run.count);
        let micros = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.1}"));
        let cpu = [
            run.cpu.server_us,
            run.cpu.postgres_us,
            run.cpu.publisher_us,
            run.cpu.receiver_us,
        ]
        .map(micros)
        .join(", ");
        let postgres = run.postgres.map_or("–".into(), |p| {
            let statements = p.statements.map_or("–".into(), |s| format!("{s:.3}"));
            format!("{:.3}, {:.0}, {statements}", p.commits, p.wal_bytes)
        });
        let of_raw = self
            .of_raw(run.deliveries_per_s)
            .map_or("–".into(), |f| format!("{f:.3}"));
        let memory = run.resident_max.map_or("–".into(), mib);
        writeln!(
            out,
            "| {} | {} | {:.0} | {:.0} | {of_raw} | {:.2} / {:.2} / {:.2} / {:.2} | {:.2} / {:.2} | {} | {} | {} | {} | {cpu} | {postgres} | {memory} |",
            series.name,
            series.database,
            run.events_per_s,
            run.deliveries_per_s,
            l.p50_ms,
            l.p90_ms,
            l.p99_ms,
            l.p999_ms,
            a.p50_ms,
            a.p99_ms,
            c.lost,
            c.duplicates,
            c.refused,
            c.unanswered,
        )
    }
}

/// `median (min–max)`.
#[must_use]
pub(super) fn spread(s: Spread, decimals: usize) -> String {
    format!(
        "{:.decimals$} ({:.decimals$}–{:.decimals$})",
        s.median, s.min, s.max
    )
}

/// Bytes as MiB.
#[must_use]
pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1}", super::stats::real(bytes) / 1_048_576.0)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cli::bench::{latency::Percentiles, ledger::Count};

    pub(crate) fn sample(rate: f64) -> Run {
        Run {
            name: "B1".into(),
            events_per_s: rate,
            deliveries_per_s: rate,
            latency: Percentiles {
                count: 9,
                p50_ms: 1.0,
                p90_ms: 2.0,
                p99_ms: 3.0,
                p999_ms: 4.0,
                max_ms: 5.0,
            },
            answer: Percentiles::default(),
            count: Count::default(),
            statuses: BTreeMap::new(),
            broken: BTreeMap::new(),
            first_refusal: None,
            malformed: 0,
            drain_s: 0.0,
            cpu: crate::cli::bench::process::PerDelivery::default(),
            resident_max: None,
            postgres: None,
            seconds: vec![1, 5, 3],
        }
    }

    #[test]
    fn figures_are_fractions_of_the_median_of_all_raw_runs() {
        let report = Report {
            raw_before: vec![sample(90.0), sample(100.0)],
            raw_after: vec![sample(110.0)],
            ..Report::default()
        };
        assert_eq!(report.of_raw(25.0), Some(0.25));
        assert!(
            report
                .markdown()
                .contains("raw: 100 (90–110) posts/s (before 95, after 110)")
        );
    }

    #[test]
    fn a_run_in_which_nothing_was_accepted_failed() {
        let report = |accepted| {
            let mut run = sample(0.0);
            run.count.accepted = accepted;
            Report {
                series: vec![Series {
                    name: "B1".into(),
                    database: "SQLite".into(),
                    runs: vec![run],
                }],
                ..Report::default()
            }
        };
        assert!(report(0).failure().is_some());
        assert_eq!(report(1).failure(), None);
    }

    #[test]
    fn losses_and_refusals_are_never_hidden() {
        let mut run = sample(10.0);
        run.count = Count {
            lost: 2,
            refused: 7,
            duplicates: 3,
            ..Count::default()
        };
        run.statuses = BTreeMap::from([(202, 5), (429, 7)]);
        run.first_refusal = Some("RATE_LIMITED".into());
        assert!(run.line().contains("429: 7") && run.line().contains("RATE_LIMITED"));
        let report = Report {
            series: vec![Series {
                name: "B1".into(),
                database: "SQLite".into(),
                runs: vec![run],
            }],
            ..Report::default()
        };
        assert_eq!(report.lost(), 2);
        assert!(report.failure().is_some_and(|why| why.starts_with("2 ")));
        let text = report.markdown();
        assert!(
            text.contains("lost: 2, doubled: 3") && text.contains("429: 7"),
            "{text}"
        );
    }
}
