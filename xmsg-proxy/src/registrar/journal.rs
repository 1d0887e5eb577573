//! The files that a registrar comes back from: a snapshot, and a journal of what happened since.
//!
//! | file | what it is |
//! |---|---|
//! | `PATH` | the snapshot: a header of 40 bytes (magic, generation, count, salt twice), then an entry for each registration |
//! | `PATH.journal` | a header of 32 bytes (magic, generation, salt twice), then an entry for each change since that snapshot |
//! | `PATH.lock` | locked by the registrar that uses the files |
//! | `PATH.corrupt-N`, `PATH.journal.corrupt-N` | damaged files, kept aside |
//!
//! `PATH` is where symbolic links lead to, so that two registrars that reach the same files by different names meet at one lock.
//!
//! An entry is its length and a checksum (four bytes each, little-endian), then the body: a byte that says what it is, and a registration or a
//! host. The checksum is the CRC-32 of the file's salt and the body. A change is synced to the disk before it is acknowledged.
//! Replaying a journal whose changes are in the snapshot already changes nothing, so a crash between the two renames of a compaction does no harm.
//!
//! A damaged entry is lost alone: reading goes on at the next one. If the length is good, that is where it says; else at the next bytes
//! that are an entry by their checksum. Clients choose what is in entries, but they don't know the salt, so none of them can plant an entry inside of
//! another one. Nor does it take long, whatever they chose: checksums that are computed in vain are bounded. Files of the first version (`XMSGREG1`, `XMSGJRN1`) have no salt, and are read, too.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use xmsg_core::registration::OwnerType;
use xmsg_core::{Error, ErrorKind, Result};

const SNAPSHOT: Format = Format { magic: b"XMSGREG2", old_magic: b"XMSGREG1", has_count: true };
const JOURNAL: Format = Format { magic: b"XMSGJRN2", old_magic: b"XMSGJRN1", has_count: false };
/// Length and checksum of an entry.
const ENTRY_HEADER: usize = 8;
/// No entry is longer: requests are limited to less.
const ENTRY_MAX: usize = 256 << 10;
/// What is found by its checksum alone, behind a damaged length, is no longer: requests are limited to a quarter of it.
const FOUND_MAX: usize = 16 << 10;
/// Bytes of checksums that may be computed in vain while a file is read, and so many for each of its bytes. Clients choose what is in entries, and
/// could have made each of their bytes look like the begin of a long one.
const IN_VAIN: usize = 64 << 20;
const IN_VAIN_OF_EACH: usize = 16;
/// A journal is not compacted before it has so many bytes, and not before it is as long as the snapshot.
const COMPACT_MIN: u64 = 16 << 20;
/// Bytes that are written to find out whether the disk takes any.
const PROBE_LEN: usize = 64 << 10;
/// What these bytes are. Some file systems don't store zeros; and no entry begins with such a length.
const PROBE: u8 = 0xff;
/// Symbolic links that are followed, one after another.
const LINKS_MAX: usize = 40;

/// What the body of an entry begins with.
const TAGS: std::ops::RangeInclusive<u8> = 1..=5;

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
    /// Appends the body of the entry, with room for its header, to a batch. `seal` makes it whole.
    pub fn write(&self, batch: &mut Vec<u8>) {
        let (tag, bytes) = match self {
            Self::Register(OwnerType::Publisher, frame) => (1, frame),
            Self::Register(OwnerType::Subscriber, frame) => (2, frame),
            Self::Remove(OwnerType::Publisher, frame) => (3, frame),
            Self::Remove(OwnerType::Subscriber, frame) => (4, frame),
            Self::RemoveHost(host) => (5, host),
        };
        batch.extend_from_slice(&(bytes.len() as u32 + 1).to_le_bytes());
        batch.extend_from_slice(&[0; 4]);
        batch.push(tag);
        batch.extend_from_slice(bytes);
    }

    /// The entry at the front, and its length with the header; `None` when there is no good one.
    fn at(rest: &Bytes, salt: &Salt) -> Option<(Self, usize)> {
        let len = length(rest)?;
        let crc = u32::from_le_bytes(rest.get(4..ENTRY_HEADER)?.try_into().ok()?);
        let end = ENTRY_HEADER + len;
        let body = rest.get(ENTRY_HEADER..end)?;
        if salt.checksum(body) != crc {
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
        Some((entry, end))
    }
}

/// The length of the body of the entry at the front, if it is one that an entry may have.
fn length(rest: &[u8]) -> Option<usize> {
    let len = u32::from_le_bytes(*rest.first_chunk()?) as usize;
    (1..=ENTRY_MAX).contains(&len).then_some(len)
}

