//! The table of prefixes, and the search in it. [`prefixes`](super) says how it works.

use std::collections::HashMap;
use std::ops::Range;

use smallvec::SmallVec;

use super::arena::Arena;
use super::hash::{Hash, Key, PrefixHasher};
use super::hash_index::HashIndex;

/// The identifier of a prefix that has a key or a hold. It is valid until the last key and hold are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixId(u32);

/// A set of (prefix, key) pairs that finds all keys whose prefix starts a topic. Keys are small and ordered:
/// the number of a subscriber.
///
/// ```
/// let mut table = xmsg_proxy::prefixes::PrefixTable::new();
/// table.insert(b"data:power", 1_u32);
/// table.insert(b"", 2);
/// let mut found = Vec::new();
/// table.find(b"data:power:watts", |keys| found.extend_from_slice(keys));
/// assert_eq!(found, [2, 1]);
/// ```
#[derive(Debug)]
pub struct PrefixTable<K> {
    key: Key,
    entries: Arena<Entry<K>>,
    /// The place in the arena of the prefix with this hash.
    index: HashIndex,
    /// The [`Head`] with this hash, for heads of all lengths. Two heads with the same hash share an entry,
    /// which costs only lookups that find nothing.
    heads: HashIndex,
    /// The lengths of the prefixes that are too short to have a head.
    short: Head,
    /// The lengths of all prefixes in ascending order, and how many prefixes have each.
    lengths: Vec<(usize, usize)>,
    pairs: usize,
    /// The number of holds of the prefix at each place.
    held: HashMap<u32, u32>,
    holds: usize,
}

/// The number of topics that are looked up together: somewhat more than the number of requests that memory
/// serves at a time.
const TOGETHER: usize = 32;
/// Bytes from one head to the next, up to `FINE`. Beyond that, each head is twice as long as the one before,
/// so that even a long prefix has few heads.
const STEP: usize = 8;
const FINE: usize = 64;

/// Returns the length of the head that follows a head of length `len`.
#[inline]
fn next_head(len: usize) -> usize {
    if len < FINE { len + STEP } else { 2 * len }
}

/// Returns how many lengths one bit of such a head stands for, as a power of two.
#[inline]
fn width(len: usize) -> u32 {
    ((next_head(len) - len) / 8).trailing_zeros()
}

/// Returns how many heads a prefix of `len` bytes has.
#[must_use]
pub fn heads(len: usize) -> usize {
    if len < FINE { len / STEP } else { FINE / STEP + (len / FINE).ilog2() as usize }
}

/// What the table stores about the prefixes that start with the bytes of a head.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    /// A bit for each length up to the next head, or for several lengths. Bits stay set until the head is
    /// removed. At worst this costs lookups that find nothing.
    lengths: u8,
    /// The number of prefixes. The count stops at its maximum, and then the head stays for ever.
    prefixes: u32,
}

impl Head {
    const PREFIXES_MAX: u32 = (1 << 24) - 1;

    fn from_number(number: u32) -> Self {
        Self { lengths: number as u8, prefixes: number >> 8 }
    }

    fn number(self) -> u32 {
        self.prefixes << 8 | u32::from(self.lengths)
    }
}

/// The result of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// The identifier of the prefix.
    pub prefix: PrefixId,
    /// Whether the pair was not in the table before. It is always true for a hold.
    pub is_new: bool,
    /// Whether the prefix was not in the table before.
    pub is_first: bool,
}

/// A prefix with its keys. An entry without keys is either held or free. An entry fills one cache line.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Entry<K> {
    prefix: SmallVec<[u8; 32]>,
    /// The keys in ascending order.
    keys: SmallVec<[K; 4]>,
}

impl PrefixId {
    /// Returns the place that ranges of [`prefixes_within`](PrefixTable::prefixes_within) refer to.
    #[must_use]
    pub fn place(self) -> usize {
        self.0 as usize
    }
}

impl<K: Copy> Default for Entry<K> {
    fn default() -> Self {
        Self { prefix: SmallVec::new(), keys: SmallVec::new() }
    }
}

