//! `KeyService`.

use futures_util::{StreamExt as _, stream};
use tonic::{Request, Response};

use super::{
    Answer, Context, caller,
    change::Changes,
    check::{self, Faults},
    page, trace,
};
use crate::{
    caller::Caller,
    domain::{
        id::{KeyId, Micros, TenantId, wall_clock},
        key::{self, Hashed, Key, Kind, Previous, Status},
    },
    error::{Error, Reason, Result},
    pipeline::publish::unavailable,
    proto::v1::{
        self, CreateKeyRequest, CreateKeyResponse, DeleteKeyRequest, DeleteKeyResponse,
        DisableKeyRequest, DisableKeyResponse, EnableKeyRequest, EnableKeyResponse,
        GetCallerRequest, GetCallerResponse, GetKeyRequest, GetKeyResponse, ListKeysRequest,
        ListKeysResponse, RevokeKeyRequest, RevokeKeyResponse, RotateKeyRequest, RotateKeyResponse,
        UpdateKeyRequest, UpdateKeyResponse, VerifyKeyRequest, VerifyKeyResponse,
        key_service_server::KeyService,
    },
    store::{self, KeyUse},
};

mod fields;
mod verify;
mod view;

use view::View;
pub use view::effective_limit;

/// How many keys' uses are read at once for a list.
const READS: usize = 8;

/// Issues, changes and withdraws API keys.
pub struct Keys(pub Context);

#[tonic::async_trait]
impl Changes for Keys {
    type Id = KeyId;
    type Row = Key;

    async fn load(&self, caller: &Caller, id: KeyId) -> Result<Key> {
        let found = self.0.store.get_key(id).await.map_err(unavailable)?;
        found
            .filter(|key| match key.tenant {
                Some(tenant) => caller.sees(tenant),
                // A key of every tenant is for those alike to see.
                None => caller.key().tenant.is_none(),
            })
            .ok_or_else(|| Error::not_found(format_args!("key {id}")))
    }

    async fn write(&self, key: &Key, updated_at: Micros) -> store::Result<()> {
        self.0.store.update_key(key, updated_at).await
    }

    fn updated_at(key: &mut Key) -> &mut Micros {
        &mut key.updated_at
    }

    async fn written(&self) {
        self.0.catch_up().await;
    }
}

impl Keys {
    pub(super) async fn view(&self, key: &Key) -> v1::Key {
        // When it was last used is not worth failing for.
        let stored = self.0.store.key_use(key.id).await.ok().flatten();
        let uses = view::uses(self.0.directory.uses(key.id), stored);
        View::new(
            key,
            uses,
            &self.0.directory,
            &self.0.live.load(),
            wall_clock(),
        )
        .0
    }

    fn secret(&self, kind: Kind, id: KeyId) -> Result<(String, Hashed)> {
        let secret = key::generate_secret().map_err(Error::internal)?;
        let text = key::format(kind, id, &secret);
        Ok((text.to_string(), self.0.keyring.hash(&secret)))
    }

    /// The tenant of a new key. An admin key without one acts on every tenant;
    /// only a caller that does so itself can make such a key.
    async fn tenant_of_new(
        &self,
        caller: &Caller,
        kind: Kind,
        named: &str,
    ) -> Result<Option<TenantId>> {
        if kind == Kind::Admin && named.is_empty() && caller.key().tenant.is_none() {
            return Ok(None);
        }
        Ok(Some(self.0.tenant(caller, named).await?.id))
    }
}

fn revoked() -> Error {
    Error::new(
        Reason::FailedPrecondition,
        "the key was revoked, which is final: make a new one",
    )
}

