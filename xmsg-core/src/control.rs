//! Control requests and their answers, as values (section 2 of the xMsg protocol).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{ActorId, ConnectionId, Topic};
use xmsg_zmq::Multipart;

/// The prefix of all control topics, which proxies subscribe to.
pub const CONTROL_TOPIC: &str = "xmsg:control";
/// The prefix of the private topics that clients of this library use to check that subscriptions are active.
/// An answer to such a check reaches only the client that asked, and subscribers to everything.
pub const CONFIRMATION_TOPIC: &str = "xmsg:sub:";
/// The topic of a connection check. It has the form that Java uses; proxies match it by prefix.
const CONNECTION_CHECK: &str = "xmsg:control:con";
/// The topic of a subscription check.
const SUBSCRIPTION_CHECK: &str = "xmsg:control:sub";

/// The largest number of topics that are checked at the same time, so that the proxy has few answers to send
/// to one client.
const ASKED_MAX: usize = 256;
/// The largest number of bytes that the names of these topics have together.
const ASKED_BYTES: usize = 8 << 10;

/// A request that a connection sends to its proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A connection check. The proxy answers on the control socket of this identity: a [`ConnectionId`], or a
    /// [secret one](secret_identity).
    Publisher(Bytes),
    /// A subscription check. The proxy answers with a message to the topic.
    Subscription(Topic),
}

/// Makes an identity for a control socket on which a confirmation is to arrive: a connection ID followed by
/// 128 random bits, as text.
///
/// Somebody who knows the identity of a control socket can send a request in its name. The answer then
/// arrives before the proxy has read the messages that it is to confirm. A connection ID has only five digits
/// to guess. The identity that this function makes becomes known to others only with the request itself, when
/// the proxy has already read everything before it. Therefore each confirmation uses a new one, unless the
/// proxy authenticates its peers.
#[must_use]
pub fn secret_identity() -> Bytes {
    Bytes::from(format!("{}{}", ConnectionId::random(), uuid::Uuid::new_v4().simple()))
}

impl Request {
    /// Makes a connection check, which is answered on the control socket of a connection.
    #[must_use]
    pub fn of_connection(id: ConnectionId) -> Self {
        Self::Publisher(Bytes::copy_from_slice(id.as_bytes()))
    }

    /// Returns the request as a message to be published.
    #[must_use]
    pub fn message(&self) -> Multipart {
        let (topic, kind, argument) = match self {
            Self::Publisher(id) => (CONNECTION_CHECK, "pub", id.clone()),
            Self::Subscription(topic) => (SUBSCRIPTION_CHECK, "sub", topic.clone().into_bytes()),
        };
        Multipart::from([Bytes::from(topic), Bytes::from(kind), argument])
    }

    /// Returns whether a message is the answer to this request.
    #[must_use]
    pub fn is_answered_by(&self, message: &Multipart) -> bool {
        match (self, message.frames()) {
            (Self::Publisher(_), [kind]) => kind == "pub",
            (Self::Subscription(asked), [topic, kind]) => kind == "sub" && topic == asked.as_bytes(),
            _ => false,
        }
    }
}

/// The topic of a question about rights.
const RIGHTS_QUESTION: &str = "xmsg:control:may";

/// An operation on a topic that rights allow or forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Publishing messages to the topic.
    Publish,
    /// Subscribing to the topic, and to all topics that start with it.
    Subscribe,
}

impl Right {
    const KINDS: [(&str, Self); 2] = [("may-pub", Self::Publish), ("may-sub", Self::Subscribe)];
}

/// A question to the proxy whether our rights allow an operation. `xmsg-proxy` answers on the control socket
/// of the identity; other proxies ignore it.
///
/// ```
/// use xmsg_core::control::{Right, RightsRequest};
/// use xmsg_core::{ConnectionId, Topic};
/// let id = ConnectionId::random();
/// let question = RightsRequest { id, right: Right::Publish, topic: "daq:run".parse()? };
/// let message = question.message();
/// assert_eq!(RightsRequest::read(&message.frames()[1], &message.frames()[2]).unwrap().2, "daq:run");
/// # Ok::<_, xmsg_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RightsRequest {
    /// The identity of the control socket that waits for this answer, and for no other.
    pub id: ConnectionId,
    /// The operation.
    pub right: Right,
    /// The topic of the operation.
    pub topic: Topic,
}

