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

mod above;
mod few;
mod index;
mod table;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::registration::{OwnerType, Registration, UNDEFINED};
use xmsg_core::topic::ANY;

use self::above::{Above, Looked};
use self::few::{Few, Text};
use self::table::Table;

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
    /// They take as many bytes as they may.
    Memory(usize),
    /// There are [`VARIANTS_MAX`] of the same topic, name and host.
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

/// Room that is kept for registrations on their way: see [`Store::reserve`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    records: usize,
    bytes: usize,
}

/// When a record expires, and which of those that expire then it is.
type Due = (Duration, u64);
/// The topic of a record, in all the places that name it.
type Key = Text;
/// With a time to live: every record, by the time when it expires.
type Expiring = BTreeMap<Due, (OwnerType, Key, Owner)>;

/// All publishers and subscribers.
#[derive(Debug)]
pub struct Store {
    publishers: Table,
    subscribers: Table,
    limit: usize,
    memory_limit: usize,
    ttl: Option<Duration>,
    next_serial: u64,
    expiring: Expiring,
    /// Room that is kept, and for how many of one topic, name and host.
    reserved: Reserved,
    reserved_variants: HashMap<(OwnerType, Key, Owner), usize>,
}

impl Store {
    /// An empty store for so many registrations, which expire when they are not renewed within `ttl`.
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

    /// The same, for registrations that take no more [memory](Self::memory) together.
    #[must_use]
    pub fn with_memory_limit(self, bytes: usize) -> Self {
        Self { memory_limit: bytes, ..self }
    }

    /// Bytes that all registrations take, about, with all that is needed to find them.
    #[must_use]
    pub fn memory(&self) -> usize {
        let expiring = few::tree::<Due, (OwnerType, Key, Owner)>(self.expiring.len());
        self.publishers.memory + self.subscribers.memory + expiring
    }

    /// Bytes of the frames of all publishers, or of all subscribers.
    #[must_use]
    pub fn frame_bytes(&self, owner: OwnerType) -> usize {
        self.table(owner).frame_bytes
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
        let reserved = self.reserve(owner, registration)?;
        self.admit(owner, registration, reserved, now)
    }

    /// Keeps a registration that room is [reserved](Self::reserve) for, or that was in the store before: no limit keeps it out. Fails if its
    /// topic is none.
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

    /// Renews a registration. Returns whether there is such a one.
    pub fn renew(
        &mut self,
        owner: OwnerType,
        registration: &Registration,
        now: Duration,
    ) -> Result<bool, Refused> {
        let (key, of, frame) = record(registration)?;
        Ok(self.renew_record(owner, &key, &of, &frame, now))
    }

    /// Keeps room for a registration, beside those that are there and those that room is kept for; also if the registration exists already,
    /// because it may be removed before this one is admitted. The room is given back by [`admit`](Self::admit) or [`release`](Self::release).
    pub fn reserve(&mut self, owner: OwnerType, registration: &Registration) -> Result<Reserved, Refused> {
        let (key, of, frame) = record(registration)?;
        let table = self.table(owner);
        let variants = table.variants(&key, &of);
        let coming = (owner, key, of);
        let (_, key, of) = &coming;
        let growth = table.growth(key, of, &frame)
            + self.ttl.map_or(0, |_| few::leaf::<Due, (OwnerType, Key, Owner)>(self.expiring.len()));
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
        // What it takes now may be little because of others that go before it comes.
        let bytes = growth.max(Table::growth_upper_bound(key, of, &frame));
        self.reserved.records += 1;
        self.reserved.bytes += bytes;
        *self.reserved_variants.entry(coming).or_default() += 1;
        Ok(Reserved { records: 1, bytes })
    }

    /// Gives room back that is not needed.
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

    /// Whether there is more than there may be: limits keep out what is registered, not what was in the store before.
    #[must_use]
    pub fn is_above_its_limits(&self) -> bool {
        self.len() > self.limit || self.memory() > self.memory_limit
    }

    /// Whether something with this topic, name and host is registered.
    #[must_use]
    pub fn has(&self, owner: OwnerType, registration: &Registration) -> bool {
        key(registration)
            .is_ok_and(|key| !self.table(owner).variants(&key, &Owner::of(registration)).is_empty())
    }

    /// Whether a host has registered something.
    #[must_use]
    pub fn has_of_host(&self, host: &str) -> bool {
        OwnerType::ALL.into_iter().any(|owner| self.table(owner).by_host.of(host).is_some())
    }

