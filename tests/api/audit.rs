//! `onering doctor audit` finds what was done to the log behind the server's back.

use std::collections::BTreeMap;

use onering::{
    domain::audit::{Chain, Entry},
    store::Page,
};
use serde_json::json;

use crate::support::{
    app::TestApp,
    command::{Done, onering},
    store::{Db, Engine},
};

contract![
    a_log_that_nobody_touched_verifies,
    a_record_that_was_changed_is_named,
    a_record_that_is_gone_is_named,
    a_cut_end_is_noticed,
    a_log_cannot_be_written_without_the_key,
    a_switch_set_behind_the_logs_back_is_noticed,
    an_earlier_log_is_noticed_by_what_was_noted,
];

type Vars = BTreeMap<String, String>;

/// A store whose log has four records, of a server that has stopped.
async fn a_log(db: &Db) -> Vars {
    let app = TestApp::builder(db).unpinned().start().await;
    for (name, on) in [
        ("webhooks.enabled", true),
        ("external_api.enabled", true),
        ("webhooks.enabled", false),
        ("GET /v1/external/me", false),
    ] {
        app.switch(name, on).await;
    }
    let vars = app.vars().clone();
    app.stop().await;
    vars
}

async fn doctor(vars: &Vars, more: &[&str]) -> Done {
    let vars: Vec<_> = vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let mut args = vec!["doctor", "audit"];
    args.extend(more);
    onering(&args, &vars).await
}

/// Checks that it names this record and says so.
async fn finds(vars: &Vars, seq: i64, what: &str) {
    let done = doctor(vars, &[]).await.exits(1);
    let line = format!("❌ audit log: record {seq}: ");
    assert!(done.stdout.contains(&line), "{done:?}");
    assert!(done.stdout.contains(what), "{what}: {done:?}");
}

/// What whoever owns the database can do.
async fn disarm(db: &Db) {
    match db.engine() {
        Engine::Postgres => db.tamper("alter table audit disable trigger user").await,
        Engine::Sqlite => {
            db.tamper("drop trigger audit_update").await;
            db.tamper("drop trigger audit_delete").await;
        }
    }
}

// X3
async fn a_log_that_nobody_touched_verifies(db: Db) {
    let mut vars = a_log(&db).await;
    let done = doctor(&vars, &[]).await.exits(0);
    assert!(done.stdout.contains("✅ 4 records"), "{done:?}");
    assert!(done.stdout.contains("✅ 3 stored switches"), "{done:?}");
    // Under another master key nothing is said of it.
    let other = onering(&["keys", "master"], &[]).await.stdout;
    vars.insert("ONERING_MASTER_KEY".into(), other.trim().to_owned());
    let done = doctor(&vars, &[]).await.exits(1);
    assert!(done.stderr.contains("can't be opened"), "{done:?}");
    vars.remove("ONERING_MASTER_KEY");
    doctor(&vars, &[]).await.exits(2);
}

// X3
async fn a_record_that_was_changed_is_named(db: Db) {
    let vars = a_log(&db).await;
    disarm(&db).await;
    for (column, value) in [
        ("reason", "'another reason'"),
        ("actor", "'key_somebody_else'"),
        ("at", "at + 1"),
        ("new", "'off'"),
    ] {
        let as_it_was =
            format!("update audit set {column} = was.{column} from was where audit.seq = was.seq");
        db.tamper("create table was as select * from audit").await;
        db.tamper(&format!(
            "update audit set {column} = {value} where seq = 2"
        ))
        .await;
        finds(&vars, 2, "was changed").await;
        db.tamper(&as_it_was).await;
        db.tamper("drop table was").await;
        doctor(&vars, &[]).await.exits(0);
    }
    // Two records in each other's place.
    db.tamper("update audit set seq = case seq when 2 then -3 else -2 end where seq in (2, 3)")
        .await;
    db.tamper("update audit set seq = -seq where seq < 0").await;
    finds(&vars, 2, "was changed").await;
}

// X3
async fn a_record_that_is_gone_is_named(db: Db) {
    let vars = a_log(&db).await;
    disarm(&db).await;
    db.tamper("delete from audit where seq = 3").await;
    finds(&vars, 3, "is missing").await;
    // Closing the gap does not help.
    db.tamper("update audit set seq = 3 where seq = 4").await;
    db.tamper("update audit_head set seq = 3").await;
    finds(&vars, 3, "was changed").await;
    db.tamper("delete from audit where seq = 1").await;
    finds(&vars, 1, "is missing").await;
}

