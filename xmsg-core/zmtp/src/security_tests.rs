//! Handshakes of PLAIN and CURVE between two engines: every refusal, and every byte changed.

use std::time::Instant;

use super::*;
use crate::{Engine, Event, Null, Options, Peer, PlainClient, PlainServer, Principal, SocketType};

fn entropy(seed: u8) -> Entropy {
    Entropy {
        transient: SecretKey::from_bytes([seed; KEY_LEN]),
        nonce: [seed; LONG_NONCE_LEN],
        cookie: Zeroizing::new([seed; COOKIE_LEN]),
    }
}

fn keys(seed: u8) -> KeyPair {
    SecretKey::from_bytes([seed; KEY_LEN]).into()
}

fn engine(socket_type: SocketType, mechanism: impl Mechanism + 'static) -> Engine {
    Engine::with_mechanism(Options::new(socket_type), Box::new(mechanism), Instant::now())
}

fn curve_client(server: PublicKey) -> Engine {
    engine(SocketType::Pub, CurveClient::new(keys(1), server, entropy(3)))
}

fn curve_server() -> Engine {
    engine(SocketType::Xsub, CurveServer::new(keys(2), entropy(4)))
}

/// The outcome of a handshake on one side.
#[derive(Debug, PartialEq)]
enum Outcome {
    Ready(Peer),
    Refused(Violation),
    Waiting,
}

/// One side of a connection in memory.
struct Side {
    engine: Engine,
    input: BytesMut,
    outcome: Outcome,
}

impl Side {
    fn new(engine: Engine) -> Self {
        Self { engine, input: BytesMut::new(), outcome: Outcome::Waiting }
    }

    fn step(&mut self, admit: bool, output: &mut BytesMut) {
        while self.outcome == Outcome::Waiting {
            let event = self.engine.poll_event(&mut self.input);
            let judged = match event {
                Ok(Some(Event::Ready(peer))) => {
                    self.outcome = Outcome::Ready(peer);
                    Ok(())
                }
                Ok(Some(Event::Credentials(_))) => self.engine.set_verdict(admit),
                Ok(Some(_)) => Ok(()),
                Ok(None) => break,
                Err(violation) => Err(violation),
            };
            if let Err(violation) = judged {
                self.outcome = Outcome::Refused(violation);
            }
        }
        while let Some(bytes) = self.engine.poll_transmit() {
            output.extend_from_slice(&bytes);
        }
    }
}

/// Connects two engines, one byte at a time. `change` may alter what the client sends, by position.
fn join(client: Engine, server: Engine, admit: bool, change: impl Fn(usize, u8) -> u8) -> [Side; 2] {
    join_changing(client, server, admit, change, unchanged)
}

/// Connects two engines like [`join`]. `answer` may alter what the server sends.
fn join_changing(
    client: Engine,
    server: Engine,
    admit: bool,
    change: impl Fn(usize, u8) -> u8,
    answer: impl Fn(usize, u8) -> u8,
) -> [Side; 2] {
    let (mut client, mut server) = (Side::new(client), Side::new(server));
    let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
    let (mut sent, mut answered) = (0, 0);
    loop {
        client.step(admit, &mut to_server);
        server.step(admit, &mut to_client);
        if let Some(byte) = to_server.first().copied() {
            to_server.advance(1);
            server.input.put_u8(change(sent, byte));
            sent += 1;
        } else if let Some(byte) = to_client.first().copied() {
            to_client.advance(1);
            client.input.put_u8(answer(answered, byte));
            answered += 1;
        } else {
            return [client, server];
        }
    }
}

fn unchanged(_: usize, byte: u8) -> u8 {
    byte
}

#[test]
fn curve_lets_traffic_through_in_both_directions() {
    let [mut client, mut server] = join(curve_client(*keys(2).public()), curve_server(), true, unchanged);
    let Outcome::Ready(peer) = &server.outcome else { panic!("{:?}", server.outcome) };
    assert_eq!(peer.principal, Some(Principal::Key(*keys(1).public())));
    assert!(matches!(client.outcome, Outcome::Ready(Peer { principal: None, .. })));
    let (mut ours, mut theirs) = (client.engine.take_cipher().unwrap(), server.engine.take_cipher().unwrap());
    for (sealer, opener) in [(&mut ours.sealer, &mut theirs.opener), (&mut theirs.sealer, &mut ours.opener)] {
        let (mut boxed, mut plain) = (BytesMut::new(), BytesMut::new());
        sealer.seal(1, b"topic", &mut boxed);
        sealer.seal(0, &[7; 300], &mut boxed);
        while opener.open(&mut boxed, &mut plain).unwrap() {}
        assert_eq!(&plain[..16], b"\x01\x05topic\x02\0\0\0\0\0\0\x01\x2c");
        assert_eq!(&plain[16..], [7; 300]);
    }
    assert!(client.engine.take_cipher().is_none(), "a key stream is used once");
}

