//! Control requests and answers, as values (section 2 of the xMsg protocol).

use std::collections::BTreeMap;
use std::iter::Peekable;

use bytes::Bytes;

use crate::socket::Multipart;
use crate::{ConnectionId, Topic};

/// What every control topic starts with, and what proxies subscribe to.
pub const CONTROL_TOPIC: &str = "xmsg:control";
/// The topic of a connection check. Java's form: proxies match by prefix.
const CONNECTION_CHECK: &str = "xmsg:control:con";
/// The topic of a subscription check.
const SUBSCRIPTION_CHECK: &str = "xmsg:control:sub";

/// Topics that are asked after at the same time, at most: a proxy owes nobody many answers.
const ASKED_MAX: usize = 256;
/// … and their bytes.
const ASKED_BYTES: usize = 8 << 10;

/// What a connection asks of its proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// "Do my messages reach you?" Answered on the control socket of this identity.
    Publisher(ConnectionId),
    /// "Is this subscription live?" Answered by a message to the topic.
    Subscription(Topic),
}

impl Request {
    /// The request as a message to be published.
    #[must_use]
    pub fn message(&self) -> Multipart {
        let (topic, kind, argument) = match self {
            Self::Publisher(id) => (CONNECTION_CHECK, "pub", Bytes::copy_from_slice(id.as_bytes())),
            Self::Subscription(topic) => (SUBSCRIPTION_CHECK, "sub", topic.clone().into_bytes()),
        };
        Multipart::from([Bytes::from(topic), Bytes::from(kind), argument])
    }

    /// Whether this is the answer to the request.
    #[must_use]
    pub fn is_answered_by(&self, message: &Multipart) -> bool {
        match (self, message.frames()) {
            (Self::Publisher(_), [kind]) => kind == "pub",
            (Self::Subscription(asked), [topic, kind]) => kind == "sub" && topic == asked.as_bytes(),
            _ => false,
        }
    }
}

/// Topics whose subscription is yet to be confirmed.
#[derive(Debug)]
pub(crate) struct Unconfirmed<'a> {
    rest: Peekable<std::slice::Iter<'a, Topic>>,
    asked: BTreeMap<&'a [u8], &'a Topic>,
    /// Bytes of those.
    bytes: usize,
}

impl<'a> Unconfirmed<'a> {
    pub(crate) fn new(topics: &'a [Topic]) -> Self {
        Self { rest: topics.iter().peekable(), asked: BTreeMap::new(), bytes: 0 }
    }

    /// One of them, while there are any.
    pub(crate) fn first(&mut self) -> Option<&'a Topic> {
        self.asked.values().next().or_else(|| self.rest.peek()).copied()
    }

    /// What to ask now: as many more as may be asked after at the same time and, if they are to be repeated, all that wait for an answer.
    pub(crate) fn ask(&mut self, repeat: bool) -> Vec<Request> {
        let mut now: Vec<&Topic> = if repeat { self.asked.values().copied().collect() } else { Vec::new() };
        while self.asked.len() < ASKED_MAX
            && let Some(topic) = self
                .rest
                .next_if(|topic| self.asked.is_empty() || self.bytes + topic.as_bytes().len() <= ASKED_BYTES)
        {
            if self.asked.insert(topic.as_bytes(), topic).is_none() {
                self.bytes += topic.as_bytes().len();
                now.push(topic);
            }
        }
        now.into_iter().cloned().map(Request::Subscription).collect()
    }

    /// Looks for answers among these messages.
    pub(crate) fn confirm(&mut self, mut messages: Bytes) -> Confirmed {
        let before = self.asked.len();
        let mut only_answers = true;
        while let Some(message) = Multipart::take(&mut messages) {
            match message.frames() {
                [topic, kind] if kind == "sub" => self.settle(topic),
                _ => only_answers = false,
            }
        }
        Confirmed { some: self.asked.len() < before, only_answers }
    }

    /// Takes it for granted that a topic is subscribed to when a message has come for it.
    pub(crate) fn concede(&mut self, mut messages: Bytes) {
        while let Some(message) = Multipart::take(&mut messages) {
            let [topic, ..] = message.frames() else { continue };
            for len in 0..=topic.len() {
                self.settle(&topic[..len]);
            }
        }
    }

    fn settle(&mut self, topic: &[u8]) {
        if self.asked.remove(topic).is_some() {
            self.bytes -= topic.len();
        }
    }
}