/// The fields of a key that a new one can have.
fn wanted(given: CreateKeyRequest, faults: &mut Faults) -> v1::Key {
    if let (Some(new), Some(old)) = (given.canary_enabled, given.canary)
        && new != old
    {
        faults.add(
            "canary",
            "is an old name of canary_enabled, and differs from it",
        );
    }
    v1::Key {
        name: given.name,
        tier: given.tier,
        scopes: given.scopes,
        canary_enabled: given.canary_enabled.or(given.canary).unwrap_or_default(),
        rate_limit_per_hour: given.rate_limit_per_hour,
        expire_time: given.expire_time,
        metadata: given.metadata,
        allowed_cidrs: given.allowed_cidrs,
        ..v1::Key::default()
    }
}

#[tonic::async_trait]
impl KeyService for Keys {
    async fn create_key(&self, request: Request<CreateKeyRequest>) -> Answer<CreateKeyResponse> {
        let caller = caller(&request)?;
        let mut given = request.into_inner();
        let mut faults = Faults::default();
        let kind = fields::kind(given.kind, &mut faults);
        let named = std::mem::take(&mut given.tenant);
        let wanted = wanted(given, &mut faults);
        let now = wall_clock();
        let part = TenantId::DEFAULT.part();
        let mut new = Key {
            id: KeyId::new(now, part),
            tenant: None,
            kind,
            name: String::new(),
            tier: String::new(),
            scopes: Vec::new(),
            canary: false,
            rate_limit_per_hour: None,
            allowed_cidrs: Vec::new(),
            expires_at: None,
            metadata: Vec::new(),
            status: Status::Active,
            secret: Hashed {
                pepper: 0,
                digest: [0; 32],
            },
            previous: None,
            whole_text: false,
            created_at: now,
            updated_at: now,
        };
        let live = self.0.live.load_full();
        fields::apply(
            &mut new,
            &wanted,
            &fields::CHANGEABLE,
            &live,
            now,
            &mut faults,
        );
        faults.done()?;
        new.tenant = self.tenant_of_new(&caller, kind, &named).await?;
        if let Some(tenant) = new.tenant {
            new.id = KeyId::new(now, tenant.part());
        }
        // What its id says, to the microsecond, is what is read back later.
        new.created_at = new.id.time();
        let (secret, hash) = self.secret(kind, new.id)?;
        new.secret = hash;
        self.0.store.create_key(&new).await.map_err(unavailable)?;
        self.0.catch_up().await;
        Ok(Response::new(CreateKeyResponse {
            key_id: new.id.to_string(),
            secret,
            key: Some(self.view(&new).await),
        }))
    }

    async fn get_key(&self, request: Request<GetKeyRequest>) -> Answer<GetKeyResponse> {
        let caller = caller(&request)?;
        let id = check::id("key_id", &request.get_ref().key_id)?;
        let key = self.load(&caller, id).await?;
        Ok(Response::new(GetKeyResponse {
            key: Some(self.view(&key).await),
        }))
    }

