//! JSON text into messages, by the fields that a message has.

use std::{borrow::Cow, collections::HashMap, collections::HashSet};

use bytes::Bytes;
use prost_reflect::{DynamicMessage, Value};
use serde_json::value::RawValue;

use super::{
    faults::{Faults, Path},
    scalar,
    text::{self, Json},
    well_known,
};
use crate::{
    error::Error,
    rest::schema::{EnumNames, Field, MessageId, Schema, Shape, ValueKind, WellKnown},
};

/// Names are listed in an error up to this many.
const LISTED_NAMES: usize = 40;

/// Reads a message from JSON text.
///
/// # Errors
/// `INVALID_ARGUMENT` that names what is wrong, up to 20 times.
pub fn read(schema: &Schema, id: MessageId, body: &[u8]) -> Result<DynamicMessage, Error> {
    let raw = text::check(body)?;
    let mut reader = Reader::new(schema);
    let message = reader.message(id, raw, &Path::Root);
    let message = message.unwrap_or_else(|| schema.empty(id));
    reader.faults.or(message)
}

/// Reads values of text that [`text::check`] passed, and keeps what is wrong.
#[derive(Debug)]
pub struct Reader<'s> {
    schema: &'s Schema,
    /// What was wrong so far.
    pub faults: Faults,
}

impl<'s> Reader<'s> {
    /// Has found nothing wrong yet.
    #[must_use]
    pub fn new(schema: &'s Schema) -> Self {
        Self {
            schema,
            faults: Faults::default(),
        }
    }

    /// A message; `None` where nothing can be made of it.
    pub fn message(
        &mut self,
        id: MessageId,
        raw: &RawValue,
        at: &Path<'_>,
    ) -> Option<DynamicMessage> {
        if let Some(well_known) = self.schema.message(id).well_known {
            return well_known::read(self, self.schema, well_known, id, raw, at);
        }
        let Json::Object(entries) = text::take(raw, at, &mut self.faults)? else {
            self.faults.push(at, "must be an object");
            return None;
        };
        let mut message = self.schema.empty(id);
        self.fill(id, &entries, &mut message, at);
        Some(message)
    }

