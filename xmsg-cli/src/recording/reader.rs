//! Reads recordings, including damaged ones and those whose end is missing.

use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;

use super::block::{
    self, BEGIN_LEN, BLOCK_HEADER_LEN, BLOCK_MAX, COMPRESSED, COMPRESSED_FIXED, HEADER_LEN, Header, INDEX,
    MESSAGE, RAW_MAX, Record, Records, TRAILER_LEN,
};
use super::compression::Decompressor;
use super::index::Index;

/// The number of bytes of one read.
const READ_LEN: usize = 256 << 10;
/// How far the next good block is searched after a damaged one. No block is longer, so it lies within this
/// range unless it is damaged, too.
const SEARCH_MAX: u64 = (BLOCK_HEADER_LEN + BLOCK_MAX) as u64;
/// The largest number of bytes of one file whose checksum is computed in such searches. It limits the cost of
/// a file that was made of false block headers, together with [`CANDIDATE_COST`].
const SEARCH_BUDGET: u64 = 1 << 30;
/// What each place where a block may begin costs of this budget. So no more than 64 million of them are
/// looked at, which takes seconds.
const CANDIDATE_COST: u64 = 16;
/// The largest number of damaged ranges that are remembered.
const GAPS_MAX: usize = 100;

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With its index.
    Whole,
    /// After a whole block, without an index: the recorder was killed, or is still writing.
    WithoutIndex,
    /// Within a block, which begins at this offset.
    Cut { at: u64 },
    /// With bytes after this offset of which none could be read.
    Unreadable { at: u64 },
}

/// A range of bytes that was skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) at: u64,
    pub(crate) len: u64,
}

/// What was found at an offset.
#[derive(Debug)]
enum Found {
    Record(Record),
    Records(Records),
    Index(Box<Index>),
    /// The end of the file.
    Nothing,
    /// Something that is not a good block, and the offset after it if its length may be right.
    Bad {
        next: Option<u64>,
    },
}

/// A reader of a recording in any input that can be read and sought.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    len: u64,
    header: Header,
    decompressor: Option<Decompressor>,
    /// A window of the file, and its offset.
    window: Vec<u8>,
    window_at: u64,
    /// The offset of the next block.
    at: u64,
    /// The rest of the messages of the previous block.
    records: Records,
    end: Option<End>,
    gaps: Vec<Gap>,
    gap_count: u64,
    search_budget: u64,
}

impl<R: Read + Seek> Reader<R> {
    /// Reads the header. An error of kind [`InvalidData`](io::ErrorKind::InvalidData) says why this is not a
    /// recording.
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

    /// Returns the length of the file in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Returns how the file ends, after [`next`](Self::next) has returned `None`.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    /// Returns what was skipped so far: the first ranges, and the number of all ranges.
    pub(crate) fn gaps(&self) -> (&[Gap], u64) {
        (&self.gaps, self.gap_count)
    }

    /// Returns the next message, in the order of the file. Damaged blocks are skipped.
    pub(crate) fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            if let Some(record) = self.records.next() {
                return Ok(Some(record));
            }
            // The block before is not needed any more when the next one is decompressed.
            self.records = Records::default();
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

    /// Reads the index, if the file has one.
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

    /// Moves to the last point of the index before this time.
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

