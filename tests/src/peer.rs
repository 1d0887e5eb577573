//! Foreign peers: libzmq, through pyzmq, and JeroMQ.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::within;

/// The Python that has what the scripts need.
#[must_use]
pub fn python() -> PathBuf {
    let python =
        std::env::var_os("XMSG_TEST_PYTHON").map_or_else(|| tests().join(".venv/bin/python"), PathBuf::from);
    assert!(
        python.exists(),
        "there is no {}: run the tests with ./tests/run, which sets up Python with pyzmq",
        python.display()
    );
    python
}

/// Starts a program with listening sockets of these names (`a:b:c`) from descriptor 3 on, as systemd does. Those named
/// `proxy` are at ports in a row.
#[must_use]
pub fn socket_activated(names: &str, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(python());
    command.arg(tests().join("peers/systemd.py")).args([names, program]).args(arguments);
    command
}

/// A running script of `tests/peers`. It is killed when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    name: String,
}

impl Peer {
    /// Starts a Python script with these arguments.
    #[must_use]
    pub fn python(script: &str, arguments: &[&str]) -> Self {
        Self::start(Command::new(python()), script, arguments)
    }

    /// Starts a Java program with these arguments, from its source.
    #[must_use]
    pub fn java(source: &str, arguments: &[&str]) -> Self {
        let jar = std::env::var_os("XMSG_TEST_JEROMQ")
            .map_or_else(|| PathBuf::from("/usr/share/java/jeromq.jar"), PathBuf::from);
        assert!(
            jar.exists(),
            "there is no {}: run the tests with ./tests/run, which sets up Java with JeroMQ",
            jar.display()
        );
        let mut java = Command::new("java");
        java.arg("-cp").arg(jar);
        Self::start(java, source, arguments)
    }

    fn start(mut interpreter: Command, script: &str, arguments: &[&str]) -> Self {
        let mut child = interpreter
            .arg(self::script(script))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{script} does not start: {error}"));
        let stdout = child.stdout.take().expect("standard output is piped");
        Self { child, lines: BufReader::new(stdout).lines(), name: script.to_owned() }
    }

    /// The words behind `word` in the next line, which must start with it.
    pub async fn expect(&mut self, word: &str) -> Vec<String> {
        let what = format!("{} says {word:?}", self.name);
        let line = within(&what, self.lines.next_line()).await.expect("UTF-8");
        let line = line.unwrap_or_else(|| panic!("{what}: it ended instead"));
        let mut words = line.split_whitespace().map(str::to_owned);
        assert_eq!(words.next().as_deref(), Some(word), "{what}: it said {line:?}");
        words.collect()
    }

    /// Passes over lines until one is this.
    pub async fn until(&mut self, wanted: &str) {
        let what = format!("{} says {wanted:?}", self.name);
        let lines = async {
            while let Some(line) = self.lines.next_line().await.expect("UTF-8") {
                if line == wanted {
                    return;
                }
            }
            panic!("{what}: it ended instead");
        };
        within(&what, lines).await;
    }

    /// Writes a line to its standard input.
    pub async fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is open until `finish`");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
        stdin.flush().await.expect("it reads");
    }

    /// Waits for its end, which must be a success.
    pub async fn finish(mut self) {
        drop(self.child.stdin.take());
        let status = within("the end of a script", self.child.wait()).await.expect("it ran");
        assert!(status.success(), "{} failed: {status}", self.name);
    }
}

/// A script of `tests/peers`.
pub(crate) fn script(name: &str) -> PathBuf {
    tests().join("peers").join(name)
}

/// The folder of the tests.
fn tests() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
