//! This module inspects the frames that a broker sends. It says how long the messages are that begin to come,
//! and keeps tables that are nested deeply from the AMQP client, whose parser calls itself for each level:
//! some ten thousand of them, which fit into one frame, would overflow its stack and end the process.
//!
//! A table or list below [`DEPTH_MAX`] is given to the client as an array of bytes. Both have a type, a
//! length and so many bytes, so that one letter is changed where it stands, and the message keeps its length
//! and all else. Nobody has to be refused: the message arrives, with bytes in the place of what is too deep.
//!
//! The format: AMQP 0-9-1, sections 2.3 and 4.2, with the types of fields as RabbitMQ has them
//! (<https://www.rabbitmq.com/amqp-0-9-1-errata>).

use std::io;

/// Tables and lists within each other that the client gets.
pub(super) const DEPTH_MAX: usize = 32;

/// What begins and ends a frame: type, channel, length; the end.
const FRAME_OVERHEAD: u32 = 8;
const FRAME_END: u8 = 0xCE;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Class and method of `connection.start`, the only one with a table that a broker sends.
const START: u32 = method(10, 10);
/// Class and method of `basic.deliver`, which a content header follows.
const DELIVER: u32 = method(60, 60);
/// The longest message in bytes that a broker may announce: RabbitMQ never has a longer one.
const MESSAGE_MAX: u64 = 512 << 20;
/// Methods with tables that only clients send. A peer that sends one of them is no broker.
const CLIENT_METHODS: [u32; 8] = [
    method(10, 11),
    method(40, 10),
    method(40, 30),
    method(40, 40),
    method(50, 10),
    method(50, 20),
    method(50, 50),
    method(60, 20),
];

/// Returns a class and one of its methods as the number that stands in a frame.
const fn method(class: u32, method: u32) -> u32 {
    class * 0x1_0000 + method
}

/// What comes next in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The type of a frame.
    Frame,
    /// The rest of the eight bytes with which a peer says that it speaks another version.
    Version,
    /// The channel of a frame of this type, and its length.
    Length(u8),
    /// The class and the method of a method frame.
    Method,
    /// The versions before the table of `connection.start`.
    Versions,
    /// The length of the body that a content header announces.
    BodyLength,
    /// What a content header begins with, to the flags that say which properties it has.
    Flags,
    /// The length of a short text. So many more short texts follow before the table.
    Texts(u8),
    /// The length of the outermost table.
    Table,
    /// The name of a field, or the type of one in a list, or the end of what is open.
    Field,
    /// The type of a field.
    Type,
    /// The length of a field of this type.
    FieldLength(u8),
    /// The byte at the end of a frame.
    End,
}

/// A table or list that has begun and not ended.
#[derive(Clone, Copy, Debug)]
struct OpenContainer {
    is_table: bool,
    /// Bytes that are left of it.
    left: u32,
}

/// Inspects a stream from a broker, which may come in pieces of any size.
#[derive(Debug)]
pub(super) struct FrameInspector {
    frame_max: u32,
    next: Next,
    /// A number that is being read: its value so far, and the bytes that are missing.
    number: u64,
    missing: u32,
    /// Bytes to pass over before what is next.
    skip: u32,
    /// Bytes that are left of the frame.
    left: u32,
    open: Vec<OpenContainer>,
    /// Tables and lists that were changed into bytes.
    flattened: u64,
    /// The channel of the frame.
    channel: u16,
    /// The channel on which the content header of a delivery comes next.
    delivering: Option<u16>,
    /// The lengths of messages that have begun to come, in bytes.
    announced: Vec<usize>,
}

impl FrameInspector {
    /// Makes an inspector for a connection with frames of at most this many bytes.
    pub(super) fn new(frame_max: u32) -> Self {
        Self {
            frame_max,
            next: Next::Frame,
            number: 0,
            missing: 0,
            skip: 0,
            left: 0,
            open: Vec::new(),
            flattened: 0,
            channel: 0,
            delivering: None,
            announced: Vec::new(),
        }
    }

