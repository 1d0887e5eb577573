//! Processes that end with the test process, in whatever way that ends.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;

use crate::within;

/// Lines of output that are kept; of more, the oldest are forgotten.
const LINES: usize = 10_000;
/// Lines of output in a message about a process that did not do what it should.
const TAIL: usize = 40;

/// A command for [`Kept::start`]: the kernel kills the program when the thread that started it ends.
///
/// The death signal survives the programs that replace each other in one process (shell script, Erlang's launcher,
/// Erlang itself), so that it reaches the one that listens. It is not passed on to what that one starts, which ends
/// when its input does. In the microseconds before `setpriv` has asked for the signal, the program would be left
/// behind.
pub(super) fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program.as_ref());
    command
}

/// A process with a thread of its own, which starts it, reads its output and waits for its end. It is killed when
/// dropped.
///
/// The thread is needed twice. The death signal follows the thread that started the process, and that of a test ends
/// with the test, while a shared broker has to outlive it. And a child of tokio belongs to the runtime of one test.
#[derive(Debug)]
pub(super) struct Kept {
    name: String,
    pid: Pid,
    output: Arc<watch::Sender<Output>>,
    keeper: Option<JoinHandle<()>>,
}

/// What is known about a process.
#[derive(Debug, Default)]
struct Output {
    lines: VecDeque<String>,
    status: Option<ExitStatus>,
}

impl Kept {
    /// Starts it; `name` is for messages.
    pub(super) fn start(name: impl Into<String>, mut command: Command) -> Self {
        let name = name.into();
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let errors = writer.try_clone().expect("a descriptor");
        command.stdin(Stdio::null()).stdout(writer).stderr(errors);
        let output = Arc::new(watch::Sender::new(Output::default()));
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let told = output.clone();
        let keeper = std::thread::spawn(move || {
            let spawned = command.spawn();
            // It holds the writing end of the pipe, which would never come to its end.
            drop(command);
            let mut child = match spawned {
                Ok(child) => child,
                Err(error) => return drop(started.send(Err(error))),
            };
            let _ = started.send(Ok(child.id()));
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                told.send_modify(|output| {
                    output.lines.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
                    if output.lines.len() > LINES {
                        output.lines.pop_front();
                    }
                });
            }
            let pid = Pid::from_child(&child);
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            // Its number is free from here on, which nobody notices before its end.
            told.send_modify(|output| output.status = Some(child.wait().expect("it was started here")));
        });
        let pid = start.recv().expect("the thread tells").unwrap_or_else(|error| panic!("{name}: {error}"));
        let pid = Pid::from_raw(pid.cast_signed()).expect("no process has the number 0");
        Self { name, pid, output, keeper: Some(keeper) }
    }

    /// The number of the process.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Sends it a signal, unless it has ended.
    pub(super) fn signal(&self, signal: Signal) {
        // While this is borrowed, its number is not given to somebody else.
        let output = self.output.borrow();
        if output.status.is_none() {
            kill_process(self.pid, signal).expect("it is a child of this process");
        }
    }

    /// Stops it as a job is stopped, and waits until it is.
    pub(super) async fn pause(&self) {
        self.signal(Signal::STOP);
        let is_stopped = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
            // After the name, which is in parentheses and may have some.
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        within("a stop", async {
            while !is_stopped() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    /// Waits for its end, and for that of all that write where it did.
    pub(super) async fn ended(&self) -> ExitStatus {
        let mut output = self.output.subscribe();
        let what = format!("the end of {}", self.name);
        let ended = within(&what, output.wait_for(|output| output.status.is_some())).await;
        ended.expect("the sender is here").status.expect("it was waited for")
    }

    /// Its first line of output that contains all of these words; waits for it, but not longer than `patience`.
    pub(super) async fn line(&self, words: &[&str], patience: Duration) -> String {
        let mut output = self.output.subscribe();
        let find = |output: &Output| {
            output.lines.iter().find(|line| words.iter().all(|word| line.contains(word))).cloned()
        };
        let wait = output.wait_for(|output| output.status.is_some() || find(output).is_some());
        if let Ok(output) = tokio::time::timeout(patience, wait).await {
            let output = output.expect("the sender is here");
            if let Some(line) = find(&output) {
                return line;
            }
        }
        panic!("{} did not write a line with {words:?}; it wrote at last:\n{}", self.name, self.tail());
    }

    /// Its last lines of output, and whether it has ended.
    pub(super) fn tail(&self) -> String {
        let output = self.output.borrow();
        let skipped = output.lines.len().saturating_sub(TAIL);
        let lines: Vec<&str> = output.lines.iter().skip(skipped).map(String::as_str).collect();
        match output.status {
            Some(status) => format!("{}\n({status})", lines.join("\n")),
            None => lines.join("\n"),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        // What it had open is closed before its folder is removed.
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}
