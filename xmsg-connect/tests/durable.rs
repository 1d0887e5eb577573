//! Durable subscriptions with a real RabbitMQ.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use xmsg_connect::definition::{ByteSize, Definitions, DurableDefinition, FederationDefinition, Span};
use xmsg_connect::{ErrorKind, LinkState, OnDelete, Sort};
use xmsg_core::durable::protocol::{Reply, Request, TOPIC};
use xmsg_core::durable::{DurableMessage, DurableOptions, DurableSubscription, Place};
use xmsg_core::{Actor, Message};
use xmsg_tests::amqp_peer::{Action, Delivery, Peer, Received, Script, What};
use xmsg_tests::rabbitmq::Broker;
use xmsg_tests::{patient, proxy, until, within};
use xmsg_zmtp::Limits;

use common::{LIMIT, Site, answers, ask, broker, message, session};

fn durable(name: &str) -> DurableDefinition {
    let mut definition = DurableDefinition::new(name, "broker", ["orders"]);
    definition.lease = Span::seconds(1);
    definition
}

/// Makes a site with a durable subscription over this broker that has subscribed at the proxy.
async fn site(port: u16, definition: DurableDefinition) -> Site {
    let name = definition.outgoing_name();
    let definitions =
        Definitions { connections: vec![broker(port)], durables: vec![definition], ..Definitions::default() };
    let site = Site::with(definitions).await;
    probed(&site, &name).await;
    site
}

