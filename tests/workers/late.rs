//! A relay that learns late that what it has is another's: it sends nothing then. And
//! what it says to a server that does as the test says.

use std::{collections::HashMap, pin::Pin};

use futures_util::{Stream, stream};
use onering::{
    error::{Error, Reason},
    proto::v1::{
        ServerMessage, WorkerMessage,
        server_message::{Delivery, Message as Says, Opened, Revoke, Signature},
        worker_message::{Message, Open},
        worker_service_server::{WorkerService, WorkerServiceServer},
    },
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tonic::{Request, Response, Status, Streaming};

use crate::support::{
    app::{TestApp, eventually},
    command::Running,
    proxy::Proxy,
    receiver::Receiver,
    store::Db,
};

contract![
    a_connection_that_opens_late_sends_nothing,
    a_relay_that_stood_still_sends_nothing,
];

/// A proxy on the way to receivers (CONNECT), at which connections wait until it opens.
struct Gate {
    url: String,
    asked: watch::Receiver<usize>,
    open: watch::Sender<bool>,
}

impl Gate {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (open, opened) = watch::channel(false);
        let (ask, asked) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                ask.send_modify(|n| *n += 1);
                tokio::spawn(pass(near, opened.clone()));
            }
        });
        Self { url, asked, open }
    }

    async fn is_asked(&mut self) {
        self.asked.wait_for(|n| *n > 0).await.unwrap();
    }
}

