//! What receivers' answers mean, and what is kept of them.

use std::{sync::Arc, time::Instant};

use http::HeaderValue;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use super::scene::micros;
use crate::support::{
    app::TestApp,
    receiver::{Received, Receiver, Reply, reply, status},
    store::Db,
};

contract![
    statuses_decide,
    retry_after_is_honoured,
    redirects_are_not_followed,
    gone_disables_and_tells,
    gone_is_said_of_the_address_that_was_asked,
    broken_connections_are_retried,
    what_follows_a_status_does_not_matter,
    a_body_that_stalls_keeps_nobodys_place,
    attempts_are_kept,
];

/// The status that a path such as `/webhook/503` names.
fn by_path(received: &Received) -> Reply {
    let (_, wanted) = received.path.rsplit_once('/').unwrap();
    status(wanted.parse().unwrap())
}

// A3
async fn statuses_decide(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::answering(|r| by_path(&r)).await;
    let delivered = [200, 201, 202, 204];
    let retried = [408, 425, 429, 500, 502, 503, 504, 599];
    let dead = [300, 301, 302, 307, 400, 401, 403, 404, 409, 422, 451];
    let mut expected = Vec::new();
    for (statuses, becomes) in [
        (&delivered[..], "DELIVERED"),
        (&retried, "RETRYING"),
        (&dead, "DEAD"),
    ] {
        for status in statuses {
            let url = format!("{}/{status}", receiver.url());
            expected.push((app.webhook(&url, json!({})).await.id, *status, becomes));
        }
    }
    let event = app.event("a.b").await;
    let deliveries = app.deliveries_of(&app.admin, &event).await;
    for (sub, status, becomes) in expected {
        let one = deliveries
            .iter()
            .find(|d| d["subscription_id"] == *sub)
            .unwrap();
        let shown = app.is(one["id"].as_str().unwrap(), becomes).await;
        assert_eq!(
            (&shown["attempt_count"], &shown["response_status"]),
            (&json!(1), &json!(status))
        );
        let reason = if becomes == "DELIVERED" {
            String::new()
        } else {
            format!("http_{status}")
        };
        assert_eq!(shown["reason"], reason);
    }
    app.stop().await;
}

// A3: on 429 and 503, in both forms, up to an hour; never earlier than the schedule.
async fn retry_after_is_honoured(db: Db) {
    let app = TestApp::start(&db).await;
    let date = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1200);
    let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    for (status, header, least, most) in [
        (503, "700", 699, 720),
        (429, "700", 699, 720),
        (503, "7200", 3599, 3620),
        (503, date.as_str(), 1180, 1220),
        (503, "1", 59, 70),
        (500, "700", 59, 70),
        (503, "soon", 59, 70),
    ] {
        let value = HeaderValue::from_str(header).unwrap();
        let receiver = Receiver::answering(move |_| {
            let mut reply = reply(status, "");
            reply.headers_mut().insert("retry-after", value.clone());
            reply
        })
        .await;
        let sub = app.webhook(&receiver.url(), json!({})).await;
        let delivery = app.one_delivery("a.b").await;
        let shown = app.is(&delivery, "RETRYING").await;
        let began = micros(&app.attempts(&delivery).await[0]["start_time"]);
        let wait = (micros(&shown["next_attempt_time"]) - began) / 1_000_000;
        assert!(
            (least..=most).contains(&wait),
            "{status} {header}: {wait} s"
        );
        app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
            .await
            .ok();
    }
    app.stop().await;
}

// A3, A10, Z3
async fn redirects_are_not_followed(db: Db) {
    let app = TestApp::start(&db).await;
    let elsewhere = Receiver::start().await;
    for redirect in [301, 302, 303, 307, 308] {
        let location = HeaderValue::from_str(&elsewhere.url()).unwrap();
        let receiver = Receiver::answering(move |_| {
            let mut reply = status(redirect);
            reply.headers_mut().insert("location", location.clone());
            reply
        })
        .await;
        let sub = app.webhook(&receiver.url(), json!({})).await;
        let delivery = app.one_delivery("a.b").await;
        let dead = app.is(&delivery, "DEAD").await;
        assert_eq!(dead["reason"], format!("http_{redirect}"));
        assert_eq!(receiver.count(), 1);
        app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
            .await
            .ok();
    }
    assert_eq!(elsewhere.count(), 0);
    app.stop().await;
}

