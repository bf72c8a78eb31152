use async_trait::async_trait;
use sqlx::Row as _;

use super::{Engine, Row, Transaction, audit, bump, failed};
use crate::{
    domain::{
        audit::{Chain, Entry, Record},
        switch::{Change, Stored},
    },
    store::{AuditEnd, Author, Changed, Page, Result, StoreError, SwitchStore},
};

fn switch(r: &Row) -> Stored {
    Stored {
        name: r.get(0),
        enabled: r.get(1),
        stopped: r.get(2),
        updated_at: r.get(3),
        updated_by: r.get(4),
        reason: r.get(5),
        rev: r.get(6),
    }
}

pub(super) async fn stored(tx: &mut Transaction<'_>) -> Result<Vec<Stored>> {
    let rows = sqlx::query(
        "select name, enabled, stopped, updated_at, updated_by, reason, rev
         from switches order by name",
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(rows.iter().map(switch).collect())
}

async fn read(tx: &mut Transaction<'_>, name: &str) -> Result<Stored> {
    let row = sqlx::query(
        "select name, enabled, stopped, updated_at, updated_by, reason, rev
         from switches where name = $1",
    )
    .bind(name)
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(row.map_or_else(|| Stored::untouched(name), |r| switch(&r)))
}

async fn write(tx: &mut Transaction<'_>, s: &Stored) -> Result<()> {
    sqlx::query(
        "insert into switches (name, enabled, stopped, updated_at, updated_by, reason, rev)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (name) do update set
           enabled = excluded.enabled, stopped = excluded.stopped,
           updated_at = excluded.updated_at, updated_by = excluded.updated_by,
           reason = excluded.reason, rev = excluded.rev",
    )
    .bind(&s.name)
    .bind(s.enabled)
    .bind(s.stopped)
    .bind(s.updated_at)
    .bind(&s.updated_by)
    .bind(&s.reason)
    .bind(s.rev)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

#[async_trait]
impl SwitchStore for Engine {
    async fn change_switches(
        &self,
        names: &[&str],
        change: Change,
        by: Author<'_>,
        chain: &Chain,
    ) -> Result<Changed> {
        let mut tx = self.begin().await?;
        let revision = bump(&mut tx).await?;
        let now = self.clock(&mut tx).await?;
        let mut changed = Changed {
            revision,
            switches: Vec::with_capacity(names.len()),
            sequence: 0,
            hash: [0; 32],
        };
        for name in names {
            let mut switch = read(&mut tx, name).await?;
            let (old, new) = change.make(&mut switch).ok_or(StoreError::Conflict)?;
            let entry = Entry {
                at: now,
                actor: by.actor.to_owned(),
                action: change.action().to_owned(),
                target: switch.name.clone(),
                old: old.to_owned(),
                new: new.to_owned(),
                reason: by.reason.to_owned(),
            };
            (changed.sequence, changed.hash) = audit::append(&mut tx, chain, entry).await?;
            switch.updated_at = now;
            by.actor.clone_into(&mut switch.updated_by);
            by.reason.clone_into(&mut switch.reason);
            switch.rev = revision;
            write(&mut tx, &switch).await?;
            changed.switches.push(switch);
        }
        self.commit_change(tx).await?;
        Ok(changed)
    }

    async fn audit(
        &self,
        action: &str,
        target: Option<&str>,
        page: Page<i64>,
    ) -> Result<Vec<Record>> {
        audit::newest(self, action, target, page).await
    }

    async fn read_audit(&self, each: &mut (dyn FnMut(Record) + Send)) -> Result<AuditEnd> {
        let mut tx = self.history_snapshot().await?;
        audit::all(&mut tx, each).await?;
        let end = AuditEnd {
            head: audit::head(&mut tx).await?,
            switches: stored(&mut tx).await?,
        };
        tx.commit().await.map_err(failed)?;
        Ok(end)
    }
}
