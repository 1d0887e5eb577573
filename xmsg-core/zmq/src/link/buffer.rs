//! The receive buffer: memory that is passed on without a copy, and reused when no slice of it is left.

use std::collections::VecDeque;
use std::io;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The first size of a slab, which is what an idle connection holds.
const SLAB_MIN: usize = 4 << 10;
/// The size to which slabs grow while reads fill them. It is small enough for a core's cache.
const SLAB_MAX: usize = 128 << 10;
/// The largest size of an ordinary slab, for connections whose messages are large.
const SLAB_LARGE: usize = 2 << 20;
/// The number of slabs that a connection keeps for reuse.
const SPARE: usize = 8;
/// For a message of at least this length, a read takes no more than the bytes that are missing and
/// [`READ_MIN`]. The beginning of the next message has to be copied to another slab, and should be short.
const LARGE: usize = 256 << 10;
/// A slab with less room than this is replaced before the next read.
const READ_MIN: usize = 2 << 10;

/// Identifies the slab that bytes lie in. A slice of it keeps the whole slab alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slab {
    /// Differs from that of every other slab of this connection.
    pub serial: u64,
    /// The size of the whole slab in bytes.
    pub size: usize,
}

/// The buffer in which the bytes of a connection arrive. Bytes that are split off the front are a slice of
/// the slab. A slab is reused once no slice of it is left.
#[derive(Debug)]
pub struct ReceiveBuffer {
    /// The bytes that were received and not yet consumed.
    pub input: BytesMut,
    slab: Slab,
    slab_len: usize,
    /// Slabs for reuse, with their sizes.
    spare: VecDeque<(usize, BytesMut)>,
}

impl Default for ReceiveBuffer {
    fn default() -> Self {
        let input = BytesMut::with_capacity(SLAB_MIN);
        let slab = Slab { serial: 0, size: input.capacity() };
        Self { input, slab, slab_len: SLAB_MIN, spare: VecDeque::new() }
    }
}

impl ReceiveBuffer {
    /// Returns the slab in which `input` lies.
    #[must_use]
    pub fn slab(&self) -> Slab {
        self.slab
    }

    /// Reads once. `missing` is the number of bytes that are known to be missing from the message at the
    /// front. Returns the number of bytes that were read, which is 0 at the end of the stream.
    ///
    /// # Errors
    ///
    /// The stream failed.
    pub async fn read(&mut self, stream: &mut (impl AsyncRead + Unpin), missing: usize) -> io::Result<usize> {
        self.make_room(missing);
        let room = self.input.capacity() - self.input.len();
        let is_large = missing > 0 && self.input.len().saturating_add(missing) >= LARGE;
        let limit = if is_large { room.min(missing.saturating_add(READ_MIN)) } else { room };
        let len = stream.read_buf(&mut (&mut self.input).limit(limit)).await?;
        if len == room && self.slab_len < SLAB_MAX {
            self.slab_len = (self.slab_len * 4).min(SLAB_MAX);
        }
        Ok(len)
    }

    /// Releases all memory that is not in use. The connection may now be idle for long.
    pub fn release(&mut self) {
        self.spare.clear();
        self.slab_len = SLAB_MIN;
        if self.slab.size > SLAB_MIN {
            self.renew(SLAB_MIN.max(self.input.len()));
            self.spare.clear();
        }
    }

    /// Returns the size in bytes of all slabs after the next read, with `missing` bytes missing from the
    /// message at the front.
    #[must_use]
    pub fn needs_in_all(&self, missing: usize) -> usize {
        self.with_spare(self.needs(missing))
    }

    /// Returns the size in bytes of all slabs once there is [room](Self::reserve) for `len` more bytes.
    #[must_use]
    pub fn needs_in_all_for(&self, len: usize) -> usize {
        self.with_spare(self.needs_for(len))
    }

    /// Returns the size in bytes of the slabs during the next read if nothing is known about its length. It
    /// covers the larger of the present slab and the one that may replace it.
    #[must_use]
    pub fn needs_in_handshake(&self) -> usize {
        let slab = self.next_slab(0).map_or(self.slab.size, |(_, size)| size);
        slab.max(self.slab.size) + self.spare()
    }

    /// Returns the size in bytes of all slabs.
    #[must_use]
    pub fn held(&self) -> usize {
        self.slab.size + self.spare()
    }

    fn with_spare(&self, slab: usize) -> usize {
        // A very large slab that grows releases the spare ones.
        if slab > SLAB_LARGE.max(self.slab.size) { slab } else { slab + self.spare() }
    }

    /// The size in bytes of the slab for the next read, with `missing` bytes missing from the message at the
    /// front.
    fn needs(&self, missing: usize) -> usize {
        let len = self.input.len();
        if len == 0 && self.slab.size > SLAB_LARGE {
            // The present slab is not kept.
            return SLAB_MAX;
        }
        let wanted = missing.min(len.max(self.slab_len)).max(READ_MIN);
        self.slab.size.max(len + wanted)
    }

