//! Data: the third frame of a message, and its conversion from and to Rust values.
//!
//! The frame is opaque bytes; the MIME type in the metadata defines their meaning. Numbers, texts and arrays
//! of them are encoded as the protobuf (proto2) message `Data` of xMsg with one field set, and a reader
//! relies on the fields that are set. Two cases are special:
//!
//! - `binary/bytes` is the bytes themselves, without that message, as the Java library sends them. It is
//!   always read so: bytes that happen to look like a `Data` message are still the bytes.
//! - `binary/native` is a `Data` message whose MIME type does not say which fields are set. There may be
//!   several.

#[cfg(feature = "serde")]
mod json;
mod values;

use std::mem::take;

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{self, WireType, encode_key, encode_varint, encoded_len_varint, key_len};

#[cfg(feature = "serde")]
pub use self::json::Json;
pub use self::values::{ArrayElement, FromData, IntoData, ReadArrayElement, ToData, expect_mime_type};
use crate::{Error, ErrorKind, Result};

/// The MIME types that xMsg defines, and that of JSON.
pub mod mime {
    /// A 32-bit integer of variable length.
    pub const SINT32: &str = "binary/sint32";
    /// A 64-bit integer of variable length.
    pub const SINT64: &str = "binary/sint64";
    /// A 32-bit integer of fixed length.
    pub const SFIXED32: &str = "binary/sfixed32";
    /// A 64-bit integer of fixed length.
    pub const SFIXED64: &str = "binary/sfixed64";
    /// A 32-bit floating-point number.
    pub const FLOAT: &str = "binary/float";
    /// A 64-bit floating-point number.
    pub const DOUBLE: &str = "binary/double";
    /// A text.
    pub const STRING: &str = "text/string";
    /// Plain bytes, without a protobuf message around them.
    pub const BYTES: &str = "binary/bytes";
    /// An array of 32-bit integers of variable length.
    pub const ARRAY_SINT32: &str = "binary/array-sint32";
    /// An array of 64-bit integers of variable length.
    pub const ARRAY_SINT64: &str = "binary/array-sint64";
    /// An array of 32-bit integers of fixed length. C++ uses it for arrays of 64-bit integers, too.
    pub const ARRAY_SFIXED32: &str = "binary/array-sfixed32";
    /// An array of 64-bit integers of fixed length.
    pub const ARRAY_SFIXED64: &str = "binary/array-sfixed64";
    /// An array of 32-bit floating-point numbers.
    pub const ARRAY_FLOAT: &str = "binary/array-float";
    /// An array of 64-bit floating-point numbers.
    pub const ARRAY_DOUBLE: &str = "binary/array-double";
    /// An array of texts.
    pub const ARRAY_STRING: &str = "binary/array-string";
    /// An array of byte strings.
    pub const ARRAY_BYTES: &str = "binary/array-bytes";
    /// A `Data` message with any of its fields.
    pub const NATIVE: &str = "binary/native";
    /// A serialized Java object, which only Java actors can use.
    pub const JAVA: &str = "binary/java";
    /// An object of a C++ actor, which only C++ actors can use.
    pub const CPP: &str = "binary/cpp";
    /// JSON, which is not one of xMsg's own MIME types.
    pub const JSON: &str = "application/json";
    /// An object of a Python actor, which only Python actors can use.
    pub const PYTHON: &str = "binary/python";

    /// The MIME types of the fields 1 to 16 of a `Data` message, in order.
    pub const ALL: [&str; 16] = [
        SINT32,
        SINT64,
        SFIXED32,
        SFIXED64,
        FLOAT,
        DOUBLE,
        STRING,
        BYTES,
        ARRAY_SINT32,
        ARRAY_SINT64,
        ARRAY_SFIXED32,
        ARRAY_SFIXED64,
        ARRAY_FLOAT,
        ARRAY_DOUBLE,
        ARRAY_STRING,
        ARRAY_BYTES,
    ];
}

