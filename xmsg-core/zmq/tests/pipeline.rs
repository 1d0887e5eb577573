//! PUSH, PULL, DEALER and PAIR: round robin, waiting, and what happens to messages when peers come and go.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xmsg_zmq::{
    Dealer, Endpoint, ErrorKind, HighWaterMark, Multipart, Pair, Pull, Push, Receives, Router, Sends,
    SocketEvent, SocketOptions, TcpOptions,
};
use xmsg_zmtp::{Engine, Event, Limits, Options, SocketType};

const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step).await.unwrap_or_else(|_| panic!("{what}: nothing in time"))
}

fn options<S>() -> SocketOptions<S> {
    SocketOptions::default()
}

/// Options with which queues are full after a few messages.
fn small<S>() -> SocketOptions<S> {
    let tcp =
        TcpOptions { send_buffer: Some(4 << 10), receive_buffer: Some(4 << 10), ..TcpOptions::default() };
    SocketOptions::<Both>::default()
        .send_high_water_mark(HighWaterMark { bytes: usize::MAX, messages: 4 })
        .receive_high_water_mark(64)
        .tcp(tcp)
        .for_socket()
}

/// Stands for both sockets that send and sockets that receive.
struct Both;

impl Sends for Both {}

impl Receives for Both {}

fn anywhere() -> Endpoint {
    "tcp://127.0.0.1:0".parse().unwrap()
}

fn number(message: &Multipart) -> u64 {
    std::str::from_utf8(&message.frames()[0]).unwrap().parse().unwrap()
}

