//! Batches of messages that were received together, decoded as they are taken: this is where the three frames
//! of a received message are found.

use std::iter::FusedIterator;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::control::is_private_answer;
use crate::{Error, ErrorKind, Message, Meta, Result, Topic, meta};
use xmsg_zmtp::walk_message;

/// The memory, in bytes, that batches of one subscription may keep alive after `next` has returned their
/// messages. Above it, small messages of further batches are copied. The limit is enough for a program that
/// works on many messages at a time, and a program that drops its messages soon never causes a copy.
const KEPT_MAX: usize = 2 << 20;
/// A message is small if the memory of its batch is more than this many times as large.
const SMALL: usize = 16;
/// The memory that any message may keep alive, in bytes.
const LITTLE: usize = 1 << 10;

/// A batch of messages that were received with one read, or the rest of it: an iterator, in the order of the
/// messages.
///
/// As an iterator it returns [`Message`]s that share the memory of the batch. A message that is kept keeps
/// all of that memory alive: up to 128 KiB, or 2 MiB where messages are long. [`detached`](Self::detached)
/// returns messages that own their memory and can be kept. Iterating by reference returns borrowed
/// [`MessageRef`]s. This is the cheapest way to look at messages that are not kept: no reference is counted.
///
/// A message that does not have the three frames of xMsg is returned as an error in its place. Messages of
/// two frames, such as answers to control requests, are skipped unless they are
/// [enabled](Self::with_two_frames).
///
/// ```no_run
/// # async fn run(mut subscription: xmsg_core::Subscription) -> xmsg_core::Result<()> {
/// let mut bytes = 0;
/// while let Some(messages) = subscription.next_batch().await {
///     for message in &messages {
///         bytes += message?.data().len();
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct Messages {
    wire: Bytes,
    /// The offset of the next message.
    at: usize,
    /// Messages that are shorter are copied, so that they own their memory.
    detach_below: usize,
    /// Whether messages of two frames are returned as messages.
    two_frames: bool,
}

impl Messages {
    /// Makes a batch of the messages in these bytes, which are encoded as ZMTP frames. Bytes after the last
    /// whole message are ignored.
    #[must_use]
    pub fn of(wire: Bytes) -> Self {
        Self { wire, ..Self::default() }
    }

    /// Makes the batch return messages of two frames, topic and data, too. Plain ZeroMQ publishers send them;
    /// they have empty metadata. Answers to control requests of clients that use this library are skipped all
    /// the same.
    #[must_use]
    pub fn with_two_frames(self) -> Self {
        Self { two_frames: true, ..self }
    }

    /// Makes a batch of messages that can be kept. Each message keeps alive at most [`SMALL`] times its own
    /// size or [`LITTLE`], whichever is more. Up to [`KEPT_MAX`] in all, messages may keep alive more than
    /// that. `memory` is the number of bytes that a slice of `wire` keeps alive.
    pub(crate) fn to_keep(wire: Bytes, memory: usize, kept: &RetainedMemory) -> Self {
        if memory <= LITTLE {
            return Self::of(wire);
        }
        let detach_below = if kept.is_much() { memory / SMALL } else { 0 };
        Self { wire: kept.count(wire, memory), detach_below, ..Self::default() }
    }

    /// Makes the rest of the batch return messages that own their memory. Each message is copied; borrow
    /// those that are only looked at.
    ///
    /// ```
    /// use xmsg_core::{Message, Messages, Result};
    ///
    /// fn keep(batch: Messages, all: &mut Vec<Message>) -> Result<()> {
    ///     for message in batch.detached() {
    ///         all.push(message?);
    ///     }
    ///     Ok(())
    /// }
    /// # keep(Messages::default(), &mut Vec::new())?;
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    #[must_use]
    pub fn detached(self) -> Self {
        Self { detach_below: usize::MAX, ..self }
    }

    /// Iterates over the rest of the batch by reference. The batch stays as it is.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { wire: &self.wire, at: self.at, two_frames: self.two_frames }
    }

    /// Returns the bytes of the batch and the offset of the next message.
    pub(crate) fn place(&self) -> (&Bytes, usize) {
        (&self.wire, self.at)
    }

    /// Iterates by reference over the messages in `wire` from the offset `at`, where a message starts.
    pub(crate) fn iter_at(wire: &Bytes, at: usize) -> Iter<'_> {
        Iter { wire, at, two_frames: false }
    }

    /// Returns whether all messages were taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at >= self.wire.len()
    }
}

