//! Values of the mime types that all xMsg libraries can read, from text and to text.

use std::fmt::{Debug, Write};
use std::str::FromStr;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use xmsg_core::Data;
use xmsg_core::data::mime;

/// The largest number of elements of an array that are shown.
const SHOWN_MAX: usize = 16;

/// Returns whether text is encoded as a value of this MIME type when it is published.
pub(crate) fn is_typed(mime_type: &str) -> bool {
    parser(mime_type).is_some()
}

/// Encodes the value that `text` describes as a data frame. Arrays are numbers separated by commas or spaces,
/// or JSON. The MIME type must be a [typed](is_typed) one.
pub(crate) fn encode(mime_type: &str, text: &[u8]) -> anyhow::Result<Bytes> {
    let text =
        str::from_utf8(text).with_context(|| format!("data for --mime {mime_type} is not UTF-8 text"))?;
    let parse = parser(mime_type).with_context(|| format!("`{mime_type}` is no type of values"))?;
    Ok(parse(text).with_context(|| format!("not a value of --mime {mime_type}"))?.encode())
}

type Parser = fn(&str) -> anyhow::Result<Data>;

/// The types whose values are written as text, and their parsers.
const TYPED: [(&str, Parser); 14] = [
    (mime::STRING, |text| Ok(Data::String(text.to_owned()))),
    (mime::SINT32, |text| one(text).map(Data::Sint32)),
    (mime::SINT64, |text| one(text).map(Data::Sint64)),
    (mime::SFIXED32, |text| one(text).map(Data::Sfixed32)),
    (mime::SFIXED64, |text| one(text).map(Data::Sfixed64)),
    (mime::FLOAT, |text| one(text).map(Data::Float)),
    (mime::DOUBLE, |text| one(text).map(Data::Double)),
    (mime::ARRAY_SINT32, |text| many(text).map(Data::Sint32Array)),
    (mime::ARRAY_SINT64, |text| many(text).map(Data::Sint64Array)),
    (mime::ARRAY_SFIXED32, |text| many(text).map(Data::Sfixed32Array)),
    (mime::ARRAY_SFIXED64, |text| many(text).map(Data::Sfixed64Array)),
    (mime::ARRAY_FLOAT, |text| many(text).map(Data::FloatArray)),
    (mime::ARRAY_DOUBLE, |text| many(text).map(Data::DoubleArray)),
    (mime::ARRAY_STRING, |text| {
        let texts = serde_json::from_str(text).context("expected JSON, such as [\"a\", \"b\"]")?;
        Ok(Data::StringArray(texts))
    }),
];

/// The other MIME types of xMsg, and JSON: their data is sent unchanged.
const UNTYPED: [&str; 7] =
    [mime::BYTES, mime::ARRAY_BYTES, mime::NATIVE, mime::JAVA, mime::CPP, mime::JSON, mime::PYTHON];

/// Returns the MIME types of xMsg, and that of JSON.
pub(crate) fn known() -> impl Iterator<Item = &'static str> {
    TYPED.into_iter().map(|(mime_type, _)| mime_type).chain(UNTYPED)
}

fn parser(mime_type: &str) -> Option<Parser> {
    TYPED.into_iter().find_map(|(known, parser)| (known == mime_type).then_some(parser))
}

fn one<T: FromStr>(text: &str) -> anyhow::Result<T> {
    let text = text.trim();
    text.parse().map_err(|_| anyhow!("`{}` is not such a number", text.escape_debug()))
}

fn many<T: FromStr>(text: &str) -> anyhow::Result<Vec<T>> {
    let text = text.trim();
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let words = inner.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    words.map(one).collect()
}

