//! Proxies in a chain: subscriptions travel up, messages come down.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::data::mime;
use xmsg_core::security::{KeyPair, Security};
use xmsg_core::{Connection, Message};
use xmsg_proxy::security::{Mechanism, Rights, Rules};
use xmsg_proxy::{Config, Policy, Proxy, Upstream, UpstreamState, UpstreamStats};
use xmsg_tests::http;
use xmsg_tests::peer::Peer;
use xmsg_tests::process::{Daemon, built, run};
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{connect, next, patient, proxy, start_tracing, topic, until, within};
use xmsg_zmq::{Endpoint, HighWaterMark, Publisher, SocketOptions, Subscriber, TcpOptions};

/// The other proxy, as an upstream.
fn upstream(proxy: &Proxy) -> Upstream {
    proxy.address().to_string().parse().unwrap()
}

fn link(proxy: &Proxy) -> UpstreamStats {
    proxy.upstreams().remove(0)
}

async fn connected(proxy: &Proxy) {
    until("the links", || proxy.upstreams().iter().all(|link| link.state == UpstreamState::Connected)).await;
}

/// A proxy without upstreams, and one that has it as its upstream.
async fn chain() -> (Proxy, Proxy) {
    let above = proxy().start().await.unwrap();
    let below = proxy().upstream(upstream(&above)).start().await.unwrap();
    connected(&below).await;
    (above, below)
}

fn publisher(proxy: &Proxy) -> Publisher {
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(Endpoint::tcp("127.0.0.1", proxy.address().publish_port()));
    publisher
}

fn subscriber(proxy: &Proxy, prefix: &'static str) -> Subscriber {
    let subscriber = Subscriber::new(SocketOptions::default());
    subscriber.subscribe(prefix).unwrap();
    subscriber.connect(Endpoint::tcp("127.0.0.1", proxy.address().subscribe_port()));
    subscriber
}

/// Waits until the proxy that this publisher is connected to wants the topic.
async fn wanted(publisher: &Publisher, topic: &str) {
    within(topic, publisher.wait_for_subscriber(topic.as_bytes())).await.unwrap();
}

async fn receive(subscriber: &mut Subscriber) -> Vec<Bytes> {
    within("a message", subscriber.recv()).await.expect("it is open").frames().to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_come_down_in_order_and_none_goes_up() {
    let (above, below) = chain().await;
    let (at_above, at_below) = (publisher(&above), connect(&below));
    let mut messages = within("a subscription", connect(&below).subscribe([topic("a")])).await.unwrap();
    let mut there = subscriber(&above, "");
    wanted(&at_above, "a").await;
    wanted(&at_above, "z").await;
    for number in 0..1000 {
        let message = Message::of(topic("a:b"), number).unwrap();
        at_above
            .publish([
                message.topic().to_string().into(),
                message.meta().unwrap().encode(),
                message.data().clone(),
            ])
            .await
            .unwrap();
    }
    for number in 0..1000 {
        assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), number);
    }
    // What is published below is for those below.
    at_below.publish(&Message::of(topic("a:c"), -1).unwrap()).await.unwrap();
    assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), -1);
    at_above.publish(["z", "last"]).await.unwrap();
    for number in 0..1000 {
        assert_eq!(receive(&mut there).await[0], "a:b", "message {number}");
    }
    assert_eq!(receive(&mut there).await[0], "z");
    let stats = link(&below);
    assert_eq!((stats.received.messages, stats.denied, stats.reconnections), (1000, 0, 0));
    assert_eq!(below.totals().received.messages, 1001);
    assert!(below.publishers().iter().all(|one| one.id != stats.id), "it is told apart from publishers");
}

