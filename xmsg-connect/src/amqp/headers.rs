//! Messages of xMsg as messages of AMQP, and back. One that went through a broker comes out the same, byte by
//! byte: its topic and its metadata travel as headers. Foreign messages become messages of xMsg by rules,
//! which are those of [`inbound`].
//!
//! | header | type | what it is |
//! |---|---|---|
//! | `X-Xmsg-Topic` | long string | the topic |
//! | `X-Xmsg-Meta` | byte array | the metadata, as it was on the wire |
//! | `X-Xmsg-Id` | long string | the identifier of the message: the same each time it is sent |
//! | `X-Xmsg-Component` | long string | which outgoing connection sent it |
//! | `X-Xmsg-Body` | long string | `plain` where the body is the data in another form ([`Body::Plain`]) |
//! | `X-Xmsg-Msg-TS` | long string | when it was accepted: RFC 3339, UTC, in milliseconds |
//! | `X-Xmsg-Origin` | long string | in a federation: the name of the proxy that it was published at |
//!
//! The headers of a message of xMsg stand beside these, under their own names; in a federation, they stand in
//! the metadata alone, which has twice the room then.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, ByteArray, FieldTable, ShortString};
use uuid::Uuid;
use xmsg_core::data::mime;
use xmsg_core::{Message, Meta, Topic};

use super::plain;
use crate::definition::{AmqpOutgoing, Body, DeliveryMode, HeaderCompat, HeaderValue, Target, not_short};
use crate::outbound::{Outbound, Stored};

const TOPIC: &str = "X-Xmsg-Topic";
const META: &str = "X-Xmsg-Meta";
/// The memory in bytes behind a body that may be left unused.
const SPARE_MAX: usize = 64 << 10;
/// Tables and lists within each other that are shown.
const NESTED_MAX: usize = 16;
/// The header with the identifier of a message.
pub(crate) const ID: &str = "X-Xmsg-Id";
/// The header with the name of the proxy that a message of a federation was published at.
const ORIGIN: &str = "X-Xmsg-Origin";
/// The header that says that the body is plain.
const BODY: &str = "X-Xmsg-Body";
const PLAIN: &str = "plain";
/// The header in which a broker writes why and where a message became a dead letter.
const HISTORY: &str = "x-death";
const COMPONENT: &str = "X-Xmsg-Component";
const TIME: &str = "X-Xmsg-Msg-TS";
const ZATO_COMPONENT: &str = "X-Zato-Component";
const ZATO_TIME: &str = "X-Zato-Msg-TS";

/// A message as the broker is given it.
#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
    /// About the bytes that the properties take on the wire. They have to fit into one frame.
    pub(crate) properties_len: usize,
}

