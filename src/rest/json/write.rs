//! Messages into JSON text.

use std::io::Write as _;

use base64::Engine as _;
use bytes::Bytes;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, Value};
use serde_json::value::RawValue;

use super::well_known;
use crate::{
    error::Error,
    rest::schema::{EnumNames, Field, MessageId, Schema, Shape, ValueKind},
};

/// Writes a message.
///
/// # Errors
/// `INTERNAL` where a value has no form in JSON, such as raw text that is none.
pub fn write(schema: &Schema, id: MessageId, message: &DynamicMessage) -> Result<Bytes, Error> {
    let mut out = Out::new(schema);
    out.message(id, message)?;
    Ok(out.bytes.into())
}

/// Writes one field's value alone, as `response_body` asks for; a message that
/// is not set is `{}`.
///
/// # Errors
/// As [`write`].
pub fn write_field(
    schema: &Schema,
    field: &Field,
    message: &DynamicMessage,
) -> Result<Bytes, Error> {
    let mut out = Out::new(schema);
    out.field(field, &message.get_field(&field.descriptor))?;
    Ok(out.bytes.into())
}

/// Writes a string with its quotes.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    // Strings always have a form, and writing to a Vec can't fail.
    let _ = serde_json::to_writer(out, text);
}

/// JSON text that is being written.
pub(super) struct Out<'s> {
    schema: &'s Schema,
    /// What was written.
    pub bytes: Vec<u8>,
}

impl<'s> Out<'s> {
    fn new(schema: &'s Schema) -> Self {
        Self {
            schema,
            bytes: Vec::with_capacity(512),
        }
    }

    fn message(&mut self, id: MessageId, message: &DynamicMessage) -> Result<(), Error> {
        let shape = self.schema.message(id);
        if let Some(what) = shape.well_known {
            return well_known::write(self, what, message);
        }
        self.bytes.push(b'{');
        let mut first = true;
        for field in &shape.fields {
            if !field.always_written() && !message.has_field(&field.descriptor) {
                continue;
            }
            self.comma(&mut first);
            write_text(&mut self.bytes, &field.name);
            self.bytes.push(b':');
            self.field(field, &message.get_field(&field.descriptor))?;
        }
        self.bytes.push(b'}');
        Ok(())
    }

    fn comma(&mut self, first: &mut bool) {
        if !std::mem::take(first) {
            self.bytes.push(b',');
        }
    }

    fn field(&mut self, field: &Field, value: &Value) -> Result<(), Error> {
        match (&field.shape, value) {
            (Shape::List, Value::List(items)) => {
                self.bytes.push(b'[');
                let mut first = true;
                for item in items {
                    self.comma(&mut first);
                    self.one(&field.kind, item)?;
                }
                self.bytes.push(b']');
                Ok(())
            }
            (Shape::Map(_), Value::Map(map)) => {
                let mut entries: Vec<_> = map.iter().map(|(k, v)| (key_text(k), v)).collect();
                // The map has no order; an answer should.
                entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
                self.bytes.push(b'{');
                let mut first = true;
                for (key, value) in entries {
                    self.comma(&mut first);
                    write_text(&mut self.bytes, &key);
                    self.bytes.push(b':');
                    self.one(&field.kind, value)?;
                }
                self.bytes.push(b'}');
                Ok(())
            }
            _ => self.one(&field.kind, value),
        }
    }

    fn one(&mut self, kind: &ValueKind, value: &Value) -> Result<(), Error> {
        match (kind, value) {
            (ValueKind::RawJson, Value::Bytes(text)) => self.raw(text),
            (ValueKind::Enum(names), Value::EnumNumber(number)) => {
                self.enum_value(names, *number);
                Ok(())
            }
            (ValueKind::Message(id), Value::Message(message)) => self.message(*id, message),
            (_, value) => self.scalar(value),
        }
    }

    /// Raw text, checked: what is not JSON would spoil all that is around it.
    fn raw(&mut self, text: &[u8]) -> Result<(), Error> {
        if text.is_empty() {
            self.bytes.extend_from_slice(b"null");
            return Ok(());
        }
        let checked: Result<&RawValue, _> = serde_json::from_slice(text);
        checked.map_err(|e| Error::internal(format!("stored JSON is none: {e}")))?;
        self.bytes.extend_from_slice(text);
        Ok(())
    }

    fn enum_value(&mut self, names: &EnumNames, number: i32) {
        match names.names.get(&number) {
            Some(name) => write_text(&mut self.bytes, name),
            None if number == 0 => write_text(&mut self.bytes, "UNSPECIFIED"),
            // A value that this server does not know.
            None => {
                let _ = write!(self.bytes, "{number}");
            }
        }
    }

    fn scalar(&mut self, value: &Value) -> Result<(), Error> {
        // Writing to a Vec can't fail.
        let _ = match value {
            Value::Bool(v) => write!(self.bytes, "{v}"),
            Value::I32(v) => write!(self.bytes, "{v}"),
            Value::I64(v) => write!(self.bytes, "{v}"),
            Value::U32(v) => write!(self.bytes, "{v}"),
            Value::U64(v) => write!(self.bytes, "{v}"),
            Value::F32(v) if v.is_finite() => {
                return serde_json::to_writer(&mut self.bytes, v).map_err(Error::internal);
            }
            Value::F64(v) if v.is_finite() => {
                return serde_json::to_writer(&mut self.bytes, v).map_err(Error::internal);
            }
            Value::F32(v) => write!(self.bytes, "\"{}\"", not_finite(f64::from(*v))),
            Value::F64(v) => write!(self.bytes, "\"{}\"", not_finite(*v)),
            Value::String(v) => {
                write_text(&mut self.bytes, v);
                Ok(())
            }
            Value::Bytes(v) => {
                let text = base64::engine::general_purpose::STANDARD.encode(v);
                write!(self.bytes, "\"{text}\"")
            }
            Value::EnumNumber(_) | Value::Message(_) | Value::List(_) | Value::Map(_) => {
                return Err(Error::internal("a value of another type than its field"));
            }
        };
        Ok(())
    }

    /// A value inside of one of Google's messages.
    pub(super) fn value(&mut self, kind: &Kind, value: &Value) -> Result<(), Error> {
        match (kind, value) {
            (Kind::Message(of), Value::Message(message)) => {
                let id = self.schema.id(of.full_name());
                let id = id.ok_or_else(|| Error::internal("a message that is not described"))?;
                self.message(id, message)
            }
            (_, value) => self.scalar(value),
        }
    }

    /// Field 1 of one of Google's messages: a map, a list or a scalar.
    pub(super) fn any(
        &mut self,
        field: &FieldDescriptor,
        kind: &Kind,
        value: &Value,
    ) -> Result<(), Error> {
        let owner = self.schema.id(field.parent_message().full_name());
        let owner = owner.map(|id| self.schema.message(id));
        match owner.and_then(|m| m.field(field.name())) {
            Some((_, field)) => self.field(field, value),
            None => self.value(kind, value),
        }
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(v) => v.to_string(),
        MapKey::I32(v) => v.to_string(),
        MapKey::I64(v) => v.to_string(),
        MapKey::U32(v) => v.to_string(),
        MapKey::U64(v) => v.to_string(),
        MapKey::String(v) => v.clone(),
    }
}

fn not_finite(float: f64) -> &'static str {
    if float.is_nan() {
        "NaN"
    } else if float > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}
