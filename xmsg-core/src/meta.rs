//! The metadata of a message: its second frame, which is the protobuf (proto2) message `Meta` of xMsg.
//!
//! Peers may add fields that this version does not know, and a message that is forwarded or answered keeps
//! them. `prost` would drop them. Therefore this module reads the fields one by one, and its crate-internal
//! functions work on encoded metadata without decoding the rest of it.

// Longer than 500 lines: the fields of one protobuf message, each with its documentation.

mod headers;

use std::fmt;

use bytes::Bytes;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint,
    key_len, skip_field,
};

pub use self::headers::{Headers, Iter as HeadersIter};
pub(crate) use self::headers::{find as header, replace as with_header};
use crate::data::mime;
use crate::{Error, ErrorKind, Result};

/// The key of a header that marks a message which may have arrived before: it was sent again after its
/// connection broke. See [`Delivery::AtLeastOnce`](crate::Delivery::AtLeastOnce).
pub const REPEATED: &str = "repeated";

const STATUS: u32 = 4;
const DATA_TYPE: u32 = 14;
const REPLY_TO: u32 = 16;

/// The metadata of a message. `None` means that a field is absent, which differs from a default value
/// (proto2).
///
/// Fields and types are those of the `Meta` message that the Java, C++ and Python libraries share. Other
/// fields are kept as they were received, and encoded after the known ones.
///
/// ```
/// use xmsg_core::meta::{Meta, Status};
///
/// let mut meta = Meta::new("text/string");
/// meta.author = Some("reporter".into());
/// meta.status = Some(Status::Warning);
///
/// let read = Meta::decode(&meta.encode())?;
/// assert_eq!(read, meta);
/// assert_eq!(read.severity_id, None);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Meta {
    /// 1: the version of the data.
    pub version: Option<String>,
    /// 2: a description of the data.
    pub description: Option<String>,
    /// 3: the author of the data.
    pub author: Option<String>,
    /// 4: how the work of the sender went.
    pub status: Option<Status>,
    /// 5: how severe an error or a warning is; the application defines the scale.
    pub severity_id: Option<i32>,
    /// 6: the name of the sender.
    pub sender: Option<String>,
    /// 7: the state of the sender.
    pub sender_state: Option<String>,
    /// 8: a number that relates messages to each other.
    pub communication_id: Option<u32>,
    /// 10: the composition of services that the message goes through.
    pub composition: Option<String>,
    /// 11: how long the work took; the application defines the unit.
    pub execution_time: Option<i64>,
    /// 12: what the receiver is to do with the data.
    pub action: Option<Action>,
    /// 13: how the receiver is to treat the message.
    pub control: Option<Control>,
    /// 14, required: the MIME type of the data, such as those in [`data::mime`](crate::data::mime).
    pub data_type: String,
    /// 15: a description of the type of the data.
    pub data_type_description: Option<String>,
    /// 16: the topic on which a reply is awaited; set only on synchronous requests.
    pub reply_to: Option<String>,
    /// 17: the byte order of the data; absent means big-endian.
    pub byte_order: Option<ByteOrder>,
    /// 100: headers, which are texts by name. They are an extension of xMsg that other peers ignore and keep.
    pub headers: Headers,
    unknown: Bytes,
}

/// How the work of the sender went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// 1: the work succeeded.
    Info,
    /// 2: the work raised a warning.
    Warning,
    /// 3: the work failed.
    Error,
    /// A number without a name in this version. It is kept when the metadata is encoded again.
    Unknown(i32),
}

/// What the receiver is to do with the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// 0: process the data.
    Execute,
    /// 1: use the data as a configuration.
    Configure,
    /// A number without a name in this version. It is kept when the metadata is encoded again.
    Unknown(i32),
}

/// How the receiver is to treat the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// 0: skip the message.
    Skip,
    /// A number without a name in this version. It is kept when the metadata is encoded again.
    Unknown(i32),
}

/// The byte order of the numbers in the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ByteOrder {
    /// 1: least significant byte first.
    Little,
    /// 2: most significant byte first.
    Big,
    /// A number without a name in this version. It is kept when the metadata is encoded again.
    Unknown(i32),
}

