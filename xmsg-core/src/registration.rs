//! Registrations, and requests to a registrar, as values (section 5 of the xMsg protocol).
//!
//! | | frames |
//! |---|---|
//! | request | action · sender · data |
//! | reply | action · sender · status · one for each registration |
//!
//! The data is a [`Registration`]. Only the data of [`Action::RemoveAll`] is the name of a host.

// Longer than 500 lines: one protocol. Records, requests and answers are read and written by the same rules,
// with their documentation and examples.

use std::fmt;

use bytes::{Buf, Bytes};
use prost::Message as _;
use prost::encoding::{DecodeContext, decode_key, skip_field};

use crate::address::ProxyAddress;
use crate::topic::{ANY, Topic};
use crate::{Error, ErrorKind, Result};

/// The text that stands for an absent text, and for "any host" in a query.
pub const UNDEFINED: &str = "undefined";
/// The status of a reply to a request that was carried out.
pub const SUCCESS: &str = "success";
/// The status of a reply to an unknown action. The reply repeats the name of the action.
pub const UNKNOWN_REQUEST: &str = "unknown registration request";
/// The status of a reply to a request that does not have three frames. The action of this reply is
/// [`UNDEFINED`].
pub const INVALID_FORMAT: &str = "invalid registrar server request format";

/// The highest field number that this version knows.
const LAST_FIELD: u32 = 8;

/// Whether an actor publishes to a topic or subscribes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerType {
    /// 1: the actor publishes messages to the topic.
    Publisher,
    /// 2: it subscribes to the topic.
    Subscriber,
}

impl OwnerType {
    /// Both values.
    pub const ALL: [Self; 2] = [Self::Publisher, Self::Subscriber];

    /// Returns `publisher` or `subscriber`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Publisher => "publisher",
            Self::Subscriber => "subscriber",
        }
    }

    fn number(self) -> i32 {
        match self {
            Self::Publisher => 1,
            Self::Subscriber => 2,
        }
    }
}

impl fmt::Display for OwnerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A publisher or subscriber, as a registrar stores it.
///
/// `None` means that a field is absent, which differs from a default value (proto2). Fields that are not in
/// this list are kept as they were received.
///
/// ```
/// use xmsg_core::registration::{OwnerType, Registration};
/// use xmsg_core::{ProxyAddress, Topic};
///
/// let topic = Topic::new("report", "sports")?;
/// let registration = Registration::new(OwnerType::Publisher, "reporter", &topic, &ProxyAddress::default());
/// assert_eq!(Registration::decode(&registration.encode())?, registration);
/// assert_eq!(registration.topic()?, topic);
/// assert_eq!(registration.port, 7771);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Registration {
    /// 1: the name of the actor.
    pub name: String,
    /// 2: a description of the actor; absent means `undefined`.
    pub description: Option<String>,
    /// 3: the host of the proxy that it uses.
    pub host: String,
    /// 4: the port of that proxy for publishers. Some peers register subscribers with its port for
    /// subscribers.
    pub port: i32,
    /// 5: the domain of the topic.
    pub domain: String,
    /// 6: the subject of the topic; absent means `undefined`, `*` means any.
    pub subject: Option<String>,
    /// 7: the types of the topic; absent means `undefined`, `*` means any.
    pub types: Option<String>,
    /// 8: whether the actor publishes or subscribes.
    pub owner: Option<OwnerType>,
    unknown: Bytes,
}

impl Registration {
    /// Makes a registration of an actor that publishes or subscribes to a topic through a proxy.
    pub fn new(owner: OwnerType, name: impl Into<String>, topic: &Topic, proxy: &ProxyAddress) -> Self {
        Self {
            name: name.into(),
            description: None,
            host: proxy.host().to_owned(),
            port: i32::from(proxy.publish_port()),
            domain: topic.domain().into_owned(),
            subject: Some(topic.subject().into_owned()),
            types: Some(topic.types().into_owned()),
            owner: Some(owner),
            unknown: Bytes::new(),
        }
    }

