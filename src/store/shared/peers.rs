use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;

use super::{Engine, failed};
use crate::{
    domain::id::Micros,
    store::{Peer, PeerStore, Result, Session},
};

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

    async fn peers(&self) -> Result<Vec<Peer>> {
        let mut tx = self.snapshot().await?;
        let now = self.clock(&mut tx).await?;
        let rows = sqlx::query(
            "select sid, url, expires_at from nodes where url is not null and expires_at > $1 order by sid",
        )
        .bind(now)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let peers = rows.iter().map(|r| {
            let left = r.get::<Micros, _>(2).saturating_sub(now);
            Peer {
                session: Session(r.get(0)),
                url: r.get(1),
                lasts: Duration::from_micros(left.unsigned_abs()),
            }
        });
        Ok(peers.collect())
    }
}
