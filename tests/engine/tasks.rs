//! Background tasks while the store fails.

use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, eventually},
    faults::Faults,
    receiver::{Receiver, status},
    store::Db,
    wait::until_after,
};

contract![no_task_ends_where_every_verb_fails_for_a_while];

/// What the tasks of a node ask again and again, in a minute at the most.
const ASKED: [&str; 11] = [
    "advance_timeline",
    "bury",
    "calls",
    "counts_since",
    "listen",
    "nodes",
    "partitions",
    "renew_session",
    "revision",
    "timeline",
    "waiting",
];

/// The tasks that notice it.
const FAILING: [&str; 6] = [
    "claim",
    "directory",
    "monitor",
    "session",
    "timeline",
    "usage",
];

async fn deep(app: &TestApp) -> Value {
    app.get("/health?deep=true", "").await.json()
}

// H3: while every verb of the store fails no task ends; each is tried again, health
// names those that fail, and all work again once the store does.
async fn no_task_ends_where_every_verb_fails_for_a_while(db: Db) {
    let faults = Faults::none();
    let app = TestApp::builder(&db)
        .set("SESSION_SECONDS", 2)
        .set("WEBHOOKS_DELIVERY_LOOP_SECONDS", 1)
        .faults(&faults)
        .start()
        .await;
    let gone = Receiver::answering(|_| status(410)).await;
    let sub = app.webhook(&gone.url(), json!({})).await;
    // What has nothing to do with one store has ended already.
    let ended = app.app().ended_tasks();

    faults.all_fail(true);
    let failed = faults.all_begun();
    let event = json!({"event_type": "a.b", "data": 1});
    app.post("/v1/external/events", &app.admin, event.clone())
        .await
        .refused(503, "STORE_UNAVAILABLE");
    // A delivery whose outcome can't be recorded, and whose receiver is gone.
    faults.all_fail(false);
    let delivery = app.one_delivery("a.b").await;
    faults.all_fail(true);
    let tried = |verb: &str, times: usize| {
        let before = failed.get(verb).copied().unwrap_or(0);
        faults.all_begun().get(verb).copied().unwrap_or(0) >= before + times
    };
    let perpetual = [
        "nodes",
        "revision",
        "counts_since",
        "timeline",
        "waiting",
        "calls",
    ];
    until_after(
        std::time::Duration::from_mins(1),
        "each is tried again",
        async || perpetual.iter().all(|verb| tried(verb, 3)).then_some(()),
    )
    .await;
    eventually("health names those that fail", || async {
        let report = deep(&app).await;
        assert_eq!(report["status"], "unhealthy", "{report}");
        let failing = report["checks"]["tasks"]["failing"].to_string();
        let named = |task: &str| failing.contains(&format!("\"{task}\""));
        FAILING.into_iter().all(named).then_some(())
    })
    .await;
    assert_eq!(app.app().ended_tasks(), ended, "while everything fails");
    assert!(!app.app().broken().is_cancelled());

    faults.all_fail(false);
    let worked = faults.all_answered();
    until_after(
        std::time::Duration::from_mins(2),
        "all work again",
        async || {
            let now = faults.all_answered();
            let again = |verb: &&str| now.get(*verb) > worked.get(*verb);
            let missing: Vec<_> = ASKED.iter().filter(|v| !again(v)).collect();
            (missing.is_empty() || missing == [&"listen"]).then_some(())
        },
    )
    .await;
    // What is done each minute is known to work after a minute.
    until_after(
        std::time::Duration::from_mins(2),
        "health is well",
        async || {
            let report = deep(&app).await;
            (report["status"] == "healthy").then_some(())
        },
    )
    .await;
    // What waited for the store is done.
    app.is(&delivery, "DEAD").await;
    eventually("the subscription is off", || async {
        let shown = app.subscription(&sub.id).await;
        (shown["enabled"] == false).then_some(())
    })
    .await;
    let receiver = Receiver::start().await;
    app.webhook(&receiver.url(), json!({})).await;
    app.event("a.b").await;
    receiver.wait(1).await;
    assert_eq!(app.app().ended_tasks(), ended, "after");
    app.stop().await;
}
