//! Federations: proxies that share messages over a real RabbitMQ.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use xmsg_connect::definition::{Definitions, FederationDefinition, Span};
use xmsg_connect::{ErrorKind, LinkState, OnDelete, Registry, RegistryOptions, Sort};
use xmsg_core::{Actor, Message, ProxyAddress, Subscription, Topic};
use xmsg_tests::amqp_peer::{Delivery, Peer, Script};
use xmsg_tests::http::send;
use xmsg_tests::process::{Daemon, built};
use xmsg_tests::rabbitmq::Broker;
use xmsg_tests::relay::Relay;
use xmsg_tests::{connect, next, patient, proxy, until, within};

use common::{LIMIT, Site, broker, message};

/// Messages that each publisher sends.
const MESSAGES: usize = 300;

fn federation(name: &str, exchange: &str, topics: &[&str]) -> FederationDefinition {
    let mut definition = FederationDefinition::new(name, "broker");
    exchange.clone_into(&mut definition.exchange);
    definition.topics = topics.iter().map(|&topic| topic.to_owned()).collect();
    definition.hold = Span::seconds(0);
    definition
}

/// Makes a site that takes part in a federation over this broker.
async fn member(port: u16, definition: FederationDefinition) -> Site {
    let definitions = Definitions {
        connections: vec![broker(port)],
        federation: Some(definition),
        ..Definitions::default()
    };
    Site::with(definitions).await
}

fn out(site: &Site) -> xmsg_connect::OutgoingReport {
    let federation = site.registry.export().federation.unwrap();
    site.registry.outgoing(&federation.outgoing_name()).unwrap()
}

fn into(site: &Site) -> xmsg_connect::ChannelReport {
    let federation = site.registry.export().federation.unwrap();
    site.registry.channel(&federation.channel_name()).unwrap()
}

