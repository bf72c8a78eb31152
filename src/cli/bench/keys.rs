//! Keys by the hundred thousand, written straight into a server's database while
//! the server does not run: over its API they would take minutes.

use zeroize::Zeroizing;

use super::{
    error::{BenchError, Result},
    server::Server,
};
use crate::{
    domain::{
        id::{KeyId, TenantId, wall_clock},
        key::{self, Key, Kind, Status},
    },
    seal::Keyring,
    store,
};

/// Keys of one transaction.
const BATCH: usize = 5_000;

/// What was written.
pub(super) struct Loaded {
    /// An admin key with `keys:verify`.
    pub verifier: String,
    /// Consumers' keys.
    pub keys: Vec<String>,
}

/// Writes `n` consumers' keys, whose limit is not reached in a run, and one that
/// verifies them.
pub(super) async fn load(server: &Server, n: u32) -> Result<Loaded> {
    let failed = |e: &dyn std::fmt::Display| BenchError::Failed(format!("keys not written: {e}"));
    let (database, master) = server.store_settings()?;
    let store = store::connect(&database).await.map_err(|e| failed(&e))?;
    let keyring = Keyring::open(&*store, &master)
        .await
        .map_err(|e| failed(&e))?;
    let (verifier, row) = new(Kind::Admin, &keyring).map_err(|e| failed(&e))?;
    store.create_key(&row).await.map_err(|e| failed(&e))?;
    let mut keys = Vec::new();
    let mut left = usize::try_from(n).unwrap_or(usize::MAX);
    while left > 0 {
        let count = left.min(BATCH);
        let made = (0..count).map(|_| new(Kind::Consumer, &keyring));
        let made = made.collect::<std::result::Result<Vec<_>, _>>();
        let (texts, rows): (Vec<String>, Vec<Key>) =
            made.map_err(|e| failed(&e))?.into_iter().unzip();
        store.create_keys(&rows).await.map_err(|e| failed(&e))?;
        keys.extend(texts);
        left -= count;
    }
    store.close().await;
    Ok(Loaded { verifier, keys })
}

fn new(kind: Kind, keyring: &Keyring) -> std::result::Result<(String, Key), getrandom::Error> {
    let now = wall_clock();
    let id = KeyId::new(now, TenantId::DEFAULT.part());
    let secret: Zeroizing<String> = key::generate_secret()?;
    let admin = kind == Kind::Admin;
    let key = Key {
        id,
        tenant: (!admin).then_some(TenantId::DEFAULT),
        kind,
        name: "bench".into(),
        tier: if admin { "" } else { "enterprise" }.into(),
        scopes: vec![if admin { "keys:verify" } else { "read:rings" }.into()],
        canary: false,
        rate_limit_per_hour: (!admin).then_some(1_000_000_000),
        allowed_cidrs: Vec::new(),
        expires_at: None,
        metadata: Vec::new(),
        status: Status::Active,
        secret: keyring.hash(&secret),
        previous: None,
        whole_text: false,
        created_at: id.time(),
        updated_at: now,
    };
    Ok((key::format(kind, id, &secret).to_string(), key))
}
