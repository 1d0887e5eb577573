//! `[[channel]]`: a named way into xMsg, from a queue of a broker or from a ZeroMQ socket.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use xmsg_core::Topic;

use super::connection::Kind;
use super::properties::not_short;
use super::zmq::{Curve, SocketMethod, ZmqFields};
use super::{DefinitionError, Definitions, Span, check_name};

/// When a message of a queue is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AckMode {
    /// Once the target has it safely.
    #[default]
    OnConfirm,
    /// As soon as it has come; a fault behind that may lose it.
    Ack,
    /// It is rejected after the target has it: with a dead-letter exchange, a copy ends there.
    Reject,
    /// The broker does not wait for acknowledgements: what is on its way when the connection breaks is lost,
    /// and nothing bounds what the broker sends.
    NoAck,
}

/// What happens to a message of a queue that the target does not take for a fault of its own: it is full, not
/// active, or away. One that no target could take is rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// It is held without an acknowledgement, and tried again after `requeue_delay`. If the connection ends
    /// meanwhile, it is back in its queue.
    #[default]
    Requeue,
    /// It is rejected: it goes to the dead-letter exchange of the queue, and is dropped by the broker if
    /// there is none.
    Reject,
}

/// Whether a channel makes its queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueDeclare {
    /// It checks that the queue is there.
    #[default]
    Passive,
    /// It makes the queue if it is not there: durable, of the type `quorum`, with the dead-letter exchange
    /// and the delivery limit of the channel.
    Active,
    /// It does neither.
    None,
}

/// Where the broker puts what is rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLetterExchange {
    /// The name of the exchange.
    pub exchange: String,
    /// The routing key that it gets there. Default: the one it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing_key: Option<String>,
}

/// A ZeroMQ socket that receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ReceivingSocket {
    /// It takes its share of what PUSH peers send.
    Pull,
    /// It takes what it has subscribed to of what PUB peers send.
    Sub,
}

/// Where the messages of a channel go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `topic:NAME`: they are published under this topic.
    Topic(Topic),
    /// `original`: they are published under the topic that they had when they left xMsg. Others are refused.
    Original,
    /// `outgoing:NAME`: they go to this outgoing connection.
    Outgoing(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("topic", topic)) => match topic.parse::<Topic>() {
                Ok(topic) => Ok(Self::Topic(topic)),
                Err(error) => Err(format!("names a topic that can't be used: {error}")),
            },
            Some(("outgoing", name)) => Ok(Self::Outgoing(name.to_owned())),
            None if text == "original" => Ok(Self::Original),
            _ => Err(format!("{text:?} is neither \"topic:NAME\" nor \"outgoing:NAME\" nor \"original\"")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(topic) => write!(f, "topic:{topic}"),
            Self::Original => f.write_str("original"),
            Self::Outgoing(name) => write!(f, "outgoing:{name}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A named way into xMsg. Fields that only AMQP or only ZeroMQ has are refused for the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelDefinition {
    /// Its name, which no other channel has.
    pub name: String,
    /// `zmq`, or `amqp`, which may be left out when `connection` is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// AMQP: the name of the `[[connection]]` to the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// Where messages go.
    pub target: Target,
    /// Whether it is at work. Default: true.
    #[serde(default = "default_is_active")]
    pub is_active: bool,

    /// AMQP: the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// AMQP: when messages are acknowledged. Default: once the target has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_mode: Option<AckMode>,
    /// AMQP: messages that are not acknowledged yet; 0 for no bound. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefetch_count: Option<u16>,
    /// AMQP: what the tag of the consumer begins with, by which the broker lists it. Default: `xmsg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer_tag_prefix: Option<String>,
    /// AMQP: what happens to a message that the target does not take for a fault of its own. Default: it is
    /// held, and tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,
    /// AMQP: how long it waits before it is tried again. Default: `"1s"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requeue_delay: Option<Span>,
    /// AMQP: how often a message may come back to a queue of the type `quorum`, which counts that, before it
    /// is rejected: such as one that ends the process whenever it comes. Default: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_limit: Option<u32>,
    /// AMQP: whether the queue is made. Default: it is only checked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_declare: Option<QueueDeclare>,
    /// AMQP: where the broker puts what is rejected, for a queue that is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterExchange>,

    /// ZeroMQ: the type of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_type: Option<ReceivingSocket>,
    /// ZeroMQ: whether it connects or is bound. Default: it connects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_method: Option<SocketMethod>,
    /// ZeroMQ: `tcp://host:port` or `ipc:///path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// ZeroMQ, SUB: what it subscribes to; an empty text is everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_keys: Option<Vec<String>>,
    /// ZeroMQ: CURVE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve: Option<Curve>,
}

fn default_is_active() -> bool {
    true
}

/// A channel from a queue, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AmqpChannel {
    pub(crate) queue: String,
    pub(crate) ack_mode: AckMode,
    pub(crate) prefetch: u16,
    pub(crate) consumer_tag_prefix: String,
    pub(crate) on_error: OnError,
    pub(crate) requeue_delay: std::time::Duration,
    pub(crate) delivery_limit: u32,
    pub(crate) queue_declare: QueueDeclare,
    pub(crate) dead_letter: Option<DeadLetterExchange>,
}

