//! Tests of the store against a model without indexes: a list, with the rules as section 5 of the protocol
//! states them.

use proptest::prelude::*;
use xmsg_core::registration::Query;
use xmsg_core::{ProxyAddress, Topic as CoreTopic};

use super::*;

fn registration(name: &str, host: &str, port: u16, parts: [&str; 3]) -> Registration {
    let proxy = ProxyAddress::new(host, port).unwrap();
    let topic = CoreTopic::wrap("placeholder");
    let mut registration = Registration::new(OwnerType::Publisher, name, &topic, &proxy);
    let [domain, subject, types] = parts.map(str::to_owned);
    (registration.domain, registration.subject, registration.types) = (domain, Some(subject), Some(types));
    registration
}

#[test]
fn a_registration_may_be_kept_for_ever() {
    let mut store = Store::new(8, Some(Duration::MAX));
    let now = Duration::from_secs(1);
    store.register(OwnerType::Publisher, &registration("n", "h", 7771, ["a", "b", "c"]), now).unwrap();
    assert_eq!(store.next_expiry(), Some(Duration::MAX));
    assert_eq!(store.len(), 1);
}

/// Each topic is a prefix of the next one, so that a lookup has to follow all of them.
#[test]
fn topics_above_a_long_one_are_found_in_slices() {
    const TOPICS: usize = 2_000;
    let mut store = Store::new(TOPICS, None);
    let nested = |len: usize| registration("n", "h", 7771, ["d", &"a".repeat(len), ANY]);
    for len in 1..=TOPICS {
        store.register(OwnerType::Subscriber, &nested(len), Duration::ZERO).unwrap();
    }
    let mut search = store.search_find(OwnerType::Subscriber, &nested(TOPICS)).unwrap();
    let (mut slices, mut found) = (0, Vec::new());
    loop {
        let before = found.len();
        let is_whole = store.advance(&mut search, 512, |frame| found.push(frame.clone()));
        assert!(found.len() - before <= 16, "a slice compares 32 KiB of text at most");
        slices += 1;
        if is_whole {
            break;
        }
    }
    let expected: Vec<_> = (1..=TOPICS).rev().map(|len| nested(len).encode()).collect();
    assert!(found == expected, "{} of {TOPICS}", found.len());
    assert!(slices > TOPICS / 16);
}

#[test]
fn a_host_is_removed_in_slices() {
    let mut store = Store::new(10_000, Some(Duration::from_secs(1)));
    for number in 0..1_000_u16 {
        let (name, subject) = (format!("n{number}"), format!("s{}", number % 7));
        let registration = registration(&name, "h", 7771, ["d", &subject, "t"]);
        for owner in OwnerType::ALL {
            store.register(owner, &registration, Duration::ZERO).unwrap();
        }
    }
    let other = registration("n", "other", 7771, ["d", "s1", "t"]);
    store.register(OwnerType::Publisher, &other, Duration::ZERO).unwrap();
    let counts: Vec<usize> = (0..5).map(|_| store.remove_some_of_host("h", 512)).collect();
    assert_eq!(counts, [512, 512, 512, 464, 0]);
    assert_eq!((store.len(), store.remove_some_of_host("other", 512)), (1, 1));
    assert_eq!((store.next_expiry(), store.memory()), (None, 0));
}

#[derive(Debug, Default)]
struct Model(Vec<(OwnerType, Registration)>);

impl Model {
    fn select(&self, owner: OwnerType, fits: impl Fn(&Registration) -> bool) -> Vec<Bytes> {
        let records = self.0.iter().filter(|(of, record)| *of == owner && fits(record));
        sorted(records.map(|(_, record)| record.encode()).collect())
    }

    fn find(&self, owner: OwnerType, query: &Registration) -> Vec<Bytes> {
        let query = query.topic().unwrap();
        self.select(owner, |record| {
            let topic = record.topic().unwrap();
            topic.domain() == query.domain()
                && match owner {
                    OwnerType::Publisher => query.is_parent(&topic),
                    OwnerType::Subscriber => topic.is_parent(&query),
                }
        })
    }

