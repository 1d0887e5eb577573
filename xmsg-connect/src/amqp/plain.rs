//! Bodies that consumers can read who do not know xMsg: texts and numbers as UTF-8, arrays as JSON; and the
//! way back, which gives the same bytes.

use std::fmt::Debug;
use std::str::FromStr;

use bytes::Bytes;
use xmsg_core::Message;
use xmsg_core::data::{Data, mime};

/// The type of a text or a number.
const TEXT: &str = "text/plain";

/// Returns a body as foreign consumers read it, with its content type. Returns `None` for what stays as it
/// is: bytes, JSON and objects, which are no protobuf, and what would not come back as the same bytes.
pub(super) fn encode(message: &Message) -> Option<(Bytes, &'static str)> {
    let mime_type = message.mime_type().ok()?;
    let data = Data::decode(mime_type, message.data()).ok()?;
    let (body, content_type) = match data {
        Data::String(text) => (text, TEXT),
        Data::Sint32(number) | Data::Sfixed32(number) => (number.to_string(), TEXT),
        Data::Sint64(number) | Data::Sfixed64(number) => (number.to_string(), TEXT),
        Data::Float(number) => (format!("{number:?}"), TEXT),
        Data::Double(number) => (format!("{number:?}"), TEXT),
        Data::Sint32Array(numbers) | Data::Sfixed32Array(numbers) => (json_list(&numbers), mime::JSON),
        Data::Sint64Array(numbers) | Data::Sfixed64Array(numbers) => (json_list(&numbers), mime::JSON),
        Data::FloatArray(numbers) if numbers.iter().all(|number| number.is_finite()) => {
            (json_list(&numbers), mime::JSON)
        }
        Data::DoubleArray(numbers) if numbers.iter().all(|number| number.is_finite()) => {
            (json_list(&numbers), mime::JSON)
        }
        Data::StringArray(texts) => (serde_json::to_string(&texts).ok()?, mime::JSON),
        _ => return None,
    };
    let is_lossless = decode(mime_type, body.as_bytes()).is_some_and(|data| data == *message.data());
    is_lossless.then(|| (body.into(), content_type))
}

/// Returns the data of a message of this type whose body is plain, and `None` if the body is not of this
/// type.
pub(super) fn decode(mime_type: &str, body: &[u8]) -> Option<Bytes> {
    let text = std::str::from_utf8(body).ok()?;
    let data = match mime_type {
        mime::STRING => Data::String(text.to_owned()),
        mime::SINT32 => Data::Sint32(text.parse().ok()?),
        mime::SFIXED32 => Data::Sfixed32(text.parse().ok()?),
        mime::SINT64 => Data::Sint64(text.parse().ok()?),
        mime::SFIXED64 => Data::Sfixed64(text.parse().ok()?),
        mime::FLOAT => Data::Float(text.parse().ok()?),
        mime::DOUBLE => Data::Double(text.parse().ok()?),
        mime::ARRAY_SINT32 => Data::Sint32Array(parse_numbers(text)?),
        mime::ARRAY_SFIXED32 => Data::Sfixed32Array(parse_numbers(text)?),
        mime::ARRAY_SINT64 => Data::Sint64Array(parse_numbers(text)?),
        mime::ARRAY_SFIXED64 => Data::Sfixed64Array(parse_numbers(text)?),
        mime::ARRAY_FLOAT => Data::FloatArray(parse_numbers(text)?),
        mime::ARRAY_DOUBLE => Data::DoubleArray(parse_numbers(text)?),
        mime::ARRAY_STRING => Data::StringArray(serde_json::from_str(text).ok()?),
        _ => return None,
    };
    Some(data.encode())
}

/// Returns numbers as JSON. The way in which Rust shows those with a fraction is the shortest that gives the
/// same number.
fn json_list<N: Debug>(numbers: &[N]) -> String {
    let numbers: Vec<_> = numbers.iter().map(|number| format!("{number:?}")).collect();
    format!("[{}]", numbers.join(","))
}

/// Reads a list of numbers in JSON. They are read one by one, since `serde_json` rounds the last digit of
/// some.
fn parse_numbers<N: FromStr>(text: &str) -> Option<Vec<N>> {
    let inner = text.trim().strip_prefix('[')?.strip_suffix(']')?.trim();
    if inner.is_empty() {
        return Some(Vec::new());
    }
    inner.split(',').map(|number| number.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xmsg_core::data::IntoData;

    use super::*;

    fn message(value: impl IntoData) -> Message {
        Message::of("a", value).unwrap()
    }

    fn plain(message: &Message) -> Option<(String, &'static str)> {
        encode(message).map(|(body, content_type)| (String::from_utf8(body.to_vec()).unwrap(), content_type))
    }

    #[test]
    fn texts_numbers_and_arrays_can_be_read_by_anybody() {
        for (message, body, content_type) in [
            (message("grün"), "grün", TEXT),
            (message(""), "", TEXT),
            (message(-17), "-17", TEXT),
            (message(i64::MIN), "-9223372036854775808", TEXT),
            (message(4.5), "4.5", TEXT),
            (message(f64::NEG_INFINITY), "-inf", TEXT),
            (message(0.1_f32), "0.1", TEXT),
            (message(vec![1.0, -2.5e300]), "[1.0,-2.5e300]", mime::JSON),
            (message(vec![3, 4]), "[3,4]", mime::JSON),
            (message(vec!["a \"b\"".to_owned(), "ü".to_owned()]), r#"["a \"b\"","ü"]"#, mime::JSON),
        ] {
            assert_eq!(plain(&message), Some((body.to_owned(), content_type)), "{message:?}");
        }
    }

    #[test]
    fn what_can_not_be_read_back_stays_as_it_is() {
        let topic = || "a".parse().unwrap();
        for message in [
            message(Bytes::from_static(b"raw")),
            message(vec![f64::NAN]),
            Message::with_mime(topic(), mime::JSON, "{}"),
            Message::with_mime(topic(), mime::NATIVE, Data::from(3).encode_native()),
            Message::with_mime(topic(), mime::STRING, &b"\xff"[..]),
            Message::from_frames("a".into(), "\u{1}".into(), "x".into()),
        ] {
            assert_eq!(plain(&message), None, "{message:?}");
        }
        for (mime_type, body) in
            [(mime::SINT32, "4.5"), (mime::ARRAY_DOUBLE, "1,2"), (mime::ARRAY_SINT32, "[1,]")]
        {
            assert_eq!(decode(mime_type, body.as_bytes()), None, "{body}");
        }
    }

    proptest! {
        #[test]
        fn what_is_plain_comes_back_the_same(text in ".{0,40}", doubles in proptest::collection::vec(any::<f64>(), 0..8), floats in proptest::collection::vec(any::<f32>(), 0..8), long in any::<i64>()) {
            for message in [message(text.as_str()), message(doubles), message(floats), message(long)] {
                if let Some((body, _)) = encode(&message) {
                    prop_assert_eq!(decode(message.mime_type().unwrap(), &body), Some(message.data().clone()));
                }
            }
        }
    }
}
