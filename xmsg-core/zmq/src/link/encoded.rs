//! A long message that is encoded step by step. A task that serves many peers spends a little time on each,
//! and the queue takes the whole message in one step.

use bytes::{Bytes, BytesMut};

use xmsg_zmtp::{encode_frame, encoded_len};

/// The approximate length of a chunk of encoded frames.
const CHUNK_LEN: usize = 64 << 10;
/// Extra room in a chunk for the frame that exceeds [`CHUNK_LEN`].
const CHUNK_SLACK: usize = 8 << 10;

/// The frames of a message, encoded one after another. The queue need not read them again.
#[derive(Debug, Default)]
pub struct EncodedFrames {
    /// Each chunk ends where a frame ends, so that every header lies within one chunk.
    chunks: Vec<Bytes>,
    tail: BytesMut,
    /// The last frame is kept apart: whether another one follows is not known yet.
    last: Option<Bytes>,
    frames: usize,
    len: usize,
}

impl EncodedFrames {
    /// Adds a frame.
    pub fn push(&mut self, frame: Bytes) {
        self.frames += 1;
        self.len += encoded_len(&[&frame]);
        if let Some(before) = self.last.replace(frame) {
            self.encode(&before, true);
        }
    }

    /// Returns the number of frames.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Returns the encoded length in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.len
    }

    /// Encodes the last frame and returns the whole message.
    pub(crate) fn into_chunks(mut self) -> Vec<Bytes> {
        if let Some(last) = self.last.take() {
            self.encode(&last, false);
        }
        if !self.tail.is_empty() {
            self.chunks.push(self.tail.freeze());
        }
        self.chunks
    }

    fn encode(&mut self, frame: &[u8], more: bool) {
        if self.tail.capacity() == 0 {
            // A message that turns out to be short takes no more memory than it needs.
            self.tail.reserve(if self.chunks.is_empty() { 1 << 10 } else { CHUNK_LEN + CHUNK_SLACK });
        }
        encode_frame(&mut self.tail, frame, more);
        if self.tail.len() >= CHUNK_LEN {
            self.chunks.push(std::mem::take(&mut self.tail).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xmsg_zmtp::{Header, encode_message};

    #[test]
    fn the_bytes_are_those_of_a_message_and_every_header_lies_in_one_chunk() {
        for (count, len) in [(1, 0), (3, 5), (20_000, 40), (40, 9 << 10)] {
            let frames: Vec<_> = (0..count).map(|number| Bytes::from(vec![number as u8; len])).collect();
            let mut encoded = EncodedFrames::default();
            frames.iter().cloned().for_each(|frame| encoded.push(frame));
            let mut expected = BytesMut::new();
            encode_message(&mut expected, &frames);
            assert_eq!((encoded.frames(), encoded.encoded_len()), (count, expected.len()));
            let chunks = encoded.into_chunks();
            assert_eq!(chunks.concat(), expected);
            for chunk in chunks {
                let mut at = 0;
                while at < chunk.len() {
                    let header = Header::read(&chunk[at..]).unwrap().unwrap();
                    at += header.len + header.body_len as usize;
                }
                assert_eq!(at, chunk.len());
            }
        }
    }
}
