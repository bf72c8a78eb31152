use async_trait::async_trait;
use sqlx::Row as _;

use super::{Engine, failed};
use crate::store::{PeerStore, Result, Session};

#[async_trait]
impl PeerStore for Engine {
    async fn advertise(&self, session: Session, url: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        sqlx::query("update nodes set url = $2 where sid = $1 and expires_at > $3")
            .bind(session.0)
            .bind(url)
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn peers(&self) -> Result<Vec<(Session, String)>> {
        let mut tx = self.snapshot().await?;
        let now = self.clock(&mut tx).await?;
        let rows = sqlx::query(
            "select sid, url from nodes where url is not null and expires_at > $1 order by sid",
        )
        .bind(now)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(rows.iter().map(|r| (Session(r.get(0)), r.get(1))).collect())
    }
}
