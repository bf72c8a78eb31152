//! Programs as child processes: the `onering` command, and tools. None outlives
//! its test.

use std::{
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
};

use super::app::{PATIENCE, eventually};

/// The command that is tested.
pub const ONERING: &str = env!("CARGO_BIN_EXE_onering");

/// What a program left behind.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// Checks the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// With these variables and no others of ours.
fn command(program: &Path, args: &[&str], vars: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(vars.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a program to its end.
pub async fn run(program: &Path, args: &[&str], vars: &[(&str, &str)]) -> Done {
    let output = command(program, args, vars).output();
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .unwrap_or_else(|_| panic!("{} {args:?} does not end", program.display()))
        .unwrap();
    Done {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs `onering` to its end.
pub async fn onering(args: &[&str], vars: &[(&str, &str)]) -> Done {
    run(Path::new(ONERING), args, vars).await
}

/// A program that runs.
pub struct Running {
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<tokio::task::JoinHandle<()>>,
}

fn keep(
    from: impl AsyncRead + Unpin + Send + 'static,
    into: Arc<Mutex<String>>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut text = into.lock().unwrap();
            text.push_str(&line);
            text.push('\n');
        }
    })
}

impl Running {
    /// Starts `onering`.
    pub fn onering(args: &[&str], vars: &[(&str, &str)]) -> Self {
        let mut child = command(Path::new(ONERING), args, vars).spawn().unwrap();
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let readers = vec![
            keep(child.stdout.take().unwrap(), Arc::clone(&stdout)),
            keep(child.stderr.take().unwrap(), Arc::clone(&stderr)),
        ];
        Self {
            child,
            stdout,
            stderr,
            readers,
        }
    }

    /// Starts `onering serve` with JSON logs, and waits until it serves: its URL.
    pub async fn serve(vars: &[(&str, &str)]) -> (Self, String) {
        let mut all = vec![
            ("ONERING_LOG_FORMAT", "json"),
            ("ONERING_LISTEN", "127.0.0.1:0"),
        ];
        all.extend(vars);
        let running = Self::onering(&["serve"], &all);
        let line = running.logged("\"serving\"").await;
        let line: Value = serde_json::from_str(&line).unwrap();
        let url = format!("http://{}", line["server.address"].as_str().unwrap());
        (running, url)
    }

    pub fn stdout(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    async fn line(&self, of: &Mutex<String>, text: &str) -> String {
        eventually(&format!("{text:?} is written"), || async {
            let line = of
                .lock()
                .unwrap()
                .lines()
                .find(|l| l.contains(text))
                .map(str::to_owned);
            let ended = self
                .readers
                .iter()
                .all(tokio::task::JoinHandle::is_finished);
            assert!(
                line.is_some() || !ended,
                "it ended: {}{}",
                self.stdout(),
                self.stderr()
            );
            line
        })
        .await
    }

    /// Waits for a line that has this text on standard output.
    pub async fn told(&self, text: &str) -> String {
        self.line(&self.stdout, text).await
    }

    /// As [`told`](Self::told), on standard error.
    pub async fn logged(&self, text: &str) -> String {
        self.line(&self.stderr, text).await
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().expect("it runs").to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &id])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Waits for its end in good order.
    pub async fn ends(&mut self) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status.expect("it ends").unwrap();
        assert!(status.success(), "{status}: {}", self.stderr());
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Done {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let code = status.expect("it ends").unwrap().code().unwrap_or(-1);
        for reader in self.readers.drain(..) {
            reader.await.unwrap();
        }
        Done {
            code,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(self) -> Done {
        self.signal("TERM");
        self.ended().await.exits(0)
    }
}