    /// Whether registrations expire.
    #[must_use]
    pub fn has_ttl(&self) -> bool {
        self.ttl.is_some()
    }

    /// Whether what is to be forgotten has a topic.
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

    /// When what is registered now expires.
    fn due(&mut self, now: Duration) -> Option<Due> {
        self.ttl.map(|ttl| {
            self.next_serial += 1;
            (now.saturating_add(ttl), self.next_serial)
        })
    }

    /// Forgets what has the same topic, name and host. Returns how many that were.
    pub fn remove(&mut self, owner: OwnerType, registration: &Registration) -> Result<usize, Refused> {
        let (key, of) = (key(registration)?, Owner::of(registration));
        let removed = self.table_mut(owner).remove(&key, &of);
        Ok(self.forget(&removed))
    }

    /// Forgets all that a host registered. Returns how many that were.
    pub fn remove_host(&mut self, host: &str) -> usize {
        self.remove_some_of_host(host, usize::MAX)
    }

    /// Forgets so many registrations of a host at most. If it returns less, nothing of that host is left.
    pub fn remove_some_of_host(&mut self, host: &str, most: usize) -> usize {
        let mut count = 0;
        for owner in OwnerType::ALL {
            let removed = self.table_mut(owner).remove_some_of_host(host, most - count.min(most));
            count += self.forget(&removed);
        }
        count
    }

    /// Forgets what was not renewed in time. Returns how many that were.
    pub fn expire(&mut self, now: Duration) -> usize {
        self.expire_some(now, usize::MAX)
    }

    /// The same for so many at most.
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

