//! The record of what the scripted AMQP peer received from clients.

use amq_protocol::protocol::{AMQPClass, BasicProperties, exchange, queue};
use amq_protocol::types::FieldTable;

/// Something that the peer received.
#[derive(Clone, Debug)]
pub struct Received {
    /// The number of the connection, counted from 1.
    pub connection: usize,
    /// The number of the channel, or 0 for the connection itself.
    pub channel: u16,
    /// What was received.
    pub what: What,
}

/// The kinds of things that the peer can receive.
#[derive(Clone, Debug)]
pub enum What {
    /// A client connected.
    Connected,
    /// The header with the version of the protocol.
    Greeting,
    /// The client's answer to the first step of the handshake.
    Login {
        /// The name of the user.
        user: String,
        /// The password.
        password: String,
        /// The client's properties.
        properties: FieldTable,
    },
    /// The end of the handshake.
    Open {
        /// The name of the virtual host.
        virtual_host: String,
    },
    /// A complete message.
    Publish(Box<Publish>),
    /// A new consumer.
    Consume(Consumer),
    /// The answer of a consumer to a message: an ack, a nack or a reject.
    Settle(Settlement),
    /// A heartbeat.
    Heartbeat,
    /// Any other method.
    Method(AMQPClass),
    /// The connection has ended in any way.
    Ended,
}

/// A message that a client published.
#[derive(Clone, Debug)]
pub struct Publish {
    /// The number of the connection, counted from 1.
    pub connection: usize,
    /// The number of the channel.
    pub channel: u16,
    /// The delivery tag by which the message is confirmed, counted from 1 on each channel. It is 0 on a
    /// channel without confirms.
    pub tag: u64,
    /// The name of the exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// Whether the client wants the message back if no queue gets it.
    pub is_mandatory: bool,
    /// The properties, including the headers.
    pub properties: BasicProperties,
    /// The body.
    pub body: Vec<u8>,
}

/// A consumer, which gets messages with [`deliver`](Self::deliver).
#[derive(Clone, Debug)]
pub struct Consumer {
    /// The number of the connection, counted from 1.
    pub connection: usize,
    /// The number of the channel.
    pub channel: u16,
    /// The consumer tag.
    pub tag: String,
    /// The name of the queue.
    pub queue: String,
    /// Whether the consumer does not acknowledge messages.
    pub is_no_ack: bool,
    /// Whether the client does not wait for an answer.
    pub is_nowait: bool,
    /// How many unacknowledged messages the consumer accepts, or 0 for any number or if it has not said so.
    pub prefetch_count: u16,
}

/// The answer of a consumer to a message that it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The number of the connection, counted from 1.
    pub connection: usize,
    /// The number of the channel.
    pub channel: u16,
    /// The delivery tag.
    pub tag: u64,
    /// Whether the message was acknowledged, given back or rejected.
    pub how: How,
    /// Whether the answer is for all messages up to that tag.
    pub is_multiple: bool,
}

/// How a consumer answered a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The method `basic.ack`.
    Ack,
    /// The method `basic.nack`.
    Nack {
        /// Whether the broker is to deliver the message again.
        requeue: bool,
    },
    /// The method `basic.reject`.
    Reject {
        /// Whether the broker is to deliver the message again.
        requeue: bool,
    },
}

impl Received {
    /// Returns the message, if this is one.
    #[must_use]
    pub fn publish(&self) -> Option<&Publish> {
        match &self.what {
            What::Publish(publish) => Some(publish),
            _ => None,
        }
    }

    /// Returns the ack, nack or reject, if this is one.
    #[must_use]
    pub fn settlement(&self) -> Option<&Settlement> {
        match &self.what {
            What::Settle(settlement) => Some(settlement),
            _ => None,
        }
    }

    /// Returns whether this declares a queue or an exchange.
    #[must_use]
    pub fn is_declaration(&self) -> bool {
        matches!(
            self.what,
            What::Method(
                AMQPClass::Queue(queue::AMQPMethod::Declare(_))
                    | AMQPClass::Exchange(exchange::AMQPMethod::Declare(_))
            )
        )
    }
}
