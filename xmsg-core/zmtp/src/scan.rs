//! Finds the boundaries of whole messages in a stream of bytes.

use std::ops::Range;

use super::frame::{Header, MORE};
use super::{Limited, Limits, Violation};

/// The position of one whole message in the bytes that were scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The start of the message.
    pub start: usize,
    /// The end of the message: one past its last byte, where the next one starts.
    pub end: usize,
    /// The start of the body of its first frame, which is the topic.
    pub first_start: usize,
    /// The length of the first frame's body in bytes.
    pub first_len: usize,
    /// The number of its frames.
    pub frames: usize,
}

impl Span {
    /// Returns the body of the first frame from the bytes that were scanned.
    #[must_use]
    pub fn first<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.first_start..self.first_start + self.first_len]
    }
}

/// Why the scanner stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It needs more bytes, or has reached its maximum number of messages.
    Incomplete,
    /// There is a complete command frame, which the caller has to remove.
    Command {
        /// The range of the whole frame.
        frame: Range<usize>,
        /// The range of its body.
        body: Range<usize>,
    },
}

/// A resumable search for message boundaries. It keeps its position in an unfinished message, so that a
/// message that arrives in many pieces is not scanned again from its start.
#[derive(Debug)]
pub struct Scanner {
    message_size: usize,
    frames_max: usize,
    command_size: usize,
    /// The maximum number of spans in one call.
    most: usize,
    /// The position of the next header in the unfinished message at the front of the buffer.
    next: usize,
    /// The number of whole frames of that message.
    frames: usize,
    /// The position and the length of the body of its first frame.
    first: (usize, usize),
}

impl Scanner {
    /// Creates a scanner with these limits.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            message_size: limits.message_size,
            frames_max: limits.frames,
            command_size: limits.command_size,
            most: usize::MAX,
            next: 0,
            frames: 0,
            first: (0, 0),
        }
    }

    /// Limits the number of messages that are found in one call. A span takes more memory than a short
    /// message.
    #[must_use]
    pub fn at_most(self, messages: usize) -> Self {
        Self { most: messages, ..self }
    }

    /// Appends a span for every whole message in `bytes`, up to the [maximum](Self::at_most), and returns why
    /// it stopped.
    ///
    /// `bytes` starts at a message boundary. If there are new spans, the caller has to remove everything up
    /// to the `end` of the last one from the front before the next call. A command or violation behind them
    /// is reported by that next call.
    ///
    /// # Errors
    ///
    /// A frame has invalid flags, or a message or command exceeds a limit.
    pub fn scan(&mut self, bytes: &[u8], spans: &mut Vec<Span>) -> Result<Stop, Violation> {
        let mut start = 0;
        let stop = loop {
            if spans.len() >= self.most {
                break Stop::Incomplete;
            }
            if self.next == start
                && let Some(span) = self.short_message(bytes, start)
            {
                spans.push(span);
                (start, self.next) = (span.end, span.end);
                continue;
            }
            let header = match bytes.get(self.next..).map(Header::read) {
                Some(Ok(Some(header))) => header,
                Some(Err(violation)) if spans.is_empty() => return Err(violation),
                _ => break Stop::Incomplete,
            };
            let body = self.next + header.len;
            let checked = if header.is_command() {
                within(Limited::Command, header.body_len, self.command_size)
            } else if self.frames >= self.frames_max {
                within(Limited::Frames, self.frames as u64 + 1, self.frames_max)
            } else {
                let before = (body - start) as u64;
                within(Limited::Message, before.saturating_add(header.body_len), self.message_size)
            };
            if let Err(violation) = checked {
                if spans.is_empty() {
                    return Err(violation);
                }
                break Stop::Incomplete;
            }
            // The check above keeps this below the limit, which is far below `usize::MAX`.
            let body_len = header.body_len as usize;
            let end = body + body_len;
            if end > bytes.len() {
                break Stop::Incomplete;
            }
            if header.is_command() {
                break Stop::Command { frame: self.next..end, body: body..end };
            }
            if self.frames == 0 {
                self.first = (body, body_len);
            }
            self.frames += 1;
            self.next = end;
            if !header.has_more() {
                let (first_start, first_len) = self.first;
                spans.push(Span { start, end, first_start, first_len, frames: self.frames });
                start = end;
                self.frames = 0;
            }
        };
        // From here on, the unfinished message is at the front.
        self.next -= start;
        self.first.0 = self.first.0.saturating_sub(start);
        Ok(stop)
    }

    /// Returns the message at `start`, if it is whole, consists of short frames, and is within the limits.
    /// This is nearly always the case. Otherwise the slower path in [`scan`](Self::scan) finds the reason.
    fn short_message(&self, bytes: &[u8], start: usize) -> Option<Span> {
        let (mut at, mut frames) = (start, 0);
        loop {
            let [flags @ (0 | MORE), len, ..] = *bytes.get(at..)? else { return None };
            at += 2 + usize::from(len);
            frames += 1;
            if flags == 0 {
                break;
            }
        }
        let is_good = at <= bytes.len() && frames <= self.frames_max && at - start <= self.message_size;
        let first_len = usize::from(bytes[start + 1]);
        is_good.then_some(Span { start, end: at, first_start: start + 2, first_len, frames })
    }

    /// Returns how many bytes of the unfinished message are known to be missing, according to its headers. It
    /// is for choosing how much to read, and not for reserving it all at once.
    #[must_use]
    pub fn missing(&self, bytes: &[u8]) -> usize {
        match bytes.get(self.next..).map(Header::read) {
            Some(Ok(Some(header))) => {
                let body = usize::try_from(header.body_len).unwrap_or(usize::MAX);
                (self.next + header.len).saturating_add(body).saturating_sub(bytes.len())
            }
            _ => 0,
        }
    }
}

