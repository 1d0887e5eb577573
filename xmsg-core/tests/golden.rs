//! Data frames of all kinds are byte for byte those that Google's protobuf encodes for the messages of xMsg.

use bytes::Bytes;
use xmsg_core::data::{Data, Payload, mime};

fn frame(hex: &str) -> Bytes {
    hex::decode(hex).expect("a hex literal").into()
}

#[test]
fn every_kind_has_the_bytes_and_the_mime_type_of_the_other_libraries() {
    let cases = [
        (Data::Sint32(-300), "binary/sint32", "08d704"),
        (Data::Sint64(-(1 << 40)), "binary/sint64", "10ffffffffff3f"),
        (Data::Sfixed32(-2), "binary/sfixed32", "1dfeffffff"),
        (Data::Sfixed64(1 << 40), "binary/sfixed64", "210000000000010000"),
        (Data::Float(1.5), "binary/float", "2d0000c03f"),
        (Data::Double(-2.5), "binary/double", "3100000000000004c0"),
        (Data::String("zoë".into()), "text/string", "3a047a6fc3ab"),
        (Data::Bytes(Bytes::from_static(b"\x00\xff")), "binary/bytes", "420200ff"),
        (Data::Sint32Array(vec![0, -1, 300]), "binary/array-sint32", "4800480148d804"),
        (Data::Sint64Array(vec![1 << 40, -1]), "binary/array-sint64", "508080808080405001"),
        (Data::Sfixed32Array(vec![1, -2]), "binary/array-sfixed32", "5d010000005dfeffffff"),
        (Data::Sfixed64Array(vec![1, -2]), "binary/array-sfixed64", "61010000000000000061feffffffffffffff"),
        (Data::FloatArray(vec![0.5, -1.0]), "binary/array-float", "6d0000003f6d000080bf"),
        (Data::DoubleArray(vec![0.25, 3.0]), "binary/array-double", "71000000000000d03f710000000000000840"),
        (
            Data::StringArray(vec!["a".into(), String::new(), "zoë".into()]),
            "binary/array-string",
            "7a01617a007a047a6fc3ab",
        ),
        (
            Data::BytesArray(vec![Bytes::from_static(b"\x01"), Bytes::new()]),
            "binary/array-bytes",
            "82010101820100",
        ),
    ];
    for (data, mime_type, golden) in cases {
        let frame = frame(golden);
        assert_eq!(data.mime_type(), mime_type);
        assert_eq!(data.encode_native(), frame, "{data:?}");
        assert_eq!(Data::decode(mime::NATIVE, &frame).unwrap(), data);

        // The frame of `binary/bytes` is the only one that is not protobuf.
        let frame = if mime_type == mime::BYTES { Bytes::from_static(b"\x00\xff") } else { frame };
        assert_eq!(data.encode(), frame);
        assert_eq!(Data::decode(mime_type, &frame).unwrap(), data);
    }
}

#[test]
fn packed_arrays_are_accepted() {
    let cases = [
        ("4a040001d804", Data::Sint32Array(vec![0, -1, 300])),
        ("520780808080804001", Data::Sint64Array(vec![1 << 40, -1])),
        ("5a0801000000feffffff", Data::Sfixed32Array(vec![1, -2])),
        ("62100100000000000000feffffffffffffff", Data::Sfixed64Array(vec![1, -2])),
        ("6a080000003f000080bf", Data::FloatArray(vec![0.5, -1.0])),
        ("7210000000000000d03f0000000000000840", Data::DoubleArray(vec![0.25, 3.0])),
    ];
    for (hex, data) in cases {
        assert_eq!(Data::decode(data.mime_type(), &frame(hex)).unwrap(), data);
    }
}

#[test]
fn a_payload_has_the_bytes_of_protobuf() {
    let payload = Payload { items: vec![("n".into(), 7.into()), ("b".into(), Data::Bytes("\u{7f}".into()))] };
    let golden = frame("0a0a0a016e12051d070000000a080a0162120342017f");
    assert_eq!(payload.encode(), golden);
    assert_eq!(Payload::decode(&golden).unwrap(), payload);
}
