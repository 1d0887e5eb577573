//! The registrations: a database without I/O, clock or tasks.
//!
//! A record is the frame that an actor sent, in canonical form, so that equal frames are equal registrations and a
//! result is sent without encoding anything. Records lie under their topic, and there under name and host.
//!
//! | question | what is looked at |
//! |---|---|
//! | find publishers | a range of the sorted topics |
//! | find subscribers | those topics that are a prefix, one lookup each |
//! | exact | one topic |
//! | filter | the smallest of: the range of the topic's known parts, the topics of the subject, types or host |
//! | remove all of a host | the topics of the host |

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::registration::{OwnerType, Registration, UNDEFINED};
use xmsg_core::topic::ANY;

/// Registrations that differ only in what removing ignores: port, description, unknown fields. An actor has one
/// or two; more than this is a mistake, or malice.
pub const VARIANTS_MAX: usize = 256;

/// Why a registration was not kept, or a question not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its topic is none; the text says why.
    Topic(String),
    /// There are as many registrations as there may be.
    Full(usize),
    /// There are [`VARIANTS_MAX`] of the same topic, name and host.
    Variants,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(why) => f.write_str(why),
            Self::Full(limit) => write!(f, "the registrar is full: it holds {limit} registrations"),
            Self::Variants => write!(
                f,
                "this name and host have {VARIANTS_MAX} registrations of this topic already: remove some first"
            ),
        }
    }
}

/// When a record expires, and which of those that expire then it is.
type Due = (Duration, u64);
/// The topic of a record, in all the places that name it.
type Key = Arc<str>;

/// All publishers and subscribers.
#[derive(Debug)]
pub struct Store {
    publishers: Table,
    subscribers: Table,
    limit: usize,
    ttl: Option<Duration>,
    next_serial: u64,
    /// With a time to live: every record, by the time when it expires.
    expiring: BTreeMap<Due, (OwnerType, Key, Owner)>,
}

impl Store {
    /// An empty store for so many registrations, which expire when they are not renewed within `ttl`.
    #[must_use]
    pub fn new(limit: usize, ttl: Option<Duration>) -> Self {
        Self {
            publishers: Table::default(),
            subscribers: Table::default(),
            limit,
            ttl,
            next_serial: 0,
            expiring: BTreeMap::new(),
        }
    }

    /// How many registrations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.publishers.records + self.subscribers.records
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many publishers or subscribers there are.
    #[must_use]
    pub fn count(&self, owner: OwnerType) -> usize {
        self.table(owner).records
    }

    /// Keeps a registration, or renews it. `now` counts from any fixed moment. Returns whether it is new.
    pub fn register(
        &mut self,
        owner: OwnerType,
        registration: &Registration,
        now: Duration,
    ) -> Result<bool, Refused> {
        let key = key(registration)?;
        let full = self.len() >= self.limit;
        let due = self.ttl.map(|ttl| {
            self.next_serial += 1;
            (now.saturating_add(ttl), self.next_serial)
        });
        let of = Owner { name: registration.name.as_str().into(), host: registration.host.as_str().into() };
        let frame = registration.encode();
        let table = self.table_mut(owner);
        if let Some(variant) = table.variant_mut(&key, &of, &frame) {
            let was = std::mem::replace(&mut variant.due, due);
            let renewed = was.and_then(|was| self.expiring.remove(&was));
            if let (Some(due), Some(renewed)) = (due, renewed) {
                self.expiring.insert(due, renewed);
            }
            return Ok(false);
        }
        if full {
            return Err(Refused::Full(self.limit));
        }
        let key = table.insert(&key, of.clone(), Variant { frame, port: registration.port, due })?;
        if let Some(due) = due {
            self.expiring.insert(due, (owner, key, of));
        }
        Ok(true)
    }

    /// Forgets what has the same topic, name and host. Returns how many that were.
    pub fn remove(&mut self, owner: OwnerType, registration: &Registration) -> Result<usize, Refused> {
        let key = key(registration)?;
        let of = Owner { name: registration.name.as_str().into(), host: registration.host.as_str().into() };
        let removed = self.table_mut(owner).remove(&key, &of);
        Ok(self.forget(&removed))
    }

    /// Forgets all that a host registered. Returns how many that were.
    pub fn remove_host(&mut self, host: &str) -> usize {
        let mut count = 0;
        for owner in OwnerType::ALL {
            let removed = self.table_mut(owner).remove_host(host);
            count += self.forget(&removed);
        }
        count
    }

