use async_trait::async_trait;

use super::{Engine, Transaction, event_types, failed, keys, subscriptions, switches, tenants};
use crate::store::{Changes, ConfigStore, Result, SealedKey};
use sqlx::Row as _;
use uuid::Uuid;

#[async_trait]
impl ConfigStore for Engine {
    async fn revision(&self) -> Result<i64> {
        sqlx::query_scalar("select rev from config_rev")
            .fetch_one(self.reader())
            .await
            .map_err(failed)
    }

    async fn changes(&self, since: i64) -> Result<Changes> {
        let mut tx = self.snapshot().await?;
        let revision = sqlx::query_scalar("select rev from config_rev")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        let changes = Changes {
            revision,
            tenants: tenants::changed(&mut tx, since).await?,
            keys: keys::changed(&mut tx, since).await?,
            deleted: deleted(&mut tx, since).await?,
            event_types: event_types::changed(&mut tx, since).await?,
            subscriptions: subscriptions::changed(&mut tx, since).await?,
            switches: switches::stored(&mut tx).await?,
        };
        tx.commit().await.map_err(failed)?;
        Ok(changes)
    }

    async fn sealed_keys(&self) -> Result<Vec<SealedKey>> {
        let rows = sqlx::query(
            "select purpose, version, sealed from sealed_keys order by purpose, version",
        )
        .fetch_all(self.reader())
        .await
        .map_err(failed)?;
        Ok(rows
            .iter()
            .map(|r| SealedKey {
                purpose: r.get(0),
                version: r.get(1),
                sealed: r.get(2),
            })
            .collect())
    }

    async fn add_sealed_key(&self, key: &SealedKey) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("insert into sealed_keys (purpose, version, sealed) values ($1, $2, $3)")
            .bind(&key.purpose)
            .bind(key.version)
            .bind(&key.sealed)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn reseal(&self, keys: &[SealedKey]) -> Result<()> {
        let mut tx = self.begin().await?;
        for key in keys {
            sqlx::query("update sealed_keys set sealed = $3 where purpose = $1 and version = $2")
                .bind(&key.purpose)
                .bind(key.version)
                .bind(&key.sealed)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }
}

async fn deleted(tx: &mut Transaction<'_>, since: i64) -> Result<Vec<Uuid>> {
    let rows = sqlx::query("select id from tombstones where rev > $1")
        .bind(since)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}
