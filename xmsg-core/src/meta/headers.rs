//! Headers: texts by name, beside the fixed fields of the metadata.
//!
//! They are field 100 of `Meta`, encoded as protobuf's `map<string, string>`. Peers that do not know the
//! field keep it, as proto2 requires, so that headers survive forwarding and answering.

use std::collections::{BTreeMap, btree_map};
use std::fmt;

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::{Field, Value, fields};
use crate::{Error, ErrorKind, Result};

/// The field number of the headers.
pub(super) const NUMBER: u32 = 100;
const KEY: u32 = 1;
const VALUE: u32 = 2;

/// The headers of a message, in the order of their keys: texts by name, beside the fixed fields of the
/// metadata.
///
/// There are at most 256 headers ([`MAX`](Self::MAX)), whose keys and values together have at most 64 KiB
/// ([`MAX_LEN`](Self::MAX_LEN)). A key is not empty. Inserting more fails, and so does decoding metadata with
/// more.
///
/// Headers are an extension of xMsg's metadata. Peers in other languages ignore them. They keep them in
/// messages that they forward, and in replies with the metadata of the request.
///
/// ```
/// use xmsg_core::Message;
/// use xmsg_core::meta::Headers;
///
/// let mut headers = Headers::new();
/// headers.insert("trace", "0af7")?;
/// headers.insert("tenant", "north")?;
///
/// let mut message = Message::of("report:sports", "3:1")?;
/// message.edit_meta(|meta| meta.headers = headers)?;
/// assert_eq!(message.header("trace")?, Some("0af7"));
/// let all: Vec<_> = message.meta()?.headers.iter().map(|(key, _)| key.to_owned()).collect();
/// assert_eq!(all, ["tenant", "trace"]);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Headers {
    map: BTreeMap<String, String>,
    /// The length of all keys and values, in bytes.
    len: usize,
}

impl Headers {
    /// The largest number of headers of a message.
    pub const MAX: usize = 256;
    /// The largest length of all keys and values of a message, in bytes.
    pub const MAX_LEN: usize = 64 << 10;

    /// Makes an empty set of headers.
    #[must_use]
    pub const fn new() -> Self {
        Self { map: BTreeMap::new(), len: 0 }
    }

    /// Sets a header and returns its previous value.
    ///
    /// ```
    /// use xmsg_core::meta::Headers;
    ///
    /// let mut headers = Headers::new();
    /// assert_eq!(headers.insert("attempt", "1")?, None);
    /// assert_eq!(headers.insert("attempt", "2")?.as_deref(), Some("1"));
    /// assert!(headers.insert("", "3").is_err());
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the key is empty or a limit would be exceeded. The headers are then
    /// unchanged.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<String>) -> Result<Option<String>> {
        let (key, value) = (key.into(), value.into());
        let replaced = self.map.get(&key).map(|value| key.len() + value.len());
        let count = self.map.len() + usize::from(replaced.is_none());
        let len = self.len - replaced.unwrap_or(0) + key.len() + value.len();
        check(&key, count, len)?;
        self.len = len;
        Ok(self.map.insert(key, value))
    }

    /// Removes a header and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        let value = self.map.remove(key)?;
        self.len -= key.len() + value.len();
        Some(value)
    }

    /// Returns the value of a header.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.map.get(key).map(String::as_str)
    }

    /// Returns the number of headers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Returns whether there are no headers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Iterates over keys and values, in the order of the keys.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.map.iter())
    }

    pub(super) fn encode(&self, frame: &mut Vec<u8>) {
        for (key, value) in self {
            encode(key, value, frame);
        }
    }

    pub(super) fn encoded_len(&self) -> usize {
        self.iter().map(|(key, value)| encoded_len(key, value)).sum()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.map.fmt(f)
    }
}

impl<'a> IntoIterator for &'a Headers {
    type Item = (&'a str, &'a str);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for Headers {
    type Item = (String, String);
    type IntoIter = btree_map::IntoIter<String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.map.into_iter()
    }
}

/// An iterator over keys and values of [`Headers`], in the order of the keys.
#[derive(Clone, Debug)]
pub struct Iter<'a>(btree_map::Iter<'a, String, String>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Iter<'_> {}

/// Returns the value of a header in a metadata frame, without decoding the rest. If the key occurs several
/// times, the last value counts.
pub(crate) fn find<'a>(frame: &'a [u8], key: &str) -> Result<Option<&'a str>> {
    let mut last = None;
    for field in fields(frame) {
        if let Some((found, value)) = of_field(&field?)
            && found == key
        {
            last = Some(value);
        }
    }
    Ok(last)
}

