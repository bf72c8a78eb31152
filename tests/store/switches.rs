//! Switches, and the log of what was changed.

use onering::{
    domain::{
        audit::{Record, Verifier},
        switch::{Change, Stored},
    },
    store::{AuditEnd, Store, StoreError},
};

use crate::support::{
    build::{a_chain, change_switches, set_switch},
    store::{Db, Engine, everything, page},
};

contract![
    a_change_is_stored_with_its_record,
    switches_change_together,
    only_what_is_stopped_is_lifted,
    the_log_is_listed_newest_first,
    racing_changes_make_one_chain,
    the_log_is_append_only,
];

const API: &str = "external_api.enabled";
const WEBHOOKS: &str = "webhooks.enabled";

async fn stored(store: &dyn Store) -> Vec<Stored> {
    store.changes(0).await.unwrap().switches
}

async fn read(store: &dyn Store) -> (Vec<Record>, AuditEnd) {
    let mut records = Vec::new();
    let end = store.read_audit(&mut |r| records.push(r)).await.unwrap();
    (records, end)
}

/// The number of records of a log that verifies.
async fn verify(store: &dyn Store) -> i64 {
    let (records, end) = read(store).await;
    let mut verifier = Verifier::new(a_chain());
    for record in records {
        verifier.read(record);
    }
    verifier.end(end.head, &end.switches).unwrap().0
}

// X3: who, when, why, old and new.
async fn a_change_is_stored_with_its_record(db: Db) {
    let store = db.open().await;
    assert_eq!(stored(&*store).await, []);
    assert_eq!(verify(&*store).await, 0);
    let mut all = Vec::new();
    for (on, old, new) in [
        (true, "off", "on"),
        (true, "on", "on"),
        (false, "on", "off"),
    ] {
        let changed = set_switch(&*store, API, on).await;
        assert_eq!(changed.revision, store.revision().await.unwrap());
        let now = stored(&*store).await;
        assert_eq!(now, changed.switches);
        let s = &now[0];
        assert_eq!((s.name.as_str(), s.enabled, s.stopped), (API, on, false));
        assert_eq!(
            (s.updated_by.as_str(), s.reason.as_str()),
            ("key_test", "a test")
        );
        assert_eq!(s.rev, changed.revision);
        assert!(s.updated_at > 1_700_000_000_000_000);
        let (records, end) = read(&*store).await;
        let last = records.last().unwrap();
        assert_eq!((last.seq, last.hash), (changed.sequence, changed.hash));
        let e = &last.entry;
        assert_eq!((e.old.as_str(), e.new.as_str()), (old, new));
        assert_eq!((e.action.as_str(), e.target.as_str()), ("switch.set", API));
        assert_eq!(
            (e.actor.as_str(), e.reason.as_str()),
            ("key_test", "a test")
        );
        assert_eq!(e.at, s.updated_at);
        assert_eq!(end.switches, now);
        all.push(last.clone());
        assert_eq!(records, all, "what was written stays as it is");
    }
    assert_eq!(verify(&*store).await, 3);
    // Also for another process.
    db.close().await;
    assert_eq!(verify(&*db.open().await).await, 3);
}

// X4: all of them in one revision, with a record for each.
async fn switches_change_together(db: Db) {
    let store = db.open().await;
    set_switch(&*store, API, true).await;
    let before = store.revision().await.unwrap();
    let stop = change_switches(&*store, &[API, WEBHOOKS], Change::Stop).await;
    let stop = stop.unwrap();
    assert_eq!(stop.revision, before + 1);
    assert_eq!(stop.sequence, 3);
    let states = stored(&*store).await;
    let states: Vec<_> = states.iter().map(|s| (s.enabled, s.stopped)).collect();
    assert_eq!(states, [(true, true), (false, true)]);
    let (records, _) = read(&*store).await;
    let told = records[1..]
        .iter()
        .map(|r| (r.entry.target.as_str(), r.entry.old.as_str()));
    assert_eq!(told.collect::<Vec<_>>(), [(API, "on"), (WEBHOOKS, "off")]);
    // What is set meanwhile rules after the stop.
    assert!(set_switch(&*store, API, false).await.switches[0].stopped);
    let lift = change_switches(&*store, &[API], Change::Lift)
        .await
        .unwrap();
    let now = &lift.switches[0];
    assert_eq!((now.enabled, now.stopped), (false, false));
    assert_eq!(verify(&*store).await, 5);
}

// X4
async fn only_what_is_stopped_is_lifted(db: Db) {
    let store = db.open().await;
    change_switches(&*store, &[API], Change::Stop)
        .await
        .unwrap();
    let before = store.revision().await.unwrap();
    for names in [&[WEBHOOKS][..], &[API, WEBHOOKS]] {
        let refused = change_switches(&*store, names, Change::Lift).await;
        assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
    }
    assert_eq!(store.revision().await.unwrap(), before);
    assert!(stored(&*store).await[0].stopped, "nor one of several");
    assert_eq!(verify(&*store).await, 1);
}

// X3
async fn the_log_is_listed_newest_first(db: Db) {
    let store = db.open().await;
    for name in [API, WEBHOOKS, API, API, WEBHOOKS] {
        set_switch(&*store, name, true).await;
    }
    let list = async |action: &str, target: Option<&str>, page| {
        let records = store.audit(action, target, page).await.unwrap();
        records.iter().map(|r| r.seq).collect::<Vec<_>>()
    };
    assert_eq!(list("switch.", None, everything()).await, [5, 4, 3, 2, 1]);
    assert_eq!(list("", None, page(None, 2)).await, [5, 4]);
    assert_eq!(list("", None, page(Some(4), 2)).await, [3, 2]);
    assert_eq!(list("", Some(API), page(None, 2)).await, [4, 3]);
    assert_eq!(list("", Some(API), page(Some(3), 2)).await, [1]);
    assert_eq!(
        list("switch.set", Some(WEBHOOKS), everything()).await,
        [5, 2]
    );
    for other in ["key.", "switch.stop", "switch.setting"] {
        assert_eq!(list(other, None, everything()).await, [0; 0], "{other}");
    }
    assert_eq!(list("", Some("x"), everything()).await, [0; 0]);
}

// X3: numbers without a gap, and hashes that follow each other, whoever writes.
async fn racing_changes_make_one_chain(db: Db) {
    let (one, two) = (db.open().await, db.another().await);
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let store = if n % 2 == 0 { one.clone() } else { two.clone() };
            tokio::spawn(async move {
                for i in 0..10 {
                    set_switch(&*store, &format!("s{n}"), i % 2 == 0).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(verify(&*one).await, 40);
}

// X3: the database itself refuses, as long as nobody tells it not to.
async fn the_log_is_append_only(db: Db) {
    let store = db.open().await;
    set_switch(&*store, API, true).await;
    let mut attempts = vec![
        "update audit set reason = 'x'",
        "delete from audit where seq = 1",
    ];
    if db.engine() == Engine::Postgres {
        attempts.push("truncate audit");
    }
    for sql in attempts {
        let refused = db.try_tamper(sql).await.unwrap_err();
        assert!(refused.contains("append-only"), "{sql}: {refused}");
    }
    assert_eq!(verify(&*store).await, 1);
}