/// Returns what is published for a message, or says in words why it can't be sent.
pub(crate) fn outbound(
    name: &str,
    stored: &Stored,
    accepted_at: SystemTime,
    plan: &AmqpOutgoing,
    login: &str,
) -> Result<Publish, String> {
    let outbound = &stored.outbound;
    let message = &outbound.message;
    let exchange = outbound.exchange.clone().unwrap_or_else(|| plan.exchange.clone());
    let routing_key = match (&outbound.routing_key, &plan.origin) {
        (Some(key), _) => key.clone(),
        (None, None) => plan.routing_key.fill(message.topic())?,
        (None, Some(_)) => crate::federation::routing_key(message.topic().as_bytes()),
    };
    for (what, text) in [("the exchange", &exchange), ("the routing key", &routing_key)] {
        if let Some(why) = not_short(text) {
            return Err(format!("{what} {why}"));
        }
    }
    let size = message.data().len() as u64;
    if size > plan.max_message_size {
        return Err(format!(
            "its {size} bytes are above the limit of {} (max_message_size)",
            plan.max_message_size
        ));
    }
    let since_1970 = accepted_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut set = outbound.properties.over(&plan.properties);
    let id = stored.id.to_string();
    set.message_id.get_or_insert_with(|| id.clone());
    set.timestamp.get_or_insert(since_1970.as_secs());
    let as_plain = if plan.body == Body::Plain { plain::encode(message) } else { None };
    if set.content_type.is_none() {
        set.content_type = as_plain.as_ref().map(|(_, content_type)| (*content_type).to_owned());
    }
    if set.content_type.is_none() {
        // Metadata that can't be read, or a type that is too long for AMQP: it travels as bytes, in its
        // header.
        let mime_type = message.mime_type().ok().filter(|mime_type| not_short(mime_type).is_none());
        set.content_type = Some(mime_type.unwrap_or("application/octet-stream").to_owned());
    }
    if let Some((property, why)) = set.invalid(login) {
        return Err(format!("the property {property} {why}"));
    }

    let mut headers: BTreeMap<String, AMQPValue> = BTreeMap::new();
    if plan.origin.is_none()
        && let Ok(meta) = message.meta()
    {
        // RabbitMQ routes by these two, and ends the channel where they are texts. Ours say how a message is
        // to be read.
        let is_plain = |key: &str| {
            !matches!(key, "CC" | "BCC") && !key.starts_with("X-Xmsg-") && not_short(key).is_none()
        };
        for (key, value) in meta.headers.iter().filter(|(key, _)| is_plain(key)) {
            headers.insert(key.to_owned(), AMQPValue::LongString(value.as_bytes().into()));
        }
    }
    let time = rfc3339(since_1970);
    let mut ours = vec![(COMPONENT, name.to_owned()), (TIME, time.clone())];
    if plan.header_compat == Some(HeaderCompat::Zato) {
        ours.extend([(ZATO_COMPONENT, name.to_owned()), (ZATO_TIME, time)]);
    }
    headers
        .extend(ours.into_iter().map(|(key, value)| (key.to_owned(), AMQPValue::LongString(value.into()))));
    for (key, value) in plan.headers.iter().chain(&outbound.headers) {
        if let Some(why) = not_short(key) {
            return Err(format!("the name of the header {key:?} {why}"));
        }
        headers.insert(key.clone(), value_of(value));
    }
    let [topic, meta, data] = message.clone().into_frames();
    let body = match as_plain {
        Some((body, _)) => {
            headers.insert(BODY.to_owned(), AMQPValue::LongString(PLAIN.into()));
            body
        }
        None => data,
    };
    headers.insert(TOPIC.to_owned(), AMQPValue::LongString(topic.to_vec().into()));
    headers.insert(META.to_owned(), AMQPValue::ByteArray(ByteArray::from(meta.to_vec())));
    headers.insert(ID.to_owned(), AMQPValue::LongString(id.into()));
    if let Some(origin) = &plan.origin {
        headers.insert(ORIGIN.to_owned(), AMQPValue::LongString(origin.as_bytes().into()));
    }

    let short = |text: Option<String>| text.map(ShortString::from);
    let mut table = FieldTable::default();
    let mut properties_len = 64;
    for (key, value) in headers {
        properties_len += key.len() + 16 + len_of(&value);
        table.insert(key.into(), value);
    }
    let texts = [
        &set.content_type,
        &set.content_encoding,
        &set.correlation_id,
        &set.reply_to,
        &set.expiration,
        &set.message_id,
        &set.kind,
        &set.user_id,
        &set.app_id,
        &set.cluster_id,
    ];
    properties_len += texts.iter().filter_map(|text| text.as_ref()).map(|text| text.len() + 1).sum::<usize>();

    let mut properties =
        BasicProperties::default().with_headers(table).with_delivery_mode(match set.delivery_mode {
            Some(DeliveryMode::Transient) => 1,
            Some(DeliveryMode::Persistent) | None => 2,
        });
    /// Sets each of these that is there.
    macro_rules! set {
        ($($with:ident: $value:expr),* $(,)?) => {
            $(if let Some(value) = $value { properties = properties.$with(value); })*
        };
    }
    set!(
        with_content_type: short(set.content_type),
        with_content_encoding: short(set.content_encoding),
        with_priority: set.priority,
        with_correlation_id: short(set.correlation_id),
        with_reply_to: short(set.reply_to),
        with_expiration: short(set.expiration),
        with_message_id: short(set.message_id),
        with_timestamp: set.timestamp,
        with_type: short(set.kind),
        with_user_id: short(set.user_id),
        with_app_id: short(set.app_id),
        with_cluster_id: short(set.cluster_id),
    );
    Ok(Publish { exchange, routing_key, properties, body, properties_len })
}

fn rfc3339(since_1970: Duration) -> String {
    let millis = i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}

fn value_of(value: &HeaderValue) -> AMQPValue {
    match value {
        HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
        HeaderValue::Integer(value) => AMQPValue::LongLongInt(*value),
        HeaderValue::Float(value) => AMQPValue::Double(*value),
        HeaderValue::Text(value) => AMQPValue::LongString(value.as_bytes().into()),
    }
}

fn len_of(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => text.len(),
        AMQPValue::ByteArray(bytes) => bytes.len(),
        _ => 8,
    }
}

/// Returns the identifier of a message that this library has sent, from the properties of one that came back.
pub(crate) fn id_of(properties: &BasicProperties) -> Option<String> {
    let headers = properties.headers().as_ref()?;
    text_of(headers.inner().get(ID)?)
}

