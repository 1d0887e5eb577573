//! The registrations of all publishers or of all subscribers, with their indexes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use xmsg_core::registration::OwnerType;

use super::index::Index;
use super::small_map::{self, SmallMap, Text, TightVec};
use super::{ExpiryKey, Filter, Key, Owner, Source, Topic, Variant, parts};

/// A table of publishers or of subscribers.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) topics: BTreeMap<Key, Topic>,
    pub(super) records: usize,
    pub(super) memory: usize,
    pub(super) frame_bytes: usize,
    /// The number of topics in each domain.
    pub(super) domains: BTreeMap<Text, usize>,
    pub(super) by_subject: Index<()>,
    pub(super) by_types: Index<()>,
    /// The topics for which each host has registrations, and how many.
    pub(super) by_host: Index<usize>,
}

impl Table {
    pub(super) fn variant_mut(&mut self, key: &str, owner: &Owner, frame: &[u8]) -> Option<&mut Variant> {
        self.topics.get_mut(key)?.owners.get_mut(owner)?.iter_mut().find(|variant| variant.frame == frame)
    }

    pub(super) fn variants(&self, key: &str, owner: &Owner) -> &[Variant] {
        let variants = self.topics.get(key).and_then(|topic| topic.owners.get(owner));
        variants.map_or(&[], Vec::as_slice)
    }

    /// Returns the bytes that a missing registration would take: only what would have to be created, without
    /// what it shares with others.
    pub(super) fn growth(&self, key: &str, owner: &Owner, frame: &[u8]) -> usize {
        let topic = self.topics.get(key);
        let variants = topic.and_then(|topic| topic.owners.get(owner)).map_or(0, Vec::len);
        let mut bytes = small_map::frame(frame.len()) + small_map::element::<Variant>(variants);
        if variants == 0 {
            let owners = topic.map_or(0, |topic| topic.owners.len());
            bytes += small_map::text(&owner.name) + SmallMap::<Owner, Vec<Variant>>::growth(owners);
        }
        if topic.is_none() {
            let (domain, subject, types) = parts(key);
            bytes += small_map::text(key) + small_map::leaf::<Key, Topic>(self.topics.len());
            if !self.domains.contains_key(domain) {
                bytes += small_map::text(domain) + small_map::leaf::<Text, usize>(self.domains.len());
            }
            bytes += self.by_subject.growth(subject, key) + self.by_types.growth(types, key);
        }
        bytes + self.by_host.growth(&owner.host, key)
    }

    /// Returns the most bytes that a registration can take if nothing that it needs exists. This includes its
    /// share of each tree, however many others are added.
    pub(super) fn growth_upper_bound(key: &str, owner: &Owner, frame: &[u8]) -> usize {
        let (domain, subject, types) = parts(key);
        let texts = [key, domain, subject, types, &owner.host, &owner.name];
        small_map::frame(frame.len())
            + 2 * small_map::element::<Variant>(0)
            + texts.into_iter().map(small_map::text).sum::<usize>()
            + small_map::share::<Key, Topic>()
            + small_map::share::<Text, usize>()
            + small_map::share::<Owner, Vec<Variant>>()
            + small_map::share::<ExpiryKey, (OwnerType, Key, Owner)>()
            + 3 * (small_map::share::<Text, SmallMap<Key, usize>>() + small_map::share::<Key, usize>())
    }

    /// Adds a missing registration. Returns its topic and owner as they are stored.
    pub(super) fn insert(&mut self, key: Key, owner: Owner, variant: Variant) -> (Key, Owner) {
        self.memory += self.growth(&key, &owner, &variant.frame);
        self.frame_bytes += variant.frame.len();
        self.records += 1;
        let key = if let Some((known, _)) = self.topics.get_key_value(&key) {
            known.clone()
        } else {
            let (domain, subject, types) = parts(&key);
            *self.domains.entry(domain.into()).or_default() += 1;
            self.by_subject.entry(subject, &key);
            self.by_types.entry(types, &key);
            key
        };
        let (host, count) = self.by_host.entry(&owner.host, &key);
        *count += 1;
        let owners = &mut self.topics.entry(key.clone()).or_default().owners;
        let owner = owners.get_key_value(&owner).map_or(Owner { host, ..owner }, |(known, _)| known.clone());
        let variants = owners.entry(owner.clone());
        variants.insert_tight(variants.len(), variant);
        (key, owner)
    }

    pub(super) fn remove(&mut self, key: &Key, owner: &Owner) -> Vec<Variant> {
        std::iter::from_fn(|| self.take(key, owner, |_| true)).collect()
    }

    pub(super) fn remove_due(&mut self, key: &Key, owner: &Owner, due: ExpiryKey) {
        self.take(key, owner, |variant| variant.due == Some(due));
    }

