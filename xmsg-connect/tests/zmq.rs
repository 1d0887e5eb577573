//! Outgoing connections and channels with ZeroMQ sockets: ours, those of the `zeromq` crate, and libzmq's.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use std::time::Duration;

use xmsg_connect::definition::{
    ByteSize, ChannelDefinition, Frames, OutgoingDefinition, ReceivingSocket, SendingSocket, SocketMethod,
    Target, WhenInactive,
};
use xmsg_connect::{ErrorKind, LinkState, Outbound, Sort};
use xmsg_core::Message;
use xmsg_tests::{next, within};
use xmsg_zmq::{Pull, Push, Router, SocketOptions, Subscriber};
use zeromq::{Socket, SocketRecv, SocketSend};

use common::{LIMIT, Site, message, set_active};

async fn receive(pull: &Pull) -> Vec<bytes::Bytes> {
    within("a message", pull.recv()).await.unwrap().frames().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_wait_in_the_spool_until_a_peer_is_there_and_while_it_is_away() {
    let site = Site::new().await;
    let pull = Pull::new(SocketOptions::default());
    let endpoint = pull.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    pull.close().await;
    let mut feed = OutgoingDefinition::zmq("feed", SendingSocket::Push, endpoint.to_string());
    feed.subscribe = vec!["feed".into()];
    site.registry.create(feed).await.unwrap();
    for number in 0..100 {
        site.registry.send("feed", message("feed", &number.to_string())).await.unwrap();
    }
    let report = site.until_state("feed", LinkState::Disconnected).await;
    assert_eq!((report.spool.entries, report.link.counts.delivered), (100, 0), "nobody is there");
    let error = site.registry.ping(Sort::Outgoing, "feed", Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");

    let pull = Pull::new(SocketOptions::default());
    pull.bind(&endpoint).await.unwrap();
    for number in 0..100 {
        assert_eq!(receive(&pull).await, message("feed", &number.to_string()).into_frames());
    }
    site.until("feed", "all", |report| report.spool.entries == 0).await;
    site.registry.ping(Sort::Outgoing, "feed", LIMIT).await.unwrap();

    // What is published at the proxy flows out, too.
    let sent = Message::of("feed:x", 4.5).unwrap();
    let flows = async {
        loop {
            site.actor.publish(&sent).await.unwrap();
            if let Ok(Some(got)) = tokio::time::timeout(Duration::from_millis(50), pull.recv()).await {
                return got.frames().to_vec();
            }
        }
    };
    assert_eq!(within("a message that was published", flows).await, sent.clone().into_frames());

    pull.close().await;
    site.until_state("feed", LinkState::Disconnected).await;
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_messages_in_the_spool_loses_none() {
    let mut site = Site::new().await;
    let pull = Pull::new(SocketOptions::default());
    let endpoint = pull.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let mut feed = OutgoingDefinition::zmq("feed", SendingSocket::Push, endpoint.to_string());
    feed.is_active = false;
    feed.frames = Some(Frames::Data);
    site.registry.create(feed).await.unwrap();
    for number in 0..1000_u32 {
        let data = Message::with_mime("feed".parse().unwrap(), "binary/bytes", number.to_be_bytes().to_vec());
        site.registry.send("feed", data).await.unwrap();
    }
    site.restart().await;
    assert_eq!(site.registry.outgoing("feed").unwrap().spool.entries, 1000);
    set_active(&site, Sort::Outgoing, "feed", true).await;
    for number in 0..1000_u32 {
        assert_eq!(receive(&pull).await, [bytes::Bytes::copy_from_slice(&number.to_be_bytes())]);
    }
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_socket_type_sends_connected_and_bound() {
    let site = Site::new().await;
    // PUB, bound: nothing is sent before somebody subscribes.
    let mut publisher = OutgoingDefinition::zmq("pub", SendingSocket::Pub, "tcp://127.0.0.1:0");
    publisher.socket_method = Some(SocketMethod::Bind);
    publisher.address = Some(format!("ipc://{}/pub", site.folder.path().display()));
    let address = publisher.address.clone().unwrap();
    site.registry.create(publisher).await.unwrap();
    site.registry.send("pub", message("news", "first")).await.unwrap();
    let mut subscriber = Subscriber::new(SocketOptions::default());
    subscriber.subscribe("news").unwrap();
    subscriber.connect(address.parse().unwrap());
    let got = within("news", subscriber.recv()).await.unwrap();
    assert_eq!(got.frames(), message("news", "first").into_frames());

    // DEALER: what the peer answers is dropped, and counted.
    let router = Router::new(SocketOptions::default());
    let endpoint = router.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let dealer = OutgoingDefinition::zmq("dealer", SendingSocket::Dealer, endpoint.to_string());
    site.registry.create(dealer).await.unwrap();
    site.registry.send_confirmed("dealer", message("work", "1"), LIMIT).await.unwrap();
    let (from, got) = within("work", router.recv()).await.unwrap();
    assert_eq!(got.frames(), message("work", "1").into_frames());
    router.send(&from, ["thanks"]).await.unwrap();
    site.until("dealer", "an answer", |report| report.link.counts.ignored == 1).await;

    // What a socket does not have is refused.
    let error =
        site.registry.send("dealer", Outbound::new(message("a", "b")).routing_key("k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidMessage, "{error}");
    // An address that is taken is a fault that can be seen.
    let mut taken = OutgoingDefinition::zmq("taken", SendingSocket::Push, endpoint.to_string());
    taken.socket_method = Some(SocketMethod::Bind);
    site.registry.create(taken).await.unwrap();
    let report = site.until_state("taken", LinkState::Faulted).await;
    assert!(report.link.reason.unwrap().what.contains("can't be bound"));
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_bring_messages_in() {
    let site = Site::new().await;
    let mut received = site.actor.subscribe("in").await.unwrap();
    let address = format!("ipc://{}/pull", site.folder.path().display());
    let target = Target::Topic("in".parse().unwrap());
    let mut pull = ChannelDefinition::zmq("pull", ReceivingSocket::Pull, &address, target);
    pull.socket_method = Some(SocketMethod::Bind);
    site.registry.create(pull).await.unwrap();
    let push = Push::new(SocketOptions::default());
    push.connect(address.parse().unwrap());
    push.send(["plain text"]).await.unwrap();
    assert_eq!(next(&mut received).await.value::<String>().unwrap(), "plain text");
    for number in 0..1000 {
        push.send([number.to_string()]).await.unwrap();
    }
    for number in 0..1000 {
        assert_eq!(next(&mut received).await.value::<String>().unwrap(), number.to_string());
    }

    // From a foreign PUB to an outgoing connection, with its own topic.
    let pull = Pull::new(SocketOptions::default());
    let endpoint = pull.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let feed = OutgoingDefinition::zmq("feed", SendingSocket::Push, endpoint.to_string());
    site.registry.create(feed).await.unwrap();
    let mut foreign = zeromq::PubSocket::new();
    let at = foreign.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let channel = ChannelDefinition::zmq("sub", ReceivingSocket::Sub, at, Target::Outgoing("feed".into()));
    site.registry.create(channel).await.unwrap();
    let arrived = async {
        loop {
            let message =
                zeromq::ZmqMessage::try_from(vec![bytes::Bytes::from("alarm"), bytes::Bytes::from("{}")])
                    .unwrap();
            foreign.send(message).await.unwrap();
            if let Ok(Some(got)) = tokio::time::timeout(Duration::from_millis(50), pull.recv()).await {
                return got.frames().to_vec();
            }
        }
    };
    let frames = within("an alarm", arrived).await;
    let got = Message::from_frames(frames[0].clone(), frames[1].clone(), frames[2].clone());
    assert_eq!((got.topic().as_bytes(), got.mime_type().unwrap()), (&b"alarm"[..], "application/json"));
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_socket_that_takes_what_it_is_sent_gets_everything() {
    let site = Site::new().await;
    let mut foreign = zeromq::PullSocket::new();
    let at = foreign.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let feed = OutgoingDefinition::zmq("feed", SendingSocket::Push, at);
    site.registry.create(feed).await.unwrap();
    for number in 0..500 {
        site.registry.send("feed", message("t", &number.to_string())).await.unwrap();
    }
    for number in 0..500 {
        let got = within("a message", foreign.recv()).await.unwrap().into_vec();
        assert_eq!(got, message("t", &number.to_string()).into_frames());
    }
    site.until("feed", "all", |report| report.spool.entries == 0).await;
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_stuck_holds_up_no_other() {
    let site = Site::new().await;
    // Nobody ever answers there: it is bound, and nothing accepts.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("tcp://{}", silent.local_addr().unwrap());
    site.registry.create(OutgoingDefinition::zmq("stuck", SendingSocket::Push, &at)).await.unwrap();
    site.registry.send("stuck", message("a", "b")).await.unwrap();
    let pull = Pull::new(SocketOptions::default());
    let endpoint = pull.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    site.registry
        .create(OutgoingDefinition::zmq("feed", SendingSocket::Push, endpoint.to_string()))
        .await
        .unwrap();
    site.registry.send_confirmed("feed", message("a", "b"), LIMIT).await.unwrap();
    receive(&pull).await;
    set_active(&site, Sort::Outgoing, "stuck", false).await;
    site.until_state("stuck", LinkState::Inactive).await;
    assert_eq!(site.registry.outgoing("stuck").unwrap().spool.entries, 1);
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_edited_while_its_target_is_stuck_keeps_what_it_holds() {
    let site = Site::new().await;
    let mut stuck = OutgoingDefinition::zmq("stuck", SendingSocket::Push, "tcp://127.0.0.1:9");
    stuck.is_active = false;
    stuck.when_inactive = WhenInactive::Reject;
    site.registry.create(stuck.clone()).await.unwrap();
    let push = Push::new(SocketOptions::default());
    let endpoint = push.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let target = Target::Outgoing("stuck".into());
    let channel = ChannelDefinition::zmq("in", ReceivingSocket::Pull, endpoint.to_string(), target);
    site.registry.create(channel.clone()).await.unwrap();
    for number in 0..1000 {
        let frames: Vec<bytes::Bytes> = message("a", &number.to_string()).into_frames().into();
        push.send(frames).await.unwrap();
    }
    within("what was written", push.flush(LIMIT)).await.unwrap();
    site.until_channel("in", "messages", |report| report.link.counts.repeated > 0).await;
    // Edited again and again: its link is made anew, and then it rests.
    for sub_method in [Some(SocketMethod::Connect), None] {
        let edited = ChannelDefinition { socket_method: sub_method, ..channel.clone() };
        site.registry.update("in", edited).await.unwrap();
    }
    set_active(&site, Sort::Channel, "in", false).await;
    site.until_channel("in", "rest", |report| report.link.state == LinkState::Inactive).await;
    set_active(&site, Sort::Channel, "in", true).await;
    stuck.when_inactive = WhenInactive::Store;
    site.registry.update("stuck", stuck).await.unwrap();
    site.until("stuck", "all of them", |report| report.spool.entries >= 1000).await;
    let report = site.registry.outgoing("stuck").unwrap();
    let counts = site.registry.channel("in").unwrap().link.counts;
    assert_eq!((report.spool.entries, counts.dead), (1000, 0), "{counts:?}");
    site.registry.close().await.unwrap();
}

/// What the proxy has delivered and a full spool does not take is given up after some time, so that a
/// connection can end, and is counted.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_spool_does_not_take_at_the_end_is_counted() {
    let site = Site::new().await;
    let mut full = OutgoingDefinition::zmq("full", SendingSocket::Push, "tcp://127.0.0.1:9");
    full.subscribe = vec!["feed".into()];
    full.max_bytes = Some(ByteSize::of(64 << 10));
    site.registry.create(full.clone()).await.unwrap();
    let connection = xmsg_tests::connect(&site.proxy);
    let topic = "feed".parse().unwrap();
    within("its subscription", connection.wait_for_subscriber(&topic)).await.unwrap();
    let published = 300;
    for _ in 0..published {
        connection.publish(&message("feed", &"x".repeat(1000))).await.unwrap();
    }
    within("the proxy has them", connection.flush(LIMIT)).await.unwrap();
    site.until("full", "a full spool", |report| report.spool.waiting > 0).await;
    full.is_active = false;
    full.when_inactive = WhenInactive::Reject;
    site.registry.update("full", full).await.unwrap();
    let report = site.until("full", "losses", |report| report.link.counts.lost_before > 0).await;
    let counts = report.link.counts;
    assert!(counts.accepted > 0 && counts.accepted + counts.lost_before <= published, "{counts:?}");
    let is_reported =
        report.link.incidents.iter().any(|incident| incident.what.contains("messages are lost"));
    assert!(is_reported, "{:?}", report.link.incidents);
    site.registry.close().await.unwrap();
}