/// Returns the same metadata frame with this header, or without it. All other bytes stay the same.
pub(crate) fn replace(frame: &Bytes, key: &str, value: Option<&str>) -> Result<Bytes> {
    let mut changed = Vec::with_capacity(frame.len() + value.map_or(0, |value| encoded_len(key, value)));
    let (mut count, mut len) = (0, 0);
    for field in fields(frame) {
        let field = field?;
        if let Some((other, value)) = of_field(&field) {
            if other == key {
                continue;
            }
            count += 1;
            len += other.len() + value.len();
        }
        changed.extend_from_slice(field.raw);
    }
    if let Some(value) = value {
        check(key, count + 1, len + key.len() + value.len())?;
        encode(key, value, &mut changed);
    }
    Ok(changed.into())
}

/// Decodes a field of the metadata as a header. `None` for another field, and for a field with this number
/// that is not encoded as a header: it is kept as an unknown field.
pub(super) fn of_field<'a>(field: &Field<'a>) -> Option<(&'a str, &'a str)> {
    let Field { number: NUMBER, value: Some(Value::Text(entry)), .. } = *field else { return None };
    let (mut key, mut value) = ("", "");
    for field in fields(entry) {
        match field.ok()? {
            Field { number: KEY, value: Some(Value::Text(text)), .. } => key = str::from_utf8(text).ok()?,
            Field { number: VALUE, value: Some(Value::Text(text)), .. } => {
                value = str::from_utf8(text).ok()?;
            }
            _ => return None,
        }
    }
    (!key.is_empty()).then_some((key, value))
}

fn check(key: &str, count: usize, len: usize) -> Result<()> {
    let what = if key.is_empty() {
        "the key of a header is empty: give it a name".to_owned()
    } else if count > Headers::MAX {
        format!("the header `{key}` is one too many: a message has at most {}", Headers::MAX)
    } else if len > Headers::MAX_LEN {
        format!(
            "with the header `{}`, the headers of the message would have {len} bytes: they may have {}; send more as data",
            key.chars().take(100).collect::<String>(),
            Headers::MAX_LEN
        )
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidMessage, what))
}

fn encode(key: &str, value: &str, frame: &mut Vec<u8>) {
    encode_key(NUMBER, WireType::LengthDelimited, frame);
    encode_varint(entry_len(key, value) as u64, frame);
    Value::Text(key.as_bytes()).encode(KEY, frame);
    Value::Text(value.as_bytes()).encode(VALUE, frame);
}

fn encoded_len(key: &str, value: &str) -> usize {
    let len = entry_len(key, value);
    key_len(NUMBER) + encoded_len_varint(len as u64) + len
}

