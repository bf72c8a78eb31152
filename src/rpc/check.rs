//! Checks of what a request's fields hold. All that is wrong is named at once.

use std::{collections::HashMap, fmt, str::FromStr};

use crate::error::{Error, Reason, Result, Violation};

/// How many violations an answer names: they travel in a header.
const MOST: usize = 20;
/// How much of a name that the caller made up is repeated, in characters.
const ECHO: usize = 64;

/// What is wrong with a request, as it is found.
#[derive(Debug, Default)]
pub(super) struct Faults {
    under: &'static str,
    found: Vec<Violation>,
    refused: Option<Error>,
}

impl Faults {
    /// Of fields that lie in another one: `under` stands in front of their names.
    pub(super) fn under(under: &'static str) -> Self {
        Self {
            under,
            ..Self::default()
        }
    }

    /// Adds a violation, unless there are enough. Messages never repeat a
    /// value: it may be a secret.
    pub(super) fn add(&mut self, field: impl fmt::Display, message: impl Into<String>) {
        if self.found.len() < MOST {
            self.found.push(Violation {
                field: format!("{}{field}", self.under),
                message: message.into(),
            });
        }
    }

    /// Adds a violation of a field of the request itself.
    pub(super) fn add_outside(&mut self, field: &str, message: impl Into<String>) {
        if self.found.len() < MOST {
            self.found.push(Violation {
                field: field.to_owned(),
                message: message.into(),
            });
        }
    }

    /// With what else was found.
    pub(super) fn and(mut self, mut other: Self) -> Self {
        self.found.append(&mut other.found);
        self.found.truncate(MOST);
        self.refused = self.refused.or(other.refused);
        self
    }

    /// Refuses for another reason than a malformed field. Told where no field
    /// is malformed.
    pub(super) fn refuse(&mut self, error: Error) {
        self.refused.get_or_insert(error);
    }

    /// Refuses for what one field names, in a form that is right.
    pub(super) fn refuse_field(&mut self, reason: Reason, field: &str, why: String) {
        let mut error = Error::new(reason, why.clone());
        error.violations = vec![Violation {
            field: format!("{}{field}", self.under),
            message: why,
        }];
        self.refuse(error);
    }

    /// Whether anything was found.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with all that was found, or what it was refused for.
    pub(super) fn done(&mut self) -> Result<()> {
        if !self.found.is_empty() {
            return Err(Error::fields(std::mem::take(&mut self.found)));
        }
        self.refused.take().map_or(Ok(()), Err)
    }

    /// Text of at most so many characters. Line breaks are for `lines` only, and
    /// other control characters for nobody.
    pub(super) fn text(&mut self, field: &str, text: &str, most: usize, lines: bool) -> String {
        if text.chars().count() > most {
            self.add(field, format!("has at most {most} characters"));
        }
        if text.contains(|c: char| c.is_control() && !(lines && matches!(c, '\n' | '\r' | '\t'))) {
            self.add(field, "has no control characters");
        }
        text.to_owned()
    }

    /// A number in a range; `default` where it is 0.
    pub(super) fn number<T>(&mut self, field: &str, n: T, least: T, most: T, default: T) -> T
    where
        T: PartialOrd + Default + fmt::Display + Copy,
    {
        if n == T::default() {
            return default;
        }
        if n < least || n > most {
            self.add(field, format!("takes {least} to {most}"));
        }
        n
    }

    /// The owner's notes, sorted.
    pub(super) fn metadata(&mut self, given: &HashMap<String, String>) -> Vec<(String, String)> {
        if given.len() > 32 {
            self.add("metadata", "has at most 32 entries");
        }
        let sorted = sorted(given);
        for (name, value) in &sorted {
            if !(1..=64).contains(&name.chars().count()) {
                let field = entry("metadata", name);
                self.add(field, "has a name of 1 to 64 characters");
            }
            if value.chars().count() > 512 {
                self.add(entry("metadata", name), "has at most 512 characters");
            }
        }
        sorted
    }
}

/// A map's entries in the order of their names.
pub(super) fn sorted(map: &HashMap<String, String>) -> Vec<(String, String)> {
    let mut list: Vec<_> = map.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    list.sort_unstable();
    list
}

/// An entry of a map, as a violation names it: the same as for wrong JSON.
pub(super) fn entry(map: &str, name: &str) -> String {
    format!("{map}[{:?}]", echo(name))
}

/// The beginning of a name that the caller made up.
pub(super) fn echo(name: &str) -> String {
    name.chars().take(ECHO).collect()
}

/// An id that a request names.
///
/// # Errors
/// `INVALID_ARGUMENT` that names the field.
pub(super) fn id<T>(field: &str, text: &str) -> Result<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    text.parse().map_err(|e| match text {
        "" => Error::field(field, "is required"),
        _ => Error::field(field, format!("{e}")),
    })
}

/// How long a rotation's old secret stays good, in microseconds.
///
/// # Errors
/// `INVALID_ARGUMENT` where it is out of range.
pub(super) fn overlap(seconds: Option<i64>) -> Result<i64> {
    match seconds.unwrap_or(86_400) {
        s @ 0..=2_592_000 => Ok(s * 1_000_000),
        _ => Err(Error::field("overlap_seconds", "takes 0 to 2592000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::KeyId;

    #[test]
    fn everything_wrong_is_named_at_once() {
        let mut faults = Faults::under("key.");
        faults.text("name", &"ü".repeat(200), 200, false);
        faults.text("name", &"x".repeat(201), 200, false);
        faults.text("name", "a\nb", 200, false);
        faults.text("description", "a\nb", 200, true);
        faults.number("n", 0, 1, 20, 3);
        faults.number("n", 21, 1, 20, 3);
        faults.refuse(Error::not_found("x"));
        let error = faults.done().unwrap_err();
        assert_eq!(error.reason, Reason::InvalidArgument);
        let fields: Vec<_> = error.violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["key.name", "key.name", "key.n"]);
    }

    #[test]
    fn a_refusal_is_told_where_the_fields_are_right() {
        let mut faults = Faults::default();
        faults.refuse(Error::not_found("x"));
        assert_eq!(faults.done().unwrap_err().reason, Reason::NotFound);
        assert!(faults.done().is_ok());
    }

    #[test]
    fn metadata_has_limits() {
        let one = |name: String, value: String| HashMap::from([(name, value)]);
        for (map, right) in [
            (one("n".repeat(64), "v".repeat(512)), true),
            (one("n".repeat(65), String::new()), false),
            (one(String::new(), String::new()), false),
            (one("n".into(), "v".repeat(513)), false),
            (
                (0..32).map(|i| (i.to_string(), String::new())).collect(),
                true,
            ),
            (
                (0..33).map(|i| (i.to_string(), String::new())).collect(),
                false,
            ),
        ] {
            let mut faults = Faults::default();
            faults.metadata(&map);
            assert_eq!(faults.done().is_ok(), right, "{map:?}");
        }
    }

    #[test]
    fn ids_and_overlaps() {
        assert!(id::<KeyId>("key_id", "").is_err());
        let error = id::<KeyId>("key_id", "sub_01h455vb4pex5vsknk084sn02q").unwrap_err();
        assert_eq!(error.violations[0].field, "key_id");
        assert!(id::<KeyId>("key_id", "key_01h455vb4pex5vsknk084sn02q").is_ok());
        assert_eq!(overlap(None).unwrap(), 86_400_000_000);
        assert_eq!(overlap(Some(0)).unwrap(), 0);
        assert!(overlap(Some(-1)).is_err());
        assert!(overlap(Some(2_592_001)).is_err());
    }
}
