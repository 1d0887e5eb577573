//! The files that a registrar comes back from: a snapshot, and a journal of what happened since.
//!
//! | file | what it is |
//! |---|---|
//! | `PATH` | the snapshot: a header of 24 bytes (magic, generation, count), then an entry for each registration |
//! | `PATH.journal` | a header of 16 bytes (magic, generation), then an entry for each change since that snapshot |
//! | `PATH.lock` | locked by the registrar that uses the files |
//! | `PATH.corrupt-N`, `PATH.journal.corrupt-N` | damaged files, kept aside |
//!
//! An entry is its length and the CRC-32 of its body (four bytes each, little-endian), then the body: a byte that says what
//! it is, and a registration or a host. A change is synced to the disk before it is acknowledged. Replaying a journal whose
//! changes are in the snapshot already changes nothing, so a crash between the two renames of a compaction does no harm.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use xmsg_core::registration::OwnerType;
use xmsg_core::{Error, ErrorKind, Result};

const SNAPSHOT_MAGIC: &[u8; 8] = b"XMSGREG1";
const JOURNAL_MAGIC: &[u8; 8] = b"XMSGJRN1";
const SNAPSHOT_HEADER: usize = 24;
const JOURNAL_HEADER: usize = 16;
/// Length and checksum of an entry.
const ENTRY_HEADER: usize = 8;
/// No entry is longer: requests are limited to less.
const ENTRY_MAX: usize = 256 << 10;
/// A journal is not compacted before it has so many bytes, and not before it is as long as the snapshot.
const COMPACT_MIN: u64 = 16 << 20;

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A registration was made; its frame.
    Register(OwnerType, Bytes),
    /// What has the same topic, name and host was forgotten; the frame of what was asked.
    Remove(OwnerType, Bytes),
    /// All of a host was forgotten.
    RemoveHost(Bytes),
}

impl Entry {
    /// Appends the entry to a batch.
    pub fn write(&self, batch: &mut Vec<u8>) {
        let (tag, bytes) = match self {
            Self::Register(OwnerType::Publisher, frame) => (1, frame),
            Self::Register(OwnerType::Subscriber, frame) => (2, frame),
            Self::Remove(OwnerType::Publisher, frame) => (3, frame),
            Self::Remove(OwnerType::Subscriber, frame) => (4, frame),
            Self::RemoveHost(host) => (5, host),
        };
        let crc = !crc32(crc32(!0, &[tag]), bytes);
        batch.extend_from_slice(&(bytes.len() as u32 + 1).to_le_bytes());
        batch.extend_from_slice(&crc.to_le_bytes());
        batch.push(tag);
        batch.extend_from_slice(bytes);
    }

    /// Takes the entry at the front of `rest`; `None`, and `rest` as it was, when there is no good one.
    fn take(rest: &mut Bytes) -> Option<Self> {
        let len = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let crc = u32::from_le_bytes(rest.get(4..ENTRY_HEADER)?.try_into().ok()?);
        if len > ENTRY_MAX {
            return None;
        }
        let end = ENTRY_HEADER + len;
        let body = rest.get(ENTRY_HEADER..end)?;
        if !crc32(!0, body) != crc {
            return None;
        }
        let bytes = rest.slice(ENTRY_HEADER + 1.min(len)..end);
        let entry = match body.first()? {
            1 => Self::Register(OwnerType::Publisher, bytes),
            2 => Self::Register(OwnerType::Subscriber, bytes),
            3 => Self::Remove(OwnerType::Publisher, bytes),
            4 => Self::Remove(OwnerType::Subscriber, bytes),
            5 => Self::RemoveHost(bytes),
            _ => return None,
        };
        let _ = rest.split_to(end);
        Some(entry)
    }
}

/// Both files, open.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    generation: u64,
    /// Bytes of the journal that are good.
    len: u64,
    snapshot_len: u64,
    /// The journal can't be appended to: the next change has to be a compaction.
    broken: bool,
    _lock: File,
}

/// What was wrong with the files, for people to read.
pub type Complaints = Vec<String>;

