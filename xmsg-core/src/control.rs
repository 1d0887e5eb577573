//! Control requests and answers, as values (section 2 of the xMsg protocol).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{ActorId, ConnectionId, Topic};
use xmsg_zmq::Multipart;

/// What every control topic starts with, and what proxies subscribe to.
pub const CONTROL_TOPIC: &str = "xmsg:control";
/// What the private topics start with that we ask after to learn that subscriptions are live. Their answers are for whoever asked, and
/// reach nobody else but who subscribes to everything.
pub const CONFIRMATION_TOPIC: &str = "xmsg:sub:";
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
    /// "Do my messages reach you?" Answered on the control socket of this identity: a [`ConnectionId`], or a [secret one](secret_identity).
    Publisher(Bytes),
    /// "Is this subscription live?" Answered by a message to the topic.
    Subscription(Topic),
}

/// An identity for a control socket on which a confirmation is to arrive: a connection ID with 128 random bits behind it, as text.
///
/// Whoever knows the identity of a control socket can ask in its place, and the answer then comes before the proxy has read what it is to
/// confirm. Connection IDs have five digits to guess. This one becomes known to others with the request itself, and the proxy has read by then
/// what is before it: so a new one is used for each confirmation, unless the proxy knows who is who.
#[must_use]
pub fn secret_identity() -> Bytes {
    Bytes::from(format!("{}{}", ConnectionId::random(), uuid::Uuid::new_v4().simple()))
}

impl Request {
    /// Asks for an answer on the control socket of a connection.
    #[must_use]
    pub fn of_connection(id: ConnectionId) -> Self {
        Self::Publisher(Bytes::copy_from_slice(id.as_bytes()))
    }

    /// The request as a message to be published.
    #[must_use]
    pub fn message(&self) -> Multipart {
        let (topic, kind, argument) = match self {
            Self::Publisher(id) => (CONNECTION_CHECK, "pub", id.clone()),
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

/// The topic of a question about rights.
const RIGHTS_QUESTION: &str = "xmsg:control:may";

/// What somebody may want to do with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Publish messages to it.
    Publish,
    /// Subscribe to it, and to all that starts with it.
    Subscribe,
}

impl Right {
    const KINDS: [(&str, Self); 2] = [("may-pub", Self::Publish), ("may-sub", Self::Subscribe)];
}

/// "May I do this?" Proxies of this project answer on the control socket of the identity; others pass over it.
///
/// ```
/// use xmsg_core::control::{Right, RightsQuestion};
/// use xmsg_core::{ConnectionId, Topic};
/// let question = RightsQuestion { id: ConnectionId::random(), right: Right::Publish, topic: "daq:run".parse()? };
/// let message = question.message();
/// assert_eq!(RightsQuestion::read(&message.frames()[1], &message.frames()[2]).unwrap().2, "daq:run");
/// # Ok::<_, xmsg_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RightsQuestion {
    /// The identity of the control socket that waits for the answer, and for no other.
    pub id: ConnectionId,
    /// What we want to do …
    pub right: Right,
    /// … with this topic.
    pub topic: Topic,
}

impl RightsQuestion {
    /// The question as a message to be published.
    #[must_use]
    pub fn message(&self) -> Multipart {
        let kind = Right::KINDS.iter().find(|(_, right)| *right == self.right).map_or("", |(kind, _)| kind);
        let argument = [self.id.as_bytes(), b":", self.topic.as_bytes()].concat();
        Multipart::from([Bytes::from(RIGHTS_QUESTION), Bytes::from(kind), Bytes::from(argument)])
    }

    /// Reads the second and the third frame of such a message: identity, right and topic.
    #[must_use]
    pub fn read(kind: &[u8], argument: &Bytes) -> Option<(Bytes, Right, Bytes)> {
        let (_, right) = Right::KINDS.iter().find(|(name, _)| name.as_bytes() == kind)?;
        let colon = argument.iter().position(|byte| *byte == b':')?;
        Some((argument.slice(..colon), *right, argument.slice(colon + 1..)))
    }

    /// The answer, as it is sent to the control socket.
    #[must_use]
    pub fn answer(is_allowed: bool) -> &'static [u8] {
        if is_allowed { b"may" } else { b"may-not" }
    }

    /// Whether a message that came to the control socket allows it; `None`: it is no answer.
    #[must_use]
    pub fn is_allowed_by(message: &Multipart) -> Option<bool> {
        let [answer] = message.frames() else { return None };
        [true, false].into_iter().find(|is_allowed| answer == Self::answer(*is_allowed))
    }
}

/// Topics whose subscription is yet to be confirmed, and what is asked to learn it.
///
/// The answer to a question is a message to what is asked after, and reaches whoever subscribed to that. So what is asked after is a
/// private topic, subscribed to after those that it stands for, on the same connection: the proxy takes subscriptions in their order.
#[derive(Debug)]
pub(crate) struct Unconfirmed<'a> {
    questions: Vec<Question<'a>>,
    /// The first question that was not asked.
    next: usize,
    /// Those that wait for an answer, by what they ask after.
    asked: BTreeMap<Bytes, usize>,
    /// Bytes of that.
    bytes: usize,
    /// Topics of which no message has come, with their questions; made when that matters.
    unseen: Option<BTreeMap<&'a [u8], usize>>,
    /// What was answered that others may be subscribed to.
    answered: BTreeSet<Bytes>,
    /// Private topics that are not needed any more.
    settled: Vec<Bytes>,
}

