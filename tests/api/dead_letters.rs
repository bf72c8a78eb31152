//! Dead letters and redrives as a resource: their forms, and what is refused.

use onering::{
    domain::id::wall_clock,
    proto::v1,
    store::{Load, Page},
};
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, eventually, fields, reason},
    call::call,
    command::onering,
    store::Db,
};

contract![
    letters_of_both_faces,
    letters_of_the_own_tenant,
    what_is_wrong_is_named,
    a_purge_takes_a_reason,
    redrives_are_watched_and_held,
    the_command,
];

const LETTERS: &str = "/v1/external/dead-letters";
const ADMIN: &str = "/v1/admin/dead-letters";

async fn load(app: &TestApp, tenant: &str, subscription: &str, count: i64) {
    let load = Load {
        tenant: tenant.parse().unwrap(),
        subscription: subscription.parse().unwrap(),
        from: wall_clock() - 60_000_000,
        step: 1000,
        count,
        dead_every: 1,
    };
    app.app().context.store.load_finished(&load).await.unwrap();
}

/// Makes a dead letter as a delivery would leave one: its id.
pub(crate) async fn a_dead_letter(app: &TestApp, tenant: &str, subscription: &str) -> String {
    load(app, tenant, subscription, 1).await;
    let selection = onering::domain::redrive::Selection {
        subscription: Some(subscription.parse().unwrap()),
        ..Default::default()
    };
    let parts = [selection.subscription.unwrap().part()];
    let page = Page {
        before: None,
        limit: 1,
    };
    let store = &app.app().context.store;
    let found = store.list_letters(&selection, &parts, page).await.unwrap();
    found.letters[0].id.to_string()
}

/// A subscription that nobody listens behind.
async fn hook(app: &TestApp, key: &str) -> String {
    let body = json!({"url": "http://127.0.0.1:9/", "event_types": ["*"]});
    app.subscribe(key, body).await.id
}

async fn held(db: &Db) -> TestApp {
    let app = TestApp::builder(db).set("WEBHOOKS_DELIVERY_ENABLED", 0);
    app.start().await
}

fn ids(list: &Value) -> Vec<String> {
    let letters = list["dead_letters"].as_array().unwrap();
    let id = |l: &Value| l["id"].as_str().unwrap().to_owned();
    letters.iter().map(id).collect()
}

