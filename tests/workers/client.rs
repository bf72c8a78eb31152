//! A worker as simple as can be: it does what the test says, and answers pings
//! unless it is told not to.

use futures_util::stream;
use onering::proto::v1::{
    ServerMessage, WorkerMessage,
    server_message::{Delivery, GoAway, Message as Says, Opened, Result as Told, Revoke},
    worker_message::{
        Ack, AckItem, Action, Credit, Drain, Extend, Lease, Message, Nack, NackItem, Open, Outcome,
        Pong,
    },
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tonic::{Status, Streaming, transport::Endpoint};

use crate::support::app::{Grpc, PATIENCE, Subscribed, TestApp};

pub(crate) struct Worker {
    say: Option<mpsc::UnboundedSender<WorkerMessage>>,
    hear: Streaming<ServerMessage>,
    pub(crate) opened: Opened,
    /// Whether it answers pings.
    pub(crate) ponging: bool,
    /// Deliveries that came while something else was waited for.
    pub(crate) early: Vec<Delivery>,
    questions: u32,
}

/// An `open` of a worker with that window.
pub(crate) fn open(worker_id: &str, max_messages: i32) -> Open {
    Open {
        worker_id: worker_id.to_owned(),
        max_messages,
        ..Open::default()
    }
}

/// What of a delivery is resumed.
pub(crate) fn lease(delivery: &Delivery) -> Lease {
    Lease {
        delivery_id: delivery.delivery_id.clone(),
        lease_token: delivery.lease_token.clone(),
    }
}

impl Worker {
    /// Connects to a node.
    pub(crate) async fn open(app: &TestApp, key: &str, open: Open) -> Result<Self, Status> {
        Self::open_at(&app.url(""), key, open).await
    }

    /// Connects to an address, on a connection of its own.
    pub(crate) async fn open_at(url: &str, key: &str, open: Open) -> Result<Self, Status> {
        let channel = Endpoint::from_shared(url.to_owned())
            .unwrap()
            .connect_lazy();
        let (say, said) = mpsc::unbounded_channel();
        let first = WorkerMessage {
            message: Some(Message::Open(open)),
        };
        say.send(first).unwrap();
        let messages = stream::unfold(said, |mut said: mpsc::UnboundedReceiver<_>| async move {
            let next = said.recv().await?;
            Some((next, said))
        });
        let mut client = Grpc::new(channel, key).workers;
        let mut hear = client.stream_deliveries(messages).await?.into_inner();
        let opened = loop {
            match hear.message().await?.and_then(|m| m.message) {
                Some(Says::Opened(opened)) => break opened,
                Some(Says::Ping(_)) => {}
                other => panic!("not opened: {other:?}"),
            }
        };
        Ok(Self {
            say: Some(say),
            hear,
            opened,
            ponging: true,
            early: Vec::new(),
            questions: 0,
        })
    }

    /// Of the tenant `default`, with the admin's key.
    pub(crate) async fn start(app: &TestApp, worker_id: &str, max_messages: i32) -> Self {
        let key = app.admin.clone();
        Self::open(app, &key, open(worker_id, max_messages))
            .await
            .unwrap()
    }

    pub(crate) fn say(&self, message: Message) {
        let message = Some(message);
        // The server may have ended the stream.
        let _ = self.say.as_ref().unwrap().send(WorkerMessage { message });
    }

    /// The next message but for pings; none at the stream's end.
    pub(crate) async fn next(&mut self) -> Result<Option<Says>, Status> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.hear.message());
            let Some(message) = next.await.expect("a message in time")? else {
                return Ok(None);
            };
            match message.message.expect("a message that is known") {
                Says::Ping(_) if self.ponging => self.say(Message::Pong(Pong {})),
                Says::Ping(_) => {}
                message => return Ok(Some(message)),
            }
        }
    }

    /// How the stream ends, whatever comes before.
    pub(crate) async fn ended(&mut self) -> Result<(), Status> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    pub(crate) async fn delivery(&mut self) -> Delivery {
        if !self.early.is_empty() {
            return self.early.remove(0);
        }
        match self.next().await {
            Ok(Some(Says::Delivery(delivery))) => delivery,
            other => panic!("not a delivery: {other:?}"),
        }
    }

    pub(crate) async fn deliveries(&mut self, count: usize) -> Vec<Delivery> {
        let mut all = Vec::new();
        while all.len() < count {
            all.push(self.delivery().await);
        }
        all
    }

    pub(crate) async fn revoked(&mut self) -> Revoke {
        loop {
            match self.next().await {
                Ok(Some(Says::Revoke(revoke))) => return revoke,
                Ok(Some(Says::Delivery(delivery))) => self.early.push(delivery),
                other => panic!("not revoked: {other:?}"),
            }
        }
    }

    pub(crate) async fn told_to_go(&mut self) -> GoAway {
        loop {
            match self.next().await {
                Ok(Some(Says::GoAway(go))) => return go,
                Ok(Some(Says::Delivery(delivery))) => self.early.push(delivery),
                other => panic!("not told to go: {other:?}"),
            }
        }
    }

    fn question(&mut self) -> String {
        self.questions += 1;
        format!("q{}", self.questions)
    }

    /// The result of a question.
    pub(crate) async fn result(&mut self, request_id: &str) -> Told {
        loop {
            match self.next().await {
                Ok(Some(Says::Result(told))) => {
                    assert_eq!(told.request_id, request_id);
                    return told;
                }
                Ok(Some(Says::Delivery(delivery))) => self.early.push(delivery),
                other => panic!("not a result: {other:?}"),
            }
        }
    }

    pub(crate) async fn ack(&mut self, deliveries: &[&Delivery]) -> Told {
        self.ack_with(deliveries, None).await
    }

    pub(crate) async fn ack_with(
        &mut self,
        deliveries: &[&Delivery],
        outcome: Option<Outcome>,
    ) -> Told {
        let request_id = self.question();
        let items = deliveries.iter().map(|d| AckItem {
            delivery_id: d.delivery_id.clone(),
            lease_token: d.lease_token.clone(),
            outcome: outcome.clone(),
        });
        self.say(Message::Ack(Ack {
            request_id: request_id.clone(),
            items: items.collect(),
        }));
        self.result(&request_id).await
    }

    pub(crate) async fn nack(
        &mut self,
        delivery: &Delivery,
        action: Action,
        reason: &str,
        retry_after_seconds: i64,
    ) -> Told {
        let request_id = self.question();
        self.say(Message::Nack(Nack {
            request_id: request_id.clone(),
            items: vec![NackItem {
                delivery_id: delivery.delivery_id.clone(),
                lease_token: delivery.lease_token.clone(),
                action: action.into(),
                reason: reason.to_owned(),
                retry_after_seconds,
            }],
        }));
        self.result(&request_id).await
    }

    pub(crate) async fn extend(&mut self, delivery: &Delivery, seconds: i32) -> Told {
        let request_id = self.question();
        self.say(Message::Extend(Extend {
            request_id: request_id.clone(),
            items: vec![lease(delivery)],
            seconds,
        }));
        self.result(&request_id).await
    }

    pub(crate) fn credit(&self, messages: i32, bytes: i64) {
        self.say(Message::Credit(Credit {
            messages,
            bytes,
            ..Credit::default()
        }));
    }

    /// What came until a question was answered: whatever was to come before it has.
    pub(crate) async fn everything_until_now(&mut self) -> Vec<Delivery> {
        let request_id = self.question();
        self.say(Message::Extend(Extend {
            request_id: request_id.clone(),
            items: Vec::new(),
            seconds: 1,
        }));
        self.result(&request_id).await;
        std::mem::take(&mut self.early)
    }

    pub(crate) fn drain(&self) {
        self.say(Message::Drain(Drain {}));
    }

    /// Says its last, and goes on listening.
    pub(crate) fn half_close(&mut self) {
        self.say = None;
    }
}

