use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::domain::{
    event,
    id::{EventId, Part, TenantId},
    subscription::PayloadFormat,
};

const TIME: i64 = 1_700_000_000_000_001;

fn read(text: &str) -> Result<CloudEvent, Refused> {
    structured(&Bytes::copy_from_slice(text.as_bytes()))
}

fn with(members: &str) -> Result<CloudEvent, Refused> {
    read(&format!(
        r#"{{"specversion":"1.0","id":"1","source":"/a","type":"a.b"{members}}}"#
    ))
}

fn headers(
    given: &'static [(&'static str, &'static str)],
) -> impl Fn(&'static str) -> Result<Option<&'static str>, &'static str> {
    move |name| Ok(given.iter().find(|(n, _)| *n == name).map(|(_, v)| *v))
}

fn named(refused: Result<CloudEvent, Refused>) -> Vec<&'static str> {
    match refused {
        Err(Refused::Invalid(faults)) => faults.into_iter().map(|(name, _)| name).collect(),
        other => panic!("{other:?}"),
    }
}

fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("1e400".to_owned()),
        Just("-0.10".to_owned()),
        Just("123456789012345678901234567890".to_owned()),
        any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
        Just(r#""\",\"data\":1""#.to_owned()),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        (proptest::collection::vec(inner, 0..4), "[ \n\t]{0,2}").prop_map(|(items, space)| {
            format!(
                r#"{{"b":[{}],{space}"a" : {space}1.0}}"#,
                items.join(&format!(" ,{space}"))
            )
        })
    })
}

