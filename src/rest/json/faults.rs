//! What is wrong with a request, and where.

use std::fmt::Write as _;

use crate::error::{Error, Violation};

/// How many violations an answer names.
const MOST: usize = 20;
/// How much of a name that the caller made up is repeated, in characters.
const ECHO: usize = 64;

/// Violations, as they are found.
#[derive(Debug, Default)]
pub struct Faults(Vec<Violation>);

impl Faults {
    /// Adds one, unless there are enough already. Messages never repeat a
    /// value: it may be a secret.
    pub fn push(&mut self, at: &Path<'_>, message: impl Into<String>) {
        if self.0.len() < MOST {
            self.0.push(Violation {
                field: at.render(),
                message: message.into(),
            });
        }
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `value`, unless something was found.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` that names all that was found.
    pub fn or<T>(self, value: T) -> Result<T, Error> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(Error::fields(self.0))
        }
    }
}

/// Where in a request: a list on the stack, so that a good request pays
/// nothing for it.
#[derive(Debug, Clone, Copy)]
pub enum Path<'a> {
    /// The whole body.
    Root,
    /// A field of what is there.
    Field(&'a Path<'a>, &'a str),
    /// An element of a list.
    Index(&'a Path<'a>, usize),
    /// A map's value.
    Key(&'a Path<'a>, &'a str),
}

impl Path<'_> {
    /// `events[3].metadata["team"]`; `body` is the whole of it.
    fn render(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        if out.is_empty() {
            out.push_str("body");
        }
        out
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Root => {}
            Self::Field(parent, name) => {
                parent.write(out);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(&short(name));
            }
            Self::Index(parent, index) => {
                parent.write(out);
                // Writing to a String can't fail.
                let _ = write!(out, "[{index}]");
            }
            Self::Key(parent, key) => {
                parent.write(out);
                let _ = write!(out, "[{:?}]", short(key));
            }
        }
    }
}

/// The beginning of a name, without control characters.
fn short(name: &str) -> String {
    let mut out: String = name
        .chars()
        .filter(|c| !c.is_control())
        .take(ECHO)
        .collect();
    if out.len() < name.len() {
        out.push('…');
    }
    out
}
