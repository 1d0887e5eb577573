//! Tests of the format: what is written is read again, even if the end is missing or bytes are damaged.

use std::io::{Cursor, Read, Seek, SeekFrom};

use proptest::prelude::*;

use super::block::{self, HEADER_LEN, Header, Record};
use super::index::{Index, Point, TOPICS_MAX};
use super::reader::{End, Reader};
use super::writer::Writer;

const SALT: u32 = 0x1234_5678;

fn header(is_compressed: bool) -> Header {
    Header { is_compressed, part: 0, start_ns: 1_000, salt: SALT }
}

fn record(time_ns: u64, frames: &[&[u8]]) -> Record {
    Record { time_ns, frames: frames.iter().map(|frame| frame.to_vec().into()).collect() }
}

/// Makes a file of these messages. With `each`, there is a flush after each message, so that each has its own
/// block. With `whole`, the file has its index.
fn file(records: &[Record], is_compressed: bool, each: bool, whole: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, &header(is_compressed)).unwrap();
    for record in records {
        let frames: Vec<&[u8]> = record.frames.iter().map(|frame| &frame[..]).collect();
        assert!(writer.push(record.time_ns, &frames).unwrap());
        if each {
            writer.flush().unwrap();
        }
    }
    if whole {
        writer.finish().unwrap();
    } else {
        writer.flush().unwrap();
    }
    out
}

/// Returns the messages that can be read, how the file ends, and the number of damaged ranges.
fn read(bytes: &[u8]) -> (Vec<Record>, Option<End>, u64) {
    let mut reader = Reader::new(Cursor::new(bytes)).unwrap();
    let mut records = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        records.push(record);
    }
    (records, reader.end(), reader.gaps().1)
}

fn some() -> Vec<Record> {
    vec![
        record(1_000, &[b"daq:one", b"meta", b"first"]),
        record(1_500, &[b"plain", b"two frames"]),
        record(1_500, &[b"", b"", b""]),
        record(2_000, &[b"daq:two", b"", &[7; 1000]]),
        record(9_000, &[b"daq:one", b"meta", b"the last of them"]),
    ]
}

#[test]
fn what_is_written_is_read_again() {
    for is_compressed in [false, true] {
        for each in [false, true] {
            let bytes = file(&some(), is_compressed, each, true);
            assert_eq!(read(&bytes), (some(), Some(End::Whole), 0));
            let bytes = file(&some(), is_compressed, each, false);
            assert_eq!(read(&bytes), (some(), Some(End::WithoutIndex), 0));
        }
        assert_eq!(read(&file(&[], is_compressed, false, true)), (vec![], Some(End::Whole), 0));
    }
}

/// Checks the format that docs/recording.md describes.
#[test]
fn the_bytes_are_those_of_the_document() {
    let bytes = file(&[record(0x0102, &[b"t", b"", b"xy"])], false, false, true);
    let header: &[u8] = b"\x89XMR\r\n\x1a\n\x01\0\0\0\0\0\0\0\xe8\x03\0\0\0\0\0\0\x78\x56\x34\x12";
    assert_eq!(&bytes[..28], header);
    assert_eq!(bytes[28..32], crc32fast::hash(header).to_le_bytes());
    let body: &[u8] = b"\x01\x02\x01\0\0\0\0\0\0\x03\0\x01\0\0\0\0\0\0\0\x02\0\0\0txy";
    assert_eq!(bytes[32..36], (body.len() as u32).to_le_bytes());
    assert_eq!(bytes[36..40], block::checksum(SALT, &[&bytes[32..36], body]).to_le_bytes());
    assert_eq!(&bytes[40..40 + body.len()], body);
    let index_at = 40 + body.len();
    assert_eq!(bytes[index_at + 8], 3);
    let trailer = &bytes[bytes.len() - 20..];
    assert_eq!(trailer[..8], (index_at as u64).to_le_bytes());
    assert_eq!(&trailer[12..], b"\x89XMREND\n");
}

