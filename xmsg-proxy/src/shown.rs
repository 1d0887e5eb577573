//! Messages as JSON, for people and programs: what `xmsg sub --json` writes, and what the web page's tap
//! shows.

use std::io;

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Serialize, Serializer};
use serde_json::{Map, Number, Value};
use xmsg_core::data::mime;
use xmsg_core::meta::{Action, ByteOrder, Control, Status};
use xmsg_core::{Data, Message, Meta};

/// The memory that the values of one message may take when they are decoded, in bytes. Arrays of numbers of a
/// fixed length take twice their bytes while they grow, so all that fit into a message are below it. An empty
/// text takes two bytes on the wire, and forty times as many in memory.
const DECODED_MAX: usize = 160 << 20;

/// Appends a message as one line of JSON, without a newline: `topic` (and `topic_base64`, if it is no UTF-8),
/// `mime`, `time` as it is given, `length` of the data in bytes, `data` and its `encoding` (`utf-8` or
/// `base64`), `value`, if the mime type is one that xMsg gives a meaning (or `value_error`, if the values are
/// too many to be decoded), and `meta`, the other metadata, or `meta_error`.
///
/// ```
/// use xmsg_core::{Message, Topic};
/// let message = Message::of("level:tank", 17)?;
/// let mut line = Vec::new();
/// xmsg_proxy::shown::message(&mut line, &message, &"now".into());
/// let read: serde_json::Value = serde_json::from_slice(&line).expect("it is JSON");
/// assert_eq!((&read["topic"], &read["value"]), (&"level:tank".into(), &17.into()));
/// # Ok::<(), xmsg_core::Error>(())
/// ```
pub fn message(out: &mut Vec<u8>, message: &Message, time: &Value) {
    // To write to memory cannot fail.
    let _ = write_message(out, message, time);
}

/// Writes a message as [`message`] does. What is written may have many times the length of the message: it is
/// never there as a whole.
///
/// # Errors
/// Those of the writer.
///
/// ```
/// use xmsg_core::Message;
/// let mut line = Vec::new();
/// xmsg_proxy::shown::write_message(&mut line, &Message::of("level:tank", 17)?, &"now".into())?;
/// assert!(line.starts_with(br#"{"topic":"level:tank","#));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_message(out: &mut impl io::Write, message: &Message, time: &Value) -> io::Result<()> {
    let mut members = Members { out, is_first: true };
    members.write("topic", &String::from_utf8_lossy(message.topic().as_bytes()))?;
    if message.topic().to_str().is_err() {
        members.write("topic_base64", &InBase64(message.topic().as_bytes()))?;
    }
    let meta = message.meta();
    members.write("mime", &meta.as_ref().ok().map(|meta| meta.data_type.as_str()))?;
    members.write("time", time)?;
    members.write("length", &message.data().len())?;
    if let Ok(text) = str::from_utf8(message.data()) {
        members.write("data", text)?;
        members.write("encoding", "utf-8")?;
    } else {
        members.write("data", &InBase64(message.data()))?;
        members.write("encoding", "base64")?;
    }
    match typed(message) {
        Some(data) => members.write("value", &InJson(&data))?,
        None if has_too_many_values(message) => {
            members.write("value_error", "the values are too many to be decoded: they are only in data")?;
        }
        None => {}
    }
    match meta {
        Ok(meta) => match metadata(&meta) {
            fields if fields.is_empty() => {}
            fields => members.write("meta", &fields)?,
        },
        // A plain ZeroMQ publisher sends none.
        Err(_) if message.size() == message.topic().as_bytes().len() + message.data().len() => {}
        Err(error) => members.write("meta_error", &error.to_string())?,
    }
    members.out.write_all(b"}")
}

/// The members of an object, which are written one after another.
struct Members<'a, W> {
    out: &'a mut W,
    is_first: bool,
}

impl<W: io::Write> Members<'_, W> {
    fn write(&mut self, key: &str, value: &(impl Serialize + ?Sized)) -> io::Result<()> {
        let before = if std::mem::take(&mut self.is_first) { "{" } else { "," };
        write!(self.out, "{before}\"{key}\":")?;
        Ok(serde_json::to_writer(&mut *self.out, value)?)
    }
}

/// The value, when the mime type says that there is one and the data is one; `None` for bytes, which are
/// shown as they are, and for values that would take more than 160 MiB of memory.
///
/// ```
/// use xmsg_core::{Data, Message};
/// assert_eq!(xmsg_proxy::shown::typed(&Message::of("a", 17)?), Some(Data::Sfixed32(17)));
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[must_use]
pub fn typed(message: &Message) -> Option<Data> {
    let mime_type = message.mime_type().ok()?;
    if mime_type == mime::BYTES || decoded_size(message.data()) > DECODED_MAX {
        return None;
    }
    Data::decode(mime_type, message.data()).ok()
}

/// Whether the data is of one of xMsg's kinds, and too large to be decoded.
fn has_too_many_values(message: &Message) -> bool {
    let is_typed =
        |mime_type| mime_type == mime::NATIVE || mime_type != mime::BYTES && mime::ALL.contains(&mime_type);
    message.mime_type().is_ok_and(is_typed) && decoded_size(message.data()) > DECODED_MAX
}

