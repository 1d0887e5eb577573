//! Attacks with connections: many, short, broken, half-open and altered ones.

use std::time::Duration;

use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use xmsg_core::Message;
use xmsg_core::security::Security;
use xmsg_tests::hostile::Scene;
use xmsg_tests::process::built;
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{next, topic, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_opened_and_closed() {
    let scene = Scene::daemon(&[]).await;
    let doors = scene.doors();
    let short = |number: usize| async move {
        let (port, socket_type) = doors[number / 4 % 4];
        match number % 4 {
            0 => drop(Raw::connect(port).await),
            1 => Raw::connect(port).await.reset(),
            // These addresses have no other handshakes in progress, so their connections are always accepted.
            2 => {
                if let Some(mut peer) = Raw::connect_from(2, port).await {
                    let _ = peer.try_send(&raw::greeting(3, 1)).await;
                }
            }
            _ => {
                if let Some(mut peer) = Raw::connect_from(3, port).await {
                    let hello = [&raw::greeting(3, 1)[..], &raw::ready(socket_type, b"")].concat();
                    let _ = peer.try_send(&hello).await;
                    peer.reset();
                }
            }
        }
    };
    let all = futures::stream::iter(0..10_000).map(short).buffer_unordered(32).collect::<Vec<()>>();
    scene.under(all).await;
    scene.finish("10,000 connections opened and closed", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_full_connections_come_and_go() {
    let scene = Scene::daemon(&[]).await;
    let doors = scene.doors();
    scene
        .under(async {
            for round in 0..2 {
                let mut peers = Vec::new();
                for number in 0..500 {
                    let (port, socket_type) = doors[number % 4];
                    peers.push(Raw::handshake(port, socket_type).await);
                }
                if round == 0 {
                    peers.into_iter().for_each(Raw::reset);
                }
            }
        })
        .await;
    scene.finish("1000 full connections", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_and_halves_of_frames_end_that_connection_alone() {
    let scene = Scene::daemon(&[]).await;
    let doors = scene.doors();
    let round = async |number: u64| {
        let (port, socket_type) = doors[number as usize % 4];
        Raw::handshake(port, socket_type).await.reset();
        let mut half = Raw::handshake(port, socket_type).await;
        half.send(&[0, 100, 1, 2, 3]).await;
        drop(half);
        let mut half = Raw::handshake(port, socket_type).await;
        half.send(&[3, 0, 0, 0, 0]).await;
        half.reset();
    };
    scene.under_rounds(1000, round).await;
    scene.finish("resets and halves of frames", 40).await;
}

/// A peer has vanished: nothing comes from it any more, not even the end of its stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_fell_silent_are_given_up() {
    let limits = ["heartbeat_ms=500"];
    let scene = Scene::start(env!("CARGO_BIN_EXE_limited-proxy"), &limits, Security::Null).await;
    let address = &scene.address;
    let doors = [(address.publish_port(), "PUB"), (address.control_port(), "DEALER")];
    let silent = |number: usize| async move {
        let (port, socket_type) = doors[number % 2];
        let mut peer = Raw::handshake(port, socket_type).await;
        // The PINGs to this peer are not answered.
        peer.closed().await;
    };
    scene.under(futures::future::join_all((0..100).map(silent))).await;
    scene.finish("silent peers", 40).await;
}

/// A peer has closed its sending direction, and keeps the other direction open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_closed_connections_are_closed_whole() {
    let scene = Scene::daemon(&[]).await;
    for (port, socket_type) in scene.doors() {
        let attack = async {
            for _ in 0..20 {
                let mut peer = Raw::handshake(port, socket_type).await;
                peer.stream.shutdown().await.unwrap();
                peer.closed().await;
            }
        };
        scene.under(attack).await;
    }
    scene.finish("half-closed connections", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_subscribers_with_one_identity_are_both_served() {
    let scene = Scene::daemon(&[]).await;
    let (publisher, port) = (scene.connection(), scene.address.subscribe_port());
    scene
        .under(async {
            let mut twins = Vec::new();
            for _ in 0..2 {
                let mut twin = Raw::handshake_with(port, "SUB", b"twin").await;
                twin.send_message(&[b"\x01twins"]).await;
                twin.is_read().await;
                twins.push(twin);
            }
            // The check of a new subscription is answered when both earlier subscriptions are active.
            drop(within("a subscription", scene.connection().subscribe([topic("twins")])).await.unwrap());
            publisher.publish(&Message::of(topic("twins:x"), 1).unwrap()).await.unwrap();
            for mut twin in twins {
                loop {
                    let (_, body) = twin.next_frame().await.expect("it stays connected");
                    if body == "twins:x" {
                        break;
                    }
                }
            }
        })
        .await;
    publisher.close(Duration::from_secs(60)).await;
    scene.finish("two subscribers with one identity", 40).await;
}

/// Returns the bytes of a session that every port accepts, with a bit of everything.
fn good_session(socket_type: &str) -> Vec<u8> {
    let mut session = raw::greeting(3, 1).to_vec();
    session.extend_from_slice(&raw::ready(socket_type, b"4711"));
    match socket_type {
        "PUB" => {
            session.extend_from_slice(&raw::ping());
            session.extend_from_slice(&raw::message(&["xmsg:control", "pub", "4711"]));
            session.extend_from_slice(&raw::message(&[&b"mutant"[..], b"meta", &[7; 300]]));
        }
        "SUB" => {
            session.extend_from_slice(b"\x04\x11\x09SUBSCRIBEmutants");
            session.extend_from_slice(&raw::message(&["\x01mutant"]));
            session.extend_from_slice(&raw::message(&["\0mutant"]));
        }
        "DEALER" => session.extend_from_slice(&raw::message(&["anything", "at all"])),
        _ => session.extend_from_slice(&raw::message(&["", "allPublisher", "me", ""])),
    }
    session
}

/// Returns variants of a session: every byte changed in several ways, left out, or doubled, and the session
/// cut off behind every byte.
fn mutations(session: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let changes: [fn(u8) -> u8; 6] =
        [|byte| byte ^ 1, |byte| byte ^ 4, |byte| byte ^ 0x80, |_| 0, |_| 0xff, |byte| byte.wrapping_add(2)];
    (0..session.len()).flat_map(move |at| {
        let mutants = changes.map(|change| {
            let mut mutant = session.to_vec();
            mutant[at] = change(mutant[at]);
            mutant
        });
        let less = [&session[..at], &session[at + 1..]].concat();
        let more = [&session[..=at], &session[at..]].concat();
        mutants.into_iter().chain([less, more, session[..at].to_vec()])
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_mutations_of_a_good_session() {
    let scene = Scene::daemon(&[]).await;
    let sessions = scene.doors().map(|(port, socket_type)| {
        let session = good_session(socket_type);
        mutations(&session).map(move |mutant| (port, mutant)).collect::<Vec<_>>()
    });
    let count: usize = sessions.iter().map(Vec::len).sum();
    assert!(count > 3000, "{count} mutants");
    let play = |(port, mutant): (u16, Vec<u8>)| async move {
        let mut peer = Raw::connect(port).await;
        let _ = peer.try_send(&mutant).await;
        let _ = peer.stream.shutdown().await;
        peer.closed().await;
    };
    let all = futures::stream::iter(sessions.into_iter().flatten()).map(play).buffer_unordered(32);
    scene.under(all.collect::<Vec<()>>()).await;
    scene.finish(&format!("{count} mutations of a good session"), 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes() {
    let scene = Scene::daemon(&[]).await;
    let doors = scene.doors();
    // Every run uses the same bytes.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |len: usize| {
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(len).collect::<Vec<u8>>()
    };
    let noise: Vec<_> = (0..2000_usize)
        .map(|number| {
            let (port, socket_type) = doors[number % 4];
            let start = match number / 4 % 4 {
                0 => Vec::new(),
                1 => b"\xff\0\0\0\0\0\0\0\x01\x7f".to_vec(),
                2 => raw::greeting(3, 1).to_vec(),
                _ => [&raw::greeting(3, 1)[..], &raw::ready(socket_type, b"")].concat(),
            };
            (port, [start, random(1 + number % 500)].concat())
        })
        .collect();
    let play = |(port, bytes): (u16, Vec<u8>)| async move {
        let mut peer = Raw::connect(port).await;
        let _ = peer.try_send(&bytes).await;
        let _ = peer.stream.shutdown().await;
        peer.closed().await;
    };
    let all = futures::stream::iter(noise).map(play).buffer_unordered(32).collect::<Vec<()>>();
    scene.under(all).await;
    scene.finish("2000 sessions of random bytes", 60).await;
}

/// The proxy has no limit of its own, and reaches that of the system. It must recover, and must not spin:
/// every failed attempt to accept writes a line to the log, whose length is checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_out_of_descriptors_does_no_harm_and_ends() {
    let program = env!("CARGO_BIN_EXE_limited-proxy");
    let script = "ulimit -n 64; exec \"$0\"";
    let scene = Scene::start("sh", &["-c", script, program], Security::Null).await;
    let doors = scene.doors();
    let peers = scene
        .under(async {
            let mut peers = Vec::new();
            for number in 0..200 {
                let (port, socket_type) = doors[number % 4];
                let mut peer = Raw::connect(port).await;
                peer.send(&[&raw::greeting(3, 1)[..], &raw::ready(socket_type, b"")].concat()).await;
                peers.push(peer);
            }
            peers
        })
        .await;
    assert!(scene.usage().descriptors >= 64, "they have run out");
    drop(peers);
    within("an innocent", scene.connection().connect()).await.unwrap();
    scene.finish("no descriptors left", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_closes_connections_before_descriptors_run_out() {
    let daemon = built("xmsg-proxy");
    let script = "ulimit -n 112; exec \"$0\" --port 0 --registrar 0";
    let scene = Scene::start("sh", &["-c", script, daemon.to_str().unwrap()], Security::Null).await;
    let (port, _) = scene.doors()[0];
    let peers = scene
        .under(async {
            let mut peers = Vec::new();
            for _ in 0..40 {
                peers.push(Raw::handshake(port, "PUB").await);
            }
            // There is no room for so many more connections, so the last ones are closed at once.
            for _ in 0..30 {
                peers.push(Raw::connect(port).await);
            }
            peers.last_mut().unwrap().closed().await;
            peers
        })
        .await;
    // The descriptors that the registrar needs are left.
    drop(Raw::handshake(scene.registrar, "REQ").await);
    drop(peers);
    within("an innocent", scene.connection().connect()).await.unwrap();
    scene.finish("more connections than descriptors", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_with_all_places_keeps_nobody_out() {
    // There is room for 640 connections.
    let scene = Scene::daemon(&["--memory-limit", "40"]).await;
    let doors = scene.doors();
    let peers = scene
        .under(async {
            let flood =
                (0..900).map(|number| Raw::handshake_from(2, doors[number % 3].0, doors[number % 3].1));
            let flood = futures::stream::iter(flood).buffer_unordered(32).filter_map(std::future::ready);
            flood.collect::<Vec<Raw>>().await
        })
        .await;
    assert!((500..=640).contains(&peers.len()), "{} were let in", peers.len());
    assert!(Raw::handshake_from(2, doors[1].0, "SUB").await.is_none(), "there is no place left");
    scene
        .under(async {
            let mut others = Vec::new();
            for number in 0..40_u8 {
                // The registrar is included, because its connections use the same memory.
                let (port, socket_type) = doors[usize::from(number) % 4];
                let other = Raw::handshake_from(3 + number % 8, port, socket_type).await;
                others.push(other.expect("one of those that have most makes room"));
            }
            let other = scene.connection();
            within("a subscription", other.subscribe([topic("other")])).await.unwrap();
            within("a connection", other.connect()).await.unwrap();
        })
        .await;
    drop(peers);
    scene.finish("all places for one address", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_raises_a_low_limit_of_descriptors() {
    let daemon = built("xmsg-proxy");
    let script = "ulimit -S -n 48; exec \"$0\" --port 0 --registrar 0";
    let scene = Scene::start("sh", &["-c", script, daemon.to_str().unwrap()], Security::Null).await;
    let mut messages = within("a subscription", scene.connection().subscribe([topic("many")])).await.unwrap();
    let port = scene.address.publish_port();
    let peers = futures::stream::iter(0..100).then(|_| Raw::handshake(port, "PUB"));
    let mut peers: Vec<Raw> = scene.under(peers.collect()).await;
    peers[99].send_message(&["many", "meta", "data"]).await;
    assert_eq!(next(&mut messages).await.data(), "data");
    drop((peers, messages));
    scene.finish("a low limit of descriptors", 40).await;
}