/// A channel from a ZeroMQ socket, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ZmqChannel {
    pub(crate) socket_type: ReceivingSocket,
    pub(crate) socket: ZmqFields,
    pub(crate) sub_keys: Vec<String>,
}

/// Where a channel comes from, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    Amqp(AmqpChannel),
    Zmq(ZmqChannel),
}

impl ChannelDefinition {
    /// Defines a channel from a queue of the broker that this connection leads to, with the defaults.
    #[must_use]
    pub fn amqp(
        name: impl Into<String>,
        connection: impl Into<String>,
        queue: impl Into<String>,
        target: Target,
    ) -> Self {
        let with_defaults = Self::with_defaults(name.into(), target);
        Self { connection: Some(connection.into()), queue: Some(queue.into()), ..with_defaults }
    }

    /// Defines a channel from a ZeroMQ socket that listens at this address, with the defaults. A SUB
    /// subscribes to everything.
    #[must_use]
    pub fn zmq(
        name: impl Into<String>,
        socket_type: ReceivingSocket,
        address: impl Into<String>,
        target: Target,
    ) -> Self {
        let sub_keys = (socket_type == ReceivingSocket::Sub).then(|| vec![String::new()]);
        Self {
            kind: Some(Kind::Zmq),
            socket_type: Some(socket_type),
            address: Some(address.into()),
            sub_keys,
            ..Self::with_defaults(name.into(), target)
        }
    }

    fn with_defaults(name: String, target: Target) -> Self {
        Self {
            name,
            kind: None,
            connection: None,
            target,
            is_active: true,
            queue: None,
            ack_mode: None,
            prefetch_count: None,
            consumer_tag_prefix: None,
            on_error: None,
            requeue_delay: None,
            delivery_limit: None,
            queue_declare: None,
            dead_letter: None,
            socket_type: None,
            socket_method: None,
            address: None,
            sub_keys: None,
            curve: None,
        }
    }

