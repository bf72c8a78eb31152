//! The challenge: a URL proves that it wants webhooks before anything goes there.

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use onering::{
    app::Outside,
    cli::sink::{Sink, SinkConfig},
    proto::v1::{self, CreateSubscriptionRequest, UpdateSubscriptionRequest},
};
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, fields, reason},
    receiver::{Received, Receiver, Reply, reply, status},
    store::Db,
};

contract![
    a_url_that_answers_is_taken,
    what_does_not_answer_is_refused,
    a_changed_url_is_asked_again,
    the_sink_answers,
    the_challenge_goes_where_deliveries_may,
    without_the_setting_nobody_is_asked,
];

const WEBHOOKS: &str = "/v1/external/webhooks";

type Handler = fn(Received) -> Reply;

fn echoing(r: &Received) -> Reply {
    match r.headers.get("x-webhook-challenge") {
        Some(challenge) => reply(200, Bytes::copy_from_slice(challenge.as_bytes())),
        None => status(200),
    }
}

async fn challenging(db: &Db) -> TestApp {
    TestApp::builder(db)
        .set("ENDPOINT_CHALLENGE", 1)
        .start()
        .await
}

async fn create(app: &TestApp, url: &str) -> crate::support::app::Answer {
    app.post(WEBHOOKS, &app.admin, json!({"url": url})).await
}

async fn count(app: &TestApp) -> usize {
    let list = app.get(WEBHOOKS, &app.admin).await.ok();
    list["subscriptions"].as_array().unwrap().len()
}

// D3: with its own headers, once, and another challenge each time.
async fn a_url_that_answers_is_taken(db: Db) {
    let app = challenging(&db).await;
    let receiver = Receiver::answering(|r| echoing(&r)).await;
    let body = json!({"url": receiver.url(), "headers": {"x-let-me": "in"}});
    for _ in 0..2 {
        let made = app.post(WEBHOOKS, &app.admin, body.clone()).await;
        assert_eq!(made.status, 201, "{}", made.text());
    }
    let asked = receiver.received();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].header("x-let-me"), "in");
    let challenges = [0, 1].map(|i: usize| asked[i].header("x-webhook-challenge").to_owned());
    assert!(challenges[0].len() >= 32);
    assert_ne!(challenges[0], challenges[1]);
    let body: Value = serde_json::from_slice(&asked[0].body).unwrap();
    assert_eq!(body, json!({"type": "webhook.challenge"}));
    // A delivery comes as ever.
    app.event("a.b").await;
    let got = receiver.wait(4).await;
    assert_eq!(got[3].header("x-webhook-event"), "a.b");
    app.stop().await;
}

// D3: nothing is made; what was asked and what came back are told, and nothing of
// the answer's body.
async fn what_does_not_answer_is_refused(db: Db) {
    let app = challenging(&db).await;
    let handlers: [(Handler, &str); 6] = [
        (|_| status(200), "status 200 with another body"),
        (|_| reply(200, "internal"), "status 200 with another body"),
        (|r| reply(200, r.body), "status 200 with another body"),
        (|_| status(404), "status 404"),
        (
            |r| {
                let mut moved: Response<Full<Bytes>> = echoing(&r);
                *moved.status_mut() = http::StatusCode::FOUND;
                let to = r.path.replace("webhook", "elsewhere");
                moved.headers_mut().insert("location", to.parse().unwrap());
                moved
            },
            "status 302",
        ),
        (
            |r| {
                let mut text = vec![b' '; 4096];
                text.extend(r.headers["x-webhook-challenge"].as_bytes());
                reply(200, text)
            },
            "status 200 with another body",
        ),
    ];
    for (handler, got) in handlers {
        let receiver = Receiver::answering(handler).await;
        let problem = create(&app, &receiver.url())
            .await
            .refused(422, "ENDPOINT_NOT_VERIFIED");
        assert_eq!(problem["errors"][0]["field"], "url");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(got), "{detail}");
        assert!(detail.contains("X-Webhook-Challenge"), "{detail}");
        assert!(!detail.contains("internal"), "{detail}");
        assert_eq!(receiver.count(), 1, "{got}: it is asked once");
    }
    let gone = Receiver::start().await;
    let url = gone.url();
    drop(gone);
    let problem = create(&app, &url)
        .await
        .refused(422, "ENDPOINT_NOT_VERIFIED");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("connection_refused")
    );
    let request = CreateSubscriptionRequest {
        url,
        ..Default::default()
    };
    let mut grpc = app.grpc(&app.admin).subscriptions;
    let refused = grpc.create_subscription(request).await.unwrap_err();
    assert_eq!(reason(&refused), "ENDPOINT_NOT_VERIFIED");
    assert_eq!(fields(&refused), ["url"]);
    assert_eq!(count(&app).await, 0);
    app.stop().await;
}