    fn filter(&self, owner: OwnerType, query: &Registration) -> Vec<Bytes> {
        let any = |part: &str| part == ANY;
        let types = Query::parts(owner, "d", "s", query.types());
        let types = xmsg_core::registration::Request::discover("me", |_| action(), &types);
        let xmsg_core::registration::Argument::Registration(types) = types.argument else { unreachable!() };
        let types = types.topic().unwrap().types().into_owned();
        self.select(owner, |record| {
            let topic = record.topic().unwrap();
            (any(&query.domain) || topic.domain() == query.domain)
                && (any(query.subject()) || topic.subject() == query.subject())
                && (any(&types) || topic.types() == types)
                && (query.host == UNDEFINED || query.host == record.host)
                && (query.port == 0 || query.port == record.port)
        })
    }
}

fn action() -> xmsg_core::registration::Action {
    xmsg_core::registration::Action::Filter(OwnerType::Publisher)
}

fn sorted(mut frames: Vec<Bytes>) -> Vec<Bytes> {
    frames.sort();
    frames
}

/// Returns the result of a search that does the least possible work in each step.
fn in_steps(store: &Store, mut search: Search) -> Vec<Bytes> {
    let mut frames = Vec::new();
    while !store.advance(&mut search, 1, |frame| frames.push(frame.clone())) {}
    frames
}

#[derive(Clone, Debug)]
enum Step {
    Register(OwnerType, Registration),
    Remove(OwnerType, Registration),
    RemoveHost(String),
    Search(OwnerType, Registration),
}

