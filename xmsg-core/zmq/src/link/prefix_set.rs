//! The set of the prefixes that a peer has subscribed to. However they are chosen, a look-up takes time in
//! proportion to the length of the topic.
//!
//! Nearly always, a few steps through the sorted prefixes find the answer. A peer can choose prefixes, such
//! as `a`, `za`, `zza`, that make them take a step for each byte of a topic, and each step compares all bytes
//! before it. So after some steps, the prefixes are looked up by their hashes, one for each length that there
//! is. The hashes are keyed, so that a peer cannot choose prefixes that have the same ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Deref;

use bytes::Bytes;

use super::has_prefix_within;

/// The maximum number of steps through the sorted prefixes.
const STEPS: usize = 8;

/// A set of prefixes.
#[derive(Debug, Default)]
pub(crate) struct PrefixSet {
    sorted: BTreeSet<Bytes>,
    /// The number of prefixes of each length.
    lengths: BTreeMap<usize, usize>,
    /// The number of prefixes with each hash.
    hashes: HashMap<u64, u32>,
    key: RandomState,
}

/// The methods of the sorted set that do not change it.
impl Deref for PrefixSet {
    type Target = BTreeSet<Bytes>;

    fn deref(&self) -> &BTreeSet<Bytes> {
        &self.sorted
    }
}

impl PrefixSet {
    /// Adds a prefix. Returns whether it is new.
    pub(crate) fn insert(&mut self, prefix: Bytes) -> bool {
        let (len, hash) = (prefix.len(), self.hash(&prefix));
        let is_new = self.sorted.insert(prefix);
        if is_new {
            *self.lengths.entry(len).or_default() += 1;
            *self.hashes.entry(hash).or_default() += 1;
        }
        is_new
    }

    /// Removes a prefix. Returns whether it was there.
    pub(crate) fn remove(&mut self, prefix: &[u8]) -> bool {
        let is_known = self.sorted.remove(prefix);
        if is_known {
            let hash = self.hash(prefix);
            if let Some(of_length) = self.lengths.get_mut(&prefix.len()) {
                *of_length -= 1;
                if *of_length == 0 {
                    self.lengths.remove(&prefix.len());
                }
            }
            if let Some(with_hash) = self.hashes.get_mut(&hash) {
                *with_hash -= 1;
                if *with_hash == 0 {
                    self.hashes.remove(&hash);
                }
            }
        }
        is_known
    }

    /// Returns the sorted prefixes.
    pub(crate) fn into_set(self) -> BTreeSet<Bytes> {
        self.sorted
    }

    /// Whether one of the prefixes is a prefix of `topic`.
    pub(crate) fn has_prefix_of(&self, topic: &[u8]) -> bool {
        let found = has_prefix_within(topic, STEPS, |up_to| self.sorted.range::<[u8], _>(up_to).next_back());
        found.unwrap_or_else(|rest| self.has_prefix_by_hash(rest))
    }

    fn has_prefix_by_hash(&self, topic: &[u8]) -> bool {
        let (mut hasher, mut end) = (self.key.build_hasher(), 0);
        self.lengths.range(..=topic.len()).any(|(len, _)| {
            hasher.write(&topic[end..*len]);
            end = *len;
            self.hashes.contains_key(&hasher.clone().finish()) && self.sorted.contains(&topic[..*len])
        })
    }

    fn hash(&self, prefix: &[u8]) -> u64 {
        let mut hasher = self.key.build_hasher();
        hasher.write(prefix);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ops::Bound;

    use proptest::prelude::*;

    use super::*;

    fn set(prefixes: impl IntoIterator<Item = Vec<u8>>) -> PrefixSet {
        let mut set = PrefixSet::default();
        for prefix in prefixes {
            set.insert(prefix.into());
        }
        set
    }

    /// Returns what looks up the last prefix within a range, and counts how often it does.
    #[allow(clippy::type_complexity, reason = "it is the type that `has_prefix_within` takes")]
    fn counting<'a>(
        set: &'a PrefixSet,
        steps: &'a Cell<usize>,
    ) -> impl Fn((Bound<&[u8]>, Bound<&[u8]>)) -> Option<&'a Bytes> {
        |up_to| {
            steps.set(steps.get() + 1);
            set.sorted.range::<[u8], _>(up_to).next_back()
        }
    }

    /// Of these prefixes, each step through the sorted ones shortens the topic by one byte.
    #[test]
    fn prefixes_that_are_chosen_to_take_long_take_a_few_steps() {
        const LEN: usize = 4_000;
        let chosen = || (0..LEN).map(|len| [vec![b'z'; len], vec![b'a']].concat());
        let mut set = set(chosen());
        let topic = vec![b'z'; LEN];
        let steps = Cell::new(0);
        assert_eq!(has_prefix_within(&topic, usize::MAX, counting(&set, &steps)), Ok(false));
        assert_eq!(steps.take(), LEN + 1, "without a limit, there is a step for each byte");
        assert_eq!(has_prefix_within(&topic, STEPS, counting(&set, &steps)), Err(&topic[..LEN - STEPS]));
        assert_eq!(steps.take(), STEPS);
        assert!(!set.has_prefix_of(&topic));

        // A prefix is found at whatever place it is.
        for len in [0, 1, 7, 8, 9, 1_999, 3_990, LEN] {
            set.insert(topic[..len].to_vec().into());
            assert!(set.has_prefix_of(&topic), "{len}");
            assert!(set.remove(&topic[..len]));
            assert!(!set.has_prefix_of(&topic), "{len}");
        }
        for prefix in chosen() {
            assert!(set.remove(&prefix));
        }
        assert!(set.is_empty() && set.lengths.is_empty() && set.hashes.is_empty());
    }

    proptest! {
        #[test]
        fn a_prefix_is_found_exactly_if_there_is_one(
            prefixes in prop::collection::btree_set("[ab]{0,24}", 0..40),
            topic in "[ab]{0,30}",
            kept in 0..40_usize,
        ) {
            let mut set = set(prefixes.iter().map(|prefix| prefix.clone().into_bytes()));
            for gone in prefixes.iter().skip(kept) {
                prop_assert!(set.remove(gone.as_bytes()));
            }
            let expected = prefixes.iter().take(kept).any(|prefix| topic.starts_with(prefix.as_str()));
            prop_assert_eq!(set.has_prefix_of(topic.as_bytes()), expected);
            prop_assert_eq!(set.has_prefix_by_hash(topic.as_bytes()), expected);
        }
    }
}
