//! `onering verify`: checks a webhook's signature, or makes one.

use std::{
    collections::BTreeMap,
    io::Read as _,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::domain::signature::{
    Scheme, Secret, Signer, Verified, Verifier, VerifyError, VerifyingKey, WEBHOOK_ID,
    WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, X_WEBHOOK_EVENT_ID, X_WEBHOOK_SIGNATURE,
    X_WEBHOOK_TIMESTAMP,
};

const EXAMPLES: &str = "\
Examples:
  Check what a receiver got (a bare value is X-Webhook-Signature):
    onering verify --secret whsec_… --header 't=1790000000,e=evt_…,v1=…' --body @body.json
  Check with the Standard Webhooks headers:
    onering verify --secret whsec_… --header 'webhook-id: evt_…' \\
      --header 'webhook-timestamp: 1790000000' --header 'webhook-signature: v1,…' --body -
  Check the signature of an old delivery, as of the time when it was sent:
    onering verify --secret whsec_… --header … --body @body.json --now 1790000000
  Make the headers for a test:
    onering verify --sign --secret whsec_… --event-id evt_1 --body '{}'

Exit status: 0 valid, 1 not valid (the reason is on stderr), 2 wrong use.";

/// Arguments of `onering verify`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct VerifyArgs {
    /// The subscription's secret, or its public key (`whpk_…`). Repeatable: one
    /// that matches is enough; with --sign the second is the one being replaced
    #[arg(long, required = true, value_name = "SECRET")]
    secret: Vec<String>,
    /// A header as received, `Name: value`; a bare value is X-Webhook-Signature. Repeatable
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// The raw body: the text itself, `@file`, or `-` for standard input
    #[arg(long, value_name = "BODY", allow_hyphen_values = true)]
    body: String,
    /// The event's id, where no header says it
    #[arg(long, value_name = "ID")]
    event_id: Option<String>,
    /// When it was signed (Unix seconds), where no header says it
    #[arg(long, value_name = "SECONDS")]
    timestamp: Option<i64>,
    /// Check as of this time (Unix seconds) instead of now
    #[arg(long, value_name = "SECONDS")]
    now: Option<i64>,
    /// Insist on a scheme: v1, plain or ed25519 (default: what the headers show; v1 with --sign)
    #[arg(long, value_name = "SCHEME")]
    scheme: Option<Scheme>,
    /// Make the headers instead of checking them
    #[arg(long, conflicts_with = "header")]
    sign: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs `onering verify`.
#[must_use]
pub fn run(args: &VerifyArgs) -> ExitCode {
    let done = if args.sign { make(args) } else { check(args) };
    done.unwrap_or_else(|wrong| {
        say(&mut std::io::stderr(), &format!("error: {wrong}"));
        ExitCode::from(2)
    })
}

/// A closed pipe is no reason to fail: the exit status says it, too.
fn say(to: &mut impl std::io::Write, text: &str) {
    let _ = writeln!(to, "{text}").and_then(|()| to.flush());
}

fn check(args: &VerifyArgs) -> Result<ExitCode, String> {
    let keys = args
        .secret
        .iter()
        .map(|text| VerifyingKey::parse(text).map_err(|e| format!("--secret: {e}")))
        .collect::<Result<Vec<_>, _>>()?;
    let mut verifier = Verifier::new(&keys);
    if let Some(scheme) = args.scheme {
        verifier = verifier.scheme(scheme);
    }
    if args.header.is_empty() {
        return Err("give the signature with --header, or make one with --sign".into());
    }
    let body = read_body(&args.body)?;
    let headers = headers(args, &body)?;
    let now_s = args.now.unwrap_or_else(now);
    let verify =
        |body: &[u8]| verifier.verify(|name| headers.get(name).map(String::as_str), body, now_s);
    let result = verify(&body);
    let hint = result
        .as_ref()
        .err()
        .and_then(|error| hint(error, &body, verify));
    report(args.output, &result, hint);
    Ok(ExitCode::from(u8::from(result.is_err())))
}

/// What is often wrong, where trying it shows that it is.
fn hint(
    error: &VerifyError,
    body: &[u8],
    verify: impl Fn(&[u8]) -> Result<Verified, VerifyError>,
) -> Option<&'static str> {
    match error {
        VerifyError::TooOld { .. } => {
            Some("to check an old delivery, give the time when it was sent with --now")
        }
        VerifyError::NoMatchingSignature(_) => {
            let without = body.strip_suffix(b"\n").unwrap_or(body);
            let without = without.strip_suffix(b"\r").unwrap_or(without);
            if without.len() < body.len() && verify(without).is_ok() {
                return Some("without the line break at its end this body does match");
            }
            let with_line_break = [body, b"\n"].concat();
            verify(&with_line_break)
                .is_ok()
                .then_some("with a line break at its end this body does match")
        }
        _ => None,
    }
}