impl RightsRequest {
    /// Returns the question as a message to be published.
    #[must_use]
    pub fn message(&self) -> Multipart {
        let kind = Right::KINDS.iter().find(|(_, right)| *right == self.right).map_or("", |(kind, _)| kind);
        let argument = [self.id.as_bytes(), b":", self.topic.as_bytes()].concat();
        Multipart::from([Bytes::from(RIGHTS_QUESTION), Bytes::from(kind), Bytes::from(argument)])
    }

    /// Decodes the second and the third frame of such a message: identity, operation and topic.
    #[must_use]
    pub fn read(kind: &[u8], argument: &Bytes) -> Option<(Bytes, Right, Bytes)> {
        let (_, right) = Right::KINDS.iter().find(|(name, _)| name.as_bytes() == kind)?;
        let colon = argument.iter().position(|byte| *byte == b':')?;
        Some((argument.slice(..colon), *right, argument.slice(colon + 1..)))
    }

    /// Returns the frame of the answer, as it is sent to the control socket.
    #[must_use]
    pub fn answer(is_allowed: bool) -> &'static [u8] {
        if is_allowed { b"may" } else { b"may-not" }
    }

    /// Returns whether a message to the control socket allows the operation; `None` if it is not such an
    /// answer.
    #[must_use]
    pub fn is_allowed_by(message: &Multipart) -> Option<bool> {
        let [answer] = message.frames() else { return None };
        [true, false].into_iter().find(|is_allowed| answer == Self::answer(*is_allowed))
    }
}

/// The topics of a subscription that are not yet confirmed, and the requests that confirm them.
///
/// The answer to a subscription check is a message to the topic of the check, and reaches all subscribers of
/// that topic. Therefore a private topic is checked, which stands for one or more topics of the subscription.
/// It is subscribed to after them on the same connection, and the proxy handles subscriptions in their order.
#[derive(Debug)]
pub(crate) struct Unconfirmed<'a> {
    questions: Vec<Question<'a>>,
    /// The index of the first question that was not asked.
    next: usize,
    /// The questions that wait for an answer, by the topic that they check.
    asked: BTreeMap<Bytes, usize>,
    /// The length of the names of these topics together.
    bytes: usize,
    /// The topics for which no message has arrived, each with the index of its question; made when it is
    /// first needed.
    unseen: Option<BTreeMap<&'a [u8], usize>>,
    /// Topics that were answered and that others may also subscribe to.
    answered: BTreeSet<Bytes>,
    /// Private topics that are no longer needed.
    finished: Vec<Bytes>,
}

/// A subscription check, and the topics that it stands for.
#[derive(Debug)]
struct Question<'a> {
    name: Topic,
    is_private: bool,
    topics: &'a [Topic],
    /// The number of those topics for which no message has arrived.
    unseen: usize,
}

impl<'a> Question<'a> {
    fn plain(topic: &'a Topic) -> Self {
        Self { name: topic.clone(), is_private: false, topics: std::slice::from_ref(topic), unseen: 0 }
    }

    fn private(name: String, topics: &'a [Topic]) -> Self {
        Self { name: Topic::wrap(name), is_private: true, topics, unseen: 0 }
    }
}

/// Makes the name of a private topic that nobody else subscribes to.
fn private_name() -> String {
    format!("{CONFIRMATION_TOPIC}{}{}", ActorId::random(), ActorId::random())
}

impl<'a> Unconfirmed<'a> {
    /// Makes one question for all topics: for proxies where everybody may subscribe to everything.
    pub(crate) fn together(topics: &'a [Topic]) -> Self {
        Self::new(vec![Question::private(private_name(), topics)])
    }

