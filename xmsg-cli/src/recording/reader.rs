//! Reads a recording, also one whose end is missing, or that is damaged.

use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;

use super::block::{
    self, BEGIN_LEN, BLOCK_HEADER_LEN, BLOCK_MAX, COMPRESSED, COMPRESSED_FIXED, HEADER_LEN, Header, INDEX,
    MESSAGE, RAW_MAX, Record, Records, TRAILER_LEN,
};
use super::compression::Decompressor;
use super::index::Index;

/// Bytes that are read at a time.
const READ_LEN: usize = 256 << 10;
/// How far the next good block is looked for behind one that is damaged: no block is longer, so there it is, unless
/// it is damaged, too.
const SEARCH_MAX: u64 = (BLOCK_HEADER_LEN + BLOCK_MAX) as u64;
/// Bytes whose checksum is calculated for that, in a whole file: whoever makes a file of false beginnings costs no
/// more.
const SEARCH_BUDGET: u64 = 1 << 30;
/// Damaged places that are remembered one by one.
const GAPS_MAX: usize = 100;

/// How the file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With its index.
    Whole,
    /// With a whole block, and without an index: whoever wrote it did not come to its end, or is still at it.
    WithoutIndex,
    /// In the middle of a block, which begins here.
    Cut { at: u64 },
    /// It goes on, but from here on nothing could be read.
    Unreadable { at: u64 },
}

/// Bytes that were passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) at: u64,
    pub(crate) len: u64,
}

/// What was found at a place.
#[derive(Debug)]
enum Found {
    Record(Record),
    Records(Records),
    Index(Box<Index>),
    /// The file ends here.
    Nothing,
    /// Not a good block. If its length may be right, where the next one begins.
    Bad {
        next: Option<u64>,
    },
}

/// A recording from anything that can be read and sought in.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    len: u64,
    header: Header,
    decompressor: Option<Decompressor>,
    /// Bytes of the file, and where they begin in it.
    window: Vec<u8>,
    window_at: u64,
    /// The next block.
    at: u64,
    /// What is left of the block before it.
    records: Records,
    end: Option<End>,
    gaps: Vec<Gap>,
    gap_count: u64,
    search_budget: u64,
}

