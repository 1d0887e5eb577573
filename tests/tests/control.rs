//! Tests of the control plane: it answers requests, and ignores everything else.

use bytes::Bytes;
use xmsg_proxy::Proxy;
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{proxy, within};
use xmsg_zmq::{Dealer, Multipart, Publisher, SocketOptions, Subscriber};

async fn publisher(proxy: &Proxy) -> Publisher {
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(proxy.address().publish_endpoint().parse().unwrap());
    within("the control subscription", publisher.wait_for_subscriber(b"xmsg:control")).await.unwrap();
    publisher
}

async fn control(proxy: &Proxy, identity: &'static [u8]) -> Dealer {
    let options = SocketOptions::default().identity(Bytes::from_static(identity));
    let dealer = Dealer::connecting_to(proxy.address().control_endpoint().parse().unwrap(), options);
    within("the control connection", dealer.connected()).await.unwrap();
    dealer
}

fn frames(frames: &[&'static [u8]]) -> Multipart {
    frames.iter().map(|frame| Bytes::from_static(frame)).collect()
}

/// Sends a request once. It need not be sent again if the proxy learns of the control socket a moment later
/// than this side.
async fn ask(publisher: &Publisher, dealer: &mut Dealer, request: &Multipart) -> Multipart {
    publisher.publish(request.clone()).await.unwrap();
    within("an answer", dealer.recv()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_answered_once_its_control_socket_is_there() {
    let proxy = proxy().start().await.unwrap();
    let publisher = publisher(&proxy).await;
    let received = proxy.totals().received;
    publisher.publish(frames(&[b"xmsg:control", b"pub", b"412300003"])).await.unwrap();
    let mut known = control(&proxy, b"412300001").await;
    ask(&publisher, &mut known, &frames(&[b"xmsg:control", b"pub", b"412300001"])).await;
    // The earlier request was read before this one.
    let late = control(&proxy, b"412300003").await;
    assert_eq!(within("an answer", late.recv()).await.unwrap(), frames(&[b"pub"]));
    assert_eq!(proxy.totals().received, received, "a request is no message that counts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_request_is_answered_as_the_contract_says() {
    let proxy = proxy().start().await.unwrap();
    let publisher = publisher(&proxy).await;
    let mut dealer = control(&proxy, b"412300001").await;
    for topic in [&b"xmsg:control"[..], b"xmsg:control:con"] {
        let answer = ask(&publisher, &mut dealer, &frames(&[topic, b"pub", b"412300001"])).await;
        assert_eq!(answer, frames(&[b"pub"]));
    }
    let mut dealer = control(&proxy, b"412300002").await;
    let answer = ask(&publisher, &mut dealer, &frames(&[b"xmsg:control", b"rep", b"412300002"])).await;
    assert_eq!(answer, frames(&[b"rep"]));

    let mut subscriber = Subscriber::new(SocketOptions::default());
    subscriber.subscribe("some:topic").unwrap();
    subscriber.connect(proxy.address().subscribe_endpoint().parse().unwrap());
    within("the subscription", publisher.wait_for_subscriber(b"some:topic")).await.unwrap();
    publisher.publish(frames(&[b"xmsg:control:sub", b"sub", b"some:topic"])).await.unwrap();
    assert_eq!(within("the answer", subscriber.recv()).await.unwrap(), frames(&[b"some:topic", b"sub"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_are_bytes() {
    let proxy = proxy().start().await.unwrap();
    let publisher = publisher(&proxy).await;
    let mut dealer = control(&proxy, b"\xff\xfe binary").await;
    let answer = ask(&publisher, &mut dealer, &frames(&[b"xmsg:control", b"pub", b"\xff\xfe binary"])).await;
    assert_eq!(answer, frames(&[b"pub"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_ignored_and_the_next_one_is_answered() {
    let proxy = proxy().start().await.unwrap();
    let publisher = publisher(&proxy).await;
    let mut dealer = control(&proxy, b"412300003").await;
    let long: &'static [u8] = &[b'9'; 300];
    for bad in [
        &[&b"xmsg:control"[..]][..],
        &[b"xmsg:control", b"pub"],
        &[b"xmsg:control", b"pub", b"412300003", b"more"],
        &[b"xmsg:control", b"what", b"412300003"],
        &[b"xmsg:control", b"", b""],
        &[b"xmsg:control", b"pub", b""],
        &[b"xmsg:control", b"pub", long],
        &[b"xmsg:control", b"rep", long],
        &[b"xmsg:control", b"pub", b"nobody"],
    ] {
        publisher.publish(frames(bad)).await.unwrap();
    }
    let request = frames(&[b"xmsg:control", b"pub", b"412300003"]);
    assert_eq!(ask(&publisher, &mut dealer, &request).await, frames(&[b"pub"]));
    let more = tokio::time::timeout(std::time::Duration::from_millis(1), dealer.recv()).await;
    assert!(more.is_err(), "one answer to one request: {more:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_peer_with_the_same_identity_takes_it_over() {
    let proxy = proxy().start().await.unwrap();
    let publisher = publisher(&proxy).await;
    let old = control(&proxy, b"412300004").await;
    let mut events = old.events();
    let mut new = control(&proxy, b"412300004").await;
    let event = within("the end of the old connection", events.next()).await;
    assert!(matches!(event, Some(xmsg_zmq::SocketEvent::Disconnected { .. })), "{event:?}");
    // The old owner of the identity must not connect again and compete for it.
    drop(old);
    let request = frames(&[b"xmsg:control", b"pub", b"412300004"]);
    assert_eq!(ask(&publisher, &mut new, &request).await, frames(&[b"pub"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_requests_are_ordinary_messages_too() {
    let proxy = proxy().start().await.unwrap();
    let publisher = publisher(&proxy).await;
    let mut subscriber = Subscriber::new(SocketOptions::default());
    subscriber.subscribe("xmsg:").unwrap();
    subscriber.connect(proxy.address().subscribe_endpoint().parse().unwrap());
    within("the subscription", publisher.wait_for_subscriber(b"xmsg:")).await.unwrap();
    let request = frames(&[b"xmsg:control", b"pub", b"412300005"]);
    publisher.publish(request.clone()).await.unwrap();
    assert_eq!(within("the request", subscriber.recv()).await.unwrap(), request);
}

/// A connection whose confirmations went to many subscribers has to pause. The other confirmations follow
/// without any further event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirmations_go_on_after_a_pause() {
    const SUBSCRIBERS: usize = 50;
    // With all subscribers, these are more than 20,000 recipients.
    const TOPICS: usize = 500;
    let proxy = proxy().start().await.unwrap();
    let mut subscribers = Vec::new();
    for _ in 0..SUBSCRIBERS {
        let mut peer = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
        peer.send_message(&["\x01many:"]).await;
        peer.is_read().await;
        subscribers.push(peer);
    }
    let mut asking = Raw::handshake(proxy.address().publish_port(), "PUB").await;
    let ask = |topic: usize| raw::message(&["xmsg:control:sub", "sub", &format!("many:{topic}")]);
    asking.send(&(0..TOPICS).flat_map(ask).collect::<Vec<_>>()).await;
    for peer in &mut subscribers {
        let last = async {
            while let Some((_, body)) = peer.next_frame().await {
                if body == format!("many:{}", TOPICS - 1) {
                    return;
                }
            }
            panic!("the connection has ended");
        };
        within("the last confirmation", last).await;
    }
}
