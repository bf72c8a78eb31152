//! Messages as JSON Schema, as `OpenAPI` 3.1 takes it.

use std::{cell::RefCell, collections::HashSet};

use prost_reflect::Kind;
use serde_json::{Map, Value, json};

use super::comments::Comments;
use crate::rest::{
    Rest,
    routes::{Body, PACKAGE},
    schema::{EnumNames, Field, Message, MessageId, Shape, ValueKind, WellKnown},
};

/// The schemas of the messages that routes read and write.
pub(super) struct Schemas<'r> {
    rest: &'r Rest,
    comments: &'r Comments,
    /// By name; filled as messages are referred to.
    components: RefCell<Map<String, Value>>,
    /// What requests are made of: unknown fields are refused there.
    requests: HashSet<String>,
}

impl<'r> Schemas<'r> {
    /// Knows which messages are requests.
    pub(super) fn new(rest: &'r Rest, comments: &'r Comments) -> Self {
        let mut schemas = Self {
            rest,
            comments,
            components: RefCell::default(),
            requests: HashSet::new(),
        };
        for route in rest.routes.iter().filter(|r| r.body != Body::None) {
            schemas.mark_request(route.input);
        }
        schemas
    }

    fn mark_request(&mut self, id: MessageId) {
        let rest = self.rest;
        let message = rest.schema.message(id);
        let name = message.descriptor.full_name().to_owned();
        if self.requests.insert(name) {
            for field in &message.fields {
                if let ValueKind::Message(id) = field.kind {
                    self.mark_request(id);
                }
            }
        }
    }

    /// Every schema that was referred to, by name.
    pub(super) fn components(self) -> Map<String, Value> {
        let mut components = self.components.into_inner();
        components.sort_keys();
        components
    }

    /// A reference to a message's schema.
    pub(super) fn reference(&self, id: MessageId) -> Value {
        let message = self.rest.schema.message(id);
        if let Some(well_known) = message.well_known {
            return self.well_known(well_known, message);
        }
        let name = component(message.descriptor.full_name());
        if !self.components.borrow().contains_key(&name) {
            // Stands in for itself while its fields are looked at.
            self.components
                .borrow_mut()
                .insert(name.clone(), Value::Null);
            let schema = self.object(id, &[]);
            self.components.borrow_mut().insert(name.clone(), schema);
        }
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    /// A message's schema, without the fields at some places.
    pub(super) fn object(&self, id: MessageId, without: &[usize]) -> Value {
        let message = self.rest.schema.message(id);
        let fields = message.fields.iter().enumerate();
        let fields: Vec<&Field> = fields
            .filter(|(i, _)| !without.contains(i))
            .map(|(_, field)| field)
            .collect();
        let properties: Map<String, Value> = fields
            .iter()
            .map(|field| (field.name.clone(), self.field(field)))
            .collect();
        let mut schema = json!({
            "type": "object",
            "description": self.message_comment(message),
            "properties": properties,
        });
        if self.requests.contains(message.descriptor.full_name()) {
            schema["additionalProperties"] = json!(false);
        } else {
            let always = fields.iter().filter(|field| field.always_written());
            let always: Vec<&str> = always.map(|field| field.name.as_str()).collect();
            if !always.is_empty() {
                schema["required"] = json!(always);
            }
        }
        schema
    }

    fn message_comment(&self, message: &Message) -> &str {
        let descriptor = &message.descriptor;
        self.comments
            .get(&descriptor.parent_file(), descriptor.path())
    }

    /// A field's comment.
    pub(super) fn description(&self, field: &Field) -> &str {
        let descriptor = &field.descriptor;
        let file = descriptor.parent_message().parent_file();
        self.comments.get(&file, descriptor.path())
    }

    /// A field's schema with its comment.
    pub(super) fn field(&self, field: &Field) -> Value {
        let mut schema = self.bare(field);
        schema["description"] = json!(self.description(field));
        schema
    }

    /// A field's schema.
    pub(super) fn bare(&self, field: &Field) -> Value {
        let value = self.value(&field.kind);
        match field.shape {
            Shape::One => value,
            Shape::List => json!({"type": "array", "items": value}),
            Shape::Map(_) => json!({"type": "object", "additionalProperties": value}),
        }
    }

    fn value(&self, kind: &ValueKind) -> Value {
        match kind {
            // Any JSON at all.
            ValueKind::RawJson => json!({}),
            ValueKind::Enum(names) => self.enum_schema(names),
            ValueKind::Message(id) => self.reference(*id),
            ValueKind::Scalar(kind) => scalar(kind),
        }
    }

    fn enum_schema(&self, names: &EnumNames) -> Value {
        let file = names.descriptor.parent_file();
        let lines = names.names.iter().filter_map(|(number, name)| {
            let value = names.descriptor.get_value(*number)?;
            Some(format!(
                "- `{name}`: {}",
                self.comments.get(&file, value.path())
            ))
        });
        let lines: Vec<String> = lines.collect();
        let schema = json!({
            "type": "string",
            "enum": names.names.values().collect::<Vec<_>>(),
            "description": format!(
                "{}\n\n{}",
                self.comments.get(&file, names.descriptor.path()),
                lines.join("\n")
            ),
        });
        let name = component(names.descriptor.full_name());
        let reference = json!({"$ref": format!("#/components/schemas/{name}")});
        self.components.borrow_mut().insert(name, schema);
        reference
    }

    fn well_known(&self, what: WellKnown, message: &Message) -> Value {
        match what {
            WellKnown::Timestamp => json!({"type": "string", "format": "date-time"}),
            WellKnown::Duration => {
                json!({"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"})
            }
            WellKnown::FieldMask => json!({"type": "string"}),
            WellKnown::Struct => json!({"type": "object"}),
            WellKnown::Value => json!({}),
            WellKnown::ListValue => json!({"type": "array"}),
            WellKnown::Wrapper => match message.fields.first() {
                Some(field) => self.bare(field),
                None => json!({}),
            },
        }
    }
}

/// The full name without our package: unique, for nested types too.
fn component(full_name: &str) -> String {
    let name = full_name.strip_prefix(PACKAGE);
    let name = name.and_then(|name| name.strip_prefix('.'));
    name.unwrap_or(full_name).to_owned()
}

fn scalar(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            json!({"type": "integer", "format": "int32", "minimum": i32::MIN, "maximum": i32::MAX})
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            json!({"type": "integer", "format": "int64", "minimum": i64::MIN, "maximum": i64::MAX})
        }
        Kind::Uint32 | Kind::Fixed32 => {
            json!({"type": "integer", "minimum": 0, "maximum": u32::MAX})
        }
        Kind::Uint64 | Kind::Fixed64 => {
            json!({"type": "integer", "minimum": 0, "maximum": u64::MAX})
        }
        Kind::Float | Kind::Double => json!({"type": "number"}),
        Kind::String | Kind::Enum(_) | Kind::Message(_) => json!({"type": "string"}),
        Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
    }
}