impl<R: Read + Seek> Reader<R> {
    /// Reads the header. An error of kind [`InvalidData`](io::ErrorKind::InvalidData) says why it is not a recording.
    pub(crate) fn new(mut input: R) -> io::Result<Self> {
        let len = input.seek(SeekFrom::End(0))?;
        input.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        input.by_ref().take(HEADER_LEN as u64).read_to_end(&mut bytes)?;
        let header = Header::decode(&bytes).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
        Ok(Self {
            input,
            len,
            header,
            decompressor: if header.is_compressed { Some(Decompressor::new()?) } else { None },
            window: Vec::new(),
            window_at: 0,
            at: HEADER_LEN as u64,
            records: Records::default(),
            end: None,
            gaps: Vec::new(),
            gap_count: 0,
            search_budget: SEARCH_BUDGET,
        })
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// How the file ends, once [`next`](Self::next) has returned `None`.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    /// What was passed over so far: the first places of it, and how many there are.
    pub(crate) fn gaps(&self) -> (&[Gap], u64) {
        (&self.gaps, self.gap_count)
    }

    /// The next message, in the order of the file. What is damaged is passed over.
    pub(crate) fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            if let Some(record) = self.records.next() {
                return Ok(Some(record));
            }
            if self.end.is_some() {
                return Ok(None);
            }
            let (found, next) = self.block(self.at)?;
            match found {
                Found::Record(record) => {
                    self.at = next;
                    return Ok(Some(record));
                }
                Found::Records(records) => {
                    self.records = records;
                    self.at = next;
                }
                Found::Index(_) => self.end = Some(End::Whole),
                Found::Nothing => self.end = Some(End::WithoutIndex),
                Found::Bad { next } => self.find_next(next)?,
            }
        }
    }

    /// The index, if the file has one.
    pub(crate) fn index(&mut self) -> io::Result<Option<Index>> {
        let Some(trailer_at) = self.len.checked_sub(TRAILER_LEN as u64) else { return Ok(None) };
        let salt = self.header.salt;
        let Some(trailer) = self.bytes(trailer_at, TRAILER_LEN)?.first_chunk() else { return Ok(None) };
        let Some(index_at) = block::decode_trailer(*trailer, salt) else { return Ok(None) };
        if index_at < HEADER_LEN as u64 || index_at >= trailer_at {
            return Ok(None);
        }
        Ok(match self.block(index_at)? {
            (Found::Index(index), end) if end == trailer_at => Some(*index),
            _ => None,
        })
    }

    /// Goes to the last place that the index knows before this time.
    pub(crate) fn seek(&mut self, index: &Index, time_ns: u64) -> io::Result<()> {
        if let Some(at) = index.place_of(time_ns)
            && at >= HEADER_LEN as u64
            && self.is_good(at)?
        {
            self.at = at;
            self.records = Records::default();
        }
        Ok(())
    }

    /// What begins here, and where it ends.
    fn block(&mut self, at: u64) -> io::Result<(Found, u64)> {
        let bad = |next| Ok((Found::Bad { next }, at));
        let left = self.len.saturating_sub(at);
        if left == 0 {
            return Ok((Found::Nothing, at));
        }
        let Some(header) = self.bytes(at, BLOCK_HEADER_LEN)?.first_chunk().copied() else { return bad(None) };
        let Some((len, expected)) = block::block_header(header) else { return bad(None) };
        let body_at = at + BLOCK_HEADER_LEN as u64;
        let end = body_at + len as u64;
        if end > self.len {
            return bad(None);
        }
        let salt = self.header.salt;
        let body = self.bytes(body_at, len)?;
        if body.len() < len || block::checksum(salt, &[&header[..4], body]) != expected {
            return bad(Some(end));
        }
        let found = match body[0] {
            MESSAGE => Record::decode(&Bytes::copy_from_slice(body)).map(Found::Record),
            COMPRESSED => {
                let raw_len = block::Fields(&body[1..]).u32().map_or(0, |len| len as usize);
                let compressed = body.get(COMPRESSED_FIXED..).unwrap_or_default().to_vec();
                self.decompress(&compressed, raw_len).map(Found::Records)
            }
            INDEX => Index::decode(body).map(|index| Found::Index(Box::new(index))),
            _ => None,
        };
        match found {
            Some(found) => Ok((found, end)),
            None => bad(Some(end)),
        }
    }

    fn decompress(&mut self, compressed: &[u8], raw_len: usize) -> Option<Records> {
        if !(1..=RAW_MAX).contains(&raw_len) {
            return None;
        }
        let raw = self.decompressor.as_mut()?.decompress(compressed, raw_len)?;
        Records::of(raw.into())
    }

    /// Whether a block begins here whose checksum fits.
    fn is_good(&mut self, at: u64) -> io::Result<bool> {
        let left = self.len.saturating_sub(at);
        let bytes = self.bytes(at, BLOCK_HEADER_LEN + BEGIN_LEN)?;
        let Some((header, body)) = bytes.split_first_chunk() else { return Ok(false) };
        let header = *header;
        let Some((len, expected)) = block::block_header(header) else { return Ok(false) };
        let cost = (BLOCK_HEADER_LEN + len) as u64;
        if cost > left || !block::may_begin(body, len) || cost > self.search_budget {
            return Ok(false);
        }
        self.search_budget -= cost;
        let salt = self.header.salt;
        let body = self.bytes(at + BLOCK_HEADER_LEN as u64, len)?;
        Ok(body.len() == len && block::checksum(salt, &[&header[..4], body]) == expected)
    }

    /// Goes on behind a block that is not good: where it says that it ends, or else where the next good one is found.
    fn find_next(&mut self, next: Option<u64>) -> io::Result<()> {
        let bad = self.at;
        if let Some(next) = next
            && next.saturating_add(TRAILER_LEN as u64) == self.len
        {
            let salt = self.header.salt;
            let trailer = self.bytes(next, TRAILER_LEN)?.first_chunk().copied();
            if trailer.and_then(|trailer| block::decode_trailer(trailer, salt)) == Some(bad) {
                // It is the index that is damaged.
                self.end = Some(End::WithoutIndex);
                return Ok(());
            }
        }
        if let Some(next) = next
            && (next == self.len || self.is_good(next)?)
        {
            self.pass_over(next);
            return Ok(());
        }
        let mut from = bad + 1;
        while let Some(at) = self.candidate(from, bad + SEARCH_MAX)? {
            if self.is_good(at)? {
                self.pass_over(at);
                return Ok(());
            }
            from = at + 1;
        }
        // Nothing more of the file is good; so if the block goes beyond its end, it is the last one.
        let header = self.bytes(bad, BLOCK_HEADER_LEN)?.first_chunk().copied();
        let is_cut = match header.map(block::block_header) {
            None => true,
            Some(Some((len, _))) => bad + (BLOCK_HEADER_LEN + len) as u64 > self.len,
            Some(None) => false,
        };
        self.end = Some(if is_cut { End::Cut { at: bad } } else { End::Unreadable { at: bad } });
        Ok(())
    }

    /// The first place in this range where a block may begin, by the two bytes of it that are nearly always the same.
    fn candidate(&mut self, from: u64, to: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        while at < to {
            let len = (to - at).min(READ_LEN as u64) as usize + BLOCK_HEADER_LEN;
            let bytes = self.bytes(at, len)?;
            // The highest byte of the length, and the kind.
            let may_begin = |bytes: &[u8]| {
                usize::from(bytes[3]) <= BLOCK_MAX >> 24
                    && (MESSAGE..=INDEX).contains(&bytes[BLOCK_HEADER_LEN])
            };
            let mut places = bytes.windows(BLOCK_HEADER_LEN + 1);
            let searched = places.len() as u64;
            if let Some(found) = places.position(may_begin) {
                return Ok(Some(at + found as u64));
            }
            if searched == 0 {
                break;
            }
            at += searched;
        }
        Ok(None)
    }

    fn pass_over(&mut self, next: u64) {
        self.gap_count += 1;
        if self.gaps.len() < GAPS_MAX {
            self.gaps.push(Gap { at: self.at, len: next - self.at });
        }
        self.at = next;
    }

    /// Bytes of the file; fewer, if it ends before.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let len = (self.len.saturating_sub(at)).min(len as u64) as usize;
        let is_there = at >= self.window_at
            && at.saturating_add(len as u64) <= self.window_at.saturating_add(self.window.len() as u64);
        if !is_there {
            self.window.clear();
            self.window.shrink_to(2 * READ_LEN);
            self.window_at = at;
            self.input.seek(SeekFrom::Start(at))?;
            self.input.by_ref().take(len.max(READ_LEN) as u64).read_to_end(&mut self.window)?;
        }
        let start = (at - self.window_at) as usize;
        let end = (start + len).min(self.window.len());
        Ok(self.window.get(start..end).unwrap_or_default())
    }
}
