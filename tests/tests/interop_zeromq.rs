//! Interoperability with the `zeromq` crate, on either side of our proxy, and of its sockets with ours.

use bytes::Bytes;
use xmsg_core::Message;
use xmsg_tests::{connect, next, proxy, topic, within};
use xmsg_zmq::{Dealer, Publisher, Pull, Push, Replier, Requester, Router, SocketOptions, Subscriber};
use zeromq::{
    DealerSocket, PubSocket, PullSocket, PushSocket, RepSocket, ReqSocket, RouterSocket, Socket, SocketRecv,
    SocketSend, SubSocket, ZmqMessage,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_publisher_reaches_our_subscriber() {
    let proxy = proxy().start().await.unwrap();
    let mut messages = connect(&proxy).subscribe([topic("zmq")]).await.unwrap();
    let mut publisher = PubSocket::new();
    within("connect", publisher.connect(&proxy.address().publish_endpoint())).await.unwrap();
    // The crate does not report when it has received a subscription, so the first messages may be lost.
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

/// Makes one of two sockets bind, and the other one connect.
macro_rules! join {
    ($ours:expr, $theirs:expr, $we_bind:expr) => {
        if $we_bind {
            let endpoint = $ours.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
            within("connect", $theirs.connect(&endpoint.to_string())).await.unwrap();
        } else {
            let endpoint = within("bind", $theirs.bind("tcp://127.0.0.1:0")).await.unwrap();
            $ours.connect(endpoint.to_string().parse().unwrap());
        }
    };
}

/// Sends with a socket of the crate, which refuses to send while no peer is connected, and notices a
/// connection a moment late.
async fn send(socket: &mut impl SocketSend, message: ZmqMessage) {
    within("room", async {
        while socket.send(message.clone()).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn text(frames: &[Bytes]) -> Vec<String> {
    frames.iter().map(|frame| String::from_utf8(frame.to_vec()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_and_pull() {
    for we_bind in [true, false] {
        let (push, mut pull) = (Push::new(SocketOptions::default()), PullSocket::new());
        join!(push, pull, we_bind);
        for number in 0..1000 {
            within("room", push.send([number.to_string(), "data".to_owned()])).await.unwrap();
        }
        for number in 0..1000 {
            let received = within("a message", pull.recv()).await.unwrap().into_vec();
            assert_eq!(text(&received), [number.to_string(), "data".to_owned()]);
        }

        let (pull, mut push) = (Pull::new(SocketOptions::default()), PushSocket::new());
        join!(pull, push, we_bind);
        for number in 0..1000 {
            send(&mut push, message(&[number.to_string().as_bytes(), b"data"])).await;
        }
        for number in 0..1000 {
            let received = within("a message", pull.recv()).await.unwrap();
            assert_eq!(text(received.frames()), [number.to_string(), "data".to_owned()]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn req_and_rep() {
    for we_bind in [true, false] {
        let (requester, mut replier) = (Requester::new(SocketOptions::default()), RepSocket::new());
        join!(requester, replier, we_bind);
        for number in 0..100 {
            let answer = async {
                let request = within("a request", replier.recv()).await.unwrap();
                replier.send(request).await.unwrap();
            };
            let request = requester.request([number.to_string()], std::time::Duration::from_secs(60));
            let (reply, ()) = futures::join!(request, answer);
            assert_eq!(text(reply.unwrap().frames()), [number.to_string()]);
        }

        let (replier, mut requester) = (Replier::new(SocketOptions::default()), ReqSocket::new());
        join!(replier, requester, we_bind);
        for number in 0..100 {
            send(&mut requester, message(&[number.to_string().as_bytes()])).await;
            let (path, request) = within("a request", replier.recv()).await.unwrap();
            replier.try_reply(&path, request).unwrap();
            let reply = within("a reply", requester.recv()).await.unwrap().into_vec();
            assert_eq!(text(&reply), [number.to_string()]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dealer_and_router() {
    for we_bind in [true, false] {
        let (dealer, mut router) = (Dealer::new(SocketOptions::default()), RouterSocket::new());
        join!(dealer, router, we_bind);
        for number in 0..100 {
            within("room", dealer.send([number.to_string()])).await.unwrap();
            let question = within("a message", router.recv()).await.unwrap();
            router.send(question).await.unwrap();
            let answer = within("an answer", dealer.recv()).await.unwrap();
            assert_eq!(text(answer.frames()), [number.to_string()]);
        }

        let (router, mut dealer) = (Router::new(SocketOptions::default()), DealerSocket::new());
        join!(router, dealer, we_bind);
        for number in 0..100 {
            send(&mut dealer, message(&[number.to_string().as_bytes()])).await;
            let (identity, question) = within("a message", router.recv()).await.unwrap();
            router.send(&identity, question).await.unwrap();
            let answer = within("an answer", dealer.recv()).await.unwrap().into_vec();
            assert_eq!(text(&answer), [number.to_string()]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pub_and_sub() {
    for we_bind in [true, false] {
        let (publisher, mut subscriber) = (Publisher::new(SocketOptions::default()), SubSocket::new());
        join!(publisher, subscriber, we_bind);
        subscriber.subscribe("a").await.unwrap();
        within("a subscription", publisher.wait_for_subscriber(b"a")).await.unwrap();
        for number in 0..1000 {
            publisher.publish(["a:b".to_owned(), number.to_string()]).await.unwrap();
        }
        for number in 0..1000 {
            let received = within("a message", subscriber.recv()).await.unwrap().into_vec();
            assert_eq!(text(&received), ["a:b".to_owned(), number.to_string()]);
        }

        let (mut subscriber, mut publisher) = (Subscriber::new(SocketOptions::default()), PubSocket::new());
        subscriber.subscribe("a").unwrap();
        join!(subscriber, publisher, we_bind);
        // The crate does not report when it has received a subscription.
        let mut received = within("the first message", async {
            loop {
                publisher.send(message(&[b"a:b", b"first"])).await.unwrap();
                let soon = std::time::Duration::from_millis(10);
                if let Ok(first) = tokio::time::timeout(soon, subscriber.recv()).await {
                    return first.unwrap();
                }
            }
        })
        .await;
        for number in 0..100 {
            publisher.send(message(&[b"a:b", number.to_string().as_bytes()])).await.unwrap();
        }
        for number in 0..100 {
            while received.frames()[1] == "first" {
                received = within("a message", subscriber.recv()).await.unwrap();
            }
            assert_eq!(text(received.frames()), ["a:b".to_owned(), number.to_string()]);
            if number < 99 {
                received = within("a message", subscriber.recv()).await.unwrap();
            }
        }
    }
}
