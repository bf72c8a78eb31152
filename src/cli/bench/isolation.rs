//! What endpoints that hang cost the others: the same load twice, once with all
//! of them well and once with some that answer nothing until the attempt's limit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{
    args::IsolationArgs,
    deployment::Deployment,
    error::Result,
    pacer::Schedule,
    publisher::Publishers,
    report::{Report, Row, Series, spread},
    scenario::{Bench, Load, Run, begin_live, run},
    setup::{Place, Route},
    stats::Spread,
    suite,
};

/// How much the others' p99 may grow.
const MOST: f64 = 1.2;
/// How long what a run left is waited for.
const SETTLE: Duration = Duration::from_mins(1);

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
        let full = suite::throughput(bench, &args.run.load, deployment, "B1", 1, 1).await?;
        let rate = full.spread(|r| r.events_per_s).median / 2.0;
        report.series.push(full);
        rate
    };
    let bytes = usize::try_from(args.run.load.body_bytes).unwrap_or(usize::MAX);
    let judged = args.endpoints - args.hanging;
    let route = deployment.session.route("judged", judged, 1, bytes).await?;
    let share = |endpoints: u64| rate * endpoints as f64 / args.endpoints as f64;
    let (mut well, mut ill) = (Vec::new(), Vec::new());
    for n in 1..=args.run.load.runs {
        for hang in [false, true] {
            let (name, tag) = if hang {
                ("some hang", "ill")
            } else {
                ("all well", "well")
            };
            // Subscriptions of this run alone: those of the one before have open
            // breakers, and a backlog that would be delivered in this one.
            let others = deployment
                .session
                .route_to(Place::Hanging, &format!("{tag}{n}"), args.hanging, 1, bytes)
                .await?;
            let done = both(
                bench,
                deployment,
                [&route, &others],
                [
                    Load::of(name, &args.run.load, Some(share(judged))),
                    Load::of("hanging", &args.run.load, Some(share(args.hanging))),
                ],
                hang,
            )
            .await?;
            bench.progress.say(&format!(
                "{name} {n}/{}: {}",
                args.run.load.runs,
                done.line()
            ));
            if hang { &mut ill } else { &mut well }.push(done);
            deployment.session.remove(&others).await?;
            settle(bench, deployment).await?;
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

/// Waits until what waited for endpoints that hung is gone.
async fn settle(bench: &Bench, deployment: &mut Deployment) -> Result<()> {
    let began = Instant::now();
    while !deployment.session.is_idle().await? {
        if began.elapsed() > SETTLE {
            let late = "the next run is beside what is left of this one: it is still queued";
            bench.progress.say(late);
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// One run of both loads together; the result is that of the judged endpoints.
async fn both(
    bench: &Bench,
    deployment: &Deployment,
    [route, others]: [&Route; 2],
    [judged, hanging]: [Load; 2],
    hang: bool,
) -> Result<Run> {
    let hub = &bench.receivers.hub;
    let _answering = Hang::begin(&hub.hang, hang);
    // Its arrivals are not counted: what hangs is tried again.
    let live = Arc::new(begin_live(hub, u64::MAX, others, &hanging)?);
    let schedule = hanging
        .rate
        .map(|rate| {
            let length = hanging.warm_up + hanging.duration;
            Schedule::begin(hub, rate, length, hanging.connections)
        })
        .transpose()?;
    let publishers = Publishers::begin(
        hub,
        &live,
        &others.target,
        schedule.as_ref(),
        hanging.connections,
    );
    let done = run(bench, route, &judged, deployment.probes()).await?;
    publishers.join().await?;
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
