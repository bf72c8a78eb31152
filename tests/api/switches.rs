//! Switches that are changed while the server runs.

use onering::proto::v1;
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, confirmed, eventually, fields, reason},
    call::call,
    command::onering,
    proxy::Proxy,
    store::Db,
};

contract![
    switches_are_set_live,
    what_always_works,
    wrong_changes_are_named,
    a_pin_is_not_changed_live,
    the_stop_is_stronger_than_a_pin,
    any_method_can_be_switched_off,
    any_plain_route_can_be_switched_off,
    changes_are_listed,
    flags_by_command,
];

on_postgres_alone![
    every_node_confirms,
    a_pin_of_another_node_counts,
    a_node_that_hears_nothing,
];

const ME: &str = "/v1/external/me";
const SWITCHES: &str = "/v1/admin/switches";
const STOP: &str = "/v1/admin/switches/stop-all";
const LIFT: &str = "/v1/admin/switches/lift-stop";
const API: &str = "external_api.enabled";
const CANARY: &str = "external_api.canary_only";
const WEBHOOKS: &str = "webhooks.enabled";
const DELIVERY: &str = "webhooks.delivery.enabled";

/// A node that pins nothing.
async fn start(db: &Db) -> TestApp {
    TestApp::builder(db).unpinned().start().await
}

async fn switches(app: &TestApp) -> Vec<Value> {
    let all = app.get(SWITCHES, &app.admin).await.ok();
    all["switches"].as_array().unwrap().clone()
}

async fn switch(app: &TestApp, name: &str) -> Value {
    let all = switches(app).await;
    let found = all.into_iter().find(|s| s["name"] == name);
    found.unwrap_or_else(|| panic!("no {name}"))
}

fn event() -> Value {
    json!({"event_type": "a.b", "data": 1})
}

// X1, X2: off until they are set; in force when the change is answered, on REST
// and gRPC alike.
async fn switches_are_set_live(db: Db) {
    let app = start(&db).await;
    let names: Vec<Value> = switches(&app)
        .await
        .iter()
        .map(|s| s["name"].clone())
        .collect();
    assert_eq!(names, [API, CANARY, WEBHOOKS, DELIVERY]);
    for s in switches(&app).await {
        let held = (&s["enabled"], &s["stored"], &s["pinned_by"], &s["stopped"]);
        assert_eq!(
            held,
            (&json!(false), &json!(false), &json!(""), &json!(false))
        );
        assert!(s["update_time"].is_null(), "{s}");
    }
    let (_, key) = app.key(json!({})).await;
    let (_, canary) = app.key(json!({"canary": true})).await;
    let me = call("KeyService/GetCaller", json!({}));
    let told = async |key: &str, code: &str| {
        let status = if code == "CANARY_ONLY_MODE" { 403 } else { 503 };
        app.get(ME, key).await.refused(status, code);
        assert_eq!(reason(&me.grpc(&app, key).await.unwrap_err()), code);
    };
    let works = async |key: &str| {
        app.get(ME, key).await.ok();
        me.grpc(&app, key).await.unwrap();
    };
    told(&key, "EXTERNAL_API_DISABLED").await;
    told("", "EXTERNAL_API_DISABLED").await;
    works(&app.admin).await;

    let set = app.switch(API, true).await;
    assert_eq!(set["switch"]["enabled"], true);
    works(&key).await;
    let set = v1::SetSwitchRequest {
        name: CANARY.into(),
        enabled: Some(true),
        reason: "stage 1".into(),
    };
    let mut flags = app.grpc(&app.admin).flags;
    let set = flags.set_switch(set).await.unwrap().into_inner();
    assert!(set.switch.unwrap().enabled);
    assert!(
        set.nodes.len() == 1 && set.nodes[0].confirmed,
        "{:?}",
        set.nodes
    );
    told(&key, "CANARY_ONLY_MODE").await;
    works(&canary).await;
    app.switch(CANARY, false).await;
    works(&key).await;
    let publish = async || app.post("/v1/external/events", &key, event()).await;
    publish().await.refused(503, "WEBHOOKS_DISABLED");
    app.switch(WEBHOOKS, true).await;
    assert_eq!(publish().await.status, 202);
    app.switch(WEBHOOKS, false).await;
    publish().await.refused(503, "WEBHOOKS_DISABLED");
    app.switch(API, false).await;
    told(&key, "EXTERNAL_API_DISABLED").await;

    let all = flags.get_switches(v1::GetSwitchesRequest {}).await.unwrap();
    let all = all.into_inner();
    assert!(all.revision > set.revision);
    assert_eq!(all.node, set.nodes[0].node);
    let me = app.get(ME, &app.admin).await.ok();
    let webhooks = switch(&app, WEBHOOKS).await;
    assert_eq!(webhooks["updated_by"], me["key_id"]);
    assert_eq!(webhooks["reason"], "a test");
    assert!(webhooks["update_time"].is_string());
    assert_eq!(switch(&app, DELIVERY).await["reason"], "", "never changed");
    // Stored: another process goes on with them.
    app.switch(API, true).await;
    let again = app.again();
    app.stop().await;
    let app = again.start().await;
    assert_eq!(app.get(ME, &key).await.status, 200);
    assert_eq!(switch(&app, CANARY).await["enabled"], false);
    app.stop().await;
}