/// What is asked after, and for which topics.
#[derive(Debug)]
struct Question<'a> {
    name: Topic,
    is_private: bool,
    topics: &'a [Topic],
    /// How many of those no message has come for.
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

/// A private topic that nobody else subscribes to.
fn private_name() -> String {
    format!("{CONFIRMATION_TOPIC}{}{}", ActorId::random(), ActorId::random())
}

impl<'a> Unconfirmed<'a> {
    /// One question for all topics: for proxies where everybody may subscribe to everything.
    pub(crate) fn together(topics: &'a [Topic]) -> Self {
        Self::new(vec![Question::private(private_name(), topics)])
    }

    /// A question for each topic: for proxies that may refuse some of them. Who may subscribe to the topic may subscribe to what is asked
    /// after, and nobody else.
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
            settled: Vec::new(),
        }
    }

    /// One of them, while there are any.
    pub(crate) fn first(&self) -> Option<&'a Topic> {
        let question = self.asked.values().next().copied().unwrap_or(self.next);
        self.questions.get(question)?.topics.first()
    }

    /// What to ask now: as many more as may be asked after at the same time and, if they are to be repeated, all that wait for an answer.
    /// `subscribe` subscribes to a private topic; if it can't, the topics themselves are asked after.
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
                    self.settle(&topic.clone());
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

    /// Takes it for granted that topics are subscribed to when messages have come for all that a question stands for.
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

    /// Private topics whose answers have come.
    pub(crate) fn take_settled(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.settled)
    }

    fn see(&mut self, topic: &[u8]) {
        let Some(unseen) = &mut self.unseen else { return };
        // What was not asked yet will be, and more messages come.
        if unseen.get(topic).is_none_or(|at| *at >= self.next) {
            return;
        }
        let Some(at) = unseen.remove(topic) else { return };
        let question = &mut self.questions[at];
        question.unseen -= 1;
        if question.unseen == 0 {
            let name = question.name.clone();
            self.settle(name.as_bytes());
        }
    }

    fn is_ours(&self, topic: &[u8]) -> bool {
        topic.starts_with(CONFIRMATION_TOPIC.as_bytes())
            || self.asked.contains_key(topic)
            || self.answered.contains(topic)
    }

    fn settle(&mut self, name: &[u8]) {
        let Some((name, at)) = self.asked.remove_entry(name) else { return };
        self.bytes -= name.len();
        if self.questions[at].is_private {
            self.settled.push(name);
        } else {
            self.answered.insert(name);
        }
    }
}

/// What was found among messages that came while topics were asked after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Confirmed {
    /// An answer that was waited for.
    pub(crate) some: bool,
    /// What is no answer to us.
    pub(crate) rest: Bytes,
}

/// Whether a message of these two frames is the answer to a question that one of our clients asked, and not meant for anybody else.
pub(crate) fn is_private_answer(topic: &[u8], kind: &[u8]) -> bool {
    kind == b"sub"
        && (topic.starts_with(CONFIRMATION_TOPIC.as_bytes())
            // What ends a subscription: see `Subscription::drain`.
            || topic.starts_with(b"ret:") && topic.ends_with(b":drain"))
}

/// The topic for which a private one stands, where it stands for one alone.
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

    /// Of one that has no room for private topics.
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
        assert_eq!((unconfirmed.first(), unconfirmed.take_settled()), (None, vec![private.clone()]));
    }

    #[test]
    fn without_room_for_a_private_topic_the_topics_are_asked_after() {
        let topics = ["a", "b"].map(Topic::wrap);
        for mut unconfirmed in [Unconfirmed::together(&topics), Unconfirmed::each(&topics)] {
            let asked = unconfirmed.ask(false, |_| false);
            assert_eq!(asked.iter().map(name).collect::<Vec<_>>(), [b"a", b"b"]);
            let found = unconfirmed.confirm(&wire(&[&[b"a", b"sub"], &[b"b", b"sub"], &[b"a", b"sub"]]));
            assert_eq!(found, Confirmed { some: true, rest: Bytes::new() });
            assert_eq!((unconfirmed.first(), unconfirmed.take_settled()), (None, vec![]));
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
        // One question for all of them needs a message for each.
        let mut unconfirmed = Unconfirmed::together(&topics);
        assert_eq!(unconfirmed.ask(false, |_| true).len(), 1);
        unconfirmed.concede(message);
        assert!(unconfirmed.first().is_some());
        unconfirmed.concede(wire(&[&[b"a:c", b"meta", b"data"]]));
        assert_eq!(unconfirmed.first(), None);
    }
}
