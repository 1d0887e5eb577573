//! What publishers are told, and whom the task looks at.

use std::collections::BTreeSet;

use proptest::prelude::*;
use xmsg_zmq::HighWaterMark;
use xmsg_zmq::link::outbox::{Outbox, Writer};

use super::*;
use crate::policy::{Policies, Policy, Rule};
use crate::security::{Authority, Rights, Rules};
use crate::switch::peers::Grant;

fn table() -> TableTask {
    let rule = Rule { policy: Policy::BLOCK, mark: HighWaterMark::bytes(1 << 20) };
    Table::new(Upstream::Subscribed, Policies::new(rule, &[]), MemoryBudget::default()).1
}

/// Whoever may publish topics with these prefixes.
fn may_publish(publish: &[&'static str]) -> Rules {
    let publish = publish.iter().map(|prefix| Bytes::from_static(prefix.as_bytes())).collect();
    Rules { anonymous: Arc::new(Rights { publish, ..Rights::default() }), ..Rules::default() }
}

/// What is left of all that a publisher was told, as its library keeps it: a set.
fn kept(publisher: &Publisher) -> BTreeSet<Bytes> {
    publisher.outbox.close();
    let mut wire = Vec::new();
    let written = Writer::new(&publisher.outbox).run(&mut wire).now_or_never();
    written.expect("the vector takes everything").unwrap();
    let (mut kept, mut rest) = (BTreeSet::new(), Bytes::from(wire));
    // Short messages of ZMTP 3.0: flags, length, whether it is a subscription, and the prefix.
    while !rest.is_empty() {
        let message = rest.split_to(2 + usize::from(rest[1]));
        let prefix = message.slice(3..);
        if message[2] == 1 {
            kept.insert(prefix)
        } else {
            kept.remove(&prefix)
        };
    }
    kept
}

#[derive(Clone, Debug)]
enum Step {
    Change(bool, u32, &'static str),
    Gone(u32),
    Join(usize),
    Rights(usize, usize),
}

const PUBLISH: [&[&str]; 8] =
    [&[""], &[], &["a"], &["ab"], &["b", "aa"], &["a", "ab", "b"], &["xmsg:"], &["xmsg:control", "a"]];

fn step() -> impl Strategy<Value = Step> {
    let prefix = prop::sample::select(vec!["", "a", "b", "aa", "ab", "aba", "abb", "xmsg:control", "xmsg:c"]);
    prop_oneof![
        8 => (any::<bool>(), 1..4_u32, prefix).prop_map(|(subscribe, id, prefix)| Step::Change(subscribe, id, prefix)),
        1 => (1..4_u32).prop_map(Step::Gone),
        2 => (0..PUBLISH.len()).prop_map(Step::Join),
        2 => (0..4_usize, 0..PUBLISH.len()).prop_map(|(which, rights)| Step::Rights(which, rights)),
    ]
}

proptest! {
    #[test]
    fn publishers_are_told_what_concerns_what_they_may_publish(steps in prop::collection::vec(step(), 1..60)) {
        let mut task = table();
        let mut subscribers = BTreeMap::new();
        let mut wanted = BTreeSet::new();
        let mut publishers = Vec::new();
        for step in steps {
            let mut changes = Vec::new();
            match step {
                Step::Change(subscribe, id, prefix) => {
                    let new = || {
                        let outbox = Outbox::new(HighWaterMark::bytes(1 << 20));
                        Arc::new(Subscriber::new(id, "a subscriber", outbox, Grant::new(&Arc::default(), None)))
                    };
                    let subscriber = subscribers.entry(id).or_insert_with(new).clone();
                    let bytes = Bytes::from_static(prefix.as_bytes());
                    if subscribe {
                        wanted.insert((id, bytes.clone()));
                        changes.push(Change::Subscribe(subscriber, bytes));
                    } else {
                        wanted.remove(&(id, bytes.clone()));
                        changes.push(Change::Cancel(subscriber, bytes));
                    }
                }
                Step::Gone(id) => {
                    subscribers.remove(&id);
                    wanted.retain(|(other, _)| *other != id);
                    changes.push(Change::SubscriberGone(id));
                }
                Step::Join(rights) => {
                    let authority = Arc::new(Authority::new(may_publish(PUBLISH[rights])));
                    let id = publishers.len() as u32 + 1;
                    let publisher = Arc::new(Publisher::of_test_with(id, &authority, Version::V3_0));
                    publishers.push((publisher.clone(), authority, PUBLISH[rights]));
                    changes.push(Change::PublisherJoined(publisher));
                }
                Step::Rights(which, rights) => {
                    let Some((_, authority, publish)) = publishers.get_mut(which) else { continue };
                    *publish = PUBLISH[rights];
                    authority.replace(may_publish(publish));
                    changes.push(Change::Enforce);
                }
            }
            task.apply(&mut changes);
            while !task.jobs.is_empty() {
                task.work();
            }
        }
        let numbers: BTreeSet<u32> = task.publishers.values().map(|told| told.audience).collect();
        prop_assert_eq!(&numbers, &task.audiences.keys().copied().collect());
        let prefixes: BTreeSet<&Bytes> = wanted.iter().map(|(_, prefix)| prefix).collect();
        for (publisher, _, publish) in &publishers {
            let mut expected: BTreeSet<Bytes> = [Bytes::from_static(CONTROL_TOPIC)].into();
            for prefix in &prefixes {
                for own in publish.iter().map(|own| Bytes::from_static(own.as_bytes())) {
                    let is_least = !publish.iter().any(|other| own.starts_with(other.as_bytes()) && own != other.as_bytes());
                    if prefix.starts_with(&own) {
                        expected.insert((*prefix).clone());
                    } else if own.starts_with(prefix) && is_least {
                        expected.insert(own);
                    }
                }
            }
            prop_assert_eq!(kept(publisher), expected, "{:?}", publish);
        }
        for (publisher, ..) in &publishers {
            task.farewell(publisher.id);
        }
        prop_assert!(task.audiences.is_empty());
    }
}

/// Nobody looks at thousands of publishers, again and again, for the few that do not read.
#[tokio::test(start_paused = true)]
async fn only_publishers_for_which_much_waits_are_looked_at() {
    const PUBLISHERS: u32 = 3_000;
    let mut task = table();
    for id in 0..PUBLISHERS {
        task.welcome(Arc::new(Publisher::of_test(id, "a publisher")));
    }
    let tell = |task: &mut TableTask, len: usize| {
        let mut routes = task.table.routes_mut();
        let mut own = Own::default();
        let prefix = Bytes::from(vec![7; len]);
        let mut seat = Seat { table: &mut routes.prefixes, number: 1 };
        let id = own.subscribe(&mut seat, &prefix).first.expect("it is the first");
        own.cancel(&mut seat, &prefix, &mut Vec::new());
        drop(routes);
        task.tell(&[Tiding { subscribe: true, prefix, id }]);
    };
    tell(&mut task, 1_000);
    assert_eq!(task.backlog.publishers.len(), 0, "little waits");
    // All but two have read what they were told.
    for _ in 0..40 {
        tell(&mut task, 4_000);
        for told in task.publishers.values().skip(2) {
            told.publisher.outbox.clear();
        }
    }
    assert_eq!(task.backlog.publishers.keys().collect::<Vec<_>>(), [&0, &1]);
    assert!(task.backlog.is_there());
    // They read it, too; that is seen at the next look.
    for told in task.publishers.values() {
        told.publisher.outbox.clear();
    }
    assert!(task.backlog.is_there(), "there has just been a look");
    tokio::time::sleep(task.backlog.pace()).await;
    assert!(!task.backlog.is_there() && task.backlog.publishers.is_empty());

    // Whoever does not read is given up after a while, and is not looked at either.
    for _ in 0..40 {
        tell(&mut task, 4_000);
    }
    assert_eq!(task.backlog.publishers.len(), PUBLISHERS as usize);
    assert!(task.backlog.is_there());
    assert!(task.backlog.pace() >= Duration::from_millis(5), "the more there are, the rarer are looks");
    task.farewell(7);
    assert_eq!(task.backlog.publishers.len(), PUBLISHERS as usize - 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!task.backlog.is_there() && task.backlog.publishers.is_empty());
}
