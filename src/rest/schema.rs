//! The messages as REST sees them: read once from the descriptors, so that no
//! call has to look at options or compute a name.

use std::collections::{BTreeMap, HashMap};

use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, ExtensionDescriptor, FieldDescriptor, Kind,
    MessageDescriptor,
};

/// What is wrong with the protos or their annotations. The server can't start.
#[derive(Debug, thiserror::Error)]
#[error("the protos can't be served over REST: {0}")]
pub struct SchemaError(pub String);

/// One message of a [`Schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageId(usize);

/// Every message of the descriptors.
#[derive(Debug)]
pub struct Schema {
    pool: DescriptorPool,
    messages: Vec<Message>,
    by_name: HashMap<String, MessageId>,
}

/// A message and its fields.
#[derive(Debug)]
pub struct Message {
    /// Its descriptor.
    pub descriptor: MessageDescriptor,
    /// The fields that REST knows, in the order of the proto file.
    pub fields: Vec<Field>,
    /// What it is, where JSON has a form of its own for it.
    pub well_known: Option<WellKnown>,
    by_name: HashMap<String, usize>,
}

/// A field of a message.
#[derive(Debug)]
pub struct Field {
    /// Its descriptor.
    pub descriptor: FieldDescriptor,
    /// Its name in JSON: the proto's, or what `raw_json` says.
    pub name: String,
    /// Whether it is one value, a list or a map.
    pub shape: Shape,
    /// The type of the value, or of a list's or map's values.
    pub kind: ValueKind,
    /// The oneof of which only one member may be set.
    pub oneof: Option<String>,
}

/// How many values a field has.
#[derive(Debug, Clone)]
pub enum Shape {
    /// One.
    One,
    /// Any number, in order.
    List,
    /// One for each key; keys are of this kind.
    Map(Kind),
}

/// The type of a value.
#[derive(Debug, Clone)]
pub enum ValueKind {
    /// Number, boolean, string or bytes.
    Scalar(Kind),
    /// `bytes` that hold JSON text (`raw_json`).
    RawJson,
    /// An enum.
    Enum(EnumNames),
    /// A message.
    Message(MessageId),
}

/// Messages with a JSON form of their own (the proto3 JSON mapping).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WellKnown {
    /// RFC 3339 text.
    Timestamp,
    /// Seconds with an `s` after them.
    Duration,
    /// Names with commas between them.
    FieldMask,
    /// Any object.
    Struct,
    /// Any value.
    Value,
    /// Any array.
    ListValue,
    /// The value itself, of field number 1.
    Wrapper,
}

/// An enum's values under their REST names.
#[derive(Debug, Clone)]
pub struct EnumNames {
    /// Its descriptor.
    pub descriptor: EnumDescriptor,
    /// The name without its type's prefix, by number; without `UNSPECIFIED`.
    pub names: BTreeMap<i32, String>,
    /// The number of each name, with and without prefix, `UNSPECIFIED` too.
    pub numbers: HashMap<String, i32>,
    /// Whether the value 0 means that nothing was said.
    pub zero_is_unset: bool,
}

impl Schema {
    /// Reads an encoded `FileDescriptorSet`.
    ///
    /// # Errors
    /// Where it can't be decoded, or `raw_json` stands on a field that is not
    /// a single `bytes`, or two fields of a message have the same REST name.
    pub fn new(descriptors: &[u8]) -> Result<Self, SchemaError> {
        let pool = DescriptorPool::decode(descriptors).map_err(|e| SchemaError(e.to_string()))?;
        let raw_json = pool.get_extension_by_name("onering.v1.raw_json");
        let by_name = pool
            .all_messages()
            .enumerate()
            .map(|(i, m)| (m.full_name().to_owned(), MessageId(i)))
            .collect();
        let messages = pool
            .all_messages()
            .map(|m| Message::new(m, &by_name, raw_json.as_ref()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            pool,
            messages,
            by_name,
        })
    }

    /// The descriptors.
    #[must_use]
    pub fn pool(&self) -> &DescriptorPool {
        &self.pool
    }

    /// The message of that full name, such as `onering.v1.Key`.
    #[must_use]
    pub fn id(&self, full_name: &str) -> Option<MessageId> {
        self.by_name.get(full_name).copied()
    }

    /// A message.
    #[must_use]
    pub fn message(&self, id: MessageId) -> &Message {
        // Ids are made here only, one for each message.
        &self.messages[id.0]
    }

    /// A message with nothing set.
    #[must_use]
    pub fn empty(&self, id: MessageId) -> DynamicMessage {
        DynamicMessage::new(self.message(id).descriptor.clone())
    }
}

