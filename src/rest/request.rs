//! Builds the request message of a call from its body, path, query and headers.

use std::{borrow::Cow, collections::BTreeMap};

use http::{HeaderMap, Method, header};
use prost_reflect::{DynamicMessage, Value};
use serde_json::value::RawValue;

use super::{
    json::{Json, Path, Reader, check, take},
    percent,
    routes::{Body, Route},
    schema::{Field, Schema, Shape, ValueKind, WellKnown},
};
use crate::error::{Error, Reason};

/// The field that the header `Idempotency-Key` fills.
const IDEMPOTENCY_KEY: &str = "idempotency_key";
/// The field of a PATCH that says what to change.
const UPDATE_MASK: &str = "update_mask";

/// What a call came with.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The path's variables, still encoded.
    pub variables: &'a [&'a str],
    /// The query, still encoded.
    pub query: Option<&'a str>,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The whole body.
    pub body: &'a [u8],
}

/// Builds the request message.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE`, or `INVALID_ARGUMENT` that names what is wrong.
pub fn build(schema: &Schema, route: &Route, parts: Parts<'_>) -> Result<DynamicMessage, Error> {
    check_content(parts.headers, parts.body)?;
    let mut build = Build {
        schema,
        route,
        reader: Reader::new(schema),
        message: schema.empty(route.input),
    };
    let named = build.body(parts.body)?;
    build.header(parts.headers);
    build.query(parts.query.unwrap_or_default());
    build.mask(&named);
    build.path(parts.variables, &named);
    build.reader.faults.or(build.message)
}

struct Build<'s> {
    schema: &'s Schema,
    route: &'s Route,
    reader: Reader<'s>,
    message: DynamicMessage,
}

impl<'s> Build<'s> {
    fn field(&self, name: &str) -> Option<(usize, &'s Field)> {
        self.schema.message(self.route.input).field(name)
    }

    fn field_at(&self, index: usize) -> Option<&'s Field> {
        self.schema.message(self.route.input).fields.get(index)
    }

    /// Fills what the body fills. Gives the names that its object has at the
    /// top, as the proto spells them.
    fn body(&mut self, body: &[u8]) -> Result<Vec<String>, Error> {
        let target = match self.route.body {
            Body::None if matches!(body.trim_ascii(), b"" | b"{}") => return Ok(Vec::new()),
            Body::None => return Err(Error::field("body", "must be empty: this route takes none")),
            Body::Whole if body.is_empty() => return Ok(Vec::new()),
            Body::Whole => None,
            Body::Field(index) => self.field_at(index),
        };
        let raw = check(if body.is_empty() { b"{}" } else { body })?;
        let Some(Json::Object(entries)) = take(raw, &Path::Root, &mut self.reader.faults) else {
            self.reader.fault(&Path::Root, "must be an object");
            return Ok(Vec::new());
        };
        let Some(target) = target else {
            let input = self.route.input;
            self.reader
                .fill(input, &entries, &mut self.message, &Path::Root);
            return Ok(self.names(&entries, input));
        };
        let ValueKind::Message(id) = target.kind else {
            return Err(Error::internal("a body's field is no message"));
        };
        let mut inner = self.schema.empty(id);
        self.reader.fill(id, &entries, &mut inner, &Path::Root);
        self.reader.set(
            &mut self.message,
            target,
            Value::Message(inner),
            &Path::Root,
        );
        Ok(self.names(&entries, id))
    }

    fn names(
        &self,
        entries: &[(Cow<'_, str>, &RawValue)],
        id: super::schema::MessageId,
    ) -> Vec<String> {
        let message = self.schema.message(id);
        let fields = entries.iter().filter_map(|(name, _)| message.field(name));
        fields
            .map(|(_, field)| field.descriptor.name().to_owned())
            .collect()
    }

    /// `Idempotency-Key`, where the body did not set the field of that name.
    fn header(&mut self, headers: &HeaderMap) {
        let Some((_, field)) = self.field(IDEMPOTENCY_KEY) else {
            return;
        };
        if self.route.body != Body::Whole || self.message.has_field(&field.descriptor) {
            return;
        }
        let at = Path::Field(&Path::Root, "Idempotency-Key");
        match idempotency_key(headers) {
            Ok(None) => {}
            Ok(Some(key)) => {
                let key = Value::String(key.to_owned());
                self.reader.set(&mut self.message, field, key, &at);
            }
            Err(message) => self.reader.fault(&at, message),
        }
    }

    fn query(&mut self, query: &str) {
        let mut lists: BTreeMap<usize, Vec<Value>> = BTreeMap::new();
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = percent::decode_query(name).unwrap_or(Cow::Borrowed(name));
            let at = Path::Field(&Path::Root, &name);
            let Some((index, field)) = self.field(&name).filter(|(i, _)| self.in_query(*i)) else {
                self.reader.fault(&at, self.unknown_parameter());
                continue;
            };
            let Some(value) = percent::decode_query(value) else {
                self.reader.fault(&at, "is not percent-encoded UTF-8");
                continue;
            };
            let list = matches!(field.shape, Shape::List);
            if !list && seen.contains(&index) {
                self.reader.fault(&at, "stands here more than once");
                continue;
            }
            seen.push(index);
            let Some(value) = self.reader.plain(&field.kind, &value, &at) else {
                continue;
            };
            if list {
                lists.entry(index).or_default().push(value);
            } else {
                self.reader.set(&mut self.message, field, value, &at);
            }
        }
        for (index, values) in lists {
            if let Some(field) = self.field_at(index) {
                let at = Path::Field(&Path::Root, &field.name);
                self.reader
                    .set(&mut self.message, field, Value::List(values), &at);
            }
        }
    }

    /// Whether a query parameter may fill the field.
    fn in_query(&self, index: usize) -> bool {
        self.field_at(index)
            .is_some_and(|field| is_parameter(self.schema, self.route, index, field))
    }

    fn unknown_parameter(&self) -> String {
        let fields = &self.schema.message(self.route.input).fields;
        let names: Vec<&str> = fields
            .iter()
            .enumerate()
            .filter(|(i, _)| self.in_query(*i))
            .map(|(_, field)| field.name.as_str())
            .collect();
        if names.is_empty() {
            "is not a query parameter: this route has none".to_owned()
        } else {
            format!("is not a query parameter; there are {}", names.join(", "))
        }
    }

    /// A PATCH changes what its body names, unless it says otherwise.
    fn mask(&mut self, named: &[String]) {
        let Some((_, field)) = self.field(UPDATE_MASK) else {
            return;
        };
        let ValueKind::Message(id) = field.kind else {
            return;
        };
        let is_mask = self.schema.message(id).well_known == Some(WellKnown::FieldMask);
        let given = self.message.has_field(&field.descriptor);
        if self.route.method != Method::PATCH || !is_mask || given {
            return;
        }
        let bound: Vec<&str> = match self.route.body {
            Body::Whole => self.bound().map(|f| f.name.as_str()).collect(),
            _ => Vec::new(),
        };
        let paths = named.iter().filter(|name| !bound.contains(&name.as_str()));
        let paths = paths.map(|name| Value::String(name.clone())).collect();
        let mut mask = self.schema.empty(id);
        let at = Path::Field(&Path::Root, UPDATE_MASK);
        if mask
            .try_set_field_by_name("paths", Value::List(paths))
            .is_err()
        {
            self.reader.fault(&at, "can't be set");
        }
        self.reader
            .set(&mut self.message, field, Value::Message(mask), &at);
    }

    /// The fields that the path fills.
    fn bound(&self) -> impl Iterator<Item = &'s Field> {
        let fields = &self.schema.message(self.route.input).fields;
        self.route.variables.iter().filter_map(|i| fields.get(*i))
    }

    /// The path's variables. A body may repeat them, not contradict them.
    fn path(&mut self, variables: &[&str], named: &[String]) {
        let fields: Vec<&Field> = self.bound().collect();
        for (field, text) in fields.into_iter().zip(variables) {
            let at = Path::Field(&Path::Root, &field.name);
            let Some(text) = percent::decode(text) else {
                self.reader.fault(&at, "is not percent-encoded UTF-8");
                continue;
            };
            let Some(value) = self.reader.plain(&field.kind, &text, &at) else {
                continue;
            };
            let in_body = self.route.body == Body::Whole && named.contains(&field.name);
            if in_body
                && self.message.has_field(&field.descriptor)
                && *self.message.get_field(&field.descriptor) != value
            {
                self.reader.fault(&at, "differs from the one in the path");
            }
            self.reader.set(&mut self.message, field, value, &at);
        }
    }
}

