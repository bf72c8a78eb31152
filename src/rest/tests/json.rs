//! JSON to messages and back.

use prost_reflect::DynamicMessage;

use super::{REST, errors};
use crate::rest::{json, problem, schema::MessageId};

fn id(name: &str) -> MessageId {
    let name = if name.contains('.') {
        name.to_owned()
    } else {
        format!("onering.v1.{name}")
    };
    REST.schema.id(&name).unwrap()
}

fn read(name: &str, text: &str) -> Result<DynamicMessage, Vec<String>> {
    json::read(&REST.schema, id(name), text.as_bytes()).map_err(|e| {
        let body = problem::body(&e, None);
        errors(&serde_json::from_slice(&body).unwrap())
    })
}

/// Reads and writes again.
fn round(name: &str, text: &str) -> String {
    let message = read(name, text).unwrap();
    let out = json::write(&REST.schema, id(name), &message).unwrap();
    String::from_utf8(out.to_vec()).unwrap()
}

// E2, E3
#[test]
fn all_that_is_wrong_is_named_at_once() {
    let faults = read(
        "Subscription",
        r#"{"urll":1,"url":2,"event_types":["a",1,null],"headers":{"x":1,"x":"a","x":"b"},
            "enabled":"true","signature_scheme":"V9","retry_schedule":{"max_attempts":1.5},
            "max_age_seconds":"9223372036854775808","url":"b","createTime":null,
            "create_time":"2026-01-01"}"#,
    )
    .unwrap_err();
    let names = "id, tenant, url, event_types, headers, description, enabled, signature_scheme, \
        retry_schedule, timeout_seconds, max_in_flight, max_age_seconds, metadata, \
        disabled_reason, disable_time, public_key, previous_secret_expire_time, create_time, \
        update_time, payload_format, client_certificate, client_certificate_info, breaker, \
        rate_limit_per_second, ordering, kind, expire_after_seconds, expire_time, filter";
    assert_eq!(
        faults,
        [
            &format!("urll: is not a field; there are {names}"),
            "url: must be a string",
            "event_types[1]: must be a string",
            "event_types[2]: must be a string",
            "headers[\"x\"]: must be a string",
            "headers[\"x\"]: stands here more than once",
            "enabled: must be true or false",
            "signature_scheme: must be one of V1, PLAIN, ED25519",
            "retry_schedule.max_attempts: must be an integer from -2147483648 to 2147483647",
            "max_age_seconds: must be an integer from -9223372036854775808 to 9223372036854775807",
            "url: stands here more than once",
            &format!("createTime: is not a field; there are {names}"),
            "create_time: must be a time such as 2026-01-31T12:00:00Z (RFC 3339)",
        ]
    );
    let many = format!(
        "{{{}}}",
        (0..50)
            .map(|i| format!("\"x{i}\":0"))
            .collect::<Vec<_>>()
            .join(",")
    );
    assert_eq!(read("Key", &many).unwrap_err().len(), 20);
}

