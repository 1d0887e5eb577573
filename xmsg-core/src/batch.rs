//! Messages that came in together, taken apart as they are asked for.

use std::iter::FusedIterator;
use std::ops::Range;

use bytes::Bytes;

use crate::zmtp::walk_message;
use crate::{Error, ErrorKind, Message, Meta, Result, Topic, meta};

/// Messages that came in with one read, or what is left of them: an iterator, in their order.
///
/// As an iterator it gives [`Message`]s, which share the memory that they came in. By reference it lends them out as
/// [`MessageRef`]s, which is cheaper still where a message is looked at and not kept: no reference is counted.
///
/// A message that has not the three frames of xMsg is an error in its place; answers to control requests (two frames) are passed
/// over.
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
}

impl Messages {
    /// The messages in these bytes, as they are on the wire. Bytes behind the last whole message are not looked at.
    #[must_use]
    pub fn of(wire: Bytes) -> Self {
        Self { wire, at: 0 }
    }

    /// Lends out what is left, and takes nothing.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { wire: &self.wire, at: self.at }
    }

    /// The bytes that they lie in, and where the first that is left starts.
    pub(crate) fn place(&self) -> (&Bytes, usize) {
        (&self.wire, self.at)
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
        let found = Found::next(&self.wire, &mut self.at);
        let message = found.map(|found| {
            let frame = |range| self.wire.slice(range);
            match found {
                Found::Message([topic, meta, data]) => {
                    Ok(Message::from_frames(frame(topic), frame(meta), frame(data)))
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
        Some(match Found::next(wire, &mut self.at)? {
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

    /// The message, to be kept. It shares the memory of the batch.
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
    /// Goes from `at`, where a message starts, to where the next one does; passes over answers. `None` at the end.
    fn next(wire: &[u8], at: &mut usize) -> Option<Self> {
        loop {
            let mut ranges = [0..0, 0..0, 0..0];
            let mut frames = 0;
            let end = walk_message(wire, *at, |frame| {
                if let Some(range) = ranges.get_mut(frames) {
                    *range = frame;
                }
                frames += 1;
            });
            *at = end.unwrap_or(wire.len());
            end?;
            match frames {
                2 => {}
                3 => return Some(Self::Message(ranges)),
                _ => {
                    let [topic, ..] = ranges;
                    return Some(Self::Other { topic, frames });
                }
            }
        }
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
    use crate::zmtp::encode_message;

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

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in(
            messages in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 3), 0..9),
        ) {
            let batch = Messages::of(wire(&messages));
            let lent: Vec<_> = batch.into_iter().map(|m| m.unwrap().into_frames().map(Vec::from).to_vec()).collect();
            prop_assert_eq!(lent, messages);
        }

        #[test]
        fn bytes_that_are_no_messages_end_the_batch(bytes: Vec<u8>) {
            let batch = Messages::of(bytes.into());
            let lent = batch.iter().filter_map(Result::ok).map(|m| m.to_message().into_frames()).collect::<Vec<_>>();
            let taken = batch.filter_map(Result::ok).map(Message::into_frames).collect::<Vec<_>>();
            prop_assert_eq!(lent, taken);
        }
    }
}
