//! The clients of a bench. This is the only module that publishes and receives messages.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use xmsg_core::{Connection, ErrorKind, Message, Messages, Meta, Subscription, Topic};

/// The length of the [`Header`] at the beginning of each message.
pub(super) const HEADER_LEN: usize = 16;
/// The largest number of publishers that the header can represent.
pub(super) const PUBLISHERS_MAX: u32 = 1 << PUBLISHER_BITS;
const PUBLISHER_BITS: u32 = 20;
const SEQUENCE_BITS: u32 = 40;

/// The size of the pieces in which memory for short messages is allocated.
const ARENA_LEN: usize = 64 << 10;
/// The largest size of messages that are copied. The buffers of longer messages are reused once they are
/// written.
const COPIED_MAX: usize = 4 << 10;
/// The largest size of the buffers that wait to be reused. It allows at least two messages.
const BUFFERS_LEN: usize = 8 << 20;

/// The time since a moment that all clients of this process share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    /// Returns the current time in nanoseconds. It is never 0.
    pub(super) fn now_ns(self) -> u64 {
        self.at_ns(Instant::now())
    }

    pub(super) fn at_ns(self, time: Instant) -> u64 {
        (time.saturating_duration_since(self.0).as_nanos() as u64).max(1)
    }
}

/// The header of a message, at the beginning of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The number of the phase, modulo 16, so that late messages of a phase are not counted in the next one.
    pub(super) phase: u8,
    pub(super) publisher: u32,
    /// The sequence number, which starts at 0 for each publisher and phase.
    pub(super) sequence: u64,
    /// When the message was published, or should have been, as a time of [`Clock`]; 0 if that was not
    /// recorded.
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

    /// Decodes the header of a bench message. Of other messages, it can only reject those that are too short.
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

/// The topics of one run. No other run uses the same topics.
#[derive(Clone, Debug)]
pub(super) struct Topics {
    prefix: String,
    frames: Arc<[Bytes]>,
}

impl Topics {
    /// Returns the prefix of the topics of all runs with this option `--topic`.
    pub(super) fn below(prefix: &Topic) -> Topic {
        Topic::wrap(format!("{prefix}:"))
    }

    /// Makes the topics of a run. With the prefix `bench`, each topic has 20 bytes.
    pub(super) fn new(prefix: &Topic, count: usize) -> Self {
        let prefix = format!("{}{:08x}:", Self::below(prefix), fastrand::u32(..));
        let frames = (0..count).map(|number| Bytes::from(format!("{prefix}{number:05}"))).collect();
        Self { prefix, frames }
    }

    /// Returns the topic to subscribe to for all of them.
    pub(super) fn all(&self) -> Topic {
        Topic::wrap(self.prefix.clone())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Topic> {
        self.frames.iter().cloned().map(Topic::wrap)
    }
}

/// Publishes messages of one size with headers, to the topics in turn.
#[derive(Debug)]
pub(super) struct Sender {
    connection: Connection,
    topics: Topics,
    topic: usize,
    meta: Bytes,
    payload: Payload,
}

impl Sender {
    /// Makes a sender. The connection should be open.
    pub(super) fn new(connection: Connection, topics: Topics, size: usize) -> Self {
        // The metadata has two fields, as usual. Nobody decodes it.
        let meta = Meta::new("binary/bytes").encode();
        Self { connection, topics, topic: 0, meta, payload: Payload::new(size) }
    }

    /// Makes the next message.
    pub(super) fn message(&mut self, header: Header) -> Message {
        let topic = self.topics.frames[self.topic].clone();
        self.topic += 1;
        if self.topic == self.topics.frames.len() {
            self.topic = 0;
        }
        Message::from_frames(topic, self.meta.clone(), self.payload.next(header))
    }

    /// Publishes a message if there is room in the queue. Returns whether there was.
    pub(super) fn try_send(&self, message: &Message) -> xmsg_core::Result<bool> {
        match self.connection.try_publish(message) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Full => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Publishes a message and waits for room in the queue. If the future is dropped, the message is not
    /// published.
    pub(super) async fn send(&self, message: &Message) -> xmsg_core::Result<()> {
        self.connection.publish(message).await
    }

    /// Returns the number of messages that are not yet written.
    pub(super) fn queued(&self) -> u64 {
        self.connection.queued().messages
    }

    pub(super) async fn close(self, linger: Duration) {
        self.connection.close(linger).await;
    }
}

/// Makes the data of one message after another, without an allocation for each.
#[derive(Debug)]
struct Payload {
    /// The bytes of each message. The header overwrites their beginning.
    pattern: Bytes,
    arena: BytesMut,
    /// The buffers of long messages, the oldest first.
    buffers: VecDeque<Bytes>,
    buffers_max: usize,
}

impl Payload {
    fn new(size: usize) -> Self {
        let mut pattern = vec![0; size.max(HEADER_LEN)];
        // Nothing on the way compresses the data. If something did, a filler of zeros would improve the
        // results.
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
                // The message in this buffer is not yet written. The buffer is kept for later, unless there
                // are enough.
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

/// Receives the messages of a subscription.
#[derive(Debug)]
pub(super) struct Receiver {
    subscription: Subscription,
}

impl Receiver {
    pub(super) fn new(subscription: Subscription) -> Self {
        Self { subscription }
    }

    /// Returns the messages that have already arrived, if any.
    pub(super) async fn try_next(&mut self) -> Option<anyhow::Result<Messages>> {
        match futures::poll!(pin!(self.subscription.next_batch())) {
            Poll::Ready(next) => Some(taken(next)),
            Poll::Pending => None,
        }
    }

    /// Waits for the next messages, at least one. Dropping the future loses nothing.
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