// A5: over REST and gRPC, in pages, filtered; and one by one.
async fn letters_of_both_faces(db: Db) {
    let app = held(&db).await;
    let acme = app.tenant("acme").await;
    let sub = hook(&app, &acme.key).await;
    load(&app, &acme.id, &sub, 5).await;
    let all = app.get(LETTERS, &acme.key).await.ok();
    assert_eq!(ids(&all).len(), 5);
    assert_eq!(all["next_page_token"], "");
    let first = app
        .get(&format!("{LETTERS}?page_size=2"), &acme.key)
        .await
        .ok();
    let token = first["next_page_token"].as_str().unwrap();
    let path = format!("{LETTERS}?page_size=3&page_token={token}");
    let rest = app.get(&path, &acme.key).await.ok();
    assert_eq!([ids(&first), ids(&rest)].concat(), ids(&all));
    let letter = &all["dead_letters"][0];
    for (field, is) in [
        ("tenant", json!("acme")),
        ("subscription_id", json!(sub)),
        ("event_type", json!("load.finished")),
        ("status", json!("DEAD")),
        ("reason", json!("status_400")),
        ("response_status", json!(400)),
        ("attempt_count", json!(1)),
        ("replay_id", json!("")),
    ] {
        assert_eq!(letter[field], is, "{letter}");
    }
    let id = letter["id"].as_str().unwrap();
    for (route, key) in [
        (LETTERS, &acme.key),
        (ADMIN, &app.admin),
        (LETTERS, &app.admin),
    ] {
        let read = app.get(&format!("{route}/{id}"), key).await.ok();
        assert_eq!(read, *letter);
    }
    let time = |field: &str| letter[field].as_str().unwrap().to_owned();
    let accepted = time("create_time");
    for (query, count) in [
        (format!("subscription_id={sub}"), 5),
        ("event_type=load.*".into(), 5),
        ("event_type=load.finished&reason=status_400".into(), 5),
        ("event_type=load".into(), 0),
        ("reason=timeout".into(), 0),
        (format!("start_time={accepted}"), 1),
        (format!("end_time={accepted}"), 4),
    ] {
        let list = app.get(&format!("{LETTERS}?{query}"), &acme.key).await.ok();
        assert_eq!(ids(&list).len(), count, "{query}");
    }
    let mut client = app.grpc(&acme.key).letters;
    let request = v1::ListDeadLettersRequest {
        reason: "status_400".into(),
        page_size: 1,
        ..Default::default()
    };
    let told = client
        .list_dead_letters(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(told.dead_letters[0].id, id);
    assert_eq!(told.dead_letters[0].status(), v1::DeliveryStatus::Dead);
    let request = v1::RetryDeadLetterRequest { id: id.into() };
    let retried = client.retry_dead_letter(request.clone()).await.unwrap();
    let delivery = retried.into_inner().delivery.unwrap();
    assert_eq!(delivery.status(), v1::DeliveryStatus::Retrying);
    let gone = client.retry_dead_letter(request).await.unwrap_err();
    assert_eq!(reason(&gone), "NOT_FOUND");
    app.get(&format!("{LETTERS}/{id}"), &acme.key)
        .await
        .refused(404, "NOT_FOUND");
    app.stop().await;
}

// A5, T1: another tenant's letter does not exist; an operator sees all.
async fn letters_of_the_own_tenant(db: Db) {
    let app = held(&db).await;
    let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
    let sub = hook(&app, &acme.key).await;
    let letter = a_dead_letter(&app, &acme.id, &sub).await;
    let theirs = hook(&app, &other.key).await;
    let their = a_dead_letter(&app, &other.id, &theirs).await;
    for route in [LETTERS, ADMIN] {
        let read = app.get(&format!("{route}/{letter}"), &other.key).await;
        read.refused(404, "NOT_FOUND");
        let retry = format!("{route}/{letter}/retry");
        let retry = app.post(&retry, &other.key, json!({})).await;
        retry.refused(404, "NOT_FOUND");
        let list = app.get(route, &other.key).await.ok();
        assert_eq!(ids(&list), std::slice::from_ref(&their));
    }
    let path = format!("{LETTERS}?subscription_id={sub}");
    app.get(&path, &other.key).await.refused(404, "NOT_FOUND");
    let all = app.get(ADMIN, &app.admin).await.ok();
    assert_eq!(ids(&all), [their, letter.clone()]);
    for query in ["tenant=acme".to_owned(), format!("subscription_id={sub}")] {
        let list = app.get(&format!("{ADMIN}?{query}"), &app.admin).await.ok();
        assert_eq!(ids(&list), std::slice::from_ref(&letter));
    }
    let path = format!("{ADMIN}?tenant=other&subscription_id={sub}");
    app.get(&path, &app.admin).await.refused(404, "NOT_FOUND");
    // Letters of a subscription that is deleted are found, and can't be retried.
    let delete = format!("/v1/external/webhooks/{sub}");
    app.delete(&delete, &acme.key).await.ok();
    let path = format!("{ADMIN}?tenant=acme&subscription_id={sub}");
    let list = app.get(&path, &app.admin).await.ok();
    assert_eq!(ids(&list), std::slice::from_ref(&letter));
    let path = format!("{ADMIN}?subscription_id={sub}");
    let list = app.get(&path, &app.admin).await.ok();
    assert_eq!(ids(&list), std::slice::from_ref(&letter));
    let body = json!({"filter": {"subscription_id": sub}});
    let redrive = app
        .post(&format!("{ADMIN}/redrive"), &app.admin, body)
        .await;
    let detail = redrive.refused(404, "NOT_FOUND")["detail"].clone();
    assert!(
        detail.as_str().unwrap().contains("name the tenant"),
        "{detail}"
    );
    let retry = format!("{LETTERS}/{letter}/retry");
    let retry = app.post(&retry, &acme.key, json!({})).await;
    retry.refused(409, "FAILED_PRECONDITION");
    app.stop().await;
}

// A5, E3: over both faces.
async fn what_is_wrong_is_named(db: Db) {
    let app = held(&db).await;
    let sub = hook(&app, &app.admin).await;
    let ago = |days: i64| {
        let time = wall_clock() - days * 86_400_000_000;
        onering::domain::event::rfc3339(time)
    };
    let service = |name: &str| -> &'static str {
        match name {
            "list" => "DeadLetterService/ListDeadLetters",
            "redrive" => "DeadLetterService/RedriveDeadLetters",
            "purge" => "DeadLetterService/PurgeDeadLetters",
            _ => "DeadLetterService/ReplayEvents",
        }
    };
    for (name, request, wrong) in [
        (
            "list",
            json!({"subscription_id": "x"}),
            vec!["subscription_id"],
        ),
        ("list", json!({"event_type": "a..b"}), vec!["event_type"]),
        ("list", json!({"page_size": -1}), vec!["page_size"]),
        ("list", json!({"page_token": "x"}), vec!["page_token"]),
        (
            "list",
            json!({"start_time": ago(1), "end_time": ago(2)}),
            vec!["end_time"],
        ),
        (
            "redrive",
            json!({"filter": {"subscription_id": "x", "reason": "y".repeat(201)}, "rate_per_second": 10_001}),
            vec!["filter.subscription_id", "filter.reason", "rate_per_second"],
        ),
        (
            "redrive",
            json!({"rate_per_second": -1}),
            vec!["rate_per_second"],
        ),
        (
            "redrive",
            json!({"reason": "x".repeat(501)}),
            vec!["reason"],
        ),
        ("purge", json!({}), vec!["reason", "all"]),
        (
            "purge",
            json!({"filter": {"reason": "timeout"}, "reason": " "}),
            vec!["reason"],
        ),
        ("replay", json!({}), vec!["subscription_id", "start_time"]),
        (
            "replay",
            json!({"subscription_id": sub, "start_time": ago(31)}),
            vec!["start_time"],
        ),
        (
            "replay",
            json!({"subscription_id": sub, "start_time": ago(1), "end_time": ago(2)}),
            vec!["end_time"],
        ),
    ] {
        let call = call(service(name), request);
        let rest = call.rest(&app, &app.admin).await;
        let problem = rest.refused(400, "INVALID_ARGUMENT");
        let named = problem["errors"].as_array().unwrap().iter();
        let named: Vec<_> = named.map(|e| e["field"].as_str().unwrap()).collect();
        assert_eq!(named, wrong, "{call:?}");
        let status = call.grpc(&app, &app.admin).await.unwrap_err();
        assert_eq!(fields(&status), wrong, "{call:?}");
    }
    let body = json!({"subscription_id": sub, "start_time": "1969-01-01T00:00:00Z"});
    let problem = app.post(&format!("{ADMIN}/replay"), &app.admin, body).await;
    problem.refused(400, "INVALID_ARGUMENT");
    let body = json!({"filter": {"tenant": "nobody"}});
    let problem = app
        .post(&format!("{ADMIN}/redrive"), &app.admin, body)
        .await;
    problem.refused(404, "NOT_FOUND");
    let none = "rdv_01h455vb4pex5vsknk084sn02q";
    for action in ["pause", "resume", "cancel"] {
        let path = format!("/v1/admin/redrives/{none}/{action}");
        let problem = app.post(&path, &app.admin, json!({})).await;
        problem.refused(404, "NOT_FOUND");
    }
    let path = "/v1/admin/redrives/rdv_x";
    let problem = app.get(path, &app.admin).await;
    problem.refused(400, "INVALID_ARGUMENT");
    app.stop().await;
}

