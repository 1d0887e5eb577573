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

/// The largest number of output lines that are kept. Beyond it, the oldest are dropped.
const LINES: usize = 10_000;
/// The number of output lines in a message about a process that failed.
const TAIL: usize = 40;

/// Returns a command for [`Kept::start`]. The kernel kills the program when the thread that started it ends.
///
/// The death signal stays in effect when programs replace each other in one process (shell script, Erlang's
/// launcher, Erlang itself), so that it reaches the one that listens. Child processes do not inherit it, but
/// they end when their input does. If the thread ends in the microseconds before `setpriv` has asked for the
/// signal, the program survives.
pub(super) fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program.as_ref());
    command
}

/// A process with a thread that starts it, reads its output and waits for its end. It is killed when this is
/// dropped.
///
/// There are two reasons for the thread. The death signal is bound to the thread that started the process.
/// The thread of a test ends with the test, while a shared broker has to outlive it. Secondly, a child
/// process of tokio belongs to the runtime of one test.
#[derive(Debug)]
pub(super) struct Kept {
    name: String,
    pid: Pid,
    output: Arc<watch::Sender<Output>>,
    keeper: Option<JoinHandle<()>>,
}

/// The output and the exit status of a process.
#[derive(Debug, Default)]
struct Output {
    lines: VecDeque<String>,
    status: Option<ExitStatus>,
}

impl Kept {
    /// Starts the process. `name` is used in messages.
    pub(super) fn start(name: impl Into<String>, mut command: Command) -> Self {
        let name = name.into();
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let errors = writer.try_clone().expect("a descriptor");
        command.stdin(Stdio::null()).stdout(writer).stderr(errors);
        let output = Arc::new(watch::Sender::new(Output::default()));
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let output_sender = output.clone();
        let keeper = std::thread::spawn(move || {
            let spawned = command.spawn();
            // The command holds the writing end of the pipe, and the reader would never see the end of the
            // pipe.
            drop(command);
            let mut child = match spawned {
                Ok(child) => child,
                Err(error) => return drop(started.send(Err(error))),
            };
            let _ = started.send(Ok(child.id()));
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                output_sender.send_modify(|output| {
                    output.lines.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
                    if output.lines.len() > LINES {
                        output.lines.pop_front();
                    }
                });
            }
            let pid = Pid::from_child(&child);
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            // The process id may be reused after this call. But the status is set under the same lock, so
            // nobody uses the old id.
            output_sender
                .send_modify(|output| output.status = Some(child.wait().expect("it was started here")));
        });
        let pid = start.recv().expect("the thread tells").unwrap_or_else(|error| panic!("{name}: {error}"));
        let pid = Pid::from_raw(pid.cast_signed()).expect("no process has the number 0");
        Self { name, pid, output, keeper: Some(keeper) }
    }

    /// Returns the process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Sends a signal to the process, unless it has ended.
    pub(super) fn signal(&self, signal: Signal) {
        // While this is borrowed, the process is not reaped, so its id can't belong to another process.
        let output = self.output.borrow();
        if output.status.is_none() {
            kill_process(self.pid, signal).expect("it is a child of this process");
        }
    }

    /// Stops the process with SIGSTOP, and waits until it is stopped.
    pub(super) async fn pause(&self) {
        self.signal(Signal::STOP);
        let is_stopped = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
            // The state follows the name, which is in parentheses and may contain parentheses itself.
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        within("a stop", async {
            while !is_stopped() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    /// Waits for the end of the process and of all processes that write to the same output.
    pub(super) async fn ended(&self) -> ExitStatus {
        let mut output = self.output.subscribe();
        let what = format!("the end of {}", self.name);
        let ended = within(&what, output.wait_for(|output| output.status.is_some())).await;
        ended.expect("the sender is here").status.expect("it was waited for")
    }

    /// Waits for a line of output that contains all of these words, at most for `patience`, and returns the
    /// first one.
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

    /// Returns the last lines of output, and the status if the process has ended.
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
        // All files of the process are closed before its folder is removed.
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}
