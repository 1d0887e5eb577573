//! Foreign peers in Python: libzmq through pyzmq.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::within;

/// A running script of `tests/peers`. It is killed when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    name: String,
}

impl Peer {
    /// Starts a script with these arguments.
    #[must_use]
    pub fn start(script: &str, arguments: &[&str]) -> Self {
        let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let python = std::env::var_os("XMSG_TEST_PYTHON")
            .map_or_else(|| tests.join(".venv/bin/python"), PathBuf::from);
        assert!(
            python.exists(),
            "there is no {}: run the tests with ./tests/run, which sets up Python with pyzmq",
            python.display()
        );
        let path = tests.join("peers").join(script);
        let mut child = Command::new(python)
            .arg(path)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Python starts");
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

    /// Waits for its end, which must be a success.
    pub async fn finish(mut self) {
        drop(self.child.stdin.take());
        let status = within("the end of a script", self.child.wait()).await.expect("it ran");
        assert!(status.success(), "{} failed: {status}", self.name);
    }
}
