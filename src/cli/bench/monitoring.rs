//! Histories of any length, and how soon monitoring answers on them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    header::{AUTHORIZATION, HOST},
};

use super::{
    args::{LoadHistoryArgs, MonitoringArgs, is_postgres},
    client::Connection,
    error::{BenchError, Result},
    postgres::Scratch,
    progress::Progress,
    report::{Report, Row},
    server::{Folder, Server, random},
    setup::authority,
};
use crate::{
    domain::{
        id::{DAY, Micros, SubscriptionId, TenantId, wall_clock},
        tenant::{self, Tenant},
    },
    store::{Database, Load, Store, connect},
};

/// Deliveries of one statement.
const SLICE: i64 = 20_000;
/// One in so many is a dead letter.
const DEAD_EVERY: i64 = 10_000;
/// What is to be reached.
const TARGET_MS: f64 = 10.0;

/// What is asked for.
const ROUTES: [&str; 9] = [
    "/v1/monitoring/external/metrics",
    "/v1/monitoring/external/api-keys",
    "/v1/monitoring/webhooks/metrics",
    "/v1/monitoring/webhooks/metrics?tenant=default",
    "/v1/monitoring/webhooks/recent",
    "/v1/monitoring/webhooks/recent?status=DEAD",
    "/v1/monitoring/webhooks/recent?status=CANCELLED",
    "/v1/monitoring/webhooks/recent?status=RETRYING",
    "/v1/monitoring/webhooks/recent?tenant=default",
];

fn broken(what: &str) -> impl Fn(crate::store::StoreError) -> BenchError + '_ {
    move |e| BenchError::failed(what, e)
}

/// The tenants that a history is spread over, `default` first.
async fn tenants(store: &dyn Store, count: u32) -> Result<Vec<TenantId>> {
    let mut ids = vec![TenantId::DEFAULT];
    for n in 1..count {
        let now = wall_clock();
        let id = tenant::new_id(now);
        let name = format!("load-{}-{n}", hex::encode(random::<4>()?));
        let tenant = Tenant {
            id,
            display_name: name.clone(),
            name,
            created_at: now,
        };
        let made = store.create_tenant(&tenant).await;
        made.map_err(broken("no tenant"))?;
        ids.push(id);
    }
    Ok(ids)
}

/// Finished deliveries to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct History {
    /// How many.
    pub deliveries: u64,
    /// Over how many tenants they are spread.
    pub tenants: u32,
    /// Over how many days they are spread.
    pub days: u16,
}

impl LoadHistoryArgs {
    fn history(&self) -> History {
        History {
            deliveries: self.deliveries,
            tenants: self.tenants,
            days: self.days,
        }
    }
}

