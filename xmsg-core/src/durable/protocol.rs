//! The messages between a durable subscription and its server, as protobuf in the data of requests and
//! answers. The fields are in `docs/protocol.md`.

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{DecodeContext, decode_key, skip_field};

use crate::{Error, ErrorKind, Message, Result};

/// The beginning of the topic of requests for a durable subscription. Its name follows.
pub const TOPIC: &str = "xmsg-durable:";

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Begins a session. The answer contains its identifier.
    Open,
    /// Asks for messages.
    Next {
        /// The session.
        session: Bytes,
        /// The number of the last message that was received.
        after: u64,
        /// The number up to which messages are acknowledged.
        ack: u64,
        /// The largest number of messages in the answer.
        max: u32,
        /// The time to wait for a message, in milliseconds.
        wait_ms: u32,
    },
    /// Acknowledges messages up to this number.
    Ack {
        /// The session.
        session: Bytes,
        /// The number up to which messages are acknowledged.
        ack: u64,
    },
    /// Acknowledges messages up to a number, and ends the session. Later messages are returned to the queue.
    End {
        /// The session.
        session: Bytes,
        /// The number up to which messages are acknowledged.
        ack: u64,
    },
}

/// An answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reply {
    /// A session has begun.
    Opened {
        /// The identifier of the session.
        session: Bytes,
        /// The prefixes that the durable subscription subscribes to.
        topics: Vec<String>,
    },
    /// Messages, the oldest first, or none if there were none in time.
    Messages(Vec<Item>),
    /// The session does not exist, or no longer exists. Messages that were not acknowledged come again in
    /// another one.
    UnknownSession,
    /// The messages can't be read for now, for this reason.
    Unavailable(String),
}

/// A message with its number in the session.
#[derive(Clone, Debug)]
pub struct Item {
    /// The number, which begins with 1.
    pub number: u64,
    /// The number of times that the message was delivered before without being acknowledged.
    pub returned: u32,
    /// The message as it was published.
    pub message: Message,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireRequest {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(bytes = "bytes", tag = "2")]
    session: Bytes,
    #[prost(uint64, tag = "3")]
    after: u64,
    #[prost(uint64, tag = "4")]
    ack: u64,
    #[prost(uint32, tag = "5")]
    max: u32,
    #[prost(uint32, tag = "6")]
    wait_ms: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireReply {
    #[prost(uint32, tag = "1")]
    status: u32,
    #[prost(bytes = "bytes", tag = "2")]
    session: Bytes,
    #[prost(string, tag = "3")]
    text: String,
    #[prost(message, repeated, tag = "4")]
    messages: Vec<WireItem>,
    #[prost(string, repeated, tag = "5")]
    topics: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireItem {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(bytes = "bytes", tag = "2")]
    topic: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    meta: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
    #[prost(uint32, tag = "5")]
    returned: u32,
}

/// The maximum number of fields of an answer, which are far more messages and topics than any has. Each takes
/// some hundred bytes of memory, even if it has two on the wire, and whoever may publish to `ret:` can send
/// answers.
const FIELDS_MAX: usize = 100_000;

const OPEN: u32 = 1;
const NEXT: u32 = 2;
const ACK: u32 = 3;
const END: u32 = 4;

const MESSAGES: u32 = 0;
const OPENED: u32 = 1;
const UNKNOWN_SESSION: u32 = 2;
const UNAVAILABLE: u32 = 3;

impl Request {
    /// Returns the session of the request, or `None` for a request that begins one.
    #[must_use]
    pub fn session(&self) -> Option<&Bytes> {
        match self {
            Self::Open => None,
            Self::Next { session, .. } | Self::Ack { session, .. } | Self::End { session, .. } => {
                Some(session)
            }
        }
    }

    /// Encodes the request.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let wire = match self.clone() {
            Self::Open => WireRequest { kind: OPEN, ..WireRequest::default() },
            Self::Next { session, after, ack, max, wait_ms } => {
                WireRequest { kind: NEXT, session, after, ack, max, wait_ms }
            }
            Self::Ack { session, ack } => WireRequest { kind: ACK, session, ack, ..WireRequest::default() },
            Self::End { session, ack } => WireRequest { kind: END, session, ack, ..WireRequest::default() },
        };
        wire.encode_to_vec().into()
    }

    /// Decodes the result of [`encode`](Self::encode).
    pub fn decode(bytes: Bytes) -> Result<Self> {
        let wire = WireRequest::decode(bytes).map_err(|error| unreadable().with_source(error))?;
        let WireRequest { kind, session, after, ack, max, wait_ms } = wire;
        Ok(match kind {
            OPEN => Self::Open,
            NEXT => Self::Next { session, after, ack, max, wait_ms },
            ACK => Self::Ack { session, ack },
            END => Self::End { session, ack },
            _ => return Err(unreadable()),
        })
    }
}

