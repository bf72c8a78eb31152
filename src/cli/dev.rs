//! `onering dev`: everything on, and a first delivery to look at.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    WRONG,
    client::{CallError, Connection},
    failed, serve,
    sink::{RunningSink, Sink, SinkConfig},
};
use crate::{
    app::{App, Outside, StartError},
    domain::{
        id::{KeyId, Part, wall_clock},
        key::{self, Kind},
        signature::VerifyingKey,
        switch::{Change, Switch},
    },
    proto::v1::{
        self, event_service_client::EventServiceClient, key_service_client::KeyServiceClient,
        publish_event_request::Payload, subscription_service_client::SubscriptionServiceClient,
    },
    seal,
    settings::Settings,
    store::{Author, StoreError},
    telemetry,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  onering dev                              data in ./onering-data
  ONERING_LISTEN=127.0.0.1:8080 onering dev
  onering dev --fresh                      from an empty store";

/// `onering dev`
#[derive(Args)]
pub(super) struct DevArgs {
    /// Deletes the data folder's embedded database and keys first
    #[arg(long)]
    fresh: bool,
}

/// What `dev` keeps between two starts, readable by its user alone.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    master_key: String,
    admin_key: String,
    consumer_key: String,
    canary_key: String,
    subscription: String,
    secret: String,
}

const FILE: &str = "dev.json";

pub(super) async fn run(args: DevArgs) -> ExitCode {
    let mut signals = match serve::Signals::listen() {
        Ok(signals) => signals,
        Err(e) => return failed(1, &e),
    };
    let started = tokio::select! {
        started = start(&args) => started,
        () = signals.stop() => return ExitCode::SUCCESS,
    };
    match started {
        Ok((app, _sink)) => {
            let code = serve::until_stopped(app, signals, open_up).await;
            println!("Stopped.");
            code
        }
        Err(Stop::Wrong(e)) => failed(WRONG, &e),
        Err(Stop::Failed(e)) => failed(1, &e),
        Err(Stop::Call(e)) => e.tell(),
    }
}

enum Stop {
    Wrong(String),
    Failed(String),
    Call(CallError),
}

impl From<CallError> for Stop {
    fn from(e: CallError) -> Self {
        Self::Call(e)
    }
}

impl From<tonic::Status> for Stop {
    fn from(e: tonic::Status) -> Self {
        Self::Call(e.into())
    }
}

