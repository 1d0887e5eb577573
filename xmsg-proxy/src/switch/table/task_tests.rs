//! What publishers are told, and whom the task looks at.

use std::collections::BTreeSet;

use proptest::prelude::*;
use xmsg_zmq::HighWaterMark;
use xmsg_zmq::link::send_queue::{SendQueue, Writer};

use super::notifying::{NOTIFICATIONS_MAX, PUBLISHERS_AT_ONCE};
use super::*;
use crate::CONTROL_TOPIC;
use crate::policy::{Policies, Policy, Rule};
use crate::security::{Authority, Rights, Rules};
use crate::switch::authorization::Authorization;

fn table() -> TableTask {
    let rule = Rule { policy: Policy::BLOCK, mark: HighWaterMark::bytes(1 << 20) };
    Table::new(PublishersSend::Subscribed, Policies::new(rule, &[]), MemoryBudget::default()).1
}

/// Whoever may publish topics with these prefixes.
fn may_publish(publish: &[&'static str]) -> Rules {
    let publish = publish.iter().map(|prefix| Bytes::from_static(prefix.as_bytes())).collect();
    Rules { anonymous: Some(Arc::new(Rights { publish, ..Rights::default() })), ..Rules::default() }
}

/// What is left of all that a publisher was told, as its library keeps it: a set.
fn kept(publisher: &ConnectedPublisher) -> BTreeSet<Bytes> {
    publisher.send_queue.close();
    let mut wire = Vec::new();
    let written = Writer::new(&publisher.send_queue).run(&mut wire).now_or_never();
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
    RemovedPrefix(u32),
    Join(usize),
    /// Time passes.
    Work,
    Rights(usize, usize),
}

const PUBLISH: [&[&str]; 8] =
    [&[""], &[], &["a"], &["ab"], &["b", "aa"], &["a", "ab", "b"], &["xmsg:"], &["xmsg:control", "a"]];

fn step() -> impl Strategy<Value = Step> {
    let prefix = prop::sample::select(vec!["", "a", "b", "aa", "ab", "aba", "abb", "xmsg:control", "xmsg:c"]);
    prop_oneof![
        8 => (any::<bool>(), 1..4_u32, prefix).prop_map(|(subscribe, id, prefix)| Step::Change(subscribe, id, prefix)),
        1 => (1..4_u32).prop_map(Step::RemovedPrefix),
        2 => (0..PUBLISH.len()).prop_map(Step::Join),
        1 => Just(Step::Work),
        2 => (0..4_usize, 0..PUBLISH.len()).prop_map(|(which, rights)| Step::Rights(which, rights)),
    ]
}

proptest! {
    #[test]
    fn publishers_are_told_what_concerns_what_they_may_publish(
        steps in prop::collection::vec(step(), 1..60),
        are_many in any::<bool>(),
    ) {
        let mut task = table();
        if are_many {
            task.few = 0;
        }
        let mut subscribers = BTreeMap::new();
        let mut wanted = BTreeSet::new();
        let mut publishers = Vec::new();
        for step in steps {
            let mut changes = Vec::new();
            match step {
                Step::Change(subscribe, id, prefix) => {
                    let new = || {
                        let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
                        Arc::new(ConnectedSubscriber::new(id, "a subscriber", send_queue, Authorization::new(&Arc::default(), None)))
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
                Step::RemovedPrefix(id) => {
                    subscribers.remove(&id);
                    wanted.retain(|(other, _)| *other != id);
                    changes.push(Change::SubscriberGone(id));
                }
                Step::Join(rights) => {
                    let authority = Arc::new(Authority::new(may_publish(PUBLISH[rights])));
                    let id = publishers.len() as u32 + 1;
                    let publisher = Arc::new(ConnectedPublisher::of_test_with(id, &authority, Version::V3_0));
                    publishers.push((publisher.clone(), authority, PUBLISH[rights]));
                    changes.push(Change::PublisherJoined(publisher));
                }
                Step::Work => {}
                Step::Rights(which, rights) => {
                    let Some((_, authority, publish)) = publishers.get_mut(which) else { continue };
                    *publish = PUBLISH[rights];
                    authority.replace(may_publish(publish));
                    changes.push(Change::Enforce);
                }
            }
            task.apply(&mut changes);
            // News may wait, but not more than one change of rights.
            let may_wait = are_many && !matches!(step, Step::Work);
            while if may_wait { !task.jobs.is_empty() } else { !task.is_idle() } {
                task.work();
            }
        }
        while !task.is_idle() {
            task.work();
        }
        let numbers: BTreeSet<u32> = task.publishers.values().map(|notified_publishers| notified_publishers.audience).collect();
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
            task.publisher_left(publisher.id);
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
        task.publisher_joined(Arc::new(ConnectedPublisher::of_test(id, "a publisher")));
    }
    let notify = |task: &mut TableTask, len: usize| {
        let mut routes = task.table.routes_mut();
        let mut own = OwnPrefixes::default();
        let prefix = Bytes::from(vec![7; len]);
        let mut access = TableAccess { table: &mut routes.prefixes, number: 1 };
        let id = own.subscribe(&mut access, &prefix).first.expect("it is the first");
        own.cancel(&mut access, &prefix, &mut Vec::new());
        drop(routes);
        task.notify(vec![SubscriptionChange { subscribe: true, prefix, id }]);
        task.notify_all();
    };
    notify(&mut task, 1_000);
    assert_eq!(task.backlog.publishers.len(), 0, "little waits");
    // All but two have read what they were told.
    for _ in 0..40 {
        notify(&mut task, 4_000);
        for notified_publishers in task.publishers.values().skip(2) {
            notified_publishers.publisher.send_queue.clear();
        }
    }
    assert_eq!(task.backlog.publishers.keys().collect::<Vec<_>>(), [&0, &1]);
    assert!(task.backlog.is_there());
    // They read it, too; that is seen at the next look.
    for notified_publishers in task.publishers.values() {
        notified_publishers.publisher.send_queue.clear();
    }
    assert!(task.backlog.is_there(), "there has just been a look");
    tokio::time::sleep(task.backlog.pace()).await;
    assert!(!task.backlog.is_there() && task.backlog.publishers.is_empty());

    // Whoever does not read is given up after a while, and is not looked at either.
    for _ in 0..40 {
        notify(&mut task, 4_000);
    }
    assert_eq!(task.backlog.publishers.len(), PUBLISHERS as usize);
    assert!(task.backlog.is_there());
    assert!(task.backlog.pace() >= Duration::from_millis(5), "the more there are, the rarer are looks");
    task.publisher_left(7);
    assert_eq!(task.backlog.publishers.len(), PUBLISHERS as usize - 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!task.backlog.is_there() && task.backlog.publishers.is_empty());
}

/// Subscribes to these, or takes that back, as one who has a number of its own.
fn change(
    task: &mut TableTask,
    subscriber: &Arc<ConnectedSubscriber>,
    subscribe: bool,
    prefixes: &[&'static str],
) {
    let prefixes = prefixes.iter().map(|prefix| Bytes::from_static(prefix.as_bytes()));
    let change = if subscribe { Change::Subscribe } else { Change::Cancel };
    task.apply(&mut prefixes.map(|prefix| change(subscriber.clone(), prefix)).collect());
}

fn some_subscriber(id: u32) -> Arc<ConnectedSubscriber> {
    let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
    Arc::new(ConnectedSubscriber::new(
        id,
        "a subscriber",
        send_queue,
        Authorization::new(&Arc::default(), None),
    ))
}

/// Many publishers, who have read what they were told when they came.
fn many(task: &mut TableTask, count: u32) {
    for id in 0..count {
        task.publisher_joined(Arc::new(ConnectedPublisher::of_test(id, "a publisher")));
    }
    for notified_publishers in task.publishers.values() {
        notified_publishers.publisher.send_queue.clear();
    }
}

/// Publishers that have been told something.
fn notified_publishers(task: &TableTask) -> usize {
    let publishers = task.publishers.values();
    publishers
        .filter(|notified_publishers| notified_publishers.publisher.send_queue.queued().messages > 0)
        .count()
}

#[tokio::test(start_paused = true)]
async fn many_publishers_are_told_a_few_at_a_time_and_confirmed_when_all_know() {
    const PUBLISHERS: usize = 1_000;
    let mut task = table();
    many(&mut task, PUBLISHERS as u32);
    let subscriber = some_subscriber(1);
    change(&mut task, &subscriber, true, &["a", "b"]);
    assert_eq!(notified_publishers(&task), 0, "more may come");
    let (answer, mut confirmed) = oneshot::channel();
    task.apply(&mut vec![Change::Synchronize(answer)]);
    let pause = task.work().expect("there is nothing else to do");
    assert!(pause <= Duration::from_millis(5), "{pause:?}");
    tokio::time::sleep(pause).await;
    let mut slices = 0;
    while notified_publishers(&task) < PUBLISHERS {
        assert!(confirmed.try_recv().is_err(), "not before all of them know");
        let before = notified_publishers(&task);
        task.work();
        assert!(notified_publishers(&task) - before <= PUBLISHERS_AT_ONCE, "others have their turn");
        slices += 1;
    }
    assert_eq!(slices, PUBLISHERS.div_ceil(PUBLISHERS_AT_ONCE));
    assert_eq!(confirmed.try_recv().expect("all of them know").len(), PUBLISHERS);
    assert!(task.is_idle());
    // The next round comes after a rest, so that whoever changes without end leaves others most of the time.
    change(&mut task, &subscriber, true, &["c"]);
    let pause = task.work().expect("there is nothing else to do");
    assert!(pause > Duration::from_millis(20), "{pause:?}");
    let messages = |task: &TableTask| task.publishers[&0].publisher.send_queue.queued().messages;
    let before = messages(&task);
    change(&mut task, &subscriber, true, &["d"]);
    change(&mut task, &subscriber, false, &["c"]);
    tokio::time::sleep(pause).await;
    while !task.is_idle() {
        task.work();
    }
    assert_eq!(messages(&task), before + 1, "all of it at once");
}

#[tokio::test(start_paused = true)]
async fn of_what_is_taken_back_at_once_many_publishers_hear_nothing() {
    let mut task = table();
    many(&mut task, 500);
    let subscriber = some_subscriber(1);
    for _ in 0..100 {
        change(&mut task, &subscriber, true, &["a"]);
        change(&mut task, &subscriber, false, &["a"]);
    }
    assert!(task.is_idle(), "nothing is left to tell");
    // Whoever waits for that need not wait.
    change(&mut task, &subscriber, true, &["b"]);
    let (answer, mut confirmed) = oneshot::channel();
    task.apply(&mut vec![Change::Synchronize(answer)]);
    assert!(confirmed.try_recv().is_err());
    change(&mut task, &subscriber, false, &["b"]);
    assert_eq!(confirmed.try_recv().expect("all of them know").len(), 500);
    assert_eq!(notified_publishers(&task), 0);
    // One that comes meanwhile is told what is wanted then: that may not be taken back without a word.
    change(&mut task, &subscriber, true, &["c"]);
    let newcomer = Arc::new(ConnectedPublisher::of_test_with(1_000, &Arc::default(), Version::V3_0));
    task.publisher_joined(newcomer.clone());
    change(&mut task, &subscriber, false, &["c"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    while !task.is_idle() {
        task.work();
    }
    assert_eq!(kept(&newcomer), [Bytes::from_static(CONTROL_TOPIC)].into());
    assert_eq!(notified_publishers(&task), 500, "the others, too, hear of both");
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_pays_for_each_round_of_news_where_publishers_are_many() {
    let mut task = table();
    many(&mut task, 500);
    let subscriber = some_subscriber(1);
    let other = some_subscriber(2);
    let charged = |subscriber: &ConnectedSubscriber| subscriber.notified.swap(0, Ordering::Relaxed);
    for prefixes in [["a", "b"], ["c", "d"]] {
        change(&mut task, &subscriber, true, &prefixes);
        // What is wanted already is no news.
        change(&mut task, &other, true, &prefixes);
        assert_eq!((charged(&subscriber), charged(&other)), (500, 0));
        tokio::time::sleep(Duration::from_secs(1)).await;
        while !task.is_idle() {
            task.work();
        }
    }
    let mut few = table();
    many(&mut few, FEW as u32);
    let third = some_subscriber(3);
    change(&mut few, &third, true, &["a"]);
    assert_eq!((charged(&third), notified_publishers(&few)), (0, FEW), "a few are told at once");
}

/// However much changes, what waits to be told is bounded.
#[tokio::test(start_paused = true)]
async fn much_news_is_told_before_its_time() {
    let mut task = table();
    many(&mut task, 100);
    let subscriber = some_subscriber(1);
    for number in 0..1_000_u32 {
        let prefix = Bytes::from([&number.to_be_bytes()[..], &[7; 4_000]].concat());
        task.apply(&mut vec![Change::Subscribe(subscriber.clone(), prefix)]);
        assert!(task.notifications.bytes() <= NOTIFICATIONS_MAX);
    }
    assert_eq!(notified_publishers(&task), 100);
}