    /// Reads the block at this offset, and returns it with the offset of its end.
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
                // The bytes are still in the window, so nothing is copied.
                let start = (body_at - self.window_at) as usize;
                let compressed = self.window.get(start + COMPRESSED_FIXED..start + len).unwrap_or_default();
                let raw = match &mut self.decompressor {
                    Some(decompressor) if (1..=RAW_MAX).contains(&raw_len) => {
                        decompressor.decompress(compressed, raw_len).map_err(|error| {
                            let what = format!(
                                "there is no memory for the block at byte {at}, which has {raw_len} bytes: raise the limit of \
                                 memory (ulimit -v)"
                            );
                            io::Error::new(error.kind(), what)
                        })?
                    }
                    _ => None,
                };
                raw.and_then(|raw| Records::of(raw.into())).map(Found::Records)
            }
            INDEX => Index::decode(body).map(|index| Found::Index(Box::new(index))),
            _ => None,
        };
        match found {
            Some(found) => Ok((found, end)),
            None => bad(Some(end)),
        }
    }

    /// Returns whether a block begins at this offset, with a correct checksum.
    fn is_good(&mut self, at: u64) -> io::Result<bool> {
        if !self.charge(CANDIDATE_COST) {
            return Ok(false);
        }
        let left = self.len.saturating_sub(at);
        let bytes = self.bytes(at, BLOCK_HEADER_LEN + BEGIN_LEN)?;
        let Some((header, body)) = bytes.split_first_chunk() else { return Ok(false) };
        let header = *header;
        let Some((len, expected)) = block::block_header(header) else { return Ok(false) };
        let cost = (BLOCK_HEADER_LEN + len) as u64;
        if cost > left || !block::may_begin(body, len) || !self.charge(cost) {
            return Ok(false);
        }
        let salt = self.header.salt;
        let body = self.bytes(at + BLOCK_HEADER_LEN as u64, len)?;
        Ok(body.len() == len && block::checksum(salt, &[&header[..4], body]) == expected)
    }

    /// Takes this from the budget of searches. Returns `false` if there is not enough left.
    fn charge(&mut self, cost: u64) -> bool {
        let left = self.search_budget.checked_sub(cost);
        self.search_budget = left.unwrap_or(self.search_budget);
        left.is_some()
    }

    /// Continues after a bad block: at the end that its header gives, or else at the next good block that is
    /// found.
    fn find_next(&mut self, next: Option<u64>) -> io::Result<()> {
        let bad = self.at;
        if let Some(next) = next
            && next.saturating_add(TRAILER_LEN as u64) == self.len
        {
            let salt = self.header.salt;
            let trailer = self.bytes(next, TRAILER_LEN)?.first_chunk().copied();
            if trailer.and_then(|trailer| block::decode_trailer(trailer, salt)) == Some(bad) {
                // Only the index is damaged.
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
        while self.search_budget >= CANDIDATE_COST
            && let Some(at) = self.candidate(from, bad + SEARCH_MAX)?
        {
            if self.is_good(at)? {
                self.pass_over(at);
                return Ok(());
            }
            from = at + 1;
        }
        // The rest of the file has no good block. If this block extends beyond the end of the file, it is the
        // last one.
        let header = self.bytes(bad, BLOCK_HEADER_LEN)?.first_chunk().copied();
        let is_cut = match header.map(block::block_header) {
            None => true,
            Some(Some((len, _))) => bad + (BLOCK_HEADER_LEN + len) as u64 > self.len,
            Some(None) => false,
        };
        self.end = Some(if is_cut { End::Cut { at: bad } } else { End::Unreadable { at: bad } });
        Ok(())
    }

    /// Returns the first offset in this range where a block may begin. The check uses the two bytes that are
    /// nearly the same in all blocks.
    fn candidate(&mut self, from: u64, to: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        while at < to {
            // What was read already is searched first. Otherwise each place that is found would have the
            // same bytes read once more.
            let read = self.window_at.saturating_add(self.window.len() as u64).saturating_sub(at);
            let len =
                if at >= self.window_at && read > BLOCK_HEADER_LEN as u64 { read } else { READ_LEN as u64 };
            let len = (to - at).saturating_add(BLOCK_HEADER_LEN as u64).min(len) as usize;
            let bytes = self.bytes(at, len)?;
            // These are the highest byte of the length, and the kind.
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

    /// Returns bytes of the file; fewer if the file ends before.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let len = (self.len.saturating_sub(at)).min(len as u64) as usize;
        let is_there = at >= self.window_at
            && at.saturating_add(len as u64) <= self.window_at.saturating_add(self.window.len() as u64);
        if !is_there {
            self.window.clear();
            self.window.shrink_to(2 * READ_LEN);
            self.window_at = at;
            self.input.seek(SeekFrom::Start(at))?;
            self.input.by_ref().take(len.max(2 * READ_LEN) as u64).read_to_end(&mut self.window)?;
        }
        let start = (at - self.window_at) as usize;
        let end = (start + len).min(self.window.len());
        Ok(self.window.get(start..end).unwrap_or_default())
    }
}
