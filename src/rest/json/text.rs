//! JSON text, one level at a time: `serde_json` checks the whole of it once,
//! then each value is taken apart where it is needed. Nothing is copied that
//! does not have to be, and raw text is at hand everywhere.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::faults::{Faults, Path};
use crate::error::Error;

/// How many arrays and objects may lie in one another.
pub const MAX_DEPTH: usize = 64;

/// A value, with what is in it still as text.
#[derive(Debug)]
pub enum Json<'a> {
    /// `null`.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A number as it was written.
    Number(&'a str),
    /// A string.
    Text(Cow<'a, str>),
    /// An array.
    List(Vec<&'a RawValue>),
    /// An object, with its repeated keys.
    Object(Vec<(Cow<'a, str>, &'a RawValue)>),
}

/// Checks that `text` is one JSON value, nested no deeper than [`MAX_DEPTH`].
///
/// # Errors
/// `INVALID_ARGUMENT` on the field `body`.
pub fn check(text: &[u8]) -> Result<&RawValue, Error> {
    let raw: &RawValue = serde_json::from_slice(text)
        .map_err(|e| Error::field("body", format!("must be JSON in UTF-8: {e}")))?;
    if depth(text) > MAX_DEPTH {
        return Err(Error::field(
            "body",
            format!("must not nest arrays and objects more than {MAX_DEPTH} deep"),
        ));
    }
    Ok(raw)
}

/// How deep arrays and objects lie in one another. Counted, not recursed into:
/// the text may be hostile.
#[must_use]
pub fn depth(text: &[u8]) -> usize {
    let (mut depth, mut most, mut i) = (0_usize, 0_usize, 0_usize);
    let mut in_string = false;
    while let Some(byte) = text.get(i) {
        match (in_string, byte) {
            // Skips what is escaped, be it a quote.
            (true, b'\\') => i += 1,
            (_, b'"') => in_string = !in_string,
            (false, b'{' | b'[') => {
                depth += 1;
                most = most.max(depth);
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
        i += 1;
    }
    most
}

/// Takes a value apart, one level.
///
/// A value of a text that [`check`] passed can only fail by an escape that is
/// no character (an unpaired surrogate); `faults` says so.
pub fn take<'a>(raw: &'a RawValue, at: &Path<'_>, faults: &mut Faults) -> Option<Json<'a>> {
    let text = raw.get();
    let taken = match text.as_bytes().first() {
        Some(b'{') => serde_json::from_str(text).map(|Entries(list)| Json::Object(list)),
        Some(b'[') => serde_json::from_str(text).map(Json::List),
        Some(b'"') => serde_json::from_str(text).map(|Text(text)| Json::Text(text)),
        Some(b't') => Ok(Json::Bool(true)),
        Some(b'f') => Ok(Json::Bool(false)),
        Some(b'n') => Ok(Json::Null),
        _ => Ok(Json::Number(text)),
    };
    if taken.is_err() {
        faults.push(
            at,
            "must be valid Unicode: a \\u escape is half a character",
        );
    }
    taken.ok()
}

/// A string, borrowed unless it has escapes.
#[derive(Debug, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Visit)
    }
}

struct Entries<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Entries<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Text(key)) = map.next_key()? {
                    list.push((key, map.next_value()?));
                }
                Ok(Entries(list))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}
