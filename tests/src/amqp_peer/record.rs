//! What came from clients.

use amq_protocol::protocol::{AMQPClass, BasicProperties, exchange, queue};
use amq_protocol::types::FieldTable;

/// Something that came.
#[derive(Clone, Debug)]
pub struct Received {
    /// The connection, counted from 1.
    pub connection: usize,
    /// The channel; 0 for what belongs to the connection.
    pub channel: u16,
    /// What it was.
    pub what: What,
}

/// What it is.
#[derive(Clone, Debug)]
pub enum What {
    /// Somebody connected.
    Connected,
    /// The header with the version of the protocol.
    Greeting,
    /// An answer to the first step of the handshake.
    Login {
        /// The name of the user.
        user: String,
        /// The password.
        password: String,
        /// What the client says about itself.
        properties: FieldTable,
    },
    /// The end of the handshake.
    Open {
        /// The name of the virtual host.
        virtual_host: String,
    },
    /// A message, whole.
    Publish(Box<Publish>),
    /// A consumer.
    Consume(Consumer),
    /// What a consumer says about a message.
    Settle(Settlement),
    /// A sign of life.
    Heartbeat,
    /// Any other method.
    Method(AMQPClass),
    /// The connection has ended, in whatever way.
    Ended,
}

/// A message that a client published.
#[derive(Clone, Debug)]
pub struct Publish {
    /// The connection, counted from 1.
    pub connection: usize,
    /// The number of its channel.
    pub channel: u16,
    /// The number by which it is confirmed, counted from 1 on each channel; 0 on a channel without confirms.
    pub tag: u64,
    /// The name of the exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// Whether the client wants it back if no queue gets it.
    pub is_mandatory: bool,
    /// Its properties, with its headers.
    pub properties: BasicProperties,
    /// Its body.
    pub body: Vec<u8>,
}

/// A consumer, to be given messages with [`deliver`](Self::deliver).
#[derive(Clone, Debug)]
pub struct Consumer {
    /// The connection, counted from 1.
    pub connection: usize,
    /// The number of its channel.
    pub channel: u16,
    /// Its name.
    pub tag: String,
    /// The name of the queue.
    pub queue: String,
    /// Whether it acknowledges nothing.
    pub is_no_ack: bool,
    /// Whether it waits for no answer.
    pub is_nowait: bool,
    /// How many messages it takes before it acknowledges some, as far as it said so; 0: any number.
    pub prefetch_count: u16,
}

/// What a consumer says about a message that it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The connection, counted from 1.
    pub connection: usize,
    /// The number of its channel.
    pub channel: u16,
    /// The number of the delivery.
    pub tag: u64,
    /// Whether it was acknowledged, given back or rejected.
    pub how: How,
    /// Whether it is meant for all up to that number.
    pub is_multiple: bool,
}

/// How a message was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// `basic.ack`
    Ack,
    /// `basic.nack`
    Nack {
        /// Whether the broker is to deliver it again.
        requeue: bool,
    },
    /// `basic.reject`
    Reject {
        /// Whether the broker is to deliver it again.
        requeue: bool,
    },
}

impl Received {
    /// The message, if it is one.
    #[must_use]
    pub fn publish(&self) -> Option<&Publish> {
        match &self.what {
            What::Publish(publish) => Some(publish),
            _ => None,
        }
    }

    /// The ack, nack or reject, if it is one.
    #[must_use]
    pub fn settlement(&self) -> Option<&Settlement> {
        match &self.what {
            What::Settle(settlement) => Some(settlement),
            _ => None,
        }
    }

    /// Whether it declares a queue or an exchange.
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
