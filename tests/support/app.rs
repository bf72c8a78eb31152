//! A node in this process, on a test's database, with clients for both of its
//! faces. It listens on a free port; every switch is on, receivers on loopback
//! are allowed, and it has an admin key.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use onering::{
    app::{App, Outside},
    domain::switch::Switch,
    proto::v1::{
        dead_letter_service_client::DeadLetterServiceClient,
        delivery_service_client::DeliveryServiceClient, event_service_client::EventServiceClient,
        flag_service_client::FlagServiceClient, key_service_client::KeyServiceClient,
        metrics_service_client::MetricsServiceClient,
        subscription_service_client::SubscriptionServiceClient,
        tenant_service_client::TenantServiceClient, worker_service_client::WorkerServiceClient,
    },
    seal,
    settings::Settings,
    store::Database,
};
use serde_json::{Value, json};
use tonic::{
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{faults::Faults, store::Db};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Settings of a node that is to be started.
#[must_use]
pub struct Builder {
    db: Db,
    vars: BTreeMap<String, String>,
    outside: Outside,
}

/// A running node.
pub struct TestApp {
    app: App,
    db: Db,
    vars: BTreeMap<String, String>,
    http: Http,
    /// Where it listens.
    pub address: SocketAddr,
    /// A key that may do everything.
    pub admin: String,
}

/// A tenant with a consumer's key.
pub struct Tenant {
    pub name: String,
    pub id: String,
    pub key_id: String,
    pub key: String,
}

/// A subscription as it was made.
pub struct Subscribed {
    pub id: String,
    pub secret: String,
}

/// Waits until something is so, and fails where it never is.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    super::wait::until(what, async || check().await).await
}

/// The URL of a database, as `ONERING_DATABASE_URL` has it.
pub fn database_url(database: &Database) -> String {
    match database {
        Database::Sqlite(path) => format!("sqlite://{}", path.display()),
        Database::Postgres(url) => url.clone(),
    }
}

/// The variables of a node on that database, with everything on.
pub fn variables(db: &Db) -> BTreeMap<String, String> {
    let master = seal::new_master_key().unwrap().to_string();
    let admin = format!("sk_admin_test-{}", master.replace(['+', '/', '='], "x"));
    [
        ("DATABASE_URL", database_url(db.database()).as_str()),
        ("MASTER_KEY", &master),
        ("BOOTSTRAP_ADMIN_KEY", &admin),
        ("LISTEN", "127.0.0.1:0"),
        ("EXTERNAL_API_ENABLED", "1"),
        ("EXTERNAL_API_CANARY_ONLY", "0"),
        ("WEBHOOKS_ENABLED", "1"),
        ("WEBHOOKS_DELIVERY_ENABLED", "1"),
        ("ALLOWED_ENDPOINT_CIDRS", "127.0.0.0/8,::1/128"),
        ("ALLOW_HTTP_ENDPOINTS", "1"),
        ("DRAIN_SECONDS", "0"),
        ("SHUTDOWN_SECONDS", "5"),
    ]
    .into_iter()
    .map(|(name, value)| (format!("ONERING_{name}"), value.to_owned()))
    .collect()
}

/// Knows this machine's name alone: no test asks anybody for another's address.
fn offline() -> Outside {
    Outside {
        resolver: Arc::new(|host| {
            let here = matches!(host.as_str(), "localhost").then(|| [127, 0, 0, 1].into());
            Box::pin(async move { Ok(here.into_iter().collect()) })
        }),
        ..Outside::default()
    }
}

impl Builder {
    /// Sets a variable, named without `ONERING_`.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "reads better where it is called"
    )]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.vars
            .insert(format!("ONERING_{name}"), value.to_string());
        self
    }

    /// Leaves a variable out.
    pub fn unset(mut self, name: &str) -> Self {
        self.vars.remove(&format!("ONERING_{name}"));
        self
    }

    /// Has these faults befall its store.
    pub fn faults(mut self, faults: &Arc<Faults>) -> Self {
        self.outside.store = faults.around();
        self
    }

    /// Pins no switch: the stored ones rule.
    pub fn unpinned(mut self) -> Self {
        for switch in Switch::ALL {
            self.vars.remove(switch.variable());
        }
        self
    }

    /// Replaces the clock and the resolver.
    pub fn outside(mut self, outside: Outside) -> Self {
        self.outside = outside;
        self
    }

    pub async fn start(self) -> TestApp {
        let admin = self.vars["ONERING_BOOTSTRAP_ADMIN_KEY"].clone();
        let settings = Settings::from_vars(self.vars.clone().into_iter()).unwrap();
        assert_eq!(settings.unknown, [""; 0]);
        let app = App::start(settings, self.outside).await.unwrap();
        TestApp {
            address: app.address,
            app,
            db: self.db,
            vars: self.vars,
            http: Http::new(),
            admin,
        }
    }
}