/// A value of one of the sixteen kinds that all xMsg libraries can read.
///
/// ```
/// use xmsg_core::data::{Data, mime};
///
/// let data = Data::from(vec![1.5, 2.5]);
/// let frame = data.encode();
/// assert_eq!(data.mime_type(), mime::ARRAY_DOUBLE);
/// assert_eq!(Data::decode(mime::ARRAY_DOUBLE, &frame)?, data);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// 1, `binary/sint32`: values near zero have a short encoding.
    Sint32(i32),
    /// 2, `binary/sint64`: values near zero have a short encoding.
    Sint64(i64),
    /// 3, `binary/sfixed32`: four bytes. The other libraries send it for an int.
    Sfixed32(i32),
    /// 4, `binary/sfixed64`: eight bytes. The other libraries send it for a long.
    Sfixed64(i64),
    /// 5, `binary/float`.
    Float(f32),
    /// 6, `binary/double`.
    Double(f64),
    /// 7, `text/string`.
    String(String),
    /// 8, `binary/bytes`.
    Bytes(Bytes),
    /// 9, `binary/array-sint32`.
    Sint32Array(Vec<i32>),
    /// 10, `binary/array-sint64`.
    Sint64Array(Vec<i64>),
    /// 11, `binary/array-sfixed32`.
    Sfixed32Array(Vec<i32>),
    /// 12, `binary/array-sfixed64`.
    Sfixed64Array(Vec<i64>),
    /// 13, `binary/array-float`.
    FloatArray(Vec<f32>),
    /// 14, `binary/array-double`.
    DoubleArray(Vec<f64>),
    /// 15, `binary/array-string`.
    StringArray(Vec<String>),
    /// 16, `binary/array-bytes`.
    BytesArray(Vec<Bytes>),
}

impl Data {
    /// Returns the MIME type of this kind of value.
    #[must_use]
    pub fn mime_type(&self) -> &'static str {
        name(self.number())
    }

    /// Encodes the value as a data frame with this [`mime_type`](Self::mime_type). Arrays are not packed and
    /// the field `type` is not set, as in the other libraries. [`Data::Bytes`] is encoded as the bytes
    /// themselves.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            _ => self.encode_field(),
        }
    }

    /// Encodes the value as a `Data` message, for a data frame of [`mime::NATIVE`]. The encoding of an empty
    /// array has no field with its values, so in this case only the field `type` is set.
    #[must_use]
    pub fn encode_native(&self) -> Bytes {
        let frame = self.encode_field();
        if !frame.is_empty() {
            return frame;
        }
        Wire { kind: Some(self.number().cast_signed()), ..Wire::default() }.encode_to_vec().into()
    }

    /// Decodes a data frame of one of the sixteen MIME types or of [`mime::NATIVE`]. Packed arrays are
    /// accepted. If a `binary/native` frame holds several values, the field `type` says which one counts.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the MIME type is another, the frame is damaged or holds no value,
    /// or it holds several values without a `type`: read those one by one with [`FromData`].
    pub fn decode(mime_type: &str, frame: &Bytes) -> Result<Self> {
        if mime_type == mime::NATIVE {
            return Wire::decode_frame(frame)?.take_only();
        }
        let number = number_of(mime_type).ok_or_else(|| {
            invalid(format!(
                "data of the mime type `{mime_type}` is none of xMsg's own kinds: read its bytes"
            ))
        })?;
        decode_number(number, frame)
    }
}

/// Named values in one message, in order: the protobuf message `Payload` of xMsg. It has no MIME type of its
/// own; sender and receiver agree on one.
///
/// ```
/// use xmsg_core::data::Payload;
///
/// let payload = Payload { items: vec![("run".into(), 17.into()), ("gain".into(), 2.5.into())] };
/// assert_eq!(Payload::decode(&payload.encode())?, payload);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Payload {
    /// Names and values. A name may occur more than once.
    pub items: Vec<(String, Data)>,
}

impl Payload {
    /// Encodes the payload as a data frame.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut frame = Vec::new();
        for (name, data) in &self.items {
            let item =
                [length_delimited(1, name.as_bytes()), length_delimited(2, &data.encode_native())].concat();
            frame.extend_from_slice(&length_delimited(1, &item));
        }
        frame.into()
    }

    /// Decodes a data frame.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the frame is damaged, or an item lacks its name or its value.
    pub fn decode(frame: &Bytes) -> Result<Self> {
        let wire = WirePayload::decode(frame.clone()).map_err(not_protobuf)?;
        let item = |item: WireItem| match (item.name, item.data) {
            (Some(name), Some(data)) => Ok((name, data.take_only()?)),
            _ => {
                Err(invalid("an item of the payload lacks its name or its data: its sender has to give both"))
            }
        };
        Ok(Self { items: wire.item.into_iter().map(item).collect::<Result<_>>()? })
    }
}

