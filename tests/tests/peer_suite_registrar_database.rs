//! Tests from the test suites of the other implementations about the registrar's database: Java and Python
//! `xMsgRegDatabaseTest`, and the tests of whole registrars: Java `xMsgRegistrarTest`, C++ `registrar_test`,
//! Python `test_xMsgRegService`.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::registration::{Action, Argument, OwnerType, Query, Registration, Request};
use xmsg_core::{ProxyAddress, Topic};
use xmsg_proxy::registrar::Registrar;
use xmsg_proxy::registrar::store::Store;
use xmsg_tests::{PATIENCE, within};
use xmsg_zmq::{Endpoint, Multipart, Requester, SocketOptions};

use OwnerType::{Publisher, Subscriber};

/// The name, the host and the topic of a registration.
type Record = (&'static str, &'static str, &'static str);

const ADA_1: Record = ("ada", "host1", "music:jazz:trio");
const ADA_2: Record = ("ada", "host2", "music:jazz:trio");
const BEN_1: Record = ("ben", "host1", "music:jazz:trio");
const BEN_2: Record = ("ben", "host2", "music:jazz:trio");
const CLEO_1: Record = ("cleo", "host1", "music:folk");
const CLEO_2: Record = ("cleo", "host2", "music:folk");
const DAN_2: Record = ("dan", "host2", "film");
const EVE_1: Record = ("eve", "host1", "music:folk:songs");
const ALL: [Record; 8] = [ADA_1, ADA_2, BEN_1, BEN_2, CLEO_1, CLEO_2, DAN_2, EVE_1];

fn registration(owner: OwnerType, (name, host, topic): Record) -> Registration {
    let proxy = ProxyAddress::new(host, 7771).unwrap();
    Registration::new(owner, name, &topic.parse().unwrap(), &proxy)
}

/// A database that contains the same registrations as publishers and as subscribers.
struct Database(Store);

impl Database {
    fn of(records: &[Record]) -> Self {
        let mut database = Self(Store::new(usize::MAX, None));
        for record in records {
            database.register(*record);
        }
        database
    }

    fn register(&mut self, record: Record) {
        for owner in OwnerType::ALL {
            self.0.register(owner, &registration(owner, record), Duration::ZERO).unwrap();
        }
    }

    fn remove(&mut self, record: Record) {
        for owner in OwnerType::ALL {
            self.0.remove(owner, &registration(owner, record)).unwrap();
        }
    }

    /// Returns the registered topics.
    fn topics(&self) -> Vec<String> {
        let topics = |owner| -> BTreeSet<_> {
            let frames = self.0.all(owner);
            frames
                .iter()
                .map(|frame| Registration::decode(frame).unwrap().topic().unwrap().to_string())
                .collect()
        };
        assert_eq!(topics(Publisher), topics(Subscriber));
        topics(Publisher).into_iter().collect()
    }

    #[track_caller]
    fn has(&self, topic: &str, records: &[Record]) {
        for owner in OwnerType::ALL {
            let asked = asked(&Query::topic(owner, &topic.parse().unwrap()));
            same(owner, &self.0.exact(owner, &asked).unwrap(), records);
        }
    }

    #[track_caller]
    fn finds(&self, owner: OwnerType, topic: &str, records: &[Record]) {
        let asked = asked(&Query::topic(owner, &topic.parse().unwrap()));
        same(owner, &self.0.find(owner, &asked).unwrap(), records);
    }

    #[track_caller]
    fn filters(&self, query: impl Fn(Query) -> Query, records: &[Record]) {
        for owner in OwnerType::ALL {
            same(owner, &self.0.filter(owner, &asked(&query(Query::any(owner)))), records);
        }
    }
}

/// Returns a query in the form that the database gets.
fn asked(query: &Query) -> Registration {
    match Request::discover("me", Action::Find, query).argument {
        Argument::Registration(registration) => registration,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn same(owner: OwnerType, frames: &[Bytes], records: &[Record]) {
    let sorted = |mut frames: Vec<Bytes>| {
        frames.sort();
        frames
    };
    let expected = records.iter().map(|record| registration(owner, *record).encode()).collect();
    assert_eq!(sorted(frames.to_vec()), sorted(expected));
}

fn parts(domain: &'static str, subject: &'static str, types: &'static str) -> impl Fn(Query) -> Query {
    move |query| Query::parts(query.owner(), domain, subject, types)
}

/// Corresponds to Java `newRegistrationDatabaseIsEmpty`, Python `test_empty_db`.
#[test]
fn a_new_database_is_empty() {
    assert!(Database::of(&[]).topics().is_empty());
}

/// Corresponds to Java `addFirstRegistrationOfFirstTopicCreatesTopic`, Python
/// `test_register_first_topic_creates_first_topic`.
#[test]
fn the_first_registration_makes_the_topic() {
    let database = Database::of(&[ADA_1]);
    assert_eq!(database.topics(), ["music:jazz:trio"]);
    database.has("music:jazz:trio", &[ADA_1]);
}

/// Corresponds to Java `addNextRegistrationOfFirstTopic`, Python `test_add_next_registration_of_first_topic`.
#[test]
fn a_topic_takes_more_registrations() {
    Database::of(&[CLEO_1, CLEO_2]).has("music:folk", &[CLEO_1, CLEO_2]);
}

/// Corresponds to Java `addFirstRegistrationOfNewTopic`, `addNextRegistrationOfNewTopic`; Python
/// `test_add_first_registration_new_topic`.
#[test]
fn each_topic_keeps_its_own_registrations() {
    let database = Database::of(&[ADA_1, BEN_1, CLEO_1, CLEO_2, EVE_1]);
    assert_eq!(database.topics(), ["music:folk", "music:folk:songs", "music:jazz:trio"]);
    database.has("music:jazz:trio", &[ADA_1, BEN_1]);
    database.has("music:folk", &[CLEO_1, CLEO_2]);
    database.has("music:folk:songs", &[EVE_1]);
}

/// Corresponds to Java `addDuplicatedRegistrationDoesNothing`, Python
/// `add_duplicated_registration_does_nothing`.
#[test]
fn the_same_registration_twice_is_one() {
    Database::of(&[ADA_1, BEN_1, BEN_1]).has("music:jazz:trio", &[ADA_1, BEN_1]);
}

/// Corresponds to Java `removeRegistrationFromOnlyTopicWithOneElement`, `removeLastRegistrationByData`;
/// Python `test_remove_register_with_only_topic_db_one_element`.
#[test]
fn removing_the_last_registration_removes_the_topic() {
    let mut database = Database::of(&[ADA_1]);
    database.remove(ADA_1);
    database.finds(Publisher, "music:jazz:trio", &[]);
    assert!(database.topics().is_empty());
}

/// Corresponds to Java `removeRegistrationFromOnlyTopicWithSeveralElements`, Python
/// `test_remove_register_with_only_topic_with_several_element`.
#[test]
fn removing_takes_name_and_host_into_account() {
    let mut database = Database::of(&[ADA_1, ADA_2, BEN_1]);
    database.remove(ADA_2);
    database.finds(Publisher, "music:jazz:trio", &[ADA_1, BEN_1]);
}

/// Corresponds to Java `removeRegistrationFromTopicWithOneElement`,
/// `removeRegistrationFromTopicWithSeveralElements`; Python
/// `test_remove_register_with_topic_with_one_element`, `test_remove_register_with_topic_db_several_element`.
#[test]
fn removing_leaves_other_topics_alone() {
    let mut database = Database::of(&[ADA_1, ADA_2, BEN_1, CLEO_1, CLEO_2]);
    database.remove(BEN_1);
    database.has("music:jazz:trio", &[ADA_1, ADA_2]);
    database.has("music:folk", &[CLEO_1, CLEO_2]);
    database.remove(ADA_1);
    database.remove(ADA_2);
    assert_eq!(database.topics(), ["music:folk"]);
    database.has("music:folk", &[CLEO_1, CLEO_2]);
}

/// Corresponds to Java `removeMissingRegistrationDoesNothing`, Python
/// `test_remove_missing_registration_does_nothing`.
#[test]
fn removing_what_is_not_there_does_nothing() {
    let mut database = Database::of(&[ADA_1, ADA_2]);
    database.remove(BEN_1);
    database.remove(CLEO_1);
    database.has("music:jazz:trio", &[ADA_1, ADA_2]);
}

/// Corresponds to Java `removeRegistrationByHost`, `removeLastRegistrationByHost`; Python
/// `test_remove_by_host`.
#[test]
fn a_host_is_removed_from_all_topics() {
    let mut database = Database::of(&ALL);
    database.0.remove_host("host2");
    assert_eq!(database.topics(), ["music:folk", "music:folk:songs", "music:jazz:trio"]);
    database.has("music:jazz:trio", &[ADA_1, BEN_1]);
    database.has("music:folk", &[CLEO_1]);
    database.has("music:folk:songs", &[EVE_1]);
    database.0.remove_host("host1");
    assert!(database.topics().is_empty());
}

/// Corresponds to Java `findByDomain`, `findByDomainAndSubject`, `findByFullTopic`,
/// `findUnregisteredTopicReturnsEmpty`; Python `test_get_by_domain`, `test_get_by_domain_and_subject`,
/// `test_find_set_by_topic`, `test_find_unregistered_topic_returns_none`.
#[test]
fn publishers_are_found_below_the_topic() {
    let database = Database::of(&[ADA_1, BEN_2, CLEO_1, CLEO_2, DAN_2, EVE_1]);
    database.finds(Publisher, "music", &[ADA_1, BEN_2, CLEO_1, CLEO_2, EVE_1]);
    database.finds(Publisher, "film", &[DAN_2]);
    database.finds(Publisher, "music:folk", &[CLEO_1, CLEO_2, EVE_1]);
    database.finds(Publisher, "film:drama", &[]);
    database.finds(Publisher, "music:jazz:trio", &[ADA_1, BEN_2]);
    database.finds(Publisher, "film:drama:short", &[]);
    database.finds(Publisher, "music:folk:trio", &[]);
}

/// Corresponds to Java `reverseFindByDomain`, `reverseFindByDomainAndSubject`, `reverseFindByFullTopic`,
/// `reverseFindUnregisteredTopicReturnsEmpty`.
#[test]
fn subscribers_are_found_above_the_topic() {
    let database = Database::of(&[ADA_1, BEN_2, CLEO_1, CLEO_2, DAN_2, EVE_1]);
    database.finds(Subscriber, "music", &[]);
    database.finds(Subscriber, "film", &[DAN_2]);
    database.finds(Subscriber, "music:folk", &[CLEO_1, CLEO_2]);
    database.finds(Subscriber, "film:drama", &[DAN_2]);
    database.finds(Subscriber, "music:folk:songs", &[CLEO_1, CLEO_2, EVE_1]);
    database.finds(Subscriber, "film:drama:short", &[DAN_2]);
    database.finds(Subscriber, "music:jazz:duo", &[]);
}

/// Corresponds to Java `filterByDomain`, `filterBySubject`, `filterByType`, `filterByAddress`,
/// `filterUnregisteredTopicReturnsEmpty`.
#[test]
fn a_filter_compares_part_by_part() {
    let database = Database::of(&ALL);
    let music = [ADA_1, ADA_2, BEN_1, BEN_2, CLEO_1, CLEO_2, EVE_1];
    database.filters(parts("music", "*", "*"), &music);
    database.filters(parts("*", "folk", "*"), &[CLEO_1, CLEO_2, EVE_1]);
    database.filters(parts("*", "*", "trio"), &[ADA_1, ADA_2, BEN_1, BEN_2]);
    database.filters(|query| query.host("host2"), &[ADA_2, BEN_2, CLEO_2, DAN_2]);
    database.filters(|query| parts("music", "folk", "*")(query).host("host1"), &[CLEO_1, EVE_1]);
    database.filters(|query| query.port(7772), &[]);
    database.filters(parts("mus", "*", "*"), &[]);
    database.filters(parts("theatre", "*", "*"), &[]);
}

/// Corresponds to Java `getSame`.
#[test]
fn the_same_topic_is_neither_above_nor_below() {
    Database::of(&ALL).has("music:folk", &[CLEO_1, CLEO_2]);
}

/// Corresponds to Java `getAll`.
#[test]
fn all_are_all() {
    let database = Database::of(&ALL);
    for owner in OwnerType::ALL {
        same(owner, &database.0.all(owner), &ALL);
    }
    database.filters(|query| query, &ALL);
}

async fn start() -> (Registrar, xmsg_core::Registrar) {
    xmsg_tests::start_tracing();
    let registrar = Registrar::bind("127.0.0.1:0").start().await.unwrap();
    let client = xmsg_core::Registrar::builder(registrar.address().clone())
        .registration_timeout(PATIENCE)
        .discovery_timeout(PATIENCE)
        .renewal_interval(None)
        .build()
        .unwrap();
    (registrar, client)
}

/// Corresponds to Python `test_register_publisher`, `test_register_subscriber`, `test_remove_publisher`,
/// `test_remove_subscriber`, `test_remove_all_regs`, `test_find_publisher`, `test_find_subscriber`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_says_success_to_every_request() {
    let (registrar, _client) = start().await;
    let address = registrar.address();
    let requester =
        Requester::connecting_to(Endpoint::tcp(address.host(), address.port()), SocketOptions::default());
    for owner in OwnerType::ALL {
        let record = registration(owner, ADA_1).encode();
        let (register, find, remove) = (Action::Register(owner), Action::Find(owner), Action::Remove(owner));
        let cases = [
            (register, record.clone(), 0),
            (find, record.clone(), 1),
            (remove, record.clone(), 0),
            (find, record.clone(), 0),
            (remove, record.clone(), 0),
            (register, record.clone(), 0),
            (Action::RemoveAll, "host1".into(), 0),
            (find, record, 0),
        ];
        for (action, data, found) in cases {
            let request: Multipart = [action.name().into(), "sender".into(), data].into_iter().collect();
            let reply = requester.request(request, PATIENCE).await.unwrap();
            assert_eq!(reply.frames()[..3], [action.name(), "127.0.0.1:registrar", "success"], "{action}");
            assert_eq!(reply.frames().len(), 3 + found, "{action}");
        }
    }
}

/// A generator of pseudo-random numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

const TOPICS: [&str; 10] = [
    "music",
    "music:jazz",
    "music:jazz:trio",
    "music:folk:trio",
    "music:folk:songs",
    "film",
    "film:drama",
    "film:drama:short",
    "film:comedy:short",
    "film:comedy:long",
];
const HOSTS: [&str; 8] = ["host1", "host2", "host3", "host4", "host5", "host6", "host7", "host8"];

/// A registrar and what it should contain, as a plain set.
struct Model {
    dice: Dice,
    client: xmsg_core::Registrar,
    known: Vec<Registration>,
}

impl Model {
    async fn add(&mut self, count: usize) {
        for _ in 0..count {
            let name = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"][self.dice.below(12)];
            let record = (name, HOSTS[self.dice.below(8)], TOPICS[self.dice.below(10)]);
            let registration = registration(OwnerType::ALL[self.dice.below(2)], record);
            self.client.register(&registration).await.unwrap();
            if !self.known.contains(&registration) {
                self.known.push(registration);
            }
        }
    }

    async fn remove(&mut self, count: usize) {
        for _ in 0..count {
            let registration = self.known.swap_remove(self.dice.below(self.known.len()));
            self.client.deregister(&registration).await.unwrap();
        }
    }

    async fn remove_host(&mut self, host: &str) {
        self.known.retain(|registration| registration.host != host);
        self.client.remove_all(host).await.unwrap();
    }

    fn expect(
        &self,
        owner: OwnerType,
        found: Vec<Registration>,
        fits: impl Fn(&Registration, Topic) -> bool,
    ) {
        let sorted = |registrations: Vec<Registration>| -> BTreeSet<Bytes> {
            registrations.iter().map(Registration::encode).collect()
        };
        let count = found.len();
        let known = self.known.iter().filter(|known| known.owner == Some(owner));
        let expected: Vec<_> = known.filter(|known| fits(known, known.topic().unwrap())).cloned().collect();
        assert_eq!(count, expected.len());
        assert_eq!(sorted(found), sorted(expected));
    }

    /// Checks every kind of query.
    async fn check(&self) {
        for owner in OwnerType::ALL {
            for text in TOPICS {
                let asked: Topic = text.parse().unwrap();
                let query = Query::topic(owner, &asked);
                self.expect(owner, self.client.find(&query).await.unwrap(), |_, topic| match owner {
                    Publisher => asked.is_parent(&topic),
                    Subscriber => topic.is_parent(&asked),
                });
                self.expect(owner, self.client.exact(&query).await.unwrap(), |_, topic| topic == asked);
                for (number, part) in text.split(':').enumerate() {
                    let mut parts = ["*"; 3];
                    parts[number] = part;
                    let [domain, subject, types] = parts;
                    let query = Query::parts(owner, domain, subject, types);
                    self.expect(owner, self.client.filter(&query).await.unwrap(), |_, topic| {
                        [topic.domain(), topic.subject(), topic.types()][number] == part
                    });
                }
            }
            for host in HOSTS {
                let query = Query::any(owner).host(host);
                self.expect(owner, self.client.filter(&query).await.unwrap(), |known, _| known.host == host);
            }
            self.expect(owner, self.client.all(owner).await.unwrap(), |_, _| true);
        }
    }
}

/// Corresponds to Java `xMsgRegistrarTest.testRegistrationDataBase`, C++ `registrar_test`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registrar_knows_what_a_plain_set_would_know() {
    let (registrar, client) = start().await;
    let mut model = Model { dice: Dice(2026), client, known: Vec::new() };
    let steps = async {
        model.add(1500).await;
        model.check().await;
        model.remove(400).await;
        model.check().await;
        model.add(200).await;
        let host = HOSTS[model.dice.below(8)];
        model.remove_host(host).await;
        model.check().await;
        model.add(200).await;
        model.remove(300).await;
        model.check().await;
        let counts = registrar.counts();
        assert_eq!((counts.publishers + counts.subscribers) as usize, model.known.len());
        for host in HOSTS {
            model.remove_host(host).await;
        }
        assert!(model.known.is_empty());
        model.check().await;
    };
    within("all steps", steps).await;
}
