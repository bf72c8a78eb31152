//! B10: from a change until the last node acts on it. Each node is asked over a
//! connection of its own, again and again, until it answers by the change.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use http_body_util::Full;
use hyper::{Method, Request, Uri, header::AUTHORIZATION};
use serde_json::{Value, json};

use super::{
    args::{SwitchArgs, is_postgres},
    client::Connection,
    error::{BenchError, Result},
    interrupted,
    latency::{Percentiles, histogram},
    postgres::Scratch,
    progress::Progress,
    publisher::shown,
    report::{Effect, Report, Row},
    server::{Folder, Server, random},
    setup::{bearer, common_headers, text},
};

/// What a node is asked.
const ME: &str = "/v1/external/me";
/// Between two calls to one node: more would measure the calls.
const PAUSE: Duration = Duration::from_micros(500);
/// A change that took no effect by then never will.
const PATIENCE: Duration = Duration::from_secs(30);
/// The switch that is set.
const SWITCH: &str = "external_api.enabled";

/// Measures and removes what it started.
pub(super) async fn measure(args: &SwitchArgs) -> Result<Report> {
    args.check()?;
    let tag = hex::encode(random::<4>()?);
    let scratch = if is_postgres(&args.database) {
        Some(Scratch::create(&args.database, &tag).await?)
    } else {
        None
    };
    let mut servers = Vec::new();
    let found = tokio::select! {
        found = with_servers(args, &tag, scratch.as_ref(), &mut servers) => found,
        stop = interrupted() => Err(stop),
    };
    let mut stopped = Ok(());
    for server in &mut servers {
        stopped = stopped.and(server.stop().await);
    }
    if let Some(scratch) = scratch {
        stopped = stopped.and(scratch.drop().await);
    }
    let effects = found?;
    stopped?;
    Ok(Report {
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        rows: effects.iter().map(row).collect(),
        effects,
        ..Report::default()
    })
}

fn row(e: &Effect) -> Row {
    let p = &e.from_sending;
    Row {
        id: "B10".into(),
        what: format!(
            "{}, sent → in force on {} node(s), {}",
            e.what, e.nodes, e.database
        ),
        figure: format!(
            "p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
            p.p50_ms, p.p99_ms, p.max_ms
        ),
        of_raw: None,
        target: "p99 < 1 s, median < 50 ms".into(),
        reached: Some(p.p99_ms < 1000.0 && p.p50_ms < 50.0),
    }
}

async fn with_servers(
    args: &SwitchArgs,
    tag: &str,
    scratch: Option<&Scratch>,
    servers: &mut Vec<Server>,
) -> Result<Vec<Effect>> {
    let progress = Progress::new();
    let master = STANDARD.encode(random::<32>()?);
    for n in 0..args.nodes {
        // A pinned switch can't be set: none is.
        let mut environment = vec![
            format!("ONERING_MASTER_KEY={master}"),
            format!("ONERING_NODE_NAME=bench-{n}"),
            "ONERING_EXTERNAL_API_ENABLED=".into(),
            "ONERING_EXTERNAL_API_CANARY_ONLY=".into(),
            "ONERING_WEBHOOKS_ENABLED=".into(),
            "ONERING_WEBHOOKS_DELIVERY_ENABLED=".into(),
        ];
        environment.extend(args.server_env.iter().cloned());
        let folder = Folder::create(args.data_dir.as_deref(), &format!("{tag}-{n}"))?;
        let url = scratch.map(|s| s.url.as_str());
        let mut server = Server::prepare(url, &environment, folder)?;
        server.start().await?;
        servers.push(server);
    }
    let authorities: Vec<String> = servers.iter().map(|s| s.authority.clone()).collect();
    progress.say(&format!("nodes run on {}", authorities.join(", ")));
    // The first node made the first admin key.
    let admin = servers
        .first()
        .map(|s| s.admin_key.clone())
        .unwrap_or_default();
    let mut fleet = Fleet::new(authorities, admin);
    let database = scratch.map_or("SQLite", |_| "PostgreSQL").to_owned();
    let switches = switches(&mut fleet, args.changes, &progress).await?;
    let keys = keys(&mut fleet, args.changes, &progress).await?;
    [("a switch is set", switches), ("a key is revoked", keys)]
        .into_iter()
        .map(|(what, times)| Ok(times.effect(what, args.nodes, &database)))
        .collect()
}

