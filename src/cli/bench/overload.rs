//! H2: ten times what the server takes, and how it is just after that.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    args::OverloadArgs,
    database,
    deployment::Deployment,
    error::Result,
    interrupted,
    pacer::Schedule,
    publisher::{Publishers, Tally},
    report::{Report, Row, Series, mib},
    scenario::{Bench, Load, Run, begin_live, conclude, measure as watch, odd, run},
    setup::Route,
    stats::{nanos, real},
};

/// How much of the rate from before must be there again.
const BACK: f64 = 0.9;
/// By when after the load's end.
const SOON: Duration = Duration::from_secs(5);
/// For how long it is looked at then.
const JUDGED: Duration = Duration::from_secs(5);
/// How much more than the sustainable rate is offered.
const TIMES: f64 = 10.0;
/// What passes for that: the publishers share the machine with the server.
const ABOUT: f64 = 9.0;
/// The most memory that the server may take, in bytes.
const MEMORY: u64 = 512 << 20;

/// What was offered, and how it was answered.
struct Overload {
    /// Calls by the status of their answer.
    statuses: BTreeMap<u16, u64>,
    /// Calls without an answer.
    broken: u64,
    /// How long it was, in seconds.
    length: f64,
}

impl Overload {
    fn of(tally: &Tally, length: Duration) -> Self {
        Self {
            statuses: tally.statuses.clone(),
            broken: tally.broken.values().sum(),
            length: length.as_secs_f64(),
        }
    }

    /// Events offered a second.
    fn offered(&self) -> f64 {
        real(self.statuses.values().sum::<u64>() + self.broken) / self.length
    }

    /// Events accepted a second.
    fn accepted(&self) -> f64 {
        real(self.statuses.get(&202).copied().unwrap_or(0)) / self.length
    }

    fn is_clean(&self) -> bool {
        let clean = |status: &u16| matches!(status, 202 | 429 | 503);
        self.broken == 0 && self.statuses.keys().all(clean)
    }
}

/// Full speed, overload, full speed again.
pub(super) async fn measure(args: &OverloadArgs) -> Result<Report> {
    args.run.target.check(1)?;
    let load = &args.run.load;
    let bench = Bench::start(load.listen).await?;
    let mut deployment =
        Deployment::start(&bench, &args.run.target, database(&args.run.target)).await?;
    let found = tokio::select! {
        found = both(&bench, args, &mut deployment) => found,
        stop = interrupted() => Err(stop),
    };
    let name = deployment.database.to_owned();
    deployment.stop().await?;
    let (before, overload, after) = found?;
    let mut report = Report {
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        connections: load.connections,
        body_bytes: load.body_bytes,
        ..Report::default()
    };
    report.rows = rows(&before, &overload, &after);
    report.series = vec![Series {
        name: "overload".into(),
        database: name,
        runs: vec![before, after],
    }];
    Ok(report)
}

async fn both(
    bench: &Bench,
    args: &OverloadArgs,
    deployment: &mut Deployment,
) -> Result<(Run, Overload, Run)> {
    let load = &args.run.load;
    let bytes = usize::try_from(load.body_bytes).unwrap_or(usize::MAX);
    let route = deployment.session.route("overload", 1, 1, bytes).await?;
    let full = Load::of("before", load, None);
    let before = run(bench, &route, &full, deployment.probes()).await?;
    bench.progress.say(&format!("before: {}", before.line()));
    let rate = before.events_per_s * TIMES;
    let (overload, after) = overloaded(bench, args, &route, rate, deployment).await?;
    bench.progress.say(&format!(
        "overload: {:.0} events/s offered, {:.0} accepted; after it: {}",
        overload.offered(),
        overload.accepted(),
        after.line()
    ));
    Ok((before, overload, after))
}

