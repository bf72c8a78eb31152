//! Registered event types.

use onering::{
    domain::{
        event_type::EventType,
        id::{EventTypeId, wall_clock},
    },
    store::StoreError,
};

use crate::support::{
    build::{DEFAULT, Tenancy},
    store::{Db, everything, page},
};

contract![
    an_event_type_is_kept,
    names_are_of_a_tenant,
    a_change_is_made_to_what_was_read,
    what_changed_is_told_by_revision,
];

fn event_type(tenant: Tenancy, name: &str) -> EventType {
    let now = wall_clock();
    EventType {
        id: EventTypeId::new(now, tenant.id.part()),
        tenant: tenant.id,
        name: name.to_owned(),
        description: "Faktura".to_owned(),
        schema: Some(r#"{ "type":"object" }"#.to_owned()),
        updated_at: now,
    }
}

// D4
async fn an_event_type_is_kept(db: Db) {
    let store = db.open().await;
    let mut made = Vec::new();
    for name in ["a.b", "c.d", "e.f"] {
        let new = event_type(DEFAULT, name);
        store.create_event_type(&new, 10).await.unwrap();
        made.push(new);
    }
    let found = store.get_event_type(DEFAULT.id, "c.d").await.unwrap();
    assert_eq!(found.as_ref(), Some(&made[1]));
    let found = store.event_type_by_id(made[1].id).await.unwrap();
    assert_eq!(found.as_ref(), Some(&made[1]));
    made.reverse();
    let all = store.list_event_types(DEFAULT.id, everything()).await;
    assert_eq!(all.unwrap(), made);
    let rest = store
        .list_event_types(DEFAULT.id, page(Some(made[0].id), 1))
        .await;
    assert_eq!(rest.unwrap(), made[1..2]);
    assert!(store.delete_event_type(made[0].id).await.unwrap());
    assert!(!store.delete_event_type(made[0].id).await.unwrap());
    assert_eq!(store.event_type_by_id(made[0].id).await.unwrap(), None);
}

// D4, T1
async fn names_are_of_a_tenant(db: Db) {
    let node = db.node().await;
    let acme = Tenancy::create(&*node.store, "acme", 3).await;
    let create = async |of, name, quota| node.create_event_type(&event_type(of, name), quota).await;
    create(DEFAULT, "a.b", 2).await.unwrap();
    create(acme, "a.b", 2).await.unwrap();
    let again = create(DEFAULT, "a.b", 2).await;
    assert!(matches!(again, Err(StoreError::Exists(_))), "{again:?}");
    create(DEFAULT, "c.d", 2).await.unwrap();
    let full = create(DEFAULT, "e.f", 2).await;
    assert!(matches!(full, Err(StoreError::Quota(2))), "{full:?}");
    let listed = node.list_event_types(acme.id, everything()).await.unwrap();
    assert_eq!(listed.len(), 1);
}

// D4
async fn a_change_is_made_to_what_was_read(db: Db) {
    let store = db.open().await;
    let old = event_type(DEFAULT, "a.b");
    store.create_event_type(&old, 10).await.unwrap();
    let new = EventType {
        description: String::new(),
        schema: None,
        updated_at: old.updated_at + 1,
        ..old.clone()
    };
    store.update_event_type(&new, old.updated_at).await.unwrap();
    let found = store.get_event_type(DEFAULT.id, "a.b").await.unwrap();
    assert_eq!(found.as_ref(), Some(&new));
    let late = store.update_event_type(&old, old.updated_at).await;
    assert!(matches!(late, Err(StoreError::Conflict)), "{late:?}");
}

// D4, X2: what nodes load.
async fn what_changed_is_told_by_revision(db: Db) {
    let store = db.open().await;
    let (one, two) = (event_type(DEFAULT, "a.b"), event_type(DEFAULT, "c.d"));
    let kept = event_type(DEFAULT, "e.f");
    store.create_event_type(&kept, 10).await.unwrap();
    store.create_event_type(&one, 10).await.unwrap();
    let first = store.changes(0).await.unwrap();
    assert_eq!(first.event_types.len(), 2);
    store.create_event_type(&two, 10).await.unwrap();
    store.delete_event_type(one.id).await.unwrap();
    let then = store.changes(first.revision).await.unwrap();
    assert_eq!(then.event_types, [two]);
    assert_eq!(then.deleted, [one.id.0]);
    assert!(then.revision > first.revision);
}
