//! `onering doctor`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::failed;
use crate::{
    app,
    domain::{
        audit::{Record, Verifier},
        certificate::ClientCertificate,
        signature::Secret,
        timeline,
    },
    seal::{self, Keyring},
    settings::Settings,
    store::{self, Store},
};

/// `onering doctor`
#[derive(Args)]
pub(super) struct DoctorArgs {
    #[command(subcommand)]
    check: Check,
}

#[derive(Subcommand)]
enum Check {
    /// Proves that every stored secret is sealed and opens with this master key
    /// (on the server's machine, with its environment)
    Secrets,
    /// Says whether the database is a backup that was restored, for which deliveries
    /// are held, and lets them go out (on the server's machine, with its environment;
    /// with SQLite while the server is stopped)
    Restored {
        /// Lets deliveries go out: what is queued is sent, also what was delivered
        /// since the backup was made
        #[arg(long)]
        accept: bool,
    },
    /// Proves that no record of the audit log was changed, moved or taken out, and
    /// that switches are as it tells (on the server's machine, with its environment)
    Audit {
        /// Also look for a record that an earlier check or the server's log named
        #[arg(long, value_name = "SEQUENCE:HASH", value_parser = noted)]
        noted: Option<(i64, String)>,
    },
}

/// Reads a record's number and the beginning of its hash.
fn noted(text: &str) -> Result<(i64, String), String> {
    let wrong = || "a record's number and hash, such as 12:9f86d081".to_owned();
    let (seq, hash) = text.split_once(':').ok_or_else(wrong)?;
    let hash = hash.to_lowercase();
    if hash.len() < 8 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    Ok((seq.parse().map_err(|_| wrong())?, hash))
}

pub(super) async fn run(args: DoctorArgs) -> ExitCode {
    let settings = match Settings::read() {
        Ok(settings) => settings,
        Err(e) => return failed(2, &e),
    };
    let Some(master) = &settings.master_key else {
        return failed(2, &"ONERING_MASTER_KEY is not set");
    };
    let store = match store::connect(&app::database(&settings)).await {
        Ok(store) => store,
        Err(e) => return failed(1, &e),
    };
    let keyring = match Keyring::open(&*store, master).await {
        Ok(keyring) => keyring,
        Err(e) => return failed(1, &e),
    };
    let checked = match args.check {
        Check::Secrets => secrets(&*store, &keyring).await,
        Check::Restored { accept } => restored(&*store, &settings, accept).await,
        Check::Audit { noted } => audit(&*store, &keyring, noted).await,
    };
    let code = match checked {
        Ok(faults) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(faults) => {
            for fault in faults {
                println!("❌ {fault}");
            }
            ExitCode::FAILURE
        }
        Err(e) => failed(1, &e),
    };
    store.close().await;
    code
}

