//! One REST call: the gRPC call that it stands for, and its answer in JSON.

use std::{convert::Infallible, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use prost::Message as _;
use prost_reflect::DynamicMessage;
use tower::ServiceExt as _;

use super::{
    RequestId, Rest, json, problem, request,
    routes::{Body, Found, Route},
};
use crate::error::{Error, Reason, Violation};

/// The answer to a REST call.
pub type Response = http::Response<Full<Bytes>>;

/// How long a client may take to send a body.
const BODY: Duration = Duration::from_secs(30);

/// A gRPC frame's head: one byte of flags, four of length.
const FRAME_HEAD: usize = 5;

/// Headers of one connection or one encoding: not those of the gRPC call.
const NOT_FORWARDED: [HeaderName; 15] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::DATE,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// A refusal, and the headers that go with it.
struct Refused {
    error: Error,
    headers: Box<HeaderMap>,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self {
            error,
            headers: Box::default(),
        }
    }
}

/// Answers a REST call by the gRPC service.
///
/// `max_body` is in bytes; what is longer is refused without being kept. The
/// request's headers and extensions go along; headers that the handler sets as
/// metadata come back. Never fails: what goes wrong is a problem+json.
pub async fn answer<S, B>(
    rest: &Rest,
    grpc: S,
    request: http::Request<B>,
    max_body: usize,
) -> Response
where
    S: tower::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
        >,
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let id = request.extensions().get::<RequestId>().cloned();
    let id = id.as_ref().map(|id| id.0.as_str());
    let head = request.method() == Method::HEAD;
    let mut response = told(call(rest, grpc, request, max_body).await, id);
    problem::set_request_id(response.headers_mut(), id);
    if head {
        without_body(&mut response);
    }
    response
}

/// Answers a method that a path does not take: 405, or for OPTIONS what there is.
#[must_use]
pub fn wrong_method(method: &Method, allow: &str, id: &str) -> Response {
    told(other_method(method, allow), Some(id))
}

fn told(result: Result<Response, Refused>, id: Option<&str>) -> Response {
    result.unwrap_or_else(|refused| {
        let mut response = problem::response(&refused.error, id);
        for (name, value) in refused.headers.iter() {
            if !response.headers().contains_key(name) {
                response.headers_mut().append(name, value.clone());
            }
        }
        response
    })
}

/// A JSON answer; `body` is written already.
#[must_use]
pub fn json_response(status: StatusCode, body: Bytes, mut headers: HeaderMap) -> Response {
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    // Answers are about state, and some hold a secret.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let mut response = http::Response::new(Full::new(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Takes the body away and leaves its length, as HEAD is answered.
fn without_body(response: &mut Response) {
    use http_body::Body as _;
    let length = response.body().size_hint().exact().unwrap_or_default();
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, length.into());
    *response.body_mut() = Full::default();
}

async fn call<S, B>(
    rest: &Rest,
    grpc: S,
    request: http::Request<B>,
    max_body: usize,
) -> Result<Response, Refused>
where
    S: tower::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
        >,
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let (route, variables) = match rest.routes.find(&parts.method, parts.uri.path()) {
        Found::Route(route, variables) => (route, variables),
        Found::Methods(allow) => return other_method(&parts.method, &allow),
        Found::Nothing => {
            return Err(Error::new(Reason::NotFound, "there is no such path").into());
        }
    };
    let body = collect(&parts.headers, body, max_body).await?;
    let message = request::build(
        &rest.schema,
        route,
        request::Parts {
            variables: &variables,
            query: parts.uri.query(),
            headers: &parts.headers,
            body: &body,
        },
    )?;

    let mut inner = http::Request::new(tonic::body::Body::new(Full::new(frame(&message)?)));
    *inner.method_mut() = Method::POST;
    *inner.uri_mut() = route.grpc_path.clone().into();
    *inner.version_mut() = http::Version::HTTP_2;
    *inner.headers_mut() = forwarded(parts.headers);
    *inner.extensions_mut() = parts.extensions;
    let outer = match grpc.oneshot(inner).await {
        Ok(outer) => outer,
        Err(never) => match never {},
    };
    read_answer(rest, route, outer).await
}

/// OPTIONS is told what there is, any other method that it is not among it.
fn other_method(method: &Method, allow: &str) -> Result<Response, Refused> {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(allow) {
        headers.insert(header::ALLOW, value);
    }
    if *method == Method::OPTIONS {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NO_CONTENT;
        *response.headers_mut() = headers;
        return Ok(response);
    }
    let detail = format!("this path takes {allow}");
    Err(Refused {
        error: Error::new(Reason::MethodNotAllowed, detail),
        headers: Box::new(headers),
    })
}

/// The whole body, unless it is longer than `limit` bytes, whatever its head
/// claims.
///
/// # Errors
/// `PAYLOAD_TOO_LARGE`; `INVALID_ARGUMENT` where the caller broke off, or took
/// longer than 30 seconds.
pub async fn collect<B>(headers: &HeaderMap, body: B, limit: usize) -> Result<Bytes, Error>
where
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    collect_within(BODY, headers, body, limit).await
}