/// The ids of deliveries, in order.
pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<String> {
    let mut ids: Vec<String> = deliveries.iter().map(|d| d.delivery_id.clone()).collect();
    ids.sort_unstable();
    ids
}

impl TestApp {
    /// A subscription of a stream of the tenant `default`, with these fields.
    pub(crate) async fn stream(&self, more: Value) -> Subscribed {
        let key = self.admin.clone();
        self.stream_of(&key, more).await
    }

    pub(crate) async fn stream_of(&self, key: &str, more: Value) -> Subscribed {
        let mut wanted = json!({"kind": "STREAM"});
        wanted
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.subscribe(key, wanted).await
    }

    /// Publishes so many events of the tenant `default`, and waits until a worker
    /// could have them: their ids.
    pub(crate) async fn events(&self, event_type: &str, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for n in 0..count {
            let data = json!({ "n": n });
            ids.push(self.publish(&self.admin, event_type, data).await);
        }
        ids
    }

    pub(crate) async fn state_of(&self, delivery: &str) -> Value {
        let path = format!("/v1/external/deliveries/{delivery}");
        self.get(&path, &self.admin).await.ok()
    }

    pub(crate) async fn attempts_of(&self, delivery: &str) -> Vec<Value> {
        let path = format!("/v1/external/deliveries/{delivery}/attempts");
        let list = self.get(&path, &self.admin).await.ok();
        list["attempts"].as_array().unwrap().clone()
    }
}
