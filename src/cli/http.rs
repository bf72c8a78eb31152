//! A small HTTP client for commands that call a server, or a sink, as its users do.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer that is read.
const MOST: usize = 64 << 20;

/// An answer that was read whole.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// The body as JSON; null where it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// A header's text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The `code` of a refusal; empty where it is none of ours.
    pub(super) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// What a refusal says, in one line.
    pub(super) fn told(&self) -> String {
        let json = self.json();
        let said = ["code", "detail", "hint"].map(|f| json[f].as_str().unwrap_or_default());
        if said.iter().all(|s| s.is_empty()) {
            return format!("HTTP {}", self.status.as_u16());
        }
        let said: Vec<&str> = said.into_iter().filter(|s| !s.is_empty()).collect();
        format!("HTTP {}: {}", self.status.as_u16(), said.join(": "))
    }
}

/// The client.
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Http {
    pub(super) fn new() -> Self {
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .build();
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// Calls; a JSON body where there is one, and a key where there is one.
    pub(super) async fn call(
        &self,
        method: Method,
        url: &str,
        key: &str,
        body: Option<&Value>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(url);
        if !key.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let request = request.body(Full::new(bytes)).map_err(|e| e.to_string())?;
        let exchange = async {
            let response = self.client.request(request).await;
            let response = response.map_err(|e| unreached(&e))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MOST).collect().await;
            Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                body: body.map_err(|e| e.to_string())?.to_bytes(),
            })
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answer) => answer.map_err(|e: String| format!("{url}: {e}")),
            Err(_) => Err(format!("{url}: no answer within {} s", PATIENCE.as_secs())),
        }
    }
}

fn unreached(error: &hyper_util::client::legacy::Error) -> String {
    // The innermost cause is what helps: refused, unknown host, bad certificate.
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