    /// Removes `max` registrations of a host, or all if there are fewer.
    pub(super) fn remove_some_of_host(&mut self, host: &str, max: usize) -> Vec<Variant> {
        let mut removed = Vec::new();
        while removed.len() < max
            && let Some(key) = self.by_host.of(host).and_then(SmallMap::first_key)
        {
            let key = key.clone();
            let Some(topic) = self.topics.get(&key) else { break };
            let first = Owner { host: host.into(), name: "".into() };
            let theirs = topic.owners.starting_at(Bound::Included(&first)).map(|(owner, _)| owner);
            let theirs = theirs.take_while(|owner| &*owner.host == host);
            let gone: Vec<Owner> = theirs.take(max - removed.len()).cloned().collect();
            if gone.is_empty() {
                break;
            }
            for owner in gone {
                // One owner may have many registrations.
                let left = max - removed.len();
                removed.extend(std::iter::from_fn(|| self.take(&key, &owner, |_| true)).take(left));
                if removed.len() == max {
                    break;
                }
            }
        }
        removed
    }

    /// Removes the last registration of this topic and owner that `which` accepts, and all index entries that
    /// only this registration needs.
    pub(super) fn take(
        &mut self,
        key: &Key,
        owner: &Owner,
        which: impl Fn(&Variant) -> bool,
    ) -> Option<Variant> {
        let owners = &mut self.topics.get_mut(key)?.owners;
        let variants = owners.get_mut(owner)?;
        let variant = variants.remove_tight(variants.iter().rposition(which)?);
        if variants.is_empty() {
            owners.remove(owner);
        }
        if owners.is_empty() {
            self.topics.remove(key);
            let (domain, subject, types) = parts(key);
            if let Some(count) = self.domains.get_mut(domain) {
                *count -= 1;
                if *count == 0 {
                    self.domains.remove(domain);
                }
            }
            self.by_subject.remove(subject, key);
            self.by_types.remove(types, key);
        }
        let (_, count) = self.by_host.entry(&owner.host, key);
        *count -= 1;
        if *count == 0 {
            self.by_host.remove(&owner.host, key);
        }
        self.records -= 1;
        self.frame_bytes -= variant.frame.len();
        self.memory -= self.growth(key, owner, &variant.frame);
        Some(variant)
    }

    /// Returns the topics of a source that come after `after`.
    pub(super) fn topics_of<'a>(
        &'a self,
        source: &'a Source,
        after: Option<&'a Key>,
    ) -> Box<dyn Iterator<Item = (&'a Key, &'a Topic)> + 'a> {
        let start = after.map_or(Bound::Unbounded, |key| Bound::Excluded(&**key));
        let known = |key: &'a Key| self.topics.get(key).map(|topic| (key, topic));
        match source {
            Source::PrefixSearch(_) => Box::new(std::iter::empty()),
            Source::Topic(_) if after.is_some() => Box::new(std::iter::empty()),
            Source::Topic(key) => Box::new(self.topics.get_key_value(key).into_iter()),
            Source::StartingWith(start) => {
                let from = after.map_or(Bound::Included(&**start), |key| Bound::Excluded(&**key));
                let range = self.topics.range::<str, _>((from, Bound::Unbounded));
                Box::new(range.take_while(move |(key, _)| key.starts_with(&**start)))
            }
            Source::Subject(subject) => Box::new(self.by_subject.topics(subject, start).filter_map(known)),
            Source::Types(types) => Box::new(self.by_types.topics(types, start).filter_map(known)),
            Source::Host(host) => Box::new(self.by_host.topics(host, start).filter_map(known)),
        }
    }

    /// Returns the sources of all topics that may match a filter.
    pub(super) fn sources(&self, filter: &Filter) -> VecDeque<Source> {
        if let (Some(domain), Some(subject), Some(types)) = (&filter.domain, &filter.subject, &filter.types) {
            return [Source::Topic(format!("{domain}:{subject}:{types}").into())].into();
        }
        // Each known part narrows the topics down in its own way. The way with the fewest topics is used.
        let domain =
            filter.domain.as_ref().map(|domain| self.domains.get(&**domain).copied().unwrap_or_default());
        let subject = filter.subject.clone().map(|subject| (self.by_subject.len(&subject), subject));
        let types = filter.types.clone().map(|types| (self.by_types.len(&types), types));
        let host = filter.host.clone().map(|host| (self.by_host.len(&host), host));
        let within = |domain: &str| {
            let known = match &filter.subject {
                Some(subject) => format!("{domain}:{subject}"),
                None => domain.to_owned(),
            };
            // The topic that has only these parts, and the topics in which other parts follow.
            VecDeque::from([Source::Topic(known.as_str().into()), Source::StartingWith(known + ":")])
        };
        let ways = [
            domain.map(|len| (len, within(filter.domain.as_deref().unwrap_or_default()))),
            subject.map(|(len, subject)| (len, [Source::Subject(subject)].into())),
            types.map(|(len, types)| (len, [Source::Types(types)].into())),
            host.map(|(len, host)| (len, [Source::Host(host)].into())),
        ];
        let fewest = ways.into_iter().flatten().min_by_key(|(len, _)| *len);
        fewest.map_or_else(|| [Source::StartingWith(String::new())].into(), |(_, sources)| sources)
    }
}
