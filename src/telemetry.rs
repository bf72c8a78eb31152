//! Structured logs. Fields have dotted names and units in them. Payloads, secrets
//! and keys are never logged.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Begins logging to standard error.
///
/// # Errors
/// Where the levels can't be read.
pub fn init(levels: &str, json: bool) -> Result<(), String> {
    let filter = EnvFilter::try_new(levels).map_err(|e| {
        format!("ONERING_LOG: read {levels:?}, takes levels such as `info,onering=debug` ({e})")
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let begun = if json {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        use std::io::IsTerminal as _;
        registry
            .with(layer.with_ansi(std::io::stderr().is_terminal()))
            .try_init()
    };
    begun.map_err(|e| e.to_string())
}
