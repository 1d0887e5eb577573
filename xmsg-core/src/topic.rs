//! Topics: what a message is about, and the prefixes that subscribers choose.

// Longer than 500 lines: one type with its conversions, most of it documentation with examples.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::{FromStr, Utf8Error};

use bytes::Bytes;

use crate::{Error, ErrorKind, Result};

/// The wildcard for a part of a topic.
pub const ANY: &str = "*";

const SEPARATOR: char = ':';

/// A topic: `domain[:subject[:type…]]`, as bytes. Cloning is cheap, because clones share the bytes.
///
/// A subscription receives every message whose topic starts with its own, byte by byte: `A:B` receives `A:B`,
/// `A:B:L` and also `A:BC`.
///
/// Constructors that take parts check them; [`wrap`](Self::wrap) takes bytes unchecked, as they are on the
/// wire. The rules are those of the Java library, except that it accepts a `:` in domain and subject:
///
/// * the domain cannot be empty or `*`, and neither domain nor subject may contain `:`;
/// * a subject `*` ends the topic after the domain, whatever the types are;
/// * types may have several parts, separated by `:`. A part `*` ends the topic there. Empty parts are left
///   out.
///
/// Text that is parsed, or given to a call that takes a topic ([`IntoTopic`]), is used byte by byte,
/// including a `:` at its end; only a part `*` ends the topic there, too. Its domain cannot be empty or `*`
/// either: a subscription to everything has to be explicit, with [`everything`](Self::everything).
///
/// ```
/// use xmsg_core::Topic;
///
/// let topic = Topic::with_types("rock", "metal", "metallica:lars")?;
/// assert_eq!(topic, "rock:metal:metallica:lars");
/// assert_eq!(topic.types(), "metallica:lars");
/// assert!(Topic::of_domain("rock")?.is_parent(&topic));
///
/// let parsed: Topic = "rock:*:lars".parse()?;
/// assert_eq!(parsed, "rock");
/// assert_eq!(parsed.subject(), "*");
/// assert_eq!("rock:metal:".parse::<Topic>()?, "rock:metal:"); // a subscription to what is below `rock:metal`
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Bytes);

impl Topic {
    /// Makes the topic of all subjects of a domain.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTopic`] when the domain is not allowed.
    pub fn of_domain(domain: impl AsRef<str>) -> Result<Self> {
        Self::with_types(domain, ANY, ANY)
    }

    /// Makes the topic of a domain and a subject; a subject `*` means any subject.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTopic`] when a part is not allowed.
    pub fn new(domain: impl AsRef<str>, subject: impl AsRef<str>) -> Result<Self> {
        Self::with_types(domain, subject, ANY)
    }

    /// Makes the topic of a domain, a subject and types, which may be several parts separated by `:`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTopic`] when the domain or the subject is not allowed.
    pub fn with_types(
        domain: impl AsRef<str>,
        subject: impl AsRef<str>,
        types: impl AsRef<str>,
    ) -> Result<Self> {
        let (domain, subject, types) = (domain.as_ref(), subject.as_ref(), types.as_ref());
        check_domain(domain, domain)?;
        check_subject(subject)?;

        let mut topic = String::with_capacity(domain.len() + subject.len() + types.len() + 2);
        topic.push_str(domain);
        if subject != ANY {
            topic.push(SEPARATOR);
            topic.push_str(subject);
            let known = types.split(SEPARATOR).take_while(|part| *part != ANY);
            for part in known.filter(|part| !part.is_empty()) {
                topic.push(SEPARATOR);
                topic.push_str(part);
            }
        }
        Ok(Self(topic.into()))
    }

    /// Makes a topic of these bytes. Nothing is checked, and the bytes need not be UTF-8.
    ///
    /// ```
    /// use xmsg_core::Topic;
    ///
    /// let everything_below_rock = Topic::wrap("rock:");
    /// assert!(!everything_below_rock.is_parent(&Topic::of_domain("rocket")?));
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    pub fn wrap(topic: impl Into<Bytes>) -> Self {
        Self(topic.into())
    }