impl Iterator for Messages {
    type Item = Result<Message>;

    fn next(&mut self) -> Option<Result<Message>> {
        let found = Found::next(&self.wire, &mut self.at, self.two_frames);
        let message = found.map(|found| {
            let frame = |range| self.wire.slice(range);
            match found {
                Found::Message([topic, meta, data]) => {
                    let len = data.end - topic.start;
                    let message = Message::from_frames(frame(topic), frame(meta), frame(data));
                    Ok(if len < self.detach_below { message.detach() } else { message })
                }
                Found::Other { topic, frames } => Err(not_three(&self.wire[topic], frames)),
            }
        });
        if self.is_empty() {
            // The memory of the batch can be reused as soon as no message shares it.
            *self = Self::default();
        }
        message
    }
}

impl FusedIterator for Messages {}

impl<'a> IntoIterator for &'a Messages {
    type Item = Result<MessageRef<'a>>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// An iterator over the messages of a batch, by reference.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    wire: &'a Bytes,
    at: usize,
    two_frames: bool,
}

impl Iter<'_> {
    /// Returns the offset of the next message.
    pub(crate) fn at(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = Result<MessageRef<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let wire = self.wire;
        Some(match Found::next(wire, &mut self.at, self.two_frames)? {
            Found::Message([topic, meta, data]) => {
                Ok(MessageRef { wire, topic: &wire[topic], meta: &wire[meta], data: &wire[data] })
            }
            Found::Other { topic, frames } => Err(not_three(&wire[topic], frames)),
        })
    }
}

impl FusedIterator for Iter<'_> {}

/// A borrowed message of a batch.
#[derive(Clone, Copy, Debug)]
pub struct MessageRef<'a> {
    wire: &'a Bytes,
    topic: &'a [u8],
    meta: &'a [u8],
    data: &'a [u8],
}

impl<'a> MessageRef<'a> {
    /// Returns the topic as it is on the wire.
    #[must_use]
    pub fn topic(&self) -> &'a [u8] {
        self.topic
    }

    /// Returns the data as it is on the wire.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Decodes the metadata; each call decodes it again.
    ///
    /// # Errors
    /// [`InvalidMessage`](ErrorKind::InvalidMessage) when the metadata cannot be decoded.
    pub fn meta(&self) -> Result<Meta> {
        Meta::decode(&self.wire.slice_ref(self.meta))
    }

    /// Returns the value of a header, without decoding the rest of the metadata; `None` if there is no such
    /// header.
    ///
    /// # Errors
    /// [`InvalidMessage`](ErrorKind::InvalidMessage) when the metadata cannot be decoded.
    pub fn header(&self, key: &str) -> Result<Option<&'a str>> {
        meta::header(self.meta, key)
    }

    /// Returns the MIME type of the data, without decoding the rest of the metadata.
    ///
    /// # Errors
    /// [`InvalidMessage`](ErrorKind::InvalidMessage) when the metadata cannot be decoded.
    pub fn mime_type(&self) -> Result<&'a str> {
        meta::data_type(self.meta)
    }

    /// Returns the length of the three frames together, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.topic.len() + self.meta.len() + self.data.len()
    }

    /// Returns the message. It shares the memory of the batch; [`Message::detach`] makes a copy that owns its
    /// memory.
    #[must_use]
    pub fn to_message(&self) -> Message {
        let [topic, meta, data] = [self.topic, self.meta, self.data].map(|frame| self.wire.slice_ref(frame));
        Message::from_frames(topic, meta, data)
    }
}

/// The next element of a batch, as it was found in the bytes.
enum Found {
    /// The ranges of the three frames of a message.
    Message([Range<usize>; 3]),
    /// Something that is neither an xMsg message nor an answer to a control request.
    Other { topic: Range<usize>, frames: usize },
}

impl Found {
    /// Decodes the message at the offset `at` and moves `at` to the next one. Messages of two frames are
    /// skipped unless they are enabled. Returns `None` at the end.
    #[allow(clippy::inline_always, reason = "measured: a tenth faster")]
    #[inline(always)]
    fn next(wire: &[u8], at: &mut usize, two_frames: bool) -> Option<Self> {
        loop {
            let start = *at;
            let (ranges, frames, end) = Self::ranges(wire, start);
            *at = end.unwrap_or(wire.len());
            end?;
            if frames == 3 {
                return Some(Self::Message(ranges));
            }
            // `of_other_frames` decodes the message again, so that the usual case does not have to keep what
            // it found.
            if let Some(found) = Self::of_other_frames(wire, start, two_frames) {
                return Some(found);
            }
        }
    }

