//! The store of the registrations: a database without I/O, clock or tasks.
//!
//! A record is the frame that an actor sent, in canonical form. So equal frames are equal registrations, and
//! a result is sent without encoding anything. Records are sorted by topic, and within a topic by host and
//! name.
//!
//! | query | what is looked at |
//! |---|---|
//! | find publishers | a range of the sorted topics |
//! | find subscribers | those topics that are a prefix, one lookup each |
//! | exact | one topic |
//! | filter | the smallest of: a range of topics, the topics of the subject, of the types, or of the host |
//! | remove all of a host | the topics of the host |

// | file | answers |
// |---|---|
// | `table.rs` | Which registrations are there of one kind, and where are they found? |
// | `index.rs` | Which topics have something in common? |
// | `prefix_search.rs` | Which topics are a prefix of this one? |
// | `small_map.rs` | How do short maps take little memory, and how much is it? |

// Longer than 500 lines: one database, whose operations keep the same indexes and counts.

mod index;
mod prefix_search;
mod small_map;
mod table;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::registration::{OwnerType, Registration, UNDEFINED};
use xmsg_core::topic::ANY;

use self::prefix_search::{Lookup, PrefixSearch};
use self::small_map::{SmallMap, Text};
use self::table::Table;

/// The largest number of registrations that differ only in what removing ignores: port, description and
/// unknown fields. An actor has one or two. More than this is a mistake or an attack.
pub const VARIANTS_MAX: usize = 256;

/// The reason why a registration was refused or a query was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The topic is not valid. The text states the reason.
    Topic(String),
    /// The store holds this many registrations, which is its limit.
    Full(usize),
    /// The registrations would take more memory than this limit, in bytes.
    Memory(usize),
    /// There are already [`VARIANTS_MAX`] registrations with this topic, name and host.
    Variants,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(why) => f.write_str(why),
            Self::Full(limit) => write!(
                f,
                "the registrar is full: it holds {limit} registrations, its limit (max_registrations)"
            ),
            Self::Memory(limit) => write!(
                f,
                "the registrar is full: this registration would take it past {limit} bytes for all of them, its limit \
                 (max_registration_memory_mib)"
            ),
            Self::Variants => write!(
                f,
                "this name and host have {VARIANTS_MAX} registrations of this topic already: remove some first"
            ),
        }
    }
}

/// Room that is reserved for registrations that are not in the store yet: see [`Store::reserve`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    records: usize,
    bytes: usize,
}

/// The time at which a record expires, and a number that distinguishes records with the same time.
type ExpiryKey = (Duration, u64);
/// The topic of a record, shared by all places that refer to it.
type Key = Text;
/// All records by the time at which they expire. It is empty if registrations don't expire.
type Expiring = BTreeMap<ExpiryKey, (OwnerType, Key, Owner)>;

/// The registrations of all publishers and subscribers.
#[derive(Debug)]
pub struct Store {
    publishers: Table,
    subscribers: Table,
    limit: usize,
    memory_limit: usize,
    ttl: Option<Duration>,
    next_serial: u64,
    expiring: Expiring,
    /// The room that is reserved in total. `reserved_variants` says for how many registrations of one topic,
    /// name and host.
    reserved: Reserved,
    reserved_variants: HashMap<(OwnerType, Key, Owner), usize>,
}

impl Store {
    /// Creates an empty store for at most `limit` registrations. With a `ttl`, they expire if they are not
    /// renewed within that time.
    #[must_use]
    pub fn new(limit: usize, ttl: Option<Duration>) -> Self {
        Self {
            publishers: Table::default(),
            subscribers: Table::default(),
            limit,
            memory_limit: usize::MAX,
            ttl,
            next_serial: 0,
            expiring: Expiring::new(),
            reserved: Reserved::default(),
            reserved_variants: HashMap::new(),
        }
    }

    /// Limits the [memory](Self::memory) that all registrations together may take, in bytes.
    #[must_use]
    pub fn with_memory_limit(self, bytes: usize) -> Self {
        Self { memory_limit: bytes, ..self }
    }

