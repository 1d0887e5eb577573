//! Rust values as data, and back.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::{Data, invalid, length_delimited, mime, name, names, pick, unexpected};
use crate::error::{Error, ErrorKind, Result};

/// A value that can become the data of a message: a number, a `bool`, text, bytes, an array of those, or a
/// reference to one. Implement it for a type of your own to give it a mime type.
///
/// Every value is sent as one of xMsg's sixteen kinds, so that all peers can read it:
///
/// | Rust | mime type |
/// |---|---|
/// | `i8`, `u8`, `i16`, `u16`, `i32` | `binary/sfixed32`, what Java sends for an `int` |
/// | `u32`, `i64`, `u64`, `isize`, `usize` | `binary/sfixed64`, what Java sends for a `long` |
/// | `f32`, `f64` | `binary/float`, `binary/double` |
/// | `bool` | `binary/sfixed32`, as 0 or 1: xMsg has no kind for it |
/// | `&str`, `String`, `Cow<str>` | `text/string` |
/// | `Bytes`; slices, arrays and `Vec` of `u8` | `binary/bytes`: the bytes as they are |
/// | slices, arrays and `Vec` of the other types | `binary/array-…` of the kind of their elements |
///
/// A `u64`, `usize` or `isize` that is no `i64` is an error ([`ErrorKind::InvalidMessage`]), because no kind of
/// xMsg holds it. Integers of 128 bits are not offered for the same reason: they are sent as bytes or as text.
///
/// ```
/// use bytes::Bytes;
/// use xmsg_core::data::{FromData, IntoData};
/// use xmsg_core::{Message, Result};
///
/// #[derive(Debug, PartialEq)]
/// struct Png(Bytes);
///
/// impl IntoData for Png {
///     fn into_data(self) -> Result<(&'static str, Bytes)> {
///         Ok(("image/png", self.0))
///     }
/// }
///
/// impl FromData for Png {
///     fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self> {
///         xmsg_core::data::expect_mime_type(mime_type, &["image/png"])?;
///         Ok(Self(frame.clone()))
///     }
/// }
///
/// let message = Message::of("picture", Png("\u{89}PNG".into()))?;
/// assert_eq!(message.value::<Png>()?, Png("\u{89}PNG".into()));
/// # Ok::<(), xmsg_core::Error>(())
/// ```
pub trait IntoData {
    /// The mime type of the value, and its data frame; an error when the value can't be sent.
    fn into_data(self) -> Result<(&'static str, Bytes)>;
}

/// A value that becomes data without being given away: a reference to it is [`IntoData`].
///
/// ```
/// use bytes::Bytes;
/// use xmsg_core::data::ToData;
/// use xmsg_core::{Message, Result};
///
/// struct Line([f32; 2]);
///
/// impl ToData for Line {
///     fn to_data(&self) -> Result<(&'static str, Bytes)> {
///         self.0.to_data()
///     }
/// }
///
/// let message = Message::of("line", &Line([0.5, 2.0]))?;
/// assert_eq!(message.value::<Vec<f32>>()?, [0.5, 2.0]);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
pub trait ToData {
    /// The mime type of the value, and its data frame; an error when the value can't be sent.
    fn to_data(&self) -> Result<(&'static str, Bytes)>;
}

/// A value that can be read from the data of a message, of one or more mime types.
///
/// What [`IntoData`] sends is read back as the same type. An integer is read from every kind of integers, if its
/// type can hold the number, and an array of integers likewise; `true` is 1, and `false` is 0. Nothing else is
/// converted: an integer is not read as an `f64`, nor an `f32`. From `binary/native` a value is read when its
/// field is set, whatever other fields are. An array `[T; N]` is read only from one of N elements.
///
/// ```
/// use xmsg_core::Message;
///
/// let message = Message::of("count", 300)?;
/// assert_eq!((message.value::<i32>()?, message.value::<u64>()?), (300, 300));
/// let error = message.value::<u8>().unwrap_err();
/// assert!(error.to_string().contains("300 does not fit into a `u8`"));
/// assert!(message.value::<f64>().is_err());
/// # Ok::<(), xmsg_core::Error>(())
/// ```
pub trait FromData: Sized {
    /// Reads the data frame. [`ErrorKind::InvalidMessage`], with what was found and what was expected, when
    /// the mime type is another ([`expect_mime_type`]) or the frame can't be read.
    fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self>;
}

/// A type of which slices, arrays and vectors are [`IntoData`].
///
/// ```
/// use bytes::Bytes;
/// use xmsg_core::data::ArrayElement;
/// use xmsg_core::{Message, Result};
///
/// struct Celsius(f32);
///
/// impl ArrayElement for Celsius {
///     fn array_to_data(values: &[Self]) -> Result<(&'static str, Bytes)> {
///         f32::vec_into_data(values.iter().map(|value| value.0).collect())
///     }
/// }
///
/// let message = Message::of("weather", [Celsius(4.5), Celsius(-1.0)])?;
/// assert_eq!(message.value::<Vec<f32>>()?, [4.5, -1.0]);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
pub trait ArrayElement: Sized {
    /// The mime type of an array of these values, and its data frame.
    fn array_to_data(values: &[Self]) -> Result<(&'static str, Bytes)>;

    /// The same of a vector that is given away.
    fn vec_into_data(values: Vec<Self>) -> Result<(&'static str, Bytes)> {
        Self::array_to_data(&values)
    }
}

/// A type of which vectors and arrays are [`FromData`].
///
/// ```
/// use bytes::Bytes;
/// use xmsg_core::data::ReadArrayElement;
/// use xmsg_core::{Message, Result};
///
/// #[derive(Debug, PartialEq)]
/// struct Celsius(f32);
///
/// impl ReadArrayElement for Celsius {
///     fn vec_from_data(mime_type: &str, frame: &Bytes) -> Result<Vec<Self>> {
///         Ok(f32::vec_from_data(mime_type, frame)?.into_iter().map(Self).collect())
///     }
/// }
///
/// let message = Message::of("weather", [4.5_f32, -1.0])?;
/// assert_eq!(message.value::<[Celsius; 2]>()?, [Celsius(4.5), Celsius(-1.0)]);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
pub trait ReadArrayElement: Sized {
    /// Reads a data frame that holds an array, as [`FromData::from_data`] does.
    fn vec_from_data(mime_type: &str, frame: &Bytes) -> Result<Vec<Self>>;
}

/// An error that names both, when the mime type of a message is none of those expected.
///
/// ```
/// use xmsg_core::data::expect_mime_type;
///
/// expect_mime_type("image/png", &["image/png", "image/jpeg"])?;
/// assert!(expect_mime_type("text/string", &["image/png"]).is_err());
/// # Ok::<(), xmsg_core::Error>(())
/// ```
pub fn expect_mime_type(found: &str, expected: &[&str]) -> Result<()> {
    if expected.contains(&found) { Ok(()) } else { Err(unexpected(found, expected)) }
}

impl<T: ToData + ?Sized> IntoData for &T {
    fn into_data(self) -> Result<(&'static str, Bytes)> {
        self.to_data()
    }
}

impl<T: ToData + ?Sized> ToData for &T {
    fn to_data(&self) -> Result<(&'static str, Bytes)> {
        (**self).to_data()
    }
}

// Numbers: each is a field of fixed length, alone or repeated. A type says which, and gives the bytes in it.

/// The number of a field, and how it is encoded.
#[derive(Clone, Copy)]
struct Field(u32, WireType);

impl Field {
    /// A `Data` message in which the field comes once for each of these values.
    fn encode<const N: usize>(self, values: impl ExactSizeIterator<Item = [u8; N]>) -> (&'static str, Bytes) {
        let Self(number, wire_type) = self;
        let mut frame = Vec::with_capacity(values.len() * (key_len(number) + N));
        for value in values {
            encode_key(number, wire_type, &mut frame);
            frame.extend_from_slice(&value);
        }
        (name(number), frame.into())
    }
}

const SFIXED32: Field = Field(3, WireType::ThirtyTwoBit);
const SFIXED64: Field = Field(4, WireType::SixtyFourBit);
const FLOAT: Field = Field(5, WireType::ThirtyTwoBit);
const DOUBLE: Field = Field(6, WireType::SixtyFourBit);
const ARRAY_SFIXED32: Field = Field(11, WireType::ThirtyTwoBit);
const ARRAY_SFIXED64: Field = Field(12, WireType::SixtyFourBit);
const ARRAY_FLOAT: Field = Field(13, WireType::ThirtyTwoBit);
const ARRAY_DOUBLE: Field = Field(14, WireType::SixtyFourBit);

macro_rules! number {
    ($type:ty as $sent:ty: $field:ident) => {
        impl ToData for $type {
            fn to_data(&self) -> Result<(&'static str, Bytes)> {
                Ok($field.encode([<$sent>::from(*self).to_le_bytes()].into_iter()))
            }
        }

        impl IntoData for $type {
            fn into_data(self) -> Result<(&'static str, Bytes)> {
                self.to_data()
            }
        }

        impl From<$type> for Data {
            fn from(value: $type) -> Self {
                <$sent>::from(value).into()
            }
        }
    };
    ($type:ty as $sent:ty: $field:ident, $array:ident) => {
        number!($type as $sent: $field);

        impl ArrayElement for $type {
            fn array_to_data(values: &[Self]) -> Result<(&'static str, Bytes)> {
                Ok($array.encode(values.iter().map(|value| <$sent>::from(*value).to_le_bytes())))
            }
        }
    };
}

number!(u8 as i32: SFIXED32);
number!(i8 as i32: SFIXED32, ARRAY_SFIXED32);
number!(i16 as i32: SFIXED32, ARRAY_SFIXED32);
number!(u16 as i32: SFIXED32, ARRAY_SFIXED32);
number!(bool as i32: SFIXED32, ARRAY_SFIXED32);
number!(u32 as i64: SFIXED64, ARRAY_SFIXED64);

/// What is sent as it is: no other way to become `Data`.
macro_rules! sent_as_it_is {
    ($($type:ty: $field:ident, $array:ident, $single:ident, $many:ident;)+) => {$(
        impl ToData for $type {
            fn to_data(&self) -> Result<(&'static str, Bytes)> {
                Ok($field.encode([self.to_le_bytes()].into_iter()))
            }
        }

        impl IntoData for $type {
            fn into_data(self) -> Result<(&'static str, Bytes)> {
                self.to_data()
            }
        }

        impl ArrayElement for $type {
            fn array_to_data(values: &[Self]) -> Result<(&'static str, Bytes)> {
                Ok($array.encode(values.iter().map(|value| value.to_le_bytes())))
            }
        }

        impl From<$type> for Data {
            fn from(value: $type) -> Self {
                Self::$single(value)
            }
        }

        impl From<Vec<$type>> for Data {
            fn from(values: Vec<$type>) -> Self {
                Self::$many(values)
            }
        }
    )+};
}

sent_as_it_is! {
    i32: SFIXED32, ARRAY_SFIXED32, Sfixed32, Sfixed32Array;
    i64: SFIXED64, ARRAY_SFIXED64, Sfixed64, Sfixed64Array;
    f32: FLOAT, ARRAY_FLOAT, Float, FloatArray;
    f64: DOUBLE, ARRAY_DOUBLE, Double, DoubleArray;
}

/// Integers that may be too large.
macro_rules! sent_if_it_fits {
    ($($type:ty),+) => {$(
        impl ToData for $type {
            fn to_data(&self) -> Result<(&'static str, Bytes)> {
                i64::try_from(*self).map_err(|error| too_large(self).with_source(error))?.to_data()
            }
        }

        impl IntoData for $type {
            fn into_data(self) -> Result<(&'static str, Bytes)> {
                self.to_data()
            }
        }

        impl ArrayElement for $type {
            fn array_to_data(values: &[Self]) -> Result<(&'static str, Bytes)> {
                let sent = |value: &Self| i64::try_from(*value).map_err(|error| too_large(value).with_source(error));
                i64::vec_into_data(values.iter().map(sent).collect::<Result<_>>()?)
            }
        }
    )+};
}

sent_if_it_fits!(u64, usize, isize);

/// An integer is read from any kind of integers; of several fields of a `binary/native` frame, from that which its
/// type is sent as.
macro_rules! read_integers {
    ($($numbers:ident, $arrays:ident: $($type:ty),+;)+) => {$($(
        impl FromData for $type {
            fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self> {
                fit(integer($numbers, mime_type, frame)?)
            }
        }

        impl ReadArrayElement for $type {
            fn vec_from_data(mime_type: &str, frame: &Bytes) -> Result<Vec<Self>> {
                match pick($arrays, mime_type, frame)? {
                    Data::Sfixed32Array(values) | Data::Sint32Array(values) => {
                        values.into_iter().map(fit).collect()
                    }
                    Data::Sfixed64Array(values) | Data::Sint64Array(values) => {
                        values.into_iter().map(fit).collect()
                    }
                    other => Err(unexpected(other.mime_type(), &names($arrays))),
                }
            }
        }
    )+)+};
}

const NARROW: &[u32] = &[3, 1, 4, 2];
const WIDE: &[u32] = &[4, 2, 3, 1];
const NARROW_ARRAYS: &[u32] = &[11, 9, 12, 10];
const WIDE_ARRAYS: &[u32] = &[12, 10, 11, 9];

read_integers! {
    NARROW, NARROW_ARRAYS: i8, i16, u16, i32;
    WIDE, WIDE_ARRAYS: u32, i64, u64, isize, usize;
}

impl FromData for u8 {
    fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self> {
        fit(integer(NARROW, mime_type, frame)?)
    }
}

impl FromData for bool {
    fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self> {
        truth(integer(NARROW, mime_type, frame)?)
    }
}

impl ReadArrayElement for bool {
    fn vec_from_data(mime_type: &str, frame: &Bytes) -> Result<Vec<Self>> {
        i64::vec_from_data(mime_type, frame)?.into_iter().map(truth).collect()
    }
}

/// The first of these fields that is there, as the widest integer.
fn integer(numbers: &[u32], mime_type: &str, frame: &Bytes) -> Result<i64> {
    match pick(numbers, mime_type, frame)? {
        Data::Sfixed32(value) | Data::Sint32(value) => Ok(value.into()),
        Data::Sfixed64(value) | Data::Sint64(value) => Ok(value),
        other => Err(unexpected(other.mime_type(), &names(numbers))),
    }
}

fn fit<N: Copy + fmt::Display, T: TryFrom<N>>(number: N) -> Result<T> {
    T::try_from(number).map_err(|_| {
        invalid(format!(
            "the number {number} does not fit into a `{}`: ask for a type that holds it",
            std::any::type_name::<T>()
        ))
    })
}

fn truth(number: i64) -> Result<bool> {
    match number {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(invalid(format!("the number {number} is no `bool`, which is 0 or 1: ask for an integer"))),
    }
}

fn too_large(number: impl fmt::Display) -> Error {
    let what = format!(
        "the number {number} can't be sent, since xMsg has 64-bit integers with a sign: send it as text"
    );
    Error::new(ErrorKind::InvalidMessage, what)
}

/// What is read from one kind, and from no other.
macro_rules! read_as_sent {
    ($($type:ty: $single:ident = $number:literal, $many:ident = $array:literal;)+) => {$(
        impl FromData for $type {
            fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self> {
                match pick(&[$number], mime_type, frame)? {
                    Data::$single(value) => Ok(value),
                    other => Err(unexpected(other.mime_type(), &[name($number)])),
                }
            }
        }

        impl ReadArrayElement for $type {
            fn vec_from_data(mime_type: &str, frame: &Bytes) -> Result<Vec<Self>> {
                match pick(&[$array], mime_type, frame)? {
                    Data::$many(values) => Ok(values),
                    other => Err(unexpected(other.mime_type(), &[name($array)])),
                }
            }
        }
    )+};
}

read_as_sent! {
    f32: Float = 5, FloatArray = 13;
    f64: Double = 6, DoubleArray = 14;
    String: String = 7, StringArray = 15;
    Bytes: Bytes = 8, BytesArray = 16;
}

// Texts.

impl ToData for str {
    fn to_data(&self) -> Result<(&'static str, Bytes)> {
        Ok((mime::STRING, length_delimited(7, self.as_bytes())))
    }
}

impl From<&str> for Data {
    fn from(value: &str) -> Self {
        Self::String(value.into())
    }
}

impl From<String> for Data {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}

impl From<Vec<String>> for Data {
    fn from(values: Vec<String>) -> Self {
        Self::StringArray(values)
    }
}

macro_rules! texts {
    ($($type:ty),+) => {$(
        impl ToData for $type {
            fn to_data(&self) -> Result<(&'static str, Bytes)> {
                str::to_data(self)
            }
        }

        impl IntoData for $type {
            fn into_data(self) -> Result<(&'static str, Bytes)> {
                str::to_data(&self)
            }
        }
    )+};
}

texts!(String, Cow<'_, str>);

impl FromData for Cow<'_, str> {
    fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self> {
        String::from_data(mime_type, frame).map(Self::Owned)
    }
}

macro_rules! array_elements_of_any_length {
    ($($number:literal: $($type:ty),+;)+) => {$($(
        impl ArrayElement for $type {
            fn array_to_data(values: &[Self]) -> Result<(&'static str, Bytes)> {
                Ok(repeated($number, values.iter().map(|value| AsRef::<[u8]>::as_ref(value))))
            }
        }
    )+)+};
}

array_elements_of_any_length! {
    15: String, &str;
    16: Bytes, Vec<u8>, &[u8];
}

impl ArrayElement for Cow<'_, str> {
    fn array_to_data(values: &[Self]) -> Result<(&'static str, Bytes)> {
        Ok(repeated(15, values.iter().map(|value| value.as_bytes())))
    }
}

/// A `Data` message in which the field of this number comes once for each of these values.
fn repeated<'a>(number: u32, values: impl Iterator<Item = &'a [u8]> + Clone) -> (&'static str, Bytes) {
    let len = |value: &[u8]| key_len(number) + encoded_len_varint(value.len() as u64) + value.len();
    let mut frame = Vec::with_capacity(values.clone().map(len).sum());
    for value in values {
        encode_key(number, WireType::LengthDelimited, &mut frame);
        encode_varint(value.len() as u64, &mut frame);
        frame.extend_from_slice(value);
    }
    (name(number), frame.into())
}

// Bytes: as they are.

impl ArrayElement for u8 {
    fn array_to_data(values: &[Self]) -> Result<(&'static str, Bytes)> {
        Ok((mime::BYTES, Bytes::copy_from_slice(values)))
    }

