//! The header of a message that came from another proxy of the federation, in its metadata.
//!
//! It has the name of the origin, a space, and sixteen hexadecimal digits: the CRC-32 of the topic and that
//! of the data. Programs that answer with the metadata of the request, as those in Java do, send the header
//! back with another message. Its checksums tell that it does not belong to that message.

use xmsg_core::Message;
use xmsg_core::text::floor_char_boundary;

use super::ORIGIN_HEADER;

/// Returns the message with the header, and whether it has it. It can't have it if its metadata is not that
/// of xMsg, or has no room for another header.
pub(crate) fn with_origin_header(mut message: Message, origin: &str) -> (Message, bool) {
    let value = format!("{origin} {}", checksums(&message));
    let has_header = message.set_header(ORIGIN_HEADER, &value).is_ok();
    (message, has_header)
}

/// Returns the origin in the header of this message, if the header belongs to it.
pub(crate) fn origin_of(message: &Message) -> Option<&str> {
    let value = message.header(ORIGIN_HEADER).ok()??;
    let (origin, written) = value.rsplit_once(' ')?;
    (written == checksums(message)).then_some(origin)
}

fn checksums(message: &Message) -> String {
    format!("{:08x}{:08x}", crc32fast::hash(message.topic().as_bytes()), crc32fast::hash(message.data()))
}

/// Returns the routing key under which a message leaves: its topic with `.` for `:`, so that other consumers
/// of the exchange can bind to parts of it. What AMQP does not take is replaced, and what is too long for it
/// is cut off: proxies go by the topic in the header.
pub(crate) fn routing_key(topic: &[u8]) -> String {
    let mut key = String::from_utf8_lossy(topic).replace(':', ".").replace('\0', "\u{fffd}");
    key.truncate(floor_char_boundary(&key, KEY_MAX));
    key
}

/// The longest routing key of AMQP, in bytes.
const KEY_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mark_is_read_back_and_the_rest_of_the_message_stays() {
        let sent = Message::of("orders:new", "17 pieces").unwrap().with_header("trace", "1").unwrap();
        let (mut message, has_header) = with_origin_header(sent.clone(), "hall-a");
        assert!(has_header);
        assert_eq!(origin_of(&message), Some("hall-a"));
        message.remove_header(ORIGIN_HEADER).unwrap();
        assert_eq!(message.into_frames(), sent.into_frames());
    }

    #[test]
    fn a_mark_that_was_sent_back_with_another_message_does_not_count() {
        let (message, _) = with_origin_header(Message::of("orders:new", "17 pieces").unwrap(), "hall-a");
        let [topic, meta, data] = message.into_frames();
        let answer = Message::from_frames(Bytes::from_static(b"ret:1"), meta.clone(), data.clone());
        assert_eq!(origin_of(&answer), None);
        let other = Message::from_frames(topic.clone(), meta.clone(), Bytes::from_static(b"18"));
        assert_eq!(origin_of(&other), None);
        assert_eq!(origin_of(&Message::from_frames(topic, meta, data)), Some("hall-a"));
        // It gets a mark of its own on its way.
        assert_eq!(origin_of(&with_origin_header(other, "hall-b").0), Some("hall-b"));
    }

    #[test]
    fn metadata_of_others_is_left_as_it_is() {
        let frames = [&b"a"[..], b"\xff\xff", b"data"].map(Bytes::from_static);
        let [topic, meta, data] = frames.clone();
        let (message, has_header) = with_origin_header(Message::from_frames(topic, meta, data), "hall-a");
        assert!(!has_header);
        assert_eq!(origin_of(&message), None);
        assert_eq!(message.into_frames(), frames);
    }

    proptest! {
        #[test]
        fn every_topic_has_a_routing_key_that_amqp_takes(topic: Vec<u8>) {
            let key = routing_key(&topic.repeat(40));
            prop_assert!(crate::definition::not_short(&key).is_none());
            prop_assert!(!key.contains(':'));
        }
    }
}
