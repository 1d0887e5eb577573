//! Attacks with frames: lengths, flags, commands, and endless messages.

use xmsg_tests::hostile::Scene;
use xmsg_tests::http::Events;
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{topic, within};

/// Checks on every port that an attacker that sends `bytes` again and again is disconnected.
async fn is_sent_away_for(scene: &Scene, bytes: &[u8]) {
    for (port, socket_type) in scene.doors() {
        let attack = async {
            let mut attacker = Raw::handshake(port, socket_type).await;
            while attacker.try_send(bytes).await {}
            attacker.closed().await;
        };
        scene.under(attack).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giant_lengths_end_that_connection_alone() {
    let scene = Scene::daemon(&[]).await;
    is_sent_away_for(&scene, &[2, 0, 0, 32, 0, 0, 0, 0, 0]).await;
    is_sent_away_for(&scene, &[2, 255, 255, 255, 255, 255, 255, 255, 255]).await;
    is_sent_away_for(&scene, &[6, 127, 255, 255, 255, 255, 255, 255, 255]).await;
    is_sent_away_for(&scene, &[3, 0, 0, 0, 0, 255, 255, 255, 255]).await;
    scene.finish("giant lengths", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reserved_flag_bits_end_that_connection_alone() {
    let scene = Scene::daemon(&[]).await;
    for flags in [0x80, 0x40, 0x08, 0x05, 0x07, 0xff] {
        is_sent_away_for(&scene, &[flags, 0]).await;
    }
    scene.finish("reserved flag bits", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_multipart_messages_end_that_connection_alone() {
    let scene = Scene::daemon(&["--max-message-size", "8"]).await;
    // There are endless frames, and frames that are too large together.
    is_sent_away_for(&scene, &[1, 0].repeat(100)).await;
    let large = [&[3, 0, 0, 0, 0, 0, 1, 0, 0][..], &vec![b'x'; 1 << 16]].concat();
    is_sent_away_for(&scene, &large).await;
    scene.finish("endless multipart messages (8 MiB allowed)", 80).await;
}

/// The largest message is what one connection can make the proxy hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_that_are_never_finished_take_their_size() {
    const CONNECTIONS: u64 = 16;
    let scene = Scene::daemon(&["--max-message-size", "4"]).await;
    let port = scene.address.publish_port();
    let len = (4 << 20) - 100_u64;
    let message = [&[2][..], &len.to_be_bytes(), &vec![b'x'; len as usize - 1]].concat();
    let attackers = scene
        .under(async {
            let mut attackers = Vec::new();
            for _ in 0..CONNECTIONS {
                let mut attacker = Raw::handshake(port, "PUB").await;
                attacker.send(&message).await;
                attackers.push(attacker);
            }
            attackers
        })
        .await;
    drop(attackers);
    scene.finish("16 unfinished messages of 4 MiB", 40 + CONNECTIONS * 5).await;
}

/// The peer that holds most is disconnected to make room. The process stays within its limit, however many
/// connections begin messages and do not finish them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_messages_of_many_keep_to_the_memory_limit() {
    const CONNECTIONS: usize = 20;
    const SENT: usize = 15 << 20;
    let scene = Scene::daemon(&["--memory-limit", "100"]).await;
    let attack = async {
        let mut peers = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut peer = Raw::handshake(scene.address.publish_port(), "PUB").await;
            let announced = [&[2][..], &(16_u64 << 20).to_be_bytes()].concat();
            peer.send(&announced).await;
            // This may be the connection that is ended.
            peer.try_send(&vec![7; SENT]).await;
            peers.push(peer);
        }
        peers
    };
    drop(scene.under(attack).await);
    scene.finish("20 unfinished messages of 16 MiB under a limit of 100 MiB", 100 + 40).await;
}

/// Small amounts of very many connections add up, and count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_parts_of_very_many_keep_to_the_memory_limit() {
    const CONNECTIONS: usize = 800;
    let scene = Scene::daemon(&["--memory-limit", "60"]).await;
    let attack = async {
        let mut peers = Vec::new();
        for _ in 0..CONNECTIONS {
            // This connection may be refused, or be the one that is ended.
            let mut peer = Raw::connect(scene.address.publish_port()).await;
            let announced = [&[2][..], &(1_u64 << 20).to_be_bytes()].concat();
            let hello = [&raw::greeting(3, 1)[..], &raw::ready("PUB", b""), &announced].concat();
            peer.try_send(&hello).await;
            peer.try_send(&vec![7; 200 << 10]).await;
            peers.push(peer);
        }
        peers
    };
    drop(scene.under(attack).await);
    scene.finish("800 times 200 KiB of a message under a limit of 60 MiB", 60 + 40).await;
}

/// The position of a message takes more memory than an empty message, and large messages cause large slabs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_messages_behind_large_ones_keep_to_the_memory_limit() {
    const CONNECTIONS: usize = 20;
    let scene = Scene::daemon(&["--memory-limit", "60"]).await;
    let large = raw::message(&[vec![7; 1_000_000]]).repeat(6);
    let empty = [0, 0].repeat(2 << 20);
    let attack = async {
        let mut peers = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut peer = Raw::handshake(scene.address.publish_port(), "PUB").await;
            // This may be the connection that is ended.
            let _ = peer.try_send(&large).await && peer.try_send(&empty).await;
            peers.push(peer);
        }
        peers
    };
    drop(scene.under(attack).await);
    scene
        .finish("20 times 2,000,000 empty messages behind large ones under a limit of 60 MiB", 60 + 40)
        .await;
}