    /// Returns what kind of peer the channel comes from.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.kind {
            Some(kind) => kind,
            None if self.connection.is_some() => Kind::Amqp,
            None => Kind::Zmq,
        }
    }

    fn field_error(&self, field: &str, what: impl Into<String>) -> DefinitionError {
        DefinitionError::new("channel", &self.name, field, what.into())
    }

    /// Checks that the values make sense, also beside the other definitions, and returns where the channel
    /// comes from.
    pub(crate) fn check(&self, all: &Definitions) -> Result<Source, DefinitionError> {
        check_name("channel", &self.name)?;
        if let Target::Outgoing(name) = &self.target
            && !all.outgoing.iter().any(|outgoing| outgoing.name == *name)
        {
            return Err(self.field_error(
                "target",
                format!("names the outgoing connection {name:?}, which is not defined"),
            ));
        }
        match self.kind() {
            Kind::Amqp => self.check_amqp(all).map(Source::Amqp),
            Kind::Zmq => self.check_zmq().map(Source::Zmq),
        }
    }

    fn check_amqp(&self, all: &Definitions) -> Result<AmqpChannel, DefinitionError> {
        let of_zmq = [
            ("socket_type", self.socket_type.is_some()),
            ("socket_method", self.socket_method.is_some()),
            ("address", self.address.is_some()),
            ("sub_keys", self.sub_keys.is_some()),
            ("curve", self.curve.is_some()),
        ];
        if let Some((field, _)) = of_zmq.into_iter().find(|(_, is_set)| *is_set) {
            return Err(self.field_error(field, "is for ZeroMQ only (kind = \"zmq\"), and this one is AMQP"));
        }
        all.named_broker(self.connection.as_ref()).map_err(|what| self.field_error("connection", what))?;
        let queue = self.queue.clone().filter(|queue| !queue.is_empty());
        let Some(queue) = queue else { return Err(self.field_error("queue", "is missing")) };
        let prefix = self.consumer_tag_prefix.clone().unwrap_or_else(|| "xmsg".to_owned());
        let dead = self.dead_letter.as_ref();
        let short = [
            ("queue", Some(&queue)),
            ("consumer_tag_prefix", Some(&prefix)),
            ("dead_letter", dead.map(|dead| &dead.exchange)),
            ("dead_letter", dead.and_then(|dead| dead.routing_key.as_ref())),
        ];
        for (field, text) in short {
            if let Some(what) = text.and_then(|text| not_short(text)) {
                return Err(self.field_error(field, what));
            }
        }
        if prefix.len() > 200 {
            return Err(
                self.field_error("consumer_tag_prefix", "has more than 200 bytes: the tag adds to it")
            );
        }
        let queue_declare = self.queue_declare.unwrap_or_default();
        if dead.is_some() && queue_declare != QueueDeclare::Active {
            let what = "is for a queue that the channel makes (queue_declare = \"active\"); of another, the broker knows its own";
            return Err(self.field_error("dead_letter", what));
        }
        let delivery_limit = self.delivery_limit.unwrap_or(5);
        if delivery_limit == 0 {
            return Err(self.field_error("delivery_limit", "is 0: nothing would be tried"));
        }
        Ok(AmqpChannel {
            queue,
            ack_mode: self.ack_mode.unwrap_or_default(),
            prefetch: self.prefetch_count.unwrap_or(100),
            consumer_tag_prefix: prefix,
            on_error: self.on_error.unwrap_or_default(),
            requeue_delay: self.requeue_delay.unwrap_or(Span::seconds(1)).get(),
            delivery_limit,
            queue_declare,
            dead_letter: self.dead_letter.clone(),
        })
    }

    fn check_zmq(&self) -> Result<ZmqChannel, DefinitionError> {
        let of_amqp = [
            ("connection", self.connection.is_some()),
            ("queue", self.queue.is_some()),
            ("ack_mode", self.ack_mode.is_some()),
            ("prefetch_count", self.prefetch_count.is_some()),
            ("consumer_tag_prefix", self.consumer_tag_prefix.is_some()),
            ("on_error", self.on_error.is_some()),
            ("requeue_delay", self.requeue_delay.is_some()),
            ("delivery_limit", self.delivery_limit.is_some()),
            ("queue_declare", self.queue_declare.is_some()),
            ("dead_letter", self.dead_letter.is_some()),
        ];
        if let Some((field, _)) = of_amqp.into_iter().find(|(_, is_set)| *is_set) {
            return Err(self.field_error(field, "is for AMQP only, and this one is a ZeroMQ socket"));
        }
        let Some(socket_type) = self.socket_type else {
            return Err(self.field_error("socket_type", "is missing: \"PULL\" or \"SUB\""));
        };
        let socket = ZmqFields::check(self.address.as_deref(), self.socket_method, self.curve.as_ref());
        let socket = socket.map_err(|(field, what)| self.field_error(field, what))?;
        let sub_keys = match (socket_type, &self.sub_keys) {
            (ReceivingSocket::Sub, Some(keys)) if !keys.is_empty() => keys.clone(),
            (ReceivingSocket::Sub, _) => {
                return Err(
                    self.field_error("sub_keys", "is missing or empty: [\"\"] subscribes to everything")
                );
            }
            (ReceivingSocket::Pull, None) => Vec::new(),
            (ReceivingSocket::Pull, Some(_)) => {
                return Err(self.field_error("sub_keys", "is for SUB only: a PULL takes everything"));
            }
        };
        Ok(ZmqChannel { socket_type, socket, sub_keys })
    }
}
