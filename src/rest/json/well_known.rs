//! Google's own messages that JSON writes in a form of their own.

use std::{collections::HashMap, io::Write as _};

use prost_reflect::{DynamicMessage, MapKey, ReflectMessage as _, Value};
use serde_json::value::RawValue;

use super::{
    faults::Path,
    read::{Reader, repeated},
    scalar,
    text::{self, Json},
    write::{Out, write_text},
};
use crate::{
    error::Error,
    rest::schema::{MessageId, Schema, ValueKind, WellKnown},
};

/// Years 1 to 9999, in unix seconds: what RFC 3339 can write.
const TIMESTAMPS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
/// About 10,000 years, in seconds.
const DURATIONS: std::ops::RangeInclusive<i64> = -315_576_000_000..=315_576_000_000;

const TIMESTAMP: &str = "must be a time such as 2026-01-31T12:00:00Z (RFC 3339)";
const DURATION: &str = "must be a duration in seconds, such as 1.5s";

/// Reads one.
pub(super) fn read(
    reader: &mut Reader<'_>,
    schema: &Schema,
    what: WellKnown,
    id: MessageId,
    raw: &RawValue,
    at: &Path<'_>,
) -> Option<DynamicMessage> {
    match (what, text::take(raw, at, &mut reader.faults)?) {
        (WellKnown::Wrapper, _) => {
            let (_, field) = schema.message(id).field("value")?;
            let value = reader.field(field, raw, at)?;
            Some(with(schema.empty(id), field.descriptor.number(), value))
        }
        (WellKnown::Value, json) => value(reader, schema, id, raw, json, at),
        (WellKnown::Struct, Json::Object(entries)) => {
            for key in repeated(&entries) {
                reader.fault(&Path::Field(at, key), "stands here more than once");
            }
            let element = schema.id("google.protobuf.Value")?;
            let mut map = HashMap::with_capacity(entries.len());
            for (key, raw) in &entries {
                let value = reader.message(element, raw, &Path::Field(at, key))?;
                map.insert(MapKey::String(key.to_string()), Value::Message(value));
            }
            Some(with(schema.empty(id), 1, Value::Map(map)))
        }
        (WellKnown::ListValue, Json::List(items)) => {
            let element = schema.id("google.protobuf.Value")?;
            let mut list = Vec::with_capacity(items.len());
            for (i, item) in items.into_iter().enumerate() {
                let value = reader.message(element, item, &Path::Index(at, i))?;
                list.push(Value::Message(value));
            }
            Some(with(schema.empty(id), 1, Value::List(list)))
        }
        (_, Json::Text(text)) => read_plain(reader, schema, id, &text, at),
        (what, _) => {
            reader.fault(at, expected(what));
            None
        }
    }
}

/// Reads one from text without quotes.
pub(super) fn read_plain(
    reader: &mut Reader<'_>,
    schema: &Schema,
    id: MessageId,
    text: &str,
    at: &Path<'_>,
) -> Option<DynamicMessage> {
    let message = schema.message(id);
    let time = |(seconds, nanos)| {
        let seconds = with(schema.empty(id), 1, Value::I64(seconds));
        with(seconds, 2, Value::I32(nanos))
    };
    let read = match message.well_known {
        Some(WellKnown::Timestamp) => timestamp(text).map(time),
        Some(WellKnown::Duration) => duration(text).map(time),
        Some(WellKnown::FieldMask) => {
            let paths = text.split(',').map(str::trim).filter(|p| !p.is_empty());
            let paths = paths.map(|p| Value::String(p.to_owned())).collect();
            Some(with(schema.empty(id), 1, Value::List(paths)))
        }
        Some(WellKnown::Wrapper) => match &message.field("value")?.1.kind {
            ValueKind::Scalar(kind) => {
                scalar::read_plain(kind, text).map(|value| with(schema.empty(id), 1, value))
            }
            _ => None,
        },
        _ => None,
    };
    if read.is_none() {
        let expected = message
            .well_known
            .map_or("can only be sent in a body", expected);
        reader.fault(at, expected);
    }
    read
}

fn expected(what: WellKnown) -> &'static str {
    match what {
        WellKnown::Timestamp => TIMESTAMP,
        WellKnown::Duration => DURATION,
        WellKnown::FieldMask => "must be a string of field names with commas between them",
        WellKnown::Struct => "must be an object",
        WellKnown::ListValue => "must be an array",
        WellKnown::Value | WellKnown::Wrapper => "is not of the right type",
    }
}

fn value(
    reader: &mut Reader<'_>,
    schema: &Schema,
    id: MessageId,
    raw: &RawValue,
    json: Json<'_>,
    at: &Path<'_>,
) -> Option<DynamicMessage> {
    let (number, value) = match json {
        Json::Null => (1, Value::EnumNumber(0)),
        Json::Number(text) => {
            let float = text.parse().ok().filter(|f: &f64| f.is_finite());
            let Some(float) = float else {
                reader.fault(at, "must be a number that a double can hold");
                return None;
            };
            (2, Value::F64(float))
        }
        Json::Text(text) => (3, Value::String(text.into_owned())),
        Json::Bool(bool) => (4, Value::Bool(bool)),
        Json::Object(_) => {
            let inner = schema.id("google.protobuf.Struct")?;
            (5, Value::Message(reader.message(inner, raw, at)?))
        }
        Json::List(_) => {
            let inner = schema.id("google.protobuf.ListValue")?;
            (6, Value::Message(reader.message(inner, raw, at)?))
        }
    };
    Some(with(schema.empty(id), number, value))
}