// X1: admin, monitoring and health, whatever is off.
async fn what_always_works(db: Db) {
    let app = start(&db).await;
    let stop = json!({"reason": "a test"});
    confirmed(&app.post(STOP, &app.admin, stop).await.ok());
    for path in [
        "/v1/admin/external/keys",
        "/v1/admin/tenants",
        SWITCHES,
        "/metrics",
        ME,
    ] {
        assert_eq!(app.get(path, &app.admin).await.status, 200, "{path}");
    }
    for path in ["/health", "/openapi.json"] {
        assert_eq!(app.get(path, "").await.status, 200, "{path}");
    }
    app.key(json!({"name": "made meanwhile"})).await;
    app.stop().await;
}

// X3: a reason is required; what is wrong is named, over REST and gRPC alike.
async fn wrong_changes_are_named(db: Db) {
    let app = start(&db).await;
    let long = "x".repeat(501);
    let good = |reason: &str| json!({"name": API, "enabled": true, "reason": reason});
    for (rpc, request, named) in [
        ("SetSwitch", json!({}), &["name", "enabled", "reason"][..]),
        (
            "SetSwitch",
            json!({"name": API, "reason": "x"}),
            &["enabled"],
        ),
        ("SetSwitch", good(""), &["reason"]),
        ("SetSwitch", good(" \t "), &["reason"]),
        ("SetSwitch", good(&long), &["reason"]),
        ("SetSwitch", good("a\nb"), &["reason"]),
        (
            "SetSwitch",
            json!({"name": "webhooks", "enabled": true, "reason": "x"}),
            &["name"],
        ),
        ("StopAll", json!({}), &["reason"]),
        ("StopAll", json!({"reason": long}), &["reason"]),
        ("LiftStop", json!({}), &["name", "reason"]),
        ("ListSwitchChanges", json!({"name": "x"}), &["name"]),
        (
            "ListSwitchChanges",
            json!({"page_token": "x"}),
            &["page_token"],
        ),
    ] {
        let rpc: &'static str = match rpc {
            "SetSwitch" => "FlagService/SetSwitch",
            "StopAll" => "FlagService/StopAll",
            "LiftStop" => "FlagService/LiftStop",
            _ => "FlagService/ListSwitchChanges",
        };
        let call = call(rpc, request);
        let problem = call
            .rest(&app, &app.admin)
            .await
            .refused(400, "INVALID_ARGUMENT");
        let errors = problem["errors"].as_array().unwrap();
        let found: Vec<_> = errors
            .iter()
            .map(|e| e["field"].as_str().unwrap())
            .collect();
        assert_eq!(found, named, "{call:?}");
        let status = call.grpc(&app, &app.admin).await.unwrap_err();
        assert_eq!(fields(&status), named, "{call:?}");
        if named == ["name"] {
            assert!(
                status.message().contains("POST /v1/external/events"),
                "{status:?}"
            );
            assert!(status.message().contains(DELIVERY), "{status:?}");
        }
    }
    for s in switches(&app).await {
        assert_eq!(s["enabled"], false);
    }
    let (reason, name) = ("x".repeat(500), API);
    let body = json!({"name": name, "enabled": true, "reason": reason});
    app.post(SWITCHES, &app.admin, body).await.ok();
    // Scopes: to read and to write.
    let scoped = async |scope: &str| app.key(json!({"kind": "ADMIN", "scopes": [scope]})).await.1;
    let (reader, writer) = (scoped("flags:read").await, scoped("flags:write").await);
    app.get(SWITCHES, &reader).await.ok();
    app.get(SWITCHES, &writer)
        .await
        .refused(403, "SCOPE_MISSING");
    let body = json!({"reason": "x"});
    app.post(STOP, &reader, body.clone())
        .await
        .refused(403, "SCOPE_MISSING");
    app.post(STOP, &writer, body).await.ok();
    app.stop().await;
}