/// One run: its warm-up is the overload and [`SOON`] after it. The publishers that
/// are judged begin when those of the overload end.
async fn overloaded(
    bench: &Bench,
    args: &OverloadArgs,
    route: &Route,
    rate: f64,
    deployment: &Deployment,
) -> Result<(Overload, Run)> {
    let hub = &bench.receivers.hub;
    let length = args.run.load.warm_up + args.run.load.duration;
    let load = Load {
        warm_up: length + SOON,
        duration: JUDGED,
        ..Load::of("overload", &args.run.load, None)
    };
    let odd_before = odd(hub);
    let live = Arc::new(begin_live(hub, bench.next_run(), route, &load)?);
    hub.begin(Arc::clone(&live));
    let crowd = usize::from(args.overload_connections);
    let mut schedule = Schedule::begin(hub, rate, length, crowd)?;
    schedule.until = live.window.start - nanos(SOON);
    let crowd = Publishers::begin(hub, &live, &route.target, Some(&schedule), crowd);
    let judged = async {
        let wait = Duration::from_nanos(schedule.until.saturating_sub(hub.now()));
        tokio::time::sleep(wait).await;
        Publishers::begin(hub, &live, &route.target, None, load.connections)
            .join()
            .await
    };
    let (measured, tally, after) = tokio::try_join!(
        watch(bench, &live, &load, deployment.probes()),
        crowd.join(),
        judged
    )?;
    let overload = Overload::of(&tally, length);
    let after = conclude(bench, &live, &load, measured, after, odd_before).await?;
    Ok((overload, after))
}

fn rows(before: &Run, overload: &Overload, after: &Run) -> Vec<Row> {
    let row = |what: &str, figure: String, target: &str, reached: Option<bool>| Row {
        id: "H2".into(),
        what: what.into(),
        figure,
        of_raw: None,
        target: target.into(),
        reached,
    };
    let back = |what: &str, after: f64, before: f64| {
        let ratio = after / before.max(1.0);
        row(
            what,
            format!("{after:.0}/s, {ratio:.2} of {before:.0}/s before"),
            "0.9 of it",
            Some(ratio >= BACK),
        )
    };
    let times = overload.offered() / before.events_per_s.max(1.0);
    let mut rows = vec![
        row(
            "offered, beside the sustainable rate",
            format!(
                "{:.0} events/s, {times:.1} times {:.0}",
                overload.offered(),
                before.events_per_s
            ),
            "10 times",
            Some(times >= ABOUT),
        ),
        row(
            "answers to that, by status",
            format!(
                "{:?}; {} calls without an answer",
                overload.statuses, overload.broken
            ),
            "202, 429 and 503 alone",
            Some(overload.is_clean()),
        ),
        row(
            "accepted meanwhile",
            format!("{:.0} events/s", overload.accepted()),
            "",
            None,
        ),
        back(
            "events accepted, 5 to 10 s after its end",
            after.events_per_s,
            before.events_per_s,
        ),
        back(
            "deliveries, 5 to 10 s after its end",
            after.deliveries_per_s,
            before.deliveries_per_s,
        ),
    ];
    if let (Some(idle), Some(most)) = (before.resident_max, after.resident_max) {
        rows.push(row(
            "the server's memory at its highest",
            format!("{} MiB, {} MiB before", mib(most), mib(idle)),
            "< 512 MiB",
            Some(most < MEMORY),
        ));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::report::tests::sample;

    fn overload(accepted: u64, refused: u64, broken: u64) -> Overload {
        Overload {
            statuses: BTreeMap::from([(202, accepted), (503, refused)]),
            broken,
            length: 10.0,
        }
    }

    fn reached(overload: &Overload, after: f64, memory: u64) -> Vec<Option<bool>> {
        let before = Run {
            resident_max: Some(50 << 20),
            ..sample(1000.0)
        };
        let after = Run {
            resident_max: Some(memory),
            ..sample(after)
        };
        let rows = rows(&before, overload, &after);
        rows.iter().map(|r| r.reached).collect()
    }

    // H2
    #[test]
    fn what_was_not_offered_was_not_withstood() {
        let well = [true, true, true, true, true];
        let judged = |o: &Overload, after, memory| {
            let all = reached(o, after, memory);
            all.into_iter().flatten().collect::<Vec<_>>()
        };
        let ten = overload(10_000, 90_000, 0);
        assert_eq!(judged(&ten, 900.0, 100 << 20), well);
        let four = overload(10_000, 30_000, 0);
        assert_eq!(
            judged(&four, 1000.0, 100 << 20),
            [false, true, true, true, true]
        );
        let broken = overload(10_000, 89_000, 1_000);
        assert_eq!(
            judged(&broken, 1000.0, 100 << 20),
            [true, false, true, true, true]
        );
        assert_eq!(
            judged(&ten, 890.0, MEMORY),
            [true, true, false, false, false]
        );
    }
}
