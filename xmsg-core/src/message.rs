//! Messages, which have three frames: topic, metadata and data. In what was received, the frames are found by
//! [`Messages`](crate::Messages), in `batch.rs`.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

use crate::data::{FromData, IntoData, mime};
use crate::meta::{self, Meta, Status};
use crate::topic::{IntoTopic, Topic};
use crate::{Error, ErrorKind, Result};

/// The prefix of the topics that connections and proxies use among themselves.
const INTERNAL_TOPICS: &[u8] = b"xmsg:";

/// A message: a [`Topic`], [`Meta`]data and data. Cloning is cheap, because clones share the frames.
///
/// The metadata stays encoded until it is needed, so that receiving, forwarding or answering a message never
/// costs its decoding. Therefore metadata that a peer damaged is found only by the calls that read it, with
/// [`ErrorKind::InvalidMessage`].
///
/// ```
/// use xmsg_core::Message;
///
/// let message = Message::of("report:sports", "3:1")?;
/// assert_eq!(message.mime_type()?, "text/string");
/// assert_eq!(message.value::<String>()?, "3:1");
///
/// let error = message.value::<f64>().unwrap_err();
/// assert!(error.to_string().contains("`text/string`, expected `binary/double`"));
/// # Ok::<(), xmsg_core::Error>(())
/// ```
/// Two messages are equal if their frames are equal, byte for byte.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Message {
    topic: Topic,
    meta: Bytes,
    data: Bytes,
}

impl Message {
    /// Makes a message with this value as data. `topic` is a [`Topic`] or text, and the type of the value
    /// determines the MIME type.
    ///
    /// ```
    /// use xmsg_core::{Message, Topic};
    ///
    /// let topic = Topic::new("report", "sports")?;
    /// for message in [Message::of("report:sports", 17)?, Message::of(&topic, 17)?] {
    ///     assert_eq!(*message.topic(), topic);
    ///     assert_eq!(message.value::<i32>()?, 17);
    /// }
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTopic`] when the topic is not valid, and [`ErrorKind::InvalidMessage`] when the
    /// value cannot be encoded.
    pub fn of(topic: impl IntoTopic, value: impl IntoData) -> Result<Self> {
        let (mime_type, data) = value.into_data()?;
        Ok(Self::with_mime(topic.into_topic()?, mime_type, data))
    }

    /// Makes a message with these bytes as data. The metadata has only their MIME type.
    pub fn with_mime(topic: Topic, mime_type: &str, data: impl Into<Bytes>) -> Self {
        Self { topic, meta: meta::frame_of(mime_type), data: data.into() }
    }

    /// Makes a message with this metadata, and these bytes as data.
    pub fn new(topic: Topic, meta: &Meta, data: impl Into<Bytes>) -> Self {
        Self { topic, meta: meta.encode(), data: data.into() }
    }

    /// Makes a message of its three frames, as they are on the wire. Nothing is checked.
    #[must_use]
    pub fn from_frames(topic: Bytes, meta: Bytes, data: Bytes) -> Self {
        Self { topic: Topic::wrap(topic), meta, data }
    }

    /// Returns the three frames of the message, as they are on the wire: topic, metadata and data.
    #[must_use]
    pub fn into_frames(self) -> [Bytes; 3] {
        [self.topic.into_bytes(), self.meta, self.data]
    }

    /// Returns the three frames by reference.
    pub(crate) fn frames(&self) -> [&Bytes; 3] {
        [self.topic.bytes(), &self.meta, &self.data]
    }

    /// Copies the message into memory of its own, of exactly the size that it needs.
    ///
    /// Received messages share memory with others. A message from [`next`](crate::Subscription::next) can be
    /// kept without this call. A message from `next_batch` keeps the memory of its whole batch alive until it
    /// is detached.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use xmsg_core::{Message, Messages};
    ///
    /// /// The latest message of each topic.
    /// fn note(latest: &mut HashMap<Vec<u8>, Message>, batch: &Messages) -> xmsg_core::Result<()> {
    ///     for message in batch {
    ///         let message = message?;
    ///         latest.insert(message.topic().to_vec(), message.to_message().detach());
    ///     }
    ///     Ok(())
    /// }
    /// # note(&mut HashMap::new(), &Messages::default())?;
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    #[must_use]
    pub fn detach(self) -> Self {
        let [topic, meta, data] = self.frames();
        let mut frames = Vec::with_capacity(self.size());
        for frame in [topic, meta, data] {
            frames.extend_from_slice(frame);
        }
        let (meta_at, data_at) = (topic.len(), topic.len() + meta.len());
        let mut topic = Bytes::from(frames);
        let data = topic.split_off(data_at);
        let meta = topic.split_off(meta_at);
        Self::from_frames(topic, meta, data)
    }

    /// Returns the length of the three frames together, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.topic.as_bytes().len() + self.meta.len() + self.data.len()
    }

    /// Returns the topic of the message.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Returns the data as it is on the wire.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Decodes the metadata; each call decodes it again.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded.
    pub fn meta(&self) -> Result<Meta> {
        Meta::decode(&self.meta)
    }

    /// Replaces the metadata.
    #[must_use]
    pub fn with_meta(mut self, meta: &Meta) -> Self {
        self.meta = meta.encode();
        self
    }

    /// Changes the metadata in place.
    ///
    /// ```
    /// use xmsg_core::Message;
    ///
    /// let mut message = Message::of("report", 17)?;
    /// message.edit_meta(|meta| meta.author = Some("reporter".into()))?;
    /// assert_eq!(message.meta()?.author.as_deref(), Some("reporter"));
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded.
    pub fn edit_meta(&mut self, edit: impl FnOnce(&mut Meta)) -> Result<()> {
        let mut meta = self.meta()?;
        edit(&mut meta);
        self.meta = meta.encode();
        Ok(())
    }