/// The message `Data` for decoding. Any of its fields may be set.
#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(sint32, optional, tag = 1)]
    sint32: Option<i32>,
    #[prost(sint64, optional, tag = 2)]
    sint64: Option<i64>,
    #[prost(sfixed32, optional, tag = 3)]
    sfixed32: Option<i32>,
    #[prost(sfixed64, optional, tag = 4)]
    sfixed64: Option<i64>,
    #[prost(float, optional, tag = 5)]
    float: Option<f32>,
    #[prost(double, optional, tag = 6)]
    double: Option<f64>,
    #[prost(string, optional, tag = 7)]
    string: Option<String>,
    #[prost(bytes = "bytes", optional, tag = 8)]
    bytes: Option<Bytes>,
    #[prost(sint32, repeated, packed = "false", tag = 9)]
    sint32_array: Vec<i32>,
    #[prost(sint64, repeated, packed = "false", tag = 10)]
    sint64_array: Vec<i64>,
    #[prost(sfixed32, repeated, packed = "false", tag = 11)]
    sfixed32_array: Vec<i32>,
    #[prost(sfixed64, repeated, packed = "false", tag = 12)]
    sfixed64_array: Vec<i64>,
    #[prost(float, repeated, packed = "false", tag = 13)]
    float_array: Vec<f32>,
    #[prost(double, repeated, packed = "false", tag = 14)]
    double_array: Vec<f64>,
    #[prost(string, repeated, tag = 15)]
    string_array: Vec<String>,
    #[prost(bytes = "bytes", repeated, tag = 16)]
    bytes_array: Vec<Bytes>,
    #[prost(int32, optional, tag = 17)]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WirePayload {
    #[prost(message, repeated, tag = 1)]
    item: Vec<WireItem>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireItem {
    #[prost(string, optional, tag = 1)]
    name: Option<String>,
    #[prost(message, optional, tag = 2)]
    data: Option<Wire>,
}

impl Wire {
    fn decode_frame(frame: &Bytes) -> Result<Self> {
        // Decoding from `Bytes` shares byte strings instead of copying them.
        Self::decode(frame.clone()).map_err(not_protobuf)
    }

    /// Returns the number in the field `type`, if it is one of the sixteen.
    fn marked(&self) -> Option<u32> {
        self.kind.and_then(|kind| u32::try_from(kind).ok()).filter(|kind| (1..=16).contains(kind))
    }

    /// Returns the value that the field `type` names, or else the only value there is.
    fn take_only(mut self) -> Result<Data> {
        let set: Vec<u32> = (1..=16).filter(|number| self.has(*number)).collect();
        let number = match (self.marked(), set.as_slice()) {
            (Some(marked), _) => marked,
            (None, [only]) => *only,
            (None, []) => return Err(invalid("the data of the message holds no value")),
            (None, several) => {
                let kinds = names(several).join(", ");
                return Err(invalid(format!(
                    "the data of the message holds several values ({kinds}): ask for one by its type"
                )));
            }
        };
        self.take(number).ok_or_else(|| no_value(&[name(number)]))
    }
}