/// A subscription is sent up once, and taken back when the last one who wants it has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_is_up_there_as_long_as_somebody_wants_it() {
    let (above, below) = chain().await;
    let probe = publisher(&above);
    let (mut one, other) = (subscriber(&below, "a"), subscriber(&below, "a"));
    wanted(&probe, "a").await;
    until("both are there", || below.subscriptions() == 2).await;
    assert_eq!(above.subscriptions(), 1);
    other.close().await;
    until("one has gone", || below.subscriptions() == 1).await;
    assert_eq!(above.subscriptions(), 1);
    probe.publish(["a", "1"]).await.unwrap();
    assert_eq!(receive(&mut one).await[1], "1");
    one.unsubscribe("a");
    until("nobody wants it", || above.subscriptions() == 0).await;
    one.subscribe("b").unwrap();
    wanted(&probe, "b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_subscriptions_go_up_and_back() {
    const COUNT: usize = 100_000;
    let (above, below) = chain().await;
    let many = Subscriber::new(SocketOptions::default());
    for number in 0..COUNT {
        many.subscribe(format!("topic:{number:06}")).unwrap();
    }
    let since = std::time::Instant::now();
    many.connect(Endpoint::tcp("127.0.0.1", below.address().subscribe_port()));
    until("all are there", || above.subscriptions() == COUNT).await;
    println!("{COUNT} subscriptions went up in {:?}", since.elapsed());
    // One link that comes later is told all of them in parts.
    let second = proxy().start().await.unwrap();
    below.set_upstreams(&[upstream(&above), upstream(&second)]).unwrap();
    let since = std::time::Instant::now();
    until("all are at the second one", || second.subscriptions() == COUNT).await;
    println!("a new link told {COUNT} in {:?}", since.elapsed());
    many.close().await;
    until("none is left", || above.subscriptions() == 0 && second.subscriptions() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_in_a_row_pass_messages_on() {
    let (top, middle) = chain().await;
    let bottom = proxy().upstream(upstream(&middle)).start().await.unwrap();
    connected(&bottom).await;
    let source = publisher(&top);
    let mut messages = subscriber(&bottom, "a");
    wanted(&source, "a").await;
    for number in 0..100 {
        source.publish(["a".to_owned(), number.to_string()]).await.unwrap();
    }
    for number in 0..100 {
        assert_eq!(receive(&mut messages).await[1], number.to_string());
    }
    assert_eq!((top.monitor().double_paths(), middle.monitor().double_paths()), (0, 0));
}

/// Control requests, and the answers to whoever asks at the other proxy, are not for the subscribers here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_other_proxy_is_asked_stays_there() {
    let (above, below) = chain().await;
    let source = publisher(&above);
    let mut everything = subscriber(&below, "");
    wanted(&source, "b").await;
    // As other implementations ask: the answer goes to all who are subscribed to that very topic.
    let mut raw = Raw::handshake(above.address().publish_port(), "PUB").await;
    raw.send_message(&["xmsg:control:sub", "sub", "b"]).await;
    until("the answer was left out", || link(&below).control >= 2).await;
    source.publish(["b", "data"]).await.unwrap();
    assert_eq!(receive(&mut everything).await, ["b", "data"]);
    assert_eq!(below.totals().requests, 0, "nobody asked this one");
}

/// A proxy that listens again at the same ports.
async fn daemon(port: u16) -> (Daemon, u16) {
    let mut daemon = Daemon::start(built("xmsg-proxy"), &["--port", &port.to_string()]);
    let line = daemon.line().await;
    let port = line.split("publishers ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    (daemon, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_was_killed_comes_back_with_all_subscriptions() {
    let (mut above, port) = daemon(0).await;
    let below = proxy().upstream(format!("127.0.0.1:{port}").parse().unwrap()).start().await.unwrap();
    let mut messages = subscriber(&below, "a");
    let source = Publisher::new(SocketOptions::default());
    source.connect(Endpoint::tcp("127.0.0.1", port));
    wanted(&source, "a").await;
    for round in 0..2_u64 {
        source.publish(["a".to_owned(), round.to_string()]).await.unwrap();
        assert_eq!(receive(&mut messages).await[1], round.to_string());
        above.signal("KILL").await;
        above.end().await;
        until("it is missed", || link(&below).state != UpstreamState::Connected).await;
        assert!(link(&below).error.is_some());
        (above, _) = daemon(port).await;
        until("it is back", || link(&below).reconnections == round + 1).await;
        // One that has just come learns what is wanted from the link alone.
        let newcomer = Publisher::new(SocketOptions::default());
        newcomer.connect(Endpoint::tcp("127.0.0.1", port));
        wanted(&newcomer, "a").await;
        newcomer.publish(["a", "back"]).await.unwrap();
        assert_eq!(receive(&mut messages).await[1], "back");
        assert_eq!(link(&below).error, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_proxy_that_has_gone_wanted_is_not_wanted_any_more() {
    let (above, below) = chain().await;
    let probe = publisher(&above);
    let _wanting = subscriber(&below, "a");
    wanted(&probe, "a").await;
    drop(below);
    until("it is forgotten", || above.subscriptions() == 0 && above.subscribers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstreams_are_replaced_without_touching_the_others() {
    let (above, below) = chain().await;
    let other = proxy().start().await.unwrap();
    let (source, another) = (publisher(&above), publisher(&other));
    let mut messages = subscriber(&below, "a");
    wanted(&source, "a").await;
    let id = link(&below).id;
    below.set_upstreams(&[upstream(&above), upstream(&other)]).unwrap();
    wanted(&another, "a").await;
    assert_eq!((link(&below).id, link(&below).reconnections), (id, 0));
    for from in [&source, &another] {
        from.publish(["a", "1"]).await.unwrap();
        receive(&mut messages).await;
    }
    let twice = below.set_upstreams(&[upstream(&other), upstream(&other)]).unwrap_err();
    assert!(twice.to_string().contains("twice"), "{twice}");
    assert_eq!(below.upstreams().len(), 2, "nothing has changed");
    below.set_upstreams(&[upstream(&other)]).unwrap();
    until("the first one is left", || above.subscriptions() == 0).await;
    another.publish(["a", "2"]).await.unwrap();
    assert_eq!(receive(&mut messages).await[1], "2");
    assert_eq!(below.upstreams().len(), 1);
}

/// It holds the link up, and through that the publisher above, and gets everything once it reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_subscriber_under_block_holds_the_source_up_and_loses_nothing() {
    const LEN: usize = 64 << 10;
    start_tracing();
    let tcp =
        TcpOptions { send_buffer: Some(64 << 10), receive_buffer: Some(64 << 10), ..TcpOptions::default() };
    let config = || Config {
        policy: Policy::Block { longest: None },
        high_water_mark: HighWaterMark::bytes(1 << 20),
        tcp: tcp.clone(),
        ..Config::default()
    };
    let above = Proxy::bind("127.0.0.1:0").config(config()).start().await.unwrap();
    let below = Proxy::bind("127.0.0.1:0").config(config()).upstream(upstream(&above)).start().await.unwrap();
    connected(&below).await;
    let mark = HighWaterMark::bytes(1 << 20);
    let source = Publisher::new(SocketOptions::default().send_high_water_mark(mark));
    source.connect(Endpoint::tcp("127.0.0.1", above.address().publish_port()));
    let mut slow = Raw::handshake(below.address().subscribe_port(), "SUB").await;
    slow.send_message(&["\x01a"]).await;
    wanted(&source, "a").await;
    let sending = tokio::spawn(async move {
        for number in 0..1000_u32 {
            let mut data = vec![0; LEN];
            data[..4].copy_from_slice(&number.to_be_bytes());
            source.publish([Bytes::from_static(b"a"), data.into()]).await.unwrap();
        }
        source
    });
    until("it is held up in both proxies", || below.totals().held > 0 && above.totals().held > 0).await;
    assert!(!sending.is_finished());
    // Others below are not held up by that, as they publish what it does not want.
    let (local, mut other) = (publisher(&below), subscriber(&below, "local"));
    wanted(&local, "local").await;
    local.publish(["local", "1"]).await.unwrap();
    assert_eq!(receive(&mut other).await[1], "1");
    for number in 0..1000_u32 {
        let (_, name) = slow.next_frame().await.unwrap();
        let (_, data) = slow.next_frame().await.unwrap();
        assert_eq!((&name[..], &data[..4]), (&b"a"[..], &number.to_be_bytes()[..]));
    }
    let source = within("the source", sending).await.unwrap();
    drop(source);
    assert_eq!((below.totals().dropped.messages, above.totals().dropped.messages), (0, 0));
    assert!(below.totals().waits > 0);
}

/// Whatever happens to messages for it: others get all of them, the link goes on, and every drop is counted
/// here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_subscriber_under_every_other_policy_harms_nobody_else() {
    for policy in [Policy::DropNewest, Policy::DropOldest, Policy::Conflate, Policy::Disconnect] {
        let above = proxy().start().await.unwrap();
        let tcp = TcpOptions { send_buffer: Some(64 << 10), ..TcpOptions::default() };
        let config =
            Config { policy, high_water_mark: HighWaterMark::bytes(512 << 10), tcp, ..Config::default() };
        let below =
            Proxy::bind("127.0.0.1:0").config(config).upstream(upstream(&above)).start().await.unwrap();
        connected(&below).await;
        let source = publisher(&above);
        let mut slow = Raw::handshake(below.address().subscribe_port(), "SUB").await;
        slow.send_message(&["\x01a"]).await;
        let mut healthy = subscriber(&below, "a");
        until("both are there", || below.subscriptions() == 2).await;
        wanted(&source, "a").await;
        let mut count = 0;
        while below.totals().dropped.messages == 0 && below.totals().disconnected == 0 {
            source.publish([Bytes::from_static(b"a"), vec![count as u8; 16 << 10].into()]).await.unwrap();
            assert_eq!(receive(&mut healthy).await[1][0], count as u8, "{policy}");
            count += 1;
        }
        let stats = link(&below);
        assert_eq!(
            (stats.state, stats.reconnections, stats.received.messages),
            (UpstreamState::Connected, 0, count),
            "{policy}"
        );
        assert_eq!(above.totals().dropped.messages, 0, "{policy}");
    }
}

fn rights(publish: &'static str, subscribe: &'static str) -> Arc<Rights> {
    let prefix = |text: &'static str| vec![Bytes::from_static(text.as_bytes())];
    Arc::new(Rights {
        publish: prefix(publish),
        subscribe: prefix(subscribe),
        register: false,
        inspect: false,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_curve_a_link_has_the_rights_of_its_key_and_a_stranger_none() {
    let [server, known, stranger] = [(); 3].map(|()| KeyPair::generate().unwrap());
    let keys = HashMap::from([(*known.public(), rights("", "daq:"))]);
    let rules = Rules { keys, ..Rules::default() };
    let above = proxy().security(Mechanism::Curve(server.clone()), rules).start().await.unwrap();
    let secured = |keys: &KeyPair, server: &KeyPair| {
        let security = Security::CurveClient { keys: keys.clone(), server: *server.public() };
        upstream(&above).security(security).unwrap()
    };
    let below = proxy().upstream(secured(&known, &server)).start().await.unwrap();
    connected(&below).await;
    let mut messages = subscriber(&below, "");
    let mut daq = subscriber(&below, "daq:");
    let options = SocketOptions::default()
        .security(Security::CurveClient { keys: known.clone(), server: *server.public() });
    let source = Publisher::new(options);
    source.connect(Endpoint::tcp("127.0.0.1", above.address().publish_port()));
    wanted(&source, "daq:x").await;
    until("both are there", || below.subscriptions() == 2).await;
    source.publish(["secret", "1"]).await.unwrap();
    source.publish(["daq:x", "2"]).await.unwrap();
    assert_eq!(receive(&mut daq).await, ["daq:x", "2"]);
    assert_eq!(receive(&mut messages).await, ["daq:x", "2"], "the other one was refused up there");
    assert!(above.totals().denied > 0);

    for (wrong, why) in [
        (secured(&stranger, &server), "a key that is not let in"),
        (secured(&known, &stranger), "another server's key"),
        (upstream(&above), "no keys at all"),
    ] {
        let refused = proxy().upstream(wrong).start().await.unwrap();
        until(why, || link(&refused).error.is_some()).await;
        let stats = link(&refused);
        assert!(stats.error.as_ref().unwrap().contains("check the security mechanism"), "{why}: {stats:?}");
        assert_eq!(stats.received.messages, 0);
    }
}

/// What a link is not to bring is neither asked for nor taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_with_topics_asks_for_these_alone() {
    let above = proxy().start().await.unwrap();
    let below = proxy().upstream(upstream(&above).topics(["daq:"])).start().await.unwrap();
    connected(&below).await;
    let mut everything = subscriber(&below, "");
    let _other = subscriber(&below, "other");
    let source = publisher(&above);
    wanted(&source, "daq:x").await;
    until("both are there", || below.subscriptions() == 2).await;
    assert_eq!(above.subscriptions(), 1, "daq: alone");
    source.publish(["other", "1"]).await.unwrap();
    source.publish(["daq:x", "2"]).await.unwrap();
    assert_eq!(receive(&mut everything).await, ["daq:x", "2"]);
}

/// The longest chain that people have: libzmq's own forwarder above, libzmq at both ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmqs_forwarder_is_an_upstream() {
    start_tracing();
    let mut above = Peer::python("forwarder.py", &[]);
    let ports = above.expect("listening").await;
    let below =
        proxy().upstream(format!("tcp://127.0.0.1:{}", ports[1]).parse().unwrap()).start().await.unwrap();
    connected(&below).await;
    let port = below.address().publish_port().to_string();
    let mut receiving = Peer::python("subscriber.py", &["--port", &port, "--topic", "py", "--count", "2000"]);
    receiving.expect("ready").await;
    let mut sending = Peer::python(
        "publisher.py",
        &["--port", &ports[0], "--topic", "py", "--count", "2000", "--size", "500", "--wait-subscriber"],
    );
    sending.expect("sent").await;
    assert_eq!(receiving.expect("received").await, ["2000", "disorder", "0"]);
    for peer in [sending, receiving, above] {
        peer.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_at_both_ends_of_our_chain() {
    let (above, below) = chain().await;
    let (up, down) = (above.address().publish_port().to_string(), below.address().publish_port().to_string());
    let mut receiving = Peer::python("subscriber.py", &["--port", &down, "--topic", "py", "--count", "2000"]);
    receiving.expect("ready").await;
    let mut sending = Peer::python(
        "publisher.py",
        &["--port", &up, "--topic", "py", "--count", "2000", "--size", "500", "--wait-subscriber"],
    );
    sending.expect("sent").await;
    assert_eq!(receiving.expect("received").await, ["2000", "disorder", "0"]);
    sending.finish().await;
    receiving.finish().await;
}

/// An xMsg proxy of another implementation, and clients of ours at both ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_xmsg_proxy_is_an_upstream() {
    start_tracing();
    let mut above = Peer::python("old_proxy.py", &[]);
    let port: u16 = above.expect("listening").await[0].parse().unwrap();
    let address = format!("127.0.0.1:{port}");
    let below = proxy().upstream(address.parse().unwrap()).start().await.unwrap();
    connected(&below).await;
    let mut messages = within("a subscription", connect(&below).subscribe([topic("a")])).await.unwrap();
    let source = Connection::with_options(&*address, patient()).unwrap();
    within("its subscription", source.wait_for_subscriber(&topic("a"))).await.unwrap();
    for number in 0..100_u64 {
        let message = Message::with_mime(topic("a:b"), mime::BYTES, number.to_be_bytes().to_vec());
        source.publish(&message).await.unwrap();
    }
    for number in 0..100_u64 {
        assert_eq!(next(&mut messages).await.data()[..], number.to_be_bytes());
    }
    above.finish().await;
}

/// Whoever listens there: traffic here goes on, and the link is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_upstream_harms_its_own_link_and_nothing_else() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("tcp://{}", listener.local_addr().unwrap());
    let below = proxy().upstream(at.parse().unwrap()).start().await.unwrap();
    let (local, mut subscribed) = (publisher(&below), subscriber(&below, "a"));
    wanted(&local, "a").await;
    let huge = [&[2_u8][..], &u64::MAX.to_be_bytes(), b"a"].concat();
    let subscription = {
        let mut bytes = bytes::BytesMut::new();
        xmsg_zmtp::Command::Subscribe(Bytes::from_static(b"a")).write(&mut bytes);
        bytes.to_vec()
    };
    // Each of these is the end of its connection, but for the last: who has no business to subscribe is not
    // heard.
    for (number, (attack, ends)) in
        [(&b"HTTP/1.1 200 OK\r\n\r\n"[..], true), (&huge, true), (&subscription, false)]
            .into_iter()
            .enumerate()
    {
        if number == 0 {
            let (mut stream, _) = within("a link", listener.accept()).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, attack).await.unwrap();
            let mut rest = Vec::new();
            let _ = within("its end", tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest)).await;
        } else {
            let mut raw = Raw::accept(&listener, "XPUB").await;
            raw.send(attack).await;
            if ends {
                raw.closed().await;
            } else {
                raw.is_read().await;
            }
        }
        local.publish(["a".to_owned(), number.to_string()]).await.unwrap();
        assert_eq!(receive(&mut subscribed).await[1], number.to_string());
    }
    assert_eq!(below.subscriptions(), 1);
    assert_eq!(link(&below).received.messages, 0);
}

/// It takes the connection and nothing else: neither the link's subscriptions, nor, without end, anything
/// here, is held up by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_never_reads_holds_nobody_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("tcp://{}", listener.local_addr().unwrap());
    let below = proxy().upstream(at.parse().unwrap()).start().await.unwrap();
    let _deaf = Raw::accept(&listener, "XPUB").await;
    connected(&below).await;
    let many = Subscriber::new(SocketOptions::default());
    for number in 0..50_000 {
        many.subscribe(format!("a topic that is long enough to fill buffers:{number:0200}")).unwrap();
    }
    many.connect(Endpoint::tcp("127.0.0.1", below.address().subscribe_port()));
    until("all are there", || below.subscriptions() == 50_000).await;
    let mut messages = within("a subscription", connect(&below).subscribe([topic("a")])).await.unwrap();
    connect(&below).publish(&Message::of(topic("a"), 7).unwrap()).await.unwrap();
    assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), 7);
}

/// A message that goes through a link as it was sent, whatever its size and number of frames.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_every_shape_pass_a_link() {
    let (above, below) = chain().await;
    let mut everything = subscriber(&below, "");
    let mut source = Raw::handshake(above.address().publish_port(), "PUB").await;
    let probe = publisher(&above);
    wanted(&probe, "x").await;
    let shapes: [&[usize]; 7] = [&[0], &[1], &[3, 0], &[300, 3], &[1, 70_000, 0], &[5; 40], &[2, 3_000_000]];
    for lens in shapes {
        let frames: Vec<Vec<u8>> = lens.iter().map(|len| vec![b'x'; *len]).collect();
        source.send(&raw::message(&frames)).await;
        let received = receive(&mut everything).await;
        assert_eq!(received.iter().map(Bytes::len).collect::<Vec<_>>(), lens);
    }
    assert_eq!(link(&below).control, 0);
}

