//! `onering dead-letters`.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use prost_types::Timestamp;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{
    client::{CallError, Connection, Server},
    keys::{Output, time},
};
use crate::proto::v1::{
    self, DeadLetter, DeadLetterFilter, DeliveryStatus, Redrive, RedriveKind, RedriveState,
    dead_letter_service_client::DeadLetterServiceClient,
};

/// `onering dead-letters`
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DeadLettersArgs {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    server: Server,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Text, global = true)]
    output: Output,
}

const EXAMPLES: &str = "\
Examples:
  onering dead-letters list --died-of http_503 --since 2h
  onering dead-letters retry dlv_…
  onering dead-letters redrive --subscription sub_… --rate 50 --watch
  onering dead-letters pause rdv_…
  onering dead-letters resume rdv_… --rate 20
  onering dead-letters purge --subscription sub_… --reason 'the receiver is gone'
  onering dead-letters replay --subscription sub_… --since 3h --missing-only --watch

Times are RFC 3339, such as 2026-11-22T08:00:00Z, or how long ago: 30m, 2h, 7d.";

/// How often progress is asked for.
const LOOK: Duration = Duration::from_millis(500);
/// How many letters one call lists.
const PAGE: i32 = 500;

#[derive(Args, Default)]
struct Filter {
    /// Of this tenant
    #[arg(long, default_value = "")]
    tenant: String,
    /// To this subscription only
    #[arg(long, default_value = "")]
    subscription: String,
    /// Of this event type only, or `prefix.*`
    #[arg(long = "type", default_value = "")]
    event_type: String,
    /// Given up for this reason only, such as `http_503` or `timeout`
    #[arg(long, default_value = "")]
    died_of: String,
    /// Of events accepted then or later
    #[arg(long, value_parser = moment)]
    since: Option<Timestamp>,
    /// Of events accepted before
    #[arg(long, value_parser = moment)]
    until: Option<Timestamp>,
}

impl From<Filter> for DeadLetterFilter {
    fn from(f: Filter) -> Self {
        Self {
            tenant: f.tenant,
            subscription_id: f.subscription,
            event_type: f.event_type,
            reason: f.died_of,
            start_time: f.since,
            end_time: f.until,
        }
    }
}

#[derive(Subcommand)]
enum Action {
    /// Lists dead letters, newest event first
    List {
        #[command(flatten)]
        filter: Filter,
        /// How many at the most
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Shows one dead letter
    Show {
        /// Its id
        id: String,
    },
    /// Gives one dead letter one more attempt, now
    Retry {
        /// Its id
        id: String,
    },
    /// Gives each of a selection one more attempt, at a rate
    Redrive {
        #[command(flatten)]
        filter: Filter,
        /// How many in a second
        #[arg(long, default_value_t = 50)]
        rate: i32,
        /// Why, for the audit log
        #[arg(long, default_value = "")]
        reason: String,
        /// Shows how far it is until it is over
        #[arg(long)]
        watch: bool,
    },
    /// Removes each of a selection for good
    Purge {
        #[command(flatten)]
        filter: Filter,
        /// All of the tenant's: where nothing else is named
        #[arg(long)]
        all: bool,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
        /// Shows how far it is until it is over
        #[arg(long)]
        watch: bool,
    },
    /// Delivers past events to a subscription, at a rate
    Replay {
        /// The subscription
        #[arg(long)]
        subscription: String,
        /// Events accepted then or later
        #[arg(long, value_parser = moment)]
        since: Timestamp,
        /// Events accepted before
        #[arg(long, value_parser = moment)]
        until: Option<Timestamp>,
        /// Only events that were never delivered to it
        #[arg(long)]
        missing_only: bool,
        /// How many in a second
        #[arg(long, default_value_t = 50)]
        rate: i32,
        /// Why, for the audit log
        #[arg(long, default_value = "")]
        reason: String,
        /// Shows how far it is until it is over
        #[arg(long)]
        watch: bool,
    },
    /// Lists redrives, purges and replays, newest first; or shows one
    Jobs {
        /// One redrive's id
        id: Option<String>,
        /// Of this tenant
        #[arg(long, default_value = "")]
        tenant: String,
        /// Shows how far one is until it is over
        #[arg(long, requires = "id")]
        watch: bool,
    },
    /// Holds a redrive
    Pause {
        /// Its id
        id: String,
    },
    /// Lets a redrive go on
    Resume {
        /// Its id
        id: String,
        /// At another rate
        #[arg(long, default_value_t = 0)]
        rate: i32,
    },
    /// Ends a redrive
    Cancel {
        /// Its id
        id: String,
    },
}

/// A time, or how long ago it was.
fn moment(text: &str) -> Result<Timestamp, String> {
    let takes = || "takes a time such as 2026-11-22T08:00:00Z, or 30m, 2h, 7d ago".to_owned();
    let micros = if let Ok(at) = text.parse::<jiff::Timestamp>() {
        at.as_microsecond()
    } else {
        let unit = text.chars().last().ok_or_else(takes)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(takes()),
        };
        let count: u32 = text[..text.len() - 1].parse().map_err(|_| takes())?;
        crate::domain::id::wall_clock() - i64::from(count) * seconds * 1_000_000
    };
    Ok(Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: 0,
    })
}