// A3: and its owner is told.
async fn gone_disables_and_tells(db: Db) {
    let app = TestApp::start(&db).await;
    let receiver = Receiver::answering(|_| status(410)).await;
    let owner = Receiver::start().await;
    let sub = app
        .webhook(&receiver.url(), json!({"event_types": ["a.b"]}))
        .await;
    app.webhook(
        &owner.url(),
        json!({"event_types": ["subscription.disabled"]}),
    )
    .await;
    let delivery = app.one_delivery("a.b").await;
    app.is(&delivery, "DEAD").await;
    let told = &owner.wait(1).await[0];
    assert_eq!(told.header("x-webhook-event"), "subscription.disabled");
    let data: Value = serde_json::from_str(&told.data()).unwrap();
    assert_eq!(
        (&data["subscription_id"], &data["reason"]),
        (&json!(sub.id), &json!("gone"))
    );
    let shown = app.subscription(&sub.id).await;
    assert_eq!(
        (&shown["enabled"], &shown["disabled_reason"]),
        (&json!(false), &json!("gone"))
    );
    assert!(shown["disable_time"].is_string());
    let parked = app.one_delivery("a.b").await;
    assert_eq!(app.delivery(&parked).await["status"], "PARKED");
    assert_eq!(receiver.count(), 1);

    // Its owner can switch it on again.
    let shown = app
        .change(&sub.id, json!({"enabled": true, "url": owner.url()}))
        .await;
    assert_eq!(shown["disabled_reason"].as_str().unwrap_or_default(), "");
    app.is(&parked, "DELIVERED").await;
    app.stop().await;
}

// A3: an answer that comes after the address was corrected says nothing of the new one.
async fn gone_is_said_of_the_address_that_was_asked(db: Db) {
    let app = TestApp::start(&db).await;
    let (answer, answers) = watch::channel(false);
    let old = Receiver::with(move |_| {
        let mut answers = answers.clone();
        async move {
            answers.wait_for(|go| *go).await.unwrap();
            status(410)
        }
    })
    .await;
    let new = Receiver::start().await;
    let sub = app
        .webhook(&old.url(), json!({"event_types": ["a.b"]}))
        .await;
    let late = app.one_delivery("a.b").await;
    old.wait(1).await;
    app.change(&sub.id, json!({"url": new.url()})).await;
    answer.send_replace(true);
    app.is(&late, "DEAD").await;
    let next = app.one_delivery("a.b").await;
    app.is(&next, "DELIVERED").await;
    assert_eq!(app.subscription(&sub.id).await["enabled"], true);
    app.stop().await;
}

/// A server that reads a request and does with its connection what it is told to.
async fn raw<F: Future<Output = ()> + Send>(
    answer: impl Fn(TcpStream) -> F + Send + Sync + Clone + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/webhook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                answer(stream).await;
            });
        }
    });
    url
}

/// A server whose answer's body never ends.
async fn stalled() -> String {
    raw(|mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
            .await
            .unwrap();
        std::future::pending::<()>().await;
    })
    .await
}

// A3
async fn broken_connections_are_retried(db: Db) {
    let app = TestApp::start(&db).await;
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let refused = format!("http://{free}/");
    let cut = raw(|mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Le")
            .await
            .unwrap();
    })
    .await;
    let closed = raw(|stream| async move { drop(stream) }).await;
    let nonsense = raw(|mut stream| async move {
        stream
            .write_all(b"220 smtp.example.com ESMTP\r\n")
            .await
            .unwrap();
    })
    .await;
    for (url, errors) in [
        (refused, vec!["connection_refused"]),
        (cut, vec!["connection_lost", "connection_reset"]),
        (closed, vec!["connection_lost", "connection_reset"]),
        (nonsense, vec!["connection_lost", "bad_response"]),
    ] {
        let sub = app.webhook(&url, json!({})).await;
        let delivery = app.one_delivery("a.b").await;
        let shown = app.is(&delivery, "RETRYING").await;
        assert!(
            errors.contains(&shown["reason"].as_str().unwrap()),
            "{url}: {shown}"
        );
        assert_eq!(shown["response_status"], 0);
        app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
            .await
            .ok();
    }
    app.stop().await;
}

const ENDLESS: &[u8] = b"Transfer-Encoding: chunked\r\n\r\n";

