//! `onering listen`: deliveries to a local URL, for as long as it runs.

use std::{io::Write as _, process::ExitCode, sync::Arc};

use clap::Args;
use jiff::Timestamp;

use super::{
    WRONG,
    client::{CallError, Connection},
    failed,
    hold::Hold,
    link::{self, Handle, Link},
    worker::{Poster, outcome},
};
use crate::{
    domain::delivery,
    proto::v1::{
        CreateSubscriptionRequest, CreateSubscriptionResponse, DeleteSubscriptionRequest,
        SubscriptionKind,
        server_message::Delivery,
        subscription_service_client::SubscriptionServiceClient,
        worker_message::{Filter, Outcome},
    },
    settings::{Live, Settings},
    telemetry,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  onering listen --forward-to http://localhost:3000/webhook --key osk_...
  onering listen --forward-to http://localhost:3000/webhook --events 'invoice.*,order.paid'
  onering listen --forward-to http://localhost:3000/webhook --url https://onering.example.com

It makes a subscription for itself, prints its signing secret, and deletes it at the end;
should it not come to that, the server does after five minutes. Deliveries are sent as they
would be, signatures and retries included.";

/// How long the server keeps the subscription while nobody listens, in seconds.
const KEPT: i64 = 300;

/// `onering listen`
#[derive(Args)]
pub(super) struct ListenArgs {
    /// Where deliveries go
    #[arg(long, value_name = "URL")]
    forward_to: String,
    /// The server's address
    #[arg(long, env = "ONERING_URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// A consumer's key, or an admin key
    #[arg(long, env = "ONERING_ADMIN_KEY", hide_env_values = true)]
    key: String,
    /// Which events: types, prefixes (`invoice.*`) or `*`, with commas between them
    #[arg(long, value_delimiter = ',', default_value = "*")]
    events: Vec<String>,
    /// The tenant, for an admin key
    #[arg(long)]
    tenant: Option<String>,
}

pub(super) async fn run(args: ListenArgs) -> ExitCode {
    let settings = match Settings::read() {
        Ok(settings) => settings,
        Err(e) => return failed(WRONG, &e),
    };
    let levels = if settings.log == "info" {
        "warn"
    } else {
        &settings.log
    };
    if let Err(e) = telemetry::init(levels, settings.log_json) {
        return failed(WRONG, &e);
    }
    if let Err(e) = check(&args.forward_to) {
        return failed(WRONG, &e);
    }
    // Where it goes is the user's own choice.
    let live = Live {
        allow_http: true,
        allowed_endpoints: ["0.0.0.0/0", "::/0"]
            .iter()
            .filter_map(|n| n.parse().ok())
            .collect(),
        ..settings.live.clone()
    };
    let poster = match Poster::new(&settings, live) {
        Ok(poster) => poster,
        Err(e) => return failed(WRONG, &e),
    };
    let stop = match link::until_signal() {
        Ok(stop) => stop,
        Err(code) => return code,
    };
    let made = match subscribe(&args).await {
        Ok(made) => made,
        Err(e) => return e.tell(),
    };
    println!("Subscribed to {} as {}", args.events.join(", "), made.id);
    println!("Signing secret: {}", made.secret);
    println!("Forwarding to {}; Ctrl-C ends it", args.forward_to);
    let link = Link {
        url: args.url.clone(),
        key: args.key.clone(),
        worker_id: format!("listen-{}", made.id),
        filter: Filter {
            subscription_ids: vec![made.id.clone()],
            ..Filter::default()
        },
        concurrency: 10,
        lease_seconds: 120,
    };
    let forward = Forward {
        poster,
        to: args.forward_to.clone(),
    };
    let code = link.run(Arc::new(forward), stop).await;
    match unsubscribe(&args, &made.id).await {
        Ok(()) => println!("Subscription deleted"),
        Err(e) => {
            e.tell();
        }
    }
    code
}

fn check(url: &str) -> Result<(), String> {
    let parsed = url::Url::parse(url).map_err(|e| format!("--forward-to {url}: {e}"))?;
    if matches!(parsed.scheme(), "http" | "https") && parsed.host().is_some() {
        Ok(())
    } else {
        Err(format!(
            "--forward-to {url}: takes a URL such as http://localhost:3000/webhook"
        ))
    }
}

async fn subscribe(args: &ListenArgs) -> Result<CreateSubscriptionResponse, CallError> {
    let connection = Connection::open(&args.url, &args.key).await?;
    let request = connection.request(CreateSubscriptionRequest {
        tenant: args.tenant.clone().unwrap_or_default(),
        event_types: args.events.clone(),
        description: "onering listen".into(),
        kind: SubscriptionKind::Stream.into(),
        expire_after_seconds: KEPT,
        ..CreateSubscriptionRequest::default()
    });
    let answer = SubscriptionServiceClient::new(connection.channel)
        .create_subscription(request)
        .await?;
    Ok(answer.into_inner())
}

async fn unsubscribe(args: &ListenArgs, id: &str) -> Result<(), CallError> {
    let connection = Connection::open(&args.url, &args.key).await?;
    let request = connection.request(DeleteSubscriptionRequest { id: id.to_owned() });
    SubscriptionServiceClient::new(connection.channel)
        .delete_subscription(request)
        .await?;
    Ok(())
}

/// Sends every delivery to one URL, and shows it.
struct Forward {
    poster: Poster,
    to: String,
}

impl Handle for Forward {
    async fn handle(&self, delivery: Delivery, hold: Arc<Hold>) -> Option<Outcome> {
        let (event_type, id) = (delivery.event_type.clone(), delivery.delivery_id.clone());
        let attempt = delivery.attempt;
        let sent = self.poster.post(delivery, &self.to, hold).await;
        let status = match sent.status {
            _ if matches!(sent.outcome, delivery::Outcome::Released) => "taken back".to_owned(),
            0 => sent.error.clone(),
            status => status.to_string(),
        };
        let again = if attempt > 1 {
            format!(", attempt {attempt}")
        } else {
            String::new()
        };
        let time = Timestamp::now().strftime("%H:%M:%S");
        // A closed output must not end the forwarding.
        let _ = writeln!(
            std::io::stdout(),
            "{time}  {event_type}  {id}  {status}  {} ms{again}",
            sent.took.as_millis()
        );
        outcome(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_it_forwards_to_is_a_url() {
        assert!(check("http://localhost:3000/webhook").is_ok());
        for bad in ["localhost:3000", "ftp://localhost/", "/webhook", ""] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