pub(super) async fn run(args: DeadLettersArgs) -> ExitCode {
    match remote(args.action, &args.server, args.output).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => e.tell(),
    }
}

/// A connection, and how its answers are shown.
struct Session {
    client: DeadLetterServiceClient<Channel>,
    connection: Connection,
    output: Output,
}

/// Whether all went well.
async fn remote(action: Action, server: &Server, output: Output) -> Result<bool, CallError> {
    let connection = server.connect().await?;
    let client = DeadLetterServiceClient::new(connection.channel.clone());
    let session = Session {
        client,
        connection,
        output,
    };
    session.carry_out(action).await
}

impl Session {
    async fn carry_out(mut self, action: Action) -> Result<bool, CallError> {
        match action {
            Action::List { filter, limit } => self.list(filter.into(), limit).await,
            Action::Show { id } => {
                let request = self.connection.request(v1::GetDeadLetterRequest { id });
                let answer = self.client.get_dead_letter(request).await?.into_inner();
                let found: Vec<DeadLetter> = answer.dead_letter.into_iter().collect();
                if self.output == Output::Json {
                    for l in &found {
                        println!("{}", letter(l));
                    }
                } else {
                    letters(&found);
                }
                Ok(true)
            }
            Action::Retry { id } => {
                let request = self.connection.request(v1::RetryDeadLetterRequest { id });
                let answer = self.client.retry_dead_letter(request).await?.into_inner();
                let delivery = answer.delivery.unwrap_or_default();
                if self.output == Output::Json {
                    let status = delivery.status().as_str_name();
                    println!(
                        "{}",
                        json!({"id": delivery.id, "status": status.trim_start_matches("DELIVERY_STATUS_")})
                    );
                } else {
                    println!("{} is tried again now", delivery.id);
                }
                Ok(true)
            }
            Action::Jobs {
                id: Some(id),
                watch,
                ..
            } => {
                let found = self.redrive(id).await?;
                self.begun(Some(found), watch).await
            }
            Action::Jobs { tenant, .. } => {
                let request = self.connection.request(v1::ListRedrivesRequest {
                    tenant,
                    ..Default::default()
                });
                let answer = self.client.list_redrives(request).await?.into_inner();
                self.show(&answer.redrives, true);
                Ok(true)
            }
            Action::Pause { id } => {
                let request = self.connection.request(v1::PauseRedriveRequest { id });
                let answer = self.client.pause_redrive(request).await?.into_inner();
                self.begun(answer.redrive, false).await
            }
            Action::Resume { id, rate } => {
                let request = self.connection.request(v1::ResumeRedriveRequest {
                    id,
                    rate_per_second: rate,
                });
                let answer = self.client.resume_redrive(request).await?.into_inner();
                self.begun(answer.redrive, false).await
            }
            Action::Cancel { id } => {
                let request = self.connection.request(v1::CancelRedriveRequest { id });
                let answer = self.client.cancel_redrive(request).await?.into_inner();
                self.begun(answer.redrive, false).await
            }
            action => self.begin(action).await,
        }
    }