    /// The size in bytes of the slabs that are kept for reuse.
    fn spare(&self) -> usize {
        self.spare.iter().map(|(size, _)| size).sum()
    }

    /// Whether the slab as it is has room for `len` more bytes.
    #[must_use]
    pub fn fits(&self, len: usize) -> bool {
        self.input.capacity() - self.input.len() >= len
    }

    /// The size in bytes of the slab once there is [room](Self::reserve) for `len` more bytes.
    fn needs_for(&self, len: usize) -> usize {
        let needed = self.input.len() + len;
        if self.fits(len) {
            self.slab.size
        } else if needed > SLAB_LARGE {
            needed
        } else {
            self.grown().max(needed.next_power_of_two())
        }
    }

    /// Makes room for `len` bytes that have arrived already, in another buffer. A large slab gets exactly
    /// this size and is not rounded up.
    pub fn reserve(&mut self, len: usize) {
        if self.fits(len) {
            return;
        }
        let size = self.needs_for(len);
        self.slab_len = self.grown();
        if size > SLAB_LARGE {
            self.extend(size);
        } else {
            self.renew(size);
        }
    }

    /// The size of the next slab if the present one was too small.
    fn grown(&self) -> usize {
        if self.slab_len < SLAB_MAX { (self.slab_len * 4).min(SLAB_MAX) } else { self.slab_len }
    }

    /// Releases a very large slab if only a few bytes are left in it. Returns whether it did.
    pub fn give_up_large(&mut self) -> bool {
        let is_large = self.slab.size > SLAB_LARGE && self.input.len() <= SLAB_MAX;
        if is_large {
            // The next messages may be small, or take long to arrive.
            self.renew(self.slab_len.min(SLAB_MAX).max(self.input.len().next_power_of_two()));
        }
        is_large
    }

    /// Makes room for a read. Never reserves more than twice what has already arrived, however much a peer
    /// announces.
    fn make_room(&mut self, missing: usize) {
        let Some((slab_len, size)) = self.next_slab(missing) else { return };
        self.slab_len = slab_len;
        if size > SLAB_LARGE {
            self.extend(size);
        } else {
            self.renew(size);
        }
    }

    /// Returns the new size to which slabs grow, and the size of the slab that the next read needs. Returns
    /// `None` if there is room in the present slab.
    fn next_slab(&self, missing: usize) -> Option<(usize, usize)> {
        let len = self.input.len();
        let room = self.input.capacity() - len;
        let wanted = missing.min(len.max(self.slab_len));
        // The slab of one very large message is not kept for the small ones that follow.
        let oversized = len == 0 && self.slab.size > SLAB_LARGE;
        if room >= READ_MIN.max(wanted) && !oversized {
            return None;
        }
        let mut slab_len = self.slab_len;
        if (len + wanted) * 4 > slab_len && len >= slab_len / 4 && slab_len < SLAB_LARGE {
            // Messages are large. With slabs that hold several of them, a last, unfinished one is copied less
            // often.
            slab_len *= 2;
        }
        // There has to be room for a read of useful size behind what is there. Otherwise everything would be
        // copied again for every few bytes.
        let needed = len + wanted.max(READ_MIN);
        let size = if needed > SLAB_LARGE { needed } else { slab_len.max(needed.next_power_of_two()) };
        Some((slab_len, size))
    }

    /// Lets the slab of one very large message grow to exactly `size`. It grows in place or is moved by the
    /// system, so the message need not exist twice.
    fn extend(&mut self, size: usize) {
        // The spare slabs are too small to be of use, and may together be as large as this one.
        self.spare.clear();
        let mut slab = Vec::from(std::mem::take(&mut self.input));
        slab.reserve_exact(size - slab.len());
        let bytes = bytes::Bytes::from(slab);
        self.input = bytes.try_into_mut().unwrap_or_else(|shared| {
            // This does not happen, since there is no other reference to it.
            let mut copy = BytesMut::with_capacity(size);
            copy.extend_from_slice(&shared);
            copy
        });
        self.slab = Slab { serial: self.slab.serial + 1, size: self.input.capacity() };
    }

    /// Switches to a slab of at least this size, and copies what is there.
    fn renew(&mut self, size: usize) {
        let mut slab = self.recycle(size).unwrap_or_else(|| BytesMut::with_capacity(size));
        slab.extend_from_slice(&self.input);
        let old = std::mem::replace(&mut self.input, slab);
        if self.slab.size >= SLAB_MAX.min(self.slab_len)
            && self.slab.size <= SLAB_LARGE
            && self.spare.len() < SPARE
        {
            self.spare.push_back((self.slab.size, old));
        }
        self.slab = Slab { serial: self.slab.serial + 1, size: self.input.capacity() };
    }

