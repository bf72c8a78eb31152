//! `MetricsService`.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures_util::{StreamExt as _, stream, stream::BoxStream};
use tokio::time::MissedTickBehavior;
use tonic::{Request, Response, Status};

use super::{Answer, Context, convert, deliveries::Deliveries, keys::Keys, page};
use crate::{
    caller::Caller,
    directory::Freshness,
    domain::{
        delivery,
        id::{DeliveryId, KeyId, TenantId, wall_clock},
        key,
    },
    error::{Error, Reason, Result},
    pipeline::publish::unavailable,
    proto::v1::{
        Alerts, GetExternalMetricsRequest, GetExternalMetricsResponse, GetWebhookMetricsRequest,
        GetWebhookMetricsResponse, KeyUsage, ListKeyUsageRequest, ListKeyUsageResponse,
        ListRecentDeliveriesRequest, ListRecentDeliveriesResponse, Thresholds, TierUsage,
        WatchMetricsRequest, WatchMetricsResponse, WebhookAlerts,
        metrics_service_server::MetricsService,
    },
    settings,
    store::Recent,
};

/// Keys' uses that are read at the same time.
const READS: usize = 4;
/// The longest interval between two answers, in seconds.
const SLOWEST: i32 = 3600;
/// The method that watches.
const WATCH: &str = "/onering.v1.MetricsService/WatchMetrics";

/// What is going on.
#[derive(Clone)]
pub struct Metrics(pub Context);

/// Which alerts the figures raise: each when its figure exceeds its threshold.
struct Raised {
    dead_letter: bool,
    auth_failures: bool,
    rate_limits: bool,
    replay_rejected: bool,
    latency_p90: bool,
}

impl Raised {
    fn new(
        t: &settings::Thresholds,
        tally: &crate::domain::counter::Tally,
        figures: &crate::usage::Figures,
    ) -> Self {
        Self {
            dead_letter: tally.dead_letters() > t.dead_letter_24h,
            auth_failures: figures.auth_failures > t.auth_failures_24h,
            rate_limits: figures.limit_hits > t.rate_limit_hits_24h,
            replay_rejected: tally.replay_rejected() > t.replay_rejected_24h,
            latency_p90: tally.latency(0.9) > t.latency_p90_seconds,
        }
    }
}

impl Metrics {
    /// Who calls; none where monitoring is open to anybody.
    fn caller<T>(&self, request: &Request<T>) -> Result<Option<Caller>> {
        let caller = request.extensions().get::<Caller>().cloned();
        if caller.is_none() && self.0.live.load().monitoring_open != Some(true) {
            return Err(Error::new(
                Reason::KeyMissing,
                "the call came without a credential",
            ));
        }
        Ok(caller)
    }

    /// Whose figures are shown: those of the tenant that is named or that the key
    /// is bound to; none: all tenants'.
    async fn whose(&self, caller: Option<&Caller>, named: &str) -> Result<Option<TenantId>> {
        match caller {
            Some(caller) if named.is_empty() => Ok(caller.key().tenant),
            Some(caller) => Ok(Some(self.0.tenant(caller, named).await?.id)),
            None if named.is_empty() => Ok(None),
            None => {
                let directory = &self.0.directory;
                if directory.tenant(named).is_none() {
                    self.0.catch_up().await;
                }
                let found = directory.tenant(named);
                found
                    .map(|t| Some(t.id))
                    .ok_or_else(|| Error::not_found(format_args!("tenant {named}")))
            }
        }
    }

