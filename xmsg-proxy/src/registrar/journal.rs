//! The files in which a registrar stores its registrations: a snapshot, and a journal of the changes since
//! then.
//!
//! | file | what it is |
//! |---|---|
//! | `PATH` | the snapshot: a header (magic, generation, count, salt twice), then an entry per registration |
//! | `PATH.journal` | a header (magic, generation, salt twice), then an entry for each later change |
//! | `PATH.lock` | locked by the registrar that uses the files |
//! | `PATH.corrupt-N`, `PATH.journal.corrupt-N` | copies of damaged files |
//!
//! The header of a snapshot has 40 bytes, and that of a journal 32.
//!
//! Symbolic links to `PATH` are resolved first. So two registrars that reach the same files by different
//! names use the same lock.
//!
//! An entry starts with its length and a checksum (four bytes each, little-endian). The body follows: a byte
//! with the kind of the entry, and a registration or a host. The checksum is the CRC-32 of the file's salt
//! and the body. A change is synced to the disk before it is acknowledged.
//!
//! A new snapshot is written beside the old files, while changes are still appended to the old journal: see
//! [`Draft`]. The registrations in the snapshot may be from different moments. This does no harm, because the
//! new journal contains every change that was made meanwhile, and the last change of a registration decides.
//! For the same reason, a crash between the two renames at the end does no harm: the old journal contains all
//! these changes, too.
//!
//! A damaged entry loses only that entry: reading continues at the next one. If the damaged entry's length is
//! good, the next entry is behind it. Otherwise it is at the next bytes that are an entry by their checksum.
//! Clients choose the content of entries, but they don't know the salt, so that no client can plant an entry
//! inside another one. Nor can their content make reading slow: the number of bytes for which checksums are
//! computed in vain is bounded. Files of the first version (`XMSGREG1`, `XMSGJRN1`) have no salt. They are
//! read, too.

mod draft;
mod format;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use xmsg_core::registration::OwnerType;
use xmsg_core::{Error, ErrorKind, Result};
use xmsg_zmq::lock::LockedFile;

pub use self::draft::Draft;
use self::draft::JournalFile;
pub use self::format::Entry;
use self::format::{JOURNAL, PROBE, SNAPSHOT, Salt, seal};

/// The length from which a journal may be compacted, in bytes. It must also be longer than the snapshot.
const COMPACT_MIN: u64 = if cfg!(test) { 16 << 10 } else { 16 << 20 };
/// Bytes that a probe writes to find out whether the disk accepts data.
const PROBE_LEN: usize = 64 << 10;
/// The largest number of symbolic links that are followed one after another.
const LINKS_MAX: usize = 40;

/// Access to the snapshot and the journal of a registrar.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    salt: Salt,
    generation: u64,
    /// The length of the good part of the journal file, with its header, in bytes.
    len: u64,
    header_len: u64,
    /// The [position](Self::position) of the first entry of the journal file.
    start: u64,
    /// The file length beyond which a compaction is due.
    compact_at: u64,
    /// Whether the journal can't be appended to. Then the next change has to be a compaction.
    broken: bool,
    /// The lock is shared with drafts, so that no other process uses the files while a draft is being
    /// written.
    lock: Arc<LockedFile>,
}

/// Frames of registrations, and whether they are publishers or subscribers.
pub type Records = (OwnerType, Vec<Bytes>);

/// Descriptions of what was wrong with the files, for people to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Damaged files. A copy of each was kept.
    pub damage: Vec<String>,
    /// The rest of an interrupted write, as a crash leaves it: changes that were never acknowledged.
    pub torn: Option<String>,
}