    /// Sets the description.
    #[must_use]
    pub fn with_description(self, description: impl Into<String>) -> Self {
        Self { description: Some(description.into()), ..self }
    }

    /// Returns the description of the actor; `undefined` when it has none.
    #[must_use]
    pub fn description(&self) -> &str {
        self.description.as_deref().unwrap_or(UNDEFINED)
    }

    /// Returns the subject; `undefined` when it is absent.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.subject.as_deref().unwrap_or(UNDEFINED)
    }

    /// Returns the types; `undefined` when they are absent.
    #[must_use]
    pub fn types(&self) -> &str {
        self.types.as_deref().unwrap_or(UNDEFINED)
    }

    /// Returns the topic, which is built from its parts: types `a:*:b` count as `a`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTopic`] when the domain is empty or `*`.
    pub fn topic(&self) -> Result<Topic> {
        // Peers may put a `:` into a part, so the parts are joined and split again.
        Topic::of_parts(&format!("{}:{}:{}", self.domain, self.subject(), self.types()))
    }

    /// Returns the encoded fields that this version does not know, in the order in which they were received.
    #[must_use]
    pub fn unknown_fields(&self) -> &[u8] {
        &self.unknown
    }

    /// Decodes a frame.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the frame is not protobuf, a required field is missing, or
    /// `ownerType` is unknown.
    pub fn decode(frame: &Bytes) -> Result<Self> {
        let wire = Wire::decode(frame.clone()).map_err(not_protobuf)?;
        let owner = match wire.owner {
            None => None,
            Some(1) => Some(OwnerType::Publisher),
            Some(2) => Some(OwnerType::Subscriber),
            Some(number) => {
                return Err(invalid(format!(
                    "the ownerType {number} of a registration is neither 1 (publisher) nor 2 (subscriber)"
                )));
            }
        };
        Ok(Self {
            name: wire.name.ok_or_else(|| missing("name"))?,
            description: wire.description,
            host: wire.host.ok_or_else(|| missing("host"))?,
            port: wire.port.ok_or_else(|| missing("port"))?,
            domain: wire.domain.ok_or_else(|| missing("domain"))?,
            subject: wire.subject,
            types: wire.types,
            owner,
            unknown: unknown_fields(frame)?,
        })
    }

    /// Encodes the registration as a frame: known fields in the order of their numbers, then the unknown
    /// fields as they were received. Registrations are equal if and only if their frames are equal.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let wire = Wire {
            name: Some(self.name.clone()),
            description: self.description.clone(),
            host: Some(self.host.clone()),
            port: Some(self.port),
            domain: Some(self.domain.clone()),
            subject: self.subject.clone(),
            types: self.types.clone(),
            owner: self.owner.map(OwnerType::number),
        };
        let mut frame = Vec::with_capacity(wire.encoded_len() + self.unknown.len());
        frame.extend_from_slice(&wire.encode_to_vec());
        frame.extend_from_slice(&self.unknown);
        frame.into()
    }
}

/// A query for registrations. What it does not restrict means any.
///
/// ```
/// use xmsg_core::registration::{OwnerType, Query};
/// use xmsg_core::Topic;
///
/// let topic = Topic::new("report", "sports")?;
/// let query = Query::topic(OwnerType::Publisher, &topic).host("10.0.0.7").port(7771);
/// assert_eq!(query.owner(), OwnerType::Publisher);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    owner: OwnerType,
    domain: String,
    subject: String,
    types: String,
    host: String,
    port: i32,
}

impl Query {
    /// Makes a query for all publishers or all subscribers. A *find* or an *exact* search needs a
    /// [`topic`](Self::topic).
    #[must_use]
    pub fn any(owner: OwnerType) -> Self {
        Self::parts(owner, ANY, ANY, ANY)
    }