impl TestApp {
    /// A node with everything on.
    pub async fn start(db: &Db) -> Self {
        Self::builder(db).start().await
    }

    pub fn builder(db: &Db) -> Builder {
        Builder {
            db: db.clone(),
            vars: variables(db),
            outside: offline(),
        }
    }

    /// Another node with these settings: beside this one on PostgreSQL, or on
    /// either engine after [`stop`](Self::stop).
    pub fn again(&self) -> Builder {
        Builder {
            db: self.db.clone(),
            vars: self.vars.clone(),
            outside: offline(),
        }
    }

    pub fn app(&self) -> &App {
        &self.app
    }

    /// The variables that it was started with.
    pub fn vars(&self) -> &BTreeMap<String, String> {
        &self.vars
    }

    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Changes variables, named without `ONERING_`, while the node runs.
    pub fn reload(&mut self, changed: &[(&str, &str)]) {
        for (name, value) in changed {
            self.vars
                .insert(format!("ONERING_{name}"), (*value).to_owned());
        }
        let settings = Settings::from_vars(self.vars.clone().into_iter()).unwrap();
        self.app.reload(settings.live);
    }

    /// Takes a variable away while the node runs.
    pub fn reload_without(&mut self, name: &str) {
        self.vars.remove(&format!("ONERING_{name}"));
        self.reload(&[]);
    }

    /// Stops as a signal does.
    pub async fn stop(self) {
        self.app.stop().await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A REST call with a key (none where it is empty) and a JSON body.
    pub async fn rest(&self, method: &str, path: &str, key: &str, body: &Value) -> Answer {
        let mut request = self.request(method, path, key);
        if !body.is_null() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        self.send(request.body(Full::from(body)).unwrap()).await
    }

    /// The beginning of a call.
    pub fn request(&self, method: &str, path: &str, key: &str) -> http::request::Builder {
        let method: Method = method.parse().unwrap();
        let request = Request::builder().method(method).uri(self.url(path));
        if key.is_empty() {
            request
        } else {
            request.header(header::AUTHORIZATION, format!("Bearer {key}"))
        }
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        self.http.send(request).await
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        self.rest("GET", path, key, &Value::Null).await
    }

    pub async fn post(&self, path: &str, key: &str, body: Value) -> Answer {
        self.rest("POST", path, key, &body).await
    }

    pub async fn patch(&self, path: &str, key: &str, body: Value) -> Answer {
        self.rest("PATCH", path, key, &body).await
    }

    pub async fn delete(&self, path: &str, key: &str) -> Answer {
        self.rest("DELETE", path, key, &Value::Null).await
    }

    /// A gRPC channel, opened with the first call.
    pub fn channel(&self) -> Channel {
        Endpoint::from_shared(self.url("")).unwrap().connect_lazy()
    }

    /// The gRPC clients with a key; without one where it is empty.
    pub fn grpc(&self, key: &str) -> Grpc {
        Grpc::new(self.channel(), key)
    }

    /// Makes a tenant with a consumer's key.
    pub async fn tenant(&self, name: &str) -> Tenant {
        let made = self
            .post("/v1/admin/tenants", &self.admin, json!({ "name": name }))
            .await
            .ok();
        let id = made["tenant_id"].as_str().unwrap().to_owned();
        let (key_id, key) = self.key(json!({ "tenant": name })).await;
        Tenant {
            name: name.to_owned(),
            id,
            key_id,
            key,
        }
    }

    /// Makes a key: its id and its text. A consumer's has a limit that a test
    /// does not come near, unless the body says which.
    pub async fn key(&self, mut body: Value) -> (String, String) {
        let limits = ["tier", "rate_limit_per_hour", "kind"];
        if limits.iter().all(|name| body.get(name).is_none()) {
            body["rate_limit_per_hour"] = json!(1_000_000);
        }
        let made = self
            .post("/v1/admin/external/keys", &self.admin, body)
            .await
            .ok();
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        (text("key_id"), text("secret"))
    }

    /// Makes a subscription.
    pub async fn subscribe(&self, key: &str, body: Value) -> Subscribed {
        let made = self.post("/v1/external/webhooks", key, body).await.ok();
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        Subscribed {
            id: text("id"),
            secret: text("secret"),
        }
    }

    /// Sets a switch, which every node must confirm.
    pub async fn switch(&self, name: &str, on: bool) -> Value {
        let body = json!({"name": name, "enabled": on, "reason": "a test"});
        let set = self
            .post("/v1/admin/switches", &self.admin, body)
            .await
            .ok();
        confirmed(&set);
        set
    }

    /// Publishes an event: its id.
    pub async fn publish(&self, key: &str, event_type: &str, data: Value) -> String {
        let body = json!({ "event_type": event_type, "data": data });
        let made = self.post("/v1/external/events", key, body).await.ok();
        made["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a delivery has that status, and reads it.
    pub async fn delivery_is(&self, key: &str, id: &str, status: &str) -> Value {
        let path = format!("/v1/external/deliveries/{id}");
        eventually(&format!("{id} is {status}"), || async {
            let delivery = self.get(&path, key).await.ok();
            (delivery["status"] == status).then_some(delivery)
        })
        .await
    }

    /// The deliveries of an event.
    pub async fn deliveries_of(&self, key: &str, event: &str) -> Vec<Value> {
        let path = format!("/v1/external/events/{event}/deliveries");
        let list = self.get(&path, key).await.ok();
        list["deliveries"].as_array().unwrap().clone()
    }
}

/// Checks that every node has confirmed a change of switches: how many there are.
#[track_caller]
pub fn confirmed(answer: &Value) -> usize {
    let nodes = answer["nodes"].as_array().unwrap();
    assert!(!nodes.is_empty(), "{answer}");
    assert!(nodes.iter().all(|n| n["confirmed"] == true), "{answer}");
    nodes.len()
}

/// An HTTP client.
#[derive(Clone)]
pub struct Http(Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>);

impl Http {
    pub fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let answer = async {
            let (parts, body) = self.0.request(request).await.unwrap().into_parts();
            Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: body.collect().await.unwrap().to_bytes(),
            }
        };
        tokio::time::timeout(PATIENCE, answer)
            .await
            .expect("an answer in time")
    }
}

/// An answer over REST.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{}: {e}: {:?}", self.status, self.body))
    }

    /// A header; empty where it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The body of a success.
    pub fn ok(self) -> Value {
        assert!(
            (200..300).contains(&self.status),
            "{}: {}",
            self.status,
            self.text()
        );
        self.json()
    }

    /// A problem's reason; its form is checked.
    pub fn code(&self) -> String {
        self.problem()["code"].as_str().unwrap().to_owned()
    }

    /// A problem (RFC 9457) that has all that every problem has.
    pub fn problem(&self) -> Value {
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{}: {:?}",
            self.status,
            self.body
        );
        let problem = self.json();
        for member in ["type", "title", "code", "detail", "request_id", "hint"] {
            let text = problem[member].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "no {member}: {problem}");
        }
        assert_eq!(problem["status"], self.status);
        assert_eq!(problem["request_id"], self.header("x-request-id"));
        for error in problem["errors"].as_array().into_iter().flatten() {
            assert!(error["field"].is_string(), "{problem}");
            assert!(error["message"].is_string(), "{problem}");
        }
        problem
    }

    /// Checks that it is this refusal.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) -> Value {
        let problem = self.problem();
        assert_eq!(
            (self.status, problem["code"].as_str().unwrap()),
            (status, code),
            "{problem}"
        );
        problem
    }
}

