//! What callers and operators see of a limit that can't be decided.

use serde_json::json;

use super::scene::OwnRedis;
use crate::support::{
    app::{TestApp, eventually},
    store::Db,
};

contract![an_undecided_call_is_no_limit_hit];

const METRICS: &str = "/v1/monitoring/external/metrics";
const CALL: &str = "/v1/external/webhooks";

// K7, E1
async fn an_undecided_call_is_no_limit_hit(db: Db) {
    let mut redis = OwnRedis::start().await;
    let app = TestApp::builder(&db)
        .set("REDIS_URL", redis.url())
        .set("ALERT_RATE_LIMIT_HITS_24H", 1)
        .start()
        .await;
    let degraded = async |expected: bool| {
        eventually(&format!("degraded is {expected}"), || async {
            let figures = app.get(METRICS, &app.admin).await.ok();
            (figures["alerts"]["rate_limiter_degraded"] == expected).then_some(figures)
        })
        .await
    };
    degraded(false).await;
    let (_, key) = app.key(json!({"rate_limit_per_hour": 4})).await;
    redis.stop().await;
    degraded(true).await;
    // The store's part.
    app.get(CALL, &key).await.ok();
    for _ in 0..3 {
        let refused = app.get(CALL, &key).await;
        let problem = refused.refused(429, "RATE_LIMITED");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("can't be decided"), "{detail}");
        assert_eq!(refused.header("retry-after"), "1");
    }
    let figures = degraded(true).await;
    assert_eq!(figures["rate_limit_hits_24h"], 0);
    assert_eq!(figures["alerts"]["rate_limits"], false);
    redis.run().await;
    degraded(false).await;
    for _ in 0..3 {
        app.get(CALL, &key).await.ok();
    }
    let refused = app.get(CALL, &key).await;
    let problem = refused.refused(429, "RATE_LIMITED");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("used up"), "{detail}");
    let hits = app.get(METRICS, &app.admin).await.ok();
    assert_eq!(hits["rate_limit_hits_24h"], 1);
    app.stop().await;
}