    fn vec_into_data(values: Vec<Self>) -> Result<(&'static str, Bytes)> {
        Ok((mime::BYTES, values.into()))
    }
}

impl ReadArrayElement for u8 {
    fn vec_from_data(mime_type: &str, frame: &Bytes) -> Result<Vec<Self>> {
        Bytes::from_data(mime_type, frame).map(Into::into)
    }
}

impl ReadArrayElement for Vec<u8> {
    fn vec_from_data(mime_type: &str, frame: &Bytes) -> Result<Vec<Self>> {
        Ok(Bytes::vec_from_data(mime_type, frame)?.into_iter().map(Into::into).collect())
    }
}

impl ToData for Bytes {
    fn to_data(&self) -> Result<(&'static str, Bytes)> {
        Ok((mime::BYTES, self.clone()))
    }
}

impl IntoData for Bytes {
    fn into_data(self) -> Result<(&'static str, Bytes)> {
        Ok((mime::BYTES, self))
    }
}

impl From<Bytes> for Data {
    fn from(value: Bytes) -> Self {
        Self::Bytes(value)
    }
}

impl From<Vec<u8>> for Data {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(value.into())
    }
}

impl From<Vec<Bytes>> for Data {
    fn from(values: Vec<Bytes>) -> Self {
        Self::BytesArray(values)
    }
}

