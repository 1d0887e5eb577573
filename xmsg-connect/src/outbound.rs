//! Messages that are sent out, with what one send sets, and their bytes in the spool.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use uuid::Uuid;
use xmsg_core::Message;

use crate::definition::{DeliveryMode, HeaderValue, Properties};
use crate::error::{Error, ErrorKind, Result};

/// A message with what this one send of it sets. What is not set comes from the definition of the outgoing
/// connection. To a ZeroMQ socket only the message is sent, since ZeroMQ has none of the rest.
///
/// ```
/// use xmsg_connect::definition::Properties;
/// use xmsg_connect::Outbound;
/// use xmsg_core::Message;
///
/// let order = Message::of("orders:new", "17 pieces")?;
/// let urgent = Outbound::new(order)
///     .routing_key("urgent")
///     .properties(Properties { priority: Some(9), ..Properties::default() })
///     .header("X-Retries", 3);
/// # let _ = urgent;
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Outbound {
    pub(crate) message: Message,
    pub(crate) id: Option<Uuid>,
    pub(crate) exchange: Option<String>,
    pub(crate) routing_key: Option<String>,
    pub(crate) properties: Properties,
    pub(crate) headers: BTreeMap<String, HeaderValue>,
}

impl Outbound {
    /// Makes a send of this message, which is otherwise as the definition of the outgoing connection says.
    #[must_use]
    pub fn new(message: Message) -> Self {
        Self {
            message,
            id: None,
            exchange: None,
            routing_key: None,
            properties: Properties::default(),
            headers: BTreeMap::new(),
        }
    }

    /// Sets the identifier, instead of a new one. Whoever sends a message a second time, because it is not
    /// known whether it was accepted, gives both the same, so that its receivers can tell that they are one.
    /// An outgoing connection has no two messages of one identifier on their way at the same time.
    ///
    /// ```
    /// use uuid::Uuid;
    /// use xmsg_connect::Outbound;
    /// use xmsg_core::Message;
    ///
    /// let id = Uuid::new_v4(); // kept by the caller until the message is known to be accepted
    /// let order = Outbound::new(Message::of("orders:new", "17 pieces")?).id(id);
    /// # let _ = order;
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    #[must_use]
    pub fn id(mut self, id: Uuid) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets the exchange. An empty text is the default exchange.
    #[must_use]
    pub fn exchange(mut self, exchange: impl Into<String>) -> Self {
        self.exchange = Some(exchange.into());
        self
    }

    /// Sets the routing key, as it stands. Placeholders such as `{topic}` mean nothing here.
    #[must_use]
    pub fn routing_key(mut self, routing_key: impl Into<String>) -> Self {
        self.routing_key = Some(routing_key.into());
        self
    }

    /// Sets properties, each of which counts before that of the definition.
    #[must_use]
    pub fn properties(mut self, properties: Properties) -> Self {
        self.properties = properties;
        self
    }

    /// Sets a header, instead of that of the same name in the definition.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }
}

impl From<Message> for Outbound {
    fn from(message: Message) -> Self {
        Self::new(message)
    }
}

/// An entry of the spool: an [`Outbound`] with the identifier that it got when it was accepted.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// The identifier, which is the same for each attempt to send the message.
    pub(crate) id: Uuid,
    pub(crate) outbound: Outbound,
}

impl Stored {
    pub(crate) fn new(outbound: Outbound) -> Self {
        Self { id: outbound.id.unwrap_or_else(Uuid::new_v4), outbound }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let Outbound { message, id: _, exchange, routing_key, properties, headers } = &self.outbound;
        let [topic, meta, data] = message.clone().into_frames();
        let wire = Wire {
            id: Bytes::copy_from_slice(self.id.as_bytes()),
            topic,
            meta,
            data,
            exchange: exchange.clone(),
            routing_key: routing_key.clone(),
            properties: (*properties != Properties::default()).then(|| WireProperties::of(properties)),
            headers: headers.iter().map(|(name, value)| WireHeader::of(name, value)).collect(),
        };
        wire.encode_to_vec().into()
    }

    /// Reads what [`encode`](Self::encode) wrote. The frames of the message are slices of `bytes`.
    pub(crate) fn decode(bytes: Bytes) -> Result<Self> {
        let damaged = |what: &str| {
            Error::new(ErrorKind::Storage, format!("an entry of the spool can't be read: {what}"))
        };
        let wire =
            Wire::decode(bytes).map_err(|error| damaged("it is not what was written").with_source(error))?;
        let id = Uuid::from_slice(&wire.id).map_err(|_| damaged("it has no identifier"))?;
        let outbound = Outbound {
            message: Message::from_frames(wire.topic, wire.meta, wire.data),
            id: Some(id),
            exchange: wire.exchange,
            routing_key: wire.routing_key,
            properties: wire.properties.map(WireProperties::into_properties).unwrap_or_default(),
            headers: wire.headers.into_iter().filter_map(WireHeader::into_header).collect(),
        };
        Ok(Self { id, outbound })
    }
}

