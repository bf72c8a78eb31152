//! API keys.

use serde_json::json;

use crate::support::{app::TestApp, store::Db};

contract![a_key_is_made_and_used];

// K1, K11: what `create` shows is what a caller sends, over REST and gRPC.
async fn a_key_is_made_and_used(db: Db) {
    let app = TestApp::start(&db).await;
    let made = app
        .post(
            "/v1/admin/external/keys",
            &app.admin,
            json!({"name": "acme"}),
        )
        .await;
    assert_eq!(made.status, 201);
    let made = made.ok();
    let secret = made["secret"].as_str().unwrap();
    let me = app.get("/v1/external/me", secret).await.ok();
    assert_eq!(me["key_id"], made["key_id"]);
    let me = app
        .grpc(secret)
        .keys
        .get_caller(onering::proto::v1::GetCallerRequest {})
        .await;
    assert_eq!(
        me.unwrap().into_inner().key_id,
        made["key_id"].as_str().unwrap()
    );
    app.stop().await;
}