    /// Forgets what was not renewed in time. Returns how many that were.
    pub fn expire(&mut self, now: Duration) -> usize {
        let mut count = 0;
        while let Some(first) = self.expiring.first_entry()
            && first.key().0 <= now
        {
            let (due, (owner, key, of)) = first.remove_entry();
            self.table_mut(owner).remove_due(&key, &of, due);
            count += 1;
        }
        count
    }

    /// When the next registration expires.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        self.expiring.first_key_value().map(|((due, _), _)| *due)
    }

    /// Publishers whose topic starts with the one asked for, or subscribers whose topic it starts with; in its domain.
    pub fn find(&self, owner: OwnerType, asked: &Registration) -> Result<Vec<Bytes>, Refused> {
        let key = key(asked)?;
        let table = self.table(owner);
        let mut frames = Vec::new();
        match owner {
            OwnerType::Publisher => {
                for (_, topic) in table.below(&key) {
                    topic.collect(&mut frames);
                }
            }
            OwnerType::Subscriber => table.above(&key, |topic| topic.collect(&mut frames)),
        }
        Ok(frames)
    }

    /// Those of the same topic.
    pub fn exact(&self, owner: OwnerType, asked: &Registration) -> Result<Vec<Bytes>, Refused> {
        let key = key(asked)?;
        let mut frames = Vec::new();
        if let Some(topic) = self.table(owner).topics.get(&*key) {
            topic.collect(&mut frames);
        }
        Ok(frames)
    }

    /// Those whose parts of the topic, host and port are equal to what was asked for; `*`, the host `undefined` and the
    /// port 0 are equal to any.
    #[must_use]
    pub fn filter(&self, owner: OwnerType, asked: &Registration) -> Vec<Bytes> {
        self.table(owner).filter(&Filter::new(asked))
    }

    /// All of them.
    #[must_use]
    pub fn all(&self, owner: OwnerType) -> Vec<Bytes> {
        let table = self.table(owner);
        let mut frames = Vec::with_capacity(table.records);
        table.topics.values().for_each(|topic| topic.collect(&mut frames));
        frames
    }

    fn table(&self, owner: OwnerType) -> &Table {
        match owner {
            OwnerType::Publisher => &self.publishers,
            OwnerType::Subscriber => &self.subscribers,
        }
    }

    fn table_mut(&mut self, owner: OwnerType) -> &mut Table {
        match owner {
            OwnerType::Publisher => &mut self.publishers,
            OwnerType::Subscriber => &mut self.subscribers,
        }
    }

    fn forget(&mut self, removed: &[Variant]) -> usize {
        for due in removed.iter().filter_map(|variant| variant.due) {
            self.expiring.remove(&due);
        }
        removed.len()
    }
}

/// The topic of a registration, checked.
fn key(registration: &Registration) -> Result<Key, Refused> {
    let topic = registration.topic().map_err(|error| Refused::Topic(error.to_string()))?;
    Ok(topic.to_str().map_err(|error| Refused::Topic(error.to_string()))?.into())
}

/// Domain, subject and types of a topic.
fn parts(topic: &str) -> (&str, &str, &str) {
    let mut parts = topic.splitn(3, ':');
    let mut next = || parts.next();
    (next().unwrap_or_default(), next().unwrap_or(ANY), next().unwrap_or(ANY))
}

/// Who registered: what removing goes by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    name: Box<str>,
    host: Box<str>,
}

/// One registration.
#[derive(Debug)]
struct Variant {
    frame: Bytes,
    port: i32,
    due: Option<Due>,
}

/// The registrations of one topic.
#[derive(Debug, Default)]
struct Topic {
    owners: BTreeMap<Owner, Vec<Variant>>,
}

impl Topic {
    fn collect(&self, frames: &mut Vec<Bytes>) {
        frames.extend(self.owners.values().flatten().map(|variant| variant.frame.clone()));
    }
}

/// Publishers or subscribers.
#[derive(Debug, Default)]
struct Table {
    topics: BTreeMap<Key, Topic>,
    records: usize,
    /// How many topics a domain has.
    domains: HashMap<Box<str>, usize>,
    by_subject: Index,
    by_types: Index,
    /// The topics for which a host has registered somebody, and how many registrations that are.
    by_host: HashMap<Box<str>, BTreeMap<Key, usize>>,
}

impl Table {
    fn variant_mut(&mut self, key: &str, of: &Owner, frame: &[u8]) -> Option<&mut Variant> {
        self.topics.get_mut(key)?.owners.get_mut(of)?.iter_mut().find(|variant| variant.frame == frame)
    }