/// The same, of a client that may take that long.
pub(super) async fn collect_within<B>(
    patience: Duration,
    headers: &HeaderMap,
    body: B,
    limit: usize,
) -> Result<Bytes, Error>
where
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || {
        let detail = format!("the body is larger than {limit} bytes");
        Error::new(Reason::PayloadTooLarge, detail)
    };
    let claimed = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let mut body = std::pin::pin!(body);
    if claimed.is_some_and(|claimed| usize::try_from(claimed).map_or(true, |c| c > limit)) {
        let waits = headers.contains_key(header::EXPECT);
        if !waits && claimed.is_some_and(|claimed| claimed <= DISCARD) {
            discard(patience, body).await;
        }
        return Err(too_large());
    }
    let collecting = Limited::new(body.as_mut(), limit).collect();
    let Ok(collected) = tokio::time::timeout(patience, collecting).await else {
        let detail = format!("did not arrive within {} seconds", patience.as_secs());
        return Err(Error::field("body", detail));
    };
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => {
            discard(patience, body).await;
            Err(too_large())
        }
        Err(_) => Err(Error::field("body", "could not be read to its end")),
    }
}

/// How much of a body that is refused is read all the same, in bytes: many
/// clients read no answer before they have sent all of it.
const DISCARD: u64 = 16 << 20;

/// Reads a body for that long at the most, and keeps nothing of it.
async fn discard<B: http_body::Body>(patience: Duration, mut body: std::pin::Pin<&mut B>) {
    use bytes::Buf as _;
    let reading = async {
        let mut read = 0;
        while read < DISCARD
            && let Some(Ok(frame)) = body.frame().await
        {
            read += frame.data_ref().map_or(0, |data| data.remaining() as u64);
        }
    };
    // The refusal is known either way.
    let _ = tokio::time::timeout(patience, reading).await;
}

fn frame(message: &DynamicMessage) -> Result<Bytes, Error> {
    let length = message.encoded_len();
    let head = u32::try_from(length)
        .map_err(|_| Error::new(Reason::PayloadTooLarge, "the request is too large"))?;
    let mut frame = BytesMut::with_capacity(FRAME_HEAD + length);
    frame.put_u8(0);
    frame.put_u32(head);
    message.encode(&mut frame).map_err(Error::internal)?;
    Ok(frame.freeze())
}

fn forwarded(mut headers: HeaderMap) -> HeaderMap {
    for name in &NOT_FORWARDED {
        headers.remove(name);
    }
    // Such as grpc-timeout or grpc-encoding: of a protocol that this caller
    // does not speak.
    let grpc: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("grpc-"))
        .cloned()
        .collect();
    for name in &grpc {
        headers.remove(name);
    }
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers
}

async fn read_answer(
    rest: &Rest,
    route: &Route,
    outer: http::Response<tonic::body::Body>,
) -> Result<Response, Refused> {
    let (parts, body) = outer.into_parts();
    let mut headers = HeaderMap::new();
    returned(&parts.headers, &mut headers);
    let collected = match body.collect().await {
        Ok(collected) => collected,
        Err(status) => {
            return Err(refused(rest, route, &status, headers));
        }
    };
    // An answer without a message has its status in the headers.
    let trailers = collected.trailers();
    if let Some(trailers) = trailers {
        returned(trailers, &mut headers);
    }
    let status = trailers
        .and_then(tonic::Status::from_header_map)
        .or_else(|| tonic::Status::from_header_map(&parts.headers))
        .unwrap_or_else(|| tonic::Status::internal("an answer without a status"));
    if status.code() != tonic::Code::Ok {
        return Err(refused(rest, route, &status, headers));
    }
    let bytes = collected.to_bytes();
    let body = write_answer(rest, route, &bytes)?;
    Ok(json_response(route.status, body, headers))
}

fn write_answer(rest: &Rest, route: &Route, frame: &[u8]) -> Result<Bytes, Error> {
    let output = rest.schema.message(route.output);
    let Some(([0, ..], message)) = frame.split_first_chunk::<FRAME_HEAD>() else {
        return Err(Error::internal("an answer that is no plain frame"));
    };
    let message =
        DynamicMessage::decode(output.descriptor.clone(), message).map_err(Error::internal)?;
    match route.response_body.and_then(|i| output.fields.get(i)) {
        Some(field) => json::write_field(&rest.schema, field, &message),
        None => json::write(&rest.schema, route.output, &message),
    }
}

/// Adds what handlers set as metadata; what belongs to gRPC stays behind.
fn returned(from: &HeaderMap, into: &mut HeaderMap) {
    for (name, value) in from {
        let text = name.as_str();
        if !text.starts_with("grpc-") && !text.ends_with("-bin") && !NOT_FORWARDED.contains(name) {
            into.append(name, value.clone());
        }
    }
}

/// The refusal of a gRPC call. Fields are named as the REST caller wrote them:
/// without the name of the request's field that is the body.
fn refused(rest: &Rest, route: &Route, status: &tonic::Status, headers: HeaderMap) -> Refused {
    let mut error = Error::from(status);
    let fields = &rest.schema.message(route.input).fields;
    if let Body::Field(index) = route.body
        && let Some(field) = fields.get(index)
    {
        let prefix = format!("{}.", field.name);
        let named = error.violations.iter().map(|v| Violation {
            field: v.field.strip_prefix(&prefix).unwrap_or(&v.field).to_owned(),
            message: v.message.clone(),
        });
        let named: Vec<Violation> = named.collect();
        // The detail of such an error repeats the fields.
        if error.detail == Error::fields(error.violations.clone()).detail {
            error.detail = Error::fields(named.clone()).detail;
        }
        error.violations = named;
    }
    Refused {
        error,
        headers: Box::new(headers),
    }
}
