//! The prefixes of one subscriber by their ids, in the order of their text. Only the table holds the text.

use crate::prefixes::{PrefixId, PrefixTable};

/// The largest number of ids in a chunk.
const CHUNK: usize = 512;

/// A sorted set of ids. A look-up compares about twenty texts among a million; inserting and removing move
/// one chunk.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// No chunk is empty.
    chunks: Vec<Vec<PrefixId>>,
}

/// The position of an id, or the one where it would be inserted.
#[derive(Clone, Copy, Debug)]
struct Place {
    chunk: usize,
    at: usize,
}

impl Sorted {
    /// Adds an id that the set does not contain.
    pub(super) fn insert(&mut self, table: &PrefixTable<u32>, id: PrefixId) {
        let prefix = table.prefix(id);
        let Place { chunk, at } = self.first_that(|other| table.prefix(other) > prefix);
        let Some(ids) = self.chunks.get_mut(chunk) else {
            // It comes after all others: prefixes that come in order fill one chunk after another.
            match self.chunks.last_mut() {
                Some(last) if last.len() < CHUNK => last.push(id),
                _ => self.chunks.push(vec![id]),
            }
            return;
        };
        if ids.len() < CHUNK {
            ids.insert(at, id);
            return;
        }
        let mut rest = ids.split_off(CHUNK / 2);
        if at > ids.len() {
            rest.insert(at - ids.len(), id);
        } else {
            ids.insert(at, id);
        }
        self.chunks.insert(chunk + 1, rest);
    }

    /// Removes this prefix. Returns whether the set contained it.
    pub(super) fn remove(&mut self, table: &PrefixTable<u32>, prefix: &[u8]) -> bool {
        let Place { chunk, at } = self.first_that(|id| table.prefix(id) >= prefix);
        let Some(ids) = self.chunks.get_mut(chunk) else { return false };
        if table.prefix(ids[at]) != prefix {
            return false;
        }
        ids.remove(at);
        if ids.is_empty() {
            self.chunks.remove(chunk);
        }
        true
    }

    /// Returns the last id before this prefix.
    pub(super) fn before(&self, table: &PrefixTable<u32>, prefix: &[u8]) -> Option<PrefixId> {
        let Place { chunk, at } = self.first_that(|id| table.prefix(id) >= prefix);
        match at.checked_sub(1) {
            Some(at) => Some(self.chunks[chunk][at]),
            None => self.chunks[..chunk].last()?.last().copied(),
        }
    }

    /// Returns the first id at or after this prefix.
    pub(super) fn from(&self, table: &PrefixTable<u32>, prefix: &[u8]) -> Option<PrefixId> {
        self.get(self.first_that(|id| table.prefix(id) >= prefix))
    }

    /// Returns the first id after this prefix.
    pub(super) fn after(&self, table: &PrefixTable<u32>, prefix: &[u8]) -> Option<PrefixId> {
        self.get(self.first_that(|id| table.prefix(id) > prefix))
    }

    /// Returns the first id after all that start with this prefix.
    pub(super) fn after_all_of(&self, table: &PrefixTable<u32>, prefix: &[u8]) -> Option<PrefixId> {
        let is_behind = |id| table.prefix(id) > prefix && !table.prefix(id).starts_with(prefix);
        self.get(self.first_that(is_behind))
    }

    /// Removes and returns the last id.
    pub(super) fn pop(&mut self) -> Option<PrefixId> {
        let last = self.chunks.last_mut()?;
        let id = last.pop();
        if last.is_empty() {
            self.chunks.pop();
        }
        id
    }

    fn get(&self, Place { chunk, at }: Place) -> Option<PrefixId> {
        self.chunks.get(chunk)?.get(at).copied()
    }

    /// Returns the first position whose id satisfies this condition, as do all after it, or the position
    /// after the last chunk.
    fn first_that(&self, holds: impl Fn(PrefixId) -> bool) -> Place {
        let chunk = self.chunks.partition_point(|ids| ids.last().is_some_and(|last| !holds(*last)));
        let at = self.chunks.get(chunk).map_or(0, |ids| ids.partition_point(|id| !holds(*id)));
        Place { chunk, at }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn listed(sorted: &Sorted, table: &PrefixTable<u32>) -> Vec<Vec<u8>> {
        assert!(sorted.chunks.iter().all(|ids| (1..=CHUNK).contains(&ids.len())));
        sorted.chunks.iter().flatten().map(|id| table.prefix(*id).to_vec()).collect()
    }

    #[test]
    fn many_stay_in_their_order() {
        let mut table = PrefixTable::new();
        for shuffled in [false, true] {
            // Multiplied by a number that has no factor in common with theirs, they come in another order,
            // each once.
            let factor = if shuffled { 1_237 } else { 1 };
            let texts: Vec<String> =
                (0..5_000).map(|number| format!("{:05}", number * factor % 5_000)).collect();
            let (mut sorted, mut model) = (Sorted::default(), BTreeSet::new());
            for text in &texts {
                let id = table.insert(text.as_bytes(), 1).prefix;
                sorted.insert(&table, id);
                model.insert(text.clone().into_bytes());
            }
            assert!(listed(&sorted, &table).iter().eq(&model));
            let most = if shuffled { 5_000 / (CHUNK / 2) + 1 } else { 5_000 / CHUNK + 1 };
            assert!(sorted.chunks.len() <= most, "{} chunks", sorted.chunks.len());
            for text in texts.iter().step_by(3) {
                assert!(sorted.remove(&table, text.as_bytes()));
                assert!(!sorted.remove(&table, text.as_bytes()));
                model.remove(text.as_bytes());
            }
            assert!(listed(&sorted, &table).iter().eq(&model));
            while let Some(id) = sorted.pop() {
                assert_eq!(model.pop_last().as_deref(), Some(table.prefix(id)));
            }
            assert!(model.is_empty() && sorted.chunks.is_empty());
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(texts in prop::collection::btree_set("[ab]{0,5}", 0..30), asked in "[ab]{0,5}") {
            let (mut table, mut sorted) = (PrefixTable::new(), Sorted::default());
            for text in &texts {
                let id = table.insert(text.as_bytes(), 1).prefix;
                sorted.insert(&table, id);
            }
            let text = |id: Option<PrefixId>| id.map(|id| String::from_utf8(table.prefix(id).to_vec()).unwrap());
            let bytes = asked.as_bytes();
            prop_assert_eq!(text(sorted.before(&table, bytes)), texts.range(..asked.clone()).next_back().cloned());
            prop_assert_eq!(text(sorted.from(&table, bytes)), texts.range(asked.clone()..).next().cloned());
            let mut behind = texts.range(asked.clone()..).filter(|other| **other != asked);
            prop_assert_eq!(text(sorted.after(&table, bytes)), behind.clone().next().cloned());
            let others = behind.find(|other| !other.starts_with(&asked));
            prop_assert_eq!(text(sorted.after_all_of(&table, bytes)), others.cloned());
        }
    }
}
