//! One error for the whole server. A [`Reason`] says what happened; the HTTP
//! status, the gRPC status and the hint follow from it, here and nowhere else.

use std::{fmt, time::Duration};

use tonic_types::{ErrorDetails, StatusExt as _};

pub use crate::proto::v1::ErrorReason as Reason;

/// The `domain` of every `google.rpc.ErrorInfo` that we send.
pub const DOMAIN: &str = "onering";

/// What went wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field's path as the caller wrote it, such as `events[3].event_type`.
    pub field: String,
    /// What is wrong with it, and what it takes.
    pub message: String,
}

/// A refused call.
#[derive(Debug, Clone)]
pub struct Error {
    /// Why.
    pub reason: Reason,
    /// What happened, for the caller to read. Never holds a secret.
    pub detail: String,
    /// Each field that is wrong.
    pub violations: Vec<Violation>,
    /// How long to wait before the call may succeed.
    pub retry_after: Option<Duration>,
}

/// The result of anything that a caller may be refused.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a detail and nothing else.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            violations: Vec::new(),
            retry_after: None,
        }
    }

    /// `INVALID_ARGUMENT` that names one field.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::fields(vec![Violation {
            field: field.into(),
            message: message.into(),
        }])
    }

    /// `INVALID_ARGUMENT` that names several fields.
    #[must_use]
    pub fn fields(violations: Vec<Violation>) -> Self {
        let detail = violations
            .iter()
            .map(|v| format!("{}: {}", v.field, v.message))
            .collect::<Vec<_>>()
            .join("; ");
        Self {
            violations,
            ..Self::new(Reason::InvalidArgument, detail)
        }
    }

    /// `NOT_FOUND` of a resource.
    pub fn not_found(what: impl fmt::Display) -> Self {
        Self::new(Reason::NotFound, format!("there is no {what}"))
    }

    /// A fault of ours. The cause is logged here and kept from the caller.
    pub fn internal(cause: impl fmt::Display) -> Self {
        tracing::error!(error.message = %cause, "internal error");
        Self::new(Reason::Internal, "the server failed to answer this call")
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The reason's name on the wire: `KEY_MISSING`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        code(self.reason)
    }
}

/// A wait in whole seconds, up: a caller that is early is refused again.
#[must_use]
pub const fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + (wait.subsec_nanos() > 0) as u64
}

/// A reason's name on the wire: `KEY_MISSING`.
#[must_use]
pub fn code(reason: Reason) -> &'static str {
    reason
        .as_str_name()
        .strip_prefix("ERROR_REASON_")
        .unwrap_or("UNSPECIFIED")
}

/// The reason of that name; the inverse of [`code`].
#[must_use]
pub fn from_code(code: &str) -> Option<Reason> {
    Reason::from_str_name(&format!("ERROR_REASON_{code}"))
}

/// What follows from a reason.
#[derive(Debug, Clone, Copy)]
pub struct Meaning {
    /// The HTTP status.
    pub http: u16,
    /// The gRPC status.
    pub grpc: tonic::Code,
    /// A few words for people.
    pub title: &'static str,
    /// What the caller can do.
    pub hint: &'static str,
}