    /// Makes a question for each topic: for proxies that may refuse some of them. Whoever may subscribe to
    /// the topic may also subscribe to the private topic that is checked, and nobody else may.
    pub(crate) fn each(topics: &'a [Topic]) -> Self {
        let name = private_name();
        let private = |topic: &'a Topic| {
            let bytes = [name.as_bytes(), b":", topic.as_bytes()].concat();
            Question {
                name: Topic::wrap(bytes),
                ..Question::private(String::new(), std::slice::from_ref(topic))
            }
        };
        Self::new(topics.iter().map(private).collect())
    }

    fn new(questions: Vec<Question<'a>>) -> Self {
        Self {
            questions,
            next: 0,
            asked: BTreeMap::new(),
            bytes: 0,
            unseen: None,
            answered: BTreeSet::new(),
            finished: Vec::new(),
        }
    }

    /// Returns one of the unconfirmed topics, if there are any.
    pub(crate) fn first(&self) -> Option<&'a Topic> {
        let question = self.asked.values().next().copied().unwrap_or(self.next);
        self.questions.get(question)?.topics.first()
    }

    /// Returns the requests to send now: as many new ones as the limits allow and, if `repeat` is set, all
    /// that wait for an answer. `subscribe` subscribes to a private topic; if it fails, the topics themselves
    /// are checked instead.
    pub(crate) fn ask(&mut self, repeat: bool, subscribe: impl Fn(Bytes) -> bool) -> Vec<Request> {
        let waiting = if repeat { self.asked.values().copied().collect() } else { Vec::new() };
        let mut now: Vec<usize> = waiting;
        while self.asked.len() < ASKED_MAX
            && let Some(question) = self.questions.get(self.next)
        {
            let name = question.name.clone().into_bytes();
            if !self.asked.is_empty() && self.bytes + name.len() > ASKED_BYTES {
                break;
            }
            if !self.asked.contains_key(&name) {
                if question.is_private && !subscribe(name.clone()) {
                    let plain = question.topics.iter().map(Question::plain);
                    self.questions.splice(self.next..=self.next, plain);
                    continue;
                }
                self.bytes += name.len();
                self.asked.insert(name, self.next);
                now.push(self.next);
            }
            self.next += 1;
        }
        now.into_iter().map(|at| Request::Subscription(self.questions[at].name.clone())).collect()
    }

    /// Looks for answers among these messages.
    pub(crate) fn confirm(&mut self, messages: &Bytes) -> Confirmed {
        let before = self.asked.len();
        let (mut left, mut rest) = (messages.clone(), Vec::new());
        let mut has_answers = false;
        loop {
            let start = messages.len() - left.len();
            let Some(message) = Multipart::take(&mut left) else { break };
            match message.frames() {
                [topic, kind] if kind == "sub" && self.is_ours(topic) => {
                    has_answers = true;
                    self.finish(&topic.clone());
                }
                _ => rest.push(start..messages.len() - left.len()),
            }
        }
        let rest = if has_answers {
            rest.into_iter().flat_map(|range| messages[range].iter().copied()).collect()
        } else {
            messages.clone()
        };
        Confirmed { some: self.asked.len() < before, rest }
    }

    /// Treats a question as answered when messages have arrived for all topics that it stands for: they prove
    /// that the topics are subscribed to.
    pub(crate) fn concede(&mut self, mut messages: Bytes) {
        if self.unseen.is_none() {
            let mut unseen = BTreeMap::new();
            for (at, question) in self.questions.iter_mut().enumerate() {
                for topic in question.topics {
                    question.unseen += usize::from(unseen.insert(topic.as_bytes(), at).is_none());
                }
            }
            self.unseen = Some(unseen);
        }
        while let Some(message) = Multipart::take(&mut messages) {
            let [topic, ..] = message.frames() else { continue };
            for len in 0..=topic.len() {
                self.see(&topic[..len]);
            }
        }
    }

    /// Returns the private topics whose answers have arrived, and forgets them.
    pub(crate) fn take_finished(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.finished)
    }

    fn see(&mut self, topic: &[u8]) {
        let Some(unseen) = &mut self.unseen else { return };
        // A topic that was not checked yet will be checked, and more messages will arrive.
        if unseen.get(topic).is_none_or(|at| *at >= self.next) {
            return;
        }
        let Some(at) = unseen.remove(topic) else { return };
        let question = &mut self.questions[at];
        question.unseen -= 1;
        if question.unseen == 0 {
            let name = question.name.clone();
            self.finish(name.as_bytes());
        }
    }

    fn is_ours(&self, topic: &[u8]) -> bool {
        topic.starts_with(CONFIRMATION_TOPIC.as_bytes())
            || self.asked.contains_key(topic)
            || self.answered.contains(topic)
    }

    fn finish(&mut self, name: &[u8]) {
        let Some((name, at)) = self.asked.remove_entry(name) else { return };
        self.bytes -= name.len();
        if self.questions[at].is_private {
            self.finished.push(name);
        } else {
            self.answered.insert(name);
        }
    }
}

