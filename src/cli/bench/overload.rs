//! H2: ten times what the server takes, and how it is just after that.

use std::time::Duration;

use super::{
    args::OverloadArgs,
    database,
    deployment::Deployment,
    error::Result,
    interrupted,
    report::{Report, Row, Series, mib},
    scenario::{Bench, Load, Run, run},
};

/// How much of the rate from before must be there again.
const BACK: f64 = 0.9;
/// By when, in seconds.
const SOON: f64 = 5.0;
/// How much more than the sustainable rate is offered.
const TIMES: f64 = 10.0;

/// Full speed, overload, full speed again.
pub(super) async fn measure(args: &OverloadArgs) -> Result<Report> {
    args.target.check(1)?;
    let bench = Bench::start(args.load.listen).await?;
    let mut deployment = Deployment::start(&bench, &args.target, database(&args.target)).await?;
    let found = tokio::select! {
        found = three_runs(&bench, args, &mut deployment) => found,
        stop = interrupted() => Err(stop),
    };
    let name = deployment.database.to_owned();
    deployment.stop().await?;
    let [before, during, after] = found?;
    let mut report = Report {
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        connections: args.load.connections,
        body_bytes: args.load.body_bytes,
        ..Report::default()
    };
    let ends = (args.load.warm_up + args.load.duration).as_secs();
    report.rows = rows(&before, &during, &after, ends);
    report.series = vec![Series {
        name: "overload".into(),
        database: name,
        runs: vec![before, during, after],
    }];
    Ok(report)
}

async fn three_runs(
    bench: &Bench,
    args: &OverloadArgs,
    deployment: &mut Deployment,
) -> Result<[Run; 3]> {
    let bytes = usize::try_from(args.load.body_bytes).unwrap_or(usize::MAX);
    let route = deployment.session.route("overload", 1, 1, bytes).await?;
    let full = Load::of("before", &args.load, None);
    let before = run(bench, &route, &full, deployment.probes()).await?;
    bench.progress.say(&format!("before: {}", before.line()));
    let overload = Load {
        name: "overload".into(),
        connections: usize::from(args.overload_connections),
        rate: Some(before.events_per_s * TIMES),
        ..full.clone()
    };
    let during = run(bench, &route, &overload, deployment.probes()).await?;
    bench.progress.say(&format!("overload: {}", during.line()));
    // What was accepted was delivered meanwhile; that time counts.
    let gone = during.drain_s + 1.0;
    let again = Load {
        name: "after".into(),
        warm_up: Duration::from_secs_f64((SOON - gone).max(0.0)),
        ..full
    };
    let after = run(bench, &route, &again, deployment.probes()).await?;
    bench.progress.say(&format!("after: {}", after.line()));
    Ok([before, during, after])
}

/// What was still delivered a second, from [`SOON`] after the load's end on; None
/// where nothing was left by then.
fn backlog_rate(during: &Run, ends: u64) -> Option<f64> {
    let from = usize::try_from(ends).ok()? + SOON as usize;
    // The last second is not a whole one.
    let seconds = during.seconds.get(from..during.seconds.len() - 1)?;
    let n = u32::try_from(seconds.len()).ok().filter(|n| *n > 0)?;
    Some(seconds.iter().sum::<u64>() as f64 / f64::from(n))
}

/// `ends`: the second in which the overload was over.
fn rows(before: &Run, during: &Run, after: &Run, ends: u64) -> Vec<Row> {
    let clean = |status: u16| matches!(status, 202 | 429 | 503);
    let other: u64 = during
        .statuses
        .iter()
        .filter(|(status, _)| !clean(**status))
        .map(|(_, n)| n)
        .sum();
    let broken: u64 = during.broken.values().sum();
    let row = |what: &str, figure: String, target: &str, reached: Option<bool>| Row {
        id: "H2".into(),
        what: what.into(),
        figure,
        of_raw: None,
        target: target.into(),
        reached,
    };
    let ratio = after.events_per_s / before.events_per_s.max(1.0);
    let mut rows = vec![
        row(
            "answers to ten times the sustainable rate, by status",
            format!("{:?}; {broken} calls without an answer", during.statuses),
            "202, 429 and 503 alone",
            Some(other == 0 && broken == 0),
        ),
        row(
            "accepted during the overload",
            format!(
                "{:.0} events/s of {:.0} before",
                during.events_per_s, before.events_per_s
            ),
            "",
            None,
        ),
        row(
            "accepted once what it left was delivered",
            format!(
                "{:.0} events/s, {ratio:.2} of the rate before",
                after.events_per_s
            ),
            "0.9 of it",
            Some(ratio >= BACK),
        ),
    ];
    if let Some(rate) = backlog_rate(during, ends) {
        let ratio = rate / before.deliveries_per_s.max(1.0);
        rows.push(row(
            "delivered of what it left, from 5 s after its end on",
            format!("{rate:.0} deliveries/s, {ratio:.2} of the rate before"),
            "0.9 of it",
            Some(ratio >= BACK),
        ));
    }
    if let (Some(idle), Some(most)) = (before.resident_max, during.resident_max) {
        let figure = format!("{} MiB, {} MiB before", mib(most), mib(idle));
        rows.push(row(
            "the server's memory at its highest",
            figure,
            "bounded",
            None,
        ));
    }
    rows
}