    /// Returns the value of a header, without decoding the rest of the metadata; `None` if there is no such
    /// header.
    ///
    /// ```
    /// use xmsg_core::Message;
    ///
    /// let message = Message::of("report", 17)?.with_header("trace", "0af7")?;
    /// assert_eq!(message.header("trace")?, Some("0af7"));
    /// assert_eq!(message.header("tenant")?, None);
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded.
    pub fn header(&self, key: &str) -> Result<Option<&str>> {
        meta::header(&self.meta, key)
    }

    /// Returns whether the message may have arrived before. It was sent again after its connection broke, by
    /// a publisher with delivery [at least once](crate::Delivery::AtLeastOnce).
    #[must_use]
    pub fn may_be_repeated(&self) -> bool {
        matches!(self.header(meta::REPEATED), Ok(Some(_)))
    }

    /// Sets a header, which is a text by name, beside the fixed fields of the metadata. Peers in other
    /// languages ignore it, and keep it in the messages that they forward.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the key is empty, the limits of
    /// [`Headers`](crate::meta::Headers) would be exceeded, or the metadata cannot be decoded.
    pub fn with_header(mut self, key: &str, value: &str) -> Result<Self> {
        self.set_header(key, value)?;
        Ok(self)
    }

    /// Sets a header in place, as [`with_header`](Self::with_header) does. The rest of the metadata stays as
    /// it is.
    ///
    /// # Errors
    /// The errors of [`with_header`](Self::with_header).
    pub fn set_header(&mut self, key: &str, value: &str) -> Result<()> {
        self.meta = meta::with_header(&self.meta, key, Some(value))?;
        Ok(())
    }

    /// Removes a header, if it is there. The rest of the metadata stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded.
    pub fn remove_header(&mut self, key: &str) -> Result<()> {
        self.meta = meta::with_header(&self.meta, key, None)?;
        Ok(())
    }

    /// Returns the MIME type of the data, without decoding the rest of the metadata.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded.
    pub fn mime_type(&self) -> Result<&str> {
        meta::data_type(&self.meta)
    }

