//! The `zeromq` crate, on either side of our proxy.

use bytes::Bytes;
use xmsg_core::Message;
use xmsg_tests::{connect, next, proxy, topic, within};
use zeromq::{PubSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_publisher_reaches_our_subscriber() {
    let proxy = proxy().start().await.unwrap();
    let mut messages = connect(&proxy).subscribe([topic("zmq")]).await.unwrap();
    let mut publisher = PubSocket::new();
    within("connect", publisher.connect(&proxy.address().publish_endpoint())).await.unwrap();
    // It does not say when it has heard of a subscription: the first messages may go nowhere.
    let first = within("the first message", async {
        loop {
            publisher.send(message(&[b"zmq", b"meta", b"-1"])).await.unwrap();
            if let Ok(first) =
                tokio::time::timeout(std::time::Duration::from_millis(50), next(&mut messages)).await
            {
                return first;
            }
        }
    })
    .await;
    assert_eq!(first.data(), "-1");
    for number in 0..1000 {
        publisher.send(message(&[b"zmq:x", b"meta", number.to_string().as_bytes()])).await.unwrap();
    }
    for number in 0..1000 {
        let mut received = next(&mut messages).await;
        while received.data() == "-1" {
            received = next(&mut messages).await;
        }
        assert_eq!(received.data(), number.to_string().as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_publisher_reaches_its_subscriber() {
    let proxy = proxy().start().await.unwrap();
    let publisher = connect(&proxy);
    let mut subscriber = SubSocket::new();
    within("connect", subscriber.connect(&proxy.address().subscribe_endpoint())).await.unwrap();
    subscriber.subscribe("rs").await.unwrap();
    publisher.wait_for_subscriber(&topic("rs")).await.unwrap();
    for number in 0..1000 {
        publisher.publish(&Message::of(topic("rs:x"), number).unwrap()).await.unwrap();
    }
    for number in 0..1000 {
        let received = within("a message", subscriber.recv()).await.unwrap();
        assert_eq!(Message::try_from(received).unwrap().value::<i32>().unwrap(), number);
    }
}

fn message(frames: &[&[u8]]) -> ZmqMessage {
    let frames: Vec<Bytes> = frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
    frames.try_into().expect("there are frames")
}