    /// Takes out the lengths of the deliveries that have begun to come, in bytes.
    pub(super) fn announced(&mut self) -> impl Iterator<Item = usize> + '_ {
        self.announced.drain(..)
    }

    /// Returns how many tables and lists were changed into bytes.
    pub(super) fn flattened(&self) -> u64 {
        self.flattened
    }

    /// Reads what has come, and changes it where it is nested too deeply. An error is what no broker sends:
    /// the connection can't go on after it.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            let here = bytes.len() - at;
            if self.skip > 0 {
                let count = here.min(self.skip as usize);
                self.skip -= count as u32;
                at += count;
                continue;
            }
            let byte = bytes[at];
            if self.missing == 0 {
                let number_len = self.number_len();
                if number_len == 0 {
                    self.on_number(0)?;
                    continue;
                }
                (self.number, self.missing) = (0, number_len);
            }
            if self.next == Next::Type && self.is_too_deep(byte) {
                bytes[at] = b'x';
                self.flattened += 1;
            }
            self.number = self.number << 8 | u64::from(bytes[at]);
            self.missing -= 1;
            at += 1;
            if self.missing == 0 {
                let number = self.number;
                self.on_number(number)?;
            }
        }
        Ok(())
    }

    /// Returns how many bytes the number has that comes next, and 0 where nothing is to be read.
    fn number_len(&self) -> u32 {
        match self.next {
            Next::Frame | Next::Texts(_) | Next::Type | Next::End => 1,
            Next::Version => 7,
            Next::Length(_) => 6,
            Next::BodyLength => 8,
            Next::Method | Next::Table | Next::FieldLength(_) => 4,
            Next::Versions | Next::Flags => 2,
            Next::Field => match self.open.last() {
                Some(OpenContainer { left: 1.., is_table: true }) => 1,
                _ => 0,
            },
        }
    }

    fn is_too_deep(&self, kind: u8) -> bool {
        matches!(kind, b'F' | b'A') && self.open.len() >= DEPTH_MAX
    }

    /// Acts on a number that has been read.
    fn on_number(&mut self, number: u64) -> io::Result<()> {
        // Most numbers below have at most four bytes.
        let short = number as u32;
        match self.next {
            Next::Frame => match short as u8 {
                kind @ (METHOD | HEADER | BODY | HEARTBEAT) => self.next = Next::Length(kind),
                b'A' => self.next = Next::Version,
                kind => {
                    return Err(protocol_violation(&format!(
                        "a frame of the type {kind}, which AMQP does not have"
                    )));
                }
            },
            Next::Version => self.next = Next::Frame,
            Next::Length(kind) => {
                if short > self.frame_max.saturating_sub(FRAME_OVERHEAD) {
                    let what =
                        format!("a frame of {short} bytes, and allowed are {} (frame_max)", self.frame_max);
                    return Err(protocol_violation(&what));
                }
                (self.left, self.channel) = (short, (number >> 32) as u16);
                match kind {
                    METHOD => self.expect(4, Next::Method)?,
                    HEADER => {
                        self.consume(4)?;
                        self.skip = 4;
                        self.expect(8, Next::BodyLength)?;
                    }
                    _ => self.skip_frame(),
                }
            }
            Next::Method => match short {
                START => self.expect(2, Next::Versions)?,
                DELIVER => {
                    self.delivering = Some(self.channel);
                    self.skip_frame();
                }
                method if CLIENT_METHODS.contains(&method) => {
                    return Err(protocol_violation(&format!(
                        "the method {}.{}, which only clients send",
                        method >> 16,
                        method & 0xFFFF
                    )));
                }
                _ => self.skip_frame(),
            },
            Next::Versions => self.expect(4, Next::Table)?,
            Next::BodyLength => {
                if number > MESSAGE_MAX {
                    return Err(protocol_violation(&format!(
                        "a message of {number} bytes, which no broker has"
                    )));
                }
                if self.delivering.take_if(|channel| *channel == self.channel).is_some() {
                    self.announced.push(number as usize);
                }
                self.expect(2, Next::Flags)?;
            }
            Next::Flags => {
                // From the highest bit on: the type of the content, its encoding, the headers.
                let texts = (short >> 15 & 1) + (short >> 14 & 1);
                let has_headers = short >> 13 & 1 == 1;
                if has_headers { self.expect_texts(texts as u8)? } else { self.skip_frame() }
            }
            Next::Texts(more) => {
                self.consume(short)?;
                self.skip = short;
                self.expect_texts(more)?;
            }
            Next::Table => self.open_table(true, short)?,
            Next::Field => match self.open.last().copied() {
                None => self.skip_frame(),
                Some(OpenContainer { left: 0, .. }) => drop(self.open.pop()),
                Some(OpenContainer { is_table: true, .. }) => {
                    // The length of the name has been read; the name and the type follow.
                    self.consume_field(1)?;
                    self.consume_field(short)?;
                    self.skip = short;
                    self.next = Next::Type;
                }
                Some(_) => self.next = Next::Type,
            },
            Next::Type => {
                self.consume_field(1)?;
                match short as u8 {
                    kind @ (b'S' | b'x' | b'F' | b'A') => {
                        self.consume_field(4)?;
                        self.next = Next::FieldLength(kind);
                    }
                    kind => {
                        self.skip = match kind {
                            b't' | b'b' | b'B' => 1,
                            b's' | b'U' | b'u' => 2,
                            b'I' | b'i' | b'f' => 4,
                            b'L' | b'l' | b'd' | b'T' => 8,
                            b'D' => 5,
                            b'V' => 0,
                            _ => {
                                return Err(protocol_violation(&format!(
                                    "a field of the type {kind}, which AMQP does not have"
                                )));
                            }
                        };
                        self.consume_field(self.skip)?;
                        self.next = Next::Field;
                    }
                }
            }
            Next::FieldLength(kind) => {
                self.consume_field(short)?;
                if matches!(kind, b'F' | b'A') {
                    self.open.push(OpenContainer { is_table: kind == b'F', left: short });
                } else {
                    self.skip = short;
                }
                self.next = Next::Field;
            }
            Next::End => {
                if short as u8 != FRAME_END {
                    return Err(protocol_violation("a frame without its end"));
                }
                self.next = Next::Frame;
            }
        }
        Ok(())
    }

    /// Expects so many short texts, and then the table.
    fn expect_texts(&mut self, count: u8) -> io::Result<()> {
        match count.checked_sub(1) {
            Some(more) => self.expect(1, Next::Texts(more)),
            None => self.expect(4, Next::Table),
        }
    }

    fn open_table(&mut self, is_table: bool, len: u32) -> io::Result<()> {
        self.consume(len)?;
        self.open.push(OpenContainer { is_table, left: len });
        self.next = Next::Field;
        Ok(())
    }

    /// Expects a number of so many bytes.
    fn expect(&mut self, bytes: u32, next: Next) -> io::Result<()> {
        self.consume(bytes)?;
        self.next = next;
        Ok(())
    }

    /// Skips the rest of this frame.
    fn skip_frame(&mut self) {
        self.open.clear();
        self.skip = std::mem::take(&mut self.left);
        self.next = Next::End;
    }

    /// Subtracts bytes from what is left of the frame.
    fn consume(&mut self, bytes: u32) -> io::Result<()> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| protocol_violation("something that is longer than its frame"))?;
        Ok(())
    }

    /// Subtracts bytes from what is left of the table or list that is open.
    fn consume_field(&mut self, bytes: u32) -> io::Result<()> {
        let Some(open) = self.open.last_mut() else { return Ok(()) };
        let left = open.left.checked_sub(bytes);
        open.left = left.ok_or_else(|| protocol_violation("a field that is longer than its table"))?;
        Ok(())
    }
}