/// Fills in the checksums of a batch of entries.
fn seal(batch: &mut [u8], salt: &Salt) {
    let mut rest = batch;
    while let Some(len) = length(rest)
        && let Some((entry, behind)) = rest.split_at_mut_checked(ENTRY_HEADER + len)
    {
        let crc = salt.checksum(&entry[ENTRY_HEADER..]);
        entry[4..ENTRY_HEADER].copy_from_slice(&crc.to_le_bytes());
        rest = behind;
    }
}

/// What the checksums of a file start with: nobody knows it who can't read the file. `None` in files of the first version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Salt(Option<[u8; 8]>);

impl Salt {
    fn new() -> io::Result<Self> {
        let mut salt = [0; 8];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        Ok(Self(Some(salt)))
    }

    fn checksum(&self, body: &[u8]) -> u32 {
        let start = self.0.map_or(!0, |salt| crc32(!0, &salt));
        !crc32(start, body)
    }
}

/// What a file starts with.
#[derive(Clone, Copy, Debug)]
struct Format {
    magic: &'static [u8; 8],
    old_magic: &'static [u8; 8],
    has_count: bool,
}

/// The header of a file that was read.
#[derive(Clone, Copy, Debug)]
struct Header {
    generation: u64,
    count: Option<u64>,
    salt: Salt,
}

impl Format {
    fn write(self, out: &mut impl Write, generation: u64, count: u64, salt: Salt) -> io::Result<()> {
        out.write_all(self.magic)?;
        out.write_all(&generation.to_le_bytes())?;
        if self.has_count {
            out.write_all(&count.to_le_bytes())?;
        }
        let salt = salt.0.unwrap_or_default();
        // Twice: damage to one of them is not the end of the file.
        out.write_all(&salt)?;
        out.write_all(&salt)
    }

    /// The length of a header without a salt.
    fn old_len(self) -> usize {
        if self.has_count { 24 } else { 16 }
    }

    /// Reads a header and what is behind it. A damaged one is `None`; what it would have to be for the entries to be good is tried.
    fn read(self, file: &Bytes) -> (Option<Header>, Contents) {
        let (old_len, len) = (self.old_len(), self.old_len() + 16);
        let salt_at = |at: usize| file.get(at..).and_then(<[u8]>::first_chunk).copied();
        let header = |salt| Header {
            generation: number(file, 8),
            count: self.has_count.then(|| number(file, 16)),
            salt: Salt(salt),
        };
        let behind = |len: usize| file.slice(len.min(file.len())..);
        if file.len() >= old_len && file.starts_with(self.old_magic) {
            let header = header(None);
            return (Some(header), Contents::read(&behind(old_len), header.salt));
        }
        let (first, second) = (salt_at(old_len), salt_at(old_len + 8));
        if file.len() >= len && file.starts_with(self.magic) && first == second {
            let header = header(first);
            return (Some(header), Contents::read(&behind(len), header.salt));
        }
        let candidates = [(first, len), (second, len), (None, old_len)].map(|(salt, len)| (Salt(salt), len));
        let contents = candidates.map(|(salt, len)| Contents::read(&behind(len), salt));
        let best = contents.into_iter().max_by_key(|contents| contents.entries.len());
        (None, best.unwrap_or_default())
    }
}

/// What is in a file behind its header.
#[derive(Debug, Default)]
struct Contents {
    entries: Vec<Entry>,
    /// Places at which something is damaged, and the bytes there.
    damaged: usize,
    damaged_bytes: usize,
    /// Bytes up to the end of the last good entry, from the end of the header.
    good_len: usize,
    /// What is behind it is what a write that was cut short leaves: less than an entry, zeros where the system had made room, or what a probe
    /// has written.
    is_torn: bool,
    /// Bytes of checksums that were computed in vain.
    in_vain: usize,
}

impl Contents {
    fn read(file: &Bytes, salt: Salt) -> Self {
        let mut found = Self::default();
        let budget = IN_VAIN + IN_VAIN_OF_EACH * file.len();
        let mut at = 0;
        while at < file.len() {
            let rest = file.slice(at..);
            if let Some((entry, len)) = Entry::at(&rest, &salt) {
                found.entries.push(entry);
                at += len;
                found.good_len = at;
                continue;
            }
            let Some(next) = next_entry(&rest, &salt, &mut found.in_vain, budget) else {
                let is_short =
                    rest.len() < 4 || length(&rest).is_some_and(|len| ENTRY_HEADER + len > rest.len());
                let is_filled = |with: u8| rest.iter().all(|byte| *byte == with);
                found.is_torn = is_short || is_filled(0) || is_filled(PROBE);
                if !found.is_torn {
                    found.damaged += 1;
                    found.damaged_bytes += rest.len();
                }
                break;
            };
            found.damaged += 1;
            found.damaged_bytes += next;
            at += next;
        }
        found
    }
}

