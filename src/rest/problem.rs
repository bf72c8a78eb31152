//! Refusals as `application/problem+json` (RFC 9457).

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

use crate::error::{Error, meaning, whole_seconds};

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// What stands before the code in `type`. A name and no address: it stays the
/// same wherever the server runs.
pub const TYPE_PREFIX: &str = "urn:onering:error:";

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    hint: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError<'a>>,
}

#[derive(Serialize)]
struct FieldError<'a> {
    field: &'a str,
    message: &'a str,
}

/// The body of a problem.
#[must_use]
pub fn body(error: &Error, request_id: Option<&str>) -> Bytes {
    let meaning = meaning(error.reason);
    let problem = Problem {
        r#type: format!("{TYPE_PREFIX}{}", error.code()),
        title: meaning.title,
        status: meaning.http,
        code: error.code(),
        detail: &error.detail,
        request_id,
        hint: meaning.hint,
        errors: error
            .violations
            .iter()
            .map(|v| FieldError {
                field: &v.field,
                message: &v.message,
            })
            .collect(),
    };
    // Strings and numbers always have a form.
    serde_json::to_vec(&problem).unwrap_or_default().into()
}

/// The whole answer; 429 and 503 with `Retry-After` where the error knows how
/// long, 401 with `WWW-Authenticate`.
#[must_use]
pub fn response(error: &Error, request_id: Option<&str>) -> http::Response<Full<Bytes>> {
    let status = StatusCode::from_u16(meaning(error.reason).http)
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = http::Response::new(Full::new(body(error, request_id)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(wait) = error.retry_after {
        headers.insert(header::RETRY_AFTER, whole_seconds(wait).into());
    }
    set_request_id(headers, request_id);
    response
}

/// Writes `X-Request-Id`, in place of one that is there.
pub fn set_request_id(headers: &mut HeaderMap, request_id: Option<&str>) {
    if let Some(id) = request_id.and_then(|id| HeaderValue::from_str(id).ok()) {
        headers.insert("x-request-id", id);
    }
}
