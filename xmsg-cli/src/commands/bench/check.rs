//! Checks the messages of each publisher: which arrived, which arrived late, and which arrived twice.

use std::collections::BTreeMap;

/// The largest number of gaps that are remembered for each publisher. Of more gaps, the oldest are forgotten:
/// a message that fills one later counts as a duplicate, and messages missing there count as lost.
const GAPS_MAX: usize = 4096;

/// The counts of one subscriber, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// The number of different messages.
    pub(super) delivered: u64,
    /// The number of these messages that arrived after a message that was published later.
    pub(super) reordered: u64,
    /// The number of messages that had arrived before.
    pub(super) duplicates: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.reordered += other.reordered;
        self.duplicates += other.duplicates;
    }
}

/// Checks the sequence numbers of several publishers, which each start at 0.
#[derive(Debug)]
pub(super) struct Check {
    tracks: Vec<Track>,
    counts: Counts,
}

#[derive(Clone, Debug, Default)]
struct Track {
    next: u64,
    /// The gaps: the first missing number of each, and the number after its last.
    gaps: BTreeMap<u64, u64>,
}

impl Check {
    pub(super) fn new(publishers: usize) -> Self {
        Self { tracks: vec![Track::default(); publishers], counts: Counts::default() }
    }

    /// Checks a message that has arrived.
    pub(super) fn take(&mut self, publisher: usize, sequence: u64) {
        let Some(track) = self.tracks.get_mut(publisher) else { return };
        if sequence < track.next {
            if !track.fill(sequence) {
                self.counts.duplicates += 1;
                return;
            }
            self.counts.reordered += 1;
        } else {
            if sequence > track.next {
                track.gaps.insert(track.next, sequence);
                if track.gaps.len() > GAPS_MAX {
                    track.gaps.pop_first();
                }
            }
            track.next = sequence + 1;
        }
        self.counts.delivered += 1;
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }
}

impl Track {
    /// Removes a number from its gap. Returns whether it was missing.
    fn fill(&mut self, sequence: u64) -> bool {
        let Some((&start, &end)) = self.gaps.range(..=sequence).next_back() else { return false };
        if end <= sequence {
            return false;
        }
        self.gaps.remove(&start);
        if start < sequence {
            self.gaps.insert(start, sequence);
        }
        if sequence + 1 < end {
            self.gaps.insert(sequence + 1, end);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(numbers: &[u64]) -> (u64, u64, u64) {
        let mut check = Check::new(2);
        for number in numbers {
            check.take(1, *number);
        }
        let Counts { delivered, reordered, duplicates } = check.counts();
        (delivered, reordered, duplicates)
    }

    #[test]
    fn every_message_is_counted_once() {
        assert_eq!(counts(&[0, 1, 2]), (3, 0, 0));
        assert_eq!(counts(&[0, 2]), (2, 0, 0));
        assert_eq!(counts(&[0, 2, 1]), (3, 1, 0));
        assert_eq!(counts(&[0, 2, 1, 1, 2, 0]), (3, 1, 3));
        assert_eq!(counts(&[5, 3, 1, 4, 2, 0, 6, 3]), (7, 5, 1));
    }

    #[test]
    fn publishers_have_numbers_of_their_own() {
        let mut check = Check::new(2);
        for (publisher, number) in [(0, 0), (1, 0), (1, 1), (0, 1), (2, 0)] {
            check.take(publisher, number);
        }
        assert_eq!(check.counts(), Counts { delivered: 4, reordered: 0, duplicates: 0 });
    }

    #[test]
    fn memory_has_a_bound() {
        let mut check = Check::new(1);
        for number in 0..100_000 {
            check.take(0, 2 * number + 1);
        }
        assert_eq!(check.tracks[0].gaps.len(), GAPS_MAX);
        check.take(0, 0);
        assert_eq!(check.counts().duplicates, 1, "that gap was given up");
        check.take(0, 199_998);
        assert_eq!(check.counts().reordered, 1);
    }

    proptest! {
        #[test]
        fn the_counts_are_those_of_a_set(numbers in prop::collection::vec(0_u64..40, 0..200)) {
            let mut seen = std::collections::BTreeSet::new();
            let (mut late, mut again) = (0, 0);
            for number in &numbers {
                let highest = seen.last().copied();
                if !seen.insert(*number) {
                    again += 1;
                } else if highest.is_some_and(|highest| highest > *number) {
                    late += 1;
                }
            }
            prop_assert_eq!(counts(&numbers), (seen.len() as u64, late, again));
        }
    }
}
