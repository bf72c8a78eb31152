//! Whatever comes in, what comes out is documented.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::DynamicMessage;

use super::{MAX_BODY, REST, service};
use crate::{
    error::{from_code, meaning},
    proto::v1::{Event, Key, PublishEventRequest, Subscription, publish_event_request::Payload},
    rest::{json, transcode},
};

/// Makes a call and checks that its answer is one that E2 lists, and no 5xx.
fn documented(method: &str, path: &str, body: &[u8]) -> Result<(), TestCaseError> {
    let Ok(request) = http::Request::builder()
        .method(method)
        .uri(path)
        .body(Full::new(Bytes::copy_from_slice(body)))
    else {
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let (status, text) = runtime.block_on(async {
        let response = transcode::answer(&REST, service::routes(), request, MAX_BODY).await;
        let status = response.status().as_u16();
        (
            status,
            response.into_body().collect().await.unwrap().to_bytes(),
        )
    });
    if status == 204 || method == "HEAD" {
        prop_assert!(text.is_empty());
        return Ok(());
    }
    // Raw data may hold what `Value` can't, such as 1e400.
    let answer: Result<&serde_json::value::RawValue, _> = serde_json::from_slice(&text);
    prop_assert!(answer.is_ok(), "{:?}", text);
    if status >= 300 {
        let answer: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let reason = answer["code"].as_str().and_then(from_code);
        prop_assert!(
            reason.is_some_and(|r| meaning(r).http == status),
            "{}",
            answer
        );
        prop_assert!(status < 500, "{}", answer);
    }
    Ok(())
}

const KEYS: &str = "/v1/admin/external/keys";
const GOOD: [(&str, &str, &str); 5] = [
    (
        "POST",
        KEYS,
        r#"{"name":"a","scopes":["read:rings"],"canary":true,"metadata":{"a":"b"},"expire_time":"2026-01-01T00:00:00Z","rate_limit_per_hour":100}"#,
    ),
    (
        "PATCH",
        "/v1/admin/external/keys/key_1",
        r#"{"tier":"pro","kind":"ADMIN","expire_time":null}"#,
    ),
    (
        "POST",
        "/v1/external/events",
        r#"{"event_type":"a.b","data":{"a":[1,2.50,null,"\u00e9"]},"tenant":"t"}"#,
    ),
    (
        "POST",
        "/v1/external/events/batch",
        r#"{"events":[{"event_type":"a","data":1e400},{"data":[{}]}]}"#,
    ),
    (
        "GET",
        "/v1/admin/external/keys?page_size=5&tenant=a%20b",
        "",
    ),
];

fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i128>().prop_map(|i| i.to_string()),
        any::<f64>().prop_map(|f| format!("{f:e}")),
        ".{0,6}".prop_map(|s| serde_json::to_string(&s).unwrap()),
    ];
    leaf.prop_recursive(6, 64, 5, |inner| {
        let key = prop_oneof![
            prop::sample::select(vec![
                "name",
                "scopes",
                "metadata",
                "expire_time",
                "kind",
                "event_type",
                "data",
                "events",
                "key_id",
                "canary",
                "rate_limit_per_hour",
                "idempotency_key",
            ])
            .prop_map(str::to_owned),
            "[a-z_\u{e9}]{0,5}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|l| format!("[{}]", l.join(","))),
            prop::collection::vec((key, inner), 0..6).prop_map(|l| {
                let l: Vec<String> = l.iter().map(|(k, v)| format!("{k:?}:{v}")).collect();
                format!("{{{}}}", l.join(","))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    // E3
    #[test]
    fn any_bytes(
        target in prop::sample::select(GOOD.to_vec()),
        body in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        documented(target.0, target.1, &body)?;
    }

    // E3
    #[test]
    fn any_json(target in prop::sample::select(GOOD.to_vec()), body in json_text()) {
        documented(target.0, target.1, body.as_bytes())?;
    }

    // E3
    #[test]
    fn good_json_with_a_byte_changed(
        target in prop::sample::select(GOOD.to_vec()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..4),
    ) {
        let mut body = target.2.as_bytes().to_vec();
        for (at, byte, how) in changes {
            if body.is_empty() {
                break;
            }
            let at = at.index(body.len());
            match how {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => { body.remove(at); }
            }
        }
        documented(target.0, target.1, &body)?;
    }

    // E3
    #[test]
    fn any_path_and_method(
        method in prop::sample::select(vec!["GET", "HEAD", "OPTIONS", "POST", "PUT", "BREW", "DELETE", "PATCH"]),
        path in prop_oneof![
            "(/[a-z{}%0-9:.]{0,6}){0,6}",
            "/v1/external/(events|me|webhooks|deliveries)(/[a-z%0-9]{0,4}){0,3}",
            "/v1/admin/external/keys(/[%a-f0-9]{0,4}){0,2}",
        ],
        query in "(\\?[a-z_=&%+0-9]{0,12})?",
    ) {
        documented(method, &format!("{path}{query}"), b"")?;
    }

    #[test]
    fn messages_survive_json(
        text in ".{0,12}",
        list in prop::collection::vec(".{0,6}", 0..4),
        map in prop::collection::hash_map(".{0,6}", ".{0,6}", 0..4),
        number in prop::option::of(any::<i64>()),
        small in any::<i32>(),
        seconds in -62_135_596_800_i64..=253_402_300_799,
        nanos in 0..1_000_000_000_i32,
        value in 0..5_i32,
    ) {
        let time = service::time(seconds, nanos);
        survives("Key", &Key {
            name: text.clone(), scopes: list.clone(), metadata: map.clone(), rate_limit_per_hour: number,
            status: value, canary_enabled: small > 0, expire_time: time, ..Key::default()
        })?;
        survives("Subscription", &Subscription {
            url: text, event_types: list, headers: map, timeout_seconds: small,
            max_age_seconds: number.unwrap_or_default(), enabled: number.map(|n| n > 0),
            signature_scheme: value.min(3), payload_format: value.min(3), update_time: time, ..Subscription::default()
        })?;
    }

    // D5
    #[test]
    fn raw_data_survives(data in json_text(), padding in "[ \n\t]{0,3}") {
        let data = Bytes::from(data);
        let event = Event { data_json: data.clone(), ..Event::default() };
        survives("Event", &event)?;
        let text = [b"{\"data\":", padding.as_bytes(), &data, padding.as_bytes(), b"}"].concat();
        let id = REST.schema.id("onering.v1.PublishEventRequest").unwrap();
        let message = json::read(&REST.schema, id, &text).unwrap();
        let typed = PublishEventRequest::decode(message.encode_to_vec().as_slice()).unwrap();
        prop_assert_eq!(typed.payload, Some(Payload::DataJson(data)));
    }
}

fn survives<M: prost::Message + Default + PartialEq + std::fmt::Debug>(
    name: &str,
    message: &M,
) -> Result<(), TestCaseError> {
    let id = REST.schema.id(&format!("onering.v1.{name}")).unwrap();
    let descriptor = REST.schema.message(id).descriptor.clone();
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).unwrap();
    let text = json::write(&REST.schema, id, &dynamic).unwrap();
    let back = json::read(&REST.schema, id, &text).unwrap();
    let back = M::decode(back.encode_to_vec().as_slice()).unwrap();
    prop_assert_eq!(&back, message);
    Ok(())
}
