//! Tests of the engine with hand-written peers: every version, every cut, every refusal.

use proptest::prelude::*;

use super::*;
use crate::Blame;
use crate::{Frames, Limits, encode_frame};

const PEER_NULL_31: &[u8] = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
    \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn greeting(minor: u8, mechanism: &[u8]) -> Vec<u8> {
    let mut bytes = PEER_NULL_31.to_vec();
    bytes[11] = minor;
    bytes[12..32].fill(0);
    bytes[12..12 + mechanism.len()].copy_from_slice(mechanism);
    bytes
}

fn ready(socket_type: &str) -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
    body.push(socket_type.len() as u8);
    body.extend_from_slice(socket_type.as_bytes());
    let mut frame = vec![4, body.len() as u8];
    frame.extend_from_slice(&body);
    frame
}

fn session(minor: u8, socket_type: &str, traffic: &[u8]) -> Vec<u8> {
    [greeting(minor, b"NULL"), ready(socket_type), traffic.to_vec()].concat()
}

fn engine(socket_type: SocketType) -> Engine {
    Engine::new(Options::new(socket_type), Instant::now())
}

/// What `feed` has seen. Each message is split into its frames.
#[derive(Debug, PartialEq)]
enum Seen {
    Ready(Version, SocketType),
    Message(Vec<Vec<u8>>),
    Subscribe(Vec<u8>),
    Cancel(Vec<u8>),
    Drain,
    Drained,
    Dropped(DroppedCounts),
    FromSubscriber(Vec<u8>),
    Handled,
}

fn feed<'a>(engine: &mut Engine, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Seen>, Violation> {
    let (mut input, mut seen) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        while let Some(event) = engine.poll_event(&mut input)? {
            match event {
                Event::Credentials(_) => engine.set_verdict(true)?,
                Event::Drain => seen.push(Seen::Drain),
                Event::Drained => seen.push(Seen::Drained),
                Event::FromSubscriber(wire) => seen.push(Seen::FromSubscriber(wire.to_vec())),
                Event::Dropped(counts) => seen.push(Seen::Dropped(counts)),
                Event::Handled => seen.push(Seen::Handled),
                Event::Ready(peer) => seen.push(Seen::Ready(peer.version, peer.socket_type)),
                Event::Subscribe(prefix) => seen.push(Seen::Subscribe(prefix.to_vec())),
                Event::Cancel(prefix) => seen.push(Seen::Cancel(prefix.to_vec())),
                Event::Messages(bytes) => {
                    for span in engine.spans() {
                        let frames: Vec<_> =
                            Frames::of(bytes.slice(span.start..span.end)).map(|f| f.to_vec()).collect();
                        assert_eq!(frames.len(), span.frames);
                        assert_eq!(frames[0], span.first(&bytes));
                        seen.push(Seen::Message(frames));
                    }
                }
            }
        }
    }
    Ok(seen)
}

fn message(frames: &[&[u8]]) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_message(&mut out, frames);
    out.to_vec()
}

fn ping(context: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    Command::Ping { ttl: Duration::ZERO, context: Bytes::copy_from_slice(context) }.write(&mut out);
    out.to_vec()
}

/// A caller that serves others, too, is given the chance to do so.
#[test]
fn commands_and_messages_that_mean_nothing_are_reported_in_groups() {
    let pong = |count: usize| [4, 5, 4].iter().chain(b"PONG").copied().collect::<Vec<u8>>().repeat(count);
    for (ours, theirs, nothing) in [
        (SocketType::Pull, "PUSH", pong(3 * HANDLED_MAX + 1)),
        (SocketType::Xsub, "XPUB", b"\x04\x0b\x09SUBSCRIBEa".repeat(3 * HANDLED_MAX + 1)),
        (SocketType::Pub, "SUB", b"\0\x01x".repeat(3 * HANDLED_MAX + 1)),
    ] {
        let wire = [session(1, theirs, &nothing), b"\x04\x06\x05READY".to_vec()].concat();
        let seen = feed(&mut engine(ours), [&wire[..]]).unwrap();
        let handled = seen.iter().filter(|seen| **seen == Seen::Handled).count();
        assert_eq!((handled, seen.len()), (3, 4), "{ours:?}");
    }
}