async fn redrive(app: &TestApp, id: &str) -> Value {
    let path = format!("/v1/admin/redrives/{id}");
    app.get(&path, &app.admin).await.ok()
}

async fn over(app: &TestApp, id: &str) -> Value {
    eventually("the redrive is over", || async {
        let now = redrive(app, id).await;
        now["finish_time"].is_string().then_some(now)
    })
    .await
}

// A5, X3: a purge is audited, and takes what it was told to.
async fn a_purge_takes_a_reason(db: Db) {
    let app = held(&db).await;
    let acme = app.tenant("acme").await;
    let (one, two) = (hook(&app, &acme.key).await, hook(&app, &acme.key).await);
    load(&app, &acme.id, &one, 3).await;
    let kept = a_dead_letter(&app, &acme.id, &two).await;
    let body = json!({"filter": {"subscription_id": one}, "reason": "its receiver is gone"});
    let begun = app.post(&format!("{ADMIN}/purge"), &app.admin, body).await;
    assert_eq!(begun.status, 202);
    let begun = begun.ok();
    assert_eq!(
        (&begun["kind"], &begun["total"]),
        (&json!("PURGE"), &json!(3))
    );
    let done = over(&app, begun["id"].as_str().unwrap()).await;
    assert_eq!((&done["state"], &done["done"]), (&json!("DONE"), &json!(3)));
    assert_eq!(done["reason"], "its receiver is gone");
    let left = app.get(LETTERS, &acme.key).await.ok();
    assert_eq!(ids(&left), [kept]);
    let page = Page {
        before: None,
        limit: 10,
    };
    let log = app
        .app()
        .context
        .store
        .audit("dead_letters.", None, page)
        .await;
    let log = log.unwrap();
    assert_eq!(log.len(), 1);
    let entry = &log[0].entry;
    assert_eq!(entry.reason, "its receiver is gone");
    assert!(entry.new.contains(&one), "{entry:?}");
    assert_eq!(entry.actor, done["created_by"].as_str().unwrap());
    db.counts_agree().await;
    app.stop().await;
}

