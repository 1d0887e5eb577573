//! Attacks before and in the handshake: silence, very slow peers, floods, and endless lists.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use xmsg_core::registration::{OwnerType, Query};
use xmsg_core::security::Security;
use xmsg_core::{Registrar, RegistrarAddress};
use xmsg_tests::hostile::Scene;
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{PATIENCE, topic, within};

/// Starts a proxy with these limits.
async fn limited(limits: &[&str]) -> Scene {
    Scene::start(env!("CARGO_BIN_EXE_limited-proxy"), limits, Security::Null).await
}

/// Returns a READY with these properties, whatever its size.
fn ready_with<'a>(properties: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in properties {
        body.push(name.len() as u8);
        body.extend_from_slice(name);
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value);
    }
    [&[6][..], &(body.len() as u64).to_be_bytes(), &body].concat()
}

/// Checks that new well-behaved clients can connect to every port.
async fn others_get_in(scene: &Scene) {
    let other = scene.connection();
    within("a subscription", other.subscribe([topic("other")])).await.unwrap();
    within("a connection", other.connect()).await.unwrap();
    let registrar = RegistrarAddress::new("127.0.0.1", scene.registrar).unwrap();
    let registrar = Registrar::builder(registrar).discovery_timeout(PATIENCE).build().unwrap();
    let query = Query::topic(OwnerType::Publisher, &topic("other"));
    within("an answer", registrar.find(&query)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greeting_byte_by_byte_is_cut_short() {
    let scene = limited(&["handshake_ms=1000"]).await;
    let doors = scene.doors();
    let trickle = |number: usize| async move {
        let (port, socket_type) = doors[number % doors.len()];
        let mut peer = Raw::connect(port).await;
        // Half of the peers get to their READY in time.
        if number % 2 == 1 {
            peer.send(&raw::greeting(3, 1)).await;
        }
        let bytes = [&raw::greeting(3, 1)[..], &raw::ready(socket_type, b"")].concat();
        for byte in &bytes[64 * (number % 2)..] {
            if !peer.try_send(&[*byte]).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("it was let in");
    };
    scene.under(futures::future::join_all((0..100).map(trickle))).await;
    scene.finish("a greeting byte by byte", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_are_closed_when_their_time_is_over() {
    let scene = limited(&["handshake_ms=500", "handshakes_per_address=1000"]).await;
    let doors = scene.doors();
    let silent = |number: usize| async move {
        let mut peer = Raw::connect(doors[number % doors.len()].0).await;
        let greeting = raw::greeting(3, 1);
        peer.send(&greeting[..[0, 11, 64][number % 3]]).await;
        peer.closed().await;
    };
    scene.under(futures::future::join_all((0..900).map(silent))).await;
    scene.finish("900 silent connections", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_with_all_its_connections_in_the_handshake_locks_nobody_out() {
    // The time limit is so long that connections are closed only because there are too many.
    let scene = limited(&["handshake_ms=600000"]).await;
    let doors = scene.doors();
    let connections = scene
        .under(async {
            // On the three ports of the proxy together, 256 of these connections may stay, and 256 at the
            // registrar.
            let flood = (0..2000).map(|number| Raw::connect_from(2, doors[number % 4].0));
            let mut connections: Vec<Raw> = futures::stream::iter(flood)
                .buffer_unordered(64)
                .filter_map(std::future::ready)
                .collect()
                .await;
            let mut closed: FuturesUnordered<_> = connections.iter_mut().map(Raw::closed).collect();
            let stay = 2 * 256;
            // Some were reset before this side counted them.
            for _ in stay..closed.len() {
                within("the end of a connection", closed.next()).await;
            }
            drop(closed);
            connections
        })
        .await;
    scene.under(others_get_in(&scene)).await;
    drop(connections);
    scene.finish("2000 silent connections from one address", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_addresses_that_fill_the_handshakes_lock_nobody_out() {
    let limits = ["handshake_ms=600000", "handshakes=64", "handshakes_per_address=16"];
    let scene = limited(&limits).await;
    let doors = scene.doors();
    let connections = scene
        .under(async {
            let flood =
                (0..600).map(|number| Raw::connect_from(2 + (number / 4 % 6) as u8, doors[number % 4].0));
            let flood = futures::stream::iter(flood).buffer_unordered(64).filter_map(std::future::ready);
            flood.collect::<Vec<Raw>>().await
        })
        .await;
    scene.under(others_get_in(&scene)).await;
    drop(connections);
    scene.finish("silent connections from six addresses", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_without_end_before_ready_end_that_connection_alone() {
    let scene = Scene::daemon(&[]).await;
    let unknown = b"\x04\x09\x08WHATEVER".repeat(1000);
    let subscribe = b"\x04\x0b\x09SUBSCRIBEx".repeat(1000);
    let pings = raw::ping().repeat(1000);
    let messages = raw::message(&["innocent", "meta", "data"]).repeat(1000);
    for flood in [unknown, subscribe, pings, messages] {
        for (port, _) in scene.doors() {
            let attack = async {
                let mut peer = Raw::connect(port).await;
                peer.send(&raw::greeting(3, 1)).await;
                while peer.try_send(&flood).await {}
            };
            scene.under(attack).await;
        }
    }
    scene.finish("commands without end before READY", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giant_lists_of_properties_take_no_memory() {
    let scene = Scene::daemon(&[]).await;
    let endless = vec![0; 70_000];
    let announced = [6, 127, 255, 255, 255, 255, 255, 255, 255];
    for (port, socket_type) in scene.doors() {
        let socket_type = (&b"Socket-Type"[..], socket_type.as_bytes());
        let many = ready_with([socket_type].into_iter().chain((0..10_000).map(|_| (&b"x"[..], &b""[..]))));
        let long = ready_with([socket_type, (b"x", &endless)]);
        for ready in [&many[..], &long, &announced] {
            let attack = async {
                let mut peer = Raw::connect(port).await;
                peer.send(&raw::greeting(3, 1)).await;
                let _ = peer.try_send(ready).await;
                peer.closed().await;
            };
            scene.under(attack).await;
        }
    }
    // Handshakes within the limit are accepted. What they announced is not stored.
    let large = vec![0; 60_000];
    let peers = scene
        .under(async {
            let mut peers = Vec::new();
            for number in 0..600 {
                let (port, socket_type) = scene.doors()[number % 4];
                let identity = format!("peer {number}");
                let properties: [(&[u8], &[u8]); 3] = [
                    (b"Socket-Type", socket_type.as_bytes()),
                    (b"Identity", identity.as_bytes()),
                    (b"x", &large),
                ];
                let mut peer = Raw::connect(port).await;
                peer.send(&raw::greeting(3, 1)).await;
                peer.send(&ready_with(properties)).await;
                peer.skip(64).await;
                assert!(peer.next_frame().await.is_some_and(|(flags, _)| flags & 4 != 0), "READY");
                peers.push(peer);
            }
            peers
        })
        .await;
    drop(peers);
    scene.finish("giant lists of properties", 40).await;
}

/// The memory of a connection counts before the peer is authenticated, and must not grow so far that others
/// can't connect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_are_long_and_never_finished_keep_to_the_memory_limit() {
    const CONNECTIONS: usize = 700;
    let scene = limited(&["handshake_ms=600000", "memory_mib=40"]).await;
    let port = scene.address.publish_port();
    let large = vec![0; 64_000];
    let ready = ready_with([(&b"Socket-Type"[..], &b"PUB"[..]), (b"x", &large)]);
    let unfinished = [&raw::greeting(3, 1)[..], &ready[..62_000]].concat();
    let peers = scene
        .under(async {
            let mut peers = Vec::new();
            for number in 0..CONNECTIONS {
                // This connection may be refused.
                let Some(mut peer) = Raw::connect_from(20 + (number % 100) as u8, port).await else {
                    continue;
                };
                peer.try_send(&unfinished).await;
                peers.push(peer);
            }
            peers
        })
        .await;
    scene.under(others_get_in(&scene)).await;
    drop(peers);
    scene.finish("700 times 62 KB of a handshake under a limit of 40 MiB", 40).await;
}
