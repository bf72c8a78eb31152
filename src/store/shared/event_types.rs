use async_trait::async_trait;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Engine, Row, Transaction, bump, failed, must_be_there};
use crate::{
    domain::{
        event_type::EventType,
        id::{EventTypeId, Micros, TenantId},
    },
    store::{EventTypeStore, Page, Result, StoreError},
};

const COLUMNS: &str = "select id, tenant, name, description, schema, updated_at from event_types";

fn event_type(r: &Row) -> EventType {
    EventType {
        id: EventTypeId(r.get(0)),
        tenant: TenantId(r.get(1)),
        name: r.get(2),
        description: r.get(3),
        schema: r.get(4),
        updated_at: r.get(5),
    }
}

pub(super) async fn changed(tx: &mut Transaction<'_>, since: i64) -> Result<Vec<EventType>> {
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} where rev > $1")))
        .bind(since)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    Ok(rows.iter().map(event_type).collect())
}

#[async_trait]
impl EventTypeStore for Engine {
    async fn create_event_type(&self, new: &EventType, quota: i64) -> Result<()> {
        let mut tx = self.begin().await?;
        // Under the revision's lock: two that come together count each other.
        let rev = bump(&mut tx).await?;
        let count: i64 = sqlx::query_scalar("select count(*) from event_types where tenant = $1")
            .bind(new.tenant.0)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        if count >= quota {
            return Err(StoreError::Quota(quota));
        }
        sqlx::query(
            "insert into event_types (id, tenant, name, description, schema, updated_at, rev)
             values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(new.id.0)
        .bind(new.tenant.0)
        .bind(&new.name)
        .bind(&new.description)
        .bind(&new.schema)
        .bind(new.updated_at)
        .bind(rev)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        self.commit_change(tx).await
    }

    async fn get_event_type(&self, tenant: TenantId, name: &str) -> Result<Option<EventType>> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{COLUMNS} where tenant = $1 and name = $2"
        )))
        .bind(tenant.0)
        .bind(name)
        .fetch_optional(self.reader())
        .await
        .map_err(failed)?;
        Ok(row.as_ref().map(event_type))
    }

    async fn event_type_by_id(&self, id: EventTypeId) -> Result<Option<EventType>> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} where id = $1")))
            .bind(id.0)
            .fetch_optional(self.reader())
            .await
            .map_err(failed)?;
        Ok(row.as_ref().map(event_type))
    }

    async fn list_event_types(
        &self,
        tenant: TenantId,
        page: Page<EventTypeId>,
    ) -> Result<Vec<EventType>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{COLUMNS} where tenant = $1 and id < $2 order by id desc limit $3"
        )))
        .bind(tenant.0)
        .bind(page.before.map_or(Uuid::max(), |t| t.0))
        .bind(page.limit)
        .fetch_all(self.reader())
        .await
        .map_err(failed)?;
        Ok(rows.iter().map(event_type).collect())
    }

    async fn update_event_type(&self, new: &EventType, updated_at: Micros) -> Result<()> {
        let mut tx = self.begin().await?;
        let rev = bump(&mut tx).await?;
        let done = sqlx::query(
            "update event_types set description = $3, schema = $4, updated_at = $5, rev = $6
             where id = $1 and updated_at = $2",
        )
        .bind(new.id.0)
        .bind(updated_at)
        .bind(&new.description)
        .bind(&new.schema)
        .bind(new.updated_at)
        .bind(rev)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        must_be_there(done.rows_affected())?;
        self.commit_change(tx).await
    }

    async fn delete_event_type(&self, id: EventTypeId) -> Result<bool> {
        let mut tx = self.begin().await?;
        let rev = bump(&mut tx).await?;
        let done = sqlx::query("delete from event_types where id = $1")
            .bind(id.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        self.note_gone(&mut tx, id.0, rev).await?;
        self.commit_change(tx).await?;
        Ok(true)
    }
}
