//! Answers to control requests whose receivers are not connected yet. Most peers send requests while their
//! control socket is still in its handshake.

use std::collections::{BTreeMap, BTreeSet};

/// The largest number of waiting answers. Beyond it, a new answer replaces the oldest answer of the source
/// with the most.
const MAX: usize = 4096;
/// The largest number of waiting answers of one source, so that no source can take all places.
const SHARE: usize = MAX / 4;

/// Answers `A` that wait, each for a source `S`, in order of arrival.
#[derive(Debug)]
pub(super) struct PendingAnswers<S, A> {
    waiting: BTreeMap<u64, (S, A)>,
    by_source: BTreeMap<S, BTreeSet<u64>>,
    next: u64,
}

impl<S, A> Default for PendingAnswers<S, A> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), by_source: BTreeMap::new(), next: 0 }
    }
}

impl<S: Ord + Clone, A> PendingAnswers<S, A> {
    /// Returns how many answers wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the answer that has waited longest.
    pub(super) fn oldest(&self) -> Option<&A> {
        self.waiting.first_key_value().map(|(_, (_, answer))| answer)
    }

    /// Adds an answer. Returns how many answers were dropped for it.
    pub(super) fn push(&mut self, source: &S, answer: A) -> usize {
        let own = self.by_source.get(source).map_or(0, BTreeSet::len);
        let crowded = if own >= SHARE {
            Some(source.clone())
        } else if self.waiting.len() >= MAX {
            let largest = self.by_source.iter().max_by_key(|(_, numbers)| numbers.len());
            largest.map(|(source, _)| source.clone())
        } else {
            None
        };
        let gone = crowded.and_then(|source| self.by_source.get(&source)?.first().copied());
        if let Some(number) = gone {
            self.remove(number);
        }
        self.waiting.insert(self.next, (source.clone(), answer));
        self.by_source.entry(source.clone()).or_default().insert(self.next);
        self.next += 1;
        usize::from(gone.is_some())
    }

    /// Keeps the answers for which `keep` returns true.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&A) -> bool) {
        let done: Vec<u64> =
            self.waiting.iter().filter(|(_, (_, answer))| !keep(answer)).map(|(number, _)| *number).collect();
        for number in done {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: u64) {
        let Some((source, _)) = self.waiting.remove(&number) else { return };
        if let Some(numbers) = self.by_source.get_mut(&source) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_has_its_share_and_loses_its_own_oldest() {
        let mut early = PendingAnswers::default();
        assert_eq!(early.push(&"innocent", 0), 0);
        let dropped: usize = (1..=SHARE + 10).map(|number| early.push(&"flood", number)).sum();
        assert_eq!(dropped, 10);
        assert_eq!(early.oldest(), Some(&0), "the innocent's still waits");
        early.retain(|answer| *answer != 0);
        assert_eq!(early.oldest(), Some(&11), "of the flood, the oldest went");
        early.retain(|_| false);
        assert!(early.waiting.is_empty() && early.by_source.is_empty());
    }

    #[test]
    fn when_all_places_are_taken_whoever_has_most_makes_room() {
        let mut early = PendingAnswers::default();
        for source in 0..4 {
            let own = SHARE - usize::from(source == 3);
            assert_eq!((0..own).map(|number| early.push(&source, (source, number))).sum::<usize>(), 0);
        }
        assert_eq!(early.push(&4, (4, 0)), 0, "the last place");
        assert_eq!(early.push(&5, (5, 0)), 1);
        assert_eq!(early.waiting.len(), MAX);
        let mut last = Vec::new();
        early.retain(|answer| {
            last.push(*answer);
            true
        });
        assert_eq!(last[last.len() - 2..], [(4, 0), (5, 0)]);
    }
}