/// Formats a value for people: `1.5`, `some text`, `[1, 2, 3]`.
pub(crate) fn text(data: &Data) -> String {
    match data {
        Data::String(text) => text.clone(),
        Data::Sint32(number) | Data::Sfixed32(number) => number.to_string(),
        Data::Sint64(number) | Data::Sfixed64(number) => number.to_string(),
        Data::Float(number) => format!("{number:?}"),
        Data::Double(number) => format!("{number:?}"),
        Data::Bytes(bytes) => format!("{bytes:?}"),
        Data::Sint32Array(array) | Data::Sfixed32Array(array) => list(array),
        Data::Sint64Array(array) | Data::Sfixed64Array(array) => list(array),
        Data::FloatArray(array) => list(array),
        Data::DoubleArray(array) => list(array),
        Data::StringArray(array) => list(array),
        Data::BytesArray(array) => list(array),
    }
}

fn list<T: Debug>(array: &[T]) -> String {
    let shown = &array[..array.len().min(SHOWN_MAX)];
    let mut text = format!("{shown:?}");
    if shown.len() < array.len() {
        text.pop();
        // Writing to a string cannot fail.
        let _ = write!(text, ", … {} in all]", array.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(mime_type: &str, text: &str) -> Data {
        Data::decode(mime_type, &encode(mime_type, text.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn text_becomes_a_value_and_a_value_text() {
        let cases = [
            (mime::STRING, "zoë \n", "zoë \n", "\"zoë \\n\""),
            (mime::SINT32, " -7\n", "-7", "-7"),
            (mime::SINT64, "9223372036854775807", "9223372036854775807", "9223372036854775807"),
            (mime::SFIXED32, "17", "17", "17"),
            (mime::SFIXED64, "-17", "-17", "-17"),
            (mime::FLOAT, "0.1", "0.1", "0.1"),
            (mime::DOUBLE, "2", "2.0", "2.0"),
            (mime::DOUBLE, "NaN", "NaN", "\"NaN\""),
            (mime::DOUBLE, "-inf", "-inf", "\"-inf\""),
            (mime::ARRAY_SINT32, "1, -2", "[1, -2]", "[1,-2]"),
            (mime::ARRAY_SINT64, "[1,2]", "[1, 2]", "[1,2]"),
            (mime::ARRAY_SFIXED32, "1 2\n", "[1, 2]", "[1,2]"),
            (mime::ARRAY_SFIXED64, "", "[]", "[]"),
            (mime::ARRAY_FLOAT, "0.1", "[0.1]", "[0.1]"),
            (mime::ARRAY_DOUBLE, "1e300", "[1e300]", "[1e+300]"),
            (mime::ARRAY_STRING, "[\"a b\", \"\"]", "[\"a b\", \"\"]", "[\"a b\",\"\"]"),
        ];
        for (mime_type, given, shown, in_json) in cases {
            assert!(is_typed(mime_type));
            let value = value(mime_type, given);
            assert_eq!(text(&value), shown, "{mime_type}");
            assert_eq!(xmsg_proxy::shown::value(&value).to_string(), in_json, "{mime_type}");
        }
    }

    #[test]
    fn bytes_and_unknown_types_stay_as_they_are() {
        for mime_type in [mime::BYTES, mime::ARRAY_BYTES, mime::NATIVE, "image/png"] {
            assert!(!is_typed(mime_type));
        }
    }

    #[test]
    fn what_is_no_value_is_told() {
        let cases: [(&str, &[u8]); 5] = [
            (mime::SINT32, b"2147483648"),
            (mime::DOUBLE, b"x"),
            (mime::ARRAY_DOUBLE, b"1, x"),
            (mime::ARRAY_STRING, b"a"),
            (mime::STRING, b"\xff"),
        ];
        for (mime_type, text) in cases {
            let error = format!("{:#}", encode(mime_type, text).unwrap_err());
            assert!(error.contains(mime_type), "{error}");
        }
    }

    #[test]
    fn long_arrays_are_cut() {
        let array = text(&Data::Sint32Array(vec![1; 1000]));
        assert!(array.ends_with("1, … 1000 in all]") && array.len() < 100, "{array}");
    }
}