    /// Returns the approximate memory of all registrations and of their indexes, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let expiring = small_map::tree::<ExpiryKey, (OwnerType, Key, Owner)>(self.expiring.len());
        self.publishers.memory + self.subscribers.memory + expiring
    }

    /// Returns the size of the frames of all publishers or of all subscribers, in bytes.
    #[must_use]
    pub fn frame_bytes(&self, owner: OwnerType) -> usize {
        self.table(owner).frame_bytes
    }

    /// Returns the number of registrations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.publishers.records + self.subscribers.records
    }

    /// Returns whether there are no registrations.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of publishers or of subscribers.
    #[must_use]
    pub fn count(&self, owner: OwnerType) -> usize {
        self.table(owner).records
    }

    /// Adds a registration, or renews it. `now` is the time since any fixed moment. Returns whether the
    /// registration is new.
    ///
    /// # Errors
    ///
    /// [`Refused`] if the topic is not valid or a limit is reached.
    pub fn register(
        &mut self,
        owner: OwnerType,
        registration: &Registration,
        now: Duration,
    ) -> Result<bool, Refused> {
        let reserved = self.reserve(owner, registration)?;
        self.admit(owner, registration, reserved, now)
    }

    /// Adds a registration for which room is [reserved](Self::reserve), or which was in the store before a
    /// restart. No limit applies. Returns whether the registration is new.
    ///
    /// # Errors
    ///
    /// [`Refused::Topic`] if the topic is not valid.
    pub fn admit(
        &mut self,
        owner: OwnerType,
        registration: &Registration,
        reserved: Reserved,
        now: Duration,
    ) -> Result<bool, Refused> {
        self.release(owner, registration, reserved);
        let (key, of, frame) = record(registration)?;
        if self.renew_record(owner, &key, &of, &frame, now) {
            return Ok(false);
        }
        let due = self.due(now);
        let variant = Variant { frame, port: registration.port, due };
        let (key, of) = self.table_mut(owner).insert(key, of, variant);
        if let Some(due) = due {
            self.expiring.insert(due, (owner, key, of));
        }
        Ok(true)
    }

    /// Renews a registration. Returns whether it exists.
    ///
    /// # Errors
    ///
    /// [`Refused::Topic`] if the topic is not valid.
    pub fn renew(
        &mut self,
        owner: OwnerType,
        registration: &Registration,
        now: Duration,
    ) -> Result<bool, Refused> {
        let (key, of, frame) = record(registration)?;
        Ok(self.renew_record(owner, &key, &of, &frame, now))
    }

    /// Reserves room for a registration, in addition to the existing registrations and other reserved room.
    /// Room is reserved even if the registration exists already, because it may be removed before this one is
    /// admitted. [`admit`](Self::admit) uses the room, and [`release`](Self::release) gives it back.
    ///
    /// # Errors
    ///
    /// [`Refused`] if the topic is not valid or a limit is reached.
    pub fn reserve(&mut self, owner: OwnerType, registration: &Registration) -> Result<Reserved, Refused> {
        let (key, of, frame) = record(registration)?;
        let table = self.table(owner);
        let variants = table.variants(&key, &of);
        let coming = (owner, key, of);
        let (_, key, of) = &coming;
        let growth = table.growth(key, of, &frame)
            + self
                .ttl
                .map_or(0, |_| small_map::leaf::<ExpiryKey, (OwnerType, Key, Owner)>(self.expiring.len()));
        if !variants.iter().any(|variant| variant.frame == frame) {
            if self.len() + self.reserved.records >= self.limit {
                return Err(Refused::Full(self.limit));
            }
            if variants.len() + self.reserved_variants.get(&coming).copied().unwrap_or_default()
                >= VARIANTS_MAX
            {
                return Err(Refused::Variants);
            }
            if self.memory().saturating_add(growth + self.reserved.bytes) > self.memory_limit {
                return Err(Refused::Memory(self.memory_limit));
            }
        }
        // The registration may take more later: the entries that it shares now may be removed before it is
        // admitted.
        let bytes = growth.max(Table::growth_upper_bound(key, of, &frame));
        self.reserved.records += 1;
        self.reserved.bytes += bytes;
        *self.reserved_variants.entry(coming).or_default() += 1;
        Ok(Reserved { records: 1, bytes })
    }

    /// Gives back reserved room that is not needed.
    pub fn release(&mut self, owner: OwnerType, registration: &Registration, reserved: Reserved) {
        self.reserved.records -= reserved.records;
        self.reserved.bytes -= reserved.bytes;
        if reserved.records > 0
            && let Ok(key) = key(registration)
            && let Entry::Occupied(mut coming) =
                self.reserved_variants.entry((owner, key, Owner::of(registration)))
        {
            *coming.get_mut() -= 1;
            if *coming.get() == 0 {
                coming.remove();
            }
        }
    }

    /// Returns whether the store exceeds its limits. Limits apply to new registrations, not to those that
    /// were in the store before a restart.
    #[must_use]
    pub fn is_above_its_limits(&self) -> bool {
        self.len() > self.limit || self.memory() > self.memory_limit
    }

    /// Returns whether something with this topic, name and host is registered.
    #[must_use]
    pub fn has(&self, owner: OwnerType, registration: &Registration) -> bool {
        key(registration)
            .is_ok_and(|key| !self.table(owner).variants(&key, &Owner::of(registration)).is_empty())
    }

    /// Returns whether a host has registered something.
    #[must_use]
    pub fn has_of_host(&self, host: &str) -> bool {
        OwnerType::ALL.into_iter().any(|owner| self.table(owner).by_host.of(host).is_some())
    }

    /// Returns whether registrations expire.
    #[must_use]
    pub fn has_ttl(&self) -> bool {
        self.ttl.is_some()
    }

    /// Checks that the topic of a registration to be removed is valid.
    ///
    /// # Errors
    ///
    /// [`Refused::Topic`] if it is not.
    pub fn check_topic(registration: &Registration) -> Result<(), Refused> {
        key(registration).map(drop)
    }

    fn renew_record(&mut self, owner: OwnerType, key: &Key, of: &Owner, frame: &[u8], now: Duration) -> bool {
        let due = self.due(now);
        let Some(variant) = self.table_mut(owner).variant_mut(key, of, frame) else { return false };
        let was = std::mem::replace(&mut variant.due, due);
        let renewed = was.and_then(|was| self.expiring.remove(&was));
        if let (Some(due), Some(renewed)) = (due, renewed) {
            self.expiring.insert(due, renewed);
        }
        true
    }

    /// Returns when a registration that is made or renewed now expires.
    fn due(&mut self, now: Duration) -> Option<ExpiryKey> {
        self.ttl.map(|ttl| {
            self.next_serial += 1;
            (now.saturating_add(ttl), self.next_serial)
        })
    }

    /// Removes the registrations with the same topic, name and host. Returns how many there were.
    ///
    /// # Errors
    ///
    /// [`Refused::Topic`] if the topic is not valid.
    pub fn remove(&mut self, owner: OwnerType, registration: &Registration) -> Result<usize, Refused> {
        let (key, of) = (key(registration)?, Owner::of(registration));
        let removed = self.table_mut(owner).remove(&key, &of);
        Ok(self.forget(&removed))
    }

    /// Removes all registrations of a host. Returns how many there were.
    pub fn remove_host(&mut self, host: &str) -> usize {
        self.remove_some_of_host(host, usize::MAX)
    }

    /// Removes at most `most` registrations of a host, and returns how many. If it returns less than `most`,
    /// no registration of that host is left.
    pub fn remove_some_of_host(&mut self, host: &str, most: usize) -> usize {
        let mut count = 0;
        for owner in OwnerType::ALL {
            let removed = self.table_mut(owner).remove_some_of_host(host, most - count.min(most));
            count += self.forget(&removed);
        }
        count
    }

    /// Removes the registrations that were not renewed in time. Returns how many there were.
    pub fn expire(&mut self, now: Duration) -> usize {
        self.expire_some(now, usize::MAX)
    }

    /// Removes at most `most` of the registrations that were not renewed in time. Returns how many there
    /// were.
    pub fn expire_some(&mut self, now: Duration, most: usize) -> usize {
        let mut count = 0;
        while count < most
            && let Some(first) = self.expiring.first_entry()
            && first.key().0 <= now
        {
            let (due, (owner, key, of)) = first.remove_entry();
            self.table_mut(owner).remove_due(&key, &of, due);
            count += 1;
        }
        count
    }

    /// Returns when the next registration expires.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        self.expiring.first_key_value().map(|((due, _), _)| *due)
    }

    /// Returns the frames of the publishers whose topic starts with the topic asked for, or of the
    /// subscribers whose topic is a prefix of it. All of them are in the domain asked for.
    ///
    /// # Errors
    ///
    /// [`Refused::Topic`] if the topic asked for is not valid.
    pub fn find(&self, owner: OwnerType, query: &Registration) -> Result<Vec<Bytes>, Refused> {
        self.search_find(owner, query).map(|search| self.collect(search))
    }

    /// Returns the frames of the registrations with exactly this topic.
    ///
    /// # Errors
    ///
    /// [`Refused::Topic`] if the topic asked for is not valid.
    pub fn exact(&self, owner: OwnerType, query: &Registration) -> Result<Vec<Bytes>, Refused> {
        self.search_exact(owner, query).map(|search| self.collect(search))
    }

    /// Returns the frames of the registrations whose topic parts, host and port are equal to those asked for.
    /// The topic part `*`, the host `undefined` and the port 0 match any value.
    #[must_use]
    pub fn filter(&self, owner: OwnerType, query: &Registration) -> Vec<Bytes> {
        self.collect(self.search_filter(owner, query))
    }

    /// Returns the frames of all publishers or of all subscribers.
    #[must_use]
    pub fn all(&self, owner: OwnerType) -> Vec<Bytes> {
        let mut frames = Vec::with_capacity(self.count(owner));
        self.advance(&mut self.search_all(owner), usize::MAX, |frame| frames.push(frame.clone()));
        frames
    }

    /// Starts the query of [`find`](Self::find), which [`advance`](Self::advance) answers step by step.
    ///
    /// # Errors
    ///
    /// [`Refused::Topic`] if the topic asked for is not valid.
    pub fn search_find(&self, owner: OwnerType, query: &Registration) -> Result<Search, Refused> {
        let key = key(query)?;
        let sources = match owner {
            OwnerType::Publisher => {
                // A bare domain must not match a longer domain, so a `:` has to follow.
                let is_domain = !key.contains(':');
                let start = if is_domain { format!("{key}:") } else { key.to_string() };
                is_domain
                    .then_some(Source::Topic(key))
                    .into_iter()
                    .chain([Source::StartingWith(start)])
                    .collect()
            }
            OwnerType::Subscriber => [Source::PrefixSearch(PrefixSearch::new(key))].into(),
        };
        Ok(Search::new(owner, sources))
    }

    /// Starts the query of [`exact`](Self::exact), which [`advance`](Self::advance) answers step by step.
    ///
    /// # Errors
    ///
    /// [`Refused::Topic`] if the topic asked for is not valid.
    pub fn search_exact(&self, owner: OwnerType, query: &Registration) -> Result<Search, Refused> {
        Ok(Search::new(owner, [Source::Topic(key(query)?)].into()))
    }

    /// Starts the query of [`filter`](Self::filter), which [`advance`](Self::advance) answers step by step.
    #[must_use]
    pub fn search_filter(&self, owner: OwnerType, query: &Registration) -> Search {
        let filter = Filter::new(query);
        let sources = self.table(owner).sources(&filter);
        Search { filter: Some(filter), ..Search::new(owner, sources) }
    }

    /// Starts the query of [`all`](Self::all), which [`advance`](Self::advance) answers step by step.
    #[must_use]
    pub fn search_all(&self, owner: OwnerType) -> Search {
        Search::new(owner, [Source::StartingWith(String::new())].into())
    }

    /// Starts a query for the registrations whose topic starts with this text, in the order of their topics.
    #[must_use]
    pub fn search_starting_with(&self, owner: OwnerType, start: &str) -> Search {
        Search::new(owner, [Source::StartingWith(start.to_owned())].into())
    }

    /// Continues a search. It looks at about `work` topics and registrations, and passes the frames that
    /// match to `found`. Returns whether the search is complete. The store may change between the calls: a
    /// registration that exists all the time is found exactly once, and one that is added or removed
    /// meanwhile may be found.
    pub fn advance(&self, search: &mut Search, work: usize, mut found: impl FnMut(&Bytes)) -> bool {
        self.advance_with(search, work, |variant| found(&variant.frame))
    }

    /// Does the same as [`advance`](Self::advance), and passes with each frame how long ago it was registered
    /// or renewed. That is known if registrations expire.
    pub fn advance_dated(
        &self,
        search: &mut Search,
        work: usize,
        now: Duration,
        mut found: impl FnMut(&Bytes, Option<Duration>),
    ) -> bool {
        self.advance_with(search, work, |variant| {
            let renewed = variant.due.zip(self.ttl).map(|((due, _), ttl)| due.saturating_sub(ttl));
            found(&variant.frame, renewed.map(|renewed| now.saturating_sub(renewed)));
        })
    }

    fn advance_with(&self, search: &mut Search, mut work: usize, mut found: impl FnMut(&Variant)) -> bool {
        let table = self.table(search.owner);
        loop {
            if let Some(Source::PrefixSearch(above)) = search.sources.front_mut() {
                if work == 0 {
                    return false;
                }
                work = work.saturating_sub(above.cost());
                match table.next_prefix(above) {
                    Lookup::Found(key) => search.sources.push_front(Source::Topic(key)),
                    Lookup::NoMatch => {}
                    Lookup::Done => drop(search.sources.pop_front()),
                }
                continue;
            }
            let Some(source) = search.sources.front() else { return true };
            let (mut place, filter) = (search.place.take(), search.filter.as_ref());
            if let Some(Place { key, owner: Some(after) }) = &place
                && let Some(topic) = table.topics.get(key)
                && let Some(last) = topic.walk(Some(after), filter, &mut work, &mut found)
            {
                search.place = Some(Place { key: key.clone(), owner: Some(last) });
                return false;
            }
            for (key, topic) in table.topics_of(source, place.take().map(|place| place.key).as_ref()) {
                let stopped = if filter.is_none_or(|filter| filter.fits(key)) {
                    topic.walk(None, filter, &mut work, &mut found)
                } else {
                    None
                };
                work = work.saturating_sub(1);
                if stopped.is_some() || work == 0 {
                    search.place = Some(Place { key: key.clone(), owner: stopped });
                    return false;
                }
            }
            search.sources.pop_front();
        }
    }

    fn collect(&self, mut search: Search) -> Vec<Bytes> {
        let mut frames = Vec::new();
        self.advance(&mut search, usize::MAX, |frame| frames.push(frame.clone()));
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

/// Returns the topic of a registration, or an error if it is not valid.
fn key(registration: &Registration) -> Result<Key, Refused> {
    let topic = registration.topic().map_err(|error| Refused::Topic(error.to_string()))?;
    Ok(topic.to_str().map_err(|error| Refused::Topic(error.to_string()))?.into())
}

/// Returns the parts of the record of a registration: topic, owner and frame.
fn record(registration: &Registration) -> Result<(Key, Owner, Bytes), Refused> {
    Ok((key(registration)?, Owner::of(registration), registration.encode()))
}

/// Splits a topic into domain, subject and types.
fn parts(topic: &str) -> (&str, &str, &str) {
    let mut parts = topic.splitn(3, ':');
    let mut next = || parts.next();
    (next().unwrap_or_default(), next().unwrap_or(ANY), next().unwrap_or(ANY))
}

/// The host and the name of an actor, which removing goes by. The host comes first, so that the owners of one
/// host are next to each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Owner {
    host: Text,
    name: Text,
}