async fn pass(mut near: TcpStream, mut opened: watch::Receiver<bool>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(near.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let mut far = TcpStream::connect(head.split(' ').nth(1).unwrap())
        .await
        .unwrap();
    opened.wait_for(|open| *open).await.unwrap();
    // Its side may have given up.
    let _ = near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let _ = copy_bidirectional(&mut near, &mut far).await;
}

fn relay(key: &str, url: &str, id: &str, more: &[(&str, &str)]) -> Running {
    let mut vars = vec![
        ("ONERING_ADMIN_KEY", key),
        ("ONERING_ALLOWED_ENDPOINT_CIDRS", "127.0.0.0/8"),
        ("ONERING_ALLOW_HTTP_ENDPOINTS", "1"),
    ];
    vars.extend(more);
    Running::onering(&["worker", "--connect", url, "--id", id], &vars)
}

async fn without_embedded(db: &Db) -> TestApp {
    TestApp::builder(db).set("EMBEDDED_WORKER", 0).start().await
}

/// Deliveries are leased to it that are not begun here.
async fn has(app: &TestApp, count: usize) {
    eventually("they are handed out", || async {
        (app.app().context.dispatcher.in_flight() == count).then_some(())
    })
    .await;
}

// W4, H1: the stream is cut while a POST waits for its connection; another relay
// has sent it by the time that opens.
async fn a_connection_that_opens_late_sends_nothing(db: Db) {
    let app = without_embedded(&db).await;
    let receiver = Receiver::start().await;
    app.subscribe(&app.admin, json!({"url": receiver.url()}))
        .await;
    let mut gate = Gate::start().await;
    let way = Proxy::to(app.address.to_string()).await;
    let url = format!("http://{}", way.address);
    let late = relay(
        &app.admin,
        &url,
        "late",
        &[("ONERING_EGRESS_PROXY", &gate.url)],
    );
    late.logged("connected").await;
    app.events("a.b", 1).await;
    gate.is_asked().await;
    let other = relay(&app.admin, &app.url(""), "other", &[]);
    other.logged("connected").await;
    way.cut();
    receiver.wait(1).await;
    gate.open.send_replace(true);
    way.mend();
    // It ends once what it has is done.
    late.stop().await;
    assert_eq!(receiver.count(), 1);
    other.stop().await;
    db.counts_agree().await;
    app.stop().await;
}

// W4, H1: what came to a relay while its process stood still is another's by the
// time that it goes on.
async fn a_relay_that_stood_still_sends_nothing(db: Db) {
    let app = without_embedded(&db).await;
    let receiver = Receiver::start().await;
    app.subscribe(&app.admin, json!({"url": receiver.url()}))
        .await;
    let url = app.url("");
    let still = relay(&app.admin, &url, "still", &[]);
    still.logged("connected").await;
    still.signal("STOP");
    app.events("a.b", 3).await;
    has(&app, 3).await;
    let other = relay(&app.admin, &url, "other", &[]);
    receiver.wait(3).await;
    still.signal("CONT");
    still.stop().await;
    assert_eq!(receiver.count(), 3);
    other.stop().await;
    db.counts_agree().await;
    app.stop().await;
}

/// A server of streams whose words are the test's.
struct Scripted(mpsc::UnboundedSender<Stage>);

/// One stream.
struct Stage {
    hear: Streaming<WorkerMessage>,
    say: mpsc::UnboundedSender<Result<ServerMessage, Status>>,
}

#[tonic::async_trait]
impl WorkerService for Scripted {
    type StreamDeliveriesStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

    async fn stream_deliveries(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::StreamDeliveriesStream>, Status> {
        let (say, said) = mpsc::unbounded_channel();
        let hear = request.into_inner();
        self.0.send(Stage { hear, say }).ok().unwrap();
        let said = stream::unfold(said, |mut said: mpsc::UnboundedReceiver<_>| async move {
            let next = said.recv().await?;
            Some((next, said))
        });
        Ok(Response::new(Box::pin(said)))
    }
}

impl Stage {
    fn say(&self, message: Says) {
        let message = Some(message);
        self.say.send(Ok(ServerMessage { message })).unwrap();
    }

    async fn hears(&mut self) -> Message {
        self.hear.message().await.unwrap().unwrap().message.unwrap()
    }

    async fn opens(&mut self, resumed: &[&str]) -> Open {
        let Message::Open(open) = self.hears().await else {
            panic!("not opened");
        };
        self.say(Says::Opened(Opened {
            lease_seconds: 60,
            resumed: resumed.iter().map(|&id| id.to_owned()).collect(),
            ..Opened::default()
        }));
        open
    }

    fn delivers(&self, id: &str, url: &str, deadline_in_ms: i64) {
        self.say(Says::Delivery(Delivery {
            delivery_id: id.to_owned(),
            lease_token: id.as_bytes().to_vec(),
            url: url.to_owned(),
            body: b"{}".as_slice().into(),
            deadline_in_ms,
            headers: HashMap::new(),
            signature: Some(Signature {
                expires_in_ms: 300_000,
                ..Signature::default()
            }),
            timeout_seconds: 30,
            ..Delivery::default()
        }));
    }

    /// What is acked next, and what is given back.
    async fn settles(&mut self) -> (Vec<String>, Vec<String>) {
        match self.hears().await {
            Message::Ack(ack) => {
                let ids = ack.items.into_iter().map(|item| item.delivery_id);
                (ids.collect(), Vec::new())
            }
            Message::Nack(nack) => {
                let ids = nack.items.into_iter().map(|item| item.delivery_id);
                (Vec::new(), ids.collect())
            }
            other => panic!("neither: {other:?}"),
        }
    }
}

async fn scripted() -> (String, mpsc::UnboundedReceiver<Stage>) {
    let (begin, begun) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let incoming = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let server = tonic::transport::Server::builder()
        .add_service(WorkerServiceServer::new(Scripted(begin)))
        .serve_with_incoming(incoming);
    tokio::spawn(server);
    (url, begun)
}

// W1, W2, W4, W5: what is past its deadline, revoked, or not resumed is not begun, and
// given back; what was done and has no result is resumed, and said again; a mode that
// ends does not end the worker.
#[tokio::test]
async fn a_relay_begins_only_what_is_its_own() {
    let (url, mut stages) = scripted().await;
    let mut gate = Gate::start().await;
    let (closed, open) = (Receiver::start().await, Receiver::start().await);
    let relay = relay("sk_admin_x", &url, "r", &[]);
    let through = self::relay(
        "sk_admin_x",
        &url,
        "g",
        &[("ONERING_EGRESS_PROXY", &gate.url)],
    );

    // Each of the two is served by its own stages.
    let mut by_id = HashMap::new();
    while by_id.len() < 2 {
        let mut stage = stages.recv().await.unwrap();
        let open = stage.opens(&[]).await;
        by_id.insert(open.worker_id, stage);
    }
    let mut stage = by_id.remove("r").unwrap();
    stage.delivers("late", &closed.url(), 0);
    assert_eq!(stage.settles().await, (vec![], vec!["late".to_owned()]));
    stage.delivers("done", &open.url(), 60_000);
    assert_eq!(stage.settles().await, (vec!["done".to_owned()], vec![]));

    // Its ack is lost with the stream, and canary mode is on for a while.
    let canary = Error::new(Reason::CanaryOnlyMode, "only canaries are served");
    stage.say.send(Err(canary.into())).unwrap();
    drop(stage);
    let mut stage = stages.recv().await.unwrap();
    let opened = stage.opens(&["done"]).await;
    assert_eq!(opened.resume.len(), 2, "{opened:?}");
    // The one or the other comes first.
    let (mut acked, mut released) = stage.settles().await;
    let (more_acked, more_released) = stage.settles().await;
    acked.extend(more_acked);
    released.extend(more_released);
    assert_eq!(
        (acked, released),
        (vec!["done".into()], vec!["late".into()])
    );

    let mut slow = by_id.remove("g").unwrap();
    slow.delivers("revoked", &closed.url(), 60_000);
    gate.is_asked().await;
    slow.say(Says::Revoke(Revoke {
        delivery_ids: vec!["revoked".to_owned()],
        reason: 2,
    }));
    // Its answer to this shows that it has read that.
    slow.delivers("late", &closed.url(), 0);
    slow.delivers("kept", &open.url(), 60_000);
    through.logged("deliveries revoked").await;
    gate.open.send_replace(true);
    let (mut acked, mut released) = (Vec::new(), Vec::new());
    while acked.len() + released.len() < 3 {
        let (more, back) = slow.settles().await;
        acked.extend(more);
        released.extend(back);
    }
    released.sort_unstable();
    assert_eq!(
        (acked, released),
        (
            vec!["kept".to_owned()],
            vec!["late".to_owned(), "revoked".to_owned()],
        )
    );
    assert_eq!((closed.count(), open.count()), (0, 2));
    drop((relay, through));
}
