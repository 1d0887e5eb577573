//! Conversion to and from messages of the `zeromq` crate, for programs that use its sockets and talk to xMsg
//! actors through a proxy.

use bytes::Bytes;
use zeromq::ZmqMessage;

use crate::{Error, ErrorKind, Message};

/// The result has the three frames of the message: topic, metadata, data. Nothing is copied.
///
/// ```
/// use xmsg_core::Message;
/// use zeromq::ZmqMessage;
/// let message = ZmqMessage::from(Message::of("weather:oslo", 4.5)?);
/// assert_eq!(message.get(0).unwrap(), "weather:oslo");
/// assert_eq!(Message::try_from(message)?.value::<f64>()?, 4.5);
/// # Ok::<(), xmsg_core::Error>(())
/// ```
impl From<Message> for ZmqMessage {
    fn from(message: Message) -> Self {
        let [topic, meta, data] = message.into_frames();
        let mut frames = Self::from(topic);
        frames.push_back(meta);
        frames.push_back(data);
        frames
    }
}

/// A message of three frames is an xMsg message. Its metadata is decoded only on request, as with received
/// messages.
impl TryFrom<ZmqMessage> for Message {
    /// [`InvalidMessage`](ErrorKind::InvalidMessage) when the message does not have three frames.
    type Error = Error;

    fn try_from(message: ZmqMessage) -> Result<Self, Error> {
        let frames: [Bytes; 3] = message.into_vec().try_into().map_err(|frames: Vec<Bytes>| {
            let what = format!(
                "an xMsg message has three frames: topic, metadata, data; this one has {}",
                frames.len()
            );
            Error::new(ErrorKind::InvalidMessage, what)
        })?;
        Ok(Self::from(frames))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_there_and_back_and_others_are_refused() {
        let message = Message::of("a:b", 7).unwrap();
        let there = ZmqMessage::from(message.clone());
        assert_eq!(there.len(), 3);
        assert_eq!(Message::try_from(there).unwrap(), message);
        for count in [1, 2, 4] {
            let frames = ZmqMessage::try_from(vec![Bytes::from_static(b"x"); count]).unwrap();
            let error = Message::try_from(frames).unwrap_err();
            assert!(
                error.kind() == ErrorKind::InvalidMessage && error.to_string().contains(&count.to_string())
            );
        }
    }
}
