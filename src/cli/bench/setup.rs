//! What a run needs on the server: a key, and subscriptions to our receivers.
//! Made over REST, and removed at the end.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue},
};
use serde_json::{Value, json};

use super::{
    body::Template,
    client::{Connection, Pool},
    error::{BenchError, Result},
    publisher::{CALL_TIMEOUT, Target, shown},
};

/// What is posted where, and how many endpoints each event goes to.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// Paths, bodies and headers.
    pub target: Arc<Target>,
    /// Event types; event `n` has type `n % types`.
    pub types: u64,
    /// Endpoints of each type.
    pub fan_out: u64,
    /// Its subscriptions.
    subscriptions: Vec<String>,
}

impl Route {
    /// Straight at the receivers, with bodies of the same size: the raw mode.
    pub(super) fn raw(authority: &str, body_bytes: usize) -> Result<Self> {
        let id = "evt_00000000000000000000000000";
        let uri = format!("http://{authority}/e/0");
        let uri = uri.parse().map_err(|e| BenchError::failed(&uri, e))?;
        let mut headers = common_headers(authority)?;
        headers.insert(
            HeaderName::from_static("x-webhook-event-id"),
            HeaderValue::from_static(id),
        );
        Ok(Self {
            target: Arc::new(Target {
                authority: authority.to_owned(),
                // A pool takes the address from the URI.
                paths: vec![uri],
                bodies: vec![Template::envelope(id, "bench.00000000.e0", body_bytes)],
                headers,
                idempotency: None,
                accepted: StatusCode::OK,
                pool: Some(Pool::new(CALL_TIMEOUT)),
            }),
            types: 1,
            fan_out: 1,
            subscriptions: Vec::new(),
        })
    }
}

/// Which endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Those whose arrivals are counted.
    Counted,
    /// Those that can be made to hang.
    Hanging,
}

impl Place {
    const fn path(self) -> &'static str {
        match self {
            Self::Counted => "e",
            Self::Hanging => "h",
        }
    }
}

/// A consumer's key on a server.
#[derive(Debug)]
pub(super) struct Session {
    authority: String,
    connection: Connection,
    admin_key: Option<String>,
    key: String,
    made_key: Option<String>,
    subscriptions: Vec<String>,
    /// Base URL of the receivers, as the server sees them.
    receivers: String,
    tag: String,
    idempotency: Option<u16>,
}

/// Who drives which server, for [`Session::open`].
#[derive(Debug, Clone)]
pub(super) struct Access {
    /// `host:port` of the server.
    pub authority: String,
    /// A consumer's key, or …
    pub key: Option<String>,
    /// … an admin key to make one with.
    pub admin_key: Option<String>,
    /// Base URL of the receivers, as the server sees them.
    pub receivers: String,
    /// Hex digits that no other invocation has.
    pub tag: String,
    /// Whether events have an `Idempotency-Key`.
    pub idempotency: bool,
}

impl Session {
    /// Makes a key, unless one was given.
    pub(super) async fn open(access: Access) -> Result<Self> {
        let connection = Connection::new(access.authority.clone(), Duration::from_secs(30));
        let bits = access
            .tag
            .get(..4)
            .and_then(|t| u16::from_str_radix(t, 16).ok());
        let mut session = Self {
            connection,
            authority: access.authority,
            admin_key: access.admin_key,
            key: String::new(),
            made_key: None,
            subscriptions: Vec::new(),
            receivers: access.receivers,
            tag: access.tag,
            idempotency: access.idempotency.then_some(bits.unwrap_or(0)),
        };
        if let Some(key) = access.key {
            session.key = key;
            return Ok(session);
        }
        let Some(admin) = session.admin_key.clone() else {
            return Err(BenchError::Usage("--url needs --key or --admin-key".into()));
        };
        let body =
            json!({"name": "bench", "tier": "enterprise", "rate_limit_per_hour": 1_000_000_000});
        let made = session
            .call(
                Method::POST,
                "/v1/admin/external/keys",
                &admin,
                Some(&body),
                201,
            )
            .await?;
        session.key = text(&made, "secret")?;
        session.made_key = Some(text(&made, "key_id")?);
        Ok(session)
    }

    /// Subscribes `endpoints` endpoints, `fan_out` to each event type.
    pub(super) async fn route(
        &mut self,
        name: &str,
        endpoints: u64,
        fan_out: u64,
        body_bytes: usize,
    ) -> Result<Route> {
        self.route_to(Place::Counted, name, endpoints, fan_out, body_bytes)
            .await
    }

    /// As [`route`](Self::route), to endpoints of that kind.
    pub(super) async fn route_to(
        &mut self,
        place: Place,
        name: &str,
        endpoints: u64,
        fan_out: u64,
        body_bytes: usize,
    ) -> Result<Route> {
        let types = (endpoints / fan_out).max(1);
        let event_type = |t: u64| format!("bench.{}.{name}.e{t}", self.tag);
        let key = self.key.clone();
        let (mut bodies, mut subscriptions) = (Vec::new(), Vec::new());
        for t in 0..types {
            bodies.push(Template::publish(&event_type(t), body_bytes));
        }
        for endpoint in 0..endpoints {
            let mut body = json!({
                "url": format!("{}/{}/{endpoint}", self.receivers, place.path()),
                "event_types": [format!("bench.{}.{name}.e{}", self.tag, endpoint / fan_out)],
                "description": "onering bench",
            });
            if place == Place::Counted {
                body["max_in_flight"] = json!(1000);
            } else {
                // As anybody's that nobody has tuned, but that it is not tried again.
                body["retry_schedule"] = json!({"max_attempts": 1, "backoff_seconds": [1]});
            }
            let made = self
                .call(
                    Method::POST,
                    "/v1/external/webhooks",
                    &key,
                    Some(&body),
                    201,
                )
                .await?;
            let id = text(&made, "id")?;
            self.subscriptions.push(id.clone());
            subscriptions.push(id);
        }
        let mut headers = common_headers(&self.authority)?;
        headers.insert(AUTHORIZATION, bearer(&key)?);
        Ok(Route {
            target: Arc::new(Target {
                authority: self.authority.clone(),
                paths: vec![Uri::from_static("/v1/external/events")],
                bodies,
                headers,
                idempotency: self.idempotency,
                accepted: StatusCode::ACCEPTED,
                pool: None,
            }),
            types,
            fan_out,
            subscriptions,
        })
    }

