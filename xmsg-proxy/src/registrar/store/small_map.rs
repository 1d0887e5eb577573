//! Sorted maps that take little memory while they have few entries, and estimates of the memory that they
//! take.
//!
//! The estimate depends only on the content, not on its history. So registrations that were within the limit
//! are within it again, in whatever order they are read from a file.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// The approximate overhead of the allocator for each allocation, in bytes.
const ALLOCATION: usize = 16;
/// The largest number of entries in a node of a B-tree.
const NODE_ENTRIES: usize = 11;
/// The smallest number of entries per node in a tree with several nodes. However many entries were added and
/// removed, a node has at least five, and there is one more in the node above it.
const NODE_ENTRIES_MIN: usize = 6;
/// The size of a node beside its entries, with its share of the nodes above it, in bytes.
const NODE: usize = 32 + ALLOCATION;
/// The largest number of entries in a sorted vector. A map with more entries is a tree.
const SHORT: usize = 8;

/// Returns the size of a tree with `len` entries, in bytes.
pub(super) const fn tree<K, V>(len: usize) -> usize {
    let nodes = match len {
        0 => 0,
        1..=NODE_ENTRIES => 1,
        _ => len / NODE_ENTRIES_MIN + 1,
    };
    nodes * (NODE_ENTRIES * (size_of::<K>() + size_of::<V>()) + NODE)
}

/// Returns the size of one more entry in a tree with `len` entries, in bytes.
pub(super) const fn leaf<K, V>(len: usize) -> usize {
    tree::<K, V>(len + 1) - tree::<K, V>(len)
}

/// Returns the upper bound of the bytes that each entry of a map takes, for a map of any size.
pub(super) const fn share<K, V>() -> usize {
    let entry = size_of::<K>() + size_of::<V>();
    (NODE_ENTRIES * entry + NODE).div_ceil(NODE_ENTRIES_MIN) + ALLOCATION
}

/// Returns the size of a [`TightVec`] vector with `len` elements, in bytes.
const fn vector<T>(len: usize) -> usize {
    if len == 0 { 0 } else { len.next_power_of_two() * size_of::<T>() + ALLOCATION }
}

/// Returns the size of one more element of a [`TightVec`] vector with `len` elements, in bytes.
pub(super) const fn element<T>(len: usize) -> usize {
    vector::<T>(len + 1) - vector::<T>(len)
}

/// Returns the size of a shared text, in bytes.
pub(super) const fn text(text: &str) -> usize {
    2 * size_of::<usize>() + text.len() + ALLOCATION
}

/// Returns the size of a frame with its reference count, in bytes.
pub(super) const fn frame(len: usize) -> usize {
    len + 3 * size_of::<usize>() + 2 * ALLOCATION
}

/// A text that is shared by all places that refer to it.
pub(super) type Text = Arc<str>;

/// A vector whose capacity is at most the next power of two of its length.
pub(super) trait TightVec<T> {
    fn insert_tight(&mut self, at: usize, value: T);
    fn remove_tight(&mut self, at: usize) -> T;
}

impl<T> TightVec<T> for Vec<T> {
    fn insert_tight(&mut self, at: usize, value: T) {
        if self.len() == self.capacity() {
            self.reserve_exact((self.len() + 1).next_power_of_two() - self.len());
        }
        self.insert(at, value);
    }

    fn remove_tight(&mut self, at: usize) -> T {
        let value = self.remove(at);
        self.shrink_to(if self.is_empty() { 0 } else { self.len().next_power_of_two() });
        value
    }
}

/// A sorted map that is a vector while it is short. Most topics have one or two actors, and most hosts have a
/// handful of topics.
#[derive(Debug)]
pub(super) enum SmallMap<K, V> {
    Short(Vec<(K, V)>),
    Long(BTreeMap<K, V>),
}

impl<K, V> Default for SmallMap<K, V> {
    fn default() -> Self {
        Self::Short(Vec::new())
    }
}

fn search<K: Borrow<Q>, V, Q: Ord + ?Sized>(entries: &[(K, V)], key: &Q) -> Result<usize, usize> {
    entries.binary_search_by(|(known, _)| known.borrow().cmp(key))
}