    /// Makes a query for registrations of this topic. The action decides how the topic is compared.
    #[must_use]
    pub fn topic(owner: OwnerType, topic: &Topic) -> Self {
        Self::parts(owner, topic.domain(), topic.subject(), topic.types())
    }

    /// Makes a query for registrations whose topic has these parts; `*` means any, also as the domain.
    pub fn parts(
        owner: OwnerType,
        domain: impl Into<String>,
        subject: impl Into<String>,
        types: impl Into<String>,
    ) -> Self {
        Self {
            owner,
            domain: domain.into(),
            subject: subject.into(),
            types: types.into(),
            host: UNDEFINED.to_owned(),
            port: 0,
        }
    }

    /// Restricts the query to this host. Only a *filter* uses it.
    #[must_use]
    pub fn host(self, host: impl Into<String>) -> Self {
        Self { host: host.into(), ..self }
    }

    /// Restricts the query to this port. Only a *filter* uses it.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port: i32::from(port), ..self }
    }

    /// Returns whether the query is for publishers or for subscribers.
    #[must_use]
    pub fn owner(&self) -> OwnerType {
        self.owner
    }

    /// Returns the query as the data of a request.
    fn registration(&self) -> Registration {
        Registration {
            name: UNDEFINED.to_owned(),
            description: None,
            host: self.host.clone(),
            port: self.port,
            domain: self.domain.clone(),
            subject: Some(self.subject.clone()),
            types: Some(self.types.clone()),
            owner: Some(self.owner),
            unknown: Bytes::new(),
        }
    }
}

/// The actions of a registrar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Stores a registration. Storing the same twice has no further effect.
    Register(OwnerType),
    /// Removes the registrations with the same topic, name and host.
    Remove(OwnerType),
    /// Removes all publishers and subscribers of a host.
    RemoveAll,
    /// Finds publishers whose topic starts with that of the query, or subscribers whose topic is a prefix of
    /// it. Only registrations of the same domain are found.
    Find(OwnerType),
    /// Finds registrations whose topic, host and port equal those of the query part by part, as far as the
    /// query gives them.
    Filter(OwnerType),
    /// Finds registrations with the same topic.
    Exact(OwnerType),
    /// Finds all registrations.
    All(OwnerType),
}

impl Action {
    const ALL: [Self; 13] = {
        use OwnerType::{Publisher, Subscriber};
        [
            Self::Register(Publisher),
            Self::Register(Subscriber),
            Self::Remove(Publisher),
            Self::Remove(Subscriber),
            Self::RemoveAll,
            Self::Find(Publisher),
            Self::Find(Subscriber),
            Self::Filter(Publisher),
            Self::Filter(Subscriber),
            Self::Exact(Publisher),
            Self::Exact(Subscriber),
            Self::All(Publisher),
            Self::All(Subscriber),
        ]
    };

    /// Returns the name on the wire, such as `"registerPublisher"`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        use OwnerType::{Publisher, Subscriber};
        match self {
            Self::Register(Publisher) => "registerPublisher",
            Self::Register(Subscriber) => "registerSubscriber",
            Self::Remove(Publisher) => "removePublisherRegistration",
            Self::Remove(Subscriber) => "removeSubscriberRegistration",
            Self::RemoveAll => "removeAllRegistration",
            Self::Find(Publisher) => "findPublisher",
            Self::Find(Subscriber) => "findSubscriber",
            Self::Filter(Publisher) => "filterPublisher",
            Self::Filter(Subscriber) => "filterSubscriber",
            Self::Exact(Publisher) => "exactPublisher",
            Self::Exact(Subscriber) => "exactSubscriber",
            Self::All(Publisher) => "allPublisher",
            Self::All(Subscriber) => "allSubscriber",
        }
    }

    /// Returns the action with this name.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name().as_bytes() == name)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The data of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A registration, or a query in this form.
    Registration(Registration),
    /// The host of [`Action::RemoveAll`].
    Host(String),
    /// The data of [`Action::All`], which is not decoded.
    Unread(Bytes),
}

