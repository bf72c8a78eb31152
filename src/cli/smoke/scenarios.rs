//! What a receiver's answer leads to, shown with the sink's `/behave`.

use http::Method;
use serde_json::{Value, json};

use super::{Checked, Phase, Smoke};

/// What the sink does, and what is to become of the delivery.
#[derive(Clone, Copy)]
pub(super) struct Scenario {
    name: &'static str,
    status: u16,
    failures: u64,
    attempts: usize,
    ends: &'static str,
}

/// Every scenario, with its name for people.
pub(super) const ALL: [(&str, Scenario); 3] = [
    (
        "Scenario 200 delivered",
        Scenario {
            name: "ok",
            status: 200,
            failures: 0,
            attempts: 1,
            ends: "DELIVERED",
        },
    ),
    (
        "Scenario 503 then retried",
        Scenario {
            name: "unavailable",
            status: 503,
            failures: 1,
            attempts: 2,
            ends: "DELIVERED",
        },
    ),
    (
        "Scenario 400 not retried",
        Scenario {
            name: "refused",
            status: 400,
            failures: 1,
            attempts: 1,
            ends: "DEAD",
        },
    ),
];

/// The name of the scenario that plays with the circuit breaker.
pub(super) const BREAKER: &str = "Scenario breaker opens, probes, closes";
/// So many failures open it, as they do where nothing else is said.
const FAILURES: usize = 5;
/// For how many seconds it is open: long enough to be seen, and no longer.
const OPEN_SECONDS: i32 = 3;

impl Smoke {
    /// Five failures open the breaker, a probe closes it, and everything is delivered.
    pub(super) async fn breaker_scenario(&mut self) -> Phase {
        let played = self.play_breaker().await;
        let reset = self.behave(&json!({})).await;
        Phase::of(played.and(reset))
    }

    async fn play_breaker(&mut self) -> Checked<()> {
        self.delivery_is_on().await?;
        let event_type = format!("{}s.breaker", self.event_type);
        let mut body = json!({
            "url": self.args.webhook_sink,
            "event_types": [event_type],
            "description": "onering smoke",
            "retry_schedule": {"preset": "BURST"},
            "breaker": {"failures_to_open": FAILURES, "open_seconds": OPEN_SECONDS},
        });
        if let Some(secret) = &self.args.sink_secret {
            body["secret"] = json!(secret);
        }
        let made = self
            .admin(Method::POST, "/v1/external/webhooks", Some(&body), 201)
            .await?;
        self.made_subscription(&made)?;
        let path = format!(
            "/v1/external/webhooks/{}",
            made["id"].as_str().unwrap_or_default()
        );
        self.behave(&json!({"status": 503, "fail_next": FAILURES}))
            .await?;
        let mut events = Vec::new();
        for _ in 0..FAILURES {
            let body = json!({"event_type": event_type, "data": {"test": true}});
            let answer = self
                .admin(Method::POST, "/v1/external/events", Some(&body), 202)
                .await?;
            events.push(answer["id"].as_str().unwrap_or_default().to_owned());
        }
        self.breaker_is(&path, "OPEN").await?;
        self.breaker_is(&path, "CLOSED").await?;
        for event in events {
            let delivery = self.finished(&event).await?;
            let how = (&delivery["status"], &delivery["attempt_count"]);
            if how != (&json!("DELIVERED"), &json!(2)) {
                return Err(format!(
                    "{event} is {} after {} attempts, not DELIVERED after 2",
                    how.0, how.1
                )
                .into());
            }
        }
        Ok(())
    }

    async fn breaker_is(&self, subscription: &str, state: &str) -> Checked<()> {
        let until = tokio::time::Instant::now() + std::time::Duration::from_secs(self.args.timeout);
        loop {
            let shown = self.admin(Method::GET, subscription, None, 200).await?;
            let found = &shown["breaker"]["state"];
            if found == state {
                return Ok(());
            }
            if tokio::time::Instant::now() > until {
                return Err(format!("the breaker is {found}, not {state}").into());
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    pub(super) async fn scenario(&mut self, scenario: Scenario) -> Phase {
        let played = self.play(scenario).await;
        // The sink works again, whatever became of it.
        let reset = self.behave(&json!({})).await;
        Phase::of(played.and(reset))
    }

    /// Played with the admin key: a canary key has ten calls an hour.
    async fn play(&mut self, scenario: Scenario) -> Checked<()> {
        self.delivery_is_on().await?;
        let event_type = format!("{}s.{}", self.event_type, scenario.name);
        let mut body = json!({
            "url": self.args.webhook_sink,
            "event_types": [event_type],
            "description": "onering smoke",
            "retry_schedule": {"preset": "BURST"},
        });
        if let Some(secret) = &self.args.sink_secret {
            body["secret"] = json!(secret);
        }
        let made = self
            .admin(Method::POST, "/v1/external/webhooks", Some(&body), 201)
            .await?;
        self.made_subscription(&made)?;
        if scenario.failures > 0 {
            self.behave(&json!({"status": scenario.status, "fail_next": scenario.failures}))
                .await?;
        }
        let body = json!({"event_type": event_type, "data": {"test": true}});
        let answer = self
            .admin(Method::POST, "/v1/external/events", Some(&body), 202)
            .await?;
        let event = answer["id"].as_str().unwrap_or_default().to_owned();
        self.received(&event, scenario.attempts).await?;
        let delivery = self.finished(&event).await?;
        if delivery["status"] != json!(scenario.ends) {
            return Err(format!(
                "it is {}, not {}: {}",
                delivery["status"], scenario.ends, delivery["reason"]
            )
            .into());
        }
        let id = delivery["id"].as_str().unwrap_or_default();
        let path = format!("/v1/external/deliveries/{id}/attempts");
        let listed = self.admin(Method::GET, &path, None, 200).await?;
        let made = listed["attempts"].as_array().map_or(0, Vec::len);
        if made != scenario.attempts {
            return Err(format!("{made} attempts were made, not {}", scenario.attempts).into());
        }
        Ok(())
    }

    /// An event's one delivery, once it is delivered or dead.
    async fn finished(&self, event: &str) -> Checked<Value> {
        let path = format!("/v1/external/events/{event}/deliveries");
        let until = tokio::time::Instant::now() + std::time::Duration::from_secs(self.args.timeout);
        loop {
            let listed = self.admin(Method::GET, &path, None, 200).await?;
            let delivery = listed["deliveries"][0].clone();
            let ended = matches!(delivery["status"].as_str(), Some("DELIVERED" | "DEAD"));
            if ended || tokio::time::Instant::now() > until {
                return Ok(delivery);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    async fn behave(&self, how: &Value) -> Checked<()> {
        let url = format!("{}/behave", self.sink);
        let answer = self.http.call(Method::POST, &url, "", Some(how)).await?;
        if answer.status.is_success() {
            Ok(())
        } else {
            Err(format!("{url}: {}", answer.told()).into())
        }
    }
}