#[test]
fn a_file_cut_at_every_byte_of_its_last_record_loads() {
    for is_compressed in [false, true] {
        let records = some();
        let all_but_one = file(&records[..4], is_compressed, true, false).len();
        let bytes = file(&records, is_compressed, true, false);
        for len in all_but_one + 1..bytes.len() {
            let (found, end, gaps) = read(&bytes[..len]);
            assert_eq!(found, records[..4], "{len}");
            assert_eq!((end, gaps), (Some(End::Cut { at: all_but_one as u64 }), 0), "{len}");
        }
        // In a file cut anywhere after the header, the whole blocks are read.
        let whole = file(&records, is_compressed, true, true);
        for len in HEADER_LEN..whole.len() {
            let (found, end, gaps) = read(&whole[..len]);
            assert_eq!(found, records[..found.len()], "{len}");
            assert_eq!(gaps, 0, "{len}");
            assert_eq!(found.len() == 5, len >= bytes.len(), "{len}");
            assert!(end.is_some());
        }
    }
}

#[test]
fn a_damaged_byte_loses_one_record() {
    for is_compressed in [false, true] {
        let records = some();
        let start = file(&records[..1], is_compressed, true, false).len();
        let end = file(&records[..2], is_compressed, true, false).len();
        let bytes = file(&records, is_compressed, true, true);
        let mut expected = records.clone();
        expected.remove(1);
        for at in start..end {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                assert_eq!(read(&bytes), (expected.clone(), Some(End::Whole), 1), "byte {at}, bit {bit}");
            }
        }
    }
}

#[test]
fn behind_a_long_message_with_a_damaged_length_the_next_one_is_found() {
    for is_compressed in [false, true] {
        // Random bytes, which compression cannot shorten, and which sometimes look like the beginning of a
        // block.
        let mut noise = vec![0; 3 << 20];
        fastrand::Rng::with_seed(1).fill(&mut noise);
        let records =
            [record(1, &[b"a", b"", b"1"]), record(2, &[b"b", b"", &noise]), record(3, &[b"c", b"", b"3"])];
        let start = file(&records[..1], is_compressed, true, false).len();
        let second = file(&records[..2], is_compressed, true, false).len();
        let mut bytes = file(&records, is_compressed, true, true);
        for length in [0_u32, 1, 1 << 20, 3 << 20, 4 << 20, 64 << 20, u32::MAX] {
            bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
            let expected = vec![records[0].clone(), records[2].clone()];
            assert_eq!(read(&bytes), (expected, Some(End::Whole), 1), "{length}");
        }
        // Cut within the second block.
        let bytes = &file(&records, is_compressed, true, true)[..second - 1000];
        assert_eq!(read(bytes), (records[..1].to_vec(), Some(End::Cut { at: start as u64 }), 0));
    }
}

#[test]
fn a_damaged_index_loses_nothing_but_itself() {
    let records = some();
    let index_at = file(&records, false, true, false).len();
    let bytes = file(&records, false, true, true);
    for at in index_at..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        let (found, end, _) = read(&bytes);
        assert_eq!(found, records, "{at}");
        assert!(end.is_some());
        let mut reader = Reader::new(Cursor::new(&bytes[..])).unwrap();
        assert_eq!(reader.index().unwrap(), None, "{at}");
    }
}

#[test]
fn a_damaged_header_is_told() {
    let bytes = file(&some(), false, true, true);
    for at in 0..HEADER_LEN {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        let error = Reader::new(Cursor::new(&bytes[..])).unwrap_err();
        let expected = match at {
            0..8 => "it is not a recording",
            8..10 => "its format has version",
            _ => "its header is damaged",
        };
        assert!(error.to_string().contains(expected), "{at}: {error}");
    }
    assert!(Reader::new(Cursor::new(&bytes[..HEADER_LEN - 1])).is_err());
    assert!(Reader::new(Cursor::new(&[][..])).is_err());
}

