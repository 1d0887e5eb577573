//! Peers with other ZeroMQ implementations: libzmq through pyzmq, and JeroMQ.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::within;

/// Returns the Python interpreter that has the modules that the scripts need.
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

/// Returns a command that starts a program as systemd does, with listening sockets from descriptor 3 on.
/// `names` are their names, such as `a:b:c`. The sockets named `proxy` have consecutive ports.
#[must_use]
pub fn socket_activated(names: &str, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(python());
    command.arg(tests().join("peers/systemd.py")).args([names, program]).args(arguments);
    command
}

/// A running script of `tests/peers`. It is killed when this is dropped.
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
        let mut python = Command::new(python());
        python.arg(self::script(script));
        Self::start(python, script, arguments)
    }

    /// Starts a Java program with these arguments, from its source file.
    #[must_use]
    pub fn java(source: &str, arguments: &[&str]) -> Self {
        let jar = std::env::var_os("XMSG_TEST_JEROMQ")
            .map_or_else(|| PathBuf::from("/usr/share/java/jeromq.jar"), PathBuf::from);
        assert!(
            jar.exists(),
            "there is no {}: run the tests with ./tests/run, which sets up Java with JeroMQ",
            jar.display()
        );
        let class = source.strip_suffix(".java").expect("the source of a class of that name");
        let mut java = Command::new("java");
        // The program does not run long enough for more optimization.
        java.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"]);
        java.arg(format!("{}:{}", jar.display(), classes(&jar).display())).arg(class);
        Self::start(java, source, arguments)
    }

    fn start(mut program: Command, script: &str, arguments: &[&str]) -> Self {
        let mut child = program
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{script} does not start: {error}"));
        let stdout = child.stdout.take().expect("standard output is piped");
        Self { child, lines: BufReader::new(stdout).lines(), name: script.to_owned() }
    }

    /// Waits for the next line, which must start with `word`. Returns the other words of the line.
    pub async fn expect(&mut self, word: &str) -> Vec<String> {
        let what = format!("{} says {word:?}", self.name);
        let line = within(&what, self.lines.next_line()).await.expect("UTF-8");
        let line = line.unwrap_or_else(|| panic!("{what}: it ended instead"));
        let mut words = line.split_whitespace().map(str::to_owned);
        assert_eq!(words.next().as_deref(), Some(word), "{what}: it said {line:?}");
        words.collect()
    }

    /// Skips lines until one is equal to `wanted`.
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

    /// Writes a line to the standard input of the script.
    pub async fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is open until `finish`");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
        stdin.flush().await.expect("it reads");
    }

    /// Waits for the end of the script, which must exit with success.
    pub async fn finish(mut self) {
        drop(self.child.stdin.take());
        let status = within("the end of a script", self.child.wait()).await.expect("it ran");
        assert!(status.success(), "{} failed: {status}", self.name);
    }
}

/// Returns the folder with all compiled Java programs of `tests/peers`. They are compiled once for all tests
/// of a binary, because compiling a program takes longer than running it.
fn classes(jar: &Path) -> &'static Path {
    static CLASSES: OnceLock<TempDir> = OnceLock::new();
    let compile = || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let sources = std::fs::read_dir(tests().join("peers")).expect("there are peers");
        let sources = sources.map(|entry| entry.expect("it is read").path());
        let mut javac = std::process::Command::new("javac");
        javac.arg("-cp").arg(jar).arg("-d").arg(folder.path());
        javac.args(sources.filter(|path| path.extension().is_some_and(|extension| extension == "java")));
        let status = javac.status().unwrap_or_else(|error| panic!("javac does not start: {error}"));
        assert!(status.success(), "javac: {status}");
        folder
    };
    CLASSES.get_or_init(compile).path()
}

/// Returns the path of a script of `tests/peers`.
pub(crate) fn script(name: &str) -> PathBuf {
    tests().join("peers").join(name)
}

/// Returns the folder of the tests.
fn tests() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
