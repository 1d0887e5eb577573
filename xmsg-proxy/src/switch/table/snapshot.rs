//! All wanted prefixes, encoded for publishers that join, as far as they [concern](Scope) them.
//!
//! They are encoded in parts, each for a range of places of the table. A part is encoded again only when a
//! prefix in its range has changed: publishers that join and do not read share the memory of the parts.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::prefixes::{PrefixId, PrefixTable};
use bytes::{Bytes, BytesMut};
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmtp::Version;

use super::scope::Scope;
use super::task::SubscriptionChange;
use crate::CONTROL_TOPIC;

/// The number of places of the table in a part.
const PART: usize = 1024;

/// The wanted prefixes, as they are sent to publishers of one version of the protocol and of one scope.
#[derive(Debug)]
pub(super) struct Snapshot {
    version: Version,
    /// The scope, or `None` if the publishers may publish everything.
    scope: Option<Scope>,
    /// For links to upstreams, the length in bytes of the longest prefix that these accept. They are not sent
    /// the control topic: control requests are for the proxy that they were sent to.
    link: Option<usize>,
    /// The prefixes of the scope that are sent because they start with a wanted prefix.
    wanted: Vec<bool>,
    memory: MemoryBudget,
    parts: Vec<Option<Bytes>>,
    /// The bytes of all parts that anybody holds, including outdated ones.
    held: Arc<AtomicUsize>,
    /// The bytes of the parts that are up to date.
    present: usize,
}

impl Snapshot {
    pub(super) fn new(
        version: Version,
        scope: Option<Scope>,
        link: Option<usize>,
        table: &PrefixTable<u32>,
        memory: &MemoryBudget,
    ) -> Self {
        let own = scope.as_ref().map_or(&[][..], Scope::prefixes);
        let wanted = own.iter().map(|prefix| is_wanted(table, prefix)).collect();
        let memory = memory.clone();
        Self { version, scope, link, wanted, memory, parts: Vec::new(), held: Arc::default(), present: 0 }
    }

    /// Returns whether it is for this version and scope, and for such links.
    pub(super) fn is_of(&self, version: Version, scope: Option<&Scope>, link: Option<usize>) -> bool {
        (self.version, self.scope.as_ref(), self.link) == (version, scope, link)
    }

    pub(super) fn is_of_link(&self) -> bool {
        self.link.is_some()
    }

    pub(super) fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// Returns subscriptions to the prefixes of the scope itself that start with a wanted prefix or, with
    /// `all`, to all of them. They are sent before all parts.
    pub(super) fn first(&self, all: bool) -> Bytes {
        let mut bytes = BytesMut::new();
        match &self.scope {
            None if all => self.version.write_subscription(&mut bytes, true, &Bytes::new()),
            None => {}
            Some(scope) => {
                let own = scope.prefixes().iter().zip(&self.wanted);
                for (prefix, _) in own.filter(|(_, is_wanted)| all || **is_wanted) {
                    self.version.write_subscription(&mut bytes, true, prefix);
                }
            }
        }
        bytes.freeze()
    }

    /// Returns the notifications for its publishers of these changes of the table. They are empty if the
    /// changes do not concern them.
    pub(super) fn notifications(
        &mut self,
        changes: &[SubscriptionChange],
        table: &PrefixTable<u32>,
    ) -> Bytes {
        let mut bytes = BytesMut::new();
        let mut own = Vec::new();
        for SubscriptionChange { subscribe, prefix, .. } in changes {
            // The control topic stays, whoever else wants it or no longer wants it.
            if prefix != CONTROL_TOPIC && self.contains(prefix) {
                self.version.write_subscription(&mut bytes, *subscribe, prefix);
            }
            if let Some(scope) = &self.scope {
                own.extend(scope.within(prefix));
            }
        }
        own.sort_unstable();
        own.dedup();
        if let Some(scope) = &self.scope {
            for place in own {
                let prefix = &scope.prefixes()[place];
                let is_wanted = is_wanted(table, prefix);
                if std::mem::replace(&mut self.wanted[place], is_wanted) != is_wanted
                    && prefix != CONTROL_TOPIC
                {
                    self.version.write_subscription(&mut bytes, is_wanted, prefix);
                }
            }
        }
        bytes.freeze()
    }

