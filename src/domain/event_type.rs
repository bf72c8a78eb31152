//! Registered event types, and the schemas that payloads of theirs must fit.

use std::collections::BTreeMap;

use jsonschema::{PatternOptions, Validator, paths::LocationSegment};
use serde_json::{Value, value::RawValue};

use super::id::{EventTypeId, Micros, TenantId};

/// The most bytes of a schema.
pub const MAX_SCHEMA: usize = 64 << 10;
/// The most parts that a schema has, with each reference taken for what it leads
/// to: a payload's cost is at most this for each of its values.
const MOST_PARTS: usize = 10_000;
/// How deep a schema's parts may lie in each other.
const DEEPEST: usize = 64;
/// The most patterns of a schema, and the most bytes of each once it is compiled.
const MOST_PATTERNS: usize = 100;
const PATTERN_BYTES: usize = 256 << 10;
/// How many faults of a payload are told.
const MOST_FAULTS: usize = 20;
/// How much of a fault is told, in characters.
const FAULT_CHARS: usize = 300;

/// A registered event type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventType {
    /// Its id.
    pub id: EventTypeId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The type, as events name it.
    pub name: String,
    /// A note for people.
    pub description: String,
    /// The JSON Schema that payloads must fit, as it was written; none: any.
    pub schema: Option<String>,
    /// When it was last changed.
    pub updated_at: Micros,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The place, as in `.items[0]`; empty for the whole.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

impl Wrong {
    fn new(path: &str, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            message: message.into(),
        }
    }
}

/// A schema that is ready to be checked against.
#[derive(Debug)]
pub struct Schema(Validator);

impl Schema {
    /// Reads a schema. What it refers to must lie in itself, and it must have an end:
    /// nothing is fetched, and no payload makes it cost more than its size.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self, Wrong> {
        if text.len() > MAX_SCHEMA {
            return Err(Wrong::new("", format!("has at most {MAX_SCHEMA} bytes")));
        }
        let schema: Value =
            serde_json::from_str(text).map_err(|e| Wrong::new("", format!("must be JSON: {e}")))?;
        Walk::over(&schema)?;
        let built = jsonschema::options()
            .offline()
            .should_validate_formats(true)
            .with_pattern_options(
                PatternOptions::regex()
                    .size_limit(PATTERN_BYTES)
                    .dfa_size_limit(PATTERN_BYTES),
            )
            .build(&schema);
        built.map(Self).map_err(|e| Wrong {
            path: place(e.instance_path().into_iter()),
            message: cut(&e.masked().to_string()),
        })
    }

    /// What of a payload does not fit; nothing where all of it does. A message never
    /// repeats a value.
    #[must_use]
    pub fn faults(&self, payload: &[u8]) -> Vec<Wrong> {
        let Ok(payload) = serde_json::from_slice::<Value>(payload) else {
            // The text was checked: what is left is a number beyond a double.
            let whole = serde_json::from_slice(payload).ok();
            let place = whole.and_then(unfit).unwrap_or_default();
            return vec![Wrong::new(&place, "is a number that is too large")];
        };
        if self.0.is_valid(&payload) {
            return Vec::new();
        }
        let faults = self.0.iter_errors(&payload).take(MOST_FAULTS);
        faults
            .map(|e| Wrong {
                path: place(e.instance_path().into_iter()),
                message: cut(&e.masked().to_string()),
            })
            .collect()
    }
}

/// The place of a part that can be written and is no value; none where all are.
fn unfit(json: &RawValue) -> Option<String> {
    let text = json.get();
    if serde_json::from_str::<Value>(text).is_ok() {
        return None;
    }
    let (name, inner) = if text.starts_with('{') {
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
        let mut members = members.into_iter();
        members.find_map(|(name, part)| Some((member(&name), unfit(part)?)))?
    } else if text.starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
        let mut items = items.into_iter().enumerate();
        items.find_map(|(i, part)| Some((format!("[{i}]"), unfit(part)?)))?
    } else {
        return Some(String::new());
    };
    Some(name + &inner)
}

fn cut(text: &str) -> String {
    text.chars().take(FAULT_CHARS).collect()
}

/// A place, as a request's fields are named.
fn place<'a>(segments: impl Iterator<Item = LocationSegment<'a>>) -> String {
    segments
        .map(|segment| match segment {
            LocationSegment::Index(i) => format!("[{i}]"),
            LocationSegment::Property(name) => member(&name),
        })
        .collect()
}

fn member(name: &str) -> String {
    let name: String = name.chars().take(64).collect();
    if name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        && !name.is_empty()
    {
        format!(".{name}")
    } else {
        format!("[{name:?}]")
    }
}

