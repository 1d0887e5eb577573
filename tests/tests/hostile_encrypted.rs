//! Attacks on ports with security: bytes that can't be decrypted, recorded traffic, and floods of expensive
//! work.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::io::AsyncReadExt;
use xmsg_core::Connection;
use xmsg_core::security::{KeyPair, Password, Security};
use xmsg_proxy::security::hash_password;
use xmsg_tests::hostile::Scene;
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{topic, within};
use xmsg_zmtp::curve::Cipher;
use xmsg_zmtp::{Engine, Event, Options, SocketType};

/// Returns a proxy with CURVE that accepts every key, and its key pair.
async fn encrypted() -> (Scene, KeyPair) {
    encrypted_with(&[]).await
}

/// Returns an encrypted proxy with these limits and a well-behaved client, and the key pair of the proxy.
async fn encrypted_with(limits: &[&str]) -> (Scene, KeyPair) {
    let (server, innocent) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let secret = format!("curve={}", *server.secret().expose_text());
    let security = Security::CurveClient { keys: innocent, server: *server.public() };
    let arguments = [&[&secret[..]], limits].concat();
    let scene = Scene::start(env!("CARGO_BIN_EXE_limited-proxy"), &arguments, security).await;
    (scene, server)
}

/// What a client has sent in its handshake.
struct Recorded {
    /// The greeting, HELLO and INITIATE, each as it was written.
    sent: Vec<Bytes>,
    cipher: Cipher,
}

/// Completes a good handshake, and records what the client sends.
async fn record(raw: &mut Raw, socket_type: SocketType, security: &Security) -> Recorded {
    let mut engine = Engine::with_mechanism(Options::new(socket_type), security.mechanism(), Instant::now());
    let (mut sent, mut input) = (Vec::new(), BytesMut::new());
    loop {
        let event = engine.poll_event(&mut input).expect("the server is well-behaved");
        while let Some(bytes) = engine.poll_transmit() {
            raw.send(&bytes).await;
            sent.push(bytes);
        }
        match event {
            Some(Event::Ready(_)) => {
                return Recorded { sent, cipher: engine.take_cipher().expect("it is encrypted") };
            }
            Some(_) => {}
            None => {
                let count = within("the server", raw.stream.read_buf(&mut input)).await.expect("the server");
                assert!(count > 0, "the server has closed the connection");
            }
        }
    }
}

fn client(server: &KeyPair) -> Security {
    Security::CurveClient { keys: KeyPair::generate().unwrap(), server: *server.public() }
}

fn greeting(mechanism: &[u8]) -> [u8; 64] {
    let mut greeting = raw::greeting(3, 1);
    greeting[12..32].fill(0);
    greeting[12..12 + mechanism.len()].copy_from_slice(mechanism);
    greeting
}

/// Returns boxes for these frames, which are given by flags and body.
fn boxes(cipher: &mut Cipher, frames: &[(u8, &[u8])]) -> BytesMut {
    let mut out = BytesMut::new();
    for (flags, body) in frames {
        cipher.sealer.seal(*flags, body, &mut out);
    }
    out
}