// D3: another URL; a change of anything else asks nobody.
async fn a_changed_url_is_asked_again(db: Db) {
    let app = challenging(&db).await;
    let (good, bad) = (
        Receiver::answering(|r| echoing(&r)).await,
        Receiver::start().await,
    );
    let sub = app.webhook(&good.url(), json!({})).await;
    let path = format!("{WEBHOOKS}/{}", sub.id);
    let answer = app
        .patch(
            &path,
            &app.admin,
            json!({"url": bad.url(), "description": "x"}),
        )
        .await;
    let problem = answer.refused(422, "ENDPOINT_NOT_VERIFIED");
    assert_eq!(problem["errors"][0]["field"], "url");
    let request = UpdateSubscriptionRequest {
        id: sub.id.clone(),
        subscription: Some(v1::Subscription {
            url: bad.url(),
            ..Default::default()
        }),
        update_mask: None,
    };
    let mut grpc = app.grpc(&app.admin).subscriptions;
    let refused = grpc.update_subscription(request).await.unwrap_err();
    assert_eq!(reason(&refused), "ENDPOINT_NOT_VERIFIED");
    assert_eq!(fields(&refused), ["subscription.url"]);
    let shown = app.subscription(&sub.id).await;
    assert_eq!(
        (&shown["url"], &shown["description"]),
        (&json!(good.url()), &json!(""))
    );
    app.change(&sub.id, json!({"description": "y", "url": good.url()}))
        .await;
    assert_eq!(good.count(), 1);
    let other = Receiver::answering(|r| echoing(&r)).await;
    app.change(&sub.id, json!({"url": other.url()})).await;
    assert_eq!(app.subscription(&sub.id).await["url"], other.url());
    assert_eq!(other.count(), 1);
    app.stop().await;
}

// D3
async fn the_sink_answers(db: Db) {
    let app = challenging(&db).await;
    let sink = Sink::start(SinkConfig::default()).await.unwrap();
    let made = create(&app, &sink.url()).await;
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(sink.total(), 0, "a challenge is no delivery");
    sink.stop().await;
    app.stop().await;
}

// A10, Z3: the same addresses are refused, also what a name resolves to by then.
async fn the_challenge_goes_where_deliveries_may(db: Db) {
    let receiver = Receiver::answering(|r| echoing(&r)).await;
    let outside = Outside {
        resolver: std::sync::Arc::new(|host| {
            Box::pin(async move {
                Ok(match host.as_str() {
                    "inside.example" => vec!["10.0.0.1".parse().unwrap()],
                    "mapped.example" => vec!["::ffff:169.254.169.254".parse().unwrap()],
                    _ => vec!["127.0.0.1".parse().unwrap()],
                })
            })
        }),
        ..Outside::default()
    };
    let app = TestApp::builder(&db)
        .set("ENDPOINT_CHALLENGE", 1)
        .outside(outside)
        .start()
        .await;
    for name in ["inside.example", "mapped.example"] {
        let problem = create(&app, &receiver.url_by(name))
            .await
            .refused(422, "ENDPOINT_NOT_ALLOWED");
        assert_eq!(problem["errors"][0]["field"], "url");
        assert!(!problem.to_string().contains("10.0.0.1"), "{problem}");
    }
    assert_eq!(receiver.count(), 0);
    let made = create(&app, &receiver.url_by("outside.example")).await;
    assert_eq!(made.status, 201, "{}", made.text());
    app.stop().await;
}

// D3
async fn without_the_setting_nobody_is_asked(db: Db) {
    let mut app = TestApp::start(&db).await;
    let receiver = Receiver::start().await;
    let sub = app.webhook(&receiver.url(), json!({})).await;
    assert_eq!(receiver.count(), 0);
    // Switched on while it runs, it asks from then on.
    app.reload(&[("ENDPOINT_CHALLENGE", "1")]);
    create(&app, &receiver.url())
        .await
        .refused(422, "ENDPOINT_NOT_VERIFIED");
    app.change(&sub.id, json!({"description": "as it was"}))
        .await;
    app.stop().await;
}
