//! The topics that a longer one starts with: those of the subscribers that want what is published to it.

use std::ops::Bound;

use super::{Key, Table};

/// Bytes of a topic whose comparison counts for as much as a look at a registration.
const COMPARED: usize = 64;

/// The topics that one starts with, the longest first.
#[derive(Debug)]
pub(super) struct Above {
    asked: Key,
    /// Those that are still to be found are no longer than this, or shorter.
    end: usize,
    included: bool,
}

/// What became of a look-up.
#[derive(Debug)]
pub(super) enum Looked {
    Found(Key),
    InVain,
    Done,
}

impl Above {
    pub(super) fn new(asked: Key) -> Self {
        Self { end: asked.len(), included: true, asked }
    }

    /// What a look-up counts for.
    pub(super) fn cost(&self) -> usize {
        1 + self.asked.len() / COMPARED
    }
}

impl Table {
    /// Looks for the next topic of the same domain that the one asked for starts with.
    pub(super) fn next_above(&self, above: &mut Above) -> Looked {
        let asked = &*above.asked;
        let domain_len = asked.find(':').unwrap_or(asked.len());
        let end = &asked[..above.end];
        let end = if above.included { Bound::Included(end) } else { Bound::Excluded(end) };
        // The greatest key that may be a prefix either is one, or shares so much with it that a prefix is no longer than
        // that. So every lookup finds one or makes what is asked for shorter.
        let Some((key, _)) = self.topics.range::<str, _>((Bound::Unbounded, end)).next_back() else {
            return Looked::Done;
        };
        let common = key.bytes().zip(asked.bytes()).take_while(|(a, b)| a == b).count();
        if common < domain_len {
            return Looked::Done;
        }
        if common == key.len() {
            (above.end, above.included) = (common, false);
            return Looked::Found(key.clone());
        }
        // The key is a sibling that sorts before: a prefix ends at or before the difference.
        let boundary = (0..=common).rev().find(|at| asked.is_char_boundary(*at)).unwrap_or_default();
        (above.end, above.included) = (boundary, true);
        Looked::InVain
    }
}
