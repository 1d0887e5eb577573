//! The format of a registrar's files: headers, entries with checksums, and what can be read from damaged
//! files.

use std::io::{self, Write};

use bytes::Bytes;
use xmsg_core::registration::OwnerType;

pub(super) const SNAPSHOT: Format = Format { magic: b"XMSGREG2", old_magic: b"XMSGREG1", has_count: true };
pub(super) const JOURNAL: Format = Format { magic: b"XMSGJRN2", old_magic: b"XMSGJRN1", has_count: false };
/// The size of an entry's length and checksum, in bytes.
const ENTRY_HEADER: usize = 8;
/// The longest body of an entry, in bytes. Requests are limited to less.
pub(super) const ENTRY_MAX: usize = 256 << 10;
/// The longest body of an entry that is found only by its checksum, behind a damaged length, in bytes.
/// Requests are limited to a quarter of it.
pub(super) const FOUND_MAX: usize = 16 << 10;
/// While a file is read, checksums may be computed in vain for this many bytes, plus `IN_VAIN_OF_EACH` for
/// each byte of the file. Without this limit, clients could make every byte of an entry look like the
/// beginning of a long entry.
pub(super) const IN_VAIN: usize = 64 << 20;
pub(super) const IN_VAIN_OF_EACH: usize = 16;

/// The byte that a probe writes. It is not zero, because some file systems don't store zeros, and no entry
/// starts with such a length.
pub(super) const PROBE: u8 = 0xff;

/// The values of the first byte of an entry's body.
const TAGS: std::ops::RangeInclusive<u8> = 1..=5;

/// A change in a registrar's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A registration was made. It has the registration's frame.
    Register(OwnerType, Bytes),
    /// The registrations with this topic, name and host were removed. It has the frame of the request.
    Remove(OwnerType, Bytes),
    /// All registrations of this host were removed.
    RemoveHost(Bytes),
}

impl Entry {
    /// Appends the entry to a batch, with an empty checksum that `seal` fills in.
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

    /// Returns the entry at the front and its length with the header, or `None` if there is no good entry.
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

/// Returns the length of the body of the entry at the front, if it is a valid length.
fn length(rest: &[u8]) -> Option<usize> {
    let len = u32::from_le_bytes(*rest.first_chunk()?) as usize;
    (1..=ENTRY_MAX).contains(&len).then_some(len)
}

/// Fills in the checksums of a batch of entries. Returns the length of the complete entries, in bytes.
pub(super) fn seal(batch: &mut [u8], salt: &Salt) -> usize {
    let mut whole = 0;
    let mut rest = batch;
    while let Some(len) = length(rest)
        && let Some((entry, behind)) = rest.split_at_mut_checked(ENTRY_HEADER + len)
    {
        let crc = salt.checksum(&entry[ENTRY_HEADER..]);
        entry[4..ENTRY_HEADER].copy_from_slice(&crc.to_le_bytes());
        rest = behind;
        whole += entry.len();
    }
    whole
}

/// Replaces the checksums of a batch of entries. Returns the length of the complete entries, or `None` if one
/// of them is damaged.
pub(super) fn seal_again(batch: &mut [u8], old: &Salt, new: &Salt) -> Option<usize> {
    let mut whole = 0;
    loop {
        let rest = &mut batch[whole..];
        let Some(len) = length(rest) else {
            return (rest.len() < 4).then_some(whole);
        };
        let Some(entry) = rest.get_mut(..ENTRY_HEADER + len) else { return Some(whole) };
        let (header, body) = entry.split_at_mut(ENTRY_HEADER);
        if header[4..] != old.checksum(body).to_le_bytes() {
            return None;
        }
        header[4..].copy_from_slice(&new.checksum(body).to_le_bytes());
        whole += ENTRY_HEADER + len;
    }
}

/// The salt with which each checksum of a file starts. Only those who can read the file know it. It is `None`
/// in files of the first version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Salt(pub(super) Option<[u8; 8]>);

impl Salt {
    pub(super) fn new() -> io::Result<Self> {
        let mut salt = [0; 8];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        Ok(Self(Some(salt)))
    }

    pub(super) fn checksum(&self, body: &[u8]) -> u32 {
        let start = self.0.map_or(!0, |salt| crc32(!0, &salt));
        !crc32(start, body)
    }
}

/// What distinguishes the headers of the two kinds of files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    magic: &'static [u8; 8],
    old_magic: &'static [u8; 8],
    has_count: bool,
}

/// The header of a file that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) generation: u64,
    pub(super) count: Option<u64>,
    pub(super) salt: Salt,
    /// The length of the header, in bytes.
    pub(super) len: usize,
}