impl<K: Copy + Ord> Default for PrefixTable<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Copy + Ord> PrefixTable<K> {
    /// Creates an empty table.
    #[must_use]
    pub fn new() -> Self {
        Self {
            key: Key::random(),
            entries: Arena::new(),
            index: HashIndex::default(),
            heads: HashIndex::default(),
            short: Head::default(),
            lengths: Vec::new(),
            pairs: 0,
            held: HashMap::new(),
            holds: 0,
        }
    }

    /// Returns the number of (prefix, key) pairs plus the number of holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs + self.holds
    }

    /// Returns whether the table has neither pairs nor holds.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the length of the longest prefix in bytes, or 0 if there is none.
    #[must_use]
    pub fn longest_prefix(&self) -> usize {
        self.lengths.last().map_or(0, |(len, _)| *len)
    }

    /// Adds a pair. Adding an existing pair changes nothing.
    pub fn insert(&mut self, prefix: &[u8], key: K) -> Inserted {
        let id = self.id(prefix);
        if let Some((prefix, entry)) = id.and_then(|id| Some((id, self.entries.get_mut(id.0)?))) {
            let at = entry.keys.binary_search(&key);
            if let Err(at) = at {
                entry.keys.insert(at, key);
                self.pairs += 1;
            }
            return Inserted { prefix, is_new: at.is_err(), is_first: false };
        }
        self.pairs += 1;
        let keys = SmallVec::from_slice(&[key]);
        Inserted { prefix: PrefixId(self.add(prefix, keys)), is_new: true, is_first: true }
    }

    /// Adds a hold, which keeps a prefix in the table without a key. Lookups don't find the prefix, but it
    /// has an id and is listed. [`release`](Self::release) removes one hold.
    ///
    /// ```
    /// let mut table = xmsg_proxy::prefixes::PrefixTable::<u32>::new();
    /// let held = table.hold(b"data:power");
    /// assert!(held.is_first);
    /// table.find(b"data:power:watts", |keys| assert!(keys.is_empty()));
    /// assert_eq!(table.release(held.prefix), Some(b"data:power".to_vec()));
    /// ```
    pub fn hold(&mut self, prefix: &[u8]) -> Inserted {
        let id = self.id(prefix);
        let is_first = id.is_none();
        let id = id.unwrap_or_else(|| PrefixId(self.add(prefix, SmallVec::new())));
        *self.held.entry(id.0).or_default() += 1;
        self.holds += 1;
        Inserted { prefix: id, is_new: true, is_first }
    }

    /// Removes one hold. Returns the prefix if it was removed from the table, because it has no more holds
    /// and no keys.
    ///
    /// Does nothing if the prefix is not held.
    pub fn release(&mut self, prefix: PrefixId) -> Option<Vec<u8>> {
        let held = self.held.get_mut(&prefix.0)?;
        *held -= 1;
        if *held == 0 {
            self.held.remove(&prefix.0);
        }
        self.holds -= 1;
        self.drop_unused(prefix)
    }

    /// Adds a prefix that is not in the table.
    fn add(&mut self, prefix: &[u8], keys: SmallVec<[K; 4]>) -> u32 {
        let place = self.entries.add(Entry { prefix: SmallVec::from_slice(prefix), keys });
        self.index.insert(self.hash(prefix), place);
        self.add_heads(prefix);
        match self.length(prefix.len()) {
            Ok(at) => self.lengths[at].1 += 1,
            Err(at) => self.lengths.insert(at, (prefix.len(), 1)),
        }
        place
    }

    /// Returns the id of this prefix, if it has a key or a hold.
    #[must_use]
    pub fn id(&self, prefix: &[u8]) -> Option<PrefixId> {
        self.place(self.hash(prefix), prefix).map(PrefixId)
    }

    /// Returns whether this pair is in the table.
    ///
    /// # Panics
    ///
    /// If `prefix` never was an id of this table.
    #[must_use]
    pub fn contains(&self, prefix: PrefixId, key: K) -> bool {
        self.entries.get(prefix.0).keys.binary_search(&key).is_ok()
    }

    /// Removes a pair. Returns the prefix if it was removed from the table, because it has no more keys and
    /// no holds.
    ///
    /// Does nothing if the pair is not in the table.
    pub fn remove(&mut self, prefix: PrefixId, key: K) -> Option<Vec<u8>> {
        let keys = &mut self.entries.get_mut(prefix.0)?.keys;
        let at = keys.binary_search(&key).ok()?;
        keys.remove(at);
        self.pairs -= 1;
        self.drop_unused(prefix)
    }

    /// Returns whether the prefix at this place has a key or a hold.
    fn is_used(&self, place: u32) -> bool {
        !self.entries.get(place).keys.is_empty() || self.held.contains_key(&place)
    }

    /// Removes a prefix if it has neither keys nor holds, and returns it in that case.
    fn drop_unused(&mut self, prefix: PrefixId) -> Option<Vec<u8>> {
        let place = prefix.0;
        if self.is_used(place) {
            return None;
        }
        let prefix = self.entries.remove(place).prefix.into_vec();
        self.index.remove(self.hash(&prefix), place);
        self.remove_heads(&prefix);
        if let Ok(at) = self.length(prefix.len()) {
            self.lengths[at].1 -= 1;
            if self.lengths[at].1 == 0 {
                self.lengths.remove(at);
            }
        }
        Some(prefix)
    }

    /// Returns the prefix of this id.
    ///
    /// # Panics
    ///
    /// If `id` never was an id of this table.
    #[must_use]
    pub fn prefix(&self, id: PrefixId) -> &[u8] {
        &self.entries.get(id.0).prefix
    }

    /// Calls `found` with the keys of every prefix of `topic`, shortest prefix first. A key with several of
    /// these prefixes is passed several times.
    pub fn find(&self, topic: &[u8], mut found: impl FnMut(&[K])) {
        self.candidates(topic, |hash, prefix| {
            if let Some(place) = self.place(hash, prefix) {
                found(&self.entries.get(place).keys);
            }
        });
    }

    /// Does the same as [`find`](Self::find) for several topics at once, and passes the index of the topic
    /// with its keys. With many prefixes, this takes half of the time, because the memory accesses of
    /// different topics overlap.
    pub fn find_each(&self, topics: &[&[u8]], mut found: impl FnMut(usize, &[K])) {
        struct Candidate<'a> {
            topic: usize,
            prefix: &'a [u8],
            hash: Hash,
            place: u32,
        }
        let mut candidates: SmallVec<[Candidate<'_>; TOGETHER]> = SmallVec::new();
        for (part, topics) in topics.chunks(TOGETHER).enumerate() {
            for (number, topic) in topics.iter().enumerate() {
                let topic_number = part * TOGETHER + number;
                self.candidates(topic, |hash, prefix| {
                    candidates.push(Candidate { topic: topic_number, prefix, hash, place: 0 });
                });
            }
            // Each step is done for all candidates before the next step, because no candidate needs the
            // result of another one in the same step.
            candidates.retain(|candidate| {
                self.index.find(candidate.hash, |_| true).is_some_and(|place| {
                    candidate.place = place;
                    true
                })
            });
            for Candidate { topic, prefix, hash, place } in candidates.drain(..) {
                let entry = self.entries.get(place);
                if entry.prefix[..] == *prefix {
                    found(topic, &entry.keys);
                } else if let Some(place) = self.place(hash, prefix) {
                    found(topic, &self.entries.get(place).keys);
                }
            }
        }
    }

    /// Calls `candidate` with the prefixes of a topic that may be in the table, shortest first.
    #[inline]
    fn candidates<'a>(&self, topic: &'a [u8], mut candidate: impl FnMut(Hash, &'a [u8])) {
        let mut hasher = PrefixHasher::new(self.key, topic);
        // With few different lengths, one lookup per length costs no more than the heads would.
        if self.lengths.len() <= heads(topic.len()) + 1 {
            for (len, _) in &self.lengths {
                let Some(prefix) = topic.get(..*len) else { return };
                candidate(hasher.hash(*len), prefix);
            }
            return;
        }
        // The heads of a topic of 20 bytes, and the lengths that each of them stands for:
        //
        // start   0             8               16        20
        //         ├── short ────┼── head of 8 ──┼── head of 16 ──►
        // length  0 1 2 … 7     8 9 10 … 15     16 17 …
        //
        // In a long head, a bit stands for 2^width lengths, of which the table knows those that exist.
        let (mut head, mut start) = (self.short, 0);
        loop {
            let mut lengths = head.lengths;
            while lengths != 0 {
                let bit = lengths.trailing_zeros() as usize;
                lengths &= lengths - 1;
                let width = width(start);
                let first = start + (bit << width);
                if width == 0 {
                    let Some(prefix) = topic.get(..first) else { return };
                    candidate(hasher.hash(first), prefix);
                    continue;
                }
                let from = self.lengths.partition_point(|(len, _)| *len < first);
                for (len, _) in self.lengths[from..].iter().take_while(|(len, _)| *len < first + (1 << width))
                {
                    let Some(prefix) = topic.get(..*len) else { return };
                    candidate(hasher.hash(*len), prefix);
                }
            }
            start = next_head(start);
            if start > topic.len() {
                return;
            }
            let Some(number) = self.heads.find(hasher.hash(start), |_| true) else { return };
            head = Head::from_number(number);
        }
    }

    /// Returns every prefix with the number of its keys and holds, in no particular order.
    pub fn prefixes(&self) -> impl Iterator<Item = (&[u8], usize)> {
        self.prefixes_within(0..self.places())
    }

    /// Returns the number of places for prefixes. It bounds the ranges for
    /// [`prefixes_within`](Self::prefixes_within).
    #[must_use]
    pub fn places(&self) -> usize {
        self.entries.places()
    }

    /// Returns the [`prefixes`](Self::prefixes) at a range of places, so that a large table can be listed in
    /// parts. A prefix keeps its place as long as it is in the table, and is therefore listed just once.
    pub fn prefixes_within(&self, places: Range<usize>) -> impl Iterator<Item = (&[u8], usize)> {
        let end = places.end.min(self.places());
        (places.start.min(end)..end).filter_map(|place| {
            let place = place as u32;
            let entry = self.entries.get(place);
            self.is_used(place).then(|| {
                let held = self.held.get(&place).map_or(0, |held| *held as usize);
                (&entry.prefix[..], entry.keys.len() + held)
            })
        })
    }

    fn hash(&self, prefix: &[u8]) -> Hash {
        PrefixHasher::new(self.key, prefix).hash(prefix.len())
    }

    /// Returns the index of this length in `lengths`, or where it would be inserted.
    fn length(&self, len: usize) -> Result<usize, usize> {
        self.lengths.binary_search_by_key(&len, |(len, _)| *len)
    }

    /// Returns the place of this prefix.
    fn place(&self, hash: Hash, prefix: &[u8]) -> Option<u32> {
        self.index.find(hash, |place| self.entries.get(place).prefix[..] == *prefix)
    }

    fn add_heads(&mut self, prefix: &[u8]) {
        let mut hasher = PrefixHasher::new(self.key, prefix);
        if prefix.len() < STEP {
            self.short.lengths |= 1 << prefix.len();
            self.short.prefixes += 1;
        }
        for len in lengths_of_heads(prefix) {
            let is_last = next_head(len) > prefix.len();
            let own = if is_last { 1 << ((prefix.len() - len) >> width(len)) } else { 0 };
            let hash = hasher.hash(len);
            if let Some(number) = self.heads.get_mut(hash) {
                let mut head = Head::from_number(*number);
                head.prefixes = Head::PREFIXES_MAX.min(head.prefixes + 1);
                head.lengths |= own;
                *number = head.number();
            } else {
                self.heads.insert(hash, Head { lengths: own, prefixes: 1 }.number());
            }
        }
    }

    fn remove_heads(&mut self, prefix: &[u8]) {
        let mut hasher = PrefixHasher::new(self.key, prefix);
        if prefix.len() < STEP {
            self.short.prefixes -= 1;
            if self.short.prefixes == 0 {
                self.short.lengths = 0;
            }
        }
        for len in lengths_of_heads(prefix) {
            let hash = hasher.hash(len);
            let Some(number) = self.heads.get_mut(hash) else { return };
            let mut head = Head::from_number(*number);
            if head.prefixes == 1 {
                let number = *number;
                self.heads.remove(hash, number);
            } else if head.prefixes < Head::PREFIXES_MAX {
                head.prefixes -= 1;
                *number = head.number();
            }
        }
    }
}