    /// Returns whether the topic has wildcards of other systems, as in `a.*.b`, `a.>`, `a/#` or `a/+/b`. In
    /// xMsg they match only themselves.
    pub(crate) fn looks_like_a_pattern(&self) -> bool {
        self.before_wildcard().is_some()
    }

    /// Returns the bytes before the first wildcard of another system; `None` without such a wildcard. A
    /// subscription to them receives all messages that the wildcard means, and more.
    ///
    /// ```
    /// use xmsg_core::Topic;
    ///
    /// assert_eq!(Topic::wrap("weather/#").before_wildcard(), Some(&b"weather/"[..]));
    /// assert_eq!(Topic::wrap("weather:oslo").before_wildcard(), None);
    /// ```
    #[must_use]
    pub fn before_wildcard(&self) -> Option<&[u8]> {
        let mut start = 0;
        for part in self.0.split(|byte| matches!(byte, b':' | b'.' | b'/')) {
            if matches!(part, b"*" | b">" | b"#" | b"+") {
                return Some(&self.0[..start]);
            }
            start += part.len() + 1;
        }
        None
    }

    /// Returns the empty topic, with which every topic starts. A subscription to it receives every message,
    /// including the requests that clients send to the proxy, whose topics start with `xmsg:control`.
    ///
    /// ```
    /// use xmsg_core::Topic;
    ///
    /// assert!(Topic::everything().is_parent(&Topic::new("rock", "metal")?));
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    #[must_use]
    pub const fn everything() -> Self {
        Self(Bytes::new())
    }

    /// Returns the topic as it is on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Returns the topic as it is on the wire, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// Returns the topic as text; an error when it is not UTF-8.
    pub fn to_str(&self) -> Result<&str, Utf8Error> {
        str::from_utf8(&self.0)
    }

    /// Returns the first part. Bytes that are not UTF-8 are replaced by U+FFFD.
    #[must_use]
    pub fn domain(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.parts().next().unwrap_or_default())
    }

    /// Returns the second part; `*` when there is none. Bytes that are not UTF-8 are replaced by U+FFFD.
    #[must_use]
    pub fn subject(&self) -> Cow<'_, str> {
        part_or_any(self.parts().nth(1))
    }

    /// Returns everything after the subject, including `:`; `*` when there is nothing. Bytes that are not
    /// UTF-8 are replaced by U+FFFD.
    #[must_use]
    pub fn types(&self) -> Cow<'_, str> {
        part_or_any(self.parts().nth(2))
    }

    /// Returns whether a subscription to this topic receives messages of `other`, which is so if `other`
    /// starts with these bytes. A topic is its own parent.
    #[must_use]
    pub fn is_parent(&self, other: &Topic) -> bool {
        other.0.starts_with(&self.0)
    }

    /// Makes a topic of parts that are joined by `:`, by the rules for parts.
    pub(crate) fn of_parts(joined: &str) -> Result<Self> {
        let mut parts = joined.splitn(3, SEPARATOR);
        let mut part = || parts.next();
        let domain = part().unwrap_or_default();
        Self::with_types(domain, part().unwrap_or(ANY), part().unwrap_or(ANY))
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.splitn(3, |byte| *byte == SEPARATOR as u8)
    }
}

impl FromStr for Topic {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.into_topic()
    }
}

impl TryFrom<&str> for Topic {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self> {
        text.into_topic()
    }
}

impl TryFrom<&String> for Topic {
    type Error = Error;

    fn try_from(text: &String) -> Result<Self> {
        text.into_topic()
    }
}

impl TryFrom<String> for Topic {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.into_topic()
    }
}

