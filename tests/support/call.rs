//! One call as data, sent over gRPC and over REST: for tables of calls.

use bytes::{Buf as _, BufMut as _, Bytes};
use onering::rest::{Rest, json, routes::Body};
use prost::Message as _;
use serde_json::Value;
use tonic::{
    Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
};

use super::app::{Answer, TestApp};

/// A call of one of our methods.
#[derive(Debug, Clone)]
pub struct Call {
    /// Such as `KeyService/GetKey`.
    pub rpc: &'static str,
    /// The whole request, as JSON.
    pub request: Value,
}

pub fn call(rpc: &'static str, request: Value) -> Call {
    Call { rpc, request }
}

/// Every method of the package, as [`Call::rpc`] names it.
pub fn every_rpc() -> Vec<String> {
    let pool = prost_reflect::DescriptorPool::decode(onering::proto::DESCRIPTORS).unwrap();
    let ours = pool.services().filter(|s| s.package_name() == "onering.v1");
    ours.flat_map(|s| {
        let methods: Vec<_> = s.methods().collect();
        methods
            .into_iter()
            .map(move |m| format!("{}/{}", s.name(), m.name()))
    })
    .collect()
}

impl Call {
    /// Whether REST has a route for it: it has none for a stream.
    pub fn is_on_rest(&self) -> bool {
        let path = format!("/onering.v1.{}", self.rpc);
        let rest = Rest::new().unwrap();
        rest.routes.iter().any(|r| r.grpc_path == *path)
    }

    /// Sends it over gRPC: the answer's bytes and metadata.
    pub async fn grpc(&self, app: &TestApp, key: &str) -> Result<(Bytes, MetadataMap), Status> {
        let rest = Rest::new().unwrap();
        let path = format!("/onering.v1.{}", self.rpc);
        let (service, method) = self.rpc.split_once('/').unwrap();
        let service = format!("onering.v1.{service}");
        let found = rest.schema.pool().get_service_by_name(&service).unwrap();
        let method = found.methods().find(|m| m.name() == method);
        let input = method.unwrap_or_else(|| panic!("no {}", self.rpc)).input();
        let input = rest.schema.id(input.full_name()).unwrap();
        let message = json::read(&rest.schema, input, self.request.to_string().as_bytes()).unwrap();
        unary(app, &path, key, message.encode_to_vec().into()).await
    }

    /// Sends it over REST, by the route whose variables it sets.
    pub async fn rest(&self, app: &TestApp, key: &str) -> Answer {
        let rest = Rest::new().unwrap();
        let request = self.request.as_object().unwrap();
        let routes = rest
            .routes
            .iter()
            .filter(|r| r.grpc_path == *format!("/onering.v1.{}", self.rpc));
        for route in routes {
            let fields = &rest.schema.message(route.input).fields;
            let mut left = request.clone();
            let mut path = route.template.clone();
            let named = route.variables.iter().all(|i| {
                let name = &fields[*i].name;
                let Some(Value::String(value)) = left.remove(name) else {
                    return false;
                };
                path = path.replace(&format!("{{{name}}}"), &value);
                true
            });
            if !named {
                continue;
            }
            let body = match route.body {
                Body::Whole => Value::Object(left),
                Body::Field(i) => {
                    let body = left.remove(&fields[i].name).unwrap_or_default();
                    path.push_str(&query(&left));
                    body
                }
                Body::None => {
                    path.push_str(&query(&left));
                    Value::Null
                }
            };
            return app.rest(route.method.as_str(), &path, key, &body).await;
        }
        panic!("no route for {self:?}")
    }
}

/// What of a request is neither in the path nor in the body.
fn query(left: &serde_json::Map<String, Value>) -> String {
    let pairs = left.iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    });
    match pairs.collect::<Vec<_>>().join("&") {
        none if none.is_empty() => none,
        pairs => format!("?{pairs}"),
    }
}

/// Sends the bytes of a request message.
pub async fn unary(
    app: &TestApp,
    path: &str,
    key: &str,
    message: Bytes,
) -> Result<(Bytes, MetadataMap), Status> {
    let mut request = Request::new(message);
    if !key.is_empty() {
        let value = format!("Bearer {key}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let mut grpc = tonic::client::Grpc::new(app.channel());
    grpc.ready().await.unwrap();
    let path = path.parse().unwrap();
    let response = grpc.unary(request, path, Raw).await?;
    let metadata = response.metadata().clone();
    Ok((response.into_inner(), metadata))
}

/// Messages as their bytes.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