/// Data may be a recording, or look like a part of this one. After a damaged length, it must not be read as
/// messages.
#[test]
fn a_recording_within_a_message_is_never_taken_for_messages() {
    let mut inner = Vec::new();
    let other = Header { salt: SALT + 1, ..header(false) };
    let mut writer = Writer::new(&mut inner, &other).unwrap();
    for _ in 0..10 {
        writer.push(5, &[b"forged", b"", b"message"]).unwrap();
    }
    writer.finish().unwrap();
    let records =
        [record(1, &[b"a", b"", b"1"]), record(2, &[b"b", b"", &inner]), record(3, &[b"c", b"", b"3"])];
    let start = file(&records[..1], false, true, false).len();
    let mut bytes = file(&records, false, true, true);
    for len in [0_u32, 5, u32::MAX] {
        bytes[start..start + 4].copy_from_slice(&len.to_le_bytes());
        let expected = vec![records[0].clone(), records[2].clone()];
        assert_eq!(read(&bytes), (expected, Some(End::Whole), 1));
    }
}

#[test]
fn lengths_are_not_believed() {
    let mut bytes = file(&some()[..1], true, true, false);
    let start = bytes.len();
    // The block claims to hold 4 GiB, or less or more than it does: a kilobyte of zstd can decompress to any
    // length.
    let bomb = super::compression::Compressor::new().unwrap().compress(&vec![0; 16 << 20]).unwrap();
    for raw_len in [u32::MAX, 100, 17 << 20] {
        bytes.truncate(start);
        bytes.extend_from_slice(&[0; 8]);
        bytes.push(block::COMPRESSED);
        bytes.extend_from_slice(&raw_len.to_le_bytes());
        bytes.extend_from_slice(&bomb);
        block::seal(&mut bytes, start, SALT);
        assert_eq!(read(&bytes), (some()[..1].to_vec(), Some(End::WithoutIndex), 1));
    }
    // The index claims more points and topics than it has.
    let mut index = Vec::new();
    Index::default().encode(&mut index);
    for at in [49, 53] {
        let mut index = index.clone();
        index[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Index::decode(&index), None);
    }
}

#[test]
fn what_is_no_message_is_not_written() {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, &header(false)).unwrap();
    assert!(!writer.push(1, &[]).unwrap());
    assert!(!writer.push(1, &vec![b"x".as_slice(); 1025]).unwrap());
    assert!(writer.push(1, &vec![b"x".as_slice(); 1024]).unwrap());
    writer.finish().unwrap();
    assert_eq!(read(&out).0.len(), 1);
}

#[test]
fn the_index_tells_totals_and_topics_and_where_a_time_is() {
    for is_compressed in [false, true] {
        let records: Vec<Record> = (0..4000_u64)
            .map(|n| record(n * 1000, &[format!("t:{}", n % 3).as_bytes(), b"m", &[n as u8; 500]]))
            .collect();
        let bytes = file(&records, is_compressed, false, true);
        let mut reader = Reader::new(Cursor::new(&bytes[..])).unwrap();
        let index = reader.index().unwrap().unwrap();
        assert_eq!((index.total.messages, index.total.bytes), (4000, 4000 * 504));
        assert_eq!((index.first_ns, index.last_ns), (0, 3_999_000));
        assert_eq!(
            index.sorted().iter().map(|(name, count)| (*name, count.messages)).collect::<Vec<_>>(),
            [(&b"t:0"[..], 1334), (b"t:1", 1333), (b"t:2", 1333)]
        );
        for wanted in [0, 1, 1_000_000, 1_000_500, 3_999_000, 4_000_000] {
            let mut reader = Reader::new(Cursor::new(&bytes[..])).unwrap();
            reader.seek(&index, wanted).unwrap();
            let first = reader.next().unwrap().map_or(u64::MAX, |record| record.time_ns);
            assert!(first <= wanted, "{first} for {wanted}");
            if !is_compressed {
                // Reading does not start at the beginning of the file.
                assert!(wanted.saturating_sub(first) <= 1_100_000, "{first} for {wanted}");
            }
            let mut found = first;
            while found < wanted {
                found = reader.next().unwrap().map_or(u64::MAX, |record| record.time_ns);
            }
            assert_eq!(found, if wanted > 3_999_000 { u64::MAX } else { wanted.div_ceil(1000) * 1000 });
        }
    }
}

