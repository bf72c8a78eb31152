use async_trait::async_trait;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Engine, Row, broken, failed};
use crate::{
    domain::id::{KeyId, Micros, TenantId},
    store::{CallCount, CallStore, Calls, Counted, Result, Session},
};

const MINUTE: Micros = 60_000_000;
const HOUR: Micros = 60 * MINUTE;
/// How long counts are kept.
const KEPT: Micros = 25 * HOUR;

/// How a subject is stored: its span, id and tier.
pub(in super::super) fn subject(counted: &Counted) -> (i16, Uuid, &str) {
    match counted {
        Counted::Tier(tier) => (0, Uuid::nil(), tier),
        Counted::Tenant(tenant, tier) => (1, tenant.0, tier),
        Counted::Key(key) => (2, key.0, ""),
    }
}

fn count(r: &Row) -> Result<(Session, CallCount)> {
    let counted = match r.get::<i16, _>(0) {
        0 => Counted::Tier(r.get(3)),
        1 => Counted::Tenant(TenantId(r.get(2)), r.get(3)),
        2 => Counted::Key(KeyId(r.get(2))),
        other => return Err(broken(format!("calls are not counted by {other}"))),
    };
    let count = CallCount {
        counted,
        bucket: r.get(1),
        calls: Calls {
            admitted: r.get(5),
            limited: r.get(6),
            refused: r.get(7),
        },
    };
    Ok((Session(r.get(4)), count))
}

#[async_trait]
impl CallStore for Engine {
    async fn note_calls(&self, session: Session, counts: &[CallCount]) -> Result<()> {
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        Self::write_calls(&mut tx, session, now, counts).await?;
        tx.commit().await.map_err(failed)
    }

    async fn calls(
        &self,
        since: Micros,
        but: Session,
    ) -> Result<(Micros, Vec<(Session, CallCount)>)> {
        let mut tx = self.snapshot().await?;
        let now = self.clock(&mut tx).await?;
        let rows = sqlx::query(
            "select span, bucket, subject, tier, sid, admitted, limited, refused
             from call_counts where at >= $1 and sid <> $2",
        )
        .bind(since.max(now - KEPT))
        .bind(but.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let counts: Result<Vec<_>> = rows.iter().map(count).collect();
        Ok((now, counts?))
    }

    async fn forget_calls(&self) -> Result<u64> {
        let mut tx = self.begin().await?;
        let now = self.clock(&mut tx).await?;
        let mut forgotten = 0;
        for (span, unit) in [(0i16, MINUTE), (1, HOUR), (2, HOUR)] {
            forgotten += sqlx::query("delete from call_counts where span = $1 and bucket < $2")
                .bind(span)
                .bind((now - KEPT).div_euclid(unit))
                .execute(&mut *tx)
                .await
                .map_err(failed)?
                .rows_affected();
        }
        tx.commit().await.map_err(failed)?;
        Ok(forgotten)
    }
}