/// The result of looking for answers among received messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Confirmed {
    /// Whether an awaited answer was among them.
    pub(crate) some: bool,
    /// The messages that are not answers to our checks.
    pub(crate) rest: Bytes,
}

/// Returns whether a message of these two frames is the answer to a check of a client of this library, and
/// not meant for anybody else.
pub(crate) fn is_private_answer(topic: &[u8], kind: &[u8]) -> bool {
    kind == b"sub"
        && (topic.starts_with(CONFIRMATION_TOPIC.as_bytes())
            // The marker that ends a subscription: see `Subscription::drain`.
            || topic.starts_with(b"ret:") && topic.ends_with(b":drain"))
}

/// Returns the topic that a private topic stands for, if it stands for only one.
#[must_use]
pub fn asked_after(private: &[u8]) -> Option<&[u8]> {
    let rest = private.strip_prefix(CONFIRMATION_TOPIC.as_bytes())?;
    let colon = rest.iter().position(|byte| *byte == b':')?;
    Some(&rest[colon + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_frames_of_the_contract() {
        let id: ConnectionId = "412300042".parse().unwrap();
        let request = Request::of_connection(id);
        assert_eq!(request.message(), Multipart::from(["xmsg:control:con", "pub", "412300042"]));
        assert!(request.is_answered_by(&Multipart::from(["pub"])));
        assert!(!request.is_answered_by(&Multipart::from(["412300042", "pub"])));

        let request = Request::Subscription(Topic::wrap("a:b"));
        assert_eq!(request.message(), Multipart::from(["xmsg:control:sub", "sub", "a:b"]));
        assert!(request.is_answered_by(&Multipart::from(["a:b", "sub"])));
        assert!(!request.is_answered_by(&Multipart::from(["a:bc", "sub"])));
    }

    /// Makes the questions of a client that has no room for private topics.
    fn plain(topics: &[Topic]) -> Unconfirmed<'_> {
        Unconfirmed::new(topics.iter().map(Question::plain).collect())
    }

    fn never(_: Bytes) -> bool {
        panic!("there is nothing private")
    }

    fn wire(messages: &[&[&[u8]]]) -> Bytes {
        let mut out = bytes::BytesMut::new();
        for frames in messages {
            xmsg_zmtp::encode_message(&mut out, frames);
        }
        out.freeze()
    }

    fn name(request: &Request) -> &[u8] {
        let Request::Subscription(topic) = request else { panic!("{request:?}") };
        topic.as_bytes()
    }

    #[test]
    fn topics_are_asked_after_some_at_a_time_until_all_are_confirmed() {
        let topics: Vec<_> = (0..1000).map(|number| Topic::wrap(format!("t:{number}"))).collect();
        for mut unconfirmed in [plain(&topics), Unconfirmed::each(&topics)] {
            let (mut confirmed, mut rounds) = (0, 0);
            while unconfirmed.first().is_some() {
                let asked = unconfirmed.ask(false, |_| true);
                assert!(!asked.is_empty() && asked.len() <= ASKED_MAX);
                assert!(unconfirmed.ask(false, |_| true).is_empty(), "the others have to wait");
                let again = unconfirmed.ask(true, |_| true);
                assert_eq!(again.len(), asked.len(), "those that wait are asked after again");
                let mut answers = bytes::BytesMut::new();
                for request in &asked {
                    xmsg_zmtp::encode_message(&mut answers, &[name(request), b"sub"]);
                    xmsg_zmtp::encode_message(&mut answers, &[b"t:1", &b"sub"[..], b"data"]);
                    confirmed += 1;
                }
                let answers = answers.freeze();
                let found = unconfirmed.confirm(&answers);
                assert!(found.some);
                assert_eq!(found.rest, wire(&[&[b"t:1", b"sub", b"data"]]).repeat(asked.len()));
                assert!(!unconfirmed.confirm(&answers).some, "twice is no news");
                rounds += 1;
            }
            assert_eq!(confirmed, 1000);
            assert!(rounds >= 4, "{rounds}");
        }
    }

    #[test]
    fn one_private_topic_stands_for_all() {
        let topics = ["a", "b"].map(Topic::wrap);
        let mut unconfirmed = Unconfirmed::together(&topics);
        let subscribed = std::cell::RefCell::new(Vec::new());
        let asked = unconfirmed.ask(true, |name| {
            subscribed.borrow_mut().push(name);
            true
        });
        let [private] = &subscribed.take()[..] else { panic!("one") };
        assert_eq!(asked.iter().map(name).collect::<Vec<_>>(), [&private[..]]);
        assert!(private.starts_with(b"xmsg:sub:") && asked_after(private).is_none());
        let others = [&[&b"a"[..], b"sub"][..], &[b"b", b"data"], &[b"a", b"m", b"d"]];
        let found = unconfirmed.confirm(&wire(&others));
        assert_eq!(found, Confirmed { some: false, rest: wire(&others) }, "what others ask is not for us");
        assert_eq!(unconfirmed.first(), Some(&topics[0]));
        let found = unconfirmed.confirm(&wire(&[&[private, b"sub"], others[1]]));
        assert_eq!(found, Confirmed { some: true, rest: wire(&others[1..2]) });
        assert_eq!((unconfirmed.first(), unconfirmed.take_finished()), (None, vec![private.clone()]));
    }

    #[test]
    fn without_room_for_a_private_topic_the_topics_are_asked_after() {
        let topics = ["a", "b"].map(Topic::wrap);
        for mut unconfirmed in [Unconfirmed::together(&topics), Unconfirmed::each(&topics)] {
            let asked = unconfirmed.ask(false, |_| false);
            assert_eq!(asked.iter().map(name).collect::<Vec<_>>(), [b"a", b"b"]);
            let found = unconfirmed.confirm(&wire(&[&[b"a", b"sub"], &[b"b", b"sub"], &[b"a", b"sub"]]));
            assert_eq!(found, Confirmed { some: true, rest: Bytes::new() });
            assert_eq!((unconfirmed.first(), unconfirmed.take_finished()), (None, vec![]));
        }
    }

    #[test]
    fn what_stands_for_one_topic_says_for_which() {
        let topics = ["a:b"].map(Topic::wrap);
        let mut unconfirmed = Unconfirmed::each(&topics);
        let asked = unconfirmed.ask(false, |_| true);
        assert_eq!(asked_after(name(&asked[0])), Some(&b"a:b"[..]));
        assert_eq!((asked_after(b"xmsg:sub:12"), asked_after(b"a:b")), (None, None));
        assert!(is_private_answer(name(&asked[0]), b"sub") && !is_private_answer(name(&asked[0]), b"data"));
        assert!(is_private_answer(b"ret:12:drain", b"sub") && !is_private_answer(b"a", b"sub"));
    }

    #[test]
    fn long_topics_are_asked_after_one_by_one_and_equal_ones_once() {
        let long = ["a", "b"].map(|letter| Topic::wrap(letter.repeat(ASKED_BYTES + 1)));
        let mut unconfirmed = plain(&long);
        assert_eq!(unconfirmed.ask(false, never), [Request::Subscription(long[0].clone())]);
        let equal = [Topic::wrap("a"), Topic::wrap("a")];
        let mut unconfirmed = plain(&equal);
        assert_eq!(unconfirmed.ask(false, never).len(), 1);
        assert_eq!(unconfirmed.first(), Some(&equal[0]));
    }

    #[test]
    fn a_message_concedes_the_topics_that_it_starts_with() {
        let topics = ["a", "a:b", "a:c", ""].map(Topic::wrap);
        let message = wire(&[&[b"a:b:x", b"meta", b"data"]]);
        let mut unconfirmed = plain(&topics);
        assert_eq!(unconfirmed.ask(false, never).len(), 4);
        unconfirmed.concede(message.clone());
        assert_eq!(unconfirmed.ask(true, never), [Request::Subscription(topics[2].clone())]);
        // One question for all topics is answered only when a message has arrived for each of them.
        let mut unconfirmed = Unconfirmed::together(&topics);
        assert_eq!(unconfirmed.ask(false, |_| true).len(), 1);
        unconfirmed.concede(message);
        assert!(unconfirmed.first().is_some());
        unconfirmed.concede(wire(&[&[b"a:c", b"meta", b"data"]]));
        assert_eq!(unconfirmed.first(), None);
    }
}
