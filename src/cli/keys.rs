//! `onering keys`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand, ValueEnum};
use prost_types::Timestamp;
use zeroize::Zeroizing;

use super::{
    client::{CallError, Connection, Server},
    failed,
};
use crate::{
    app,
    domain::{
        event::rfc3339,
        id::{KeyId, Part, wall_clock},
        key::{self, Kind},
    },
    proto::v1::{self, Key, KeyKind, KeyStatus, key_service_client::KeyServiceClient},
    seal::{self, Keyring},
    settings::{MasterKey, Settings},
    store,
};

/// `onering keys`
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct KeysArgs {
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
  onering keys master > master.key                       a new master key
  onering keys bootstrap                                 the first admin key of an empty store
  onering keys create --name acme --tier pro             a consumer's key
  onering keys create --admin --scope monitoring:read    an internal service's key
  onering keys rotate key_… --overlap-seconds 3600
  onering keys list --output json | jq '.keys[].name'";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Action {
    /// Prints a new master key
    Master,
    /// Makes and prints the first admin key of an empty store (on the server's machine, with its environment)
    Bootstrap,
    /// Seals the store's keys with another master key (on the server's machine, with its environment)
    Rewrap {
        /// A file with the new master key
        #[arg(long)]
        new_key_file: PathBuf,
    },
    /// Makes a key and prints its secret, which can't be shown again
    Create(Create),
    /// Lists keys, newest first
    List {
        /// Keys of this tenant only
        #[arg(long, default_value = "")]
        tenant: String,
    },
    /// Shows one key
    Get {
        /// The key's id
        key_id: String,
    },
    /// Switches a key off
    Disable {
        /// The key's id
        key_id: String,
    },
    /// Switches a disabled key on
    Enable {
        /// The key's id
        key_id: String,
    },
    /// Gives a key a new secret and prints it
    Rotate {
        /// The key's id
        key_id: String,
        /// How long the old secret stays good
        #[arg(long)]
        overlap_seconds: Option<i64>,
    },
    /// Withdraws a key for good
    Revoke {
        /// The key's id
        key_id: String,
    },
    /// Deletes a key and its record
    Delete {
        /// The key's id
        key_id: String,
    },
}

#[derive(Args)]
struct Create {
    /// A name for people
    #[arg(long, default_value = "")]
    name: String,
    /// The tenant; `default` where it is not named
    #[arg(long, default_value = "")]
    tenant: String,
    /// An admin key (`sk_admin_…`)
    #[arg(long)]
    admin: bool,
    /// The tier
    #[arg(long, default_value = "")]
    tier: String,
    /// A scope, repeatable
    #[arg(long = "scope")]
    scopes: Vec<String>,
    /// A canary key
    #[arg(long)]
    canary: bool,
    /// The key's own limit in calls an hour
    #[arg(long)]
    rate_limit_per_hour: Option<i64>,
    /// A network that the key may be used from, such as 203.0.113.0/24, repeatable
    #[arg(long = "allowed-cidr", value_name = "CIDR")]
    allowed_cidrs: Vec<String>,
}

pub(super) async fn run(args: KeysArgs) -> ExitCode {
    match args.action {
        Action::Master => match seal::new_master_key() {
            Ok(key) => {
                println!("{}", *key);
                ExitCode::SUCCESS
            }
            Err(e) => failed(1, &e),
        },
        Action::Bootstrap => told(bootstrap().await),
        Action::Rewrap { new_key_file } => told(rewrap(&new_key_file).await),
        action => match remote(action, &args.server, args.output).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => e.tell(),
        },
    }
}

fn told(result: Result<String, (u8, String)>) -> ExitCode {
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err((code, e)) => failed(code, &e),
    }
}

/// The settings, and the master key that they must have.
fn settings() -> Result<(Settings, MasterKey), (u8, String)> {
    let settings = Settings::read().map_err(|e| (2, e.to_string()))?;
    let master = settings
        .master_key
        .clone()
        .ok_or_else(|| (2, "ONERING_MASTER_KEY is not set".to_owned()))?;
    Ok((settings, master))
}

