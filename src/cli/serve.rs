//! `onering serve`.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{WRONG, failed};
use crate::{
    app::{self, App, Outside, StartError},
    settings::{NAMES, Settings},
    telemetry,
};

/// The environment, for `--help`.
pub(super) fn help() -> String {
    let mut text = String::from(
        "Environment (also in the TOML file that ONERING_CONFIG names, without ONERING_ and in lower case):\n",
    );
    for (name, default, what) in NAMES {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  ONERING_{name:<32} {what} [{default}]");
    }
    text
}

pub(super) async fn run() -> ExitCode {
    let settings = match Settings::read() {
        Ok(settings) => settings,
        Err(e) => return failed(WRONG, &e),
    };
    if let Some(key) = &settings.bootstrap_key
        && let Err(e) = app::check_bootstrap_key(key)
    {
        return failed(WRONG, &e);
    }
    if let Err(e) = telemetry::init(&settings.log, settings.log_json) {
        return failed(WRONG, &e);
    }
    for name in &settings.unknown {
        tracing::warn!(setting.name = name, "this variable means nothing here");
    }
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(e) => return failed(1, &e),
    };
    let started = tokio::select! {
        started = App::start(settings, Outside::default()) => started,
        () = signals.stop() => return ExitCode::SUCCESS,
    };
    match started {
        Ok(app) => until_stopped(app, signals, |_| {}).await,
        Err(e @ (StartError::Settings(_) | StartError::Seal(_) | StartError::Listen(..))) => {
            failed(WRONG, &e)
        }
        Err(e) => failed(1, &e),
    }
}

/// Serves until a signal; reloads on SIGHUP and when the file changes, with the
/// settings adjusted as they were at the start.
pub(super) async fn until_stopped(
    app: App,
    mut signals: Signals,
    adjust: fn(&mut Settings),
) -> ExitCode {
    let broken = app.broken();
    let code = tokio::select! {
        () = signals.stop.stop() => ExitCode::SUCCESS,
        () = broken.cancelled() => ExitCode::FAILURE,
        () = follow_settings(&app, &mut signals.hangup, adjust) => ExitCode::FAILURE,
    };
    // A second signal does not wait.
    tokio::select! {
        () = app.stop() => code,
        () = signals.stop.stop() => ExitCode::FAILURE,
    }
}

/// The signals that a node answers to. They are taken over before it starts: one
/// that comes in between must not end it without an orderly stop.
pub(super) struct Signals {
    stop: Stop,
    hangup: Signal,
}

struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes them over.
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            stop: Stop {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            },
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The first of the signals that ask a process to stop.
    pub(super) async fn stop(&mut self) {
        self.stop.stop().await;
    }
}

impl Stop {
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// How often the file is looked at.
const WATCH: Duration = Duration::from_secs(1);

async fn follow_settings(app: &App, hangup: &mut Signal, adjust: fn(&mut Settings)) {
    let path = std::env::var_os("ONERING_CONFIG");
    let modified = || {
        let meta = path.as_ref().and_then(|p| std::fs::metadata(p).ok());
        meta.and_then(|m| m.modified().ok())
    };
    let mut seen = modified();
    loop {
        tokio::select! {
            _ = hangup.recv() => {}
            () = tokio::time::sleep(WATCH) => if modified() == seen { continue },
        }
        seen = modified();
        match Settings::read() {
            Ok(mut settings) => {
                adjust(&mut settings);
                app.reload(settings.live);
                tracing::info!("settings read again");
            }
            Err(e) => {
                tracing::error!(error.message = %e, "settings not read again; the ones before stay");
            }
        }
    }
}
