//! The tables of a spool within a transaction, and the totals that go with them.

use redb::{AccessGuard, ReadableTable, Table};

use super::record::{
    DAMAGED, DamagedRecord, DeadCause, DeadLetter, EXPIRED, cost_of_body, cost_of_dead, cost_of_entry,
    decode_dead, decode_entry, encode_dead, encode_entry, entry_len,
};
use super::store::StoreError;

/// How many entries and dead letters there are, and what they are charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// The sequence of the next entry.
    pub next: u64,
    pub entries: u64,
    pub bytes: u64,
    pub dead_entries: u64,
    pub dead_bytes: u64,
    /// When the newest entry was accepted. No entry is accepted earlier than the one before it, whatever the
    /// clock does.
    pub newest_ms: u64,
}

/// The tables, within a transaction.
pub(super) struct Tables<'t> {
    entries: Table<'t, u64, &'static [u8]>,
    dead: Table<'t, u64, &'static [u8]>,
    pub totals: Totals,
    /// Dead letters that were dropped for want of room.
    pub dead_dropped: u64,
    /// Entries that turned out to be damaged.
    pub damaged: u64,
}

impl<'t> Tables<'t> {
    pub(super) fn new(
        entries: Table<'t, u64, &'static [u8]>,
        dead: Table<'t, u64, &'static [u8]>,
        totals: Totals,
    ) -> Self {
        Self { entries, dead, totals, dead_dropped: 0, damaged: 0 }
    }

    /// Appends an entry and returns its sequence.
    pub(super) fn append(&mut self, body: &[u8], now_ms: u64) -> Result<u64, StoreError> {
        let sequence = self.totals.next;
        self.totals.newest_ms = self.totals.newest_ms.max(now_ms);
        let mut record = self.entries.insert_reserve(sequence, entry_len(body.len()))?;
        encode_entry(record.as_mut(), sequence, self.totals.newest_ms, body);
        self.totals.next += 1;
        self.totals.entries += 1;
        self.totals.bytes += cost_of_body(body.len());
        Ok(sequence)
    }

    /// Takes out an entry that was delivered, or the dead letter that it became meanwhile for its age.
    pub(super) fn remove(&mut self, sequence: u64) -> Result<(), StoreError> {
        if self.take(sequence)?.is_some() {
            return Ok(());
        }
        let expired =
            |value: AccessGuard<'_, &[u8]>| decode_dead(value.value(), sequence).cause == DeadCause::Expired;
        if self.totals.dead_entries > 0 && self.dead.get(sequence)?.is_some_and(expired) {
            self.discard(sequence)?;
        }
        Ok(())
    }

    /// Makes a dead letter of an entry. Returns `false` if there is no such entry.
    pub(super) fn dead_letter(
        &mut self,
        sequence: u64,
        cause: DeadCause,
        reason: &str,
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        let Some(record) = self.take(sequence)? else { return Ok(false) };
        self.insert_dead_letter(sequence, &record, cause, reason, now_ms)?;
        Ok(true)
    }

    /// Makes dead letters of at most `max` entries that were accepted before `before_ms`. Returns how many
    /// there were.
    pub(super) fn expire(&mut self, before_ms: u64, max: usize, now_ms: u64) -> Result<u64, StoreError> {
        let mut expired = 0;
        for _ in 0..max {
            let Some((sequence, is_old)) = self.entries.first()?.map(|(key, value)| {
                let old = decode_entry(value.value(), key.value())
                    .map_or(true, |entry| entry.accepted_ms < before_ms);
                (key.value(), old)
            }) else {
                break;
            };
            if !is_old {
                break;
            }
            let damaged = self.damaged;
            if !self.dead_letter(sequence, DeadCause::Expired, EXPIRED, now_ms)? {
                return Err(StoreError::Damaged(format!("entry {sequence} is listed, but not found")));
            }
            expired += u64::from(self.damaged == damaged);
        }
        Ok(expired)
    }

    /// Moves a dead letter to the end of the entries, and returns its new sequence.
    pub(super) fn revive(&mut self, letter: &DeadLetter, now_ms: u64) -> Result<u64, StoreError> {
        self.discard(letter.sequence)?;
        self.append(&letter.body, now_ms)
    }

    /// Returns the dead letter of this sequence.
    pub(super) fn letter(&self, sequence: u64) -> Result<Option<DeadLetter>, StoreError> {
        Ok(self.dead.get(sequence)?.map(|value| decode_dead(value.value(), sequence)))
    }

    /// Drops a dead letter. Returns `false` if there is none of this sequence.
    pub(super) fn discard(&mut self, sequence: u64) -> Result<bool, StoreError> {
        let Some(len) = self.dead.remove(sequence)?.map(|value| value.value().len()) else {
            return Ok(false);
        };
        self.totals.subtract_dead(len);
        Ok(true)
    }