/// The identity of a message. It is the same each time that the message comes from its queue.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    id: Option<Uuid>,
    message_id: Option<String>,
    /// What brokers did with a message of our own before. It is a header of AMQP, since nothing is written
    /// into the metadata of such a message.
    history: Option<String>,
}

impl Identity {
    /// Gives a message this identity, for a message that leaves by an outgoing connection.
    pub(crate) fn apply_to(self, message: Outbound) -> Outbound {
        let mut message = match self.id {
            Some(id) => message.id(id),
            None => message,
        };
        message.properties.message_id = self.message_id;
        match self.history {
            Some(history) => message.header(HISTORY, history),
            None => message,
        }
    }
}

/// Returns the identity of a message of a queue: its header `X-Xmsg-Id`, or what is made of its property
/// `message_id`, which stays what it was. One that has neither gets a new one each time.
pub(crate) fn identity(channel: &str, properties: &BasicProperties) -> Identity {
    let message_id =
        properties.message_id().as_ref().map(|id| id.as_str().to_owned()).filter(|id| !id.is_empty());
    let own = id_of(properties).and_then(|id| id.parse().ok());
    let of_others = || {
        let id = message_id.as_ref()?;
        // The same text in two queues is not the same message.
        id.parse()
            .ok()
            .or_else(|| Some(Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("{channel}/{id}").as_bytes())))
    };
    let id = own.or_else(of_others);
    // Our own messages have their identifier there, which they get anew.
    let is_ours = id.is_some_and(|id| message_id.as_deref() == Some(&*id.to_string()));
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    let history =
        headers.filter(|headers| headers.contains_key(META)).and_then(|headers| headers.get(HISTORY));
    Identity { id, message_id: message_id.filter(|_| !is_ours), history: history.and_then(text_of) }
}

/// Returns the proxy at which a message of a federation was published.
pub(crate) fn origin_of(properties: &BasicProperties) -> Option<String> {
    text_of(properties.headers().as_ref()?.inner().get(ORIGIN)?)
}

/// The header in which queues of the type `quorum` count how often a message came back.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// Returns how often a message came back before, where the queue counts that. A queue that does so sets the
/// header whenever a message comes back; on one that comes for the first time it is a header that somebody
/// has published it with.
pub(crate) fn redelivery_count(delivery: &Delivery) -> Option<u32> {
    if !delivery.redelivered {
        return None;
    }
    text_of(delivery.properties.headers().as_ref()?.inner().get(DELIVERY_COUNT)?)?.parse().ok()
}

/// Returns the topic that a message had in xMsg.
pub(crate) fn topic_of(properties: &BasicProperties) -> Option<Bytes> {
    bytes_of(properties.headers().as_ref()?.inner().get(TOPIC)?)
}

/// Makes a message of xMsg from one of a queue, for this target, or says in words why that is impossible.
///
/// One of xMsg's own, by its headers, keeps its metadata and its data as they were. Of a foreign one, the
/// data is what its content type says: JSON for `application/json` and whatever ends in `+json`, a text for
/// `text/*` that is valid UTF-8, else bytes; its properties and headers become headers of the message. Its
/// topic is that of the target, or its own, or the routing key.
pub(crate) fn inbound(channel: &str, mut delivery: Delivery, target: &Target) -> Result<Message, String> {
    // The client doubles the buffer of a long message while it comes.
    if delivery.data.capacity() - delivery.data.len() > SPARE_MAX {
        delivery.data.shrink_to_fit();
    }
    let empty = BTreeMap::new();
    let headers = delivery.properties.headers().as_ref().map_or(&empty, FieldTable::inner);
    let own_topic = headers.get(TOPIC).and_then(bytes_of);
    let own_meta = headers.get(META).and_then(bytes_of);
    let topic = match (target, own_topic) {
        (Target::Topic(topic), _) => topic.clone(),
        (_, Some(topic)) => Topic::wrap(topic),
        (Target::Original, None) => {
            return Err(format!("it has no header {TOPIC} with the topic that it came from"));
        }
        (Target::Outgoing(_), None) => match delivery.routing_key.as_str().parse() {
            Ok(topic) => topic,
            Err(_) => Topic::of_domain(channel).map_err(|error| error.to_string())?,
        },
    };
    if topic.as_bytes().starts_with(b"xmsg:") {
        return Err(format!("its topic {topic} is one that proxies use among themselves"));
    }
    let is_plain = headers.get(BODY).and_then(bytes_of).is_some_and(|body| body == PLAIN);
    if is_plain && let Some(meta) = own_meta {
        let message = Message::from_frames(topic.into_bytes(), meta, Bytes::new());
        let mime_type = message.mime_type().map_err(|error| error.to_string())?;
        let data = plain::decode(mime_type, &delivery.data)
            .ok_or_else(|| format!("its body is no {mime_type}, which its metadata says that it is"))?;
        let [topic, meta, _] = message.into_frames();
        return Ok(Message::from_frames(topic, meta, data));
    }
    if let Some(meta) = own_meta {
        return Ok(Message::from_frames(topic.into_bytes(), meta, delivery.data.into()));
    }
    let content_type = delivery.properties.content_type().as_ref().map_or("", ShortString::as_str);
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let text = |data: &[u8]| std::str::from_utf8(data).ok().map(str::to_owned);
    let message = if essence == "application/json" || essence.ends_with("+json") {
        Message::with_mime(topic, mime::JSON, delivery.data)
    } else if essence.starts_with("text/")
        && let Some(text) = text(&delivery.data)
    {
        Message::of(topic, text).map_err(|error| error.to_string())?
    } else {
        Message::with_mime(topic, mime::BYTES, delivery.data)
    };
    let mut meta = message.meta().map_err(|error| error.to_string())?;
    add_headers(&mut meta, channel, content_type, &delivery.properties, headers);
    Ok(message.with_meta(&meta))
}

