//! Values: what a payload holds, and what operators make of it.

use std::{borrow::Cow, sync::Arc};

/// A JSON value. A clone costs the same whatever is in it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `null`; also whatever is not there.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    Text(Text<'a>),
    /// An array.
    List(List<'a>),
    /// An object: its members in the order of their names, each once.
    Object(Object<'a>),
}

/// A number: whole where it can be told exactly, else a double.
#[derive(Debug, Clone, Copy)]
pub enum Number {
    /// A whole number.
    Whole(i128),
    /// Any other; also what is no number, and infinity.
    Double(f64),
}

/// A string: a piece of what was read, or one that was made.
#[derive(Debug, Clone)]
pub enum Text<'a> {
    /// A piece of what was read.
    Read(&'a str),
    /// One that was made.
    Made(Arc<str>),
}

/// An object's member: its name and its value.
pub(super) type Member<'a> = (Cow<'a, str>, Value<'a>);

/// An object, and how deep it nests.
#[derive(Debug, Clone, PartialEq)]
pub struct Object<'a> {
    members: Arc<[Member<'a>]>,
    depth: u16,
}

impl<'a> Object<'a> {
    /// An object of these members, which are in the order of their names.
    pub(super) fn new(members: Vec<Member<'a>>) -> Self {
        let deepest = members.iter().map(|(_, v)| v.depth()).max().unwrap_or(0);
        Self {
            members: members.into(),
            depth: deepest.saturating_add(1),
        }
    }

    /// Its members, in the order of their names.
    #[must_use]
    pub fn members(&self) -> &[(Cow<'a, str>, Value<'a>)] {
        &self.members
    }

    /// The member of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        let at = self.members.binary_search_by(|(n, _)| n.as_ref().cmp(name));
        self.members.get(at.ok()?).map(|(_, value)| value)
    }
}

/// An array, and how deep it nests.
#[derive(Debug, Clone, PartialEq)]
pub struct List<'a> {
    items: Arc<[Value<'a>]>,
    depth: u16,
}

impl<'a> List<'a> {
    /// An array of these.
    pub(super) fn new(items: Vec<Value<'a>>) -> Self {
        let deepest = items.iter().map(Value::depth).max().unwrap_or(0);
        Self {
            items: items.into(),
            depth: deepest.saturating_add(1),
        }
    }

    /// What is in it.
    #[must_use]
    pub fn items(&self) -> &[Value<'a>] {
        &self.items
    }
}

impl Text<'_> {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Read(text) => text,
            Self::Made(text) => text,
        }
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Number {
    /// As a double.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Whole(n) => n as f64,
            Self::Double(n) => n,
        }
    }

    /// What JSON text says.
    fn parse(text: &str) -> Option<Self> {
        // `-0` is a double: whole numbers have no such thing.
        match text.parse::<i128>() {
            Ok(n) if n != 0 => Some(Self::Whole(n)),
            _ => text.parse().ok().map(Self::of),
        }
    }

    /// A double; whole where it is exactly so.
    #[must_use]
    pub fn of(n: f64) -> Self {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if n.fract() == 0.0 && n.abs() <= EXACT && !(n == 0.0 && n.is_sign_negative()) {
            #[expect(clippy::cast_possible_truncation, reason = "whole, and in range")]
            return Self::Whole(n as i128);
        }
        Self::Double(n)
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(std::cmp::Ordering::Equal)
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Some(a.cmp(b)),
            _ => self.as_f64().partial_cmp(&other.as_f64()),
        }
    }
}

impl<'a> Value<'a> {
    /// Reads JSON text. None where it is none, or nests deeper than `most`.
    #[must_use]
    pub fn parse(text: &'a str, most: u16) -> Option<Self> {
        let mut reader = Reader { rest: text };
        let value = reader.value(most)?;
        reader.space();
        reader.rest.is_empty().then_some(value)
    }

    /// A string that was made.
    pub(super) fn made(text: &str) -> Self {
        Self::Text(Text::Made(text.into()))
    }

    /// How deep arrays and objects lie in one another.
    pub(super) fn depth(&self) -> u16 {
        match self {
            Self::List(list) => list.depth,
            Self::Object(object) => object.depth,
            _ => 0,
        }
    }