impl Journal {
    /// Opens the files, or creates them, and passes their entries to `replay`. Damage is not an error: all
    /// good entries before and behind it are read, a copy of the file is kept, and a description is returned.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the files can't be read or written, or if another registrar uses them.
    pub fn open(path: &Path, mut replay: impl FnMut(Entry)) -> Result<(Self, OpenReport)> {
        let path =
            &resolve(path).map_err(|error| io_error(format!("cannot find {}", path.display()), error))?;
        let lock = Arc::new(lock(path)?);
        let mut complaints = OpenReport::default();
        let mut note = |damage| complaints.damage.push(damage);
        let snapshot = read(path)?;
        let snapshot_len = snapshot.as_ref().map_or(0, Bytes::len) as u64;
        let mut generation = 0;
        if let Some(file) = snapshot {
            let (header, contents) = SNAPSHOT.read(&file, &mut replay);
            generation = header.map_or(0, |header| header.generation);
            let is_whole = header.and_then(|header| header.count) == Some(contents.count as u64);
            if !is_whole || contents.damaged > 0 || contents.is_torn {
                note(keep_aside(path, &contents.describe("registrations", header.is_some()))?);
            }
        }

        let journal_path = journal_of(path);
        let (mut len, mut header_len) = (0, 0);
        let (mut broken, mut salt) = (!complaints.damage.is_empty(), Salt(None));
        match read(&journal_path)? {
            None => broken = true,
            // A journal that was created, but whose header was not written.
            Some(file) if file.is_empty() => broken = true,
            Some(file) => {
                let (header, contents) = JOURNAL.read(&file, &mut replay);
                // An older journal contains changes that the snapshot was made from. Applying them again does
                // no harm, but nothing may be appended to it.
                broken |= header.is_none_or(|header| header.generation != generation);
                if header.is_none() || contents.damaged > 0 {
                    let what = contents.describe("changes", header.is_some());
                    complaints.damage.push(keep_aside(&journal_path, &what)?);
                    broken = true;
                }
                if let Some(header) = header {
                    salt = header.salt;
                    header_len = header.len as u64;
                    len = header_len + contents.good_len as u64;
                    if contents.is_torn {
                        complaints.torn = Some(format!(
                            "{} was cut short: the last {} bytes of it are no whole change, and nobody was told that it is stored",
                            journal_path.display(),
                            file.len() as u64 - len,
                        ));
                    }
                }
            }
        }
        let failed = |error| io_error(format!("cannot open {}", journal_path.display()), error);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&journal_path).map_err(failed)?;
        // A journal in the old format is compacted when the first change arrives.
        let compact_at = if salt.0.is_none() { 0 } else { COMPACT_MIN.max(snapshot_len) };
        let (path, start) = (path.clone(), 0);
        let mut journal =
            Self { path, file, salt, generation, len, header_len, start, compact_at, broken, lock };
        if !broken {
            // Removes an incomplete entry at the end, which was never acknowledged.
            journal.cut().map_err(failed)?;
        }
        Ok((journal, complaints))
    }

    /// Returns whether nothing can be written before a [`compact`](Self::compact).
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Returns whether it is time for [`compact`](Self::compact).
    #[must_use]
    pub fn wants_compaction(&self) -> bool {
        self.broken || self.len > self.compact_at
    }

    /// Returns the logical offset of the end of the journal, in bytes of entries. Compactions do not reset
    /// it. It therefore shows later which entries were written after now.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.start + (self.len - self.header_len)
    }

    /// Appends a batch of entries and syncs it to the disk. A batch that was written in part is cut off
    /// again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the batch can't be written. If cutting it off or the sync fails, the journal is
    /// [broken](Self::is_broken) until the next compaction.
    pub fn append(&mut self, batch: &mut [u8]) -> Result<()> {
        if self.broken {
            return Err(self.cannot_write(io::Error::other("an earlier change could not be written")));
        }
        seal(batch, &self.salt);
        self.extend(batch).map_err(|error| self.cannot_write(error))?;
        self.len += batch.len() as u64;
        Ok(())
    }

    /// Tests whether something can be appended, and leaves the journal as it is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk does not accept data, or if the journal is [broken](Self::is_broken).
    pub fn probe(&mut self) -> Result<()> {
        if self.broken {
            return Err(self.cannot_write(io::Error::other("an earlier change could not be written")));
        }
        let bytes = vec![PROBE; PROBE_LEN];
        let result = self.extend(&bytes).and_then(|()| self.cut().inspect_err(|_| self.broken = true));
        result.map_err(|error| self.cannot_write(error))
    }

    /// Writes at the end of the file and syncs.
    fn extend(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            self.broken = self.cut().is_err();
            return Err(error);
        }
        // After a failed sync it is unknown what is on the disk.
        self.file.sync_data().inspect_err(|_| self.broken = true)
    }

    fn cannot_write(&self, error: io::Error) -> Error {
        io_error(format!("cannot write to {}.journal", self.path.display()), error)
    }

    /// Writes a new snapshot of these registrations, and a new journal that begins with this batch of
    /// entries. Each replaces the old file in one step. If the new files can't be written and the journal is
    /// good, the batch is appended to the old journal.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the batch could be written to neither journal.
    pub fn compact(&mut self, records: &[Records], batch: &mut [u8]) -> Result<()> {
        let mut draft = self.draft(self.position());
        let mut records = records.iter();
        match draft.write(|| Ok(records.next().cloned())) {
            Ok(()) => self.switch(draft, batch),
            Err(error) => self.keep(error, batch),
        }
    }

    /// Begins a compaction: a snapshot of all changes before this [position](Self::position), and a journal
    /// of those behind it.
    #[must_use]
    pub fn draft(&self, from: u64) -> Draft {
        let source = JournalFile { header_len: self.header_len, start: self.start, salt: self.salt };
        let generation = self.generation.wrapping_add(1);
        Draft::begin(self.path.clone(), generation, source, from, self.lock.clone())
    }

    /// Replaces the current files with those of a draft, each in one step, and adds this batch of entries at
    /// the end. If that fails and the journal is still good, the batch is appended to the old journal.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the batch could be written to neither journal.
    pub fn switch(&mut self, draft: Draft, batch: &mut [u8]) -> Result<()> {
        match self.replace_with(draft, batch) {
            Ok(()) => Ok(()),
            Err(error) => self.keep(error, batch),
        }
    }

    /// Continues with the current files after a failed compaction, if they are good.
    fn keep(&mut self, error: Error, batch: &mut [u8]) -> Result<()> {
        if self.broken {
            return Err(error);
        }
        self.postpone_compaction(&error);
        if batch.is_empty() { self.probe() } else { self.append(batch) }
    }

    /// Records that a compaction has failed, so that the next batch does not start another one.
    pub fn postpone_compaction(&mut self, error: &Error) {
        self.compact_at = self.len + COMPACT_MIN;
        tracing::warn!(reason = %error.with_causes(), "the journal was not shortened");
    }

    fn replace_with(&mut self, mut draft: Draft, batch: &mut [u8]) -> Result<()> {
        let path = journal_of(&self.path);
        let cannot = |error| cannot_write(&path, error);
        let position = self.position();
        draft.copy(position)?;
        let Some(mut file) = draft.journal.take() else {
            return Err(cannot(io::Error::other("there is no snapshot for it")));
        };
        seal(batch, &draft.salt);
        file.write_all(batch).and_then(|()| file.sync_all()).map_err(cannot)?;
        put_in_place(&self.path)?;
        // From here until the second rename, the current journal belongs to the old snapshot.
        self.broken = true;
        put_in_place(&path)?;
        (self.file, self.salt, self.generation) = (file, draft.salt, draft.generation);
        (self.header_len, self.start) = (draft.header_len, draft.from);
        self.len = draft.header_len + (position - draft.from) + batch.len() as u64;
        self.compact_at = COMPACT_MIN.max(draft.snapshot_len);
        self.broken = false;
        Ok(())
    }

    /// Cuts off what is behind the good part, so that writing continues there.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.len)?;
        self.file.sync_all()?;
        self.file.seek(SeekFrom::Start(self.len)).map(drop)
    }
}