#[test]
fn a_session_cut_at_every_byte_reads_the_same() {
    let long = vec![9; 300];
    let traffic =
        [message(&[b"a:b", b"m", b""]), ping(b"ctx"), message(&[b"", &long]), message(&[b"x"])].concat();
    let wire = session(1, "PUB", &traffic);
    let expected = vec![
        Seen::Ready(Version::V3_1, SocketType::Pub),
        Seen::Message(vec![b"a:b".to_vec(), b"m".to_vec(), vec![]]),
        Seen::Message(vec![vec![], long]),
        Seen::Message(vec![b"x".to_vec()]),
    ];
    for cut in 0..=wire.len() {
        let mut engine = engine(SocketType::Xsub);
        let (head, tail) = wire.split_at(cut);
        assert_eq!(feed(&mut engine, [head, tail]).unwrap(), expected, "cut at {cut}");
        let sent = std::iter::from_fn(|| engine.poll_transmit()).collect::<Vec<_>>().concat();
        assert!(sent.ends_with(b"\x04\x08\x04PONGctx"), "the PING is answered");
    }
    let mut engine = engine(SocketType::Xsub);
    assert_eq!(feed(&mut engine, wire.chunks(1)).unwrap(), expected, "byte by byte");
}

#[test]
fn both_forms_of_subscriptions_are_read_from_either_version() {
    let mut commands = BytesMut::new();
    Command::Subscribe(Bytes::from_static(b"a")).write(&mut commands);
    Command::Cancel(Bytes::from_static(b"a")).write(&mut commands);
    let traffic =
        [message(&[b"\x01b"]), commands.to_vec(), message(&[b"\x00b"]), message(&[b"\x01"])].concat();
    for (minor, version) in [(0, Version::V3_0), (1, Version::V3_1)] {
        let seen = feed(&mut engine(SocketType::Xpub), [&session(minor, "SUB", &traffic)[..]]).unwrap();
        let expected = vec![
            Seen::Ready(version, SocketType::Sub),
            Seen::Subscribe(b"b".to_vec()),
            Seen::Subscribe(b"a".to_vec()),
            Seen::Cancel(b"a".to_vec()),
            Seen::Cancel(b"b".to_vec()),
            Seen::Subscribe(vec![]),
        ];
        assert_eq!(seen, expected);
    }
}