// X1: refused with where it is pinned.
async fn a_pin_is_not_changed_live(db: Db) {
    let app = TestApp::builder(&db).unpinned();
    let app = app.set("WEBHOOKS_ENABLED", 1).set("NODE_NAME", "frodo");
    let mut app = app.start().await;
    let pinned = switch(&app, WEBHOOKS).await;
    assert_eq!(
        (&pinned["enabled"], &pinned["stored"], &pinned["pinned_by"]),
        (
            &json!(true),
            &json!(false),
            &json!("ONERING_WEBHOOKS_ENABLED")
        )
    );
    let set = call(
        "FlagService/SetSwitch",
        json!({"name": WEBHOOKS, "enabled": false, "reason": "x"}),
    );
    let problem = set
        .rest(&app, &app.admin)
        .await
        .refused(409, "FAILED_PRECONDITION");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("ONERING_WEBHOOKS_ENABLED"), "{detail}");
    assert!(detail.contains("node frodo"), "{detail}");
    let status = set.grpc(&app, &app.admin).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    // Others are free, and this one is once its pin is gone.
    app.switch(DELIVERY, true).await;
    app.reload(&[("WEBHOOKS_ENABLED", "")]);
    assert_eq!(switch(&app, WEBHOOKS).await["enabled"], false, "as stored");
    eventually("the other nodes know", || async {
        let answer = set.rest(&app, &app.admin).await;
        (answer.status == 200).then_some(())
    })
    .await;
    app.stop().await;
}

