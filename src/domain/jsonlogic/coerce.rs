//! What JavaScript makes of a value where another kind is wanted.

use std::{cmp::Ordering, fmt::Write as _};

use super::{
    evaluate::{Exhausted, Fuel},
    value::{Number, Value},
};

/// Whether a value counts as true: not `null`, `false`, 0, what is no number, `""`
/// and `[]`.
pub(super) fn truthy(value: &Value<'_>) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => !(n.as_f64() == 0.0 || n.as_f64().is_nan()),
        Value::Text(text) => !text.as_str().is_empty(),
        Value::List(list) => !list.items().is_empty(),
        Value::Object(_) => true,
    }
}

/// `Number(value)`.
pub(super) fn number(value: &Value<'_>, fuel: &mut Fuel) -> Result<Number, Exhausted> {
    Ok(match value {
        Value::Null => Number::Whole(0),
        Value::Bool(b) => Number::Whole(i128::from(*b)),
        Value::Number(n) => *n,
        Value::Text(text) => number_of_text(text.as_str(), fuel)?,
        Value::List(_) => number_of_text(&text(value, fuel)?, fuel)?,
        Value::Object(_) => Number::Double(f64::NAN),
    })
}

fn number_of_text(text: &str, fuel: &mut Fuel) -> Result<Number, Exhausted> {
    fuel.spend_bytes(text.len())?;
    let text = text.trim();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if text.is_empty() {
        return Ok(Number::Whole(0));
    }
    for (prefix, radix) in [("0x", 16), ("0X", 16), ("0o", 8), ("0b", 2)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            // A sign would be taken here, and is none there.
            let plain = digits.bytes().all(|b| b.is_ascii_alphanumeric());
            let read = i128::from_str_radix(digits, radix).ok().filter(|_| plain);
            return Ok(read.map_or(Number::Double(f64::NAN), Number::Whole));
        }
    }
    if digits == "Infinity" {
        let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
        return Ok(Number::Double(f64::INFINITY * sign));
    }
    // Rust reads "inf" and "nan" too.
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Ok(Number::Double(f64::NAN));
    }
    Ok(match text.parse::<i128>() {
        Ok(n) if n != 0 => Number::Whole(n),
        _ => text.parse().map_or(Number::Double(f64::NAN), Number::of),
    })
}

/// `parseFloat(value)`: the number that the text begins with.
pub(super) fn leading_number(value: &Value<'_>, fuel: &mut Fuel) -> Result<Number, Exhausted> {
    if let Value::Number(n) = value {
        return Ok(*n);
    }
    let text = text(value, fuel)?;
    let text = text.trim_start();
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if unsigned.starts_with("Infinity") {
        let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
        return Ok(Number::Double(f64::INFINITY * sign));
    }
    let digits = |from: &str| from.bytes().take_while(u8::is_ascii_digit).count();
    let sign = text.len() - unsigned.len();
    let whole = digits(unsigned);
    let rest = unsigned.get(whole..).unwrap_or_default();
    let fraction = rest.strip_prefix('.').map_or(0, |f| digits(f) + 1);
    if whole + fraction.saturating_sub(1) == 0 {
        return Ok(Number::Double(f64::NAN));
    }
    let mut end = sign + whole + fraction;
    let exponent = text.get(end..).unwrap_or_default();
    if let Some(e) = exponent.strip_prefix(['e', 'E']) {
        let unsigned = e.strip_prefix(['+', '-']).unwrap_or(e);
        let n = digits(unsigned);
        if n > 0 {
            end += 1 + (e.len() - unsigned.len()) + n;
        }
    }
    number_of_text(text.get(..end).unwrap_or_default(), fuel)
}

/// `String(value)`.
pub(super) fn text(value: &Value<'_>, fuel: &mut Fuel) -> Result<String, Exhausted> {
    let mut out = String::new();
    write_text(&mut out, value, fuel)?;
    Ok(out)
}

/// Appends `String(value)`.
pub(super) fn write_text(
    out: &mut String,
    value: &Value<'_>,
    fuel: &mut Fuel,
) -> Result<(), Exhausted> {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => write_number(out, *n),
        Value::Text(text) => {
            fuel.spend_bytes(text.as_str().len())?;
            out.push_str(text.as_str());
        }
        Value::List(list) => join(out, list.items(), ",", fuel)?,
        Value::Object(_) => out.push_str("[object Object]"),
    }
    Ok(())
}

