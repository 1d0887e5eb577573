//! Attacks on the control plane and through it: stolen identities, repeated requests, unexpected replies, and
//! peers that never disconnect.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use xmsg_core::registration;
use xmsg_core::{Actor, ConnectOptions, Connection, Message, OwnerType, ProxyAddress, Query, Registration};
use xmsg_tests::hostile::Scene;
use xmsg_tests::process::{Daemon, built};
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{PATIENCE, topic, within};

fn patient() -> ConnectOptions {
    ConnectOptions::new().connection_timeout(PATIENCE).subscription_timeout(PATIENCE)
}

/// Control requests are ordinary messages, so whoever subscribes to them sees the identities. Without
/// security, a thief can take over each of them. The owner reconnects, and asks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_that_are_stolen_from_requests_keep_nobody_out() {
    let scene = Scene::daemon(&[]).await;
    let mut spy = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
    spy.send_message(&["\x01xmsg:control"]).await;
    spy.is_read().await;
    let control = scene.address.control_port();
    let stealing = tokio::spawn(async move {
        let (mut stolen, mut loot) = (std::collections::BTreeSet::new(), Vec::new());
        while let Some((flags, body)) = spy.next_frame().await {
            let is_identity = flags & 5 == 0 && body.len() == 9 && body.iter().all(u8::is_ascii_digit);
            if is_identity && stolen.insert(body.clone()) {
                loot.push(Raw::handshake_with(control, "DEALER", &body).await);
            }
        }
    });
    let round = async |_| within("a connection", scene.connection().connect()).await.unwrap();
    scene.under_rounds(3000, round).await;
    stealing.abort();
    let _ = stealing.await;
    scene.finish("stolen identities", 40).await;
}

/// The number of batches of an attacker that the proxy has not read. They are enough that it always finds
/// one, and few enough that it has soon read all of them at the end of the attack.
const UNREAD_BATCHES: usize = 4;