impl Meta {
    /// Makes metadata that only gives the MIME type of the data.
    pub fn new(data_type: impl Into<String>) -> Self {
        Self {
            version: None,
            description: None,
            author: None,
            status: None,
            severity_id: None,
            sender: None,
            sender_state: None,
            communication_id: None,
            composition: None,
            execution_time: None,
            action: None,
            control: None,
            data_type: data_type.into(),
            data_type_description: None,
            reply_to: None,
            byte_order: None,
            headers: Headers::new(),
            unknown: Bytes::new(),
        }
    }

    /// Decodes the metadata frame of a message.
    ///
    /// A known field with the wrong wire type counts as unknown, as in the other implementations.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the frame is not protobuf, a text is not UTF-8, `dataType` is
    /// missing, or there are more [headers](Headers) than the limit.
    pub fn decode(frame: &Bytes) -> Result<Self> {
        let mut meta = Self::new("");
        let mut data_type = None;
        let mut unknown = Vec::new();
        for field in fields(frame) {
            let field = field?;
            match (field.number, field.value) {
                (1, Some(Value::Text(v))) => meta.version = Some(text(1, v)?),
                (2, Some(Value::Text(v))) => meta.description = Some(text(2, v)?),
                (3, Some(Value::Text(v))) => meta.author = Some(text(3, v)?),
                (STATUS, Some(Value::Varint(v))) => meta.status = Some((v as i32).into()),
                (5, Some(Value::Fixed32(v))) => meta.severity_id = Some(v.cast_signed()),
                (6, Some(Value::Text(v))) => meta.sender = Some(text(6, v)?),
                (7, Some(Value::Text(v))) => meta.sender_state = Some(text(7, v)?),
                (8, Some(Value::Fixed32(v))) => meta.communication_id = Some(v),
                (10, Some(Value::Text(v))) => meta.composition = Some(text(10, v)?),
                (11, Some(Value::Fixed64(v))) => meta.execution_time = Some(v.cast_signed()),
                (12, Some(Value::Varint(v))) => meta.action = Some((v as i32).into()),
                (13, Some(Value::Varint(v))) => meta.control = Some((v as i32).into()),
                (DATA_TYPE, Some(Value::Text(v))) => data_type = Some(text(DATA_TYPE, v)?),
                (15, Some(Value::Text(v))) => meta.data_type_description = Some(text(15, v)?),
                (REPLY_TO, Some(Value::Text(v))) => meta.reply_to = Some(text(REPLY_TO, v)?),
                (17, Some(Value::Varint(v))) => meta.byte_order = Some((v as i32).into()),
                _ if let Some((key, value)) = headers::of_field(&field) => {
                    meta.headers.insert(key, value)?;
                }
                _ => unknown.extend_from_slice(field.raw),
            }
        }
        meta.data_type = data_type.ok_or_else(no_data_type)?;
        meta.unknown = unknown.into();
        Ok(meta)
    }

    /// Encodes the metadata as a frame: known fields in the order of their numbers, then the headers in the
    /// order of their keys, then the unknown fields as they were received.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut frame = Vec::with_capacity(self.encoded_len());
        for (number, value) in self.present() {
            value.encode(number, &mut frame);
        }
        if !self.headers.is_empty() {
            self.headers.encode(&mut frame);
        }
        frame.extend_from_slice(&self.unknown);
        frame.into()
    }

    /// Returns the length of the encoded frame, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.present().map(|(number, value)| value.encoded_len(number)).sum::<usize>()
            + if self.headers.is_empty() { 0 } else { self.headers.encoded_len() }
            + self.unknown.len()
    }

    /// Returns the encoded fields that this version does not know, in the order in which they were received.
    #[must_use]
    pub fn unknown_fields(&self) -> &[u8] {
        &self.unknown
    }

    fn present(&self) -> impl Iterator<Item = (u32, Value<'_>)> {
        fn text(value: Option<&String>) -> Option<Value<'_>> {
            value.map(|text| Value::Text(text.as_bytes()))
        }
        fn number<'a>(value: Option<impl Into<i32>>) -> Option<Value<'a>> {
            // Protobuf sign-extends the number of an enum to 64 bits.
            value.map(|value| Value::Varint(i64::from(value.into()).cast_unsigned()))
        }
        let all = [
            (1, text(self.version.as_ref())),
            (2, text(self.description.as_ref())),
            (3, text(self.author.as_ref())),
            (STATUS, number(self.status)),
            (5, self.severity_id.map(|id| Value::Fixed32(id.cast_unsigned()))),
            (6, text(self.sender.as_ref())),
            (7, text(self.sender_state.as_ref())),
            (8, self.communication_id.map(Value::Fixed32)),
            (10, text(self.composition.as_ref())),
            (11, self.execution_time.map(|time| Value::Fixed64(time.cast_unsigned()))),
            (12, number(self.action)),
            (13, number(self.control)),
            (DATA_TYPE, text(Some(&self.data_type))),
            (15, text(self.data_type_description.as_ref())),
            (REPLY_TO, text(self.reply_to.as_ref())),
            (17, number(self.byte_order)),
        ];
        all.into_iter().filter_map(|(number, value)| Some((number, value?)))
    }
}