impl Journal {
    /// Opens the files, or makes them, and hands what is in them to `replay`. Damage does not fail: what is good up to it is
    /// taken, the file is kept aside, and the complaint returned. [`ErrorKind::Io`] when the files can't be read or
    /// written, or another registrar uses them.
    pub fn open(path: &Path, mut replay: impl FnMut(Entry)) -> Result<(Self, Complaints)> {
        let lock = lock(path)?;
        let mut complaints = Complaints::new();
        let snapshot = read(path)?;
        let snapshot_len = snapshot.as_ref().map_or(0, Bytes::len) as u64;
        let mut generation = 0;
        if let Some(mut rest) = snapshot {
            let header = header(&mut rest, SNAPSHOT_MAGIC, SNAPSHOT_HEADER);
            let (mut count, expected) = (0, header.as_ref().map(|header| number(header, 16)));
            if let Some(header) = &header {
                generation = number(header, 8);
                while let Some(entry) = Entry::take(&mut rest) {
                    replay(entry);
                    count += 1;
                }
            }
            if expected != Some(count) || !rest.is_empty() {
                complaints.push(keep_aside(path, &format!("{count} registrations could be read"))?);
            }
        }

        let journal_path = with_suffix(path, ".journal");
        let (mut len, mut broken) = (0, !complaints.is_empty());
        match read(&journal_path)? {
            None => broken = true,
            // One that was made and not yet begun.
            Some(rest) if rest.is_empty() => broken = true,
            Some(mut rest) => {
                let total = rest.len();
                let found = header(&mut rest, JOURNAL_MAGIC, JOURNAL_HEADER);
                // An older journal is what the snapshot was made from.
                let stale = found.as_ref().is_some_and(|found| number(found, 8) < generation);
                let mut count = 0;
                if found.is_some() && !stale {
                    while let Some(entry) = Entry::take(&mut rest) {
                        replay(entry);
                        count += 1;
                    }
                }
                len = (total - rest.len()) as u64;
                broken |= stale || found.is_none();
                if found.is_none() || (!stale && !rest.is_empty() && !is_torn(&rest)) {
                    complaints.push(keep_aside(&journal_path, &format!("{count} changes could be read"))?);
                    broken = true;
                }
            }
        }
        let failed = |error| io_error(format!("cannot open {}", journal_path.display()), error);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&journal_path).map_err(failed)?;
        let mut journal =
            Self { path: path.to_owned(), file, generation, len, snapshot_len, broken, _lock: lock };
        if !broken {
            // What was written last and never acknowledged may be there in part.
            journal.cut().map_err(failed)?;
        }
        Ok((journal, complaints))
    }

    /// Whether it is time for [`compact`](Self::compact).
    #[must_use]
    pub fn wants_compaction(&self) -> bool {
        self.broken || self.len > COMPACT_MIN.max(self.snapshot_len)
    }

    /// Appends a batch of entries and syncs it to the disk. After a failure, only a compaction makes it whole again.
    pub fn append(&mut self, batch: &[u8]) -> Result<()> {
        let failed = |journal: &Self, error| {
            io_error(format!("cannot write to {}.journal", journal.path.display()), error)
        };
        if self.broken {
            return Err(failed(self, io::Error::other("an earlier change could not be written")));
        }
        let result = self.file.write_all(batch).and_then(|()| self.file.sync_data());
        if let Err(error) = result {
            self.broken = true;
            return Err(failed(self, error));
        }
        self.len += batch.len() as u64;
        Ok(())
    }

    /// Writes a new snapshot of these registrations and an empty journal, each in place of the old one in one step.
    pub fn compact(&mut self, records: &[(OwnerType, Vec<Bytes>)]) -> Result<()> {
        self.broken = true;
        let generation = self.generation + 1;
        let path = self.path.clone();
        let count: usize = records.iter().map(|(_, frames)| frames.len()).sum();
        let (snapshot, _) = replace(&path, |out| {
            out.write_all(SNAPSHOT_MAGIC)?;
            out.write_all(&generation.to_le_bytes())?;
            out.write_all(&(count as u64).to_le_bytes())?;
            let mut entry = Vec::new();
            for (owner, frames) in records {
                for frame in frames {
                    entry.clear();
                    Entry::Register(*owner, frame.clone()).write(&mut entry);
                    out.write_all(&entry)?;
                }
            }
            Ok(())
        })?;
        let (len, file) = replace(&with_suffix(&path, ".journal"), |out| {
            out.write_all(JOURNAL_MAGIC)?;
            out.write_all(&generation.to_le_bytes())
        })?;
        (self.generation, self.snapshot_len, self.len, self.file) = (generation, snapshot, len, file);
        self.broken = false;
        Ok(())
    }

    /// Cuts off what is behind the good part, and goes on writing there.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.len)?;
        self.file.sync_all()?;
        self.file.seek(SeekFrom::Start(self.len)).map(drop)
    }
}

