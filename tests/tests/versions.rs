//! Tests of peers that speak older versions of ZMTP, byte by byte.

use xmsg_core::Message;
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{connect, next, proxy, topic, within};

/// Returns the greeting of libzmq 3.2 (RFC 15): signature, revision 1, socket type and empty identity.
fn old_greeting(socket_type: u8) -> Vec<u8> {
    [&b"\xff\0\0\0\0\0\0\0\x01\x7f\x01"[..], &[socket_type, 0, 0]].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zmtp_2_0_subscriber_receives() {
    let proxy = proxy().start().await.unwrap();
    let publisher = connect(&proxy);
    let mut old = Raw::connect(proxy.address().subscribe_port()).await;
    old.send(&old_greeting(2)).await;
    old.send_message(&[b"\x01old"]).await;
    publisher.wait_for_subscriber(&topic("old")).await.unwrap();
    publisher.publish(&Message::with_mime(topic("old:x"), "binary/bytes", "hello")).await.unwrap();
    // These are the signature and the major version, then what a 2.0 peer expects: the type of the proxy's
    // socket (XPUB) and its identity.
    old.skip(14).await;
    assert_eq!(old.next_frame().await.unwrap(), (1, "old:x".into()));
    old.next_frame().await.unwrap();
    assert_eq!(old.next_frame().await.unwrap(), (0, "hello".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zmtp_2_0_publisher_is_received() {
    let proxy = proxy().start().await.unwrap();
    let mut messages = connect(&proxy).subscribe([topic("old")]).await.unwrap();
    let mut old = Raw::connect(proxy.address().publish_port()).await;
    old.send(&old_greeting(1)).await;
    old.skip(14).await;
    let (flags, body) = old.next_frame().await.unwrap();
    assert_eq!(flags, 0, "a 2.0 peer is sent subscriptions as messages, and no commands");
    assert!(body.starts_with(b"\x01"));
    old.send_message(&["old", "meta", "data"]).await;
    assert_eq!(next(&mut messages).await.data(), "data");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zmtp_3_0_peer_is_sent_subscriptions_as_messages() {
    let proxy = proxy().start().await.unwrap();
    let _messages = connect(&proxy).subscribe([topic("news")]).await.unwrap();
    within("the end of what it asked after", async {
        while proxy.subscriptions() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut peer = Raw::connect(proxy.address().publish_port()).await;
    peer.send(&raw::greeting(3, 0)).await;
    peer.send(&raw::ready("PUB", b"")).await;
    peer.skip(64).await;
    let mut heard = Vec::new();
    while heard.len() < 3 {
        heard.push(peer.next_frame().await.unwrap());
    }
    assert!(heard[0].1.starts_with(b"\x05READY"));
    assert_eq!(heard[1..], [(0, "\x01news".into()), (0, "\x01xmsg:control".into())], "control comes last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zmtp_1_0_peer_is_sent_away() {
    let proxy = proxy().start().await.unwrap();
    let mut ancient = Raw::connect(proxy.address().subscribe_port()).await;
    ancient.send(b"\x01\x00").await;
    ancient.closed().await;
}
