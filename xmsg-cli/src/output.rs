//! Standard output, through a large buffer, and notes on standard error.

use std::error::Error as _;
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::time::Instant;
use xmsg_core::ProxyAddress;
use xmsg_core::text::{escaped, json_escaped};
use xmsg_zmq::{DropReason, SocketEvent, SocketEvents};

/// Bytes that are collected before they are written.
const BUFFER_LEN: usize = 256 << 10;

/// Standard output. Nothing appears before [`flush`](Self::flush) or before the buffer is full.
#[derive(Debug)]
pub(crate) struct Output {
    // Not `io::Stdout`, which goes through a line buffer.
    stdout: File,
    buffer: Vec<u8>,
}

impl Output {
    pub(crate) fn stdout() -> anyhow::Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned().context("standard output is not open")?;
        Ok(Self { stdout: stdout.into(), buffer: Vec::with_capacity(2 * BUFFER_LEN) })
    }

    /// Where to append. [`written`](Self::written) is to be called after each message.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Writes the buffer if it is full. May block its thread, while whoever reads our output is slow.
    pub(crate) fn written(&mut self) -> anyhow::Result<()> {
        if self.buffer.len() >= BUFFER_LEN { self.flush() } else { Ok(()) }
    }

    /// Appends bytes; of many, no copy is made.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if bytes.len() < BUFFER_LEN {
            self.buffer.extend_from_slice(bytes);
            return self.written();
        }
        self.flush()?;
        blocking(|| self.stdout.write_all(bytes))
    }

    /// Appends a value of JSON and a newline. What peers sent may be in it, so it is safe for a terminal.
    pub(crate) fn json(&mut self, value: &Value) -> anyhow::Result<()> {
        self.buffer.extend_from_slice(json_escaped(&value.to_string()).as_bytes());
        self.buffer.push(b'\n');
        self.written()
    }

    /// Writes what is in the buffer.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let result = blocking(|| self.stdout.write_all(&self.buffer));
        self.buffer.clear();
        // One large message must not hold its memory for ever.
        self.buffer.shrink_to(2 * BUFFER_LEN);
        result
    }
}

/// A write that may take long: the tasks of this thread go to another one.
fn blocking(write: impl FnOnce() -> io::Result<()>) -> anyhow::Result<()> {
    tokio::task::block_in_place(write).context("cannot write to standard output")
}

/// Waits until nobody can read our output any more. Where that cannot be seen (a file, another system than Linux), for
/// ever; there, the next write tells.
pub(crate) async fn reader_gone() {
    #[cfg(target_os = "linux")]
    {
        use tokio::io::Interest;
        use tokio::net::unix::pipe::Sender;
        // Only watched: to make it non-blocking, as for writing, would do so for everybody who shares it.
        if let Ok(stdout) = io::stdout().as_fd().try_clone_to_owned()
            && let Ok(stdout) = Sender::from_owned_fd_unchecked(stdout)
            && stdout.ready(Interest::ERROR).await.is_ok()
        {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// Says that a file can't be written because the folder for it is not there, before anything else is done.
pub(crate) fn check_folder(file: &Path) -> anyhow::Result<()> {
    let file_name = file.display();
    if file.is_dir() {
        bail!("cannot write {file_name}: it is a folder: name a file");
    }
    match file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) if !folder.is_dir() => {
            let what = if folder.exists() { "is no folder" } else { "is not there: make it" };
            bail!("cannot write {file_name}: the folder {} {what}, or name another one", folder.display())
        }
        _ => Ok(()),
    }
}

/// Whether only errors and losses are told: `--quiet`.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on, notes are left out.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether somebody at a terminal sees [notes](note), now.
pub(crate) fn notes_are_seen() -> bool {
    !QUIET.load(Ordering::Relaxed) && io::stderr().is_terminal()
}

/// Says something on standard error, unless that was not wanted.
pub(crate) fn note(text: impl fmt::Display) {
    if !QUIET.load(Ordering::Relaxed) {
        warn(text);
    }
}

/// Says what failed or was lost. With standard error closed there is nobody to tell.
pub(crate) fn warn(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "xmsg: {}", escaped(&text.to_string()));
}