fn report(output: Output, result: &Result<Verified, VerifyError>, hint: Option<&str>) {
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    match (result, output) {
        (Ok(v), Output::Text) => {
            let text = format!("valid: event {}, signed at {}", v.event_id, v.timestamp);
            say(&mut stdout, &text);
        }
        (Ok(v), Output::Json) => {
            let found = json!({"valid": true, "event_id": v.event_id, "timestamp": v.timestamp});
            say(&mut stdout, &found.to_string());
        }
        (Err(e), _) => {
            if output == Output::Json {
                let found = json!({
                    "valid": false, "code": e.code(), "reason": e.to_string(), "hint": hint,
                });
                say(&mut stdout, &found.to_string());
            }
            say(&mut stderr, &format!("not valid: {e}"));
            if let Some(hint) = hint {
                say(&mut stderr, &format!("hint: {hint}"));
            }
        }
    }
}

fn make(args: &VerifyArgs) -> Result<ExitCode, String> {
    let scheme = args.scheme.unwrap_or_default();
    let (current, previous) = match args.secret.as_slice() {
        [current] => (current, None),
        [current, previous] => (current, Some(previous)),
        _ => return Err("--sign takes one --secret, or two: the new and the old one".into()),
    };
    let current = Secret::parse(current, scheme).map_err(|e| format!("--secret: {e}"))?;
    let previous = previous
        .map(|text| Secret::parse_any(text).map_err(|e| format!("--secret: {e}")))
        .transpose()?;
    let body = read_body(&args.body)?;
    let event_id = args
        .event_id
        .clone()
        .or_else(|| body_id(&body))
        .ok_or("--sign needs --event-id, or a JSON body with an `id`")?;
    let timestamp = args.timestamp.or(args.now).unwrap_or_else(now);
    let signed = Signer::new(scheme, &current, previous.as_ref()).sign(timestamp, &event_id, &body);
    let headers = [
        ("X-Webhook-Signature", signed.x_webhook_signature),
        ("X-Webhook-Timestamp", timestamp.to_string()),
        ("X-Webhook-Event-ID", event_id.clone()),
        (WEBHOOK_ID, event_id),
        (WEBHOOK_TIMESTAMP, timestamp.to_string()),
        (WEBHOOK_SIGNATURE, signed.webhook_signature),
    ];
    let mut stdout = std::io::stdout();
    match args.output {
        Output::Text => {
            for (name, value) in headers {
                say(&mut stdout, &format!("{name}: {value}"));
            }
        }
        Output::Json => {
            let headers: Map<_, _> = headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), Value::from(value)))
                .collect();
            say(&mut stdout, &json!({ "headers": headers }).to_string());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The headers by lower-case name, with what the options say where they say nothing.
fn headers(args: &VerifyArgs, body: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let mut headers = BTreeMap::new();
    for given in &args.header {
        let (name, value) = match given.split_once(':') {
            Some((name, value)) if is_name(name) => (name.to_ascii_lowercase(), value),
            _ => (X_WEBHOOK_SIGNATURE.to_owned(), given.as_str()),
        };
        if headers
            .insert(name.clone(), value.trim().to_owned())
            .is_some()
        {
            return Err(format!("--header: {name} is given twice"));
        }
    }
    let mut default = |name: &str, value: String| {
        headers.entry(name.to_owned()).or_insert(value);
    };
    let standard = args.header.iter().any(|h| {
        h.get(..WEBHOOK_SIGNATURE.len())
            .is_some_and(|name| name.eq_ignore_ascii_case(WEBHOOK_SIGNATURE))
    });
    let (id_header, time_header) = if standard {
        (WEBHOOK_ID, WEBHOOK_TIMESTAMP)
    } else {
        (X_WEBHOOK_EVENT_ID, X_WEBHOOK_TIMESTAMP)
    };
    if let Some(t) = args.timestamp {
        default(time_header, t.to_string());
    }
    if let Some(id) = &args.event_id {
        default(id_header, id.clone());
    } else if headers
        .get(X_WEBHOOK_SIGNATURE)
        .is_some_and(|x| !x.contains('='))
    {
        // The plain scheme does not sign the id: any will do to check the digest.
        let id = headers.get(WEBHOOK_ID).cloned();
        let id = id
            .or_else(|| body_id(body))
            .unwrap_or_else(|| "unknown".into());
        headers.entry(X_WEBHOOK_EVENT_ID.to_owned()).or_insert(id);
    }
    Ok(headers)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn body_id(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    Some(body.get("id")?.as_str()?.to_owned())
}

fn read_body(argument: &str) -> Result<Vec<u8>, String> {
    if argument == "-" {
        let mut body = Vec::new();
        let read = std::io::stdin().lock().read_to_end(&mut body);
        return read.map(|_| body).map_err(|e| format!("--body -: {e}"));
    }
    match argument.strip_prefix('@') {
        Some(path) => std::fs::read(path).map_err(|e| format!("--body @{path}: {e}")),
        None => Ok(argument.as_bytes().to_vec()),
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