/// What the web page shows of a message is copied, 16 KiB at most: whoever watches holds no message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_take_no_memory_for_those_who_watch_them() {
    const WATCHERS: usize = 12;
    const MESSAGES: usize = 3;
    let mut scene = Scene::daemon(&["--admin", "127.0.0.1:0", "--memory-limit", "200"]).await;
    let line = scene.daemon.line().await;
    let admin = line.strip_prefix("HTTP at http://").expect("it has a page");
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let mut events = Events::open(admin, "/api/v1/tap?topic=large", "").await.expect("a stream");
        assert_eq!(events.next().await.expect("an event").0, "counts");
        watchers.push(events);
    }
    let message = raw::message(&[&b"large"[..], b"", &vec![b'x'; 60 << 20]]);
    let attack = async {
        let mut publisher = Raw::handshake(scene.address.publish_port(), "PUB").await;
        for _ in 0..MESSAGES {
            publisher.send(&message).await;
        }
        for events in &mut watchers {
            let (mut shown, mut all) = (0, false);
            while shown < MESSAGES || !all {
                let (name, data) = events.next().await.expect("the stream goes on");
                if name == "message" {
                    assert!(data.contains("\"length\":62914560") && data.contains("\"shown_bytes\":16384"));
                    shown += 1;
                }
                all |= data == format!("{{\"messages\":{MESSAGES},\"left_out\":0}}");
            }
        }
    };
    scene.under(attack).await;
    drop(watchers);
    scene.finish("3 messages of 60 MiB, which 12 pages watch, under a limit of 200 MiB", 160).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_small_frames_take_no_memory() {
    let scene = Scene::daemon(&[]).await;
    let mut attackers = Vec::new();
    for (port, socket_type) in scene.doors() {
        attackers.push(Raw::handshake(port, socket_type).await);
    }
    let flood = raw::message(&[""]).repeat(10_000);
    let round = async |_| {
        for attacker in &mut attackers {
            attacker.send(&flood).await;
        }
    };
    scene.under_rounds(3000, round).await;
    drop(attackers);
    scene.finish("endless small frames", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_commands_are_ignored_however_many() {
    let scene = Scene::daemon(&[]).await;
    let mut attackers = Vec::new();
    for (port, socket_type) in scene.doors() {
        attackers.push(Raw::handshake(port, socket_type).await);
    }
    let flood = [&b"\x04\x09\x08WHATEVER"[..], b"\x04\x09\x04PONGwhat", &raw::ready("STREAM", b"")].concat();
    let flood = flood.repeat(3000);
    let round = async |_| {
        for attacker in &mut attackers {
            attacker.send(&flood).await;
        }
    };
    scene.under_rounds(2000, round).await;
    // The attackers are still connected.
    for attacker in &mut attackers {
        attacker.is_read().await;
    }
    drop(attackers);
    scene.finish("unknown commands", 60).await;
}

/// Removing a command between two frames moves the first frame: a few bytes must not cause much copying.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_within_a_message_end_that_connection_alone() {
    let scene = Scene::daemon(&[]).await;
    let first = [&[3, 0, 0, 0, 0, 0, 0, 64, 0][..], &vec![b'x'; 16 << 10]].concat();
    let commands = b"\x04\x02\x01X".repeat(10_000);
    for (port, socket_type) in scene.doors() {
        let attack = async {
            let mut attacker = Raw::handshake(port, socket_type).await;
            attacker.send(&first).await;
            while attacker.try_send(&commands).await {}
        };
        scene.under(attack).await;
    }
    scene.finish("commands within a message", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_pings_and_never_reads_is_sent_away() {
    let scene = Scene::daemon(&[]).await;
    is_sent_away_for(&scene, &raw::ping().repeat(1000)).await;
    scene.finish("PINGs without reading the PONGs", 40).await;
}

/// Messages of a few bytes, each in its own read, are for a subscriber that does not read. None of them may
/// keep much memory alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dribbled_messages_do_not_pin_memory() {
    let scene = Scene::daemon(&["--high-water-mark", "8"]).await;
    let mut deaf = Raw::handshake(scene.address.subscribe_port(), "SUB").await;
    deaf.send_message(&["\x01dribble"]).await;
    deaf.is_read().await;
    // When this later subscription is confirmed, the earlier one is in effect.
    drop(within("a subscription", scene.connection().subscribe([topic("dribble")])).await.unwrap());
    let mut publisher = Raw::handshake(scene.address.publish_port(), "PUB").await;
    // Large messages cause large slabs, and small messages follow them.
    let large = raw::message(&[&b"other"[..], &vec![0; 1 << 20]]).repeat(4);
    let small = [1, 900, 1100, 5000, 9000].map(|len| raw::message(&[&b"dribble"[..], &vec![0; len]]));
    let round = async |number: u64| {
        if number.is_multiple_of(100) {
            publisher.send(&large).await;
        }
        for message in &small {
            publisher.send(message).await;
            publisher.is_read().await;
        }
    };
    scene.under_rounds(5000, round).await;
    drop((deaf, publisher));
    scene.finish("dribbled messages (8 MiB for a subscriber)", 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_is_answered_with_its_context() {
    let scene = Scene::daemon(&[]).await;
    for (port, socket_type) in scene.doors() {
        let asked = async {
            let mut peer = Raw::handshake(port, socket_type).await;
            peer.send(&raw::ping()).await;
            loop {
                let (flags, body) = peer.next_frame().await.expect("the connection goes on");
                if flags & 4 != 0 && body.starts_with(b"\x04PONG") {
                    assert_eq!(body, &b"\x04PONGare you there?"[..]);
                    break;
                }
            }
        };
        scene.under(asked).await;
    }
    scene.finish("a PING", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_type_that_does_not_fit_is_told_ours_and_no_more() {
    let scene = Scene::daemon(&[]).await;
    for (port, socket_type) in [
        (scene.address.publish_port(), "STREAM"),
        (scene.address.publish_port(), "SUB"),
        (scene.address.subscribe_port(), "STREAM"),
        (scene.address.subscribe_port(), "PUSH"),
        (scene.address.control_port(), "STREAM"),
        (scene.address.control_port(), ""),
        (scene.registrar, "STREAM"),
        (scene.registrar, "PUB"),
    ] {
        let attack = async {
            let mut peer = Raw::connect(port).await;
            peer.send(&raw::greeting(3, 1)).await;
            peer.send(&raw::ready(socket_type, b"")).await;
            peer.skip(64).await;
            let (_, ours) = peer.next_frame().await.expect("what we are");
            assert!(ours.starts_with(b"\x05READY\x0bSocket-Type"), "{socket_type:?} on {port}");
            while let Some((_, body)) = peer.next_frame().await {
                assert!(!body.starts_with(b"\x05ERROR"), "{socket_type:?} on {port}: libzmq would give up");
            }
        };
        scene.under(attack).await;
    }
    scene.finish("socket types that do not fit", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_protocols_mechanisms_and_old_zeromq_are_sent_away() {
    let scene = Scene::daemon(&[]).await;
    let mut encrypted = raw::greeting(3, 1);
    encrypted[12..17].copy_from_slice(b"CURVE");
    let hellos = [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00",
        b"\x01\x00",
        &[0; 100],
        &encrypted,
    ];
    for hello in hellos {
        for (port, _) in scene.doors() {
            let attack = async {
                let mut peer = Raw::connect(port).await;
                peer.send(hello).await;
                peer.closed().await;
            };
            scene.under(attack).await;
        }
    }
    scene.finish("other protocols", 40).await;
}
