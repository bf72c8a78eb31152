use async_trait::async_trait;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Engine, Row, Transaction, broken, bump, failed, must_be_there};
use crate::{
    domain::{
        id::{Micros, SubscriptionId, TenantId},
        subscription::Subscription,
    },
    store::{
        Page, Result, StoreError, SubscriptionStore, TenantSubscriptions, rows::SubscriptionRow,
    },
};

fn subscription(r: &Row) -> Result<Subscription> {
    SubscriptionRow {
        id: r.get(0),
        tenant: r.get(1),
        doc: r.get(2),
        secret: r.get(3),
        previous_secret: r.get(4),
        previous_until: r.get(5),
        updated_at: r.get(6),
        client_certificate: r.get(7),
        filter: r.get(8),
        limits: r.get(9),
        ordering: r.get(10),
        kind: r.get(11),
        lifetime: r.get(12),
        ends_at: r.get(13),
    }
    .into_subscription()
    .map_err(broken)
}

pub(super) async fn changed(
    tx: &mut Transaction<'_>,
    since: i64,
) -> Result<Vec<TenantSubscriptions>> {
    let mut lists = Vec::new();
    let tenants =
        sqlx::query("select tenant, rev from tenant_rev where config_rev > $1 order by tenant")
            .bind(since)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
    let mut at = std::collections::HashMap::new();
    for r in &tenants {
        let tenant: Uuid = r.get(0);
        at.insert(tenant, lists.len());
        lists.push(TenantSubscriptions {
            tenant: Some(TenantId(tenant)),
            revision: r.get(1),
            subscriptions: Vec::new(),
        });
    }
    let rows = sqlx::query(
        "select s.id, s.tenant, s.doc, s.secret, s.previous_secret, s.previous_until, s.updated_at,
                s.client_certificate, s.filter, s.limits, s.ordering, s.kind, s.lifetime, s.ends_at
         from subscriptions s join tenant_rev t on t.tenant = s.tenant
         where t.config_rev > $1 order by s.id",
    )
    .bind(since)
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    for r in &rows {
        if let Some(i) = at.get(&r.get::<Uuid, _>(1)) {
            lists[*i].subscriptions.push(subscription(r)?);
        }
    }
    Ok(lists)
}

/// Increments the tenant's revision, and with it the configuration's.
async fn bump_tenant(tx: &mut Transaction<'_>, tenant: TenantId) -> Result<i64> {
    let rev = bump(tx).await?;
    let done =
        sqlx::query("update tenant_rev set rev = rev + 1, config_rev = $2 where tenant = $1")
            .bind(tenant.0)
            .bind(rev)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
    if done.rows_affected() == 0 {
        return Err(StoreError::Conflict);
    }
    Ok(rev)
}

