//! Tenants, subscriptions, switches and the revision that tells of them.

use onering::{
    domain::{
        id::TenantId,
        subscription::{
            Disabled, Kind, Lifetime, PayloadFormat, PreviousSecret, Sealed, Subscription,
        },
    },
    store::{Changes, SealedKey, Store, StoreError},
};

use crate::support::{
    build::{DEFAULT, Tenancy, a_key, a_subscription, a_tenant, set_switch},
    store::{Db, everything, page},
};

contract![
    a_store_begins_with_the_default_tenant,
    every_change_increments_the_revision,
    changes_tell_what_changed,
    what_is_refused_changes_nothing,
    tenants_names_are_unique,
    tenants_are_listed_newest_first,
    a_subscription_is_read_as_it_was_written,
    a_subscription_is_updated_once,
    subscriptions_are_listed_newest_first,
    a_subscription_is_deleted_once,
    a_quota_holds_for_two_that_race,
    a_subscription_needs_its_tenant,
    sealed_keys_are_kept_by_version,
    racing_changes_are_all_told,
    lifetimes_are_the_stores,
];

// T1
async fn a_store_begins_with_the_default_tenant(db: Db) {
    let store = db.open().await;
    let tenants = store.list_tenants(everything()).await.unwrap();
    assert_eq!(tenants.len(), 1);
    assert_eq!(tenants[0].id, TenantId::DEFAULT);
    assert_eq!(tenants[0].name, "default");
    let all = store.changes(0).await.unwrap();
    assert_eq!(all.tenants, tenants);
    assert_eq!(all.revision, store.revision().await.unwrap());
    assert_eq!(all.subscriptions[0].tenant, Some(TenantId::DEFAULT));
    assert_eq!(all.subscriptions[0].revision, DEFAULT.revision);
}

// K3
async fn every_change_increments_the_revision(db: Db) {
    let store = db.open().await;
    let mut last = store.revision().await.unwrap();
    let mut moved = async |what: &str| {
        let now = store.revision().await.unwrap();
        assert_eq!(now, last + 1, "{what}");
        last = now;
    };
    store.create_tenant(&a_tenant("acme", 4)).await.unwrap();
    moved("a tenant").await;
    let key = a_key(Some(TenantId::DEFAULT));
    store.create_key(&key).await.unwrap();
    moved("a key").await;
    store.update_key(&key, key.updated_at).await.unwrap();
    moved("a key's update").await;
    assert!(store.delete_key(key.id).await.unwrap());
    moved("a key's end").await;
    let sub = a_subscription(TenantId::DEFAULT);
    store.create_subscription(&sub, 5).await.unwrap();
    moved("a subscription").await;
    store
        .update_subscription(&sub, sub.updated_at)
        .await
        .unwrap();
    moved("a subscription's update").await;
    assert!(store.delete_subscription(sub.id).await.unwrap());
    moved("a subscription's end").await;
    set_switch(&*store, "x", true).await;
    moved("a switch").await;
}

/// How much of each a change tells.
fn told(c: &Changes) -> [usize; 4] {
    [
        c.tenants.len(),
        c.keys.len(),
        c.deleted.len(),
        c.subscriptions.len(),
    ]
}

