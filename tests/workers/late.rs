//! A relay that learns late that what it has is another's: it sends nothing then.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};

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

fn relay(app: &TestApp, url: &str, id: &str, more: &[(&str, &str)]) -> Running {
    let mut vars = vec![
        ("ONERING_ADMIN_KEY", app.admin.as_str()),
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
    let late = relay(&app, &url, "late", &[("ONERING_EGRESS_PROXY", &gate.url)]);
    late.logged("connected").await;
    app.events("a.b", 1).await;
    gate.is_asked().await;
    let other = relay(&app, &app.url(""), "other", &[]);
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
    let still = relay(&app, &url, "still", &[]);
    still.logged("connected").await;
    still.signal("STOP");
    app.events("a.b", 3).await;
    has(&app, 3).await;
    let other = relay(&app, &url, "other", &[]);
    receiver.wait(3).await;
    still.signal("CONT");
    still.stop().await;
    assert_eq!(receiver.count(), 3);
    other.stop().await;
    db.counts_agree().await;
    app.stop().await;
}
