//! `onering smoke`: a launch's first check, from key to delivered webhook, over
//! the REST that partners use. Leaves nothing behind on the server.

use std::{fmt, process::ExitCode, time::Duration};

use clap::Args;
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::http::{Answer, Http};
use crate::domain::{
    id::wall_clock,
    signature::{Verifier, VerifyingKey},
};

mod scenarios;

pub(super) const EXAMPLES: &str = "\
Examples:
  onering sink --port 9090 --secret whsec_test &
  onering smoke --backend-url http://localhost:8000 --admin-key sk_admin_… \\
    --webhook-sink http://localhost:9090/webhook
  onering smoke … --scenarios                 also how failures are retried
  onering smoke … --sink-secret whsec_test    so that the sink verifies, too

The server must be allowed to reach the sink: for one on the same machine it takes
ONERING_ALLOWED_ENDPOINT_CIDRS=127.0.0.0/8 and ONERING_ALLOW_HTTP_ENDPOINTS=1
(`onering dev` has both). Exit code 1 where a phase failed.";

/// Arguments of `onering smoke`.
#[derive(Args)]
pub(super) struct SmokeArgs {
    /// The server's address
    #[arg(long, env = "ONERING_URL", default_value = "http://127.0.0.1:8000")]
    backend_url: String,
    /// An admin key
    #[arg(long, env = "ONERING_ADMIN_KEY", hide_env_values = true)]
    admin_key: String,
    /// Where a running `onering sink` takes webhooks
    #[arg(
        long,
        default_value = "http://localhost:9090/webhook",
        value_name = "URL"
    )]
    webhook_sink: String,
    /// Subscribe with this secret, the one that the sink was started with, and
    /// insist that the sink verified the delivery
    #[arg(long, value_name = "SECRET")]
    sink_secret: Option<String>,
    /// Also show that a 200 is delivered, a 503 is retried, a 400 is not, and that five
    /// failures open the circuit breaker until a probe closes it
    #[arg(long)]
    scenarios: bool,
    /// How long to wait for a delivery, in seconds
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    timeout: u64,
}

/// How a phase ended.
pub(super) enum Phase {
    Passed,
    /// A switch is off; which one.
    Skipped(String),
    Failed(String),
}

type Checked<T> = Result<T, Phase>;

impl From<String> for Phase {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl Phase {
    fn of(result: Checked<()>) -> Self {
        match result {
            Ok(()) => Self::Passed,
            Err(phase) => phase,
        }
    }
}

struct Line<'a>(&'a str, &'a Phase);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Phase::Passed => write!(f, "✅ {}: PASSED", self.0),
            Phase::Skipped(why) => write!(f, "⏳ {}: SKIPPED ({why})", self.0),
            Phase::Failed(why) => write!(f, "❌ {}: FAILED: {why}", self.0),
        }
    }
}

/// Runs it; 0 where no phase failed.
pub(super) async fn run(args: SmokeArgs) -> ExitCode {
    let mut smoke = Smoke::new(args);
    let mut phases = Vec::new();
    let mut show = |name: &'static str, phase: Phase| {
        println!("{}", Line(name, &phase));
        phases.push(phase);
    };
    show("Backend health", Phase::of(smoke.health().await));
    show("API key creation", Phase::of(smoke.create_key().await));
    show("Rate limit headers", Phase::of(smoke.limit_headers().await));
    show("Webhook subscription", Phase::of(smoke.subscribe().await));
    show("Webhook delivery", Phase::of(smoke.deliver().await));
    if smoke.args.scenarios {
        for (name, scenario) in scenarios::ALL {
            let phase = smoke.scenario(scenario).await;
            show(name, phase);
        }
        let phase = smoke.breaker_scenario().await;
        show(scenarios::BREAKER, phase);
    }
    if let Err(why) = smoke.clean_up().await {
        println!("❌ something was left behind: {why}");
        phases.push(Phase::Failed(why));
    }
    let (line, code) = total(&phases);
    println!("{line}");
    code
}