proptest! {
    // D5: in both modes, and on the way out in all forms, data is the
    // publisher's bytes.
    #[test]
    fn data_survives_byte_for_byte(data in json_text(), space in "[ \r\n\t]{0,2}") {
        let came = with(&format!(r#","data":{space}{data}{space},"subject":"x""#)).unwrap();
        prop_assert_eq!(&came.data[..], data.as_bytes());
        let got = headers(&[
            ("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/a"), ("ce-type", "a.b"),
        ]);
        let body = Bytes::from(format!("{space}{data}{space}"));
        let came = binary(got, body.clone()).unwrap();
        prop_assert_eq!(&came.data, &body);

        let id = EventId::new(TIME, Part::new(3));
        let stored = event::body(id, "a.b", TIME, &came.data);
        let tenant = TenantId::DEFAULT;
        let sent = message(PayloadFormat::CloudEventsBinary, tenant, &stored, None).unwrap();
        prop_assert_eq!(&sent.body, &body);
        let sent = message(PayloadFormat::CloudEventsStructured, tenant, &stored, None).unwrap();
        let again = structured(&sent.body).unwrap();
        prop_assert_eq!(&again.data[..], data.as_bytes());
        let sent = message(PayloadFormat::Standard, tenant, &stored, None).unwrap();
        prop_assert_eq!(sent.body, stored);
    }

    // E3
    #[test]
    fn any_text_is_answered(body in any::<Vec<u8>>(), value in any::<String>()) {
        let _ = structured(&body.clone().into());
        let _ = with(&value);
        let _ = binary(|_| Ok(Some(&value)), body.into());
    }
}

// D5: the wire format, in both modes.
#[test]
fn what_is_sent() {
    let id = EventId::new(TIME, Part::new(3));
    let tenant = TenantId::DEFAULT;
    let stored = event::body(id, "invoice.paid", TIME, br#"{ "n":1.0 }"#);
    let sent = message(PayloadFormat::CloudEventsStructured, tenant, &stored, None).unwrap();
    assert_eq!(
        std::str::from_utf8(&sent.body).unwrap(),
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"urn:onering:tenant:{tenant}","type":"invoice.paid","time":"2023-11-14T22:13:20.000001Z","datacontenttype":"application/json","data":{{ "n":1.0 }}}}"#
        )
    );
    assert_eq!(sent.content_type, "application/cloudevents+json");
    assert_eq!(sent.headers, []);
    let sent = message(PayloadFormat::CloudEventsBinary, tenant, &stored, None).unwrap();
    assert_eq!(&sent.body[..], br#"{ "n":1.0 }"#);
    assert_eq!(sent.content_type, "application/json");
    let wanted = [
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", id.to_string()),
        ("ce-source", format!("urn:onering:tenant:{tenant}")),
        ("ce-type", "invoice.paid".to_owned()),
        ("ce-time", "2023-11-14T22:13:20.000001Z".to_owned()),
    ];
    assert_eq!(sent.headers, wanted);
    let stray = Bytes::from_static(b"{}");
    assert_eq!(
        message(PayloadFormat::CloudEventsBinary, tenant, &stray, None),
        None
    );
}

// D5: no data and `null` are the same; extensions are taken.
#[test]
fn what_may_be_missing_or_there_beside() {
    for members in [
        "",
        r#","data":null"#,
        r#","data":null,"data_base64":null,"datacontenttype":null"#,
        r#","comexample":{"x":[1]},"time":"yesterday","datacontenttype":"application/JSON; charset=utf-8""#,
        r#","datacontenttype":"application/vnd.x+json""#,
    ] {
        let came = with(members).unwrap();
        assert_eq!(
            (&came.data[..], &*came.event_type),
            (&b"null"[..], "a.b"),
            "{members}"
        );
    }
    let got = headers(&[
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/a"),
        ("ce-type", "a.b"),
    ]);
    assert_eq!(binary(got, Bytes::new()).unwrap(), with("").unwrap());
}

// D5: each attribute that is wrong is named as it was written.
#[test]
fn attributes_that_are_wrong_are_named() {
    assert_eq!(named(read("{}")), ["specversion", "id", "source", "type"]);
    assert_eq!(
        named(read(
            r#"{"specversion":"0.3","id":"a\u0000b","source":7,"type":"a b"}"#
        )),
        ["source", "specversion", "id", "type"]
    );
    for bad in ["", "[]", "[\"1.0\",\"1\",\"/a\",\"a.b\"]", "{", "null"] {
        assert_eq!(named(read(bad)), ["body"], "{bad}");
    }
    assert_eq!(
        named(with(r#","id":"2""#)),
        ["body"],
        "a member that stands twice"
    );
    assert_eq!(named(with(r#","datacontenttype":1"#)), ["datacontenttype"]);
    assert_eq!(
        named(binary(headers(&[]), Bytes::new())),
        ["ce-specversion", "ce-id", "ce-source", "ce-type"]
    );
    let got = headers(&[
        ("ce-specversion", "1.1"),
        ("ce-id", "%f"),
        ("ce-source", "%FF"),
        ("ce-type", "a..b"),
    ]);
    assert_eq!(
        named(binary(got, Bytes::new())),
        ["ce-id", "ce-source", "ce-specversion", "ce-type"]
    );
}

// D5: only JSON.
#[test]
fn data_in_another_form_is_not_taken() {
    for members in [
        r#","data_base64":"AA==""#,
        r#","datacontenttype":"text/plain","data":"x""#,
        r#","datacontenttype":"json""#,
        r#","datacontenttype":"""#,
    ] {
        assert!(
            matches!(with(members), Err(Refused::Unsupported(_))),
            "{members}"
        );
    }
}

// D5: source and id together identify an event, in either mode.
#[test]
fn a_repetition_is_told_by_source_and_id() {
    let key = |source: &str, id: &str| {
        let text = format!(r#"{{"specversion":"1.0","id":"{id}","source":"{source}","type":"x"}}"#);
        read(&text).unwrap().idempotency_key
    };
    assert_eq!(key("/a", "1").len(), 67);
    assert_eq!(
        key("/a", "1"),
        "ce:4049443298631c4b635063cba78c66ea485f1a4a9dac334d91fc57dbf2eb87a3"
    );
    assert_ne!(key("/a", "11"), key("/a1", "1"));
}

// HTTP protocol binding 3.1.3.2
#[test]
fn headers_are_decoded() {
    for (value, source) in [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        (r#""a \"b\\ %25""#, r#"a "b\ %"#),
        ("/a?b=c", "/a?b=c"),
    ] {
        let given: &'static [(&str, &str)] = Box::leak(Box::new([
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", value),
            ("ce-type", "x"),
        ]));
        let source = serde_json::to_string(source).unwrap();
        let text = format!(r#"{{"specversion":"1.0","id":"1","source":{source},"type":"x"}}"#);
        assert_eq!(binary(headers(given), Bytes::new()), read(&text), "{value}");
    }
}
