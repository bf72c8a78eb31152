//! Why a benchmark ended without a result.

use std::process::ExitCode;

/// Why a benchmark ended without a result. Each kind has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The arguments make no sense together: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The server can't be reached or didn't start: exit code 3.
    #[error("{0}")]
    NotReached(String),
    /// Anything else that went wrong on the way: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl BenchError {
    /// A failure with its cause behind a colon.
    pub fn failed(what: &str, cause: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{what}: {cause}"))
    }

    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotReached(_) => 3,
        })
    }
}

/// What the steps of a benchmark return.
pub(super) type Result<T> = std::result::Result<T, BenchError>;
