//! What `/metrics` shows, in the Prometheus text format. Names are documented in
//! `docs/operations.md`. Handles are registered once: an increment is an atomic
//! addition.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use crate::{domain::redrive::Kind, error::Reason, tasks::Troubles};

/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

/// Upper bounds of the batches' sizes.
const SIZES: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 250.0, 500.0];

const REDRIVEN: &str = "onering_redriven_total";
const REDRIVEN_IS: &str = "Dead letters and events that redrives moved, by kind";

/// Every metric.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Events that were accepted.
    pub events_accepted: Counter,
    /// Publishes that were answered as before.
    pub events_repeated: Counter,
    /// Attempts by outcome.
    pub attempts_delivered: Counter,
    /// Attempts that are repeated.
    pub attempts_retryable: Counter,
    /// Attempts that are not.
    pub attempts_permanent: Counter,
    /// Attempts that were not sent: their signature was too old.
    pub attempts_replay_expired: Counter,
    /// Deliveries that reached their receiver.
    pub deliveries_delivered: Counter,
    /// Deliveries that were given up.
    pub deliveries_dead: Counter,
    /// Breakers that opened.
    pub breakers_opened: Counter,
    /// Finishes that came too late.
    pub leases_stale: Counter,
    /// Request to response, of one attempt.
    pub attempt_seconds: Histogram,
    /// Publish to delivered.
    pub delivery_seconds: Histogram,
    /// Events a commit.
    pub publish_batch: Histogram,
    /// Outcomes a commit.
    pub finish_batch: Histogram,
    /// Jobs in memory that wait for a worker.
    pub jobs_waiting: Gauge,
    /// Attempts under way.
    pub jobs_in_flight: Gauge,
    /// Partitions that this node owns.
    pub partitions_owned: Gauge,
    /// Workers' streams that are open here.
    pub worker_streams: Gauge,
    /// Streams that other nodes have open here for their workers.
    pub worker_links: Gauge,
    /// Deliveries of this node that workers have.
    pub worker_deliveries: Gauge,
    /// Messages of workers that were read.
    pub worker_messages_in: Counter,
    /// Messages that went to workers.
    pub worker_messages_out: Counter,
    /// Which background tasks fail.
    pub troubles: Troubles,
    /// 1 while deliveries are held because the database went back in time.
    pub restored: Gauge,
    /// 1 while this node decides with configuration that it can't renew.
    pub config_stale: Gauge,
    /// The configuration's revision.
    pub config_revision: Gauge,
    /// Statements that failed.
    pub store_errors: Counter,
    /// 1 while limits are decided without Redis, or without the store.
    pub limiter_degraded: Gauge,
    /// Calls that were decided before those who know of the limit had answered.
    pub limiter_unsure: Counter,
}

