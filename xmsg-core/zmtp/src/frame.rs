//! Frames: encoding and decoding of headers and messages (RFC 37, "Framing").

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::Violation;

pub(super) const MORE: u8 = 0b001;
pub(super) const LONG: u8 = 0b010;
pub(super) const COMMAND: u8 = 0b100;
const RESERVED: u8 = !(MORE | LONG | COMMAND);

/// The header of a frame: flags and the length of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The flag bits: 1 more, 2 long, 4 command.
    pub flags: u8,
    /// The announced length of the body in bytes. It is not checked against any limit.
    pub body_len: u64,
    /// The length of the header itself in bytes: 2 or 9.
    pub len: usize,
}

impl Header {
    /// Decodes the header at the front of `bytes`. Returns `None` while it is incomplete.
    ///
    /// # Errors
    ///
    /// [`Violation::InvalidFlags`] for invalid flags.
    #[inline]
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, Violation> {
        // Nearly all headers are short ones of messages.
        if let [flags @ (0 | MORE), len, ..] = *bytes {
            return Ok(Some(Self { flags, body_len: u64::from(len), len: 2 }));
        }
        Self::read_other(bytes)
    }

    fn read_other(bytes: &[u8]) -> Result<Option<Self>, Violation> {
        let Some(&flags) = bytes.first() else { return Ok(None) };
        if flags & RESERVED != 0 || flags & (COMMAND | MORE) == COMMAND | MORE {
            return Err(Violation::InvalidFlags(flags));
        }
        if flags & LONG == 0 {
            return Ok(bytes.get(1).map(|&len| Self { flags, body_len: u64::from(len), len: 2 }));
        }
        let Some(size) = bytes.get(1..9).and_then(|size| <[u8; 8]>::try_from(size).ok()) else {
            return Ok(None);
        };
        Ok(Some(Self { flags, body_len: u64::from_be_bytes(size), len: 9 }))
    }

    /// Returns whether another frame of the same message follows.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.flags & MORE != 0
    }

    /// Returns whether this frame is a command and not part of a message.
    #[must_use]
    pub fn is_command(&self) -> bool {
        self.flags & COMMAND != 0
    }
}

/// Encodes the header of a frame with a body of `body_len` bytes, in its shortest form.
fn encode_header(out: &mut BytesMut, flags: u8, body_len: usize) {
    if let Ok(short) = u8::try_from(body_len) {
        out.put_slice(&[flags, short]);
    } else {
        out.put_u8(flags | LONG);
        out.put_u64(body_len as u64);
    }
}

/// Encodes the header of a message frame whose body is sent separately.
pub fn encode_frame_header(out: &mut BytesMut, body_len: usize, more: bool) {
    encode_header(out, if more { MORE } else { 0 }, body_len);
}

/// Encodes one message frame. `more` says whether another frame of the same message follows.
pub fn encode_frame(out: &mut BytesMut, body: &[u8], more: bool) {
    encode_frame_header(out, body.len(), more);
    out.put_slice(body);
}

/// Encodes a whole message.
///
/// ```
/// let mut wire = bytes::BytesMut::new();
/// xmsg_zmtp::encode_message(&mut wire, &["topic", "hi"]);
/// assert_eq!(&wire[..], b"\x01\x05topic\x00\x02hi");
/// ```
pub fn encode_message<F: AsRef<[u8]>>(out: &mut BytesMut, frames: &[F]) {
    for (index, frame) in frames.iter().enumerate() {
        encode_frame(out, frame.as_ref(), index + 1 < frames.len());
    }
}

/// Returns the encoded length of this message in bytes.
pub fn encoded_len<F: AsRef<[u8]>>(frames: &[F]) -> usize {
    frames
        .iter()
        .map(|frame| {
            let len = frame.as_ref().len();
            len + if len < 256 { 2 } else { 9 }
        })
        .sum()
}

/// Encodes a command frame with this body.
pub(super) fn encode_command(out: &mut BytesMut, body: &[u8]) {
    encode_header(out, COMMAND, body.len());
    out.put_slice(body);
}

/// Walks over the message that begins at `start`, and calls `frame` with the range of each body. Returns the
/// end of the message. If the message is incomplete, returns `None`; `frame` was then called for the frames
/// before the incomplete one.
#[inline]
pub fn walk_message(wire: &[u8], start: usize, mut frame: impl FnMut(Range<usize>)) -> Option<usize> {
    let mut at = start;
    loop {
        let rest = wire.get(at..).unwrap_or_default();
        let header = Header::read(rest).ok().flatten()?;
        if header.body_len > (rest.len() - header.len) as u64 {
            return None;
        }
        let body = at + header.len;
        at = body + header.body_len as usize;
        frame(body..at);
        if !header.has_more() {
            return Some(at);
        }
    }
}

