//! Redis as a lender. One script decides on a key, all or nothing, on Redis'
//! clock.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::redis::{
    Client, RedisResult, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use futures_util::future::try_join_all;
use tokio::sync::Notify;

use super::{Clock, Outside, key::Copies, lenders::Lent};
use crate::{
    domain::{
        id::{KeyId, Micros},
        limit::{Answer, Ask, LONGEST, grain},
    },
    store::{Session, StoreError},
};

/// How long an answer may take before Redis counts as gone. Callers don't wait
/// for so long.
const TIMEOUT: Duration = Duration::from_millis(500);
/// How many names Redis looks at in one step of [`Redis::recall`].
const PAGE: usize = 1000;
/// How many keys, and about how many loans, Redis is told of in one step of
/// [`Redis::seed`]: a small part of [`TIMEOUT`].
const SEED_KEYS: usize = 256;
const SEED_LOANS: usize = 4096;

/// `KEYS`: the generation, the key's window: a hash of amounts by `end:holder`.
/// `ARGV`: generation, holder, limit, need, want, grain, least life, time or
/// nothing, longest life, then pairs of ends and amounts that are given back. Answers nothing
/// where the generation is another.
const LEND: &str = r"
local function text(n) return string.format('%.0f', n) end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {0, 0, 0, 0, {}} end
local now = tonumber(ARGV[8])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
local holder, limit, need, want = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local unit, ahead, longest = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[9])
for i = 10, #ARGV, 2 do
  local field = ARGV[i] .. ':' .. holder
  if redis.call('HEXISTS', KEYS[2], field) == 1 then
    if redis.call('HINCRBY', KEYS[2], field, '-' .. ARGV[i + 1]) <= 0 then redis.call('HDEL', KEYS[2], field) end
  end
end
local used, loans = 0, redis.call('HGETALL', KEYS[2])
for i = 1, #loans, 2 do
  local ends = tonumber(string.match(loans[i], '^%d+'))
  if ends + 3600000000 <= now then
    redis.call('HDEL', KEYS[2], loans[i])
  else
    if ends > now + longest then
      redis.call('HDEL', KEYS[2], loans[i])
      redis.call('HINCRBY', KEYS[2], text(now + longest) .. string.match(loans[i], ':.*'), loans[i + 1])
    end
    used = used + tonumber(loans[i + 1])
  end
end
local ends = (math.floor((now + ahead) / unit) + 1) * unit
local lent = 0
if limit - used >= need then lent = math.min(want, limit - used) end
if lent > 0 then
  redis.call('HINCRBY', KEYS[2], text(ends) .. ':' .. holder, text(lent))
  redis.call('PEXPIRE', KEYS[2], 3720000)
end
return {1, now, lent, ends, redis.call('HGETALL', KEYS[2])}
";

/// `KEYS`: the generation, who told it what they know. `ARGV`: the process of
/// Redis, a fresh name, time or nothing. Begins a generation where there is none of
/// this process. Answers its name, its age and the time.
const LOOK: &str = r"
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local name = redis.call('GET', KEYS[1])
local process, since
if name then process, since = string.match(name, '^([^:]*):[^:]*:(%d+)$') end
if process ~= ARGV[1] then
  since = string.format('%.0f', now)
  name = ARGV[1] .. ':' .. ARGV[2] .. ':' .. since
  redis.call('SET', KEYS[1], name)
  redis.call('DEL', KEYS[2])
end
redis.call('PEXPIRE', KEYS[1], 86400000)
redis.call('PEXPIRE', KEYS[2], 86400000)
return {name, now - tonumber(since), tonumber(ARGV[3]) or now}
";

/// `KEYS`: the generation, who told it what they know. `ARGV`: generation, who has.
/// Answers all who have; nobody where the generation is another.
const TOLD: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {} end
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[2], 86400000)
return redis.call('SMEMBERS', KEYS[2])
";

/// Stands among those who told for all of them.
const ALL: &str = "all";

/// `KEYS`: a window. `ARGV`: pairs of field and amount, of which the greater counts.
const SEED: &str = r"
for i = 1, #ARGV, 2 do
  local has = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or 0)
  if has < tonumber(ARGV[i + 1]) then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
redis.call('PEXPIRE', KEYS[1], 3720000)
return 1
";

