//! Evaluation of compiled rules, within bounds.

use std::{borrow::Cow, cmp::Ordering};

use super::{
    coerce::{equal, join, leading_number, number, order, same, text, truthy},
    compile::{Node, Operator},
    value::{List, Number, Object, Value},
};

/// How many bytes of text cost one step.
const BYTES_A_STEP: usize = 32;
/// How deep a value that is made may nest: reading and dropping it is recursive.
const MAX_DEPTH: u16 = 256;

/// The evaluation took more than it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rule takes too long to evaluate")]
pub struct Exhausted;

/// How much an evaluation may do yet, in steps: about one for each operation,
/// each entry of an array that is looked at and each 32 bytes of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fuel(pub u32);

impl Fuel {
    /// The steps that are left.
    #[must_use]
    pub fn left(self) -> u32 {
        self.0
    }

    pub(super) fn spend(&mut self, steps: usize) -> Result<()> {
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        let left = self.0.checked_sub(steps);
        self.0 = left.unwrap_or(0);
        left.map(|_| ()).ok_or(Exhausted)
    }

    pub(super) fn spend_bytes(&mut self, bytes: usize) -> Result<()> {
        self.spend(bytes / BYTES_A_STEP)
    }
}

type Result<T> = std::result::Result<T, Exhausted>;

/// Evaluates a part of a rule.
pub(super) fn evaluate<'v>(node: &'v Node, data: &Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>> {
    fuel.spend(1)?;
    match node {
        Node::Literal(value) => Ok(value.clone()),
        Node::List(items) => list(all(items, data, fuel)?),
        Node::Var(steps, default) => {
            fuel.spend(steps.len())?;
            match walk(data, steps.iter().map(AsRef::as_ref)) {
                Some(value) => Ok(value),
                None => or_null(default.as_deref(), data, fuel),
            }
        }
        Node::Call(operator, arguments) => call(*operator, arguments, data, fuel),
    }
}

fn or_null<'v>(node: Option<&'v Node>, data: &Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>> {
    node.map_or(Ok(Value::Null), |node| evaluate(node, data, fuel))
}

fn all<'v>(nodes: &'v [Node], data: &Value<'v>, fuel: &mut Fuel) -> Result<Vec<Value<'v>>> {
    nodes.iter().map(|n| evaluate(n, data, fuel)).collect()
}

