//! Encoding and decoding of header, blocks and trailer. Numbers are little-endian.

use bytes::Bytes;
use crc32fast::Hasher;

/// The magic bytes have a byte above 127 and line ends of both kinds: a program that treats the file as text
/// damages them first.
pub(crate) const MAGIC: [u8; 8] = *b"\x89XMR\r\n\x1a\n";
pub(crate) const END_MAGIC: [u8; 8] = *b"\x89XMREND\n";
pub(crate) const VERSION: u16 = 1;

pub(crate) const HEADER_LEN: usize = 32;
/// The length of a block header, which has the length and the checksum of the body.
pub(crate) const BLOCK_HEADER_LEN: usize = 8;
pub(crate) const TRAILER_LEN: usize = 20;

pub(crate) const MESSAGE: u8 = 1;
pub(crate) const COMPRESSED: u8 = 2;
pub(crate) const INDEX: u8 = 3;

/// The largest number of frames of a message, which is the limit for received messages.
pub(crate) const FRAMES_MAX: usize = 1024;
/// The bytes of a message block before its frame lengths: kind, time, number of frames.
const MESSAGE_FIXED: usize = 11;
/// The length of the longest message block. A received message has at most 64 MiB with its headers.
pub(crate) const MESSAGE_MAX: usize = MESSAGE_FIXED + 4 * FRAMES_MAX + (64 << 20);
/// The length of the longest block of any kind. It is one message that compression made longer.
pub(crate) const BLOCK_MAX: usize = MESSAGE_MAX + (1 << 20);
/// The largest decompressed length of a block: one message with its length.
pub(crate) const RAW_MAX: usize = 4 + MESSAGE_MAX;
/// The length of kind and raw length of a compressed block.
pub(crate) const COMPRESSED_FIXED: usize = 5;

/// The bytes of the index before its points: kind, six totals, number of points.
const INDEX_FIXED: usize = 53;
/// The first bytes of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The flag for files whose blocks may be compressed.
const FLAG_COMPRESSED: u16 = 1;

/// The header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) is_compressed: bool,
    /// The number of the part, from 1, in a recording of several files; otherwise 0.
    pub(crate) part: u32,
    /// When the recording began, in nanoseconds since 1970. All parts have the same value.
    pub(crate) start_ns: u64,
    /// The initial value of all checksums, which is random. A message can contain a recording, or data that
    /// was made to look like one. Such data does not know the salt of this file, so it is never mistaken for
    /// a block of this file.
    pub(crate) salt: u32,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        let flags = if self.is_compressed { FLAG_COMPRESSED } else { 0 };
        out[10..12].copy_from_slice(&flags.to_le_bytes());
        out[12..16].copy_from_slice(&self.part.to_le_bytes());
        out[16..24].copy_from_slice(&self.start_ns.to_le_bytes());
        out[24..28].copy_from_slice(&self.salt.to_le_bytes());
        let checksum = checksum(0, &[&out[..28]]);
        out[28..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Decodes the header, or returns what is wrong with these bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err("it is too short for a recording".to_owned());
        };
        let mut fields = Fields(bytes);
        if fields.take(8) != Some(&MAGIC) {
            return Err("it is not a recording of `xmsg record`".to_owned());
        }
        let (Some(version), Some(flags)) = (fields.u16(), fields.u16()) else { return Err(String::new()) };
        if version != VERSION {
            return Err(format!("its format has version {version}, and this xmsg reads version {VERSION}"));
        }
        let (Some(part), Some(start_ns), Some(salt), Some(expected)) =
            (fields.u32(), fields.u64(), fields.u32(), fields.u32())
        else {
            return Err(String::new());
        };
        if checksum(0, &[&bytes[..28]]) != expected {
            return Err("its header is damaged".to_owned());
        }
        Ok(Self { is_compressed: flags & FLAG_COMPRESSED != 0, part, start_ns, salt })
    }
}

