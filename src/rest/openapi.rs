//! The `OpenAPI` 3.1 document, from the same descriptors that calls are served
//! by: comments are the descriptions, annotations the paths.

mod comments;
mod errors;
mod schemas;

use serde_json::{Map, Value, json};

use self::{comments::Comments, schemas::Schemas};
use super::{
    Rest, hot, request,
    routes::{Body, Route},
    schema::{Field, ValueKind},
};
use crate::{domain::cloudevent::STRUCTURED_JSON, proto::v1::Audience};

/// The whole document.
#[must_use]
pub fn document(rest: &Rest) -> Value {
    let comments = Comments::new(rest.schema.pool());
    let schemas = Schemas::new(rest, &comments);
    let mut paths = Map::new();
    for route in rest.routes.iter() {
        let method = route.method.as_str().to_ascii_lowercase();
        let operation = operation(rest, &comments, &schemas, route);
        if let Some(item) = entry(&mut paths, &route.template) {
            item.insert(method, operation);
        }
    }
    for (path, description, media) in PLAIN {
        if let Some(item) = entry(&mut paths, path) {
            item.insert("get".to_owned(), plain(path, description, media));
        }
    }
    let mut components = schemas.components();
    components.insert("Problem".to_owned(), errors::problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "OneRing",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "API keys, events and signed webhooks. Every error is a \
                problem+json (RFC 9457) with a `code`; 64-bit integers are JSON numbers; \
                fields that are unknown are refused.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": tags(rest, &comments),
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": errors::responses(),
            "securitySchemes": {"bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "An API key: `osk_…` of a consumer, `sk_admin_…` of an \
                    operator or an internal service.",
            }},
        },
    })
}

/// Routes that are no RPC: path, what it answers, its media type.
const PLAIN: [(&str, &str, &str); 4] = [
    (
        "/health",
        "Whether the server lives; with `deep=true` also what it depends on.",
        "application/json",
    ),
    ("/docs", "This reference, for people.", "text/html"),
    ("/openapi.json", "This document.", "application/json"),
    (
        "/metrics",
        "Metrics in the text form of Prometheus.",
        "text/plain",
    ),
];

fn plain(path: &str, description: &str, media: &str) -> Value {
    let name = path.trim_matches('/').replace('.', "_");
    let schema = match media {
        "application/json" => json!({"type": "object"}),
        _ => json!({"type": "string"}),
    };
    let mut operation = json!({
        "operationId": format!("Server_{name}"),
        "tags": ["Server"],
        "summary": description,
        "security": [],
        "responses": {
            "200": {"description": "OK", "content": {media: {"schema": schema}}},
            "default": {"$ref": "#/components/responses/Error"},
        },
    });
    if path == "/health" {
        operation["parameters"] = json!([{
            "name": "deep",
            "in": "query",
            "description": "Also checks the database, its migrations, Redis, the worker \
                and the queue's age.",
            "schema": {"type": "boolean"},
        }]);
        operation["responses"]["503"] = json!({
            "description": "Something that the server depends on is not well.",
            "content": {media: {"schema": schema}},
        });
    }
    operation
}

fn entry<'m>(paths: &'m mut Map<String, Value>, path: &str) -> Option<&'m mut Map<String, Value>> {
    let item = paths.entry(path).or_insert_with(|| json!({}));
    item.as_object_mut()
}

fn tags(rest: &Rest, comments: &Comments) -> Vec<Value> {
    let mut tags: Vec<Value> = Vec::new();
    for route in rest.routes.iter() {
        let service = route.rpc.parent_service();
        if !tags.iter().any(|tag| tag["name"] == service.name()) {
            let description = comments.get(&service.parent_file(), service.path());
            tags.push(json!({"name": service.name(), "description": description}));
        }
    }
    tags.push(json!({"name": "Server", "description": "The server itself."}));
    tags
}

fn operation(rest: &Rest, comments: &Comments, schemas: &Schemas<'_>, route: &Route) -> Value {
    let service = route.rpc.parent_service();
    let description = comments.get(&service.parent_file(), route.rpc.path());
    let public = route.access.audience == Audience::Public as i32;
    let with_body = route.body != Body::None;
    let answer = match response_field(rest, route) {
        Some(field) => schemas.field(field),
        None => schemas.reference(route.output),
    };
    let mut responses = Map::new();
    responses.insert(
        route.status.as_str().to_owned(),
        json!({
            "description": route.status.canonical_reason().unwrap_or("OK"),
            "headers": {"X-Request-Id": {
                "description": "The id of this call, for questions to the operator.",
                "schema": {"type": "string"},
            }},
            "content": {"application/json": {"schema": answer}},
        }),
    );
    for status in errors::statuses(public, with_body) {
        let reference = format!("#/components/responses/Error{status}");
        responses.insert(status.to_string(), json!({"$ref": reference}));
    }
    responses.insert(
        "default".to_owned(),
        json!({"$ref": "#/components/responses/Error"}),
    );
    let mut operation = json!({
        "operationId": operation_id(rest, route),
        "tags": [service.name()],
        "summary": description.split_once(". ").map_or(description, |(first, _)| first),
        "description": format!("{description}{}", access(route)),
        "parameters": parameters(rest, schemas, route),
        "responses": responses,
    });
    if public {
        operation["security"] = json!([]);
    }
    if with_body {
        operation["requestBody"] = request_body(rest, schemas, route);
    }
    operation
}

