//! `[[outgoing]]`: a named way out of xMsg, to an exchange of a broker or to a ZeroMQ socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::connection::Kind;
use super::properties::{Properties, not_short};
use super::values::HeaderValue;
use super::zmq::{SocketMethod, ZmqFields};
use super::{ByteSize, DefinitionError, Definitions, OnFull, Span, check_name};
use crate::routing::Template;

/// What happens to messages while an outgoing connection is not active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenInactive {
    /// They are kept in the spool until it is active again.
    #[default]
    Store,
    /// Sends are refused with an error; nothing is subscribed to at the proxy.
    Reject,
}

/// What happens to a message that the broker returns because no queue is bound for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnReturn {
    /// It stays in the spool and is sent again after a pause, until somebody has bound a queue; others go on
    /// meanwhile.
    #[default]
    Retry,
    /// It goes to the dead letters.
    DeadLetter,
}

/// Which frames of a message a ZeroMQ socket is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frames {
    /// Topic, metadata, data, as xMsg has them.
    #[default]
    All,
    /// The data only.
    Data,
}

/// Whether headers that another product adds to what it sends are added, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderCompat {
    /// `X-Zato-Component` and `X-Zato-Msg-TS`, beside ours.
    Zato,
}

/// What the body of an AMQP message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// The data of the message as xMsg has it: texts and numbers are protobuf.
    #[default]
    Data,
    /// Texts and numbers as UTF-8 (`text/plain`), arrays as JSON, so that consumers can read them who do not
    /// know xMsg; all else as it is. A channel of xMsg gives the same message again, byte by byte.
    Plain,
}

/// A ZeroMQ socket that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SendingSocket {
    /// Each message goes to one of its PULL peers.
    Push,
    /// Each message goes to all SUB peers that want it.
    Pub,
    /// Each message goes to one of its peers; what they answer is dropped and counted.
    Dealer,
}

/// A named way out of xMsg. Fields that only AMQP or only ZeroMQ has are refused for the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutgoingDefinition {
    /// Its name, which no other outgoing connection has.
    pub name: String,
    /// `zmq`, or `amqp`, which may be left out when `connection` is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// AMQP: the name of the `[[connection]]` to the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// Topics of xMsg, each a prefix, whose messages flow out. None: only explicit sends do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subscribe: Vec<String>,
    /// Whether it is at work. Default: true.
    #[serde(default = "default_is_active")]
    pub is_active: bool,
    /// What happens to messages while it is not. Default: they are stored.
    #[serde(default)]
    pub when_inactive: WhenInactive,
    /// Whether it connects only once there is something to send. Default: false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lazy: bool,
    /// The most that its spool holds, in bytes on their way. Default: that of `[spool]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
    /// Messages older than this go to the dead letters. Default: that of `[spool]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// What happens when its spool is full. Default: that of `[spool]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// Returns the name of the folder of its spool, in the folder of all spools. Default: its name; it stays
    /// what it was when the connection is renamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool_dir: Option<String>,

    /// AMQP: the exchange. An empty text is the default exchange, whose routing keys are names of queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<String>,
    /// AMQP: the routing key, with `{topic}`, `{domain}`, `{subject}` and `{type}` of the message. Default:
    /// `{topic}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing_key: Option<String>,
    /// AMQP: whether the broker returns what no queue is bound for, instead of dropping it. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mandatory: Option<bool>,
    /// AMQP: how long the broker may take to confirm before the message is sent again over a new connection.
    /// Default: `"30s"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_timeout: Option<Span>,
    /// AMQP: messages on their way that are not confirmed yet. Default: 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// AMQP: what happens to a message that is returned. Default: it is sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_return: Option<OnReturn>,
    /// AMQP: the longest body that is sent. Default: `"128MiB"`, the limit of RabbitMQ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_message_size: Option<ByteSize>,
    /// AMQP: what the body is. Default: the data as xMsg has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Body>,
    /// AMQP: headers like those of another product.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_compat: Option<HeaderCompat>,

    /// ZeroMQ: what is sent of each message. Default: all frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<Frames>,
    /// ZeroMQ: the type of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_type: Option<SendingSocket>,
    /// ZeroMQ: whether it connects or is bound. Default: it connects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_method: Option<SocketMethod>,
    /// ZeroMQ: `tcp://host:port` or `ipc:///path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// ZeroMQ: CURVE; see [`Curve`](super::Curve).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve: Option<super::Curve>,

    /// AMQP: properties of each message, unless a send sets others.
    #[serde(default, skip_serializing_if = "is_default")]
    pub properties: Properties,
    /// AMQP: headers of each message, unless a send sets others of the same name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, HeaderValue>,
}

fn default_is_active() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives the field as it is")]
fn is_false(value: &bool) -> bool {
    !value
}

fn is_default(properties: &Properties) -> bool {
    *properties == Properties::default()
}