impl Reply {
    /// Encodes the answer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let wire = match self {
            Self::Opened { session, topics } => WireReply {
                status: OPENED,
                session: session.clone(),
                topics: topics.clone(),
                ..WireReply::default()
            },
            Self::Messages(items) => WireReply {
                status: MESSAGES,
                messages: items.iter().map(WireItem::of).collect(),
                ..WireReply::default()
            },
            Self::UnknownSession => WireReply { status: UNKNOWN_SESSION, ..WireReply::default() },
            Self::Unavailable(text) => {
                WireReply { status: UNAVAILABLE, text: text.clone(), ..WireReply::default() }
            }
        };
        wire.encode_to_vec().into()
    }

    /// Decodes the result of [`encode`](Self::encode). The frames of the messages are slices of `bytes`.
    pub fn decode(bytes: Bytes) -> Result<Self> {
        if !has_few_fields(&bytes) {
            return Err(unreadable());
        }
        let wire = WireReply::decode(bytes).map_err(|error| unreadable().with_source(error))?;
        Ok(match wire.status {
            MESSAGES => Self::Messages(wire.messages.into_iter().map(WireItem::into_item).collect()),
            OPENED => Self::Opened { session: wire.session, topics: wire.topics },
            UNKNOWN_SESSION => Self::UnknownSession,
            UNAVAILABLE => Self::Unavailable(wire.text),
            _ => return Err(unreadable()),
        })
    }
}

impl WireItem {
    fn of(item: &Item) -> Self {
        let [topic, meta, data] = item.message.clone().into_frames();
        Self { number: item.number, topic, meta, data, returned: item.returned }
    }

    fn into_item(self) -> Item {
        let message = Message::from_frames(self.topic, self.meta, self.data);
        Item { number: self.number, returned: self.returned, message }
    }
}

/// Returns whether a message of protobuf has at most [`FIELDS_MAX`] fields, and can be read.
fn has_few_fields(mut bytes: &[u8]) -> bool {
    for _ in 0..FIELDS_MAX {
        if bytes.is_empty() {
            return true;
        }
        let skipped = decode_key(&mut bytes)
            .and_then(|(tag, wire_type)| skip_field(wire_type, tag, &mut bytes, DecodeContext::default()));
        if skipped.is_err() {
            return false;
        }
    }
    bytes.is_empty()
}

fn unreadable() -> Error {
    let what = "a request or an answer of a durable subscription can't be read: is the other side of another version?";
    Error::new(ErrorKind::InvalidMessage, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Somebody else than the server may answer.
    #[test]
    fn an_answer_of_millions_of_fields_is_not_decoded() {
        for field in [&[0x22, 0][..], &[0x2a, 0], &[0xa0, 1, 0]] {
            assert!(Reply::decode(field.repeat(FIELDS_MAX + 1).into()).is_err());
            assert!(Reply::decode(field.repeat(1000).into()).is_ok());
        }
    }

    #[test]
    fn requests_and_answers_are_read_as_they_were_written() {
        let session = Bytes::from_static(b"s");
        for request in [
            Request::Open,
            Request::Next { session: session.clone(), after: 7, ack: 5, max: 100, wait_ms: 1000 },
            Request::Ack { session: session.clone(), ack: 9 },
            Request::End { session: session.clone(), ack: u64::MAX },
        ] {
            assert_eq!(Request::decode(request.encode()).unwrap(), request);
        }
        let message = Message::of("orders:new", 17).unwrap();
        let items = vec![Item { number: 3, returned: 2, message: message.clone() }];
        let Reply::Messages(read) = Reply::decode(Reply::Messages(items).encode()).unwrap() else { panic!() };
        assert_eq!((read.len(), read[0].number, read[0].returned), (1, 3, 2));
        assert_eq!(read[0].message.clone().into_frames(), message.into_frames());
        let opened = Reply::Opened { session: session.clone(), topics: vec!["a".into(), String::new()] };
        let Reply::Opened { session: read, topics } = Reply::decode(opened.encode()).unwrap() else {
            panic!()
        };
        assert_eq!((read, topics), (session, vec!["a".to_owned(), String::new()]));
        assert!(matches!(Reply::decode(Reply::UnknownSession.encode()), Ok(Reply::UnknownSession)));
        let Reply::Unavailable(text) = Reply::decode(Reply::Unavailable("why".into()).encode()).unwrap()
        else {
            panic!()
        };
        assert_eq!(text, "why");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Request::decode(bytes.clone().into());
            let _ = Reply::decode(bytes.into());
        }
    }
}