#[async_trait]
impl SubscriptionStore for Engine {
    async fn create_subscription(&self, s: &Subscription, quota: i64) -> Result<()> {
        let row = SubscriptionRow::of(s);
        let mut tx = self.begin().await?;
        let rev = bump_tenant(&mut tx, s.tenant).await?;
        // Under the revision's lock: two that come together count each other.
        let count: i64 = sqlx::query_scalar("select count(*) from subscriptions where tenant = $1")
            .bind(row.tenant)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        if count >= quota {
            return Err(StoreError::Quota(quota));
        }
        let now = self.clock(&mut tx).await?;
        sqlx::query(
            "insert into subscriptions (id, tenant, doc, secret, previous_secret, previous_until,
                                        updated_at, client_certificate, rev, filter, limits, ordering, kind,
                                        lifetime, ends_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind(row.id)
        .bind(row.tenant)
        .bind(row.doc)
        .bind(row.secret)
        .bind(row.previous_secret)
        .bind(row.previous_until)
        .bind(row.updated_at)
        .bind(row.client_certificate)
        .bind(rev)
        .bind(row.filter)
        .bind(row.limits)
        .bind(row.ordering)
        .bind(row.kind)
        .bind(row.lifetime)
        .bind(row.lifetime.map(|life| now.saturating_add(life)))
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        self.commit_change(tx).await
    }

    async fn get_subscription(&self, id: SubscriptionId) -> Result<Option<Subscription>> {
        sqlx::query(
            "select id, tenant, doc, secret, previous_secret, previous_until, updated_at,
                    client_certificate, filter, limits, ordering, kind, lifetime, ends_at
             from subscriptions where id = $1",
        )
        .bind(id.0)
        .fetch_optional(self.reader())
        .await
        .map_err(failed)?
        .as_ref()
        .map(subscription)
        .transpose()
    }

    async fn list_subscriptions(
        &self,
        tenant: TenantId,
        page: Page<SubscriptionId>,
    ) -> Result<Vec<Subscription>> {
        sqlx::query(
            "select id, tenant, doc, secret, previous_secret, previous_until, updated_at,
                    client_certificate, filter, limits, ordering, kind, lifetime, ends_at
             from subscriptions where tenant = $1 and id < $2 order by id desc limit $3",
        )
        .bind(tenant.0)
        .bind(page.before.map_or(Uuid::max(), |s| s.0))
        .bind(page.limit)
        .fetch_all(self.reader())
        .await
        .map_err(failed)?
        .iter()
        .map(subscription)
        .collect()
    }

    async fn update_subscription(&self, s: &Subscription, updated_at: Micros) -> Result<()> {
        let row = SubscriptionRow::of(s);
        let mut tx = self.begin().await?;
        let rev = bump_tenant(&mut tx, s.tenant).await?;
        let done = sqlx::query(
            "update subscriptions set doc = $3, secret = $4, previous_secret = $5,
                    previous_until = $6, updated_at = $7, client_certificate = $8, rev = $9,
                    filter = $10, limits = $11, ordering = $12
             where id = $1 and updated_at = $2",
        )
        .bind(row.id)
        .bind(updated_at)
        .bind(row.doc)
        .bind(row.secret)
        .bind(row.previous_secret)
        .bind(row.previous_until)
        .bind(row.updated_at)
        .bind(row.client_certificate)
        .bind(rev)
        .bind(row.filter)
        .bind(row.limits)
        .bind(row.ordering)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        must_be_there(done.rows_affected())?;
        self.commit_change(tx).await
    }

    async fn delete_subscription(&self, id: SubscriptionId) -> Result<bool> {
        let mut tx = self.begin().await?;
        let tenant: Option<Uuid> =
            sqlx::query_scalar("select tenant from subscriptions where id = $1")
                .bind(id.0)
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed)?;
        let Some(tenant) = tenant else {
            return Ok(false);
        };
        bump_tenant(&mut tx, TenantId(tenant)).await?;
        let done = sqlx::query("delete from subscriptions where id = $1")
            .bind(id.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        sqlx::query("delete from subscription_state where part = $1 and sub = $2")
            .bind(id.part().get())
            .bind(id.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        self.commit_change(tx).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn prolong_subscriptions(&self, ids: &[SubscriptionId]) -> Result<()> {
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        for id in ids {
            sqlx::query(
                "update subscriptions set ends_at = $2 + lifetime
                 where id = $1 and lifetime is not null and ends_at > $2",
            )
            .bind(id.0)
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    async fn end_subscriptions(&self, limit: i64) -> Result<Vec<SubscriptionId>> {
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        let rows = sqlx::query(
            "select id, tenant from subscriptions where ends_at <= $1 order by tenant, id limit $2",
        )
        .bind(now)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let mut ended = Vec::with_capacity(rows.len());
        for r in &rows {
            bump_tenant(&mut tx, TenantId(r.get(1))).await?;
            // One that was prolonged meanwhile stays.
            let done = sqlx::query("delete from subscriptions where id = $1 and ends_at <= $2")
                .bind(r.get::<Uuid, _>(0))
                .bind(now)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            if done.rows_affected() > 0 {
                ended.push(SubscriptionId(r.get(0)));
            }
        }
        tx.commit().await.map_err(failed)?;
        if !ended.is_empty() {
            self.config_changed().await;
        }
        Ok(ended)
    }
}
