//! Interoperability with libzmq, through pyzmq, on either side of our proxy, and of our connections with
//! libzmq's proxy.

use std::time::Duration;

use xmsg_core::{Connection, Message, ProxyAddress, data::mime};
use xmsg_proxy::{Proxy, PublishersSend};
use xmsg_tests::peer::Peer;
use xmsg_tests::{connect, next, patient, proxy, topic, within};

const MESSAGES: usize = 10_000;

fn port(proxy: &Proxy) -> String {
    proxy.address().publish_port().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_libzmq_publisher_with_heartbeats_reaches_our_subscriber() {
    let proxy = proxy().start().await.unwrap();
    let mut messages = connect(&proxy).subscribe([topic("py:")]).await.unwrap();
    let (port, count) = (port(&proxy), MESSAGES.to_string());
    let mut peer = Peer::python(
        "publisher.py",
        &[
            "--port",
            &port,
            "--topic",
            "py:data",
            "--count",
            &count,
            "--size",
            "100",
            "--heartbeat",
            "50",
            "--wait-subscriber",
        ],
    );
    for number in 0..MESSAGES as u64 {
        let message = next(&mut messages).await;
        assert_eq!(message.topic().as_bytes(), b"py:data");
        assert_eq!(message.mime_type().unwrap(), mime::BYTES);
        assert_eq!(message.data()[..8], number.to_le_bytes());
    }
    peer.expect("sent").await;
    peer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_publisher_reaches_a_libzmq_subscriber_with_heartbeats() {
    let proxy = proxy().start().await.unwrap();
    let publisher = connect(&proxy);
    let (port, count) = (port(&proxy), MESSAGES.to_string());
    let mut peer = Peer::python(
        "subscriber.py",
        &["--port", &port, "--topic", "rs:", "--count", &count, "--heartbeat", "50"],
    );
    peer.expect("ready").await;
    publisher.wait_for_subscriber(&topic("rs:data")).await.unwrap();
    // Heartbeats come every 50 ms, and libzmq gives up after 40 of them without an answer. A longer pause
    // therefore shows that they are answered.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    for number in 0..MESSAGES as u64 {
        let message = Message::with_mime(topic("rs:data"), mime::BYTES, number.to_le_bytes().to_vec());
        publisher.publish(&message).await.unwrap();
    }
    let result = peer.expect("received").await;
    assert_eq!(result, [&count, "disorder", "0"]);
    peer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_reaches_libzmq() {
    let proxy = proxy().start().await.unwrap();
    let (port, count) = (port(&proxy), MESSAGES.to_string());
    let mut subscriber =
        Peer::python("subscriber.py", &["--port", &port, "--topic", "py", "--count", &count]);
    subscriber.expect("ready").await;
    let mut publisher = Peer::python(
        "publisher.py",
        &["--port", &port, "--topic", "py", "--count", &count, "--size", "2000", "--wait-subscriber"],
    );
    publisher.expect("sent").await;
    assert_eq!(subscriber.expect("received").await, [&count, "disorder", "0"]);
    publisher.finish().await;
    subscriber.finish().await;
}

/// The control handshakes of the Java, C++ and Python peers, as they are on the wire.
///
/// The peers publish immediately after the confirmation. A libzmq publisher learns of subscriptions in its
/// own thread, some time later. The test sets `publishers_send = "all"`, because the publisher then does not
/// need to know any subscription, and nothing is missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handshakes_of_all_peers_are_answered() {
    let proxy = proxy().publishers_send(PublishersSend::All).start().await.unwrap();
    for language in ["java", "cpp", "python"] {
        let mut peer = Peer::python(
            "control.py",
            &["--port", &port(&proxy), "--language", language, "--settle", "0", "--heartbeat", "50"],
        );
        for step in ["connected", "replied", "subscribed", "echo"] {
            peer.expect(step).await;
        }
        peer.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_connection_works_through_libzmqs_proxy() {
    xmsg_tests::start_tracing();
    let mut old = Peer::python("old_proxy.py", &[]);
    let port: u16 = old.expect("listening").await[0].parse().unwrap();
    let address = ProxyAddress::new("127.0.0.1", port).unwrap();
    let publisher = Connection::with_options(address.clone(), patient()).unwrap();
    let subscriber = Connection::with_options(address, patient()).unwrap();
    let mut messages = within("the checks", subscriber.subscribe([topic("a:b"), topic("c")])).await.unwrap();
    for number in 0..1000 {
        publisher.publish(&Message::of(topic("a:b:c"), number).unwrap()).await.unwrap();
    }
    for number in 0..1000 {
        assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), number);
    }
    assert!(publisher.close(Duration::from_secs(30)).await.is_nothing());
    old.finish().await;
}

/// Internal requests of our clients to a proxy of any implementation must not reach other subscribers to the
/// same topics, which do not know the meaning of messages with two frames.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_subscriber_beside_ours_receives_data_and_nothing_else() {
    let proxy = proxy().start().await.unwrap();
    let mut old = Peer::python("old_proxy.py", &[]);
    let old_port: u16 = old.expect("listening").await[0].parse().unwrap();
    let old_address = ProxyAddress::new("127.0.0.1", old_port).unwrap();
    for address in [proxy.address().clone(), old_address] {
        let port = address.publish_port().to_string();
        let mut plain = Peer::python("events.py", &["--port", &port, "--socket", "sub", "--topic", "a"]);
        plain.expect("connected").await;
        let connection = || Connection::with_options(address.clone(), patient()).unwrap();
        let publisher = connection();
        // The plain subscriber receives what is published from here on.
        publisher.wait_for_subscriber(&topic("a:x")).await.unwrap();
        let mut ours = Vec::new();
        for topics in [&["a"][..], &["a:b", "a"], &["a", "a:b:c", "c"]] {
            let subscribed = connection();
            ours.push((within("a subscription", subscribed.subscribe(topics)).await.unwrap(), subscribed));
        }
        // Our subscriptions are confirmed, so nothing is missed.
        publisher.publish(&Message::of(topic("a:b:c"), 1).unwrap()).await.unwrap();
        for (messages, _) in &mut ours {
            assert_eq!(next(messages).await.value::<i32>().unwrap(), 1);
        }
        assert_eq!(plain.expect("message").await, ["3"], "at {address}");
        plain.finish().await;
    }
    old.finish().await;
}