/// Why Redis lends nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum RedisError {
    #[error(transparent)]
    Failed(#[from] ::redis::RedisError),
    #[error(transparent)]
    System(#[from] std::io::Error),
    #[error("no answer in time")]
    Late,
    #[error("the nodes that live are not known: {0}")]
    Nodes(#[from] StoreError),
    #[error("the nodes tell it what it forgot")]
    Seeding,
    #[error("it has forgotten what it lent")]
    Forgotten,
}

/// Since when Redis remembers without a gap.
pub(super) struct Generation {
    pub(super) name: Arc<str>,
    pub(super) age: Micros,
    /// The lender's clock.
    pub(super) now: Micros,
}

/// What a generation has yet to be told by this node.
#[derive(Default)]
struct Seeding {
    generation: Arc<str>,
    /// None where it is not known yet.
    keys: Option<Vec<KeyId>>,
}

pub(super) struct Redis {
    connection: ConnectionManager,
    lend: Script,
    look_script: Script,
    seed: Script,
    told: Script,
    prefix: String,
    /// This node's name among the borrowers.
    holder: i64,
    clock: Option<Clock>,
    generation: Mutex<Arc<str>>,
    seeding: tokio::sync::Mutex<Seeding>,
    /// Told when Redis failed.
    pub(super) look: Notify,
}

impl Redis {
    pub(super) fn new(url: &str, outside: &Outside) -> RedisResult<Self> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT))
            // Whether it is back is looked at by `follow_redis`, in its own time.
            .set_number_of_retries(0);
        let connection = ConnectionManager::new_lazy_with_config(Client::open(url)?, config)?;
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
        Ok(Self {
            connection,
            lend: Script::new(LEND),
            look_script: Script::new(LOOK),
            seed: Script::new(SEED),
            told: Script::new(TOLD),
            prefix: outside.prefix.clone(),
            holder: i64::from_le_bytes(bytes) & i64::MAX,
            clock: outside.redis_clock.clone(),
            generation: Mutex::new("".into()),
            seeding: tokio::sync::Mutex::default(),
            look: Notify::new(),
        })
    }

    fn time(&self) -> String {
        let clock = self.clock.as_ref();
        clock.map(|c| c().to_string()).unwrap_or_default()
    }

    fn window(&self, key: KeyId) -> String {
        format!("{}:{key}", self.prefix)
    }

    fn generation_key(&self) -> String {
        format!("{}:generation", self.prefix)
    }

    fn told_key(&self) -> String {
        format!("{}:told", self.prefix)
    }

    /// The generation that is decided by; empty while there is none.
    pub(super) fn generation(&self) -> Arc<str> {
        get(&self.generation)
    }

    pub(super) fn set_generation(&self, name: Arc<str>) {
        set(&self.generation, name);
    }

    /// Lends. Where one ask fails none is answered: what the others were lent after
    /// a new connection may be lent by a Redis that has forgotten.
    pub(super) async fn lend(&self, asks: &[Ask]) -> Result<Vec<Lent>, RedisError> {
        let generation = self.generation();
        let lent = asks.iter().map(|ask| self.lend_one(&generation, ask));
        try_join_all(lent).await
    }

    async fn lend_one(&self, generation: &str, ask: &Ask) -> Result<Lent, RedisError> {
        let (unit, ahead) = grain(ask.whole);
        let mut call = self.lend.key(self.generation_key());
        call.key(self.window(ask.key))
            .arg(generation)
            .arg(self.holder)
            .arg(ask.limit)
            .arg(ask.need)
            .arg(ask.want)
            .arg(unit)
            .arg(ahead)
            .arg(self.time())
            .arg(LONGEST);
        for (ends, amount) in &ask.back {
            call.arg(ends).arg(amount);
        }
        let (known, now, lent, ends, loans): (i64, Micros, i64, Micros, Vec<String>) =
            call.invoke_async(&mut self.connection.clone()).await?;
        if known == 0 {
            return Err(RedisError::Forgotten);
        }
        let copies = copies(&loans);
        let window = copies.iter().map(|(ends, _, amount)| (*ends, *amount));
        let answer = Answer {
            lent,
            ends,
            now,
            window: window.collect(),
        };
        Ok(Lent { answer, copies })
    }

    /// Looks which generation there is; begins one where Redis has forgotten, or
    /// is another process than the one that lent.
    pub(super) async fn look(&self) -> Result<Generation, RedisError> {
        let mut connection = self.connection.clone();
        let info: String = ::redis::cmd("INFO")
            .arg("server")
            .query_async(&mut connection)
            .await?;
        let process = info.lines().find_map(|l| l.strip_prefix("run_id:"));
        let mut fresh = [0; 8];
        getrandom::fill(&mut fresh).map_err(|e| std::io::Error::other(e.to_string()))?;
        let (name, age, now): (String, Micros, Micros) = self
            .look_script
            .key(self.generation_key())
            .key(self.told_key())
            .arg(process.unwrap_or_default().trim())
            .arg(hex::encode(fresh))
            .arg(self.time())
            .invoke_async(&mut connection)
            .await?;
        Ok(Generation {
            name: name.into(),
            age,
            now,
        })
    }

    /// Everything that it lent in the last hour, of every key.
    pub(super) async fn recall(&self) -> Result<Vec<(KeyId, Copies)>, RedisError> {
        let mut connection = self.connection.clone();
        let begins = format!("{}:", self.prefix);
        let mut known = Vec::new();
        let mut cursor = 0u64;
        loop {
            let (next, names): (u64, Vec<String>) = ::redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(pattern(&begins))
                .arg("COUNT")
                .arg(PAGE)
                .query_async(&mut connection)
                .await?;
            // All but the generation are named by their key.
            let keys: Vec<(KeyId, &String)> = names
                .iter()
                .filter_map(|name| Some((name.strip_prefix(&begins)?.parse().ok()?, name)))
                .collect();
            if !keys.is_empty() {
                let mut pipe = ::redis::pipe();
                for (_, name) in &keys {
                    pipe.hgetall(*name);
                }
                let windows: Vec<Vec<String>> = pipe.query_async(&mut connection).await?;
                let loans = windows.iter().map(|w| copies(w));
                known.extend(keys.iter().map(|(id, _)| *id).zip(loans));
            }
            if next == 0 {
                return Ok(known);
            }
            cursor = next;
        }
    }

    /// Tells a generation what this node knows of what was lent: of all keys that
    /// `keys` names at the beginning, what `known` says. Where it fails the next call
    /// goes on from there.
    pub(super) async fn seed(
        &self,
        generation: &Arc<str>,
        keys: impl FnOnce() -> Vec<KeyId>,
        known: impl Fn(KeyId) -> Copies,
    ) -> Result<(), RedisError> {
        let mut seeding = self.seeding.lock().await;
        if seeding.generation != *generation {
            *seeding = Seeding {
                generation: generation.clone(),
                keys: None,
            };
        }
        let keys = seeding.keys.get_or_insert_with(keys);
        while !keys.is_empty() {
            let (mut rest, mut loans) = (keys.len(), 0);
            let mut pipe = ::redis::pipe();
            pipe.cmd("SCRIPT").arg("LOAD").arg(SEED).ignore();
            while rest > 0 && keys.len() - rest < SEED_KEYS && loans < SEED_LOANS {
                rest -= 1;
                let copies = known(keys[rest]);
                if copies.is_empty() {
                    continue;
                }
                loans += copies.len();
                pipe.cmd("EVALSHA").arg(self.seed.get_hash()).arg(1);
                pipe.arg(self.window(keys[rest]));
                for (ends, holder, amount) in copies {
                    pipe.arg(format!("{ends}:{holder}")).arg(amount);
                }
                pipe.ignore();
            }
            if loans > 0 {
                pipe.query_async::<()>(&mut self.connection.clone()).await?;
            }
            keys.truncate(rest);
        }
        Ok(())
    }

    /// Notes that a session's node has told this generation what it knows; who else
    /// has.
    pub(super) async fn note_told(
        &self,
        generation: &str,
        session: Session,
    ) -> Result<Told, RedisError> {
        self.told(generation, &session.0.to_string()).await
    }

    /// Notes that nobody knows what this generation was not told.
    pub(super) async fn note_all_told(&self, generation: &str) -> Result<(), RedisError> {
        self.told(generation, ALL).await.map(drop)
    }

    async fn told(&self, generation: &str, who: &str) -> Result<Told, RedisError> {
        let told: Vec<String> = self
            .told
            .key(self.generation_key())
            .key(self.told_key())
            .arg(generation)
            .arg(who)
            .invoke_async(&mut self.connection.clone())
            .await?;
        if told.is_empty() {
            return Err(RedisError::Forgotten);
        }
        Ok(Told(told))
    }
}

/// Who has told a generation what they know.
pub(super) struct Told(Vec<String>);

impl Told {
    /// Whether nobody knows more.
    pub(super) fn by_all(&self) -> bool {
        self.0.iter().any(|who| who == ALL)
    }

    pub(super) fn by(&self, session: Session) -> bool {
        let session = session.0.to_string();
        self.0.contains(&session)
    }
}

/// Loans as a window's fields and values tell of them.
fn copies(window: &[String]) -> Copies {
    window
        .chunks(2)
        .filter_map(|pair| {
            let (ends, holder) = pair[0].split_once(':')?;
            let amount = pair.get(1)?.parse().ok()?;
            Some((ends.parse().ok()?, holder.parse().ok()?, amount))
        })
        .collect()
}

/// A pattern that names which begin so fit.
fn pattern(begins: &str) -> String {
    let mut pattern = String::new();
    for c in begins.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern + "*"
}

fn get(name: &Mutex<Arc<str>>) -> Arc<str> {
    name.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn set(name: &Mutex<Arc<str>>, to: Arc<str>) {
    *name.lock().unwrap_or_else(PoisonError::into_inner) = to;
}