    async fn list_keys(&self, request: Request<ListKeysRequest>) -> Answer<ListKeysResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let page = page::read::<KeyId>(given.page_size, &given.page_token)?;
        let tenant = if given.tenant.is_empty() {
            caller.key().tenant
        } else {
            Some(self.0.tenant(&caller, &given.tenant).await?.id)
        };
        let mut rows = self
            .0
            .store
            .list_keys(tenant, page)
            .await
            .map_err(unavailable)?;
        let next_page_token = page::cut(&page, &mut rows, |k| k.id);
        let views: Vec<_> = rows.iter().map(|k| self.view(k)).collect();
        let keys = stream::iter(views).buffered(READS).collect().await;
        Ok(Response::new(ListKeysResponse {
            keys,
            next_page_token,
        }))
    }

    async fn update_key(&self, request: Request<UpdateKeyRequest>) -> Answer<UpdateKeyResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let id = check::id("key_id", &given.key_id)?;
        let Some(wanted) = given.key else {
            return Err(Error::field("key", "is required").into());
        };
        let live = self.0.live.load_full();
        let directory = &self.0.directory;
        let (_, key) = self
            .change(&caller, id, |key, now| {
                if key.status == Status::Revoked {
                    return Err(revoked());
                }
                let mut faults = Faults::under("key.");
                let shown = View::new(key, (0, 0), directory, &live, now);
                let names = fields::named(&wanted, &shown, given.update_mask.as_ref(), &mut faults);
                fields::apply(key, &wanted, &names, &live, now, &mut faults);
                faults.done()
            })
            .await?;
        Ok(Response::new(UpdateKeyResponse {
            key: Some(self.view(&key).await),
        }))
    }

    async fn disable_key(&self, request: Request<DisableKeyRequest>) -> Answer<DisableKeyResponse> {
        let caller = caller(&request)?;
        let id = check::id("key_id", &request.get_ref().key_id)?;
        let (_, key) = self
            .change(&caller, id, |key, _| set_status(key, Status::Disabled))
            .await?;
        Ok(Response::new(DisableKeyResponse {
            key: Some(self.view(&key).await),
        }))
    }

    async fn enable_key(&self, request: Request<EnableKeyRequest>) -> Answer<EnableKeyResponse> {
        let caller = caller(&request)?;
        let id = check::id("key_id", &request.get_ref().key_id)?;
        let (_, key) = self
            .change(&caller, id, |key, _| set_status(key, Status::Active))
            .await?;
        Ok(Response::new(EnableKeyResponse {
            key: Some(self.view(&key).await),
        }))
    }

    /// A bootstrap key's digest is of its whole text, and can't be kept beside
    /// that of a secret: it becomes a key of the usual form, and its old text
    /// stops at once. A caller who asks for an overlap all the same is refused.
    async fn rotate_key(&self, request: Request<RotateKeyRequest>) -> Answer<RotateKeyResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let id = check::id("key_id", &given.key_id)?;
        let overlap = check::overlap(given.overlap_seconds)?;
        let asked = given.overlap_seconds.is_some_and(|s| s > 0);
        let kind = self.load(&caller, id).await?.kind;
        let (secret, hash) = self.secret(kind, id)?;
        let (_, key) = self
            .change(&caller, id, |key, now| {
                rotate(key, hash, overlap, asked, now)
            })
            .await?;
        // The new secret was not used yet; what is stored is of an earlier one.
        let uses = self.0.directory.uses(id);
        let stored = self.0.store.key_use(id).await.ok().flatten();
        if stored.is_some_and(|u| u.new_secret_first_used > 0) {
            let reset = KeyUse {
                id,
                last_used: view::uses(uses, stored).0,
                new_secret_first_used: -1,
            };
            if let Err(e) = self.0.store.note_key_use(&[reset]).await {
                tracing::debug!(error.message = %e, "key use not reset after a rotation");
            }
        }
        Ok(Response::new(RotateKeyResponse {
            key_id: key.id.to_string(),
            secret,
            key: Some(self.view(&key).await),
        }))
    }

    async fn revoke_key(&self, request: Request<RevokeKeyRequest>) -> Answer<RevokeKeyResponse> {
        let caller = caller(&request)?;
        let id = check::id("key_id", &request.get_ref().key_id)?;
        let revoke = |key: &mut Key, _| {
            key.status = Status::Revoked;
            Ok(())
        };
        let (_, key) = self.change(&caller, id, revoke).await?;
        Ok(Response::new(RevokeKeyResponse {
            key: Some(self.view(&key).await),
        }))
    }

    async fn delete_key(&self, request: Request<DeleteKeyRequest>) -> Answer<DeleteKeyResponse> {
        let caller = caller(&request)?;
        let id = check::id("key_id", &request.get_ref().key_id)?;
        self.load(&caller, id).await?;
        if !self.0.store.delete_key(id).await.map_err(unavailable)? {
            return Err(Error::not_found(format_args!("key {id}")).into());
        }
        self.0.catch_up().await;
        Ok(Response::new(DeleteKeyResponse {}))
    }

    async fn verify_key(&self, request: Request<VerifyKeyRequest>) -> Answer<VerifyKeyResponse> {
        let caller = caller(&request)?;
        let trace = trace::of_call(&request);
        let answer = verify::verify(&self.0, &caller, request.get_ref(), trace.as_deref()).await?;
        Ok(Response::new(answer))
    }

    async fn get_caller(&self, request: Request<GetCallerRequest>) -> Answer<GetCallerResponse> {
        let caller = caller(&request)?;
        Ok(Response::new(describe(&self.0, &caller)))
    }
}

