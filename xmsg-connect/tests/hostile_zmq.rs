//! Peers that connect to the ZeroMQ socket of an outgoing connection, and do not take what they are sent.
//! They keep the others from their messages for a bounded time only, and make no message undeliverable.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use xmsg_connect::LinkState;
use xmsg_connect::definition::{OutgoingDefinition, SendingSocket, SocketMethod};
use xmsg_tests::raw::Raw;
use xmsg_tests::within;
use xmsg_zmq::{Endpoint, Multipart, Pull, Router, SocketOptions, Subscriber};
use xmsg_zmtp::Limits;

use common::{LIMIT, Site, message};

const MIB: usize = 1 << 20;

/// Declares an outgoing connection whose socket is bound to a port. Returns the port.
async fn bind(site: &Site, name: &str, socket: SendingSocket) -> u16 {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut definition = OutgoingDefinition::zmq(name, socket, format!("tcp://127.0.0.1:{port}"));
    definition.socket_method = Some(SocketMethod::Bind);
    site.registry.create(definition).await.unwrap();
    // It listens, and nobody is there.
    site.until_state(name, LinkState::Disconnected).await;
    port
}

/// Connects a subscriber to everything that has a receive buffer of a few kilobytes, and does not read.
async fn deaf_subscriber(port: u16) -> Raw {
    let mut raw = within("a handshake", Raw::handshake_narrow(1, port, "SUB", 4096)).await;
    raw.send_message(&["\u{1}"]).await;
    raw
}

/// Connects a subscriber, and waits until it is sent what is published.
async fn subscriber(site: &Site, name: &str, port: u16) -> Subscriber {
    let mut subscriber = Subscriber::new(SocketOptions::default());
    subscriber.subscribe("").unwrap();
    subscriber.connect(format!("tcp://127.0.0.1:{port}").parse().unwrap());
    within("the first message", async {
        loop {
            site.registry.send_confirmed(name, message("probe", ""), LIMIT).await.unwrap();
            if tokio::time::timeout(Duration::from_millis(20), subscriber.recv()).await.is_ok() {
                return;
            }
        }
    })
    .await;
    site.registry.send_confirmed(name, message("begin", ""), LIMIT).await.unwrap();
    while data(&mut subscriber).await.0 != "begin" {}
    subscriber
}