    /// A value that outlives what it was read from.
    #[must_use]
    pub fn to_static(&self) -> Value<'static> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(b) => Value::Bool(*b),
            Self::Number(n) => Value::Number(*n),
            Self::Text(text) => Value::made(text.as_str()),
            Self::List(list) => Value::List(List::new(
                list.items().iter().map(Value::to_static).collect(),
            )),
            Self::Object(object) => Value::Object(Object::new(
                object
                    .members()
                    .iter()
                    .map(|(name, value)| (Cow::Owned(name.clone().into_owned()), value.to_static()))
                    .collect(),
            )),
        }
    }
}

/// Takes text apart that is JSON already, as a rule: what is not is none, and
/// nothing worse. `serde_json` itself refuses numbers beyond a double and halves
/// of surrogate pairs, which JSON allows and payloads may hold.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn take(&mut self, token: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(token)?;
        Some(())
    }

    fn next(&mut self) -> Option<u8> {
        self.space();
        self.rest.as_bytes().first().copied()
    }

    fn value(&mut self, most: u16) -> Option<Value<'a>> {
        match self.next()? {
            b'n' => self.take("null").map(|()| Value::Null),
            b't' => self.take("true").map(|()| Value::Bool(true)),
            b'f' => self.take("false").map(|()| Value::Bool(false)),
            b'"' => Some(Value::Text(match self.text()? {
                Cow::Borrowed(text) => Text::Read(text),
                Cow::Owned(text) => Text::Made(text.into()),
            })),
            b'[' => self.list(most.checked_sub(1)?),
            b'{' => self.object(most.checked_sub(1)?),
            _ => self.number(),
        }
    }

    fn number(&mut self) -> Option<Value<'a>> {
        let end = self
            .rest
            .find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E'))
            .unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        Number::parse(number).map(Value::Number)
    }

    fn list(&mut self, most: u16) -> Option<Value<'a>> {
        let mut items = Vec::new();
        self.take("[")?;
        if self.next()? != b']' {
            loop {
                items.push(self.value(most)?);
                if self.next()? == b']' {
                    break;
                }
                self.take(",")?;
            }
        }
        self.take("]")?;
        Some(Value::List(List::new(items)))
    }

    fn object(&mut self, most: u16) -> Option<Value<'a>> {
        let mut members: Vec<Member<'a>> = Vec::new();
        self.take("{")?;
        if self.next()? != b'}' {
            loop {
                self.space();
                let name = self.text()?;
                self.space();
                self.take(":")?;
                members.push((name, self.value(most)?));
                if self.next()? == b'}' {
                    break;
                }
                self.take(",")?;
            }
        }
        self.take("}")?;
        // Of members with one name the last counts. The sort keeps their order.
        members.sort_by(|a, b| a.0.cmp(&b.0));
        members.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                std::mem::swap(later, kept);
            }
            same
        });
        Some(Value::Object(Object::new(members)))
    }

    fn text(&mut self) -> Option<Cow<'a, str>> {
        self.take("\"")?;
        let plain = self.rest.find(['"', '\\'])?;
        let (text, rest) = self.rest.split_at_checked(plain)?;
        if rest.starts_with('"') {
            self.rest = rest.get(1..)?;
            return Some(Cow::Borrowed(text));
        }
        let mut out = String::from(text);
        self.rest = rest;
        loop {
            let plain = self.rest.find(['"', '\\'])?;
            let (text, rest) = self.rest.split_at_checked(plain)?;
            out.push_str(text);
            let escaped = rest.starts_with('\\');
            self.rest = rest.get(1..)?;
            if !escaped {
                return Some(Cow::Owned(out));
            }
            out.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let kind = chars.next()?;
        self.rest = chars.as_str();
        Some(match kind {
            '"' | '\\' | '/' => kind,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let first = self.unit()?;
                let pair = (0xd800..0xdc00).contains(&first) && self.rest.starts_with("\\u");
                if !pair {
                    return Some(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                let before = self.rest;
                self.take("\\u")?;
                let second = self.unit()?;
                if !(0xdc00..0xe000).contains(&second) {
                    // Half a character, and then another escape.
                    self.rest = before;
                    return Some(char::REPLACEMENT_CHARACTER);
                }
                char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00))?
            }
            _ => return None,
        })
    }

    fn unit(&mut self) -> Option<u32> {
        let (digits, rest) = self.rest.split_at_checked(4)?;
        self.rest = rest;
        digits
            .bytes()
            .all(|b| b.is_ascii_hexdigit())
            .then(|| u32::from_str_radix(digits, 16).ok())?
    }
}
