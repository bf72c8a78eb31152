//! PostgreSQL servers of a test's own, to be stopped, killed, copied and promoted;
//! a balancer before servers (HAProxy). All are gone with their test.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::wait::until;

fn programs() -> PathBuf {
    std::env::var("ONERING_TEST_POSTGRES_BIN")
        .expect("ONERING_TEST_POSTGRES_BIN: run `./test servers`")
        .into()
}

/// A port that nobody has at the moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The user and group that PostgreSQL runs as where tests run as root.
fn unprivileged() -> Option<(u32, u32)> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let root = status.lines().any(|l| l.starts_with("Uid:\t0\t"));
    root.then(|| {
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let user = |name: &str| {
            let line = users.lines().find(|l| l.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2);
            let mut number = || fields.next()?.parse().ok();
            Some((number()?, number()?))
        };
        user("postgres")
            .or_else(|| user("nobody"))
            .expect("a user for PostgreSQL")
    })
}

/// A server with its files.
pub struct Cluster {
    folder: Arc<TempDir>,
    data: PathBuf,
    pub port: u16,
    settings: Vec<String>,
    server: Option<Child>,
}

impl Cluster {
    /// A new cluster, running.
    pub async fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("onering-cluster-")
            .tempdir_in("/tmp")
            .unwrap();
        if let Some((user, group)) = unprivileged() {
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let mut cluster = Self {
            data: folder.path().join("primary"),
            folder: Arc::new(folder),
            port: free_port(),
            settings: Vec::new(),
            server: None,
        };
        let data = cluster.data.display().to_string();
        cluster
            .run(
                "initdb",
                &[
                    "-D",
                    &data,
                    "--username=onering",
                    "--auth=trust",
                    "--no-sync",
                ],
            )
            .await;
        cluster.resume().await;
        cluster
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(programs().join(program));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("LC_ALL", "C")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some((user, group)) = unprivileged() {
            command.uid(user).gid(group);
        }
        command
    }

    async fn run(&self, program: &str, args: &[&str]) {
        let done = self.command(program).args(args).output().await.unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{program} {args:?}: {said}");
    }

    /// Starts the server of these files, and waits until it answers.
    pub async fn resume(&mut self) {
        let folder = self.folder.path().display();
        let port = self.port.to_string();
        let mut command = self.command("postgres");
        command.arg("-D").arg(&self.data).args(["-p", &port]);
        for setting in [
            "listen_addresses=127.0.0.1",
            &format!("unix_socket_directories={folder}"),
            "max_connections=100",
            "shared_buffers=64MB",
            "wal_level=replica",
        ] {
            command.args(["-c", setting]);
        }
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        self.server = Some(child);
        until("PostgreSQL answers", async || {
            let ready = self
                .command("pg_isready")
                .args(["--host=127.0.0.1", "--port", &port])
                .status()
                .await;
            ready.unwrap().success().then_some(())
        })
        .await;
    }

    async fn end(&mut self, signal: &str) {
        let mut server = self.server.take().expect("it runs");
        let id = server.id().expect("it runs").to_string();
        let sent = Command::new("kill")
            .args(["-s", signal, &id])
            .status()
            .await;
        assert!(sent.unwrap().success());
        server.wait().await.unwrap();
    }

    /// Stops it in order.
    pub async fn stop(&mut self) {
        self.end("INT").await;
    }

    /// Ends it as a crash does: nothing is written any more.
    pub async fn crash(&mut self) {
        self.end("QUIT").await;
    }

    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }

    /// Copies its files, while it is stopped: the copy's name.
    pub async fn copy(&self, name: &str) -> PathBuf {
        assert!(!self.is_running());
        let copy = self.folder.path().join(name);
        self.copy_files(&self.data, &copy).await;
        copy
    }

    /// Puts a copy in the place of its files, while it is stopped.
    pub async fn restore(&self, copy: &Path) {
        assert!(!self.is_running());
        tokio::fs::remove_dir_all(&self.data).await.unwrap();
        self.copy_files(copy, &self.data).await;
    }

    async fn copy_files(&self, from: &Path, to: &Path) {
        let done = Command::new("cp").arg("-a").args([from, to]).status().await;
        assert!(done.unwrap().success());
    }

    pub fn url(&self, database: &str) -> String {
        url(self.port, database)
    }

    /// A synchronous standby: a commit is answered once it is there too.
    pub async fn standby(&mut self) -> Self {
        let mut standby = Self {
            folder: self.folder.clone(),
            data: self.folder.path().join("standby"),
            port: free_port(),
            settings: Vec::new(),
            server: None,
        };
        let source = format!(
            "host=127.0.0.1 port={} user=onering application_name=standby",
            self.port
        );
        let data = standby.data.display().to_string();
        self.run(
            "pg_basebackup",
            &[
                "--dbname",
                &source,
                "--pgdata",
                &data,
                "--wal-method=stream",
                "--checkpoint=fast",
            ],
        )
        .await;
        tokio::fs::write(standby.data.join("standby.signal"), "")
            .await
            .unwrap();
        standby.settings.push(format!("primary_conninfo={source}"));
        standby.resume().await;
        self.sql("alter system set synchronous_standby_names = 'standby'")
            .await;
        self.sql("select pg_reload_conf()").await;
        until("the standby is synchronous", async || {
            let state = self.sql("select sync_state from pg_stat_replication").await;
            (state == ["sync"]).then_some(())
        })
        .await;
        standby
    }

    /// Makes a standby the primary; it waits for no standby of its own.
    pub async fn promote(&mut self) {
        let data = self.data.display().to_string();
        self.run("pg_ctl", &["promote", "--pgdata", &data, "--wait"])
            .await;
        self.sql("alter system set synchronous_standby_names = ''")
            .await;
        self.sql("select pg_reload_conf()").await;
    }

    /// Carries out a statement: the first column, a text, of what it answers.
    pub async fn sql(&self, statement: &str) -> Vec<String> {
        use sqlx::{AssertSqlSafe, Connection as _, Row as _};
        let mut connection = sqlx::PgConnection::connect(&self.url("postgres"))
            .await
            .unwrap();
        let rows = sqlx::query(AssertSqlSafe(statement.to_owned()))
            .fetch_all(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        rows.iter()
            .map(|r| r.try_get::<String, _>(0).unwrap_or_default())
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The postmaster's children end with it, and before the folder goes.
        if let Some(server) = &mut self.server
            && let Some(id) = server.id()
        {
            let _ = std::process::Command::new("kill")
                .args(["-s", "QUIT", &id.to_string()])
                .status();
            for _ in 0..500 {
                if matches!(server.try_wait(), Ok(Some(_)) | Err(_)) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}

/// A database's URL on a server of this machine.
pub fn url(port: u16, database: &str) -> String {
    format!("postgres://onering@127.0.0.1:{port}/{database}")
}

/// HAProxy with these lines of configuration.
pub struct Balancer {
    _folder: TempDir,
    _process: Child,
}

impl Balancer {
    pub async fn start(configuration: &str, port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("haproxy.cfg");
        tokio::fs::write(&path, configuration).await.unwrap();
        let process = Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&path)
            .env("PATH", "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("haproxy");
        until("HAProxy answers", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .ok()
        })
        .await;
        Self {
            _folder: folder,
            _process: process,
        }
    }
}