/// Notes of messages that the proxy dropped appear at most this often.
const DROPS_INTERVAL: Duration = Duration::from_secs(1);

/// Tells when the connection to the proxy is lost and when it is back, and what the proxy dropped; never returns.
pub(crate) async fn note_connection(mut events: SocketEvents, proxy: &ProxyAddress) {
    let mut lost = false;
    let mut drops = DropNotes::default();
    loop {
        let event = match drops.due() {
            None => events.next().await,
            Some(due) => {
                let Ok(event) = tokio::time::timeout_at(due, events.next()).await else {
                    drops.note();
                    continue;
                };
                event
            }
        };
        let Some(event) = event else { break };
        match event {
            SocketEvent::DroppedByPeer { reason, total, .. } => drops.add(reason, total),
            SocketEvent::Disconnected { error, .. } => {
                lost = true;
                let reason = error.source().map(ToString::to_string).unwrap_or_default();
                note(format_args!("the connection to {proxy} was lost ({reason}): trying to connect again"));
            }
            SocketEvent::MessageDropped { topic, size, reason, .. } => {
                let topic = topic.escape_ascii();
                warn(format_args!("a message to {topic} with {size} bytes was dropped: {reason}"));
            }
            SocketEvent::Connected { .. } if std::mem::take(&mut lost) => {
                note(format_args!("connected to {proxy} again"));
            }
            _ => {}
        }
    }
    drop(drops);
    std::future::pending::<()>().await;
}

/// What the proxy has dropped for us, and what of it was noted. Totals, as events may be missed.
#[derive(Debug, Default)]
struct DropNotes {
    /// Because we were too slow, and because they were too large.
    total: [u64; 2],
    noted: [u64; 2],
    last: Option<Instant>,
}

impl DropNotes {
    fn add(&mut self, reason: DropReason, total: u64) {
        match reason {
            DropReason::TooLarge => self.total[1] = total,
            _ => self.total[0] = total,
        }
    }

    /// When the next note is to appear, if there is something to note.
    fn due(&self) -> Option<Instant> {
        let is_new = self.total != self.noted;
        is_new.then(|| self.last.map_or_else(Instant::now, |last| last + DROPS_INTERVAL))
    }

    fn note(&mut self) {
        let [slow, large] = [0, 1].map(|reason| self.total[reason].saturating_sub(self.noted[reason]));
        for (count, why) in [(slow, "this subscriber is too slow"), (large, "they are above its limits")] {
            if count > 0 {
                let verb = if count == 1 { "was" } else { "were" };
                warn(format_args!("{} {verb} dropped by the proxy: {why}", counted(count, "message")));
            }
        }
        (self.noted, self.last) = (self.total, Some(Instant::now()));
    }
}

impl Drop for DropNotes {
    /// Whoever ends before the next note is due hears of the rest, too.
    fn drop(&mut self) {
        if self.total != self.noted {
            self.note();
        }
    }
}

/// The result of `work`; meanwhile `notes` is run, which never ends.
pub(crate) async fn or_noting<T>(work: impl Future<Output = T>, notes: impl Future<Output = ()>) -> T {
    tokio::select! {
        result = work => result,
        () = notes => std::future::pending().await,
    }
}

/// Whether colours are welcome on a terminal (<https://no-color.org>).
pub(crate) fn colour_wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A number with a comma after each three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number that is not negative as a whole one, with a comma after each three digits.
pub(crate) fn rounded(number: f64) -> String {
    // The cast saturates.
    #[allow(clippy::cast_sign_loss, reason = "it is not negative, and would be 0 if it were")]
    grouped(number.round() as u64)
}

/// A rate as a whole number.
pub(crate) fn per_second(count: u64, time: Duration) -> u64 {
    let rate = u128::from(count) * 1_000_000_000 / time.as_nanos().max(1);
    rate.try_into().unwrap_or(u64::MAX)
}

/// `1 message`, `2 messages`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567"), (100_000, "100,000")]
        {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(per_second(3000, Duration::from_millis(1500)), 2000);
        assert_eq!(counted(1, "message"), "1 message");
        assert_eq!(counted(2000, "message"), "2,000 messages");
    }
}
