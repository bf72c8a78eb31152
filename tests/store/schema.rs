//! Migrations, and what the schema promises.

use onering::store::StoreError;

use crate::support::{
    build::{DEFAULT, a_key},
    store::{Db, Engine, Node},
};

contract![
    opening_again_changes_nothing,
    a_newer_database_is_refused,
    a_changed_migration_is_refused,
    two_nodes_open_an_empty_database,
    the_store_answers_until_it_is_closed,
    hot_tables_keys_begin_with_the_partition,
    shifts_of_the_clock_add_up,
];

/// The tables that grow with the traffic.
const HOT: [&str; 9] = [
    "attempts",
    "counter_days",
    "counters",
    "dead",
    "done",
    "events",
    "idempotency",
    "kept_bodies",
    "queue",
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
    store.ping().await.unwrap();
    store.close().await;
    let gone = store.ping().await;
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
        let takes = !node.take_partitions(node.session).await.unwrap().is_empty();
        assert_eq!(takes, alive, "after {minutes} more minutes");
    }
}