/// Shows only the fields that are present.
impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn present<T: fmt::Debug>(value: Option<&T>) -> Option<&dyn fmt::Debug> {
            value.map(|value| value as _)
        }
        let unknown_len = (!self.unknown.is_empty()).then(|| self.unknown.len());
        let fields = [
            ("version", present(self.version.as_ref())),
            ("description", present(self.description.as_ref())),
            ("author", present(self.author.as_ref())),
            ("status", present(self.status.as_ref())),
            ("severity_id", present(self.severity_id.as_ref())),
            ("sender", present(self.sender.as_ref())),
            ("sender_state", present(self.sender_state.as_ref())),
            ("communication_id", present(self.communication_id.as_ref())),
            ("composition", present(self.composition.as_ref())),
            ("execution_time", present(self.execution_time.as_ref())),
            ("action", present(self.action.as_ref())),
            ("control", present(self.control.as_ref())),
            ("data_type", Some(&self.data_type)),
            ("data_type_description", present(self.data_type_description.as_ref())),
            ("reply_to", present(self.reply_to.as_ref())),
            ("byte_order", present(self.byte_order.as_ref())),
            ("headers", (!self.headers.is_empty()).then_some(&self.headers as _)),
            ("unknown_len", present(unknown_len.as_ref())),
        ];
        let mut meta = f.debug_struct("Meta");
        for (name, value) in fields {
            if let Some(value) = value {
                meta.field(name, value);
            }
        }
        meta.finish()
    }
}

macro_rules! numbered {
    ($name:ident: $($variant:ident = $number:literal),+) => {
        impl From<i32> for $name {
            fn from(number: i32) -> Self {
                match number {
                    $($number => Self::$variant,)+
                    _ => Self::Unknown(number),
                }
            }
        }

        impl From<$name> for i32 {
            fn from(value: $name) -> Self {
                match value {
                    $($name::$variant => $number,)+
                    $name::Unknown(number) => number,
                }
            }
        }
    };
}

numbered!(Status: Info = 1, Warning = 2, Error = 3);
numbered!(Action: Execute = 0, Configure = 1);
numbered!(Control: Skip = 0);
numbered!(ByteOrder: Little = 1, Big = 2);

/// Returns the frame of `Meta::new(mime_type)`. For the MIME types that xMsg defines, it is a constant.
pub(crate) fn frame_of(mime_type: &str) -> Bytes {
    macro_rules! ready_made {
        ($($known:path),+ $(,)?) => {
            match mime_type {
                $($known => {
                    static FRAME: [u8; $known.len() + 2] = ready_made($known);
                    Bytes::from_static(&FRAME)
                })+
                _ => Meta::new(mime_type).encode(),
            }
        };
    }
    ready_made!(
        mime::SINT32,
        mime::SINT64,
        mime::SFIXED32,
        mime::SFIXED64,
        mime::FLOAT,
        mime::DOUBLE,
        mime::STRING,
        mime::BYTES,
        mime::ARRAY_SINT32,
        mime::ARRAY_SINT64,
        mime::ARRAY_SFIXED32,
        mime::ARRAY_SFIXED64,
        mime::ARRAY_FLOAT,
        mime::ARRAY_DOUBLE,
        mime::ARRAY_STRING,
        mime::ARRAY_BYTES,
        mime::NATIVE,
        mime::JSON,
    )
}