/// The nodes: one connection each to ask over, and one to change things with.
struct Fleet {
    authorities: Vec<String>,
    askers: Vec<Connection>,
    changers: Vec<Connection>,
    admin: String,
}

impl Fleet {
    fn new(authorities: Vec<String>, admin: String) -> Self {
        let open = || {
            let open = |a: &String| Connection::new(a.clone(), Duration::from_secs(10));
            authorities.iter().map(open).collect()
        };
        Self {
            askers: open(),
            changers: open(),
            authorities,
            admin,
        }
    }

    /// Calls the node of that number, round and round.
    async fn admin(&mut self, node: usize, path: &str, body: &Value) -> Result<Value> {
        let node = node % self.authorities.len().max(1);
        let (Some(authority), Some(connection)) =
            (self.authorities.get(node), self.changers.get_mut(node))
        else {
            return Err(BenchError::Failed("there is no node".into()));
        };
        let body = Bytes::from(body.to_string());
        let request = request(authority, Method::POST, path, &self.admin, body)?;
        let (status, answer) = connection
            .call(request)
            .await
            .map_err(|e| BenchError::NotReached(format!("{path} at {authority}: {e}")))?;
        if !status.is_success() {
            let answer = shown(&answer);
            return Err(BenchError::Failed(format!("{path}: {status}: {answer}")));
        }
        serde_json::from_slice(&answer).map_err(|e| BenchError::failed(path, e))
    }

    /// Changes something while every node is asked, until each has answered this
    /// key with that status.
    async fn change(
        &mut self,
        node: usize,
        path: &str,
        body: &Value,
        key: &str,
        status: u16,
    ) -> Result<(Value, Times)> {
        let mut askers = std::mem::take(&mut self.askers);
        let authorities = self.authorities.clone();
        let sent = Instant::now();
        let answered = async {
            let answer = self.admin(node, path, body).await?;
            Ok::<_, BenchError>((answer, Instant::now()))
        };
        let asked = askers
            .iter_mut()
            .zip(&authorities)
            .map(|(asker, authority)| answers(asker, authority, key, status));
        let both = tokio::try_join!(answered, try_join_all(asked));
        self.askers = askers;
        let ((answer, answered), seen) = both?;
        let last = seen.into_iter().max().unwrap_or(sent);
        let times = Times {
            answer: answered - sent,
            from_sending: last - sent,
            from_answer: last.saturating_duration_since(answered),
        };
        Ok((answer, times))
    }
}

/// What one change took.
struct Times {
    answer: Duration,
    from_sending: Duration,
    from_answer: Duration,
}

