//! Subscribers of a durable subscription that take what they can: they end no process, and keep others from
//! nothing for long.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use xmsg_connect::definition::{Definitions, DurableDefinition, Span};
use xmsg_core::durable::protocol::{Item, Reply, Request, TOPIC};
use xmsg_core::{Actor, Connection, Message, Topic};
use xmsg_tests::amqp_peer::{Peer, Script};
use xmsg_tests::rabbitmq::Broker;
use xmsg_tests::{patient, until, within};
use xmsg_zmq::memory_budget::MemoryBudget;

use common::{Site, answers, ask, broker, message, session};

const MIB: usize = 1 << 20;
/// The budget in bytes of those tests in which it is used up. What counts is how it relates to the length of
/// the messages, and every byte goes to a broker and back.
const BUDGET: usize = 8 * MIB;
/// The length of a long message in bytes.
const LONG: usize = BUDGET / 8;
/// How long an answer may take before the request is repeated.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

fn definitions(port: u16, durable: DurableDefinition) -> Definitions {
    let mut node = broker(port);
    // The client has two buffers of 32 frames for each connection.
    node.frame_max = 8192;
    Definitions { connections: vec![node], durables: vec![durable], ..Definitions::default() }
}

fn durable(name: &str) -> DurableDefinition {
    DurableDefinition::new(name, "broker", ["orders"])
}

/// Asks for one message of a session, without an acknowledgement of it. Returns `None` for a session that has
/// ended.
async fn next(site: &Site, name: &str, session: &Bytes, after: u64) -> Option<Vec<Item>> {
    let request = Request::Next { session: session.clone(), after, ack: 0, max: 1, wait_ms: 200 };
    match ask(&site.actor, name, request, REQUEST_TIMEOUT).await {
        Reply::Messages(items) => Some(items),
        Reply::UnknownSession => None,
        other => panic!("{other:?}"),
    }
}

