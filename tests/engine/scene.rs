//! What tests of deliveries do again and again.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{
    app::{Subscribed, TestApp, eventually},
    receiver::{Receiver, status},
};

impl TestApp {
    /// A subscription of the tenant `default`, with these fields beside its URL.
    pub(crate) async fn webhook(&self, url: &str, more: Value) -> Subscribed {
        let mut wanted = json!({ "url": url });
        wanted
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.subscribe(&self.admin, wanted).await
    }

    /// Publishes to the tenant `default`: the event's id.
    pub(crate) async fn event(&self, event_type: &str) -> String {
        self.publish(&self.admin, event_type, json!({})).await
    }

    /// Publishes what becomes one delivery: its id.
    pub(crate) async fn one_delivery(&self, event_type: &str) -> String {
        let event = self.event(event_type).await;
        self.only_delivery_of(&event).await
    }

    pub(crate) async fn only_delivery_of(&self, event: &str) -> String {
        let deliveries = self.deliveries_of(&self.admin, event).await;
        assert_eq!(deliveries.len(), 1, "{deliveries:?}");
        deliveries[0]["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn is(&self, delivery: &str, status: &str) -> Value {
        self.delivery_is(&self.admin, delivery, status).await
    }

    pub(crate) async fn delivery(&self, id: &str) -> Value {
        self.get(&format!("/v1/external/deliveries/{id}"), &self.admin)
            .await
            .ok()
    }

    pub(crate) async fn attempts(&self, delivery: &str) -> Vec<Value> {
        let path = format!("/v1/external/deliveries/{delivery}/attempts");
        let list = self.get(&path, &self.admin).await.ok();
        list["attempts"].as_array().unwrap().clone()
    }

    pub(crate) async fn retry(&self, delivery: &str) -> crate::support::app::Answer {
        let path = format!("/v1/external/deliveries/{delivery}/retry");
        self.post(&path, &self.admin, json!({})).await
    }

    pub(crate) async fn subscription(&self, id: &str) -> Value {
        self.get(&format!("/v1/external/webhooks/{id}"), &self.admin)
            .await
            .ok()
    }

    pub(crate) async fn change(&self, id: &str, fields: Value) -> Value {
        self.patch(&format!("/v1/external/webhooks/{id}"), &self.admin, fields)
            .await
            .ok()
    }

    /// A subscription's deliveries with that status, all of them.
    pub(crate) async fn with_status(&self, subscription: &str, status: &str) -> Vec<Value> {
        let path = format!(
            "/v1/external/webhooks/{subscription}/deliveries?status={status}&page_size=1000"
        );
        let list = self.get(&path, &self.admin).await.ok();
        list["deliveries"].as_array().unwrap().clone()
    }

    pub(crate) async fn wait_for(&self, subscription: &str, status: &str, count: usize) {
        eventually(&format!("{count} deliveries are {status}"), || async {
            (self.with_status(subscription, status).await.len() == count).then_some(())
        })
        .await;
    }
}

/// A schedule of so many attempts with waits of one second.
pub(crate) fn quick(max_attempts: u32) -> Value {
    json!({"max_attempts": max_attempts, "backoff_seconds": [1]})
}

/// A time of an answer, in microseconds.
pub(crate) fn micros(value: &Value) -> i64 {
    let text = value.as_str().unwrap_or_else(|| panic!("no time: {value}"));
    text.parse::<jiff::Timestamp>().unwrap().as_microsecond()
}

/// Waits until nothing is under way at a receiver.
pub(crate) async fn idle(receiver: &Receiver) {
    eventually("the receiver is idle", || async {
        (receiver.under_way() == 0).then_some(())
    })
    .await;
}

/// A receiver that answers one request for each permit.
pub(crate) async fn gated() -> (Receiver, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    let gate = permits.clone();
    let receiver = Receiver::with(move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            status(200)
        }
    })
    .await;
    (receiver, permits)
}