/// The memory that a protobuf message takes at most while it is decoded: its arrays grow, and a field of the
/// message is decoded whatever the mime type says. Field numbers are those of `xMsgData`. It counts to the
/// first thing that can't be decoded.
fn decoded_size(frame: &[u8]) -> usize {
    let mut fields = Varints(frame);
    let mut size = 0_usize;
    while let Some(key) = fields.next() {
        let len = match key & 7 {
            0 => fields.next().map(|_| 0),
            1 => fields.skip(8),
            2 => fields.next().and_then(|len| fields.skip(usize::try_from(len).ok()?)),
            5 => fields.skip(4),
            _ => None,
        };
        let Some(len) = len else { break };
        let memory = match (key & 7, key >> 3) {
            // One number of 64 or 32 bits.
            (1 | 5, _) => 2 * len,
            // Each number of 32 or 64 bits may have one byte.
            (_, 9 | 10) => 16 + 16 * len,
            (_, 15 | 16) => 2 * size_of::<bytes::Bytes>() + 16 + len,
            _ => 16 + 2 * len,
        };
        size = size.saturating_add(memory);
    }
    size
}

/// Reads numbers as protobuf writes them, and passes over bytes between them.
struct Varints<'a>(&'a [u8]);

impl Varints<'_> {
    fn next(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn skip(&mut self, len: usize) -> Option<usize> {
        self.0 = self.0.get(len..)?;
        Some(len)
    }
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
    // Every value of `Data` has a form in JSON.
    serde_json::to_value(InJson(data)).unwrap_or_default()
}

/// Data as JSON. An array is written element by element, for it may have millions of them.
struct InJson<'a>(&'a Data);

impl Serialize for InJson<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Data::String(text) => text.serialize(out),
            Data::Sint32(number) | Data::Sfixed32(number) => number.serialize(out),
            Data::Sint64(number) | Data::Sfixed64(number) => number.serialize(out),
            Data::Float(number) => float(*number).serialize(out),
            Data::Double(number) => double(*number).serialize(out),
            Data::Bytes(bytes) => InBase64(bytes).serialize(out),
            Data::Sint32Array(array) | Data::Sfixed32Array(array) => array.serialize(out),
            Data::Sint64Array(array) | Data::Sfixed64Array(array) => array.serialize(out),
            Data::FloatArray(array) => out.collect_seq(array.iter().map(|number| float(*number))),
            Data::DoubleArray(array) => out.collect_seq(array.iter().map(|number| double(*number))),
            Data::StringArray(array) => array.serialize(out),
            Data::BytesArray(array) => out.collect_seq(array.iter().map(|bytes| InBase64(bytes))),
        }
    }
}

/// Bytes as a text of base64.
struct InBase64<'a>(&'a [u8]);

impl Serialize for InBase64<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(&Base64Display::new(self.0, &BASE64))
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use xmsg_core::Topic;

    use super::*;

    fn line(message: &Message) -> Value {
        let mut line = Vec::new();
        super::message(&mut line, message, &"now".into());
        serde_json::from_slice(&line).unwrap()
    }

    /// An empty text takes two bytes of a message, and a hundred of memory until it is written.
    #[test]
    fn values_that_would_take_too_much_memory_are_not_decoded() {
        let texts = Bytes::from(b"\x7a\0".repeat(3 << 20));
        for mime_type in [mime::ARRAY_STRING, mime::NATIVE, mime::DOUBLE] {
            let shown = line(&Message::with_mime(Topic::wrap("a"), mime_type, texts.clone()));
            assert_eq!((&shown["length"], &shown["encoding"]), (&texts.len().into(), &"utf-8".into()));
            assert!(shown.get("value").is_none(), "{mime_type}");
            assert!(shown["value_error"].as_str().unwrap().contains("too many"), "{mime_type}");
        }
        let bytes = line(&Message::with_mime(Topic::wrap("a"), mime::BYTES, texts));
        assert_eq!((bytes.get("value"), bytes.get("value_error")), (None, None));
    }

    #[test]
    fn all_numbers_that_fit_into_a_message_are_shown() {
        let numbers = Message::of(Topic::wrap("a"), vec![0.5; 100_000]).unwrap();
        let largest = (64 << 20) / numbers.data().len() * decoded_size(numbers.data());
        assert!(largest < DECODED_MAX && typed(&numbers).is_some());
        let few = Message::of(Topic::wrap("a"), vec!["x".to_owned(), String::new()]).unwrap();
        assert_eq!(line(&few)["value"], serde_json::json!(["x", ""]));
    }

    #[test]
    fn what_is_no_protobuf_is_counted_up_to_there() {
        assert_eq!(decoded_size(b""), 0);
        assert_eq!(decoded_size(b"\xff"), 0);
        assert_eq!(decoded_size(b"\x7a\xff\xff\xff\xff\x7f"), 0, "a length beyond the frame");
        assert_eq!(decoded_size(b"\x08\x02"), 16);
    }
}