/// A request to a registrar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The action.
    pub action: Action,
    /// The name of the sender, for logs.
    pub sender: Bytes,
    /// The data of the request.
    pub argument: Argument,
}

impl Request {
    /// Makes a request to store a registration. Without an owner, it counts as that of a publisher.
    pub fn register(sender: impl Into<Bytes>, registration: Registration) -> Self {
        let action = Action::Register(registration.owner.unwrap_or(OwnerType::Publisher));
        Self { action, sender: sender.into(), argument: Argument::Registration(registration) }
    }

    /// Makes a request to remove the registrations with the same topic, name and host. Without an owner, it
    /// counts as that of a publisher.
    pub fn remove(sender: impl Into<Bytes>, registration: Registration) -> Self {
        let action = Action::Remove(registration.owner.unwrap_or(OwnerType::Publisher));
        Self { action, sender: sender.into(), argument: Argument::Registration(registration) }
    }

    /// Makes a request to remove all registrations of a host.
    pub fn remove_all(sender: impl Into<Bytes>, host: impl Into<String>) -> Self {
        Self { action: Action::RemoveAll, sender: sender.into(), argument: Argument::Host(host.into()) }
    }

    /// Makes a query. `action` is [`Action::Find`], [`Action::Filter`], [`Action::Exact`] or [`Action::All`],
    /// as a function of the owner.
    pub fn discover(
        sender: impl Into<Bytes>,
        action: impl FnOnce(OwnerType) -> Action,
        query: &Query,
    ) -> Self {
        let argument = Argument::Registration(query.registration());
        Self { action: action(query.owner), sender: sender.into(), argument }
    }

    /// Returns the request as frames.
    #[must_use]
    pub fn frames(&self) -> [Bytes; 3] {
        let data = match &self.argument {
            Argument::Registration(registration) => registration.encode(),
            Argument::Host(host) => Bytes::copy_from_slice(host.as_bytes()),
            Argument::Unread(data) => data.clone(),
        };
        [Bytes::from_static(self.action.name().as_bytes()), self.sender.clone(), data]
    }

    /// Decodes frames, or returns the error reply to them. `registrar` is the sender of that reply.
    pub fn read(frames: &[Bytes], registrar: &Bytes) -> Result<Self, Reply> {
        let refused = |action: Bytes, status: String| Reply {
            action,
            sender: registrar.clone(),
            outcome: Err(Refusal(status)),
        };
        let [name, sender, data] = frames else {
            return Err(refused(Bytes::from_static(UNDEFINED.as_bytes()), INVALID_FORMAT.to_owned()));
        };
        // Only the first 255 bytes are repeated: such a name is far longer than any action.
        let echo = if name.len() <= 255 { name.clone() } else { name.slice(..255) };
        let Some(action) = Action::from_name(name) else {
            return Err(refused(echo, UNKNOWN_REQUEST.to_owned()));
        };
        let argument = match action {
            Action::All(_) => Argument::Unread(data.clone()),
            Action::RemoveAll => match str::from_utf8(data) {
                Ok(host) => Argument::Host(host.to_owned()),
                Err(_) => return Err(refused(echo, "the host is not UTF-8".to_owned())),
            },
            _ => match Registration::decode(data) {
                Ok(registration) => Argument::Registration(registration),
                Err(error) => return Err(refused(echo, error.to_string())),
            },
        };
        Ok(Self { action, sender: sender.clone(), argument })
    }

    /// Makes the reply to this request. `registrar` is the sender of the reply. The registrations are already
    /// encoded frames.
    pub fn reply(&self, registrar: &Bytes, outcome: Result<Vec<Bytes>, Refusal>) -> Reply {
        let action = Bytes::from_static(self.action.name().as_bytes());
        Reply { action, sender: registrar.clone(), outcome }
    }
}

