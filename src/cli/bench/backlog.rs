//! How soon a long backlog is delivered once it may be: events are published while
//! their receiver is out of order, then it comes back; or while
//! `webhooks.delivery.enabled` is off, then it is switched on.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{
    args::BacklogArgs,
    deployment::Deployment,
    error::{BenchError, Result},
    pacer::Schedule,
    process,
    publisher::Publishers,
    receiver::Live,
    report::{Report, Row, mib},
    scenario::{Bench, Load, begin_live},
    setup::Route,
    stats::real,
};
use crate::domain::breaker::DEFAULT_OPEN;

/// What is to be reached, in deliveries per second and in bytes.
const RATE: f64 = 15_000.0;
const MEMORY: u64 = 300 << 20;
/// Everything counts: publishing, the outage and what follows.
const DAY: Duration = Duration::from_hours(24);
/// How often it is looked how many have arrived.
const LOOK: Duration = Duration::from_millis(50);
/// A receiver without an attempt for so long is left alone.
const QUIET: Duration = Duration::from_secs(2);
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
    let bytes = usize::try_from(args.run.load.body_bytes).unwrap_or(usize::MAX);
    let session = &mut deployment.session;
    if args.switched_off {
        session.switch(SWITCH, false).await?;
    }
    hub.refuse.store(!args.switched_off, Relaxed);
    let route = session.route("backlog", args.endpoints, 1, bytes).await?;
    let load = Load {
        warm_up: Duration::ZERO,
        duration: DAY,
        ..Load::of("backlog", &args.run.load, None)
    };
    let live = Arc::new(begin_live(hub, 0, &route, &load)?);
    hub.begin(Arc::clone(&live));
    fill(bench, args, &route, &live, load.connections).await?;

    let pid = deployment.probes().server;
    let before = pid.and_then(process::resident);
    let began = hub.now();
    if args.switched_off {
        deployment.session.switch(SWITCH, true).await?;
    }
    hub.refuse.store(false, Relaxed);
    let mut memory = before;
    let mut first = None;
    let mut last = 0;
    let took = loop {
        tokio::time::sleep(LOOK).await;
        memory = memory.max(pid.and_then(process::resident));
        let delivered = live.in_window.load(Relaxed);
        if first.is_none() && delivered > 0 {
            first = Some(hub.now());
        }
        // What a receiver that is back is delivered counts from its first on.
        let from = first.filter(|_| !args.switched_off).unwrap_or(began);
        let took = Duration::from_nanos(hub.now().saturating_sub(from));
        if delivered >= args.pending || took > args.run.load.drain {
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
    let clean = count.lost == 0 && count.duplicates == 0;
    let probed = match first {
        Some(at) if !args.switched_off => format!(
            "; the first came {:.1} s after the receiver was back, which is probed every {DEFAULT_OPEN} s unless set otherwise",
            Duration::from_nanos(at.saturating_sub(began)).as_secs_f64()
        ),
        _ => String::new(),
    };
    report.rows.push(Row {
        id: "B6".into(),
        what: format!(
            "backlog of {} deliveries to {} endpoint(s) after {}, {}",
            args.pending,
            args.endpoints,
            if args.switched_off {
                "delivery was off"
            } else {
                "an outage of the receiver"
            },
            deployment.database
        ),
        figure: format!(
            "{rate:.0} deliveries/s ({:.0} s{probed}); memory {} MiB before, at most {} MiB; lost {}, doubled {}",
            took.as_secs_f64(),
            mib(before.unwrap_or(0)),
            mib(memory.unwrap_or(0)),
            count.lost,
            count.duplicates
        ),
        of_raw: report.of_raw(rate),
        target: format!("{RATE:.0}/s, < 300 MiB, none lost or doubled"),
        reached: Some(rate >= RATE && small && clean),
    });
    Ok(())
}

/// Publishes what is to wait, of which nothing may be delivered. Where the receiver
/// is out of order: until it is left alone.
async fn fill(
    bench: &Bench,
    args: &BacklogArgs,
    route: &Route,
    live: &Arc<Live>,
    connections: usize,
) -> Result<()> {
    let hub = &bench.receivers.hub;
    let schedule = Schedule::at_once(hub, args.pending, connections);
    let publishers =
        Publishers::begin(hub, live, &route.target, Some(&schedule), connections).join();
    tokio::pin!(publishers);
    let mut every = tokio::time::interval(Duration::from_secs(1));
    let tally = loop {
        tokio::select! {
            done = &mut publishers => break done?,
            _ = every.tick() => {
                let accepted = live.ledger.count().accepted;
                bench.progress.tick(&format!("{accepted} of {} published", args.pending));
            }
        }
    };
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
    if args.switched_off {
        return Ok(());
    }
    let began = hub.now();
    loop {
        let refused = hub.refused.load(Relaxed);
        tokio::time::sleep(QUIET).await;
        if refused > 0 && hub.refused.load(Relaxed) == refused {
            bench.progress.say(&format!(
                "{refused} attempts were refused; the receiver is left alone now"
            ));
            return Ok(());
        }
        if Duration::from_nanos(hub.now().saturating_sub(began)) > args.run.load.drain {
            return Err(BenchError::Failed(format!(
                "the receiver refused {refused} attempts and is not left alone"
            )));
        }
    }
}