fn entry_len(key: &str, value: &str) -> usize {
    Value::Text(key.as_bytes()).encoded_len(KEY) + Value::Text(value.as_bytes()).encoded_len(VALUE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Meta;
    use super::*;

    /// The bytes that Google's protobuf encodes, with `map<string, string> headers = 100;` in a proto2
    /// message: author `zoë`, `text/string`, and the headers of [`headers`].
    const META: &str = "1a047a6fc3ab720b746578742f737472696e67";
    const HEADERS: &str = concat!(
        "a206090a05656d7074791200a2068b010a046c6f6e67128201787878787878787878787878787878787878787878787878787878",
        "78787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878",
        "787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878787878",
        "a2060d0a057472616365120430616637a2060c0a05c3bc6ec3af1203e29c93",
    );

    fn bytes(hex: &str) -> Bytes {
        hex::decode(hex).unwrap().into()
    }

    fn headers() -> Headers {
        let mut headers = Headers::new();
        for (key, value) in [("trace", "0af7"), ("empty", ""), ("ünï", "✓"), ("long", &"x".repeat(130))] {
            headers.insert(key, value).unwrap();
        }
        headers
    }

    fn meta() -> Meta {
        Meta { author: Some("zoë".into()), headers: headers(), ..Meta::new("text/string") }
    }

    #[test]
    fn headers_have_the_bytes_of_a_map_in_protobuf() {
        let golden = bytes(&format!("{META}{HEADERS}"));
        assert_eq!(meta().encode(), golden);
        assert_eq!(meta().encoded_len(), golden.len());
        let read = Meta::decode(&golden).unwrap();
        assert_eq!(read, meta());
        assert!(read.unknown_fields().is_empty());
    }

    #[test]
    fn headers_come_back_from_a_peer_that_does_not_know_them() {
        // The bytes that Google's protobuf produces when it forwards the same message, with a reply topic, by
        // a definition without the field: it removed the reply topic, and set sender and status.
        let forwarded = bytes(&format!("1a047a6fc3ab200232046a617661720b746578742f737472696e67{HEADERS}"));
        assert_eq!(Meta::decode(&forwarded).unwrap().headers, headers());
        assert_eq!(find(&forwarded, "ünï").unwrap(), Some("✓"));
    }

    #[test]
    fn the_last_of_several_values_counts_as_in_protobuf() {
        let twice = bytes("720161a206060a016b120176a206060a016b120177");
        assert_eq!(Meta::decode(&twice).unwrap().headers.get("k"), Some("w"));
        assert_eq!(find(&twice, "k").unwrap(), Some("w"));
        assert_eq!(replace(&twice, "k", None).unwrap(), bytes("720161"));
        // A value that is absent is empty.
        assert_eq!(find(&bytes("a206030a016b"), "k").unwrap(), Some(""));
    }

    #[test]
    fn what_is_no_header_as_we_write_it_is_kept_as_an_unknown_field() {
        // No key; not UTF-8; an additional field; not protobuf; a number.
        for entry in ["a20600", "a206030a01ff", "a206050a016b1801", "a2060101", "a00607"] {
            let frame = bytes(&format!("720161{entry}"));
            let read = Meta::decode(&frame).unwrap();
            assert!(read.headers.is_empty());
            assert_eq!(read.unknown_fields(), &bytes(entry), "{entry}");
            assert_eq!(read.encode(), frame);
            assert_eq!(replace(&frame, "k", None).unwrap(), frame);
        }
    }

    #[test]
    fn one_header_is_exchanged_and_the_rest_stays_byte_for_byte() {
        let frame = bytes(&format!("{META}{HEADERS}a00607"));
        let with = replace(&frame, "trace", Some("1")).unwrap();
        assert_eq!(find(&with, "trace").unwrap(), Some("1"));
        let without = replace(&with, "trace", None).unwrap();
        assert_eq!(find(&without, "trace").unwrap(), None);
        let (before, after) = HEADERS.split_once("a2060d0a057472616365120430616637").unwrap();
        assert_eq!(without, bytes(&format!("{META}{before}{after}a00607")));
    }

    #[test]
    fn there_is_a_limit_to_number_and_length() {
        let mut headers = Headers::new();
        for number in 0..Headers::MAX {
            headers.insert(format!("{number:03}"), "").unwrap();
        }
        let full = headers.clone();
        let frame = Meta { headers: full.clone(), ..Meta::new("a/b") }.encode();
        for error in [headers.insert("x", "").map(drop), replace(&frame, "x", Some("")).map(drop)] {
            let error = error.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidMessage);
            assert!(error.to_string().contains("`x` is one too many"), "{error}");
        }
        assert_eq!(headers, full);
        headers.insert("007", "replaced").unwrap();
        replace(&frame, "007", Some("replaced")).unwrap();
        headers.remove("008").unwrap();
        headers.insert("x", "").unwrap();

        let mut one_too_many = Vec::from(frame);
        encode("x", "", &mut one_too_many);
        assert_eq!(Meta::decode(&one_too_many.into()).unwrap_err().kind(), ErrorKind::InvalidMessage);

        let mut headers = Headers::new();
        headers.insert("k", "v".repeat(Headers::MAX_LEN - 1)).unwrap();
        assert!(headers.insert("l", "").unwrap_err().to_string().contains("`l`"));
        headers.insert("k", "").unwrap();
        headers.insert("l", "v".repeat(Headers::MAX_LEN - 2)).unwrap();
    }

    proptest! {
        #[test]
        fn headers_read_back(
            entries in prop::collection::btree_map(".{1,8}", ".{0,8}", 0..9),
            key in ".{1,2}",
            value: String,
        ) {
            let mut headers = Headers::new();
            for (key, value) in &entries {
                prop_assert!(headers.insert(key, value).unwrap().is_none());
            }
            let meta = Meta { headers: headers.clone(), ..Meta::new("a/b") };
            let frame = meta.encode();
            prop_assert_eq!(frame.len(), meta.encoded_len());
            prop_assert_eq!(&Meta::decode(&frame).unwrap(), &meta);
            for (key, value) in &entries {
                prop_assert_eq!(find(&frame, key).unwrap(), Some(value.as_str()));
            }

            let with = replace(&frame, &key, Some(&value)).unwrap();
            headers.insert(&key, &value).unwrap();
            prop_assert_eq!(&Meta::decode(&with).unwrap().headers, &headers);
            let without = replace(&with, &key, None).unwrap();
            prop_assert_eq!(headers.remove(&key), Some(value));
            prop_assert_eq!(Meta::decode(&without).unwrap().headers, headers.clone());
            prop_assert_eq!(headers.into_iter().collect::<Vec<_>>().len(), entries.len() - usize::from(entries.contains_key(&key)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(frame: Vec<u8>) {
            let frame = Bytes::from(frame);
            let _ = (find(&frame, "k"), replace(&frame, "k", Some("v")));
        }
    }
}