/// Whether these bytes behind the last good entry are what a write that was cut short leaves: less than an entry, or zeros where
/// the system had made room. With a good entry further on they are damage.
fn is_torn(rest: &Bytes) -> bool {
    let len = rest.first_chunk().map_or(usize::MAX, |len| u32::from_le_bytes(*len) as usize);
    let short = len > rest.len().saturating_sub(ENTRY_HEADER) || rest.iter().all(|byte| *byte == 0);
    short && (1..rest.len()).all(|at| Entry::take(&mut rest.slice(at..)).is_none())
}

/// Takes a header off the front, if it is the right one.
fn header(rest: &mut Bytes, magic: &[u8], len: usize) -> Option<Bytes> {
    (rest.len() >= len && rest.starts_with(magic)).then(|| rest.split_to(len))
}

fn number(header: &[u8], at: usize) -> u64 {
    header.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn read(path: &Path) -> Result<Option<Bytes>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(format!("cannot read {}", path.display()), error)),
    }
}

fn lock(path: &Path) -> Result<File> {
    let path = with_suffix(path, ".lock");
    let cannot = || format!("cannot lock {}", path.display());
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| io_error(cannot(), error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let what = format!("{}: another registrar uses this snapshot", cannot());
            Err(Error::new(ErrorKind::Io, what))
        }
        Err(TryLockError::Error(error)) => Err(io_error(cannot(), error)),
    }
}

/// Gives a damaged file a second name, so that it stays when a good one takes its place. Returns the complaint.
fn keep_aside(path: &Path, saved: &str) -> Result<String> {
    let failed = |error| io_error(format!("{} is damaged and can't be kept aside", path.display()), error);
    for number in 1.. {
        let aside = with_suffix(path, &format!(".corrupt-{number}"));
        if aside.exists() {
            continue;
        }
        // Not every file system has links.
        fs::hard_link(path, &aside).or_else(|_| fs::copy(path, &aside).map(drop)).map_err(failed)?;
        return Ok(format!(
            "{} is damaged: {saved}; the file is kept as {}",
            path.display(),
            aside.display()
        ));
    }
    unreachable!("numbers do not end")
}

/// Writes a file beside this one and puts it in its place. Returns its length and the file, at its end.
fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<(u64, File)> {
    let temporary = with_suffix(path, ".tmp");
    let work = || {
        let file = File::create(&temporary)?;
        let mut out = BufWriter::with_capacity(1 << 20, &file);
        write(&mut out)?;
        out.flush()?;
        drop(out);
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok((file.metadata()?.len(), file))
    };
    work().map_err(|error| io_error(format!("cannot write {}", path.display()), error))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn io_error(context: String, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, context).with_source(error)
}