// X4: it latches over pins, also over a restart, until it is lifted by name.
async fn the_stop_is_stronger_than_a_pin(db: Db) {
    let app = TestApp::start(&db).await;
    let (_, key) = app.key(json!({})).await;
    let state = async |app: &TestApp| {
        let all = switches(app).await;
        let all = all
            .iter()
            .map(|s| (s["enabled"] == true, s["stopped"] == true));
        all.collect::<Vec<_>>()
    };
    let (on, off, stopped) = ((true, false), (false, false), (false, true));
    assert_eq!(state(&app).await, [on, off, on, on]);
    let stop = json!({"reason": "incident 42"});
    let answer = app.post(STOP, &app.admin, stop.clone()).await.ok();
    confirmed(&answer);
    assert_eq!(answer["switches"].as_array().unwrap().len(), 3);
    assert_eq!(state(&app).await, [stopped, off, stopped, stopped]);
    app.get(ME, &key)
        .await
        .refused(503, "EXTERNAL_API_DISABLED");
    app.post("/v1/external/events", &app.admin, event())
        .await
        .refused(503, "WEBHOOKS_DISABLED");
    assert!(!app.app().context.dispatcher.is_delivering(), "at once");
    let again = app.again();
    app.stop().await;
    let app = again.start().await;
    assert_eq!(state(&app).await, [stopped, off, stopped, stopped]);
    assert!(!app.app().context.dispatcher.is_delivering());
    // Once more is no error, and does not need lifting twice.
    confirmed(&app.post(STOP, &app.admin, stop).await.ok());

    let lift = async |name: &str| {
        let body = json!({"name": name, "reason": "it is over"});
        app.post(LIFT, &app.admin, body).await
    };
    confirmed(&lift(API).await.ok());
    assert_eq!(state(&app).await, [on, off, stopped, stopped]);
    app.get(ME, &key).await.ok();
    for not_stopped in [API, CANARY, "GET /v1/external/me"] {
        let problem = lift(not_stopped).await.refused(409, "FAILED_PRECONDITION");
        assert!(
            problem["detail"]
                .as_str()
                .unwrap()
                .contains("is not stopped")
        );
    }
    lift(WEBHOOKS).await.ok();
    lift(DELIVERY).await.ok();
    assert_eq!(
        state(&app).await,
        [on, off, on, on],
        "their pins rule again"
    );
    assert!(app.app().context.dispatcher.is_delivering());
    app.stop().await;
}

// X5: for whoever calls, before any key is looked at, on REST and gRPC alike; the
// ways that are called most too.
async fn any_method_can_be_switched_off(db: Db) {
    let app = TestApp::start(&db).await;
    let (_, key) = app.key(json!({})).await;
    let publish = call("EventService/PublishEvent", event());
    let me = call("KeyService/GetCaller", json!({}));
    let list = call("KeyService/ListKeys", json!({}));
    for (name, rpc, off, on) in [
        (
            "POST /v1/external/events",
            "EventService/PublishEvent",
            &publish,
            &me,
        ),
        (
            "onering.v1.KeyService/GetCaller",
            "KeyService/GetCaller",
            &me,
            &publish,
        ),
        (
            "GET /v1/admin/external/keys",
            "KeyService/ListKeys",
            &list,
            &me,
        ),
    ] {
        let set = app.switch(name, false).await;
        let full = format!("onering.v1.{rpc}");
        assert_eq!(set["switch"]["name"], full);
        for key in ["", "osk_nonsense", &key, &app.admin] {
            let problem = off.rest(&app, key).await.refused(503, "ENDPOINT_DISABLED");
            assert!(problem["detail"].as_str().unwrap().contains(&full));
            let status = off.grpc(&app, key).await.unwrap_err();
            assert_eq!(reason(&status), "ENDPOINT_DISABLED");
        }
        assert!(on.rest(&app, &key).await.status < 300, "others go on");
        on.grpc(&app, &key).await.unwrap();
        app.switch(&full, true).await;
        assert!(off.rest(&app, &app.admin).await.status < 300);
        off.grpc(&app, &app.admin).await.unwrap();
    }
    let listed = switches(&app).await;
    assert_eq!(listed.len(), 7, "once named, they are listed");
    assert_eq!(listed[4]["name"], "onering.v1.EventService/PublishEvent");
    // The way back is never closed.
    for name in ["POST /v1/admin/switches", "onering.v1.FlagService/LiftStop"] {
        let body = json!({"name": name, "enabled": false, "reason": "x"});
        let answer = app.post(SWITCHES, &app.admin, body).await;
        let problem = answer.refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], "name");
    }
    app.stop().await;
}