// A5: read, listed, paused, resumed at another rate, cancelled.
async fn redrives_are_watched_and_held(db: Db) {
    let app = held(&db).await;
    let sub = hook(&app, &app.admin).await;
    let tenant = app.get("/v1/admin/tenants/default", &app.admin).await.ok();
    load(&app, tenant["tenant_id"].as_str().unwrap(), &sub, 500).await;
    let body = json!({"filter": {"subscription_id": sub}, "rate_per_second": 100});
    let begun = app
        .post(&format!("{ADMIN}/redrive"), &app.admin, body)
        .await;
    let begun = begun.ok();
    let id = begun["id"].as_str().unwrap().to_owned();
    for (field, is) in [
        ("kind", json!("REDRIVE")),
        ("state", json!("RUNNING")),
        ("rate_per_second", json!(100)),
        ("total", json!(500)),
        ("done", json!(0)),
        ("tenant", json!("default")),
    ] {
        assert_eq!(begun[field], is, "{begun}");
    }
    assert_eq!(begun["filter"]["subscription_id"], json!(sub));
    let done = |r: &Value| -> i64 { r["done"].as_i64().unwrap() };
    eventually("some are moved", || async {
        (done(&redrive(&app, &id).await) > 0).then_some(())
    })
    .await;
    let act = async |action: &str, body: Value| {
        let path = format!("/v1/admin/redrives/{id}/{action}");
        app.post(&path, &app.admin, body).await
    };
    let paused = act("pause", json!({})).await.ok();
    assert_eq!(paused["state"], "PAUSED");
    let moved = done(&paused);
    assert!((1..500).contains(&moved), "{paused}");
    // Whatever was due meanwhile would have been moved when another one is over.
    let body = json!({"filter": {"reason": "nothing"}});
    let other = app
        .post(&format!("{ADMIN}/redrive"), &app.admin, body)
        .await;
    over(&app, other.ok()["id"].as_str().unwrap()).await;
    assert_eq!(done(&redrive(&app, &id).await), moved);
    let retrying = app.get("/v1/external/dead-letters?page_size=1000", &app.admin);
    assert_eq!(ids(&retrying.await.ok()).len() as i64, 500 - moved);
    let list = app
        .get("/v1/admin/redrives?page_size=1", &app.admin)
        .await
        .ok();
    assert_eq!(list["redrives"].as_array().unwrap().len(), 1);
    assert_ne!(list["next_page_token"], "");
    act("resume", json!({"rate_per_second": 10_001}))
        .await
        .refused(400, "INVALID_ARGUMENT");
    let resumed = act("resume", json!({"rate_per_second": 10_000})).await.ok();
    assert_eq!(
        (&resumed["state"], &resumed["rate_per_second"]),
        (&json!("RUNNING"), &json!(10_000))
    );
    let all = over(&app, &id).await;
    assert_eq!((&all["state"], done(&all)), (&json!("DONE"), 500));
    for action in ["pause", "resume", "cancel"] {
        act(action, json!({}))
            .await
            .refused(409, "FAILED_PRECONDITION");
    }
    db.counts_agree().await;
    app.stop().await;
}

