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
    store::{Hint, Hints, LiveNode, NodeStore, QueueStore, Result, Session, StoreError},
};

/// A connection on which nothing was heard for so long is asked whether it lives.
const QUIET: Duration = Duration::from_secs(10);

const FREE: &str = "
select exists (select from part_owner where part = any($1::smallint[])
                 and sid not in (select sid from nodes where expires_at > now_us()))";

const TAKE: &str = "
update part_owner set sid = $1, epoch = epoch + 1
where part = any($2::smallint[]) and sid not in (select sid from nodes where expires_at > now_us())
  and exists (select from nodes where sid = $1 and expires_at > now_us())
returning part";

const OWNED: &str = "
select part from part_owner
where sid = $1 and exists (select from nodes where sid = $1 and expires_at > now_us())
order by part";

const PARTITIONS: &str = "
select o.part, coalesce(n.sid, 0)
from part_owner o left join nodes n on n.sid = o.sid and n.expires_at > now_us() order by o.part";

const HAND_OVER: &str = "
update part_owner set sid = $2, epoch = epoch + 1
where sid = $1 and part = any($3::smallint[])
  and (select count(*) from nodes where sid in ($1, $2) and expires_at > now_us()) = 2
returning part";

const HOLD: &str = "
update part_owner set
  held = case when $3 or held_since = 0 then held else held + now_us() - held_since end,
  held_since = case when not $3 then 0 when held_since = 0 then now_us() else held_since end
where sid = $1 and part = any($2::smallint[]) and (held_since > 0) <> $3";

#[async_trait]
impl NodeStore for Postgres {
    async fn begin_session(&self, name: &str, ttl: Duration) -> Result<Session> {
        let sid = sqlx::query_scalar(
            "insert into nodes (name, expires_at, ready) values ($1, now_us() + $2, false) returning sid",
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
        self.partitions_changed().await;
        if !owned.is_empty() {
            QueueStore::free_lost(self, &parts(&owned)).await?;
        }
        Ok(())
    }

    async fn set_ready(&self, session: Session, ready: bool) -> Result<()> {
        sqlx::query("update nodes set ready = $2 where sid = $1")
            .bind(session.0)
            .bind(ready)
            .execute(&self.hot)
            .await
            .map_err(failed)?;
        self.partitions_changed().await;
        Ok(())
    }

    async fn partitions(&self) -> Result<Vec<(Part, Session)>> {
        let rows = sqlx::query(PARTITIONS)
            .fetch_all(&self.hot)
            .await
            .map_err(failed)?;
        let owner = |r: &super::Row| (Part::new(r.get::<i16, _>(0) as u8), Session(r.get(1)));
        Ok(rows.iter().map(owner).collect())
    }

    async fn take_partitions(&self, session: Session, among: &[Part]) -> Result<Vec<Part>> {
        let free: bool = sqlx::query_scalar(FREE)
            .bind(numbers(among))
            .fetch_one(&self.hot)
            .await
            .map_err(failed)?;
        if free {
            self.take_free(session, among).await?;
        }
        let owned = sqlx::query(OWNED)
            .bind(session.0)
            .fetch_all(&self.hot)
            .await
            .map_err(failed)?;
        Ok(parts(&owned))
    }

    async fn hand_over(&self, session: Session, to: Session, among: &[Part]) -> Result<Vec<Part>> {
        let rows = sqlx::query(HAND_OVER)
            .bind(session.0)
            .bind(to.0)
            .bind(numbers(among))
            .fetch_all(&self.hot)
            .await
            .map_err(failed)?;
        if !rows.is_empty() {
            self.partitions_changed().await;
        }
        Ok(parts(&rows))
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

    async fn confirm(&self, session: Session, revision: i64, pins: &str) -> Result<()> {
        sqlx::query(
            "update nodes set seen_rev = $2, pins = $3 where sid = $1 and expires_at > now_us()",
        )
        .bind(session.0)
        .bind(revision)
        .bind(pins)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn nodes(&self) -> Result<Vec<LiveNode>> {
        let rows = sqlx::query(
            "select sid, name, seen_rev, pins, ready from nodes where expires_at > now_us() order by sid",
        )
        .fetch_all(&self.hot)
        .await
        .map_err(failed)?;
        Ok(rows.iter().map(node).collect())
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
        in_time(listener.listen_all(["onering_config", "onering_due", "onering_partitions"]))
            .await?;
        Ok(Box::new(Listener {
            listener,
            pending: Vec::new(),
        }))
    }
}

impl Postgres {
    /// Tells the other nodes that partitions are, or are to be, another's.
    async fn partitions_changed(&self) {
        if let Err(e) = sqlx::query("select pg_notify('onering_partitions', '')")
            .execute(&self.hot)
            .await
        {
            tracing::debug!(error.message = %e, "partitions' hint not sent");
        }
    }

    /// Together with what their last owners held: should that fail, the next one
    /// to take them does both.
    async fn take_free(&self, session: Session, among: &[Part]) -> Result<()> {
        let mut tx = self.begin().await?;
        // Before the statement that looks who lives: it must see the session of
        // whoever held the lock.
        sqlx::query("select from part_owner order by part for update")
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let taken = sqlx::query(TAKE)
            .bind(session.0)
            .bind(numbers(among))
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

fn node(r: &super::Row) -> LiveNode {
    LiveNode {
        session: Session(r.get(0)),
        name: r.get(1),
        revision: r.get(2),
        pins: r.get(3),
        ready: r.get(4),
    }
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
            match note.channel() {
                "onering_config" => return Ok(Hint::Config),
                "onering_partitions" => return Ok(Hint::Partitions),
                _ => {}
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
