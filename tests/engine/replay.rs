//! Signatures that are too old before they leave.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use onering::{app::Outside, domain::id::wall_clock};
use serde_json::{Value, json};

use crate::support::{
    app::TestApp,
    gate::Gate,
    receiver::{Receiver, status},
    store::Db,
    tls::{SelfSigned, self_signed},
};

contract![
    a_stale_attempt_is_not_sent,
    stale_again_and_again_is_the_end_until_retried,
];

/// The replay window and a little more, in microseconds.
const JUMP: i64 = 301 * 1_000_000;

/// A node whose wall clock jumps, and a receiver whose handshakes can be stalled.
struct Stage {
    app: TestApp,
    jumped: Arc<AtomicI64>,
    receiver: Receiver,
    gate: Gate,
    delivery: String,
    _tls: SelfSigned,
}

impl Stage {
    async fn set(db: &Db) -> Self {
        let jumped = Arc::new(AtomicI64::new(0));
        let offset = jumped.clone();
        let outside = Outside {
            clock: Arc::new(move || wall_clock() + offset.load(Ordering::SeqCst)),
            ..Outside::default()
        };
        let tls = self_signed(&["127.0.0.1"], &["http/1.1"]);
        let app = TestApp::builder(db)
            .set("ENDPOINT_CA_FILE", tls.pem.display())
            .outside(outside)
            .start()
            .await;
        let receiver = Receiver::over(Some(tls.config.clone()), |_| async { status(200) }).await;
        let gate = Gate::before(receiver.address).await;
        let url = format!("https://{}/webhook", gate.address);
        app.webhook(&url, json!({"timeout_seconds": 60})).await;
        let delivery = app.one_delivery("a.b").await;
        Self {
            app,
            jumped,
            receiver,
            gate,
            delivery,
            _tls: tls,
        }
    }

    /// The clock jumps while the connection of that number waits for its handshake.
    async fn stall(&self, connection: usize) {
        self.gate.wait(connection).await;
        self.jumped.fetch_add(JUMP, Ordering::SeqCst);
        self.gate.let_through(1);
    }

    async fn outcomes(&self) -> Vec<Value> {
        let attempts = self.app.attempts(&self.delivery).await;
        attempts.into_iter().map(|a| a["outcome"].clone()).collect()
    }
}

// S5: due again at once, with a signature of its own time; no attempt is charged.
async fn a_stale_attempt_is_not_sent(db: Db) {
    let stage = Stage::set(&db).await;
    stage.stall(1).await;
    stage.gate.wait(2).await;
    assert_eq!(stage.receiver.count(), 0, "what was stale did not leave");
    stage.gate.let_through(1);
    let delivered = stage.app.is(&stage.delivery, "DELIVERED").await;
    assert_eq!(delivered["attempt_count"], 1);
    let received = stage.receiver.received();
    assert_eq!((received.len(), received[0].attempt()), (1, 1));
    let t: i64 = received[0].header("x-webhook-timestamp").parse().unwrap();
    assert!(
        t * 1_000_000 > wall_clock() + JUMP / 2,
        "signed after the jump"
    );
    assert_eq!(stage.outcomes().await, ["REPLAY_EXPIRED", "DELIVERED"]);
    stage.app.stop().await;
}

// S5
async fn stale_again_and_again_is_the_end_until_retried(db: Db) {
    let stage = Stage::set(&db).await;
    for connection in 1..=3 {
        stage.stall(connection).await;
    }
    let ended = stage.app.is(&stage.delivery, "REPLAY_EXPIRED").await;
    assert_eq!(
        (&ended["attempt_count"], &ended["reason"]),
        (&json!(0), &json!("replay_expired"))
    );
    assert_eq!(stage.outcomes().await, ["REPLAY_EXPIRED"; 3]);
    assert_eq!(stage.receiver.count(), 0);

    stage.app.retry(&stage.delivery).await.ok();
    stage.gate.let_through(1);
    stage.app.is(&stage.delivery, "DELIVERED").await;
    assert_eq!(stage.receiver.count(), 1);
    stage.app.stop().await;
}