/// The reason why a registrar refused a request: the status of its reply, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// The reply of a registrar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The name of the action.
    pub action: Bytes,
    /// The sender of the reply, in the form `host:registrar`.
    pub sender: Bytes,
    /// The frames of the registrations, or the reason of the refusal.
    pub outcome: Result<Vec<Bytes>, Refusal>,
}

impl Reply {
    /// Returns the reply as frames.
    #[must_use]
    pub fn into_frames(self) -> Vec<Bytes> {
        match self.outcome {
            Ok(registrations) => {
                let mut frames = Vec::with_capacity(3 + registrations.len());
                frames.extend([self.action, self.sender, Bytes::from_static(SUCCESS.as_bytes())]);
                frames.extend(registrations);
                frames
            }
            Err(Refusal(status)) => vec![self.action, self.sender, status.into()],
        }
    }

    /// Decodes frames.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when there are fewer than three frames.
    pub fn read(frames: &[Bytes]) -> Result<Self> {
        let [action, sender, status, registrations @ ..] = frames else {
            return Err(invalid(format!(
                "a registrar's reply of {} frames: it has at least three, action, sender and status",
                frames.len()
            )));
        };
        let outcome = if status == SUCCESS {
            Ok(registrations.to_vec())
        } else {
            Err(Refusal(String::from_utf8_lossy(status).into_owned()))
        };
        Ok(Self { action: action.clone(), sender: sender.clone(), outcome })
    }
}

/// The protobuf message of a registration.
#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    description: Option<String>,
    #[prost(string, optional, tag = "3")]
    host: Option<String>,
    #[prost(sfixed32, optional, tag = "4")]
    port: Option<i32>,
    #[prost(string, optional, tag = "5")]
    domain: Option<String>,
    #[prost(string, optional, tag = "6")]
    subject: Option<String>,
    #[prost(string, optional, tag = "7")]
    types: Option<String>,
    #[prost(int32, optional, tag = "8")]
    owner: Option<i32>,
}

/// Returns the fields that `Wire` does not have, encoded.
fn unknown_fields(frame: &Bytes) -> Result<Bytes> {
    let mut unknown = Vec::new();
    let mut rest = frame.clone();
    while rest.has_remaining() {
        let field = rest.clone();
        let (number, wire_type) = decode_key(&mut rest).map_err(not_protobuf)?;
        skip_field(wire_type, number, &mut rest, DecodeContext::default()).map_err(not_protobuf)?;
        if number > LAST_FIELD {
            unknown.extend_from_slice(&field[..field.len() - rest.len()]);
        }
    }
    Ok(unknown.into())
}

fn not_protobuf(error: prost::DecodeError) -> Error {
    invalid("a registration is not a protobuf message of that kind".to_owned()).with_source(error)
}

