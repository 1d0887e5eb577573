//! Child processes: the daemons and commands as a user starts them.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::within;

/// A program of this project, in the folder that `tests/run` has it built to.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let folder = std::env::var_os("XMSG_BIN_DIR").expect("XMSG_BIN_DIR: run the tests with ./tests/run");
    PathBuf::from(folder).join(name)
}

/// A daemon that says on standard output when it is ready. It is killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Daemon {
    /// Starts it.
    #[must_use]
    pub fn start(program: impl AsRef<Path>, arguments: &[&str]) -> Self {
        Self::start_logging(program, arguments, Stdio::inherit())
    }

    /// The same, with its standard error going somewhere else.
    #[must_use]
    pub fn start_logging(program: impl AsRef<Path>, arguments: &[&str], log: Stdio) -> Self {
        let mut child = Command::new(program.as_ref())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("standard output is piped");
        Self { child, lines: BufReader::new(stdout).lines() }
    }

    /// The next line of its standard output.
    pub async fn line(&mut self) -> String {
        within("a line", self.lines.next_line()).await.expect("UTF-8").expect("it runs")
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends it a signal, such as `TERM`.
    pub async fn signal(&self, name: &str) {
        let pid = self.pid();
        let kill = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status();
        assert!(within("kill", kill).await.expect("sh").success());
    }

    /// Waits for its end.
    pub async fn end(&mut self) -> ExitStatus {
        within("its end", self.child.wait()).await.expect("it ran")
    }
}

/// Runs a command to its end.
pub async fn run(program: impl AsRef<Path>, arguments: &[&str]) -> Output {
    let mut command = Command::new(program.as_ref());
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    within("a command", command.output()).await.expect("the program starts")
}