    /// Returns a slab of at least this size of which no slice is left.
    fn recycle(&mut self, size: usize) -> Option<BytesMut> {
        // The one that was used last comes first: it may still be in the processor's caches.
        let free = (0..self.spare.len()).rev().find(|index| {
            let (_, slab) = &mut self.spare[*index];
            slab.clear();
            slab.try_reclaim(size)
        })?;
        self.spare.remove(free).map(|(_, slab)| slab)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_announced_length_reserves_nothing_that_did_not_arrive() {
        let mut buffer = ReceiveBuffer::default();
        let mut stream = &b"just a few bytes"[..];
        buffer.read(&mut stream, usize::MAX / 4).await.unwrap();
        assert!(buffer.input.capacity() <= 4 * SLAB_MIN, "{}", buffer.input.capacity());
    }

    #[tokio::test]
    async fn a_very_large_message_takes_little_more_than_its_length() {
        let data: Vec<u8> = (0..33_000_000_u32).map(|i| i as u8).collect();
        let mut stream = &data[..];
        let mut buffer = ReceiveBuffer::default();
        while buffer.input.len() < data.len() {
            let missing = data.len() - buffer.input.len();
            let needs = buffer.needs(missing);
            assert!(buffer.read(&mut stream, missing).await.unwrap() > 0);
            assert!(buffer.slab().size <= needs.max(SLAB_LARGE), "{} > {needs}", buffer.slab().size);
            assert_eq!(buffer.slab().size, buffer.input.capacity());
        }
        assert_eq!(buffer.input, data);
        assert!(buffer.slab().size <= data.len() + READ_MIN + SLAB_LARGE, "{}", buffer.slab().size);
    }

    /// What was claimed before a read is never less than what is held after it.
    #[tokio::test]
    async fn what_the_next_read_takes_in_the_handshake_is_known_before() {
        for step in [1, 100, 1_000, 4_096, 70_000] {
            let data = vec![7; 70_000];
            let mut buffer = ReceiveBuffer::default();
            for bytes in data.chunks(step) {
                let mut stream = bytes;
                while !stream.is_empty() {
                    let needs = buffer.needs_in_handshake();
                    assert!(buffer.read(&mut stream, 0).await.unwrap() > 0);
                    assert!(buffer.held() <= needs, "{} > {needs} in steps of {step}", buffer.held());
                }
            }
        }
    }

    #[tokio::test]
    async fn slabs_are_used_again() {
        let data = vec![7; 64 << 20];
        let mut stream = &data[..];
        let mut buffer = ReceiveBuffer::default();
        let mut held = VecDeque::new();
        let mut slabs = std::collections::HashSet::new();
        while buffer.read(&mut stream, 0).await.unwrap() > 0 {
            slabs.insert(buffer.input.as_ptr() as usize / SLAB_MAX);
            held.push_back(buffer.input.split().freeze());
            if held.len() > 3 {
                held.pop_front();
            }
        }
        assert!(slabs.len() < 32, "{} places in memory for 512 slabs", slabs.len());
    }

    #[tokio::test]
    async fn what_is_not_used_is_given_up() {
        let data = vec![7; 8 << 20];
        let mut stream = &data[..];
        let mut buffer = ReceiveBuffer::default();
        while buffer.read(&mut stream, 0).await.unwrap() > 0 {
            let len = buffer.input.len();
            drop(buffer.input.split_to(len.saturating_sub(3)));
        }
        assert!(buffer.input.capacity() > SLAB_MIN);
        buffer.release();
        assert_eq!(buffer.input, [7; 3][..]);
        assert!(buffer.input.capacity() <= SLAB_MIN && buffer.spare.is_empty());
    }

    #[test]
    fn a_large_slab_has_the_room_that_was_asked_for_and_is_given_up() {
        const LEN: usize = (33 << 20) + 5;
        let mut buffer = ReceiveBuffer::default();
        buffer.input.extend_from_slice(b"in front");
        assert_eq!(buffer.needs_for(LEN), 8 + LEN);
        buffer.reserve(LEN);
        assert_eq!((buffer.slab().size, buffer.input.capacity()), (8 + LEN, 8 + LEN));
        assert!(buffer.fits(LEN) && buffer.input == b"in front"[..]);
        assert!(buffer.give_up_large());
        assert!(buffer.slab().size <= SLAB_MAX && buffer.input == b"in front"[..]);
        assert!(!buffer.give_up_large());

        let needs = buffer.needs_for(SLAB_MAX);
        buffer.reserve(SLAB_MAX);
        assert_eq!((buffer.slab().size, needs), (2 * SLAB_MAX, 2 * SLAB_MAX));
    }

    #[tokio::test]
    async fn a_large_message_arrives_whole() {
        let data: Vec<u8> = (0..5_000_000_u32).map(|i| i as u8).collect();
        let mut stream = &data[..];
        let mut buffer = ReceiveBuffer::default();
        while buffer.input.len() < data.len() {
            let missing = data.len() - buffer.input.len();
            assert!(buffer.read(&mut stream, missing).await.unwrap() > 0);
        }
        assert_eq!(buffer.input, data);
    }
}
