//! A hash table from hashes to numbers. It grows and shrinks by one shard at a time, so that no operation has
//! to rearrange the whole table (linear hashing). Only the caller knows what the numbers mean, and whether a
//! number that was found is the right one.

use std::mem;

use super::hash::Hash;

/// The average count of numbers per shard. A shard that is not divided yet in this round has up to twice as
/// many.
const SHARE: usize = 512;
/// Bits of the hash that choose the group within a shard. The other bits choose the shard.
const GROUP_BITS: u32 = 12;
/// The largest count of numbers in a group.
const GROUP: usize = 8;

#[derive(Debug, Default)]
pub(super) struct HashIndex {
    shards: Vec<Shard>,
    len: usize,
}

/// A group of slots that fills one cache line. Its slots are for hashes that belong to this group and, if a
/// group in front of it is full, for hashes of that group.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Group {
    /// The hashes, followed by zeros, which are not valid hashes.
    hashes: [u32; GROUP],
    numbers: [u32; GROUP],
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: Hash,
    number: u32,
}

impl HashIndex {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a number with this hash for which `is` returns true.
    #[inline]
    pub(super) fn find(&self, hash: Hash, is: impl FnMut(u32) -> bool) -> Option<u32> {
        self.shards.get(shard_of(hash, self.shards.len()))?.find(hash, is)
    }

    /// Returns any number with this hash.
    pub(super) fn get_mut(&mut self, hash: Hash) -> Option<&mut u32> {
        let shards = self.shards.len();
        self.shards.get_mut(shard_of(hash, shards))?.get_mut(hash)
    }

    pub(super) fn insert(&mut self, hash: Hash, number: u32) {
        if self.len >= self.shards.len() * SHARE {
            self.divide();
        }
        self.len += 1;
        let shard = shard_of(hash, self.shards.len());
        self.shards[shard].insert(Slot { hash, number });
    }

    /// Removes a number. Does nothing if it is not in the table.
    pub(super) fn remove(&mut self, hash: Hash, number: u32) {
        let shard = shard_of(hash, self.shards.len());
        if !self.shards.get_mut(shard).is_some_and(|shard| shard.remove(hash, number)) {
            return;
        }
        self.len -= 1;
        // The threshold is far below the one for dividing, so that a shard is not divided again soon.
        if self.len < self.shards.len() * SHARE / 4 {
            self.unite();
        }
    }

    /// Adds a shard, and moves its part of the parent shard into it.
    fn divide(&mut self) {
        let new = self.shards.len();
        self.shards.push(Shard::default());
        if new > 0 {
            let old = mem::take(&mut self.shards[parent(new)]);
            let (leave, stay): (Vec<_>, Vec<_>) =
                old.slots().partition(|slot| shard_of(slot.hash, new + 1) == new);
            self.shards[parent(new)] = Shard::of(&stay);
            self.shards[new] = Shard::of(&leave);
        }
    }

    /// Moves the content of the last shard back into its parent, and removes the shard.
    fn unite(&mut self) {
        if self.shards.len() > 1
            && let Some(last) = self.shards.pop()
        {
            let parent = parent(self.shards.len());
            let all: Vec<_> = self.shards[parent].slots().chain(last.slots()).collect();
            self.shards[parent] = Shard::of(&all);
        }
    }
}

/// Returns the shard to which a hash belongs in a table with `shards` shards.
fn shard_of(hash: Hash, shards: usize) -> usize {
    let bits = (hash.get() >> GROUP_BITS) as usize;
    let round = shards.next_power_of_two();
    let shard = bits & (round - 1);
    // The shard may not exist yet in this round. Then the hash belongs to its parent.
    if shard < shards { shard } else { shard & (round / 2).wrapping_sub(1) }
}

/// Returns the shard that was divided to make this one.
fn parent(shard: usize) -> usize {
    shard & !(1 << shard.ilog2())
}

#[derive(Debug, Default)]
struct Shard {
    /// The number of groups is a power of two, or zero.
    groups: Box<[Group]>,
    len: usize,
}

impl Shard {
    fn of(slots: &[Slot]) -> Self {
        // A quarter of the slots stays free, so that few groups are full.
        let groups = (slots.len() * 4).div_ceil(GROUP * 3).max(1).next_power_of_two();
        let mut shard = Self { groups: vec![Group::default(); groups].into(), len: 0 };
        for slot in slots {
            shard.place(*slot);
        }
        shard
    }

    fn slots(&self) -> impl Iterator<Item = Slot> {
        self.groups.iter().flat_map(|group| (0..group.len()).filter_map(|at| group.slot(at)))
    }

    #[inline]
    fn find(&self, hash: Hash, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let mask = self.groups.len().checked_sub(1)?;
        let mut at = hash.get() as usize & mask;
        loop {
            let group = &self.groups[at];
            let mut same = group.same(hash);
            while same != 0 {
                let number = group.numbers[same.trailing_zeros() as usize % GROUP];
                if is(number) {
                    return Some(number);
                }
                same &= same - 1;
            }
            if !group.is_full() {
                return None;
            }
            at = (at + 1) & mask;
        }
    }

    fn get_mut(&mut self, hash: Hash) -> Option<&mut u32> {
        let (group, at) = self.locate(hash, |_| true)?;
        Some(&mut self.groups[group].numbers[at])
    }