    async fn external(&self, tenant: Option<TenantId>) -> Result<GetExternalMetricsResponse> {
        let context = &self.0;
        let live = context.live.load_full();
        let reading = context.monitor.reading(tenant).await.map_err(unavailable)?;
        let figures = context.usage.figures(tenant);
        let now = wall_clock();
        let mut active: BTreeMap<String, i64> = BTreeMap::new();
        context.directory.each_key(|key| {
            let counts = key.kind == key::Kind::Consumer
                && key.status_at(now) == key::Status::Active
                && (tenant.is_none() || key.tenant == tenant);
            if counts {
                match active.get_mut(&key.tier) {
                    Some(n) => *n += 1,
                    None => {
                        active.insert(key.tier.clone(), 1);
                    }
                }
            }
        });
        let raised = Raised::new(&live.thresholds, &reading.tally, &figures);
        let active_keys = active.values().sum();
        let mut by_tier: HashMap<String, TierUsage> = live
            .tiers
            .keys()
            .map(|tier| (tier.clone(), TierUsage::default()))
            .collect();
        for (tier, n) in active {
            by_tier.entry(tier).or_default().active = n;
        }
        for (tier, (usage, hits)) in figures.by_tier {
            // What has no tier is an admin key's, or nobody's.
            if !tier.is_empty() {
                let shown = by_tier.entry(tier).or_default();
                (shown.usage, shown.rate_limit_hits_24h) = (usage, hits);
            }
        }
        let t = live.thresholds;
        Ok(GetExternalMetricsResponse {
            active_keys,
            auth_failures_24h: figures.auth_failures,
            rate_limit_hits_24h: figures.limit_hits,
            key_metrics_by_tier: by_tier.clone(),
            by_tier,
            alerts: Some(Alerts {
                dead_letter: raised.dead_letter,
                auth_failures: raised.auth_failures,
                rate_limits: raised.rate_limits,
                replay_rejected: raised.replay_rejected,
                latency_p90: raised.latency_p90,
                rate_limiter_degraded: context.limiter.is_degraded(),
                config_stale: context.directory.freshness() != Freshness::Fresh,
            }),
            thresholds: Some(Thresholds {
                dead_letter_24h: t.dead_letter_24h,
                auth_failures_24h: t.auth_failures_24h,
                rate_limit_hits_24h: t.rate_limit_hits_24h,
                replay_rejected_24h: t.replay_rejected_24h,
                latency_p90_seconds: t.latency_p90_seconds,
            }),
        })
    }

    async fn webhooks(&self, tenant: Option<TenantId>) -> Result<GetWebhookMetricsResponse> {
        let context = &self.0;
        let reading = context.monitor.reading(tenant).await.map_err(unavailable)?;
        let tally = &reading.tally;
        let figures = crate::usage::Figures::default();
        let raised = Raised::new(&context.live.load().thresholds, tally, &figures);
        let now = |status| tally.now(status);
        Ok(GetWebhookMetricsResponse {
            delivered: now(delivery::Status::Delivered),
            failed: now(delivery::Status::Failed),
            dead: now(delivery::Status::Dead),
            dead_letter: now(delivery::Status::Dead),
            pending: now(delivery::Status::Pending),
            retrying: now(delivery::Status::Retrying),
            replay_expired: now(delivery::Status::ReplayExpired),
            replay_rejected_24h: tally.replay_rejected(),
            avg_retry_count: tally.average_retries(),
            delivery_latency_p50_sec: tally.latency(0.5),
            delivery_latency_p90_sec: tally.latency(0.9),
            delivery_latency_p95_sec: tally.latency(0.95),
            delivery_latency_p99_sec: tally.latency(0.99),
            success_rate_24h: tally.success_rate(),
            dead_letter_24h: tally.dead_letters(),
            breaker_opens_24h: tally.breaker_opens(),
            oldest_pending_age_sec: reading.oldest.unwrap_or_default().as_secs_f64(),
            alerts: Some(WebhookAlerts {
                dead_letter_exceeded: raised.dead_letter,
                replay_rejected_exceeded: raised.replay_rejected,
                latency_p90_exceeded: raised.latency_p90,
            }),
        })
    }