/// Waits until an outgoing connection has subscribed at the proxy.
async fn probed(site: &Site, name: &str) {
    let probing = async {
        while site.registry.outgoing(name).unwrap().link.counts.accepted == 0 {
            site.actor.publish(&message("orders", "probe")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the subscription at the proxy", probing).await;
    // Further probes may still be on their way: tests count from here.
    site.actor.flush(LIMIT).await.unwrap();
    until("all probes", || {
        let counts = site.registry.outgoing(name).unwrap().link.counts;
        let taken = counts.accepted + counts.passed_over;
        let subscribers = site.proxy.subscribers();
        subscribers.iter().all(|one| one.queued.messages == 0)
            && subscribers.iter().any(|one| (1..=taken).contains(&one.delivered.messages))
    })
    .await;
}

/// Opens a subscription that waits for messages only briefly, so that a test ends soon.
async fn open(actor: &Actor, name: &str) -> DurableSubscription {
    let options = DurableOptions { max: 100, wait: Duration::from_millis(500) };
    // Its server may still be on its way to the proxy.
    within("a durable subscription", async {
        loop {
            match DurableSubscription::open(actor, name, options).await {
                Ok(subscription) => return subscription,
                Err(error) => assert_eq!(error.kind(), xmsg_core::ErrorKind::Timeout, "{error}"),
            }
        }
    })
    .await
}

async fn publish(site: &Site, numbers: Range<usize>) {
    for number in numbers {
        site.actor.publish(&message("orders:new", &number.to_string())).await.unwrap();
    }
}

/// Returns the next message that is no probe.
async fn next(subscription: &mut DurableSubscription) -> (usize, DurableMessage) {
    loop {
        let next = within("a message", subscription.next()).await.unwrap().unwrap();
        if let Ok(number) = next.message.value::<String>().unwrap().parse() {
            return (number, next);
        }
    }
}

/// Checks that these messages come next, in this order. Returns the place of the last one.
async fn expect(subscription: &mut DurableSubscription, numbers: Range<usize>) -> Place {
    let mut place = Place::default();
    for number in numbers {
        let (found, message) = next(subscription).await;
        assert_eq!(found, number);
        place = message.place;
    }
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_acknowledged_and_what_came_meanwhile_arrives_after_the_return() {
    // Nobody vanishes here: a machine that has much else to do lets no lease run out.
    let definition = DurableDefinition { lease: Span::seconds(600), ..durable("away") };
    let site = site(Broker::shared().await.port(), definition).await;
    let mut orders = open(&site.actor, "away").await;
    assert_eq!(orders.topics(), ["orders"]);
    publish(&site, 0..50).await;
    let place = expect(&mut orders, 0..30).await;
    orders.acknowledge(place);
    expect(&mut orders, 30..40).await;
    orders.close().await.unwrap();
    publish(&site, 50..80).await;

    // The end of a session gives back what was not acknowledged.
    let mut orders = open(&site.actor, "away").await;
    let place = expect(&mut orders, 30..80).await;
    orders.acknowledge(place);
    // The server is told while the next message is waited for.
    let waiting = async {
        while site.registry.durable("away").unwrap().acknowledged < 80 {
            let _ = tokio::time::timeout(Duration::from_millis(20), orders.next()).await;
        }
    };
    within("the acknowledgement", waiting).await;
    orders.close().await.unwrap();
    let report = site.registry.durable("away").unwrap();
    assert!(report.acknowledged >= 80 && report.given_out >= 90, "{report:?}");
    // A probe that the new queue did not take at once comes last, and nobody has waited for it.
    let left = Broker::shared().await.drain("xmsg.durable.away").await;
    assert!(left.iter().all(|message| message.data.ends_with(b"probe")), "{left:?}");
    site.registry.close().await.unwrap();
}

/// The subscriber vanishes without a word, as after a `kill -9`.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_subscriber_acknowledged_before_it_vanished_does_not_come_again() {
    let site = site(Broker::shared().await.port(), durable("vanished")).await;
    let mut orders = open(&site.actor, "vanished").await;
    publish(&site, 0..20).await;
    // On a machine that has much else to do, its lease may run out before the server is told: what was not
    // acknowledged comes again then.
    let accepted = || site.registry.outgoing("durable:vanished").unwrap().link.counts.accepted;
    let acknowledging = async {
        let mut found = BTreeSet::new();
        while found.len() < 20 || site.registry.durable("vanished").unwrap().acknowledged < accepted() {
            let next = tokio::time::timeout(Duration::from_millis(20), orders.next());
            if let Ok(next) = next.await {
                let next = next.unwrap().unwrap();
                found.extend(next.message.value::<String>().unwrap().parse::<usize>());
                orders.acknowledge(next.place);
            }
        }
    };
    within("all acknowledgements", acknowledging).await;
    drop(orders);
    publish(&site, 20..30).await;
    let mut orders = open(&site.actor, "vanished").await;
    // Some go to the session that nobody uses any more, until its lease is over.
    let mut found = BTreeSet::new();
    while found.len() < 10 {
        let (number, message) = next(&mut orders).await;
        assert!((20..30).contains(&number), "{number} comes again");
        found.insert(number);
        orders.acknowledge(message.place);
    }
    orders.close().await.unwrap();
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_subscriber_that_vanished_held_goes_to_others_after_its_lease() {
    let site = site(Broker::shared().await.port(), durable("lease")).await;
    let mut first = open(&site.actor, "lease").await;
    publish(&site, 0..5).await;
    expect(&mut first, 0..5).await;
    let mut second = open(&site.actor, "lease").await;
    drop(first);
    for number in 0..5 {
        let (found, message) = next(&mut second).await;
        assert_eq!((found, message.returned), (number, 1));
        second.acknowledge(message.place);
    }
    second.close().await.unwrap();
    site.registry.close().await.unwrap();
}

/// The subscriber takes longer for all messages of an answer than its lease lasts, and less for each.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_keeps_its_session() {
    let site = site(Broker::shared().await.port(), durable("slow")).await;
    let mut orders = open(&site.actor, "slow").await;
    publish(&site, 0..12).await;
    for number in 0..12 {
        let (found, message) = next(&mut orders).await;
        assert_eq!((found, message.returned), (number, 0));
        // The work that it does with the message.
        tokio::time::sleep(Duration::from_millis(250)).await;
        orders.acknowledge(message.place);
    }
    orders.close().await.unwrap();
}

/// What the subscription and its server say to each other goes through the same proxy.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_to_everything_does_not_feed_on_itself() {
    let definition = DurableDefinition { topics: vec![String::new()], ..durable("everything") };
    let site = site(Broker::shared().await.port(), definition).await;
    let mut all = open(&site.actor, "everything").await;
    for number in 0..20 {
        publish(&site, number..number + 1).await;
        loop {
            let next = within("a message", all.next()).await.unwrap().unwrap();
            let topic = next.message.topic().to_string();
            assert!(topic.starts_with("orders"), "{topic}");
            all.acknowledge(next.place);
            if next.message.value::<String>().unwrap() == number.to_string() {
                break;
            }
        }
    }
    all.close().await.unwrap();
    let passed_over = site.registry.durable("everything").unwrap().link.counts.passed_over;
    assert!(passed_over >= 20, "{passed_over}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_subscribers_share_the_messages() {
    let site = site(Broker::shared().await.port(), durable("shared")).await;
    let other =
        Actor::builder("other").proxy(site.proxy.address().clone()).options(patient()).build().unwrap();
    let (mut one, mut two) = (open(&site.actor, "shared").await, open(&other, "shared").await);
    let mut numbers = BTreeSet::new();
    let (mut of_one, mut of_two) = (0, 0);
    publish(&site, 0..200).await;
    while numbers.len() < 200 || of_one == 0 || of_two == 0 {
        let (number, place, subscription) = tokio::select! {
            (number, message) = next(&mut one) => { of_one += 1; (number, message.place, &one) }
            (number, message) = next(&mut two) => { of_two += 1; (number, message.place, &two) }
        };
        assert!(numbers.insert(number), "{number} came twice");
        subscription.acknowledge(place);
        if numbers.len() == 200 && (of_one == 0 || of_two == 0) {
            publish(&site, 1000..1001).await;
        }
    }
    one.close().await.unwrap();
    two.close().await.unwrap();
    site.registry.close().await.unwrap();
}

/// Makes a site with a durable subscription over these peers, whose server answers.
async fn scripted(peers: &[&Peer], definition: DurableDefinition) -> Site {
    let mut nodes = broker(peers[0].port());
    nodes.uris = peers.iter().map(|peer| format!("amqp://127.0.0.1:{}", peer.port())).collect();
    let name = definition.name.clone();
    let definitions =
        Definitions { connections: vec![nodes], durables: vec![definition], ..Definitions::default() };
    let site = Site::with(definitions).await;
    answers(&site, &name).await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_keeps_nobody_from_opening_a_session() {
    let silence =
        |received: &Received| matches!(received.what, What::Greeting).then(|| vec![Action::silence()]);
    let (dead, good) =
        (Peer::start(Script::confirming().instead(silence)).await, Peer::start(Script::confirming()).await);
    let site = scripted(&[&dead, &good], durable("nodes")).await;
    // A single attempt, with the time limit of every subscriber.
    let opened = DurableSubscription::open(&site.actor, "nodes", DurableOptions::default()).await.unwrap();
    // From here on, nothing but sessions connects to the broker.
    site.until_state("durable:nodes", LinkState::Connected).await;
    let attempts = || dead.received().iter().filter(|one| matches!(one.what, What::Connected)).count();
    let before = attempts();
    let second = DurableSubscription::open(&site.actor, "nodes", DurableOptions::default()).await.unwrap();
    assert_eq!(attempts(), before, "the node that worked is tried first");
    opened.close().await.unwrap();
    second.close().await.unwrap();
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_that_the_broker_leaves_without_an_answer() {
    let mut is_first = true;
    let peer = Peer::start(Script::confirming().instead(move |received| {
        let is_consumer = matches!(received.what, What::Consume(_));
        (is_consumer && std::mem::take(&mut is_first)).then(Vec::new)
    }));
    let peer = peer.await;
    let mut definition = durable("silent");
    definition.lease = Span::seconds(60);
    let site = scripted(&[&peer], definition).await;
    let first = session(&site.actor, "silent", LIMIT).await;
    let next = |session| Request::Next { session, after: 0, ack: 0, max: 1, wait_ms: 30_000 };
    // The broker never says that there is a consumer. The session is gone before its lease is over.
    let reply = ask(&site.actor, "silent", next(first), LIMIT).await;
    assert!(matches!(reply, Reply::UnknownSession), "{reply:?}");
    peer.ended(peer.consumer(1).await.connection).await;
    until("the end of the session", || {
        let report = site.registry.durable("silent").unwrap();
        (report.sessions_lost, report.subscribers) == (1, 0)
    })
    .await;
    let second = session(&site.actor, "silent", LIMIT).await;
    let (reply, ()) = tokio::join!(ask(&site.actor, "silent", next(second), LIMIT), async {
        let mut properties = FieldTable::default();
        properties.insert("X-Xmsg-Topic".into(), AMQPValue::LongString("orders:new".into()));
        let properties = BasicProperties::default().with_headers(properties);
        let delivery = Delivery { tag: 1, properties, body: b"17".to_vec(), ..Delivery::default() };
        peer.act(peer.consumer(2).await.deliver(delivery)).await;
    });
    let Reply::Messages(items) = reply else { panic!("{reply:?}") };
    assert_eq!(items.len(), 1);
    site.registry.close().await.unwrap();
}

/// Publishes while something is changed, again and again, until that is done; then waits until everything
/// has been taken in, once.
async fn nothing_is_missed(site: &Site, name: &str, changing: impl Future<Output = ()>) {
    const AHEAD: u64 = 100;
    let accepted = || site.registry.outgoing(name).unwrap().link.counts.accepted;
    let before = accepted();
    let mut published = 0;
    {
        let publishing = async {
            loop {
                site.actor.publish(&message("orders:new", "x")).await.unwrap();
                published += 1;
                tokio::task::yield_now().await;
                // The disk may be slow: it does not have to catch up for long at the end.
                until("room", || accepted() + AHEAD > before + published).await;
            }
        };
        tokio::select! {
            () = within("the changes", changing) => {}
            () = publishing => {}
        }
    }
    // One may be on its way that is not counted.
    site.actor.publish(&message("orders:end", "end")).await.unwrap();
    site.actor.flush(LIMIT).await.unwrap();
    until("all that was published", || accepted() > before + published).await;
    assert!(accepted() <= before + published + 2, "something came twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_topics_leave_no_gap() {
    let peer = Peer::start(Script::confirming()).await;
    let site = site(peer.port(), durable("topics")).await;
    let changing = async {
        for round in 0..30 {
            let mut definition = durable("topics");
            definition.topics = vec!["orders".to_owned(), format!("more{round}")];
            site.registry.update("topics", definition).await.unwrap();
            // The change has got to the proxy once it is at work.
            tokio::task::yield_now().await;
        }
    };
    nothing_is_missed(&site, "durable:topics", changing).await;
    // The last ones count, and no others.
    let outgoing = || site.registry.outgoing("durable:topics").unwrap().link.counts.accepted;
    let before = outgoing();
    for topic in ["more28:x", "more29:x"] {
        site.actor.publish(&message(topic, "last")).await.unwrap();
    }
    until("the last topic", || outgoing() > before).await;
    site.actor.publish(&message("orders", "last")).await.unwrap();
    until("the first topic", || outgoing() > before + 1).await;
    assert_eq!(outgoing(), before + 2);
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_refused_leaves_no_gap() {
    // Nothing is confirmed, so that it can't be deleted.
    let peer = Peer::start(Script::by_hand()).await;
    let site = site(peer.port(), durable("kept")).await;
    let changing = async {
        for _ in 0..30 {
            let error = site.registry.delete(Sort::Durable, "kept", OnDelete::Refuse).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        }
    };
    nothing_is_missed(&site, "durable:kept", changing).await;
    site.registry.close().await.unwrap();
}

/// `NAME.dead` is the queue of the dead letters of `NAME`.
#[tokio::test(flavor = "multi_thread")]
async fn names_can_not_be_those_of_queues_beside_another_one() {
    let peer = Peer::start(Script::confirming()).await;
    let mut site = Site::new().await;
    site.registry.create(broker(peer.port())).await.unwrap();
    site.registry.create(durable("a")).await.unwrap();
    let mut federation = FederationDefinition::new("a.lock", "broker");
    federation.topics = vec!["orders".to_owned()];
    let refused =
        [site.registry.create(durable("a.dead")).await, site.registry.create(federation.clone()).await];
    for refused in refused {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidDefinition, "{error}");
        assert!(error.to_string().contains("choose another"), "{error}");
    }
    // One that is there from before is used as it was, and can be changed.
    let mut former = site.registry.export();
    former.durables.push(durable("b.dead"));
    former.federation = Some(federation);
    site.registry.close().await.unwrap();
    std::fs::write(site.folder.path().join("state/connect.toml"), former.to_toml().unwrap()).unwrap();
    site.restart().await;
    site.registry.set_active(Sort::Durable, "b.dead", false).await.unwrap();
    site.registry.set_active(Sort::Federation, "a.lock", false).await.unwrap();
    site.registry.close().await.unwrap();
}

/// Messages of any length wait at the broker while a session holds as many bytes as it may.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_holds_no_more_bytes_than_it_may() {
    const COUNT: u64 = 30;
    let mut definition = durable("bytes");
    definition.max_session_bytes = ByteSize::of(1 << 20);
    definition.lease = Span::seconds(60);
    let rabbit = Broker::shared().await;
    let site = site(rabbit.port(), definition).await;
    // The probes are done with.
    let mut probes = open(&site.actor, "bytes").await;
    publish(&site, 0..1).await;
    let place = expect(&mut probes, 0..1).await;
    probes.acknowledge(place);
    probes.close().await.unwrap();
    // Each is longer than the session may hold.
    let long = "x".repeat(2 << 20);
    for _ in 0..COUNT {
        site.actor.publish(&message("orders:new", &long)).await.unwrap();
    }
    rabbit.queue_reaches("xmsg.durable.bytes", COUNT).await;
    let session = session(&site.actor, "bytes", LIMIT).await;
    let next = async |after, ack| {
        let request = Request::Next { session: session.clone(), after, ack, max: 100, wait_ms: 500 };
        match ask(&site.actor, "bytes", request, LIMIT).await {
            Reply::Messages(items) => items,
            other => panic!("{other:?}"),
        }
    };
    // The broker sends more messages than there is room for: nobody knew how long they would be.
    let (mut after, mut acked, mut most, mut received) = (0, 0, 0, 0);
    loop {
        let items = next(after, acked).await;
        if let Some(last) = items.last() {
            received += items.len() as u64;
            after = last.number;
            most = most.max(after - acked);
        } else if acked < after {
            // All that it may hold has come: it goes on once that is acknowledged.
            acked = after;
        } else if received >= COUNT && rabbit.queue_len("xmsg.durable.bytes").await == 0 {
            // On a slow machine, the broker confirms so late that a message is sent to it twice.
            break;
        }
    }
    // One that is too long, and what the client had read before the session knew of it.
    assert!(most <= 20, "{most} messages of 2 MiB were held");
    let end = Request::End { session: session.clone(), ack: after };
    assert!(matches!(ask(&site.actor, "bytes", end, LIMIT).await, Reply::Messages(_)));
    rabbit.queue_reaches("xmsg.durable.bytes", 0).await;
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_never_acknowledged_goes_to_the_dead_letters() {
    let rabbit = Broker::shared().await;
    let mut definition = durable("poison");
    definition.delivery_limit = 2;
    let site = site(rabbit.port(), definition).await;
    let mut orders = open(&site.actor, "poison").await;
    // The probes are done with.
    publish(&site, 0..1).await;
    let place = expect(&mut orders, 0..1).await;
    orders.acknowledge(place);
    publish(&site, 1..3).await;
    for time in 0..2 {
        let (number, message) = next(&mut orders).await;
        assert_eq!((number, message.returned), (1, time));
        // The other one has come, too.
        assert_eq!(next(&mut orders).await.0, 2);
        // It ends with what it had: both messages go back.
        orders.close().await.unwrap();
        orders = open(&site.actor, "poison").await;
    }
    rabbit.queue_reaches("xmsg.durable.poison.dead", 2).await;
    publish(&site, 3..4).await;
    let place = expect(&mut orders, 3..4).await;
    orders.acknowledge(place);
    orders.close().await.unwrap();
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_registry_or_the_broker_loses_nothing() {
    let mut rabbit = Broker::start().await;
    let mut site = site(rabbit.port(), durable("restart")).await;
    let mut orders = open(&site.actor, "restart").await;
    publish(&site, 0..20).await;
    let place = expect(&mut orders, 0..20).await;
    orders.acknowledge(place);
    rabbit.eval("[dets:sync(Table) || Table <- dets:all()]").await;
    site.restart().await;
    // What is published is subscribed to again once it gets to the spool.
    let probing = async {
        while site.registry.outgoing("durable:restart").unwrap().link.counts.accepted == 0 {
            site.actor.publish(&message("orders", "probe")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the subscription at the proxy", probing).await;
    publish(&site, 20..40).await;
    // What was acknowledged while nobody heard it may come again; nothing is left out.
    let mut expected = 20;
    while expected < 40 {
        let (number, message) = next(&mut orders).await;
        assert!(number <= expected, "{number} before {expected}");
        expected = expected.max(number + 1);
        orders.acknowledge(message.place);
    }
    rabbit.kill().await;
    publish(&site, 40..60).await;
    rabbit.start_again().await;
    while expected < 60 {
        let (number, message) = next(&mut orders).await;
        assert!(number <= expected, "{number} before {expected}");
        expected = expected.max(number + 1);
        orders.acknowledge(message.place);
    }
    orders.close().await.unwrap();
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_subscription_is_managed_like_all_else() {
    let rabbit = Broker::shared().await;
    let site = Site::new().await;
    site.registry.create(broker(rabbit.port())).await.unwrap();
    let error = site.registry.create(DurableDefinition::new("m", "other", ["a"])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidDefinition, "{error}");
    site.registry.create(durable("managed")).await.unwrap();
    let error = site.registry.create(durable("managed")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NameTaken, "{error}");
    let error = site.registry.rename(Sort::Durable, "managed", "other").await.unwrap_err();
    assert!(error.to_string().contains("can't be renamed"), "{error}");
    let error = site.registry.delete(Sort::Connection, "broker", OnDelete::Refuse).await.unwrap_err();
    assert!(error.to_string().contains("durable \"managed\""), "{error}");
    open(&site.actor, "managed").await.close().await.unwrap();
    site.registry.ping(Sort::Durable, "managed", LIMIT).await.unwrap();
    let text = site.registry.export().to_toml().unwrap();
    assert_eq!(Definitions::parse(&text).unwrap(), site.registry.export());
    site.registry.set_active(Sort::Durable, "managed", false).await.unwrap();
    let rests = within("an answer", async {
        loop {
            let opened = DurableSubscription::open(&site.actor, "managed", DurableOptions::default()).await;
            match opened {
                Err(error) if error.kind() == xmsg_core::ErrorKind::Remote => return error,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    assert!(rests.await.to_string().contains("is not active"));
    site.registry.delete(Sort::Durable, "managed", OnDelete::Purge).await.unwrap();
    assert!(site.registry.report().durables.is_empty() && site.registry.report().outgoing.is_empty());
    site.registry.close().await.unwrap();
}

/// A server subscribes to the requests for its name, and a subscription is a prefix. Requests for `billing`
/// begin with `bill`, so that the server of `bill` receives them, too.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_what_is_for_another_name_that_begins_the_same() {
    let port = Broker::shared().await.port();
    let bill = DurableDefinition { topics: vec!["secret".into()], ..durable("bill") };
    let durables = vec![bill, durable("billing")];
    let definitions = Definitions { connections: vec![broker(port)], durables, ..Definitions::default() };
    let site = Site::with(definitions).await;
    // Whoever answers `bill` has subscribed, too.
    open(&site.actor, "bill").await.close().await.unwrap();
    for _ in 0..5 {
        let subscription = open(&site.actor, "billing").await;
        assert_eq!(subscription.topics(), ["orders"]);
        assert_eq!(site.registry.durable("bill").unwrap().subscribers, 0);
        subscription.close().await.unwrap();
    }
    // Nobody answers for a name that there is not.
    let request = Message::of(&*format!("{TOPIC}bills"), Request::Open.encode()).unwrap();
    let refused = site.actor.request(&request, Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(refused.kind(), xmsg_core::ErrorKind::Timeout, "{refused}");
}

/// An answer has more in it than its messages. What fits into no answer goes to the dead letters, and what is
/// behind it comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_fits_into_no_answer_holds_nothing_up() {
    let limits = Limits { message_size: 1 << 20, ..Limits::default() };
    let proxy = proxy().limits(limits).start().await.unwrap();
    let port = Broker::shared().await.port();
    let durables = vec![durable("narrow")];
    let definitions = Definitions { connections: vec![broker(port)], durables, ..Definitions::default() };
    let site = Site::at(proxy, definitions).await;
    probed(&site, &durable("narrow").outgoing_name()).await;
    let mut orders = open(&site.actor, "narrow").await;
    publish(&site, 0..1).await;
    // Together they are more than the proxy takes; one of them alone is not.
    for _ in 0..6 {
        site.actor.publish(&message("orders:new", &"x".repeat(300 << 10))).await.unwrap();
    }
    let frames = |data: usize| Message::of("orders:new", "y".repeat(data)).unwrap();
    let beside = frames(1000).size() - 1000;
    site.actor.publish(&frames((1 << 20) - beside - 40)).await.unwrap();
    publish(&site, 1..3).await;
    let place = expect(&mut orders, 0..3).await;
    orders.acknowledge(place);
    assert_eq!(site.registry.durable("narrow").unwrap().rejected, 1);
    orders.close().await.unwrap();
    site.registry.close().await.unwrap();
}