fn step() -> impl Strategy<Value = Step> {
    let part = || prop::sample::select(vec!["a", "b", "ab", "a:b", "é", "è", "*", "", "undefined"]);
    let registration = (
        prop::sample::select(vec!["n", "m"]),
        prop::sample::select(vec!["h", "i", "undefined"]),
        0_u16..3,
        [part(), part(), part()],
        any::<bool>(),
    )
        .prop_map(|(name, host, port, parts, described)| {
            let mut registration = registration(name, host, 1, parts);
            registration.port = port.into();
            registration.description = described.then(|| "x".to_owned());
            registration
        });
    let owner = prop::sample::select(OwnerType::ALL.to_vec());
    (0..10, owner, registration).prop_map(|(kind, owner, registration)| match kind {
        0..5 => Step::Register(owner, registration),
        5 => Step::Remove(owner, registration),
        6 => Step::RemoveHost(registration.host),
        _ => Step::Search(owner, registration),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn it_answers_as_the_rules_say(steps in prop::collection::vec(step(), 1..80)) {
        let mut store = Store::new(usize::MAX, Some(Duration::from_secs(1)));
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Register(owner, record) => {
                    let result = store.register(owner, &record, Duration::ZERO);
                    prop_assert_eq!(result.is_ok(), record.topic().is_ok());
                    if let Ok(new) = result {
                        let entry = (owner, record);
                        prop_assert_eq!(new, !model.0.contains(&entry));
                        if new {
                            model.0.push(entry);
                        }
                    }
                }
                Step::Remove(owner, query) => {
                    let result = store.remove(owner, &query);
                    let Ok(topic) = query.topic() else {
                        prop_assert!(result.is_err());
                        continue;
                    };
                    let before = model.0.len();
                    model.0.retain(|(of, record)| {
                        *of != owner || record.topic().unwrap() != topic
                            || record.name != query.name || record.host != query.host
                    });
                    prop_assert_eq!(result, Ok(before - model.0.len()));
                }
                Step::RemoveHost(host) => {
                    let before = model.0.len();
                    model.0.retain(|(_, record)| record.host != host);
                    prop_assert_eq!(store.remove_host(&host), before - model.0.len());
                }
                Step::Search(owner, query) => {
                    prop_assert_eq!(sorted(store.filter(owner, &query)), model.filter(owner, &query));
                    prop_assert_eq!(sorted(store.all(owner)), model.select(owner, |_| true));
                    let searches = [Ok(store.search_filter(owner, &query)), Ok(store.search_all(owner))];
                    let searches = searches.into_iter().chain([
                        store.search_find(owner, &query),
                        store.search_exact(owner, &query),
                    ]);
                    let whole = [Ok(store.filter(owner, &query)), Ok(store.all(owner))];
                    let whole = whole.into_iter().chain([store.find(owner, &query), store.exact(owner, &query)]);
                    for (search, whole) in searches.zip(whole) {
                        prop_assert_eq!(search.map(|search| in_steps(&store, search)), whole);
                    }
                    let Ok(topic) = query.topic() else {
                        prop_assert!(store.find(owner, &query).is_err() && store.exact(owner, &query).is_err());
                        continue;
                    };
                    prop_assert_eq!(sorted(store.find(owner, &query).unwrap()), model.find(owner, &query));
                    prop_assert_eq!(
                        sorted(store.exact(owner, &query).unwrap()),
                        model.select(owner, |record| record.topic().unwrap() == topic)
                    );
                }
            }
            prop_assert_eq!(store.len(), model.0.len());
            prop_assert_eq!(store.expiring.len(), store.len());
            let frames = model.0.iter().map(|(_, record)| record.encode().len()).sum::<usize>();
            let counted: usize = OwnerType::ALL.into_iter().map(|owner| store.frame_bytes(owner)).sum();
            prop_assert_eq!(counted, frames);
            prop_assert!(store.memory() >= frames);
        }
        // The memory depends on the content only, not on earlier content or the order of registration.
        let new = || Store::new(usize::MAX, Some(Duration::from_secs(1)));
        let (mut first, mut other) = (new(), new());
        for (owner, record) in model.0.iter().rev() {
            first.register(*owner, record, Duration::ZERO).unwrap();
            let exactly = first.memory();
            other.memory_limit = exactly - 1;
            prop_assert_eq!(other.reserve(*owner, record), Err(Refused::Memory(exactly - 1)));
            other.memory_limit = exactly;
            prop_assert_eq!(other.register(*owner, record, Duration::ZERO), Ok(true));
        }
        prop_assert_eq!(other.memory(), store.memory());
        // No index keeps an entry.
        store.expire(Duration::from_secs(1));
        prop_assert!(store.is_empty() && store.expiring.is_empty());
        prop_assert_eq!(store.memory(), 0);
        for table in [&store.publishers, &store.subscribers] {
            prop_assert!(table.topics.is_empty() && table.domains.is_empty() && table.by_host.0.is_empty());
            prop_assert!(table.by_subject.0.is_empty() && table.by_types.0.is_empty());
        }
    }
}

#[test]
fn what_is_not_renewed_expires() {
    let seconds = Duration::from_secs;
    let mut store = Store::new(usize::MAX, Some(seconds(10)));
    let (first, second) =
        (registration("n", "h", 1, ["a", "b", "c"]), registration("m", "h", 1, ["a", "b", "c"]));
    for record in [&first, &second] {
        assert_eq!(store.register(OwnerType::Publisher, record, seconds(0)), Ok(true));
    }
    assert_eq!(store.register(OwnerType::Publisher, &first, seconds(6)), Ok(false));
    assert_eq!(store.next_expiry(), Some(seconds(10)));
    assert_eq!(store.expire(seconds(9)), 0);
    assert_eq!(store.expire(seconds(10)), 1);
    assert_eq!(store.all(OwnerType::Publisher), [first.encode()]);
    assert_eq!(store.next_expiry(), Some(seconds(16)));
    assert_eq!(store.expire(seconds(20)), 1);
    assert_eq!(store.next_expiry(), None);
}