/// `KeyService_GetKey`; a further path of one RPC says by what: an id is unique.
fn operation_id(rest: &Rest, route: &Route) -> String {
    let base = format!("{}_{}", route.rpc.parent_service().name(), route.rpc.name());
    let mut same = rest.routes.iter().filter(|r| r.rpc == route.rpc);
    if same.next().is_none_or(|first| std::ptr::eq(first, route)) {
        return base;
    }
    let fields = &rest.schema.message(route.input).fields;
    let names = route.variables.iter().filter_map(|i| fields.get(*i));
    let names: Vec<&str> = names.map(|f| f.name.as_str()).collect();
    format!("{base}_by_{}", names.join("_"))
}

fn access(route: &Route) -> String {
    let who = match Audience::try_from(route.access.audience) {
        Ok(Audience::Consumer) => "a consumer's key or an admin key",
        Ok(Audience::Admin | Audience::Monitoring | Audience::Worker) => "an admin key",
        Ok(Audience::Public | Audience::Unspecified) | Err(_) => return String::new(),
    };
    match route.access.scope.as_str() {
        "" => format!("\n\nTakes {who}."),
        scope => format!("\n\nTakes {who} with the scope `{scope}`."),
    }
}

fn response_field<'r>(rest: &'r Rest, route: &Route) -> Option<&'r Field> {
    rest.schema
        .message(route.output)
        .fields
        .get(route.response_body?)
}

fn parameters(rest: &Rest, schemas: &Schemas<'_>, route: &Route) -> Vec<Value> {
    let fields = &rest.schema.message(route.input).fields;
    let mut parameters = Vec::new();
    for field in route.variables.iter().filter_map(|i| fields.get(*i)) {
        parameters.push(json!({
            "name": field.name,
            "in": "path",
            "required": true,
            "description": schemas.description(field),
            "schema": schemas.bare(field),
        }));
    }
    for (i, field) in fields.iter().enumerate() {
        if request::is_parameter(&rest.schema, route, i, field) {
            parameters.push(json!({
                "name": field.name,
                "in": "query",
                "description": schemas.description(field),
                "schema": schemas.bare(field),
            }));
        }
    }
    let keyed = fields.iter().find(|f| f.name == "idempotency_key");
    if let Some(field) = keyed.filter(|_| route.body == Body::Whole) {
        parameters.push(json!({
            "name": "Idempotency-Key",
            "in": "header",
            "description": schemas.description(field),
            "schema": {"type": "string"},
        }));
    }
    parameters
}

fn request_body(rest: &Rest, schemas: &Schemas<'_>, route: &Route) -> Value {
    let input = rest.schema.message(route.input);
    let field = match route.body {
        Body::Field(index) => input.fields.get(index),
        Body::None | Body::Whole => None,
    };
    let schema = match field.map(|f| &f.kind) {
        Some(ValueKind::Message(id)) => schemas.reference(*id),
        // What the path gives is not asked for again.
        _ if route.variables.is_empty() => schemas.reference(route.input),
        _ => schemas.object(route.input, &route.variables),
    };
    let mut content = json!({"application/json": {"schema": schema}});
    if route.template == hot::PUBLISH {
        content[STRUCTURED_JSON] = json!({"schema": cloud_event()});
    }
    json!({ "content": content })
}

/// A CloudEvent in structured mode.
fn cloud_event() -> Value {
    let text =
        |description: &str| json!({"type": "string", "minLength": 1, "description": description});
    json!({
        "type": "object",
        "description": "A CloudEvent 1.0. Attributes that are not named here are accepted and not kept.",
        "required": ["specversion", "id", "source", "type"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": text("Its id, unique within its source."),
            "source": text("Where it comes from, a URI reference."),
            "type": text("The event's type."),
            "datacontenttype": text("A media type of JSON; `application/json` where it is not there."),
            "data": {"description": "The payload: any JSON."},
        },
        "additionalProperties": true,
    })
}