fn protocol_violation(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the peer has sent {what}"))
}

#[cfg(test)]
mod tests {
    use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame, parse_frame};
    use amq_protocol::protocol::{AMQPClass, BasicProperties, basic, connection};
    use amq_protocol::types::{AMQPValue, FieldArray, FieldTable};
    use proptest::prelude::*;

    use super::*;

    const FRAME_MAX: u32 = 131_072;

    fn bytes_of(frame: &AMQPFrame) -> Vec<u8> {
        gen_frame(frame)(WriteContext::from(Vec::new())).unwrap().into_inner().0
    }

    fn header(headers: FieldTable) -> AMQPFrame {
        let properties = BasicProperties::default()
            .with_content_type("text/plain".into())
            .with_content_encoding("gzip".into())
            .with_headers(headers)
            .with_app_id("after it".into());
        AMQPFrame::Header(1, AMQPContentHeader { class_id: 60, body_size: 3, properties })
    }

    /// Returns a content header with so many lists within each other, each of five bytes, in a table with one
    /// field `a`.
    fn nested(kind: u8, levels: usize) -> Vec<u8> {
        let (mut fields, mut len) = (Vec::new(), 0_usize);
        // From within: what is around is written before it.
        for level in 0..levels {
            let name: &[u8] = if kind == b'F' && level + 1 < levels { b"\x01n" } else { b"" };
            let mut around = name.to_vec();
            around.push(kind);
            around.extend((len as u32).to_be_bytes());
            len += around.len();
            fields.push(around);
        }
        let fields: Vec<u8> = fields.into_iter().rev().flatten().collect();
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0];
        payload.extend((fields.len() as u32 + 2).to_be_bytes());
        payload.extend(b"\x01a");
        payload.extend(fields);
        let mut frame = vec![HEADER, 0, 1];
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(FRAME_END);
        frame
    }

    fn depth(value: &AMQPValue) -> (usize, &AMQPValue) {
        let (mut depth, mut value) = (0, value);
        loop {
            value = match value {
                AMQPValue::FieldArray(list) if !list.as_slice().is_empty() => &list.as_slice()[0],
                AMQPValue::FieldTable(table) if !table.inner().is_empty() => {
                    table.inner().values().next().unwrap()
                }
                _ => return (depth, value),
            };
            depth += 1;
        }
    }

    #[test]
    fn the_lengths_of_deliveries_are_told_when_they_begin() {
        let deliver = |channel| {
            let method = basic::AMQPMethod::Deliver(basic::Deliver {
                consumer_tag: "a".into(),
                delivery_tag: 1,
                redelivered: false,
                exchange: "".into(),
                routing_key: "q".into(),
            });
            bytes_of(&AMQPFrame::Method(channel, AMQPClass::Basic(method)))
        };
        let announced = |channel, body_size| {
            let properties = BasicProperties::default().with_content_type("text/plain".into());
            bytes_of(&AMQPFrame::Header(channel, AMQPContentHeader { class_id: 60, body_size, properties }))
        };
        let heartbeat = bytes_of(&AMQPFrame::Heartbeat);
        let body = bytes_of(&AMQPFrame::Body(1, vec![0; 100]));
        // What another channel has does not come in between, nor is what was returned a delivery.
        let stream = [
            deliver(1),
            heartbeat,
            announced(2, 7),
            announced(1, 100),
            body,
            announced(1, 8),
            deliver(2),
            announced(2, 60 << 20),
        ];
        for piece in [1, 7, 1 << 20] {
            let (mut frame_inspector, mut found) = (FrameInspector::new(FRAME_MAX), Vec::new());
            for piece in stream.concat().chunks_mut(piece) {
                frame_inspector.read(piece).unwrap();
                found.extend(frame_inspector.announced());
            }
            assert_eq!(found, [100, 60 << 20]);
        }
        let mut frame_inspector = FrameInspector::new(FRAME_MAX);
        frame_inspector.read(&mut deliver(1)).unwrap();
        let refused = frame_inspector.read(&mut announced(1, 1 << 40)).unwrap_err();
        assert!(refused.to_string().contains("which no broker has"), "{refused}");
    }

    #[test]
    fn what_is_nested_too_deeply_becomes_bytes_and_the_frames_around_it_stay() {
        for (kind, bytes_of_a_level) in [(b'A', 5), (b'F', 7)] {
            // As many as fit into a frame: the client would overflow its stack.
            let levels = (FRAME_MAX as usize - 64) / bytes_of_a_level;
            let before = bytes_of(&header(FieldTable::default()));
            let after = bytes_of(&AMQPFrame::Heartbeat);
            let mut stream = [before.clone(), nested(kind, levels), after.clone()].concat();
            let len = stream.len();
            let mut frame_inspector = FrameInspector::new(FRAME_MAX);
            frame_inspector.read(&mut stream).unwrap();
            assert_eq!((frame_inspector.flattened(), stream.len()), (1, len));
            let (skip_frame, first) = parse_frame(&stream[..]).unwrap();
            assert_eq!(bytes_of(&first), before);
            let (skip_frame, frame) = parse_frame(skip_frame).unwrap();
            assert_eq!(skip_frame, &after[..]);
            let AMQPFrame::Header(_, AMQPContentHeader { properties, .. }) = frame else {
                panic!("{frame:?}")
            };
            let headers = properties.headers().clone().unwrap();
            let (depth, last) = depth(&headers.inner()["a"]);
            let AMQPValue::ByteArray(bytes) = last else { panic!("{last:?}") };
            // The table of the headers is the first level.
            assert_eq!(depth, DEPTH_MAX - 1);
            assert!(bytes.as_slice().len() > (levels - DEPTH_MAX - 1) * bytes_of_a_level - 8);
        }
    }

    #[test]
    fn what_is_as_deep_as_it_may_be_stays() {
        let frame = nested(b'A', DEPTH_MAX - 1);
        let mut read = frame.clone();
        let mut frame_inspector = FrameInspector::new(FRAME_MAX);
        frame_inspector.read(&mut read).unwrap();
        assert_eq!((frame_inspector.flattened(), &read), (0, &frame));
        let mut deeper = nested(b'A', DEPTH_MAX);
        frame_inspector.read(&mut deeper).unwrap();
        assert_eq!(frame_inspector.flattened(), 1);
    }

    #[test]
    fn the_table_of_the_handshake_is_looked_at_too() {
        let mut list = AMQPValue::FieldArray(FieldArray::default());
        for _ in 0..DEPTH_MAX {
            list = AMQPValue::FieldArray(vec![list].into());
        }
        let mut server_properties = FieldTable::default();
        server_properties.insert("deep".into(), list);
        let start = connection::AMQPMethod::Start(connection::Start {
            version_major: 0,
            version_minor: 9,
            server_properties,
            mechanisms: "PLAIN".into(),
            locales: "en_US".into(),
        });
        let mut bytes = bytes_of(&AMQPFrame::Method(0, AMQPClass::Connection(start)));
        let mut frame_inspector = FrameInspector::new(FRAME_MAX);
        frame_inspector.read(&mut bytes).unwrap();
        assert_eq!(frame_inspector.flattened(), 1);
        parse_frame(&bytes[..]).unwrap();
    }

    #[test]
    fn what_no_broker_sends_is_refused() {
        let consume = basic::AMQPMethod::Consume(basic::Consume {
            queue: "q".into(),
            consumer_tag: "t".into(),
            no_local: false,
            no_ack: false,
            exclusive: false,
            nowait: false,
            arguments: FieldTable::default(),
        });
        let of_a_client = bytes_of(&AMQPFrame::Method(1, AMQPClass::Basic(consume)));
        let mut no_end = bytes_of(&AMQPFrame::Heartbeat);
        *no_end.last_mut().unwrap() = 0;
        // The length of the outermost list says more than its table has.
        let mut too_long = nested(b'A', 3);
        too_long[7 + 14 + 4 + 2 + 4] += 1;
        for (mut bytes, says) in [
            (of_a_client, "which only clients send"),
            (vec![METHOD, 0, 1, 1, 0, 0, 0], "frame_max"),
            (b"HTTP/1.1 400".to_vec(), "the type 72"),
            (no_end, "without its end"),
            (too_long, "longer than its table"),
        ] {
            let error = FrameInspector::new(FRAME_MAX).read(&mut bytes).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        FrameInspector::new(FRAME_MAX).read(&mut b"AMQP\x00\x00\x09\x01".to_vec()).unwrap();
    }

    fn value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u8>().prop_map(AMQPValue::ShortShortUInt),
            any::<i16>().prop_map(AMQPValue::ShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<i32>().prop_map(AMQPValue::LongInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            (0.0..1.0_f32).prop_map(AMQPValue::Float),
            (0.0..1.0_f64).prop_map(AMQPValue::Double),
            ".{0,20}".prop_map(|text| AMQPValue::LongString(text.into())),
            proptest::collection::vec(any::<u8>(), 0..20)
                .prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
            Just(AMQPValue::Void),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6)
                    .prop_map(|values| AMQPValue::FieldArray(values.into())),
                proptest::collection::vec(("[a-z]{0,5}", inner), 0..6).prop_map(|fields| {
                    let mut table = FieldTable::default();
                    for (name, value) in fields {
                        table.insert(name.into(), value);
                    }
                    AMQPValue::FieldTable(table)
                }),
            ]
        })
    }

    proptest! {
        /// Whatever the pieces, good frames stay as they are.
        #[test]
        fn good_frames_stay(values in proptest::collection::vec(value(), 0..5), pieces in proptest::collection::vec(1..50_usize, 1..50)) {
            let mut headers = FieldTable::default();
            for (number, value) in values.into_iter().enumerate() {
                headers.insert(number.to_string().into(), value);
            }
            let body = AMQPFrame::Body(1, b"AAF".to_vec());
            let stream = [bytes_of(&header(headers.clone())), bytes_of(&body), bytes_of(&header(headers))].concat();
            let mut read = stream.clone();
            let mut frame_inspector = FrameInspector::new(FRAME_MAX);
            let (mut at, mut pieces) = (0, pieces.into_iter().cycle());
            while at < read.len() {
                let end = read.len().min(at + pieces.next().unwrap());
                frame_inspector.read(&mut read[at..end]).unwrap();
                at = end;
            }
            prop_assert_eq!(frame_inspector.next, Next::Frame);
            prop_assert_eq!(read, stream);
        }

        /// Nonsense ends in an error or goes through, and nothing else.
        #[test]
        fn nonsense_does_no_harm(kind in 1..4_u8, mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut frame = vec![kind, 0, 1, 0, 0, 1, 0];
            frame.append(&mut bytes);
            let _ = FrameInspector::new(FRAME_MAX).read(&mut frame);
        }
    }
}
