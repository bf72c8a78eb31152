//! Why a delivery is not believed.

use super::{MAX_AGE_S, MAX_AHEAD_S};

/// Why a delivery's signature does not hold, in words for whoever integrates it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No header that a signature needs.
    #[error("the header {0} is missing")]
    MissingHeader(&'static str),
    /// A header that can't be read.
    #[error("the header {header} is malformed: {problem}")]
    MalformedHeader {
        /// Its name.
        header: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The header has signatures, but none of a version known here.
    #[error("the header {0} has no signature of a known version (v1, v1n; v1, v1a)")]
    UnknownVersion(&'static str),
    /// Two headers that name the event name different ones.
    #[error("the header {0} names another event id than the signature does")]
    EventIdMismatch(&'static str),
    /// Two headers that say when it was signed differ.
    #[error("the header {0} has another timestamp than the signature does")]
    TimestampMismatch(&'static str),
    /// Signed too long ago: perhaps recorded and sent again.
    #[error("the signature is {age_s} s old, at most {MAX_AGE_S} s are accepted")]
    TooOld {
        /// Its age in seconds.
        age_s: i64,
    },
    /// Signed in the future: one of the two clocks is wrong.
    #[error(
        "the signature's timestamp is {ahead_s} s in the future, at most {MAX_AHEAD_S} s are accepted: check the clocks"
    )]
    InFuture {
        /// How far ahead, in seconds.
        ahead_s: i64,
    },
    /// Nothing that was sent matches: another secret, or another body.
    #[error(
        "no signature in {0} matches: the secret is another one, or the body was changed (it must be the raw bytes as they came)"
    )]
    NoMatchingSignature(&'static str),
}

impl VerifyError {
    /// The error's name in the test vectors and in JSON.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::MissingHeader(_) => "missing_header",
            Self::MalformedHeader { .. } => "malformed_header",
            Self::UnknownVersion(_) => "unknown_version",
            Self::EventIdMismatch(_) => "event_id_mismatch",
            Self::TimestampMismatch(_) => "timestamp_mismatch",
            Self::TooOld { .. } => "too_old",
            Self::InFuture { .. } => "in_future",
            Self::NoMatchingSignature(_) => "no_matching_signature",
        }
    }
}