    async fn watched(&self, tenant: Option<TenantId>) -> Result<WatchMetricsResponse> {
        Ok(WatchMetricsResponse {
            time: Some(convert::timestamp(wall_clock())),
            external: Some(self.external(tenant).await?),
            webhooks: Some(self.webhooks(tenant).await?),
        })
    }

    fn recent(&self, tenant: Option<TenantId>, status: Option<delivery::Status>) -> Recent {
        let directory = &self.0.directory;
        let mut recent = Recent {
            parts: tenant.map_or_else(|| directory.parts(), |t| vec![t.part()]),
            tenant,
            status,
            ..Recent::default()
        };
        if let Some(tenant) = tenant {
            let all = directory.subscriptions(tenant);
            let usable = all.targets.iter().map(|t| t.subscription.id);
            recent.subscriptions = usable.chain(all.unusable.iter().map(|s| s.id)).collect();
        }
        let waits = status.is_some_and(|s| {
            use delivery::Status::{Parked, Pending, Retrying};
            matches!(s, Parked | Pending | Retrying)
        });
        if waits {
            directory.each_target(|t| {
                let s = &t.subscription;
                if s.disabled.is_some() && (tenant.is_none() || tenant == Some(s.tenant)) {
                    recent.parked.push(s.id);
                }
            });
        }
        recent
    }
}

#[tonic::async_trait]
impl MetricsService for Metrics {
    async fn get_external_metrics(
        &self,
        request: Request<GetExternalMetricsRequest>,
    ) -> Answer<GetExternalMetricsResponse> {
        let caller = self.caller(&request)?;
        let tenant = self
            .whose(caller.as_ref(), &request.get_ref().tenant)
            .await?;
        Ok(Response::new(self.external(tenant).await?))
    }

    async fn get_webhook_metrics(
        &self,
        request: Request<GetWebhookMetricsRequest>,
    ) -> Answer<GetWebhookMetricsResponse> {
        let caller = self.caller(&request)?;
        let tenant = self
            .whose(caller.as_ref(), &request.get_ref().tenant)
            .await?;
        Ok(Response::new(self.webhooks(tenant).await?))
    }

    async fn list_key_usage(
        &self,
        request: Request<ListKeyUsageRequest>,
    ) -> Answer<ListKeyUsageResponse> {
        let caller = self.caller(&request)?;
        let given = request.into_inner();
        let page = page::read::<KeyId>(given.page_size, &given.page_token)?;
        let tenant = self.whose(caller.as_ref(), &given.tenant).await?;
        let mut ids = Vec::new();
        self.0.directory.each_key(|key| {
            let shown = key.kind == key::Kind::Consumer
                && (tenant.is_none() || key.tenant == tenant)
                && page.before.is_none_or(|before| key.id < before);
            if shown {
                ids.push(Reverse(key.id));
            }
        });
        // The newest first, and only those of the page in order.
        let most = usize::try_from(page.limit).unwrap_or_default();
        if ids.len() > most {
            ids.select_nth_unstable(most - 1);
            ids.truncate(most);
        }
        ids.sort_unstable();
        let mut rows: Vec<_> = ids
            .into_iter()
            .filter_map(|Reverse(id)| self.0.directory.key(id))
            .collect();
        let next_page_token = page::cut(&page, &mut rows, |e| e.key.id);
        let ids: Vec<KeyId> = rows.iter().map(|e| e.key.id).collect();
        let used = self.0.usage.of_keys(&ids).await;
        let keys = Keys(self.0.clone());
        let views: Vec<_> = rows.iter().map(|e| keys.view(&e.key)).collect();
        let shown: Vec<_> = stream::iter(views).buffered(READS).collect().await;
        let keys = shown
            .into_iter()
            .zip(used)
            .map(|(key, (usage, hits))| KeyUsage {
                key_id: key.key_id,
                name: key.name,
                tenant: key.tenant,
                tier: key.tier,
                canary_enabled: key.canary_enabled,
                status: key.status,
                usage_24h: usage,
                rate_limit_hits_24h: hits,
                last_used_time: key.last_used_time,
            });
        Ok(Response::new(ListKeyUsageResponse {
            keys: keys.collect(),
            next_page_token,
        }))
    }