fn within(what: Limited, size: u64, limit: usize) -> Result<(), Violation> {
    let limit = limit as u64;
    if size > limit { Err(Violation::TooLarge { what, size, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, BytesMut};
    use proptest::prelude::*;

    use super::*;
    use crate::{Command, encode_message};

    fn scanner() -> Scanner {
        Scanner::new(&Limits { message_size: 1000, frames: 4, command_size: 100, ..Limits::default() })
    }

    #[test]
    fn a_giant_length_is_refused_at_its_header() {
        let wire = [2, 0, 0, 32, 0, 0, 0, 0, 0];
        assert!(matches!(scanner().scan(&wire, &mut Vec::new()), Err(Violation::TooLarge { .. })));
    }

    #[test]
    fn frames_and_bytes_of_a_message_are_limited() {
        let endless_frames = [1, 0].repeat(5);
        assert!(matches!(scanner().scan(&endless_frames, &mut Vec::new()), Err(Violation::TooLarge { .. })));
        let mut wire = BytesMut::new();
        encode_message(&mut wire, &[vec![0; 600], vec![0; 600]]);
        assert!(matches!(scanner().scan(&wire, &mut Vec::new()), Err(Violation::TooLarge { .. })));
    }

    #[test]
    fn no_more_than_so_many_are_found_at_once() {
        let wire = [0, 0].repeat(10);
        let mut scanner = scanner().at_most(4);
        let (mut at, mut found) = (0, Vec::new());
        while at < wire.len() {
            let mut spans = Vec::new();
            assert_eq!(scanner.scan(&wire[at..], &mut spans), Ok(Stop::Incomplete));
            at += spans.last().expect("there are more").end;
            found.push(spans.len());
        }
        assert_eq!(found, [4, 4, 2]);
    }

    #[test]
    fn good_messages_before_a_bad_one_are_delivered_first() {
        let mut wire = BytesMut::new();
        encode_message(&mut wire, &[b"good"]);
        wire.extend_from_slice(&[0xff, 0]);
        let (mut scanner, mut spans) = (scanner(), Vec::new());
        assert_eq!(scanner.scan(&wire, &mut spans), Ok(Stop::Incomplete));
        assert_eq!(spans.len(), 1);
        wire.advance(spans[0].end);
        assert_eq!(scanner.scan(&wire, &mut Vec::new()), Err(Violation::InvalidFlags(0xff)));
    }

    proptest! {
        /// However the stream is cut, the scanner finds the same messages and commands.
        #[test]
        fn cuts_make_no_difference(
            parts in prop::collection::vec(
                prop_oneof![
                    4 => prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..4).prop_map(Some),
                    1 => Just(None),
                ],
                0..12,
            ),
            cuts in prop::collection::vec(1_usize..200, 1..40),
        ) {
            let mut wire = BytesMut::new();
            for part in &parts {
                match part {
                    Some(frames) => encode_message(&mut wire, frames),
                    None => Command::Pong { context: bytes::Bytes::from_static(b"x") }.write(&mut wire),
                }
            }
            let (mut scanner, mut buffer, mut found) = (scanner(), BytesMut::new(), Vec::new());
            let mut cuts = cuts.iter().cycle();
            while !wire.is_empty() {
                let len = wire.len().min(*cuts.next().unwrap());
                buffer.unsplit(wire.split_to(len));
                loop {
                    let mut spans = Vec::new();
                    let stop = scanner.scan(&buffer, &mut spans).unwrap();
                    for span in &spans {
                        found.push(Some((span.frames, span.first(&buffer).to_vec())));
                    }
                    if let Some(last) = spans.last() {
                        buffer.advance(last.end);
                    } else if let Stop::Command { frame, .. } = stop {
                        prop_assert_eq!(frame.start, 0);
                        buffer.advance(frame.end);
                        found.push(None);
                    } else {
                        break;
                    }
                }
            }
            let expected: Vec<_> =
                parts.into_iter().map(|part| part.map(|frames| (frames.len(), frames[0].clone()))).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
