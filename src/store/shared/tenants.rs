use async_trait::async_trait;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Engine, Row, Transaction, bump, failed};
use crate::{
    domain::{id::TenantId, tenant::Tenant},
    store::{Page, Result, TenantStore},
};

const COLUMNS: &str = "select id, name, display_name, created_at from tenants";

fn tenant(r: &Row) -> Tenant {
    Tenant {
        id: TenantId(r.get(0)),
        name: r.get(1),
        display_name: r.get(2),
        created_at: r.get(3),
    }
}

pub(super) async fn changed(tx: &mut Transaction<'_>, since: i64) -> Result<Vec<Tenant>> {
    let rows = sqlx::query("select id, name, display_name, created_at from tenants where rev > $1")
        .bind(since)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    Ok(rows.iter().map(tenant).collect())
}

#[async_trait]
impl TenantStore for Engine {
    async fn create_tenant(&self, t: &Tenant) -> Result<()> {
        let mut tx = self.begin().await?;
        let rev = bump(&mut tx).await?;
        sqlx::query(
            "insert into tenants (id, name, display_name, created_at, rev) values ($1, $2, $3, $4, $5)",
        )
        .bind(t.id.0)
        .bind(&t.name)
        .bind(&t.display_name)
        .bind(t.created_at)
        .bind(rev)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        sqlx::query("insert into tenant_rev (tenant, rev, config_rev) values ($1, 1, $2)")
            .bind(t.id.0)
            .bind(rev)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        self.commit_change(tx).await
    }

    async fn list_tenants(&self, page: Page<TenantId>) -> Result<Vec<Tenant>> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{COLUMNS} where id < $1 order by id desc limit $2"
        )))
        .bind(page.before.map_or(Uuid::max(), |t| t.0))
        .bind(page.limit)
        .fetch_all(self.reader())
        .await
        .map_err(failed)?;
        Ok(rows.iter().map(tenant).collect())
    }
}