    fn insert(&mut self, key: &Key, of: Owner, variant: Variant) -> Result<Key, Refused> {
        let known = self.topics.get_key_value(key).map(|(key, _)| key.clone());
        let key = known.unwrap_or_else(|| {
            let (domain, subject, types) = parts(key);
            *self.domains.entry(domain.into()).or_default() += 1;
            self.by_subject.insert(subject, key);
            self.by_types.insert(types, key);
            key.clone()
        });
        let host = of.host.clone();
        let variants = self.topics.entry(key.clone()).or_default().owners.entry(of).or_default();
        if variants.len() >= VARIANTS_MAX {
            return Err(Refused::Variants);
        }
        if variants.is_empty() {
            variants.reserve_exact(1);
        }
        variants.push(variant);
        *self.by_host.entry(host).or_default().entry(key.clone()).or_default() += 1;
        self.records += 1;
        Ok(key)
    }

    fn remove(&mut self, key: &Key, of: &Owner) -> Vec<Variant> {
        let removed = self.topics.get_mut(key).and_then(|topic| topic.owners.remove(of)).unwrap_or_default();
        self.removed(key, &of.host, removed.len());
        removed
    }

    fn remove_due(&mut self, key: &Key, of: &Owner, due: Due) {
        let Some(owners) = self.topics.get_mut(key).map(|topic| &mut topic.owners) else { return };
        let Some(variants) = owners.get_mut(of) else { return };
        let before = variants.len();
        variants.retain(|variant| variant.due != Some(due));
        let count = before - variants.len();
        if variants.is_empty() {
            owners.remove(of);
        }
        self.removed(key, &of.host, count);
    }

    fn remove_host(&mut self, host: &str) -> Vec<Variant> {
        let keys: Vec<Key> =
            self.by_host.get(host).map_or_else(Vec::new, |topics| topics.keys().cloned().collect());
        let mut removed = Vec::new();
        for key in keys {
            let Some(topic) = self.topics.get_mut(&key) else { continue };
            let before = removed.len();
            let gone: Vec<Owner> =
                topic.owners.keys().filter(|owner| &*owner.host == host).cloned().collect();
            removed.extend(gone.iter().filter_map(|owner| topic.owners.remove(owner)).flatten());
            self.removed(&key, host, removed.len() - before);
        }
        removed
    }

