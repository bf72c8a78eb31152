//! Event types with schemas: what fits is taken, and what does not is refused by
//! its place.

use bytes::Bytes;
use http_body_util::Full;
use onering::proto::v1::{PublishEventRequest, publish_event_request::Payload};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{
    app::{Answer, TestApp, eventually, fields, reason},
    store::Db,
};

contract![
    an_event_type_is_made_changed_and_deleted,
    a_payload_that_does_not_fit_is_refused,
    every_way_of_publishing_is_checked,
    types_are_of_their_tenant,
    what_is_no_schema_is_refused_by_its_place,
    schemas_outlive_a_restart,
];
on_postgres_alone![a_schema_holds_on_every_node];

const TYPES: &str = "/v1/admin/event-types";
const EVENTS: &str = "/v1/external/events";

/// Spaces and digits that a detour would lose.
const SPELLED: &str = r#"{ "type" : "object", "maximum": 12345678901234567891 }"#;

fn schema() -> Value {
    json!({
        "type": "object",
        "required": ["id"],
        "properties": {
            "id": {"type": "string", "pattern": "^in_[0-9]+$"},
            "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
            "at": {"type": "string", "format": "date-time"},
        },
        "$defs": {"line": {"type": "object", "properties": {"price": {"minimum": 0}}}},
    })
}

async fn register(app: &TestApp, name: &str, schema: Value) -> Answer {
    let body = json!({"name": name, "schema": schema});
    app.post(TYPES, &app.admin, body).await
}

async fn publish(app: &TestApp, event_type: &str, data: Value) -> Answer {
    let body = json!({"event_type": event_type, "data": data});
    app.post(EVENTS, &app.admin, body).await
}

fn places(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array().unwrap();
    errors
        .iter()
        .map(|e| e["field"].as_str().unwrap())
        .collect()
}

