//! Limits' windows and counted calls, a batch in a statement.

use sqlx::Row as _;
use uuid::Uuid;

use super::{
    Postgres, Transaction, failed,
    shared::{subject, window},
};
use crate::{
    domain::{
        id::{KeyId, Micros},
        limit::Window,
    },
    store::{CallCount, Result, Session},
};

impl Postgres {
    /// These keys' windows, locked until the commit; `keys` are in order. Those that
    /// are missing are made first, empty, so that there is a row to lock.
    pub(super) async fn windows(
        tx: &mut Transaction<'_>,
        keys: &[KeyId],
    ) -> Result<Vec<(KeyId, Window)>> {
        let keys: Vec<Uuid> = keys.iter().map(|k| k.0).collect();
        sqlx::query(
            "insert into limit_windows (key, ends, loans)
             select u.k, now_us(), '' from unnest($1::uuid[]) as u(k)
             where not exists (select from limit_windows w where w.key = u.k) order by u.k
             on conflict do nothing",
        )
        .bind(&keys)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        let rows = sqlx::query(
            "select key, loans from limit_windows where key = any($1) order by key for update",
        )
        .bind(&keys)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|r| Ok((KeyId(r.get(0)), window(r.get(1))?)))
            .collect()
    }

    pub(super) async fn write_windows(
        tx: &mut Transaction<'_>,
        windows: &[(KeyId, &Window)],
    ) -> Result<()> {
        let keys: Vec<Uuid> = windows.iter().map(|(k, _)| k.0).collect();
        let ends: Vec<i64> = windows.iter().map(|(_, w)| w.last()).collect();
        let loans: Vec<Vec<u8>> = windows.iter().map(|(_, w)| w.encode()).collect();
        sqlx::query(
            "update limit_windows w set ends = i.ends, loans = i.loans
             from unnest($1::uuid[], $2::bigint[], $3::bytea[]) as i(key, ends, loans)
             where w.key = i.key",
        )
        .bind(keys)
        .bind(ends)
        .bind(loans)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    pub(super) async fn write_calls(
        tx: &mut Transaction<'_>,
        session: Session,
        now: Micros,
        counts: &[CallCount],
    ) -> Result<()> {
        for counts in counts.chunks(5000) {
            let column = |of: fn(&CallCount) -> i64| counts.iter().map(of).collect::<Vec<i64>>();
            let subjects: Vec<_> = counts.iter().map(|c| subject(&c.counted)).collect();
            sqlx::query(
                "insert into call_counts (span, bucket, subject, tier, sid, admitted, limited, refused, at)
                 select i.span, i.bucket, i.subject, i.tier, $8, i.admitted, i.limited, i.refused, $9
                 from unnest($1::smallint[], $2::bigint[], $3::uuid[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[])
                   as i(span, bucket, subject, tier, admitted, limited, refused)
                 on conflict (span, bucket, subject, tier, sid) do update
                   set admitted = excluded.admitted, limited = excluded.limited,
                       refused = excluded.refused, at = excluded.at",
            )
            .bind(subjects.iter().map(|s| s.0).collect::<Vec<i16>>())
            .bind(column(|c| c.bucket))
            .bind(subjects.iter().map(|s| s.1).collect::<Vec<Uuid>>())
            .bind(subjects.iter().map(|s| s.2.to_owned()).collect::<Vec<String>>())
            .bind(column(|c| c.calls.admitted))
            .bind(column(|c| c.calls.limited))
            .bind(column(|c| c.calls.refused))
            .bind(session.0)
            .bind(now)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        }
        Ok(())
    }
}