impl From<StartError> for Stop {
    fn from(e: StartError) -> Self {
        match e {
            StartError::Listen(address, e) => Self::Wrong(format!(
                "can't listen on {address}: {e}\n  another address: ONERING_LISTEN=127.0.0.1:8080 onering dev"
            )),
            StartError::Settings(e) => Self::Wrong(e),
            e => Self::Failed(e.to_string()),
        }
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Stop {
    let path = path.to_owned();
    move |e| Stop::Failed(format!("{}: {e}", path.display()))
}

async fn start(args: &DevArgs) -> Result<(App, RunningSink), Stop> {
    let mut settings = Settings::read().map_err(|e| Stop::Wrong(e.to_string()))?;
    if settings.tls.is_some() {
        return Err(Stop::Wrong(
            "`onering dev` serves without TLS: unset ONERING_TLS_CERT, or use `onering serve`"
                .into(),
        ));
    }
    let levels = if settings.log == "info" {
        "warn"
    } else {
        &settings.log
    };
    telemetry::init(levels, settings.log_json).map_err(Stop::Wrong)?;
    let dir = settings
        .data_dir
        .clone()
        .unwrap_or_else(|| PathBuf::from("onering-data"));
    settings.data_dir = Some(dir.clone());
    settings.drain = Duration::ZERO;
    if args.fresh {
        clear(&dir)?;
    }
    let mut kept = read_kept(&dir)?;
    configure(&mut settings, &mut kept)?;
    write_kept(&dir, &kept)?;

    let app = App::start(settings, Outside::default()).await?;
    switch_on(&app).await?;
    let sink = start_sink(&mut kept).await?;
    introduce(&app, &sink, &mut kept).await?;
    write_kept(&dir, &kept)?;
    tell(app.address, &sink, &kept, &dir);
    let on = app.context.directory.switches();
    if on.api && !on.canary_only && on.webhooks && on.delivery {
        first_delivery(app.address, &sink, &kept).await?;
    } else {
        println!(
            "\nNo first delivery: not everything is on. `onering flags list` shows what is not."
        );
        if !on.webhooks {
            println!(
                "The subscription still has an earlier sink's address: start anew once webhooks.enabled is on."
            );
        }
    }
    go_on(app.address, &kept);
    Ok((app, sink))
}

/// Loopback allowed, monitoring open unless the environment says otherwise.
fn open_up(settings: &mut Settings) {
    settings.live.allow_http = true;
    settings.live.monitoring_open = settings.live.monitoring_open.or(Some(true));
    for network in ["127.0.0.0/8", "::1/128"] {
        if let Ok(network) = network.parse() {
            settings.live.allowed_endpoints.push(network);
        }
    }
}

/// Switches on what nobody has set yet. Not by pins: these switches can be set.
async fn switch_on(app: &App) -> Result<(), Stop> {
    let (stored, _) = app.context.directory.stored_switches();
    let unset: Vec<&str> = Switch::STOPPABLE
        .map(Switch::name)
        .into_iter()
        .filter(|name| !stored.contains_key(*name))
        .collect();
    if unset.is_empty() {
        return Ok(());
    }
    let by = Author {
        actor: "onering dev",
        reason: "everything is on where nobody has set it",
    };
    let failed = |e: StoreError| Stop::Failed(e.to_string());
    app.context
        .store
        .change_switches(&unset, Change::Set(true), by, app.context.keyring.audit())
        .await
        .map_err(failed)?;
    app.context.directory.refresh().await.map_err(failed)
}

/// The keys that were made at an earlier start, or new ones.
fn configure(settings: &mut Settings, kept: &mut Kept) -> Result<(), Stop> {
    open_up(settings);
    let random = |e: &dyn std::fmt::Display| Stop::Failed(e.to_string());
    if settings.master_key.is_none() {
        if kept.master_key.is_empty() {
            kept.master_key = seal::new_master_key().map_err(|e| random(&e))?.to_string();
        }
        let key = kept.master_key.parse();
        settings.master_key =
            Some(key.map_err(|e| Stop::Failed(format!("{FILE}: master_key takes {e}")))?);
    }
    if let Some(key) = &settings.bootstrap_key {
        key.as_str().clone_into(&mut kept.admin_key);
    } else {
        if kept.admin_key.is_empty() {
            let secret = key::generate_secret().map_err(|e| random(&e))?;
            let id = KeyId::new(wall_clock(), Part::new(0));
            kept.admin_key = key::format(Kind::Admin, id, &secret).to_string();
        }
        settings.bootstrap_key = Some(kept.admin_key.clone().into());
    }
    Ok(())
}

fn clear(dir: &Path) -> Result<(), Stop> {
    for name in [
        FILE,
        "onering.db",
        "onering.db-wal",
        "onering.db-shm",
        "onering.db.lock",
    ] {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&path)(e)),
            _ => {}
        }
    }
    Ok(())
}

fn read_kept(dir: &Path) -> Result<Kept, Stop> {
    let path = dir.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
            Stop::Failed(format!(
                "{}: {e}; `onering dev --fresh` begins anew",
                path.display()
            ))
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Kept::default()),
        Err(e) => Err(io(&path)(e)),
    }
}

fn write_kept(dir: &Path, kept: &Kept) -> Result<(), Stop> {
    let path = dir.join(FILE);
    fs::create_dir_all(dir).map_err(io(dir))?;
    let text = serde_json::to_vec_pretty(kept).map_err(|e| Stop::Failed(e.to_string()))?;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(io(&path))?;
    file.write_all(&text).map_err(io(&path))
}

async fn start_sink(kept: &mut Kept) -> Result<RunningSink, Stop> {
    if kept.secret.is_empty() {
        let secret =
            crate::domain::signature::Secret::generate(crate::domain::signature::Scheme::V1)
                .map_err(|e| Stop::Failed(e.to_string()))?;
        secret.expose().clone_into(&mut kept.secret);
    }
    let key = VerifyingKey::parse(&kept.secret)
        .map_err(|e| Stop::Failed(format!("{FILE}: secret: {e}")))?;
    let config = SinkConfig {
        keys: vec![key],
        ..SinkConfig::default()
    };
    Sink::start(config)
        .await
        .map_err(|e| Stop::Failed(format!("the sink can't listen: {e}")))
}

