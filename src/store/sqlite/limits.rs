//! Limits' windows and counted calls, row by row: there is no way to the
//! database that a batch would save.

use sqlx::Row as _;

use super::{
    Sqlite, Transaction, failed,
    shared::{subject, window},
};
use crate::{
    domain::{
        id::{KeyId, Micros},
        limit::Window,
    },
    store::{CallCount, Result, Session},
};

impl Sqlite {
    /// These keys' windows; an empty one where there is none.
    pub(super) async fn windows(
        tx: &mut Transaction<'_>,
        keys: &[KeyId],
    ) -> Result<Vec<(KeyId, Window)>> {
        let mut windows = Vec::with_capacity(keys.len());
        for key in keys {
            let row = sqlx::query("select loans from limit_windows where key = $1")
                .bind(key.0)
                .fetch_optional(&mut **tx)
                .await
                .map_err(failed)?;
            let stored = row.map(|r| window(r.get(0))).transpose()?;
            windows.push((*key, stored.unwrap_or_default()));
        }
        Ok(windows)
    }

    pub(super) async fn write_windows(
        tx: &mut Transaction<'_>,
        windows: &[(KeyId, &Window)],
    ) -> Result<()> {
        for (key, window) in windows {
            sqlx::query(
                "insert into limit_windows (key, ends, loans) values ($1, $2, $3)
                 on conflict (key) do update set ends = excluded.ends, loans = excluded.loans",
            )
            .bind(key.0)
            .bind(window.last())
            .bind(window.encode())
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        }
        Ok(())
    }

    pub(super) async fn write_calls(
        tx: &mut Transaction<'_>,
        session: Session,
        now: Micros,
        counts: &[CallCount],
    ) -> Result<()> {
        for count in counts {
            let (span, id, tier) = subject(&count.counted);
            sqlx::query(
                "insert into call_counts (span, bucket, subject, tier, sid, admitted, limited, refused, at)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
                 on conflict (span, bucket, subject, tier, sid) do update
                   set admitted = excluded.admitted, limited = excluded.limited,
                       refused = excluded.refused, at = excluded.at",
            )
            .bind(span)
            .bind(count.bucket)
            .bind(id)
            .bind(tier)
            .bind(session.0)
            .bind(count.calls.admitted)
            .bind(count.calls.limited)
            .bind(count.calls.refused)
            .bind(now)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        }
        Ok(())
    }
}