/// Adds a key to calls.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> tonic::Result<tonic::Request<()>> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A channel with a key.
pub type Authorized = InterceptedService<Channel, Bearer>;

/// The generated clients, all with one key.
#[derive(Clone)]
pub struct Grpc {
    pub keys: KeyServiceClient<Authorized>,
    pub tenants: TenantServiceClient<Authorized>,
    pub subscriptions: SubscriptionServiceClient<Authorized>,
    pub events: EventServiceClient<Authorized>,
    pub deliveries: DeliveryServiceClient<Authorized>,
    pub letters: DeadLetterServiceClient<Authorized>,
    pub flags: FlagServiceClient<Authorized>,
    pub metrics: MetricsServiceClient<Authorized>,
    pub workers: WorkerServiceClient<Authorized>,
}

impl Grpc {
    pub fn new(channel: Channel, key: &str) -> Self {
        let value = (!key.is_empty()).then(|| format!("Bearer {key}").parse().unwrap());
        let channel = InterceptedService::new(channel, Bearer(value));
        Self {
            keys: KeyServiceClient::new(channel.clone()),
            tenants: TenantServiceClient::new(channel.clone()),
            subscriptions: SubscriptionServiceClient::new(channel.clone()),
            events: EventServiceClient::new(channel.clone()),
            deliveries: DeliveryServiceClient::new(channel.clone()),
            letters: DeadLetterServiceClient::new(channel.clone()),
            flags: FlagServiceClient::new(channel.clone()),
            metrics: MetricsServiceClient::new(channel.clone()),
            workers: WorkerServiceClient::new(channel),
        }
    }
}

/// The reason that a gRPC refusal carries; it must be one of ours.
#[track_caller]
pub fn reason(status: &tonic::Status) -> String {
    use tonic_types::StatusExt as _;
    let details = status.get_error_details();
    let info = details
        .error_info()
        .unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "onering");
    info.reason.clone()
}

/// The fields that a gRPC refusal names.
pub fn fields(status: &tonic::Status) -> Vec<String> {
    use tonic_types::StatusExt as _;
    let details = status.get_error_details();
    let named = details.bad_request().map(|b| &b.field_violations);
    let named = named.into_iter().flatten();
    named.map(|v| v.field.clone()).collect()
}
