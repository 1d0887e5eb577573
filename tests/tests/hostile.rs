//! Peers that mean ill, or know no better: each loses its own connection at most, and the others notice nothing.

use std::time::Duration;

use xmsg_core::socket::HighWaterMark;
use xmsg_core::zmtp::Limits;
use xmsg_core::{Message, Subscription};
use xmsg_proxy::{Policy, Proxy};
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{connect, next, proxy, topic, within};

/// Well-behaved traffic around whatever a test does.
struct Innocent {
    publisher: xmsg_core::Connection,
    messages: Subscription,
    sent: i32,
}

impl Innocent {
    async fn start(proxy: &Proxy) -> Self {
        let publisher = connect(proxy);
        let messages = connect(proxy).subscribe([topic("innocent")]).await.unwrap();
        Self { publisher, messages, sent: 0 }
    }

    /// Sends some messages and sees them arrive.
    async fn is_undisturbed(&mut self) {
        for _ in 0..100 {
            self.publisher.publish(&Message::of(topic("innocent"), self.sent)).await.unwrap();
            assert_eq!(next(&mut self.messages).await.value::<i32>().unwrap(), self.sent);
            self.sent += 1;
        }
    }
}

/// Every port of a proxy, and a type of socket that it lets in.
fn doors(proxy: &Proxy) -> [(u16, &'static str); 3] {
    let address = proxy.address();
    [(address.publish_port(), "PUB"), (address.subscribe_port(), "SUB"), (address.control_port(), "DEALER")]
}

/// What an attacker on any port is sent away for.
async fn is_sent_away_for(bytes: &[u8]) {
    let proxy = proxy().start().await.unwrap();
    let mut innocent = Innocent::start(&proxy).await;
    for (port, socket_type) in doors(&proxy) {
        let mut attacker = Raw::handshake(port, socket_type).await;
        attacker.send(bytes).await;
        attacker.closed().await;
        innocent.is_undisturbed().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_giant_length_ends_that_connection_alone() {
    is_sent_away_for(&[2, 0, 0, 32, 0, 0, 0, 0, 0]).await;
    is_sent_away_for(&[2, 255, 255, 255, 255, 255, 255, 255, 255]).await;
    is_sent_away_for(&[6, 127, 255, 255, 255, 255, 255, 255, 255]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reserved_flag_bits_end_that_connection_alone() {
    is_sent_away_for(&[0x80, 0]).await;
    is_sent_away_for(&[0x05, 0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_multipart_message_ends_that_connection_alone() {
    is_sent_away_for(&[1, 0].repeat(2000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_is_answered_with_its_context() {
    let proxy = proxy().start().await.unwrap();
    for (port, socket_type) in doors(&proxy) {
        let mut peer = Raw::handshake(port, socket_type).await;
        peer.send(&raw::ping()).await;
        loop {
            let (flags, body) = peer.next_frame().await.expect("the connection goes on");
            if flags & 4 != 0 && body.starts_with(b"\x04PONG") {
                assert_eq!(body, &b"\x04PONGare you there?"[..]);
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_command_is_ignored() {
    let proxy = proxy().start().await.unwrap();
    let mut innocent = Innocent::start(&proxy).await;
    let mut messages = connect(&proxy).subscribe([topic("odd")]).await.unwrap();
    let mut peer = Raw::handshake(proxy.address().publish_port(), "PUB").await;
    peer.send(b"\x04\x09\x08WHATEVER").await;
    peer.send_message(&[&b"odd"[..], b"meta", b"still here"]).await;
    assert_eq!(next(&mut messages).await.data(), "still here");
    innocent.is_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_or_half_a_frame_ends_that_connection_alone() {
    let proxy = proxy().start().await.unwrap();
    let mut innocent = Innocent::start(&proxy).await;
    for (port, socket_type) in doors(&proxy) {
        Raw::handshake(port, socket_type).await.reset();
        Raw::connect(port).await.reset();
        let mut half = Raw::handshake(port, socket_type).await;
        half.send(&[0, 100, 1, 2, 3]).await;
        drop(half);
        innocent.is_undisturbed().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_type_that_does_not_fit_is_told_so() {
    let proxy = proxy().start().await.unwrap();
    let mut innocent = Innocent::start(&proxy).await;
    for (port, socket_type) in [
        (proxy.address().publish_port(), "STREAM"),
        (proxy.address().publish_port(), "SUB"),
        (proxy.address().subscribe_port(), "STREAM"),
        (proxy.address().subscribe_port(), "PUSH"),
        (proxy.address().control_port(), "STREAM"),
        (proxy.address().control_port(), ""),
    ] {
        let mut peer = Raw::connect(port).await;
        peer.send(&raw::greeting(3, 1)).await;
        peer.send(&raw::ready(socket_type, b"")).await;
        let mut told = false;
        let mut greeting = [0; 64];
        within("a greeting", tokio::io::AsyncReadExt::read_exact(&mut peer.stream, &mut greeting))
            .await
            .unwrap();
        while let Some((_, body)) = peer.next_frame().await {
            told |= body.starts_with(b"\x05ERROR");
        }
        assert!(told, "{socket_type:?} on {port}");
    }
    innocent.is_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_protocols_and_old_zeromq_are_sent_away() {
    let proxy = proxy().start().await.unwrap();
    for hello in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"\x16\x03\x01\x02\x00", b"\x01\x00", &[0; 100]]
    {
        let mut peer = Raw::connect(proxy.address().publish_port()).await;
        peer.send(hello).await;
        peer.closed().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_mechanism_is_sent_away() {
    let proxy = proxy().start().await.unwrap();
    let mut greeting = raw::greeting(3, 1);
    greeting[12..17].copy_from_slice(b"CURVE");
    let mut peer = Raw::connect(proxy.address().publish_port()).await;
    peer.send(&greeting).await;
    peer.closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_are_closed_when_their_time_is_over() {
    let limits = Limits { handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    let proxy = proxy().limits(limits).start().await.unwrap();
    let mut innocent = Innocent::start(&proxy).await;
    let mut silent = Vec::new();
    for number in 0..300 {
        let mut peer = Raw::connect(proxy.address().publish_port() + number % 3).await;
        if number % 2 == 0 {
            peer.send(&raw::greeting(3, 1)[..11]).await;
        }
        silent.push(peer);
    }
    innocent.is_undisturbed().await;
    for mut peer in silent {
        peer.closed().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_never_reads_loses_its_own_messages_and_they_are_counted() {
    const MESSAGES: i32 = 400;
    let mark = HighWaterMark::bytes(1 << 20);
    let proxy = proxy().slow_subscriber(Policy::DropNewest).high_water_mark(mark).start().await.unwrap();
    let mut stalled = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
    stalled.send_message(&[b"\x01data"]).await;
    let publisher = connect(&proxy);
    publisher.wait_for_subscriber(&topic("data")).await.unwrap();
    let mut healthy = connect(&proxy).subscribe([topic("data")]).await.unwrap();
    for number in 0..MESSAGES {
        let mut data = vec![0; 64 << 10];
        data[..4].copy_from_slice(&number.to_le_bytes());
        publisher.publish(&Message::with_mime(topic("data"), "binary/bytes", data)).await.unwrap();
        // Reading along keeps the healthy one below its mark.
        assert_eq!(next(&mut healthy).await.data()[..4], number.to_le_bytes());
    }
    let dropped = proxy.totals().dropped.messages;
    let stats = proxy.subscribers();
    let slow = stats.iter().find(|s| s.dropped.messages > 0).expect("the slow one is shown");
    assert_eq!(slow.dropped.messages, dropped);
    assert!(slow.queued.bytes <= 2 << 20, "the queue is bounded: {:?}", slow.queued);
    let accounted = slow.delivered.messages + slow.queued.messages + slow.dropped.messages;
    assert_eq!(accounted, MESSAGES as u64, "every message is accounted for: {slow:?}");

    // What it then reads are whole messages.
    let mut whole = 0;
    while whole < slow.delivered.messages + slow.queued.messages {
        let (flags, body) = stalled.next_frame().await.expect("whole messages");
        // The answer to the other subscriber's check came by, too.
        if flags & 5 == 0 && body != "sub" {
            assert_eq!(body.len(), 64 << 10);
            whole += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_block_a_slow_subscriber_slows_its_publisher_and_loses_nothing() {
    const MESSAGES: i32 = 300;
    let mark = HighWaterMark::bytes(1 << 20);
    let proxy = proxy().slow_subscriber(Policy::Block).high_water_mark(mark).start().await.unwrap();
    let mut innocent = Innocent::start(&proxy).await;
    let mut slow = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
    slow.send_message(&[b"\x01data"]).await;
    let publisher = connect(&proxy);
    publisher.wait_for_subscriber(&topic("data")).await.unwrap();
    let sending = tokio::spawn(async move {
        for number in 0..MESSAGES {
            let mut data = vec![0; 100 << 10];
            data[..4].copy_from_slice(&number.to_le_bytes());
            publisher.publish(&Message::with_mime(topic("data"), "binary/bytes", data)).await.unwrap();
        }
        publisher.close(Duration::from_secs(60)).await
    });
    innocent.is_undisturbed().await;
    let mut expected = 0_i32;
    while expected < MESSAGES {
        let (flags, body) = slow.next_frame().await.expect("the connection goes on");
        if flags & 5 == 0 {
            assert_eq!(body[..4], expected.to_le_bytes());
            expected += 1;
        }
    }
    assert_eq!(within("the publisher", sending).await.unwrap(), 0);
    assert_eq!(proxy.totals().dropped.messages, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_in_messages_are_kept_to_the_message() {
    const MARK: usize = 5;
    let mark = HighWaterMark { bytes: 64 << 20, messages: MARK };
    let proxy = proxy().slow_subscriber(Policy::DropNewest).high_water_mark(mark).start().await.unwrap();
    let mut stalled = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
    stalled.send_message(&[b"\x01data"]).await;
    let publisher = connect(&proxy);
    publisher.wait_for_subscriber(&topic("data")).await.unwrap();
    for _ in 0..200 {
        publisher
            .publish(&Message::with_mime(topic("data"), "binary/bytes", vec![0; 1 << 20]))
            .await
            .unwrap();
    }
    publisher.close(Duration::from_secs(60)).await;
    within("the drops", async {
        loop {
            let slow = proxy.subscribers().into_iter().find(|s| s.dropped.messages > 0);
            if let Some(slow) = slow {
                assert!(slow.queued.messages <= MARK as u64, "{slow:?}");
                if slow.delivered.messages + slow.queued.messages + slow.dropped.messages == 200 {
                    return;
                }
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_pings_and_never_reads_is_sent_away() {
    let proxy = proxy().start().await.unwrap();
    let mut peer = Raw::handshake(proxy.address().publish_port(), "PUB").await;
    let pings = raw::ping().repeat(1000);
    let flood =
        async { while tokio::io::AsyncWriteExt::write_all(&mut peer.stream, &pings).await.is_ok() {} };
    within("its end", flood).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_subscriptions_end_that_connection_alone() {
    let limits = Limits { subscriptions: 100, ..Limits::default() };
    let proxy = proxy().limits(limits).start().await.unwrap();
    let mut innocent = Innocent::start(&proxy).await;
    let mut greedy = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
    for number in 0..101 {
        greedy.send_message(&[format!("\x01greedy:{number}")]).await;
    }
    greedy.closed().await;
    innocent.is_undisturbed().await;
    within("their subscriptions to go", async {
        while proxy.subscriptions() > 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
