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
use xmsg_core::text::{escaped, floor_char_boundary, json_escaped};
use xmsg_zmq::{DropReason, SocketEvent, SocketEvents};

/// The number of bytes that are collected before they are written.
const BUFFER_LEN: usize = 256 << 10;
/// The number of bytes of received JSON that are looked at together.
const PIECE_LEN: usize = 16 << 10;

/// Standard output. Text appears only when the buffer is full or [`flush`](Self::flush) is called.
#[derive(Debug)]
pub(crate) struct Output {
    // This is not `io::Stdout`, which uses a line buffer.
    stdout: File,
    buffer: Vec<u8>,
}

impl Output {
    pub(crate) fn stdout() -> anyhow::Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned().context("standard output is not open")?;
        Ok(Self { stdout: stdout.into(), buffer: Vec::with_capacity(2 * BUFFER_LEN) })
    }

    /// Returns the buffer to append to. Call [`written`](Self::written) after each message.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Writes the buffer if it is full. It may block its thread while the reader of our output is slow.
    pub(crate) fn written(&mut self) -> anyhow::Result<()> {
        if self.buffer.len() >= BUFFER_LEN { self.flush() } else { Ok(()) }
    }

    /// Appends bytes. Large pieces are written without a copy.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.put(bytes).context(FAILED)
    }

    /// Appends what is written to the writer that `work` gets. The buffer is written whenever it is full, so
    /// that any amount takes no more memory.
    pub(crate) fn write_with(
        &mut self,
        work: impl FnOnce(&mut Sink<'_>) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        work(&mut Sink(self)).context(FAILED)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() < BUFFER_LEN {
            self.buffer.extend_from_slice(bytes);
            return if self.buffer.len() >= BUFFER_LEN { self.send() } else { Ok(()) };
        }
        self.send()?;
        blocking(|| self.stdout.write_all(bytes))
    }

    /// Appends a JSON value and a newline. Text from peers in it is escaped for terminals.
    pub(crate) fn json(&mut self, value: &Value) -> anyhow::Result<()> {
        self.buffer.extend_from_slice(json_escaped(&value.to_string()).as_bytes());
        self.buffer.push(b'\n');
        self.written()
    }

    /// Appends JSON that was received as one line. Text from peers in it is escaped for terminals.
    pub(crate) fn json_text(&mut self, json: &str) -> anyhow::Result<()> {
        let (mut rest, mut compact) = (json, Compact::default());
        while !rest.is_empty() {
            // A long document is not copied as a whole.
            let (piece, next) = rest.split_at(floor_char_boundary(rest, PIECE_LEN));
            let kept: String = piece.chars().filter(|c| compact.keeps(*c)).collect();
            self.write(json_escaped(&kept).as_bytes())?;
            rest = next;
        }
        self.write(b"\n")
    }

    /// Writes the content of the buffer.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        self.send().context(FAILED)
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let result = blocking(|| self.stdout.write_all(&self.buffer));
        self.buffer.clear();
        // The memory of one large message is released again.
        self.buffer.shrink_to(2 * BUFFER_LEN);
        result
    }
}

/// Leaves out the white space between the tokens of JSON, which may contain line ends.
#[derive(Debug, Default)]
struct Compact {
    is_in_string: bool,
    is_escaped: bool,
}

impl Compact {
    /// Returns whether this character, which follows the one before, has a meaning.
    fn keeps(&mut self, character: char) -> bool {
        let is_escaped = std::mem::take(&mut self.is_escaped);
        match character {
            '"' if !is_escaped => self.is_in_string = !self.is_in_string,
            '\\' if !is_escaped => self.is_escaped = true,
            _ => {}
        }
        self.is_in_string || !character.is_ascii_whitespace()
    }
}

/// Runs a write that may take long. The tasks of this thread move to another one in the meantime.
fn blocking(write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    tokio::task::block_in_place(write)
}