/// Waits until the members are connected, and subscribed at their proxies: until a message under this topic
/// has got to the spool of each, and to all others. Returns how many messages each has sent for that.
async fn joined(members: &[&Site], topic: &str) -> Vec<u64> {
    for site in members {
        until("both links", || {
            let states = [out(site).link.state, into(site).link.state];
            states == [LinkState::Connected; 2]
        })
        .await;
    }
    let mut sent = Vec::new();
    for site in members {
        let probe = message(topic, "probe");
        within("the subscription of the federation", async {
            while out(site).link.counts.accepted == 0 {
                site.actor.publish(&probe).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        site.actor.flush(LIMIT).await.unwrap();
        // All that it has published is in the spool once one more message is there for which the spool was
        // looked at.
        let mut own = site.actor.subscribe(topic).await.unwrap();
        let before = out(site).link.counts.accepted;
        site.actor.publish(&probe).await.unwrap();
        next(&mut own).await;
        until("the last probe", || out(site).link.counts.accepted > before).await;
        sent.push(site);
    }
    settled(members).await;
    sent.iter().map(|site| out(site).link.counts.accepted).collect()
}

/// Waits until everything that was sent is where it belongs, and has come back from there.
async fn settled(members: &[&Site]) {
    until("an end of all traffic", || {
        let sent: u64 = members.iter().map(|site| out(site).link.counts.delivered).sum();
        members.iter().all(|site| {
            let (out, into) = (out(site), into(site).link.counts);
            out.spool.entries == 0
                && out.link.counts.accepted == out.link.counts.delivered
                && into.delivered + into.passed_over + into.duplicates >= sent
                && out.link.counts.passed_over >= into.delivered
        })
    })
    .await;
}

/// Returns the next message that is no probe, and none that proxies use among themselves.
async fn next_real(subscription: &mut Subscription) -> Message {
    loop {
        let message = next(subscription).await;
        let is_probe = message.value::<String>().ok().as_deref() == Some("probe");
        if !is_probe && !message.topic().as_bytes().starts_with(b"xmsg:") {
            return message;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_at_one_arrives_once_and_in_order_at_the_subscribers_of_all() {
    let port = Broker::shared().await.port();
    let names = ["three-a", "three-b", "three-c"];
    let mut members = Vec::new();
    for name in names {
        members.push(member(port, federation(name, "three", &["orders"])).await);
    }
    let members: Vec<_> = members.iter().collect();
    let probes = joined(&members, "orders:probe").await;

    let mut subscriptions = Vec::new();
    for site in &members {
        subscriptions.push(site.actor.subscribe("orders:from").await.unwrap());
    }
    let mut elsewhere = members[1].actor.subscribe("local").await.unwrap();
    let publishing = members.iter().zip(names).map(|(site, name)| async move {
        for number in 0..MESSAGES {
            let sent = message(&format!("orders:from:{name}"), &number.to_string());
            site.actor.publish(&sent).await.unwrap();
            site.actor.publish(&message("local", name)).await.unwrap();
        }
    });
    let receiving = subscriptions.iter_mut().map(|subscription| async move {
        let mut numbers: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for _ in 0..names.len() * MESSAGES {
            let received = next(subscription).await;
            let number = received.value::<String>().unwrap().parse().unwrap();
            numbers.entry(received.topic().to_string()).or_default().push(number);
        }
        numbers
    });
    let (_, received) =
        tokio::join!(futures::future::join_all(publishing), futures::future::join_all(receiving));
    for numbers in received {
        assert_eq!(numbers.len(), names.len());
        for (topic, numbers) in numbers {
            assert_eq!(numbers, (0..MESSAGES).collect::<Vec<_>>(), "{topic}");
        }
    }
    settled(&members).await;

    // Nothing goes round: what each has sent is what was published there, and the queues have got nothing
    // more.
    let sent: Vec<_> = probes.iter().map(|probes| probes + MESSAGES as u64).collect();
    let total: u64 = sent.iter().sum();
    for (site, own) in members.iter().zip(&sent) {
        let (out, into) = (out(site).link.counts, into(site).link.counts);
        assert_eq!((out.accepted, out.delivered, out.passed_over), (*own, *own, total - own), "{out:?}");
        assert_eq!((into.accepted, into.delivered, into.passed_over), (total, total - own, *own), "{into:?}");
        assert_eq!((out.repeated, out.dead, out.lost_before, into.duplicates, into.dead), (0, 0, 0, 0, 0));
    }
    for name in names {
        assert_eq!(Broker::shared().await.queue_len(&format!("xmsg.federation.{name}")).await, 0);
    }
    // What is not shared stays at home.
    for _ in 0..MESSAGES {
        assert_eq!(next(&mut elsewhere).await.value::<String>().unwrap(), names[1]);
    }
    members[1].actor.publish(&message("local", "the last one")).await.unwrap();
    assert_eq!(next(&mut elsewhere).await.value::<String>().unwrap(), "the last one");
    for site in members {
        site.registry.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_arrives_as_it_was_but_for_the_mark() {
    let port = Broker::shared().await.port();
    let mut one = federation("same-a", "same", &["orders"]);
    one.export = vec!["sensors:a".into()];
    let mut other = federation("same-b", "same", &["orders"]);
    other.import = vec!["sensors".into()];
    let (a, b) = (member(port, one).await, member(port, other).await);
    joined(&[&a, &b], "orders:probe").await;
    let mut received = b.actor.subscribe(Topic::everything()).await.unwrap();
    let mut at_home = a.actor.subscribe("orders").await.unwrap();

    let long = format!("orders:{}", "é".repeat(300));
    let plain = Message::of("orders:new", "17 pieces").unwrap().with_header("trace", "1").unwrap();
    let frames = |topic: &[u8], meta: &[u8], data: &[u8]| {
        let [topic, meta, data] = [topic, meta, data].map(Bytes::copy_from_slice);
        Message::from_frames(topic, meta, data)
    };
    // Metadata of programs that do not know xMsg, topics that are no text, longer than a routing key, or with
    // a zero byte.
    let sent = [
        plain.clone(),
        frames(b"orders:raw", b"\xff\xff", b"data"),
        frames(b"orders:raw", b"\xff\xff", b"data"),
        frames(b"orders:\xff\x00", b"", b""),
        frames(long.as_bytes(), b"\xff\xff", &vec![7; 300_000]),
        frames(b"sensors:a", b"\xff\xff", b"data"),
    ];
    let publisher = connect(&a.proxy);
    for message in &sent {
        publisher.publish(message).await.unwrap();
    }
    for expected in &sent {
        let mut message = next_real(&mut received).await;
        let origin = message.header("xmsg-origin").ok().flatten().map(str::to_owned);
        let is_readable = expected.header("any").is_ok();
        assert_eq!(origin.is_some(), is_readable, "{message:?}");
        if is_readable {
            assert!(origin.unwrap().starts_with("same-a "));
            message.remove_header("xmsg-origin").unwrap();
        }
        assert_eq!(message.into_frames(), expected.clone().into_frames());
    }
    // An answer with the metadata of the request, as programs in Java send it, leaves like any other message.
    let mut request = a.actor.subscribe("orders:answer").await.unwrap();
    let [_, _, data] = plain.clone().into_frames();
    let marked = {
        let again = a.actor.publish(&plain);
        again.await.unwrap();
        next_real(&mut received).await
    };
    let [_, meta, _] = marked.into_frames();
    let topic = Topic::wrap("orders:answer").into_bytes();
    connect(&b.proxy).publish(&Message::from_frames(topic, meta, data)).await.unwrap();
    assert!(next(&mut request).await.header("xmsg-origin").unwrap().unwrap().starts_with("same-b "));

    // What B has taken in has come back to it, but for the one under a topic that does not leave there.
    until("what comes back", || out(&b).link.counts.passed_over + 1 >= into(&b).link.counts.delivered).await;
    // What A has received under its own topics is what was published there, and then the answer: B has sent
    // nothing back.
    for _ in 0..sent.len() {
        next_real(&mut at_home).await;
    }
    assert_eq!(next_real(&mut at_home).await.topic().to_string(), "orders:answer");
    for site in [a, b] {
        site.registry.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_is_killed_under_traffic_and_nothing_is_lost_or_repeated() {
    let mut rabbit = Broker::start().await;
    let a = member(rabbit.port(), federation("killed-a", "killed", &["orders"])).await;
    let b = member(rabbit.port(), federation("killed-b", "killed", &["orders"])).await;
    joined(&[&a, &b], "orders:probe").await;
    let mut received = b.actor.subscribe("orders:from").await.unwrap();
    let mut number = 0;
    let mut publish = async |count: usize| {
        for _ in 0..count {
            a.actor.publish(&message("orders:from:a", &number.to_string())).await.unwrap();
            number += 1;
        }
    };
    let mut receive = async |numbers: std::ops::Range<usize>| {
        for number in numbers {
            assert_eq!(next(&mut received).await.value::<String>().unwrap(), number.to_string());
        }
    };
    publish(500).await;
    receive(0..250).await;
    // A queue that is half a second old is not in all tables on the disk of this broker yet, and does not
    // survive its death.
    rabbit.eval("[dets:sync(Table) || Table <- dets:all()]").await;
    rabbit.kill().await;
    publish(500).await;
    until("the loss of the broker", || out(&a).link.state != LinkState::Connected).await;
    rabbit.start_again().await;
    publish(500).await;
    receive(250..1000).await;
    // Once more, in its own way.
    publish(500).await;
    rabbit.stop().await;
    publish(500).await;
    rabbit.start_again().await;
    receive(1000..2500).await;
    until("all confirmed", || out(&a).spool.entries == 0).await;
    let report = out(&a);
    assert_eq!(
        (report.link.counts.dead, report.link.counts.lost_before, into(&b).link.counts.dead),
        (0, 0, 0)
    );
    assert!(report.link.counts.connections >= 3, "{report:?}");
    // Nothing came twice: what comes next is this.
    publish(1).await;
    receive(2500..2501).await;
    for site in [&a, &b] {
        site.registry.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_of_the_same_name_are_noticed() {
    let port = Broker::shared().await.port();
    let first = member(port, federation("twin", "twins", &["orders"])).await;
    until("the first", || into(&first).link.state == LinkState::Connected).await;
    let second = member(port, federation("twin", "twins", &["orders"])).await;
    until("the second is refused", || into(&second).link.state == LinkState::Faulted).await;
    let reason = second.registry.federation("twin").unwrap().link.reason.unwrap().what;
    assert!(reason.contains("a proxy takes part in the federation as \"twin\" already"), "{reason}");
    assert_eq!(into(&first).link.state, LinkState::Connected);
    first.registry.close().await.unwrap();
    until("the second takes over", || into(&second).link.state == LinkState::Connected).await;
    second.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federation_is_managed_like_all_else() {
    let rabbit = Broker::shared().await;
    let mut site = Site::new().await;
    let definition = federation("managed", "managed", &["orders"]);
    let error = site.registry.create(definition.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidDefinition, "{error}");
    site.registry.create(broker(rabbit.port())).await.unwrap();
    site.registry.create(definition.clone()).await.unwrap();
    let error = site.registry.create(federation("second", "managed", &["a"])).await.unwrap_err();
    assert!(error.kind() == ErrorKind::NameTaken && error.to_string().contains("as \"managed\""), "{error}");
    let error = site.registry.delete(Sort::Connection, "broker", OnDelete::Refuse).await.unwrap_err();
    assert!(error.to_string().contains("federation \"managed\""), "{error}");
    joined(&[&site], "orders").await;
    site.registry.ping(Sort::Federation, "managed", LIMIT).await.unwrap();

    // Its parts belong to it, and take nothing from elsewhere.
    let error = site.registry.send("federation-out:managed", message("orders", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidMessage, "{error}");
    let error =
        site.registry.delete(Sort::Outgoing, "federation-out:managed", OnDelete::Purge).await.unwrap_err();
    assert!(error.to_string().contains("belongs to a federation"), "{error}");

    // While it rests, what would leave waits, also across a restart and under another name.
    site.registry.set_active(Sort::Federation, "managed", false).await.unwrap();
    until("it rests", || out(&site).link.state == LinkState::Inactive).await;
    site.actor.publish(&message("orders", "later")).await.unwrap();
    until("it waits", || out(&site).spool.entries == 1).await;
    site.restart().await;
    site.registry.rename(Sort::Connection, "broker", "rabbit").await.unwrap();
    site.registry.rename(Sort::Federation, "managed", "renamed").await.unwrap();
    let exported = site.registry.export();
    let text = exported.to_toml().unwrap();
    assert_eq!(Definitions::parse(&text).unwrap(), exported, "{text}");
    assert_eq!(exported.federation.unwrap().connection, "rabbit");
    assert_eq!(out(&site).spool.entries, 1);
    assert_eq!(site.registry.report().orphans, Vec::<String>::new());
    let error = site.registry.delete(Sort::Federation, "renamed", OnDelete::Refuse).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    let without = Definitions { connections: site.registry.export().connections, ..Definitions::default() };
    let error = site.registry.import(without.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    site.registry.set_active(Sort::Federation, "renamed", true).await.unwrap();
    site.registry.delete(Sort::Federation, "renamed", OnDelete::Drain(LIMIT)).await.unwrap();
    assert!(site.registry.report().federations.is_empty() && site.registry.report().outgoing.is_empty());

    // An exchange of another kind is no place for it.
    rabbit.declare_exchange("managed-direct", ExchangeKind::Direct).await;
    let mut wrong = federation("managed", "managed-direct", &["orders"]);
    wrong.connection = "rabbit".into();
    site.registry.create(wrong).await.unwrap();
    until("it is refused", || out(&site).link.state == LinkState::Faulted).await;
    let reason = out(&site).link.reason.unwrap().what;
    assert!(reason.contains("no durable topic exchange"), "{reason}");
    site.registry.import(without).await.unwrap();
    site.registry.close().await.unwrap();
}

const TOKEN: &str = "token-0123456789abcdef";

/// A proxy in a process of its own, which takes part in a federation.
struct Process {
    daemon: Daemon,
    address: ProxyAddress,
    admin: String,
    actor: Actor,
}

impl Process {
    /// Starts it with its files in this folder. Its port is the one that it had before, if it was there
    /// before.
    async fn start(folder: &Path, rabbit: u16, definition: &FederationDefinition) -> Self {
        let definitions = Definitions {
            connections: vec![broker(rabbit)],
            federation: Some(definition.clone()),
            ..Definitions::default()
        };
        let port = std::fs::read_to_string(folder.join("port")).unwrap_or_else(|_| "0".to_owned());
        let settings = format!(
            "port = {port}\nslow_subscriber = \"block\"\n[admin]\nenabled = true\nlisten = \"127.0.0.1:0\"\ntoken_file = \"token\"\n\
             [connect]\nenabled = true\nstate_dir = \"state\"\ndefinitions = \"definitions.toml\"\n"
        );
        let files = [
            ("token", TOKEN),
            ("settings.toml", &settings),
            ("definitions.toml", &definitions.to_toml().unwrap()),
        ];
        for (name, text) in files {
            use std::os::unix::fs::PermissionsExt;
            std::fs::write(folder.join(name), text).unwrap();
            std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let settings = folder.join("settings.toml");
        let mut daemon = Daemon::start(built("xmsg-proxy"), &["--config", settings.to_str().unwrap()]);
        let line = daemon.line().await;
        let address: ProxyAddress =
            line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
        std::fs::write(folder.join("port"), address.publish_port().to_string()).unwrap();
        assert!(daemon.line().await.starts_with("xmsg-connect with "));
        let admin = daemon.line().await.strip_prefix("HTTP at http://").unwrap().to_owned();
        let actor = Actor::builder("test").proxy(address.clone()).options(patient()).build().unwrap();
        Self { daemon, address, admin, actor }
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> serde_json::Value {
        let (path, token) = (format!("/connect/{path}"), format!("Authorization: Bearer {TOKEN}\r\n"));
        let answer = send(&self.admin, method, &path, &token, body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }

    /// Has its federation be another one.
    async fn change(&self, definition: &FederationDefinition) {
        let body = serde_json::to_string(definition).unwrap();
        self.ask("PUT", &format!("federation/{}", definition.name), &body).await;
    }

    /// Kills it as a power cut does.
    async fn kill(mut self) -> Actor {
        self.daemon.signal("KILL").await;
        self.daemon.end().await;
        self.actor
    }
}

/// Publishes this until it is received.
async fn reaches(publisher: &Actor, subscription: &mut Subscription, probe: &Message) {
    let is_it = |message: &Message| message.clone().into_frames()[2] == probe.clone().into_frames()[2];
    within("a probe", async {
        loop {
            publisher.publish(probe).await.unwrap();
            let received = tokio::time::timeout(Duration::from_millis(50), subscription.next()).await;
            if let Ok(Some(Ok(message))) = received
                && is_it(&message)
            {
                return;
            }
        }
    })
    .await;
}

/// Takes the messages that are no probes, so many of them: they have to be numbered from 0.
async fn numbered(subscription: &mut Subscription, count: usize) {
    for number in 0..count {
        let text = loop {
            let text = next(subscription).await.value::<String>().unwrap();
            if !text.starts_with("probe") {
                break text;
            }
        };
        assert_eq!(text, number.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_while_a_proxy_was_dead_arrives_when_it_is_back() {
    let port = Broker::shared().await.port();
    let a = member(port, federation("dead-a", "dead", &["orders"])).await;
    let folder = tempfile::tempdir().unwrap();
    let mut definition = federation("dead-b", "dead", &["orders"]);
    let b = Process::start(folder.path(), port, &definition).await;
    let mut received = b.actor.subscribe("orders").await.unwrap();
    reaches(&a.actor, &mut received, &message("orders", "probe there")).await;
    // When it comes back, it waits until it is told that its subscribers are back, too.
    definition.hold = Span::seconds(3600);
    b.change(&definition).await;
    let subscriber = b.kill().await;

    let before = out(&a).link.counts.accepted;
    for number in 0..MESSAGES {
        a.actor.publish(&message("orders", &number.to_string())).await.unwrap();
    }
    until("all at the broker", || {
        let out = out(&a);
        out.link.counts.accepted >= before + MESSAGES as u64 && out.spool.entries == 0
    })
    .await;
    let b = Process::start(folder.path(), port, &definition).await;
    assert_eq!(subscriber.proxy().to_string(), b.address.to_string());
    reaches(&b.actor, &mut received, &message("orders", "probe back")).await;
    definition.hold = Span::seconds(0);
    b.change(&definition).await;
    numbered(&mut received, MESSAGES).await;
    a.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_the_spool_of_a_proxy_that_was_killed_arrives() {
    let mut rabbit = Broker::start().await;
    let folder = tempfile::tempdir().unwrap();
    let definition = federation("spool-a", "spool", &["orders"]);
    let a = Process::start(folder.path(), rabbit.port(), &definition).await;
    let b = member(rabbit.port(), federation("spool-b", "spool", &["orders"])).await;
    let mut received = b.actor.subscribe("orders").await.unwrap();
    reaches(&a.actor, &mut received, &message("orders", "probe there")).await;
    let entries = async |a: &Process| {
        let report = a.ask("GET", "outgoing/federation-out%3Aspool-a", "").await;
        report["spool"]["entries"].as_u64().unwrap()
    };
    within("no more probes", async {
        while entries(&a).await > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    rabbit.stop().await;
    for number in 0..MESSAGES {
        a.actor.publish(&message("orders", &number.to_string())).await.unwrap();
    }
    within("all in the spool", async {
        while entries(&a).await < MESSAGES as u64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    a.kill().await;
    rabbit.start_again().await;
    let _a = Process::start(folder.path(), rabbit.port(), &definition).await;
    numbered(&mut received, MESSAGES).await;
    b.registry.close().await.unwrap();
}

/// Returns a message as another member has published it, for the queue of a member.
fn from_elsewhere(tag: u64, text: &str) -> Delivery {
    let text = message("orders:new", text);
    let [topic, meta, data] = text.into_frames();
    let mut headers = FieldTable::default();
    let id = format!("00000000-0000-0000-0000-{tag:012}");
    let fields = [("X-Xmsg-Topic", &topic[..]), ("X-Xmsg-Meta", &meta), ("X-Xmsg-Id", id.as_bytes())];
    for (name, value) in fields.into_iter().chain([("X-Xmsg-Origin", &b"elsewhere"[..])]) {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    let properties = BasicProperties::default().with_headers(headers);
    Delivery { tag, properties, body: data.to_vec(), ..Delivery::default() }
}

/// The broker goes away while the proxy is slow to confirm what it was given.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_slow_proxy_has_is_recognized_when_the_broker_sends_it_again() {
    let peer = Peer::start(Script::confirming()).await;
    let proxy = proxy().start().await.unwrap();
    let relay = Relay::start(proxy.address()).await;
    let folder = tempfile::tempdir().unwrap();
    let mut options = RegistryOptions::new(folder.path().join("state"), relay.address().clone());
    options.connect = patient();
    options.initial = Definitions {
        connections: vec![broker(peer.port())],
        federation: Some(federation("slow", "slow", &["orders"])),
        ..Definitions::default()
    };
    let registry = within("a registry", Registry::open(options)).await.unwrap();
    let subscriber = Actor::builder("there").proxy(proxy.address().clone()).options(patient()).build();
    let mut received = subscriber.unwrap().subscribe("orders").await.unwrap();
    let counts = || registry.channel("federation-in:slow").unwrap().link.counts;

    // Its connection to the proxy is there.
    let consumer = peer.consumer(1).await;
    peer.act(consumer.deliver(from_elsewhere(1, "first"))).await;
    assert_eq!(next(&mut received).await.value::<String>().unwrap(), "first");
    until("the first one", || counts().delivered == 1).await;
    relay.hold();
    peer.act(consumer.deliver(from_elsewhere(2, "second"))).await;
    until("the message is taken", || counts().accepted == 2).await;
    peer.act(consumer.hang_up()).await;
    // The proxy has not confirmed it in time.
    until("another attempt", || counts().repeated > 0).await;
    relay.release();
    let consumer = peer.consumer(2).await;
    peer.act(consumer.deliver(from_elsewhere(2, "second"))).await;
    peer.act(consumer.deliver(from_elsewhere(3, "third"))).await;
    for text in ["second", "third"] {
        assert_eq!(next(&mut received).await.value::<String>().unwrap(), text);
    }
    until("the end of all", || counts().delivered == 3).await;
    assert_eq!(counts().duplicates, 1);
    registry.close().await.unwrap();
}
