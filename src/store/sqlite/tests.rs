use std::time::Duration;

use super::*;
use crate::{
    domain::{
        delivery::Status,
        id::{DeliveryId, EventId, Part, SubscriptionId, TenantId},
    },
    store::{
        ConfigStore as _, Finish, Finished, NewDelivery, NodeStore as _, Publish, Published,
        QueueStore as _, Session, Settle, Want,
    },
};

#[tokio::test]
async fn one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/onering.db");
    let store = Sqlite::open(&path).await.unwrap();
    let refused = Sqlite::open(&path).await.err();
    assert!(
        matches!(&refused, Some(StoreError::Unfit(why)) if why.contains("another process")),
        "{refused:?}"
    );
    store.close().await;
    assert!(
        !path.with_extension("db-wal").exists(),
        "closing empties the log"
    );
    Sqlite::open(&path).await.unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn only_its_owner_reads_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data/onering.db");
    let _store = Sqlite::open(&path).await.unwrap();
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for file in [
        "onering.db",
        "onering.db-wal",
        "onering.db-shm",
        "onering.db.lock",
    ] {
        assert_eq!(mode(&path.with_file_name(file)), 0o600, "{file}");
    }
}

#[tokio::test]
async fn another_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    std::fs::write(
        &path,
        "not a database, and long enough to be looked at: ".repeat(100),
    )
    .unwrap();
    let refused = Sqlite::open(&path).await.err();
    assert!(matches!(refused, Some(StoreError::Unfit(_))), "{refused:?}");
}

fn event(session_leases: bool) -> Publish {
    let event = EventId::new(wall_clock(), TenantId::DEFAULT.part());
    Publish {
        tenant: TenantId::DEFAULT,
        revision: 1,
        event,
        event_type: "a.b".into(),
        body: "{}".into(),
        key: None,
        idempotency: None,
        trace: None,
        deliveries: vec![NewDelivery {
            id: DeliveryId::of(event),
            subscription: SubscriptionId::new(wall_clock(), TenantId::DEFAULT.part()),
            held: 0,
            lease: session_leases,
            ordered: false,
        }],
        ordering_key: None,
    }
}

async fn started(store: &Sqlite) -> Session {
    let session = store
        .begin_session("n", Duration::from_secs(60))
        .await
        .unwrap();
    take_all(store, session).await;
    session
}

async fn take_all(store: &Sqlite, session: Session) -> Vec<Part> {
    let all: Vec<Part> = Part::all().collect();
    store.take_partitions(session, &all).await.unwrap()
}

// A statement that fails, and a caller that goes away, leave the next one a
// working connection and nothing half done.
#[tokio::test]
async fn a_transaction_given_up_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&directory.path().join("o.db")).await.unwrap();
    let session = started(&store).await;
    let mut tx = store.begin().await.unwrap();
    sqlx::query("delete from part_owner")
        .execute(&mut *tx)
        .await
        .unwrap();
    drop(tx);
    let mut tx = store.begin().await.unwrap();
    // As SQLite does by itself when the disk is full.
    sqlx::query("rollback").execute(&mut *tx).await.unwrap();
    assert!(tx.commit().await.is_err());
    let twice = event(true);
    let refused = store
        .publish(session, &[event(true), twice.clone(), twice])
        .await;
    assert!(matches!(refused, Err(StoreError::Exists(_))), "{refused:?}");
    assert_eq!(store.leases(session).await.unwrap(), []);
    let accepted = store.publish(session, &[event(true)]).await.unwrap();
    assert_eq!(accepted, [Published::Accepted { leased: true }]);
    assert_eq!(store.leases(session).await.unwrap().len(), 1);
}

// The disk is full: the statement fails as unavailable, what was committed
// stays, and the store goes on when there is room again.
#[tokio::test]
async fn a_full_disk_passes() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&directory.path().join("o.db")).await.unwrap();
    let session = started(&store).await;
    let limit = async |pages: i64| {
        let sql = format!("pragma max_page_count = {pages}");
        let mut tx = store.begin().await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    };
    limit(1).await; // Less than the file has: no more than that.
    let mut big = event(true);
    big.body = vec![b' '; 1 << 20].into();
    let full = store.publish(session, &[event(true), big.clone()]).await;
    assert!(matches!(full, Err(StoreError::Unavailable(_))), "{full:?}");
    assert_eq!(store.leases(session).await.unwrap(), []);
    limit(1 << 30).await;
    let accepted = store.publish(session, &[big]).await.unwrap();
    assert_eq!(accepted, [Published::Accepted { leased: true }]);
}

// N2, W4: a file that can be opened has no other process: whatever session it
// tells of is over, and its leases are free at once.
#[tokio::test]
async fn a_process_that_died_holds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("o.db");
    let store = Sqlite::open(&path).await.unwrap();
    let ended = started(&store).await;
    let published = event(true);
    let accepted = store.publish(ended, std::slice::from_ref(&published)).await;
    assert_eq!(accepted.unwrap(), [Published::Accepted { leased: true }]);
    store.close().await;

    let store = Sqlite::open(&path).await.unwrap();
    assert_eq!(store.leases(ended).await.unwrap(), []);
    let minute = Duration::from_secs(60);
    assert!(!store.renew_session(ended, minute).await.unwrap());
    let session = store.begin_session("n", minute).await.unwrap();
    assert_ne!(session, ended);
    let owned = take_all(&store, session).await;
    assert_eq!(owned.len(), 64);
    let delivery = &published.deliveries[0];
    let want = Want {
        part: delivery.id.part(),
        subscription: delivery.subscription,
        limit: 10,
    };
    let leased = store.claim(session, &[want]).await.unwrap();
    assert_eq!(leased.len(), 1);
    assert_eq!(leased[0].id, delivery.id);
    assert!(leased[0].token > 1, "the fence is a new one");
}

// N3: what callers read of the history waits for connections of its own, not for
// those by which the node keeps its configuration and finds what is due.
#[tokio::test]
async fn long_reads_stop_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&directory.path().join("o.db")).await.unwrap();
    let session = started(&store).await;
    let mut reads = Vec::new();
    for _ in 0..store.history().options().get_max_connections() {
        reads.push(store.history_snapshot().await.unwrap());
    }
    store.revision().await.unwrap();
    store.waiting(&[TenantId::DEFAULT.part()]).await.unwrap();
    let accepted = store.publish(session, &[event(true)]).await.unwrap();
    assert_eq!(accepted, [Published::Accepted { leased: true }]);
    let held = store.leases(session).await.unwrap();
    let (id, token) = held[0];
    let finish = Finish {
        held: 0,
        ordered: false,
        id,
        token,
        settle: Settle::Done(Status::Delivered),
        reason: String::new(),
        attempt: None,
    };
    assert_eq!(store.finish(&[finish]).await.unwrap(), [Finished::Now]);
    for read in reads {
        read.commit().await.unwrap();
    }
}
