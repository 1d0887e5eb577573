//! Writes a recording.

use std::io::{self, Write};

use super::block::{self, BLOCK_HEADER_LEN, COMPRESSED, Header};
use super::compression::Compressor;
use super::index::{Count, Index, Point};

/// The number of bytes that are collected before they are compressed and written.
pub(crate) const BUFFER_LEN: usize = 256 << 10;

/// Writes a recording to any output. Messages are written when the buffer is full, or by
/// [`flush`](Self::flush).
#[derive(Debug)]
pub(crate) struct Writer<W> {
    out: W,
    salt: u32,
    compressor: Option<Compressor>,
    /// The number of bytes of the file that were written.
    at: u64,
    /// Whole blocks or, with compression, messages with their lengths.
    buffer: Vec<u8>,
    /// The time of the first message in the buffer.
    buffered_from: Option<u64>,
    index: Index,
    /// The counts of the messages that were written.
    written: Count,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    pub(crate) fn new(mut out: W, header: &Header) -> io::Result<Self> {
        let compressor = if header.is_compressed { Some(Compressor::new()?) } else { None };
        let bytes = header.encode();
        out.write_all(&bytes)?;
        Ok(Self {
            out,
            salt: header.salt,
            compressor,
            at: bytes.len() as u64,
            buffer: Vec::with_capacity(BUFFER_LEN + BUFFER_LEN / 4),
            buffered_from: None,
            index: Index::default(),
            written: Count::default(),
        })
    }

    /// Adds a message. Returns `Ok(false)` if it exceeds the limits for frames or bytes, and is left out.
    pub(crate) fn push(&mut self, time_ns: u64, frames: &[&[u8]]) -> io::Result<bool> {
        if !self.buffer.is_empty() && self.buffer.len() + block::message_len(frames) > BUFFER_LEN {
            self.flush()?;
        }
        let start = self.buffer.len();
        let is_plain = self.compressor.is_none();
        self.buffer.resize(start + if is_plain { BLOCK_HEADER_LEN } else { 4 }, 0);
        let body = self.buffer.len();
        if !block::encode_message(&mut self.buffer, time_ns, frames) {
            self.buffer.truncate(start);
            return Ok(false);
        }
        if is_plain {
            block::seal(&mut self.buffer, start, self.salt);
            self.index.note(Point { at: self.at + start as u64, time_ns });
        } else {
            let len = (self.buffer.len() - body) as u32;
            self.buffer[start..body].copy_from_slice(&len.to_le_bytes());
        }
        self.buffered_from.get_or_insert(time_ns);
        let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        self.index.count(time_ns, frames.first().copied().unwrap_or_default(), bytes);
        Ok(true)
    }

    /// Writes the messages in the buffer.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let Some(time_ns) = self.buffered_from.take() else { return Ok(()) };
        if let Some(compressor) = &mut self.compressor {
            let compressed = compressor.compress(&self.buffer)?;
            let raw_len = self.buffer.len() as u32;
            self.buffer.clear();
            self.buffer.resize(BLOCK_HEADER_LEN, 0);
            self.buffer.push(COMPRESSED);
            self.buffer.extend_from_slice(&raw_len.to_le_bytes());
            self.buffer.extend_from_slice(&compressed);
            block::seal(&mut self.buffer, 0, self.salt);
            self.index.note(Point { at: self.at, time_ns });
        }
        self.write_buffer()?;
        self.written = self.index.total;
        Ok(())
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        let result = self.out.write_all(&self.buffer);
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        // The memory of one large message is released again.
        self.buffer.shrink_to(2 * BUFFER_LEN);
        result
    }

    /// Writes the rest and the index.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        let index_at = self.at;
        self.buffer.resize(BLOCK_HEADER_LEN, 0);
        self.index.encode(&mut self.buffer);
        block::seal(&mut self.buffer, 0, self.salt);
        self.buffer.extend_from_slice(&block::encode_trailer(index_at, self.salt));
        self.write_buffer()?;
        self.out.flush()
    }

    /// Returns whether there is anything to [`flush`](Self::flush).
    pub(crate) fn has_unwritten(&self) -> bool {
        self.buffered_from.is_some()
    }

    /// Returns the length of the file without its index. With compression, it does not include messages that
    /// are not yet written.
    pub(crate) fn len(&self) -> u64 {
        self.at + if self.compressor.is_none() { self.buffer.len() as u64 } else { 0 }
    }

    /// Returns the counts of the messages that were added.
    pub(crate) fn pushed(&self) -> Count {
        self.index.total
    }

    /// Returns the counts of the messages that were written.
    pub(crate) fn written(&self) -> Count {
        self.written
    }

    pub(crate) fn get_ref(&self) -> &W {
        &self.out
    }
}
