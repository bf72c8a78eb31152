//! What endpoints that hang cost the others: the same load twice, once with all
//! of them well and once with some that answer nothing until the attempt's limit.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio::task::JoinSet;

use super::{
    args::IsolationArgs,
    deployment::Deployment,
    error::{BenchError, Result},
    pacer::Schedule,
    publisher::publish,
    report::{Report, Row, Series, spread},
    scenario::{Bench, Load, Run, begin_live, run},
    setup::{Place, Route},
    stats::Spread,
    suite,
};

/// How much the others' p99 may grow.
const MOST: f64 = 1.2;

/// The two loads: the endpoints that are judged, and those that hang.
struct Routes {
    judged: Route,
    hanging: Route,
}

/// `onering bench isolation`
pub(super) async fn measure(
    bench: &Bench,
    args: &IsolationArgs,
    deployment: &mut Deployment,
    report: &mut Report,
) -> Result<()> {
    let rate = if let Some(rate) = args.rate {
        rate
    } else {
        let full = suite::throughput(bench, &args.load, deployment, "B1", 1, 1).await?;
        let rate = full.spread(|r| r.events_per_s).median / 2.0;
        report.series.push(full);
        rate
    };
    let bytes = usize::try_from(args.load.body_bytes).unwrap_or(usize::MAX);
    let judged = args.endpoints - args.hanging;
    let session = &mut deployment.session;
    let routes = Routes {
        judged: session.route("judged", judged, 1, bytes).await?,
        hanging: session
            .route_to(Place::Hanging, "hanging", args.hanging, 1, bytes)
            .await?,
    };
    let share = |endpoints: u64| rate * endpoints as f64 / args.endpoints as f64;
    let (mut well, mut ill) = (Vec::new(), Vec::new());
    for n in 1..=args.load.runs {
        for hang in [false, true] {
            let name = if hang { "some hang" } else { "all well" };
            let done = both(
                bench,
                deployment,
                &routes,
                [
                    Load::of(name, &args.load, Some(share(judged))),
                    Load::of("hanging", &args.load, Some(share(args.hanging))),
                ],
                hang,
            )
            .await?;
            bench
                .progress
                .say(&format!("{name} {n}/{}: {}", args.load.runs, done.line()));
            if hang { &mut ill } else { &mut well }.push(done);
        }
    }
    let ratios = well
        .iter()
        .zip(&ill)
        .map(|(w, i)| i.latency.p99_ms / w.latency.p99_ms);
    let Some(ratio) = Spread::of(ratios) else {
        return Ok(());
    };
    report.rows.push(Row {
        id: "A8".into(),
        what: format!(
            "p99 of {judged} endpoints while {} others hang, over their p99 while all are well; {rate:.0} events/s to all, {}",
            args.hanging, deployment.database
        ),
        figure: format!("{} times", spread(ratio, 2)),
        of_raw: None,
        target: format!("at most {MOST} times"),
        reached: Some(ratio.median <= MOST),
    });
    for (name, runs) in [("all well", well), ("some hang", ill)] {
        report.series.push(Series {
            name: name.into(),
            database: deployment.database.into(),
            runs,
        });
    }
    Ok(())
}

/// One run of both loads together; the result is that of the judged endpoints.
async fn both(
    bench: &Bench,
    deployment: &Deployment,
    routes: &Routes,
    [judged, hanging]: [Load; 2],
    hang: bool,
) -> Result<Run> {
    let hub = &bench.receivers.hub;
    let _answering = Hang::begin(&hub.hang, hang);
    // Its arrivals are not counted: what hangs is tried again.
    let live = Arc::new(begin_live(hub, u64::MAX, &routes.hanging, &hanging)?);
    let schedule = hanging
        .rate
        .map(|rate| {
            let length = hanging.warm_up + hanging.duration;
            Schedule::begin(hub, rate, length, hanging.connections)
        })
        .transpose()?;
    let mut publishers = JoinSet::new();
    for _ in 0..hanging.connections {
        publishers.spawn(publish(
            Arc::clone(hub),
            Arc::clone(&live),
            Arc::clone(&routes.hanging.target),
            schedule.clone(),
        ));
    }
    let done = run(bench, &routes.judged, &judged, deployment.probes()).await?;
    while let Some(one) = publishers.join_next().await {
        one.map_err(|e| BenchError::failed("a publisher stopped", e))??;
    }
    Ok(done)
}

/// While this lives, endpoints hang.
struct Hang<'a>(&'a AtomicBool);

impl<'a> Hang<'a> {
    fn begin(switch: &'a AtomicBool, hang: bool) -> Self {
        switch.store(hang, Relaxed);
        Self(switch)
    }
}

impl Drop for Hang<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}