// X5: routes that stand for no method too, for whoever calls. That the process lives is
// always told.
async fn any_plain_route_can_be_switched_off(db: Db) {
    let app = TestApp::start(&db).await;
    for (route, paths) in [
        ("GET /docs", &["/docs", "/docs/", "/docs/docs.css"][..]),
        ("GET /openapi.json", &["/openapi.json"]),
        ("GET /metrics", &["/metrics"]),
    ] {
        let set = app.switch(route, false).await;
        assert_eq!(set["switch"]["name"], route);
        for (path, key) in paths
            .iter()
            .flat_map(|p| [(p, ""), (p, app.admin.as_str())])
        {
            let problem = app.get(path, key).await.refused(503, "ENDPOINT_DISABLED");
            assert!(problem["detail"].as_str().unwrap().contains(route));
        }
        for other in ["/docs", "/openapi.json", "/metrics", "/health"] {
            let well = !paths.contains(&other);
            assert_eq!(app.get(other, &app.admin).await.status == 200, well);
        }
        app.switch(route, true).await;
        assert_eq!(app.get(paths[0], &app.admin).await.status, 200);
    }
    let body = json!({"name": "GET /health", "enabled": false, "reason": "x"});
    let problem = app.post(SWITCHES, &app.admin, body).await;
    problem.refused(400, "INVALID_ARGUMENT");
    app.stop().await;
}