fn with(mut message: DynamicMessage, number: u32, value: Value) -> DynamicMessage {
    // The numbers and types are those of Google's published protos.
    let _ = message.try_set_field_by_number(number, value);
    message
}

/// Unix seconds and nanoseconds of an RFC 3339 time.
fn timestamp(text: &str) -> Option<(i64, i32)> {
    // jiff reads more of ISO 8601 than RFC 3339 has.
    let bytes = text.as_bytes();
    let is = |i: usize, allowed: &[u8]| bytes.get(i).is_some_and(|b| allowed.contains(b));
    let end = bytes.len();
    let zone = is(end.checked_sub(1)?, b"Zz")
        || (is(end.checked_sub(6)?, b"+-") && is(end.checked_sub(3)?, b":"));
    let shape = is(4, b"-") && is(7, b"-") && is(10, b"Tt") && is(13, b":") && is(16, b":");
    if !zone || !shape || text.contains(['[', ',']) {
        return None;
    }
    let time: jiff::Timestamp = text.parse().ok()?;
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    TIMESTAMPS.contains(&seconds).then_some((seconds, nanos))
}

/// Seconds and nanoseconds, of one sign, of a duration.
fn duration(text: &str) -> Option<(i64, i32)> {
    let digits = text.strip_suffix('s')?;
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, digits),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !plain(whole) || !plain(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds = whole.parse::<i64>().ok()?;
    let nanos = format!("{fraction:0<9}").parse::<i32>().ok()?;
    DURATIONS
        .contains(&seconds)
        .then_some((sign * seconds, i32::try_from(sign).ok()? * nanos))
}

/// Writes one.
///
/// # Errors
/// `INTERNAL` for what has no form in JSON, such as a time in the year 10000.
pub(super) fn write(
    out: &mut Out<'_>,
    what: WellKnown,
    message: &DynamicMessage,
) -> Result<(), Error> {
    let get = |number| message.get_field_by_number(number);
    let seconds = || get(1).and_then(|v| v.as_i64()).unwrap_or_default();
    let nanos = || get(2).and_then(|v| v.as_i32()).unwrap_or_default();
    match what {
        WellKnown::Timestamp => write_timestamp(&mut out.bytes, seconds(), nanos()),
        WellKnown::Duration => {
            write_duration(&mut out.bytes, seconds(), nanos());
            Ok(())
        }
        WellKnown::FieldMask => {
            let paths = get(1);
            let paths = paths.as_ref().and_then(|v| v.as_list()).unwrap_or_default();
            let paths: Vec<&str> = paths.iter().filter_map(Value::as_str).collect();
            write_text(&mut out.bytes, &paths.join(","));
            Ok(())
        }
        WellKnown::Value => {
            let set = message.fields().next();
            match set {
                None | Some((_, Value::EnumNumber(_))) => out.bytes.extend_from_slice(b"null"),
                Some((field, value)) => out.value(&field.kind(), value)?,
            }
            Ok(())
        }
        WellKnown::Struct | WellKnown::ListValue | WellKnown::Wrapper => {
            let Some(field) = message.descriptor().get_field(1) else {
                return Err(Error::internal("a message of Google's without field 1"));
            };
            let kind = field.kind();
            out.any(&field, &kind, &message.get_field(&field))
        }
    }
}

/// Writes an RFC 3339 time in UTC, with 0, 3, 6 or 9 digits of a second.
///
/// # Errors
/// `INTERNAL` for a time outside of the years 1 to 9999.
pub fn write_timestamp(out: &mut Vec<u8>, seconds: i64, nanos: i32) -> Result<(), Error> {
    let time = jiff::Timestamp::new(seconds, nanos).ok();
    let time = time
        .filter(|_| TIMESTAMPS.contains(&seconds) && nanos >= 0)
        .ok_or_else(|| Error::internal(format!("no time: {seconds} s, {nanos} ns")))?;
    let printer = jiff::fmt::temporal::DateTimePrinter::new().precision(Some(digits(nanos)));
    let _ = write!(out, "\"{}\"", printer.timestamp_to_string(&time));
    Ok(())
}

fn write_duration(out: &mut Vec<u8>, seconds: i64, nanos: i32) {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let _ = write!(out, "\"{sign}{}", seconds.unsigned_abs());
    let digits = usize::from(digits(nanos));
    if digits > 0 {
        let nanos = format!("{:09}", nanos.unsigned_abs());
        let _ = write!(out, ".{}", nanos.get(..digits).unwrap_or(&nanos));
    }
    out.extend_from_slice(b"s\"");
}

fn digits(nanos: i32) -> u8 {
    match nanos {
        0 => 0,
        n if n % 1_000_000 == 0 => 3,
        n if n % 1_000 == 0 => 6,
        _ => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // No message of ours has a duration yet.
    #[test]
    fn durations_have_their_form() {
        for (text, value) in [
            ("0s", (0, 0)),
            ("-3.500s", (-3, -500_000_000)),
            ("-0.000001s", (0, -1_000)),
            ("315576000000s", (315_576_000_000, 0)),
            ("1.000000001s", (1, 1)),
        ] {
            assert_eq!(duration(text), Some(value), "{text}");
            let mut out = Vec::new();
            write_duration(&mut out, value.0, value.1);
            assert_eq!(out, format!("\"{text}\"").into_bytes());
        }
        for bad in [
            "",
            "s",
            "3",
            ".5s",
            "1.s",
            "1.0000000001s",
            "+1s",
            "--1s",
            "é",
            "315576000001s",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
