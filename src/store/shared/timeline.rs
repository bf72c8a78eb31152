//! How far the database has come.

use async_trait::async_trait;
use sqlx::Row as _;

use super::{Engine, Row, failed};
use crate::{
    domain::{
        id::{Micros, Part, uuid_at, wall_clock},
        timeline::Timeline,
    },
    store::{Result, TimelineStore},
};

fn timeline(r: &Row) -> Timeline {
    Timeline {
        id: r.get(0),
        mark: r.get(1),
        server: r.get(2),
        restored: r.get(3),
    }
}

#[async_trait]
impl TimelineStore for Engine {
    async fn timeline(&self) -> Result<Timeline> {
        sqlx::query("select id, mark, server, restored from timeline")
            .fetch_one(self.reader())
            .await
            .map(|r| timeline(&r))
            .map_err(failed)
    }

    async fn now(&self) -> Result<Micros> {
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        tx.commit().await.map_err(failed)?;
        Ok(now)
    }

    async fn server(&self) -> Result<String> {
        Ok(self.here().await)
    }

    async fn advance_timeline(&self) -> Result<Timeline> {
        let here = self.here().await;
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        let row = sqlx::query(
            "update timeline set mark = case when mark < $1 then $1 else mark + 1 end,
               server = case when server = '' then $2 else server end
             returning id, mark, server, restored",
        )
        .bind(now)
        .bind(here)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(timeline(&row))
    }

    async fn note_restored(&self, why: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("update timeline set restored = $1 where restored = ''")
            .bind(why)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn accept_restored(&self) -> Result<Timeline> {
        let here = self.here().await;
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        let row = sqlx::query(
            "update timeline set id = $1, server = $2, mark = case when mark < $3 then $3 else mark end,
               restored = '' returning id, mark, server, restored",
        )
        .bind(uuid_at(wall_clock(), Part::new(0)))
        .bind(here)
        .bind(now)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(timeline(&row))
    }
}