async fn bootstrap() -> Result<String, (u8, String)> {
    let failed = |e: &dyn std::fmt::Display| (1, e.to_string());
    let (settings, master) = settings()?;
    let store = store::connect(&app::database(&settings))
        .await
        .map_err(|e| failed(&e))?;
    let keyring = Keyring::open(&*store, &master)
        .await
        .map_err(|e| failed(&e))?;
    let secret = key::generate_secret().map_err(|e| failed(&e))?;
    let text = key::format(Kind::Admin, KeyId::new(wall_clock(), Part::new(0)), &secret);
    let made = store
        .create_first_admin_key(&app::first_admin_key(&text, &keyring))
        .await;
    store.close().await;
    match made {
        Ok(()) => Ok(text.to_string()),
        Err(store::StoreError::Exists(_)) => Err((
            1,
            "the store has an admin key already: make others with `onering keys create --admin`"
                .into(),
        )),
        Err(e) => Err(failed(&e)),
    }
}

async fn rewrap(path: &std::path::Path) -> Result<String, (u8, String)> {
    let failed = |e: &dyn std::fmt::Display| (1, e.to_string());
    let (settings, old) = settings()?;
    let text = std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|e| (2, format!("{}: {e}", path.display())))?;
    let new: MasterKey = text
        .parse()
        .map_err(|e| (2, format!("{}: takes {e}", path.display())))?;
    let store = store::connect(&app::database(&settings))
        .await
        .map_err(|e| failed(&e))?;
    let done = seal::reseal(&*store, &old, &new).await;
    store.close().await;
    let n = done.map_err(|e| failed(&e))?;
    Ok(format!(
        "{n} keys sealed with the new master key; start every node with it from now on"
    ))
}

async fn remote(action: Action, server: &Server, output: Output) -> Result<(), CallError> {
    let connection = server.connect().await?;
    let mut client = KeyServiceClient::new(connection.channel.clone());
    match action {
        Action::Create(new) => create(&mut client, &connection, new, output).await,
        Action::List { tenant } => list(&mut client, &connection, tenant, output).await,
        Action::Get { key_id } => {
            let request = connection.request(v1::GetKeyRequest { key_id });
            show(client.get_key(request).await?.into_inner().key, output);
            Ok(())
        }
        Action::Disable { key_id } => {
            let request = connection.request(v1::DisableKeyRequest { key_id });
            show(client.disable_key(request).await?.into_inner().key, output);
            Ok(())
        }
        Action::Enable { key_id } => {
            let request = connection.request(v1::EnableKeyRequest { key_id });
            show(client.enable_key(request).await?.into_inner().key, output);
            Ok(())
        }
        Action::Revoke { key_id } => {
            let request = connection.request(v1::RevokeKeyRequest { key_id });
            show(client.revoke_key(request).await?.into_inner().key, output);
            Ok(())
        }
        Action::Rotate {
            key_id,
            overlap_seconds,
        } => {
            let request = connection.request(v1::RotateKeyRequest {
                key_id,
                overlap_seconds,
            });
            let made = client.rotate_key(request).await?.into_inner();
            show_secret(&made.key_id, &made.secret, made.key, output);
            Ok(())
        }
        Action::Delete { key_id } => {
            let request = connection.request(v1::DeleteKeyRequest { key_id });
            client.delete_key(request).await?;
            println!(
                "{}",
                if output == Output::Json {
                    "{}"
                } else {
                    "deleted"
                }
            );
            Ok(())
        }
        Action::Master | Action::Bootstrap | Action::Rewrap { .. } => Ok(()),
    }
}

async fn create(
    client: &mut KeyServiceClient<tonic::transport::Channel>,
    connection: &Connection,
    new: Create,
    output: Output,
) -> Result<(), CallError> {
    let kind = if new.admin {
        KeyKind::Admin
    } else {
        KeyKind::Consumer
    };
    let request = connection.request(v1::CreateKeyRequest {
        tenant: new.tenant,
        name: new.name,
        kind: kind.into(),
        tier: new.tier,
        scopes: new.scopes,
        canary_enabled: new.canary.then_some(true),
        rate_limit_per_hour: new.rate_limit_per_hour,
        allowed_cidrs: new.allowed_cidrs,
        ..Default::default()
    });
    let made = client.create_key(request).await?.into_inner();
    show_secret(&made.key_id, &made.secret, made.key, output);
    Ok(())
}

