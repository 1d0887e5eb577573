//! Child processes: the daemons and commands, started as a user starts them.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Notify;

use crate::within;

/// Returns the path of a program of this project, in the folder to which `tests/run` has built it.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let folder = std::env::var_os("XMSG_BIN_DIR").expect("XMSG_BIN_DIR: run the tests with ./tests/run");
    PathBuf::from(folder).join(name)
}

/// A daemon that reports on standard output that it is ready. It is killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    log: Option<Arc<Log>>,
}

/// What a daemon has written to standard error so far.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    written: Notify,
}

impl Daemon {
    /// Starts a program with these arguments.
    #[must_use]
    pub fn start(program: impl AsRef<Path>, arguments: &[&str]) -> Self {
        let mut command = Command::new(program.as_ref());
        command.args(arguments);
        Self::spawn(command)
    }

    /// Starts a program whose standard error goes to `log`.
    #[must_use]
    pub fn start_logging(program: impl AsRef<Path>, arguments: &[&str], log: Stdio) -> Self {
        let mut command = Command::new(program.as_ref());
        command.args(arguments).stderr(log);
        Self::spawn(command)
    }

    /// Starts a program whose standard error is read for [`logged`](Self::logged).
    #[must_use]
    pub fn start_logged(mut command: Command) -> Self {
        command.stderr(Stdio::piped());
        let mut daemon = Self::spawn(command);
        let stderr = daemon.child.stderr.take().expect("standard error is piped");
        let log = Arc::<Log>::default();
        daemon.log = Some(log.clone());
        // The task ends with the daemon.
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                log.lines.lock().expect("nobody panics with it").push(line);
                log.written.notify_waiters();
            }
        });
        daemon
    }

    fn spawn(mut command: Command) -> Self {
        if !asks_for_http(&command) {
            command.env("XMSG_PROXY_ADMIN", "off");
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("standard output is piped");
        Self { child, lines: BufReader::new(stdout).lines(), log: None }
    }

    /// Waits for a log line that contains all of these words, and returns the first one.
    pub async fn logged(&self, words: &[&str]) -> String {
        let log = self.log.as_ref().expect("it was started with its log");
        let found = async {
            loop {
                let mut written = std::pin::pin!(log.written.notified());
                written.as_mut().enable();
                let found =
                    self.log_lines().into_iter().find(|line| words.iter().all(|word| line.contains(word)));
                if let Some(line) = found {
                    return line;
                }
                written.await;
            }
        };
        within(&format!("a log line with {words:?}"), found).await
    }

    /// Returns the lines that the daemon has logged so far.
    #[must_use]
    pub fn log_lines(&self) -> Vec<String> {
        let log = self.log.as_ref().expect("it was started with its log");
        log.lines.lock().expect("nobody panics with it").clone()
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Waits for the next line of the daemon's standard output.
    pub async fn line(&mut self) -> String {
        within("a line", self.lines.next_line()).await.expect("UTF-8").expect("it runs")
    }

    /// Sends a signal to the daemon, such as `TERM`.
    pub async fn signal(&self, name: &str) {
        let pid = self.pid();
        let kill = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status();
        assert!(within("kill", kill).await.expect("sh").success());
    }

    /// Waits for the end of the daemon.
    pub async fn end(&mut self) -> ExitStatus {
        within("its end", self.child.wait()).await.expect("it ran")
    }
}

/// Returns whether a command, or the settings file that it names, says something about HTTP. A proxy has an
/// HTTP server by default. A test that does not ask for the server runs its proxy without one, so that it
/// neither takes a port nor writes a line.
fn asks_for_http(command: &Command) -> bool {
    let command = command.as_std();
    let in_environment = command.get_envs().any(|(name, _)| name == "XMSG_PROXY_ADMIN");
    let mut arguments = command.get_args().filter_map(|argument| argument.to_str());
    let in_file = |path: &str| {
        Path::new(path).extension().is_some_and(|kind| kind == "toml")
            && std::fs::read_to_string(path).is_ok_and(|text| text.contains("[admin]"))
    };
    in_environment || arguments.any(|argument| argument.starts_with("--admin") || in_file(argument))
}

/// Runs a program to its end.
pub async fn run(program: impl AsRef<Path>, arguments: &[&str]) -> Output {
    let mut command = Command::new(program.as_ref());
    command.args(arguments);
    finish(command).await
}

/// Runs a prepared command to its end.
pub async fn finish(mut command: Command) -> Output {
    command.stdin(Stdio::null()).kill_on_drop(true);
    within("a command", command.output()).await.expect("the program starts")
}
