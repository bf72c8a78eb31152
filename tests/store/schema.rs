//! Migrations, and what the schema promises.

use onering::{
    domain::{id::TenantId, key::Key, subscription::Subscription},
    store::{Database, StoreError},
};
use sqlx::{Connection as _, PgConnection};

use crate::support::{
    build::{DEFAULT, a_key, a_subscription},
    store::{Db, Engine, Node},
    wait::{PATIENCE, until},
};

contract![
    opening_again_changes_nothing,
    a_newer_database_is_refused,
    a_changed_migration_is_refused,
    client_certificates_beside_the_version_before,
    allow_lists_beside_the_version_before,
    sessions_beside_the_version_before,
    two_nodes_open_an_empty_database,
    the_store_answers_until_it_is_closed,
    hot_tables_keys_begin_with_the_partition,
    shifts_of_the_clock_add_up,
];

on_postgres_alone![a_migration_that_waits_holds_nobody_up];

/// The tables that grow with the traffic.
const HOT: [&str; 11] = [
    "attempts",
    "counter_days",
    "counters",
    "dead",
    "done",
    "events",
    "idempotency",
    "kept_bodies",
    "queue",
    "replayed",
    "subscription_state",
];

// N6
async fn opening_again_changes_nothing(db: Db) {
    let key = a_key(None);
    db.open().await.create_key(&key).await.unwrap();
    for _ in 0..2 {
        db.close().await;
        let store = db.open().await;
        assert_eq!(store.get_key(key.id).await.unwrap(), Some(key.clone()));
    }
}

// N6: forward only.
async fn a_newer_database_is_refused(db: Db) {
    db.open().await;
    db.close().await;
    db.tamper(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
         select version + 1000, 'later', success, checksum, 0 from _sqlx_migrations where version = 1",
    )
    .await;
    let refused = db.try_open().await.err();
    assert!(matches!(refused, Some(StoreError::Unfit(_))), "{refused:?}");
}

// N6
async fn a_changed_migration_is_refused(db: Db) {
    db.open().await;
    db.close().await;
    let zero = if db.engine() == Engine::Postgres {
        "'\\x00'"
    } else {
        "x'00'"
    };
    db.tamper(&format!("update _sqlx_migrations set checksum = {zero}"))
        .await;
    let refused = db.try_open().await.err();
    assert!(matches!(refused, Some(StoreError::Unfit(_))), "{refused:?}");
}

// N6, A10: what the version before has stored is read, and what it writes once the
// column is there leaves a client certificate as it is.
async fn client_certificates_beside_the_version_before(db: Db) {
    let sub = a_subscription(TenantId::DEFAULT);
    let without = Subscription {
        client_certificate: None,
        ..a_subscription(TenantId::DEFAULT)
    };
    let store = db.open().await;
    for s in [&sub, &without] {
        store.create_subscription(s, 9).await.unwrap();
    }
    db.close().await;
    db.tamper("alter table subscriptions drop column client_certificate")
        .await;
    db.tamper("delete from _sqlx_migrations where version = 2")
        .await;
    let store = db.open().await;
    let read = store.get_subscription(sub.id).await.unwrap().unwrap();
    assert_eq!(read.client_certificate, None);
    let all = store.changes(0).await.unwrap().subscriptions;
    assert!(all.iter().any(|l| l.subscriptions.contains(&without)));
    store
        .update_subscription(&sub, sub.updated_at)
        .await
        .unwrap();
    db.close().await;
    // As the version before updates a row.
    db.tamper(
        "update subscriptions set doc = doc, secret = secret, previous_secret = previous_secret,
                previous_until = previous_until, updated_at = updated_at, rev = rev",
    )
    .await;
    let store = db.open().await;
    let read = store.get_subscription(sub.id).await.unwrap();
    assert_eq!(read, Some(sub));
}

// N6, K2: what the version before has stored is read, and what it writes once the
// column is there leaves a key's allow list as it is.
async fn allow_lists_beside_the_version_before(db: Db) {
    let key = a_key(Some(TenantId::DEFAULT));
    let open = Key {
        allowed_cidrs: Vec::new(),
        ..a_key(None)
    };
    let store = db.open().await;
    for k in [&key, &open] {
        store.create_key(k).await.unwrap();
    }
    db.close().await;
    db.tamper("alter table keys drop column allowed_cidrs")
        .await;
    db.tamper("delete from _sqlx_migrations where description = 'allowed addresses'")
        .await;
    let store = db.open().await;
    let read = store.get_key(key.id).await.unwrap().unwrap();
    assert_eq!(read.allowed_cidrs, []);
    assert_eq!(store.get_key(open.id).await.unwrap(), Some(open));
    store.update_key(&key, key.updated_at).await.unwrap();
    db.close().await;
    // As the version before updates a row.
    db.tamper(
        r#"update keys set tenant = tenant, kind = kind, status = 2, pepper = pepper,
                digest = digest, previous_pepper = previous_pepper,
                previous_digest = previous_digest, previous_until = previous_until,
                updated_at = updated_at, rev = rev,
                doc = '{"name":"other","tier":"free","scopes":[],"canary":false,
                        "rate_limit_per_hour":null,"expires_at":null,"metadata":[],
                        "whole_text":false}'"#,
    )
    .await;
    let store = db.open().await;
    let read = store.get_key(key.id).await.unwrap().unwrap();
    assert_eq!(read.name, "other");
    assert_eq!(read.allowed_cidrs, key.allowed_cidrs);
    let all = store.changes(0).await.unwrap().keys;
    assert!(all.contains(&read));
}