fn missing(field: &str) -> Error {
    invalid(format!("a registration lacks its {field}"))
}

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::InvalidMessage, context)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Registration {
        let topic = Topic::with_types("rock", "metal", "metallica").unwrap();
        let proxy = ProxyAddress::new("10.2.9.1", 7771).unwrap();
        Registration::new(OwnerType::Publisher, "bass", &topic, &proxy)
    }

    #[test]
    fn every_action_has_its_name() {
        for action in Action::ALL {
            assert_eq!(Action::from_name(action.name().as_bytes()), Some(action));
        }
        assert_eq!(Action::from_name(b"registerpublisher"), None);
    }

    #[test]
    fn unknown_fields_are_kept() {
        let mut frame = sample().encode().to_vec();
        frame.extend_from_slice(b"\x98\x06\x07\xa2\x06\x02hi");
        let read = Registration::decode(&frame.clone().into()).unwrap();
        assert_eq!(read.unknown_fields(), b"\x98\x06\x07\xa2\x06\x02hi");
        assert_eq!(read.encode(), frame);
        assert_ne!(read, sample());
    }

    #[test]
    fn what_is_missing_is_named() {
        for (frame, says) in [
            (&b""[..], "name"),
            (b"\x0a\x01n", "host"),
            (b"\x0a\x01n\x1a\x01h", "port"),
            (b"\x0a\x01n\x1a\x01h\x25\x01\0\0\0", "domain"),
            (b"\x0a\x01n\x1a\x01h\x25\x01\0\0\0\x2a\x01d\x40\x03", "ownerType 3"),
            (b"\x0a\xffn", "protobuf"),
            (b"\xff\xff", "protobuf"),
        ] {
            let error = Registration::decode(&Bytes::from_static(frame)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidMessage);
            assert!(error.to_string().contains(says), "{error}");
        }
        let least = b"\x0a\x01n\x1a\x01h\x25\x01\0\0\0\x2a\x01d";
        let least = Registration::decode(&Bytes::from_static(least)).unwrap();
        assert_eq!((least.subject(), least.types(), least.description()), (UNDEFINED, UNDEFINED, UNDEFINED));
        assert_eq!(least.topic().unwrap(), "d:undefined:undefined");
    }

    #[test]
    fn the_topic_is_built_from_its_parts() {
        for (domain, subject, types, topic) in [
            ("a", "b", "c", "a:b:c"),
            ("a", "*", "c", "a"),
            ("a", "b", "*", "a:b"),
            ("a", "b", "c:*:d", "a:b:c"),
            ("a:x", "b", "c", "a:x:b:c"),
        ] {
            let parts = Query::parts(OwnerType::Subscriber, domain, subject, types).registration();
            assert_eq!(parts.topic().unwrap(), topic);
        }
        for domain in ["", "*"] {
            let parts = Query::parts(OwnerType::Subscriber, domain, "b", "c").registration();
            assert_eq!(parts.topic().unwrap_err().kind(), ErrorKind::InvalidTopic);
        }
    }

    #[test]
    fn requests_that_cannot_be_read_make_their_reply() {
        let registrar = Bytes::from_static(b"h:registrar");
        let reply = |frames: &[&'static [u8]]| {
            let frames: Vec<_> = frames.iter().map(|frame| Bytes::from_static(frame)).collect();
            let reply = Request::read(&frames, &registrar).unwrap_err();
            (reply.action, reply.outcome.unwrap_err().0)
        };
        for frames in [&[][..], &[&b"allPublisher"[..], b"me"], &[b"allPublisher", b"me", b"", b""]] {
            assert_eq!(reply(frames), (Bytes::from(UNDEFINED), INVALID_FORMAT.to_owned()));
        }
        assert_eq!(reply(&[b"what", b"me", b""]), (Bytes::from("what"), UNKNOWN_REQUEST.to_owned()));
        let (action, status) = reply(&[b"registerPublisher", b"me", b"\xff"]);
        assert_eq!(action, "registerPublisher");
        assert!(status.contains("protobuf"), "{status}");
        assert!(reply(&[b"removeAllRegistration", b"me", b"\xff"]).1.contains("UTF-8"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(frame: Vec<u8>) {
            if let Ok(read) = Registration::decode(&frame.into()) {
                prop_assert_eq!(Registration::decode(&read.encode()).unwrap(), read);
            }
        }

        #[test]
        fn requests_read_back(
            name: String, host: String, port: i32, domain: String,
            subject: Option<String>, types: Option<String>, description: Option<String>,
            publishes in prop::option::of(any::<bool>()),
        ) {
            let owner = publishes.map(|yes| if yes { OwnerType::Publisher } else { OwnerType::Subscriber });
            let registration = Registration {
                name, description, host, port, domain, subject, types, owner, unknown: Bytes::new(),
            };
            let request = Request::register("me", registration);
            let registrar = Bytes::from_static(b"h:registrar");
            prop_assert_eq!(Request::read(&request.frames(), &registrar).unwrap(), request.clone());
            let reply = request.reply(&registrar, Ok(vec![request.frames()[2].clone()]));
            prop_assert_eq!(Reply::read(&reply.clone().into_frames()).unwrap(), reply);
        }
    }
}