    /// When the next registration expires.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        self.expiring.first_key_value().map(|((due, _), _)| *due)
    }

    /// Publishers whose topic starts with the one asked for, or subscribers whose topic it starts with; in its domain.
    pub fn find(&self, owner: OwnerType, asked: &Registration) -> Result<Vec<Bytes>, Refused> {
        self.search_find(owner, asked).map(|search| self.collect(search))
    }

    /// Those of the same topic.
    pub fn exact(&self, owner: OwnerType, asked: &Registration) -> Result<Vec<Bytes>, Refused> {
        self.search_exact(owner, asked).map(|search| self.collect(search))
    }

    /// Those whose parts of the topic, host and port are equal to what was asked for; `*`, the host `undefined` and the
    /// port 0 are equal to any.
    #[must_use]
    pub fn filter(&self, owner: OwnerType, asked: &Registration) -> Vec<Bytes> {
        self.collect(self.search_filter(owner, asked))
    }

    /// All of them.
    #[must_use]
    pub fn all(&self, owner: OwnerType) -> Vec<Bytes> {
        let mut frames = Vec::with_capacity(self.count(owner));
        self.advance(&mut self.search_all(owner), usize::MAX, |frame| frames.push(frame.clone()));
        frames
    }

    /// The same question as [`find`](Self::find), to be answered [bit by bit](Self::advance).
    pub fn search_find(&self, owner: OwnerType, asked: &Registration) -> Result<Search, Refused> {
        let key = key(asked)?;
        let sources = match owner {
            OwnerType::Publisher => {
                // A bare domain is not the prefix of a longer one: there a `:` has to follow.
                let is_domain = !key.contains(':');
                let start = if is_domain { format!("{key}:") } else { key.to_string() };
                is_domain
                    .then_some(Source::Topic(key))
                    .into_iter()
                    .chain([Source::StartingWith(start)])
                    .collect()
            }
            OwnerType::Subscriber => [Source::Above(Above::new(key))].into(),
        };
        Ok(Search::new(owner, sources))
    }

    /// The same question as [`exact`](Self::exact).
    pub fn search_exact(&self, owner: OwnerType, asked: &Registration) -> Result<Search, Refused> {
        Ok(Search::new(owner, [Source::Topic(key(asked)?)].into()))
    }

    /// The same question as [`filter`](Self::filter).
    #[must_use]
    pub fn search_filter(&self, owner: OwnerType, asked: &Registration) -> Search {
        let filter = Filter::new(asked);
        let sources = self.table(owner).sources(&filter);
        Search { filter: Some(filter), ..Search::new(owner, sources) }
    }

    /// The same question as [`all`](Self::all).
    #[must_use]
    pub fn search_all(&self, owner: OwnerType) -> Search {
        Search::new(owner, [Source::StartingWith(String::new())].into())
    }

    /// Goes on with a search: looks at about `work` topics and registrations, and hands out the frames of those that fit. Returns whether
    /// that was the last of them. The store may change meanwhile: what was there all the time is found, once; what came or went may be.
    pub fn advance(&self, search: &mut Search, mut work: usize, mut found: impl FnMut(&Bytes)) -> bool {
        let table = self.table(search.owner);
        loop {
            if let Some(Source::Above(above)) = search.sources.front_mut() {
                if work == 0 {
                    return false;
                }
                work = work.saturating_sub(above.cost());
                match table.next_above(above) {
                    Looked::Found(key) => search.sources.push_front(Source::Topic(key)),
                    Looked::InVain => {}
                    Looked::Done => drop(search.sources.pop_front()),
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

/// The topic of a registration, checked.
fn key(registration: &Registration) -> Result<Key, Refused> {
    let topic = registration.topic().map_err(|error| Refused::Topic(error.to_string()))?;
    Ok(topic.to_str().map_err(|error| Refused::Topic(error.to_string()))?.into())
}

/// What a registration is kept as.
fn record(registration: &Registration) -> Result<(Key, Owner, Bytes), Refused> {
    Ok((key(registration)?, Owner::of(registration), registration.encode()))
}

/// Domain, subject and types of a topic.
fn parts(topic: &str) -> (&str, &str, &str) {
    let mut parts = topic.splitn(3, ':');
    let mut next = || parts.next();
    (next().unwrap_or_default(), next().unwrap_or(ANY), next().unwrap_or(ANY))
}

/// Who registered: what removing goes by. Those of one host lie together.
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
    due: Option<Due>,
}

/// The registrations of one topic.
#[derive(Debug, Default)]
struct Topic {
    owners: Few<Owner, Vec<Variant>>,
}

impl Topic {
    /// Hands out what fits of those behind this owner. When all `work` is done, returns the last owner that was looked at.
    fn walk(
        &self,
        after: Option<&Owner>,
        filter: Option<&Filter>,
        work: &mut usize,
        found: &mut impl FnMut(&Bytes),
    ) -> Option<Owner> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (owner, variants) in self.owners.starting_at(start) {
            let fitting =
                variants.iter().filter(|variant| filter.is_none_or(|f| f.fits_owner(owner, variant)));
            fitting.for_each(|variant| found(&variant.frame));
            *work = work.saturating_sub(variants.len());
            if *work == 0 {
                return Some(owner.clone());
            }
        }
        None
    }
}

/// A question that is being answered: what is still to be looked at.
#[derive(Debug)]
pub struct Search {
    owner: OwnerType,
    filter: Option<Filter>,
    sources: VecDeque<Source>,
    /// How far the first source was looked at.
    place: Option<Place>,
}

impl Search {
    fn new(owner: OwnerType, sources: VecDeque<Source>) -> Self {
        Self { owner, filter: None, sources, place: None }
    }
}

/// Topics to look at, in their order.
#[derive(Debug)]
enum Source {
    Topic(Key),
    Above(Above),
    StartingWith(String),
    Subject(Box<str>),
    Types(Box<str>),
    Host(Box<str>),
}

/// All before this was looked at: the whole topic, or its owners up to this one.
#[derive(Debug)]
struct Place {
    key: Key,
    owner: Option<Owner>,
}

/// What a filter asks for; `None` is any.
#[derive(Debug)]
struct Filter {
    domain: Option<Box<str>>,
    subject: Option<Box<str>>,
    types: Option<Box<str>>,
    host: Option<Box<str>>,
    port: Option<i32>,
}

impl Filter {
    fn new(asked: &Registration) -> Self {
        let known = |part: &str| (part != ANY).then(|| part.into());
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
            types: (!types.is_empty()).then(|| types.join(":").into()),
            host: (asked.host != UNDEFINED).then(|| asked.host.as_str().into()),
            port: (asked.port != 0).then_some(asked.port),
        }
    }

    /// Whether this topic is asked for.
    fn fits(&self, key: &str) -> bool {
        let (domain, subject, types) = parts(key);
        let fits = |asked: &Option<Box<str>>, part: &str| asked.as_deref().is_none_or(|asked| asked == part);
        fits(&self.domain, domain) && fits(&self.subject, subject) && fits(&self.types, types)
    }

    /// Whether this registration of such a topic is asked for.
    fn fits_owner(&self, owner: &Owner, variant: &Variant) -> bool {
        self.host.as_deref().is_none_or(|host| host == &*owner.host)
            && self.port.is_none_or(|port| port == variant.port)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