// N6, N2: a session of the version before, which says nothing of being ready, is handed
// partitions, takes what is free in its own way, and keeps what it has.
async fn sessions_beside_the_version_before(db: Db) {
    db.open().await;
    db.close().await;
    db.tamper("alter table nodes drop column ready").await;
    db.tamper("drop table timeline").await;
    db.tamper("delete from _sqlx_migrations where description = 'nodes'")
        .await;
    let store = db.open().await;
    assert!(store.advance_timeline().await.unwrap().mark > 0);
    // As the version before begins a session and takes what is free.
    db.tamper("insert into nodes (sid, name, expires_at) overriding system value values (4000, 'before', 9000000000000000000)"
        .replace("overriding system value ", if db.engine() == Engine::Postgres { "overriding system value " } else { "" })
        .as_str())
        .await;
    db.tamper(
        "update part_owner set sid = 4000, epoch = epoch + 1
         where sid not in (select sid from nodes where expires_at > 0)",
    )
    .await;
    let node = Node::begin(&store).await;
    let nodes = store.nodes().await.unwrap();
    let before = nodes.iter().find(|n| n.name == "before").unwrap();
    assert!(before.ready);
    let owned = async |session| {
        let all = store.partitions().await.unwrap();
        all.iter().filter(|(_, owner)| *owner == session).count()
    };
    assert_eq!(owned(before.session).await, 64, "it keeps what it has");
    assert_eq!(owned(node.session).await, 0);
    let part = DEFAULT.id.part();
    let taken = store.hand_over(before.session, node.session, &[part]).await;
    assert_eq!(taken.unwrap(), [part]);
    let back = store.hand_over(node.session, before.session, &[part]).await;
    assert_eq!(back.unwrap(), [part]);
}

// N6: a backup reads a table for an hour, and a node of a later version starts.
async fn a_migration_that_waits_holds_nobody_up(db: Db) {
    db.open().await;
    db.close().await;
    db.tamper("alter table nodes drop column ready").await;
    db.tamper("drop table timeline").await;
    db.tamper("delete from _sqlx_migrations where description = 'nodes'")
        .await;
    let Database::Postgres(url) = db.database() else {
        panic!("PostgreSQL alone")
    };
    let mut backup = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql("begin; select from nodes")
        .execute(&mut backup)
        .await
        .unwrap();
    let others = async {
        until("the migration waits", async || {
            let waiting = "select count(*)::text from pg_locks
                where not granted and relation = 'nodes'::regclass";
            (db.texts(waiting).await == ["1"]).then_some(())
        })
        .await;
        let heartbeat = db.tamper("update nodes set expires_at = expires_at");
        let passed = tokio::time::timeout(PATIENCE, heartbeat).await;
        backup.close().await.unwrap();
        assert!(passed.is_ok(), "it waits behind the migration");
    };
    let (store, ()) = tokio::join!(db.try_open(), others);
    let store = store.unwrap();
    assert_eq!(
        store.applied_migration().await.unwrap(),
        store.expected_migration()
    );
}

// N6
async fn two_nodes_open_an_empty_database(db: Db) {
    if db.engine() == Engine::Sqlite {
        // For one process: there is no second node.
        return;
    }
    let (one, two, three) = tokio::join!(db.try_open(), db.try_open(), db.try_open());
    for store in [one, two, three] {
        let node = Node::begin(&store.unwrap()).await;
        node.accept(&DEFAULT.event_to(DEFAULT.sub())).await;
    }
}

// N1
async fn the_store_answers_until_it_is_closed(db: Db) {
    let store = db.open().await;
    assert_eq!(
        store.applied_migration().await.unwrap(),
        store.expected_migration()
    );
    store.close().await;
    let gone = store.applied_migration().await;
    assert!(matches!(gone, Err(StoreError::Unavailable(_))), "{gone:?}");
}

// N5: the partition is the first of every key and unique constraint.
async fn hot_tables_keys_begin_with_the_partition(db: Db) {
    db.open().await;
    let sql = match db.engine() {
        Engine::Postgres => {
            "select c.relname || ' ' || a.attname
             from pg_index i
             join pg_class c on c.oid = i.indrelid
             join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
             where i.indisunique and c.relnamespace = 'public'::regnamespace and not c.relispartition
             order by 1"
        }
        Engine::Sqlite => {
            "select m.name || ' ' || k.name
             from sqlite_master m
             join pragma_index_list(m.name) i on i.\"unique\"
             join pragma_index_info(i.name) k on k.seqno = 0
             where m.type = 'table' order by 1"
        }
    };
    let keys = db.texts(sql).await;
    for table in HOT {
        let of_table: Vec<_> = keys
            .iter()
            .filter_map(|k| k.strip_prefix(table)?.strip_prefix(' '))
            .collect();
        assert!(!of_table.is_empty(), "{table} has no key");
        assert!(
            of_table.iter().all(|column| *column == "part"),
            "{table}: {of_table:?}"
        );
    }
}

async fn shifts_of_the_clock_add_up(db: Db) {
    let store = db.open().await;
    let ttl = std::time::Duration::from_hours(1);
    let node = Node::idle(&store, ttl).await;
    for (minutes, alive) in [(40, true), (-30, true), (45, true), (10, false)] {
        node.pass(minutes * 60_000_000).await;
        // Does not renew it past its first hour.
        let takes = !node.take_all().await.is_empty();
        assert_eq!(takes, alive, "after {minutes} more minutes");
    }
}
