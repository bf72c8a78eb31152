//! The problems that a route may answer with.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    error::{Reason, code, meaning},
    rest::problem::{PROBLEM_JSON, TYPE_PREFIX},
};

/// Each reason, from the list in the proto.
fn reasons() -> impl Iterator<Item = Reason> {
    (1..)
        .map_while(|number| Reason::try_from(number).ok())
        .filter(|reason| *reason != Reason::Unspecified)
}

/// The schema of a problem.
pub(super) fn problem() -> Value {
    let codes: Vec<&str> = reasons().map(code).collect();
    json!({
        "type": "object",
        "description": "A refused call (RFC 9457).",
        "required": ["type", "title", "status", "code", "detail", "hint"],
        "properties": {
            "type": {"type": "string", "description": format!("`{TYPE_PREFIX}` and the code.")},
            "title": {"type": "string", "description": "The code in a few words."},
            "status": {"type": "integer", "description": "The HTTP status."},
            "code": {"type": "string", "enum": codes, "description": "Why; for programs."},
            "detail": {"type": "string", "description": "What happened; for people."},
            "request_id": {"type": "string", "description": "The id of this call."},
            "hint": {"type": "string", "description": "What can be done."},
            "errors": {
                "type": "array",
                "description": "Each field that is wrong.",
                "items": {
                    "type": "object",
                    "required": ["field", "message"],
                    "properties": {
                        "field": {"type": "string", "description": "Its path."},
                        "message": {"type": "string", "description": "What it takes."},
                    },
                },
            },
        },
    })
}

/// One response for each status, `Error404`, and `Error` for any.
pub(super) fn responses() -> Map<String, Value> {
    let mut by_status: BTreeMap<u16, Vec<Reason>> = BTreeMap::new();
    for reason in reasons() {
        by_status
            .entry(meaning(reason).http)
            .or_default()
            .push(reason);
    }
    let mut responses = Map::new();
    for (status, reasons) in by_status {
        let lines = reasons.iter().map(|r| {
            let meaning = meaning(*r);
            format!("- `{}`: {}. {}", code(*r), meaning.title, meaning.hint)
        });
        let lines: Vec<String> = lines.collect();
        responses.insert(format!("Error{status}"), response(&lines.join("\n")));
    }
    responses.insert("Error".to_owned(), response("Any other refusal."));
    responses
}

fn response(description: &str) -> Value {
    json!({
        "description": description,
        "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    })
}

/// The statuses that a route may be refused with.
pub(super) fn statuses(public: bool, with_body: bool) -> Vec<u16> {
    let mut statuses = vec![400, 404, 409, 429, 500, 503];
    if !public {
        statuses.extend([401, 403]);
    }
    // A body may be too large even where none is asked for.
    statuses.extend([413, 415]);
    if with_body {
        statuses.push(422);
    }
    statuses.sort_unstable();
    statuses
}
