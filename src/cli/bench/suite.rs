//! The figures that are promised, measured in one go: raw, B1, B2, B3, B4, B5,
//! B13, B14.

use super::{
    args::{LoadArgs, TargetArgs},
    deployment::Deployment,
    error::Result,
    report::{Report, Row, Series, mib, spread},
    scenario::{Bench, Load, runs},
    stats::ratio,
};

/// What the suite found out about one database.
#[derive(Debug)]
struct Found {
    one: Series,
    ten: Series,
    idle: Option<u64>,
    restart_s: Option<f64>,
}

/// Does everything on each database, latencies on the first; adds it to the report.
pub(super) async fn measure(
    bench: &Bench,
    load: &LoadArgs,
    target: &TargetArgs,
    report: &mut Report,
) -> Result<()> {
    let mut all = Vec::new();
    let databases = if target.url.is_some() {
        vec![String::new()]
    } else {
        target.database.clone()
    };
    for database in databases {
        let mut deployment = Deployment::start(bench, target, &database).await?;
        let found = tokio::select! {
            found = one_database(bench, load, &mut deployment, all.is_empty()) => found,
            stop = super::interrupted() => Err(stop),
        };
        deployment.stop().await?;
        let (found, latencies) = found?;
        all.push((found, latencies));
    }
    report.raw_after = super::raw::measure(bench, load, "raw").await?;
    for (place, (found, latencies)) in all.iter().enumerate() {
        rows(
            report,
            found,
            latencies,
            all.first().filter(|_| place > 0).map(|(f, _)| f),
        );
    }
    for (found, latencies) in all {
        report.series.extend([found.one, found.ten]);
        report.series.extend(latencies);
    }
    Ok(())
}

async fn one_database(
    bench: &Bench,
    load: &LoadArgs,
    deployment: &mut Deployment,
    with_latencies: bool,
) -> Result<(Found, Vec<Series>)> {
    let idle = deployment.idle_resident().await;
    // B1, B3
    let one = throughput(bench, load, deployment, "B1", 1, 1).await?;
    // B2, B3
    let ten = throughput(bench, load, deployment, "B2", 10, 10).await?;
    let mut latencies = Vec::new();
    if with_latencies {
        let half = one.spread(|r| r.events_per_s).median / 2.0;
        latencies = latency(bench, load, deployment, 100.0, half).await?;
    }
    // B14
    let restart_s = deployment.restart().await?.map(|d| d.as_secs_f64());
    Ok((
        Found {
            one,
            ten,
            idle,
            restart_s,
        },
        latencies,
    ))
}

/// Events as fast as they are taken, to `endpoints` subscriptions.
pub(super) async fn throughput(
    bench: &Bench,
    load: &LoadArgs,
    deployment: &mut Deployment,
    name: &str,
    endpoints: u64,
    fan_out: u64,
) -> Result<Series> {
    at_rate(bench, load, deployment, name, None, endpoints, fan_out).await
}

/// Runs at a rate, or as fast as events are taken.
pub(super) async fn at_rate(
    bench: &Bench,
    load: &LoadArgs,
    deployment: &mut Deployment,
    name: &str,
    rate: Option<f64>,
    endpoints: u64,
    fan_out: u64,
) -> Result<Series> {
    let bytes = usize::try_from(load.body_bytes).unwrap_or(usize::MAX);
    let topic = name.to_lowercase();
    let route = deployment
        .session
        .route(&topic, endpoints, fan_out, bytes)
        .await?;
    let how = Load::of(name, load, rate);
    let runs = runs(bench, &route, &how, deployment.probes(), load.runs).await?;
    Ok(Series {
        name: name.to_owned(),
        database: deployment.database.to_owned(),
        runs,
    })
}

/// The two latencies: at a low rate, and at half of what the server takes.
pub(super) async fn latency(
    bench: &Bench,
    load: &LoadArgs,
    deployment: &mut Deployment,
    low: f64,
    half: f64,
) -> Result<Vec<Series>> {
    // B4
    let b4 = at_rate(bench, load, deployment, "B4", Some(low), 1, 1).await?;
    // B5. A server that takes nothing has no half.
    let b5 = at_rate(bench, load, deployment, "B5", Some(half.max(1.0)), 1, 1).await?;
    Ok(vec![b4, b5])
}