/// Writes finished deliveries, spread over the last days.
pub(super) async fn fill(database: &Database, history: History, progress: &Progress) -> Result<()> {
    let store = connect(database).await.map_err(broken("no database"))?;
    let tenants = tenants(&*store, history.tenants).await?;
    let subscriptions: Vec<_> = tenants
        .iter()
        .map(|t| SubscriptionId::new(wall_clock(), t.part()))
        .collect();
    let total = history.deliveries.cast_signed();
    let span = Micros::from(history.days) * DAY;
    let start = wall_clock() - span;
    let began = Instant::now();
    let mut written = 0;
    while written < total {
        let count = SLICE.min(total - written);
        let at = |n: i64| {
            let into = i128::from(span) * i128::from(n) / i128::from(total);
            start + Micros::try_from(into).unwrap_or(span)
        };
        let n = usize::try_from(written / SLICE).unwrap_or_default() % tenants.len();
        let load = Load {
            tenant: tenants[n],
            subscription: subscriptions[n],
            from: at(written),
            step: ((at(written + count) - at(written)) / count).max(1),
            count,
            dead_every: DEAD_EVERY,
        };
        store
            .load_finished(&load)
            .await
            .map_err(broken("deliveries not written"))?;
        written += count;
        let seconds = began.elapsed().as_secs_f64();
        progress.tick(&format!(
            "{written} of {total} deliveries written, {:.0}/s",
            written as f64 / seconds
        ));
    }
    let analyzed = store.analyze().await;
    analyzed.map_err(broken("no statistics"))?;
    store.close().await;
    progress.say(&format!(
        "{total} deliveries written in {:.0} s",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// `onering bench load`
pub(super) async fn load(args: &LoadHistoryArgs) -> Result<Report> {
    let database = args
        .database
        .parse()
        .map_err(|e| BenchError::Usage(format!("--database: {e}")))?;
    fill(&database, args.history(), &Progress::new()).await?;
    Ok(Report::default())
}

/// `onering bench monitoring`
pub(super) async fn measure(args: &MonitoringArgs) -> Result<Report> {
    let progress = Progress::new();
    if let Some(url) = &args.url {
        let key = args
            .admin_key
            .clone()
            .ok_or_else(|| BenchError::Usage("--url needs --admin-key".into()))?;
        return ask(&authority(url)?, &key, args, "running server", &progress).await;
    }
    let tag = hex::encode(random::<4>()?);
    let folder = Folder::create(args.data_dir.as_deref(), &tag)?;
    let scratch = match args.history.database.as_str() {
        database if is_postgres(database) => Some(Scratch::create(database, &tag).await?),
        "sqlite" => None,
        _ => {
            return Err(BenchError::Usage(
                "--database: `sqlite` or a postgres:// URL is needed".into(),
            ));
        }
    };
    let measured = tokio::select! {
        measured = on_a_server(args, folder, scratch.as_ref(), &progress) => measured,
        stop = super::interrupted() => Err(stop),
    };
    if let Some(scratch) = scratch {
        scratch.drop().await?;
    }
    measured
}

async fn on_a_server(
    args: &MonitoringArgs,
    folder: Folder,
    scratch: Option<&Scratch>,
    progress: &Progress,
) -> Result<Report> {
    let (name, database) = match scratch {
        Some(s) => ("PostgreSQL", Database::Postgres(s.url.as_str().to_owned())),
        None => ("SQLite", Database::Sqlite(folder.path().join("onering.db"))),
    };
    fill(&database, args.history.history(), progress).await?;
    let mut server = Server::prepare(scratch.map(|s| s.url.as_str()), &[], folder)?;
    server.start().await?;
    let key = server.admin_key.clone();
    let asked = ask(&server.authority.clone(), &key, args, name, progress).await;
    server.stop().await?;
    asked
}

async fn ask(
    authority: &str,
    key: &str,
    args: &MonitoringArgs,
    database: &str,
    progress: &Progress,
) -> Result<Report> {
    let mut connection = Connection::new(authority.to_owned(), Duration::from_secs(30));
    let mut report = Report {
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        ..Report::default()
    };
    let stored = args.history.deliveries;
    for path in ROUTES {
        let mut times = Vec::new();
        // The first ones warm the database's caches, and are not counted.
        for n in 0..args.requests + args.requests.div_ceil(10) {
            let request = Request::get(path)
                .header(HOST, authority)
                .header(AUTHORIZATION, format!("Bearer {key}"))
                .body(Full::new(Bytes::new()))
                .map_err(|e| BenchError::failed(path, e))?;
            let began = Instant::now();
            let (status, body) = connection
                .call(request)
                .await
                .map_err(|e| BenchError::failed(path, e))?;
            if status != StatusCode::OK {
                let body = String::from_utf8_lossy(&body);
                return Err(BenchError::Failed(format!("{path}: {status} {body}")));
            }
            if n >= args.requests.div_ceil(10) {
                times.push(began.elapsed().as_secs_f64() * 1000.0);
            }
        }
        times.sort_by(f64::total_cmp);
        let share = |of: usize| times[(times.len() * of / 100).min(times.len() - 1)];
        let (p50, p99) = (share(50), share(99));
        progress.tick(&format!("{path}: p50 {p50:.2} ms, p99 {p99:.2} ms"));
        report.rows.push(Row {
            id: "B12".into(),
            what: format!("GET {path}, {stored} deliveries stored, {database}"),
            figure: format!("p50 {p50:.2} ms, p99 {p99:.2} ms"),
            of_raw: None,
            target: format!("< {TARGET_MS:.0} ms"),
            reached: Some(p99 < TARGET_MS),
        });
    }
    Ok(report)
}