    /// Decodes the data as a Rust value.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the data is not of this type, or the metadata cannot be decoded. If
    /// the type is wrong, the error names the MIME type of the data and those that were expected.
    pub fn value<T: FromData>(&self) -> Result<T> {
        T::from_data(self.mime_type()?, &self.data)
    }

    /// Returns the topic on which the sender awaits a reply; `None` unless the message is a synchronous
    /// request.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded.
    pub fn reply_to(&self) -> Result<Option<Topic>> {
        Ok(meta::reply_to(&self.meta)?.map(Topic::wrap))
    }

    /// Returns the topic that a reply to this request is published to; `None` when the message is not a
    /// request.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when it is one of the topics that connections and proxies use among
    /// themselves, or the metadata cannot be decoded. Any other topic is allowed here; the rights of the
    /// client that replies may forbid it.
    pub fn reply_topic(&self) -> Result<Option<Topic>> {
        let topic = self.reply_to()?;
        match topic {
            Some(topic) if topic.as_bytes().starts_with(INTERNAL_TOPICS) => {
                let what = format!(
                    "a reply can't go to the topic {topic}, which proxies use: the request asks for it"
                );
                Err(Error::new(ErrorKind::InvalidMessage, what))
            }
            topic => Ok(topic),
        }
    }

    /// Makes the message a request whose reply is awaited on this topic. The rest of the metadata stays as it
    /// is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded.
    pub fn set_reply_to(&mut self, topic: &Topic) -> Result<()> {
        self.meta = meta::with_reply_to(&self.meta, Some(topic.as_bytes()))?;
        Ok(())
    }

    /// Removes the reply topic. The rest of the metadata stays as it is. Nothing is copied if there is none.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded.
    pub fn clear_reply_to(&mut self) -> Result<()> {
        if meta::reply_to(&self.meta)?.is_some() {
            self.meta = meta::with_reply_to(&self.meta, None)?;
        }
        Ok(())
    }

    /// Returns the message without its reply topic: the message itself if it has none.
    pub(crate) fn without_reply_to(&self) -> Result<Cow<'_, Self>> {
        if meta::reply_to(&self.meta)?.is_none() {
            return Ok(Cow::Borrowed(self));
        }
        let mut message = self.clone();
        message.clear_reply_to()?;
        Ok(Cow::Owned(message))
    }

    /// Makes a reply to this request with the same data, and the same metadata without the reply topic;
    /// `None` when the message is not a request.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded, or the reply topic is one of those
    /// that [`reply_topic`](Self::reply_topic) refuses.
    pub fn reply(&self) -> Result<Option<Self>> {
        let Some(topic) = self.reply_topic()? else { return Ok(None) };
        let meta = meta::with_reply_to(&self.meta, None)?;
        Ok(Some(Self { topic, meta, data: self.data.clone() }))
    }

    /// Makes a reply to this request with this value and new metadata; `None` when the message is not a
    /// request. A service can return this result for requests and other messages alike.
    ///
    /// ```
    /// use xmsg_core::{Message, Topic};
    ///
    /// let mut request = Message::of("math:square", 3.0)?;
    /// assert!(request.reply_with(9.0)?.is_none());
    ///
    /// request.set_reply_to(&Topic::wrap("ret:0a1b2c3d:4000007"))?;
    /// let reply = request.reply_with(9.0)?.expect("a request");
    /// assert_eq!(*reply.topic(), "ret:0a1b2c3d:4000007");
    /// assert_eq!(reply.reply_to()?, None);
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded, the value cannot be encoded, or the
    /// reply topic is one of those that [`reply_topic`](Self::reply_topic) refuses.
    pub fn reply_with(&self, value: impl IntoData) -> Result<Option<Self>> {
        self.reply_topic()?.map(|topic| Self::of(topic, value)).transpose()
    }

    /// Makes an error reply to this request; `None` when the message is not a request.
    ///
    /// Its metadata has the status *error*, and the text as description. The text is also the data, as
    /// `text/string`, so that peers in any language can show it.
    ///
    /// ```
    /// use xmsg_core::{Message, Topic};
    /// use xmsg_core::meta::Status;
    ///
    /// let mut request = Message::of("math:root", -1.0)?;
    /// request.set_reply_to(&Topic::wrap("ret:0a1b2c3d:4000007"))?;
    ///
    /// let reply = request.error_reply("the number is negative")?.expect("a request");
    /// assert_eq!(reply.meta()?.status, Some(Status::Error));
    /// assert_eq!(reply.error_text()?.as_deref(), Some("the number is negative"));
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded, or the reply topic is one of those
    /// that [`reply_topic`](Self::reply_topic) refuses.
    pub fn error_reply(&self, text: impl fmt::Display) -> Result<Option<Self>> {
        let Some(topic) = self.reply_topic()? else { return Ok(None) };
        let text = text.to_string();
        let (mime_type, data) = (&text).into_data()?;
        let mut meta = Meta::new(mime_type);
        meta.status = Some(Status::Error);
        meta.description = Some(text);
        Ok(Some(Self::new(topic, &meta, data)))
    }

    /// Returns the error text, if the status in the metadata is *error*; `None` with any other status. The
    /// text is the data if that is a text, and otherwise the description, which may be empty.
    ///
    /// ```
    /// use xmsg_core::Message;
    ///
    /// assert_eq!(Message::of("math:root", "not an error")?.error_text()?, None);
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] when the metadata cannot be decoded.
    pub fn error_text(&self) -> Result<Option<String>> {
        if meta::status(&self.meta)? != Some(Status::Error) {
            return Ok(None);
        }
        let meta = self.meta()?;
        let text = if meta.data_type == mime::STRING { self.value().ok() } else { None };
        let text = text.filter(|text: &String| !text.is_empty()).or(meta.description);
        Ok(Some(text.unwrap_or_default()))
    }
}