impl Metrics {
    /// A set of its own: several servers may run in one process.
    #[must_use]
    pub fn new() -> Self {
        let builder = PrometheusBuilder::new();
        // Fails for an empty list alone.
        let builder = builder
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)
            .unwrap_or_else(|_| PrometheusBuilder::new());
        let builder = builder
            .set_buckets_for_metric(Matcher::Suffix("_batch_size".into()), &SIZES)
            .unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        let r = Register(&recorder);
        let attempts =
            |outcome| r.counter("onering_attempts_total", "Attempts, by outcome", outcome);
        let deliveries = |outcome| {
            r.counter(
                "onering_deliveries_total",
                "Finished deliveries, by outcome",
                outcome,
            )
        };
        // Shown from the start, whatever is moved first.
        r.counter(REDRIVEN, REDRIVEN_IS, Some(("kind", "redrive")))
            .increment(0);
        let worker_messages = |direction| {
            r.counter(
                "onering_worker_messages_total",
                "Messages on workers' streams, by direction",
                Some(("direction", direction)),
            )
        };
        let events = |outcome| {
            r.counter(
                "onering_events_total",
                "Published events, by outcome",
                outcome,
            )
        };
        Self {
            events_accepted: events(Some(("outcome", "accepted"))),
            events_repeated: events(Some(("outcome", "repeated"))),
            attempts_delivered: attempts(Some(("outcome", "delivered"))),
            attempts_retryable: attempts(Some(("outcome", "retryable"))),
            attempts_permanent: attempts(Some(("outcome", "permanent"))),
            attempts_replay_expired: attempts(Some(("outcome", "replay_expired"))),
            deliveries_delivered: deliveries(Some(("outcome", "delivered"))),
            deliveries_dead: deliveries(Some(("outcome", "dead"))),
            breakers_opened: r.counter(
                "onering_breakers_opened_total",
                "Circuit breakers that opened",
                None,
            ),
            leases_stale: r.counter(
                "onering_stale_leases_total",
                "Outcomes that came after their lease was lost",
                None,
            ),
            attempt_seconds: r.histogram(
                "onering_attempt_seconds",
                "Request to response of an attempt",
            ),
            delivery_seconds: r.histogram("onering_delivery_seconds", "Publish to delivered"),
            publish_batch: r.histogram("onering_publish_batch_size", "Events a commit"),
            finish_batch: r.histogram("onering_finish_batch_size", "Outcomes a commit"),
            jobs_waiting: r.gauge(
                "onering_jobs_waiting",
                "Leased deliveries that wait for a worker",
            ),
            jobs_in_flight: r.gauge("onering_jobs_in_flight", "Attempts under way"),
            partitions_owned: r.gauge(
                "onering_partitions_owned",
                "Partitions that this node owns, of 64",
            ),
            worker_streams: r.gauge("onering_worker_streams", "Workers' open streams"),
            worker_links: r.gauge(
                "onering_worker_links",
                "Open streams of other nodes for their workers",
            ),
            worker_deliveries: r.gauge(
                "onering_worker_deliveries",
                "Deliveries of this node that workers have",
            ),
            worker_messages_in: worker_messages("in"),
            worker_messages_out: worker_messages("out"),
            troubles: Troubles::new(
                r.gauge(
                    "onering_tasks_failing",
                    "Background tasks that fail and go on trying",
                ),
                r.counter("onering_store_errors_total", "Statements that failed", None),
            ),
            restored: r.gauge(
                "onering_restored",
                "1 while deliveries are held because the database went back in time, or that is not known",
            ),
            config_stale: r.gauge(
                "onering_config_stale",
                "1 while the node decides with configuration that it can't renew",
            ),
            config_revision: r.gauge("onering_config_revision", "The configuration's revision"),
            store_errors: r.counter("onering_store_errors_total", "Statements that failed", None),
            limiter_degraded: r.gauge(
                "onering_rate_limiter_degraded",
                "1 while limits are decided without Redis, or without the store",
            ),
            limiter_unsure: r.counter(
                "onering_rate_limiter_unsure_total",
                "Calls decided before Redis or the store had answered",
                None,
            ),
            recorder,
            handle,
        }
    }

    /// Counts a refused call. Reasons are few and refusals are not the hot path:
    /// the counter is looked up.
    pub fn refused(&self, reason: Reason) {
        let register = Register(&self.recorder);
        register
            .counter(
                "onering_refused_total",
                "Refused calls, by reason",
                Some(("reason", crate::error::code(reason))),
            )
            .increment(1);
    }

    /// Counts what a redrive has moved. Steps are few: the counter is looked up.
    pub fn redriven(&self, kind: Kind, count: i64) {
        let label = match kind {
            Kind::Redrive => "redrive",
            Kind::Purge => "purge",
            Kind::Recover => "recover",
            Kind::Missing => "replay_missing",
        };
        Register(&self.recorder)
            .counter(REDRIVEN, REDRIVEN_IS, Some(("kind", label)))
            .increment(count.unsigned_abs());
    }

    /// Adds up what the histograms were told; they would grow without bounds where
    /// nobody reads `/metrics`.
    pub fn settle(&self) {
        self.handle.run_upkeep();
    }

    /// The text that `/metrics` answers.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

struct Register<'a>(&'a PrometheusRecorder);

const META: Metadata<'static> = Metadata::new("onering", Level::INFO, None);

impl Register<'_> {
    fn counter(
        &self,
        name: &'static str,
        what: &'static str,
        label: Option<(&'static str, &'static str)>,
    ) -> Counter {
        self.0
            .describe_counter(KeyName::from(name), Some(Unit::Count), what.into());
        let labels = label
            .map(|(k, v)| Label::new(k, v))
            .into_iter()
            .collect::<Vec<_>>();
        self.0
            .register_counter(&Key::from_parts(name, labels), &META)
    }

    fn gauge(&self, name: &'static str, what: &'static str) -> Gauge {
        self.0
            .describe_gauge(KeyName::from(name), None, what.into());
        self.0.register_gauge(&Key::from_name(name), &META)
    }

    fn histogram(&self, name: &'static str, what: &'static str) -> Histogram {
        self.0
            .describe_histogram(KeyName::from(name), None, what.into());
        self.0.register_histogram(&Key::from_name(name), &META)
    }
}