/// Opens every sealed secret and looks for plain ones; what is wrong.
async fn secrets(store: &dyn Store, keyring: &Keyring) -> store::Result<Vec<String>> {
    let changes = store.changes(0).await?;
    let mut faults = Vec::new();
    let (mut sealed, mut headers) = (0, 0);
    let mut bad_headers = Vec::new();
    let mut certificates = 0;
    let mut bad_certificates = Vec::new();
    for s in changes.subscriptions.iter().flat_map(|l| &l.subscriptions) {
        let place = s.id.to_string();
        for secret in std::iter::once(&s.secret).chain(s.previous.as_ref().map(|p| &p.secret)) {
            sealed += 1;
            match keyring.open_secret(&place, secret) {
                Err(e) => faults.push(e.to_string()),
                Ok(text) if Secret::parse_any(&text).is_err() => {
                    faults.push(format!("{place}: what is sealed is not a secret"));
                }
                Ok(text) if secret.0.windows(text.len()).any(|w| w == text.as_bytes()) => {
                    faults.push(format!("{place}: the secret is stored as it is"));
                }
                Ok(_) => {}
            }
        }
        if !s.headers.0.is_empty() {
            headers += 1;
            match keyring.open_headers(s.id, &s.headers) {
                Err(e) => bad_headers.push(e.to_string()),
                Ok(_) if seal::in_clear(&s.headers) => bad_headers.push(format!(
                    "{place}: its headers are stored as they are; any change to it seals them"
                )),
                Ok(_) => {}
            }
        }
        if let Some(certificate) = &s.client_certificate {
            certificates += 1;
            // What opens is authentic, so it lies there sealed.
            match keyring.open_certificate(s.id, certificate) {
                Err(e) => bad_certificates.push(e.to_string()),
                Ok(pem) => {
                    if let Err(e) = ClientCertificate::parse(&pem) {
                        bad_certificates.push(format!("{place}: its client certificate: {e}"));
                    }
                }
            }
        }
    }
    println!(
        "✅ {} of {sealed} subscription secrets are sealed and open",
        sealed - faults.len()
    );
    println!(
        "✅ {} of {headers} subscriptions' headers are sealed and open",
        headers - bad_headers.len()
    );
    println!(
        "✅ {} of {certificates} client certificates' private keys are sealed and open",
        certificates - bad_certificates.len()
    );
    faults.append(&mut bad_headers);
    faults.append(&mut bad_certificates);
    println!(
        "✅ {} API keys are stored as HMAC-SHA-256 digests under a sealed pepper",
        changes.keys.len()
    );
    Ok(faults)
}

/// Says, or accepts, that the database went back in time.
async fn restored(
    store: &dyn Store,
    settings: &Settings,
    accept: bool,
) -> store::Result<Vec<String>> {
    let found = store.timeline().await?;
    let seen = app::witness(settings).seen(found.id).await;
    let behind = timeline::restored(&found, &store.server().await?, seen.mark);
    let now = store.now().await?;
    let held = Some(found.restored.clone()).filter(|why| !why.is_empty());
    let unknown = seen
        .silent
        .filter(|_| !timeline::is_fresh(&found, now))
        .map(|why| format!("whether it went back in time is not known ({why})"));
    let why = held.or(behind).or(unknown);
    let Some(why) = why else {
        println!("✅ the database is where it was left; nothing is held");
        return Ok(Vec::new());
    };
    if accept {
        store.accept_restored().await?;
        println!("✅ accepted ({why}): nodes send again within 5 seconds");
        return Ok(Vec::new());
    }
    Ok(vec![format!(
        "deliveries are held: {why}\n   \
         What is queued is as it was when the backup was made: most of it was delivered since, and\n   \
         would be sent again, with the same event ids. Disable or delete the subscriptions whose\n   \
         receivers can't cope with that, then: onering doctor restored --accept"
    )])
}

/// Verifies the audit log's chain; the first thing that is wrong.
async fn audit(
    store: &dyn Store,
    keyring: &Keyring,
    noted: Option<(i64, String)>,
) -> store::Result<Vec<String>> {
    let mut verifier = Verifier::new(keyring.audit().clone());
    let mut found = None;
    let mut read = |record: Record| {
        if noted.as_ref().is_some_and(|(seq, _)| *seq == record.seq) {
            found = Some(hex::encode(record.hash));
        }
        verifier.read(record);
    };
    let end = store.read_audit(&mut read).await?;
    let (last, hash) = match verifier.end(end.head, &end.switches) {
        Ok(end) => end,
        Err(fault) => return Ok(vec![format!("audit log: {fault}")]),
    };
    if let Some((seq, hash)) = noted
        && !found.is_some_and(|f| f.starts_with(&hash))
    {
        return Ok(vec![format!(
            "audit log: record {seq}: is not the one that was noted: the log is an earlier or another one"
        )]);
    }
    println!("✅ {last} records in the audit log, each as it was written");
    if last > 0 {
        println!("   the last one is {last}:{}", hex::encode(hash));
    }
    println!(
        "✅ {} stored switches are as the log tells",
        end.switches.len()
    );
    Ok(Vec::new())
}
