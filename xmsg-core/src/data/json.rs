//! JSON as the data of messages (feature `serde`).

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{FromData, IntoData, ToData, mime, unexpected};
use crate::message::Message;
use crate::topic::IntoTopic;
use crate::{Error, ErrorKind, Result};

/// A value that is sent as JSON, with the MIME type `application/json`, and read from JSON. Use it wherever a
/// value is used: with [`Message::of`], [`Message::reply_with`] and [`Message::value`]. It needs the feature
/// `serde`.
///
/// MIME types with parameters (`application/json; charset=utf-8`) and those that end in `+json` are read,
/// too.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use xmsg_core::{Json, Message};
///
/// #[derive(Serialize, Deserialize)]
/// struct Order {
///     article: String,
///     count: u32,
/// }
///
/// let order = Order { article: "rope".into(), count: 2 };
/// let message = Message::of("orders:new", Json(&order))?;
/// assert_eq!(message.mime_type()?, "application/json");
/// assert_eq!(message.data(), r#"{"article":"rope","count":2}"#);
///
/// let Json(read) = message.value::<Json<Order>>()?; // or `message.json::<Order>()`
/// assert_eq!(read.article, "rope");
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Json<T>(pub T);

impl<T: Serialize> ToData for Json<T> {
    fn to_data(&self) -> Result<(&'static str, Bytes)> {
        let frame = serde_json::to_vec(&self.0).map_err(|error| {
            let what = format!("a value of the type `{}` is nothing that JSON can hold", type_name::<T>());
            Error::new(ErrorKind::InvalidMessage, what).with_source(error)
        })?;
        Ok((mime::JSON, frame.into()))
    }
}

impl<T: Serialize> IntoData for Json<T> {
    fn into_data(self) -> Result<(&'static str, Bytes)> {
        self.to_data()
    }
}

impl<T: DeserializeOwned> FromData for Json<T> {
    fn from_data(mime_type: &str, frame: &Bytes) -> Result<Self> {
        read(mime_type, frame).map(Self)
    }
}

impl Message {
    /// Makes a message whose data is this value as JSON, with the MIME type `application/json`. It needs the
    /// feature `serde`.
    ///
    /// ```
    /// use xmsg_core::Message;
    ///
    /// let message = Message::of_json("orders:new", &["rope", "anchor"])?;
    /// assert_eq!(message.data(), r#"["rope","anchor"]"#);
    /// assert_eq!(message.json::<Vec<String>>()?, ["rope", "anchor"]);
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTopic`] when the topic is not valid. [`ErrorKind::InvalidMessage`], with the
    /// reason as its source, when the value has no form in JSON, such as a map whose keys are not texts.
    pub fn of_json<T: Serialize + ?Sized>(topic: impl IntoTopic, value: &T) -> Result<Self> {
        Self::of(topic, Json(value))
    }

    /// Decodes the data, which is JSON, as a Rust value. Texts in it may be borrowed. It needs the feature
    /// `serde`.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::error::Error;
    /// use xmsg_core::{Message, Topic};
    ///
    /// let stock = Message::with_mime(Topic::new("stock", "all")?, "application/json", r#"{"rope": 7}"#);
    /// assert_eq!(stock.json::<HashMap<&str, u32>>()?["rope"], 7);
    ///
    /// let error = stock.json::<Vec<u32>>().unwrap_err();
    /// assert!(error.source().expect("a reason").to_string().contains("line 1 column 0"));
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the MIME type is not that of JSON. The error is the same, with the
    /// reason and the position as its source, when the data is not JSON, or is another value.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        read(self.mime_type()?, self.data())
    }
}

fn read<'a, T: Deserialize<'a>>(mime_type: &str, frame: &'a Bytes) -> Result<T> {
    if !is_json(mime_type) {
        return Err(unexpected(mime_type, &[mime::JSON]));
    }
    serde_json::from_slice(frame).map_err(|error| {
        let what = if error.is_data() { "other JSON than" } else { "no JSON for" };
        let what = format!("the data of the message is {what} a value of the type `{}`", type_name::<T>());
        Error::new(ErrorKind::InvalidMessage, what).with_source(error)
    })
}

/// Returns whether a MIME type is that of JSON, by the names and suffixes of RFC 6839 and RFC 8259, in upper
/// or lower case.
fn is_json(mime_type: &str) -> bool {
    let name = mime_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    name == mime::JSON || (name.contains('/') && name.ends_with("+json"))
}

fn type_name<T: ?Sized>() -> &'static str {
    std::any::type_name::<T>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::error::Error as _;

    use proptest::prelude::*;

    use super::*;
    use crate::topic::Topic;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Order {
        article: String,
        count: u64,
        price: Option<f64>,
        notes: BTreeMap<String, Vec<bool>>,
    }

    fn message(mime_type: &str, data: &'static str) -> Message {
        Message::with_mime(Topic::wrap("a"), mime_type, data)
    }

    #[test]
    fn every_mime_type_of_json_is_read_and_no_other() {
        for mime_type in ["application/json", "Application/JSON; charset=utf-8", "application/geo+json"] {
            assert_eq!(message(mime_type, " [1, 2]\n").json::<[u8; 2]>().unwrap(), [1, 2]);
        }
        for mime_type in ["text/string", "application/jsonl", "+json", ""] {
            let error = message(mime_type, "[1, 2]").json::<[u8; 2]>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidMessage);
            assert!(error.to_string().contains("expected `application/json`"), "{error}");
        }
    }

    #[test]
    fn errors_say_what_was_expected_and_where_it_failed() {
        for (data, what, reason) in [
            (r#"{"article": 7}"#, "other JSON than", "line 1 column 13"),
            (r#"{"article""#, "no JSON for", "EOF"),
            ("", "no JSON for", "EOF"),
        ] {
            let error = message(mime::JSON, data).json::<Order>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidMessage);
            assert!(error.to_string().contains(what) && error.to_string().contains("Order"), "{error}");
            let source = error.source().unwrap().to_string();
            assert!(source.contains(reason), "{source}");
        }
        let no_texts = BTreeMap::from([((1, 2), 3)]);
        let error = Message::of_json("a", &no_texts).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidMessage);
        assert!(error.source().unwrap().to_string().contains("key must be a string"));
        assert_eq!(Message::of_json("*", &1).unwrap_err().kind(), ErrorKind::InvalidTopic);
    }

    proptest! {
        #[test]
        fn values_read_back(
            article: String,
            count: u64,
            price in prop::option::of(-1e9..1e9_f64),
            notes: BTreeMap<String, Vec<bool>>,
        ) {
            let order = Order { article, count, price, notes };
            let message = Message::of_json("orders", &order).unwrap();
            prop_assert_eq!(message.mime_type().unwrap(), "application/json");
            let read = message.json::<Order>().unwrap();
            // A floating-point number that is printed and read again may differ in its last bit.
            prop_assert!((read.price.unwrap_or(0.0) - order.price.unwrap_or(0.0)).abs() <= 1e-6);
            prop_assert_eq!(Order { price: order.price, ..read }, order.clone());
            let again = Message::of("orders", Json(&order)).unwrap();
            prop_assert_eq!(again.data(), message.data());
            let json = Json(order);
            let borrowed = Message::of("orders", &json).unwrap();
            prop_assert_eq!(borrowed.data(), message.data());
            let owned = Message::of("orders", json).unwrap();
            prop_assert_eq!(owned.data(), message.data());
        }
    }
}
