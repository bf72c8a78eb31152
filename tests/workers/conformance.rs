//! The protocol as a stranger speaks it: a worker in Python, over stubs that are
//! generated from the proto.

use std::{collections::VecDeque, path::Path, process::Stdio};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::support::{
    app::{PATIENCE, TestApp},
    store::Db,
};

contract![a_worker_in_python_conforms];

fn installed() -> String {
    std::env::var("ONERING_TEST_GRPCIO").unwrap_or_else(|_| {
        panic!("ONERING_TEST_GRPCIO is not set: run `./test servers`, and export what it prints")
    })
}

/// Generates the stubs.
async fn stubs(into: &Path) {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut protoc = Command::new("python3");
    protoc
        .env("PYTHONPATH", installed())
        .args(["-m", "grpc_tools.protoc"])
        .arg(format!("--proto_path={}", protos.display()))
        .arg(format!("--python_out={}", into.display()))
        .arg(format!("--grpc_python_out={}", into.display()));
    for name in [
        "onering/v1/options",
        "onering/v1/subscription",
        "onering/v1/worker",
    ] {
        protoc.arg(format!("{name}.proto"));
    }
    protoc.arg("google/api/annotations.proto");
    let output = protoc.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The worker as a process.
struct Python {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it told while something else was waited for.
    early: VecDeque<Value>,
}

impl Python {
    fn start(app: &TestApp, stubs: &Path, name: &str, window: u32, lease: u32) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workers/driven.py");
        let path = format!("{}:{}", stubs.display(), installed());
        let mut child = Command::new("python3")
            .env("PYTHONPATH", path)
            .arg(script)
            .arg(app.address.to_string())
            .args([&app.admin, name])
            .args([window.to_string(), lease.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            stdin: child.stdin.take().unwrap(),
            child,
            lines,
            early: VecDeque::new(),
        }
    }

    async fn tell(&mut self, what: Value) {
        let line = format!("{what}\n");
        self.stdin.write_all(line.as_bytes()).await.unwrap();
        self.stdin.flush().await.unwrap();
    }

    /// The next that it tells of that kind.
    async fn hears(&mut self, kind: &str) -> Value {
        if let Some(at) = self.early.iter().position(|v| !v[kind].is_null()) {
            return self.early.remove(at).unwrap();
        }
        loop {
            let line = tokio::time::timeout(PATIENCE, self.lines.next_line());
            let line = line.await.unwrap_or_else(|_| panic!("no {kind} in time"));
            let told: Value = serde_json::from_str(&line.unwrap().expect("a line")).unwrap();
            if !told[kind].is_null() {
                return told;
            }
            self.early.push_back(told);
        }
    }

    async fn deliveries(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while ids.len() < count {
            let told = self.hears("delivery").await;
            ids.push(told["delivery"].as_str().unwrap().to_owned());
        }
        ids
    }

    /// Checks that it has been given nothing more.
    async fn has_no_more(&mut self) {
        self.tell(json!({"do": "extend"})).await;
        let told = self.hears("result").await;
        assert_eq!(told["result"], "extend");
        let more: Vec<_> = self
            .early
            .iter()
            .filter(|v| !v["delivery"].is_null())
            .collect();
        assert!(more.is_empty(), "{more:?}");
    }

    /// Acks under its last lease, or another one of it: whether it counted.
    async fn acks(&mut self, id: &str, lease: i32) -> bool {
        self.tell(json!({"do": "ack", "id": id, "lease": lease}))
            .await;
        let told = self.hears("result").await;
        assert_eq!(told["result"], "ack");
        let is = |list: &str| told[list] == json!([id]);
        assert!(is("ok") != is("stale"), "{told}");
        is("ok")
    }

    async fn ends(mut self) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        assert!(status.expect("it ends").unwrap().success());
    }
}