/// Returns the topic of the next message, and the length of its data.
async fn data(subscriber: &mut Subscriber) -> (String, usize) {
    let got = within("a message", subscriber.recv()).await.unwrap();
    (String::from_utf8_lossy(&got.frames()[0]).into_owned(), got.frames()[2].len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_does_not_read_holds_up_the_others_for_a_bounded_time() {
    let site = Site::new().await;
    let port = bind(&site, "pub", SendingSocket::Pub).await;
    let mut other = subscriber(&site, "pub", port).await;
    let before = site.registry.outgoing("pub").unwrap().link.counts.repeated;
    let _deaf = deaf_subscriber(port).await;
    let begin = Instant::now();
    let text = "x".repeat(MIB);
    for number in 0..16 {
        site.registry.send("pub", message(&format!("number:{number}"), &text)).await.unwrap();
    }
    for number in 0..16 {
        let (topic, len) = data(&mut other).await;
        assert_eq!(topic, format!("number:{number}"));
        assert!(len >= MIB);
    }
    println!("16 messages of 1 MiB beside a subscriber that does not read: {:?}", begin.elapsed());
    let report = site.until("pub", "all", |report| report.spool.entries == 0).await;
    let counts = report.link.counts;
    assert_eq!((counts.peers_ended, counts.repeated - before, counts.dead), (1, 0, 0));
    let incidents: Vec<_> = report.link.incidents.iter().map(|incident| &incident.what).collect();
    assert!(
        incidents.iter().any(|what| what.contains("127.0.0.1:") && what.contains("have waited")),
        "{incidents:?}"
    );
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_that_come_and_go_have_nothing_sent_again() {
    let site = Site::new().await;
    let port = bind(&site, "pub", SendingSocket::Pub).await;
    let mut other = subscriber(&site, "pub", port).await;
    for number in 0..20 {
        drop(deaf_subscriber(port).await);
        site.registry.send_confirmed("pub", message(&format!("number:{number}"), ""), LIMIT).await.unwrap();
    }
    for number in 0..20 {
        assert_eq!(data(&mut other).await.0, format!("number:{number}"));
    }
    let counts = site.registry.outgoing("pub").unwrap().link.counts;
    assert_eq!((counts.repeated, counts.peers_ended), (0, 0));
    site.registry.close().await.unwrap();
}

/// Nobody waits for a subscriber that is the only one, and no message is lost because it has left.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_only_subscriber_has_not_taken_waits_for_another_one() {
    let site = Site::new().await;
    let port = bind(&site, "pub", SendingSocket::Pub).await;
    let deaf = deaf_subscriber(port).await;
    site.until_state("pub", LinkState::Connected).await;
    site.registry.send("pub", message("long", &"x".repeat(16 * MIB))).await.unwrap();
    site.until("pub", "the long one", |report| report.link.in_flight == 1).await;
    drop(deaf);
    site.until("pub", "the end of the first", |report| report.link.counts.repeated == 1).await;
    let mut next = Subscriber::new(SocketOptions::default());
    next.subscribe("").unwrap();
    next.connect(format!("tcp://127.0.0.1:{port}").parse().unwrap());
    assert_eq!(data(&mut next).await.0, "long");
    site.registry.close().await.unwrap();
}

/// A peer of a PUSH or DEALER.
enum Receiver {
    Pull(Pull),
    Router(Router),
}

impl Receiver {
    fn connect(to: SendingSocket, endpoint: &Endpoint, options: &SocketOptions) -> Self {
        if to == SendingSocket::Push {
            let pull = Pull::new(options.for_socket());
            pull.connect(endpoint.clone());
            Self::Pull(pull)
        } else {
            let router = Router::new(options.for_socket());
            router.connect(endpoint.clone());
            Self::Router(router)
        }
    }

    async fn receive(&self) -> Multipart {
        match self {
            Self::Pull(pull) => pull.recv().await.unwrap(),
            Self::Router(router) => router.recv().await.unwrap().1,
        }
    }
}

/// A peer that was not chosen by the operator says that it takes one byte at most.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_a_tiny_limit_makes_no_dead_letters() {
    let site = Site::new().await;
    let tiny = Limits { message_size: 1, ..Limits::default() };
    for (name, socket) in [("push", SendingSocket::Push), ("dealer", SendingSocket::Dealer)] {
        let port = bind(&site, name, socket).await;
        let endpoint: Endpoint = format!("tcp://127.0.0.1:{port}").parse().unwrap();
        // It is kept until the end.
        let _stranger = Receiver::connect(socket, &endpoint, &SocketOptions::default().limits(tiny.clone()));
        site.until_state(name, LinkState::Connected).await;
        for number in 0..3 {
            site.registry.send(name, message("work", &number.to_string())).await.unwrap();
        }
        let report = site.until_state(name, LinkState::Faulted).await;
        let why = report.link.reason.unwrap().what;
        assert!(why.contains("waits for another peer") && why.contains("limit of 1 bytes"), "{why}");
        assert_eq!((report.link.counts.too_large_for_peer, report.spool.entries), (1, 3));
        // Another one takes them all, and the first one is passed over.
        let fitting = Receiver::connect(socket, &endpoint, &SocketOptions::default());
        for number in 0..3 {
            let got = within("work", fitting.receive()).await;
            assert_eq!(got.frames(), message("work", &number.to_string()).into_frames());
        }
        let report = site.until(name, "all", |report| report.spool.entries == 0).await;
        assert_eq!((report.link.state, report.link.counts.dead), (LinkState::Connected, 0));
        assert_eq!(report.spool.dead_entries, 0);
    }
    site.registry.close().await.unwrap();
}

/// A subscriber with a tiny limit gets nothing, which is counted, and the others get all.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_with_a_tiny_limit_is_passed_over() {
    let site = Site::new().await;
    let port = bind(&site, "pub", SendingSocket::Pub).await;
    let mut other = subscriber(&site, "pub", port).await;
    let tiny =
        Subscriber::new(SocketOptions::default().limits(Limits { message_size: 1, ..Limits::default() }));
    tiny.subscribe("").unwrap();
    tiny.connect(format!("tcp://127.0.0.1:{port}").parse().unwrap());
    let mut sent = 0;
    while site.registry.outgoing("pub").unwrap().link.counts.too_large_for_peer < 3 {
        assert!(sent < 10_000);
        site.registry.send_confirmed("pub", message(&format!("number:{sent}"), ""), LIMIT).await.unwrap();
        assert_eq!(data(&mut other).await.0, format!("number:{sent}"));
        sent += 1;
    }
    let report = site.registry.outgoing("pub").unwrap();
    assert_eq!((report.link.counts.dead, report.spool.dead_entries), (0, 0));
    site.registry.close().await.unwrap();
}

/// The operator has chosen the peer that an outgoing connection connects to. What that one does not take is a
/// dead letter, with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_the_peer_that_was_chosen_is_a_dead_letter() {
    let site = Site::new().await;
    let pull = Pull::new(SocketOptions::default().limits(Limits { message_size: 1000, ..Limits::default() }));
    let endpoint = pull.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let push = OutgoingDefinition::zmq("push", SendingSocket::Push, endpoint.to_string());
    site.registry.create(push).await.unwrap();
    site.until_state("push", LinkState::Connected).await;
    site.registry.send("push", message("work", &"x".repeat(1000))).await.unwrap();
    site.registry.send("push", message("work", "short")).await.unwrap();
    let got = within("what it takes", pull.recv()).await.unwrap();
    assert_eq!(got.frames(), message("work", "short").into_frames());
    site.until("push", "a dead letter", |report| report.spool.dead_entries == 1).await;
    let dead = site.registry.dead("push", 0, 10).await.unwrap();
    assert!(dead[0].reason.contains("limit of 1000 bytes"), "{}", dead[0].reason);
    site.registry.close().await.unwrap();
}