#[test]
fn a_client_that_is_not_let_in_is_told_so() {
    let [client, server] = join(curve_client(*keys(2).public()), curve_server(), false, unchanged);
    let stranger = Principal::Key(*keys(1).public());
    assert_eq!(server.outcome, Outcome::Refused(Violation::NotAdmitted(Some(stranger))));
    assert_eq!(client.outcome, Outcome::Refused(Violation::RefusedByPeer("400".into())));
}

#[test]
fn another_server_key_is_noticed_on_both_sides() {
    let [client, server] = join(curve_client(*keys(9).public()), curve_server(), true, unchanged);
    assert!(matches!(server.outcome, Outcome::Refused(Violation::NotAuthentic(_))), "{:?}", server.outcome);
    // The server sends no error, because a client of libzmq would then never try again.
    assert_eq!((client.outcome, client.input.len()), (Outcome::Waiting, 0));
    assert!(matches!(client.engine.closed_by_peer(), Some(Violation::ClosedByPeer(_))));
}

#[test]
fn a_null_peer_does_not_get_past_a_mechanism() {
    for server in [curve_server(), engine(SocketType::Xsub, PlainServer::default())] {
        let [client, server] = join(engine(SocketType::Pub, Null::default()), server, true, unchanged);
        assert!(matches!(server.outcome, Outcome::Refused(Violation::MechanismMismatch { .. })));
        assert!(matches!(client.outcome, Outcome::Refused(Violation::MechanismMismatch { .. })));
    }
}

/// ZMTP 2.0 has no security, so a peer that claims to speak it must not bypass a mechanism (RFC 23).
#[test]
fn a_zmtp_2_0_peer_does_not_get_past_a_mechanism() {
    for mut side in [
        curve_server(),
        curve_client(*keys(2).public()),
        engine(SocketType::Xsub, PlainServer::default()),
        engine(SocketType::Pub, PlainClient::new(b"a", b"b")),
    ] {
        for revision in [1, 2] {
            let mut input = BytesMut::from(&b"\xff\0\0\0\0\0\0\0\x01\x7f"[..]);
            input.put_slice(&[revision, 2, 0, 0]);
            let event = side.poll_event(&mut input);
            assert!(matches!(event, Err(Violation::MechanismMismatch { .. })), "{event:?}");
        }
    }
}

/// Whatever byte of its handshake is changed on the way, a client is admitted as itself or not at all.
#[test]
fn no_changed_handshake_is_taken_for_another() {
    // The lengths are: greeting 64, HELLO frame 2 + 200, INITIATE frame 9 + 9 + 96 + 8 + 16 + 128 +
    // properties.
    for position in 0..540 {
        for bit in [1, 0x80] {
            let change = |at, byte| if at == position { byte ^ bit } else { byte };
            let [_, server] = join(curve_client(*keys(2).public()), curve_server(), true, change);
            // Filler, padding, and versions above ours have no meaning.
            if let Outcome::Ready(peer) = server.outcome {
                assert_eq!(peer.principal, Some(Principal::Key(*keys(1).public())), "byte {position}");
                assert_eq!(peer.socket_type, SocketType::Pub, "byte {position}");
                assert!(position < 64 + 2 + 8 + HELLO_PADDING, "byte {position} means something");
                assert!(!(64..64 + 2 + 8).contains(&position), "byte {position} is of the HELLO's head");
            }
        }
    }
}

