//! Entries and dead letters, and the bytes that they are on disk.
//!
//! | bytes | of an entry | of a dead letter |
//! |---|---|---|
//! | 4 | CRC-32 of the sequence and all that follows | the same |
//! | 8 | when it was accepted | the same |
//! | 8 | – | when it was buried |
//! | 1 | – | the cause |
//! | 2 | – | the length of the reason |
//! | … | the body | the reason, then the body |
//!
//! Numbers are little-endian, times are milliseconds since 1970. The sequence is the key under which the
//! store keeps the record. The checksum is our own: the store returns the bytes of a damaged value as if they
//! were good.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use crc32fast::Hasher;
use xmsg_core::text::floor_char_boundary;

/// What is charged for an entry or a dead letter, beside its bytes: about what the store needs for its key
/// and its place.
pub const ENTRY_OVERHEAD_BYTES: u64 = 64;
/// Bytes of a reason that are kept. What is longer is cut off.
pub const REASON_MAX_BYTES: usize = 1024;

/// The reason of a dead letter that was too old.
pub(super) const EXPIRED: &str = "expired";
/// The reason of a dead letter whose bytes are damaged.
pub(super) const DAMAGED: &str = "damaged: the record does not fit its checksum, and the body may be wrong";

/// Where numbers stand in the header of a record.
const ACCEPTED_MS_AT: usize = 4;
const DEAD_SINCE_MS_AT: usize = 12;
const CAUSE_AT: usize = 20;
const REASON_LEN_AT: usize = 21;

const ENTRY_HEADER: usize = 4 + 8;
const DEAD_HEADER: usize = 4 + 8 + 8 + 1 + 2;

/// An entry of the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its place in the order: later entries have larger ones. No two entries of a directory ever have the
    /// same one.
    pub sequence: u64,
    /// When it was accepted, in whole milliseconds.
    pub accepted_at: SystemTime,
    /// What was appended.
    pub body: Bytes,
}

/// An entry that left the spool without being delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The sequence that it had as an entry.
    pub sequence: u64,
    /// When the entry was accepted, in whole milliseconds.
    pub accepted_at: SystemTime,
    /// When it left, in whole milliseconds.
    pub dead_since: SystemTime,
    /// What kind of reason it was.
    pub cause: DeadCause,
    /// Why it left, for people.
    pub reason: String,
    /// What was appended, or, if `cause` is [`DeadCause::Damaged`], the bytes that are left of it.
    pub body: Bytes,
}

/// Why an entry became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadCause {
    /// It could not be delivered.
    Undeliverable,
    /// It was older than the spool keeps entries.
    Expired,
    /// Its bytes on disk are damaged.
    Damaged,
}

/// A record in parts that point into its bytes.
#[derive(Debug)]
pub(super) struct EntryRef<'a> {
    pub accepted_ms: u64,
    pub body: &'a [u8],
}

/// An entry whose bytes are damaged, with what is left of the body.
#[derive(Debug)]
pub(super) struct DamagedRecord<'a>(pub &'a [u8]);

/// Returns how many bytes an entry has on disk whose body has `body` bytes.
pub(super) fn entry_len(body: usize) -> usize {
    ENTRY_HEADER + body
}

/// Writes an entry to `record`, which is as long as [`entry_len`] says.
pub(super) fn encode_entry(record: &mut [u8], sequence: u64, accepted_ms: u64, body: &[u8]) {
    record[4..ENTRY_HEADER].copy_from_slice(&accepted_ms.to_le_bytes());
    record[ENTRY_HEADER..].copy_from_slice(body);
    write_checksum(record, sequence);
}

/// Reads an entry.
pub(super) fn decode_entry(record: &[u8], sequence: u64) -> Result<EntryRef<'_>, DamagedRecord<'_>> {
    let damaged = || DamagedRecord(record.get(ENTRY_HEADER..).unwrap_or_default());
    let (header, body) = record.split_first_chunk::<ENTRY_HEADER>().ok_or_else(damaged)?;
    if !has_valid_checksum(record, sequence) {
        return Err(damaged());
    }
    Ok(EntryRef { accepted_ms: u64_at(header, ACCEPTED_MS_AT), body })
}

/// Returns what an entry is charged whose body has `body` bytes.
pub(super) fn cost_of_body(body: usize) -> u64 {
    body as u64 + ENTRY_OVERHEAD_BYTES
}

/// Returns what an entry was charged whose record has `record` bytes.
pub(super) fn cost_of_entry(record: usize) -> u64 {
    cost_of_body(record.saturating_sub(ENTRY_HEADER))
}

/// Returns what a dead letter was charged whose record has `record` bytes.
pub(super) fn cost_of_dead(record: usize) -> u64 {
    cost_of_body(record.saturating_sub(DEAD_HEADER))
}