/// Makes the keys and the subscription that are not there yet, and points the
/// subscription at this start's sink.
async fn introduce(app: &App, sink: &RunningSink, kept: &mut Kept) -> Result<(), Stop> {
    let url = format!("http://{}", app.address);
    let connection = Connection::open(&url, &kept.admin_key).await?;
    let mut keys = KeyServiceClient::new(connection.channel.clone());
    for (text, name, canary) in [
        (&mut kept.consumer_key, "dev", false),
        (&mut kept.canary_key, "dev canary", true),
    ] {
        if text.is_empty() {
            let request = connection.request(v1::CreateKeyRequest {
                name: name.into(),
                tier: "enterprise".into(),
                canary_enabled: canary.then_some(true),
                ..Default::default()
            });
            *text = keys.create_key(request).await?.into_inner().secret;
        }
    }
    if !app.context.directory.switches().webhooks {
        return Ok(());
    }
    let mut subscriptions = SubscriptionServiceClient::new(connection.channel.clone());
    if !kept.subscription.is_empty() {
        let request = connection.request(v1::UpdateSubscriptionRequest {
            id: kept.subscription.clone(),
            subscription: Some(v1::Subscription {
                url: sink.url(),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["url".into()],
            }),
        });
        if subscriptions.update_subscription(request).await.is_ok() {
            return Ok(());
        }
    }
    let request = connection.request(v1::CreateSubscriptionRequest {
        url: sink.url(),
        event_types: vec!["*".into()],
        description: "the sink of onering dev".into(),
        secret: kept.secret.clone(),
        ..Default::default()
    });
    kept.subscription = subscriptions
        .create_subscription(request)
        .await?
        .into_inner()
        .id;
    Ok(())
}

fn tell(address: SocketAddr, sink: &RunningSink, kept: &Kept, dir: &Path) {
    println!(
        "OneRing is running at http://{address}, its data in {}",
        dir.display()
    );
    println!();
    println!("  admin key      {}", kept.admin_key);
    println!("  consumer key   {}", kept.consumer_key);
    println!("  canary key     {}", kept.canary_key);
    println!(
        "  subscription   {} for * to {}",
        kept.subscription,
        sink.url()
    );
    println!("  its secret     {}", kept.secret);
}

async fn first_delivery(address: SocketAddr, sink: &RunningSink, kept: &Kept) -> Result<(), Stop> {
    let connection = Connection::open(&format!("http://{address}"), &kept.consumer_key).await?;
    let mut events = EventServiceClient::new(connection.channel.clone());
    let request = connection.request(v1::PublishEventRequest {
        event_type: "invoice.paid".into(),
        payload: Some(Payload::DataJson(
            br#"{"invoice":"inv_1","amount":4200}"#.as_slice().into(),
        )),
        ..Default::default()
    });
    let began = Instant::now();
    let id = events.publish_event(request).await?.into_inner().id;
    println!("\nA first event, invoice.paid, was accepted as {id}");
    let ours = |d: &std::sync::Arc<super::sink::Delivery>| d.event_id.as_deref() == Some(&id);
    let delivery = loop {
        if let Some(delivery) = sink.deliveries().into_iter().find(ours) {
            break delivery;
        }
        if began.elapsed() > Duration::from_secs(15) {
            return Err(Stop::Failed(format!(
                "{id} did not arrive within 15 seconds"
            )));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let verdict = match (delivery.verified, &delivery.reason) {
        (Some(true), _) => "✅ its signature holds".to_owned(),
        (_, reason) => format!(
            "❌ its signature does not hold: {}",
            reason.as_deref().unwrap_or("not checked")
        ),
    };
    println!(
        "and arrived {} ms later; {verdict}:\n",
        began.elapsed().as_millis()
    );
    println!("  POST {}", delivery.path);
    for name in [
        "x-webhook-id",
        "x-webhook-event",
        "x-webhook-signature",
        "webhook-signature",
    ] {
        if let Some(value) = delivery.headers.get(name) {
            println!("  {name}: {value}");
        }
    }
    println!("\n  {}", delivery.body);
    Ok(())
}

fn go_on(address: SocketAddr, kept: &Kept) {
    let consumer = &kept.consumer_key;
    println!(
        "
Go on from here:

  curl -s http://{address}/v1/external/me -H 'Authorization: Bearer {consumer}'

  curl -s http://{address}/v1/external/events -H 'Authorization: Bearer {consumer}' \\
    -H 'Content-Type: application/json' -d '{{\"event_type\": \"ring.forged\", \"data\": {{\"bearer\": \"Frodo\"}}}}'

  curl -s http://{address}/v1/external/webhooks/{sub}/deliveries -H 'Authorization: Bearer {consumer}'

  grpcurl -plaintext -H 'authorization: Bearer {consumer}' \\
    -d '{{\"event_type\": \"ring.forged\", \"data\": {{\"bearer\": \"Frodo\"}}}}' {address} onering.v1.EventService/PublishEvent

  grpcurl -plaintext {address} list

Ctrl-C stops.",
        sub = kept.subscription,
    );
}