/// An iterator over the frames of one whole message, which share its memory.
///
/// ```
/// use bytes::Bytes;
/// use xmsg_zmtp::Frames;
/// let frames: Vec<Bytes> = Frames::of(Bytes::from_static(b"\x01\x05topic\x00\x02hi")).collect();
/// assert_eq!(frames, [&b"topic"[..], b"hi"]);
/// ```
#[derive(Clone, Debug)]
pub struct Frames {
    wire: Bytes,
}

impl Frames {
    /// Returns the frames of `wire`, the bytes of one message as [`Engine`](super::Engine) returns them.
    /// Bytes that are not a whole frame end the iteration.
    #[must_use]
    pub fn of(wire: Bytes) -> Self {
        Self { wire }
    }
}

impl Iterator for Frames {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let header = Header::read(&self.wire).ok().flatten()?;
        let end = header.len.checked_add(usize::try_from(header.body_len).ok()?)?;
        if end > self.wire.len() {
            return None;
        }
        let mut frame = self.wire.split_to(end);
        Some(frame.split_off(header.len))
    }
}

/// Returns how many whole messages lie within the first `len` bytes of the concatenated `chunks`, and where
/// the last of them ends. `chunks` start at a message boundary, and every frame header lies within one chunk.
///
/// After a connection broke, this says what the peer may have received whole, and where to continue.
pub fn whole_messages_within<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, len: usize) -> (usize, usize) {
    let (mut messages, mut boundary, mut base, mut next) = (0, 0, 0_usize, 0_usize);
    for chunk in chunks {
        while next >= base && next - base < chunk.len() {
            let Ok(Some(header)) = Header::read(&chunk[next - base..]) else { return (messages, boundary) };
            next += header.len + header.body_len as usize;
            if next > len {
                return (messages, boundary);
            }
            if !header.has_more() && !header.is_command() {
                messages += 1;
                boundary = next;
            } else if header.is_command() {
                boundary = next;
            }
        }
        base += chunk.len();
    }
    (messages, boundary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_headers() {
        let mut out = BytesMut::new();
        encode_frame(&mut out, &[7; 255], true);
        assert_eq!(&out[..2], &[1, 255]);
        out.clear();
        encode_frame(&mut out, &[7; 256], false);
        assert_eq!(&out[..9], &[2, 0, 0, 0, 0, 0, 0, 1, 0]);
        let header = Header::read(&out).unwrap().unwrap();
        assert_eq!((header.body_len, header.len, header.has_more()), (256, 9, false));
    }

    #[test]
    fn headers_wait_for_all_their_bytes() {
        assert_eq!(Header::read(&[]), Ok(None));
        assert_eq!(Header::read(&[0]), Ok(None));
        assert_eq!(Header::read(&[2, 0, 0, 0, 0, 0, 0, 1]), Ok(None));
    }

    #[test]
    fn reserved_bits_and_command_with_more_are_refused() {
        for flags in [8, 16, 32, 64, 128, 5, 7] {
            assert_eq!(Header::read(&[flags, 0]), Err(Violation::InvalidFlags(flags)));
        }
    }

    #[test]
    fn an_impossible_length_ends_the_iteration() {
        let wire = Bytes::from_static(&[2, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
        assert_eq!(Frames::of(wire).count(), 0);
    }

    #[test]
    fn boundaries_after_a_partial_write() {
        let mut first = BytesMut::new();
        encode_message(&mut first, &[&b"a"[..], b"bb"]); // 3 + 4 bytes
        encode_message(&mut first, &[b"c"]); // 3 bytes: boundary at 10
        encode_header(&mut first, 0, 300); // the body is a chunk of its own
        let body = vec![0; 300];
        let chunks = [&first[..], &body[..]];
        for (written, expected) in [
            (0, (0, 0)),
            (6, (0, 0)),
            (7, (1, 7)),
            (9, (1, 7)),
            (10, (2, 10)),
            (318, (2, 10)),
            (319, (3, 319)),
        ] {
            assert_eq!(whole_messages_within(chunks, written), expected, "{written} bytes written");
        }
    }
}