async fn list(
    client: &mut KeyServiceClient<tonic::transport::Channel>,
    connection: &Connection,
    tenant: String,
    output: Output,
) -> Result<(), CallError> {
    let (mut keys, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = connection.request(v1::ListKeysRequest {
            tenant: tenant.clone(),
            page_size: 1000,
            page_token,
        });
        let page = client.list_keys(request).await?.into_inner();
        keys.extend(page.keys);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if output == Output::Json {
        let keys: Vec<_> = keys.iter().map(json).collect();
        println!("{}", serde_json::json!({ "keys": keys }));
        return Ok(());
    }
    println!(
        "{:<30}  {:<9}  {:<8}  {:<10}  {:<20}  {:<20}  NAME",
        "KEY", "STATUS", "KIND", "TIER", "TENANT", "LAST USED"
    );
    for k in &keys {
        println!(
            "{:<30}  {:<9}  {:<8}  {:<10}  {:<20}  {:<20}  {}",
            k.key_id,
            status(k),
            kind(k),
            k.tier,
            k.tenant,
            time(k.last_used_time).unwrap_or_else(|| "never".into()),
            k.name
        );
    }
    Ok(())
}

fn status(key: &Key) -> String {
    let text = KeyStatus::try_from(key.status)
        .unwrap_or_default()
        .as_str_name();
    text.trim_start_matches("KEY_STATUS_").to_owned()
}

fn kind(key: &Key) -> String {
    let text = KeyKind::try_from(key.kind)
        .unwrap_or_default()
        .as_str_name();
    text.trim_start_matches("KEY_KIND_").to_lowercase()
}

/// A time to the second.
pub(super) fn time(t: Option<Timestamp>) -> Option<String> {
    let t = t?;
    let text = rfc3339(t.seconds * 1_000_000);
    Some(text.replace(".000000Z", "Z"))
}

fn json(key: &Key) -> serde_json::Value {
    serde_json::json!({
        "key_id": key.key_id,
        "tenant": key.tenant,
        "name": key.name,
        "kind": kind(key).to_uppercase(),
        "tier": key.tier,
        "scopes": key.scopes,
        "canary_enabled": key.canary_enabled,
        "status": status(key),
        "rate_limit_per_hour": key.rate_limit_per_hour,
        "effective_rate_limit_per_hour": key.effective_rate_limit_per_hour,
        "allowed_cidrs": key.allowed_cidrs,
        "create_time": time(key.create_time),
        "expire_time": time(key.expire_time),
        "last_used_time": time(key.last_used_time),
    })
}

fn show(key: Option<Key>, output: Output) {
    let Some(key) = key else { return };
    if output == Output::Json {
        println!("{}", json(&key));
        return;
    }
    let line = |name: &str, value: String| {
        if !value.is_empty() {
            println!("{name:<22}{value}");
        }
    };
    line("key", key.key_id.clone());
    line("status", status(&key));
    line("kind", kind(&key));
    line("name", key.name.clone());
    line("tenant", key.tenant.clone());
    line("tier", key.tier.clone());
    line("scopes", key.scopes.join(" "));
    line("canary", key.canary_enabled.to_string());
    line(
        "limit an hour",
        key.effective_rate_limit_per_hour
            .map(|n| n.to_string())
            .unwrap_or_default(),
    );
    line("allowed from", key.allowed_cidrs.join(" "));
    line("made", time(key.create_time).unwrap_or_default());
    line("expires", time(key.expire_time).unwrap_or_default());
    line("last used", time(key.last_used_time).unwrap_or_default());
    line(
        "old secret until",
        time(key.previous_secret_expire_time).unwrap_or_default(),
    );
    line(
        "new secret first used",
        time(key.new_secret_first_used_time).unwrap_or_default(),
    );
}

fn show_secret(key_id: &str, secret: &str, key: Option<Key>, output: Output) {
    if output == Output::Json {
        let key = key.as_ref().map(json);
        println!(
            "{}",
            serde_json::json!({ "key_id": key_id, "secret": secret, "key": key })
        );
        return;
    }
    show(key, output);
    println!("\nsecret, shown this once:\n{secret}");
}