impl Owner {
    fn of(registration: &Registration) -> Self {
        Self { name: registration.name.as_str().into(), host: registration.host.as_str().into() }
    }
}

/// One registration.
#[derive(Debug)]
struct Variant {
    frame: Bytes,
    port: i32,
    due: Option<ExpiryKey>,
}

/// The registrations of one topic.
#[derive(Debug, Default)]
struct Topic {
    owners: SmallMap<Owner, Vec<Variant>>,
}

impl Topic {
    /// Passes the matching registrations of the owners behind `after` to `found`. When `work` is used up,
    /// returns the last owner that was looked at.
    fn walk(
        &self,
        after: Option<&Owner>,
        filter: Option<&Filter>,
        work: &mut usize,
        found: &mut impl FnMut(&Variant),
    ) -> Option<Owner> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (owner, variants) in self.owners.starting_at(start) {
            let fitting =
                variants.iter().filter(|variant| filter.is_none_or(|f| f.fits_owner(owner, variant)));
            fitting.for_each(&mut *found);
            *work = work.saturating_sub(variants.len());
            if *work == 0 {
                return Some(owner.clone());
            }
        }
        None
    }
}

/// A query in progress, with what is still to be looked at.
#[derive(Debug)]
pub struct Search {
    owner: OwnerType,
    filter: Option<Filter>,
    sources: VecDeque<Source>,
    /// The place in the first source up to which it was looked at.
    place: Option<Place>,
}