#[test]
fn limits_are_kept() {
    let mut store = Store::new(1, None);
    let of = |port| registration("n", "h", port, ["a", "b", "c"]);
    assert_eq!(store.register(OwnerType::Publisher, &of(1), Duration::ZERO), Ok(true));
    assert_eq!(store.register(OwnerType::Publisher, &of(1), Duration::ZERO), Ok(false));
    assert_eq!(store.register(OwnerType::Publisher, &of(2), Duration::ZERO), Err(Refused::Full(1)));

    let mut store = Store::new(usize::MAX, None);
    let last = VARIANTS_MAX as u16 + 1;
    for port in 1..last {
        assert_eq!(store.register(OwnerType::Publisher, &of(port), Duration::ZERO), Ok(true));
    }
    assert_eq!(store.register(OwnerType::Publisher, &of(last), Duration::ZERO), Err(Refused::Variants));
    assert_eq!(store.remove(OwnerType::Publisher, &of(9)), Ok(VARIANTS_MAX));
    assert!(store.is_empty());
}

#[test]
fn room_is_kept_for_those_that_are_on_their_way() {
    let owner = OwnerType::Publisher;
    let of = |name: &str| registration(name, "h", 1, ["a", "b", "c"]);
    let mut store = Store::new(3, None);
    store.register(owner, &of("one"), Duration::ZERO).unwrap();
    let coming = ["two", "three"].map(|name| (name, store.reserve(owner, &of(name)).unwrap()));
    assert_eq!(store.reserve(owner, &of("four")), Err(Refused::Full(3)));
    assert_eq!(store.register(owner, &of("four"), Duration::ZERO), Err(Refused::Full(3)));
    // The existing registration may be removed before it is registered again. No other registration may take
    // its place.
    let again = store.reserve(owner, &of("one")).unwrap();
    store.remove(owner, &of("one")).unwrap();
    assert_eq!(store.reserve(owner, &of("four")), Err(Refused::Full(3)));
    for (name, reserved) in coming.into_iter().chain([("one", again)]) {
        assert_eq!(store.admit(owner, &of(name), reserved, Duration::ZERO), Ok(true));
    }
    assert_eq!((store.len(), store.is_above_its_limits()), (3, false));
    store.remove(owner, &of("one")).unwrap();
    let four = store.reserve(owner, &of("four")).unwrap();
    assert_eq!(store.reserve(owner, &of("five")), Err(Refused::Full(3)));
    store.release(owner, &of("four"), four);
    assert_eq!(store.register(owner, &of("five"), Duration::ZERO), Ok(true));
    assert!(store.reserved == Reserved::default() && store.reserved_variants.is_empty());
}

#[test]
fn variants_on_their_way_count() {
    let owner = OwnerType::Publisher;
    let of = |port| registration("n", "h", port, ["a", "b", "c"]);
    let mut store = Store::new(usize::MAX, None);
    store.register(owner, &of(1), Duration::ZERO).unwrap();
    for port in 2..=VARIANTS_MAX as u16 {
        store.reserve(owner, &of(port)).unwrap();
    }
    assert_eq!(store.reserve(owner, &of(9_999)), Err(Refused::Variants));
    assert!(store.reserve(owner, &registration("other", "h", 1, ["a", "b", "c"])).is_ok());
}

/// The reserved room is enough for all registrations, however many are in progress at the same time.
#[test]
fn the_memory_that_is_kept_is_enough() {
    let owner = OwnerType::Publisher;
    for spread in [1, 7, 100_000] {
        let of = |number: usize| {
            let parts = [number % spread, number % (2 * spread), number % (3 * spread)]
                .map(|part| format!("{part:05}"));
            let [domain, subject, types] = parts.each_ref().map(String::as_str);
            registration(&number.to_string(), &format!("h{}", number % spread), 1, [domain, subject, types])
        };
        let mut store = Store::new(usize::MAX, Some(Duration::from_secs(1)));
        for number in 0..10 {
            store.register(owner, &of(number), Duration::ZERO).unwrap();
        }
        let before = store.memory();
        let coming: Vec<_> = (10..4_000).map(|number| store.reserve(owner, &of(number)).unwrap()).collect();
        let kept = store.reserved.bytes;
        for (number, reserved) in (10..).zip(coming) {
            store.admit(owner, &of(number), reserved, Duration::ZERO).unwrap();
        }
        let taken = store.memory() - before;
        assert!(taken <= kept, "{taken} of {kept}");
    }
}