/// Returns the lengths of the heads of a prefix.
fn lengths_of_heads(prefix: &[u8]) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(STEP), |len| Some(next_head(*len))).take_while(|len| *len <= prefix.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn found(table: &PrefixTable<u32>, topic: &[u8]) -> Vec<u32> {
        let mut keys = Vec::new();
        table.find(topic, |found| keys.extend_from_slice(found));
        keys.sort_unstable();
        keys
    }

    /// A key that stands for a hold in the model.
    const HOLD: u32 = 4;

    /// Returns the keys that the table is expected to find.
    fn matching(model: &BTreeSet<(String, u32)>, topic: &str) -> Vec<u32> {
        let pairs = model.iter().filter(|(prefix, key)| *key != HOLD && topic.starts_with(prefix));
        let mut keys: Vec<u32> = pairs.map(|(_, key)| *key).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn the_shortest_prefix_comes_first() {
        let topic: Vec<u8> = (0..=255).collect();
        let mut table = PrefixTable::new();
        for step in [64, 1] {
            for len in (0..=topic.len()).rev().step_by(step) {
                table.insert(&topic[..len], len);
            }
            let mut keys = Vec::new();
            table.find(&topic, |found| keys.extend_from_slice(found));
            assert_eq!(keys.len(), topic.len() / step + 1);
            assert!(keys.is_sorted());
        }
    }

    #[test]
    fn matches_by_byte_prefix() {
        let mut table = PrefixTable::new();
        table.insert(b"A:B", 1);
        for topic in [&b"A:B"[..], b"A:B:L", b"A:BC"] {
            assert_eq!(found(&table, topic), [1]);
        }
        assert_eq!(found(&table, b"A:"), Vec::<u32>::new());
    }

    #[test]
    fn the_empty_prefix_matches_everything() {
        let mut table = PrefixTable::new();
        table.insert(b"", 7);
        assert_eq!(found(&table, b""), [7]);
        assert_eq!(found(&table, &[0xff, 0]), [7]);
        assert_eq!(table.longest_prefix(), 0);
    }

    #[test]
    fn tells_first_and_last() {
        let mut table = PrefixTable::new();
        let first = table.insert(b"abc", 1);
        assert!(first.is_new && first.is_first);
        assert!(!table.insert(b"abc", 1).is_new);
        assert!(!table.insert(b"abc", 2).is_first);
        assert_eq!(table.remove(first.prefix, 1), None);
        assert_eq!(table.remove(first.prefix, 1), None, "a second time changes nothing");
        assert_eq!(table.remove(first.prefix, 2), Some(b"abc".to_vec()));
        assert!(table.is_empty());
        assert_eq!(table.places(), table.entries.free.len(), "nothing is left");
        assert!(table.lengths.is_empty() && table.index.is_empty() && table.heads.is_empty());
    }

    #[test]
    fn a_long_prefix_has_few_heads() {
        for len in 0..5_000 {
            assert_eq!(lengths_of_heads(&vec![0; len]).count(), heads(len), "{len}");
        }
        assert_eq!(heads(4096), 14);
    }

    /// The prefixes have more lengths than heads, and differ from the topic at any position.
    #[test]
    fn long_prefixes_are_found_as_short_ones_are() {
        let topic: Vec<u8> = (0..4096_u32).map(|at| (at * 7 % 251) as u8).collect();
        let mut table = PrefixTable::new();
        let mut wanted = Vec::new();
        for (key, len) in (0..4096).step_by(13).enumerate() {
            let mut prefix = topic[..len].to_vec();
            if key % 3 == 0 && len > 0 {
                prefix[len / 2] ^= 1;
            } else {
                wanted.push(key as u32);
            }
            table.insert(&prefix, key as u32);
        }
        assert_eq!(found(&table, &topic), wanted);
        for key in wanted {
            let id = table.id(&topic[..key as usize * 13]).expect("it is there");
            assert!(table.remove(id, key).is_some());
        }
        assert_eq!(found(&table, &topic), Vec::<u32>::new());
    }

    proptest! {
        /// The table agrees with a plain set of pairs through any sequence of changes, with few lengths and
        /// with many.
        #[test]
        fn agrees_with_a_set(
            changes in prop::collection::vec((any::<bool>(), "(abababab){0,3}(a{50}){0,3}[ab]{0,5}", 0_u32..5), 0..120),
            topics in prop::collection::vec("(abababab){0,3}(a{50}){0,3}[ab]{0,9}", 1..2 * TOGETHER),
        ) {
            let mut table = PrefixTable::new();
            let mut model = BTreeSet::new();
            for (add, prefix, key) in changes {
                let others = |model: &BTreeSet<(String, u32)>| model.iter().any(|(p, _)| *p == prefix);
                if add {
                    if key == HOLD && model.contains(&(prefix.clone(), HOLD)) {
                        continue;
                    }
                    let bytes = prefix.as_bytes();
                    let inserted = if key == HOLD { table.hold(bytes) } else { table.insert(bytes, key) };
                    prop_assert_eq!(inserted.is_first, !others(&model));
                    prop_assert_eq!(inserted.is_new, model.insert((prefix.clone(), key)));
                    prop_assert_eq!(table.prefix(inserted.prefix), prefix.as_bytes());
                } else {
                    let removed = table.id(prefix.as_bytes()).and_then(|id| {
                        if key == HOLD { table.release(id) } else { table.remove(id, key) }
                    });
                    let was = model.remove(&(prefix.clone(), key));
                    prop_assert_eq!(removed.is_some(), was && !others(&model));
                }
                prop_assert_eq!(table.len(), model.len());
                let longest = model.iter().map(|(p, _)| p.len()).max().unwrap_or(0);
                prop_assert_eq!(table.longest_prefix(), longest);
                prop_assert_eq!(found(&table, topics[0].as_bytes()), matching(&model, &topics[0]));
            }
            let bytes: Vec<&[u8]> = topics.iter().map(String::as_bytes).collect();
            let mut each = vec![Vec::new(); topics.len()];
            table.find_each(&bytes, |topic, keys| each[topic].extend_from_slice(keys));
            for (topic, mut keys) in topics.iter().zip(each) {
                keys.sort_unstable();
                prop_assert_eq!(&keys, &found(&table, topic.as_bytes()));
                prop_assert_eq!(keys, matching(&model, topic));
            }
            let listed: BTreeSet<Vec<u8>> = table.prefixes().map(|(prefix, _)| prefix.to_vec()).collect();
            let prefixes: BTreeSet<Vec<u8>> = model.iter().map(|(p, _)| p.as_bytes().to_vec()).collect();
            prop_assert_eq!(&listed, &prefixes);
            let parts: Vec<Vec<u8>> = (0..table.places())
                .step_by(2)
                .flat_map(|start| table.prefixes_within(start..start + 2))
                .map(|(prefix, _)| prefix.to_vec())
                .collect();
            prop_assert_eq!(parts.len(), prefixes.len(), "each once");
            prop_assert_eq!(parts.into_iter().collect::<BTreeSet<_>>(), prefixes);
        }
    }
}
