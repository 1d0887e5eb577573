//! The actions of the scripted AMQP peer.

use amq_protocol::protocol::{AMQPClass, BasicProperties, basic, channel, connection};

use super::record::{Consumer, Publish};

/// Something that the peer does.
#[derive(Clone, Debug)]
pub struct Action {
    /// The connection, if the action is for a specific one.
    pub(super) connection: Option<usize>,
    pub(super) step: Step,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Method(u16, AMQPClass),
    Content(u16, AMQPClass, Box<BasicProperties>, Vec<u8>),
    Header,
    Bytes(Vec<u8>),
    DropConnection,
    Silence,
    StopReading,
}

/// A message for a consumer.
#[derive(Clone, Debug, Default)]
pub struct Delivery {
    /// The delivery tag by which the message is acknowledged.
    pub tag: u64,
    /// Whether the message is marked as possibly delivered before.
    pub is_redelivered: bool,
    /// The name of the exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// The properties, including the headers.
    pub properties: BasicProperties,
    /// The body.
    pub body: Vec<u8>,
}

impl Action {
    /// Ends the TCP connection without any message.
    #[must_use]
    pub fn drop_connection() -> Self {
        Self::new(Step::DropConnection)
    }

    /// Answers nothing on this connection from now on, and sends no heartbeats. The peer still records what
    /// it receives, and still performs actions from [`Peer::act`](super::Peer::act).
    #[must_use]
    pub fn silence() -> Self {
        Self::new(Step::Silence)
    }

    /// Reads nothing from this connection from now on. A client that continues to write is stuck once the
    /// system's buffers are full. The peer then doesn't detect that the client has gone.
    #[must_use]
    pub fn stop_reading() -> Self {
        Self::new(Step::StopReading)
    }

    /// Tells the client to publish nothing.
    #[must_use]
    pub fn block(reason: &str) -> Self {
        let blocked = connection::Blocked { reason: reason.into() };
        Self::method(0, AMQPClass::Connection(connection::AMQPMethod::Blocked(blocked)))
    }

    /// Tells the client that it may publish again.
    #[must_use]
    pub fn unblock() -> Self {
        Self::method(0, AMQPClass::Connection(connection::AMQPMethod::Unblocked(connection::Unblocked {})))
    }

    /// Closes the connection, for example with code 320.
    #[must_use]
    pub fn close_connection(code: u16, text: &str) -> Self {
        let close =
            connection::Close { reply_code: code, reply_text: text.into(), class_id: 0, method_id: 0 };
        Self::method(0, AMQPClass::Connection(connection::AMQPMethod::Close(close)))
    }

    /// Closes a channel, for example with code 403, 404 or 406.
    #[must_use]
    pub fn close_channel(channel: u16, code: u16, text: &str) -> Self {
        let close = channel::Close { reply_code: code, reply_text: text.into(), class_id: 0, method_id: 0 };
        Self::method(channel, AMQPClass::Channel(channel::AMQPMethod::Close(close)))
    }

    /// Sends any method.
    #[must_use]
    pub fn method(channel: u16, method: AMQPClass) -> Self {
        Self::new(Step::Method(channel, method))
    }

    /// Answers a greeting with the header of the peer's own protocol version, as a broker does that speaks no
    /// other version.
    #[must_use]
    pub fn header() -> Self {
        Self::new(Step::Header)
    }

    /// Sends these bytes as they are, such as frames that no library makes.
    #[must_use]
    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self::new(Step::Bytes(bytes))
    }

    pub(super) fn new(step: Step) -> Self {
        Self { connection: None, step }
    }

    fn on(self, connection: usize) -> Self {
        Self { connection: Some(connection), ..self }
    }

    fn basic(connection: usize, channel: u16, method: basic::AMQPMethod) -> Self {
        Self::method(channel, AMQPClass::Basic(method)).on(connection)
    }
}

impl Publish {
    /// Confirms the message.
    #[must_use]
    pub fn ack(&self) -> Action {
        self.acks(false)
    }

