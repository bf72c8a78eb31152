//! API keys.

use onering::{
    domain::{
        id::TenantId,
        key::{Hashed, Key, Previous, Status},
    },
    store::{KeyUse, StoreError},
};

use crate::support::{
    build::{Tenancy, a_key, an_admin_key},
    store::{Db, everything, page},
};

contract![
    a_key_is_read_as_it_was_written,
    keys_are_made_together,
    a_key_is_updated_once,
    a_key_is_deleted_once,
    keys_are_listed_newest_first,
    one_first_admin_key_is_made,
    a_consumers_key_is_no_admin_key,
    a_keys_use_is_noted_apart,
];

fn rotated(key: &Key) -> Key {
    Key {
        status: Status::Disabled,
        name: "other".to_owned(),
        rate_limit_per_hour: None,
        allowed_cidrs: Vec::new(),
        expires_at: None,
        canary: false,
        secret: Hashed {
            pepper: 4,
            digest: [8; 32],
        },
        previous: Some(Previous {
            hash: key.secret,
            until: 99,
        }),
        updated_at: key.updated_at + 1,
        ..key.clone()
    }
}

// K3: all of them, at one revision, or none.
async fn keys_are_made_together(db: Db) {
    let store = db.open().await;
    let keys: Vec<Key> = (0..20).map(|_| a_key(Some(TenantId::DEFAULT))).collect();
    let before = store.revision().await.unwrap();
    store.create_keys(&keys).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), before + 1);
    for key in &keys {
        assert_eq!(store.get_key(key.id).await.unwrap().as_ref(), Some(key));
    }
    let again = [a_key(None), keys[3].clone()];
    let taken = store.create_keys(&again).await;
    assert!(matches!(taken, Err(StoreError::Exists(_))), "{taken:?}");
    assert_eq!(store.get_key(again[0].id).await.unwrap(), None);
}

// K2
async fn a_key_is_read_as_it_was_written(db: Db) {
    let store = db.open().await;
    for key in [a_key(Some(TenantId::DEFAULT)), an_admin_key()] {
        assert_eq!(store.get_key(key.id).await.unwrap(), None);
        store.create_key(&key).await.unwrap();
        assert_eq!(store.get_key(key.id).await.unwrap(), Some(key.clone()));
        let changed = rotated(&key);
        store.update_key(&changed, key.updated_at).await.unwrap();
        assert_eq!(store.get_key(key.id).await.unwrap(), Some(changed));
        let taken = store.create_key(&key).await;
        assert!(matches!(taken, Err(StoreError::Exists(_))), "{taken:?}");
    }
}

// K2
async fn a_key_is_updated_once(db: Db) {
    let (one, two) = (db.open().await, db.another().await);
    let key = a_key(None);
    one.create_key(&key).await.unwrap();
    let changed = rotated(&key);
    let answers = tokio::join!(
        one.update_key(&changed, key.updated_at),
        two.update_key(&changed, key.updated_at)
    );
    let refused = match answers {
        (Ok(()), Err(e)) | (Err(e), Ok(())) => e,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused, StoreError::Conflict), "{refused:?}");
}

// K2
async fn a_key_is_deleted_once(db: Db) {
    let store = db.open().await;
    let key = a_key(None);
    store.create_key(&key).await.unwrap();
    assert!(store.delete_key(key.id).await.unwrap());
    assert!(!store.delete_key(key.id).await.unwrap());
    assert_eq!(store.get_key(key.id).await.unwrap(), None);
    let gone = store.update_key(&key, key.updated_at).await;
    assert!(matches!(gone, Err(StoreError::Conflict)), "{gone:?}");
}

// K2, T1
async fn keys_are_listed_newest_first(db: Db) {
    let store = db.open().await;
    let acme = Tenancy::create(&*store, "acme", 4).await;
    let mut all = Vec::new();
    for tenant in [Some(acme.id), None, Some(TenantId::DEFAULT), Some(acme.id)] {
        let key = a_key(tenant);
        store.create_key(&key).await.unwrap();
        all.push(key);
    }
    all.sort_by_key(|k| std::cmp::Reverse(k.id));
    assert_eq!(store.list_keys(None, everything()).await.unwrap(), all);
    assert_eq!(
        store
            .list_keys(None, page(Some(all[1].id), 1))
            .await
            .unwrap(),
        all[2..3]
    );
    let acmes: Vec<Key> = all
        .into_iter()
        .filter(|k| k.tenant == Some(acme.id))
        .collect();
    assert_eq!(
        store.list_keys(Some(acme.id), everything()).await.unwrap(),
        acmes
    );
    assert_eq!(
        store.list_keys(Some(acme.id), page(None, 1)).await.unwrap(),
        acmes[..1]
    );
}

// K2: also when two nodes start at once.
async fn one_first_admin_key_is_made(db: Db) {
    let (one, two) = (db.open().await, db.another().await);
    let (a, b) = (an_admin_key(), an_admin_key());
    match tokio::join!(
        one.create_first_admin_key(&a),
        two.create_first_admin_key(&b)
    ) {
        (Ok(()), Err(StoreError::Exists(_))) | (Err(StoreError::Exists(_)), Ok(())) => {}
        other => panic!("{other:?}"),
    }
    let late = two.create_first_admin_key(&an_admin_key()).await;
    assert!(matches!(late, Err(StoreError::Exists(_))), "{late:?}");
    assert_eq!(one.list_keys(None, everything()).await.unwrap().len(), 1);
}

// K2
async fn a_consumers_key_is_no_admin_key(db: Db) {
    let store = db.open().await;
    store
        .create_key(&a_key(Some(TenantId::DEFAULT)))
        .await
        .unwrap();
    store.create_first_admin_key(&an_admin_key()).await.unwrap();
}

// K3: it changes no revision.
async fn a_keys_use_is_noted_apart(db: Db) {
    let store = db.open().await;
    let (key, unknown) = (a_key(None), a_key(None));
    store.create_key(&key).await.unwrap();
    let before = store.revision().await.unwrap();
    assert_eq!(store.key_use(key.id).await.unwrap(), None);
    let used = |id, last_used, new_secret_first_used| KeyUse {
        id,
        last_used,
        new_secret_first_used,
    };
    store
        .note_key_use(&[used(key.id, 100, 0), used(unknown.id, 1, 0)])
        .await
        .unwrap();
    assert_eq!(
        store.key_use(key.id).await.unwrap(),
        Some(used(key.id, 100, 0))
    );
    // Another node's older news does not turn it back.
    store.note_key_use(&[used(key.id, 50, 40)]).await.unwrap();
    assert_eq!(
        store.key_use(key.id).await.unwrap(),
        Some(used(key.id, 100, 40))
    );
    assert_eq!(store.revision().await.unwrap(), before);
    assert_eq!(store.get_key(key.id).await.unwrap(), Some(key.clone()));
    store.delete_key(key.id).await.unwrap();
    assert_eq!(store.key_use(key.id).await.unwrap(), None);
}