/// An entry of the spool on disk. Numbers of fields are never used again for something else: files of former
/// versions are read.
#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(bytes = "bytes", tag = "1")]
    id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    topic: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    meta: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
    #[prost(string, optional, tag = "5")]
    exchange: Option<String>,
    #[prost(string, optional, tag = "6")]
    routing_key: Option<String>,
    #[prost(message, optional, tag = "7")]
    properties: Option<WireProperties>,
    #[prost(message, repeated, tag = "8")]
    headers: Vec<WireHeader>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireProperties {
    #[prost(string, optional, tag = "1")]
    content_type: Option<String>,
    #[prost(string, optional, tag = "2")]
    content_encoding: Option<String>,
    /// The number of AMQP: 2 for persistent, 1 for transient.
    #[prost(uint32, optional, tag = "3")]
    delivery_mode: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    priority: Option<u32>,
    #[prost(string, optional, tag = "5")]
    correlation_id: Option<String>,
    #[prost(string, optional, tag = "6")]
    reply_to: Option<String>,
    #[prost(string, optional, tag = "7")]
    expiration: Option<String>,
    #[prost(string, optional, tag = "8")]
    message_id: Option<String>,
    #[prost(uint64, optional, tag = "9")]
    timestamp: Option<u64>,
    #[prost(string, optional, tag = "10")]
    kind: Option<String>,
    #[prost(string, optional, tag = "11")]
    user_id: Option<String>,
    #[prost(string, optional, tag = "12")]
    app_id: Option<String>,
    #[prost(string, optional, tag = "13")]
    cluster_id: Option<String>,
}

impl WireProperties {
    fn of(properties: &Properties) -> Self {
        let properties = properties.clone();
        Self {
            content_type: properties.content_type,
            content_encoding: properties.content_encoding,
            delivery_mode: properties.delivery_mode.map(|mode| match mode {
                DeliveryMode::Persistent => 2,
                DeliveryMode::Transient => 1,
            }),
            priority: properties.priority.map(u32::from),
            correlation_id: properties.correlation_id,
            reply_to: properties.reply_to,
            expiration: properties.expiration,
            message_id: properties.message_id,
            timestamp: properties.timestamp,
            kind: properties.kind,
            user_id: properties.user_id,
            app_id: properties.app_id,
            cluster_id: properties.cluster_id,
        }
    }

    fn into_properties(self) -> Properties {
        Properties {
            content_type: self.content_type,
            content_encoding: self.content_encoding,
            delivery_mode: self.delivery_mode.map(|mode| match mode {
                1 => DeliveryMode::Transient,
                _ => DeliveryMode::Persistent,
            }),
            priority: self.priority.and_then(|priority| u8::try_from(priority).ok()),
            correlation_id: self.correlation_id,
            reply_to: self.reply_to,
            expiration: self.expiration,
            message_id: self.message_id,
            timestamp: self.timestamp,
            kind: self.kind,
            user_id: self.user_id,
            app_id: self.app_id,
            cluster_id: self.cluster_id,
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireHeader {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(oneof = "WireValue", tags = "2, 3, 4, 5")]
    value: Option<WireValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum WireValue {
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(sint64, tag = "3")]
    Integer(i64),
    #[prost(double, tag = "4")]
    Float(f64),
    #[prost(string, tag = "5")]
    Text(String),
}

impl WireHeader {
    fn of(name: &str, value: &HeaderValue) -> Self {
        let value = match value {
            HeaderValue::Bool(value) => WireValue::Bool(*value),
            HeaderValue::Integer(value) => WireValue::Integer(*value),
            HeaderValue::Float(value) => WireValue::Float(*value),
            HeaderValue::Text(value) => WireValue::Text(value.clone()),
        };
        Self { name: name.to_owned(), value: Some(value) }
    }

    fn into_header(self) -> Option<(String, HeaderValue)> {
        let value = match self.value? {
            WireValue::Bool(value) => HeaderValue::Bool(value),
            WireValue::Integer(value) => HeaderValue::Integer(value),
            WireValue::Float(value) => HeaderValue::Float(value),
            WireValue::Text(value) => HeaderValue::Text(value),
        };
        Some((self.name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_to_the_same() {
        let full = Properties {
            content_type: Some("a/b".into()),
            content_encoding: Some("gzip".into()),
            delivery_mode: Some(DeliveryMode::Transient),
            priority: Some(0),
            correlation_id: Some(String::new()),
            reply_to: Some("r".into()),
            expiration: Some("1".into()),
            message_id: Some("m".into()),
            timestamp: Some(7),
            kind: Some("k".into()),
            user_id: Some("u".into()),
            app_id: Some("a".into()),
            cluster_id: Some("c".into()),
        };
        let message = Message::of("orders:new", 17).unwrap();
        let plain = Outbound::new(message.clone());
        let whole = Outbound::new(message.clone())
            .exchange("")
            .routing_key("key")
            .properties(full)
            .header("text", "t")
            .header("number", -3)
            .header("share", 0.5)
            .header("yes", true);
        for outbound in [plain, whole] {
            let stored = Stored::new(outbound);
            let read = Stored::decode(stored.encode()).unwrap();
            assert_eq!(read.id, stored.id);
            let sent = stored.outbound.id(stored.id);
            assert_eq!(format!("{:?}", read.outbound), format!("{sent:?}"));
            assert_eq!(read.outbound.message.into_frames(), message.clone().into_frames());
        }
    }

    #[test]
    fn what_is_no_entry_is_an_error() {
        for bad in [&b""[..], b"\xff", b"hello", b"\x0a\x03abc"] {
            assert_eq!(Stored::decode(Bytes::from_static(bad)).unwrap_err().kind(), ErrorKind::Storage);
        }
    }
}