// K3
async fn changes_tell_what_changed(db: Db) {
    let store = db.open().await;
    let other = db.another().await;
    let mut at = store.revision().await.unwrap();
    let mut next = async || {
        let changes = other.changes(at).await.unwrap();
        at = changes.revision;
        assert_eq!(at, other.revision().await.unwrap());
        changes
    };
    assert_eq!(told(&next().await), [0; 4]);

    let tenant = a_tenant("acme", 4);
    store.create_tenant(&tenant).await.unwrap();
    assert_eq!(next().await.tenants, std::slice::from_ref(&tenant));

    let (one, two) = (a_key(Some(tenant.id)), a_key(None));
    store.create_key(&one).await.unwrap();
    store.create_key(&two).await.unwrap();
    let mut keys = next().await.keys;
    keys.sort_by_key(|k| k.id);
    let mut both = [one.clone(), two.clone()];
    both.sort_by_key(|k| k.id);
    assert_eq!(keys, both);

    store.delete_key(one.id).await.unwrap();
    let changes = next().await;
    assert_eq!(told(&changes), [0, 0, 1, 0]);
    assert_eq!(changes.deleted, [one.id.0]);

    let subs = [a_subscription(tenant.id), a_subscription(tenant.id)];
    store.create_subscription(&subs[0], 5).await.unwrap();
    let first = next().await;
    store.create_subscription(&subs[1], 5).await.unwrap();
    let second = next().await;
    assert_eq!(told(&second), [0, 0, 0, 1]);
    assert_eq!(second.subscriptions[0].tenant, Some(tenant.id));
    assert_eq!(
        second.subscriptions[0].subscriptions.len(),
        2,
        "the whole list"
    );
    assert!(second.subscriptions[0].revision > first.subscriptions[0].revision);
    store.delete_subscription(subs[0].id).await.unwrap();
    assert_eq!(next().await.subscriptions[0].subscriptions, subs[1..]);
    store.delete_subscription(subs[1].id).await.unwrap();
    let none = next().await;
    assert_eq!(
        told(&none),
        [0, 0, 0, 1],
        "a list that became empty is told"
    );
    assert_eq!(none.subscriptions[0].subscriptions, []);

    set_switch(&*store, "x", true).await;
    set_switch(&*store, "y", true).await;
    set_switch(&*store, "x", false).await;
    let switches = next().await.switches;
    let mut switches: Vec<_> = switches
        .iter()
        .map(|s| (s.name.as_str(), s.enabled))
        .collect();
    switches.sort_unstable();
    assert_eq!(switches, [("x", false), ("y", true)]);

    let all = store.changes(0).await.unwrap();
    assert_eq!(all.tenants.len(), 2);
    assert_eq!(all.keys, [two]);
    assert_eq!(
        all.subscriptions.len(),
        2,
        "tenants without subscriptions too"
    );
}

// K3
async fn what_is_refused_changes_nothing(db: Db) {
    let store = db.open().await;
    store.create_tenant(&a_tenant("acme", 4)).await.unwrap();
    let key = a_key(None);
    store.create_key(&key).await.unwrap();
    let before = store.revision().await.unwrap();
    store.create_tenant(&a_tenant("acme", 5)).await.unwrap_err();
    store.create_key(&key).await.unwrap_err();
    store.update_key(&key, 1).await.unwrap_err();
    let sub = a_subscription(TenantId::DEFAULT);
    store.create_subscription(&sub, 0).await.unwrap_err();
    store.update_subscription(&sub, 1).await.unwrap_err();
    assert!(!store.delete_key(a_key(None).id).await.unwrap());
    assert!(!store.delete_subscription(sub.id).await.unwrap());
    assert_eq!(store.revision().await.unwrap(), before);
    assert_eq!(told(&store.changes(before).await.unwrap()), [0; 4]);
}

// T1
async fn tenants_names_are_unique(db: Db) {
    let (one, two) = (db.open().await, db.another().await);
    for n in 0..5 {
        let name = format!("acme-{n}");
        let (a, b) = (a_tenant(&name, 1), a_tenant(&name, 2));
        let answers = tokio::join!(one.create_tenant(&a), two.create_tenant(&b));
        let refused = match answers {
            (Ok(()), Err(e)) | (Err(e), Ok(())) => e,
            other => panic!("{other:?}"),
        };
        assert!(matches!(refused, StoreError::Exists(_)), "{refused:?}");
    }
    let taken = one.create_tenant(&a_tenant("default", 3)).await;
    assert!(matches!(taken, Err(StoreError::Exists(_))), "{taken:?}");
}

// T1
async fn tenants_are_listed_newest_first(db: Db) {
    let store = db.open().await;
    let mut made = Vec::new();
    for n in 0..4 {
        let tenant = a_tenant(&format!("t{n}"), n);
        store.create_tenant(&tenant).await.unwrap();
        made.push(tenant);
    }
    made.sort_by_key(|t| std::cmp::Reverse(t.id));
    let first = store.list_tenants(page(None, 3)).await.unwrap();
    assert_eq!(first, made[..3]);
    let rest = store
        .list_tenants(page(Some(first[2].id), 3))
        .await
        .unwrap();
    assert_eq!(rest[0], made[3]);
    assert_eq!(rest[1].id, TenantId::DEFAULT);
    assert_eq!(rest.len(), 2);
}

