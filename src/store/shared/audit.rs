use sqlx::Row as _;

use super::{Engine, Row, Transaction, failed};
use crate::{
    domain::audit::{BEGINNING, Chain, Entry, Hash, Head, Record},
    store::{Page, Result},
};

/// How many records are read at a time.
const PAGE: i64 = 1000;

/// One of another length was changed: it reads as one that never fits.
fn hash(bytes: &[u8]) -> Hash {
    bytes.try_into().unwrap_or(BEGINNING)
}

fn record(r: &Row) -> Record {
    Record {
        seq: r.get(0),
        entry: Entry {
            at: r.get(1),
            actor: r.get(2),
            action: r.get(3),
            target: r.get(4),
            old: r.get(5),
            new: r.get(6),
            reason: r.get(7),
        },
        hash: hash(r.get(8)),
    }
}

/// Adds a record to the log. Its transaction has incremented the configuration's
/// revision, and with that holds the lock that puts records in a row.
pub(super) async fn append(
    tx: &mut Transaction<'_>,
    chain: &Chain,
    entry: Entry,
) -> Result<(i64, Hash)> {
    let last = sqlx::query("select seq, hash from audit order by seq desc limit 1")
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed)?;
    let (seq, before) = match last {
        Some(r) => (r.get(0), hash(r.get(1))),
        None => (0, BEGINNING),
    };
    let Record { seq, entry, hash } = chain.append(seq, &before, entry);
    sqlx::query(
        "insert into audit (seq, at, actor, action, target, old, new, reason, hash)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(seq)
    .bind(entry.at)
    .bind(entry.actor)
    .bind(entry.action)
    .bind(entry.target)
    .bind(entry.old)
    .bind(entry.new)
    .bind(entry.reason)
    .bind(&hash[..])
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    sqlx::query(
        "insert into audit_head (one, seq, mac) values (true, $1, $2)
         on conflict (one) do update set seq = excluded.seq, mac = excluded.mac",
    )
    .bind(seq)
    .bind(&chain.head(seq, &hash).mac[..])
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok((seq, hash))
}

pub(super) async fn newest(
    engine: &Engine,
    action: &str,
    target: Option<&str>,
    page: Page<i64>,
) -> Result<Vec<Record>> {
    let rows = sqlx::query(
        "select seq, at, actor, action, target, old, new, reason, hash from audit
         where seq < $1 and ($2 or target = $3) and substr(action, 1, $4) = $5
         order by seq desc limit $6",
    )
    .bind(page.before.unwrap_or(i64::MAX))
    .bind(target.is_none())
    .bind(target.unwrap_or_default())
    .bind(i32::try_from(action.len()).unwrap_or(i32::MAX))
    .bind(action)
    .bind(page.limit)
    .fetch_all(engine.history())
    .await
    .map_err(failed)?;
    Ok(rows.iter().map(record).collect())
}

pub(super) async fn all(
    tx: &mut Transaction<'_>,
    each: &mut (dyn FnMut(Record) + Send),
) -> Result<()> {
    let mut after = i64::MIN;
    loop {
        let rows = sqlx::query(
            "select seq, at, actor, action, target, old, new, reason, hash from audit
             where seq > $1 order by seq limit $2",
        )
        .bind(after)
        .bind(PAGE)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        let Some(last) = rows.last() else {
            return Ok(());
        };
        after = last.get(0);
        rows.iter().map(record).for_each(&mut *each);
    }
}

pub(super) async fn head(tx: &mut Transaction<'_>) -> Result<Option<Head>> {
    let row = sqlx::query("select seq, mac from audit_head")
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed)?;
    Ok(row.map(|r| Head {
        seq: r.get(0),
        mac: hash(r.get(1)),
    }))
}