/// Adds what a foreign message says of itself as headers. Those that do not fit are left out.
fn add_headers(
    meta: &mut Meta,
    channel: &str,
    content_type: &str,
    properties: &BasicProperties,
    headers: &BTreeMap<ShortString, AMQPValue>,
) {
    meta.sender = Some(channel.to_owned());
    let text = |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
    let of_properties = [
        ("content-type", Some(content_type.to_owned()).filter(|text| !text.is_empty())),
        ("content-encoding", text(properties.content_encoding())),
        ("correlation-id", text(properties.correlation_id())),
        ("reply-to", text(properties.reply_to())),
        ("message-id", text(properties.message_id())),
        ("type", text(properties.kind())),
        ("user-id", text(properties.user_id())),
        ("app-id", text(properties.app_id())),
        ("priority", properties.priority().map(|priority| priority.to_string())),
        ("timestamp", properties.timestamp().map(|time| time.to_string())),
    ];
    let of_properties =
        of_properties.into_iter().filter_map(|(name, value)| Some((format!("amqp-{name}"), value?)));
    let of_headers =
        headers.iter().filter_map(|(name, value)| Some((name.as_str().to_owned(), text_of(value)?)));
    for (name, value) in of_properties.chain(of_headers) {
        // A header that does not fit is not worth the message.
        if meta.headers.insert(name.clone(), value).is_err() {
            tracing::debug!(
                channel,
                header = name,
                "a header of a foreign message does not fit into the metadata"
            );
        }
    }
}

fn bytes_of(value: &AMQPValue) -> Option<Bytes> {
    match value {
        AMQPValue::LongString(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => Some(Bytes::copy_from_slice(bytes.as_slice())),
        _ => None,
    }
}

/// Returns a value of a header as a text. Tables and lists become JSON.
pub(crate) fn text_of(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::Void => None,
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        AMQPValue::Boolean(value) => Some(value.to_string()),
        _ => match json_of(value, NESTED_MAX) {
            serde_json::Value::String(text) => Some(text),
            other => Some(other.to_string()),
        },
    }
}

/// Returns a value as JSON. What is nested deeper than this is left out.
fn json_of(value: &AMQPValue, depth: usize) -> serde_json::Value {
    use serde_json::{Value, json};
    match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::ShortShortInt(value) => json!(value),
        AMQPValue::ShortShortUInt(value) => json!(value),
        AMQPValue::ShortInt(value) => json!(value),
        AMQPValue::ShortUInt(value) => json!(value),
        AMQPValue::LongInt(value) => json!(value),
        AMQPValue::LongUInt(value) => json!(value),
        AMQPValue::LongLongInt(value) => json!(value),
        AMQPValue::Float(value) => json!(value),
        AMQPValue::Double(value) => json!(value),
        AMQPValue::Timestamp(value) => json!(value),
        AMQPValue::DecimalValue(value) => json!(f64::from(value.value) / 10f64.powi(i32::from(value.scale))),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => json!(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => json!(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) if depth == 0 => Value::Null,
        AMQPValue::FieldArray(values) => {
            values.as_slice().iter().map(|value| json_of(value, depth - 1)).collect()
        }
        AMQPValue::FieldTable(table) => {
            let entries = table
                .inner()
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), json_of(value, depth - 1)));
            Value::Object(entries.collect())
        }
        AMQPValue::Void => Value::Null,
    }
}