#[test]
fn an_index_is_bounded() {
    let mut index = Index::default();
    for n in 0..TOPICS_MAX as u64 + 5 {
        index.count(n, n.to_string().as_bytes(), 1);
    }
    index.count(0, &vec![0; 2 << 20], 1);
    assert_eq!((index.topics.len(), index.others.messages), (TOPICS_MAX, 6));
    for n in 0..100_000_u64 {
        index.note(Point { at: n << 20, time_ns: n });
    }
    assert!(index.points.len() <= 8192, "{}", index.points.len());
    let mut out = Vec::new();
    index.encode(&mut out);
    let decoded = Index::decode(&out).unwrap();
    assert_eq!(
        (decoded.total, &decoded.points, &decoded.topics),
        (index.total, &index.points, &index.topics)
    );
    assert!((decoded.place_of(50_000).unwrap() >> 20).abs_diff(50_000) < 100);
}

fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6)
}

/// A few kilobytes of a file may decompress to 64 MiB of messages with 1,024 empty frames each. Decoding all
/// of them at once would take half a gigabyte.
#[cfg(feature = "zstd")]
#[test]
fn a_small_block_of_very_many_frames_is_read_one_message_at_a_time() {
    let frames = [&b""[..]; block::FRAMES_MAX];
    let mut message = Vec::new();
    assert!(block::encode_message(&mut message, 1, &frames));
    let count = block::RAW_MAX / (4 + message.len());
    let one = [&(message.len() as u32).to_le_bytes()[..], &message].concat();
    let raw = one.repeat(count);
    let file = compressed_file(&raw);
    assert!(file.len() < 50_000, "{}", file.len());
    let mut reader = Reader::new(Cursor::new(&file[..])).unwrap();
    let mut found = 0;
    while let Some(record) = reader.next().unwrap() {
        assert_eq!(record.frames.len(), block::FRAMES_MAX);
        found += 1;
    }
    assert_eq!((found, reader.end()), (count, Some(End::WithoutIndex)));
}

/// Makes a file with one compressed block of these messages, which are encoded.
#[cfg(feature = "zstd")]
fn compressed_file(raw: &[u8]) -> Vec<u8> {
    let mut file = header(true).encode().to_vec();
    let start = file.len();
    file.extend_from_slice(&[0; 8]);
    file.push(block::COMPRESSED);
    file.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    file.extend_from_slice(&zstd::bulk::compress(raw, 3).unwrap());
    block::seal(&mut file, start, SALT);
    file
}

/// Makes a file with one compressed block of these messages.
#[cfg(feature = "zstd")]
fn compressed(messages: &[&[&[u8]]]) -> Vec<u8> {
    let mut raw = Vec::new();
    for frames in messages {
        raw.extend_from_slice(&(block::message_len(frames) as u32).to_le_bytes());
        assert!(block::encode_message(&mut raw, 1, frames));
    }
    compressed_file(&raw)
}

/// A message of a few bytes would otherwise keep a block of up to 64 MiB for as long as it waits.
#[cfg(feature = "zstd")]
#[test]
fn a_small_message_does_not_keep_the_large_one_beside_it() {
    let large = vec![0; 1 << 20];
    let file = compressed(&[&[b"small", b"x"], &[&large[..]]]);
    let mut reader = Reader::new(Cursor::new(&file[..])).unwrap();
    let small = reader.next().unwrap().unwrap();
    let next = reader.next().unwrap().unwrap();
    assert_eq!((small.topic(), next.frames[0].len()), (&b"small"[..], large.len()));
    drop((small.frames, reader));
    // Bytes that nobody else has are taken without a copy, with all of the memory that they keep.
    let small = Reader::new(Cursor::new(&file[..])).unwrap().next().unwrap().unwrap();
    let topic = small.frames.into_iter().next().unwrap();
    let whole = topic.try_into_mut().expect("nobody else has these bytes");
    assert!(whole.capacity() < 100, "{}", whole.capacity());
}