impl<K: Ord, V> SmallMap<K, V> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Short(entries) => entries.len(),
            Self::Long(entries) => entries.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the size of a map with `len` entries, in bytes.
    const fn memory(len: usize) -> usize {
        if len <= SHORT { vector::<(K, V)>(len) } else { tree::<K, V>(len) }
    }

    /// Returns the size of one more entry in a map with `len` entries, in bytes.
    pub(super) const fn growth(len: usize) -> usize {
        Self::memory(len + 1) - Self::memory(len)
    }

    pub(super) fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Short(entries) => search(entries, key).ok().map(|at| (&entries[at].0, &entries[at].1)),
            Self::Long(entries) => entries.get_key_value(key),
        }
    }

    pub(super) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.get_key_value(key).map(|(_, value)| value)
    }

    pub(super) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Short(entries) => search(entries, key).ok().map(|at| &mut entries[at].1),
            Self::Long(entries) => entries.get_mut(key),
        }
    }

    /// Returns the value of this key, and adds the key if it is missing.
    pub(super) fn entry(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        if let Self::Short(entries) = self
            && entries.len() == SHORT
            && search(entries, &key).is_err()
        {
            *self = Self::Long(std::mem::take(entries).into_iter().collect());
        }
        match self {
            Self::Short(entries) => {
                let at = search(entries, &key).unwrap_or_else(|at| {
                    entries.insert_tight(at, (key, V::default()));
                    at
                });
                &mut entries[at].1
            }
            Self::Long(entries) => entries.entry(key).or_default(),
        }
    }

    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let entries = match self {
            Self::Short(entries) => {
                return search(entries, key).ok().map(|at| entries.remove_tight(at).1);
            }
            Self::Long(entries) => entries,
        };
        let value = entries.remove(key);
        if entries.len() <= SHORT {
            let mut short = Vec::with_capacity(SHORT);
            short.extend(std::mem::take(entries));
            *self = Self::Short(short);
        }
        value
    }

    pub(super) fn first_key(&self) -> Option<&K> {
        match self {
            Self::Short(entries) => entries.first().map(|(key, _)| key),
            Self::Long(entries) => entries.first_key_value().map(|(key, _)| key),
        }
    }

    /// Returns the entries from `start` on, in their order.
    pub(super) fn starting_at<Q: Ord + ?Sized>(&self, start: Bound<&Q>) -> impl Iterator<Item = (&K, &V)>
    where
        K: Borrow<Q>,
    {
        let (short, long) = match self {
            Self::Short(entries) => {
                let first = match start {
                    Bound::Unbounded => 0,
                    Bound::Included(key) => search(entries, key).unwrap_or_else(|at| at),
                    Bound::Excluded(key) => search(entries, key).map_or_else(|at| at, |at| at + 1),
                };
                (Some(&entries[first..]), None)
            }
            Self::Long(entries) => (None, Some(entries.range((start, Bound::Unbounded)))),
        };
        let short = short.into_iter().flatten().map(|(key, value)| (key, value));
        short.chain(long.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_however_long_it_is(
            steps in prop::collection::vec((any::<bool>(), 0..24_u8), 1..100),
            from in 0..24_u8,
        ) {
            let (mut few, mut model) = (SmallMap::<u8, u32>::default(), BTreeMap::<u8, u32>::new());
            for (is_new, key) in steps {
                if is_new {
                    *few.entry(key) += 1;
                    *model.entry(key).or_default() += 1;
                } else {
                    prop_assert_eq!(few.remove(&key), model.remove(&key));
                }
                prop_assert_eq!(few.get(&key), model.get(&key));
                prop_assert_eq!(few.get_mut(&key), model.get_mut(&key));
                prop_assert_eq!((few.len(), few.is_empty()), (model.len(), model.is_empty()));
                prop_assert_eq!(few.first_key(), model.keys().next());
                if let SmallMap::Short(entries) = &few {
                    prop_assert!(entries.len() <= SHORT);
                    prop_assert!(entries.capacity() < 2 * entries.len().max(1), "{}", entries.capacity());
                } else {
                    prop_assert!(few.len() > SHORT);
                }
                for start in [Bound::Unbounded, Bound::Included(&from), Bound::Excluded(&from)] {
                    let expected = model.range((start, Bound::Unbounded));
                    prop_assert!(few.starting_at(start).eq(expected));
                }
            }
        }
    }

    #[test]
    fn more_entries_never_take_less() {
        for len in 0..1_000 {
            // If more entries took less memory, these subtractions would overflow.
            let _ = (SmallMap::<Text, u8>::growth(len), leaf::<u8, u8>(len), element::<u64>(len));
        }
    }
}
