//! Events and statistics of the connections of a socket.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

use std::sync::Arc;
use std::time::Duration;

use xmsg_zmq::security::{AllowKeys, KeyPair, Security};
use xmsg_zmq::{Endpoint, ErrorKind, Pair, Pull, Push, SocketEvent, SocketEvents, SocketOptions};

const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("too late: {what}"))
}

async fn next(events: &mut SocketEvents) -> SocketEvent {
    within("an event", events.next()).await.unwrap()
}

fn anywhere() -> Endpoint {
    "tcp://127.0.0.1:0".parse().unwrap()
}

fn options<S>() -> SocketOptions<S> {
    SocketOptions::default().reconnect_min(Duration::from_millis(10))
}

#[tokio::test]
async fn each_step_of_a_connection_is_told_on_both_sides() {
    let pull = Pull::new(options());
    let mut there = pull.events();
    let endpoint = pull.bind(&anywhere()).await.unwrap();
    assert!(
        matches!(next(&mut there).await, SocketEvent::Listening { endpoint: reported } if reported == endpoint.to_string())
    );
    let push = Push::new(options());
    let mut here = push.events();
    push.connect(endpoint.clone());
    let SocketEvent::Accepted { peer } = next(&mut there).await else { panic!("it accepts") };
    assert!(matches!(next(&mut there).await, SocketEvent::Connected { peer: reported } if reported == peer));
    assert!(matches!(next(&mut here).await, SocketEvent::Connected { .. }));

    pull.close().await;
    assert!(matches!(next(&mut here).await, SocketEvent::Disconnected { .. }));
    let SocketEvent::ConnectFailed { error, pause, .. } = next(&mut here).await else {
        panic!("nobody is there")
    };
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(pause > Duration::ZERO, "it says when it tries again");
}

#[tokio::test]
async fn a_peer_that_is_not_let_in_is_told_with_the_reason() {
    let keys = KeyPair::generate().unwrap();
    let server = *keys.public();
    let authenticator = Arc::new(AllowKeys::default());
    let security = Security::CurveServer { keys, authenticator };
    let pull = Pull::new(options().security(security));
    let endpoint = pull.bind(&anywhere()).await.unwrap();
    let mut there = pull.events();
    let security = Security::anonymous(server).unwrap();
    let push = Push::new(options().security(security));
    let mut here = push.events();
    push.connect(endpoint);
    assert!(matches!(next(&mut there).await, SocketEvent::Accepted { .. }));
    let SocketEvent::HandshakeFailed { error, .. } = next(&mut there).await else {
        panic!("it is not let in")
    };
    assert_eq!(error.kind(), ErrorKind::NotAllowed);
    let SocketEvent::ConnectFailed { error, .. } = next(&mut here).await else { panic!("it is not let in") };
    assert_eq!(error.kind(), ErrorKind::NotAllowed);
    assert!(error.with_causes().to_string().contains("400"), "{}", error.with_causes());

    // A PAIR accepts one peer.
    let pair = Pair::new(options());
    let endpoint = pair.bind(&anywhere()).await.unwrap();
    let one = Pair::new(options());
    one.connect(endpoint.clone());
    within("a peer", pair.connected()).await.unwrap();
    let mut there = pair.events();
    let other = Pair::new(options());
    other.connect(endpoint);
    let failed = async {
        loop {
            if let SocketEvent::HandshakeFailed { error, .. } = next(&mut there).await {
                return error;
            }
        }
    };
    assert_eq!(failed.await.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn connections_are_known_in_numbers() {
    let (push, pull) = (Push::new(options()), Pull::new(options()));
    push.connect(pull.bind(&anywhere()).await.unwrap());
    within("the peer", push.connected()).await.unwrap();
    for _ in 0..100 {
        push.send(["task", "data"]).await.unwrap();
    }
    for _ in 0..100 {
        within("a task", pull.recv()).await.unwrap();
    }
    let [sent] = &push.connections()[..] else { panic!("one connection") };
    let [received] = &pull.connections()[..] else { panic!("one connection") };
    assert!(sent.is_connected && sent.is_connecting && received.is_connected && !received.is_connecting);
    assert_eq!((received.received.messages, received.written.messages), (100, 0));
    // Each message has two frames with headers of two bytes.
    assert_eq!(received.received.bytes, 100 * (2 + 4 + 2 + 4));
    let written = async {
        while push.connections()[0].queued.messages > 0 {
            tokio::task::yield_now().await;
        }
    };
    within("all is written", written).await;
    let sent = &push.connections()[0];
    assert_eq!((sent.written.messages, sent.written.bytes, sent.dropped), (100, 1200, 0));
}

/// libzmq does this if the types are not compatible: it sends its greeting, and closes the connection when it
/// has read our type.
#[tokio::test]
async fn a_peer_that_goes_when_it_learns_our_type_is_told() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pull = Pull::new(options());
    let Endpoint::Tcp { port, .. } = pull.bind(&anywhere()).await.unwrap() else { panic!("a port") };
    let mut there = pull.events();
    let failed = async |greeting: &[u8]| {
        let mut peer = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        peer.write_all(greeting).await.unwrap();
        if !greeting.is_empty() {
            // This is the length of the greeting, and of the READY command up to the type.
            within("our type", peer.read_exact(&mut [0; 64 + 2 + 6 + 12 + 4 + 4])).await.unwrap();
        }
        drop(peer);
    };
    let mut error = async || loop {
        if let SocketEvent::HandshakeFailed { error, .. } = next(&mut there).await {
            return error;
        }
    };
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    failed(&greeting).await;
    let reported = error().await;
    assert_eq!(reported.kind(), ErrorKind::Refused);
    assert!(reported.to_string().contains("told that this socket is of type PULL"), "{reported}");
    // A peer that sends nothing at all did not get as far as our type.
    failed(&[]).await;
    assert_eq!(error().await.kind(), ErrorKind::Closed);
}