/// Computes the CRC-32 of zlib with the initial value `salt`.
pub(crate) fn checksum(salt: u32, parts: &[&[u8]]) -> u32 {
    let mut hasher = Hasher::new_with_initial(salt);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// Fills in length and checksum of a block. `out` has room for them at `start`, followed by the body.
pub(crate) fn seal(out: &mut [u8], start: usize, salt: u32) {
    let body = start + BLOCK_HEADER_LEN;
    let len = ((out.len() - body) as u32).to_le_bytes();
    let checksum = checksum(salt, &[&len, &out[body..]]);
    out[start..start + 4].copy_from_slice(&len);
    out[start + 4..body].copy_from_slice(&checksum.to_le_bytes());
}

/// Decodes length and checksum of a block; `None` if no block has this length.
pub(crate) fn block_header(bytes: [u8; BLOCK_HEADER_LEN]) -> Option<(usize, u32)> {
    let mut fields = Fields(&bytes);
    let (len, checksum) = (fields.u32()? as usize, fields.u32()?);
    (1..=BLOCK_MAX).contains(&len).then_some((len, checksum))
}

/// Returns whether a body with this length may begin with these bytes. This is a cheap check before that of
/// the checksum.
pub(crate) fn may_begin(body: &[u8], len: usize) -> bool {
    let mut fields = Fields(body);
    match fields.u8() {
        Some(MESSAGE) => {
            let _time = fields.u64();
            fields.u16().is_some_and(|frames| {
                let frames = usize::from(frames);
                (1..=FRAMES_MAX).contains(&frames)
                    && (MESSAGE_FIXED + 4 * frames..=MESSAGE_MAX).contains(&len)
            })
        }
        Some(COMPRESSED) => {
            let raw = fields.u32().map_or(0, |raw| raw as usize);
            (1..=RAW_MAX).contains(&raw) && fields.0.starts_with(&ZSTD_MAGIC)
        }
        Some(INDEX) => {
            let _totals = fields.take(INDEX_FIXED - 5);
            let points = fields.u32().map_or(usize::MAX, |points| points as usize);
            points <= super::index::POINTS_MAX && INDEX_FIXED + 16 * points + 4 <= len
        }
        _ => false,
    }
}

/// The number of bytes that [`may_begin`] reads.
pub(crate) const BEGIN_LEN: usize = INDEX_FIXED;

/// Returns the length of the body of this message.
pub(crate) fn message_len(frames: &[&[u8]]) -> usize {
    MESSAGE_FIXED + frames.iter().map(|frame| 4 + frame.len()).sum::<usize>()
}

/// Appends the body of a message. Returns `false` and appends nothing if it has more frames or bytes than the
/// limits allow.
pub(crate) fn encode_message(out: &mut Vec<u8>, time_ns: u64, frames: &[&[u8]]) -> bool {
    if !(1..=FRAMES_MAX).contains(&frames.len()) || message_len(frames) > MESSAGE_MAX {
        return false;
    }
    out.push(MESSAGE);
    out.extend_from_slice(&time_ns.to_le_bytes());
    out.extend_from_slice(&(frames.len() as u16).to_le_bytes());
    for frame in frames {
        out.extend_from_slice(&(frame.len() as u32).to_le_bytes());
    }
    for frame in frames {
        out.extend_from_slice(frame);
    }
    true
}

/// A message of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The time of arrival, in nanoseconds since 1970.
    pub(crate) time_ns: u64,
    /// The frames as they were on the wire. There is at least one, the topic.
    pub(crate) frames: Vec<Bytes>,
}

impl Record {
    /// Decodes the message in this body, including the kind; `None` if the body is not a message.
    pub(crate) fn decode(body: &Bytes) -> Option<Self> {
        let mut fields = Fields(body);
        let (kind, time_ns, count) = (fields.u8()?, fields.u64()?, usize::from(fields.u16()?));
        if kind != MESSAGE || !(1..=FRAMES_MAX).contains(&count) {
            return None;
        }
        let mut at = MESSAGE_FIXED + 4 * count;
        let mut frames = Vec::with_capacity(count);
        for _ in 0..count {
            let end = at.checked_add(fields.u32()? as usize)?;
            if end > body.len() {
                return None;
            }
            frames.push(body.slice(at..end));
            at = end;
        }
        (at == body.len()).then_some(Self { time_ns, frames })
    }

    pub(crate) fn topic(&self) -> &[u8] {
        self.frames.first().map_or(&[], |topic| &topic[..])
    }

    /// Returns the length of all frames together, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.frames.iter().map(|frame| frame.len() as u64).sum()
    }

    /// Returns the memory that this record keeps, in bytes: its frames, which may be parts of a block of
    /// twice their length, and what each frame takes besides.
    pub(crate) fn memory(&self) -> u64 {
        2 * self.size() + (self.frames.len() * size_of::<Bytes>()) as u64
    }
}

/// The messages of a block. They are decoded one by one, because a compressed block of a few kilobytes may
/// have millions of empty frames.
///
/// A message that is smaller than half of its block has a copy of its bytes. Otherwise, a message of a few
/// bytes would keep a block of 64 MiB, of which nobody needs the rest.
#[derive(Debug, Default)]
pub(crate) struct Records {
    left: Bytes,
    block_len: usize,
}

impl Records {
    /// Makes the messages of a decompressed block, in which each message follows its length. `None` if one of
    /// them is not valid.
    pub(crate) fn of(raw: Bytes) -> Option<Self> {
        let block_len = raw.len();
        let mut records = Self { left: raw.clone(), block_len };
        while !records.left.is_empty() {
            Record::decode(&records.next_body()?)?;
        }
        Some(Self { left: raw, block_len })
    }

    fn next_body(&mut self) -> Option<Bytes> {
        let len = Fields(&self.left).u32()? as usize;
        if len > self.left.len() - 4 {
            return None;
        }
        let body = self.left.slice(4..4 + len);
        self.left = self.left.split_off(4 + len);
        Some(body)
    }
}

impl Iterator for Records {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let body = self.next_body()?;
        let is_small = body.len() < self.block_len / 2;
        Record::decode(&if is_small { Bytes::copy_from_slice(&body) } else { body })
    }
}

pub(crate) fn encode_trailer(index_at: u64, salt: u32) -> [u8; TRAILER_LEN] {
    let mut out = [0; TRAILER_LEN];
    out[..8].copy_from_slice(&index_at.to_le_bytes());
    let checksum = checksum(salt, &[&out[..8]]);
    out[8..12].copy_from_slice(&checksum.to_le_bytes());
    out[12..].copy_from_slice(&END_MAGIC);
    out
}

/// Decodes the trailer and returns the offset of the index.
pub(crate) fn decode_trailer(bytes: [u8; TRAILER_LEN], salt: u32) -> Option<u64> {
    let mut fields = Fields(&bytes);
    let (index_at, expected) = (fields.u64()?, fields.u32()?);
    let is_good = fields.0 == END_MAGIC && checksum(salt, &[&bytes[..8]]) == expected;
    is_good.then_some(index_at)
}

/// Reads numbers one after another; `None` at the end of the bytes.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
