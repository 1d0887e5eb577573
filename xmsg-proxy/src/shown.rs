//! Messages as JSON, for people and programs: what `xmsg sub --json` writes, and what the web page's tap
//! shows.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Number, Value};
use xmsg_core::data::mime;
use xmsg_core::meta::{Action, ByteOrder, Control, Status};
use xmsg_core::{Data, Message, Meta};

/// Appends a message as one line of JSON, without a newline: `topic` (and `topic_base64`, if it is no UTF-8),
/// `mime`, `time` as it is given, `length` of the data in bytes, `data` and its `encoding` (`utf-8` or
/// `base64`), `value`, if the mime type is one that xMsg gives a meaning, and `meta`, the other metadata, or
/// `meta_error`.
///
/// ```
/// use xmsg_core::{Message, Topic};
/// let message = Message::of("level:tank", 17)?;
/// let mut line = Vec::new();
/// xmsg_proxy::shown::message(&mut line, &message, "now".into());
/// let read: serde_json::Value = serde_json::from_slice(&line).expect("it is JSON");
/// assert_eq!((&read["topic"], &read["value"]), (&"level:tank".into(), &17.into()));
/// # Ok::<(), xmsg_core::Error>(())
/// ```
pub fn message(out: &mut Vec<u8>, message: &Message, time: Value) {
    let mut first = true;
    let mut member = |key: &str, value: Value| {
        out.extend_from_slice(if first { b"{\"" } else { b",\"" });
        first = false;
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"\":");
        // To write to memory cannot fail.
        let _ = serde_json::to_writer(&mut *out, &value);
    };
    member("topic", String::from_utf8_lossy(message.topic().as_bytes()).into());
    if message.topic().to_str().is_err() {
        member("topic_base64", BASE64.encode(message.topic().as_bytes()).into());
    }
    let meta = message.meta();
    member("mime", meta.as_ref().map_or(Value::Null, |meta| meta.data_type.as_str().into()));
    member("time", time);
    member("length", message.data().len().into());
    let (data, encoding) = bytes(message.data());
    member("data", data);
    member("encoding", encoding.into());
    if let Some(data) = typed(message) {
        member("value", value(&data));
    }
    match meta {
        Ok(meta) => match metadata(&meta) {
            fields if fields.is_empty() => {}
            fields => member("meta", fields.into()),
        },
        // A plain ZeroMQ publisher sends none.
        Err(_) if message.size() == message.topic().as_bytes().len() + message.data().len() => {}
        Err(error) => member("meta_error", error.to_string().into()),
    }
    out.push(b'}');
}

/// The value, when the mime type says that there is one and the data is one; `None` for bytes, which are
/// shown as they are.
///
/// ```
/// use xmsg_core::{Data, Message};
/// assert_eq!(xmsg_proxy::shown::typed(&Message::of("a", 17)?), Some(Data::Sfixed32(17)));
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[must_use]
pub fn typed(message: &Message) -> Option<Data> {
    let mime_type = message.mime_type().ok()?;
    if mime_type == mime::BYTES {
        return None;
    }
    Data::decode(mime_type, message.data()).ok()
}