/// What follows from a reason.
#[must_use]
pub fn meaning(reason: Reason) -> Meaning {
    use tonic::Code;
    let (http, grpc, title, hint) = match reason {
        Reason::InvalidArgument => (
            400,
            Code::InvalidArgument,
            "Invalid request",
            "Correct the fields that `errors` names and send the request again.",
        ),
        Reason::KeyMissing => (
            401,
            Code::Unauthenticated,
            "API key missing",
            "Send `Authorization: Bearer <key>`.",
        ),
        Reason::KeyMalformed => (
            401,
            Code::Unauthenticated,
            "API key malformed",
            "The key was most likely cut or mistyped: copy the whole text again.",
        ),
        Reason::KeyInvalid => (
            401,
            Code::Unauthenticated,
            "API key not valid",
            "Check that the key is the one you were given, or ask for a new one.",
        ),
        Reason::KeyExpired => (
            401,
            Code::Unauthenticated,
            "API key expired",
            "Ask the operator to extend the key or for a new one.",
        ),
        Reason::KeyDisabled => (
            401,
            Code::Unauthenticated,
            "API key disabled",
            "Ask the operator to enable the key.",
        ),
        Reason::KeyRevoked => (
            401,
            Code::Unauthenticated,
            "API key revoked",
            "The key was withdrawn for good: use another one.",
        ),
        Reason::TokenExpired => (
            401,
            Code::Unauthenticated,
            "Token expired",
            "Exchange your key for a new token.",
        ),
        Reason::ScopeMissing => (
            403,
            Code::PermissionDenied,
            "Scope missing",
            "Ask the operator to add the scope to your key.",
        ),
        Reason::CanaryOnlyMode => (
            403,
            Code::PermissionDenied,
            "Canary keys only",
            "Only canary keys are admitted at the moment: try again after the launch.",
        ),
        Reason::IpNotAllowed => (
            403,
            Code::PermissionDenied,
            "Address not allowed",
            "Ask the operator to add your address to the key's allow list.",
        ),
        Reason::TenantMismatch => (
            403,
            Code::PermissionDenied,
            "Another tenant",
            "The key is bound to one tenant: leave `tenant` out or name that one.",
        ),
        Reason::NotFound => (
            404,
            Code::NotFound,
            "Not found",
            "Check the id and the path; `/openapi.json` lists every route.",
        ),
        Reason::MethodNotAllowed => (
            405,
            Code::Unimplemented,
            "Method not allowed",
            "Use one of the methods that `Allow` names.",
        ),
        Reason::AlreadyExists => (
            409,
            Code::AlreadyExists,
            "Already exists",
            "Choose another name.",
        ),
        Reason::IdempotencyKeyReused => (
            409,
            Code::AlreadyExists,
            "Idempotency key reused",
            "Send a new request with a new key; repeat a request with the same body.",
        ),
        Reason::FailedPrecondition => (
            409,
            Code::FailedPrecondition,
            "Not possible in this state",
            "Read the resource to see the state that it is in.",
        ),
        Reason::PayloadTooLarge => (
            413,
            Code::InvalidArgument,
            "Payload too large",
            "Send less: for large data, publish a reference to it.",
        ),
        Reason::UnsupportedMediaType => (
            415,
            Code::InvalidArgument,
            "Unsupported media type",
            "Send `Content-Type: application/json`.",
        ),
        Reason::SchemaMismatch => (
            422,
            Code::InvalidArgument,
            "Payload does not fit its schema",
            "Correct the payload, or ask for the schema to be changed.",
        ),
        Reason::PiiDetected => (
            422,
            Code::InvalidArgument,
            "Personal data in payload",
            "Leave personal data out of the payload.",
        ),
        Reason::EndpointNotAllowed => (
            422,
            Code::InvalidArgument,
            "Endpoint not allowed",
            "Use an https URL with a public address.",
        ),
        Reason::EndpointNotVerified => (
            422,
            Code::InvalidArgument,
            "Endpoint did not answer the challenge",
            "Have the endpoint answer a POST that has the header `X-Webhook-Challenge` with 200 and the header's value as the body.",
        ),
        Reason::RateLimited => (
            429,
            Code::ResourceExhausted,
            "Rate limit reached",
            "Wait as long as `Retry-After` says.",
        ),
        Reason::QuotaExceeded => (
            429,
            Code::ResourceExhausted,
            "Quota used up",
            "Delete what is no longer needed, or ask the operator for more.",
        ),
        Reason::ExternalApiDisabled => (
            503,
            Code::Unavailable,
            "The outside API is switched off",
            "Try again later.",
        ),
        Reason::WebhooksDisabled => (
            503,
            Code::Unavailable,
            "Webhooks are switched off",
            "Try again later; what was accepted before is kept.",
        ),
        Reason::EndpointDisabled => (
            503,
            Code::Unavailable,
            "This route is switched off",
            "Try again later.",
        ),
        Reason::StoreUnavailable => (
            503,
            Code::Unavailable,
            "The database can't be reached",
            "It may or may not have taken effect: send the call again, with the same idempotency key.",
        ),
        Reason::Overloaded => (
            503,
            Code::ResourceExhausted,
            "Too much at once",
            "Nothing was stored: send it again once `Retry-After` has passed.",
        ),
        Reason::Degraded => (
            503,
            Code::Unavailable,
            "Reduced capacity",
            "Optional features are switched off for the moment: try again later.",
        ),
        Reason::WorkerSilent => (
            408,
            Code::DeadlineExceeded,
            "The worker was silent",
            "Answer each ping, read what comes, and connect again.",
        ),
        Reason::Internal | Reason::Unspecified => (
            500,
            Code::Internal,
            "Internal error",
            "Give the operator the `request_id`.",
        ),
    };
    Meaning {
        http,
        grpc,
        title,
        hint,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.detail)
    }
}

impl std::error::Error for Error {}

impl From<Error> for tonic::Status {
    fn from(e: Error) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(e.code(), DOMAIN, std::collections::HashMap::new());
        for v in &e.violations {
            details.add_bad_request_violation(&v.field, &v.message);
        }
        if let Some(wait) = e.retry_after {
            details.set_retry_info(Some(wait));
        }
        match e.reason {
            Reason::QuotaExceeded => {
                details.add_quota_failure_violation("tenant", &e.detail);
            }
            Reason::RateLimited => {
                details.add_quota_failure_violation("key", &e.detail);
            }
            _ => {}
        }
        Self::with_error_details(meaning(e.reason).grpc, e.detail, details)
    }
}

impl From<&tonic::Status> for Error {
    /// Reads back what [`From<Error>`](tonic::Status) wrote. A status of
    /// tonic's own carries no details; its reason follows from its code.
    fn from(status: &tonic::Status) -> Self {
        use tonic::Code;
        let details = status.get_error_details();
        let reason = details
            .error_info()
            .and_then(|info| from_code(&info.reason))
            .unwrap_or(match status.code() {
                Code::InvalidArgument => Reason::InvalidArgument,
                Code::Unauthenticated => Reason::KeyInvalid,
                Code::PermissionDenied => Reason::ScopeMissing,
                Code::NotFound | Code::Unimplemented => Reason::NotFound,
                Code::OutOfRange | Code::ResourceExhausted => Reason::PayloadTooLarge,
                Code::AlreadyExists => Reason::AlreadyExists,
                Code::FailedPrecondition | Code::Aborted => Reason::FailedPrecondition,
                Code::Unavailable | Code::DeadlineExceeded => Reason::StoreUnavailable,
                _ => Reason::Internal,
            });
        Self {
            reason,
            detail: status.message().to_owned(),
            violations: details
                .bad_request()
                .map(|b| {
                    b.field_violations
                        .iter()
                        .map(|v| Violation {
                            field: v.field.clone(),
                            message: v.description.clone(),
                        })
                        .collect()
                })
                .unwrap_or_default(),
            retry_after: details.retry_info().and_then(|r| r.retry_delay),
        }
    }
}
