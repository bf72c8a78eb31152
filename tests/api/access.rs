//! Who may call what, and from where: allow lists, proxies, scopes, and that no
//! method is open by mistake.

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Full;
use onering::{
    domain::key::{self, Kind},
    proto::v1::{self, Audience},
    rest::{Rest, annotations::Access},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{
    app::{Answer, TestApp, fields, reason},
    call::{call, unary},
    store::Db,
};

contract![
    an_allow_list_is_kept_in_one_form,
    an_allow_list_is_checked,
    a_key_is_good_from_its_networks_alone,
    proxies_are_trusted_by_their_number,
    guesses_are_told_apart_behind_a_proxy,
    every_method_is_behind_the_gate,
    each_scope_opens_its_methods_alone,
];

const ME: &str = "/v1/external/me";
const KEYS: &str = "/v1/admin/external/keys";

/// A call of `me` that says that it was forwarded, a line for each text.
async fn forwarded(app: &TestApp, key: &str, lines: &[&str]) -> Answer {
    let mut request = app.request("GET", ME, key);
    for line in lines {
        request = request.header("x-forwarded-for", *line);
    }
    app.send(request.body(Full::default()).unwrap()).await
}

// K2: networks are shown in one form, changed, and cleared.
async fn an_allow_list_is_kept_in_one_form(db: Db) {
    let app = TestApp::start(&db).await;
    let given = json!([
        "203.0.113.77/24",
        "2001:DB8::1",
        "::ffff:10.1.2.3/104",
        "192.0.2.1"
    ]);
    let shown = json!([
        "203.0.113.0/24",
        "2001:db8::1/128",
        "10.0.0.0/8",
        "192.0.2.1/32"
    ]);
    let body = json!({"allowed_cidrs": given});
    let made = app.post(KEYS, &app.admin, body).await.ok();
    assert_eq!(made["key"]["allowed_cidrs"], shown);
    let path = format!("{KEYS}/{}", made["key_id"].as_str().unwrap());
    assert_eq!(
        app.get(&path, &app.admin).await.ok()["allowed_cidrs"],
        shown
    );
    // What another field's update does not name stays.
    let renamed = app
        .patch(&path, &app.admin, json!({"name": "x"}))
        .await
        .ok();
    assert_eq!(renamed["allowed_cidrs"], shown);
    let body = json!({"allowed_cidrs": ["0.0.0.0/0"]});
    let changed = app.patch(&path, &app.admin, body).await.ok();
    assert_eq!(changed["allowed_cidrs"], json!(["0.0.0.0/0"]));
    let body = json!({"allowed_cidrs": []});
    let cleared = app.patch(&path, &app.admin, body).await.ok();
    assert_eq!(cleared["allowed_cidrs"], json!([]));
    let body = json!({"kind": "ADMIN", "allowed_cidrs": ["10.0.0.0/8"]});
    let made = app.post(KEYS, &app.admin, body).await.ok();
    assert_eq!(made["key"]["allowed_cidrs"], json!(["10.0.0.0/8"]));
    app.stop().await;
}

// K2: at most 64, each a network, each once; both faces name what is wrong.
async fn an_allow_list_is_checked(db: Db) {
    let app = TestApp::start(&db).await;
    let many: Vec<String> = (0..65).map(|n| format!("10.0.{n}.0/24")).collect();
    for (list, wrong) in [
        (json!(["10.0.0.0/33"]), "allowed_cidrs[0]"),
        (json!(["10.0.0.0/8", "localhost"]), "allowed_cidrs[1]"),
        (json!(["10.0.0.0/8", "10.9.9.9/8"]), "allowed_cidrs[1]"),
        (json!([""]), "allowed_cidrs[0]"),
        (json!(many), "allowed_cidrs"),
    ] {
        let create = call("KeyService/CreateKey", json!({"allowed_cidrs": list}));
        let problem = create.rest(&app, &app.admin).await;
        let problem = problem.refused(400, "INVALID_ARGUMENT");
        assert_eq!(problem["errors"][0]["field"], wrong);
        let status = create.grpc(&app, &app.admin).await.unwrap_err();
        assert_eq!(fields(&status), [wrong]);
    }
    let full: Vec<String> = many[..64].to_vec();
    let (id, _) = app.key(json!({"allowed_cidrs": full})).await;
    let status = app
        .grpc(&app.admin)
        .keys
        .update_key(v1::UpdateKeyRequest {
            key_id: id,
            key: Some(v1::Key {
                allowed_cidrs: vec!["10.0.0.0/8".into(), "?".into()],
                ..v1::Key::default()
            }),
            update_mask: None,
        })
        .await
        .unwrap_err();
    assert_eq!(fields(&status), ["key.allowed_cidrs[1]"]);
    app.stop().await;
}

// K2, E2: a key works from its networks; from elsewhere it is 403, an admin key
// too, over both faces. Without trusted proxies nobody is believed.
async fn a_key_is_good_from_its_networks_alone(db: Db) {
    let app = TestApp::start(&db).await;
    let me = call("KeyService/GetCaller", json!({}));
    for kind in ["CONSUMER", "ADMIN"] {
        let body = |list: Value| json!({"kind": kind, "scopes": ["external:admin"], "allowed_cidrs": list});
        let (id, key) = app
            .key(body(json!(["203.0.113.0/24", "2001:db8::/32"])))
            .await;
        let answer = me.rest(&app, &key).await;
        let problem = answer.refused(403, "IP_NOT_ALLOWED");
        assert!(problem["detail"].as_str().unwrap().contains("127.0.0.1"));
        let status = me.grpc(&app, &key).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(reason(&status), "IP_NOT_ALLOWED");
        for header in ["203.0.113.9", "203.0.113.9, 203.0.113.9"] {
            let answer = forwarded(&app, &key, &[header]).await;
            answer.refused(403, "IP_NOT_ALLOWED");
        }
        let list = json!({"allowed_cidrs": ["203.0.113.0/24", "127.0.0.0/8"]});
        app.patch(&format!("{KEYS}/{id}"), &app.admin, list)
            .await
            .ok();
        me.rest(&app, &key).await.ok();
        me.grpc(&app, &key).await.unwrap();
    }
    app.stop().await;
}

// K2: behind n trusted proxies the address is the n-th from the right of all
// lines together, never the leftmost as it came; where it is not there a key
// with a list is refused. The number can change while the node runs.
async fn proxies_are_trusted_by_their_number(db: Db) {
    let mut app = TestApp::builder(&db)
        .set("TRUSTED_PROXY_HOPS", 1)
        .start()
        .await;
    let body = json!({"allowed_cidrs": ["203.0.113.0/24", "2001:db8::/32"]});
    let (_, key) = app.key(body).await;
    let (_, anywhere) = app.key(json!({})).await;
    let rows: [(usize, &[&str], bool); 15] = [
        (1, &["203.0.113.9"], true),
        (1, &["::ffff:203.0.113.9"], true),
        (1, &["203.0.113.9:4711"], true),
        (1, &["[2001:db8::7]:443"], true),
        (1, &["6.6.6.6, 203.0.113.9"], true),
        (1, &["6.6.6.6", "203.0.113.9"], true),
        (1, &["203.0.113.9, 6.6.6.6"], false),
        (1, &["203.0.113.9", "6.6.6.6"], false),
        (1, &["203.0.113.9, nonsense"], false),
        (1, &["203.0.113.9,"], false),
        (1, &[], false),
        (2, &["203.0.113.9, 10.0.0.1"], true),
        (2, &["203.0.113.9", "10.0.0.1"], true),
        (2, &["203.0.113.9"], false),
        (2, &["203.0.113.9, 6.6.6.6, 10.0.0.1"], false),
    ];
    for (hops, lines, passes) in rows {
        app.reload(&[("TRUSTED_PROXY_HOPS", &hops.to_string())]);
        let answer = forwarded(&app, &key, lines).await;
        assert_eq!(answer.status, if passes { 200 } else { 403 }, "{lines:?}");
        if !passes {
            answer.refused(403, "IP_NOT_ALLOWED");
        }
        assert_eq!(forwarded(&app, &anywhere, lines).await.status, 200);
    }
    // The same over gRPC.
    app.reload(&[("TRUSTED_PROXY_HOPS", "1")]);
    for (line, code) in [("6.6.6.6, 203.0.113.9", ""), ("6.6.6.6", "IP_NOT_ALLOWED")] {
        let mut request = tonic::Request::new(v1::GetCallerRequest {});
        let metadata = request.metadata_mut();
        metadata.insert("x-forwarded-for", line.parse().unwrap());
        let answer = app.grpc(&key).keys.get_caller(request).await;
        assert_eq!(answer.err().map_or(String::new(), |s| reason(&s)), code);
    }
    app.stop().await;
}

// Z6: behind a proxy it is the guesser who is slowed, and not who shares the
// proxy with him.
async fn guesses_are_told_apart_behind_a_proxy(db: Db) {
    let app = TestApp::builder(&db)
        .set("TRUSTED_PROXY_HOPS", 1)
        .start()
        .await;
    let id = "key_01h455vb4pex5vsknk084sn02q".parse().unwrap();
    let text = key::format(Kind::Consumer, id, &"x".repeat(32)).to_string();
    let guess = async |from: &str| {
        forwarded(&app, &text, &[from])
            .await
            .refused(401, "KEY_INVALID")
    };
    // Of so many at a time most are told that they are too many.
    join_all((0..120).map(|_| forwarded(&app, &text, &["198.51.100.1"]))).await;
    // A bound from below: no fast machine can fail it, nor a slow one.
    let began = std::time::Instant::now();
    guess("198.51.100.1").await;
    assert!(began.elapsed().as_millis() >= 1000, "{:?}", began.elapsed());
    tokio::select! {
        biased;
        () = async { for _ in 0..3 { guess("198.51.100.2").await; } } => {}
        _ = guess("198.51.100.1") => panic!("held up by another's guesses"),
    }
    app.stop().await;
}

/// Every method with who may call it, and whether it streams.
fn methods() -> Vec<(String, Access, bool)> {
    let rest = Rest::new().unwrap();
    let all: Vec<&Access> = rest.routes.methods().collect();
    assert!(all.len() > rest.routes.iter().count() / 2);
    let pool = rest.schema.pool();
    let streams = |path: &str| {
        let (service, name) = path[1..].split_once('/').unwrap();
        let service = pool.get_service_by_name(service).unwrap();
        let method = service.methods().find(|m| m.name() == name).unwrap();
        method.is_server_streaming() || method.is_client_streaming()
    };
    all.into_iter()
        .map(|access| {
            let path = format!("/{}", access.rpc);
            let streams = streams(&path);
            (path, access.clone(), streams)
        })
        .collect()
}

// K8, K11: no method of the protos is answered without a key, on REST or not;
// what looks like one of ours and is none is answered by nobody.
async fn every_method_is_behind_the_gate(db: Db) {
    let app = TestApp::start(&db).await;
    let (_, consumer) = app.key(json!({})).await;
    let mut streams = 0;
    for (path, access, stream) in methods() {
        streams += i32::from(stream);
        assert_ne!(access.audience, Audience::Public as i32, "{path}");
        let status = unary(&app, &path, "", Bytes::new()).await.unwrap_err();
        assert_eq!(reason(&status), "KEY_MISSING", "{path}");
        let outside = [Audience::Consumer as i32, Audience::Worker as i32];
        if !outside.contains(&access.audience) {
            let refused = unary(&app, &path, &consumer, Bytes::new()).await;
            assert_eq!(reason(&refused.unwrap_err()), "SCOPE_MISSING", "{path}");
        }
    }
    assert!(streams > 0, "a stream has no route on REST");
    for path in [
        "/onering.v1.KeyService/listkeys",
        "/onering.v1.KeyService/ListKeys/",
        "/onering.v1.KeyService/List%4Beys",
        "//onering.v1.KeyService/ListKeys",
        "/onering.v1.Nothing/ListKeys",
        "/onering.v2.KeyService/ListKeys",
        "/grpc.channelz.v1.Channelz/GetServers",
    ] {
        for key in ["", app.admin.as_str()] {
            let status = unary(&app, path, key, Bytes::new()).await.unwrap_err();
            assert_eq!(status.code(), Code::Unimplemented, "{path}");
            assert_eq!(reason(&status), "NOT_FOUND", "{path}");
            assert!(status.metadata().contains_key("x-request-id"));
        }
    }
    app.stop().await;
}

// K13: an admin key's scope opens the methods that ask for it and no others;
// `external:admin` opens all.
async fn each_scope_opens_its_methods_alone(db: Db) {
    let app = TestApp::start(&db).await;
    let all = methods();
    for scope in [
        "keys:verify",
        "events:write",
        "events:read",
        "webhooks:read",
        "webhooks:write",
        "dead-letters:read",
        "dead-letters:write",
        "flags:read",
        "flags:write",
        "monitoring:read",
        "deliveries:work",
        "external:admin",
    ] {
        let (_, key) = app.key(json!({"kind": "ADMIN", "scopes": [scope]})).await;
        assert!(
            scope == "external:admin" || all.iter().any(|(_, a, _)| a.scope == scope),
            "nothing asks for {scope}"
        );
        for (path, access, stream) in &all {
            let opens = scope == "external:admin" || access.scope == scope;
            // A stream that is open has no end to wait for.
            if opens && *stream {
                continue;
            }
            // The empty request of a method that changes something is refused
            // for its form, behind the gate.
            let answer = unary(&app, path, &key, Bytes::new()).await;
            let refused = answer.is_err_and(|s| reason(&s) == "SCOPE_MISSING");
            assert_eq!(refused, !opens, "{scope}: {path}");
        }
    }
    app.stop().await;
}