// W1, W2, W3, W4, W5, W7: credit, an ack that is repeated, a lease that is lost and
// its stale ack, a revocation, a resumed connection, a node that stops, a drain.
async fn a_worker_in_python_conforms(db: Db) {
    let folder = tempfile::tempdir().unwrap();
    stubs(folder.path()).await;
    let app = TestApp::start(&db).await;
    let sub = app.stream(json!({})).await;
    let path = format!("/v1/external/webhooks/{}", sub.id);

    // Credit.
    let mut worker = Python::start(&app, folder.path(), "python", 2, 600);
    assert_eq!(worker.hears("opened").await["opened"], 600);
    app.events("a.b", 5).await;
    let first = worker.deliveries(2).await;
    worker.has_no_more().await;
    worker.tell(json!({"do": "credit", "window": 3})).await;
    let third = worker.deliveries(1).await.remove(0);
    worker.has_no_more().await;

    // An ack, and the same again.
    assert!(worker.acks(&first[0], -1).await);
    assert_eq!(app.state_of(&first[0]).await["status"], "DELIVERED");
    let fourth = worker.deliveries(1).await.remove(0);
    assert!(worker.acks(&first[0], -1).await);
    assert_eq!(app.attempts_of(&first[0]).await.len(), 1);

    // A connection that breaks, and what is resumed.
    worker.tell(json!({"do": "break"})).await;
    assert_eq!(worker.hears("broken").await["broken"], "CANCELLED");
    let opened = worker.hears("opened").await;
    assert_eq!(opened["resumed"].as_array().unwrap().len(), 3, "{opened}");
    assert_eq!(opened["lost"], json!([]));
    worker.has_no_more().await;
    assert!(worker.acks(&first[1], -1).await);
    let fifth = worker.deliveries(1).await.remove(0);

    // A subscription that is switched off.
    app.patch(&path, &app.admin, json!({"enabled": false}))
        .await
        .ok();
    let revoked = worker.hears("revoked").await;
    assert_eq!(
        (
            revoked["revoked"].as_array().unwrap().len(),
            &revoked["reason"]
        ),
        (3, &json!(2))
    );
    assert!(!worker.acks(&third, -1).await);
    app.patch(&path, &app.admin, json!({"enabled": true}))
        .await
        .ok();
    let mut again = worker.deliveries(3).await;
    again.sort_unstable();
    let mut wanted = vec![third.clone(), fourth.clone(), fifth.clone()];
    wanted.sort_unstable();
    assert_eq!(again, wanted);
    assert!(!worker.acks(&third, 0).await, "the first lease is over");
    assert!(worker.acks(&third, -1).await);

    // A node that stops, and comes back.
    let (start, address) = (app.again(), app.address);
    let stop = tokio::spawn(app.stop());
    let go = worker.hears("go_away").await;
    assert!(go["drain_by"].as_i64().unwrap() > 0, "{go}");
    assert!(worker.acks(&fourth, -1).await);
    stop.await.unwrap();
    let app = start.set("LISTEN", address).start().await;
    // What it still held is another lease's by now, which may come at once.
    let opened = worker.hears("opened").await;
    assert_eq!(opened["lost"], json!([fifth.clone()]), "{opened}");
    assert_eq!(worker.deliveries(1).await, std::slice::from_ref(&fifth));

    // A drain: nothing comes any more, and what it has is free.
    worker.tell(json!({"do": "credit", "window": 10})).await;
    worker.tell(json!({"do": "drain"})).await;
    worker.ends().await;

    // A lease that runs out.
    let mut late = Python::start(&app, folder.path(), "late", 1, 1);
    assert_eq!(late.deliveries(1).await, std::slice::from_ref(&fifth));
    let revoked = late.hears("revoked").await;
    assert_eq!(revoked, json!({"revoked": [fifth.clone()], "reason": 1}));
    assert_eq!(late.deliveries(1).await, std::slice::from_ref(&fifth));
    assert!(!late.acks(&fifth, 0).await);
    db.counts_agree().await;
    app.stop().await;
}