/// Returns the MIME type in a metadata frame, without decoding the rest.
pub(crate) fn data_type(frame: &[u8]) -> Result<&str> {
    let value = last_text(frame, DATA_TYPE)?.ok_or_else(no_data_type)?;
    str::from_utf8(value).map_err(|error| not_utf8(DATA_TYPE).with_source(error))
}

/// Returns the status in a metadata frame, without decoding the rest. The structure of the whole frame is
/// checked.
pub(crate) fn status(frame: &[u8]) -> Result<Option<Status>> {
    let mut last = None;
    for field in fields(frame) {
        if let Field { number: STATUS, value: Some(Value::Varint(value)), .. } = field? {
            last = Some((value as i32).into());
        }
    }
    Ok(last)
}

/// Returns the reply topic in a metadata frame, without a copy and without decoding the rest.
pub(crate) fn reply_to(frame: &Bytes) -> Result<Option<Bytes>> {
    Ok(last_text(frame, REPLY_TO)?.map(|value| frame.slice_ref(value)))
}

/// Returns the same metadata frame with this reply topic, or without one. All other bytes stay the same.
pub(crate) fn with_reply_to(frame: &Bytes, reply_to: Option<&[u8]>) -> Result<Bytes> {
    if reply_to.is_none() && last_text(frame, REPLY_TO)?.is_none() {
        return Ok(frame.clone());
    }
    let value = reply_to.map(Value::Text);
    let added = value.as_ref().map_or(0, |value| value.encoded_len(REPLY_TO));
    let mut changed = Vec::with_capacity(frame.len() + added);
    for field in fields(frame) {
        let field = field?;
        if field.number != REPLY_TO {
            changed.extend_from_slice(field.raw);
        }
    }
    if let Some(value) = value {
        value.encode(REPLY_TO, &mut changed);
    }
    Ok(changed.into())
}

const fn ready_made<const N: usize>(mime_type: &str) -> [u8; N] {
    // A length below 128 is encoded in one byte, and every name in `mime` is shorter than that.
    assert!(mime_type.len() < 128 && N == mime_type.len() + 2);
    let mut frame = [0; N];
    frame[0] = (DATA_TYPE << 3) as u8 | WireType::LengthDelimited as u8;
    frame[1] = mime_type.len() as u8;
    let mut at = 0;
    while at < mime_type.len() {
        frame[at + 2] = mime_type.as_bytes()[at];
        at += 1;
    }
    frame
}

/// One field of a frame, as it is encoded.
struct Field<'a> {
    number: u32,
    /// The value; `None` for a group, which no field of `Meta` is.
    value: Option<Value<'a>>,
    raw: &'a [u8],
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Text(&'a [u8]),
}

impl Value<'_> {
    fn encode(self, number: u32, frame: &mut Vec<u8>) {
        match self {
            Self::Varint(value) => {
                encode_key(number, WireType::Varint, frame);
                encode_varint(value, frame);
            }
            Self::Fixed32(value) => {
                encode_key(number, WireType::ThirtyTwoBit, frame);
                frame.extend_from_slice(&value.to_le_bytes());
            }
            Self::Fixed64(value) => {
                encode_key(number, WireType::SixtyFourBit, frame);
                frame.extend_from_slice(&value.to_le_bytes());
            }
            Self::Text(value) => {
                encode_key(number, WireType::LengthDelimited, frame);
                encode_varint(value.len() as u64, frame);
                frame.extend_from_slice(value);
            }
        }
    }

    fn encoded_len(&self, number: u32) -> usize {
        key_len(number)
            + match self {
                Self::Varint(value) => encoded_len_varint(*value),
                Self::Fixed32(_) => 4,
                Self::Fixed64(_) => 8,
                Self::Text(value) => encoded_len_varint(value.len() as u64) + value.len(),
            }
    }
}

