//! How soon a long backlog is delivered once it may be: events are published while
//! `webhooks.delivery.enabled` is off, then it is switched on.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::task::JoinSet;

use super::{
    args::BacklogArgs,
    deployment::Deployment,
    error::{BenchError, Result},
    pacer::Schedule,
    process,
    publisher::{Tally, publish},
    report::{Report, Row, mib},
    scenario::{Bench, Load, begin_live},
    stats::real,
};

/// What is to be reached, in deliveries per second and in bytes.
const RATE: f64 = 15_000.0;
const MEMORY: u64 = 300 << 20;
const SWITCH: &str = "webhooks.delivery.enabled";

/// What has a server of our own leave the switch to us.
pub(super) const UNPINNED: &str = "ONERING_WEBHOOKS_DELIVERY_ENABLED=";

/// `onering bench backlog`
pub(super) async fn measure(
    bench: &Bench,
    args: &BacklogArgs,
    deployment: &mut Deployment,
    report: &mut Report,
) -> Result<()> {
    let hub = &bench.receivers.hub;
    let bytes = usize::try_from(args.load.body_bytes).unwrap_or(usize::MAX);
    let session = &mut deployment.session;
    session.switch(SWITCH, false).await?;
    let route = session.route("backlog", args.endpoints, 1, bytes).await?;
    let load = Load {
        warm_up: Duration::ZERO,
        duration: args.load.drain,
        ..Load::of("backlog", &args.load, None)
    };
    let live = Arc::new(begin_live(hub, 0, &route, &load)?);
    hub.begin(Arc::clone(&live));

    let schedule = Schedule::at_once(hub, args.pending, load.connections);
    let mut publishers = JoinSet::new();
    for _ in 0..load.connections {
        publishers.spawn(publish(
            Arc::clone(hub),
            Arc::clone(&live),
            Arc::clone(&route.target),
            Some(schedule.clone()),
        ));
    }
    let mut tally = Tally::new()?;
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            done = publishers.join_next() => match done {
                None => break,
                Some(one) => tally.add(one.map_err(|e| BenchError::failed("a publisher stopped", e))??),
            },
            _ = every.tick() => {
                let accepted = live.ledger.count().accepted;
                bench.progress.tick(&format!("{accepted} of {} published", args.pending));
            }
        }
    }
    let count = live.ledger.count();
    if count.accepted != args.pending || count.delivered > 0 {
        return Err(BenchError::Failed(format!(
            "{} of {} events were accepted, and {} delivered before they should be; the first refusal: {}",
            count.accepted,
            args.pending,
            count.delivered,
            tally.first_refusal.unwrap_or_default()
        )));
    }

    let pid = deployment.probes().server;
    let before = pid.and_then(process::resident);
    let began = hub.now();
    deployment.session.switch(SWITCH, true).await?;
    let mut memory = before;
    let mut last = 0;
    let took = loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        memory = memory.max(pid.and_then(process::resident));
        let took = Duration::from_nanos(hub.now().saturating_sub(began));
        let delivered: u64 = live.seconds.iter().map(|s| s.load(Relaxed)).sum();
        if delivered >= args.pending || took > args.load.drain {
            break took;
        }
        if took.as_secs() > last {
            last = took.as_secs();
            bench.progress.tick(&format!(
                "{last} s: {delivered} of {} delivered",
                args.pending
            ));
        }
    };
    let count = live.ledger.count();
    let rate = real(count.delivered) / took.as_secs_f64();
    let small = memory.is_none_or(|m| m < MEMORY);
    report.rows.push(Row {
        id: "B6".into(),
        what: format!(
            "backlog of {} deliveries to {} endpoint(s), {}",
            args.pending, args.endpoints, deployment.database
        ),
        figure: format!(
            "{rate:.0} deliveries/s ({:.0} s); memory {} MiB before, at most {} MiB; lost {}, doubled {}",
            took.as_secs_f64(),
            mib(before.unwrap_or(0)),
            mib(memory.unwrap_or(0)),
            count.lost,
            count.duplicates
        ),
        of_raw: report.of_raw(rate),
        target: format!("{RATE:.0}/s, < 300 MiB"),
        reached: Some(rate >= RATE && small && count.lost == 0),
    });
    Ok(())
}
