//! Conversion of Rust values to data, and back.

// Longer than 500 lines: a table of conversions, one for each type.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::{Data, invalid, length_delimited, mime, name, names, pick, unexpected};
use crate::{Error, ErrorKind, Result};

/// A value that can become the data of a message: a number, a `bool`, text, bytes, an array of those, or a
/// reference to one. Implement it for your own type to give it a MIME type.
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
/// A `u64`, `usize` or `isize` that does not fit into an `i64` is an error ([`ErrorKind::InvalidMessage`]),
/// because xMsg has no kind for it. For the same reason, integers of 128 bits are not supported: send them as
/// bytes or as text.
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
    /// Returns the MIME type of the value and its data frame, or an error if the value cannot be encoded.
    fn into_data(self) -> Result<(&'static str, Bytes)>;
}

/// A value that can be encoded by reference: a reference to it is [`IntoData`].
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
    /// Returns the MIME type of the value and its data frame, or an error if the value cannot be encoded.
    fn to_data(&self) -> Result<(&'static str, Bytes)>;
}

/// A value that can be read from the data of a message, of one or more MIME types.
///
/// What [`IntoData`] sends is read back as the same type. An integer is read from every kind of integer if
/// its type can hold the number, and so are arrays of integers; `true` is 1 and `false` is 0. Nothing else is
/// converted: an integer is not read as an `f64`, nor is an `f32`. From `binary/native`, a value is read if
/// its field is set, whatever other fields are set. An array `[T; N]` is read only from an array of N
/// elements.
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
    /// Decodes the data frame.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the MIME type is another ([`expect_mime_type`]) or the frame cannot
    /// be decoded. The error says what was found and what was expected.
    fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self>;
}

/// A type whose slices, arrays and vectors are [`IntoData`].
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
    /// Returns the MIME type of an array of these values, and its data frame.
    fn array_to_data(values: &[Self]) -> Result<(&'static str, Bytes)>;

    /// Does the same for a vector that is given away, which may save a copy.
    fn vec_into_data(values: Vec<Self>) -> Result<(&'static str, Bytes)> {
        Self::array_to_data(&values)
    }
}

/// A type whose vectors and arrays are [`FromData`].
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
    /// Decodes a data frame that holds an array, as [`FromData::from_data`] does.
    fn vec_from_data(mime_type: &str, frame: &Bytes) -> Result<Vec<Self>>;
}

/// Checks that the MIME type of a message is one of those expected.
///
/// ```
/// use xmsg_core::data::expect_mime_type;
///
/// expect_mime_type("image/png", &["image/png", "image/jpeg"])?;
/// assert!(expect_mime_type("text/string", &["image/png"]).is_err());
/// # Ok::<(), xmsg_core::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::InvalidMessage`] when it is not. The error names them all.
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

// Numbers: each is a field of fixed length, single or repeated. A type defines the field and its bytes.

/// The number of a field, and its wire type.
#[derive(Clone, Copy)]
struct Field(u32, WireType);

impl Field {
    /// Encodes a `Data` message that has the field once for each of these values.
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

/// Types that have a kind of their own: they are encoded without conversion.
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

/// Integers that may be too large for an `i64`.
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

/// Integers, which are read from any kind of integer. If a `binary/native` frame has several of them, the
/// kind that the type is sent as comes first.
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

/// Returns the first of these fields that is set, as an `i64`.
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

/// Types that are read from one kind and no other.
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

/// Encodes a `Data` message that has the field with this number once for each of these values.
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

// Bytes, which are sent as they are.

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

// Arrays of any of these types.

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

// `Data` of any kind.

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
#[path = "values_tests.rs"]
mod tests;