// Arrays of any of them.

impl<T: ArrayElement> ToData for [T] {
    fn to_data(&self) -> Result<(&'static str, Bytes)> {
        T::array_to_data(self)
    }
}

impl<T: ArrayElement, const N: usize> ToData for [T; N] {
    fn to_data(&self) -> Result<(&'static str, Bytes)> {
        T::array_to_data(self)
    }
}

impl<T: ArrayElement, const N: usize> IntoData for [T; N] {
    fn into_data(self) -> Result<(&'static str, Bytes)> {
        T::array_to_data(&self)
    }
}

impl<T: ArrayElement> ToData for Vec<T> {
    fn to_data(&self) -> Result<(&'static str, Bytes)> {
        T::array_to_data(self)
    }
}

impl<T: ArrayElement> IntoData for Vec<T> {
    fn into_data(self) -> Result<(&'static str, Bytes)> {
        T::vec_into_data(self)
    }
}

impl<T: ReadArrayElement> FromData for Vec<T> {
    fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self> {
        T::vec_from_data(mime_type, frame)
    }
}

impl<T: ReadArrayElement, const N: usize> FromData for [T; N] {
    fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self> {
        T::vec_from_data(mime_type, frame)?.try_into().map_err(|values: Vec<T>| {
            invalid(format!(
                "the array of the message has {} elements, expected {N}: ask for a `Vec`",
                values.len()
            ))
        })
    }
}