/// An outgoing connection to an exchange, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AmqpOutgoing {
    pub(crate) exchange: String,
    pub(crate) routing_key: Template,
    pub(crate) is_mandatory: bool,
    pub(crate) confirm_timeout: std::time::Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) on_return: OnReturn,
    pub(crate) max_message_size: u64,
    pub(crate) body: Body,
    pub(crate) header_compat: Option<HeaderCompat>,
    pub(crate) properties: Properties,
    pub(crate) headers: BTreeMap<String, HeaderValue>,
    /// The name of this proxy in its federation, for the outgoing connection of that: the exchange is
    /// declared, and messages say where they come from.
    pub(crate) origin: Option<String>,
    /// The durable subscription whose queue it leads to, and declares.
    pub(crate) durable: Option<super::DurableDefinition>,
}

impl AmqpOutgoing {
    /// Makes an outgoing connection to this exchange with this routing key, and the defaults.
    pub(crate) fn new(exchange: String, routing_key: Template) -> Self {
        Self {
            exchange,
            routing_key,
            is_mandatory: true,
            confirm_timeout: CONFIRM_TIMEOUT,
            max_in_flight: IN_FLIGHT_DEFAULT as usize,
            on_return: OnReturn::default(),
            max_message_size: MESSAGE_SIZE_MAX.get(),
            body: Body::default(),
            header_compat: None,
            properties: Properties::default(),
            headers: BTreeMap::new(),
            origin: None,
            durable: None,
        }
    }
}

/// An outgoing connection to a ZeroMQ socket, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ZmqOutgoing {
    pub(crate) socket_type: SendingSocket,
    pub(crate) socket: ZmqFields,
    pub(crate) frames: Frames,
}

/// Where an outgoing connection leads to, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Destination {
    Amqp(Box<AmqpOutgoing>),
    Zmq(ZmqOutgoing),
}

/// The largest window of messages that are not confirmed yet.
const IN_FLIGHT_MAX: u32 = 10_000;
const IN_FLIGHT_DEFAULT: u32 = 256;
const CONFIRM_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
/// The longest message that RabbitMQ takes unless it is configured otherwise.
pub(crate) const MESSAGE_SIZE_MAX: ByteSize = ByteSize::of(128 << 20);

impl OutgoingDefinition {
    /// Defines an outgoing connection to an exchange of the broker that `connection` leads to, with the
    /// defaults.
    ///
    /// ```
    /// use xmsg_connect::definition::OutgoingDefinition;
    ///
    /// let mut orders = OutgoingDefinition::amqp("orders", "crm", "orders");
    /// orders.subscribe = vec!["orders".into()];
    /// assert!(orders.is_active);
    /// ```
    #[must_use]
    pub fn amqp(name: impl Into<String>, connection: impl Into<String>, exchange: impl Into<String>) -> Self {
        Self {
            connection: Some(connection.into()),
            exchange: Some(exchange.into()),
            ..Self::with_defaults(name.into())
        }
    }

    /// Defines an outgoing connection to a ZeroMQ socket that listens at this address, with the defaults.
    ///
    /// ```
    /// use xmsg_connect::definition::{OutgoingDefinition, SendingSocket};
    ///
    /// let feed = OutgoingDefinition::zmq("feed", SendingSocket::Push, "tcp://127.0.0.1:5557");
    /// assert_eq!(feed.address.as_deref(), Some("tcp://127.0.0.1:5557"));
    /// ```
    #[must_use]
    pub fn zmq(name: impl Into<String>, socket_type: SendingSocket, address: impl Into<String>) -> Self {
        Self {
            kind: Some(Kind::Zmq),
            socket_type: Some(socket_type),
            address: Some(address.into()),
            ..Self::with_defaults(name.into())
        }
    }

    fn with_defaults(name: String) -> Self {
        Self {
            name,
            kind: None,
            connection: None,
            subscribe: Vec::new(),
            is_active: true,
            when_inactive: WhenInactive::default(),
            lazy: false,
            max_bytes: None,
            max_age: None,
            on_full: None,
            spool_dir: None,
            exchange: None,
            routing_key: None,
            mandatory: None,
            confirm_timeout: None,
            max_in_flight: None,
            on_return: None,
            max_message_size: None,
            body: None,
            header_compat: None,
            frames: None,
            socket_type: None,
            socket_method: None,
            address: None,
            curve: None,
            properties: Properties::default(),
            headers: BTreeMap::new(),
        }
    }

    /// Returns the name of the folder of its spool, in the folder of all spools.
    #[must_use]
    pub fn spool_folder(&self) -> &str {
        self.spool_dir.as_deref().unwrap_or(&self.name)
    }

