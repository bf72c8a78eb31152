//! Nodes that are restarted one after another behind a balancer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use onering::proto::v1::{GetCallerRequest, PublishEventRequest, publish_event_request::Payload};
use serde_json::json;
use tonic::transport::Endpoint;

use crate::support::{
    app::{Grpc, eventually, variables},
    cluster::{Balancer, free_port},
    command::Running,
    contract,
    receiver::Receiver,
    rest::Rest,
};

const NODES: usize = 3;

/// Two ways in, HTTP/1.1 and HTTP/2, to whichever node is well.
fn configuration(rest: u16, grpc: u16, nodes: &[u16]) -> String {
    let servers = |protocol: &str| -> String {
        let server = |(n, port): (usize, &u16)| {
            format!("  server node-{n} 127.0.0.1:{port} check {protocol}\n")
        };
        nodes.iter().enumerate().map(server).collect()
    };
    format!(
        "defaults
  mode http
  timeout connect 2s
  timeout client 30s
  timeout server 30s
  option redispatch
  retries 3
  retry-on conn-failure
  option httpchk GET /health?deep=true
  default-server inter 200ms fall 1 rise 1
frontend rest
  bind 127.0.0.1:{rest}
  default_backend rest
frontend grpc
  bind 127.0.0.1:{grpc} proto h2
  default_backend grpc
backend rest
{}backend grpc
{}",
        servers(""),
        servers("proto h2"),
    )
}

struct Node {
    process: Running,
    vars: Vec<(String, String)>,
}

async fn serve(vars: &[(String, String)]) -> Running {
    let vars: Vec<(&str, &str)> = vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let process = Running::onering(&["serve"], &vars);
    process.logged("\"serving\"").await;
    process
}

// H4: no call fails while every node is restarted, and no delivery is sent twice.
#[test]
fn postgres_no_call_fails_in_a_rolling_restart() {
    contract::on_postgres(|db| async move {
        let vars = variables(&db);
        let admin = vars["ONERING_BOOTSTRAP_ADMIN_KEY"].clone();
        let ports: Vec<u16> = (0..NODES).map(|_| free_port()).collect();
        let mut nodes = Vec::new();
        for (n, port) in ports.iter().enumerate() {
            let mut vars = vars.clone();
            for (name, value) in [
                ("LISTEN", format!("127.0.0.1:{port}")),
                ("NODE_NAME", format!("node-{n}")),
                ("LOG_FORMAT", "json".into()),
                ("DRAIN_SECONDS", "2".into()),
            ] {
                vars.insert(format!("ONERING_{name}"), value);
            }
            let vars: Vec<(String, String)> = vars.into_iter().collect();
            let process = serve(&vars).await;
            nodes.push(Node { process, vars });
        }
        let (http1, http2) = (free_port(), free_port());
        let _balancer = Balancer::start(&configuration(http1, http2, &ports), http1).await;
        let url = format!("http://127.0.0.1:{http1}");
        let receiver = Receiver::start().await;
        let rest = Rest::new(&admin);
        let hook = json!({"url": receiver.url()}).to_string();
        eventually("the balancer has nodes", || async {
            let me = rest
                .call("GET", &format!("{url}/v1/external/me"), &[], "")
                .await;
            (me.unwrap().status == 200).then_some(())
        })
        .await;
        rest.call("POST", &format!("{url}/v1/external/webhooks"), &[], hook)
            .await
            .unwrap()
            .expect(201);

        let stop = Arc::new(AtomicBool::new(false));
        let published = Arc::new(AtomicUsize::new(0));
        let mut callers = Vec::new();
        for _ in 0..4 {
            let (rest, url, stop, published) =
                (rest.clone(), url.clone(), stop.clone(), published.clone());
            callers.push(tokio::spawn(async move {
                let mut calls = 0;
                while !stop.load(Ordering::Relaxed) {
                    let event = json!({"event_type": "a.b", "data": {"n": calls}}).to_string();
                    let path = format!("{url}/v1/external/events");
                    let answer = rest.call("POST", &path, &[], event).await;
                    answer.expect("an answer").expect(202);
                    published.fetch_add(1, Ordering::Relaxed);
                    let me = rest
                        .call("GET", &format!("{url}/v1/external/me"), &[], "")
                        .await;
                    me.expect("an answer").expect(200);
                    calls += 2;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                calls
            }));
        }
        for _ in 0..2 {
            let (stop, published) = (stop.clone(), published.clone());
            let channel = Endpoint::try_from(format!("http://127.0.0.1:{http2}"));
            let mut grpc = Grpc::new(channel.unwrap().connect().await.unwrap(), &admin);
            callers.push(tokio::spawn(async move {
                let mut calls = 0;
                while !stop.load(Ordering::Relaxed) {
                    grpc.keys.get_caller(GetCallerRequest {}).await.unwrap();
                    let event = PublishEventRequest {
                        event_type: "a.b".into(),
                        payload: Some(Payload::DataJson(b"{}".to_vec().into())),
                        ..Default::default()
                    };
                    grpc.events.publish_event(event).await.unwrap();
                    published.fetch_add(1, Ordering::Relaxed);
                    calls += 2;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                calls
            }));
        }
        for node in &mut nodes {
            let before = published.load(Ordering::Relaxed);
            let again = serve_after(&mut node.process, &node.vars).await;
            let stopped = std::mem::replace(&mut node.process, again);
            drop(stopped);
            eventually("calls go on", || async {
                let now = published.load(Ordering::Relaxed);
                (now > before + 100).then_some(())
            })
            .await;
            // Long enough for the balancer to call the node well again.
            let port = node
                .vars
                .iter()
                .find(|(k, _)| k == "ONERING_LISTEN")
                .unwrap();
            let well = format!("http://{}/health?deep=true", port.1);
            eventually("the node is well", || async {
                let answer = rest.call("GET", &well, &[], "").await.ok()?;
                (answer.status == 200).then_some(())
            })
            .await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        stop.store(true, Ordering::Relaxed);
        let mut calls = 0;
        for caller in callers {
            calls += caller.await.expect("no call failed");
        }
        let published = published.load(Ordering::Relaxed);
        eventually("everything is delivered", || async {
            (receiver.count() >= published).then_some(())
        })
        .await;
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        for r in receiver.received() {
            *times
                .entry(r.header("x-webhook-id").to_owned())
                .or_default() += 1;
        }
        assert_eq!(times.len(), published, "each event is one delivery");
        let twice: BTreeSet<_> = times.iter().filter(|(_, n)| **n > 1).collect();
        assert_eq!(twice, BTreeSet::new(), "sent twice");
        eprintln!("{NODES} restarts, {calls} calls, 0 failed, {published} deliveries");
        for node in nodes {
            node.process.stop().await;
        }
    });
}

/// Stops a node as a service manager does, waits for its end, and starts it again
/// where it was.
async fn serve_after(process: &mut Running, vars: &[(String, String)]) -> Running {
    process.signal("TERM");
    process.ends().await;
    serve(vars).await
}
