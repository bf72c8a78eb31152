use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::Row as _;

use super::{Engine, broken, failed};
use crate::{
    domain::{
        id::{KeyId, Micros},
        limit::{Answer, Ask, HOUR, Window},
    },
    store::{LimitStore, Result, StoreError},
};

/// A stored window.
pub(in super::super) fn window(loans: &[u8]) -> Result<Window> {
    Window::decode(loans).ok_or_else(|| broken("a limit's window can't be read".into()))
}

#[async_trait]
impl LimitStore for Engine {
    async fn lend(&self, asks: &[Ask]) -> Result<Vec<Answer>> {
        let mut tx = self.begin().await?;
        // In one order everywhere, so that no two nodes wait for each other.
        let mut keys: Vec<KeyId> = asks.iter().map(|a| a.key).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut windows: HashMap<KeyId, Window> =
            Self::windows(&mut tx, &keys).await?.into_iter().collect();
        // The clock is read when the rows are ours: the one who comes later
        // must not decide for an earlier time.
        let now = self.clock(&mut tx).await?;
        let mut answers = Vec::with_capacity(asks.len());
        let mut moved = Vec::with_capacity(asks.len());
        for ask in asks {
            // Swept away between two statements: nothing is known then.
            let window = windows.get_mut(&ask.key).ok_or(StoreError::Conflict)?;
            let last = window.last();
            answers.push(window.lend(ask, now));
            // Of a clock that was ahead: kept, or the end would go on with the clock.
            moved.push(window.last() < last);
        }
        let written: Vec<(KeyId, &Window)> = asks
            .iter()
            .zip(&answers)
            .zip(moved)
            .filter(|((ask, answer), moved)| {
                *moved || answer.lent > 0 || ask.spent > 0 || !ask.back.is_empty()
            })
            .map(|((ask, answer), _)| (ask.key, &answer.window))
            .collect();
        if !written.is_empty() {
            Self::write_windows(&mut tx, &written).await?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(answers)
    }

    async fn limit_windows(&self) -> Result<(Micros, Vec<(KeyId, Window)>)> {
        let mut tx = self.snapshot().await?;
        let now = self.clock(&mut tx).await?;
        let rows = sqlx::query("select key, loans from limit_windows where ends > $1")
            .bind(now - HOUR)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let windows: Result<Vec<_>> = rows
            .iter()
            .map(|r| Ok((KeyId(r.get(0)), window(r.get(1))?)))
            .collect();
        Ok((now, windows?))
    }

    async fn forget_limit_windows(&self) -> Result<u64> {
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        let done = sqlx::query("delete from limit_windows where ends < $1")
            .bind(now - 2 * HOUR)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(done.rows_affected())
    }

    async fn live_sessions(&self) -> Result<i64> {
        let mut tx = self.snapshot().await?;
        let now = self.clock(&mut tx).await?;
        let live = sqlx::query_scalar("select count(*) from nodes where expires_at > $1")
            .bind(now)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(live)
    }
}
