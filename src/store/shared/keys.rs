use async_trait::async_trait;
use sqlx::{QueryBuilder, Row as _};
use uuid::Uuid;

use super::{Engine, Row, Transaction, broken, bump, failed, must_be_there};
use crate::{
    domain::{
        id::{KeyId, Micros, TenantId},
        key::Key,
    },
    store::{KeyStore, KeyUse, Page, Result, StoreError, rows::KeyRow},
};

const ADMIN: i16 = 2;
/// How many keys' uses one statement writes.
const USES: usize = 250;

fn key(r: &Row) -> Result<Key> {
    KeyRow {
        id: r.get(0),
        tenant: r.get(1),
        kind: r.get(2),
        doc: r.get(3),
        status: r.get(4),
        pepper: r.get(5),
        digest: r.get(6),
        previous_pepper: r.get(7),
        previous_digest: r.get(8),
        previous_until: r.get(9),
        updated_at: r.get(10),
        allowed_cidrs: r.get(11),
    }
    .into_key()
    .map_err(broken)
}

pub(super) async fn changed(tx: &mut Transaction<'_>, since: i64) -> Result<Vec<Key>> {
    sqlx::query(
        "select id, tenant, kind, doc, status, pepper, digest, previous_pepper, previous_digest,
                previous_until, updated_at, allowed_cidrs
         from keys where rev > $1",
    )
    .bind(since)
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?
    .iter()
    .map(key)
    .collect()
}

async fn insert(tx: &mut Transaction<'_>, new: &Key, rev: i64) -> Result<()> {
    let row = KeyRow::of(new);
    sqlx::query(
        "insert into keys (id, tenant, kind, doc, status, pepper, digest, previous_pepper,
                           previous_digest, previous_until, updated_at, allowed_cidrs, rev)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(row.id)
    .bind(row.tenant)
    .bind(row.kind)
    .bind(row.doc)
    .bind(row.status)
    .bind(row.pepper)
    .bind(row.digest)
    .bind(row.previous_pepper)
    .bind(row.previous_digest)
    .bind(row.previous_until)
    .bind(row.updated_at)
    .bind(row.allowed_cidrs)
    .bind(rev)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

#[async_trait]
impl KeyStore for Engine {
    async fn create_key(&self, new: &Key) -> Result<()> {
        let mut tx = self.begin().await?;
        let rev = bump(&mut tx).await?;
        insert(&mut tx, new, rev).await?;
        self.commit_change(tx).await
    }

    async fn create_keys(&self, new: &[Key]) -> Result<()> {
        let mut tx = self.begin().await?;
        let rev = bump(&mut tx).await?;
        for key in new {
            insert(&mut tx, key, rev).await?;
        }
        self.commit_change(tx).await
    }

    async fn create_first_admin_key(&self, new: &Key) -> Result<()> {
        let mut tx = self.begin().await?;
        // Takes the revision's lock first: of two nodes one sees the other's key.
        let rev = bump(&mut tx).await?;
        let admins: i64 = sqlx::query_scalar("select count(*) from keys where kind = $1")
            .bind(ADMIN)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        if admins > 0 {
            return Err(StoreError::Exists("an admin key"));
        }
        insert(&mut tx, new, rev).await?;
        self.commit_change(tx).await
    }

    async fn get_key(&self, id: KeyId) -> Result<Option<Key>> {
        sqlx::query(
            "select id, tenant, kind, doc, status, pepper, digest, previous_pepper, previous_digest,
                    previous_until, updated_at, allowed_cidrs
             from keys where id = $1",
        )
        .bind(id.0)
        .fetch_optional(self.reader())
        .await
        .map_err(failed)?
        .as_ref()
        .map(key)
        .transpose()
    }

    async fn list_keys(&self, tenant: Option<TenantId>, page: Page<KeyId>) -> Result<Vec<Key>> {
        sqlx::query(
            "select id, tenant, kind, doc, status, pepper, digest, previous_pepper, previous_digest,
                    previous_until, updated_at, allowed_cidrs
             from keys where id < $1 and ($2 or tenant = $3) order by id desc limit $4",
        )
        .bind(page.before.map_or(Uuid::max(), |k| k.0))
        .bind(tenant.is_none())
        .bind(tenant.map_or(Uuid::nil(), |t| t.0))
        .bind(page.limit)
        .fetch_all(self.reader())
        .await
        .map_err(failed)?
        .iter()
        .map(key)
        .collect()
    }

    async fn update_key(&self, changed: &Key, updated_at: Micros) -> Result<()> {
        let row = KeyRow::of(changed);
        let mut tx = self.begin().await?;
        let rev = bump(&mut tx).await?;
        let done = sqlx::query(
            "update keys set tenant = $3, kind = $4, doc = $5, status = $6, pepper = $7, digest = $8,
                    previous_pepper = $9, previous_digest = $10, previous_until = $11,
                    updated_at = $12, allowed_cidrs = $13, rev = $14
             where id = $1 and updated_at = $2",
        )
        .bind(row.id)
        .bind(updated_at)
        .bind(row.tenant)
        .bind(row.kind)
        .bind(row.doc)
        .bind(row.status)
        .bind(row.pepper)
        .bind(row.digest)
        .bind(row.previous_pepper)
        .bind(row.previous_digest)
        .bind(row.previous_until)
        .bind(row.updated_at)
        .bind(row.allowed_cidrs)
        .bind(rev)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        must_be_there(done.rows_affected())?;
        self.commit_change(tx).await
    }

    async fn delete_key(&self, id: KeyId) -> Result<bool> {
        let mut tx = self.begin().await?;
        let rev = bump(&mut tx).await?;
        let done = sqlx::query("delete from keys where id = $1")
            .bind(id.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query("delete from key_use where id = $1")
            .bind(id.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        self.note_gone(&mut tx, id.0, rev).await?;
        self.commit_change(tx).await?;
        Ok(true)
    }

    async fn note_key_use(&self, used: &[KeyUse]) -> Result<()> {
        // In one order, so that two nodes never wait for each other in a circle.
        let mut used = used.to_vec();
        used.sort_by_key(|u| u.id.0);
        let mut tx = self.begin().await?;
        for chunk in used.chunks(USES) {
            let mut statement = QueryBuilder::new(
                "insert into key_use as old (id, last_used, new_secret_first_used)
                 select v.column1, v.column2, v.column3 from (",
            );
            statement.push_values(chunk, |mut row, u| {
                row.push_bind(u.id.0)
                    .push_bind(u.last_used)
                    .push_bind(u.new_secret_first_used);
            });
            // Of several nodes the latest use counts, and the first of a secret.
            statement.push(
                ") as v join keys on keys.id = v.column1
                 where true
                 on conflict (id) do update set
                   last_used = case when excluded.last_used > old.last_used
                                    then excluded.last_used else old.last_used end,
                   new_secret_first_used = case
                     when excluded.new_secret_first_used < 0 then 0
                     when excluded.new_secret_first_used = 0 then old.new_secret_first_used
                     when old.new_secret_first_used between 1 and excluded.new_secret_first_used
                       then old.new_secret_first_used
                     else excluded.new_secret_first_used end",
            );
            statement
                .build()
                .persistent(chunk.len() == USES)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    async fn key_use(&self, id: KeyId) -> Result<Option<KeyUse>> {
        let row = sqlx::query("select last_used, new_secret_first_used from key_use where id = $1")
            .bind(id.0)
            .fetch_optional(self.reader())
            .await
            .map_err(failed)?;
        Ok(row.map(|r| KeyUse {
            id,
            last_used: r.get(0),
            new_secret_first_used: r.get(1),
        }))
    }
}