const MESSAGE: [(u8, &[u8]); 3] = [(1, b"again"), (1, b"meta"), (0, b"data")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_open_nothing_end_that_connection_alone() {
    let (scene, server) = encrypted().await;
    let mut random = vec![0; 4000];
    fastrand::Rng::with_seed(7).fill(&mut random);
    let hello = [&b"\x04\xc8\x05HELLO\x01\0"[..], &random[..192]].concat();
    let giant = [&[6, 0, 0, 1, 0, 0, 0, 0, 0][..], &random].concat();
    for (port, _) in scene.doors() {
        for bytes in [&random[..], &hello, &giant, &raw::ready("PUB", b""), &raw::message(&["innocent"])] {
            let attack = async {
                let mut peer = Raw::connect(port).await;
                peer.send(&greeting(b"CURVE")).await;
                while peer.try_send(bytes).await {}
            };
            scene.under(attack).await;
        }
        // Garbage is sent after a good handshake, too.
        for bytes in [&random[..], &giant, &raw::message(&["innocent", "meta", "data"]), &raw::ping()] {
            let attack = async {
                let mut peer = Raw::connect(port).await;
                let socket_type = scene.doors().iter().find(|door| door.0 == port).expect("a door").1;
                let socket_type = SocketType::from_name(socket_type.as_bytes()).expect("a type");
                record(&mut peer, socket_type, &client(&server)).await;
                while peer.try_send(bytes).await {}
            };
            scene.under(attack).await;
        }
    }
    scene.finish("bytes that open nothing", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_recorded_cannot_be_played_again() {
    let (scene, server) = encrypted().await;
    let port = scene.address.publish_port();
    let mut messages =
        within("a subscription", scene.connection().subscribe([topic("again")])).await.unwrap();
    let mut peer = Raw::connect(port).await;
    let mut good = record(&mut peer, SocketType::Pub, &client(&server)).await;
    let message = boxes(&mut good.cipher, &MESSAGE);
    peer.send(&message).await;
    assert_eq!(within("the message", messages.next()).await.unwrap().unwrap().data(), "data");
    // The box is repeated on the same connection, in whole or in part.
    scene
        .under(async {
            peer.send(&message).await;
            peer.closed().await;
        })
        .await;
    // The handshake is repeated on another connection, without and with the box behind it.
    let session = good.sent.concat();
    let all = [&session[..], &message].concat();
    for bytes in [&session[..], &all] {
        for (port, _) in scene.doors() {
            let attack = async {
                let mut peer = Raw::connect(port).await;
                let _ = peer.try_send(bytes).await;
                peer.closed().await;
            };
            scene.under(attack).await;
        }
    }
    // The box is sent behind another good handshake, and boxes are sent in another order.
    for order in [vec![0], vec![2, 1], vec![1, 1]] {
        let attack = async {
            let mut peer = Raw::connect(port).await;
            let mut fresh = record(&mut peer, SocketType::Pub, &client(&server)).await;
            let own = [(); 3].map(|()| boxes(&mut fresh.cipher, &[(4, b"\x01X")]));
            for number in order {
                let _ = peer.try_send(if number == 0 { &message } else { &own[number] }).await;
            }
            peer.closed().await;
        };
        scene.under(attack).await;
    }
    assert!(
        futures::poll!(std::pin::pin!(messages.next())).is_pending(),
        "one message was sent, and one came"
    );
    drop(messages);
    scene.finish("recorded handshakes and boxes", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutations_of_an_encrypted_session() {
    let (scene, server) = encrypted().await;
    let port = scene.address.publish_port();
    let mut peer = Raw::connect(port).await;
    let good = record(&mut peer, SocketType::Pub, &client(&server)).await;
    drop(peer);
    // The INITIATE belongs to another connection in any case, so only changes before it are of interest.
    let session = good.sent.concat();
    let mutants = (0..session.len()).flat_map(|at| {
        let mut changed = session.clone();
        changed[at] ^= 1;
        [changed, session[..at].to_vec()]
    });
    let play = |mutant: Vec<u8>| async move {
        let mut peer = Raw::connect(port).await;
        let _ = peer.try_send(&mutant).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut peer.stream).await;
        peer.closed().await;
    };
    let all = futures::stream::iter(mutants).map(play).buffer_unordered(32);
    scene.under(all.collect::<Vec<()>>()).await;
    scene.finish("mutations of an encrypted session", 40).await;
}

/// The peer that holds most is disconnected to make room. Boxes and their decrypted content are in memory at
/// the same time, and both count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_messages_in_boxes_keep_to_the_memory_limit() {
    const CONNECTIONS: usize = 7;
    const LIMIT: u64 = 80;
    // The limit for messages is 64 MiB. The last frame of this message never comes.
    let frame = vec![7; 24 << 20];
    let (scene, server) = encrypted_with(&[&format!("memory_mib={LIMIT}")]).await;
    let port = scene.address.publish_port();
    let begin = async || {
        let mut peer = Raw::connect(port).await;
        let mut session = record(&mut peer, SocketType::Pub, &client(&server)).await;
        let boxed = boxes(&mut session.cipher, &[(1, &frame)]);
        // This may be the connection that is ended.
        peer.try_send(&boxed).await;
        peer
    };
    drop(scene.under(futures::future::join_all((0..CONNECTIONS).map(|_| begin()))).await);
    // The memory of an ended connection is freed a moment after it is counted as free. At worst, two
    // connections are in this state.
    scene
        .finish("7 unfinished messages of 24 MiB in boxes under a limit of 80 MiB", LIMIT + 2 * 24 + 16)
        .await;
}

/// Every HELLO costs the server two multiplications on the curve. It costs the client nothing, because the
/// client can send the same HELLO again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_handshakes_starve_nobody() {
    let (scene, server) = encrypted().await;
    let doors = scene.doors();
    let mut peer = Raw::connect(doors[0].0).await;
    let good = record(&mut peer, SocketType::Pub, &client(&server)).await;
    drop(peer);
    let session = &good.sent.concat();
    let flood = async |_| {
        let play = |number: usize| async move {
            if let Some(mut peer) = Raw::connect_from(2, doors[number % 4].0).await {
                let _ = peer.try_send(session).await;
                peer.closed().await;
            }
        };
        futures::stream::iter(0..500).map(play).buffer_unordered(64).collect::<Vec<()>>().await;
        within("an innocent", scene.connection().connect()).await.unwrap();
    };
    scene.under_rounds(3000, flood).await;
    scene.finish("floods of CURVE handshakes", 40).await;
}

/// The check of a password takes tens of milliseconds and 19 MiB, on purpose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_passwords_starve_nobody() {
    let line = format!("plain=innocent:{}", *hash_password("sesame").unwrap());
    let password = |text: &str| Password::new(text).unwrap();
    let security = Security::PlainClient { user: "innocent".into(), password: password("sesame") };
    let scene = Scene::start(env!("CARGO_BIN_EXE_limited-proxy"), &[&line], security).await;
    let doors = scene.doors();
    let guess = |name: &str| {
        let body = [b"\x05HELLO", &[name.len() as u8][..], name.as_bytes(), b"\x05wrong"].concat();
        [&greeting(b"PLAIN")[..], &[4, body.len() as u8], &body].concat()
    };
    let guesses = &[guess("innocent"), guess("somebody")];
    // As many handshakes as are allowed at a time run from one address, again and again.
    let attacker = |number: usize| async move {
        loop {
            if let Some(mut peer) = Raw::connect_from(2, doors[number % 4].0).await {
                let _ = peer.try_send(&guesses[number % 2]).await;
                let _ = peer.stream.read_to_end(&mut Vec::new()).await;
            }
        }
    };
    let attack = futures::future::join_all((0..300).map(attacker));
    let innocents = async {
        for _ in 0..5 {
            let innocent: Connection = scene.connection();
            within("an innocent", innocent.connect()).await.unwrap();
        }
    };
    innocents_get_in(&scene, attack, innocents).await;
    scene.finish("floods of passwords", 100).await;
}

/// Checks that well-behaved clients can connect while the attack continues.
async fn innocents_get_in(scene: &Scene, attack: impl Future, innocents: impl Future<Output = ()>) {
    scene
        .under(async {
            tokio::select! {
                _ = attack => {}
                () = innocents => {}
            }
        })
        .await;
}

/// The guesses come from many addresses, none of which sends much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_addresses_that_guess_passwords_lock_nobody_out() {
    let line = format!("plain=innocent:{}", *hash_password("sesame").unwrap());
    let password = |text: &str| Password::new(text).unwrap();
    let security = Security::PlainClient { user: "innocent".into(), password: password("sesame") };
    let scene = Scene::start(env!("CARGO_BIN_EXE_limited-proxy"), &[&line], security).await;
    let doors = scene.doors();
    let answered = std::cell::Cell::new(0);
    let attacker = async |number: usize| {
        let body = b"\x05HELLO\x08innocent\x05wrong";
        let guess = [&greeting(b"PLAIN")[..], &[4, body.len() as u8], body].concat();
        loop {
            if let Some(mut peer) = Raw::connect_from(2 + number as u8, doors[number % 4].0).await {
                let _ = peer.try_send(&guess).await;
                let _ = peer.stream.read_to_end(&mut Vec::new()).await;
                answered.set(answered.get() + 1);
            }
        }
    };
    let attack = futures::future::join_all((0..100).map(attacker));
    let innocents = async {
        while answered.get() < 200 {
            tokio::task::yield_now().await;
        }
        for _ in 0..20 {
            let innocent: Connection = scene.connection();
            within("an innocent", innocent.connect()).await.unwrap();
        }
    };
    innocents_get_in(&scene, attack, innocents).await;
    scene.finish("a hundred addresses that guess passwords", 100).await;
}
