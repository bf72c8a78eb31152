//! Numbers, booleans, strings and bytes.

use std::borrow::Cow;

use base64::{Engine as _, alphabet, engine};
use prost_reflect::{Kind, MapKey, Value};

use super::text::Json;

const LENIENT: engine::GeneralPurposeConfig = engine::GeneralPurposeConfig::new()
    .with_decode_padding_mode(engine::DecodePaddingMode::Indifferent);
const STANDARD: engine::GeneralPurpose = engine::GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: engine::GeneralPurpose = engine::GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// The value of that kind, or `None` where `json` is something else.
pub(super) fn read(kind: &Kind, json: &Json<'_>) -> Option<Value> {
    Some(match kind {
        Kind::Bool => match json {
            Json::Bool(b) => Value::Bool(*b),
            _ => return None,
        },
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            Value::I32(i32::try_from(integer(json)?).ok()?)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            Value::I64(i64::try_from(integer(json)?).ok()?)
        }
        Kind::Uint32 | Kind::Fixed32 => Value::U32(u32::try_from(integer(json)?).ok()?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(u64::try_from(integer(json)?).ok()?),
        Kind::Double => Value::F64(float(json)?),
        Kind::Float => {
            let wide = float(json)?;
            #[allow(clippy::cast_possible_truncation)] // What does not fit is infinite.
            let narrow = wide as f32;
            (narrow.is_finite() || !wide.is_finite()).then_some(Value::F32(narrow))?
        }
        Kind::String => Value::String(text(json)?.to_owned()),
        Kind::Bytes => {
            let text = text(json)?;
            let bytes = STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text));
            Value::Bytes(bytes.ok()?.into())
        }
        Kind::Enum(_) | Kind::Message(_) => return None,
    })
}

/// A value of that kind from text without quotes: a query parameter, a
/// variable of a path, a map's key.
pub(super) fn read_plain(kind: &Kind, plain: &str) -> Option<Value> {
    match (kind, plain) {
        (Kind::Bool, "true") => Some(Value::Bool(true)),
        (Kind::Bool, "false") => Some(Value::Bool(false)),
        _ => read(kind, &Json::Text(Cow::Borrowed(plain))),
    }
}

/// A map's key.
pub(super) fn read_key(kind: &Kind, plain: &str) -> Option<MapKey> {
    read_plain(kind, plain)?.into_map_key()
}

/// What [`read`] takes, to end the sentence "must be …".
pub(super) fn expected(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "true or false",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "an integer from -2147483648 to 2147483647",
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            "an integer from -9223372036854775808 to 9223372036854775807"
        }
        Kind::Uint32 | Kind::Fixed32 => "an integer from 0 to 4294967295",
        Kind::Uint64 | Kind::Fixed64 => "an integer from 0 to 18446744073709551615",
        Kind::Double | Kind::Float => "a number",
        Kind::String => "a string",
        Kind::Bytes => "a string of base64",
        Kind::Enum(_) | Kind::Message(_) => "an object",
    }
}

fn text<'a>(json: &'a Json<'_>) -> Option<&'a str> {
    match json {
        Json::Text(text) => Some(text),
        _ => None,
    }
}

fn number<'a>(json: &'a Json<'_>) -> Option<&'a str> {
    let text = match json {
        Json::Number(text) => text,
        Json::Text(text) => text.as_ref(),
        _ => return None,
    };
    // Rust parses more than JSON does: `+1`, `inf`, ` .5`.
    let digits = text.strip_prefix('-').unwrap_or(text);
    (digits.starts_with(|c: char| c.is_ascii_digit())).then_some(text)
}

fn integer(json: &Json<'_>) -> Option<i128> {
    let text = number(json)?;
    if let Ok(integer) = text.parse() {
        return Some(integer);
    }
    // `1e3` and `5.0` are integers too, as far as doubles are exact.
    let float: f64 = text.parse().ok()?;
    #[allow(clippy::cast_possible_truncation)] // It is whole and below 2^53.
    (float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0).then_some(float as i128)
}

fn float(json: &Json<'_>) -> Option<f64> {
    match json {
        Json::Text(text) if text == "NaN" => Some(f64::NAN),
        Json::Text(text) if text == "Infinity" => Some(f64::INFINITY),
        Json::Text(text) if text == "-Infinity" => Some(f64::NEG_INFINITY),
        _ => number(json)?.parse().ok().filter(|f: &f64| f.is_finite()),
    }
}
