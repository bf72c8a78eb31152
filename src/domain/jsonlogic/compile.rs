//! Rules: read, checked and compiled once.

use std::fmt::Write as _;

use super::{
    evaluate::{Exhausted, Fuel},
    value::Value,
};

/// The longest rule, in bytes of text.
pub const MAX_BYTES: usize = 8192;
/// How deep a rule's arrays and objects may lie in one another.
pub const MAX_NESTING: u16 = 64;
/// How much of a name that the rule's author made up is repeated, in characters.
const ECHO: usize = 64;

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Invalid {
    /// Where: members as `["=="]`, entries as `[0]`; empty for the whole.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

/// A rule that can be evaluated.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub(super) root: Node,
}

/// A part of a rule.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// It stands for itself.
    Literal(Value<'static>),
    /// An array with something in it that is to be evaluated.
    List(Vec<Node>),
    /// An operation.
    Call(Operator, Vec<Node>),
    /// `var` with a name that is known: its steps, and what stands in for it.
    Var(Vec<Box<str>>, Option<Box<Node>>),
}

/// What a rule can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Var,
    Missing,
    MissingSome,
    If,
    And,
    Or,
    Not,
    Truth,
    Equal,
    NotEqual,
    Same,
    NotSame,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Min,
    Max,
    Cat,
    Substr,
    In,
    Merge,
    Map,
    Filter,
    Reduce,
    All,
    Some,
    None,
}

/// Any number of arguments.
const ANY: usize = usize::MAX;

/// Each operator with the fewest and the most arguments that it takes.
const OPERATORS: [(&str, Operator, usize, usize); 34] = [
    ("var", Operator::Var, 0, 2),
    ("missing", Operator::Missing, 0, ANY),
    ("missing_some", Operator::MissingSome, 2, 2),
    ("if", Operator::If, 1, ANY),
    ("?:", Operator::If, 3, 3),
    ("and", Operator::And, 1, ANY),
    ("or", Operator::Or, 1, ANY),
    ("!", Operator::Not, 1, 1),
    ("!!", Operator::Truth, 1, 1),
    ("==", Operator::Equal, 2, 2),
    ("!=", Operator::NotEqual, 2, 2),
    ("===", Operator::Same, 2, 2),
    ("!==", Operator::NotSame, 2, 2),
    ("<", Operator::Less, 2, 3),
    ("<=", Operator::LessOrEqual, 2, 3),
    (">", Operator::Greater, 2, 2),
    (">=", Operator::GreaterOrEqual, 2, 2),
    ("+", Operator::Add, 1, ANY),
    ("-", Operator::Subtract, 1, 2),
    ("*", Operator::Multiply, 1, ANY),
    ("/", Operator::Divide, 2, 2),
    ("%", Operator::Remainder, 2, 2),
    ("min", Operator::Min, 1, ANY),
    ("max", Operator::Max, 1, ANY),
    ("cat", Operator::Cat, 1, ANY),
    ("substr", Operator::Substr, 2, 3),
    ("in", Operator::In, 2, 2),
    ("merge", Operator::Merge, 0, ANY),
    ("map", Operator::Map, 2, 2),
    ("filter", Operator::Filter, 2, 2),
    ("reduce", Operator::Reduce, 2, 3),
    ("all", Operator::All, 2, 2),
    ("some", Operator::Some, 2, 2),
    ("none", Operator::None, 2, 2),
];