    /// Strikes so many registrations out of the indexes, and the topic when none is left.
    fn removed(&mut self, key: &Key, host: &str, count: usize) {
        self.records -= count;
        if let Some(topics) = self.by_host.get_mut(host) {
            if let Some(left) = topics.get_mut(key) {
                *left -= count;
                if *left == 0 {
                    topics.remove(key);
                }
            }
            if topics.is_empty() {
                self.by_host.remove(host);
            }
        }
        if self.topics.get(key).is_some_and(|topic| topic.owners.is_empty()) {
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
    }

    /// The topics of the same domain that start with this one.
    fn below(&self, prefix: &str) -> impl Iterator<Item = (&Key, &Topic)> {
        // A bare domain is not the prefix of a longer one: there a `:` has to follow.
        let is_domain = !prefix.contains(':');
        let alone = if is_domain { self.topics.get_key_value(prefix) } else { None };
        let start = if is_domain { format!("{prefix}:") } else { prefix.to_owned() };
        alone.into_iter().chain(self.starting_with(start))
    }

    /// The topics with these parts, whatever follows them.
    fn with_parts(&self, known: &str) -> impl Iterator<Item = (&Key, &Topic)> {
        self.topics.get_key_value(known).into_iter().chain(self.starting_with(format!("{known}:")))
    }

    fn starting_with(&self, start: String) -> impl Iterator<Item = (&Key, &Topic)> {
        let range = self.topics.range::<str, _>((Bound::Included(&*start), Bound::Unbounded));
        range.take_while(move |(key, _)| key.starts_with(&start))
    }

    /// The topics of the same domain that this one starts with.
    fn above<'a>(&'a self, asked: &str, mut found: impl FnMut(&'a Topic)) {
        let domain_len = asked.find(':').unwrap_or(asked.len());
        let mut end = Bound::Included(asked);
        // The greatest key that may be a prefix either is one, or shares so much with it that a prefix is no longer than
        // that. So every lookup finds one or makes what is asked for shorter.
        while let Some((key, topic)) = self.topics.range::<str, _>((Bound::Unbounded, end)).next_back() {
            let common = key.bytes().zip(asked.bytes()).take_while(|(a, b)| a == b).count();
            if common < domain_len {
                return;
            }
            if common == key.len() {
                found(topic);
                end = Bound::Excluded(&asked[..common]);
            } else {
                // The key is a sibling that sorts before: a prefix ends at or before the difference.
                let boundary = (0..=common).rev().find(|at| asked.is_char_boundary(*at)).unwrap_or_default();
                end = Bound::Included(&asked[..boundary]);
            }
        }
    }

    fn filter(&self, filter: &Filter<'_>) -> Vec<Bytes> {
        let mut frames = Vec::new();
        if let (Some(domain), Some(subject), Some(types)) = (filter.domain, filter.subject, &filter.types) {
            let key = format!("{domain}:{subject}:{types}");
            if let Some(topic) = self.topics.get(&*key) {
                filter.collect(&key, topic, &mut frames);
            }
            return frames;
        }
        // What is known narrows the topics down in several ways: the one with the fewest is walked.
        let domain = filter.domain.map(|domain| self.domains.get(domain).copied().unwrap_or_default());
        let subject = filter.subject.map(|subject| self.by_subject.of(subject));
        let types = filter.types.as_deref().map(|types| self.by_types.of(types));
        let host = filter.host.map(|host| self.by_host.get(host));
        let set_len = |set: Option<&BTreeSet<Key>>| set.map_or(0, BTreeSet::len);
        let ways = [
            domain.map(|len| (len, Way::Domain)),
            subject.map(|set| (set_len(set), Way::Subject)),
            types.map(|set| (set_len(set), Way::Types)),
            host.map(|set| (set.map_or(0, BTreeMap::len), Way::Host)),
        ];
        let mut look_at = |key: &Key| {
            if let Some(topic) = self.topics.get(key) {
                filter.collect(key, topic, &mut frames);
            }
        };
        match ways.into_iter().flatten().min_by_key(|(len, _)| *len) {
            None => self.topics.keys().for_each(look_at),
            Some((0, _)) => {}
            Some((_, Way::Subject)) => subject.flatten().into_iter().flatten().for_each(look_at),
            Some((_, Way::Types)) => types.flatten().into_iter().flatten().for_each(look_at),
            Some((_, Way::Host)) => host.flatten().into_iter().flatten().for_each(|(key, _)| look_at(key)),
            Some((_, Way::Domain)) => {
                let mut known = filter.domain.unwrap_or_default().to_owned();
                if let Some(subject) = filter.subject {
                    known = known + ":" + subject;
                }
                self.with_parts(&known).for_each(|(key, topic)| filter.collect(key, topic, &mut frames));
            }
        }
        frames
    }
}

/// A way to come by the topics that a filter may want.
#[derive(Clone, Copy, Debug)]
enum Way {
    Domain,
    Subject,
    Types,
    Host,
}

/// Topics by a part of theirs.
#[derive(Debug, Default)]
struct Index(HashMap<Box<str>, BTreeSet<Key>>);

impl Index {
    fn insert(&mut self, part: &str, key: &Key) {
        self.0.entry(part.into()).or_default().insert(key.clone());
    }

    fn remove(&mut self, part: &str, key: &Key) {
        if let Some(set) = self.0.get_mut(part) {
            set.remove(key);
            if set.is_empty() {
                self.0.remove(part);
            }
        }
    }

    fn of(&self, part: &str) -> Option<&BTreeSet<Key>> {
        self.0.get(part)
    }
}

/// What a filter asks for; `None` is any.
#[derive(Debug)]
struct Filter<'a> {
    domain: Option<&'a str>,
    subject: Option<&'a str>,
    types: Option<String>,
    host: Option<&'a str>,
    port: Option<i32>,
}

impl<'a> Filter<'a> {
    fn new(asked: &'a Registration) -> Self {
        let known = |part: &'a str| (part != ANY).then_some(part);
        // As topics are built: types `a:*:b` count as `a`, and empty parts are left out.
        let types: Vec<&str> = asked
            .types()
            .split(':')
            .take_while(|part| *part != ANY)
            .filter(|part| !part.is_empty())
            .collect();
        Self {
            domain: known(&asked.domain),
            subject: known(asked.subject()),
            types: (!types.is_empty()).then(|| types.join(":")),
            host: (asked.host != UNDEFINED).then_some(&asked.host),
            port: (asked.port != 0).then_some(asked.port),
        }
    }

    fn collect(&self, key: &str, topic: &Topic, frames: &mut Vec<Bytes>) {
        let (domain, subject, types) = parts(key);
        let fits = |asked: Option<&str>, part: &str| asked.is_none_or(|asked| asked == part);
        if !fits(self.domain, domain) || !fits(self.subject, subject) || !fits(self.types.as_deref(), types) {
            return;
        }
        for (owner, variants) in &topic.owners {
            if fits(self.host, &owner.host) {
                let variants = variants.iter().filter(|v| self.port.is_none_or(|port| port == v.port));
                frames.extend(variants.map(|variant| variant.frame.clone()));
            }
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
