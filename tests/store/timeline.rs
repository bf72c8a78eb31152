//! How far a database has come.

use crate::support::store::{Db, Engine, HOUR};

contract![
    the_mark_only_grows,
    what_was_restored_is_held_until_it_is_accepted,
];

// N2
async fn the_mark_only_grows(db: Db) {
    let store = db.open().await;
    let first = store.timeline().await.unwrap();
    let one = store.advance_timeline().await.unwrap();
    assert!(one.mark > first.mark);
    assert_eq!((one.id, one.restored.as_str()), (first.id, ""));
    assert_eq!(one.server, store.server().await.unwrap());
    assert_eq!(one.server.is_empty(), db.engine() == Engine::Sqlite);
    store.shift_clock(HOUR).await.unwrap();
    let later = store.advance_timeline().await.unwrap();
    assert!(later.mark >= one.mark + HOUR, "by the store's clock");
    store.shift_clock(-HOUR).await.unwrap();
    let back = store.advance_timeline().await.unwrap();
    assert_eq!(back.mark, later.mark + 1, "whatever that does");
    assert_eq!(store.timeline().await.unwrap(), back);
}

// N2
async fn what_was_restored_is_held_until_it_is_accepted(db: Db) {
    let store = db.open().await;
    let before = store.advance_timeline().await.unwrap();
    store.note_restored("it is a copy").await.unwrap();
    store.note_restored("another reason").await.unwrap();
    let held = store.advance_timeline().await.unwrap();
    assert_eq!(held.restored, "it is a copy");
    assert_eq!(db.another().await.timeline().await.unwrap(), held);
    let accepted = store.accept_restored().await.unwrap();
    assert_eq!(accepted.restored, "");
    assert_ne!(
        accepted.id, before.id,
        "what was noted of it counts no more"
    );
    assert_eq!(accepted.server, before.server);
    assert_eq!(store.timeline().await.unwrap(), accepted);
}