// A10, A8: an answer's status is enough: its place is another's soon after.
async fn a_body_that_stalls_keeps_nobodys_place(db: Db) {
    let app = TestApp::start(&db).await;
    let stalled = stalled().await;
    let one_at_a_time = json!({"timeout_seconds": 30, "max_in_flight": 1});
    let sub = app.webhook(&stalled, one_at_a_time).await;
    let began = Instant::now();
    for _ in 0..3 {
        app.event("a.b").await;
    }
    app.wait_for(&sub.id, "DELIVERED", 3).await;
    assert!(began.elapsed().as_secs() < 15, "{:?}", began.elapsed());
    app.stop().await;
}

// A3, A10: once the status has come the attempt's end is known, however the body
// goes on: cut, stalled or without an end. A body's beginning is kept.
async fn what_follows_a_status_does_not_matter(db: Db) {
    let app = TestApp::start(&db).await;
    let cut = raw(|mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
            .await
            .unwrap();
    })
    .await;
    let stalled = stalled().await;
    let endless = raw(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
        stream.write_all(ENDLESS).await.unwrap();
        while stream.write_all(b"3\r\nabc\r\n").await.is_ok() {}
    })
    .await;
    let failing = raw(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 503 No\r\n").await.unwrap();
        stream.write_all(ENDLESS).await.unwrap();
        while stream.write_all(b"3\r\nabc\r\n").await.is_ok() {}
    })
    .await;
    for (url, becomes, kept) in [
        (cut, "DELIVERED", 3),
        (stalled, "DELIVERED", 3),
        (endless, "DELIVERED", 256),
        (failing, "RETRYING", 4096),
    ] {
        let sub = app.webhook(&url, json!({"timeout_seconds": 2})).await;
        let delivery = app.one_delivery("a.b").await;
        app.is(&delivery, becomes).await;
        let attempt = &app.attempts(&delivery).await[0];
        let body = attempt["response_body"].as_str().unwrap();
        assert!(
            body.starts_with("abc") && body.len() == kept,
            "{url}: {body}"
        );
        app.delete(&format!("/v1/external/webhooks/{}", sub.id), &app.admin)
            .await
            .ok();
    }
    app.stop().await;
}

// A4
async fn attempts_are_kept(db: Db) {
    let app = TestApp::builder(&db)
        .set("NODE_NAME", "node-7")
        .start()
        .await;
    let permits = Arc::new(Semaphore::new(0));
    let gate = permits.clone();
    let receiver = Receiver::with(move |r: Received| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            match r.attempt() {
                1 => reply(503, b"\0\xff".repeat(5000)),
                2 => reply(429, "a little later"),
                _ => reply(200, "\0".repeat(1000)),
            }
        }
    })
    .await;
    let fields = json!({"retry_schedule": {"max_attempts": 3, "backoff_seconds": [1]}});
    app.webhook(&receiver.url(), fields).await;
    let before = jiff::Timestamp::now().as_microsecond();
    let began = Instant::now();
    let delivery = app.one_delivery("a.b").await;
    let mut took = Vec::new();
    for n in 0..3 {
        let received = receiver.wait(n + 1).await[n].at;
        app.is(&delivery, "SENDING").await;
        took.push(received.elapsed().as_millis());
        permits.add_permits(1);
    }
    app.is(&delivery, "DELIVERED").await;
    let most = began.elapsed().as_millis();
    let after = jiff::Timestamp::now().as_microsecond();
    let attempts = app.attempts(&delivery).await;
    let read = |name: &str| -> Vec<Value> { attempts.iter().map(|a| a[name].clone()).collect() };
    assert_eq!(read("number"), [1, 2, 3]);
    assert_eq!(read("outcome"), ["RETRYABLE", "RETRYABLE", "DELIVERED"]);
    assert_eq!(read("response_status"), [503, 429, 200]);
    assert_eq!(read("error"), ["http_503", "http_429", ""]);
    assert_eq!(read("worker"), ["node-7"; 3]);
    // 4 KiB of a failure and 256 bytes of a success; what is not UTF-8 is replaced.
    assert_eq!(
        read("response_body"),
        [
            "\0\u{fffd}".repeat(2048),
            "a little later".into(),
            "\0".repeat(256)
        ]
    );
    let times: Vec<i64> = attempts.iter().map(|a| micros(&a["start_time"])).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(
        times[0] >= before - 50_000 && times[2] <= after,
        "{before} {times:?} {after}"
    );
    assert!(times[1] - times[0] >= 1_000_000);
    for (attempt, least) in attempts.iter().zip(took) {
        let took = attempt["duration_ms"].as_u64().unwrap();
        assert!((least..most).contains(&u128::from(took)), "{attempt}");
    }

    app.stop().await;
}