impl Search {
    fn new(owner: OwnerType, sources: VecDeque<Source>) -> Self {
        Self { owner, filter: None, sources, place: None }
    }
}

/// A set of topics to look at, in their order.
#[derive(Debug)]
enum Source {
    Topic(Key),
    PrefixSearch(PrefixSearch),
    StartingWith(String),
    Subject(Box<str>),
    Types(Box<str>),
    Host(Box<str>),
}

/// A place in a source. Everything before it was looked at: the whole topic, or its owners up to this one.
#[derive(Debug)]
struct Place {
    key: Key,
    owner: Option<Owner>,
}

/// The values that a filter asks for. `None` matches any value.
#[derive(Debug)]
struct Filter {
    domain: Option<Box<str>>,
    subject: Option<Box<str>>,
    types: Option<Box<str>>,
    host: Option<Box<str>>,
    port: Option<i32>,
}

impl Filter {
    fn new(query: &Registration) -> Self {
        let known = |part: &str| (part != ANY).then(|| part.into());
        // Types are normalized like those of topics: `a:*:b` becomes `a`, and empty parts are left out.
        let types: Vec<&str> = query
            .types()
            .split(':')
            .take_while(|part| *part != ANY)
            .filter(|part| !part.is_empty())
            .collect();
        Self {
            domain: known(&query.domain),
            subject: known(query.subject()),
            types: (!types.is_empty()).then(|| types.join(":").into()),
            host: (query.host != UNDEFINED).then(|| query.host.as_str().into()),
            port: (query.port != 0).then_some(query.port),
        }
    }

    /// Returns whether a topic matches.
    fn fits(&self, key: &str) -> bool {
        let (domain, subject, types) = parts(key);
        let fits = |query: &Option<Box<str>>, part: &str| query.as_deref().is_none_or(|query| query == part);
        fits(&self.domain, domain) && fits(&self.subject, subject) && fits(&self.types, types)
    }

    /// Returns whether a registration of a matching topic matches.
    fn fits_owner(&self, owner: &Owner, variant: &Variant) -> bool {
        self.host.as_deref().is_none_or(|host| host == &*owner.host)
            && self.port.is_none_or(|port| port == variant.port)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