// Whatever it is.

impl ToData for Data {
    fn to_data(&self) -> Result<(&'static str, Bytes)> {
        Ok((self.mime_type(), self.encode()))
    }
}

impl IntoData for Data {
    fn into_data(self) -> Result<(&'static str, Bytes)> {
        match self {
            Self::Bytes(bytes) => bytes.into_data(),
            other => other.to_data(),
        }
    }
}

impl FromData for Data {
    fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self> {
        Self::decode(mime_type, frame)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(value: impl IntoData) -> (&'static str, Bytes) {
        value.into_data().unwrap()
    }

    #[track_caller]
    fn reads_back<T: IntoData + FromData + Clone + PartialEq + fmt::Debug>(value: &T, mime_type: &str) {
        let (found, frame) = sent(value.clone());
        assert_eq!(found, mime_type);
        assert_eq!(T::from_data(mime_type, &frame).unwrap(), *value);
        // The same kind, unless it is what Java and C++ send raw: inside a `binary/native` frame, it reads the same.
        let native = Data::decode(mime_type, &frame).unwrap().encode_native();
        assert_eq!(T::from_data(mime::NATIVE, &native).unwrap(), *value);
    }

    #[track_caller]
    fn assert_invalid<T: fmt::Debug>(result: Result<T>, parts: &[&str]) {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidMessage);
        for part in parts {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn every_type_reads_back_at_its_limits() {
        macro_rules! limits {
            ($($type:ty: $single:ident, $many:ident;)+) => {$(
                for value in [<$type>::MIN, <$type>::MAX] {
                    reads_back(&value, mime::$single);
                }
                reads_back(&vec![<$type>::MAX, <$type>::MIN], mime::$many);
                reads_back(&[<$type>::MAX, <$type>::MIN], mime::$many);
            )+};
        }
        limits! {
            i8: SFIXED32, ARRAY_SFIXED32;
            u8: SFIXED32, BYTES;
            i16: SFIXED32, ARRAY_SFIXED32;
            u16: SFIXED32, ARRAY_SFIXED32;
            i32: SFIXED32, ARRAY_SFIXED32;
            u32: SFIXED64, ARRAY_SFIXED64;
            i64: SFIXED64, ARRAY_SFIXED64;
            isize: SFIXED64, ARRAY_SFIXED64;
            f32: FLOAT, ARRAY_FLOAT;
            f64: DOUBLE, ARRAY_DOUBLE;
        }
        let largest = i64::MAX.unsigned_abs();
        reads_back(&largest, mime::SFIXED64);
        reads_back(&vec![0, largest], mime::ARRAY_SFIXED64);
        reads_back(&(largest as usize), mime::SFIXED64);
        reads_back(&vec![0_usize, largest as usize], mime::ARRAY_SFIXED64);
        for truth in [false, true] {
            reads_back(&truth, mime::SFIXED32);
        }
        reads_back(&vec![true, false], mime::ARRAY_SFIXED32);
        reads_back(&"zoë".to_owned(), mime::STRING);
        reads_back(&Cow::from("zoë"), mime::STRING);
        reads_back(&vec![String::new(), "zoë".to_owned()], mime::ARRAY_STRING);
        reads_back(&Bytes::from_static(&[0, 255]), mime::BYTES);
        reads_back(&vec![0_u8, 255], mime::BYTES);
        reads_back(&vec![Bytes::new(), Bytes::from_static(&[0])], mime::ARRAY_BYTES);
        reads_back(&vec![vec![], vec![0_u8]], mime::ARRAY_BYTES);
    }

    #[test]
    #[allow(clippy::needless_borrows_for_generic_args, reason = "to borrow is what is tested")]
    fn references_slices_and_arrays_are_sent_as_what_they_are_of() {
        let numbers = vec![1, -2];
        for other in
            [sent(&numbers), sent(numbers.as_slice()), sent([1, -2]), sent(&[1, -2]), sent(&&[1, -2])]
        {
            assert_eq!(other, sent(numbers.clone()));
        }
        let texts = ["a".to_owned(), String::new()];
        let in_cows = texts.each_ref().map(|text| Cow::from(text.as_str()));
        for other in [sent(["a", ""]), sent(&["a", ""][..]), sent(&texts), sent(in_cows)] {
            assert_eq!(other, sent(texts.clone()));
        }
        let text = "zoë".to_owned();
        for other in [sent("zoë"), sent(&"zoë"), sent(&text), sent(Cow::from("zoë")), sent(&Cow::from("zoë"))]
        {
            assert_eq!(other, sent(text.clone()));
        }
        for other in
            [sent(b"ab"), sent(*b"ab"), sent(&b"ab"[..]), sent(&b"ab".to_vec()), sent(&Bytes::from("ab"))]
        {
            assert_eq!(other, (mime::BYTES, Bytes::from("ab")));
        }
        for other in [sent([b"ab".to_vec()]), sent([&b"ab"[..]]), sent(&[Bytes::from("ab")])] {
            assert_eq!(other, sent(vec![Bytes::from("ab")]));
        }
        assert_eq!(sent(&7), sent(7));
        assert_eq!(sent(&Data::Sint32(7)), sent(Data::Sint32(7)));
        assert_eq!(sent([0_i32; 0]), (mime::ARRAY_SFIXED32, Bytes::new()));
    }

    #[test]
    fn a_vector_of_bytes_is_sent_without_a_copy() {
        let bytes = vec![1_u8, 2];
        let at = bytes.as_ptr();
        assert_eq!(sent(bytes).1.as_ptr(), at);
    }

    #[test]
    fn integers_that_no_kind_holds_are_refused() {
        assert_invalid(u64::MAX.into_data(), &["18446744073709551615", "send it as text"]);
        assert_invalid((1_u64 << 63).into_data(), &["9223372036854775808"]);
        assert_invalid([1, u64::MAX].into_data(), &["18446744073709551615"]);
        assert_invalid((&[usize::MAX]).into_data(), &["18446744073709551615"]);
    }

    #[test]
    fn integers_are_read_from_every_kind_if_they_fit() {
        for data in [Data::Sint32(7), Data::Sfixed32(7), Data::Sint64(7), Data::Sfixed64(7)] {
            let (mime_type, frame) = sent(&data);
            assert_eq!(u8::from_data(mime_type, &frame).unwrap(), 7);
            assert_eq!(i32::from_data(mime_type, &frame).unwrap(), 7);
            assert_eq!(i64::from_data(mime_type, &frame).unwrap(), 7);
            assert_eq!(usize::from_data(mime_type, &frame).unwrap(), 7);
            assert_invalid(bool::from_data(mime_type, &frame), &["7", "`bool`"]);
            assert_invalid(f64::from_data(mime_type, &frame), &[mime_type, "`binary/double`"]);
        }
        for data in [
            Data::Sint32Array(vec![-1, 300]),
            Data::Sfixed32Array(vec![-1, 300]),
            Data::Sint64Array(vec![-1, 300]),
            Data::Sfixed64Array(vec![-1, 300]),
        ] {
            let (mime_type, frame) = sent(&data);
            assert_eq!(Vec::<i16>::from_data(mime_type, &frame).unwrap(), [-1, 300]);
            assert_eq!(Vec::<i32>::from_data(mime_type, &frame).unwrap(), [-1, 300]);
            assert_eq!(Vec::<i64>::from_data(mime_type, &frame).unwrap(), [-1, 300]);
            assert_invalid(Vec::<i8>::from_data(mime_type, &frame), &["300", "`i8`"]);
            assert_invalid(Vec::<u64>::from_data(mime_type, &frame), &["-1", "`u64`"]);
            assert_invalid(<[i32; 3]>::from_data(mime_type, &frame), &["2 elements, expected 3"]);
            assert_invalid(Vec::<u8>::from_data(mime_type, &frame), &[mime_type, "`binary/bytes`"]);
        }
        assert_invalid(i32::from_data(mime::SFIXED64, &sent(1_i64 << 31).1), &["2147483648", "`i32`"]);
    }

    #[test]
    fn of_several_integers_in_native_data_each_type_takes_the_one_that_it_is_sent_as() {
        let both = [Data::Sfixed32(3).encode(), Data::Sfixed64(4).encode()].concat().into();
        assert_eq!(i32::from_data(mime::NATIVE, &both).unwrap(), 3);
        assert_eq!(i64::from_data(mime::NATIVE, &both).unwrap(), 4);
    }

    #[test]
    fn the_mime_type_that_cpp_gives_64_bit_arrays_is_accepted() {
        let from_cpp = Data::Sfixed64Array(vec![1, -2]).encode();
        assert_eq!(Data::decode(mime::ARRAY_SFIXED32, &from_cpp).unwrap(), Data::Sfixed64Array(vec![1, -2]));
        assert_eq!(Vec::<i64>::from_data(mime::ARRAY_SFIXED32, &from_cpp).unwrap(), [1, -2]);
        assert_eq!(Vec::<i32>::from_data(mime::ARRAY_SFIXED32, &from_cpp).unwrap(), [1, -2]);
        assert!(Vec::<i64>::from_data(mime::ARRAY_SFIXED32, &Bytes::new()).unwrap().is_empty());
        assert!(Vec::<i32>::from_data(mime::ARRAY_SFIXED32, &Bytes::new()).unwrap().is_empty());
    }

    #[test]
    fn packed_arrays_are_read_as_any_type_that_fits() {
        // 1 and -2, packed, of 32 and of 64 bits; and as varints.
        for (mime_type, hex) in [
            (mime::ARRAY_SFIXED32, "5a0801000000feffffff"),
            (mime::ARRAY_SFIXED64, "62100100000000000000feffffffffffffff"),
            (mime::ARRAY_SINT32, "4a020203"),
            (mime::ARRAY_SINT64, "52020203"),
        ] {
            let frame = hex::decode(hex).unwrap().into();
            assert_eq!(Vec::<i8>::from_data(mime_type, &frame).unwrap(), [1, -2], "{mime_type}");
            assert_eq!(<[i64; 2]>::from_data(mime_type, &frame).unwrap(), [1, -2], "{mime_type}");
        }
    }

    proptest! {
        #[test]
        fn numbers_read_back(
            small: (i8, u8, i16, u16, i32, u32, i64, bool),
            bits: u32,
            more_bits: u64,
        ) {
            let (a, b, c, d, e, f, g, h) = small;
            reads_back(&a, mime::SFIXED32);
            reads_back(&b, mime::SFIXED32);
            reads_back(&c, mime::SFIXED32);
            reads_back(&d, mime::SFIXED32);
            reads_back(&e, mime::SFIXED32);
            reads_back(&f, mime::SFIXED64);
            reads_back(&g, mime::SFIXED64);
            reads_back(&h, mime::SFIXED32);
            // Every bit of a floating-point number arrives, of a NaN, too.
            let (mime_type, frame) = sent(f32::from_bits(bits));
            prop_assert_eq!(f32::from_data(mime_type, &frame).unwrap().to_bits(), bits);
            let (mime_type, frame) = sent(f64::from_bits(more_bits));
            prop_assert_eq!(f64::from_data(mime_type, &frame).unwrap().to_bits(), more_bits);
        }

        #[test]
        fn what_a_large_integer_becomes_is_itself_or_an_error(number: u64) {
            match number.into_data() {
                Ok((mime_type, frame)) => prop_assert_eq!(u64::from_data(mime_type, &frame).unwrap(), number),
                Err(error) => {
                    prop_assert!(i64::try_from(number).is_err());
                    prop_assert_eq!(error.kind(), ErrorKind::InvalidMessage);
                }
            }
        }

        #[test]
        fn arrays_read_back(
            integers: (Vec<i8>, Vec<u16>, Vec<i32>, Vec<u32>, Vec<i64>, Vec<bool>),
            texts: Vec<String>,
            byte_strings: Vec<Vec<u8>>,
            bytes: Vec<u8>,
        ) {
            reads_back(&integers.0, mime::ARRAY_SFIXED32);
            reads_back(&integers.1, mime::ARRAY_SFIXED32);
            reads_back(&integers.2, mime::ARRAY_SFIXED32);
            reads_back(&integers.3, mime::ARRAY_SFIXED64);
            reads_back(&integers.4, mime::ARRAY_SFIXED64);
            reads_back(&integers.5, mime::ARRAY_SFIXED32);
            reads_back(&texts, mime::ARRAY_STRING);
            reads_back(&byte_strings, mime::ARRAY_BYTES);
            reads_back(&bytes, mime::BYTES);
        }

        /// What is written here by hand is what the derived encoder writes.
        #[test]
        fn frames_are_those_of_data(a: Vec<i32>, b: Vec<i64>, c: Vec<f32>, d: Vec<f64>, e: Vec<String>, f: Vec<Vec<u8>>) {
            prop_assert_eq!(sent(&a), sent(Data::from(a)));
            prop_assert_eq!(sent(&b), sent(Data::from(b)));
            prop_assert_eq!(sent(&c), sent(Data::from(c)));
            prop_assert_eq!(sent(&d), sent(Data::from(d)));
            prop_assert_eq!(sent(&e), sent(Data::from(e)));
            let shared: Vec<Bytes> = f.iter().cloned().map(Bytes::from).collect();
            prop_assert_eq!(sent(&f), sent(Data::from(shared)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(number in 0..17_usize, bytes: Vec<u8>) {
            let mime_type = mime::ALL.get(number).copied().unwrap_or(mime::NATIVE);
            let bytes = Bytes::from(bytes);
            let _ = (Vec::<i64>::from_data(mime_type, &bytes), <[u8; 4]>::from_data(mime_type, &bytes));
            let _ = (bool::from_data(mime_type, &bytes), Vec::<String>::from_data(mime_type, &bytes));
        }
    }
}
