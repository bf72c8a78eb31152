//! A payload as JSON text.

use std::fmt::Write as _;

use bytes::Bytes;
use prost_types::{Value, value::Kind};

use crate::{
    proto::v1::publish_event_request::Payload,
    rest::json::{MAX_DEPTH, depth},
    rpc::check::Faults,
};

/// The payload's JSON text: as it was written, or made of a `Value`.
pub(super) fn text(payload: Option<Payload>, faults: &mut Faults) -> Bytes {
    match payload {
        Some(Payload::DataJson(text)) => {
            match check(&text) {
                Ok(()) => {}
                Err(why) => faults.add("data", why),
            }
            text
        }
        Some(Payload::Data(value)) => {
            let mut out = String::new();
            match write(&mut out, &value) {
                Ok(()) => {}
                Err(why) => faults.add("data", why),
            }
            out.into()
        }
        None => {
            faults.add("data", "is required");
            Bytes::new()
        }
    }
}

fn check(text: &[u8]) -> Result<(), String> {
    // Ignoring a string does not look at its encoding.
    let text = std::str::from_utf8(text).map_err(|_| "must be JSON in UTF-8".to_owned())?;
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map_err(|e| format!("must be JSON: {e}"))?;
    if depth(text.as_bytes()) > MAX_DEPTH {
        return Err(format!(
            "must not nest arrays and objects more than {MAX_DEPTH} deep"
        ));
    }
    Ok(())
}

/// How deep a `Value` can lie is limited where it is decoded.
fn write(out: &mut String, value: &Value) -> Result<(), &'static str> {
    match &value.kind {
        None => return Err("holds a value that is none, not even null"),
        Some(Kind::NullValue(_)) => out.push_str("null"),
        Some(Kind::BoolValue(b)) => out.push_str(if *b { "true" } else { "false" }),
        Some(Kind::NumberValue(n)) => write_number(out, *n)?,
        Some(Kind::StringValue(s)) => write_string(out, s),
        Some(Kind::ListValue(list)) => {
            out.push('[');
            for (i, value) in list.values.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(out, value)?;
            }
            out.push(']');
        }
        Some(Kind::StructValue(object)) => {
            out.push('{');
            for (i, (name, value)) in object.fields.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_string(out, name);
                out.push(':');
                write(out, value)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

/// As JavaScript does it: the shortest digits that read back as the same double,
/// whole numbers without a fraction, an exponent for the very large and small.
fn write_number(out: &mut String, n: f64) -> Result<(), &'static str> {
    if !n.is_finite() {
        return Err("holds a number that JSON has no form for");
    }
    let size = n.abs();
    let plain = size == 0.0 || (1e-6..1e21).contains(&size);
    // Writing to a String can't fail.
    let _ = if plain {
        write!(out, "{n}")
    } else {
        write!(out, "{n:e}")
    };
    Ok(())
}

fn write_string(out: &mut String, text: &str) {
    // Nor can a string fail to be JSON.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(payload: Option<Payload>) -> Option<Bytes> {
        let mut faults = Faults::default();
        let text = text(payload, &mut faults);
        match faults.done() {
            Ok(()) => Some(text),
            Err(e) => {
                assert_eq!(e.violations[0].field, "data");
                None
            }
        }
    }

    // D5: kept byte for byte.
    #[test]
    fn json_text_is_kept() {
        for good in [
            "{}",
            "null",
            " {\"b\": 1.0, \"a\":12345678901234567890123}\r\n",
            "[1e400]",
            "\"\\u00fc\u{fc}\"",
        ] {
            let data = Bytes::from_static(good.as_bytes());
            assert_eq!(run(Some(Payload::DataJson(data.clone()))), Some(data));
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let deep = "[".repeat(65) + &"]".repeat(65);
        let bad: [&[u8]; 8] = [
            b"",
            b"{",
            b"{}{}",
            b"{'a':1}",
            b"\"\xff\"",
            b"NaN",
            b"\"\n\"",
            deep.as_bytes(),
        ];
        for bad in bad {
            let data = Bytes::copy_from_slice(bad);
            assert_eq!(run(Some(Payload::DataJson(data))), None, "{bad:?}");
        }
        assert_eq!(run(None), None);
        let empty = Value { kind: None };
        assert_eq!(run(Some(Payload::Data(empty))), None);
    }

    fn number(n: f64) -> Value {
        Value {
            kind: Some(Kind::NumberValue(n)),
        }
    }

    #[test]
    fn numbers_read_back_as_they_are() {
        for (n, written) in [
            (0.0, "0"),
            (42.0, "42"),
            (-1.5, "-1.5"),
            (9_007_199_254_740_993.0, "9007199254740992"),
            (1e20, "100000000000000000000"),
            (1.5e300, "1.5e300"),
            (5e-324, "5e-324"),
            (0.000_001, "0.000001"),
        ] {
            let text = run(Some(Payload::Data(number(n)))).unwrap();
            assert_eq!(text, written.as_bytes());
            let back: f64 = serde_json::from_slice(&text).unwrap();
            assert!(back.to_bits() == n.to_bits() || (back - n).abs() < f64::MIN_POSITIVE);
        }
        assert_eq!(run(Some(Payload::Data(number(f64::NAN)))), None);
    }

    #[test]
    fn a_value_becomes_json() {
        let string = Value {
            kind: Some(Kind::StringValue("a\"\n".into())),
        };
        let list = Value {
            kind: Some(Kind::ListValue(prost_types::ListValue {
                values: vec![
                    number(1.0),
                    Value {
                        kind: Some(Kind::NullValue(0)),
                    },
                ],
            })),
        };
        let object = Value {
            kind: Some(Kind::StructValue(prost_types::Struct {
                fields: [("x".to_owned(), list), ("s".to_owned(), string)].into(),
            })),
        };
        let text = run(Some(Payload::Data(object))).unwrap();
        assert_eq!(text, r#"{"s":"a\"\n","x":[1,null]}"#.as_bytes());
    }
}