/// Returns the bytes of a dead letter. A reason that is too long is cut off.
pub(super) fn encode_dead(
    sequence: u64,
    accepted_ms: u64,
    dead_since_ms: u64,
    cause: DeadCause,
    reason: &str,
    body: &[u8],
) -> Vec<u8> {
    let reason = &reason.as_bytes()[..floor_char_boundary(reason, REASON_MAX_BYTES)];
    let mut record = Vec::with_capacity(DEAD_HEADER + reason.len() + body.len());
    record.extend_from_slice(&[0; 4]);
    record.extend_from_slice(&accepted_ms.to_le_bytes());
    record.extend_from_slice(&dead_since_ms.to_le_bytes());
    record.push(match cause {
        DeadCause::Undeliverable => 0,
        DeadCause::Expired => 1,
        DeadCause::Damaged => 2,
    });
    // A reason has at most REASON_MAX_BYTES bytes, which fit into 16 bits.
    record.extend_from_slice(&(reason.len() as u16).to_le_bytes());
    record.extend_from_slice(reason);
    record.extend_from_slice(body);
    write_checksum(&mut record, sequence);
    record
}

/// Reads a dead letter. One whose bytes are damaged is returned as such, with the bytes that are left.
pub(super) fn decode_dead(record: &[u8], sequence: u64) -> DeadLetter {
    let whole = || {
        let (header, rest) = record.split_first_chunk::<DEAD_HEADER>()?;
        let (reason, body) = rest.split_at_checked(usize::from(u16::from_le_bytes([
            header[REASON_LEN_AT],
            header[REASON_LEN_AT + 1],
        ])))?;
        let cause = match header[CAUSE_AT] {
            0 => DeadCause::Undeliverable,
            1 => DeadCause::Expired,
            2 => DeadCause::Damaged,
            _ => return None,
        };
        has_valid_checksum(record, sequence).then(|| DeadLetter {
            sequence,
            accepted_at: time(u64_at(header, ACCEPTED_MS_AT)),
            dead_since: time(u64_at(header, DEAD_SINCE_MS_AT)),
            cause,
            reason: String::from_utf8_lossy(reason).into_owned(),
            body: Bytes::copy_from_slice(body),
        })
    };
    whole().unwrap_or_else(|| DeadLetter {
        sequence,
        accepted_at: SystemTime::UNIX_EPOCH,
        dead_since: SystemTime::UNIX_EPOCH,
        cause: DeadCause::Damaged,
        reason: DAMAGED.to_owned(),
        body: Bytes::copy_from_slice(record.get(DEAD_HEADER..).unwrap_or_default()),
    })
}

/// Returns a time as it is on disk. A time before 1970 becomes 1970.
pub(super) fn millis(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Returns a time from disk. One that the system cannot represent becomes 1970.
pub(super) fn time(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn write_checksum(record: &mut [u8], sequence: u64) {
    let sum = checksum(record, sequence);
    record[..4].copy_from_slice(&sum.to_le_bytes());
}

fn has_valid_checksum(record: &[u8], sequence: u64) -> bool {
    record.len() >= 4 && record[..4] == checksum(record, sequence).to_le_bytes()
}

fn checksum(record: &[u8], sequence: u64) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&record[4..]);
    hasher.finalize()
}

/// Reads the number at this place of a header, which has at least eight bytes from there on.
fn u64_at(header: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let mut record = vec![0; entry_len(5)];
        encode_entry(&mut record, 7, 1234, b"hello");
        let entry = decode_entry(&record, 7).unwrap();
        assert_eq!((entry.accepted_ms, entry.body), (1234, b"hello".as_slice()));
        assert_eq!(cost_of_entry(record.len()), cost_of_body(5));
    }

    #[test]
    fn any_flipped_bit_of_an_entry_is_noticed() {
        let mut record = vec![0; entry_len(20)];
        encode_entry(&mut record, 7, 1234, b"twenty bytes of body");
        for bit in 0..record.len() * 8 {
            record[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_entry(&record, 7).is_err(), "bit {bit}");
            record[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(decode_entry(&record, 8).is_err(), "the record of another entry");
        for len in 0..record.len() {
            assert!(decode_entry(&record[..len], 7).is_err(), "cut off at {len}");
        }
    }

    #[test]
    fn a_dead_letter_is_read_as_it_was_written_or_as_damaged() {
        let mut record = encode_dead(7, 1, 2, DeadCause::Undeliverable, "unroutable", b"body");
        let letter = decode_dead(&record, 7);
        assert_eq!((letter.reason.as_str(), &letter.body[..]), ("unroutable", b"body".as_slice()));
        assert_eq!((letter.accepted_at, letter.dead_since), (time(1), time(2)));
        for at in 0..record.len() {
            record[at] ^= 0x5a;
            assert_eq!(decode_dead(&record, 7).cause, DeadCause::Damaged, "byte {at}");
            assert_eq!(decode_dead(&record[..at], 7).cause, DeadCause::Damaged, "cut off at {at}");
            record[at] ^= 0x5a;
        }
    }

    #[test]
    fn a_long_reason_is_cut_off_between_characters() {
        let reason = "é".repeat(REASON_MAX_BYTES);
        let letter =
            decode_dead(&encode_dead(1, 0, 0, DeadCause::Undeliverable, &format!("x{reason}"), b""), 1);
        assert_eq!(letter.reason.len(), REASON_MAX_BYTES - 1);
        assert_eq!(letter.cause, DeadCause::Undeliverable);
    }

    #[test]
    fn times_beyond_what_the_system_knows_do_no_harm() {
        assert_eq!(millis(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), 0);
        let _ = time(u64::MAX);
        assert_eq!(millis(time(1_700_000_000_123)), 1_700_000_000_123);
    }
}