/// Resolves all symbolic links, so that two names of one file give the same path. The file itself need not
/// exist.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = fs::canonicalize(folder.unwrap_or(Path::new(".")))?;
        let Some(name) = path.file_name() else { return Err(io::Error::other("that is no name of a file")) };
        path = folder.join(name);
        match fs::read_link(&path) {
            Ok(target) => path = folder.join(target),
            // The path is not a link, or does not exist.
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many symbolic links lead to it"))
}

fn read(path: &Path) -> Result<Option<Bytes>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(format!("cannot read {}", path.display()), error)),
    }
}

fn lock(path: &Path) -> Result<LockedFile> {
    let path = with_suffix(path, ".lock");
    let cannot = || format!("cannot lock {}", path.display());
    match LockedFile::open(&path) {
        Ok(file) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let what = format!("{}: another registrar uses this snapshot", cannot());
            Err(Error::new(ErrorKind::Io, what))
        }
        Err(TryLockError::Error(error)) => Err(io_error(cannot(), error)),
    }
}

/// Gives a damaged file a second name, under which it remains when a good one replaces it. Returns the
/// description of the damage.
fn keep_aside(path: &Path, saved: &str) -> Result<String> {
    let failed = |error| io_error(format!("{} is damaged and can't be kept aside", path.display()), error);
    for number in 1.. {
        let aside = with_suffix(path, &format!(".corrupt-{number}"));
        if aside.exists() {
            continue;
        }
        // Not every file system has hard links.
        fs::hard_link(path, &aside).or_else(|_| fs::copy(path, &aside).map(drop)).map_err(failed)?;
        return Ok(format!(
            "{} is damaged: {saved}; the file is kept as {}",
            path.display(),
            aside.display()
        ));
    }
    unreachable!("numbers do not end")
}

/// Returns the name of the temporary file that is to replace this file.
fn temporary(path: &Path) -> PathBuf {
    with_suffix(path, ".tmp")
}

/// Replaces a file by its temporary file.
fn put_in_place(path: &Path) -> Result<()> {
    let work = || {
        fs::rename(temporary(path), path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    work().map_err(|error| cannot_write(path, error))
}

/// Returns the path of the journal that belongs to this snapshot.
fn journal_of(path: &Path) -> PathBuf {
    with_suffix(path, ".journal")
}

fn cannot_write(path: &Path, error: io::Error) -> Error {
    io_error(format!("cannot write {}", path.display()), error)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn io_error(context: String, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, context).with_source(error)
}

#[cfg(test)]
mod tests;