/// Returns the fields of a frame in order, up to the first error.
fn fields(frame: &[u8]) -> impl Iterator<Item = Result<Field<'_>>> {
    let mut rest = frame;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = next_field(&mut rest).map_err(|error| {
            rest = &[];
            Error::new(ErrorKind::InvalidMessage, "the metadata of a message is not a protobuf message")
                .with_source(error)
        });
        Some(field)
    })
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Result<Field<'a>, prost::DecodeError> {
    let start = *rest;
    let (number, wire_type) = decode_key(rest)?;
    let mut body = *rest;
    skip_field(wire_type, number, rest, DecodeContext::default())?;
    body = &body[..body.len() - rest.len()];
    let value = match wire_type {
        WireType::Varint => Some(Value::Varint(decode_varint(&mut body)?)),
        WireType::ThirtyTwoBit => body.first_chunk().map(|value| Value::Fixed32(u32::from_le_bytes(*value))),
        WireType::SixtyFourBit => body.first_chunk().map(|value| Value::Fixed64(u64::from_le_bytes(*value))),
        WireType::LengthDelimited => {
            decode_varint(&mut body)?;
            Some(Value::Text(body))
        }
        WireType::StartGroup | WireType::EndGroup => None,
    };
    Ok(Field { number, value, raw: &start[..start.len() - rest.len()] })
}

/// Returns the value of a text field. If the field occurs several times, the last value counts. The whole
/// frame is checked.
fn last_text(frame: &[u8], number: u32) -> Result<Option<&[u8]>> {
    let mut last = None;
    for field in fields(frame) {
        if let Field { number: found, value: Some(Value::Text(value)), .. } = field?
            && found == number
        {
            last = Some(value);
        }
    }
    Ok(last)
}

fn text(number: u32, value: &[u8]) -> Result<String> {
    match str::from_utf8(value) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(not_utf8(number).with_source(error)),
    }
}

fn not_utf8(number: u32) -> Error {
    Error::new(
        ErrorKind::InvalidMessage,
        format!("field {number} of the metadata of a message is not UTF-8: its sender has to mend it"),
    )
}

