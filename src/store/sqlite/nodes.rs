//! Sessions, partition owners and hints.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{Sqlite, failed};
use crate::{
    domain::id::{DAY, Part, SubscriptionId},
    store::{Hint, Hints, LiveNode, NodeStore, Result, Session, StoreError},
};

const TAKE: &str = "
update part_owner set sid = $1, epoch = epoch + 1
where sid not in (select sid from nodes where expires_at > $2)
  and part in (select value from json_each($3))
  and exists (select 1 from nodes where sid = $1 and expires_at > $2)";

const PARTITIONS: &str = "
select o.part, coalesce(n.sid, 0)
from part_owner o left join nodes n on n.sid = o.sid and n.expires_at > $1 order by o.part";

const HAND_OVER: &str = "
update part_owner set sid = $2, epoch = epoch + 1
where sid = $1 and part in (select value from json_each($3))
  and (select count(*) from nodes where sid in ($1, $2) and expires_at > $4) = 2
returning part";

const HOLD: &str = "
update part_owner set
  held = case when $3 or held_since = 0 then held else held + $4 - held_since end,
  held_since = case when not $3 then 0 when held_since = 0 then $4 else held_since end
where sid = $1 and part in (select value from json_each($2)) and (held_since > 0) <> $3";

#[async_trait]
impl NodeStore for Sqlite {
    async fn begin_session(&self, name: &str, ttl: Duration) -> Result<Session> {
        let mut tx = self.begin().await?;
        let sid = sqlx::query_scalar(
            "insert into nodes (name, expires_at, ready) values ($1, $2, 0) returning sid",
        )
        .bind(name)
        .bind(self.now() + crate::domain::id::micros(ttl))
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(Session(sid))
    }

    async fn renew_session(&self, session: Session, ttl: Duration) -> Result<bool> {
        let mut tx = self.begin().await?;
        let now = self.now();
        let done =
            sqlx::query("update nodes set expires_at = $2 where sid = $1 and expires_at > $3")
                .bind(session.0)
                .bind(now + crate::domain::id::micros(ttl))
                .bind(now)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(done.rows_affected() == 1)
    }

    async fn end_session(&self, session: Session) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("delete from nodes where sid = $1 or expires_at < $2")
            .bind(session.0)
            .bind(self.now() - DAY)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        sqlx::query("update part_owner set sid = 0 where sid = $1")
            .bind(session.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        sqlx::query(
            "update queue set lease_sid = 0, token = token + 1
             where part in (select value from json_each($1)) and lease_sid = $2 and lease_sid <> 0",
        )
        .bind(numbers(Part::all()))
        .bind(session.0)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        self.tell(Hint::Partitions);
        Ok(())
    }

    async fn set_ready(&self, session: Session, ready: bool) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("update nodes set ready = $2 where sid = $1")
            .bind(session.0)
            .bind(ready)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        self.tell(Hint::Partitions);
        Ok(())
    }

    async fn partitions(&self) -> Result<Vec<(Part, Session)>> {
        let rows = sqlx::query(PARTITIONS)
            .bind(self.now())
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
        let owner = |r: &super::Row| (Part::new(r.get::<i16, _>(0) as u8), Session(r.get(1)));
        Ok(rows.iter().map(owner).collect())
    }

    async fn take_partitions(&self, session: Session, among: &[Part]) -> Result<Vec<Part>> {
        let mut tx = self.begin().await?;
        let now = self.now();
        let taken = sqlx::query(TAKE)
            .bind(session.0)
            .bind(now)
            .bind(numbers(among.iter().copied()))
            .execute(&mut *tx)
            .await
            .map_err(failed)?
            .rows_affected();
        let owned: Vec<Part> =
            sqlx::query(
                "select part from part_owner where sid = $1
                   and exists (select 1 from nodes where sid = $1 and expires_at > $2) order by part",
            )
                .bind(session.0)
                .bind(now)
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?
                .iter()
                .map(|r| Part::new(r.get::<i16, _>(0) as u8))
                .collect();
        if taken > 0 {
            sqlx::query(super::queue::FREE_LOST)
                .bind(numbers(owned.iter().copied()))
                .bind(now)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(owned)
    }

    async fn hand_over(&self, session: Session, to: Session, parts: &[Part]) -> Result<Vec<Part>> {
        let mut tx = self.begin().await?;
        let rows = sqlx::query(HAND_OVER)
            .bind(session.0)
            .bind(to.0)
            .bind(numbers(parts.iter().copied()))
            .bind(self.now())
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        self.tell(Hint::Partitions);
        let mut given: Vec<Part> = rows
            .iter()
            .map(|r| Part::new(r.get::<i16, _>(0) as u8))
            .collect();
        given.sort_unstable();
        Ok(given)
    }

    async fn hold(&self, session: Session, parts: &[Part], held: bool) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query(HOLD)
            .bind(session.0)
            .bind(numbers(parts.iter().copied()))
            .bind(held)
            .bind(self.now())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn confirm(&self, session: Session, revision: i64, pins: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("update nodes set seen_rev = $2, pins = $3 where sid = $1 and expires_at > $4")
            .bind(session.0)
            .bind(revision)
            .bind(pins)
            .bind(self.now())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn nodes(&self) -> Result<Vec<LiveNode>> {
        let rows = sqlx::query(
            "select sid, name, seen_rev, pins, ready from nodes where expires_at > $1 order by sid",
        )
        .bind(self.now())
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let node = |r: &super::Row| LiveNode {
            session: Session(r.get(0)),
            name: r.get(1),
            revision: r.get(2),
            pins: r.get(3),
            ready: r.get(4),
        };
        Ok(rows.iter().map(node).collect())
    }

    async fn hint(&self, hints: &[(Part, SubscriptionId)]) -> Result<()> {
        for (part, subscription) in hints {
            self.tell(Hint::Due(*part, *subscription));
        }
        Ok(())
    }

    async fn listen(&self) -> Result<Box<dyn Hints>> {
        Ok(Box::new(Listener(self.hints.subscribe())))
    }
}

struct Listener(broadcast::Receiver<Hint>);

#[async_trait]
impl Hints for Listener {
    async fn next(&mut self) -> Result<Hint> {
        match self.0.recv().await {
            Ok(hint) => Ok(hint),
            Err(RecvError::Lagged(_)) => Ok(Hint::Reconnected),
            Err(RecvError::Closed) => Err(StoreError::Unavailable("the store is closed".into())),
        }
    }
}

/// Partitions as a JSON list: one text for any number of them.
pub(super) fn numbers(parts: impl IntoIterator<Item = Part>) -> String {
    let numbers: Vec<String> = parts.into_iter().map(|p| p.get().to_string()).collect();
    format!("[{}]", numbers.join(","))
}
