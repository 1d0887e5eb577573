//! Values of all types are sent and read back.

use proptest::prelude::*;

use super::*;

fn sent(value: impl IntoData) -> (&'static str, Bytes) {
    value.into_data().unwrap()
}

#[track_caller]
fn reads_back<T: IntoData + FromData + Clone + PartialEq + fmt::Debug>(value: &T, mime_type: &str) {
    let (found, frame) = sent(value.clone());
    assert_eq!(found, mime_type);
    assert_eq!(T::from_data(mime_type, &frame).unwrap(), *value);
    // Within a `binary/native` frame, the value has the same kind and reads the same. Bytes are the
    // exception: Java and C++ send them raw.
    let native = Data::decode(mime_type, &frame).unwrap().encode_native();
    assert_eq!(T::from_data(mime::NATIVE, &native).unwrap(), *value);
}

#[track_caller]
fn assert_invalid<T: fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidMessage);
    for part in parts {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn every_type_reads_back_at_its_limits() {
    macro_rules! limits {
        ($($type:ty: $single:ident, $many:ident;)+) => {$(
            for value in [<$type>::MIN, <$type>::MAX] {
                reads_back(&value, mime::$single);
            }
            reads_back(&vec![<$type>::MAX, <$type>::MIN], mime::$many);
            reads_back(&[<$type>::MAX, <$type>::MIN], mime::$many);
        )+};
    }
    limits! {
        i8: SFIXED32, ARRAY_SFIXED32;
        u8: SFIXED32, BYTES;
        i16: SFIXED32, ARRAY_SFIXED32;
        u16: SFIXED32, ARRAY_SFIXED32;
        i32: SFIXED32, ARRAY_SFIXED32;
        u32: SFIXED64, ARRAY_SFIXED64;
        i64: SFIXED64, ARRAY_SFIXED64;
        isize: SFIXED64, ARRAY_SFIXED64;
        f32: FLOAT, ARRAY_FLOAT;
        f64: DOUBLE, ARRAY_DOUBLE;
    }
    let largest = i64::MAX.unsigned_abs();
    reads_back(&largest, mime::SFIXED64);
    reads_back(&vec![0, largest], mime::ARRAY_SFIXED64);
    reads_back(&(largest as usize), mime::SFIXED64);
    reads_back(&vec![0_usize, largest as usize], mime::ARRAY_SFIXED64);
    for truth in [false, true] {
        reads_back(&truth, mime::SFIXED32);
    }
    reads_back(&vec![true, false], mime::ARRAY_SFIXED32);
    reads_back(&"zoë".to_owned(), mime::STRING);
    reads_back(&Cow::from("zoë"), mime::STRING);
    reads_back(&vec![String::new(), "zoë".to_owned()], mime::ARRAY_STRING);
    reads_back(&Bytes::from_static(&[0, 255]), mime::BYTES);
    reads_back(&vec![0_u8, 255], mime::BYTES);
    reads_back(&vec![Bytes::new(), Bytes::from_static(&[0])], mime::ARRAY_BYTES);
    reads_back(&vec![vec![], vec![0_u8]], mime::ARRAY_BYTES);
}

#[test]
#[allow(clippy::needless_borrows_for_generic_args, reason = "to borrow is what is tested")]
fn references_slices_and_arrays_are_sent_as_what_they_are_of() {
    let numbers = vec![1, -2];
    for other in [sent(&numbers), sent(numbers.as_slice()), sent([1, -2]), sent(&[1, -2]), sent(&&[1, -2])] {
        assert_eq!(other, sent(numbers.clone()));
    }
    let texts = ["a".to_owned(), String::new()];
    let in_cows = texts.each_ref().map(|text| Cow::from(text.as_str()));
    for other in [sent(["a", ""]), sent(&["a", ""][..]), sent(&texts), sent(in_cows)] {
        assert_eq!(other, sent(texts.clone()));
    }
    let text = "zoë".to_owned();
    for other in [sent("zoë"), sent(&"zoë"), sent(&text), sent(Cow::from("zoë")), sent(&Cow::from("zoë"))]
    {
        assert_eq!(other, sent(text.clone()));
    }
    for other in
        [sent(b"ab"), sent(*b"ab"), sent(&b"ab"[..]), sent(&b"ab".to_vec()), sent(&Bytes::from("ab"))]
    {
        assert_eq!(other, (mime::BYTES, Bytes::from("ab")));
    }
    for other in [sent([b"ab".to_vec()]), sent([&b"ab"[..]]), sent(&[Bytes::from("ab")])] {
        assert_eq!(other, sent(vec![Bytes::from("ab")]));
    }
    assert_eq!(sent(&7), sent(7));
    assert_eq!(sent(&Data::Sint32(7)), sent(Data::Sint32(7)));
    assert_eq!(sent([0_i32; 0]), (mime::ARRAY_SFIXED32, Bytes::new()));
}

#[test]
fn a_vector_of_bytes_is_sent_without_a_copy() {
    let bytes = vec![1_u8, 2];
    let at = bytes.as_ptr();
    assert_eq!(sent(bytes).1.as_ptr(), at);
}

#[test]
fn integers_that_no_kind_holds_are_refused() {
    assert_invalid(u64::MAX.into_data(), &["18446744073709551615", "send it as text"]);
    assert_invalid((1_u64 << 63).into_data(), &["9223372036854775808"]);
    assert_invalid([1, u64::MAX].into_data(), &["18446744073709551615"]);
    assert_invalid((&[usize::MAX]).into_data(), &["18446744073709551615"]);
}

#[test]
fn integers_are_read_from_every_kind_if_they_fit() {
    for data in [Data::Sint32(7), Data::Sfixed32(7), Data::Sint64(7), Data::Sfixed64(7)] {
        let (mime_type, frame) = sent(&data);
        assert_eq!(u8::from_data(mime_type, &frame).unwrap(), 7);
        assert_eq!(i32::from_data(mime_type, &frame).unwrap(), 7);
        assert_eq!(i64::from_data(mime_type, &frame).unwrap(), 7);
        assert_eq!(usize::from_data(mime_type, &frame).unwrap(), 7);
        assert_invalid(bool::from_data(mime_type, &frame), &["7", "`bool`"]);
        assert_invalid(f64::from_data(mime_type, &frame), &[mime_type, "`binary/double`"]);
    }
    for data in [
        Data::Sint32Array(vec![-1, 300]),
        Data::Sfixed32Array(vec![-1, 300]),
        Data::Sint64Array(vec![-1, 300]),
        Data::Sfixed64Array(vec![-1, 300]),
    ] {
        let (mime_type, frame) = sent(&data);
        assert_eq!(Vec::<i16>::from_data(mime_type, &frame).unwrap(), [-1, 300]);
        assert_eq!(Vec::<i32>::from_data(mime_type, &frame).unwrap(), [-1, 300]);
        assert_eq!(Vec::<i64>::from_data(mime_type, &frame).unwrap(), [-1, 300]);
        assert_invalid(Vec::<i8>::from_data(mime_type, &frame), &["300", "`i8`"]);
        assert_invalid(Vec::<u64>::from_data(mime_type, &frame), &["-1", "`u64`"]);
        assert_invalid(<[i32; 3]>::from_data(mime_type, &frame), &["2 elements, expected 3"]);
        assert_invalid(Vec::<u8>::from_data(mime_type, &frame), &[mime_type, "`binary/bytes`"]);
    }
    assert_invalid(i32::from_data(mime::SFIXED64, &sent(1_i64 << 31).1), &["2147483648", "`i32`"]);
}

#[test]
fn of_several_integers_in_native_data_each_type_takes_the_one_that_it_is_sent_as() {
    let both = [Data::Sfixed32(3).encode(), Data::Sfixed64(4).encode()].concat().into();
    assert_eq!(i32::from_data(mime::NATIVE, &both).unwrap(), 3);
    assert_eq!(i64::from_data(mime::NATIVE, &both).unwrap(), 4);
}

#[test]
fn the_mime_type_that_cpp_gives_64_bit_arrays_is_accepted() {
    let from_cpp = Data::Sfixed64Array(vec![1, -2]).encode();
    assert_eq!(Data::decode(mime::ARRAY_SFIXED32, &from_cpp).unwrap(), Data::Sfixed64Array(vec![1, -2]));
    assert_eq!(Vec::<i64>::from_data(mime::ARRAY_SFIXED32, &from_cpp).unwrap(), [1, -2]);
    assert_eq!(Vec::<i32>::from_data(mime::ARRAY_SFIXED32, &from_cpp).unwrap(), [1, -2]);
    assert!(Vec::<i64>::from_data(mime::ARRAY_SFIXED32, &Bytes::new()).unwrap().is_empty());
    assert!(Vec::<i32>::from_data(mime::ARRAY_SFIXED32, &Bytes::new()).unwrap().is_empty());
}

#[test]
fn packed_arrays_are_read_as_any_type_that_fits() {
    // The numbers 1 and -2, packed: as 32-bit and 64-bit integers, and as varints.
    for (mime_type, hex) in [
        (mime::ARRAY_SFIXED32, "5a0801000000feffffff"),
        (mime::ARRAY_SFIXED64, "62100100000000000000feffffffffffffff"),
        (mime::ARRAY_SINT32, "4a020203"),
        (mime::ARRAY_SINT64, "52020203"),
    ] {
        let frame = hex::decode(hex).unwrap().into();
        assert_eq!(Vec::<i8>::from_data(mime_type, &frame).unwrap(), [1, -2], "{mime_type}");
        assert_eq!(<[i64; 2]>::from_data(mime_type, &frame).unwrap(), [1, -2], "{mime_type}");
    }
}

proptest! {
    #[test]
    fn numbers_read_back(
        small: (i8, u8, i16, u16, i32, u32, i64, bool),
        bits: u32,
        more_bits: u64,
    ) {
        let (a, b, c, d, e, f, g, h) = small;
        reads_back(&a, mime::SFIXED32);
        reads_back(&b, mime::SFIXED32);
        reads_back(&c, mime::SFIXED32);
        reads_back(&d, mime::SFIXED32);
        reads_back(&e, mime::SFIXED32);
        reads_back(&f, mime::SFIXED64);
        reads_back(&g, mime::SFIXED64);
        reads_back(&h, mime::SFIXED32);
        // Every bit of a floating-point number arrives, including those of a NaN.
        let (mime_type, frame) = sent(f32::from_bits(bits));
        prop_assert_eq!(f32::from_data(mime_type, &frame).unwrap().to_bits(), bits);
        let (mime_type, frame) = sent(f64::from_bits(more_bits));
        prop_assert_eq!(f64::from_data(mime_type, &frame).unwrap().to_bits(), more_bits);
    }

    #[test]
    fn what_a_large_integer_becomes_is_itself_or_an_error(number: u64) {
        match number.into_data() {
            Ok((mime_type, frame)) => prop_assert_eq!(u64::from_data(mime_type, &frame).unwrap(), number),
            Err(error) => {
                prop_assert!(i64::try_from(number).is_err());
                prop_assert_eq!(error.kind(), ErrorKind::InvalidMessage);
            }
        }
    }

    #[test]
    fn arrays_read_back(
        integers: (Vec<i8>, Vec<u16>, Vec<i32>, Vec<u32>, Vec<i64>, Vec<bool>),
        texts: Vec<String>,
        byte_strings: Vec<Vec<u8>>,
        bytes: Vec<u8>,
    ) {
        reads_back(&integers.0, mime::ARRAY_SFIXED32);
        reads_back(&integers.1, mime::ARRAY_SFIXED32);
        reads_back(&integers.2, mime::ARRAY_SFIXED32);
        reads_back(&integers.3, mime::ARRAY_SFIXED64);
        reads_back(&integers.4, mime::ARRAY_SFIXED64);
        reads_back(&integers.5, mime::ARRAY_SFIXED32);
        reads_back(&texts, mime::ARRAY_STRING);
        reads_back(&byte_strings, mime::ARRAY_BYTES);
        reads_back(&bytes, mime::BYTES);
    }

    /// The encoder that is written by hand produces the same bytes as the derived encoder.
    #[test]
    fn frames_are_those_of_data(a: Vec<i32>, b: Vec<i64>, c: Vec<f32>, d: Vec<f64>, e: Vec<String>, f: Vec<Vec<u8>>) {
        prop_assert_eq!(sent(&a), sent(Data::from(a)));
        prop_assert_eq!(sent(&b), sent(Data::from(b)));
        prop_assert_eq!(sent(&c), sent(Data::from(c)));
        prop_assert_eq!(sent(&d), sent(Data::from(d)));
        prop_assert_eq!(sent(&e), sent(Data::from(e)));
        let shared: Vec<Bytes> = f.iter().cloned().map(Bytes::from).collect();
        prop_assert_eq!(sent(&f), sent(Data::from(shared)));
    }

    #[test]
    fn any_bytes_are_read_or_refused(number in 0..17_usize, bytes: Vec<u8>) {
        let mime_type = mime::ALL.get(number).copied().unwrap_or(mime::NATIVE);
        let bytes = Bytes::from(bytes);
        let _ = (Vec::<i64>::from_data(mime_type, &bytes), <[u8; 4]>::from_data(mime_type, &bytes));
        let _ = (bool::from_data(mime_type, &bytes), Vec::<String>::from_data(mime_type, &bytes));
    }
}