/// The fields that are present, but for the mime type, under the keys that `xmsg pub --meta` takes.
///
/// ```
/// use xmsg_core::Meta;
/// let mut meta = Meta::new("text/plain");
/// meta.author = Some("daq".to_owned());
/// assert_eq!(xmsg_proxy::shown::metadata(&meta)["author"], "daq");
/// ```
#[must_use]
pub fn metadata(meta: &Meta) -> Map<String, Value> {
    let name = |name: &str| Value::from(name);
    let fields = [
        ("version", meta.version.as_deref().map(Value::from)),
        ("description", meta.description.as_deref().map(Value::from)),
        ("author", meta.author.as_deref().map(Value::from)),
        ("severityId", meta.severity_id.map(Value::from)),
        ("sender", meta.sender.as_deref().map(Value::from)),
        ("senderState", meta.sender_state.as_deref().map(Value::from)),
        ("communicationId", meta.communication_id.map(Value::from)),
        ("composition", meta.composition.as_deref().map(Value::from)),
        ("executionTime", meta.execution_time.map(Value::from)),
        ("dataTypeDescription", meta.data_type_description.as_deref().map(Value::from)),
        ("replyTo", meta.reply_to.as_deref().map(Value::from)),
        (
            "status",
            meta.status.map(|status| match status {
                Status::Info => name("info"),
                Status::Warning => name("warning"),
                Status::Error => name("error"),
                Status::Unknown(number) => number.into(),
            }),
        ),
        (
            "action",
            meta.action.map(|action| match action {
                Action::Execute => name("execute"),
                Action::Configure => name("configure"),
                Action::Unknown(number) => number.into(),
            }),
        ),
        (
            "control",
            meta.control.map(|control| match control {
                Control::Skip => name("skip"),
                Control::Unknown(number) => number.into(),
            }),
        ),
        (
            "byteOrder",
            meta.byte_order.map(|order| match order {
                ByteOrder::Little => name("little"),
                ByteOrder::Big => name("big"),
                ByteOrder::Unknown(number) => number.into(),
            }),
        ),
    ];
    let mut json: Map<_, _> =
        fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    if !meta.headers.is_empty() {
        let headers = meta.headers.iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
        json.insert("headers".to_owned(), Value::Object(headers));
    }
    json
}

/// Bytes as they stand in JSON, and how that is written.
///
/// ```
/// use xmsg_proxy::shown::bytes;
/// assert_eq!(bytes(b"text"), ("text".into(), "utf-8"));
/// assert_eq!(bytes(b"\xff"), ("/w==".into(), "base64"));
/// ```
#[must_use]
pub fn bytes(data: &[u8]) -> (Value, &'static str) {
    match str::from_utf8(data) {
        Ok(text) => (text.into(), "utf-8"),
        Err(_) => (BASE64.encode(data).into(), "base64"),
    }
}

/// A value in JSON. Bytes are base64; what JSON has no number for is a text, such as `"NaN"`.
///
/// ```
/// use xmsg_core::Data;
/// assert_eq!(xmsg_proxy::shown::value(&Data::Float(0.1)).to_string(), "0.1");
/// ```
#[must_use]
pub fn value(data: &Data) -> Value {
    fn all<T: Copy>(array: &[T], json: impl Fn(T) -> Value) -> Value {
        array.iter().map(|value| json(*value)).collect()
    }
    match data {
        Data::String(text) => text.as_str().into(),
        Data::Sint32(number) | Data::Sfixed32(number) => (*number).into(),
        Data::Sint64(number) | Data::Sfixed64(number) => (*number).into(),
        Data::Float(number) => float(*number),
        Data::Double(number) => double(*number),
        Data::Bytes(bytes) => BASE64.encode(bytes).into(),
        Data::Sint32Array(array) | Data::Sfixed32Array(array) => all(array, Value::from),
        Data::Sint64Array(array) | Data::Sfixed64Array(array) => all(array, Value::from),
        Data::FloatArray(array) => all(array, float),
        Data::DoubleArray(array) => all(array, double),
        Data::StringArray(array) => array.as_slice().into(),
        Data::BytesArray(array) => array.iter().map(|bytes| Value::from(BASE64.encode(bytes))).collect(),
    }
}

/// The shortest decimals that are this `f32`: `0.1`, not `0.10000000149011612`.
fn float(number: f32) -> Value {
    let shortest = number.to_string().parse().unwrap_or_else(|_| f64::from(number));
    double(if number.is_finite() { shortest } else { f64::from(number) })
}

fn double(number: f64) -> Value {
    Number::from_f64(number).map_or_else(|| number.to_string().into(), Value::Number)
}