fn total(phases: &[Phase]) -> (String, ExitCode) {
    let count = |wanted: fn(&Phase) -> bool| phases.iter().filter(|p| wanted(p)).count();
    let passed = count(|p| matches!(p, Phase::Passed));
    let skipped = count(|p| matches!(p, Phase::Skipped(_)));
    let failed = count(|p| matches!(p, Phase::Failed(_)));
    let mark = match (failed, skipped) {
        (0, 0) => "✅",
        (0, _) => "⏳",
        _ => "❌",
    };
    let skips = match skipped {
        0 => String::new(),
        n => format!(", {n} SKIPPED"),
    };
    let line = format!("Total: {passed}/{} PASSED{skips} {mark}", phases.len());
    let code = if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    (line, code)
}

/// What was made, and how to reach both ends.
struct Smoke {
    args: SmokeArgs,
    http: Http,
    /// The sink without its path.
    sink: String,
    /// Only this run's events have types under it.
    event_type: String,
    key: Option<(String, String)>,
    subscriptions: Vec<String>,
    /// The secret of the subscription, or why there is none.
    subscribed: Result<String, Option<String>>,
}

impl Smoke {
    fn new(args: SmokeArgs) -> Self {
        let sink = url::Url::parse(&args.webhook_sink)
            .map_or_else(|_| String::new(), |u| u.origin().ascii_serialization());
        let args = SmokeArgs {
            backend_url: args.backend_url.trim_end_matches('/').to_owned(),
            ..args
        };
        Self {
            args,
            http: Http::new(),
            sink,
            event_type: format!("smoke.t{:x}", wall_clock()),
            key: None,
            subscriptions: Vec::new(),
            subscribed: Err(None),
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        key: &str,
        body: Option<&Value>,
    ) -> Result<Answer, String> {
        let url = format!("{}{path}", self.args.backend_url);
        self.http.call(method, &url, key, body).await
    }

    /// As an operator; refusals are told, switches that are off skip the phase.
    async fn admin(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        wanted: u16,
    ) -> Checked<Value> {
        let answer = self.call(method, path, &self.args.admin_key, body).await?;
        expect(&answer, wanted)?;
        Ok(answer.json())
    }

    /// As the consumer whose key was made.
    async fn consumer(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        wanted: u16,
    ) -> Checked<Answer> {
        let (_, secret) = self
            .key
            .as_ref()
            .ok_or("there is no key to call with".to_owned())?;
        let answer = self.call(method, path, secret, body).await?;
        expect(&answer, wanted)?;
        Ok(answer)
    }

    async fn health(&self) -> Checked<()> {
        let answer = self.call(Method::GET, "/health", "", None).await?;
        expect(&answer, 200)?;
        match answer.json()["status"].as_str() {
            Some("healthy" | "degraded") => Ok(()),
            other => Err(format!("status is {other:?}").into()),
        }
    }

    /// A canary key: it is admitted in canary-only mode, too.
    async fn create_key(&mut self) -> Checked<()> {
        let body = json!({"name": "onering smoke", "tier": "free", "canary_enabled": true});
        let made = self
            .admin(Method::POST, "/v1/admin/external/keys", Some(&body), 201)
            .await?;
        let text = |field: &str| {
            let text = made[field].as_str().map(str::to_owned);
            text.ok_or_else(|| format!("the answer has no `{field}`"))
        };
        self.key = Some((text("key_id")?, text("secret")?));
        Ok(())
    }

    async fn limit_headers(&self) -> Checked<()> {
        let answer = self
            .consumer(Method::GET, "/v1/external/me", None, 200)
            .await?;
        for name in [
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
        ] {
            let value = answer.header(name);
            if value.is_none_or(|v| v.parse::<u64>().is_err()) {
                return Err(format!("{name} is {value:?}, not a number").into());
            }
        }
        match answer.header("x-canary-mode") {
            Some("true") => Ok(()),
            other => Err(format!("x-canary-mode is {other:?}, not true, for a canary key").into()),
        }
    }

    async fn subscribe(&mut self) -> Checked<()> {
        let mut body = json!({
            "url": self.args.webhook_sink,
            "event_types": [format!("{}.*", self.event_type)],
            "description": "onering smoke",
        });
        if let Some(secret) = &self.args.sink_secret {
            body["secret"] = json!(secret);
        }
        let answer = self
            .consumer(Method::POST, "/v1/external/webhooks", Some(&body), 201)
            .await;
        if let Err(Phase::Skipped(why)) = &answer {
            self.subscribed = Err(Some(why.clone()));
        }
        self.subscribed = Ok(self.made_subscription(&answer?.json())?);
        Ok(())
    }

    /// Notes a new subscription for the end; its secret.
    fn made_subscription(&mut self, made: &Value) -> Result<String, String> {
        let id = made["id"].as_str().ok_or("the answer has no `id`")?;
        self.subscriptions.push(id.to_owned());
        let secret = made["secret"]
            .as_str()
            .ok_or("the answer has no `secret`")?;
        Ok(secret.to_owned())
    }

    async fn deliver(&mut self) -> Checked<()> {
        let secret = self.subscribed.clone().map_err(|why| match why {
            Some(switch) => Phase::Skipped(switch),
            None => Phase::Failed("there is no subscription".into()),
        })?;
        self.delivery_is_on().await?;
        let body = json!({
            "event_type": format!("{}.first", self.event_type),
            "data": {"test": true},
        });
        let answer = self
            .consumer(Method::POST, "/v1/external/events", Some(&body), 202)
            .await?;
        let event = answer.json()["id"].as_str().unwrap_or_default().to_owned();
        let received = self.received(&event, 1).await?;
        check_signature(&received[0], &secret)?;
        if self.args.sink_secret.is_some() && received[0]["verified"] != json!(true) {
            return Err(format!("the sink could not verify it: {}", received[0]["reason"]).into());
        }
        Ok(())
    }

    /// With delivery off nothing arrives, which is no failure.
    async fn delivery_is_on(&self) -> Checked<()> {
        let switches = self
            .admin(Method::GET, "/v1/admin/switches", None, 200)
            .await?;
        let off = switches["switches"].as_array().is_some_and(|list| {
            list.iter()
                .any(|s| s["name"] == "webhooks.delivery.enabled" && s["enabled"] == json!(false))
        });
        if off {
            return Err(Phase::Skipped("webhooks.delivery.enabled is off".into()));
        }
        Ok(())
    }

    /// What the sink got of an event, once it is at least `n` attempts.
    async fn received(&self, event: &str, n: usize) -> Checked<Vec<Value>> {
        let until = Instant::now() + Duration::from_secs(self.args.timeout);
        let url = format!("{}/deliveries", self.sink);
        loop {
            let answer = self.http.call(Method::GET, &url, "", None).await?;
            let all = answer.json();
            let Some(list) = all["deliveries"].as_array() else {
                return Err(format!("{url} is not an `onering sink`").into());
            };
            let ours: Vec<Value> = list
                .iter()
                .filter(|d| d["headers"]["x-webhook-event-id"] == json!(event))
                .cloned()
                .collect();
            if ours.len() >= n {
                return Ok(ours);
            }
            if Instant::now() > until {
                return Err(format!(
                    "{} of {n} attempts for {event} arrived within {} s",
                    ours.len(),
                    self.args.timeout
                )
                .into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn clean_up(&mut self) -> Result<(), String> {
        let mut left = Vec::new();
        for id in std::mem::take(&mut self.subscriptions) {
            if self.args.scenarios
                && let Err(Phase::Failed(why) | Phase::Skipped(why)) = self.purge(&id).await
            {
                left.push(format!("dead letters of {id} ({why})"));
            }
            let path = format!("/v1/external/webhooks/{id}");
            self.remove(&path, &id, &mut left).await;
        }
        if let Some((id, _)) = self.key.take() {
            let path = format!("/v1/admin/external/keys/{id}");
            self.remove(&path, &id, &mut left).await;
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join("; "))
        }
    }

    /// Removes what a subscription's scenario left dead.
    async fn purge(&self, subscription: &str) -> Checked<()> {
        let listed = format!("/v1/admin/dead-letters?subscription_id={subscription}");
        let listed = self.admin(Method::GET, &listed, None, 200).await?;
        if listed["dead_letters"].as_array().is_none_or(Vec::is_empty) {
            return Ok(());
        }
        let body = json!({"filter": {"subscription_id": subscription}, "reason": "onering smoke"});
        let path = "/v1/admin/dead-letters/purge";
        let begun = self.admin(Method::POST, path, Some(&body), 202).await?;
        let path = format!(
            "/v1/admin/redrives/{}",
            begun["id"].as_str().unwrap_or_default()
        );
        let until = Instant::now() + Duration::from_secs(self.args.timeout);
        loop {
            let shown = self.admin(Method::GET, &path, None, 200).await?;
            if shown["finish_time"].is_string() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err("they are not purged yet".to_owned().into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn remove(&self, path: &str, id: &str, left: &mut Vec<String>) {
        let key = &self.args.admin_key;
        match self.call(Method::DELETE, path, key, None).await {
            Ok(answer) if answer.status.is_success() => {}
            Ok(answer) => left.push(format!("{id} ({})", answer.told())),
            Err(e) => left.push(format!("{id} ({e})")),
        }
    }
}

/// A switch that is off is no failure of the phase; anything else unwanted is.
fn expect(answer: &Answer, wanted: u16) -> Checked<()> {
    if answer.status.as_u16() == wanted {
        return Ok(());
    }
    Err(match answer.code().as_str() {
        "EXTERNAL_API_DISABLED" => Phase::Skipped("external_api.enabled is off".into()),
        "WEBHOOKS_DISABLED" => Phase::Skipped("webhooks.enabled is off".into()),
        "ENDPOINT_DISABLED" => Phase::Skipped("the route is switched off".into()),
        _ => Phase::Failed(answer.told()),
    })
}

/// Checks a delivery as its receiver would, from what the sink kept.
fn check_signature(delivery: &Value, secret: &str) -> Result<(), String> {
    let key = VerifyingKey::parse(secret).map_err(|e| format!("the secret: {e}"))?;
    let header = |name: &str| delivery["headers"][name].as_str();
    let body = delivery["body"].as_str().unwrap_or_default();
    let now = wall_clock().div_euclid(1_000_000);
    Verifier::new(&[key])
        .verify(header, body.as_bytes(), now)
        .map(|_| ())
        .map_err(|e| format!("the signature does not hold: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_says_how_it_went() {
        let total = |phases: &[Phase]| total(phases).0;
        let passed = || Phase::Passed;
        assert_eq!(
            total(&[passed(), passed(), passed(), passed(), passed()]),
            "Total: 5/5 PASSED ✅"
        );
        assert_eq!(
            total(&[passed(), Phase::Skipped("x is off".into())]),
            "Total: 1/2 PASSED, 1 SKIPPED ⏳"
        );
        assert_eq!(
            total(&[
                passed(),
                Phase::Skipped(String::new()),
                Phase::Failed("no".into())
            ]),
            "Total: 1/3 PASSED, 1 SKIPPED ❌"
        );
        assert_eq!(
            Line(
                "Webhook delivery",
                &Phase::Skipped("webhooks.enabled is off".into())
            )
            .to_string(),
            "⏳ Webhook delivery: SKIPPED (webhooks.enabled is off)"
        );
    }
}