/// Whether a query parameter fills the field: neither the path nor the body
/// does, and it is text.
#[must_use]
pub fn is_parameter(schema: &Schema, route: &Route, index: usize, field: &Field) -> bool {
    let text = match &field.kind {
        ValueKind::Scalar(_) | ValueKind::Enum(_) => true,
        ValueKind::RawJson => false,
        ValueKind::Message(id) => matches!(
            schema.message(*id).well_known,
            Some(
                WellKnown::Timestamp
                    | WellKnown::Duration
                    | WellKnown::FieldMask
                    | WellKnown::Wrapper
            )
        ),
    };
    text && !matches!(field.shape, Shape::Map(_))
        && !route.variables.contains(&index)
        && route.body != Body::Whole
        && route.body != Body::Field(index)
}

/// The header `Idempotency-Key`; none where it is empty.
///
/// # Errors
/// Says what is wrong where it stands twice or is not text.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut values = headers.get_all("idempotency-key").iter();
    let first = values.next();
    if values.next().is_some() {
        return Err("stands here more than once");
    }
    match first.map(http::HeaderValue::to_str) {
        Some(Ok(text)) => Ok(Some(text).filter(|t| !t.is_empty())),
        Some(Err(_)) => Err("must be printable ASCII"),
        None => Ok(None),
    }
}

/// Whether a body is in the one form that is read: JSON in UTF-8, not packed.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE`.
pub fn check_content(headers: &HeaderMap, body: &[u8]) -> Result<(), Error> {
    if body.is_empty() {
        return Ok(());
    }
    check_media(headers)
}

/// What [`check_content`] checks of a body that is there.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE`.
pub fn check_media(headers: &HeaderMap) -> Result<(), Error> {
    let refuse = |what: &str| Err(Error::new(Reason::UnsupportedMediaType, what));
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return refuse("the body must not be packed (Content-Encoding)");
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let value = value.to_str().unwrap_or_default();
    let (media, parameters) = value.split_once(';').unwrap_or((value, ""));
    let media = media.trim().to_ascii_lowercase();
    let json = media
        .strip_prefix("application/")
        .is_some_and(|kind| kind == "json" || kind.ends_with("+json"));
    if !json {
        return refuse("the body must be application/json");
    }
    let charset = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        (name.trim().eq_ignore_ascii_case("charset")).then_some(value)
    });
    match charset {
        Some(set) if !set.eq_ignore_ascii_case("utf-8") => refuse("the body must be in UTF-8"),
        _ => Ok(()),
    }
}