/// Limits that are lower than they were when the registrar wrote its files do not remove registrations from
/// these files.
#[test]
fn what_was_in_the_store_before_stays_above_the_limits() {
    let of = |name: &str| registration(name, "h", 1, ["a", "b", "c"]);
    let owner = OwnerType::Subscriber;
    let mut store = Store::new(1, None);
    for name in ["one", "two"] {
        assert_eq!(store.admit(owner, &of(name), Reserved::default(), Duration::ZERO), Ok(true));
    }
    assert!(store.is_above_its_limits());
    assert_eq!(store.register(owner, &of("two"), Duration::ZERO), Ok(false));
    assert_eq!(store.register(owner, &of("three"), Duration::ZERO), Err(Refused::Full(1)));
}

/// One name of a host may have many registrations.
#[test]
fn no_more_are_removed_at_once_than_may_be() {
    let owner = OwnerType::Publisher;
    let mut store = Store::new(usize::MAX, None);
    for (name, port) in ["a", "b", "c"].into_iter().flat_map(|name| (1..=100).map(move |port| (name, port))) {
        store.register(owner, &registration(name, "h", port, ["a", "b", "c"]), Duration::ZERO).unwrap();
    }
    let removed: Vec<_> = (0..4).map(|_| store.remove_some_of_host("h", 90)).collect();
    assert_eq!((removed, store.len(), store.has_of_host("h")), (vec![90, 90, 90, 30], 0, false));
}

#[test]
fn memory_is_limited() {
    let of = |name: &str| registration(name, "h", 1, ["a", "b", "c"]);
    let mut store = Store::new(usize::MAX, None);
    store.register(OwnerType::Publisher, &of("one"), Duration::ZERO).unwrap();
    let limit = 2 * store.memory();
    let mut store = Store::new(usize::MAX, None).with_memory_limit(limit);
    for name in ["one", "two"] {
        assert_eq!(store.register(OwnerType::Publisher, &of(name), Duration::ZERO), Ok(true));
    }
    assert_eq!(store.register(OwnerType::Publisher, &of("two"), Duration::ZERO), Ok(false));
    let refused = store.register(OwnerType::Subscriber, &of("six"), Duration::ZERO).unwrap_err();
    assert_eq!(refused, Refused::Memory(limit));
    let text = refused.to_string();
    assert!(text.contains(&limit.to_string()) && text.contains("max_registration_memory_mib"), "{text}");
    store.remove(OwnerType::Publisher, &of("one")).unwrap();
    assert_eq!(store.register(OwnerType::Subscriber, &of("six"), Duration::ZERO), Ok(true));
}

#[test]
fn a_search_goes_on_while_the_store_changes() {
    let of =
        |number: usize| registration(&format!("n{number}"), "h", 1, ["a", &format!("s{}", number / 7), "c"]);
    let mut store = Store::new(usize::MAX, None);
    for number in 0..100 {
        store.register(OwnerType::Publisher, &of(number), Duration::ZERO).unwrap();
    }
    let mut search = store.search_all(OwnerType::Publisher);
    let mut found = Vec::new();
    // Every third registration is removed: before the search reaches it, or after it was found.
    for number in (0..100).step_by(3) {
        assert!(!store.advance(&mut search, 2, |frame| found.push(frame.clone())));
        store.remove(OwnerType::Publisher, &of(number)).unwrap();
    }
    while !store.advance(&mut search, 2, |frame| found.push(frame.clone())) {}
    for number in (0..100).filter(|number| number % 3 != 0) {
        let times = found.iter().filter(|frame| **frame == of(number).encode()).count();
        assert_eq!(times, 1, "{number}");
    }
}
