//! The document describes what is served.

use std::collections::HashSet;

use serde_json::Value;

use super::REST;
use crate::rest::openapi::document;

/// Every `$ref` in a document.
fn references<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            into.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|v| references(v, into));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, into)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = document(&REST);
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 100);
    for reference in found {
        let target = document.pointer(reference.trim_start_matches('#'));
        assert!(target.is_some_and(|t| !t.is_null()), "{reference}");
    }
}

#[test]
fn every_route_is_described() {
    let document = document(&REST);
    let mut ids = HashSet::new();
    for route in REST.routes.iter() {
        let method = route.method.as_str().to_lowercase();
        let operation = &document["paths"][&route.template][&method];
        let id = operation["operationId"].as_str().unwrap();
        assert!(ids.insert(id), "{id} stands twice");
        assert!(!operation["summary"].as_str().unwrap().is_empty(), "{id}");
        assert!(
            operation["responses"][route.status.as_str()].is_object(),
            "{id}"
        );
        assert!(operation["responses"]["default"].is_object(), "{id}");
    }
    for path in ["/health", "/openapi.json", "/metrics"] {
        assert!(document["paths"][path]["get"].is_object());
    }
}

#[test]
fn publishing_is_described_as_it_is() {
    let document = document(&REST);
    let publish = &document["paths"]["/v1/external/events"]["post"];
    assert_eq!(publish["operationId"], "EventService_PublishEvent");
    assert_eq!(publish["parameters"][0]["name"], "Idempotency-Key");
    assert!(publish["responses"]["202"].is_object());
    let cloud_event = &publish["requestBody"]["content"]["application/cloudevents+json"];
    assert_eq!(cloud_event["schema"]["required"][3], "type");
    let request = &document["components"]["schemas"]["PublishEventRequest"];
    assert_eq!(request["additionalProperties"], false);
    // D5: any JSON, under its REST name.
    assert!(request["properties"]["data"].get("type").is_none());
    assert!(request["properties"].get("data_json").is_none());
    let status = &document["components"]["schemas"]["DeliveryStatus"]["enum"];
    assert!(status.as_array().unwrap().contains(&"DEAD".into()));
    assert!(!status.to_string().contains("UNSPECIFIED"));
}
