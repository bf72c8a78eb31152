//! The short way answers as the long one does.

use bytes::Bytes;
use http::{HeaderMap, Method};
use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::DynamicMessage;

use super::{
    REST,
    service::{RAW, time},
};
use crate::{
    error::Error,
    proto::v1::{
        GetCallerResponse, PublishEventRequest, PublishEventResponse,
        publish_event_request::Payload,
    },
    rest::{hot, json, request, routes::Found},
};

/// What the transcoder would hand to the handler.
fn long_way(
    query: Option<&str>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<hot::PublishBody, Error> {
    let Found::Route(route, _) = REST.routes.find(&Method::POST, hot::PUBLISH) else {
        panic!("no route");
    };
    let parts = request::Parts {
        variables: &[],
        query,
        headers,
        body,
    };
    let message = request::build(&REST.schema, route, parts)?;
    let typed = PublishEventRequest::decode(message.encode_to_vec().as_slice()).unwrap();
    let set = |text: String| Some(text).filter(|t| !t.is_empty());
    Ok(hot::PublishBody {
        tenant: set(typed.tenant),
        event_type: typed.event_type,
        data: typed.payload.map(|payload| match payload {
            Payload::DataJson(text) => text,
            Payload::Data(_) => panic!("not over REST"),
        }),
        idempotency_key: set(typed.idempotency_key),
        ordering_key: set(typed.ordering_key),
        ..hot::PublishBody::default()
    })
}

fn same(query: Option<&str>, headers: &HeaderMap, body: &[u8]) -> Result<(), TestCaseError> {
    let body = Bytes::copy_from_slice(body);
    let short = hot::parse_publish(&REST, query, headers, &body);
    match (short, long_way(query, headers, &body)) {
        (Ok(short), Ok(long)) => prop_assert_eq!(short, long),
        (Err(short), Err(long)) => {
            prop_assert_eq!(short.to_string(), long.to_string());
            prop_assert_eq!(short.violations, long.violations);
        }
        (short, long) => prop_assert!(false, "{:?} and {:?}", short, long),
    }
    Ok(())
}

// D5
#[test]
fn data_is_a_slice_of_the_body() {
    let body = Bytes::from(format!(r#" {{"data": {RAW} , "event_type":"a\u002eb"}} "#));
    let publish = hot::parse_publish(&REST, None, &HeaderMap::new(), &body).unwrap();
    let data = publish.data.unwrap();
    assert_eq!(data, RAW);
    assert!(body.as_ptr_range().contains(&data.as_ptr()), "copied");
    assert_eq!(publish.event_type, "a.b");
}

// E3, D5
#[test]
fn chosen_bodies_are_read_alike() {
    let mut headers = HeaderMap::new();
    headers.insert("idempotency-key", "k".parse().unwrap());
    for body in [
        "",
        "{}",
        " ",
        "[]",
        "null",
        "1",
        "[\"t\",\"e\",1,\"k\"]",
        "{\"data\":null}",
        "{\"tenant\":null}",
        "{\"tenant\":null,\"tenant\":\"a\"}",
        "{\"tenant\":1}",
        "{\"data\":1,\"data\":2}",
        "{\"data_json\":\"\"}",
        "{\"event_type\":\"\\ud800\"}",
        "{\"data\":\"\\ud800\"}",
        "{\"ev\\u0065nt_type\":\"a\"}",
        "{\"idempotency_key\":\"\"}",
        "{\"idempotency_key\":null}",
        "{\"data\":{}}x",
        "{\"data\":01}",
        "{\"unknown\":1,\"tenant\":2}",
    ] {
        same(None, &headers, body.as_bytes()).unwrap();
        same(Some("a=1"), &headers, body.as_bytes()).unwrap();
        same(Some(""), &HeaderMap::new(), body.as_bytes()).unwrap();
    }
    for depth in [63, 64] {
        let data = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        same(None, &headers, format!("{{\"data\":{data}}}").as_bytes()).unwrap();
    }
    headers.append("idempotency-key", "l".parse().unwrap());
    same(None, &headers, b"{}").unwrap();
    headers.insert("content-type", "text/plain".parse().unwrap());
    same(None, &headers, b"{}").unwrap();
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("null".to_owned()),
        Just("\"\"".to_owned()),
        Just(RAW.to_owned()),
        "\"[a-z\\\\u0]{0,6}\"",
        "-?[0-9]{1,22}(\\.[0-9]{1,3})?",
        "[\\[\\]{}:,\"a1 ]{0,8}",
        (60_usize..70).prop_map(|d| format!("{}{}", "[".repeat(d), "]".repeat(d))),
    ]
}

proptest! {
    // E3, D5
    #[test]
    fn all_bodies_are_read_alike(
        entries in prop::collection::vec(
            (prop::sample::select(vec!["tenant", "event_type", "data", "idempotency_key", "data_json", "x"]), value()),
            0..5,
        ),
        header in prop::option::of("[ -~]{0,5}"),
    ) {
        let entries: Vec<String> = entries.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        let body = format!("{{{}}}", entries.join(" ,"));
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert("idempotency-key", header.parse().unwrap());
        }
        same(None, &headers, body.as_bytes())?;
    }

    #[test]
    fn answers_are_written_alike(
        id in ".{0,8}",
        event_type in ".{0,8}",
        seconds in prop::option::of(-70_000_000_000_i64..300_000_000_000),
        nanos in prop::sample::select(vec![0, 5_000_000, 5_000, 5]),
        count in any::<i32>(),
        scopes in prop::collection::vec(".{0,4}", 0..3),
        limit in prop::option::of(any::<i64>()),
        kind in 0..4_i32,
    ) {
        let create_time = seconds.and_then(|s| time(s, nanos));
        let publish = PublishEventResponse {
            id: id.clone(), event_type: event_type.clone(), create_time, delivery_count: count,
        };
        written_alike("PublishEventResponse", &publish, hot::write_publish_response(&publish))?;
        let caller = GetCallerResponse {
            key_id: id, tenant: event_type, kind, scopes, rate_limit_per_hour: limit,
            canary_enabled: count > 0, create_time, expire_time: create_time,
            ..GetCallerResponse::default()
        };
        written_alike("GetCallerResponse", &caller, hot::write_caller(&caller))?;
    }
}

fn written_alike(
    name: &str,
    message: &impl prost::Message,
    short: Result<Bytes, Error>,
) -> Result<(), TestCaseError> {
    let id = REST.schema.id(&format!("onering.v1.{name}")).unwrap();
    let descriptor = REST.schema.message(id).descriptor.clone();
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).unwrap();
    match (short, json::write(&REST.schema, id, &message)) {
        (Ok(short), Ok(long)) => prop_assert_eq!(short, long),
        (Err(_), Err(_)) => {}
        (short, long) => prop_assert!(false, "{:?} and {:?}", short, long),
    }
    Ok(())
}