/// CRC-32 (IEEE 802.3), going on from `crc`; starts at `!0` and is inverted at the end.
fn crc32(mut crc: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut crc = index as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    for byte in bytes {
        crc = crc >> 8 ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize];
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> (Journal, Vec<Entry>, Complaints) {
        let mut entries = Vec::new();
        let (journal, complaints) = Journal::open(path, |entry| entries.push(entry)).unwrap();
        (journal, entries, complaints)
    }

    fn frame(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn entries() -> [Entry; 3] {
        [
            Entry::Register(OwnerType::Publisher, frame("one")),
            Entry::Remove(OwnerType::Subscriber, frame("two")),
            Entry::RemoveHost(frame("")),
        ]
    }

    /// A snapshot with one registration, and a journal with three changes.
    fn filled(path: &Path) -> Vec<Entry> {
        let (mut journal, found, complaints) = open(path);
        assert!(found.is_empty() && complaints.is_empty() && journal.wants_compaction());
        let records = [(OwnerType::Publisher, vec![]), (OwnerType::Subscriber, vec![frame("zero")])];
        journal.compact(&records).unwrap();
        assert!(!journal.wants_compaction());
        let mut batch = Vec::new();
        for entry in entries() {
            entry.write(&mut batch);
        }
        journal.append(&batch).unwrap();
        [vec![Entry::Register(OwnerType::Subscriber, frame("zero"))], entries().to_vec()].concat()
    }

    #[test]
    fn the_checksum_is_the_common_one() {
        assert_eq!(!crc32(!0, b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let all = filled(&path);
        let (mut journal, found, complaints) = open(&path);
        assert_eq!((found, complaints), (all, vec![]));
        assert!(Journal::open(&path, drop).unwrap_err().to_string().contains("another registrar"));
        journal.compact(&[(OwnerType::Publisher, vec![frame("new")])]).unwrap();
        drop(journal);
        assert_eq!(open(&path).1, [Entry::Register(OwnerType::Publisher, frame("new"))]);
    }

    #[test]
    fn a_journal_cut_short_anywhere_gives_what_is_whole_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let all = filled(&path);
        let whole = fs::read(with_suffix(&path, ".journal")).unwrap();
        for len in JOURNAL_HEADER..whole.len() {
            fs::write(with_suffix(&path, ".journal"), &whole[..len]).unwrap();
            let (mut journal, found, complaints) = open(&path);
            assert_eq!(complaints, Complaints::new(), "at {len}");
            assert_eq!(found, all[..found.len()]);
            let mut batch = Vec::new();
            entries()[0].write(&mut batch);
            journal.append(&batch).unwrap();
            drop(journal);
            let again = open(&path).1;
            assert_eq!(again.len(), found.len() + 1);
            assert_eq!(again.last(), Some(&entries()[0]));
        }
    }

    #[test]
    fn damage_is_reported_and_kept_aside() {
        let folder = tempfile::tempdir().unwrap();
        for (file, at) in
            [("r", 3), ("r", 20), ("r", 30), ("r.journal", 3), ("r.journal", 18), ("r.journal", 25)]
        {
            let path = folder.path().join("r");
            for old in fs::read_dir(folder.path()).unwrap() {
                fs::remove_file(old.unwrap().path()).unwrap();
            }
            let all = filled(&path);
            let damaged = folder.path().join(file);
            let mut bytes = fs::read(&damaged).unwrap();
            bytes[at] ^= 1;
            fs::write(&damaged, &bytes).unwrap();
            let (mut journal, found, complaints) = open(&path);
            assert_eq!(complaints.len(), 1, "{file} {at}");
            assert!(
                complaints[0].contains("is damaged") && complaints[0].contains(".corrupt-1"),
                "{complaints:?}"
            );
            assert!(found.iter().all(|entry| all.contains(entry)));
            assert_eq!(fs::read(with_suffix(&damaged, ".corrupt-1")).unwrap(), bytes);
            assert!(journal.wants_compaction() && journal.append(&[]).is_err());
            journal.compact(&[]).unwrap();
            journal.append(&[]).unwrap();
            drop(journal);
            assert_eq!(open(&path).2, Complaints::new());
        }
    }

    #[test]
    fn a_journal_older_than_the_snapshot_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        filled(&path);
        let old = fs::read(with_suffix(&path, ".journal")).unwrap();
        let (mut journal, ..) = open(&path);
        journal.compact(&[(OwnerType::Publisher, vec![frame("new")])]).unwrap();
        drop(journal);
        // As if the system had stopped between the two renames.
        fs::write(with_suffix(&path, ".journal"), old).unwrap();
        let (journal, found, complaints) = open(&path);
        assert_eq!((found.len(), complaints.len(), journal.wants_compaction()), (1, 0, true));
    }
}