/// What was found among messages that came while topics were asked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Confirmed {
    /// An answer that was waited for.
    pub(crate) some: bool,
    /// Nothing but answers, of whomever: none of it is for the subscriber.
    pub(crate) only_answers: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_frames_of_the_contract() {
        let id: ConnectionId = "412300042".parse().unwrap();
        let request = Request::Publisher(id);
        assert_eq!(request.message(), Multipart::from(["xmsg:control:con", "pub", "412300042"]));
        assert!(request.is_answered_by(&Multipart::from(["pub"])));
        assert!(!request.is_answered_by(&Multipart::from(["412300042", "pub"])));

        let request = Request::Subscription(Topic::wrap("a:b"));
        assert_eq!(request.message(), Multipart::from(["xmsg:control:sub", "sub", "a:b"]));
        assert!(request.is_answered_by(&Multipart::from(["a:b", "sub"])));
        assert!(!request.is_answered_by(&Multipart::from(["a:bc", "sub"])));
    }
    #[test]
    fn topics_are_asked_after_some_at_a_time_until_all_are_confirmed() {
        let topics: Vec<_> = (0..1000).map(|number| Topic::wrap(format!("t:{number}"))).collect();
        let mut unconfirmed = Unconfirmed::new(&topics);
        let (mut confirmed, mut rounds) = (0, 0);
        while unconfirmed.first().is_some() {
            let asked = unconfirmed.ask(false);
            assert!(asked.len() <= ASKED_MAX);
            assert!(unconfirmed.ask(false).is_empty(), "the others have to wait");
            assert_eq!(unconfirmed.ask(true).len(), asked.len(), "those that wait are asked after again");
            let mut answers = bytes::BytesMut::new();
            for request in &asked {
                let Request::Subscription(topic) = request else { panic!("{request:?}") };
                crate::zmtp::encode_message(&mut answers, &[topic.as_bytes(), b"sub"]);
                crate::zmtp::encode_message(&mut answers, &[topic.as_bytes(), b"sub", b"data"]);
                confirmed += 1;
            }
            let answers = answers.freeze();
            assert_eq!(unconfirmed.confirm(answers.clone()), Confirmed { some: true, only_answers: false });
            assert!(!unconfirmed.confirm(answers).some, "twice is no news");
            rounds += 1;
        }
        assert_eq!((confirmed, rounds), (1000, 4));
    }

    #[test]
    fn long_topics_are_asked_after_one_by_one_and_equal_ones_once() {
        let long = ["a", "b"].map(|letter| Topic::wrap(letter.repeat(ASKED_BYTES + 1)));
        let mut unconfirmed = Unconfirmed::new(&long);
        assert_eq!(unconfirmed.ask(false), [Request::Subscription(long[0].clone())]);
        let mut messages = bytes::BytesMut::new();
        crate::zmtp::encode_message(&mut messages, &["b", "sub"]);
        let messages = messages.freeze();
        assert_eq!(unconfirmed.confirm(messages), Confirmed { some: false, only_answers: true });
        let equal = [Topic::wrap("a"), Topic::wrap("a")];
        let mut unconfirmed = Unconfirmed::new(&equal);
        assert_eq!(unconfirmed.ask(false).len(), 1);
        assert_eq!(unconfirmed.first(), Some(&equal[0]));
    }

    #[test]
    fn a_message_concedes_the_topics_that_it_starts_with() {
        let topics = ["a", "a:b", "a:c", ""].map(Topic::wrap);
        let mut unconfirmed = Unconfirmed::new(&topics);
        assert_eq!(unconfirmed.ask(false).len(), 4);
        let mut messages = bytes::BytesMut::new();
        crate::zmtp::encode_message(&mut messages, &["a:b:x", "meta", "data"]);
        unconfirmed.concede(messages.freeze());
        assert_eq!(unconfirmed.ask(true), [Request::Subscription(topics[2].clone())]);
    }
}