// X3
async fn a_cut_end_is_noticed(db: Db) {
    let vars = a_log(&db).await;
    disarm(&db).await;
    db.tamper("delete from audit where seq = 4").await;
    finds(&vars, 4, "is missing: the log ends with record 3").await;
    // Nor can what tells of the end be made to fit.
    db.tamper("update audit_head set seq = 3").await;
    finds(&vars, 3, "forged").await;
    db.tamper("delete from audit_head").await;
    finds(&vars, 3, "nothing tells that it is the last one").await;
    db.tamper("delete from audit").await;
    finds(&vars, 1, "no record tells of the switch").await;
}

// X3: with the code, and all that the database holds, but without the master key.
async fn a_log_cannot_be_written_without_the_key(db: Db) {
    let vars = a_log(&db).await;
    let store = db.open().await;
    let last = Page {
        before: None,
        limit: 1,
    };
    let last = store.audit("", None, last).await.unwrap().remove(0);
    db.close().await;
    let guess = Chain::new(&[0; 32]).unwrap();
    let entry = Entry {
        reason: "forged".into(),
        ..last.entry
    };
    let forged = guess.append(4, &last.hash, entry);
    let head = guess.head(5, &forged.hash);
    let bytes = |bytes: [u8; 32]| match db.engine() {
        Engine::Postgres => format!("'\\x{}'::bytea", hex::encode(bytes)),
        Engine::Sqlite => format!("x'{}'", hex::encode(bytes)),
    };
    db.tamper(&format!(
        "insert into audit select 5, at, actor, action, target, old, new, 'forged', {}
         from audit where seq = 4",
        bytes(forged.hash)
    ))
    .await;
    db.tamper(&format!(
        "update audit_head set seq = 5, mac = {}",
        bytes(head.mac)
    ))
    .await;
    finds(&vars, 5, "was changed").await;
}

// X3
async fn a_switch_set_behind_the_logs_back_is_noticed(db: Db) {
    let vars = a_log(&db).await;
    db.tamper("update switches set enabled = not enabled where name = 'external_api.enabled'")
        .await;
    finds(&vars, 2, "what is stored is another thing").await;
    db.tamper("update switches set enabled = not enabled where name = 'external_api.enabled'")
        .await;
    db.tamper("delete from switches where name = 'webhooks.enabled'")
        .await;
    finds(&vars, 3, "which is not stored").await;
}

// X3: the whole database as it was once verifies; a number and hash that were
// noted elsewhere tell.
async fn an_earlier_log_is_noticed_by_what_was_noted(db: Db) {
    let vars = a_log(&db).await;
    let done = doctor(&vars, &[]).await.exits(0);
    let noted = done.stdout.split("the last one is ").nth(1).unwrap();
    let noted = noted.lines().next().unwrap().to_owned();
    assert!(noted.starts_with("4:") && noted.len() == 66, "{noted}");
    doctor(&vars, &["--noted", &noted]).await.exits(0);
    doctor(&vars, &["--noted", &noted[..10]]).await.exits(0);
    let other = noted.replacen("4:", "3:", 1);
    for wrong in [other.as_str(), "5:0123456789"] {
        let done = doctor(&vars, &["--noted", wrong]).await.exits(1);
        assert!(done.stdout.contains("earlier or another"), "{done:?}");
    }
    for not_one in ["4", "4:12", "x:0123456789", "4:012345678x"] {
        doctor(&vars, &["--noted", not_one]).await.exits(2);
    }
    // The next record follows.
    let app = TestApp::builder(&db).unpinned();
    let app = vars.iter().fold(app, |app, (name, value)| {
        app.set(name.strip_prefix("ONERING_").unwrap(), value)
    });
    let app = app.start().await;
    app.post(
        "/v1/admin/switches/stop-all",
        &app.admin,
        json!({"reason": "x"}),
    )
    .await
    .ok();
    app.stop().await;
    let done = doctor(&vars, &["--noted", &noted]).await.exits(0);
    assert!(done.stdout.contains("✅ 7 records"), "{done:?}");
}
