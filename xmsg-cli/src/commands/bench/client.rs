//! The clients that a bench is made of. How messages are published and taken is here and nowhere else.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use xmsg_core::{Connection, ErrorKind, Message, Messages, Meta, Subscription, Topic};

/// Bytes that each message starts with: [`Header`].
pub(super) const HEADER_LEN: usize = 16;
/// Publishers that fit into a header.
pub(super) const PUBLISHERS_MAX: u32 = 1 << PUBLISHER_BITS;
const PUBLISHER_BITS: u32 = 20;
const SEQUENCE_BITS: u32 = 40;

/// Memory for short messages is taken in pieces of this size.
const ARENA_LEN: usize = 64 << 10;
/// Longer messages are not copied: their buffers are used again once they are written.
const COPIED_MAX: usize = 4 << 10;
/// So much memory may wait for that, or two messages.
const BUFFERS_LEN: usize = 8 << 20;

/// The time since a moment that all clients of this process share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    /// The time now, in nanoseconds; never 0.
    pub(super) fn now_ns(self) -> u64 {
        self.at_ns(Instant::now())
    }

    pub(super) fn at_ns(self, time: Instant) -> u64 {
        (time.saturating_duration_since(self.0).as_nanos() as u64).max(1)
    }
}

/// What a message says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Of the bench, modulo 16: so that what is left of a phase is not counted in the next one.
    pub(super) phase: u8,
    pub(super) publisher: u32,
    /// Counts from 0 for each publisher and phase.
    pub(super) sequence: u64,
    /// When it was published, or should have been: [`Clock`]. 0: not noted.
    pub(super) time_ns: u64,
}

impl Header {
    fn encode(self) -> [u8; HEADER_LEN] {
        let name = u64::from(self.phase & 0xf) << (PUBLISHER_BITS + SEQUENCE_BITS)
            | u64::from(self.publisher) << SEQUENCE_BITS
            | self.sequence & ((1 << SEQUENCE_BITS) - 1);
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&name.to_le_bytes());
        bytes[8..].copy_from_slice(&self.time_ns.to_le_bytes());
        bytes
    }

    /// The header of a message of the bench; others are told by their length at most.
    pub(super) fn decode(data: &[u8]) -> Option<Self> {
        let (name, rest) = data.split_first_chunk()?;
        let (time_ns, _) = rest.split_first_chunk()?;
        let name = u64::from_le_bytes(*name);
        Some(Self {
            phase: (name >> (PUBLISHER_BITS + SEQUENCE_BITS)) as u8,
            publisher: (name >> SEQUENCE_BITS) as u32 & (PUBLISHERS_MAX - 1),
            sequence: name & ((1 << SEQUENCE_BITS) - 1),
            time_ns: u64::from_le_bytes(*time_ns),
        })
    }
}

/// The topics of one run: no other run has the same.
#[derive(Clone, Debug)]
pub(super) struct Topics {
    prefix: String,
    frames: Arc<[Bytes]>,
}

impl Topics {
    /// What the topics of all runs with this prefix begin with.
    pub(super) fn below(prefix: &Topic) -> Topic {
        Topic::wrap(format!("{prefix}:"))
    }

    /// With the prefix `bench`, topics have 20 bytes.
    pub(super) fn new(prefix: &Topic, count: usize) -> Self {
        let prefix = format!("{}{:08x}:", Self::below(prefix), fastrand::u32(..));
        let frames = (0..count).map(|number| Bytes::from(format!("{prefix}{number:05}"))).collect();
        Self { prefix, frames }
    }

    /// What to subscribe to for all of them.
    pub(super) fn all(&self) -> Topic {
        Topic::wrap(self.prefix.clone())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Topic> {
        self.frames.iter().cloned().map(Topic::wrap)
    }
}

/// Publishes messages with headers, of one size, to the topics in turn.
#[derive(Debug)]
pub(super) struct Sender {
    connection: Connection,
    topics: Topics,
    topic: usize,
    meta: Bytes,
    payload: Payload,
}

impl Sender {
    /// The connection should be open.
    pub(super) fn new(connection: Connection, topics: Topics, size: usize) -> Self {
        // As the two fields that every message has; nobody decodes it.
        let meta = Meta::new("binary/bytes").encode();
        Self { connection, topics, topic: 0, meta, payload: Payload::new(size) }
    }

    /// The next message.
    pub(super) fn message(&mut self, header: Header) -> Message {
        let topic = self.topics.frames[self.topic].clone();
        self.topic += 1;
        if self.topic == self.topics.frames.len() {
            self.topic = 0;
        }
        Message::from_frames(topic, self.meta.clone(), self.payload.next(header))
    }

