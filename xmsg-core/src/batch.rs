//! Messages that came in together, taken apart as they are asked for.

use std::iter::FusedIterator;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::control::is_private_answer;
use crate::{Error, ErrorKind, Message, Meta, Result, Topic, meta};
use xmsg_zmtp::walk_message;

/// What the batches of one subscription may hold that were taken apart by `next`, bytes, before small messages of further ones
/// are copied: enough for whoever works on many at a time, and never copied for whoever drops them soon.
const KEPT_MAX: usize = 2 << 20;
/// A message is small beside the memory that it came in if that is more than so many times as large.
const SMALL: usize = 16;
/// Memory that any message may hold, bytes.
const LITTLE: usize = 1 << 10;

/// Messages that came in with one read, or what is left of them: an iterator, in their order.
///
/// As an iterator it gives [`Message`]s, which share the memory that they came in: one that is kept holds all of it, up to
/// 128 KiB, or 2 MiB where messages are long. [`detached`](Self::detached) gives messages that can be kept. By reference it
/// lends them out as [`MessageRef`]s, which is cheaper still where a message is looked at and not kept: no reference is
/// counted.
///
/// A message that has not the three frames of xMsg is an error in its place; messages of two frames, as answers to control requests are,
/// are passed over, unless they are [wanted](Self::with_two_frames).
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
    /// Where the next message starts.
    at: usize,
    /// Messages that are shorter get memory of their own.
    detach_below: usize,
    /// Messages of two frames are messages, too.
    two_frames: bool,
}

impl Messages {
    /// The messages in these bytes, as they are on the wire. Bytes behind the last whole message are not looked at.
    #[must_use]
    pub fn of(wire: Bytes) -> Self {
        Self { wire, ..Self::default() }
    }

    /// The same, with messages of two frames, topic and data, as plain ZeroMQ publishers send them: they have empty metadata. Answers that
    /// one of our clients has asked for are passed over all the same.
    #[must_use]
    pub fn with_two_frames(self) -> Self {
        Self { two_frames: true, ..self }
    }

    /// The same as messages that can be kept: they hold no more than [`SMALL`] times their size or [`LITTLE`] each, whatever is more,
    /// but for [`KEPT_MAX`] in all. `memory` is what a slice of `wire` keeps alive, in bytes.
    pub(crate) fn to_keep(wire: Bytes, memory: usize, kept: &Kept) -> Self {
        if memory <= LITTLE {
            return Self::of(wire);
        }
        let detach_below = if kept.is_much() { memory / SMALL } else { 0 };
        Self { wire: kept.count(wire, memory), detach_below, ..Self::default() }
    }

    /// What is left, as messages that own their memory. Each of them is copied: one that is only looked at is better borrowed.
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

    /// Lends out what is left, and takes nothing.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { wire: &self.wire, at: self.at, two_frames: self.two_frames }
    }

    /// The bytes that they lie in, and where the first that is left starts.
    pub(crate) fn place(&self) -> (&Bytes, usize) {
        (&self.wire, self.at)
    }

    /// Lends out the messages in these bytes from this place on, where one starts.
    pub(crate) fn iter_at(wire: &Bytes, at: usize) -> Iter<'_> {
        Iter { wire, at, two_frames: false }
    }

    /// Whether all of them were taken.
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
            // Memory is used again when nobody holds a part of it any more.
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

/// Lends out the messages of a batch.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    wire: &'a Bytes,
    at: usize,
    two_frames: bool,
}

impl Iter<'_> {
    /// Where the next message starts.
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

/// A message of a batch, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct MessageRef<'a> {
    wire: &'a Bytes,
    topic: &'a [u8],
    meta: &'a [u8],
    data: &'a [u8],
}

impl<'a> MessageRef<'a> {
    /// What the message is about, as it is on the wire.
    #[must_use]
    pub fn topic(&self) -> &'a [u8] {
        self.topic
    }

    /// The data, as it is on the wire.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The metadata, decoded at each call.
    pub fn meta(&self) -> Result<Meta> {
        Meta::decode(&self.wire.slice_ref(self.meta))
    }

    /// The value of a header, without decoding the rest of the metadata.
    pub fn header(&self, key: &str) -> Result<Option<&'a str>> {
        meta::header(self.meta, key)
    }

    /// The mime type of the data, without decoding the rest of the metadata.
    pub fn mime_type(&self) -> Result<&'a str> {
        meta::data_type(self.meta)
    }

    /// The length of the three frames together, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.topic.len() + self.meta.len() + self.data.len()
    }

    /// The message. It shares the memory of the batch: [`Message::detach`] gives it its own.
    #[must_use]
    pub fn to_message(&self) -> Message {
        let [topic, meta, data] = [self.topic, self.meta, self.data].map(|frame| self.wire.slice_ref(frame));
        Message::from_frames(topic, meta, data)
    }
}

/// What stands next in a batch.
enum Found {
    /// Where the frames of a message lie.
    Message([Range<usize>; 3]),
    /// Something that is neither a message of xMsg nor an answer.
    Other { topic: Range<usize>, frames: usize },
}

impl Found {
    /// Goes from `at`, where a message starts, to where the next one does; passes over answers, and with them over what else has two frames,
    /// unless that is wanted. `None` at the end.
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
            // It looks at the message once more, so that what was found of it need not be kept in memory for the case.
            if let Some(found) = Self::of_other_frames(wire, start, two_frames) {
                return Some(found);
            }
        }
    }

    /// The first three frames of the message at `start`, how many there are, and where it ends.
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

    /// A message that has not three frames; `None`: it is passed over.
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

/// Counts the memory that messages hold which were given out one by one, of one subscription.
///
/// As long as it is little, which it is for whoever drops a message before long, they share the memory that they came in. If it
/// grows, messages are being kept, and further ones that are small beside that memory are copied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept(Arc<AtomicUsize>);

impl Kept {
    fn is_much(&self) -> bool {
        self.0.load(Ordering::Relaxed) > KEPT_MAX
    }

    /// The same bytes, whose memory counts until the last slice of them is dropped.
    fn count(&self, wire: Bytes, memory: usize) -> Bytes {
        self.0.fetch_add(memory, Ordering::Relaxed);
        Bytes::from_owner(Counted { wire, memory, kept: self.clone() })
    }
}

/// A batch, and what it counts for.
struct Counted {
    wire: Bytes,
    memory: usize,
    kept: Kept,
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
        let kept = Kept::default();
        let batch = || {
            Messages::to_keep(
                texts(&[&["a", "meta", "small"], &["b", "meta", &"x".repeat(9000)]]),
                MEMORY,
                &kept,
            )
        };
        // A message keeps its batch only if it lies in its memory.
        let copies = |messages: &[Message]| messages.len() * MEMORY - kept.0.load(Ordering::Relaxed);
        let mut all = Vec::new();
        for _ in 0..100 {
            all.push(batch().next().unwrap().unwrap());
        }
        assert_eq!(copies(&all), (100 - KEPT_MAX / MEMORY - 1) * MEMORY);
        // What is not small beside its memory shares it all the same.
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
            let (much, little) = (Kept(Arc::new(AtomicUsize::new(KEPT_MAX + 1))), Kept::default());
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