/// Keywords whose value is one schema, a list of them, or a map to them.
const ONE: [&str; 12] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];
const LISTS: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const MAPS: [&str; 6] = [
    "$defs",
    "definitions",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "properties",
];
/// Keywords that name places, or lead to them, in ways that can't be followed here.
const NOT_TAKEN: [&str; 6] = [
    "$anchor",
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveAnchor",
    "$recursiveRef",
    "$vocabulary",
];

/// A walk over a schema, through its references.
struct Walk<'s> {
    root: &'s Value,
    parts: usize,
    patterns: usize,
    /// The references that led here.
    through: Vec<&'s str>,
}

impl<'s> Walk<'s> {
    fn over(root: &'s Value) -> Result<(), Wrong> {
        if !root.is_object() {
            return Err(Wrong::new("", "must be a JSON Schema, a JSON object"));
        }
        let mut walk = Self {
            root,
            parts: 0,
            patterns: 0,
            through: vec!["#"],
        };
        walk.part(root, "", 0)
    }

    fn part(&mut self, part: &'s Value, path: &str, depth: usize) -> Result<(), Wrong> {
        self.parts += 1;
        if self.parts > MOST_PARTS {
            return Err(Wrong::new(
                "",
                format!(
                    "has more than {MOST_PARTS} parts, with each `$ref` taken for what it leads to"
                ),
            ));
        }
        if depth > DEEPEST {
            return Err(Wrong::new(
                "",
                format!(
                    "has parts more than {DEEPEST} deep, with each `$ref` taken for what it leads to"
                ),
            ));
        }
        let Value::Object(members) = part else {
            return Ok(());
        };
        for (keyword, value) in members {
            let path = format!("{path}.{keyword}");
            let keyword = keyword.as_str();
            if NOT_TAKEN.contains(&keyword) {
                return Err(Wrong::new(&path, "is not taken: use `$ref` with `#/…`"));
            }
            if matches!(keyword, "$id" | "id") && depth > 0 && value.is_string() {
                return Err(Wrong::new(&path, "is taken at the top alone"));
            }
            if keyword == "$ref" {
                self.reference(value, &path, depth)?;
            }
            if keyword == "pattern" {
                self.pattern(&path)?;
            }
            if let (true, Value::Object(map)) = (MAPS.contains(&keyword), value) {
                for (name, part) in map {
                    let path = format!("{path}.{name}");
                    if keyword == "patternProperties" {
                        self.pattern(&path)?;
                    }
                    self.part(part, &path, depth + 1)?;
                }
            } else if let (true, Value::Array(list)) = (LISTS.contains(&keyword), value) {
                for (i, part) in list.iter().enumerate() {
                    self.part(part, &format!("{path}[{i}]"), depth + 1)?;
                }
            } else if ONE.contains(&keyword) {
                self.part(value, &path, depth + 1)?;
            }
        }
        Ok(())
    }

    fn reference(&mut self, value: &'s Value, path: &str, depth: usize) -> Result<(), Wrong> {
        let to = value.as_str().unwrap_or_default();
        let pointer = to.strip_prefix('#').unwrap_or("?");
        if !pointer.is_empty() && !pointer.starts_with('/') || pointer.contains('%') {
            return Err(Wrong::new(
                path,
                "takes a place in this very schema, such as `#/$defs/address`: nothing is fetched",
            ));
        }
        if self.through.contains(&to) {
            return Err(Wrong::new(
                path,
                "leads back to where it stands: a schema may not refer to itself",
            ));
        }
        let target = self
            .root
            .pointer(pointer)
            .ok_or_else(|| Wrong::new(path, "leads nowhere"))?;
        self.through.push(to);
        self.part(target, to, depth + 1)?;
        self.through.pop();
        Ok(())
    }

