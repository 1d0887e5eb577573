//! The next snapshot and journal of a registrar, which are written while the present ones are still in use.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use xmsg_core::Result;
use xmsg_zmq::files::create_anew;
use xmsg_zmq::lock::LockedFile;

use super::format::{Entry, JOURNAL, SNAPSHOT, Salt, seal, seal_again};
use super::{Records, cannot_write, io_error, journal_of, temporary};

/// Registrations that are written to a snapshot between two checks whether it is still wanted.
const SNAPSHOT_CHUNK: usize = 1024;
/// The size of the buffer for writing a snapshot and for copying from one journal to the next.
const BUFFER: usize = 1 << 20;
/// The most bytes that may be left to copy when the files are switched. Changes wait for that copy.
pub(super) const CATCH_UP_MAX: u64 = if cfg!(test) { 1 << 10 } else { 1 << 20 };
/// The largest number of copy rounds for a journal that grows faster than it is copied.
const ROUNDS_MAX: u32 = 16;

/// What is needed to find the entries in the file of a journal.
#[derive(Clone, Copy, Debug)]
pub(super) struct JournalFile {
    pub(super) header_len: u64,
    /// The position of the first entry.
    pub(super) start: u64,
    pub(super) salt: Salt,
}

/// The next files of a [`Journal`](super::Journal), written beside the current files, which are still in use
/// meanwhile. A draft that is dropped removes its unfinished files.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    pub(super) generation: u64,
    /// The current journal.
    source: JournalFile,
    /// The snapshot contains the changes before this position. The new journal contains those from here up to
    /// `copied`.
    pub(super) from: u64,
    copied: u64,
    rounds: u32,
    pub(super) salt: Salt,
    pub(super) snapshot_len: u64,
    pub(super) header_len: u64,
    /// The new journal, once it was created.
    pub(super) journal: Option<File>,
    is_unwanted: Arc<AtomicBool>,
    _lock: Arc<LockedFile>,
}

impl Draft {
    /// Begins the draft of this generation, for the files at this path: a snapshot of all changes before the
    /// position `from`, and a journal of those behind it. `source` is the current journal.
    pub(super) fn begin(
        path: PathBuf,
        generation: u64,
        source: JournalFile,
        from: u64,
        lock: Arc<LockedFile>,
    ) -> Self {
        Self {
            path,
            generation,
            source,
            from,
            copied: from,
            rounds: 0,
            salt: Salt(None),
            snapshot_len: 0,
            header_len: 0,
            journal: None,
            is_unwanted: Arc::default(),
            _lock: lock,
        }
    }

    /// Returns a flag that makes [`write`](Self::write) and [`copy`](Self::copy) fail soon after it is set.
    #[must_use]
    pub fn is_unwanted(&self) -> Arc<AtomicBool> {
        self.is_unwanted.clone()
    }

    /// Returns whether little is left to copy from a journal whose end is at this position, or the maximum
    /// number of copy rounds is reached.
    #[must_use]
    pub fn is_caught_up(&self, position: u64) -> bool {
        self.rounds >= ROUNDS_MAX || position - self.copied <= CATCH_UP_MAX
    }

    /// Writes the snapshot. `next` returns all registrations in chunks, each as it was at some moment since
    /// the draft was begun.
    ///
    /// # Errors
    ///
    /// If the files can't be written, if `next` fails, or if the draft is no longer wanted.
    pub fn write(&mut self, mut next: impl FnMut() -> io::Result<Option<Records>>) -> Result<()> {
        let no_salt = |error| io_error("cannot make up a salt for the registrar's files".to_owned(), error);
        let salt = Salt::new().map_err(no_salt)?;
        self.salt = Salt::new().map_err(no_salt)?;
        let mut write = || {
            let mut file = create_anew(&temporary(&self.path))?;
            let mut out = BufWriter::with_capacity(BUFFER, &file);
            SNAPSHOT.write(&mut out, self.generation, 0, salt)?;
            let (mut entries, mut count) = (Vec::new(), 0);
            while let Some((owner, frames)) = next()? {
                for frames in frames.chunks(SNAPSHOT_CHUNK) {
                    if self.is_unwanted.load(Ordering::Relaxed) {
                        return Err(io::Error::other("it was given up"));
                    }
                    entries.clear();
                    for frame in frames {
                        Entry::Register(owner, frame.clone()).write(&mut entries);
                    }
                    count += frames.len() as u64;
                    seal(&mut entries, &salt);
                    out.write_all(&entries)?;
                }
            }
            out.flush()?;
            drop(out);
            // Only now the number of registrations is known.
            file.rewind()?;
            SNAPSHOT.write(&mut file, self.generation, count, salt)?;
            file.sync_all()?;
            Ok(file.metadata()?.len())
        };
        self.snapshot_len = write().map_err(|error| cannot_write(&self.path, error))?;
        let path = journal_of(&self.path);
        let begin = || {
            let mut file = create_anew(&temporary(&path))?;
            let len = JOURNAL.write(&mut file, self.generation, 0, self.salt)?;
            Ok((file, len))
        };
        let (file, len) = begin().map_err(|error| cannot_write(&path, error))?;
        (self.journal, self.header_len) = (Some(file), len as u64);
        Ok(())
    }

    /// Copies the entries of the old journal up to this position, and syncs the new journal. The position
    /// must not be behind the good part of the old journal.
    ///
    /// # Errors
    ///
    /// If an entry is damaged, if the files can't be read or written, or if the draft is no longer wanted.
    pub fn copy(&mut self, upto: u64) -> Result<()> {
        self.rounds += 1;
        let path = journal_of(&self.path);
        let Some(out) = &mut self.journal else { return Ok(()) };
        let (source, salt, is_unwanted) = (self.source, self.salt, &self.is_unwanted);
        let mut copy = |mut at: u64| {
            if at == upto {
                return Ok(());
            }
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(source.header_len + (at - source.start)))?;
            // The entries that are complete so far, and the beginning of the next one.
            let mut entries = Vec::new();
            while at < upto {
                if is_unwanted.load(Ordering::Relaxed) {
                    return Err(io::Error::other("it was given up"));
                }
                let len = (upto - at).min(BUFFER as u64);
                if (&mut file).take(len).read_to_end(&mut entries)? as u64 != len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                at += len;
                let damaged = || io::Error::other("a change in the journal is damaged");
                let whole = seal_again(&mut entries, &source.salt, &salt).ok_or_else(damaged)?;
                out.write_all(&entries[..whole])?;
                entries.drain(..whole);
            }
            if !entries.is_empty() {
                return Err(io::Error::other("the journal does not end with a whole change"));
            }
            out.sync_all()
        };
        copy(self.copied).map_err(|error| io_error(format!("cannot copy {}", path.display()), error))?;
        self.copied = upto;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Unfinished files would waste disk space. Finished files have their final names by now.
        for path in [self.path.clone(), journal_of(&self.path)] {
            let _ = fs::remove_file(temporary(&path));
        }
    }
}