/// Where the next good entry is, behind a damaged one. `None`, too, when more than `budget` bytes of checksums would have to be computed in vain.
fn next_entry(rest: &Bytes, salt: &Salt, in_vain: &mut usize, budget: usize) -> Option<usize> {
    let mut is_good = |at: usize, longest: usize| {
        let Some(entry) = rest.get(at..) else { return false };
        let Some(len) = length(entry).filter(|len| *len <= longest && ENTRY_HEADER + len <= entry.len())
        else {
            return false;
        };
        if !TAGS.contains(&entry[ENTRY_HEADER]) || *in_vain + len > budget {
            return false;
        }
        let is_good = Entry::at(&rest.slice(at..), salt).is_some();
        *in_vain += if is_good { 0 } else { len };
        is_good
    };
    let told = length(rest).map(|len| ENTRY_HEADER + len);
    told.filter(|at| is_good(*at, ENTRY_MAX)).or_else(|| (1..rest.len()).find(|at| is_good(*at, FOUND_MAX)))
}

/// Both files, open.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    salt: Salt,
    generation: u64,
    /// Bytes of the journal that are good.
    len: u64,
    snapshot_len: u64,
    /// At this length it is time for a compaction.
    compact_at: u64,
    /// The journal can't be appended to: the next change has to be a compaction.
    broken: bool,
    _lock: File,
}

/// What was wrong with the files, for people to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Complaints {
    /// What was damaged, and has been kept aside.
    pub damage: Vec<String>,
    /// What a crash leaves: changes that were never acknowledged.
    pub torn: Option<String>,
}