    fn pattern(&mut self, path: &str) -> Result<(), Wrong> {
        self.patterns += 1;
        if self.patterns > MOST_PATTERNS {
            return Err(Wrong::new(
                path,
                format!("is one pattern too many: at most {MOST_PATTERNS} are taken"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // D4: a number beyond a double, wherever it is.
    #[test]
    fn what_is_no_value_is_found() {
        let any = Schema::parse("{}").unwrap();
        for (payload, path) in [
            ("1e400", ""),
            (r#"{"a":1,"b":[0,{"c d":-1e999}]}"#, r#".b[1]["c d"]"#),
            (r"[1.5,[[2e308]],3e400]", "[1][0][0]"),
            (r#"{"a":{"x":1},"b":{"x":1e400}}"#, ".b.x"),
        ] {
            let wrong = any.faults(payload.as_bytes());
            let expected = Wrong::new(path, "is a number that is too large");
            assert_eq!(wrong, [expected], "{payload}");
        }
        assert_eq!(any.faults(br#"{"a":[1e308,1e-400]}"#), []);
    }

    fn refused(schema: &str) -> Wrong {
        Schema::parse(schema).map(drop).unwrap_err()
    }

    // D4: the path of what is wrong, and never a value.
    #[test]
    fn what_does_not_fit_is_named_by_its_place() {
        let schema = Schema::parse(
            r##"{"type":"object","required":["id"],"properties":{
                "id":{"type":"string","pattern":"^[a-z]+$"},
                "lines":{"type":"array","items":{"$ref":"#/$defs/line"}},
                "a b":{"type":"integer"}},
              "$defs":{"line":{"type":"object","properties":{"price":{"type":"number","minimum":0}}}}}"##,
        )
        .unwrap();
        let paths = |payload: &str| -> Vec<String> {
            let faults = schema.faults(payload.as_bytes());
            assert!(
                faults.iter().all(|f| !f.message.contains("secret")),
                "{faults:?}"
            );
            faults.into_iter().map(|f| f.path).collect()
        };
        assert_eq!(
            paths(r#"{"id":"x","lines":[{"price":1}],"more":1}"#),
            [""; 0]
        );
        assert_eq!(paths("{}"), [""]);
        assert_eq!(paths(r#"{"id":"secret1"}"#), [".id"]);
        assert_eq!(
            paths(r#"{"id":"x","lines":[{"price":1},{"price":"secret"}],"a b":"secret"}"#),
            [".lines[1].price", r#"["a b"]"#]
        );
        assert_eq!(paths("1e400"), [""]);
    }

    // D4: nothing is fetched, and no payload costs more than the schema's size.
    #[test]
    fn schemas_have_limits() {
        for (schema, path) in [
            ("5", ""),
            ("true", ""),
            ("{", ""),
            (r#"{"type":"nothing"}"#, ".type"),
            (r#"{"$ref":"https://example.com/a.json"}"#, ".$ref"),
            (
                r#"{"properties":{"a":{"$ref":"other.json"}}}"#,
                ".properties.a.$ref",
            ),
            (r##"{"$ref":"#"}"##, ".$ref"),
            (r##"{"$ref":"#/$defs/none"}"##, ".$ref"),
            (r##"{"$dynamicRef":"#x"}"##, ".$dynamicRef"),
            (
                r#"{"allOf":[{"$id":"https://a.example/"}]}"#,
                ".allOf[0].$id",
            ),
            (
                r##"{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}"##,
                "#/$defs/a.$ref",
            ),
        ] {
            assert_eq!(refused(schema).path, path, "{schema}");
        }
        assert!(
            refused(&format!("{{\"title\":\"{}\"}}", "x".repeat(MAX_SCHEMA)))
                .message
                .contains("bytes")
        );
        // Each doubles the one before it.
        let doubled: Vec<String> = (1..30)
            .map(|n| {
                format!(
                    r##""d{n}":{{"allOf":[{{"$ref":"#/$defs/d{m}"}},{{"$ref":"#/$defs/d{m}"}}]}}"##,
                    m = n - 1
                )
            })
            .collect();
        let doubling = format!(r#"{{"$defs":{{"d0":{{}},{}}}}}"#, doubled.join(","));
        assert!(refused(&doubling).message.contains("10000 parts"));
        let deep = format!("{}{{}}{}", r#"{"not":"#.repeat(65), "}".repeat(65));
        assert!(refused(&deep).message.contains("deep"));
        // Patterns that could take exponential time, or much memory.
        for pattern in [r"(?=a)b", r"(a)\\1", r"(a{1000}){1000}"] {
            refused(&format!(r#"{{"pattern":"{pattern}"}}"#));
        }
        let patterns: Vec<String> = (0..101)
            .map(|n| format!(r#"{{"pattern":"{n}"}}"#))
            .collect();
        let many = format!(r#"{{"anyOf":[{}]}}"#, patterns.join(","));
        assert!(refused(&many).message.contains("too many"));
        // A property may be named like a keyword, and a value look like one.
        for good in [
            r#"{"properties":{"$ref":{"type":"string"},"$id":{"type":"integer"}}}"#,
            r#"{"const":{"$ref":"https://example.com"},"$id":"https://a.example/b"}"#,
            r#"{"$schema":"http://json-schema.org/draft-07/schema#","definitions":{"a":{}}}"#,
        ] {
            Schema::parse(good).unwrap();
        }
    }
}