/// A type that can be used as a topic: a [`Topic`], or text, owned or borrowed.
///
/// Text is used byte by byte, except that a part `*` ends the topic there, and that the domain cannot be
/// empty or `*`. To make a topic of bytes that break these rules, use [`Topic::wrap`].
///
/// Implement it for your own type, such as an `enum` of the topics of an application.
///
/// ```
/// use xmsg_core::topic::IntoTopic;
/// use xmsg_core::{Message, Result, Topic};
///
/// enum Channel {
///     Sports,
///     Weather { town: String },
/// }
///
/// impl IntoTopic for Channel {
///     fn into_topic(self) -> Result<Topic> {
///         match self {
///             Self::Sports => Topic::new("report", "sports"),
///             Self::Weather { town } => Topic::with_types("report", "weather", town),
///         }
///     }
/// }
///
/// assert_eq!(*Message::of(Channel::Sports, "3:1")?.topic(), "report:sports");
/// assert_eq!(*Message::of("report:sports", "3:1")?.topic(), "report:sports");
/// let oslo = Channel::Weather { town: "oslo".into() };
/// assert_eq!(*Message::of(oslo, 4.5)?.topic(), "report:weather:oslo");
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no topic",
    note = "a topic is a `Topic`, or text; several go into an array, a slice or a `Vec`"
)]
pub trait IntoTopic {
    /// Returns the topic. [`ErrorKind::InvalidTopic`], with the text in the error, when it breaks the rules.
    fn into_topic(self) -> Result<Topic>;
}

impl IntoTopic for Topic {
    fn into_topic(self) -> Result<Topic> {
        Ok(self)
    }
}

impl IntoTopic for &Topic {
    fn into_topic(self) -> Result<Topic> {
        Ok(self.clone())
    }
}

impl IntoTopic for String {
    fn into_topic(mut self) -> Result<Topic> {
        self.truncate(end_of_topic(&self)?);
        Ok(Topic::wrap(self))
    }
}

impl IntoTopic for &str {
    fn into_topic(self) -> Result<Topic> {
        let topic = &self[..end_of_topic(self)?];
        Ok(Topic::wrap(Bytes::copy_from_slice(topic.as_bytes())))
    }
}

impl IntoTopic for Cow<'_, str> {
    fn into_topic(self) -> Result<Topic> {
        match self {
            Cow::Borrowed(text) => text.into_topic(),
            Cow::Owned(text) => text.into_topic(),
        }
    }
}

/// Implements the trait for other references to text, which are common in lists of texts.
macro_rules! borrowed_texts {
    ($($text:ty),+) => {$(
        impl IntoTopic for $text {
            fn into_topic(self) -> Result<Topic> {
                let text: &str = self;
                text.into_topic()
            }
        }
    )+};
}