fn other_settings(sub: &Subscription) -> Subscription {
    Subscription {
        url: "https://example.com/other".to_owned(),
        disabled: Some(Disabled {
            at: 5,
            reason: "gone".to_owned(),
        }),
        schedule: None,
        format: PayloadFormat::CloudEventsStructured,
        previous: Some(PreviousSecret {
            secret: Sealed(vec![9]),
            until: 77,
        }),
        client_certificate: None,
        metadata: Vec::new(),
        updated_at: sub.updated_at + 1,
        ..sub.clone()
    }
}

// D3
async fn a_subscription_is_read_as_it_was_written(db: Db) {
    let store = db.open().await;
    let sub = a_subscription(TenantId::DEFAULT);
    store.create_subscription(&sub, 5).await.unwrap();
    assert_eq!(
        store.get_subscription(sub.id).await.unwrap(),
        Some(sub.clone())
    );
    let changed = other_settings(&sub);
    store
        .update_subscription(&changed, sub.updated_at)
        .await
        .unwrap();
    assert_eq!(store.get_subscription(sub.id).await.unwrap(), Some(changed));
}

// D3
async fn a_subscription_is_updated_once(db: Db) {
    let (one, two) = (db.open().await, db.another().await);
    let sub = a_subscription(TenantId::DEFAULT);
    one.create_subscription(&sub, 5).await.unwrap();
    let changed = other_settings(&sub);
    let answers = tokio::join!(
        one.update_subscription(&changed, sub.updated_at),
        two.update_subscription(&changed, sub.updated_at)
    );
    let refused = match answers {
        (Ok(()), Err(e)) | (Err(e), Ok(())) => e,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused, StoreError::Conflict), "{refused:?}");
}

// D3
async fn subscriptions_are_listed_newest_first(db: Db) {
    let store = db.open().await;
    let acme = Tenancy::create(&*store, "acme", 4).await;
    let mut made = Vec::new();
    for _ in 0..4 {
        let sub = a_subscription(acme.id);
        store.create_subscription(&sub, 9).await.unwrap();
        made.push(sub);
    }
    store
        .create_subscription(&a_subscription(TenantId::DEFAULT), 9)
        .await
        .unwrap();
    made.sort_by_key(|s| std::cmp::Reverse(s.id));
    let first = store
        .list_subscriptions(acme.id, page(None, 3))
        .await
        .unwrap();
    assert_eq!(first, made[..3]);
    let rest = store
        .list_subscriptions(acme.id, page(Some(first[2].id), 3))
        .await
        .unwrap();
    assert_eq!(rest, made[3..]);
}

// D3
async fn a_subscription_is_deleted_once(db: Db) {
    let store = db.open().await;
    let sub = a_subscription(TenantId::DEFAULT);
    store.create_subscription(&sub, 5).await.unwrap();
    assert!(store.delete_subscription(sub.id).await.unwrap());
    assert!(!store.delete_subscription(sub.id).await.unwrap());
    assert_eq!(store.get_subscription(sub.id).await.unwrap(), None);
    let gone = store.update_subscription(&sub, sub.updated_at).await;
    assert!(matches!(gone, Err(StoreError::Conflict)), "{gone:?}");
}