impl Format {
    /// Writes a header, and returns its length in bytes.
    pub(super) fn write(
        self,
        out: &mut impl Write,
        generation: u64,
        count: u64,
        salt: Salt,
    ) -> io::Result<usize> {
        out.write_all(self.magic)?;
        out.write_all(&generation.to_le_bytes())?;
        if self.has_count {
            out.write_all(&count.to_le_bytes())?;
        }
        let salt = salt.0.unwrap_or_default();
        // The salt is written twice, so that damage to one copy does not make the file unreadable.
        out.write_all(&salt)?;
        out.write_all(&salt)?;
        Ok(self.len())
    }

    /// Returns the length of a header of the first version, which has no salt, in bytes.
    pub(super) fn old_len(self) -> usize {
        if self.has_count { 24 } else { 16 }
    }

    /// Returns the length of a header of the current version, in bytes.
    fn len(self) -> usize {
        self.old_len() + 16
    }

    /// Reads a header, and passes the entries behind it to `found`. Returns `None` for a damaged header. In
    /// that case the entries are read with the salt and the header length that give the most good entries.
    pub(super) fn read(self, file: &Bytes, found: impl FnMut(Entry)) -> (Option<Header>, Contents) {
        let (old_len, len) = (self.old_len(), self.len());
        let salt_at = |at: usize| file.get(at..).and_then(<[u8]>::first_chunk).copied();
        let header = |salt, len| Header {
            generation: number(file, 8),
            count: self.has_count.then(|| number(file, 16)),
            salt: Salt(salt),
            len,
        };
        let behind = |len: usize| file.slice(len.min(file.len())..);
        if file.len() >= old_len && file.starts_with(self.old_magic) {
            let header = header(None, old_len);
            return (Some(header), Contents::read(&behind(old_len), header.salt, found));
        }
        let (first, second) = (salt_at(old_len), salt_at(old_len + 8));
        if file.len() >= len && file.starts_with(self.magic) && first == second {
            let header = header(first, len);
            return (Some(header), Contents::read(&behind(len), header.salt, found));
        }
        let candidates = [(first, len), (second, len), (None, old_len)].map(|(salt, len)| (Salt(salt), len));
        let count = |(salt, len): &(Salt, usize)| Contents::read(&behind(*len), *salt, drop).count;
        let best = candidates.into_iter().max_by_key(count);
        (None, best.map(|(salt, len)| Contents::read(&behind(len), salt, found)).unwrap_or_default())
    }
}

/// What was found in a file behind its header.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The number of good entries.
    pub(super) count: usize,
    /// The number of damaged places. `damaged_bytes` is their size.
    pub(super) damaged: usize,
    pub(super) damaged_bytes: usize,
    /// The bytes from the end of the header to the end of the last good entry.
    pub(super) good_len: usize,
    /// Whether the rest behind the last good entry was left by an interrupted write: less than an entry,
    /// zeros that the file system had allocated, or bytes of a probe.
    pub(super) is_torn: bool,
    /// The bytes for which checksums were computed in vain.
    pub(super) in_vain: usize,
}

impl Contents {
    /// Reads a file behind its header, and passes each good entry to `each`.
    pub(super) fn read(file: &Bytes, salt: Salt, mut each: impl FnMut(Entry)) -> Self {
        let mut found = Self::default();
        let budget = IN_VAIN + IN_VAIN_OF_EACH * file.len();
        let mut at = 0;
        while at < file.len() {
            let rest = file.slice(at..);
            if let Some((entry, len)) = Entry::at(&rest, &salt) {
                each(entry);
                found.count += 1;
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

/// Returns the distance to the next good entry behind a damaged one. Returns `None` if there is none, or if
/// finding it would exceed `budget`, the bytes for which checksums may be computed in vain.
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
    let expected = length(rest).map(|len| ENTRY_HEADER + len);
    expected
        .filter(|at| is_good(*at, ENTRY_MAX))
        .or_else(|| (1..rest.len()).find(|at| is_good(*at, FOUND_MAX)))
}

impl Contents {
    /// Describes what could be read, for people.
    pub(super) fn describe(&self, what: &str, has_header: bool) -> String {
        let header = if has_header { "" } else { "its header is not good, " };
        let damage = match self.damaged {
            0 => String::new(),
            1 => format!(", {} bytes at 1 place could not", self.damaged_bytes),
            places => format!(", {} bytes at {places} places could not", self.damaged_bytes),
        };
        format!("{header}{} {what} could be read{damage}", self.count)
    }
}

fn number(header: &[u8], at: usize) -> u64 {
    header.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Continues a CRC-32 (IEEE 802.3) from `crc`. A checksum starts at `!0` and is inverted at the end.
pub(super) fn crc32(mut crc: u32, bytes: &[u8]) -> u32 {
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
