//! The scope of a publisher: it is notified of the subscriptions that concern the topics that it may publish,
//! and of no others.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::security::Rights;

/// Prefixes of the topics that a publisher may publish: sorted, and none of them starts with another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope(Arc<[Bytes]>);

impl Scope {
    /// Returns the scope of these rights, or `None` if they allow everything.
    pub(super) fn of(rights: Option<&Rights>) -> Option<Self> {
        if rights.is_some_and(Rights::publishes_all) {
            return None;
        }
        let mut prefixes = rights.map(|rights| rights.publish.clone()).unwrap_or_default();
        prefixes.sort_unstable();
        // A prefix that starts with another one comes after it.
        prefixes.dedup_by(|next, before| next.starts_with(before));
        Some(Self(prefixes.into()))
    }

    /// Returns the prefixes.
    pub(super) fn prefixes(&self) -> &[Bytes] {
        &self.0
    }

    /// Returns whether all topics that start with this prefix may be published, beside others. A subscription
    /// to it is sent unchanged.
    pub(super) fn contains(&self, prefix: &[u8]) -> bool {
        // If it starts with another prefix, none lies between them.
        let end = self.0.partition_point(|own| **own < *prefix);
        end.checked_sub(1).is_some_and(|last| prefix.starts_with(&self.0[last]))
    }

    /// Returns the positions of the prefixes that start with this one. They are sent instead of it.
    pub(super) fn within(&self, prefix: &[u8]) -> Range<usize> {
        let start = self.0.partition_point(|own| **own < *prefix);
        let len = self.0[start..].iter().take_while(|own| own.starts_with(prefix)).count();
        start..start + len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(publish: &[&'static str]) -> Option<Scope> {
        let publish = publish.iter().map(|prefix| Bytes::from_static(prefix.as_bytes())).collect();
        Scope::of(Some(&Rights { publish, ..Rights::default() }))
    }

    #[test]
    fn it_is_told_what_concerns_what_it_may_publish() {
        assert_eq!(scope(&["a", ""]), None);
        assert_eq!(Scope::of(None), scope(&[]), "whoever is not let in any more");
        let scope = scope(&["daq:x", "b", "daq:", "daq:y", "da"]).unwrap();
        assert_eq!(scope.prefixes(), ["b", "da"]);
        for (prefix, contained, within) in [
            ("", false, 0..2),
            ("a", false, 0..0),
            ("b", false, 0..1),
            ("ba", true, 1..1),
            ("c", false, 1..1),
            ("d", false, 1..2),
            ("da", false, 1..2),
            ("daq:z", true, 2..2),
            ("db", false, 2..2),
        ] {
            let found = (scope.contains(prefix.as_bytes()), scope.within(prefix.as_bytes()));
            assert_eq!(found, (contained, within), "{prefix}");
        }
    }
}