    /// Begins a redrive.
    async fn begin(&mut self, action: Action) -> Result<bool, CallError> {
        match action {
            Action::Redrive {
                filter,
                rate,
                reason,
                watch,
            } => {
                let request = self.connection.request(v1::RedriveDeadLettersRequest {
                    filter: Some(filter.into()),
                    rate_per_second: rate,
                    reason,
                });
                let answer = self.client.redrive_dead_letters(request).await?;
                self.begun(answer.into_inner().redrive, watch).await
            }
            Action::Purge {
                filter,
                all,
                reason,
                watch,
            } => {
                let request = self.connection.request(v1::PurgeDeadLettersRequest {
                    filter: Some(filter.into()),
                    all,
                    rate_per_second: 0,
                    reason,
                });
                let answer = self.client.purge_dead_letters(request).await?;
                self.begun(answer.into_inner().redrive, watch).await
            }
            Action::Replay {
                subscription,
                since,
                until,
                missing_only,
                rate,
                reason,
                watch,
            } => {
                let request = self.connection.request(v1::ReplayEventsRequest {
                    subscription_id: subscription,
                    start_time: Some(since),
                    end_time: until,
                    missing_only,
                    rate_per_second: rate,
                    reason,
                });
                let answer = self.client.replay_events(request).await?;
                self.begun(answer.into_inner().redrive, watch).await
            }
            _ => Ok(false),
        }
    }

