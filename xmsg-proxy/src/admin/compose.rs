//! A message that a request brings: its topic, its type, and its data as text, as JSON or as base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use xmsg_core::data::mime;
use xmsg_core::{Message, Topic};

/// The data of a message is one of `text`, `json` and `base64`.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Composed {
    /// Such as `level:tank`.
    pub(super) topic: String,
    /// Unless given: `text/string`, `application/json` or `binary/bytes`, by the form of the data.
    pub(super) mime: Option<String>,
    pub(super) text: Option<String>,
    pub(super) json: Option<serde_json::Value>,
    pub(super) base64: Option<String>,
}

impl Composed {
    /// Makes the message. The error names the field that is wrong, and says what is wrong with it.
    pub(super) fn message(&self) -> Result<Message, (&'static str, String)> {
        let topic: Topic =
            self.topic.parse().map_err(|error: xmsg_core::Error| ("topic", error.to_string()))?;
        let with_mime = |default: &str, data: Vec<u8>| {
            Message::with_mime(topic.clone(), self.mime.as_deref().unwrap_or(default), data)
        };
        match (&self.text, &self.json, &self.base64) {
            (Some(text), None, None) if self.mime.as_deref().is_none_or(|mime| mime == mime::STRING) => {
                Message::of(topic.clone(), text.as_str()).map_err(|error| ("text", error.to_string()))
            }
            (Some(text), None, None) => Ok(with_mime(mime::STRING, text.clone().into_bytes())),
            (None, Some(value), None) => Ok(with_mime(mime::JSON, value.to_string().into_bytes())),
            (None, None, Some(text)) => {
                let data = BASE64.decode(text);
                let data = data.map_err(|error| ("base64", format!("the data is not base64: {error}")))?;
                Ok(with_mime(mime::BYTES, data))
            }
            _ => Err(("text", "the data is one of text, json and base64: give one of them".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(json: &str) -> Result<Message, (&'static str, String)> {
        serde_json::from_str::<Composed>(json).unwrap().message()
    }

    #[test]
    fn each_form_of_data_has_its_type() {
        let text = made(r#"{"topic": "a:b", "text": "x"}"#).unwrap();
        assert_eq!(
            (text.mime_type().unwrap(), text.value::<String>().unwrap()),
            (mime::STRING, "x".to_owned())
        );
        let json = made(r#"{"topic": "a:b", "json": {"a": 1}}"#).unwrap();
        assert_eq!((json.mime_type().unwrap(), &json.data()[..]), (mime::JSON, &b"{\"a\":1}"[..]));
        let bytes = made(r#"{"topic": "a:b", "base64": "/w=="}"#).unwrap();
        assert_eq!((bytes.mime_type().unwrap(), &bytes.data()[..]), (mime::BYTES, &b"\xff"[..]));
        let other = made(r#"{"topic": "a:b", "text": "<a/>", "mime": "text/xml"}"#).unwrap();
        assert_eq!((other.mime_type().unwrap(), &other.data()[..]), ("text/xml", &b"<a/>"[..]));
    }

    #[test]
    fn what_is_wrong_is_said_beside_its_field() {
        for (json, field) in [
            (r#"{"topic": "", "text": "x"}"#, "topic"),
            (r#"{"topic": "a:b"}"#, "text"),
            (r#"{"topic": "a:b", "text": "x", "json": 1}"#, "text"),
            (r#"{"topic": "a:b", "base64": "?"}"#, "base64"),
        ] {
            assert_eq!(made(json).unwrap_err().0, field, "{json}");
        }
    }
}
