//! All that is wanted, encoded for publishers that join.
//!
//! It is encoded in parts, each for a range of places of the table, and a part is made anew only when something in its range has
//! changed: publishers that join and do not read share the memory of the parts.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::prefixes::{PrefixId, PrefixTable};
use bytes::{Bytes, BytesMut};
use xmsg_zmq::link::memory::MemoryBudget;
use xmsg_zmtp::Version;

use crate::CONTROL_TOPIC;

/// Places of the table that make a part.
const PART: usize = 1024;

/// The parts for one version of the protocol.
#[derive(Debug)]
pub(super) struct Snapshot {
    version: Version,
    memory: MemoryBudget,
    parts: Vec<Option<Bytes>>,
    /// Bytes of all parts that are held by anybody, those that are out of date included.
    held: Arc<AtomicUsize>,
    /// Bytes of the parts that are up to date.
    present: usize,
}

impl Snapshot {
    pub(super) fn new(version: Version, memory: &MemoryBudget) -> Self {
        Self { version, memory: memory.clone(), parts: Vec::new(), held: Arc::default(), present: 0 }
    }

    /// How many parts there are.
    pub(super) fn len(table: &PrefixTable<u32>) -> usize {
        table.places().div_ceil(PART)
    }

    /// The number of the part that tells of the prefix.
    pub(super) fn part_of(id: PrefixId) -> usize {
        id.place() / PART
    }

    /// Notes that a part is out of date.
    pub(super) fn outdate(&mut self, part: usize) {
        if let Some(old) = self.parts.get_mut(part).and_then(Option::take) {
            self.present -= old.len();
        }
    }

    /// Whether this part need not be made.
    pub(super) fn is_encoded(&self, part: usize) -> bool {
        self.parts.get(part).is_some_and(Option::is_some)
    }

    /// One part: the subscriptions to all prefixes in its range but that to control requests, which comes last of all.
    pub(super) fn part(&mut self, table: &PrefixTable<u32>, part: usize) -> Bytes {
        if self.parts.len() <= part {
            self.parts.resize(part + 1, None);
        }
        if let Some(known) = &self.parts[part] {
            return known.clone();
        }
        let bytes = encode(table, part * PART..(part + 1) * PART, self.version);
        self.held.fetch_add(bytes.len(), Ordering::Relaxed);
        self.present += bytes.len();
        let bytes = Bytes::from_owner(Held { bytes: self.memory.counted(bytes), all: self.held.clone() });
        self.parts[part] = Some(bytes.clone());
        bytes
    }

    /// Bytes of parts that are out of date and that publishers hold all the same: they have not read them.
    pub(super) fn outdated(&self) -> usize {
        self.held.load(Ordering::Relaxed).saturating_sub(self.present)
    }

    /// Bytes of the parts that are up to date.
    pub(super) fn present(&self) -> usize {
        self.present
    }
}

fn encode(table: &PrefixTable<u32>, places: Range<usize>, version: Version) -> Bytes {
    let mut bytes = BytesMut::new();
    for (prefix, _) in table.prefixes_within(places) {
        if prefix != CONTROL_TOPIC {
            version.write_subscription(&mut bytes, true, &Bytes::copy_from_slice(prefix));
        }
    }
    bytes.freeze()
}

/// A part that counts for as long as somebody holds it.
#[derive(Debug)]
struct Held {
    bytes: Bytes,
    all: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(snapshot: &mut Snapshot, table: &PrefixTable<u32>) -> Vec<Bytes> {
        (0..Snapshot::len(table)).map(|part| snapshot.part(table, part)).collect()
    }

    #[test]
    fn only_what_has_changed_is_made_anew_and_what_is_held_counts() {
        let memory = MemoryBudget::default();
        let mut table = PrefixTable::new();
        let ids: Vec<_> =
            (0..3 * PART).map(|number| table.insert(format!("{number:05}").as_bytes(), 1).prefix).collect();
        let mut snapshot = Snapshot::new(Version::V3_0, &memory);
        let first = all(&mut snapshot, &table);
        assert_eq!(memory.used(), first.concat().len());
        assert_eq!(first.iter().map(Bytes::len).sum::<usize>(), 3 * PART * (2 + 1 + 5));
        assert_eq!((snapshot.present(), snapshot.outdated()), (first.concat().len(), 0));

        let id = ids[PART + 7];
        table.remove(id, 1);
        snapshot.outdate(Snapshot::part_of(id));
        let second = all(&mut snapshot, &table);
        for part in [0, 2] {
            assert_eq!(first[part].as_ptr(), second[part].as_ptr(), "it is shared");
        }
        assert_eq!(first[1].len() - second[1].len(), 8, "what is gone is not told");
        assert_eq!(snapshot.outdated(), first[1].len());
        assert_eq!(memory.used(), first.concat().len() + second[1].len());
        drop(first);
        assert_eq!((snapshot.outdated(), memory.used()), (0, second.concat().len()));
        drop((snapshot, second));
        assert_eq!(memory.used(), 0);
    }
}