// D4: the schema is shown as it was written.
async fn an_event_type_is_made_changed_and_deleted(db: Db) {
    let app = TestApp::start(&db).await;
    let body = format!(r#"{{"name":"invoice.paid","description":"Faktura","schema":{SPELLED}}}"#);
    let request = app
        .request("POST", TYPES, &app.admin)
        .header("content-type", "application/json");
    let made = app.send(request.body(Full::from(body)).unwrap()).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let shown = format!(r#""schema":{SPELLED}"#);
    assert!(made.text().contains(&shown), "{}", made.text());
    let path = format!("{TYPES}/invoice.paid");
    for path in [path.as_str(), TYPES] {
        let read = app.get(path, &app.admin).await;
        assert!(read.text().contains(&shown), "{}", read.text());
    }
    register(&app, "invoice.paid", json!({}))
        .await
        .refused(409, "ALREADY_EXISTS");
    let changed = app.patch(&path, &app.admin, json!({"schema": null})).await;
    let changed = changed.ok();
    assert_eq!(changed["description"], "Faktura");
    assert!(
        changed.get("schema").is_none_or(Value::is_null),
        "{changed}"
    );
    publish(&app, "invoice.paid", json!(5)).await.ok();
    let changed = app
        .patch(&path, &app.admin, json!({"schema": {"type": "object"}}))
        .await;
    assert_eq!(changed.ok()["schema"], json!({"type": "object"}));
    publish(&app, "invoice.paid", json!(5))
        .await
        .refused(422, "SCHEMA_MISMATCH");
    let renamed = app.patch(&path, &app.admin, json!({"name": "x"})).await;
    renamed.refused(400, "INVALID_ARGUMENT");
    app.delete(&path, &app.admin).await.ok();
    publish(&app, "invoice.paid", json!(5)).await.ok();
    for gone in [
        app.get(&path, &app.admin).await,
        app.delete(&path, &app.admin).await,
        app.patch(&path, &app.admin, json!({"description": "x"}))
            .await,
    ] {
        gone.refused(404, "NOT_FOUND");
    }
    app.stop().await;
}

// D4, E1: by the path of each thing that is wrong; no event is made.
async fn a_payload_that_does_not_fit_is_refused(db: Db) {
    let app = TestApp::start(&db).await;
    register(&app, "invoice.paid", schema()).await.ok();
    for (data, wrong) in [
        (json!({"id": "in_1", "lines": [{"price": 1}]}), vec![]),
        (json!({"id": "in_1", "at": "2026-01-01T00:00:00Z"}), vec![]),
        (json!({}), vec!["data"]),
        (json!("in_1"), vec!["data"]),
        (json!({"id": "x"}), vec!["data.id"]),
        (json!({"id": "in_1", "at": "now"}), vec!["data.at"]),
        (
            json!({"id": 5, "lines": [{}, {"price": -1}]}),
            vec!["data.id", "data.lines[1].price"],
        ),
    ] {
        let answer = publish(&app, "invoice.paid", data.clone()).await;
        if wrong.is_empty() {
            answer.ok();
            continue;
        }
        let problem = answer.refused(422, "SCHEMA_MISMATCH");
        let mut found = places(&problem);
        found.sort_unstable();
        assert_eq!(found, wrong, "{data}");
    }
    // Values may be somebody's own: they are not repeated.
    let problem = publish(&app, "invoice.paid", json!({"id": "Jane Doe"})).await;
    assert!(!problem.text().contains("Jane"), "{}", problem.text());
    // Of another type, or of one without a schema, any payload is taken.
    register(&app, "free", Value::Null).await.ok();
    publish(&app, "free", json!(1)).await.ok();
    publish(&app, "invoice.paid.late", json!(1)).await.ok();
    app.stop().await;
}

// D4: over gRPC, in a batch, and as a CloudEvent.
async fn every_way_of_publishing_is_checked(db: Db) {
    let app = TestApp::start(&db).await;
    register(&app, "a.b", json!({"required": ["id"]}))
        .await
        .ok();
    let one = |data: Value| json!({"event_type": "a.b", "data": data});
    let batch = json!({"events": [one(json!({})), one(json!({"id": 1}))]});
    let batch = app
        .post(&format!("{EVENTS}/batch"), &app.admin, batch)
        .await
        .ok();
    let error = &batch["results"][0]["error"];
    assert_eq!(error["reason"], "SCHEMA_MISMATCH");
    assert!(
        error["message"].as_str().unwrap().starts_with("data: "),
        "{error}"
    );
    assert!(batch["results"][1]["accepted"].is_object(), "{batch}");
    let request = PublishEventRequest {
        event_type: "a.b".into(),
        payload: Some(Payload::DataJson(Bytes::from_static(b"{}"))),
        ..Default::default()
    };
    let refused = app.grpc(&app.admin).events.publish_event(request).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(reason(&refused), "SCHEMA_MISMATCH");
    assert_eq!(fields(&refused), ["data"]);
    for (data, fits) in [("{}", false), (r#"{"id":1}"#, true)] {
        let structured = format!(
            r#"{{"specversion":"1.0","id":"s{fits}","source":"/s","type":"a.b","data":{data}}}"#
        );
        let request = app
            .request("POST", EVENTS, &app.admin)
            .header("content-type", "application/cloudevents+json");
        let structured = app
            .send(request.body(Full::from(structured)).unwrap())
            .await;
        let request = app
            .request("POST", EVENTS, &app.admin)
            .header("content-type", "application/json")
            .header("ce-specversion", "1.0")
            .header("ce-id", if fits { "1" } else { "2" })
            .header("ce-source", "/b")
            .header("ce-type", "a.b");
        let binary = app.send(request.body(Full::from(data)).unwrap()).await;
        for answer in [structured, binary] {
            if fits {
                answer.ok();
            } else {
                answer.refused(422, "SCHEMA_MISMATCH");
            }
        }
    }
    app.stop().await;
}

// D4, T1
async fn types_are_of_their_tenant(db: Db) {
    let app = TestApp::start(&db).await;
    let acme = app.tenant("acme").await;
    let body = json!({"tenant": "acme", "name": "a.b", "schema": {"type": "object"}});
    let made = app.post(TYPES, &app.admin, body).await.ok();
    assert_eq!(made["tenant"], "acme");
    publish(&app, "a.b", json!(1)).await.ok();
    let body = json!({"event_type": "a.b", "data": 1});
    let theirs = app.post(EVENTS, &acme.key, body).await;
    theirs.refused(422, "SCHEMA_MISMATCH");
    let listed = app.get(&format!("{TYPES}?tenant=acme"), &app.admin).await;
    assert_eq!(listed.ok()["event_types"].as_array().unwrap().len(), 1);
    app.get(&format!("{TYPES}/a.b"), &app.admin)
        .await
        .refused(404, "NOT_FOUND");
    let path = format!("{TYPES}/a.b?tenant=acme");
    app.get(&path, &app.admin).await.ok();
    app.patch(&path, &app.admin, json!({"schema": {}}))
        .await
        .ok();
    app.delete(&path, &app.admin).await.ok();
    app.stop().await;
}

// D4, E3: nothing is fetched, and what could cost without end is not taken.
async fn what_is_no_schema_is_refused_by_its_place(db: Db) {
    let app = TestApp::start(&db).await;
    for (schema, wrong) in [
        (json!(5), "schema"),
        (json!({"type": "nothing"}), "schema.type"),
        (json!({"$ref": "http://127.0.0.1:9/x.json"}), "schema.$ref"),
        (
            json!({"items": {"$ref": "file:///etc/passwd"}}),
            "schema.items.$ref",
        ),
        (json!({"allOf": [{"$ref": "#"}]}), "schema.allOf[0].$ref"),
        (json!({"title": "x".repeat(65_536)}), "schema"),
    ] {
        let answer = register(&app, "a.b", schema).await;
        let problem = answer.refused(400, "INVALID_ARGUMENT");
        assert_eq!(places(&problem), [wrong]);
    }
    for name in ["", "a b", "a..b"] {
        let answer = register(&app, name, json!({})).await;
        let problem = answer.refused(400, "INVALID_ARGUMENT");
        assert_eq!(places(&problem), ["name"]);
    }
    register(&app, "a.b", json!({})).await.ok();
    let path = format!("{TYPES}/a.b");
    let answer = app
        .patch(&path, &app.admin, json!({"schema": {"type": "nothing"}}))
        .await;
    let problem = answer.refused(400, "INVALID_ARGUMENT");
    assert_eq!(places(&problem), ["schema.type"]);
    app.stop().await;
}

// D4
async fn schemas_outlive_a_restart(db: Db) {
    let app = TestApp::start(&db).await;
    register(&app, "a.b", json!({"type": "object"})).await.ok();
    let again = app.again();
    app.stop().await;
    let app = again.start().await;
    publish(&app, "a.b", json!(1))
        .await
        .refused(422, "SCHEMA_MISMATCH");
    app.stop().await;
}

// D4: within a poll of the configuration, and gone the same way.
async fn a_schema_holds_on_every_node(db: Db) {
    let one = TestApp::start(&db).await;
    let two = one.again().start().await;
    register(&one, "a.b", json!({"type": "object"})).await.ok();
    eventually("the other node checks", || async {
        (publish(&two, "a.b", json!(1)).await.status == 422).then_some(())
    })
    .await;
    one.delete(&format!("{TYPES}/a.b"), &one.admin).await.ok();
    eventually("the other node checks no more", || async {
        (publish(&two, "a.b", json!(1)).await.status == 202).then_some(())
    })
    .await;
    one.stop().await;
    two.stop().await;
}