impl Message {
    fn new(
        descriptor: MessageDescriptor,
        ids: &HashMap<String, MessageId>,
        raw_json: Option<&ExtensionDescriptor>,
    ) -> Result<Self, SchemaError> {
        let mut fields = Vec::new();
        for field in declared(&descriptor) {
            fields.push(Field::new(field, ids, raw_json)?);
        }
        // Over REST raw text wins over a typed field of the same name.
        let raw: Vec<String> = fields
            .iter()
            .filter(|f| matches!(f.kind, ValueKind::RawJson))
            .map(|f| f.name.clone())
            .collect();
        fields.retain(|f| matches!(f.kind, ValueKind::RawJson) || !raw.contains(&f.name));
        let mut by_name = HashMap::new();
        for (i, field) in fields.iter().enumerate() {
            if by_name.insert(field.name.clone(), i).is_some() {
                let message = descriptor.full_name();
                return Err(SchemaError(format!(
                    "{message} has two fields named {} in JSON",
                    field.name
                )));
            }
        }
        Ok(Self {
            well_known: WellKnown::of(descriptor.full_name()),
            descriptor,
            fields,
            by_name,
        })
    }

    /// The field of that REST name, and its place in `fields`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<(usize, &Field)> {
        let index = *self.by_name.get(name)?;
        Some((index, self.fields.get(index)?))
    }
}

/// A message's fields in the order of its file; the pool sorts them by number.
fn declared(message: &MessageDescriptor) -> Vec<FieldDescriptor> {
    message
        .descriptor_proto()
        .field
        .iter()
        .filter_map(|f| message.get_field_by_name(f.name()))
        .collect()
}

impl Field {
    fn new(
        descriptor: FieldDescriptor,
        ids: &HashMap<String, MessageId>,
        raw_json: Option<&ExtensionDescriptor>,
    ) -> Result<Self, SchemaError> {
        let raw_name = raw_json.and_then(|ext| {
            let options = descriptor.options();
            options
                .has_extension(ext)
                .then(|| options.get_extension(ext).as_str().map(str::to_owned))?
        });
        let kind = descriptor.kind();
        let entry = kind.as_message().filter(|_| descriptor.is_map());
        let (shape, kind) = if let Some(entry) = entry {
            let key = entry.map_entry_key_field().kind();
            (Shape::Map(key), entry.map_entry_value_field().kind())
        } else if descriptor.is_list() {
            (Shape::List, kind)
        } else {
            (Shape::One, kind)
        };
        let kind = match (raw_name.is_some(), kind) {
            (true, Kind::Bytes) if matches!(shape, Shape::One) => ValueKind::RawJson,
            (true, _) => {
                return Err(SchemaError(format!(
                    "{}: raw_json takes a single bytes field",
                    descriptor.full_name()
                )));
            }
            (false, Kind::Enum(e)) => ValueKind::Enum(EnumNames::new(e)),
            (false, Kind::Message(m)) => ValueKind::Message(
                ids.get(m.full_name())
                    .copied()
                    .ok_or_else(|| SchemaError(format!("{} is not described", m.full_name())))?,
            ),
            (false, scalar) => ValueKind::Scalar(scalar),
        };
        Ok(Self {
            name: raw_name.unwrap_or_else(|| descriptor.name().to_owned()),
            shape,
            kind,
            oneof: descriptor
                .containing_oneof()
                .filter(|o| !o.is_synthetic())
                .map(|o| o.name().to_owned()),
            descriptor,
        })
    }

    /// Whether every answer that holds this message has the field: it can't be
    /// told from one that is not set.
    #[must_use]
    pub fn always_written(&self) -> bool {
        let hidden = matches!(&self.kind, ValueKind::Enum(e) if e.zero_is_unset);
        !self.descriptor.supports_presence() && (!hidden || !matches!(self.shape, Shape::One))
    }
}

impl WellKnown {
    fn of(full_name: &str) -> Option<Self> {
        Some(match full_name.strip_prefix("google.protobuf.")? {
            "Timestamp" => Self::Timestamp,
            "Duration" => Self::Duration,
            "FieldMask" => Self::FieldMask,
            "Struct" => Self::Struct,
            "Value" => Self::Value,
            "ListValue" => Self::ListValue,
            "BoolValue" | "BytesValue" | "DoubleValue" | "FloatValue" | "Int32Value"
            | "Int64Value" | "StringValue" | "UInt32Value" | "UInt64Value" => Self::Wrapper,
            _ => return None,
        })
    }
}

impl EnumNames {
    fn new(descriptor: EnumDescriptor) -> Self {
        let prefix = format!("{}_", screaming_snake(descriptor.name()));
        let mut names = BTreeMap::new();
        let mut numbers = HashMap::new();
        let mut zero_is_unset = false;
        for value in descriptor.values() {
            let short = value.name().strip_prefix(&prefix).unwrap_or(value.name());
            numbers.insert(value.name().to_owned(), value.number());
            numbers.insert(short.to_owned(), value.number());
            if value.number() == 0 && short == "UNSPECIFIED" {
                zero_is_unset = true;
            } else {
                // Of two names for one number the first is the written one.
                names
                    .entry(value.number())
                    .or_insert_with(|| short.to_owned());
            }
        }
        Self {
            descriptor,
            names,
            numbers,
            zero_is_unset,
        }
    }

    /// The names that may be sent, with commas between them.
    #[must_use]
    pub fn allowed(&self) -> String {
        let names: Vec<&str> = self.names.values().map(String::as_str).collect();
        names.join(", ")
    }
}

/// `DeliveryStatus` → `DELIVERY_STATUS`.
fn screaming_snake(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for (i, c) in name.char_indices() {
        if i > 0 && c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}