    async fn list_recent_deliveries(
        &self,
        request: Request<ListRecentDeliveriesRequest>,
    ) -> Answer<ListRecentDeliveriesResponse> {
        let caller = self.caller(&request)?;
        let given = request.into_inner();
        let page = page::read::<DeliveryId>(given.page_size, &given.page_token)?;
        let status = super::deliveries::filter(given.status)?;
        let tenant = self.whose(caller.as_ref(), &given.tenant).await?;
        let recent = self.recent(tenant, status);
        let rows = self.0.store.recent_deliveries(&recent, page).await;
        let mut rows = rows.map_err(unavailable)?;
        let next_page_token = page::cut(&page, &mut rows, |d| d.id);
        let view = Deliveries(self.0.clone());
        Ok(Response::new(ListRecentDeliveriesResponse {
            deliveries: rows.into_iter().map(|d| view.view(d)).collect(),
            next_page_token,
        }))
    }

    type WatchMetricsStream = BoxStream<'static, std::result::Result<WatchMetricsResponse, Status>>;

    async fn watch_metrics(
        &self,
        request: Request<WatchMetricsRequest>,
    ) -> Answer<Self::WatchMetricsStream> {
        let caller = self.caller(&request)?;
        let given = request.into_inner();
        let seconds = match given.interval_seconds {
            0 => 1,
            n if (1..=SLOWEST).contains(&n) => n,
            _ => return Err(Error::field("interval_seconds", "takes 1 to 3600").into()),
        };
        let tenant = self.whose(caller.as_ref(), &given.tenant).await?;
        let mut ticks = tokio::time::interval(Duration::from_secs(seconds.unsigned_abs().into()));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stopping = self.0.monitor.stopping();
        let metrics = self.clone();
        // Nothing is kept for a reader: an answer is made when it can take one.
        let answers = stream::unfold(Some(ticks), move |ticks| {
            let (metrics, caller, stopping) = (metrics.clone(), caller.clone(), stopping.clone());
            async move {
                let mut ticks = ticks?;
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return None,
                    _ = ticks.tick() => {}
                }
                let answer = match metrics.0.gate.may_go_on(WATCH, caller.as_ref()) {
                    Ok(()) => metrics.watched(tenant).await,
                    Err(e) => Err(e),
                };
                let ticks = answer.is_ok().then_some(ticks);
                Some((answer.map_err(Status::from), ticks))
            }
        });
        Ok(Response::new(answers.boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::counter::{DIED, REPLAY_REJECTED, Tally, latency_code},
        usage::Figures,
    };

    // An alert is raised when its figure exceeds its threshold, not when it
    // reaches it.
    #[test]
    fn alerts_are_raised_above_their_thresholds() {
        let thresholds = settings::Thresholds {
            dead_letter_24h: 10,
            auth_failures_24h: 50,
            rate_limit_hits_24h: 100,
            replay_rejected_24h: 20,
            latency_p90_seconds: 5.0,
        };
        let raised = |more: i64, latency| {
            let mut tally = Tally::default();
            tally.add(DIED, 10 + more, true);
            tally.add(REPLAY_REJECTED, 20 + more, true);
            tally.add(latency_code(latency), 10, true);
            let figures = Figures {
                auth_failures: 50 + more,
                limit_hits: 100 + more,
                ..Figures::default()
            };
            let r = Raised::new(&thresholds, &tally, &figures);
            [
                r.dead_letter,
                r.auth_failures,
                r.rate_limits,
                r.replay_rejected,
                r.latency_p90,
            ]
        };
        assert_eq!(raised(0, 3_000_000), [false; 5]);
        assert_eq!(raised(1, 9_000_000), [true; 5]);
    }
}