/// Publishes messages of so many bytes, which wait in the queue of a durable subscription.
async fn publish_waiting(site: &Site, rabbit: &Broker, name: &str, count: u64, len: usize) {
    let (outgoing, queue) = (format!("durable:{name}"), format!("xmsg.durable.{name}"));
    within("the subscription at the proxy", async {
        while site.registry.outgoing(&outgoing).unwrap().link.counts.accepted == 0 {
            site.actor.publish(&message("orders", "probe")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        site.actor.publish(&message("orders", "end")).await.unwrap();
        rabbit.queue_exists(&queue).await;
        while !rabbit.drain(&queue).await.iter().any(|probe| probe.data.ends_with(b"end")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let text = "x".repeat(len);
    for _ in 0..count {
        site.actor.publish(&message("orders:new", &text)).await.unwrap();
    }
    rabbit.queue_reaches(&queue, count).await;
}

/// Each session may hold 64 MiB, and there may be 64 of them. All together keep to the budget of the process:
/// messages for which there is no room stay with the broker, and nobody's session ends.
#[tokio::test(flavor = "multi_thread")]
async fn long_messages_stay_with_the_broker_while_there_is_no_room() {
    let rabbit = Broker::shared().await;
    let memory = MemoryBudget::new(BUDGET);
    let site = Site::within(memory.clone(), definitions(rabbit.port(), durable("room"))).await;
    // The broker sends each of them two.
    publish_waiting(&site, rabbit, "room", 12, LONG).await;
    let sessions = join_all((0..6).map(|_| session(&site.actor, "room", REQUEST_TIMEOUT))).await;
    let mut waiting: Vec<_> = sessions.iter().collect();
    let mut came = 0;
    // A message takes twice its length while it comes, and all consumers may hold half of the budget.
    while came < 6 {
        let answers = join_all(waiting.iter().map(|session| next(&site, "room", session, 0))).await;
        let mut holding = Vec::new();
        let mut others = Vec::new();
        for (session, items) in waiting.into_iter().zip(answers) {
            match items.unwrap().first() {
                Some(item) => holding.push((session, item.number)),
                None => others.push(session),
            }
        }
        assert!(holding.len() <= 3, "{} sessions have got a message", holding.len());
        assert!(memory.claimed() <= BUDGET, "{} bytes are claimed", memory.claimed());
        for (session, number) in holding {
            came += 1;
            let request = Request::End { session: session.clone(), ack: number };
            assert!(matches!(ask(&site.actor, "room", request, REQUEST_TIMEOUT).await, Reply::Messages(_)));
        }
        waiting = others;
    }
    assert_eq!(site.registry.durable("room").unwrap().sessions_lost, 0);
    rabbit.queue_reaches("xmsg.durable.room", 6).await;
    site.registry.close().await.unwrap();
}

/// A subscriber that asks on keeps its session, and one that acknowledges nothing keeps what it holds. While
/// others find no memory, it does so for the time of its lease only.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_acknowledges_nothing_is_in_the_way_of_others_for_a_lease_only() {
    let rabbit = Broker::shared().await;
    let definition = DurableDefinition { lease: Span::seconds(2), ..durable("way") };
    let site = Site::within(MemoryBudget::new(BUDGET), definitions(rabbit.port(), definition)).await;
    publish_waiting(&site, rabbit, "way", 8, LONG).await;
    let sessions = join_all((0..4).map(|_| session(&site.actor, "way", REQUEST_TIMEOUT))).await;
    // Three of them hold what there is room for, and ask for more.
    let mut has_come = [false; 4];
    let all = async {
        while !has_come.iter().all(|came| *came) {
            // The first message of a session has the number 1.
            let asking = sessions.iter().zip(has_come);
            let asking = asking.map(|(session, came)| next(&site, "way", session, u64::from(came)));
            for (came, items) in has_come.iter_mut().zip(join_all(asking).await) {
                *came |= items.is_none_or(|items| !items.is_empty());
            }
        }
    };
    within("what the fourth one waits for, or its turn", all).await;
    until("the end of a session", || site.registry.durable("way").unwrap().sessions_lost > 0).await;
    site.registry.close().await.unwrap();
}

/// Somebody else may have answered a subscriber, with any numbers. If the subscriber acknowledges these, no
/// message is lost that it has not got.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_given_out_can_not_be_acknowledged() {
    let rabbit = Broker::shared().await;
    let site = Site::with(definitions(rabbit.port(), durable("forged"))).await;
    publish_waiting(&site, rabbit, "forged", 5, 8).await;
    for (count, request) in [
        (5, |session, _| Request::Ack { session, ack: u64::MAX }),
        (5, |session, number| Request::Next { session, after: number + 1, ack: 0, max: 1, wait_ms: 0 }),
        (5, |session, number| Request::End { session, ack: number + 1 }),
        (4, |session, number| Request::End { session, ack: number }),
    ] as [(u64, fn(Bytes, u64) -> Request); 4]
    {
        let session = session(&site.actor, "forged", REQUEST_TIMEOUT).await;
        let given = within("a message", async {
            loop {
                if let Some(item) = next(&site, "forged", &session, 0).await.unwrap().first() {
                    return item.number;
                }
            }
        });
        let request = request(session.clone(), given.await);
        let reply = ask(&site.actor, "forged", request, REQUEST_TIMEOUT).await;
        assert_eq!(matches!(reply, Reply::UnknownSession), count == 5, "{reply:?}");
        rabbit.queue_reaches("xmsg.durable.forged", count).await;
    }
    assert_eq!(site.registry.durable("forged").unwrap().sessions_lost, 3);
    site.registry.close().await.unwrap();
}

/// Places are few, and a subscriber that vanishes and comes back leaves its former sessions behind.
#[tokio::test(flavor = "multi_thread")]
async fn one_subscriber_with_all_places_keeps_nobody_out() {
    let peer = Peer::start(Script::confirming()).await;
    let definition = DurableDefinition { lease: Span::seconds(600), ..durable("places") };
    let site = Site::with(definitions(peer.port(), definition)).await;
    answers(&site, "places").await;
    let mut sessions = Vec::new();
    for _ in 0..64 {
        let session = session(&site.actor, "places", REQUEST_TIMEOUT).await;
        // It has been used.
        ask(&site.actor, "places", Request::Ack { session: session.clone(), ack: 0 }, REQUEST_TIMEOUT).await;
        sessions.push(session);
    }
    let reply = ask(&site.actor, "places", Request::Open, REQUEST_TIMEOUT).await;
    let Reply::Unavailable(what) = reply else { panic!("{reply:?}") };
    assert!(what.contains("no room for more"), "{what}");
    let other =
        Actor::builder("other").proxy(site.proxy.address().clone()).options(patient()).build().unwrap();
    let theirs = session(&other, "places", REQUEST_TIMEOUT).await;
    let report = site.registry.durable("places").unwrap();
    assert_eq!((report.subscribers, report.gave_way), (64, 1));
    // The session that was silent for longest is gone; that of the other client stays.
    let used = async |actor: &Actor, session: &Bytes| {
        let request = Request::Ack { session: session.clone(), ack: 0 };
        matches!(ask(actor, "places", request, REQUEST_TIMEOUT).await, Reply::Messages(_))
    };
    assert!(!used(&site.actor, &sessions[0]).await && used(&site.actor, &sessions[1]).await);
    assert!(used(&other, &theirs).await);
    let reply = ask(&site.actor, "places", Request::Open, REQUEST_TIMEOUT).await;
    assert!(matches!(reply, Reply::Unavailable(_)), "{reply:?}");
    site.registry.close().await.unwrap();
}

/// The one who asks says where the answer goes. With the rights of the server, it could go to a topic that
/// others listen to.
#[tokio::test(flavor = "multi_thread")]
async fn answers_go_nowhere_but_to_topics_for_answers() {
    let peer = Peer::start(Script::confirming()).await;
    let site = Site::with(definitions(peer.port(), durable("answers"))).await;
    answers(&site, "answers").await;
    let mut heard = site.actor.subscribe(["orders", "ret:noserial", "return:17"]).await.unwrap();
    // An actor publishes no topic for an answer.
    let plain = Connection::with_options(site.proxy.address().clone(), patient()).unwrap();
    let ask_for = async |topic: &'static str| {
        let mut request = Message::of(&*format!("{TOPIC}answers"), Request::Open.encode()).unwrap();
        request.set_reply_to(&Topic::wrap(topic)).unwrap();
        plain.publish(&request).await.unwrap();
    };
    for topic in ["orders:new", "ret:noserial", "xmsg:control", "xmsg-durable:answers"] {
        ask_for(topic).await;
    }
    until("all that is ignored", || site.registry.durable("answers").unwrap().ignored == 4).await;
    // As Python has them.
    ask_for("return:17").await;
    let answer = within("an answer", heard.next()).await.unwrap().unwrap();
    assert_eq!(*answer.topic(), "return:17");
    assert!(heard.next().now_or_never().is_none());
    assert_eq!(site.registry.durable("answers").unwrap().subscribers, 1);
    site.registry.close().await.unwrap();
}