#[test]
fn a_zmtp_2_0_peer_is_understood() {
    // The parts are: signature, revision 1, socket type SUB, identity "old", then a subscription.
    let wire = [&b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x02\0\x03old"[..], &message(&[b"\x01t"])].concat();
    for cut in 0..=wire.len() {
        let mut engine = engine(SocketType::Xpub);
        let (head, tail) = wire.split_at(cut);
        let seen = feed(&mut engine, [head, tail]).unwrap();
        assert_eq!(seen, [Seen::Ready(Version::V2_0, SocketType::Sub), Seen::Subscribe(b"t".to_vec())]);
        let sent = std::iter::from_fn(|| engine.poll_transmit()).collect::<Vec<_>>().concat();
        assert_eq!(sent, b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x09\0\0", "signature, XPUB, empty identity");
    }
}

#[test]
fn a_heartbeat_between_the_frames_of_a_message_does_not_break_it() {
    let mut wire = BytesMut::new();
    encode_frame(&mut wire, b"topic", true);
    wire.extend_from_slice(&ping(b"1"));
    encode_frame(&mut wire, b"meta", true);
    wire.extend_from_slice(&ping(b"2"));
    encode_frame(&mut wire, b"data", false);
    wire.extend_from_slice(&message(&[b"next"]));
    let wire = session(1, "PUB", &wire);
    for cut in 0..=wire.len() {
        let (head, tail) = wire.split_at(cut);
        let seen = feed(&mut engine(SocketType::Sub), [head, tail]).unwrap();
        assert_eq!(
            seen[1..],
            [
                Seen::Message(vec![b"topic".to_vec(), b"meta".to_vec(), b"data".to_vec()]),
                Seen::Message(vec![b"next".to_vec()]),
            ]
        );
    }
}

#[test]
fn a_storm_of_commands_inside_a_message_ends_the_connection() {
    let mut traffic = BytesMut::new();
    encode_frame(&mut traffic, &vec![0; 1 << 20], true);
    for _ in 0..1000 {
        traffic.extend_from_slice(&ping(b""));
    }
    let result = feed(&mut engine(SocketType::Sub), [&session(1, "PUB", &traffic)[..]]);
    assert!(matches!(result, Err(Violation::Malformed(_))), "{result:?}");
}

#[test]
fn unknown_commands_are_ignored() {
    let traffic = [&b"\x04\x06\x05HELLO"[..], b"\x04\x04\x03ABC", &message(&[b"x"])].concat();
    let seen = feed(&mut engine(SocketType::Sub), [&session(1, "PUB", &traffic)[..]]).unwrap();
    assert_eq!(seen[1..], [Seen::Message(vec![b"x".to_vec()])]);
}

#[test]
fn misfits_are_refused_without_a_word() {
    for (wire, blame) in [
        (session(1, "STREAM", b""), Blame::PeerIncompatible),
        (session(1, "PUSH", b""), Blame::PeerIncompatible),
        (greeting(1, b"CURVE"), Blame::PeerIncompatible),
        ([greeting(1, b"NULL"), b"\x04\x0a\x05ERROR\x03no!".to_vec()].concat(), Blame::PeerIncompatible),
        ([greeting(1, b"NULL"), message(&[b"too early"])].concat(), Blame::PeerMisbehaved),
        ([greeting(1, b"NULL"), vec![6, 255, 0, 0, 0, 0, 0, 0, 0]].concat(), Blame::PeerMisbehaved),
        (session(1, "PUB", &[0xf8, 0]), Blame::PeerMisbehaved),
        (session(1, "PUB", &[2, 0, 0, 32, 0, 0, 0, 0, 0]), Blame::PeerMisbehaved),
        (b"GET / HTTP/1.1\r\n".to_vec(), Blame::PeerMisbehaved),
        (b"\x01\x00".to_vec(), Blame::PeerIncompatible),
    ] {
        let mut engine = engine(SocketType::Xsub);
        let violation = feed(&mut engine, [&wire[..]]).unwrap_err();
        assert_eq!(violation.blame(), blame, "{violation}");
        let sent = std::iter::from_fn(|| engine.poll_transmit()).collect::<Vec<_>>().concat();
        // libzmq gives up for good when it gets an ERROR command.
        assert!(!sent.windows(6).any(|w| w == b"\x05ERROR"), "{violation}");
    }
}

/// Padding, filler and, with NULL, the as-server flag have no meaning, and a later version is treated like
/// ours (RFC 23).
#[test]
fn padding_filler_and_later_versions_mean_nothing() {
    for (major, minor) in [(3, 1), (3, 2), (3, 255), (4, 0), (255, 9)] {
        let mut wire = session(minor, "PUB", &message(&[b"x"]));
        wire[10] = major;
        wire[1..9].fill(0xa5);
        // These are the as-server flag, which NULL does not have, and the filler.
        wire[32] = 1;
        wire[33..64].fill(0x5a);
        let seen = feed(&mut engine(SocketType::Sub), [&wire[..]]).unwrap();
        let expected = [Seen::Ready(Version::V3_1, SocketType::Pub), Seen::Message(vec![b"x".to_vec()])];
        assert_eq!(seen, expected, "version {major}.{minor}");
    }
}

/// A peer that has read a greeting has to send its own, even if it then ends the connection. Otherwise two
/// peers could wait for each other (RFC 23).
#[test]
fn a_peer_with_another_mechanism_is_sent_our_whole_greeting() {
    let mut engine = engine(SocketType::Xsub);
    let violation = feed(&mut engine, [&greeting(1, b"CURVE")[..]]).unwrap_err();
    assert!(matches!(violation, Violation::MechanismMismatch { .. }), "{violation}");
    let sent = std::iter::from_fn(|| engine.poll_transmit()).collect::<Vec<_>>().concat();
    assert_eq!(sent, PEER_NULL_31, "signature, version 3.1, NULL, and zeros");
}

/// A PUB socket drops messages that its subscribers send, and an XPUB socket returns them (RFC 29).
#[test]
fn a_publisher_throws_away_messages_of_its_subscribers() {
    let said = message(&[b"\x01said", b"so"]);
    let traffic = [message(&[b"hello"]), message(&[b""]), said.clone(), message(&[b"\x01t"])].concat();
    let wire = session(1, "XSUB", &traffic);
    let seen = feed(&mut engine(SocketType::Pub), [&wire[..]]).unwrap();
    assert_eq!(seen[1..], [Seen::Subscribe(b"t".to_vec())]);
    let options = Options { messages_from_subscribers: true, ..Options::new(SocketType::Xpub) };
    let seen = feed(&mut Engine::new(options, Instant::now()), [&wire[..]]).unwrap();
    let expected = [
        Seen::FromSubscriber(message(&[b"hello"])),
        Seen::FromSubscriber(message(&[b""])),
        Seen::FromSubscriber(said),
        Seen::Subscribe(b"t".to_vec()),
    ];
    assert_eq!(seen[1..], expected);
}

#[test]
fn an_error_in_the_traffic_ends_the_connection_and_is_not_answered() {
    let mut engine = engine(SocketType::Sub);
    feed(&mut engine, [&session(1, "PUB", &message(&[b"x"]))[..]]).unwrap();
    while engine.poll_transmit().is_some() {}
    let result = engine.poll_event(&mut BytesMut::from(&b"\x04\x0a\x05ERROR\x03no!"[..]));
    assert_eq!(result, Err(Violation::RefusedByPeer("no!".into())));
    assert_eq!(engine.poll_transmit(), None);
}

/// After a PING with a time to live, the connection ends when nothing arrives for that time. The next PING
/// may cancel this (RFC 37).
#[test]
fn a_time_to_live_that_the_peer_has_told_is_kept() {
    let ping = |ttl| {
        let mut out = BytesMut::new();
        Command::Ping { ttl, context: Bytes::new() }.write(&mut out);
        out
    };
    let (start, ttl) = (Instant::now(), Duration::from_millis(700));
    let mut engine = Engine::new(Options::new(SocketType::Sub), start);
    feed(&mut engine, [&session(1, "PUB", &ping(ttl))[..]]).unwrap();
    engine.handle_received(start);
    assert_eq!(engine.poll_timeout(), Some(start + ttl));
    engine.handle_received(start + ttl / 2);
    assert_eq!(engine.handle_timeout(start + ttl), Ok(()), "it has said something since");
    let due = engine.poll_timeout().unwrap();
    assert_eq!(engine.handle_timeout(due), Err(Violation::HeartbeatTimeout));
    feed(&mut engine, [&ping(Duration::ZERO)[..]]).unwrap();
    assert_eq!(engine.poll_timeout(), None);
}

#[test]
fn a_zmtp_2_0_peer_with_a_wrong_type_is_refused() {
    let result = feed(&mut engine(SocketType::Xpub), [&b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x07\0\0"[..]]);
    assert!(matches!(result, Err(Violation::SocketTypeMismatch { .. })), "{result:?}");
}

/// Encodes a READY command of a socket of this type with one more property.
fn ready_with(socket_type: &str, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut frame = ready(socket_type);
    frame.push(name.len() as u8);
    frame.extend_from_slice(name);
    frame.extend_from_slice(&(value.len() as u32).to_be_bytes());
    frame.extend_from_slice(value);
    frame[1] = (frame.len() - 2) as u8;
    frame
}

/// Returns the limits that an engine of this type learns from a peer with this READY command.
fn announced(socket_type: SocketType, ready: &[u8]) -> PeerLimits {
    let mut engine = engine(socket_type);
    let mut input = BytesMut::from(&[&greeting(1, b"NULL"), ready].concat()[..]);
    let Ok(Some(Event::Ready(peer))) = engine.poll_event(&mut input) else { panic!("no handshake") };
    peer.limits
}

#[test]
fn a_peer_tells_its_limits_and_a_foreign_one_none() {
    let nothing = PeerLimits::default();
    assert_eq!(announced(SocketType::Pub, &ready("XSUB")), nothing);
    let one = ready_with("XSUB", b"x-max-message-size", b"1048576");
    assert_eq!(announced(SocketType::Pub, &one), PeerLimits { message_size: Some(1 << 20), ..nothing });
    for malformed in [&b""[..], b"0", b"-5", b"many", &[0, 0, 0, 1]] {
        assert_eq!(announced(SocketType::Pub, &ready_with("XSUB", b"X-Max-Frames", malformed)), nothing);
    }
    assert_eq!(announced(SocketType::Pub, &ready_with("XSUB", b"X-Whatever", b"1")), nothing);
}

#[test]
fn both_ends_learn_the_limits_of_the_other() {
    let limits = Limits { message_size: 5000, frames: 5, subscription_len: 77, ..Limits::default() };
    for security in ["NULL", "PLAIN"] {
        let options = |socket_type| Options { limits: limits.clone(), ..Options::new(socket_type) };
        let mechanism = |server| -> Box<dyn Mechanism> {
            match (security, server) {
                ("NULL", _) => Box::new(crate::Null::default()),
                (_, true) => Box::new(crate::PlainServer::default()),
                (_, false) => Box::new(crate::PlainClient::new(b"me", b"secret")),
            }
        };
        let now = Instant::now();
        let mut ends = [(SocketType::Pub, false), (SocketType::Xsub, true)].map(|(socket_type, server)| {
            (Engine::with_mechanism(options(socket_type), mechanism(server), now), BytesMut::new(), None)
        });
        while ends.iter().any(|(_, _, announced)| announced.is_none()) {
            for number in 0..2 {
                while let Some(bytes) = ends[number].0.poll_transmit() {
                    ends[1 - number].1.extend_from_slice(&bytes);
                }
                let (engine, input, announced) = &mut ends[number];
                match engine.poll_event(input).unwrap() {
                    Some(Event::Ready(peer)) => *announced = Some(peer.limits),
                    Some(Event::Credentials(_)) => engine.set_verdict(true).unwrap(),
                    _ => {}
                }
            }
        }
        let expected = PeerLimits { message_size: Some(5000), frames: Some(5), ..PeerLimits::default() };
        assert_eq!(ends[0].2, Some(expected), "{security}: the publisher learns what may be published");
        let Limits { subscriptions, subscription_bytes, .. } = limits;
        let expected = PeerLimits {
            subscription_len: Some(77),
            subscriptions: Some(subscriptions),
            subscription_bytes: Some(subscription_bytes),
            ..PeerLimits::default()
        };
        assert_eq!(ends[1].2, Some(expected), "{security}: the other one, what may be subscribed to");
    }
}

#[test]
fn a_zmtp_2_0_peer_is_told_nothing_and_tells_nothing() {
    let wire = [&b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x02\0\x03old"[..], &message(&[b"\x01t"])].concat();
    let mut engine = engine(SocketType::Xpub);
    let event = engine.poll_event(&mut BytesMut::from(&wire[..]));
    let Ok(Some(Event::Ready(peer))) = event else { panic!("{event:?}") };
    assert_eq!(peer.limits, PeerLimits::default());
}

#[test]
fn long_subscriptions_are_refused() {
    let mut options = Options::new(SocketType::Xpub);
    options.limits = Limits { subscription_len: 10, ..Limits::default() };
    let mut engine = Engine::new(options, Instant::now());
    let wire = session(0, "SUB", &message(&[b"\x0112345678901"]));
    assert!(matches!(feed(&mut engine, [&wire[..]]), Err(Violation::TooLarge { .. })));
}

#[test]
fn the_handshake_has_a_deadline() {
    let start = Instant::now();
    let mut engine = Engine::new(Options::new(SocketType::Sub), start);
    let due = engine.poll_timeout().unwrap();
    assert_eq!(due, start + Duration::from_secs(10));
    assert_eq!(engine.handle_timeout(start + Duration::from_millis(9999)), Ok(()));
    assert_eq!(engine.handle_timeout(due), Err(Violation::HandshakeTimeout));
}

#[test]
fn silence_is_asked_after_and_then_ends_the_connection() {
    let start = Instant::now();
    let mut options = Options::new(SocketType::Sub);
    options.heartbeat_interval = Some(Duration::from_secs(1));
    options.heartbeat_timeout = Duration::from_secs(3);
    let mut engine = Engine::new(options, start);
    feed(&mut engine, [&session(1, "PUB", b"")[..]]).unwrap();
    while engine.poll_transmit().is_some() {}
    engine.handle_received(start);

    let due = engine.poll_timeout().unwrap();
    assert_eq!(due, start + Duration::from_secs(1));
    engine.handle_timeout(due).unwrap();
    assert_eq!(engine.poll_transmit().unwrap(), &b"\x04\x07\x04PING\0\0"[..]);
    assert_eq!(engine.poll_timeout(), Some(due + Duration::from_secs(3)));

    // An answer of any kind starts the interval again.
    engine.handle_received(due);
    let due = engine.poll_timeout().unwrap();
    engine.handle_timeout(due).unwrap();
    // Without an answer, the connection ends.
    assert_eq!(engine.handle_timeout(due + Duration::from_secs(3)), Err(Violation::HeartbeatTimeout));
}

#[test]
fn no_time_limit_is_too_long_or_too_short() {
    let start = Instant::now();
    let later = start + Duration::from_secs(1 << 31);
    for (interval, timeout) in [(Duration::MAX, Duration::MAX), (Duration::ZERO, Duration::ZERO)] {
        let mut options = Options::new(SocketType::Sub);
        options.heartbeat_interval = Some(interval);
        options.heartbeat_timeout = timeout;
        options.limits.handshake_timeout = Duration::MAX;
        let mut engine = Engine::new(options, start);
        assert_eq!(engine.handle_timeout(later), Ok(()), "in the handshake");
        feed(&mut engine, [&session(1, "PUB", b"")[..]]).unwrap();
        while engine.poll_transmit().is_some() {}
        engine.handle_received(start);
        assert_eq!(engine.handle_timeout(later), Ok(()));
        assert_eq!(engine.poll_transmit(), None, "no time at all stands for never, as a very long one does");
    }
    // The time limit for the answer to a heartbeat may also be infinite.
    let mut options = Options::new(SocketType::Sub);
    options.heartbeat_interval = Some(Duration::from_secs(1));
    options.heartbeat_timeout = Duration::MAX;
    let mut engine = Engine::new(options, start);
    feed(&mut engine, [&session(1, "PUB", b"")[..]]).unwrap();
    engine.handle_received(start);
    engine.handle_timeout(start + Duration::from_secs(1)).unwrap();
    assert_eq!(engine.handle_timeout(later), Ok(()));
    let mut engine = Engine::new(
        Options {
            limits: Limits { handshake_timeout: Duration::ZERO, ..Limits::default() },
            ..Options::new(SocketType::Sub)
        },
        start,
    );
    assert_eq!(engine.handle_timeout(start), Err(Violation::HandshakeTimeout));
}

#[test]
fn peers_below_3_1_get_no_heartbeats() {
    let mut options = Options::new(SocketType::Sub);
    options.heartbeat_interval = Some(Duration::from_secs(1));
    let mut engine = Engine::new(options, Instant::now());
    feed(&mut engine, [&session(0, "PUB", b"")[..]]).unwrap();
    assert_eq!(engine.poll_timeout(), None);
}

#[test]
fn subscriptions_are_written_as_the_peer_knows_them() {
    let prefix = Bytes::from_static(b"ab");
    for (version, subscribe, expected) in [
        (Version::V3_1, true, &b"\x04\x0c\x09SUBSCRIBEab"[..]),
        (Version::V3_1, false, b"\x04\x09\x06CANCELab"),
        (Version::V3_0, true, b"\x00\x03\x01ab"),
        (Version::V2_0, false, b"\x00\x03\x00ab"),
    ] {
        let mut out = BytesMut::new();
        version.write_subscription(&mut out, subscribe, &prefix);
        assert_eq!(&out[..], expected);
    }
}

proptest! {
    /// Whatever a peer sends, the engine returns events or a violation and never panics. The result is the
    /// same however the bytes are cut.
    #[test]
    fn garbage_never_panics(
        prefix in 0_usize..100,
        garbage in prop::collection::vec(any::<u8>(), 0..400),
        piece in 1_usize..50,
    ) {
        let good = session(1, "PUB", b"");
        let wire = [&good[..prefix.min(good.len())], &garbage].concat();
        let whole = feed(&mut engine(SocketType::Sub), [&wire[..]]);
        let cut = feed(&mut engine(SocketType::Sub), wire.chunks(piece));
        prop_assert_eq!(whole.is_ok(), cut.is_ok());
    }

    /// A valid session with one byte changed is either read or refused, with the same result in one piece and
    /// in many.
    #[test]
    fn one_wrong_byte_never_panics(at in 0_usize..150, value in any::<u8>(), piece in 1_usize..20) {
        let traffic = [message(&[b"topic", b"meta", &[5; 20]]), ping(b"abc"), message(&[b"\x01sub"])].concat();
        let mut wire = session(1, "PUB", &traffic);
        let at = at % wire.len();
        wire[at] = value;
        let whole = feed(&mut engine(SocketType::Sub), [&wire[..]]);
        let cut = feed(&mut engine(SocketType::Sub), wire.chunks(piece));
        prop_assert_eq!(whole, cut);
    }
}

#[test]
fn a_sender_is_asked_to_finish_and_told_that_all_was_read_and_a_receiver_is_not() {
    let mut commands = BytesMut::new();
    Command::Drain.write(&mut commands);
    Command::Drained.write(&mut commands);
    let mut publisher = engine(SocketType::Pub);
    let seen = feed(&mut publisher, [&session(1, "XSUB", &commands)[..]]).unwrap();
    assert_eq!(seen[1..], [Seen::Drain, Seen::Drained]);
    let announced: Vec<u8> = std::iter::from_fn(|| publisher.poll_transmit()).flatten().collect();
    assert!(announced.windows(7).any(|part| part == b"X-Drain"), "it has told that it understands this");

    let mut receiver = engine(SocketType::Sub);
    let seen = feed(&mut receiver, [&session(1, "XPUB", &commands)[..]]).unwrap();
    assert_eq!(seen.len(), 1, "it is not meant for a receiver");
}

#[test]
fn a_subscriber_hears_of_drops_and_nobody_else_does() {
    let counts = DroppedCounts { too_slow: 3, too_large: 1 << 40 };
    let mut commands = BytesMut::new();
    Command::Dropped(counts).write(&mut commands);
    assert_eq!(&commands[..12], b"\x04\x1a\x09X-DROPPED");
    assert_eq!(commands[12..], [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 1, 0, 0, 0, 0, 0]);
    let mut subscriber = engine(SocketType::Sub);
    let seen = feed(&mut subscriber, [&session(1, "XPUB", &commands)[..]]).unwrap();
    assert_eq!(seen[1..], [Seen::Dropped(counts)]);
    let announced: Vec<u8> = std::iter::from_fn(|| subscriber.poll_transmit()).flatten().collect();
    assert!(announced.windows(9).any(|part| part == b"X-Dropped"), "it has told that it understands this");

    for (ours, theirs) in [(SocketType::Pub, "XSUB"), (SocketType::Xpub, "SUB"), (SocketType::Xsub, "PUB")] {
        let mut other = engine(ours);
        let seen = feed(&mut other, [&session(1, theirs, &commands)[..]]).unwrap();
        assert_eq!(seen.len(), 1, "{ours}: it is meant for subscribers");
        let announced: Vec<u8> = std::iter::from_fn(|| other.poll_transmit()).flatten().collect();
        assert!(!announced.windows(9).any(|part| part == b"X-Dropped"), "{ours}");
    }

    let short = [&b"\x04\x11\x09X-DROPPED"[..], &[0; 7]].concat();
    let mut subscriber = engine(SocketType::Sub);
    assert!(feed(&mut subscriber, [&session(1, "XPUB", &short)[..]]).is_err());
}