/// A client does not accept a changed WELCOME or READY either.
#[test]
fn no_changed_answer_of_a_server_is_taken() {
    let length = std::cell::Cell::new(0);
    let count = |at, byte| {
        length.set(length.get().max(at + 1));
        byte
    };
    let [client, _] = join_changing(curve_client(*keys(2).public()), curve_server(), true, unchanged, count);
    assert!(matches!(client.outcome, Outcome::Ready(_)), "{:?}", client.outcome);
    // Behind the greeting, each byte has a meaning: the WELCOME frame of 2 + 168 bytes, then the frame of
    // READY.
    assert!(length.get() > 64 + 170 + 2 + 30, "{} bytes", length.get());
    for position in 64..length.get() {
        for bit in [1, 0x80] {
            let change = |at, byte| if at == position { byte ^ bit } else { byte };
            let [client, _] =
                join_changing(curve_client(*keys(2).public()), curve_server(), true, unchanged, change);
            assert!(!matches!(client.outcome, Outcome::Ready(_)), "byte {position}");
        }
    }
}

#[test]
fn plain_shows_a_name_and_a_password() {
    let client = || engine(SocketType::Pub, PlainClient::new(b"alice", b"sesame"));
    let server = || engine(SocketType::Xsub, PlainServer::default());
    let [client_side, server_side] = join(client(), server(), true, unchanged);
    let Outcome::Ready(peer) = server_side.outcome else { panic!("{:?}", server_side.outcome) };
    assert_eq!(peer.principal, Some(Principal::User("alice".into())));
    assert!(matches!(client_side.outcome, Outcome::Ready(_)));
    let [client_side, server_side] = join(client(), server(), false, unchanged);
    let alice = Principal::User("alice".into());
    assert_eq!(server_side.outcome, Outcome::Refused(Violation::NotAdmitted(Some(alice))));
    assert_eq!(client_side.outcome, Outcome::Refused(Violation::RefusedByPeer("400".into())));
}

/// These are the bytes that a PLAIN server of libzmq 4.3.5 sent, and those of RFC 24.
#[test]
fn a_plain_client_understands_how_libzmq_refuses_it() {
    for refusal in [&b"\x04\x09^RROR\x03400"[..], b"\x04\x0a\x05ERROR\x03400"] {
        let mut client = engine(SocketType::Pub, PlainClient::new(b"a", b"b"));
        let mut input = BytesMut::from(&b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01PLAIN"[..]);
        input.put_bytes(0, 64 - input.len());
        input.put_slice(refusal);
        assert_eq!(client.poll_event(&mut input), Err(Violation::RefusedByPeer("400".into())));
    }
}

/// These are the bytes that a PLAIN client of libzmq expects since 4.3.0, and those that older ones and
/// JeroMQ expect.
#[test]
fn a_plain_server_refuses_in_the_words_of_the_peer() {
    for (minor, refusal) in [(1, &b"\x04\x09^RROR\x03400"[..]), (0, b"\x04\x0a\x05ERROR\x03400")] {
        let mut server = engine(SocketType::Xsub, PlainServer::default());
        let mut input = BytesMut::from(&b"\xff\0\0\0\0\0\0\0\x01\x7f\x03"[..]);
        input.put_u8(minor);
        input.put_slice(b"PLAIN");
        input.put_bytes(0, 64 - input.len());
        input.put_slice(b"\x04\x0a\x05HELLO\x01a\x01b");
        assert!(matches!(server.poll_event(&mut input), Ok(Some(Event::Credentials(_)))));
        let _greeting = std::iter::from_fn(|| server.poll_transmit()).count();
        assert!(matches!(server.set_verdict(false), Err(Violation::NotAdmitted(Some(_)))));
        assert_eq!(server.poll_transmit().as_deref(), Some(refusal));
    }
}

#[test]
fn nothing_is_taken_before_the_credentials_were_judged() {
    let mut server = engine(SocketType::Xsub, PlainServer::default());
    let [client, _] =
        join(engine(SocketType::Pub, PlainClient::new(b"a", b"b")), curve_server(), true, unchanged);
    drop(client);
    // The client sends its whole session at once.
    let mut input = BytesMut::from(&b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01PLAIN"[..]);
    input.put_bytes(0, 64 - input.len());
    input.put_slice(b"\x04\x0a\x05HELLO\x01a\x01b");
    input.put_slice(b"\x04\x1b\x08INITIATE\x0bSocket-Type\0\0\0\x03PUB");
    assert!(matches!(server.poll_event(&mut input), Ok(Some(Event::Credentials(_)))));
    let rest = input.len();
    assert_eq!(server.poll_event(&mut input), Ok(None));
    assert_eq!(input.len(), rest, "nothing is read");
    assert!(matches!(server.set_verdict(false), Err(Violation::NotAdmitted(Some(_)))));
}