/// `items.join(separator)`: what is `null` is nothing.
pub(super) fn join(
    out: &mut String,
    items: &[Value<'_>],
    separator: &str,
    fuel: &mut Fuel,
) -> Result<(), Exhausted> {
    for (i, item) in items.iter().enumerate() {
        fuel.spend(1)?;
        if i > 0 {
            out.push_str(separator);
        }
        if !matches!(item, Value::Null) {
            write_text(out, item, fuel)?;
        }
    }
    Ok(())
}

/// Writing to a String can't fail.
fn write_number(out: &mut String, n: Number) {
    let n = match n {
        Number::Whole(n) => {
            let _ = write!(out, "{n}");
            return;
        }
        Number::Double(n) => n,
    };
    let size = n.abs();
    let _ = if n.is_nan() {
        write!(out, "NaN")
    } else if n.is_infinite() {
        write!(out, "{}Infinity", if n < 0.0 { "-" } else { "" })
    } else if size == 0.0 {
        write!(out, "0")
    } else if (1e-6..1e21).contains(&size) {
        write!(out, "{n}")
    } else {
        let text = format!("{n:e}");
        // A positive exponent has its sign.
        write!(
            out,
            "{}",
            if size >= 1.0 {
                text.replace('e', "e+")
            } else {
                text
            }
        )
    };
}

/// `a === b`.
pub(super) fn same(a: &Value<'_>, b: &Value<'_>, fuel: &mut Fuel) -> Result<bool, Exhausted> {
    fuel.spend(1)?;
    Ok(match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            let (a, b) = (a.as_str(), b.as_str());
            if a.len() == b.len() {
                fuel.spend_bytes(a.len())?;
            }
            a == b
        }
        (Value::List(a), Value::List(b)) => {
            let (a, b) = (a.items(), b.items());
            a.len() == b.len() && {
                for (a, b) in a.iter().zip(b) {
                    if !same(a, b, fuel)? {
                        return Ok(false);
                    }
                }
                true
            }
        }
        (Value::Object(a), Value::Object(b)) => {
            let (a, b) = (a.members(), b.members());
            a.len() == b.len() && {
                for ((a_name, a), (b_name, b)) in a.iter().zip(b) {
                    fuel.spend_bytes(a_name.len())?;
                    if a_name != b_name || !same(a, b, fuel)? {
                        return Ok(false);
                    }
                }
                true
            }
        }
        (a, b) => a == b,
    })
}

/// `a == b`.
pub(super) fn equal(a: &Value<'_>, b: &Value<'_>, fuel: &mut Fuel) -> Result<bool, Exhausted> {
    use Value::{Bool, List, Null, Number, Object, Text};
    match (a, b) {
        (Null, Null) => Ok(true),
        (Null, _) | (_, Null) => Ok(false),
        (Text(_), Text(_))
        | (List(_) | Object(_), List(_) | Object(_))
        | (Bool(_), Bool(_))
        | (Number(_), Number(_)) => same(a, b, fuel),
        // An array or object against something simple is its text.
        (List(_) | Object(_), Text(other)) | (Text(other), List(_) | Object(_)) => {
            let complex = if matches!(a, Text(_)) { b } else { a };
            Ok(text(complex, fuel)? == other.as_str())
        }
        _ => Ok(number(a, fuel)? == number(b, fuel)?),
    }
}

/// How `a` stands to `b` under `<` and `>`; none where no order is between them.
pub(super) fn order(
    a: &Value<'_>,
    b: &Value<'_>,
    fuel: &mut Fuel,
) -> Result<Option<Ordering>, Exhausted> {
    let is_text = |v: &Value<'_>| matches!(v, Value::Text(_) | Value::List(_) | Value::Object(_));
    if is_text(a) && is_text(b) {
        if let (Value::Text(a), Value::Text(b)) = (a, b) {
            let (a, b) = (a.as_str(), b.as_str());
            fuel.spend_bytes(a.len().min(b.len()))?;
            return Ok(Some(a.cmp(b)));
        }
        return Ok(Some(text(a, fuel)?.cmp(&text(b, fuel)?)));
    }
    Ok(number(a, fuel)?.partial_cmp(&number(b, fuel)?))
}