/// An array that is made.
fn list(items: Vec<Value<'_>>) -> Result<Value<'_>> {
    let made = Value::List(List::new(items));
    if made.depth() > MAX_DEPTH {
        return Err(Exhausted);
    }
    Ok(made)
}

/// What lies at the end of these steps; none where it is `null` or not there.
fn walk<'v, 's>(data: &Value<'v>, steps: impl Iterator<Item = &'s str>) -> Option<Value<'v>> {
    let mut at = data;
    for step in steps {
        at = match at {
            Value::Object(object) => object.get(step)?,
            Value::List(list) => list.items().get(step.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    (*at != Value::Null).then(|| at.clone())
}

/// What lies at that name; the whole where it is none.
fn look_up<'v>(data: &Value<'v>, name: &Value<'_>, fuel: &mut Fuel) -> Result<Option<Value<'v>>> {
    let name = match name {
        Value::Null => Cow::Borrowed(""),
        Value::Text(name) => Cow::Borrowed(name.as_str()),
        other => Cow::Owned(text(other, fuel)?),
    };
    fuel.spend_bytes(name.len())?;
    if name.is_empty() {
        return Ok((*data != Value::Null).then(|| data.clone()));
    }
    fuel.spend(name.bytes().filter(|b| *b == b'.').count() + 1)?;
    Ok(walk(data, name.split('.')))
}

fn call<'v>(
    operator: Operator,
    nodes: &'v [Node],
    data: &Value<'v>,
    fuel: &mut Fuel,
) -> Result<Value<'v>> {
    match operator {
        // These do not evaluate all of their arguments, or not once.
        Operator::If => branch(nodes, data, fuel),
        Operator::And => until(nodes, data, fuel, false),
        Operator::Or => until(nodes, data, fuel, true),
        Operator::Map
        | Operator::Filter
        | Operator::All
        | Operator::Some
        | Operator::None
        | Operator::Reduce => each(operator, nodes, data, fuel),
        Operator::Var => {
            let name = or_null(nodes.first(), data, fuel)?;
            match look_up(data, &name, fuel)? {
                Some(value) => Ok(value),
                None => or_null(nodes.get(1), data, fuel),
            }
        }
        _ => {
            let arguments = all(nodes, data, fuel)?;
            apply(operator, &arguments, data, fuel)
        }
    }
}

/// `if`: conditions with what follows from each, and what is left.
fn branch<'v>(nodes: &'v [Node], data: &Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>> {
    for pair in nodes.chunks(2) {
        let [condition, then] = pair else {
            return or_null(pair.first(), data, fuel);
        };
        if truthy(&evaluate(condition, data, fuel)?) {
            return evaluate(then, data, fuel);
        }
    }
    Ok(Value::Null)
}

/// The first that is so, else the last.
fn until<'v>(nodes: &'v [Node], data: &Value<'v>, fuel: &mut Fuel, so: bool) -> Result<Value<'v>> {
    let mut last = Value::Null;
    for node in nodes {
        last = evaluate(node, data, fuel)?;
        if truthy(&last) == so {
            break;
        }
    }
    Ok(last)
}

/// The operators that evaluate their second argument with each entry as the data.
fn each<'v>(
    operator: Operator,
    nodes: &'v [Node],
    data: &Value<'v>,
    fuel: &mut Fuel,
) -> Result<Value<'v>> {
    let [scope, body, rest @ ..] = nodes else {
        return Ok(Value::Null);
    };
    let scope = evaluate(scope, data, fuel)?;
    let items = match &scope {
        Value::List(list) => list.items(),
        _ => &[],
    };
    match operator {
        Operator::Map => {
            let made: Result<Vec<_>> = items.iter().map(|i| evaluate(body, i, fuel)).collect();
            list(made?)
        }
        Operator::Filter => {
            let mut kept = Vec::new();
            for item in items {
                if truthy(&evaluate(body, item, fuel)?) {
                    kept.push(item.clone());
                }
            }
            list(kept)
        }
        Operator::Reduce => {
            let mut accumulator = or_null(rest.first(), data, fuel)?;
            for item in items {
                let scope = Value::Object(Object::new(vec![
                    (Cow::Borrowed("accumulator"), accumulator),
                    (Cow::Borrowed("current"), item.clone()),
                ]));
                if scope.depth() > MAX_DEPTH {
                    return Err(Exhausted);
                }
                accumulator = evaluate(body, &scope, fuel)?;
            }
            Ok(accumulator)
        }
        // Of no entries none are, and not all.
        _ => {
            let wanted = operator != Operator::All;
            for item in items {
                if truthy(&evaluate(body, item, fuel)?) == wanted {
                    return Ok(Value::Bool(operator == Operator::Some));
                }
            }
            Ok(Value::Bool(match operator {
                Operator::All => !items.is_empty(),
                Operator::None => true,
                _ => false,
            }))
        }
    }
}

fn apply<'v>(
    operator: Operator,
    a: &[Value<'v>],
    data: &Value<'v>,
    fuel: &mut Fuel,
) -> Result<Value<'v>> {
    let at = |i: usize| a.get(i).unwrap_or(&Value::Null);
    let double = |n: f64| Ok(Value::Number(Number::of(n)));
    let truth = |b: bool| Ok(Value::Bool(b));
    match operator {
        Operator::Missing => missing(keys(a), data, fuel),
        Operator::MissingSome => missing_some(at(0), at(1), data, fuel),
        Operator::Not => truth(!truthy(at(0))),
        Operator::Truth => truth(truthy(at(0))),
        Operator::Equal => truth(equal(at(0), at(1), fuel)?),
        Operator::NotEqual => truth(!equal(at(0), at(1), fuel)?),
        Operator::Same => truth(same(at(0), at(1), fuel)?),
        Operator::NotSame => truth(!same(at(0), at(1), fuel)?),
        Operator::Less => truth(ascends(a, fuel, Ordering::is_lt)?),
        Operator::LessOrEqual => truth(ascends(a, fuel, Ordering::is_le)?),
        Operator::Greater => truth(ascends(a, fuel, Ordering::is_gt)?),
        Operator::GreaterOrEqual => truth(ascends(a, fuel, Ordering::is_ge)?),
        Operator::Add => {
            let mut sum = 0.0;
            for value in a {
                sum += leading_number(value, fuel)?.as_f64();
            }
            double(sum)
        }
        Operator::Multiply => {
            let mut product = 1.0;
            for value in a {
                product *= leading_number(value, fuel)?.as_f64();
            }
            double(product)
        }
        Operator::Subtract => {
            let first = number(at(0), fuel)?.as_f64();
            match a.get(1) {
                Some(second) => double(first - number(second, fuel)?.as_f64()),
                None => double(-first),
            }
        }
        Operator::Divide => double(number(at(0), fuel)?.as_f64() / number(at(1), fuel)?.as_f64()),
        Operator::Remainder => {
            double(number(at(0), fuel)?.as_f64() % number(at(1), fuel)?.as_f64())
        }
        Operator::Min => furthest(a, fuel, Ordering::Less),
        Operator::Max => furthest(a, fuel, Ordering::Greater),
        Operator::Cat => {
            let mut out = String::new();
            join(&mut out, a, "", fuel)?;
            Ok(Value::made(&out))
        }
        Operator::Substr => substr(a, fuel),
        Operator::In => contains(at(0), at(1), fuel),
        Operator::Merge => {
            let mut out = Vec::new();
            for value in a {
                match value {
                    Value::List(list) => {
                        fuel.spend(list.items().len())?;
                        out.extend_from_slice(list.items());
                    }
                    other => out.push(other.clone()),
                }
            }
            list(out)
        }
        // Evaluated where its arguments are not.
        _ => Ok(Value::Null),
    }
}