    /// Publishes, if there is room at once. Returns whether there was.
    pub(super) fn try_send(&self, message: &Message) -> xmsg_core::Result<bool> {
        match self.connection.try_publish(message) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Full => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Publishes, and waits for room. To drop the future means: not published.
    pub(super) async fn send(&self, message: &Message) -> xmsg_core::Result<()> {
        self.connection.publish(message).await
    }

    /// Messages that are not written yet.
    pub(super) fn queued(&self) -> u64 {
        self.connection.queued().messages
    }

    pub(super) async fn close(self, linger: Duration) {
        self.connection.close(linger).await;
    }
}

/// The data of one message after another, without an allocation for each.
#[derive(Debug)]
struct Payload {
    /// What a message looks like; the header goes over its beginning.
    pattern: Bytes,
    arena: BytesMut,
    /// Buffers of long messages, the oldest first.
    buffers: VecDeque<Bytes>,
    buffers_max: usize,
}

impl Payload {
    fn new(size: usize) -> Self {
        let mut pattern = vec![0; size.max(HEADER_LEN)];
        // Nothing on the way compresses; if something did, a filler of zeros would flatter it.
        fastrand::Rng::with_seed(size as u64).fill(&mut pattern);
        let buffers_max = (BUFFERS_LEN / pattern.len()).max(2);
        Self { pattern: pattern.into(), arena: BytesMut::new(), buffers: VecDeque::new(), buffers_max }
    }

    fn next(&mut self, header: Header) -> Bytes {
        let header = header.encode();
        if self.pattern.len() <= COPIED_MAX {
            if self.arena.capacity() < self.pattern.len() {
                self.arena.reserve(ARENA_LEN);
            }
            self.arena.extend_from_slice(&header);
            self.arena.extend_from_slice(&self.pattern[HEADER_LEN..]);
            return self.arena.split().freeze();
        }
        let oldest = self.buffers.pop_front().and_then(|buffer| match buffer.try_into_mut() {
            Ok(buffer) => Some(buffer),
            Err(buffer) => {
                // Not written yet: it stays for later, unless there are enough.
                if self.buffers.len() + 1 < self.buffers_max {
                    self.buffers.push_front(buffer);
                }
                None
            }
        });
        let mut buffer = oldest.unwrap_or_else(|| BytesMut::from(&self.pattern[..]));
        buffer[..HEADER_LEN].copy_from_slice(&header);
        let buffer = buffer.freeze();
        self.buffers.push_back(buffer.clone());
        buffer
    }
}

/// Takes the messages of a subscription.
#[derive(Debug)]
pub(super) struct Receiver {
    subscription: Subscription,
}

impl Receiver {
    pub(super) fn new(subscription: Subscription) -> Self {
        Self { subscription }
    }

    /// The messages that are there already, if any.
    pub(super) async fn try_next(&mut self) -> Option<anyhow::Result<Messages>> {
        match futures::poll!(pin!(self.subscription.next_batch())) {
            Poll::Ready(next) => Some(taken(next)),
            Poll::Pending => None,
        }
    }

    /// The next messages, at least one. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> anyhow::Result<Messages> {
        taken(self.subscription.next_batch().await)
    }

    pub(super) async fn close(self) {
        self.subscription.close().await;
    }
}

fn taken(next: Option<Messages>) -> anyhow::Result<Messages> {
    next.context("the subscription has ended")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sequence: u64) -> Header {
        Header { phase: 15, publisher: PUBLISHERS_MAX - 1, sequence, time_ns: u64::MAX }
    }

    #[test]
    fn headers_are_read_as_written() {
        for sequence in [0, 1, (1 << SEQUENCE_BITS) - 1] {
            assert_eq!(Header::decode(&header(sequence).encode()), Some(header(sequence)));
        }
        assert_eq!(Header::decode(&[0; HEADER_LEN - 1]), None);
    }

    #[test]
    fn short_and_long_messages_have_their_size_and_header() {
        for size in [HEADER_LEN, 100, COPIED_MAX, COPIED_MAX + 1, 100_000] {
            let mut payload = Payload::new(size);
            let messages: Vec<Bytes> = (0..100).map(|number| payload.next(header(number))).collect();
            for (number, data) in messages.iter().enumerate() {
                assert_eq!(data.len(), size);
                assert_eq!(Header::decode(data), Some(header(number as u64)));
                assert_eq!(data[HEADER_LEN..], payload.pattern[HEADER_LEN..]);
            }
        }
    }

    #[test]
    fn buffers_of_long_messages_are_used_again() {
        let mut payload = Payload::new(1 << 20);
        let first = payload.next(header(0));
        let address = first.as_ptr();
        let second = payload.next(header(1));
        assert_ne!(second.as_ptr(), address, "the first one is not free yet");
        drop(first);
        assert_eq!(payload.next(header(2)).as_ptr(), address);
        let kept: Vec<Bytes> = (0..100).map(|number| payload.next(header(number))).collect();
        assert!(payload.buffers.len() <= payload.buffers_max, "{} for {}", payload.buffers.len(), kept.len());
    }

    #[test]
    fn topics_have_twenty_bytes_and_metadata_fourteen() {
        assert_eq!(Meta::new("binary/bytes").encode().len(), 14);
        let topics = Topics::new(&Topic::wrap("bench"), 3);
        let names: Vec<Topic> = topics.iter().collect();
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|name| name.as_bytes().len() == 20 && topics.all().is_parent(name)));
    }
}