    /// Returns the ranges of the first three frames of the message at `start`, the number of its frames, and
    /// the offset of its end.
    #[allow(clippy::inline_always, reason = "measured: a tenth faster")]
    #[inline(always)]
    fn ranges(wire: &[u8], start: usize) -> ([Range<usize>; 3], usize, Option<usize>) {
        let mut ranges = [0..0, 0..0, 0..0];
        let mut frames = 0;
        let end = walk_message(wire, start, |frame| {
            if let Some(range) = ranges.get_mut(frames) {
                *range = frame;
            }
            frames += 1;
        });
        (ranges, frames, end)
    }

    /// Decodes a message that does not have three frames; `None` means that it is skipped.
    #[cold]
    fn of_other_frames(wire: &[u8], start: usize, two_frames: bool) -> Option<Self> {
        let ([topic, data, _], frames, _) = Self::ranges(wire, start);
        if frames != 2 {
            return Some(Self::Other { topic, frames });
        }
        if !two_frames || is_private_answer(&wire[topic.clone()], &wire[data.clone()]) {
            return None;
        }
        let no_meta = topic.end..topic.end;
        Some(Self::Message([topic, no_meta, data]))
    }
}

/// Counts the memory that the messages of one subscription keep alive after `next` has returned them.
///
/// While this is little, messages share the memory of their batch. It stays little in a program that drops
/// its messages soon. If it grows, messages are being kept, and further messages that are small beside that
/// memory are copied.
#[derive(Clone, Debug, Default)]
pub(crate) struct RetainedMemory(Arc<AtomicUsize>);

impl RetainedMemory {
    fn is_much(&self) -> bool {
        self.0.load(Ordering::Relaxed) > KEPT_MAX
    }

    /// Returns the same bytes; their memory counts until the last slice of them is dropped.
    fn count(&self, wire: Bytes, memory: usize) -> Bytes {
        self.0.fetch_add(memory, Ordering::Relaxed);
        Bytes::from_owner(Counted { wire, memory, kept: self.clone() })
    }
}

/// The bytes of a batch, and the memory that they count for.
struct Counted {
    wire: Bytes,
    memory: usize,
    kept: RetainedMemory,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.wire
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.kept.0.fetch_sub(self.memory, Ordering::Relaxed);
    }
}

