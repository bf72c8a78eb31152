//! JSONLogic (jsonlogic.com): conditions that are written as JSON by people
//! whom nobody trusts. A rule is compiled once, where all that is wrong with it
//! is said by its place; evaluating it has no errors of its own, costs no more
//! than the [`Fuel`] that it is given, and never panics.
//!
//! Operators: `var`, `missing`, `missing_some`; `if` (also `?:`), `and`, `or`,
//! `!`, `!!`; `==`, `!=`, `===`, `!==`, `<`, `<=`, `>`, `>=`; `+`, `-`, `*`, `/`,
//! `%`, `min`, `max`; `cat`, `substr`, `in`; `merge`, `map`, `filter`, `reduce`,
//! `all`, `some`, `none`. They do as the reference implementation in JavaScript
//! does, but for what is here on purpose:
//!
//! - Whole numbers up to 128 bits are compared by all of their digits; all else
//!   that is a number is a double.
//! - Two arrays or two objects are equal where what is in them is. (There: where
//!   they are the same one, which no two ever are.)
//! - Texts are put in order and cut by characters, not by UTF-16 units.
//! - An object that is no operation, an operator that is none and a wrong number
//!   of arguments are refused where the rule is compiled.
//! - There is no `log`: what is evaluated is not for logs.

mod coerce;
mod compile;
mod evaluate;
mod value;

pub use compile::{Invalid, MAX_BYTES, MAX_NESTING, Rule};
pub use evaluate::{Exhausted, Fuel};
pub use value::{List, Number, Object, Text, Value};

#[cfg(test)]
mod tests;