/// The rows of B4 and B5.
pub(super) fn latency_rows(report: &Report, series: &[Series]) -> Vec<Row> {
    series
        .iter()
        .map(|s| {
            let (p50, p99) = (
                s.spread(|r| r.latency.p50_ms),
                s.spread(|r| r.latency.p99_ms),
            );
            let rate = s.spread(|r| r.events_per_s).median;
            let (target, reached) = if s.name == "B4" {
                (
                    "p50 ≤ 2 ms, p99 ≤ 5 ms",
                    p50.median <= 2.0 && p99.median <= 5.0,
                )
            } else {
                ("p99 ≤ 25 ms", p99.median <= 25.0)
            };
            Row {
                id: s.name.clone(),
                what: format!(
                    "latency publish → received at {rate:.0} events/s, {}",
                    s.database
                ),
                figure: format!("p50 {} ms, p99 {} ms", spread(p50, 2), spread(p99, 2)),
                of_raw: report.of_raw(s.rate().median),
                target: target.into(),
                reached: Some(reached),
            }
        })
        .collect()
}

/// `first` is the database that B3 is compared with, for the others.
fn rows(report: &mut Report, found: &Found, latencies: &[Series], first: Option<&Found>) {
    let database = found.one.database.clone();
    let mut rows = Vec::new();
    for (series, first, what, target) in [
        (&found.one, first.map(|f| &f.one), "1 endpoint", 0.16),
        (&found.ten, first.map(|f| &f.ten), "fan-out 10", 0.40),
    ] {
        let rate = series.rate();
        let of_raw = report.of_raw(rate.median);
        // B3
        let of_first = first.and_then(|f| ratio(rate.median, f.rate().median));
        let clean = series
            .runs
            .iter()
            .all(|r| r.count.lost == 0 && r.count.duplicates == 0);
        let (id, target, reached) = match of_first {
            Some(f) => (
                format!("B3 ({})", series.name),
                format!("0.8 of {}; it is {f:.2} of it", series.name),
                Some(f >= 0.8 && clean),
            ),
            None => (
                series.name.clone(),
                format!("{target:.2} of raw"),
                of_raw.map(|f| f >= target && clean),
            ),
        };
        rows.push(Row {
            id,
            what: format!("durable publish → delivered, {what}, {database}"),
            figure: format!("{} deliveries/s", spread(rate, 0)),
            of_raw,
            target,
            reached,
        });
    }
    rows.extend(latency_rows(report, latencies));
    // B13
    let busy = found.one.runs.iter().filter_map(|r| r.resident_max).max();
    if let (Some(idle), Some(busy)) = (found.idle, busy) {
        rows.push(Row {
            id: "B13".into(),
            what: format!("memory idle / at B1, {database}"),
            figure: format!("{} / {} MiB", mib(idle), mib(busy)),
            of_raw: None,
            target: "< 40 / < 150 MiB".into(),
            reached: Some(idle < 40 << 20 && busy < 150 << 20),
        });
    }
    // B14
    if let Some(s) = found.restart_s {
        rows.push(Row {
            id: "B14".into(),
            what: format!("start to first request served, existing database, {database}"),
            figure: format!("{s:.3} s"),
            of_raw: None,
            target: "< 1 s".into(),
            reached: Some(s < 1.0),
        });
    }
    report.rows.extend(rows);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::report::tests::sample;

    fn series(name: &str, database: &str, rate: f64) -> Series {
        Series {
            name: name.into(),
            database: database.into(),
            runs: vec![sample(rate)],
        }
    }

    fn found(database: &str, one: f64, ten: f64) -> Found {
        Found {
            one: series("B1", database, one),
            ten: series("B2", database, ten),
            idle: None,
            restart_s: Some(0.5),
        }
    }

    #[test]
    fn the_second_database_is_compared_with_the_first() {
        let mut report = Report {
            raw_before: vec![sample(60_000.0)],
            ..Report::default()
        };
        let (first, second) = (
            found("PostgreSQL", 12_000.0, 20_000.0),
            found("SQLite", 9_000.0, 19_000.0),
        );
        rows(
            &mut report,
            &first,
            &[series("B4", "PostgreSQL", 100.0)],
            None,
        );
        rows(&mut report, &second, &[], Some(&first));
        let reached: Vec<_> = report
            .rows
            .iter()
            .map(|r| (r.id.as_str(), r.reached))
            .collect();
        assert_eq!(
            reached,
            [
                ("B1", Some(true)),
                ("B2", Some(false)),
                ("B4", Some(true)),
                ("B14", Some(true)),
                ("B3 (B1)", Some(false)),
                ("B3 (B2)", Some(true)),
                ("B14", Some(true)),
            ]
        );
    }

    #[test]
    fn what_lost_an_event_reached_nothing() {
        let mut report = Report {
            raw_before: vec![sample(60_000.0)],
            ..Report::default()
        };
        let mut one = found("PostgreSQL", 12_000.0, 30_000.0);
        for run in &mut one.one.runs {
            run.count.lost = 1;
        }
        rows(&mut report, &one, &[], None);
        assert_eq!(report.rows.first().and_then(|r| r.reached), Some(false));
    }
}