// A5: the same by `onering dead-letters`.
async fn the_command(db: Db) {
    let app = held(&db).await;
    let sub = hook(&app, &app.admin).await;
    let tenant = app.get("/v1/admin/tenants/default", &app.admin).await.ok();
    load(&app, tenant["tenant_id"].as_str().unwrap(), &sub, 600).await;
    let url = app.url("");
    let vars = [
        ("ONERING_URL", url.as_str()),
        ("ONERING_ADMIN_KEY", app.admin.as_str()),
    ];
    let run = async |args: &[&str], code: i32| {
        let args = [&["dead-letters"], args].concat();
        onering(&args, &vars).await.exits(code)
    };
    let list = run(&["list", "--limit", "550", "--output", "json"], 0)
        .await
        .json();
    assert_eq!(ids(&list).len(), 550);
    let id = ids(&list)[0].clone();
    let table = run(&["list", "--died-of", "status_400", "--since", "1h"], 0)
        .await
        .stdout;
    assert!(
        table.contains(&id) && table.contains("load.finished"),
        "{table}"
    );
    assert_eq!(table.lines().count(), 51);
    let none = run(&["list", "--type", "a.b"], 0).await.stdout;
    assert_eq!(none.lines().count(), 1, "{none}");
    assert!(run(&["show", &id], 0).await.stdout.contains("status_400"));
    let retried = run(&["retry", &id, "--output", "json"], 0).await.json();
    assert_eq!(retried["status"], "RETRYING");
    let gone = run(&["show", &id], 1).await;
    assert!(gone.stderr.contains("NOT_FOUND"), "{gone:?}");
    let begun = run(
        &[
            "redrive",
            "--subscription",
            &sub,
            "--rate",
            "1",
            "--output",
            "json",
        ],
        0,
    )
    .await
    .json();
    assert_eq!(
        (&begun["state"], &begun["total"]),
        (&json!("RUNNING"), &json!(599))
    );
    let job = begun["id"].as_str().unwrap();
    let paused = run(&["pause", job, "--output", "json"], 0).await.json();
    assert_eq!(paused["state"], "PAUSED");
    let resumed = run(&["resume", job, "--rate", "300"], 0).await.stdout;
    assert!(resumed.contains("RUNNING"), "{resumed}");
    let watched = run(&["jobs", job, "--watch", "--output", "json"], 0).await;
    assert!(watched.stderr.contains(" of 599 done"), "{watched:?}");
    assert_eq!(watched.json()["state"], "DONE");
    assert_eq!(watched.json()["done"], 599);
    let over = run(&["cancel", job], 1).await;
    assert!(over.stderr.contains("is over"), "{over:?}");
    load(&app, tenant["tenant_id"].as_str().unwrap(), &sub, 3).await;
    run(&["purge", "--all"], 2).await;
    let refused = run(&["purge", "--reason", "x"], 1).await;
    assert!(refused.stderr.contains("all"), "{refused:?}");
    let purged = run(
        &[
            "purge", "--all", "--reason", "x", "--watch", "--output", "json",
        ],
        0,
    )
    .await
    .json();
    assert_eq!(
        (&purged["state"], &purged["done"]),
        (&json!("DONE"), &json!(3))
    );
    let replayed = run(
        &[
            "replay",
            "--subscription",
            &sub,
            "--since",
            "2h",
            "--missing-only",
            "--rate",
            "10000",
            "--watch",
            "--output",
            "json",
        ],
        0,
    )
    .await
    .json();
    assert_eq!(
        (&replayed["kind"], &replayed["done"]),
        (&json!("REPLAY_MISSING"), &json!(3))
    );
    assert_eq!(replayed["skipped"], 600);
    let jobs = run(&["jobs", "--output", "json"], 0).await.json();
    assert_eq!(jobs["redrives"].as_array().unwrap().len(), 3);
    run(
        &["replay", "--subscription", &sub, "--since", "yesterday"],
        2,
    )
    .await;
    app.stop().await;
}