/// Whether each stands so to the next.
fn ascends(a: &[Value<'_>], fuel: &mut Fuel, so: fn(Ordering) -> bool) -> Result<bool> {
    for pair in a.windows(2) {
        if let [a, b] = pair
            && !order(a, b, fuel)?.is_some_and(so)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

fn furthest<'v>(a: &[Value<'v>], fuel: &mut Fuel, way: Ordering) -> Result<Value<'v>> {
    let mut found: Option<Number> = None;
    for value in a {
        let n = number(value, fuel)?;
        match found.map(|f| n.partial_cmp(&f)) {
            Some(Some(o)) if o != way => {}
            // One that is no number makes all of it none.
            Some(None) => found = Some(Number::Double(f64::NAN)),
            _ => found = Some(n),
        }
    }
    Ok(found.map_or(Value::Null, Value::Number))
}

/// The arguments, or what is in the first where that is an array.
fn keys<'a, 'v>(a: &'a [Value<'v>]) -> &'a [Value<'v>] {
    match a.first() {
        Some(Value::List(list)) => list.items(),
        _ => a,
    }
}

fn missing<'v>(keys: &[Value<'v>], data: &Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>> {
    let mut out = Vec::new();
    for key in keys {
        fuel.spend(1)?;
        let is_there = match look_up(data, key, fuel)? {
            Some(Value::Text(text)) => !text.as_str().is_empty(),
            found => found.is_some(),
        };
        if !is_there {
            out.push(key.clone());
        }
    }
    list(out)
}

fn missing_some<'v>(
    need: &Value<'v>,
    names: &Value<'v>,
    data: &Value<'v>,
    fuel: &mut Fuel,
) -> Result<Value<'v>> {
    let names = keys(std::slice::from_ref(names));
    let missing = missing(names, data, fuel)?;
    let Value::List(list) = &missing else {
        return Ok(missing);
    };
    let there = names.len() - list.items().len();
    if there as f64 >= number(need, fuel)?.as_f64() {
        return Ok(Value::List(List::new(Vec::new())));
    }
    Ok(missing)
}

/// `substr`: from a place, or so many from the end; then so many characters, or
/// all but so many.
fn substr<'v>(a: &[Value<'v>], fuel: &mut Fuel) -> Result<Value<'v>> {
    let source = match a.first() {
        Some(source) => text(source, fuel)?,
        None => String::new(),
    };
    let count = source.chars().count() as f64;
    let whole = |n: f64| if n.is_nan() { 0.0 } else { n.trunc() };
    let start = match a.get(1) {
        Some(start) => whole(number(start, fuel)?.as_f64()),
        None => 0.0,
    };
    let start = if start < 0.0 {
        (count + start).max(0.0)
    } else {
        start.min(count)
    };
    let length = match a.get(2) {
        None => count,
        Some(length) => whole(number(length, fuel)?.as_f64()),
    };
    let length = if length < 0.0 {
        count - start + length
    } else {
        length
    };
    // Within a text's length, or made so here.
    #[expect(clippy::cast_possible_truncation, reason = "between 0 and a length")]
    let (start, length) = (start as usize, length.clamp(0.0, count) as usize);
    let out: String = source.chars().skip(start).take(length).collect();
    Ok(Value::made(&out))
}

/// `in`: whether an array has it, or a text has its text.
fn contains<'v>(wanted: &Value<'v>, within: &Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>> {
    let found = match within {
        Value::List(list) => {
            let mut found = false;
            for item in list.items() {
                found = same(wanted, item, fuel)?;
                if found {
                    break;
                }
            }
            found
        }
        Value::Text(within) => {
            let within = within.as_str();
            fuel.spend_bytes(within.len())?;
            !within.is_empty() && within.contains(&text(wanted, fuel)?)
        }
        _ => false,
    };
    Ok(Value::Bool(found))
}