/// Waits until `count` peers are connected.
async fn has_peers(peers: impl Fn() -> usize, count: usize) {
    within("peers", async {
        while peers() != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn each_peer_has_its_turn() {
    let push = Push::new(options());
    let endpoint = push.bind(&anywhere()).await.unwrap();
    let pulls: Vec<_> = (0..3).map(|_| Pull::new(options())).collect();
    for pull in &pulls {
        pull.connect(endpoint.clone());
    }
    has_peers(|| push.peers(), 3).await;
    for n in 0..30 {
        push.send([n.to_string()]).await.unwrap();
    }
    for pull in pulls {
        let mut last = None;
        for _ in 0..10 {
            let n = number(&within("a message", pull.recv()).await.unwrap());
            assert!(last.is_none_or(|last| last + 3 == n), "{n} after {last:?}");
            last = Some(n);
        }
    }
}

#[tokio::test]
async fn without_a_peer_a_sender_waits_and_gives_up_without_a_trace() {
    let push = Push::new(options());
    let endpoint = push.bind(&anywhere()).await.unwrap();
    assert_eq!(push.try_send(["nobody"]).unwrap_err().kind(), ErrorKind::Full);
    let mut given_up = Box::pin(push.send(["given up"]));
    assert!(given_up.as_mut().now_or_never().is_none());
    let mut first = Box::pin(push.send(["first"]));
    assert!(first.as_mut().now_or_never().is_none());
    let mut second = Box::pin(push.send(["second"]));
    assert!(second.as_mut().now_or_never().is_none());
    drop(given_up);
    let pull = Pull::new(options());
    pull.connect(endpoint);
    // They are served in the order of their first polls, whichever is polled next.
    let (sent, also) = within("both", futures::future::join(second, first)).await;
    sent.unwrap();
    also.unwrap();
    for expected in ["first", "second"] {
        assert_eq!(within("a message", pull.recv()).await.unwrap().frames(), [expected]);
    }
    assert!(pull.recv().now_or_never().is_none(), "what was given up was not sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_before_closing_arrives() {
    const MESSAGES: u64 = 50_000;
    for (peers, binds) in [(1, true), (1, false), (5, true), (5, false)] {
        let push = Push::new(options());
        let pulls: Vec<_> = (0..peers).map(|_| Pull::new(options())).collect();
        if binds {
            let endpoint = push.bind(&anywhere()).await.unwrap();
            for pull in &pulls {
                pull.connect(endpoint.clone());
            }
        } else {
            for pull in &pulls {
                push.connect(pull.bind(&anywhere()).await.unwrap());
            }
        }
        let received = pulls.into_iter().map(|pull| {
            tokio::spawn(async move {
                pull.take_while(|m| std::future::ready(m.frames()[0] != "end")).count().await
            })
        });
        let received: Vec<_> = received.collect();
        for n in 0..MESSAGES {
            push.send([n.to_string()]).await.unwrap();
        }
        // There is one for each peer, since they are served in round robin.
        has_peers(|| push.peers(), peers).await;
        for _ in 0..peers {
            push.send(["end"]).await.unwrap();
        }
        assert_eq!(within("the end", push.close(PATIENCE)).await, 0);
        assert_eq!(push.send(["late"]).await.unwrap_err().kind(), ErrorKind::Closed);
        let mut sum = 0;
        for count in received {
            sum += within("all messages", count).await.unwrap() as u64;
        }
        assert_eq!(sum, MESSAGES, "{peers} peers, the sender binds: {binds}");
    }
}

#[tokio::test]
async fn flushing_waits_until_everything_is_written() {
    let push = Push::new(small());
    let endpoint = push.bind(&anywhere()).await.unwrap();
    let short = Duration::from_millis(50);
    push.flush(short).await.unwrap();
    let pull = Pull::new(small());
    pull.connect(endpoint);
    // The peer receives nothing, so what does not fit into the buffers of the system waits in the queue.
    let long = vec![0; 64 << 10];
    has_peers(|| push.peers(), 1).await;
    while tokio::time::timeout(short, push.send([long.clone()])).await.is_ok() {}
    let error = push.flush(short).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("messages were not written"), "{error}");
    let flushed = push.flush(PATIENCE);
    tokio::pin!(flushed);
    within("the end of flushing", async {
        loop {
            tokio::select! {
                flushed = &mut flushed => break flushed.unwrap(),
                message = pull.recv() => drop(message.unwrap()),
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_has_not_got_goes_to_the_others() {
    const MESSAGES: u64 = 200;
    for binds in [true, false] {
        let push = Push::new(small());
        let (stuck, works) = (Pull::new(small()), Pull::new(options()));
        if binds {
            let endpoint = push.bind(&anywhere()).await.unwrap();
            stuck.connect(endpoint.clone());
            works.connect(endpoint);
        } else {
            push.connect(stuck.bind(&anywhere()).await.unwrap());
            push.connect(works.bind(&anywhere()).await.unwrap());
        }
        has_peers(|| push.peers(), 2).await;
        let (received, mut numbers) = tokio::sync::mpsc::channel(1000);
        tokio::spawn(async move {
            while let Some(message) = works.recv().await {
                received.send(number(&message)).await.unwrap();
            }
        });
        // The peer that does not receive gets its share until its queues are full: some messages, and some in
        // the buffers of the system.
        let filler = "x".repeat(10 << 10);
        for n in 0..MESSAGES {
            within("room", push.send([n.to_string(), filler.clone()])).await.unwrap();
        }
        drop(stuck);
        has_peers(|| push.peers(), 1).await;
        within("what waited for the peer that went", async {
            while push.moved() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        within("room", push.send([MESSAGES.to_string()])).await.unwrap();
        assert_eq!(within("the end", push.close(PATIENCE)).await, 0);
        let mut got = std::collections::BTreeSet::new();
        while got.last() != Some(&MESSAGES) {
            let n = within("the last message", numbers.recv()).await.unwrap();
            assert!(got.insert(n), "{n} came twice");
        }
        let (sent, received) = (MESSAGES + 1, got.len() as u64);
        // What was written to the peer that is gone is lost with it. It is no more than its buffers hold.
        let lost = sent - received;
        println!("the sender binds: {binds}: sent {sent}, moved {}, lost with the peer {lost}", push.moved());
        assert!(lost < sent / 2, "{lost} of {sent}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_holds_up_nobody_who_can_be_served_by_another_peer() {
    let push = Push::new(small());
    let endpoint = push.bind(&anywhere()).await.unwrap();
    let stuck = Pull::new(small());
    stuck.connect(endpoint.clone());
    has_peers(|| push.peers(), 1).await;
    let filler = "x".repeat(10 << 10);
    while tokio::time::timeout(Duration::from_millis(200), push.send(["full", &filler].map(str::to_owned)))
        .await
        .is_ok()
    {}
    let waiting = tokio::spawn({
        let push = push.clone();
        async move { push.send(["served"]).await }
    });
    let other = Pull::new(options());
    other.connect(endpoint);
    within("room at another peer", waiting).await.unwrap().unwrap();
    assert_eq!(within("the message", other.recv()).await.unwrap().frames(), ["served"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_peer_does_not_take_waits_for_another_that_does() {
    let push = Push::new(small());
    let endpoint = push.bind(&anywhere()).await.unwrap();
    let picky = small().limits(Limits { message_size: 1 << 10, ..Limits::default() });
    let (mut picky, mut other) = (Pull::new(picky), Pull::new(options()));
    for pull in [&picky, &other] {
        pull.connect(endpoint.clone());
    }
    has_peers(|| push.peers(), 2).await;
    // This is far more than the queues of the peer that accepts these messages hold, so the sender has to
    // wait.
    let sending = tokio::spawn({
        let push = push.clone();
        async move {
            for n in 0..100 {
                push.send([n.to_string(), "x".repeat(10 << 10)]).await.unwrap();
            }
        }
    });
    for n in 0..100 {
        assert_eq!(number(&within("a large message", other.recv()).await.unwrap()), n);
    }
    within("the sender", sending).await.unwrap();
    for _ in 0..2 {
        push.send(["0"]).await.unwrap();
    }
    for pull in [&mut picky, &mut other] {
        within("a small message", pull.recv()).await.unwrap();
    }
    drop(other);
    has_peers(|| push.peers(), 1).await;
    let refused = push.send(["too long for the only one".repeat(100)]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused}");
}

#[tokio::test]
async fn a_pair_has_one_peer_and_another_once_that_has_gone() {
    let here = Pair::new(options());
    let endpoint = here.bind(&anywhere()).await.unwrap();
    let first = Pair::new(options());
    first.connect(endpoint.clone());
    within("the first", first.connected()).await.unwrap();
    first.send(["first"]).await.unwrap();
    assert_eq!(within("a message", here.recv()).await.unwrap().frames(), ["first"]);
    let second = Pair::new(options());
    let mut events = second.events();
    second.connect(endpoint);
    // It is rejected before the handshake.
    let refused = within("the end of the second", events.next()).await;
    assert!(matches!(refused, Some(SocketEvent::ConnectFailed { .. })), "{refused:?}");
    here.send(["for the first"]).await.unwrap();
    assert_eq!(within("a message", first.recv()).await.unwrap().frames(), ["for the first"]);
    first.close(Duration::ZERO).await;
    within("the second", second.send(["second"])).await.unwrap();
    assert_eq!(within("a message", here.recv()).await.unwrap().frames(), ["second"]);
}

#[tokio::test]
async fn a_dealer_asks_one_router_after_another_and_hears_them_all() {
    let dealer = Dealer::new(options().identity("me"));
    let routers = [Router::new(options()), Router::new(options())];
    for router in &routers {
        dealer.connect(router.bind(&anywhere()).await.unwrap());
    }
    has_peers(|| dealer.peers(), 2).await;
    for n in 0..10 {
        dealer.send([n.to_string()]).await.unwrap();
    }
    for router in &routers {
        for _ in 0..5 {
            let (identity, message) = within("a request", router.recv()).await.unwrap();
            router.try_send(&identity, message).unwrap();
        }
    }
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(number(&within("an answer", dealer.recv()).await.unwrap()));
    }
    answers.sort_unstable();
    assert_eq!(answers, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn endpoints_come_and_go() {
    let push = Push::new(options());
    let (mut one, mut other) = (Pull::new(options()), Pull::new(options()));
    let (first, second) = (one.bind(&anywhere()).await.unwrap(), other.bind(&anywhere()).await.unwrap());
    push.connect(first.clone());
    within("a connection", push.connected()).await.unwrap();
    push.send(["one"]).await.unwrap();
    assert_eq!(within("a message", one.recv()).await.unwrap().frames(), ["one"]);
    assert!(push.disconnect(&first));
    has_peers(|| push.peers(), 0).await;
    assert!(!push.disconnect(&first), "it is gone");
    // Now it connects to another peer, and then to the first one again.
    push.connect(second.clone());
    push.send(["other"]).await.unwrap();
    assert_eq!(within("a message", other.recv()).await.unwrap().frames(), ["other"]);
    assert!(one.unbind(&first));
    assert!(!one.unbind(&first));
    let again = one.bind(&first).await.unwrap();
    assert_eq!(again, first, "the port was free");
    push.connect(first);
    has_peers(|| push.peers(), 2).await;
    push.send(["a"]).await.unwrap();
    push.send(["b"]).await.unwrap();
    let mut got = Vec::new();
    for pull in [&mut one, &mut other] {
        got.push(within("a message", pull.recv()).await.unwrap().frames()[0].clone());
    }
    got.sort();
    assert_eq!(got, ["a", "b"]);
}

/// A PUSH socket ignores what its peers send (RFC 30). If it kept these messages, a peer could fill its
/// queue, and would then not be read any more.
#[tokio::test]
async fn what_is_sent_to_a_push_socket_is_thrown_away() {
    let push = Push::new(SocketOptions::<Both>::default().receive_high_water_mark(1).for_socket());
    let endpoint = push.bind(&anywhere()).await.unwrap();
    let Endpoint::Tcp { port, .. } = endpoint else { panic!("it is TCP") };
    let mut peer = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut engine = Engine::new(Options::new(SocketType::Pull), Instant::now());
    let mut input = BytesMut::new();
    while !matches!(engine.poll_event(&mut input).unwrap(), Some(Event::Ready(_))) {
        if let Some(bytes) = engine.poll_transmit() {
            peer.write_all(&bytes).await.unwrap();
        }
        within("the handshake", peer.read_buf(&mut input)).await.unwrap();
    }
    if let Some(bytes) = engine.poll_transmit() {
        peer.write_all(&bytes).await.unwrap();
    }
    let mut message = BytesMut::new();
    xmsg_zmtp::encode_message(&mut message, &[Bytes::from(vec![0; 64 << 10])]);
    // This is more than all buffers between them hold.
    for _ in 0..1000 {
        within("room", peer.write_all(&message)).await.unwrap();
    }
    push.send(["task"]).await.unwrap();
    let task = async {
        loop {
            if let Some(Event::Messages(bytes)) = engine.poll_event(&mut input).unwrap() {
                return bytes;
            }
            peer.read_buf(&mut input).await.unwrap();
        }
    };
    assert!(within("the task", task).await.ends_with(b"task"));
}

/// As with PUSH, a message is not accepted if there is no peer for it (RFC 28, RFC 31).
#[tokio::test]
async fn a_dealer_and_a_pair_without_a_peer_take_nothing() {
    let (dealer, pair) = (Dealer::new(options()), Pair::new(options()));
    dealer.bind(&anywhere()).await.unwrap();
    pair.bind(&anywhere()).await.unwrap();
    assert_eq!(dealer.try_send(["nobody"]).unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(pair.try_send(["nobody"]).unwrap_err().kind(), ErrorKind::Full);
    assert!(dealer.send(["nobody"]).now_or_never().is_none(), "it waits");
    assert!(pair.send(["nobody"]).now_or_never().is_none(), "it waits");
    assert_eq!(dealer.close(Duration::ZERO).await + pair.close(Duration::ZERO).await, 0, "nothing was taken");
}

/// Options with which a socket reconnects soon.
fn eager<S>() -> SocketOptions<S> {
    options().reconnect_min(Duration::from_millis(1)).reconnect_max(Duration::from_millis(1))
}

/// The queue for an endpoint exists as soon as the socket connects, over any transport (RFC 30).
#[tokio::test]
async fn what_is_sent_before_there_is_a_connection_waits_for_it() {
    let reserved = Pull::new(options());
    let endpoint = reserved.bind(&anywhere()).await.unwrap();
    assert!(reserved.unbind(&endpoint));
    for endpoint in [endpoint, "inproc://bound-later".parse().unwrap()] {
        let pushes: Vec<_> = (0..20).map(|_| Push::new(eager())).collect();
        for push in &pushes {
            push.connect(endpoint.clone());
            push.try_send(["1"]).unwrap();
            push.try_send(["2"]).unwrap();
        }
        let pull = Pull::new(options());
        pull.bind(&endpoint).await.unwrap();
        let mut received = [0, 0];
        for _ in 0..2 * pushes.len() {
            received[number(&within("a message", pull.recv()).await.unwrap()) as usize - 1] += 1;
        }
        assert_eq!(received, [20, 20], "{endpoint}");
    }
}

/// As with PUSH, the queue for an endpoint exists as soon as the socket connects (RFC 28, RFC 31).
#[tokio::test]
async fn what_a_dealer_or_a_pair_sends_before_there_is_a_connection_waits_for_it() {
    let [first, second] =
        ["inproc://dealer-later", "inproc://pair-later"].map(|name| name.parse::<Endpoint>().unwrap());
    let (dealer, pair) = (Dealer::connecting_to(first.clone(), eager()), Pair::new(eager()));
    pair.connect(second.clone());
    for number in ["1", "2"] {
        dealer.try_send([number]).unwrap();
        pair.try_send([number]).unwrap();
    }
    let (other_dealer, other_pair) = (Dealer::new(options()), Pair::new(options()));
    other_dealer.bind(&first).await.unwrap();
    other_pair.bind(&second).await.unwrap();
    for number in ["1", "2"] {
        assert_eq!(within("a message", other_dealer.recv()).await.unwrap().frames(), [number]);
        assert_eq!(within("a message", other_pair.recv()).await.unwrap().frames(), [number]);
    }
}

/// A socket that is bound to every address is unbound by the endpoint that `bind` has returned.
#[tokio::test]
async fn what_is_bound_to_every_address_is_unbound_by_its_endpoint() {
    let pull = Pull::new(options());
    let everywhere: Endpoint = "tcp://*:0".parse().unwrap();
    let endpoint = pull.bind(&everywhere).await.unwrap();
    assert_ne!(endpoint, everywhere, "it has its port");
    assert!(!pull.unbind(&everywhere));
    assert!(pull.unbind(&endpoint));
    assert_eq!(pull.bind(&endpoint).await.unwrap(), endpoint, "the port was free");
}

/// A message for an unknown identity, or for a peer whose queue is full, is an error, and the call does not
/// wait (RFC 28).
#[tokio::test]
async fn a_router_says_what_it_cannot_send() {
    let router = Router::new(small());
    let endpoint = router.bind(&anywhere()).await.unwrap();
    assert_eq!(router.try_send(b"nobody", ["x"]).unwrap_err().kind(), ErrorKind::Refused);
    let stuck = Dealer::connecting_to(endpoint, small().identity("stuck"));
    stuck.send(["here"]).await.unwrap();
    assert_eq!(within("a message", router.recv()).await.unwrap().0, "stuck");
    // Nothing is written before this test awaits something.
    let sent = (0..100).map(|_| router.try_send(b"stuck", ["x"])).take_while(Result::is_ok).count();
    assert!((1..100).contains(&sent), "{sent}");
    assert_eq!(router.try_send(b"stuck", ["x"]).unwrap_err().kind(), ErrorKind::Full);
    for _ in 0..sent {
        assert_eq!(within("a message", stuck.recv()).await.unwrap().frames(), ["x"]);
    }
    stuck.close(Duration::ZERO).await;
    has_peers(|| router.peers(), 0).await;
    assert_eq!(router.try_send(b"stuck", ["x"]).unwrap_err().kind(), ErrorKind::Refused);
}

/// A peer with our implementation would end the connection again and again.
#[tokio::test]
async fn an_identity_that_nobody_may_have_is_an_error() {
    let there = Router::new(options());
    let endpoint = there.bind(&anywhere()).await.unwrap();
    for identity in [vec![b'x'; 256], vec![0, b'x']] {
        let dealer = Dealer::new(options().identity(identity));
        let mut events = dealer.events();
        assert_eq!(dealer.bind(&anywhere()).await.unwrap_err().kind(), ErrorKind::InvalidOption);
        dealer.connect(endpoint.clone());
        let Some(SocketEvent::ConnectFailed { error, .. }) = within("the reason", events.next()).await else {
            panic!("it says why it does not connect");
        };
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
    }
}

/// What a rejected PAIR sends must not be lost in a connection that ends at once.
#[tokio::test]
async fn a_pair_that_is_not_let_in_keeps_what_it_sends_until_there_is_a_place() {
    let here = Pair::new(options());
    let endpoint = here.bind(&anywhere()).await.unwrap();
    let first = Pair::new(eager());
    first.connect(endpoint.clone());
    within("the first", here.connected()).await.unwrap();
    let mut events = here.events();
    let second = Pair::new(eager());
    second.connect(endpoint);
    second.send(["second"]).await.unwrap();
    // It tries again and again.
    let mut refusals = 0;
    while refusals < 3 {
        if let Some(SocketEvent::HandshakeFailed { error, .. }) = within("a refusal", events.next()).await {
            assert_eq!(error.kind(), ErrorKind::Refused);
            refusals += 1;
        }
    }
    assert_eq!(second.peers(), 0);
    first.close(PATIENCE).await;
    assert_eq!(within("its turn", here.recv()).await.unwrap().frames(), ["second"]);
}

#[tokio::test]
async fn a_name_of_an_interface_stands_for_its_address() {
    let pull = Pull::new(options());
    let Endpoint::Tcp { host, port } = pull.bind(&"tcp://lo:0".parse().unwrap()).await.unwrap() else {
        unreachable!()
    };
    assert_eq!(host, "127.0.0.1");
    let push = Push::new(options());
    push.connect(Endpoint::tcp(host, port));
    within("room", push.send(["x"])).await.unwrap();
    assert_eq!(within("a message", pull.recv()).await.unwrap().frames(), ["x"]);
}

/// An abstract Unix socket has no file, and its name is free as soon as the socket is closed.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_unix_socket_may_be_without_a_file() {
    let name = format!("ipc://@xmsg-pipeline-{}", std::process::id());
    let endpoint: Endpoint = name.parse().unwrap();
    for _ in 0..2 {
        let pull = Pull::new(options());
        assert_eq!(pull.bind(&endpoint).await.unwrap(), endpoint);
        let error = Pull::new(options()).bind(&endpoint).await.unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        let push = Push::new(options());
        push.connect(endpoint.clone());
        within("room", push.send(["x"])).await.unwrap();
        assert_eq!(within("a message", pull.recv()).await.unwrap().frames(), ["x"]);
        assert!(!std::path::Path::new(&name["ipc://".len()..]).exists());
        assert!(pull.unbind(&endpoint));
    }
}