/// What a caller is told of itself; for the short way of REST too.
pub fn describe(context: &Context, caller: &Caller) -> GetCallerResponse {
    view::caller(caller.key(), &context.directory, &context.live.load())
}

fn set_status(key: &mut Key, status: Status) -> Result<()> {
    if key.status == Status::Revoked {
        return Err(revoked());
    }
    key.status = status;
    Ok(())
}

/// Gives a key a new secret. The one before stays good until the overlap ends;
/// one from before that stops now.
fn rotate(key: &mut Key, hash: Hashed, overlap: Micros, asked: bool, now: Micros) -> Result<()> {
    if key.status == Status::Revoked {
        return Err(revoked());
    }
    if key.whole_text && asked {
        return Err(Error::new(
            Reason::FailedPrecondition,
            "the text of a bootstrap key stops at its rotation: rotate it with overlap_seconds 0",
        ));
    }
    key.previous = (!key.whole_text).then_some(Previous {
        hash: key.secret,
        until: now + overlap,
    });
    key.secret = hash;
    key.whole_text = false;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{fields::tests::key, *};

    const NEW: Hashed = Hashed {
        pepper: 1,
        digest: [9; 32],
    };

    // K3: the old secret stays good for the overlap, an older one does not.
    #[test]
    fn a_rotation_keeps_one_secret() {
        let mut k = key(Kind::Consumer);
        let first = k.secret;
        assert!(rotate(&mut k, NEW, 100, true, 5).is_ok());
        assert_eq!(
            k.previous,
            Some(Previous {
                hash: first,
                until: 105
            })
        );
        let third = Hashed {
            pepper: 1,
            digest: [7; 32],
        };
        assert!(rotate(&mut k, third, 100, false, 6).is_ok());
        assert_eq!(
            k.previous,
            Some(Previous {
                hash: NEW,
                until: 106
            })
        );
        assert_eq!(k.secret, third);
    }

    #[test]
    fn a_bootstrap_key_becomes_a_usual_one() {
        let mut k = key(Kind::Admin);
        k.whole_text = true;
        assert!(rotate(&mut k, NEW, 100, true, 5).is_err());
        assert!(rotate(&mut k, NEW, 100, false, 5).is_ok());
        assert_eq!((k.whole_text, k.previous, k.secret), (false, None, NEW));
    }

    // K3: a revoked key can't come back.
    #[test]
    fn revoked_is_final() {
        let mut k = key(Kind::Consumer);
        k.status = Status::Revoked;
        assert!(rotate(&mut k, NEW, 100, false, 5).is_err());
        for status in [Status::Active, Status::Disabled] {
            let error = set_status(&mut k, status).err().unwrap();
            assert_eq!(error.reason, Reason::FailedPrecondition);
        }
    }

    #[test]
    fn the_old_name_of_canary_enabled() {
        for (new, old, is, right) in [
            (None, None, false, true),
            (None, Some(true), true, true),
            (Some(true), None, true, true),
            (Some(true), Some(true), true, true),
            (Some(true), Some(false), true, false),
        ] {
            let mut faults = Faults::default();
            let given = CreateKeyRequest {
                canary_enabled: new,
                canary: old,
                ..CreateKeyRequest::default()
            };
            assert_eq!(wanted(given, &mut faults).canary_enabled, is);
            assert_eq!(faults.done().is_ok(), right);
        }
    }
}
