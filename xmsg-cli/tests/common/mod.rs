//! Runs `xmsg` processes in tests: starts them, waits for them, and kills them when they take too long.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a helper of tests is a test")]

pub mod terminal;

use std::future::Future;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use xmsg_proxy::Proxy;

/// The time limit for each step of a test.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns the result of `step`, unless it takes too long.
pub async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, step).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}

/// Starts a proxy with default settings. Returns it with the address for `--proxy`.
pub async fn proxy() -> (Proxy, String) {
    let proxy = Proxy::bind("127.0.0.1:0").start().await.unwrap();
    let address = proxy.address().to_string();
    (proxy, address)
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ended {
    /// Returns the output of a process that must have succeeded.
    #[track_caller]
    pub fn done(self) -> Vec<u8> {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    #[track_caller]
    pub fn text(self) -> String {
        String::from_utf8(self.done()).unwrap()
    }

    /// Checks exit code and error of a process that must have failed.
    #[track_caller]
    pub fn failed(self, code: i32, says: &str) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert!(self.stderr.contains(says), "expected {says:?} in: {}", self.stderr);
        assert!(self.stderr.starts_with("xmsg: "), "{}", self.stderr);
        assert!(!self.stderr.contains('\x1b'), "no colours but on a terminal: {:?}", self.stderr);
    }
}

/// A running process. Dropping it kills it.
pub struct Running {
    child: Child,
    name: String,
    pub stdin: Option<ChildStdin>,
    stdout: Option<JoinHandle<Vec<u8>>>,
    notes: mpsc::UnboundedReceiver<String>,
    stderr: String,
}

impl Running {
    /// Starts `xmsg` with these arguments. Its output is read continuously.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(&[], arguments)
    }

    /// Starts `xmsg` with these arguments and environment variables.
    pub fn start_with(variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let (mut running, mut stdout) = Self::spawn(variables, arguments);
        running.stdout = Some(tokio::spawn(async move {
            let mut all = Vec::new();
            stdout.read_to_end(&mut all).await.unwrap();
            all
        }));
        running
    }

    /// Starts `xmsg` without reading its standard output.
    pub fn start_unread(arguments: &[&str]) -> (Self, ChildStdout) {
        Self::spawn(&[], arguments)
    }

    fn spawn(variables: &[(&str, &str)], arguments: &[&str]) -> (Self, ChildStdout) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xmsg"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("XMSG_") {
                command.env_remove(name);
            }
        }
        // The configuration of the user who runs the tests must not matter.
        command.env("XMSG_CONFIG", "/dev/null");
        command.envs(variables.iter().copied());
        command.env_remove("RUST_LOG").args(arguments).kill_on_drop(true);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, notes) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let _ = sender.send(line);
            }
        });
        let stdin = child.stdin.take();
        let name = format!("xmsg {}", arguments.join(" "));
        (Self { child, name, stdin, stdout: None, notes, stderr: String::new() }, stdout)
    }

    /// Starts a subscriber and waits until it has subscribed.
    pub async fn subscribe(address: &str, arguments: &[&str]) -> Self {
        let mut running = Self::start(&[&["-v", "sub", "--proxy", address], arguments].concat());
        running.said("subscribed").await;
        running
    }

    /// Waits until the process has written this text to standard error. Returns the line.
    pub async fn said(&mut self, text: &str) -> String {
        let name = self.name.clone();
        let said = async {
            loop {
                let line = self.notes.recv().await;
                let line = line.unwrap_or_else(|| panic!("{name} ended without {text:?}: {}", self.stderr));
                self.stderr += &line;
                self.stderr.push('\n');
                if self.stderr.contains(text) {
                    return line;
                }
            }
        };
        within(&format!("{name}: {text}"), said).await
    }

    /// Waits for a line that follows those that were waited for before.
    pub async fn said_next(&mut self, text: &str) -> String {
        let before = std::mem::take(&mut self.stderr);
        let line = self.said(text).await;
        self.stderr.insert_str(0, &before);
        line
    }

    /// Writes to its standard input, which stays open.
    pub async fn type_in(&mut self, input: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        within("typing", stdin.write_all(input)).await.unwrap();
        stdin.flush().await.unwrap();
    }

    /// Sends a signal with this name.
    pub fn signal(&self, signal: &str) {
        let id = self.child.id().unwrap().to_string();
        let status = std::process::Command::new("kill").args(["-s", signal, &id]).status().unwrap();
        assert!(status.success());
    }

    /// Closes its input and waits for its end.
    pub async fn end(mut self) -> Ended {
        drop(self.stdin.take());
        let name = self.name.clone();
        let ended = async {
            let code = self.child.wait().await.unwrap().code();
            let stdout = match self.stdout.take() {
                Some(stdout) => stdout.await.unwrap(),
                None => Vec::new(),
            };
            while let Some(line) = self.notes.recv().await {
                self.stderr += &(line + "\n");
            }
            Ended { code, stdout, stderr: std::mem::take(&mut self.stderr) }
        };
        within(&name, ended).await
    }
}

/// Runs `xmsg` with these arguments to its end.
pub async fn xmsg(arguments: &[&str]) -> Ended {
    Running::start(arguments).end().await
}

/// Publishes with these arguments and this input.
pub async fn publish(address: &str, arguments: &[&str], input: &[u8]) {
    let mut running = Running::start(&[&["pub", "--proxy", address], arguments].concat());
    // A process that does not read its input may have ended before.
    let _ = within("input", running.stdin.as_mut().unwrap().write_all(input)).await;
    let stdout = running.end().await.done();
    assert!(stdout.is_empty(), "standard output is for data");
}
