//! Sessions, partition owners and hints.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{
    Row as _,
    postgres::{PgListener, PgPoolOptions},
};

use super::{HOT, Postgres, failed, queue::numbers};
use crate::{
    domain::id::{Part, SubscriptionId},
    store::{Hint, Hints, NodeStore, QueueStore, Result, Session, StoreError},
};

/// A connection on which nothing was heard for so long is asked whether it lives.
const QUIET: Duration = Duration::from_secs(10);

const FREE: &str = "
select exists (select from part_owner where sid not in (select sid from nodes where expires_at > now_us()))";

const TAKE: &str = "
update part_owner set sid = $1, epoch = epoch + 1
where sid not in (select sid from nodes where expires_at > now_us())
  and exists (select from nodes where sid = $1 and expires_at > now_us())
returning part";

const OWNED: &str = "
select part from part_owner
where sid = $1 and exists (select from nodes where sid = $1 and expires_at > now_us())
order by part";

const HOLD: &str = "
update part_owner set
  held = case when $3 or held_since = 0 then held else held + now_us() - held_since end,
  held_since = case when not $3 then 0 when held_since = 0 then now_us() else held_since end
where sid = $1 and part = any($2::smallint[]) and (held_since > 0) <> $3";

#[async_trait]
impl NodeStore for Postgres {
    async fn begin_session(&self, name: &str, ttl: Duration) -> Result<Session> {
        let sid = sqlx::query_scalar(
            "insert into nodes (name, expires_at) values ($1, now_us() + $2) returning sid",
        )
        .bind(name)
        .bind(crate::domain::id::micros(ttl))
        .fetch_one(&self.hot)
        .await
        .map_err(failed)?;
        Ok(Session(sid))
    }

    async fn renew_session(&self, session: Session, ttl: Duration) -> Result<bool> {
        let done = sqlx::query(
            "update nodes set expires_at = now_us() + $2 where sid = $1 and expires_at > now_us()",
        )
        .bind(session.0)
        .bind(crate::domain::id::micros(ttl))
        .execute(&self.hot)
        .await
        .map_err(failed)?;
        Ok(done.rows_affected() == 1)
    }

    async fn end_session(&self, session: Session) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("delete from nodes where sid = $1 or expires_at < now_us() - 86400000000")
            .bind(session.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let owned = sqlx::query("update part_owner set sid = 0 where sid = $1 returning part")
            .bind(session.0)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        // Committed before what it held is freed, as when partitions are taken.
        tx.commit().await.map_err(failed)?;
        if !owned.is_empty() {
            QueueStore::free_lost(self, &parts(&owned)).await?;
        }
        Ok(())
    }

    async fn take_partitions(&self, session: Session) -> Result<Vec<Part>> {
        let free: bool = sqlx::query_scalar(FREE)
            .fetch_one(&self.hot)
            .await
            .map_err(failed)?;
        if free {
            self.take_free(session).await?;
        }
        let owned = sqlx::query(OWNED)
            .bind(session.0)
            .fetch_all(&self.hot)
            .await
            .map_err(failed)?;
        Ok(parts(&owned))
    }

    async fn hold(&self, session: Session, parts: &[Part], held: bool) -> Result<()> {
        sqlx::query(HOLD)
            .bind(session.0)
            .bind(numbers(parts))
            .bind(held)
            .execute(&self.hot)
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn hint(&self, hints: &[(Part, SubscriptionId)]) -> Result<()> {
        // A notification holds at most 8000 bytes.
        for chunk in hints.chunks(200) {
            let text: Vec<String> = chunk
                .iter()
                .map(|(part, sub)| format!("{}:{}", part.get(), sub.0.simple()))
                .collect();
            sqlx::query("select pg_notify('onering_due', $1)")
                .bind(text.join(" "))
                .execute(&self.hot)
                .await
                .map_err(failed)?;
        }
        Ok(())
    }

    async fn listen(&self) -> Result<Box<dyn Hints>> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(HOT)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_with(self.options.clone())
            .await
            .map_err(failed)?;
        let mut listener = in_time(PgListener::connect_with(&pool)).await?;
        in_time(listener.listen_all(["onering_config", "onering_due"])).await?;
        Ok(Box::new(Listener {
            listener,
            pending: Vec::new(),
        }))
    }
}

impl Postgres {
    /// Together with what their last owners held: should that fail, the next one
    /// to take them does both.
    async fn take_free(&self, session: Session) -> Result<()> {
        let mut tx = self.begin().await?;
        // Before the statement that looks who lives: it must see the session of
        // whoever held the lock.
        sqlx::query("select from part_owner order by part for update")
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let taken = sqlx::query(TAKE)
            .bind(session.0)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        // Committed before what they held is freed, which may take long: new events
        // go on meanwhile, and a sweep frees again what this does not come to.
        tx.commit().await.map_err(failed)?;
        QueueStore::free_lost(self, &parts(&taken)).await?;
        Ok(())
    }
}

/// What the listening connection is asked, within the limit.
async fn in_time<T>(asked: impl Future<Output = std::result::Result<T, sqlx::Error>>) -> Result<T> {
    tokio::time::timeout(HOT, asked)
        .await
        .map_err(|_| StoreError::Unavailable("no answer in time".into()))?
        .map_err(failed)
}

fn parts(rows: &[super::Row]) -> Vec<Part> {
    rows.iter()
        .map(|r| Part::new(r.get::<i16, _>(0) as u8))
        .collect()
}

struct Listener {
    listener: PgListener,
    pending: Vec<Hint>,
}

#[async_trait]
impl Hints for Listener {
    async fn next(&mut self) -> Result<Hint> {
        loop {
            if let Some(hint) = self.pending.pop() {
                return Ok(hint);
            }
            let Ok(heard) = tokio::time::timeout(QUIET, self.listener.try_recv()).await else {
                in_time(sqlx::query("select 1").execute(&mut self.listener)).await?;
                continue;
            };
            let Some(note) = heard.map_err(failed)? else {
                return Ok(Hint::Reconnected);
            };
            if note.channel() == "onering_config" {
                return Ok(Hint::Config);
            }
            self.pending
                .extend(note.payload().split(' ').filter_map(|entry| {
                    let (part, sub) = entry.split_once(':')?;
                    Some(Hint::Due(
                        Part::new(part.parse().ok()?),
                        SubscriptionId(sub.parse().ok()?),
                    ))
                }));
        }
    }
}