    /// Removes a route's subscriptions, and with them what waits for them.
    pub(super) async fn remove(&mut self, route: &Route) -> Result<()> {
        let key = self.key.clone();
        for id in &route.subscriptions {
            let path = format!("/v1/external/webhooks/{id}");
            self.call(Method::DELETE, &path, &key, None, 200).await?;
            self.subscriptions.retain(|s| s != id);
        }
        Ok(())
    }

    /// Whether no delivery waits on the server.
    pub(super) async fn is_idle(&mut self) -> Result<bool> {
        let key = self.key.clone();
        let health = self
            .call(Method::GET, "/health?deep=true", &key, None, 200)
            .await?;
        let age = health.pointer("/checks/queue/oldest_age_seconds");
        Ok(age.and_then(Value::as_f64) == Some(0.0))
    }

    /// Sets a switch.
    pub(super) async fn switch(&mut self, name: &str, enabled: bool) -> Result<()> {
        let Some(admin) = self.admin_key.clone() else {
            return Err(BenchError::Usage("this needs --admin-key".into()));
        };
        let body = json!({"name": name, "enabled": enabled, "reason": "onering bench"});
        self.call(Method::POST, "/v1/admin/switches", &admin, Some(&body), 200)
            .await
            .map(drop)
    }

    /// Whether `GET /v1/external/me` answers 200 now.
    pub(super) async fn is_served(&mut self) -> bool {
        let key = self.key.clone();
        self.call(Method::GET, "/v1/external/me", &key, None, 200)
            .await
            .is_ok()
    }

    /// Removes what was made here, as far as the server still answers.
    pub(super) async fn close(&mut self) {
        let key = self.key.clone();
        for id in std::mem::take(&mut self.subscriptions) {
            let path = format!("/v1/external/webhooks/{id}");
            self.call(Method::DELETE, &path, &key, None, 200).await.ok();
        }
        if let (Some(id), Some(admin)) = (self.made_key.take(), self.admin_key.clone()) {
            let path = format!("/v1/admin/external/keys/{id}/revoke");
            self.call(Method::POST, &path, &admin, Some(&json!({})), 200)
                .await
                .ok();
        }
    }

    async fn call(
        &mut self,
        method: Method,
        path: &str,
        key: &str,
        body: Option<&Value>,
        expected: u16,
    ) -> Result<Value> {
        let what = format!("{method} {path}");
        let uri: Uri = path.parse().map_err(|e| BenchError::failed(path, e))?;
        let body = body.map_or_else(Bytes::new, |b| Bytes::from(b.to_string()));
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = common_headers(&self.authority)?;
        request.headers_mut().insert(AUTHORIZATION, bearer(key)?);
        let (status, answer) =
            self.connection.call(request).await.map_err(|e| {
                BenchError::NotReached(format!("{what} at {}: {e}", self.authority))
            })?;
        if status.as_u16() != expected {
            let answer = shown(&answer);
            return Err(BenchError::Failed(format!(
                "{what}: {status}, not {expected}: {answer}"
            )));
        }
        serde_json::from_slice(&answer).map_err(|e| BenchError::failed(&what, e))
    }
}

/// What each call has.
pub(super) fn common_headers(authority: &str) -> Result<HeaderMap> {
    let host = HeaderValue::from_str(authority)
        .map_err(|e| BenchError::Usage(format!("{authority}: {e}")))?;
    Ok(HeaderMap::from_iter([
        (HOST, host),
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
    ]))
}

/// A key, as `Authorization` has it.
pub(super) fn bearer(key: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
        .map_err(|_| BenchError::Usage("the key has characters that no header takes".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A text of an answer.
pub(super) fn text(answer: &Value, field: &str) -> Result<String> {
    answer
        .get(field)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| BenchError::Failed(format!("the server's answer has no `{field}`")))
}

/// `host:port` of a server's URL.
pub(super) fn authority(url: &str) -> Result<String> {
    let bad = |why: &str| BenchError::Usage(format!("--url {url}: {why}"));
    let parsed = url::Url::parse(url).map_err(|e| bad(&e.to_string()))?;
    if parsed.scheme() != "http" {
        return Err(bad(
            "only http:// is measured: TLS would be the client's cost as much as the server's",
        ));
    }
    match (parsed.host_str(), parsed.port_or_known_default()) {
        (Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        _ => Err(bad("there is no host")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_address_comes_from_its_url() {
        assert_eq!(
            authority("http://127.0.0.1:8000").unwrap(),
            "127.0.0.1:8000"
        );
        assert_eq!(authority("http://host/").unwrap(), "host:80");
        assert!(authority("https://host").is_err());
        assert!(authority("host:80").is_err());
    }
}