    /// Returns what kind of peer it leads to.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.kind {
            Some(kind) => kind,
            None if self.connection.is_some() => Kind::Amqp,
            None => Kind::Zmq,
        }
    }

    /// Returns the length of the longest body that it takes, in bytes.
    pub(crate) fn message_max(&self) -> u64 {
        self.max_message_size.unwrap_or(MESSAGE_SIZE_MAX).get()
    }

    pub(super) fn field_error(&self, field: &str, what: impl Into<String>) -> DefinitionError {
        DefinitionError::new("outgoing", &self.name, field, what.into())
    }

    /// Checks that the values make sense, also beside the other definitions, and returns where the connection
    /// leads to.
    pub(crate) fn check(&self, all: &Definitions) -> Result<Destination, DefinitionError> {
        check_name("outgoing", &self.name)?;
        if let Some(folder) = &self.spool_dir {
            check_name("outgoing", folder)
                .map_err(|_| self.field_error("spool_dir", "has to be a plain name"))?;
        }
        super::check_topics(&self.subscribe).map_err(|what| self.field_error("subscribe", what))?;
        if self.max_bytes.is_some_and(|bytes| bytes.get() == 0) {
            return Err(self.field_error("max_bytes", "is 0: nothing could be sent"));
        }
        if self.max_age.is_some_and(|age| age.get().is_zero()) {
            return Err(self.field_error("max_age", "is 0: everything would be too old"));
        }
        match self.kind() {
            Kind::Amqp => self.check_amqp(all).map(|amqp| Destination::Amqp(Box::new(amqp))),
            Kind::Zmq => self.check_zmq().map(Destination::Zmq),
        }
    }

    fn check_amqp(&self, all: &Definitions) -> Result<AmqpOutgoing, DefinitionError> {
        let of_zmq = [
            ("socket_type", self.socket_type.is_some()),
            ("socket_method", self.socket_method.is_some()),
            ("address", self.address.is_some()),
            ("frames", self.frames.is_some()),
            ("curve", self.curve.is_some()),
        ];
        if let Some((field, _)) = of_zmq.into_iter().find(|(_, is_set)| *is_set) {
            return Err(self.field_error(field, "is for ZeroMQ only (kind = \"zmq\"), and this one is AMQP"));
        }
        let broker = all
            .named_broker(self.connection.as_ref())
            .map_err(|what| self.field_error("connection", what))?;
        let exchange = self.exchange.clone().unwrap_or_default();
        if let Some(what) = not_short(&exchange) {
            return Err(self.field_error("exchange", what));
        }
        let template = self.routing_key.as_deref().unwrap_or("{topic}");
        let routing_key = template.parse().map_err(|what: String| self.field_error("routing_key", what))?;
        let max_in_flight = self.max_in_flight.unwrap_or(IN_FLIGHT_DEFAULT);
        if !(1..=IN_FLIGHT_MAX).contains(&max_in_flight) {
            return Err(self.field_error(
                "max_in_flight",
                format!("is {max_in_flight}, and not from 1 to {IN_FLIGHT_MAX}"),
            ));
        }
        let confirm_timeout = self.confirm_timeout.map_or(CONFIRM_TIMEOUT, Span::get);
        if confirm_timeout.is_zero() {
            return Err(self.field_error("confirm_timeout", "is 0: no broker confirms in that time"));
        }
        if let Some((property, what)) = self.properties.invalid(&broker.username) {
            return Err(self.field_error(&format!("properties.{property}"), what));
        }
        for (name, value) in &self.headers {
            if let Some(what) = not_short(name) {
                return Err(self.field_error("headers", format!("the name {name:?} {what}")));
            }
            if matches!(value, HeaderValue::Float(value) if !value.is_finite()) {
                // It differs from itself: each change of any entry would make this link anew.
                return Err(
                    self.field_error(&format!("headers.{name}"), format!("is {value}, which is no number"))
                );
            }
        }
        Ok(AmqpOutgoing {
            is_mandatory: self.mandatory.unwrap_or(true),
            confirm_timeout,
            max_in_flight: max_in_flight as usize,
            on_return: self.on_return.unwrap_or_default(),
            max_message_size: self.message_max(),
            body: self.body.unwrap_or_default(),
            header_compat: self.header_compat,
            properties: self.properties.clone(),
            headers: self.headers.clone(),
            ..AmqpOutgoing::new(exchange, routing_key)
        })
    }

    fn check_zmq(&self) -> Result<ZmqOutgoing, DefinitionError> {
        let of_amqp = [
            ("connection", self.connection.is_some()),
            ("exchange", self.exchange.is_some()),
            ("routing_key", self.routing_key.is_some()),
            ("mandatory", self.mandatory.is_some()),
            ("confirm_timeout", self.confirm_timeout.is_some()),
            ("max_in_flight", self.max_in_flight.is_some()),
            ("on_return", self.on_return.is_some()),
            ("max_message_size", self.max_message_size.is_some()),
            ("body", self.body.is_some()),
            ("header_compat", self.header_compat.is_some()),
            ("properties", !is_default(&self.properties)),
            ("headers", !self.headers.is_empty()),
        ];
        if let Some((field, _)) = of_amqp.into_iter().find(|(_, is_set)| *is_set) {
            return Err(self.field_error(field, "is for AMQP only, and this one is a ZeroMQ socket"));
        }
        let Some(socket_type) = self.socket_type else {
            return Err(self.field_error("socket_type", "is missing: \"PUSH\", \"PUB\" or \"DEALER\""));
        };
        let socket = ZmqFields::check(self.address.as_deref(), self.socket_method, self.curve.as_ref());
        let socket = socket.map_err(|(field, what)| self.field_error(field, what))?;
        Ok(ZmqOutgoing { socket_type, socket, frames: self.frames.unwrap_or_default() })
    }
}