    /// Drops all dead letters, and returns how many there were.
    pub(super) fn discard_all(&mut self) -> Result<u64, StoreError> {
        let mut dropped = 0;
        while let Some(len) = self.dead.pop_first()?.map(|(_, value)| value.value().len()) {
            self.totals.subtract_dead(len);
            dropped += 1;
        }
        Ok(dropped)
    }

    /// Drops the oldest dead letters until they take at most so many bytes.
    pub(super) fn trim_dead(&mut self, max_bytes: u64) -> Result<(), StoreError> {
        while self.totals.dead_bytes > max_bytes {
            let Some(len) = self.dead.pop_first()?.map(|(_, value)| value.value().len()) else { break };
            self.totals.subtract_dead(len);
            self.dead_dropped += 1;
        }
        Ok(())
    }

    /// Corrects the totals after it turned out that no entry is there. Returns how many were missing.
    pub(super) fn clear_entry_totals(&mut self) -> u64 {
        self.totals.bytes = 0;
        std::mem::take(&mut self.totals.entries)
    }

    /// Puts in an entry as it was in another file. One that is damaged becomes a dead letter.
    pub(super) fn restore_entry(
        &mut self,
        sequence: u64,
        record: &[u8],
        now_ms: u64,
    ) -> Result<(), StoreError> {
        self.totals.next = self.totals.next.max(sequence + 1);
        if decode_entry(record, sequence).is_err() {
            return self.insert_dead_letter(sequence, record, DeadCause::Damaged, DAMAGED, now_ms);
        }
        self.entries.insert(sequence, record)?;
        self.totals.add_entry(sequence, record);
        Ok(())
    }

    /// Puts in a dead letter as it was in another file.
    pub(super) fn restore_dead(&mut self, sequence: u64, record: &[u8]) -> Result<(), StoreError> {
        if self.dead.insert(sequence, record)?.is_none() {
            self.totals.add_dead(sequence, record);
        }
        Ok(())
    }

    fn insert_dead_letter(
        &mut self,
        sequence: u64,
        record: &[u8],
        cause: DeadCause,
        reason: &str,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let letter = match decode_entry(record, sequence) {
            Ok(entry) => encode_dead(sequence, entry.accepted_ms, now_ms, cause, reason, entry.body),
            Err(DamagedRecord(rest)) => {
                self.damaged += 1;
                encode_dead(sequence, 0, now_ms, DeadCause::Damaged, DAMAGED, rest)
            }
        };
        if let Some(len) = self.dead.insert(sequence, letter.as_slice())?.map(|old| old.value().len()) {
            self.totals.subtract_dead(len);
        }
        self.totals.add_dead(sequence, &letter);
        Ok(())
    }

    fn take(&mut self, sequence: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(record) = self.entries.remove(sequence)?.map(|value| value.value().to_vec()) else {
            return Ok(None);
        };
        self.totals.entries = self.totals.entries.saturating_sub(1);
        self.totals.bytes = self.totals.bytes.saturating_sub(cost_of_entry(record.len()));
        Ok(Some(record))
    }
}

impl Totals {
    const NUMBERS: usize = 6;

    pub(super) fn encode(&self) -> Vec<u8> {
        let numbers =
            [self.next, self.entries, self.bytes, self.dead_entries, self.dead_bytes, self.newest_ms];
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads totals. Returns `None` if the bytes are damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (numbers, sum) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(numbers).to_le_bytes() != *sum {
            return None;
        }
        let (numbers, []) = numbers.as_chunks::<8>() else { return None };
        let numbers: [[u8; 8]; Self::NUMBERS] = numbers.try_into().ok()?;
        let [next, entries, bytes, dead_entries, dead_bytes, newest_ms] = numbers.map(u64::from_le_bytes);
        Some(Self { next, entries, bytes, dead_entries, dead_bytes, newest_ms })
    }

    pub(super) fn add_entry(&mut self, sequence: u64, record: &[u8]) {
        self.next = self.next.max(sequence + 1);
        self.entries += 1;
        self.bytes += cost_of_entry(record.len());
        if let Ok(entry) = decode_entry(record, sequence) {
            self.newest_ms = self.newest_ms.max(entry.accepted_ms);
        }
    }

    pub(super) fn add_dead(&mut self, sequence: u64, record: &[u8]) {
        self.next = self.next.max(sequence + 1);
        self.dead_entries += 1;
        self.dead_bytes += cost_of_dead(record.len());
    }

    fn subtract_dead(&mut self, record: usize) {
        self.dead_entries = self.dead_entries.saturating_sub(1);
        self.dead_bytes = self.dead_bytes.saturating_sub(cost_of_dead(record));
    }
}
