//! `onering worker`: sends webhooks for a server, from wherever it runs.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::{
    WRONG, failed,
    hold::Hold,
    link::{self, Handle, Link},
};
use crate::{
    connector::{self, Connector},
    domain::{delivery, id::wall_clock},
    pipeline::{
        clients::Clients,
        sender::{Post, Sender, Sent},
    },
    proto::v1::{
        SubscriptionKind,
        server_message::Delivery,
        worker_message::{Filter, Outcome, Result as What},
    },
    settings::{Live, Settings},
    telemetry,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  onering worker --connect https://onering.example.com --key sk_admin_...
  ONERING_ADMIN_KEY=sk_admin_... onering worker --connect http://10.0.0.5:8000 --concurrency 200
  onering worker --connect http://10.0.0.5:8000 --subscription sub_...

The key needs the scope deliveries:work. Where deliveries may go is decided here too:
ONERING_ALLOWED_ENDPOINT_CIDRS, ONERING_ALLOW_HTTP_ENDPOINTS, ONERING_ENDPOINT_CA_FILE and
ONERING_EGRESS_PROXY mean what they mean for `onering serve`. Subscriptions with a client
certificate are sent by the server itself.";

/// The longest attempt, in seconds, and time for its answer to come back.
const LEASE: i32 = 120;

/// `onering worker`
#[derive(Args)]
pub(super) struct WorkerArgs {
    /// The server's address
    #[arg(long, env = "ONERING_URL", value_name = "URL")]
    connect: String,
    /// An admin key with the scope deliveries:work
    #[arg(long, env = "ONERING_ADMIN_KEY", hide_env_values = true)]
    key: String,
    /// Attempts under way at once
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: u16,
    /// The worker's name in attempts; the host's where it is not given. Two that run
    /// at the same time need two names
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Sends for these subscriptions only
    #[arg(long, value_name = "ID")]
    subscription: Vec<String>,
    /// Sends for this tenant only
    #[arg(long)]
    tenant: Option<String>,
}

pub(super) async fn run(args: WorkerArgs) -> ExitCode {
    let settings = match Settings::read() {
        Ok(settings) => settings,
        Err(e) => return failed(WRONG, &e),
    };
    if let Err(e) = telemetry::init(&settings.log, settings.log_json) {
        return failed(WRONG, &e);
    }
    let poster = match Poster::new(&settings, settings.live.clone()) {
        Ok(poster) => poster,
        Err(e) => return failed(WRONG, &e),
    };
    let stop = match link::until_signal() {
        Ok(stop) => stop,
        Err(code) => return code,
    };
    let link = Link {
        url: args.connect,
        key: args.key,
        worker_id: args.id.unwrap_or(settings.node_name),
        filter: Filter {
            subscription_ids: args.subscription,
            kinds: vec![SubscriptionKind::Webhook.into()],
            tenant: args.tenant.unwrap_or_default(),
        },
        concurrency: args.concurrency,
        lease_seconds: LEASE,
    };
    link.run(Arc::new(Relay(poster)), stop).await
}

/// Sends deliveries to their own URLs.
struct Relay(Poster);

impl Handle for Relay {
    async fn handle(&self, delivery: Delivery, hold: Arc<Hold>) -> Option<Outcome> {
        let uri = delivery.url.clone();
        let sent = self.0.post(delivery, &uri, hold).await;
        self::outcome(sent)
    }
}

/// Sends what a server has signed.
pub(super) struct Poster {
    sender: Sender,
}

impl Poster {
    /// One that goes where these settings let it.
    pub(super) fn new(settings: &Settings, live: Live) -> Result<Self, String> {
        let live = Arc::new(ArcSwap::from_pointee(live));
        let connector = Connector::new(
            live.clone(),
            connector::system_resolver(),
            settings.egress_proxy.clone(),
        );
        let tls = connector::Tls::new(settings, connector)?;
        Ok(Self {
            sender: Sender::new(Clients::new(tls), live, Arc::new(wall_clock)),
        })
    }

    /// POSTs a delivery there, as it was signed, unless that is too long ago by
    /// then, or it may be another's. The age counts from its arrival: the server's
    /// clock may be another.
    pub(super) async fn post(&self, delivery: Delivery, url: &str, hold: Arc<Hold>) -> Sent {
        let unsendable = |why: &str| Sent {
            outcome: delivery::Outcome::Permanent,
            status: 0,
            error: why.to_owned(),
            response: Vec::new(),
            took: Duration::ZERO,
        };
        let Ok(uri) = url.parse::<Uri>() else {
            return unsendable("bad_url");
        };
        let Some(headers) = headers(&delivery) else {
            return unsendable("bad_request");
        };
        let signature = delivery.signature.unwrap_or_default();
        let millis = u64::try_from(signature.expires_in_ms).unwrap_or_default();
        let seconds = u64::try_from(delivery.timeout_seconds).unwrap_or(1);
        let began = Instant::now();
        let mut sent = self
            .sender
            .post(Post {
                delivery: &delivery.delivery_id,
                uri: &uri,
                headers,
                body: delivery.body,
                signed_at: wall_clock(),
                window: Duration::from_millis(millis),
                patience: Duration::from_secs(seconds.max(1)),
                certificate: None,
                fence: hold,
            })
            .await;
        sent.took = sent.took.max(began.elapsed());
        sent
    }
}

fn headers(delivery: &Delivery) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(delivery.headers.len() + 1);
    for (name, value) in &delivery.headers {
        let name: HeaderName = name.parse().ok()?;
        headers.insert(name, HeaderValue::try_from(value).ok()?);
    }
    Some(headers)
}

/// What is told of an attempt; none: nothing was sent.
pub(super) fn outcome(sent: Sent) -> Option<Outcome> {
    let retry_after = match sent.outcome {
        delivery::Outcome::Retryable {
            retry_after: Some(wait),
        } => i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        _ => 0,
    };
    let result = match sent.outcome {
        delivery::Outcome::Released => return None,
        delivery::Outcome::ReplayExpired => What::ReplayExpired,
        _ if sent.status > 0 => What::Answered,
        _ => What::Failed,
    };
    Some(Outcome {
        result: result.into(),
        response_status: sent.status.into(),
        error: sent.error,
        duration_ms: i64::try_from(sent.took.as_millis()).unwrap_or(i64::MAX),
        retry_after_seconds: retry_after,
        response_body: sent.response,
    })
}