/// Settings, log, HTTP and commands of the daemon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_takes_upstreams_over_and_shows_them() {
    let (first, second) = (proxy().start().await.unwrap(), proxy().start().await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("xmsg-proxy.toml");
    let write = |upstreams: &str| {
        let rest = "port = 0\n[admin]\nenabled = true\nlisten = \"127.0.0.1:0\"\n";
        std::fs::write(&file, format!("upstream = [{upstreams}]\n{rest}")).unwrap();
    };
    write(&format!("\"{}\"", first.address()));
    let mut command = tokio::process::Command::new(built("xmsg-proxy"));
    command.arg("--config").arg(&file);
    let mut daemon = Daemon::start_logged(command);
    let line = daemon.line().await;
    let at = line.split(" at ").nth(1).unwrap().split(": ").next().unwrap().to_owned();
    let http = daemon.line().await.strip_prefix("HTTP at http://").unwrap().to_owned();
    let (one, other) = (upstream(&first).to_string(), upstream(&second).to_string());
    daemon.logged(&["an upstream is connected", &one]).await;
    let samples = http::samples(
        &http::get_with(&http, "/metrics", "Accept: application/openmetrics-text\r\n").await.body,
    );
    assert_eq!(samples[&format!("xmsg_upstream_connected{{address=\"{one}\"}}")].to_string(), "1");
    assert_eq!(samples["xmsg_proxy_double_paths"].to_string(), "0");

    write(&format!("\"{}\", {{ address = \"{other}\", topics = [\"daq:\"] }}", first.address()));
    daemon.signal("HUP").await;
    daemon.logged(&["taken over", "setting=\"upstream\""]).await;
    daemon.logged(&["an upstream is connected", &other]).await;
    let connz = http::get(&http, "/connz?kind=upstream").await.body;
    let rows: serde_json::Value = serde_json::from_str(&connz).unwrap();
    let rows = rows["connections"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["peer"].as_str().unwrap()).collect::<Vec<_>>(), [&*one, &*other]);
    assert!(rows.iter().all(|row| row["state"] == "connected" && row["reconnections"] == 0), "{connz}");
    let varz: serde_json::Value = serde_json::from_str(&http::get(&http, "/varz").await.body).unwrap();
    assert_eq!(varz["proxy"]["upstreams"].as_array().map(Vec::len), Some(2));
    let info = run(built("xmsg"), &["info", "--proxy", &at]).await;
    let info = String::from_utf8(info.stdout).unwrap();
    assert!(info.contains(&format!("upstream {other}")) && info.contains("connected for "), "{info}");
    let listed = run(built("xmsg"), &["connections", "--json", "--proxy", &at]).await;
    assert!(String::from_utf8(listed.stdout).unwrap().contains("\"side\":\"upstream\""));

    drop(second);
    daemon.logged(&["the connection to an upstream has ended", &other, "reason="]).await;
    write("\"daq:7772\"");
    daemon.signal("HUP").await;
    daemon.logged(&["configuration not reloaded", "tcp://daq:7772"]).await;
    daemon.signal("TERM").await;
    assert!(daemon.line().await.starts_with("xmsg-proxy stopped: "));
    assert!(daemon.end().await.success());
}

/// It takes the connection and does not say more: stopping is not held up for longer than it may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_stops_in_time_whatever_its_upstream_does() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("tcp://{}", listener.local_addr().unwrap());
    let nobody = "tcp://127.0.0.1:1".parse().unwrap();
    let below = proxy().upstream(at.parse().unwrap()).upstream(nobody).start().await.unwrap();
    let _silent = Raw::accept(&listener, "XPUB").await;
    until("it is connected", || link(&below).state == UpstreamState::Connected).await;
    within("the end", below.stop(Duration::from_secs(1))).await;
}
