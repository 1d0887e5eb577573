//! Tests from the test suites of the other implementations about messages: Java `xMsgMessageTest`, C++
//! `message_test` and the older `xmsg_message_test`, Python `test_xMsgMessage`.

use bytes::Bytes;
use xmsg_core::data::{Data, mime};
use xmsg_core::meta::{ByteOrder, Meta};
use xmsg_core::{ErrorKind, FromData, IntoData, Message, Topic};
use xmsg_tests::topic;

const DATA: [u8; 6] = [9, 8, 7, 0, 255, 128];

fn letter() -> Topic {
    topic("letter")
}

/// Checks that a message with this value has this MIME type, and that the value can be read as its own type
/// and as `Data`.
#[track_caller]
fn reads_back<T>(value: T, mime_type: &str)
where
    T: IntoData + FromData + Into<Data> + Clone + PartialEq + std::fmt::Debug,
{
    let message = Message::of(letter(), value.clone()).unwrap();
    assert_eq!(message.mime_type().unwrap(), mime_type);
    assert_eq!(message.value::<T>().unwrap(), value);
    assert_eq!(message.value::<Data>().unwrap(), value.into());
}

fn request(data_type: &str) -> Message {
    let mut meta = Meta::new(data_type);
    meta.reply_to = Some("ret:77".into());
    Message::new(letter(), &meta, DATA.to_vec())
}

/// Corresponds to Java `createFromPrimitive`, C++ `make_message` of numbers and text.
#[test]
fn primitives_read_back_with_their_mime_type() {
    reads_back(-17_i32, mime::SFIXED32);
    reads_back(1_i64 << 50, mime::SFIXED64);
    reads_back(0.25_f32, mime::FLOAT);
    reads_back(1e300_f64, mime::DOUBLE);
    reads_back("dear reader".to_owned(), mime::STRING);
}

/// Corresponds to Java `createFromArray`.
#[test]
fn arrays_read_back_with_their_mime_type() {
    reads_back(vec![1, -2, i32::MAX], mime::ARRAY_SFIXED32);
    reads_back(vec![1_i64, i64::MIN], mime::ARRAY_SFIXED64);
    reads_back(vec![0.5_f32, -1.0], mime::ARRAY_FLOAT);
    reads_back(vec![0.1_f64, 2e9, -3.5], mime::ARRAY_DOUBLE);
    reads_back(vec!["one".to_owned(), String::new()], mime::ARRAY_STRING);
}

/// Corresponds to Java `createFromJavaObject`: a custom type in a custom format.
#[test]
fn a_type_of_ones_own_reads_back() {
    #[derive(Debug, PartialEq)]
    struct Point(u8, u8);

    impl IntoData for Point {
        fn into_data(self) -> xmsg_core::Result<(&'static str, Bytes)> {
            Ok(("binary/x-point", vec![self.0, self.1].into()))
        }
    }

    impl FromData for Point {
        fn from_data(mime_type: &str, data: &Bytes) -> xmsg_core::Result<Self> {
            xmsg_core::data::expect_mime_type(mime_type, &["binary/x-point"])?;
            Ok(Self(data[0], data[1]))
        }
    }

    let message = Message::of(letter(), Point(3, 4)).unwrap();
    assert_eq!((message.mime_type().unwrap(), message.data().as_ref()), ("binary/x-point", &[3, 4][..]));
    assert_eq!(message.value::<Point>().unwrap(), Point(3, 4));
    let other = Message::of(letter(), 3).unwrap().value::<Point>().unwrap_err();
    assert_eq!(other.kind(), ErrorKind::InvalidMessage);
}

/// Corresponds to Java `createWithoutByteOrder`.
#[test]
fn without_a_byte_order_none_is_said() {
    let message = Message::with_mime(letter(), "a/b", DATA.to_vec());
    assert_eq!(message.meta().unwrap().byte_order, None);
}

/// Corresponds to Java `createAndSetByteOrder`.
#[test]
fn a_byte_order_that_was_set_reads_back_from_the_wire() {
    let mut meta = Meta::new("a/b");
    meta.byte_order = Some(ByteOrder::Little);
    let [topic, meta, data] = Message::new(letter(), &meta, DATA.to_vec()).into_frames();
    let received = Message::from_frames(topic, meta, data);
    assert_eq!(received.meta().unwrap().byte_order, Some(ByteOrder::Little));
}