impl Rule {
    /// Compiles a rule's JSON text.
    ///
    /// # Errors
    /// The first thing that is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let whole = |message: String| Invalid {
            path: String::new(),
            message,
        };
        if text.len() > MAX_BYTES {
            return Err(whole(format!("has at most {MAX_BYTES} bytes")));
        }
        // Says what is wrong and where, which our own reader does not.
        let checked: Result<serde::de::IgnoredAny, _> = serde_json::from_str(text);
        checked.map_err(|e| whole(format!("must be JSON: {e}")))?;
        let Some(value) = Value::parse(text, MAX_NESTING) else {
            return Err(whole(format!(
                "must not nest arrays and objects more than {MAX_NESTING} deep"
            )));
        };
        let mut path = String::new();
        let root = node(&value, &mut path).map_err(|message| Invalid { path, message })?;
        Ok(Self { root })
    }

    /// Evaluates the rule. Of what is not there the value is `null`.
    ///
    /// # Errors
    /// Where the fuel does not suffice.
    pub fn evaluate<'v>(
        &'v self,
        data: &Value<'v>,
        fuel: &mut Fuel,
    ) -> Result<Value<'v>, Exhausted> {
        super::evaluate::evaluate(&self.root, data, fuel)
    }

    /// Whether what comes of the rule counts as true.
    ///
    /// # Errors
    /// Where the fuel does not suffice.
    pub fn holds<'v>(&'v self, data: &Value<'v>, fuel: &mut Fuel) -> Result<bool, Exhausted> {
        Ok(super::coerce::truthy(&self.evaluate(data, fuel)?))
    }
}

/// Compiles a part of a rule. Where it fails `path` is left at the place.
fn node(value: &Value<'_>, path: &mut String) -> Result<Node, String> {
    let object = match value {
        Value::Object(object) => object,
        Value::List(list) => {
            let items = nodes(list.items(), path)?;
            if items.iter().all(|n| matches!(n, Node::Literal(_))) {
                return Ok(Node::Literal(value.to_static()));
            }
            return Ok(Node::List(items));
        }
        simple => return Ok(Node::Literal(simple.to_static())),
    };
    let [(name, given)] = object.members() else {
        return Err("must be an operation: an object with one member, its operator".to_owned());
    };
    let before = path.len();
    let echo: String = name.chars().take(ECHO).collect();
    // Writing to a String can't fail.
    let _ = write!(path, "[{echo:?}]");
    let found = OPERATORS.iter().find(|(n, ..)| n == name);
    let Some((_, operator, least, most)) = found else {
        let names: Vec<&str> = OPERATORS.iter().map(|(name, ..)| *name).collect();
        return Err(format!("is no operator; there are {}", names.join(", ")));
    };
    let arguments = match given {
        Value::List(list) => nodes(list.items(), path)?,
        one => vec![node(one, path)?],
    };
    if arguments.len() < *least || arguments.len() > *most {
        let takes = match (*least, *most) {
            (a, ANY) => format!("{a} or more arguments"),
            (1, 1) => "1 argument".to_owned(),
            (a, b) if a == b => format!("{a} arguments"),
            (a, b) => format!("{a} to {b} arguments"),
        };
        return Err(format!("takes {takes}, not {}", arguments.len()));
    }
    path.truncate(before);
    Ok(call(*operator, arguments))
}

fn nodes(items: &[Value<'_>], path: &mut String) -> Result<Vec<Node>, String> {
    let before = path.len();
    let mut out = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let _ = write!(path, "[{i}]");
        out.push(node(item, path)?);
        path.truncate(before);
    }
    Ok(out)
}

/// A `var` whose name is known is taken apart here, once.
fn call(operator: Operator, mut arguments: Vec<Node>) -> Node {
    let name = match (operator, arguments.first()) {
        (Operator::Var, None | Some(Node::Literal(Value::Null))) => Some(String::new()),
        (Operator::Var, Some(Node::Literal(Value::Text(name)))) => Some(name.as_str().to_owned()),
        _ => None,
    };
    let Some(name) = name else {
        return Node::Call(operator, arguments);
    };
    let default = (arguments.len() == 2).then(|| arguments.pop()).flatten();
    let steps = if name.is_empty() {
        Vec::new()
    } else {
        name.split('.').map(Into::into).collect()
    };
    Node::Var(steps, default.map(Box::new))
}