/// What has failed when nothing can be written.
const FAILED: &str = "cannot write to standard output";

/// A writer to an [`Output`].
#[derive(Debug)]
pub(crate) struct Sink<'a>(&'a mut Output);

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until the reader of our output has closed it. Where this cannot be detected (a file, or another
/// system than Linux), it waits forever; the next write then fails.
pub(crate) async fn output_closed() {
    #[cfg(target_os = "linux")]
    {
        use tokio::io::Interest;
        use tokio::net::unix::pipe::Sender;
        // The descriptor is only watched. Making it non-blocking, which writing would need, would affect all
        // processes that share it.
        if let Ok(stdout) = io::stdout().as_fd().try_clone_to_owned()
            && let Ok(stdout) = Sender::from_owned_fd_unchecked(stdout)
            && stdout.ready(Interest::ERROR).await.is_ok()
        {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// Checks that the folder of a file exists, so that this error is reported before anything else is done.
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

/// Whether only errors and losses are reported (`--quiet`).
static QUIET: AtomicBool = AtomicBool::new(false);

/// Suppresses notes from now on.
pub(crate) fn silence_notes() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Returns whether notes are written to a terminal.
pub(crate) fn notes_are_seen() -> bool {
    !QUIET.load(Ordering::Relaxed) && io::stderr().is_terminal()
}

/// Writes a note to standard error, unless `--quiet` was given.
pub(crate) fn note(text: impl fmt::Display) {
    if !QUIET.load(Ordering::Relaxed) {
        warn(text);
    }
}

/// Reports a failure or a loss. If standard error is closed, the report is dropped.
pub(crate) fn warn(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "xmsg: {}", escaped(&text.to_string()));
}

/// The shortest time between two notes about messages that the proxy dropped.
const DROPS_INTERVAL: Duration = Duration::from_secs(1);

/// Reports when the connection to the proxy is lost and restored, and what the proxy dropped. It never
/// returns.
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

/// The counts of messages that the proxy dropped for us, and those that were reported. They are totals,
/// because events may be missed.
#[derive(Debug, Default)]
struct DropNotes {
    /// The first count is for a subscriber that is too slow, and the second for messages that are too large.
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

    /// Returns when the next note is to appear, if there is anything to report.
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
    /// Reports the rest if the command ends before the next note is due.
    fn drop(&mut self) {
        if self.total != self.noted {
            self.note();
        }
    }
}

/// Returns the result of `work`. Runs `notes`, which never ends, in the meantime.
pub(crate) async fn with_notes<T>(work: impl Future<Output = T>, notes: impl Future<Output = ()>) -> T {
    tokio::select! {
        result = work => result,
        () = notes => std::future::pending().await,
    }
}

/// Returns whether the environment allows colours on a terminal (<https://no-color.org>).
pub(crate) fn colour_wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Formats a number with commas between groups of three digits.
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

/// Formats a number that is not negative as a whole number, with commas between groups of three digits.
pub(crate) fn rounded(number: f64) -> String {
    // The cast saturates.
    #[allow(clippy::cast_sign_loss, reason = "it is not negative, and would be 0 if it were")]
    grouped(number.round() as u64)
}

/// Returns a rate per second as a whole number.
pub(crate) fn per_second(count: u64, time: Duration) -> u64 {
    let rate = u128::from(count) * 1_000_000_000 / time.as_nanos().max(1);
    rate.try_into().unwrap_or(u64::MAX)
}

/// Formats a count with its noun: `1 message`, `2 messages`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_on_one_line_means_the_same() {
        let text = "{ \"a \\\" b\\\\\" :\n [ 1 ,\t\" \\\\\\\" \" ] }\r\n";
        let mut compact = Compact::default();
        let line: String = text.chars().filter(|c| compact.keeps(*c)).collect();
        assert_eq!(line, r#"{"a \" b\\":[1," \\\" "]}"#);
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(read(&line), read(text));
    }

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
