//! Connections to PostgreSQL that end.

use futures_util::future::join_all;

use crate::support::{build::a_key, store::Db};

on_postgres_alone![one_ended_connection_stands_for_all];

// H1: a server that restarts ends every connection; that is found once, not by a
// caller for each that was idle.
async fn one_ended_connection_stands_for_all(db: Db) {
    let store = db.open().await;
    let key = a_key(None);
    store.create_key(&key).await.unwrap();
    for answer in join_all((0..8).map(|_| store.get_key(key.id))).await {
        answer.unwrap();
    }
    let ended = db
        .texts(
            "select pg_terminate_backend(pid, 5000)::text from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()",
        )
        .await;
    assert!(ended.len() > 2, "several connections: {ended:?}");
    let mut failed = 0;
    for _ in 0..20 {
        failed += usize::from(store.get_key(key.id).await.is_err());
    }
    assert!(failed <= 1, "{failed} of 20 calls failed");
}