// X3: who, when, why, old and new; newest first, by page, of one switch.
async fn changes_are_listed(db: Db) {
    let app = start(&db).await;
    app.switch(API, true).await;
    app.switch(WEBHOOKS, true).await;
    app.post(STOP, &app.admin, json!({"reason": "incident 42"}))
        .await
        .ok();
    let lift = json!({"name": API, "reason": "over"});
    app.post(LIFT, &app.admin, lift).await.ok();
    app.switch("POST /v1/external/events", false).await;
    let list = async |query: &str| {
        let path = format!("{SWITCHES}/changes?{query}");
        let page = app.get(&path, &app.admin).await.ok();
        let token = page["next_page_token"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (page["changes"].as_array().unwrap().clone(), token)
    };
    let (all, token) = list("").await;
    assert_eq!(token, "");
    let told: Vec<_> = all
        .iter()
        .map(|c| {
            let text = |name: &str| c[name].as_str().unwrap().to_owned();
            (
                text("name"),
                text("action"),
                text("old_value"),
                text("new_value"),
            )
        })
        .collect();
    let expected = [
        (
            "onering.v1.EventService/PublishEvent",
            "switch.set",
            "on",
            "off",
        ),
        (API, "switch.lift", "stopped", "on"),
        (DELIVERY, "switch.stop", "off", "stopped"),
        (WEBHOOKS, "switch.stop", "on", "stopped"),
        (API, "switch.stop", "on", "stopped"),
        (WEBHOOKS, "switch.set", "off", "on"),
        (API, "switch.set", "off", "on"),
    ];
    let expected = expected.map(|(n, a, o, w)| (n.into(), a.into(), o.into(), w.into()));
    assert_eq!(told, expected);
    let me = app.get(ME, &app.admin).await.ok();
    for (i, change) in all.iter().enumerate() {
        // A number over REST is a text where it has 64 bits.
        let number = change["sequence"].to_string();
        assert_eq!(number.trim_matches('"'), (7 - i).to_string());
        assert_eq!(change["actor"], me["key_id"]);
        assert!(change["time"].is_string());
    }
    assert_eq!(all[4]["reason"], "incident 42");
    let (first, token) = list(&format!("name={API}&page_size=2")).await;
    assert_eq!(first, [all[1].clone(), all[4].clone()]);
    let (rest, end) = list(&format!("name={API}&page_size=2&page_token={token}")).await;
    assert_eq!((rest, end), (vec![all[6].clone()], String::new()));
    let (of_route, _) = list("name=POST%20/v1/external/events").await;
    assert_eq!(of_route, all[..1]);
    app.stop().await;
}

// X2: every node has the change in force when it is answered.
async fn every_node_confirms(db: Db) {
    let one = TestApp::builder(&db).unpinned().set("NODE_NAME", "one");
    let one = one.start().await;
    let two = one.again().set("NODE_NAME", "two").start().await;
    let (_, key) = one.key(json!({})).await;
    eventually("both know the key", || async {
        (two.get(ME, &key).await.code() == "EXTERNAL_API_DISABLED").then_some(())
    })
    .await;
    for round in 0..20 {
        let on = round % 2 == 0;
        let (changed, other) = if round % 3 == 0 {
            (&one, &two)
        } else {
            (&two, &one)
        };
        let set = changed.switch(API, on).await;
        let mut names: Vec<_> = set["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["node"].as_str().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["one", "two"]);
        let status = other.get(ME, &key).await.status;
        assert_eq!(status == 200, on, "in force there, without waiting");
        let set = changed.switch(DELIVERY, on).await;
        assert_eq!(confirmed(&set), 2);
        assert_eq!(other.app().context.dispatcher.is_delivering(), on);
    }
    // Who has stopped is not waited for.
    two.stop().await;
    assert_eq!(confirmed(&one.switch(API, true).await), 1);
    one.stop().await;
}

// X1: whichever node it is pinned on.
async fn a_pin_of_another_node_counts(db: Db) {
    let one = TestApp::builder(&db).unpinned().set("NODE_NAME", "one");
    let one = one.start().await;
    let two = one
        .again()
        .set("NODE_NAME", "sam")
        .set("WEBHOOKS_ENABLED", 0);
    let two = two.start().await;
    let body = json!({"name": WEBHOOKS, "enabled": true, "reason": "x"});
    let detail = eventually("it is known", || async {
        let answer = one.post(SWITCHES, &one.admin, body.clone()).await;
        (answer.status == 409).then(|| answer.problem()["detail"].to_string())
    })
    .await;
    assert!(detail.contains("ONERING_WEBHOOKS_ENABLED"), "{detail}");
    assert!(detail.contains("node sam"), "{detail}");
    two.stop().await;
    one.switch(WEBHOOKS, true).await;
    one.stop().await;
}

// K5, X2: a node that can't hear is named, goes on with what it has for its time,
// says so, then refuses; and follows when it hears again.
async fn a_node_that_hears_nothing(db: Db) {
    let (proxy, url) = Proxy::before(&db).await;
    let one = TestApp::builder(&db).unpinned().set("NODE_NAME", "one");
    let one = one.start().await;
    let two = one.again().set("NODE_NAME", "two").set("DATABASE_URL", url);
    let two = two.set("STALE_SECONDS", 3).start().await;
    let (_, key) = one.key(json!({})).await;
    assert_eq!(confirmed(&one.switch(API, true).await), 2);
    two.get(ME, &key).await.ok();

    proxy.cut();
    let off = json!({"name": API, "enabled": false, "reason": "x"});
    let set = one.post(SWITCHES, &one.admin, off).await.ok();
    let mut nodes = set["nodes"].as_array().unwrap().clone();
    nodes.sort_by_key(|n| n["node"].to_string());
    assert_eq!(
        nodes,
        [
            json!({"node": "one", "confirmed": true}),
            json!({"node": "two", "confirmed": false}),
        ]
    );
    one.get(ME, &key)
        .await
        .refused(503, "EXTERNAL_API_DISABLED");
    eventually("it goes on, and says so", || async {
        let answer = two.get(ME, &key).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        (answer.header("x-onering-stale") == "true").then_some(())
    })
    .await;
    eventually("it refuses", || async {
        (two.get(ME, &key).await.status == 503).then_some(())
    })
    .await;
    for key in [&key, &two.admin] {
        two.get(ME, key).await.refused(503, "STORE_UNAVAILABLE");
    }
    proxy.mend();
    eventually("it follows", || async {
        (two.get(ME, &key).await.code() == "EXTERNAL_API_DISABLED").then_some(())
    })
    .await;
    let set = eventually("it confirms again", || async {
        let set = one.post(
            SWITCHES,
            &one.admin,
            json!({"name": API, "enabled": true, "reason": "x"}),
        );
        let set = set.await.ok();
        let nodes = set["nodes"].as_array().unwrap().clone();
        let both = nodes.iter().filter(|n| n["confirmed"] == true).count();
        (both == 2).then_some(set)
    })
    .await;
    assert_eq!(set["switch"]["enabled"], true);
    assert_eq!(two.get(ME, &key).await.status, 200);
    one.stop().await;
    two.stop().await;
}

// X4: everything of switches by command, for people and for programs.
async fn flags_by_command(db: Db) {
    let app = TestApp::builder(&db).unpinned().set("WEBHOOKS_ENABLED", 1);
    let app = app.set("NODE_NAME", "frodo").start().await;
    let (url, admin) = (app.url(""), app.admin.clone());
    let vars = [("ONERING_URL", url.as_str()), ("ONERING_ADMIN_KEY", &admin)];
    let flags = async |args: &[&str]| {
        let mut all = vec!["flags", "--output", "json"];
        all.extend(args);
        onering(&all, &vars).await.exits(0).json()
    };
    let text = async |args: &[&str], code: i32| {
        let mut all = vec!["flags"];
        all.extend(args);
        onering(&all, &vars).await.exits(code)
    };
    let list = flags(&["list"]).await;
    assert_eq!(list["node"], "frodo");
    assert_eq!(list["switches"].as_array().unwrap().len(), 4);
    assert_eq!(list["switches"][2]["pinned_by"], "ONERING_WEBHOOKS_ENABLED");
    let set = flags(&["set", API, "on", "--reason", "launch"]).await;
    assert_eq!(confirmed(&set), 1);
    assert_eq!(set["switches"][0]["enabled"], true);
    let off = flags(&["set", "POST /v1/external/events", "off", "--reason", "x"]).await;
    assert_eq!(
        off["switches"][0]["name"],
        "onering.v1.EventService/PublishEvent"
    );
    let stop = flags(&["stop-all", "--reason", "incident 42"]).await;
    assert_eq!(stop["switches"].as_array().unwrap().len(), 3);
    confirmed(&stop);
    let lift = flags(&["lift", API, "--reason", "over"]).await;
    assert_eq!(lift["switches"][0]["enabled"], true);
    let changes = flags(&["changes", "--name", API]).await;
    let actions: Vec<_> = changes["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["action"])
        .collect();
    assert_eq!(actions, ["switch.lift", "switch.stop", "switch.set"]);
    let one = flags(&["changes", "--limit", "1"]).await;
    assert_eq!(one["changes"].as_array().unwrap().len(), 1);

    let table = text(&["list"], 0).await.stdout;
    assert!(table.starts_with("SWITCH "), "{table}");
    assert!(table.contains("the emergency stop"), "{table}");
    assert!(table.contains("node frodo, revision "), "{table}");
    let set = text(&["set", CANARY, "on", "--reason", "stage 1"], 0)
        .await
        .stdout;
    assert!(set.contains("✅ node frodo confirmed revision "), "{set}");
    let changes = text(&["changes"], 0).await.stdout;
    assert!(
        changes.contains("off → on") && changes.contains("stage 1"),
        "{changes}"
    );
    let pinned = text(&["set", WEBHOOKS, "off", "--reason", "x"], 1)
        .await
        .stderr;
    assert!(pinned.contains("ONERING_WEBHOOKS_ENABLED"), "{pinned}");
    for wrong in [
        &["set", API, "on"][..],
        &["set", API, "1", "--reason", "x"],
        &["stop-all"],
        &["lift", "--reason", "x"],
        &["changes", "--limit", "0"],
        &[],
    ] {
        text(wrong, 2).await;
    }
    let help = onering(&["flags", "--help"], &[]).await.exits(0).stdout;
    assert!(
        help.contains("Examples:") && help.contains("stop-all"),
        "{help}"
    );
    app.stop().await;
}