fn not_three(topic: &[u8], frames: usize) -> Error {
    let topic = Topic::wrap(Bytes::copy_from_slice(topic));
    let what = format!("a message of {frames} frames to {topic}: xMsg messages have three");
    Error::new(ErrorKind::InvalidMessage, what)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use xmsg_zmtp::encode_message;

    fn wire(messages: &[Vec<Vec<u8>>]) -> Bytes {
        let mut out = BytesMut::new();
        for frames in messages {
            encode_message(&mut out, frames);
        }
        out.freeze()
    }

    fn texts(messages: &[&[&str]]) -> Bytes {
        let bytes = |frames: &&[&str]| frames.iter().map(|frame| frame.as_bytes().to_vec()).collect();
        wire(&messages.iter().map(bytes).collect::<Vec<_>>())
    }

    #[test]
    fn answers_are_passed_over_and_what_is_no_message_is_an_error_in_its_place() {
        let messages = Messages::of(texts(&[
            &["a", "text/string", "1"],
            &["a:b", "sub"],
            &["lonely"],
            &["c", "text/string", "3"],
        ]));
        let lent: Vec<_> = messages.into_iter().collect();
        let topics: Vec<_> =
            lent.iter().map(|message| message.as_ref().map(|m| m.topic().clone()).ok()).collect();
        assert_eq!(topics.len(), 3);
        assert_eq!(topics[0].as_ref().unwrap(), &Topic::wrap("a"));
        assert!(lent[1].as_ref().unwrap_err().to_string().contains("1 frames to lonely"));
        assert_eq!(topics[2].as_ref().unwrap(), &Topic::wrap("c"));
    }

    #[test]
    fn messages_of_two_frames_have_no_metadata_where_they_are_wanted() {
        let messages = || {
            Messages::of(texts(&[
                &["a", "1"],
                &["xmsg:sub:1", "sub"],
                &["xmsg:sub:1:a", "sub"],
                &["ret:1:drain", "sub"],
                &["a", "sub"],
                &["b", "meta", "2"],
            ]))
        };
        assert_eq!(messages().count(), 1);
        let taken: Vec<_> = messages().with_two_frames().map(|m| m.unwrap().into_frames()).collect();
        let expected = [["a", "", "1"], ["a", "", "sub"], ["b", "meta", "2"]];
        assert_eq!(taken, expected.map(|frames| frames.map(Bytes::from)));
        let messages = messages().with_two_frames();
        let lent: Vec<_> = messages.iter().map(|m| m.unwrap().to_message().into_frames()).collect();
        assert_eq!(lent, taken);
    }

    #[test]
    fn what_was_lent_can_be_kept() {
        let messages = Messages::of(texts(&[&["a", "meta", "data"]]));
        let lent = messages.iter().next().unwrap().unwrap();
        assert_eq!((lent.topic(), lent.data(), lent.size()), (&b"a"[..], &b"data"[..], 9));
        let kept = lent.to_message();
        assert_eq!(kept.data().as_ptr(), lent.data().as_ptr());
        assert!(!messages.is_empty(), "lending takes nothing");
    }

    #[test]
    fn a_batch_that_is_used_up_holds_no_memory() {
        let wire = texts(&[&["a", "meta", "data"]]);
        let mut messages = Messages::of(wire.clone());
        assert!(messages.next().is_some());
        assert!(messages.is_empty() && messages.next().is_none());
        assert!(wire.try_into_mut().is_ok(), "the only one left");
    }

    #[test]
    fn messages_are_copied_once_much_is_kept_and_no_longer_when_it_was_dropped() {
        const MEMORY: usize = 128 << 10;
        let kept = RetainedMemory::default();
        let batch = || {
            Messages::to_keep(
                texts(&[&["a", "meta", "small"], &["b", "meta", &"x".repeat(9000)]]),
                MEMORY,
                &kept,
            )
        };
        // A message keeps its batch alive only if it shares its memory.
        let copies = |messages: &[Message]| messages.len() * MEMORY - kept.0.load(Ordering::Relaxed);
        let mut all = Vec::new();
        for _ in 0..100 {
            all.push(batch().next().unwrap().unwrap());
        }
        assert_eq!(copies(&all), (100 - KEPT_MAX / MEMORY - 1) * MEMORY);
        // A message that is not small beside its memory shares it all the same.
        all.push(batch().nth(1).unwrap().unwrap());
        assert_eq!(copies(&all), (100 - KEPT_MAX / MEMORY - 1) * MEMORY);
        all.clear();
        all.push(batch().next().unwrap().unwrap());
        assert_eq!(copies(&all), 0);
        drop(all);
        assert_eq!(kept.0.load(Ordering::Relaxed), 0);
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in(
            messages in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 3), 0..9),
        ) {
            let (much, little) = (RetainedMemory(Arc::new(AtomicUsize::new(KEPT_MAX + 1))), RetainedMemory::default());
            for kept in [&much, &little] {
                for memory in [0, 100, 10_000, usize::MAX >> 2] {
                    let batch = Messages::to_keep(wire(&messages), memory, kept);
                    let frames: Vec<_> = batch.map(|m| m.unwrap().into_frames().map(Vec::from).to_vec()).collect();
                    prop_assert_eq!(&frames, &messages);
                }
            }
            prop_assert_eq!((much.0.load(Ordering::Relaxed), little.0.load(Ordering::Relaxed)), (KEPT_MAX + 1, 0));
            let batch = Messages::of(wire(&messages));
            let lent: Vec<_> = batch.into_iter().map(|m| m.unwrap().into_frames().map(Vec::from).to_vec()).collect();
            prop_assert_eq!(lent, messages);
        }

        #[test]
        fn bytes_that_are_no_messages_end_the_batch(bytes: Vec<u8>) {
            let batch = Messages::of(bytes.into());
            let lent = batch.iter().filter_map(Result::ok).map(|m| m.to_message().into_frames()).collect::<Vec<_>>();
            let detached = Messages::of(batch.wire.clone()).detached();
            let detached = detached.filter_map(Result::ok).map(Message::into_frames).collect::<Vec<_>>();
            let taken = batch.filter_map(Result::ok).map(Message::into_frames).collect::<Vec<_>>();
            prop_assert_eq!(&lent, &taken);
            prop_assert_eq!(lent, detached);
        }
    }
}