    /// Pages until there are enough: one page may be short.
    async fn list(&mut self, filter: DeadLetterFilter, limit: usize) -> Result<bool, CallError> {
        let (mut found, mut page_token) = (Vec::new(), String::new());
        while found.len() < limit {
            let left = i32::try_from(limit - found.len()).unwrap_or(PAGE);
            let filter = filter.clone();
            let request = self.connection.request(v1::ListDeadLettersRequest {
                tenant: filter.tenant,
                subscription_id: filter.subscription_id,
                event_type: filter.event_type,
                reason: filter.reason,
                start_time: filter.start_time,
                end_time: filter.end_time,
                page_size: left.min(PAGE),
                page_token,
            });
            let page = self.client.list_dead_letters(request).await?.into_inner();
            found.extend(page.dead_letters);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        if self.output == Output::Json {
            let list: Vec<Value> = found.iter().map(letter).collect();
            println!("{}", json!({ "dead_letters": list }));
        } else {
            letters(&found);
        }
        Ok(true)
    }

    async fn redrive(&mut self, id: String) -> Result<Redrive, CallError> {
        let request = self.connection.request(v1::GetRedriveRequest { id });
        let answer = self.client.get_redrive(request).await?.into_inner();
        Ok(answer.redrive.unwrap_or_default())
    }

    /// Shows a redrive, and where that is wanted how it goes on; whether it went
    /// well.
    async fn begun(&mut self, redrive: Option<Redrive>, watch: bool) -> Result<bool, CallError> {
        let mut now = redrive.unwrap_or_default();
        if watch {
            while now.state() == RedriveState::Running {
                eprintln!("{}", progress(&now));
                tokio::time::sleep(LOOK).await;
                now = self.redrive(now.id).await?;
            }
            eprintln!("{}", progress(&now));
        }
        let well = now.state() != RedriveState::Failed;
        self.show(&[now], false);
        Ok(well)
    }

    fn show(&self, redrives: &[Redrive], many: bool) {
        if self.output == Output::Json {
            let list: Vec<Value> = redrives.iter().map(job).collect();
            match list.first() {
                Some(one) if !many => println!("{one}"),
                _ => println!("{}", json!({ "redrives": list })),
            }
            return;
        }
        println!(
            "{:<30}  {:<14}  {:<9}  {:>6}  {:>9}  {:>9}  {:>8}  {:<20}  NOTE",
            "REDRIVE", "KIND", "STATE", "RATE", "DONE", "OF", "SKIPPED", "BEGUN"
        );
        for r in redrives {
            let total = r.total.map_or_else(|| "?".to_owned(), |n| n.to_string());
            let line = format!(
                "{:<30}  {:<14}  {:<9}  {:>6}  {:>9}  {:>9}  {:>8}  {:<20}  {}",
                r.id,
                kind(r),
                state(r),
                r.rate_per_second,
                r.done,
                total,
                r.skipped,
                time(r.create_time).unwrap_or_default(),
                r.note
            );
            println!("{}", line.trim_end());
        }
    }
}

fn kind(r: &Redrive) -> String {
    let name = RedriveKind::try_from(r.kind).unwrap_or_default();
    let name = name.as_str_name().trim_start_matches("REDRIVE_KIND_");
    name.to_owned()
}

fn state(r: &Redrive) -> String {
    let name = RedriveState::try_from(r.state).unwrap_or_default();
    let name = name.as_str_name().trim_start_matches("REDRIVE_STATE_");
    name.to_owned()
}

fn progress(r: &Redrive) -> String {
    let of = r.total.map_or_else(String::new, |n| format!(" of {n}"));
    let at = time(r.position_time).map_or_else(String::new, |t| format!(", at {t}"));
    format!(
        "{} {}: {}{of} done, {} skipped{at}",
        r.id,
        state(r),
        r.done,
        r.skipped
    )
}

fn job(r: &Redrive) -> Value {
    let filter = r.filter.clone().unwrap_or_default();
    json!({
        "id": r.id,
        "tenant": r.tenant,
        "kind": kind(r),
        "state": state(r),
        "filter": {
            "subscription_id": filter.subscription_id,
            "event_type": filter.event_type,
            "reason": filter.reason,
            "start_time": time(filter.start_time),
            "end_time": time(filter.end_time),
        },
        "rate_per_second": r.rate_per_second,
        "total": r.total,
        "done": r.done,
        "skipped": r.skipped,
        "position_time": time(r.position_time),
        "create_time": time(r.create_time),
        "created_by": r.created_by,
        "reason": r.reason,
        "finish_time": time(r.finish_time),
        "note": r.note,
    })
}

fn letter(l: &DeadLetter) -> Value {
    let status = DeliveryStatus::try_from(l.status).unwrap_or_default();
    json!({
        "id": l.id,
        "tenant": l.tenant,
        "subscription_id": l.subscription_id,
        "event_id": l.event_id,
        "event_type": l.event_type,
        "status": status.as_str_name().trim_start_matches("DELIVERY_STATUS_"),
        "reason": l.reason,
        "response_status": l.response_status,
        "attempt_count": l.attempt_count,
        "create_time": time(l.create_time),
        "dead_time": time(l.dead_time),
        "replay_id": l.replay_id,
    })
}

fn letters(found: &[DeadLetter]) {
    println!(
        "{:<30}  {:<30}  {:<20}  {:<20}  {:>8}  {:<24}  TYPE",
        "DELIVERY", "SUBSCRIPTION", "ACCEPTED", "DEAD SINCE", "ATTEMPTS", "REASON"
    );
    for l in found {
        println!(
            "{:<30}  {:<30}  {:<20}  {:<20}  {:>8}  {:<24}  {}",
            l.id,
            l.subscription_id,
            time(l.create_time).unwrap_or_default(),
            time(l.dead_time).unwrap_or_default(),
            l.attempt_count,
            l.reason,
            l.event_type
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let at = moment("2026-11-22T08:00:00Z").unwrap();
        assert_eq!(at.seconds, 1_795_334_400);
        let now = crate::domain::id::wall_clock() / 1_000_000;
        for (text, ago) in [("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800)] {
            let at = moment(text).unwrap().seconds;
            assert!((now - ago - 5..=now - ago + 5).contains(&at), "{text}");
        }
        for wrong in ["", "h", "2", "-2h", "2w", "yesterday", "2026-11-22", "9ü"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