/// Corresponds to Java `createSimpleResponse`.
#[test]
fn a_plain_response_has_the_data_of_the_request_and_awaits_no_answer() {
    let request = request("a/b");
    let response = request.reply().unwrap().unwrap();
    assert_eq!(*response.topic(), "ret:77");
    assert_eq!(response.data(), request.data());
    assert_eq!(response.mime_type().unwrap(), "a/b");
    assert_eq!(response.reply_to().unwrap(), None);
}

/// Corresponds to Java `createDataResponse`.
#[test]
fn a_response_with_data_has_metadata_of_its_own() {
    let response = request("a/b").reply_with(-5).unwrap().unwrap();
    assert_eq!(*response.topic(), "ret:77");
    assert_eq!(response.data().as_ref(), b"\x1d\xfb\xff\xff\xff", "field 3, fixed 32 bits");
    assert_eq!(response.mime_type().unwrap(), mime::SFIXED32);
    assert_eq!(response.meta().unwrap(), Meta::new(mime::SFIXED32));
}

/// Corresponds to C++ `CreateWithBytes`, Python `test_set_serialize_data`.
#[test]
fn bytes_and_their_mime_type_stay_as_they_are() {
    let message = Message::with_mime(letter(), "a/b", DATA.to_vec());
    assert_eq!(message.data().as_ref(), DATA);
    assert_eq!(message.meta().unwrap().data_type, "a/b");
    assert_eq!(*message.topic(), "letter");
}

/// Corresponds to C++ `PassingNullMetadataThrows`, `PassingNullMimeTypeThrows`. Nothing is null here, but a
/// peer may leave both out.
#[test]
fn metadata_without_a_mime_type_is_an_error_when_it_is_read() {
    for meta in [Bytes::new(), Bytes::from_static(b"\x0a\x011")] {
        let message = Message::from_frames("letter".into(), meta, DATA.to_vec().into());
        assert_eq!(message.mime_type().unwrap_err().kind(), ErrorKind::InvalidMessage);
        assert_eq!(message.meta().unwrap_err().kind(), ErrorKind::InvalidMessage);
        assert_eq!(message.value::<Data>().unwrap_err().kind(), ErrorKind::InvalidMessage);
    }
}

/// Corresponds to C++ `EqualMessages`, `CreateCopy`: messages are equal if their frames are.
#[test]
fn a_copy_has_the_same_frames() {
    let message = || Message::with_mime(letter(), "a/b", DATA.to_vec());
    assert_eq!(message().into_frames(), message().into_frames());
    let original = message();
    assert_eq!(original.clone().into_frames(), original.into_frames());
}

/// Corresponds to C++ `SwapMessages`.
#[test]
fn messages_can_be_swapped() {
    let mut first = Message::of(topic("first"), 1).unwrap();
    let mut second = Message::of(topic("second"), "two").unwrap();
    std::mem::swap(&mut first, &mut second);
    assert_eq!((first.topic().to_string(), first.value().unwrap()), ("second".into(), "two".to_owned()));
    assert_eq!((second.topic().to_string(), second.value().unwrap()), ("first".into(), 1));
}

/// Corresponds to Python `test_set_xmsg_data`.
#[test]
fn a_data_object_travels_as_protobuf() {
    let numbers = Data::Sfixed32Array(vec![4, 5, 6]);
    let message = Message::with_mime(letter(), mime::NATIVE, numbers.encode_native());
    assert_eq!(message.value::<Data>().unwrap(), numbers);
    assert_eq!(message.value::<Vec<i32>>().unwrap(), [4, 5, 6]);
}

/// Corresponds to Python `test_serialize`: three frames.
#[test]
fn a_message_is_topic_metadata_and_data() {
    let [topic, meta, data] = Message::of(letter(), "hi").unwrap().into_frames();
    assert_eq!(topic, "letter");
    assert_eq!(Meta::decode(&meta).unwrap(), Meta::new(mime::STRING));
    assert_eq!(data, "\u{3a}\u{2}hi");
}

/// Corresponds to Python `test_set_metadata`, `test_get_metadata_set_by_set_function`,
/// `test_get_metadata_set_by_default`.
#[test]
fn metadata_is_there_from_the_start_and_can_be_replaced() {
    let message = Message::of(letter(), 1).unwrap();
    assert_eq!(message.meta().unwrap(), Meta::new(mime::SFIXED32));
    let mut meta = Meta::new(mime::SFIXED32);
    meta.author = Some("me".into());
    assert_eq!(message.with_meta(&meta).meta().unwrap(), meta);
}
