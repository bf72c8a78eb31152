//! What is noted outside the database of how far it has come: in a file, and in
//! Redis where there is one. Either is enough to know a backup that was restored.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use redis::{
    Client, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use uuid::Uuid;

use crate::domain::id::Micros;

/// How long Redis may take: a node that starts waits no longer for it.
const TIMEOUT: Duration = Duration::from_millis(500);

/// `KEYS`: the timeline. `ARGV`: a mark, of which the greatest is kept for 400 days.
const NOTE: &str = r"
local has = tonumber(redis.call('GET', KEYS[1]) or 0)
if has < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
redis.call('PEXPIRE', KEYS[1], 34560000000)
return 1
";

/// What is noted of a timeline.
#[derive(Debug, Default)]
pub struct Seen {
    /// The greatest mark of those that were found.
    pub mark: Option<Micros>,
    /// Why not all could be asked; none where they were. What these have noted may
    /// be greater.
    pub silent: Option<String>,
}

/// Where marks are noted.
pub struct Witness {
    folder: Option<PathBuf>,
    redis: Option<(ConnectionManager, Script)>,
}

impl Witness {
    /// A file in that folder, and Redis at that URL.
    #[must_use]
    pub fn new(folder: Option<PathBuf>, redis: Option<&str>) -> Self {
        let redis = redis.and_then(|url| {
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(TIMEOUT))
                .set_response_timeout(Some(TIMEOUT))
                .set_number_of_retries(0);
            let client = Client::open(url).ok()?;
            let connection = ConnectionManager::new_lazy_with_config(client, config).ok()?;
            Some((connection, Script::new(NOTE)))
        });
        Self { folder, redis }
    }

    /// Whether marks are noted nowhere.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.folder.is_none() && self.redis.is_none()
    }

    /// What was noted of a timeline.
    pub async fn seen(&self, id: Uuid) -> Seen {
        let mut seen = Seen::default();
        if let Some(folder) = &self.folder {
            let path = path(folder, id);
            match read(&path).await {
                Ok(mark) => seen.mark = mark,
                Err(e) => seen.silent = Some(format!("{} can't be read: {e}", path.display())),
            }
        }
        if let Some((connection, _)) = &self.redis {
            let mut connection = connection.clone();
            let asked = redis::cmd("GET")
                .arg(key(id))
                .query_async::<Option<Micros>>(&mut connection)
                .await;
            match asked {
                Ok(mark) => seen.mark = seen.mark.max(mark),
                Err(e) => seen.silent = Some(format!("Redis does not answer: {e}")),
            }
        }
        seen
    }

    /// Notes how far a timeline has come. What can't be noted is with the next mark.
    pub async fn note(&self, id: Uuid, mark: Micros) {
        if let Some(folder) = &self.folder
            && let Err(e) = write(folder, id, mark).await
        {
            tracing::debug!(error.message = %e, "the timeline's file is not written");
        }
        if let Some((connection, script)) = &self.redis {
            let mut connection = connection.clone();
            let mut call = script.key(key(id));
            call.arg(mark);
            if let Err(e) = call.invoke_async::<i64>(&mut connection).await {
                tracing::debug!(error.message = %e, "Redis does not note how far the database is");
            }
        }
    }
}

fn key(id: Uuid) -> String {
    format!("onering:timeline:{}", id.simple())
}

fn path(folder: &Path, id: Uuid) -> PathBuf {
    folder.join(format!("timeline-{}", id.simple()))
}

/// The mark in a file; none where there is no such file, or none in it.
async fn read(path: &Path) -> io::Result<Option<Micros>> {
    match tokio::fs::read_to_string(path).await {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Nodes may share the folder: the greatest mark stays. Replaced as a whole: half a
/// number would be a smaller one.
async fn write(folder: &Path, id: Uuid, mark: Micros) -> io::Result<()> {
    let path = path(folder, id);
    if read(&path).await?.is_some_and(|seen| seen >= mark) {
        return Ok(());
    }
    tokio::fs::create_dir_all(folder).await?;
    let written = path.with_extension(std::process::id().to_string());
    tokio::fs::write(&written, mark.to_string()).await?;
    tokio::fs::rename(&written, &path).await
}