    /// Confirms the message and all unconfirmed messages before it.
    #[must_use]
    pub fn ack_up_to(&self) -> Action {
        self.acks(true)
    }

    /// Reports that the broker could not take the message.
    #[must_use]
    pub fn nack(&self) -> Action {
        self.nacks(false)
    }

    /// Reports that the broker could not take this message and all unconfirmed messages before it.
    #[must_use]
    pub fn nack_up_to(&self) -> Action {
        self.nacks(true)
    }

    /// Returns the message, as a broker does with a mandatory message that no queue gets. The test has to
    /// confirm it, too.
    #[must_use]
    pub fn give_back(&self) -> Action {
        let returned = basic::AMQPMethod::Return(basic::Return {
            reply_code: 312,
            reply_text: "NO_ROUTE".into(),
            exchange: self.exchange.as_str().into(),
            routing_key: self.routing_key.as_str().into(),
        });
        let properties = Box::new(self.properties.clone());
        let step = Step::Content(self.channel, AMQPClass::Basic(returned), properties, self.body.clone());
        Action::new(step).on(self.connection)
    }

    /// Closes the channel of the message, for example with code 403, 404 or 406.
    #[must_use]
    pub fn close_channel(&self, code: u16, text: &str) -> Action {
        Action::close_channel(self.channel, code, text).on(self.connection)
    }

    fn acks(&self, multiple: bool) -> Action {
        let ack = basic::AMQPMethod::Ack(basic::Ack { delivery_tag: self.tag, multiple });
        Action::basic(self.connection, self.channel, ack)
    }

    fn nacks(&self, multiple: bool) -> Action {
        let nack = basic::AMQPMethod::Nack(basic::Nack { delivery_tag: self.tag, multiple, requeue: false });
        Action::basic(self.connection, self.channel, nack)
    }
}

impl Consumer {
    /// Delivers a message to the consumer.
    #[must_use]
    pub fn deliver(&self, delivery: Delivery) -> Action {
        let deliver = basic::AMQPMethod::Deliver(basic::Deliver {
            consumer_tag: self.tag.as_str().into(),
            delivery_tag: delivery.tag,
            redelivered: delivery.is_redelivered,
            exchange: delivery.exchange.as_str().into(),
            routing_key: delivery.routing_key.as_str().into(),
        });
        let properties = Box::new(delivery.properties);
        let step = Step::Content(self.channel, AMQPClass::Basic(deliver), properties, delivery.body);
        Action::new(step).on(self.connection)
    }

    /// Delivers a message whose content header consists of the bytes `header`, which are sent as they are.
    /// The header contains the length of the body, and the body has to fit into one frame.
    #[must_use]
    pub fn deliver_raw(&self, tag: u64, header: &[u8], body: &[u8]) -> Vec<Action> {
        let deliver = basic::AMQPMethod::Deliver(basic::Deliver {
            consumer_tag: self.tag.as_str().into(),
            delivery_tag: tag,
            redelivered: false,
            exchange: "".into(),
            routing_key: "raw".into(),
        });
        let mut bytes = Vec::new();
        for (kind, payload) in [(2, header), (3, body)] {
            bytes.push(kind);
            bytes.extend(self.channel.to_be_bytes());
            bytes.extend((payload.len() as u32).to_be_bytes());
            bytes.extend(payload);
            bytes.push(0xCE);
        }
        vec![Action::basic(self.connection, self.channel, deliver), Action::bytes(bytes).on(self.connection)]
    }

    /// Ends the TCP connection of the consumer without any message.
    #[must_use]
    pub fn hang_up(&self) -> Action {
        Action::drop_connection().on(self.connection)
    }

    /// Cancels the consumer, as a broker does when its queue is deleted.
    #[must_use]
    pub fn cancel(&self) -> Action {
        let cancel = basic::Cancel { consumer_tag: self.tag.as_str().into(), nowait: true };
        Action::basic(self.connection, self.channel, basic::AMQPMethod::Cancel(cancel))
    }
}
