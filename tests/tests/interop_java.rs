//! Interoperability with JeroMQ, as the Java implementation of xMsg uses it. Debian's JeroMQ speaks ZMTP 2.0.

use xmsg_core::Message;
use xmsg_tests::peer::Peer;
use xmsg_tests::{connect, next, proxy, topic, within};

const MESSAGES: i32 = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_java_peer_connects_subscribes_and_publishes() {
    let proxy = proxy().start().await.unwrap();
    let mut messages = connect(&proxy).subscribe([topic("java:")]).await.unwrap();
    let port = proxy.address().publish_port().to_string();
    let mut peer = Peer::java("JavaPeer.java", &[&port, &MESSAGES.to_string()]);
    peer.expect("connected").await;
    peer.expect("subscribed").await;
    for number in 0..MESSAGES {
        let message: Message = next(&mut messages).await;
        assert_eq!(message.mime_type().unwrap(), "binary/bytes");
        assert_eq!(message.data()[..], number.to_be_bytes());
    }
    within("all of them", peer.expect("echoed")).await;
    peer.finish().await;
}
