//! A long message that is encoded bit by bit: whoever serves many spends a little time on each, and the queue takes it in one step.

use bytes::{Bytes, BytesMut};

use xmsg_zmtp::{encode_frame, encoded_len};

/// Encoded frames lie in chunks of about this size.
const CHUNK_LEN: usize = 64 << 10;
/// Room in a chunk for the frame that goes past its length.
const CHUNK_SLACK: usize = 8 << 10;

/// The frames of a message, encoded one after another, to be queued without another look at them.
#[derive(Debug, Default)]
pub struct EncodedFrames {
    /// Each ends where a frame ends, so that every header lies in one of them.
    chunks: Vec<Bytes>,
    tail: BytesMut,
    /// Whether another frame follows is known only when it comes.
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

    /// How many frames there are.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Bytes of them on the wire.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.len
    }

    /// The whole, ended.
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
            // A message that is short after all takes no more than it needs.
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
