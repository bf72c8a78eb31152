//! `GET /docs`: the API reference as a page, drawn by the browser from
//! `/openapi.json`. All that it needs is in the binary.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

/// Nothing from elsewhere, and no script but our own.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// The paths that are answered here.
pub const PATHS: [&str; 4] = ["/docs", "/docs/", "/docs/docs.css", "/docs/docs.js"];

/// The page, or a part of it.
#[must_use]
pub fn answer(path: &str) -> Response<Full<Bytes>> {
    let (kind, body) = match path {
        "/docs/docs.css" => ("text/css; charset=utf-8", include_str!("docs/docs.css")),
        "/docs/docs.js" => (
            "text/javascript; charset=utf-8",
            include_str!("docs/docs.js"),
        ),
        _ => ("text/html; charset=utf-8", include_str!("docs/index.html")),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ] {
        headers.insert(name, value);
    }
    response
}
