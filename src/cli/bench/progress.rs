//! What is shown while a benchmark runs: on standard error, so that standard
//! output stays the report's.

use std::io::{IsTerminal as _, Write as _};

/// One line that is rewritten on a terminal, plain lines elsewhere.
#[derive(Debug)]
pub(super) struct Progress {
    terminal: bool,
}

impl Progress {
    /// Looks at what standard error is.
    #[must_use]
    pub(super) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// How it goes; replaced by the next one on a terminal.
    pub(super) fn tick(&self, line: &str) {
        let mut out = std::io::stderr().lock();
        // Nobody reading is no reason to stop.
        if self.terminal {
            write!(out, "\r\x1b[2K{line}").ok();
            out.flush().ok();
        } else {
            writeln!(out, "{line}").ok();
        }
    }

    /// Something that stays.
    pub(super) fn say(&self, line: &str) {
        let mut out = std::io::stderr().lock();
        let clear = if self.terminal { "\r\x1b[2K" } else { "" };
        writeln!(out, "{clear}{line}").ok();
    }
}