/// Returns the frames: topic, metadata and data.
///
/// ```
/// use bytes::Bytes;
/// use xmsg_core::Message;
///
/// let message = Message::of("report:sports", "3:1")?;
/// let frames: [Bytes; 3] = message.clone().into();
/// assert_eq!(Message::from(frames), message);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
impl From<Message> for [Bytes; 3] {
    fn from(message: Message) -> Self {
        message.into_frames()
    }
}

/// Makes a message of its frames: topic, metadata and data. Nothing is checked.
impl From<[Bytes; 3]> for Message {
    fn from([topic, meta, data]: [Bytes; 3]) -> Self {
        Self::from_frames(topic, meta, data)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The data is not shown: it can be long, and secret.
        let mut message = f.debug_struct("Message");
        message.field("topic", &self.topic);
        match self.meta() {
            Ok(meta) => message.field("meta", &meta),
            Err(error) => message.field("meta", &error),
        };
        message.field("data_len", &self.data.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;
    use crate::data::Data;

    const REPLY_TO: &str = "ret:0a1b2c3d:1000007";

    fn topic() -> Topic {
        Topic::new("math", "square").unwrap()
    }

    fn request() -> Message {
        let mut message = Message::of(topic(), 3.0).unwrap();
        message.set_reply_to(&Topic::wrap(REPLY_TO)).unwrap();
        message
    }

    #[test]
    fn values_get_the_mime_types_of_the_quick_constructor_of_java() {
        let cases = [
            (Message::of(topic(), 7).unwrap(), mime::SFIXED32, "1d07000000"),
            (Message::of(topic(), 7_i64).unwrap(), mime::SFIXED64, "210700000000000000"),
            (Message::of(topic(), "zoë").unwrap(), mime::STRING, "3a047a6fc3ab"),
            (Message::of(topic(), vec![0_u8, 255]).unwrap(), mime::BYTES, "00ff"),
            (Message::of(topic(), vec![1, -2]).unwrap(), mime::ARRAY_SFIXED32, "5d010000005dfeffffff"),
            (Message::of(topic(), Data::Sint32(-300)).unwrap(), mime::SINT32, "08d704"),
        ];
        for (message, mime_type, data) in cases {
            assert_eq!(message.mime_type().unwrap(), mime_type);
            assert_eq!(message.meta().unwrap(), Meta::new(mime_type));
            assert_eq!(hex::encode(message.data()), data);
        }
    }

    #[test]
    fn a_typed_message_shares_its_metadata_with_all_others() {
        let metas = [1, 2].map(|value| Message::of(topic(), value).unwrap().into_frames()[1].as_ptr());
        assert_eq!(metas[0], metas[1]);
    }

    #[test]
    fn an_answer_goes_to_the_reply_topic_and_awaits_none() {
        let request = request();
        assert_eq!(request.reply_to().unwrap().unwrap(), REPLY_TO);
        assert_eq!(request.value::<f64>().unwrap().to_bits(), 3_f64.to_bits());

        let answer = request.reply_with("nine").unwrap().unwrap();
        assert_eq!(*answer.topic(), REPLY_TO);
        assert_eq!(answer.meta().unwrap(), Meta::new(mime::STRING));
        assert_eq!(answer.value::<String>().unwrap(), "nine");
    }

    #[test]
    fn an_echo_keeps_data_and_metadata_but_for_the_reply_topic() {
        let mut request = request();
        request.edit_meta(|meta| meta.status = Some(Status::Warning)).unwrap();
        let unknown = [0xa0, 0x06, 0x01];
        request.meta = [request.meta.as_ref(), &unknown].concat().into();

        let echo = request.reply().unwrap().unwrap();
        assert_eq!(*echo.topic(), REPLY_TO);
        assert_eq!(echo.data(), request.data());
        let meta = echo.meta().unwrap();
        assert_eq!((meta.status, meta.reply_to.as_deref()), (Some(Status::Warning), None));
        assert_eq!(meta.unknown_fields(), unknown);
    }

    #[test]
    fn a_failure_is_told_as_status_text_and_description() {
        let reply = request().error_reply("the number is negative").unwrap().unwrap();
        assert_eq!(*reply.topic(), REPLY_TO);
        assert_eq!(reply.reply_to().unwrap(), None);
        let meta = reply.meta().unwrap();
        assert_eq!(
            (meta.status, meta.description.as_deref()),
            (Some(Status::Error), Some("the number is negative"))
        );
        assert_eq!(reply.value::<String>().unwrap(), "the number is negative");
        assert_eq!(reply.error_text().unwrap().unwrap(), "the number is negative");
        assert!(Message::of(topic(), 1).unwrap().error_reply("nobody asked").unwrap().is_none());
    }

    #[test]
    fn the_text_of_a_failure_is_found_wherever_a_peer_puts_it() {
        let failure = |data_type: &str, description: Option<&str>, data: Bytes| {
            let mut meta = Meta::new(data_type);
            meta.status = Some(Status::Error);
            meta.description = description.map(str::to_owned);
            Message::new(topic(), &meta, data).error_text().unwrap()
        };
        let text = Data::from("as data").encode();
        assert_eq!(failure(mime::STRING, Some("described"), text.clone()).unwrap(), "as data");
        assert_eq!(failure(mime::STRING, Some("described"), "damaged".into()).unwrap(), "described");
        assert_eq!(failure(mime::STRING, Some("described"), Data::from("").encode()).unwrap(), "described");
        assert_eq!(failure(mime::JAVA, Some("described"), text).unwrap(), "described");
        assert_eq!(failure(mime::BYTES, None, "x".into()).unwrap(), "");
        for status in [None, Some(Status::Info), Some(Status::Warning), Some(Status::Unknown(9))] {
            let mut meta = Meta::new(mime::STRING);
            meta.status = status;
            assert_eq!(Message::new(topic(), &meta, "x").error_text().unwrap(), None);
        }
    }

    #[test]
    fn headers_go_with_an_echo_and_not_with_an_answer_of_its_own() {
        let mut request = request().with_header("trace", "1").unwrap().with_header("trace", "2").unwrap();
        request.set_header("tenant", "north").unwrap();
        assert_eq!(request.reply_to().unwrap().unwrap(), REPLY_TO);

        let echo = request.reply().unwrap().unwrap();
        assert_eq!(echo.header("trace").unwrap(), Some("2"));
        assert_eq!(echo.meta().unwrap().headers.len(), 2);
        assert_eq!(request.reply_with(9.0).unwrap().unwrap().header("trace").unwrap(), None);

        request.remove_header("trace").unwrap();
        assert_eq!(request.header("trace").unwrap(), None);
        assert_eq!(request.header("tenant").unwrap(), Some("north"));
        assert_eq!(request.with_header("", "x").unwrap_err().kind(), ErrorKind::InvalidMessage);
    }

    /// The requester chooses the topic of the reply, and the service publishes to it. The requester must not
    /// be able to make the service send a control request to a proxy.
    #[test]
    fn no_reply_goes_to_the_topics_of_proxies() {
        let mut request = Message::of("req:echo", "x").unwrap();
        for topic in ["xmsg:control:con", "xmsg:sub:1", "xmsg:"] {
            request.set_reply_to(&Topic::wrap(topic)).unwrap();
            assert_eq!(request.reply_to().unwrap().unwrap(), topic);
            for error in
                [request.reply(), request.reply_with(1), request.error_reply("no")].map(Result::unwrap_err)
            {
                assert_eq!(error.kind(), ErrorKind::InvalidMessage);
                assert!(error.to_string().contains(topic), "{error}");
            }
        }
        request.set_reply_to(&Topic::wrap("xmsgs")).unwrap();
        assert!(request.reply().unwrap().is_some());
    }

    #[test]
    fn a_message_without_reply_topic_has_no_answer() {
        let mut message = request();
        message.clear_reply_to().unwrap();
        assert_eq!(message.reply_to().unwrap(), None);
        assert!(message.reply().unwrap().is_none());
        assert!(message.reply_with(1).unwrap().is_none());
    }

    #[test]
    fn metadata_can_be_replaced() {
        let mut meta = Meta::new("image/png");
        meta.communication_id = Some(7);
        let message = Message::new(topic(), &meta, vec![1, 2]);
        assert_eq!(message.meta().unwrap(), meta);
        assert_eq!(message.with_meta(&Meta::new("a/b")).mime_type().unwrap(), "a/b");
    }

    #[test]
    fn what_is_shown_of_a_message_is_short() {
        let mut message = Message::of("math:square", "secret").unwrap().with_header("trace", "1").unwrap();
        message.edit_meta(|meta| meta.status = Some(Status::Error)).unwrap();
        let shown = r#"Message { topic: Topic("math:square"), meta: Meta { status: Error, data_type: "text/string", "#;
        assert_eq!(format!("{message:?}"), format!(r#"{shown}headers: {{"trace": "1"}} }}, data_len: 8 }}"#));
    }

    #[test]
    fn damaged_metadata_is_found_when_it_is_read() {
        let mut message = Message::from_frames("t".into(), "\u{7f}".into(), "data".into());
        let results = [
            message.meta().map(drop),
            message.mime_type().map(drop),
            message.value::<String>().map(drop),
            message.reply().map(drop),
            message.clear_reply_to(),
        ];
        assert!(results.into_iter().all(|result| result.unwrap_err().kind() == ErrorKind::InvalidMessage));
        assert!(format!("{message:?}").contains("not a protobuf message"));
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(frames: [Vec<u8>; 3]) {
            let [topic, meta, data] = frames.clone().map(Bytes::from);
            let message = Message::from_frames(topic, meta, data);
            let detached = message.clone().detach();
            prop_assert_eq!(detached.into_frames(), message.clone().into_frames());
            prop_assert_eq!(message.size(), frames.iter().map(Vec::len).sum::<usize>());
            prop_assert_eq!(message.into_frames().map(Vec::from), frames);
        }
    }
}
