//! Which path leads where.

use http::Method;

use super::REST;
use crate::rest::routes::Found;

fn find(method: &Method, path: &str) -> String {
    match REST.routes.find(method, path) {
        Found::Route(route, variables) => format!("{} {variables:?}", route.rpc.name()),
        Found::Methods(allow) => allow,
        Found::Nothing => "-".to_owned(),
    }
}

#[test]
fn literals_come_before_variables() {
    let events = "/v1/external/events";
    assert_eq!(
        find(&Method::POST, &format!("{events}/batch")),
        "PublishEvents []"
    );
    assert_eq!(
        find(&Method::GET, &format!("{events}/batch")),
        r#"GetEvent ["batch"]"#
    );
    assert_eq!(
        find(&Method::PUT, &format!("{events}/batch")),
        "GET, HEAD, OPTIONS, POST"
    );
    assert_eq!(
        find(&Method::PUT, &format!("{events}/e")),
        "GET, HEAD, OPTIONS"
    );
}

#[test]
fn further_bindings_reach_the_same_rpc() {
    for (path, id) in [("webhooks/sub_1", "sub_1"), ("events/evt_1", "evt_1")] {
        let path = format!("/v1/external/{path}/deliveries");
        assert_eq!(
            find(&Method::GET, &path),
            format!("ListDeliveries [{id:?}]")
        );
    }
}

#[test]
fn every_rpc_with_a_rule_has_its_route() {
    for route in REST.routes.iter() {
        let path = route.template.replace(['{', '}'], "");
        let Found::Route(found, variables) = REST.routes.find(&route.method, &path) else {
            panic!("{path}");
        };
        assert!(std::ptr::eq(found, route), "{path}");
        assert_eq!(variables.len(), route.variables.len());
    }
}
