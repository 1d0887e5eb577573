//! Writes received messages to files, in its own thread.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use xmsg_core::control::{CONFIRMATION_TOPIC, CONTROL_TOPIC};

use super::block::Header;
use super::index::Count;
use super::writer::Writer;
use crate::exit::Usage;

/// The room for bytes that wait to be written, in units of [`UNIT`]. When it is used up, nothing more is read
/// from the proxy.
const QUEUE_UNITS: usize = 1024;
const UNIT: usize = 64 << 10;
/// Shorter batches are copied, so that a few bytes do not keep a large buffer alive.
const COPIED_MAX: usize = 16 << 10;
/// How long received messages wait before they are written. It is short, so that little is lost when the
/// process is killed.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// How often an idle thread checks the age of its file.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// The files of a recording, and when the next one begins.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) path: PathBuf,
    /// Whether existing files are overwritten.
    pub(crate) force: bool,
    pub(crate) max_size: Option<u64>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) is_compressed: bool,
}

impl Files {
    fn has_parts(&self) -> bool {
        self.max_size.is_some() || self.max_age.is_some()
    }

    /// Refuses to overwrite existing files, unless that was requested.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let there = if self.has_parts() { self.parts()? } else { Vec::from_iter(exists(&self.path)) };
        match there.first() {
            Some(path) if !self.force => Err(Usage(format!(
                "{} is there already: name another file, or overwrite it with --force",
                path.display()
            ))
            .into()),
            _ => Ok(()),
        }
    }

    /// Returns existing files that look like parts of this recording.
    fn parts(&self) -> anyhow::Result<Vec<PathBuf>> {
        let dir = match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let entries =
            fs::read_dir(dir).with_context(|| format!("cannot read the directory {}", dir.display()))?;
        let mut parts = Vec::new();
        for entry in entries.flatten() {
            if is_part(Path::new(&entry.file_name()), &self.path) {
                parts.push(entry.path());
            }
        }
        parts.sort();
        Ok(parts)
    }

    fn create(&self, part: u32) -> anyhow::Result<(PathBuf, File)> {
        let path = if part == 0 { self.path.clone() } else { numbered(&self.path, part) };
        let mut options = OpenOptions::new();
        options.write(true);
        // Other parts were cleared at the start: what is there by now is not ours, and may be a link.
        if self.force && part == 0 {
            options.create(true).truncate(true)
        } else {
            options.create_new(true)
        };
        let file = options.open(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok((path, file))
    }

    /// Removes parts of an earlier recording: together with the new ones, they would look like one recording.
    fn clear(&self) -> anyhow::Result<()> {
        if self.force && self.has_parts() {
            for path in self.parts()? {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn exists(path: &Path) -> Option<PathBuf> {
    path.symlink_metadata().is_ok().then(|| path.to_owned())
}

/// Adds the number of a part: `day.xmr` becomes `day.00001.xmr`. Such names sort in the order of the
/// recording.
pub(crate) fn numbered(path: &Path, part: u32) -> PathBuf {
    let mut name = path.file_stem().map(OsString::from).unwrap_or_default();
    name.push(format!(".{part:05}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

fn is_part(name: &Path, of: &Path) -> bool {
    let number = match of.extension() {
        Some(extension) if name.extension() != Some(extension) => return false,
        Some(_) => name.file_stem().and_then(|stem| Path::new(stem).extension()),
        None => name.extension(),
    };
    let number = number.and_then(|number| number.to_str()).filter(|number| number.len() >= 5);
    let number = number.filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
    number
        .and_then(|number| number.parse().ok())
        .is_some_and(|part| numbered(of, part).file_name() == Some(name.as_os_str()))
}

/// Messages that were received together, and their time.
#[derive(Debug)]
struct Batch {
    /// The messages as they were on the wire.
    wire: Bytes,
    time_ns: u64,
    _room: OwnedSemaphorePermit,
}

/// What is recorded of the received messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordOptions {
    /// The number of messages after which the recording ends.
    pub(crate) count: Option<u64>,
    /// Whether control requests of the protocol are recorded, too.
    pub(crate) control: bool,
}

/// What was recorded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) total: Count,
    /// The first and the last file, and the number of files.
    pub(crate) first: PathBuf,
    pub(crate) last: PathBuf,
    pub(crate) files: u32,
}

/// The counts of messages and bytes so far.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    pub(crate) fn count(&self) -> Count {
        Count { messages: self.messages.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// A handle of a thread that writes a recording.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// Has a capacity of as many batches as there are units of room, so that sending never blocks.
    sender: SyncSender<Batch>,
    room: Arc<Semaphore>,
    /// Received messages that were not handed to the thread yet.
    held: Option<(Bytes, u64)>,
    progress: Arc<Progress>,
}

/// Receives the result of the thread.
pub(crate) type Outcome = oneshot::Receiver<anyhow::Result<Recorded>>;

impl Recorder {
    /// Creates the first file and starts the thread.
    pub(crate) fn start(
        files: Files,
        start_ns: u64,
        wanted: RecordOptions,
    ) -> anyhow::Result<(Self, Outcome)> {
        files.clear()?;
        let (sender, receiver) = sync_channel(QUEUE_UNITS);
        let (done, outcome) = oneshot::channel();
        let progress = Arc::new(Progress::default());
        let mut thread = Thread {
            files,
            start_ns,
            wanted,
            recorded: Recorded::default(),
            part: None,
            progress: progress.clone(),
        };
        thread.begin_part()?;
        std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || {
                let _ = done.send(thread.run(&receiver));
            })
            .context("cannot start a thread that writes")?;
        let room = Arc::new(Semaphore::new(QUEUE_UNITS));
        Ok((Self { sender, room, held: None, progress }, outcome))
    }

    /// Takes received messages.
    pub(crate) fn take(&mut self, wire: Bytes, time_ns: u64) {
        let wire = if wire.len() < COPIED_MAX { Bytes::copy_from_slice(&wire) } else { wire };
        self.held = Some((wire, time_ns));
    }

    /// Hands the messages that were taken to the thread, when there is room. Dropping the future loses
    /// nothing. Returns `false` if the thread has ended.
    pub(crate) async fn flush_batch(&mut self) -> bool {
        let Some((wire, time_ns)) = &self.held else { return true };
        let units = wire.len().div_ceil(UNIT).clamp(1, QUEUE_UNITS) as u32;
        let Ok(permit) = self.room.clone().acquire_many_owned(units).await else { return false };
        let batch = Batch { wire: wire.clone(), time_ns: *time_ns, _room: permit };
        self.held = None;
        self.sender.send(batch).is_ok()
    }

    pub(crate) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }
}

/// A file that is being written.
#[derive(Debug)]
struct CurrentFile {
    path: PathBuf,
    writer: Writer<File>,
    begun: Instant,
}

#[derive(Debug)]
struct Thread {
    files: Files,
    start_ns: u64,
    wanted: RecordOptions,
    recorded: Recorded,
    part: Option<CurrentFile>,
    progress: Arc<Progress>,
}

impl Thread {
    fn run(mut self, receiver: &Receiver<Batch>) -> anyhow::Result<Recorded> {
        let result = self.receive(receiver).and_then(|()| self.end_part());
        match result {
            Ok(()) => Ok(self.recorded),
            Err(error) => {
                let written = self.recorded.total.messages
                    + self.part.as_ref().map_or(0, |part| part.writer.written().messages);
                let written = crate::output::counted(written, "message");
                Err(error.context(format!(
                    "the recording ends early; what was written can be read, {written} at least"
                )))
            }
        }
    }

    fn receive(&mut self, receiver: &Receiver<Batch>) -> anyhow::Result<()> {
        let mut flush_at: Option<Instant> = None;
        loop {
            let wait = flush_at.map_or(IDLE_INTERVAL, |at| at.saturating_duration_since(Instant::now()));
            match receiver.recv_timeout(wait) {
                Ok(batch) => {
                    if !self.write(&batch)? {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let now = Instant::now();
            if flush_at.is_some_and(|at| at <= now) {
                self.with_part(Writer::flush)?;
            }
            let has_unwritten = self.part.as_ref().is_some_and(|part| part.writer.has_unwritten());
            flush_at = if has_unwritten {
                flush_at.filter(|at| *at > now).or(Some(now + FLUSH_INTERVAL))
            } else {
                None
            };
            if self.is_old() {
                self.end_part()?;
            }
        }
    }

    /// Writes a batch. Returns `Ok(false)` when the wanted number of messages is reached.
    fn write(&mut self, batch: &Batch) -> anyhow::Result<bool> {
        let mut wire = &batch.wire[..];
        let mut frames = Vec::new();
        while next_message(&mut wire, &mut frames) {
            if !self.is_wanted(&frames) {
                continue;
            }
            if self.is_old() || self.is_full(&frames) {
                self.end_part()?;
            }
            if self.part.is_none() {
                self.begin_part()?;
            }
            // Received messages are within the limits of the format.
            self.with_part(|writer| writer.push(batch.time_ns, &frames).map(drop))?;
            let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
            self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
            let messages = 1 + self.progress.messages.fetch_add(1, Ordering::Relaxed);
            if self.wanted.count.is_some_and(|count| messages >= count) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_wanted(&self, frames: &[&[u8]]) -> bool {
        match frames {
            // These are answers to subscription checks of clients, which are not meant for anybody else.
            [topic, b"sub"] if topic.starts_with(CONFIRMATION_TOPIC.as_bytes()) => false,
            [topic, b"sub"] if topic.starts_with(b"ret:") && topic.ends_with(b":drain") => false,
            [topic, ..] => self.wanted.control || !topic.starts_with(CONTROL_TOPIC.as_bytes()),
            [] => false,
        }
    }

    fn is_old(&self) -> bool {
        let Some((age, part)) = self.files.max_age.zip(self.part.as_ref()) else { return false };
        part.writer.pushed().messages > 0 && part.begun.elapsed() >= age
    }

    fn is_full(&self, frames: &[&[u8]]) -> bool {
        let Some((max, part)) = self.files.max_size.zip(self.part.as_ref()) else { return false };
        let len = (super::block::BLOCK_HEADER_LEN + super::block::message_len(frames)) as u64;
        part.writer.pushed().messages > 0 && part.writer.len() + len > max
    }

    fn begin_part(&mut self) -> anyhow::Result<()> {
        let number = if self.files.has_parts() { self.recorded.files + 1 } else { 0 };
        let (path, file) = self.files.create(number)?;
        let header = Header {
            is_compressed: self.files.is_compressed,
            part: number,
            start_ns: self.start_ns,
            salt: fastrand::u32(..),
        };
        let writer = Writer::new(file, &header).with_context(|| cannot_write(&path))?;
        if self.recorded.files == 0 {
            self.recorded.first.clone_from(&path);
        }
        self.recorded.last.clone_from(&path);
        self.recorded.files += 1;
        self.part = Some(CurrentFile { path, writer, begun: Instant::now() });
        Ok(())
    }

    /// Writes the index of the current file, and syncs the file to disk.
    fn end_part(&mut self) -> anyhow::Result<()> {
        self.with_part(|writer| {
            writer.finish()?;
            match writer.get_ref().sync_data() {
                // The output is not a file on a disk, so it cannot be synced.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
                result => result,
            }
        })?;
        if let Some(part) = self.part.take() {
            let Count { messages, bytes } = part.writer.pushed();
            self.recorded.total.messages += messages;
            self.recorded.total.bytes += bytes;
        }
        Ok(())
    }

    fn with_part(&mut self, act: impl FnOnce(&mut Writer<File>) -> io::Result<()>) -> anyhow::Result<()> {
        match &mut self.part {
            Some(part) => act(&mut part.writer).with_context(|| cannot_write(&part.path)),
            None => Ok(()),
        }
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// Splits the first message, which is encoded as on the wire, off these bytes. Returns `false` at the end.
pub(crate) fn next_message<'a>(wire: &mut &'a [u8], frames: &mut Vec<&'a [u8]>) -> bool {
    frames.clear();
    loop {
        let Ok(Some(header)) = xmsg_zmtp::Header::read(wire) else { return false };
        let end = usize::try_from(header.body_len).ok().and_then(|len| len.checked_add(header.len));
        let Some((frame, rest)) = end.and_then(|end| wire.split_at_checked(end)) else { return false };
        frames.push(&frame[header.len..]);
        *wire = rest;
        if !header.has_more() {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_numbers_before_the_extension_and_are_told_from_other_files() {
        for (path, part) in [
            ("/data/day.xmr", "/data/day.00001.xmr"),
            ("day", "day.00001"),
            ("a.b.xmr", "a.b.00001.xmr"),
            (".hidden", ".hidden.00001"),
        ] {
            assert_eq!(numbered(Path::new(path), 1), Path::new(part));
            let name = Path::new(part).file_name().unwrap();
            assert!(is_part(Path::new(name), Path::new(path)), "{part}");
            assert!(!is_part(Path::new("day.001.xmr"), Path::new(path)));
            assert!(!is_part(Path::new(path).file_name().unwrap().as_ref(), Path::new(path)));
        }
        assert_eq!(numbered(Path::new("day.xmr"), 123_456), Path::new("day.123456.xmr"));
        assert!(is_part(Path::new("day.123456.xmr"), Path::new("day.xmr")));
        assert!(!is_part(Path::new("night.00001.xmr"), Path::new("day.xmr")));
        assert!(!is_part(Path::new("day.00001.txt"), Path::new("day.xmr")));
    }

    #[test]
    fn messages_are_taken_apart_as_they_were_on_the_wire() {
        let mut wire = bytes::BytesMut::new();
        xmsg_zmtp::encode_message(&mut wire, &["topic", "data"]);
        xmsg_zmtp::encode_message(&mut wire, &[&b"t"[..], b"", &[7; 300], b"more"]);
        let (mut rest, mut frames) = (&wire[..], Vec::new());
        assert!(next_message(&mut rest, &mut frames));
        assert_eq!(frames, [&b"topic"[..], b"data"]);
        assert!(next_message(&mut rest, &mut frames));
        assert_eq!(frames.iter().map(|frame| frame.len()).collect::<Vec<_>>(), [1, 0, 300, 4]);
        assert!(!next_message(&mut rest, &mut frames));
    }
}
