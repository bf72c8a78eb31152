//! The result of `bench verify` and `bench me`.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    callers::CallRun,
    gate::{GateArgs, What},
    report::{Row, spread},
    stats::{Spread, ratio},
};

/// What `VerifyKey` is to reach of an empty call. // B7
const VERIFY_OF_EMPTY: f64 = 0.85;
/// How much slower its slowest hundredth may be. // B7
const VERIFY_P99: f64 = 1.3;
/// What `me` is to reach of an empty handler. // B8
const ME_OF_EMPTY: f64 = 0.60;

/// A run of what is empty and one of what is measured, one after the other.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Pair {
    /// The empty one.
    pub empty: CallRun,
    /// The measured one.
    pub measured: CallRun,
}

/// Everything that an invocation measured.
#[derive(Debug, Serialize)]
pub(super) struct Calls {
    /// The mode.
    pub name: &'static str,
    /// The machine's cores, shared by callers and servers.
    pub cores: usize,
    /// Callers.
    pub callers: u16,
    /// Keys in the store.
    pub keys: u32,
    /// The runs.
    pub pairs: Vec<Pair>,
    /// The table; `of_raw` is the fraction of the empty call.
    pub rows: Vec<Row>,
}

impl Calls {
    /// Draws the rows from the runs.
    pub(super) fn new(what: What, args: &GateArgs, pairs: Vec<Pair>) -> Self {
        let rows = rows(what, &pairs);
        Self {
            name: what.name(),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            callers: args.callers,
            keys: args.keys,
            pairs,
            rows,
        }
    }

    /// As Markdown.
    pub(super) fn markdown(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).ok();
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{} cores shared by callers and servers; {} callers, {} keys; fractions are of the empty run \
             before each, medians of {} (lowest–highest)\n",
            self.cores,
            self.callers,
            self.keys,
            self.pairs.len()
        )?;
        writeln!(
            out,
            "| | what | figure | of empty | to reach | |\n|---|---|---|---|---|---|"
        )?;
        for row in &self.rows {
            let of = row.of_raw.map_or(String::new(), |f| format!("{f:.3}"));
            let reached = match row.reached {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            writeln!(
                out,
                "| {} | {} | {} | {of} | {} | {reached} |",
                row.id, row.what, row.figure, row.target
            )?;
        }
        writeln!(
            out,
            "\n| run | calls/s | p50 / p90 / p99 / p99.9 ms | CPU µs per call: server, callers |\n|---|---|---|---|"
        )?;
        for pair in &self.pairs {
            for (name, run) in [("empty", &pair.empty), (self.name, &pair.measured)] {
                let l = &run.latency;
                let us = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.1}"));
                writeln!(
                    out,
                    "| {name} | {:.0} | {:.2} / {:.2} / {:.2} / {:.2} | {}, {} |",
                    run.calls_per_s,
                    l.p50_ms,
                    l.p90_ms,
                    l.p99_ms,
                    l.p999_ms,
                    us(run.server_us),
                    us(run.client_us),
                )?;
            }
        }
        Ok(())
    }
}

fn over(pairs: &[Pair], figure: impl Fn(&Pair) -> Option<f64>) -> Spread {
    Spread::of(pairs.iter().filter_map(figure)).unwrap_or(Spread {
        median: 0.0,
        min: 0.0,
        max: 0.0,
    })
}

fn rows(what: What, pairs: &[Pair]) -> Vec<Row> {
    let rate = over(pairs, |p| Some(p.measured.calls_per_s));
    let empty = over(pairs, |p| Some(p.empty.calls_per_s));
    let fraction = over(pairs, |p| {
        ratio(p.measured.calls_per_s, p.empty.calls_per_s)
    });
    let slower = over(pairs, |p| {
        ratio(p.measured.latency.p99_ms, p.empty.latency.p99_ms)
    });
    let figure = format!(
        "{} calls/s, {} empty; fraction {}",
        spread(rate, 0),
        spread(empty, 0),
        spread(fraction, 3)
    );
    match what {
        What::Verify => vec![
            Row {
                id: "B7".into(),
                what: "`VerifyKey` beside an empty unary call, calls".into(),
                figure,
                of_raw: Some(fraction.median),
                target: format!("{VERIFY_OF_EMPTY:.2} of empty"),
                reached: Some(fraction.median >= VERIFY_OF_EMPTY),
            },
            Row {
                id: "B7".into(),
                what: "the same, p99 of the latency".into(),
                figure: format!("{} times the empty call's", spread(slower, 2)),
                of_raw: Some(slower.median),
                target: format!("at most {VERIFY_P99} times"),
                reached: Some(slower.median <= VERIFY_P99),
            },
        ],
        What::Me => vec![Row {
            id: "B8".into(),
            what: "`GET /v1/external/me` beside an empty handler".into(),
            figure,
            of_raw: Some(fraction.median),
            target: format!("{ME_OF_EMPTY:.2} of empty"),
            reached: Some(fraction.median >= ME_OF_EMPTY),
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::latency::Percentiles;

    fn run(calls_per_s: f64, p99_ms: f64) -> CallRun {
        CallRun {
            calls_per_s,
            latency: Percentiles {
                p99_ms,
                ..Percentiles::default()
            },
            server_us: None,
            client_us: None,
        }
    }

    fn pair(measured: f64, p99: f64) -> Pair {
        Pair {
            empty: run(100.0, 4.0),
            measured: run(measured, p99),
        }
    }

    // B7, B8: a fraction is of the run beside it; the median decides.
    #[test]
    fn fractions_are_of_the_run_beside() {
        let mut pairs = [pair(86.0, 4.4), pair(70.0, 9.0), pair(95.0, 4.0)];
        pairs[2].empty.calls_per_s = 105.0;
        let reached = |what, pairs: &[Pair]| -> Vec<_> {
            rows(what, pairs).iter().map(|r| r.reached).collect()
        };
        assert_eq!(reached(What::Verify, &pairs), [Some(true), Some(true)]);
        pairs[0].measured = run(84.0, 5.3);
        assert_eq!(reached(What::Verify, &pairs), [Some(false), Some(false)]);
        assert_eq!(reached(What::Me, &pairs), [Some(true)]);
        assert_eq!(reached(What::Me, &[pair(59.0, 4.0)]), [Some(false)]);
    }
}