    /// Sets the fields that `entries` name.
    pub fn fill(
        &mut self,
        id: MessageId,
        entries: &[(Cow<'_, str>, &RawValue)],
        message: &mut DynamicMessage,
        at: &Path<'_>,
    ) {
        let shape = self.schema.message(id);
        let mut seen = vec![false; shape.fields.len()];
        let mut oneofs: Vec<(&str, &str)> = Vec::new();
        for (name, raw) in entries {
            let at = Path::Field(at, name);
            let Some((index, field)) = shape.field(name) else {
                self.faults.push(&at, unknown(&shape.fields));
                continue;
            };
            if seen.get(index).copied().unwrap_or_default() {
                self.faults.push(&at, "stands here more than once");
                continue;
            }
            if let Some(seen) = seen.get_mut(index) {
                *seen = true;
            }
            if raw.get() == "null" && self.null_unsets(field) {
                continue;
            }
            if let Some(oneof) = &field.oneof {
                if let Some((_, other)) = oneofs.iter().find(|(name, _)| name == oneof) {
                    let message = format!("can't be set together with `{other}`");
                    self.faults.push(&at, message);
                    continue;
                }
                oneofs.push((oneof, &field.name));
            }
            if let Some(value) = self.field(field, raw, &at) {
                self.set(message, field, value, &at);
            }
        }
    }

    /// Sets a field to a value that was read for it.
    pub fn set(
        &mut self,
        message: &mut DynamicMessage,
        field: &Field,
        value: Value,
        at: &Path<'_>,
    ) {
        if message.try_set_field(&field.descriptor, value).is_err() {
            self.faults.push(at, "can't be set");
        }
    }

    /// Whether `null` takes the field away, rather than being its value.
    fn null_unsets(&self, field: &Field) -> bool {
        !matches!(field.shape, Shape::One) || !self.takes_null(&field.kind)
    }

    fn takes_null(&self, kind: &ValueKind) -> bool {
        match kind {
            ValueKind::RawJson => true,
            ValueKind::Message(id) => self.schema.message(*id).well_known == Some(WellKnown::Value),
            _ => false,
        }
    }

    /// A field's value: one, a list or a map.
    pub fn field(&mut self, field: &Field, raw: &RawValue, at: &Path<'_>) -> Option<Value> {
        match &field.shape {
            Shape::One => self.value(&field.kind, raw, at),
            Shape::List => {
                let Json::List(items) = text::take(raw, at, &mut self.faults)? else {
                    self.faults.push(at, "must be an array");
                    return None;
                };
                let mut list = Vec::with_capacity(items.len());
                for (i, item) in items.into_iter().enumerate() {
                    list.extend(self.value(&field.kind, item, &Path::Index(at, i)));
                }
                Some(Value::List(list))
            }
            Shape::Map(key_kind) => {
                let Json::Object(entries) = text::take(raw, at, &mut self.faults)? else {
                    self.faults.push(at, "must be an object");
                    return None;
                };
                let mut map = HashMap::with_capacity(entries.len());
                for (name, raw) in &entries {
                    let at = Path::Key(at, name);
                    let Some(key) = scalar::read_key(key_kind, name) else {
                        let expected = scalar::expected(key_kind);
                        self.faults.push(&at, format!("its key must be {expected}"));
                        continue;
                    };
                    let Some(value) = self.value(&field.kind, raw, &at) else {
                        continue;
                    };
                    if map.insert(key, value).is_some() {
                        self.faults.push(&at, "stands here more than once");
                    }
                }
                Some(Value::Map(map))
            }
        }
    }

    fn value(&mut self, kind: &ValueKind, raw: &RawValue, at: &Path<'_>) -> Option<Value> {
        match kind {
            ValueKind::RawJson => {
                return Some(Value::Bytes(Bytes::copy_from_slice(raw.get().as_bytes())));
            }
            ValueKind::Message(id) => return self.message(*id, raw, at).map(Value::Message),
            ValueKind::Enum(names) => {
                let json = text::take(raw, at, &mut self.faults)?;
                let text = match &json {
                    Json::Text(text) => text.as_ref(),
                    _ => "",
                };
                return self.enum_value(names, text, at);
            }
            ValueKind::Scalar(_) => {}
        }
        let ValueKind::Scalar(kind) = kind else {
            return None;
        };
        let json = text::take(raw, at, &mut self.faults)?;
        let value = scalar::read(kind, &json);
        if value.is_none() {
            self.faults
                .push(at, format!("must be {}", scalar::expected(kind)));
        }
        value
    }

    fn enum_value(&mut self, names: &EnumNames, text: &str, at: &Path<'_>) -> Option<Value> {
        let number = names.numbers.get(text).copied();
        if number.is_none() {
            self.faults
                .push(at, format!("must be one of {}", names.allowed()));
        }
        number.map(Value::EnumNumber)
    }

    /// A single value from text without quotes, as paths and queries have it.
    pub fn plain(&mut self, kind: &ValueKind, text: &str, at: &Path<'_>) -> Option<Value> {
        match kind {
            ValueKind::Enum(names) => self.enum_value(names, text, at),
            ValueKind::Scalar(kind) => {
                let value = scalar::read_plain(kind, text);
                if value.is_none() {
                    self.faults
                        .push(at, format!("must be {}", scalar::expected(kind)));
                }
                value
            }
            ValueKind::Message(id) => {
                well_known::read_plain(self, self.schema, *id, text, at).map(Value::Message)
            }
            ValueKind::RawJson => {
                self.faults.push(at, "can only be sent in a body");
                None
            }
        }
    }

    /// Adds what is wrong with `at`.
    pub fn fault(&mut self, at: &Path<'_>, message: impl Into<String>) {
        self.faults.push(at, message);
    }
}

/// What to say of a name that no field has.
fn unknown(fields: &[Field]) -> String {
    let names: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
    match names.len() {
        0 => "is not a field: none may be set here".to_owned(),
        n if n > LISTED_NAMES => "is not a field that can be set here".to_owned(),
        _ => format!("is not a field; there are {}", names.join(", ")),
    }
}

/// Keys that stand more than once, each of them once.
pub(super) fn repeated<'a>(entries: &'a [(Cow<'_, str>, &RawValue)]) -> HashSet<&'a str> {
    let mut seen = HashSet::with_capacity(entries.len());
    let keys = entries.iter().map(|(key, _)| key.as_ref());
    keys.filter(|key| !seen.insert(*key)).collect()
}