#[cfg(feature = "zstd")]
#[test]
fn a_lack_of_memory_is_no_damage() {
    let mut decompressor = super::compression::Decompressor::new().unwrap();
    let error = decompressor.decompress(b"", isize::MAX as usize).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory);
    assert!(decompressor.decompress(b"no frame", 10).unwrap().is_none());
}

/// Counts the bytes that are read from a file.
struct Counted<'a>(Cursor<&'a [u8]>, u64);

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let len = self.0.read(out)?;
        self.1 += len as u64;
        Ok(len)
    }
}

impl Seek for Counted<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

/// At every byte of such a file, a block may begin.
#[test]
fn a_file_of_nothing_but_places_where_a_block_may_begin_is_read_a_few_times_only() {
    let mut bytes = header(false).encode().to_vec();
    bytes.resize(1 << 20, 1);
    let mut counted = Counted(Cursor::new(&bytes[..]), 0);
    let mut reader = Reader::new(&mut counted).unwrap();
    assert!(reader.next().unwrap().is_none());
    assert_eq!(reader.end(), Some(End::Cut { at: HEADER_LEN as u64 }));
    drop(reader);
    assert!(counted.1 < 4 * bytes.len() as u64, "{} bytes were read", counted.1);
}

proptest! {
    #[test]
    fn any_messages_are_read_as_they_were_written(
        messages in prop::collection::vec((any::<u64>(), frames()), 0..20),
        is_compressed: bool,
        each: bool,
        whole: bool,
    ) {
        let records: Vec<Record> = messages
            .into_iter()
            .map(|(time_ns, frames)| Record { time_ns, frames: frames.into_iter().map(Into::into).collect() })
            .collect();
        let expected = if whole { End::Whole } else { End::WithoutIndex };
        prop_assert_eq!(read(&file(&records, is_compressed, each, whole)), (records, Some(expected), 0));
    }

    /// Every message that is read is one that was written, in the same order.
    #[test]
    fn damage_loses_messages_and_makes_none_up(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut: prop::sample::Index,
        is_compressed: bool,
        each: bool,
    ) {
        let records: Vec<Record> =
            (0..30_u64).map(|n| record(n, &[format!("t:{n}").as_bytes(), b"", &[n as u8; 50]])).collect();
        let mut bytes = file(&records, is_compressed, each, true);
        let len = bytes.len();
        for (at, byte) in changes {
            bytes[HEADER_LEN + at.index(len - HEADER_LEN)] = byte;
        }
        bytes.truncate(HEADER_LEN + cut.index(len - HEADER_LEN + 1));
        let (found, _, _) = read(&bytes);
        let mut rest = records.iter();
        prop_assert!(found.iter().all(|record| rest.any(|written| written == record)));
    }

    #[test]
    fn random_bytes_do_no_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        kinds in prop::collection::vec(0..4_u8, 0..50),
        is_compressed: bool,
    ) {
        let _ = Reader::new(Cursor::new(&bytes[..]));
        let _ = Index::decode(&bytes);
        let _ = Record::decode(&bytes.clone().into());
        let _ = block::Records::of(bytes.clone().into());
        // The blocks follow a good header and have correct checksums.
        let mut file = header(is_compressed).encode().to_vec();
        let mut rest = &bytes[..];
        for kind in kinds {
            let start = file.len();
            let (body, others) = rest.split_at(rest.len().min(usize::from(kind) * 20));
            file.extend_from_slice(&[0; 8]);
            file.push(kind);
            file.extend_from_slice(body);
            block::seal(&mut file, start, SALT);
            rest = others;
        }
        file.extend_from_slice(rest);
        let mut reader = Reader::new(Cursor::new(&file[..])).unwrap();
        let _ = reader.index().unwrap();
        while reader.next().unwrap().is_some() {}
        prop_assert!(reader.end().is_some());
    }
}
