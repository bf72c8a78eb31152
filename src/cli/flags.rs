//! `onering flags`.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{
    client::{CallError, Connection, Server},
    keys::{Output, time},
};
use crate::proto::v1::{
    self, NodeConfirmation, Switch, SwitchChange, flag_service_client::FlagServiceClient,
};

/// `onering flags`
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct FlagsArgs {
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
  onering flags list
  onering flags set external_api.enabled on --reason 'launch, stage 1'
  onering flags set 'POST /v1/external/events' off --reason 'publishers misbehave'
  onering flags stop-all --reason 'incident 42'          the emergency stop
  onering flags lift external_api.enabled --reason 'incident 42 is over'
  onering flags changes --name webhooks.enabled

Exit code 1 also where a node has not confirmed within a second.";

#[derive(Clone, Copy, ValueEnum)]
enum Position {
    On,
    Off,
}

#[derive(Subcommand)]
enum Action {
    /// Lists every switch, as it is on the node that answers
    List,
    /// Sets a switch on every node
    Set {
        /// `webhooks.enabled`, a method, or its route such as `POST /v1/external/events`
        name: String,
        /// What it is to be
        #[arg(value_enum)]
        value: Position,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
    /// Holds the outside API, webhooks and their delivery off, over pins too, until each is lifted
    StopAll {
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
    /// Lifts the emergency stop from one switch
    Lift {
        /// The switch's name
        name: String,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
    /// Lists changes, newest first
    Changes {
        /// Changes of this switch only
        #[arg(long, default_value = "")]
        name: String,
        /// How many at the most
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i32).range(1..=1000))]
        limit: i32,
    },
}

pub(super) async fn run(args: FlagsArgs) -> ExitCode {
    match remote(args.action, &args.server, args.output).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => e.tell(),
    }
}

/// Whether every node has confirmed.
async fn remote(action: Action, server: &Server, output: Output) -> Result<bool, CallError> {
    let connection = server.connect().await?;
    let mut client = FlagServiceClient::new(connection.channel.clone());
    match action {
        Action::List => list(&mut client, &connection, output).await,
        Action::Set {
            name,
            value,
            reason,
        } => {
            let request = connection.request(v1::SetSwitchRequest {
                name,
                enabled: Some(matches!(value, Position::On)),
                reason,
            });
            let answer = client.set_switch(request).await?.into_inner();
            let switches: Vec<Switch> = answer.switch.into_iter().collect();
            Ok(changed(&switches, answer.revision, &answer.nodes, output))
        }
        Action::StopAll { reason } => {
            let request = connection.request(v1::StopAllRequest { reason });
            let answer = client.stop_all(request).await?.into_inner();
            Ok(changed(
                &answer.switches,
                answer.revision,
                &answer.nodes,
                output,
            ))
        }
        Action::Lift { name, reason } => {
            let request = connection.request(v1::LiftStopRequest { name, reason });
            let answer = client.lift_stop(request).await?.into_inner();
            let switches: Vec<Switch> = answer.switch.into_iter().collect();
            Ok(changed(&switches, answer.revision, &answer.nodes, output))
        }
        Action::Changes { name, limit } => {
            let request = connection.request(v1::ListSwitchChangesRequest {
                name,
                page_size: limit,
                page_token: String::new(),
            });
            let answer = client.list_switch_changes(request).await?.into_inner();
            changes(&answer.changes, output);
            Ok(true)
        }
    }
}

async fn list(
    client: &mut FlagServiceClient<Channel>,
    connection: &Connection,
    output: Output,
) -> Result<bool, CallError> {
    let request = connection.request(v1::GetSwitchesRequest {});
    let answer = client.get_switches(request).await?.into_inner();
    if output == Output::Json {
        let switches: Vec<Value> = answer.switches.iter().map(switch).collect();
        let all = json!({
            "switches": switches, "revision": answer.revision, "node": answer.node,
        });
        println!("{all}");
    } else {
        table(&answer.switches);
        println!("\nnode {}, revision {}", answer.node, answer.revision);
    }
    Ok(true)
}

fn on(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

fn switch(s: &Switch) -> Value {
    json!({
        "name": s.name,
        "enabled": s.enabled,
        "stored": s.stored,
        "pinned_by": s.pinned_by,
        "stopped": s.stopped,
        "update_time": time(s.update_time),
        "updated_by": s.updated_by,
        "reason": s.reason,
    })
}

/// A line without the blanks that an empty last column leaves.
fn line(text: &str) {
    println!("{}", text.trim_end());
}

fn table(switches: &[Switch]) {
    println!(
        "{:<42}  {:<5}  {:<6}  {:<34}  {:<20}  WHY",
        "SWITCH", "IS", "STORED", "HELD BY", "CHANGED"
    );
    for s in switches {
        let held = match (s.stopped, s.pinned_by.as_str()) {
            (true, _) => "the emergency stop",
            (false, pin) => pin,
        };
        line(&format!(
            "{:<42}  {:<5}  {:<6}  {:<34}  {:<20}  {}",
            s.name,
            on(s.enabled),
            on(s.stored),
            held,
            time(s.update_time).unwrap_or_else(|| "never".into()),
            s.reason
        ));
    }
}

/// Shows what a change led to; whether every node has confirmed it.
fn changed(switches: &[Switch], revision: i64, nodes: &[NodeConfirmation], output: Output) -> bool {
    let all = !nodes.is_empty() && nodes.iter().all(|n| n.confirmed);
    if output == Output::Json {
        let switches: Vec<Value> = switches.iter().map(switch).collect();
        let nodes: Vec<Value> = nodes
            .iter()
            .map(|n| json!({ "node": n.node, "confirmed": n.confirmed }))
            .collect();
        println!(
            "{}",
            json!({ "switches": switches, "revision": revision, "nodes": nodes })
        );
        return all;
    }
    table(switches);
    println!();
    for n in nodes {
        if n.confirmed {
            println!("✅ node {} confirmed revision {revision}", n.node);
        } else {
            println!("❌ node {} has not confirmed revision {revision}", n.node);
        }
    }
    if nodes.is_empty() {
        println!("❌ no node has confirmed revision {revision}");
    }
    all
}

fn changes(changes: &[SwitchChange], output: Output) {
    if output == Output::Json {
        let list: Vec<Value> = changes
            .iter()
            .map(|c| {
                json!({
                    "sequence": c.sequence,
                    "time": time(c.time),
                    "actor": c.actor,
                    "action": c.action,
                    "name": c.name,
                    "old_value": c.old_value,
                    "new_value": c.new_value,
                    "reason": c.reason,
                })
            })
            .collect();
        println!("{}", json!({ "changes": list }));
        return;
    }
    println!(
        "{:>6}  {:<20}  {:<30}  {:<42}  {:<18}  WHY",
        "NUMBER", "TIME", "WHO", "SWITCH", "CHANGE"
    );
    for c in changes {
        println!(
            "{:>6}  {:<20}  {:<30}  {:<42}  {:<18}  {}",
            c.sequence,
            time(c.time).unwrap_or_default(),
            c.actor,
            c.name,
            format!("{} → {}", c.old_value, c.new_value),
            c.reason
        );
    }
}
