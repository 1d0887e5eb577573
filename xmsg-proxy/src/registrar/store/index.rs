//! An index of the topics that have something in common.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::Key;
use super::small_map::{SmallMap, Text, leaf, text};

/// The topics by one of their parts, or by the host of a registration.
#[derive(Debug, Default)]
pub(super) struct Index<V>(pub(super) BTreeMap<Text, SmallMap<Key, V>>);

impl<V: Default> Index<V> {
    /// Returns the bytes that a topic takes in the index, or 0 if it is there already.
    pub(super) fn growth(&self, part: &str, key: &str) -> usize {
        match self.of(part) {
            None => text(part) + leaf::<Text, SmallMap<Key, V>>(self.0.len()) + SmallMap::<Key, V>::growth(0),
            Some(topics) if topics.get(key).is_none() => SmallMap::<Key, V>::growth(topics.len()),
            Some(_) => 0,
        }
    }

    /// Returns the stored part, and the value for a topic, which is added if it is missing.
    pub(super) fn entry(&mut self, part: &str, key: &Key) -> (Text, &mut V) {
        let known = self.0.get_key_value(part).map(|(part, _)| part.clone());
        let part = known.unwrap_or_else(|| part.into());
        let topics = self.0.entry(part.clone()).or_default();
        (part, topics.entry(key.clone()))
    }

    pub(super) fn remove(&mut self, part: &str, key: &str) {
        if let Some(topics) = self.0.get_mut(part) {
            topics.remove(key);
            if topics.is_empty() {
                self.0.remove(part);
            }
        }
    }

    pub(super) fn of(&self, part: &str) -> Option<&SmallMap<Key, V>> {
        self.0.get(part)
    }

    pub(super) fn len(&self, part: &str) -> usize {
        self.of(part).map_or(0, SmallMap::len)
    }

    /// Returns the topics of a part from `start` on.
    pub(super) fn topics<'a>(
        &'a self,
        part: &str,
        start: Bound<&'a str>,
    ) -> impl Iterator<Item = &'a Key> + use<'a, V> {
        let topics = self.of(part).into_iter();
        topics.flat_map(move |topics| topics.starting_at(start).map(|(key, _)| key))
    }
}