/// All requests go through one queue. Those of a connection that never pauses take a few of its places only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_without_a_pause_keeps_nobody_from_connecting() {
    let scene = Scene::daemon(&[]).await;
    let port = scene.address.publish_port();
    let requests = raw::message(&["xmsg:control:con", "pub", "400000000"]).repeat(1000);
    let batch = [requests, raw::ping()].concat();
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let batch = batch.clone();
        flood.spawn(async move {
            let mut peer = Raw::handshake(port, "PUB").await;
            peer.send(&batch.repeat(UNREAD_BATCHES)).await;
            loop {
                peer.pong().await;
                peer.send(&batch).await;
            }
        });
    }
    for _ in 0..10 {
        let options = ConnectOptions::new().connection_timeout(Duration::from_secs(5));
        let connection = Connection::with_options(scene.address.clone(), options).unwrap();
        within("a connection", connection.connect()).await.unwrap();
    }
    flood.shutdown().await;
    scene.finish("control requests without a pause", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_the_proxy_gives_cannot_be_taken() {
    let scene = Scene::daemon(&[]).await;
    let port = scene.address.control_port();
    let mut nameless = Raw::handshake(port, "DEALER").await;
    nameless.is_read().await;
    scene
        .under(async {
            for number in 0..50_u32 {
                let name = [&[0][..], &number.to_be_bytes()].concat();
                let mut thief = Raw::handshake_with(port, "DEALER", &name).await;
                thief.is_read().await;
            }
        })
        .await;
    nameless.is_read().await;
    drop(nameless);
    scene.finish("names of nameless peers", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_identities_and_thousands_with_the_same() {
    let scene = Scene::daemon(&[]).await;
    let port = scene.address.control_port();
    let dial = |number: u32| async move {
        let identity =
            if number.is_multiple_of(2) { "the same".to_owned() } else { format!("{number:0255}") };
        let mut hello = [&raw::greeting(3, 1)[..], &raw::ready("DEALER", identity.as_bytes())].concat();
        hello.extend_from_slice(&raw::message(&["what", "for"]));
        let mut peer = Raw::connect(port).await;
        let _ = peer.try_send(&hello).await;
        peer
    };
    let all = futures::stream::iter(0..2000).map(dial).buffer_unordered(32);
    let peers = scene.under(all.collect::<Vec<_>>()).await;
    drop(peers);
    // This identity is one byte longer than allowed.
    let attack = async {
        let mut peer = Raw::connect(port).await;
        peer.send(&raw::greeting(3, 1)).await;
        peer.send(&raw::ready("DEALER", &[b'9'; 256])).await;
        peer.closed().await;
    };
    scene.under(attack).await;
    scene.finish("2000 identities", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_control_requests_keep_nobody_out() {
    let scene = Scene::daemon(&[]).await;
    let address = &scene.address;
    let mut deaf = Raw::handshake_with(address.control_port(), "DEALER", b"412345678").await;
    deaf.is_read().await;
    let mut attacker = Raw::handshake(address.publish_port(), "PUB").await;
    // These requests ask for answers to a peer that does not read, to nobody, and to well-behaved clients
    // that did not ask.
    let requests = [
        raw::message(&["xmsg:control:con", "pub", "412345678"]),
        raw::message(&["xmsg:control", "rep", "412345678"]),
        raw::message(&["xmsg:control", "pub", "nobody"]),
        raw::message(&["xmsg:control:sub", "sub", "innocent"]),
        raw::message(&["xmsg:control:sub", "sub", ""]),
        raw::message(&["xmsg:control"]),
        raw::message(&["xmsg:control", "pub"]),
        raw::message(&["xmsg:control", "pub", "1", "2"]),
    ];
    let flood = requests.concat().repeat(500);
    let round = async |number: u64| {
        attacker.send(&flood).await;
        if number.is_multiple_of(50) {
            within("an innocent connection", scene.connection().connect()).await.unwrap();
        }
    };
    scene.under_rounds(2000, round).await;
    drop((deaf, attacker));
    scene.finish("repeated control requests", 60).await;
}

/// Each confirmation goes to all subscribers. New subscriptions do not wait for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirmations_of_many_topics_to_many_subscribers() {
    let scene = Scene::daemon(&[]).await;
    let mut subscribers = Vec::new();
    for _ in 0..200 {
        let mut peer = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
        peer.send_message(&["\x01many:"]).await;
        subscribers.push(peer);
    }
    for peer in &mut subscribers {
        peer.is_read().await;
    }
    let mut attackers = Vec::new();
    for number in 0..10 {
        let mut peer = Raw::handshake(scene.address.publish_port(), "PUB").await;
        let ask =
            |topic: usize| raw::message(&["xmsg:control:sub", "sub", &format!("many:{number}:{topic}")]);
        peer.send(&(0..900).flat_map(ask).collect::<Vec<_>>()).await;
        attackers.push(peer);
    }
    let round = async |number: u64| {
        let name = topic(&format!("fresh:{number}"));
        drop(within("a subscription", scene.connection().subscribe([name])).await.unwrap());
    };
    scene.under_rounds(2000, round).await;
    drop((attackers, subscribers));
    scene.finish("confirmations of 9000 topics to 200 subscribers", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_to_the_control_port_and_the_registrar_mean_nothing() {
    let scene = Scene::daemon(&[]).await;
    let mut dealer = Raw::handshake_with(scene.address.control_port(), "DEALER", b"412345679").await;
    let mut requester = Raw::handshake(scene.registrar, "REQ").await;
    let flood = [
        raw::message(&["pub"]),
        raw::message(&["412345678", "pub"]),
        raw::message(&["", "success", "", ""]),
        raw::message(&["", "allPublisher", "me"]),
        raw::message(&["", "findPublisher", "me", "\u{1}"]),
        raw::message(&[vec![0; 30_000]]),
    ];
    let flood = flood.concat().repeat(20);
    let round = async |_| {
        dealer.send(&flood).await;
        // The replies are not read, so that the registrar stops reading in the end, or disconnects this peer.
        let sending = tokio::time::timeout(Duration::from_millis(50), requester.try_send(&flood));
        let _ = sending.await;
    };
    scene.under_rounds(3000, round).await;
    drop((dealer, requester));
    scene.finish("messages to the control port and the registrar", 80).await;
}

/// Returns a request to the registrar, either with a registration of this name or with a query for it.
fn request(envelope: &[u8], action: &str, name: &str) -> Vec<u8> {
    let (topic, proxy) = (topic(&format!("d:{name}:t")), ProxyAddress::new("192.0.2.1", 7771).unwrap());
    let data = Registration::new(OwnerType::Publisher, name, &topic, &proxy).encode();
    let frames: [&[u8]; 4] = [b"", action.as_bytes(), b"me", &data];
    if envelope.is_empty() {
        raw::message(&frames)
    } else {
        raw::message(&[&[envelope], &frames[..]].concat())
    }
}

/// Makes `count` registrations.
async fn register(registrar: u16, count: usize) {
    let mut peer = Raw::handshake(registrar, "DEALER").await;
    for first in (0..count).step_by(500) {
        let some = (first..count.min(first + 500)).map(|number| number.to_string());
        let requests: Vec<_> = some.map(|name| request(b"", "registerPublisher", &name)).collect();
        peer.send(&requests.concat()).await;
        for _ in &requests {
            within("a reply", peer.next_message(1 << 20)).await.expect("a reply");
        }
    }
}

/// Requests that wait for an answer of the registrar are stored with the addresses on their way back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_with_long_addresses_take_no_memory() {
    let scene = Scene::daemon(&[]).await;
    register(scene.registrar, 10_000).await;
    let attack = async {
        let mut peer = Raw::handshake(scene.registrar, "DEALER").await;
        // Each of these requests is answered after the one before it, in slices.
        let long = raw::message(&["", "allPublisher", "me", ""]).repeat(100);
        let heavy = request(&vec![b'x'; 15 << 20], "exactPublisher", "1");
        assert!(peer.try_send(&long).await);
        for _ in 0..20 {
            assert!(peer.try_send(&heavy).await);
        }
        peer.send(&request(b"short", "exactPublisher", "1")).await;
    };
    scene.under(attack).await;
    scene.finish("requests to the registrar with addresses of 15 MiB", 80).await;
}

/// A client with few requests is answered in its turn, however many requests others have sent before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_questions_keep_nobody_waiting_at_the_registrar() {
    let scene = Scene::daemon(&[]).await;
    register(scene.registrar, 500).await;
    // This query looks at all registrations, and finds none.
    let query = Query::parts(OwnerType::Publisher, "d", "*", "*").port(1);
    let query = registration::Request::discover("me", registration::Action::Filter, &query).frames();
    let question = raw::message(&[&[Bytes::new()], &query[..]].concat()).repeat(1_000);
    let mut attacker = Raw::handshake(scene.registrar, "DEALER").await;
    // The answers are not read.
    let flood = tokio::spawn(async move { while attacker.try_send(&question).await {} });
    let mut innocent = Raw::handshake(scene.registrar, "REQ").await;
    let mut answers = 0;
    let ask = async |_| {
        innocent.send(&request(b"", "exactPublisher", "1")).await;
        within("an answer", innocent.next_message(1 << 20)).await.expect("an answer");
        answers += 1;
    };
    scene.under_rounds(5_000, ask).await;
    assert!(answers >= 20, "{answers} answers while there were 5000 messages");
    flood.abort();
    let _ = flood.await;
    drop(innocent);
    scene.finish("a flood of questions to the registrar", 60).await;
}

/// Answers wait for control sockets that never connect, while other sockets connect and disconnect. Each new
/// one might be the receiver.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_wait_for_nobody_keep_nobody_out() {
    let scene = Scene::daemon(&[]).await;
    let (publishers, control) = (scene.address.publish_port(), scene.address.control_port());
    let asking = |host: u8| async move {
        let mut peer = Raw::connect_from(host, publishers).await.expect("it listens");
        peer.send(&[&raw::greeting(3, 1)[..], &raw::ready("PUB", b"")].concat()).await;
        for round in 0.. {
            let identity = |number: u32| format!("{host}-{round}-{number}");
            let some: Vec<_> =
                (0..60).map(|number| raw::message(&["xmsg:control", "pub", &identity(number)])).collect();
            peer.send(&some.concat()).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let coming = || async move {
        loop {
            let mut peer = Raw::connect(control).await;
            let hello = [&raw::greeting(3, 1)[..], &raw::ready("DEALER", b"")].concat();
            if peer.try_send(&hello).await {
                peer.skip(64).await;
                peer.next_frame().await;
            }
        }
    };
    let mut attackers = tokio::task::JoinSet::new();
    for host in 8..12 {
        attackers.spawn(asking(host));
    }
    // All places for waiting answers are taken when a new client connects.
    let round = async |_| within("a connection", scene.connection().connect()).await.unwrap();
    scene.under_rounds(5_000, round).await;
    (0..16).for_each(|_| drop(attackers.spawn(coming())));
    scene.under_rounds(5_000, round).await;
    attackers.shutdown().await;
    scene.finish("answers that wait while others come and go", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_nobody_asked_for_disturb_no_request() {
    let scene = Scene::daemon(&[]).await;
    let actor = |name: &'static str| {
        let builder = Actor::builder(name).proxy(scene.address.clone()).options(patient());
        async move { builder.build().unwrap() }
    };
    let (asking, answering) = (actor("asking").await, actor("answering").await);
    let serve = answering
        .subscribe_with([topic("question")], 4, |request: Message| async move { request.reply_with(42) });
    let _serving = serve.await.unwrap();
    let ask = async || {
        let question = Message::of(topic("question"), 1).unwrap();
        let reply = within("a reply", asking.request(&question, PATIENCE)).await.unwrap();
        assert_eq!(reply.value::<i32>().unwrap(), 42);
    };
    ask().await;
    let mut attacker = Raw::handshake(scene.address.publish_port(), "PUB").await;
    let own = format!("ret:{}", asking.id());
    let mut round = 0;
    let flood = async |_| {
        round += 1;
        let unasked = (0..200).flat_map(|number| {
            // This digit is not the one of our language: otherwise one guess would sooner or later be right.
            let guess = format!("{own}:5{:06}", (round * 200 + number) % 1_000_000);
            let mut bytes = raw::message(&[guess.as_str(), "not metadata", "data"]);
            bytes.extend_from_slice(&raw::message(&[own.as_str()]));
            bytes.extend_from_slice(&raw::message(&[own.as_str(), "sub"]));
            bytes.extend_from_slice(&raw::message(&[own.as_str(), ":4", "\u{1}", "more"]));
            bytes
        });
        attacker.send(&unasked.collect::<Vec<u8>>()).await;
        ask().await;
    };
    scene.under_rounds(2000, flood).await;
    assert!(asking.late_replies() > 0, "they came");
    drop(attacker);
    answering.close(Duration::from_secs(30)).await;
    asking.close(Duration::from_secs(30)).await;
    scene.finish("replies that nobody asked for", 60).await;
}

/// These peers neither read nor close their connections when the proxy stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_never_close_do_not_keep_the_proxy_from_stopping() {
    let mut daemon = Daemon::start(built("xmsg-proxy"), &["--port", "0", "--linger", "1"]);
    let line = daemon.line().await;
    let port = line.split("publishers ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    let port: u16 = port.parse().unwrap();
    let mut deaf = Raw::handshake(port + 1, "SUB").await;
    deaf.send_message(&["\x01data"]).await;
    deaf.is_read().await;
    let mut publisher = Raw::handshake(port, "PUB").await;
    let _dealer = Raw::handshake(port + 2, "DEALER").await;
    let _silent = Raw::connect(port).await;
    for _ in 0..50 {
        publisher.send_message(&[&b"data"[..], b"meta", &vec![0; 1 << 20]]).await;
    }
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
}