impl Journal {
    /// Opens the files, or makes them, and hands what is in them to `replay`. Damage does not fail: what is good is taken, before and behind
    /// it, the file is kept aside, and the complaint returned. [`ErrorKind::Io`] when the files can't be read or written, or
    /// another registrar uses them.
    pub fn open(path: &Path, mut replay: impl FnMut(Entry)) -> Result<(Self, Complaints)> {
        let path =
            &resolve(path).map_err(|error| io_error(format!("cannot find {}", path.display()), error))?;
        let lock = lock(path)?;
        let mut complaints = Complaints::default();
        let mut note = |damage| complaints.damage.push(damage);
        let snapshot = read(path)?;
        let snapshot_len = snapshot.as_ref().map_or(0, Bytes::len) as u64;
        let mut generation = 0;
        if let Some(file) = snapshot {
            let (header, contents) = SNAPSHOT.read(&file);
            generation = header.map_or(0, |header| header.generation);
            let count = contents.entries.len();
            let is_whole = header.and_then(|header| header.count) == Some(count as u64);
            if !is_whole || contents.damaged > 0 || contents.is_torn {
                note(keep_aside(path, &contents.describe("registrations", header.is_some()))?);
            }
            contents.entries.into_iter().for_each(&mut replay);
        }

        let journal_path = with_suffix(path, ".journal");
        let (mut len, mut broken, mut salt) = (0, !complaints.damage.is_empty(), Salt(None));
        match read(&journal_path)? {
            None => broken = true,
            // One that was made and not yet begun.
            Some(file) if file.is_empty() => broken = true,
            Some(file) => {
                let (header, contents) = JOURNAL.read(&file);
                // An older journal is what the snapshot was made from: its changes are in there, and do no harm. But nothing may be
                // appended to it.
                broken |= header.is_none_or(|header| header.generation != generation);
                if header.is_none() || contents.damaged > 0 {
                    let what = contents.describe("changes", header.is_some());
                    complaints.damage.push(keep_aside(&journal_path, &what)?);
                    broken = true;
                }
                if let Some(header) = header {
                    salt = header.salt;
                    let header_len = JOURNAL.old_len() + if salt.0.is_some() { 16 } else { 0 };
                    len = (header_len + contents.good_len) as u64;
                    if contents.is_torn {
                        complaints.torn = Some(format!(
                            "{} was cut short: the last {} bytes of it are no whole change, and nobody was told that it is stored",
                            journal_path.display(),
                            file.len() as u64 - len,
                        ));
                    }
                }
                contents.entries.into_iter().for_each(&mut replay);
            }
        }
        let failed = |error| io_error(format!("cannot open {}", journal_path.display()), error);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&journal_path).map_err(failed)?;
        // One of the first version is written anew with the first change.
        let compact_at = if salt.0.is_none() { 0 } else { COMPACT_MIN.max(snapshot_len) };
        let path = path.clone();
        let mut journal =
            Self { path, file, salt, generation, len, snapshot_len, compact_at, broken, _lock: lock };
        if !broken {
            // What was written last and never acknowledged may be there in part.
            journal.cut().map_err(failed)?;
        }
        Ok((journal, complaints))
    }

    /// Whether nothing can be written before a [`compact`](Self::compact).
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether it is time for [`compact`](Self::compact).
    #[must_use]
    pub fn wants_compaction(&self) -> bool {
        self.broken || self.len > self.compact_at
    }

    /// Appends a batch of entries and syncs it to the disk. What is left of a batch that could not be written is cut off again; if even that fails,
    /// or the sync, only a compaction makes the journal whole.
    pub fn append(&mut self, mut batch: Vec<u8>) -> Result<()> {
        if self.broken {
            return Err(self.cannot_write(io::Error::other("an earlier change could not be written")));
        }
        seal(&mut batch, &self.salt);
        self.extend(&batch).map_err(|error| self.cannot_write(error))?;
        self.len += batch.len() as u64;
        Ok(())
    }

    /// Finds out whether something can be appended, and leaves the journal as it is.
    pub fn probe(&mut self) -> Result<()> {
        if self.broken {
            return Err(self.cannot_write(io::Error::other("an earlier change could not be written")));
        }
        let bytes = vec![PROBE; PROBE_LEN];
        let result = self.extend(&bytes).and_then(|()| self.cut().inspect_err(|_| self.broken = true));
        result.map_err(|error| self.cannot_write(error))
    }

    /// Writes at the end and syncs.
    fn extend(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            self.broken = self.cut().is_err();
            return Err(error);
        }
        // After a sync that failed nobody knows what is on the disk.
        self.file.sync_data().inspect_err(|_| self.broken = true)
    }

    fn cannot_write(&self, error: io::Error) -> Error {
        io_error(format!("cannot write to {}.journal", self.path.display()), error)
    }

    /// Writes a new snapshot of these registrations, and a journal that begins with this batch of entries, each in place of the old one in one
    /// step. If there is no room for that, and the journal is good, the batch is appended to it.
    pub fn compact(&mut self, records: &[(OwnerType, Vec<Bytes>)], mut batch: Vec<u8>) -> Result<()> {
        let was_good = !self.broken;
        let Err(error) = self.rewrite(records, &mut batch) else { return Ok(()) };
        if !was_good || self.broken {
            return Err(error);
        }
        // Not again with every batch.
        self.compact_at = self.len + COMPACT_MIN;
        tracing::warn!(reason = %error.with_causes(), "the journal stays as long as it is");
        if batch.is_empty() { self.probe() } else { self.append(batch) }
    }

    fn rewrite(&mut self, records: &[(OwnerType, Vec<Bytes>)], batch: &mut [u8]) -> Result<()> {
        let generation = self.generation.wrapping_add(1);
        let path = self.path.clone();
        let count: usize = records.iter().map(|(_, frames)| frames.len()).sum();
        let no_salt = |error| io_error("cannot make up a salt for the registrar's files".to_owned(), error);
        let (salt, journal_salt) = (Salt::new().map_err(no_salt)?, Salt::new().map_err(no_salt)?);
        let (snapshot, _) = replace(&path, |out| {
            SNAPSHOT.write(out, generation, count as u64, salt)?;
            let mut entry = Vec::new();
            for (owner, frames) in records {
                for frame in frames {
                    entry.clear();
                    Entry::Register(*owner, frame.clone()).write(&mut entry);
                    seal(&mut entry, &salt);
                    out.write_all(&entry)?;
                }
            }
            Ok(())
        })?;
        // The journal that is there is an older one now.
        self.broken = true;
        let (len, file) = replace(&with_suffix(&path, ".journal"), |out| {
            JOURNAL.write(out, generation, 0, journal_salt)?;
            seal(batch, &journal_salt);
            out.write_all(batch)
        })?;
        (self.generation, self.snapshot_len, self.len, self.file) = (generation, snapshot, len, file);
        (self.salt, self.compact_at) = (journal_salt, COMPACT_MIN.max(snapshot));
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

impl Contents {
    /// What could be read of them.
    fn describe(&self, what: &str, has_header: bool) -> String {
        let header = if has_header { "" } else { "its header is not good, " };
        let damage = match self.damaged {
            0 => String::new(),
            1 => format!(", {} bytes at 1 place could not", self.damaged_bytes),
            places => format!(", {} bytes at {places} places could not", self.damaged_bytes),
        };
        format!("{header}{} {what} could be read{damage}", self.entries.len())
    }
}

/// Where a file is, past all symbolic links: two names of one file are the same then. The file need not be there.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = fs::canonicalize(folder.unwrap_or(Path::new(".")))?;
        let Some(name) = path.file_name() else { return Err(io::Error::other("that is no name of a file")) };
        path = folder.join(name);
        match fs::read_link(&path) {
            Ok(target) => path = folder.join(target),
            // It is no link, or not there.
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many symbolic links lead to it"))
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
    work().map_err(|error| {
        // It is in the way where there is little room already.
        let _ = fs::remove_file(&temporary);
        io_error(format!("cannot write {}", path.display()), error)
    })
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
#[path = "journal_tests.rs"]
mod tests;