fn no_data_type() -> Error {
    Error::new(
        ErrorKind::InvalidMessage,
        "the metadata of a message has no `dataType`: its sender has to say the mime type of the data",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame with every field set. The bytes are those that Google's protobuf produces for the same values.
    const GOLDEN: &str = concat!(
        "0a03322e34120673636f7265731a047a6fc3ab20032dfeffffff32087265706f727465723a0045fe",
        "ffffff5204612b623b5935fb048ee0feffff60016800720b746578742f737472696e677a0661206c",
        "696e658201147265743a30613162326333643a34303030303037880101",
    );

    fn full() -> Meta {
        Meta {
            version: Some("2.4".into()),
            description: Some("scores".into()),
            author: Some("zoë".into()),
            status: Some(Status::Error),
            severity_id: Some(-2),
            sender: Some("reporter".into()),
            sender_state: Some(String::new()),
            communication_id: Some(0xffff_fffe),
            composition: Some("a+b;".into()),
            execution_time: Some(-1_234_567_890_123),
            action: Some(Action::Configure),
            control: Some(Control::Skip),
            data_type: "text/string".into(),
            data_type_description: Some("a line".into()),
            reply_to: Some("ret:0a1b2c3d:4000007".into()),
            byte_order: Some(ByteOrder::Little),
            headers: Headers::new(),
            unknown: Bytes::new(),
        }
    }

    fn golden() -> Bytes {
        hex::decode(GOLDEN).unwrap().into()
    }

    #[test]
    fn every_field_has_the_bytes_of_protobuf() {
        assert_eq!(hex::encode(full().encode()), GOLDEN);
        assert_eq!(Meta::decode(&golden()).unwrap(), full());
        assert_eq!(full().encoded_len(), golden().len());
    }

    #[test]
    fn only_the_mime_type_is_required() {
        let frame = Meta::new("a/b").encode();
        assert_eq!(hex::encode(&frame), "7203612f62");
        assert_eq!(Meta::decode(&frame).unwrap(), Meta::new("a/b"));

        for frame in ["", "0a03322e34"] {
            let error = Meta::decode(&hex::decode(frame).unwrap().into()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidMessage);
            assert!(error.to_string().contains("dataType"), "{error}");
        }
    }

    #[test]
    fn ready_made_frames_are_what_encoding_gives() {
        for mime_type in mime::ALL.into_iter().chain([mime::NATIVE, mime::JSON, "image/png"]) {
            assert_eq!(frame_of(mime_type), Meta::new(mime_type).encode());
        }
    }

    #[test]
    fn unknown_fields_are_kept_byte_for_byte() {
        // A varint, a group, a length-delimited field, and field 3, which is a text, as a varint. They are
        // out of order.
        let unknown = ["a00601", "ab0610071dacbeadba", "ac06", "fa0603616263", "1805"].concat();
        let frame: Bytes = hex::decode(unknown.clone() + "7203612f62").unwrap().into();
        let meta = Meta::decode(&frame).unwrap();
        assert_eq!(hex::encode(meta.unknown_fields()), unknown);
        assert_eq!(hex::encode(meta.encode()), "7203612f62".to_owned() + &unknown);
        assert_eq!(meta.encoded_len(), frame.len());
    }

    #[test]
    fn unknown_enum_numbers_are_kept() {
        let mut meta = Meta::new("a/b");
        meta.status = Some(Status::Unknown(9));
        meta.control = Some(Control::Unknown(-1));
        let frame = meta.encode();
        assert_eq!(hex::encode(&frame), "200968ffffffffffffffffff017203612f62");
        assert_eq!(Meta::decode(&frame).unwrap(), meta);
    }

    #[test]
    fn damaged_frames_are_refused() {
        // Cut short; a length beyond the end; field number 0; an end of group alone; not UTF-8.
        for frame in ["72", "72ff", "7205612f62", "0000", "7303", "7201ff"] {
            let frame = hex::decode(frame).unwrap().into();
            assert_eq!(Meta::decode(&frame).unwrap_err().kind(), ErrorKind::InvalidMessage);
            assert_eq!(data_type(&frame).unwrap_err().kind(), ErrorKind::InvalidMessage);
        }
    }

    #[test]
    fn the_reply_topic_can_be_exchanged_alone() {
        let mut meta = full();
        let frame = golden();
        assert_eq!(reply_to(&frame).unwrap().unwrap(), "ret:0a1b2c3d:4000007");
        assert_eq!(data_type(&frame).unwrap(), "text/string");

        let cleared = with_reply_to(&frame, None).unwrap();
        meta.reply_to = None;
        assert_eq!(cleared, meta.encode());
        assert_eq!(reply_to(&cleared).unwrap(), None);
        assert_eq!(with_reply_to(&cleared, None).unwrap().as_ptr(), cleared.as_ptr());

        let set = with_reply_to(&frame, Some(b"return:1")).unwrap();
        meta.reply_to = Some("return:1".into());
        assert_eq!(Meta::decode(&set).unwrap(), meta);
    }

    fn any_meta() -> impl Strategy<Value = Meta> {
        let texts = prop::array::uniform8(any::<Option<String>>());
        let numbers = (any::<[Option<i32>; 5]>(), any::<Option<u32>>(), any::<Option<i64>>());
        (texts, numbers, any::<String>()).prop_map(|(texts, (numbers, id, time), data_type)| {
            let [version, description, author, sender, sender_state, composition, type_text, reply_to] =
                texts;
            let [status, severity_id, action, control, byte_order] = numbers;
            Meta {
                version,
                description,
                author,
                status: status.map(Into::into),
                severity_id,
                sender,
                sender_state,
                communication_id: id,
                composition,
                execution_time: time,
                action: action.map(Into::into),
                control: control.map(Into::into),
                data_type,
                data_type_description: type_text,
                reply_to,
                byte_order: byte_order.map(Into::into),
                headers: Headers::new(),
                unknown: Bytes::new(),
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_can_be_decoded(meta in any_meta()) {
            let frame = meta.encode();
            prop_assert_eq!(frame.len(), meta.encoded_len());
            prop_assert_eq!(data_type(&frame).unwrap(), &meta.data_type);
            prop_assert_eq!(reply_to(&frame).unwrap(), meta.reply_to.clone().map(Bytes::from));
            prop_assert_eq!(status(&frame).unwrap(), meta.status);
            prop_assert_eq!(Meta::decode(&frame).unwrap(), meta);
        }

        #[test]
        fn any_bytes_are_read_or_refused(frame: Vec<u8>) {
            let frame = Bytes::from(frame);
            if let Ok(meta) = Meta::decode(&frame) {
                prop_assert_eq!(Meta::decode(&meta.encode()).unwrap(), meta);
            }
            let _ = (data_type(&frame), reply_to(&frame), with_reply_to(&frame, Some(b"a")));
        }
    }
}