/// Defines what depends on the kind: number, variant, field of `Wire`, and encoding. `Wire` could encode a
/// value, too, but only after copying it.
macro_rules! kinds {
    (
        single: $($number:literal $single:ident $field:ident),+;
        array: $($array_number:literal $array:ident $array_field:ident $element:ident),+;
    ) => {
        impl Data {
            /// The number of the field, which is also the value of the field `type`.
            fn number(&self) -> u32 {
                match self {
                    $(Self::$single(_) => $number,)+
                    $(Self::$array(_) => $array_number,)+
                }
            }

            /// Encodes the value as a `Data` message with one field.
            fn encode_field(&self) -> Bytes {
                let mut frame = Vec::new();
                match self {
                    $(Self::$single(value) => {
                        frame.reserve_exact(encoding::$field::encoded_len($number, value));
                        encoding::$field::encode($number, value, &mut frame);
                    })+
                    $(Self::$array(values) => {
                        frame.reserve_exact(encoding::$element::encoded_len_repeated($array_number, values));
                        encoding::$element::encode_repeated($array_number, values, &mut frame);
                    })+
                }
                frame.into()
            }
        }

        impl Wire {
            /// Whether the field is set. An empty array is not.
            fn has(&self, number: u32) -> bool {
                match number {
                    $($number => self.$field.is_some(),)+
                    $($array_number => !self.$array_field.is_empty(),)+
                    _ => false,
                }
            }

            /// Takes the value of a field: `None` if it is not set. An array that is not set is empty.
            fn take(&mut self, number: u32) -> Option<Data> {
                match number {
                    $($number => self.$field.take().map(Data::$single),)+
                    $($array_number => Some(Data::$array(take(&mut self.$array_field))),)+
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    single: 1 Sint32 sint32, 2 Sint64 sint64, 3 Sfixed32 sfixed32, 4 Sfixed64 sfixed64, 5 Float float,
        6 Double double, 7 String string, 8 Bytes bytes;
    array: 9 Sint32Array sint32_array sint32, 10 Sint64Array sint64_array sint64,
        11 Sfixed32Array sfixed32_array sfixed32, 12 Sfixed64Array sfixed64_array sfixed64,
        13 FloatArray float_array float, 14 DoubleArray double_array double,
        15 StringArray string_array string, 16 BytesArray bytes_array bytes;
}

/// Returns the value of the first of these kinds that the frame holds, if its MIME type allows one of them.
fn pick(numbers: &[u32], mime_type: &str, frame: &Bytes) -> Result<Data> {
    if mime_type == mime::NATIVE {
        let mut wire = Wire::decode_frame(frame)?;
        let found = numbers.iter().find(|number| wire.has(**number) || wire.marked() == Some(**number));
        let value = found.and_then(|number| wire.take(*number));
        return value.ok_or_else(|| no_value(&names(numbers)));
    }
    match number_of(mime_type) {
        Some(number) if numbers.contains(&number) => decode_number(number, frame),
        _ => Err(unexpected(mime_type, &names(numbers))),
    }
}

/// Decodes a frame whose MIME type is that of this field.
fn decode_number(number: u32, frame: &Bytes) -> Result<Data> {
    if number == 8 {
        return Ok(Data::Bytes(frame.clone()));
    }
    let mut wire = Wire::decode_frame(frame)?;
    // C++ gives an array of 64-bit integers the MIME type of 32-bit integers.
    let from_cpp = number == 11 && !wire.has(11) && wire.has(12);
    wire.take(if from_cpp { 12 } else { number }).ok_or_else(|| no_value(&[name(number)]))
}

fn number_of(mime_type: &str) -> Option<u32> {
    mime::ALL.iter().zip(1..).find_map(|(known, number)| (*known == mime_type).then_some(number))
}

fn name(number: u32) -> &'static str {
    mime::ALL[number as usize - 1]
}

fn names(numbers: &[u32]) -> Vec<&'static str> {
    numbers.iter().map(|number| name(*number)).collect()
}

/// Encodes a text or bytes as a field of a protobuf message.
fn length_delimited(number: u32, value: &[u8]) -> Bytes {
    let length = value.len() as u64;
    let mut frame = Vec::with_capacity(key_len(number) + encoded_len_varint(length) + value.len());
    encode_key(number, WireType::LengthDelimited, &mut frame);
    encode_varint(length, &mut frame);
    frame.extend_from_slice(value);
    frame.into()
}

fn unexpected(found: &str, expected: &[&str]) -> Error {
    invalid(format!(
        "the data of the message has the mime type `{found}`, expected `{}`: ask for a type that fits, or \
         read the bytes",
        expected.join("` or `")
    ))
}

fn no_value(expected: &[&str]) -> Error {
    invalid(format!("the data of the message holds no value of the kind `{}`", expected.join("` or `")))
}

fn not_protobuf(source: prost::DecodeError) -> Error {
    invalid("the data of the message is not the protobuf message that its mime type says").with_source(source)
}

fn invalid(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidMessage, context)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(hex: &str) -> Bytes {
        hex::decode(hex).unwrap().into()
    }

    #[track_caller]
    fn assert_invalid<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidMessage);
        for part in parts {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn bytes_are_raw_even_if_they_look_like_protobuf() {
        let wrapped = Data::Bytes("abc".into()).encode_native();
        assert_eq!(Data::decode(mime::BYTES, &wrapped).unwrap(), Data::Bytes(wrapped.clone()));
        assert_eq!(Vec::<u8>::from_data(mime::NATIVE, &wrapped).unwrap(), b"abc");
    }

    #[test]
    fn native_data_may_hold_several_values() {
        let several = frame("1d64000000310000000000001240719a99999999991140");
        assert_eq!(i32::from_data(mime::NATIVE, &several).unwrap(), 100);
        assert_eq!(f64::from_data(mime::NATIVE, &several).unwrap().to_bits(), 4.5_f64.to_bits());
        assert_eq!(Vec::<f64>::from_data(mime::NATIVE, &several).unwrap(), [4.4]);
        assert_invalid(String::from_data(mime::NATIVE, &several), &["no value", "`text/string`"]);
        assert_invalid(Data::decode(mime::NATIVE, &several), &["several", "sfixed32", "double"]);

        let marked = [several.as_ref(), &[0x88, 0x01, 6]].concat().into();
        assert_eq!(Data::decode(mime::NATIVE, &marked).unwrap(), Data::Double(4.5));
        assert_invalid(Data::decode(mime::NATIVE, &Bytes::new()), &["no value"]);
    }

    #[test]
    fn only_an_empty_native_array_is_marked_with_its_type() {
        let empty = Data::Sint32Array(Vec::new());
        assert!(empty.encode().is_empty());
        assert_eq!(empty.encode_native(), frame("880109"));
        assert_eq!(Data::decode(mime::NATIVE, &frame("880109")).unwrap(), empty);
        assert_eq!(Data::Sint32(0).encode_native(), frame("0800"));
    }

    #[test]
    fn data_that_does_not_fit_is_refused() {
        assert_invalid(Data::decode("image/png", &Bytes::new()), &["`image/png`"]);
        assert_invalid(String::from_data("image/png", &Bytes::new()), &["`image/png`", "`text/string`"]);
        assert_invalid(Data::decode(mime::DOUBLE, &Bytes::new()), &["no value", "`binary/double`"]);
        assert_invalid(Data::decode(mime::DOUBLE, &frame("2d0000c03f")), &["no value"]);
        assert_invalid(Data::decode(mime::DOUBLE, &frame("3100")), &["not the protobuf message"]);
        assert_invalid(String::from_data(mime::STRING, &frame("3a01ff")), &["not the protobuf message"]);
        assert_invalid(Payload::decode(&frame("0a030a0161")), &["lacks its name or its data"]);
    }

    fn any_data() -> impl Strategy<Value = Data> {
        prop_oneof![
            any::<i32>().prop_map(Data::Sint32),
            any::<i64>().prop_map(Data::Sint64),
            any::<i32>().prop_map(Data::Sfixed32),
            any::<i64>().prop_map(Data::Sfixed64),
            any::<f32>().prop_map(Data::Float),
            any::<f64>().prop_map(Data::Double),
            any::<String>().prop_map(Data::String),
            any::<Vec<u8>>().prop_map(|bytes| Data::Bytes(bytes.into())),
            any::<Vec<i32>>().prop_map(Data::Sint32Array),
            any::<Vec<i64>>().prop_map(Data::Sint64Array),
            any::<Vec<i32>>().prop_map(Data::Sfixed32Array),
            any::<Vec<i64>>().prop_map(Data::Sfixed64Array),
            any::<Vec<f32>>().prop_map(Data::FloatArray),
            any::<Vec<f64>>().prop_map(Data::DoubleArray),
            any::<Vec<String>>().prop_map(Data::StringArray),
            any::<Vec<Vec<u8>>>().prop_map(|all| Data::BytesArray(all.into_iter().map(Into::into).collect())),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_can_be_decoded(data in any_data()) {
            prop_assert_eq!(&Data::decode(data.mime_type(), &data.encode()).unwrap(), &data);
            prop_assert_eq!(&Data::decode(mime::NATIVE, &data.encode_native()).unwrap(), &data);
        }

        #[test]
        fn payloads_keep_names_and_order(items in prop::collection::vec((any::<String>(), any_data()), 0..4)
        ) {
            let payload = Payload { items };
            prop_assert_eq!(Payload::decode(&payload.encode()).unwrap(), payload);
        }

        #[test]
        fn any_bytes_are_read_or_refused(number in 0..17_usize, bytes: Vec<u8>) {
            let mime_type = mime::ALL.get(number).copied().unwrap_or(mime::NATIVE);
            let bytes = Bytes::from(bytes);
            let _ = Data::decode(mime_type, &bytes);
            let _ = Payload::decode(&bytes);
        }
    }
}
