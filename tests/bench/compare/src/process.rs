//! Child processes: communication with them, the resources that they use, and their end.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// The time limit for the start of a process, and for the silence of a server.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A process that exchanges lines. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a process. Its stderr is shown only if `show_errors` is true.
    pub fn start(name: impl Into<String>, mut command: Command, show_errors: bool) -> Result<Self> {
        let name = name.into();
        let errors = if show_errors { Stdio::inherit() } else { Stdio::null() };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let stdin = child.stdin.take().context("stdin was asked for")?;
        let stdout = child.stdout.take().context("stdout was asked for")?;
        let (send, lines) = channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            while lines.next().is_some_and(|line| send.send(line).is_ok()) {}
        });
        Ok(Self { name, child, stdin, lines })
    }

    /// Writes a line to the process.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let told = writeln!(self.stdin, "{line}").and_then(|()| self.stdin.flush());
        told.with_context(|| format!("{} has ended", self.name))
    }

    /// Waits for a line that starts with this word, and returns the rest of the line.
    pub fn expect(&self, word: &str, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(word) {
                        return Ok(rest.trim().to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: no `{word}` within {:.1} s", self.name, limit.as_secs_f64())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("{} has ended", self.name),
            }
        }
    }

    /// Waits until the process reports that it is ready.
    pub fn expect_ready(&self, limit: Duration) -> Result<()> {
        self.expect("ready", limit).map(drop)
    }

    /// Waits until these ports accept connections.
    pub fn expect_ports(&mut self, ports: impl Iterator<Item = u16>) -> Result<()> {
        let end = Instant::now() + START_LIMIT;
        for port in ports {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            while TcpStream::connect(address).is_err() {
                ensure!(self.is_running(), "{} ended before it listened", self.name);
                ensure!(Instant::now() < end, "{} did not listen within {START_LIMIT:?}", self.name);
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns the processor time of all threads of the process so far.
    pub fn cpu(&self) -> Result<Duration> {
        let time = clock_getcpuclockid(Pid::from_raw(self.child.id().cast_signed())).and_then(clock_gettime);
        time.map(Duration::from).with_context(|| format!("{} has ended", self.name))
    }

    /// Returns the largest resident memory so far, in MiB.
    pub fn peak_memory_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        Ok(kib.with_context(|| format!("{} has ended", self.name))? / 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the first of three consecutive free ports.
pub fn free_ports() -> Result<u16> {
    for _ in 0..1000 {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if port < 65_000 && (0..3).all(|offset| TcpListener::bind(("127.0.0.1", port + offset)).is_ok()) {
            return Ok(port);
        }
    }
    bail!("there are no three free ports in a row")
}
