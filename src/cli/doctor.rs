//! `onering doctor`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::failed;
use crate::{
    app,
    domain::{certificate::ClientCertificate, signature::Secret},
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
}

pub(super) async fn run(args: DoctorArgs) -> ExitCode {
    let Check::Secrets = args.check;
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
    let code = match secrets(&*store, &keyring).await {
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