/// Asks a node until it answers so; when the answer was there.
async fn answers(
    connection: &mut Connection,
    authority: &str,
    key: &str,
    status: u16,
) -> Result<Instant> {
    let end = Instant::now() + PATIENCE;
    loop {
        let request = request(authority, Method::GET, ME, key, Bytes::new())?;
        let (now, _) = connection
            .call(request)
            .await
            .map_err(|e| BenchError::NotReached(format!("{ME} at {authority}: {e}")))?;
        let at = Instant::now();
        if now.as_u16() == status {
            return Ok(at);
        }
        if at > end {
            return Err(BenchError::Failed(format!(
                "{authority} still answers {now} after {} s, and not {status}",
                PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn request(
    authority: &str,
    method: Method,
    path: &str,
    key: &str,
    body: Bytes,
) -> Result<Request<Full<Bytes>>> {
    let uri: Uri = path.parse().map_err(|e| BenchError::failed(path, e))?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = common_headers(authority)?;
    request.headers_mut().insert(AUTHORIZATION, bearer(key)?);
    Ok(request)
}

/// What all changes of a kind took.
struct Tally {
    answer: Histogram<u64>,
    from_sending: Histogram<u64>,
    from_answer: Histogram<u64>,
    unconfirmed: u64,
}

impl Tally {
    fn new() -> Result<Self> {
        Ok(Self {
            answer: histogram()?,
            from_sending: histogram()?,
            from_answer: histogram()?,
            unconfirmed: 0,
        })
    }

    fn add(&mut self, times: &Times) {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        self.answer.saturating_record(micros(times.answer));
        self.from_sending
            .saturating_record(micros(times.from_sending));
        self.from_answer
            .saturating_record(micros(times.from_answer));
    }

    fn effect(&self, what: &str, nodes: u16, database: &str) -> Effect {
        Effect {
            what: what.to_owned(),
            nodes,
            database: database.to_owned(),
            answer: Percentiles::of(&self.answer),
            from_sending: Percentiles::of(&self.from_sending),
            from_answer: Percentiles::of(&self.from_answer),
            unconfirmed: self.unconfirmed,
        }
    }
}

/// A key that no limit holds back.
fn new_key() -> Value {
    json!({"name": "bench", "tier": "enterprise", "rate_limit_per_hour": 1_000_000_000})
}

/// Sets a switch again and again, off and on, on one node after another.
async fn switches(fleet: &mut Fleet, changes: u32, progress: &Progress) -> Result<Tally> {
    let made = fleet
        .admin(0, "/v1/admin/external/keys", &new_key())
        .await?;
    let key = text(&made, "secret")?;
    let path = "/v1/admin/switches";
    let body = |on: bool| json!({"name": SWITCH, "enabled": on, "reason": "onering bench"});
    // Until every node knows the key, this one counts for nothing.
    fleet.change(0, path, &body(true), &key, 200).await?;
    let mut tally = Tally::new()?;
    for n in 0..changes {
        let on = n % 2 == 1;
        let status = if on { 200 } else { 503 };
        let (answer, times) = fleet
            .change(place(n), path, &body(on), &key, status)
            .await?;
        tally.add(&times);
        let nodes = answer.get("nodes").and_then(Value::as_array);
        let confirmed = |n: &Value| n.get("confirmed") == Some(&Value::Bool(true));
        if !nodes.is_some_and(|nodes| nodes.iter().all(confirmed)) {
            tally.unconfirmed += 1;
        }
        if n % 100 == 99 {
            progress.tick(&format!("a switch was set {} times", n + 1));
        }
    }
    fleet.change(0, path, &body(true), &key, 200).await?;
    Ok(tally)
}

/// Revokes one key after the other.
async fn keys(fleet: &mut Fleet, changes: u32, progress: &Progress) -> Result<Tally> {
    let mut tally = Tally::new()?;
    for n in 0..changes {
        let made = fleet
            .admin(place(n), "/v1/admin/external/keys", &new_key())
            .await?;
        let (id, key) = (text(&made, "key_id")?, text(&made, "secret")?);
        for (asker, authority) in fleet.askers.iter_mut().zip(&fleet.authorities) {
            answers(asker, authority, &key, 200).await?;
        }
        let path = format!("/v1/admin/external/keys/{id}/revoke");
        let (_, times) = fleet.change(place(n), &path, &json!({}), &key, 401).await?;
        tally.add(&times);
        if n % 100 == 99 {
            progress.tick(&format!("{} keys were revoked", n + 1));
        }
    }
    Ok(tally)
}

/// Which node a change is sent to: each in turn.
fn place(n: u32) -> usize {
    usize::try_from(n).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    // B10: percentiles of what was measured, and whether that is soon enough.
    #[test]
    fn a_row_tells_whether_changes_are_soon_enough() {
        let mut tally = Tally::new().unwrap();
        for ms in [10, 20, 30, 40] {
            let from_sending = Duration::from_millis(ms);
            let answer = Duration::from_millis(ms * 2);
            tally.add(&Times {
                answer,
                from_sending,
                from_answer: from_sending.saturating_sub(answer),
            });
        }
        let mut effect = tally.effect("a key is revoked", 3, "PostgreSQL");
        assert_eq!(effect.from_sending.count, 4);
        assert!((effect.from_answer.max_ms - 0.0).abs() < 0.01);
        assert_eq!(row(&effect).reached, Some(true));
        effect.from_sending.p50_ms = 60.0;
        assert_eq!(row(&effect).reached, Some(false));
        effect.from_sending.p50_ms = 10.0;
        effect.from_sending.p99_ms = 1000.0;
        assert_eq!(row(&effect).reached, Some(false));
    }
}