borrowed_texts!(&String, &&str, &&String, &Cow<'_, str>);

/// A type that can be subscribed to: one topic, or an array, a slice or a vector of topics, each of which is
/// [`IntoTopic`].
///
/// ```
/// use xmsg_core::topic::IntoTopics;
/// use xmsg_core::{ErrorKind, Topic};
///
/// let oslo = Topic::new("weather", "oslo")?;
/// assert_eq!("weather:oslo".into_topics()?, [oslo.clone()]);
/// assert_eq!((&oslo).into_topics()?, [oslo.clone()]);
/// assert_eq!(["weather:oslo", "report:"].into_topics()?, [oslo, Topic::wrap("report:")]);
///
/// let error = vec!["weather".to_owned(), "*:oslo".to_owned()].into_topics().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidTopic);
/// assert!(error.to_string().contains("`*:oslo`"));
/// # Ok::<(), xmsg_core::Error>(())
/// ```
pub trait IntoTopics {
    /// Returns the topics in their order. [`ErrorKind::InvalidTopic`], with the text in the error, when one
    /// of them breaks the rules.
    fn into_topics(self) -> Result<Vec<Topic>>;
}

impl<T: IntoTopic> IntoTopics for T {
    fn into_topics(self) -> Result<Vec<Topic>> {
        Ok(vec![self.into_topic()?])
    }
}

impl<T: IntoTopic> IntoTopics for Vec<T> {
    fn into_topics(self) -> Result<Vec<Topic>> {
        self.into_iter().map(IntoTopic::into_topic).collect()
    }
}

impl<T: IntoTopic, const N: usize> IntoTopics for [T; N] {
    fn into_topics(self) -> Result<Vec<Topic>> {
        self.into_iter().map(IntoTopic::into_topic).collect()
    }
}

impl<'a, T> IntoTopics for &'a [T]
where
    &'a T: IntoTopic,
{
    fn into_topics(self) -> Result<Vec<Topic>> {
        self.iter().map(IntoTopic::into_topic).collect()
    }
}

impl<'a, T> IntoTopics for &'a Vec<T>
where
    &'a T: IntoTopic,
{
    fn into_topics(self) -> Result<Vec<Topic>> {
        self.as_slice().into_topics()
    }
}

impl<'a, T, const N: usize> IntoTopics for &'a [T; N]
where
    &'a T: IntoTopic,
{
    fn into_topics(self) -> Result<Vec<Topic>> {
        self.as_slice().into_topics()
    }
}

impl From<Topic> for Bytes {
    fn from(topic: Topic) -> Self {
        topic.0
    }
}

impl AsRef<[u8]> for Topic {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Topics hash and compare as their bytes do, so that bytes can be looked up in a map of topics.
impl Borrow<[u8]> for Topic {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq<str> for Topic {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Topic {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

impl PartialEq<String> for Topic {
    fn eq(&self, other: &String) -> bool {
        self == other.as_str()
    }
}

impl PartialEq<Topic> for str {
    fn eq(&self, other: &Topic) -> bool {
        other == self
    }
}

impl PartialEq<Topic> for &str {
    fn eq(&self, other: &Topic) -> bool {
        other == *self
    }
}

impl PartialEq<Topic> for String {
    fn eq(&self, other: &Topic) -> bool {
        other == self.as_str()
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topic(\"{}\")", self.0.escape_ascii())
    }
}

/// Returns where the topic in this text ends: before a part `*`, or at the end. An error when its domain is
/// not allowed.
fn end_of_topic(text: &str) -> Result<usize> {
    let mut parts = text.split(SEPARATOR);
    let domain = parts.next().unwrap_or_default();
    check_domain(domain, text)?;
    let mut end = domain.len();
    for part in parts {
        if part == ANY {
            break;
        }
        end += SEPARATOR.len_utf8() + part.len();
    }
    Ok(end)
}

fn check_domain(domain: &str, topic: &str) -> Result<()> {
    match domain {
        "" => Err(invalid(format!(
            "the topic `{topic}` has no domain: give its first part a name; only a subscription to everything has none"
        ))),
        ANY => Err(invalid(format!(
            "the domain of a topic can't be `*`, as in `{topic}`: name one; only a subscription to everything has none"
        ))),
        _ if domain.contains(SEPARATOR) => Err(invalid(format!(
            "the domain `{domain}` contains `:`: pass its parts one by one, or parse the whole as a topic"
        ))),
        _ => Ok(()),
    }
}

fn check_subject(subject: &str) -> Result<()> {
    if subject.contains(SEPARATOR) {
        return Err(invalid(format!(
            "the subject `{subject}` contains `:`: pass what follows the first `:` as types"
        )));
    }
    Ok(())
}

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::InvalidTopic, context)
}

fn part_or_any(part: Option<&[u8]>) -> Cow<'_, str> {
    part.map_or(Cow::Borrowed(ANY), String::from_utf8_lossy)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn topic(text: &str) -> Topic {
        text.parse().unwrap()
    }

    #[test]
    fn wildcards_of_other_systems_are_recognized() {
        for (pattern, before) in [
            ("a.b.*", "a.b."),
            ("weather.>", "weather."),
            ("a:*:b", "a:"),
            (">", ""),
            ("key.#", "key."),
            ("weather/#", "weather/"),
            ("a/b/+", "a/b/"),
            ("+/b/+", ""),
        ] {
            assert!(Topic::wrap(pattern).looks_like_a_pattern(), "{pattern}");
            assert_eq!(Topic::wrap(pattern).before_wildcard(), Some(before.as_bytes()), "{pattern}");
        }
        for plain in ["", "a:b:c", "a.b", "a/b", "weather:", "a*:b", "n>3", "c#", "c++", "a/b+"] {
            assert!(!Topic::wrap(plain).looks_like_a_pattern(), "{plain}");
        }
    }

    #[test]
    fn parts_build_the_topic() {
        let cases = [
            (("rock", "*", "*"), "rock"),
            (("rock", "*", "metallica"), "rock"),
            (("rock", "metal", "*"), "rock:metal"),
            (("rock", "metal", ""), "rock:metal"),
            (("rock", "", "*"), "rock:"),
            (("rock", "metal", "metallica"), "rock:metal:metallica"),
            (("rock", "metal", "metallica:lars:*"), "rock:metal:metallica:lars"),
            (("rock", "metal", "metallica:*:lars"), "rock:metal:metallica"),
            (("rock", "metal", ":metallica::lars:"), "rock:metal:metallica:lars"),
            (("rock", "metal", "m*"), "rock:metal:m*"),
        ];
        for ((domain, subject, types), expected) in cases {
            assert_eq!(Topic::with_types(domain, subject, types).unwrap(), expected);
            assert_eq!(Topic::of_parts(&format!("{domain}:{subject}:{types}")).unwrap(), expected);
        }
    }

    #[test]
    fn text_is_taken_byte_by_byte_up_to_a_part_that_is_any() {
        let cases = [
            ("rock", "rock"),
            ("rock:", "rock:"),
            ("rock:metal:", "rock:metal:"),
            ("rock::lars:", "rock::lars:"),
            ("rock:*", "rock"),
            ("rock:*:lars", "rock"),
            ("rock:metal:m*:*:x", "rock:metal:m*"),
            ("zoë:ü", "zoë:ü"),
        ];
        for (text, expected) in cases {
            let owned = text.to_owned();
            assert_eq!(topic(text), expected);
            assert_eq!(owned.clone().into_topic().unwrap(), expected);
            assert_eq!((&owned).into_topic().unwrap(), expected);
            assert_eq!(Cow::from(text).into_topic().unwrap(), expected);
            assert_eq!(Cow::<str>::from(owned).into_topic().unwrap(), expected);
        }
    }

    #[test]
    fn one_topic_or_many_can_be_subscribed_to_owned_or_borrowed() {
        let a = topic("a");
        let (topics, texts) = (vec![a.clone(), topic("b")], vec!["a".to_owned(), "b".to_owned()]);
        for one in [
            "a".into_topics(),
            (&"a").into_topics(),
            "a".to_owned().into_topics(),
            (&"a".to_owned()).into_topics(),
            Cow::from("a").into_topics(),
            a.clone().into_topics(),
            (&a).into_topics(),
            [&a].into_topics(),
        ] {
            assert_eq!(one.unwrap(), topics[..1]);
        }
        for many in [
            ["a", "b"].into_topics(),
            (&["a", "b"]).into_topics(),
            ["a", "b"].as_slice().into_topics(),
            vec!["a", "b"].into_topics(),
            (&vec!["a", "b"]).into_topics(),
            (&texts).into_topics(),
            texts.as_slice().into_topics(),
            texts.into_topics(),
            [&topics[0], &topics[1]].into_topics(),
            [topic("a"), topic("b")].into_topics(),
            topics.as_slice().into_topics(),
            (&topics).into_topics(),
            topics.iter().collect::<Vec<_>>().into_topics(),
            topics.clone().into_topics(),
        ] {
            assert_eq!(many.unwrap(), topics);
        }
        assert!([""; 0].into_topics().unwrap().is_empty());
    }

    #[test]
    fn an_error_names_the_topic_that_is_not_allowed() {
        for (topics, named) in
            [(["a", ""], "``"), (["*", "a"], "`*`"), (["a", ":b"], "`:b`"), (["a", "*:b"], "`*:b`")]
        {
            let error = topics.into_topics().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTopic);
            assert!(error.to_string().contains(named), "{error}");
            assert!(error.to_string().contains("everything"), "{error}");
        }
    }

    #[test]
    fn parts_that_are_not_allowed_are_refused_with_advice() {
        let cases = [
            (Topic::of_domain(""), "no domain"),
            (Topic::of_domain("*"), "can't be `*`"),
            (Topic::of_domain("rock:metal"), "one by one"),
            (Topic::new("rock", "metal:metallica"), "as types"),
            ("".parse(), "no domain"),
            (":metal".parse(), "no domain"),
            ("*:metal".parse(), "can't be `*`"),
        ];
        for (result, advice) in cases {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTopic);
            assert!(error.to_string().contains(advice), "{error}");
        }
    }

    #[test]
    fn absent_parts_read_back_as_any() {
        let read = |text: &'static str| {
            let topic = Topic::wrap(text);
            [topic.domain().into_owned(), topic.subject().into_owned(), topic.types().into_owned()]
        };
        assert_eq!(read("rock"), ["rock", "*", "*"]);
        assert_eq!(read("rock:metal"), ["rock", "metal", "*"]);
        assert_eq!(read("rock:metal:metallica:lars"), ["rock", "metal", "metallica:lars"]);
        assert_eq!(read("rock:"), ["rock", "", "*"]);
        assert_eq!(read("rock::"), ["rock", "", ""]);
        assert_eq!(read(""), ["", "*", "*"]);
    }

    #[test]
    fn a_parent_is_a_prefix_of_bytes() {
        let parent = topic("A:B");
        for child in ["A:B", "A:B:L", "A:BC"] {
            assert!(parent.is_parent(&topic(child)), "{child}");
        }
        for other in ["A", "A:C", "B:A:B"] {
            assert!(!parent.is_parent(&topic(other)), "{other}");
        }
        assert!(Topic::wrap("").is_parent(&parent));
    }

    #[test]
    fn topics_need_not_be_text() {
        let topic = Topic::wrap(&b"a\xff:\xfe"[..]);
        assert!(topic.to_str().is_err());
        assert_eq!(topic.domain(), "a\u{fffd}");
        assert_eq!(topic.subject(), "\u{fffd}");
        assert_eq!(topic.to_string(), "a\u{fffd}:\u{fffd}");
        assert_eq!(format!("{topic:?}"), r#"Topic("a\xff:\xfe")"#);
        assert_eq!(topic.into_bytes(), &b"a\xff:\xfe"[..]);
    }

    #[test]
    fn topics_come_from_text_and_compare_with_it() {
        let text = "rock:metal".to_owned();
        let topics: [Result<Topic>; 4] = [
            text.parse(),
            Topic::try_from(text.as_str()),
            Topic::try_from(&text),
            Topic::try_from(text.clone()),
        ];
        for topic in topics.map(Result::unwrap) {
            assert_eq!(topic, text);
            assert_eq!(topic, "rock:metal");
            assert_eq!(text, topic);
            assert_eq!("rock:metal", topic);
            assert_eq!(*"rock:metal", topic);
        }
        assert_eq!(Topic::try_from("").unwrap_err().kind(), ErrorKind::InvalidTopic);
    }

    #[test]
    fn a_map_of_topics_can_be_asked_by_bytes() {
        let map = HashMap::from([(topic("rock:metal"), 1)]);
        assert_eq!(map.get(b"rock:metal".as_slice()), Some(&1));
    }

    proptest! {
        #[test]
        fn parts_read_back(
            domain in "[^:*][^:]{0,8}",
            subject in "[^:]{0,8}",
            types in prop::collection::vec("[^:*][^:]{0,5}", 0..4),
        ) {
            let types = if types.is_empty() || subject == ANY { ANY.to_owned() } else { types.join(":") };
            let topic = Topic::with_types(&domain, &subject, &types).unwrap();
            prop_assert_eq!(topic.domain(), domain);
            prop_assert_eq!(topic.subject(), subject);
            prop_assert_eq!(topic.types(), types);
        }

        #[test]
        fn parsing_is_idempotent(text in "[a-c*:]{0,12}") {
            if let Ok(topic) = text.parse::<Topic>() {
                prop_assert!(text.as_bytes().starts_with(topic.as_bytes()));
                prop_assert_eq!(topic.to_string().parse::<Topic>().unwrap(), topic.clone());
                let of_parts = Topic::of_parts(&text).unwrap();
                prop_assert_eq!(topic.domain(), of_parts.domain());
            }
        }

        #[test]
        fn any_bytes_can_be_wrapped_and_read(bytes: Vec<u8>) {
            let topic = Topic::wrap(bytes.clone());
            let _ = (topic.domain(), topic.subject(), topic.types(), topic.to_string());
            prop_assert!(topic.is_parent(&topic));
            prop_assert_eq!(topic.as_bytes(), bytes);
        }
    }
}