// D3: quotas on every resource a consumer can create.
async fn a_quota_holds_for_two_that_race(db: Db) {
    let stores = [db.open().await, db.another().await];
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let store = stores[n % 2].clone();
            let sub = a_subscription(TenantId::DEFAULT);
            tokio::spawn(async move { store.create_subscription(&sub, 3).await })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => made += 1,
            Err(StoreError::Quota(3)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(made, 3);
    // Another tenant has its own.
    let acme = Tenancy::create(&*stores[0], "acme", 4).await;
    stores[0]
        .create_subscription(&a_subscription(acme.id), 3)
        .await
        .unwrap();
}

// T1
async fn a_subscription_needs_its_tenant(db: Db) {
    let store = db.open().await;
    let nobody = a_tenant("nobody", 4);
    let refused = store
        .create_subscription(&a_subscription(nobody.id), 3)
        .await;
    assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
}

async fn seals(store: &dyn Store) -> Vec<(String, i32, Vec<u8>)> {
    let mut keys = store.sealed_keys().await.unwrap();
    keys.sort_by(|a, b| (&a.purpose, a.version).cmp(&(&b.purpose, b.version)));
    keys.into_iter()
        .map(|k| (k.purpose, k.version, k.sealed))
        .collect()
}

// Z1: rotation by re-wrapping.
async fn sealed_keys_are_kept_by_version(db: Db) {
    let (one, two) = (db.open().await, db.another().await);
    let key = |purpose: &str, version, byte| SealedKey {
        purpose: purpose.to_owned(),
        version,
        sealed: vec![0, byte],
    };
    assert_eq!(seals(&*one).await, []);
    let (a, b) = (key("pepper", 1, 1), key("pepper", 1, 2));
    match tokio::join!(one.add_sealed_key(&a), two.add_sealed_key(&b)) {
        (Ok(()), Err(StoreError::Exists(_))) | (Err(StoreError::Exists(_)), Ok(())) => {}
        other => panic!("{other:?}"),
    }
    one.add_sealed_key(&key("pepper", 2, 3)).await.unwrap();
    one.add_sealed_key(&key("data", 1, 4)).await.unwrap();
    two.reseal(&[key("pepper", 1, 7), key("data", 1, 8)])
        .await
        .unwrap();
    let expected = [("data", 1, 8), ("pepper", 1, 7), ("pepper", 2, 3)];
    let expected = expected.map(|(p, v, byte)| (p.to_owned(), v, vec![0, byte]));
    assert_eq!(seals(&*one).await, expected);
}

// K3: a reader that goes by the revision misses nothing that commits meanwhile.
async fn racing_changes_are_all_told(db: Db) {
    let (one, two) = (db.open().await, db.another().await);
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let store = if n % 2 == 0 { one.clone() } else { two.clone() };
            tokio::spawn(async move {
                let mut ids = Vec::new();
                for _ in 0..15 {
                    let key = a_key(None);
                    store.create_key(&key).await.unwrap();
                    ids.push(key.id);
                }
                ids
            })
        })
        .collect();
    let mut told = Vec::new();
    let mut at = 0;
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        let changes = two.changes(at).await.unwrap();
        at = changes.revision;
        told.extend(changes.keys.into_iter().map(|k| k.id));
    }
    told.extend(
        two.changes(at)
            .await
            .unwrap()
            .keys
            .into_iter()
            .map(|k| k.id),
    );
    let mut made = Vec::new();
    for writer in writers {
        made.extend(writer.await.unwrap());
    }
    made.sort_unstable();
    told.sort_unstable();
    assert_eq!(told, made);
}

// W9: a lifetime runs by the store's clock, from its subscription's making and from
// each time that it is prolonged; that changes no revision, and its end does.
async fn lifetimes_are_the_stores(db: Db) {
    let store = db.open().await;
    let mortal = Subscription {
        kind: Kind::Stream,
        url: String::new(),
        lifetime: Some(Lifetime {
            seconds: 60,
            ends_at: 5,
        }),
        ..a_subscription(TenantId::DEFAULT)
    };
    let stays = a_subscription(TenantId::DEFAULT);
    store.create_subscription(&mortal, 9).await.unwrap();
    store.create_subscription(&stays, 9).await.unwrap();
    let ends = async || {
        let read = store.get_subscription(mortal.id).await.unwrap().unwrap();
        assert_eq!(read.kind, Kind::Stream);
        read.lifetime.unwrap().ends_at
    };
    let first = ends().await;
    assert!(first > 60_000_000, "what is given is not written");
    let revision = store.revision().await.unwrap();
    store.shift_clock(30_000_000).await.unwrap();
    let ids = [mortal.id, stays.id];
    store.prolong_subscriptions(&ids).await.unwrap();
    assert!(ends().await >= first + 30_000_000);
    store.shift_clock(40_000_000).await.unwrap();
    assert!(store.end_subscriptions(10).await.unwrap().is_empty());
    assert_eq!(store.revision().await.unwrap(), revision);
    store.shift_clock(25_000_000).await.unwrap();
    // Over is over: it is not brought back.
    store.prolong_subscriptions(&ids).await.unwrap();
    assert_eq!(store.end_subscriptions(10).await.unwrap(), [mortal.id]);
    assert_eq!(store.revision().await.unwrap(), revision + 1);
    assert!(store.get_subscription(mortal.id).await.unwrap().is_none());
    let told = store.changes(revision).await.unwrap();
    let left = &told.subscriptions[0].subscriptions;
    assert_eq!(left.iter().map(|s| s.id).collect::<Vec<_>>(), [stays.id]);
    let read = store.get_subscription(stays.id).await.unwrap().unwrap();
    assert_eq!((read.kind, read.lifetime), (Kind::Webhook, None));
}