#[test]
fn what_is_not_set_is_left_out_and_what_is_empty_is_written() {
    assert_eq!(
        round(
            "Delivery",
            r#"{"status":"DELIVERY_STATUS_DEAD","attempt_count":null}"#
        ),
        r#"{"id":"","tenant":"","event_id":"","event_type":"","subscription_id":"","status":"DEAD","attempt_count":0,"response_status":0,"reason":"","replay_id":""}"#
    );
    assert_eq!(
        round("RetrySchedule", r#"{"preset":"UNSPECIFIED"}"#),
        r#"{"max_attempts":0,"backoff_seconds":[]}"#
    );
}

#[test]
fn numbers_are_taken_in_all_their_forms() {
    for (text, value) in [("7", 7), ("\"7\"", 7), ("7.0", 7), ("7e2", 700), ("-0", 0)] {
        let text = format!("{{\"overlap_seconds\":{text}}}");
        let message = read("RotateKeyRequest", &text).unwrap();
        let field = message.get_field_by_name("overlap_seconds").unwrap();
        assert_eq!(field.as_i64(), Some(value), "{text}");
    }
    for text in [
        "7.5", "1e99", "\"+7\"", "\"\"", "\" 7\"", "true", "[]", "{}", "\"0x7\"",
    ] {
        let text = format!("{{\"overlap_seconds\":{text}}}");
        assert_eq!(
            read("RotateKeyRequest", &text).unwrap_err().len(),
            1,
            "{text}"
        );
    }
}

// E2
#[test]
fn enums_are_never_unknown() {
    for bad in [
        "\"dead\"",
        "\"NOPE\"",
        "6",
        "\"\"",
        "[]",
        "\"DELIVERY_STATUS_\"",
    ] {
        let faults = read("Delivery", &format!("{{\"status\":{bad}}}")).unwrap_err();
        assert!(
            faults[0].starts_with("status: must be one of PENDING, SENDING"),
            "{bad}"
        );
    }
}

#[test]
fn a_oneof_has_one_member() {
    let faults = read("PublishEventResult", r#"{"accepted":{},"error":{}}"#).unwrap_err();
    assert_eq!(faults, ["error: can't be set together with `accepted`"]);
    let one = round(
        "PublishEventResult",
        r#"{"accepted":null,"error":{"reason":"a"}}"#,
    );
    assert_eq!(one, r#"{"error":{"reason":"a","message":""}}"#);
}

#[test]
fn times_are_rfc_3339() {
    for (text, written) in [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        (
            "2026-01-31t12:00:00.123456+05:30",
            "2026-01-31T06:30:00.123456Z",
        ),
        (
            "1969-12-31T23:59:59.999999999z",
            "1969-12-31T23:59:59.999999999Z",
        ),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
    ] {
        assert_eq!(
            round("google.protobuf.Timestamp", &format!("{text:?}")),
            format!("{written:?}")
        );
    }
    for bad in [
        "2026-01-31 12:00:00Z",
        "2026-01-31T12:00:00",
        "20260131T120000Z",
        "",
        "é",
        "2026-02-30T12:00:00Z",
        "2026-01-31T12:00Z",
        "2026-01-31T12:00:00,5Z",
        "2026-01-31T12:00:00Z[UTC]",
        "0000-12-31T23:59:59Z",
        "1",
        "+002026-01-31T12:00:00Z",
    ] {
        assert!(
            read("google.protobuf.Timestamp", &format!("{bad:?}")).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn masks_and_free_values_have_their_forms() {
    for (name, text) in [
        ("FieldMask", r#""name,expire_time""#),
        ("Value", r#"{"a":[null,true,1.5,"x",{}]}"#),
        ("Value", "null"),
        ("ListValue", "[[],{}]"),
        ("Struct", "{}"),
    ] {
        assert_eq!(round(&format!("google.protobuf.{name}"), text), text);
    }
    for (name, text) in [
        ("FieldMask", "[]"),
        ("Value", "1e999"),
        ("Value", r#"{"a":{"b":1,"b":2}}"#),
        ("Struct", "[]"),
        ("ListValue", "{}"),
    ] {
        assert!(
            read(&format!("google.protobuf.{name}"), text).is_err(),
            "{text}"
        );
    }
}

// E3
#[test]
fn depth_is_limited_without_recursion() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nest = |depth| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        assert!(read("google.protobuf.Value", &nest(64)).is_ok());
        let faults = read("google.protobuf.Value", &nest(65)).unwrap_err();
        assert_eq!(
            faults,
            ["body: must not nest arrays and objects more than 64 deep"]
        );
        assert!(read("google.protobuf.Value", &nest(200_000)).is_err());
    }
    let quoted = format!("\"{}\\\"{}\"", "[".repeat(99), "{".repeat(99));
    assert!(read("google.protobuf.Value", &quoted).is_ok());
}

// A typo may be a secret, or a megabyte.
#[test]
fn errors_do_not_repeat_values() {
    let long = "a".repeat(1000);
    let faults = read("Key", &format!(r#"{{"{long}":1,"kind":"{long}"}}"#)).unwrap_err();
    assert!(
        faults.iter().all(|f| f.matches('a').count() < 120),
        "{faults:?}"
    );
}