    /// Returns the group, and the place within it.
    fn locate(&self, hash: Hash, is: impl Fn(u32) -> bool) -> Option<(usize, usize)> {
        let mask = self.groups.len().checked_sub(1)?;
        let mut number = hash.get() as usize & mask;
        loop {
            let group = &self.groups[number];
            let found = (0..group.len()).find(|at| group.hashes[*at] == hash.get() && is(group.numbers[*at]));
            if let Some(at) = found {
                return Some((number, at));
            }
            if !group.is_full() {
                return None;
            }
            number = (number + 1) & mask;
        }
    }

    fn insert(&mut self, slot: Slot) {
        if (self.len + 1) * 4 > self.groups.len() * GROUP * 3 {
            let slots: Vec<_> = self.slots().chain([slot]).collect();
            *self = Self::of(&slots);
        } else {
            self.place(slot);
        }
    }

    fn place(&mut self, slot: Slot) {
        let mask = self.groups.len() - 1;
        let mut at = slot.hash.get() as usize & mask;
        while self.groups[at].is_full() {
            at = (at + 1) & mask;
        }
        self.groups[at].push(slot);
        self.len += 1;
    }

    /// Removes a number. Returns whether it was there.
    fn remove(&mut self, hash: Hash, number: u32) -> bool {
        let Some((mut hole, at)) = self.locate(hash, |other| other == number) else { return false };
        let mask = self.groups.len() - 1;
        let mut was_full = self.groups[hole].is_full();
        self.groups[hole].take(at);
        // Slots that were placed further behind because this group was full move up.
        let mut next = hole;
        while was_full {
            next = (next + 1) & mask;
            let group = &self.groups[next];
            was_full = group.is_full();
            let came_by = (0..group.len()).find(|at| {
                let origin = group.hashes[*at] as usize & mask;
                next.wrapping_sub(origin) & mask >= next.wrapping_sub(hole) & mask
            });
            if let Some((at, slot)) = came_by.and_then(|at| Some((at, group.slot(at)?))) {
                self.groups[next].take(at);
                self.groups[hole].push(slot);
                hole = next;
            }
        }
        self.len -= 1;
        if self.groups.len() > 1 && self.len * 8 < self.groups.len() * GROUP {
            let slots: Vec<_> = self.slots().collect();
            *self = Self::of(&slots);
        }
        true
    }
}

impl Group {
    fn len(&self) -> usize {
        self.hashes.iter().take_while(|hash| **hash != 0).count()
    }

    fn is_full(&self) -> bool {
        self.hashes[GROUP - 1] != 0
    }

    fn slot(&self, at: usize) -> Option<Slot> {
        Some(Slot { hash: Hash::new(self.hashes[at])?, number: self.numbers[at] })
    }

    /// Returns a bit for each place with this hash. Compilers turn this into a few instructions without a
    /// jump.
    #[inline]
    fn same(&self, hash: Hash) -> u32 {
        let mut bits = [0; GROUP];
        for (at, bit) in bits.iter_mut().enumerate() {
            *bit = if self.hashes[at] == hash.get() { 1 << at } else { 0 };
        }
        bits.iter().sum()
    }

    fn push(&mut self, slot: Slot) {
        let len = self.len();
        self.hashes[len] = slot.hash.get();
        self.numbers[len] = slot.number;
    }

    /// Removes the slot at `at`, and moves the last slot to its place.
    fn take(&mut self, at: usize) {
        let last = self.len() - 1;
        self.hashes[at] = self.hashes[last];
        self.numbers[at] = self.numbers[last];
        self.hashes[last] = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn listed(index: &HashIndex) -> BTreeSet<(u32, u32)> {
        index.shards.iter().flat_map(Shard::slots).map(|slot| (slot.hash.get(), slot.number)).collect()
    }

    /// Tests random hashes, and hashes of which many are equal or adjacent.
    #[test]
    fn agrees_with_a_set_while_it_grows_and_shrinks() {
        let mut random = fastrand::Rng::with_seed(1);
        for bits in [32, 16, 10, 3] {
            let (mut index, mut model) = (HashIndex::default(), BTreeSet::new());
            for phase in [9, 9, 1, 5, 1, 0] {
                for _ in 0..6_000 / phase.max(1) {
                    let hash = Hash::of(random.u64(..) >> (64 - bits) << 32);
                    if random.u32(0..10) < phase {
                        let number = random.u32(..);
                        index.insert(hash, number);
                        model.insert((hash.get(), number));
                    } else if let Some(&(hash, number)) =
                        model.range((hash.get(), 0)..).next().or(model.first())
                    {
                        index.remove(Hash::new(hash).unwrap(), number);
                        model.remove(&(hash, number));
                    }
                }
                assert_eq!(listed(&index), model);
                assert_eq!(index.len, model.len());
                for (hash, number) in &model {
                    let hash = Hash::new(*hash).unwrap();
                    assert_eq!(index.find(hash, |other| other == *number), Some(*number));
                }
                let absent = Hash::of(random.u64(..));
                assert_eq!(index.find(absent, |_| false), None);
            }
            for (hash, number) in mem::take(&mut model) {
                index.remove(Hash::new(hash).unwrap(), number);
            }
            assert_eq!((index.len, index.shards.len(), index.shards[0].groups.len()), (0, 1, 1));
        }
    }
}
