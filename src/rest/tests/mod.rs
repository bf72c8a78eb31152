//! REST against a service in this process, made by tonic as the server's is.

// A test may end at what it did not expect; answers are made to be changed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unnecessary_wraps
)]

mod fuzz;
mod hot;
mod json;
mod openapi;
mod routes;
mod service;
mod transcode;

use std::sync::LazyLock;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;

use super::{RequestId, Rest, transcode::Response};

static REST: LazyLock<Rest> = LazyLock::new(|| Rest::new().unwrap());

const MAX_BODY: usize = 4096;

/// Makes a call; `body` goes as JSON unless a header says otherwise.
async fn call(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let mut request = http::Request::builder().method(method).uri(path);
    if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .unwrap();
    request
        .extensions_mut()
        .insert(RequestId("req_1".to_owned()));
    sendable(super::transcode::answer(
        &REST,
        service::routes(),
        request,
        MAX_BODY,
    ))
    .await
}

/// A server's tasks move between threads.
fn sendable<F: Future + Send>(future: F) -> F {
    future
}

async fn text(response: Response) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// A call's status and JSON.
async fn json(method: &str, path: &str, body: &str) -> (u16, Value) {
    let response = call(method, path, &[], body).await;
    let status = response.status().as_u16();
    let text = text(response).await;
    (status, serde_json::from_str(&text).expect(&text))
}

/// The `field: message` of each error of a refusal.
fn errors(problem: &Value) -> Vec<String> {
    let errors = problem["errors"].as_array().expect("errors");
    errors
        .iter()
        .map(|e| {
            format!(
                "{}: {}",
                e["field"].as_str().unwrap(),
                e["message"].as_str().unwrap()
            )
        })
        .collect()
}
