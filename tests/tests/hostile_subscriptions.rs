//! Attacks with subscriptions: rapid changes, large numbers, and peers that do not read what they asked for.

use std::collections::HashSet;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use xmsg_core::Message;
use xmsg_core::security::Security;
use xmsg_proxy::Policy;
use xmsg_tests::hostile::Scene;
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{connect, next, proxy, topic, within};
use xmsg_zmq::HighWaterMark;

/// Starts a proxy with these limits.
async fn limited(limits: &[&str]) -> Scene {
    Scene::start(env!("CARGO_BIN_EXE_limited-proxy"), limits, Security::Null).await
}

/// Returns subscriptions to many topics or, with a zero byte as `sign`, their cancellations.
fn many(sign: char, count: usize, mut topic: impl FnMut(usize) -> String) -> Vec<u8> {
    (0..count).flat_map(|number| raw::message(&[format!("{sign}{}", topic(number))])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storms_of_subscribing_and_unsubscribing() {
    let scene = Scene::daemon(&[]).await;
    let mut peers = Vec::new();
    for _ in 0..4 {
        peers.push(Raw::handshake(scene.address.subscribe_port(), "SUB").await);
    }
    let name = |number: usize| format!("storm:{number}");
    let once = [many('\x01', 500, name), many('\0', 500, name)].concat();
    let same = [raw::message(&["\x01innocent"]), raw::message(&["\0innocent"])].concat().repeat(500);
    let round = async |number: u64| {
        for peer in &mut peers {
            peer.send(if number.is_multiple_of(2) { &once } else { &same }).await;
            peer.is_read().await;
        }
    };
    scene.under_rounds(3000, round).await;
    drop(peers);
    scene.finish("storms of subscriptions", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_thousand_subscriptions_of_a_peer_that_leaves() {
    let scene = Scene::daemon(&[]).await;
    let attack = async {
        let mut peer = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
        for part in 0..30 {
            peer.send(&many('\x01', 10_000, |number| format!("mass:{}", part * 10_000 + number))).await;
        }
        peer.is_read().await;
        peer
    };
    let peer = scene.under(attack).await;
    // Matching continues as before, even while the subscriptions are removed.
    scene.under(async {}).await;
    scene.under(async { peer.reset() }).await;
    scene.attackers_are_gone().await;
    // A new subscription waits for all changes before it.
    drop(within("a subscription", scene.connection().subscribe([topic("fresh")])).await.unwrap());
    scene.finish("300,000 subscriptions of a peer that leaves", 100).await;
}

/// Subscriptions are removed in slices, so new clients, subscriptions and requests do not wait for the end of
/// it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_until_those_who_left_are_forgotten() {
    const PEERS: usize = 4;
    const EACH: usize = 100_000;
    let proxy = proxy().start().await.unwrap();
    // This publisher has to be informed of all subscriptions that are removed.
    let publisher = connect(&proxy);
    publisher.connect().await.unwrap();
    let mut peers = Vec::new();
    for number in 0..PEERS {
        let mut peer = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
        peer.send(&many('\x01', EACH, |topic| format!("mass:{number}:{topic}"))).await;
        peer.is_read().await;
        peers.push(peer);
    }
    let monitor = proxy.monitor();
    let mut own = within("a subscription", connect(&proxy).subscribe([topic("own")])).await.unwrap();
    assert!(monitor.subscriptions() > PEERS * EACH);
    drop(peers);
    within("the end of the connections", async {
        while monitor.subscribers().len() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for round in 0..5 {
        let name = topic(&format!("fresh:{round}"));
        let mut fresh = within("a subscription", connect(&proxy).subscribe([name.clone()])).await.unwrap();
        let left = monitor.subscriptions();
        assert!(left > EACH, "round {round}: it waited until all but {left} were forgotten");
        for name in [name, topic("own")] {
            publisher.publish(&Message::of(name, round).unwrap()).await.unwrap();
        }
        assert_eq!(next(&mut fresh).await.value::<i32>().unwrap(), round);
        assert_eq!(next(&mut own).await.value::<i32>().unwrap(), round);
    }
    within("the end", async {
        while monitor.subscriptions() > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// At the memory limit of the process, the peer with most subscriptions is disconnected. The others keep
/// theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_of_many_keep_to_the_memory_limit() {
    let scene = Scene::daemon(&["--memory-limit", "40"]).await;
    let attack = async {
        let mut peers = Vec::new();
        for number in 0..6 {
            let mut peer = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
            for part in 0..10 {
                let name = |topic: usize| format!("mass:{number}:{}", part * 10_000 + topic);
                peer.try_send(&many('\x01', 10_000, name)).await;
            }
            peers.push(peer);
        }
        peers
    };
    drop(scene.under(attack).await);
    scene.finish("600,000 subscriptions under a limit of 40 MiB", 40 + 60).await;
}

/// The cost of a topic depends on the number of its subscribers, not on the number of all their prefixes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefixes_that_lie_in_one_another() {
    let scene = Scene::daemon(&[]).await;
    let attack = async {
        let nested = many('\x01', 1000, |len| "n".repeat(len + 1));
        let mut peers = Vec::new();
        for _ in 0..200 {
            let mut peer = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
            peer.send(&nested).await;
            peers.push(peer);
        }
        for peer in &mut peers {
            peer.is_read().await;
        }
        // The topics differ, so that each has to be looked up.
        let stem = "n".repeat(1000);
        let mut publisher = Raw::handshake(scene.address.publish_port(), "PUB").await;
        for round in 0..10 {
            let messages = (0..64).map(|number| raw::message(&[&format!("{stem}{round}:{number}"), "", ""]));
            publisher.send(&messages.collect::<Vec<_>>().concat()).await;
        }
        publisher.is_read().await;
        peers
    };
    drop(scene.under(attack).await);
    scene.finish("prefixes that lie in one another", 80).await;
}

/// Everybody can make up tokens of links, by which proxies find loops. What is kept of them, and passed on,
/// is bounded for all peers together, and a real token finds its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_made_up_are_bounded_and_keep_no_real_one_out() {
    const PEERS: usize = 40;
    const EACH: usize = 1024;
    const FORWARDERS: usize = 40;
    let scene = Scene::daemon(&[]).await;
    let token = |proxy: usize| format!("xmsg:loop:{proxy:032x}:00000001:00000000");
    let (subscribe_port, publish_port) = (scene.address.subscribe_port(), scene.address.publish_port());
    let attack = async {
        let mut peers = Vec::new();
        for peer in 0..PEERS {
            let mut raw = Raw::handshake(subscribe_port, "SUB").await;
            raw.send(&many('\x01', EACH, |number| token(peer * EACH + number))).await;
            raw.is_read().await;
            peers.push(raw);
        }
        let mut forwarders = Vec::new();
        for _ in 0..FORWARDERS {
            forwarders.push(Raw::handshake(publish_port, "XPUB").await);
        }
        (peers, forwarders)
    };
    let (peers, forwarders) = scene.under(attack).await;
    let real = token(PEERS * EACH);
    let mut proxy = Raw::handshake_from(9, subscribe_port, "SUB").await.expect("it is let in");
    proxy.send_message(&[format!("\x01{real}")]).await;
    proxy.is_read().await;
    let mut forwarder = Raw::handshake(publish_port, "XPUB").await;
    let (mut tokens, mut is_ready) = (HashSet::new(), false);
    while !(is_ready && tokens.contains(real.as_bytes())) {
        let (_, body) = forwarder.next_frame().await.expect("subscriptions");
        // One that was replaced while this forwarder joined is cancelled.
        if let Some(topic) =
            body.strip_prefix(b"\x09SUBSCRIBE").filter(|topic| topic.starts_with(b"xmsg:loop:"))
        {
            tokens.insert(topic.to_vec());
        } else if let Some(topic) = body.strip_prefix(b"\x06CANCEL") {
            tokens.remove(topic);
        }
        is_ready |= body == "\x09SUBSCRIBExmsg:control";
    }
    // The one that gave way for the real one may be cancelled right after it.
    assert!(tokens.len() <= EACH + 1, "{} tokens", tokens.len());
    scene
        .under(async {
            drop(peers);
            // A new subscription waits for all changes before it.
            drop(within("a subscription", scene.connection().subscribe([topic("fresh")])).await.unwrap());
        })
        .await;
    drop((proxy, forwarder, forwarders));
    scene.finish("40 x 1024 tokens that are made up, 40 forwarders", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_subscription_made_a_million_times_is_one() {
    let scene = Scene::daemon(&[]).await;
    let mut peer = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
    let same = raw::message(&["\x01again"]).repeat(50_000);
    let nothing = raw::message(&["\0nothing"]).repeat(50_000);
    scene
        .under(async {
            for _ in 0..10 {
                peer.send(&same).await;
                peer.send(&nothing).await;
            }
            peer.is_read().await;
        })
        .await;
    drop(peer);
    scene.finish("one subscription made 500,000 times", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_and_too_long_subscriptions_end_that_connection_alone() {
    let scene = limited(&["subscriptions=1000", "subscription_bytes=100000"]).await;
    let number = many('\x01', 1001, |number| format!("many:{number}"));
    let bytes = many('\x01', 26, |number| format!("{number:04000}"));
    let one = many('\x01', 1, |_| "x".repeat(4097));
    let command = [&b"\x06\0\0\0\0\0\0\x10\x0b\x09SUBSCRIBE"[..], &[b'x'; 4097]].concat();
    for attack in [number, bytes, one, command] {
        let attack = async {
            let mut peer = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
            let _ = peer.try_send(&attack).await;
            peer.closed().await;
        };
        scene.under(attack).await;
    }
    // Within the limits, this can be repeated for ever, because removed subscriptions do not count.
    let mut peer = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
    for round in 0..5 {
        let name = |number: usize| format!("{round}:{number:0900}");
        peer.send(&many('\x01', 100, name)).await;
        peer.send(&many('\0', 100, name)).await;
    }
    peer.is_read().await;
    drop(peer);
    scene.finish("too many subscriptions, too many bytes of them", 40).await;
}

/// Publishers never read the subscriptions that are sent to them while these change. They share the memory of
/// what waits for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaf_publishers_with_many_subscriptions_share_their_memory() {
    // These are sixteen megabytes, more than a connection holds. For each of the deaf publishers on its own,
    // they would be too much.
    const SUBSCRIPTIONS: usize = 4_000;
    const DEAF: usize = 25;
    let scene = Scene::daemon(&[]).await;
    let mut subscriber = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
    subscriber.send(&many('\x01', SUBSCRIPTIONS, |number| format!("large:{number:04000}"))).await;
    subscriber.is_read().await;
    let deaf = scene
        .under(async {
            let mut deaf = Vec::new();
            for number in 0..DEAF {
                deaf.push(Raw::handshake(scene.address.publish_port(), "PUB").await);
                // A subscription changes, so that the next publisher is sent something else.
                subscriber.send_message(&[format!("\x01change:{number}")]).await;
                subscriber.is_read().await;
                drop(
                    within("a subscription", scene.connection().subscribe([topic("settled")])).await.unwrap(),
                );
            }
            deaf
        })
        .await;
    // A publisher that reads is sent all subscriptions, and the control topic last.
    let mut reader = Raw::handshake(scene.address.publish_port(), "PUB").await;
    let mut told = 0;
    loop {
        let (_, body) = reader.next_frame().await.expect("subscriptions");
        if body == "\x09SUBSCRIBExmsg:control" {
            break;
        }
        told += usize::from(
            body.starts_with(b"\x09SUBSCRIBElarge:") || body.starts_with(b"\x09SUBSCRIBEchange:"),
        );
    }
    assert_eq!(told, SUBSCRIPTIONS + DEAF);
    drop((deaf, reader, subscriber));
    scene.finish("25 deaf publishers, 16 MB of subscriptions", 100).await;
}

/// Subscriptions that are larger than what a publisher may leave unread do not keep new publishers out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_subscriptions_that_no_queue_would_take_them_keep_nobody_out() {
    let scene = Scene::daemon(&[]).await;
    let mut subscriber = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
    for part in 0..20 {
        let name = |number: usize| format!("{:04000}", part * 1000 + number);
        subscriber.send(&many('\x01', 1000, name)).await;
    }
    subscriber.is_read().await;
    scene.under(async { within("a publisher", scene.connection().connect()).await.unwrap() }).await;
    drop(subscriber);
    scene.finish("80 MB of subscriptions", 300).await;
}

/// Reads from one connection, 16 KiB in a quarter of a second at most, until `stop`. Returns how many bytes
/// there were.
async fn read_slowly(mut peer: Raw, stop: CancellationToken) -> usize {
    let (mut buffer, mut all) = (vec![0; 16 << 10], 0);
    let reading = async {
        loop {
            let count = peer.stream.read(&mut buffer).await.expect("it stays connected");
            assert!(count > 0, "it stays connected");
            all += count;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    stop.run_until_cancelled(reading).await;
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_that_read_64_kib_a_second_keep_to_the_memory_limit() {
    const SLOW: usize = 1000;
    const LEN: usize = 8 << 10;
    const MESSAGES: usize = 400;
    const LIMIT: u64 = 160;
    let scene = Scene::daemon_with_window(&["--memory-limit", &LIMIT.to_string()], 200).await;
    let stop = CancellationToken::new();
    let mut slow = JoinSet::new();
    for number in 0..SLOW {
        // Their address has its share of the places, and no more.
        let host = 16 + (number % 100) as u8;
        let port = scene.address.subscribe_port();
        let mut peer = Raw::handshake_narrow(host, port, "SUB", 16 << 10).await;
        peer.send_message(&["\x01data"]).await;
        peer.is_read().await;
        slow.spawn(read_slowly(peer, stop.clone()));
    }
    let (publisher, subscriber) = (scene.connection(), scene.connection());
    let mut fast = within("a subscription", subscriber.subscribe([topic("data")])).await.unwrap();
    let attack = async {
        for number in 0..MESSAGES {
            let mut data = vec![0; LEN];
            data[..8].copy_from_slice(&number.to_be_bytes());
            let message = Message::with_mime(topic("data"), "binary/bytes", data);
            within("publishing", publisher.publish(&message)).await.unwrap();
            // Never more than four of them behind: that is within what each may have, however many there are.
            if number >= 4 {
                assert_eq!(next(&mut fast).await.data()[..8], (number - 4).to_be_bytes(), "nothing is lost");
            }
        }
        for number in MESSAGES - 4..MESSAGES {
            assert_eq!(next(&mut fast).await.data()[..8], number.to_be_bytes(), "nothing is lost");
        }
    };
    scene.under(attack).await;
    stop.cancel();
    let read: usize =
        slow.join_all().await.into_iter().inspect(|one| assert!(*one > LEN, "{one} bytes")).sum();
    assert!(read < MESSAGES * LEN * SLOW, "they were slow: {read} bytes");
    within("the publisher", publisher.close(Duration::from_secs(60))).await;
    drop((fast, subscriber));
    scene.finish("1,000 subscribers that read 64 KiB a second", LIMIT + 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_that_never_read_keep_to_their_marks() {
    const DEAF: u64 = 4;
    let scene = Scene::daemon(&["--high-water-mark", "8"]).await;
    let mut deaf = Vec::new();
    for _ in 0..DEAF {
        let mut peer = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
        peer.send_message(&["\x01data"]).await;
        peer.is_read().await;
        deaf.push(peer);
    }
    drop(within("a subscription", scene.connection().subscribe([topic("data")])).await.unwrap());
    let publisher = scene.connection();
    let data = vec![0; 100_000];
    let round = async |_| {
        for _ in 0..20 {
            let message = Message::with_mime(topic("data"), "binary/bytes", data.clone());
            within("publishing", publisher.publish(&message)).await.unwrap();
        }
    };
    scene.under_rounds(3000, round).await;
    within("the publisher", publisher.close(Duration::from_secs(60))).await;
    drop(deaf);
    scene.finish("4 subscribers that never read (8 MiB each)", 40 + DEAF * 8).await;
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
        // The healthy subscriber reads each message at once, and stays below its high-water mark.
        assert_eq!(next(&mut healthy).await.data()[..4], number.to_le_bytes());
    }
    let dropped = proxy.totals().dropped.messages;
    let stats = proxy.subscribers();
    let slow = stats.iter().find(|s| s.dropped.messages > 0).expect("the slow one is shown");
    assert_eq!(slow.dropped.messages, dropped);
    assert!(slow.queued.bytes <= 2 << 20, "the queue is bounded: {:?}", slow.queued);
    let accounted = slow.delivered.messages + slow.queued.messages + slow.dropped.messages;
    assert_eq!(accounted, MESSAGES as u64, "every message is accounted for: {slow:?}");

    // What the slow subscriber then reads are complete messages.
    let mut whole = 0;
    while whole < slow.delivered.messages + slow.queued.messages {
        let (flags, body) = stalled.next_frame().await.expect("whole messages");
        // The answer to the other subscriber's check arrives here, too.
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
    let proxy = proxy().slow_subscriber(Policy::BLOCK).high_water_mark(mark).start().await.unwrap();
    let innocent = connect(&proxy);
    let mut undisturbed = innocent.subscribe([topic("innocent")]).await.unwrap();
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
    for number in 0..100 {
        innocent.publish(&Message::of(topic("innocent"), number).unwrap()).await.unwrap();
        assert_eq!(next(&mut undisturbed).await.value::<i32>().unwrap(), number);
    }
    let mut expected = 0_i32;
    while expected < MESSAGES {
        let (flags, body) = slow.next_frame().await.expect("the connection goes on");
        if flags & 5 == 0 {
            assert_eq!(body[..4], expected.to_le_bytes());
            expected += 1;
        }
    }
    assert!(within("the publisher", sending).await.unwrap().is_nothing());
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
