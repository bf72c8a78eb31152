//! A server of our own: this same executable as `onering serve`, on a free port
//! of this machine, with nothing from our environment but what is set here.

use std::{
    env,
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri, header::HOST};
use tokio::process::{Child, Command};

use super::{
    client::Connection,
    error::{BenchError, Result},
};
use crate::{
    app,
    settings::{MasterKey, Settings},
    store::Database,
};

/// How long a server may take to become healthy: the first start migrates.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// How long it may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes one under `parent`, or under the system's folder for such.
    pub(super) fn create(parent: Option<&Path>, tag: &str) -> Result<Self> {
        let path = parent
            .map_or_else(env::temp_dir, Path::to_path_buf)
            .join(format!("onering-bench-{tag}"));
        std::fs::create_dir_all(&path)
            .map_err(|e| BenchError::failed(&format!("can't make {}", path.display()), e))?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// `n` random bytes.
pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| BenchError::failed("no random bytes", e))?;
    Ok(bytes)
}

/// How the server is started, each time the same.
#[derive(Debug)]
pub(super) struct Server {
    /// `host:port`.
    pub authority: String,
    /// Its first admin key.
    pub admin_key: String,
    environment: Vec<(String, String)>,
    folder: Folder,
    child: Option<Child>,
}

impl Server {
    /// Prepares one with a database of its own; `database` is a URL, or none for
    /// the embedded one.
    pub(super) fn prepare(database: Option<&str>, more: &[String], folder: Folder) -> Result<Self> {
        let port = free_port().map_err(|e| BenchError::failed("no free port", e))?;
        let authority = format!("127.0.0.1:{port}");
        let admin_key = format!("sk_admin_{}", hex::encode(random::<16>()?));
        let data = folder.path().display();
        let database =
            database.map_or_else(|| format!("sqlite://{data}/onering.db"), str::to_owned);
        let mut environment: Vec<(String, String)> = [
            ("ONERING_DATABASE_URL", database),
            ("ONERING_DATA_DIR", data.to_string()),
            ("ONERING_MASTER_KEY", STANDARD.encode(random::<32>()?)),
            ("ONERING_BOOTSTRAP_ADMIN_KEY", admin_key.clone()),
            ("ONERING_EXTERNAL_API_ENABLED", "1".into()),
            ("ONERING_EXTERNAL_API_CANARY_ONLY", "0".into()),
            ("ONERING_WEBHOOKS_ENABLED", "1".into()),
            ("ONERING_WEBHOOKS_DELIVERY_ENABLED", "1".into()),
            ("ONERING_ALLOWED_ENDPOINT_CIDRS", "127.0.0.0/8".into()),
            ("ONERING_ALLOW_HTTP_ENDPOINTS", "1".into()),
            // All receivers are of one host here.
            ("ONERING_HOST_MAX_IN_FLIGHT", "0".into()),
            ("ONERING_LISTEN", authority.clone()),
            ("ONERING_LOG", "warn".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for pair in more {
            let (name, value) = pair.split_once('=').ok_or_else(|| {
                BenchError::Usage(format!("--server-env {pair}: NAME=VALUE is needed"))
            })?;
            environment.retain(|(known, _)| known != name);
            if !value.is_empty() {
                environment.push((name.to_owned(), value.to_owned()));
            }
        }
        Ok(Self {
            authority,
            admin_key,
            environment,
            folder,
            child: None,
        })
    }

    /// Where its database is, and what its secrets are sealed with: for what
    /// writes there while it does not run.
    pub(super) fn store_settings(&self) -> Result<(Database, MasterKey)> {
        let settings = Settings::from_vars(self.environment.iter().cloned())
            .map_err(|e| BenchError::Usage(e.to_string()))?;
        let master = settings.master_key.clone();
        master
            .map(|master| (app::database(&settings), master))
            .ok_or_else(|| BenchError::Failed("the server has no master key".into()))
    }

    /// Starts it and waits until `GET /health` answers 200.
    pub(super) async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if self.is_healthy().await {
                return Ok(());
            }
            self.check_alive()?;
            if Instant::now() > deadline {
                let wait = START_TIMEOUT.as_secs();
                return Err(self.not_reached(&format!("is not healthy after {wait} s")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the process and waits for nothing.
    pub(super) fn spawn(&mut self) -> Result<()> {
        let failed = |e| BenchError::failed("can't start the server", e);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .map_err(failed)?;
        let mut command = Command::new(env::current_exe().map_err(failed)?);
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("ONERING_") {
                command.env_remove(name);
            }
        }
        let child = command
            .arg("serve")
            .envs(self.environment.iter().map(|(n, v)| (n, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        self.child = Some(child);
        Ok(())
    }

    /// Fails where the process has ended.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        let ended = self
            .child
            .as_mut()
            .and_then(|c| c.try_wait().ok().flatten());
        match ended {
            Some(status) => Err(self.not_reached(&format!("ended ({status})"))),
            None => Ok(()),
        }
    }

    /// Its process id, while it runs.
    #[must_use]
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Asks it to stop (SIGTERM), and kills it if it doesn't.
    pub(super) async fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        if let Some(pid) = child.id() {
            // The only way to send a signal without `unsafe` of our own.
            Command::new("kill")
                .args(["-TERM", &pid.to_string()])
                .status()
                .await
                .map_err(|e| BenchError::failed("can't stop the server", e))?;
        }
        if tokio::time::timeout(STOP_TIMEOUT, child.wait())
            .await
            .is_err()
        {
            child.kill().await.ok();
            let wait = STOP_TIMEOUT.as_secs();
            return Err(BenchError::Failed(format!(
                "the server didn't stop within {wait} s of SIGTERM"
            )));
        }
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    fn not_reached(&self, what: &str) -> BenchError {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines
            .get(lines.len().saturating_sub(10)..)
            .unwrap_or_default()
            .join("\n  ");
        BenchError::NotReached(format!("the server {what}; its last words:\n  {tail}"))
    }

    async fn is_healthy(&self) -> bool {
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = Uri::from_static("/health");
        if let Ok(host) = self.authority.parse() {
            request.headers_mut().insert(HOST, host);
        }
        let mut connection = Connection::new(self.authority.clone(), Duration::from_secs(1));
        matches!(connection.call(request).await, Ok((StatusCode::OK, _)))
    }
}

/// A port that is free now. Somebody else could take it before the server does;
/// then the server says so and the benchmark ends.
pub(super) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_owner() {
        let folder = Folder::create(None, &hex::encode(random::<8>().unwrap())).unwrap();
        let path = folder.path().to_owned();
        assert!(path.is_dir());
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn more_environment_needs_a_value() {
        let folder = || Folder::create(None, &hex::encode(random::<8>().unwrap())).unwrap();
        assert!(Server::prepare(None, &["A=b=c".into()], folder()).is_ok());
        assert!(Server::prepare(None, &["A".into()], folder()).is_err());
    }
}