    /// Returns a part for publishers that were sent that of another scope before, because their rights have
    /// changed.
    pub(super) fn part_instead(
        &self,
        table: &PrefixTable<u32>,
        part: usize,
        before: Option<&Scope>,
    ) -> Bytes {
        let mut bytes = BytesMut::new();
        for (prefix, _) in table.prefixes_within(places(part)).filter(|(prefix, _)| *prefix != CONTROL_TOPIC)
        {
            let is_told = self.contains(prefix);
            let was_told = || before.is_none_or(|before| before.contains(prefix));
            // A prefix that is sent for its own sake stays.
            if is_told || (was_told() && !self.is_own(prefix)) {
                self.version.write_subscription(&mut bytes, is_told, &Bytes::copy_from_slice(prefix));
            }
        }
        bytes.freeze()
    }

    /// Returns what is sent after all parts to publishers whose rights have changed: it cancels the prefixes
    /// of the former scope that are not sent for another reason.
    pub(super) fn last_instead(&self, table: &PrefixTable<u32>, before: Option<&Scope>, all: bool) -> Bytes {
        let mut bytes = BytesMut::new();
        let everything = [Bytes::new()];
        let before = match before {
            Some(scope) => scope.prefixes(),
            None if all => &everything,
            None => &[],
        };
        for prefix in before.iter().filter(|prefix| *prefix != CONTROL_TOPIC) {
            let is_part = !all && self.contains(prefix) && table.id(prefix).is_some();
            if !is_part && !self.is_own(prefix) {
                self.version.write_subscription(&mut bytes, false, prefix);
            }
        }
        bytes.freeze()
    }

    /// Returns whether this prefix is sent unchanged.
    fn contains(&self, prefix: &[u8]) -> bool {
        self.link.is_none_or(|longest| prefix.len() <= longest && !prefix.starts_with(CONTROL_TOPIC))
            && self.scope.as_ref().is_none_or(|scope| scope.contains(prefix))
    }

    /// Returns whether it is one of the scope.
    fn is_own(&self, prefix: &[u8]) -> bool {
        self.scope.as_ref().is_some_and(|scope| scope.prefixes().iter().any(|own| own == prefix))
    }

    /// Returns the number of parts.
    pub(super) fn len(table: &PrefixTable<u32>) -> usize {
        table.places().div_ceil(PART)
    }

    /// Returns the number of the part that contains the prefix.
    pub(super) fn part_of(id: PrefixId) -> usize {
        id.place() / PART
    }

    /// Notes that a part is out of date.
    pub(super) fn outdate(&mut self, part: usize) {
        if let Some(old) = self.parts.get_mut(part).and_then(Option::take) {
            self.present -= old.len();
        }
    }

    /// Returns whether this part is encoded and up to date.
    pub(super) fn is_encoded(&self, part: usize) -> bool {
        self.parts.get(part).is_some_and(Option::is_some)
    }

    /// Returns one part: the subscriptions to all prefixes in its range except the control topic, which comes
    /// last of all.
    pub(super) fn part(&mut self, table: &PrefixTable<u32>, part: usize) -> Bytes {
        if self.parts.len() <= part {
            self.parts.resize(part + 1, None);
        }
        if let Some(known) = &self.parts[part] {
            return known.clone();
        }
        let bytes = self.encode(table, places(part));
        self.held.fetch_add(bytes.len(), Ordering::Relaxed);
        self.present += bytes.len();
        let bytes = Bytes::from_owner(Held { bytes: self.memory.counted(bytes), all: self.held.clone() });
        self.parts[part] = Some(bytes.clone());
        bytes
    }

    fn encode(&self, table: &PrefixTable<u32>, places: Range<usize>) -> Bytes {
        let mut bytes = BytesMut::new();
        for (prefix, _) in table.prefixes_within(places) {
            if prefix != CONTROL_TOPIC && self.contains(prefix) {
                self.version.write_subscription(&mut bytes, true, &Bytes::copy_from_slice(prefix));
            }
        }
        bytes.freeze()
    }

    /// Returns the bytes of outdated parts that publishers hold because they have not read them.
    pub(super) fn outdated(&self) -> usize {
        self.held.load(Ordering::Relaxed).saturating_sub(self.present)
    }

    /// Returns the bytes of the parts that are up to date.
    pub(super) fn present(&self) -> usize {
        self.present
    }
}

fn places(part: usize) -> Range<usize> {
    part * PART..(part + 1) * PART
}

/// Returns whether a prefix is wanted that this one starts with.
fn is_wanted(table: &PrefixTable<u32>, prefix: &[u8]) -> bool {
    let mut is_wanted = false;
    table.find(prefix, |_| is_wanted = true);
    is_wanted
}

/// The bytes of a part. They count for as long as anybody holds them.
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
        let mut snapshot = Snapshot::new(Version::V3_0, None, None, &table, &memory);
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
