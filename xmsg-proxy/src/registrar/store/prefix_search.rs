//! The search for all topics that are a prefix of a longer topic. Subscribers to these topics receive what is
//! published to the longer one.

use std::ops::Bound;

use super::{Key, Table};

/// Bytes of a topic whose comparison costs as much as a look at one registration.
const COMPARED: usize = 64;

/// The search for the topics that are a prefix of one topic, the longest first.
#[derive(Debug)]
pub(super) struct PrefixSearch {
    asked: Key,
    /// The topics that are still to be found are no longer than this. If `included` is false, they are
    /// shorter.
    end: usize,
    included: bool,
}

/// The result of one lookup.
#[derive(Debug)]
pub(super) enum Lookup {
    Found(Key),
    InVain,
    Done,
}

impl PrefixSearch {
    pub(super) fn new(asked: Key) -> Self {
        Self { end: asked.len(), included: true, asked }
    }

    /// Returns what a lookup costs, in units of a look at one registration.
    pub(super) fn cost(&self) -> usize {
        1 + self.asked.len() / COMPARED
    }
}

impl Table {
    /// Looks for the next topic of the same domain that is a prefix of the topic asked for.
    pub(super) fn next_above(&self, above: &mut PrefixSearch) -> Lookup {
        let asked = &*above.asked;
        let domain_len = asked.find(':').unwrap_or(asked.len());
        let end = &asked[..above.end];
        let end = if above.included { Bound::Included(end) } else { Bound::Excluded(end) };
        // The greatest key up to `end` is either a prefix, or no prefix is longer than what this key has in
        // common with the topic. So every lookup finds a prefix or makes `end` shorter.
        let Some((key, _)) = self.topics.range::<str, _>((Bound::Unbounded, end)).next_back() else {
            return Lookup::Done;
        };
        let common = key.bytes().zip(asked.bytes()).take_while(|(a, b)| a == b).count();
        if common < domain_len {
            return Lookup::Done;
        }
        if common == key.len() {
            (above.end, above.included) = (common, false);
            return Lookup::Found(key.clone());
        }
        // The key is not a prefix but sorts before the topic. A prefix ends at or before the first
        // difference.
        let boundary = (0..=common).rev().find(|at| asked.is_char_boundary(*at)).unwrap_or_default();
        (above.end, above.included) = (boundary, true);
        Lookup::InVain
    }
}
