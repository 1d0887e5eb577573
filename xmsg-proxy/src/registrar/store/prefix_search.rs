//! The search for all topics that are a prefix of a longer topic. Subscribers to these topics receive what is
//! published to the longer one.

use std::ops::Bound;

use xmsg_core::text::floor_char_boundary;

use super::{Key, Table};

/// Bytes of a topic whose comparison costs as much as a look at one registration.
const COMPARED: usize = 64;

/// The search for the topics that are a prefix of one topic, the longest first.
#[derive(Debug)]
pub(super) struct PrefixSearch {
    topic: Key,
    /// The topics that are still to be found are no longer than this. If `included` is false, they are
    /// shorter.
    end: usize,
    included: bool,
}

/// The result of one lookup.
#[derive(Debug)]
pub(super) enum Lookup {
    Found(Key),
    NoMatch,
    Done,
}

impl PrefixSearch {
    pub(super) fn new(topic: Key) -> Self {
        Self { end: topic.len(), included: true, topic }
    }

    /// Returns what a lookup costs, in units of a look at one registration.
    pub(super) fn cost(&self) -> usize {
        1 + self.topic.len() / COMPARED
    }
}

impl Table {
    /// Looks for the next topic of the same domain that is a prefix of the topic asked for.
    pub(super) fn next_prefix(&self, search: &mut PrefixSearch) -> Lookup {
        let topic = &*search.topic;
        let domain_len = topic.find(':').unwrap_or(topic.len());
        let end = &topic[..search.end];
        let end = if search.included { Bound::Included(end) } else { Bound::Excluded(end) };
        // The greatest key up to `end` is either a prefix, or no prefix is longer than what this key has in
        // common with the topic. So every lookup finds a prefix or makes `end` shorter.
        let Some((key, _)) = self.topics.range::<str, _>((Bound::Unbounded, end)).next_back() else {
            return Lookup::Done;
        };
        let common = key.bytes().zip(topic.bytes()).take_while(|(a, b)| a == b).count();
        if common < domain_len {
            return Lookup::Done;
        }
        if common == key.len() {
            (search.end, search.included) = (common, false);
            return Lookup::Found(key.clone());
        }
        // The key is not a prefix but sorts before the topic. A prefix ends at or before the first
        // difference.
        (search.end, search.included) = (floor_char_boundary(topic, common), true);
        Lookup::NoMatch
    }
}
